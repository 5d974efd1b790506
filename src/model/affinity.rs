//! Losses over pairs of near pixels, after AffinityNet (PSA; Ahn and Kwak 2018) and IRN (Ahn, Cho and Kwak 2019): two
//! pixels of one label are alike, two of different labels are not, and pairs with an ignored pixel count for nothing.
//!
//! A pair is a pixel and one of the half-disc below it and to its right, nearer than a radius; pixels count as the first
//! of a pair only where their whole half-disc lies in the map.

use tch::{Kind, Tensor};

use crate::vision::IGNORE;
use crate::vision::propagate::{Offset, offsets, path};

/// Keeps logarithms and divisions finite.
const EPS: f64 = 1e-5;

/// A loss to descend, and what it is made of.
#[derive(Debug)]
pub struct PairLoss<const N: usize> {
    /// With a gradient.
    pub total: Tensor,
    /// Scalars without gradients.
    pub terms: [Tensor; N],
}

/// The loss of AffinityNet, `bg/4 + fg/4 + neg/2`: of pairs of background, of one class, and of different labels, each
/// the mean of `-log a` or `-log (1 - a)`, `a = exp(-mean |f_i - f_j|)`.
///
/// - `feat`: `(B, D, h, w)` float
/// - `labels`: `(B, h, w)` int64: 0 background, from 1 classes, 255 ignored
/// - terms: bg, fg, neg; 0 where there is no such pair
pub fn psa(feat: &Tensor, labels: &Tensor, radius: usize) -> PairLoss<3> {
    let pairs = Pairs::new(labels, radius);
    pairs.loss([feat], [0.25, 0.25, 0.5], |[feat], kinds, offset| {
        let distance = (pairs.first(feat) - pairs.second(feat, offset)).abs();
        let alike = (-distance.mean_dim([1i64].as_slice(), false, Kind::Float)).exp();
        pairs.of_affinity(&alike, kinds)
    })
}

/// The loss of IRN, `((bg + fg)/2 + neg)/2 + (dp_fg + dp_bg)/2`: the first three as above with `a` 1 less the highest
/// edge on the straight path between the pixels; `dp_fg`: displacements of two pixels of a class should differ by the
/// way from one to the other, as both lead to the middle of their thing; `dp_bg`: those of background should not differ.
///
/// - `edge`: `(B, 1, h, w)` logits; `displacement`: `(B, 2, h, w)` pixels of the map, down and right
/// - `labels`: `(B, h, w)` int64, see [`psa`]
/// - terms: bg, fg, neg, dp_fg, dp_bg
pub fn irn(edge: &Tensor, displacement: &Tensor, labels: &Tensor, radius: usize) -> PairLoss<5> {
    let pairs = Pairs::new(labels, radius);
    let [bg, fg, _] = &pairs.counts;
    let of_two = |count: &Tensor| (count * 2.0 + EPS).reciprocal();
    let (per_fg, per_bg) = (of_two(fg), of_two(bg));
    let weights = [0.25, 0.25, 0.5, 0.5, 0.5];
    pairs.loss([&edge.sigmoid(), displacement], weights, |[edge, displacement], kinds, offset| {
        let steps: Vec<Tensor> = path(offset).into_iter().map(|step| pairs.second(edge, step)).collect();
        let highest = Tensor::stack(&steps, 0).max_dim(0, false).0; // (B, 1, rows, columns)
        let [bg, fg, neg] = pairs.of_affinity(&(1.0 - highest.squeeze_dim(1)), kinds);
        let differ = pairs.first(displacement) - pairs.second(displacement, offset); // (B, 2, rows, columns)
        let way = Tensor::from_slice(&[offset.0 as f32, offset.1 as f32]).view([1, 2, 1, 1]).to_device(differ.device());
        let [of_bg, of_fg, _] = kinds;
        let sum = |x: Tensor, of: &Tensor| (x.abs() * of.unsqueeze(1)).sum(Kind::Float);
        [bg, fg, neg, sum(&differ - way, of_fg) * &per_fg, sum(differ, of_bg) * &per_bg]
    })
}

/// The pairs of a batch of label maps.
struct Pairs<'a> {
    labels: &'a Tensor,
    offsets: Vec<Offset>,
    /// How far a half-disc reaches.
    margin: i64,
    /// Pairs of background, of one class, of different labels.
    counts: [Tensor; 3],
}

impl<'a> Pairs<'a> {
    /// Panics if the map is smaller than a disc.
    fn new(labels: &'a Tensor, radius: usize) -> Self {
        let none = || Tensor::zeros([] as [i64; 0], (Kind::Float, labels.device()));
        let counts = [none(), none(), none()];
        let mut pairs = Self { labels, offsets: offsets(radius), margin: radius as i64 - 1, counts };
        for &offset in &pairs.offsets {
            let kinds = pairs.kinds(offset);
            for (count, kind) in pairs.counts.iter_mut().zip(kinds) {
                *count += kind.sum(Kind::Float);
            }
        }
        pairs
    }

    /// The first pixels of pairs, of `(.., h, w)`.
    fn first(&self, x: &Tensor) -> Tensor {
        self.second(x, (0, 0))
    }

    /// What lies so far from them.
    fn second(&self, x: &Tensor, (down, right): Offset) -> Tensor {
        let (height, width) = (x.size()[x.dim() - 2], x.size()[x.dim() - 1]);
        let rows = x.narrow(-2, down as i64, height - self.margin);
        rows.narrow(-1, self.margin + right as i64, width - 2 * self.margin)
    }

    /// Which pairs are of background, of one class, of different labels: 0 or 1, `(B, rows, columns)`.
    fn kinds(&self, offset: Offset) -> [Tensor; 3] {
        let (one, other) = (self.first(self.labels), self.second(self.labels, offset));
        let ignore = i64::from(IGNORE);
        let counts = one.not_equal(ignore).logical_and(&other.not_equal(ignore));
        let (same, differ) = (one.eq_tensor(&other), one.not_equal_tensor(&other));
        let background = one.eq(0);
        let bg = counts.logical_and(&same).logical_and(&background);
        let fg = counts.logical_and(&same).logical_and(&background.logical_not());
        [bg, fg, counts.logical_and(&differ)].map(|kind| kind.to_kind(Kind::Float))
    }

    /// The part of the pairs of one offset in the first three terms; `alike`: `(B, rows, columns)`.
    fn of_affinity(&self, alike: &Tensor, [bg, fg, neg]: &[Tensor; 3]) -> [Tensor; 3] {
        let (alike, unlike) = (-(alike + EPS).log(), -(1.0 + EPS - alike).log());
        let part = |x: &Tensor, kind: &Tensor, count: &Tensor| (x * kind).sum(Kind::Float) / (count + EPS);
        let [n_bg, n_fg, n_neg] = &self.counts;
        [part(&alike, bg, n_bg), part(&alike, fg, n_fg), part(&unlike, neg, n_neg)]
    }

    /// Sums what `terms` gives for each offset, weighted.
    ///
    /// The gradient of `outputs` is found offset by offset, since all at once would fill the memory with pairs; the loss
    /// given back has the value of the sum, and that gradient.
    fn loss<const M: usize, const N: usize>(
        &self,
        outputs: [&Tensor; M],
        weights: [f64; N],
        terms: impl Fn([&Tensor; M], &[Tensor; 3], Offset) -> [Tensor; N],
    ) -> PairLoss<N> {
        let leaves = outputs.map(|output| output.detach().set_requires_grad(true));
        let mut sums: [Tensor; N] =
            std::array::from_fn(|_| Tensor::zeros([] as [i64; 0], (Kind::Float, self.labels.device())));
        for &offset in &self.offsets {
            let found = terms(leaves.each_ref(), &self.kinds(offset), offset);
            let weighted = found.iter().zip(weights).map(|(term, weight)| term * weight);
            weighted.reduce(|sum, term| sum + term).iter().for_each(Tensor::backward);
            sums.iter_mut().zip(found).for_each(|(sum, term)| *sum += term.detach());
        }
        let value = sums.iter().zip(weights).map(|(sum, weight)| sum * weight).reduce(|sum, term| sum + term);
        let value = value.unwrap_or_else(|| self.counts[0].zeros_like());
        let ways = outputs.iter().zip(&leaves).map(|(output, leaf)| (*output * leaf.grad()).sum(Kind::Float));
        let total = ways.fold(value, |total, way| &total + &way - way.detach());
        PairLoss { total, terms: sums }
    }
}
