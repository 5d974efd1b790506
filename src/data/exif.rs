//! Which way up an image is to be seen: the EXIF field that cameras and phones write.

use std::io::Cursor;

use exif::{In, Tag};

use crate::vision::Rgb;

/// EXIF's orientation: what a viewer does to the stored pixels before it shows them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Orientation {
    /// First rows become columns.
    transposed: bool,
    /// Then each row is read from its end.
    mirrored: bool,
    /// Then the rows are read from the last.
    upside_down: bool,
}

impl Orientation {
    /// Of a JPEG's or PNG's bytes; upright where they say nothing, or a number that EXIF does not have.
    pub fn of(bytes: &[u8]) -> Self {
        let mut reader = exif::Reader::new();
        // A field that cannot be read does not hide the others.
        reader.continue_on_error(true);
        let fields = match reader.read_from_container(&mut Cursor::new(bytes)) {
            Ok(fields) => fields,
            Err(error) => match error.distill_partial_result(|_| ()) {
                Ok(fields) => fields,
                Err(_) => return Self::default(),
            },
        };
        let number = fields.get_field(Tag::Orientation, In::PRIMARY).and_then(|field| field.value.get_uint(0));
        Self::of_number(number.unwrap_or(1))
    }

    /// By the table of EXIF 2.32, 4.6.4 A.
    fn of_number(number: u32) -> Self {
        let (transposed, mirrored, upside_down) = match number {
            2 => (false, true, false),
            3 => (false, true, true),
            4 => (false, false, true),
            5 => (true, false, false),
            6 => (true, true, false),
            7 => (true, true, true),
            8 => (true, false, true),
            _ => (false, false, false),
        };
        Self { transposed, mirrored, upside_down }
    }

    pub fn is_upright(self) -> bool {
        self == Self::default()
    }

    /// Width and height change places.
    pub fn swaps_sides(self) -> bool {
        self.transposed
    }

    /// The image as a viewer shows it, as Pillow's `ImageOps.exif_transpose`.
    pub fn turn(self, image: Rgb) -> Rgb {
        if self.is_upright() {
            return image;
        }
        let (height, width) = if self.transposed { (image.width, image.height) } else { (image.height, image.width) };
        let mut data = Vec::with_capacity(image.data.len());
        for y in 0..height {
            for x in 0..width {
                let y = if self.upside_down { height - 1 - y } else { y };
                let x = if self.mirrored { width - 1 - x } else { x };
                let at = if self.transposed { x * image.width + y } else { y * image.width + x };
                data.extend_from_slice(&image.data[at * 3..at * 3 + 3]);
            }
        }
        Rgb { height, width, data }
    }
}
