//! Segment-everything on pictures of the user's own.
#![expect(clippy::print_stdout, reason = "this is where printing happens")]

use std::fs;
use std::path::PathBuf;
use std::sync::mpsc::sync_channel;
use std::time::Instant;

use anyhow::Context;
use serde_json::json;

use super::Hinted;
use super::args::{Cli, Overlap, PrecisionArg, SegmentArgs};
use super::doctor::{has_bf16, parse_device};
use super::predict::targets;
use super::report::put;
use crate::data::image::{decode_rgb, encode_rgb, encode_se_map};
use crate::data::read_shared;
use crate::model::sam::automatic::{AutomaticOptions, Crop, segment_everything};
use crate::model::sam::{SamDecoder, SamEncoder};
use crate::model::sound::{Network, Soundness, sound, stranger};
use crate::model::weights::Weights;
use crate::pipeline::build::resolve;
use crate::pipeline::spec::Precision;
use crate::stage::loader::ahead;
use crate::vision::Rgb;
use crate::vision::mask::coco_rle;
use crate::vision::overlay::se_map_over;
use crate::vision::se_map::{OnTop, Segment, paint};

/// Writes `NAME.png` (SE map), `NAME_segments.png` (coloured) and `NAME.json` (a list of masks, COCO's RLE).
pub(super) fn segment(cli: &Cli, args: &SegmentArgs) -> anyhow::Result<()> {
    let device = parse_device(&args.device)?.torch();
    let precision = match args.precision {
        PrecisionArg::Auto => Precision::Auto,
        PrecisionArg::F32 => Precision::F32,
        PrecisionArg::Bf16 => Precision::Bf16,
    };
    let compute = resolve(precision, device.is_cuda() || has_bf16()).into();
    let on_top = match args.overlap {
        Overlap::AreaAsc => OnTop::Smallest,
        Overlap::PredIouDesc => OnTop::HighestIou,
    };
    let options = AutomaticOptions {
        points_per_side: args.points_per_side,
        pred_iou_thresh: args.pred_iou_thresh,
        stability_score_thresh: args.stability_score_thresh,
        box_nms_thresh: args.box_nms_thresh,
        crop_n_layers: args.crop_n_layers,
        crop_n_points_downscale_factor: args.crop_n_points_downscale_factor,
        min_mask_region_area: args.min_mask_region_area,
        ..AutomaticOptions::default()
    };
    let targets = targets(&args.images, &args.to, &["_segments.png", ".json"])?;
    let unfit = |error: anyhow::Error| {
        let hint = "give SAM's weights, --weights FILE; `s2c-pipe weights inspect FILE` tells what a file is";
        Hinted::error(format!("`{}`: {error:#}", args.weights.display()), hint)
    };
    let weights = read_shared(&args.weights).map_err(anyhow::Error::from).and_then(Weights::parse).map_err(unfit)?;
    let unfit = |error: anyhow::Error| match stranger(&weights, Some(Network::Sam)) {
        Some(problem) => Hinted::error(format!("`{}`: {}", args.weights.display(), problem.what), problem.hint),
        None => unfit(error),
    };
    let encoder = SamEncoder::load(&weights, device, compute).map_err(&unfit)?;
    let decoder = SamDecoder::load(&weights, device, compute).map_err(&unfit)?;
    let Soundness { problem, notes, ignored: _ } = sound(&weights, Network::Sam).map_err(&unfit)?;
    if let Some(problem) = problem {
        return Err(Hinted::error(format!("`{}`: {}", args.weights.display(), problem.what), problem.hint));
    }
    if !cli.quiet {
        notes.iter().for_each(|note| eprintln!("note: `{}`: {note}", args.weights.display()));
    }
    drop(weights);
    fs::create_dir_all(&args.to).with_context(|| format!("making `{}`", args.to.display()))?;
    let read = |(path, png): (&PathBuf, &PathBuf)| {
        let bytes = fs::read(path).with_context(|| format!("reading `{}`", path.display()))?;
        let image = decode_rgb(&bytes).with_context(|| format!("`{}`", path.display()))?;
        Ok((image, png.clone()))
    };
    // Beside the model the next picture is read and the results of the last are written.
    let (sender, receiver) = sync_channel::<Found>(1);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| receiver.into_iter().try_for_each(|found| write(cli, found, on_top)));
        let segmented = ahead(1, args.images.iter().zip(&targets), read, |(image, png), _| {
            let started = Instant::now();
            let size = (image.height, image.width);
            let embed = |crop: Crop| Ok(encoder.embed(&image.part((crop.y, crop.x), crop.height, crop.width)));
            let segments = segment_everything(&decoder, embed, size, &options)?;
            let found = Found { image, png, segments, seconds: started.elapsed().as_secs_f64() };
            sender.send(found).map_err(|_| anyhow::anyhow!("stopped"))
        });
        drop(sender);
        // What stopped the writer stopped the rest as well.
        let written = writer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        written.and(segmented)
    })
}

/// A picture and its segments.
struct Found {
    image: Rgb,
    /// Of the SE map.
    png: PathBuf,
    segments: Vec<Segment>,
    seconds: f64,
}

fn write(cli: &Cli, found: Found, on_top: OnTop) -> anyhow::Result<()> {
    let Found { image, png, segments, seconds } = found;
    let map = paint(&segments, image.height, image.width, on_top);
    let stem = png.file_stem().unwrap_or_default().to_string_lossy();
    put(&png, &encode_se_map(&map))?;
    put(&png.with_file_name(format!("{stem}_segments.png")), &encode_rgb(&se_map_over(&image, &map)))?;
    let list: Vec<_> = segments.iter().map(described).collect();
    put(&png.with_extension("json"), serde_json::to_string(&list)?.as_bytes())?;
    if cli.json {
        println!("{}", json!({ "se_map": png, "segments": segments.len(), "seconds": seconds }));
    } else if !cli.quiet {
        println!("{}: {} segments, {seconds:.1} s", png.display(), segments.len());
    }
    Ok(())
}

/// A mask as SamAutomaticMaskGenerator describes it, with `output_mode = "coco_rle"`.
fn described(segment: &Segment) -> serde_json::Value {
    let Segment { mask, bounds, area, predicted_iou, stability_score } = segment;
    json!({
        "segmentation": { "size": [mask.height, mask.width], "counts": coco_rle(&mask.rle()) },
        "area": area,
        "bbox": [bounds.x0, bounds.y0, bounds.x1 - bounds.x0, bounds.y1 - bounds.y0],
        "predicted_iou": predicted_iou,
        "stability_score": stability_score,
    })
}
