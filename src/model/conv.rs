//! Convolutions of a backbone and its batch norms, which are frozen: a norm is a scale and a bias, and folds into the
//! convolution before it.

use tch::{Device, Kind, Tensor};

use super::Compute;
use super::weights::Weights;

const NORM_EPS: f64 = 1e-5;

/// In memory as `(B, H, W, C)`: convolutions without gradients are a third faster so (on this CPU 1.3 to 1.5 times;
/// with gradients there is no difference).
pub fn channels_last(x: &Tensor) -> Tensor {
    x.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2])
}

/// Where layers come from and how they live.
#[derive(Clone, Copy, Debug)]
pub(super) struct Source<'a> {
    pub(super) weights: &'a Weights,
    pub(super) device: Device,
    pub(super) compute: Compute,
    pub(super) is_frozen: bool,
}

impl Source<'_> {
    fn get(&self, name: &str, shape: &[i64]) -> anyhow::Result<Tensor> {
        Ok(self.weights.get(name, shape)?.to_device(self.device).to_kind(self.compute.wide_kind()))
    }

    pub(super) fn norm(&self, name: String, channels: i64) -> anyhow::Result<Norm> {
        let stat = |part: &str| self.get(&format!("{name}.{part}"), &[channels]);
        let scale = stat("weight")? / (stat("running_var")? + NORM_EPS).sqrt();
        let bias = stat("bias")? - stat("running_mean")? * &scale;
        Ok(Norm { name, scale, bias })
    }

    /// - `shape`: of the weight
    /// - `norm`: the name of the batch norm behind it
    pub(super) fn conv(
        &self,
        name: String,
        norm: Option<String>,
        shape: [i64; 4],
        (stride, dilation): (i64, i64),
    ) -> anyhow::Result<Conv> {
        let name = format!("{name}.weight");
        let weight = self.get(&name, &shape)?.set_requires_grad(!self.is_frozen);
        let norm = norm.map(|norm| self.norm(norm, shape[0])).transpose()?;
        let conv = Conv { name, weight, norm, ready: None, stride, dilation };
        Ok(if self.is_frozen { conv.ready(self.compute) } else { conv })
    }
}

#[derive(Debug)]
pub(super) struct Norm {
    name: String,
    /// `gamma / sqrt(var + eps)`, `(C)`
    scale: Tensor,
    /// `beta - mean * scale`, `(C)`
    bias: Tensor,
}

impl Norm {
    pub(super) fn forward(&self, x: &Tensor) -> Tensor {
        let per_channel = |values: &Tensor| values.to_kind(x.kind()).view([1, -1, 1, 1]);
        per_channel(&self.bias).addcmul(x, &per_channel(&self.scale))
    }

    /// The same tensors.
    pub(super) fn shared(&self) -> Self {
        Self { name: self.name.clone(), scale: self.scale.shallow_clone(), bias: self.bias.shallow_clone() }
    }

    /// As a checkpoint has them. With a variance of 1 - eps the scale comes back bit by bit.
    pub(super) fn tensors(&self) -> impl Iterator<Item = (String, Tensor)> {
        let (mean, var) = (self.bias.zeros_like(), self.bias.ones_like() - NORM_EPS);
        let parts = [
            ("weight", self.scale.shallow_clone()),
            ("bias", self.bias.shallow_clone()),
            ("running_mean", mean),
            ("running_var", var),
        ];
        parts.into_iter().map(|(part, tensor)| (format!("{}.{part}", self.name), tensor))
    }
}

/// A convolution, and the batch norm behind it where there is one.
#[derive(Debug)]
pub(super) struct Conv {
    name: String,
    weight: Tensor,
    norm: Option<Norm>,
    /// What is computed with, where it is there already.
    ready: Option<Folded>,
    stride: i64,
    dilation: i64,
}

/// A weight times the scale of its norm, and the norm's bias.
#[derive(Debug)]
struct Folded {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Folded {
    /// The same tensors.
    fn shared(&self) -> Self {
        Self { weight: self.weight.shallow_clone(), bias: self.bias.as_ref().map(Tensor::shallow_clone) }
    }
}

impl Conv {
    pub(super) fn forward(&self, x: &Tensor) -> Tensor {
        let made;
        let Folded { weight, bias } = match &self.ready {
            Some(ready) => ready,
            None => {
                made = self.fold(x.kind());
                &made
            }
        };
        let side = weight.size()[2];
        let padding = [side / 2 * self.dilation; 2];
        x.conv2d(weight, bias.as_ref(), [self.stride; 2], padding, [self.dilation; 2], 1)
    }

    fn fold(&self, kind: Kind) -> Folded {
        let weight = match &self.norm {
            Some(norm) => &self.weight * norm.scale.view([-1, 1, 1, 1]),
            None => self.weight.shallow_clone(),
        };
        Folded { weight: weight.to_kind(kind), bias: self.norm.as_ref().map(|norm| norm.bias.to_kind(kind)) }
    }

    /// The same tensors, folded once for several passes and one backward pass.
    pub(super) fn ready(&self, compute: Compute) -> Self {
        self.with(self.ready.as_ref().map_or_else(|| self.fold(compute.kind()), Folded::shared))
    }

    /// For inference only.
    pub(super) fn folded(&self, compute: Compute) -> Self {
        let Folded { weight, bias } = tch::no_grad(|| self.fold(compute.kind()));
        self.with(Folded { weight: channels_last(&weight), bias })
    }

    fn with(&self, ready: Folded) -> Self {
        Self {
            name: self.name.clone(),
            weight: self.weight.shallow_clone(),
            norm: self.norm.as_ref().map(Norm::shared),
            ready: Some(ready),
            ..*self
        }
    }

    /// The weight, where it is trained.
    pub(super) fn trained(&self) -> Option<(String, Tensor)> {
        self.weight.requires_grad().then(|| (self.name.clone(), self.weight.shallow_clone()))
    }

    /// What a checkpoint needs beside [`Self::trained`], in f32.
    pub(super) fn frozen(&self) -> impl Iterator<Item = (String, Tensor)> {
        let weight = (!self.weight.requires_grad()).then(|| (self.name.clone(), self.weight.shallow_clone()));
        self.norm.iter().flat_map(Norm::tensors).chain(weight)
    }
}
