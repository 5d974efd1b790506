//! The units that train AffinityNet or IRN on the CAMs of a cell and spread the CAMs by it.

use super::builder::{Builder, file, of};
use crate::data::Item;
use crate::pipeline::affinity::On;
use crate::pipeline::graph::UnitIdx;
use crate::pipeline::spec::Refinement;
use crate::stage::affinity::AffinityEpochParams;
use crate::stage::affinity_label::{AffinityLabel, AffinityLabelParams};
use crate::stage::irn_epoch::IrnEpoch;
use crate::stage::irn_walk::{IrnWalk, IrnWalkParams};
use crate::stage::psa_epoch::PsaEpoch;
use crate::stage::psa_walk::{PsaWalk, PsaWalkParams};
use crate::stage::seg_crf::CrfSet;

/// What the first refinement is made of, where it is `psa` or `irn`.
#[derive(Clone, Debug, Default)]
pub struct AffinityUnits {
    /// By training image: labels where they are certain.
    pub labels: Vec<UnitIdx>,
    pub epochs: Vec<UnitIdx>,
    /// By training image: label maps (`psa`) or CAMs (`irn`).
    pub walks: Vec<UnitIdx>,
}

impl Builder<'_> {
    /// Nothing where the first refinement is another.
    pub(super) fn affinity(&mut self, cams: &[UnitIdx]) -> anyhow::Result<AffinityUnits> {
        let spec = &self.spec.pseudo_label;
        let labels = match spec.refine.first() {
            Some(Refinement::Psa) => AffinityLabelParams::Psa {
                field: CrfSet::Psa.params(),
                low_alpha: spec.psa.low_alpha,
                high_alpha: spec.psa.high_alpha,
            },
            Some(Refinement::Irn) => AffinityLabelParams::Irn {
                field: CrfSet::Irn.params(),
                foreground: spec.irn.certain_foreground,
                background: spec.irn.certain_background,
                certainty: spec.irn.certainty,
            },
            _ => return Ok(AffinityUnits::default()),
        };
        let dataset = self.dataset.clone();
        let train = || dataset.train.iter().zip(cams);
        let label = |(item, &cam): (&Item, &UnitIdx)| {
            let inputs = vec![("cam", of(cam, "cam")), ("image", file(&item.image))];
            self.add::<AffinityLabel>(&item.id, &labels, inputs)
        };
        let label_units = train().map(label).collect::<anyhow::Result<Vec<_>>>()?;
        let is_psa = matches!(labels, AffinityLabelParams::Psa { .. });
        let epochs = if is_psa { self.psa_epochs(&label_units)? } else { self.irn_epochs(&label_units)? };
        let checkpoint = epochs[epochs.len() - 1];
        let walk = |(item, &cam): (&Item, &UnitIdx)| match is_psa {
            true => self.psa_walk(item, cam, checkpoint),
            false => self.irn_walk(item, cam, checkpoint),
        };
        let walks = train().map(walk).collect::<anyhow::Result<Vec<_>>>()?;
        Ok(AffinityUnits { labels: label_units, epochs, walks })
    }

    fn psa_epochs(&mut self, labels: &[UnitIdx]) -> anyhow::Result<Vec<UnitIdx>> {
        let (spec, dataset) = (&self.spec.pseudo_label.psa, self.dataset.clone());
        let On { backbone, weights, stride } = spec.on(&self.spec.classifier);
        let (images, labels) = (self.files(&dataset.train), self.outputs(&dataset.train, labels, "label"));
        let mut units: Vec<UnitIdx> = Vec::new();
        for epoch in 0..spec.epochs {
            let params = AffinityEpochParams {
                epoch,
                epochs: spec.epochs,
                rng_seed: self.spec.rng_seed,
                precision: self.precision,
                backbone,
                stride,
                batch_size: spec.batch_size,
                crop: spec.crop,
                rescale: spec.rescale,
                radius: spec.radius,
                lr: spec.lr,
                head_lr_mult: spec.head_lr_mult,
                momentum: spec.momentum,
                weight_decay: spec.weight_decay,
            };
            let start = self.start(units.last(), &weights)?;
            let inputs = vec![start, ("images", images.clone()), ("labels", labels.clone())];
            units.push(self.add::<PsaEpoch>(&format!("epoch {epoch}"), &params, inputs)?);
        }
        Ok(units)
    }

    fn irn_epochs(&mut self, labels: &[UnitIdx]) -> anyhow::Result<Vec<UnitIdx>> {
        let (spec, dataset) = (&self.spec.pseudo_label.irn, self.dataset.clone());
        let On { backbone, weights, stride } = spec.on(&self.spec.classifier);
        let (images, labels) = (self.files(&dataset.train), self.outputs(&dataset.train, labels, "label"));
        let mut units: Vec<UnitIdx> = Vec::new();
        for epoch in 0..spec.epochs {
            let params = AffinityEpochParams {
                epoch,
                epochs: spec.epochs,
                rng_seed: self.spec.rng_seed,
                precision: self.precision,
                backbone,
                stride,
                batch_size: spec.batch_size,
                crop: spec.crop,
                rescale: spec.rescale,
                radius: spec.radius,
                lr: spec.lr,
                head_lr_mult: spec.head_lr_mult,
                momentum: spec.momentum,
                weight_decay: spec.weight_decay,
            };
            // The backbone is not in the checkpoints.
            let mut inputs = vec![("weights", self.weights(&weights)?)];
            inputs.extend(units.last().map(|&previous| ("checkpoint", of(previous, "checkpoint"))));
            inputs.extend([("images", images.clone()), ("labels", labels.clone())]);
            units.push(self.add::<IrnEpoch>(&format!("epoch {epoch}"), &params, inputs)?);
        }
        Ok(units)
    }

    fn psa_walk(&mut self, item: &Item, cam: UnitIdx, checkpoint: UnitIdx) -> anyhow::Result<UnitIdx> {
        let spec = &self.spec.pseudo_label.psa;
        let On { backbone, stride, .. } = spec.on(&self.spec.classifier);
        let params = PsaWalkParams {
            backbone,
            stride,
            precision: self.precision,
            alpha: spec.alpha,
            radius: spec.radius,
            beta: spec.beta,
            steps: spec.steps,
        };
        let inputs =
            vec![("checkpoint", of(checkpoint, "checkpoint")), ("image", file(&item.image)), ("cam", of(cam, "cam"))];
        self.add::<PsaWalk>(&item.id, &params, inputs)
    }

    fn irn_walk(&mut self, item: &Item, cam: UnitIdx, checkpoint: UnitIdx) -> anyhow::Result<UnitIdx> {
        let spec = &self.spec.pseudo_label.irn;
        let On { backbone, weights, stride } = spec.on(&self.spec.classifier);
        let params = IrnWalkParams {
            backbone,
            stride,
            precision: self.precision,
            radius: spec.walk_radius,
            beta: spec.beta,
            steps: spec.steps,
        };
        let inputs = vec![
            ("weights", self.weights(&weights)?),
            ("checkpoint", of(checkpoint, "checkpoint")),
            ("image", file(&item.image)),
            ("cam", of(cam, "cam")),
        ];
        self.add::<IrnWalk>(&item.id, &params, inputs)
    }
}
