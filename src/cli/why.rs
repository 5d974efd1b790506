//! `why`: what makes units of a file run again.
#![expect(clippy::print_stdout, reason = "this is where printing happens")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::bail;
use serde_json::json;

use super::args::{Cli, PipelineArgs};
use super::compare::fields_of;
use super::experiment::Experiment;
use super::kept::Kept;
use super::read_cache;
use crate::cache::Cache;
use crate::cache::history::{Ended, History, How, LastUnits, Run};
use crate::pipeline::compare::fields::{Field, differing};
use crate::pipeline::file::Cell;
use crate::pipeline::graph::UnitIdx;
use crate::pipeline::past::{changes_in_reads, restored};
use crate::pipeline::why::{Compared, StaleReason, Then, keys_then, why, with_all_above};
use crate::pipeline::words::date;

/// Items named in a line.
const N_NAMED: usize = 3;

/// The last run of a file, as far as it is known.
#[derive(Default)]
struct LastRun {
    units: LastUnits,
    run: Option<Run>,
    cells: Vec<Cell>,
}

impl LastRun {
    fn of(cache: &Cache, file: &Path) -> anyhow::Result<Self> {
        let file = std::path::absolute(file).unwrap_or_else(|_| file.to_owned());
        let history = History::new(cache.folder());
        let units = history.units(&file.to_string_lossy()).unwrap_or_default();
        let run = history.runs()?.into_iter().find(|run| run.run == units.run && Path::new(&run.began.file) == file);
        let folder = file.parent().unwrap_or(Path::new(""));
        let kept = run.as_ref().and_then(|run| history.file(&run.began.digest).ok());
        let pipeline = kept.and_then(|kept| restored(&kept, "", folder).ok());
        Ok(Self { units, run, cells: pipeline.map(|pipeline| pipeline.cells).unwrap_or_default() })
    }

    /// All that was not there in it is new.
    fn is_whole(&self) -> bool {
        let how = self.run.as_ref().and_then(|run| run.ended.as_ref());
        how.is_some_and(|Ended { how, .. }| *how == How::Finished)
    }

    /// The variant that one of now is compared with: of its name, or else the one with the fewest other fields.
    fn variant(&self, cell: &Cell) -> anyhow::Result<Option<String>> {
        let had = |name: &str| self.units.variants.iter().any(|(known, units)| known == name && !units.is_empty());
        if had(&cell.name) {
            return Ok(Some(cell.name.clone()));
        }
        let mut nearest: Option<(usize, &str)> = None;
        for then in self.cells.iter().filter(|then| had(&then.name)) {
            let n_fields = differing(&then.spec, &cell.spec)?.len();
            if nearest.is_none_or(|(least, _)| n_fields < least) {
                nearest = Some((n_fields, &then.name));
            }
        }
        Ok(nearest.map(|(_, name)| name.to_owned()))
    }

    /// `run 3 of 2026-11-28 12:00 UTC, with --set cpm.tau=0.3`
    fn text(&self) -> String {
        let sets: Vec<&str> = self.run.iter().flat_map(|run| &run.began.sets).map(String::as_str).collect();
        let sets = if sets.is_empty() { String::new() } else { format!(", with --set {}", sets.join(" --set ")) };
        format!("run {} of {} UTC{sets}", self.units.run, date(self.units.began))
    }
}

/// What is told of a variant before its units: fields of the file, data and weights that are others than in its last run.
fn changes(
    cache: &Cache,
    experiment: &Experiment,
    (last, args): (&LastRun, &PipelineArgs),
    (at, then): (usize, &str),
) -> anyhow::Result<Vec<String>> {
    let Some((run, cell)) = last.run.as_ref().zip(last.cells.iter().find(|cell| cell.name == then)) else {
        return Ok(Vec::new());
    };
    let now = &experiment.pipeline.cells[at];
    let mut lines = Vec::new();
    let fields = fields_of(cache, cell, now)?;
    let named: Vec<String> = fields.iter().filter(|field| field.has_effect).map(Field::to_string).collect();
    if !named.is_empty() {
        lines.push(format!("in the file: {}", named.join(", ")));
    }
    let data = run.began.data.iter().find(|(name, _)| name == then);
    let data = data.and_then(|(_, digest)| Kept::new(cache, &args.file).dataset_of(digest));
    let data_now = &*experiment.cells[at].dataset;
    // Where the data set of then is not kept, nothing is known of its changes.
    let was_read = (data.as_ref().unwrap_or(data_now), &run.began.weights[..]);
    lines.extend(changes_in_reads(was_read, (data_now, &experiment.weights)));
    Ok(lines)
}

/// Says why a variant's units, or those whose label begins so, are not fresh.
pub(super) fn show_why(cli: &Cli, args: &PipelineArgs, what: &str) -> anyhow::Result<()> {
    let cache = read_cache(cli)?;
    let experiment = Experiment::open(&cache, args)?;
    let (units, variant) = asked(&experiment, what)?;
    let last = LastRun::of(&cache, &args.file)?;
    let mut variants = BTreeMap::new();
    for cell in &experiment.pipeline.cells {
        variants.extend(last.variant(cell)?.map(|then| (cell.name.clone(), then)));
    }
    let of_last = Then { last: &last.units, is_whole: last.is_whole(), variants: &variants };
    let then = keys_then(&experiment.graph, &experiment.cells, &of_last, what);
    let reasons = why(&experiment.graph, &cache, &experiment.targets(), &units, &then)?;
    let stale: Vec<(UnitIdx, &StaleReason)> =
        units.iter().copied().zip(&reasons).filter(|(_, reason)| **reason != StaleReason::Fresh).collect();
    let compared_with = variant.and_then(|at| variants.get(&experiment.cells[at].name));
    let changes = match variant.zip(compared_with).filter(|_| !stale.is_empty()) {
        Some((at, then)) => changes(&cache, &experiment, (&last, args), (at, then))?,
        None => Vec::new(),
    };
    if cli.json {
        let row = |(unit, reason): &(UnitIdx, &StaleReason)| {
            let mut row = json!(reason);
            row["unit"] = experiment.graph.unit(*unit).label().into();
            row
        };
        let rows: Vec<_> = stale.iter().map(row).collect();
        let sets = last.run.as_ref().map(|run| &run.began.sets);
        let json = json!({
            "last_run": last.units.run, "sets": sets, "compared_with": compared_with, "changes": changes, "units": rows,
        });
        println!("{}", serde_json::to_string_pretty(&json)?);
        return Ok(());
    }
    if stale.is_empty() {
        println!("{what}: everything is in the cache");
        return Ok(());
    }
    let compared: BTreeSet<Compared> = stale.iter().filter_map(|(_, reason)| compared(reason)).collect();
    if compared.contains(&Compared::LastRun) {
        match compared_with.filter(|then| *then != what) {
            Some(then) => println!(
                "compared with `{then}`, the most similar variant of the last run of this file, which had no `{what}`: {}",
                last.text()
            ),
            None => println!("compared with the last run of this file: {}", last.text()),
        }
        if !last.is_whole() {
            println!("that run did not end well, so what it did not reach is compared with the nearest records");
        }
    }
    let nearest = compared.iter().filter_map(|compared| match compared {
        Compared::Nearest { finished } => Some(*finished),
        Compared::LastRun => None,
    });
    if let Some(newest) = nearest.max() {
        println!(
            "compared with the records in this cache that are nearest in parameters, of any file, the newest of {} UTC, since \
             the last run of this file is not known to have had such units",
            date(newest)
        );
    }
    changes.iter().for_each(|line| println!("{line}"));
    // The units that only wait for others of a variant are counted, since those are told of.
    let waits = |reason: &StaleReason| match reason {
        StaleReason::Waits { .. } => true,
        StaleReason::Changed { differences, .. } => differences.is_empty(),
        _ => false,
    };
    let has_causes = stale.iter().any(|(_, reason)| !waits(reason));
    let (waiting, own): (Vec<_>, Vec<_>) =
        stale.iter().copied().partition(|(_, reason)| variant.is_some() && has_causes && waits(reason));
    tell(&experiment, &own, variant.is_some());
    let mut by_stage: Vec<(&str, usize)> = Vec::new();
    for (unit, _) in waiting {
        let stage = experiment.graph.unit(unit).stage;
        match by_stage.iter_mut().find(|(known, _)| *known == stage) {
            Some((_, n)) => *n += 1,
            None => by_stage.push((stage, 1)),
        }
    }
    if !by_stage.is_empty() {
        let stages: Vec<String> = by_stage.into_iter().map(|(stage, n)| format!("{n} of {stage}")).collect();
        println!("these wait for them, and run if they give other bytes: {}", stages.join(", "));
    }
    Ok(())
}

/// Prints reasons in the order of the work; equal ones of a stage once. `is_variant`: what is above is told as well.
fn tell(experiment: &Experiment, stale: &[(UnitIdx, &StaleReason)], is_variant: bool) {
    let mut told: Vec<((&str, String), Vec<String>)> = Vec::new();
    for (unit, reason) in stale {
        let unit = experiment.graph.unit(*unit);
        let text = match reason {
            StaleReason::Changed { differences, compared, .. } if is_variant && !differences.is_empty() => {
                StaleReason::Changed { differences: differences.clone(), above: Vec::new(), compared: *compared }
                    .to_string()
            }
            reason => reason.to_string(),
        };
        match told.iter_mut().find(|((stage, known), _)| *stage == unit.stage && *known == text) {
            Some((_, items)) => items.push(unit.item.to_owned()),
            None => told.push(((unit.stage, text), vec![unit.item.to_owned()])),
        }
    }
    for ((stage, reason), items) in told {
        // One more takes no more room than its number.
        let n_named = if items.len() == N_NAMED + 1 { items.len() } else { N_NAMED };
        let named = items.iter().take(n_named).cloned().collect::<Vec<_>>().join(", ");
        let more = items.len().saturating_sub(n_named);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let reason = match reason.strip_prefix("is new") {
            Some(rest) if items.len() > 1 => format!("are new{rest}"),
            _ => reason,
        };
        println!("{stage} {named}{more}: {reason}");
    }
}

fn compared(reason: &StaleReason) -> Option<Compared> {
    match reason {
        StaleReason::Changed { compared, .. } => Some(*compared),
        _ => None,
    }
}

/// The units of a variant and the variant's place, or the units whose label begins so.
fn asked(experiment: &Experiment, what: &str) -> anyhow::Result<(Vec<UnitIdx>, Option<usize>)> {
    let variant = experiment.cells.iter().position(|cell| cell.name == what);
    let units: BTreeSet<UnitIdx> = match variant {
        // A picture of the report is a unit of the table as well.
        Some(at) => with_all_above(&experiment.graph, experiment.cells[at].units()),
        None => {
            (0..experiment.graph.len()).filter(|&unit| experiment.graph.unit(unit).label().starts_with(what)).collect()
        }
    };
    if units.is_empty() {
        let names: Vec<&str> = experiment.cells.iter().map(|cell| cell.name.as_str()).collect();
        bail!("`{what}` is no variant and no unit; variants: {}", names.join("; "));
    }
    Ok((units.into_iter().collect(), variant))
}
