//! Segment-everything against the public generator, mask by mask, from JPEG files on:
//! `tests/golden/sam_everything/make.py`.

#![allow(clippy::print_stdout, reason = "figures of the comparison")]

use std::collections::BTreeMap;
use std::path::Path;

use s2c_pipe::data::image::decode_rgb;
use s2c_pipe::model::Compute;
use s2c_pipe::model::sam::automatic::{AutomaticOptions, Crop, segment_everything};
use s2c_pipe::model::sam::{SamDecoder, SamEncoder};
use s2c_pipe::model::weights::Weights;
use s2c_pipe::vision::mask::BitMask;
use s2c_pipe::vision::se_map::{OnTop, Segment, paint};
use s2c_pipe::vision::{Rgb, SeMap};

use crate::device::device;
use crate::sam::{has_bf16, photographs, weights};

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

/// Of SE maps in bf16 and f32. On a CPU bf16 is that of products alone, on a GPU of all numbers (an H100: 0.969).
fn bf16_agreement() -> f64 {
    if device().is_cuda() { 0.95 } else { 0.98 }
}

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

/// Pixels that lie in the same segment of two maps, whatever its id: each segment of `a` is the one of `b` that covers
/// most of it, no segment is no segment.
fn agreeing(a: &SeMap, b: &SeMap) -> usize {
    let mut both: BTreeMap<(u16, u16), usize> = BTreeMap::new();
    a.data.iter().zip(&b.data).for_each(|pair| *both.entry((*pair.0, *pair.1)).or_default() += 1);
    let mut best: BTreeMap<u16, usize> = BTreeMap::new();
    for ((a, b), pixels) in both {
        if (a == 0) == (b == 0) {
            let most = best.entry(a).or_default();
            *most = pixels.max(*most);
        }
    }
    best.values().sum()
}

struct Sam(SamEncoder, SamDecoder);

impl Sam {
    fn load(compute: Compute) -> Self {
        let weights = weights();
        let encoder = SamEncoder::load(&weights, device(), compute).unwrap();
        Self(encoder, SamDecoder::load(&weights, device(), compute).unwrap())
    }

    fn segment(&self, image: &Rgb, options: &AutomaticOptions) -> Vec<Segment> {
        let embed = |crop: Crop| Ok(self.0.embed(&image.part((crop.y, crop.x), crop.height, crop.width)));
        segment_everything(&self.1, embed, (image.height, image.width), options).unwrap()
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
    let sam = Sam::load(Compute::F32);
    let coarse = has_bf16().then(|| Sam::load(Compute::Bf16));
    let read = |name: &str| decode_rgb(&std::fs::read(folder.join(format!("{name}.jpg"))).unwrap()).unwrap();
    let plain = AutomaticOptions { points_per_side: 16, ..AutomaticOptions::default() };
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
        // In the order of the reference.
        let mut rest = found.iter();
        let same = |found: &Segment, expected: &BitMask, score: f32| {
            (found.predicted_iou - score).abs() < 1e-3 && iou(&found.mask, expected) >= 0.99
        };
        let mut good = 0;
        for (expected, &score) in expected.iter().zip(&ious) {
            let mut ahead = rest.clone();
            if ahead.any(|found| same(found, expected, score)) {
                rest = ahead;
                good += 1;
            }
        }
        println!("{case} {name}: {good} of {} masks, {} found", expected.len(), found.len());
        matched += good;
        of += expected.len().max(found.len());
        if let Some(coarse) = coarse.as_ref().filter(|_| case.parse::<usize>().is_ok()) {
            let map = |segments: &[Segment]| paint(segments, image.height, image.width, OnTop::Smallest);
            let (fine, rough) = (map(&found), map(&coarse.segment(&image, options)));
            pixels += fine.data.len();
            equal += agreeing(&fine, &rough);
        }
    }
    println!("{matched} of {of} masks; SE maps of bf16 agree on {equal} of {pixels} pixels");
    assert!(matched * 100 >= of * 99);
    assert!(equal as f64 >= bf16_agreement() * pixels as f64);
}
