//! The parameters of a stage that have an effect, from a spec; the rest stands at its default or is not there.

use crate::pipeline::spec::{CpmSpec, CrfStart, PseudoLabelSpec, Refinement, SamInput, SeMapSpec, Spec};
use crate::stage::cam_epoch::{CamEpochParams, CpmParams, EquivarianceParams, SscParams};
use crate::stage::params::Compute;
use crate::stage::prompt::{FirstPeak, MaskPick, PointScale, PromptKind, PromptParams};
use crate::stage::pseudo_label::{CrfRefineParams, PseudoLabelParams};
use crate::stage::se_map::{CropParams, SeMapParams, SmallRegionParams};
use crate::stage::seg_crf::CrfSet;

pub(super) fn se_map_params(spec: &SeMapSpec, precision: Compute) -> SeMapParams {
    SeMapParams {
        precision,
        points_per_side: spec.points_per_side,
        pred_iou_thresh: spec.pred_iou_thresh,
        stability_score_thresh: spec.stability_score_thresh,
        stability_score_offset: spec.stability_score_offset,
        box_nms_thresh: spec.box_nms_thresh,
        overlap: spec.overlap,
        crops: (spec.crop_n_layers > 0).then_some(CropParams {
            n_layers: spec.crop_n_layers,
            nms_thresh: spec.crop_nms_thresh,
            overlap_ratio: spec.crop_overlap_ratio,
            n_points_downscale_factor: spec.crop_n_points_downscale_factor,
        }),
        small_regions: (spec.min_mask_region_area > 0)
            .then_some(SmallRegionParams { min_area: spec.min_mask_region_area, nms_thresh: spec.crop_nms_thresh }),
    }
}

/// Of one epoch: nothing of a loss that is off in it.
pub(super) fn cam_epoch_params(of: &Spec, epoch: u32, (n_classes, precision): (i64, Compute)) -> CamEpochParams {
    let spec = &of.classifier;
    let with_ssc = spec.ssc.enabled && spec.ssc.start_epoch <= epoch;
    let with_cpm = spec.cpm.enabled && spec.cpm.start_epoch <= epoch;
    CamEpochParams {
        epoch,
        epochs: spec.epochs,
        rng_seed: of.rng_seed,
        precision,
        backbone: spec.backbone,
        stride: spec.stride,
        feat_dim: spec.feat_dim,
        n_classes,
        batch_size: spec.batch_size,
        accumulate: spec.accumulate,
        crop: spec.crop,
        resize_long: spec.resize_long,
        jitter: spec.jitter,
        lr: spec.lr,
        head_lr_mult: spec.head_lr_mult,
        momentum: spec.momentum,
        weight_decay: spec.weight_decay,
        ssc: with_ssc.then_some(SscParams {
            weight: spec.ssc.weight,
            temperature: spec.ssc.temperature,
            proto_stopgrad: spec.ssc.proto_stopgrad,
            unassigned_negative: spec.ssc.unassigned_negative,
            mask_absent_ids: spec.ssc.mask_absent_ids,
            id_compaction: spec.ssc.id_compaction,
            id_width: spec.ssc.id_width,
            level: spec.ssc.level,
            prototypes: spec.ssc.prototypes,
        }),
        cpm: with_cpm.then(|| CpmParams {
            weight: spec.cpm.weight,
            scales: spec.cpm.scales.clone(),
            prompt: prompt_params(&spec.cpm, spec.cpm.sam_input),
            sam_input: spec.cpm.sam_input,
            pad_label: spec.cpm.pad_label,
            absent_class: spec.cpm.absent_class,
        }),
        equivariance: spec.equivariance.enabled.then_some(EquivarianceParams {
            weight: spec.equivariance.weight,
            scale: spec.equivariance.scale,
            pcm: spec.equivariance.pcm,
        }),
    }
}

/// What of the prompts has an effect; the rest stands at its default.
pub(super) fn prompt_params(spec: &CpmSpec, sam_input: SamInput) -> PromptParams {
    let points = spec.prompt == PromptKind::Point;
    let places = spec.prompt != PromptKind::Mask;
    let of_three = spec.multimask && spec.mask_choice == MaskPick::Index;
    PromptParams {
        tau: spec.tau,
        prompt: spec.prompt,
        min_distance: points.then_some(spec.min_distance),
        exclude_border: points && spec.exclude_border,
        first_peak: if points { spec.first_peak } else { FirstPeak::default() },
        peak_exact: !points || spec.peak_exact,
        point_scale: match sam_input {
            SamInput::CachedFull if places => spec.point_scale,
            _ => PointScale::default(),
        },
        half_pixel: !places || spec.half_pixel,
        multimask: spec.multimask,
        mask_choice: if spec.multimask { spec.mask_choice } else { MaskPick::default() },
        mask_index: of_three.then_some(spec.mask_index),
        logit_path: spec.logit_path,
        alpha_sam: spec.alpha_sam,
        alpha_cam: spec.alpha_cam,
    }
}

/// The CRF that is the first refinement takes the CAM's scores and no threshold.
pub(super) fn starts_with_crf(spec: &PseudoLabelSpec) -> bool {
    spec.refine.first() == Some(&Refinement::Crf) && spec.crf_start == CrfStart::Cam
}

/// Of some refinements; `threshold`: the input says it, or there is none.
pub(super) fn pseudo_label_params(
    spec: &PseudoLabelSpec,
    refine: &[Refinement],
    threshold: Option<f64>,
) -> PseudoLabelParams {
    let n_crfs = refine.iter().filter(|refinement| **refinement == Refinement::Crf).count();
    let on_cam = starts_with_crf(spec);
    PseudoLabelParams {
        threshold,
        refine: refine.to_vec(),
        crf: (n_crfs > 0).then(|| CrfRefineParams {
            field: spec.crf.params(CrfSet::Psa),
            alpha: on_cam.then_some(spec.crf_alpha),
            certainty: (n_crfs > usize::from(on_cam)).then_some(spec.crf_certainty),
        }),
    }
}
