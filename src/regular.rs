//! The user's files are regular ones: a named pipe would be waited for, and a device such as /dev/zero never ends.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

/// What is read into memory whole has at most so many bytes: no checkpoint, list or picture is larger.
const MAX_BYTES: u64 = 16 << 30;

/// Opens a regular file to read it, and gives its size.
///
/// # Errors
/// It is something else, which is said; it is never waited for.
pub(crate) fn open(path: &Path) -> io::Result<(File, u64)> {
    // Looked at before it is opened, since opening alone has effects on some devices; and after, since it may change.
    ensure_regular(&std::fs::metadata(path)?)?;
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    let meta = file.metadata()?;
    ensure_regular(&meta)?;
    Ok((file, meta.len()))
}

/// The same of a file of the cache: it stands at its place itself, and a link there is no file either.
///
/// # Errors
/// As of [`open`]; [`io::ErrorKind::NotFound`] alone tells that nothing is there.
pub(crate) fn open_own(path: &Path) -> io::Result<(File, u64)> {
    ensure_regular(&std::fs::symlink_metadata(path)?)?;
    let flags = libc::O_NONBLOCK | libc::O_NOFOLLOW;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let meta = file.metadata()?;
    ensure_regular(&meta)?;
    Ok((file, meta.len()))
}

/// The bytes of a file of the cache.
///
/// # Errors
/// As of [`open_own`].
pub(crate) fn read_own(path: &Path) -> io::Result<Vec<u8>> {
    let (mut file, len) = open_own(path)?;
    let mut bytes = Vec::with_capacity(ensure_readable(len)?);
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The size of a file that is read into memory whole.
pub(crate) fn ensure_readable(len: u64) -> io::Result<usize> {
    if len > MAX_BYTES {
        return Err(io::Error::other(format!("it has {len} bytes, and files of more than {MAX_BYTES} are not read")));
    }
    usize::try_from(len).map_err(io::Error::other)
}

/// What stands at a place that is no regular file: `a named pipe`.
pub(crate) fn what_else(path: &Path) -> Option<&'static str> {
    other_than_file(std::fs::metadata(path).ok()?.file_type())
}

fn ensure_regular(meta: &std::fs::Metadata) -> io::Result<()> {
    match other_than_file(meta.file_type()) {
        None => Ok(()),
        Some(what) => Err(io::Error::other(format!("it is {what}, not a file"))),
    }
}

fn other_than_file(kind: std::fs::FileType) -> Option<&'static str> {
    Some(match kind {
        _ if kind.is_file() => return None,
        _ if kind.is_dir() => "a folder",
        _ if kind.is_symlink() => "a link",
        _ if kind.is_fifo() => "a named pipe",
        _ if kind.is_socket() => "a socket",
        _ => "a device",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_regular_file_is_named_and_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let made = std::process::Command::new("mkfifo").arg(at("pipe")).status().unwrap();
        assert!(made.success());
        let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
        std::os::unix::fs::symlink(at("pipe"), at("link")).unwrap();
        let cases = [
            (dir.path().to_owned(), "it is a folder, not a file"),
            (at("pipe"), "it is a named pipe, not a file"),
            (at("link"), "it is a named pipe, not a file"),
            (at("socket"), "it is a socket, not a file"),
            ("/dev/zero".into(), "it is a device, not a file"),
        ];
        for (path, expected) in cases {
            assert_eq!(open(&path).unwrap_err().to_string(), expected, "{}", path.display());
        }
        std::fs::write(at("file"), "its bytes").unwrap();
        std::os::unix::fs::symlink(at("file"), at("to file")).unwrap();
        assert!(open(&at("to file")).is_ok());
        assert_eq!(open_own(&at("to file")).unwrap_err().to_string(), "it is a link, not a file");
        assert_eq!(open_own(&at("pipe")).unwrap_err().to_string(), "it is a named pipe, not a file");
        assert_eq!(read_own(&at("file")).unwrap(), b"its bytes");
        assert_eq!(open_own(&at("none")).unwrap_err().kind(), io::ErrorKind::NotFound);
        // A file with a hole may say any size.
        File::create(at("hole")).unwrap().set_len(1 << 40).unwrap();
        let (_, len) = open(&at("hole")).unwrap();
        assert!(ensure_readable(len).is_err());
    }
}
