//! Whether a file may be written: the one owner of that question for everything that is written outside of the cache.
//!
//! A command writes into a folder that is new or empty, or that has the record of an earlier command; and there over no file
//! but those that are on the record with the bytes that they have now, and as made from the same. `--force` lifts both.
//! Nothing lifts this: no file takes the place of one that the pipeline reads, and none is added to the folders of its data
//! or to its cache. A folder or a file is known by device and inode, so that links and other spellings of its name change
//! nothing.
//!
//! The record is `.s2c-pipe` in the folder, a line of JSON for each file, written before the file itself: a process that is
//! killed in between leaves nothing that the same command would refuse. What is refused is refused before anything is
//! written: see [`ResultsFolder::check`].

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

use anyhow::Context;
use serde::{Deserialize, Serialize};

use super::Hinted;
use super::foreign::first_foreign;
use crate::cache::locked;
use crate::data::door::read_regular;
use crate::data::temporary;
use crate::digest::BlobDigest;

/// The record, in the folder that it is of.
const RECORD: &str = ".s2c-pipe";
/// Bytes of a record: a million files have less.
const MOST_BYTES: u64 = 1 << 30;
/// Digests of a file that are remembered, the newest: what was there, and what runs that were killed meant to write.
const MOST_DIGESTS: usize = 8;
/// Bytes that a file system takes as a name.
const MOST_NAME: usize = 255;

/// Device and inode.
type Identity = (u64, u64);

fn identity(path: &Path) -> Option<Identity> {
    fs::metadata(path).ok().map(|found| (found.dev(), found.ino()))
}

/// What is never written over: files and folders that the command reads.
#[derive(Debug, Default)]
pub(super) struct Reads {
    files: HashMap<Identity, String>,
    /// What a folder is, and whether that holds for the folders in it.
    folders: HashMap<Identity, (String, bool)>,
    /// Those of files, which were looked at.
    parents: HashSet<PathBuf>,
}

impl Reads {
    /// `what`: as in "is a mask of the data set".
    pub(super) fn add_file(&mut self, path: &Path, what: &str) {
        if let Some(identity) = identity(path) {
            self.files.entry(identity).or_insert_with(|| what.to_owned());
        }
    }

    /// A folder that gets no new files, nor do those in it.
    pub(super) fn add_folder(&mut self, path: &Path, what: &str) {
        if let Some(identity) = identity(path) {
            self.folders.insert(identity, (what.to_owned(), true));
        }
    }

    /// A file, and its folder, which gets no new files either.
    pub(super) fn add_file_and_folder(&mut self, path: &Path, what: &str, folder: &str) {
        self.add_file(path, what);
        let Some(parent) = path.parent() else { return };
        // Of a data set all images mostly have one.
        if self.parents.contains(parent) {
            return;
        }
        self.parents.insert(parent.to_owned());
        if let Some(identity) = identity(parent) {
            self.folders.entry(identity).or_insert_with(|| (folder.to_owned(), false));
        }
    }

    /// What a file is that is read, if it is one.
    fn file(&self, path: &Path) -> Option<&str> {
        self.files.get(&identity(path)?).map(String::as_str)
    }

    /// Of a folder that gets no new files: the folder that is the reason, and what that is. `real`: its path without links.
    fn closed(&self, real: &Path) -> Option<(PathBuf, String)> {
        real.ancestors().enumerate().find_map(|(depth, folder)| {
            let (what, is_deep) = self.folders.get(&identity(folder)?)?;
            (*is_deep || depth == 0).then(|| (folder.to_owned(), what.clone()))
        })
    }
}

/// A path without links and `..`, also where its end is not there yet.
fn without_links(path: &Path) -> PathBuf {
    let mut real = PathBuf::new();
    for part in std::path::absolute(path).unwrap_or_else(|_| path.to_owned()).components() {
        match part {
            Component::ParentDir => drop(real.pop()),
            part => real.push(part),
        }
        if let Ok(found) = fs::canonicalize(&real) {
            real = found;
        }
    }
    real
}

/// How the folder was asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    /// The option that names another folder: `--to DIR`.
    pub(super) option: &'static str,
    pub(super) force: bool,
}

/// A folder that a command writes into.
#[derive(Debug)]
pub(super) struct ResultsFolder {
    path: PathBuf,
    asked: Asked,
    reads: Reads,
    record: Mutex<Record>,
    /// Folders in it that were looked at.
    looked: Mutex<HashMap<PathBuf, Looked>>,
    /// A file of somebody else in a folder without a record.
    foreign: Option<String>,
}

/// What a folder is that files go to.
#[derive(Clone, Debug, Default)]
struct Looked {
    /// Why it gets none: see [`Reads::closed`].
    closed: Option<(PathBuf, String)>,
    /// Where a link leads out of the folder of results, and to files of somebody else.
    linked: Option<(PathBuf, String)>,
}

/// What a name in the folder stands for.
enum Standing {
    Free,
    /// Made here, with these bytes if it is one that does not grow.
    Ours(Option<BlobDigest>),
    /// Why it is not written over without `--force`.
    Foreign(String),
    /// Why it is never written over.
    Never(String),
}

impl ResultsFolder {
    /// Looks at a folder, which need not be there, and changes nothing.
    ///
    /// # Errors
    /// It is no folder, or one of what is read.
    pub(super) fn look(path: &Path, asked: Asked, reads: Reads) -> anyhow::Result<Self> {
        let shown = path.display();
        let hint = || format!("give a new or an empty folder: {}", asked.option);
        if path.as_os_str().is_empty() {
            return Err(Hinted::error("the folder to write to has no name", hint()));
        }
        if fs::metadata(path).is_ok_and(|found| !found.is_dir()) {
            return Err(Hinted::error(format!("`{shown}` is a file, not a folder"), hint()));
        }
        let record = Record::read(path).with_context(|| format!("reading `{}`", path.join(RECORD).display()))?;
        // A folder whose folders are all of earlier commands was made by these.
        let is_ours = |name: &str| path.join(name).join(RECORD).is_file();
        let foreign = match record.is_there {
            true => None,
            false => first_foreign(path, &[RECORD], &is_ours).with_context(|| format!("looking into `{shown}`"))?,
        };
        let (record, looked) = (Mutex::new(record), Mutex::default());
        let folder = Self { path: path.to_owned(), asked, reads, record, looked, foreign };
        // Whatever is written into it would be forbidden.
        match folder.looked(RECORD).closed {
            None => Ok(folder),
            Some((closed, what)) => {
                Err(never(asked, format!("nothing is written into `{}`, {what}", closed.display())))
            }
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn path_of(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Looks at all that is going to be written, before anything is: names, and what each is made from.
    ///
    /// # Errors
    /// The folder is of somebody else, or a name stands for what is not written over, or is none within the folder.
    pub(super) fn check<'a>(&self, targets: impl IntoIterator<Item = (&'a str, &'a str)>) -> anyhow::Result<()> {
        let Asked { option, force } = self.asked;
        let (mut first, mut n_more) = (None, 0);
        for (name, from) in targets {
            match self.standing(name, from)? {
                Standing::Free | Standing::Ours(_) => {}
                Standing::Never(why) => return Err(never(self.asked, why)),
                Standing::Foreign(_) if force => {}
                Standing::Foreign(why) if first.is_none() => first = Some((name, why)),
                Standing::Foreign(_) => n_more += 1,
            }
        }
        if let Some((name, why)) = first {
            let more = if n_more > 0 { format!("; so are {n_more} more") } else { String::new() };
            let message = format!("`{}` {why}{more}", self.path_of(name).display());
            return Err(Hinted::error(
                message,
                format!("give another folder, {option}, or add --force to write over it"),
            ));
        }
        match &self.foreign {
            Some(name) if !force => {
                let message =
                    format!("`{}` has files that s2c-pipe did not make, such as `{name}`", self.path.display());
                let hint = format!("give a new or an empty folder, {option}, or add --force to write into this one");
                Err(Hinted::error(message, hint))
            }
            _ => Ok(()),
        }
    }

    /// The same, of what `--force` does not change alone.
    pub(super) fn check_never<'a>(&self, names: impl IntoIterator<Item = &'a str>) -> anyhow::Result<()> {
        names.into_iter().try_for_each(|name| match self.standing(name, "")? {
            Standing::Never(why) => Err(never(self.asked, why)),
            Standing::Free | Standing::Ours(_) | Standing::Foreign(_) => Ok(()),
        })
    }

    /// Writes down that the folder is in use and, where it is of a pipeline file, of which: its path from the folder.
    pub(super) fn begin(&self, of: Option<&Path>) -> anyhow::Result<()> {
        self.check([])?;
        let mut record = self.record();
        let of = of.map(|of| of.to_string_lossy().into_owned());
        if record.is_there && (of.is_none() || record.of == of) {
            return Ok(());
        }
        record.append(&self.path, Line { of, ..Line::default() })
    }

    /// Writes a file whole or not at all; `from`: what it is made from, where the folder may have files of several such.
    /// Where these bytes are there already nothing is done.
    pub(super) fn put(&self, name: &str, from: &str, bytes: &[u8]) -> anyhow::Result<()> {
        let digest = BlobDigest::of(bytes);
        if matches!(self.standing(name, from)?, Standing::Ours(Some(there)) if there == digest) {
            return Ok(());
        }
        self.check([(name, from)])?;
        self.note(name, from, Some(digest))?;
        write_whole(&self.path_of(name), bytes)
    }

    /// Appends to a file what is new, since its readers have it open; another beginning replaces the file.
    pub(super) fn grow(&self, name: &str, bytes: &[u8]) -> anyhow::Result<()> {
        self.check([(name, "")])?;
        self.note(name, "", None)?;
        let path = self.path_of(name);
        // Through a link it would be another file that grows.
        let is_alone = fs::symlink_metadata(&path).is_ok_and(|found| found.is_file() && found.nlink() == 1);
        let old = if is_alone { fs::read(&path).ok() } else { None };
        match old {
            Some(old) if bytes.starts_with(&old) => {
                let file = File::options().append(true).open(&path);
                let written = file.and_then(|mut file| file.write_all(&bytes[old.len()..]));
                written.with_context(|| format!("writing `{}`", path.display()))
            }
            _ => write_whole(&path, bytes),
        }
    }

    fn record(&self) -> MutexGuard<'_, Record> {
        locked(&self.record)
    }

    /// Before the file itself is written.
    fn note(&self, name: &str, from: &str, digest: Option<BlobDigest>) -> anyhow::Result<()> {
        let mut record = self.record();
        let known = record.made.get(name);
        if known.is_some_and(|made| made.from == from && made.digests.last() == Some(&digest)) {
            return Ok(());
        }
        let line = Line { file: Some(name.to_owned()), from: from.to_owned(), blake3: digest, ..Line::default() };
        record.append(&self.path, line)
    }

    fn standing(&self, name: &str, from: &str) -> anyhow::Result<Standing> {
        let parts: Vec<Component<'_>> = Path::new(name).components().collect();
        let is_within = !parts.is_empty() && parts.iter().all(|part| matches!(part, Component::Normal(_)));
        anyhow::ensure!(is_within, "`{name}` is no name of a file within `{}`", self.path.display());
        let path = self.path_of(name);
        if let Some(what) = self.reads.file(&path) {
            let why = format!("`{}` would be overwritten by a result, and it is {what}", path.display());
            return Ok(Standing::Never(why));
        }
        let Looked { closed, linked } = self.looked(name);
        if let Some((folder, what)) = closed {
            return Ok(Standing::Never(written_into(&path, &folder, &what)));
        }
        if let Some((folder, foreign)) = linked {
            let folder = folder.display();
            return Ok(Standing::Foreign(format!(
                "would be written through a link into `{folder}`, which has files that s2c-pipe did not make, such as `{foreign}`"
            )));
        }
        let there = |why: &str| Standing::Foreign(format!("is there already, and {why}"));
        let Ok(found) = fs::symlink_metadata(&path) else { return Ok(Standing::Free) };
        let kind = found.file_type();
        if kind.is_dir() {
            return Ok(Standing::Never(format!("`{}` is a folder, where a file would be", path.display())));
        }
        if !kind.is_file() {
            let what = if kind.is_symlink() { "it is a link" } else { "it is no regular file" };
            return Ok(there(what));
        }
        let known = self.record().made.get(name).cloned();
        let Some(Made { digests, from: was }) = known else {
            return Ok(there("s2c-pipe did not make it"));
        };
        let digest = match digests.last() {
            Some(Some(_)) => Some(digest_of(&path).with_context(|| format!("reading `{}`", path.display()))?),
            _ => None,
        };
        Ok(match digests.contains(&digest) {
            false => there("it was changed since s2c-pipe made it"),
            true if was != from => there(&format!("it is made from {was}, not from {from}")),
            true => Standing::Ours(digest),
        })
    }

    /// The folder of a name.
    fn looked(&self, name: &str) -> Looked {
        let path = self.path_of(name);
        let folder = path.parent().unwrap_or(Path::new("."));
        if let Some(known) = locked(&self.looked).get(folder) {
            return known.clone();
        }
        let real = without_links(folder);
        let is_out = !real.starts_with(without_links(&self.path));
        let within = Path::new(name).parent().unwrap_or(Path::new(""));
        let is_ours = |name: &str| self.record().made.contains_key(&*within.join(name).to_string_lossy());
        // What cannot be listed cannot be written into.
        let foreign = if is_out { first_foreign(&real, &[], &is_ours).ok().flatten() } else { None };
        let looked = Looked { closed: self.reads.closed(&real), linked: foreign.map(|foreign| (real, foreign)) };
        locked(&self.looked).insert(folder.to_owned(), looked.clone());
        looked
    }
}

fn written_into(path: &Path, folder: &Path, what: &str) -> String {
    format!("`{}` would be written into `{}`, {what}", path.display(), folder.display())
}

fn never(Asked { option, .. }: Asked, why: String) -> anyhow::Error {
    Hinted::error(why, format!("give another folder, {option}; --force does not change this"))
}

/// A file's name of somebody's name and an ending: the beginning and a digest where both are longer than file systems take.
pub(super) fn file_name(name: &str, ending: &str) -> String {
    let (folders, last) = name.rsplit_once('/').map_or(("", name), |(folders, last)| (folders, last));
    let last = crate::pipeline::names::shortened(last, MOST_NAME - ending.len());
    if folders.is_empty() { format!("{last}{ending}") } else { format!("{folders}/{last}{ending}") }
}

/// The pipeline file that a folder is of, if it is written down: its path from the folder.
pub(super) fn file_of(folder: &Path) -> Option<PathBuf> {
    Record::read(folder).ok()?.of.map(PathBuf::from)
}

fn digest_of(path: &Path) -> io::Result<BlobDigest> {
    Ok(BlobDigest::of(&crate::data::read_shared(path)?))
}

fn write_whole(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder).with_context(|| format!("making `{}`", folder.display()))?;
    let what = || format!("writing `{}`", path.display());
    let mut file = temporary(folder).with_context(what)?;
    file.write_all(bytes).with_context(what)?;
    file.persist(path).with_context(what)?;
    Ok(())
}

/// A line of the record.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Line {
    /// The pipeline file that the folder is of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    of: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    file: Option<String>,
    /// What it is made from.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    from: String,
    /// Of the file's bytes; none of one that grows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    blake3: Option<BlobDigest>,
}

/// A file that was made here.
#[derive(Clone, Debug, Default)]
struct Made {
    from: String,
    /// The newest last; `None` where it grows.
    digests: Vec<Option<BlobDigest>>,
}

#[derive(Debug, Default)]
struct Record {
    is_there: bool,
    /// The last line was torn.
    is_torn: bool,
    of: Option<String>,
    made: HashMap<String, Made>,
}

impl Record {
    /// Lines that are not read, as one that was torn, tell nothing.
    fn read(folder: &Path) -> io::Result<Self> {
        let path = folder.join(RECORD);
        match fs::symlink_metadata(&path) {
            Ok(found) if found.is_file() => {}
            Ok(_) => return Err(io::Error::other("it is no regular file, and so no record of s2c-pipe")),
            Err(_) => return Ok(Self::default()),
        }
        let bytes = read_regular(&path, MOST_BYTES)?;
        let is_torn = bytes.last().is_some_and(|last| *last != b'\n');
        let mut record = Self { is_there: true, is_torn, ..Self::default() };
        let lines = bytes.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok());
        lines.for_each(|line| record.take(line));
        Ok(record)
    }

    fn take(&mut self, line: Line) {
        let Line { of, file, from, blake3 } = line;
        self.of = of.or(self.of.take());
        if let Some(file) = file {
            let made = self.made.entry(file).or_default();
            made.from = from;
            made.digests.retain(|known| *known != blake3);
            made.digests.push(blake3);
            let n_old = made.digests.len().saturating_sub(MOST_DIGESTS);
            made.digests.drain(..n_old);
        }
    }

    fn append(&mut self, folder: &Path, line: Line) -> anyhow::Result<()> {
        let path = folder.join(RECORD);
        fs::create_dir_all(folder).with_context(|| format!("making `{}`", folder.display()))?;
        let torn = if self.is_torn { "\n" } else { "" };
        let text = format!("{torn}{}\n", serde_json::to_string(&line)?);
        let file = File::options().append(true).create(true).open(&path);
        file.and_then(|mut file| file.write_all(text.as_bytes()))
            .with_context(|| format!("writing `{}`", path.display()))?;
        (self.is_there, self.is_torn) = (true, false);
        self.take(line);
        Ok(())
    }
}
