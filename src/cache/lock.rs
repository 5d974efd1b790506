//! One process at a time writes in a cache: sled lets only one in. The lock is the kernel's, so a killed process holds
//! none.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::time::Duration;

use super::store::StoreError;

/// Held until dropped.
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
}

impl Lock {
    /// Waits for the lock. `waiting` is told once who holds it, and may give up by returning `false`.
    pub(super) fn acquire(folder: &Path, who: &str, waiting: &dyn Fn(&str) -> bool) -> anyhow::Result<Self> {
        let mut file = open(folder)?;
        while !try_lock(&file, folder)? {
            let mut holder = String::new();
            file.seek(SeekFrom::Start(0))?;
            file.read_to_string(&mut holder)?;
            anyhow::ensure!(waiting(holder.trim()), "the cache `{}` is in use by {holder}", folder.display());
            std::thread::sleep(Duration::from_millis(100));
        }
        Self::signed(file, who)
    }

    /// The lock, if nobody holds it and the folder can be written.
    pub(super) fn if_free(folder: &Path, who: &str) -> Option<Self> {
        let file = open(folder).ok()?;
        if try_lock(&file, folder).ok()? { Self::signed(file, who).ok() } else { None }
    }

    fn signed(mut file: File, who: &str) -> anyhow::Result<Self> {
        file.set_len(0)?;
        file.seek(SeekFrom::Start(0))?;
        file.write_all(who.as_bytes())?;
        Ok(Self { _file: file })
    }
}

fn open(folder: &Path) -> Result<File, StoreError> {
    let path = folder.join("lock");
    let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
    open.map_err(StoreError::io("open", &path))
}

/// Whether it is ours now.
fn try_lock(file: &File, folder: &Path) -> Result<bool, StoreError> {
    match file.try_lock() {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => Err(StoreError::io("lock", &folder.join("lock"))(error)),
    }
}

/// Who works in a cache folder now, as told to [`Lock::acquire`]; nobody is waited for.
pub fn holder(folder: &Path) -> Option<String> {
    let mut file = File::open(folder.join("lock")).ok()?;
    match file.try_lock_shared() {
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            file.read_to_string(&mut holder).ok()?;
            Some(holder)
        }
        _ => None,
    }
}
