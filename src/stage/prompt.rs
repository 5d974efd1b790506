//! How CAMs prompt SAM: the parameters that `cam_epoch` (CPM) and `sam_refine` share. A field that has no effect beside
//! the others stands at its default, which no key shows.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::params::{AlphaCam, AlphaSam, is_default, is_yes, yes};
#[cfg(feature = "torch")]
use crate::model::cpm::{self, MapOptions, Pointing, PromptOptions, SamCertainty, SamOptions};
#[cfg(feature = "torch")]
use crate::model::sam::mask_decoder::MaskChoice;
#[cfg(feature = "torch")]
use crate::vision::peaks::{self, PeakRules};

// Unknown fields are not refused: serde cannot do so where another struct flattens this one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PromptParams {
    pub tau: f64,
    #[serde(default, skip_serializing_if = "is_default")]
    pub prompt: PromptKind,
    /// With points.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_distance: Option<u32>,
    #[serde(default, skip_serializing_if = "is_default")]
    pub exclude_border: bool,
    #[serde(default, skip_serializing_if = "is_default")]
    pub first_peak: FirstPeak,
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub peak_exact: bool,
    #[serde(default, skip_serializing_if = "is_default")]
    pub point_scale: PointScale,
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub half_pixel: bool,
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub multimask: bool,
    #[serde(default, skip_serializing_if = "is_default")]
    pub mask_choice: MaskPick,
    /// Where it chooses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mask_index: Option<u32>,
    #[serde(default, skip_serializing_if = "is_default")]
    pub logit_path: LogitPath,
    pub alpha_sam: AlphaSam,
    pub alpha_cam: AlphaCam,
}

#[cfg(feature = "torch")]
impl PromptParams {
    pub(super) fn options(&self) -> SamOptions {
        let rules = PeakRules {
            min_distance: self.min_distance.unwrap_or(0) as usize,
            exclude_border: self.exclude_border,
            exact: self.peak_exact,
            first: match self.first_peak {
                FirstPeak::Dedup => peaks::FirstPeak::Dedup,
                FirstPeak::DropFirst => peaks::FirstPeak::DropFirst,
            },
        };
        let prompt = PromptOptions {
            kind: match self.prompt {
                PromptKind::Point => cpm::PromptKind::Points(rules),
                PromptKind::Box => cpm::PromptKind::Box,
                PromptKind::Mask => cpm::PromptKind::Mask,
            },
            tau: self.tau,
            pointing: Pointing { by_height: self.point_scale == PointScale::HOnly, centre: self.half_pixel },
            masks: if self.multimask { MaskChoice::Multimask } else { MaskChoice::Single },
        };
        let map = MapOptions {
            pick: match self.mask_choice {
                MaskPick::Index if self.multimask => cpm::MaskPick::Index(self.mask_index.unwrap_or(0) as usize),
                MaskPick::Index => cpm::MaskPick::Index(0),
                MaskPick::BestIou => cpm::MaskPick::BestIou,
            },
            two_paths: self.logit_path == LogitPath::Two,
            alpha_sam: match self.alpha_sam {
                AlphaSam::Logit => SamCertainty::Logit,
                AlphaSam::Sigmoid => SamCertainty::Sigmoid,
                AlphaSam::Iou => SamCertainty::Iou,
                AlphaSam::AmgStability => SamCertainty::Stability,
                AlphaSam::One => SamCertainty::One,
            },
            alpha_cam_mean: self.alpha_cam == AlphaCam::Mean,
        };
        SamOptions { prompt, map }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PromptKind {
    /// The peaks of the CAM, all positive points of one prompt.
    #[default]
    Point,
    /// The box around all pixels whose CAM is at least `tau`.
    Box,
    /// The CAM as a mask of low resolution; its logits are 20 (CAM - `tau`), and outside the crop those of a CAM of 0.
    Mask,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FirstPeak {
    /// Peaks nearer to a higher one than `min_distance` are dropped.
    #[default]
    Dedup,
    /// The highest score is a prompt whatever `tau` says, peaks lie above `tau`, and the first of them is dropped, even
    /// where it is another one (authors' code).
    DropFirst,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PointScale {
    #[default]
    PerAxis,
    /// Both axes by 1024 / height, which is wrong for images that are wider than high (authors' code). A crop is square,
    /// so with `sam_input = "online_crop"` it is the same.
    HOnly,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SamInput {
    /// The whole, clean image, once: prompts go from the crop to it, and masks back.
    #[default]
    CachedFull,
    /// The augmented crop, drawn at 1024 x 1024, at every step (authors' code).
    OnlineCrop,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum MaskPick {
    /// By `mask_index`.
    #[default]
    Index,
    /// The one with the highest predicted IoU.
    BestIou,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LogitPath {
    /// Logits are drawn in the crop once, for both.
    #[default]
    One,
    /// The mask is drawn by way of SAM's frame of 1024, the confidence is not, and a pixel whose confidence is below 0
    /// is background (authors' code).
    Two,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AbsentClass {
    /// They score 0, and every pixel pushes them down (authors' code).
    #[default]
    Zero,
    /// They take no part.
    NegInf,
}

#[cfg(all(test, feature = "torch"))]
mod tests {
    use serde_json::json;

    use super::*;

    /// What the model is told, and what a key shows.
    fn told(switch: serde_json::Value) -> (String, String) {
        let mut params = json!({"tau": 0.5, "min_distance": 20, "mask_index": 2, "alpha_sam": "logit",
            "alpha_cam": "mean"});
        params.as_object_mut().unwrap().extend(switch.as_object().unwrap().clone());
        let params: PromptParams = serde_json::from_value(params).unwrap();
        (format!("{:?}", params.options()), serde_json::to_string(&params).unwrap())
    }

    #[test]
    fn every_switch_reaches_the_model_and_the_key() {
        let mut seen = vec![told(json!({}))];
        assert_eq!(seen[0].1, r#"{"tau":0.5,"min_distance":20,"mask_index":2,"alpha_sam":"logit","alpha_cam":"mean"}"#);
        for switch in [
            json!({"tau": 0.4}),
            json!({"prompt": "box"}),
            json!({"prompt": "mask"}),
            json!({"min_distance": 9}),
            json!({"exclude_border": true}),
            json!({"first_peak": "drop_first"}),
            json!({"peak_exact": false}),
            json!({"point_scale": "h_only"}),
            json!({"half_pixel": false}),
            json!({"multimask": false}),
            json!({"mask_choice": "best_iou"}),
            json!({"mask_index": 1}),
            json!({"logit_path": "two"}),
            json!({"alpha_sam": "sigmoid"}),
            json!({"alpha_sam": "iou"}),
            json!({"alpha_sam": "amg_stability"}),
            json!({"alpha_sam": "one"}),
            json!({"alpha_cam": "one"}),
        ] {
            let (options, key) = told(switch.clone());
            assert!(seen.iter().all(|(other, _)| *other != options), "{switch}");
            assert!(seen.iter().all(|(_, other)| *other != key), "{switch}");
            seen.push((options, key));
        }
    }
}
