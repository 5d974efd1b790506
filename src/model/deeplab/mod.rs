//! DeepLab: the backbone of the classifier under one of several heads.

mod conv;
mod head;

use std::cell::RefCell;

use rand_chacha::ChaCha8Rng;
use tch::Tensor;

use self::conv::Source;
pub use self::head::HeadKind;
use self::head::{Head, Sizes};
use super::backbone::{Backbone, BackboneConfig};
use super::conv::channels_last;
use super::repeat::{cross_entropy, resized};
use super::resnet38::{DROPOUT, Dropout};
use super::weights::Weights;
use crate::vision::IGNORE;

#[derive(Clone, Copy, Debug)]
pub struct DeepLabConfig {
    pub backbone: BackboneConfig,
    pub head: HeadKind,
    /// With background.
    pub n_labels: i64,
}

#[derive(Debug)]
pub struct DeepLab {
    backbone: Backbone,
    head: Head,
    device: tch::Device,
}

/// What training leaves out of a batch.
#[derive(Debug)]
pub struct Training {
    backbone: Option<Dropout>,
    head: Vec<ChaCha8Rng>,
}

impl DeepLab {
    /// From a checkpoint of ours, or from a backbone's weights with a new head drawn from `rng`.
    ///
    /// # Errors
    /// A tensor is missing from the checkpoint or has another shape.
    pub fn load(weights: &Weights, config: &DeepLabConfig, rng: &mut ChaCha8Rng) -> anyhow::Result<Self> {
        let DeepLabConfig { backbone: config, head, n_labels } = *config;
        let backbone = Backbone::load(weights, &config)?;
        let (n_features, n_low) = (backbone.n_features(), backbone.n_low_features());
        let sizes = Sizes { n_labels, n_features, n_low, output_stride: config.output_stride };
        let (device, kind) = (config.device, config.compute.wide_kind());
        let source = Source { weights, device, kind, rng: RefCell::new(rng) };
        Ok(Self { head: Head::load(head, sizes, &source)?, backbone, device: config.device })
    }

    /// For one forward pass of training, from streams for each image of the batch: the backbone's and the head's.
    pub fn training(
        &self,
        backbone: impl Iterator<Item = ChaCha8Rng>,
        head: impl Iterator<Item = ChaCha8Rng>,
    ) -> Training {
        Training { backbone: self.backbone.dropout(backbone, DROPOUT, self.device), head: head.collect() }
    }

    /// Logits `(B, L, h, w)` f32 at the stride of the backbone (in v3+ at 4), from a normalised image `(B, 3, H, W)`.
    pub fn forward(&self, x: &Tensor, training: Option<&mut Training>) -> Tensor {
        let (dropout, streams) = match training {
            Some(Training { backbone, head }) => (backbone.as_ref(), Some(&mut head[..])),
            None => (None, None),
        };
        let (low, x) = self.backbone.features(x, dropout);
        self.head.forward(&x, low.as_ref(), streams)
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
        self.backbone.frozen().into_iter().chain(self.head.frozen()).collect()
    }

    /// A copy of the statistics of the head's batch norms, which each forward pass of training moves.
    pub fn statistics(&self) -> Vec<Tensor> {
        self.head.frozen().iter().map(|(_, tensor)| tensor.copy()).collect()
    }

    /// Back to what [`Self::statistics`] gave.
    pub fn set_statistics(&self, statistics: &[Tensor]) {
        self.head.frozen().iter_mut().zip(statistics).for_each(|((_, tensor), value)| tensor.copy_(value));
    }

    /// Trained tensors by name.
    pub fn trained(&self) -> Vec<(String, Tensor)> {
        self.backbone.trained().into_iter().chain(self.head.trained()).collect()
    }
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
    Some(cross_entropy(&resized(logits, [size[1], size[2]], false), labels))
}
