//! Data sets.

pub mod augment;
pub mod coco;
pub mod door;
pub mod emoji;
mod exif;
mod find;
pub mod folder;
pub mod image;
mod jpeg;
pub mod mask_file;
pub mod orient;
mod resize;
pub mod rng;
pub mod scan;
pub(crate) mod text;
pub mod voc;

use std::fs::Permissions;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use tempfile::NamedTempFile;

use self::mask_file::Reading;
use crate::digest::BlobDigest;
use crate::regular;

/// Bytes that several readers may share.
pub type Bytes = Arc<[u8]>;

/// The bytes of a file, in memory once: those of a `Vec` would be copied to be shared.
pub fn read_shared(path: &Path) -> io::Result<Bytes> {
    let (mut file, len) = regular::open(path)?;
    let len = regular::ensure_readable(len)?;
    let mut bytes: Bytes = std::iter::repeat_n(0, len).collect();
    Arc::get_mut(&mut bytes).map_or(Ok(()), |bytes| file.read_exact(bytes))?;
    Ok(bytes)
}

/// How the name of a file begins that is not whole yet.
pub(crate) const TEMPORARY: &str = ".tmp-";

/// A file that takes another's place when it is whole. Others may read it as any file made here.
pub(crate) fn temporary(folder: &Path) -> io::Result<NamedTempFile> {
    tempfile::Builder::new().prefix(TEMPORARY).permissions(Permissions::from_mode(0o666)).tempfile_in(folder)
}

/// A file of the user, with the digest of its content, or of its content behind [`image::TURNED`] where it is an image
/// that is to be turned as its EXIF orientation says.
#[derive(Clone, Debug)]
pub struct FileRef {
    pub path: Arc<Path>,
    pub digest: BlobDigest,
}

/// The bytes of a file that a digest is of (see [`FileRef`]); `None`: the file has changed.
///
/// # Errors
/// The file cannot be read.
pub fn read_as(path: &Path, digest: &BlobDigest) -> io::Result<Option<Bytes>> {
    let bytes = read_shared(path)?;
    if BlobDigest::of(&bytes) == *digest {
        return Ok(Some(bytes));
    }
    let turned: Bytes = turned(&bytes).into();
    Ok((BlobDigest::of(&turned) == *digest).then_some(turned))
}

/// An image that is to be turned, as bytes.
fn turned(image: &[u8]) -> Vec<u8> {
    [image::TURNED, image].concat()
}

/// Ground truth of an image.
#[derive(Clone, Debug)]
pub enum Mask {
    /// A palette or grey PNG with class ids.
    File(FileRef),
    /// A picture that the stage `mask_file` makes one of.
    Translated { file: FileRef, reading: Reading },
    /// What [`coco::paint_mask`] paints, where the mask is needed.
    Outlines { bytes: Bytes, digest: BlobDigest },
}

impl Mask {
    /// Of what its labels are made of.
    pub fn digest(&self) -> BlobDigest {
        match self {
            Self::File(FileRef { digest, path: _ }) | Self::Outlines { digest, bytes: _ } => *digest,
            Self::Translated { file, reading } => BlobDigest::of(format!("{} {reading:?}", file.digest).as_bytes()),
        }
    }
}

/// One image of a data set.
#[derive(Clone, Debug)]
pub struct Item {
    /// `2007_000032`.
    pub id: String,
    pub image: FileRef,
    pub mask: Option<Mask>,
    /// Image-level labels, from 1, ascending, never empty for training images.
    pub labels: Vec<u8>,
    /// The classes in its mask, ascending; none where there is no mask.
    pub in_mask: Vec<u8>,
    /// As it is read: of an image that is turned, as viewers show it.
    pub height: usize,
    pub width: usize,
}

/// A data set, checked: every file decodes, masks fit their images, labels are known classes.
#[derive(Clone, Debug)]
pub struct Dataset {
    /// What figures on it are called: `voc-animals`, `emoji`.
    pub name: String,
    /// Background first: a label is a place in this list.
    pub classes: Vec<String>,
    pub train: Vec<Item>,
    pub val: Vec<Item>,
    /// What a user should know: images left out, images without a mask.
    pub notes: Vec<String>,
    /// What was decided of the files, a line each: its subject and the decision with its numbers.
    pub decided: Vec<(&'static str, String)>,
}

/// What is remembered about files between runs, so that a scan of an unchanged data set reads none of them.
pub trait FileMemo: Sync {
    /// The digest of a file's content, from memory if size, time and inode are those of last time.
    fn digest(&self, path: &Path) -> anyhow::Result<BlobDigest>;
    /// A fact derived from content, stored under a name and the content's digest.
    fn fact(&self, name: &str, of: &BlobDigest) -> Option<Vec<u8>>;
    fn remember(&self, name: &str, of: &BlobDigest, fact: &[u8]);
}
