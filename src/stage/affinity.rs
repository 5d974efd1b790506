//! What the epochs of AffinityNet and IRN share: windows of images with the labels of their pixels, and steps.

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::NotFinite;
use super::epoch::{Members, batch_tensor};
use super::loader::each;
use super::params::{Backbone, Compute};
use crate::data::augment::{Jitter, Transform};
use crate::data::image::{decode_label_map, decode_rgb};
use crate::data::rng::stream;
use crate::model::affinity::PairLoss;
use crate::model::memory::{pinned, read_all, send};
use crate::model::optim::Sgd;
use crate::vision::{IGNORE, LabelMap};

/// Parameters of an epoch of either network.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AffinityEpochParams {
    pub epoch: u32,
    pub epochs: u32,
    pub rng_seed: u64,
    pub precision: Compute,
    pub backbone: Backbone,
    pub stride: u32,
    pub batch_size: usize,
    pub crop: u32,
    pub rescale: (f64, f64),
    pub radius: usize,
    pub lr: f64,
    /// Of the layers above the backbone (PSA) or of the displacements (IRN).
    pub head_lr_mult: f64,
    pub momentum: f64,
    pub weight_decay: f64,
}

/// How windows are cut.
#[derive(Clone, Copy, Debug)]
pub(super) struct Windows {
    pub(super) rng_seed: u64,
    pub(super) epoch: u32,
    /// Name of the random streams.
    pub(super) purpose: &'static str,
    pub(super) crop: u32,
    pub(super) rescale: (f64, f64),
    /// See [`Jitter::sample`].
    pub(super) jitter: Option<(f64, f64, f64, f64)>,
    /// Pixels of the window that one of the labels covers; rounded up at its end.
    pub(super) stride: i64,
}

/// The images of a step.
pub(super) struct Batch {
    pub(super) items: Vec<String>,
    /// `(B, 3, crop, crop)`
    crops: Tensor,
    /// `(B, h, w)` u8
    labels: Tensor,
}

impl Batch {
    pub(super) fn read(
        items: &[String],
        (images, labels): (&Members<'_>, &Members<'_>),
        windows: &Windows,
        device: tch::Device,
    ) -> anyhow::Result<Self> {
        let samples = each(items, |item| sample(item, images, labels, windows))?;
        let side = (windows.crop as usize).div_ceil(windows.stride as usize) as i64;
        let maps: Vec<&[u8]> = samples.iter().map(|(_, labels)| &labels.data[..]).collect();
        let labels = Tensor::from_slice(&maps.concat()).view([-1, side, side]);
        let crops = batch_tensor(samples.iter().map(|(crop, _)| &crop[..]), windows.crop);
        Ok(Self { items: items.to_vec(), crops: pinned(crops, device), labels: pinned(labels, device) })
    }

    /// Crops, and labels as int64.
    pub(super) fn on(&self, device: tch::Device) -> (Tensor, Tensor) {
        (send(&self.crops, device), send(&self.labels, device).to_kind(Kind::Int64))
    }
}

/// The window of an image and, at the stride, of its labels.
fn sample(
    item: &str,
    images: &Members<'_>,
    labels: &Members<'_>,
    windows: &Windows,
) -> anyhow::Result<(Vec<f32>, LabelMap)> {
    let image = decode_rgb(&images.bytes(item)?).with_context(|| format!("image `{item}`"))?;
    let map = decode_label_map(&labels.bytes(item)?).with_context(|| format!("label map of `{item}`"))?;
    let size = (image.height, image.width);
    ensure!((map.height, map.width) == size, "`{item}`: label map and image differ in size");
    let mut rng = stream(windows.rng_seed, u64::from(windows.epoch), item, windows.purpose);
    let transform = Transform::sample_scale(&mut rng, size, windows.rescale, windows.crop as usize);
    let jitter = windows.jitter.map(|ranges| Jitter::sample(&mut rng, ranges));
    let side = (windows.crop as usize).div_ceil(windows.stride as usize);
    let labels = transform.apply_grid(&map, IGNORE).resize_nearest(side, side);
    Ok((transform.apply_image(&image, jitter.as_ref()), labels))
}

/// The losses of a step; no times, so that equal runs give equal bytes. Each is a mean over pairs of pixels: of
/// background, of one class, of different labels; and of IRN's displacements.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PairLosses {
    pub bg: f64,
    pub fg: f64,
    pub neg: f64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dp_fg: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dp_bg: Option<f64>,
    pub lr: f64,
    pub grad_norm: f64,
}

impl PairLosses {
    pub(super) fn describe(rows: &[Self]) -> String {
        type Field = fn(&PairLosses) -> Option<f64>;
        let fields: [(&str, Field); 5] = [
            ("bg", |row| Some(row.bg)),
            ("fg", |row| Some(row.fg)),
            ("neg", |row| Some(row.neg)),
            ("dp fg", |row| row.dp_fg),
            ("dp bg", |row| row.dp_bg),
        ];
        let said = fields.iter().filter_map(|(name, of)| Some(format!("{name} {:.3}", super::epoch::mean(rows, of)?)));
        said.collect::<Vec<_>>().join(" ")
    }
}

/// One step down the gradient; terms of the loss: bg, fg, neg and, of IRN, dp_fg and dp_bg.
///
/// # Errors
/// [`NotFinite`], with model and optimiser as they were.
pub(super) fn descend<const N: usize>(
    sgd: &mut Sgd,
    PairLoss { total, terms }: &PairLoss<N>,
    lr: f64,
    (items, field): (Vec<String>, &'static str),
) -> anyhow::Result<PairLosses> {
    let gradient = sgd.gradient(total);
    let scalars: Vec<Tensor> = terms.iter().map(Tensor::shallow_clone).chain([sgd.squares(&gradient)]).collect();
    let values = read_all(&scalars);
    let (losses, squares) = values.split_at_checked(terms.len()).context("a loss is missing")?;
    let &[bg, fg, neg, ref dp @ ..] = losses else { anyhow::bail!("a loss is missing") };
    let (dp_fg, dp_bg) = (dp.first().copied(), dp.get(1).copied());
    let row = PairLosses { bg, fg, neg, dp_fg, dp_bg, lr, grad_norm: squares.iter().sum::<f64>().sqrt() };
    if !losses.iter().all(|loss| loss.is_finite()) || !row.grad_norm.is_finite() {
        let losses = PairLosses::describe(std::slice::from_ref(&row));
        return Err(NotFinite { losses, items, field, lr }.into());
    }
    sgd.step(&gradient, lr);
    Ok(row)
}

/// The mean of each cell of `stride` x `stride` pixels, `(C, H, W)` to `(C, h, w)`; cells at the ends may be smaller.
pub(super) fn pooled(scores: &Tensor, stride: i64) -> Tensor {
    scores.unsqueeze(0).avg_pool2d([stride; 2], [stride; 2], [0, 0], true, false, None).squeeze_dim(0)
}

/// [`pooled`] undone, as far as it can be: `(C, h, w)` to the size of the image.
pub(super) fn upsampled(scores: &Tensor, stride: i64, (height, width): (usize, usize)) -> Tensor {
    let (_, h, w) = scores.size3().expect("scores of classes");
    let up = scores.unsqueeze(0).upsample_bilinear2d([h * stride, w * stride], false, None, None);
    up.narrow(2, 0, height as i64).narrow(3, 0, width as i64).squeeze_dim(0)
}
