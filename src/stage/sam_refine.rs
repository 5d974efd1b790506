//! `sam_refine`: SAM after training. The CAMs of an image prompt SAM as in CPM, and its masks are the label map.

use anyhow::ensure;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::cam_file::read_cam;
use super::params::Compute;
use super::prompt::PromptParams;
use super::sam_embed::read_embedding;
use super::{Bytes, Loaded, Output, Stage, StageContext, UnitInput};
use crate::data::image::encode_label_map;
use crate::model::cpm::image_map;
use crate::model::sam::SamDecoder;
use crate::model::weights::Weights;
use crate::vision::Grid;

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SamRefineParams {
    pub precision: Compute,
    pub prompt: PromptParams,
}

/// Reads `cam`, `embedding` of the same image, `weights` of SAM; gives `label`: a palette PNG, background in no mask.
pub struct SamRefine {
    params: SamRefineParams,
    device: tch::Device,
    decoder: Loaded<SamDecoder>,
}

impl Stage for SamRefine {
    const KIND: &'static str = "sam_refine";
    // 1: first version
    // 2: the same decoder as se_map 5
    // 3: libtorch computes with the same number of threads on every machine, whose sums round otherwise
    const VERSION: u64 = 3;
    const PARALLEL: bool = false;
    type Params = SamRefineParams;

    fn load(params: SamRefineParams, context: &StageContext) -> anyhow::Result<Self> {
        Ok(Self { params, device: context.device.torch(), decoder: Loaded::default() })
    }

    fn run(&mut self, input: &UnitInput<'_>) -> anyhow::Result<Vec<Output>> {
        let Self { params, device, decoder } = self;
        let load = |bytes: Bytes| SamDecoder::load(&Weights::parse(bytes)?, *device, params.precision.into());
        let decoder = decoder.get(input, "weights", load)?;
        let cam = read_cam(&input.bytes("cam")?)?;
        let (height, width) = (cam.height, cam.width);
        let (embedding, size) = read_embedding(input.bytes("embedding")?)?;
        ensure!(size == (height, width), "the embedding and the CAM are of images of different size");
        let size = [cam.classes.len() as i64, height as i64, width as i64];
        let scores = Tensor::from_slice(&cam.data).view(size).to_device(*device);
        let map = image_map(decoder, &embedding.to_device(*device), &scores, &params.prompt.options())?;
        let places = Vec::<u8>::try_from(map.to_kind(Kind::Uint8).view([-1]))?;
        // A place is 0, or one more than that of a channel.
        let label = |&place: &u8| place.checked_sub(1).map_or(0, |channel| cam.classes[usize::from(channel)]);
        let labels = Grid::new(height, width, places.iter().map(label).collect());
        Ok(vec![Output::new("label", encode_label_map(&labels))])
    }
}
