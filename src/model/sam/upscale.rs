//! From the image after the transformer to masks on a CPU, a row of positions at a time (reference: the end of
//! `segment_anything/modeling/mask_decoder.py`): two transposed 2x2 convolutions at stride 2, and a product with each
//! mask's weights.

use pulp::{Simd, WithSimd};

use crate::model::simd::{Factor, Norm, ROWS, Right, each, gelu, multiply, multiply_narrow};
use crate::vision::arch::arch;

/// Channels of the image, of its first and of its second enlargement.
const CHANNELS: [usize; 3] = [256, 64, 32];
/// Masks of a prompt at most, padded to a register.
const MASKS: usize = 16;

/// Weights as linear maps to 2 x 2 pixels, `(from, 2 * 2 * to)`.
#[derive(Debug)]
pub(super) struct Upscaling<'a> {
    pub(super) first: (&'a Right<'a>, &'a [f32]),
    pub(super) norm: Norm<'a>,
    pub(super) second: (&'a Right<'a>, &'a [f32]),
}

/// Logits of masks.
///
/// - `image`: `(rows, side, 256)`, of which the first `columns` of each row count
/// - `hyper`: `(masks, 32)`
/// - returns `(masks, 4 rows, 4 columns)`
pub(super) fn upscale(
    upscaling: &Upscaling<'_>,
    image: &[f32],
    side: usize,
    columns: usize,
    hyper: &[f32],
) -> Vec<f32> {
    arch().dispatch(Upscale { upscaling, image, side, columns, hyper })
}

struct Upscale<'a> {
    upscaling: &'a Upscaling<'a>,
    image: &'a [f32],
    side: usize,
    columns: usize,
    hyper: &'a [f32],
}

impl WithSimd for Upscale<'_> {
    type Output = Vec<f32>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Vec<f32> {
        let Self { upscaling: Upscaling { first, norm, second }, image, side, columns, hyper } = self;
        let [from, middle, to] = CHANNELS;
        let n_masks = hyper.len() / to;
        let mut weights = vec![0.0; to * MASKS];
        for (mask, row) in hyper.chunks_exact(to).enumerate() {
            row.iter().enumerate().for_each(|(i, &weight)| weights[i * MASKS + mask] = weight);
        }
        let rows = image.len() / (side * from);
        let (height, width) = (4 * rows, 4 * columns);
        // Positions are taken some at a time: a few too many at the end of a row, which nobody reads.
        let n = columns.next_multiple_of(ROWS);
        let (mut x, mut y, mut z) = (vec![0.0; n * 4 * middle], vec![0.0; n * 16 * to], vec![0.0; n * 16 * MASKS]);
        let mut masks = vec![0.0; n_masks * height * width];
        for (row, image) in image.chunks_exact(side * from).enumerate() {
            linear(simd, &image[..n * from], first, &mut x);
            for pixel in x.chunks_exact_mut(middle) {
                norm.apply(simd, pixel);
            }
            each::<S>(
                &mut x,
                #[inline(always)]
                |x| gelu(simd, x),
            );
            linear(simd, &x, second, &mut y);
            each::<S>(
                &mut y,
                #[inline(always)]
                |y| gelu(simd, y),
            );
            z.fill(0.0);
            multiply_narrow(simd, Factor::Rows(&y, to), &weights, &mut z);
            // A position, then 2 x 2 within it, then 2 x 2 within each of these.
            for (i, logits) in z.chunks_exact(MASKS).take(columns * 16).enumerate() {
                let (position, outer, inner) = (i / 16, i / 4 % 4, i % 4);
                let at = (4 * row + outer / 2 * 2 + inner / 2) * width + 4 * position + outer % 2 * 2 + inner % 2;
                (0..n_masks).for_each(|mask| masks[mask * height * width + at] = logits[mask]);
            }
        }
        masks
    }
}

/// `out = x weight + bias`
#[inline(always)]
fn linear<S: Simd>(simd: S, x: &[f32], (weight, bias): &(&Right<'_>, &[f32]), out: &mut [f32]) {
    out.chunks_exact_mut(bias.len()).for_each(|row| row.copy_from_slice(bias));
    multiply(simd, Factor::Rows(x, x.len() * bias.len() / out.len()), weight, out);
}
