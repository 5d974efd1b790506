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
pub type Offset = (usize, isize);

/// The half-plane of offsets nearer than `radius`, in the order of the references.
pub fn offsets(radius: usize) -> Vec<Offset> {
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
    pub fn walk(&self, scores: &[f32], beta: f64, steps: usize) -> Vec<f32> {
        let pixels = self.height * self.width;
        // f64, since hundreds of steps add up what each rounds.
        let power = |(offset, values): &(Offset, Vec<f32>)| {
            (moved(0, *offset, self.width), values.iter().map(|&a| f64::from(a).powf(beta)).collect())
        };
        let powers: Vec<(usize, Vec<f64>)> = self.pairs.iter().map(power).collect();
        let sums = spread(&powers, &vec![1.0; pixels]);
        let walked = scores.chunks_exact(pixels.max(1)).flat_map(|channel| {
            let mut channel: Vec<f64> = channel.iter().copied().map(f64::from).collect();
            for _ in 0..steps {
                channel = spread(&powers, &channel);
                channel.iter_mut().zip(&sums).for_each(|(score, sum)| *score /= sum);
            }
            channel
        });
        walked.map(|score| score as f32).collect()
    }
}

/// The product with the symmetric matrix that has 1 with itself and these values with the pixel so much later. Where that
/// is beyond a border the value is 0, so rows may be taken as one line.
fn spread(powers: &[(usize, Vec<f64>)], channel: &[f64]) -> Vec<f64> {
    let mut out = channel.to_vec();
    for (shift, values) in powers {
        let n = channel.len().saturating_sub(*shift);
        let (values, late) = (&values[..n], &channel[channel.len() - n..]);
        out.iter_mut().zip(values).zip(late).for_each(|((out, value), other)| *out += value * other);
        let out = out[channel.len() - n..].iter_mut();
        out.zip(values).zip(channel).for_each(|((out, value), other)| *out += value * other);
    }
    out
}

/// From one pixel to another; offsets of the half-plane only go on.
fn moved(p: usize, (down, right): Offset, width: usize) -> usize {
    (p + down * width).wrapping_add_signed(right)
}

/// The pixels less than one pixel from the straight line to an offset, in the rectangle of its ends.
pub fn path(to: Offset) -> Vec<Offset> {
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
