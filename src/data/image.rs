//! Pictures to and from bytes, and PIL-compatible resizing.

use anyhow::{Context, ensure};
use fast_image_resize as fir;

use crate::vision::{Grid, LabelMap, Rgb, SeMap};

/// An RGB image from the bytes of a JPEG or PNG; grey and palette images are expanded, alpha is dropped.
pub fn decode_rgb(bytes: &[u8]) -> anyhow::Result<Rgb> {
    // The decoder makes grey of what is missing. In the data of a scan neither marker can stand.
    let last = |marker: [u8; 2]| bytes.windows(2).rposition(|two| two == marker);
    let is_jpeg = bytes.starts_with(&[0xff, 0xd8]);
    ensure!(!is_jpeg || last([0xff, 0xd9]) > last([0xff, 0xda]), "the JPEG is cut off");
    let mut reader = image::ImageReader::new(std::io::Cursor::new(bytes)).with_guessed_format()?;
    reader.no_limits();
    let rgb = reader.decode().context("not a whole JPEG or PNG image")?.into_rgb8();
    Ok(Rgb { height: rgb.height() as usize, width: rgb.width() as usize, data: rgb.into_raw() })
}

/// A label map from a palette or 8-bit grey PNG: the indices themselves, not their colours.
pub fn decode_label_map(bytes: &[u8]) -> anyhow::Result<LabelMap> {
    let (info, data) = decode_png_as_is(bytes)?;
    let kind = (info.color_type, info.bit_depth);
    let grid = match kind {
        (png::ColorType::Indexed | png::ColorType::Grayscale, png::BitDepth::Eight) => data,
        // Few classes may be packed, several to a byte.
        (png::ColorType::Indexed, depth) if (depth as usize) < 8 => {
            let bits = depth as usize;
            let unpack = |row: &[u8]| -> Vec<u8> {
                let value = |x: usize| (row[x * bits / 8] >> (8 - bits - x * bits % 8)) & ((1 << bits) - 1);
                (0..info.width as usize).map(value).collect()
            };
            data.chunks(info.line_size).flat_map(unpack).collect()
        }
        _ => anyhow::bail!("a label map is a palette or 8-bit grey PNG, this one is {:?} at {:?} bits", kind.0, kind.1),
    };
    Ok(Grid::new(info.height as usize, info.width as usize, grid))
}

/// A palette PNG in the colours of PASCAL VOC.
pub fn encode_label_map(map: &LabelMap) -> Vec<u8> {
    encode_png(map.width, map.height, png::ColorType::Indexed, png::BitDepth::Eight, Some(voc_palette()), &map.data)
}

/// A 16-bit grey PNG of segment ids.
pub fn encode_se_map(map: &SeMap) -> Vec<u8> {
    let bytes: Vec<u8> = map.data.iter().flat_map(|id| id.to_be_bytes()).collect();
    encode_png(map.width, map.height, png::ColorType::Grayscale, png::BitDepth::Sixteen, None, &bytes)
}

pub fn decode_se_map(bytes: &[u8]) -> anyhow::Result<SeMap> {
    let (info, data) = decode_png_as_is(bytes)?;
    let kind = (info.color_type, info.bit_depth);
    ensure!(kind == (png::ColorType::Grayscale, png::BitDepth::Sixteen), "an SE map is a 16-bit grey PNG");
    let ids = data.chunks_exact(2).map(|b| u16::from_be_bytes([b[0], b[1]])).collect();
    Ok(Grid::new(info.height as usize, info.width as usize, ids))
}

/// An RGB PNG.
pub fn encode_rgb(image: &Rgb) -> Vec<u8> {
    encode_png(image.width, image.height, png::ColorType::Rgb, png::BitDepth::Eight, None, &image.data)
}

/// PIL's filters: when shrinking they widen, so nothing aliases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    Bilinear,
    Bicubic,
}

/// Resizes like `PIL.Image.resize` (equal within one grey level).
pub fn resize_rgb(image: &Rgb, height: usize, width: usize, filter: Filter) -> Rgb {
    if (height, width) == (image.height, image.width) {
        return image.clone();
    }
    let pixel = fir::PixelType::U8x3;
    let src = fir::images::ImageRef::new(image.width as u32, image.height as u32, &image.data, pixel);
    let mut dst = fir::images::Image::new(width as u32, height as u32, pixel);
    let filter = match filter {
        Filter::Bilinear => fir::FilterType::Bilinear,
        Filter::Bicubic => fir::FilterType::CatmullRom,
    };
    let options = fir::ResizeOptions::new().resize_alg(fir::ResizeAlg::Convolution(filter));
    // Fails only for a pixel type or buffer that does not fit, and both are made right here.
    let done = src.map(|src| fir::Resizer::new().resize(&src, &mut dst, &options).is_ok());
    debug_assert_eq!(done.ok(), Some(true));
    Rgb { height, width, data: dst.into_vec() }
}

/// The 256 colours of VOC label maps, RGB after RGB: the bits of the index, spread over the channels.
pub fn voc_palette() -> Vec<u8> {
    let colour = |index: u32| {
        let channel = |shift: u32| (0..8).fold(0u8, |c, j| c | ((((index >> (3 * j + shift)) & 1) as u8) << (7 - j)));
        [channel(0), channel(1), channel(2)]
    };
    (0..256).flat_map(colour).collect()
}

fn decode_png_as_is(bytes: &[u8]) -> anyhow::Result<(png::OutputInfo, Vec<u8>)> {
    let mut decoder = png::Decoder::new(std::io::Cursor::new(bytes));
    decoder.set_transformations(png::Transformations::IDENTITY);
    let mut reader = decoder.read_info().context("not a whole PNG image")?;
    let size = reader.output_buffer_size().context("the PNG image is too large")?;
    let mut data = vec![0; size];
    let info = reader.next_frame(&mut data).context("not a whole PNG image")?;
    data.truncate(info.buffer_size());
    Ok((info, data))
}

fn encode_png(
    width: usize,
    height: usize,
    color: png::ColorType,
    depth: png::BitDepth,
    palette: Option<Vec<u8>>,
    data: &[u8],
) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, width as u32, height as u32);
    encoder.set_color(color);
    encoder.set_depth(depth);
    if let Some(palette) = palette {
        encoder.set_palette(palette);
    }
    let written = encoder.write_header().and_then(|mut writer| writer.write_image_data(data));
    // Writing to memory fails only when `data` does not fit the size, which the types above rule out.
    written.expect("a PNG image in memory");
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn label_and_se_maps_come_back() {
        let labels = Grid::new(2, 3, vec![0, 1, 20, 255, 15, 0]);
        assert_eq!(decode_label_map(&encode_label_map(&labels)).unwrap(), labels);
        let ids = Grid::new(2, 2, vec![0, 255, 256, 65535]);
        assert_eq!(decode_se_map(&encode_se_map(&ids)).unwrap(), ids);
    }

    #[test]
    fn palette_is_that_of_voc() {
        let palette = voc_palette();
        assert_eq!(palette[3..6], [128, 0, 0]); // aeroplane
        assert_eq!(palette[45..48], [192, 128, 128]); // person
        assert_eq!(palette[765..768], [224, 224, 192]); // ignored
    }

    #[test]
    fn broken_bytes_are_errors() {
        let png = encode_rgb(&Rgb { height: 4, width: 4, data: vec![7; 48] });
        assert!(decode_rgb(&png[..png.len() / 2]).is_err());
        assert!(decode_rgb(b"").is_err());
        assert!(decode_label_map(&png).is_err());
    }
}
