//! The command line: the only place that prints, reads the environment and the clock, and that knows clap.
#![expect(clippy::print_stdout, reason = "this is where printing happens")]

/// In place of the standard one, which panics: a run goes on when nobody reads any more what it says, as behind `| tee`
/// when Ctrl-C has ended `tee` first.
macro_rules! eprintln {
    ($($said:tt)*) => {{
        use std::io::Write;
        let _ = writeln!(std::io::stderr(), $($said)*);
    }};
}

mod args;
#[cfg(feature = "torch")]
mod audit;
#[cfg(feature = "torch")]
mod compare;
#[cfg(feature = "torch")]
mod doctor;
#[cfg(feature = "torch")]
mod experiment;
#[cfg(feature = "torch")]
mod export;
mod foreign;
mod gc;
mod history;
#[cfg(feature = "torch")]
mod kept;
#[cfg(feature = "torch")]
mod lineage;
#[cfg(feature = "torch")]
mod live;
#[cfg(feature = "torch")]
mod out;
#[cfg(feature = "torch")]
mod pictures;
#[cfg(feature = "torch")]
mod plan;
#[cfg(feature = "torch")]
mod predict;
#[cfg(feature = "torch")]
mod progress;
#[cfg(feature = "torch")]
mod record;
#[cfg(feature = "torch")]
mod report;
#[cfg(feature = "torch")]
mod results_folder;
#[cfg(feature = "torch")]
mod segment;
#[cfg(feature = "torch")]
mod signals;
mod status;
#[cfg(feature = "torch")]
mod table;
#[cfg(feature = "torch")]
mod tensorboard;
#[cfg(feature = "torch")]
mod threads;
mod transfer;
#[cfg(feature = "torch")]
mod verify;
#[cfg(feature = "torch")]
mod weights;
#[cfg(feature = "torch")]
mod why;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use clap::{CommandFactory, Parser};

#[cfg(feature = "torch")]
use self::args::WeightsAction;
use self::args::{CacheAction, Cli, Command, Shell};
use crate::cache::Cache;
use crate::pipeline::file::FileError;
use crate::pipeline::names::{message, printable};
use crate::pipeline::words::{size, span};

/// Folder in the cache: what the steps of a unit took, `KEY.jsonl`, a line a step.
const LOGS: &str = "logs";

/// Exit code of a run that was interrupted (128 + SIGINT).
#[cfg(feature = "torch")]
const INTERRUPTED: u8 = 130;

/// The program.
pub fn main() -> ExitCode {
    #[cfg(feature = "torch")]
    crate::model::memory::keep_freed();
    let cli = Cli::parse_from(std::env::args_os().map(from_home));
    if !outlives_its_reader(&cli.command) {
        end_with_the_reader();
    }
    let code = match start(&cli) {
        Ok(code) => code,
        Err(error) => {
            if let Some(OfData { notes, decided, .. }) = error.downcast_ref().filter(|_| !cli.quiet) {
                if matches!(cli.command, Command::Doctor { .. } | Command::Plan { .. }) {
                    decided.iter().for_each(|line| eprintln!("{}", printable(line, true)));
                }
                notes.iter().for_each(|note| eprintln!("note: {}", printable(note, true)));
            }
            let chain: Vec<String> = error.chain().map(ToString::to_string).collect();
            eprintln!("error: {}", message(&chain.join(": ")));
            if let Some(hint) = hint_of(&error) {
                eprintln!("hint: {}", message(&hint));
            }
            ExitCode::FAILURE
        }
    };
    #[cfg(feature = "torch")]
    if crate::pipeline::executor::has_left_threads() {
        let _ = std::io::Write::flush(&mut std::io::stdout());
        leave_at_once([0, INTERRUPTED].into_iter().find(|known| code == ExitCode::from(*known)).unwrap_or(1));
    }
    code
}

/// It runs units or networks.
#[cfg(feature = "torch")]
fn computes(command: &Command) -> bool {
    match command {
        Command::Run(_) | Command::Predict(_) | Command::Segment(_) => true,
        Command::Cache { action: CacheAction::Pull(args) } => args.audit.is_some(),
        _ => false,
    }
}

/// The command, with the threads that it computes with.
fn start(cli: &Cli) -> anyhow::Result<ExitCode> {
    #[cfg(feature = "torch")]
    if computes(&cli.command) {
        threads::fix()?;
    }
    dispatch(cli)
}

/// `--to=~/x`, in which a shell leaves the `~` as it is, with the home folder in its place. What stands alone has been
/// looked at by the shell.
fn from_home(arg: OsString) -> OsString {
    let home = std::env::home_dir().filter(|home| home.is_absolute());
    let parts = arg.to_str().filter(|arg| arg.starts_with("--")).and_then(|arg| arg.split_once("=~"));
    match (parts, home) {
        (Some((option, rest)), Some(home)) if !option.contains('=') && (rest.is_empty() || rest.starts_with('/')) => {
            let mut arg = OsString::from(format!("{option}="));
            arg.push(home);
            arg.push(rest);
            arg
        }
        _ => arg,
    }
}

/// What works, and what has sockets, which fail alike when the far side closes them.
fn outlives_its_reader(command: &Command) -> bool {
    match command {
        Command::Cache { action: CacheAction::Push { .. } | CacheAction::Pull(_) } => true,
        #[cfg(feature = "torch")]
        Command::Run(_) => true,
        _ => false,
    }
}

/// As other programs do: `s2c-pipe results .. | head` ends when `head` has read enough. (Rust would have printing panic.)
fn end_with_the_reader() {
    #[expect(unsafe_code, reason = "the standard library has no stable way")]
    // SAFETY: sets what a signal does, before there is another thread.
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
    }
}

#[cfg(feature = "torch")]
/// Ends the process without what `exit` would run first: libtorch takes itself down under threads that still use it.
fn leave_at_once(code: u8) -> ! {
    #[expect(unsafe_code, reason = "a call of the C library that never returns")]
    // SAFETY: `_exit` takes no pointer and runs nothing of this process.
    unsafe {
        libc::_exit(i32::from(code))
    }
}

/// What to do about an error, where it knows.
fn hint_of(error: &anyhow::Error) -> Option<String> {
    if let Some(OfData { error, .. }) = error.downcast_ref() {
        return hint_of(error);
    }
    if let Some(file) = error.downcast_ref::<FileError>() {
        return file.hint.clone();
    }
    if let Some(hinted) = error.downcast_ref::<Hinted>() {
        return Some(hinted.hint.clone());
    }
    if let Some(fault) = error.downcast_ref::<crate::stage::NotFinite>() {
        return Some(fault.hint(crate::pipeline::value::default_number(fault.field)));
    }
    if error.downcast_ref::<crate::stage::guard::OutOfMemory>().is_some() {
        return Some(crate::stage::guard::OutOfMemory::HINT.to_owned());
    }
    #[cfg(feature = "torch")]
    if let Some(weights) = error.downcast_ref::<crate::pipeline::build::MissingWeights>() {
        return Some(weights.hint());
    }
    #[cfg(feature = "torch")]
    if let Some(unknown) = error.downcast_ref::<crate::pipeline::build::UnknownEvaluated>() {
        return Some(unknown.hint());
    }
    #[cfg(feature = "torch")]
    if let Some(value) = error.downcast_ref::<crate::pipeline::build::NeedsMasks>() {
        return Some(value.hint());
    }
    #[cfg(feature = "torch")]
    if let Some(file) = error.downcast_ref::<crate::model::weights::NotACheckpoint>() {
        return Some(file.hint.to_owned());
    }
    #[cfg(feature = "torch")]
    if error.downcast_ref::<crate::model::backbone::UnfitWeights>().is_some() {
        return Some(crate::model::backbone::UnfitWeights::HINT.to_owned());
    }
    Some(error.downcast_ref::<crate::data::scan::DataError>()?.hint().to_owned())
}

/// An error of the command line with what to do about it.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
struct Hinted {
    message: String,
    hint: String,
}

/// An error of what is built from data, with what is noted of them.
#[derive(Debug)]
struct OfData {
    error: anyhow::Error,
    notes: Vec<String>,
    /// Lines that say how the data are read, since they can be read and something else is wrong.
    decided: Vec<String>,
}

impl std::fmt::Display for OfData {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.error.fmt(f)
    }
}

impl std::error::Error for OfData {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.error.source()
    }
}

impl Hinted {
    fn error(message: impl Into<String>, hint: impl Into<String>) -> anyhow::Error {
        Self { message: message.into(), hint: hint.into() }.into()
    }
}

fn dispatch(cli: &Cli) -> anyhow::Result<ExitCode> {
    match &cli.command {
        Command::Schema => {
            println!("{}", serde_json::to_string_pretty(&crate::pipeline::file::schema())?);
        }
        Command::Completions { shell } => {
            use clap_complete::{Shell as To, generate};
            let to = match shell {
                Shell::Bash => To::Bash,
                Shell::Zsh => To::Zsh,
                Shell::Fish => To::Fish,
            };
            generate(to, &mut Cli::command(), "s2c-pipe", &mut std::io::stdout());
        }
        Command::History { file } => history::history(cli, file.as_deref())?,
        Command::Status { file } => status::status(cli, file.as_deref())?,
        Command::Cache { action: CacheAction::Du } => usage(cli)?,
        Command::Cache { action: CacheAction::Verify } => return verify(cli),
        Command::Cache { action: CacheAction::Rebuild } => {
            let n_units = open_cache(cli)?.reindex()?;
            println!("{n_units} records of finished units indexed");
        }
        Command::Cache { action: CacheAction::Gc { keep, sets, max_size, dry_run } } => {
            gc::collect(cli, &gc::Asked { files: keep, sets, max_bytes: *max_size, dry_run: *dry_run })?;
        }
        Command::Cache { action: CacheAction::Push { to, list, force } } => {
            return transfer::push(cli, to, *list, *force);
        }
        Command::Cache { action: CacheAction::Pull(args) } => return transfer::pull(cli, args),
        #[cfg(feature = "torch")]
        Command::Weights { action: WeightsAction::Inspect { file, tensors } } => weights::inspect(cli, file, *tensors)?,
        #[cfg(feature = "torch")]
        other => return experiment::dispatch(cli, other),
        #[cfg(not(feature = "torch"))]
        _ => anyhow::bail!("this build has no libtorch; build with the feature `torch`"),
    }
    Ok(ExitCode::SUCCESS)
}

/// What a cache has in its folder: see [`crate::cache`].
const PARTS_OF_A_CACHE: [&str; 12] = [
    "blobs",
    "manifests",
    "index",
    "history",
    "datasets",
    "drift",
    "scratch",
    LOGS,
    "lock",
    "status.json",
    "CACHEDIR.TAG",
    ".gitignore",
];

/// A file of somebody else in a folder that is no cache yet.
fn foreign_to_a_cache(folder: &Path) -> anyhow::Result<Option<String>> {
    let is_cache = ["blobs", "manifests"].iter().any(|part| folder.join(part).is_dir());
    match is_cache {
        true => Ok(None),
        false => foreign::first_foreign(folder, &PARTS_OF_A_CACHE, &|_| false)
            .with_context(|| format!("looking into `{}`", folder.display())),
    }
}

/// A cache is not made among somebody's files.
fn ensure_cache_or_new(cli: &Cli) -> anyhow::Result<()> {
    let shown = cli.cache.display();
    if std::fs::metadata(&cli.cache).is_ok_and(|found| !found.is_dir()) {
        return Err(Hinted::error(
            format!("the cache `{shown}` is a file, not a folder"),
            "give a folder: --cache DIR",
        ));
    }
    foreign_to_a_cache(&cli.cache)?.map_or(Ok(()), |name| {
        let message = format!("`{shown}` is no cache, and has files of others, such as `{name}`");
        Err(Hinted::error(message, "give a cache, or a new or an empty folder: --cache DIR"))
    })
}

/// Opens the cache, waiting for whoever holds it.
fn open_cache(cli: &Cli) -> anyhow::Result<Cache> {
    ensure_cache_or_new(cli)?;
    let told = std::cell::Cell::new(false);
    let waiting = |holder: &str| {
        if !told.replace(true) {
            eprintln!("waiting for the cache `{}`, in use by {holder}", cli.cache.display());
        }
        true
    };
    opened(cli, Cache::open(&cli.cache, &who(), &waiting)?)
}

/// Opens the cache to look at it, waiting for nobody.
fn read_cache(cli: &Cli) -> anyhow::Result<Cache> {
    ensure_cache_or_new(cli)?;
    opened(cli, Cache::open_to_read(&cli.cache, &who())?)
}

fn opened(cli: &Cli, mut cache: Cache) -> anyhow::Result<Cache> {
    if cli.rehash {
        cache.rehash();
    }
    if !cli.quiet {
        cache.damage().iter().for_each(|line| eprintln!("note: {line}"));
    }
    Ok(cache)
}

/// This process for others.
fn who() -> String {
    let command: Vec<String> = std::env::args_os().skip(1).map(|arg| arg.to_string_lossy().into_owned()).collect();
    format!("process {} (s2c-pipe {})", std::process::id(), command.join(" "))
}

fn usage(cli: &Cli) -> anyhow::Result<()> {
    let stages = read_cache(cli)?.usage()?;
    if cli.json {
        println!("{}", serde_json::to_string(&stages)?);
        return Ok(());
    }
    println!("{:<14} {:>8} {:>10}", "stage", "units", "size");
    for (stage, used) in &stages {
        println!("{stage:<14} {:>8} {:>10}", used.units, size(used.bytes));
    }
    println!("{:<14} {:>8} {:>10}", "", "", size(stages.values().map(|used| used.bytes).sum()));
    Ok(())
}

fn verify(cli: &Cli) -> anyhow::Result<ExitCode> {
    let report = open_cache(cli)?.verify()?;
    if cli.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        println!("{} blobs, {}: {} corrupt (removed)", report.blobs, size(report.bytes), report.corrupt.len());
        report.incomplete.iter().for_each(|label| println!("runs again when needed: {label}"));
        report.foreign.iter().for_each(|path| println!("not of this cache, left alone: {}", path.display()));
    }
    Ok(if report.corrupt.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
