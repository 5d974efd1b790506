//! One process at a time on a cache: sled lets only one in. The lock is the kernel's, so a killed process holds none.

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
        let path = folder.join("lock");
        let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let mut file = open.map_err(StoreError::io("open", &path))?;
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) => {
                    let mut holder = String::new();
                    file.seek(SeekFrom::Start(0))?;
                    file.read_to_string(&mut holder)?;
                    anyhow::ensure!(waiting(holder.trim()), "the cache `{}` is in use by {holder}", folder.display());
                    std::thread::sleep(Duration::from_millis(100));
                }
                Err(TryLockError::Error(error)) => return Err(StoreError::io("lock", &path)(error).into()),
            }
        }
        file.set_len(0)?;
        file.seek(SeekFrom::Start(0))?;
        file.write_all(who.as_bytes())?;
        Ok(Self { _file: file })
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
