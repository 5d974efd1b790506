//! ResNet38d: the wide ResNet of 38 layers (Wu et al. 2019, model A1) at output stride 8, as in AffinityNet and S2C.
//! Batch norms come before their convolutions and are frozen; so are `conv1a` and the blocks of level 2.

use std::ops::Range;

use rand_chacha::ChaCha8Rng;
use tch::{Device, Tensor};

use super::Compute;
use super::conv::{Conv, Norm, Source};
use super::weights::Weights;
use crate::data::rng::unit;

/// Channels of the last feature map.
pub const N_FEATURES: i64 = 4096;

/// Two 3x3 convolutions: name, channels (in, between, out), stride, dilation of the first and of the second.
#[rustfmt::skip]
const PLAIN: [(&str, [i64; 3], i64, (i64, i64)); 15] = [
    ("b2",   [64, 128, 128],    2, (1, 1)),
    ("b2_1", [128, 128, 128],   1, (1, 1)),
    ("b2_2", [128, 128, 128],   1, (1, 1)),
    ("b3",   [128, 256, 256],   2, (1, 1)),
    ("b3_1", [256, 256, 256],   1, (1, 1)),
    ("b3_2", [256, 256, 256],   1, (1, 1)),
    ("b4",   [256, 512, 512],   2, (1, 1)),
    ("b4_1", [512, 512, 512],   1, (1, 1)),
    ("b4_2", [512, 512, 512],   1, (1, 1)),
    ("b4_3", [512, 512, 512],   1, (1, 1)),
    ("b4_4", [512, 512, 512],   1, (1, 1)),
    ("b4_5", [512, 512, 512],   1, (1, 1)),
    ("b5",   [512, 512, 1024],  1, (1, 2)),
    ("b5_1", [1024, 512, 1024], 1, (2, 2)),
    ("b5_2", [1024, 512, 1024], 1, (2, 2)),
];
/// Convolutions of 1x1, 3x3 with dilation 4, and 1x1: name, channels.
const BOTTLENECKS: [(&str, [i64; 4]); 2] = [("b6", [1024, 512, 1024, 2048]), ("b7", [2048, 1024, 2048, 4096])];
/// The first blocks, which are frozen.
const N_FROZEN: usize = 3;
/// Parts of the inner channels of b6 and of b7 that are left out in training (AffinityNet, SEAM).
pub const DROPOUT: [f64; 2] = [0.3, 0.5];
/// The same of S2C's classifier.
pub const S2C_DROPOUT: [f64; 2] = [0.2, 0.2];
/// Channels of [`Resnet38d::sides`].
pub const N_SIDES: [i64; 3] = [512, 1024, N_FEATURES];
/// How many blocks come before b5.
const N_BEFORE_B5: usize = 12;

/// The channels that dropout leaves out of a batch, whole ones (`Dropout2d`).
#[derive(Debug)]
pub struct Dropout {
    /// `(B, C, 1, 1)`, 0 or `1 / (1 - p)`: after the first and the second convolution of b6, then of b7.
    pub masks: [Tensor; 4],
}

impl Dropout {
    /// From a stream for each image; `rates`: of b6 and of b7.
    pub fn draw(streams: &mut [ChaCha8Rng], rates: [f64; 2], device: Device) -> Self {
        let mask = |(channels, rate): (i64, f64)| {
            let factor = |stream: &mut ChaCha8Rng| if unit(stream) < rate { 0.0 } else { (1.0 / (1.0 - rate)) as f32 };
            let of_image = |stream: &mut ChaCha8Rng| (0..channels).map(|_| factor(stream)).collect::<Vec<f32>>();
            let factors: Vec<f32> = streams.iter_mut().flat_map(of_image).collect();
            Tensor::from_slice(&factors).view([-1, channels, 1, 1]).to_device(device)
        };
        let [(_, [_, a, b, _]), (_, [_, c, d, _])] = BOTTLENECKS;
        let [of_b6, of_b7] = rates;
        Self { masks: [(a, of_b6), (b, of_b6), (c, of_b7), (d, of_b7)].map(mask) }
    }

    /// Those of a bottleneck.
    fn of(&self, bottleneck: usize) -> &[Tensor] {
        &self.masks[2 * bottleneck..][..2]
    }
}

#[derive(Debug)]
struct Block {
    bn_branch2a: Norm,
    /// Each with the batch norm before the next.
    inner: Vec<Conv>,
    last: Conv,
    conv_branch1: Option<Conv>,
}

impl Block {
    /// `masks`: dropout after each inner convolution; none in inference.
    fn forward(&self, x: &Tensor, masks: &[Tensor]) -> Tensor {
        let y = self.bn_branch2a.forward(x).relu_();
        let shortcut = match &self.conv_branch1 {
            Some(conv) => conv.forward(&y),
            None => x.shallow_clone(),
        };
        let y = self.inner.iter().enumerate().fold(y, |y, (i, conv)| {
            let y = conv.forward(&y).relu_();
            match masks.get(i) {
                Some(mask) => &y * mask.to_kind(y.kind()),
                None => y,
            }
        });
        shortcut + self.last.forward(&y)
    }

    fn convs(&self) -> impl Iterator<Item = &Conv> {
        self.inner.iter().chain([&self.last]).chain(&self.conv_branch1)
    }

    fn map(&self, f: &impl Fn(&Conv) -> Conv) -> Self {
        Self {
            bn_branch2a: self.bn_branch2a.shared(),
            inner: self.inner.iter().map(f).collect(),
            last: f(&self.last),
            conv_branch1: self.conv_branch1.as_ref().map(f),
        }
    }
}

/// `(B, 3, H, W)` normalised image to `(B, 4096, H / 8, W / 8)` features, not negative.
#[derive(Debug)]
pub struct Resnet38d {
    conv1a: Conv,
    /// The bottlenecks last.
    blocks: Vec<Block>,
    bn7: Norm,
    compute: Compute,
}

impl Resnet38d {
    /// From a checkpoint of PyTorch or the MXNet file `ilsvrc-cls_rna-a1_cls1000`.
    ///
    /// # Errors
    /// A tensor is missing from the checkpoint or has another shape.
    pub fn load(weights: &Weights, compute: Compute, device: Device) -> anyhow::Result<Self> {
        let stem = Source { weights, device, compute, is_frozen: true };
        let conv1a = stem.conv("conv1a".into(), None, [64, 3, 3, 3], (1, 1))?;
        let bn7 = stem.norm("bn7".into(), N_FEATURES)?;
        let plain = PLAIN.iter().enumerate().map(|(i, &(name, [from, between, to], stride, dilations))| {
            let source = Source { weights, device, compute, is_frozen: i < N_FROZEN };
            let name = |part: &str| format!("{name}.{part}");
            let (first, second) = dilations;
            let norm = Some(name("bn_branch2b1"));
            let shortcut = (from != to || stride != 1)
                .then(|| source.conv(name("conv_branch1"), None, [to, from, 1, 1], (stride, 1)));
            anyhow::Ok(Block {
                bn_branch2a: source.norm(name("bn_branch2a"), from)?,
                inner: vec![source.conv(name("conv_branch2a"), norm, [between, from, 3, 3], (stride, first))?],
                last: source.conv(name("conv_branch2b1"), None, [to, between, 3, 3], (1, second))?,
                conv_branch1: shortcut.transpose()?,
            })
        });
        let bottlenecks = BOTTLENECKS.iter().map(|&(name, [from, first, second, to])| {
            let source = Source { weights, device, compute, is_frozen: false };
            let name = |part: &str| format!("{name}.{part}");
            let conv = |conv: &str, norm: &str, shape, dilation| {
                source.conv(name(conv), Some(name(norm)), shape, (1, dilation))
            };
            anyhow::Ok(Block {
                bn_branch2a: source.norm(name("bn_branch2a"), from)?,
                inner: vec![
                    conv("conv_branch2a", "bn_branch2b1", [first, from, 1, 1], 1)?,
                    conv("conv_branch2b1", "bn_branch2b2", [second, first, 3, 3], 4)?,
                ],
                last: source.conv(name("conv_branch2b2"), None, [to, second, 1, 1], (1, 1))?,
                conv_branch1: Some(source.conv(name("conv_branch1"), None, [to, from, 1, 1], (1, 1))?),
            })
        });
        let blocks = plain.chain(bottlenecks).collect::<anyhow::Result<_>>()?;
        Ok(Self { conv1a, blocks, bn7, compute })
    }

    /// For inference only: batch norms behind convolutions folded into them once and for all.
    pub fn folded(&self) -> Self {
        self.map(|conv| conv.folded(self.compute))
    }

    /// The same tensors, these batch norms folded once for several passes.
    pub fn ready(&self) -> Self {
        self.map(|conv| conv.ready(self.compute))
    }

    fn map(&self, f: impl Fn(&Conv) -> Conv) -> Self {
        let blocks = self.blocks.iter().map(|block| block.map(&f)).collect();
        Self { conv1a: f(&self.conv1a), blocks, bn7: self.bn7.shared(), compute: self.compute }
    }

    pub fn forward(&self, x: &Tensor, dropout: Option<&Dropout>) -> Tensor {
        let x = self.plain(&self.stem(x), N_FROZEN..PLAIN.len());
        self.end(&x, dropout)
    }

    /// What goes into b5 and into b6, after norm and ReLU, and the features.
    pub fn sides(&self, x: &Tensor, dropout: Option<&Dropout>) -> [Tensor; 3] {
        let into_b5 = self.plain(&self.stem(x), N_FROZEN..N_BEFORE_B5);
        let into_b6 = self.plain(&into_b5, N_BEFORE_B5..PLAIN.len());
        let normed = |x: &Tensor, block: usize| self.blocks[block].bn_branch2a.forward(x).relu_();
        [normed(&into_b5, N_BEFORE_B5), normed(&into_b6, PLAIN.len()), self.end(&into_b6, dropout)]
    }

    /// What comes out of the frozen blocks.
    fn stem(&self, x: &Tensor) -> Tensor {
        self.plain(&self.conv1a.forward(&x.to_kind(self.compute.kind())), 0..N_FROZEN)
    }

    fn plain(&self, x: &Tensor, blocks: Range<usize>) -> Tensor {
        self.blocks[blocks].iter().fold(x.shallow_clone(), |x, block| block.forward(&x, &[]))
    }

    /// Bottlenecks and the last norm.
    fn end(&self, x: &Tensor, dropout: Option<&Dropout>) -> Tensor {
        let bottlenecks = self.blocks[PLAIN.len()..].iter().enumerate();
        let x = bottlenecks
            .fold(x.shallow_clone(), |x, (i, block)| block.forward(&x, dropout.map_or(&[], |dropout| dropout.of(i))));
        self.bn7.forward(&x).relu_()
    }

    fn convs(&self) -> impl Iterator<Item = &Conv> {
        self.blocks.iter().flat_map(Block::convs).chain([&self.conv1a])
    }

    /// Trained tensors by name.
    pub fn trained(&self) -> Vec<(String, Tensor)> {
        self.convs().filter_map(Conv::trained).collect()
    }

    /// What a checkpoint needs beside [`Self::trained`].
    pub fn frozen(&self) -> Vec<(String, Tensor)> {
        let norms = self.blocks.iter().map(|block| &block.bn_branch2a).chain([&self.bn7]);
        self.convs().flat_map(Conv::frozen).chain(norms.flat_map(Norm::tensors)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::rng::stream;

    #[test]
    fn dropout_is_of_whole_channels_and_of_each_image() {
        let streams = |items: &[&str]| items.iter().map(|item| stream(7, 1, item, "dropout")).collect::<Vec<_>>();
        let draw = |items: &[&str]| Dropout::draw(&mut streams(items), S2C_DROPOUT, Device::Cpu).masks;
        let both = draw(&["a", "b"]);
        assert_eq!(both.each_ref().map(|mask| mask.size()[1]), [512, 1024, 1024, 2048]);
        for (i, item) in ["a", "b"].into_iter().enumerate() {
            // An image's masks do not depend on its neighbours in the batch.
            let alone = draw(&[item]);
            assert!(both.iter().zip(&alone).all(|(both, alone)| both.get(i as i64) == alone.get(0)), "{item}");
        }
        assert_ne!(both[0].get(0), both[0].get(1));
        let factors = Tensor::cat(&both.map(|mask| mask.view([-1])), 0);
        let n_left_out = factors.eq(0.0).sum(tch::Kind::Int64).int64_value(&[]);
        assert_eq!(factors.eq(1.25).sum(tch::Kind::Int64).int64_value(&[]), 2 * 4608 - n_left_out);
        let rate = n_left_out as f64 / (2.0 * 4608.0);
        assert!((rate - S2C_DROPOUT[0]).abs() < 0.02, "{rate}");
    }
}
