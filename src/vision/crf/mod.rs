//! The fully connected CRF of Krähenbühl and Koltun (2011): mean field with Potts compatibility, whose sums over all
//! pairs of pixels are Gaussian filters in a permutohedral lattice. Parameters and numbers are those of `pydensecrf`
//! with its defaults (diagonal kernels, symmetric normalisation).

mod lattice;
mod unary;

pub use self::unary::{LEAST, Unary, from_cam, from_labels, from_labels_among, from_scores};

use self::lattice::Lattice;
use super::arch::arch;
use super::{Rgb, ScoreMap};

/// The energy and how often the field is updated.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CrfOptions {
    pub iterations: u32,
    /// Smoothness: neighbours have the same label.
    pub gaussian: Gaussian,
    /// Appearance: so have near pixels of one colour.
    pub bilateral: Bilateral,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gaussian {
    /// Standard deviation, pixels.
    pub sxy: f32,
    pub weight: f32,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bilateral {
    /// Standard deviation, pixels.
    pub sxy: f32,
    /// Standard deviation of a colour channel, of 255.
    pub srgb: f32,
    pub weight: f32,
}

/// The mean field of an image after some updates: probabilities. Panics unless both are of one size, and without a label.
pub fn mean_field(image: &Rgb, unary: &Unary, options: &CrfOptions) -> ScoreMap {
    assert_eq!((image.height, image.width), (unary.height, unary.width));
    let run = match unary.labels.len() {
        0..=4 => padded::<4>,
        5..=8 => padded::<8>,
        9..=16 => padded::<16>,
        17..=24 => padded::<24>,
        25..=32 => padded::<32>,
        33..=96 => padded::<96>,
        _ => padded::<256>,
    };
    let data = run(image, unary, options);
    ScoreMap { labels: unary.labels.clone(), height: unary.height, width: unary.width, data }
}

/// With so many places a pixel, of which those that are not labels have no probability.
fn padded<const W: usize>(image: &Rgb, unary: &Unary, options: &CrfOptions) -> Vec<f32> {
    // Compiled once for each kind of processor; nothing is reordered, so all give the same numbers.
    arch().dispatch(
        #[inline(always)]
        || infer::<W>(image, unary, options),
    )
}

#[inline(always)]
fn infer<const W: usize>(image: &Rgb, unary: &Unary, options: &CrfOptions) -> Vec<f32> {
    let (pixels, n_labels) = (unary.height * unary.width, unary.labels.len());
    let place = |i: usize, s: f32| ((i % image.width) as f32 / s, (i / image.width) as f32 / s);
    let (near, alike) = (options.gaussian, options.bilateral);
    let smooth = Lattice::<3>::new(
        pixels,
        #[inline(always)]
        |i| {
            let (x, y) = place(i, near.sxy);
            [x, y, 0.0]
        },
    );
    let appear = Lattice::<6>::new(
        pixels,
        #[inline(always)]
        |i| {
            let (x, y) = place(i, alike.sxy);
            let colour = |c: usize| f32::from(image.data[i * 3 + c]) / alike.srgb;
            [x, y, colour(0), colour(1), colour(2), 0.0]
        },
    );
    let zeros = |n: usize| vec![[0.0f32; W]; n];
    let mut of_smooth = [zeros(smooth.n_vertices()), zeros(smooth.n_vertices())];
    let mut of_appear = [zeros(appear.n_vertices()), zeros(appear.n_vertices())];
    let mut out = vec![0.0; n_labels * pixels];
    // One pass over the pixels takes what the last update has filtered, and gives to the next.
    for update in 0..=options.iterations {
        let ([smoothed, next_smooth], [appeared, next_appear]) = (&mut of_smooth, &mut of_appear);
        if update > 0 {
            smooth.blur(smoothed);
            appear.blur(appeared);
            next_smooth.fill([0.0; W]);
            next_appear.fill([0.0; W]);
        }
        for i in 0..pixels {
            let mut field = [f32::NEG_INFINITY; W];
            (0..n_labels).for_each(|k| field[k] = unary.data[k * pixels + i]);
            if update > 0 {
                let (a, b) = (smooth.slice(i, smoothed), appear.slice(i, appeared));
                for k in 0..W {
                    field[k] += near.weight * a[k] + alike.weight * b[k];
                }
            }
            softmax(&mut field);
            if update < options.iterations {
                smooth.splat(i, &field, next_smooth);
                appear.splat(i, &field, next_appear);
            } else {
                (0..n_labels).for_each(|k| out[k * pixels + i] = field[k]);
            }
        }
        of_smooth.swap(0, 1);
        of_appear.swap(0, 1);
    }
    out
}

#[inline(always)]
fn softmax<const W: usize>(values: &mut [f32; W]) {
    let max = folded(values, |a, b| if a > b { a } else { b });
    for value in values.iter_mut() {
        *value = exp(*value - max);
    }
    let factor = 1.0 / folded(values, |a, b| a + b);
    for value in values {
        *value *= factor;
    }
}

/// Four partial results at a time: `W` is a multiple of 4.
#[inline(always)]
fn folded<const W: usize>(values: &[f32; W], f: impl Fn(f32, f32) -> f32) -> f32 {
    let (parts, _) = values.as_chunks::<4>();
    let mut sums = parts[0];
    for part in &parts[1..] {
        for k in 0..4 {
            sums[k] = f(sums[k], part[k]);
        }
    }
    f(f(sums[0], sums[1]), f(sums[2], sums[3]))
}

/// The exponential of a number up to 0, to some 2e-7 of itself; 0 below -87. Of the crate's own, so that all processors
/// give the same.
#[inline(always)]
fn exp(x: f32) -> f32 {
    const SHIFT: f32 = 12_582_912.0;
    // x = n ln 2 + r, with n in the low bits of `shifted`.
    let shifted = x * std::f32::consts::LOG2_E + SHIFT;
    let n = shifted - SHIFT;
    let r = (x - n * 0.693_359_4) + n * 2.121_944_4e-4;
    let coefficients = [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0];
    let poly = coefficients.into_iter().fold(0.0, |sum, c: f32| sum * r + c);
    let power = f32::from_bits(shifted.to_bits().wrapping_add(127) << 23);
    if x < -87.0 { 0.0 } else { poly * power }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponentials_to_the_last_bits_of_f32() {
        for i in 0..100_000 {
            let x = i as f32 * -8.7e-4;
            let of = f64::from(exp(x)) / f64::from(x).exp();
            assert!((of - 1.0).abs() < 3e-7, "{x}: {of}");
        }
        assert_eq!((exp(0.0), exp(-1e30), exp(f32::NEG_INFINITY)), (1.0, 0.0, 0.0));
    }
}
