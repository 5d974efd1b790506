//! Pure arrays: no file, no tensor library. Row-major, row first.

pub mod arch;
pub mod boundary;
pub mod crf;
pub mod label;
pub mod mask;
pub mod metric;
pub mod outline;
pub mod overlay;
pub mod peaks;
pub mod propagate;
pub mod se_map;

use std::fmt;

/// The classes of PASCAL VOC, background first: a label map holds places in this list.
pub const VOC_CLASSES: [&str; 21] = [
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
];

/// A name that is no class.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no class `{0}`")]
pub struct UnknownClass(pub String);

/// Labels by the names of their classes, of which background is the first.
///
/// # Errors
/// The first name that is no class.
pub fn labels_of(classes: &[impl AsRef<str>], names: &[String]) -> Result<Vec<u8>, UnknownClass> {
    let label = |name: &String| classes.iter().skip(1).position(|class| class.as_ref() == name).map(|at| at as u8 + 1);
    names.iter().map(|name| label(name).ok_or_else(|| UnknownClass(name.clone()))).collect()
}

/// The label of pixels that count for nothing.
pub const IGNORE: u8 = 255;

/// A 2-D array.
#[derive(Clone, PartialEq)]
pub struct Grid<T> {
    pub height: usize,
    pub width: usize,
    /// Row-major, `height * width`.
    pub data: Vec<T>,
}

/// Class ids: 0 background, from 1 classes, 255 ignored.
pub type LabelMap = Grid<u8>;
/// Segment ids: 0 = no segment.
pub type SeMap = Grid<u16>;

impl<T: Copy> Grid<T> {
    /// Panics unless `data` holds `height * width` values.
    pub fn new(height: usize, width: usize, data: Vec<T>) -> Self {
        assert_eq!(data.len(), height * width);
        Self { height, width, data }
    }

    pub fn filled(height: usize, width: usize, value: T) -> Self {
        Self { height, width, data: vec![value; height * width] }
    }

    /// Each value by itself.
    pub fn map(&self, f: impl FnMut(T) -> T) -> Self {
        Self { height: self.height, width: self.width, data: self.data.iter().copied().map(f).collect() }
    }

    pub fn at(&self, y: usize, x: usize) -> T {
        self.data[y * self.width + x]
    }

    /// Nearest-neighbour resize, PIL's NEAREST: the centre of a target pixel picks its source.
    pub fn resize_nearest(&self, height: usize, width: usize) -> Self {
        let place = |i: usize, to: usize, from: usize| {
            let centre = (i as f64 + 0.5) * from as f64 / to as f64;
            (centre as usize).min(from - 1)
        };
        let xs: Vec<usize> = (0..width).map(|x| place(x, width, self.width)).collect();
        let mut data = Vec::with_capacity(height * width);
        for y in 0..height {
            let row = place(y, height, self.height) * self.width;
            data.extend(xs.iter().map(|x| self.data[row + x]));
        }
        Self { height, width, data }
    }
}

impl<T> fmt::Debug for Grid<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Grid({}x{})", self.height, self.width)
    }
}

/// An RGB image, 8 bits a channel.
#[derive(Clone, PartialEq)]
pub struct Rgb {
    pub height: usize,
    pub width: usize,
    /// `height * width * 3`.
    pub data: Vec<u8>,
}

impl Rgb {
    /// The part of `height` x `width` pixels whose first is at `(y, x)`. Panics if it reaches beyond the image.
    pub fn part(&self, (y, x): (usize, usize), height: usize, width: usize) -> Self {
        let row = |y: usize| &self.data[(y * self.width + x) * 3..(y * self.width + x + width) * 3];
        Self { height, width, data: (y..y + height).flat_map(row).copied().collect() }
    }
}

impl fmt::Debug for Rgb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Rgb({}x{})", self.height, self.width)
    }
}

/// Class activation maps of the classes present in an image: scores 0 to 1, foreground only.
#[derive(Clone, Debug, PartialEq)]
pub struct Cam {
    /// Label of each channel, from 1, ascending.
    pub classes: Vec<u8>,
    pub height: usize,
    pub width: usize,
    /// `classes.len() * height * width`.
    pub data: Vec<f32>,
}

/// Scores by label, background included.
#[derive(Clone, Debug, PartialEq)]
pub struct ScoreMap {
    /// Label of each channel.
    pub labels: Vec<u8>,
    pub height: usize,
    pub width: usize,
    /// `labels.len() * height * width`.
    pub data: Vec<f32>,
}

impl ScoreMap {
    /// The label with the highest score of each pixel; of equals the first. Panics without a label.
    pub fn best(&self) -> LabelMap {
        let pixels = self.height * self.width;
        let best = |i: usize| {
            let score = |channel: usize| self.data[channel * pixels + i];
            let better = |best: usize, channel: usize| if score(channel) > score(best) { channel } else { best };
            self.labels[(1..self.labels.len()).fold(0, better)]
        };
        Grid::new(self.height, self.width, (0..pixels).map(best).collect())
    }
}

/// A local maximum of a CAM channel.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Peak {
    pub y: usize,
    pub x: usize,
    pub score: f32,
}
