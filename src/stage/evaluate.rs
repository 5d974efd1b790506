//! `evaluate`: label maps against the truth.

use anyhow::{Context, ensure};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{Output, Stage, StageContext, UnitInput};
use crate::data::image::decode_label_map;
use crate::vision::boundary::boundary_f;
use crate::vision::metric::{ConfusionMatrix, Scores};

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvaluateParams {
    /// Foreground classes.
    pub n_classes: i64,
    /// Labels that means are over, with background; none: all that the truth has.
    pub classes: Vec<u8>,
}

/// `metrics` of an evaluation.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Metrics {
    #[serde(flatten)]
    pub scores: Scores,
    /// Mean over classes of `boundary`.
    pub boundary_f: f64,
    /// Mean of [`boundary_f`] over the images in which a class has a boundary, true or predicted; `None`: it has none.
    pub boundary: Vec<Option<f64>>,
}

/// Reads the sets `predictions` and `masks`; gives `metrics`: the JSON of [`Metrics`].
pub struct Evaluate {
    params: EvaluateParams,
}

impl Stage for Evaluate {
    const KIND: &'static str = "evaluate";
    // 1: first version
    // 2: more than mIoU, IoU by class and pixel accuracy
    const VERSION: u64 = 2;
    const PARALLEL: bool = false;
    type Params = EvaluateParams;

    fn load(params: EvaluateParams, _: &StageContext) -> anyhow::Result<Self> {
        Ok(Self { params })
    }

    fn run(&mut self, input: &UnitInput<'_>) -> anyhow::Result<Vec<Output>> {
        let n_classes = self.params.n_classes as usize + 1;
        let pairs: Vec<_> = input.set("predictions")?.into_iter().zip(input.set("masks")?).collect();
        let add = |(mut matrix, mut boundaries): Counted,
                   ((item, prediction), (_, mask)): &((String, _), (String, _))| {
            let map = |slot: &str, digest| {
                decode_label_map(&input.read(slot, digest)?).with_context(|| format!("`{slot}` of `{item}`"))
            };
            let (prediction, truth) = (map("predictions", prediction)?, map("masks", mask)?);
            let same = (prediction.height, prediction.width) == (truth.height, truth.width);
            ensure!(same, "`{item}`: prediction and mask differ in size");
            matrix.add(&prediction, &truth);
            boundaries.extend(boundary_f(&prediction, &truth, n_classes));
            Ok((matrix, boundaries))
        };
        let none = || (ConfusionMatrix::new(n_classes), Vec::new());
        let merge = |a: Counted, b: Counted| Ok((a.0.merge(&b.0), [a.1, b.1].concat()));
        let (matrix, boundaries) = pairs.par_iter().try_fold(none, add).try_reduce(none, merge)?;
        let scores = matrix.scores().over(&self.params.classes);
        let boundary: Vec<Option<f64>> = (0..n_classes).map(|class| mean_of(class, &boundaries)).collect();
        let boundary_f = scores.mean_over(&self.params.classes, &boundary);
        Ok(vec![Output::new("metrics", serde_json::to_vec(&Metrics { scores, boundary_f, boundary })?)])
    }
}

/// Pixels, and the boundary scores of images in their order: so their sums are the same whoever counted which.
type Counted = (ConfusionMatrix, Vec<(u8, f64)>);

fn mean_of(class: usize, boundaries: &[(u8, f64)]) -> Option<f64> {
    let of_class = boundaries.iter().filter(|(label, _)| usize::from(*label) == class);
    let (sum, n) = of_class.fold((0.0, 0), |(sum, n), (_, f)| (sum + f, n + 1));
    (n > 0).then(|| sum / f64::from(n))
}

#[cfg(test)]
mod tests {
    use safetensors::SafeTensors;

    use super::super::tests::run_on_sets;
    use super::*;
    use crate::data::image::encode_label_map;
    use crate::vision::Grid;

    /// `metrics` of the maps of a golden file.
    fn metrics(golden: &SafeTensors<'_>, classes: &[u8]) -> Metrics {
        let maps = |(slot, name)| {
            let map = |i: usize| {
                let map = golden.tensor(&format!("{name}.{i}")).unwrap();
                encode_label_map(&Grid::new(map.shape()[0], map.shape()[1], map.data().to_vec()))
            };
            (slot, (0..3).map(map).collect())
        };
        let sets = [("predictions", "prediction"), ("masks", "truth")].map(maps);
        let params = EvaluateParams { n_classes: 5, classes: classes.to_vec() };
        serde_json::from_slice(&run_on_sets::<Evaluate>(params, sets.into())).unwrap()
    }

    /// Against tests/golden/metrics/make.py.
    #[test]
    fn every_score_is_that_of_its_definition() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/metrics/golden.safetensors");
        let golden = std::fs::read(path).unwrap();
        let golden = SafeTensors::deserialize(&golden).unwrap();
        let words = |name: &str| golden.tensor(name).unwrap().data().as_chunks::<8>().0.to_vec();
        let numbers = |name: &str| words(name).into_iter().map(f64::from_le_bytes).collect::<Vec<_>>();
        let close = |name: &str, found: &[f64]| {
            let expected = numbers(name);
            assert_eq!(found.len(), expected.len(), "{name}");
            for (a, b) in found.iter().zip(&expected) {
                assert!((a - b).abs() < 1e-12 || (a.is_nan() && b.is_nan()), "{name}: {found:?}, not {expected:?}");
            }
        };
        let Metrics { scores, boundary_f, boundary } = metrics(&golden, &[]);
        let by_class = |values: &[Option<f64>]| values.iter().map(|v| v.unwrap_or(f64::NAN)).collect::<Vec<_>>();
        close("per_class", &by_class(&scores.per_class));
        close("precision", &by_class(&scores.precision));
        close("recall", &by_class(&scores.recall));
        close("boundary", &by_class(&boundary));
        close("means", &[scores.miou, scores.mean_precision, scores.mean_accuracy, boundary_f]);
        close("pixels", &[scores.pixel_accuracy, scores.fw_iou]);
        let pixels: Vec<u64> = words("confusion").into_iter().map(u64::from_le_bytes).collect();
        assert_eq!(scores.confusion.concat(), pixels);
        let Metrics { scores, boundary_f, .. } = metrics(&golden, &[2, 4]);
        close("means.2.4", &[scores.miou, scores.mean_precision, scores.mean_accuracy, boundary_f]);
    }
}
