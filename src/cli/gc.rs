//! `cache gc`.
#![expect(clippy::print_stdout, reason = "this is where printing happens")]

use std::collections::HashSet;
use std::path::PathBuf;

use super::args::Cli;
use super::{LOGS, open_cache, size, span};
use crate::cache::{Cache, GcReport, Keep, Removed};

/// What a collection is asked for.
pub(super) struct Asked<'a> {
    /// Pipeline files whose results stay.
    pub(super) files: &'a [PathBuf],
    /// Overrides of their fields.
    pub(super) sets: &'a [String],
    /// Blobs may take so many bytes.
    pub(super) max_bytes: Option<u64>,
    pub(super) dry_run: bool,
}

pub(super) fn collect(cli: &Cli, asked: &Asked<'_>) -> anyhow::Result<()> {
    let Asked { files, sets, max_bytes, dry_run } = *asked;
    let cache = open_cache(cli)?;
    let (keep, logs) = kept(&cache, files, sets)?;
    let report = cache.collect(&keep, max_bytes, dry_run)?;
    // With a limit these stay: they are small, or somebody's half-done epoch.
    if !dry_run && max_bytes.is_none() {
        // Half-done epochs cost time only.
        let _ = std::fs::remove_dir_all(cache.folder().join("scratch"));
        let found = std::fs::read_dir(cache.folder().join(LOGS)).into_iter().flatten().flatten();
        for log in found.filter(|log| !logs.contains(&*log.file_name().to_string_lossy())) {
            let _ = std::fs::remove_file(log.path());
        }
    }
    if cli.json {
        println!("{}", serde_json::to_string(&report)?);
        return Ok(());
    }
    print!("{}", text(&report, dry_run));
    if let Some(max) = max_bytes.filter(|max| report.kept_bytes > *max) {
        eprintln!("{} is more than {}: the files given have all that stays", size(report.kept_bytes), size(max));
    }
    Ok(())
}

fn text(report: &GcReport, dry_run: bool) -> String {
    let GcReport { removed_blobs, removed_bytes, kept_blobs, kept_bytes, removed, again } = report;
    let verb = if dry_run { "would be removed" } else { "removed" };
    let (all, kept) = (size(*removed_bytes), size(*kept_bytes));
    let mut text = format!("{removed_blobs} blobs, {all} {verb}; {kept_blobs} blobs, {kept} stay\n");
    for (why, Removed { blobs, bytes }) in removed {
        text.push_str(&format!("{:<14} {blobs:>8} {:>14}\n", why.replace('_', " "), size(*bytes)));
    }
    if !again.is_empty() {
        let seconds = again.values().map(|stage| stage.seconds).sum();
        text.push_str(&format!("to make it again, if ever: {}\n", span(seconds)));
        for (stage, again) in again {
            text.push_str(&format!("{stage:<14} {:>8} {:>14}\n", again.units, span(again.seconds)));
        }
    }
    text
}

/// What the units of some pipeline files gave and read, and the names of their logs.
#[cfg(feature = "torch")]
fn kept(cache: &Cache, files: &[PathBuf], sets: &[String]) -> anyhow::Result<(Keep, HashSet<String>)> {
    use anyhow::Context;

    use super::args::PipelineArgs;
    use super::experiment::Experiment;
    use crate::pipeline::plan::finished;

    let (mut keep, mut logs) = (Keep::default(), HashSet::new());
    for file in files {
        let args = PipelineArgs { file: file.clone(), sets: sets.to_vec() };
        let experiment = Experiment::open(cache, &args).with_context(|| format!("`{}`", file.display()))?;
        let all: Vec<usize> = (0..experiment.graph.len()).collect();
        let finished = finished(&experiment.graph, cache, &all);
        for unit in all {
            let Some(key) = finished.key(unit) else { continue };
            logs.insert(format!("{key}.jsonl"));
            keep.blobs.extend(finished.outputs(unit).iter().map(|output| output.digest));
            let inputs = cache.get(&key).map(|manifest| manifest.fingerprint.inputs).unwrap_or_default();
            keep.blobs.extend(inputs.iter().map(|input| input.digest));
        }
        let ends = experiment.targets().into_iter().flat_map(|unit| finished.outputs(unit));
        keep.ends.extend(ends.map(|output| output.digest));
    }
    Ok((keep, logs))
}

#[cfg(not(feature = "torch"))]
fn kept(_: &Cache, files: &[PathBuf], _: &[String]) -> anyhow::Result<(Keep, HashSet<String>)> {
    anyhow::ensure!(files.is_empty(), "this build has no libtorch, and so reads no pipeline file");
    Ok(Default::default())
}
