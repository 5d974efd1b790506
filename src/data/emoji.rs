//! The embedded data set: scenes of emoji over painted backgrounds, with exact masks, in PASCAL VOC 2012 layout.
//! Made from a seed, so that every machine has the same pictures.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use serde::Serialize;

use super::image::{decode_rgba_png, encode_label_map, encode_rgb};
use super::rng::{integer, stream, unit};
use crate::digest::BlobDigest;
use crate::vision::{LabelMap, Rgb};

/// Raised whenever equal options give other pictures.
const VERSION: u32 = 1;
/// Side of an embedded picture, pixels.
const SIDE: usize = 64;

macro_rules! pictures {
    ($($name:literal),* $(,)?) => {
        [$(include_bytes!(concat!("emoji/", $name, ".png"))),*]
    };
}

/// Noto Emoji, in the order of [`crate::vision::VOC_CLASSES`] without background.
const PICTURES: [&[u8]; 20] = pictures![
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
];

/// The scenes to make.
#[derive(Clone, Debug, Serialize)]
pub struct EmojiOptions {
    pub n_train: usize,
    pub n_val: usize,
    /// The longer side of a scene, pixels.
    pub side: usize,
    /// Labels that occur, 1..=20.
    pub labels: Vec<u8>,
    pub rng_seed: u64,
}

/// Makes the data set under `folder` unless it is there; its root.
pub fn materialise(folder: &Path, options: &EmojiOptions) -> anyhow::Result<PathBuf> {
    let digest = BlobDigest::of(&serde_json::to_vec(&(VERSION, options))?).to_string();
    let root = folder.join(format!("emoji-{}", &digest[..16]));
    if root.is_dir() {
        return Ok(root);
    }
    fs::create_dir_all(folder).with_context(|| format!("making `{}`", folder.display()))?;
    let others_may_read = Permissions::from_mode(0o777);
    let work = tempfile::Builder::new().prefix(".emoji-").permissions(others_may_read).tempdir_in(folder)?;
    for name in ["JPEGImages", "SegmentationClass", "ImageSets/Segmentation"] {
        fs::create_dir_all(work.path().join(name))?;
    }
    let sprites = PICTURES.iter().map(|png| Sprite::decode(png)).collect::<anyhow::Result<Vec<_>>>()?;
    for (list, n) in [("train", options.n_train), ("val", options.n_val)] {
        let ids: Vec<String> = (0..n).map(|i| format!("{list}_{i:04}")).collect();
        let write = |(i, id): (usize, &String)| {
            let (image, mask) = scene(&mut stream(options.rng_seed, 0, id, "scene"), i, &sprites, options);
            fs::write(work.path().join(format!("JPEGImages/{id}.png")), encode_rgb(&image))?;
            fs::write(work.path().join(format!("SegmentationClass/{id}.png")), encode_label_map(&mask))
        };
        ids.par_iter().enumerate().try_for_each(|(i, id)| write((i, id)))?;
        fs::write(work.path().join(format!("ImageSets/Segmentation/{list}.txt")), ids.join("\n") + "\n")?;
    }
    // Whole or not at all.
    match fs::rename(work.path(), &root) {
        Err(_) if root.is_dir() => Ok(root),
        renamed => renamed.map(|()| root).context("placing the emoji data set"),
    }
}

/// An embedded picture: RGBA, 0 to 1, colours multiplied by alpha.
struct Sprite(Vec<[f32; 4]>);

impl Sprite {
    fn decode(png: &[u8]) -> anyhow::Result<Self> {
        let pixel = |p: [u8; 4]| {
            let [r, g, b, a] = p.map(|v| f32::from(v) / 255.0);
            [r * a, g * a, b * a, a]
        };
        Ok(Self(decode_rgba_png(png)?.into_iter().map(pixel).collect()))
    }

    /// Bilinear at a place in pixels; transparent outside.
    fn at(&self, y: f32, x: f32) -> [f32; 4] {
        let (y, x) = (y - 0.5, x - 0.5);
        let (y0, x0) = (y.floor(), x.floor());
        let mut sum = [0.0; 4];
        for (dy, dx) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            let (row, column) = (y0 as i64 + dy, x0 as i64 + dx);
            let inside = (0..SIDE as i64).contains(&row) && (0..SIDE as i64).contains(&column);
            if inside {
                let weight = (1.0 - (y - row as f32).abs()) * (1.0 - (x - column as f32).abs());
                let pixel = self.0[row as usize * SIDE + column as usize];
                (0..4).for_each(|c| sum[c] += weight * pixel[c]);
            }
        }
        sum
    }
}

/// One scene: up to three objects, the first of the class whose turn it is; later ones hide earlier ones.
fn scene(rng: &mut ChaCha8Rng, turn: usize, sprites: &[Sprite], options: &EmojiOptions) -> (Rgb, LabelMap) {
    let (long, short) = (options.side, (options.side * 3 / 4).max(1));
    let (height, width) = if unit(rng) < 0.3 { (long, short) } else { (short, long) };
    let mut canvas = background(rng, height, width);
    let mut mask = LabelMap::filled(height, width, 0);
    let n_labels = options.labels.len();
    let extra = [0, 0, 1, 1, 2][integer(rng, 0, 4) as usize];
    let mut labels = vec![options.labels[turn % n_labels]];
    labels.extend((0..extra).map(|_| options.labels[integer(rng, 0, n_labels as i64 - 1) as usize]));
    labels.reverse(); // the one whose turn it is in front
    for label in labels {
        let size = short as f32 * (0.4 + 0.4 * unit(rng) as f32);
        let angle = ((unit(rng) - 0.5) * 50.0).to_radians() as f32;
        let mirror = if unit(rng) < 0.5 { -1.0 } else { 1.0 };
        let mut centre = |side: usize| side as f32 * (0.25 + 0.5 * unit(rng) as f32);
        let (cy, cx) = (centre(height), centre(width));
        let (sin, cos) = angle.sin_cos();
        let scale = SIDE as f32 / size;
        for i in 0..height * width {
            let (dy, dx) = ((i / width) as f32 + 0.5 - cy, (i % width) as f32 + 0.5 - cx);
            let (y, x) = (cos * dy - sin * dx, (sin * dy + cos * dx) * mirror);
            let [r, g, b, alpha] =
                sprites[usize::from(label) - 1].at(y * scale + SIDE as f32 / 2.0, x * scale + SIDE as f32 / 2.0);
            for (value, over) in canvas[i].iter_mut().zip([r, g, b]) {
                *value = *value * (1.0 - alpha) + over;
            }
            if alpha >= 0.5 {
                mask.data[i] = label;
            }
        }
    }
    let data = canvas.iter().flatten().map(|&value| (value * 255.0).round() as u8).collect();
    (Rgb { height, width, data }, mask)
}

/// Clouds of two colours with a few shapes that are no objects.
fn background(rng: &mut ChaCha8Rng, height: usize, width: usize) -> Vec<[f32; 3]> {
    let mut colour = || [(); 3].map(|()| 0.15 + 0.75 * unit(rng) as f32);
    let (first, second) = (colour(), colour());
    let shapes: Vec<[f32; 3]> = (0..4).map(|_| colour()).collect();
    let long = height.max(width) as f32;
    let octaves: Vec<(f32, f32, Vec<f32>)> = [(3.0, 0.6), (9.0, 0.3), (40.0, 0.1)]
        .map(|(cells, weight)| {
            let n = cells as usize + 2;
            (cells, weight, (0..n * n).map(|_| unit(rng) as f32).collect())
        })
        .to_vec();
    let noise = |y: f32, x: f32| -> f32 {
        let octave = |(cells, weight, lattice): &(f32, f32, Vec<f32>)| {
            let n = *cells as usize + 2;
            let (y, x) = (y / long * cells, x / long * cells);
            let smooth = |t: f32| t * t * (3.0 - 2.0 * t);
            let (fy, fx) = (smooth(y.fract()), smooth(x.fract()));
            let at = |dy: usize, dx: usize| lattice[(y as usize + dy) * n + x as usize + dx];
            let top = at(0, 0) * (1.0 - fx) + at(0, 1) * fx;
            let bottom = at(1, 0) * (1.0 - fx) + at(1, 1) * fx;
            weight * (top * (1.0 - fy) + bottom * fy)
        };
        octaves.iter().map(octave).sum()
    };
    let mut canvas: Vec<[f32; 3]> = (0..height * width)
        .map(|i| {
            let t = noise((i / width) as f32, (i % width) as f32);
            std::array::from_fn(|c| first[c] * (1.0 - t) + second[c] * t)
        })
        .collect();
    for colour in shapes {
        let (cy, cx) = (unit(rng) as f32 * height as f32, unit(rng) as f32 * width as f32);
        let (ry, rx) = (long * (0.05 + 0.12 * unit(rng) as f32), long * (0.05 + 0.12 * unit(rng) as f32));
        let is_round = unit(rng) < 0.5;
        for (i, pixel) in canvas.iter_mut().enumerate() {
            let (dy, dx) = (((i / width) as f32 - cy) / ry, ((i % width) as f32 - cx) / rx);
            let inside = if is_round { dy * dy + dx * dx < 1.0 } else { dy.abs().max(dx.abs()) < 1.0 };
            if inside {
                *pixel = std::array::from_fn(|c| 0.3 * pixel[c] + 0.7 * colour[c]);
            }
        }
    }
    canvas
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scenes_repeat_and_every_class_has_its_turn() {
        let options = EmojiOptions { n_train: 20, n_val: 1, side: 96, labels: (1..=20).collect(), rng_seed: 5 };
        let dirs = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let roots = dirs.each_ref().map(|dir| materialise(dir.path(), &options).unwrap());
        assert_eq!(materialise(dirs[0].path(), &options).unwrap(), roots[0]);
        for i in 0..20 {
            let file = |folder: &str, root: &Path| fs::read(root.join(format!("{folder}/train_{i:04}.png"))).unwrap();
            assert_eq!(file("JPEGImages", &roots[0]), file("JPEGImages", &roots[1]));
            let mask = super::super::image::decode_label_map(&file("SegmentationClass", &roots[0])).unwrap();
            assert!(mask.data.iter().filter(|&&label| label == i + 1).count() > 50, "class {}", i + 1);
        }
        // No half-made folder stays behind.
        assert_eq!(fs::read_dir(dirs[0].path()).unwrap().count(), 1);
    }
}
