//! Checkpoints: named tensors from bytes, under the names of the public files.

use std::collections::BTreeMap;

use anyhow::{Context, bail, ensure};
use safetensors::tensor::{Dtype, SafeTensors, TensorView, serialize};
use tch::{Kind, Tensor};

/// Named tensors, on the CPU, as stored.
#[derive(Debug)]
pub struct Weights {
    tensors: BTreeMap<String, Tensor>,
}

impl Weights {
    /// From the bytes of a `.safetensors` file.
    pub fn parse(bytes: &[u8]) -> anyhow::Result<Self> {
        let file = SafeTensors::deserialize(bytes).context("not a whole .safetensors file")?;
        let tensor = |(name, view): (String, TensorView<'_>)| {
            let kind = kind_of(view.dtype()).with_context(|| format!("tensor `{name}`"))?;
            let shape: Vec<i64> = view.shape().iter().map(|&n| n as i64).collect();
            Ok((name, Tensor::from_data_size(view.data(), &shape, kind)))
        };
        let tensors = file.tensors().into_iter().map(tensor).collect::<anyhow::Result<_>>()?;
        Ok(Self { tensors })
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// `None`: there is no such tensor.
    pub fn shape(&self, name: &str) -> Option<Vec<i64>> {
        Some(self.tensors.get(name)?.size())
    }

    /// A tensor as f32, its shape checked.
    pub fn get(&self, name: &str, shape: &[i64]) -> anyhow::Result<Tensor> {
        let Some(tensor) = self.tensors.get(name) else { bail!("the checkpoint has no tensor `{name}`") };
        ensure!(tensor.size() == shape, "tensor `{name}` is {:?} in the checkpoint, not {shape:?}", tensor.size());
        Ok(tensor.to_kind(Kind::Float))
    }

    /// A tensor as stored.
    pub fn raw(&self, name: &str) -> anyhow::Result<Tensor> {
        let found = self.tensors.get(name).with_context(|| format!("the checkpoint has no tensor `{name}`"))?;
        Ok(found.shallow_clone())
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
        Dtype::U8 => Kind::Uint8,
        dtype => bail!("values of type {dtype:?} are not read"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_come_back() {
        let a = Tensor::from_slice(&[1f32, -2.5, 3.0]).view([3, 1]);
        let b = Tensor::from_slice(&[5i64, 6]);
        let half = a.to_kind(Kind::Half);
        let bytes = to_safetensors([("b", &b), ("a", &a), ("h", &half)]).unwrap();
        assert_eq!(bytes, to_safetensors([("h", &half), ("a", &a), ("b", &b)]).unwrap());
        let weights = Weights::parse(&bytes).unwrap();
        assert_eq!(weights.get("a", &[3, 1]).unwrap(), a);
        assert_eq!(weights.get("h", &[3, 1]).unwrap(), a);
        assert_eq!(weights.raw("b").unwrap(), b);
        let message = |result: anyhow::Result<Tensor>| result.unwrap_err().to_string();
        assert_eq!(message(weights.get("c", &[1])), "the checkpoint has no tensor `c`");
        assert_eq!(message(weights.get("a", &[3])), "tensor `a` is [3, 1] in the checkpoint, not [3]");
        assert!(Weights::parse(&bytes[..bytes.len() - 1]).is_err());
    }
}
