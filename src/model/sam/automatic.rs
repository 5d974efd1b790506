//! Segment-everything (reference: `segment_anything/automatic_mask_generator.py`), over the whole image and crops of it.
//!
//! Masks below the IoU threshold are dropped before they are drawn, and those left are scored at the image's own
//! resolution, as the reference does.

use rayon::prelude::*;
use tch::{Kind, Tensor};

use super::draw::{Drawn, MaskUpsampler};
use super::mask_decoder::{Decoded, MaskChoice};
use super::prompt_encoder::Prompts;
use super::{SamDecoder, resized_size};
use crate::model::memory::{floats, upload};
use crate::vision::mask::{BitMask, BoxXyxy, SmallRegion};
pub use crate::vision::se_map::AutomaticOptions;
use crate::vision::se_map::{Segment, nms};

/// Pixels of masks drawn at full size together on a GPU.
const DRAW_PIXELS: usize = 32_000_000;
/// Prompts decoded before a GPU is waited for: all of the usual grid. The image after one of them takes 2 MB in bf16.
const GPU_PROMPTS: usize = 1024;
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
        found = suppress(found, &scores, options.crop_nms_thresh);
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
    let source = decoder.source(embedding, None);
    let upsampler = MaskUpsampler::new((crop.height, crop.width), decoder.device);
    let per_side = options.points_per_side / options.crop_n_points_downscale_factor.pow(crop.layer).max(1);
    let mut found = Vec::new();
    // On a GPU all prompts are decoded before the first look at what came out: that look waits for the device.
    let together = if decoder.device.is_cuda() { GPU_PROMPTS } else { decoder.batch() as usize };
    for points in grid(crop.height, crop.width, per_side).chunks(together) {
        let n = points.len() as i64;
        let points = upload(&Tensor::from_slice2(points).view([n, 1, 2]), decoder.device);
        let prompts = Prompts::of_points(points, Tensor::ones([n, 1], (Kind::Int64, decoder.device)));
        let decode = |prompts: Prompts| decoder.tokens(&source, &prompts, MaskChoice::Multimask);
        let parts: Vec<Decoded> = prompts.batches(decoder.batch()).map(decode).collect();
        let ious: Vec<&Tensor> = parts.iter().map(|part| &part.iou).collect();
        let ious = Vec::<f32>::try_from(Tensor::cat(&ious, 0).view([-1]))?;
        let is_good = |iou: &f32| *iou > options.pred_iou_thresh as f32;
        let (mut drawn, mut rest) = (Vec::new(), &ious[..]);
        for part in &parts {
            let (ious, more) = rest.split_at(part.iou.numel());
            rest = more;
            let good: Vec<usize> = (0..ious.len()).filter(|&mask| is_good(&ious[mask])).collect();
            draw(decoder, part, &good, (&upsampler, options.stability_score_offset), &mut drawn);
        }
        // NaN, an empty mask, is not stable. Compared in f32 as in the reference: 19/20 is 0.95 there.
        let is_stable = |(_, drawn): &(f32, Drawn)| drawn.stability >= options.stability_score_thresh as f32;
        let segment = |(iou, Drawn { mask, stability })| Segment::new(mask, iou, stability);
        let drawn = read(drawn, upsampler.size())?;
        found.extend(ious.into_iter().filter(is_good).zip(drawn).filter(is_stable).map(segment));
    }
    let to_image = |segment: Segment| match crop.layer {
        0 => segment,
        _ => segment.with_mask(segment.mask.placed((crop.y, crop.x), image.0, image.1)),
    };
    let found: Vec<Segment> =
        found.into_iter().map(to_image).filter(|segment| !is_cut(segment.bounds, crop, image)).collect();
    let scores: Vec<f32> = found.iter().map(|segment| segment.predicted_iou).collect();
    Ok(suppress(found, &scores, options.box_nms_thresh))
}

/// Some masks drawn.
enum Masks {
    Here(Vec<Drawn>),
    /// See [`MaskUpsampler::draw_on_device`].
    OnDevice {
        bits: Tensor,
        stability: Tensor,
    },
}

/// Draws some of the masks of `decoded` at the size of the image. On a GPU nothing waits for them.
fn draw(
    decoder: &SamDecoder,
    decoded: &Decoded,
    masks: &[usize],
    (upsampler, offset): (&MaskUpsampler, f64),
    drawn: &mut Vec<Masks>,
) {
    let per_prompt = decoded.iou.size()[1] as usize;
    let (height, width) = upsampler.size();
    // On a CPU masks are drawn one by one.
    let together = if decoder.device.is_cuda() { (DRAW_PIXELS / (height * width)).max(1) } else { usize::MAX };
    for masks in masks.chunks(together) {
        let mut prompts: Vec<i64> = masks.iter().map(|mask| (mask / per_prompt) as i64).collect();
        prompts.dedup();
        // Where they are among the masks of these prompts.
        let prompt = |mask: &usize| prompts.partition_point(|prompt| (*prompt as usize) < mask / per_prompt);
        let places: Vec<i64> =
            masks.iter().map(|mask| (prompt(mask) * per_prompt + mask % per_prompt) as i64).collect();
        let rows = upload(&Tensor::from_slice(&prompts), decoder.device);
        let low_res = decoder.mask_decoder.masks(&decoded.select(&rows), upsampler.positions()).flatten(0, 1);
        if decoder.device.is_cuda() {
            let low_res = low_res.index_select(0, &upload(&Tensor::from_slice(&places), decoder.device));
            let (bits, stability) = upsampler.draw_on_device(&low_res, offset);
            drawn.push(Masks::OnDevice { bits, stability });
        } else {
            let size = low_res.numel() / low_res.size()[0] as usize;
            let (low_res, taps) = (floats(&low_res), &upsampler.taps);
            let draw = |place: &i64| taps.draw(&low_res[*place as usize * size..][..size], offset as f32);
            drawn.push(Masks::Here(places.par_iter().map(draw).collect()));
        }
    }
}

/// The masks themselves, in order.
fn read(masks: Vec<Masks>, (height, width): (usize, usize)) -> anyhow::Result<Vec<Drawn>> {
    let mut all = Vec::new();
    for masks in masks {
        match masks {
            Masks::Here(drawn) => all.extend(drawn),
            Masks::OnDevice { bits, stability } => {
                let stability = Vec::<f32>::try_from(stability)?;
                let bits = Vec::<u8>::try_from(bits.view([-1]))?;
                let mask = |bits: &[u8]| BitMask::of_packed(height, width, bits);
                let masks = bits.chunks_exact(bits.len() / stability.len()).map(mask);
                all.extend(masks.zip(stability).map(|(mask, stability)| Drawn { mask, stability }));
            }
        }
    }
    Ok(all)
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

/// Non-maximum suppression by box; the best score first.
fn suppress(found: Vec<Segment>, scores: &[f32], threshold: f64) -> Vec<Segment> {
    let boxes: Vec<BoxXyxy> = found.iter().map(|segment| segment.bounds).collect();
    let mut found: Vec<Option<Segment>> = found.into_iter().map(Some).collect();
    nms(&boxes, scores, threshold).into_iter().filter_map(|i| found[i].take()).collect()
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
    suppress(cleaned, &scores, options.box_nms_thresh.max(options.crop_nms_thresh))
}

/// The prompts, x and y in the 1024 frame: the centres of a square grid over the image, row by row.
fn grid(height: usize, width: usize, points_per_side: u32) -> Vec<[f32; 2]> {
    let (inner_h, inner_w) = resized_size(height, width);
    let n = points_per_side;
    let centre = |i: u32| (f64::from(i) + 0.5) / f64::from(n);
    let point = |i: u32| [(centre(i % n) * inner_w as f64) as f32, (centre(i / n) * inner_h as f64) as f32];
    (0..n * n).map(point).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
