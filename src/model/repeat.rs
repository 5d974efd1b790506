//! What gives the same bits every time on a GPU as well, where libtorch's own kernels add in the order in which threads
//! happen to end. On a CPU these are libtorch's.

use std::ffi::c_void;
use std::sync::Once;

use tch::{Reduction, Tensor};

use super::memory::upload;
use super::wide;
use crate::vision::IGNORE;

#[expect(unsafe_code, reason = "tch has no other door")]
unsafe extern "C" {
    /// `at::globalContext()`
    #[link_name = "_ZN2at13globalContextEv"]
    fn global_context() -> *mut c_void;
    /// `at::Context::setDeterministicCuDNN(bool)`
    #[link_name = "_ZN2at7Context21setDeterministicCuDNNEb"]
    fn set_deterministic_cudnn(context: *mut c_void, is_wanted: bool);
}

/// Has none but convolutions that repeat themselves: cuDNN's, or for dilated ones in f32 libtorch's own. Call it before
/// anything computes.
pub fn repeat_convolutions() {
    static ONCE: Once = Once::new();
    // SAFETY: both are exported by the libtorch that the crate is built for; the context lives as long as the program,
    // and the call sets one flag of it, once.
    #[expect(unsafe_code, reason = "see above")]
    ONCE.call_once(|| unsafe {
        set_deterministic_cudnn(global_context(), true);
    });
}

/// Bilinear interpolation; without `align_corners` a pixel is an area, with it a point.
///
/// - `x`: `(B, C, h, w)`
pub(super) fn resized(x: &Tensor, size: [i64; 2], align_corners: bool) -> Tensor {
    if !x.device().is_cuda() {
        return x.upsample_bilinear2d(size, align_corners, None, None);
    }
    by_products(x, size, align_corners)
}

fn by_products(x: &Tensor, [height, width]: [i64; 2], align_corners: bool) -> Tensor {
    let from = x.size();
    let axis = |from, to| upload(&interpolation(from, to, align_corners).to_kind(wide(x).kind()), x.device());
    let (ys, xs) = (axis(from[2], height), axis(from[3], width));
    ys.matmul(&wide(x).matmul(&xs.transpose(0, 1))).to_kind(x.kind())
}

/// Along one axis, what each place takes of those before: `(to, from)` f64.
pub(super) fn interpolation(from: i64, to: i64, align_corners: bool) -> Tensor {
    let place = |i: i64| match align_corners {
        true => i as f64 * (from - 1) as f64 / (to - 1).max(1) as f64,
        false => ((i as f64 + 0.5) * from as f64 / to as f64 - 0.5).max(0.0),
    };
    let mut shares = vec![0.0; (to * from) as usize];
    for (place, row) in (0..to).map(place).zip(shares.chunks_exact_mut(from as usize)) {
        let low = (place as usize).min(row.len() - 1);
        row[low] += 1.0 - place.fract();
        row[(low + 1).min(from as usize - 1)] += place.fract();
    }
    Tensor::from_slice(&shares).view([to, from])
}

/// The mean over the pixels that are not ignored.
///
/// - `scores`: `(B, L, H, W)`; `labels`: `(B, H, W)` int64
pub(super) fn cross_entropy(scores: &Tensor, labels: &Tensor) -> Tensor {
    let none: Option<&Tensor> = None;
    let mean = |scores: &Tensor, labels: &Tensor| {
        scores.cross_entropy_loss(labels, none, Reduction::Mean, i64::from(IGNORE), 0.0)
    };
    match scores.device().is_cuda() {
        true => mean(&scores.permute([0, 2, 3, 1]).flatten(0, 2), &labels.flatten(0, -1)),
        false => mean(scores, labels),
    }
}

/// `sums` with each of `values` added at its place.
pub(super) fn added(sums: &Tensor, places: &Tensor, values: &Tensor) -> Tensor {
    match sums.device().is_cuda() {
        true => sums.index_put(&[Some(places)], values, true), // sorts them
        false => sums.index_add(0, places, values),
    }
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;

    #[test]
    fn products_interpolate_as_libtorch() {
        let x = (Tensor::arange(2 * 3 * 7 * 9, (Kind::Float, Device::Cpu)) * 0.37).sin().view([2, 3, 7, 9]);
        for size in [[28, 36], [56, 71], [5, 4], [1, 1], [7, 9]] {
            for align_corners in [false, true] {
                let off = by_products(&x, size, align_corners) - x.upsample_bilinear2d(size, align_corners, None, None);
                assert!(off.abs().max().double_value(&[]) < 1e-5, "{size:?} {align_corners}");
            }
        }
    }
}
