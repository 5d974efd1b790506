//! Pictures of the user's own through a trained variant.
#![expect(clippy::print_stdout, reason = "this is where printing happens")]

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::Context;

use super::args::{Cli, PredictArgs};
use super::doctor::parse_device;
use super::experiment::Experiment;
use super::export::one_cell;
use super::report::put;
use super::{Hinted, read_cache};
use crate::artifact::{Fingerprint, FingerprintInput};
use crate::cache::Cache;
use crate::data::image::{decode_label_map, decode_rgb, encode_rgb, voc_palette};
use crate::digest::BlobDigest;
use crate::stage::seg_crf::SegCrf;
use crate::stage::seg_infer::SegInfer;
use crate::stage::{BlobReader, Bytes, Output, Stage, StageContext, UnitInput};
use crate::vision::overlay::labels_over;

pub(super) fn predict(cli: &Cli, args: &PredictArgs) -> anyhow::Result<()> {
    let device = parse_device(&args.device)?;
    let cache = read_cache(cli)?;
    let experiment = Experiment::open(&cache, &args.pipeline)?;
    let cell = one_cell(&experiment, args.variant.as_deref())?;
    let (Some(&epoch), Some(&unit)) = (cell.seg_epochs.last(), cell.predictions.first()) else {
        let message = format!("variant `{}` trains no segmentation network", cell.name);
        return Err(Hinted::error(message, "set `segmentation.enabled = true`"));
    };
    let checkpoint = experiment.finished(&cache).output(epoch, "checkpoint");
    let checkpoint = checkpoint.filter(|output| cache.store().has(&output.digest, output.size)).ok_or_else(|| {
        let message = format!("variant `{}` has not been trained, or its checkpoint was removed", cell.name);
        Hinted::error(message, format!("s2c-pipe run {} --restore", args.pipeline.written()))
    })?;
    let checkpoint = checkpoint.digest;
    // With a CRF the prediction is a unit of that, which reads the network's scores.
    let graph = &experiment.graph;
    let mut network = unit;
    graph.for_each_dependency(unit, |below| {
        if graph.unit(below).stage == SegInfer::KIND {
            network = below;
        }
    });
    let params = graph.unit(network).params;
    let crf_params = (network != unit).then(|| graph.unit(unit).params);
    let context = StageContext {
        device,
        progress: Arc::new(|_| ()),
        scratch: cache.folder().join("scratch"),
        interrupted: Arc::new(AtomicBool::new(false)),
    };
    let mut network = SegInfer::load(serde_json::from_str(params)?, &context)?;
    let crf = crf_params.map(|params| SegCrf::load(serde_json::from_str(params)?, &context));
    let mut crf = crf.transpose()?;
    fs::create_dir_all(&args.to).with_context(|| format!("making `{}`", args.to.display()))?;
    let targets = targets(&args.images, &args.to, &["_overlay.png"])?;
    for (path, png) in args.images.iter().zip(&targets) {
        let bytes: Bytes = fs::read(path).with_context(|| format!("reading `{}`", path.display()))?.into();
        let image = decode_rgb(&bytes).with_context(|| format!("`{}`", path.display()))?;
        let label = png.to_string_lossy();
        let given = Given { cache: &cache, blobs: vec![(BlobDigest::of(&bytes), bytes)] };
        let of_image = ("image", given.blobs[0].0);
        let mut outputs = given.run(&mut network, params, &label, &[("checkpoint", checkpoint), of_image])?;
        if let (Some(crf), Some(params)) = (&mut crf, crf_params) {
            let scores: Bytes = outputs.pop().context("no scores")?.bytes.into();
            let of_scores = ("scores", BlobDigest::of(&scores));
            let blobs = given.blobs.into_iter().chain([(of_scores.1, scores)]).collect();
            outputs = Given { cache: &cache, blobs }.run(crf, params, &label, &[of_image, of_scores])?;
        }
        let prediction = &outputs.first().context("no prediction")?.bytes;
        let labels = decode_label_map(prediction)?;
        put(png, prediction)?;
        let overlay = labels_over(&image, &labels, &voc_palette());
        let stem = png.file_stem().unwrap_or_default().to_string_lossy();
        put(&png.with_file_name(format!("{stem}_overlay.png")), &encode_rgb(&overlay))?;

        let mut pixels = [0usize; 256];
        labels.data.iter().for_each(|&label| pixels[usize::from(label)] += 1);
        let share = |label: usize| 100.0 * pixels[label] as f64 / labels.data.len() as f64;
        let classes = cell.dataset.classes.iter().enumerate().skip(1).filter(|(label, _)| pixels[*label] > 0);
        let found: Vec<String> = classes.map(|(label, class)| format!("{class} {:.1} %", share(label))).collect();
        println!("{}: {}", png.display(), if found.is_empty() { "background".into() } else { found.join(", ") });
    }
    Ok(())
}

/// The PNG file that each picture's label map or SE map goes to; `more`: how the names of what else it gets end.
///
/// # Errors
/// Two results would go to one file, or a picture would be overwritten.
pub(super) fn targets(images: &[PathBuf], to: &Path, more: &[&str]) -> anyhow::Result<Vec<PathBuf>> {
    let inputs: HashSet<PathBuf> = images.iter().filter_map(|path| fs::canonicalize(path).ok()).collect();
    let mut taken: HashSet<PathBuf> = HashSet::new();
    let mut targets = Vec::new();
    for path in images {
        let stem = path.file_stem().with_context(|| format!("`{}` is no file", path.display()))?.to_string_lossy();
        let result = |end: &str| to.join(format!("{stem}{end}"));
        for end in [".png"].iter().chain(more) {
            let result = result(end);
            if fs::canonicalize(&result).is_ok_and(|there| inputs.contains(&there)) {
                let message = format!("`{}` would be overwritten by a result", result.display());
                return Err(Hinted::error(message, "give another folder: --to DIR"));
            }
            if let Some(result) = taken.replace(result) {
                return Err(Hinted::error(
                    format!("two results would be written to `{}`", result.display()),
                    "call it for each with a folder of its own: --to DIR",
                ));
            }
        }
        targets.push(result(".png"));
    }
    Ok(targets)
}

/// The cache, and what is not in it.
struct Given<'a> {
    cache: &'a Cache,
    blobs: Vec<(BlobDigest, Bytes)>,
}

impl Given<'_> {
    fn run<S: Stage>(
        &self,
        stage: &mut S,
        params: &str,
        label: &str,
        inputs: &[(&str, BlobDigest)],
    ) -> anyhow::Result<Vec<Output>> {
        let input =
            |&(slot, digest): &(&str, BlobDigest)| FingerprintInput { slot: slot.into(), digest, is_set: false };
        let fingerprint = Fingerprint {
            stage: S::KIND.into(),
            version: S::VERSION,
            params: params.to_owned(),
            inputs: inputs.iter().map(input).collect(),
        };
        stage.run(&UnitInput { label, fingerprint: &fingerprint, reader: self })
    }
}

impl BlobReader for Given<'_> {
    fn read(&self, digest: &BlobDigest) -> anyhow::Result<Bytes> {
        match self.blobs.iter().find(|(of, _)| of == digest) {
            Some((_, bytes)) => Ok(bytes.clone()),
            None => Ok(self.cache.store().read(digest)?.into()),
        }
    }
}
