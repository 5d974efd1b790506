//! Pillow's `Image.resize` of 8-bit images, bit for bit (`src/libImaging/Resample.c`, "precompute_coeffs" and the two
//! passes): weights in fixed point, one side after the other, rounded to 8 bits between the passes.

use pulp::NullaryFnOnce;

use crate::vision::Rgb;
use crate::vision::arch::arch;

/// Fractional bits of a weight: 32 less 8 of a pixel and 2 for sums that reach beyond.
const PRECISION: u32 = 32 - 8 - 2;
/// Rows whose columns are summed together.
const STRIP: usize = 32;
/// Values that are summed together.
const BLOCK: usize = 32;

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

/// Resizes like `PIL.Image.resize((width, height), filter)` of Pillow 13, to the same bytes. Pillow up to 12 resizes
/// the width first in every image, so it differs where the height goes first here; an image that keeps its proportions and
/// is at most twice as high as wide is the same in both. Panics on a side of 0.
pub fn resize_rgb(image: &Rgb, height: usize, width: usize, filter: Filter) -> Rgb {
    let vertically = |image: &Rgb| along_rows(image, &taps(image.height, height, filter));
    let horizontally = |image: &Rgb| along_columns(image, &taps(image.width, width, filter));
    match (height != image.height, width != image.width) {
        (false, false) => image.clone(),
        (true, false) => vertically(image),
        (false, true) => horizontally(image),
        (true, true) if rows_go_first(image, height, width) => horizontally(&vertically(image)),
        (true, true) => vertically(&horizontally(image)),
    }
}

/// Whether the height is resized before the width: where it shrinks, and by more than twice the pixels that the width
/// shrinks by. A width that grows shrinks by a negative number.
fn rows_go_first(image: &Rgb, height: usize, width: usize) -> bool {
    let lost = |from: usize, to: usize| from as i64 - to as i64;
    let (of_height, of_width) = (lost(image.height, height), lost(image.width, width));
    of_height > 0 && of_height > 2 * of_width
}

fn along_rows(image: &Rgb, taps: &[Taps]) -> Rgb {
    let mut data = vec![0; taps.len() * image.width * 3];
    arch().dispatch(Sums { rows: &image.data, length: image.width * 3, taps, out: &mut data });
    Rgb { height: taps.len(), width: image.width, data }
}

fn along_columns(image: &Rgb, taps: &[Taps]) -> Rgb {
    let mut data = vec![0; image.height * taps.len() * 3];
    arch().dispatch(Strips { image, taps, out: &mut data });
    Rgb { height: image.height, width: taps.len(), data }
}

/// Each row of `out` is a weighted sum of `rows`, which have `length` values each.
struct Sums<'a> {
    rows: &'a [u8],
    length: usize,
    taps: &'a [Taps],
    out: &'a mut [u8],
}

impl NullaryFnOnce for Sums<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let length = self.length;
        for (Taps { first, weights }, out) in self.taps.iter().zip(self.out.chunks_exact_mut(length)) {
            weighted_sum(&self.rows[first * length..(first + weights.len()) * length], weights, out);
        }
    }
}

/// Each column of `out` is a weighted sum of the image's columns. The columns of a strip of rows are made rows, so that
/// values that are summed by the same weights lie side by side.
struct Strips<'a> {
    image: &'a Rgb,
    taps: &'a [Taps],
    out: &'a mut [u8],
}

impl NullaryFnOnce for Strips<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let (from, to) = (self.image.width * 3, self.taps.len() * 3);
        let (mut columns, mut sums) = (vec![0; from * STRIP], vec![0; to * STRIP]);
        for (rows, out) in self.image.data.chunks(from * STRIP).zip(self.out.chunks_mut(to * STRIP)) {
            let n_rows = rows.len() / from;
            transpose((rows, from), (&mut columns, STRIP), n_rows, from);
            Sums { rows: &columns, length: STRIP * 3, taps: self.taps, out: &mut sums }.call();
            transpose((&sums, STRIP), (out, to), to, n_rows);
        }
    }
}

/// The sum of rows of `out.len()` values each, by their weights, rounded and held to 8 bits. Inlined into the function
/// that is compiled for the processor at hand.
#[inline(always)]
fn weighted_sum(rows: &[u8], weights: &[i32], out: &mut [u8]) {
    const HALF: i32 = 1 << (PRECISION - 1);
    let length = out.len();
    let narrow = |sum: i32| (sum >> PRECISION).clamp(0, 255) as u8;
    // The last block overlaps the one before it.
    let last = (!length.is_multiple_of(BLOCK)).then(|| length.saturating_sub(BLOCK));
    for start in (0..length / BLOCK).map(|i| i * BLOCK).chain(last) {
        if let Some((out, _)) = out[start..].split_first_chunk_mut::<BLOCK>() {
            let mut sums = [HALF; BLOCK];
            for (k, &weight) in weights.iter().enumerate() {
                let at = k * length + start;
                let Some(values) = rows.get(at..at + BLOCK).and_then(|values| values.first_chunk::<BLOCK>()) else {
                    return;
                };
                for i in 0..BLOCK {
                    sums[i] += weight * i32::from(values[i]);
                }
            }
            for i in 0..BLOCK {
                out[i] = narrow(sums[i]);
            }
        } else {
            for (i, out) in out.iter_mut().enumerate() {
                let products = rows.chunks_exact(length).zip(weights).map(|(row, &weight)| weight * i32::from(row[i]));
                *out = narrow(products.fold(HALF, |sum, product| sum + product));
            }
        }
    }
}

/// The first `height` rows of `width` bytes each become columns; both sides are a buffer and the bytes from row to row.
#[inline(always)]
fn transpose(from: (&[u8], usize), to: (&mut [u8], usize), height: usize, width: usize) {
    let ((from, from_row), (to, to_row)) = (from, to);
    let (tiled_height, tiled_width) = (height / 8 * 8, width / 8 * 8);
    for y in (0..tiled_height).step_by(8) {
        let rows: [&[[u8; 8]]; 8] = std::array::from_fn(|i| from[(y + i) * from_row..][..width].as_chunks().0);
        for (x, columns) in to[..tiled_width * to_row].chunks_exact_mut(8 * to_row).enumerate() {
            let tile = rows.map(|row| row.get(x).map_or(0, |bytes| u64::from_le_bytes(*bytes)));
            for (column, out) in transposed(tile).into_iter().zip(columns.chunks_exact_mut(to_row)) {
                out[y..y + 8].copy_from_slice(&column.to_le_bytes());
            }
        }
    }
    let mut copy = |y: usize, x: usize| to[x * to_row + y] = from[y * from_row + x];
    (0..tiled_height).for_each(|y| (tiled_width..width).for_each(|x| copy(y, x)));
    (tiled_height..height).for_each(|y| (0..width).for_each(|x| copy(y, x)));
}

/// A tile of 8 by 8 bytes: its quarters, their quarters and theirs change places.
#[inline(always)]
fn transposed(mut tile: [u64; 8]) -> [u64; 8] {
    for (step, mask) in [(4, 0x0000_0000_ffff_ffff), (2, 0x0000_ffff_0000_ffff), (1, 0x00ff_00ff_00ff_00ff)] {
        for i in (0..8).filter(|i| i & step == 0) {
            let bits = 8 * step;
            let swapped = (tile[i] >> bits ^ tile[i + step]) & mask;
            tile[i] ^= swapped << bits;
            tile[i + step] ^= swapped;
        }
    }
    tile
}
