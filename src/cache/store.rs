//! Blobs: bytes named by their BLAKE3 digest, `blobs/ab/cdef..`.
//!
//! A blob is written to a temporary file beside its place, renamed: it is whole or not there. It is hashed whenever it
//! is read, so a flipped byte is an error and never a result.

use std::ffi::CStr;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rustix::fs::{AtFlags, statat};

use crate::data::temporary;
use crate::digest::BlobDigest;

/// So many blobs that opening their folders is worth it.
const MANY: usize = 1000;

/// Why bytes could not be stored or read.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("no blob `{0}` in the store")]
    Missing(BlobDigest),
    #[error("blob `{expected}` is corrupt: its bytes hash to `{actual}`")]
    Corrupt { expected: BlobDigest, actual: BlobDigest },
    #[error("could not {action} `{path}`")]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl StoreError {
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }
}

/// The blobs of a cache folder.
#[derive(Clone, Debug)]
pub struct BlobStore {
    root: PathBuf,
    removes_corrupt: bool,
}

impl BlobStore {
    pub fn new(root: PathBuf) -> Self {
        Self { root, removes_corrupt: true }
    }

    /// For who only looks: what is corrupt stays, since another process may be making it again.
    pub(super) fn only_read(self) -> Self {
        Self { removes_corrupt: false, ..self }
    }

    pub fn path(&self, digest: &BlobDigest) -> PathBuf {
        let hex = digest.to_string();
        self.root.join(&hex[..2]).join(&hex[2..])
    }

    /// The blob is there with this size. Its bytes are checked when they are read.
    pub fn has(&self, digest: &BlobDigest, size: u64) -> bool {
        fs::metadata(self.path(digest)).is_ok_and(|meta| meta.len() == size)
    }

    /// To ask [`Self::has`] for so many blobs.
    pub(crate) fn look_for(&self, n: usize) -> Look<'_> {
        let n_folders = if n < MANY { 0 } else { 256 };
        Look { store: self, folders: (0..n_folders).map(|_| OnceLock::new()).collect() }
    }

    /// `synced`: it outlives a power cut. What is not synced may be lost in one, or be other bytes, which is found when
    /// it is read.
    pub fn write(&self, bytes: &[u8], synced: bool) -> Result<BlobDigest, StoreError> {
        let digest = BlobDigest::of(bytes);
        let path = self.path(&digest);
        let folder = path.parent().unwrap_or(&self.root);
        let sync = |path: &Path| File::open(path)?.sync_all();
        // Of a unit that was not synced: it may not be whole, or not on the disk.
        if self.has(&digest, bytes.len() as u64) && (!synced || self.read(&digest).is_ok()) {
            if synced {
                sync(&path).and_then(|()| sync(folder)).map_err(StoreError::io("sync", &path))?;
            }
            return Ok(digest);
        }
        // Removed when dropped, so a full disk leaves no litter.
        let write = || {
            let mut file = match temporary(folder) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    fs::create_dir_all(folder)?;
                    // A new folder stands in the one above, which may be new too.
                    folder.ancestors().skip(1).take(2).filter(|_| synced).try_for_each(sync)?;
                    temporary(folder)?
                }
                made => made?,
            };
            file.write_all(bytes)?;
            if synced {
                file.as_file().sync_all()?;
            }
            file.persist(&path).map_err(|error| error.error)?;
            if synced { sync(folder) } else { Ok(()) }
        };
        write().map_err(StoreError::io("write", &path))?;
        Ok(digest)
    }

    /// The bytes, checked. A corrupt blob is removed, so that its unit is computed again, unless this is
    /// [`Self::only_read`].
    pub fn read(&self, digest: &BlobDigest) -> Result<Vec<u8>, StoreError> {
        let path = self.path(digest);
        let mut bytes = Vec::new();
        match File::open(&path).and_then(|mut file| file.read_to_end(&mut bytes)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(StoreError::Missing(*digest)),
            read => read.map_err(StoreError::io("read", &path))?,
        };
        let actual = BlobDigest::of(&bytes);
        if actual != *digest {
            if self.removes_corrupt {
                match fs::remove_file(&path) {
                    // Another reader found it first.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    removed => removed.map_err(StoreError::io("remove", &path))?,
                }
            }
            return Err(StoreError::Corrupt { expected: *digest, actual });
        }
        Ok(bytes)
    }

    /// All blobs with their sizes; temporary files of a killed process are given as `None`.
    pub fn list(&self) -> Result<Vec<(Option<BlobDigest>, PathBuf, u64)>, StoreError> {
        let mut found = Vec::new();
        for folder in entries(&self.root)? {
            let prefix = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
            for path in entries(&folder)? {
                let Ok(meta) = fs::metadata(&path) else { continue };
                let rest = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                found.push((format!("{prefix}{rest}").parse().ok(), path, meta.len()));
            }
        }
        Ok(found)
    }
}

/// A look for many blobs: the folders they stand in are opened once. Not to be kept, as a folder may be replaced.
pub(crate) struct Look<'a> {
    store: &'a BlobStore,
    /// By the first byte of a digest; none for a look for few.
    folders: Vec<OnceLock<Option<File>>>,
}

impl Look<'_> {
    pub(crate) fn has(&self, digest: &BlobDigest, size: u64) -> bool {
        let folder = self.folders.get(usize::from(digest.as_bytes()[0])).and_then(|folder| {
            let open = || File::open(self.store.path(digest).parent()?).ok();
            folder.get_or_init(open).as_ref()
        });
        let mut name = [0; 63];
        name[..62].copy_from_slice(&digest.hex()[2..]);
        match (folder, CStr::from_bytes_with_nul(&name)) {
            (Some(folder), Ok(name)) => {
                statat(folder, name, AtFlags::empty()).is_ok_and(|stat| u64::try_from(stat.st_size) == Ok(size))
            }
            // Too many files may be open.
            _ => self.store.has(digest, size),
        }
    }
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>, StoreError> {
    match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        listed => {
            let listed = listed.map_err(StoreError::io("list", folder))?;
            Ok(listed.filter_map(|entry| entry.ok().map(|entry| entry.path())).collect())
        }
    }
}

/// Writes a small file and its folder, whole or not at all, synced.
pub(super) fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let mut file = temporary(folder)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(path).map(drop).map_err(|error| error.error)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn bytes_come_back_and_a_flipped_bit_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let store = BlobStore::new(dir.path().join("blobs"));
        let digest = store.write(b"hello", true).unwrap();
        assert_eq!(store.read(&digest).unwrap(), b"hello");
        // Who else may read files that are made here may read this one.
        fs::write(dir.path().join("any"), "").unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode(&store.path(&digest)), mode(&dir.path().join("any")));
        let other = BlobDigest::of(b"other");
        for look in [store.look_for(1), store.look_for(MANY)] {
            assert!(look.has(&digest, 5) && !look.has(&digest, 4) && !look.has(&other, 5));
        }
        fs::write(store.path(&digest), b"hellp").unwrap();
        assert!(matches!(store.read(&digest), Err(StoreError::Corrupt { .. })));
        assert!(matches!(store.read(&digest), Err(StoreError::Missing(_))));
        assert_eq!(store.write(b"hello", true).unwrap(), digest);
        assert_eq!(store.list().unwrap().len(), 1);
    }
}
