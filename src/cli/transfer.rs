//! `cache push` and `cache pull`.
#![expect(clippy::print_stdout, reason = "this is where printing happens")]

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};

use super::args::Cli;
use super::{Hinted, foreign_to_a_cache, open_cache, read_cache, size, span};
use crate::cache::remote::{self, Far, Folder, Moved, Transfer};

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

pub(super) fn pull(cli: &Cli, from: &str) -> anyhow::Result<ExitCode> {
    if !from.starts_with("s3://") && !Path::new(from).is_dir() {
        return Err(Hinted::error(format!("there is no folder `{from}`"), "give one that `cache push` has written"));
    }
    let cache = open_cache(cli)?;
    let far = open(from)?;
    let progress = Progress::new(cli.quiet, "pull");
    let report = remote::pull(&cache, &*far, &|done, of| progress.moved(done, of));
    progress.end();
    if let Err(error) = remote::pull_read(&cache, &*far) {
        eprintln!("note: what runs read was not taken, so tables need data and weights there: {error:#}");
    }
    tell(cli, "taken", &report.with_context(|| format!("taking from `{from}`"))?)
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
