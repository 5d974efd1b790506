//! `cam_infer`: the CAMs of an image's classes, over scales and mirrored.

use anyhow::Context;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::cam_file::write_cam;
use super::params::{Backbone, Compute, is_default};
use super::{Bytes, Loaded, Output, Stage, StageContext, UnitInput};
use crate::data::augment::{MEAN, STD, rounded};
use crate::data::image::{Filter, decode_rgb, resize_rgb};
use crate::data::rng::stream;
use crate::model::advcam::{AdvCamOptions, climbed_cam};
use crate::model::classifier::{Classifier, ClassifierConfig};
use crate::model::rgb_tensor;
use crate::model::weights::Weights;
use crate::vision::{Cam, Rgb};

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CamInferParams {
    pub backbone: Backbone,
    pub stride: u32,
    pub feat_dim: i64,
    pub n_classes: i64,
    pub precision: Compute,
    pub scales: Vec<f64>,
    pub flip: bool,
    /// CAMs are those of SEAM's module.
    #[serde(default, skip_serializing_if = "is_default")]
    pub pcm: bool,
    /// `None`: CAMs of the image as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advcam: Option<AdvCam>,
}

/// See [`AdvCamOptions`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdvCam {
    pub iterations: usize,
    pub step: f64,
    pub guard: f64,
    pub guard_threshold: f64,
}

impl From<AdvCam> for AdvCamOptions {
    fn from(AdvCam { iterations, step, guard, guard_threshold }: AdvCam) -> Self {
        Self { iterations, step, guard, guard_threshold }
    }
}

/// Reads `checkpoint`, `image`, `labels` (a byte a class, from 1); gives `cam` (see [`super::cam_file`]).
pub struct CamInfer {
    params: CamInferParams,
    device: tch::Device,
    classifier: Loaded<Classifier>,
}

impl Stage for CamInfer {
    const KIND: &'static str = "cam_infer";
    // 1: first version
    // 2: convolutions in another memory order, which rounds otherwise
    // 3: photographs are decoded and resized as libjpeg-turbo and Pillow do
    // 4: libtorch computes with the same number of threads on every machine, whose sums round otherwise
    const VERSION: u64 = 4;
    const PARALLEL: bool = false;
    type Params = CamInferParams;

    fn load(params: CamInferParams, context: &StageContext) -> anyhow::Result<Self> {
        Ok(Self { params, device: context.device.torch(), classifier: Loaded::default() })
    }

    fn run(&mut self, input: &UnitInput<'_>) -> anyhow::Result<Vec<Output>> {
        let Self { params, device, classifier } = self;
        let backbone = params.backbone.config(params.stride, params.precision, *device);
        let config =
            ClassifierConfig { backbone, feat_dim: params.feat_dim, n_classes: params.n_classes, with_pcm: params.pcm };
        // A checkpoint has a head, so nothing is drawn from the stream.
        let load = |bytes: Bytes| {
            let classifier = Classifier::load(&Weights::parse(bytes)?, &config, &mut stream(0, 0, "", "head"))?;
            anyhow::Ok(classifier.folded())
        };
        let classifier = classifier.get(input, "checkpoint", load)?;
        let image = decode_rgb(&input.bytes("image")?).context("input `image`")?;
        let classes = input.bytes("labels")?.to_vec();
        let cam = tch::no_grad(|| multi_scale(classifier, &image, &classes, params, *device))?;
        Ok(vec![Output::new("cam", write_cam(&cam)?)])
    }
}

fn multi_scale(
    classifier: &Classifier,
    image: &Rgb,
    classes: &[u8],
    params: &CamInferParams,
    device: tch::Device,
) -> anyhow::Result<Cam> {
    let (height, width) = (image.height, image.width);
    let channels: Vec<i64> = classes.iter().map(|&class| i64::from(class) - 1).collect();
    let index = Tensor::from_slice(&channels).to_device(device);
    let views = Views { scales: &params.scales, flip: params.flip };
    let sum = over_views(image, views, device, |x, size| {
        let cams = match params.advcam.filter(|_| !channels.is_empty()) {
            None => classifier.infer_revised(x).index_select(1, &index),
            Some(options) => {
                let climbed = channels.iter().map(|&channel| climbed_cam(classifier, x, channel, &options.into()));
                Tensor::cat(&climbed.collect::<Vec<_>>(), 1)
            }
        };
        cams.upsample_bilinear2d(size, false, None, None).relu()
    });
    let sides = [1i64, 2].as_slice();
    // A mean over all pixels is above 0 at each.
    let sum = if params.pcm { &sum - sum.amin(sides, true) } else { sum };
    let cam = &sum / (sum.amax(sides, true) + 1e-5);
    Ok(Cam { classes: classes.to_vec(), height, width, data: Vec::<f32>::try_from(cam.view([-1]))? })
}

/// The sizes an image is looked at, and whether mirrored as well.
#[derive(Clone, Copy, Debug)]
pub(super) struct Views<'a> {
    pub(super) scales: &'a [f64],
    pub(super) flip: bool,
}

/// The sum over all views of what `look` makes of each, `(1, C, H, W)` at the image's size: `(C, H, W)`.
pub(super) fn over_views(
    image: &Rgb,
    views: Views<'_>,
    device: tch::Device,
    look: impl Fn(&Tensor, [i64; 2]) -> Tensor,
) -> Tensor {
    let (height, width) = (image.height, image.width);
    let size = [height as i64, width as i64];
    let mut sum: Option<Tensor> = None;
    for &scale in views.scales {
        let side = |n: usize| rounded(n as f64 * scale);
        let scaled = normalised(&resize_rgb(image, side(height), side(width), Filter::Bicubic)).to_device(device);
        for mirrored in [false, true].into_iter().take(1 + usize::from(views.flip)) {
            let x = if mirrored { scaled.flip([3]) } else { scaled.shallow_clone() };
            let seen = look(&x, size);
            let seen = if mirrored { seen.flip([3]) } else { seen };
            sum = Some(sum.map_or_else(|| seen.shallow_clone(), |sum| sum + &seen));
        }
    }
    sum.unwrap_or_else(|| Tensor::zeros([1, 1, size[0], size[1]], (Kind::Float, device))).squeeze_dim(0)
}

/// `(1, 3, H, W)` by ImageNet's mean and deviation.
pub(super) fn normalised(image: &Rgb) -> Tensor {
    let per_channel = |values: &[f32]| Tensor::from_slice(values).view([3, 1, 1]);
    ((rgb_tensor(image).to_kind(Kind::Float) / 255.0 - per_channel(&MEAN)) / per_channel(&STD)).unsqueeze(0)
}
