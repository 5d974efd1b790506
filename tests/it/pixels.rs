//! Pixels from the user's file on, against Pillow and torchvision: the digests of tests/golden/pixels/make.py.

use std::path::{Path, PathBuf};

use s2c_pipe::data::augment::{Jitter, Transform};
use s2c_pipe::data::image::{Filter, Orientation, TURNED, decode_rgb, resize_rgb};
use s2c_pipe::data::mask_file::MaskValues;
use s2c_pipe::data::orient::OrientationPolicy;
use s2c_pipe::data::scan::{LabelSource, ScanOptions};
use s2c_pipe::data::{folder as layout, read_as};
use s2c_pipe::vision::Rgb;
use serde::Deserialize;

use crate::fuzz::NoMemo;

#[derive(Deserialize)]
struct Golden {
    decoded: Vec<File>,
    turned: Vec<File>,
    resized: Vec<Resized>,
    crops: Vec<Crop>,
}

#[derive(Deserialize)]
struct File {
    file: String,
    height: usize,
    width: usize,
    rgb: String,
}

#[derive(Deserialize)]
struct Resized {
    /// Height and width of the upper left part of `source.png`.
    part: (usize, usize),
    to: (usize, usize),
    bilinear: String,
    bicubic: String,
}

#[derive(Deserialize)]
struct Crop {
    resized: (usize, usize),
    flip: bool,
    crop: usize,
    offset: (i64, i64),
    steps: Vec<(u8, f32)>,
    grey: bool,
    rgb: String,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/pixels")
}

fn golden() -> Golden {
    serde_json::from_slice(&std::fs::read(folder().join("golden.json")).unwrap()).unwrap()
}

fn bytes_of(name: &str) -> Vec<u8> {
    std::fs::read(folder().join("files").join(name)).unwrap()
}

/// FNV-1a of 64 bits.
fn digest(values: &[u8]) -> String {
    let step = |number: u64, &byte: &u8| (number ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    format!("{:016x}", values.iter().fold(0xcbf2_9ce4_8422_2325, step))
}

fn assert_is(expected: &File, image: &Rgb) {
    let File { file, height, width, rgb } = expected;
    assert_eq!((image.height, image.width), (*height, *width), "{file}");
    assert_eq!(digest(&image.data), *rgb, "{file}");
}

#[test]
fn files_are_decoded_as_by_pillow() {
    let golden = golden();
    assert!(golden.decoded.len() >= 25);
    for expected in &golden.decoded {
        assert_is(expected, &decode_rgb(&bytes_of(&expected.file)).unwrap());
    }
}

#[test]
fn orientation_is_applied_where_it_is_asked_for() {
    for expected in &golden().turned {
        let bytes = bytes_of(&expected.file);
        let stored = decode_rgb(&bytes).unwrap();
        assert_eq!((stored.height, stored.width), (11, 19), "{}", expected.file);
        assert_is(expected, &decode_rgb(&[TURNED, &bytes].concat()).unwrap());
        let orientation = Orientation::of(&bytes);
        assert_eq!(orientation.is_upright(), expected.file == "turned_1.jpg");
        assert_eq!(orientation.swaps_sides(), expected.height == 19, "{}", expected.file);
    }
}

/// Both ways of reading it: where no size tells, a picture is turned, and `orientation` decides otherwise.
#[test]
fn a_turned_image_of_a_data_set_is_the_picture_that_pillow_turns() {
    let root = tempfile::tempdir().unwrap();
    std::fs::create_dir(root.path().join("images")).unwrap();
    for (name, file) in [("a", "turned_6.jpg"), ("b", "turned_3.jpg")] {
        std::fs::write(root.path().join(format!("images/{name}.jpg")), bytes_of(file)).unwrap();
    }
    std::fs::write(root.path().join("labels.csv"), "image,split,cat\na.jpg,train,1\nb.jpg,val,1\n").unwrap();
    for (orientation, is_turned) in [(OrientationPolicy::Auto, true), (OrientationPolicy::Stored, false)] {
        let options = ScanOptions {
            name: "t",
            root: root.path(),
            masks: None,
            labels: LabelSource::Auto,
            orientation,
            mask_values: &MaskValues::default(),
            train: "train",
            val: "val",
            max_train: 0,
            max_val: 0,
            exclude: &[],
        };
        let data = layout::scan(&options, &NoMemo).unwrap();
        for (item, file) in [(&data.train[0], "turned_6.jpg"), (&data.val[0], "turned_3.jpg")] {
            let bytes = read_as(&item.image.path, &item.image.digest).unwrap().unwrap();
            let image = decode_rgb(&bytes).unwrap();
            assert_eq!((item.height, item.width), (image.height, image.width), "{file}");
            if is_turned {
                assert_is(golden().turned.iter().find(|expected| expected.file == file).unwrap(), &image);
            } else {
                assert_eq!(image.data, decode_rgb(&bytes_of(file)).unwrap().data, "{file}");
            }
        }
    }
}

#[test]
fn resizing_is_pillows() {
    let source = decode_rgb(&bytes_of("source.png")).unwrap();
    let golden = golden();
    assert_eq!(golden.resized.len(), 200);
    for Resized { part, to, bilinear, bicubic } in golden.resized {
        let image = source.part((0, 0), part.0, part.1);
        for (filter, expected) in [(Filter::Bilinear, bilinear), (Filter::Bicubic, bicubic)] {
            let resized = resize_rgb(&image, to.0, to.1, filter);
            assert_eq!(digest(&resized.data), expected, "{part:?} to {to:?}, {filter:?}");
        }
    }
}

#[test]
fn a_training_crop_is_that_of_torchvision() {
    let source = decode_rgb(&bytes_of("source.png")).unwrap();
    for Crop { resized, flip, crop, offset, steps, grey, rgb } in golden().crops {
        let transform = Transform { image: (source.height, source.width), resized, flip, crop, offset };
        let window = transform.window(&source, Some(&Jitter { steps, grey }));
        let values: Vec<u8> = window.into_iter().flatten().flatten().collect();
        assert_eq!(digest(&values), rgb, "{transform:?}");
    }
}

#[test]
fn what_cannot_be_read_is_told() {
    let whole = bytes_of("420.jpg");
    let progressive = bytes_of("420_progressive.jpg");
    let png = bytes_of("rgb.png");
    let cut_and_closed = |bytes: &[u8]| [&bytes[..bytes.len() / 2], &[0xff, 0xd9]].concat();
    // A width and a height of 60,000 in the frame header.
    let frame = whole.windows(2).position(|two| two == [0xff, 0xc0]).unwrap();
    let mut large = whole.clone();
    large[frame + 5..frame + 9].copy_from_slice(&[0xea, 0x60, 0xea, 0x60]);
    let mut plausible = whole.clone();
    plausible[frame + 5..frame + 9].copy_from_slice(&[0x34, 0x00, 0x34, 0x00]);
    for (bytes, expected) in [
        (whole[..whole.len() - 2].to_vec(), "cut off"),
        (whole[..whole.len() / 2].to_vec(), "cut off"),
        (progressive[..progressive.len() / 2].to_vec(), "cut off"),
        (cut_and_closed(&whole), "cut off"),
        (large, "declares 60000x60000 pixels; at most 178956970 are read"),
        (plausible, "it is cut off: it declares 13312x13312 pixels and has"),
        (whole[..20].to_vec(), "not a JPEG that can be read"),
        (png[..png.len() / 2].to_vec(), "not a whole PNG image"),
        (Vec::new(), "it is an empty file, not a JPEG or PNG image"),
        (b"BM\0\0\0\0\0\0\0\0".to_vec(), "it is a BMP picture; images are read as JPEG or PNG"),
        (b"RIFF....WEBPVP8 ".to_vec(), "it is a WebP picture"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic".to_vec(), "it is a HEIC picture"),
        (b"hello".to_vec(), "it is text, not a JPEG or PNG image"),
    ] {
        let message = format!("{:#}", decode_rgb(&bytes).unwrap_err());
        assert!(message.contains(expected), "{message}");
    }
}
