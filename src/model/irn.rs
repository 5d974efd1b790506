//! IRN (Ahn, Cho and Kwak, CVPR 2019): edges between things of different classes, and for each pixel the way to the
//! middle of its thing, from all levels of a ResNet that is not trained. Names are those of the public checkpoint.
//!
//! The reference takes the mean displacement of all training images from its displacements once trained; it matters to
//! instances alone, so there is none here.

use anyhow::bail;
use rand_chacha::ChaCha8Rng;
use tch::{Kind, Tensor};

use super::backbone::{Backbone, BackboneConfig};
use super::conv::channels_last;
use super::init::uniform;
use super::repeat::resized;
use super::resnet::Resnet;
use super::weights::Weights;
use super::wide;

/// Pixels of the input that a pixel of the maps covers.
pub const STRIDE: i64 = 4;
/// Strides of the levels of a ResNet that no dilation keeps lower.
const STRIDES: [i64; 5] = [4, 4, 8, 16, 32];
/// Channels an edge is made of, by level.
const EDGE_DIM: i64 = 32;
const EDGE_GROUPS: i64 = 4;
/// Channels and groups of displacements, by level.
const DP: [(i64, i64); 5] = [(64, 8), (128, 16), (256, 16), (256, 16), (256, 16)];
const DP_DIM: i64 = 256;
const DP_GROUPS: i64 = 16;
const NORM_EPS: f64 = 1e-5;

/// Edges and displacements of a batch.
#[derive(Debug)]
pub struct IrnOutput {
    /// `(B, 1, h, w)` f32 logits.
    pub edge: Tensor,
    /// `(B, 2, h, w)` f32, down and right.
    pub displacement: Tensor,
}

#[derive(Debug)]
pub struct IrnNet {
    backbone: Resnet,
    edges: [Layer; 5],
    edge: Plain,
    displacements: [Layer; 5],
    /// Of the three deep levels.
    deep: Layer,
    last: Layer,
    displacement: Plain,
}

/// 1x1 convolution, group norm, resampling, ReLU.
#[derive(Debug)]
struct Layer {
    conv: Plain,
    norm: String,
    scale: Tensor,
    bias: Tensor,
    groups: i64,
    /// Its result has so many times the side.
    up: i64,
}

/// 1x1 convolution.
#[derive(Debug)]
struct Plain {
    name: String,
    /// `(to, from, 1, 1)`
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Plain {
    fn forward(&self, x: &Tensor) -> Tensor {
        let bias = self.bias.as_ref().map(|bias| bias.to_kind(x.kind()));
        x.conv2d(&self.weight.to_kind(x.kind()), bias, [1, 1], [0, 0], [1, 1], 1)
    }

    fn trained(&self) -> impl Iterator<Item = (String, Tensor)> {
        let name = |part: &str| format!("{}.{part}", self.name);
        let bias = self.bias.as_ref().map(|bias| (name("bias"), bias.shallow_clone()));
        [(name("weight"), self.weight.shallow_clone())].into_iter().chain(bias)
    }
}

impl Layer {
    fn forward(&self, x: &Tensor) -> Tensor {
        let y = self.conv.forward(x);
        let kind = y.kind();
        let y = wide(&y).group_norm(self.groups, Some(&self.scale), Some(&self.bias), NORM_EPS, false);
        let y = match self.up {
            1 => y,
            up => resized(&y, [y.size()[2] * up, y.size()[3] * up], false),
        };
        y.relu().to_kind(kind)
    }

    fn trained(&self) -> impl Iterator<Item = (String, Tensor)> {
        let norm = [("weight", &self.scale), ("bias", &self.bias)];
        let norm = norm.map(|(part, tensor)| (format!("{}.{part}", self.norm), tensor.shallow_clone()));
        self.conv.trained().chain(norm)
    }
}

/// Where layers come from: a checkpoint of them, or a stream of randomness.
struct Source<'a> {
    weights: &'a Weights,
    device: tch::Device,
    kind: Kind,
    rng: &'a mut ChaCha8Rng,
}

impl Source<'_> {
    fn get(
        &mut self,
        name: &str,
        shape: &[i64],
        new: impl FnOnce(&mut ChaCha8Rng) -> Tensor,
    ) -> anyhow::Result<Tensor> {
        let value = match self.weights.contains(name) {
            true => self.weights.get(name, shape)?,
            false => new(self.rng),
        };
        Ok(value.to_device(self.device).to_kind(self.kind).set_requires_grad(true))
    }

    /// First values as PyTorch draws those of its convolutions.
    fn plain(&mut self, name: String, (from, to): (i64, i64), with_bias: bool) -> anyhow::Result<Plain> {
        let (shape, bound) = ([to, from, 1, 1], 1.0 / (from as f64).sqrt());
        let weight = self.get(&format!("{name}.weight"), &shape, |rng| uniform(rng, &shape, bound))?;
        let bias = with_bias.then(|| self.get(&format!("{name}.bias"), &[to], |rng| uniform(rng, &[to], bound)));
        Ok(Plain { weight, bias: bias.transpose()?, name })
    }

    fn layer(&mut self, name: &str, sizes: (i64, i64), groups: i64, up: i64) -> anyhow::Result<Layer> {
        let (conv, norm, to) = (self.plain(format!("{name}.0"), sizes, false)?, format!("{name}.1"), sizes.1);
        let full = |value: f64| move |_: &mut ChaCha8Rng| Tensor::full([to], value, (Kind::Float, tch::Device::Cpu));
        let scale = self.get(&format!("{norm}.weight"), &[to], full(1.0))?;
        let bias = self.get(&format!("{norm}.bias"), &[to], full(0.0))?;
        Ok(Layer { conv, norm, scale, bias, groups, up })
    }
}

impl IrnNet {
    /// `layers`: a checkpoint of what is trained, or anything without it: new layers are drawn from `rng`.
    ///
    /// # Errors
    /// The backbone is no ResNet; a tensor is missing from a checkpoint or has another shape.
    pub fn load(
        weights: &Weights,
        layers: &Weights,
        config: &BackboneConfig,
        rng: &mut ChaCha8Rng,
    ) -> anyhow::Result<Self> {
        let Backbone::Resnet(backbone) = Backbone::load(weights, config)?.folded() else {
            bail!("IRN looks at the levels of a ResNet, and a {} has other ones", config.architecture);
        };
        let stride = |level: usize| STRIDES[level].min(config.output_stride.max(8));
        let channels = backbone.n_levels();
        let mut source = Source { weights: layers, device: config.device, kind: config.compute.wide_kind(), rng };
        let mut edge = |level: usize| {
            let name = format!("fc_edge{}", level + 1);
            source.layer(&name, (channels[level], EDGE_DIM), EDGE_GROUPS, stride(level) / STRIDE)
        };
        let edges = [edge(0)?, edge(1)?, edge(2)?, edge(3)?, edge(4)?];
        let edge = source.plain("fc_edge6".to_owned(), (5 * EDGE_DIM, 1), true)?;
        let mut displacement = |level: usize| {
            let (name, (dim, groups)) = (format!("fc_dp{}", level + 1), DP[level]);
            // Deep levels go to the size of the third.
            source.layer(&name, (channels[level], dim), groups, (stride(level) / STRIDES[2]).max(1))
        };
        let displacements = [displacement(0)?, displacement(1)?, displacement(2)?, displacement(3)?, displacement(4)?];
        let of = |levels: &[(i64, i64)]| levels.iter().map(|(dim, _)| dim).sum::<i64>();
        let deep = source.layer("fc_dp6", (of(&DP[2..]), DP_DIM), DP_GROUPS, STRIDES[2] / STRIDE)?;
        let last = source.layer("fc_dp7", (of(&DP[..2]) + DP_DIM, DP_DIM), DP_GROUPS, 1)?;
        let displacement = source.plain("fc_dp7.3".to_owned(), (DP_DIM, 2), false)?;
        Ok(Self { backbone, edges, edge, displacements, deep, last, displacement })
    }

    /// From a normalised image `(B, 3, H, W)`; `h` and `w` are a fourth, rounded up.
    pub fn forward(&self, x: &Tensor) -> IrnOutput {
        let levels = self.levels(x);
        let (of_third, of_first) = (side(&levels[2]), side(&levels[0]));
        let dp: Vec<Tensor> = levels.iter().zip(&self.displacements).map(|(x, layer)| layer.forward(x)).collect();
        let deep: Vec<Tensor> = dp[2..].iter().map(|x| cut(x, of_third)).collect();
        let deep = cut(&self.deep.forward(&Tensor::cat(&deep, 1)), of_first);
        let dp = self.last.forward(&Tensor::cat(&[&dp[0], &dp[1], &deep], 1));
        let displacement = wide(&self.displacement.forward(&dp));
        IrnOutput { edge: self.edge_of(&levels), displacement }
    }

    /// How much of an edge a pixel of one image is, 0 to 1, `(h, w)`: the mean of the image and its mirror image.
    pub fn edges(&self, x: &Tensor) -> Tensor {
        tch::no_grad(|| {
            let both = self.edge_of(&self.levels(&Tensor::cat(&[x, &x.flip([3])], 0))); // (2, 1, h, w)
            ((both.get(0) + both.get(1).flip([2])) / 2.0).sigmoid().squeeze_dim(0)
        })
    }

    fn levels(&self, x: &Tensor) -> [Tensor; 5] {
        tch::no_grad(|| self.backbone.levels(&channels_last(x)))
    }

    fn edge_of(&self, levels: &[Tensor; 5]) -> Tensor {
        let of_first = side(&levels[0]);
        let edges: Vec<Tensor> =
            levels.iter().zip(&self.edges).map(|(x, layer)| cut(&layer.forward(x), of_first)).collect();
        wide(&self.edge.forward(&Tensor::cat(&edges, 1)))
    }

    /// Trained tensors by name; nothing else is in a checkpoint.
    pub fn trained(&self) -> Vec<(String, Tensor)> {
        let layers = self.edges.iter().chain(&self.displacements).chain([&self.deep, &self.last]);
        layers.flat_map(Layer::trained).chain(self.edge.trained()).chain(self.displacement.trained()).collect()
    }

    /// The name is of the branch of displacements.
    pub fn is_displacement(name: &str) -> bool {
        name.starts_with("fc_dp")
    }
}

/// Height and width.
fn side(x: &Tensor) -> [i64; 2] {
    [x.size()[2], x.size()[3]]
}

/// Without what goes beyond a size.
fn cut(x: &Tensor, [height, width]: [i64; 2]) -> Tensor {
    x.narrow(2, 0, height).narrow(3, 0, width)
}
