//! Segment-everything (reference: `segment_anything/automatic_mask_generator.py`), over the whole image and crops of it.
//!
//! Masks below the IoU threshold are dropped before they are drawn, and those left are scored at the image's own
//! resolution, as the reference does.

use anyhow::Context;
use rayon::prelude::*;
use tch::{Kind, Tensor};

use super::draw::{Drawn, MaskUpsampler};
use super::mask_decoder::MaskChoice;
use super::prompt_encoder::Prompts;
use super::transformer::Source;
use super::{SamDecoder, resized_size};
use crate::model::memory::{floats, upload};
use crate::vision::mask::{BitMask, BoxXyxy, SmallRegion};
pub use crate::vision::se_map::AutomaticOptions;
use crate::vision::se_map::{Asked, Segment, nms};

/// Pixels of masks drawn at full size together on a GPU.
const DRAW_PIXELS: usize = 32_000_000;
/// Bytes of masks that a GPU answers with at most: those of 3,000 of a photograph.
const ANSWER_BYTES: usize = 64 << 20;
/// A box this near to an edge of its crop, in pixels, is cut off there.
const EDGE: f32 = 20.0;

/// A part of an image, pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Crop {
    pub y: usize,
    pub x: usize,
    pub height: usize,
    pub width: usize,
    /// 0: the whole image.
    pub layer: u32,
}

/// All segments of an image in the order of the reference: the highest predicted IoU first; with crops, those of the
/// smallest crops first; after cleaning ([`AutomaticOptions::min_mask_region_area`]), those that had nothing to clean.
///
/// - `embed`: the embedding of a part of the image, `(1, 256, 64, 64)`; asked for the whole image first
pub fn segment_everything(
    decoder: &SamDecoder,
    mut embed: impl FnMut(Crop) -> anyhow::Result<Tensor>,
    (height, width): (usize, usize),
    options: &AutomaticOptions,
) -> anyhow::Result<Vec<Segment>> {
    let (mut found, mut scores) = (Vec::new(), Vec::new());
    for crop in crops(height, width, options) {
        let embedding = embed(crop)?;
        found.extend(tch::no_grad(|| segment_crop(decoder, &embedding, crop, (height, width), options))?);
        // Of equals from several crops the one from the smaller crop stays.
        scores.resize(found.len(), 1.0 / (crop.height * crop.width) as f32);
    }
    if options.crop_n_layers > 0 {
        found = nms(found, &scores, options.crop_nms_thresh);
    }
    if options.min_mask_region_area > 0 {
        found = without_small_regions(found, options);
    }
    Ok(found)
}

/// The whole image, then the crops of each layer, column by column.
fn crops(height: usize, width: usize, options: &AutomaticOptions) -> Vec<Crop> {
    let mut crops = vec![Crop { y: 0, x: 0, height, width, layer: 0 }];
    for layer in 1..=options.crop_n_layers {
        let n = 1usize << layer;
        let overlap = (options.crop_overlap_ratio * height.min(width) as f64 * (2.0 / n as f64)) as usize;
        let side = |whole: usize| (overlap * (n - 1) + whole).div_ceil(n);
        let (crop_height, crop_width) = (side(height), side(width));
        for (i, j) in (0..n * n).map(|k| (k / n, k % n)) {
            let (x, y) = (i * crop_width.saturating_sub(overlap), j * crop_height.saturating_sub(overlap));
            let (height, width) = (crop_height.min(height.saturating_sub(y)), crop_width.min(width.saturating_sub(x)));
            if height > 0 && width > 0 {
                crops.push(Crop { y, x, height, width, layer });
            }
        }
    }
    crops
}

/// The segments of one crop, in pixels of the image.
fn segment_crop(
    decoder: &SamDecoder,
    embedding: &Tensor,
    crop: Crop,
    image: (usize, usize),
    options: &AutomaticOptions,
) -> anyhow::Result<Vec<Segment>> {
    let upsampler = MaskUpsampler::new((crop.height, crop.width), decoder.device);
    let per_side = options.points_per_side / options.crop_n_points_downscale_factor.pow(crop.layer).max(1);
    let points = Tensor::from_slice(grid(crop.height, crop.width, per_side).as_flattened()).view([-1, 1, 2]);
    let points = upload(&points, decoder.device);
    let labels = Tensor::ones([points.size()[0], 1], (Kind::Int64, decoder.device));
    let prompts = Prompts::of_points(points, labels);
    let source = decoder.source(embedding, None);
    let masks = match decoder.is_on_gpu() {
        true => masks_on_device(decoder, &source, &prompts, &upsampler, options)?,
        false => masks(decoder, &source, &prompts, &upsampler, options)?,
    };
    // NaN, an empty mask, is not stable. Compared in f32 as in the reference: 19/20 is 0.95 there.
    let is_stable = |found: &Found| found.drawn.stability >= options.stability_score_thresh as f32;
    let found = masks.into_iter().filter(is_stable);
    let points = grid_in_image(crop, per_side);
    let crop_box = [crop.x, crop.y, crop.width, crop.height];
    let found = found.map(|Found { prompt, iou, drawn: Drawn { mask, stability } }| {
        Segment::new(mask, iou, stability, Asked { point: points[prompt], crop_box })
    });
    let to_image = |segment: Segment| match crop.layer {
        0 => segment,
        _ => segment.with_mask(segment.mask.placed((crop.y, crop.x), image.0, image.1)),
    };
    let found: Vec<Segment> = found.map(to_image).filter(|segment| !is_cut(segment.bounds, crop, image)).collect();
    let scores: Vec<f32> = found.iter().map(|segment| segment.predicted_iou).collect();
    Ok(nms(found, &scores, options.box_nms_thresh))
}

/// A mask above the threshold of predicted IoU, and which of the prompts it is of.
struct Found {
    prompt: usize,
    iou: f32,
    drawn: Drawn,
}

/// The masks above the threshold of predicted IoU, in the order of the prompts. Only these are drawn.
fn masks(
    decoder: &SamDecoder,
    source: &Source,
    prompts: &Prompts,
    upsampler: &MaskUpsampler,
    options: &AutomaticOptions,
) -> anyhow::Result<Vec<Found>> {
    let (taps, offset) = (&upsampler.taps, options.stability_score_offset as f32);
    let mut found = Vec::new();
    let mut first = 0; // prompt of the batch
    for prompts in prompts.batches(decoder.batch()) {
        let decoded = decoder.tokens(source, &prompts, MaskChoice::Multimask);
        let ious = Vec::<f32>::try_from(decoded.iou.view([-1]))?;
        let per_prompt = decoded.iou.size()[1] as usize;
        let is_good = |iou: &f32| *iou > options.pred_iou_thresh as f32;
        let of_prompts = ious.chunks_exact(per_prompt).enumerate();
        let good: Vec<(usize, &[f32])> = of_prompts.filter(|(_, ious)| ious.iter().any(is_good)).collect();
        let before = first;
        first += ious.len() / per_prompt;
        if good.is_empty() {
            continue;
        }
        let rows: Vec<i64> = good.iter().map(|(row, _)| *row as i64).collect();
        let low_res = decoder.mask_decoder.masks_of(&decoded, &rows, upsampler.positions());
        let ious = good.iter().flat_map(|(row, ious)| ious.iter().map(move |iou| (before + row, *iou)));
        let size = low_res.numel() / (good.len() * per_prompt);
        let masks = ious.zip(floats(&low_res).chunks_exact(size));
        let chosen: Vec<_> = masks.filter(|((_, iou), _)| is_good(iou)).collect();
        let draw = |((prompt, iou), low_res)| Found { prompt, iou, drawn: taps.draw(low_res, offset) };
        found.par_extend(chosen.into_par_iter().map(draw));
    }
    Ok(found)
}

/// The same on a GPU, which is waited for once: what comes back are the masks with the highest predicted IoUs, as many
/// as one copy may hold (of a photograph of 500 x 375 pixels 2,796), and only if all of these are above the threshold
/// the next ones. To tell the GPU which to draw would take a wait of its own.
fn masks_on_device(
    decoder: &SamDecoder,
    source: &Source,
    prompts: &Prompts,
    upsampler: &MaskUpsampler,
    options: &AutomaticOptions,
) -> anyhow::Result<Vec<Found>> {
    let decode = |prompts: Prompts| {
        let decoded = decoder.tokens(source, &prompts, MaskChoice::Multimask);
        let low_res = decoder.mask_decoder.masks(&decoded, upsampler.positions());
        (low_res.flatten(0, 1), decoded.iou.view([-1]))
    };
    let (parts, ious): (Vec<_>, Vec<_>) = prompts.batches(decoder.batch()).map(decode).unzip();
    let (ious, order) = Tensor::cat(&ious, 0).sort(0, true);
    let low_res = Tensor::cat(&parts, 0);
    drop(parts);
    let n = ious.numel();
    let per_prompt = (n / prompts.len().max(1) as usize).max(1);
    let (height, width) = upsampler.size();
    let together = (DRAW_PIXELS / (height * width)).max(1);
    let a_round = (ANSWER_BYTES / (height * width.next_multiple_of(64) / 8)).max(1);
    let mut found: Vec<(i64, f32, Drawn)> = Vec::new();
    'rounds: for round in (0..n).step_by(a_round) {
        let bytes = |x: &Tensor| x.view_dtype(Kind::Uint8);
        let answer = |start: usize| {
            let part = |x: &Tensor| x.narrow(0, start as i64, together.min(n.min(round + a_round) - start) as i64);
            let places = part(&order);
            let (bits, stability) =
                upsampler.draw_on_device(&low_res.index_select(0, &places), options.stability_score_offset);
            let numbers = [places.unsqueeze(1), part(&ious).unsqueeze(1), stability.unsqueeze(1)];
            let columns: Vec<Tensor> = numbers.iter().map(bytes).chain([bits.flatten(1, 2)]).collect();
            Tensor::cat(&columns, 1)
        };
        let answers: Vec<Tensor> = (round..n.min(round + a_round)).step_by(together).map(answer).collect();
        let answers = Tensor::cat(&answers, 0);
        let row = answers.size()[1] as usize;
        let answers = Vec::<u8>::try_from(answers.view([-1]))?; // the wait
        for answer in answers.chunks_exact(row) {
            let ([place @ .., i0, i1, i2, i3, s0, s1, s2, s3], bits) =
                answer.split_first_chunk::<16>().context("cut")?;
            let (iou, stability) = (f32::from_le_bytes([*i0, *i1, *i2, *i3]), f32::from_le_bytes([*s0, *s1, *s2, *s3]));
            if iou.is_nan() {
                continue; // sorted first
            }
            if iou <= options.pred_iou_thresh as f32 {
                break 'rounds;
            }
            let mask = BitMask::of_packed(height, width, bits);
            found.push((i64::from_le_bytes(*place), iou, Drawn { mask, stability }));
        }
    }
    found.sort_by_key(|(place, _, _)| *place);
    let with_prompt = |(place, iou, drawn)| Found { prompt: place as usize / per_prompt, iou, drawn };
    Ok(found.into_iter().map(with_prompt).collect())
}

/// A box ends at an edge of its crop that is no edge of the image.
fn is_cut(bounds: BoxXyxy, crop: Crop, (height, width): (usize, usize)) -> bool {
    let near = |at: f32, edge: usize| (at - edge as f32).abs() <= EDGE;
    [
        (bounds.x0, crop.x, 0),
        (bounds.y0, crop.y, 0),
        (bounds.x1, crop.x + crop.width, width),
        (bounds.y1, crop.y + crop.height, height),
    ]
    .into_iter()
    .any(|(at, of_crop, of_image)| near(at, of_crop) && !near(at, of_image))
}

/// Cleans masks of small holes and islands; of two that then overlap, one that had none stays.
fn without_small_regions(found: Vec<Segment>, options: &AutomaticOptions) -> Vec<Segment> {
    let area = options.min_mask_region_area;
    let (mut cleaned, mut scores) = (Vec::new(), Vec::new());
    for segment in found {
        let (mask, holes) = segment.mask.without_small_regions(area, SmallRegion::Hole);
        let (mask, islands) = mask.without_small_regions(area, SmallRegion::Island);
        scores.push(if holes || islands { 0.0 } else { 1.0 });
        cleaned.push(if holes || islands { segment.with_mask(mask) } else { segment });
    }
    nms(cleaned, &scores, options.box_nms_thresh.max(options.crop_nms_thresh))
}

/// The prompts, x and y in the 1024 frame: the centres of a square grid over the image, row by row.
fn grid(height: usize, width: usize, points_per_side: u32) -> Vec<[f32; 2]> {
    let (inner_h, inner_w) = resized_size(height, width);
    let n = points_per_side;
    let centre = |i: u32| (f64::from(i) + 0.5) / f64::from(n);
    let point = |i: u32| [(centre(i % n) * inner_w as f64) as f32, (centre(i / n) * inner_h as f64) as f32];
    (0..n * n).map(point).collect()
}

/// The same points in pixels of the image, to the bit as the reference has them: `np.linspace`, times the crop's size.
fn grid_in_image(crop: Crop, points_per_side: u32) -> Vec<[f64; 2]> {
    let n = points_per_side;
    let first = 1.0 / (2.0 * f64::from(n));
    let last = 1.0 - first;
    let step = (last - first) / f64::from(n.saturating_sub(1).max(1));
    let centre = |i: u32| if i > 0 && i + 1 == n { last } else { f64::from(i) * step + first };
    let place = |i: u32, size: usize, from: usize| centre(i) * size as f64 + from as f64;
    let point = |i: u32| [place(i % n, crop.width, crop.x), place(i / n, crop.height, crop.y)];
    (0..n * n).map(point).collect()
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;
    use crate::model::Compute;
    use crate::model::weights::Weights;

    #[test]
    fn crops_overlap_and_cover_the_image() {
        let options = AutomaticOptions { crop_n_layers: 2, ..AutomaticOptions::default() };
        let crops = crops(375, 500, &options);
        assert_eq!(crops.len(), 1 + 4 + 16);
        // The reference: generate_crop_boxes((375, 500), 1, 512 / 1500).
        let first: Vec<_> = crops[..5].iter().map(|c| (c.x, c.y, c.x + c.width, c.y + c.height)).collect();
        assert_eq!(
            first,
            [(0, 0, 500, 375), (0, 0, 314, 252), (0, 124, 314, 375), (186, 0, 500, 252), (186, 124, 500, 375)]
        );
        assert!(crops.iter().all(|c| c.x + c.width <= 500 && c.y + c.height <= 375));
    }

    #[test]
    fn a_box_at_an_inner_edge_is_cut_off() {
        let crop = Crop { y: 0, x: 0, height: 252, width: 314, layer: 1 };
        let bounds = |x1: f32| BoxXyxy { x0: 0.0, y0: 0.0, x1, y1: 100.0 };
        assert!(is_cut(bounds(310.0), crop, (375, 500)) && !is_cut(bounds(290.0), crop, (375, 500)));
        assert!(!is_cut(bounds(499.0), Crop { width: 500, height: 375, ..crop }, (375, 500)));
    }

    /// What a GPU does, done by the processor, and what the processor does.
    #[test]
    fn masks_by_either_way() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/pipelines/weights/mobile_sam.f16.safetensors");
        let weights = Weights::parse(std::fs::read(path).unwrap()).unwrap();
        let decoder = SamDecoder::load(&weights, Device::Cpu, Compute::F32).unwrap();
        let source = decoder.source(
            &(Tensor::arange(256 * 64 * 64, (Kind::Float, Device::Cpu)) * 1e-3).sin().view([1, 256, 64, 64]),
            None,
        );
        let points = Tensor::from_slice(grid(60, 90, 5).as_flattened()).view([-1, 1, 2]);
        let prompts = Prompts::of_points(points, Tensor::ones([25, 1], (Kind::Int64, Device::Cpu)));
        let upsampler = MaskUpsampler::new((60, 90), Device::Cpu);
        for pred_iou_thresh in [0.0, 0.3, 0.6, 2.0] {
            let options = AutomaticOptions { pred_iou_thresh, ..AutomaticOptions::default() };
            let here = masks(&decoder, &source, &prompts, &upsampler, &options).unwrap();
            let there = masks_on_device(&decoder, &source, &prompts, &upsampler, &options).unwrap();
            assert_eq!((here.len(), here.is_empty()), (there.len(), pred_iou_thresh > 1.0));
            for (Found { prompt, iou, drawn }, Found { prompt: of, iou: other_iou, drawn: other }) in
                here.iter().zip(&there)
            {
                let differ = (0..60 * 90).filter(|p| drawn.mask.at(p / 90, p % 90) != other.mask.at(p / 90, p % 90));
                assert!(prompt == of && (iou - other_iou).abs() < 1e-4 && differ.count() < 5);
                assert!((drawn.stability - other.stability).abs() < 0.01 || drawn.stability.is_nan());
            }
        }
    }
}
