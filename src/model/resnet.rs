//! ResNets for dense prediction (reference: `torchvision/models/resnet.py`): output stride 8 or 16 by dilation, batch
//! norms frozen, `conv1` and `layer1` frozen.

use anyhow::ensure;
use tch::{Device, Tensor};

use super::Compute;
use super::conv::{Conv, Source};
use super::weights::Weights;

/// How many layers with weights a ResNet has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    D18,
    D34,
    D50,
    D101,
}

impl Depth {
    pub const ALL: [Self; 4] = [Self::D18, Self::D34, Self::D50, Self::D101];

    pub fn number(self) -> u32 {
        match self {
            Self::D18 => 18,
            Self::D34 => 34,
            Self::D50 => 50,
            Self::D101 => 101,
        }
    }

    /// Blocks in each layer.
    pub fn blocks(self) -> [usize; 4] {
        match self {
            Self::D18 => [2, 2, 2, 2],
            Self::D34 | Self::D50 => [3, 4, 6, 3],
            Self::D101 => [3, 4, 23, 3],
        }
    }

    /// A block has convolutions of 1x1, 3x3 and 1x1, not two of 3x3.
    pub fn is_bottleneck(self) -> bool {
        matches!(self, Self::D50 | Self::D101)
    }

    /// Channels of a block's result, for each of its inner ones.
    fn expansion(self) -> i64 {
        if self.is_bottleneck() { 4 } else { 1 }
    }

    /// Channels of the last feature map.
    pub fn n_features(self) -> i64 {
        512 * self.expansion()
    }
}

/// Where the stride of a bottleneck sits. (Two convolutions of 3x3 have it in the first.)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StrideIn {
    /// The first 1x1 convolution (original ResNet).
    Conv1,
    /// The 3x3 convolution (torchvision).
    Conv2,
}

#[derive(Clone, Copy, Debug)]
pub struct ResnetConfig {
    pub depth: Depth,
    pub stride_in: StrideIn,
    /// Pixels a feature covers: 8, 16 or 32.
    pub output_stride: i64,
    pub compute: Compute,
    pub device: Device,
}

#[derive(Debug)]
struct Block {
    inner: Vec<Conv>,
    last: Conv,
    downsample: Option<Conv>,
}

impl Block {
    fn forward(&self, x: &Tensor) -> Tensor {
        let y = self.inner.iter().fold(x.shallow_clone(), |y, conv| conv.forward(&y).relu_());
        let mut y = self.last.forward(&y);
        match &self.downsample {
            Some(downsample) => y.g_add_(&downsample.forward(x)).relu_(),
            None => y.g_add_(x).relu_(),
        }
    }

    fn convs(&self) -> impl Iterator<Item = &Conv> {
        self.inner.iter().chain([&self.last]).chain(&self.downsample)
    }

    fn map(&self, f: &impl Fn(&Conv) -> Conv) -> Self {
        Self {
            inner: self.inner.iter().map(f).collect(),
            last: f(&self.last),
            downsample: self.downsample.as_ref().map(f),
        }
    }
}

/// `(B, 3, H, W)` normalised image to `(B, F, H / stride, W / stride)` features.
#[derive(Debug)]
pub struct Resnet {
    conv1: Conv,
    layers: [Vec<Block>; 4],
    compute: Compute,
    depth: Depth,
}

impl Resnet {
    /// # Errors
    /// A tensor is missing from the checkpoint or has another shape, or the checkpoint has more blocks.
    pub fn load(weights: &Weights, config: &ResnetConfig) -> anyhow::Result<Self> {
        let ResnetConfig { depth, stride_in, output_stride, compute, device } = *config;
        let stem = Source { weights, device, compute, is_frozen: true };
        let conv1 = stem.conv("conv1".into(), Some("bn1".into()), [64, 3, 7, 7], (2, 1))?;
        let (mut inputs, mut dilation, mut reached) = (64, 1, 4);
        let mut layer = |layer: usize| {
            let n_blocks = depth.blocks()[layer - 1];
            let beyond = format!("layer{layer}.{n_blocks}.conv1.weight");
            ensure!(!weights.contains(&beyond), "the checkpoint has more than {n_blocks} blocks in `layer{layer}`");
            let width = 64 << (layer - 1);
            let outputs = width * depth.expansion();
            let wanted = if layer == 1 { 1 } else { 2 };
            let before = dilation;
            // Once the output stride is reached, further strides become dilation (torchvision's rule: the convolution
            // that had the stride keeps the dilation before it; timm has the same for blocks without bottleneck).
            let stride = if reached < output_stride { wanted } else { 1 };
            reached *= stride;
            dilation *= wanted / stride;
            let source = Source { weights, device, compute, is_frozen: layer == 1 };
            let block = |i: usize| {
                let (stride, near, from) = if i == 0 { (stride, before, inputs) } else { (1, dilation, outputs) };
                let (first, second) = match stride_in {
                    StrideIn::Conv1 => (stride, 1),
                    StrideIn::Conv2 => (1, stride),
                };
                let (inner, last): (&[_], _) = match depth.is_bottleneck() {
                    true => (
                        &[([width, from, 1, 1], (first, 1)), ([width, width, 3, 3], (second, near))],
                        ([outputs, width, 1, 1], (1, 1)),
                    ),
                    false => (&[([width, from, 3, 3], (stride, near))], ([width, width, 3, 3], (1, dilation))),
                };
                let name = |part: &str| format!("layer{layer}.{i}.{part}");
                let conv = |k: usize, (shape, at): ([i64; 4], (i64, i64))| {
                    source.conv(name(&format!("conv{k}")), Some(name(&format!("bn{k}"))), shape, at)
                };
                let downsample = (from != outputs).then(|| {
                    let (conv, norm) = (name("downsample.0"), name("downsample.1"));
                    source.conv(conv, Some(norm), [outputs, from, 1, 1], (stride, 1))
                });
                anyhow::Ok(Block {
                    inner: inner.iter().zip(1..).map(|(&of, k)| conv(k, of)).collect::<anyhow::Result<_>>()?,
                    last: conv(inner.len() + 1, last)?,
                    downsample: downsample.transpose()?,
                })
            };
            let blocks = (0..n_blocks).map(block).collect::<anyhow::Result<Vec<_>>>()?;
            inputs = outputs;
            Ok(blocks)
        };
        let layers = [layer(1)?, layer(2)?, layer(3)?, layer(4)?];
        Ok(Self { conv1, layers, compute, depth })
    }

    /// Channels of the features.
    pub fn n_features(&self) -> i64 {
        self.depth.n_features()
    }

    /// For inference only: batch norms folded into their convolutions once and for all.
    pub fn folded(&self) -> Self {
        self.map(|conv| conv.folded(self.compute))
    }

    /// The same tensors, batch norms folded into their convolutions once for several passes.
    pub fn ready(&self) -> Self {
        self.map(|conv| conv.ready(self.compute))
    }

    fn map(&self, f: impl Fn(&Conv) -> Conv) -> Self {
        let layers = self.layers.each_ref().map(|blocks| blocks.iter().map(|block| block.map(&f)).collect());
        Self { conv1: f(&self.conv1), layers, compute: self.compute, depth: self.depth }
    }

    /// Channels of the result of `layer1`.
    pub fn n_low_features(&self) -> i64 {
        64 * self.depth.expansion()
    }

    pub fn forward(&self, x: &Tensor) -> Tensor {
        self.features(x).1
    }

    /// Channels of [`Self::levels`].
    pub fn n_levels(&self) -> [i64; 5] {
        let of = |width: i64| width * self.depth.expansion();
        [64, of(64), of(128), of(256), of(512)]
    }

    /// What goes into `layer1` and what comes out of each layer, at strides 4, 4, 8 and, unless the output stride is
    /// less, 16 and 32.
    pub fn levels(&self, x: &Tensor) -> [Tensor; 5] {
        let [first, second, third, fourth] = &self.layers;
        let layer = |x: &Tensor, blocks: &[Block]| blocks.iter().fold(x.shallow_clone(), |x, block| block.forward(&x));
        let stem = self.stem(x);
        let low = layer(&stem, first);
        let second = layer(&low, second);
        let third = layer(&second, third);
        let fourth = layer(&third, fourth);
        [stem, low, second, third, fourth]
    }

    /// What goes into `layer1`.
    fn stem(&self, x: &Tensor) -> Tensor {
        let x = self.conv1.forward(&x.to_kind(self.compute.kind())).relu_();
        x.max_pool2d([3, 3], [2, 2], [1, 1], [1, 1], false)
    }

    /// The result of `layer1`, at stride 4, and the features.
    pub fn features(&self, x: &Tensor) -> (Tensor, Tensor) {
        let [first, others @ ..] = &self.layers;
        let low = first.iter().fold(self.stem(x), |x, block| block.forward(&x));
        let x = others.iter().flatten().fold(low.shallow_clone(), |x, block| block.forward(&x));
        (low, x)
    }

    fn convs(&self) -> impl Iterator<Item = &Conv> {
        self.layers.iter().flatten().flat_map(Block::convs).chain([&self.conv1])
    }

    /// Trained tensors by name.
    pub fn trained(&self) -> Vec<(String, Tensor)> {
        self.convs().filter_map(Conv::trained).collect()
    }

    /// What a checkpoint needs beside [`Self::trained`]: frozen convolutions, and batch norms as scale and bias.
    pub fn frozen(&self) -> Vec<(String, Tensor)> {
        self.convs().flat_map(Conv::frozen).collect()
    }
}
