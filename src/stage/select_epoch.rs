//! `select_epoch`: of all epochs the checkpoint whose seeds score best with ground truth.

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};

use super::seed_eval::SeedMetrics;
use super::{Output, Stage, StageContext, UnitInput};

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SelectEpochParams {}

/// Reads the sets `metrics` (of seed evaluations) and `checkpoints`, both by epoch; gives `checkpoint`, of equals the
/// earliest. Its bytes are an epoch's own, so what was made from them before is not made again.
pub struct SelectEpoch;

impl Stage for SelectEpoch {
    const KIND: &'static str = "select_epoch";
    // 1: first version
    const VERSION: u64 = 1;
    const PARALLEL: bool = false;
    type Params = SelectEpochParams;

    fn load(_: SelectEpochParams, _: &StageContext) -> anyhow::Result<Self> {
        Ok(Self)
    }

    fn run(&mut self, input: &UnitInput<'_>) -> anyhow::Result<Vec<Output>> {
        let (metrics, checkpoints) = (input.set("metrics")?, input.set("checkpoints")?);
        ensure!(metrics.len() == checkpoints.len(), "{} metrics of {} epochs", metrics.len(), checkpoints.len());
        let mut best: Option<(f64, usize)> = None;
        for (i, (epoch, digest)) in metrics.iter().enumerate() {
            let metrics: SeedMetrics = serde_json::from_slice(&input.read("metrics", digest)?)
                .with_context(|| format!("metrics of epoch {epoch}"))?;
            let miou = metrics.scores.miou;
            if best.is_none_or(|(best, _)| miou > best) {
                best = Some((miou, i));
            }
        }
        let (_, best) = best.context("no epoch")?;
        Ok(vec![Output::new("checkpoint", input.read("checkpoints", &checkpoints[best].1)?.to_vec())])
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;

    use super::super::{BlobReader, Bytes, Device};
    use super::*;
    use crate::artifact::{Fingerprint, FingerprintInput, SetListing};
    use crate::digest::BlobDigest;
    use crate::vision::metric::Scores;

    struct Blobs(HashMap<BlobDigest, Vec<u8>>);
    impl BlobReader for Blobs {
        fn read(&self, digest: &BlobDigest) -> anyhow::Result<Bytes> {
            Ok(self.0[digest].as_slice().into())
        }
    }

    fn chosen(mious: &[f64]) -> Vec<u8> {
        let mut blobs = Blobs(HashMap::new());
        let mut put = |bytes: Vec<u8>| {
            let digest = BlobDigest::of(&bytes);
            blobs.0.insert(digest, bytes);
            digest
        };
        let metrics =
            |miou: f64| SeedMetrics { scores: Scores { miou, ..Scores::default() }, threshold: 0.2, curve: vec![] };
        let (mut scored, mut trained) = (SetListing::default(), SetListing::default());
        for (epoch, &miou) in mious.iter().enumerate() {
            scored.members.push((epoch.to_string(), put(serde_json::to_vec(&metrics(miou)).unwrap())));
            trained.members.push((epoch.to_string(), put(vec![epoch as u8])));
        }
        let inputs = [("metrics", scored), ("checkpoints", trained)].map(|(slot, set)| FingerprintInput {
            slot: slot.into(),
            digest: put(set.to_bytes()),
            is_set: true,
        });
        let fingerprint =
            Fingerprint { stage: SelectEpoch::KIND.into(), version: 1, params: "{}".into(), inputs: inputs.into() };
        let context = StageContext {
            device: Device::Cpu,
            progress: Arc::new(|_| ()),
            scratch: "unused".into(),
            interrupted: Arc::new(AtomicBool::new(false)),
        };
        let mut stage = SelectEpoch::load(SelectEpochParams {}, &context).unwrap();
        let input = UnitInput { label: "select_epoch train", fingerprint: &fingerprint, reader: &blobs };
        Stage::run(&mut stage, &input).unwrap().remove(0).bytes
    }

    #[test]
    fn the_best_epoch_and_of_equals_the_earliest() {
        assert_eq!(chosen(&[0.3, 0.5, 0.4]), [1]);
        assert_eq!(chosen(&[0.5, 0.4, 0.5]), [0]);
    }
}
