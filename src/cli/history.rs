//! The runs that a cache has seen.
#![expect(clippy::print_stdout, reason = "this is where printing happens")]

use std::path::Path;

use super::Hinted;
use super::args::Cli;
use crate::cache::history::{History, Run};
use crate::cache::holder;
use crate::pipeline::past::{Shown, text};

/// Shows all runs, or those of a pipeline file; waits for nobody.
pub(super) fn history(cli: &Cli, file: Option<&Path>) -> anyhow::Result<()> {
    let holder = holder(&cli.cache);
    let all = History::new(&cli.cache).runs()?;
    let runs = match file {
        None => all,
        Some(file) => of_file(&all, file)?,
    };
    let runs: Vec<Shown> = runs.into_iter().map(|run| Shown::new(run, holder.as_deref())).collect();
    if cli.json {
        println!("{}", serde_json::to_string_pretty(&runs)?);
        return Ok(());
    }
    if runs.is_empty() {
        println!("no run yet in `{}`", cli.cache.display());
    }
    // From here, where one can write it again.
    let here = std::env::current_dir().unwrap_or_default();
    let near = |mut shown: Shown| {
        if let Ok(below) = Path::new(&shown.run.began.file).strip_prefix(&here) {
            shown.run.began.file = below.to_string_lossy().into_owned();
        }
        shown
    };
    print!("{}", text(&runs.into_iter().map(near).collect::<Vec<_>>()));
    Ok(())
}

/// Whether a path in the history is that of a file: also by another path to it; one that is gone is known by its old path.
pub(super) fn is_of_file(file: &Path) -> impl Fn(&str) -> bool {
    let path = std::path::absolute(file).unwrap_or_else(|_| file.to_owned());
    let real = path.canonicalize().ok();
    move |known| path == Path::new(known) || real.is_some() && Path::new(known).canonicalize().ok() == real
}

/// The runs of a pipeline file.
pub(super) fn of_file(all: &[Run], file: &Path) -> anyhow::Result<Vec<Run>> {
    let is_it = is_of_file(file);
    let runs: Vec<Run> = all.iter().filter(|run| is_it(&run.began.file)).cloned().collect();
    if !runs.is_empty() {
        return Ok(runs);
    }
    let mut files: Vec<&str> = all.iter().map(|run| run.began.file.as_str()).collect();
    files.sort_unstable();
    files.dedup();
    let hint = match files.is_empty() {
        true => format!("s2c-pipe run {} makes one", file.display()),
        false => format!("there are runs of: {}", files.join("; ")),
    };
    Err(Hinted::error(format!("no run of `{}` in this cache", file.display()), hint))
}
