//! The CAM classifier: backbone, a feature map for SSC, a 1x1 convolution to CAM logits, and their mean as scores.

use rand_chacha::ChaCha8Rng;
use tch::{Kind, Tensor};

use super::backbone::{Backbone, BackboneConfig};
use super::conv::channels_last;
use super::init::xavier;
use super::resnet38::{DROPOUT, Dropout};
use super::weights::Weights;

#[derive(Clone, Copy, Debug)]
pub struct ClassifierConfig {
    pub backbone: BackboneConfig,
    /// Channels of the feature map; 0: the backbone's own.
    pub feat_dim: i64,
    /// Foreground classes.
    pub n_classes: i64,
}

/// Features and CAM logits of a batch.
#[derive(Debug)]
pub struct CamOutput {
    /// `(B, D, h, w)` f32, not negative.
    pub feat: Tensor,
    /// `(B, C, h, w)` f32.
    pub cam: Tensor,
}

#[derive(Debug)]
pub struct Classifier {
    backbone: Backbone,
    /// `(D, F, 1, 1)`
    feat: Option<Tensor>,
    /// `(C, D, 1, 1)`
    cam: Tensor,
}

const FEAT: &str = "head.feat.weight";
const CAM: &str = "head.cam.weight";

impl Classifier {
    /// From a checkpoint of ours, or from a backbone's weights with a new head drawn from `rng` (Xavier uniform).
    pub fn load(weights: &Weights, config: &ClassifierConfig, rng: &mut ChaCha8Rng) -> anyhow::Result<Self> {
        let backbone = Backbone::load(weights, &config.backbone)?;
        let mut head = |name: &str, to: i64, from: i64| -> anyhow::Result<Tensor> {
            let shape = [to, from, 1, 1];
            let weight = match weights.contains(name) {
                true => weights.get(name, &shape)?,
                false => xavier(rng, &shape, 1.0),
            };
            Ok(weight.to_device(config.backbone.device).set_requires_grad(true))
        };
        let (feat, dim) = match config.feat_dim {
            0 => (None, backbone.n_features()),
            dim => (Some(head(FEAT, dim, backbone.n_features())?), dim),
        };
        Ok(Self { backbone, feat, cam: head(CAM, config.n_classes, dim)? })
    }

    /// For inference only: see [`Backbone::folded`].
    pub fn folded(self) -> Self {
        Self { backbone: self.backbone.folded(), ..self }
    }

    /// The CAM logits alone, `(B, C, h, w)` f32, without gradients.
    pub fn infer(&self, x: &Tensor) -> Tensor {
        tch::no_grad(|| self.forward(&channels_last(x), None).cam)
    }

    /// What training leaves out of a batch, from a stream for each image.
    pub fn dropout(&self, streams: impl Iterator<Item = ChaCha8Rng>) -> Option<Dropout> {
        self.backbone.dropout(streams, DROPOUT, self.cam.device())
    }

    pub fn forward(&self, x: &Tensor, dropout: Option<&Dropout>) -> CamOutput {
        let none: Option<&Tensor> = None;
        let conv = |x: &Tensor, weight: &Tensor| x.conv2d(&weight.to_kind(x.kind()), none, [1, 1], [0, 0], [1, 1], 1);
        let x = self.backbone.forward(x, dropout);
        let feat = match &self.feat {
            Some(weight) => conv(&x, weight).relu_(),
            None => x,
        };
        let cam = conv(&feat, &self.cam);
        CamOutput { feat: feat.to_kind(Kind::Float), cam: cam.to_kind(Kind::Float) }
    }

    /// What a checkpoint needs beside [`Self::trained`].
    pub fn frozen(&self) -> Vec<(String, Tensor)> {
        self.backbone.frozen()
    }

    /// Trained tensors by name: the backbone's under its public names, the rest as `head.`.
    pub fn trained(&self) -> Vec<(String, Tensor)> {
        let mut tensors = self.backbone.trained();
        tensors.extend(self.feat.as_ref().map(|weight| (FEAT.to_owned(), weight.shallow_clone())));
        tensors.push((CAM.to_owned(), self.cam.shallow_clone()));
        tensors
    }
}
