//! The runs that were made here: `history/runs.jsonl`, append-only.
//!
//! A run has two lines, one when it begins and one when it ends, so a run that was killed is there as well. Writers
//! take turns by a lock of the file's own; readers need none. A line that was torn (a full disk, a power cut) is
//! skipped, and the next begins on a line of its own. `history/DIGEST.json` are the pipeline files that were run,
//! normalised, each once. All of it is for people: nothing here is read to tell what is fresh.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::store::{StoreError, write_whole};
use crate::digest::BlobDigest;
use crate::regular;

/// What is known when a run begins.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Began {
    /// Seconds since 1970.
    pub began: u64,
    /// Absolute path of the pipeline file.
    pub file: String,
    /// Overrides of the command line.
    pub sets: Vec<String>,
    /// Of the normalised file: what names [`History::file`].
    pub digest: BlobDigest,
    /// By variant, in the order of the file: a digest of the data set it reads.
    pub data: Vec<(String, BlobDigest)>,
    /// Files of weights that it reads.
    #[serde(default)]
    pub weights: Vec<(PathBuf, BlobDigest)>,
    /// Stages and their versions.
    pub versions: BTreeMap<String, u64>,
    /// The process, as the lock names it.
    pub who: String,
}

/// What is known when it ends.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ended {
    pub ended: u64,
    pub how: How,
    /// Units.
    pub executed: usize,
    pub reused: usize,
    pub failed: usize,
    /// By variant, in the order of the file: metrics that are there, in percent.
    pub metrics: Vec<(String, BTreeMap<String, f64>)>,
    /// Reasons not to trust them, by variant.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub remarks: Vec<(String, Vec<String>)>,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum How {
    Finished,
    /// Some units failed.
    Failed,
    /// By the user; the same command goes on from there.
    Interrupted,
}

/// One run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Run {
    /// From 1 on.
    pub run: u64,
    #[serde(flatten)]
    pub began: Began,
    /// `None`: it goes on, or was cut off: killed, or stopped at once.
    #[serde(flatten)]
    pub ended: Option<Ended>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    Began {
        run: u64,
        #[serde(flatten)]
        began: Began,
    },
    Ended {
        run: u64,
        #[serde(flatten)]
        ended: Ended,
    },
}

/// The history of a cache folder.
#[derive(Clone, Debug)]
pub struct History {
    folder: PathBuf,
}

impl History {
    pub fn new(cache: &Path) -> Self {
        Self { folder: cache.join("history") }
    }

    /// All runs, the oldest first; none where there is no history.
    pub fn runs(&self) -> Result<Vec<Run>, StoreError> {
        let path = self.path();
        match regular::read_own(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
            read => Ok(runs_in(&read.map_err(StoreError::io("read", &path))?)),
        }
    }

    /// Notes that a run has begun; gives its number.
    pub fn begin(&self, began: Began) -> Result<u64, StoreError> {
        self.append(|text| {
            let run = runs_in(text).iter().map(|run| run.run).max().unwrap_or(0) + 1;
            (run, Line::Began { run, began })
        })
    }

    /// Notes how a run ended.
    pub fn end(&self, run: u64, ended: Ended) -> Result<(), StoreError> {
        self.append(|_| ((), Line::Ended { run, ended }))
    }

    /// Keeps a normalised pipeline file, which its digest names from then on.
    pub fn keep_file(&self, bytes: &[u8]) -> Result<BlobDigest, StoreError> {
        let digest = BlobDigest::of(bytes);
        let path = self.folder.join(format!("{digest}.json"));
        if regular::read_own(&path).is_ok_and(|kept| kept == bytes) {
            return Ok(digest);
        }
        write_whole(&path, bytes).map_err(StoreError::io("write", &path))?;
        Ok(digest)
    }

    /// A file that was run, checked.
    pub fn file(&self, digest: &BlobDigest) -> Result<Vec<u8>, StoreError> {
        let path = self.folder.join(format!("{digest}.json"));
        let bytes = regular::read_own(&path).map_err(StoreError::io("read", &path))?;
        match BlobDigest::of(&bytes) {
            actual if actual == *digest => Ok(bytes),
            _ => Err(StoreError::io("read", &path)(std::io::Error::other("its bytes are not those that were kept"))),
        }
    }

    fn path(&self) -> PathBuf {
        self.folder.join("runs.jsonl")
    }

    /// Appends what `make` makes of what is there.
    fn append<T>(&self, make: impl FnOnce(&[u8]) -> (T, Line)) -> Result<T, StoreError> {
        let path = self.path();
        let write = || {
            fs::create_dir_all(&self.folder)?;
            let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
            regular::open_own(&path).map(drop).or_else(|error| match error.kind() {
                std::io::ErrorKind::NotFound => Ok(()),
                _ => Err(error),
            })?;
            let mut file = File::options().read(true).append(true).create(true).custom_flags(flags).open(&path)?;
            file.lock()?;
            let mut text = Vec::new();
            file.read_to_end(&mut text)?;
            let (given, line) = make(&text);
            // What was torn before stays a line of its own.
            let is_torn = text.last().is_some_and(|last| *last != b'\n');
            let line = format!("{}{}\n", if is_torn { "\n" } else { "" }, serde_json::to_string(&line)?);
            file.write_all(line.as_bytes())?;
            file.sync_data()?;
            Ok(given)
        };
        write().map_err(StoreError::io("write", &path))
    }
}

fn runs_in(text: &[u8]) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for line in text.split(|byte| *byte == b'\n') {
        match serde_json::from_slice(line) {
            Ok(Line::Began { run, began }) => runs.push(Run { run, began, ended: None }),
            Ok(Line::Ended { run, ended }) => {
                if let Some(of) = runs.iter_mut().rev().find(|of| of.run == run) {
                    of.ended = Some(ended);
                }
            }
            Err(_) => {}
        }
    }
    runs
}
