//! TensorBoard's event files, made from the cache: a folder for each variant.

use std::path::Path;

use super::LOGS;
use super::args::{Cli, TensorboardArgs};
use super::experiment::Experiment;
use super::out::OutFolder;
use super::read_cache;
use super::results_folder::{Asked, ResultsFolder};
use crate::cache::Cache;
use crate::digest::UnitKey;
use crate::pipeline::names;
use crate::pipeline::outcomes::Outcomes;
use crate::pipeline::tensorboard::{StepTime, event_file, scalars};

/// Always the same, so that a file grows in place while a run goes on.
const FILE: &str = "events.out.tfevents.0000000000.s2c-pipe";

/// In the folder of a pipeline's results.
pub(super) const FOLDER: &str = "tensorboard";

pub(super) fn tensorboard(cli: &Cli, args: &TensorboardArgs) -> anyhow::Result<()> {
    let cache = read_cache(cli)?;
    let TensorboardArgs { pipeline, to, force } = args;
    let experiment = Experiment::open(&cache, pipeline)?;
    let reads = experiment.reads(&cache);
    let (folder, within) = match to {
        Some(to) => (ResultsFolder::look(to, Asked { option: "--to DIR", force: *force }, reads)?, ""),
        None => {
            let place = OutFolder::of(Path::new("out"), &experiment.pipeline, &pipeline.file);
            place.note().into_iter().for_each(|note| eprintln!("note: {note}"));
            let folder = ResultsFolder::look(&place.path, Asked { option: "--to DIR", force: *force }, reads)?;
            folder.check(event_files(&experiment, FOLDER).iter().map(|file| (file.as_str(), "")))?;
            place.claim(&folder)?;
            (folder, FOLDER)
        }
    };
    folder.check(event_files(&experiment, within).iter().map(|file| (file.as_str(), "")))?;
    let n_scalars = write((&cache, &experiment.finished(&cache)), &experiment, &folder, within)?;
    if n_scalars == 0 {
        let hint = format!("s2c-pipe run {} trains", pipeline.written());
        return Err(super::Hinted::error("no epoch of these variants is in the cache", hint));
    }
    if !cli.quiet {
        let to = folder.path_of(within);
        eprintln!("{n_scalars} numbers; look at them with: tensorboard --logdir {}", to.display());
    }
    Ok(())
}

/// The event file of each variant, `within` a folder of the results.
pub(super) fn event_files(experiment: &Experiment, within: &str) -> Vec<String> {
    let folders = names::folders(experiment.cells.iter().map(|cell| cell.name.as_str()));
    let within = if within.is_empty() { String::new() } else { format!("{within}/") };
    folders.into_iter().map(|folder| format!("{within}{folder}/{FILE}")).collect()
}

/// Writes what has finished of each variant; gives the number of numbers. Where a variant's cannot be written, those of the
/// others are.
pub(super) fn write(
    (cache, finished): (&Cache, &Outcomes),
    experiment: &Experiment,
    to: &ResultsFolder,
    within: &str,
) -> anyhow::Result<usize> {
    let logs = cache.folder().join(LOGS);
    let times = |key: &UnitKey| -> Vec<StepTime> {
        let text = crate::regular::read_own(&logs.join(format!("{key}.jsonl"))).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    };
    let (mut n_scalars, mut failed) = (0, None);
    for (cell, file) in experiment.cells.iter().zip(event_files(experiment, within)) {
        let scalars = scalars(cell, finished, cache, &times)?;
        if !scalars.is_empty() {
            n_scalars += scalars.len();
            failed = failed.or(to.grow(&file, &event_file(&scalars)).err());
        }
    }
    failed.map_or(Ok(n_scalars), Err)
}
