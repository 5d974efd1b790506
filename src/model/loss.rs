//! Losses of S2C, `L = L_CLS + L_SSC + L_CPM` (paper, section 3); L_SSC is in [`super::ssc`].

use tch::{Kind, Reduction, Tensor};

use super::repeat::{cross_entropy, resized};
use crate::vision::IGNORE;

/// L_CLS: multi-label binary cross-entropy of the mean of each class's CAM, mean over batch and classes.
///
/// - `cam`: `(B, C, h, w)` logits; `labels`: `(B, C)` 0 or 1, float
pub fn classification(cam: &Tensor, labels: &Tensor) -> Tensor {
    let scores = cam.mean_dim([2i64, 3].as_slice(), false, Kind::Float);
    let none: Option<&Tensor> = None;
    scores.binary_cross_entropy_with_logits(labels, none, none, Reduction::Mean)
}

/// Each class of a CAM without what is below 0, by its own maximum.
///
/// - `cam`: `(B, C, h, w)` logits
pub(super) fn normed(cam: &Tensor) -> Tensor {
    let cam = cam.relu();
    &cam / (cam.amax([2i64, 3].as_slice(), true) + 1e-5)
}

/// Classes that an image does not have, in the softmax of L_CPM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AbsentClass {
    /// They score 0.
    Zero,
    /// They take no part.
    Out,
}

/// L_CPM: cross-entropy of the CAM, with `1 - max` as background, against the map that SAM made of its peaks.
///
/// - `cam`: `(B, C, h, w)` logits; `labels`: `(B, C)` 0 or 1, float
/// - `pseudo`: `(B, H, W)` int64: 0 background, 1..=C, 255 ignored
/// - returns the mean over pixels not ignored; `None` when there are none
pub fn cpm(cam: &Tensor, labels: &Tensor, pseudo: &Tensor, absent: AbsentClass) -> Option<Tensor> {
    if pseudo.ne(i64::from(IGNORE)).sum(Kind::Int64).int64_value(&[]) == 0 {
        return None;
    }
    let size = pseudo.size();
    let cam = normed(cam);
    let labels = labels.unsqueeze(-1).unsqueeze(-1);
    let cam = resized(&cam, [size[1], size[2]], false) * &labels;
    let background = 1.0 - cam.amax([1i64].as_slice(), true);
    let cam = match absent {
        AbsentClass::Zero => cam,
        AbsentClass::Out => cam.masked_fill(&labels.eq(0.0), f64::NEG_INFINITY),
    };
    let scores = Tensor::cat(&[background, cam], 1); // (B, 1 + C, H, W)
    Some(cross_entropy(&scores, pseudo))
}
