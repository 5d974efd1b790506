//! What the scans of all kinds of data sets share: what is asked for, what can be wrong, what is learnt of a file and
//! remembered by its content, so that a second scan of an unchanged data set reads no picture.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::image::{decode_label_map, decode_rgb};
use super::{Bytes, FileMemo, FileRef, Item, Mask, read_shared};
use crate::digest::BlobDigest;
use crate::vision::IGNORE;

/// Offenders named in one message.
const MAX_NAMED: usize = 5;

/// What to read of a data set.
#[derive(Clone, Debug)]
pub struct ScanOptions<'a> {
    pub name: &'a str,
    pub root: &'a Path,
    /// Folder of masks within `root`; `None`: found by itself.
    pub masks: Option<&'a Path>,
    pub labels: LabelSource,
    /// Name of the list, or split, of training images.
    pub train: &'a str,
    pub val: &'a str,
    /// 0 = all.
    pub max_train: usize,
    pub max_val: usize,
    pub exclude: &'a [String],
}

/// Where image-level labels come from in a VOC tree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LabelSource {
    /// The classes in the mask, or in Annotations where an image has no mask.
    #[default]
    Auto,
    Masks,
    /// The objects in Annotations/ID.xml, those marked difficult too: what the field's label lists are made from.
    Annotations,
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
    #[error("`{}`: {problem}", path.display())]
    File { path: PathBuf, problem: String, hint: &'static str },
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
            Self::NoRoot(_) => {
                "set `dataset.root` to the folder that holds JPEGImages and ImageSets (`kind = \"voc\"`), annotations \
                 (`\"coco\"`), or images and labels.csv (`\"folder\"`)"
            }
            Self::NoList { .. } => "set `dataset.train` and `dataset.val` to lists in ImageSets/Segmentation",
            Self::EmptyList(_) | Self::Twice { .. } => "a list has one image id a line",
            Self::Items { .. } => "mend the files, or name the images in `dataset.exclude`",
            Self::File { hint, .. } => hint,
        }
    }
}

/// What may hold masks was named and is there, or was not named.
pub(super) fn check_folders(options: &ScanOptions<'_>) -> Result<(), DataError> {
    if !options.root.is_dir() {
        return Err(DataError::NoRoot(options.root.to_owned()));
    }
    match options.masks.map(|folder| options.root.join(folder)).filter(|folder| !folder.is_dir()) {
        None => Ok(()),
        Some(path) => Err(DataError::File {
            path,
            problem: "no folder of masks".to_owned(),
            hint: "`dataset.masks` is a folder in `dataset.root`; without it masks are found by themselves",
        }),
    }
}

/// The items of a list, or every fault of it.
pub(super) fn items<T: Sync>(
    list: &str,
    of: &[T],
    item: impl Fn(&T) -> Result<Item, String> + Sync + Send,
) -> Result<Vec<Item>, DataError> {
    let scanned: Vec<Result<Item, String>> = of.par_iter().map(item).collect();
    let of = scanned.len();
    let (good, faults): (Vec<_>, Vec<_>) = scanned.into_iter().partition(Result::is_ok);
    match faults.is_empty() {
        true => Ok(good.into_iter().flatten().collect()),
        false => {
            let faults = faults.into_iter().filter_map(Result::err).collect();
            Err(DataError::Items { list: list.to_owned(), of, faults })
        }
    }
}

/// A list to be predicted and scored has masks for all of its images or for none; a note of the latter.
pub(super) fn all_or_no_masks(list: &str, items: &[Item], notes: &mut Vec<String>) -> Result<(), DataError> {
    let without: Vec<&Item> = items.iter().filter(|item| item.mask.is_none()).collect();
    match without.len() {
        0 => Ok(()),
        n if n == items.len() => {
            notes.push(format!("no {list} image has a mask: predictions are made, but not scored"));
            Ok(())
        }
        _ => {
            let faults = without.iter().map(|item| format!("{}: no mask, but others have one", item.id)).collect();
            Err(DataError::Items { list: list.to_owned(), of: items.len(), faults })
        }
    }
}

/// Training images may lack masks: a note of how many are not scored.
pub(super) fn note_unscored(list: &str, items: &[Item], notes: &mut Vec<String>) {
    let n = items.iter().filter(|item| item.mask.is_none()).count();
    if n > 0 {
        notes.push(format!(
            "{n} of {} {list} images have no mask: seeds and pseudo-labels are scored without them",
            items.len()
        ));
    }
}

/// What is remembered of a picture.
#[derive(Serialize, Deserialize)]
pub(super) struct ImageFact {
    pub(super) height: usize,
    pub(super) width: usize,
}

#[derive(Serialize, Deserialize)]
struct MaskFact {
    height: usize,
    width: usize,
    classes: Vec<u8>,
}

/// The image file of an id, decoded once to know its size.
pub(super) fn image(path: &Path, memo: &dyn FileMemo) -> Result<(FileRef, ImageFact), String> {
    let image = file(path, memo)?;
    let size = fact("picture", &image, memo, |bytes| {
        let image = decode_rgb(bytes)?;
        Ok(ImageFact { height: image.height, width: image.width })
    })
    .map_err(said)?;
    Ok((image, size))
}

/// A mask and the classes in it, ascending; it has the size of the image and only known classes, `1..n_labels`.
pub(super) fn mask(
    (id, path): (&str, &Path),
    size: &ImageFact,
    n_labels: usize,
    memo: &dyn FileMemo,
) -> Result<(Mask, Vec<u8>), String> {
    let mask = file(path, memo)?;
    let MaskFact { height, width, classes } = fact("mask", &mask, memo, |bytes| {
        let map = decode_label_map(bytes)?;
        let present = map.data.iter().copied().filter(|&label| label != 0 && label != IGNORE);
        let classes = present.collect::<BTreeSet<u8>>().into_iter().collect();
        Ok(MaskFact { height: map.height, width: map.width, classes })
    })
    .map_err(said)?;
    if (height, width) != (size.height, size.width) {
        return Err(format!("{id}: the mask is {width}x{height}, the image {}x{}", size.width, size.height));
    }
    if let Some(class) = classes.iter().find(|&&class| usize::from(class) >= n_labels) {
        let last = n_labels - 1;
        return Err(format!("{id}: the mask `{}` has class {class}; known are 0..={last} and 255", path.display()));
    }
    Ok((Mask::File(mask), classes))
}

pub(super) fn file(path: &Path, memo: &dyn FileMemo) -> Result<FileRef, String> {
    let digest = memo.digest(path).map_err(said)?;
    Ok(FileRef { path: path.into(), digest })
}

pub(super) fn said(error: anyhow::Error) -> String {
    format!("{error:#}")
}

/// A fact about a file's content, from memory or by reading it.
pub(crate) fn fact<T: Serialize + for<'de> Deserialize<'de>>(
    name: &str,
    file: &FileRef,
    memo: &dyn FileMemo,
    learn: impl FnOnce(&Bytes) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let of: &BlobDigest = &file.digest;
    if let Some(known) = memo.fact(name, of).and_then(|bytes| serde_json::from_slice(&bytes).ok()) {
        return Ok(known);
    }
    let place = || format!("`{}`", file.path.display());
    let bytes = read_shared(&file.path).with_context(place)?;
    ensure!(BlobDigest::of(&bytes) == *of, "{} changed while it was read; run again", place());
    let learnt = learn(&bytes).with_context(place)?;
    if let Ok(bytes) = serde_json::to_vec(&learnt) {
        memo.remember(name, of, &bytes);
    }
    Ok(learnt)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Remembers nothing.
    pub(in crate::data) struct NoMemo;
    impl FileMemo for NoMemo {
        fn digest(&self, path: &Path) -> anyhow::Result<BlobDigest> {
            Ok(BlobDigest::of(&std::fs::read(path)?))
        }
        fn fact(&self, _: &str, _: &BlobDigest) -> Option<Vec<u8>> {
            None
        }
        fn remember(&self, _: &str, _: &BlobDigest, _: &[u8]) {}
    }

    /// The lists `train` and `val` of a folder, all of them.
    pub(in crate::data) fn options(root: &Path) -> ScanOptions<'_> {
        let labels = LabelSource::Auto;
        let (train, val, exclude) = ("train", "val", &[][..]);
        ScanOptions { name: "t", root, masks: None, labels, train, val, max_train: 0, max_val: 0, exclude }
    }
}
