//! From SAM's answers to one map: each pixel goes to the class with the highest confidence among the masks it lies in.

use tch::{Kind, Tensor};

use super::prompt::Answer;
use super::view::View;
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

/// `(H, W)` int64: 0 in no mask, else channel + 1.
///
/// - `cam`: `(C, H, W)` in 0..1
/// - `padding`: `(H, W)` bool, where masks end
pub fn label_map(cam: &Tensor, answers: &[Answer], view: &View, padding: &Tensor, options: &MapOptions) -> Tensor {
    let (size, device) = (view.size(), cam.device());
    let mut best = Tensor::full(size, f64::NEG_INFINITY, (Kind::Float, device));
    let mut label = Tensor::zeros(size, (Kind::Int64, device));
    if answers.is_empty() {
        return label;
    }
    let (grid, in_picture) = (view.grid_in_frame(device), padding.logical_not());
    for answer in answers {
        let picked = match options.pick {
            MaskPick::Index(index) => index,
            MaskPick::BestIou => {
                let best = |a: usize, b: usize| if answer.iou[b] > answer.iou[a] { b } else { a };
                (0..answer.iou.len()).reduce(best).unwrap_or(0)
            }
        };
        let low_res = answer.low_res.narrow(0, picked as i64, 1).unsqueeze(0);
        let logits = View::in_window(&low_res, &grid);
        let frame = [IMAGE_SIZE as i64; 2];
        let inside = match options.two_paths {
            true => View::in_window(&low_res.upsample_bilinear2d(frame, false, None, None), &grid).gt(0.0),
            false => logits.gt(0.0),
        };
        let mask = inside.logical_and(&in_picture);
        let count = |of: Tensor| of.logical_and(&in_picture).sum(Kind::Float);
        let constant = |value: f64| Tensor::full(size, value, (Kind::Float, device));
        let certainty = match options.alpha_sam {
            SamCertainty::Logit => logits,
            SamCertainty::Sigmoid => logits.sigmoid(),
            SamCertainty::Iou => constant(f64::from(answer.iou[picked])),
            SamCertainty::Stability => {
                (count(logits.gt(1.0)) / count(logits.gt(-1.0)).clamp_min(1.0)).expand(size, false)
            }
            SamCertainty::One => constant(1.0),
        };
        let confidence = match options.alpha_cam_mean {
            true => {
                let cam = cam.get(answer.channel);
                certainty * ((cam * &mask).sum(Kind::Float) / mask.sum(Kind::Float).clamp_min(1.0))
            }
            false => certainty,
        };
        let wins = mask.logical_and(&confidence.gt_tensor(&best));
        best = confidence.where_self(&wins, &best);
        label = label.masked_fill(&wins, answer.channel + 1);
    }
    if options.two_paths { label.masked_fill(&best.lt(0.0), 0) } else { label }
}
