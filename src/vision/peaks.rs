//! Local maxima of a CAM channel: the points that prompt SAM (rows 13 to 18 of docs/presets.md).

use super::Peak;

/// Which pixels are peaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeakRules {
    /// Two peaks are at least this far apart (Chebyshev).
    pub min_distance: usize,
    /// Local maxima nearer to a border than `min_distance` do not count, but the highest score of all does.
    pub exclude_border: bool,
    /// Maxima are those of the plane itself, each in its own place. `false`: those within `min_distance` of the plane
    /// after a 3x3 maximum filter, so one pixel up and left of its own.
    pub exact: bool,
    pub first: FirstPeak,
}

/// How the highest score of all joins the local maxima.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FirstPeak {
    /// As the first of them, all held apart; a score of `tau` is enough.
    Dedup,
    /// Before them, whatever `tau` says, and their first is taken for it and dropped; they lie above `tau`.
    DropFirst,
}

/// Peaks by `tau`, the highest first, of equal scores the first in row-major order. `plane`: row-major, 0 and up.
pub fn find_peaks(plane: &[f32], width: usize, tau: f32, rules: &PeakRules) -> Vec<Peak> {
    let Some(top) = (0..plane.len()).reduce(|top, at| if plane[at] > plane[top] { at } else { top }) else {
        return Vec::new();
    };
    let top = Peak { y: top / width, x: top % width, score: plane[top] };
    let maxima = maxima(plane, width, rules);
    match rules.first {
        FirstPeak::Dedup => {
            let found = apart(std::iter::once(top).chain(maxima), rules.min_distance);
            found.into_iter().filter(|peak| peak.score > 0.0 && peak.score >= tau).collect()
        }
        FirstPeak::DropFirst => {
            let above = apart(maxima.into_iter(), rules.min_distance).into_iter().filter(|peak| peak.score > tau);
            std::iter::once(top).chain(above.skip(1)).collect()
        }
    }
}

/// Local maxima, the highest first.
fn maxima(plane: &[f32], width: usize, rules: &PeakRules) -> Vec<Peak> {
    let height = plane.len() / width;
    let (searched, radius) = match rules.exact {
        true => (plane.to_vec(), 1),
        false => (window_max(plane, width, 1), rules.min_distance),
    };
    let highest = window_max(&searched, width, radius);
    let floor = if rules.exact { 0.0 } else { searched.iter().copied().fold(f32::INFINITY, f32::min) };
    let border = if rules.exclude_border { rules.min_distance } else { 0 };
    let inside = |at: usize, side: usize| (border..side.saturating_sub(border)).contains(&at);
    let is_maximum = |&at: &usize| {
        searched[at] == highest[at] && searched[at] > floor && inside(at / width, height) && inside(at % width, width)
    };
    let mut found: Vec<usize> = (0..plane.len()).filter(is_maximum).collect();
    found.sort_by(|&a, &b| searched[b].total_cmp(&searched[a]));
    found.into_iter().map(|at| Peak { y: at / width, x: at % width, score: plane[at] }).collect()
}

/// Of peaks nearer to each other than `min_distance` the first.
fn apart(peaks: impl Iterator<Item = Peak>, min_distance: usize) -> Vec<Peak> {
    let mut kept: Vec<Peak> = Vec::new();
    for peak in peaks {
        let is_apart = |other: &Peak| peak.y.abs_diff(other.y).max(peak.x.abs_diff(other.x)) >= min_distance.max(1);
        if kept.iter().all(is_apart) {
            kept.push(peak);
        }
    }
    kept
}

/// The highest value of the square around each pixel, as far as it lies in the plane.
fn window_max(plane: &[f32], width: usize, radius: usize) -> Vec<f32> {
    let height = plane.len() / width;
    let around = |at: usize, side: usize| at.saturating_sub(radius)..(at + radius + 1).min(side);
    let max = |values: &mut dyn Iterator<Item = f32>| values.fold(f32::NEG_INFINITY, f32::max);
    let of_rows: Vec<f32> = plane
        .chunks_exact(width)
        .flat_map(|row| (0..width).map(move |x| max(&mut row[around(x, width)].iter().copied())))
        .collect();
    let of_column = |at: usize| max(&mut around(at / width, height).map(|y| of_rows[y * width + at % width]));
    (0..plane.len()).map(of_column).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plane(peaks: &[(usize, usize, f32)]) -> Vec<f32> {
        let mut plane = vec![0.0; 100];
        peaks.iter().for_each(|&(y, x, score)| plane[y * 10 + x] = score);
        plane
    }

    /// All rules together are tried in `tests/it/cpm.rs`.
    #[test]
    fn rules() {
        let exact = PeakRules { min_distance: 4, exclude_border: false, exact: true, first: FirstPeak::Dedup };
        let inner = PeakRules { exclude_border: true, ..exact };
        let dropped = PeakRules { first: FirstPeak::DropFirst, ..exact };
        let shifted = PeakRules { exact: false, ..exact };
        #[rustfmt::skip]
        let cases: [(&str, &PeakRules, &[(usize, usize, f32)], &[(usize, usize)]); 12] = [
            ("highest first",               &exact,   &[(0, 0, 0.6), (9, 9, 0.9)], &[(9, 9), (0, 0)]),
            ("below tau",                   &exact,   &[(0, 0, 0.4), (9, 9, 0.9)], &[(9, 9)]),
            ("at tau",                      &exact,   &[(0, 0, 0.5)],              &[(0, 0)]),
            ("too near",                    &exact,   &[(5, 5, 0.9), (5, 8, 0.8)], &[(5, 5)]),
            ("a plateau counts once",       &exact,   &[(5, 5, 0.9), (5, 6, 0.9)], &[(5, 5)]),
            ("nothing",                     &exact,   &[],                         &[]),
            ("the highest stays at a border", &inner, &[(0, 9, 0.9), (9, 0, 0.8)], &[(0, 9)]),
            ("another first is lost",       &PeakRules { exclude_border: true, ..dropped },
                                                      &[(0, 9, 0.9), (5, 4, 0.8)], &[(0, 9)]),
            ("its double is dropped",       &dropped, &[(0, 9, 0.9), (5, 4, 0.8)], &[(0, 9), (5, 4)]),
            ("above tau",                   &dropped, &[(0, 9, 0.9), (5, 4, 0.5)], &[(0, 9)]),
            ("whatever tau says",           &dropped, &[(0, 9, 0.1)],              &[(0, 9)]),
            // The plateau's corner is at 0, and so below tau.
            ("shifted",                     &shifted, &[(0, 9, 0.9), (5, 4, 0.8)], &[(0, 9)]),
        ];
        for (name, rules, peaks, expected) in cases {
            let found: Vec<_> = find_peaks(&plane(peaks), 10, 0.5, rules).iter().map(|peak| (peak.y, peak.x)).collect();
            assert_eq!(found, expected, "{name}");
        }
    }
}
