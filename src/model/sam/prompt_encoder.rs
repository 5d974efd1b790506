//! Points to tokens (reference: `segment_anything/modeling/prompt_encoder.py`).

use std::f64::consts::PI;

use tch::{Kind, Tensor};

use crate::model::layer::Loader;

/// Side of the frame points live in.
const FRAME: f64 = 1024.0;
/// Positions a side of an embedding.
const GRID: i64 = 64;

#[derive(Debug)]
pub struct PromptEncoder {
    /// `(2, 128)`
    gaussian: Tensor,
    /// Rows: not a point, negative, positive. `(3, 256)`
    labels: Tensor,
    /// `(256)`
    pub(super) no_mask_embed: Tensor,
}

impl PromptEncoder {
    pub fn load(from: &Loader<'_>) -> anyhow::Result<Self> {
        // Positions need f32: they are angles.
        let get = |name: &str, shape: &[i64]| -> anyhow::Result<Tensor> {
            Ok(from.weights.get(&format!("prompt_encoder.{name}"), shape)?.to_device(from.device))
        };
        let label = |name: &str| get(name, &[1, 256]);
        let labels = [
            label("not_a_point_embed.weight")?,
            label("point_embeddings.0.weight")?,
            label("point_embeddings.1.weight")?,
        ];
        Ok(Self {
            gaussian: get("pe_layer.positional_encoding_gaussian_matrix", &[2, 128])?,
            labels: Tensor::cat(&labels, 0),
            no_mask_embed: label("no_mask_embed.weight")?.view([256]),
        })
    }

    /// Tokens of point prompts, the pad point of a prompt without box appended.
    ///
    /// - `points`: `(N, P, 2)` x, y in pixels of the 1024 frame
    /// - `labels`: `(N, P)` int64: 1 object, 0 background, -1 not a point
    /// - returns `(N, P + 1, 256)` f32
    pub fn points(&self, points: &Tensor, labels: &Tensor) -> Tensor {
        let points = (points.to_kind(Kind::Float) + 0.5).constant_pad_nd([0, 0, 0, 1]);
        let labels = labels.to_kind(Kind::Int64).f_constant_pad_nd_with_value(-1);
        let position = self.encode(&(points / FRAME));
        let is_point = labels.ge(0).unsqueeze(-1).to_kind(Kind::Float);
        position * is_point + self.labels.embedding_rows(&(labels + 1))
    }

    /// The encoding of every position of an embedding: `(4096, 256)` f32.
    pub fn dense(&self) -> Tensor {
        let centre = (Tensor::arange(GRID, (Kind::Float, self.gaussian.device())) + 0.5) / GRID as f64;
        let x = centre.view([1, GRID]).expand([GRID, GRID], false);
        let y = centre.view([GRID, 1]).expand([GRID, GRID], false);
        self.encode(&Tensor::stack(&[x, y], -1)).view([GRID * GRID, 256])
    }

    /// `(.., 2)` in 0..1 to `(.., 256)`: sines and cosines at random frequencies.
    fn encode(&self, points: &Tensor) -> Tensor {
        let angles = (points * 2.0 - 1.0).matmul(&self.gaussian) * (2.0 * PI);
        Tensor::cat(&[angles.sin(), angles.cos()], -1)
    }
}

/// Two short spellings for tensors of labels.
trait Labels {
    fn f_constant_pad_nd_with_value(&self, value: i64) -> Tensor;
    fn embedding_rows(&self, rows: &Tensor) -> Tensor;
}

impl Labels for Tensor {
    /// One more column with a value.
    fn f_constant_pad_nd_with_value(&self, value: i64) -> Tensor {
        let column = Tensor::full([self.size()[0], 1], value, (Kind::Int64, self.device()));
        Tensor::cat(&[self, &column], 1)
    }

    fn embedding_rows(&self, rows: &Tensor) -> Tensor {
        Tensor::embedding(self, rows, -1, false, false)
    }
}
