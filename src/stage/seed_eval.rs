//! `seed_eval`: mIoU of CAM seeds at every background threshold, and the best threshold.

use anyhow::{Context, ensure};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::cam_file::read_cam;
use super::{Output, Stage, StageContext, UnitInput};
use crate::data::image::decode_label_map;
use crate::vision::metric::ThresholdSweep;

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SeedEvalParams {
    /// Foreground classes.
    pub n_classes: i64,
    /// Labels whose mean, with background, is the mIoU; none: all that the truth has.
    pub classes: Vec<u8>,
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
    pub miou: f64,
    pub threshold: f64,
    pub per_class: Vec<Option<f64>>,
    /// Threshold and mIoU.
    pub curve: Vec<(f64, f64)>,
}

impl Stage for SeedEval {
    const KIND: &'static str = "seed_eval";
    // 1: first version
    const VERSION: u64 = 1;
    const PARALLEL: bool = false;
    type Params = SeedEvalParams;

    fn load(params: SeedEvalParams, _: &StageContext) -> anyhow::Result<Self> {
        Ok(Self { params })
    }

    fn run(&mut self, input: &UnitInput<'_>) -> anyhow::Result<Vec<Output>> {
        let n_classes = self.params.n_classes as usize + 1;
        let pairs: Vec<_> = input.set("cams")?.into_iter().zip(input.set("masks")?).collect();
        let one = |((item, cam), (_, mask)): &((String, _), (String, _))| {
            let cam = read_cam(&input.read("cams", cam)?).with_context(|| format!("CAM of `{item}`"))?;
            let truth = decode_label_map(&input.read("masks", mask)?).with_context(|| format!("mask of `{item}`"))?;
            ensure!((cam.height, cam.width) == (truth.height, truth.width), "`{item}`: CAM and mask differ in size");
            let mut sweep = ThresholdSweep::new(n_classes);
            sweep.add(&cam, &truth);
            Ok(sweep)
        };
        let merge = |a: ThresholdSweep, b: ThresholdSweep| Ok(a.merge(&b));
        let sweep = pairs.par_iter().map(one).try_reduce(|| ThresholdSweep::new(n_classes), merge)?;
        let scores = sweep.scores().into_iter();
        let scores: Vec<_> = scores.map(|(threshold, scores)| (threshold, scores.over(&self.params.classes))).collect();
        let curve = scores.iter().map(|(threshold, scores)| (*threshold, scores.miou)).collect();
        // Of equals the lowest threshold.
        let best = scores.into_iter().rev().max_by(|a, b| a.1.miou.total_cmp(&b.1.miou));
        let (threshold, best) = best.context("no threshold")?;
        let metrics = SeedMetrics { miou: best.miou, threshold, per_class: best.per_class, curve };
        let text = format!("{threshold:.2}").into_bytes();
        Ok(vec![Output::new("metrics", serde_json::to_vec(&metrics)?), Output::new("threshold", text)])
    }
}
