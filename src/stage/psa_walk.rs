//! `psa_walk`: the label map of an image, its CAM spread by AffinityNet's affinities.

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::affinity::{pooled, upsampled};
use super::cam_file::read_cam;
use super::cam_infer::normalised;
use super::params::{Backbone, Compute};
use super::{Bytes, Loaded, Output, Stage, StageContext, UnitInput};
use crate::data::image::{decode_rgb, encode_label_map};
use crate::data::rng::stream;
use crate::model::conv::channels_last;
use crate::model::psa::{PsaNet, STRIDE};
use crate::model::weights::Weights;
use crate::vision::propagate::Affinity;
use crate::vision::{Cam, LabelMap, Rgb};

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PsaWalkParams {
    pub backbone: Backbone,
    pub stride: u32,
    pub precision: Compute,
    /// The background is `(1 - the best class)^alpha`, and takes part in the walk.
    pub alpha: f64,
    pub radius: usize,
    pub beta: f64,
    pub steps: usize,
}

/// Reads `checkpoint`, `image`, `cam`; gives `label`: a palette PNG.
pub struct PsaWalk {
    params: PsaWalkParams,
    device: tch::Device,
    model: Loaded<PsaNet>,
}

impl Stage for PsaWalk {
    const KIND: &'static str = "psa_walk";
    // 1: first version
    // 2: photographs are decoded and resized as libjpeg-turbo and Pillow do
    // 3: libtorch computes with the same number of threads on every machine, whose sums round otherwise
    const VERSION: u64 = 3;
    const PARALLEL: bool = false;
    type Params = PsaWalkParams;

    fn load(params: PsaWalkParams, context: &StageContext) -> anyhow::Result<Self> {
        Ok(Self { params, device: context.device.torch(), model: Loaded::default() })
    }

    fn run(&mut self, input: &UnitInput<'_>) -> anyhow::Result<Vec<Output>> {
        let Self { params, device, model } = self;
        let config = params.backbone.config(params.stride, params.precision, *device);
        // A checkpoint has all layers, so nothing is drawn from the stream.
        let load = |bytes: Bytes| {
            anyhow::Ok(PsaNet::load(&Weights::parse(bytes)?, &config, &mut stream(0, 0, "", "psa layers"))?.folded())
        };
        let model = model.get(input, "checkpoint", load)?;
        let image = decode_rgb(&input.bytes("image")?).context("input `image`")?;
        let cam = read_cam(&input.bytes("cam")?)?;
        ensure!((cam.height, cam.width) == (image.height, image.width), "the image and the CAM differ in size");
        let labels = tch::no_grad(|| walk(model, &image, &cam, params, *device))?;
        Ok(vec![Output::new("label", encode_label_map(&labels))])
    }
}

fn walk(
    model: &PsaNet,
    image: &Rgb,
    cam: &Cam,
    params: &PsaWalkParams,
    device: tch::Device,
) -> anyhow::Result<LabelMap> {
    let (height, width) = (cam.height, cam.width);
    if cam.classes.is_empty() {
        return Ok(LabelMap::filled(height, width, 0));
    }
    let size = [cam.classes.len() as i64, height as i64, width as i64];
    let classes = Tensor::from_slice(&cam.data).view(size);
    let background: Tensor = 1.0 - classes.amax([0i64].as_slice(), true);
    let background = background.clamp_min(0.0).pow_tensor_scalar(params.alpha);
    let scores = pooled(&Tensor::cat(&[background, classes], 0), STRIDE); // (1 + C, h, w)

    // The reference pads the image to whole cells.
    let to_whole = |n: usize| (n.next_multiple_of(STRIDE as usize) - n) as i64;
    let x = normalised(image).constant_pad_nd([0, to_whole(width), 0, to_whole(height)]);
    let feat = model.forward(&channels_last(&x.to_device(device)), None);
    let (n_labels, h, w) = scores.size3()?;
    ensure!(feat.size()[2..] == [h, w], "features of {:?} for scores of {:?}", feat.size(), scores.size());
    let feat = Vec::<f32>::try_from(feat.contiguous().view([-1]))?;
    let affinity = Affinity::of_features(&feat, (h as usize, w as usize), params.radius);
    let walked = affinity.walk(&Vec::<f32>::try_from(scores.contiguous().view([-1]))?, params.beta, params.steps);

    let walked = Tensor::from_slice(&walked).view([n_labels, h, w]);
    let best = upsampled(&walked, STRIDE, (height, width)).argmax(0, false).to_kind(Kind::Uint8);
    let channels = Vec::<u8>::try_from(best.contiguous().view([-1]))?;
    let label = |&channel: &u8| channel.checked_sub(1).map_or(0, |class| cam.classes[usize::from(class)]);
    Ok(LabelMap::new(height, width, channels.iter().map(label).collect()))
}
