//! `seg_crf`: the dense CRF on what a segmentation network says of an image, and the parameters of every CRF.

use anyhow::{Context, ensure};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::cam_file::read_scores;
use super::{Output, Stage, StageContext, UnitInput};
use crate::data::image::{decode_rgb, encode_label_map};
use crate::vision::crf::{Bilateral, CrfOptions, Gaussian, Unary, from_scores, mean_field};
use crate::vision::{LabelMap, Rgb};

/// Whose parameters a CRF has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum CrfSet {
    /// 10 iterations; Gaussian 3, weight 3; bilateral 80 and 13, weight 10: PSA, OC-CSE and S2C on CAMs.
    Psa,
    /// 10 iterations; Gaussian 3, weight 3; bilateral 50 and 5, weight 10: IRN on label maps.
    Irn,
    /// 10 iterations; Gaussian 1, weight 3; bilateral 67 and 3, weight 4: DeepLab-v2, CLIP-ES, S2C after segmentation.
    Deeplab,
    /// 1 iteration; Gaussian 3, weight 3; bilateral 32 and 13, weight 10: SEAM after segmentation.
    Seam,
}

impl CrfSet {
    pub fn params(self) -> CrfParams {
        let (iterations, (gaussian_sxy, gaussian_weight), (bilateral_sxy, bilateral_srgb, bilateral_weight)) =
            match self {
                Self::Psa => (10, (3.0, 3.0), (80.0, 13.0, 10.0)),
                Self::Irn => (10, (3.0, 3.0), (50.0, 5.0, 10.0)),
                Self::Deeplab => (10, (1.0, 3.0), (67.0, 3.0, 4.0)),
                Self::Seam => (1, (3.0, 3.0), (32.0, 13.0, 10.0)),
            };
        CrfParams { iterations, gaussian_sxy, gaussian_weight, bilateral_sxy, bilateral_srgb, bilateral_weight }
    }
}

/// [`CrfOptions`] as they stand in a key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CrfParams {
    pub iterations: u32,
    pub gaussian_sxy: f64,
    pub gaussian_weight: f64,
    pub bilateral_sxy: f64,
    pub bilateral_srgb: f64,
    pub bilateral_weight: f64,
}

impl CrfParams {
    fn options(&self) -> CrfOptions {
        CrfOptions {
            iterations: self.iterations,
            gaussian: Gaussian { sxy: self.gaussian_sxy as f32, weight: self.gaussian_weight as f32 },
            bilateral: Bilateral {
                sxy: self.bilateral_sxy as f32,
                srgb: self.bilateral_srgb as f32,
                weight: self.bilateral_weight as f32,
            },
        }
    }

    /// The most probable labels after the CRF.
    pub(super) fn labels(&self, image: &Rgb, unary: &Unary) -> anyhow::Result<LabelMap> {
        ensure!((image.height, image.width) == (unary.height, unary.width), "the image and the labels differ in size");
        ensure!(!unary.labels.is_empty(), "no label has a probability");
        Ok(mean_field(image, unary, &self.options()).best())
    }
}

/// Reads `image`, `scores` (see [`super::cam_file`]); gives `prediction`: a palette PNG.
pub struct SegCrf {
    params: CrfParams,
}

impl Stage for SegCrf {
    const KIND: &'static str = "seg_crf";
    // 1: first version
    const VERSION: u64 = 2;
    const PARALLEL: bool = true;
    type Params = CrfParams;

    fn load(params: CrfParams, _: &StageContext) -> anyhow::Result<Self> {
        Ok(Self { params })
    }

    fn run(&mut self, input: &UnitInput<'_>) -> anyhow::Result<Vec<Output>> {
        let image = decode_rgb(&input.bytes("image")?).context("input `image`")?;
        let scores = read_scores(&input.bytes("scores")?)?;
        let labels = self.params.labels(&image, &from_scores(scores))?;
        Ok(vec![Output::new("prediction", encode_label_map(&labels))])
    }
}
