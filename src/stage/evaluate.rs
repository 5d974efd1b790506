//! `evaluate`: mIoU of label maps against the truth.

use anyhow::{Context, ensure};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{Output, Stage, StageContext, UnitInput};
use crate::data::image::decode_label_map;
use crate::vision::metric::ConfusionMatrix;

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvaluateParams {
    /// Foreground classes.
    pub n_classes: i64,
    /// Labels whose mean, with background, is the mIoU; none: all that the truth has.
    pub classes: Vec<u8>,
}

/// Reads the sets `predictions` and `masks`; gives `metrics`: the JSON of [`crate::vision::metric::Scores`].
pub struct Evaluate {
    params: EvaluateParams,
}

impl Stage for Evaluate {
    const KIND: &'static str = "evaluate";
    // 1: first version
    const VERSION: u64 = 1;
    const PARALLEL: bool = false;
    type Params = EvaluateParams;

    fn load(params: EvaluateParams, _: &StageContext) -> anyhow::Result<Self> {
        Ok(Self { params })
    }

    fn run(&mut self, input: &UnitInput<'_>) -> anyhow::Result<Vec<Output>> {
        let n_classes = self.params.n_classes as usize + 1;
        let pairs: Vec<_> = input.set("predictions")?.into_iter().zip(input.set("masks")?).collect();
        let one = |((item, prediction), (_, mask)): &((String, _), (String, _))| {
            let map = |slot: &str, digest| {
                decode_label_map(&input.read(slot, digest)?).with_context(|| format!("`{slot}` of `{item}`"))
            };
            let (prediction, truth) = (map("predictions", prediction)?, map("masks", mask)?);
            let same = (prediction.height, prediction.width) == (truth.height, truth.width);
            ensure!(same, "`{item}`: prediction and mask differ in size");
            let mut matrix = ConfusionMatrix::new(n_classes);
            matrix.add(&prediction, &truth);
            Ok(matrix)
        };
        let merge = |a: ConfusionMatrix, b: ConfusionMatrix| Ok(a.merge(&b));
        let matrix = pairs.par_iter().map(one).try_reduce(|| ConfusionMatrix::new(n_classes), merge)?;
        Ok(vec![Output::new("metrics", serde_json::to_vec(&matrix.scores().over(&self.params.classes))?)])
    }
}
