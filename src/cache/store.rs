//! Blobs: bytes named by their BLAKE3 digest, `blobs/ab/cdef..`.
//!
//! A blob is written to a temporary file beside its place, renamed: it is whole or not there. It is hashed whenever it
//! is read, so a flipped byte is an error and never a result. What stands in a blob's place and is no file of its size (a
//! folder, a link, a named pipe) is no blob: the blob is lost, and made again when something needs it.

use std::ffi::CStr;
use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rustix::fs::{AtFlags, FileType, statat};
use tempfile::NamedTempFile;

use crate::artifact::ArtifactRef;
use crate::data::{TEMPORARY, temporary};
use crate::digest::BlobDigest;
use crate::regular;

/// So many blobs that opening their folders is worth it.
const MANY: usize = 1000;

/// A blob of more bytes is hashed before it is held in memory.
pub(super) const LARGE: u64 = 256 << 20;

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
        self.size(digest) == Some(size)
    }

    /// Bytes of what stands in the place of a blob, if it is a file.
    pub(super) fn size(&self, digest: &BlobDigest) -> Option<u64> {
        fs::symlink_metadata(self.path(digest)).ok().filter(fs::Metadata::is_file).map(|meta| meta.len())
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
            put_in_place(file, &path)?;
            if synced { sync(folder) } else { Ok(()) }
        };
        write().map_err(StoreError::io("write", &path))?;
        Ok(digest)
    }

    /// The bytes, checked. A corrupt blob is removed, so that its unit is computed again, unless this is
    /// [`Self::only_read`].
    pub fn read(&self, digest: &BlobDigest) -> Result<Vec<u8>, StoreError> {
        let path = self.path(digest);
        let (mut file, len) = match regular::open_own(&path) {
            // No blob is as large.
            Ok((_, len)) if regular::ensure_readable(len).is_err() => return Err(StoreError::Missing(*digest)),
            // Whatever else is there is no blob.
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::Other) => {
                return Err(StoreError::Missing(*digest));
            }
            opened => opened.map_err(StoreError::io("read", &path))?,
        };
        // A file that is not the blob may be of any size: it is not held in memory.
        if len > LARGE {
            self.check(digest, digest_of(&mut file).map_err(StoreError::io("read", &path))?)?;
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(StoreError::io("read", &path))?;
        self.check(digest, BlobDigest::of(&bytes))?;
        Ok(bytes)
    }

    /// Compares the digest of the bytes in a blob's place with the blob's.
    fn check(&self, expected: &BlobDigest, actual: BlobDigest) -> Result<(), StoreError> {
        if actual == *expected {
            return Ok(());
        }
        if self.removes_corrupt {
            let path = self.path(expected);
            match fs::remove_file(&path) {
                // Another reader found it first.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                removed => removed.map_err(StoreError::io("remove", &path))?,
            }
        }
        Err(StoreError::Corrupt { expected: *expected, actual })
    }

    /// The bytes of an output, as [`Self::read`]; a file of another size is not read.
    pub fn read_output(&self, output: &ArtifactRef) -> Result<Vec<u8>, StoreError> {
        match self.has(&output.digest, output.size) {
            true => self.read(&output.digest),
            false => Err(StoreError::Missing(output.digest)),
        }
    }

    /// What is in the folders of blobs.
    pub fn list(&self) -> Result<Listed, StoreError> {
        let mut listed = Listed::default();
        for folder in entries(&self.root)? {
            let prefix = name_of(&folder);
            let is_folder = fs::symlink_metadata(&folder).is_ok_and(|meta| meta.is_dir());
            if !is_folder || prefix.len() != 2 || !prefix.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                listed.foreign.push(folder);
                continue;
            }
            for path in entries(&folder)? {
                let Ok(meta) = fs::symlink_metadata(&path) else { continue };
                let rest = name_of(&path);
                match format!("{prefix}{rest}").parse() {
                    Ok(digest) if meta.is_file() => listed.blobs.push((digest, path, meta.len())),
                    _ if meta.is_file() && rest.starts_with(TEMPORARY) => listed.left.push((path, meta.len())),
                    _ => listed.foreign.push(path),
                }
            }
        }
        listed.foreign.sort();
        Ok(listed)
    }
}

/// What stands in the folders of blobs.
#[derive(Clone, Debug, Default)]
pub struct Listed {
    /// With their sizes.
    pub blobs: Vec<(BlobDigest, PathBuf, u64)>,
    /// Temporary files of processes that were killed.
    pub left: Vec<(PathBuf, u64)>,
    /// What this program did not put there. It is left alone.
    pub foreign: Vec<PathBuf>,
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
            (Some(folder), Ok(name)) => statat(folder, name, AtFlags::SYMLINK_NOFOLLOW).is_ok_and(|stat| {
                let is_file = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
                is_file && u64::try_from(stat.st_size) == Ok(size)
            }),
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

/// The digest of a file that is not held in memory.
pub(super) fn digest_of(file: &mut File) -> io::Result<BlobDigest> {
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(&mut *file)?;
    file.rewind()?;
    Ok(BlobDigest::from_bytes(*hasher.finalize().as_bytes()))
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// A folder in a file's place goes aside, with all that somebody put there; a file takes the place of all else.
pub(super) fn make_room(path: &Path) -> io::Result<()> {
    if !fs::symlink_metadata(path).is_ok_and(|meta| meta.is_dir()) || fs::remove_dir(path).is_ok() {
        return Ok(());
    }
    let aside = |n: u32| path.with_file_name(format!("{}.aside-{n}", name_of(path)));
    let free = (1..).map(aside).find(|aside| fs::symlink_metadata(aside).is_err());
    free.map_or(Ok(()), |aside| fs::rename(path, aside))
}

/// Gives a file that is whole its place, whatever stands there.
pub(super) fn put_in_place(file: NamedTempFile, path: &Path) -> io::Result<()> {
    make_room(path)?;
    file.persist(path).map(drop).map_err(|error| error.error)
}

/// Writes a small file and its folder, whole or not at all, synced.
pub(super) fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let mut file = temporary(folder)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    put_in_place(file, path)
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
        assert_eq!(store.list().unwrap().blobs.len(), 1);
    }

    #[test]
    fn what_is_no_file_in_a_blob_s_place_is_no_blob_and_what_is_foreign_stays() {
        let dir = tempfile::tempdir().unwrap();
        let store = BlobStore::new(dir.path().join("blobs"));
        let digest = store.write(b"hello", true).unwrap();
        let path = store.path(&digest);
        fs::write(dir.path().join("hello"), "hello").unwrap();
        let pipe = |path: &Path| assert!(std::process::Command::new("mkfifo").arg(path).status().unwrap().success());
        let folder = |path: &Path| {
            fs::create_dir(path).unwrap();
            fs::write(path.join("of the user"), "5").unwrap();
        };
        let link = |path: &Path| std::os::unix::fs::symlink(dir.path().join("hello"), path).unwrap();
        let hole = |path: &Path| File::create(path).unwrap().set_len(1 << 40).unwrap();
        let cases: [(&str, &dyn Fn(&Path)); 4] =
            [("pipe", &pipe), ("folder", &folder), ("link", &link), ("hole", &hole)];
        for (name, put) in cases {
            fs::remove_file(&path).unwrap();
            put(&path);
            let is_there = [1, MANY].map(|n| store.look_for(n).has(&digest, 5));
            assert!(!store.has(&digest, 5) && is_there == [false, false], "{name}");
            assert!(matches!(store.read(&digest), Err(StoreError::Missing(_))), "{name}");
            store.write(b"hello", true).unwrap();
            assert_eq!(store.read(&digest).unwrap(), b"hello", "{name}");
        }
        assert_eq!(fs::read(path.with_file_name(format!("{}.aside-1/of the user", name_of(&path)))).unwrap(), b"5");
        fs::write(dir.path().join("blobs/.DS_Store"), "").unwrap();
        fs::create_dir(path.with_file_name("@eaDir")).unwrap();
        fs::write(path.with_file_name(".tmp-killed"), "he").unwrap();
        let listed = store.list().unwrap();
        assert_eq!((listed.blobs.len(), listed.left.len(), listed.foreign.len()), (1, 1, 3), "{listed:?}");
    }
}
