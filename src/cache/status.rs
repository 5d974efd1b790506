//! What runs on a cache now, and how far it is: `status.json`, written while a run goes on, for those who ask from another
//! terminal. Nothing here is read to tell what is fresh, and what cannot be written costs a run nothing.

use std::io::Write;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::history::How;
use crate::data::door::read_regular;
use crate::data::temporary;

const FILE: &str = "status.json";
/// Bytes of the file.
const MOST_BYTES: u64 = 10_000_000;

/// A run on its way, or the last there was.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// In the history, if it is there.
    pub run: Option<u64>,
    /// Absolute path of the pipeline file.
    pub file: String,
    /// Overrides of the command line.
    pub sets: Vec<String>,
    /// The process, as the lock names it.
    pub who: String,
    pub pid: u32,
    pub host: String,
    /// Seconds since 1970.
    pub began: u64,
    /// When this file was written, which is every ten seconds, also where nothing happens.
    pub updated: u64,
    /// Units that finished, of those that had to run.
    pub done: usize,
    pub of: usize,
    pub failed: usize,
    /// Units that run now.
    pub running: Vec<RunningUnit>,
    /// The time that the units which are left may take, as far as it is known.
    pub seconds_left: Option<f64>,
    /// Stages that are still to run and of which nothing is known.
    pub unknown: Vec<String>,
    /// `None` while it goes on, and where it died.
    pub ended: Option<How>,
}

/// A unit that runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunningUnit {
    pub label: String,
    /// Seconds since 1970.
    pub since: u64,
    /// Steps that are done, of all, where it tells of them.
    pub steps: Option<(u64, u64)>,
}

impl Status {
    /// Writes it whole or not at all.
    pub fn write(&self, cache: &Path) -> std::io::Result<()> {
        let mut file = temporary(cache)?;
        file.write_all(&serde_json::to_vec(self)?)?;
        file.persist(cache.join(FILE)).map(drop).map_err(|error| error.error)
    }

    /// That of the last run; none where there was none, or what is there cannot be read.
    pub fn read(cache: &Path) -> Option<Self> {
        serde_json::from_slice(&read_regular(&cache.join(FILE), MOST_BYTES).ok()?).ok()
    }
}
