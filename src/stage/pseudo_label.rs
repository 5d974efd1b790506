//! `pseudo_label`: from an image's CAM to its label map, and its refinement.

use anyhow::{Context, bail, ensure};
use serde::{Deserialize, Serialize};

use super::cam_file::read_cam;
use super::params::Refinement;
use super::seg_crf::CrfParams;
use super::{Output, Stage, StageContext, UnitInput};
use crate::data::image::{decode_label_map, decode_rgb, decode_se_map, encode_label_map};
use crate::vision::crf::{self, Unary};
use crate::vision::label::{from_cam, segment_vote, sepl};
use crate::vision::{LabelMap, SeMap};

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PseudoLabelParams {
    /// `None`: the input `threshold` says, or there is a `label` to start from.
    pub threshold: Option<f64>,
    pub refine: Vec<Refinement>,
    /// Of `crf`, where it is among them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub crf: Option<CrfRefineParams>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CrfRefineParams {
    pub field: CrfParams,
    /// The first refinement is a CRF on the scores of the CAM, with the background `(1 - the best)^alpha`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alpha: Option<f64>,
    /// How probable the labels are that other CRFs start from; `None`: there are no others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certainty: Option<f64>,
}

/// Reads `label`, or else `cam`, and `threshold` unless it is a parameter or a CRF starts from the CAM; `se_map`, `image`
/// if a refinement needs them. Gives `label`: a palette PNG.
pub struct PseudoLabel {
    params: PseudoLabelParams,
}

impl Stage for PseudoLabel {
    const KIND: &'static str = "pseudo_label";
    // 1: first version
    const VERSION: u64 = 2;
    const PARALLEL: bool = true;
    type Params = PseudoLabelParams;

    fn load(params: PseudoLabelParams, _: &StageContext) -> anyhow::Result<Self> {
        Ok(Self { params })
    }

    fn run(&mut self, input: &UnitInput<'_>) -> anyhow::Result<Vec<Output>> {
        let mut refine = self.params.refine.iter();
        let cam = || read_cam(&input.bytes("cam")?);
        let mut labels = match self.params.crf.as_ref().and_then(|crf| crf.alpha) {
            Some(alpha) => {
                refine.next();
                self.field(input, &crf::from_cam(&cam()?, alpha as f32))?
            }
            None if input.has("label") => decode_label_map(&input.bytes("label")?)?,
            None => from_cam(&cam()?, self.threshold(input)? as f32),
        };
        for refinement in refine {
            labels = match refinement {
                Refinement::SegmentVote => segment_vote(&labels, &segments(input, &labels)?),
                Refinement::Sepl => sepl(&labels, &segments(input, &labels)?),
                Refinement::Crf => {
                    let certainty = self.params.crf.as_ref().and_then(|crf| crf.certainty);
                    let certainty = certainty.context("no certainty of the labels a CRF starts from")?;
                    self.field(input, &crf::from_labels(&labels, certainty as f32))?
                }
                Refinement::SamPrompt | Refinement::Psa | Refinement::Irn => {
                    bail!("`{refinement:?}` is the work of a stage of its own, which comes first")
                }
            };
        }
        Ok(vec![Output::new("label", encode_label_map(&labels))])
    }
}

fn segments(input: &UnitInput<'_>, labels: &LabelMap) -> anyhow::Result<SeMap> {
    let segments = decode_se_map(&input.bytes("se_map")?)?;
    let same = (segments.height, segments.width) == (labels.height, labels.width);
    ensure!(same, "the SE map and the labels differ in size");
    Ok(segments)
}

impl PseudoLabel {
    /// The labels after a CRF.
    fn field(&self, input: &UnitInput<'_>, unary: &Unary) -> anyhow::Result<LabelMap> {
        let image = decode_rgb(&input.bytes("image")?).context("input `image`")?;
        self.params.crf.as_ref().context("no parameters of the CRF")?.field.labels(&image, unary)
    }

    fn threshold(&self, input: &UnitInput<'_>) -> anyhow::Result<f64> {
        match self.params.threshold {
            Some(threshold) => Ok(threshold),
            None => std::str::from_utf8(&input.bytes("threshold")?)?.parse().context("input `threshold`"),
        }
    }
}
