//! Which kind of file some bytes are, and the tensors it lists.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::Context;
use safetensors::tensor::{Metadata, SafeTensors, TensorInfo};

use super::entry::{Entry, NotACheckpoint};
use super::mxnet;
use super::names::{Naming, shown, understood};
use super::pytorch::{read_legacy, read_zip};

/// The kind of a checkpoint file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Safetensors,
    /// `torch.save` since PyTorch 1.6.
    PytorchZip,
    /// `torch.save` before.
    PytorchLegacy,
    /// `nd.save` of MXNet.
    Mxnet,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Safetensors => "safetensors",
            Self::PytorchZip => "PyTorch",
            Self::PytorchLegacy => "PyTorch (before 1.6)",
            Self::Mxnet => "MXNet",
        })
    }
}

/// Of a .safetensors file; its own reader has the same limit.
const MAX_HEADER: u64 = 100_000_000;

/// The tensors of a file, by the names that models ask for.
pub(super) fn read(bytes: &[u8]) -> anyhow::Result<(Format, BTreeMap<String, Entry>, Naming)> {
    let format = match bytes {
        [b'P', b'K', 3, 4, ..] => Format::PytorchZip,
        [0x80, 2..=5, ..] => Format::PytorchLegacy,
        _ if header_len(bytes).is_some() => Format::Safetensors,
        _ if bytes.starts_with(&mxnet::MAGIC) => Format::Mxnet,
        _ => return Err(something_else(bytes)),
    };
    let found = match format {
        Format::Safetensors => read_safetensors(bytes)?.into(),
        Format::PytorchZip => read_zip(bytes)?,
        Format::PytorchLegacy => read_legacy(bytes)?,
        Format::Mxnet => mxnet::read(bytes)?.into(),
    };
    let (tensors, naming) = understood(found, bytes)?;
    Ok((format, tensors, naming))
}

/// The length of a .safetensors header, which is JSON after its length.
fn header_len(bytes: &[u8]) -> Option<u64> {
    let (len, json) = bytes.split_first_chunk::<8>()?;
    Some(u64::from_le_bytes(*len)).filter(|len| *len <= MAX_HEADER && json.first() == Some(&b'{'))
}

fn read_safetensors(bytes: &[u8]) -> anyhow::Result<BTreeMap<String, Entry>> {
    let data = header_len(bytes).and_then(|len| usize::try_from(len).ok()?.checked_add(8));
    let header = data.and_then(|data| Some((bytes.get(8..data)?, data)));
    let Some((header, data)) = header else { return Err(NotACheckpoint::cut_short(bytes.len())) };
    let listed = match SafeTensors::read_metadata(bytes) {
        Ok((_, listed)) => listed,
        Err(error) => {
            let listed: Option<Metadata> = serde_json::from_slice(header).ok();
            if listed.is_some_and(|listed| bytes.len() - data < listed.data_len()) {
                return Err(NotACheckpoint::cut_short(bytes.len()));
            }
            return Err(error).context("damaged .safetensors file");
        }
    };
    let entry = |(name, info): (String, &TensorInfo)| {
        let (start, end) = info.data_offsets; // checked against the bytes and the shape
        let entry = Entry::dense(info.dtype, &info.shape, data + start..data + end);
        Ok((name.clone(), entry.with_context(|| format!("tensor `{}`", shown(&name)))?))
    };
    listed.tensors().into_iter().map(entry).collect()
}

/// Names what people take for a checkpoint.
fn something_else(bytes: &[u8]) -> anyhow::Error {
    let is_page = |start: &[u8]| {
        let start = start.trim_ascii_start().to_ascii_lowercase();
        start.starts_with(b"<!doctype html") || start.starts_with(b"<html")
    };
    let (what, hint) = match bytes {
        [] => ("an empty file", "get it again"),
        [0x89, b'H', b'D', b'F', ..] => ("an HDF5 file, as Keras writes", "take a checkpoint of PyTorch instead"),
        [b'G', b'G', b'U', b'F', ..] => ("a GGUF file", "take a checkpoint of PyTorch instead"),
        [0x1f, 0x8b, ..] => ("a gzip file", "unpack it first"),
        _ if bytes.starts_with(b"version https://git-lfs") => {
            ("a pointer of Git LFS", "fetch the file itself: git lfs pull")
        }
        _ if is_page(&bytes[..bytes.len().min(64)]) => {
            ("a web page", "download the file itself, not the page about it")
        }
        _ if bytes.get(257..262) == Some(b"ustar") => ("a tar archive", "unpack it; PyTorch before 0.2 is not read"),
        _ => ("neither .safetensors nor a PyTorch file", "give a .safetensors file, or one of torch.save"),
    };
    NotACheckpoint::error(format!("not a checkpoint: {what}"), hint)
}
