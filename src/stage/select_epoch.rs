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
    use safetensors::SafeTensors;

    use super::super::params::Sweep;
    use super::super::seed_eval::tests::{GOLDEN, of_epoch};
    use super::super::tests::run_on_sets;
    use super::*;
    use crate::vision::metric::Scores;

    fn chosen(mious: &[f64]) -> Vec<u8> {
        let metrics =
            |miou: f64| SeedMetrics { scores: Scores { miou, ..Scores::default() }, threshold: 0.2, curve: vec![] };
        let scored = mious.iter().map(|&miou| serde_json::to_vec(&metrics(miou)).unwrap()).collect();
        let trained = (0..mious.len()).map(|epoch| vec![epoch as u8]).collect();
        run_on_sets::<SelectEpoch>(SelectEpochParams {}, vec![("metrics", scored), ("checkpoints", trained)])
    }

    #[test]
    fn the_best_epoch_and_of_equals_the_earliest() {
        assert_eq!(chosen(&[0.3, 0.5, 0.4]), [1]);
        assert_eq!(chosen(&[0.5, 0.4, 0.5]), [0]);
    }

    /// Against tests/golden/seeds/make.py. The last epoch is another.
    #[test]
    fn the_epoch_whose_seeds_score_best_by_their_definition() {
        let golden = std::fs::read(GOLDEN).unwrap();
        let golden = SafeTensors::deserialize(&golden).unwrap();
        let metrics = (0..3).map(|epoch| of_epoch(&golden, epoch, Sweep::Full)).collect();
        let checkpoints = (0..3).map(|epoch| vec![epoch]).collect();
        let sets = vec![("metrics", metrics), ("checkpoints", checkpoints)];
        let found = run_on_sets::<SelectEpoch>(SelectEpochParams {}, sets);
        assert_eq!(found[0], golden.tensor("epoch").unwrap().data()[0]);
        assert_ne!(found[0], 2);
    }
}
