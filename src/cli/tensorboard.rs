//! TensorBoard's event files, made from the cache: a folder for each variant.

use std::fs;
use std::io::Write;
use std::path::Path;

use anyhow::Context;

use super::LOGS;
use super::args::Cli;
use super::experiment::Experiment;
use super::read_cache;
use super::report::put;
use crate::cache::Cache;
use crate::digest::UnitKey;
use crate::pipeline::tensorboard::{StepTime, event_file, scalars};

/// Always the same, so that a file grows in place while a run goes on.
const FILE: &str = "events.out.tfevents.0000000000.s2c-pipe";

pub(super) fn tensorboard(cli: &Cli, args: &super::args::PipelineArgs, to: Option<&Path>) -> anyhow::Result<()> {
    let cache = read_cache(cli)?;
    let experiment = Experiment::open(&cache, args)?;
    let to = to.map_or_else(|| folder(Path::new("out"), &experiment), Path::to_owned);
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

/// Where a run with `--out` puts them.
pub(super) fn folder(out: &Path, experiment: &Experiment) -> std::path::PathBuf {
    out.join(&experiment.pipeline.name).join("tensorboard")
}

/// Writes what has finished of each variant; gives the number of numbers.
pub(super) fn write(cache: &Cache, experiment: &Experiment, to: &Path) -> anyhow::Result<usize> {
    let finished = experiment.finished(cache);
    let logs = cache.folder().join(LOGS);
    let times = |key: &UnitKey| -> Vec<StepTime> {
        let text = fs::read_to_string(logs.join(format!("{key}.jsonl"))).unwrap_or_default();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    };
    let mut n_scalars = 0;
    for cell in &experiment.cells {
        let scalars = scalars(cell, &finished, cache, &times)?;
        if !scalars.is_empty() {
            n_scalars += scalars.len();
            grow(&to.join(plain(&cell.name)).join(FILE), &event_file(&scalars))?;
        }
    }
    Ok(n_scalars)
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

/// A variant's name as that of one folder; different names stay different.
fn plain(name: &str) -> String {
    let is_plain = |i: usize, c: char| c.is_alphanumeric() || " ,=+-_".contains(c) || (c == '.' && i > 0);
    let encode = |(i, c): (usize, char)| match is_plain(i, c) {
        true => c.to_string(),
        false => c.to_string().bytes().map(|byte| format!("%{byte:02x}")).collect(),
    };
    name.char_indices().map(encode).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_folder_of_its_own() {
        let names = ["S2C, cpm.tau=0.3", "..", "a/b", "a%2fb", "a_b", "\u{e9}\n"];
        let folders = names.map(plain);
        assert_eq!(folders, ["S2C, cpm.tau=0.3", "%2e.", "a%2fb", "a%252fb", "a_b", "\u{e9}%0a"]);
    }

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
