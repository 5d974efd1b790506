//! `se_map`: the segment-everything map of an image, from its embedding.

use serde::{Deserialize, Serialize};

use super::params::{Compute, OverlapRule};
use super::sam_embed::read_embedding;
use super::{Loaded, Output, Stage, StageContext, UnitInput};
use crate::data::image::encode_se_map;
use crate::model::sam::SamDecoder;
use crate::model::sam::automatic::{AutomaticOptions, segment_everything};
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
}

/// Reads `embedding`, `weights`; gives `se_map`: a 16-bit PNG of the image's size, 0 = no segment. An image in which
/// SAM finds nothing gives a map of zeros.
pub struct SeMapStage {
    params: SeMapParams,
    device: tch::Device,
    decoder: Loaded<SamDecoder>,
}

impl Stage for SeMapStage {
    const KIND: &'static str = "se_map";
    // 1: first version
    // 2: the decoder's sums in another order, masks drawn by one matrix an axis: both round otherwise
    const VERSION: u64 = 2;
    const PARALLEL: bool = false;
    type Params = SeMapParams;

    fn load(params: SeMapParams, context: &StageContext) -> anyhow::Result<Self> {
        Ok(Self { params, device: context.device.torch(), decoder: Loaded::default() })
    }

    fn run(&mut self, input: &UnitInput<'_>) -> anyhow::Result<Vec<Output>> {
        let (device, compute) = (self.device, self.params.precision.into());
        let decoder =
            self.decoder.get(input, "weights", |bytes| SamDecoder::load(&Weights::parse(bytes)?, device, compute))?;
        let (embedding, (height, width)) = read_embedding(input.bytes("embedding")?)?;
        let options = AutomaticOptions {
            points_per_side: self.params.points_per_side,
            pred_iou_thresh: self.params.pred_iou_thresh,
            stability_score_thresh: self.params.stability_score_thresh,
            stability_score_offset: self.params.stability_score_offset,
            box_nms_thresh: self.params.box_nms_thresh,
        };
        let segments = segment_everything(decoder, &embedding.to_device(device), (height, width), &options)?;
        let on_top = match self.params.overlap {
            OverlapRule::AreaAsc => OnTop::Smallest,
            OverlapRule::PredIouDesc => OnTop::HighestIou,
        };
        Ok(vec![Output::new("se_map", encode_se_map(&paint(&segments, height, width, on_top)))])
    }
}
