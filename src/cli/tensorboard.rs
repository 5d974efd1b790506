//! TensorBoard's event files, made from the cache: a folder for each variant.

use std::fs;
use std::io::Write;
use std::path::Path;

use anyhow::Context;

use super::LOGS;
use super::args::Cli;
use super::experiment::Experiment;
use super::out::OutFolder;
use super::read_cache;
use super::report::put;
use crate::cache::Cache;
use crate::digest::UnitKey;
use crate::pipeline::names;
use crate::pipeline::tensorboard::{StepTime, event_file, scalars};

/// Always the same, so that a file grows in place while a run goes on.
const FILE: &str = "events.out.tfevents.0000000000.s2c-pipe";

/// In the folder of a pipeline's results.
pub(super) const FOLDER: &str = "tensorboard";

pub(super) fn tensorboard(cli: &Cli, args: &super::args::PipelineArgs, to: Option<&Path>) -> anyhow::Result<()> {
    let cache = read_cache(cli)?;
    let experiment = Experiment::open(&cache, args)?;
    let to = match to {
        Some(to) => to.to_owned(),
        None => {
            let folder = OutFolder::of(Path::new("out"), &experiment.pipeline.name, &args.file);
            folder.note().into_iter().for_each(|note| eprintln!("note: {note}"));
            folder.claim()?;
            folder.path.join(FOLDER)
        }
    };
    let n_scalars = write(&cache, &experiment, &to)?;
    if n_scalars == 0 {
        let hint = format!("s2c-pipe run {} trains", args.written());
        return Err(super::Hinted::error("no epoch of these variants is in the cache", hint));
    }
    if !cli.quiet {
        eprintln!("{n_scalars} numbers; look at them with: tensorboard --logdir {}", to.display());
    }
    Ok(())
}

/// Writes what has finished of each variant; gives the number of numbers. Where a variant's cannot be written, those of the
/// others are.
pub(super) fn write(cache: &Cache, experiment: &Experiment, to: &Path) -> anyhow::Result<usize> {
    let finished = experiment.finished(cache);
    let logs = cache.folder().join(LOGS);
    let times = |key: &UnitKey| -> Vec<StepTime> {
        let text = fs::read_to_string(logs.join(format!("{key}.jsonl"))).unwrap_or_default();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    };
    let (mut n_scalars, mut failed) = (0, None);
    let folders = names::folders(experiment.cells.iter().map(|cell| cell.name.as_str()));
    for (cell, folder) in experiment.cells.iter().zip(folders) {
        let scalars = scalars(cell, &finished, cache, &times)?;
        if !scalars.is_empty() {
            n_scalars += scalars.len();
            failed = failed.or(grow(&to.join(folder).join(FILE), &event_file(&scalars)).err());
        }
    }
    failed.map_or(Ok(n_scalars), Err)
}

/// Appends what is new, since TensorBoard reads on in a file it has open; another beginning replaces the file.
fn grow(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let what = || format!("writing `{}`", path.display());
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder).with_context(|| format!("making `{}`", folder.display()))?;
    match fs::read(path) {
        Ok(old) if bytes.starts_with(&old) => {
            let mut file = fs::File::options().append(true).open(path).with_context(what)?;
            file.write_all(&bytes[old.len()..]).with_context(what)
        }
        _ => put(path, bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_grows_in_place_or_is_replaced() {
        use std::os::unix::fs::MetadataExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        grow(&path, b"one").unwrap();
        let first = fs::metadata(&path).unwrap().ino();
        grow(&path, b"one two").unwrap();
        assert_eq!((fs::read(&path).unwrap(), fs::metadata(&path).unwrap().ino()), (b"one two".to_vec(), first));
        grow(&path, b"three").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"three");
    }
}
