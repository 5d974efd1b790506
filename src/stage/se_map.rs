//! `se_map`: the segment-everything map of an image, from its embedding.

use anyhow::Context;
use serde::{Deserialize, Serialize};

use super::params::{Compute, OverlapRule};
use super::sam_embed::read_embedding;
use super::{Bytes, Loaded, Output, Stage, StageContext, UnitInput};
use crate::data::image::{decode_rgb, encode_se_map};
use crate::model::sam::automatic::{AutomaticOptions, Crop, segment_everything};
use crate::model::sam::{SamDecoder, SamEncoder};
use crate::model::weights::Weights;
use crate::vision::se_map::{OnTop, paint};

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SeMapParams {
    pub precision: Compute,
    pub points_per_side: u32,
    pub pred_iou_thresh: f64,
    pub stability_score_thresh: f64,
    pub stability_score_offset: f64,
    pub box_nms_thresh: f64,
    pub overlap: OverlapRule,
    /// `None`: the whole image alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub crops: Option<CropParams>,
    /// `None`: masks stay as they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub small_regions: Option<SmallRegionParams>,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CropParams {
    pub n_layers: u32,
    pub nms_thresh: f64,
    pub overlap_ratio: f64,
    pub n_points_downscale_factor: u32,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SmallRegionParams {
    /// Pixels.
    pub min_area: usize,
    /// Two masks whose boxes overlap more after cleaning are one.
    pub nms_thresh: f64,
}

/// Reads `embedding`, `weights`, with crops `image`; gives `se_map`: a 16-bit PNG of the image's size, 0 = no segment.
/// An image in which SAM finds nothing gives a map of zeros.
pub struct SeMapStage {
    params: SeMapParams,
    device: tch::Device,
    decoder: Loaded<SamDecoder>,
    /// For crops.
    encoder: Loaded<SamEncoder>,
}

impl Stage for SeMapStage {
    const KIND: &'static str = "se_map";
    // 1: first version
    // 2: the decoder's sums in another order, masks drawn by one matrix an axis: both round otherwise
    // 3: what prompts share of the decoder's first layer is made once an image, which rounds otherwise
    // 4: the decoder's arithmetic on a CPU is our own, its sums in another order
    // 5: it sums the weights of attention by tiles, which rounds less
    // 6: photographs are decoded and resized as libjpeg-turbo and Pillow do
    // 7: libtorch computes with the same number of threads on every machine, whose sums round otherwise
    const VERSION: u64 = 7;
    const PARALLEL: bool = false;
    type Params = SeMapParams;

    fn load(params: SeMapParams, context: &StageContext) -> anyhow::Result<Self> {
        Ok(Self { params, device: context.device.torch(), decoder: Loaded::default(), encoder: Loaded::default() })
    }

    fn run(&mut self, input: &UnitInput<'_>) -> anyhow::Result<Vec<Output>> {
        let (device, compute) = (self.device, self.params.precision.into());
        let decoder =
            self.decoder.get(input, "weights", |bytes| SamDecoder::load(&Weights::parse(bytes)?, device, compute))?;
        let (embedding, (height, width)) = read_embedding(input.bytes("embedding")?)?;
        let cropped = match &self.params.crops {
            Some(_) => {
                let load = |bytes: Bytes| SamEncoder::load(&Weights::parse(bytes)?, device, compute);
                let image = decode_rgb(&input.bytes("image")?).context("input `image`")?;
                Some((self.encoder.get(input, "weights", load)?, image))
            }
            None => None,
        };
        let embed = |crop: Crop| match (&cropped, crop.layer) {
            (Some((encoder, image)), 1..) => Ok(encoder.embed(&image.part((crop.y, crop.x), crop.height, crop.width))),
            _ => Ok(embedding.shallow_clone()),
        };
        let segments = segment_everything(decoder, embed, (height, width), &options(&self.params))?;
        let map = paint(&segments, height, width, self.params.overlap.into());
        Ok(vec![Output::new("se_map", encode_se_map(&map))])
    }
}

fn options(params: &SeMapParams) -> AutomaticOptions {
    let mut options = AutomaticOptions {
        points_per_side: params.points_per_side,
        pred_iou_thresh: params.pred_iou_thresh,
        stability_score_thresh: params.stability_score_thresh,
        stability_score_offset: params.stability_score_offset,
        box_nms_thresh: params.box_nms_thresh,
        ..AutomaticOptions::default()
    };
    if let Some(CropParams { n_layers, nms_thresh, overlap_ratio, n_points_downscale_factor }) = params.crops {
        options.crop_n_layers = n_layers;
        options.crop_nms_thresh = nms_thresh;
        options.crop_overlap_ratio = overlap_ratio;
        options.crop_n_points_downscale_factor = n_points_downscale_factor;
    }
    if let Some(SmallRegionParams { min_area, nms_thresh }) = params.small_regions {
        options.min_mask_region_area = min_area;
        options.crop_nms_thresh = nms_thresh;
    }
    options
}

impl From<OverlapRule> for OnTop {
    fn from(rule: OverlapRule) -> Self {
        match rule {
            OverlapRule::AreaAsc => Self::Smallest,
            OverlapRule::PredIouDesc => Self::HighestIou,
        }
    }
}
