//! What would run, and what it costs.
#![expect(clippy::print_stdout, reason = "this is where printing happens")]

use std::collections::HashSet;

use super::args::{Cli, PipelineArgs};
use super::experiment::{Experiment, n_cores, print_decided};
use super::{read_cache, weights};
use crate::pipeline::build::registry;
use crate::pipeline::cost::Cost;
use crate::pipeline::plan::{Freshness, plan};
use crate::pipeline::words::{size, span, table};

pub(super) fn show_plan(cli: &Cli, args: &PipelineArgs) -> anyhow::Result<()> {
    let cache = read_cache(cli)?;
    let experiment = Experiment::open(&cache, args)?;
    experiment.print_notes(cli);
    weights::check(cli, &cache, &experiment)?;
    let mut plan = plan(&experiment.graph, &cache, &experiment.targets())?;
    // As `run` does it without --jobs.
    let registry = registry();
    let jobs = n_cores();
    plan.beside(|kind| if registry.get(kind).is_ok_and(|entry| entry.parallel) { jobs } else { 1 });
    let cost = Cost::of(&plan);
    let cells = &experiment.cells;
    let distinct = cells.iter().filter_map(|cell| cell.cam_epochs.last()).collect::<HashSet<_>>().len();
    if cli.json {
        let units: Vec<_> =
            plan.units.iter().map(|(unit, fresh)| (experiment.graph.unit(*unit).label(), fresh)).collect();
        let (stages, n_cells) = (&plan.stages, cells.len());
        let data = experiment.decided();
        let json = serde_json::json!({
            "data": data, "cells": n_cells, "trainings": distinct, "cost": cost, "stages": stages, "units": units
        });
        println!("{json}");
        return Ok(());
    }
    for (name, lines) in experiment.decided() {
        println!("{name}");
        print_decided(lines);
        println!();
    }
    let mut rows = vec![["stage", "cached", "to run", "time", "size"].map(str::to_owned).to_vec()];
    for (stage, counts) in &plan.stages {
        let said = |known: Option<String>| match known {
            _ if counts.to_run == 0 => String::new(),
            known => known.unwrap_or_else(|| "unknown".to_owned()),
        };
        let (time, bytes) = (said(counts.seconds.map(span)), said(counts.bytes.map(size)));
        rows.push(vec![(*stage).to_owned(), counts.fresh.to_string(), counts.to_run.to_string(), time, bytes]);
    }
    print!("{}", table(&rows));
    if plan.stages.values().any(|counts| counts.to_run > 0 && counts.seconds.is_none()) {
        println!("(unknown until a unit of the stage has run in this cache)");
    }
    let n_epochs: usize = cells.iter().map(|cell| cell.cam_epochs.len()).sum();
    let n_distinct_epochs = cells.iter().flat_map(|cell| &cell.cam_epochs).collect::<HashSet<_>>().len();
    println!("\n{n_epochs} epochs of the classifier, of which {n_distinct_epochs} are distinct");
    if cost.to_run > 0 {
        let waits = plan.units.iter().filter(|(_, freshness)| *freshness == Freshness::Waits).count();
        println!("{} units to run, {waits} of them after others", cost.to_run);
    }
    let word = |n: usize, one: &'static str, many: &'static str| format!("{n} {}", if n == 1 { one } else { many });
    println!(
        "{} = {}; {}",
        word(cells.len(), "cell", "cells"),
        word(distinct, "distinct training", "distinct trainings"),
        cost.text()
    );
    Ok(())
}
