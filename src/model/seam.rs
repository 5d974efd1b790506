//! SEAM (Wang et al., CVPR 2020; reference: `network/resnet38_SEAM.py` and `train_SEAM.py` of
//! YudeWang/SEAM): CAMs that do not depend on the size of an image. Not as there: losses are taken at the size of the
//! smaller image's CAMs, a normalised CAM keeps its lowest value, the smaller image has no L_CLS, a
//! ResNet38d leaves out what S2C's does, and the loss on the lowest quarter of a revised CAM, which moves the best
//! threshold and no more, is left out.

use rand_chacha::ChaCha8Rng;
use tch::{Device, Kind, Tensor};

use super::init::{kaiming, layer, xavier};
use super::loss::normed;
use super::repeat;
use super::weights::Weights;

/// The layers of the pixel correlation module and their channels.
const SIDES: [(&str, i64); 2] = [("head.pcm.f8_3.weight", 64), ("head.pcm.f8_4.weight", 128)];
const LAST: (&str, i64) = ("head.pcm.f9.weight", 192);
/// Pixels whose likeness to all others is in memory at a time.
const CHUNK: i64 = 4096;
/// Of the difference that L_ECR takes, the part that is largest.
const HARDEST: f64 = 0.2;

/// L_ER, equivariance: the CAMs of the smaller image are those of the image made smaller; the mean difference.
///
/// - `cam`: `(B, C, h, w)` logits; `small`: `(B, C, h', w')` of the smaller image; `labels`: `(B, C)` 0 or 1, float
pub fn equivariance(cam: &Tensor, small: &Tensor, labels: &Tensor) -> Tensor {
    (resized(&normed_there(cam, labels), sides(small)) - normed_there(small, labels)).abs().mean(Kind::Float)
}

/// L_ECR, equivariant cross regularization: what the module makes of one image's CAM has the best classes of the other's;
/// the mean of the fifth that differs most, both ways. Its gradient is one of the module alone.
///
/// - `cams`: as those of [`equivariance`]
/// - `revised`: [`Pcm::forward`] of both
pub fn cross_regularization(cams: [&Tensor; 2], revised: [&Tensor; 2], labels: &Tensor) -> Tensor {
    let size = sides(revised[1]);
    let background = Tensor::ones([labels.size()[0], 1], (labels.kind(), labels.device()));
    let labels_of_all = per_pixel(&Tensor::cat(&[&background, labels], 1));
    let [target, small_target] = cams.map(|cam| best_classes(&resized(&normed_there(&cam.detach(), labels), size)));
    let [revised, small_revised] = revised.map(|cam| resized(&stretched(cam), size) * &labels_of_all);
    let hardest = |target: &Tensor, revised: &Tensor| {
        let difference = (target - revised).abs().flatten(1, -1); // (B, (1 + C) h' w')
        let n = ((difference.size()[1] as f64 * HARDEST) as i64).max(1);
        difference.topk(n, 1, true, false).0.mean(Kind::Float)
    };
    hardest(&small_target, &revised) + hardest(&target, &small_revised)
}

/// Pixel correlation module (PCM): each pixel of a CAM becomes the mean of the pixels that look like it.
#[derive(Debug)]
pub struct Pcm {
    /// `(64 | 128, F, 1, 1)`
    f8: [Tensor; 2],
    /// `(192, 3 + 64 + 128, 1, 1)`
    f9: Tensor,
}

impl Pcm {
    /// From a checkpoint that has it, or new, drawn from `rng`.
    ///
    /// - `n_sides`: channels of the features it looks at
    pub fn load(weights: &Weights, n_sides: [i64; 2], device: Device, rng: &mut ChaCha8Rng) -> anyhow::Result<Self> {
        let mut side = |i: usize| {
            let ((name, to), from) = (SIDES[i], n_sides[i]);
            layer(weights, name, &[to, from, 1, 1], (device, Kind::Float), |shape| kaiming(rng, shape))
        };
        let f8 = [side(0)?, side(1)?];
        let n_all = 3 + SIDES[0].1 + SIDES[1].1;
        let f9 =
            layer(weights, LAST.0, &[LAST.1, n_all, 1, 1], (device, Kind::Float), |shape| xavier(rng, shape, 4.0))?;
        Ok(Self { f8, f9 })
    }

    /// The same tensors.
    pub fn shared(&self) -> Self {
        Self { f8: self.f8.each_ref().map(Tensor::shallow_clone), f9: self.f9.shallow_clone() }
    }

    /// The revised CAM with the background before it, `(B, 1 + C, h', w')` f32 at the size of the first side, not
    /// negative. Gradients go to the module alone.
    ///
    /// - `cam`: `(B, C, h, w)` logits; `x`: `(B, 3, H, W)` normalised; `sides`: features of the backbone
    pub fn forward(&self, cam: &Tensor, x: &Tensor, sides: &[Tensor; 2]) -> Tensor {
        let none: Option<&Tensor> = None;
        let conv = |x: &Tensor, weight: &Tensor| {
            x.detach().to_kind(Kind::Float).conv2d(weight, none, [1, 1], [0, 0], [1, 1], 1)
        };
        let size = self::sides(&sides[0]);
        let [near, deep] = [0, 1].map(|i| resized(&conv(&sides[i], &self.f8[i]).relu_(), size));
        let all = Tensor::cat(&[resized(&x.to_kind(Kind::Float), size), near, deep], 1);
        let f = all.conv2d(&self.f9, none, [1, 1], [0, 0], [1, 1], 1).flatten(2, 3); // (B, 192, h'w')
        let f = &f / (f.norm_scalaropt_dim(2.0, [1i64].as_slice(), true) + 1e-5);
        let cam = resized(&best_classes(&peaked(&cam.detach().relu())), size).flatten(2, 3);
        let revised = f.split(CHUNK, 2).into_iter().map(|some| {
            let likeness = f.transpose(1, 2).matmul(&some).relu_(); // (B, h'w', some)
            cam.matmul(&(&likeness / (likeness.sum_dim_intlist([1i64].as_slice(), true, Kind::Float) + 1e-5)))
        });
        let revised = Tensor::cat(&revised.collect::<Vec<_>>(), 2);
        revised.view([cam.size()[0], -1, size[0], size[1]])
    }

    /// Trained tensors by name.
    pub fn trained(&self) -> Vec<(String, Tensor)> {
        let layers = SIDES.iter().map(|(name, _)| name).zip(&self.f8).chain([(&LAST.0, &self.f9)]);
        layers.map(|(name, weight)| ((*name).to_owned(), weight.shallow_clone())).collect()
    }
}

fn sides(x: &Tensor) -> [i64; 2] {
    [x.size()[2], x.size()[3]]
}

fn resized(x: &Tensor, size: [i64; 2]) -> Tensor {
    if sides(x) == size { x.shallow_clone() } else { repeat::resized(x, size, true) }
}

/// `(B, C)` to `(B, C, 1, 1)`
fn per_pixel(labels: &Tensor) -> Tensor {
    labels.unsqueeze(-1).unsqueeze(-1)
}

/// [`normed`]; classes that the image does not have are 0.
fn normed_there(cam: &Tensor, labels: &Tensor) -> Tensor {
    normed(cam) * per_pixel(labels)
}

/// Each class by its own maximum, scores next to 0 are 0.
fn peaked(cam: &Tensor) -> Tensor {
    (cam - 1e-5).relu() / (cam.amax([2i64, 3].as_slice(), true) + 1e-5)
}

/// Each class from its lowest score, 0, to its highest.
fn stretched(cam: &Tensor) -> Tensor {
    peaked(&(cam - cam.amin([2i64, 3].as_slice(), true)))
}

/// Background, 1 less the best class, and of the classes the best of each pixel alone: `(B, 1 + C, h, w)`.
fn best_classes(cam: &Tensor) -> Tensor {
    let best = cam.amax([1i64].as_slice(), true);
    Tensor::cat(&[1.0 - &best, cam.masked_fill(&cam.lt_tensor(&best), 0.0)], 1)
}
