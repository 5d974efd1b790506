//! The mask decoder (reference: `segment_anything/modeling/{mask_decoder,transformer}.py`), written for many
//! prompts of one image.
//!
//! Between a few tokens and 4,096 positions it is cheaper to bring the tokens into the space of the positions than
//! to project every position: with 8 heads and 7 tokens, `q . (W k)` is `(W^T q) . k` at half the work, and
//! `sum a (W v)` is `W (sum a v)`. The results are equal but for rounding. In layer 0 all prompts on an image share
//! its positions, whose projections are computed once an image.

use tch::{Kind, Tensor};

use super::GRID;
use crate::model::layer::{LayerNorm, Linear, Loader, softmax};

const DIM: i64 = 256;
const HEADS: i64 = 8;
/// Width of a head in attention between tokens and image.
const HEAD: i64 = 16;
const EPS: f64 = 1e-5;

/// Which of its masks the decoder gives for a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MaskChoice {
    /// Three masks, from part to whole: for prompts that may mean either.
    Multimask,
    /// The one mask for prompts that leave no doubt, such as several points.
    Single,
}

impl MaskChoice {
    /// Places among the decoder's four masks: first and count.
    fn places(self) -> (i64, i64) {
        match self {
            Self::Multimask => (1, 3),
            Self::Single => (0, 1),
        }
    }
}

/// What the transformer makes of prompts; masks are drawn from it on demand.
#[derive(Debug)]
pub struct Decoded {
    choice: MaskChoice,
    /// `(N, M, 256)`: one token a mask.
    mask_tokens: Tensor,
    /// `(N, 4096, 256)`
    image: Tensor,
    /// Predicted IoU of the masks: `(N, M)` f32.
    pub iou: Tensor,
}

/// An embedding as prompts see it, with what all prompts on it share.
#[derive(Debug)]
pub struct Source {
    /// `(1 or N, 4096, 256)`: the embedding with the dense prompt added.
    image: Tensor,
    /// With the encoding of positions added.
    image_at: Tensor,
    /// Where all prompts share the image: its projections in the first layer.
    shared: Option<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// Keys and values of `token_to_image`: `(heads, 16, 4096)` and `(heads, 4096, 16)`.
    keys: Tensor,
    values: Tensor,
    /// Queries of `image_to_token`: `(heads, 16, 4096)`.
    queries: Tensor,
}

impl Decoded {
    /// Only some prompts. `rows`: int64.
    pub fn select(&self, rows: &Tensor) -> Self {
        let select = |x: &Tensor| x.index_select(0, rows);
        let (mask_tokens, image, iou) = (select(&self.mask_tokens), select(&self.image), select(&self.iou));
        Self { choice: self.choice, mask_tokens, image, iou }
    }
}

#[derive(Debug)]
pub struct MaskDecoder {
    iou_token: Tensor,
    mask_tokens: Tensor,
    layers: [Layer; 2],
    final_attn: CrossAttention,
    norm_final: LayerNorm,
    upscale1: Linear,
    upscale_norm: LayerNorm,
    upscale2: Linear,
    hyper: Vec<Mlp>,
    iou_head: Mlp,
}

impl MaskDecoder {
    pub fn load(from: &Loader<'_>) -> anyhow::Result<Self> {
        let name = "mask_decoder";
        let transformer = format!("{name}.transformer");
        let layer = |i| Layer::load(from, &format!("{transformer}.layers.{i}"));
        let hyper = |i| Mlp::load(from, &format!("{name}.output_hypernetworks_mlps.{i}"), 32);
        Ok(Self {
            iou_token: from.get(&format!("{name}.iou_token.weight"), &[1, DIM])?,
            mask_tokens: from.get(&format!("{name}.mask_tokens.weight"), &[4, DIM])?,
            layers: [layer(0)?, layer(1)?],
            final_attn: CrossAttention::load(from, &format!("{transformer}.final_attn_token_to_image"))?,
            norm_final: from.norm(&format!("{transformer}.norm_final_attn"), DIM, EPS)?,
            upscale1: upscaling(from, &format!("{name}.output_upscaling.0"), DIM, 64)?,
            upscale_norm: from.norm(&format!("{name}.output_upscaling.1"), 64, 1e-6)?,
            upscale2: upscaling(from, &format!("{name}.output_upscaling.3"), 64, 32)?,
            hyper: (0..4).map(hyper).collect::<anyhow::Result<_>>()?,
            iou_head: Mlp::load(from, &format!("{name}.iou_prediction_head"), 4)?,
        })
    }

    /// Once for all prompts on an image, or for prompts with an image each.
    ///
    /// - `image`: `(1 or N, 4096, 256)` embedding with the dense prompt added
    /// - `position`: `(4096, 256)`
    pub fn source(&self, image: Tensor, position: &Tensor) -> Source {
        let image_at = &image + position;
        let [first, _] = &self.layers;
        let shared = (image.size()[0] == 1).then(|| {
            let heads = |x: Tensor| x.view([-1, HEADS, HEAD]); // (4096, heads, 16)
            let keys = heads(first.token_to_image.k_proj.forward(&image_at.squeeze_dim(0))).permute([1, 2, 0]);
            let values = heads(first.token_to_image.v_proj.forward(&image.squeeze_dim(0))).transpose(0, 1);
            let queries = heads(first.image_to_token.q_proj.forward(&image_at.squeeze_dim(0))).permute([1, 2, 0]);
            Shared { keys: keys.contiguous(), values: values.contiguous(), queries: queries.contiguous() }
        });
        Source { image, image_at, shared }
    }

    /// - `position`: `(4096, 256)`
    /// - `prompts`: `(N, P, 256)` tokens
    pub fn forward(&self, source: &Source, position: &Tensor, prompts: &Tensor, choice: MaskChoice) -> Decoded {
        let n = prompts.size()[0];
        let own = Tensor::cat(&[&self.iou_token, &self.mask_tokens], 0).unsqueeze(0).expand([n, -1, -1], false);
        let point = Tensor::cat(&[&own, prompts], 1); // (N, 5 + P, 256)
        let [first, second] = &self.layers;
        let (tokens, image) = first.forward(&point, &point, source, true);
        let image_at = &image + position;
        let (tokens, image) = second.forward(&tokens, &point, &Source { image, image_at, shared: None }, false);
        let attn = self.final_attn.to_image(&(&tokens + &point), &(&image + position), &image, None);
        let tokens = self.norm_final.forward(&(tokens + attn));
        let (at, masks) = choice.places();
        let iou = self.iou_head.forward(&tokens.select(1, 0)).narrow(1, at, masks).to_kind(Kind::Float);
        Decoded { choice, mask_tokens: tokens.narrow(1, 1 + at, masks), image, iou }
    }

    /// The masks: logits of the first `rows` and `columns` of positions, `(N, M, 4 rows, 4 columns)` f32.
    pub fn masks(&self, decoded: &Decoded, (rows, columns): (i64, i64)) -> Tensor {
        let n = decoded.image.size()[0];
        let image = decoded.image.view([n, GRID, GRID, DIM]).narrow(1, 0, rows).narrow(2, 0, columns);
        // A transposed 2x2 convolution at stride 2 is a linear map to four pixels, here kept last until the end.
        let x = self.upscale1.forward(&image.reshape([n, -1, DIM])).view([n, -1, 4, 64]);
        let x = self.upscale_norm.forward(&x).gelu("none");
        let x = self.upscale2.forward(&x).view([n, -1, 32]).gelu("none"); // (N, positions * 4 * 4, 32)
        let (at, n_masks) = decoded.choice.places();
        let weight = |i: i64| self.hyper[(at + i) as usize].forward(&decoded.mask_tokens.select(1, i));
        let hyper: Vec<Tensor> = (0..n_masks).map(weight).collect();
        let masks = Tensor::stack(&hyper, 1).matmul(&x.transpose(1, 2)); // (N, M, positions * 16)
        // (y, x, then y and x within 2x2, twice) to rows and columns.
        let masks = masks.view(&[n, n_masks, rows, columns, 2, 2, 2, 2][..]).permute([0, 1, 2, 4, 6, 3, 5, 7]);
        masks.reshape([n, n_masks, 4 * rows, 4 * columns]).to_kind(Kind::Float)
    }
}

/// `ConvTranspose2d(from, to, 2, stride 2)` as a linear map to `(2, 2, to)`.
fn upscaling(loader: &Loader<'_>, name: &str, from: i64, to: i64) -> anyhow::Result<Linear> {
    let weight = loader.get(&format!("{name}.weight"), &[from, to, 2, 2])?;
    let bias = loader.get(&format!("{name}.bias"), &[to])?;
    let weight = weight.permute([2, 3, 1, 0]).reshape([4 * to, from]);
    Ok(Linear { weight, bias: bias.repeat([4]) })
}

#[derive(Debug)]
struct Layer {
    self_attn: SelfAttention,
    norm1: LayerNorm,
    token_to_image: CrossAttention,
    norm2: LayerNorm,
    lin1: Linear,
    lin2: Linear,
    norm3: LayerNorm,
    image_to_token: CrossAttention,
    norm4: LayerNorm,
}

impl Layer {
    fn load(from: &Loader<'_>, name: &str) -> anyhow::Result<Self> {
        let norm = |i| from.norm(&format!("{name}.norm{i}"), DIM, EPS);
        Ok(Self {
            self_attn: SelfAttention::load(from, &format!("{name}.self_attn"))?,
            norm1: norm(1)?,
            token_to_image: CrossAttention::load(from, &format!("{name}.cross_attn_token_to_image"))?,
            norm2: norm(2)?,
            lin1: from.linear(&format!("{name}.mlp.lin1"), DIM, 2048)?,
            lin2: from.linear(&format!("{name}.mlp.lin2"), 2048, DIM)?,
            norm3: norm(3)?,
            image_to_token: CrossAttention::load(from, &format!("{name}.cross_attn_image_to_token"))?,
            norm4: norm(4)?,
        })
    }

    /// Layer 0 attends among tokens without position and without residual.
    fn forward(&self, tokens: &Tensor, point: &Tensor, source: &Source, is_first: bool) -> (Tensor, Tensor) {
        let Source { image, image_at, shared } = source;
        let tokens = match is_first {
            true => self.self_attn.forward(tokens, tokens),
            false => tokens + self.self_attn.forward(&(tokens + point), tokens),
        };
        let tokens = self.norm1.forward(&tokens);
        let shared = shared.as_ref();
        let tokens = &tokens + self.token_to_image.to_image(&(&tokens + point), image_at, image, shared);
        let tokens = self.norm2.forward(&tokens);
        let tokens = &tokens + self.lin2.forward(&self.lin1.forward(&tokens).relu());
        let tokens = self.norm3.forward(&tokens);
        let image = self.image_to_token.to_tokens(image, image_at, &(&tokens + point), &tokens, shared);
        (tokens, self.norm4.forward(&image))
    }
}

#[derive(Debug)]
struct SelfAttention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    out_proj: Linear,
}

impl SelfAttention {
    fn load(from: &Loader<'_>, name: &str) -> anyhow::Result<Self> {
        let linear = |part: &str| from.linear(&format!("{name}.{part}"), DIM, DIM);
        Ok(Self {
            q_proj: linear("q_proj")?,
            k_proj: linear("k_proj")?,
            v_proj: linear("v_proj")?,
            out_proj: linear("out_proj")?,
        })
    }

    /// `(N, T, 256)` each.
    fn forward(&self, at: &Tensor, values: &Tensor) -> Tensor {
        let heads = |x: Tensor| x.unflatten(-1, [HEADS, DIM / HEADS]).transpose(1, 2);
        let (q, k, v) =
            (heads(self.q_proj.forward(at)), heads(self.k_proj.forward(at)), heads(self.v_proj.forward(values)));
        let attn = softmax(&(q.matmul(&k.transpose(2, 3)) * ((DIM / HEADS) as f64).powf(-0.5)));
        self.out_proj.forward(&attn.matmul(&v).transpose(1, 2).flatten(2, 3))
    }
}

/// Attention of inner width 128 between tokens and image, in either direction.
#[derive(Debug)]
struct CrossAttention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    out_proj: Linear,
}

impl CrossAttention {
    fn load(from: &Loader<'_>, name: &str) -> anyhow::Result<Self> {
        let inner = HEADS * HEAD;
        let into = |part: &str| from.linear(&format!("{name}.{part}"), DIM, inner);
        Ok(Self {
            q_proj: into("q_proj")?,
            k_proj: into("k_proj")?,
            v_proj: into("v_proj")?,
            out_proj: from.linear(&format!("{name}.out_proj"), inner, DIM)?,
        })
    }

    /// Tokens look at the image. `tokens` `(N, T, 256)`, `at` and `image` `(1 or N, 4096, 256)`.
    fn to_image(&self, tokens: &Tensor, at: &Tensor, image: &Tensor, shared: Option<&Shared>) -> Tensor {
        let (n, t, _) = tokens.size3().unwrap_or_default();
        let q = self.q_proj.forward(tokens).view([n, t, HEADS, HEAD]).transpose(1, 2) * (HEAD as f64).powf(-0.5);
        let looked = if let Some(Shared { keys, values, .. }) = shared {
            // One product a head serves all prompts.
            let q = q.transpose(0, 1).reshape([HEADS, n * t, HEAD]);
            softmax(&q.bmm(keys)).bmm(values).view([HEADS, n, t, HEAD]).permute([1, 2, 0, 3])
        } else {
            // The bias of the keys shifts all positions alike, which the softmax does not see.
            let key = self.k_proj.weight.view([HEADS, HEAD, DIM]);
            let q = q.matmul(&key).view([n, HEADS * t, DIM]);
            let attn = softmax(&q.matmul(&at.transpose(1, 2)));
            let seen = attn.matmul(image).view([n, HEADS, t, DIM]);
            let value = self.v_proj.weight.view([HEADS, HEAD, DIM]).transpose(1, 2);
            seen.matmul(&value).transpose(1, 2) + self.v_proj.bias.view([HEADS, HEAD])
        };
        self.out_proj.forward(&looked.reshape([n, t, HEADS * HEAD]))
    }

    /// `image` with what it sees in the tokens added: `(N, 4096, 256)`.
    fn to_tokens(
        &self,
        image: &Tensor,
        at: &Tensor,
        tokens_at: &Tensor,
        tokens: &Tensor,
        shared: Option<&Shared>,
    ) -> Tensor {
        let (n, t, _) = tokens.size3().unwrap_or_default();
        let heads = |x: Tensor| x.view([n, t, HEADS, HEAD]).transpose(1, 2);
        let k = heads(self.k_proj.forward(tokens_at)) * (HEAD as f64).powf(-0.5); // (N, heads, T, 16)
        // Positions come last: a softmax over a handful of tokens is fast only beside a long axis.
        let logits = if let Some(Shared { queries, .. }) = shared {
            let k = k.transpose(0, 1).reshape([HEADS, n * t, HEAD]);
            k.bmm(queries).view([HEADS, n, t, -1]).transpose(0, 1)
        } else {
            let query = self.q_proj.weight.view([HEADS, HEAD, DIM]);
            let shift = k.matmul(&self.q_proj.bias.view([HEADS, HEAD, 1])).view([n, HEADS * t, 1]);
            let k = k.matmul(&query).view([n, HEADS * t, DIM]);
            shift.baddbmm(&k, &at.transpose(1, 2), 1, 1).unflatten(1, [HEADS, t])
        }; // (N, heads, T, 4096)
        let attn = logits.softmax(2, Kind::Float).to_kind(image.kind()).reshape([n, HEADS * t, -1]).transpose(1, 2);
        let out = self.out_proj.weight.view([DIM, HEADS, HEAD]).permute([1, 2, 0]);
        let v = heads(self.v_proj.forward(tokens)).matmul(&out).view([n, HEADS * t, DIM]);
        // The weights of a head sum to one, so each head brings its share of the bias.
        let v = v + &self.out_proj.bias / HEADS as f64;
        image.expand([n, -1, -1], false).baddbmm(&attn, &v, 1, 1)
    }
}

/// Three linear maps with ReLU between.
#[derive(Debug)]
struct Mlp {
    layers: [Linear; 3],
}

impl Mlp {
    fn load(from: &Loader<'_>, name: &str, out: i64) -> anyhow::Result<Self> {
        let layer = |i: i64, out| from.linear(&format!("{name}.layers.{i}"), DIM, out);
        Ok(Self { layers: [layer(0, DIM)?, layer(1, DIM)?, layer(2, out)?] })
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        let [a, b, c] = &self.layers;
        c.forward(&b.forward(&a.forward(x).relu()).relu())
    }
}
