//! JPEG by libjpeg-turbo, which Pillow, OpenCV and torchvision decode with as well: the same pixels, bit for bit.

use std::ffi::{CStr, c_int};

use anyhow::{bail, ensure};
use turbojpeg_sys as raw;

use crate::vision::Rgb;

/// Warnings of libjpeg that leave every pixel as it was written: bytes between segments, and numbers in headers that
/// decoding does not use. Any other warning means that pixels are missing or invented.
const HARMLESS: [&str; 4] =
    ["extraneous bytes before marker", "unknown JFIF revision", "Unknown Adobe color", "Invalid SOS parameters"];

/// A file of more scans than this is made to keep a decoder busy: a progressive JPEG has about ten.
const MAX_SCANS: c_int = 500;

/// The image as Pillow's `Image.open(file).convert("RGB")` has it; `check_size` may refuse a width and height before
/// any pixel is allocated.
///
/// # Errors
/// The bytes are no JPEG that libjpeg-turbo reads, or it is cut off or damaged: what is missing would be grey.
pub(super) fn decode(bytes: &[u8], check_size: impl FnOnce(usize, usize) -> anyhow::Result<()>) -> anyhow::Result<Rgb> {
    let mut decoder = Decoder::new()?;
    let Header { width, height, is_cmyk } = decoder.header(bytes)?;
    check_size(width, height)?;
    let format = if is_cmyk { raw::TJPF_TJPF_CMYK } else { raw::TJPF_TJPF_RGB };
    let mut data = vec![0; width * height * if is_cmyk { 4 } else { 3 }];
    // The handle keeps the last warning alone, so a harmless one could hide what came before: the first decides, and
    // where the first is harmless, the last.
    let first = decoder.pixels(bytes, &mut data, width, format, true)?;
    let warnings = match first {
        None => vec![],
        Some(first) => vec![Some(first), decoder.pixels(bytes, &mut data, width, format, false)?],
    };
    for warning in warnings.into_iter().flatten() {
        ensure!(HARMLESS.iter().any(|harmless| warning.contains(harmless)), "the JPEG is {}", damage(&warning));
    }
    let data = if is_cmyk { data.chunks_exact(4).flat_map(rgb_of_inverted_cmyk).collect() } else { data };
    Ok(Rgb { height, width, data })
}

fn damage(warning: &str) -> String {
    match warning.contains("Premature end of JPEG") || warning.contains("premature end of data") {
        true => "cut off: its data ends before the picture does".to_owned(),
        false => format!("damaged ({})", warning.trim_start_matches("Corrupt JPEG data: ")),
    }
}

/// Pillow takes every CMYK JPEG for one of Adobe's, which store 255 for no ink.
fn rgb_of_inverted_cmyk(cmyk: &[u8]) -> [u8; 3] {
    let key = u32::from(cmyk[3]);
    [0, 1, 2].map(|c| {
        let ink = 255 - u32::from(cmyk[c]);
        let product = ink * key + 128;
        key.saturating_sub((product + (product >> 8)) >> 8) as u8
    })
}

struct Header {
    width: usize,
    height: usize,
    is_cmyk: bool,
}

/// An owned handle of the TurboJPEG library.
struct Decoder(raw::tjhandle);

impl Drop for Decoder {
    fn drop(&mut self) {
        #[expect(unsafe_code, reason = "a C library")]
        // SAFETY: the handle is this decoder's own and is used by nobody after it.
        unsafe {
            raw::tj3Destroy(self.0);
        }
    }
}

impl Decoder {
    #[expect(unsafe_code, reason = "a C library")]
    fn new() -> anyhow::Result<Self> {
        // SAFETY: a call without preconditions; a null pointer says that memory is out.
        let handle = unsafe { raw::tj3Init(raw::TJINIT_TJINIT_DECOMPRESS as c_int) };
        ensure!(!handle.is_null(), "libjpeg-turbo has no memory left");
        let decoder = Self(handle);
        decoder.set(raw::TJPARAM_TJPARAM_SCANLIMIT, MAX_SCANS);
        Ok(decoder)
    }

    #[expect(unsafe_code, reason = "a C library")]
    fn set(&self, parameter: raw::TJPARAM, value: c_int) {
        // SAFETY: the handle is alive.
        unsafe { raw::tj3Set(self.0, parameter as c_int, value) };
    }

    #[expect(unsafe_code, reason = "a C library")]
    fn get(&self, parameter: raw::TJPARAM) -> c_int {
        // SAFETY: the handle is alive.
        unsafe { raw::tj3Get(self.0, parameter as c_int) }
    }

    fn header(&mut self, bytes: &[u8]) -> anyhow::Result<Header> {
        self.set(raw::TJPARAM_TJPARAM_STOPONWARNING, 0);
        #[expect(unsafe_code, reason = "a C library")]
        // SAFETY: the pointer and the length are those of one slice, which the library only reads.
        let status = unsafe { raw::tj3DecompressHeader(self.0, bytes.as_ptr(), bytes.len() as raw::size_t) };
        // Pixels are asked for below, and warn again.
        self.warning(status)?;
        let side = |parameter| usize::try_from(self.get(parameter)).unwrap_or(0);
        let (width, height) = (side(raw::TJPARAM_TJPARAM_JPEGWIDTH), side(raw::TJPARAM_TJPARAM_JPEGHEIGHT));
        ensure!(width > 0 && height > 0, "not a JPEG that can be read: its header is cut off");
        let bits = self.get(raw::TJPARAM_TJPARAM_PRECISION);
        ensure!(bits == 8, "the JPEG has {bits} bits a channel; those of 8 are read");
        let is_cmyk =
            [raw::TJCS_TJCS_CMYK, raw::TJCS_TJCS_YCCK].contains(&(self.get(raw::TJPARAM_TJPARAM_COLORSPACE) as _));
        Ok(Header { width, height, is_cmyk })
    }

    /// Fills `data` and returns the warning that was given, if any: the first, at which it stops, or the last.
    fn pixels(
        &mut self,
        bytes: &[u8],
        data: &mut [u8],
        width: usize,
        format: raw::TJPF,
        stop_on_warning: bool,
    ) -> anyhow::Result<Option<String>> {
        self.set(raw::TJPARAM_TJPARAM_STOPONWARNING, c_int::from(stop_on_warning));
        let bytes_a_pixel = if format == raw::TJPF_TJPF_CMYK { 4 } else { 3 };
        #[expect(unsafe_code, reason = "a C library")]
        // SAFETY: `data` has `height` rows of `width` pixels of this format, sizes that `header` read from these bytes.
        let status = unsafe {
            raw::tj3Decompress8(
                self.0,
                bytes.as_ptr(),
                bytes.len() as raw::size_t,
                data.as_mut_ptr(),
                (width * bytes_a_pixel) as c_int,
                format,
            )
        };
        self.warning(status)
    }

    /// What the last call warned of; an error where it failed.
    #[expect(unsafe_code, reason = "a C library")]
    fn warning(&self, status: c_int) -> anyhow::Result<Option<String>> {
        if status == 0 {
            return Ok(None);
        }
        // SAFETY: the handle is alive, and the text it has belongs to it until the next call.
        let text = unsafe { CStr::from_ptr(raw::tj3GetErrorStr(self.0)) }.to_string_lossy().into_owned();
        // SAFETY: the handle is alive.
        let code = unsafe { raw::tj3GetErrorCode(self.0) };
        match code == raw::TJERR_TJERR_WARNING as c_int {
            true => Ok(Some(text)),
            false => bail!("not a JPEG that can be read ({text})"),
        }
    }
}
