//! `seg_epoch`: one epoch of DeepLab on pseudo-labels.

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::epoch::{EpochOptions, Members, Start, Trainer, batch_tensor, mean, train};
use super::loader::each;
use super::params::{Backbone, Compute, Head, is_default, is_one, one};
use super::{NotFinite, Output, Stage, StageContext, UnitInput};
use crate::data::augment::Transform;
use crate::data::image::{decode_label_map, decode_rgb};
use crate::data::rng::stream;
use crate::model::deeplab::{DeepLab, DeepLabConfig, segmentation};
use crate::model::memory::{pinned, read_all, send};
use crate::model::optim::{Sgd, SgdOptions};
use crate::model::s2c::{add, n_true, shares};
use crate::vision::{IGNORE, LabelMap};

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SegEpochParams {
    pub epoch: u32,
    pub epochs: u32,
    pub rng_seed: u64,
    pub precision: Compute,
    pub backbone: Backbone,
    pub stride: u32,
    #[serde(default, skip_serializing_if = "is_default")]
    pub head: Head,
    /// With background.
    pub n_labels: i64,
    pub batch_size: usize,
    /// Batches of a step.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub accumulate: usize,
    pub crop: u32,
    pub scale: (f64, f64),
    pub lr: f64,
    pub head_lr_mult: f64,
    pub momentum: f64,
    pub weight_decay: f64,
}

/// The loss of a step; no times, so that equal runs give equal bytes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SegLosses {
    /// `None`: no pixel of the batch had a label.
    pub seg: Option<f64>,
    pub lr: f64,
    pub grad_norm: f64,
}

/// Reads `weights` (first epoch) or `checkpoint`, the sets `images` and `labels` (label maps). Gives `checkpoint` and
/// `losses` (JSON, a row a step).
pub struct SegEpoch {
    params: SegEpochParams,
    context: StageContext,
}

/// What the loader makes of one image.
struct Sample {
    crop: Vec<f32>,
    labels: LabelMap,
}

impl Stage for SegEpoch {
    const KIND: &'static str = "seg_epoch";
    // 1: first version
    // 2: a smaller head at the start
    // 3: weights that one of our trainings made start without its momentum; ResNet38d leaves out more
    // 4: photographs are decoded and resized as libjpeg-turbo and Pillow do
    // 5: libtorch computes with the same number of threads on every machine, whose sums round otherwise
    const VERSION: u64 = 5;
    const PARALLEL: bool = false;
    type Params = SegEpochParams;

    fn load(params: SegEpochParams, context: &StageContext) -> anyhow::Result<Self> {
        Ok(Self { params, context: context.clone() })
    }

    fn run(&mut self, input: &UnitInput<'_>) -> anyhow::Result<Vec<Output>> {
        let Self { params, context } = self;
        let device = context.device.torch();
        let start = Start::read(input, context)?;
        let backbone = params.backbone.config(params.stride, params.precision, device);
        let config = DeepLabConfig { backbone, head: params.head.into(), n_labels: params.n_labels };
        let model = DeepLab::load(&start.weights, &config, &mut stream(params.rng_seed, 0, "", "seg head"))?;
        let SegEpochParams { head_lr_mult, momentum, weight_decay, .. } = *params;
        let sgd = Sgd::load(model.trained(), &start.weights, SgdOptions { head_lr_mult, momentum, weight_decay })?;
        let mut trainer = SegTrainer { model, sgd, params, device };

        let (images, labels) = (Members::of(input, "images")?, Members::of(input, "labels")?);
        let SegEpochParams { epoch, epochs, rng_seed, batch_size, accumulate, crop, lr, .. } = *params;
        let options = EpochOptions { epoch, epochs, rng_seed, images: batch_size * accumulate, lr };
        let make = |batch: &[String]| {
            let samples = each(batch, |item| sample(item, &images, &labels, params))?;
            let parts = samples.chunks(batch_size).map(|part| collate(part, crop, device)).collect();
            Ok(Batch { items: batch.to_vec(), parts })
        };
        train(&mut trainer, start, &images.items, make, options, (input, context))
    }
}

fn sample(item: &str, images: &Members<'_>, labels: &Members<'_>, params: &SegEpochParams) -> anyhow::Result<Sample> {
    let image = decode_rgb(&images.bytes(item)?).with_context(|| format!("image `{item}`"))?;
    let map = decode_label_map(&labels.bytes(item)?).with_context(|| format!("label map of `{item}`"))?;
    let size = (image.height, image.width);
    ensure!((map.height, map.width) == size, "`{item}`: label map and image differ in size");
    let known = |label: &u8| *label == IGNORE || i64::from(*label) < params.n_labels;
    ensure!(map.data.iter().all(known), "`{item}`: a label is not in 0..{} or 255", params.n_labels);
    let mut rng = stream(params.rng_seed, u64::from(params.epoch), item, "seg augment");
    let transform = Transform::sample_scale(&mut rng, size, params.scale, params.crop as usize);
    let crop = transform.apply_image(&image, None);
    Ok(Sample { crop, labels: transform.apply_grid(&map, IGNORE) })
}

/// Crops, and labels `(B, H, W)` u8.
fn collate(samples: &[Sample], crop: u32, device: tch::Device) -> (Tensor, Tensor) {
    let labels: Vec<&[u8]> = samples.iter().map(|sample| &sample.labels.data[..]).collect();
    let labels = Tensor::from_slice(&labels.concat()).view([-1, i64::from(crop), i64::from(crop)]);
    let crops = batch_tensor(samples.iter().map(|sample| &sample.crop[..]), crop);
    (pinned(crops, device), pinned(labels, device))
}

struct SegTrainer<'a> {
    model: DeepLab,
    sgd: Sgd,
    params: &'a SegEpochParams,
    device: tch::Device,
}

/// The images of a step.
struct Batch {
    items: Vec<String>,
    parts: Vec<(Tensor, Tensor)>,
}

impl Trainer for SegTrainer<'_> {
    type Batch = Batch;
    type Row = SegLosses;

    fn step(&mut self, Batch { items, parts }: Batch, lr: f64) -> anyhow::Result<SegLosses> {
        let on_device = |(crops, labels): &(Tensor, Tensor)| {
            (send(crops, self.device), send(labels, self.device).to_kind(Kind::Int64))
        };
        let parts: Vec<(Tensor, Tensor)> = parts.iter().map(on_device).collect();
        // The loss is a mean over labelled pixels: see `gradient` in `model::s2c`.
        let shares = shares(&parts, |_, (_, labels)| n_true(&labels.ne(i64::from(IGNORE))));
        let statistics = self.model.statistics();
        let (mut sum, mut gradient) = (None, None);
        let SegEpochParams { rng_seed, epoch, batch_size, .. } = *self.params;
        for (((crops, labels), share), items) in parts.iter().zip(shares).zip(items.chunks(batch_size)) {
            let streams = |of: &'static str| items.iter().map(move |item| stream(rng_seed, u64::from(epoch), item, of));
            let mut training = self.model.training(streams("seg dropout"), streams("seg head dropout"));
            let logits = self.model.forward(crops, Some(&mut training));
            if let Some(loss) = segmentation(&logits, labels) {
                let loss = loss * share;
                gradient = Some(self.sgd.gradient(&loss).plus(gradient));
                add(&mut sum, &loss);
            }
        }
        let Some((loss, gradient)) = sum.zip(gradient) else { return Ok(SegLosses { seg: None, lr, grad_norm: 0.0 }) };
        let mut values = read_all(&[loss, self.sgd.squares(&gradient)]).into_iter();
        let row = SegLosses { seg: values.next(), lr, grad_norm: values.sum::<f64>().sqrt() };
        if !row.grad_norm.is_finite() || row.seg.is_some_and(|loss| !loss.is_finite()) {
            self.model.set_statistics(&statistics);
            let losses = Self::describe(std::slice::from_ref(&row));
            return Err(NotFinite { losses, items, field: "segmentation.lr", lr }.into());
        }
        self.sgd.step(&gradient, lr);
        Ok(row)
    }

    fn describe(rows: &[SegLosses]) -> String {
        mean(rows, |row| row.seg).map_or_else(|| "no labels".to_owned(), |loss| format!("seg {loss:.3}"))
    }

    fn checkpoint(&self, more: Vec<(String, Tensor)>) -> anyhow::Result<Vec<u8>> {
        self.sgd.checkpoint(self.model.frozen(), more)
    }
}
