//! Augmentation as an explicit record, so that what is done to an image can be done to its maps and undone for its
//! prompts.

use rand_chacha::ChaCha8Rng;

use super::image::{Filter, resize_rgb};
use super::rng::{integer, shuffle, unit};
use crate::vision::{Grid, Rgb};

pub const MEAN: [f32; 3] = [0.485, 0.456, 0.406];
pub const STD: [f32; 3] = [0.229, 0.224, 0.225];

/// Resize, then mirror, then cut a square window.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Transform {
    /// Height and width.
    pub image: (usize, usize),
    pub resized: (usize, usize),
    pub flip: bool,
    /// Side of the window, pixels.
    pub crop: usize,
    /// The window's first row and column in the resized image; negative where the image is smaller.
    pub offset: (i64, i64),
}

impl Transform {
    /// The longer side goes to a random length.
    pub fn sample_long(rng: &mut ChaCha8Rng, image: (usize, usize), long: (u32, u32), crop: usize) -> Self {
        let target = integer(rng, i64::from(long.0), i64::from(long.1)) as f64;
        // Multiplied first, as the authors' code does, since a product and a quotient round otherwise at a half.
        let side = |n: usize| rounded(n as f64 * target / image.0.max(image.1) as f64);
        Self::sample(rng, image, (side(image.0), side(image.1)), crop)
    }

    /// Both sides are scaled by a random factor.
    pub fn sample_scale(rng: &mut ChaCha8Rng, image: (usize, usize), scale: (f64, f64), crop: usize) -> Self {
        let factor = scale.0 + unit(rng) * (scale.1 - scale.0);
        let side = |n: usize| rounded(n as f64 * factor);
        Self::sample(rng, image, (side(image.0), side(image.1)), crop)
    }

    fn sample(rng: &mut ChaCha8Rng, image: (usize, usize), resized: (usize, usize), crop: usize) -> Self {
        let flip = unit(rng) < 0.5;
        let mut offset = |side: usize| {
            let room = side as i64 - crop as i64;
            if room >= 0 { integer(rng, 0, room) } else { -integer(rng, 0, -room) }
        };
        let offset = (offset(resized.0), offset(resized.1));
        Self { image, resized, flip, crop, offset }
    }

    /// The window of an image, row by row, with 8 bits a channel; `None` outside the image.
    pub fn window(&self, image: &Rgb, jitter: Option<&Jitter>) -> Vec<Option<[u8; 3]>> {
        let mut image = resize_rgb(image, self.resized.0, self.resized.1, Filter::Bicubic);
        if let Some(jitter) = jitter {
            jitter.apply(&mut image);
        }
        let pixel = |(y, x): (usize, usize)| {
            let at = (y * image.width + x) * 3;
            [image.data[at], image.data[at + 1], image.data[at + 2]]
        };
        (0..self.crop.pow(2)).map(|i| self.source(i / self.crop, i % self.crop).map(pixel)).collect()
    }

    /// The window of an image: normalised, `(3, crop, crop)`, zeros outside the image.
    pub fn apply_image(&self, image: &Rgb, jitter: Option<&Jitter>) -> Vec<f32> {
        let pixels = self.crop * self.crop;
        let mut out = vec![0.0; 3 * pixels];
        for (i, pixel) in self.window(image, jitter).into_iter().enumerate() {
            for (c, value) in pixel.into_iter().flatten().enumerate() {
                out[c * pixels + i] = (f32::from(value) / 255.0 - MEAN[c]) / STD[c];
            }
        }
        out
    }

    /// The window of a map, resized by nearest neighbour; `fill` outside the image.
    pub fn apply_grid<T: Copy>(&self, map: &Grid<T>, fill: T) -> Grid<T> {
        let map = map.resize_nearest(self.resized.0, self.resized.1);
        let at = |i: usize| self.source(i / self.crop, i % self.crop).map_or(fill, |(y, x)| map.at(y, x));
        Grid::new(self.crop, self.crop, (0..self.crop * self.crop).map(at).collect())
    }

    /// Where a pixel of the window lies in the resized image; `None` in the padding.
    fn source(&self, y: usize, x: usize) -> Option<(usize, usize)> {
        let (y, x) = (y as i64 + self.offset.0, x as i64 + self.offset.1);
        let (height, width) = (self.resized.0 as i64, self.resized.1 as i64);
        let inside = (0..height).contains(&y) && (0..width).contains(&x);
        let x = if self.flip { width - 1 - x } else { x };
        inside.then_some((y as usize, x as usize))
    }

    /// Which pixels of the window lie outside the image, row-major.
    pub fn padding(&self) -> Vec<bool> {
        (0..self.crop.pow(2)).map(|i| self.source(i / self.crop, i % self.crop).is_none()).collect()
    }

    /// A place in the window (y, x; the centre of the first pixel is 0.5, 0.5) as a place in the full image.
    pub fn crop_to_image(&self, y: f64, x: f64) -> (f64, f64) {
        let (y, x) = (y + self.offset.0 as f64, x + self.offset.1 as f64);
        let x = if self.flip { self.resized.1 as f64 - x } else { x };
        let scale = |place: f64, image: usize, resized: usize| place * image as f64 / resized as f64;
        (scale(y, self.image.0, self.resized.0), scale(x, self.image.1, self.resized.1))
    }
}

/// A side in whole pixels, at least one. Python's `round`, which the reference code calls, takes a half to the even
/// neighbour.
pub fn rounded(side: f64) -> usize {
    (side.round_ties_even() as usize).max(1)
}

/// One draw of colour changes.
#[derive(Clone, Debug, PartialEq)]
pub struct Jitter {
    /// In order: which of brightness (0), contrast, saturation and hue (3), and how much.
    pub steps: Vec<(u8, f32)>,
    /// All colour is taken away at the end.
    pub grey: bool,
}

impl Jitter {
    /// Colour jitter with p = 0.8, its four parts in random order; grey with p = 0.02.
    pub fn sample(rng: &mut ChaCha8Rng, (brightness, contrast, saturation, hue): (f64, f64, f64, f64)) -> Self {
        let mut steps = Vec::new();
        if unit(rng) < 0.8 {
            for (which, range) in [brightness, contrast, saturation, hue].into_iter().enumerate() {
                let centre = if which == 3 { 0.0 } else { 1.0 };
                let value = (centre + (unit(rng) * 2.0 - 1.0) * range) as f32;
                steps.push((which as u8, if which == 3 { value } else { value.max(0.0) }));
            }
            shuffle(rng, &mut steps);
        }
        Self { steps, grey: unit(rng) < 0.02 }
    }

    /// What torchvision's `ColorJitter` and `RandomGrayscale` make of a Pillow image for these numbers, to the same bytes.
    fn apply(&self, image: &mut Rgb) {
        for &(which, amount) in &self.steps {
            match which {
                0 => image.data.iter_mut().for_each(|value| *value = blend(0, *value, amount)),
                1 => {
                    let sum: u64 = image.data.chunks_exact(3).map(|pixel| u64::from(grey(pixel))).sum();
                    let mean = (sum as f64 / (image.height * image.width) as f64 + 0.5) as u8;
                    image.data.iter_mut().for_each(|value| *value = blend(mean, *value, amount));
                }
                2 => image.data.chunks_exact_mut(3).for_each(|pixel| {
                    let grey = grey(pixel);
                    pixel.iter_mut().for_each(|value| *value = blend(grey, *value, amount));
                }),
                _ => image.data.chunks_exact_mut(3).for_each(|pixel| turn_hue(pixel, amount)),
            }
        }
        if self.grey {
            image.data.chunks_exact_mut(3).for_each(|pixel| pixel.fill(grey(pixel)));
        }
    }
}

/// `Image.blend` of two values: from the first at 0 over the second at 1 and beyond, cut off after the point.
fn blend(from: u8, to: u8, amount: f32) -> u8 {
    // A cast holds the value to 0..=255, as Pillow does outside of 0..=1.
    (f32::from(from) + amount * (f32::from(to) - f32::from(from))) as u8
}

/// `Image.convert("L")`: the luma of ITU-R 601 in fixed point.
fn grey(pixel: &[u8]) -> u8 {
    let [r, g, b] = [pixel[0], pixel[1], pixel[2]].map(u32::from);
    ((r * 19595 + g * 38470 + b * 7471 + 0x8000) >> 16) as u8
}

/// torchvision's `adjust_hue` of a Pillow image: hue, saturation and value have 8 bits, and the hue turns by whole steps.
fn turn_hue(pixel: &mut [u8], turn: f32) {
    let [hue, saturation, value] = hsv(pixel);
    // numpy's cast of an int32 to uint8 wraps.
    let hue = hue.wrapping_add((f64::from(turn) * 255.0) as i32 as u8);
    pixel.copy_from_slice(&rgb([hue, saturation, value]));
}

/// `Image.convert("HSV")`.
fn hsv(pixel: &[u8]) -> [u8; 3] {
    let [r, g, b] = [pixel[0], pixel[1], pixel[2]];
    let (high, low) = (r.max(g).max(b), r.min(g).min(b));
    if high == low {
        return [0, 0, high];
    }
    let range = f32::from(high - low);
    let from_high = |channel: u8| f64::from(f32::from(high - channel) / range);
    let sixths = match high {
        _ if high == r => from_high(b) - from_high(g),
        _ if high == g => 2.0 + from_high(r) - from_high(b),
        _ => 4.0 + from_high(g) - from_high(r),
    };
    // Pillow keeps the sixths and the hue in single precision and computes in double between.
    let hue = (f64::from(sixths as f32) / 6.0 + 1.0) % 1.0;
    let saturation = range / f32::from(high);
    [(f64::from(hue as f32) * 255.0) as u8, (f64::from(saturation) * 255.0) as u8, high]
}

/// `convert("RGB")` of HSV.
fn rgb([hue, saturation, value]: [u8; 3]) -> [u8; 3] {
    if saturation == 0 {
        return [value; 3];
    }
    let sixths = f32::from(hue) * 6.0 / 255.0;
    let saturation = f32::from(saturation) / 255.0;
    let fraction = sixths - sixths.floor();
    let darker = |by: f32| (f32::from(value) * (1.0 - by)).round() as u8;
    let (low, falling, rising) =
        (darker(saturation), darker(saturation * fraction), darker(saturation * (1.0 - fraction)));
    match sixths as u8 % 6 {
        0 => [value, rising, low],
        1 => [falling, value, low],
        2 => [low, value, rising],
        3 => [low, falling, value],
        4 => [rising, low, value],
        _ => [value, low, falling],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::rng::stream;

    /// A mark in the full image is found in the window where `crop_to_image` says, within one pixel.
    #[test]
    fn there_and_back_within_a_pixel() {
        let image = (60, 90);
        for i in 0..200 {
            let mut rng = stream(7, i, "x", "augment");
            let transform = Transform::sample_long(&mut rng, image, (40, 200), 64);
            // A map whose values name their own pixel.
            let map = Grid::new(image.0, image.1, (0..image.0 * image.1).map(|i| i as i64).collect());
            let window = transform.apply_grid(&map, -1);
            let padding = transform.padding();
            for (y, x) in [(0, 0), (5, 40), (32, 32), (63, 63), (50, 7)] {
                let id = window.at(y, x);
                assert_eq!(id < 0, padding[y * 64 + x]);
                if id >= 0 {
                    let (full_y, full_x) = transform.crop_to_image(y as f64 + 0.5, x as f64 + 0.5);
                    let (true_y, true_x) = ((id / 90) as f64 + 0.5, (id % 90) as f64 + 0.5);
                    assert!((full_y - true_y).abs() <= 1.0 && (full_x - true_x).abs() <= 1.0, "{transform:?}");
                }
            }
        }
    }

    #[test]
    fn a_full_turn_of_hue_is_none() {
        for pixel in [[10u8, 200, 90], [255, 0, 0], [30, 30, 200], [7, 7, 7]] {
            let mut turned = pixel;
            turn_hue(&mut turned, 1.0);
            // Hue has 8 bits, of which a full turn takes 255, and is cut off below: up to two steps of 6 levels are lost.
            assert!(pixel.iter().zip(&turned).all(|(a, b)| a.abs_diff(*b) <= 12), "{pixel:?} {turned:?}");
        }
        let mut red = [255, 0, 0];
        turn_hue(&mut red, 1.0 / 3.0);
        assert_eq!(red, [0, 255, 0]);
    }
}
