//! Prompts to tokens and a dense embedding (reference: `segment_anything/modeling/prompt_encoder.py`).

use std::f64::consts::PI;

use tch::{Kind, Tensor};

use super::{GRID, IMAGE_SIZE};
use crate::model::Compute;
use crate::model::layer::{LayerNorm, Loader};
use crate::model::memory::upload;

#[derive(Debug)]
pub struct PromptEncoder {
    /// `(2, 128)`
    gaussian: Tensor,
    /// Rows: not a point, negative, positive, first and second corner of a box. `(5, 256)`
    labels: Tensor,
    /// `(256)`
    no_mask_embed: Tensor,
    mask_downscaling: MaskDownscaling,
}

impl PromptEncoder {
    pub fn load(from: &Loader<'_>) -> anyhow::Result<Self> {
        // Positions need f32: they are angles.
        let get = |name: &str, shape: &[i64]| -> anyhow::Result<Tensor> {
            Ok(from.weights.get(&format!("prompt_encoder.{name}"), shape)?.to_device(from.device))
        };
        let label = |name: String| get(&name, &[1, 256]);
        let mut labels = vec![label("not_a_point_embed.weight".to_owned())?];
        for i in 0..4 {
            labels.push(label(format!("point_embeddings.{i}.weight"))?);
        }
        Ok(Self {
            gaussian: get("pe_layer.positional_encoding_gaussian_matrix", &[2, 128])?,
            labels: Tensor::cat(&labels, 0),
            no_mask_embed: label("no_mask_embed.weight".to_owned())?.view([256]),
            mask_downscaling: MaskDownscaling::load(&Loader { compute: Compute::F32, ..*from })?,
        })
    }

    /// Tokens of prompts: points, then the two corners of a box. Points without a box get a pad point.
    ///
    /// - `points`: `(N, P, 2)` x, y in pixels of the 1024 frame
    /// - `labels`: `(N, P)` int64: 1 object, 0 background, -1 not a point
    /// - `boxes`: `(N, 4)` x0, y0, x1, y1
    /// - returns `(N, T, 256)` f32, `T` = 0 without points and boxes
    pub fn sparse(&self, prompts: &Prompts) -> Tensor {
        let device = self.gaussian.device();
        let mut places = Vec::new();
        let mut labels = Vec::new();
        if let Some((points, kinds)) = &prompts.points {
            places.push(upload(points, device).to_kind(Kind::Float));
            labels.push(upload(kinds, device).to_kind(Kind::Int64));
            if prompts.boxes.is_none() {
                let n = points.size()[0];
                places.push(Tensor::zeros([n, 1, 2], (Kind::Float, device)));
                labels.push(Tensor::full([n, 1], -1, (Kind::Int64, device)));
            }
        }
        if let Some(boxes) = &prompts.boxes {
            places.push(upload(boxes, device).to_kind(Kind::Float).view([-1, 2, 2]));
            let corners = Tensor::arange(2, (Kind::Int64, device)) + 2;
            labels.push(corners.expand([boxes.size()[0], 2], false));
        }
        if places.is_empty() {
            return Tensor::zeros([prompts.len(), 0, 256], (Kind::Float, device));
        }
        let (places, labels) = (Tensor::cat(&places, 1) + 0.5, Tensor::cat(&labels, 1));
        let is_point = labels.ge(0).unsqueeze(-1).to_kind(Kind::Float);
        let label = Tensor::embedding(&self.labels, &(labels + 1), -1, false, false);
        self.encode(&(places / IMAGE_SIZE as f64)) * is_point + label
    }

    /// Which of [`Self::sparse`]'s tokens are none, `(N, T)` bool, where `prompts` has gaps.
    pub fn is_gap(&self, prompts: &Prompts) -> Option<Tensor> {
        let more = if prompts.boxes.is_some() { 2 } else { 1 };
        let is_gap = prompts.is_gap.as_ref()?.constant_pad_nd([0, more]);
        Some(upload(&is_gap, self.gaussian.device()))
    }

    /// What is added to every position of an embedding: `(1, 1, 256)`, or with masks `(N, 4096, 256)`. f32.
    ///
    /// - `masks`: `(N, 1, 256, 256)` low-resolution logits
    pub fn dense(&self, masks: Option<&Tensor>) -> Tensor {
        match masks {
            Some(masks) => {
                let masks = upload(masks, self.gaussian.device()).to_kind(Kind::Float);
                self.mask_downscaling.forward(&masks).flatten(2, 3).transpose(1, 2)
            }
            None => self.no_mask_embed.view([1, 1, 256]),
        }
    }

    /// The encoding of every position of an embedding: `(4096, 256)` f32.
    pub fn positions(&self) -> Tensor {
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

/// What to segment, for N prompts at once; any of the parts, together.
#[derive(Debug, Default)]
pub struct Prompts {
    /// `(N, P, 2)` x, y in pixels of the 1024 frame, and `(N, P)` labels: 1 object, 0 background, -1 not a point
    /// (padding).
    pub points: Option<(Tensor, Tensor)>,
    /// `(N, P)` bool: points that only fill up, which to the decoder are none. (The padding of SAM's own code it attends
    /// to: four of these turn a mask into another one.)
    pub is_gap: Option<Tensor>,
    /// `(N, 4)` x0, y0, x1, y1 in pixels of the 1024 frame.
    pub boxes: Option<Tensor>,
    /// `(N, 1, 256, 256)` low-resolution logits.
    pub masks: Option<Tensor>,
}

impl Prompts {
    pub fn of_points(points: Tensor, labels: Tensor) -> Self {
        Self { points: Some((points, labels)), ..Self::default() }
    }

    /// N.
    pub fn len(&self) -> i64 {
        let parts = [self.points.as_ref().map(|(points, _)| points), self.boxes.as_ref(), self.masks.as_ref()];
        parts.into_iter().flatten().next().map_or(0, |part| part.size()[0])
    }

    /// So many at a time.
    pub(super) fn batches(&self, size: i64) -> impl Iterator<Item = Self> {
        (0..self.len()).step_by(size as usize).map(move |start| self.narrow(start, size.min(self.len() - start)))
    }

    /// `n` of the prompts, from `start` on.
    pub(super) fn narrow(&self, start: i64, n: i64) -> Self {
        let part = |x: &Tensor| x.narrow(0, start, n);
        Self {
            points: self.points.as_ref().map(|(points, labels)| (part(points), part(labels))),
            boxes: self.boxes.as_ref().map(part),
            masks: self.masks.as_ref().map(part),
            is_gap: self.is_gap.as_ref().map(part),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A mask prompt to the resolution of an embedding: two 2x2 convolutions at stride 2, then 1x1.
#[derive(Debug)]
struct MaskDownscaling {
    convs: [(Tensor, Tensor); 3],
    norms: [LayerNorm; 2],
}

impl MaskDownscaling {
    fn load(from: &Loader<'_>) -> anyhow::Result<Self> {
        let name = |part: &str| format!("prompt_encoder.mask_downscaling.{part}");
        let conv = |part: &str, shape: [i64; 4]| -> anyhow::Result<(Tensor, Tensor)> {
            let name = name(part);
            Ok((from.get(&format!("{name}.weight"), &shape)?, from.get(&format!("{name}.bias"), &shape[..1])?))
        };
        Ok(Self {
            convs: [conv("0", [4, 1, 2, 2])?, conv("3", [16, 4, 2, 2])?, conv("6", [256, 16, 1, 1])?],
            norms: [from.norm(&name("1"), 4, 1e-6)?, from.norm(&name("4"), 16, 1e-6)?],
        })
    }

    /// `(N, 1, 256, 256)` to `(N, 256, 64, 64)`
    fn forward(&self, masks: &Tensor) -> Tensor {
        let conv = |x: &Tensor, i: usize| {
            let (weight, bias) = &self.convs[i];
            let side = weight.size()[2];
            x.conv2d(weight, Some(bias), [side; 2], [0, 0], [1, 1], 1)
        };
        let x = self.norms[0].forward_2d(&conv(masks, 0)).gelu("none");
        let x = self.norms[1].forward_2d(&conv(&x, 1)).gelu("none");
        conv(&x, 2)
    }
}
