//! `verify-results`.
#![expect(clippy::print_stdout, reason = "this is where printing happens")]

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;

use super::args::Cli;
use super::table::tabular_of;
use super::{Hinted, read_cache};
use crate::pipeline::verified::check;

pub(super) fn verify_results(cli: &Cli, files: &[PathBuf]) -> anyhow::Result<ExitCode> {
    let cache = read_cache(cli)?;
    let read = |digest: &_| serde_json::from_slice(&cache.store().read(digest).ok()?).ok();
    let (mut n_faulty, mut all) = (0, Vec::new());
    for file in files {
        let tex = fs::read_to_string(file).with_context(|| format!("could not read `{}`", file.display()))?;
        let checked = check(&tex, &read, &mut |source| tabular_of(cli, &cache, source))?;
        if checked.is_empty() {
            let message = format!("`{}` has no number with a digest", file.display());
            return Err(Hinted::error(message, "make the table with s2c-pipe results FILE --latex"));
        }
        for cell in &checked {
            n_faulty += usize::from(!cell.faults.is_empty());
            if !cli.json {
                let place = format!("{}:{}: {}, {}", file.display(), cell.line, cell.row, cell.column);
                cell.faults.iter().for_each(|fault| println!("{place}: {fault}"));
            }
        }
        all.push((file.display().to_string(), checked));
    }
    let n: usize = all.iter().map(|(_, checked)| checked.len()).sum();
    match cli.json {
        true => println!("{}", serde_json::to_string(&all)?),
        false => println!("{} of {n} numbers are what the cache holds", n - n_faulty),
    }
    Ok(if n_faulty == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
