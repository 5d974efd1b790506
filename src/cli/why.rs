//! `why`: what makes units of a file run again.
#![expect(clippy::print_stdout, reason = "this is where printing happens")]

use std::collections::{BTreeMap, BTreeSet};

use anyhow::bail;
use serde_json::json;

use super::args::{Cli, PipelineArgs};
use super::experiment::Experiment;
use super::read_cache;
use crate::cache::history::History;
use crate::pipeline::graph::UnitIdx;
use crate::pipeline::why::{Compared, StaleReason, keys_then, why};
use crate::pipeline::words::date;

/// Items named in a line.
const N_NAMED: usize = 3;

/// Says why a variant's units, or those whose label begins so, are not fresh.
pub(super) fn show_why(cli: &Cli, args: &PipelineArgs, what: &str) -> anyhow::Result<()> {
    let cache = read_cache(cli)?;
    let experiment = Experiment::open(&cache, args)?;
    let units = asked(&experiment, what)?;
    let file = std::path::absolute(&args.file).unwrap_or_else(|_| args.file.clone());
    let last = History::new(cache.folder()).units(&file.to_string_lossy()).unwrap_or_default();
    let label = |unit: UnitIdx| experiment.graph.unit(unit).label();
    let then = keys_then(&experiment.graph, &experiment.cells, &last, what);
    let reasons = why(&experiment.graph, &cache, &experiment.targets(), &units, &then)?;
    let stale = || units.iter().zip(&reasons).filter(|(_, reason)| **reason != StaleReason::Fresh);
    if cli.json {
        let row = |(unit, reason): (&UnitIdx, &StaleReason)| {
            let mut row = json!(reason);
            row["unit"] = label(*unit).into();
            row
        };
        let rows: Vec<_> = stale().map(row).collect();
        println!("{}", serde_json::to_string_pretty(&json!({ "last_run": last.run, "units": rows }))?);
        return Ok(());
    }
    let compared: BTreeSet<Compared> = reasons.iter().filter_map(compared).collect();
    if compared.contains(&Compared::LastRun) {
        println!("compared with the last run of this file, run {} of {} UTC", last.run, date(last.began));
    }
    let nearest = compared.iter().filter_map(|compared| match compared {
        Compared::Nearest { finished } => Some(*finished),
        Compared::LastRun => None,
    });
    if let Some(newest) = nearest.max() {
        println!(
            "compared with the records nearest in parameters, the newest of {} UTC, where the last run of this file had no \
             such unit of this variant",
            date(newest)
        );
    }
    // Equal reasons of a stage are told once.
    let mut told: BTreeMap<(&str, String), Vec<String>> = BTreeMap::new();
    for (&unit, reason) in stale() {
        let unit = experiment.graph.unit(unit);
        // What an image's unit says of that image's others is one thing for all images.
        let own = |part: &str| part.replace(&format!(" {}:", unit.item), " of the same:");
        let reason = reason.to_string().split(", ").map(own).collect::<Vec<_>>().join(", ");
        let reason = match reason.strip_suffix(&format!(" {}", unit.item)) {
            Some(rest) => format!("{rest} of the same"),
            None => reason,
        };
        told.entry((unit.stage, reason)).or_default().push(unit.item.to_owned());
    }
    if told.is_empty() {
        println!("{what}: everything is in the cache");
    }
    for ((stage, reason), items) in told {
        let named = items.iter().take(N_NAMED).cloned().collect::<Vec<_>>().join(", ");
        let more = items.len().saturating_sub(N_NAMED);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        println!("{stage} {named}{more}: {reason}");
    }
    Ok(())
}

fn compared(reason: &StaleReason) -> Option<Compared> {
    match reason {
        StaleReason::Changed { compared, .. } => Some(*compared),
        _ => None,
    }
}

/// The units of a variant, or those whose label begins so.
fn asked(experiment: &Experiment, what: &str) -> anyhow::Result<Vec<UnitIdx>> {
    let of_cell = experiment.cells.iter().find(|cell| cell.name == what);
    // A picture of the report is a unit of the table as well.
    let units: BTreeSet<UnitIdx> = match of_cell {
        Some(cell) => cell.units().collect(),
        None => {
            (0..experiment.graph.len()).filter(|&unit| experiment.graph.unit(unit).label().starts_with(what)).collect()
        }
    };
    if units.is_empty() {
        let names: Vec<&str> = experiment.cells.iter().map(|cell| cell.name.as_str()).collect();
        bail!("`{what}` is no variant and no unit; variants: {}", names.join("; "));
    }
    Ok(units.into_iter().collect())
}
