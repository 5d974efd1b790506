//! Prompts to masks (reference: `segment_anything/modeling/mask_decoder.py`).

use rayon::prelude::*;
use tch::{Kind, Tensor};

use super::GRID;
use super::transformer::{DIM, Source, TwoWayTransformer};
use super::upscale::{Upscaling, upscale};
use crate::model::Compute;
use crate::model::layer::{LayerNorm, Linear, Loader};
use crate::model::memory::{floats, upload};
use crate::model::simd::{Numbers, Right};

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

#[derive(Debug)]
pub struct MaskDecoder {
    iou_token: Tensor,
    mask_tokens: Tensor,
    transformer: TwoWayTransformer,
    upscale1: Linear,
    upscale_norm: LayerNorm,
    upscale2: Linear,
    hyper: Vec<Mlp>,
    iou_head: Mlp,
    /// For our own arithmetic, the weights of both upscalings; `None`: libtorch's.
    own: Option<[Right<'static>; 2]>,
}

impl MaskDecoder {
    /// - `position`: encoding of the positions, `(4096, 256)`
    /// - `numbers`: of our own arithmetic, on a CPU; `None`: libtorch's
    pub(super) fn load(from: &Loader<'_>, position: Tensor, numbers: Option<Numbers>) -> anyhow::Result<Self> {
        let name = "mask_decoder";
        let hyper = |i| Mlp::load(from, &format!("{name}.output_hypernetworks_mlps.{i}"), 32);
        // Thresholds and order hang on the predicted IoU.
        let exact = Loader { compute: Compute::F32, ..*from };
        let upscale1 = upscaling(from, &format!("{name}.output_upscaling.0"), DIM, 64)?;
        let upscale2 = upscaling(from, &format!("{name}.output_upscaling.3"), 64, 32)?;
        let right = |numbers: Numbers, Linear { weight, .. }: &Linear| {
            let values = floats(&weight.transpose(0, 1).contiguous()).to_vec();
            numbers.right(values.into(), weight.size()[0] as usize)
        };
        Ok(Self {
            own: numbers.map(|numbers| [&upscale1, &upscale2].map(|linear| right(numbers, linear))),
            iou_token: from.get(&format!("{name}.iou_token.weight"), &[1, DIM])?,
            mask_tokens: from.get(&format!("{name}.mask_tokens.weight"), &[4, DIM])?,
            transformer: TwoWayTransformer::load(from, position, numbers)?,
            upscale1,
            upscale_norm: from.norm(&format!("{name}.output_upscaling.1"), 64, 1e-6)?,
            upscale2,
            hyper: (0..4).map(hyper).collect::<anyhow::Result<_>>()?,
            iou_head: Mlp::load(&exact, &format!("{name}.iou_prediction_head"), 4)?,
        })
    }

    /// Once for all prompts on an image, or for prompts with an image each.
    ///
    /// - `image`: `(1 or N, 4096, 256)` embedding with the dense prompt added
    pub fn source(&self, image: Tensor) -> Source {
        self.transformer.source(image)
    }

    /// - `prompts`: `(N, P, 256)` tokens
    /// - `is_gap`: `(N, P)` bool, tokens that are none
    pub fn forward(&self, source: &Source, prompts: &Tensor, is_gap: Option<&Tensor>, choice: MaskChoice) -> Decoded {
        let n = prompts.size()[0];
        let own = Tensor::cat(&[&self.iou_token, &self.mask_tokens], 0).unsqueeze(0).expand([n, -1, -1], false);
        let (at, masks) = choice.places();
        let of_masks = Tensor::arange(masks, (Kind::Int64, prompts.device())) + (1 + at);
        let wanted = Tensor::cat(&[of_masks.zeros_like().narrow(0, 0, 1), of_masks], 0); // the IoU token, then these
        let gaps = is_gap.map(|is_gap| {
            let none = Tensor::zeros([n, 1 + self.mask_tokens.size()[0]], (Kind::Bool, prompts.device()));
            let is_gap = Tensor::cat(&[&none, is_gap], 1);
            Tensor::zeros(is_gap.size(), (prompts.kind(), prompts.device())).masked_fill(&is_gap, f64::NEG_INFINITY)
        });
        let tokens = Tensor::cat(&[&own, prompts], 1);
        let (tokens, image) = self.transformer.forward(source, &tokens, &wanted, gaps.as_ref());
        let iou = self.iou_head.forward(&tokens.select(1, 0).to_kind(Kind::Float)).narrow(1, at, masks).contiguous();
        Decoded { choice, mask_tokens: tokens.narrow(1, 1, masks), image, iou }
    }

    /// The masks: logits of the first `rows` and `columns` of positions, `(N, M, 4 rows, 4 columns)` f32.
    pub fn masks(&self, decoded: &Decoded, positions: (i64, i64)) -> Tensor {
        self.masks_of(decoded, &Vec::from_iter(0..decoded.image.size()[0]), positions)
    }

    /// The same of some of the prompts alone.
    pub fn masks_of(&self, decoded: &Decoded, prompts: &[i64], (rows, columns): (i64, i64)) -> Tensor {
        let (all, n) = (decoded.image.size()[0], prompts.len() as i64);
        let chosen = |x: &Tensor| match n == all {
            true => x.shallow_clone(),
            false => x.index_select(0, &upload(&Tensor::from_slice(prompts), x.device())),
        };
        let mask_tokens = chosen(&decoded.mask_tokens);
        let (at, n_masks) = decoded.choice.places();
        let weight = |i: i64| self.hyper[(at + i) as usize].forward(&mask_tokens.select(1, i));
        let hyper: Vec<Tensor> = (0..n_masks).map(weight).collect();
        let hyper = Tensor::stack(&hyper, 1); // (N, M, 32)
        let size = [n, n_masks, 4 * rows, 4 * columns];
        if let Some(weights) = &self.own {
            let images = floats(&decoded.image).chunks_exact((GRID * GRID * DIM) as usize);
            let images: Vec<&[f32]> = images.collect();
            let images: Vec<&[f32]> = prompts.iter().map(|&prompt| images[prompt as usize]).collect();
            return Tensor::from_slice(&self.upscaled(weights, &images, &hyper, (rows, columns))).view(size);
        }
        let image = chosen(&decoded.image).view([n, GRID, GRID, DIM]).narrow(1, 0, rows).narrow(2, 0, columns);
        // A transposed 2x2 convolution at stride 2 is a linear map to four pixels, here kept last until the end.
        let x = self.upscale1.forward(&image.reshape([n, -1, DIM])).view([n, -1, 4, 64]);
        let x = self.upscale_norm.forward(&x).gelu("none");
        let x = self.upscale2.forward(&x).view([n, -1, 32]).gelu("none"); // (N, positions * 4 * 4, 32)
        let masks = hyper.matmul(&x.transpose(1, 2)); // (N, M, positions * 16)
        // (y, x, then y and x within 2x2, twice) to rows and columns.
        let masks = masks.view(&[n, n_masks, rows, columns, 2, 2, 2, 2][..]).permute([0, 1, 2, 4, 6, 3, 5, 7]);
        masks.reshape(size).to_kind(Kind::Float)
    }

    /// The same values by our own arithmetic, one prompt beside the other.
    fn upscaled(
        &self,
        [first, second]: &[Right<'static>; 2],
        images: &[&[f32]],
        hyper: &Tensor,
        (rows, columns): (i64, i64),
    ) -> Vec<f32> {
        let upscaling = Upscaling {
            first: (first, floats(&self.upscale1.bias)),
            norm: self.upscale_norm.host(),
            second: (second, floats(&self.upscale2.bias)),
        };
        let (side, of_rows) = (GRID as usize, (rows * GRID * DIM) as usize);
        let hyper = floats(hyper);
        let prompts = images.par_iter().zip(hyper.par_chunks_exact(hyper.len() / images.len()));
        let of =
            |(image, hyper): (&&[f32], &[f32])| upscale(&upscaling, &image[..of_rows], side, columns as usize, hyper);
        prompts.flat_map_iter(of).collect()
    }
}

/// `ConvTranspose2d(from, to, 2, stride 2)` as a linear map to `(2, 2, to)`.
fn upscaling(loader: &Loader<'_>, name: &str, from: i64, to: i64) -> anyhow::Result<Linear> {
    let weight = loader.get(&format!("{name}.weight"), &[from, to, 2, 2])?;
    let bias = loader.get(&format!("{name}.bias"), &[to])?;
    let weight = weight.permute([2, 3, 1, 0]).reshape([4 * to, from]);
    Ok(Linear { weight, bias: bias.repeat([4]) })
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::bf16::Bf16;
    use crate::model::weights::Weights;
    use tch::Device;

    /// The two paths, of which a CPU takes one and a GPU the other: one image for all prompts, and one for each.
    #[test]
    fn our_arithmetic_agrees_with_that_of_libtorch() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/pipelines/weights/mobile_sam.f16.safetensors");
        let weights = Weights::parse(std::fs::read(path).unwrap()).unwrap();
        let of = |compute| Loader { weights: &weights, device: Device::Cpu, compute };
        let wave = |shape: &[i64], step: f64| {
            (Tensor::arange(shape.iter().product::<i64>(), (Kind::Float, Device::Cpu)) * step).sin().view(shape)
        };
        let position = wave(&[4096, DIM], 0.3);
        let decoder = |compute: Compute, numbers| {
            MaskDecoder::load(&of(compute), position.to_kind(compute.kind()), numbers).unwrap()
        };
        let libtorch = decoder(Compute::F32, None);
        let bf16 = Bf16::detect().map(|bf16| (Some(Numbers::Bf16(bf16)), Compute::F32, 0.05));
        let cases = [(Some(Numbers::F32), Compute::F32, 1e-4), (None, Compute::Bf16, 0.1)];
        for (numbers, compute, tolerance) in cases.into_iter().chain(bf16) {
            let ours = decoder(compute, numbers);
            for (images, n_tokens, choice) in [(1, 2, MaskChoice::Multimask), (3, 7, MaskChoice::Single)] {
                let (image, prompts) = (wave(&[images, 4096, DIM], 0.7), wave(&[3, n_tokens, DIM], 0.11));
                let decode = |decoder: &MaskDecoder| {
                    let kind = decoder.mask_tokens.kind();
                    let source = decoder.source(image.to_kind(kind));
                    let decoded = decoder.forward(&source, &prompts.to_kind(kind), None, choice);
                    (decoder.masks(&decoded, (48, 61)), decoded.iou)
                };
                let ((masks, iou), (expected, expected_iou)) = (decode(&ours), decode(&libtorch));
                assert_eq!(masks.size(), [3, choice.places().1, 192, 244]);
                let worst = |a: Tensor, b: &Tensor| f64::try_from((a - b).abs().max() / b.abs().max()).unwrap();
                let (masks, iou) = (worst(masks, &expected), worst(iou, &expected_iou));
                assert!(masks < tolerance && iou < tolerance, "{numbers:?}: masks {masks}, IoUs {iou}");
            }
        }
    }
}
