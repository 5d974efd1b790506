//! The dense CRF against `pydensecrf`: `tests/golden/crf/make.py`. Marginals within 1e-3; what it does is 1e-5.

#![allow(clippy::print_stdout, reason = "says what is skipped")]

use std::path::{Path, PathBuf};

use s2c_pipe::data::image::{decode_label_map, decode_rgb, encode_rgb};
use s2c_pipe::vision::crf::{Bilateral, CrfOptions, Gaussian, Unary, from_cam, from_labels, from_scores, mean_field};
use s2c_pipe::vision::{Cam, LabelMap, Rgb, ScoreMap, label};
use safetensors::SafeTensors;

const IMAGES: [&str; 3] = ["2007_003841", "2008_007770", "2009_000219"];
const TOLERANCE: f32 = 1e-5;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn data() -> Option<PathBuf> {
    let folder = root().join("../shared/data/voc-animals-mini");
    if !folder.exists() {
        println!("skipped: no ../shared/data/voc-animals-mini");
    }
    folder.exists().then_some(folder)
}

fn photograph(data: &Path, name: &str) -> Rgb {
    decode_rgb(&std::fs::read(data.join(format!("JPEGImages/{name}.jpg"))).unwrap()).unwrap()
}

/// Writes the photographs for `make.py`: the same pixels as Pillow's `open` gives.
#[test]
#[ignore = "makes the input of the golden script"]
fn write_frames() {
    let (Some(data), Some(out)) = (data(), std::env::var_os("S2C_FRAMES").map(PathBuf::from)) else { return };
    std::fs::create_dir_all(&out).unwrap();
    for name in IMAGES {
        std::fs::write(out.join(format!("{name}.png")), encode_rgb(&photograph(&data, name))).unwrap();
    }
}

/// The parameters as they stand in make.py.
fn options(set: &str) -> CrfOptions {
    let of = |iterations, gaussian: (f32, f32), bilateral: (f32, f32, f32)| CrfOptions {
        iterations,
        gaussian: Gaussian { sxy: gaussian.0, weight: gaussian.1 },
        bilateral: Bilateral { sxy: bilateral.0, srgb: bilateral.1, weight: bilateral.2 },
    };
    match set {
        "psa" => of(10, (3.0, 3.0), (80.0, 13.0, 10.0)),
        "irn" => of(10, (3.0, 3.0), (50.0, 5.0, 10.0)),
        "deeplab" => of(10, (1.0, 3.0), (67.0, 3.0, 4.0)),
        "seam" => of(1, (3.0, 3.0), (32.0, 13.0, 10.0)),
        other => panic!("{other}"),
    }
}

/// How far the marginals of every so many pixels are from a case of make.py.
fn distance(name: &str, image: &Rgb, unary: &Unary, options: &CrfOptions, step: usize) -> f32 {
    let bytes = std::fs::read(root().join("tests/golden/crf/golden.safetensors")).unwrap();
    let golden = SafeTensors::deserialize(&bytes).unwrap();
    let expected = golden.tensor(name).unwrap().data().as_chunks::<4>().0.to_vec();
    let found = mean_field(image, unary, options).data;
    let found: Vec<f32> =
        found.chunks(image.height * image.width).flat_map(|channel| channel.iter().copied().step_by(step)).collect();
    assert_eq!(found.len(), expected.len());
    found.iter().zip(expected).map(|(a, b)| (a - f32::from_le_bytes(b)).abs()).fold(0.0, f32::max)
}

/// The scores of make.py.
fn cam(mask: &LabelMap) -> Cam {
    let (height, width) = (mask.height, mask.width);
    let mut scores = vec![0.0; height * width];
    for (y, x) in (0..height).step_by(24).flat_map(|y| (0..width).step_by(24).map(move |x| (y, x))) {
        let pixels = || (y..height.min(y + 24)).flat_map(|y| (x..width.min(x + 24)).map(move |x| y * width + x));
        let inside = pixels().filter(|&i| !matches!(mask.data[i], 0 | 255)).count();
        let score = inside as f32 / pixels().count() as f32 * 0.9;
        pixels().for_each(|i| scores[i] = score);
    }
    let second = |i: usize| scores[i / width * width + (i % width + width - 40) % width] * 0.35;
    let second: Vec<f32> = (0..height * width).map(second).collect();
    Cam { classes: vec![1, 2], height, width, data: [scores, second].concat() }
}

#[test]
fn photographs_have_the_marginals_of_pydensecrf() {
    let Some(data) = data() else { return };
    for name in IMAGES {
        let image = photograph(&data, name);
        let mask = std::fs::read(data.join(format!("SegmentationClassAug/{name}.png"))).unwrap();
        let cam = cam(&decode_label_map(&mask).unwrap());
        let unaries = [
            ("psa", from_cam(&cam, 4.0)),
            ("deeplab", from_cam(&cam, 1.0)),
            ("seam", from_cam(&cam, 1.0)),
            ("irn", from_labels(&label::from_cam(&cam, 0.3), 0.7)),
        ];
        for (set, unary) in unaries {
            let distance = distance(&format!("{name}.{set}"), &image, &unary, &options(set), 499);
            assert!(distance < TOLERANCE, "{name}, {set}: off by {distance:.1e}");
        }
    }
}

/// The picture and the scores of make.py.
fn formula() -> (Rgb, Unary) {
    let (height, width) = (44, 60);
    let value = |at: usize| {
        let (y, x, c) = (at / 3 / width, at / 3 % width, at % 3);
        ((x * 3 / 7 + y * (5 + 2 * c) / 9 + (x / 16 + y / 16) % 2 * 90) % 256) as u8
    };
    let image = Rgb { height, width, data: (0..height * width * 3).map(value).collect() };
    let score = |k: usize, i: usize| ((i * (7 + k) + k * k * 31) / 97 % 64 + 1) as f32 / 64.0;
    let data = (0..21).flat_map(|k| (0..height * width).map(move |i| score(k, i))).collect();
    (image, from_scores(ScoreMap { labels: (0..21).collect(), height, width, data }))
}

#[test]
fn each_parameter_agrees_and_changes_the_marginals() {
    let (image, unary) = formula();
    for set in ["psa", "irn", "deeplab", "seam"] {
        let options = options(set);
        let distance = |options: &CrfOptions| distance(&format!("formula.{set}"), &image, &unary, options, 11);
        let right = distance(&options);
        assert!(right < TOLERANCE, "{set}: off by {right:.1e}");
        let CrfOptions { iterations, gaussian, bilateral } = options;
        for other in [
            CrfOptions { iterations: iterations + 1, ..options },
            CrfOptions { gaussian: Gaussian { sxy: gaussian.sxy * 2.0, ..gaussian }, ..options },
            CrfOptions { gaussian: Gaussian { weight: gaussian.weight + 0.5, ..gaussian }, ..options },
            CrfOptions { bilateral: Bilateral { sxy: bilateral.sxy * 0.5, ..bilateral }, ..options },
            CrfOptions { bilateral: Bilateral { srgb: bilateral.srgb * 1.5, ..bilateral }, ..options },
            CrfOptions { bilateral: Bilateral { weight: bilateral.weight + 0.5, ..bilateral }, ..options },
        ] {
            assert!(distance(&other) > 10.0 * TOLERANCE, "{set} is {other:?}");
        }
    }
}

/// One label, as many as a label map can have, a single pixel; probabilities add up to 1.
#[test]
fn any_number_of_labels_and_any_size() {
    for (height, width, n) in [(1, 1, 1), (1, 1, 2), (7, 5, 1), (3, 9, 33), (6, 4, 255)] {
        let value = |i: usize| (i * 37 % 256) as u8;
        let image = Rgb { height, width, data: (0..height * width * 3).map(value).collect() };
        let data = (0..n * height * width).map(|i| (i % 17) as f32 / 16.0).collect();
        let unary = from_scores(ScoreMap { labels: (0..n as u8).collect(), height, width, data });
        let field = mean_field(&image, &unary, &options("psa"));
        for i in 0..height * width {
            let sum: f32 = (0..n).map(|k| field.data[k * height * width + i]).sum();
            assert!((sum - 1.0).abs() < 1e-4, "{n} labels, pixel {i}: {sum}");
        }
        assert!(field.best().data.iter().all(|&label| usize::from(label) < n));
    }
}
