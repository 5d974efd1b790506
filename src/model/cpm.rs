//! CAM-based Prompting Module: peaks of the CAM prompt SAM, and its masks become the map that teaches the CAM
//! (paper, section 3.3), with the encoder run once an image: peaks go from the window to the full image, masks back.

use std::collections::BTreeMap;

use tch::{Device, Kind, Tensor};

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

/// The peaks of one class in one image.
struct Prompt {
    /// Place in the batch.
    image: usize,
    channel: i64,
    /// x, y in the 1024 frame.
    points: Vec<[f32; 2]>,
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
        let padding: Vec<Vec<bool>> = images.iter().map(|image| padding_of(&image.transform)).collect();
        let mut prompts = Vec::new();
        for (i, image) in images.iter().enumerate() {
            for &channel in &image.channels {
                let mut plane = Vec::<f32>::try_from(cams.get(i as i64).get(channel).view([-1]))?;
                // Emptied before the search, so that no peak of the padding hides one of the image.
                plane.iter_mut().zip(&padding[i]).filter(|(_, padding)| **padding).for_each(|(score, _)| *score = 0.0);
                let peaks = find_peaks(&plane, image.transform.crop, options.tau as f32, options.min_distance);
                let points: Vec<[f32; 2]> =
                    peaks.iter().map(|peak| frame_point(&image.transform, peak.y, peak.x)).collect();
                if !points.is_empty() {
                    prompts.push(Prompt { image: i, channel, points });
                }
            }
        }
        let maps = decode(decoder, images, &prompts, options)?;
        let mut out = Vec::new();
        for (i, image) in images.iter().enumerate() {
            let crop = image.transform.crop as i64;
            let size = [crop, crop];
            let device = crops.device();
            let padding = Tensor::from_slice(&padding[i]).view(size).to_device(device);
            let mut best = Tensor::full(size, f64::NEG_INFINITY, (Kind::Float, device));
            let mut label = Tensor::zeros(size, (Kind::Int64, device));
            for (prompt, (logits, iou)) in prompts.iter().zip(&maps).filter(|(prompt, _)| prompt.image == i) {
                let mask = logits.gt(0.0).logical_and(&padding.logical_not());
                let cam = cams.get(i as i64).get(prompt.channel);
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
                label = label.masked_fill(&wins, prompt.channel + 1);
            }
            if options.ignore_padding {
                label = label.masked_fill(&padding, i64::from(IGNORE));
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
        let cam = classifier.infer(&scaled).upsample_bilinear2d([height, width], false, None, None).relu();
        sum = Some(sum.map_or_else(|| cam.shallow_clone(), |sum| sum + &cam));
    }
    let sum = sum.unwrap_or_else(|| crops.zeros_like());
    let max = sum.amax([2i64, 3].as_slice(), true);
    sum / (max + 1e-5)
}

/// Which pixels of the window lie outside the image, row-major.
fn padding_of(transform: &Transform) -> Vec<bool> {
    let side = transform.crop;
    (0..side * side).map(|i| transform.is_padding(i / side, i % side)).collect()
}

/// A pixel of the window as a point of the 1024 frame. The prompt encoder adds half a pixel, so this takes it off.
fn frame_point(transform: &Transform, y: usize, x: usize) -> [f32; 2] {
    let (y, x) = transform.crop_to_image(y as f64 + 0.5, x as f64 + 0.5);
    let (height, width) = transform.image;
    let (inner_h, inner_w) = resized_size(height, width);
    [(x * inner_w as f64 / width as f64 - 0.5) as f32, (y * inner_h as f64 / height as f64 - 0.5) as f32]
}

/// For each prompt its logits in the window `(H, W)` and its predicted IoU.
///
/// Only prompts of equally many points share a call: the decoder attends to padding points as well, and four of them
/// turn a mask into another one, so a mask would depend on what else is in the batch.
fn decode(
    decoder: &SamDecoder,
    images: &[CpmImage],
    prompts: &[Prompt],
    options: &CpmOptions,
) -> anyhow::Result<Vec<(Tensor, f64)>> {
    let mut groups: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (at, prompt) in prompts.iter().enumerate() {
        groups.entry(prompt.points.len()).or_default().push(at);
    }
    let mut out: BTreeMap<usize, (Tensor, f64)> = BTreeMap::new();
    for (n_points, members) in groups {
        let size = [members.len() as i64, n_points as i64];
        let points: Vec<[f32; 2]> = members.iter().flat_map(|&at| &prompts[at].points).copied().collect();
        let points = Tensor::from_slice2(&points).view([size[0], size[1], 2]);
        let labels = Tensor::ones(size, (Kind::Int64, Device::Cpu));
        let embeddings: Vec<&Tensor> = members.iter().map(|&at| &images[prompts[at].image].embedding).collect();
        let masks = decoder.decode_points(&Tensor::cat(&embeddings, 0), &points, &labels);
        for (row, &at) in members.iter().enumerate() {
            let low_res = masks.low_res.narrow(0, row as i64, 1).narrow(1, options.mask_index, 1);
            let logits = to_window(&low_res, &images[prompts[at].image].transform);
            out.insert(at, (logits, masks.iou.double_value(&[row as i64, options.mask_index])));
        }
    }
    Ok(out.into_values().collect())
}

/// Low-resolution logits `(1, 1, 256, 256)` in the window, `(H, W)`: one bilinear resampling, pixel centres at half.
fn to_window(low_res: &Tensor, transform: &Transform) -> Tensor {
    let grid = sampling_grid(transform).to_device(low_res.device());
    low_res.grid_sampler(&grid, 0, 1, false).squeeze_dim(0).squeeze_dim(0)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::rng::{integer, stream};
    use crate::model::Compute;
    use crate::model::weights::Weights;
    use crate::vision::Grid;

    fn transform(seed: u64, image: (usize, usize)) -> Transform {
        Transform::sample_long(&mut stream(seed, 0, "x", "augment"), image, (40, 120), 64)
    }

    /// A half-plane of the image, painted in SAM's frame, lands where the same half-plane of the image's own pixels
    /// does, but for a rim of one pixel; mirrored, cut and padded as the transform says.
    #[test]
    fn a_mask_comes_forward_where_its_image_does() {
        for (seed, image) in (0..60).zip([(90, 60), (60, 90), (75, 75)].into_iter().cycle()) {
            let transform = transform(seed, image);
            let (_, inner_w) = resized_size(image.0, image.1);
            let split = image.1 as f64 * 0.4;
            let low_res: Vec<f32> = (0..256 * 256)
                .map(|i| (((i % 256) as f64 + 0.5) * 4.0 * image.1 as f64 / inner_w as f64 - split) as f32)
                .collect();
            let logits = to_window(&Tensor::from_slice(&low_res).view([1, 1, 256, 256]), &transform);
            let logits = Vec::<f32>::try_from(logits.view([-1])).unwrap();
            let columns =
                Grid::new(image.0, image.1, (0..image.0 * image.1).map(|i| (i % image.1) as f64 + 0.5).collect());
            let columns = transform.apply_grid(&columns, f64::NAN);
            for (i, (&logit, &column)) in logits.iter().zip(&columns.data).enumerate() {
                // Nearest neighbour is off by at most half a pixel of the image or of the window.
                assert!(column.is_nan() || (f64::from(logit) - (column - split)).abs() <= 1.3, "{transform:?} {i}");
            }
        }
    }

    /// A pixel's prompt lies in the frame where the mask of that pixel is read from.
    #[test]
    fn points_and_masks_share_one_geometry() {
        for seed in 0..20 {
            let transform = transform(seed, (80, 50));
            let grid = Vec::<f32>::try_from(sampling_grid(&transform).view([-1])).unwrap();
            let mut rng = stream(seed, 0, "y", "pixel");
            let (y, x) = (integer(&mut rng, 0, 63) as usize, integer(&mut rng, 0, 63) as usize);
            let place = |axis: usize| (grid[(y * 64 + x) * 2 + axis] + 1.0) / 2.0 * IMAGE_SIZE as f32 - 0.5;
            let point = frame_point(&transform, y, x);
            assert!((point[0] - place(0)).abs() < 1e-2 && (point[1] - place(1)).abs() < 1e-2);
        }
    }

    /// What else is in the batch changes nothing of a mask but rounding.
    #[test]
    fn a_mask_does_not_depend_on_its_batch() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/pipelines/weights/mobile_sam.f16.safetensors");
        let weights = Weights::parse(std::fs::read(path).unwrap()).unwrap();
        let decoder = SamDecoder::load(&weights, Device::Cpu, Compute::F32).unwrap();
        let options = CpmOptions {
            tau: 0.5,
            scales: vec![1.0],
            min_distance: 20,
            mask_index: 2,
            alpha_sam: SamCertainty::Logit,
            alpha_cam_mean: true,
            ignore_padding: true,
        };
        let wave = |n: i64| (Tensor::arange(256 * 64 * 64, (Kind::Float, Device::Cpu)) * 1e-3 * n as f64).sin();
        let image = |n| CpmImage {
            channels: vec![0],
            transform: transform(n as u64, (60, 90)),
            embedding: wave(n).view([1, 256, 64, 64]),
        };
        let images = [image(1), image(2)];
        let prompt = |image, n: usize| Prompt {
            image,
            channel: 0,
            points: (0..n).map(|i| [300.0 + 90.0 * i as f32, 400.0]).collect(),
        };
        let alone = decode(&decoder, &images, &[prompt(0, 1)], &options).unwrap();
        let among = [prompt(1, 3), prompt(0, 1), prompt(1, 1), prompt(0, 6)];
        let among = decode(&decoder, &images, &among, &options).unwrap();
        assert_eq!(among.len(), 4);
        let worst = f64::try_from((&alone[0].0 - &among[1].0).abs().max()).unwrap();
        assert!(worst < 1e-3 && (alone[0].1 - among[1].1).abs() < 1e-4, "{worst}");

        // Why prompts are grouped: padded to the longest, the same prompt gives another mask.
        let mut points = vec![[0.0f32; 2]; 6];
        points[0] = [300.0, 400.0];
        let points = Tensor::from_slice2(&points).view([1, 6, 2]);
        let labels = Tensor::from_slice(&[1i64, -1, -1, -1, -1, -1]).view([1, 6]);
        let padded = decoder.decode_points(&images[0].embedding, &points, &labels).low_res.select(1, 2).unsqueeze(1);
        let padded = to_window(&padded, &images[0].transform);
        assert!(f64::try_from((&alone[0].0 - padded).abs().max()).unwrap() > 0.1);
    }
}
