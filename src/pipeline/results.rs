//! The table of variants and metrics.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use serde_json::Value;

#[cfg(feature = "torch")]
use super::build::CellUnits;
#[cfg(feature = "torch")]
use super::file::Pipeline;
#[cfg(feature = "torch")]
use super::graph::UnitIdx;
#[cfg(feature = "torch")]
use super::outcomes::Outcomes;
use super::verified::{Stands, THRESHOLD, TableCell, Tabular};
use super::words::some_of;
#[cfg(feature = "torch")]
use crate::cache::{Cache, StoreError};
use crate::digest::BlobDigest;

/// Units or variants named in a line.
pub(crate) const MAX_NAMED: usize = 5;
/// In the place of a number.
const NOT_THERE: &str = "-";

/// What is scored, in the order of the columns.
pub const SCORED: [&str; 3] = ["seed", "pseudo_label", "segmentation"];

/// Evaluations that have finished.
#[cfg(feature = "torch")]
#[derive(Debug, Default)]
pub struct Evaluations {
    /// By unit: digest and content, with mIoU in 0..1.
    pub metrics: BTreeMap<UnitIdx, (BlobDigest, Value)>,
    /// Those whose result is lost or damaged.
    pub lost: BTreeSet<UnitIdx>,
}

/// The evaluations of some cells that are in the cache.
#[cfg(feature = "torch")]
pub fn metrics_of(cache: &Cache, finished: &Outcomes, cells: &[CellUnits]) -> anyhow::Result<Evaluations> {
    let mut found = Evaluations::default();
    for unit in cells.iter().flat_map(CellUnits::evals).flatten() {
        let Some(output) = finished.output(unit, "metrics") else { continue };
        match cache.store().read_output(&output) {
            Err(StoreError::Missing(_) | StoreError::Corrupt { .. }) => drop(found.lost.insert(unit)),
            bytes => drop(found.metrics.insert(unit, (output.digest, serde_json::from_slice(&bytes?)?))),
        }
    }
    Ok(found)
}

/// One cell's results; mIoU in percent, `None` where it is not there yet.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub cell: String,
    pub dataset: String,
    /// Of the CAM seeds at the threshold that is best for them, on the training images.
    pub seed_miou: Option<f64>,
    pub seed_threshold: Option<f64>,
    /// On the training images.
    pub pseudo_label_miou: Option<f64>,
    /// On the validation images.
    pub segmentation_miou: Option<f64>,
    /// IoU in percent by class, for classes that occur.
    pub per_class: BTreeMap<&'static str, BTreeMap<String, f64>>,
    /// What else was measured, by what was scored.
    pub metrics: BTreeMap<&'static str, Metrics>,
    /// Digests of the evaluations, by what was scored.
    pub digests: BTreeMap<&'static str, BlobDigest>,
    /// Labels of units below it that gave other bytes when an audit ran them again, by what was scored.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub drifted: BTreeMap<&'static str, Vec<String>>,
    /// Reasons not to trust a number, by what was scored: see [`super::health`].
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub sick: BTreeMap<&'static str, Vec<String>>,
}

impl Row {
    /// What stands behind a number in a table for people: `!` if an audit could not make it again, `?` if it is sick.
    pub fn marks(&self, scored: &str) -> &'static str {
        match (self.drifted.contains_key(scored), self.sick.contains_key(scored)) {
            (false, false) => "",
            (true, false) => "!",
            (false, true) => "?",
            (true, true) => "!?",
        }
    }

    /// The reasons of [`Row::marks`].
    pub fn doubts(&self, scored: &str) -> Vec<String> {
        let drifted = self.drifted.get(scored).map(|labels| drift_text(labels.iter().map(String::as_str)));
        drifted.into_iter().chain(self.sick.get(scored).into_iter().flatten().cloned()).collect()
    }

    /// The reasons of all its marks, each once.
    pub fn remarks(&self) -> Vec<String> {
        let mut remarks: Vec<String> = Vec::new();
        for doubt in SCORED.iter().flat_map(|scored| self.doubts(scored)) {
            if !remarks.contains(&doubt) {
                remarks.push(doubt);
            }
        }
        remarks
    }
}

/// `labels`: of units that gave other bytes in an audit.
fn drift_text<'a>(labels: impl Iterator<Item = &'a str>) -> String {
    let labels: BTreeSet<&str> = labels.collect();
    format!("an audit got other bytes from {}", some_of(&labels.into_iter().collect::<Vec<_>>(), MAX_NAMED))
}

/// Scores of one evaluation in percent; see [`crate::vision::metric::Scores`] and
/// [`crate::vision::boundary::boundary_f`].
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Metrics {
    /// In the order of [`MEANS`]; `boundary_f` is not measured of seeds.
    #[serde(flatten)]
    pub means: BTreeMap<&'static str, f64>,
    pub precision: BTreeMap<String, f64>,
    pub recall: BTreeMap<String, f64>,
    pub boundary: BTreeMap<String, f64>,
    /// Pixels by class of the truth and predicted class, where there are some.
    pub confusion: BTreeMap<String, BTreeMap<String, u64>>,
}

/// Scores over all classes: their names in JSON and for people.
const MEANS: [(&str, &str); 6] = [
    ("miou", "mIoU"),
    ("mean_precision", "precision"),
    ("mean_accuracy", "recall"),
    ("pixel_accuracy", "pixel accuracy"),
    ("fw_iou", "fw IoU"),
    ("boundary_f", "boundary F"),
];

impl Metrics {
    /// From what `evaluate` or `seed_eval` gave.
    pub fn new(found: &Value, classes: &[String]) -> Self {
        let percent = |value: &Value| value.as_f64().map(|value| value * 100.0);
        let named = |value: &Value| -> Vec<(String, Value)> {
            classes.iter().cloned().zip(value.as_array().cloned().unwrap_or_default()).collect()
        };
        let by_class = |name: &str| {
            let values = named(&found[name]).into_iter();
            values.filter_map(|(class, value)| Some((class, percent(&value)?))).collect()
        };
        let pixels = |row: Value| -> BTreeMap<String, u64> {
            let counts = named(&row).into_iter().filter_map(|(class, n)| Some((class, n.as_u64()?)));
            counts.filter(|(_, n)| *n > 0).collect()
        };
        let rows = named(&found["confusion"]).into_iter().map(|(class, row)| (class, pixels(row)));
        Self {
            means: MEANS.iter().filter_map(|(name, _)| Some((*name, percent(&found[*name])?))).collect(),
            precision: by_class("precision"),
            recall: by_class("recall"),
            boundary: by_class("boundary"),
            confusion: rows.filter(|(_, row)| !row.is_empty()).collect(),
        }
    }
}

#[derive(Clone, Debug)]
pub struct ResultsTable {
    pub rows: Vec<Row>,
}

impl ResultsTable {
    #[cfg(feature = "torch")]
    pub fn new(pipeline: &Pipeline, cells: &[CellUnits], metrics: BTreeMap<UnitIdx, (BlobDigest, Value)>) -> Self {
        let row = |(cell, units): (&super::file::Cell, &CellUnits)| {
            let of = |unit: Option<UnitIdx>, name: &str| metrics.get(&unit?)?.1.get(name)?.as_f64();
            let percent = |unit| of(unit, "miou").map(|miou| miou * 100.0);
            let evals =
                [("seed", units.seed_eval), ("pseudo_label", units.pseudo_eval), ("segmentation", units.seg_eval)];
            let all = |unit: Option<UnitIdx>| Some(Metrics::new(&metrics.get(&unit?)?.1, &units.dataset.classes));
            let per_class = |unit: Option<UnitIdx>| {
                let ious = metrics.get(&unit?)?.1.get("per_class")?.as_array()?;
                let named = units.dataset.classes.iter().zip(ious);
                Some(named.filter_map(|(class, iou)| Some((class.clone(), iou.as_f64()? * 100.0))).collect())
            };
            Row {
                cell: cell.name.clone(),
                dataset: units.dataset.name.clone(),
                seed_miou: percent(units.seed_eval),
                seed_threshold: of(units.seed_eval, "threshold"),
                pseudo_label_miou: percent(units.pseudo_eval),
                segmentation_miou: percent(units.seg_eval),
                per_class: evals.into_iter().filter_map(|(name, unit)| Some((name, per_class(unit)?))).collect(),
                metrics: evals.into_iter().filter_map(|(name, unit)| Some((name, all(unit)?))).collect(),
                digests: evals.into_iter().filter_map(|(name, unit)| Some((name, metrics.get(&unit?)?.0))).collect(),
                drifted: BTreeMap::new(),
                sick: BTreeMap::new(),
            }
        };
        Self { rows: pipeline.cells.iter().zip(cells).map(row).collect() }
    }

    const HEADER: [&str; 5] = ["variant", "seed mIoU", THRESHOLD, "pseudo-label mIoU", "segmentation mIoU"];

    fn values(&self) -> Vec<[String; 5]> {
        let number =
            |value: Option<f64>, digits: usize| value.map_or(NOT_THERE.to_owned(), |value| format!("{value:.digits$}"));
        let row = |row: &Row| {
            let [seed, pseudo, seg] =
                [row.seed_miou, row.pseudo_label_miou, row.segmentation_miou].map(|miou| number(miou, 1));
            [row.cell.clone(), seed, number(row.seed_threshold, 2), pseudo, seg]
        };
        self.rows.iter().map(row).collect()
    }

    /// Numbers that are not to be trusted have a mark, and the reasons stand below: see [`Row::marks`].
    pub fn text(&self) -> String {
        let mut values = self.values();
        for (row, cells) in self.rows.iter().zip(&mut values) {
            // The threshold was found on the seeds too.
            for (scored, columns) in SCORED.iter().zip([1..3, 3..4, 4..5]) {
                let there = cells[columns].iter_mut().filter(|cell| *cell != NOT_THERE);
                there.for_each(|cell| cell.push_str(row.marks(scored)));
            }
        }
        let name = values.iter().map(|row| row[0].chars().count()).chain([7]).max().unwrap_or(7);
        let line = |[first, rest @ ..]: &[String; 5]| {
            let cells = rest.iter().zip(&Self::HEADER[1..]);
            let cells: String = cells.map(|(cell, head)| format!("  {cell:>0$}", head.len())).collect();
            format!("{first:<name$}{cells}\n")
        };
        let dataset = self.rows.first().map_or("", |row| &row.dataset);
        let header = line(&Self::HEADER.map(str::to_owned));
        let rows: String = values.iter().map(line).collect();
        format!("{dataset}, mIoU in %\n{header}{rows}{}", self.remarks_text())
    }

    fn remarks_text(&self) -> String {
        let mut labels = self.rows.iter().flat_map(|row| row.drifted.values().flatten()).map(String::as_str).peekable();
        let drifted = labels.peek().is_some().then(|| format!("! {}\n", drift_text(labels)));
        // In the order of the rows; a reason that several have stands once.
        let mut reasons: Vec<(&str, Vec<&str>)> = Vec::new();
        for row in &self.rows {
            for reason in SCORED.iter().filter_map(|scored| row.sick.get(scored)).flatten() {
                match reasons.iter_mut().find(|(known, _)| known == reason) {
                    Some((_, cells)) if cells.contains(&&*row.cell) => {}
                    Some((_, cells)) => cells.push(&row.cell),
                    None => reasons.push((reason, vec![&row.cell])),
                }
            }
        }
        let sick = reasons.into_iter().map(|(reason, cells)| format!("? {}: {reason}\n", some_of(&cells, MAX_NAMED)));
        drifted.into_iter().chain(sick).collect()
    }

    /// Every mean of every evaluation, a line each.
    pub fn metrics_text(&self) -> String {
        let lines = self.rows.iter().flat_map(|row| {
            let name = |scored: &str| format!("{}: {}{}", row.cell, scored.replace('_', "-"), row.marks(scored));
            row.metrics.iter().map(move |(scored, metrics)| (name(scored), metrics))
        });
        let lines: Vec<(String, &Metrics)> = lines.collect();
        let name = lines.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
        let head: String = MEANS.iter().map(|(_, head)| format!("  {head:>6}")).collect();
        let line = |(first, metrics): &(String, &Metrics)| {
            let cell = |(name, head): &(&str, &str)| {
                let value = metrics.means.get(name).map_or("-".to_owned(), |value| format!("{value:.1}"));
                format!("  {value:>0$}", head.len().max(6))
            };
            format!("{first:<name$}{}\n", MEANS.iter().map(cell).collect::<String>())
        };
        format!("{:<name$}{head}\n{}", "", lines.iter().map(line).collect::<String>())
    }

    /// The confusion matrices: a line for each pair of classes that has pixels.
    pub fn confusion_csv(&self) -> String {
        let mut text = String::from("variant,scored,truth,predicted,pixels\n");
        for row in &self.rows {
            for (scored, metrics) in &row.metrics {
                for (truth, predicted) in &metrics.confusion {
                    for (class, pixels) in predicted {
                        let [cell, truth, class] = [&row.cell, truth, class].map(|name| csv_quoted(name));
                        text.push_str(&format!("{cell},{scored},{truth},{class},{pixels}\n"));
                    }
                }
            }
        }
        text
    }

    pub fn csv(&self) -> String {
        let mut text = String::from("variant,seed_miou,threshold,pseudo_label_miou,segmentation_miou,remarks\n");
        for (row, values) in self.rows.iter().zip(self.values()) {
            let remarks = row.remarks().join("; ");
            let cells = values.iter().chain([&remarks]).map(|cell| csv_quoted(cell));
            text.push_str(&(cells.collect::<Vec<_>>().join(",") + "\n"));
        }
        text
    }

    /// For LaTeX, with the evaluation of each number.
    pub fn tabular(&self) -> Tabular {
        let scored = [SCORED[0], SCORED[0], SCORED[1], SCORED[2]];
        let rows = self.rows.iter().zip(self.values()).map(|(row, [name, cells @ ..])| {
            let cell = |(text, scored): (String, &str)| {
                let digest = row.digests.get(scored).filter(|_| text != NOT_THERE);
                let stands = digest.map_or(Stands::Nothing, |digest| Stands::One(*digest));
                let doubts = if stands == Stands::Nothing { Vec::new() } else { row.doubts(scored) };
                TableCell { stands, text, doubts }
            };
            (name, cells.into_iter().zip(scored).map(cell).collect())
        });
        Tabular { columns: Self::HEADER.map(str::to_owned).to_vec(), rows: rows.collect() }
    }

    pub fn json(&self) -> anyhow::Result<String> {
        Ok(serde_json::to_string_pretty(&self.rows)?)
    }
}

/// A cell of a CSV file, in quotes where it needs them; also where readers would cut spaces off.
pub(super) fn csv_quoted(text: &str) -> String {
    match text.contains([',', '"', '\n', '\r']) || text.trim() != text {
        true => format!("\"{}\"", text.replace('"', "\"\"")),
        false => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_has_its_class_and_its_place() {
        let found = serde_json::json!({
            "miou": 0.5, "mean_precision": 0.25, "mean_accuracy": 1.0, "pixel_accuracy": 0.75, "fw_iou": 0.6,
            "precision": [0.5, null, 0.0], "recall": [1.0, null, null], "boundary_f": 0.125, "boundary": [0.125, null, null],
            "confusion": [[7, 0, 3], [0, 0, 0], [0, 1, 0]],
        });
        let classes = ["background", "cat, large", "dog"].map(str::to_owned);
        let metrics = Metrics::new(&found, &classes);
        assert_eq!(metrics.precision, BTreeMap::from([("background".into(), 50.0), ("dog".into(), 0.0)]));
        let row = Row {
            cell: "S2C".into(),
            dataset: "t".into(),
            seed_miou: None,
            seed_threshold: None,
            pseudo_label_miou: None,
            segmentation_miou: None,
            per_class: BTreeMap::new(),
            metrics: BTreeMap::from([("pseudo_label", metrics), ("seed", Metrics::default())]),
            digests: BTreeMap::new(),
            drifted: BTreeMap::new(),
            sick: BTreeMap::new(),
        };
        let table = ResultsTable { rows: vec![row] };
        insta::assert_snapshot!(table.metrics_text(), @r"
                             mIoU  precision  recall  pixel accuracy  fw IoU  boundary F
        S2C: pseudo-label    50.0       25.0   100.0            75.0    60.0        12.5
        S2C: seed               -          -       -               -       -           -
        ");
        insta::assert_snapshot!(table.confusion_csv(), @r#"
        variant,scored,truth,predicted,pixels
        S2C,pseudo_label,background,background,7
        S2C,pseudo_label,background,dog,3
        S2C,pseudo_label,dog,"cat, large",1
        "#);
    }

    #[test]
    fn a_cell_of_csv_is_read_as_it_was() {
        for name in ["a,b", "\"q\"", "a\rb", "a\nb", "a\r\nb", " a", "a ", "a;b", "=1+1", "\u{e9}", "\t"] {
            let text = format!("{},{}\n", csv_quoted(name), csv_quoted("x"));
            let mut reader = csv::ReaderBuilder::new().has_headers(false).from_reader(text.as_bytes());
            let rows: Vec<csv::StringRecord> = reader.records().map(Result::unwrap).collect();
            assert_eq!((rows.len(), &rows[0][0], &rows[0][1]), (1, name, "x"));
        }
    }

    #[test]
    fn what_is_built_on_drift_or_sick_has_a_mark_and_the_rest_has_none() {
        let row = |cell: &str, drifted: &[&'static str]| Row {
            cell: cell.into(),
            dataset: "t".into(),
            seed_miou: Some(50.0),
            seed_threshold: Some(0.25),
            pseudo_label_miou: Some(60.0),
            segmentation_miou: None,
            per_class: BTreeMap::new(),
            metrics: BTreeMap::new(),
            digests: BTreeMap::new(),
            drifted: drifted.iter().map(|scored| (*scored, vec!["cam_epoch epoch 1".to_owned()])).collect(),
            sick: BTreeMap::new(),
        };
        let table = ResultsTable { rows: vec![row("base", &[]), row("S2C", &["seed", "pseudo_label"])] };
        insta::assert_snapshot!(table.text(), @r"
        t, mIoU in %
        variant  seed mIoU  threshold  pseudo-label mIoU  segmentation mIoU
        base          50.0       0.25               60.0                  -
        S2C          50.0!      0.25!              60.0!                  -
        ! an audit got other bytes from cam_epoch epoch 1
        ");
        let json: serde_json::Value = serde_json::from_str(&table.json().unwrap()).unwrap();
        assert_eq!(json[0].get("drifted"), None);
        assert_eq!(json[1]["drifted"]["seed"], serde_json::json!(["cam_epoch epoch 1"]));

        // A number of a sick training has another mark, in every table.
        let mut table = table;
        let explodes =
            "the loss of the classifier explodes: `cls` was 0.700 in its first steps and is 45610 in its last";
        let flat = "the segmentation network does not learn";
        for row in &mut table.rows {
            row.sick = BTreeMap::from([("seed", vec![explodes.to_owned()])]);
        }
        table.rows[1].sick.insert("pseudo_label", vec![explodes.to_owned(), flat.to_owned()]);
        insta::assert_snapshot!(table.text(), @r"
        t, mIoU in %
        variant  seed mIoU  threshold  pseudo-label mIoU  segmentation mIoU
        base         50.0?      0.25?               60.0                  -
        S2C         50.0!?     0.25!?             60.0!?                  -
        ! an audit got other bytes from cam_epoch epoch 1
        ? base; S2C: the loss of the classifier explodes: `cls` was 0.700 in its first steps and is 45610 in its last
        ? S2C: the segmentation network does not learn
        ");
        insta::assert_snapshot!(table.csv(), @r"
        variant,seed_miou,threshold,pseudo_label_miou,segmentation_miou,remarks
        base,50.0,0.25,60.0,-,the loss of the classifier explodes: `cls` was 0.700 in its first steps and is 45610 in its last
        S2C,50.0,0.25,60.0,-,an audit got other bytes from cam_epoch epoch 1; the loss of the classifier explodes: `cls` was 0.700 in its first steps and is 45610 in its last; the segmentation network does not learn
        ");
        table.rows[1].digests.insert("seed", BlobDigest::of(b"metrics"));
        let source = super::super::verified::TableSource { file: "a.toml".into(), set: vec![], against: None };
        let latex = table.tabular().latex(&source);
        insta::assert_snapshot!(latex.lines().skip(4).collect::<Vec<_>>().join("\n"), @r"
        base & 50.0 & 0.25 & 60.0 & - \\
        % s2c: base/seed mIoU -
        % s2c: base/threshold -
        % s2c: base/pseudo-label mIoU -
        % s2c: base/segmentation mIoU -
        S2C & 50.0$^\dagger$ & 0.25$^\dagger$ & 60.0 & - \\
        % s2c: S2C/seed mIoU 2027aff71522eaa5d33b3611777d0cdaccb184a4a9f95729207c36398feaa748
        % s2c: S2C/threshold 2027aff71522eaa5d33b3611777d0cdaccb184a4a9f95729207c36398feaa748
        % s2c: S2C/pseudo-label mIoU -
        % s2c: S2C/segmentation mIoU -
        % dagger: S2C/seed mIoU: an audit got other bytes from cam_epoch epoch 1
        % dagger: S2C/seed mIoU: the loss of the classifier explodes: `cls` was 0.700 in its first steps and is 45610 in its last
        % dagger: S2C/threshold: an audit got other bytes from cam_epoch epoch 1
        % dagger: S2C/threshold: the loss of the classifier explodes: `cls` was 0.700 in its first steps and is 45610 in its last
        \end{tabular}
        ");
        let json: serde_json::Value = serde_json::from_str(&table.json().unwrap()).unwrap();
        assert_eq!(json[1]["sick"]["pseudo_label"], serde_json::json!([explodes, flat]));
    }
}
