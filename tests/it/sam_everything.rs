//! Segment-everything against the public generator, mask by mask: `tests/golden/sam_everything/make.py`.

#![allow(clippy::print_stdout, reason = "figures of the comparison")]

use std::path::Path;

use s2c_pipe::data::image::decode_rgb;
use s2c_pipe::model::Compute;
use s2c_pipe::model::sam::automatic::{AutomaticOptions, Crop, segment_everything};
use s2c_pipe::model::sam::{SamDecoder, SamEncoder};
use s2c_pipe::model::weights::Weights;
use s2c_pipe::vision::Rgb;
use s2c_pipe::vision::mask::BitMask;
use s2c_pipe::vision::se_map::{OnTop, Segment, paint};
use tch::Device;

use crate::sam::{photographs, weights};

/// The images of the golden file, in its order.
pub(crate) const IMAGES: [&str; 10] = [
    "2007_003841",
    "2007_004902",
    "2008_008296",
    "2009_000219",
    "2009_000771",
    "2009_002268",
    "2009_003481",
    "2009_004033",
    "2009_004248",
    "2010_002106",
];

/// COCO's uncompressed run lengths as a mask.
fn from_rle(counts: &[i32], height: usize, width: usize) -> BitMask {
    let mut columns = Vec::with_capacity(height * width);
    for (i, &count) in counts.iter().enumerate() {
        columns.extend(std::iter::repeat_n((i % 2) as u8, count as usize));
    }
    let rows: Vec<u8> = (0..height * width).map(|i| columns[i % width * height + i / width]).collect();
    BitMask::of_bytes(height, width, &rows)
}

fn iou(a: &BitMask, b: &BitMask) -> f64 {
    let (mut both, mut either) = (0, 0);
    for i in 0..a.height * a.width {
        let (a, b) = (a.at(i / a.width, i % a.width), b.at(i / b.width, i % b.width));
        both += usize::from(a && b);
        either += usize::from(a || b);
    }
    both as f64 / either as f64
}

struct Sam(SamEncoder, SamDecoder);

impl Sam {
    fn load(compute: Compute) -> Self {
        let weights = weights();
        let encoder = SamEncoder::load(&weights, Device::Cpu, compute).unwrap();
        Self(encoder, SamDecoder::load(&weights, Device::Cpu, compute).unwrap())
    }

    fn segment(&self, image: &Rgb, options: &AutomaticOptions) -> Vec<Segment> {
        let options = AutomaticOptions { points_per_side: 16, ..*options };
        let embed = |crop: Crop| Ok(self.0.embed(&image.part((crop.y, crop.x), crop.height, crop.width)));
        segment_everything(&self.1, embed, (image.height, image.width), &options).unwrap()
    }
}

#[test]
fn masks_agree_with_the_public_generator_one_by_one() {
    let Some(folder) = photographs() else {
        println!("skipped: no ../shared/data/voc-animals-mini");
        return;
    };
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/sam_everything/golden.safetensors");
    let golden = Weights::parse(std::fs::read(golden).unwrap()).unwrap();
    let (sam, coarse) = (Sam::load(Compute::F32), Sam::load(Compute::Bf16));
    let read = |name: &str| decode_rgb(&std::fs::read(folder.join(format!("{name}.jpg"))).unwrap()).unwrap();
    let plain = AutomaticOptions::default();
    let area = AutomaticOptions { min_mask_region_area: 100, ..plain };
    let crop = AutomaticOptions { crop_n_layers: 1, crop_n_points_downscale_factor: 2, ..plain };
    let mut runs: Vec<(String, &str, AutomaticOptions)> =
        IMAGES.iter().enumerate().map(|(i, name)| (i.to_string(), *name, plain)).collect();
    runs.push(("area".into(), IMAGES[0], area));
    runs.push(("crop".into(), IMAGES[0], crop));
    let (mut matched, mut of, mut equal, mut pixels) = (0, 0, 0, 0);
    for (case, name, options) in &runs {
        let image = read(name);
        let numbers = |part: &str| Vec::<i32>::try_from(golden.raw(&format!("{case}.{part}")).unwrap()).unwrap();
        let ious = Vec::<f32>::try_from(golden.raw(&format!("{case}.iou")).unwrap()).unwrap();
        let counts = numbers("counts");
        let mut rest = &counts[..];
        let expected: Vec<BitMask> = numbers("lengths")
            .into_iter()
            .map(|length| {
                let (counts, more) = rest.split_at(length as usize);
                rest = more;
                from_rle(counts, image.height, image.width)
            })
            .collect();
        let found = sam.segment(&image, options);
        let pairs = || found.iter().zip(&expected).zip(&ious);
        let good = pairs().filter(|((found, expected), score)| {
            iou(&found.mask, expected) >= 0.99 && (found.predicted_iou - **score).abs() < 1e-3
        });
        let good = good.count();
        println!("{case} {name}: {good} of {} masks, {} found", expected.len(), found.len());
        matched += good;
        of += expected.len().max(found.len());
        if case.parse::<usize>().is_ok() {
            let map = |segments: &[Segment]| paint(segments, image.height, image.width, OnTop::Smallest);
            // The ids of a map are places in a list: what counts is which mask a pixel lies in.
            let (fine, rough) = (map(&found), map(&coarse.segment(&image, options)));
            pixels += fine.data.len();
            equal += fine.data.iter().zip(&rough.data).filter(|(a, b)| a == b).count();
        }
    }
    println!(
        "{matched} of {of} masks; SE maps of bf16 equal on {:.2} % of pixels",
        100.0 * equal as f64 / pixels as f64
    );
    assert!(matched * 100 >= of * 99);
}
