//! One process at a time writes in a cache: sled lets only one in. The lock is the kernel's, so a killed process holds
//! none.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use super::store::{StoreError, make_room};
use crate::regular;

/// Bytes of what the holder says of itself that are read.
const MOST_TEXT: u64 = 4096;

/// Held until dropped.
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
}

impl Lock {
    /// Waits for the lock. `waiting` is told once who holds it, and may give up by returning `false`.
    pub(super) fn acquire(folder: &Path, who: &str, waiting: &dyn Fn(&str) -> bool) -> anyhow::Result<Self> {
        let path = folder.join("lock");
        // A lock is a file: anything else in its place was put there by somebody else, and is never written through.
        if fs::symlink_metadata(&path).is_ok_and(|meta| !meta.is_file()) {
            make_room(&path).and_then(|()| remove_if_there(&path)).map_err(StoreError::io("replace", &path))?;
        }
        let mut file = open(folder)?;
        while !try_lock(&file, folder)? {
            let holder = text_of(&mut file)?;
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
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
    let open = options.open(&path).and_then(|file| match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::other("it is no file")),
    });
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
    let (mut file, _) = regular::open_own(&folder.join("lock")).ok()?;
    match file.try_lock_shared() {
        Err(TryLockError::WouldBlock) => text_of(&mut file).ok(),
        _ => None,
    }
}

/// The text in which the holder of a lock says who it is.
fn text_of(file: &mut File) -> io::Result<String> {
    file.seek(SeekFrom::Start(0))?;
    let mut text = Vec::new();
    Read::by_ref(file).take(MOST_TEXT).read_to_end(&mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}
