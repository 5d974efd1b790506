//! Data sets in PASCAL VOC 2012 layout, checked whole before any work starts.
//!
//! Image-level labels are the classes in an image's mask. What was learnt of a file is remembered by its content, so
//! a second scan of an unchanged tree reads no picture.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::image::{decode_label_map, decode_rgb};
use super::{Dataset, FileMemo, FileRef, Item};
use crate::digest::BlobDigest;
use crate::vision::{IGNORE, VOC_CLASSES};

/// Where masks are looked for.
const MASK_FOLDERS: [&str; 2] = ["SegmentationClassAug", "SegmentationClass"];
/// Offenders named in one message.
const MAX_NAMED: usize = 5;

/// What to read of a tree.
#[derive(Clone, Debug)]
pub struct VocOptions<'a> {
    pub name: &'a str,
    pub root: &'a Path,
    /// Folder within `root`; `None`: found by itself.
    pub masks: Option<&'a Path>,
    pub train: &'a str,
    pub val: &'a str,
    /// 0 = all.
    pub max_train: usize,
    pub max_val: usize,
    pub exclude: &'a [String],
}

/// What is wrong with a data set.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    #[error("no data set at `{0}`")]
    NoRoot(PathBuf),
    #[error("no image list `{path}`; there are: {there}")]
    NoList { path: PathBuf, there: String },
    #[error("the image list `{0}` names no image")]
    EmptyList(PathBuf),
    #[error("`{id}` stands twice in `{list}`")]
    Twice { id: String, list: PathBuf },
    #[error("{} of {of} {list} images cannot be used:\n  {}{}", .faults.len(), named(.faults), more(.faults))]
    Items { list: String, of: usize, faults: Vec<String> },
}

fn named(faults: &[String]) -> String {
    faults.iter().take(MAX_NAMED).cloned().collect::<Vec<_>>().join("\n  ")
}

fn more(faults: &[String]) -> String {
    match faults.len().saturating_sub(MAX_NAMED) {
        0 => String::new(),
        n => format!("\n  and {n} more"),
    }
}

impl DataError {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::NoRoot(_) => "set `dataset.root` to the folder that holds JPEGImages and ImageSets",
            Self::NoList { .. } => "set `dataset.train` and `dataset.val` to lists in ImageSets/Segmentation",
            Self::EmptyList(_) | Self::Twice { .. } => "a list has one image id a line",
            Self::Items { .. } => "mend the files, or name the images in `dataset.exclude`",
        }
    }
}

/// What is remembered of a picture.
#[derive(Serialize, Deserialize)]
struct ImageFact {
    height: usize,
    width: usize,
}

#[derive(Serialize, Deserialize)]
struct MaskFact {
    height: usize,
    width: usize,
    classes: Vec<u8>,
}

/// Reads and checks a data set.
///
/// # Errors
/// What is missing, and every image that is broken, whose mask is missing, broken, of another size or of unknown
/// classes, and every training image without a label.
pub fn scan(options: &VocOptions<'_>, memo: &dyn FileMemo) -> Result<Dataset, DataError> {
    if !options.root.is_dir() {
        return Err(DataError::NoRoot(options.root.to_owned()));
    }
    let items = |list: &str, max: usize, needs_label: bool| {
        let ids = read_list(options, list, max)?;
        let scanned: Vec<Result<Item, String>> =
            ids.par_iter().map(|id| scan_item(options, id, needs_label, memo)).collect();
        let of = scanned.len();
        let (good, faults): (Vec<_>, Vec<_>) = scanned.into_iter().partition(Result::is_ok);
        match faults.is_empty() {
            true => Ok(good.into_iter().flatten().collect()),
            false => {
                let faults = faults.into_iter().filter_map(Result::err).collect();
                Err(DataError::Items { list: list.to_owned(), of, faults })
            }
        }
    };
    Ok(Dataset {
        name: options.name.to_owned(),
        classes: VOC_CLASSES.map(str::to_owned).to_vec(),
        train: items(options.train, options.max_train, true)?,
        val: items(options.val, options.max_val, false)?,
    })
}

fn read_list(options: &VocOptions<'_>, list: &str, max: usize) -> Result<Vec<String>, DataError> {
    let folder = options.root.join("ImageSets/Segmentation");
    let path = folder.join(format!("{list}.txt"));
    let Ok(text) = fs::read_to_string(&path) else {
        let there = fs::read_dir(&folder).into_iter().flatten().flatten();
        let mut there: Vec<String> = there.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        there.sort();
        return Err(DataError::NoList { path, there: there.join(", ") });
    };
    let mut seen = HashSet::new();
    let mut ids = Vec::new();
    // A line is an id, or as in SBD's lists `/JPEGImages/ID.jpg /SegmentationClassAug/ID.png`.
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let id = match line.starts_with('/') {
            true => line.split(' ').next().and_then(|path| Path::new(path).file_stem()).map(|s| s.to_string_lossy()),
            false => Some(line.into()),
        };
        let Some(id) = id.map(|id| id.into_owned()).filter(|id| !options.exclude.contains(id)) else { continue };
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

fn scan_item(options: &VocOptions<'_>, id: &str, needs_label: bool, memo: &dyn FileMemo) -> Result<Item, String> {
    if id.contains('/') {
        return Err(format!("{id}: an image id is the name of a file in JPEGImages, without `/`"));
    }
    let images = options.root.join("JPEGImages");
    let image = [format!("{id}.jpg"), format!("{id}.png")].map(|name| images.join(name));
    let Some(image) = image.into_iter().find(|path| path.exists()) else {
        return Err(format!("{id}: no image `{}`", images.join(format!("{id}.jpg")).display()));
    };
    let folders = match options.masks {
        Some(folder) => vec![options.root.join(folder)],
        None => MASK_FOLDERS.map(|folder| options.root.join(folder)).to_vec(),
    };
    let masks = folders.iter().map(|folder| folder.join(format!("{id}.png")));
    let Some(mask) = masks.into_iter().find(|path| path.exists()) else {
        return Err(format!("{id}: no mask in {}", folders[0].display()));
    };

    let image = file(&image, memo)?;
    let size: ImageFact = fact("image", &image, memo, |bytes| {
        let image = decode_rgb(bytes)?;
        Ok(ImageFact { height: image.height, width: image.width })
    })?;
    let mask = file(&mask, memo)?;
    let MaskFact { height, width, classes } = fact("mask", &mask, memo, |bytes| {
        let map = decode_label_map(bytes)?;
        let present: HashSet<u8> = map.data.iter().copied().filter(|&label| label != 0 && label != IGNORE).collect();
        let mut classes: Vec<u8> = present.into_iter().collect();
        classes.sort_unstable();
        Ok(MaskFact { height: map.height, width: map.width, classes })
    })?;
    if (height, width) != (size.height, size.width) {
        return Err(format!("{id}: the mask is {width}x{height}, the image {}x{}", size.width, size.height));
    }
    if let Some(class) = classes.iter().find(|&&class| usize::from(class) >= VOC_CLASSES.len()) {
        return Err(format!("{id}: the mask `{}` has class {class}; known are 0..=20 and 255", mask.path.display()));
    }
    if needs_label && classes.is_empty() {
        return Err(format!("{id}: a training image without a label: its mask is all background"));
    }
    Ok(Item { id: id.to_owned(), image, mask: Some(mask), labels: classes, height, width })
}

fn file(path: &Path, memo: &dyn FileMemo) -> Result<FileRef, String> {
    let digest = memo.digest(path).map_err(|error| format!("{error:#}"))?;
    Ok(FileRef { path: path.into(), digest })
}

/// A fact about a file's content, from memory or by reading it.
fn fact<T: Serialize + for<'de> Deserialize<'de>>(
    name: &str,
    file: &FileRef,
    memo: &dyn FileMemo,
    learn: impl FnOnce(&[u8]) -> anyhow::Result<T>,
) -> Result<T, String> {
    let of: &BlobDigest = &file.digest;
    if let Some(known) = memo.fact(name, of).and_then(|bytes| serde_json::from_slice(&bytes).ok()) {
        return Ok(known);
    }
    let bytes = fs::read(&file.path).map_err(|error| format!("`{}`: {error}", file.path.display()))?;
    let learnt = learn(&bytes).map_err(|error| format!("`{}`: {error:#}", file.path.display()))?;
    if let Ok(bytes) = serde_json::to_vec(&learnt) {
        memo.remember(name, of, &bytes);
    }
    Ok(learnt)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::image::{encode_label_map, encode_rgb};
    use crate::vision::{Grid, Rgb};

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

    fn tree(label: u8, mask_width: usize) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for folder in ["JPEGImages", "SegmentationClass", "ImageSets/Segmentation"] {
            fs::create_dir_all(dir.path().join(folder)).unwrap();
        }
        fs::write(dir.path().join("ImageSets/Segmentation/train.txt"), "a\n").unwrap();
        fs::write(dir.path().join("ImageSets/Segmentation/val.txt"), "a\n").unwrap();
        let image = Rgb { height: 4, width: 4, data: vec![9; 48] };
        fs::write(dir.path().join("JPEGImages/a.png"), encode_rgb(&image)).unwrap();
        let mut mask = Grid::filled(4, mask_width, 0u8);
        mask.data[0] = label;
        fs::write(dir.path().join("SegmentationClass/a.png"), encode_label_map(&mask)).unwrap();
        dir
    }

    fn scan_at(root: &Path) -> Result<Dataset, DataError> {
        let (train, val) = ("train", "val");
        scan(&VocOptions { name: "t", root, masks: None, train, val, max_train: 0, max_val: 0, exclude: &[] }, &NoMemo)
    }

    #[test]
    fn a_good_tree() {
        let dir = tree(8, 4);
        let dataset = scan_at(dir.path()).unwrap();
        assert_eq!((dataset.train[0].labels.as_slice(), dataset.train[0].width), (&[8u8][..], 4));
    }

    #[test]
    fn bad_trees_are_named() {
        let truncated = tree(8, 4);
        let image = truncated.path().join("JPEGImages/a.png");
        let bytes = fs::read(&image).unwrap();
        fs::write(&image, &bytes[..bytes.len() / 2]).unwrap();
        let no_image = tree(8, 4);
        fs::remove_file(no_image.path().join("JPEGImages/a.png")).unwrap();
        let no_list = tree(8, 4);
        fs::remove_file(no_list.path().join("ImageSets/Segmentation/val.txt")).unwrap();
        for (dir, expected) in [
            (tree(57, 4), "has class 57; known are 0..=20 and 255"),
            (tree(8, 5), "a: the mask is 5x4, the image 4x4"),
            (tree(0, 4), "a: a training image without a label"),
            (truncated, "not a whole JPEG or PNG image"),
            (no_image, "a: no image"),
            (no_list, "there are: train.txt"),
        ] {
            let message = scan_at(dir.path()).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        }
        assert!(matches!(scan_at(Path::new("/nowhere")), Err(DataError::NoRoot(_))));
    }
}
