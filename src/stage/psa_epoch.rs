//! `psa_epoch`: one epoch of AffinityNet on what is certain of the pseudo-labels.

use tch::Tensor;

use super::affinity::{AffinityEpochParams, Batch, PairLosses, Windows, descend};
use super::epoch::{EpochOptions, Members, Start, Trainer, train};
use super::{Output, Stage, StageContext, UnitInput};
use crate::data::rng::stream;
use crate::model::affinity::psa;
use crate::model::optim::{Sgd, SgdOptions};
use crate::model::psa::{PsaNet, STRIDE};

/// Colours in training (the reference's). See [`crate::data::augment::Jitter`].
const JITTER: (f64, f64, f64, f64) = (0.3, 0.3, 0.3, 0.1);

/// Reads `weights` (first epoch) or `checkpoint`, the sets `images` and `labels` (label maps). Gives `checkpoint` and
/// `losses` (JSON, a row a step).
pub struct PsaEpoch {
    params: AffinityEpochParams,
    context: StageContext,
}

impl Stage for PsaEpoch {
    const KIND: &'static str = "psa_epoch";
    // 1: first version
    // 2: weights that one of our trainings made start without its momentum
    // 3: photographs are decoded and resized as libjpeg-turbo and Pillow do
    // 4: libtorch computes with the same number of threads on every machine, whose sums round otherwise
    const VERSION: u64 = 4;
    const PARALLEL: bool = false;
    type Params = AffinityEpochParams;

    fn load(params: AffinityEpochParams, context: &StageContext) -> anyhow::Result<Self> {
        Ok(Self { params, context: context.clone() })
    }

    fn run(&mut self, input: &UnitInput<'_>) -> anyhow::Result<Vec<Output>> {
        let Self { params, context } = self;
        let device = context.device.torch();
        let start = Start::read(input, context)?;
        let config = params.backbone.config(params.stride, params.precision, device);
        let model = PsaNet::load(&start.weights, &config, &mut stream(params.rng_seed, 0, "", "psa layers"))?;
        let AffinityEpochParams { epoch, epochs, rng_seed, batch_size, crop, rescale, lr, .. } = *params;
        let AffinityEpochParams { head_lr_mult, momentum, weight_decay, .. } = *params;
        let options = SgdOptions { head_lr_mult, momentum, weight_decay };
        let mut sgd = Sgd::load(model.trained(), &start.weights, options)?;
        let new = sgd.tensors.iter_mut().filter(|(name, _)| PsaNet::is_new(name));
        new.for_each(|(_, trained)| trained.lr_mult = head_lr_mult);
        let mut trainer = PsaTrainer { model, sgd, params, device };

        let (images, labels) = (Members::of(input, "images")?, Members::of(input, "labels")?);
        let options = EpochOptions { epoch, epochs, rng_seed, images: batch_size, lr };
        let (purpose, jitter) = ("psa augment", Some(JITTER));
        let windows = Windows { rng_seed, epoch, purpose, crop, rescale, jitter, stride: STRIDE };
        let make = |items: &[String]| Batch::read(items, (&images, &labels), &windows, device);
        train(&mut trainer, start, &images.items, make, options, (input, context))
    }
}

struct PsaTrainer<'a> {
    model: PsaNet,
    sgd: Sgd,
    params: &'a AffinityEpochParams,
    device: tch::Device,
}

impl Trainer for PsaTrainer<'_> {
    type Batch = Batch;
    type Row = PairLosses;

    fn step(&mut self, batch: Batch, lr: f64) -> anyhow::Result<PairLosses> {
        let AffinityEpochParams { rng_seed, epoch, radius, .. } = *self.params;
        let (crops, labels) = batch.on(self.device);
        let streams = batch.items.iter().map(|item| stream(rng_seed, u64::from(epoch), item, "psa dropout"));
        let dropout = self.model.dropout(streams);
        let loss = psa(&self.model.forward(&crops, dropout.as_ref()), &labels, radius);
        descend(&mut self.sgd, &loss, lr, (batch.items, "pseudo_label.psa.lr"))
    }

    fn describe(rows: &[PairLosses]) -> String {
        PairLosses::describe(rows)
    }

    fn checkpoint(&self, more: Vec<(String, Tensor)>) -> anyhow::Result<Vec<u8>> {
        self.sgd.checkpoint(self.model.frozen(), more)
    }
}
