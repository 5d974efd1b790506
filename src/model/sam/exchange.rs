//! The image side of a layer of the two-way transformer on a CPU: the image looks at the tokens, and the tokens of the
//! next step look at the image, in one pass.
//!
//! For one prompt each of these steps goes over a tensor of 4,096 x 256; made one after the other they wait for
//! memory. Here a tile of positions stays in the nearest caches for all of them, and the softmax over positions is
//! kept up from tile to tile (Milakov & Gimelshein 2018).

use pulp::{Simd, WithSimd};

use super::transformer::{DIM, HEADS};
use crate::model::simd::{BLOCK, Factor, Norm, Numbers, each, exp, multiply, transposed};
use crate::vision::arch::arch;

/// Positions of a tile.
const TILE: usize = 64;
/// A logit without any part in a softmax.
const NO_PART: f32 = -1e30;
const WIDTH: usize = DIM as usize;
const N_HEADS: usize = HEADS as usize;

/// What the tokens of one prompt bring to the pass. A column is a head of a token: token by token, in each its heads.
#[derive(Debug)]
pub(super) struct Columns<'a> {
    /// `(columns, width of the positions' queries)`
    pub(super) keys: &'a [f32],
    /// Added to a column's logits: `(columns)`.
    pub(super) shift: &'a [f32],
    /// What a position takes from the columns it attends to: `(columns, 256)`.
    pub(super) values: &'a [f32],
    /// Queries of the tokens that look next: `(columns of these, 256)`.
    pub(super) look: &'a [f32],
}

/// Makes of `image` what it is after it looked at the tokens, `norm(image + softmax_tokens(queries . keys + shift) .
/// values)`, and gives what the tokens then see of it, `softmax_positions(look . (image + encoding)) . image`.
///
/// - `image`: `(positions, 256)`; the number of positions is a multiple of 64
/// - `queries`: `(positions, width)`; `None`: the image with `encoding`, `(positions, 256)`, added
/// - returns `(columns of those that look, 256)`
pub(super) fn exchange(
    image: &mut [f32],
    queries: Option<&[f32]>,
    encoding: &[f32],
    tokens: &Columns<'_>,
    (norm, numbers): (&Norm<'_>, Numbers),
) -> Vec<f32> {
    arch().dispatch(Pass { image, queries, encoding, tokens, norm, numbers })
}

struct Pass<'a> {
    image: &'a mut [f32],
    queries: Option<&'a [f32]>,
    encoding: &'a [f32],
    tokens: &'a Columns<'a>,
    norm: &'a Norm<'a>,
    numbers: Numbers,
}

impl WithSimd for Pass<'_> {
    type Output = Vec<f32>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Self::Output {
        let Self { image, queries, encoding, tokens, norm, numbers } = self;
        let n_columns = tokens.shift.len();
        let columns = n_columns.next_multiple_of(BLOCK);
        let width = tokens.keys.len() / n_columns;
        let keys = numbers.right(transposed(tokens.keys, width, columns).into(), columns);
        let n_looking = tokens.look.len() / WIDTH;
        let looking = n_looking.next_multiple_of(BLOCK);
        let look = numbers.right(transposed(tokens.look, WIDTH, looking).into(), looking);
        let mut values = tokens.values.to_vec();
        values.resize(columns * WIDTH, 0.0);
        let values = numbers.right(values.into(), WIDTH);
        let mut shift = tokens.shift.to_vec();
        shift.resize(columns, NO_PART);

        let mut seen = Seen::new(looking);
        let (mut logits, mut looks) = (vec![0.0; TILE * columns], vec![0.0; TILE * looking]);
        let mut at = vec![0.0; TILE * WIDTH];
        let tiles = image.chunks_exact_mut(TILE * WIDTH).zip(encoding.chunks_exact(TILE * WIDTH));
        for (tile, (image, encoding)) in tiles.enumerate() {
            let queries = match queries {
                Some(queries) => &queries[tile * TILE * width..][..TILE * width],
                None => {
                    sum(&mut at, image, encoding);
                    &at
                }
            };
            logits.fill(0.0);
            multiply(simd, Factor::Rows(queries, width), &keys, &mut logits);
            softmax_over_tokens(simd, &mut logits, &shift);
            multiply(simd, Factor::Rows(&logits, columns), &values, image);
            image.chunks_exact_mut(WIDTH).for_each(
                #[inline(always)]
                |row| norm.apply(simd, row),
            );
            sum(&mut at, image, encoding);
            looks.fill(0.0);
            multiply(simd, Factor::Rows(&at, WIDTH), &look, &mut looks);
            seen.add(simd, &mut looks, image, numbers);
        }
        seen.finish(n_looking)
    }
}

#[inline(always)]
fn sum(out: &mut [f32], a: &[f32], b: &[f32]) {
    out.iter_mut().zip(a).zip(b).for_each(|((out, a), b)| *out = a + b);
}

/// Each head's softmax over the tokens, position by position. `logits`: `(positions, columns)`.
#[inline(always)]
fn softmax_over_tokens<S: Simd>(simd: S, logits: &mut [f32], shift: &[f32]) {
    for row in logits.chunks_exact_mut(shift.len()) {
        row.iter_mut().zip(shift).for_each(|(logit, shift)| *logit += shift);
        let mut highest = [f32::NEG_INFINITY; N_HEADS];
        for token in row.chunks_exact(N_HEADS) {
            highest.iter_mut().zip(token).for_each(|(highest, logit)| *highest = highest.max(*logit));
        }
        for token in row.chunks_exact_mut(N_HEADS) {
            token.iter_mut().zip(&highest).for_each(|(logit, highest)| *logit -= highest);
        }
    }
    each::<S>(
        logits,
        #[inline(always)]
        |logit| exp(simd, logit),
    );
    for row in logits.chunks_exact_mut(shift.len()) {
        let mut total = [0.0; N_HEADS];
        for token in row.chunks_exact(N_HEADS) {
            total.iter_mut().zip(token).for_each(|(total, weight)| *total += weight);
        }
        let part = total.map(|total| 1.0 / total);
        for token in row.chunks_exact_mut(N_HEADS) {
            token.iter_mut().zip(&part).for_each(|(weight, part)| *weight *= part);
        }
    }
}

/// What columns see of the positions so far.
struct Seen {
    /// The highest logit of each column, the sum of its weights `exp(logit - highest)`.
    highest: Vec<f32>,
    total: Vec<f32>,
    /// `(columns, 256)`: the image by these weights.
    sum: Vec<f32>,
}

impl Seen {
    fn new(columns: usize) -> Self {
        Self { highest: vec![NO_PART; columns], total: vec![0.0; columns], sum: vec![0.0; columns * WIDTH] }
    }

    /// `logits` `(positions, columns)` of more positions, `image` `(positions, 256)`. Leaves weights in `logits`.
    #[inline(always)]
    fn add<S: Simd>(&mut self, simd: S, logits: &mut [f32], image: &[f32], numbers: Numbers) {
        let columns = self.highest.len();
        let mut highest = self.highest.clone();
        for row in logits.chunks_exact(columns) {
            highest.iter_mut().zip(row).for_each(|(highest, logit)| *highest = highest.max(*logit));
        }
        for (column, (now, before)) in highest.iter().zip(&self.highest).enumerate() {
            if now > before {
                let part = (before - now).exp();
                self.total[column] *= part;
                self.sum[column * WIDTH..][..WIDTH].iter_mut().for_each(|sum| *sum *= part);
            }
        }
        self.highest = highest;
        for row in logits.chunks_exact_mut(columns) {
            row.iter_mut().zip(&self.highest).for_each(|(logit, highest)| *logit -= highest);
        }
        each::<S>(
            logits,
            #[inline(always)]
            |logit| exp(simd, logit),
        );
        // By tiles: added one by one, thousands of small weights are rounded against their sum.
        let mut total = vec![0.0; columns];
        for row in logits.chunks_exact(columns) {
            total.iter_mut().zip(row).for_each(|(total, weight)| *total += weight);
        }
        self.total.iter_mut().zip(total).for_each(|(sum, of_tile)| *sum += of_tile);
        multiply(simd, Factor::Columns(logits, columns), &numbers.right(image.into(), WIDTH), &mut self.sum);
    }

    /// Of the first columns: `(columns, 256)`.
    fn finish(mut self, n_columns: usize) -> Vec<f32> {
        self.sum.truncate(n_columns * WIDTH);
        for (row, total) in self.sum.chunks_exact_mut(WIDTH).zip(&self.total) {
            row.iter_mut().for_each(|sum| *sum /= total);
        }
        self.sum
    }
}
