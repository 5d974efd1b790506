//! Local maxima of a CAM channel: the prompts of CPM (S2C_FACTS 2.1, rows 13 to 18, "recommended").

use super::Peak;

/// Peaks with a score of at least `tau`, the highest first, two of them at least `min_distance` apart (Chebyshev);
/// of equal scores the first in row-major order. `plane`: row-major.
pub fn find_peaks(plane: &[f32], width: usize, tau: f32, min_distance: usize) -> Vec<Peak> {
    let height = plane.len() / width.max(1);
    let is_maximum = |y: usize, x: usize| {
        let score = plane[y * width + x];
        let rows = y.saturating_sub(1)..(y + 2).min(height);
        rows.flat_map(|row| &plane[row * width + x.saturating_sub(1)..row * width + (x + 2).min(width)])
            .all(|&other| other <= score)
    };
    let mut found = Vec::new();
    for y in 0..height {
        for x in 0..width {
            let score = plane[y * width + x];
            if score > 0.0 && score >= tau && is_maximum(y, x) {
                found.push(Peak { y, x, score });
            }
        }
    }
    found.sort_by(|a, b| b.score.total_cmp(&a.score));
    let mut kept: Vec<Peak> = Vec::new();
    for peak in found {
        let apart = |other: &Peak| peak.y.abs_diff(other.y).max(peak.x.abs_diff(other.x)) >= min_distance;
        if kept.iter().all(apart) {
            kept.push(peak);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plane(peaks: &[(usize, usize, f32)]) -> Vec<f32> {
        let mut plane = vec![0.0; 100];
        peaks.iter().for_each(|&(y, x, score)| plane[y * 10 + x] = score);
        plane
    }

    #[test]
    fn rules() {
        #[rustfmt::skip]
        let cases: [(&str, &[(usize, usize, f32)], &[(usize, usize)]); 5] = [
            ("highest first",         &[(0, 0, 0.6), (9, 9, 0.9)],               &[(9, 9), (0, 0)]),
            ("below tau",             &[(0, 0, 0.4), (9, 9, 0.9)],               &[(9, 9)]),
            ("too near",              &[(5, 5, 0.9), (5, 8, 0.8)],               &[(5, 5)]),
            ("a plateau counts once", &[(5, 5, 0.9), (5, 6, 0.9)],               &[(5, 5)]),
            ("nothing",               &[],                                        &[]),
        ];
        for (name, peaks, expected) in cases {
            let found: Vec<_> = find_peaks(&plane(peaks), 10, 0.5, 4).iter().map(|peak| (peak.y, peak.x)).collect();
            assert_eq!(found, expected, "{name}");
        }
    }
}
