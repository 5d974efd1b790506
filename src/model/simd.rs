//! Arithmetic on whole registers of the CPU, for the parts of a model whose tensors are worth keeping in its caches
//! from one operation to the next. Sizes are multiples of [`BLOCK`] or of [`ROWS`]; every processor has its own width.

use pulp::Simd;

/// Columns of a product: whole registers on every processor.
pub(super) const BLOCK: usize = 64;
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
pub(super) struct Factor<'a> {
    values: &'a [f32],
    rows: usize,
    inner: usize,
    /// From a row to the next, and from a value of a row to the next.
    strides: (usize, usize),
}

impl<'a> Factor<'a> {
    /// Row by row.
    #[inline(always)]
    pub(super) fn rows(values: &'a [f32], inner: usize) -> Self {
        Self { values, rows: values.len() / inner, inner, strides: (inner, 1) }
    }

    /// Column by column.
    #[inline(always)]
    pub(super) fn columns(values: &'a [f32], rows: usize) -> Self {
        Self { values, rows, inner: values.len() / rows, strides: (1, rows) }
    }
}

/// `out += a b`: `(rows, n)`, `(rows, inner)`, `(inner, n)`.
#[inline(always)]
pub(super) fn multiply<S: Simd>(simd: S, a: Factor<'_>, b: &[f32], out: &mut [f32]) {
    // As many columns at a time as there are registers for.
    match S::F32_LANES {
        8 => blocks::<S, 2>(simd, a, b, out),
        _ => blocks::<S, 4>(simd, a, b, out),
    }
}

/// The same with `n` a multiple of 16 alone.
#[inline(always)]
pub(super) fn multiply_narrow<S: Simd>(simd: S, a: Factor<'_>, b: &[f32], out: &mut [f32]) {
    blocks::<S, 1>(simd, a, b, out);
}

#[inline(always)]
fn blocks<S: Simd, const COLUMNS: usize>(simd: S, a: Factor<'_>, b: &[f32], out: &mut [f32]) {
    let Factor { values, rows, inner, strides: (down, along) } = a;
    let (b, out) = (S::as_simd_f32s(b).0, S::as_mut_simd_f32s(out).0);
    let n = out.len() / rows;
    for column in (0..n).step_by(COLUMNS) {
        for row in (0..rows).step_by(ROWS) {
            let mut sums = [[simd.splat_f32s(0.0); COLUMNS]; ROWS];
            for (i, b) in b.chunks_exact(n).enumerate().take(inner) {
                let b = &b[column..column + COLUMNS];
                for (r, sums) in sums.iter_mut().enumerate() {
                    let a = simd.splat_f32s(values[(row + r) * down + i * along]);
                    sums.iter_mut().zip(b).for_each(
                        #[inline(always)]
                        |(sum, b)| *sum = simd.mul_add_f32s(a, *b, *sum),
                    );
                }
            }
            for (r, sums) in sums.iter().enumerate() {
                let out = &mut out[(row + r) * n + column..][..COLUMNS];
                out.iter_mut().zip(sums).for_each(
                    #[inline(always)]
                    |(out, sum)| *out = simd.add_f32s(*out, *sum),
                );
            }
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

/// `e^x` of what is not above 0, to 1e-7 of it (Cephes' polynomial); below -87 that of -87. Without a branch, so that it
/// runs on whole registers.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    let x = x.max(-87.0);
    // Added, this leaves a whole number in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let whole = x * std::f32::consts::LOG2_E + ROUND;
    let n = whole - ROUND;
    let r = x - n * 0.693_359_4 + n * 2.121_944_4e-4;
    let p = [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_65, 0.5];
    let p = p.into_iter().fold(1.987_569_2e-4, |p, next| p * r + next);
    let power = f32::from_bits((whole.to_bits() << 23).wrapping_add(1.0f32.to_bits()));
    (p * r * r + r + 1.0) * power
}

/// `0.5 x (1 + erf(x / sqrt 2))`, erf to 2e-7 (Abramowitz & Stegun 7.1.26).
#[inline(always)]
pub(super) fn gelu(x: f32) -> f32 {
    let z = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
    let t = 1.0 / (1.0 + 0.327_591_1 * z);
    let p = [-1.453_152, 1.421_413_7, -0.284_496_74, 0.254_829_6].into_iter().fold(1.061_405_4, |p, next| p * t + next);
    let erf = 1.0 - p * t * exp(-z * z);
    0.5 * (x + x.abs() * erf)
}

#[cfg(test)]
mod tests {
    use super::*;
    use pulp::{Arch, WithSimd};

    struct Multiply<'a>(&'a [f32], &'a [f32], &'a mut [f32], bool);
    impl WithSimd for Multiply<'_> {
        type Output = ();
        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) {
            let Self(a, b, out, by_columns) = self;
            let a = if by_columns { Factor::columns(a, 8) } else { Factor::rows(a, a.len() / 8) };
            multiply(simd, a, b, out);
        }
    }

    fn wave(n: usize, step: f32) -> Vec<f32> {
        (0..n).map(|i| (i as f32 * step).sin()).collect()
    }

    #[test]
    fn products_of_both_memory_orders() {
        let (rows, inner, n) = (8, 5, 128);
        let (a, b) = (wave(rows * inner, 0.7), wave(inner * n, 0.3));
        let by_columns: Vec<f32> = (0..rows * inner).map(|i| a[i % rows * inner + i / rows]).collect();
        for (values, is_columns) in [(&a, false), (&by_columns, true)] {
            let mut out = vec![1.0; rows * n];
            Arch::new().dispatch(Multiply(values, &b, &mut out, is_columns));
            for (i, out) in out.iter().enumerate() {
                let expected: f32 = 1.0 + (0..inner).map(|k| a[i / n * inner + k] * b[k * n + i % n]).sum::<f32>();
                assert!((out - expected).abs() < 1e-5);
            }
        }
    }

    #[test]
    fn functions_to_the_last_bits_of_f32() {
        for i in 0..100_000 {
            let x = -i as f32 * 8.6e-4;
            assert!((f64::from(exp(x)) / f64::from(x).exp() - 1.0).abs() < 2e-7, "{x}");
        }
        assert!(exp(-1e30) < 1e-37);
        // torch.nn.functional.gelu of float64
        for (x, expected) in
            [(0.0, 0.0), (1.0, 0.841_344_746), (-1.0, -0.158_655_254), (3.0, 2.995_950_3), (-6.0, -5.919e-9)]
        {
            assert!((f64::from(gelu(x)) - expected).abs() < 3e-7 * f64::from(x.abs()).max(1.0), "{x}: {}", gelu(x));
        }
    }
}
