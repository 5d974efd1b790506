//! `seed_eval`: mIoU of CAM seeds at every background threshold, and the best threshold.

use anyhow::{Context, ensure};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::cam_file::read_cam;
use super::params::{Sweep, is_default};
use super::{Output, Stage, StageContext, UnitInput};
use crate::data::image::decode_label_map;
use crate::vision::metric::{Scores, ThresholdSweep};

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SeedEvalParams {
    /// Foreground classes.
    pub n_classes: i64,
    /// Labels that means are over, with background; none: all that the truth has.
    pub classes: Vec<u8>,
    #[serde(default, skip_serializing_if = "is_default")]
    pub sweep: Sweep,
}

/// Reads the sets `cams` and `masks`; gives `metrics` (JSON) and `threshold` (the best one, as text: what
/// pseudo-labels read, so that they stand as long as it stays the same).
pub struct SeedEval {
    params: SeedEvalParams,
}

/// `metrics` of a seed evaluation.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SeedMetrics {
    /// At the best threshold.
    #[serde(flatten)]
    pub scores: Scores,
    pub threshold: f64,
    /// Threshold and mIoU.
    pub curve: Vec<(f64, f64)>,
}

impl Stage for SeedEval {
    const KIND: &'static str = "seed_eval";
    // 1: first version
    // 2: more than mIoU and IoU by class
    const VERSION: u64 = 2;
    const PARALLEL: bool = false;
    type Params = SeedEvalParams;

    fn load(params: SeedEvalParams, _: &StageContext) -> anyhow::Result<Self> {
        Ok(Self { params })
    }

    fn run(&mut self, input: &UnitInput<'_>) -> anyhow::Result<Vec<Output>> {
        let n_classes = self.params.n_classes as usize + 1;
        let pairs: Vec<_> = input.set("cams")?.into_iter().zip(input.set("masks")?).collect();
        let add = |mut sweep: ThresholdSweep, ((item, cam), (_, mask)): &((String, _), (String, _))| {
            let cam = read_cam(&input.read("cams", cam)?).with_context(|| format!("CAM of `{item}`"))?;
            let truth = decode_label_map(&input.read("masks", mask)?).with_context(|| format!("mask of `{item}`"))?;
            ensure!((cam.height, cam.width) == (truth.height, truth.width), "`{item}`: CAM and mask differ in size");
            sweep.add(&cam, &truth);
            Ok(sweep)
        };
        let none = || ThresholdSweep::new(n_classes);
        let merge = |a: ThresholdSweep, b: ThresholdSweep| Ok(a.merge(&b));
        let sweep = pairs.par_iter().try_fold(none, add).try_reduce(none, merge)?;
        let scores = sweep.scores().into_iter();
        let scores = scores.map(|(threshold, scores)| (threshold, scores.over(&self.params.classes)));
        let scores: Vec<_> = match self.params.sweep {
            Sweep::Full => scores.collect(),
            Sweep::EarlyStop => until_no_better(scores.take(50), |(_, scores)| scores.miou),
        };
        let curve = scores.iter().map(|(threshold, scores)| (*threshold, scores.miou)).collect();
        // Of equals the lowest threshold.
        let best = scores.into_iter().rev().max_by(|a, b| a.1.miou.total_cmp(&b.1.miou));
        let (threshold, best) = best.context("no threshold")?;
        let metrics = SeedMetrics { scores: best, threshold, curve };
        let text = format!("{threshold:.2}").into_bytes();
        Ok(vec![Output::new("metrics", serde_json::to_vec(&metrics)?), Output::new("threshold", text)])
    }
}

/// The first values, as long as each is above the one before and 0, and the one that ends this.
fn until_no_better<T>(values: impl Iterator<Item = T>, score: impl Fn(&T) -> f64) -> Vec<T> {
    let mut found: Vec<T> = Vec::new();
    for value in values {
        let is_better = score(&value) > found.last().map_or(0.0, &score);
        found.push(value);
        if !is_better {
            break;
        }
    }
    found
}

#[cfg(test)]
pub(super) mod tests {
    use half::f16;
    use safetensors::SafeTensors;

    use super::super::cam_file::write_cam;
    use super::super::tests::run_on_sets;
    use super::*;
    use crate::data::image::encode_label_map;
    use crate::vision::{Cam, Grid};

    pub(in crate::stage) const GOLDEN: &str =
        concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/seeds/golden.safetensors");

    /// The metrics of an epoch's seeds in tests/golden/seeds, as stored.
    pub(in crate::stage) fn of_epoch(golden: &SafeTensors<'_>, epoch: usize, sweep: Sweep) -> Vec<u8> {
        let tensor = |name: &str, i: usize| golden.tensor(&format!("{name}.{i}")).unwrap();
        let cam = |i: usize| {
            let (cam, classes) = (tensor(&format!("cam.{epoch}"), i), tensor("classes", i).data().to_vec());
            let scores = cam.data().as_chunks::<2>().0.iter().map(|&bytes| f16::from_le_bytes(bytes).to_f32());
            let (height, width) = (cam.shape()[1], cam.shape()[2]);
            write_cam(&Cam { classes, height, width, data: scores.collect() }).unwrap()
        };
        let mask = |i: usize| {
            let truth = tensor("truth", i);
            encode_label_map(&Grid::new(truth.shape()[0], truth.shape()[1], truth.data().to_vec()))
        };
        let sets = vec![("cams", (0..3).map(cam).collect()), ("masks", (0..3).map(mask).collect())];
        run_on_sets::<SeedEval>(SeedEvalParams { n_classes: 4, classes: vec![], sweep }, sets)
    }

    /// Against tests/golden/seeds/make.py: a pass over the pixels for each threshold.
    #[test]
    fn both_sweeps_are_those_of_their_definitions() {
        let golden = std::fs::read(GOLDEN).unwrap();
        let golden = SafeTensors::deserialize(&golden).unwrap();
        let words = |name: &str| golden.tensor(name).unwrap().data().as_chunks::<8>().0.to_vec();
        let curves: Vec<f64> = words("curve").into_iter().map(f64::from_le_bytes).collect();
        let (ends, best) = (words("early"), words("threshold"));
        for epoch in 0..3 {
            for (k, sweep) in [Sweep::Full, Sweep::EarlyStop].into_iter().enumerate() {
                let n = [101, u64::from_le_bytes(ends[epoch]) as usize][k];
                let found: SeedMetrics = serde_json::from_slice(&of_epoch(&golden, epoch, sweep)).unwrap();
                assert_eq!((found.threshold * 100.0).round() as u64, u64::from_le_bytes(best[2 * epoch + k]));
                assert_eq!(found.curve.len(), n, "epoch {epoch}, {sweep:?}");
                for ((_, found), expected) in found.curve.iter().zip(&curves[101 * epoch..]) {
                    assert!((found - expected).abs() < 1e-9, "epoch {epoch}: {found}, not {expected}");
                }
            }
        }
        assert_ne!(best[0], best[1], "the first epoch tells the two apart");
    }

    #[test]
    fn an_early_stop_misses_a_later_rise() {
        for (scores, found) in [
            (&[0.1, 0.3, 0.2, 0.9][..], &[0.1, 0.3, 0.2][..]),
            (&[0.1, 0.1, 0.9], &[0.1, 0.1]),
            (&[0.0, 0.9], &[0.0]),
            (&[0.1, 0.2], &[0.1, 0.2]),
        ] {
            assert_eq!(until_no_better(scores.iter().copied(), |score| *score), found);
        }
    }
}
