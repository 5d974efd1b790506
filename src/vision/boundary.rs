//! Boundary F-score of label maps (Csurka, Larlus, Perronnin, Meylan: What is a good evaluation measure for semantic
//! segmentation?, BMVC 2013).

use super::{IGNORE, LabelMap};

/// How far a boundary may be off, as a part of the image's diagonal.
const TOLERANCE: f64 = 0.0075;

/// The F-score of each class that has a boundary in either map, ascending.
///
/// A boundary pixel of a class has a neighbour (above, below, left or right, within the image) of another label; an
/// ignored neighbour is one, and ignored pixels have no class. Precision is the part of the predicted boundary nearer
/// than the tolerance to the true one, recall the part of the true boundary nearer than that to the predicted one
/// (Euclidean), and the F-score is `2 P R / (P + R)`, 0 where a map lacks the class.
///
/// - `prediction`, `truth`: maps of one size; a predicted label that is no class counts as background
/// - `n_classes`: with background
pub fn boundary_f(prediction: &LabelMap, truth: &LabelMap, n_classes: usize) -> Vec<(u8, f64)> {
    let known = |label: u8| usize::from(label) < n_classes;
    let predicted = boundaries(&prediction.map(|label| if known(label) { label } else { 0 }), n_classes);
    let actual = boundaries(&truth.map(|label| if known(label) { label } else { IGNORE }), n_classes);
    let mut near = Near::new(truth.height, truth.width);
    let mut score = |class: usize| {
        let (predicted, actual) = (&predicted[class], &actual[class]);
        let precision = near.part_of(predicted, actual);
        let recall = near.part_of(actual, predicted);
        let f = if precision + recall > 0.0 { 2.0 * precision * recall / (precision + recall) } else { 0.0 };
        (!predicted.is_empty() || !actual.is_empty()).then_some((class as u8, f))
    };
    (0..n_classes).filter_map(&mut score).collect()
}

/// The boundary pixels of each class, y and x.
fn boundaries(map: &LabelMap, n_classes: usize) -> Vec<Vec<(usize, usize)>> {
    let mut found = vec![Vec::new(); n_classes];
    for y in 0..map.height {
        for x in 0..map.width {
            let label = map.at(y, x);
            let differs = |y: usize, x: usize| y < map.height && x < map.width && map.at(y, x) != label;
            let around = [(y.wrapping_sub(1), x), (y + 1, x), (y, x.wrapping_sub(1)), (y, x + 1)];
            if usize::from(label) < n_classes && around.into_iter().any(|(y, x)| differs(y, x)) {
                found[usize::from(label)].push((y, x));
            }
        }
    }
    found
}

/// Pixels nearer than the tolerance to a boundary.
struct Near {
    height: usize,
    width: usize,
    disc: Vec<(isize, isize)>,
    /// The round in which a pixel was last near.
    round_of: Vec<u32>,
    round: u32,
}

impl Near {
    fn new(height: usize, width: usize) -> Self {
        let tolerance = TOLERANCE * (height as f64).hypot(width as f64);
        let reach = tolerance as isize;
        let offsets = (-reach..=reach).flat_map(|dy| (-reach..=reach).map(move |dx| (dy, dx)));
        let disc = offsets.filter(|&(dy, dx)| (dy as f64).hypot(dx as f64) < tolerance).collect();
        Self { height, width, disc, round_of: vec![0; height * width], round: 0 }
    }

    /// The part of some pixels that are near to others; 0 of none.
    fn part_of(&mut self, pixels: &[(usize, usize)], others: &[(usize, usize)]) -> f64 {
        self.round += 1;
        for &(y, x) in others {
            for &(dy, dx) in &self.disc {
                let (y, x) = (y.wrapping_add_signed(dy), x.wrapping_add_signed(dx));
                if y < self.height && x < self.width {
                    self.round_of[y * self.width + x] = self.round;
                }
            }
        }
        let n_near = pixels.iter().filter(|(y, x)| self.round_of[y * self.width + x] == self.round).count();
        n_near as f64 / pixels.len().max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A square of class 1 in an image whose tolerance is between 1 and 2 pixels.
    fn square(x0: usize, side: usize) -> LabelMap {
        let mut map = LabelMap::filled(120, 120, 0);
        for y in 20..20 + side {
            (x0..x0 + side).for_each(|x| map.data[y * 120 + x] = 1);
        }
        map
    }

    #[test]
    fn a_shift_within_the_tolerance_costs_nothing() {
        assert_eq!(boundary_f(&square(21, 40), &square(20, 40), 3), [(0, 1.0), (1, 1.0)]);
        let apart = boundary_f(&square(24, 40), &square(20, 40), 3);
        assert!(apart.iter().all(|(_, f)| *f > 0.4 && *f < 0.6), "{apart:?}");
    }

    #[test]
    fn a_class_in_one_map_alone_scores_0_and_one_without_a_boundary_nothing() {
        let empty = LabelMap::filled(120, 120, 0);
        assert_eq!(boundary_f(&empty, &empty, 3), []);
        assert_eq!(boundary_f(&square(20, 40), &empty, 3), [(0, 0.0), (1, 0.0)]);
        // What is ignored in the prediction is background.
        let ignored = square(20, 40).map(|label| if label == 0 { IGNORE } else { label });
        assert_eq!(boundary_f(&ignored, &square(20, 40), 3), [(0, 1.0), (1, 1.0)]);
        // Ignored pixels of the truth have no boundary of their own.
        assert_eq!(boundary_f(&square(20, 40), &ignored, 3), [(0, 0.0), (1, 1.0)]);
    }
}
