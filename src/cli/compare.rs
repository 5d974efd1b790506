//! Two variants, or two runs of one, against each other.
#![expect(clippy::print_stdout, reason = "this is where printing happens")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;

use super::args::{Cli, PipelineArgs};
use super::experiment::{Experiment, Reading};
use super::history::of_file;
use super::kept::Kept;
use super::table::results;
use super::{Hinted, read_cache};
use crate::cache::Cache;
use crate::cache::history::{History, Run};
use crate::digest::BlobDigest;
use crate::pipeline::compare::fields::{Field, differing, find_effects, with_effects};
use crate::pipeline::compare::{Effect, compare};
use crate::pipeline::file::{Cell, Pipeline, load, nearest};
use crate::pipeline::graph::UnitIdx;
use crate::pipeline::past::{METRICS, changed_since, changes_in_reads, data_digest, restored, versions};
use crate::pipeline::repeats::mious;

/// What stands on one side.
struct Side {
    /// `S2C`, `S2C in run 3`
    name: String,
    variant: String,
    cell: Cell,
    run: Option<Run>,
}

/// Tells what two variants, each of now or of a run, do differently and what that is worth.
pub(super) fn compare_two(
    cli: &Cli,
    args: &PipelineArgs,
    [left, right]: [&str; 2],
    runs: &[u64],
) -> anyhow::Result<()> {
    if runs.len() > 2 {
        return Err(Hinted::error("--run is given more than twice", "two runs are compared: --run 3 --run 5"));
    }
    if left == right && (runs.is_empty() || runs.len() == 2 && runs[0] == runs[1]) {
        let message = format!("`{left}` is compared with itself");
        return Err(Hinted::error(message, "name another variant, or two runs: --run 3 --run 5"));
    }
    let cache = read_cache(cli)?;
    let sides = [(left, runs.first()), (right, runs.get(1))];
    let [left, right] = sides.map(|(variant, run)| side(&cache, args, variant, run.copied(), !runs.is_empty()));
    let sides = [left?, right?];
    let cells = sides.iter().map(|side| side.cell.clone()).collect();
    let kept = Kept::new(&cache, &args.file);
    let read_then = |side: &Side| {
        let Some(run) = &side.run else { return Reading::default() };
        let then = run.began.data.iter().find(|(name, _)| *name == side.variant);
        let data = then.and_then(|(_, then)| kept.dataset_of(then)).map(Arc::new);
        Reading { data, is_past: true, weights: run.began.weights.clone() }
    };
    let pipeline = Pipeline { name: String::new(), cells, files: Vec::new(), sets: Vec::new() };
    let experiment = Experiment::of_reads(&cache, pipeline, &sides.each_ref().map(read_then))?;
    let now = results(&cache, &experiment, &experiment.finished(&cache))?.table;
    let metrics = |at: usize| match &sides[at].run {
        None => mious(&now.rows[at]),
        Some(run) => {
            let ended = run.ended.iter().flat_map(|ended| &ended.metrics);
            let of = ended.filter(|(variant, _)| *variant == sides[at].variant).map(|(_, of)| of).next();
            METRICS.map(|(name, _)| of?.get(name).copied())
        }
    };
    let (was, is) = (metrics(0), metrics(1));
    let effects = (0..METRICS.len()).map(|i| Effect::new(METRICS[i].1, was[i], is[i])).collect();
    let targets = [0, 1].map(|at| experiment.cells[at].targets());
    let mut found = compare(&experiment.graph, &cache, &targets[0], &targets[1], effects);
    found.fields = fields_of(&cache, &sides[0].cell, &sides[1].cell)?;
    let read = |at: usize| {
        let weights = sides[at].run.as_ref().map_or(&experiment.weights, |run| &run.began.weights);
        (&*experiment.cells[at].dataset, &weights[..])
    };
    found.changes = changes_in_reads(read(0), read(1));
    let versions = versions(&experiment.graph);
    let notes = sides.iter().zip(&experiment.cells).flat_map(|(side, units)| {
        let of = |run| changed_since(run, &side.variant, data_digest(&units.dataset), &versions);
        side.run.as_ref().map(of).unwrap_or_default()
    });
    let remarks = |at: usize| -> Vec<String> {
        match &sides[at].run {
            None => now.rows[at].remarks(),
            Some(run) => {
                let ended = run.ended.iter().flat_map(|ended| &ended.remarks);
                ended.filter(|(variant, _)| *variant == sides[at].variant).flat_map(|(_, of)| of.clone()).collect()
            }
        }
    };
    let of_side = |at: usize| remarks(at).into_iter().map(move |remark| (at, remark));
    let remarks = [0, 1].into_iter().flat_map(of_side).map(|(at, remark)| format!("{}: {remark}", sides[at].name));
    let notes: Vec<String> = notes.chain(remarks).collect();
    let names = [0, 1].map(|at| sides[at].name.as_str());
    if cli.json {
        let mut json = serde_json::to_value(&found)?;
        (json["left"], json["right"], json["notes"]) = (names[0].into(), names[1].into(), notes.into());
        println!("{}", serde_json::to_string_pretty(&json)?);
        return Ok(());
    }
    notes.iter().for_each(|note| eprintln!("note: {note}"));
    print!("{}", found.text(names));
    Ok(())
}

/// The fields in which two cells differ, with what each is worth.
fn fields_of(cache: &Cache, left: &Cell, right: &Cell) -> anyhow::Result<Vec<Field>> {
    fields_with_effects(cache, (left, None), right, &|left, right| left == right)
}

/// The same of what units the right cell has that the left one, which had some weights, has not.
pub(super) fn fields_that_make_units(
    cache: &Cache,
    (left, weights): (&Cell, &[(PathBuf, BlobDigest)]),
    right: &Cell,
) -> anyhow::Result<Vec<Field>> {
    fields_with_effects(cache, (left, Some(weights)), right, &|left, right| left.is_superset(right))
}

fn fields_with_effects(
    cache: &Cache,
    (left, weights): (&Cell, Option<&[(PathBuf, BlobDigest)]>),
    right: &Cell,
    is_done: &dyn Fn(&BTreeSet<UnitIdx>, &BTreeSet<UnitIdx>) -> bool,
) -> anyhow::Result<Vec<Field>> {
    let mut fields = differing(&left.spec, &right.spec)?;
    let is_same = |fields: &[Field]| {
        // Some combination of fields may be none of a pipeline: then it is not the right one.
        let Ok(spec) = with_effects(&left.spec, fields) else { return Ok(false) };
        let cells = vec![Cell { spec, ..left.clone() }, right.clone()];
        let pipeline = Pipeline { name: String::new(), cells, files: Vec::new(), sets: Vec::new() };
        let reads = weights.map(|weights| Reading { data: None, is_past: true, weights: weights.to_vec() });
        let built = Experiment::of_reads(cache, pipeline, &reads.into_iter().collect::<Vec<_>>());
        Ok(built.is_ok_and(|built| {
            let units = |at: usize| built.cells[at].targets().into_iter().collect::<BTreeSet<_>>();
            is_done(&units(0), &units(1))
        }))
    };
    find_effects(&mut fields, &is_same)?;
    Ok(fields)
}

fn side(cache: &Cache, args: &PipelineArgs, variant: &str, run: Option<u64>, is_told: bool) -> anyhow::Result<Side> {
    let (pipeline, run) = match run {
        None => (load(&args.file, &args.sets)?, None),
        Some(number) => {
            let (pipeline, run) = past(cache, &args.file, number)?;
            (pipeline, Some(run))
        }
    };
    let place = match &run {
        Some(run) => format!(" in run {}", run.run),
        None if is_told => " now".to_owned(),
        None => String::new(),
    };
    let names: Vec<&str> = pipeline.cells.iter().map(|cell| cell.name.as_str()).collect();
    let Some(cell) = pipeline.cells.iter().find(|cell| cell.name == variant) else {
        let near = nearest(variant, &names).map_or_else(String::new, |near| format!("did you mean `{near}`? "));
        let hint = format!("{near}there are: {}", names.join("; "));
        return Err(Hinted::error(format!("no variant `{variant}`{place}"), hint));
    };
    let mut cell = cell.clone();
    // Pictures of other variants' parts are no part of this one.
    cell.spec.report.overlays = 0;
    Ok(Side { name: format!("{variant}{place}"), variant: variant.to_owned(), cell, run })
}

/// The file as it was in a run of it.
fn past(cache: &Cache, file: &Path, number: u64) -> anyhow::Result<(Pipeline, Run)> {
    let history = History::new(cache.folder());
    let runs = of_file(&history.runs()?, file)?;
    let Some(run) = runs.iter().find(|run| run.run == number) else {
        let numbers: Vec<String> = runs.iter().map(|run| run.run.to_string()).collect();
        let hint = format!("its runs are {}; see `s2c-pipe history {}`", numbers.join(", "), file.display());
        return Err(Hinted::error(format!("no run {number} of `{}`", file.display()), hint));
    };
    let folder = Path::new(&run.began.file).parent().unwrap_or(Path::new(""));
    let kept = history.file(&run.began.digest).with_context(|| format!("the file of run {number}"))?;
    let pipeline = restored(&kept, "", folder).with_context(|| format!("the file of run {number}"))?;
    Ok((pipeline, run.clone()))
}
