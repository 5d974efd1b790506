//! What the scans of all kinds of data sets share: what is asked for, what can be wrong, what is learnt of a file and
//! remembered by its content, so that a second scan of an unchanged data set reads no picture.
//!
//! A scan has two steps. Each image is a [`Draft`]: its files, and what they say of themselves. Then [`finish`] decides
//! what only all of them together tell: what the numbers of masks mean, which way up images are, whether labels and
//! masks agree.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::door::{Format, read_regular};
use super::find::{Folder, file_name, stem};
use super::image::{Orientation, decode_rgb};
use super::mask_file::{Candidate, MaskFact, MaskValues, Meaning, Reading, Unread, label_maps, one_value};
use super::orient::{self, OrientationPolicy, Oriented};
use super::text::{NotText, Text, counted, shown_of};
use super::{Bytes, FileMemo, FileRef, Item, Mask, read_shared, turned};
use crate::digest::BlobDigest;
use crate::vision::IGNORE;

/// Bytes of a list or a table; that of ImageNet has some 30 MB.
const MAX_TEXT: u64 = 1 << 30;
/// Folders that are looked into for a hint.
const MAX_FOLDERS: usize = 1000;
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
    pub orientation: OrientationPolicy,
    pub mask_values: &'a MaskValues,
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
    #[error("{} of {of} {list} images cannot be used:\n  {}{}", .faults.len(), named(.faults), more(.faults))]
    Items { list: String, of: usize, faults: Vec<Fault> },
    #[error("`{}`: {problem}", path.display())]
    File { path: PathBuf, problem: String, hint: String },
}

/// Why an image cannot be used.
#[derive(Clone, Debug)]
pub struct Fault {
    problem: String,
    /// What to do about it, where that is not the same for all faults.
    hint: Option<String>,
    /// The folder that lacks an image of this id. What it has instead is looked for when the fault is named, since a list
    /// of another data set has thousands of faults and a message names a few.
    missing: Option<(Folder, String)>,
}

impl Fault {
    pub(super) fn new(said: String, hint: String) -> Self {
        Self { hint: Some(hint), ..said.into() }
    }

    pub(super) fn missing(said: String, folder: &Folder, id: &str) -> Self {
        let hint = "put these images there, or mend or remove their lines in what lists them; `dataset.exclude` leaves \
                    images out by name";
        Self { missing: Some((folder.clone(), id.to_owned())), ..Self::new(said, hint.to_owned()) }
    }

    /// The problem, with what there is instead.
    pub(super) fn said(&self) -> String {
        let instead = self.missing.as_ref().map_or_else(String::new, |(folder, id)| folder.instead(id));
        format!("{}{instead}", self.problem)
    }
}

impl From<String> for Fault {
    fn from(problem: String) -> Self {
        Self { problem, hint: None, missing: None }
    }
}

fn named(faults: &[Fault]) -> String {
    faults.iter().take(MAX_NAMED).map(Fault::said).collect::<Vec<_>>().join("\n  ")
}

fn more(faults: &[Fault]) -> String {
    match faults.len().saturating_sub(MAX_NAMED) {
        0 => String::new(),
        n => format!("\n  and {n} more"),
    }
}

impl DataError {
    /// What to do about it.
    pub fn hint(&self) -> String {
        let hint = match self {
            Self::NoRoot(_) => {
                "set `dataset.root` to the folder that holds JPEGImages and ImageSets (`kind = \"voc\"`), annotations \
                 (`\"coco\"`), or images and labels.csv (`\"folder\"`)"
            }
            Self::NoList { .. } => "set `dataset.train` and `dataset.val` to lists in ImageSets/Segmentation",
            Self::EmptyList(_) => "a list has one image id a line",
            Self::Items { faults, .. } => {
                let own = faults.iter().find_map(|fault| fault.hint.as_deref());
                own.unwrap_or("mend the files, or name the images in `dataset.exclude`")
            }
            Self::File { hint, .. } => hint,
        };
        hint.to_owned()
    }

    pub(super) fn file(path: &Path, problem: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::File { path: path.to_owned(), problem: problem.into(), hint: hint.into() }
    }
}

/// The text of a file that people or programs wrote, and what it was where it is no plain UTF-8.
pub(super) fn read_text(path: &Path) -> Result<Text, DataError> {
    let bytes = read_regular(path, MAX_TEXT)
        .map_err(|error| DataError::file(path, error.to_string(), "it has to be a text that you may read"))?;
    let text = super::text::decode(&bytes).map_err(|NotText { problem, hint }| DataError::file(path, problem, hint))?;
    let head = text.text.as_bytes();
    match Format::of(&head[..head.len().min(1 << 12)]) {
        Format::NoPicture(what @ "a web page") => {
            Err(DataError::file(path, format!("it is {what}"), "get the file again"))
        }
        _ => Ok(text),
    }
}

/// Some of many names for a message.
pub(super) fn some_of(names: &[impl AsRef<str>]) -> String {
    let shown: Vec<String> = names.iter().take(MAX_NAMED).map(|name| shown_of(name.as_ref())).collect();
    let more = names.len().saturating_sub(MAX_NAMED);
    format!("{}{}", shown.join(", "), if more > 0 { format!(" and {more} more") } else { String::new() })
}

/// The images of `dataset.exclude`, and which of its names some list has.
pub(super) struct Exclude<'a> {
    names: &'a [String],
    met: RefCell<BTreeSet<&'a str>>,
}

impl<'a> Exclude<'a> {
    pub(super) fn new(options: &ScanOptions<'a>) -> Self {
        Self { names: options.exclude, met: RefCell::default() }
    }

    /// The image is left out: its id is named, or its file.
    pub(super) fn has(&self, id: &str) -> bool {
        let named = self.names.iter().find(|name| *name == id || stem(file_name(name)) == id);
        named.is_some_and(|name| {
            self.met.borrow_mut().insert(name);
            true
        })
    }

    /// A note of names that no list has.
    pub(super) fn note(&self) -> Option<String> {
        let met = self.met.borrow();
        let unmet: Vec<&String> = self.names.iter().filter(|name| !met.contains(name.as_str())).collect();
        (!unmet.is_empty())
            .then(|| format!("no list has an image of these names of `dataset.exclude`: {}", some_of(&unmet)))
    }
}

/// What may hold masks was named and is there, or was not named.
pub(super) fn check_folders(options: &ScanOptions<'_>) -> Result<(), DataError> {
    if !options.root.is_dir() {
        return Err(DataError::NoRoot(options.root.to_owned()));
    }
    match options.masks.map(|folder| options.root.join(folder)).filter(|folder| !folder.is_dir()) {
        None => Ok(()),
        Some(path) => Err(DataError::file(
            &path,
            "no folder of masks",
            "`dataset.masks` is a folder in `dataset.root`; without it masks are found by themselves",
        )),
    }
}

/// The folder of images of a data set, in whatever letters.
///
/// # Errors
/// It is not there.
pub(super) fn images_in(root: &Folder, name: &str) -> Result<Folder, DataError> {
    let path = root.folder(name);
    if !path.is_dir() {
        let there: Vec<&str> = root.folders().collect();
        let there =
            if there.is_empty() { "it has no folder".to_owned() } else { format!("it has {}", some_of(&there)) };
        let problem = format!("images are looked for in its folder `{name}`, and {there}");
        // An archive of PASCAL VOC has it two folders down, in VOCdevkit/VOC2012.
        let below = root.folders().flat_map(|first| {
            let first = root.path.join(first);
            Folder::list(&first).folders().map(|second| first.join(second)).collect::<Vec<_>>()
        });
        let hint = match below.take(MAX_FOLDERS).find(|folder| folder.join(name).is_dir()) {
            Some(folder) => format!("set `dataset.root` to {}, which holds `{name}`", folder.display()),
            None => format!("set `dataset.root` to the folder that holds `{name}`, or rename the folder of images"),
        };
        return Err(DataError::file(&root.path, problem, hint));
    }
    Ok(Folder::list(&path))
}

/// A note of folders whose names are written in other letters.
pub(super) fn note_names<'a>(folders: impl Iterator<Item = (&'a Folder, &'a str)>, notes: &mut Vec<String>) {
    for (folder, name) in folders {
        let own = folder.path.file_name().unwrap_or_default().to_string_lossy();
        if own != name && folder.path.is_dir() {
            notes.push(format!("the folder `{}` is read as `{name}`", shown_of(&own)));
        }
    }
}

/// What each entry of a list becomes, or every fault of the list.
pub(super) fn each<T: Sync, R: Send, F: Into<Fault> + Send>(
    list: &str,
    of: &[T],
    make: impl Fn(&T) -> Result<R, F> + Sync + Send,
) -> Result<Vec<R>, DataError> {
    all_or_faults(list, of.par_iter().map(|entry| make(entry).map_err(Into::into)).collect())
}

fn all_or_faults<R>(list: &str, made: Vec<Result<R, Fault>>) -> Result<Vec<R>, DataError> {
    let of = made.len();
    let (good, faults): (Vec<_>, Vec<_>) = made.into_iter().partition(Result::is_ok);
    match faults.is_empty() {
        true => Ok(good.into_iter().flatten().collect()),
        false => {
            let faults = faults.into_iter().filter_map(Result::err).collect();
            Err(DataError::Items { list: list.to_owned(), of, faults })
        }
    }
}

/// A list to be predicted and scored has masks for all of its images or for none; a note of the latter.
fn all_or_no_masks(list: &str, items: &[Item], notes: &mut Vec<String>) -> Result<(), DataError> {
    let without: Vec<&Item> = items.iter().filter(|item| item.mask.is_none()).collect();
    match without.len() {
        0 => Ok(()),
        n if n == items.len() => {
            notes.push(format!("no {list} image has a mask: predictions are made, but not scored"));
            Ok(())
        }
        _ => {
            let said = |item: &&Item| format!("{}: no mask, but others have one", shown_of(&item.id)).into();
            let faults = without.iter().map(said).collect();
            Err(DataError::Items { list: list.to_owned(), of: items.len(), faults })
        }
    }
}

/// A note of names of classes that differ in capitals alone.
pub(super) fn names_alike(place: &str, classes: &[String]) -> Option<String> {
    let mut seen: HashMap<String, &String> = HashMap::new();
    let alike: Vec<String> = classes
        .iter()
        .filter_map(|class| {
            let other = seen.insert(class.to_lowercase(), class)?;
            Some(format!("{} and {}", shown_of(other), shown_of(class)))
        })
        .collect();
    (!alike.is_empty()).then(|| format!("{place}: {} are two classes, which differ in capitals alone", some_of(&alike)))
}

/// Images may lack masks: a note of how many are not scored, and of what is `scored`.
pub(super) fn note_unscored(list: &str, items: &[Item], scored: &str, notes: &mut Vec<String>) {
    let n = items.iter().filter(|item| item.mask.is_none()).count();
    if n > 0 {
        notes.push(format!("{n} of {} {list} images have no mask: {scored} are scored without them", items.len()));
    }
}

/// # Errors
/// Two ids of a list are one file: `a` and `A` where there is `a.jpg` alone.
pub(super) fn one_id_a_file<'a>(
    list: &str,
    images: impl Iterator<Item = (&'a str, &'a Picture)>,
) -> Result<(), DataError> {
    let mut ids: HashMap<&Path, &str> = HashMap::new();
    for (id, picture) in images {
        let path = &*picture.file.path;
        if let Some(other) = ids.insert(path, id).filter(|other| *other != id) {
            let problem = format!("`{}` and `{}` of {list} are both this file", shown_of(other), shown_of(id));
            return Err(DataError::file(path, problem, "name each image once, in the letters of its file"));
        }
    }
    Ok(())
}

/// A note of images, by their bytes, that are trained on and scored.
pub(super) fn note_overlap(lists: [&str; 2], pictures: [&[&Picture]; 2]) -> Option<String> {
    let of_train: HashMap<BlobDigest, &Path> =
        pictures[0].iter().map(|picture| (picture.file.digest, &*picture.file.path)).collect();
    let both: Vec<(&Path, &Path)> = pictures[1]
        .iter()
        .filter_map(|picture| Some((*of_train.get(&picture.file.digest)?, &*picture.file.path)))
        .collect();
    let (in_train, in_val) = both.first()?;
    let name = |path: &Path| shown_of(&path.file_name().unwrap_or_default().to_string_lossy());
    let example = match in_train == in_val {
        true => name(in_val),
        false => format!("{} has the content of {}", name(in_val), name(in_train)),
    };
    Some(format!(
        "{} of {} {} images are {} images too, e.g. {example}: scores on what is trained on tell little",
        both.len(),
        pictures[1].len(),
        lists[1],
        lists[0],
    ))
}

/// What is remembered of a picture.
#[derive(Serialize, Deserialize)]
struct ImageFact {
    /// As stored.
    height: usize,
    width: usize,
    /// What its EXIF orientation changes, if anything.
    turned: Option<TurnedFact>,
}

#[derive(Serialize, Deserialize)]
struct TurnedFact {
    swaps_sides: bool,
    /// Of the bytes behind [`super::image::TURNED`].
    digest: BlobDigest,
}

/// An image that was decoded once to know its size.
pub(super) struct Picture {
    pub(super) file: FileRef,
    fact: ImageFact,
}

impl Picture {
    pub(super) fn path(&self) -> &Path {
        &self.file.path
    }

    pub(super) fn open(path: &Path, memo: &dyn FileMemo) -> Result<Self, String> {
        let file = file(path, memo)?;
        let fact = fact("image", &file, memo, |bytes| {
            let image = decode_rgb(bytes)?;
            let orientation = Orientation::of(bytes);
            let turned = (!orientation.is_upright())
                .then(|| TurnedFact { swaps_sides: orientation.swaps_sides(), digest: BlobDigest::of(&turned(bytes)) });
            Ok(ImageFact { height: image.height, width: image.width, turned })
        });
        Ok(Self { file, fact: fact.map_err(said)? })
    }

    pub(super) fn is_upright(&self) -> bool {
        self.fact.turned.is_none()
    }

    /// Height and width, as stored or as it is seen.
    pub(super) fn size(&self, turned: bool) -> (usize, usize) {
        let ImageFact { height, width, turned: fact } = &self.fact;
        match fact {
            Some(TurnedFact { swaps_sides: true, .. }) if turned => (*width, *height),
            _ => (*height, *width),
        }
    }

    /// The file as stages read it.
    pub(super) fn read(&self, turned: bool) -> FileRef {
        match &self.fact.turned {
            Some(TurnedFact { digest, .. }) if turned => FileRef { path: self.file.path.clone(), digest: *digest },
            _ => self.file.clone(),
        }
    }

    /// `64x48`, and both ways where they differ.
    pub(super) fn sizes(&self) -> String {
        let ((height, width), (h, w)) = (self.size(false), self.size(true));
        match (height, width) == (h, w) {
            true => format!("{width}x{height}"),
            false => format!("{width}x{height} as stored and {w}x{h} as EXIF turns it"),
        }
    }
}

/// A mask as its file is, before what it means is known.
pub(super) struct MaskDraft {
    file: FileRef,
    fact: MaskFact,
}

impl MaskDraft {
    pub(super) fn open(path: &Path, memo: &dyn FileMemo) -> Result<Self, Fault> {
        let file = file(path, memo)?;
        let fact = fact("mask_file", &file, memo, |bytes| MaskFact::learn(bytes)).map_err(|error| {
            let hint =
                "a mask is a PNG with the numbers of classes; save it as one, or name the image in `dataset.exclude`";
            Fault::new(said(error), hint.to_owned())
        })?;
        Ok(Self { file, fact })
    }

    pub(super) fn path(&self) -> &Path {
        &self.file.path
    }
}

/// An image of a list as its files are.
pub(super) struct Draft {
    pub(super) id: String,
    pub(super) picture: Picture,
    pub(super) mask: Option<MaskDraft>,
    /// `None`: its labels are the classes in its mask.
    pub(super) labels: Option<Vec<u8>>,
    /// What something beside the mask says of its labels.
    pub(super) told: Option<Vec<u8>>,
    /// Height and width that its annotation says, of an image without a mask.
    pub(super) annotated_size: Option<(usize, usize)>,
    /// Why it may have no label: `its mask is all background`.
    pub(super) unlabelled: &'static str,
}

/// What the drafts of a data set are finished with.
pub(super) struct Finish<'a> {
    pub(super) options: &'a ScanOptions<'a>,
    /// Background first.
    pub(super) classes: &'a [String],
    /// The classes are PASCAL VOC's.
    pub(super) is_voc: bool,
    /// Images that no size tells the orientation of are turned.
    pub(super) turned_by_default: bool,
    /// What tells labels beside the masks: `labels.csv`.
    pub(super) label_file: &'static str,
}

/// Items with what was noted and decided.
#[derive(Default)]
pub(super) struct Finished {
    pub(super) train: Vec<Item>,
    pub(super) val: Vec<Item>,
    pub(super) notes: Vec<String>,
    pub(super) decided: Vec<(&'static str, String)>,
}

impl Finish<'_> {
    /// The items of both lists.
    ///
    /// # Errors
    /// Every image of the first list with a fault whose mask is not read, does not fit or has unknown classes, and every
    /// training image without a label; labels that contradict all masks.
    pub(super) fn finish(&self, train: Vec<Draft>, val: Vec<Draft>) -> Result<Finished, DataError> {
        let lists = [self.options.train, self.options.val];
        let n_train = train.len();
        let drafts: Vec<Draft> = train.into_iter().chain(val).collect();
        let mut finished = Finished::default();
        let (of_train, of_val) = drafts.split_at(n_train);
        for (list, drafts) in lists.iter().zip([of_train, of_val]) {
            one_id_a_file(list, drafts.iter().map(|draft| (draft.id.as_str(), &draft.picture)))?;
        }
        let pictures: Vec<&Picture> = drafts.iter().map(|draft| &draft.picture).collect();
        finished.notes.extend(note_overlap(lists, [&pictures[..n_train], &pictures[n_train..]]));
        let readings = self.readings(&drafts)?;
        let oriented = |draft: &'_ Draft| {
            draft.mask.as_ref().map(|mask| (mask.fact.height, mask.fact.width)).or(draft.annotated_size)
        };
        let images: Vec<Oriented<'_>> =
            drafts.iter().map(|draft| Oriented { picture: &draft.picture, size: oriented(draft) }).collect();
        let (turned, line) = orient::decide(&images, self.options.orientation, self.turned_by_default);
        finished.decided.push(("orientation", line.clone().unwrap_or_else(|| "all images are upright".to_owned())));
        finished.notes.extend(line);

        let mut made = Vec::new();
        let (mut n_masks, mut n_with_background) = (0, 0);
        for (i, (draft, reading)) in drafts.iter().zip(readings).enumerate() {
            if let (Some(mask), Ok(Some(reading))) = (&draft.mask, &reading) {
                n_masks += 1;
                n_with_background += usize::from(mask.fact.has_background(reading));
            }
            let item = reading.and_then(|reading| self.item(draft, reading, turned[i], i < n_train));
            made.push(item);
        }
        let made_of_val = made.split_off(n_train);
        finished.train = all_or_faults(lists[0], made)?;
        finished.val = all_or_faults(lists[1], made_of_val)?;
        finished.decided.push(("masks", masks_line(lists, [&finished.train, &finished.val], &drafts)));
        finished.notes.extend(self.masks_notes(finished.train.iter().chain(&finished.val)));
        if n_masks > 1 && n_with_background == 0 {
            let facts: Vec<&MaskFact> = drafts.iter().filter_map(|draft| Some(&draft.mask.as_ref()?.fact)).collect();
            let (ignored, pixels) = pixels_by_number(&facts);
            self.check_shifted(ignored, &pixels)?;
            let most = pixels.iter().max_by_key(|(_, n)| **n).map_or_else(String::new, |(most, _)| {
                format!(", e.g. `dataset.mask_values = {{ \"{most}\" = \"background\" }}`")
            });
            finished.notes.push(format!(
                "none of {n_masks} masks has a pixel of background (0): where another number is background, say it{most}"
            ));
        }
        self.check_table(&drafts, finished.train.iter().chain(&finished.val))?;
        self.labels_against_masks(lists[0], of_train, &mut finished.train, &mut finished.notes)?;
        self.labels_against_masks(lists[1], of_val, &mut finished.val, &mut finished.notes)?;
        finished.decided.push(("labels", self.labels_line(&drafts, finished.train.iter().chain(&finished.val))));
        note_unscored(lists[0], &finished.train, "seeds and pseudo-labels", &mut finished.notes);
        all_or_no_masks(lists[1], &finished.val, &mut finished.notes)?;
        let (line, note) = classes_line(self.classes, lists[0], &finished.train);
        finished.decided.push(("classes", line));
        finished.notes.extend(note.filter(|_| !self.is_voc));
        Ok(finished)
    }

    /// # Errors
    /// Most pixels of masks without background are 255: that may be background, and classes may be numbered from 0 on.
    fn check_shifted(&self, n_ignored: u64, pixels: &BTreeMap<u32, u64>) -> Result<(), DataError> {
        let n: u64 = pixels.values().sum();
        if *self.options.mask_values != MaskValues::default() || n_ignored <= n {
            return Ok(());
        }
        let class = |number: u32| Some((number, shown_of(self.classes.get(number as usize + 1)?)));
        let rows: Option<Vec<_>> = pixels.keys().copied().map(class).collect();
        let rows = rows.unwrap_or_default();
        let rows: String = rows.iter().map(|(number, class)| format!(", \"{number}\" = \"{class}\"")).collect();
        let numbers: Vec<String> = pixels.keys().take(12).map(u32::to_string).collect();
        let share = 100 * n_ignored / (n_ignored + n).max(1);
        Err(DataError::File {
            path: self.options.root.to_owned(),
            problem: format!(
                "no mask has background (0), and {share} % of the pixels are 255; the other numbers are {}",
                numbers.join(", ")
            ),
            hint: format!(
                "if 255 is background and classes are numbered from 0 on, write `dataset.mask_values = {{ \"255\" = \
                 \"background\"{rows} }}`; if 255 is ignored pixels, `dataset.mask_values = \"numbers\"`"
            ),
        })
    }

    /// How the mask of each draft is read.
    fn readings<'a>(&self, drafts: &'a [Draft]) -> Result<Vec<Result<Option<Reading>, Fault>>, DataError> {
        let candidate = |draft: &'a Draft| {
            Some(Candidate { id: &draft.id, fact: &draft.mask.as_ref()?.fact, labels: draft.told.as_deref() })
        };
        let candidates: Vec<Candidate<'_>> = drafts.iter().filter_map(candidate).collect();
        let ScanOptions { mask_values, root, .. } = *self.options;
        let meaning = Meaning { values: mask_values, classes: self.classes, is_voc: self.is_voc };
        let decided = meaning.decide(&candidates);
        let mut decided = decided.map_err(|Unread { problem, hint }| DataError::file(root, problem, hint))?.into_iter();
        let reading = |draft: &Draft| {
            let Some(mask) = &draft.mask else { return Ok(None) };
            let place = shown_of(&mask.path().display().to_string());
            let said = |Unread { problem, hint }| {
                Fault::new(format!("{}: the mask `{place}`: {problem}", shown_of(&draft.id)), hint)
            };
            decided.next().transpose().map_err(said)
        };
        Ok(drafts.iter().map(reading).collect())
    }

    fn item(&self, draft: &Draft, reading: Option<Reading>, turned: bool, is_train: bool) -> Result<Item, Fault> {
        let Draft { id, picture, mask, labels, told: _, annotated_size: _, unlabelled } = draft;
        let (height, width) = picture.size(turned);
        let (mut in_mask, mut truth) = (Vec::new(), None);
        if let (Some(MaskDraft { file, fact }), Some(reading)) = (mask, reading) {
            if (fact.height, fact.width) != (height, width) {
                let said = format!(
                    "{}: the mask is {}x{}, the image {}",
                    shown_of(id),
                    fact.width,
                    fact.height,
                    picture.sizes()
                );
                let of_turn = [picture.size(false), picture.size(true)].contains(&(fact.height, fact.width));
                let hint = match of_turn {
                    true => "set `dataset.orientation` to \"auto\", which turns images where their masks fit so",
                    false => {
                        "save each mask in the size of its image, without smoothing, or name the images in `dataset.exclude`"
                    }
                };
                return Err(Fault::new(said, hint.to_owned()));
            }
            in_mask = fact.classes(&reading);
            truth = Some(match reading {
                Reading::AsIs => Mask::File(file.clone()),
                reading => Mask::Translated { file: file.clone(), reading },
            });
        }
        let is_of_mask = labels.is_none();
        let labels = labels.as_ref().unwrap_or(&in_mask).clone();
        if is_train && labels.is_empty() {
            let has_255 =
                mask.as_ref().is_some_and(|mask| mask.fact.numbers().any(|number| number == u32::from(IGNORE)));
            if is_of_mask && has_255 {
                return Err(Fault::new(
                    format!(
                        "{}: a training image without a label: its mask has background (0) and ignored pixels (255) alone",
                        shown_of(id)
                    ),
                    format!(
                        "if 255 stands for one class, write e.g. `dataset.mask_values = {{ \"255\" = \"{}\" }}`; if for objects \
                         of several, {}; else name the images in `dataset.exclude`",
                        shown_of(&self.classes[1]),
                        label_maps(self.classes)
                    ),
                ));
            }
            return Err(format!("{}: a training image without a label: its {unlabelled}", shown_of(id)).into());
        }
        Ok(Item { id: id.clone(), image: picture.read(turned), mask: truth, labels, in_mask, height, width })
    }

    /// Notes of masks that are not read by their numbers though nobody says so, and of those that may have been made for
    /// one class.
    fn masks_notes<'b>(&self, items: impl Iterator<Item = &'b Item>) -> Vec<String> {
        let with_mask: Vec<&Item> = items.filter(|item| item.mask.is_some()).collect();
        let n = with_mask.len();
        let by_colour =
            |item: &&&Item| matches!(item.mask, Some(Mask::Translated { reading: Reading::Colours(_), .. }));
        let n_colours = with_mask.iter().filter(by_colour).count();
        let mut notes = Vec::new();
        if n_colours > 0 && *self.options.mask_values == MaskValues::default() {
            notes.push(format!(
                "{n_colours} of {n} masks are read by their colours, which are those of PASCAL VOC's palette \
                 (`dataset.mask_values` says otherwise)"
            ));
        }
        let class_1 = shown_of(&self.classes[1]);
        if self.is_voc && n > 1 && n_colours == 0 && with_mask.iter().all(|item| item.in_mask == [1]) {
            notes.push(format!(
                "all {n} masks have the numbers of background and of `{class_1}` (1) alone: where 1 is an object of any class, \
                 say which if all are of one, e.g. `dataset.mask_values = {{ \"1\" = \"cat\" }}`; if of several, {}",
                label_maps(self.classes)
            ));
        }
        notes
    }

    /// # Errors
    /// The user's table makes one class of what the labels say is several: most masks of images that the class is no label
    /// of have it, and none of their labels, which no other mask has either.
    fn check_table<'b>(&self, drafts: &[Draft], items: impl Iterator<Item = &'b Item>) -> Result<(), DataError> {
        let MaskValues::Table(table) = self.options.mask_values else { return Ok(()) };
        let items: Vec<(&Item, &[u8])> = items
            .zip(drafts)
            .filter(|(item, _)| item.mask.is_some())
            .map(|(item, draft)| (item, draft.told.as_deref().unwrap_or_default()))
            .collect();
        let seen: BTreeSet<u8> = items.iter().flat_map(|(item, _)| item.in_mask.iter().copied()).collect();
        let named: BTreeSet<&String> = table.values().collect();
        for (label, class) in self.classes.iter().enumerate().skip(1).filter(|(_, class)| named.contains(class)) {
            let label = label as u8;
            let without: Vec<&(&Item, &[u8])> =
                items.iter().filter(|(_, told)| !told.is_empty() && !told.contains(&label)).collect();
            let is_against = |(item, told): &&&(&Item, &[u8])| {
                item.in_mask.contains(&label) && !told.iter().any(|label| seen.contains(label))
            };
            let against: Vec<&&(&Item, &[u8])> = without.iter().filter(is_against).collect();
            let Some((item, told)) = against.first().filter(|_| against.len() * 2 > without.len()) else { continue };
            let keys: Vec<&String> = table.iter().filter(|(_, name)| *name == class).map(|(key, _)| key).collect();
            let (class, label_file) = (shown_of(class), self.label_file);
            let told: Vec<String> = told.iter().map(|&label| shown_of(&self.classes[usize::from(label)])).collect();
            return Err(DataError::File {
                path: self.options.root.to_owned(),
                problem: format!(
                    "`dataset.mask_values` says that {} is `{class}`, but of {} images with masks that {label_file} does not \
                     name `{class}` for, {} have it, and nothing that {label_file} names, e.g. {}: {} in {label_file}",
                    some_of(&keys),
                    without.len(),
                    against.len(),
                    shown_of(&item.id),
                    told.join(", ")
                ),
                hint: format!("{}, or mend {label_file}", label_maps(self.classes)),
            });
        }
        Ok(())
    }

    /// Notes of what labels and masks say against each other. Masks that have no class at all score nothing: they are
    /// taken away.
    ///
    /// # Errors
    /// The labels promise classes, and no mask has one that they promise.
    fn labels_against_masks(
        &self,
        list: &str,
        drafts: &[Draft],
        items: &mut [Item],
        notes: &mut Vec<String>,
    ) -> Result<(), DataError> {
        let label_file = self.label_file;
        let name = |labels: &[u8]| match labels {
            [] => "nothing".to_owned(),
            _ => labels.iter().map(|&label| shown_of(&self.classes[usize::from(label)])).collect::<Vec<_>>().join(", "),
        };
        let with_mask: Vec<(&Item, &Draft)> =
            items.iter().zip(drafts).filter(|(item, _)| item.mask.is_some()).collect();
        let both: Vec<(&Item, &[u8])> =
            with_mask.iter().filter_map(|(item, draft)| Some((*item, draft.told.as_deref()?))).collect();
        let promised = both.iter().filter(|(_, told)| !told.is_empty()).collect::<Vec<_>>();
        let fits = |(item, told): &&&(&Item, &[u8])| item.in_mask.iter().any(|label| told.contains(label));
        let n_fit = promised.iter().filter(fits).count();
        let all_background = with_mask.iter().all(|(item, _)| item.in_mask.is_empty());
        if n_fit == 0 && (promised.len() >= 2 || (all_background && !promised.is_empty())) {
            let (item, told) = promised[0];
            let masks: Vec<(&MaskFact, bool)> = with_mask
                .iter()
                .filter_map(|(item, draft)| {
                    let by_colour = matches!(item.mask, Some(Mask::Translated { reading: Reading::Colours(_), .. }));
                    Some((&draft.mask.as_ref()?.fact, by_colour))
                })
                .collect();
            let n = promised.len();
            let label = name(told);
            if !masks.is_empty() && masks.iter().all(|(fact, _)| fact.is_empty()) {
                return Err(DataError::File {
                    path: self.options.root.to_owned(),
                    problem: format!(
                        "the masks of all {} {list} images are empty: each is background (0) alone, without an object, though \
                         {label_file} names classes for {n}, e.g. {}: {label}",
                        masks.len(),
                        shown_of(&item.id)
                    ),
                    hint: "put the masks there that have the objects, or take the empty ones away: training needs no masks"
                        .to_owned(),
                });
            }
            let values: BTreeSet<_> = masks.iter().flat_map(|(fact, by_colour)| fact.shown(*by_colour)).collect();
            let has: Vec<&str> = values.iter().take(12).map(|(_, shown)| shown.as_str()).collect();
            let classes: BTreeSet<u8> = promised.iter().flat_map(|(_, told)| told.iter().copied()).collect();
            let of_item = with_mask.iter().find(|(other, _)| other.id == item.id);
            let odd = of_item.and_then(|(_, draft)| draft.mask.as_ref()?.fact.object());
            let say = match (one_value(masks.iter().map(|(fact, _)| *fact)), odd) {
                (Some(value), _) if classes.len() > 1 => {
                    format!("all objects are {value}; {}", label_maps(self.classes))
                }
                (_, Some(odd)) => format!(
                    "say what the values of masks mean, e.g. `dataset.mask_values = {{ \"{odd}\" = \"{}\" }}`",
                    name(&told[..1])
                ),
                (_, None) => label_maps(self.classes),
            };
            return Err(DataError::File {
                path: self.options.root.to_owned(),
                problem: format!(
                    "the masks have other classes than {label_file} in all {n} {list} images that have both, e.g. {}: {label} in \
                     {label_file}, {} in its mask (the masks have the {} {})",
                    shown_of(&item.id),
                    name(&item.in_mask),
                    if masks.iter().any(|(_, by_colour)| *by_colour) { "values" } else { "numbers" },
                    has.join(", ")
                ),
                hint: format!(
                    "{say}, or mend {label_file}; numbers are 0 for background, 1 for `{}` and so on, 255 for ignored pixels",
                    shown_of(&self.classes[1])
                ),
            });
        }
        let other: Vec<&(&Item, &[u8])> = both.iter().filter(|(item, told)| item.in_mask != *told).collect();
        if let Some((item, told)) = other.first() {
            notes.push(format!(
                "{label_file} and the masks differ for {} of {} {list} images that have both, e.g. {}: {} in {label_file}, {} in \
                 its mask",
                other.len(),
                both.len(),
                shown_of(&item.id),
                name(told),
                name(&item.in_mask)
            ));
        }
        let told: BTreeSet<u8> = promised.iter().flat_map(|(_, told)| told.iter().copied()).collect();
        let seen: BTreeSet<u8> = with_mask.iter().flat_map(|(item, _)| item.in_mask.iter().copied()).collect();
        let missing: Vec<u8> = told.difference(&seen).copied().collect();
        if !missing.is_empty() {
            let n = promised.iter().filter(|(_, told)| told.iter().any(|label| missing.contains(label))).count();
            notes.push(format!(
                "no mask of a {list} image has {}, which {label_file} has in {n} of these images: it is scored nowhere",
                name(&missing)
            ));
        }
        let n_background = with_mask.iter().filter(|(item, _)| item.in_mask.is_empty()).count();
        let n = with_mask.len();
        match n_background {
            0 => {}
            _ if n_background == n => {
                notes.push(format!(
                    "all {n} masks of {list} images have background alone, which is no score: nothing is scored against them"
                ));
                items.iter_mut().for_each(|item| item.mask = None);
            }
            _ => notes.push(format!("{n_background} of {n} masks of {list} images have background alone")),
        }
        Ok(())
    }

    fn labels_line<'b>(&self, drafts: &[Draft], items: impl Iterator<Item = &'b Item>) -> String {
        let label_file = self.label_file;
        let (mut n_of_masks, mut both, mut agree) = (0, 0, 0);
        for (draft, item) in drafts.iter().zip(items) {
            n_of_masks += usize::from(draft.labels.is_none() && draft.mask.is_some());
            if let (Some(told), Some(_)) = (&draft.told, &item.mask) {
                both += 1;
                agree += usize::from(item.in_mask == *told);
            }
        }
        let n = drafts.iter().filter(|draft| draft.labels.is_some()).count();
        let of = match (n_of_masks, n) {
            (0, n) => format!("of {} from {label_file}", counted(n, "image")),
            (n_of_masks, 0) => format!("of {} from their masks", counted(n_of_masks, "image")),
            (n_of_masks, n) => {
                format!("of {} from their masks, of {n} from {label_file}", counted(n_of_masks, "image"))
            }
        };
        match both {
            0 => of,
            _ => format!("{of}; {label_file} and mask agree in {agree} of the {both} images that have both"),
        }
    }
}

/// How many pixels of masks are ignored, and how many have each other number.
fn pixels_by_number(facts: &[&MaskFact]) -> (u64, BTreeMap<u32, u64>) {
    let mut pixels: BTreeMap<u32, u64> = BTreeMap::new();
    for (number, n) in facts.iter().flat_map(|fact| fact.pixels()) {
        *pixels.entry(number).or_default() += n;
    }
    (pixels.remove(&u32::from(IGNORE)).unwrap_or_default(), pixels)
}

/// `train 12 of 12, val 0 of 6 images; 12 read by number (0, 8, 15, 255); 2 with background alone`
fn masks_line(lists: [&str; 2], items: [&[Item]; 2], drafts: &[Draft]) -> String {
    const MAX_VALUES: usize = 24;
    let of = |k: usize| {
        let n = items[k].iter().filter(|item| item.mask.is_some()).count();
        format!("{} {n} of {}", lists[k], items[k].len())
    };
    let mut read: BTreeMap<&str, (usize, BTreeSet<u32>)> = BTreeMap::new();
    let (mut n_background, colours) = (0, "read by colour");
    for (item, draft) in items[0].iter().chain(items[1]).zip(drafts) {
        let how = match &item.mask {
            None => continue,
            Some(Mask::File(_) | Mask::Outlines { .. }) => "read by number",
            Some(Mask::Translated { reading: Reading::Colours(_), .. }) => colours,
            Some(Mask::Translated { .. }) => "translated by number",
        };
        let (n, values) = read.entry(how).or_default();
        *n += 1;
        if let Some(MaskDraft { fact, .. }) = &draft.mask {
            if how == colours { values.extend(fact.colours()) } else { values.extend(fact.numbers()) }
        }
        n_background += usize::from(item.in_mask.is_empty());
    }
    let mut parts = vec![format!("{}, {} images", of(0), of(1))];
    for (how, (n, values)) in &read {
        let value = |value: &u32| if *how == colours { format!("#{value:06x}") } else { value.to_string() };
        let shown: Vec<String> = values.iter().take(MAX_VALUES).map(value).collect();
        let more = if values.len() > MAX_VALUES { ", .." } else { "" };
        parts.push(format!("{n} {how} ({}{more})", shown.join(", ")));
    }
    if !read.is_empty() {
        parts.push(format!("{n_background} with background alone"));
    }
    parts.join("; ")
}

/// How many training images have each class, and a note of classes that none has.
pub(super) fn classes_line(classes: &[String], list: &str, train: &[Item]) -> (String, Option<String>) {
    let count = |label: usize| train.iter().filter(|item| item.labels.contains(&(label as u8))).count();
    let counts: Vec<(&String, usize)> = classes.iter().enumerate().skip(1).map(|(i, name)| (name, count(i))).collect();
    let none: Vec<&String> = counts.iter().filter(|(_, n)| *n == 0).map(|(name, _)| *name).collect();
    let there: Vec<String> =
        counts.iter().filter(|(_, n)| *n > 0).take(24).map(|(name, n)| format!("{} {n}", shown_of(name))).collect();
    let n_there = counts.len() - none.len();
    let more = if n_there > 24 { ", .." } else { "" };
    let line = format!("{n_there} of {} are in {list} images: {}{more}", counts.len(), there.join(", "));
    let note = (!none.is_empty()).then(|| {
        format!("no {list} image has a label of {} of {} classes: {}", none.len(), counts.len(), some_of(&none))
    });
    (line, note)
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
    use crate::data::mask_file::MaskRule;

    /// Notes without that of pictures that stand in both lists.
    pub(in crate::data) fn without_overlap(notes: &[String]) -> Vec<&str> {
        notes
            .iter()
            .map(String::as_str)
            .filter(|note| !note.contains("scores on what is trained on tell little"))
            .collect()
    }

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
        let (orientation, mask_values) = (OrientationPolicy::Auto, &MaskValues::Rule(MaskRule::Auto));
        let (masks, max_train, max_val) = (None, 0, 0);
        let name = "t";
        ScanOptions { name, root, masks, labels, orientation, mask_values, train, val, max_train, max_val, exclude }
    }
}
