//! `irn_walk`: the CAM of an image, spread as far as IRN's edges let it.

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::affinity::{pooled, upsampled};
use super::cam_file::{read_cam, write_cam};
use super::cam_infer::normalised;
use super::params::{Backbone, Compute};
use super::{Loaded, Output, Stage, StageContext, UnitInput};
use crate::data::image::decode_rgb;
use crate::data::rng::stream;
use crate::model::irn::{IrnNet, STRIDE};
use crate::model::weights::Weights;
use crate::vision::propagate::Affinity;
use crate::vision::{Cam, Rgb};

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IrnWalkParams {
    pub backbone: Backbone,
    pub stride: u32,
    pub precision: Compute,
    pub radius: usize,
    pub beta: f64,
    pub steps: usize,
}

/// Reads `weights` of the backbone, `checkpoint`, `image`, `cam`; gives `cam`, whose highest score of all classes is 1.
pub struct IrnWalk {
    params: IrnWalkParams,
    device: tch::Device,
    model: Loaded<IrnNet>,
}

impl Stage for IrnWalk {
    const KIND: &'static str = "irn_walk";
    // 1: first version
    // 2: photographs are decoded and resized as libjpeg-turbo and Pillow do
    // 3: libtorch computes with the same number of threads on every machine, whose sums round otherwise
    const VERSION: u64 = 3;
    const PARALLEL: bool = false;
    type Params = IrnWalkParams;

    fn load(params: IrnWalkParams, context: &StageContext) -> anyhow::Result<Self> {
        Ok(Self { params, device: context.device.torch(), model: Loaded::default() })
    }

    fn run(&mut self, input: &UnitInput<'_>) -> anyhow::Result<Vec<Output>> {
        let Self { params, device, model } = self;
        let config = params.backbone.config(params.stride, params.precision, *device);
        // A checkpoint has all layers, so nothing is drawn from the stream. Layers that never had a pair to learn from are
        // equal on other weights.
        let model = model.get_beside(input, "checkpoint", &["weights"], |layers| {
            let backbone = Weights::parse(input.bytes("weights")?).context("input `weights`")?;
            IrnNet::load(&backbone, &Weights::parse(layers)?, &config, &mut stream(0, 0, "", "irn layers"))
        })?;
        let image = decode_rgb(&input.bytes("image")?).context("input `image`")?;
        let cam = read_cam(&input.bytes("cam")?)?;
        ensure!((cam.height, cam.width) == (image.height, image.width), "the image and the CAM differ in size");
        let walked = tch::no_grad(|| walk(model, &image, &cam, params, *device))?;
        Ok(vec![Output::new("cam", write_cam(&walked)?)])
    }
}

fn walk(model: &IrnNet, image: &Rgb, cam: &Cam, params: &IrnWalkParams, device: tch::Device) -> anyhow::Result<Cam> {
    if cam.classes.is_empty() {
        return Ok(cam.clone());
    }
    let (height, width) = (cam.height, cam.width);
    let size = [cam.classes.len() as i64, height as i64, width as i64];
    let scores = pooled(&Tensor::from_slice(&cam.data).view(size), STRIDE); // (C, h, w)
    let edge = model.edges(&normalised(image).to_device(device)).to_device(tch::Device::Cpu); // (h, w)
    let (n_classes, h, w) = scores.size3()?;
    ensure!(edge.size() == [h, w], "edges of {:?} for scores of {:?}", edge.size(), scores.size());
    let scores: Tensor = scores * (1.0 - &edge);
    let scores = Vec::<f32>::try_from(scores.contiguous().view([-1]))?;
    let edge = Vec::<f32>::try_from(edge.contiguous().view([-1]))?;
    let affinity = Affinity::of_edges(&edge, (h as usize, w as usize), params.radius);
    let walked = affinity.walk(&scores, params.beta, params.steps);

    let walked = upsampled(&Tensor::from_slice(&walked).view([n_classes, h, w]), STRIDE, (height, width));
    let walked = &walked / walked.max().clamp_min(1e-5);
    let data = Vec::<f32>::try_from(walked.contiguous().view([-1]))?;
    Ok(Cam { classes: cam.classes.clone(), height, width, data })
}
