//! The one door to stored results.
//!
//! ```text
//! cache/
//!   blobs/ab/cdef..      bytes named by BLAKE3: embeddings, SE maps, checkpoints, pictures
//!   manifests/*.log      append-only records of finished units: the truth
//!   index/               sled: where a unit's manifest is, digests of files; made again by `cache rebuild`
//!   datasets/            data sets the program made itself
//!   scratch/             half-done long units; losing it costs time only
//!   lock                 held while a process works here, with its name inside
//! ```
//!
//! Order of writing: blobs, then the manifest, then the index. So a unit is finished when its manifest is whole, and
//! a process may be killed at any moment.

mod index;
mod lock;
mod manifest;
mod store;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::artifact::Manifest;
use crate::data::FileMemo;
use crate::digest::{BlobDigest, UnitKey};
use index::{FileRecord, Index};
use lock::Lock;
use manifest::{ManifestLog, Place};
pub use store::{BlobStore, StoreError};

/// A file younger than this when it was hashed may change again within the clock's granularity: not remembered.
const SETTLED_NS: i128 = 2_000_000_000;

/// A cache folder, locked by this process.
#[derive(Debug)]
pub struct Cache {
    folder: PathBuf,
    store: BlobStore,
    index: Index,
    log: Mutex<ManifestLog>,
    /// Digests of files hashed now; young files are hashed once a process.
    hashed: Mutex<HashMap<PathBuf, FileRecord>>,
    _lock: Lock,
}

/// How much of the store a stage holds.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct StageUse {
    pub units: usize,
    /// Bytes of blobs; one that several units share counts once.
    pub bytes: u64,
}

/// What a check of all blobs found.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct VerifyReport {
    pub blobs: usize,
    pub bytes: u64,
    /// Blobs whose bytes were not those of their name; removed.
    pub corrupt: Vec<BlobDigest>,
    /// Labels of units with a blob that is gone: they run again when something needs them.
    pub incomplete: Vec<String>,
}

/// What a collection removed, or would remove.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct GcReport {
    pub removed_blobs: usize,
    pub removed_bytes: u64,
    pub kept_blobs: usize,
    pub kept_bytes: u64,
}

impl Cache {
    /// Opens, or makes, a cache. `who` names this process for others that wait; `waiting` is called about ten times
    /// a second with the holder's name while another process holds the cache, and gives up by returning `false`.
    pub fn open(folder: &Path, who: &str, waiting: &dyn Fn(&str) -> bool) -> anyhow::Result<Self> {
        fs::create_dir_all(folder).map_err(StoreError::io("create", folder))?;
        let folder = fs::canonicalize(folder).map_err(StoreError::io("open", folder))?;
        let lock = Lock::acquire(&folder, who, waiting)?;
        let index_path = folder.join("index");
        let is_new = !index_path.exists();
        let index = match Index::open(&index_path) {
            Ok(index) => index,
            Err(_) => {
                // Disposable: what it held is in the manifests.
                fs::remove_dir_all(&index_path).map_err(StoreError::io("remove", &index_path))?;
                Index::open(&index_path)?
            }
        };
        let log = Mutex::new(ManifestLog::new(folder.join("manifests")));
        let store = BlobStore::new(folder.join("blobs"));
        let cache = Self { store, index, log, hashed: Mutex::default(), _lock: lock, folder };
        // sled may lose its last moments in a crash; a new index has everything to learn.
        if is_new || cache.index.newest("\0clean")?.is_none() {
            cache.reindex()?;
        }
        cache.mark_clean(false)?;
        Ok(cache)
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    pub fn store(&self) -> &BlobStore {
        &self.store
    }

    /// The record of a unit, if it has finished. Its blobs may be gone: see [`Self::is_whole`].
    pub fn get(&self, key: &UnitKey) -> anyhow::Result<Option<Manifest>> {
        let Some(place) = self.index.place(key)? else { return Ok(None) };
        match manifest::read_at(&self.folder.join("manifests"), &place) {
            Ok(manifest) if manifest.key == *key => Ok(Some(manifest)),
            // The index and the logs disagree, and the logs are right.
            _ => {
                self.index.forget(key)?;
                Ok(None)
            }
        }
    }

    /// All blobs of a unit are there.
    pub fn is_whole(&self, manifest: &Manifest) -> bool {
        manifest.outputs.iter().all(|output| self.store.has(&output.digest, output.size))
    }

    /// The newest record with a label: what `why` compares with.
    pub fn newest(&self, label: &str) -> anyhow::Result<Option<Manifest>> {
        self.index.newest(label)?.map_or(Ok(None), |key| self.get(&key))
    }

    /// Records a finished unit. Its blobs are in the store already.
    pub fn put(&self, manifest: &Manifest) -> anyhow::Result<()> {
        let place: Place = self.log.lock().unwrap_or_else(|e| e.into_inner()).append(manifest)?;
        self.index.record(manifest, &place)
    }

    /// The median of the last durations of a stage, seconds a unit.
    pub fn typical_seconds(&self, stage: &str) -> anyhow::Result<Option<f64>> {
        let mut seconds = self.index.seconds(stage)?;
        seconds.sort_by(f64::total_cmp);
        Ok(seconds.get(seconds.len() / 2).copied())
    }

    /// Makes the index again from the manifests; gives the number of units.
    pub fn reindex(&self) -> anyhow::Result<usize> {
        let records = manifest::read_all(&self.folder.join("manifests"))?;
        for (place, manifest) in &records {
            self.index.record(manifest, place)?;
        }
        self.index.flush()?;
        Ok(records.len())
    }

    /// All finished units, the newest record of each.
    pub fn manifests(&self) -> anyhow::Result<Vec<Manifest>> {
        let records = manifest::read_all(&self.folder.join("manifests"))?;
        let newest: BTreeMap<UnitKey, Manifest> = records.into_iter().map(|(_, m)| (m.key, m)).collect();
        Ok(newest.into_values().collect())
    }

    pub fn usage(&self) -> anyhow::Result<BTreeMap<String, StageUse>> {
        let mut seen = HashSet::new();
        let mut stages: BTreeMap<String, StageUse> = BTreeMap::new();
        for manifest in self.manifests()? {
            let stage = stages.entry(manifest.fingerprint.stage.clone()).or_default();
            stage.units += 1;
            for output in &manifest.outputs {
                if seen.insert(output.digest) && self.store.has(&output.digest, output.size) {
                    stage.bytes += output.size;
                }
            }
        }
        Ok(stages)
    }

    /// Reads and hashes every blob.
    pub fn verify(&self) -> anyhow::Result<VerifyReport> {
        let mut report = VerifyReport::default();
        for (digest, path, size) in self.store.list()? {
            let Some(digest) = digest else {
                fs::remove_file(&path).map_err(StoreError::io("remove", &path))?;
                continue;
            };
            report.blobs += 1;
            report.bytes += size;
            match self.store.read(&digest) {
                Err(StoreError::Corrupt { .. }) => report.corrupt.push(digest),
                read => drop(read?),
            }
        }
        let broken = self.manifests()?.into_iter().filter(|manifest| !self.is_whole(manifest));
        report.incomplete = broken.map(|manifest| manifest.label).collect();
        Ok(report)
    }

    /// Removes the blobs no unit in `keep` has, and what killed processes left.
    pub fn collect(&self, keep: &HashSet<BlobDigest>, dry_run: bool) -> anyhow::Result<GcReport> {
        let mut report = GcReport::default();
        for (digest, path, size) in self.store.list()? {
            if digest.is_some_and(|digest| keep.contains(&digest)) {
                report.kept_blobs += 1;
                report.kept_bytes += size;
                continue;
            }
            report.removed_blobs += 1;
            report.removed_bytes += size;
            if !dry_run {
                fs::remove_file(&path).map_err(StoreError::io("remove", &path))?;
            }
        }
        Ok(report)
    }

    pub fn flush(&self) -> anyhow::Result<()> {
        self.index.flush()
    }

    fn mark_clean(&self, clean: bool) -> anyhow::Result<()> {
        self.index.mark("\0clean", clean)?;
        self.index.flush()
    }

    fn hash_file(&self, path: &Path) -> anyhow::Result<FileRecord> {
        let meta = fs::metadata(path).map_err(StoreError::io("read", path))?;
        let mtime_ns = i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec());
        let same = |known: &FileRecord| (known.size, known.mtime_ns, known.inode) == (meta.len(), mtime_ns, meta.ino());
        let hashed = || self.hashed.lock().unwrap_or_else(|e| e.into_inner());
        let known = hashed().get(path).cloned().or_else(|| self.index.file(path));
        if let Some(known) = known.filter(same) {
            return Ok(known);
        }
        let bytes = fs::read(path).map_err(StoreError::io("read", path))?;
        let record = FileRecord { size: meta.len(), mtime_ns, inode: meta.ino(), digest: BlobDigest::of(&bytes) };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as i128);
        if now - mtime_ns > SETTLED_NS {
            self.index.remember_file(path, &record)?;
        }
        hashed().insert(path.to_owned(), record.clone());
        Ok(record)
    }
}

impl Drop for Cache {
    fn drop(&mut self) {
        // Failing costs a reading of the manifests at the next start, nothing else.
        let _ = self.mark_clean(true);
    }
}

impl FileMemo for Cache {
    fn digest(&self, path: &Path) -> anyhow::Result<BlobDigest> {
        Ok(self.hash_file(path)?.digest)
    }

    fn fact(&self, name: &str, of: &BlobDigest) -> Option<Vec<u8>> {
        self.index.fact(&[name.as_bytes(), of.as_bytes()].concat())
    }

    fn remember(&self, name: &str, of: &BlobDigest, fact: &[u8]) {
        // A lost memo is only slower.
        let _ = self.index.remember_fact(&[name.as_bytes(), of.as_bytes()].concat(), fact);
    }
}
