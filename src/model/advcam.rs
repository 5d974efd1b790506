//! AdvCAM (Lee, Kim, Yoon, CVPR 2021): an image climbs towards a class, and the CAMs on the way are summed, so that more
//! of an object shows than its most telling part (reference: `obtain_CAM_masking.py` of
//! jbeomlee93/AdvCAM). Not as there: CAMs are the classifier's own, where Grad-CAM is the same but for a factor; an image
//! and its mirror climb apart; scale 0.5 takes as many steps as the others.

use tch::Tensor;

use super::classifier::Classifier;
use super::s2c::add;

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdvCamOptions {
    /// CAMs that are summed: of the image and of each step, of which there is one less.
    pub iterations: usize,
    /// How far a step goes where the gradient is largest, in units of the normalised image.
    pub step: f64,
    /// Of the change of pixels that are high already.
    pub guard: f64,
    /// What is high, of the CAM's maximum.
    pub guard_threshold: f64,
}

/// The sum of a class's CAMs over an image and the steps of its climb, `(1, 1, h, w)` f32, not negative.
///
/// - `x`: `(1, 3, H, W)` normalised
pub fn climbed_cam(classifier: &Classifier, x: &Tensor, channel: i64, options: &AdvCamOptions) -> Tensor {
    let (low, high) = (x.min(), x.max());
    let mut x = x.detach();
    let (mut sum, mut first): (Option<Tensor>, Option<Tensor>) = (None, None);
    for left in (0..options.iterations).rev() {
        let at = x.detach().set_requires_grad(left > 0);
        let grad = tch::with_grad(|| {
            let cams = classifier.forward(&at, None).cam.relu(); // (1, C, h, w)
            let cam = cams.narrow(1, channel, 1);
            add(&mut sum, &cam);
            if left == 0 {
                return None;
            }
            let first = first.get_or_insert_with(|| cam.detach());
            let scores = cams.mean_dim([2i64, 3].as_slice(), false, cams.kind()); // (1, C)
            let is_high = cam.detach().gt_tensor(&(cam.detach().max() * options.guard_threshold));
            let changed = ((&cam - &*first).abs() * is_high).sum(cams.kind());
            let aim = scores.get(0).get(channel) * 2.0 - scores.sum(cams.kind()) - changed * options.guard;
            Some(Tensor::run_backward(&[&aim], &[&at], false, false).remove(0))
        });
        let Some(grad) = grad else { break };
        // A gradient of 0 everywhere leads nowhere.
        let largest = grad.abs().max().clamp_min(f64::from(f32::MIN_POSITIVE));
        x = (&at.detach() + grad / largest * options.step).maximum(&low).minimum(&high);
    }
    sum.unwrap_or_else(|| x.zeros_like())
}
