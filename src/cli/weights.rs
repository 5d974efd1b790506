//! Checkpoints looked at.
#![expect(clippy::print_stdout, reason = "this is where printing happens")]

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::args::Cli;
use super::experiment::Experiment;
use super::{Hinted, size};
use crate::cache::Cache;
use crate::data::scan::fact;
use crate::data::{FileMemo, FileRef, read_shared};
use crate::digest::BlobDigest;
use crate::model::backbone::UnfitWeights;
use crate::model::known::{Known, recognise};
use crate::model::weights::{self, Naming, Weights, shown};
use crate::pipeline::affinity::On;
use crate::pipeline::build::reads_sam;
use crate::pipeline::spec::{Backbone, Refinement, Spec};
use crate::stage::guard::guarded;

pub(super) fn inspect(cli: &Cli, path: &Path, lists_tensors: bool) -> anyhow::Result<()> {
    let file = path.display();
    let bytes = read_shared(path).map_err(|error| {
        let hint = "give the path of a .safetensors file, a state dict of PyTorch or a .params file of MXNet";
        Hinted::error(format!("could not read `{file}`: {error}"), hint)
    })?;
    let (n_bytes, digest) = (bytes.len() as u64, BlobDigest::of(&bytes));
    let weights = Weights::parse(bytes).with_context(|| format!("`{file}`"))?;
    let known = guarded(|| Ok(recognise(&weights))).with_context(|| format!("`{file}`"))?;
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
            "hint": known.hint,
            "notes": known.notes,
            "ignored": known.ignored,
            "prefix": weights.naming().prefix,
            "translated": weights.naming().translated,
            "outside": weights.naming().outside.len(),
        });
        if lists_tensors {
            let row = |(name, entry): (&str, &weights::Entry)| json!({ "name": name, "dtype": dtype(entry), "shape": entry.shape() });
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
    if let Some(hint) = &known.hint {
        line("hint", hint);
    }
    known.notes.iter().for_each(|note| line("note", note));
    let Naming { prefix, translated, copies: _, outside } = weights.naming();
    let names: Vec<String> = [
        (!prefix.is_empty()).then(|| format!("`{}` was taken away before each", shown(prefix))),
        translated.map(|whose| format!("translated from those of {whose}")),
        (!outside.is_empty()).then(|| format!("{} tensors without it are left out: {}", outside.len(), few(outside))),
    ]
    .into_iter()
    .flatten()
    .collect();
    if !names.is_empty() {
        line("names", &names.join("; "));
    }
    if !known.ignored.is_empty() {
        line("ignored", &format!("{} tensors that change nothing: {}", known.ignored.len(), few(&known.ignored)));
    }
    line("format", &weights.format().to_string());
    line("tensors", &format!("{n_tensors}, {n_parameters} parameters"));
    let dtypes: Vec<String> = dtypes.iter().map(|(dtype, n)| format!("{dtype} ({n})")).collect();
    line("numbers", &dtypes.join(", "));
    line("size", &size(n_bytes));
    line("BLAKE3", &digest.to_string());
    if lists_tensors {
        let width = weights.names().map(|name| shown(name).len()).max().unwrap_or(0);
        println!();
        weights
            .entries()
            .for_each(|(name, entry)| println!("{:<width$}  {:<4}  {:?}", shown(name), dtype(entry), entry.shape()));
    }
    Ok(())
}

/// The first of some names.
fn few(names: &[String]) -> String {
    let named: Vec<String> = names.iter().take(3).map(|name| format!("`{}`", shown(name))).collect();
    format!("{}{}", named.join(", "), if names.len() > 3 { ", .." } else { "" })
}

/// What is known of a checkpoint, as it is remembered by the file's content.
#[derive(Serialize, Deserialize)]
struct Fit {
    what: String,
    fits: Vec<String>,
    backbones: Vec<String>,
    problem: Option<String>,
    hint: Option<String>,
    notes: Vec<String>,
}

impl Fit {
    /// Under this name; another where checkpoints are told otherwise.
    const FACT: &str = "weights 2";

    fn of(cache: &Cache, path: &Path) -> anyhow::Result<Self> {
        let file = FileRef { path: path.into(), digest: cache.digest(path)? };
        fact(Self::FACT, &file, cache, |bytes| {
            let Known { what, fits, backbones, problem, hint, notes, ignored: _ } =
                guarded(|| Ok(recognise(&Weights::parse(bytes.clone())?)))?;
            let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
            Ok(Self { what, fits: owned(fits), backbones: owned(backbones), problem, hint, notes })
        })
    }
}

/// A field of weights, as a cell has it.
pub(super) struct Field {
    /// That which names the file: of a network that takes the classifier's weights, the classifier's field.
    pub(super) name: &'static str,
    pub(super) path: PathBuf,
    backbone: Option<Backbone>,
    is_read: bool,
}

/// Every network of a cell, with the file that its weights come from.
pub(super) fn fields(spec: &Spec) -> Vec<Field> {
    let Spec { sam, classifier, segmentation, pseudo_label, .. } = spec;
    let refines = |refinement| pseudo_label.refine.contains(&refinement);
    let field = |name, path: &Path, backbone, is_read| Field { name, path: path.to_owned(), backbone, is_read };
    let after = |name, is_set, on: On, refinement| {
        field(if is_set { name } else { "classifier.weights" }, &on.weights, Some(on.backbone), refines(refinement))
    };
    let (psa, irn) = (&pseudo_label.psa, &pseudo_label.irn);
    vec![
        field("sam.weights", &sam.weights, None, reads_sam(spec)),
        field("classifier.weights", &classifier.weights, Some(classifier.backbone), true),
        field("segmentation.weights", &segmentation.weights, Some(segmentation.backbone), segmentation.enabled),
        after("pseudo_label.psa.weights", psa.weights.is_some(), psa.on(classifier), Refinement::Psa),
        after("pseudo_label.irn.weights", irn.weights.is_some(), irn.on(classifier), Refinement::Irn),
    ]
}

/// Every file of weights is one that its field can use, before any work starts.
pub(super) fn check(cli: &Cli, cache: &Cache, experiment: &Experiment) -> anyhow::Result<()> {
    let mut known: HashMap<PathBuf, Fit> = HashMap::new();
    let fields = experiment.pipeline.cells.iter().flat_map(|cell| fields(&cell.spec));
    for Field { name, path, backbone, .. } in fields.filter(|field| field.is_read) {
        let Fit { what, fits, backbones, problem, hint, notes: _ } = match known.entry(path.clone()) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => {
                let fit = new.insert(Fit::of(cache, &path).with_context(|| format!("`{name}`"))?);
                if !cli.quiet {
                    fit.notes.iter().for_each(|note| eprintln!("note: `{name}`: `{}`: {note}", path.display()));
                }
                fit
            }
        };
        let wanted = if name == "sam.weights" { "sam.weights" } else { "classifier.weights" };
        let backbone = backbone.map(serde_json::to_value).transpose()?;
        let backbone = backbone.as_ref().and_then(|name| name.as_str());
        let wrong = match (problem, backbone) {
            (Some(problem), _) => format!("is {what}: {problem}"),
            (None, _) if !fits.iter().any(|fit| fit == wanted) => format!("is {what}, which fits {}", fits.join(", ")),
            (None, Some(backbone)) if !backbones.iter().any(|fit| fit == backbone) => {
                format!("is {what}, and the backbone is {backbone}")
            }
            _ => continue,
        };
        let hint = hint.as_deref().unwrap_or(UnfitWeights::HINT);
        return Err(Hinted::error(format!("`{name}`: `{}` {wrong}", path.display()), hint));
    }
    Ok(())
}

fn dtype(entry: &weights::Entry) -> String {
    entry.dtype().to_string().to_lowercase()
}
