//! CAM-based Prompting Module: peaks of the CAM prompt SAM, and its masks become the map that teaches the CAM
//! (paper, section 3.3), with the encoder run once an image: peaks go from the window to the full image, masks back.

use tch::{Kind, Tensor};

use super::classifier::Classifier;
use super::sam::{IMAGE_SIZE, SamDecoder, resized_size};
use crate::data::augment::Transform;
use crate::vision::IGNORE;
use crate::vision::peaks::find_peaks;

/// How certain SAM is of a pixel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SamCertainty {
    Logit,
    Sigmoid,
    Iou,
    One,
}

#[derive(Clone, Debug)]
pub struct CpmOptions {
    pub tau: f64,
    pub scales: Vec<f64>,
    pub min_distance: usize,
    /// Which of SAM's three masks.
    pub mask_index: i64,
    pub alpha_sam: SamCertainty,
    /// The mean of the CAM over the mask weighs it; else all masks weigh the same.
    pub alpha_cam_mean: bool,
    pub ignore_padding: bool,
}

/// One image of a batch, as CPM sees it.
#[derive(Debug)]
pub struct CpmImage {
    /// Channels of its classes, from 0.
    pub channels: Vec<i64>,
    pub transform: Transform,
    /// `(1, 256, 64, 64)` of the full image.
    pub embedding: Tensor,
}

/// The pseudo map of a batch: `(B, H, W)` int64: 0 background, channel + 1, 255 ignored.
///
/// - `crops`: `(B, 3, H, W)` normalised
pub fn pseudo_map(
    classifier: &Classifier,
    decoder: &SamDecoder,
    crops: &Tensor,
    images: &[CpmImage],
    options: &CpmOptions,
) -> anyhow::Result<Tensor> {
    tch::no_grad(|| {
        let cams = multi_scale_cam(classifier, crops, &options.scales); // (B, C, H, W)
        let mut prompts = Vec::new();
        for (i, image) in images.iter().enumerate() {
            for &channel in &image.channels {
                let plane = Vec::<f32>::try_from(cams.get(i as i64).get(channel).view([-1]))?;
                let crop = image.transform.crop;
                let mut peaks = find_peaks(&plane, crop, options.tau as f32, options.min_distance);
                peaks.retain(|peak| !image.transform.is_padding(peak.y, peak.x));
                let points: Vec<[f32; 2]> =
                    peaks.iter().map(|peak| frame_point(&image.transform, peak.y, peak.x)).collect();
                if !points.is_empty() {
                    prompts.push((i, channel, points));
                }
            }
        }
        let maps = decode(decoder, images, &prompts, options)?;
        let mut out = Vec::new();
        for (i, image) in images.iter().enumerate() {
            let crop = image.transform.crop as i64;
            let size = [crop, crop];
            let device = crops.device();
            let mut best = Tensor::full(size, f64::NEG_INFINITY, (Kind::Float, device));
            let mut label = Tensor::zeros(size, (Kind::Int64, device));
            for ((_, channel, _), (logits, iou)) in prompts.iter().zip(&maps).filter(|((of, _, _), _)| *of == i) {
                let mask = logits.gt(0.0);
                let cam = cams.get(i as i64).get(*channel);
                let area = mask.sum(Kind::Float).clamp_min(1.0);
                let certainty = match options.alpha_sam {
                    SamCertainty::Logit => logits.shallow_clone(),
                    SamCertainty::Sigmoid => logits.sigmoid(),
                    SamCertainty::Iou => Tensor::full(size, *iou, (Kind::Float, device)),
                    SamCertainty::One => Tensor::ones(size, (Kind::Float, device)),
                };
                let confidence = match options.alpha_cam_mean {
                    true => certainty * ((cam * &mask).sum(Kind::Float) / area),
                    false => certainty,
                };
                let wins = mask.logical_and(&confidence.gt_tensor(&best));
                best = confidence.where_self(&wins, &best);
                label = label.masked_fill(&wins, channel + 1);
            }
            if options.ignore_padding {
                let side = image.transform.crop;
                let padding: Vec<bool> =
                    (0..side * side).map(|i| image.transform.is_padding(i / side, i % side)).collect();
                label =
                    label.masked_fill(&Tensor::from_slice(&padding).view(size).to_device(device), i64::from(IGNORE));
            }
            out.push(label);
        }
        Ok(Tensor::stack(&out, 0))
    })
}

/// `(B, C, H, W)` in 0..1: the sum over scales, each class by its own maximum. Upsampled before the ReLU, as the
/// reference does here (and not in the loss).
fn multi_scale_cam(classifier: &Classifier, crops: &Tensor, scales: &[f64]) -> Tensor {
    let size = crops.size();
    let (height, width) = (size[2], size[3]);
    let mut sum: Option<Tensor> = None;
    for &scale in scales {
        let side = |n: i64| ((n as f64 * scale).round() as i64).max(1);
        let scaled = match side(height) == height {
            true => crops.shallow_clone(),
            false => crops.upsample_bilinear2d([side(height), side(width)], true, None, None),
        };
        let cam = classifier.forward(&scaled).cam.upsample_bilinear2d([height, width], false, None, None).relu();
        sum = Some(sum.map_or_else(|| cam.shallow_clone(), |sum| sum + &cam));
    }
    let sum = sum.unwrap_or_else(|| crops.zeros_like());
    let max = sum.amax([2i64, 3].as_slice(), true);
    sum / (max + 1e-5)
}

/// A pixel of the window as a point of the 1024 frame. The prompt encoder adds half a pixel, so this takes it off.
fn frame_point(transform: &Transform, y: usize, x: usize) -> [f32; 2] {
    let (y, x) = transform.crop_to_image(y as f64 + 0.5, x as f64 + 0.5);
    let (height, width) = transform.image;
    let (inner_h, inner_w) = resized_size(height, width);
    [(x * inner_w as f64 / width as f64 - 0.5) as f32, (y * inner_h as f64 / height as f64 - 0.5) as f32]
}

/// For each prompt its logits in the window `(H, W)` and its predicted IoU.
fn decode(
    decoder: &SamDecoder,
    images: &[CpmImage],
    prompts: &[(usize, i64, Vec<[f32; 2]>)],
    options: &CpmOptions,
) -> anyhow::Result<Vec<(Tensor, f64)>> {
    let Some(most) = prompts.iter().map(|(_, _, points)| points.len()).max() else { return Ok(Vec::new()) };
    let n = prompts.len() as i64;
    let pad = |points: &Vec<[f32; 2]>| {
        let mut points = points.clone();
        points.resize(most, [0.0; 2]);
        points
    };
    let points: Vec<[f32; 2]> = prompts.iter().flat_map(|(_, _, points)| pad(points)).collect();
    let label =
        |points: &Vec<[f32; 2]>| (0..most).map(|i| if i < points.len() { 1i64 } else { -1 }).collect::<Vec<_>>();
    let labels: Vec<i64> = prompts.iter().flat_map(|(_, _, points)| label(points)).collect();
    let points = Tensor::from_slice2(&points).view([n, most as i64, 2]);
    let labels = Tensor::from_slice(&labels).view([n, most as i64]);
    let embeddings: Vec<&Tensor> = prompts.iter().map(|(i, _, _)| &images[*i].embedding).collect();
    let masks = decoder.decode_points(&Tensor::cat(&embeddings, 0), &points, &labels);
    let one = |(row, (i, _, _)): (usize, &(usize, i64, Vec<[f32; 2]>))| {
        let row = row as i64;
        let low_res = masks.low_res.narrow(0, row, 1).narrow(1, options.mask_index, 1);
        let grid = sampling_grid(&images[*i].transform).to_device(low_res.device());
        // Bilinear, border values outside, pixel centres at half: one resampling from logits to window.
        let logits = low_res.grid_sampler(&grid, 0, 1, false).squeeze_dim(0).squeeze_dim(0);
        (logits, masks.iou.double_value(&[row, options.mask_index]))
    };
    Ok(prompts.iter().enumerate().map(one).collect())
}

/// Where each pixel of the window lies in the 1024 frame, -1 to 1: `(1, H, W, 2)` x, y.
fn sampling_grid(transform: &Transform) -> Tensor {
    let side = transform.crop;
    let (height, width) = transform.image;
    let (inner_h, inner_w) = resized_size(height, width);
    let mut places = Vec::with_capacity(side * side * 2);
    for y in 0..side {
        for x in 0..side {
            let (y, x) = transform.crop_to_image(y as f64 + 0.5, x as f64 + 0.5);
            let place = |at: f64, inner: usize, full: usize| at * inner as f64 / full as f64 / IMAGE_SIZE as f64;
            places.push((place(x, inner_w, width) * 2.0 - 1.0) as f32);
            places.push((place(y, inner_h, height) * 2.0 - 1.0) as f32);
        }
    }
    Tensor::from_slice(&places).view([1, side as i64, side as i64, 2])
}
