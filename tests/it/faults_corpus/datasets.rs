//! Data sets as people have them: masks, lists, tables and annotations in other forms. Each case is a small data set with
//! one thing changed, what `plan` says of it, and whether it is read; its files stay as they are.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use s2c_pipe::data::image::{encode_label_map, encode_rgb, voc_palette};
use s2c_pipe::vision::{Grid, Rgb};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::cache::pipe;
use crate::program::{call, succeeds, text, walk, write_pipeline};

/// Sides of a picture.
const HEIGHT: usize = 12;
const WIDTH: usize = 16;

/// A data set of one kind with two training images of different classes, `a` and `b`, and `c` to validate.
struct Kind {
    name: &'static str,
    write: fn(&Path),
}

const VOC: Kind = Kind { name: "voc", write: voc };
const COCO: Kind = Kind { name: "coco", write: coco };
const FOLDER: Kind = Kind { name: "folder", write: folder };

const IDS: [&str; 3] = ["a", "b", "c"];

fn put(path: &Path, bytes: impl AsRef<[u8]>) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

fn picture(i: usize) -> Rgb {
    Rgb { height: HEIGHT, width: WIDTH, data: (0..HEIGHT * WIDTH * 3).map(|p| (p * (i + 3) % 251) as u8).collect() }
}

/// An object of a label on background.
fn labels(label: u8) -> Grid<u8> {
    let mut labels = Grid::filled(HEIGHT, WIDTH, 0);
    (0..HEIGHT / 2).for_each(|y| labels.data[y * WIDTH + 2..y * WIDTH + 9].fill(label));
    labels
}

/// A PNG of rows that are packed already.
fn png(color: png::ColorType, depth: png::BitDepth, palette: Option<Vec<u8>>, data: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, WIDTH as u32, HEIGHT as u32);
    encoder.set_color(color);
    encoder.set_depth(depth);
    if let Some(palette) = palette {
        encoder.set_palette(palette);
    }
    encoder.write_header().unwrap().write_image_data(data).unwrap();
    bytes
}

fn grey(labels: &Grid<u8>) -> Vec<u8> {
    png(png::ColorType::Grayscale, png::BitDepth::Eight, None, &labels.data)
}

fn grey_16(labels: &Grid<u8>) -> Vec<u8> {
    let data: Vec<u8> = labels.data.iter().flat_map(|&label| [0, label]).collect();
    png(png::ColorType::Grayscale, png::BitDepth::Sixteen, None, &data)
}

fn one_bit(labels: &Grid<u8>) -> Vec<u8> {
    let bits = |eight: &[u8]| eight.iter().fold(0, |bits, label| bits << 1 | u8::from(*label > 0));
    let data: Vec<u8> = labels.data.chunks(8).map(bits).collect();
    png(png::ColorType::Grayscale, png::BitDepth::One, None, &data)
}

/// A picture in the colours of a palette.
fn coloured(labels: &Grid<u8>, palette: &[u8]) -> Vec<u8> {
    let colour = |label: &u8| palette[usize::from(*label) * 3..][..3].to_vec();
    encode_rgb(&Rgb { height: HEIGHT, width: WIDTH, data: labels.data.iter().flat_map(colour).collect() })
}

/// A palette of black and grey, for an object of any class.
fn two_greys(labels: &Grid<u8>) -> Vec<u8> {
    let data: Vec<u8> = labels.data.iter().map(|label| u8::from(*label > 0)).collect();
    png(png::ColorType::Indexed, png::BitDepth::Eight, Some(vec![0, 0, 0, 128, 128, 128]), &data)
}

/// Annotations of VOC that name one object.
fn objects(root: &Path, id: &str, name: &str) {
    let object = format!("<object><name>{name}</name></object>");
    put(&root.join(format!("Annotations/{id}.xml")), format!("<annotation>{object}</annotation>"));
}

/// VOC's colours as OpenCV and Pillow turn them to grey.
fn greyed(labels: &Grid<u8>) -> Vec<u8> {
    let grey_of = |label: &u8| match label {
        8 => 19,
        15 => 147,
        _ => 0,
    };
    grey(&Grid::new(HEIGHT, WIDTH, labels.data.iter().map(grey_of).collect()))
}

/// The lowest row ignored.
fn bordered(labels: &Grid<u8>) -> Grid<u8> {
    let mut labels = labels.clone();
    labels.data[(HEIGHT - 1) * WIDTH..].fill(255);
    labels
}

/// VOC's colours with white where pixels are ignored.
fn white_border(labels: &Grid<u8>) -> Vec<u8> {
    let mut palette = voc_palette();
    palette[255 * 3..].fill(255);
    coloured(&bordered(labels), &palette)
}

/// A palette picture whose palette has only the colours that are there, in another order than VOC's: `quantize` and
/// programs that save small files do so.
fn requantized(labels: &Grid<u8>, palette: &[u8]) -> Vec<u8> {
    let object = labels.data.iter().copied().find(|label| *label > 0).unwrap();
    let colours = [object, 0].iter().flat_map(|label| palette[usize::from(*label) * 3..][..3].to_vec()).collect();
    let data: Vec<u8> = labels.data.iter().map(|label| u8::from(*label == 0)).collect();
    png(png::ColorType::Indexed, png::BitDepth::Eight, Some(colours), &data)
}

/// Where the masks of a kind lie, and its two classes.
fn masks_of(root: &Path) -> (PathBuf, [u8; 2]) {
    match root.join("masks").is_dir() {
        true => (root.join("masks"), [1, 2]),
        false => (root.join("SegmentationClass"), [8, 15]),
    }
}

fn label_of(i: usize, classes: [u8; 2]) -> u8 {
    classes[i % 2]
}

/// Writes every mask anew.
fn masks(root: &Path, encode: impl Fn(&Grid<u8>) -> Vec<u8>) {
    let (folder, classes) = masks_of(root);
    for (i, id) in IDS.iter().enumerate() {
        put(&folder.join(format!("{id}.png")), encode(&labels(label_of(i, classes))));
    }
}

/// Gives every label another number.
fn numbers(root: &Path, number: impl Fn(u8) -> u8) {
    masks(root, |labels| grey(&Grid::new(HEIGHT, WIDTH, labels.data.iter().map(|label| number(*label)).collect())));
}

fn rename(root: &Path, from: &str, to: &str) {
    fs::rename(root.join(from), root.join(to)).unwrap();
}

fn edit(path: &Path, change: impl Fn(String) -> String) {
    let text = fs::read_to_string(path).unwrap();
    fs::write(path, change(text)).unwrap();
}

fn voc(root: &Path) {
    for (i, id) in IDS.iter().enumerate() {
        put(&root.join(format!("JPEGImages/{id}.png")), encode_rgb(&picture(i)));
        put(&root.join(format!("SegmentationClass/{id}.png")), encode_label_map(&labels(label_of(i, [8, 15]))));
    }
    put(&root.join("ImageSets/Segmentation/train.txt"), "a\nb\n");
    put(&root.join("ImageSets/Segmentation/val.txt"), "c\n");
}

fn folder(root: &Path) {
    for (i, id) in IDS.iter().enumerate() {
        put(&root.join(format!("images/{id}.png")), encode_rgb(&picture(i)));
        put(&root.join(format!("masks/{id}.png")), encode_label_map(&labels(label_of(i, [1, 2]))));
    }
    put(&root.join("labels.csv"), TABLE);
}

const TABLE: &str = "image,split,disc,square\na.png,train,1,0\nb.png,train,0,1\nc.png,val,1,0\n";

fn coco(root: &Path) {
    for (list, ids) in [("train", &[0, 1][..]), ("val", &[2])] {
        for &i in ids {
            put(&root.join(format!("{list}/{}.png", IDS[i])), encode_rgb(&picture(i)));
        }
        put(&root.join(format!("annotations/instances_{list}.json")), annotations(ids).to_string());
    }
}

fn annotations(ids: &[usize]) -> Value {
    let images = ids
        .iter()
        .map(|i| json!({"id": i + 1, "file_name": format!("{}.png", IDS[*i]), "height": HEIGHT, "width": WIDTH}));
    let objects = ids.iter().map(|i| {
        json!({"id": i + 1, "image_id": i + 1, "category_id": 1 + i % 2, "iscrowd": 0, "area": 42, "bbox": [2, 0, 7, 6],
               "segmentation": [[2, 0, 9, 0, 9, 6, 2, 6]]})
    });
    json!({"images": images.collect::<Vec<_>>(), "annotations": objects.collect::<Vec<_>>(),
           "categories": [{"id": 1, "name": "disc"}, {"id": 2, "name": "square"}]})
}

/// Changes both files of annotations.
fn json(root: &Path, change: impl Fn(&mut Value)) {
    json_text(root, |text| {
        let mut value = serde_json::from_str(&text).unwrap();
        change(&mut value);
        value.to_string().into_bytes()
    });
}

fn json_text(root: &Path, change: impl Fn(String) -> Vec<u8>) {
    for list in ["train", "val"] {
        let path = root.join(format!("annotations/instances_{list}.json"));
        let bytes = change(fs::read_to_string(&path).unwrap());
        fs::write(path, bytes).unwrap();
    }
}

/// Sets a field of all images, annotations or categories.
fn set(root: &Path, of: &str, field: &str, value: impl Fn(&Value) -> Value) {
    json(root, |all| {
        for object in all[of].as_array_mut().unwrap() {
            object[field] = value(&object[field]);
        }
    });
}

/// Every file of a folder.
fn contents(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    walk(root).into_iter().filter(|path| path.is_file()).map(|path| (path.clone(), fs::read(&path).unwrap())).collect()
}

/// A pipeline on a data set in `data`, which needs no mask.
fn prepare(kind: &Kind) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    (kind.write)(&dir.path().join("data"));
    write_pipeline(
        dir.path(),
        &format!(
            "precision = 'f32'\n[dataset]\nkind = '{}'\nroot = 'data'\n[sam]\nweights = 'WEIGHTS/mobile_sam.f16.safetensors'\n
             [se_map]\npoints_per_side = 2\n[pseudo_label]\nthreshold = 0.2\n
             [classifier]\nweights = 'WEIGHTS/resnet50_v1.f16.safetensors'\nepochs = 1\nbatch_size = 2\ncrop = 32\n
             resize_long = [16, 16]\n[seed]\nscales = [1.0]\nflip = false\n[segmentation]\nepochs = 1\nbatch_size = 2\n
             crop = 32\nweights = 'WEIGHTS/resnet50_v1.f16.safetensors'\ntest_flip = false\n",
            kind.name
        ),
    );
    dir
}

/// A change of a data set, and what is said.
struct Case {
    name: &'static str,
    change: Box<dyn Fn(&Path)>,
    sets: &'static [&'static str],
    is_read: bool,
    /// Each stands somewhere in what is said.
    said: &'static [&'static str],
}

/// Read as it is meant; `said`: what is told of it.
fn read(name: &'static str, change: impl Fn(&Path) + 'static, said: &'static [&'static str]) -> Case {
    Case { name, change: Box::new(change), sets: &[], is_read: true, said }
}

/// Refused, with a hint.
fn refused(name: &'static str, change: impl Fn(&Path) + 'static, said: &'static [&'static str]) -> Case {
    Case { name, change: Box::new(change), sets: &[], is_read: false, said }
}

fn with(sets: &'static [&'static str], case: Case) -> Case {
    Case { sets, ..case }
}

fn check(kind: &Kind, cases: Vec<Case>) {
    // What is learnt of weights is learnt once.
    let cache = tempfile::tempdir().unwrap();
    let fault = |case| fault(kind, cache.path(), case);
    let faults: Vec<String> =
        cases.iter().filter_map(|case| Some(format!("{}: {}", case.name, fault(case)?))).collect();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// What is not as a case says.
fn fault(kind: &Kind, cache: &Path, Case { change, sets, is_read, said, .. }: &Case) -> Option<String> {
    let dir = prepare(kind);
    let data = dir.path().join("data");
    change(&data);
    let before = contents(&data);
    let cache = cache.display().to_string();
    let mut args = vec!["--cache", &cache, "plan", "tiny.toml"];
    sets.iter().for_each(|set| args.extend(["--set", *set]));
    let output = call(dir.path(), &args);
    let all = text(&output).replace(&data.display().to_string(), "DATA");
    let is_explained = all.contains("error: ") && all.contains("hint: ");
    let missing = said.iter().find(|part| !all.contains(**part));
    let problem = match missing {
        Some(part) => format!("`{part}` is not said"),
        None if output.status.code() != Some(i32::from(!is_read)) => format!("it ends with {}", output.status),
        None if is_explained == *is_read => "an error has a hint, and nothing else is one".to_owned(),
        None if all.contains('\u{1b}') || all.contains("panicked") => "it is no text for a terminal".to_owned(),
        None if contents(&data) != before => "its files have changed".to_owned(),
        None => return None,
    };
    Some(format!("{problem}: {all}"))
}

/// What is said of masks by number, and of labels that fit them.
const BY_NUMBER: &str = "train 2 of 2, val 1 of 1 images; 3 read by number (0, 1, 2); 0 with background alone";
const BY_COLOUR: &str = "note: 3 of 3 masks are read by their colours, which are those of PASCAL VOC's palette";
const AGREE: &str = "labels.csv and mask agree in 3 of the 3 images that have both";

#[test]
fn masks_mean_what_their_colours_or_labels_tell_or_are_refused() {
    let other = |i: u8| [[0, 0, 0], [255, 0, 0], [0, 0, 255]][usize::from(i)];
    let own_palette = move || (0..3).flat_map(other).collect::<Vec<u8>>();
    #[rustfmt::skip]
    check(&VOC, vec![
        read("palette", |_| {}, &["3 read by number (0, 8, 15)", "2 of 20 are in train images: cat 1, person 1"]),
        read("grey", |root| masks(root, grey), &["3 read by number (0, 8, 15)"]),
        read("VOC's colours", |root| masks(root, |labels| coloured(labels, &voc_palette())), &["3 read by colour (#000000, #400000, #c08080)", "cat 1, person 1", BY_COLOUR]),
        read("VOC's colours in another order", |root| masks(root, |labels| requantized(labels, &voc_palette())), &["3 read by colour", "cat 1, person 1", BY_COLOUR]),
        refused("red and blue swapped", |root| masks(root, |labels| {
            let swapped: Vec<u8> = voc_palette().chunks(3).flat_map(|c| [c[2], c[1], c[0]]).collect();
            coloured(labels, &swapped)
        }), &["colour #000040 (42 pixels), no colours of PASCAL VOC's classes; with red and blue in each other's place", "hint: put red and blue of the masks in their places (OpenCV writes BGR)"]),
        refused("0 and 255", |root| numbers(root, |label| if label > 0 { 255 } else { 0 }), &["its mask has background (0) and ignored pixels (255) alone", "dataset.mask_values = { \"255\" = ", "one value cannot tell classes apart: save label maps, PNG with a number per class (1 for `aeroplane`, 2 for `bicycle`, ..)"]),
        refused("0 and 128", |root| numbers(root, |label| if label > 0 { 128 } else { 0 }), &["it has the number 128 (42 pixels); known are 0..=20 and 255", "dataset.mask_values = { \"128\" = "]),
        refused("VOC's colours as grey", |root| masks(root, greyed), &["DATA`: the masks have PASCAL VOC's colours turned to grey (19 is cat, 147 is person)", "{ \"19\" = \"cat\", \"147\" = \"person\" }"]),
        with(&["dataset.mask_values={ \"19\" = \"cat\", \"147\" = \"person\" }"], read("VOC's colours as grey, said", |root| masks(root, greyed), &["3 translated by number (0, 19, 147)", "cat 1, person 1"])),
        refused("VOC's colours as grey, told", |root| { masks(root, |_| greyed(&labels(8))); IDS.iter().for_each(|id| objects(root, id, "cat")) }, &["turned to grey (19 is cat)"]),
        read("numbers that are greys too", |root| { masks(root, |_| grey(&labels(19))); IDS.iter().for_each(|id| objects(root, id, "train")) }, &["3 read by number (0, 19)", "train 2"]),
        with(&["dataset.mask_values={ \"147\" = \"person\" }"], refused("colours turned to grey, of which one is said", |root| masks(root, greyed), &["the masks have PASCAL VOC's colours turned to grey"])),
        refused("a palette of black and grey", |root| masks(root, two_greys), &["its palette has black and #808080, so its objects are `aeroplane` by their number, `car` by PASCAL VOC's colours", "dataset.mask_values = \"numbers\"", "{ \"1\" = \"cat\" }"]),
        with(&["dataset.mask_values=colours"], read("a palette of black and grey, said", |root| masks(root, two_greys), &["3 read by colour (#000000, #808080)", "1 of 20 are in train images: car 2"])),
        read("a palette of black and grey, told", |root| { masks(root, two_greys); IDS.iter().for_each(|id| objects(root, id, "car")) }, &["3 read by colour (#000000, #808080)", "1 of 20 are in train images: car 2"]),
        refused("0 and 128 in RGB", |root| masks(root, |labels| coloured(labels, &[&[0; 3][..], &[128; 765]].concat())), &["it has the number 128 (42 pixels); known are 0..=20 and 255", "dataset.mask_values = { \"128\" = "]),
        refused("a white border", |root| masks(root, white_border), &["it has the colour #ffffff (16 pixels), no colours of PASCAL VOC's classes", "dataset.mask_values = { \"#ffffff\" = \"ignored\" }"]),
        with(&["dataset.mask_values={ \"#ffffff\" = \"ignored\" }"], read("a white border, said", |root| masks(root, white_border), &["3 read by colour (#000000, #400000, #c08080, #ffffff)", "cat 1, person 1"])),
        with(&["dataset.mask_values={ \"255\" = \"ignored\" }"], refused("a white border, said by number", |root| masks(root, white_border), &["it has the colour #ffffff (16 pixels), which `dataset.mask_values` does not name", "write `\"#ffffff\"` in place of `\"255\"`"])),
        refused("a border of 65535", |root| masks(root, |labels| {
            let data: Vec<u8> = bordered(labels).data.iter().flat_map(|&label| if label == 255 { [255; 2] } else { [0, label] }).collect();
            png(png::ColorType::Grayscale, png::BitDepth::Sixteen, None, &data)
        }), &["it has the number 65535 (16 pixels)", "dataset.mask_values = { \"65535\" = \"ignored\" }"]),
        refused("one bit", |root| masks(root, one_bit), &["it has 1 bit a pixel, which tells objects from background and not which of 20 classes they are"]),
        refused("classes from 0 on", |root| numbers(root, |label| label.wrapping_sub(1)), &["no mask has background (0), and 78 % of the pixels are 255; the other numbers are 7, 14", "write `dataset.mask_values = { \"255\" = \"background\", \"7\" = \"cat\", \"14\" = \"person\" }`"]),
        with(&["dataset.mask_values={ \"255\" = \"background\", \"7\" = \"cat\", \"14\" = \"person\" }"], read("classes from 0 on, said", |root| numbers(root, |label| label.wrapping_sub(1)), &["3 translated by number (7, 14, 255)", "cat 1, person 1"])),
        with(&["dataset.mask_values=numbers"], read("much that is ignored", |root| numbers(root, |label| label.wrapping_sub(1)), &["none of 3 masks has a pixel of background (0): where another number is background, say it, e.g. `dataset.mask_values = { \"7\" = \"background\" }`"])),
        read("0 and 1", |root| numbers(root, |label| u8::from(label > 0)), &["note: all 3 masks have the numbers of background and of `aeroplane` (1) alone: where 1 is an object of any class, say which"]),
        with(&["dataset.mask_values={ \"1\" = \"cat\" }"], read("one bit, said", |root| masks(root, one_bit), &["3 translated by number (0, 1)", "1 of 20 are in train images: cat 2"])),
        refused("palettes of each file's own", move |root| masks(root, |labels| requantized(labels, &[&[0, 0, 0].repeat(8)[..], &[255, 0, 0].repeat(7), &[0, 0, 255]].concat())), &["the palettes of masks differ: 0 is #ff0000 in the mask of a and #0000ff in that of b", "dataset.mask_values = \"numbers\""]),
        refused("a photograph", |root| put(&root.join("SegmentationClass/b.png"), encode_rgb(&picture(1))), &["no colours of PASCAL VOC's classes; so many are made by smoothing or JPEG", "hint: save label maps: PNG with the numbers of classes, from the masks as they were before smoothing, resizing or JPEG"]),
        refused("no PNG", |root| put(&root.join("SegmentationClass/b.png"), b"BM\x36\x5a\0\0\0\0\0\0\x36\0\0\0"), &["b.png`: it is a BMP picture; masks are read as PNG", "a mask is a PNG with the numbers of classes"]),
        refused("another size", |root| put(&root.join("SegmentationClass/b.png"), encode_label_map(&Grid::filled(HEIGHT, 8, 8))), &["b: the mask is 8x12, the image 16x12", "save each mask in the size of its image"]),
        with(&["dataset.masks=SegmentationObject"], refused("numbers of objects", |root| rename(root, "SegmentationClass", "SegmentationObject"), &["number the objects of an image, not classes"])),
    ]);
    #[rustfmt::skip]
    check(&FOLDER, vec![
        read("palette", |_| {}, &[BY_NUMBER, AGREE, "orientation all images are upright"]),
        read("16 bits", |root| masks(root, grey_16), &["3 translated by number (0, 1, 2)", AGREE]),
        read("grey in RGB", |root| masks(root, |labels| coloured(labels, &(0..=255).flat_map(|v| [v; 3]).collect::<Vec<u8>>())), &["3 translated by number (0, 1, 2)", AGREE]),
        read("a palette of its own", move |root| masks(root, |labels| png(png::ColorType::Indexed, png::BitDepth::Eight, Some(own_palette()), &labels.data)), &[BY_NUMBER, AGREE]),
        read("VOC's colours in another order", |root| masks(root, |labels| requantized(labels, &voc_palette())), &["3 read by colour (#000000, #008000, #800000)", AGREE, BY_COLOUR]),
        refused("colours of its own", move |root| masks(root, |labels| coloured(labels, &own_palette())), &["it has the colour #ff0000 (42 pixels)", "dataset.mask_values = { \"#ff0000\" = \"disc\" }"]),
        with(&["dataset.mask_values={ \"#ff0000\" = \"disc\", \"#0000ff\" = \"square\" }"], read("colours of its own, said", move |root| masks(root, |labels| coloured(labels, &own_palette())), &["3 read by colour (#000000, #0000ff, #ff0000)", AGREE])),
        refused("the classes swapped", |root| numbers(root, |label| if label > 0 { 3 - label } else { 0 }), &["the masks have other classes than labels.csv in all 2 train images that have both, e.g. a: disc in labels.csv, square in its mask"]),
        refused("background alone", |root| numbers(root, |_| 0), &["the masks of all 2 train images are empty: each is background (0) alone, without an object, though labels.csv names classes for 2, e.g. a: disc", "hint: put the masks there that have the objects"]),
        refused("0 and 255", |root| numbers(root, |label| if label > 0 { 255 } else { 0 }), &["e.g. a: disc in labels.csv, nothing in its mask (the masks have the numbers 0, 255)", "hint: all objects are 255; one value cannot tell classes apart: save label maps, PNG with a number per class (1 for `disc`, 2 for `square`), or mend labels.csv"]),
        refused("one bit", |root| masks(root, one_bit), &["all objects are 1, and the labels say several classes", "hint: one value cannot tell classes apart"]),
        with(&["dataset.mask_values={ \"255\" = \"disc\" }"], refused("0 and 255, said to be one class", |root| numbers(root, |label| if label > 0 { 255 } else { 0 }), &["`dataset.mask_values` says that 255 is `disc`, but of 1 images with masks that labels.csv does not name `disc` for, 1 have it, and nothing that labels.csv names, e.g. b: square in labels.csv", "hint: one value cannot tell classes apart"])),
        with(&["dataset.mask_values={ \"255\" = \"disc\" }"], read("0 and 255 of one class, said", |root| { numbers(root, |label| if label > 0 { 255 } else { 0 }); edit(&root.join("labels.csv"), |text| text.replace("0,1", "1,0")) }, &["3 translated by number (0, 255)", AGREE])),
        refused("one more each", |root| numbers(root, |label| label + 1), &["b: the mask `DATA/masks/b.png`: it has the number 3", "{ \"3\" = \"square\" }"]),
        read("a class that no mask has", |root| numbers(root, |label| label % 2), &["no mask of a train image has square, which labels.csv has in 1 of these images: it is scored nowhere", "1 of 2 masks of train images have background alone"]),
        read("a black palette", |root| masks(root, |labels| png(png::ColorType::Indexed, png::BitDepth::Eight, Some(vec![0; 768]), &[labels.data.iter().copied().max().unwrap(); HEIGHT * WIDTH])), &["3 read by number (1, 2)", AGREE]),
        read("no background", |root| { numbers(root, |label| label.max(1)); edit(&root.join("labels.csv"), |text| text.replace("0,1", "1,1")) }, &["none of 3 masks has a pixel of background (0)"]),
    ]);
}

#[test]
fn files_are_found_under_the_names_people_give_them() {
    let masks_as = |form: &'static str| {
        move |root: &Path| {
            IDS.iter()
                .for_each(|id| rename(root, &format!("masks/{id}.png"), &format!("masks/{}", form.replace("ID", id))))
        }
    };
    #[rustfmt::skip]
    check(&FOLDER, vec![
        read("ID.PNG", masks_as("ID.PNG"), &[BY_NUMBER]),
        read("ID_mask.png", masks_as("ID_mask.png"), &[BY_NUMBER]),
        refused("ID.jpg", |root| { IDS.iter().for_each(|id| { fs::remove_file(root.join(format!("masks/{id}.png"))).unwrap(); put(&root.join(format!("masks/{id}.jpg")), [0xff, 0xd8, 0xff, 0xe0]) }) }, &["it is a JPEG image, whose compression changes the numbers of classes; save masks as PNG"]),
        read("other names", masks_as("x_ID_y.png"), &["note: in masks/ 3 files are the mask of no image that is used: x_a_y.png, x_b_y.png, x_c_y.png"]),
        read("in a folder below", |root| IDS.iter().for_each(|id| { fs::create_dir_all(root.join("masks/sub")).unwrap(); rename(root, &format!("masks/{id}.png"), &format!("masks/sub/{id}.png")) }), &["note: the folder `masks` has no picture, and its folders are not looked into: sub"]),
        read("in another folder", |root| rename(root, "masks", "gt"), &["note: there is no folder `masks`; the other folders are gt: `dataset.masks = \"gt\"` reads masks from there"]),
        read("capitals", |root| { rename(root, "images", "Images"); rename(root, "masks", "Masks"); rename(root, "labels.csv", "Labels.CSV") }, &[BY_NUMBER, "note: the folder `Images` is read as `images`"]),
        refused("two masks", |root| { rename(root, "masks/a.png", "masks/a_mask.png"); put(&root.join("masks/a_gt.png"), encode_label_map(&labels(1))) }, &["a: masks: `a_gt.png` and `a_mask.png` could each be it"]),
        refused("images in a folder below", |root| { fs::create_dir(root.join("images/train")).unwrap(); rename(root, "images/a.png", "images/train/a.png") }, &["a: no image `DATA/images/a.jpg`, but `train/a.png`"]),
        refused("a name that is alike", |root| rename(root, "images/a.png", "images/A-0.png"), &["a: no image `DATA/images/a.jpg`, but `A-0.png`"]),
        refused("a link to nothing", |root| { fs::remove_file(root.join("images/a.png")).unwrap(); std::os::unix::fs::symlink("gone", root.join("images/a.png")).unwrap() }, &["and `a.png` is a link to a file that is not there"]),
        read("files of file managers", |root| ["images/.DS_Store", "images/Thumbs.db", "images/._a.png", "masks/._a.png", "masks/.DS_Store"].iter().for_each(|name| put(&root.join(name), b"x")), &[BY_NUMBER]),
    ]);
    let images_as = |ending: &'static str| {
        move |root: &Path| {
            IDS.iter()
                .for_each(|id| rename(root, &format!("JPEGImages/{id}.png"), &format!("JPEGImages/{id}.{ending}")))
        }
    };
    #[rustfmt::skip]
    check(&VOC, vec![
        read(".JPG", images_as("JPG"), &["3 read by number"]),
        read(".jpeg", images_as("jpeg"), &["3 read by number"]),
        read(".PNG", images_as("PNG"), &["3 read by number"]),
        refused(".bmp", images_as("bmp.txt"), &["a: no image `DATA/JPEGImages/a.jpg`"]),
        refused("a.jpg and a.png", |root| put(&root.join("JPEGImages/a.jpg"), encode_rgb(&picture(0))), &["a: `a.jpg` and `a.png` could each be it"]),
        read("JpegImages", |root| rename(root, "JPEGImages", "JpegImages"), &["note: the folder `JpegImages` is read as `JPEGImages`"]),
        refused("VOCdevkit", |root| { rename(root, "", "../VOC2012"); fs::create_dir(root).unwrap(); rename(root, "../VOC2012", "VOC2012") }, &["it has no `JPEGImages`, but its folder `VOC2012` has", "set `dataset.root` to DATA/VOC2012"]),
        refused("the archive of VOC", |root| { rename(root, "", "../VOC2012"); fs::create_dir_all(root.join("VOCdevkit")).unwrap(); rename(root, "../VOC2012", "VOCdevkit/VOC2012") }, &["and it has VOCdevkit", "hint: set `dataset.root` to DATA/VOCdevkit/VOC2012, which holds `JPEGImages`"]),
        read("accents as macOS writes them", |root| { rename(root, "JPEGImages/a.png", "JPEGImages/cafe\u{301}.png"); rename(root, "SegmentationClass/a.png", "SegmentationClass/cafe\u{301}.png"); edit(&root.join("ImageSets/Segmentation/train.txt"), |text| text.replace('a', "caf\u{e9}")) }, &["3 read by number"]),
        refused("a letter that looks like another", |root| edit(&root.join("ImageSets/Segmentation/train.txt"), |text| text.replace('a', "\u{430}")), &["no image `DATA/JPEGImages/\u{430}.jpg`", "mend or remove their lines in what lists them"]),
        refused("images elsewhere", |root| rename(root, "JPEGImages", "imgs"), &["images are looked for in its folder `JPEGImages`, and it has ImageSets, SegmentationClass, imgs"]),
    ]);
}

#[test]
fn lists_are_read_as_windows_sbd_and_editors_write_them() {
    let list = |bytes: Vec<u8>| move |root: &Path| put(&root.join("ImageSets/Segmentation/train.txt"), &bytes);
    let text = |text: &str| list(text.as_bytes().to_vec());
    let utf_16 = |text: &str| text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>();
    #[rustfmt::skip]
    check(&VOC, vec![
        read("CRLF", text("a\r\nb\r\n"), &["train.txt has 2 ids; val.txt has 1 id"]),
        read("CR", text("a\rb\r"), &["train.txt has 2 ids;"]),
        read("byte order mark", text("\u{feff}a\nb\n"), &["note: ImageSets/Segmentation/train.txt has 2 ids, UTF-8 with a byte order mark"]),
        read("UTF-16", list(utf_16("\u{feff}a\nb\n")), &["train.txt has 2 ids, UTF-16"]),
        read("zero width", text("a\u{200b}\n\u{200e}b\n"), &["2 ids, 2 lines with characters that cannot be seen"]),
        read("spaces", text("a  \n\n\tb\t\n\u{a0}\n"), &["train.txt has 2 ids;"]),
        read("Ctrl-Z", text("a\r\nb\r\n\u{1a}"), &["train.txt has 2 ids;"]),
        read("endings", text("a.jpg\nb.PNG\n"), &["2 ids, 2 of them written as the name of a file"]),
        read("train.TXT", |root| rename(root, "ImageSets/Segmentation/train.txt", "ImageSets/Segmentation/train.TXT"), &["train.txt has 2 ids;"]),
        read("paths from the folder on", text("./a\nJPEGImages/b\n"), &["2 ids, 2 of them"]),
        read("annotations' names", text("a.xml\nb.xml\n"), &["2 ids, 2 of them"]),
        read("paths", text("JPEGImages\\a.jpg SegmentationClass\\a.png\n/home/me/JPEGImages/b.jpg\n"), &["2 ids, 2 of them"]),
        read("quotes and commas", text("\"a\",\nb;\n"), &["2 ids, 2 of them"]),
        read("comment", text("# mine\na\nb\n"), &["train.txt has 2 ids, 1 line of comment"]),
        read("ImageSets/Main with all", text("a  1\nb  1\n"), &["2 ids, each with a 1 behind it, as in ImageSets/Main"]),
        refused("two versions", text("<<<<<<< mine\na\n=======\nb\n>>>>>>> theirs\n"), &["line 1: `<<<<<<< mine` is a mark of git"]),
        refused("a web page", text("<!DOCTYPE html><p>404"), &["train.txt`: it is a web page", "hint: get the file again"]),
        refused("ImageSets/Main", text("a  1\nb -1\n"), &["line 1 ends with 1: it is a list for one class, as in ImageSets/Main", "awk '$2 == 1 {print $1}' train.txt"]),
        refused("one line", text("a, b\n"), &["line 1: `a, b` names several images", "a list has one image id a line"]),
        refused("twice", text("a\nb\na\n"), &["`a` stands twice, in lines 1 and 3"]),
        refused("twice in other letters", text("a\nA\n"), &["a.png`: `a` and `A` of train are both this file"]),
        refused("Latin-1", list(b"a\nb\nm\xfcll\n".to_vec()), &["line 3 is not UTF-8: `m\u{fffd}ll` has the byte 0xfc, which is `ü`", "save the file as UTF-8"]),
        refused("zero bytes", list(b"a\nb\0\n".to_vec()), &["line 2 has a zero byte"]),
        refused("control characters", text("a\nb\u{1b}[31m\n"), &["`b\\u{1b}[31m` has the control character `\\u{1b}`"]),
        refused("a folder before", text("sub/a\nb\n"), &["`sub/a`: an image id is the name of a file in JPEGImages, without `/`"]),
        refused("a picture", list(encode_rgb(&picture(0))), &["it is a PNG image, not a text"]),
        refused("gzip", list(vec![0x1f, 0x8b, 8, 0]), &["it is a gzip file, not a text"]),
        refused("nothing", text("\n"), &["train.txt` names no image"]),
        read("both lists", text("a\nb\nc\n"), &["note: 1 of 1 val images are train images too, e.g. c.png"]),
        with(&["dataset.train=train.txt"], read("with its ending", |_| {}, &["train.txt has 2 ids"])),
    ]);
}

#[test]
fn annotations_of_voc_are_read_as_labelling_tools_write_them() {
    let xml = |bytes: Vec<u8>| {
        move |root: &Path| {
            fs::remove_dir_all(root.join("SegmentationClass")).unwrap();
            IDS.iter().for_each(|id| put(&root.join(format!("Annotations/{id}.xml")), &bytes));
        }
    };
    let plain = |name: &str| format!("<annotation><folder>f</folder><object><name>{name}</name></object></annotation>");
    let of = |name: &str| xml(plain(name).into_bytes());
    let head = |encoding: &str, name: &str| format!("<?xml version=\"1.0\" encoding=\"{encoding}\"?>{}", plain(name));
    let latin = |text: String| text.replace("<folder>f", "<folder>é").chars().map(|c| c as u8).collect::<Vec<u8>>();
    let utf_16 =
        |text: String| format!("\u{feff}{text}").encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>();
    let entities = (0..12).fold("<!DOCTYPE a [<!ENTITY e0 \"cat\">".to_owned(), |text, i| {
        format!("{text}<!ENTITY e{} \"{}\">", i + 1, format!("&e{i};").repeat(10))
    });
    const CATS: &str = "1 of 20 are in train images: cat 2";
    #[rustfmt::skip]
    check(&VOC, vec![
        read("no difficult", of("cat"), &[CATS, "of 3 images from Annotations"]),
        read("byte order mark", xml(format!("\u{feff}{}", plain("cat")).into_bytes()), &[CATS]),
        read("named by the file of the image", move |root| IDS.iter().for_each(|id| { let _ = fs::remove_dir_all(root.join("SegmentationClass")); put(&root.join(format!("Annotations/{id}.png.xml")), "<annotation><object><name>cat</name></object></annotation>") }), &[CATS]),
        read("declared Latin-1", xml(latin(head("ISO-8859-1", "cat"))), &[CATS]),
        read("Latin-1, not declared", xml(latin(plain("cat"))), &[CATS]),
        read("UTF-16", xml(utf_16(head("utf-16", "cat"))), &[CATS]),
        read("UTF-16 declared, UTF-8 written", xml(head("utf-16", "cat").into_bytes()), &[CATS]),
        read("a document type", xml(format!("<!DOCTYPE annotation SYSTEM \"voc.dtd\">{}", plain("cat")).into_bytes()), &[CATS]),
        read("capitals", of("Cat"), &[CATS, "note: names in Annotations are read as VOC's classes: `Cat` (3 objects) as cat"]),
        read("COCO's names", of("potted plant"), &["pottedplant 2", "`potted plant` (3 objects) as pottedplant"]),
        read("torchvision's names", of("tv"), &["tvmonitor 2", "`tv` (3 objects) as tvmonitor"]),
        read("capital tags", xml(plain("cat").replace("object>", "Object>").replace("name>", "Name>").into_bytes()), &[CATS]),
        read("a comment in the name", of("<!-- a -->cat"), &[CATS]),
        refused("a class of its own", of("helmet"), &["a.xml`: no class `helmet`", "`dataset.kind = \"folder\"` or \"coco\""]),
        refused("a typing error", of("aeroplan"), &["no class `aeroplan`", "did you mean `aeroplane`?"]),
        refused("two names", xml(plain("cat").replace("</name>", "</name><name>dog</name>").into_bytes()), &["a.xml`: an object with two names"]),
        refused("no object", xml(b"<annotation></annotation>".to_vec()), &["a: a training image without a label: its annotation has no object"]),
        refused("a web page", xml(b"<html><body>404</body></html>".to_vec()), &["its root is `html`, and an annotation of PASCAL VOC has `annotation`"]),
        refused("cut off", xml(plain("cat").into_bytes()[..40].to_vec()), &["not a whole XML file"]),
        refused("a name that nothing shows", of("c&#9;at"), &["no class `c\\tat`"]),
        refused("entities of entities", xml(format!("{entities}]>{}", plain("&e12;")).into_bytes()), &["not a whole XML file"]),
        read("beside masks", |root| IDS.iter().for_each(|id| put(&root.join(format!("Annotations/{id}.xml")), "<annotation><object>")), &["3 read by number", "note: 3 annotations are not read, since masks tell the labels, e.g. "]),
        refused("other labels than masks", |root| IDS.iter().for_each(|id| put(&root.join(format!("Annotations/{id}.xml")), "<annotation><object><name>dog</name></object></annotation>")), &["the masks have other classes than Annotations in all 2 train images that have both, e.g. a: dog in Annotations, cat in its mask"]),
    ]);
}

#[test]
fn tables_are_read_as_excel_pandas_and_hands_write_them() {
    let table = |bytes: Vec<u8>| move |root: &Path| put(&root.join("labels.csv"), &bytes);
    let text = |text: String| table(text.into_bytes());
    let utf_16 = TABLE.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>();
    let indexed = TABLE
        .lines()
        .enumerate()
        .map(|(i, line)| if i == 0 { format!(",{line}\n") } else { format!("{},{line}\n", i - 1) });
    #[rustfmt::skip]
    check(&FOLDER, vec![
        read("T and F", text(TABLE.replace(",1", ",T").replace(",0", ",F")), &[AGREE, "marks are `F`, `T`"]),
        read("Y and N", text(TABLE.replace(",1", ",Y").replace(",0", ",n")), &[AGREE, "marks are `Y`, `n`"]),
        read("names that differ in capitals alone", text(TABLE.replace("square", "Disc")), &["note: labels.csv: disc and Disc are two classes, which differ in capitals alone"]),
        read("byte order mark", text(format!("\u{feff}{TABLE}")), &[AGREE, "note: labels.csv: columns are separated by `,`; marks are `0`, `1`; UTF-8 with a byte order mark"]),
        read("CRLF", text(TABLE.replace('\n', "\r\n")), &[AGREE]),
        read("CR", text(TABLE.replace('\n', "\r")), &[AGREE]),
        read("semicolons", text(TABLE.replace(',', ";")), &[AGREE, "columns are separated by `;`"]),
        read("sep=", text(format!("sep=;\r\n{}", TABLE.replace(',', ";"))), &[AGREE, "columns are separated by `;`"]),
        read("tabs", text(TABLE.replace(',', "\t")), &[AGREE, "columns are separated by `tab`"]),
        read("bars", text(TABLE.replace(',', "|")), &[AGREE, "columns are separated by `|`"]),
        read("UTF-16", table(utf_16), &[AGREE, "; UTF-16"]),
        read("floats", text(TABLE.replace(",1", ",1.0").replace(",0", ",0.0")), &[AGREE, "marks are `0.0`, `1.0`"]),
        read("booleans", text(TABLE.replace(",1", ",True").replace(",0", ",False")), &[AGREE, "marks are `False`, `True`"]),
        read("crosses", text(TABLE.replace(",1", ",x").replace(",0", ",")), &[AGREE, "marks are ``, `x`"]),
        read("pandas' index", text(indexed.collect()), &[AGREE, "the first column counts the lines and is left out"]),
        read("other names of columns", text(TABLE.replace("image,split", "Filename,Split")), &[AGREE, "the column `Filename` is `image`; the column `Split` is `split`"]),
        read("a row of nothing", text(format!("# mine\n{TABLE},,,\n\n")), &[AGREE, "1 line of comment before the header", "1 line is empty or a comment"]),
        read("quotes", text(TABLE.lines().map(|line| format!("\"{}\"\n", line.replace(',', "\",\""))).collect()), &[AGREE]),
        read("a comma at the end", text(TABLE.replace('\n', ",\n")), &[AGREE]),
        read("paths", text(TABLE.replace("a.png", "images/a.png").replace("b.png", "C:\\data\\b.png")), &[AGREE]),
        read("Train", text(TABLE.replace("train", "Train")), &[AGREE, "note: labels.csv: the split `Train` is read as `train`"]),
        read("trian", text(format!("{TABLE}d.png,trian,1,0\n")), &["note: labels.csv: 1 image has the split `trian` (a typing error of `train`?): not used"]),
        read("an image that no row names", |root| put(&root.join("images/d.png"), encode_rgb(&picture(3))), &["note: in images/ 1 file is named by no line of labels.csv: d.png"]),
        read("other labels than masks", text(TABLE.replace("b.png,train,0,1", "b.png,train,1,1")), &["labels.csv and the masks differ for 1 of 2 train images that have both, e.g. b: disc, square in labels.csv, square in its mask"]),
        refused("validation", text(TABLE.replace(",val", ",validation")), &["no image of the split `val`", "write `dataset.val = \"validation\"`"]),
        refused("Latin-1", table(b"image,split,caf\xe9,b\n".to_vec()), &["line 1 is not UTF-8: `image,split,caf\u{fffd},b` has the byte 0xe9, which is `é`"]),
        refused("a spreadsheet", table(b"PK\x03\x04 xl".to_vec()), &["it is a ZIP archive, not a text", "saved as CSV"]),
        refused("a tab in a name", text(TABLE.replace("a.png", "a\t.png")), &["`a\\t.png` has the control character `\\t`"]),
        refused("an escape in a class", text(TABLE.replace("disc", "di\u{1b}sc")), &["`di\\u{1b}sc` has the control character"]),
        refused("a quote that is left open", text(TABLE.replace("a.png", "\"a.png")), &["line 2: a text in quotes begins with `a.png,train,1,0` and does not end on its line"]),
        refused("background", text(TABLE.replace("disc", "background")), &["column 3 is named `background`"]),
        refused("names of classes", text("image,split,label\na.png,train,disc\nb.png,train,square\nc.png,val,disc\n".to_owned()), &["its one column of a class is named `label`", "in place of the column `label`, write one for each class"]),
        refused("a column of numbers", text(TABLE.replace("1,0", "64,0")), &["`64` in the column `disc`, which is neither 1 nor 0", "hint: every column beside `image` and `split` is a class: write 1 where the image has it and 0 where not, or remove the column `disc`"]),
        refused("1 and -1", text(TABLE.replace(",0", ",-1")), &["`-1` in the column", "hint: write 0 in place of -1"]),
        refused("a split that looks like another", text(TABLE.replace("train", "tr\u{430}in")), &["no image of the split `train`", "anew: it looks like `train`, and is not it (`\u{430}` is the letter U+0430)"]),
        read("masks beside the images", |root| { IDS.iter().for_each(|id| { rename(root, &format!("images/{id}.png"), &format!("images/{id}.jpg")); rename(root, &format!("masks/{id}.png"), &format!("images/{id}.png")) }); fs::remove_dir(root.join("masks")).unwrap(); edit(&root.join("labels.csv"), |text| text.replace(".png", ".jpg")) }, &["note: images/ has a.png, b.png beside images of these names: if these are the masks, move them to masks/"]),
        refused("a name and its class", text("image_id,label\na.png,disc\nb.png,square\n".to_owned()), &["no column `split`", "hint: add a column `split` that says `train` or `val` for every image; in place of the column `label`, write one for each class"]),
        refused("spaces", text(TABLE.replace(',', " ")), &["no column `image`", "hint: separate the columns of the header, `image split disc square`, by commas"]),
        refused("a cell too many", text(TABLE.replace("1,0", "1,0,1")), &["line 2 has 5 columns, the header 4", "hint: remove what the line has too much"]),
        refused("a cell too few", text(TABLE.replace("b.png,train,0,1", "b.png,train,0")), &["line 3 has 3 columns, the header 4", "hint: give the line a cell for every column"]),
        refused("two names of images", text(TABLE.replace("square", "image")), &["2 columns could be `image`: `image`, `image`", "hint: keep one column `image`"]),
        refused("a named pipe", |root| pipe(&root.join("labels.csv")), &["labels.csv`: it is a named pipe, not a file"]),
        refused("twice", text(format!("{TABLE}a.png,val,1,0\n")), &["line 5: `a` stands twice, first in line 2", "hint: remove one of the lines"]),
        refused("no header", text(TABLE.split_once('\n').unwrap().1.to_owned()), &["no column `image`", "hint: write the names of the columns in a first line, as image,split,cat,dog; it has: a.png, train, 1, 0"]),
        refused("a table of another name", |root| rename(root, "labels.csv", "labels.tsv"), &["it has no `labels.csv`; there is labels.tsv"]),
    ]);
}

#[test]
fn coco_is_read_as_people_s_own_tools_write_it() {
    const PAINTED: &str =
        "train 2 of 2, val 1 of 1 images, painted from 3 outlines of 2 classes; 0 crowds and 0 objects";
    let segmentation = |value: Value| move |root: &Path| set(root, "annotations", "segmentation", |_| value.clone());
    let path = |form: &'static str| {
        move |root: &Path| set(root, "images", "file_name", |name| json!(form.replace("NAME", name.as_str().unwrap())))
    };
    let text = |from: &'static str, to: &'static str| {
        move |root: &Path| json_text(root, |text| text.replace(from, to).into_bytes())
    };
    let runs = json!([24, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6, 90]);
    #[rustfmt::skip]
    check(&COCO, vec![
        read("as COCO has it", |_| {}, &[PAINTED, "2 of 2 are in train images: disc 1, square 1"]),
        read("byte order mark", |root| json_text(root, |text| format!("\u{feff}{text}").into_bytes()), &[PAINTED]),
        read("UTF-16", |root| json_text(root, |text| format!("\u{feff}{text}").encode_utf16().flat_map(u16::to_le_bytes).collect()), &[PAINTED]),
        read("iscrowd: false", |root| set(root, "annotations", "iscrowd", |_| json!(false)), &[PAINTED]),
        read("iscrowd: null", |root| set(root, "annotations", "iscrowd", |_| Value::Null), &[PAINTED]),
        read("64.0", |root| { set(root, "images", "height", |v| json!(v.as_f64())); set(root, "annotations", "image_id", |v| json!(v.as_f64())) }, &[PAINTED]),
        read("ids as texts", |root| { set(root, "images", "id", |id| json!(format!("{:012}", id.as_u64().unwrap()))); set(root, "categories", "id", |id| json!(id.to_string())) }, &[PAINTED]),
        read("ids with gaps", |root| { set(root, "categories", "id", |id| json!(id.as_u64().unwrap() * 40)); set(root, "annotations", "category_id", |id| json!(id.as_u64().unwrap() * 40)) }, &[PAINTED]),
        read("ids that are all 0", |root| set(root, "annotations", "id", |_| json!(0)), &[PAINTED, "1 of 2 train annotations have no id of their own, which nothing needs"]),
        read("an area of NaN", text("\"area\":42", "\"area\":NaN"), &[PAINTED]),
        read("sizes of NaN", text("\"height\":12", "\"height\":NaN"), &[PAINTED, "2 of 2 train images have no size, which is taken from their files"]),
        read("a category `background`", |root| json(root, |all| all["categories"].as_array_mut().unwrap().insert(0, json!({"id": 0, "name": "background"}))), &[PAINTED, "the category `background` of train has no annotation and is no class of its own"]),
        refused("a category `background` in use", |root| json(root, |all| all["categories"][0]["name"] = json!("background")), &["category 1 is named `background`, and annotation 1 is of it"]),
        read("a flat polygon", segmentation(json!([2, 0, 9, 0, 9, 6, 2, 6])), &[PAINTED]),
        read("corners in pairs", segmentation(json!([[[2, 0], [9, 0], [9, 6], [2, 6]]])), &[PAINTED]),
        read("runs as floats", segmentation(json!({"counts": runs.as_array().unwrap().iter().map(|run| json!(run.as_f64())).collect::<Vec<_>>(), "size": [12.0, 16.0]})), &[PAINTED]),
        read("beyond the image", segmentation(json!([[-99, -5, 9, 0, 1e9, 6, 2, 1e12]])), &[PAINTED, "2 of 2 train annotations reach beyond their images and are cut off there"]),
        refused("outside of the image", segmentation(json!([[90, 90, 99, 90, 99, 99]])), &["all 2 outlines lie outside their images", "the coordinates are pixels of other images"]),
        read("boxes alone", segmentation(json!([])), &["train 0 of 2, val 0 of 1 images", "disc 1, square 1", "2 of 2 train annotations have a box and no outline: they are labels"]),
        read("a box beside outlines", |root| json(root, |all| { let mut more = all["annotations"][0].clone(); more["segmentation"] = Value::Null; more["category_id"] = json!(2); all["annotations"].as_array_mut().unwrap().push(more) }), &["0 crowds and 2 objects without an outline are ignored", "1 of 3 train annotations have a box and no outline"]),
        read("a folder before", path("train/NAME"), &["2 of 2"]),
        read("a folder of Windows", path("images\\NAME"), &[PAINTED]),
        read("a whole path", path("/home/someone/NAME"), &[PAINTED]),
        read("spaces around", path(" NAME "), &[PAINTED]),
        read("capitals", |root| set(root, "images", "file_name", |name| json!(name.as_str().unwrap().to_uppercase())), &[PAINTED]),
        refused("a path out of it", path("../train/NAME"), &["`../train/a.png` is no path of an image in the data set"]),
        refused("a name that nothing shows", path("\u{1b}[2JNAME"), &["the file name of an image `\\u{1b}[2Ja.png` has the control character"]),
        refused("no file_name", |root| set(root, "images", "file_name", |_| Value::Null), &["the `file_name` of image 1 is missing"]),
        refused("an escape in a category", |root| json(root, |all| all["categories"][0]["name"] = json!("di\nsc")), &["the name of a category `di\\nsc` has the control character `\\n`"]),
        refused("an odd polygon", segmentation(json!([[2, 0, 9, 0, 9]])), &["annotation 1: a polygon has 5 coordinates, an odd number", "mend this annotation, or leave it out"]),
        refused("a corner of NaN", text("[2,0,9,0", "[2,NaN,9,0"), &["annotation 1: a coordinate is null or NaN"]),
        refused("parts of the size", segmentation(json!([[0.1, 0.1, 0.5, 0.1, 0.5, 0.5]])), &["all outlines lie within the first pixel of their images", "multiply x by the width"]),
        refused("runs of another size", segmentation(json!({"counts": [0, 192], "size": [16, 12]})), &["annotation 1 is an RLE of 12x16 in an image of 16x12"]),
        refused("sizes of another image", |root| set(root, "images", "height", |_| json!(64)), &["a: the image is 16x12, its annotation says 16x64"]),
        refused("sides in each other's place", |root| { set(root, "images", "height", |_| json!(16)); set(root, "images", "width", |_| json!(12)) }, &["a: the image is 16x12, its annotation says 12x16", "hint: `width` and `height` of the annotations stand in each other's place"]),
        refused("a size that no image has", |root| { set(root, "images", "height", |_| json!(1_000_000_000)); set(root, "images", "width", |_| json!(1_000_000_000)) }, &["image `a.png`: it is said to have 1000000000x1000000000 pixels"]),
        refused("a category that is not there", |root| set(root, "annotations", "category_id", |_| json!(77)), &["annotation 1 has category 77, which is not in `categories`; so are 2 of 2 annotations", "hint: mend `category_id` in all of these annotations"]),
        refused("ids that count from 0", |root| set(root, "annotations", "image_id", |id| json!(id.as_u64().unwrap() - 1)), &["every `image_id` is 1 less than an id that is there", "hint: if the file counts from another number, add 1 to every `image_id`"]),
        refused("images that are not there", |root| set(root, "annotations", "image_id", |_| json!(77)), &["annotation 1 is of image 77, which is not in `images`; so are 2 of 2 annotations", "hint: mend `image_id` in all of these annotations"]),
        refused("a category by its name", |root| set(root, "annotations", "category_id", |_| json!("square")), &["annotation 1 has category `square`, which is not in `categories`", "hint: `category_id` is the id of a category, not its name: write 2"]),
        refused("categories of another list", |root| edit(&root.join("annotations/instances_train.json"), |text| text.replace("square", "ring")), &["its categories are not those of the list `train`: train alone has ring, and val alone has square", "give both files the same `categories`"]),
        refused("categories in another order", |root| edit(&root.join("annotations/instances_train.json"), |text| text.replace("disc", "qq").replace("square", "disc").replace("qq", "square")), &["in the order of their ids, class 1 is square there and disc here"]),
        read("names that differ in capitals alone", |root| ["train", "val"].iter().for_each(|list| edit(&root.join(format!("annotations/instances_{list}.json")), |text| text.replace("square", "Disc"))), &["note: categories: disc and Disc are two classes, which differ in capitals alone"]),
        refused("an id twice", |root| set(root, "images", "id", |_| json!(1)), &["image id 1 stands twice", "hint: give each entry of `images` an `id` of its own"]),
        refused("no categories", |root| json(root, |all| all["categories"] = json!([])), &["0 categories; there can be 1 to 254", "hint: mend `categories`"]),
        refused("a named pipe", |root| pipe(&root.join("annotations/instances_train.json")), &["instances_train.json`: it is a named pipe, not a file"]),
        refused("captions", |root| json(root, |all| all["annotations"] = json!([{"id": 1, "image_id": 1, "caption": "a"}])), &["annotation 1 has no `category_id`"]),
        refused("detections", |root| json_text(root, |_| b"[{\"image_id\": 1}]".to_vec()), &["it is a list, as detections are"]),
        refused("cut off", |root| json_text(root, |text| text.as_bytes()[..100].to_vec()), &["the file is cut off; get it again"]),
        refused("a comma too many", text("}],", "},],"), &["trailing comma at line 1 column", "the file has to be as COCO's instances_*.json"]),
        refused("a web page", |root| json_text(root, |_| b"<!doctype html><p>404".to_vec()), &["it is a web page"]),
        refused("an export of Roboflow", |root| rename(root, "annotations/instances_train.json", "train/_annotations.coco.json"), &["no annotations of the list `train`; there are: val", "if `train/_annotations.coco.json` has them, copy it there"]),
    ]);
}

/// A PNG with an orientation in its EXIF.
fn oriented(image: &Rgb, orientation: u8) -> Vec<u8> {
    const AFTER_HEADER: usize = 8 + 25;
    let bytes = encode_rgb(image);
    let exif = [
        b"eXIf".to_vec(),
        b"MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0".to_vec(),
        vec![orientation, 0, 0, 0, 0, 0, 0],
    ]
    .concat();
    let crc = !exif.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 })
    });
    let length = u32::try_from(exif.len() - 4).unwrap().to_be_bytes();
    [&bytes[..AFTER_HEADER], &length, &exif, &crc.to_be_bytes(), &bytes[AFTER_HEADER..]].concat()
}

/// A grid on its side: as high as it was wide.
fn on_its_side(labels: &Grid<u8>) -> Vec<u8> {
    let data = (0..WIDTH).flat_map(|x| (0..HEIGHT).map(move |y| y * WIDTH + x)).map(|at| labels.data[at]).collect();
    encode_label_map(&Grid::new(WIDTH, HEIGHT, data))
}

/// Which way up images are read: as masks and annotations fit, else as data sets of the kind are made, else as is said.
#[test]
fn images_stand_as_their_masks_do() {
    let turned = |orientation: u8| {
        move |root: &Path| {
            for path in walk(root).into_iter().filter(|path| path.is_file()) {
                let i = IDS.iter().position(|id| path.ends_with(format!("{id}.png")));
                let is_image = ["images", "JPEGImages", "train", "val"]
                    .iter()
                    .any(|folder| path.parent().unwrap().ends_with(folder));
                if let Some(i) = i.filter(|_| is_image) {
                    put(&path, oriented(&picture(i), orientation));
                }
            }
        }
    };
    let on_side = |root: &Path| masks(root, on_its_side);
    const ALL: &str = "note: 3 of 3 images have an EXIF orientation: ";
    const TURNED: &str = "turned as viewers show them (no size tells, so as data sets of this kind are made";
    const STORED: &str = "read as stored (no size tells, so as data sets of this kind are made";
    #[rustfmt::skip]
    check(&FOLDER, vec![
        read("masks of the stored picture", turned(6), &[ALL, "read as stored (the sizes of masks or annotations tell; `dataset.orientation` is \"stored\" or \"turned\" to say otherwise)", BY_NUMBER]),
        read("masks of the turned picture", move |root| { turned(6)(root); on_side(root) }, &[ALL, "turned as viewers show them (the sizes of masks or annotations tell", BY_NUMBER]),
        read("upside down", turned(3), &[ALL, TURNED]),
        read("no masks", move |root| { turned(8)(root); fs::remove_dir_all(root.join("masks")).unwrap() }, &[ALL, TURNED]),
        read("one is turned", move |root| { turned(6)(root); put(&root.join("masks/b.png"), on_its_side(&labels(2))) }, &["1 turned as viewers show them, 2 read as stored"]),
        read("a number that EXIF has not", turned(9), &["orientation all images are upright"]),
        with(&["dataset.orientation=stored"], read("said", turned(3), &[ALL, "read as stored (`dataset.orientation = \"stored\"`)"])),
        with(&["dataset.orientation=turned"], refused("said otherwise than masks fit", turned(6), &["a: the mask is 16x12, the image 16x12 as stored and 12x16 as EXIF turns it", "set `dataset.orientation` to \"auto\""])),
    ]);
    #[rustfmt::skip]
    check(&VOC, vec![
        read("upside down", turned(3), &[ALL, STORED]),
        read("masks of the turned picture", move |root| { turned(6)(root); on_side(root) }, &[ALL, "turned as viewers show them (the sizes of masks or annotations tell"]),
    ]);
    #[rustfmt::skip]
    check(&COCO, vec![
        read("sizes of the stored picture", turned(6), &[ALL, "read as stored (the sizes of masks or annotations tell"]),
        read("sizes of the turned picture", move |root| { turned(6)(root); set(root, "images", "height", |_| json!(WIDTH)); set(root, "images", "width", |_| json!(HEIGHT)) }, &[ALL, "turned as viewers show them (the sizes of masks or annotations tell"]),
        read("upside down, by a tool that turns", turned(3), &[ALL, TURNED]),
        read("upside down, COCO's own", move |root| {
            turned(3)(root);
            json_text(root, |text| IDS.iter().fold(text, |text, id| text.replace(&format!("\"{id}.png"), &format!("\"COCO_train2014_0000000000{:02}.png", id.as_bytes()[0] - b'a'))).into_bytes());
            for (list, id) in [("train", 'a'), ("train", 'b'), ("val", 'c')] {
                rename(root, &format!("{list}/{id}.png"), &format!("{list}/COCO_train2014_0000000000{:02}.png", id as u8 - b'a'));
            }
        }, &[ALL, STORED]),
    ]);
}

/// What is read in another form is what the plain form says: the masks are the same to the byte, so all that is computed
/// is found again.
#[test]
fn masks_in_colours_score_as_label_maps_do() {
    let dir = prepare(&VOC);
    let table = |said: &str| said.lines().find(|line| line.starts_with("default ")).unwrap().to_owned();
    let plain = succeeds(dir.path(), &["run", "tiny.toml"]);
    masks(&dir.path().join("data"), |labels| coloured(labels, &voc_palette()));
    let said = succeeds(dir.path(), &["run", "tiny.toml"]);
    // `a` and `c` have one mask.
    assert!(said.contains("\n2 units executed, "), "{said}");
    assert_eq!(table(&said), table(&plain));
}

#[test]
fn doctor_says_what_was_decided_in_lines() {
    for (kind, lines) in [
        (
            &VOC,
            "data        data: 2 training and 1 validation images, all of whose files can be read
  lists       ImageSets/Segmentation: train.txt has 2 ids; val.txt has 1 id
  orientation all images are upright
  masks       train 2 of 2, val 1 of 1 images; 3 read by number (0, 8, 15); 0 with background alone
  labels      of 3 images from their masks
  classes     2 of 20 are in train images: cat 1, person 1
",
        ),
        (
            &COCO,
            "data        data: 2 training and 1 validation images, all of whose files can be read
  lists       annotations/instances_train.json has 2 images and 2 annotations of 2 categories; annotations/instances_val.json has 1 image and 1 annotation of 2 categories
  orientation all images are upright
  masks       train 2 of 2, val 1 of 1 images, painted from 3 outlines of 2 classes; 0 crowds and 0 objects without an outline are ignored
  labels      of all annotations, crowds and objects without an outline too
  classes     2 of 2 are in train images: disc 1, square 1
",
        ),
        (
            &FOLDER,
            "data        data: 2 training and 1 validation images, all of whose files can be read
  lists       labels.csv has 3 images: train 2, val 1; columns are separated by `,`; marks are `0`, `1`
  orientation all images are upright
  masks       train 2 of 2, val 1 of 1 images; 3 read by number (0, 1, 2); 0 with background alone
  labels      of 3 images from labels.csv; labels.csv and mask agree in 3 of the 3 images that have both
  classes     2 of 2 are in train images: disc 1, square 1
",
        ),
    ] {
        let dir = prepare(kind);
        let said = succeeds(dir.path(), &["doctor", "tiny.toml"]);
        assert!(said.contains(lines), "{said}");
        let planned = succeeds(dir.path(), &["plan", "tiny.toml"]);
        assert!(planned.contains(lines.split_once('\n').unwrap().1), "{planned}");
    }
}
