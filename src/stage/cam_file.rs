//! CAMs as stored: safetensors with `cam` f16 `(classes, height, width)` and `classes` u8.

use anyhow::{Context, ensure};
use half::f16;
use safetensors::tensor::{Dtype, SafeTensors, TensorView, serialize};

use crate::vision::Cam;

pub fn write_cam(cam: &Cam) -> anyhow::Result<Vec<u8>> {
    let scores: Vec<u8> = cam.data.iter().flat_map(|&score| f16::from_f32(score).to_le_bytes()).collect();
    let shape = vec![cam.classes.len(), cam.height, cam.width];
    let views = [
        ("cam", TensorView::new(Dtype::F16, shape, &scores)?),
        ("classes", TensorView::new(Dtype::U8, vec![cam.classes.len()], &cam.classes)?),
    ];
    Ok(serialize(views, None)?)
}

pub fn read_cam(bytes: &[u8]) -> anyhow::Result<Cam> {
    let file = SafeTensors::deserialize(bytes).context("not a whole CAM file")?;
    let (cam, classes) = (file.tensor("cam")?, file.tensor("classes")?);
    let &[n, height, width] = cam.shape() else { anyhow::bail!("a CAM of shape {:?}", cam.shape()) };
    ensure!(cam.dtype() == Dtype::F16 && classes.shape() == [n], "a CAM file of another format");
    let data = cam.data().chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect();
    Ok(Cam { classes: classes.data().to_vec(), height, width, data })
}
