//! ResNet-50 for dense prediction (reference: `torchvision/models/resnet.py`): output stride 8 or 16 by dilation,
//! batch norms frozen (so they fold into their convolutions), `conv1` and `layer1` frozen.

use tch::{Device, Kind, Tensor};

use super::Compute;
use super::weights::Weights;

/// Where the stride of a bottleneck sits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StrideIn {
    /// The first 1x1 convolution (original ResNet).
    Conv1,
    /// The 3x3 convolution (torchvision).
    Conv2,
}

#[derive(Clone, Copy, Debug)]
pub struct ResnetConfig {
    pub stride_in: StrideIn,
    /// Pixels a feature covers: 8, 16 or 32.
    pub output_stride: i64,
    pub compute: Compute,
    pub device: Device,
}

/// Channels of the last feature map.
pub const FEATURES: i64 = 2048;
const BLOCKS: [i64; 4] = [3, 4, 6, 3];
const NORM_EPS: f64 = 1e-5;

/// A convolution and the frozen batch norm after it.
#[derive(Debug)]
struct ConvBn {
    name: String,
    weight: Tensor,
    /// Of the batch norm: `scale = gamma / sqrt(var + eps)`, `bias = beta - mean * scale`.
    scale: Tensor,
    bias: Tensor,
    /// `weight * scale`, where neither changes any more.
    folded: Option<Tensor>,
    stride: i64,
    dilation: i64,
}

impl ConvBn {
    fn load(
        weights: &Weights,
        (conv, norm): (String, String),
        shape: [i64; 4],
        (stride, dilation): (i64, i64),
        (device, is_frozen): (Device, bool),
    ) -> anyhow::Result<Self> {
        let stat = |part: &str| weights.get(&format!("{norm}.{part}"), &shape[..1]);
        let scale = stat("weight")? / (stat("running_var")? + NORM_EPS).sqrt();
        let bias = stat("bias")? - stat("running_mean")? * &scale;
        let name = format!("{conv}.weight");
        let weight = weights.get(&name, &shape)?.to_device(device).set_requires_grad(!is_frozen);
        let scale = scale.view([-1, 1, 1, 1]).to_device(device);
        Ok(Self { name, weight, scale, bias: bias.to_device(device), folded: None, stride, dilation })
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        let kind = x.kind();
        let weight = match &self.folded {
            Some(folded) => folded.shallow_clone(),
            None => (&self.weight * &self.scale).to_kind(kind),
        };
        let side = self.weight.size()[2];
        let padding = [side / 2 * self.dilation; 2];
        x.conv2d(&weight, Some(self.bias.to_kind(kind)), [self.stride; 2], padding, [self.dilation; 2], 1)
    }
}

#[derive(Debug)]
struct Bottleneck {
    conv1: ConvBn,
    conv2: ConvBn,
    conv3: ConvBn,
    downsample: Option<ConvBn>,
}

impl Bottleneck {
    fn forward(&self, x: &Tensor) -> Tensor {
        let y = self.conv1.forward(x).relu();
        let y = self.conv2.forward(&y).relu();
        let y = self.conv3.forward(&y);
        match &self.downsample {
            Some(downsample) => (y + downsample.forward(x)).relu(),
            None => (y + x).relu(),
        }
    }

    fn convs(&self) -> impl Iterator<Item = &ConvBn> {
        [&self.conv1, &self.conv2, &self.conv3].into_iter().chain(&self.downsample)
    }

    fn convs_mut(&mut self) -> impl Iterator<Item = &mut ConvBn> {
        [&mut self.conv1, &mut self.conv2, &mut self.conv3].into_iter().chain(&mut self.downsample)
    }
}

/// In memory as `(B, H, W, C)`: convolutions without gradients are a third faster so (on this CPU 1.3 to 1.5 times;
/// with gradients there is no difference).
pub fn channels_last(x: &Tensor) -> Tensor {
    x.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2])
}

/// `(B, 3, H, W)` normalised image to `(B, 2048, H / stride, W / stride)` features.
#[derive(Debug)]
pub struct Resnet50 {
    conv1: ConvBn,
    layers: [Vec<Bottleneck>; 4],
    compute: Compute,
}

impl Resnet50 {
    /// # Errors
    /// A tensor is missing from the checkpoint or has another shape.
    pub fn load(weights: &Weights, config: &ResnetConfig) -> anyhow::Result<Self> {
        let stem = (config.device, true);
        let conv1 = ConvBn::load(weights, ("conv1".into(), "bn1".into()), [64, 3, 7, 7], (2, 1), stem)?;
        let (mut inputs, mut dilation, mut reached) = (64, 1, 4);
        let mut layer = |layer: i64| {
            let width = 64 << (layer - 1);
            let wanted = if layer == 1 { 1 } else { 2 };
            let before = dilation;
            // Once the output stride is reached, further strides become dilation (torchvision's rule: the first
            // block of such a layer keeps the dilation before it).
            let stride = if reached < config.output_stride { wanted } else { 1 };
            reached *= stride;
            dilation *= wanted / stride;
            let device = (config.device, layer == 1);
            let block = |i: i64| {
                let (stride, dilation, from) = if i == 0 { (stride, before, inputs) } else { (1, dilation, width * 4) };
                let (first, second) = match config.stride_in {
                    StrideIn::Conv1 => (stride, 1),
                    StrideIn::Conv2 => (1, stride),
                };
                let name = |part: &str| format!("layer{layer}.{i}.{part}");
                let conv = |k: i64, shape, at| {
                    ConvBn::load(weights, (name(&format!("conv{k}")), name(&format!("bn{k}"))), shape, at, device)
                };
                let downsample = || {
                    let names = (name("downsample.0"), name("downsample.1"));
                    ConvBn::load(weights, names, [width * 4, from, 1, 1], (stride, 1), device)
                };
                anyhow::Ok(Bottleneck {
                    conv1: conv(1, [width, from, 1, 1], (first, 1))?,
                    conv2: conv(2, [width, width, 3, 3], (second, dilation))?,
                    conv3: conv(3, [width * 4, width, 1, 1], (1, 1))?,
                    downsample: if i == 0 { Some(downsample()?) } else { None },
                })
            };
            let blocks = (0..BLOCKS[layer as usize - 1]).map(block).collect::<anyhow::Result<Vec<_>>>()?;
            inputs = width * 4;
            anyhow::Ok(blocks)
        };
        let layers = [layer(1)?, layer(2)?, layer(3)?, layer(4)?];
        Ok(Self { conv1, layers, compute: config.compute })
    }

    /// For inference only: batch norms folded into their convolutions once and for all.
    pub fn folded(mut self) -> Self {
        let kind = self.compute.kind();
        let blocks = self.layers.iter_mut().flatten().flat_map(Bottleneck::convs_mut);
        tch::no_grad(|| {
            for conv in blocks.chain([&mut self.conv1]) {
                conv.folded = Some(channels_last(&(&conv.weight * &conv.scale).to_kind(kind)));
            }
        });
        self
    }

    pub fn forward(&self, x: &Tensor) -> Tensor {
        let [frozen, trained @ ..] = &self.layers;
        let x = tch::no_grad(|| {
            let x = self.conv1.forward(&x.to_kind(self.compute.kind())).relu();
            let x = x.max_pool2d([3, 3], [2, 2], [1, 1], [1, 1], false);
            frozen.iter().fold(x, |x, block| block.forward(&x))
        });
        trained.iter().flatten().fold(x, |x, block| block.forward(&x))
    }

    /// Trained tensors by name.
    pub fn trained(&self) -> Vec<(String, Tensor)> {
        let convs = self.layers[1..].iter().flatten().flat_map(Bottleneck::convs);
        convs.map(|conv| (conv.name.clone(), conv.weight.shallow_clone())).collect()
    }

    /// What a checkpoint needs beside [`Self::trained`]: frozen convolutions, and batch norms as scale and bias.
    pub fn frozen(&self) -> Vec<(String, Tensor)> {
        let convs = self.layers.iter().flatten().flat_map(Bottleneck::convs).chain([&self.conv1]);
        let mut tensors = Vec::new();
        for conv in convs {
            let norm = conv.name.replace("conv", "bn").replace("downsample.0", "downsample.1").replace(".weight", "");
            // With a variance of 1 - eps the scale comes back bit by bit.
            let ones = Tensor::ones_like(&conv.bias) - NORM_EPS;
            tensors.push((format!("{norm}.weight"), conv.scale.view([-1])));
            tensors.push((format!("{norm}.bias"), conv.bias.shallow_clone()));
            tensors.push((format!("{norm}.running_mean"), Tensor::zeros_like(&conv.bias)));
            tensors.push((format!("{norm}.running_var"), ones));
            if !conv.weight.requires_grad() {
                tensors.push((conv.name.clone(), conv.weight.shallow_clone()));
            }
        }
        tensors.into_iter().map(|(name, tensor)| (name, tensor.to_kind(Kind::Float))).collect()
    }
}
