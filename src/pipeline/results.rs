//! The table of variants and metrics.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

use super::build::CellUnits;
use super::file::Pipeline;
use super::graph::{Graph, UnitIdx};
use super::plan::finished;
use crate::cache::Cache;

/// mIoU in 0..1 by unit, for the evaluations that have finished.
pub fn metrics_of(
    graph: &Graph,
    cache: &Cache,
    targets: &[UnitIdx],
    cells: &[CellUnits],
) -> anyhow::Result<BTreeMap<UnitIdx, Value>> {
    let finished = finished(graph, cache, targets);
    let mut metrics = BTreeMap::new();
    for unit in cells.iter().flat_map(|cell| [cell.seed_eval, cell.pseudo_eval, cell.seg_eval]).flatten() {
        // A result whose blob is gone is not there.
        let output = finished.output(unit, "metrics");
        if let Some(bytes) = output.and_then(|output| cache.store().read(&output.digest).ok()) {
            metrics.insert(unit, serde_json::from_slice(&bytes)?);
        }
    }
    Ok(metrics)
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
}

#[derive(Clone, Debug)]
pub struct ResultsTable {
    pub rows: Vec<Row>,
}

impl ResultsTable {
    pub fn new(pipeline: &Pipeline, cells: &[CellUnits], metrics: BTreeMap<UnitIdx, Value>) -> Self {
        let row = |(cell, units): (&super::file::Cell, &CellUnits)| {
            let of = |unit: Option<UnitIdx>, name: &str| metrics.get(&unit?)?.get(name)?.as_f64();
            let percent = |unit| of(unit, "miou").map(|miou| miou * 100.0);
            let evals =
                [("seed", units.seed_eval), ("pseudo_label", units.pseudo_eval), ("segmentation", units.seg_eval)];
            let per_class = |unit: Option<UnitIdx>| {
                let ious = metrics.get(&unit?)?.get("per_class")?.as_array()?;
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
            }
        };
        Self { rows: pipeline.cells.iter().zip(cells).map(row).collect() }
    }

    const HEADER: [&str; 5] = ["variant", "seed mIoU", "threshold", "pseudo-label mIoU", "segmentation mIoU"];

    fn values(&self) -> Vec<[String; 5]> {
        let number =
            |value: Option<f64>, digits: usize| value.map_or("-".to_owned(), |value| format!("{value:.digits$}"));
        let row = |row: &Row| {
            let [seed, pseudo, seg] =
                [row.seed_miou, row.pseudo_label_miou, row.segmentation_miou].map(|miou| number(miou, 1));
            [row.cell.clone(), seed, number(row.seed_threshold, 2), pseudo, seg]
        };
        self.rows.iter().map(row).collect()
    }

    pub fn text(&self) -> String {
        let values = self.values();
        let name = values.iter().map(|row| row[0].chars().count()).chain([7]).max().unwrap_or(7);
        let line = |[first, rest @ ..]: &[String; 5]| {
            let cells = rest.iter().zip(&Self::HEADER[1..]);
            let cells: String = cells.map(|(cell, head)| format!("  {cell:>0$}", head.len())).collect();
            format!("{first:<name$}{cells}\n")
        };
        let dataset = self.rows.first().map_or("", |row| &row.dataset);
        let header = line(&Self::HEADER.map(str::to_owned));
        format!("{dataset}, mIoU in %\n{header}{}", values.iter().map(line).collect::<String>())
    }

    pub fn csv(&self) -> String {
        let mut text = String::from("variant,seed_miou,threshold,pseudo_label_miou,segmentation_miou\n");
        for row in self.values() {
            text.push_str(&(row.iter().map(|cell| csv_quoted(cell)).collect::<Vec<_>>().join(",") + "\n"));
        }
        text
    }

    pub fn latex(&self) -> String {
        let mut text = format!("\\begin{{tabular}}{{lcccc}}\n{} \\\\\n\\hline\n", Self::HEADER.join(" & "));
        for row in self.values() {
            text.push_str(&(row.iter().map(|cell| latex_escaped(cell)).collect::<Vec<_>>().join(" & ") + " \\\\\n"));
        }
        text + "\\end{tabular}\n"
    }

    pub fn json(&self) -> anyhow::Result<String> {
        Ok(serde_json::to_string_pretty(&self.rows)?)
    }
}

pub(super) fn csv_quoted(text: &str) -> String {
    match text.contains([',', '"', '\n']) {
        true => format!("\"{}\"", text.replace('"', "\"\"")),
        false => text.to_owned(),
    }
}

pub(super) fn latex_escaped(text: &str) -> String {
    let special = |c: char| if "&%$#_{}".contains(c) { format!("\\{c}") } else { c.to_string() };
    text.chars().map(special).collect()
}
