//! Binary masks, a bit a pixel, and their run lengths.

use std::fmt;
use std::ops::Range;

/// A binary mask. Rows start at whole words; bits past the width are 0.
#[derive(Clone, PartialEq, Eq)]
pub struct BitMask {
    pub height: usize,
    pub width: usize,
    words: Vec<u64>,
}

/// First and last column and row of a mask, both inside; pixels.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct BoxXyxy {
    pub x0: f32,
    pub y0: f32,
    pub x1: f32,
    pub y1: f32,
}

impl BoxXyxy {
    pub fn area(&self) -> f32 {
        (self.x1 - self.x0) * (self.y1 - self.y0)
    }

    pub(super) fn iou(&self, other: &Self) -> f32 {
        let width = (self.x1.min(other.x1) - self.x0.max(other.x0)).max(0.0);
        let height = (self.y1.min(other.y1) - self.y0.max(other.y0)).max(0.0);
        let both = width * height;
        both / (self.area() + other.area() - both)
    }
}

/// What [`BitMask::without_small_regions`] looks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SmallRegion {
    /// Of pixels outside, filled.
    Hole,
    /// Of pixels inside, removed; the largest stays if all are small.
    Island,
}

impl BitMask {
    pub fn empty(height: usize, width: usize) -> Self {
        Self { height, width, words: vec![0; height * width.div_ceil(64)] }
    }

    /// From a byte a pixel, 0 = outside. Panics unless there are `height * width`.
    pub fn of_bytes(height: usize, width: usize, bytes: &[u8]) -> Self {
        assert_eq!(bytes.len(), height * width);
        let pack = |bits: &[u8]| bits.iter().rev().fold(0u64, |word, &bit| word << 1 | u64::from(bit != 0));
        let words = bytes.chunks_exact(width.max(1)).flat_map(|row| row.chunks(64).map(pack)).collect();
        Self { height, width, words }
    }

    /// From bytes of eight pixels, the first in the lowest bit, rows of whole words; bits past the width are 0. Panics
    /// unless there are as many as that.
    pub fn of_packed(height: usize, width: usize, bytes: &[u8]) -> Self {
        let (words, rest) = bytes.as_chunks::<8>();
        assert_eq!((words.len(), rest.len()), (height * width.div_ceil(64), 0));
        Self { height, width, words: words.iter().map(|word| u64::from_le_bytes(*word)).collect() }
    }

    /// The pixels of a row, as many as it has.
    pub fn set_row(&mut self, y: usize, pixels: &[bool]) {
        let start = y * self.stride();
        let pack = |bits: &[bool]| bits.iter().rev().fold(0u64, |word, &bit| word << 1 | u64::from(bit));
        self.words[start..].iter_mut().zip(pixels.chunks(64)).for_each(|(word, bits)| *word = pack(bits));
    }

    /// Words a row.
    fn stride(&self) -> usize {
        self.width.div_ceil(64)
    }

    fn row(&self, y: usize) -> &[u64] {
        &self.words[y * self.stride()..(y + 1) * self.stride()]
    }

    pub fn at(&self, y: usize, x: usize) -> bool {
        self.row(y)[x / 64] >> (x % 64) & 1 == 1
    }

    /// Sets the pixels of a part of a row.
    pub fn fill(&mut self, y: usize, columns: Range<usize>) {
        let start = y * self.stride();
        for x in columns {
            self.words[start + x / 64] |= 1 << (x % 64);
        }
    }

    /// Pixels inside.
    pub fn area(&self) -> usize {
        self.words.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// Of two masks of one size, pixels inside both to those inside either. Two empty masks are equal.
    pub fn iou(&self, other: &Self) -> f64 {
        let count = |of: fn(u64, u64) -> u64| -> u64 {
            self.words.iter().zip(&other.words).map(|(a, b)| u64::from(of(*a, *b).count_ones())).sum()
        };
        let (both, either) = (count(|a, b| a & b), count(|a, b| a | b));
        if either == 0 { 1.0 } else { both as f64 / either as f64 }
    }

    /// Zeros where no pixel is inside, as in the reference.
    pub fn bounds(&self) -> BoxXyxy {
        let mut rows = (0..self.height).filter(|&y| self.row(y).iter().any(|&word| word != 0));
        let Some(first) = rows.next() else { return BoxXyxy::default() };
        let last = rows.next_back().unwrap_or(first);
        let mut columns = vec![0; self.stride()];
        for y in first..=last {
            columns.iter_mut().zip(self.row(y)).for_each(|(all, word)| *all |= word);
        }
        let left = columns.iter().position(|&word| word != 0).unwrap_or(0);
        let right = columns.iter().rposition(|&word| word != 0).unwrap_or(0);
        BoxXyxy {
            x0: (left * 64 + columns[left].trailing_zeros() as usize) as f32,
            y0: first as f32,
            x1: (right * 64 + 63 - columns[right].leading_zeros() as usize) as f32,
            y1: last as f32,
        }
    }

    /// The runs of pixels inside, row by row.
    pub fn runs(&self) -> impl Iterator<Item = (usize, Range<usize>)> {
        (0..self.height).flat_map(move |y| {
            let mut x = 0;
            std::iter::from_fn(move || {
                let start = self.next(y, x, true)?;
                let end = self.next(y, start, false).unwrap_or(self.width);
                x = end;
                Some((y, start..end))
            })
        })
    }

    /// The first column from `x` on whose pixel is inside, or outside.
    fn next(&self, y: usize, x: usize, inside: bool) -> Option<usize> {
        let flip = if inside { 0 } else { u64::MAX };
        let row = self.row(y);
        let mut skip = x % 64;
        for i in x / 64..self.stride() {
            let word = (row[i] ^ flip) >> skip << skip;
            if word != 0 {
                let found = i * 64 + word.trailing_zeros() as usize;
                return (found < self.width).then_some(found);
            }
            skip = 0;
        }
        None
    }

    /// As part of a larger picture, its first pixel at `(y, x)`.
    pub fn placed(&self, (y, x): (usize, usize), height: usize, width: usize) -> Self {
        let mut placed = Self::empty(height, width);
        self.runs().for_each(|(row, columns)| placed.fill(row + y, columns.start + x..columns.end + x));
        placed
    }

    fn inverted(&self) -> Self {
        let rest = self.width % 64;
        let valid = if rest == 0 { u64::MAX } else { (1 << rest) - 1 };
        let is_last = |i: usize| (i + 1).is_multiple_of(self.stride());
        let invert = |(i, word): (usize, &u64)| !word & if is_last(i) { valid } else { u64::MAX };
        Self { words: self.words.iter().enumerate().map(invert).collect(), ..*self }
    }

    /// Without holes or islands of fewer than `area` pixels, 8-connected; whether anything changed (reference:
    /// `segment_anything/utils/amg.py`).
    pub fn without_small_regions(&self, area: usize, what: SmallRegion) -> (Self, bool) {
        let of = if what == SmallRegion::Hole { self.inverted() } else { self.clone() };
        let regions = Regions::of(&of);
        let is_small = |region: usize| regions.areas[region] < area;
        if !(0..regions.areas.len()).any(is_small) {
            return (self.clone(), false);
        }
        let keep_largest = what == SmallRegion::Island && (0..regions.areas.len()).all(is_small);
        let largest = (0..regions.areas.len()).rev().max_by_key(|&region| regions.areas[region]);
        let mut changed = match what {
            SmallRegion::Hole => self.clone(),
            SmallRegion::Island => Self::empty(self.height, self.width),
        };
        for ((y, columns), &region) in regions.runs.iter().zip(&regions.of_run) {
            let fill = match what {
                SmallRegion::Hole => is_small(region),
                SmallRegion::Island if keep_largest => Some(region) == largest,
                SmallRegion::Island => !is_small(region),
            };
            if fill {
                changed.fill(*y, columns.clone());
            }
        }
        (changed, true)
    }

    /// Lengths of runs down the columns, outside and inside in turn, outside first: COCO's uncompressed RLE.
    pub fn rle(&self) -> Vec<u32> {
        let mut counts = Vec::new();
        let (mut inside, mut length) = (false, 0u32);
        for x in 0..self.width {
            for y in 0..self.height {
                if self.at(y, x) != inside {
                    counts.push(length);
                    (inside, length) = (!inside, 0);
                }
                length += 1;
            }
        }
        counts.push(length);
        counts
    }
}

impl fmt::Debug for BitMask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BitMask({}x{}, {} inside)", self.height, self.width, self.area())
    }
}

/// COCO's compressed RLE: each count, from the fourth on as its difference to the one two before, in groups of five
/// bits (reference: `rleToString` of `maskApi.c`).
pub fn coco_rle(counts: &[u32]) -> String {
    let mut text = String::new();
    for (i, &count) in counts.iter().enumerate() {
        let mut x = i64::from(count) - if i > 2 { i64::from(counts[i - 2]) } else { 0 };
        loop {
            let low = (x & 0x1f) as u8;
            x >>= 5;
            // The highest bit of the last group is the sign.
            let is_last = if low & 0x10 != 0 { x == -1 } else { x == 0 };
            text.push(char::from(48 + if is_last { low } else { low | 0x20 }));
            if is_last {
                break;
            }
        }
    }
    text
}

/// 8-connected regions of a mask, as runs.
struct Regions {
    runs: Vec<(usize, Range<usize>)>,
    /// Region of each run, numbered by first appearance.
    of_run: Vec<usize>,
    /// Pixels of each region.
    areas: Vec<usize>,
}

impl Regions {
    fn of(mask: &BitMask) -> Self {
        let runs: Vec<(usize, Range<usize>)> = mask.runs().collect();
        let mut parent: Vec<usize> = (0..runs.len()).collect();
        fn root(parent: &mut [usize], mut i: usize) -> usize {
            while parent[i] != i {
                parent[i] = parent[parent[i]];
                i = parent[i];
            }
            i
        }
        let mut above = 0; // the first run of the row above that may touch
        for i in 0..runs.len() {
            let (y, columns) = &runs[i];
            while above < i
                && (runs[above].0 + 1 < *y || (runs[above].0 + 1 == *y && runs[above].1.end < columns.start))
            {
                above += 1;
            }
            let mut j = above;
            while j < i && runs[j].0 + 1 == *y && runs[j].1.start <= columns.end {
                let (a, b) = (root(&mut parent, i), root(&mut parent, j));
                parent[a.max(b)] = a.min(b);
                j += 1;
            }
        }
        let mut number = vec![usize::MAX; runs.len()];
        let mut areas = Vec::new();
        let mut of_run = Vec::with_capacity(runs.len());
        for (i, (_, columns)) in runs.iter().enumerate() {
            let root = root(&mut parent, i);
            if number[root] == usize::MAX {
                number[root] = areas.len();
                areas.push(0);
            }
            areas[number[root]] += columns.len();
            of_run.push(number[root]);
        }
        Self { runs, of_run, areas }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mask(rows: &[&str]) -> BitMask {
        let bytes: Vec<u8> = rows.iter().flat_map(|row| row.bytes().map(|b| u8::from(b == b'#'))).collect();
        BitMask::of_bytes(rows.len(), rows[0].len(), &bytes)
    }

    #[test]
    fn bits_bounds_and_runs_across_words() {
        let (height, width) = (3, 130);
        let mut bytes = vec![0; height * width];
        for x in 60..129 {
            bytes[width + x] = 7;
        }
        bytes[2 * width + 3] = 1;
        let mask = BitMask::of_bytes(height, width, &bytes);
        assert_eq!(mask.area(), 70);
        assert_eq!(mask.runs().collect::<Vec<_>>(), [(1, 60..129), (2, 3..4)]);
        assert_eq!(mask.bounds(), BoxXyxy { x0: 3.0, y0: 1.0, x1: 128.0, y1: 2.0 });
        assert_eq!(BitMask::empty(2, 2).bounds(), BoxXyxy::default());
        let full = BitMask::of_bytes(1, 128, &[1; 128]);
        assert_eq!(full.runs().collect::<Vec<_>>(), [(0, 0..128)]);
        assert_eq!(full.inverted().area(), 0);
        assert_eq!(mask.inverted().area(), height * width - 70);
        assert_eq!(mask.inverted().inverted(), mask);
        let placed = mask.placed((1, 2), 10, 140);
        assert_eq!(placed.runs().collect::<Vec<_>>(), [(2, 62..131), (3, 5..6)]);
    }

    #[test]
    fn small_holes_are_filled_and_small_islands_go() {
        let ring = mask(&["#####...", "#.#.#..#", "#####...", "......#.", ".....#.."]);
        let (filled, changed) = ring.without_small_regions(2, SmallRegion::Hole);
        assert!(changed && filled.area() == ring.area() + 2);
        // The two diagonal pixels are one region of two; the single one goes.
        let (clean, changed) = ring.without_small_regions(2, SmallRegion::Island);
        assert!(changed && clean.area() == ring.area() - 1);
        assert_eq!(ring.without_small_regions(1, SmallRegion::Island), (ring.clone(), false));
        // All are small: the largest stays.
        let (largest, _) = ring.without_small_regions(1000, SmallRegion::Island);
        assert_eq!(largest.area(), 13);
        assert_eq!(BitMask::empty(3, 3).without_small_regions(5, SmallRegion::Island), (BitMask::empty(3, 3), false));
        // A region that only closes further down is one region.
        let u = mask(&["#...#", "#...#", "#####"]);
        assert_eq!(Regions::of(&u).areas, [9]);
    }

    #[test]
    fn run_lengths_go_down_the_columns() {
        assert_eq!(mask(&["#.", "#."]).rle(), [0, 2, 2]);
        assert_eq!(mask(&["..#", ".##"]).rle(), [3, 3]);
        assert_eq!(BitMask::empty(2, 3).rle(), [6]);
        // pycocotools.mask.frPyObjects({"size": [30, 40], "counts": COUNTS}, 30, 40)["counts"]
        for (counts, text) in [
            (&[1200][..], "`U1"),
            (&[3, 3, 594, 600], "33bb0eb0"),
            (&[17, 40, 3, 500, 33, 607], "a0X13\\>n0[3"),
            (&[100, 1, 100, 31, 68, 900], "T31T3n0POUk0"),
        ] {
            assert_eq!(coco_rle(counts), text);
        }
    }
}
