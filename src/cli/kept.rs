//! What a run read, as it is kept in the cache: tables are made from records alone where data and weights are gone.
//!
//! `history/read/KEY.json` says of a data set, or of a file of weights, which content a pipeline had under its name when it
//! last ran; `history/read/DIGEST.data.json` is what the graph needs to know of a data set. Nothing here is read where the
//! files are there.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::experiment::{Experiment, now};
use super::foreign::first_foreign;
use super::out::relative;
use crate::cache::{Cache, locked};
use crate::data::door::read_regular;
use crate::data::mask_file::Reading;
use crate::data::{Dataset, FileMemo, FileRef, Item, Mask, temporary};
use crate::digest::BlobDigest;
use crate::pipeline::past::data_digest;
use crate::pipeline::spec::DatasetSpec;
use crate::pipeline::value::named_paths;
use crate::pipeline::words::date;

/// Bytes of a file: a million images have less.
const MOST_BYTES: u64 = 1 << 30;

/// Which content stood behind a name.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Pointer {
    digest: BlobDigest,
    /// Of a data set: what figures on it are called.
    name: String,
    /// Whether `precision = "auto"` meant bf16 on that machine.
    bf16: bool,
    /// Seconds since 1970.
    when: u64,
}

#[derive(Serialize, Deserialize)]
struct KeptData {
    classes: Vec<String>,
    train: Vec<KeptItem>,
    val: Vec<KeptItem>,
}

#[derive(Serialize, Deserialize)]
struct KeptItem {
    id: String,
    image: (PathBuf, BlobDigest),
    mask: Option<KeptMask>,
    labels: Vec<u8>,
    in_mask: Vec<u8>,
    height: usize,
    width: usize,
}

#[derive(Serialize, Deserialize)]
enum KeptMask {
    File(PathBuf, BlobDigest),
    Translated(PathBuf, BlobDigest, Reading),
    /// Without the outlines: nothing is painted here.
    Outlines(BlobDigest),
}

impl KeptItem {
    fn new(item: &Item) -> Self {
        let Item { id, image, mask, labels, in_mask, height, width } = item;
        let mask = mask.as_ref().map(|mask| match mask {
            Mask::File(FileRef { path, digest }) => KeptMask::File(path.to_path_buf(), *digest),
            Mask::Translated { file: FileRef { path, digest }, reading } => {
                KeptMask::Translated(path.to_path_buf(), *digest, reading.clone())
            }
            Mask::Outlines { digest, bytes: _ } => KeptMask::Outlines(*digest),
        });
        let (id, image) = (id.clone(), (image.path.to_path_buf(), image.digest));
        Self { id, image, mask, labels: labels.clone(), in_mask: in_mask.clone(), height: *height, width: *width }
    }

    fn item(self) -> Item {
        let Self { id, image, mask, labels, in_mask, height, width } = self;
        let file = |(path, digest): (PathBuf, BlobDigest)| FileRef { path: path.into(), digest };
        let mask = mask.map(|mask| match mask {
            KeptMask::File(path, digest) => Mask::File(file((path, digest))),
            KeptMask::Translated(path, digest, reading) => Mask::Translated { file: file((path, digest)), reading },
            KeptMask::Outlines(digest) => Mask::Outlines { bytes: Arc::from([]), digest },
        });
        Item { id, image: file(image), mask, labels, in_mask, height, width }
    }
}

/// What runs of a pipeline file read.
pub(super) struct Kept {
    folder: PathBuf,
    /// That of the pipeline file: paths are seen from there too, so that a folder with all of it may be moved.
    from: PathBuf,
}

impl Kept {
    pub(super) fn new(cache: &Cache, file: &Path) -> Self {
        let file = std::path::absolute(file).unwrap_or_else(|_| file.to_owned());
        let from = file.parent().unwrap_or(Path::new("/")).to_owned();
        Self { folder: cache.folder().join("history/read"), from }
    }

    /// Keeps what a run reads.
    pub(super) fn keep(&self, experiment: &Experiment, bf16: bool) -> io::Result<()> {
        let mut seen: Vec<*const Dataset> = Vec::new();
        for (cell, units) in experiment.pipeline.cells.iter().zip(&experiment.cells) {
            let data = &units.dataset;
            if !seen.contains(&Arc::as_ptr(data)) {
                seen.push(Arc::as_ptr(data));
                let digest = data_digest(data);
                let path = self.data(&digest);
                if !path.exists() {
                    let items = |items: &[Item]| items.iter().map(KeptItem::new).collect();
                    let (classes, train, val) = (data.classes.clone(), items(&data.train), items(&data.val));
                    write(&path, &KeptData { classes, train, val })?;
                }
                let pointer = Pointer { digest, name: data.name.clone(), bf16, when: now() };
                self.point(&self.names_of_data(&cell.spec.dataset), pointer)?;
            }
            for (field, path) in named_paths(&cell.spec).into_iter().filter(|(field, _)| field.ends_with(".weights")) {
                let known = experiment.weights.iter().find(|(known, _)| *known == path);
                if let Some((_, digest)) = known {
                    let pointer = Pointer { digest: *digest, name: field.to_owned(), bf16, when: now() };
                    self.point(&self.names_of_weights(&path), pointer)?;
                }
            }
        }
        Ok(())
    }

    /// Where it says the same already it is left as it is.
    fn point(&self, names: &[PathBuf], pointer: Pointer) -> io::Result<()> {
        names.iter().try_for_each(|name| match read::<Pointer>(name) {
            Some(known)
                if (Pointer { when: known.when, ..Pointer { name: pointer.name.clone(), ..pointer } }) == known =>
            {
                Ok(())
            }
            _ => write(name, &pointer),
        })
    }

    fn data(&self, digest: &BlobDigest) -> PathBuf {
        self.folder.join(format!("{digest}.data.json"))
    }

    /// By the whole path and by that from the pipeline file.
    fn names(&self, what: &str, path: &Path) -> Vec<PathBuf> {
        let paths = [path.to_owned(), relative(&self.from, path)];
        let name = |path: PathBuf| BlobDigest::of(format!("{what}\n{}", path.display()).as_bytes());
        paths.into_iter().map(|path| self.folder.join(format!("{}.json", name(path)))).collect()
    }

    fn names_of_data(&self, spec: &DatasetSpec) -> Vec<PathBuf> {
        let root = spec.root.clone().unwrap_or_default();
        let rest = DatasetSpec { root: None, ..spec.clone() };
        self.names(&format!("data {}", serde_json::to_string(&rest).unwrap_or_default()), &root)
    }

    fn names_of_weights(&self, path: &Path) -> Vec<PathBuf> {
        self.names("weights", path)
    }

    /// A data set that is gone, as a run read it; and whether `precision = "auto"` meant bf16 there.
    pub(super) fn dataset(&self, spec: &DatasetSpec) -> Option<(Dataset, bool)> {
        let root = spec.root.clone().unwrap_or_default();
        let is_gone =
            spec.root.is_none() || !root.is_dir() || matches!(first_foreign(&root, &[], &|_| false), Ok(None));
        let pointer = self.names_of_data(spec).iter().find_map(|name| read::<Pointer>(name)).filter(|_| is_gone)?;
        let data = self.dataset_of(&pointer.digest)?;
        let note = format!(
            "the data in `{}` are not here: what is shown is of those that a run read, {} UTC",
            root.display(),
            date(pointer.when)
        );
        Some((Dataset { name: pointer.name, notes: vec![note], ..data }, pointer.bf16))
    }

    /// A data set that a run read, by its digest.
    pub(super) fn dataset_of(&self, digest: &BlobDigest) -> Option<Dataset> {
        let KeptData { classes, train, val } = read(&self.data(digest))?;
        let items = |items: Vec<KeptItem>| items.into_iter().map(KeptItem::item).collect();
        let (train, val) = (items(train), items(val));
        let data = Dataset { name: String::new(), classes, train, val, notes: Vec::new(), decided: Vec::new() };
        // What was kept is what it says.
        (data_digest(&data) == *digest).then_some(data)
    }
}

/// Digests of files, of those that are gone as a run had them.
pub(super) struct KeptMemo<'a> {
    pub(super) cache: &'a Cache,
    pub(super) kept: &'a Kept,
    /// Whether `precision = "auto"` meant bf16 where they were there; notes on them.
    pub(super) gone: Mutex<(Option<bool>, Vec<String>)>,
}

impl FileMemo for KeptMemo<'_> {
    fn digest(&self, path: &Path) -> anyhow::Result<BlobDigest> {
        let is_gone = fs::metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
        let names = self.kept.names_of_weights(path);
        match names.iter().find_map(|name| read::<Pointer>(name)).filter(|_| is_gone) {
            None => self.cache.digest(path),
            Some(Pointer { digest, bf16, when, name: _ }) => {
                let note = format!("`{}` is not here: taken as a run had it, {} UTC", path.display(), date(when));
                let mut gone = locked(&self.gone);
                gone.0 = Some(bf16);
                if !gone.1.contains(&note) {
                    gone.1.push(note);
                }
                Ok(digest)
            }
        }
    }

    fn fact(&self, name: &str, of: &BlobDigest) -> Option<Vec<u8>> {
        self.cache.fact(name, of)
    }

    fn remember(&self, name: &str, of: &BlobDigest, fact: &[u8]) {
        self.cache.remember(name, of, fact);
    }
}

fn read<T: DeserializeOwned>(path: &Path) -> Option<T> {
    serde_json::from_slice(&read_regular(path, MOST_BYTES).ok()?).ok()
}

fn write(path: &Path, value: &impl Serialize) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let mut file = temporary(folder)?;
    io::Write::write_all(&mut file, &serde_json::to_vec(value)?)?;
    file.persist(path).map(drop).map_err(|error| error.error)
}
