//! Random walks between near pixels, after AffinityNet (PSA; Ahn and Kwak 2018) and IRN (Ahn, Cho and Kwak 2019): scores
//! spread along affinities. The references square a matrix of all pairs of pixels; here the walk takes its steps one
//! by one on the pairs within the radius, which gives the same numbers.

/// How much pixels are one thing with those near them, 0 to 1: symmetric, and 1 with themselves.
#[derive(Clone, Debug, PartialEq)]
pub struct Affinity {
    height: usize,
    width: usize,
    /// By offset, `height * width`: of each pixel with the one that lies so far from it; 0 for none.
    pairs: Vec<(Offset, Vec<f32>)>,
}

/// Rows down, columns to the right.
type Offset = (usize, isize);

/// The half-plane of offsets nearer than `radius`, in the order of the references.
fn offsets(radius: usize) -> Vec<Offset> {
    let r = radius as isize;
    let below = (1..r).flat_map(|y| (1 - r..r).filter(move |x| x * x + y * y < r * r).map(move |x| (y as usize, x)));
    (1..r).map(|x| (0, x)).chain(below).collect()
}

impl Affinity {
    /// `exp(-mean |f_i - f_j|)` over the channels of `feat`, `(C, height, width)`: AffinityNet. As there, a pair counts
    /// only if the whole half-disc around its upper pixel lies in the map.
    pub fn of_features(feat: &[f32], (height, width): (usize, usize), radius: usize) -> Self {
        let (pixels, margin) = (height * width, radius.saturating_sub(1));
        let channels = (feat.len() / pixels.max(1)) as f32;
        let of = |p: usize, q: usize| {
            let far: f32 = feat.chunks_exact(pixels).map(|channel| (channel[p] - channel[q]).abs()).sum();
            (-far / channels).exp()
        };
        let counts = |y: usize, x: usize| y + margin < height && x >= margin && x + margin < width;
        Self::new((height, width), radius, |(y, x), offset| {
            let p = y * width + x;
            if counts(y, x) { of(p, moved(p, offset, width)) } else { 0.0 }
        })
    }

    /// 1 less the highest edge on the straight path from one pixel to the other, `edge` 0 to 1, `height * width`: IRN.
    pub fn of_edges(edge: &[f32], (height, width): (usize, usize), radius: usize) -> Self {
        let paths: Vec<(Offset, Vec<Offset>)> = offsets(radius).into_iter().map(|to| (to, path(to))).collect();
        Self::new((height, width), radius, |(y, x), offset| {
            let steps = paths.iter().find(|(to, _)| *to == offset).map_or(&[][..], |(_, steps)| steps);
            let highest = steps.iter().map(|&step| edge[moved(y * width + x, step, width)]).fold(0.0, f32::max);
            1.0 - highest
        })
    }

    fn new((height, width): (usize, usize), radius: usize, of: impl Fn((usize, usize), Offset) -> f32) -> Self {
        let pairs = offsets(radius).into_iter().map(|offset| {
            let is_in =
                |y: usize, x: usize| y + offset.0 < height && (0..width as isize).contains(&(x as isize + offset.1));
            let value = |p: usize| {
                let (y, x) = (p / width, p % width);
                if is_in(y, x) { of((y, x), offset) } else { 0.0 }
            };
            (offset, (0..height * width).map(value).collect())
        });
        Self { height, width, pairs: pairs.collect() }
    }

    /// `scores (C, height, width)` after `steps` of the walk whose transitions are affinities to the power `beta`,
    /// each pixel's divided by their sum.
    pub fn walk(&self, scores: &[f32], beta: f32, steps: usize) -> Vec<f32> {
        let pixels = self.height * self.width;
        let power = |(offset, values): &(Offset, Vec<f32>)| (*offset, values.iter().map(|a| a.powf(beta)).collect());
        let powers = Self { pairs: self.pairs.iter().map(power).collect(), ..*self };
        let sums = powers.spread(&vec![1.0; pixels]);
        let mut walked = scores.to_vec();
        for channel in walked.chunks_exact_mut(pixels.max(1)) {
            for _ in 0..steps {
                let spread = powers.spread(channel);
                channel.iter_mut().zip(spread.iter().zip(&sums)).for_each(|(score, (new, sum))| *score = new / sum);
            }
        }
        walked
    }

    /// The product with the matrix of affinities.
    fn spread(&self, channel: &[f32]) -> Vec<f32> {
        let mut out = channel.to_vec();
        for (offset, values) in &self.pairs {
            // Pixels whose partner is beyond a border have 0, so rows may be taken as one line.
            let shift = moved(0, *offset, self.width);
            let n = channel.len().saturating_sub(shift);
            for p in 0..n {
                out[p] += values[p] * channel[p + shift];
            }
            for p in 0..n {
                out[p + shift] += values[p] * channel[p];
            }
        }
        out
    }
}

/// From one pixel to another; offsets of the half-plane only go on.
fn moved(p: usize, (down, right): Offset, width: usize) -> usize {
    (p + down * width).wrapping_add_signed(right)
}

/// The pixels less than one pixel from the straight line to an offset, in the rectangle of its ends.
fn path(to: Offset) -> Vec<Offset> {
    let (down, right) = (to.0 as isize, to.1);
    let length = down * down + right * right;
    let near = |y: isize, x: isize| (down * x - right * y).pow(2) < length;
    let columns = right.min(0)..=right.max(0);
    (0..=down)
        .flat_map(|y| columns.clone().map(move |x| (y, x)))
        .filter(|&(y, x)| near(y, x))
        .map(|(y, x)| (y as usize, x))
        .collect()
}
