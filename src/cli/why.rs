//! `why`: what makes units of a file run again.
#![expect(clippy::print_stdout, reason = "this is where printing happens")]

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::bail;
use serde_json::{Value, json};

use super::args::{Cli, PipelineArgs};
use super::compare::fields_that_make_units;
use super::experiment::{Experiment, Reading};
use super::history::is_of_file;
use super::kept::Kept;
use super::read_cache;
use crate::cache::Cache;
use crate::cache::history::{Ended, History, How, Run};
use crate::data::Dataset;
use crate::digest::BlobDigest;
use crate::pipeline::build::CellUnits;
use crate::pipeline::compare::fields::{Field, differing, differing_sets};
use crate::pipeline::file::{Cell, Pipeline};
use crate::pipeline::graph::{Graph, UnitIdx};
use crate::pipeline::past::{changes_in_reads, data_digest, n_items_changed, restored};
use crate::pipeline::why::{StaleReason, Then, contents_read, why, with_all_above};
use crate::pipeline::words::date;

/// Items named in a line.
const N_NAMED: usize = 3;
/// Runs that differ in what they ran, of which one is compared with.
const MOST_RUNS: usize = 200;

/// Data sets of the past whose images are compared with those of now.
const MOST_DATA: usize = 50;

/// The variant of an earlier run that one of now is compared with.
struct Base {
    run: Run,
    cell: Cell,
    data: Option<Arc<Dataset>>,
    /// The run is one of another file, since this one never ran here.
    is_of_other_file: bool,
    /// No later run of the file is in the history.
    is_last: bool,
}

impl Base {
    /// `run 3 of 2026-11-28 12:00 UTC, with --set cpm.tau=0.3, which was interrupted`
    fn run_text(&self) -> String {
        let sets: Vec<&str> = self.run.began.sets.iter().map(String::as_str).collect();
        let sets = if sets.is_empty() { String::new() } else { format!(", with --set {}", sets.join(" --set ")) };
        let how = match self.ended() {
            Some(How::Finished) => "",
            Some(How::Failed) => ", which failed",
            Some(How::Interrupted) => ", which was interrupted",
            None => ", which was cut off or goes on",
        };
        format!("run {} of {} UTC{sets}{how}", self.run.run, date(self.run.began.began))
    }

    fn ended(&self) -> Option<How> {
        self.run.ended.as_ref().map(|Ended { how, .. }| *how)
    }

    /// `compared with the last run of this file: run 3 of ..`
    fn text(&self, variant: &str) -> String {
        let (file, run) = (&self.run.began.file, self.run_text());
        let is_same = self.cell.name == variant;
        let place = match (self.is_of_other_file, self.is_last) {
            (true, _) => format!("the runs of other files, since this one never ran here: {run}, of {file}"),
            (false, true) => format!("the last run of this file: {run}"),
            (false, false) => format!("the runs of this file: {run}"),
        };
        match (is_same, self.is_last && !self.is_of_other_file) {
            (true, true) => format!("compared with {place}"),
            (true, false) => format!("compared with the nearest of {place}"),
            (false, _) => format!("compared with `{}`, the most similar variant of {place}", self.cell.name),
        }
    }
}

/// The earlier runs that a variant may be compared with.
struct Past {
    /// They stand with the newest first; of several that ran the same on the same data, the newest is here.
    runs: Vec<(Run, Vec<Cell>)>,
    is_of_other_file: bool,
    /// The number of the file's last run.
    last: u64,
    /// How many images differ between a data set of then and one of now, once that was asked for.
    n_changed: RefCell<HashMap<[BlobDigest; 2], usize>>,
}

impl Past {
    fn of(cache: &Cache, file: &Path) -> anyhow::Result<Self> {
        let history = History::new(cache.folder());
        let all = history.runs()?;
        let is_it = is_of_file(file);
        let own: Vec<Run> = all.iter().filter(|run| is_it(&run.began.file)).cloned().collect();
        let is_of_other_file = own.is_empty();
        let mut runs = if is_of_other_file { all } else { own };
        runs.reverse();
        let last = runs.first().map_or(0, |run| run.run);
        let mut seen = HashSet::new();
        runs.retain(|run| seen.insert(format!("{:?}{:?}{:?}", run.began.digest, run.began.data, run.began.weights)));
        runs.truncate(MOST_RUNS);
        let with_cells = |run: Run| {
            let folder = Path::new(&run.began.file).parent().unwrap_or(Path::new(""));
            let pipeline = restored(&history.file(&run.began.digest).ok()?, "", folder).ok()?;
            Some((run, pipeline.cells))
        };
        let runs = runs.into_iter().filter_map(with_cells).collect();
        Ok(Self { runs, is_of_other_file, last, n_changed: RefCell::default() })
    }

    /// How many images differ; many, where the data set of then is not kept or too many others were looked into.
    fn n_changed(&self, kept: &Kept, then: BlobDigest, (now, data): (BlobDigest, &Dataset)) -> usize {
        if then == now {
            return 0;
        }
        let mut known = self.n_changed.borrow_mut();
        let is_looked_into = known.len() < MOST_DATA;
        *known.entry([then, now]).or_insert_with(|| {
            let was = if is_looked_into { kept.dataset_of(&then) } else { None };
            was.map_or(usize::MAX / 2, |was| n_items_changed(&was, data).max(1))
        })
    }

    /// What a variant is compared with: among those of its name, or else among all, the one with the fewest other fields,
    /// data and weights; of equals that of the newest run that ended well. A changed image counts as a field does.
    fn base(&self, kept: &Kept, experiment: &Experiment, at: usize) -> anyhow::Result<Option<Base>> {
        let now = &experiment.pipeline.cells[at];
        let data = data_digest(&experiment.cells[at].dataset);
        let has = |is_it: &dyn Fn(&Cell) -> bool| self.runs.iter().any(|(_, cells)| cells.iter().any(is_it));
        let is_named = |cell: &Cell| cell.name == now.name;
        // Another point of its sweep, or the variant without one.
        let is_variant = |cell: &Cell| cell.variant == now.variant;
        let is_candidate: &dyn Fn(&Cell) -> bool = match (has(&is_named), has(&is_variant)) {
            (true, _) => &is_named,
            (false, true) => &is_variant,
            (false, false) => &|_| true,
        };
        let data_now = (data, &*experiment.cells[at].dataset);
        let read = contents_read(&experiment.graph, experiment.cells[at].own_units());
        let is_read = |path: &PathBuf| experiment.weights.iter().any(|(of, now)| of == path && read.contains(now));
        let mut nearest: Option<((usize, bool), &Run, &Cell)> = None;
        for (run, cells) in &self.runs {
            let n_weights = changed_weights(run, experiment).into_iter().filter(|path| is_read(path)).count();
            for cell in cells.iter().filter(|cell| is_candidate(cell)) {
                let then = run.began.data.iter().find(|(name, _)| *name == cell.name);
                let n_data = then.map_or(0, |(_, then)| self.n_changed(kept, *then, data_now));
                let n_differ = differing(&cell.spec, &now.spec)?.len() + n_weights + n_data;
                // A run that did not end well tells little, but of what is as it was in it.
                let is_partial = !run.ended.as_ref().is_some_and(|ended| ended.how == How::Finished);
                let far = (n_differ, is_partial && n_differ > 0);
                if nearest.is_none_or(|(least, ..)| far < least) {
                    nearest = Some((far, run, cell));
                }
            }
        }
        let Some((_, run, cell)) = nearest else { return Ok(None) };
        let then = run.began.data.iter().find(|(name, _)| *name == cell.name);
        let data = then.and_then(|(_, then)| match *then == data {
            true => Some(experiment.cells[at].dataset.clone()),
            false => kept.dataset_of(then).map(Arc::new),
        });
        let (is_of_other_file, is_last) = (self.is_of_other_file, run.run == self.last);
        Ok(Some(Base { run: run.clone(), cell: cell.clone(), data, is_of_other_file, is_last }))
    }
}

/// Files of weights that had other content in a run.
fn changed_weights(run: &Run, experiment: &Experiment) -> Vec<PathBuf> {
    let differs = |(path, then): &&(PathBuf, BlobDigest)| {
        experiment.weights.iter().any(|(known, now)| known == path && now != then)
    };
    run.began.weights.iter().filter(differs).map(|(path, _)| path.clone()).collect()
}

/// A pipeline of now, with the variants that its own are compared with in the same graph.
struct Asked<'a> {
    cache: &'a Cache,
    /// Variants of now, then those of the past.
    experiment: Experiment,
    n_now: usize,
    /// By variant of now: what it is compared with, and the place of that.
    bases: Vec<Option<(Base, usize)>>,
}

/// A unit that is not fresh: the variants that have it, the unit, and the reason.
type Stale = (Vec<String>, UnitIdx, StaleReason);

impl<'a> Asked<'a> {
    fn new(cache: &'a Cache, args: &PipelineArgs, now: Experiment, of: &[usize]) -> anyhow::Result<Self> {
        let (past, kept) = (Past::of(cache, &args.file)?, Kept::new(cache, &args.file));
        let n_now = now.cells.len();
        let (mut cells, mut bases) = (now.pipeline.cells.clone(), Vec::new());
        let read_now = |cell: &CellUnits| Reading { data: Some(cell.dataset.clone()), ..Reading::default() };
        let mut reads: Vec<Reading> = now.cells.iter().map(read_now).collect();
        for at in 0..n_now {
            let base = if of.contains(&at) { past.base(&kept, &now, at)? } else { None };
            bases.push(base.map(|base| {
                cells.push(base.cell.clone());
                reads.push(Reading { data: base.data.clone(), is_past: true, weights: base.run.began.weights.clone() });
                (base, cells.len() - 1)
            }));
        }
        let pipeline = Pipeline { cells, ..now.pipeline.clone() };
        Ok(match Experiment::of_reads(cache, pipeline, &reads) {
            Ok(experiment) => Self { cache, experiment, n_now, bases },
            // The variant of an earlier run cannot be built any more, since its data or weights are gone.
            Err(error) => {
                eprintln!("note: earlier runs cannot be compared with: {error:#}");
                Self { cache, experiment: now, n_now, bases: (0..n_now).map(|_| None).collect() }
            }
        })
    }

    /// Those of some units of a variant that are not fresh, where the targets are to be there.
    fn stale(&self, at: usize, targets: &[UnitIdx], units: &[UnitIdx]) -> anyhow::Result<Vec<(UnitIdx, StaleReason)>> {
        let Experiment { graph, cells, .. } = &self.experiment;
        let base = self.bases[at].as_ref();
        let units_then = base.map(|(_, place)| with_all_above(graph, cells[*place].units()));
        let then = base.zip(units_then.as_ref()).map(|((base, _), units)| Then {
            units,
            versions: &base.run.began.versions,
            ended: base.ended(),
        });
        let reasons = why(graph, self.cache, targets, units, then.as_ref())?;
        let stale = units.iter().copied().zip(reasons).filter(|(_, reason)| *reason != StaleReason::Fresh);
        Ok(stale.collect())
    }

    /// Settings, data and weights of a variant that are others than in what it is compared with, a line each.
    fn changes(&self, at: usize) -> anyhow::Result<Vec<String>> {
        let Some((base, _)) = &self.bases[at] else { return Ok(Vec::new()) };
        let (then, now) = (&base.cell, &self.experiment.pipeline.cells[at]);
        // A data set that was moved is no other setting: if its images changed, they are named below.
        let mut then_here = then.clone();
        if base.data.is_some() {
            then_here.spec.dataset.root.clone_from(&now.spec.dataset.root);
        }
        let fields = fields_that_make_units(self.cache, (&then_here, &base.run.began.weights), now)?;
        let named: Vec<String> = fields.iter().filter(|field| field.has_effect).map(Field::to_string).collect();
        let mut lines = Vec::new();
        if !named.is_empty() {
            let sets = differing_sets(&then.spec, &now.spec)?;
            let sets: String = sets.iter().map(|set| format!("{set}, and so ")).collect();
            lines.push(format!("in the settings: {sets}{}", named.join(", ")));
        }
        let data_now = &*self.experiment.cells[at].dataset;
        let read = contents_read(&self.experiment.graph, self.experiment.cells[at].own_units());
        let weights: Vec<(PathBuf, BlobDigest)> =
            self.experiment.weights.iter().filter(|(_, digest)| read.contains(digest)).cloned().collect();
        // If the data set of the earlier run is not kept, no change of it can be named.
        let was_read = (base.data.as_deref().unwrap_or(data_now), &base.run.began.weights[..]);
        lines.extend(changes_in_reads(was_read, (data_now, &weights)));
        Ok(lines)
    }

    /// The answer for a variant as a whole.
    fn variant(&self, at: usize) -> anyhow::Result<Answer> {
        let Experiment { graph, cells, .. } = &self.experiment;
        let units: Vec<UnitIdx> = with_all_above(graph, cells[at].own_units()).into_iter().collect();
        // A unit that only another variant needs does not have to run for this one.
        let own: HashSet<UnitIdx> = cells[at].own_units().collect();
        let targets: Vec<UnitIdx> = cells[at].targets().into_iter().filter(|unit| own.contains(unit)).collect();
        let stale = self.stale(at, &targets, &units)?;
        let changes = if stale.is_empty() { Vec::new() } else { self.changes(at)? };
        let stale = stale.into_iter().map(|(unit, reason)| (Vec::new(), unit, reason)).collect();
        Ok(Answer { of: vec![at], changes, stale })
    }

    /// The answer for the units whose labels begin with `label`; a unit of several variants is in it once.
    fn units(&self, label: &str) -> anyhow::Result<Answer> {
        let Experiment { graph, cells, .. } = &self.experiment;
        let mut found: BTreeMap<UnitIdx, (Vec<String>, StaleReason)> = BTreeMap::new();
        let targets: Vec<UnitIdx> = cells[..self.n_now].iter().flat_map(CellUnits::targets).collect();
        let (mut of, mut changes) = (Vec::new(), Vec::<(String, Vec<String>)>::new());
        for (at, cell) in cells[..self.n_now].iter().enumerate() {
            let all = with_all_above(graph, cell.own_units()).into_iter();
            let units: Vec<UnitIdx> = all.filter(|&unit| graph.unit(unit).label().starts_with(label)).collect();
            if units.is_empty() {
                continue;
            }
            of.push(at);
            let stale = self.stale(at, &targets, &units)?;
            for line in if stale.is_empty() { Vec::new() } else { self.changes(at)? } {
                match changes.iter_mut().find(|(known, _)| *known == line) {
                    Some((_, variants)) => variants.push(cell.name.clone()),
                    None => changes.push((line, vec![cell.name.clone()])),
                }
            }
            for (unit, reason) in stale {
                found.entry(unit).or_insert((Vec::new(), reason)).0.push(cell.name.clone());
            }
        }
        let stale = found.into_iter().map(|(unit, (variants, reason))| (variants, unit, reason)).collect();
        let said = |(line, variants): (String, Vec<String>)| match variants.len() == of.len() {
            true => line,
            false => format!("{}: {line}", variants.join(", ")),
        };
        let changes = changes.into_iter().map(said).collect();
        Ok(Answer { of, changes, stale })
    }
}

/// What `why` found out about a variant, or about units of some variants.
struct Answer {
    /// Places of the variants.
    of: Vec<usize>,
    changes: Vec<String>,
    stale: Vec<Stale>,
}

impl Answer {
    fn json(&self, asked: &Asked<'_>, what: &str) -> Value {
        let base = |at: &usize| {
            let variant = &asked.experiment.cells[*at].name;
            let base = asked.bases[*at].as_ref().map(|(base, _)| {
                json!({
                    "variant": base.cell.name, "run": base.run.run, "file": base.run.began.file,
                    "sets": base.run.began.sets, "ended": base.ended(),
                })
            });
            json!({"variant": variant, "compared_with": base})
        };
        let unit = |(variants, unit, reason): &Stale| {
            let mut row = json!(reason);
            row["unit"] = asked.experiment.graph.unit(*unit).label().into();
            if !variants.is_empty() {
                row["variants"] = json!(variants);
            }
            row
        };
        json!({
            "of": what, "bases": self.of.iter().map(base).collect::<Vec<_>>(), "changes": self.changes,
            "units": self.stale.iter().map(unit).collect::<Vec<_>>(),
        })
    }

    /// `what`: as it was asked for; `is_variant`: as a whole.
    fn print(&self, asked: &Asked<'_>, what: &str, is_variant: bool) {
        if self.stale.is_empty() {
            println!("{what}: nothing has to run, what it needs is in the cache");
            return;
        }
        let mut heads: Vec<(String, Vec<&str>)> = Vec::new();
        for &at in &self.of {
            let variant = asked.experiment.cells[at].name.as_str();
            let head = match &asked.bases[at] {
                Some((base, _)) => base.text(variant),
                None if self.stale.iter().all(|(.., reason)| is_unknown(reason)) => {
                    "no run of this file is known here, and no record is like its units".to_owned()
                }
                None => {
                    "compared with the records of this cache that are nearest in parameters, since no run of this file \
                         is known here"
                        .to_owned()
                }
            };
            match heads.iter_mut().find(|(known, _)| *known == head) {
                Some((_, variants)) => variants.push(variant),
                None => heads.push((head, vec![variant])),
            }
        }
        match &heads[..] {
            [(head, _)] => println!("{head}"),
            _ => heads.iter().for_each(|(head, variants)| println!("{}: {head}", variants.join(", "))),
        }
        self.changes.iter().for_each(|line| println!("{line}"));
        // The units of a variant that only wait for others are counted, since those are told of.
        let waits = |reason: &StaleReason| matches!(reason, StaleReason::Waits { .. });
        let has_causes = self.stale.iter().any(|(.., reason)| !waits(reason));
        let (waiting, own): (Vec<&Stale>, Vec<&Stale>) =
            self.stale.iter().partition(|(.., reason)| is_variant && has_causes && waits(reason));
        print_reasons(&asked.experiment.graph, &own, asked.n_now > 1);
        let mut by_stage: Vec<(&str, usize)> = Vec::new();
        for (_, unit, _) in waiting {
            let stage = asked.experiment.graph.unit(*unit).stage;
            match by_stage.iter_mut().find(|(known, _)| *known == stage) {
                Some((_, n)) => *n += 1,
                None => by_stage.push((stage, 1)),
            }
        }
        if !by_stage.is_empty() {
            let stages: Vec<String> = by_stage.into_iter().map(|(stage, n)| format!("{n} of {stage}")).collect();
            println!(
                "these come after them, and run unless the cache has them on what comes out: {}",
                stages.join(", ")
            );
        }
    }
}

/// Says why variants, or the units whose label begins so, are not fresh. `what`: `None` for all variants.
pub(super) fn show_why(cli: &Cli, args: &PipelineArgs, what: Option<&str>) -> anyhow::Result<()> {
    let cache = read_cache(cli)?;
    let experiment = Experiment::open(&cache, args)?;
    let all = || experiment.pipeline.cells.iter().enumerate();
    let is_named = |name: &str| all().any(|(_, cell)| cell.name == name);
    let variants: Vec<usize> = match what {
        None => all().map(|(at, _)| at).collect(),
        Some(name) if is_named(name) => all().filter(|(_, cell)| cell.name == name).map(|(at, _)| at).collect(),
        // All points of a sweep.
        Some(name) => all().filter(|(_, cell)| cell.variant == name).map(|(at, _)| at).collect(),
    };
    let is_of_units = variants.is_empty();
    let label = what.unwrap_or_default();
    if is_of_units && !(0..experiment.graph.len()).any(|unit| experiment.graph.unit(unit).label().starts_with(label)) {
        let names: Vec<&str> = experiment.cells.iter().map(|cell| cell.name.as_str()).collect();
        bail!("`{label}` is no variant and no unit; variants: {}", names.join("; "));
    }
    let of: Vec<usize> = if is_of_units { all().map(|(at, _)| at).collect() } else { variants.clone() };
    let asked = Asked::new(&cache, args, experiment, &of)?;
    let names = variants.iter().map(|&at| asked.experiment.cells[at].name.clone());
    let answers: Vec<(String, Answer)> = match is_of_units {
        true => vec![(label.to_owned(), asked.units(label)?)],
        false => {
            names.zip(&variants).map(|(name, &at)| Ok((name, asked.variant(at)?))).collect::<anyhow::Result<_>>()?
        }
    };
    if cli.json {
        let mut json: Vec<Value> = answers.iter().map(|(name, answer)| answer.json(&asked, name)).collect();
        let json = if json.len() == 1 { json.remove(0) } else { json.into() };
        println!("{}", serde_json::to_string_pretty(&json)?);
        return Ok(());
    }
    for (k, (name, answer)) in answers.iter().enumerate() {
        if answers.len() > 1 && !answer.stale.is_empty() {
            println!("{}{name}", if k > 0 { "\n" } else { "" });
        }
        answer.print(&asked, name, !is_of_units);
    }
    Ok(())
}

/// Nothing in the cache is like the unit, as far as it can be told.
fn is_unknown(reason: &StaleReason) -> bool {
    matches!(reason, StaleReason::NeverRan | StaleReason::Waits { .. })
}

/// Prints reasons in the order of the work; equal ones of a stage once. `is_of_several`: the file has several variants.
fn print_reasons(graph: &Graph, stale: &[&Stale], is_of_several: bool) {
    let mut told: Vec<((&str, &[String], String), Vec<&str>)> = Vec::new();
    for (variants, unit, reason) in stale {
        let unit = graph.unit(*unit);
        let key = (unit.stage, &variants[..], reason.to_string());
        match told.iter_mut().find(|(known, _)| *known == key) {
            Some((_, items)) => items.push(unit.item),
            None => told.push((key, vec![unit.item])),
        }
    }
    // Variants with units of their own are told of together where the same is said of the same items.
    let mut merged: Vec<((&str, String, Vec<&str>), BTreeSet<&String>)> = Vec::new();
    for ((stage, variants, reason), items) in told {
        let key = (stage, reason, items);
        match merged.iter_mut().find(|(known, _)| *known == key) {
            Some((_, all)) => all.extend(variants),
            None => merged.push((key, variants.iter().collect())),
        }
    }
    for ((stage, reason, items), variants) in merged {
        // One more takes no more room than its number.
        let n_named = if items.len() == N_NAMED + 1 { items.len() } else { N_NAMED };
        let named = items.iter().take(n_named).copied().collect::<Vec<_>>().join(", ");
        let more = items.len().saturating_sub(n_named);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let variants: Vec<&str> = variants.into_iter().map(String::as_str).collect();
        let of = match is_of_several && !variants.is_empty() {
            true => format!(" ({})", variants.join(", ")),
            false => String::new(),
        };
        let reason = match reason.strip_prefix("is new") {
            Some(rest) if items.len() > 1 => format!("are new{rest}"),
            _ => reason,
        };
        println!("{stage} {named}{more}{of}: {reason}");
    }
}
