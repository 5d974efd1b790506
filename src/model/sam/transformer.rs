//! The two-way transformer (reference: `segment_anything/modeling/transformer.py`), written for many prompts of one
//! image.
//!
//! Between a few tokens and 4,096 positions it is cheaper to bring the tokens into the space of the positions than
//! to project every position: with 8 heads and 7 tokens, `q . (W k)` is `(W^T q) . k` at half the work, and
//! `sum a (W v)` is `W (sum a v)`. The results are equal but for rounding. In layer 0 all prompts on an image share
//! its positions, whose projections are computed once an image.
//!
//! A *column* is a head of a token: token by token, in each its heads.

use rayon::prelude::*;
use tch::Tensor;

use super::exchange::{Columns, exchange};
use crate::model::layer::{LayerNorm, Linear, Loader, softmax, softmax_over};
use crate::model::memory::{Fresh, floats};
use crate::model::simd::Numbers;

pub(super) const DIM: i64 = 256;
pub(super) const HEADS: i64 = 8;
/// Width of a head in attention between tokens and image.
const HEAD: i64 = 16;
const EPS: f64 = 1e-5;

/// An embedding as prompts see it, with what all prompts on it share.
#[derive(Debug)]
pub struct Source {
    /// `(1 or N, 4096, 256)`: the embedding with the dense prompt added.
    image: Tensor,
    /// Where all prompts share the image: its projections in the first layer.
    shared: Option<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// Keys and values of `token_to_image`: `(heads, 16, 4096)` and `(heads, 4096, 16)`.
    keys: Tensor,
    values: Tensor,
    /// Queries of `image_to_token`: `(4096, 128)`.
    queries: Tensor,
}

#[derive(Debug)]
pub(super) struct TwoWayTransformer {
    layers: [Layer; 2],
    final_attn: CrossAttention,
    norm_final: LayerNorm,
    /// Encoding of the positions, `(4096, 256)`.
    position: Tensor,
    /// Of our own arithmetic; `None`: libtorch's.
    numbers: Option<Numbers>,
}

impl TwoWayTransformer {
    pub(super) fn load(from: &Loader<'_>, position: Tensor, numbers: Option<Numbers>) -> anyhow::Result<Self> {
        let name = "mask_decoder.transformer";
        let layer = |i| Layer::load(from, &format!("{name}.layers.{i}"));
        Ok(Self {
            layers: [layer(0)?, layer(1)?],
            final_attn: CrossAttention::load(from, &format!("{name}.final_attn_token_to_image"))?,
            norm_final: from.norm(&format!("{name}.norm_final_attn"), DIM, EPS)?,
            position,
            numbers,
        })
    }

    /// Once for all prompts on an image, or for prompts with an image each.
    ///
    /// - `image`: `(1 or N, 4096, 256)` embedding with the dense prompt added
    pub(super) fn source(&self, image: Tensor) -> Source {
        let [first, _] = &self.layers;
        let shared = (image.size()[0] == 1).then(|| {
            let image = image.squeeze_dim(0);
            let at = &image + &self.position;
            let heads = |x: Tensor| x.view([-1, HEADS, HEAD]); // (4096, heads, 16)
            let keys = heads(first.token_to_image.k_proj.forward(&at)).permute([1, 2, 0]).contiguous();
            let values = heads(first.token_to_image.v_proj.forward(&image)).transpose(0, 1).contiguous();
            Shared { keys, values, queries: first.image_to_token.q_proj.forward(&at) }
        });
        Source { image, shared }
    }

    /// - `point`: `(N, T, 256)`: the tokens of N prompts
    /// - `wanted`: `(W)` int64: which tokens are read
    /// - `gaps`: `(N, T)`: -inf where there is no token, else 0; nothing attends to it
    /// - returns these, `(N, W, 256)`, and the image as it is after each prompt's: `(N, 4096, 256)`
    pub(super) fn forward(
        &self,
        source: &Source,
        point: &Tensor,
        wanted: &Tensor,
        gaps: Option<&Tensor>,
    ) -> (Tensor, Tensor) {
        let [first, second] = &self.layers;
        let Source { image, shared } = source;
        // Layer 0 attends among tokens without position and without residual.
        let tokens = first.norm1.forward(&first.self_attn.forward(point, point, gaps));
        let at = &tokens + point;
        let seen = match shared {
            Some(shared) => first.token_to_image.see_shared(&at, shared),
            None => first.token_to_image.see(&(image + &self.position), image, &at),
        };
        let tokens = first.mlp(&(tokens + seen));
        let (to_tokens, queries) = match shared {
            Some(Shared { queries, .. }) => (first.image_to_token.apart(&(&tokens + point), &tokens), Some(queries)),
            None => (first.image_to_token.columns(&(&tokens + point), &tokens), None),
        };

        // What layer 1 asks of the image does not depend on the image.
        let tokens = second.norm1.forward(&(&tokens + second.self_attn.forward(&(&tokens + point), &tokens, gaps)));
        let look = second.token_to_image.look(&(&tokens + point));
        let n = point.size()[0];
        let image = match self.numbers {
            Some(_) => Image::Ours(Fresh::copies(image, n)),
            None => Image::Libtorch(image.expand([n, -1, -1], false)),
        };
        let (image, seen) = self.exchange(image, queries, &to_tokens.without(gaps), &first.norm4, &look);
        let tokens = second.mlp(&(tokens + second.token_to_image.seen(&seen)));

        let at = &tokens + point;
        let to_tokens = second.image_to_token.columns(&at, &tokens);
        let (tokens, at) = (tokens.index_select(1, wanted), at.index_select(1, wanted));
        let look = self.final_attn.look(&at);
        let (image, seen) = self.exchange(image, None, &to_tokens.without(gaps), &second.norm4, &look);
        let image = match image {
            Image::Ours(image) => image.into_tensor(),
            Image::Libtorch(image) => image,
        };
        (self.norm_final.forward(&(tokens + self.final_attn.seen(&seen))), image)
    }

    /// The image looks at the tokens, then what comes next looks at the image.
    ///
    /// - `image`: `(N, 4096, 256)`
    /// - `queries`: `(4096, 128)` of all images; `None`: the image with the positions added
    /// - `look`: `(N, columns, 256)`
    /// - returns the image and what was seen, `(N, columns, 256)`
    fn exchange(
        &self,
        image: Image,
        queries: Option<&Tensor>,
        tokens: &TokenColumns,
        norm: &LayerNorm,
        look: &Tensor,
    ) -> (Image, Tensor) {
        let TokenColumns { keys, shift, values } = tokens;
        let (mut image, numbers) = match (image, self.numbers) {
            (Image::Ours(image), numbers) => (image, numbers.unwrap_or(Numbers::F32)),
            (Image::Libtorch(image), _) => {
                let at = queries.map_or_else(|| &image + &self.position, Tensor::shallow_clone);
                let logits = keys.matmul(&at.transpose(-1, -2)) + shift.unsqueeze(-1); // (N, columns, 4096)
                drop(at);
                let attn = softmax_over(&logits.unflatten(1, [-1, HEADS]), 1).flatten(1, 2);
                let image = norm.forward(&image.baddbmm(&attn.transpose(1, 2), values, 1, 1));
                let seen = softmax(&look.matmul(&(&image + &self.position).transpose(1, 2))).matmul(&image);
                return (Image::Libtorch(image), seen);
            }
        };
        let norm = norm.host();
        let (queries, encoding) = (queries.map(floats), floats(&self.position));
        let (n, shape) = (keys.size()[0] as usize, look.size());
        let [keys, shift, values, look] = [keys, shift, values, look].map(Tensor::contiguous);
        let [keys, shift, values, look] = [&keys, &shift, &values, &look].map(floats);
        let of = |(i, image): (usize, &mut [f32])| {
            let part = |all: &'_ [f32]| all.len() / n * i..all.len() / n * (i + 1);
            let columns = Columns {
                keys: &keys[part(keys)],
                shift: &shift[part(shift)],
                values: &values[part(values)],
                look: &look[part(look)],
            };
            exchange(image, queries, encoding, &columns, (&norm, numbers))
        };
        let images = image.floats();
        let seen: Vec<Vec<f32>> = images.par_chunks_exact_mut(images.len() / n).enumerate().map(of).collect();
        (Image::Ours(image), Tensor::from_slice(&seen.concat()).view(&shape[..]))
    }
}

/// `(N, 4096, 256)`: as it is after each prompt's tokens.
enum Image {
    /// Where our own arithmetic writes.
    Ours(Fresh),
    Libtorch(Tensor),
}

/// What the tokens of N prompts give to an image that looks at them.
struct TokenColumns {
    /// `(N, columns, width of the image's queries)`
    keys: Tensor,
    /// Added to a column's logits, `(N, columns)`.
    shift: Tensor,
    /// `(N, columns, 256)`
    values: Tensor,
}

impl TokenColumns {
    fn without(self, gaps: Option<&Tensor>) -> Self {
        let Some(gaps) = gaps else { return self };
        let shift = (self.shift.unflatten(1, [-1, HEADS]) + gaps.unsqueeze(-1)).flatten(1, 2);
        Self { shift, ..self }
    }
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

    /// From the tokens that have seen the image to those that it looks at.
    fn mlp(&self, tokens: &Tensor) -> Tensor {
        let tokens = self.norm2.forward(tokens);
        self.norm3.forward(&(&tokens + self.lin2.forward(&self.lin1.forward(&tokens).relu())))
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
    fn forward(&self, at: &Tensor, values: &Tensor, gaps: Option<&Tensor>) -> Tensor {
        let heads = |x: Tensor| x.unflatten(-1, [HEADS, DIM / HEADS]).transpose(1, 2);
        let (q, k, v) =
            (heads(self.q_proj.forward(at)), heads(self.k_proj.forward(at)), heads(self.v_proj.forward(values)));
        let logits = q.matmul(&k.transpose(2, 3)) * ((DIM / HEADS) as f64).powf(-0.5); // (N, heads, T, T)
        let attn = softmax(&gaps.map_or(logits.shallow_clone(), |gaps| logits + gaps.unsqueeze(1).unsqueeze(1)));
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

    /// Queries of tokens `(N, T, 256)` in the space of the image's positions: `(N, columns, 256)`. The bias of the keys
    /// shifts all positions alike, which a softmax over them does not see.
    fn look(&self, tokens: &Tensor) -> Tensor {
        let queries = heads(&(self.q_proj.forward(tokens) * (HEAD as f64).powf(-0.5)));
        columns(&queries.matmul(&self.k_proj.weight.view([HEADS, HEAD, DIM])))
    }

    /// What tokens make of what their columns saw of an image, `(N, columns, 256)`: `(N, T, 256)`.
    fn seen(&self, seen: &Tensor) -> Tensor {
        let seen = seen.unflatten(1, [-1, HEADS]).transpose(1, 2); // (N, heads, T, 256)
        let value = self.v_proj.weight.view([HEADS, HEAD, DIM]).transpose(1, 2);
        let seen = seen.matmul(&value) + self.v_proj.bias.view([HEADS, 1, HEAD]);
        self.out_proj.forward(&seen.transpose(1, 2).flatten(2, 3))
    }

    /// Tokens look at images, `(N, 4096, 256)`, and `at` with their positions added: `(N, T, 256)`.
    fn see(&self, at: &Tensor, image: &Tensor, tokens: &Tensor) -> Tensor {
        self.seen(&softmax(&self.look(tokens).matmul(&at.transpose(1, 2))).matmul(image))
    }

    /// The same where all prompts share the image: one product a head serves all of them.
    fn see_shared(&self, tokens: &Tensor, shared: &Shared) -> Tensor {
        let (n, t, _) = tokens.size3().expect("a batch of tokens");
        let queries = heads(&(self.q_proj.forward(tokens) * (HEAD as f64).powf(-0.5)));
        let queries = queries.transpose(0, 1).reshape([HEADS, n * t, HEAD]);
        let seen = softmax(&queries.bmm(&shared.keys)).bmm(&shared.values).view([HEADS, n, t, HEAD]);
        self.out_proj.forward(&seen.permute([1, 2, 0, 3]).reshape([n, t, HEADS * HEAD]))
    }

    /// What an image that looks at tokens `(N, T, 256)` finds; `at`: with what they are about added.
    fn columns(&self, at: &Tensor, tokens: &Tensor) -> TokenColumns {
        let keys = self.keys(at);
        let shift = keys.matmul(&self.q_proj.bias.view([HEADS, HEAD, 1])); // (N, heads, T, 1)
        let keys = columns(&keys.matmul(&self.q_proj.weight.view([HEADS, HEAD, DIM])));
        TokenColumns { keys, shift: columns(&shift).squeeze_dim(2), values: self.values(tokens) }
    }

    /// The same for an image whose queries are there, their heads side by side: a key is zero but in its own head.
    fn apart(&self, at: &Tensor, tokens: &Tensor) -> TokenColumns {
        let own = Tensor::eye(HEADS, (at.kind(), at.device())).view([HEADS, 1, HEADS, 1]);
        let keys = columns(&(self.keys(at).unsqueeze(3) * own).flatten(3, 4));
        let shift = keys.zeros_like().select(2, 0);
        TokenColumns { keys, shift, values: self.values(tokens) }
    }

    /// `(N, heads, T, 16)`
    fn keys(&self, tokens: &Tensor) -> Tensor {
        heads(&(self.k_proj.forward(tokens) * (HEAD as f64).powf(-0.5)))
    }

    /// `(N, columns, 256)`. The weights of a head sum to one, so each brings its share of the bias.
    fn values(&self, tokens: &Tensor) -> Tensor {
        let out = self.out_proj.weight.view([DIM, HEADS, HEAD]).permute([1, 2, 0]);
        columns(&(heads(&self.v_proj.forward(tokens)).matmul(&out) + &self.out_proj.bias / HEADS as f64))
    }
}

/// `(N, T, 128)` to `(N, heads, T, 16)`
fn heads(x: &Tensor) -> Tensor {
    x.unflatten(-1, [HEADS, HEAD]).transpose(1, 2)
}

/// `(N, heads, T, d)` to `(N, columns, d)`
fn columns(x: &Tensor) -> Tensor {
    x.transpose(1, 2).flatten(1, 2)
}
