//! Checkpoints looked at.
#![expect(clippy::print_stdout, reason = "this is where printing happens")]

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::args::Cli;
use super::experiment::Experiment;
use super::{Hinted, size};
use crate::cache::Cache;
use crate::data::{FileMemo, read_shared};
use crate::digest::BlobDigest;
use crate::model::backbone::UnfitWeights;
use crate::model::known::{Known, recognise};
use crate::model::weights::{Entry, Weights};
use crate::pipeline::spec::{Backbone, Refinement, Spec};

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

/// What is known of a checkpoint, as it is remembered by the file's content.
#[derive(Serialize, Deserialize)]
struct Fit {
    what: String,
    fits: Vec<String>,
    backbones: Vec<String>,
    problem: Option<String>,
}

impl Fit {
    /// Under this name; another where checkpoints are told otherwise.
    const FACT: &str = "weights 1";

    fn of(cache: &Cache, path: &Path) -> anyhow::Result<Self> {
        let digest = cache.digest(path)?;
        if let Some(fit) = cache.fact(Self::FACT, &digest).and_then(|bytes| serde_json::from_slice(&bytes).ok()) {
            return Ok(fit);
        }
        let Known { what, fits, backbones, problem } = recognise(&Weights::parse(read_shared(path)?)?);
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let fit = Self { what, fits: owned(fits), backbones: owned(backbones), problem };
        cache.remember(Self::FACT, &digest, &serde_json::to_vec(&fit)?);
        Ok(fit)
    }
}

/// Every file of weights is one that its field can use, before any work starts.
pub(super) fn check(cache: &Cache, experiment: &Experiment) -> anyhow::Result<()> {
    for (field, path, backbone) in experiment.pipeline.cells.iter().flat_map(|cell| in_use(&cell.spec)) {
        let what = || format!("`{field}`: `{}`", path.display());
        let Fit { what: is, fits, backbones, problem } = Fit::of(cache, path).with_context(what)?;
        let wanted = if field == "sam.weights" { "sam.weights" } else { "classifier.weights" };
        let backbone =
            backbone.map(|of| serde_json::to_value(of).map(|name| name.as_str().unwrap_or_default().to_owned()));
        let backbone = backbone.transpose()?;
        let wrong = match (problem, backbone) {
            (Some(problem), _) => format!("is {is}: {problem}"),
            (None, _) if !fits.iter().any(|fit| fit == wanted) => format!("is {is}, which fits {}", fits.join(", ")),
            (None, Some(backbone)) if !backbones.contains(&backbone) => {
                format!("is {is}, and the backbone is {backbone}")
            }
            _ => continue,
        };
        return Err(Hinted::error(format!("{} {wrong}", what()), UnfitWeights::HINT));
    }
    Ok(())
}

/// Fields of weights that a cell reads, with their backbones.
fn in_use(spec: &Spec) -> Vec<(&'static str, &Path, Option<Backbone>)> {
    let Spec { classifier, segmentation, pseudo_label, .. } = spec;
    let mut used = vec![("classifier.weights", &*classifier.weights, Some(classifier.backbone))];
    if segmentation.enabled {
        used.push(("segmentation.weights", &segmentation.weights, Some(segmentation.backbone)));
    }
    if classifier.ssc.enabled || classifier.cpm.enabled {
        used.push(("sam.weights", &spec.sam.weights, None));
    }
    let (psa, irn) = (&pseudo_label.psa, &pseudo_label.irn);
    for (refinement, field, weights, backbone) in [
        (Refinement::Psa, "pseudo_label.psa.weights", &psa.weights, psa.backbone),
        (Refinement::Irn, "pseudo_label.irn.weights", &irn.weights, irn.backbone),
    ] {
        if let Some(weights) = weights.as_ref().filter(|_| pseudo_label.refine.contains(&refinement)) {
            used.push((field, weights, Some(backbone.unwrap_or(classifier.backbone))));
        }
    }
    used
}

fn dtype(entry: &Entry) -> String {
    entry.dtype().to_string().to_lowercase()
}
