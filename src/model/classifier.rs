//! The CAM classifier: backbone, a feature map for SSC, a 1x1 convolution to CAM logits, and their mean as scores.

use std::collections::BTreeMap;

use rand_chacha::ChaCha8Rng;
use tch::{Kind, Tensor};

use super::optim::{Sgd, Trained};
use super::resnet::{FEATURES, Resnet50, ResnetConfig};
use super::weights::{Weights, to_safetensors};
use crate::data::rng::unit;

#[derive(Clone, Copy, Debug)]
pub struct ClassifierConfig {
    pub resnet: ResnetConfig,
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
    backbone: Resnet50,
    /// `(D, 2048, 1, 1)`
    feat: Option<Tensor>,
    /// `(C, D, 1, 1)`
    cam: Tensor,
}

const FEAT: &str = "head.feat.weight";
const CAM: &str = "head.cam.weight";
const MOMENTUM: &str = "momentum.";

impl Classifier {
    /// From a checkpoint of ours, or from a backbone's weights with a new head drawn from `rng` (Xavier uniform).
    pub fn load(weights: &Weights, config: &ClassifierConfig, rng: &mut ChaCha8Rng) -> anyhow::Result<Self> {
        let backbone = Resnet50::load(weights, &config.resnet)?;
        let mut head = |name: &str, to: i64, from: i64| -> anyhow::Result<Tensor> {
            let shape = [to, from, 1, 1];
            let weight = match weights.contains(name) {
                true => weights.get(name, &shape)?,
                false => xavier(rng, &shape),
            };
            Ok(weight.to_device(config.resnet.device).set_requires_grad(true))
        };
        let (feat, dim) = match config.feat_dim {
            0 => (None, FEATURES),
            dim => (Some(head(FEAT, dim, FEATURES)?), dim),
        };
        Ok(Self { backbone, feat, cam: head(CAM, config.n_classes, dim)? })
    }

    pub fn forward(&self, x: &Tensor) -> CamOutput {
        let none: Option<&Tensor> = None;
        let conv = |x: &Tensor, weight: &Tensor| x.conv2d(&weight.to_kind(x.kind()), none, [1, 1], [0, 0], [1, 1], 1);
        let x = self.backbone.forward(x);
        let feat = match &self.feat {
            Some(weight) => conv(&x, weight).relu(),
            None => x,
        };
        let cam = conv(&feat, &self.cam);
        CamOutput { feat: feat.to_kind(Kind::Float), cam: cam.to_kind(Kind::Float) }
    }

    /// An optimiser over all that is trained, its momentum taken from the checkpoint where there is one.
    pub fn optimiser(
        &self,
        weights: &Weights,
        head_lr_mult: f64,
        momentum: f64,
        weight_decay: f64,
    ) -> anyhow::Result<Sgd> {
        let mut tensors = BTreeMap::new();
        for (name, value) in self.trained() {
            let stored = format!("{MOMENTUM}{name}");
            let momentum = match weights.contains(&stored) {
                true => weights.get(&stored, &value.size())?.to_device(value.device()),
                false => value.zeros_like(),
            };
            let lr_mult = if name.starts_with("head.") { head_lr_mult } else { 1.0 };
            tensors.insert(name, Trained { value, lr_mult, momentum });
        }
        Ok(Sgd { tensors, momentum, weight_decay })
    }

    /// The bytes of a checkpoint: the model under torchvision's names, the optimiser's momentum beside it, and `more`.
    pub fn checkpoint(&self, optimiser: &Sgd, more: Vec<(String, Tensor)>) -> anyhow::Result<Vec<u8>> {
        let mut tensors: BTreeMap<String, Tensor> = self.trained().into_iter().chain(self.backbone.frozen()).collect();
        tensors.extend(more);
        for (name, trained) in &optimiser.tensors {
            tensors.insert(format!("{MOMENTUM}{name}"), trained.momentum.shallow_clone());
        }
        to_safetensors(tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)))
    }

    fn trained(&self) -> Vec<(String, Tensor)> {
        let mut tensors = self.backbone.trained();
        tensors.extend(self.feat.as_ref().map(|weight| (FEAT.to_owned(), weight.shallow_clone())));
        tensors.push((CAM.to_owned(), self.cam.shallow_clone()));
        tensors
    }
}

/// Xavier-uniform values of a stream of ours: libtorch's own depends on its global state.
fn xavier(rng: &mut ChaCha8Rng, shape: &[i64; 4]) -> Tensor {
    let bound = (6.0 / (shape[0] + shape[1]) as f64).sqrt();
    let n: i64 = shape.iter().product();
    let values: Vec<f32> = (0..n).map(|_| ((unit(rng) * 2.0 - 1.0) * bound) as f32).collect();
    Tensor::from_slice(&values).view(*shape)
}
