//! `pseudo_label`: from an image's CAM to its label map, and its refinement.

use anyhow::{Context, bail, ensure};
use serde::{Deserialize, Serialize};

use super::cam_file::read_cam;
use super::params::Refinement;
use super::{Output, Stage, StageContext, UnitInput};
use crate::data::image::{decode_label_map, decode_se_map, encode_label_map};
use crate::vision::label::{from_cam, segment_vote};

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PseudoLabelParams {
    /// `None`: the input `threshold` says, or there is a `label` to start from.
    pub threshold: Option<f64>,
    pub refine: Vec<Refinement>,
}

/// Reads `label`, or else `cam` and `threshold` unless it is a parameter; `se_map` if a refinement needs it. Gives
/// `label`: a palette PNG.
pub struct PseudoLabel {
    params: PseudoLabelParams,
}

impl Stage for PseudoLabel {
    const KIND: &'static str = "pseudo_label";
    // 1: first version
    const VERSION: u64 = 1;
    const PARALLEL: bool = true;
    type Params = PseudoLabelParams;

    fn load(params: PseudoLabelParams, _: &StageContext) -> anyhow::Result<Self> {
        Ok(Self { params })
    }

    fn run(&mut self, input: &UnitInput<'_>) -> anyhow::Result<Vec<Output>> {
        let mut labels = match input.has("label") {
            true => decode_label_map(&input.bytes("label")?)?,
            false => from_cam(&read_cam(&input.bytes("cam")?)?, self.threshold(input)? as f32),
        };
        for refinement in &self.params.refine {
            match refinement {
                Refinement::SegmentVote => {
                    let segments = decode_se_map(&input.bytes("se_map")?)?;
                    let same = (segments.height, segments.width) == (labels.height, labels.width);
                    ensure!(same, "the SE map and the labels differ in size");
                    labels = segment_vote(&labels, &segments);
                }
                Refinement::SamPrompt => bail!("`sam_prompt` is the work of the stage `sam_refine`"),
            }
        }
        Ok(vec![Output::new("label", encode_label_map(&labels))])
    }
}

impl PseudoLabel {
    fn threshold(&self, input: &UnitInput<'_>) -> anyhow::Result<f64> {
        match self.params.threshold {
            Some(threshold) => Ok(threshold),
            None => std::str::from_utf8(&input.bytes("threshold")?)?.parse().context("input `threshold`"),
        }
    }
}
