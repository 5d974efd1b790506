//! Digests of the user's files, remembered: `index/files`.
//!
//! A file is hashed again unless its stamp is that of when it was hashed: size, times of change (mtime, and ctime, which
//! no program can set back), inode, and the device and file system that it stands on, so that another one mounted at the
//! same path is seen. A file that changed less than two seconds before, or in the future, is not remembered: it could
//! change again within one tick of its clock. Where the file system's times tell nothing ([`mounts`](super::mounts)), the
//! file is hashed by every process that asks for it.
//!
//! What no stamp can see: bytes that a program writes through a mapping of the file whose pages it had changed before,
//! until they reach the disk, and a disk whose bytes change beneath its file system. [`Files::rehash`] is for these.

use std::collections::{BTreeMap, HashMap};
#[cfg(test)]
use std::fs::File;
use std::fs::{self, Metadata};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError, RwLock};
use std::time::{SystemTime, UNIX_EPOCH};

use super::locked;
use super::mounts::{FileSystem, Mounts};
use super::store::StoreError;
use super::table::{KEY, Table, key_at};
use crate::digest::BlobDigest;
use crate::regular;

const MAGIC: &[u8; 8] = b"s2cfile2";
/// A record: BLAKE3 of the path, the stamp, digest.
const RECORD: usize = KEY + STAMP + KEY;
const STAMP: usize = 6 * 8;

const SETTLED_NS: i128 = 2_000_000_000;
/// Bytes read at a time: they stay in the processor's cache between being read and hashed. No file is mapped, since
/// one that shrinks while it is read would end the process.
const PIECE: usize = 128 * 1024;
/// Files of this size and more are hashed by all threads, in pieces of as much.
const BIG: u64 = 8 << 20;
/// Tries at a file that changes while it is read.
const TRIES: usize = 3;

/// What tells that a file is as it was: size, mtime, ctime (nanoseconds, low 64 bits), inode, device, id of the file
/// system.
type Stamp = [u8; STAMP];

/// Files of one file system whose bytes were hashed since no stamp tells of them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Untold {
    pub files: usize,
    pub bytes: u64,
}

#[derive(Debug)]
pub(super) struct Files {
    path: PathBuf,
    old: Table,
    /// Hashed by this process, whether they are to be remembered.
    fresh: RwLock<HashMap<[u8; KEY], (Stamp, BlobDigest, bool)>>,
    is_dirty: AtomicBool,
    mounts: Mounts,
    /// By why their stamps tell nothing.
    untold: Mutex<BTreeMap<String, Untold>>,
    /// No digest of another process is believed.
    is_to_rehash: bool,
}

impl Files {
    pub(super) fn open(path: PathBuf) -> Self {
        let old = Table::read(&path, MAGIC, RECORD).unwrap_or_default();
        Self {
            path,
            old,
            fresh: RwLock::default(),
            is_dirty: AtomicBool::new(false),
            mounts: Mounts::default(),
            untold: Mutex::default(),
            is_to_rehash: false,
        }
    }

    /// From now on every file that is asked for is hashed by this process, whatever its stamp says.
    pub(super) fn rehash(&mut self) {
        self.is_to_rehash = true;
    }

    /// The files that were hashed because no stamp tells of a change, by the reason for that.
    pub(super) fn untold(&self) -> BTreeMap<String, Untold> {
        locked(&self.untold).clone()
    }

    pub(super) fn digest(&self, path: &Path) -> Result<BlobDigest, StoreError> {
        let mut meta = fs::metadata(path).map_err(StoreError::io("read", path))?;
        let key = *blake3::hash(path.as_os_str().as_bytes()).as_bytes();
        let on = self.mounts.file_system(path, &meta);
        if let Some(known) = self.known(&key, &stamp(&meta, &on)) {
            return Ok(known);
        }
        for _ in 0..TRIES {
            // Before it is read: what changes from now on has a later time.
            let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as i128);
            let digest = hash(path, meta.len()).map_err(StoreError::io("read", path))?;
            let after = fs::metadata(path).map_err(StoreError::io("read", path))?;
            if stamp(&after, &on) == stamp(&meta, &on) {
                let reason = cannot_tell(&meta, &on);
                let settled = reason.is_none() && times(&meta).into_iter().all(|time| now - time > SETTLED_NS);
                if let Some(reason) = reason {
                    let mut untold = locked(&self.untold);
                    let of_reason = untold.entry(reason).or_default();
                    *of_reason = Untold { files: of_reason.files + 1, bytes: of_reason.bytes + meta.len() };
                }
                let known = (stamp(&meta, &on), digest, settled);
                self.fresh.write().unwrap_or_else(PoisonError::into_inner).insert(key, known);
                self.is_dirty.fetch_or(settled, Ordering::Relaxed);
                return Ok(digest);
            }
            meta = after;
        }
        Err(StoreError::io("read", path)(io::Error::other("it changes while it is read")))
    }

    fn known(&self, key: &[u8; KEY], stamp: &Stamp) -> Option<BlobDigest> {
        let fresh = self.fresh.read().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, digest, _)) = fresh.get(key) {
            return (of == stamp).then_some(*digest);
        }
        if self.is_to_rehash {
            return None;
        }
        let record = self.old.record(self.old.find(key)?);
        (record[KEY..KEY + STAMP] == *stamp).then(|| BlobDigest::from_bytes(key_at(record, KEY + STAMP)))
    }

    /// Writes what is new. A memo that is lost is only slower.
    pub(super) fn write(&self) -> io::Result<()> {
        if !self.is_dirty.swap(false, Ordering::Relaxed) {
            return Ok(());
        }
        let fresh = self.fresh.read().unwrap_or_else(PoisonError::into_inner);
        let mut records = Vec::with_capacity((self.old.len() + fresh.len()) * RECORD);
        let old = (0..self.old.len()).map(|place| self.old.record(place));
        old.filter(|record| !fresh.contains_key(&record[..KEY])).for_each(|record| records.extend_from_slice(record));
        for (key, (stamp, digest, _)) in fresh.iter().filter(|(_, (.., settled))| *settled) {
            [&key[..], stamp, digest.as_bytes()].into_iter().for_each(|part| records.extend_from_slice(part));
        }
        Table::write(&self.path, MAGIC, RECORD, &records, &[])
    }
}

fn times(meta: &Metadata) -> [i128; 2] {
    let time = |seconds: i64, ns: i64| i128::from(seconds) * 1_000_000_000 + i128::from(ns);
    [time(meta.mtime(), meta.mtime_nsec()), time(meta.ctime(), meta.ctime_nsec())]
}

/// Why the stamp of a file would be the same after a change, if it could be.
fn cannot_tell(meta: &Metadata, on: &FileSystem) -> Option<String> {
    let [_, ctime] = times(meta);
    on.cannot_tell.clone().or_else(|| {
        // What makes images of file systems sets times so; a running clock stands at a whole second once in 250 times.
        (ctime <= 0 || ctime % 1_000_000_000 == 0).then(|| "their times of change are whole seconds".to_owned())
    })
}

fn stamp(meta: &Metadata, on: &FileSystem) -> Stamp {
    let [mtime, ctime] = times(meta).map(|time| time as u64);
    let mut stamp = [0; STAMP];
    let numbers = [meta.len(), mtime, ctime, meta.ino(), meta.dev(), on.id];
    for (part, number) in stamp.chunks_exact_mut(8).zip(numbers) {
        part.copy_from_slice(&number.to_le_bytes());
    }
    stamp
}

fn hash(path: &Path, size: u64) -> io::Result<BlobDigest> {
    let (mut file, _) = regular::open(path)?;
    let is_big = size >= BIG;
    let mut piece = vec![0; if is_big { BIG as usize } else { PIECE.min(size as usize + 1) }];
    let mut hasher = blake3::Hasher::new();
    loop {
        let mut n = 0;
        while n < piece.len() {
            match file.read(&mut piece[n..])? {
                0 => break,
                read => n += read,
            }
        }
        match is_big {
            true => hasher.update_rayon(&piece[..n]),
            false => hasher.update(&piece[..n]),
        };
        if n < piece.len() {
            return Ok(BlobDigest::from_bytes(*hasher.finalize().as_bytes()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As if it had been made an hour ago, but for its ctime.
    fn old_file(path: &Path, text: &[u8]) {
        fs::write(path, text).unwrap();
        let hour_ago = SystemTime::now() - std::time::Duration::from_secs(3600);
        File::options().write(true).open(path).unwrap().set_modified(hour_ago).unwrap();
    }

    #[test]
    fn digests_are_those_of_the_bytes_whatever_the_size() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        for size in [0, 1, PIECE - 1, PIECE, PIECE + 1, BIG as usize, BIG as usize + 5] {
            let bytes: Vec<u8> = (0..size).map(|i| (i * 7 % 251) as u8).collect();
            fs::write(&path, &bytes).unwrap();
            assert_eq!(hash(&path, size as u64).unwrap(), BlobDigest::of(&bytes), "{size}");
            assert_eq!(hash(&path, 0).unwrap(), BlobDigest::of(&bytes), "{size}, which grew");
        }
    }

    #[test]
    fn a_young_file_is_not_remembered_and_a_settled_one_is() {
        let dir = tempfile::tempdir().unwrap();
        let (path, memo) = (dir.path().join("f"), dir.path().join("memo"));
        old_file(&path, b"one");
        let files = Files::open(memo.clone());
        files.digest(&path).unwrap();
        files.write().unwrap();
        // Its ctime is of this moment, whatever its mtime says.
        assert_eq!(Files::open(memo.clone()).old.len(), 0);
        std::thread::sleep(std::time::Duration::from_millis(2100));
        let files = Files::open(memo.clone());
        assert_eq!(files.digest(&path).unwrap(), BlobDigest::of(b"one"));
        files.write().unwrap();
        let files = Files::open(memo.clone());
        assert_eq!(files.old.len(), 1);
        let (key, meta) = (blake3::hash(path.as_os_str().as_bytes()), fs::metadata(&path).unwrap());
        let on = files.mounts.file_system(&path, &meta);
        assert_eq!(files.known(key.as_bytes(), &stamp(&meta, &on)), Some(BlobDigest::of(b"one")));
        // The stamp is of another file system, which is mounted at the same path.
        let other = FileSystem { id: !on.id, cannot_tell: None };
        assert_eq!(files.known(key.as_bytes(), &stamp(&meta, &other)), None);
        // Equal size and mtime: its ctime tells.
        let modified = meta.modified().unwrap();
        fs::write(&path, b"two").unwrap();
        File::options().write(true).open(&path).unwrap().set_modified(modified).unwrap();
        assert_eq!(files.digest(&path).unwrap(), BlobDigest::of(b"two"));
    }
}
