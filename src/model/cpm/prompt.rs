//! From the CAM of a class to a prompt, and from prompts to SAM's masks.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use tch::{Device, Kind, Tensor};

use super::view::{Pointing, View};
use crate::model::sam::SamDecoder;
use crate::model::sam::mask_decoder::MaskChoice;
use crate::model::sam::prompt_encoder::Prompts;
use crate::vision::peaks::{PeakRules, find_peaks};

/// What SAM is prompted with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PromptKind {
    /// All peaks of a class, in one prompt.
    Points(PeakRules),
    /// The box around the pixels of at least `tau`.
    Box,
    /// The CAM itself as a mask.
    Mask,
}

/// Logits of a mask prompt for a CAM that differs from `tau` by 1: SAM's own logits reach some 20.
const LOGIT_SCALE: f64 = 20.0;

#[derive(Clone, Copy, Debug)]
pub struct PromptOptions {
    pub kind: PromptKind,
    /// Pixels with a CAM below it prompt nothing.
    pub tau: f64,
    pub pointing: Pointing,
    /// Three masks a prompt, or one.
    pub masks: MaskChoice,
}

/// One class in one image.
pub(super) struct Prompt {
    /// Place in the batch.
    pub(super) image: usize,
    pub(super) channel: i64,
    pub(super) shape: Shape,
}

/// In the frame.
pub(super) enum Shape {
    /// x, y
    Points(Vec<[f32; 2]>),
    /// x0, y0, x1, y1
    Box([f32; 4]),
    /// `(256, 256)` logits
    Mask(Tensor),
}

/// What SAM answers to a prompt.
#[derive(Debug)]
pub struct Answer {
    /// Place in the batch.
    pub image: usize,
    pub channel: i64,
    /// `(M, 256, 256)` logits over the frame.
    pub low_res: Tensor,
    /// Predicted IoU of each mask.
    pub iou: Vec<f32>,
}

/// The prompt that a CAM gives; `None` where it gives none.
///
/// - `plane`: the CAM of the class, `(H, W)` in 0..1
/// - `padding`: pixels of the window in which nothing is
pub(super) fn shape(mut plane: Vec<f32>, view: &View, padding: &[bool], options: &PromptOptions) -> Option<Shape> {
    // Emptied before the search, so that no peak of the padding hides one of the image.
    plane.iter_mut().zip(padding).filter(|(_, padding)| **padding).for_each(|(score, _)| *score = 0.0);
    let width = view.size()[1] as usize;
    let (tau, point) = (options.tau as f32, |y, x| view.point(y, x, options.pointing));
    let above = || (0..plane.len()).filter(|&at| plane[at] > 0.0 && plane[at] >= tau);
    match options.kind {
        PromptKind::Points(rules) => {
            let peaks = find_peaks(&plane, width, tau, &rules);
            let points: Vec<_> = peaks.iter().map(|peak| point(peak.y, peak.x)).collect();
            (!points.is_empty()).then_some(Shape::Points(points))
        }
        PromptKind::Box => {
            let corners = above().map(|at| (at / width, at % width)).map(|(y, x)| [y, x, y, x]);
            let around = corners.reduce(|a, b| [a[0].min(b[0]), a[1].min(b[1]), a[2].max(b[2]), a[3].max(b[3])]);
            around.map(|[y0, x0, y1, x1]| {
                // Mirrored, the right comes before the left.
                let ([ax, ay], [bx, by]) = (point(y0, x0), point(y1, x1));
                Shape::Box([ax.min(bx), ay.min(by), ax.max(bx), ay.max(by)])
            })
        }
        PromptKind::Mask => above().next().map(|_| {
            let cam = Tensor::from_slice(&plane).view(view.size());
            Shape::Mask((view.in_frame(&cam) - options.tau) * LOGIT_SCALE)
        }),
    }
}

/// Points of prompts that share a call on a GPU, with the gaps: an attention of so many is 130 MB in bf16.
const POINTS_TOGETHER: usize = 2048;

/// What shares a call, by places in the list.
///
/// On a GPU prompts of any length do, the shorter ones with gaps; on a CPU, where a gap costs as much as a point, only those
/// of equally many.
fn groups(n_points: &[usize], is_on_gpu: bool) -> Vec<Vec<usize>> {
    let mut order = Vec::from_iter(0..n_points.len());
    order.sort_by_key(|&at| Reverse(n_points[at]));
    let has_room = |group: &[usize], at| match (is_on_gpu, n_points[group[0]]) {
        (true, longest) => (group.len() + 1) * longest <= POINTS_TOGETHER,
        (false, of_all) => n_points[at] == of_all,
    };
    let mut groups: Vec<Vec<usize>> = Vec::new();
    for at in order {
        match groups.last_mut() {
            Some(group) if has_room(group, at) => group.push(at),
            _ => groups.push(vec![at]),
        }
    }
    groups
}

/// SAM's answers, in the order of the prompts.
///
/// - `embeddings`: of each image, `(1, 256, 64, 64)`
pub(super) fn decode(
    decoder: &SamDecoder,
    embeddings: &[&Tensor],
    prompts: &[Prompt],
    choice: MaskChoice,
) -> anyhow::Result<Vec<Answer>> {
    let n_points = |prompt: &Prompt| if let Shape::Points(points) = &prompt.shape { points.len() } else { 0 };
    let n_points: Vec<usize> = prompts.iter().map(n_points).collect();
    let mut answers: BTreeMap<usize, Answer> = BTreeMap::new();
    for members in groups(&n_points, decoder.is_on_gpu()) {
        let embeddings: Vec<&Tensor> = members.iter().map(|&at| embeddings[prompts[at].image]).collect();
        let group = together(members.iter().map(|&at| &prompts[at].shape));
        let masks = decoder.decode(&Tensor::cat(&embeddings, 0), &group, choice);
        let iou = Vec::<f32>::try_from(masks.iou.flatten(0, -1))?;
        let iou = iou.chunks_exact(iou.len() / members.len());
        for ((row, &at), iou) in (0..).zip(&members).zip(iou) {
            let (low_res, iou) = (masks.low_res.get(row), iou.to_vec());
            let Prompt { image, channel, .. } = prompts[at];
            answers.insert(at, Answer { image, channel, low_res, iou });
        }
    }
    Ok(answers.into_values().collect())
}

/// Shapes of one kind.
fn together<'a>(shapes: impl Iterator<Item = &'a Shape>) -> Prompts {
    let (mut points, mut boxes, mut masks) = (Vec::new(), Vec::new(), Vec::new());
    for shape in shapes {
        match shape {
            Shape::Points(of_one) => points.push(of_one),
            Shape::Box(of_one) => boxes.push(Tensor::from_slice(of_one)),
            Shape::Mask(of_one) => masks.push(of_one.unsqueeze(0)),
        }
    }
    let longest = points.iter().map(|of_one| of_one.len()).max().unwrap_or(0);
    let filled = |of_one: &'a Vec<[f32; 2]>| (0..longest).map(|i| of_one.get(i).copied());
    let places: Vec<Option<[f32; 2]>> = points.iter().flat_map(|&of_one| filled(of_one)).collect();
    let values: Vec<f32> = places.iter().flat_map(|at| at.unwrap_or_default()).collect();
    let is_gap: Vec<bool> = places.iter().map(Option::is_none).collect();
    let size = [points.len() as i64, longest as i64];
    let stack = |parts: Vec<Tensor>| (!parts.is_empty()).then(|| Tensor::stack(&parts, 0));
    Prompts {
        points: (!points.is_empty()).then(|| {
            let labels = Tensor::ones(size, (Kind::Int64, Device::Cpu));
            (Tensor::from_slice(&values).view([size[0], size[1], 2]), labels)
        }),
        is_gap: is_gap.contains(&true).then(|| Tensor::from_slice(&is_gap).view(size)),
        boxes: stack(boxes),
        masks: stack(masks),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Compute;
    use crate::model::weights::Weights;

    fn decoder() -> SamDecoder {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/pipelines/weights/mobile_sam.f16.safetensors");
        let weights = Weights::parse(std::fs::read(path).unwrap()).unwrap();
        SamDecoder::load(&weights, Device::Cpu, Compute::F32).unwrap()
    }

    fn wave(n: usize) -> Tensor {
        let wave = (Tensor::arange(256 * 64 * 64, (Kind::Float, Device::Cpu)) * 1e-3 * n as f64).sin();
        wave.view([1, 256, 64, 64])
    }

    fn worst(a: &Tensor, b: &Tensor) -> f64 {
        f64::try_from((a - b).abs().max()).unwrap()
    }

    /// What else is in the batch changes nothing of a mask but rounding.
    #[test]
    fn a_mask_does_not_depend_on_its_batch() {
        let (decoder, images) = (decoder(), [wave(1), wave(2)]);
        let embeddings: Vec<&Tensor> = images.iter().collect();
        let prompt = |image, n: usize| Prompt {
            image,
            channel: n as i64,
            shape: Shape::Points((0..n).map(|i| [300.0 + 90.0 * i as f32, 400.0]).collect()),
        };
        let choice = MaskChoice::Multimask;
        let alone = decode(&decoder, &embeddings, &[prompt(0, 1)], choice).unwrap();
        let among = [prompt(1, 3), prompt(0, 1), prompt(1, 1), prompt(0, 6)];
        let among = decode(&decoder, &embeddings, &among, choice).unwrap();
        let of: Vec<(usize, i64)> = among.iter().map(|answer| (answer.image, answer.channel)).collect();
        assert_eq!(of, [(1, 3), (0, 1), (1, 1), (0, 6)]);
        let far = worst(&alone[0].low_res, &among[1].low_res);
        assert!(far < 1e-3 && (alone[0].iou[2] - among[1].iou[2]).abs() < 1e-4, "{far}");

        // As on a GPU: with gaps up to the longest it gives the same.
        let six = Shape::Points((0..6).map(|i| [100.0 + 90.0 * i as f32, 500.0]).collect());
        let shapes = [&Shape::Points(vec![[300.0, 400.0]]), &six];
        let gaps = decoder.decode(&Tensor::cat(&[&images[0], &images[1]], 0), &together(shapes.into_iter()), choice);
        assert!(worst(&alone[0].low_res, &gaps.low_res.get(0)) < 1e-3);

        // Why there are groups on a CPU: with SAM's own padding the same prompt gives another mask.
        let mut points = vec![[0.0f32; 2]; 6];
        points[0] = [300.0, 400.0];
        let points = Tensor::from_slice2(&points).view([1, 6, 2]);
        let labels = Tensor::from_slice(&[1i64, -1, -1, -1, -1, -1]).view([1, 6]);
        let padded = decoder.decode_points(&images[0], &points, &labels).low_res.get(0);
        assert!(worst(&alone[0].low_res, &padded) > 0.1);
    }

    #[test]
    fn what_shares_a_call() {
        let n_points = [3, 70, 1, 3, 40, 1];
        assert_eq!(groups(&n_points, false), [vec![1], vec![4], vec![0, 3], vec![2, 5]]);
        assert_eq!(groups(&n_points, true), [vec![1, 4, 0, 3, 2, 5]]);
        // As many as there is room for.
        assert_eq!(groups(&[1000, 2, 900, 3], true), [vec![0, 2], vec![3, 1]]);
        assert_eq!(groups(&[1500, 1500, 1], true), [vec![0], vec![1], vec![2]]);
        assert_eq!(groups(&[1500, 1500, 1], false), [vec![0, 1], vec![2]]);
        assert_eq!(groups(&[0, 0], true), [vec![0, 1]]);
        assert!(groups(&[], true).is_empty());
    }

    /// A CAM of two squares; `tau` keeps one of them or both.
    #[test]
    fn shapes_of_a_cam() {
        let mut cam = vec![0.0f32; 64 * 64];
        (10..20).for_each(|y| (8..16).for_each(|x| cam[y * 64 + x] = 0.9));
        (40..50).for_each(|y| (50..60).for_each(|x| cam[y * 64 + x] = 0.6));
        let view = View::Alone { side: 64 };
        let mut padding = vec![false; 64 * 64];
        let pointing = Pointing { by_height: false, centre: false };
        let of = |kind, tau, padding: &[bool]| {
            let options = PromptOptions { kind, tau, pointing, masks: MaskChoice::Multimask };
            shape(cam.clone(), &view, padding, &options)
        };
        let corners = |tau, padding: &[bool]| match of(PromptKind::Box, tau, padding) {
            Some(Shape::Box(corners)) => Some(corners),
            _ => None,
        };
        assert_eq!(corners(0.8, &padding), Some([128.0, 160.0, 240.0, 304.0]));
        assert_eq!(corners(0.5, &padding), Some([128.0, 160.0, 944.0, 784.0]));
        assert_eq!(corners(0.95, &padding), None);

        let Some(Shape::Mask(logits)) = of(PromptKind::Mask, 0.5, &padding) else { panic!("no mask") };
        let at = |y: i64, x: i64| logits.double_value(&[y, x]);
        assert!((at(60, 48) - 8.0).abs() < 1e-3 && (at(180, 220) - 2.0).abs() < 1e-3 && (at(0, 0) + 10.0).abs() < 1e-3);
        assert!(of(PromptKind::Mask, 0.95, &padding).is_none());

        // What lies in the padding prompts nothing.
        padding[..30 * 64].fill(true);
        assert_eq!(corners(0.5, &padding), Some([800.0, 640.0, 944.0, 784.0]));
    }

    /// Each kind of prompt, and each number of masks, gives masks of its own.
    #[test]
    fn kinds_of_prompts_give_other_masks() {
        let (decoder, image) = (decoder(), wave(1));
        let answer = |shape, choice| {
            let prompt = Prompt { image: 0, channel: 4, shape };
            decode(&decoder, &[&image], &[prompt], choice).unwrap().remove(0)
        };
        let logits = Tensor::full([256, 256], -10.0, (Kind::Float, Device::Cpu));
        let _ = logits.narrow(0, 60, 60).narrow(1, 60, 60).fill_(10.0);
        let three =
            [Shape::Points(vec![[360.0, 360.0]]), Shape::Box([240.0, 240.0, 480.0, 480.0]), Shape::Mask(logits)]
                .map(|shape| answer(shape, MaskChoice::Multimask));
        for (a, b) in [(0, 1), (0, 2), (1, 2)] {
            assert!(worst(&three[a].low_res, &three[b].low_res) > 0.1);
        }
        let one = answer(Shape::Points(vec![[360.0, 360.0]]), MaskChoice::Single);
        assert_eq!((one.low_res.size(), one.iou.len(), one.channel), (vec![1, 256, 256], 1, 4));
        assert_eq!((three[0].low_res.size(), three[0].iou.len()), (vec![3, 256, 256], 3));
    }
}
