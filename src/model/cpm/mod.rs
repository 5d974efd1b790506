//! CAM-based Prompting Module: peaks of the CAM prompt SAM, and its masks become the map that teaches the CAM
//! (paper, section 3.3). With the encoder run once an image, prompts go from the window to the full image and masks
//! back; the authors' code runs it on each window instead.

mod map;
mod prompt;
mod view;

use rayon::prelude::*;
use tch::{Kind, Tensor};

use super::classifier::Classifier;
use super::memory::upload;
use super::sam::{IMAGE_SIZE, SamDecoder};
use crate::data::augment::{MEAN, STD, Transform};
use crate::vision::IGNORE;

pub use self::map::{MapOptions, MaskPick, SamCertainty, label_maps};
pub use self::prompt::{Answer, PromptKind, PromptOptions};
pub use self::view::{Pointing, View};

use self::prompt::{Prompt, decode, shape};

#[derive(Clone, Debug)]
pub struct CpmOptions {
    /// Scales of the CAM that gives the prompts.
    pub scales: Vec<f64>,
    /// Embeddings are of the windows, see [`window_frame`]; else of the full images.
    pub online: bool,
    /// Padding is ignored; else it is background, and online it is a part of the picture.
    pub ignore_padding: bool,
    pub sam: SamOptions,
}

/// How CAMs prompt SAM and what becomes of its masks.
#[derive(Clone, Copy, Debug)]
pub struct SamOptions {
    pub prompt: PromptOptions,
    pub map: MapOptions,
}

/// One image of a batch, as CPM sees it.
#[derive(Debug)]
pub struct CpmImage {
    /// Channels of its classes, from 0.
    pub channels: Vec<i64>,
    pub transform: Transform,
    /// `(1, 256, 64, 64)`
    pub embedding: Tensor,
}

/// The pseudo map of a batch: `(B, H, W)` int64: 0 background, channel + 1, 255 ignored.
///
/// - `crops`: `(B, 3, H, W)` normalised
/// - `known`: the classifier's CAM logits of `crops`, where they are there already
pub fn pseudo_map(
    classifier: &Classifier,
    decoder: &SamDecoder,
    crops: &Tensor,
    known: Option<&Tensor>,
    images: &[CpmImage],
    options: &CpmOptions,
) -> anyhow::Result<Tensor> {
    tch::no_grad(|| {
        let cams = multi_scale_cam(classifier, crops, known, &options.scales); // (B, C, H, W)
        let mut windows = Vec::new();
        for CpmImage { channels, transform, embedding } in images {
            let view = if options.online { View::Alone { side: transform.crop } } else { View::Cut(*transform) };
            let in_picture = options.online && !options.ignore_padding;
            let padding = if in_picture { vec![false; transform.crop.pow(2)] } else { transform.padding() };
            windows.push(Window { channels: channels.clone(), view, padding, embedding });
        }
        let (maps, padding) = maps(decoder, &cams, &windows, &options.sam)?;
        Ok(if options.ignore_padding { maps.masked_fill(&padding, i64::from(IGNORE)) } else { maps })
    })
}

/// SAM after training: the map of a whole image from its CAMs, `(H, W)` int64: 0 background, channel + 1.
///
/// - `embedding`: `(1, 256, 64, 64)`
/// - `cam`: `(C, H, W)` in 0..1, all of classes that the image has
pub fn image_map(
    decoder: &SamDecoder,
    embedding: &Tensor,
    cam: &Tensor,
    options: &SamOptions,
) -> anyhow::Result<Tensor> {
    tch::no_grad(|| {
        let (channels, height, width) = cam.size3()?;
        let view = View::Whole { height: height as usize, width: width as usize };
        let padding = vec![false; (height * width) as usize];
        let channels = (0..channels).collect();
        let window = Window { channels, view, padding, embedding };
        Ok(maps(decoder, &cam.unsqueeze(0), &[window], options)?.0.squeeze_dim(0))
    })
}

/// What the encoder sees of a window in the authors' code: `(3, 1024, 1024)` u8.
///
/// - `crop`: `(3, H, W)` normalised
pub fn window_frame(crop: &Tensor) -> Tensor {
    let per_channel = |values: &[f32]| Tensor::from_slice(values).view([3, 1, 1]).to_device(crop.device());
    let pixels = (crop * per_channel(&STD) + per_channel(&MEAN)) * 255.0;
    let frame = pixels.unsqueeze(0).upsample_bilinear2d([IMAGE_SIZE as i64; 2], true, None, None);
    // Towards 0, as there; rounding errors of the way here must not wrap.
    frame.squeeze_dim(0).clamp(0.0, 255.0).to_kind(Kind::Uint8)
}

/// All that prompts from a CAM need beside it.
struct Window<'a> {
    /// Those of the classes that the image has.
    channels: Vec<i64>,
    view: View,
    /// Pixels in which nothing is.
    padding: Vec<bool>,
    embedding: &'a Tensor,
}

/// The map of each window, 0 or channel + 1, and their padding, `(B, H, W)` int64 and bool. Windows, at least one, have
/// one size.
///
/// - `cams`: `(B, C, H, W)`
fn maps(
    decoder: &SamDecoder,
    cams: &Tensor,
    windows: &[Window<'_>],
    options: &SamOptions,
) -> anyhow::Result<(Tensor, Tensor)> {
    let images = windows.iter().enumerate();
    let classes = images.flat_map(|(image, window)| window.channels.iter().map(move |&channel| (image, channel)));
    let classes: Vec<(usize, i64)> = classes.collect();
    let planes: Vec<Tensor> = classes.iter().map(|&(image, channel)| cams.get(image as i64).get(channel)).collect();
    let views: Vec<View> = windows.iter().map(|window| window.view).collect();
    let padding: Vec<&[bool]> = windows.iter().map(|window| &window.padding[..]).collect();
    let prompt = |((image, channel), plane): ((usize, i64), Vec<f32>)| {
        Some(Prompt { image, channel, shape: shape(plane, &views[image], padding[image], &options.prompt)? })
    };
    let prompts: Vec<Prompt> = classes.into_par_iter().zip(read_planes(&planes)?).filter_map(prompt).collect();
    let embeddings: Vec<&Tensor> = windows.iter().map(|window| window.embedding).collect();
    let answers = decode(decoder, &embeddings, &prompts, options.prompt.masks)?;
    let [height, width] = views[0].size();
    let padding = upload(&Tensor::from_slice(&padding.concat()).view([-1, height, width]), cams.device());
    Ok((label_maps(cams, &answers, &views, &padding, &options.map), padding))
}

/// The values of tensors of one size: each reading waits for the device, so all at once.
fn read_planes(planes: &[Tensor]) -> anyhow::Result<Vec<Vec<f32>>> {
    let Some(first) = planes.first() else { return Ok(Vec::new()) };
    let values = Vec::<f32>::try_from(Tensor::stack(planes, 0).flatten(0, -1))?;
    Ok(values.chunks_exact(first.numel()).map(<[f32]>::to_vec).collect())
}

/// Crops at another size.
pub fn scaled(crops: &Tensor, scale: f64) -> Tensor {
    let side = |n: i64| ((n as f64 * scale).round() as i64).max(1);
    let size = crops.size();
    match [side(size[2]), side(size[3])] {
        same if same == size[2..] => crops.shallow_clone(),
        other => crops.upsample_bilinear2d(other, true, None, None),
    }
}

/// `(B, C, H, W)` in 0..1: the sum over scales, each class by its own maximum. Upsampled before the ReLU, as the
/// reference does here (and not in the loss).
fn multi_scale_cam(classifier: &Classifier, crops: &Tensor, known: Option<&Tensor>, scales: &[f64]) -> Tensor {
    let size = crops.size();
    let (height, width) = (size[2], size[3]);
    let mut sum: Option<Tensor> = None;
    for &scale in scales {
        let x = scaled(crops, scale);
        let logits = match known.filter(|_| x.size() == size) {
            Some(known) => known.shallow_clone(),
            None => classifier.infer(&x),
        };
        let cam = logits.upsample_bilinear2d([height, width], false, None, None).relu();
        sum = Some(sum.map_or_else(|| cam.shallow_clone(), |sum| sum + &cam));
    }
    let sum = sum.unwrap_or_else(|| crops.zeros_like());
    let max = sum.amax([2i64, 3].as_slice(), true);
    sum / (max + 1e-5)
}
