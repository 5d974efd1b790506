//! Scores by pixel: of label maps, and of CAM seeds at every threshold in one pass.

use serde::{Deserialize, Serialize};

use super::{Cam, IGNORE, LabelMap};

/// Pixels by truth and prediction.
#[derive(Clone, Debug, PartialEq)]
pub struct ConfusionMatrix {
    n_classes: usize,
    /// `[truth * n_classes + prediction]`
    counts: Vec<u64>,
}

/// Scores of a set, 0 to 1. `None`: a class neither predicted nor in the truth.
///
/// With `n[t][p]` pixels of truth `t` predicted as `p` (Long, Shelhamer, Darrell: Fully convolutional networks for
/// semantic segmentation, CVPR 2015). Means are over the classes that the truth has.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Scores {
    pub miou: f64,
    /// IoU: `n[c][c] / (truth of c + predicted as c - n[c][c])`.
    pub per_class: Vec<Option<f64>>,
    /// Of all pixels.
    pub pixel_accuracy: f64,
    /// The mean of `recall`.
    pub mean_accuracy: f64,
    /// The mean of `precision`.
    pub mean_precision: f64,
    /// IoU weighed by the pixels of the truth.
    pub fw_iou: f64,
    /// `n[c][c] / predicted as c`; 0 where nothing is and the truth has the class.
    pub precision: Vec<Option<f64>>,
    /// `n[c][c] / truth of c`; `None`: the truth does not have the class.
    pub recall: Vec<Option<f64>>,
    /// Pixels, a row for each class of the truth.
    pub confusion: Vec<Vec<u64>>,
}

impl Scores {
    /// Means over background and the given labels instead of all that the truth has; none given: as it is.
    pub fn over(self, labels: &[u8]) -> Self {
        if labels.is_empty() {
            return self;
        }
        let mean = |values: &[Option<f64>]| self.mean_over(labels, values);
        let (miou, mean_precision, mean_accuracy) = (mean(&self.per_class), mean(&self.precision), mean(&self.recall));
        Self { miou, mean_precision, mean_accuracy, ..self }
    }

    /// The mean of values by class over background and the given labels; none given: over the classes that the truth
    /// has.
    pub fn mean_over(&self, labels: &[u8], values: &[Option<f64>]) -> f64 {
        let value = |class: usize| values.get(class).copied().flatten();
        let values: Vec<f64> = match labels {
            [] => (0..values.len()).filter(|&class| self.recall[class].is_some()).filter_map(value).collect(),
            _ => std::iter::once(0).chain(labels.iter().map(|&label| usize::from(label))).filter_map(value).collect(),
        };
        values.iter().sum::<f64>() / values.len().max(1) as f64
    }
}

impl ConfusionMatrix {
    /// `n_classes` with background.
    pub fn new(n_classes: usize) -> Self {
        Self { n_classes, counts: vec![0; n_classes * n_classes] }
    }

    /// Counts two maps of one size; ignored pixels of the truth are left out. A prediction that is no class (ignored)
    /// counts as background.
    pub fn add(&mut self, prediction: &LabelMap, truth: &LabelMap) {
        for (&predicted, &truth) in prediction.data.iter().zip(&truth.data) {
            let (predicted, truth) = (usize::from(predicted), usize::from(truth));
            if truth < self.n_classes {
                let predicted = if predicted < self.n_classes { predicted } else { 0 };
                self.counts[truth * self.n_classes + predicted] += 1;
            }
        }
    }

    pub fn merge(mut self, other: &Self) -> Self {
        self.counts.iter_mut().zip(&other.counts).for_each(|(a, b)| *a += b);
        self
    }

    pub fn scores(&self) -> Scores {
        let n = self.n_classes;
        let of = |class: usize| {
            let hit = self.counts[class * n + class];
            let truth: u64 = self.counts[class * n..(class + 1) * n].iter().sum();
            let predicted: u64 = (0..n).map(|t| self.counts[t * n + class]).sum();
            (hit, truth, predicted)
        };
        let (mut per_class, mut precision, mut recall) = (Vec::new(), Vec::new(), Vec::new());
        let (mut hits, mut pixels, mut weighed) = (0, 0, 0.0);
        for (hit, truth, predicted) in (0..n).map(of) {
            let union = truth + predicted - hit;
            let iou = (union > 0).then(|| hit as f64 / union as f64);
            per_class.push(iou);
            precision.push(iou.map(|_| hit as f64 / predicted.max(1) as f64));
            recall.push((truth > 0).then(|| hit as f64 / truth as f64));
            weighed += truth as f64 * iou.unwrap_or(0.0);
            hits += hit;
            pixels += truth;
        }
        let part = |sum: f64| if pixels > 0 { sum / pixels as f64 } else { 0.0 };
        let (pixel_accuracy, fw_iou) = (part(hits as f64), part(weighed));
        let confusion = self.counts.chunks(n.max(1)).map(<[u64]>::to_vec).collect();
        let scores = Scores { per_class, pixel_accuracy, fw_iou, precision, recall, confusion, ..Scores::default() };
        let mean = |values: &[Option<f64>]| scores.mean_over(&[], values);
        let (miou, mean_precision, mean_accuracy) =
            (mean(&scores.per_class), mean(&scores.precision), mean(&scores.recall));
        Scores { miou, mean_precision, mean_accuracy, ..scores }
    }
}

/// Thresholds are 0.00, 0.01, .. 1.00.
pub const N_THRESHOLDS: usize = 101;

/// Every threshold at once. A pixel is its best class where that scores above the threshold, else background; so
/// only the best class and its score matter, and a histogram of scores gives all thresholds exactly.
#[derive(Clone, Debug, PartialEq)]
pub struct ThresholdSweep {
    n_classes: usize,
    /// `[(truth * n_classes + best class) * N_THRESHOLDS + k]`: pixels that are foreground at the first `k`
    /// thresholds and background from there on (`k = 0..=N`).
    counts: Vec<u64>,
}

const N_BINS: usize = N_THRESHOLDS + 1;

fn threshold(i: usize) -> f32 {
    i as f32 / 100.0
}

impl ThresholdSweep {
    /// `n_classes` with background.
    pub fn new(n_classes: usize) -> Self {
        Self { n_classes, counts: vec![0; n_classes * n_classes * N_BINS] }
    }

    /// Counts one image; `cam` and `truth` of one size.
    pub fn add(&mut self, cam: &Cam, truth: &LabelMap) {
        let pixels = cam.height * cam.width;
        for (i, &truth) in truth.data.iter().enumerate() {
            if truth == IGNORE || usize::from(truth) >= self.n_classes {
                continue;
            }
            let (class, score) = best(cam, pixels, i);
            // The number of thresholds below the score; the guess may be off by one.
            let mut below = ((score * 100.0) as usize).min(N_THRESHOLDS);
            while below > 0 && threshold(below - 1) >= score {
                below -= 1;
            }
            while below < N_THRESHOLDS && threshold(below) < score {
                below += 1;
            }
            self.counts[(usize::from(truth) * self.n_classes + usize::from(class)) * N_BINS + below] += 1;
        }
    }

    pub fn merge(mut self, other: &Self) -> Self {
        self.counts.iter_mut().zip(&other.counts).for_each(|(a, b)| *a += b);
        self
    }

    /// The scores at every threshold, in order.
    pub fn scores(&self) -> Vec<(f64, Scores)> {
        let n = self.n_classes;
        let at = |i: usize| {
            let mut matrix = ConfusionMatrix::new(n);
            for truth in 0..n {
                for class in 0..n {
                    let bins = &self.counts[(truth * n + class) * N_BINS..][..N_BINS];
                    let background: u64 = bins[..=i].iter().sum();
                    let foreground: u64 = bins[i + 1..].iter().sum();
                    matrix.counts[truth * n] += background;
                    matrix.counts[truth * n + class] += foreground;
                }
            }
            (i as f64 / 100.0, matrix.scores())
        };
        (0..N_THRESHOLDS).map(at).collect()
    }
}

/// The best class of a pixel and its score; of equals the lowest class.
pub(super) fn best(cam: &Cam, pixels: usize, i: usize) -> (u8, f32) {
    let mut best = (0, 0.0);
    for (channel, &class) in cam.classes.iter().enumerate() {
        let score = cam.data[channel * pixels + i];
        if score > best.1 {
            best = (class, score);
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vision::Grid;
    use crate::vision::label::from_cam;

    fn map(data: &[u8]) -> LabelMap {
        Grid::new(1, data.len(), data.to_vec())
    }

    #[test]
    fn iou_of_class_1() {
        #[rustfmt::skip]
        let cases: [(&str, &[u8], &[u8], Option<f64>); 5] = [
            // name              prediction    truth             expected
            ("agree",            &[0, 1, 1],   &[0, 1, 1],       Some(1.0)),
            ("half",             &[0, 1, 1],   &[0, 1, 0],       Some(0.5)),
            ("disjoint",         &[1, 0, 0],   &[0, 1, 0],       Some(0.0)),
            ("ignored pixel",    &[1, 1, 1],   &[1, IGNORE, 1],  Some(1.0)),
            ("absent from both", &[0, 0, 2],   &[0, 2, 2],       None),
        ];
        for (name, prediction, truth, expected) in cases {
            let mut matrix = ConfusionMatrix::new(3);
            matrix.add(&map(prediction), &map(truth));
            assert_eq!(matrix.scores().per_class[1], expected, "{name}");
        }
    }

    /// The sweep equals making a label map at every threshold.
    #[test]
    fn one_pass_is_every_threshold() {
        let n = 4000;
        let mut state = 1u32;
        let mut random = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 24) as f32
        };
        // Many scores lie on a threshold exactly.
        let data = (0..2 * n).map(|i| if i % 3 == 0 { (random() * 100.0).floor() / 100.0 } else { random() }).collect();
        let cam = Cam { classes: vec![1, 3], height: 1, width: n, data };
        let truth: Vec<u8> = (0..n).map(|_| [0, 1, 2, 3, IGNORE][(random() * 5.0) as usize]).collect();
        let truth = map(&truth);
        let mut sweep = ThresholdSweep::new(4);
        sweep.add(&cam, &truth);
        for (threshold, scores) in sweep.scores() {
            let mut matrix = ConfusionMatrix::new(4);
            matrix.add(&from_cam(&cam, threshold as f32), &truth);
            assert_eq!(matrix.scores(), scores, "{threshold}");
        }
    }

    #[test]
    fn the_sum_of_parts_is_the_whole() {
        let (a, b) = ((map(&[0, 1, 2]), map(&[0, 2, 2])), (map(&[1, 1]), map(&[1, 0])));
        let mut whole = ConfusionMatrix::new(3);
        let part = |(prediction, truth): &(LabelMap, LabelMap)| {
            let mut part = ConfusionMatrix::new(3);
            part.add(prediction, truth);
            part
        };
        whole.add(&a.0, &a.1);
        whole.add(&b.0, &b.1);
        assert_eq!(part(&a).merge(&part(&b)), whole);
    }
}
