//! The three losses of S2C: `L = L_CLS + L_SSC + L_CPM` (paper, section 3).

use tch::{Kind, Reduction, Tensor};

use crate::vision::IGNORE;

/// L_CLS: multi-label binary cross-entropy of the mean of each class's CAM, mean over batch and classes.
///
/// - `cam`: `(B, C, h, w)` logits; `labels`: `(B, C)` 0 or 1, float
pub fn classification(cam: &Tensor, labels: &Tensor) -> Tensor {
    let scores = cam.mean_dim([2i64, 3].as_slice(), false, Kind::Float);
    let none: Option<&Tensor> = None;
    scores.binary_cross_entropy_with_logits(labels, none, none, Reduction::Mean)
}

#[derive(Clone, Copy, Debug)]
pub struct SscOptions {
    /// Cosines are divided by it.
    pub temperature: f64,
    /// No gradient through the prototypes.
    pub proto_stopgrad: bool,
    /// Pixels in no segment form a prototype too, a negative for all others.
    pub unassigned_negative: bool,
}

/// L_SSC: draws each pixel's feature to the prototype (mean feature) of its segment and away from those of the other
/// segments of its image.
///
/// - `feat`: `(B, D, h, w)`
/// - `se_map`: `(B, H, W)` int64, 0 = no segment, ids of each image without gaps from 1
/// - returns the mean over pixels that lie in a segment; `None` when there are none
pub fn ssc(feat: &Tensor, se_map: &Tensor, options: &SscOptions) -> Option<Tensor> {
    let size = se_map.size();
    let (batch, height, width) = (size[0], size[1], size[2]);
    let mut total: Option<Tensor> = None;
    let mut n_pixels = 0;
    // Image by image: a prototype is local to its image, and logits of all together would not fit.
    for i in 0..batch {
        let ids = se_map.get(i).view([-1]);
        let assigned = ids.gt(0);
        let n_assigned = assigned.sum(Kind::Int64).int64_value(&[]);
        if n_assigned == 0 {
            continue;
        }
        let feat = feat.narrow(0, i, 1).upsample_bilinear2d([height, width], false, None, None);
        let pixels = unit_norm(&feat.squeeze_dim(0).flatten(1, 2), 0); // (D, HW)
        let n_ids = ids.max().int64_value(&[]) + 1;
        let member = ids.one_hot(n_ids).to_kind(Kind::Float); // (HW, N)
        let count = member.sum_dim_intlist([0i64].as_slice(), false, Kind::Float); // (N)
        let source = if options.proto_stopgrad { pixels.detach() } else { pixels.shallow_clone() };
        let prototypes = unit_norm(&(source.matmul(&member) / count.clamp_min(1.0)), 0); // (D, N)
        let logits = pixels.transpose(0, 1).matmul(&prototypes) / options.temperature; // (HW, N)
        let out = count.eq(0.0);
        if !options.unassigned_negative {
            let _ = out.get(0).fill_(1);
        }
        let logits = logits.masked_fill(&out.unsqueeze(0), f64::NEG_INFINITY);
        let target = ids.masked_fill(&assigned.logical_not(), -100);
        let none: Option<&Tensor> = None;
        let loss = logits.cross_entropy_loss(&target, none, Reduction::Sum, -100, 0.0);
        total = Some(total.map_or_else(|| loss.shallow_clone(), |total| total + &loss));
        n_pixels += n_assigned;
    }
    total.map(|total| total / n_pixels as f64)
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
    let cam = cam.relu();
    let cam = &cam / (cam.amax([2i64, 3].as_slice(), true) + 1e-5);
    let labels = labels.unsqueeze(-1).unsqueeze(-1);
    let cam = cam.upsample_bilinear2d([size[1], size[2]], false, None, None) * &labels;
    let background = 1.0 - cam.amax([1i64].as_slice(), true);
    let cam = match absent {
        AbsentClass::Zero => cam,
        AbsentClass::Out => cam.masked_fill(&labels.eq(0.0), f64::NEG_INFINITY),
    };
    let scores = Tensor::cat(&[background, cam], 1); // (B, 1 + C, H, W)
    let none: Option<&Tensor> = None;
    Some(scores.cross_entropy_loss(pseudo, none, Reduction::Mean, i64::from(IGNORE), 0.0))
}

fn unit_norm(x: &Tensor, dim: i64) -> Tensor {
    x / x.norm_scalaropt_dim(2.0, [dim].as_slice(), true).clamp_min(1e-12)
}
