//! The table of a pipeline's results as commands show it, and what is to be said of it.

use std::collections::BTreeSet;

use anyhow::Context;

use super::Hinted;
use super::args::{Cli, PipelineArgs};
use super::experiment::Experiment;
use crate::cache::Cache;
use crate::data::text::counted;
use crate::pipeline::audit::built_on_drift;
use crate::pipeline::build::CellUnits;
use crate::pipeline::graph::UnitIdx;
use crate::pipeline::health::{Examined, Sickness, before_training};
use crate::pipeline::outcomes::Outcomes;
use crate::pipeline::repeats::{self, Repeats};
use crate::pipeline::results::{MAX_NAMED, ResultsTable, SCORED, metrics_of};
use crate::pipeline::spec::Spec;
use crate::pipeline::verified::{TableSource, Tabular};
use crate::pipeline::words::some_of;

/// The table of a source, as `results --latex` writes it.
pub(super) fn tabular_of(cli: &Cli, cache: &Cache, source: &TableSource) -> anyhow::Result<Tabular> {
    let TableSource { file, set, against } = source;
    let args = PipelineArgs { file: file.into(), sets: set.clone() };
    let experiment =
        Experiment::of_records(cli, cache, &args).with_context(|| format!("the table's pipeline `{file}`"))?;
    let Results { table, .. } = results(cache, &experiment, &experiment.finished(cache))?;
    Ok(tabular(&table, &repeats_of(&experiment, &table, against.as_deref())?))
}

pub(super) fn tabular(table: &ResultsTable, repeats: &[Repeats]) -> Tabular {
    if repeats.is_empty() { table.tabular() } else { repeats::tabular(repeats) }
}

pub(super) fn shown(cli: &Cli, table: &ResultsTable, repeats: &[Repeats]) -> anyhow::Result<String> {
    Ok(match (cli.json, repeats.is_empty()) {
        (false, true) => table.text(),
        (false, false) => format!("{}\n{}", table.text(), repeats::text(repeats)),
        (true, true) => table.json()? + "\n",
        (true, false) => {
            serde_json::to_string_pretty(&serde_json::json!({ "runs": table.rows, "repeats": repeats }))? + "\n"
        }
    })
}

pub(super) fn repeats_of(
    experiment: &Experiment,
    table: &ResultsTable,
    against: Option<&str>,
) -> anyhow::Result<Vec<Repeats>> {
    let found = repeats::repeats(&experiment.pipeline.cells, &table.rows, against);
    let unknown = |names: Vec<String>| {
        let message = format!("no variant `{}` to test against", against.unwrap_or_default());
        Hinted::error(message, format!("there are: {}", names.join("; ")))
    };
    let found = found.map_err(unknown)?;
    match against {
        Some(_) if found.is_empty() => {
            Err(Hinted::error("nothing is repeated here", "give [sweep] an axis, e.g. rng_seed = [0, 1, 2]"))
        }
        _ => Ok(found),
    }
}

/// The results that are in the cache, and what is to be said of them.
pub(super) struct Results {
    pub(super) table: ResultsTable,
    /// A line on scores that were computed and are not whole in the cache, where there are some.
    pub(super) lost: Option<String>,
    /// The reasons for the marks `?` of the table, by variant.
    pub(super) sick: Vec<(String, Vec<Sickness>)>,
}

/// The results of the units that have finished.
pub(super) fn results(cache: &Cache, experiment: &Experiment, finished: &Outcomes) -> anyhow::Result<Results> {
    let Experiment { pipeline, graph, cells, .. } = experiment;
    let found = metrics_of(cache, finished, cells)?;
    let lost = lost_scores(experiment, &found.lost);
    let mut examined = Examined::default();
    let sick: Vec<(String, Vec<Sickness>)> = parts(experiment)
        .map(|(name, spec, units)| (name.to_owned(), examined.variant(spec, units, (cache, finished), &found.metrics)))
        .collect();
    let mut table = ResultsTable::new(pipeline, cells, found.metrics);
    let units: Vec<UnitIdx> = cells.iter().flat_map(CellUnits::evals).flatten().collect();
    let mut drifted = built_on_drift(graph, cache, finished, &units)?.into_iter();
    for ((row, cell), (_, sick)) in table.rows.iter_mut().zip(cells).zip(&sick) {
        let scored = SCORED.into_iter().zip(cell.evals()).filter(|(_, unit)| unit.is_some());
        let labels = scored.map(|(name, _)| (name, drifted.next().unwrap_or_default()));
        row.drifted = labels.filter(|(_, labels)| !labels.is_empty()).collect();
        // A score that is not there has no mark.
        let scores = row.digests.keys().copied();
        let reasons = |scored| -> Vec<String> {
            sick.iter().filter(|of| of.scored.contains(&scored)).map(|of| of.reason.clone()).collect()
        };
        row.sick = scores.map(|scored| (scored, reasons(scored))).filter(|(_, of)| !of.is_empty()).collect();
    }
    Ok(Results { table, lost, sick })
}

fn lost_scores(experiment: &Experiment, lost: &BTreeSet<UnitIdx>) -> Option<String> {
    let labels: Vec<String> = lost.iter().map(|unit| experiment.graph.unit(*unit).label()).collect();
    let scores = counted(lost.len(), "score");
    let were = if lost.len() == 1 { "was" } else { "were" };
    (!lost.is_empty()).then(|| format!("{scores} {were} computed and lost since: {}", some_of(&labels, MAX_NAMED)))
}

/// Warnings of a run on what is sick, each once.
#[derive(Default)]
pub(super) struct Warnings {
    examined: Examined,
    /// Reasons and variants that were told of.
    told: BTreeSet<(String, String)>,
}

impl Warnings {
    /// The warnings that follow from the pipeline file and the data alone, before anything has run.
    pub(super) fn before(&mut self, experiment: &Experiment) -> Vec<String> {
        let of = |(name, spec, units): (&str, _, _)| (name.to_owned(), before_training(spec, units));
        self.lines(parts(experiment).map(of).collect())
    }

    /// The warnings that follow from the losses of the epochs that have finished so far.
    pub(super) fn of_trainings(&mut self, cache: &Cache, experiment: &Experiment, finished: &Outcomes) -> Vec<String> {
        let examined = &mut self.examined;
        let found = parts(experiment)
            .map(|(name, spec, units)| (name.to_owned(), examined.trainings(spec, units, (cache, finished))))
            .collect();
        self.lines(found)
    }

    /// Two lines, a warning and its hint, for each that was not told before.
    pub(super) fn lines(&mut self, found: Vec<(String, Vec<Sickness>)>) -> Vec<String> {
        let mut reasons: Vec<(Sickness, Vec<String>)> = Vec::new();
        for (variant, sick) in found {
            for sick in sick {
                if !self.told.insert((sick.reason.clone(), variant.clone())) {
                    continue;
                }
                match reasons.iter_mut().find(|(known, _)| known.reason == sick.reason) {
                    Some((_, variants)) => variants.push(variant.clone()),
                    None => reasons.push((sick, vec![variant.clone()])),
                }
            }
        }
        let line = |(sick, variants): (Sickness, Vec<String>)| {
            format!("warning: {}: {}\nhint: {}", some_of(&variants, MAX_NAMED), sick.reason, sick.hint)
        };
        reasons.into_iter().map(line).collect()
    }
}

/// The variants with their fields and units.
fn parts(experiment: &Experiment) -> impl Iterator<Item = (&str, &Spec, &CellUnits)> {
    experiment.pipeline.cells.iter().zip(&experiment.cells).map(|(cell, units)| (&*cell.name, &cell.spec, units))
}
