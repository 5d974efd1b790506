//! From SAM's answers to one map: each pixel goes to the class with the highest confidence among the masks it lies in.

use tch::{Kind, Tensor};

use super::prompt::Answer;
use super::view::View;
use crate::model::memory::upload;
use crate::model::sam::IMAGE_SIZE;

/// How certain SAM is of a pixel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SamCertainty {
    Logit,
    Sigmoid,
    Iou,
    /// The part of the pixels above -1 that lies above 1: the stability score of segment-everything.
    Stability,
    One,
}

/// Which of the masks of a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MaskPick {
    Index(usize),
    /// The one with the highest predicted IoU.
    BestIou,
}

impl MaskPick {
    fn of(self, iou: &[f32]) -> usize {
        match self {
            Self::Index(index) => index,
            Self::BestIou => (0..iou.len()).reduce(|a, b| if iou[b] > iou[a] { b } else { a }).unwrap_or(0),
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub struct MapOptions {
    pub pick: MaskPick,
    /// Masks are drawn by way of the frame, logits straight in the window, and a pixel of negative confidence is
    /// background. Else both are drawn straight.
    pub two_paths: bool,
    pub alpha_sam: SamCertainty,
    /// The mean of the CAM over the mask weighs it; else all masks weigh the same.
    pub alpha_cam_mean: bool,
}

/// The map of each window, `(B, H, W)` int64: 0 in no mask, else channel + 1.
///
/// - `cams`: `(B, C, H, W)` in 0..1
/// - `views`: of the windows, which have one size
/// - `padding`: `(B, H, W)` bool, where masks end
pub fn label_maps(cams: &Tensor, answers: &[Answer], views: &[View], padding: &Tensor, options: &MapOptions) -> Tensor {
    let (device, n) = (cams.device(), answers.len() as i64);
    let best = Tensor::full(padding.size(), f64::NEG_INFINITY, (Kind::Float, device));
    let labels = Tensor::zeros(padding.size(), (Kind::Int64, device));
    if answers.is_empty() {
        return labels;
    }
    // Of each answer; where nothing else is said `(N, H, W)`.
    let images: Vec<i64> = answers.iter().map(|answer| answer.image as i64).collect();
    let images = upload(&Tensor::from_slice(&images), device);
    let of_answers = |x: &Tensor| x.index_select(0, &images);
    let per_answer = |values: &[f32]| upload(&Tensor::from_slice(values), device).view([n, 1, 1]);
    let picked: Vec<usize> = answers.iter().map(|answer| options.pick.of(&answer.iou)).collect();
    let low_res = answers.iter().zip(&picked).map(|(answer, &picked)| answer.low_res.get(picked as i64));
    let low_res = Tensor::stack(&low_res.collect::<Vec<_>>(), 0).unsqueeze(1); // (N, 1, 256, 256)
    let (grid, in_picture) = (of_answers(&View::grids_in_frame(views, device)), of_answers(&padding.logical_not()));
    let logits = View::in_window(&low_res, &grid);
    let inside = match options.two_paths {
        true => View::in_window(&low_res.upsample_bilinear2d([IMAGE_SIZE as i64; 2], false, None, None), &grid).gt(0.0),
        false => logits.gt(0.0),
    };
    let mask = inside.logical_and(&in_picture);
    let count = |of: &Tensor| of.sum_dim_intlist([1i64, 2].as_slice(), true, Kind::Float); // (N, 1, 1), exact
    let certainty = match options.alpha_sam {
        SamCertainty::Logit => logits,
        SamCertainty::Sigmoid => logits.sigmoid(),
        SamCertainty::Iou => {
            per_answer(&Vec::from_iter(answers.iter().zip(&picked).map(|(answer, &picked)| answer.iou[picked])))
        }
        SamCertainty::Stability => {
            let above = |logit: f64| count(&logits.gt(logit).logical_and(&in_picture));
            above(1.0) / above(-1.0).clamp_min(1.0)
        }
        SamCertainty::One => Tensor::ones([n, 1, 1], (Kind::Float, device)),
    };
    let confidence = match options.alpha_cam_mean {
        true => {
            // One by one: a sum over all of a plane rounds otherwise than one of several.
            let sum = |(i, answer): (i64, &Answer)| {
                let cam = cams.get(answer.image as i64).get(answer.channel);
                (cam * mask.get(i)).sum(Kind::Float)
            };
            let sums = Tensor::stack(&(0..).zip(answers).map(sum).collect::<Vec<_>>(), 0);
            certainty * (sums.view([n, 1, 1]) / count(&mask).clamp_min(1.0))
        }
        false => certainty,
    }
    .expand_as(&mask);
    for (i, answer) in (0..).zip(answers) {
        let [mut best, mut labels] = [&best, &labels].map(|x| x.get(answer.image as i64));
        let confidence = confidence.get(i);
        let wins = mask.get(i).logical_and(&confidence.gt_tensor(&best));
        best.copy_(&confidence.where_self(&wins, &best));
        let _ = labels.masked_fill_(&wins, answer.channel + 1);
    }
    if options.two_paths { labels.masked_fill(&best.lt(0.0), 0) } else { labels }
}
