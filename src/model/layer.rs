//! Layers for inference, with weights cast once to the number format they compute in.

use tch::{Device, Kind, Tensor};

use super::Compute;
use super::memory::floats;
use super::simd::Norm;
use super::weights::Weights;

/// Where and how a model's tensors live; reads them by name.
#[derive(Clone, Copy, Debug)]
pub struct Loader<'a> {
    pub weights: &'a Weights,
    pub device: Device,
    pub compute: Compute,
}

impl Loader<'_> {
    /// In the number format of computation.
    pub fn get(&self, name: &str, shape: &[i64]) -> anyhow::Result<Tensor> {
        Ok(self.weights.get(name, shape)?.to_device(self.device).to_kind(self.compute.kind()))
    }

    /// `y = x W^T + b` from `name.weight` and `name.bias`.
    pub fn linear(&self, name: &str, from: i64, to: i64) -> anyhow::Result<Linear> {
        let weight = self.get(&format!("{name}.weight"), &[to, from])?;
        Ok(Linear { weight, bias: self.get(&format!("{name}.bias"), &[to])? })
    }

    pub fn norm(&self, name: &str, dim: i64, eps: f64) -> anyhow::Result<LayerNorm> {
        let weight = self.get(&format!("{name}.weight"), &[dim])?;
        Ok(LayerNorm { weight, bias: self.get(&format!("{name}.bias"), &[dim])?, eps })
    }
}

#[derive(Debug)]
pub struct Linear {
    pub weight: Tensor,
    pub bias: Tensor,
}

impl Linear {
    pub fn forward(&self, x: &Tensor) -> Tensor {
        x.linear(&self.weight, Some(&self.bias))
    }
}

/// Over the last dimension.
#[derive(Debug)]
pub struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f64,
}

impl LayerNorm {
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let dim = self.weight.size();
        x.layer_norm(dim, Some(&self.weight), Some(&self.bias), self.eps, false)
    }

    /// On a CPU in f32: what our own arithmetic needs of it.
    pub(super) fn host(&self) -> Norm<'_> {
        Norm { weight: floats(&self.weight), bias: floats(&self.bias), eps: self.eps as f32 }
    }

    /// Over the channels of `(B, C, H, W)`.
    pub fn forward_2d(&self, x: &Tensor) -> Tensor {
        self.forward(&x.permute([0, 2, 3, 1])).permute([0, 3, 1, 2])
    }
}

/// Convolution with its batch norm folded in.
#[derive(Debug)]
pub struct ConvBn {
    weight: Tensor,
    bias: Tensor,
    stride: i64,
    padding: i64,
    groups: i64,
}

impl ConvBn {
    /// From `name.c` and `name.bn` (TinyViT's names). `shape`: of the weight.
    pub fn load(from: &Loader<'_>, name: &str, shape: [i64; 4], stride: i64) -> anyhow::Result<Self> {
        let get = |part: &str, shape: &[i64]| from.weights.get(&format!("{name}.{part}"), shape);
        let out = shape[0];
        let scale = get("bn.weight", &[out])? / (get("bn.running_var", &[out])? + 1e-5).sqrt();
        let weight = get("c.weight", &shape)? * scale.view([-1, 1, 1, 1]);
        let bias = get("bn.bias", &[out])? - get("bn.running_mean", &[out])? * &scale;
        let cast = |x: Tensor| x.to_device(from.device).to_kind(from.compute.kind());
        let groups = if shape[1] == 1 { out } else { 1 };
        Ok(Self { weight: cast(weight), bias: cast(bias), stride, padding: shape[2] / 2, groups })
    }

    pub fn forward(&self, x: &Tensor) -> Tensor {
        let (stride, padding) = ([self.stride; 2], [self.padding; 2]);
        x.conv2d(&self.weight, Some(&self.bias), stride, padding, [1, 1], self.groups)
    }
}

/// `softmax` over the last dimension, summed in f32.
pub fn softmax(x: &Tensor) -> Tensor {
    softmax_over(x, -1)
}

/// The same over any dimension. (On a GPU it is summed in f32 whatever it comes in.)
pub fn softmax_over(x: &Tensor, dim: i64) -> Tensor {
    let kind = if x.device().is_cuda() { x.kind() } else { Kind::Float };
    x.softmax(dim, kind).to_kind(x.kind())
}
