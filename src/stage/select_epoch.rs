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
            if best.is_none_or(|(miou, _)| metrics.miou > miou) {
                best = Some((metrics.miou, i));
            }
        }
        let (_, best) = best.context("no epoch")?;
        Ok(vec![Output::new("checkpoint", input.read("checkpoints", &checkpoints[best].1)?.to_vec())])
    }
}
