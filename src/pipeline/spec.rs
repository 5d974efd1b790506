//! The pipeline file as typed values, with every default. What each field means is said here once: the JSON
//! schema takes it from these comments.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use super::affinity::{IrnSpec, PsaSpec};
pub use super::crf::{CrfSpec, CrfStart};
pub use crate::data::mask_file::MaskValues;
use crate::data::orient::OrientationPolicy;
use crate::data::scan::LabelSource;
pub use crate::stage::params::{
    AlphaCam, AlphaSam, Backbone, Head, IdCompaction, IdWidth, OverlapRule, PadLabel, Refinement, SscLevel,
    SscPrototypes, Sweep,
};
pub use crate::stage::prompt::{AbsentClass, FirstPeak, LogitPath, MaskPick, PointScale, PromptKind, SamInput};
use crate::vision::se_map::AutomaticOptions;

/// One cell of an experiment: everything a run needs to know.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Spec {
    /// Random streams (order of images, augmentation, head initialisation) derive from it.
    pub rng_seed: u64,
    /// `auto`: bf16 where the processor computes in it (AMX, AVX-512 BF16), else f32; on a GPU say which. The choice
    /// made is in the key.
    pub precision: Precision,
    pub s2c: S2cSpec,
    pub dataset: DatasetSpec,
    pub sam: SamSpec,
    pub se_map: SeMapSpec,
    pub classifier: ClassifierSpec,
    pub seed: SeedSpec,
    pub pseudo_label: PseudoLabelSpec,
    pub segmentation: SegmentationSpec,
    pub evaluate: EvaluateSpec,
    pub report: ReportSpec,
}

/// Number format of the heavy arithmetic; sums, norms and losses stay f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    #[default]
    Auto,
    F32,
    Bf16,
}

/// Whose S2C it is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct S2cSpec {
    /// Where fields that nothing sets take their defaults from, as far as paper and authors' code differ
    /// (docs/presets.md).
    pub preset: Preset,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Preset {
    /// What the paper says.
    Paper,
    /// What the released code does, with its errors.
    AuthorsCode,
    /// The defaults of the fields themselves.
    #[default]
    Recommended,
}

/// Images, masks and image-level labels.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct DatasetSpec {
    pub kind: DatasetKind,
    /// The folder that holds JPEGImages, ImageSets and masks (`voc`), annotations and folders of images (`coco`), or
    /// images and labels.csv (`folder`). Relative to the pipeline file.
    pub root: Option<PathBuf>,
    /// Folder of masks within `root`; found by itself in SegmentationClass, then SegmentationClassAug (`voc`), or in
    /// masks (`folder`).
    pub masks: Option<PathBuf>,
    /// Where image-level labels of `voc` come from: the mask, or Annotations where there is none (`auto`), `masks` or
    /// `annotations` alone. Objects marked difficult count.
    pub labels: LabelSource,
    /// What the values of masks mean: `auto` reads numbers, or the colours of PASCAL VOC where only these can be meant.
    /// `numbers` and `colours` say which; a table says it of each value, e.g. `{ "255" = "cat", "#ff0000" = "dog" }`, with
    /// `background` and `ignored` beside the classes. What it does not name keeps its meaning: numbers, and PASCAL VOC's
    /// colours where the classes are PASCAL VOC's.
    pub mask_values: MaskValues,
    /// Images with an EXIF orientation (`voc`, `coco`, `folder`): read as `stored`, `turned` as viewers show them, or
    /// `auto`: as the sizes of masks and annotations tell, else as stored in `voc` and of COCO's own images, and turned in
    /// `folder` and other `coco`.
    pub orientation: OrientationPolicy,
    /// List of training images: in ImageSets/Segmentation, without `.txt` (`voc`); LIST of
    /// annotations/instances_LIST.json (`coco`); value of the column `split` (`folder`).
    pub train: String,
    /// List of validation images.
    pub val: String,
    /// Only the first so many training images of the list; 0 = all.
    pub max_train: usize,
    /// Only the first so many validation images; 0 = all.
    pub max_val: usize,
    /// Ids of images to leave out.
    pub exclude: Vec<String>,
    /// The scenes of `kind = "emoji"`.
    pub emoji: EmojiSpec,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum DatasetKind {
    /// A tree in PASCAL VOC 2012 layout at `root`.
    #[default]
    Voc,
    /// Scenes of emoji that the program makes itself.
    Emoji,
    /// MS COCO at `root`: annotations/instances_LIST.json, with the images in LIST or images/LIST.
    Coco,
    /// Images in `root`/images with their labels in labels.csv: `image`, `split` and a column of 0 and 1 for each class.
    /// Masks in masks/ID.png, where there are some, hold the numbers of these columns from 1 on.
    Folder,
}

/// Scenes of emoji over painted backgrounds, with exact masks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct EmojiSpec {
    pub n_train: usize,
    pub n_val: usize,
    /// The longer side of a scene, pixels.
    pub side: usize,
    /// VOC classes that occur; none = all 20.
    pub classes: Vec<String>,
    pub rng_seed: u64,
}

/// The Segment Anything Model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SamSpec {
    /// A checkpoint with the public parameter names (.safetensors or .pth). Relative to the pipeline file.
    pub weights: PathBuf,
}

/// Segment-everything maps (parameters of SamAutomaticMaskGenerator).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SeMapSpec {
    /// Prompts are a grid of this many points along each side; 1 to 128.
    pub points_per_side: u32,
    /// Masks with a predicted IoU at or below this are dropped.
    pub pred_iou_thresh: f64,
    /// Masks with a stability score below this are dropped.
    pub stability_score_thresh: f64,
    /// Logit distance between the two masks the stability score compares.
    pub stability_score_offset: f64,
    /// Of two masks whose boxes overlap more (IoU), the one with the lower predicted IoU is dropped.
    pub box_nms_thresh: f64,
    /// Which mask a pixel in several masks belongs to.
    pub overlap: OverlapRule,
    /// Layers of crops that are segmented as well: layer i has 2^i x 2^i; 0 = the whole image alone.
    pub crop_n_layers: u32,
    /// As `box_nms_thresh`, between masks of different crops; the one from the smaller crop stays.
    pub crop_nms_thresh: f64,
    /// How far neighbours of the first layer of crops overlap, as a part of the image's shorter side.
    pub crop_overlap_ratio: f64,
    /// The points along a side are divided by this, layer by layer.
    pub crop_n_points_downscale_factor: u32,
    /// Holes and islands of masks with fewer pixels go; 0 = masks stay as they are.
    pub min_mask_region_area: usize,
}

/// The CAM classifier and its training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ClassifierSpec {
    pub backbone: Backbone,
    /// ImageNet weights of the backbone under their public names (.safetensors, .pth, or for resnet38d MXNet's .params).
    /// Relative to the pipeline file.
    pub weights: PathBuf,
    /// Pixels of the input a feature covers: 8 or 16; 8 with resnet38d.
    pub stride: u32,
    pub epochs: u32,
    pub batch_size: usize,
    /// Batches whose gradients make one step: so many times `batch_size` images in the memory of `batch_size`.
    pub accumulate: usize,
    /// Side of the square training crop, pixels.
    pub crop: u32,
    /// The longer side of an image is resized to a random length in this range before the crop, pixels.
    pub resize_long: (u32, u32),
    /// Brightness, contrast, saturation (factor 1 +- x) and hue (fraction of a turn), applied with p = 0.8.
    pub jitter: (f64, f64, f64, f64),
    /// Learning rate of the backbone at the first step; falls as (1 - step/steps)^0.9.
    pub lr: f64,
    /// The head learns this many times faster.
    pub head_lr_mult: f64,
    /// Of SGD.
    pub momentum: f64,
    pub weight_decay: f64,
    /// Channels of the feature map SSC works on, between backbone and class scores; 0 = the backbone's own.
    pub feat_dim: i64,
    pub ssc: SscSpec,
    pub cpm: CpmSpec,
    pub equivariance: EquivarianceSpec,
}

/// SEAM: CAMs of a smaller crop are those of the crop made smaller (L_ER).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct EquivarianceSpec {
    pub enabled: bool,
    /// Of L_ER, and of L_ECR.
    pub weight: f64,
    /// Of the smaller crop.
    pub scale: f64,
    /// With `enabled`: SEAM's pixel correlation module, which learns by L_ECR: seeds are CAMs in which pixels that look alike are one.
    pub pcm: bool,
}

/// SAM-Segment Contrasting: L_SSC.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SscSpec {
    pub enabled: bool,
    pub weight: f64,
    /// Cosines are divided by this before the softmax (paper: 0.5).
    pub temperature: f64,
    /// No gradient flows through the prototypes.
    pub proto_stopgrad: bool,
    /// Pixels in no segment form one more prototype, a negative for all others.
    pub unassigned_negative: bool,
    /// `false` (authors' code): an id up to the highest of the batch that an image lacks is a prototype of zeros in its
    /// denominator.
    pub mask_absent_ids: bool,
    /// `buggy` (authors' code): ids become ranks before the crop, so that an image without uncovered pixels loses its
    /// first segment and crops have gaps.
    pub id_compaction: IdCompaction,
    /// `u8_wrap` (authors' code): segments beyond the 255th share the ids of the first.
    pub id_width: IdWidth,
    /// What is drawn together: `feature`s or CAM `logit`s.
    pub level: SscLevel,
    /// Negatives are the `local` prototypes of the image or those of all images of the batch, `global`.
    pub prototypes: SscPrototypes,
    /// First epoch, from 0, with this loss.
    pub start_epoch: u32,
}

/// CAM-based Prompting Module: L_CPM.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct CpmSpec {
    pub enabled: bool,
    pub weight: f64,
    /// First epoch, from 0, with this loss.
    pub start_epoch: u32,
    /// Peaks with a CAM score below this are no prompts; 0 to 1.
    pub tau: f64,
    /// Scales of the CAM that gives the prompts.
    pub scales: Vec<f64>,
    /// What SAM is prompted with, once for each class.
    pub prompt: PromptKind,
    /// Two peaks are at least this far apart (Chebyshev), pixels of the crop.
    pub min_distance: u32,
    /// Peaks nearer to a border than `min_distance` are none, but the highest score of all stays one (authors' code).
    pub exclude_border: bool,
    /// How the highest score of all and the list of peaks, which may have it as well, become one list.
    pub first_peak: FirstPeak,
    /// `false` (authors' code): peaks other than the highest are found after a 3x3 maximum filter, whose plateaus put
    /// them one pixel up and left, and only where no score within `min_distance` is higher.
    pub peak_exact: bool,
    /// How a peak's pixel becomes a place in SAM's frame of 1024.
    pub point_scale: PointScale,
    /// Peaks are centres of pixels; `false` (authors' code): their corners.
    pub half_pixel: bool,
    /// What SAM's encoder sees.
    pub sam_input: SamInput,
    /// SAM gives three masks, from part to whole; `false`: the one of its token for prompts that leave no doubt.
    pub multimask: bool,
    /// How one of the three is chosen.
    pub mask_choice: MaskPick,
    /// Which of SAM's three masks: 0 the smallest, 2 the largest.
    pub mask_index: u32,
    /// From SAM's logits to mask and confidence.
    pub logit_path: LogitPath,
    /// How certain SAM is of a pixel, in the confidence that decides between classes.
    pub alpha_sam: AlphaSam,
    /// How certain the CAM is of a class, in that confidence.
    pub alpha_cam: AlphaCam,
    /// The padding around a crop is `ignore`d or taught as background (`bg`, authors' code). With `bg` and
    /// `sam_input = "online_crop"` it is a part of the picture, as there: peaks and masks may lie in it.
    pub pad_label: PadLabel,
    /// Classes that the image does not have, in the softmax of the loss.
    pub absent_class: AbsentClass,
}

/// CAM seeds: multi-scale inference and their threshold sweep.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SeedSpec {
    pub scales: Vec<f64>,
    /// Add the mirrored image at every scale.
    pub flip: bool,
    /// How the background threshold is found with the masks: the best of all (`full`), or up to the first that is no
    /// better (`early_stop`, authors' code).
    pub sweep: Sweep,
    /// The CAMs of the `last` epoch, or of the one whose seeds score best with the masks (`best_gt`, authors' code).
    pub select: Select,
    pub advcam: AdvCamSpec,
}

/// CAMs of an image that climbs towards each of its classes (AdvCAM): a pass forward and back for each class, scale and
/// step.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct AdvCamSpec {
    pub enabled: bool,
    /// CAMs that are summed: of the image and of each step.
    pub iterations: usize,
    /// How far a step goes where the gradient is largest, in units of the normalised image.
    pub step: f64,
    /// Weight of the change of pixels that are high already.
    pub guard: f64,
    /// What is high, of the CAM's maximum.
    pub guard_threshold: f64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Select {
    #[default]
    Last,
    BestGt,
}

/// From CAM to label map.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PseudoLabelSpec {
    /// Background score. `"best"`: the one with the highest seed mIoU, chosen with the masks of the training images.
    pub threshold: Threshold,
    /// Refinements in order.
    pub refine: Vec<Refinement>,
    /// Of the refinement `crf`.
    pub crf: CrfSpec,
    /// What it starts from where it is the first; later it starts from the labels before it.
    pub crf_start: CrfStart,
    /// The higher, the less is background; above 0.
    pub crf_alpha: f64,
    /// How probable a label is that it starts from; above 0 and below 1.
    pub crf_certainty: f64,
    pub psa: PsaSpec,
    pub irn: IrnSpec,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "expected a number from 0 to 1, or \"best\"")]
pub enum Threshold {
    At(f64),
    Rule(ThresholdRule),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ThresholdRule {
    Best,
}

/// DeepLab, trained on the pseudo-labels.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SegmentationSpec {
    /// `false`: stop after the pseudo-labels.
    pub enabled: bool,
    /// Where fields that nothing sets take their defaults from (docs/segmentation.md).
    pub recipe: Recipe,
    pub backbone: Backbone,
    /// ImageNet weights of the backbone under their public names (.safetensors, .pth, or for resnet38d MXNet's .params).
    /// Relative to the pipeline file.
    pub weights: PathBuf,
    /// Pixels of the input a feature covers: 8 or 16; 8 with resnet38d.
    pub stride: u32,
    /// What makes logits of the features; all but `aspp_v2` have batch norms that are trained.
    pub head: Head,
    pub epochs: u32,
    pub batch_size: usize,
    /// Batches whose gradients make one step: so many times `batch_size` images in the memory of `batch_size`.
    pub accumulate: usize,
    /// Side of the square training crop, pixels.
    pub crop: u32,
    /// An image is scaled by a random factor in this range before the crop.
    pub scale: (f64, f64),
    /// Learning rate of the backbone at the first step; falls as (1 - step/steps)^0.9.
    pub lr: f64,
    /// The head learns this many times faster.
    pub head_lr_mult: f64,
    pub momentum: f64,
    pub weight_decay: f64,
    /// Scales of inference; the sum of logits decides.
    pub test_scales: Vec<f64>,
    /// Add the mirrored image at every scale.
    pub test_flip: bool,
    /// A dense CRF after inference.
    pub test_crf: bool,
    pub crf: CrfSpec,
}

/// How the field trains its segmentation networks on VOC's 10,582 images.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Recipe {
    /// DeepLab-LargeFOV on ResNet38d, as SEAM's authors (YudeWang/semantic-segmentation-codebase).
    LargefovResnet38d,
    /// DeepLab-v2 on ResNet-101 (kazuto1011/deeplab-pytorch), as RIB, AdvCAM and CLIP-ES.
    AsppV2Resnet101,
    /// The defaults of the fields themselves, for a short training.
    #[default]
    Recommended,
}

/// Scoring.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct EvaluateSpec {
    /// Score pseudo-labels against the masks of the training images, where they have masks.
    pub pseudo_labels: bool,
    /// The mIoU is the mean over background and these; none: over all classes that the masks have.
    pub classes: Vec<String>,
}

/// What a run writes beside the cache.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ReportSpec {
    /// So many training images, evenly spaced, as pictures: image, CAM, SE map, pseudo-label, prediction, truth.
    pub overlays: usize,
}

impl Default for DatasetSpec {
    fn default() -> Self {
        Self {
            kind: DatasetKind::Voc,
            root: None,
            masks: None,
            labels: LabelSource::Auto,
            mask_values: MaskValues::default(),
            orientation: OrientationPolicy::Auto,
            train: "train".into(),
            val: "val".into(),
            max_train: 0,
            max_val: 0,
            exclude: Vec::new(),
            emoji: EmojiSpec::default(),
        }
    }
}
impl Default for EmojiSpec {
    fn default() -> Self {
        Self { n_train: 24, n_val: 8, side: 160, classes: Vec::new(), rng_seed: 0 }
    }
}
impl Default for SamSpec {
    fn default() -> Self {
        Self { weights: "weights/mobile_sam.f16.safetensors".into() }
    }
}
impl Default for SeMapSpec {
    fn default() -> Self {
        let AutomaticOptions {
            points_per_side,
            pred_iou_thresh,
            stability_score_thresh,
            stability_score_offset,
            box_nms_thresh,
            crop_n_layers,
            crop_nms_thresh,
            crop_overlap_ratio,
            crop_n_points_downscale_factor,
            min_mask_region_area,
        } = AutomaticOptions::default();
        Self {
            points_per_side,
            pred_iou_thresh,
            stability_score_thresh,
            stability_score_offset,
            box_nms_thresh,
            overlap: OverlapRule::AreaAsc,
            crop_n_layers,
            crop_nms_thresh,
            crop_overlap_ratio,
            crop_n_points_downscale_factor,
            min_mask_region_area,
        }
    }
}
impl Default for ClassifierSpec {
    fn default() -> Self {
        Self {
            backbone: Backbone::Resnet50V1,
            weights: "weights/resnet50_v1.f16.safetensors".into(),
            stride: 16,
            epochs: 5,
            batch_size: 8,
            accumulate: 1,
            crop: 256,
            resize_long: (256, 512),
            jitter: (0.4, 0.4, 0.4, 0.1),
            lr: 0.01,
            head_lr_mult: 10.0,
            momentum: 0.9,
            weight_decay: 5e-4,
            feat_dim: 256,
            ssc: SscSpec::default(),
            cpm: CpmSpec::default(),
            equivariance: EquivarianceSpec::default(),
        }
    }
}
impl Default for EquivarianceSpec {
    fn default() -> Self {
        Self { enabled: false, weight: 1.0, scale: 0.3, pcm: false }
    }
}
impl Default for SscSpec {
    fn default() -> Self {
        Self {
            enabled: false,
            weight: 1.0,
            temperature: 0.5,
            proto_stopgrad: true,
            unassigned_negative: false,
            mask_absent_ids: true,
            id_compaction: IdCompaction::Fixed,
            id_width: IdWidth::U16,
            level: SscLevel::Feature,
            prototypes: SscPrototypes::Local,
            start_epoch: 0,
        }
    }
}
impl Default for CpmSpec {
    fn default() -> Self {
        Self {
            enabled: false,
            weight: 1.0,
            start_epoch: 2,
            tau: 0.5,
            scales: vec![0.5, 1.0, 1.5, 2.0],
            prompt: PromptKind::Point,
            min_distance: 20,
            exclude_border: false,
            first_peak: FirstPeak::Dedup,
            peak_exact: true,
            point_scale: PointScale::PerAxis,
            half_pixel: true,
            sam_input: SamInput::CachedFull,
            multimask: true,
            mask_choice: MaskPick::Index,
            mask_index: 2,
            logit_path: LogitPath::One,
            alpha_sam: AlphaSam::Logit,
            alpha_cam: AlphaCam::Mean,
            pad_label: PadLabel::Ignore,
            absent_class: AbsentClass::Zero,
        }
    }
}
impl Default for SeedSpec {
    fn default() -> Self {
        Self {
            scales: vec![0.5, 1.0, 1.5, 2.0],
            flip: true,
            sweep: Sweep::Full,
            select: Select::Last,
            advcam: AdvCamSpec::default(),
        }
    }
}
impl Default for AdvCamSpec {
    fn default() -> Self {
        Self { enabled: false, iterations: 27, step: 0.08, guard: 7.0, guard_threshold: 0.5 }
    }
}
impl Default for PseudoLabelSpec {
    fn default() -> Self {
        Self {
            threshold: Threshold::Rule(ThresholdRule::Best),
            refine: Vec::new(),
            crf: CrfSpec::default(),
            crf_start: CrfStart::Cam,
            crf_alpha: 10.0,
            crf_certainty: 0.7,
            psa: PsaSpec::default(),
            irn: IrnSpec::default(),
        }
    }
}
impl Default for SegmentationSpec {
    fn default() -> Self {
        Self {
            enabled: true,
            recipe: Recipe::Recommended,
            backbone: Backbone::Resnet50V1,
            weights: "weights/resnet50_v1.f16.safetensors".into(),
            stride: 16,
            head: Head::AsppV2,
            epochs: 5,
            batch_size: 8,
            accumulate: 1,
            crop: 256,
            scale: (0.5, 1.5),
            lr: 2.5e-4,
            head_lr_mult: 10.0,
            momentum: 0.9,
            weight_decay: 5e-4,
            test_scales: vec![1.0],
            test_flip: true,
            test_crf: false,
            crf: CrfSpec::default(),
        }
    }
}
impl Default for ReportSpec {
    fn default() -> Self {
        Self { overlays: 6 }
    }
}
impl Default for EvaluateSpec {
    fn default() -> Self {
        Self { pseudo_labels: true, classes: Vec::new() }
    }
}
