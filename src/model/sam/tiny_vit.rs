//! TinyViT, the image encoder of MobileSAM (reference: `mobile_sam/modeling/tiny_vit_sam.py`): convolutions at
//! stride 4 and 8, then windowed attention at 128, 64 and 64 positions a side.

use tch::Tensor;

use super::Neck;
use crate::model::layer::{ConvBn, LayerNorm, Linear, Loader, softmax};

const NORM_EPS: f64 = 1e-5;
/// Width, depth, heads, window and positions a side of the three attention layers.
const LAYERS: [(i64, i64, i64, i64, i64); 3] = [(128, 2, 4, 7, 128), (160, 6, 5, 14, 64), (320, 2, 10, 7, 64)];

/// `(1, 3, 1024, 1024)` normalised image to `(1, 256, 64, 64)` embedding.
#[derive(Debug)]
pub struct TinyViT {
    patch_embed: [ConvBn; 2],
    conv_blocks: Vec<MbConv>,
    downsample: Vec<PatchMerging>,
    layers: Vec<Vec<Block>>,
    neck: Neck,
}

impl TinyViT {
    pub fn load(from: &Loader<'_>) -> anyhow::Result<Self> {
        let seq = "image_encoder.patch_embed.seq";
        let patch_embed = [
            ConvBn::load(from, &format!("{seq}.0"), [32, 3, 3, 3], 2)?,
            ConvBn::load(from, &format!("{seq}.2"), [64, 32, 3, 3], 2)?,
        ];
        let name = |layer: usize| format!("image_encoder.layers.{layer}");
        let conv_block = |i| MbConv::load(from, &format!("{}.blocks.{i}", name(0)), 64);
        let conv_blocks = (0..2).map(conv_block).collect::<anyhow::Result<_>>()?;
        // The last merging keeps its resolution.
        let merges = [(0, 64, 128, 2), (1, 128, 160, 2), (2, 160, 320, 1)];
        let merge = |(layer, dim, out, stride)| {
            PatchMerging::load(from, &format!("{}.downsample", name(layer)), (dim, out), stride)
        };
        let downsample = merges.into_iter().map(merge).collect::<anyhow::Result<_>>()?;
        let mut layers = Vec::new();
        for (layer, (dim, depth, heads, window, side)) in LAYERS.into_iter().enumerate() {
            let block = |i| {
                let name = format!("{}.blocks.{i}", name(layer + 1));
                Block::load(from, &name, BlockShape { dim, heads, window, side })
            };
            layers.push((0..depth).map(block).collect::<anyhow::Result<_>>()?);
        }
        Ok(Self { patch_embed, conv_blocks, downsample, layers, neck: Neck::load(from, LAYERS[2].0)? })
    }

    pub fn forward(&self, image: &Tensor) -> Tensor {
        let x = self.patch_embed[1].forward(&self.patch_embed[0].forward(image).gelu("none")); // (1, 64, 256, 256)
        let mut x = self.conv_blocks.iter().fold(x, |x, block| block.forward(&x));
        for (downsample, layer) in self.downsample.iter().zip(&self.layers) {
            x = downsample.forward(&x);
            x = layer.iter().fold(x, |x, block| block.forward(&x));
        }
        self.neck.forward(&x)
    }
}

#[derive(Debug)]
struct MbConv {
    conv1: ConvBn,
    conv2: ConvBn,
    conv3: ConvBn,
}

impl MbConv {
    fn load(from: &Loader<'_>, name: &str, dim: i64) -> anyhow::Result<Self> {
        let hidden = dim * 4;
        Ok(Self {
            conv1: ConvBn::load(from, &format!("{name}.conv1"), [hidden, dim, 1, 1], 1)?,
            conv2: ConvBn::load(from, &format!("{name}.conv2"), [hidden, 1, 3, 3], 1)?,
            conv3: ConvBn::load(from, &format!("{name}.conv3"), [dim, hidden, 1, 1], 1)?,
        })
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        let y = self.conv1.forward(x).gelu("none");
        let y = self.conv2.forward(&y).gelu("none");
        (self.conv3.forward(&y) + x).gelu("none")
    }
}

#[derive(Debug)]
struct PatchMerging {
    conv1: ConvBn,
    conv2: ConvBn,
    conv3: ConvBn,
}

impl PatchMerging {
    fn load(from: &Loader<'_>, name: &str, (dim, out): (i64, i64), stride: i64) -> anyhow::Result<Self> {
        Ok(Self {
            conv1: ConvBn::load(from, &format!("{name}.conv1"), [out, dim, 1, 1], 1)?,
            conv2: ConvBn::load(from, &format!("{name}.conv2"), [out, 1, 3, 3], stride)?,
            conv3: ConvBn::load(from, &format!("{name}.conv3"), [out, out, 1, 1], 1)?,
        })
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        let x = self.conv1.forward(x).gelu("none");
        self.conv3.forward(&self.conv2.forward(&x).gelu("none"))
    }
}

struct BlockShape {
    dim: i64,
    heads: i64,
    window: i64,
    /// Positions a side.
    side: i64,
}

/// Windowed attention, a depthwise convolution, an MLP. `(1, C, H, W)` in and out.
#[derive(Debug)]
struct Block {
    attn: Attention,
    local_conv: ConvBn,
    mlp_norm: LayerNorm,
    fc1: Linear,
    fc2: Linear,
    window: i64,
    side: i64,
}

impl Block {
    fn load(from: &Loader<'_>, name: &str, shape: BlockShape) -> anyhow::Result<Self> {
        let BlockShape { dim, heads, window, side } = shape;
        Ok(Self {
            attn: Attention::load(from, &format!("{name}.attn"), dim, heads, window)?,
            local_conv: ConvBn::load(from, &format!("{name}.local_conv"), [dim, 1, 3, 3], 1)?,
            mlp_norm: from.norm(&format!("{name}.mlp.norm"), dim, NORM_EPS)?,
            fc1: from.linear(&format!("{name}.mlp.fc1"), dim, dim * 4)?,
            fc2: from.linear(&format!("{name}.mlp.fc2"), dim * 4, dim)?,
            window,
            side,
        })
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        let (w, side, c) = (self.window, self.side, x.size()[1]);
        let n = (side + w - 1) / w; // windows a side
        let pad = n * w - side;
        let x = x.permute([0, 2, 3, 1]); // (1, H, W, C)
        // Padded positions are zeros that take part in the attention.
        let windows = x.constant_pad_nd([0, 0, 0, pad, 0, pad]).view([n, w, n, w, c]);
        let windows = windows.transpose(1, 2).reshape([n * n, w * w, c]);
        let y = self.attn.forward(&windows).view([n, n, w, w, c]).transpose(1, 2).reshape([1, n * w, n * w, c]);
        let x = x + y.narrow(1, 0, side).narrow(2, 0, side);
        let x = self.local_conv.forward(&x.permute([0, 3, 1, 2])).permute([0, 2, 3, 1]);
        let y = self.fc2.forward(&self.fc1.forward(&self.mlp_norm.forward(&x)).gelu("none"));
        (x + y).permute([0, 3, 1, 2])
    }
}

#[derive(Debug)]
struct Attention {
    norm: LayerNorm,
    qkv: Linear,
    proj: Linear,
    /// `(heads, N, N)`: a bias for each head and distance.
    bias: Tensor,
    heads: i64,
}

impl Attention {
    fn load(from: &Loader<'_>, name: &str, dim: i64, heads: i64, window: i64) -> anyhow::Result<Self> {
        let biases = from.get(&format!("{name}.attention_biases"), &[heads, window * window])?;
        // The bias of two positions is that of their distance (|dy|, |dx|), stored row by row.
        let place = |a: i64, b: i64| {
            let (dy, dx) = (a / window - b / window, a % window - b % window);
            dy.abs() * window + dx.abs()
        };
        let n = window * window;
        let places: Vec<i64> = (0..n * n).map(|i| place(i / n, i % n)).collect();
        let places = Tensor::from_slice(&places).to_device(from.device);
        Ok(Self {
            norm: from.norm(&format!("{name}.norm"), dim, NORM_EPS)?,
            qkv: from.linear(&format!("{name}.qkv"), dim, dim * 3)?,
            proj: from.linear(&format!("{name}.proj"), dim, dim)?,
            bias: biases.index_select(1, &places).view([heads, n, n]),
            heads,
        })
    }

    /// `(windows, N, C)`
    fn forward(&self, x: &Tensor) -> Tensor {
        let (b, n, c) = x.size3().expect("windows of tokens");
        let qkv = self.qkv.forward(&self.norm.forward(x)).view([b, n, self.heads, -1]).transpose(1, 2);
        let parts = qkv.chunk(3, -1); // each (windows, heads, N, C / heads)
        let scale = ((c / self.heads) as f64).powf(-0.5);
        let attn = softmax(&(parts[0].matmul(&parts[1].transpose(2, 3)) * scale + &self.bias));
        self.proj.forward(&attn.matmul(&parts[2]).transpose(1, 2).reshape([b, n, c]))
    }
}
