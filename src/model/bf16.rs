//! Products in bf16 with sums in f32, on processors with AVX-512 BF16: twice as fast as in f32 there.

use super::simd::{Factor, ROWS};
#[cfg(target_arch = "x86_64")]
use crate::vision::arch::is_free;

/// Proof that the processor has it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bf16(());

/// The right side of a product, `(inner, n)`: two values of a column, one below the other, in each word.
#[derive(Debug)]
pub(super) struct Pairs {
    words: Vec<u32>,
    n: usize,
}

impl Bf16 {
    #[cfg(target_arch = "x86_64")]
    pub(super) fn detect() -> Option<Self> {
        let has = is_free() && is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bf16");
        has.then_some(Self(()))
    }

    #[cfg(not(target_arch = "x86_64"))]
    pub(super) fn detect() -> Option<Self> {
        None
    }

    /// `values`: `(inner, n)`, `inner` even.
    #[inline(always)]
    pub(super) fn right(self, values: &[f32], n: usize) -> Pairs {
        Pairs { words: below(values, n), n }
    }

    /// `out += a b`
    #[inline(always)]
    pub(super) fn multiply(self, a: Factor<'_>, b: &Pairs, out: &mut [f32]) {
        let (rows, inner) = a.size();
        // Of a row's next pair, and of the next row's: where they lie.
        let (words, strides) = match a {
            Factor::Rows(values, inner) => (beside(values), (inner / 2, 1)),
            Factor::Columns(values, rows) => (below(values, rows), (1, rows)),
        };
        assert!(rows.is_multiple_of(ROWS) && inner.is_multiple_of(2) && b.n.is_multiple_of(2 * LANES));
        assert!(words.len() * 2 == rows * inner && b.words.len() * 2 == inner * b.n && out.len() == rows * b.n);
        product(&words, strides, b, out);
    }
}

/// f32 values of a register.
const LANES: usize = 16;

/// To the nearest bf16, of two the even: the upper half of a word.
#[inline(always)]
fn round(x: f32) -> u32 {
    let bits = x.to_bits();
    if x.is_nan() {
        return bits | 0x0040_0000; // stays one
    }
    bits.wrapping_add(0x7fff + (bits >> 16 & 1))
}

#[inline(always)]
fn pair(low: f32, high: f32) -> u32 {
    round(low) >> 16 | round(high) & 0xffff_0000
}

/// Two values of a row in each word.
#[inline(always)]
fn beside(values: &[f32]) -> Vec<u32> {
    values.as_chunks::<2>().0.iter().map(|[low, high]| pair(*low, *high)).collect()
}

/// Two values of a column in each word: `(inner, n)` to `(inner / 2, n)`.
#[inline(always)]
fn below(values: &[f32], n: usize) -> Vec<u32> {
    let mut words = vec![0; values.len() / 2];
    for (rows, words) in values.chunks_exact(2 * n).zip(words.chunks_exact_mut(n)) {
        let (upper, lower) = rows.split_at(n);
        for ((word, low), high) in words.iter_mut().zip(upper).zip(lower) {
            *word = pair(*low, *high);
        }
    }
    words
}

#[cfg(not(target_arch = "x86_64"))]
fn product(_: &[u32], _: (usize, usize), _: &Pairs, _: &mut [f32]) {
    unreachable!("no processor without the instructions has a `Bf16`")
}

#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "the instructions have no other door")]
fn product(a: &[u32], strides: (usize, usize), b: &Pairs, out: &mut [f32]) {
    // SAFETY: there is no `Bf16` without the instructions; `multiply` has checked the sizes.
    unsafe {
        match b.n.is_multiple_of(4 * LANES) {
            true => blocks::<4>(a, strides, b, out),
            false => blocks::<2>(a, strides, b, out),
        }
    }
}

/// # Safety
/// The processor has the instructions, `a` is `(rows, inner)` with `rows` a multiple of [`ROWS`], `b` `(inner, n)` with
/// `n` a multiple of `COLUMNS` registers, `out` `(rows, n)`.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bf16")]
#[expect(unsafe_code, reason = "loads and stores of whole registers")]
unsafe fn blocks<const COLUMNS: usize>(a: &[u32], (down, along): (usize, usize), b: &Pairs, out: &mut [f32]) {
    use std::arch::x86_64::{
        __m512bh, __m512i, _mm512_add_ps, _mm512_dpbf16_ps, _mm512_loadu_ps, _mm512_loadu_si512, _mm512_set1_epi32,
        _mm512_setzero_ps, _mm512_storeu_ps,
    };
    let Pairs { words, n } = b;
    let (rows, pairs) = (out.len() / n, words.len() / n);
    let number = |x: __m512i| -> __m512bh {
        // SAFETY: the same 512 bits.
        unsafe { std::mem::transmute(x) }
    };
    for column in (0..*n).step_by(COLUMNS * LANES) {
        for row in (0..rows).step_by(ROWS) {
            let mut sums = [[_mm512_setzero_ps(); COLUMNS]; ROWS];
            for i in 0..pairs {
                // SAFETY: within `(pairs, n)`.
                let right: [__m512bh; COLUMNS] = std::array::from_fn(|c| unsafe {
                    number(_mm512_loadu_si512(words.as_ptr().add(i * n + column + c * LANES).cast()))
                });
                for (r, sums) in sums.iter_mut().enumerate() {
                    // SAFETY: within `(rows, pairs)`, by either order.
                    let word = unsafe { *a.get_unchecked((row + r) * down + i * along) };
                    let left = number(_mm512_set1_epi32(word as i32));
                    for (sum, right) in sums.iter_mut().zip(right) {
                        *sum = _mm512_dpbf16_ps(*sum, left, right);
                    }
                }
            }
            for (r, sums) in sums.iter().enumerate() {
                for (c, sum) in sums.iter().enumerate() {
                    // SAFETY: within `(rows, n)`.
                    unsafe {
                        let at = out.as_mut_ptr().add((row + r) * n + column + c * LANES);
                        _mm512_storeu_ps(at, _mm512_add_ps(_mm512_loadu_ps(at), *sum));
                    }
                }
            }
        }
    }
}
