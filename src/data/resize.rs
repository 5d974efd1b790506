//! Pillow's `Image.resize` of 8-bit images, bit for bit (`src/libImaging/Resample.c`, "precompute_coeffs" and the two
//! passes): weights in fixed point, columns first, rounded to 8 bits between the passes.

use pulp::Arch;

use crate::vision::Rgb;

/// Fractional bits of a weight: 32 less 8 of a pixel and 2 for sums that reach beyond.
const PRECISION: u32 = 32 - 8 - 2;
/// Values of a row that are summed together.
const BLOCK: usize = 64;

/// PIL's filters: when shrinking they widen, so nothing aliases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    Bilinear,
    Bicubic,
}

impl Filter {
    /// How far the filter reaches, in pixels of the smaller image.
    fn support(self) -> f64 {
        match self {
            Self::Bilinear => 1.0,
            Self::Bicubic => 2.0,
        }
    }

    fn weight(self, x: f64) -> f64 {
        /// Keys' cubic convolution with this slope.
        const A: f64 = -0.5;
        let x = x.abs();
        match self {
            Self::Bilinear if x < 1.0 => 1.0 - x,
            Self::Bicubic if x < 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
            Self::Bicubic if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * A,
            _ => 0.0,
        }
    }
}

/// What one pixel of the result is made of: `weights.len()` pixels from `first` on.
struct Taps {
    first: usize,
    weights: Vec<i32>,
}

fn taps(from: usize, to: usize, filter: Filter) -> Vec<Taps> {
    let scale = from as f64 / to as f64;
    let widening = scale.max(1.0);
    let support = filter.support() * widening;
    let of_pixel = |i: usize| {
        let centre = (i as f64 + 0.5) * scale;
        let first = (centre - support + 0.5).max(0.0) as usize;
        let end = ((centre + support + 0.5) as usize).min(from);
        let inverse = 1.0 / widening;
        let weights: Vec<f64> = (first..end).map(|at| filter.weight((at as f64 - centre + 0.5) * inverse)).collect();
        // In Pillow's order, from left to right.
        let sum: f64 = weights.iter().fold(0.0, |sum, weight| sum + weight);
        let fixed = |weight: &f64| {
            let weight = if sum == 0.0 { *weight } else { weight / sum };
            let scaled = weight * f64::from(1u32 << PRECISION);
            (scaled + if weight < 0.0 { -0.5 } else { 0.5 }) as i32
        };
        Taps { first, weights: weights.iter().map(fixed).collect() }
    };
    (0..to).map(of_pixel).collect()
}

/// Resizes like `PIL.Image.resize((width, height), filter)` of Pillow up to 12, to the same bytes: columns first. Pillow 13
/// makes the rows of some images first, which may differ by one level; the field's published numbers are of older ones.
/// Panics on a side of 0.
pub fn resize_rgb(image: &Rgb, height: usize, width: usize, filter: Filter) -> Rgb {
    let mut resized = image.clone();
    if width != image.width {
        // The columns of an image are the rows of its transpose.
        let transposed = transpose(&resized);
        resized = transpose(&along_rows(&transposed, &taps(image.width, width, filter)));
    }
    if height != image.height {
        resized = along_rows(&resized, &taps(image.height, height, filter));
    }
    resized
}

/// Each row of the result is a weighted sum of rows.
fn along_rows(image: &Rgb, taps: &[Taps]) -> Rgb {
    let length = image.width * 3;
    let mut data = vec![0; taps.len() * length];
    Arch::new().dispatch(|| {
        for (Taps { first, weights }, out) in taps.iter().zip(data.chunks_exact_mut(length)) {
            weighted_sum(&image.data[first * length..(first + weights.len()) * length], weights, out);
        }
    });
    Rgb { height: taps.len(), width: image.width, data }
}

/// The sum of rows of `out.len()` values each, by their weights, rounded and held to 8 bits. Inlined into the function
/// that is compiled for the processor at hand.
#[inline(always)]
fn weighted_sum(rows: &[u8], weights: &[i32], out: &mut [u8]) {
    const HALF: i32 = 1 << (PRECISION - 1);
    let length = out.len();
    let narrow = |sum: i32| (sum >> PRECISION).clamp(0, 255) as u8;
    let mut start = 0;
    while start + BLOCK <= length {
        let mut sums = [HALF; BLOCK];
        for (row, &weight) in rows.chunks_exact(length).zip(weights) {
            let values: &[u8; BLOCK] = row[start..start + BLOCK].try_into().unwrap_or(&[0; BLOCK]);
            sums.iter_mut().zip(values).for_each(|(sum, &value)| *sum += weight * i32::from(value));
        }
        out[start..start + BLOCK].iter_mut().zip(sums).for_each(|(out, sum)| *out = narrow(sum));
        start += BLOCK;
    }
    for i in start..length {
        let sum =
            rows.chunks_exact(length).zip(weights).fold(HALF, |sum, (row, &weight)| sum + weight * i32::from(row[i]));
        out[i] = narrow(sum);
    }
}

/// Rows become columns, in tiles that stay in the processor's cache.
fn transpose(image: &Rgb) -> Rgb {
    const TILE: usize = 16;
    let (height, width) = (image.height, image.width);
    let mut data = vec![0; image.data.len()];
    for y0 in (0..height).step_by(TILE) {
        for x0 in (0..width).step_by(TILE) {
            for x in x0..(x0 + TILE).min(width) {
                for y in y0..(y0 + TILE).min(height) {
                    let (from, to) = ((y * width + x) * 3, (x * height + y) * 3);
                    data[to..to + 3].copy_from_slice(&image.data[from..from + 3]);
                }
            }
        }
    }
    Rgb { height: width, width: height, data }
}
