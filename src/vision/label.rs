//! From CAM to label map: the one place where foreground channels become class ids.

use super::metric::best;
use super::{Cam, Grid, IGNORE, LabelMap, SeMap};

/// The best class where it scores above `threshold`, else background.
pub fn from_cam(cam: &Cam, threshold: f32) -> LabelMap {
    let pixels = cam.height * cam.width;
    let label = |i: usize| {
        let (class, score) = best(cam, pixels, i);
        if score > threshold { class } else { 0 }
    };
    Grid::new(cam.height, cam.width, (0..pixels).map(label).collect())
}

/// Each segment takes the label most of its pixels have (of equals the lowest); pixels in no segment keep theirs.
pub fn segment_vote(labels: &LabelMap, segments: &SeMap) -> LabelMap {
    let n_segments = segments.data.iter().max().map_or(0, |&id| usize::from(id)) + 1;
    let mut votes = vec![[0u32; 256]; n_segments];
    for (&label, &id) in labels.data.iter().zip(&segments.data) {
        votes[usize::from(id)][usize::from(label)] += 1;
    }
    let winner = |votes: &[u32; 256]| (0..=IGNORE).rev().max_by_key(|&label| votes[usize::from(label)]).unwrap_or(0);
    let winners: Vec<u8> = votes.iter().map(winner).collect();
    let label = |(&label, &id): (&u8, &u16)| if id == 0 { label } else { winners[usize::from(id)] };
    Grid::new(labels.height, labels.width, labels.data.iter().zip(&segments.data).map(label).collect())
}

/// Labels to learn affinities from (IRN): `strict` has few pixels of classes, those that are certain, `lenient` has
/// few of background; where `strict` has background and `lenient` a class, a pixel is ignored.
pub fn confident(strict: &LabelMap, lenient: &LabelMap) -> LabelMap {
    both(strict, lenient, |strict, lenient| match (strict, lenient) {
        (0, 0) => 0,
        (0, _) => IGNORE,
        (class, _) => class,
    })
}

/// The same as AffinityNet (PSA) has it: what `lenient` calls background is background whatever `strict` says.
pub fn confident_psa(strict: &LabelMap, lenient: &LabelMap) -> LabelMap {
    both(strict, lenient, |strict, lenient| match (strict, lenient) {
        (_, 0) => 0,
        (0, _) => IGNORE,
        (class, _) => class,
    })
}

fn both(strict: &LabelMap, lenient: &LabelMap, label: impl Fn(u8, u8) -> u8) -> LabelMap {
    let label = |(&strict, &lenient): (&u8, &u8)| label(strict, lenient);
    Grid::new(strict.height, strict.width, strict.data.iter().zip(&lenient.data).map(label).collect())
}

/// SEPL (Chen, Mai, Li and Chao 2023, their `max_iou_imp2`) with segments as masks. Class by class, in order: its pixels,
/// over those of classes before, are those of the segments no other class has taken of which more than half is of the
/// class or which hold 85 % of it, and its own outside all segments that were not taken before.
pub fn sepl(labels: &LabelMap, segments: &SeMap) -> LabelMap {
    let n_segments = segments.data.iter().max().map_or(0, |&id| usize::from(id)) + 1;
    let mut areas = vec![0u64; n_segments];
    segments.data.iter().for_each(|&id| areas[usize::from(id)] += 1);
    let mut refined = labels.map(|_| 0);
    let mut free = vec![true; n_segments];
    free[0] = false;
    for class in (1..IGNORE).filter(|class| labels.data.contains(class)) {
        let mut inside = vec![0u64; n_segments];
        let pixels = labels.data.iter().zip(&segments.data);
        pixels.clone().filter(|(label, _)| **label == class).for_each(|(_, &id)| inside[usize::from(id)] += 1);
        let area: u64 = inside.iter().sum();
        let takes = |id: usize| free[id] && (2 * inside[id] > areas[id] || 100 * inside[id] >= 85 * area);
        let taken: Vec<bool> = (0..n_segments).map(takes).collect();
        for (refined, (&label, &id)) in refined.data.iter_mut().zip(pixels) {
            let id = usize::from(id);
            if taken[id] || label == class && !free[id] {
                *refined = class;
            }
        }
        free.iter_mut().zip(taken).for_each(|(free, taken)| *free &= !taken);
    }
    refined
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn background_wins_at_the_threshold() {
        let cam = Cam { classes: vec![3, 8], height: 1, width: 4, data: vec![0.5, 0.6, 0.2, 0.0, 0.1, 0.6, 0.9, 0.0] };
        assert_eq!(from_cam(&cam, 0.5).data, [0, 3, 8, 0]);
        assert_eq!(from_cam(&cam, 0.0).data, [3, 3, 8, 0]);
    }

    #[test]
    fn segments_vote() {
        let labels = Grid::new(1, 6, vec![1, 1, 0, 0, 2, 5]);
        let segments = Grid::new(1, 6, vec![7, 7, 7, 2, 2, 0]);
        assert_eq!(segment_vote(&labels, &segments).data, [1, 1, 1, 0, 0, 5]);
    }

    #[test]
    fn what_is_neither_certain_nor_background_is_ignored() {
        let [strict, lenient] = [[0, 3, 0, 3], [0, 3, 3, 0]].map(|data| Grid::new(1, 4, data.to_vec()));
        assert_eq!(confident(&strict, &lenient).data, [0, 3, IGNORE, 3]);
        assert_eq!(confident_psa(&strict, &lenient).data, [0, 3, IGNORE, 0]);
    }

    #[test]
    fn segments_are_taken_by_most_of_theirs_or_most_of_the_class() {
        #[rustfmt::skip]
        let cases: [(&str, &[u8], &[u16], &[u8]); 7] = [
            // name                          labels               segments             expected
            ("more than half",               &[3, 3, 0, 0, 3, 0], &[1, 1, 1, 2, 2, 2], &[3, 3, 3, 0, 0, 0]),
            ("half is not enough",           &[3, 0, 3, 3],       &[1, 1, 0, 0],       &[0, 0, 3, 3]),
            ("it holds most of the class",   &[3, 0, 0, 0, 0, 0], &[1, 1, 1, 1, 1, 2], &[3, 3, 3, 3, 3, 0]),
            ("no segment: as it was",        &[3, 0, 3, 4],       &[0, 0, 0, 0],       &[3, 0, 3, 4]),
            ("what a class took is taken",   &[1, 1, 1, 2, 2],    &[5, 5, 5, 5, 0],    &[1, 1, 1, 2, 2]),
            ("taken whole, but for a later", &[1, 1, 1, 0, 2],    &[5, 5, 5, 5, 5],    &[1, 1, 1, 1, 2]),
            ("ignored pixels are no class",  &[IGNORE, 1, 1],     &[1, 1, 1],          &[1, 1, 1]),
        ];
        for (name, labels, segments, expected) in cases {
            let labels = Grid::new(1, labels.len(), labels.to_vec());
            let segments = Grid::new(1, segments.len(), segments.to_vec());
            assert_eq!(sepl(&labels, &segments).data, expected, "{name}");
        }
    }
}
