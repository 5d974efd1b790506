//! Images, label maps and SE maps to and from bytes.

use std::io::Cursor;

use anyhow::{Context, bail, ensure};

use super::door::Format;
pub use super::exif::Orientation;
use super::jpeg;
pub use super::resize::{Filter, resize_rgb};
use crate::vision::{Grid, LabelMap, Rgb, SeMap};

/// An image of more pixels than this is refused, as Pillow does: no data set has one, and a few bytes can declare it.
pub const MAX_PIXELS: usize = 178_956_970;

/// Stands before the bytes of a JPEG or PNG whose EXIF orientation is to be applied. A data set puts it there, so that
/// the digest of an image, and with it every key, tells whether the image is read as stored or as viewers show it.
pub const TURNED: &[u8] = b"S2CTURN1";

/// An RGB image from the bytes of a JPEG or PNG: the pixels of Pillow's `Image.open(file).convert("RGB")`, bit for bit.
/// Grey and palette images are expanded and alpha is dropped. EXIF's orientation is applied behind [`TURNED`] alone.
///
/// # Errors
/// The bytes are another format, are cut off or damaged, declare more than [`MAX_PIXELS`], or are 16-bit grey of a range
/// that they do not tell.
pub fn decode_rgb(bytes: &[u8]) -> anyhow::Result<Rgb> {
    if let Some(stored) = bytes.strip_prefix(TURNED) {
        return Ok(Orientation::of(stored).turn(decode_rgb(stored)?));
    }
    let check = |width: usize, height: usize| check_size(width, height, bytes.len());
    match Format::of(bytes) {
        Format::Jpeg => jpeg::decode(bytes, check),
        Format::Png => decode_png(bytes, check),
        Format::OtherPicture(what) => {
            bail!("it is {what}; images are read as JPEG or PNG, so convert it to one of them")
        }
        Format::NoPicture(what) => bail!("it is {what}, not a JPEG or PNG image"),
    }
}

/// Refuses what is declared and cannot be, before memory is taken for it.
pub(super) fn check_size(width: usize, height: usize, bytes: usize) -> anyhow::Result<()> {
    let pixels = width.saturating_mul(height);
    ensure!(pixels <= MAX_PIXELS, "it declares {width}x{height} pixels; at most {MAX_PIXELS} are read");
    // Neither deflate nor a JPEG of one bit a block of 8x8 holds more pixels in a byte than this.
    ensure!(pixels / 8300 <= bytes, "it is cut off: it declares {width}x{height} pixels and has {bytes} bytes");
    Ok(())
}

fn decode_png(bytes: &[u8], check: impl Fn(usize, usize) -> anyhow::Result<()>) -> anyhow::Result<Rgb> {
    let broken = "not a whole PNG image";
    let mut decoder = png::Decoder::new(Cursor::new(bytes));
    decoder.set_ignore_text_chunk(true);
    decoder.set_ignore_iccp_chunk(true);
    let header = decoder.read_header_info().context(broken)?;
    check(header.width as usize, header.height as usize)?;
    let is_grey_16 = (header.color_type, header.bit_depth) == (png::ColorType::Grayscale, png::BitDepth::Sixteen);
    let (expand, strip) = (png::Transformations::EXPAND, png::Transformations::STRIP_16);
    decoder.set_transformations(if is_grey_16 { png::Transformations::IDENTITY } else { expand | strip });
    let (info, data) = frame(decoder)?;
    let data = match info.color_type {
        _ if is_grey_16 => {
            // The authors of such files have other ranges in mind: 65,535 for white, or what a camera of 10 or 12 bits gave.
            let largest = data.chunks_exact(2).map(|value| u16::from_be_bytes([value[0], value[1]])).max().unwrap_or(0);
            ensure!(
                largest == 0 || largest > 4095,
                "it is 16-bit grey with no value over {largest}, which may be dark or of 12 bits; save it with 8 bits"
            );
            data.chunks_exact(2).flat_map(|value| [value[0]; 3]).collect()
        }
        png::ColorType::Grayscale => data.iter().flat_map(|&value| [value; 3]).collect(),
        png::ColorType::GrayscaleAlpha => data.chunks_exact(2).flat_map(|value| [value[0]; 3]).collect(),
        png::ColorType::Rgba => data.chunks_exact(4).flat_map(|value| [value[0], value[1], value[2]]).collect(),
        png::ColorType::Rgb | png::ColorType::Indexed => data,
    };
    Ok(Rgb { height: info.height as usize, width: info.width as usize, data })
}

/// The pixels of a PNG with alpha; a pixel is opaque where the file has none.
pub(super) fn decode_rgba_png(bytes: &[u8]) -> anyhow::Result<Vec<[u8; 4]>> {
    let mut decoder = png::Decoder::new(Cursor::new(bytes));
    decoder.set_transformations(png::Transformations::ALPHA | png::Transformations::STRIP_16);
    let (info, data) = frame(decoder)?;
    Ok(match info.color_type {
        png::ColorType::Rgba => data.chunks_exact(4).map(|p| [p[0], p[1], p[2], p[3]]).collect(),
        png::ColorType::GrayscaleAlpha => data.chunks_exact(2).map(|p| [p[0], p[0], p[0], p[1]]).collect(),
        other => bail!("a PNG of {other:?} has no alpha"),
    })
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

/// The 256 colours of VOC label maps, RGB after RGB: the bits of the index, spread over the channels.
pub fn voc_palette() -> Vec<u8> {
    let colour = |index: u32| {
        let channel = |shift: u32| (0..8).fold(0u8, |c, j| c | ((((index >> (3 * j + shift)) & 1) as u8) << (7 - j)));
        [channel(0), channel(1), channel(2)]
    };
    (0..256).flat_map(colour).collect()
}

fn decode_png_as_is(bytes: &[u8]) -> anyhow::Result<(png::OutputInfo, Vec<u8>)> {
    ensure!(Format::of(bytes) == Format::Png, "not a PNG image");
    let mut decoder = png::Decoder::new(Cursor::new(bytes));
    decoder.set_transformations(png::Transformations::IDENTITY);
    let header = decoder.read_header_info().context("not a whole PNG image")?;
    check_size(header.width as usize, header.height as usize, bytes.len())?;
    frame(decoder)
}

/// The image, or the first frame of an animation.
fn frame(decoder: png::Decoder<Cursor<&[u8]>>) -> anyhow::Result<(png::OutputInfo, Vec<u8>)> {
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
