//! Files of MXNet's `nd.save` (`.params`): a list of arrays, then a list of their names.
//!
//! Little-endian. The list: 0x112, 0, and the number of arrays, each u64. An array: what tells its version, the sizes
//! of its dimensions after their number, the device it was on, the type of its values, and the values. The names:
//! their number, then each after its length.

use std::collections::BTreeMap;

use anyhow::{Context, bail, ensure};
use safetensors::tensor::Dtype;

use super::entry::{Entry, MAX_DIMS};
use super::names::shown;
use super::pickle::Cursor;

/// 0x112
pub(super) const MAGIC: [u8; 8] = [0x12, 1, 0, 0, 0, 0, 0, 0];
/// An array with sizes of 64 bits. Before, their number came first and each had 32 bits.
const V1: u32 = 0xF993_FAC8;
/// With the layout of its values as well: 0 where none is left out.
const V2: u32 = 0xF993_FAC9;
/// As the second, and no dimensions make a scalar.
const V3: u32 = 0xF993_FACA;
/// Before a name: a parameter or a statistic.
const PREFIXES: [&str; 2] = ["arg:", "aux:"];
/// More than any network has.
const MAX_ARRAYS: u64 = 1 << 20;

pub(super) fn read(bytes: &[u8]) -> anyhow::Result<BTreeMap<String, Entry>> {
    let mut cursor = Cursor::new(bytes);
    cursor.take(MAGIC.len() + 8)?;
    let n = cursor.u64()?;
    ensure!(n <= MAX_ARRAYS, "damaged MXNet file: {n} arrays");
    let entries = (0..n).map(|i| array(&mut cursor).with_context(|| format!("array {i}")));
    let entries = entries.collect::<anyhow::Result<Vec<_>>>()?;
    let n_names = cursor.u64()?;
    ensure!(n_names == n, "an MXNet file with {n} arrays and {n_names} names");
    let mut tensors = BTreeMap::new();
    for entry in entries {
        let len = usize::try_from(cursor.u64()?)?;
        let name = std::str::from_utf8(cursor.take(len)?).context("a name that is no text")?;
        let name = PREFIXES.iter().find_map(|prefix| name.strip_prefix(prefix)).unwrap_or(name);
        ensure!(tensors.insert(name.to_owned(), entry).is_none(), "two arrays are named `{}`", shown(name));
    }
    let left = bytes.len() - cursor.at;
    ensure!(left == 0, "damaged MXNet file: {left} bytes after its end");
    Ok(tensors)
}

fn array(cursor: &mut Cursor<'_>) -> anyhow::Result<Entry> {
    let version = cursor.u32()?;
    if matches!(version, V2 | V3) {
        let layout = cursor.u32()?;
        ensure!(layout == 0, "it is sparse (layout {layout}), which is not read");
    }
    let is_old = !matches!(version, V1 | V2 | V3);
    let n_dims = if is_old { version } else { cursor.u32()? } as usize;
    ensure!(n_dims <= MAX_DIMS, "{n_dims} dimensions");
    ensure!(n_dims > 0 || version == V3, "it has no values");
    let size = |_| -> anyhow::Result<usize> {
        Ok(usize::try_from(if is_old { u64::from(cursor.u32()?) } else { cursor.u64()? })?)
    };
    let shape = (0..n_dims).map(size).collect::<anyhow::Result<Vec<_>>>()?;
    let _device: [u8; 8] = cursor.array()?;
    let dtype = match cursor.u32()? {
        0 => Dtype::F32,
        1 => Dtype::F64,
        2 => Dtype::F16,
        3 => Dtype::U8,
        4 => Dtype::I32,
        5 => Dtype::I8,
        6 => Dtype::I64,
        7 => Dtype::BOOL,
        8 => Dtype::I16,
        12 => Dtype::BF16,
        kind => bail!("values of type {kind} are not read"),
    };
    let n_bytes = shape.iter().try_fold(dtype.bitsize() / 8, |n, &size| n.checked_mul(size));
    let start = cursor.at;
    cursor.take(n_bytes.with_context(|| format!("the size {shape:?} is out of range"))?)?;
    Entry::dense(dtype, &shape, start..cursor.at)
}

#[cfg(test)]
mod tests {
    use tch::{Kind, Tensor};

    use crate::model::weights::{Format, Weights};

    /// A file of tests/golden/mxnet.
    fn golden(version: &str) -> Vec<u8> {
        let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/mxnet");
        std::fs::read(dir.join(format!("{version}.params"))).unwrap()
    }

    /// The tensors that make.py wrote, from each version of the format.
    #[test]
    fn files_of_mxnet_are_read_as_they_are() {
        let of = |kind: Kind, values: &[f64]| Tensor::from_slice(values).to_kind(kind);
        let weight: Vec<f64> = (0..24).map(|i| f64::from(i) / 8.0 - 1.0).collect();
        let arrays = [
            ("res2a_branch2a_weight", of(Kind::Float, &weight).view([2, 3, 2, 2])),
            ("bn2a_branch2a_moving_mean", of(Kind::Double, &[0.1, -0.2])),
            ("half", of(Kind::Half, &[1.5, -2.0]).view([1, 2])),
            ("u8", of(Kind::Uint8, &[250.0, 6.0])),
            ("i32", of(Kind::Int, &[-5.0, 6.0])),
            ("i8", of(Kind::Int8, &[-5.0, 6.0])),
            ("i64", of(Kind::Int64, &[2f64.powi(40)])),
        ];
        let numpy = [
            ("scalar", of(Kind::Float, &[7.0]).view([0i64; 0])),
            ("bool", of(Kind::Bool, &[1.0, 0.0, 1.0])),
            ("row", of(Kind::Float, &[1.0, 2.0]).view([1, 2])),
        ];
        for (version, expected) in [("legacy", &arrays[..]), ("v1", &arrays), ("v2", &arrays), ("v3", &numpy)] {
            let weights = Weights::parse(golden(version)).unwrap();
            assert_eq!((weights.format(), weights.names().count()), (Format::Mxnet, expected.len()), "{version}");
            for (name, expected) in expected {
                let found = weights.raw(name).unwrap();
                assert_eq!((found.kind(), found.size()), (expected.kind(), expected.size()), "{version}: {name}");
                assert!(found.equal(expected), "{version}: {name} is {found:?}");
            }
        }
    }

    #[test]
    fn hostile_files_are_errors() {
        let whole = golden("v2");
        // Bytes put over those of a file, from a place on.
        let with = |at: usize, bytes: &[u8]| {
            let mut file = whole.clone();
            file[at..at + bytes.len()].copy_from_slice(bytes);
            file
        };
        let huge = u64::MAX.to_le_bytes();
        let twice = with(whole.len() - 3, b"i32"); // instead of i64
        #[rustfmt::skip]
        let cases: [(&str, Vec<u8>, &str); 11] = [
            ("arrays without end", with(16, &huge),             "damaged MXNet file: 18446744073709551615 arrays"),
            ("too many arrays",    with(16, &[8]),              "array 7: values of type 7540 are not read"),
            ("sparse",             with(28, &[1]),              "array 0: it is sparse (layout 1), which is not read"),
            ("dimensions",         with(32, &[65]),             "array 0: 65 dimensions"),
            ("none",               with(32, &[0]),              "array 0: it has no values"),
            ("out of range",       with(36, &huge),             "array 0: the size [18446744073709551615, 3, 2, 2] is out of range"),
            ("large",              with(38, &[1]),              "array 0: cut short at byte 548"),
            ("a size below 0",     with(40, &huge[..4]),        "array 0: the size"),
            ("an unknown type",    with(76, &[9]),              "array 0: values of type 9 are not read"),
            ("one name twice",     twice,                       "two arrays are named `i32`"),
            ("more behind it",     [&whole[..], &[0]].concat(), "damaged MXNet file: 1 bytes after its end"),
        ];
        for (name, bytes, expected) in cases {
            let error = format!("{:#}", Weights::parse(bytes).unwrap_err());
            assert!(error.starts_with(expected), "{name}: {error}");
        }
    }
}
