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
    let manifests = finished(graph, cache, targets)?;
    let mut metrics = BTreeMap::new();
    for unit in cells.iter().flat_map(|cell| [cell.seed_eval, cell.pseudo_eval]).flatten() {
        // A result whose blob is gone is not there.
        let output = manifests[unit].as_ref().and_then(|manifest| manifest.output("metrics"));
        if let Some(bytes) = output.and_then(|output| cache.store().read(&output.digest).ok()) {
            metrics.insert(unit, serde_json::from_slice(&bytes)?);
        }
    }
    Ok(metrics)
}

/// One cell's results.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub cell: String,
    pub dataset: String,
    /// In percent; `None`: not there yet.
    pub seed_miou: Option<f64>,
    pub seed_threshold: Option<f64>,
    pub pseudo_label_miou: Option<f64>,
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
            Row {
                cell: cell.name.clone(),
                dataset: units.dataset.name.clone(),
                seed_miou: percent(units.seed_eval),
                seed_threshold: of(units.seed_eval, "threshold"),
                pseudo_label_miou: percent(units.pseudo_eval),
            }
        };
        Self { rows: pipeline.cells.iter().zip(cells).map(row).collect() }
    }

    const HEADER: [&str; 4] = ["variant", "seed mIoU", "threshold", "pseudo-label mIoU"];

    fn values(&self) -> Vec<[String; 4]> {
        let number =
            |value: Option<f64>, digits: usize| value.map_or("-".to_owned(), |value| format!("{value:.digits$}"));
        let row = |row: &Row| {
            let Row { cell, dataset: _, seed_miou, seed_threshold, pseudo_label_miou } = row;
            [cell.clone(), number(*seed_miou, 1), number(*seed_threshold, 2), number(*pseudo_label_miou, 1)]
        };
        self.rows.iter().map(row).collect()
    }

    pub fn text(&self) -> String {
        let values = self.values();
        let name = values.iter().map(|row| row[0].chars().count()).chain([7]).max().unwrap_or(7);
        let [a, b, c, d] = Self::HEADER;
        let dataset = self.rows.first().map_or("", |row| &row.dataset);
        let mut text = format!("{dataset}, mIoU in %\n{a:<name$}  {b:>9}  {c:>9}  {d:>17}\n");
        for [cell, seed, threshold, pseudo] in values {
            text.push_str(&format!("{cell:<name$}  {seed:>9}  {threshold:>9}  {pseudo:>17}\n"));
        }
        text
    }

    pub fn csv(&self) -> String {
        let quote = |text: &String| match text.contains([',', '"', '\n']) {
            true => format!("\"{}\"", text.replace('"', "\"\"")),
            false => text.clone(),
        };
        let mut text = String::from("variant,seed_miou,threshold,pseudo_label_miou\n");
        for row in self.values() {
            text.push_str(&(row.iter().map(quote).collect::<Vec<_>>().join(",") + "\n"));
        }
        text
    }

    pub fn latex(&self) -> String {
        let escape = |text: &String| {
            let special = |c: char| if "&%$#_{}".contains(c) { format!("\\{c}") } else { c.to_string() };
            text.chars().map(special).collect::<String>()
        };
        let mut text = format!("\\begin{{tabular}}{{lccc}}\n{} \\\\\n\\hline\n", Self::HEADER.join(" & "));
        for row in self.values() {
            text.push_str(&(row.iter().map(escape).collect::<Vec<_>>().join(" & ") + " \\\\\n"));
        }
        text + "\\end{tabular}\n"
    }

    pub fn json(&self) -> anyhow::Result<String> {
        Ok(serde_json::to_string_pretty(&self.rows)?)
    }
}
