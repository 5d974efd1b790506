//! `seg_infer`: the label map of an image from DeepLab, over scales and mirrored.

use anyhow::Context;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::cam_file::write_scores;
use super::cam_infer::{Views, over_views};
use super::params::{Backbone, Compute, Head, is_default};
use super::{Bytes, Loaded, Output, Stage, StageContext, UnitInput};
use crate::data::image::{decode_rgb, encode_label_map};
use crate::data::rng::stream;
use crate::model::deeplab::{DeepLab, DeepLabConfig};
use crate::model::weights::Weights;
use crate::vision::crf::LEAST;
use crate::vision::{LabelMap, ScoreMap};

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SegInferParams {
    pub backbone: Backbone,
    pub stride: u32,
    #[serde(default, skip_serializing_if = "is_default")]
    pub head: Head,
    /// With background.
    pub n_labels: i64,
    pub precision: Compute,
    pub scales: Vec<f64>,
    pub flip: bool,
    /// Give `scores` as well.
    #[serde(default, skip_serializing_if = "is_default")]
    pub scores: bool,
}

/// Reads `checkpoint`, `image`; gives `prediction`: a palette PNG. The sum of logits over all views decides. For a CRF also
/// `scores`: the softmax of their mean, without labels that are nowhere above [`LEAST`].
pub struct SegInfer {
    params: SegInferParams,
    device: tch::Device,
    model: Loaded<DeepLab>,
}

impl Stage for SegInfer {
    const KIND: &'static str = "seg_infer";
    // 1: first version
    // 2: photographs are decoded and resized as libjpeg-turbo and Pillow do
    // 3: libtorch computes with the same number of threads on every machine, whose sums round otherwise
    const VERSION: u64 = 3;
    const PARALLEL: bool = false;
    type Params = SegInferParams;

    fn load(params: SegInferParams, context: &StageContext) -> anyhow::Result<Self> {
        Ok(Self { params, device: context.device.torch(), model: Loaded::default() })
    }

    fn run(&mut self, input: &UnitInput<'_>) -> anyhow::Result<Vec<Output>> {
        let Self { params, device, model } = self;
        let backbone = params.backbone.config(params.stride, params.precision, *device);
        let config = DeepLabConfig { backbone, head: params.head.into(), n_labels: params.n_labels };
        // A checkpoint has a head, so nothing is drawn from the stream.
        let load = |bytes: Bytes| {
            let model = DeepLab::load(&Weights::parse(bytes)?, &config, &mut stream(0, 0, "", "seg head"))?;
            anyhow::Ok(model.folded())
        };
        let model = model.get(input, "checkpoint", load)?;
        let image = decode_rgb(&input.bytes("image")?).context("input `image`")?;
        let views = Views { scales: &params.scales, flip: params.flip };
        let logits = tch::no_grad(|| {
            over_views(&image, views, *device, |x, size| model.infer(x).upsample_bilinear2d(size, false, None, None))
        });
        let labels = Vec::<u8>::try_from(logits.argmax(0, false).to_kind(Kind::Uint8).view([-1]))?;
        let labels = LabelMap::new(image.height, image.width, labels);
        let mut outputs = vec![Output::new("prediction", encode_label_map(&labels))];
        if params.scores {
            let n_views = params.scales.len() * (1 + usize::from(params.flip));
            let scores = (logits / n_views as f64).softmax(0, Kind::Float);
            let highest = Vec::<f32>::try_from(scores.amax([1i64, 2].as_slice(), false))?;
            let labels: Vec<u8> =
                (0..=u8::MAX).zip(highest).filter(|(_, p)| *p > LEAST).map(|(label, _)| label).collect();
            let channels: Vec<i64> = labels.iter().copied().map(i64::from).collect();
            let scores = scores.index_select(0, &Tensor::from_slice(&channels).to_device(*device));
            let data = Vec::<f32>::try_from(scores.contiguous().view([-1]))?;
            let scores = ScoreMap { labels, height: image.height, width: image.width, data };
            outputs.push(Output::new("scores", write_scores(&scores)?));
        }
        Ok(outputs)
    }
}
