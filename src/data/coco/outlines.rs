//! The outlines of one image in few bytes: what its mask is painted from, and what the mask's key is made of.

use anyhow::{Context, ensure};

use crate::vision::outline::{paint, polygon_runs};
use crate::vision::{Grid, LabelMap};

/// Corners of COCO have two decimals; these are stored as differences in hundredths, about two bytes a number.
const HUNDRED: f64 = 100.0;
/// Differences of numbers below fit an `i64`.
const MAX_EXACT: f64 = 1e15;

/// One shape as bytes.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Shape(Vec<u8>);

impl Shape {
    /// Polygons, their corners as x and y in turn.
    pub(super) fn polygons(parts: &[Vec<f64>]) -> Self {
        let mut bytes = vec![0];
        put(&mut bytes, parts.len() as u64);
        for part in parts {
            put(&mut bytes, part.len() as u64);
            let is_exact = |n: &f64, v: f64| n / HUNDRED == v && n.abs() < MAX_EXACT;
            let hundredths = |&v: &f64| Some((v * HUNDRED).round()).filter(|n| is_exact(n, v)).map(|n| n as i64);
            match part.iter().map(hundredths).collect::<Option<Vec<i64>>>() {
                Some(numbers) => {
                    bytes.push(0);
                    let before = [0, 0].into_iter().chain(numbers.iter().copied());
                    numbers.iter().zip(before).for_each(|(now, before)| put(&mut bytes, zigzag(now - before)));
                }
                None => {
                    bytes.push(1);
                    part.iter().for_each(|v| bytes.extend_from_slice(&v.to_le_bytes()));
                }
            }
        }
        Self(bytes)
    }

    /// Runs down the columns, outside first.
    pub(super) fn runs(runs: &[u32]) -> Self {
        let mut bytes = vec![1];
        put(&mut bytes, runs.len() as u64);
        runs.iter().for_each(|&run| put(&mut bytes, u64::from(run)));
        Self(bytes)
    }

    /// Pixels that it covers in an image of a size.
    pub(super) fn pixels(&self, (height, width): (usize, usize)) -> u64 {
        // Runs of its parts, which may overlap: where one begins and ends.
        let mut inside: Vec<(u64, u64)> = Vec::new();
        let drawn = runs_of(&mut &self.0[..], (height, width), |runs| {
            let mut at = 0;
            for pair in runs.chunks(2) {
                let (begin, end) = (at + u64::from(pair[0]), at + pair.iter().map(|&run| u64::from(run)).sum::<u64>());
                inside.push((begin, end));
                at = end;
            }
        });
        debug_assert!(drawn.is_ok());
        inside.sort_unstable();
        let (mut covered, mut pixels) = (0, 0);
        for (begin, end) in inside {
            pixels += end.saturating_sub(begin.max(covered));
            covered = covered.max(end);
        }
        pixels
    }
}

/// Shapes as bytes, in the order in which they are painted.
pub(super) fn in_order<'a>(shapes: impl Iterator<Item = (u8, &'a Shape)>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (label, shape) in shapes {
        bytes.push(label);
        bytes.extend_from_slice(&shape.0);
    }
    bytes
}

/// What [`paint_mask`] reads: the size of an image before its shapes.
pub(super) fn outlines((height, width): (usize, usize), shapes: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    put(&mut bytes, height as u64);
    put(&mut bytes, width as u64);
    bytes.extend_from_slice(shapes);
    bytes
}

/// The mask that outlines stand for: later shapes cover earlier ones.
///
/// # Errors
/// The bytes are no outlines.
pub fn paint_mask(mut bytes: &[u8]) -> anyhow::Result<LabelMap> {
    let from = &mut bytes;
    let (height, width) = (take(from)? as usize, take(from)? as usize);
    ensure!(
        height.checked_mul(width).is_some_and(|n| n <= u32::MAX as usize),
        "outlines of a picture of {height}x{width}"
    );
    let mut map = Grid::filled(height, width, 0);
    while !from.is_empty() {
        let label = byte(from)?;
        draw(from, &mut map, label)?;
    }
    Ok(map)
}

fn draw(from: &mut &[u8], map: &mut LabelMap, label: u8) -> anyhow::Result<()> {
    runs_of(from, (map.height, map.width), |runs| paint(map, runs, label))
}

/// The runs of each part of a shape in an image of a size.
fn runs_of(from: &mut &[u8], (height, width): (usize, usize), mut found: impl FnMut(&[u32])) -> anyhow::Result<()> {
    if byte(from)? == 1 {
        let n = take(from)?;
        let runs = (0..n).map(|_| Ok(u32::try_from(take(from)?)?)).collect::<anyhow::Result<Vec<u32>>>()?;
        found(&runs);
        return Ok(());
    }
    for _ in 0..take(from)? {
        let n = take(from)?;
        let mut corners: Vec<f64> = Vec::new();
        match byte(from)? {
            0 => {
                let mut before = [0, 0];
                for i in 0..n as usize {
                    let now = &mut before[i % 2];
                    *now += unzigzag(take(from)?);
                    corners.push(*now as f64 / HUNDRED);
                }
            }
            _ => {
                for _ in 0..n {
                    let (number, rest) = from.split_first_chunk::<8>().context("outlines end early")?;
                    *from = rest;
                    corners.push(f64::from_le_bytes(*number));
                }
            }
        }
        found(&polygon_runs(&corners, height, width));
    }
    Ok(())
}

/// Seven bits a byte, the lowest first; the highest bit says that more follow.
fn put(bytes: &mut Vec<u8>, mut value: u64) {
    while value > 0x7f {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

fn take(from: &mut &[u8]) -> anyhow::Result<u64> {
    let (mut value, mut shift) = (0, 0);
    loop {
        let byte = byte(from)?;
        ensure!(shift < 63, "outlines have a number that is too long");
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
        shift += 7;
    }
}

fn byte(from: &mut &[u8]) -> anyhow::Result<u8> {
    let (&first, rest) = from.split_first().context("outlines end early")?;
    *from = rest;
    Ok(first)
}

fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)) as u64
}

fn unzigzag(value: u64) -> i64 {
    (value >> 1) as i64 ^ -((value & 1) as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_come_back_as_they_were() {
        let square = vec![1.0, 1.0, 4.0, 1.0, 4.0, 3.0, 1.0, 3.0];
        // Neither in hundredths nor near the image.
        let third = vec![1.0 / 3.0, 0.1, 2.5, -7.25, 1e-9, 3.0];
        let shapes = [(3, Shape::polygons(&[square.clone(), third.clone()])), (255, Shape::runs(&[0, 2, 18]))];
        let bytes = outlines((4, 5), &in_order(shapes.iter().map(|(label, shape)| (*label, shape))));
        let map = paint_mask(&bytes).unwrap();
        let mut expected = Grid::filled(4, 5, 0);
        for part in [square, third] {
            paint(&mut expected, &polygon_runs(&part, 4, 5), 3);
        }
        paint(&mut expected, &[0, 2, 18], 255);
        assert!(map == expected && map.at(0, 0) == 255 && map.at(2, 2) == 3);
        for (label, shape) in &shapes {
            let map = paint_mask(&outlines((4, 5), &in_order([(*label, shape)].into_iter()))).unwrap();
            assert_eq!(shape.pixels((4, 5)), map.data.iter().filter(|at| **at == *label).count() as u64);
        }
        for n in 0..bytes.len() {
            // Some beginnings are outlines of fewer shapes; none is a panic.
            let _ = paint_mask(&bytes[..n]);
        }
        assert!(paint_mask(&bytes[..4]).is_err());
        for value in [0, 1, -1, 63, -64, 1 << 40, i64::MIN / 2] {
            assert_eq!(unzigzag(zigzag(value)), value);
        }
    }
}
