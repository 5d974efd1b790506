//! Arithmetic on whole registers of the CPU, for the parts of a model whose tensors are worth keeping in its caches
//! from one operation to the next. Sizes are multiples of [`BLOCK`] or of [`ROWS`]; every processor has its own width.
//!
//! Everything here is `inline(always)`, closures too: what is not inlined into the one function made for a processor is
//! compiled for the least of them.

use std::borrow::Cow;

use pulp::Simd;

use super::bf16::{Bf16, Pairs};

/// Columns of a product are a multiple of this: whole registers on every processor.
pub(super) const BLOCK: usize = 32;
/// Rows of a product made together.
pub(super) const ROWS: usize = 4;

/// `(rows, width)` to `(width, columns)`, padded with zeros.
pub(super) fn transposed(rows: &[f32], width: usize, columns: usize) -> Vec<f32> {
    let mut out = vec![0.0; width * columns];
    for (column, row) in rows.chunks_exact(width).enumerate() {
        row.iter().enumerate().for_each(|(i, &value)| out[i * columns + column] = value);
    }
    out
}

/// The left side of a product, `(rows, inner)`, as it lies in memory.
#[derive(Clone, Copy)]
pub(super) enum Factor<'a> {
    /// Row by row, each of this length.
    Rows(&'a [f32], usize),
    /// Column by column, each of this length.
    Columns(&'a [f32], usize),
}

impl Factor<'_> {
    /// Rows and inner.
    pub(super) fn size(self) -> (usize, usize) {
        match self {
            Self::Rows(values, inner) => (values.len() / inner, inner),
            Self::Columns(values, rows) => (rows, values.len() / rows),
        }
    }
}

/// What products are made in; sums are f32.
#[derive(Clone, Copy, Debug)]
pub(super) enum Numbers {
    F32,
    Bf16(Bf16),
}

/// The right side of a product, `(inner, n)`, made ready.
#[derive(Debug)]
pub(super) enum Right<'a> {
    F32(Cow<'a, [f32]>),
    Bf16(Bf16, Pairs),
}

impl Numbers {
    #[inline(always)]
    pub(super) fn right(self, values: Cow<'_, [f32]>, n: usize) -> Right<'_> {
        match self {
            Self::F32 => Right::F32(values),
            Self::Bf16(bf16) => Right::Bf16(bf16, bf16.right(&values, n)),
        }
    }
}

/// `out += a b`: `(rows, n)`, `(rows, inner)`, `(inner, n)`.
#[inline(always)]
pub(super) fn multiply<S: Simd>(simd: S, a: Factor<'_>, b: &Right<'_>, out: &mut [f32]) {
    let b = match b {
        Right::F32(b) => b,
        Right::Bf16(bf16, b) => return bf16.multiply(a, b, out),
    };
    // As many columns at a time as there are registers for.
    let n = out.len() / a.size().0;
    match S::F32_LANES {
        16 if n.is_multiple_of(64) => blocks::<S, 4>(simd, a, b, out),
        8 | 16 => blocks::<S, 2>(simd, a, b, out),
        _ => blocks::<S, 4>(simd, a, b, out),
    }
}

/// The same in f32 with `n` a multiple of 16 alone.
#[inline(always)]
pub(super) fn multiply_narrow<S: Simd>(simd: S, a: Factor<'_>, b: &[f32], out: &mut [f32]) {
    blocks::<S, 1>(simd, a, b, out);
}

#[inline(always)]
fn blocks<S: Simd, const COLUMNS: usize>(simd: S, a: Factor<'_>, b: &[f32], out: &mut [f32]) {
    let (b, out) = (S::as_simd_f32s(b).0, S::as_mut_simd_f32s(out).0);
    let (rows, inner) = a.size();
    let n = out.len() / rows;
    for column in (0..n).step_by(COLUMNS) {
        for row in (0..rows).step_by(ROWS) {
            let mut sums = [[simd.splat_f32s(0.0); COLUMNS]; ROWS];
            match a {
                Factor::Rows(values, _) => {
                    let rows: [&[f32]; ROWS] = std::array::from_fn(
                        #[inline(always)]
                        |r| &values[(row + r) * inner..][..inner],
                    );
                    for i in 0..inner {
                        let at = std::array::from_fn(
                            #[inline(always)]
                            |r| rows[r][i],
                        );
                        accumulate(simd, at, &b[i * n + column..][..COLUMNS], &mut sums);
                    }
                }
                Factor::Columns(values, _) => {
                    for i in 0..inner {
                        let of_column = &values[i * rows + row..][..ROWS];
                        let at = std::array::from_fn(
                            #[inline(always)]
                            |r| of_column[r],
                        );
                        accumulate(simd, at, &b[i * n + column..][..COLUMNS], &mut sums);
                    }
                }
            }
            for (r, sums) in sums.iter().enumerate() {
                for (out, sum) in out[(row + r) * n + column..][..COLUMNS].iter_mut().zip(sums) {
                    *out = simd.add_f32s(*out, *sum);
                }
            }
        }
    }
}

/// `sums += a b`: a value of each row by the registers of a row of columns.
#[inline(always)]
fn accumulate<S: Simd, const COLUMNS: usize>(
    simd: S,
    a: [f32; ROWS],
    b: &[S::f32s],
    sums: &mut [[S::f32s; COLUMNS]; ROWS],
) {
    for (a, sums) in a.into_iter().zip(sums) {
        let a = simd.splat_f32s(a);
        for (sum, b) in sums.iter_mut().zip(b) {
            *sum = simd.mul_add_f32s(a, *b, *sum);
        }
    }
}

/// A layer norm's weights.
#[derive(Debug)]
pub(super) struct Norm<'a> {
    pub(super) weight: &'a [f32],
    pub(super) bias: &'a [f32],
    pub(super) eps: f32,
}

impl Norm<'_> {
    /// `(row - mean) / deviation * weight + bias`
    #[inline(always)]
    pub(super) fn apply<S: Simd>(&self, simd: S, row: &mut [f32]) {
        let n = row.len() as f32;
        let row = S::as_mut_simd_f32s(row).0;
        let (weight, bias) = (S::as_simd_f32s(self.weight).0, S::as_simd_f32s(self.bias).0);
        let mut total = simd.splat_f32s(0.0);
        row.iter().for_each(
            #[inline(always)]
            |x| total = simd.add_f32s(total, *x),
        );
        let mean = simd.splat_f32s(simd.reduce_sum_f32s(total) / n);
        let mut squares = simd.splat_f32s(0.0);
        for x in row.iter_mut() {
            *x = simd.sub_f32s(*x, mean);
            squares = simd.mul_add_f32s(*x, *x, squares);
        }
        let variance = simd.reduce_sum_f32s(squares) / n;
        let scale = simd.splat_f32s(1.0 / (variance + self.eps).sqrt());
        for ((x, weight), bias) in row.iter_mut().zip(weight).zip(bias) {
            *x = simd.mul_add_f32s(simd.mul_f32s(*x, scale), *weight, *bias);
        }
    }
}

/// `e^x` of what is not above 0, to 1e-7 of it (Cephes' polynomial); below -87 that of -87.
#[inline(always)]
pub(super) fn exp<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    // In this order NaN stays NaN on x86.
    let x = simd.max_f32s(simd.splat_f32s(-87.0), x);
    // Added, this leaves a whole number in the low bits.
    let round = simd.splat_f32s(12_582_912.0);
    let whole = simd.mul_add_f32s(x, simd.splat_f32s(std::f32::consts::LOG2_E), round);
    let n = simd.sub_f32s(whole, round);
    let r =
        simd.mul_add_f32s(n, simd.splat_f32s(2.121_944_4e-4), simd.mul_add_f32s(n, simd.splat_f32s(-0.693_359_4), x));
    let mut p = simd.splat_f32s(1.987_569_2e-4);
    for next in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_65, 0.5] {
        p = simd.mul_add_f32s(p, r, simd.splat_f32s(next));
    }
    let y = simd.add_f32s(simd.mul_add_f32s(simd.mul_f32s(p, r), r, r), simd.splat_f32s(1.0));
    let exponent = simd.wrapping_dyn_shl_u32s(simd.transmute_u32s_f32s(whole), simd.splat_u32s(23));
    let power = simd.add_u32s(exponent, simd.splat_u32s(1.0f32.to_bits()));
    simd.mul_f32s(y, simd.transmute_f32s_u32s(power))
}

/// `0.5 x (1 + erf(x / sqrt 2))`, erf to 2e-7 (Abramowitz & Stegun 7.1.26).
#[inline(always)]
pub(super) fn gelu<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    let size = simd.abs_f32s(x);
    let z = simd.mul_f32s(size, simd.splat_f32s(std::f32::consts::FRAC_1_SQRT_2));
    let t =
        simd.div_f32s(simd.splat_f32s(1.0), simd.mul_add_f32s(simd.splat_f32s(0.327_591_1), z, simd.splat_f32s(1.0)));
    let mut p = simd.splat_f32s(1.061_405_4);
    for next in [-1.453_152, 1.421_413_7, -0.284_496_74, 0.254_829_6] {
        p = simd.mul_add_f32s(p, t, simd.splat_f32s(next));
    }
    let tail = simd.mul_f32s(simd.mul_f32s(p, t), exp(simd, simd.mul_f32s(simd.neg_f32s(z), z)));
    simd.mul_f32s(simd.splat_f32s(0.5), simd.mul_add_f32s(size, simd.sub_f32s(simd.splat_f32s(1.0), tail), x))
}

/// Each value by what `f` makes of it; their number is a multiple of 16.
#[inline(always)]
pub(super) fn each<S: Simd>(values: &mut [f32], f: impl Fn(S::f32s) -> S::f32s) {
    for x in S::as_mut_simd_f32s(values).0 {
        *x = f(*x);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vision::arch::arch;
    use pulp::WithSimd;

    struct Multiply<'a>(&'a [f32], &'a [f32], &'a mut [f32], bool, Numbers);
    impl WithSimd for Multiply<'_> {
        type Output = ();
        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) {
            let Self(a, b, out, by_columns, _) = self;
            let a = if by_columns { Factor::Columns(a, 8) } else { Factor::Rows(a, a.len() / 8) };
            multiply(simd, a, &self.4.right(b.into(), 128), out);
        }
    }

    struct Functions<'a>(&'a mut [f32], &'a mut [f32]);
    impl WithSimd for Functions<'_> {
        type Output = ();
        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) {
            each::<S>(self.0, |x| exp(simd, x));
            each::<S>(self.1, |x| gelu(simd, x));
        }
    }

    fn wave(n: usize, step: f32) -> Vec<f32> {
        (0..n).map(|i| (i as f32 * step).sin()).collect()
    }

    #[test]
    fn products_of_both_memory_orders() {
        let (rows, inner, n) = (8, 6, 128);
        let (a, b) = (wave(rows * inner, 0.7), wave(inner * n, 0.3));
        let by_columns: Vec<f32> = (0..rows * inner).map(|i| a[i % rows * inner + i / rows]).collect();
        let bf16 = Bf16::detect().map(|bf16| (Numbers::Bf16(bf16), 2e-2));
        for (numbers, tolerance) in [(Numbers::F32, 1e-5)].into_iter().chain(bf16) {
            for (values, is_columns) in [(&a, false), (&by_columns, true)] {
                let mut out = vec![1.0; rows * n];
                arch().dispatch(Multiply(values, &b, &mut out, is_columns, numbers));
                for (i, out) in out.iter().enumerate() {
                    let expected: f32 = 1.0 + (0..inner).map(|k| a[i / n * inner + k] * b[k * n + i % n]).sum::<f32>();
                    assert!((out - expected).abs() < tolerance, "{numbers:?}");
                }
            }
        }
    }

    #[test]
    fn functions_to_the_last_bits_of_f32() {
        let x: Vec<f32> = (0..100_000).map(|i| -i as f32 * 8.6e-4).collect();
        let (mut exps, mut gelus) = (x.clone(), vec![0.0; 16]);
        // torch.nn.functional.gelu of float64
        let cases = [(0.0, 0.0), (1.0, 0.841_344_746), (-1.0, -0.158_655_254), (3.0, 2.995_950_3), (-6.0, -5.919e-9)];
        cases.iter().zip(&mut gelus).for_each(|((x, _), gelu)| *gelu = *x);
        exps[1] = -1e30;
        arch().dispatch(Functions(&mut exps, &mut gelus));
        assert!(exps[1] < 1e-37);
        for (x, exp) in x.iter().zip(&exps).skip(2) {
            assert!((f64::from(*exp) / f64::from(*x).exp() - 1.0).abs() < 2e-7, "{x}");
        }
        for ((x, expected), gelu) in cases.iter().zip(gelus) {
            assert!((f64::from(gelu) - expected).abs() < 3e-7 * f64::from(x.abs()).max(1.0), "{x}: {gelu}");
        }
    }
}
