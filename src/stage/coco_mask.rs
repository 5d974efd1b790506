//! `coco_mask`: the mask of a COCO image from its outlines.

use serde::{Deserialize, Serialize};

use super::{Output, Stage, StageContext, UnitInput};
use crate::data::coco::paint_mask;
use crate::data::image::encode_label_map;

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CocoMaskParams {}

/// Reads `outlines`; gives `mask` (palette PNG).
pub struct CocoMask;

impl Stage for CocoMask {
    const KIND: &'static str = "coco_mask";
    // 1: first version
    const VERSION: u64 = 1;
    const PARALLEL: bool = true;
    type Params = CocoMaskParams;

    fn load(_: CocoMaskParams, _: &StageContext) -> anyhow::Result<Self> {
        Ok(Self)
    }

    fn run(&mut self, input: &UnitInput<'_>) -> anyhow::Result<Vec<Output>> {
        Ok(vec![Output::new("mask", encode_label_map(&paint_mask(&input.bytes("outlines")?)?))])
    }
}
