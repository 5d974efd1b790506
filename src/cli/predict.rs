//! Pictures of the user's own through a trained variant.
#![expect(clippy::print_stdout, reason = "this is where printing happens")]

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::Context;

use super::args::{Cli, PredictArgs};
use super::doctor::parse_device;
use super::experiment::Experiment;
use super::export::one_cell;
use super::pictures::{Picture, Pictures, note_turned, read_picture};
use super::results_folder::ResultsFolder;
use super::{Hinted, read_cache};
use crate::artifact::{Fingerprint, FingerprintInput};
use crate::cache::Cache;
use crate::data::image::{decode_label_map, encode_rgb, voc_palette};
use crate::digest::BlobDigest;
use crate::stage::guard::guarded;
use crate::stage::seg_crf::SegCrf;
use crate::stage::seg_infer::SegInfer;
use crate::stage::{BlobReader, Bytes, Output, Stage, StageContext, UnitInput};
use crate::vision::overlay::labels_over;
use crate::vision::{LabelMap, Rgb};

/// How the names of results end: label map, overlay.
const ENDINGS: [&str; 2] = [".png", "_overlay.png"];

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
    let mut pictures = Pictures::find(&args.images, &args.to, &ENDINGS)?;
    if !cli.quiet {
        pictures.notes.iter().for_each(|note| eprintln!("note: {note}"));
    }
    let folder = pictures.results(&args.images, &args.to, (args.force, experiment.reads(&cache)), &ENDINGS)?;
    if !pictures.list.is_empty() {
        folder.begin(None)?;
    }
    let params_of_network = serde_json::from_str(params)?;
    let mut network = guarded(|| SegInfer::load(params_of_network, &context))?;
    let crf = crf_params.map(|params| SegCrf::load(serde_json::from_str(params)?, &context));
    let mut crf = crf.transpose()?;
    // The prediction of a picture as a PNG.
    let mut segment = |label: &str, bytes: &Bytes| -> anyhow::Result<Vec<u8>> {
        let given = Given { cache: &cache, blobs: vec![(BlobDigest::of(bytes), bytes.clone())] };
        let of_image = ("image", given.blobs[0].0);
        let mut outputs = given.run(&mut network, params, label, &[("checkpoint", checkpoint), of_image])?;
        if let (Some(crf), Some(params)) = (&mut crf, crf_params) {
            let scores: Bytes = outputs.pop().context("no scores")?.bytes.into();
            let of_scores = ("scores", BlobDigest::of(&scores));
            let blobs = given.blobs.into_iter().chain([(of_scores.1, scores)]).collect();
            outputs = Given { cache: &cache, blobs }.run(crf, params, label, &[of_image, of_scores])?;
        }
        Ok(outputs.swap_remove(0).bytes)
    };
    let classes = &cell.dataset.classes;
    let mut n_turned = 0;
    for picture in pictures.list.clone() {
        let label = picture.path.to_string_lossy();
        let found = read_picture(&picture.path).and_then(|upright| {
            let prediction = guarded(|| segment(&label, &upright.bytes))?;
            Ok((decode_label_map(&prediction)?, prediction, upright))
        });
        match found {
            Ok((labels, prediction, upright)) => {
                n_turned += usize::from(upright.was_turned);
                write(&folder, &picture, &prediction, (&upright.image, &labels))?;
                let shown = folder.path_of(&picture.result(ENDINGS[0]));
                println!("{}: {}", shown.display(), shares(&labels, classes));
            }
            Err(error) => pictures.fail(&picture.path, format!("{error:#}")),
        }
    }
    if !cli.quiet && n_turned > 0 {
        eprintln!("note: {}", note_turned(n_turned));
    }
    pictures.end()
}

fn write(
    folder: &ResultsFolder,
    picture: &Picture,
    prediction: &[u8],
    (image, labels): (&Rgb, &LabelMap),
) -> anyhow::Result<()> {
    let [png, overlay] = ENDINGS.map(|ending| picture.result(ending));
    let from = picture.source();
    folder.put(&png, &from, prediction)?;
    folder.put(&overlay, &from, &encode_rgb(&labels_over(image, labels, &voc_palette())))
}

/// `cat 12.5 %, dog 3.0 %`
fn shares(labels: &LabelMap, classes: &[String]) -> String {
    let mut pixels = [0usize; 256];
    labels.data.iter().for_each(|&label| pixels[usize::from(label)] += 1);
    let share = |label: usize| 100.0 * pixels[label] as f64 / labels.data.len() as f64;
    let found = classes.iter().enumerate().skip(1).filter(|(label, _)| pixels[*label] > 0);
    let found: Vec<String> = found.map(|(label, class)| format!("{class} {:.1} %", share(label))).collect();
    if found.is_empty() { "background".into() } else { found.join(", ") }
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
