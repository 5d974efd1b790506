//! `seg_epoch`: one epoch of DeepLab on pseudo-labels.

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::epoch::{EpochOptions, Members, Start, Trainer, batch_tensor, ensure_finite, train};
use super::params::{Backbone, Compute};
use super::{Output, Stage, StageContext, UnitInput};
use crate::data::augment::Transform;
use crate::data::image::{decode_label_map, decode_rgb};
use crate::data::rng::stream;
use crate::model::deeplab::{DeepLab, DeepLabConfig, segmentation};
use crate::model::optim::{Sgd, SgdOptions};
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
    /// With background.
    pub n_labels: i64,
    pub batch_size: usize,
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
    item: String,
    crop: Vec<f32>,
    labels: LabelMap,
}

impl Stage for SegEpoch {
    const KIND: &'static str = "seg_epoch";
    // 1: first version
    // 2: a smaller head at the start
    const VERSION: u64 = 2;
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
        let config = DeepLabConfig { backbone, n_labels: params.n_labels };
        let model = DeepLab::load(&start.weights, &config, &mut stream(params.rng_seed, 0, "", "seg head"))?;
        let SegEpochParams { head_lr_mult, momentum, weight_decay, .. } = *params;
        let sgd = Sgd::load(model.trained(), &start.weights, SgdOptions { head_lr_mult, momentum, weight_decay })?;
        let mut trainer = SegTrainer { model, sgd, params, device };

        let (images, labels) = (Members::of(input, "images")?, Members::of(input, "labels")?);
        let sample = |item: &str| sample(item, &images, &labels, params);
        let SegEpochParams { epoch, epochs, rng_seed, batch_size, lr, .. } = *params;
        let options = EpochOptions { epoch, epochs, rng_seed, batch_size, lr };
        train(&mut trainer, start, &images.items, sample, options, (input, context))
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
    Ok(Sample { item: item.to_owned(), crop, labels: transform.apply_grid(&map, IGNORE) })
}

struct SegTrainer<'a> {
    model: DeepLab,
    sgd: Sgd,
    params: &'a SegEpochParams,
    device: tch::Device,
}

impl Trainer for SegTrainer<'_> {
    type Sample = Sample;
    type Row = SegLosses;

    fn step(&mut self, batch: &[Sample], lr: f64) -> anyhow::Result<SegLosses> {
        let side = i64::from(self.params.crop);
        let crops = batch_tensor(batch.iter().map(|sample| &sample.crop), self.params.crop, self.device);
        let labels: Vec<u8> = batch.iter().flat_map(|sample| &sample.labels.data).copied().collect();
        let labels = Tensor::from_slice(&labels).view([-1, side, side]).to_device(self.device).to_kind(Kind::Int64);
        self.sgd.zero_grad();
        let SegEpochParams { rng_seed, epoch, .. } = *self.params;
        let streams = batch.iter().map(|of| stream(rng_seed, u64::from(epoch), &of.item, "seg dropout"));
        let logits = self.model.forward(&crops, self.model.dropout(streams).as_ref());
        let Some(loss) = segmentation(&logits, &labels) else {
            return Ok(SegLosses { seg: None, lr, grad_norm: 0.0 });
        };
        loss.backward();
        let value = loss.to_kind(Kind::Double).double_value(&[]);
        let row = SegLosses { seg: Some(value), lr, grad_norm: self.sgd.grad_norm() };
        let items: Vec<&str> = batch.iter().map(|sample| sample.item.as_str()).collect();
        ensure_finite(&[value, row.grad_norm], &Self::describe(&row), &items, "segmentation.lr")?;
        self.sgd.step(lr);
        Ok(row)
    }

    fn describe(row: &SegLosses) -> String {
        row.seg.map_or_else(|| "no labels".to_owned(), |loss| format!("seg {loss:.3}"))
    }

    fn checkpoint(&self, more: Vec<(String, Tensor)>) -> anyhow::Result<Vec<u8>> {
        self.sgd.checkpoint(self.model.frozen(), more)
    }
}
