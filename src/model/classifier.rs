//! The CAM classifier: backbone, a feature map for SSC, a 1x1 convolution to CAM logits, and their mean as scores; and, for
//! SEAM, a module that revises its CAMs.

use rand_chacha::ChaCha8Rng;
use tch::Tensor;

use super::backbone::{Backbone, BackboneConfig};
use super::conv::channels_last;
use super::init::{layer, xavier};
use super::resnet38::{Dropout, S2C_DROPOUT};
use super::seam::Pcm;
use super::weights::Weights;
use super::wide;

#[derive(Clone, Copy, Debug)]
pub struct ClassifierConfig {
    pub backbone: BackboneConfig,
    /// Channels of the feature map; 0: the backbone's own.
    pub feat_dim: i64,
    /// Foreground classes.
    pub n_classes: i64,
    /// With SEAM's pixel correlation module.
    pub with_pcm: bool,
}

/// Features and CAM logits of a batch.
#[derive(Debug)]
pub struct CamOutput {
    /// `(B, D, h, w)` f32, not negative.
    pub feat: Tensor,
    /// `(B, C, h, w)` f32.
    pub cam: Tensor,
    /// See [`Pcm::forward`].
    pub revised: Option<Tensor>,
}

#[derive(Debug)]
pub struct Classifier {
    backbone: Backbone,
    /// `(D, F, 1, 1)`
    feat: Option<Tensor>,
    /// `(C, D, 1, 1)`
    cam: Tensor,
    pcm: Option<Pcm>,
}

const FEAT: &str = "head.feat.weight";
const CAM: &str = "head.cam.weight";

impl Classifier {
    /// From a checkpoint of ours, or from a backbone's weights with a new head drawn from `rng` (Xavier uniform).
    pub fn load(weights: &Weights, config: &ClassifierConfig, rng: &mut ChaCha8Rng) -> anyhow::Result<Self> {
        let backbone = Backbone::load(weights, &config.backbone)?;
        let (device, kind) = (config.backbone.device, config.backbone.compute.wide_kind());
        let mut head = |name: &str, to: i64, from: i64| {
            layer(weights, name, &[to, from, 1, 1], (device, kind), |shape| xavier(rng, shape, 1.0))
        };
        let (feat, dim) = match config.feat_dim {
            0 => (None, backbone.n_features()),
            dim => (Some(head(FEAT, dim, backbone.n_features())?), dim),
        };
        let cam = head(CAM, config.n_classes, dim)?;
        let [near, deep, _] = backbone.n_sides();
        let pcm = config.with_pcm.then(|| Pcm::load(weights, [near, deep], device, rng)).transpose()?;
        Ok(Self { backbone, feat, cam, pcm })
    }

    /// For inference only: see [`Backbone::folded`].
    pub fn folded(self) -> Self {
        Self { backbone: self.backbone.folded(), ..self }
    }

    /// The same tensors, made ready for several passes: see [`Backbone::ready`].
    pub fn ready(&self) -> Self {
        Self {
            backbone: self.backbone.ready(),
            feat: self.feat.as_ref().map(Tensor::shallow_clone),
            cam: self.cam.shallow_clone(),
            pcm: self.pcm.as_ref().map(Pcm::shared),
        }
    }

    /// The CAM logits alone, `(B, C, h, w)` f32, without gradients.
    pub fn infer(&self, x: &Tensor) -> Tensor {
        tch::no_grad(|| self.cam_of(self.backbone.forward(&channels_last(x), None)).1)
    }

    /// The CAMs that the pixel correlation module makes, `(B, C, h', w')` f32, not negative; where there is none, as
    /// [`Self::infer`].
    pub fn infer_revised(&self, x: &Tensor) -> Tensor {
        let CamOutput { cam, revised, .. } = tch::no_grad(|| self.forward(&channels_last(x), None));
        revised.map_or(cam, |revised| revised.slice(1, 1, None, 1))
    }

    /// What training leaves out of a batch, from a stream for each image.
    pub fn dropout(&self, streams: impl Iterator<Item = ChaCha8Rng>) -> Option<Dropout> {
        self.backbone.dropout(streams, S2C_DROPOUT, self.cam.device())
    }

    pub fn forward(&self, x: &Tensor, dropout: Option<&Dropout>) -> CamOutput {
        let Some(pcm) = &self.pcm else {
            let (feat, cam) = self.cam_of(self.backbone.forward(x, dropout));
            return CamOutput { feat: wide(&feat), cam, revised: None };
        };
        let [near, deep, features] = self.backbone.sides(x, dropout);
        let (feat, cam) = self.cam_of(features);
        let revised = Some(pcm.forward(&cam, x, &[near, deep]));
        CamOutput { feat: wide(&feat), cam, revised }
    }

    /// The feature map and the CAM logits, these in f32, of the backbone's features.
    fn cam_of(&self, features: Tensor) -> (Tensor, Tensor) {
        let none: Option<&Tensor> = None;
        let conv = |x: &Tensor, weight: &Tensor| x.conv2d(&weight.to_kind(x.kind()), none, [1, 1], [0, 0], [1, 1], 1);
        let feat = match &self.feat {
            Some(weight) => conv(&features, weight).relu_(),
            None => features,
        };
        let cam = wide(&conv(&feat, &self.cam));
        (feat, cam)
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
        tensors.extend(self.pcm.iter().flat_map(Pcm::trained));
        tensors
    }
}
