//! Data sets in PASCAL VOC 2012 layout, checked whole before any work starts.
//!
//! Lists are those of ImageSets/Segmentation, or SBD's (`trainaug`). Image-level labels are the classes in an image's
//! mask, or the objects in its Annotations.

use std::collections::{BTreeSet, HashSet};
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use anyhow::Context;

use super::scan::{
    DataError, LabelSource, ScanOptions, all_or_no_masks, check_folders, fact, file, image, items, mask, note_unscored,
    said,
};
use super::{Dataset, FileMemo, Item, Mask};
use crate::vision::{VOC_CLASSES, labels_of};

/// Where masks are looked for: VOC's own first, then those of SBD.
const MASK_FOLDERS: [&str; 2] = ["SegmentationClass", "SegmentationClassAug"];

/// Reads and checks a data set.
///
/// # Errors
/// What is missing, and every image that is broken, whose mask is missing, broken, of another size or of unknown
/// classes, and every training image without a label.
pub fn scan(options: &ScanOptions<'_>, memo: &dyn FileMemo) -> Result<Dataset, DataError> {
    check_folders(options)?;
    let of = |list: &str, max: usize, is_train: bool| {
        let ids = read_list(options, list, max)?;
        items(list, &ids, |id| scan_item(options, id, is_train, memo))
    };
    let (train, val) = (of(options.train, options.max_train, true)?, of(options.val, options.max_val, false)?);
    let both = [two_truths(options.train, &train), two_truths(options.val, &val)];
    let mut notes: Vec<String> = both.into_iter().flatten().collect();
    note_unscored(options.train, &train, &mut notes);
    all_or_no_masks(options.val, &val, &mut notes)?;
    let classes = VOC_CLASSES.map(str::to_owned).to_vec();
    Ok(Dataset { name: options.name.to_owned(), classes, train, val, notes })
}

/// A note where a list is scored with masks of both folders: SBD's are not VOC's.
fn two_truths(list: &str, items: &[Item]) -> Option<String> {
    let of = |folder: &&str| {
        let is_there = |item: &&Item| match &item.mask {
            Some(Mask::File(file)) => file.path.parent().is_some_and(|parent| parent.ends_with(folder)),
            _ => false,
        };
        items.iter().filter(is_there).count()
    };
    let [voc, sbd] = MASK_FOLDERS.each_ref().map(of);
    (voc > 0 && sbd > 0).then(|| {
        format!(
            "{list} is scored with {voc} masks of SegmentationClass and {sbd} of SegmentationClassAug; the field's numbers \
             are of the former alone: dataset.masks = \"SegmentationClass\""
        )
    })
}

fn read_list(options: &ScanOptions<'_>, list: &str, max: usize) -> Result<Vec<String>, DataError> {
    let folder = options.root.join("ImageSets/Segmentation");
    let path = folder.join(format!("{list}.txt"));
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let there = fs::read_dir(&folder).into_iter().flatten().flatten();
            let mut there: Vec<String> = there.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
            there.sort();
            return Err(DataError::NoList { path, there: there.join(", ") });
        }
        Err(error) => {
            let hint = "a list is a text in UTF-8 that you may read, one image id a line";
            return Err(DataError::File { path, problem: error.to_string(), hint });
        }
    };
    let mut seen = HashSet::new();
    let mut ids = Vec::new();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let id = id_of(line);
        if options.exclude.contains(&id) {
            continue;
        }
        if !seen.insert(id.clone()) {
            return Err(DataError::Twice { id, list: path });
        }
        ids.push(id);
    }
    if max > 0 {
        ids.truncate(max);
    }
    match ids.is_empty() {
        true => Err(DataError::EmptyList(path)),
        false => Ok(ids),
    }
}

/// A line is an id, or as in SBD's lists `/JPEGImages/ID.jpg /SegmentationClassAug/ID.png`, with or without the first
/// `/`.
fn id_of(line: &str) -> String {
    let first = line.split_whitespace().next().unwrap_or(line);
    let is_picture = Path::new(first).extension().is_some_and(|ending| ending == "jpg" || ending == "png");
    match Path::new(first).file_stem() {
        Some(stem) if first.contains('/') && is_picture => stem.to_string_lossy().into_owned(),
        _ => line.to_owned(),
    }
}

fn scan_item(options: &ScanOptions<'_>, id: &str, is_train: bool, memo: &dyn FileMemo) -> Result<Item, String> {
    if id.contains('/') {
        return Err(format!("{id}: an image id is the name of a file in JPEGImages, without `/`"));
    }
    let images = options.root.join("JPEGImages");
    let picture = [format!("{id}.jpg"), format!("{id}.png")].map(|name| images.join(name));
    let Some(picture) = picture.into_iter().find(|path| path.exists()) else {
        return Err(format!("{id}: no image `{}`", images.join(format!("{id}.jpg")).display()));
    };
    let (image, size) = image(&picture, memo)?;

    let folders = match options.masks {
        Some(folder) => vec![options.root.join(folder)],
        None => MASK_FOLDERS.map(|folder| options.root.join(folder)).to_vec(),
    };
    let png = folders.iter().map(|folder| folder.join(format!("{id}.png"))).find(|path| path.exists());
    let png = png.map(|path| mask((id, &path), &size, VOC_CLASSES.len(), memo)).transpose()?;
    let xml = options.root.join(format!("Annotations/{id}.xml"));
    let xml = Some(xml).filter(|path| options.labels != LabelSource::Masks && path.exists());

    let no_mask = || {
        let folders: Vec<String> = folders.iter().map(|folder| folder.display().to_string()).collect();
        format!("no mask in {}", folders.join(" or "))
    };
    let no_xml = || format!("no Annotations/{id}.xml");
    let (labels, place) = match (options.labels, &png, xml) {
        (LabelSource::Auto | LabelSource::Masks, Some((_, classes)), _) => (classes.clone(), "mask is all background"),
        (_, _, Some(path)) => (objects(&path, memo)?, "annotation has no object"),
        _ if !is_train => (Vec::new(), ""),
        (LabelSource::Auto, ..) => return Err(format!("{id}: {} and {}", no_mask(), no_xml())),
        (LabelSource::Masks, ..) => return Err(format!("{id}: {}", no_mask())),
        (LabelSource::Annotations, ..) => return Err(format!("{id}: {}", no_xml())),
    };
    if is_train && labels.is_empty() {
        return Err(format!("{id}: a training image without a label: its {place}"));
    }
    let mask = png.map(|(mask, _)| mask);
    Ok(Item { id: id.to_owned(), image, mask, labels, height: size.height, width: size.width })
}

/// The classes of the objects in an annotation, ascending.
fn objects(path: &Path, memo: &dyn FileMemo) -> Result<Vec<u8>, String> {
    fact("voc_objects", &file(path, memo)?, memo, |bytes| {
        let text = std::str::from_utf8(bytes).context("not a text")?;
        let document = roxmltree::Document::parse(text).context("not a whole XML file")?;
        let objects = document.root_element().children().filter(|node| node.has_tag_name("object"));
        // A person's parts have names too; they are no children of the object.
        let name = |object: roxmltree::Node<'_, '_>| {
            let name = object.children().find(|node| node.has_tag_name("name")).and_then(|name| name.text());
            anyhow::Ok(name.context("an object without a name")?.trim().to_owned())
        };
        let names = objects.map(name).collect::<anyhow::Result<Vec<_>>>()?;
        Ok(BTreeSet::from_iter(labels_of(&VOC_CLASSES, &names)?).into_iter().collect())
    })
    .map_err(said)
}

#[cfg(test)]
mod tests {
    use super::super::scan::tests::{NoMemo, options};
    use super::*;
    use crate::data::Mask;
    use crate::data::image::{encode_label_map, encode_rgb};
    use crate::vision::{Grid, Rgb};

    fn tree(label: u8, mask_width: usize) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for folder in ["JPEGImages", "SegmentationClass", "ImageSets/Segmentation", "Annotations"] {
            fs::create_dir_all(dir.path().join(folder)).unwrap();
        }
        fs::write(dir.path().join("ImageSets/Segmentation/train.txt"), "a\n").unwrap();
        fs::write(dir.path().join("ImageSets/Segmentation/val.txt"), "a\n").unwrap();
        let image = Rgb { height: 4, width: 4, data: vec![9; 48] };
        for id in ["a", "b"] {
            fs::write(dir.path().join(format!("JPEGImages/{id}.png")), encode_rgb(&image)).unwrap();
        }
        let mut mask = Grid::filled(4, mask_width, 0u8);
        mask.data[0] = label;
        fs::write(dir.path().join("SegmentationClass/a.png"), encode_label_map(&mask)).unwrap();
        dir
    }

    fn scan_at(root: &Path) -> Result<Dataset, DataError> {
        scan(&options(root), &NoMemo)
    }

    /// `tree` with other lists.
    fn listed(train: &str, val: &str) -> tempfile::TempDir {
        let dir = tree(8, 4);
        fs::write(dir.path().join("ImageSets/Segmentation/train.txt"), train).unwrap();
        fs::write(dir.path().join("ImageSets/Segmentation/val.txt"), val).unwrap();
        dir
    }

    fn annotate(dir: &tempfile::TempDir, id: &str, objects: &str) {
        let xml = format!("<annotation><filename>{id}.jpg</filename>{objects}</annotation>");
        fs::write(dir.path().join(format!("Annotations/{id}.xml")), xml).unwrap();
    }

    const PERSON: &str = "<object><name>person</name><difficult>0</difficult><part><name>head</name></part></object>";
    const HARD_CAT: &str = "<object><name>cat</name><difficult>1</difficult></object>";

    #[test]
    fn a_good_tree() {
        let dir = tree(8, 4);
        let dataset = scan_at(dir.path()).unwrap();
        assert_eq!((dataset.train[0].labels.as_slice(), dataset.train[0].width), (&[8u8][..], 4));
        assert_eq!(dataset.notes, [""; 0]);
    }

    #[test]
    fn labels_from_annotations() {
        let dir = listed("a\nb\n", "a\n");
        annotate(&dir, "a", &[PERSON, PERSON].concat());
        annotate(&dir, "b", &[PERSON, HARD_CAT].concat());
        let labels = |source: LabelSource| {
            let options = ScanOptions { labels: source, ..options(dir.path()) };
            scan(&options, &NoMemo)
                .map(|dataset| dataset.train.iter().map(|item| item.labels.clone()).collect::<Vec<_>>())
        };
        // The mask of `a` has a cat, its annotation a person; `b` has no mask.
        assert_eq!(labels(LabelSource::Auto).unwrap(), [vec![8], vec![8, 15]]);
        assert_eq!(labels(LabelSource::Annotations).unwrap(), [vec![15], vec![8, 15]]);
        let error = labels(LabelSource::Masks).unwrap_err().to_string();
        assert!(error.contains("1 of 2 train images") && error.contains("b: no mask in"), "{error}");
        let dataset = scan_at(dir.path()).unwrap();
        assert!(matches!(dataset.train[0].mask, Some(Mask::File(_))) && dataset.train[1].mask.is_none());
        assert_eq!(
            dataset.notes,
            ["1 of 2 train images have no mask: seeds and pseudo-labels are scored without them"]
        );
    }

    #[test]
    fn a_test_list_has_no_masks() {
        let notes = scan_at(listed("a\n", "b\n").path()).unwrap().notes;
        assert_eq!(notes, ["no val image has a mask: predictions are made, but not scored"]);
        let error = scan_at(listed("a\n", "a\nb\n").path()).unwrap_err();
        assert!(error.to_string().contains("1 of 2 val images cannot be used:\n  b: no mask, but others have one"));
        assert!(error.hint().contains("dataset.exclude"));
    }

    #[test]
    fn lists_of_sbd() {
        for line in
            ["a", "/JPEGImages/a.jpg /SegmentationClassAug/a.png", "JPEGImages/a.jpg SegmentationClassAug/a.png"]
        {
            assert_eq!(scan_at(listed(line, "a").path()).unwrap().train[0].id, "a", "{line}");
        }
    }

    #[test]
    fn bad_trees_are_named() {
        let truncated = tree(8, 4);
        let image = truncated.path().join("JPEGImages/a.png");
        let bytes = fs::read(&image).unwrap();
        fs::write(&image, &bytes[..bytes.len() / 2]).unwrap();
        // A JPEG that is cut off decodes to grey below.
        let cut_off = tree(8, 4);
        fs::remove_file(cut_off.path().join("JPEGImages/a.png")).unwrap();
        let jpeg = include_bytes!("../../tests/golden/pixels/4x4.jpg");
        fs::write(cut_off.path().join("JPEGImages/a.jpg"), jpeg).unwrap();
        scan_at(cut_off.path()).unwrap();
        fs::write(cut_off.path().join("JPEGImages/a.jpg"), &jpeg[..jpeg.len() - 4]).unwrap();
        let not_a_text = tree(8, 4);
        fs::write(not_a_text.path().join("ImageSets/Segmentation/val.txt"), [0xff, 0xfe, b'a', 0]).unwrap();
        let no_image = tree(8, 4);
        fs::remove_file(no_image.path().join("JPEGImages/a.png")).unwrap();
        let no_list = tree(8, 4);
        fs::remove_file(no_list.path().join("ImageSets/Segmentation/val.txt")).unwrap();
        let annotated = |objects: &str| {
            let dir = listed("b\n", "a\n");
            annotate(&dir, "b", objects);
            dir
        };
        for (dir, expected) in [
            (tree(57, 4), "has class 57; known are 0..=20 and 255"),
            (tree(8, 5), "a: the mask is 5x4, the image 4x4"),
            (tree(0, 4), "a: a training image without a label: its mask is all background"),
            (truncated, "not a whole PNG image"),
            (cut_off, "the JPEG is cut off"),
            (not_a_text, "val.txt`: stream did not contain valid UTF-8"),
            (no_image, "a: no image"),
            (no_list, "there are: train.txt"),
            (listed("b\n", "a\n"), "SegmentationClassAug and no Annotations/b.xml"),
            (listed("x/y\n", "a\n"), "x/y: an image id is the name of a file in JPEGImages"),
            (listed("a\na\n", "a\n"), "`a` stands twice in"),
            (annotated(""), "b: a training image without a label: its annotation has no object"),
            (annotated("<object><name>zebra</name></object>"), "Annotations/b.xml`: no class `zebra`"),
            (annotated("<object>"), "Annotations/b.xml`: not a whole XML file"),
            (annotated("<object></object>"), "Annotations/b.xml`: an object without a name"),
        ] {
            let message = scan_at(dir.path()).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        }
        assert!(matches!(scan_at(Path::new("/nowhere")), Err(DataError::NoRoot(_))));
        let dir = tree(8, 4);
        let named = ScanOptions { masks: Some(Path::new("SegmentationClas")), ..options(dir.path()) };
        let error = scan(&named, &NoMemo).unwrap_err();
        assert!(error.to_string().contains("SegmentationClas`: no folder of masks"), "{error}");
    }

    #[test]
    fn voc_s_own_masks_come_first_and_sbd_s_are_named() {
        let dir = listed("a\nb\n", "a\n");
        let sbd = dir.path().join("SegmentationClassAug");
        fs::create_dir(&sbd).unwrap();
        for id in ["a", "b"] {
            fs::write(sbd.join(format!("{id}.png")), encode_label_map(&Grid::filled(4, 4, 3))).unwrap();
        }
        let Dataset { train, val, notes, .. } = scan_at(dir.path()).unwrap();
        assert_eq!((&train[0].labels[..], &train[1].labels[..], &val[0].labels[..]), (&[8][..], &[3][..], &[8][..]));
        assert_eq!(notes.len(), 1);
        assert!(notes[0].starts_with("train is scored with 1 masks of SegmentationClass and 1 of"), "{notes:?}");
    }
}
