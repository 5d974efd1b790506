//! Masks at the size of an image from low-resolution logits, as the reference draws them in two bilinear steps
//! (`Sam.postprocess_masks`): to the 1024 frame, then its inner part to the image.
//!
//! Both steps are separable and linear, so each axis is one matrix, and the frame is never drawn.

use pulp::{Simd, WithSimd};
use tch::{Device, Kind, Tensor};

use super::{IMAGE_SIZE, resized_size};
use crate::model::memory::{floats, upload};
use crate::model::repeat::interpolation;
use crate::model::simd::{BLOCK, Factor, Right, multiply};
use crate::vision::arch::arch;
use crate::vision::mask::BitMask;

/// Side of low-resolution logits.
const LOW_RES: usize = 256;

/// A mask drawn, and what its stability is told from.
#[derive(Clone, Debug)]
pub struct Drawn {
    pub mask: BitMask,
    /// Pixels with a logit above `offset` by those with one above `-offset`: NaN without any.
    pub stability: f32,
}

/// For images of one size.
#[derive(Debug)]
pub struct MaskUpsampler {
    /// `(h, R)`
    rows: Tensor,
    /// `(C, w)`
    columns: Tensor,
    pub(super) taps: Taps,
}

/// The same for one mask after the other on a CPU.
#[derive(Debug)]
pub(super) struct Taps {
    /// By row of the image: the first row of low resolution that counts, and the weights from there on.
    rows: Vec<(usize, [f32; TAPS])>,
    /// Rows and columns of low resolution.
    places: (usize, usize),
    /// Pixels of a row of the image.
    width: usize,
    /// `(C, w)`, padded to whole blocks.
    across: Vec<f32>,
}

/// Places that count for a pixel, at most: two neighbours in the frame, each of two neighbours of the low resolution.
const TAPS: usize = 3;

impl MaskUpsampler {
    pub fn new((height, width): (usize, usize), device: Device) -> Self {
        let (inner_h, inner_w) = resized_size(height, width);
        let (rows, columns) = (axis(inner_h, height), axis(inner_w, width).transpose(0, 1).contiguous());
        let taps = Taps::new(&rows, &columns);
        Self { rows: upload(&rows, device), columns: upload(&columns, device), taps }
    }

    /// Rows and columns of positions of an embedding that the image's pixels are drawn from: no need of the others.
    pub fn positions(&self) -> (i64, i64) {
        (self.rows.size()[1] / 4, self.columns.size()[0] / 4)
    }

    /// Height and width of a mask.
    pub fn size(&self) -> (usize, usize) {
        (self.taps.rows.len(), self.taps.width)
    }

    /// `(N, h, w)` from the first rows and columns of low-resolution logits, `(N, R, C)`.
    pub fn forward(&self, low_res: &Tensor) -> Tensor {
        self.rows.matmul(&low_res.matmul(&self.columns))
    }

    /// Masks (logits above 0) of low-resolution logits `(N, R, C)` on a GPU, still there: bytes of eight pixels,
    /// `(N, h, bytes of whole words)`, and stabilities `(N)`.
    pub(super) fn draw_on_device(&self, low_res: &Tensor, offset: f64) -> (Tensor, Tensor) {
        let logits = self.forward(low_res);
        let sum =
            |inside: Tensor| inside.sum_dim_intlist([1i64, 2].as_slice(), false, Kind::Int64).to_kind(Kind::Float);
        let count = |above: f64| sum(logits.gt(above));
        let stability = count(offset) / count(-offset);
        let width = self.size().1;
        let pad = (width.next_multiple_of(64) - width) as i64;
        let bits = logits.gt(0.0).to_kind(Kind::Uint8).constant_pad_nd([0, pad]).unflatten(-1, [-1, 8]);
        let values = Tensor::pow_scalar(2, &Tensor::arange(8, (Kind::Uint8, bits.device())));
        ((bits * values).sum_dim_intlist([-1i64].as_slice(), false, Kind::Uint8), stability)
    }
}

impl Taps {
    fn new(rows: &Tensor, columns: &Tensor) -> Self {
        let places = (rows.size()[1] as usize, columns.size()[0] as usize);
        let tap = |row: &[f32]| {
            let first = row.iter().position(|weight| *weight != 0.0).unwrap_or(0).min(places.0 - TAPS);
            (first, std::array::from_fn(|i| row[first + i]))
        };
        let width = columns.size()[1] as usize;
        let pad = (width.next_multiple_of(BLOCK) - width) as i64;
        let across = floats(&columns.constant_pad_nd([0, pad])).to_vec();
        Self { rows: floats(rows).chunks_exact(places.0).map(tap).collect(), places, width, across }
    }

    /// One mask from its logits `(R, C)`.
    pub(super) fn draw(&self, low_res: &[f32], offset: f32) -> Drawn {
        arch().dispatch(Draw { taps: self, low_res, offset })
    }
}

struct Draw<'a> {
    taps: &'a Taps,
    low_res: &'a [f32],
    offset: f32,
}

impl WithSimd for Draw<'_> {
    type Output = Drawn;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Drawn {
        let Self { taps: Taps { rows, places, width, across }, low_res, offset } = self;
        let padded = width.next_multiple_of(BLOCK);
        let mut wide = vec![0.0; places.0 * padded];
        let across = Right::F32(across.into());
        multiply(simd, Factor::Rows(low_res, places.1), &across, &mut wide);
        let (mut above, mut below) = (0, 0);
        let mut mask = BitMask::empty(rows.len(), *width);
        let (mut line, mut inside) = (vec![0.0f32; padded], vec![false; *width]);
        for (y, (first, [a, b, c])) in rows.iter().enumerate() {
            let (one, rest) = wide[first * padded..].split_at(padded);
            let (two, three) = rest.split_at(padded);
            for (((out, one), two), three) in line.iter_mut().zip(one).zip(two).zip(three) {
                *out = a * one + b * two + c * three;
            }
            let line = &line[..*width];
            let count = |above: f32| line.iter().map(|&logit| u32::from(logit > above)).sum::<u32>();
            above += count(offset);
            below += count(-offset);
            line.iter().zip(&mut inside).for_each(|(&logit, inside)| *inside = logit > 0.0);
            mask.set_row(y, &inside);
        }
        Drawn { mask, stability: above as f32 / below as f32 }
    }
}

/// What each pixel takes from the places of low resolution along an axis of `inner` pixels of the frame:
/// `(pixels, places)`.
fn axis(inner: usize, pixels: usize) -> Tensor {
    let bilinear = |from: usize, to: usize| interpolation(from as i64, to as i64, false);
    let to_frame = bilinear(LOW_RES, IMAGE_SIZE).narrow(0, 0, inner as i64);
    let matrix = bilinear(inner, pixels).matmul(&to_frame).narrow(1, 0, 4 * positions(inner));
    matrix.to_kind(Kind::Float).contiguous()
}

/// Positions along an axis of the frame that has `inner` pixels of image.
fn positions(inner: usize) -> i64 {
    // The last pixel lies between two places of the low resolution.
    let last = ((inner as f64 - 0.5) / 4.0 - 0.5).max(0.0) as usize + 1;
    (last.min(LOW_RES - 1) / 4 + 1) as i64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_are_drawn_as_in_two_bilinear_steps() {
        let low_res = (Tensor::arange(2 * 256 * 256, (Kind::Float, Device::Cpu)) * 0.37).sin().view([2, 256, 256]);
        for (height, width) in [(375, 500), (500, 333), (1, 1), (1024, 1024), (60, 1500), (3000, 2000)] {
            let (inner_h, inner_w) = resized_size(height, width);
            let frame = low_res.unsqueeze(1).upsample_bilinear2d([1024, 1024], false, None, None);
            let inner = frame.narrow(2, 0, inner_h as i64).narrow(3, 0, inner_w as i64);
            let expected = inner.upsample_bilinear2d([height as i64, width as i64], false, None, None).squeeze_dim(1);
            let upsampler = MaskUpsampler::new((height, width), Device::Cpu);
            let (rows, columns) = upsampler.positions();
            let low_res = low_res.narrow(1, 0, 4 * rows).narrow(2, 0, 4 * columns).contiguous();
            let drawn = upsampler.forward(&low_res);
            let worst = f64::try_from((&drawn - expected).abs().max()).unwrap();
            assert!(worst < 1e-4, "{height}x{width}: {worst}");

            // Bits and counts by either way, but where a logit is next to a threshold.
            let (bytes, stabilities) = upsampler.draw_on_device(&low_res, 0.3);
            let bytes = Vec::<u8>::try_from(bytes.view([-1])).unwrap();
            for (i, bytes) in bytes.chunks_exact(bytes.len() / 2).enumerate() {
                let ours = upsampler.taps.draw(floats(&low_res.get(i as i64)), 0.3);
                let theirs = BitMask::of_packed(height, width, bytes);
                let near = |x: &Tensor| x.abs().lt(1e-4).sum(Kind::Int64).int64_value(&[]) as usize;
                let differ = (0..height * width)
                    .filter(|p| ours.mask.at(p / width, p % width) != theirs.at(p / width, p % width));
                assert!(differ.count() <= near(&drawn.get(i as i64)));
                let other = stabilities.double_value(&[i as i64]) as f32;
                assert!((ours.stability - other).abs() < 1e-3 || (ours.stability.is_nan() && other.is_nan()));
            }
        }
    }
}
