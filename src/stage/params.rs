//! Choices that several stages share, as they stand in a pipeline file and in a key.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[cfg(feature = "torch")]
use crate::model::backbone::{Architecture, BackboneConfig};
#[cfg(feature = "torch")]
use crate::model::deeplab::HeadKind;
#[cfg(feature = "torch")]
use crate::model::resnet::{Depth, StrideIn};

/// The number format a stage computes in: a spec's precision once the device is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compute {
    F32,
    Bf16,
}

#[cfg(feature = "torch")]
impl From<Compute> for crate::model::Compute {
    fn from(compute: Compute) -> Self {
        match compute {
            Compute::F32 => Self::F32,
            Compute::Bf16 => Self::Bf16,
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OverlapRule {
    /// The smallest mask wins (paper).
    #[default]
    AreaAsc,
    /// The mask with the highest predicted IoU wins (authors' code).
    PredIouDesc,
}

/// What SSC draws together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum SscLevel {
    /// The feature map (paper).
    #[default]
    Feature,
    /// The CAM logits.
    Logit,
}

/// Which prototypes a pixel is pushed away from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum SscPrototypes {
    /// Those of its image (paper).
    #[default]
    Local,
    /// Those of all images of the batch.
    Global,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum IdCompaction {
    /// 0 stays "no segment", ids are made gapless after the crop.
    #[default]
    Fixed,
    /// Ids become ranks before the crop (authors' code): where every pixel has a segment, the first is lost.
    Buggy,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum IdWidth {
    #[default]
    U16,
    /// Ids above 255 start again from 0 (authors' code).
    U8Wrap,
}

/// How the background threshold of the seeds is found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Sweep {
    /// The best of 0.00, 0.01, .. 1.00.
    #[default]
    Full,
    /// Up from 0.00 to at most 0.49, until the first that is not better (authors' code).
    EarlyStop,
}

/// Whether a parameter stands at its default: it is then left out, so that a new one leaves old keys as they are.
pub(super) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

pub(super) fn is_yes(value: &bool) -> bool {
    *value
}

pub(super) fn yes() -> bool {
    true
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Backbone {
    /// ResNet-50; the stride of a bottleneck sits in its first convolution (original ResNet).
    #[default]
    Resnet50V1,
    /// The stride sits in the 3x3 convolution (torchvision).
    Resnet50,
    Resnet18,
    Resnet34,
    /// As `resnet50v1`.
    Resnet101V1,
    /// As `resnet50`.
    Resnet101,
    /// The wide ResNet of 38 layers (paper); its stride is 8.
    Resnet38d,
}

/// What makes DeepLab's logits of the features.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Head {
    /// DeepLab-v2: the sum of four dilated convolutions.
    #[default]
    AsppV2,
    /// A dilated convolution and two of 1x1, with batch norms: DeepLab on ResNet38d as SEAM and its followers train it.
    #[serde(rename = "largefov")]
    LargeFov,
    /// DeepLab-v3: a pyramid with the image's mean, and batch norms (torchvision's).
    #[serde(rename = "deeplabv3")]
    DeepLabV3,
    /// DeepLab-v3+: the pyramid beside low-level features of a ResNet.
    #[serde(rename = "deeplabv3plus")]
    DeepLabV3Plus,
}

#[cfg(feature = "torch")]
impl From<Head> for HeadKind {
    fn from(head: Head) -> Self {
        match head {
            Head::AsppV2 => Self::AsppV2,
            Head::LargeFov => Self::LargeFov,
            Head::DeepLabV3 => Self::V3,
            Head::DeepLabV3Plus => Self::V3Plus,
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AlphaSam {
    /// SAM's mask logit at the pixel (paper's stability score map).
    #[default]
    Logit,
    Sigmoid,
    /// The predicted IoU of the whole mask.
    Iou,
    /// The stability score of the whole mask, with an offset of 1 (SamAutomaticMaskGenerator's).
    AmgStability,
    One,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AlphaCam {
    /// The mean of the CAM over the mask.
    #[default]
    Mean,
    One,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PadLabel {
    #[default]
    Ignore,
    Bg,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Refinement {
    /// Each SE segment takes the label that most of its pixels have.
    SegmentVote,
    /// The CAMs prompt SAM as `classifier.cpm` says, and its masks are the label map: SAM after training, not in it.
    /// It starts from the CAMs, so it is the first refinement.
    SamPrompt,
    /// AffinityNet (Ahn and Kwak 2018), trained on what is certain of the CAMs, says which near pixels are of one thing,
    /// and the CAMs spread by it: see `pseudo_label.psa`. It starts from the CAMs, so it is the first refinement.
    Psa,
    /// IRN (Ahn, Cho and Kwak 2019), trained in the same way, finds the edges between things, and the CAMs spread up to
    /// them: see `pseudo_label.irn`. It starts from the CAMs, so it is the first refinement.
    Irn,
    /// A dense CRF draws the labels to the edges of the image, as `pseudo_label.crf` says.
    Crf,
    /// An SE segment takes the class that most of its pixels have, or that has most of its own pixels in it (SEPL);
    /// pixels in no segment keep theirs.
    Sepl,
}

impl Refinement {
    /// It starts from the CAMs themselves, so nothing can come before it.
    pub fn starts_from_cams(self) -> bool {
        matches!(self, Self::SamPrompt | Self::Psa | Self::Irn)
    }
}

#[cfg(feature = "torch")]
impl Backbone {
    pub(super) fn config(self, stride: u32, precision: Compute, device: tch::Device) -> BackboneConfig {
        let architecture = match self {
            Self::Resnet18 => Architecture::Resnet(Depth::D18, StrideIn::Conv2),
            Self::Resnet34 => Architecture::Resnet(Depth::D34, StrideIn::Conv2),
            Self::Resnet50V1 => Architecture::Resnet(Depth::D50, StrideIn::Conv1),
            Self::Resnet50 => Architecture::Resnet(Depth::D50, StrideIn::Conv2),
            Self::Resnet101V1 => Architecture::Resnet(Depth::D101, StrideIn::Conv1),
            Self::Resnet101 => Architecture::Resnet(Depth::D101, StrideIn::Conv2),
            Self::Resnet38d => Architecture::Resnet38d,
        };
        BackboneConfig { architecture, output_stride: i64::from(stride), compute: precision.into(), device }
    }
}

/// The default of a number of parts.
#[cfg(feature = "torch")]
pub(super) fn one() -> usize {
    1
}

/// A default is not written, so that keys stay what they were before there was the field.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
#[cfg(feature = "torch")]
pub(super) fn is_one(n: &usize) -> bool {
    *n == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backbones_keep_the_names_that_stand_in_keys() {
        use Backbone::{Resnet18, Resnet34, Resnet38d, Resnet50, Resnet50V1, Resnet101, Resnet101V1};
        let all = [Resnet50V1, Resnet50, Resnet18, Resnet34, Resnet101V1, Resnet101, Resnet38d];
        let names = r#"["resnet50v1","resnet50","resnet18","resnet34","resnet101v1","resnet101","resnet38d"]"#;
        assert_eq!(serde_json::to_string(&all).unwrap(), names);
    }
}
