//! COCO's masks against pycocotools (tests/golden/coco/make.py), bit for bit.

use std::fs;
use std::path::Path;

use s2c_pipe::data::coco::{paint_mask, scan};
use s2c_pipe::data::image::encode_rgb;
use s2c_pipe::data::mask_file::MaskValues;
use s2c_pipe::data::orient::OrientationPolicy;
use s2c_pipe::data::scan::{LabelSource, ScanOptions};
use s2c_pipe::data::{FileMemo, Mask};
use s2c_pipe::digest::BlobDigest;
use s2c_pipe::vision::{IGNORE, Rgb};
use safetensors::SafeTensors;

struct NoMemo;
impl FileMemo for NoMemo {
    fn digest(&self, path: &Path) -> anyhow::Result<BlobDigest> {
        Ok(BlobDigest::of(&fs::read(path)?))
    }
    fn fact(&self, _: &str, _: &BlobDigest) -> Option<Vec<u8>> {
        None
    }
    fn remember(&self, _: &str, _: &BlobDigest, _: &[u8]) {}
}

#[test]
fn masks_are_those_of_pycocotools() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/coco");
    let golden = fs::read(folder.join("golden.safetensors")).unwrap();
    let golden = SafeTensors::deserialize(&golden).unwrap();
    let dir = tempfile::tempdir().unwrap();
    for folder in ["annotations", "images/all"] {
        fs::create_dir_all(dir.path().join(folder)).unwrap();
    }
    fs::copy(folder.join("instances.json"), dir.path().join("annotations/instances_all.json")).unwrap();
    for name in golden.names() {
        let [height, width] = *golden.tensor(name).unwrap().shape() else { panic!("{name} is no map") };
        let image = Rgb { height, width, data: vec![0; height * width * 3] };
        fs::write(dir.path().join(format!("images/all/{name}.png")), encode_rgb(&image)).unwrap();
    }
    let (root, labels, exclude) = (dir.path(), LabelSource::Auto, &[][..]);
    let (train, val) = ("all", "all");
    let (orientation, mask_values) = (OrientationPolicy::Auto, &MaskValues::default());
    let (name, masks, max_train, max_val) = ("", None, 0, 0);
    let options =
        ScanOptions { name, root, masks, labels, orientation, mask_values, train, val, max_train, max_val, exclude };
    let dataset = scan(&options, &NoMemo, dir.path()).unwrap();
    assert_eq!(dataset.classes, ["background", "person", "dog", "toothbrush"]);
    assert_eq!(dataset.train.len(), golden.len());
    let mut seen = [0; 256];
    for item in &dataset.train {
        let Some(Mask::Outlines { bytes, .. }) = &item.mask else { panic!("no outlines") };
        let mask = paint_mask(bytes).unwrap();
        let expected = golden.tensor(&item.id).unwrap();
        assert_eq!([mask.height, mask.width], *expected.shape(), "{}", item.id);
        assert_eq!(mask.data, expected.data(), "{}", item.id);
        mask.data.iter().for_each(|&label| seen[usize::from(label)] += 1);
    }
    // Every kind is there.
    assert!([0, 1, 2, 3, usize::from(IGNORE)].iter().all(|&label| seen[label] > 200), "{:?}", &seen[..4]);
}
