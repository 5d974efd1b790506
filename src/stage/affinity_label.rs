//! `affinity_label`: what AffinityNet (PSA) or IRN learns from, an image's labels where they are certain.

use anyhow::Context;
use serde::{Deserialize, Serialize};

use super::cam_file::read_cam;
use super::seg_crf::CrfParams;
use super::{Output, Stage, StageContext, UnitInput};
use crate::data::image::{decode_rgb, encode_label_map};
use crate::vision::crf::{from_cam, from_labels_among};
use crate::vision::label::{self, confident, confident_psa};
use crate::vision::{Cam, LabelMap, Rgb};

/// Whose labels.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum AffinityLabelParams {
    /// A CRF on the CAM with the background `(1 - the best)^alpha`, twice: classes are those of `low_alpha`, background
    /// that of `high_alpha`.
    Psa { field: CrfParams, low_alpha: f64, high_alpha: f64 },
    /// A CRF on the labels of the CAM at a threshold, twice: classes are those above `foreground`, background what
    /// stays below `background` too. Labels are right with a probability of `certainty`.
    Irn { field: CrfParams, foreground: f64, background: f64, certainty: f64 },
}

/// Reads `cam`, `image`; gives `label`: a palette PNG, 255 where it is uncertain.
pub struct AffinityLabel {
    params: AffinityLabelParams,
}

impl Stage for AffinityLabel {
    const KIND: &'static str = "affinity_label";
    // 1: first version
    const VERSION: u64 = 2;
    const PARALLEL: bool = true;
    type Params = AffinityLabelParams;

    fn load(params: AffinityLabelParams, _: &StageContext) -> anyhow::Result<Self> {
        Ok(Self { params })
    }

    fn run(&mut self, input: &UnitInput<'_>) -> anyhow::Result<Vec<Output>> {
        let image = decode_rgb(&input.bytes("image")?).context("input `image`")?;
        let labels = labels(&self.params, &image, &read_cam(&input.bytes("cam")?)?)?;
        Ok(vec![Output::new("label", encode_label_map(&labels))])
    }
}

fn labels(params: &AffinityLabelParams, image: &Rgb, cam: &Cam) -> anyhow::Result<LabelMap> {
    match params {
        AffinityLabelParams::Psa { field, low_alpha, high_alpha } => {
            let at = |alpha: f64| field.labels(image, &from_cam(cam, alpha as f32));
            Ok(confident_psa(&at(*low_alpha)?, &at(*high_alpha)?))
        }
        AffinityLabelParams::Irn { field, foreground, background, certainty } => {
            let all: Vec<u8> = std::iter::once(0).chain(cam.classes.iter().copied()).collect();
            let at = |threshold: f64| {
                let labels = label::from_cam(cam, threshold as f32);
                field.labels(image, &from_labels_among(&labels, all.clone(), *certainty as f32))
            };
            Ok(confident(&at(*foreground)?, &at(*background)?))
        }
    }
}
