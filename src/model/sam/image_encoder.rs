//! ViT, the image encoder of SAM (reference: `segment_anything/modeling/image_encoder.py`): 16x16 patches, attention
//! in windows of 14x14 positions but for four blocks that see all 64x64, relative positions by row and by column.

use tch::{Kind, Tensor};

use super::{GRID, Neck};
use crate::model::layer::{LayerNorm, Linear, Loader};
use crate::model::weights::Weights;

const NORM_EPS: f64 = 1e-6;
/// Side of a window, positions.
const WINDOW: i64 = 14;
/// Side of a patch, pixels.
const PATCH: i64 = 16;
const PATCH_EMBED: &str = "image_encoder.patch_embed.proj.weight";

/// One of the sizes SAM was published in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VitShape {
    pub name: &'static str,
    pub dim: i64,
    pub depth: i64,
    pub heads: i64,
    /// Every so many blocks the last sees all positions.
    pub global_every: i64,
}

const SHAPES: [VitShape; 3] = [
    VitShape { name: "ViT-B", dim: 768, depth: 12, heads: 12, global_every: 3 },
    VitShape { name: "ViT-L", dim: 1024, depth: 24, heads: 16, global_every: 6 },
    VitShape { name: "ViT-H", dim: 1280, depth: 32, heads: 16, global_every: 8 },
];

impl VitShape {
    /// That of a checkpoint, by the width of its patches; `None`: it has no ViT.
    pub fn of(weights: &Weights) -> Option<Self> {
        let dim = *weights.shape(PATCH_EMBED)?.first()?;
        SHAPES.into_iter().find(|shape| shape.dim == dim)
    }
}

/// `(1, 3, 1024, 1024)` normalised image to `(1, 256, 64, 64)` embedding.
#[derive(Debug)]
pub struct ImageEncoderViT {
    /// `(dim, 3, 16, 16)`
    patch_embed: Tensor,
    patch_bias: Tensor,
    /// `(1, 64, 64, dim)`
    pos_embed: Tensor,
    blocks: Vec<Block>,
    neck: Neck,
}

impl ImageEncoderViT {
    /// # Errors
    /// A tensor is missing from the checkpoint or has another shape.
    pub fn load(from: &Loader<'_>, shape: VitShape) -> anyhow::Result<Self> {
        let VitShape { dim, depth, global_every, .. } = shape;
        let block = |i: i64| {
            let side = if (i + 1) % global_every == 0 { GRID } else { WINDOW };
            Block::load(from, &format!("image_encoder.blocks.{i}"), shape, side)
        };
        Ok(Self {
            patch_embed: from.get(PATCH_EMBED, &[dim, 3, PATCH, PATCH])?,
            patch_bias: from.get("image_encoder.patch_embed.proj.bias", &[dim])?,
            pos_embed: from.get("image_encoder.pos_embed", &[1, GRID, GRID, dim])?,
            blocks: (0..depth).map(block).collect::<anyhow::Result<_>>()?,
            neck: Neck::load(from, dim)?,
        })
    }

    pub fn forward(&self, image: &Tensor) -> Tensor {
        let patches = image.conv2d(&self.patch_embed, Some(&self.patch_bias), [PATCH; 2], [0, 0], [1, 1], 1);
        let x = patches.permute([0, 2, 3, 1]) + &self.pos_embed; // (1, 64, 64, dim)
        let x = self.blocks.iter().fold(x, |x, block| block.forward(&x));
        self.neck.forward(&x.permute([0, 3, 1, 2]))
    }
}

/// `(1, 64, 64, dim)` in and out.
#[derive(Debug)]
struct Block {
    norm1: LayerNorm,
    attn: Attention,
    norm2: LayerNorm,
    lin1: Linear,
    lin2: Linear,
}

impl Block {
    fn load(from: &Loader<'_>, name: &str, shape: VitShape, side: i64) -> anyhow::Result<Self> {
        let dim = shape.dim;
        Ok(Self {
            norm1: from.norm(&format!("{name}.norm1"), dim, NORM_EPS)?,
            attn: Attention::load(from, &format!("{name}.attn"), shape, side)?,
            norm2: from.norm(&format!("{name}.norm2"), dim, NORM_EPS)?,
            lin1: from.linear(&format!("{name}.mlp.lin1"), dim, 4 * dim)?,
            lin2: from.linear(&format!("{name}.mlp.lin2"), 4 * dim, dim)?,
        })
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        let x = x + self.attn.forward(&self.norm1.forward(x));
        let y = self.lin1.forward(&self.norm2.forward(&x)).gelu_("none");
        x + self.lin2.forward(&y)
    }
}

/// Attention within squares of `side` x `side` positions.
#[derive(Debug)]
struct Attention {
    qkv: Linear,
    proj: Linear,
    /// What a query at row `i` sees of keys at row `j` by their distance: `(side, hd, side)` for rows, and for columns.
    rel_rows: Tensor,
    rel_columns: Tensor,
    side: i64,
    heads: i64,
}

impl Attention {
    fn load(from: &Loader<'_>, name: &str, shape: VitShape, side: i64) -> anyhow::Result<Self> {
        let VitShape { dim, heads, .. } = shape;
        let distance: Vec<i64> = (0..side * side).map(|i| i / side - i % side + side - 1).collect();
        let distance = Tensor::from_slice(&distance).to_device(from.device);
        let table = |axis: &str| -> anyhow::Result<Tensor> {
            let table = from.get(&format!("{name}.rel_pos_{axis}"), &[2 * side - 1, dim / heads])?;
            Ok(table.index_select(0, &distance).view([side, side, dim / heads]).transpose(1, 2).contiguous())
        };
        Ok(Self {
            qkv: from.linear(&format!("{name}.qkv"), dim, 3 * dim)?,
            proj: from.linear(&format!("{name}.proj"), dim, dim)?,
            rel_rows: table("h")?,
            rel_columns: table("w")?,
            side,
            heads,
        })
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        let (side, c) = (self.side, x.size()[3]);
        let n = (GRID + side - 1) / side; // squares a side
        let pad = n * side - GRID;
        // Padded positions are zeros that take part in the attention.
        let squares = x.constant_pad_nd([0, 0, 0, pad, 0, pad]).view([n, side, n, side, c]);
        let squares = squares.transpose(1, 2).reshape([n * n * side * side, c]);
        let qkv = self.qkv.forward(&squares).view([n * n, side * side, 3, self.heads, -1]).permute([2, 0, 3, 1, 4]);
        let seen = self.attend(&qkv); // (squares * side * side, C)
        let y =
            self.proj.forward(&seen).view([n, n, side, side, c]).transpose(1, 2).reshape([1, n * side, n * side, c]);
        y.narrow(1, 0, GRID).narrow(2, 0, GRID)
    }

    /// `softmax(q k / sqrt(hd) + rows + columns) v`, some queries at a time, so that the weights, of which a global block
    /// has 4096 x 4096 a head, stay near the caches.
    ///
    /// - `qkv`: `(3, squares, heads, side * side, hd)`
    /// - returns `(squares * side * side, heads * hd)`
    fn attend(&self, qkv: &Tensor) -> Tensor {
        let (side, heads) = (self.side, self.heads);
        let (n_squares, hd) = (qkv.size()[1], qkv.size()[4]);
        let positions = side * side;
        let like = (qkv.kind(), qkv.device());
        // Squares and rows of queries at a time.
        let (squares, rows) = match (side == GRID, qkv.device().is_cuda()) {
            (true, false) => (1, 1),
            (true, true) => (1, 16),
            (false, false) => (1, side),
            (false, true) => (n_squares, side),
        };
        let (batch, n) = (squares * heads, rows * side);
        let seen = Tensor::empty([n_squares, positions, heads, hd], like);
        let (mut logits, attn) =
            (Tensor::empty([batch, n, positions], like), Tensor::empty([batch, n, positions], like));
        for square in (0..n_squares).step_by(squares as usize) {
            let part = |i: i64| qkv.get(i).narrow(0, square, squares).reshape([batch, positions, hd]);
            let (q, k, v) = (part(0), part(1).transpose(1, 2), part(2));
            let scaled = &q * (hd as f64).powf(-0.5);
            let q = q.view([batch, side, side, hd]);
            // The bias takes the queries unscaled: (batch, rows, columns, side) each.
            let by_row = q.permute([1, 0, 2, 3]).reshape([side, batch * side, hd]).bmm(&self.rel_rows);
            let by_row = by_row.view([side, batch, side, side]).transpose(0, 1);
            let by_column = q.permute([2, 0, 1, 3]).reshape([side, batch * side, hd]).bmm(&self.rel_columns);
            let by_column = by_column.view([side, batch, side, side]).permute([1, 2, 0, 3]);
            for row in (0..side).step_by(rows as usize) {
                let of_rows = |x: &Tensor| x.narrow(1, row, rows).reshape([batch, n, side]);
                let bias = logits.view([batch, n, side, side]);
                let _bias = of_rows(&by_row).unsqueeze(3).add_out(&bias, &of_rows(&by_column).unsqueeze(2));
                let _logits = logits.baddbmm_(&scaled.narrow(1, row * side, n), &k);
                let _attn = logits.softmax_int_out(&attn, -1, None::<Kind>);
                let out = attn.bmm(&v).view([squares, heads, n, hd]).transpose(1, 2);
                seen.narrow(0, square, squares).narrow(1, row * side, n).copy_(&out);
            }
        }
        seen.view([n_squares * positions, heads * hd])
    }
}
