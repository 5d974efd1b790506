//! `mask_file`: the label map of a mask that is none as it is, such as a picture in the colours of a palette.

use serde::{Deserialize, Serialize};

use super::{Output, Stage, StageContext, UnitInput};
use crate::data::image::encode_label_map;
use crate::data::mask_file::{Reading, decode_mask};

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MaskFileParams {
    pub reading: Reading,
}

/// Reads `file`; gives `mask` (palette PNG).
pub struct MaskFile {
    params: MaskFileParams,
}

impl Stage for MaskFile {
    const KIND: &'static str = "mask_file";
    // 1: first version
    const VERSION: u64 = 1;
    const PARALLEL: bool = true;
    type Params = MaskFileParams;

    fn load(params: MaskFileParams, _: &StageContext) -> anyhow::Result<Self> {
        Ok(Self { params })
    }

    fn run(&mut self, input: &UnitInput<'_>) -> anyhow::Result<Vec<Output>> {
        Ok(vec![Output::new("mask", encode_label_map(&decode_mask(&input.bytes("file")?, &self.params.reading)?))])
    }
}
