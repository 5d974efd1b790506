//! Runs of the past: the pipeline file as it was, the data it read, and the history in words.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::{Deserialize, Serialize};

use super::file::{Cell, Pipeline};
use super::graph::Graph;
use super::spec::Spec;
use super::value::with_paths;
use super::words::{date, some_of, span, table};
use crate::cache::history::{Began, Ended, How, Run};
use crate::data::text::counted;
use crate::data::{Dataset, FileRef, Item, Mask};
use crate::digest::BlobDigest;

/// What a variant is measured by, and its name for people.
pub const METRICS: [(&str, &str); 3] = [
    ("seed_miou", "seed mIoU"),
    ("pseudo_label_miou", "pseudo-label mIoU"),
    ("segmentation_miou", "segmentation mIoU"),
];

/// Images named in a line.
const MOST_NAMED: usize = 3;

/// A cell as it is kept.
#[derive(Serialize, Deserialize)]
struct KeptCell {
    name: String,
    variant: String,
    axes: Vec<(String, String)>,
    spec: Spec,
}

/// A pipeline with every field of every cell, as JSON. Paths are as seen from the file's folder, so that the same file
/// is the same wherever it stands.
pub fn normalised(pipeline: &Pipeline, folder: &Path) -> anyhow::Result<Vec<u8>> {
    let kept = |cell: &Cell| {
        let Cell { name, variant, axes, spec } = cell.clone();
        let seen = |path: PathBuf| path.strip_prefix(folder).map(Path::to_owned).unwrap_or(path);
        anyhow::Ok(KeptCell { name, variant, axes, spec: with_paths(&spec, seen)? })
    };
    Ok(serde_json::to_vec(&pipeline.cells.iter().map(kept).collect::<anyhow::Result<Vec<_>>>()?)?)
}

/// The pipeline that was kept, its file being in `folder`.
pub fn restored(kept: &[u8], name: &str, folder: &Path) -> anyhow::Result<Pipeline> {
    let cells: Vec<KeptCell> = serde_json::from_slice(kept).context("a program of other fields kept it")?;
    let cell = |KeptCell { name, variant, axes, spec }| {
        anyhow::Ok(Cell { name, variant, axes, spec: with_paths(&spec, |path| folder.join(path))? })
    };
    let cells = cells.into_iter().map(cell).collect::<anyhow::Result<_>>()?;
    Ok(Pipeline { name: name.to_owned(), cells, files: Vec::new(), sets: Vec::new() })
}

/// A digest of all that a data set gives: classes, and of each image its id, content, labels and mask.
pub fn data_digest(dataset: &Dataset) -> BlobDigest {
    let item = |list: &'static str| {
        move |item: &crate::data::Item| {
            let mask = item.mask.as_ref().map_or_else(String::new, |mask: &Mask| mask.digest().to_string());
            format!("{list}\t{}\t{}\t{:?}\t{mask}\n", item.id.escape_default(), item.image.digest, item.labels)
        }
    };
    let lines = dataset.train.iter().map(item("train")).chain(dataset.val.iter().map(item("val")));
    BlobDigest::of(format!("{:?}\n{}", dataset.classes, lines.collect::<String>()).as_bytes())
}

/// A data set and the files of weights, as a run read them.
pub type WasRead<'a> = (&'a Dataset, &'a [(PathBuf, BlobDigest)]);

/// In what two runs differ that read these, a line each.
pub fn changes_in_reads((data_was, weights_were): WasRead<'_>, (data, weights): WasRead<'_>) -> Vec<String> {
    let of_data = data_changes(data_was, data).into_iter().map(|line| format!("in the data: {line}"));
    let of_files = file_changes(weights_were, weights).into_iter().map(|line| format!("in the files: {line}"));
    of_data.chain(of_files).collect()
}

/// How many images of two data sets differ: in their content, list, labels or mask, or by being in one alone.
pub fn n_items_changed(was: &Dataset, is: &Dataset) -> usize {
    fn by_id(data: &Dataset) -> HashMap<&str, [Option<&Item>; 2]> {
        let mut items: HashMap<&str, [Option<&Item>; 2]> = HashMap::new();
        for (at, list) in [&data.train, &data.val].into_iter().enumerate() {
            list.iter().for_each(|item| items.entry(&item.id).or_default()[at] = Some(item));
        }
        items
    }
    let content = |item: &Option<&Item>| {
        item.map(|item| (item.image.digest, item.labels.clone(), item.mask.as_ref().map(Mask::digest)))
    };
    let (was, is) = (by_id(was), by_id(is));
    let is_same = |(id, items): &(&&str, &[Option<&Item>; 2])| {
        was.get(**id).is_some_and(|was| was.each_ref().map(content) == items.each_ref().map(content))
    };
    let n_new = is.iter().filter(|item| !is_same(item)).count();
    n_new + was.keys().filter(|id| !is.contains_key(*id)).count()
}

/// In what a data set differs from what it was, a line each; images are named by their ids and files.
fn data_changes(was: &Dataset, is: &Dataset) -> Vec<String> {
    let mut lines = Vec::new();
    if was.classes != is.classes {
        lines.push(format!("the classes were {}, and are {}", was.classes.join(", "), is.classes.join(", ")));
    }
    let names = |labels: &[u8], of: &Dataset| -> String {
        let name = |label: &u8| of.classes.get(usize::from(*label)).cloned().unwrap_or_else(|| label.to_string());
        if labels.is_empty() { "none".to_owned() } else { labels.iter().map(name).collect::<Vec<_>>().join(", ") }
    };
    fn by_id(items: &[Item]) -> HashMap<&str, &Item> {
        items.iter().map(|item| (item.id.as_str(), item)).collect()
    }
    let ids_is: HashSet<&str> = is.train.iter().chain(&is.val).map(|item| item.id.as_str()).collect();
    let lists = [("training", &was.train, &is.train, &was.val), ("validation", &was.val, &is.val, &was.train)];
    for (list, then, now, then_others) in lists {
        let (known, known_others) = (by_id(then), by_id(then_others));
        let gone = then.iter().filter(|item| !ids_is.contains(&*item.id));
        let gone: HashMap<BlobDigest, &Item> = gone.map(|item| (item.image.digest, item)).collect();
        let (mut added, mut moved, mut renamed) = (vec![], vec![], vec![]);
        let mut old_ids = HashSet::new();
        let (mut images, mut masks, mut readings, mut labels) = (vec![], vec![], vec![], vec![]);
        let (mut unmasked, mut masked) = (vec![], vec![]);
        for item in now {
            let id = item.id.as_str();
            let was_item: &Item = match (known.get(id), known_others.get(id), gone.get(&item.image.digest)) {
                (Some(was_item), ..) => was_item,
                (None, Some(was_item), _) => {
                    moved.push(item.id.clone());
                    was_item
                }
                (None, None, Some(was_item)) => {
                    renamed.push(format!("{} -> {id}", was_item.id));
                    old_ids.insert(was_item.id.as_str());
                    was_item
                }
                (None, None, None) => {
                    added.push(item.id.clone());
                    continue;
                }
            };
            let file = |file: &FileRef| format!("{} ({})", item.id, file.path.display());
            if was_item.image.digest != item.image.digest {
                images.push(file(&item.image));
            }
            let source = |mask: &Option<Mask>| match mask {
                Some(Mask::File(file) | Mask::Translated { file, reading: _ }) => {
                    Some((Some(file.clone()), file.digest))
                }
                Some(Mask::Outlines { digest, .. }) => Some((None, *digest)),
                None => None,
            };
            let (mask_was, mask_is) = (source(&was_item.mask), source(&item.mask));
            let digest = |mask: &Option<(Option<FileRef>, BlobDigest)>| mask.as_ref().map(|(_, digest)| *digest);
            let of_mask = |mask: &Option<Mask>| mask.as_ref().map(|mask| mask.digest());
            if mask_is.is_none() && mask_was.is_some() {
                unmasked.push(item.id.clone());
            } else if mask_was.is_none() && mask_is.is_some() {
                masked.push(item.id.clone());
            } else if digest(&mask_was) != digest(&mask_is) {
                let of_file = mask_is.and_then(|(file, _)| file);
                masks.push(of_file.map_or_else(|| item.id.clone(), |of_file| file(&of_file)));
            } else if of_mask(&was_item.mask) != of_mask(&item.mask) {
                readings.push(item.id.clone());
            }
            if was_item.labels != item.labels {
                labels.push(format!("{}: {} -> {}", item.id, names(&was_item.labels, was), names(&item.labels, is)));
            }
        }
        let is_gone = |item: &&Item| !ids_is.contains(&*item.id) && !old_ids.contains(&*item.id);
        let removed: Vec<String> = then.iter().filter(is_gone).map(|item| item.id.clone()).collect();
        let other = if list == "training" { "validation" } else { "training" };
        let (was_other, were_other) = (format!("{{}} was a {other} image"), format!("{{}} were {other} images"));
        for (items, one, several) in [
            (added, "{} is new", "{} are new"),
            (renamed, "{} has another id", "{} have other ids"),
            (moved, &*was_other, &*were_other),
            (removed, "{} is gone from the list", "{} are gone from the list"),
            (images, "{} has other content", "{} have other content"),
            (masks, "the mask of {} has other content", "the masks of {} have other content"),
            (unmasked, "{} has no mask any more", "{} have no mask any more"),
            (masked, "{} has a mask now", "{} have a mask now"),
            (readings, "the mask of {} is read in another way", "the masks of {} are read in another way"),
            (labels, "{} has other image-level labels", "{} have other image-level labels"),
        ] {
            if !items.is_empty() {
                let (n, said) = (items.len(), if items.len() == 1 { one } else { several });
                let said = said.replace("{}", &counted(n, &format!("{list} image")));
                lines.push(format!("{said}: {}", some_of(&items, MOST_NAMED)));
            }
        }
        let in_both: HashSet<&str> =
            now.iter().map(|item| item.id.as_str()).filter(|id| known.contains_key(id)).collect();
        let common = |items: &'_ [Item]| -> Vec<String> {
            items.iter().filter(|item| in_both.contains(&*item.id)).map(|item| item.id.clone()).collect()
        };
        if common(then) != common(now) {
            lines.push(format!("the {list} images stand in another order"));
        }
    }
    lines
}

/// Files that have other content than they had, a line each.
fn file_changes(was: &[(PathBuf, BlobDigest)], is: &[(PathBuf, BlobDigest)]) -> Vec<String> {
    let differs = |(path, now): &&(PathBuf, BlobDigest)| was.iter().any(|(then, of)| then == path && of != now);
    is.iter().filter(differs).map(|(path, _)| format!("`{}` has other content", path.display())).collect()
}

/// The stages of a graph and their versions.
pub fn versions(graph: &Graph) -> BTreeMap<String, u64> {
    graph.kinds().iter().map(|kind| (kind.stage.to_owned(), kind.version)).collect()
}

/// What of a run cannot be compared as it was: data and stages are those of now.
pub fn changed_since(run: &Run, variant: &str, data: BlobDigest, versions: &BTreeMap<String, u64>) -> Vec<String> {
    let number = run.run;
    let mut notes = Vec::new();
    let then = run.began.data.iter().find(|(name, _)| name == variant);
    if then.is_some_and(|(_, then)| *then != data) {
        notes.push(format!("run {number} read other data than there is now; units are those of the data of now"));
    }
    for (stage, version) in versions {
        match run.began.versions.get(stage) {
            Some(then) if then != version => {
                notes.push(format!("`{stage}` was version {then} in run {number} and is {version} now"));
            }
            _ => {}
        }
    }
    notes
}

/// A run as it is shown.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Shown {
    #[serde(flatten)]
    pub run: Run,
    /// `None` once it has ended.
    pub goes_on: Option<bool>,
}

impl Shown {
    /// `holder`: who works in the cache now.
    pub fn new(run: Run, holder: Option<&str>) -> Self {
        let goes_on = run.ended.is_none().then_some(holder == Some(run.began.who.as_str()));
        Self { run, goes_on }
    }
}

/// The history for people, the newest last.
pub fn text(runs: &[Shown]) -> String {
    let blocks = runs.iter().enumerate().map(|(at, Shown { run, goes_on })| {
        let Began { began, file, sets, digest, .. } = &run.began;
        let sets: String = sets.iter().map(|set| format!(" --set {set}")).collect();
        let head = format!("run {}  {} UTC  {file}{sets}  {}\n", run.run, date(*began), digest.short());
        let Some(ended) = &run.ended else {
            let state = if *goes_on == Some(true) { "goes on" } else { "was cut off" };
            return format!("{head}  {state}\n");
        };
        let same = runs[..at].iter().find(|of| has_metrics_of(&of.run, run));
        let metrics = match same {
            _ if ended.metrics.iter().all(|(_, of)| of.is_empty()) => String::new(),
            Some(same) => format!("  metrics as in run {}\n", same.run.run),
            None => indented(&(table(&metric_rows(ended)) + &remarks(ended))),
        };
        format!("{head}  {}\n{metrics}", outcome(*began, ended))
    });
    blocks.collect::<Vec<_>>().join("\n")
}

fn has_metrics_of(earlier: &Run, run: &Run) -> bool {
    let metrics = |run: &Run| run.ended.as_ref().map(|ended| ended.metrics.clone());
    earlier.began.file == run.began.file && metrics(earlier) == metrics(run)
}

fn outcome(began: u64, ended: &Ended) -> String {
    let Ended { ended, how, executed, reused, failed, .. } = ended;
    let how = match how {
        How::Finished => "finished after",
        How::Failed => "failed after",
        How::Interrupted => "interrupted after",
    };
    let failed = if *failed > 0 { format!(", {failed} failed") } else { String::new() };
    let took = match ended.saturating_sub(began) {
        seconds @ 0..60 => format!("{seconds} s"),
        seconds => span(seconds as f64),
    };
    format!("{how} {took}: {executed} units executed, {reused} reused{failed}")
}

fn metric_rows(ended: &Ended) -> Vec<Vec<String>> {
    let there: Vec<&(&str, &str)> =
        METRICS.iter().filter(|(name, _)| ended.metrics.iter().any(|(_, of)| of.contains_key(*name))).collect();
    let head = std::iter::once("variant").chain(there.iter().map(|(_, title)| *title)).map(str::to_owned);
    let row = |(variant, of): &(String, BTreeMap<String, f64>)| {
        let mark = if ended.remarks.iter().any(|(sick, _)| sick == variant) { "?" } else { "" };
        let cell =
            |(name, _): &&(&str, &str)| of.get(*name).map_or("-".to_owned(), |value| format!("{value:.1}{mark}"));
        std::iter::once(variant.clone()).chain(there.iter().map(cell)).collect()
    };
    std::iter::once(head.collect()).chain(ended.metrics.iter().map(row)).collect()
}

fn remarks(ended: &Ended) -> String {
    let line = |(variant, remarks): &(String, Vec<String>)| format!("? {variant}: {}\n", remarks.join("; "));
    ended.remarks.iter().map(line).collect()
}

fn indented(text: &str) -> String {
    text.lines().map(|line| format!("  {line}\n")).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn file(path: &str, content: &str) -> FileRef {
        FileRef { path: Arc::from(Path::new(path)), digest: BlobDigest::of(content.as_bytes()) }
    }

    fn item(id: &str, image: &str, mask: &str, labels: &[u8]) -> Item {
        let mask = (!mask.is_empty()).then(|| Mask::File(file(&format!("m/{id}.png"), mask)));
        let (labels, in_mask) = (labels.to_vec(), labels.to_vec());
        Item { id: id.into(), image: file(&format!("i/{id}.jpg"), image), mask, labels, in_mask, height: 8, width: 8 }
    }

    fn data(train: Vec<Item>, val: Vec<Item>) -> Dataset {
        let classes = ["background", "cat", "dog"].map(str::to_owned).to_vec();
        Dataset { name: "d".into(), classes, train, val, notes: Vec::new(), decided: Vec::new() }
    }

    #[test]
    fn what_changed_in_a_data_set_is_named() {
        let was = data(
            vec![
                item("a", "1", "1", &[1]),
                item("b", "2", "2", &[1]),
                item("c", "3", "", &[2]),
                item("d", "4", "4", &[]),
            ],
            vec![item("v", "5", "5", &[1])],
        );
        assert_eq!(data_changes(&was, &was), Vec::<String>::new());
        let now = data(
            vec![
                item("c", "3x", "3", &[2]),
                item("b", "2", "2x", &[1, 2]),
                item("a", "1", "1", &[1]),
                item("e", "6", "6", &[1]),
            ],
            vec![item("v", "5", "5", &[1]), item("w", "7", "7", &[1])],
        );
        insta::assert_snapshot!(data_changes(&was, &now).join("\n"), @"
        1 training image is new: e
        1 training image is gone from the list: d
        1 training image has other content: c (i/c.jpg)
        the mask of 1 training image has other content: b (m/b.png)
        1 training image has a mask now: c
        1 training image has other image-level labels: b: cat -> cat, dog
        the training images stand in another order
        1 validation image is new: w
        ");
        // One moved to the other list with other content, one got another name, one lost its mask.
        let now = data(
            vec![item("b", "2", "", &[1]), item("c2", "3", "3", &[1]), item("d", "4", "4", &[])],
            vec![item("v", "5", "5", &[1]), item("a", "1x", "1", &[1])],
        );
        insta::assert_snapshot!(data_changes(&was, &now).join("\n"), @"
        1 training image has another id: c -> c2
        1 training image has no mask any more: b
        1 training image has a mask now: c2
        1 training image has other image-level labels: c2: dog -> cat
        1 validation image was a training image: a
        1 validation image has other content: a (i/a.jpg)
        ");

        assert_eq!((n_items_changed(&was, &was), n_items_changed(&was, &now)), (0, 4));
        let fewer = Dataset { classes: was.classes[..2].to_vec(), ..data(was.train.clone(), was.val.clone()) };
        assert_eq!(data_changes(&was, &fewer), ["the classes were background, cat, dog, and are background, cat"]);

        let path = |path: &str| PathBuf::from(path);
        let of = |content: &str| BlobDigest::of(content.as_bytes());
        let (then, now) =
            ([(path("sam"), of("1")), (path("r50"), of("2"))], [(path("sam"), of("1")), (path("r50"), of("3"))]);
        assert_eq!(file_changes(&then, &now), ["`r50` has other content"]);
        assert_eq!(file_changes(&[], &now), Vec::<String>::new());
    }
}
