//! Checkpoints: named tensors from bytes, under the names of the public files.
//!
//! Files of safetensors, of PyTorch and of MXNet are read as they are. The bytes are kept as they came and a tensor is made when
//! it is asked for, so that a large checkpoint is in memory once.

mod container;
mod entry;
mod finite;
mod mxnet;
mod names;
mod pickle;
mod pytorch;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, bail, ensure};
use safetensors::tensor::{Dtype, TensorView, serialize};
use tch::{Kind, Tensor};

pub use self::container::Format;
pub use self::entry::{Entry, NotACheckpoint};
pub use self::finite::Numbers;
pub use self::names::{Naming, shown};
use crate::data::Bytes;

/// Named tensors of a file.
#[derive(Debug)]
pub struct Weights {
    bytes: Bytes,
    format: Format,
    entries: BTreeMap<String, Entry>,
    naming: Naming,
    /// The names of tensors that were asked for.
    read: Mutex<BTreeSet<String>>,
}

impl Weights {
    /// From the bytes of a `.safetensors` file, a state dict of PyTorch or parameters of MXNet, which are shared where they can be.
    ///
    /// # Errors
    /// [`NotACheckpoint`] and others: the bytes are something else, cut short or damaged.
    pub fn parse(bytes: impl Into<Bytes>) -> anyhow::Result<Self> {
        let bytes = bytes.into();
        let (format, entries, naming) = container::read(&bytes)?;
        Ok(Self { bytes, format, entries, naming, read: Mutex::default() })
    }

    /// The same tensors by other names; those without one are left out.
    pub fn renamed(&self, name: impl Fn(&str) -> Option<String>) -> Self {
        let entries = self.entries.iter().filter_map(|(old, entry)| Some((name(old)?, entry.clone())));
        let (bytes, format, naming) = (self.bytes.clone(), self.format, self.naming.clone());
        Self { bytes, format, entries: entries.collect(), naming, read: Mutex::default() }
    }

    /// How the names came to be what they are.
    pub fn naming(&self) -> &Naming {
        &self.naming
    }

    /// The tensors that were asked for so far, or those that were not.
    pub fn asked(&self, was_asked: bool) -> Vec<&str> {
        let read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        self.names().filter(|name| read.contains(*name) == was_asked).collect()
    }

    /// What is wrong with the numbers of a tensor.
    pub fn numbers(&self, name: &str) -> anyhow::Result<Numbers> {
        Ok(Numbers::of(&self.bytes, self.entry(name)?))
    }

    pub fn format(&self) -> Format {
        self.format
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// What is known of each tensor without making it, in order of names.
    pub fn entries(&self) -> impl Iterator<Item = (&str, &Entry)> {
        self.entries.iter().map(|(name, entry)| (name.as_str(), entry))
    }

    pub fn contains(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    pub fn shape(&self, name: &str) -> Option<&[i64]> {
        self.entries.get(name).map(Entry::shape)
    }

    /// A tensor as f32, its shape checked.
    pub fn get(&self, name: &str, shape: &[i64]) -> anyhow::Result<Tensor> {
        let found = self.entry(name)?.shape();
        ensure!(found == shape, "tensor `{name}` is {found:?} in the checkpoint, not {shape:?}");
        Ok(self.raw(name)?.f_to_kind(Kind::Float)?.f_contiguous()?)
    }

    /// A tensor as stored; it may have gaps in memory.
    pub fn raw(&self, name: &str) -> anyhow::Result<Tensor> {
        let entry = self.entry(name)?;
        self.read.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned());
        self.tensor(entry).with_context(|| format!("tensor `{}`", shown(name)))
    }

    fn entry(&self, name: &str) -> anyhow::Result<&Entry> {
        self.entries.get(name).with_context(|| format!("the checkpoint has no tensor `{name}`"))
    }

    fn tensor(&self, entry: &Entry) -> anyhow::Result<Tensor> {
        let Entry { dtype, shape, stride, range } = entry;
        let kind = kind_of(*dtype)?;
        // A bool of another value than 0 and 1 is none: not trusted to the file.
        let stored = if kind == Kind::Bool { Kind::Uint8 } else { kind };
        let data = self.bytes.get(range.clone()).context("it is not inside the file")?;
        let n = (data.len() / stored.elt_size_in_bytes()) as i64;
        let tensor = match stride {
            None => {
                // libtorch reads as many as the shape says.
                ensure!(entry.numel() == n, "{n} values for the shape {shape:?}");
                Tensor::f_from_data_size(data, shape, stored)?
            }
            Some(stride) => Tensor::f_from_data_size(data, &[n], stored)?.f_as_strided(shape, stride, 0)?,
        };
        Ok(if kind == Kind::Bool { tensor.f_ne(0)? } else { tensor })
    }
}

/// The bytes of a `.safetensors` file; equal tensors give equal bytes. Tensors are f32, f16, bf16, i64 or u8.
pub fn to_safetensors<'a>(tensors: impl IntoIterator<Item = (&'a str, &'a Tensor)>) -> anyhow::Result<Vec<u8>> {
    let owned = |(name, tensor): (&str, &Tensor)| {
        let tensor = tensor.to_device(tch::Device::Cpu).contiguous();
        let (dtype, width) = match tensor.kind() {
            Kind::Float => (Dtype::F32, 4),
            Kind::Half => (Dtype::F16, 2),
            Kind::BFloat16 => (Dtype::BF16, 2),
            Kind::Int64 => (Dtype::I64, 8),
            Kind::Uint8 => (Dtype::U8, 1),
            kind => bail!("tensor `{name}` is {kind:?}"),
        };
        let numel = tensor.numel();
        let mut bytes = vec![0; numel * width];
        tensor.copy_data_u8(&mut bytes, numel);
        let shape = tensor.size().iter().map(|&n| n as usize).collect();
        Ok((name.to_owned(), (dtype, shape, bytes)))
    };
    let owned: BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)> =
        tensors.into_iter().map(owned).collect::<anyhow::Result<_>>()?;
    let views = owned.iter().map(|(name, (dtype, shape, bytes))| {
        TensorView::new(*dtype, shape.clone(), bytes).map(|view| (name.as_str(), view))
    });
    Ok(serialize(views.collect::<Result<Vec<_>, _>>()?, None)?)
}

fn kind_of(dtype: Dtype) -> anyhow::Result<Kind> {
    Ok(match dtype {
        Dtype::F32 => Kind::Float,
        Dtype::F16 => Kind::Half,
        Dtype::BF16 => Kind::BFloat16,
        Dtype::F64 => Kind::Double,
        Dtype::I64 => Kind::Int64,
        Dtype::I32 => Kind::Int,
        Dtype::I16 => Kind::Int16,
        Dtype::I8 => Kind::Int8,
        Dtype::U8 => Kind::Uint8,
        Dtype::BOOL => Kind::Bool,
        dtype => bail!("values of type {dtype} are not read"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file of tests/golden/weights.
    fn golden(name: &str) -> Vec<u8> {
        std::fs::read(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/weights").join(name)).unwrap()
    }

    #[test]
    fn tensors_come_back() {
        let a = Tensor::from_slice(&[1f32, -2.5, 3.0]).view([3, 1]);
        let b = Tensor::from_slice(&[5i64, 6]);
        let half = a.to_kind(Kind::Half);
        let bytes = to_safetensors([("b", &b), ("a", &a), ("h", &half)]).unwrap();
        assert_eq!(bytes, to_safetensors([("h", &half), ("a", &a), ("b", &b)]).unwrap());
        let weights = Weights::parse(bytes.as_slice()).unwrap();
        assert_eq!(weights.get("a", &[3, 1]).unwrap(), a);
        assert_eq!(weights.get("h", &[3, 1]).unwrap(), a);
        assert_eq!(weights.raw("b").unwrap(), b);
        let message = |result: anyhow::Result<Tensor>| result.unwrap_err().to_string();
        assert_eq!(message(weights.get("c", &[1])), "the checkpoint has no tensor `c`");
        assert_eq!(message(weights.get("a", &[3])), "tensor `a` is [3, 1] in the checkpoint, not [3]");
        let cut = Weights::parse(&bytes[..bytes.len() - 1]).unwrap_err().to_string();
        assert_eq!(cut, format!("cut short at byte {}", bytes.len() - 1));
        assert!(Weights::parse([bytes.as_slice(), &[0]].concat()).is_err());
    }

    /// The tensors that make.py saved, from each format that PyTorch writes.
    #[test]
    fn files_of_pytorch_are_read_as_they_are() {
        let f32: Vec<f32> = (0..12).map(|i| i as f32 / 2.0 - 1.0).collect();
        let f32 = Tensor::from_slice(&f32).view([3, 4]);
        let of = |kind: Kind, values: &[f64]| Tensor::from_slice(values).to_kind(kind);
        let expected = [
            ("f32", f32.shallow_clone()),
            ("transposed", f32.transpose(0, 1)),
            ("middle", f32.narrow(0, 1, 2).narrow(1, 1, 2)),
            ("expanded", of(Kind::Float, &[7.0; 6]).view([2, 3])),
            ("half", of(Kind::Half, &[1.5, -2.0])),
            ("bf16", of(Kind::BFloat16, &[1.5, -3.0])),
            ("f64", of(Kind::Double, &[0.1])),
            ("i64", of(Kind::Int64, &[2f64.powi(40)]).view([0i64; 0])),
            ("i32", of(Kind::Int, &[-5.0, 6.0])),
            ("i16", of(Kind::Int16, &[-5.0, 6.0])),
            ("i8", of(Kind::Int8, &[-5.0, 6.0])),
            ("u8", of(Kind::Uint8, &[250.0, 6.0])),
            ("bool", of(Kind::Bool, &[1.0, 0.0, 1.0])),
            ("empty", of(Kind::Float, &[]).view([0, 3])),
            ("parameter", of(Kind::Float, &[3.0, 4.0])),
        ];
        let new = Format::PytorchZip;
        let old = Format::PytorchLegacy;
        for (file, format) in [("zip.pth", new), ("zip4.pth", new), ("legacy.pth", old), ("legacy4.pth", old)] {
            let weights = Weights::parse(golden(file)).unwrap();
            assert_eq!(weights.format(), format, "{file}");
            assert_eq!(weights.names().count(), expected.len(), "{file}");
            for (name, expected) in &expected {
                let found = weights.raw(name).unwrap();
                assert_eq!((found.kind(), found.size()), (expected.kind(), expected.size()), "{file}: {name}");
                assert!(found.equal(expected), "{file}: {name} is {found:?}");
                let found = weights.get(name, &expected.size()).unwrap();
                assert!(found.is_contiguous() && found.equal(&expected.to_kind(Kind::Float)), "{file}: {name}");
            }
        }
    }

    #[test]
    fn state_dicts_are_found_and_unwrapped() {
        for file in ["model.pth", "state_dict.pth", "other_keys.pth"] {
            let weights = Weights::parse(golden(file)).unwrap();
            assert_eq!(weights.names().collect::<Vec<_>>(), ["a.bias", "a.weight"], "{file}");
            assert_eq!(weights.get("a.weight", &[1, 2]).unwrap(), Tensor::from_slice2(&[[1f32, 2.0]]), "{file}");
        }
        // As PyTorch 0.3 and Python 2 wrote.
        let old = Weights::parse(golden("old.pth")).unwrap();
        assert_eq!(old.get("a", &[2]).unwrap(), Tensor::from_slice(&[1f32, 2.0]));
    }

    #[test]
    fn what_is_no_checkpoint_is_named() {
        let zip = golden("zip.pth");
        #[rustfmt::skip]
        let cases: [(&str, Vec<u8>, &str); 10] = [
            ("TorchScript", golden("torchscript.pt"), "a TorchScript archive (a program of torch.jit.save), not a state dict"),
            ("whole model", golden("whole_model.pth"), "a whole object of class `torch.nn.modules.linear.Linear`, not a state dict"),
            ("subclass",    golden("subclass.pth"),    "tensor `b`: it is made by `torch._tensor._rebuild_from_type_v2`, which is not read"),
            ("big-endian",  golden("big_endian.pth"),  "it was written on a big-endian machine, which is not read"),
            ("cut short",   zip[..zip.len() - 1].to_vec(), "cut short at byte 4655"),
            ("half",        golden("legacy.pth")[..1000].to_vec(), "cut short at byte 1000"),
            ("page",        b"\n<!DOCTYPE html>".to_vec(), "not a checkpoint: a web page"),
            ("pickle",      b"\x80\x02K\x01.".to_vec(), "not a checkpoint: a Python pickle, but not one of PyTorch"),
            ("text",        b"hello".to_vec(),         "not a checkpoint: neither .safetensors nor a PyTorch file"),
            ("empty",       Vec::new(),                "not a checkpoint: an empty file"),
        ];
        for (name, bytes, expected) in cases {
            assert_eq!(format!("{:#}", Weights::parse(bytes).unwrap_err()), expected, "{name}");
        }
        // A kind of value that is not read is told where it is asked for.
        let complex = Weights::parse(golden("complex.pth")).unwrap();
        assert_eq!(format!("{:#}", complex.raw("a").unwrap_err()), "tensor `a`: values of type C64 are not read");
    }

    fn files() -> Vec<(&'static str, Vec<u8>)> {
        let names = ["zip.pth", "zip4.pth", "legacy.pth", "legacy4.pth", "model.pth", "state_dict.pth", "old.pth"];
        let mut files: Vec<_> = names.into_iter().map(|name| (name, golden(name))).collect();
        let (a, b) = (Tensor::from_slice(&[1f32, 2.0]), Tensor::from_slice(&[3i64]));
        files.extend(
            ["legacy", "v1", "v2", "v3"].map(|version| (version, golden(&format!("../mxnet/{version}.params")))),
        );
        files.push((".safetensors", to_safetensors([("a", &a), ("b", &b)]).unwrap()));
        files
    }

    #[test]
    fn a_file_cut_short_anywhere_is_an_error() {
        for (name, whole) in files() {
            for n in 0..whole.len() {
                assert!(Weights::parse(&whole[..n]).is_err(), "{name}: {n} bytes of {}", whole.len());
            }
        }
    }

    /// Such a file may still say something, and all that it says can be asked for.
    #[test]
    fn a_flipped_byte_is_no_panic() {
        for (_, mut bytes) in files() {
            for at in 0..bytes.len() {
                for flip in [1, 0x80, 0xff] {
                    bytes[at] ^= flip;
                    if let Ok(weights) = Weights::parse(bytes.as_slice()) {
                        weights.names().for_each(|name| drop(weights.raw(name)));
                    }
                    bytes[at] ^= flip;
                }
            }
        }
    }
}
