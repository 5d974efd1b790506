//! COCO's outlines of objects to pixels: polygons and run lengths down the columns (reference: `maskApi.c` of
//! pycocotools).

use super::LabelMap;

/// Sub-pixels a pixel is divided into along each axis where a polygon is drawn.
const FINE: f64 = 5.0;

/// The pixels inside a polygon, as runs down the columns, outside and inside in turn, outside first. Parts beyond the
/// image are cut off.
///
/// - `xy`: x and y of each corner in turn, pixels; at least one corner
///
/// The boundary is drawn on a grid five times as fine. Where it steps from one fine column to the next in the middle
/// of a pixel's column, the pixel below the boundary starts a run; two starts in one place cancel.
pub fn polygon_runs(xy: &[f64], height: usize, width: usize) -> Vec<u32> {
    let fine = |v: f64| (FINE * v + 0.5) as i32;
    let corners: Vec<(i32, i32)> = xy.chunks_exact(2).map(|corner| (fine(corner[0]), fine(corner[1]))).collect();
    let next = corners.iter().cycle().skip(1);
    let boundary: Vec<(i32, i32)> = corners.iter().zip(next).flat_map(|(&from, &to)| line(from, to)).collect();

    let (rows, columns) = (height as f64, width as f64);
    let coarse = |v: i32| (f64::from(v) + 0.5) / FINE - 0.5;
    let start = |step: &[(i32, i32)]| {
        let [(x0, y0), (x1, y1)] = [step[0], step[1]];
        let x = coarse(if x1 < x0 { x1 } else { x1 - 1 });
        let crosses = x0 != x1 && x.floor() == x && x >= 0.0 && x <= columns - 1.0;
        crosses.then(|| x as usize * height + coarse(y0.min(y1)).clamp(0.0, rows).ceil() as usize)
    };
    let mut starts: Vec<usize> = boundary.windows(2).filter_map(start).collect();
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

/// The points of a line on the fine grid, both ends included, one for each step along its longer axis.
fn line((mut xs, mut ys): (i32, i32), (mut xe, mut ye): (i32, i32)) -> impl Iterator<Item = (i32, i32)> {
    let (dx, dy) = ((xe - xs).abs(), (ye - ys).abs());
    let is_flat = dx >= dy;
    // Always drawn in one direction, so that neighbours share the points of their common side.
    let flip = if is_flat { xs > xe } else { ys > ye };
    if flip {
        (xs, xe, ys, ye) = (xe, xs, ye, ys);
    }
    let n = if is_flat { dx } else { dy };
    let slope = f64::from(if is_flat { ye - ys } else { xe - xs }) / f64::from(n);
    let along = move |start: i32, t: i32| (f64::from(start) + slope * f64::from(t) + 0.5) as i32;
    (0..=n).map(move |d| {
        let t = if flip { n - d } else { d };
        if is_flat { (xs + t, along(ys, t)) } else { (along(xs, t), ys + t) }
    })
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
        assert_eq!(painted(&[2.0, 2.0, 2.0, 2.0, 2.0, 2.0]), ["00000"; 4]);
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
