//! Where the pixels of a window lie in SAM's frame of 1024, there and back.

use tch::{Device, Tensor};

use crate::data::augment::Transform;
use crate::model::memory::upload;
use crate::model::sam::{IMAGE_SIZE, resized_size};

/// Side of SAM's low-resolution logits.
const LOW_RES: i64 = 256;

/// What the frame shows of what the window shows.
#[derive(Clone, Copy, Debug)]
pub enum View {
    /// The whole image, its longer side at 1024; the window is cut from it.
    Cut(Transform),
    /// The whole image, and so does the window.
    Whole { height: usize, width: usize },
    /// The window itself, a square, drawn at 1024 x 1024.
    Alone { side: usize },
}

/// How a pixel becomes a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pointing {
    /// Both axes are scaled by 1024 / height.
    pub by_height: bool,
    /// A pixel means its centre, else its corner.
    pub centre: bool,
}

impl View {
    /// Height and width of the window.
    pub fn size(&self) -> [i64; 2] {
        match *self {
            Self::Cut(transform) => [transform.crop as i64; 2],
            Self::Whole { height, width } => [height as i64, width as i64],
            Self::Alone { side } => [side as i64; 2],
        }
    }

    /// A pixel of the window as a point x, y of the frame. The prompt encoder adds half a pixel, so this takes it off.
    pub(super) fn point(&self, y: usize, x: usize, pointing: Pointing) -> [f32; 2] {
        let ((y, x), (inner, image)) = (self.image_place(y as f64 + 0.5, x as f64 + 0.5), self.scales());
        let place = |at: f64, axis: usize| {
            let (to, from) =
                if pointing.by_height { (IMAGE_SIZE as f64, image[0]) } else { (inner[axis], image[axis]) };
            let pixel = if pointing.centre { 1.0 } else { self.pixel()[axis] * to / from };
            (at * to / from - 0.5 * pixel) as f32
        };
        [place(x, 1), place(y, 0)]
    }

    /// Logits of frames, `(N, 1, h, w)`, in windows, `(N, H, W)`: bilinear, pixel centres at half.
    ///
    /// - `grid`: of [`Self::grids_in_frame`] those of the windows, where the logits are
    pub(super) fn in_window(logits: &Tensor, grid: &Tensor) -> Tensor {
        logits.grid_sampler(grid, 0, 1, false).squeeze_dim(1)
    }

    /// Scores of the window, `(H, W)`, in the frame at low resolution, `(256, 256)`; 0 outside the window.
    pub(super) fn in_frame(&self, scores: &Tensor) -> Tensor {
        // Along an axis the frame is an affine function of the window, and this is its inverse.
        let ((y0, x0), (y1, x1)) = (self.place(0.0, 0.0), self.place(1.0, 1.0));
        let [height, width] = self.size();
        let step = IMAGE_SIZE as f64 / LOW_RES as f64;
        let axis = |i: i64, zero: f64, one: f64, side: i64| {
            (((i as f64 + 0.5) * step - zero) / (one - zero) / side as f64 * 2.0 - 1.0) as f32
        };
        let place = |i: i64| [axis(i % LOW_RES, x0, x1, width), axis(i / LOW_RES, y0, y1, height)];
        let grid: Vec<f32> = (0..LOW_RES * LOW_RES).flat_map(place).collect();
        let grid = Tensor::from_slice(&grid).view([1, LOW_RES, LOW_RES, 2]).to_device(scores.device());
        scores.view([1, 1, height, width]).grid_sampler(&grid, 0, 0, false).view([LOW_RES, LOW_RES])
    }

    /// Where each pixel of windows of one size lies in the frame, -1 to 1: `(N, H, W, 2)` x, y, on a device.
    pub(super) fn grids_in_frame(views: &[Self], device: Device) -> Tensor {
        let [height, width] = views.first().map_or([0; 2], Self::size);
        let of_frame = |at: f64| (at / IMAGE_SIZE as f64 * 2.0 - 1.0) as f32;
        // Where a row lies does not depend on the column.
        let rows = |view: &Self| (0..height).map(|y| of_frame(view.place(y as f64 + 0.5, 0.5).0)).collect::<Vec<_>>();
        let columns = |view: &Self| (0..width).map(|x| of_frame(view.place(0.5, x as f64 + 0.5).1)).collect::<Vec<_>>();
        let rows: Vec<f32> = views.iter().flat_map(rows).collect();
        let columns: Vec<f32> = views.iter().flat_map(columns).collect();
        let n = views.len() as i64;
        let rows = upload(&Tensor::from_slice(&rows).view([n, height, 1]), device);
        let columns = upload(&Tensor::from_slice(&columns).view([n, 1, width]), device);
        Tensor::stack(&[columns, rows].map(|x| x.expand([n, height, width], false)), 3)
    }

    /// A place in the window (y, x; the centre of the first pixel is 0.5, 0.5) as a place in the frame.
    fn place(&self, y: f64, x: f64) -> (f64, f64) {
        let ((y, x), (inner, image)) = (self.image_place(y, x), self.scales());
        (y * inner[0] / image[0], x * inner[1] / image[1])
    }

    /// A place in the window as a place in what the frame shows.
    fn image_place(&self, y: f64, x: f64) -> (f64, f64) {
        match self {
            Self::Cut(transform) => transform.crop_to_image(y, x),
            Self::Whole { .. } | Self::Alone { .. } => (y, x),
        }
    }

    /// Height and width of what the frame shows: in the frame, and as it is.
    fn scales(&self) -> ([f64; 2], [f64; 2]) {
        let (height, width) = match *self {
            Self::Cut(transform) => transform.image,
            Self::Whole { height, width } => (height, width),
            Self::Alone { side } => (side, side),
        };
        let (inner_h, inner_w) = resized_size(height, width);
        ([inner_h as f64, inner_w as f64], [height as f64, width as f64])
    }

    /// Height and width of a pixel of the window in what the frame shows.
    fn pixel(&self) -> [f64; 2] {
        match *self {
            Self::Cut(Transform { image, resized, .. }) => {
                [image.0 as f64 / resized.0 as f64, image.1 as f64 / resized.1 as f64]
            }
            Self::Whole { .. } | Self::Alone { .. } => [1.0; 2],
        }
    }
}

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::*;
    use crate::data::rng::{integer, stream};
    use crate::vision::Grid;

    const CENTRES: Pointing = Pointing { by_height: false, centre: true };

    fn transform(seed: u64, image: (usize, usize)) -> Transform {
        Transform::sample_long(&mut stream(seed, 0, "x", "augment"), image, (40, 120), 64)
    }

    fn floats(x: &Tensor) -> Vec<f32> {
        Vec::try_from(x.contiguous().view([-1])).unwrap()
    }

    /// A half-plane of the image, painted in SAM's frame, lands where the same half-plane of the image's own pixels
    /// does, but for a rim of one pixel; mirrored, cut and padded as the transform says.
    #[test]
    fn a_mask_comes_forward_where_its_image_does() {
        for (seed, image) in (0..60).zip([(90, 60), (60, 90), (75, 75)].into_iter().cycle()) {
            let transform = transform(seed, image);
            let (_, inner_w) = resized_size(image.0, image.1);
            let split = image.1 as f64 * 0.4;
            let low_res: Vec<f32> = (0..256 * 256)
                .map(|i| (((i % 256) as f64 + 0.5) * 4.0 * image.1 as f64 / inner_w as f64 - split) as f32)
                .collect();
            let low_res = Tensor::from_slice(&low_res).view([1, 1, 256, 256]);
            let logits =
                floats(&View::in_window(&low_res, &View::grids_in_frame(&[View::Cut(transform)], Device::Cpu)));
            let columns =
                Grid::new(image.0, image.1, (0..image.0 * image.1).map(|i| (i % image.1) as f64 + 0.5).collect());
            let columns = transform.apply_grid(&columns, f64::NAN);
            for (i, (&logit, &column)) in logits.iter().zip(&columns.data).enumerate() {
                // Nearest neighbour is off by at most half a pixel of the image or of the window.
                assert!(column.is_nan() || (f64::from(logit) - (column - split)).abs() <= 1.3, "{transform:?} {i}");
            }
        }
    }

    /// Small ones, and those of photographs.
    fn views() -> impl Iterator<Item = View> {
        let small = (0..20).map(|seed| View::Cut(transform(seed, (60 + 3 * seed as usize, 90))));
        let photograph = |seed| {
            let mut rng = stream(seed, 3, "x", "augment");
            View::Cut(Transform::sample_long(&mut rng, (375, 500), (256, 512), 256))
        };
        let others = [(75, 50), (375, 500)].map(|(height, width)| View::Whole { height, width });
        let alone = [64, 256].map(|side| View::Alone { side });
        small.chain((0..10).map(photograph)).chain(others).chain(alone)
    }

    /// A pixel's prompt lies in the frame where the mask of that pixel is read from.
    #[test]
    fn points_and_masks_share_one_geometry() {
        for (seed, view) in views().enumerate() {
            let [height, width] = view.size();
            let mut rng = stream(seed as u64, 1, "x", "place");
            let (y, x) = (integer(&mut rng, 0, height - 1) as usize, integer(&mut rng, 0, width - 1) as usize);
            let grid = floats(&View::grids_in_frame(&[view], Device::Cpu));
            let place = |axis: usize| (grid[(y * width as usize + x) * 2 + axis] + 1.0) / 2.0 * IMAGE_SIZE as f32 - 0.5;
            let point = view.point(y, x, CENTRES);
            assert!((point[0] - place(0)).abs() < 1e-2 && (point[1] - place(1)).abs() < 1e-2);
        }
    }

    /// A disc of the window goes to the frame and comes back: the pixels that then differ touch its edge.
    #[test]
    fn a_mask_goes_around_the_loop_within_a_pixel() {
        for (seed, view) in views().enumerate() {
            let [height, width] = view.size();
            let mut rng = stream(seed as u64, 2, "x", "place");
            let (y, x) = (integer(&mut rng, 20, height - 20), integer(&mut rng, 20, width - 20));
            let distance = |i: i64| (((i / width - y).pow(2) + (i % width - x).pow(2)) as f32).sqrt() - 14.3;
            let distances: Vec<f32> = (0..height * width).map(distance).collect();
            let mask: Vec<f32> = distances.iter().map(|&distance| f32::from(u8::from(distance < 0.0))).collect();
            let frame = view.in_frame(&Tensor::from_slice(&mask).view([height, width]));
            let back =
                floats(&View::in_window(&frame.view([1, 1, 256, 256]), &View::grids_in_frame(&[view], Device::Cpu)));
            for (i, (&distance, &back)) in distances.iter().zip(&back).enumerate() {
                // What a transform cuts off from the image has no place in the frame to come back from.
                let (place_y, place_x) = view.place((i as i64 / width) as f64 + 0.5, (i as i64 % width) as f64 + 0.5);
                let in_it = |at: f64| (4.0..IMAGE_SIZE as f64 - 4.0).contains(&at);
                let is_out = !in_it(place_y) || !in_it(place_x);
                assert!(is_out || distance.abs() <= 1.0 || (back > 0.5) == (distance < 0.0), "{view:?} {i}");
            }
        }
    }

    /// The authors' way to a point is off by a known part of a pixel, and by the sides' ratio on wide images.
    #[test]
    fn other_ways_to_point() {
        let alone = View::Alone { side: 256 };
        let corner = |by_height| Pointing { by_height, centre: false };
        assert_eq!(alone.point(10, 20, CENTRES), [81.5, 41.5]);
        assert_eq!(alone.point(10, 20, corner(false)), [80.0, 40.0]);
        assert_eq!(alone.point(10, 20, corner(true)), [80.0, 40.0]);

        let wide = View::Whole { height: 256, width: 512 };
        assert_eq!(wide.point(10, 20, corner(false)), [40.0, 20.0]);
        assert_eq!(wide.point(10, 20, corner(true)), [80.0, 40.0]);
        let high = View::Whole { height: 512, width: 256 };
        assert_eq!(high.point(10, 20, corner(true)), high.point(10, 20, corner(false)));

        // Mirrored, the pixel at the left edge of the window is one at the right edge of the image.
        let mirrored = Transform { image: (256, 256), resized: (512, 512), flip: true, crop: 64, offset: (0, 0) };
        assert_eq!(View::Cut(mirrored).point(0, 0, corner(false)), [1022.0, 0.0]);
        assert_eq!(View::Cut(mirrored).point(0, 0, CENTRES), [1022.5, 0.5]);
    }

    #[test]
    fn what_lies_outside_the_window_is_0_in_the_frame() {
        let half = Transform { image: (64, 64), resized: (64, 64), flip: false, crop: 32, offset: (0, 32) };
        let frame = View::Cut(half).in_frame(&Tensor::ones([32, 32], (Kind::Float, Device::Cpu)));
        let sum = |x: i64| f64::try_from(frame.narrow(0, 0, 128).narrow(1, x, 128).mean(Kind::Float)).unwrap();
        assert!(sum(0) < 0.01 && sum(128) > 0.97, "{} {}", sum(0), sum(128));
    }
}
