//! What a CRF starts from: the probabilities of an image's labels, from CAMs, from a label map, from a network.

use crate::vision::{Cam, IGNORE, LabelMap, ScoreMap};

/// Log-probabilities up to a constant of each pixel.
#[derive(Clone, Debug, PartialEq)]
pub struct Unary {
    /// Label of each channel.
    pub labels: Vec<u8>,
    pub height: usize,
    pub width: usize,
    /// `labels.len() * height * width`.
    pub data: Vec<f32>,
}

/// Probabilities below it count as it.
pub const LEAST: f32 = 1e-5;

/// Of scores 0 to 1 by label, which need not add up to 1.
pub fn from_scores(scores: ScoreMap) -> Unary {
    let ScoreMap { labels, height, width, data } = scores;
    let data = data.into_iter().map(|score| score.clamp(LEAST, 1.0).ln()).collect();
    Unary { labels, height, width, data }
}

/// Of CAMs: background scores `(1 - the best class)^alpha` (PSA, S2C).
pub fn from_cam(cam: &Cam, alpha: f32) -> Unary {
    let pixels = cam.height * cam.width;
    let best =
        |i: usize| (0..cam.classes.len()).fold(0.0, |best: f32, channel| best.max(cam.data[channel * pixels + i]));
    let background = (0..pixels).map(|i| (1.0 - best(i)).max(0.0).powf(alpha));
    let data = background.chain(cam.data.iter().copied()).collect();
    let labels = std::iter::once(0).chain(cam.classes.iter().copied()).collect();
    from_scores(ScoreMap { labels, height: cam.height, width: cam.width, data })
}

/// Of a label map that is right with a probability of `certainty`, the others sharing the rest; an ignored pixel may
/// be anything (IRN).
pub fn from_labels(map: &LabelMap, certainty: f32) -> Unary {
    let mut labels: Vec<u8> = (0..IGNORE).filter(|label| map.data.contains(label)).collect();
    if labels.is_empty() {
        labels.push(0);
    }
    from_labels_among(map, labels, certainty)
}

/// The same where `labels` share what is left of each pixel, whether the map has them or not (as IRN before it learns).
pub fn from_labels_among(map: &LabelMap, labels: Vec<u8>, certainty: f32) -> Unary {
    let certainty = if labels.len() > 1 { certainty } else { 1.0 };
    let n = labels.len() as f32;
    let (right, wrong, any) = (certainty.ln(), ((1.0 - certainty) / (n - 1.0)).ln(), (1.0 / n).ln());
    let of = |label: u8| {
        map.data.iter().map(move |&at| match at {
            IGNORE => any,
            at if at == label => right,
            _ => wrong,
        })
    };
    let data = labels.iter().flat_map(|&label| of(label)).collect();
    Unary { height: map.height, width: map.width, data, labels }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vision::Grid;

    #[test]
    fn what_is_ignored_may_be_anything() {
        let unary = from_labels(&Grid::new(1, 4, vec![0, 7, IGNORE, 2]), 0.7);
        let (right, wrong, any) = (0.7, 0.3 / 2.0, 1.0 / 3.0);
        assert_eq!(unary.labels, [0, 2, 7]);
        let expected = [right, wrong, any, wrong, wrong, wrong, any, right, wrong, right, any, wrong];
        for (found, expected) in unary.data.iter().zip(expected) {
            assert!((found.exp() - expected).abs() < 1e-6);
        }
        // One label, and it is certain; none, and it is background.
        assert_eq!(
            from_labels(&Grid::filled(1, 2, 5), 0.7),
            Unary { labels: vec![5], height: 1, width: 2, data: vec![0.0; 2] }
        );
        assert_eq!(from_labels(&Grid::filled(1, 2, IGNORE), 0.7).labels, [0]);
    }
}
