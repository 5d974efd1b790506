//! Trainings and results that went wrong without an error: a loss that explodes and stays finite, one that does not fall,
//! a threshold at an end of its range, one class everywhere, SE maps that leave much of the images out, and a batch of
//! more images than there are. A number that is built on one of them gets a mark with its reason in every table.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};

use serde_json::Value;

use super::build::CellUnits;
use super::graph::UnitIdx;
use super::outcomes::Outcomes;
use super::results::SCORED;
use super::spec::{Refinement, Spec};
use super::value::default_number;
use crate::artifact::ArtifactRef;
use crate::cache::Cache;
use crate::data::image::decode_se_map;
use crate::data::text::counted;
use crate::digest::BlobDigest;
use crate::stage::{lower_rate, number};

/// A loss explodes if the median of its last steps is above so many times that of its first steps.
const EXPLODES: f64 = 5.0;
/// It explodes also if a single step loses so many times what the first step lost.
const LEAPS: f64 = 100.0;
/// Both are measured against no less than this, the scale of the losses that are trained with, since one that begins
/// near zero may well rise.
const SCALE: f64 = 1.0;
/// The steps at either end of a training whose median is taken, at most.
const N_END: usize = 10;
/// A loss of fewer steps is not said to be flat.
const FEWEST_STEPS: usize = 30;
/// A loss that falls by less than this share is flat, and one that falls by less than chance.
const LEAST_FALL: f64 = 0.02;
/// A loss below this has been learned already, by the weights that the training began with.
const LEARNED: f64 = 0.1;
/// Predictions are of one class if it has this share of the pixels, and less of the ground truth.
const ONE_CLASS: f64 = 0.999;
/// SE maps that cover less than this share of the pixels are told of.
const LEAST_COVERAGE: f64 = 0.8;
/// SE maps that are looked at, evenly spread over the training images.
const N_LOOKED_AT: usize = 50;
/// A search for the threshold that went through its whole range tried as many: the authors' has 50.
const FEWEST_THRESHOLDS: usize = 50;

/// A reason not to trust some numbers of a variant.
#[derive(Clone, Debug, PartialEq)]
pub struct Sickness {
    pub reason: String,
    pub hint: String,
    /// The numbers that are built on it, of [`SCORED`].
    pub scored: &'static [&'static str],
}

/// The losses of one training or one epoch, by term; a value for each step that had the term.
type Terms = BTreeMap<String, Vec<f64>>;

/// A training of a variant, and the numbers that are built on it.
struct Training<'a> {
    /// For people.
    what: &'static str,
    /// The table of its fields.
    fields: &'static str,
    epochs: &'a [UnitIdx],
    batch_size: usize,
    accumulate: usize,
    lr: f64,
    scored: &'static [&'static str],
}

fn trainings<'a>(spec: &Spec, cell: &'a CellUnits) -> Vec<Training<'a>> {
    let (classifier, segmentation) = (&spec.classifier, &spec.segmentation);
    let (psa, irn) = (&spec.pseudo_label.psa, &spec.pseudo_label.irn);
    let is_psa = spec.pseudo_label.refine.contains(&Refinement::Psa);
    let (what, fields, batch_size, lr) = match is_psa {
        true => ("PSA's network", "pseudo_label.psa", psa.batch_size, psa.lr),
        false => ("IRN's network", "pseudo_label.irn", irn.batch_size, irn.lr),
    };
    let all = vec![
        Training {
            what: "the classifier",
            fields: "classifier",
            epochs: &cell.cam_epochs,
            batch_size: classifier.batch_size,
            accumulate: classifier.accumulate,
            lr: classifier.lr,
            scored: &SCORED,
        },
        Training { what, fields, epochs: &cell.affinity.epochs, batch_size, accumulate: 1, lr, scored: &SCORED[1..] },
        Training {
            what: "the segmentation network",
            fields: "segmentation",
            epochs: &cell.seg_epochs,
            batch_size: segmentation.batch_size,
            accumulate: segmentation.accumulate,
            lr: segmentation.lr,
            scored: &SCORED[2..],
        },
    ];
    all.into_iter().filter(|training| !training.epochs.is_empty()).collect()
}

/// Reasons that are known before a run: a step takes more images than there are.
pub fn before_training(spec: &Spec, cell: &CellUnits) -> Vec<Sickness> {
    let n_images = cell.dataset.train.len();
    let of = |training: Training<'_>| {
        let Training { what, fields, batch_size, accumulate, scored, .. } = training;
        let step = match accumulate {
            1 => format!("{fields}.batch_size = {batch_size}"),
            _ => format!("{fields}.batch_size = {batch_size} times {fields}.accumulate = {accumulate}"),
        };
        let is_more = batch_size.saturating_mul(accumulate) > n_images;
        let images = counted(n_images, "training image");
        is_more.then(|| Sickness {
            reason: format!("{step} is more than the {images}, so {what} takes one smaller step an epoch"),
            hint: match n_images / accumulate.max(1) {
                0 => format!("set `{fields}.accumulate` to 1"),
                most => format!("set `{fields}.batch_size` to {most} or less"),
            },
            scored,
        })
    };
    trainings(spec, cell).into_iter().filter_map(of).collect()
}

/// The losses and SE maps that were read already: a run, which looks at them after every epoch, reads nothing twice.
#[derive(Debug, Default)]
pub struct Examined {
    losses: HashMap<BlobDigest, Terms>,
    coverage: HashMap<BlobDigest, f64>,
}

impl Examined {
    /// What is wrong with the trainings of a variant, as far as they have got. Losses that are not in the store any more
    /// tell nothing.
    pub fn trainings(
        &mut self,
        spec: &Spec,
        cell: &CellUnits,
        (cache, finished): (&Cache, &Outcomes),
    ) -> Vec<Sickness> {
        let of = |training: Training<'_>| {
            let mut terms = Terms::new();
            let mut is_whole = true;
            for &epoch in training.epochs {
                let losses = finished.output(epoch, "losses").and_then(|output| self.losses(cache, &output));
                is_whole &= losses.is_some();
                for (term, values) in losses.into_iter().flatten() {
                    terms.entry(term.clone()).or_default().extend(values);
                }
            }
            let found = explodes(&terms).map(|explodes| (true, explodes));
            let (is_high, course) = found.or_else(|| Some((false, is_whole.then(|| flat(&terms)).flatten()?)))?;
            let Training { what, fields, lr, scored, .. } = training;
            let (reason, hint) = match is_high {
                true => (format!("the loss of {what} explodes: {course}"), hint_to_lower(fields, lr)),
                false => (format!("{what} does not learn: {course}"), hint_to_raise(fields, lr)),
            };
            Some(Sickness { reason, hint, scored })
        };
        trainings(spec, cell).into_iter().filter_map(of).collect()
    }

    fn losses(&mut self, cache: &Cache, output: &ArtifactRef) -> Option<&Terms> {
        match self.losses.entry(output.digest) {
            Entry::Occupied(known) => Some(known.into_mut()),
            Entry::Vacant(place) => {
                let rows: Vec<BTreeMap<String, Option<f64>>> =
                    serde_json::from_slice(&cache.store().read_output(output).ok()?).ok()?;
                let mut terms = Terms::new();
                let of_loss = |(term, _): &(String, _)| term != "lr" && term != "grad_norm";
                for (term, value) in rows.into_iter().flatten().filter(of_loss) {
                    terms.entry(term).or_default().extend(value);
                }
                Some(place.insert(terms))
            }
        }
    }

    /// All that is wrong with a variant. `metrics`: its evaluations that are there, by unit.
    pub fn variant(
        &mut self,
        spec: &Spec,
        cell: &CellUnits,
        (cache, finished): (&Cache, &Outcomes),
        metrics: &BTreeMap<UnitIdx, (BlobDigest, Value)>,
    ) -> Vec<Sickness> {
        let mut found = before_training(spec, cell);
        // Nothing is built on what has not run.
        let has_trained = cell.cam_epochs.first().is_some_and(|epoch| finished.key(*epoch).is_some());
        found.retain(|_| has_trained);
        found.extend(self.trainings(spec, cell, (cache, finished)));
        found.extend(self.low_coverage(spec, cell, (cache, finished)));
        let metrics_of = |unit: Option<UnitIdx>| Some(&metrics.get(&unit?)?.1);
        found.extend(metrics_of(cell.seed_eval).and_then(threshold_at_an_end));
        for (at, unit) in cell.evals().into_iter().enumerate() {
            found.extend(metrics_of(unit).and_then(|metrics| one_class(at, metrics, &cell.dataset.classes)));
        }
        found
    }

    /// SE maps with much of the image in no segment.
    fn low_coverage(
        &mut self,
        spec: &Spec,
        cell: &CellUnits,
        (cache, finished): (&Cache, &Outcomes),
    ) -> Option<Sickness> {
        let outputs: Vec<ArtifactRef> =
            cell.se_maps.iter().filter_map(|unit| finished.output(*unit, "se_map")).collect();
        let n_looked_at = outputs.len().min(N_LOOKED_AT);
        let chosen = (0..n_looked_at).filter_map(|i| outputs.get(i * outputs.len() / n_looked_at));
        let shares: Vec<f64> = chosen.filter_map(|output| self.coverage(cache, output)).collect();
        let mean = shares.iter().sum::<f64>() / shares.len() as f64;
        let of = if shares.len() < cell.se_maps.len() {
            format!(" (of {}, {} looked at)", counted(cell.se_maps.len(), "image"), shares.len())
        } else {
            String::new()
        };
        (mean < LEAST_COVERAGE).then(|| Sickness {
            reason: format!(
                "the segments of the SE maps cover {:.0} % of the pixels{of}, less than {:.0} %",
                mean * 100.0,
                LEAST_COVERAGE * 100.0
            ),
            hint: "raise `se_map.points_per_side`, or lower `se_map.pred_iou_thresh` and \
                   `se_map.stability_score_thresh`"
                .to_owned(),
            scored: if spec.classifier.ssc.enabled { &SCORED } else { &SCORED[1..] },
        })
    }

    /// The share of an SE map's pixels that are in a segment.
    fn coverage(&mut self, cache: &Cache, output: &ArtifactRef) -> Option<f64> {
        if let Some(known) = self.coverage.get(&output.digest) {
            return Some(*known);
        }
        let map = decode_se_map(&cache.store().read_output(output).ok()?).ok()?;
        let share = map.data.iter().filter(|id| **id != 0).count() as f64 / map.data.len().max(1) as f64;
        self.coverage.insert(output.digest, share);
        Some(share)
    }
}

/// How a loss explodes, for people.
fn explodes(terms: &Terms) -> Option<String> {
    let of_term = |(term, values): (&String, &Vec<f64>)| {
        let (first_step, n_end) = (values.first()?, values.len().div_ceil(4).min(N_END));
        let (first, last) = (median(&values[..n_end]), median(&values[values.len() - n_end..]));
        let (at, peak) = values.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1))?;
        if last > EXPLODES * first.max(SCALE) {
            Some(format!("`{term}` was {} in its first steps and is {} in its last", short(first), short(last)))
        } else if *peak > LEAPS * first_step.max(SCALE) {
            Some(format!("`{term}` was {} in its first step and {} in its step {at}", short(*first_step), short(*peak)))
        } else {
            None
        }
    };
    terms.iter().find_map(of_term)
}

/// How a loss stays where it was, for people: no term of it fell between the first and the last third of the steps.
fn flat(terms: &Terms) -> Option<String> {
    let third = |values: &[f64]| {
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        (mean, values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (n - 1.0) / n)
    };
    let mut longest: Option<(usize, String)> = None;
    for (term, values) in terms {
        if values.len() < FEWEST_STEPS {
            continue;
        }
        let n = values.len() / 3;
        let ((first, of_first), (last, of_last)) = (third(&values[..n]), third(&values[values.len() - n..]));
        // The fall of a loss that has learned nothing is below twice its standard error 39 times in 40.
        let least = (2.0 * (of_first + of_last).sqrt()).max(LEAST_FALL * first.abs());
        if first - last > least || last < LEARNED {
            return None;
        }
        if longest.as_ref().is_none_or(|(steps, _)| *steps < values.len()) {
            longest = Some((values.len(), format!("`{term}` was {}, then {}", short(first), short(last))));
        }
    }
    longest.map(|(steps, text)| format!("over {steps} steps no term of its loss fell by more than chance ({text})"))
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(0.0)
}

/// A loss for people: three digits behind the point of what is small, none of what is large.
fn short(loss: f64) -> String {
    if loss.abs() < 100.0 { format!("{loss:.3}") } else { format!("{loss:.0}") }
}

fn hint_to_lower(fields: &str, lr: f64) -> String {
    let field = format!("{fields}.lr");
    match lower_rate(lr, default_number(&field)) {
        Some(lower) => format!("set `{field}` to {} or less", number(lower)),
        None => format!("`{field}` is low already ({lr:e}): look at the images, the labels and the weights"),
    }
}

fn hint_to_raise(fields: &str, lr: f64) -> String {
    let field = format!("{fields}.lr");
    match default_number(&field).filter(|usual| lr < usual / 2.0) {
        Some(usual) => format!("`{field}` is {lr:e}; {} is its default", number(usual)),
        None => format!("look at the labels and the weights, and at `{field}` ({lr:e})"),
    }
}

fn threshold_at_an_end(metrics: &Value) -> Option<Sickness> {
    let threshold = metrics["threshold"].as_f64()?;
    let curve = metrics["curve"].as_array()?;
    let tried = |at: usize| curve.get(at)?.get(0)?.as_f64();
    let (lowest, highest) = (tried(0)?, tried(curve.len() - 1)?);
    // A search that stopped early ends just above the best.
    let is_whole = curve.len() >= FEWEST_THRESHOLDS;
    let of_top = [tried(curve.len().saturating_sub(2)), Some(highest)].map(|end| end.filter(|_| is_whole));
    let ends = [[Some(lowest), tried(1)], of_top].concat();
    ends.contains(&Some(threshold)).then(|| Sickness {
        reason: format!(
            "the seeds are best at threshold {threshold:.2}, at an end of those tried ({lowest:.2} to {highest:.2})"
        ),
        hint: "look at the CAMs in the overlays: no threshold tells objects from background".to_owned(),
        scored: &SCORED[..1],
    })
}

/// `at`: what is scored, of [`SCORED`].
fn one_class(at: usize, metrics: &Value, classes: &[String]) -> Option<Sickness> {
    let rows = metrics["confusion"].as_array()?;
    let pixels = |row: &Value, class: usize| row.get(class).and_then(Value::as_u64).unwrap_or(0);
    let truth: Vec<u64> = rows.iter().map(|row| (0..rows.len()).map(|class| pixels(row, class)).sum()).collect();
    let predicted: Vec<u64> = (0..rows.len()).map(|class| rows.iter().map(|row| pixels(row, class)).sum()).collect();
    let all: u64 = truth.iter().sum();
    let (class, most) = predicted.iter().enumerate().max_by_key(|(_, n)| **n)?;
    let share = |n: u64| n as f64 / all.max(1) as f64;
    let what = ["the seeds are", "the pseudo-labels are", "the segmentation network predicts"][at];
    let name = classes.get(class)?;
    (all > 0 && share(*most) >= ONE_CLASS && share(truth[class]) < ONE_CLASS).then(|| Sickness {
        reason: format!(
            "{what} `{name}` in {} % of the pixels, where the ground truth has it in {:.1} %",
            if *most == all { "100".to_owned() } else { format!("{:.1}", share(*most) * 100.0) },
            share(truth[class]) * 100.0
        ),
        hint: "look at the loss (s2c-pipe tensorboard), the learning rate and the number of epochs".to_owned(),
        scored: &SCORED[at..=at],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn terms(of: &[(&str, Vec<f64>)]) -> Terms {
        of.iter().map(|(term, values)| ((*term).to_owned(), values.clone())).collect()
    }

    /// Values around a line from `first` to `last`, with noise of no trend.
    fn course(n: usize, first: f64, last: f64, noise: f64) -> Vec<f64> {
        let at = |i: usize| first + (last - first) * i as f64 / (n - 1) as f64 + noise * [1.0, -0.5, 0.3, -0.8][i % 4];
        (0..n).map(at).collect()
    }

    #[test]
    fn a_loss_that_explodes_is_told_from_one_that_rises_a_little() {
        let text = |values: Vec<f64>| explodes(&terms(&[("cls", values)]));
        insta::assert_snapshot!(text(vec![9.0, 53.0, 45610.0]).unwrap(), @"`cls` was 9.000 in its first steps and is 45610 in its last");
        insta::assert_snapshot!(text(vec![0.7, 2e5, 0.8, 0.7, 0.7]).unwrap(), @"`cls` was 0.700 in its first step and 200000 in its step 1");
        // It is high from its second step on.
        assert!(text([vec![0.7], vec![300.0; 99]].concat()).is_some());
        assert!(text(course(100, 0.7, 7.0, 0.1)).is_some());
        for healthy in [
            course(100, 0.7, 0.1, 0.1),
            course(3, 0.7, 0.65, 0.0),
            course(100, 0.001, 0.9, 0.0), // a term that begins near zero
            course(100, 3.0, 6.0, 1.0),
            [course(50, 0.7, 0.2, 0.1), vec![4.0], course(50, 0.2, 0.1, 0.1)].concat(),
            vec![],
            vec![0.7],
        ] {
            assert_eq!(text(healthy.clone()), None, "{healthy:?}");
        }
    }

    #[test]
    fn a_loss_is_flat_if_no_term_of_it_falls() {
        let text = |of: &[(&str, Vec<f64>)]| flat(&terms(of));
        insta::assert_snapshot!(text(&[("cls", course(60, 0.693, 0.692, 0.0))]).unwrap(), @"over 60 steps no term of its loss fell by more than chance (`cls` was 0.693, then 0.692)");
        // A fall within the noise of the steps.
        assert!(text(&[("cls", course(60, 0.70, 0.65, 0.3))]).is_some());
        assert!(text(&[("cls", course(60, 0.5, 0.9, 0.1))]).is_some(), "it rises");
        for healthy in [
            vec![("cls", course(60, 0.69, 0.3, 0.1))],
            vec![("cls", course(60, 0.7, 0.7, 0.1)), ("ssc", course(60, 3.0, 2.0, 0.1))],
            vec![("cls", course(29, 0.7, 0.7, 0.0))],    // too short to tell
            vec![("cls", course(60, 0.05, 0.05, 0.01))], // it was learned before
            vec![],
        ] {
            assert_eq!(text(&healthy), None, "{healthy:?}");
        }
    }

    #[test]
    fn hints_name_rates_that_could_train() {
        assert_eq!(hint_to_lower("classifier", 1e6), "set `classifier.lr` to 0.01 or less");
        assert_eq!(hint_to_lower("segmentation", 2.5e-4), "set `segmentation.lr` to 3e-5 or less");
        assert!(hint_to_lower("classifier", 1e-9).contains("low already"));
        assert_eq!(hint_to_raise("classifier", 1e-9), "`classifier.lr` is 1e-9; 0.01 is its default");
        assert!(hint_to_raise("classifier", 0.01).starts_with("look at"));
        // Every training's fields are there.
        for fields in ["classifier", "segmentation", "pseudo_label.psa", "pseudo_label.irn"] {
            for field in ["lr", "batch_size"] {
                assert!(default_number(&format!("{fields}.{field}")).is_some(), "{fields}.{field}");
            }
        }
    }

    #[test]
    fn a_threshold_at_an_end_is_told() {
        let curve: Vec<(f64, f64)> = (0..=100).map(|percent| (f64::from(percent) / 100.0, 0.5)).collect();
        let metrics = |threshold: f64| serde_json::json!({ "threshold": threshold, "curve": &curve });
        let reason = |threshold| threshold_at_an_end(&metrics(threshold)).map(|found| found.reason);
        assert_eq!(
            reason(0.01).unwrap(),
            "the seeds are best at threshold 0.01, at an end of those tried (0.00 to 1.00)"
        );
        assert!([0.0, 0.99, 1.0].into_iter().all(|threshold| reason(threshold).is_some()));
        assert!([0.02, 0.5, 0.98].into_iter().all(|threshold| reason(threshold).is_none()));
        assert_eq!(threshold_at_an_end(&serde_json::json!({ "threshold": 0.0, "curve": [] })), None);
        let early = serde_json::json!({ "threshold": 0.22, "curve": &curve[..24] });
        assert_eq!(threshold_at_an_end(&early), None, "a search that stopped early ends above the best");
    }

    #[test]
    fn one_class_everywhere_is_told() {
        let classes = ["background", "cat"].map(str::to_owned);
        let reason = |at, confusion: [[u64; 2]; 2]| {
            one_class(at, &serde_json::json!({ "confusion": confusion }), &classes).map(|found| found.reason)
        };
        assert_eq!(
            reason(1, [[700, 0], [300, 0]]).unwrap(),
            "the pseudo-labels are `background` in 100 % of the pixels, where the ground truth has it in 70.0 %"
        );
        assert_eq!(
            reason(2, [[1, 699], [0, 3000]]),
            Some(
                "the segmentation network predicts `cat` in 100.0 % of the pixels, where the ground truth has it in 81.1 %"
                    .into()
            )
        );
        assert_eq!(reason(0, [[690, 10], [290, 10]]), None);
        assert_eq!(reason(0, [[1000, 0], [0, 0]]), None, "the ground truth is of one class too");
        assert_eq!(reason(0, [[0, 0], [0, 0]]), None);
    }
}
