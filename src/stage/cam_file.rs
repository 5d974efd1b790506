//! CAMs and scores as stored: safetensors with f16 `(channels, height, width)` and what each channel is of, u8: `cam`
//! and `classes`, or `scores` and `labels`.

use anyhow::{Context, ensure};
use half::f16;
use safetensors::tensor::{Dtype, SafeTensors, TensorView, serialize};

use crate::vision::{Cam, ScoreMap};

pub fn write_cam(cam: &Cam) -> anyhow::Result<Vec<u8>> {
    write(["cam", "classes"], &cam.classes, (cam.height, cam.width), &cam.data)
}

pub fn read_cam(bytes: &[u8]) -> anyhow::Result<Cam> {
    let (classes, (height, width), data) = read(["cam", "classes"], bytes).context("a CAM file")?;
    Ok(Cam { classes, height, width, data })
}

pub fn write_scores(scores: &ScoreMap) -> anyhow::Result<Vec<u8>> {
    write(["scores", "labels"], &scores.labels, (scores.height, scores.width), &scores.data)
}

pub fn read_scores(bytes: &[u8]) -> anyhow::Result<ScoreMap> {
    let (labels, (height, width), data) = read(["scores", "labels"], bytes).context("a file of scores")?;
    Ok(ScoreMap { labels, height, width, data })
}

fn write(
    [values, channels]: [&str; 2],
    of: &[u8],
    (height, width): (usize, usize),
    data: &[f32],
) -> anyhow::Result<Vec<u8>> {
    let bytes: Vec<u8> = data.iter().flat_map(|&score| f16::from_f32(score).to_le_bytes()).collect();
    let views = [
        (values, TensorView::new(Dtype::F16, vec![of.len(), height, width], &bytes)?),
        (channels, TensorView::new(Dtype::U8, vec![of.len()], of)?),
    ];
    Ok(serialize(views, None)?)
}

fn read([values, channels]: [&str; 2], bytes: &[u8]) -> anyhow::Result<(Vec<u8>, (usize, usize), Vec<f32>)> {
    let file = SafeTensors::deserialize(bytes).context("not a whole file")?;
    let (values, channels) = (file.tensor(values)?, file.tensor(channels)?);
    let &[n, height, width] = values.shape() else { anyhow::bail!("of shape {:?}", values.shape()) };
    ensure!(values.dtype() == Dtype::F16 && channels.shape() == [n], "of another format");
    let data = values.data().chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect();
    Ok((channels.data().to_vec(), (height, width), data))
}
