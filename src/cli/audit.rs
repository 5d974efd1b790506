//! `run --audit`.

use std::collections::HashSet;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;

use super::args::Cli;
use super::experiment::Experiment;
use super::progress::Progress;
use super::{INTERRUPTED, LOGS, hint_of};
use crate::cache::Cache;
use crate::digest::UnitKey;
use crate::pipeline::audit::{AuditOptions, AuditReport, audit};
use crate::pipeline::build::registry;
use crate::pipeline::executor::LocalExecutor;
use crate::stage::{Device, StageContext};

/// A run that has ended.
pub(super) struct Audited<'a> {
    pub(super) cli: &'a Cli,
    pub(super) cache: &'a Cache,
    pub(super) experiment: &'a Experiment,
    pub(super) made_by: &'a str,
    /// Seconds since 1970.
    pub(super) now: &'a dyn Fn() -> u64,
}

/// What of it runs again, and how.
pub(super) struct Chosen<'a> {
    /// If this is given, only units with these keys are audited.
    pub(super) among: Option<&'a HashSet<UnitKey>>,
    pub(super) share: f64,
    pub(super) rng_seed: u64,
    pub(super) devices: Vec<Device>,
    pub(super) jobs: usize,
    pub(super) limit: Option<Duration>,
}

/// Tells what did not give the same bytes again; the exit code of a run that went well but for that.
pub(super) fn audit_run(run: &Audited<'_>, chosen: Chosen<'_>, context: StageContext) -> anyhow::Result<ExitCode> {
    let report = audit_of(run, chosen, context)?;
    tell(run.cli, &report);
    if !report.is_clean() {
        eprintln!("results built on others have a ! in the table; the cache is as it was");
    }
    Ok(match (report.is_clean(), report.interrupted) {
        (false, _) => ExitCode::FAILURE,
        (true, true) => ExitCode::from(INTERRUPTED),
        (true, false) => ExitCode::SUCCESS,
    })
}

/// Runs the units again.
pub(super) fn audit_of(run: &Audited<'_>, chosen: Chosen<'_>, context: StageContext) -> anyhow::Result<AuditReport> {
    let Audited { cli, cache, experiment, made_by, now } = *run;
    let Chosen { among, share, rng_seed, devices, jobs, limit } = chosen;
    // Of its own: no half-done epoch is taken up, and the logs of those that are cached stay.
    let folder = cache.folder().join("scratch");
    std::fs::create_dir_all(&folder).with_context(|| format!("making `{}`", folder.display()))?;
    let scratch = tempfile::Builder::new().prefix("audit-").tempdir_in(&folder)?;
    let progress = Arc::new(Progress::new(cli.quiet, scratch.path().join(LOGS), None));
    let inside = progress.clone();
    let interrupted = context.interrupted.clone();
    let progress_fn = Arc::new(move |step: &crate::stage::Step<'_>| inside.step(step));
    let context = StageContext { progress: progress_fn, scratch: scratch.path().to_owned(), ..context };
    let mut executor = LocalExecutor::new(context, jobs).on(devices).with_limit(limit);
    if !cli.quiet {
        eprintln!("audit of {:.4} % with --audit-seed {rng_seed}", share * 100.0);
    }
    let options = AuditOptions {
        targets: &experiment.targets(),
        among,
        share,
        rng_seed,
        interrupted,
        clock: now,
        made_by,
        observer: &|event| progress.event(event),
    };
    audit(&experiment.graph, cache, &registry(), &mut executor, &options)
}

/// Tells what did not give the same bytes again.
pub(super) fn tell(cli: &Cli, report: &AuditReport) {
    let AuditReport { n_cached, n_not_there, n_agreed, drifted, failed, interrupted } = report;
    for drift in drifted {
        for (output, (was, is)) in &drift.outputs {
            eprintln!(
                "drifted: {}, `{output}`: {was} by {}, now {is} by {}",
                drift.label, drift.made_by, drift.audited_by
            );
        }
    }
    for (label, error) in failed {
        eprintln!("failed when it ran again: {label}: {error:#}");
        hint_of(error).into_iter().for_each(|hint| eprintln!("hint: {hint}"));
    }
    if cli.quiet && report.is_clean() {
        return;
    }
    let not_there = match n_not_there {
        0 => String::new(),
        n => format!("; {n} cannot run again, since what they read was removed"),
    };
    let n_run = n_agreed + drifted.len() + failed.len();
    eprintln!("audit: {n_agreed} of {n_run} units gave the same bytes again, of {n_cached} in the cache{not_there}");
    if *interrupted {
        eprintln!("the audit was interrupted");
    }
}
