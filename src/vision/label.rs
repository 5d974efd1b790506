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
}
