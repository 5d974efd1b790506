//! The dense CRF of a spec: after CAMs and labels, and after segmentation.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::stage::seg_crf::{CrfParams, CrfSet};

/// A dense CRF (Krähenbühl and Koltun 2011). What is not set is as in `parameters`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct CrfSpec {
    /// Whose they are; unset: `psa` for pseudo-labels, `deeplab` after segmentation.
    pub parameters: Option<CrfSet>,
    /// Updates of the mean field.
    pub iterations: Option<u32>,
    /// Standard deviation of the kernel of places, pixels.
    pub gaussian_sxy: Option<f64>,
    pub gaussian_weight: Option<f64>,
    /// Standard deviation of places in the kernel of places and colours, pixels.
    pub bilateral_sxy: Option<f64>,
    /// Standard deviation of colours, of 255.
    pub bilateral_srgb: Option<f64>,
    pub bilateral_weight: Option<f64>,
}

impl CrfSpec {
    pub(super) fn params(&self, unset: CrfSet) -> CrfParams {
        let of = self.parameters.unwrap_or(unset).params();
        CrfParams {
            iterations: self.iterations.unwrap_or(of.iterations),
            gaussian_sxy: self.gaussian_sxy.unwrap_or(of.gaussian_sxy),
            gaussian_weight: self.gaussian_weight.unwrap_or(of.gaussian_weight),
            bilateral_sxy: self.bilateral_sxy.unwrap_or(of.bilateral_sxy),
            bilateral_srgb: self.bilateral_srgb.unwrap_or(of.bilateral_srgb),
            bilateral_weight: self.bilateral_weight.unwrap_or(of.bilateral_weight),
        }
    }

    /// The first field out of its range, and how.
    pub(super) fn problem(&self) -> Option<(&'static str, &'static str)> {
        let CrfParams { iterations, gaussian_sxy, gaussian_weight, bilateral_sxy, bilateral_srgb, bilateral_weight } =
            self.params(CrfSet::Psa);
        let rules = [
            (iterations <= 1000, "iterations", "is not in 0..=1000"),
            ((1.0..=1e4).contains(&gaussian_sxy), "gaussian_sxy", "is not in 1..=10000"),
            ((0.0..=1000.0).contains(&gaussian_weight), "gaussian_weight", "is not in 0..=1000"),
            ((1.0..=1e4).contains(&bilateral_sxy), "bilateral_sxy", "is not in 1..=10000"),
            ((1.0..=1e4).contains(&bilateral_srgb), "bilateral_srgb", "is not in 1..=10000"),
            ((0.0..=1000.0).contains(&bilateral_weight), "bilateral_weight", "is not in 0..=1000"),
        ];
        rules.into_iter().find(|(holds, _, _)| !holds).map(|(_, field, problem)| (field, problem))
    }
}

/// What a CRF that is the first refinement starts from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum CrfStart {
    /// The scores of the CAM, with a background `(1 - the best)^crf_alpha` in place of a threshold (PSA, S2C).
    #[default]
    Cam,
    /// The labels at the threshold (IRN).
    Labels,
}
