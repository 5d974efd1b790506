//! The sled index: small records only, all of them disposable. The only user of sled.
//!
//! Trees: `units` (UnitKey -> place of its manifest), `labels` (label -> key of its newest unit, for `why`),
//! `files` (path -> what its digest was), `facts` (name and digest -> a fact derived from content), `seconds`
//! (stage -> how long its last units took).

use std::path::Path;

use anyhow::Context;
use serde::{Deserialize, Serialize};

use super::manifest::Place;
use crate::artifact::{Manifest, decode, encode};
use crate::digest::{BlobDigest, UnitKey};

/// How many durations of a stage are kept.
const N_SECONDS: usize = 31;

/// What a file was when it was hashed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct FileRecord {
    pub(crate) size: u64,
    pub(crate) mtime_ns: i128,
    pub(crate) inode: u64,
    pub(crate) digest: BlobDigest,
}

#[derive(Debug)]
pub(crate) struct Index {
    db: sled::Db,
    units: sled::Tree,
    labels: sled::Tree,
    files: sled::Tree,
    facts: sled::Tree,
    seconds: sled::Tree,
}

impl Index {
    pub(crate) fn open(path: &Path) -> anyhow::Result<Self> {
        let config = sled::Config::new().path(path).cache_capacity(64 << 20).flush_every_ms(Some(500));
        let db = config.open().with_context(|| format!("could not open the index `{}`", path.display()))?;
        let tree = |name: &str| db.open_tree(name);
        Ok(Self {
            units: tree("units")?,
            labels: tree("labels")?,
            files: tree("files")?,
            facts: tree("facts")?,
            seconds: tree("seconds")?,
            db,
        })
    }

    pub(crate) fn place(&self, key: &UnitKey) -> anyhow::Result<Option<Place>> {
        self.units.get(key.as_bytes())?.map(|bytes| decode(&bytes)).transpose()
    }

    pub(crate) fn newest(&self, label: &str) -> anyhow::Result<Option<UnitKey>> {
        let found = self.labels.get(label)?;
        Ok(found.and_then(|bytes| Some(UnitKey::from_bytes(bytes.as_ref().try_into().ok()?))))
    }

    pub(crate) fn record(&self, manifest: &Manifest, place: &Place) -> anyhow::Result<()> {
        self.units.insert(manifest.key.as_bytes(), encode(place)?)?;
        self.labels.insert(manifest.label.as_bytes(), manifest.key.as_bytes())?;
        let stage = manifest.fingerprint.stage.as_bytes();
        let mut seconds = self.seconds(&manifest.fingerprint.stage)?;
        seconds.insert(0, manifest.seconds);
        seconds.truncate(N_SECONDS);
        self.seconds.insert(stage, encode(&seconds)?)?;
        Ok(())
    }

    /// Of the last units of a stage, newest first.
    pub(crate) fn seconds(&self, stage: &str) -> anyhow::Result<Vec<f64>> {
        Ok(self.seconds.get(stage)?.map(|bytes| decode(&bytes)).transpose()?.unwrap_or_default())
    }

    /// A mark that is there or not.
    pub(crate) fn mark(&self, name: &str, set: bool) -> anyhow::Result<()> {
        match set {
            true => self.labels.insert(name, &[0; 32])?,
            false => self.labels.remove(name)?,
        };
        Ok(())
    }

    pub(crate) fn forget(&self, key: &UnitKey) -> anyhow::Result<()> {
        self.units.remove(key.as_bytes())?;
        Ok(())
    }

    pub(crate) fn file(&self, path: &Path) -> Option<FileRecord> {
        let bytes = self.files.get(path.as_os_str().as_encoded_bytes()).ok()??;
        decode(&bytes).ok()
    }

    pub(crate) fn remember_file(&self, path: &Path, record: &FileRecord) -> anyhow::Result<()> {
        self.files.insert(path.as_os_str().as_encoded_bytes(), encode(record)?)?;
        Ok(())
    }

    pub(crate) fn fact(&self, key: &[u8]) -> Option<Vec<u8>> {
        Some(self.facts.get(key).ok()??.to_vec())
    }

    pub(crate) fn remember_fact(&self, key: &[u8], fact: &[u8]) -> anyhow::Result<()> {
        self.facts.insert(key, fact)?;
        Ok(())
    }

    pub(crate) fn flush(&self) -> anyhow::Result<()> {
        self.db.flush()?;
        Ok(())
    }
}
