//! DeepLab-v2: the backbone of the classifier and an atrous pyramid (ASPP) of four 3x3 convolutions whose sum is the
//! logits (Chen et al. 2018; reference: `deeplabv2.py` of kazuto1011/deeplab-pytorch).

use rand_chacha::ChaCha8Rng;
use tch::{Kind, Tensor};

use super::backbone::{Backbone, BackboneConfig};
use super::conv::channels_last;
use super::resnet38::Dropout;
use super::weights::Weights;
use crate::data::rng::unit;
use crate::vision::IGNORE;

/// Dilations of the pyramid at output stride 8; at stride 16 half of each, so that it sees as far in the image.
const RATES: [i64; 4] = [6, 12, 18, 24];
/// Standard deviation of new weights. The reference has 0.01 and thousands of steps to get from there to logits of
/// order one, which is what this one starts with.
const INIT_STD: f64 = 0.001;

#[derive(Clone, Copy, Debug)]
pub struct DeepLabConfig {
    pub backbone: BackboneConfig,
    /// With background.
    pub n_labels: i64,
}

#[derive(Debug)]
pub struct DeepLab {
    backbone: Backbone,
    branches: Vec<Branch>,
}

#[derive(Debug)]
struct Branch {
    /// `(L, F, 3, 3)`
    weight: Tensor,
    bias: Tensor,
    dilation: i64,
}

impl DeepLab {
    /// From a checkpoint of ours, or from a backbone's weights with a new head drawn from `rng`.
    ///
    /// # Errors
    /// A tensor is missing from the checkpoint or has another shape.
    pub fn load(weights: &Weights, config: &DeepLabConfig, rng: &mut ChaCha8Rng) -> anyhow::Result<Self> {
        let DeepLabConfig { backbone: config, n_labels } = *config;
        let backbone = Backbone::load(weights, &config)?;
        let mut branch = |(i, rate): (usize, &i64)| {
            let mut get = |part: &str, shape: &[i64], std: f64| -> anyhow::Result<Tensor> {
                let name = branch_name(i, part);
                let value = match weights.contains(&name) {
                    true => weights.get(&name, shape)?,
                    false => normal(rng, shape, std),
                };
                Ok(value.to_device(config.device).set_requires_grad(true))
            };
            let weight = get("weight", &[n_labels, backbone.n_features(), 3, 3], INIT_STD)?;
            let dilation = (rate * 8 / config.output_stride).max(1);
            anyhow::Ok(Branch { weight, bias: get("bias", &[n_labels], 0.0)?, dilation })
        };
        let branches = RATES.iter().enumerate().map(&mut branch).collect::<anyhow::Result<_>>()?;
        Ok(Self { backbone, branches })
    }

    /// What training leaves out of a batch, from a stream for each image.
    pub fn dropout(&self, streams: impl Iterator<Item = ChaCha8Rng>) -> Option<Dropout> {
        self.backbone.dropout(streams, self.branches[0].weight.device())
    }

    /// Logits `(B, L, h, w)` f32 at the stride of the backbone, from a normalised image `(B, 3, H, W)`.
    pub fn forward(&self, x: &Tensor, dropout: Option<&Dropout>) -> Tensor {
        let x = self.backbone.forward(x, dropout);
        let branch = |Branch { weight, bias, dilation }: &Branch| {
            let (weight, bias) = (weight.to_kind(x.kind()), bias.to_kind(x.kind()));
            x.conv2d(&weight, Some(bias), [1, 1], [*dilation; 2], [*dilation; 2], 1).to_kind(Kind::Float)
        };
        self.branches.iter().map(branch).sum()
    }

    /// [`Self::forward`] without gradients.
    pub fn infer(&self, x: &Tensor) -> Tensor {
        tch::no_grad(|| self.forward(&channels_last(x), None))
    }

    /// For inference only: see [`Backbone::folded`].
    pub fn folded(self) -> Self {
        Self { backbone: self.backbone.folded(), ..self }
    }

    /// What a checkpoint needs beside [`Self::trained`].
    pub fn frozen(&self) -> Vec<(String, Tensor)> {
        self.backbone.frozen()
    }

    /// Trained tensors by name.
    pub fn trained(&self) -> Vec<(String, Tensor)> {
        let mut tensors = self.backbone.trained();
        for (i, branch) in self.branches.iter().enumerate() {
            tensors.push((branch_name(i, "weight"), branch.weight.shallow_clone()));
            tensors.push((branch_name(i, "bias"), branch.bias.shallow_clone()));
        }
        tensors
    }
}

fn branch_name(i: usize, part: &str) -> String {
    format!("head.aspp.{i}.{part}")
}

/// Cross-entropy of logits brought to the size of the labels, the mean over pixels that count.
///
/// - `logits`: `(B, L, h, w)`
/// - `labels`: `(B, H, W)` int64, 255 = ignored
///
/// `None` where no pixel counts.
pub fn segmentation(logits: &Tensor, labels: &Tensor) -> Option<Tensor> {
    let size = labels.size();
    let counts = labels.not_equal(i64::from(IGNORE)).any();
    if counts.int64_value(&[]) == 0 {
        return None;
    }
    let logits = logits.upsample_bilinear2d([size[1], size[2]], false, None, None);
    let none: Option<&Tensor> = None;
    Some(logits.cross_entropy_loss(labels, none, tch::Reduction::Mean, i64::from(IGNORE), 0.0))
}

/// Normal values of a stream of ours (Box-Muller): libtorch's own depend on its global state.
fn normal(rng: &mut ChaCha8Rng, shape: &[i64], std: f64) -> Tensor {
    let n: i64 = shape.iter().product();
    let mut draw = || {
        let radius = (-2.0 * (1.0 - unit(rng)).ln()).sqrt();
        (radius * (std::f64::consts::TAU * unit(rng)).cos() * std) as f32
    };
    let values: Vec<f32> = (0..n).map(|_| if std == 0.0 { 0.0 } else { draw() }).collect();
    Tensor::from_slice(&values).view(shape)
}
