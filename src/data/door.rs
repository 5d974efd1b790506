//! The door for files of the user's: only what is a file is read, and it is known by its content, whatever its name.

use std::io::{self, Read};
use std::path::Path;

use crate::regular;

/// Bytes that tell what a file is.
const HEAD: u64 = 512;

/// The bytes of a regular file that has no more than `most` of them.
pub fn read_regular(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    // Of some files, as those of /proc, the size is not known before the end.
    regular::open(path)?.0.take(most.saturating_add(1)).read_to_end(&mut bytes)?;
    match bytes.len() as u64 > most {
        true => Err(io::Error::other(format!("it has more than {} MB", most.div_ceil(1_000_000)))),
        false => Ok(bytes),
    }
}

/// What a file is, by its first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Jpeg,
    Png,
    /// A picture that is not read, in words.
    OtherPicture(&'static str),
    /// No picture, in words.
    NoPicture(&'static str),
}

impl Format {
    /// Of a regular file.
    pub fn of_file(path: &Path) -> io::Result<Self> {
        let mut head = Vec::new();
        regular::open(path)?.0.take(HEAD).read_to_end(&mut head)?;
        Ok(Self::of(&head))
    }

    /// Of a file's first bytes.
    pub fn of(bytes: &[u8]) -> Self {
        use Format::{Jpeg, NoPicture, OtherPicture, Png};
        let starts = |with: &[u8]| bytes.starts_with(with);
        let at = |place: usize, what: &[u8]| bytes.get(place..).is_some_and(|rest| rest.starts_with(what));
        let is_bmp = starts(b"BM") && at(6, &[0; 4]);
        let is_netpbm = bytes.len() > 2 && bytes[0] == b'P' && b"1234567f".contains(&bytes[1]) && bytes[2] <= b' ';
        match () {
            () if starts(b"\xff\xd8") => Jpeg,
            () if starts(b"\x89PNG\r\n\x1a\n") => Png,
            () if bytes.is_empty() => NoPicture("an empty file"),
            () if starts(b"GIF87a") || starts(b"GIF89a") => OtherPicture("a GIF picture"),
            () if is_bmp => OtherPicture("a BMP picture"),
            () if starts(b"RIFF") && at(8, b"WEBP") => OtherPicture("a WebP picture"),
            () if starts(b"II*\0") || starts(b"MM\0*") || starts(b"II+\0") || starts(b"MM\0+") => {
                OtherPicture("a TIFF picture")
            }
            () if at(4, b"ftyp") => Self::of_brands(bytes),
            () if starts(b"\xff\x0a") || starts(b"\0\0\0\x0cJXL ") => OtherPicture("a JPEG XL picture"),
            () if starts(b"\0\0\0\x0cjP  ") || starts(b"\xff\x4f\xff\x51") => OtherPicture("a JPEG 2000 picture"),
            () if starts(b"8BPS") => OtherPicture("a Photoshop picture"),
            () if starts(b"\0\0\x01\0") => OtherPicture("an icon (ICO)"),
            () if starts(b"v/1\x01") => OtherPicture("an OpenEXR picture"),
            () if at(128, b"DICM") => OtherPicture("a DICOM picture"),
            () if starts(b"FUJIFILMCCD-RAW") => OtherPicture("a raw picture of a camera"),
            () if is_netpbm => OtherPicture("a Netpbm picture"),
            () if starts(b"\0\x05\x16\x07") || starts(b"\0\x05\x16\0") => NoPicture("an AppleDouble file of macOS"),
            () if starts(b"%PDF") => NoPicture("a PDF document"),
            () if starts(b"PK\x03\x04") => NoPicture("a ZIP archive"),
            () if starts(b"\x1f\x8b") => NoPicture("a gzip file"),
            () if starts(b"\x93NUMPY") => NoPicture("a NumPy array"),
            () => Self::of_text(bytes),
        }
    }

    /// ISO base media: the major brand, then those that it goes with.
    fn of_brands(bytes: &[u8]) -> Self {
        let size = bytes.first_chunk::<4>().map_or(0, |size| u32::from_be_bytes(*size) as usize);
        let brands = &bytes[8..size.clamp(8, bytes.len())];
        let has = |known: &[&[u8; 4]]| brands.chunks_exact(4).any(|brand| known.iter().any(|known| brand == *known));
        match () {
            () if has(&[b"avif", b"avis"]) => Self::OtherPicture("an AVIF picture"),
            () if has(&[b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"]) => {
                Self::OtherPicture("a HEIC picture")
            }
            () if has(&[b"crx "]) => Self::OtherPicture("a raw picture of a camera"),
            () => Self::NoPicture("a video"),
        }
    }

    fn of_text(bytes: &[u8]) -> Self {
        // The first bytes may end within a character.
        let is_text = match std::str::from_utf8(bytes) {
            Ok(_) => true,
            Err(error) => error.error_len().is_none() && error.valid_up_to() > 0,
        } && !bytes.contains(&0);
        let begins = |with: &str| {
            let text = bytes.trim_ascii_start();
            text.get(..with.len()).is_some_and(|start| start.eq_ignore_ascii_case(with.as_bytes()))
        };
        let has = |what: &[u8]| bytes.windows(what.len()).any(|window| window == what);
        match is_text {
            true if begins("<!doctype html") || begins("<html") => Self::NoPicture("a web page"),
            true if begins("<svg") || (begins("<?xml") && has(b"<svg")) => Self::OtherPicture("an SVG drawing"),
            true if begins("version https://git-lfs") => Self::NoPicture("a pointer of Git LFS, not the file itself"),
            true => Self::NoPicture("text"),
            false if starts_utf16(bytes) => Self::NoPicture("text"),
            false => Self::NoPicture("of no kind that is known"),
        }
    }
}

fn starts_utf16(bytes: &[u8]) -> bool {
    bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff")
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_file_is_known_by_its_content() {
        use Format::{Jpeg, NoPicture, OtherPicture, Png};
        #[rustfmt::skip]
        let cases: [(&[u8], Format); 24] = [
            (b"\xff\xd8\xff\xe0\0\x10JFIF", Jpeg),
            (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", Png),
            (b"", NoPicture("an empty file")),
            (b"GIF89a\x01\0", OtherPicture("a GIF picture")),
            (b"BM\x36\x5a\0\0\0\0\0\0\x36\0\0\0", OtherPicture("a BMP picture")),
            (b"BM of Berlin: a text", NoPicture("text")),
            (b"RIFF\x74\x02\0\0WEBPVP8 ", OtherPicture("a WebP picture")),
            (b"RIFF\x74\x02\0\0WAVEfmt ", NoPicture("of no kind that is known")),
            (b"II*\0\x08\0\0\0", OtherPicture("a TIFF picture")),
            (b"MM\0*\0\0\0\x08", OtherPicture("a TIFF picture")),
            (b"II+\0\x08\0\0\0", OtherPicture("a TIFF picture")),
            (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", OtherPicture("a HEIC picture")),
            (b"\0\0\0\x1cftypmif1\0\0\0\0mif1avifmiaf", OtherPicture("an AVIF picture")),
            (b"\0\0\0\x14ftypisom\0\0\x02\0mp41", NoPicture("a video")),
            (b"\0\0\0\x0cJXL \r\n\x87\n", OtherPicture("a JPEG XL picture")),
            (b"\0\0\0\x0cjP  \r\n\x87\n", OtherPicture("a JPEG 2000 picture")),
            (b"P6\n2 2\n255\n", OtherPicture("a Netpbm picture")),
            (b"\0\x05\x16\x07\0\x02\0\0Mac OS X", NoPicture("an AppleDouble file of macOS")),
            (b"<!DOCTYPE html><html>404", NoPicture("a web page")),
            (b"<?xml version='1.0'?><svg>", OtherPicture("an SVG drawing")),
            (b"version https://git-lfs.github.com/spec/v1\n", NoPicture("a pointer of Git LFS, not the file itself")),
            ("Bäume\n".as_bytes(), NoPicture("text")),
            (b"\xff\xfeh\0i\0", NoPicture("text")),
            (b"\0\x01\x02\x03", NoPicture("of no kind that is known")),
        ];
        for (bytes, expected) in cases {
            assert_eq!(Format::of(bytes), expected, "{:?}", String::from_utf8_lossy(bytes));
        }
    }

    #[test]
    fn only_files_are_read_and_nothing_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::write(path("file"), "1234").unwrap();
        std::os::unix::fs::symlink(path("file"), path("link")).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, path("pipe"), rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(path("socket")).unwrap();
        assert_eq!(read_regular(&path("link"), 4).unwrap(), b"1234");
        for (file, said) in [
            (path("file"), "it has more than 1 MB"),
            (path("pipe"), "it is a named pipe, not a file"),
            (path(""), "it is a folder, not a file"),
            ("/dev/zero".into(), "it is a device, not a file"),
            (path("none"), "No such file"),
        ] {
            let error = read_regular(&file, 3).unwrap_err().to_string();
            assert!(error.starts_with(said), "{}: {error}", file.display());
        }
        assert!(read_regular(&path("socket"), 3).is_err());
    }
}
