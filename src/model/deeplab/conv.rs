//! Convolutions of a head: their weights, and batch norms that are trained with them.

use std::cell::RefCell;

use rand_chacha::ChaCha8Rng;
use tch::{Device, Kind, Tensor};

use crate::data::rng::unit;
use crate::model::init::normal;
use crate::model::weights::Weights;
use crate::model::wide;

const NORM_EPS: f64 = 1e-5;
/// Standard deviation of the weights that give the logits, where a batch norm comes before them.
const LAST_STD: f64 = 0.01;

/// Where a head's tensors come from: a checkpoint, or what is not there from a stream of randomness.
pub(super) struct Source<'a> {
    pub(super) weights: &'a Weights,
    pub(super) device: Device,
    /// Of weights.
    pub(super) kind: Kind,
    pub(super) rng: RefCell<&'a mut ChaCha8Rng>,
}

impl Source<'_> {
    pub(super) fn get(
        &self,
        name: &str,
        shape: &[i64],
        new: impl FnOnce(&mut ChaCha8Rng) -> Tensor,
    ) -> anyhow::Result<Tensor> {
        let value = match self.weights.contains(name) {
            true => self.weights.get(name, shape)?,
            false => new(&mut self.rng.borrow_mut()),
        };
        Ok(value.to_device(self.device).to_kind(self.kind))
    }

    fn filled(&self, name: &str, channels: i64, value: f64) -> anyhow::Result<Tensor> {
        self.get(name, &[channels], |_| Tensor::full([channels], value, (Kind::Float, Device::Cpu)))
    }

    /// A convolution `conv` with the batch norm `norm` behind it; `shape`: of the weight.
    pub(super) fn normed(&self, conv: &str, norm: &str, shape: [i64; 4], dilation: i64) -> anyhow::Result<NormedConv> {
        let [outputs, inputs, side, _] = shape;
        let std = (2.0 / (inputs * side * side) as f64).sqrt();
        let (conv, norm) = (format!("{conv}.weight"), norm.to_owned());
        let part = |part: &str, value: f64| self.filled(&format!("{norm}.{part}"), outputs, value);
        Ok(NormedConv {
            weight: self.get(&conv, &shape, |rng| normal(rng, &shape, std))?.set_requires_grad(true),
            scale: part("weight", 1.0)?.set_requires_grad(true),
            bias: part("bias", 0.0)?.set_requires_grad(true),
            mean: part("running_mean", 0.0)?,
            var: part("running_var", 1.0)?,
            names: (conv, norm),
            dilation,
            momentum: 0.1,
        })
    }

    /// The 1x1 convolution that gives `n_labels` logits of `inputs` channels.
    pub(super) fn last(&self, name: &str, n_labels: i64, inputs: i64) -> anyhow::Result<LastConv> {
        let shape = [n_labels, inputs, 1, 1];
        let weight = self.get(&format!("{name}.weight"), &shape, |rng| normal(rng, &shape, LAST_STD))?;
        let bias = self.filled(&format!("{name}.bias"), n_labels, 0.0)?;
        let [weight, bias] = [weight, bias].map(|tensor| tensor.set_requires_grad(true));
        Ok(LastConv { weight, bias, name: name.to_owned() })
    }
}

/// Convolution, batch norm, ReLU.
#[derive(Debug)]
pub(super) struct NormedConv {
    /// Of the weight, and of the norm.
    names: (String, String),
    weight: Tensor,
    scale: Tensor,
    bias: Tensor,
    /// Running statistics: training moves them.
    mean: Tensor,
    var: Tensor,
    dilation: i64,
    /// Part of a batch's statistics in the running ones.
    pub(super) momentum: f64,
}

impl NormedConv {
    /// `train`: with the statistics of the batch.
    pub(super) fn forward(&self, x: &Tensor, train: bool) -> Tensor {
        let none: Option<&Tensor> = None;
        let padding = [self.weight.size()[2] / 2 * self.dilation; 2];
        let y = x.conv2d(&self.weight.to_kind(x.kind()), none, [1, 1], padding, [self.dilation; 2], 1);
        let (b, _, h, w) = y.size4().expect("a batch of feature maps");
        // One value has no variance.
        let train = train && b * h * w > 1;
        let (scale, bias, mean, var) = (&self.scale, &self.bias, &self.mean, &self.var);
        wide(&y)
            .batch_norm(Some(scale), Some(bias), Some(mean), Some(var), train, self.momentum, NORM_EPS, false)
            .relu()
            .to_kind(x.kind())
    }

    pub(super) fn trained(&self) -> [(String, Tensor); 3] {
        let (conv, norm) = &self.names;
        [
            (conv.clone(), self.weight.shallow_clone()),
            (format!("{norm}.weight"), self.scale.shallow_clone()),
            (format!("{norm}.bias"), self.bias.shallow_clone()),
        ]
    }

    pub(super) fn frozen(&self) -> [(String, Tensor); 2] {
        let (_, norm) = &self.names;
        [
            (format!("{norm}.running_mean"), self.mean.shallow_clone()),
            (format!("{norm}.running_var"), self.var.shallow_clone()),
        ]
    }
}

#[derive(Debug)]
pub(super) struct LastConv {
    name: String,
    /// `(L, C, 1, 1)`
    pub(super) weight: Tensor,
    bias: Tensor,
}

impl LastConv {
    /// Logits in f32.
    pub(super) fn forward(&self, x: &Tensor) -> Tensor {
        let (weight, bias) = (self.weight.to_kind(x.kind()), self.bias.to_kind(x.kind()));
        wide(&x.conv2d(&weight, Some(bias), [1, 1], [0, 0], [1, 1], 1))
    }

    pub(super) fn trained(&self) -> [(String, Tensor); 2] {
        [("weight", &self.weight), ("bias", &self.bias)]
            .map(|(part, tensor)| (format!("{}.{part}", self.name), tensor.shallow_clone()))
    }
}

/// Half of the values are left out and the others doubled, from a stream for each image of the batch.
pub(super) fn dropout(x: &Tensor, streams: &mut [ChaCha8Rng]) -> Tensor {
    let size = x.size();
    let n: i64 = size[1..].iter().product();
    let keep = |rng: &mut ChaCha8Rng| (0..n).map(|_| if unit(rng) < 0.5 { 0.0f32 } else { 2.0 }).collect::<Vec<_>>();
    let mask = Tensor::from_slice(&streams.iter_mut().flat_map(keep).collect::<Vec<_>>());
    x * mask.view(&size[..]).to_device(x.device()).to_kind(x.kind())
}
