//! Segment-everything on pictures of the user's own.
#![expect(clippy::print_stdout, reason = "this is where printing happens")]

use std::sync::mpsc::sync_channel;
use std::time::Instant;

use serde::Serialize;
use serde_json::json;

use super::Hinted;
use super::args::{Cli, Overlap, PrecisionArg, SegmentArgs};
use super::doctor::{has_bf16, parse_device};
use super::pictures::{Picture, Pictures, Upright, note_turned, read_picture};
use super::results_folder::{Reads, ResultsFolder};
use crate::data::image::{encode_rgb, encode_se_map};
use crate::data::read_shared;
use crate::model::sam::automatic::{AutomaticOptions, Crop, segment_everything};
use crate::model::sam::{SamDecoder, SamEncoder};
use crate::model::sound::{Network, Soundness, sound, stranger};
use crate::model::weights::Weights;
use crate::pipeline::build::resolve;
use crate::pipeline::spec::Precision;
use crate::stage::guard::guarded;
use crate::stage::loader::ahead;
use crate::vision::Rgb;
use crate::vision::mask::coco_rle;
use crate::vision::overlay::se_map_over;
use crate::vision::se_map::{Asked, OnTop, Segment, paint};

/// Pictures named in a line.
const N_NAMED: usize = 5;
/// How the names of results end: SE map, coloured picture, list of masks.
const ENDINGS: [&str; 3] = [".png", "_segments.png", ".json"];

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
    let mut pictures = Pictures::find(&args.images, &args.to, &ENDINGS)?;
    if !cli.quiet {
        pictures.notes.iter().for_each(|note| eprintln!("note: {note}"));
    }
    if pictures.list.is_empty() {
        return pictures.end();
    }
    let mut reads = Reads::default();
    reads.add_file(&args.weights, "the file of weights");
    reads.add_folder(&cli.cache, "the cache");
    let folder = pictures.results(&args.images, &args.to, (args.force, reads), &ENDINGS)?;
    let unfit = |error: anyhow::Error| {
        let hint = "give SAM's weights, --weights FILE; `s2c-pipe weights inspect FILE` tells what a file is";
        Hinted::error(format!("`{}`: {error:#}", args.weights.display()), hint)
    };
    let weights = read_shared(&args.weights).map_err(anyhow::Error::from).and_then(Weights::parse).map_err(unfit)?;
    let unfit = |error: anyhow::Error| match stranger(&weights, Some(Network::Sam)) {
        Some(problem) => Hinted::error(format!("`{}`: {}", args.weights.display(), problem.what), problem.hint),
        None => unfit(error),
    };
    let encoder = guarded(|| SamEncoder::load(&weights, device, compute)).map_err(&unfit)?;
    let decoder = guarded(|| SamDecoder::load(&weights, device, compute)).map_err(&unfit)?;
    let Soundness { problem, notes, ignored: _ } = guarded(|| sound(&weights, Network::Sam)).map_err(&unfit)?;
    if let Some(problem) = problem {
        return Err(Hinted::error(format!("`{}`: {}", args.weights.display(), problem.what), problem.hint));
    }
    if !cli.quiet {
        notes.iter().for_each(|note| eprintln!("note: `{}`: {note}", args.weights.display()));
    }
    drop(weights);
    folder.begin(None)?;
    let list = pictures.list.clone();
    // One that cannot be read is told at the end.
    let read = |picture: Picture| Ok((read_picture(&picture.path), picture));
    let (mut n_turned, mut empty) = (0, Vec::new());
    // Beside the model the next picture is read and the results of the last are written.
    let (sender, receiver) = sync_channel::<Found>(1);
    let written = std::thread::scope(|scope| {
        let write_all = || receiver.into_iter().try_for_each(|found| write(cli, &folder, found, on_top));
        let writer = scope.spawn(|| guarded(write_all));
        let segmented = ahead(1, list.into_iter(), read, |(upright, picture), _| {
            let started = Instant::now();
            let segment = |upright: Upright| {
                let image = upright.image;
                let size = (image.height, image.width);
                let embed = |crop: Crop| Ok(encoder.embed(&image.part((crop.y, crop.x), crop.height, crop.width)));
                let segments = segment_everything(&decoder, embed, size, &options)?;
                Ok((image, segments, upright.was_turned))
            };
            let found = upright.and_then(|upright| guarded(|| segment(upright)));
            match found {
                Ok((image, segments, was_turned)) => {
                    n_turned += usize::from(was_turned);
                    if segments.is_empty() {
                        empty.push(picture.path.display().to_string());
                    }
                    let found = Found { image, picture, segments, seconds: started.elapsed().as_secs_f64() };
                    sender.send(found).map_err(|_| anyhow::anyhow!("stopped"))
                }
                Err(error) => {
                    let why = format!("{error:#}");
                    if cli.json {
                        println!("{}", json!({ "picture": picture.path, "error": why }));
                    }
                    pictures.fail(&picture.path, why);
                    Ok(())
                }
            }
        });
        drop(sender);
        // What stopped the writer stopped the rest as well.
        let written = writer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        written.and(segmented)
    });
    written?;
    if !cli.quiet && n_turned > 0 {
        eprintln!("note: {}", note_turned(n_turned));
    }
    if !cli.quiet && !empty.is_empty() {
        let named = empty.iter().take(N_NAMED).cloned().collect::<Vec<_>>().join(", ");
        let more = if empty.len() > N_NAMED { ", .." } else { "" };
        eprintln!("note: no segment was found in {} of {} pictures: {named}{more}", empty.len(), pictures.list.len());
    }
    pictures.end()
}

/// A picture and its segments.
struct Found {
    image: Rgb,
    picture: Picture,
    segments: Vec<Segment>,
    seconds: f64,
}

fn write(cli: &Cli, folder: &ResultsFolder, found: Found, on_top: OnTop) -> anyhow::Result<()> {
    let Found { image, picture, segments, seconds } = found;
    let map = paint(&segments, image.height, image.width, on_top);
    let [png, coloured, list] = ENDINGS.map(|ending| picture.result(ending));
    let from = picture.source();
    folder.put(&png, &from, &encode_se_map(&map))?;
    folder.put(&coloured, &from, &encode_rgb(&se_map_over(&image, &map)))?;
    let records: Vec<Record> = segments.iter().map(Record::of).collect();
    folder.put(&list, &from, serde_json::to_string(&records)?.as_bytes())?;
    let png = folder.path_of(&png);
    if cli.json {
        let count = segments.len();
        println!("{}", json!({ "picture": picture.path, "se_map": png, "segments": count, "seconds": seconds }));
    } else if !cli.quiet {
        println!("{}: {} segments, {seconds:.1} s", png.display(), segments.len());
    }
    Ok(())
}

/// A mask as SamAutomaticMaskGenerator describes it with `output_mode = "coco_rle"`: its fields, in its order, with its
/// kinds of numbers.
#[derive(Debug, Serialize)]
struct Record {
    segmentation: Rle,
    /// Pixels.
    area: usize,
    /// x and y of the first pixel, and how far from there the last is.
    bbox: [i64; 4],
    predicted_iou: f64,
    /// x and y of the prompt.
    point_coords: [[f64; 2]; 1],
    stability_score: f64,
    /// x, y, width and height of the part of the picture that SAM saw.
    crop_box: [usize; 4],
}

/// COCO's compressed run lengths.
#[derive(Debug, Serialize)]
struct Rle {
    /// Height and width.
    size: [usize; 2],
    counts: String,
}

impl Record {
    fn of(segment: &Segment) -> Self {
        let Segment { mask, bounds, area, predicted_iou, stability_score, asked: Asked { point, crop_box } } = segment;
        let bbox = [bounds.x0, bounds.y0, bounds.x1 - bounds.x0, bounds.y1 - bounds.y0];
        Self {
            segmentation: Rle { size: [mask.height, mask.width], counts: coco_rle(&mask.rle()) },
            area: *area,
            bbox: bbox.map(|pixels| pixels as i64),
            predicted_iou: f64::from(*predicted_iou),
            point_coords: [*point],
            stability_score: f64::from(*stability_score),
            crop_box: *crop_box,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vision::mask::BitMask;

    /// As json.dumps writes a record of the public generator.
    #[test]
    fn a_record_is_that_of_the_public_generator() {
        let mask = BitMask::of_bytes(2, 3, &[0, 1, 1, 0, 1, 0]);
        let asked = Asked { point: [7.8125, 5.859375], crop_box: [0, 0, 3, 2] };
        let record = Record::of(&Segment::new(mask, 0.9, 0.95, asked));
        assert_eq!(
            serde_json::to_string(&record).unwrap(),
            r#"{"segmentation":{"size":[2,3],"counts":"231"},"area":3,"bbox":[1,0,1,1],"predicted_iou":0.8999999761581421,"point_coords":[[7.8125,5.859375]],"stability_score":0.949999988079071,"crop_box":[0,0,3,2]}"#
        );
    }
}
