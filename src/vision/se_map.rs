//! From overlapping segments to a segment-everything map.

use std::collections::{BTreeSet, HashMap};

use super::mask::{BitMask, BoxXyxy};
use super::{Grid, SeMap};

/// Parameters of SamAutomaticMaskGenerator.
#[derive(Clone, Copy, Debug)]
pub struct AutomaticOptions {
    pub points_per_side: u32,
    pub pred_iou_thresh: f64,
    pub stability_score_thresh: f64,
    pub stability_score_offset: f64,
    pub box_nms_thresh: f64,
    /// Layers of crops: layer i has `2^i` x `2^i`; 0 = the whole image alone.
    pub crop_n_layers: u32,
    pub crop_nms_thresh: f64,
    /// How far neighbours of the first layer overlap, as a part of the image's shorter side.
    pub crop_overlap_ratio: f64,
    /// The points along a side are divided by this, layer by layer.
    pub crop_n_points_downscale_factor: u32,
    /// Holes and islands of fewer pixels go; 0 = none.
    pub min_mask_region_area: usize,
}

impl Default for AutomaticOptions {
    /// Those of the reference.
    fn default() -> Self {
        Self {
            points_per_side: 32,
            pred_iou_thresh: 0.88,
            stability_score_thresh: 0.95,
            stability_score_offset: 1.0,
            box_nms_thresh: 0.7,
            crop_n_layers: 0,
            crop_nms_thresh: 0.7,
            crop_overlap_ratio: 512.0 / 1500.0,
            crop_n_points_downscale_factor: 1,
            min_mask_region_area: 0,
        }
    }
}

/// What SAM was asked when it gave a mask, in pixels of the image.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Asked {
    /// The point that was the prompt, x and y.
    pub point: [f64; 2],
    /// The part of the image that SAM saw: x, y, width and height.
    pub crop_box: [usize; 4],
}

/// One mask with its scores.
#[derive(Clone, Debug, PartialEq)]
pub struct Segment {
    pub mask: BitMask,
    pub bounds: BoxXyxy,
    /// Pixels.
    pub area: usize,
    pub predicted_iou: f32,
    pub stability_score: f32,
    pub asked: Asked,
}

impl Segment {
    pub fn new(mask: BitMask, predicted_iou: f32, stability_score: f32, asked: Asked) -> Self {
        Self { bounds: mask.bounds(), area: mask.area(), mask, predicted_iou, stability_score, asked }
    }

    /// The same scores and prompt for another mask.
    pub fn with_mask(&self, mask: BitMask) -> Self {
        Self::new(mask, self.predicted_iou, self.stability_score, self.asked)
    }

    /// Overlap as non-maximum suppression measures it: that of the boxes. A box from its first to its last pixel has no
    /// area where the mask is one pixel wide or high, and two of these have no IoU (0/0; the reference keeps all such
    /// masks, so that a picture of one pixel has the same one many times): there the masks themselves are compared.
    pub fn overlap(&self, other: &Self) -> f64 {
        let of_boxes = f64::from(self.bounds.iou(&other.bounds));
        if of_boxes.is_nan() { self.mask.iou(&other.mask) } else { of_boxes }
    }
}

/// Non-maximum suppression as in torchvision: the segments that stay, the best score first; equal scores keep their
/// order. See [`Segment::overlap`] for the one difference.
pub fn nms(segments: Vec<Segment>, scores: &[f32], threshold: f64) -> Vec<Segment> {
    let mut order: Vec<(f32, Segment)> = scores.iter().copied().zip(segments).collect();
    order.sort_by(|(a, _), (b, _)| b.total_cmp(a));
    let mut kept: Vec<Segment> = Vec::new();
    for (_, segment) in order {
        if kept.iter().all(|better| better.overlap(&segment) <= threshold) {
            kept.push(segment);
        }
    }
    kept
}

/// Which of several masks a pixel belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnTop {
    /// The smallest; of equals the higher predicted IoU, then the first.
    Smallest,
    /// The one with the highest predicted IoU, then the first.
    HighestIou,
}

/// Paints segments into one map; the id of a segment is its place in the list, from 1.
pub fn paint(segments: &[Segment], height: usize, width: usize, on_top: OnTop) -> SeMap {
    let mut order: Vec<usize> = (0..segments.len().min(usize::from(u16::MAX))).collect();
    // The best first (a stable sort keeps the list's order among equals); painted last.
    let iou = |i: usize| segments[i].predicted_iou;
    order.sort_by(|&a, &b| match on_top {
        OnTop::Smallest => segments[a].area.cmp(&segments[b].area).then(iou(b).total_cmp(&iou(a))),
        OnTop::HighestIou => iou(b).total_cmp(&iou(a)),
    });
    let mut map = Grid::filled(height, width, 0u16);
    for i in order.into_iter().rev() {
        for (y, columns) in segments[i].mask.runs() {
            map.data[y * width + columns.start..y * width + columns.end].fill(i as u16 + 1);
        }
    }
    map
}

/// Ids without gaps, in order of their first appearance; 0 stays 0.
pub fn compact(map: &SeMap) -> SeMap {
    let mut ids = HashMap::from([(0, 0)]);
    map.map(|id| {
        let next = ids.len() as u16;
        *ids.entry(id).or_insert(next)
    })
}

/// The last id first: from the order of [`paint`] to one that grows with the predicted IoU; 0 stays 0.
pub fn reversed(map: &SeMap) -> SeMap {
    let last = map.data.iter().copied().max().unwrap_or(0);
    map.map(|id| if id == 0 { 0 } else { last - id + 1 })
}

/// Each id as its rank among all of the map, from 0: where no pixel is 0, the lowest id becomes 0.
pub fn ranks(map: &SeMap) -> SeMap {
    let ids: Vec<u16> = BTreeSet::from_iter(map.data.iter().copied()).into_iter().collect();
    map.map(|id| ids.partition_point(|known| *known < id) as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(mask: &[u8], predicted_iou: f32) -> Segment {
        Segment::new(BitMask::of_bytes(2, 3, mask), predicted_iou, 1.0, Asked::default())
    }

    #[test]
    fn overlap_rules() {
        let large = segment(&[1, 1, 1, 1, 1, 0], 0.99);
        let small = segment(&[0, 1, 1, 0, 0, 0], 0.90);
        let equal = segment(&[0, 0, 1, 0, 0, 1], 0.95);
        let segments = [large, equal, small];
        assert_eq!(paint(&segments, 2, 3, OnTop::Smallest).data, [1, 3, 2, 1, 1, 2]);
        assert_eq!(paint(&segments, 2, 3, OnTop::HighestIou).data, [1, 1, 1, 1, 1, 2]);
        assert_eq!(paint(&[], 2, 3, OnTop::Smallest).data, [0; 6]);
    }

    #[test]
    fn ids_in_another_order() {
        let map = Grid::new(1, 5, vec![7, 3, 7, 0, 4]);
        assert_eq!(compact(&map).data, [1, 2, 1, 0, 3]);
        assert_eq!(reversed(&map).data, [1, 5, 1, 0, 4]);
        assert_eq!(ranks(&map).data, [3, 1, 3, 0, 2]);
        assert_eq!(ranks(&map.map(|id| id.max(3))).data, [2, 0, 2, 0, 1], "no pixel is 0: the lowest id is lost");
    }

    #[test]
    fn suppression_keeps_the_better_of_two() {
        let of = |x0: usize, x1: usize| {
            let mut mask = BitMask::empty(11, 11);
            (0..11).for_each(|y| mask.fill(y, x0..x1 + 1));
            Segment::new(mask, 1.0, 1.0, Asked::default())
        };
        let segments = [of(0, 10), of(1, 10), of(5, 10)];
        let kept = |threshold: f64| {
            let kept = nms(segments.to_vec(), &[0.8, 0.9, 0.7], threshold);
            kept.iter().map(|segment| segment.bounds.x0 as usize).collect::<Vec<_>>()
        };
        assert_eq!(kept(0.7), [1, 5]);
        assert_eq!(kept(0.95), [1, 0, 5]);
    }

    #[test]
    fn equal_masks_without_an_area_of_their_box_are_one() {
        let line = |height: usize, width: usize, inside: &[usize]| {
            let bytes: Vec<u8> = (0..height * width).map(|i| u8::from(inside.contains(&i))).collect();
            Segment::new(BitMask::of_bytes(height, width, &bytes), 1.0, 1.0, Asked::default())
        };
        let column: Vec<usize> = (0..64).collect();
        #[rustfmt::skip]
        let cases = [
            // name                      masks                                                       kept
            ("one pixel",                vec![line(1, 1, &[0]); 16],                                  1),
            ("a row",                    vec![line(1, 2, &[0, 1]), line(1, 2, &[0, 1])],              1),
            ("another pixel of it",      vec![line(1, 2, &[0, 1]), line(1, 2, &[0])],                 2),
            ("a column",                 vec![line(64, 1, &column); 3],                               1),
            ("nearly that column",       vec![line(64, 1, &column), line(64, 1, &column[1..])],       1),
            ("half of that column",      vec![line(64, 1, &column), line(64, 1, &column[32..])],      2),
            ("two rows, one pixel each", vec![line(2, 2, &[0]), line(2, 2, &[3])],                    2),
            ("beside a box of area",     vec![line(2, 2, &[0, 1, 2, 3]), line(2, 2, &[0])],           2),
        ];
        for (name, masks, kept) in cases {
            let scores = vec![0.9; masks.len()];
            assert_eq!(nms(masks, &scores, 0.7).len(), kept, "{name}");
        }
    }
}
