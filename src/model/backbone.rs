//! The networks under the heads of classifier and DeepLab: an image to features.

use std::fmt;

use anyhow::{Context, ensure};
use rand_chacha::ChaCha8Rng;
use tch::{Device, Tensor};

use super::Compute;
use super::resnet::{Depth, Resnet, ResnetConfig, StrideIn};
use super::resnet38::{self, Dropout, Resnet38d};
use super::weights::Weights;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    Resnet(Depth, StrideIn),
    Resnet38d,
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Resnet(depth, _) => write!(f, "ResNet-{}", depth.number()),
            Self::Resnet38d => f.write_str("ResNet38d"),
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub struct BackboneConfig {
    pub architecture: Architecture,
    /// Pixels of the input a feature covers; always 8 for ResNet38d.
    pub output_stride: i64,
    pub compute: Compute,
    pub device: Device,
}

/// A checkpoint is not of the backbone asked for.
#[derive(Debug, thiserror::Error)]
#[error("weights for a {0}")]
pub struct UnfitWeights(Architecture);

impl UnfitWeights {
    /// What to do about it.
    pub const HINT: &str = "`s2c-pipe weights inspect FILE` tells which `backbone` a checkpoint is of";
}

/// `(B, 3, H, W)` normalised image to `(B, F, H / stride, W / stride)` features, not negative.
#[derive(Debug)]
pub enum Backbone {
    Resnet(Resnet),
    Resnet38d(Resnet38d),
}

impl Backbone {
    /// # Errors
    /// [`UnfitWeights`]: a tensor is missing from the checkpoint or has another shape.
    pub fn load(weights: &Weights, config: &BackboneConfig) -> anyhow::Result<Self> {
        let BackboneConfig { architecture, output_stride, compute, device } = *config;
        match architecture {
            Architecture::Resnet(depth, stride_in) => {
                let config = ResnetConfig { depth, stride_in, output_stride, compute, device };
                Resnet::load(weights, &config).map(Self::Resnet)
            }
            Architecture::Resnet38d => {
                ensure!(output_stride == 8, "a ResNet38d has stride 8, not {output_stride}");
                Resnet38d::load(weights, compute, device).map(Self::Resnet38d)
            }
        }
        .context(UnfitWeights(architecture))
    }

    /// Channels of the features.
    pub fn n_features(&self) -> i64 {
        match self {
            Self::Resnet(net) => net.n_features(),
            Self::Resnet38d(_) => resnet38::N_FEATURES,
        }
    }

    /// What is left out in training, from a stream for each image of a batch; `None`: nothing ever is. `rates`: in b6 and
    /// b7 of ResNet38d.
    pub fn dropout(
        &self,
        streams: impl Iterator<Item = ChaCha8Rng>,
        rates: [f64; 2],
        device: Device,
    ) -> Option<Dropout> {
        match self {
            Self::Resnet(_) => None,
            Self::Resnet38d(_) => Some(Dropout::draw(&mut streams.collect::<Vec<_>>(), rates, device)),
        }
    }

    pub fn forward(&self, x: &Tensor, dropout: Option<&Dropout>) -> Tensor {
        self.features(x, dropout).1
    }

    /// Channels of the low-level features; 0: there are none.
    pub fn n_low_features(&self) -> i64 {
        match self {
            Self::Resnet(net) => net.n_low_features(),
            Self::Resnet38d(_) => 0,
        }
    }

    /// Low-level features `(B, F', H / 4, W / 4)`, where a backbone has them, and features.
    pub fn features(&self, x: &Tensor, dropout: Option<&Dropout>) -> (Option<Tensor>, Tensor) {
        match self {
            Self::Resnet(net) => {
                let (low, x) = net.features(x);
                (Some(low), x)
            }
            Self::Resnet38d(net) => (None, net.forward(x, dropout)),
        }
    }

    /// Channels of [`Self::sides`].
    pub fn n_sides(&self) -> [i64; 3] {
        match self {
            Self::Resnet(net) => {
                let [.., second, third, fourth] = net.n_levels();
                [second, third, fourth]
            }
            Self::Resnet38d(_) => resnet38::N_SIDES,
        }
    }

    /// Features of three depths, the last those of [`Self::forward`]: the results of `layer2` (stride 8), `layer3` and
    /// `layer4`, or of ResNet38d what goes into b5, into b6 and out of b7, after norm and ReLU.
    pub fn sides(&self, x: &Tensor, dropout: Option<&Dropout>) -> [Tensor; 3] {
        match self {
            Self::Resnet(net) => {
                let [.., second, third, fourth] = net.levels(x);
                [second, third, fourth]
            }
            Self::Resnet38d(net) => net.sides(x, dropout),
        }
    }

    /// For inference only: batch norms folded into their convolutions where they follow one.
    pub fn folded(&self) -> Self {
        match self {
            Self::Resnet(net) => Self::Resnet(net.folded()),
            Self::Resnet38d(net) => Self::Resnet38d(net.folded()),
        }
    }

    /// The same tensors, batch norms folded into their convolutions once for several passes. It serves one backward pass,
    /// and is out of date once the tensors have moved.
    pub fn ready(&self) -> Self {
        match self {
            Self::Resnet(net) => Self::Resnet(net.ready()),
            Self::Resnet38d(net) => Self::Resnet38d(net.ready()),
        }
    }

    /// Trained tensors by name.
    pub fn trained(&self) -> Vec<(String, Tensor)> {
        match self {
            Self::Resnet(net) => net.trained(),
            Self::Resnet38d(net) => net.trained(),
        }
    }

    /// What a checkpoint needs beside [`Self::trained`].
    pub fn frozen(&self) -> Vec<(String, Tensor)> {
        match self {
            Self::Resnet(net) => net.frozen(),
            Self::Resnet38d(net) => net.frozen(),
        }
    }
}
