//! The one door to stored results.
//!
//! ```text
//! cache/
//!   blobs/ab/cdef..      bytes named by BLAKE3: embeddings, SE maps, checkpoints, pictures
//!   manifests/*.log      append-only records of finished units: the truth
//!   index/               made again when it is gone or torn, or by `cache rebuild`:
//!     units              what finished units gave, by key
//!     files              digests of the user's files, by path, size, times, inode and file system
//!     sled/              labels, facts about files, durations and sizes
//!   history/             runs, a line each, the files they ran, and what these read: see [`history`]
//!   datasets/            data sets the program made itself
//!   drift/               units that gave other bytes when an audit ran them again
//!   scratch/             half-done long units; losing it costs time only
//!   status.json          what runs now and how far it is: see [`status`]
//!   lock                 held while a process writes here, with its name inside
//! ```
//!
//! Order of writing: blobs, then the manifest, then the index. So a unit is finished when its manifest is whole, and
//! a process may be killed at any moment. What took longer than [`SYNC_SECONDS`] is synced to the disk as well, before it
//! is reported done. A power cut can cost the cheaper units of the last half minute, and never gives a wrong result:
//! blobs are checked when they are read.

mod drift;
mod files;
mod gc;
pub mod history;
mod index;
mod lock;
mod manifest;
mod mounts;
mod records;
pub mod remote;
pub mod status;
mod store;
mod table;

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockReadGuard};

use crate::artifact::Manifest;
use crate::data::FileMemo;
use crate::digest::{BlobDigest, UnitKey};
pub use drift::Drift;
use files::Files;
pub use files::Untold;
pub use gc::{Again, GcReport, Keep, Removed};
use index::{Finished, Index, Looked};
use lock::Lock;
pub use lock::holder;
use manifest::{ManifestLog, Place};
pub(crate) use records::{RecordIdx, Records};
pub(crate) use store::Look;
pub use store::{BlobStore, Listed, StoreError};

/// A unit that took longer is synced: doing it again would cost more than that.
pub const SYNC_SECONDS: f64 = 0.05;
/// Units that the index is told of at the end of a run at the latest.
const MANY_UNTOLD: usize = 4096;

/// A cache folder, locked by this process or looked at.
#[derive(Debug)]
pub struct Cache {
    folder: PathBuf,
    store: BlobStore,
    records: Arc<RwLock<Records>>,
    files: Files,
    /// Opened when it is first asked.
    index: OnceLock<Index>,
    looked: OnceLock<Looked>,
    log: Mutex<ManifestLog>,
    /// Not yet told to the index. Changed while the log is held.
    untold: Mutex<Vec<Finished>>,
    /// Bytes of the logs when the cache was opened.
    bytes_then: u64,
    /// `None`: nothing in the folder is changed.
    lock: Option<Lock>,
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
    /// What stands among the blobs and is none. It is left alone.
    pub foreign: Vec<PathBuf>,
}

impl Cache {
    /// Opens, or makes, a cache. `who` names this process for others that wait; `waiting` is called about ten times
    /// a second with the holder's name while another process holds the cache, and gives up by returning `false`.
    pub fn open(folder: &Path, who: &str, waiting: &dyn Fn(&str) -> bool) -> anyhow::Result<Self> {
        fs::create_dir_all(folder).map_err(StoreError::io("create", folder))?;
        let folder = fs::canonicalize(folder).map_err(StoreError::io("open", folder))?;
        let lock = Lock::acquire(&folder, who, waiting)?;
        Self::with(folder, Some(lock))
    }

    /// Opens a cache to look at it, without waiting. If another process holds it, or it cannot be written, nothing in it
    /// is changed, what finishes from now on is not sure to be seen, and facts about files are found anew.
    pub fn open_to_read(folder: &Path, who: &str) -> anyhow::Result<Self> {
        fs::create_dir_all(folder).map_err(StoreError::io("create", folder))?;
        let folder = fs::canonicalize(folder).map_err(StoreError::io("open", folder))?;
        let lock = Lock::if_free(&folder, who);
        Self::with(folder, lock)
    }

    fn with(folder: PathBuf, lock: Option<Lock>) -> anyhow::Result<Self> {
        let (index, manifests) = (folder.join("index"), folder.join("manifests"));
        let units = index.join("units");
        let records = Records::open(&units, &manifests)?;
        let store = BlobStore::new(folder.join("blobs"));
        if lock.is_some() {
            if index.join("db").exists() {
                // As it was laid out before; disposable.
                fs::remove_dir_all(&index).map_err(StoreError::io("remove", &index))?;
            }
            fs::create_dir_all(&index).map_err(StoreError::io("create", &index))?;
            if records.are_all_from_logs() && units.exists() {
                // Logs that grow later must not make it look right.
                fs::remove_file(&units).map_err(StoreError::io("remove", &units))?;
            }
        }
        Ok(Self {
            bytes_then: records.bytes_read(),
            records: Arc::new(RwLock::new(records)),
            files: Files::open(index.join("files")),
            index: OnceLock::new(),
            looked: OnceLock::new(),
            untold: Mutex::default(),
            log: Mutex::new(ManifestLog::new(manifests)),
            store: if lock.is_some() { store } else { store.only_read() },
            lock,
            folder,
        })
    }

    /// The user's files are hashed, whatever their times and sizes say.
    pub fn rehash(&mut self) {
        self.files.rehash();
    }

    /// The user's files that were hashed since nothing but their bytes tells whether they changed, by why.
    pub fn untold_files(&self) -> BTreeMap<String, Untold> {
        self.files.untold()
    }

    /// Lines on records of finished units that were damaged.
    pub fn damage(&self) -> Vec<String> {
        let line = |(log, bytes): &(String, u64)| {
            format!(
                "`manifests/{log}` is damaged: {bytes} bytes of it are passed over, and the units recorded there run again"
            )
        };
        self.records().damaged().iter().map(line).collect()
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    pub fn store(&self) -> &BlobStore {
        &self.store
    }

    /// The record of a unit, if it has finished. Its blobs may be gone: see [`Self::is_whole`].
    pub fn get(&self, key: &UnitKey) -> Option<Manifest> {
        let place = {
            let records = self.records();
            records.place(records.find(key)?)
        };
        // One that cannot be read any more tells nothing; what its unit gave is known all the same.
        let read = manifest::read_at(&self.folder.join("manifests"), &place).ok();
        read.filter(|manifest| manifest.key == *key)
    }

    /// What finished units gave.
    pub(crate) fn records(&self) -> RwLockReadGuard<'_, Records> {
        self.records.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The same, for those who outlive the cache.
    pub(crate) fn shared_records(&self) -> Arc<RwLock<Records>> {
        self.records.clone()
    }

    /// All blobs of a unit are there.
    pub fn is_whole(&self, manifest: &Manifest) -> bool {
        manifest.outputs.iter().all(|output| self.store.has(&output.digest, output.size))
    }

    /// The newest record with a label: what `why` compares with.
    pub fn newest(&self, label: &str) -> anyhow::Result<Option<Manifest>> {
        let newest = match &self.lock {
            Some(_) => self.index()?.newest(label)?,
            None => self.looked()?.newest(label),
        };
        Ok(newest.and_then(|key| self.get(&key)))
    }

    /// Records a finished unit. Its blobs are in the store already, synced if it took longer than [`SYNC_SECONDS`].
    pub fn put(&self, manifest: &Manifest) -> anyhow::Result<()> {
        let mut log = locked(&self.log);
        self.append(&mut log, manifest, manifest.seconds > SYNC_SECONDS)
    }

    /// Records units that finished in another cache. Of their blobs those are in the store that are to be.
    pub(crate) fn adopt(&self, manifests: &[Manifest]) -> anyhow::Result<()> {
        let mut log = locked(&self.log);
        manifests.iter().try_for_each(|manifest| self.append(&mut log, manifest, false))?;
        log.sync()?;
        Ok(())
    }

    /// A record is known once it is in the log.
    fn append(&self, log: &mut ManifestLog, manifest: &Manifest, synced: bool) -> anyhow::Result<()> {
        anyhow::ensure!(self.lock.is_some(), "the cache `{}` was opened to be read", self.folder.display());
        let place: Place = log.append(manifest)?;
        if synced {
            log.sync()?;
        }
        self.records.write().unwrap_or_else(PoisonError::into_inner).insert(manifest, &place);
        locked(&self.untold).push(told(manifest));
        Ok(())
    }

    /// What a unit cost lately that has the stage and reads these inputs, or else one of the stage: the median of
    /// seconds, which one slow unit does not change, and the mean of bytes, whose sum is that of the units. `None` if the
    /// stage has never run here.
    pub fn typical_cost<'a>(
        &self,
        stage: &'a str,
        slots: impl Iterator<Item = &'a str>,
    ) -> anyhow::Result<Option<(f64, u64)>> {
        let costs_of = |name: &str| match &self.lock {
            Some(_) => self.index()?.costs(name),
            None => Ok(self.looked()?.costs(name)),
        };
        let mut costs = costs_of(&kind(stage, slots))?;
        if costs.is_empty() {
            costs = costs_of(stage)?;
        }
        if costs.is_empty() {
            return Ok(None);
        }
        let bytes = costs.iter().map(|(_, bytes)| *bytes as f64).sum::<f64>() / costs.len() as f64;
        let mut seconds: Vec<f64> = costs.into_iter().map(|(seconds, _)| seconds).collect();
        seconds.sort_by(f64::total_cmp);
        Ok(Some((seconds[seconds.len() / 2], bytes.round() as u64)))
    }

    /// Makes the index again from the manifests; gives the number of units.
    pub fn reindex(&self) -> anyhow::Result<usize> {
        let (units, manifests) = (self.folder.join("index/units"), self.folder.join("manifests"));
        let _ = fs::remove_file(&units);
        let records = Records::open(&units, &manifests)?;
        records.write(&units).map_err(StoreError::io("write", &units))?;
        let bytes = records.bytes_read();
        *self.records.write().unwrap_or_else(PoisonError::into_inner) = records;
        tell(self.index()?, &manifests, &|_| true, bytes)
    }

    /// The index, with all that was told to it.
    fn index(&self) -> anyhow::Result<&Index> {
        // Also while it is opened: a second opening would find it locked, take it for broken and remove it.
        let _log = locked(&self.log);
        let index = match self.index.get() {
            Some(index) => index,
            None => {
                let index = self.open_index()?;
                self.index.get_or_init(|| index)
            }
        };
        let untold = std::mem::take(&mut *locked(&self.untold));
        if !untold.is_empty() {
            index.record(&untold, self.records().bytes_read())?;
        }
        Ok(index)
    }

    /// The same without a lock, of the units that were there when the cache was opened.
    fn looked(&self) -> anyhow::Result<&Looked> {
        if let Some(looked) = self.looked.get() {
            return Ok(looked);
        }
        let mut units = Vec::new();
        each(&self.folder.join("manifests"), &mut |manifest| {
            if self.records().find(&manifest.key).is_some() {
                units.push(told(&manifest));
            }
        })?;
        Ok(self.looked.get_or_init(|| Looked::new(&units)))
    }

    fn open_index(&self) -> anyhow::Result<Index> {
        let path = self.folder.join("index/sled");
        if !holds_files_alone(&path) {
            remove_all(&path).map_err(StoreError::io("remove", &path))?;
        }
        let index = match Index::open(&path) {
            Ok(index) => index,
            Err(_) => {
                // Disposable: what it held is in the manifests.
                remove_all(&path).map_err(StoreError::io("remove", &path))?;
                Index::open(&path)?
            }
        };
        // sled may lose its last moments in a crash; a new index has everything to learn.
        let told = index.told()?;
        if told != self.bytes_then {
            let records = self.records();
            let new = records.logs_between(told, self.bytes_then);
            let is_new = |log: &str| new.contains(&log);
            tell(&index, &self.folder.join("manifests"), &is_new, self.bytes_then)?;
        }
        Ok(index)
    }

    /// All finished units, the newest record of each.
    pub fn manifests(&self) -> anyhow::Result<Vec<Manifest>> {
        let mut newest: BTreeMap<UnitKey, Manifest> = BTreeMap::new();
        each(&self.folder.join("manifests"), &mut |manifest| drop(newest.insert(manifest.key, manifest)))?;
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
        let Listed { blobs, left, foreign } = self.store.list()?;
        let mut report = VerifyReport { foreign, ..VerifyReport::default() };
        for (path, _) in left {
            fs::remove_file(&path).map_err(StoreError::io("remove", &path))?;
        }
        for (digest, _, size) in blobs {
            report.blobs += 1;
            report.bytes += size;
            match self.store.read(&digest) {
                Err(StoreError::Corrupt { .. }) => report.corrupt.push(digest),
                // It went while the others were read.
                Err(StoreError::Missing(_)) => {}
                read => drop(read?),
            }
        }
        let broken = self.manifests()?.into_iter().filter(|manifest| !self.is_whole(manifest));
        report.incomplete = broken.map(|manifest| manifest.label).collect();
        Ok(report)
    }

    /// What finished outlives a power cut, and the next process starts as fast as this one.
    pub fn flush(&self) -> anyhow::Result<()> {
        if self.lock.is_none() {
            return Ok(());
        }
        locked(&self.log).sync()?;
        // What cannot be written here costs time at the next start, nothing else.
        let _ = self.files.write();
        if self.records().is_worth_writing() {
            let _ = self.records().write(&self.folder.join("index/units"));
        }
        // Of a few units the next process that asks the index tells it: opening it may cost more than they did.
        if self.index.get().is_some() || locked(&self.untold).len() > MANY_UNTOLD {
            self.index()?.flush()?;
        }
        Ok(())
    }
}

impl Drop for Cache {
    fn drop(&mut self) {
        let _ = self.flush();
    }
}

/// A folder that is not there, or whose entries, down to the last, are files and folders: others could be waited for, or
/// lead elsewhere.
fn holds_files_alone(folder: &Path) -> bool {
    let Ok(entries) = fs::read_dir(folder) else { return fs::symlink_metadata(folder).is_err() };
    entries.flatten().all(|entry| {
        let kind = entry.file_type();
        kind.is_ok_and(|kind| kind.is_file() || kind.is_dir() && holds_files_alone(&entry.path()))
    })
}

/// Removes whatever stands at a path; what a link leads to stays.
fn remove_all(path: &Path) -> std::io::Result<()> {
    match fs::symlink_metadata(path)?.is_dir() {
        true => fs::remove_dir_all(path),
        false => fs::remove_file(path),
    }
}

/// Tells an index the records of the logs that are new to it, with which it knows so many bytes; gives their number.
fn tell(index: &Index, manifests: &Path, is_new: &dyn Fn(&str) -> bool, bytes: u64) -> anyhow::Result<usize> {
    let mut all = Vec::new();
    for (log, _) in manifest::list(manifests)?.into_iter().filter(|(log, _)| is_new(log)) {
        manifest::read(manifests, &log, 0, &mut |_, manifest| all.push(told(&manifest)))?;
    }
    index.record(&all, bytes)?;
    Ok(all.len())
}

fn told(manifest: &Manifest) -> Finished {
    let Manifest { key, label, fingerprint, outputs, seconds, finished: _, made_by: _ } = manifest;
    let bytes = outputs.iter().map(|output| output.size).sum();
    let stage = fingerprint.stage.clone();
    let kind = kind(&stage, fingerprint.inputs.iter().map(|input| input.slot.as_str()));
    Finished { label: label.clone(), key: *key, stage, kind, seconds: *seconds, bytes }
}

/// Units that cost about the same.
fn kind<'a>(stage: &'a str, slots: impl Iterator<Item = &'a str>) -> String {
    // A training begins with weights and goes on from a checkpoint, at one price.
    let slots = slots.filter(|slot| !matches!(*slot, "weights" | "checkpoint"));
    // Never the name of a stage.
    std::iter::once(stage).chain(slots).collect::<Vec<_>>().join(" ") + "\0"
}

/// Every record of every log, in the order in which they were written.
fn each(manifests: &Path, take: &mut dyn FnMut(Manifest)) -> anyhow::Result<()> {
    for (log, _) in manifest::list(manifests)? {
        manifest::read(manifests, &log, 0, &mut |_, manifest| take(manifest))?;
    }
    Ok(())
}

/// Also after a panic of another thread: what our locks guard is never left half-changed.
pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl FileMemo for Cache {
    fn digest(&self, path: &Path) -> anyhow::Result<BlobDigest> {
        Ok(self.files.digest(path)?)
    }

    fn fact(&self, name: &str, of: &BlobDigest) -> Option<Vec<u8>> {
        self.lock.as_ref()?;
        self.index().ok()?.fact(&[name.as_bytes(), of.as_bytes()].concat())
    }

    fn remember(&self, name: &str, of: &BlobDigest, fact: &[u8]) {
        if self.lock.is_none() {
            return;
        }
        // A lost memo is only slower.
        let _ = self.index().and_then(|index| index.remember_fact(&[name.as_bytes(), of.as_bytes()].concat(), fact));
    }
}
