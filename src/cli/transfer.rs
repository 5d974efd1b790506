//! `cache push` and `cache pull`.
#![expect(clippy::print_stdout, reason = "this is where printing happens")]

use std::cell::RefCell;
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};

use tempfile::TempDir;

use super::args::{Cli, PullArgs};
use super::{Hinted, foreign_to_a_cache, open_cache, read_cache, size, span, who};
use crate::artifact::Manifest;
use crate::cache::Cache;
use crate::cache::remote::{self, Far, Folder, Moved, Transfer};
use crate::digest::UnitKey;

/// Between two plain lines.
const EVERY: Duration = Duration::from_secs(10);
/// Blobs and units named in a line.
const MAX_NAMED: usize = 5;

pub(super) fn push(cli: &Cli, to: &str, list: bool, force: bool) -> anyhow::Result<ExitCode> {
    if !to.contains("://")
        && !force
        && let Some(name) = foreign_to_a_cache(Path::new(to))?
    {
        let message = format!("`{to}` is no cache, and has files of others, such as `{name}`");
        return Err(Hinted::error(
            message,
            "give a cache, or a new or an empty folder, or add --force to send into this one",
        ));
    }

    let cache = read_cache(cli)?;
    let far = open(to)?;
    let progress = Progress::new(cli.quiet, "push");
    let report = remote::push(&cache, &*far, list, &|done, of| progress.moved(done, of));
    progress.end();
    if let Err(error) = remote::push_read(&cache, &*far) {
        eprintln!("note: what runs read was not sent, so tables need data and weights there: {error:#}");
    }
    tell(cli, "sent", &report.with_context(|| format!("sending to `{to}`"))?)
}

pub(super) fn pull(cli: &Cli, args: &PullArgs) -> anyhow::Result<ExitCode> {
    let from = &*args.from;
    if !from.starts_with("s3://") && !Path::new(from).is_dir() {
        return Err(Hinted::error(format!("there is no folder `{from}`"), "give one that `cache push` has written"));
    }
    let cache = open_cache(cli)?;
    let far = open(from)?;
    let progress = Progress::new(cli.quiet, "pull");
    let take = |into: &Cache| remote::pull(into, &*far, &|done, of| progress.moved(done, of));
    let report = match args.audit {
        None => take(&cache),
        Some(share) => {
            let aside = Aside::of(&cache)?;
            let report = take(&aside.cache);
            progress.end();
            audit_taken(cli, &cache, &aside, (args, share))?;
            aside.keep(&cache)?;
            report
        }
    };
    progress.end();
    if let Err(error) = remote::pull_read(&cache, &*far) {
        eprintln!("note: what runs read was not taken, so tables need data and weights there: {error:#}");
    }
    tell(cli, "taken", &report.with_context(|| format!("taking from `{from}`"))?)
}

/// A cache beside a cache: it has the same blobs and knows the same records, and what it takes the other does not know.
struct Aside {
    cache: Cache,
    known: HashSet<UnitKey>,
    _folder: TempDir,
}

impl Aside {
    fn of(cache: &Cache) -> anyhow::Result<Self> {
        let scratch = cache.folder().join("scratch");
        std::fs::create_dir_all(&scratch).with_context(|| format!("making `{}`", scratch.display()))?;
        let folder = tempfile::Builder::new().prefix("pull-").tempdir_in(&scratch)?;
        let blobs = std::path::absolute(cache.folder().join("blobs"))?;
        std::fs::create_dir_all(&blobs).with_context(|| format!("making `{}`", blobs.display()))?;
        std::os::unix::fs::symlink(&blobs, folder.path().join("blobs"))?;
        let aside = Cache::open(folder.path(), &who(), &|_| false)?;
        let known = cache.manifests()?;
        aside.adopt(&known)?;
        let known = known.into_iter().map(|manifest| manifest.key).collect();
        Ok(Self { cache: aside, known, _folder: folder })
    }

    /// The records that it took and that the other cache does not have.
    fn taken(&self) -> anyhow::Result<Vec<Manifest>> {
        let all = self.cache.manifests()?.into_iter();
        Ok(all.filter(|manifest| !self.known.contains(&manifest.key)).collect())
    }

    /// The other cache is told of what it took.
    fn keep(&self, cache: &Cache) -> anyhow::Result<()> {
        cache.adopt(&self.taken()?)
    }
}

/// Runs a share of the taken units that some pipeline files have again.
///
/// # Errors
/// One gave other bytes or failed, or none could be looked at.
#[cfg(feature = "torch")]
fn audit_taken(cli: &Cli, cache: &Cache, aside: &Aside, (args, share): (&PullArgs, f64)) -> anyhow::Result<()> {
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;

    use super::args::PipelineArgs;
    use super::audit::{Audited, Chosen, audit_of, tell};
    use super::doctor::parse_devices;
    use super::experiment::{Experiment, made_by, n_cores, now};
    use super::signals::stop_on_signals;
    use crate::data::text::counted;
    use crate::stage::StageContext;

    let devices = parse_devices(&args.device)?;
    let taken: HashSet<UnitKey> = aside.taken()?.into_iter().map(|manifest| manifest.key).collect();
    let interrupted = Arc::new(AtomicBool::new(false));
    stop_on_signals(interrupted.clone()).context("listening for signals")?;
    let mut looked_at: HashSet<UnitKey> = HashSet::new();
    for file in &args.files {
        let pipeline = PipelineArgs { file: file.clone(), sets: args.sets.clone() };
        let experiment = Experiment::open(cache, &pipeline)?;
        let finished = experiment.finished(&aside.cache);
        let keys = (0..experiment.graph.len()).filter_map(|unit| finished.key(unit));
        // A unit that several of the files have is audited with the first of them.
        let among: HashSet<UnitKey> = keys.filter(|key| taken.contains(key) && looked_at.insert(*key)).collect();
        let context = StageContext {
            device: devices[0],
            progress: Arc::new(|_| {}),
            scratch: cache.folder().join("scratch"),
            interrupted: interrupted.clone(),
        };
        let (jobs, made_by) = (n_cores(), made_by());
        let audited = Audited { cli, cache: &aside.cache, experiment: &experiment, made_by: &made_by, now: &now };
        let rng_seed = args.audit_seed.unwrap_or_else(now);
        let chosen = Chosen { among: Some(&among), share, rng_seed, devices: devices.clone(), jobs, limit: None };
        let report = audit_of(&audited, chosen, context)?;
        tell(cli, &report);
        if !report.is_clean() || report.interrupted {
            let n = report.drifted.len() + report.failed.len();
            let why = match n {
                0 => "the audit was interrupted".to_owned(),
                n => format!("{} did not give the same bytes here", counted(n, "unit")),
            };
            let hint = "another kind of processor or device rounds otherwise; without --audit it is taken as it is";
            return Err(Hinted::error(format!("{why}: nothing of `{}` was taken", args.from), hint));
        }
    }
    if looked_at.is_empty() && !taken.is_empty() {
        let message =
            format!("`{}` has no unit of these files that is not here: nothing was looked at or taken", args.from);
        return Err(Hinted::error(message, "give the pipeline files that it was made with"));
    }
    let rest = taken.len() - looked_at.len();
    if rest > 0 {
        eprintln!(
            "note: {} of those taken are of none of these files, and no audit could choose them",
            counted(rest, "unit")
        );
    }
    Ok(())
}

#[cfg(not(feature = "torch"))]
fn audit_taken(_: &Cli, _: &Cache, _: &Aside, _: (&PullArgs, f64)) -> anyhow::Result<()> {
    anyhow::bail!("this build has no libtorch, and so runs no unit")
}

fn open(place: &str) -> anyhow::Result<Box<dyn Far>> {
    if !place.contains("://") {
        return Ok(Box::new(Folder::new(PathBuf::from(place))));
    }
    if !place.starts_with("s3://") {
        return Err(Hinted::error(format!("`{place}` is neither a folder nor s3://"), "give s3://BUCKET/PREFIX"));
    }
    bucket(place)
}

#[cfg(feature = "s3")]
fn bucket(url: &str) -> anyhow::Result<Box<dyn Far>> {
    let settings = std::env::vars().filter(|(name, _)| name.starts_with("AWS_"));
    Ok(Box::new(remote::S3::open(url, settings)?))
}

#[cfg(not(feature = "s3"))]
fn bucket(_: &str) -> anyhow::Result<Box<dyn Far>> {
    Err(Hinted::error("this build does not speak S3", "build with the feature `s3`"))
}

fn tell(cli: &Cli, verb: &str, report: &Transfer) -> anyhow::Result<ExitCode> {
    let Transfer { units, moved, there, refused, missing, differing } = report;
    let named = |names: &std::collections::BTreeSet<String>| {
        let first: Vec<&str> = names.iter().take(MAX_NAMED).map(String::as_str).collect();
        let more = names.len().saturating_sub(MAX_NAMED);
        if more == 0 { first.join(", ") } else { format!("{} and {more} more", first.join(", ")) }
    };
    for (names, what) in [
        (refused, "not what the name says, refused"),
        (missing, "on record, but not there"),
        (differing, "other bytes on the two sides, each keeps its own"),
    ] {
        if !names.is_empty() {
            eprintln!("{}: {what}: {}", names.len(), named(names));
        }
    }
    match cli.json {
        true => println!("{}", serde_json::to_string(report)?),
        false => {
            println!("{units} units, {} blobs, {} {verb}; {there} blobs were there", moved.blobs, size(moved.bytes))
        }
    }
    Ok(if refused.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A bar on a terminal, plain lines now and then elsewhere.
struct Progress {
    quiet: bool,
    name: &'static str,
    bar: ProgressBar,
    started: Instant,
    shown: RefCell<Instant>,
}

impl Progress {
    fn new(quiet: bool, name: &'static str) -> Self {
        let bar = if quiet { ProgressBar::hidden() } else { ProgressBar::new(0) };
        let style = "{prefix:<13} {wide_bar} {bytes}/{total_bytes}  {bytes_per_sec}  {eta}  {msg}";
        if let Ok(style) = ProgressStyle::with_template(style) {
            bar.set_style(style);
        }
        bar.set_prefix(name);
        let started = Instant::now();
        Self { quiet, name, bar, started, shown: RefCell::new(started) }
    }

    fn moved(&self, done: Moved, of: Moved) {
        self.bar.set_length(of.bytes);
        self.bar.set_position(done.bytes);
        self.bar.set_message(format!("{}/{} blobs", done.blobs, of.blobs));
        if self.quiet || !self.bar.is_hidden() || self.shown.borrow().elapsed() < EVERY {
            return;
        }
        *self.shown.borrow_mut() = Instant::now();
        let rate = done.bytes as f64 / self.started.elapsed().as_secs_f64().max(1e-9);
        let left = of.bytes.saturating_sub(done.bytes) as f64 / rate.max(1.0);
        eprintln!(
            "{}: {}/{} blobs, {} of {}, {} a second, {} left",
            self.name,
            done.blobs,
            of.blobs,
            size(done.bytes),
            size(of.bytes),
            size(rate as u64),
            span(left)
        );
    }

    fn end(&self) {
        self.bar.finish_and_clear();
    }
}
