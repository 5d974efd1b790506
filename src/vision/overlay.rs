//! Pictures of results: an image beside what each stage made of it.

use super::{Cam, IGNORE, LabelMap, Rgb, SeMap};

/// Pixels between panels.
const GAP: usize = 4;

/// One row: panels of one height, side by side; `None` leaves an empty panel of the width of the first.
pub fn row(panels: &[Option<Rgb>]) -> Rgb {
    let Some(first) = panels.iter().flatten().next() else { return Rgb { height: 0, width: 0, data: Vec::new() } };
    let (height, panel) = (first.height, first.width);
    let width = (panel + GAP) * panels.len() - GAP;
    let mut data = vec![255; height * width * 3];
    for (i, picture) in panels.iter().enumerate() {
        let Some(picture) = picture else { continue };
        for (y, line) in picture.data.chunks_exact(picture.width * 3).take(height).enumerate() {
            let at = (y * width + i * (panel + GAP)) * 3;
            let n = line.len().min(panel * 3);
            data[at..at + n].copy_from_slice(&line[..n]);
        }
    }
    Rgb { height, width, data }
}

/// Rows one above the other; white beside the shorter ones.
pub fn column(rows: &[Rgb]) -> Rgb {
    let width = rows.iter().map(|row| row.width).max().unwrap_or(0);
    let mut data = Vec::new();
    for (i, row) in rows.iter().enumerate() {
        if i > 0 {
            data.extend(std::iter::repeat_n(255, GAP * width * 3));
        }
        for line in row.data.chunks_exact((row.width * 3).max(1)) {
            data.extend_from_slice(line);
            data.extend(std::iter::repeat_n(255, (width - row.width) * 3));
        }
    }
    let height = data.len() / (width * 3).max(1);
    Rgb { height, width, data }
}

/// The highest score over all classes as colour over the image: blue is 0, red is 1.
pub fn cam_over(image: &Rgb, cam: &Cam) -> Rgb {
    let pixels = image.height * image.width;
    let score = |i: usize| cam.data.iter().skip(i).step_by(pixels).fold(0.0f32, |best, &score| best.max(score));
    over(image, 0.5, |i| Some(heat(score(i))))
}

/// Segments in arbitrary colours over the image; pixels in no segment are black.
pub fn se_map_over(image: &Rgb, map: &SeMap) -> Rgb {
    over(image, 0.65, |i| {
        let id = u32::from(map.data[i]);
        // Neighbouring ids get colours far apart.
        let colour = |shift: u32| (id.wrapping_mul(2_654_435_761) >> shift) as u8;
        Some(if id == 0 { [0; 3] } else { [colour(24) | 32, colour(16) | 32, colour(8) | 32] })
    })
}

/// Labels in the given palette over the image; background shows the image, ignored pixels are white.
pub fn labels_over(image: &Rgb, labels: &LabelMap, palette: &[u8]) -> Rgb {
    over(image, 0.6, |i| match labels.data[i] {
        0 => None,
        IGNORE => Some([255; 3]),
        label => palette.chunks_exact(3).nth(usize::from(label)).map(|c| [c[0], c[1], c[2]]),
    })
}

fn over(image: &Rgb, strength: f32, colour: impl Fn(usize) -> Option<[u8; 3]>) -> Rgb {
    let mix = |(i, pixel): (usize, &[u8])| match colour(i) {
        None => [pixel[0], pixel[1], pixel[2]],
        Some(colour) => std::array::from_fn(|c| {
            (f32::from(pixel[c]) * (1.0 - strength) + f32::from(colour[c]) * strength).round() as u8
        }),
    };
    let data = image.data.chunks_exact(3).enumerate().flat_map(mix).collect();
    Rgb { height: image.height, width: image.width, data }
}

/// Blue, cyan, yellow, red.
fn heat(score: f32) -> [u8; 3] {
    let ramp = |centre: f32| ((1.5 - (score * 4.0 - centre).abs()).clamp(0.0, 1.0) * 255.0) as u8;
    [ramp(3.0), ramp(2.0), ramp(1.0)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vision::Grid;

    #[test]
    fn panels_lie_side_by_side_and_one_above_the_other() {
        let red = Rgb { height: 2, width: 3, data: [255, 0, 0].repeat(6) };
        let line = row(&[Some(red.clone()), None, Some(red)]);
        assert_eq!((line.height, line.width), (2, 3 * 3 + 2 * GAP));
        let at = |x: usize| &line.data[x * 3..x * 3 + 3];
        assert_eq!(
            (at(0), at(3), at(8), at(3 + GAP * 2 + 3)),
            (&[255, 0, 0][..], &[255; 3][..], &[255; 3][..], &[255, 0, 0][..])
        );
        let both = column(&[line.clone(), line.clone()]);
        assert_eq!((both.height, both.width), (4 + GAP, line.width));
    }

    #[test]
    fn background_shows_the_image_and_a_score_of_one_is_red() {
        let image = Rgb { height: 1, width: 3, data: vec![100; 9] };
        let palette = [0, 0, 0, 0, 200, 0];
        let shown = labels_over(&image, &Grid::new(1, 3, vec![0, 1, IGNORE]), &palette);
        assert_eq!(shown.data[..3], [100; 3]);
        assert!(shown.data[4] > shown.data[3] && shown.data[6] > 150);
        let cam = Cam { classes: vec![1, 2], height: 1, width: 3, data: vec![0.0, 1.0, 0.2, 0.0, 0.1, 0.9] };
        let shown = cam_over(&image, &cam);
        assert!(shown.data[2] > shown.data[0], "a score of 0 is blue");
        assert!(shown.data[3] > shown.data[5], "a score of 1 is red");
    }
}
