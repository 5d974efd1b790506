//! AffinityNet (PSA; Ahn and Kwak, CVPR 2018): features whose distance says whether two near pixels are of one thing.

use rand_chacha::ChaCha8Rng;
use tch::Tensor;

use super::backbone::{Backbone, BackboneConfig};
use super::init::{kaiming, layer, xavier};
use super::repeat::resized;
use super::resnet38::{DROPOUT, Dropout};
use super::weights::Weights;
use super::wide;

/// Pixels of the input a feature covers: of all backbones, since features of higher strides are brought to those of
/// `layer2`.
pub const STRIDE: i64 = 8;
/// The layers above the backbone, whose names are those of the public checkpoint, and their channels.
const SIDES: [(&str, i64); 3] = [("f8_3.weight", 64), ("f8_4.weight", 128), ("f8_5.weight", 256)];
const LAST: &str = "f9.weight";
/// Channels of the features.
const DIM: i64 = 448;

#[derive(Debug)]
pub struct PsaNet {
    backbone: Backbone,
    /// `(64 | 128 | 256, F, 1, 1)`
    f8: [Tensor; 3],
    /// `(448, 448, 1, 1)`
    f9: Tensor,
}

impl PsaNet {
    /// From a checkpoint of ours, or from a backbone's weights with new layers drawn from `rng`.
    ///
    /// # Errors
    /// A tensor is missing from the checkpoint or has another shape.
    pub fn load(weights: &Weights, config: &BackboneConfig, rng: &mut ChaCha8Rng) -> anyhow::Result<Self> {
        let backbone = Backbone::load(weights, config)?;
        let n_sides = backbone.n_sides();
        let place = (config.device, config.compute.wide_kind());
        let mut side = |i: usize| {
            let ((name, to), from) = (SIDES[i], n_sides[i]);
            layer(weights, name, &[to, from, 1, 1], place, |shape| kaiming(rng, shape))
        };
        let f8 = [side(0)?, side(1)?, side(2)?];
        let f9 = layer(weights, LAST, &[DIM, DIM, 1, 1], place, |shape| xavier(rng, shape, 4.0))?;
        Ok(Self { backbone, f8, f9 })
    }

    /// For inference only: see [`Backbone::folded`].
    pub fn folded(self) -> Self {
        Self { backbone: self.backbone.folded(), ..self }
    }

    /// What training leaves out of a batch, from a stream for each image.
    pub fn dropout(&self, streams: impl Iterator<Item = ChaCha8Rng>) -> Option<Dropout> {
        self.backbone.dropout(streams, DROPOUT, self.f9.device())
    }

    /// `(B, 448, H / 8, W / 8)` f32, from a normalised image `(B, 3, H, W)`; sides are rounded up.
    pub fn forward(&self, x: &Tensor, dropout: Option<&Dropout>) -> Tensor {
        let none: Option<&Tensor> = None;
        let layer =
            |x: &Tensor, weight: &Tensor| x.conv2d(&weight.to_kind(x.kind()), none, [1, 1], [0, 0], [1, 1], 1).elu();
        let sides = self.backbone.sides(x, dropout);
        let size = [sides[0].size()[2], sides[0].size()[3]];
        let brought = |x: Tensor| match x.size()[2..] == size {
            true => x,
            false => resized(&x, size, false),
        };
        let sides: Vec<Tensor> = sides.iter().zip(&self.f8).map(|(x, weight)| brought(layer(x, weight))).collect();
        wide(&layer(&Tensor::cat(&sides, 1), &self.f9))
    }

    /// What a checkpoint needs beside [`Self::trained`].
    pub fn frozen(&self) -> Vec<(String, Tensor)> {
        self.backbone.frozen()
    }

    /// Trained tensors by name.
    pub fn trained(&self) -> Vec<(String, Tensor)> {
        let layers = SIDES.iter().zip(&self.f8).map(|((name, _), weight)| ((*name).to_owned(), weight.shallow_clone()));
        let last = (LAST.to_owned(), self.f9.shallow_clone());
        self.backbone.trained().into_iter().chain(layers).chain([last]).collect()
    }

    /// The name is of a layer above the backbone.
    pub fn is_new(name: &str) -> bool {
        name == LAST || SIDES.iter().any(|(side, _)| *side == name)
    }
}
