//! `segment` on pictures as people have them: folders, files of other kinds, equal names, tiny pictures.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use s2c_pipe::data::image::{decode_se_map, encode_rgb};
use s2c_pipe::vision::Rgb;

use crate::program::{call, text};

fn picture(height: usize, width: usize) -> Vec<u8> {
    let pixel = |i: usize| if (i / width + i % width) % 64 < 32 { [200, 60, 30] } else { [20, 40, 90] };
    encode_rgb(&Rgb { height, width, data: (0..height * width).flat_map(pixel).collect() })
}

fn segment(folder: &Path, args: &[&str]) -> (Option<i32>, String) {
    let weights = concat!(env!("CARGO_MANIFEST_DIR"), "/pipelines/weights/mobile_sam.f16.safetensors");
    let options = ["segment", "--weights", weights, "--points-per-side", "2"];
    let output = call(folder, &[&options[..], args].concat());
    (output.status.code(), text(&output))
}

fn names(folder: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(folder).into_iter().flatten();
    entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect()
}

#[test]
fn one_bad_picture_ends_no_batch_and_results_have_names_of_their_own() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    };
    let good = picture(40, 50);
    write("photos/1.PNG", &good);
    write("photos/img.v1.0.png", &picture(1, 1));
    write("photos/2.jpg", b"RIFF\x74\x02\0\0WEBPVP8 ");
    write("photos/3.bmp", b"BM\x36\x5a\0\0\0\0\0\0\x36\0\0\0");
    write("photos/4.png", &good[..good.len() / 2]);
    write("photos/5.jpeg", b"<html>404</html>");
    write("photos/._1.PNG", b"\0\x05\x16\x07\0\x02\0\0Mac OS X");
    write("photos/readme.txt", b"notes");
    write("photos/more/9.png", &good);
    write("other/1.png", &good);
    let (code, said) = segment(dir.path(), &["photos", "other/1.png", "./other/1.png", "gone.png", "--to", "out"]);
    assert_eq!(code, Some(1), "{said}");
    for line in [
        "note: `photos`: taken 3, skipped 3 that are no picture, and folders are not looked into: ._1.PNG, more/, readme.txt",
        "error: 5 of 8 pictures failed; the others are done:\n",
        "  `photos/2.jpg` is a WebP picture; JPEG and PNG are read\n",
        "  `photos/3.bmp` is a BMP picture; JPEG and PNG are read\n",
        "  `photos/4.png` ",
        "  `photos/5.jpeg` is a web page, no picture\n",
        "  `gone.png` could not be read: No such file",
        "hint: ",
    ] {
        assert!(said.contains(line), "{line}: {said}");
    }
    let results: BTreeSet<String> = ["photos_1", "img.v1.0", "other_1"]
        .iter()
        .flat_map(|name| [".png", "_segments.png", ".json"].map(|ending| format!("{name}{ending}")))
        .collect();
    let mut found = names(&dir.path().join("out"));
    assert!(found.remove(".s2c-pipe"), "the record of what was made");
    assert_eq!(found, results, "{said}");

    // A picture of one pixel has one mask, and a record has what the public generator's has, in its order.
    let list = fs::read_to_string(dir.path().join("out/img.v1.0.json")).unwrap();
    let masks: Vec<serde_json::Value> = serde_json::from_str(&list).unwrap();
    assert_eq!(masks.len(), 1, "{list}");
    assert_eq!(masks[0]["bbox"], serde_json::json!([0, 0, 0, 0]));
    assert_eq!(masks[0]["crop_box"], serde_json::json!([0, 0, 1, 1]));
    let point = masks[0]["point_coords"][0].as_array().unwrap();
    assert!(point.iter().all(|x| [0.25, 0.75].contains(&x.as_f64().unwrap())), "{list}");
    let fields = ["segmentation", "area", "bbox", "predicted_iou", "point_coords", "stability_score", "crop_box"];
    let places: Vec<usize> = fields.iter().map(|field| list.find(&format!("\"{field}\":")).unwrap()).collect();
    assert!(places.is_sorted(), "{list}");
}

/// Two calls: the results of one picture do not take the place of those of another.
#[test]
fn results_of_another_picture_of_that_name_stay() {
    let dir = tempfile::tempdir().unwrap();
    for folder in ["a", "b"] {
        fs::create_dir(dir.path().join(folder)).unwrap();
        fs::write(dir.path().join(folder).join("1.png"), picture(8, if folder == "a" { 8 } else { 9 })).unwrap();
    }
    let of_a = || fs::read(dir.path().join("out/1.png")).unwrap();
    assert_eq!(segment(dir.path(), &["a/1.png", "--to", "out"]).0, Some(0));
    let before = of_a();
    assert_eq!(segment(dir.path(), &["a/../a/1.png", "--to", "out"]).0, Some(0));
    let (code, said) = segment(dir.path(), &["b/1.png", "--to", "out"]);
    assert_eq!(code, Some(1), "{said}");
    assert!(
        said.contains("error: `out/1.png` is there already, and it is made from `") && said.contains("/a/1.png`"),
        "{said}"
    );
    assert!(said.contains("; so are 2 more\nhint: "), "{said}");
    assert!(of_a() == before);
    assert_eq!(segment(dir.path(), &["b/1.png", "--to", "out", "--force"]).0, Some(0));
    assert!(of_a() != before);
}

/// Nothing is worked on, and nothing is written.
#[test]
fn what_would_write_over_pictures_is_refused_before_any_work() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("photos")).unwrap();
    for name in ["photos/a.png", "b.jpg", "b.png", "d.json", "d.png"] {
        fs::write(dir.path().join(name), picture(8, 8)).unwrap();
    }
    fs::write(dir.path().join("c.webp"), b"RIFF\x74\x02\0\0WEBPVP8 ").unwrap();
    let before = crate::program::walk(dir.path());
    for (args, error, hint) in [
        (&["photos", "--to", "photos"][..], "would be read as pictures the next time", "give another folder: --to DIR"),
        (&["b.png", "--to", "."], "`./b.png` would be overwritten by a result", "give another folder, --to DIR"),
        (
            &["b.jpg", "--to", "."],
            "`./b.png` is there already, and s2c-pipe did not make it",
            "give another folder, --to DIR",
        ),
        (&["c.webp"], "`c.webp` is a WebP picture; JPEG and PNG are read", "save such a picture as JPEG or PNG"),
        (&["none"], "`none` could not be read: No such file", "give JPEG or PNG pictures, or folders of them"),
        (&["/dev/zero"], "`/dev/zero` could not be read: it is a device, not a file", "give JPEG or PNG"),
    ] {
        let (code, said) = segment(dir.path(), args);
        assert_eq!(code, Some(1), "{args:?}: {said}");
        let line = |start: &str| said.lines().find(|line| line.starts_with(start)).unwrap_or_default().to_owned();
        assert!(line("error: ").contains(error) && line("hint: ").contains(hint), "{args:?}: {said}");
        assert_eq!(crate::program::walk(dir.path()), before, "{args:?}");
    }
}

/// A PNG with EXIF's orientation 6: turned a quarter to the right to be seen.
fn turned(height: usize, width: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, width as u32, height as u32);
    encoder.set_color(png::ColorType::Rgb);
    let mut writer = encoder.write_header().unwrap();
    // A TIFF header, one field: tag 0x0112, of one u16, 6.
    let exif = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0";
    writer.write_chunk(png::chunk::ChunkType(*b"eXIf"), exif).unwrap();
    writer.write_image_data(&vec![90; height * width * 3]).unwrap();
    drop(writer);
    bytes
}

#[test]
fn a_picture_is_segmented_as_viewers_show_it() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("phone.png"), turned(30, 50)).unwrap();
    let (code, said) = segment(dir.path(), &["phone.png", "--to", "out"]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("note: 1 picture was turned upright, as the EXIF orientation says"), "{said}");
    let map = decode_se_map(&fs::read(dir.path().join("out/phone.png")).unwrap()).unwrap();
    assert_eq!((map.height, map.width), (50, 30));
}
