//! COCO's outlines of objects to pixels: polygons and run lengths down the columns (reference: `maskApi.c` of
//! pycocotools).

use super::LabelMap;

/// Corners farther out are taken to be there.
const FAR: f64 = 1e15;

/// Sub-pixels a pixel is divided into along each axis where a polygon is drawn.
const FINE: f64 = 5.0;

/// The pixels inside a polygon, as runs down the columns, outside and inside in turn, outside first. Parts beyond the
/// image are cut off.
///
/// - `xy`: x and y of each corner in turn, pixels; at least one corner
///
/// The boundary is drawn on a grid five times as fine. Where it steps from one fine column to the next in the middle
/// of a pixel's column, the pixel below the boundary starts a run; two starts in one place cancel.
///
/// Only these steps are looked at: the time is that of the corners times the columns, however far out corners are.
pub fn polygon_runs(xy: &[f64], height: usize, width: usize) -> Vec<u32> {
    let fine = |v: f64| (FINE * v.clamp(-FAR, FAR) + 0.5) as i64;
    let corners: Vec<(i64, i64)> = xy.chunks_exact(2).map(|corner| (fine(corner[0]), fine(corner[1]))).collect();
    let next = corners.iter().cycle().skip(1);
    let rows = height as f64;
    let coarse = |v: i64| (v as f64 + 0.5) / FINE - 0.5;
    let mut starts: Vec<usize> = Vec::new();
    let mut room = MIN_ROOM.max(2 * height * width);
    for (&from, &to) in corners.iter().zip(next) {
        steps(from, to, width, |column, y| starts.push(column * height + coarse(y).clamp(0.0, rows).ceil() as usize));
        // A polygon that crosses itself for ever has no more starts than pixels.
        if starts.len() > room {
            cancel_pairs(&mut starts);
            room = MIN_ROOM.max(2 * starts.len());
        }
    }
    starts.push(height * width);
    starts.sort_unstable();

    let (mut runs, mut last) = (Vec::new(), 0);
    let mut lengths = starts.iter().map(|&start| (start - std::mem::replace(&mut last, start)) as u32);
    runs.extend(lengths.next());
    while let Some(length) = lengths.next() {
        match (length, runs.last_mut()) {
            (0, Some(before)) => *before += lengths.next().unwrap_or(0),
            _ => runs.push(length),
        }
    }
    runs
}

/// Starts of runs that are kept before those that cancel are removed.
const MIN_ROOM: usize = 1 << 20;

fn cancel_pairs(starts: &mut Vec<usize>) {
    starts.sort_unstable();
    let mut odd = Vec::new();
    for run in starts.chunk_by(|a, b| a == b) {
        odd.extend((run.len() % 2 == 1).then_some(run[0]));
    }
    *starts = odd;
}

/// Where a line on the fine grid steps over the middle of a column of the image: the column, and the upper of the two
/// points' rows, which may lie outside. A line has one point for each step along its longer axis.
fn steps((mut xs, mut ys): (i64, i64), (mut xe, mut ye): (i64, i64), width: usize, mut found: impl FnMut(usize, i64)) {
    let (dx, dy) = ((xe - xs).abs(), (ye - ys).abs());
    let is_flat = dx >= dy;
    // Always drawn in one direction, so that neighbours share the points of their common side.
    if if is_flat { xs > xe } else { ys > ye } {
        (xs, xe, ys, ye) = (xe, xs, ye, ys);
    }
    let n = if is_flat { dx } else { dy };
    let slope = (if is_flat { ye - ys } else { xe - xs }) as f64 / n as f64;
    let along = |start: i64, t: i64| (start as f64 + slope * t as f64 + 0.5) as i64;
    // The middle of column k lies between the fine columns 5k + 2 and 5k + 3.
    let (left, right) = (xs.min(xe), xs.max(xe));
    let first = (left - 2).div_euclid(5).max(0);
    let last = (right - 2).div_euclid(5).min(width as i64 - 1);
    for column in first..=last {
        let x = 5 * column + 2;
        if is_flat {
            let t = x - xs;
            if (0..n).contains(&t) {
                found(column as usize, along(ys, t).min(along(ys, t + 1)));
            }
            continue;
        }
        // The first point beyond; the points go to one side only.
        let is_beyond = |t: i64| if xe > xs { along(xs, t) > x } else { along(xs, t) <= x };
        let (mut before, mut beyond) = (-1, n + 1);
        while beyond - before > 1 {
            let t = before + (beyond - before) / 2;
            if is_beyond(t) { beyond = t } else { before = t }
        }
        if (1..=n).contains(&beyond) {
            found(column as usize, ys + beyond - 1);
        }
    }
}

/// The counts of COCO's compressed RLE, the inverse of [`super::mask::coco_rle`]; `None`: the text is no RLE.
pub fn runs_of_rle(text: &str) -> Option<Vec<u32>> {
    let mut runs: Vec<u32> = Vec::new();
    let mut bytes = text.bytes();
    while let Some(mut byte) = bytes.next() {
        let (mut x, mut shift) = (0i64, 0);
        loop {
            let low = byte.checked_sub(48).filter(|low| *low < 64 && shift < 35)?;
            x |= i64::from(low & 0x1f) << shift;
            shift += 5;
            if low & 0x20 == 0 {
                // The highest bit of the last group is the sign.
                x |= if low & 0x10 != 0 { -1 << shift } else { 0 };
                break;
            }
            byte = bytes.next()?;
        }
        if runs.len() > 2 {
            x += i64::from(runs[runs.len() - 2]);
        }
        runs.push(u32::try_from(x).ok()?);
    }
    Some(runs)
}

/// Gives the pixels inside a label. Runs that do not fit the map end at its end.
pub fn paint(map: &mut LabelMap, runs: &[u32], label: u8) {
    let (height, width, n) = (map.height, map.width, map.data.len());
    let mut start = 0;
    for (i, &run) in runs.iter().enumerate() {
        let end = (start + run as usize).min(n);
        if i % 2 == 1 {
            (start..end).for_each(|p| map.data[p % height * width + p / height] = label);
        }
        start = end;
    }
}

#[cfg(test)]
mod tests {
    use super::super::mask::coco_rle;
    use super::*;

    #[test]
    fn a_square_and_what_lies_outside() {
        let painted = |xy: &[f64]| {
            let mut map = LabelMap::filled(4, 5, 0);
            paint(&mut map, &polygon_runs(xy, 4, 5), 1);
            map.data.chunks(5).map(|row| row.iter().map(|v| char::from(48 + v)).collect()).collect::<Vec<String>>()
        };
        assert_eq!(painted(&[1.0, 1.0, 4.0, 1.0, 4.0, 3.0, 1.0, 3.0]), ["00000", "01110", "01110", "00000"]);
        assert_eq!(painted(&[-9.0, -9.0, 2.0, -9.0, 2.0, 99.0, -9.0, 99.0]), ["11000"; 4]);
        assert_eq!(painted(&[50.0, 50.0, 60.0, 50.0, 60.0, 60.0]), ["00000"; 4]);
        for far in [1e5, 1e9, 1e15] {
            assert_eq!(painted(&[-far, -far, 2.0, -far, 2.0, far, -far, far]), ["11000"; 4], "{far}");
        }
        assert_eq!(painted(&[2.0, 2.0, 2.0, 2.0, 2.0, 2.0]), ["00000"; 4]);
    }

    /// A line drawn point by point, as `maskApi.c` has it, gives the same steps.
    #[test]
    fn steps_are_those_of_all_points() {
        let points = |(mut xs, mut ys): (i64, i64), (mut xe, mut ye): (i64, i64)| -> Vec<(i64, i64)> {
            let (dx, dy) = ((xe - xs).abs(), (ye - ys).abs());
            let is_flat = dx >= dy;
            let flip = if is_flat { xs > xe } else { ys > ye };
            if flip {
                (xs, xe, ys, ye) = (xe, xs, ye, ys);
            }
            let n = if is_flat { dx } else { dy };
            let slope = (if is_flat { ye - ys } else { xe - xs }) as f64 / n as f64;
            let along = |start: i64, t: i64| (start as f64 + slope * t as f64 + 0.5) as i64;
            let point = |d: i64| {
                let t = if flip { n - d } else { d };
                if is_flat { (xs + t, along(ys, t)) } else { (along(xs, t), ys + t) }
            };
            (0..=n).map(point).collect()
        };
        let width = 9;
        let mut state = 7u32;
        let mut random = |of: i64| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            i64::from(state >> 8) * of / (1 << 24) - of / 3
        };
        for i in 0..20_000 {
            let (from, to) = ((random(90), random(90 + i % 200)), (random(90), random(90)));
            let mut expected = Vec::new();
            for pair in points(from, to).windows(2) {
                let [(x0, y0), (x1, y1)] = [pair[0], pair[1]];
                let x = ((if x1 < x0 { x1 } else { x1 - 1 }) as f64 + 0.5) / FINE - 0.5;
                if x0 != x1 && x.floor() == x && x >= 0.0 && x <= (width - 1) as f64 {
                    expected.push((x as usize, y0.min(y1)));
                }
            }
            let mut found = Vec::new();
            steps(from, to, width, |column, y| found.push((column, y)));
            expected.sort_unstable();
            found.sort_unstable();
            assert_eq!(found, expected, "{from:?} {to:?}");
        }
    }

    #[test]
    fn rle_and_back() {
        for runs in [&[1200][..], &[17, 40, 3, 500, 33, 607], &[100, 1, 100, 31, 68, 900], &[]] {
            assert_eq!(runs_of_rle(&coco_rle(runs)).unwrap(), runs);
        }
        for bad in ["\n", "`", "0`", "é", "000N"] {
            assert_eq!(runs_of_rle(bad), None, "{bad}");
        }
    }

    #[test]
    fn runs_end_at_the_end() {
        let mut map = LabelMap::filled(2, 2, 0);
        paint(&mut map, &[1, 99, 5], 7);
        assert_eq!(map.data, [0, 7, 7, 7]);
    }
}
