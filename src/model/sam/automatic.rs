//! Segment-everything (reference: `segment_anything/automatic_mask_generator.py`), over the whole image.
//!
//! Masks below the IoU threshold are dropped before they are drawn, and those left are scored at the image's own
//! resolution, as the reference does.

use tch::{Kind, Tensor};

use super::{MaskUpsampler, SamDecoder, resized_size};
use crate::vision::se_map::{BoxXyxy, Segment, nms};

/// Prompts decoded together on a GPU.
const GPU_BATCH: usize = 64;
/// On a CPU: what a batch makes stays in its caches and off the page tables (twice as fast as 64 at a time).
const CPU_BATCH: usize = 2;
/// Pixels of masks drawn at full size together: sixteen masks of a photograph, one of a poster.
const DRAW_PIXELS: i64 = 4_000_000;

/// Parameters of SamAutomaticMaskGenerator.
#[derive(Clone, Copy, Debug)]
pub struct AutomaticOptions {
    pub points_per_side: u32,
    pub pred_iou_thresh: f64,
    pub stability_score_thresh: f64,
    pub stability_score_offset: f64,
    pub box_nms_thresh: f64,
}

/// All segments of an image, the highest predicted IoU first.
///
/// - `embedding`: `(1, 256, 64, 64)`
pub fn segment_everything(
    decoder: &SamDecoder,
    embedding: &Tensor,
    (height, width): (usize, usize),
    options: &AutomaticOptions,
) -> anyhow::Result<Vec<Segment>> {
    tch::no_grad(|| {
        let upsampler = MaskUpsampler::new((height, width), embedding.device());
        let mut found = Vec::new();
        let batch = if embedding.device().is_cuda() { GPU_BATCH } else { CPU_BATCH };
        for points in grid(height, width, options.points_per_side).chunks(batch) {
            let n = points.len() as i64;
            let points = Tensor::from_slice2(points).view([n, 1, 2]);
            let decoded = decoder.tokens(embedding, &points, &Tensor::ones([n, 1], (Kind::Int64, tch::Device::Cpu)));
            let good = decoded.iou.gt(options.pred_iou_thresh); // (N, 3)
            let rows = good.any_dim(1, false).nonzero().view([-1]);
            if rows.numel() == 0 {
                continue;
            }
            let decoded = decoded.select(&rows);
            let good = good.index_select(0, &rows).view([-1]).nonzero().view([-1]);
            let low_res =
                decoder.mask_decoder.masks(&decoded, upsampler.positions()).flatten(0, 1).index_select(0, &good);
            let iou = decoded.iou.view([-1]).index_select(0, &good);
            draw(&low_res, &iou, &upsampler, options, &mut found)?;
        }
        let boxes: Vec<BoxXyxy> = found.iter().map(|segment| segment.bounds).collect();
        let scores: Vec<f32> = found.iter().map(|segment| segment.predicted_iou).collect();
        let keep = nms(&boxes, &scores, options.box_nms_thresh);
        let mut found: Vec<Option<Segment>> = found.into_iter().map(Some).collect();
        Ok(keep.into_iter().filter_map(|i| found[i].take()).collect())
    })
}

/// Draws masks at the size of the image and keeps the stable ones.
///
/// - `low_res`: `(M, R, C)`, `iou`: `(M)`
fn draw(
    low_res: &Tensor,
    iou: &Tensor,
    upsampler: &MaskUpsampler,
    options: &AutomaticOptions,
    found: &mut Vec<Segment>,
) -> anyhow::Result<()> {
    let mut start = 0;
    let together = (DRAW_PIXELS / upsampler.pixels().max(1)).clamp(1, 64);
    for part in low_res.split(together, 0) {
        let n = part.size()[0];
        let ious = Vec::<f32>::try_from(iou.narrow(0, start, n))?;
        start += n;
        let logits = upsampler.forward(&part); // (n, h, w)
        let width = logits.size()[2] as usize;
        let count = |above: f64| logits.gt(above).sum_dim_intlist([1i64, 2].as_slice(), false, Kind::Float);
        let offset = options.stability_score_offset;
        let stability = Vec::<f32>::try_from(count(offset) / count(-offset))?;
        for (i, (&predicted_iou, &stability)) in ious.iter().zip(&stability).enumerate() {
            // NaN, an empty mask, is not stable.
            if f64::from(stability) >= options.stability_score_thresh {
                let mask = logits.get(i as i64).gt(0.0).to_kind(Kind::Uint8).view([-1]);
                let mask = Vec::<u8>::try_from(mask)?;
                found.push(Segment::new(mask, width, predicted_iou, stability));
            }
        }
    }
    Ok(())
}

/// The prompts, x and y in the 1024 frame: the centres of a square grid over the image, row by row.
fn grid(height: usize, width: usize, points_per_side: u32) -> Vec<[f32; 2]> {
    let (inner_h, inner_w) = resized_size(height, width);
    let n = points_per_side;
    let centre = |i: u32| (f64::from(i) + 0.5) / f64::from(n);
    let point = |i: u32| [(centre(i % n) * inner_w as f64) as f32, (centre(i / n) * inner_h as f64) as f32];
    (0..n * n).map(point).collect()
}
