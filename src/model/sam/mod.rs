//! The Segment Anything Model with its own encoders (ViT-B, L, H) or MobileSAM's (TinyViT). Files are named as in
//! the reference.

pub mod automatic;
pub mod draw;
mod exchange;
pub mod image_encoder;
pub mod mask_decoder;
pub mod prompt_encoder;
pub mod tiny_vit;
mod transformer;
mod upscale;

use tch::{Device, Kind, Tensor};

use self::image_encoder::{ImageEncoderViT, VitShape};
use self::mask_decoder::{Decoded, MaskChoice, MaskDecoder};
use self::prompt_encoder::{PromptEncoder, Prompts};
use self::tiny_vit::TinyViT;
use self::transformer::Source;
use crate::data::image::{Filter, resize_rgb};
use crate::model::bf16::Bf16;
use crate::model::layer::{LayerNorm, Loader};
use crate::model::memory::upload;
use crate::model::simd::Numbers;
use crate::model::weights::Weights;
use crate::model::{Compute, rgb_tensor};
use crate::vision::Rgb;

/// Side of the square the encoder sees, pixels.
pub const IMAGE_SIZE: usize = 1024;
/// Positions a side of an embedding.
pub(in crate::model) const GRID: i64 = 64;
const PIXEL_MEAN: [f32; 3] = [123.675, 116.28, 103.53];
const PIXEL_STD: [f32; 3] = [58.395, 57.12, 57.375];

/// The size of an image whose longer side is brought to 1024.
pub fn resized_size(height: usize, width: usize) -> (usize, usize) {
    let scale = IMAGE_SIZE as f64 / height.max(width) as f64;
    let side = |n: usize| ((n as f64 * scale + 0.5) as usize).max(1);
    (side(height), side(width))
}

/// The image encoder a checkpoint has.
#[derive(Debug)]
pub struct SamEncoder {
    encoder: Encoder,
    /// `(3, 1, 1)`
    pixel_mean: Tensor,
    pixel_std: Tensor,
    device: Device,
    compute: Compute,
}

#[derive(Debug)]
enum Encoder {
    Vit(ImageEncoderViT),
    Tiny(TinyViT),
}

impl SamEncoder {
    /// # Errors
    /// A tensor is missing from the checkpoint or has another shape.
    pub fn load(weights: &Weights, device: Device, compute: Compute) -> anyhow::Result<Self> {
        let from = Loader { weights, device, compute };
        let encoder = match VitShape::of(weights) {
            Some(shape) => Encoder::Vit(ImageEncoderViT::load(&from, shape)?),
            None => Encoder::Tiny(TinyViT::load(&from)?),
        };
        let per_channel = |values: &[f32]| Tensor::from_slice(values).view([3, 1, 1]).to_device(device);
        let (pixel_mean, pixel_std) = (per_channel(&PIXEL_MEAN), per_channel(&PIXEL_STD));
        Ok(Self { encoder, pixel_mean, pixel_std, device, compute })
    }

    /// `(1, 256, 64, 64)` f32.
    pub fn embed(&self, image: &Rgb) -> Tensor {
        let (height, width) = resized_size(image.height, image.width);
        self.embed_frame(&rgb_tensor(&resize_rgb(image, height, width, Filter::Bilinear)))
    }

    /// `(1, 256, 64, 64)` f32.
    ///
    /// - `frame`: `(3, h, w)` u8, a side of 1024 and the other at most that
    pub fn embed_frame(&self, frame: &Tensor) -> Tensor {
        tch::no_grad(|| {
            let (_, height, width) = frame.size3().expect("three dimensions");
            let image = upload(frame, self.device).to_kind(Kind::Float);
            let image = (image - &self.pixel_mean) / &self.pixel_std;
            let (right, bottom) = (IMAGE_SIZE as i64 - width, IMAGE_SIZE as i64 - height);
            let image = image.constant_pad_nd([0, right, 0, bottom]).unsqueeze(0);
            let image = image.to_kind(self.compute.kind());
            match &self.encoder {
                Encoder::Vit(encoder) => encoder.forward(&image),
                Encoder::Tiny(encoder) => encoder.forward(&image),
            }
        })
    }
}

/// Prompts decoded together on a GPU.
const GPU_BATCH: i64 = 64;
/// On a CPU: the weights of the tokens are read once for all of them, and each has 4 MB of its own.
const CPU_BATCH: i64 = 16;

/// Prompt encoder and mask decoder.
#[derive(Debug)]
pub struct SamDecoder {
    prompt_encoder: PromptEncoder,
    mask_decoder: MaskDecoder,
    device: Device,
    compute: Compute,
}

/// M masks for each of N prompts: one, or three from part to whole.
#[derive(Debug)]
pub struct Masks {
    /// `(N, M, 256, 256)` logits over the 1024 frame.
    pub low_res: Tensor,
    /// Predicted IoU, `(N, M)`.
    pub iou: Tensor,
}

impl SamDecoder {
    /// On a CPU bf16 is that of products alone, and only where the processor has AVX-512 BF16.
    ///
    /// # Errors
    /// A tensor is missing from the checkpoint or has another shape.
    pub fn load(weights: &Weights, device: Device, compute: Compute) -> anyhow::Result<Self> {
        let numbers = match (compute, Bf16::detect()) {
            _ if device.is_cuda() => None,
            (Compute::Bf16, Some(bf16)) => Some(Numbers::Bf16(bf16)),
            _ => Some(Numbers::F32),
        };
        let compute = if device.is_cuda() { compute } else { Compute::F32 };
        let from = Loader { weights, device, compute };
        let prompt_encoder = PromptEncoder::load(&from)?;
        let position = prompt_encoder.positions().to_kind(compute.kind());
        Ok(Self { prompt_encoder, mask_decoder: MaskDecoder::load(&from, position, numbers)?, device, compute })
    }

    /// Three masks for each of some point prompts; see [`Self::decode`].
    ///
    /// - `points`: `(N, P, 2)`
    /// - `labels`: `(N, P)`
    pub fn decode_points(&self, embedding: &Tensor, points: &Tensor, labels: &Tensor) -> Masks {
        let prompts = Prompts::of_points(points.shallow_clone(), labels.shallow_clone());
        self.decode(embedding, &prompts, MaskChoice::Multimask)
    }

    /// Masks of any prompts, at least one.
    ///
    /// - `embedding`: `(1 or N, 256, 64, 64)`: one image for all prompts, or one for each
    pub fn decode(&self, embedding: &Tensor, prompts: &Prompts, choice: MaskChoice) -> Masks {
        tch::no_grad(|| {
            let of_all = prompts.masks.is_none() && embedding.size()[0] == 1;
            let shared = of_all.then(|| self.source(embedding, None));
            let (mut low_res, mut iou) = (Vec::new(), Vec::new());
            for (batch, prompts) in (0..).zip(prompts.batches(self.batch())) {
                let own;
                let source = match &shared {
                    Some(shared) => shared,
                    None => {
                        let images = embedding.size()[0];
                        let embedding = match images {
                            1 => embedding,
                            _ => &embedding.narrow(0, batch * self.batch(), prompts.len()),
                        };
                        own = self.source(embedding, prompts.masks.as_ref());
                        &own
                    }
                };
                let decoded = self.tokens(source, &prompts, choice);
                low_res.push(self.mask_decoder.masks(&decoded, (GRID, GRID)));
                iou.push(decoded.iou);
            }
            Masks { low_res: Tensor::cat(&low_res, 0), iou: Tensor::cat(&iou, 0) }
        })
    }

    pub fn is_on_gpu(&self) -> bool {
        self.device.is_cuda()
    }

    /// Prompts decoded together.
    fn batch(&self) -> i64 {
        if self.is_on_gpu() { GPU_BATCH } else { CPU_BATCH }
    }

    /// What prompts look at. `masks`: their dense part, see [`Prompts`].
    fn source(&self, embedding: &Tensor, masks: Option<&Tensor>) -> Source {
        let dense = self.prompt_encoder.dense(masks);
        let image = upload(embedding, self.device).flatten(2, 3).transpose(1, 2) + dense;
        self.mask_decoder.source(image.to_kind(self.compute.kind()).contiguous())
    }

    /// The transformer alone: predicted IoUs without the masks.
    fn tokens(&self, source: &Source, prompts: &Prompts, choice: MaskChoice) -> Decoded {
        let sparse = self.prompt_encoder.sparse(prompts).to_kind(self.compute.kind());
        let is_gap = self.prompt_encoder.is_gap(prompts);
        self.mask_decoder.forward(source, &sparse, is_gap.as_ref(), choice)
    }
}

/// The end of either encoder: brings the width to 256.
#[derive(Debug)]
pub(super) struct Neck {
    conv1: Tensor,
    norm1: LayerNorm,
    conv2: Tensor,
    norm2: LayerNorm,
}

impl Neck {
    pub(super) fn load(from: &Loader<'_>, dim: i64) -> anyhow::Result<Self> {
        let name = "image_encoder.neck";
        Ok(Self {
            conv1: from.get(&format!("{name}.0.weight"), &[256, dim, 1, 1])?,
            norm1: from.norm(&format!("{name}.1"), 256, 1e-6)?,
            conv2: from.get(&format!("{name}.2.weight"), &[256, 256, 3, 3])?,
            norm2: from.norm(&format!("{name}.3"), 256, 1e-6)?,
        })
    }

    /// `(1, dim, 64, 64)` to `(1, 256, 64, 64)` f32.
    pub(super) fn forward(&self, x: &Tensor) -> Tensor {
        let none: Option<&Tensor> = None;
        let x = self.norm1.forward_2d(&x.conv2d(&self.conv1, none, [1, 1], [0, 0], [1, 1], 1));
        self.norm2.forward_2d(&x.conv2d(&self.conv2, none, [1, 1], [1, 1], [1, 1], 1)).to_kind(Kind::Float)
    }
}
