//! `irn_epoch`: one epoch of IRN on what is certain of the pseudo-labels.

use anyhow::Context;
use tch::Tensor;

use super::affinity::{AffinityEpochParams, Batch, PairLosses, Windows, descend};
use super::epoch::{EpochOptions, Members, Start, Trainer, train};
use super::{Output, Stage, StageContext, UnitInput};
use crate::data::rng::stream;
use crate::model::affinity::irn;
use crate::model::irn::{IrnNet, STRIDE};
use crate::model::optim::{Sgd, SgdOptions};
use crate::model::weights::Weights;

/// Reads `weights` of the backbone, which stays as it is, and after the first epoch `checkpoint`; the sets `images` and
/// `labels` (label maps). Gives `checkpoint`, without the backbone, and `losses` (JSON, a row a step).
pub struct IrnEpoch {
    params: AffinityEpochParams,
    context: StageContext,
}

impl Stage for IrnEpoch {
    const KIND: &'static str = "irn_epoch";
    // 1: first version
    // 2: photographs are decoded and resized as libjpeg-turbo and Pillow do
    // 3: libtorch computes with the same number of threads on every machine, whose sums round otherwise
    const VERSION: u64 = 3;
    const PARALLEL: bool = false;
    type Params = AffinityEpochParams;

    fn load(params: AffinityEpochParams, context: &StageContext) -> anyhow::Result<Self> {
        Ok(Self { params, context: context.clone() })
    }

    fn run(&mut self, input: &UnitInput<'_>) -> anyhow::Result<Vec<Output>> {
        let Self { params, context } = self;
        let device = context.device.torch();
        let start = Start::read(input, context)?;
        let backbone = Weights::parse(input.bytes("weights")?).context("input `weights`")?;
        let config = params.backbone.config(params.stride, params.precision, device);
        let mut rng = stream(params.rng_seed, 0, "", "irn layers");
        let model = IrnNet::load(&backbone, &start.weights, &config, &mut rng)?;
        let AffinityEpochParams { epoch, epochs, rng_seed, batch_size, crop, rescale, lr, .. } = *params;
        let AffinityEpochParams { head_lr_mult, momentum, weight_decay, .. } = *params;
        let options = SgdOptions { head_lr_mult, momentum, weight_decay };
        let mut sgd = Sgd::load(model.trained(), &start.weights, options)?;
        let fast = sgd.tensors.iter_mut().filter(|(name, _)| IrnNet::is_displacement(name));
        fast.for_each(|(_, trained)| trained.lr_mult = head_lr_mult);
        let mut trainer = IrnTrainer { model, sgd, radius: params.radius, device };

        let (images, labels) = (Members::of(input, "images")?, Members::of(input, "labels")?);
        let options = EpochOptions { epoch, epochs, rng_seed, images: batch_size, lr };
        let (purpose, jitter) = ("irn augment", None);
        let windows = Windows { rng_seed, epoch, purpose, crop, rescale, jitter, stride: STRIDE };
        let make = |items: &[String]| Batch::read(items, (&images, &labels), &windows, device);
        train(&mut trainer, start, &images.items, make, options, (input, context))
    }
}

struct IrnTrainer {
    model: IrnNet,
    sgd: Sgd,
    radius: usize,
    device: tch::Device,
}

impl Trainer for IrnTrainer {
    type Batch = Batch;
    type Row = PairLosses;

    fn step(&mut self, batch: Batch, lr: f64) -> anyhow::Result<PairLosses> {
        let (crops, labels) = batch.on(self.device);
        let output = self.model.forward(&crops);
        let loss = irn(&output.edge, &output.displacement, &labels, self.radius);
        descend(&mut self.sgd, &loss, lr, (batch.items, "pseudo_label.irn.lr"))
    }

    fn describe(rows: &[PairLosses]) -> String {
        PairLosses::describe(rows)
    }

    fn checkpoint(&self, more: Vec<(String, Tensor)>) -> anyhow::Result<Vec<u8>> {
        self.sgd.checkpoint(Vec::new(), more)
    }
}
