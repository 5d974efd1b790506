//! Files of PyTorch's `torch.save`: a pickle of the objects and, beside it, the bytes of their storages.
//!
//! Since PyTorch 1.6 a zip archive of `NAME/data.pkl` and `NAME/data/KEY`, all stored as they are; before, five
//! pickles in a row (magic number, protocol, system, objects, keys of storages), then each storage after its length.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::io;
use std::ops::Range;

use anyhow::{Context, bail, ensure};
use safetensors::tensor::Dtype;
use zip::{CompressionMethod, ZipArchive};

use super::entry::{Entry, NotACheckpoint};
use super::names::{Found, shown};
use super::pickle::{Cursor, Node, NodeIdx, Pickle};

/// 0x1950a86a20f9469cfc6c
const LEGACY_MAGIC: &[u8] = b"\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19";
const LEGACY_PROTOCOL: i64 = 1001;
/// Dicts in dicts are followed so far, and names are so long.
const MAX_DEPTH: usize = 8;
const MAX_NAME: usize = 1024;
const SAVE_STATE_DICT: &str = "in Python: torch.save(model.state_dict(), \"FILE\")";

/// A member of an archive.
struct Member {
    /// Of its bytes in the file.
    range: Range<usize>,
    crc32: u32,
    is_stored: bool,
}

/// The tensors of a zip archive.
pub(super) fn read_zip(bytes: &[u8]) -> anyhow::Result<Found> {
    let members = members(bytes)?;
    let root = |name: &str| Some(name.strip_suffix("/data.pkl")?.to_owned()).filter(|root| !root.contains('/'));
    let Some(root) = members.keys().find_map(|name| root(name)) else {
        bail!("not a checkpoint: a zip archive, but not one of PyTorch");
    };
    let is_code =
        |name: &String| *name == format!("{root}/constants.pkl") || name.starts_with(&format!("{root}/code/"));
    if members.keys().any(is_code) {
        let hint = "in Python: torch.save(torch.jit.load(\"FILE\").state_dict(), \"NEW\")";
        return Err(NotACheckpoint::error(
            "a TorchScript archive (a program of torch.jit.save), not a state dict",
            hint,
        ));
    }
    let find = |name: &str| members.get(&format!("{root}/{name}"));
    let stored = |name: &str| -> anyhow::Result<&Member> {
        let member = find(name).with_context(|| format!("the archive has no `{}`", shown(name)))?;
        ensure!(member.is_stored, "`{name}` is compressed in the archive, which PyTorch's own files never are");
        Ok(member)
    };
    if let Some(order) = find("byteorder") {
        ensure_little_endian(bytes.get(order.range.clone()) != Some(b"big"))?;
    }
    let objects = stored("data.pkl")?;
    let pickled = bytes.get(objects.range.clone()).unwrap_or_default();
    // PyTorch can be told to leave the sums out; they are 0 then.
    ensure!(objects.crc32 == 0 || objects.crc32 == crc32fast::hash(pickled), "`data.pkl` is damaged");
    let pickle = Pickle::read(&mut Cursor::within(pickled, bytes.len())).context("`data.pkl`")?;
    state_dict(&pickle, |key| Ok(stored(&format!("data/{key}"))?.range.clone()))
}

/// The archive's directory.
fn members(bytes: &[u8]) -> anyhow::Result<BTreeMap<String, Member>> {
    if !has_directory(bytes) {
        return Err(NotACheckpoint::cut_short(bytes.len()));
    }
    let mut archive = ZipArchive::new(io::Cursor::new(bytes)).context("damaged zip archive")?;
    let mut members = BTreeMap::new();
    for i in 0..archive.len() {
        let file = archive.by_index_raw(i).context("damaged zip archive")?;
        let range = (|| {
            let start = usize::try_from(file.data_start()).ok()?;
            let end = start.checked_add(usize::try_from(file.compressed_size()).ok()?)?;
            bytes.get(start..end).map(|_| start..end)
        })();
        let range = range.with_context(|| format!("damaged zip archive: `{}` is outside of it", shown(file.name())))?;
        let is_stored = file.compression() == CompressionMethod::Stored;
        members.insert(file.name().to_owned(), Member { range, crc32: file.crc32(), is_stored });
    }
    Ok(members)
}

/// The end of an archive is there, and says nothing absurd about the number of members: the zip crate reserves memory
/// for as many. (With more than 65,535 the number stands in another record, which the end's neighbour points to.)
fn has_directory(bytes: &[u8]) -> bool {
    const END: usize = 22;
    const LOCATOR: usize = 20;
    const MEMBER: u64 = 46;
    let tail = bytes.len().saturating_sub(END + usize::from(u16::MAX));
    let Some(last) = bytes.len().checked_sub(END) else { return false };
    let Some(end) = (tail..=last).rev().find(|&at| bytes[at..].starts_with(b"PK\x05\x06")) else { return false };
    let number = |at: usize| Some(u64::from_le_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?));
    let Some(locator) = end.checked_sub(LOCATOR).filter(|&at| bytes[at..].starts_with(b"PK\x06\x07")) else {
        return true;
    };
    let n_members = number(locator + 8).and_then(|at| {
        let at = usize::try_from(at).ok()?;
        bytes.get(at..)?.starts_with(b"PK\x06\x06").then(|| number(at.checked_add(32)?))?
    });
    n_members.is_some_and(|n| n <= bytes.len() as u64 / MEMBER)
}

/// The tensors of a file of PyTorch before 1.6.
pub(super) fn read_legacy(bytes: &[u8]) -> anyhow::Result<Found> {
    let mut cursor = Cursor::new(bytes);
    let magic = Pickle::read(&mut cursor)?;
    if *magic.node(magic.root) != Node::Long(LEGACY_MAGIC) {
        bail!("not a checkpoint: a Python pickle, but not one of PyTorch");
    }
    let protocol = Pickle::read(&mut cursor)?;
    let protocol = protocol.int(protocol.root);
    ensure!(protocol == Some(LEGACY_PROTOCOL), "a PyTorch file of an unknown protocol {protocol:?}");
    let system = Pickle::read(&mut cursor)?;
    if let Node::Dict(entries) = system.node(system.root) {
        let is_big = |(key, value): &(NodeIdx, NodeIdx)| {
            system.text(*key) == Some("little_endian") && *system.node(*value) == Node::Bool(false)
        };
        ensure_little_endian(!entries.iter().any(is_big))?;
    }
    let objects = Pickle::read(&mut cursor)?;
    let keys = Pickle::read(&mut cursor)?;

    // A storage's length is in elements, so its type must be known to find the next one.
    let known = objects.nodes.iter().enumerate().filter_map(|(idx, _)| storage(&objects, idx).ok());
    let known: HashMap<&str, Dtype> = known.map(|storage| (storage.key, storage.dtype)).collect();
    let mut places = HashMap::new();
    for &key in keys.members(keys.root).context("no list of storages")? {
        let key = keys.text(key).context("a storage without a name")?;
        let dtype = known.get(key).with_context(|| format!("storage `{}` is of an unknown type", shown(key)))?;
        let n = i64::from_le_bytes(cursor.array()?);
        let n = usize::try_from(n).ok().and_then(|n| n.checked_mul(dtype.bitsize() / 8));
        let start = cursor.at;
        cursor.take(n.with_context(|| format!("storage `{}` has a length out of range", shown(key)))?)?;
        places.insert(key, start..cursor.at);
    }
    state_dict(&objects, |key| {
        places.get(key).cloned().with_context(|| format!("the file has no storage `{}`", shown(key)))
    })
}

fn ensure_little_endian(is_little: bool) -> anyhow::Result<()> {
    if !is_little {
        let hint = "load it with PyTorch and save it again on this machine";
        return Err(NotACheckpoint::error("it was written on a big-endian machine, which is not read", hint));
    }
    Ok(())
}

/// What a persistent id names: the bytes of one or more tensors.
struct Storage<'a> {
    dtype: Dtype,
    key: &'a str,
    /// Elements of a part of a storage before its first (PyTorch before 0.4 saved parts).
    skipped: i64,
}

fn storage<'a>(pickle: &Pickle<'a>, idx: NodeIdx) -> anyhow::Result<Storage<'a>> {
    let Node::Persistent(id) = pickle.node(idx) else { bail!("no storage where one belongs") };
    let id = pickle.members(*id).unwrap_or_default();
    let &[tag, kind, key, _location, _numel, ref part @ ..] = id else { bail!("a storage of {} parts", id.len()) };
    ensure!(pickle.text(tag) == Some("storage"), "no storage where one belongs");
    let Node::Global(_, kind) = pickle.node(kind) else { bail!("a storage without a type") };
    let dtype = match *kind {
        "FloatStorage" => Dtype::F32,
        "HalfStorage" => Dtype::F16,
        "BFloat16Storage" => Dtype::BF16,
        "DoubleStorage" => Dtype::F64,
        "LongStorage" => Dtype::I64,
        "IntStorage" => Dtype::I32,
        "ShortStorage" => Dtype::I16,
        "CharStorage" => Dtype::I8,
        "ByteStorage" => Dtype::U8,
        "BoolStorage" => Dtype::BOOL,
        "ComplexFloatStorage" => Dtype::C64,
        kind => bail!("values of a `{}` are not read", shown(kind)),
    };
    let part = part.first().and_then(|&part| pickle.members(part));
    let skipped = part.and_then(|part| pickle.int(*part.get(1)?)).unwrap_or(0);
    Ok(Storage { dtype, key: pickle.text(key).context("a storage without a name")?, skipped })
}

/// The tensors of the state dict in some objects. `locate` gives the bytes of a storage by its key.
fn state_dict(pickle: &Pickle<'_>, locate: impl Fn(&str) -> anyhow::Result<Range<usize>>) -> anyhow::Result<Found> {
    if let Some(((module, name), _)) = pickle.call(pickle.root) {
        let message = format!("a whole object of class `{}.{}`, not a state dict", shown(module), shown(name));
        return Err(NotACheckpoint::error(message, SAVE_STATE_DICT));
    }
    let mut found = Found::default();
    let mut seen = HashSet::new();
    let mut looked = HashSet::new();
    // Dicts in dicts: `{"state_dict": {"conv1.weight": ..}}` has `state_dict.conv1.weight`. Each is looked at once, so that
    // no sharing makes more names than there are entries.
    let mut left = VecDeque::from([(String::new(), pickle.root, 0)]);
    while let Some((path, idx, depth)) = left.pop_front() {
        let Node::Dict(entries) = pickle.node(idx) else { continue };
        if !looked.insert(idx) {
            continue;
        }
        for &(key, value) in entries {
            let key = match pickle.node(key) {
                Node::Text(text) => (*text).to_owned(),
                Node::Int(number) => number.to_string(),
                _ => "(no text)".to_owned(),
            };
            ensure!(path.len() + key.len() <= MAX_NAME, "a name of {} bytes", path.len() + key.len());
            let name = format!("{path}{key}");
            if matches!(pickle.node(value), Node::Dict(_)) {
                if depth < MAX_DEPTH {
                    left.push_back((name + ".", value, depth + 1));
                }
                continue;
            }
            match tensor(pickle, value, &locate, &mut seen) {
                Ok(Some(entry)) => drop(found.tensors.insert(name, entry)),
                Ok(None) => {}
                Err(error) => found.failed.push((name, error)),
            }
        }
    }
    if !found.tensors.is_empty() {
        return Ok(found);
    }
    if let Some((name, error)) = found.failed.into_iter().next() {
        return Err(error.context(format!("tensor `{}`", shown(&name))));
    }
    let has = match pickle.node(pickle.root) {
        Node::Dict(entries) => {
            let keys = entries.iter().filter_map(|&(key, _)| pickle.text(key));
            let keys: Vec<String> = keys.take(8).map(|key| format!("`{}`", shown(key))).collect();
            if keys.is_empty() { "an empty dict".to_owned() } else { format!("a dict of {}", keys.join(", ")) }
        }
        _ => "another object".to_owned(),
    };
    let hint = "tensors are looked for in it and in the dicts that it holds; save the state dict alone";
    Err(NotACheckpoint::error(format!("no state dict in it, but {has}"), hint))
}

/// The tensor an object is, if it is one.
fn tensor(
    pickle: &Pickle<'_>,
    value: NodeIdx,
    locate: impl Fn(&str) -> anyhow::Result<Range<usize>>,
    seen: &mut HashSet<NodeIdx>,
) -> anyhow::Result<Option<Entry>> {
    let mut value = value;
    // A parameter is a call around that of its tensor.
    for _ in 0..3 {
        let Some((function, args)) = pickle.call(value) else { break };
        match (function, args) {
            (
                ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state")
                | ("torch.nn.parameter", "Parameter")
                | ("torch.autograd.variable", "Variable"),
                &[data, ..],
            ) => value = data,
            (("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2"), &[of, offset, shape, stride, ..]) => {
                let Storage { dtype, key, skipped } = storage(pickle, of)?;
                let ints = |idx: NodeIdx| pickle.ints(idx).context("a size or stride that is no list of integers");
                let offset = pickle.int(offset).filter(|offset| 0 <= *offset && 0 <= skipped);
                let offset = offset.and_then(|offset| offset.checked_add(skipped)).context("an offset out of range")?;
                return Entry::strided(dtype, (ints(shape)?, ints(stride)?), offset, locate(key)?).map(Some);
            }
            _ => break,
        }
    }
    if let Node::Call { callable, .. } = pickle.node(value)
        && pickle.reaches_outside(value, seen)
    {
        match pickle.node(*callable) {
            Node::Global(module, name) => bail!("it is made by `{}.{}`, which is not read", shown(module), shown(name)),
            _ => bail!("it is made by something that is not read"),
        }
    }
    Ok(None)
}
