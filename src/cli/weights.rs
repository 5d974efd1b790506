//! Checkpoints looked at.
#![expect(clippy::print_stdout, reason = "this is where printing happens")]

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context;
use serde_json::json;

use super::args::Cli;
use super::{Hinted, size};
use crate::data::read_shared;
use crate::digest::BlobDigest;
use crate::model::known::recognise;
use crate::model::weights::{Entry, Weights};

pub(super) fn inspect(cli: &Cli, path: &Path, lists_tensors: bool) -> anyhow::Result<()> {
    let file = path.display();
    let bytes = read_shared(path).map_err(|error| {
        let hint = "give the path of a .safetensors file, a state dict of PyTorch or a .params file of MXNet";
        Hinted::error(format!("could not read `{file}`: {error}"), hint)
    })?;
    let (n_bytes, digest) = (bytes.len() as u64, BlobDigest::of(&bytes));
    let weights = Weights::parse(bytes).with_context(|| format!("`{file}`"))?;
    let known = recognise(&weights);
    let n_parameters = weights.entries().map(|(_, entry)| i128::from(entry.numel())).sum::<i128>();
    let mut dtypes: BTreeMap<String, u64> = BTreeMap::new();
    weights.entries().for_each(|(_, entry)| *dtypes.entry(dtype(entry)).or_default() += 1);
    let n_tensors = weights.entries().count();
    if cli.json {
        let mut found = json!({
            "file": path,
            "format": weights.format().to_string(),
            "tensors": n_tensors,
            "parameters": n_parameters as u64,
            "dtypes": dtypes,
            "bytes": n_bytes,
            "blake3": digest.to_string(),
            "what": known.what,
            "fits": known.fits,
            "backbones": known.backbones,
            "problem": known.problem,
        });
        if lists_tensors {
            let row =
                |(name, entry): (&str, &Entry)| json!({ "name": name, "dtype": dtype(entry), "shape": entry.shape() });
            found["list"] = weights.entries().map(row).collect();
        }
        println!("{found}");
        return Ok(());
    }
    let line = |what: &str, found: &str| println!("{what:<10}  {found}");
    line("what", &known.what);
    match &known.problem {
        None => line("fits", &known.fits.join(", ")),
        Some(problem) => line("fits", &format!("nothing: {problem}")),
    }
    if !known.backbones.is_empty() {
        line("backbone", &known.backbones.join(" or "));
    }
    line("format", &weights.format().to_string());
    line("tensors", &format!("{n_tensors}, {n_parameters} parameters"));
    let dtypes: Vec<String> = dtypes.iter().map(|(dtype, n)| format!("{dtype} ({n})")).collect();
    line("numbers", &dtypes.join(", "));
    line("size", &size(n_bytes));
    line("BLAKE3", &digest.to_string());
    if lists_tensors {
        let width = weights.names().map(str::len).max().unwrap_or(0);
        println!();
        weights
            .entries()
            .for_each(|(name, entry)| println!("{name:<width$}  {:<4}  {:?}", dtype(entry), entry.shape()));
    }
    Ok(())
}

fn dtype(entry: &Entry) -> String {
    entry.dtype().to_string().to_lowercase()
}
