//! The Segment Anything Model with MobileSAM's encoder. Files are named as in the reference.

pub mod automatic;
pub mod mask_decoder;
pub mod prompt_encoder;
pub mod tiny_vit;

use tch::{Device, Kind, Tensor};

use self::mask_decoder::{Decoded, MaskDecoder};
use self::prompt_encoder::PromptEncoder;
use self::tiny_vit::TinyViT;
use crate::data::image::{Filter, resize_rgb};
use crate::model::layer::Loader;
use crate::model::weights::Weights;
use crate::model::{Compute, rgb_tensor};
use crate::vision::Rgb;

/// Side of the square the encoder sees, pixels.
pub const IMAGE_SIZE: usize = 1024;
const PIXEL_MEAN: [f32; 3] = [123.675, 116.28, 103.53];
const PIXEL_STD: [f32; 3] = [58.395, 57.12, 57.375];

/// The size of an image whose longer side is brought to 1024.
pub fn resized_size(height: usize, width: usize) -> (usize, usize) {
    let scale = IMAGE_SIZE as f64 / height.max(width) as f64;
    let side = |n: usize| ((n as f64 * scale + 0.5) as usize).max(1);
    (side(height), side(width))
}

/// The image encoder.
#[derive(Debug)]
pub struct SamEncoder {
    encoder: TinyViT,
    device: Device,
    compute: Compute,
}

impl SamEncoder {
    /// # Errors
    /// A tensor is missing from the checkpoint or has another shape.
    pub fn load(weights: &Weights, device: Device, compute: Compute) -> anyhow::Result<Self> {
        let encoder = TinyViT::load(&Loader { weights, device, compute })?;
        Ok(Self { encoder, device, compute })
    }

    /// `(1, 256, 64, 64)` f32.
    pub fn embed(&self, image: &Rgb) -> Tensor {
        tch::no_grad(|| {
            let (height, width) = resized_size(image.height, image.width);
            let image = rgb_tensor(&resize_rgb(image, height, width, Filter::Bilinear)).to_device(self.device);
            let per_channel = |values: &[f32]| Tensor::from_slice(values).view([3, 1, 1]).to_device(self.device);
            let image = (image.to_kind(Kind::Float) - per_channel(&PIXEL_MEAN)) / per_channel(&PIXEL_STD);
            let (right, bottom) = ((IMAGE_SIZE - width) as i64, (IMAGE_SIZE - height) as i64);
            let image = image.constant_pad_nd([0, right, 0, bottom]).unsqueeze(0);
            self.encoder.forward(&image.to_kind(self.compute.kind()))
        })
    }
}

/// Prompt encoder and mask decoder.
#[derive(Debug)]
pub struct SamDecoder {
    prompt_encoder: PromptEncoder,
    mask_decoder: MaskDecoder,
    /// `(4096, 256)` encoding of the positions of an embedding.
    position: Tensor,
    device: Device,
    compute: Compute,
}

/// Three masks for each prompt, from part to whole.
#[derive(Debug)]
pub struct Masks {
    /// `(N, 3, 256, 256)` logits over the 1024 frame.
    pub low_res: Tensor,
    /// Predicted IoU, `(N, 3)`.
    pub iou: Tensor,
}

impl SamDecoder {
    /// # Errors
    /// A tensor is missing from the checkpoint or has another shape.
    pub fn load(weights: &Weights, device: Device, compute: Compute) -> anyhow::Result<Self> {
        let from = Loader { weights, device, compute };
        let prompt_encoder = PromptEncoder::load(&from)?;
        let position = prompt_encoder.dense().to_kind(compute.kind());
        Ok(Self { prompt_encoder, mask_decoder: MaskDecoder::load(&from)?, position, device, compute })
    }

    /// Decodes point prompts.
    ///
    /// - `embedding`: `(1 or N, 256, 64, 64)`: one image for all prompts, or one for each
    /// - `points`: `(N, P, 2)` x, y in pixels of the 1024 frame
    /// - `labels`: `(N, P)` 1 object, 0 background, -1 not a point (padding)
    pub fn decode_points(&self, embedding: &Tensor, points: &Tensor, labels: &Tensor) -> Masks {
        tch::no_grad(|| {
            let decoded = self.tokens(embedding, points, labels);
            Masks { low_res: self.mask_decoder.masks(&decoded), iou: decoded.iou }
        })
    }

    /// The transformer alone: predicted IoUs without the masks.
    fn tokens(&self, embedding: &Tensor, points: &Tensor, labels: &Tensor) -> Decoded {
        let dense = self.prompt_encoder.no_mask_embed.view([1, 1, 256]);
        let image = embedding.to_device(self.device).flatten(2, 3).transpose(1, 2) + dense;
        let image = image.to_kind(self.compute.kind()).contiguous();
        let prompts = self.prompt_encoder.points(&points.to_device(self.device), &labels.to_device(self.device));
        self.mask_decoder.forward(&image, &self.position, &prompts.to_kind(self.compute.kind()))
    }
}

/// Low-resolution logits at the size of the image: `(N, h, w)` from `(N, 256, 256)`.
pub fn upsample_masks(low_res: &Tensor, height: usize, width: usize) -> Tensor {
    let (inner_h, inner_w) = resized_size(height, width);
    let side = IMAGE_SIZE as i64;
    let frame = low_res.unsqueeze(1).upsample_bilinear2d([side, side], false, None, None);
    let inner = frame.narrow(2, 0, inner_h as i64).narrow(3, 0, inner_w as i64);
    inner.upsample_bilinear2d([height as i64, width as i64], false, None, None).squeeze_dim(1)
}
