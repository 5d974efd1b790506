//! AffinityNet and IRN of a spec: networks that learn from pseudo-labels how far CAMs may spread.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::spec::{ClassifierSpec, Refinement, Spec};
use crate::stage::params::Backbone;

/// AffinityNet (PSA), of the refinement `psa`. Defaults are those of its authors' code.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PsaSpec {
    /// Unset: the classifier's. Of a ResNet its features are the results of `layer2`, `layer3` and `layer4`.
    pub backbone: Option<Backbone>,
    /// ImageNet weights of the backbone; unset: the classifier's. Relative to the pipeline file.
    pub weights: Option<PathBuf>,
    /// Pixels of the input a deep feature covers: 8 or 16; 8 with resnet38d; unset: the classifier's. Affinities are
    /// those of cells of 8 pixels in any case.
    pub stride: Option<u32>,
    /// It learns classes where a CRF on the CAM with the background `(1 - the best)^low_alpha` has one.
    pub low_alpha: f64,
    /// It learns background where a CRF with `high_alpha` has it (paper: 24); what is neither counts for nothing.
    pub high_alpha: f64,
    pub epochs: u32,
    pub batch_size: usize,
    /// Side of the square training crop, pixels.
    pub crop: u32,
    /// An image is scaled by a random factor in this range before the crop.
    pub rescale: (f64, f64),
    /// Learning rate of the backbone at the first step; falls as (1 - step/steps)^0.9.
    pub lr: f64,
    /// The layers above the backbone learn this many times faster.
    pub head_lr_mult: f64,
    /// Of SGD; as good as none in the authors' code, which gives the weight decay in its place.
    pub momentum: f64,
    pub weight_decay: f64,
    /// Pairs of cells nearer than this have an affinity, cells.
    pub radius: usize,
    /// The background that the walk starts from is `(1 - the best)^alpha`.
    pub alpha: f64,
    /// Affinities to this power are the transitions of the walk.
    pub beta: f64,
    /// Of the walk.
    pub steps: usize,
}

/// IRN, of the refinement `irn`. Defaults are those of its authors' code.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct IrnSpec {
    /// A ResNet, which is not trained; unset: the classifier's.
    pub backbone: Option<Backbone>,
    /// ImageNet weights of the backbone; unset: the classifier's. Relative to the pipeline file.
    pub weights: Option<PathBuf>,
    /// Pixels of the input a deep feature covers: 8 or 16; unset: the classifier's. Edges are those of cells of 4 pixels
    /// in any case.
    pub stride: Option<u32>,
    /// It learns classes where a CRF on the labels of the CAM at this threshold has one (RIB: 0.35).
    pub certain_foreground: f64,
    /// It learns background where a CRF at this threshold has it too (RIB: 0.17); what is neither counts for nothing.
    pub certain_background: f64,
    /// How probable the labels are that these CRFs start from; above 0 and below 1.
    pub certainty: f64,
    pub epochs: u32,
    pub batch_size: usize,
    /// Side of the square training crop, pixels.
    pub crop: u32,
    /// An image is scaled by a random factor in this range before the crop.
    pub rescale: (f64, f64),
    /// Learning rate of the edges at the first step; falls as (1 - step/steps)^0.9.
    pub lr: f64,
    /// The displacements learn this many times faster.
    pub head_lr_mult: f64,
    /// Of SGD; as good as none in the authors' code, which gives the weight decay in its place.
    pub momentum: f64,
    pub weight_decay: f64,
    /// Pairs of cells nearer than this are learnt from, cells.
    pub radius: usize,
    /// Pairs of cells nearer than this have a transition in the walk, cells.
    pub walk_radius: usize,
    /// Affinities to this power are the transitions of the walk.
    pub beta: f64,
    /// Of the walk.
    pub steps: usize,
    /// Background score beside the spread CAM, whose highest is 1 (RIB: 0.27).
    pub background: f64,
}

impl Default for PsaSpec {
    fn default() -> Self {
        Self {
            backbone: None,
            weights: None,
            stride: None,
            low_alpha: 4.0,
            high_alpha: 32.0,
            epochs: 8,
            batch_size: 8,
            crop: 448,
            rescale: (1.0, 1.0),
            lr: 0.1,
            head_lr_mult: 10.0,
            momentum: 5e-4,
            weight_decay: 5e-4,
            radius: 5,
            alpha: 16.0,
            beta: 8.0,
            steps: 256,
        }
    }
}
impl Default for IrnSpec {
    fn default() -> Self {
        Self {
            backbone: None,
            weights: None,
            stride: None,
            certain_foreground: 0.3,
            certain_background: 0.05,
            certainty: 0.7,
            epochs: 3,
            batch_size: 32,
            crop: 512,
            rescale: (0.5, 1.5),
            lr: 0.1,
            head_lr_mult: 10.0,
            momentum: 1e-4,
            weight_decay: 1e-4,
            radius: 10,
            walk_radius: 5,
            beta: 10.0,
            steps: 256,
            background: 0.25,
        }
    }
}

/// A network and where it starts.
#[derive(Clone, Debug, PartialEq)]
pub struct On {
    pub backbone: Backbone,
    pub weights: PathBuf,
    pub stride: u32,
}

fn on(
    classifier: &ClassifierSpec,
    (backbone, weights, stride): (Option<Backbone>, Option<&PathBuf>, Option<u32>),
) -> On {
    On {
        backbone: backbone.unwrap_or(classifier.backbone),
        weights: weights.unwrap_or(&classifier.weights).clone(),
        stride: stride.unwrap_or(classifier.stride),
    }
}

impl PsaSpec {
    /// Its network, with what it does not set taken from the classifier.
    pub fn on(&self, classifier: &ClassifierSpec) -> On {
        on(classifier, (self.backbone, self.weights.as_ref(), self.stride))
    }
}

impl IrnSpec {
    /// Its network, with what it does not set taken from the classifier.
    pub fn on(&self, classifier: &ClassifierSpec) -> On {
        on(classifier, (self.backbone, self.weights.as_ref(), self.stride))
    }
}

/// The first field out of its range, and how; of networks that are not used only what can be said of a field alone.
pub(super) fn problem(spec: &Spec) -> Option<(&'static str, &'static str)> {
    let (psa, irn) = (&spec.pseudo_label.psa, &spec.pseudo_label.irn);
    let uses = |refinement: Refinement| spec.pseudo_label.refine.contains(&refinement);
    let positive = |x: f64| x > 0.0 && x.is_finite();
    let fraction = |x: f64| (0.0..=1.0).contains(&x);
    let range = |(least, most): (f64, f64)| positive(least) && least <= most && most <= 8.0;
    let radius = |radius: usize| (2..=64).contains(&radius);
    // A window must hold a half-disc.
    let holds = |crop: u32, stride: u32, radius: usize| crop.div_ceil(stride) as usize > 2 * (radius - 1);
    let stride = |stride: Option<u32>| matches!(stride, None | Some(8 | 16));
    let psa_on = psa.on(&spec.classifier);
    let irn_is_on_resnet = irn.on(&spec.classifier).backbone != Backbone::Resnet38d;
    let rules = [
        (stride(psa.stride), "psa.stride", "is neither 8 nor 16"),
        (
            !uses(Refinement::Psa) || psa_on.backbone != Backbone::Resnet38d || psa_on.stride == 8,
            "psa.stride",
            "is not 8, the only one of resnet38d",
        ),
        (positive(psa.low_alpha), "psa.low_alpha", "is not above 0"),
        (positive(psa.high_alpha), "psa.high_alpha", "is not above 0"),
        (psa.low_alpha <= psa.high_alpha, "psa.low_alpha", "is above `high_alpha`, which would leave nothing certain"),
        ((1..=10_000).contains(&psa.epochs), "psa.epochs", "is not in 1..=10000"),
        ((1..=65_536).contains(&psa.batch_size), "psa.batch_size", "is not in 1..=65536"),
        ((32..=4096).contains(&psa.crop), "psa.crop", "is not in 32..=4096"),
        (range(psa.rescale), "psa.rescale", "is not a range of factors up to 8"),
        (positive(psa.lr), "psa.lr", "is not above 0"),
        (positive(psa.head_lr_mult), "psa.head_lr_mult", "is not above 0"),
        ((0.0..1.0).contains(&psa.momentum), "psa.momentum", "is not in 0..1"),
        ((0.0..1.0).contains(&psa.weight_decay), "psa.weight_decay", "is not in 0..1"),
        (radius(psa.radius), "psa.radius", "is not in 2..=64"),
        (holds(psa.crop, 8, psa.radius.max(1)), "psa.crop", "is too small for `radius`, in cells of 8 pixels"),
        (positive(psa.alpha), "psa.alpha", "is not above 0"),
        (positive(psa.beta), "psa.beta", "is not above 0"),
        (psa.steps <= 65_536, "psa.steps", "is not in 0..=65536"),
        (stride(irn.stride), "irn.stride", "is neither 8 nor 16"),
        (
            !uses(Refinement::Irn) || irn_is_on_resnet,
            "irn.backbone",
            "is resnet38d, and IRN looks at the levels of a ResNet: give `irn.backbone` and `irn.weights` another",
        ),
        (fraction(irn.certain_foreground), "irn.certain_foreground", "is not in 0..=1"),
        (fraction(irn.certain_background), "irn.certain_background", "is not in 0..=1"),
        (
            irn.certain_background <= irn.certain_foreground,
            "irn.certain_background",
            "is above `certain_foreground`, which would leave nothing uncertain",
        ),
        (irn.certainty > 0.0 && irn.certainty < 1.0, "irn.certainty", "is not above 0 and below 1"),
        ((1..=10_000).contains(&irn.epochs), "irn.epochs", "is not in 1..=10000"),
        ((1..=65_536).contains(&irn.batch_size), "irn.batch_size", "is not in 1..=65536"),
        ((32..=4096).contains(&irn.crop), "irn.crop", "is not in 32..=4096"),
        (range(irn.rescale), "irn.rescale", "is not a range of factors up to 8"),
        (positive(irn.lr), "irn.lr", "is not above 0"),
        (positive(irn.head_lr_mult), "irn.head_lr_mult", "is not above 0"),
        ((0.0..1.0).contains(&irn.momentum), "irn.momentum", "is not in 0..1"),
        ((0.0..1.0).contains(&irn.weight_decay), "irn.weight_decay", "is not in 0..1"),
        (radius(irn.radius), "irn.radius", "is not in 2..=64"),
        (holds(irn.crop, 4, irn.radius.max(1)), "irn.crop", "is too small for `radius`, in cells of 4 pixels"),
        (radius(irn.walk_radius), "irn.walk_radius", "is not in 2..=64"),
        (positive(irn.beta), "irn.beta", "is not above 0"),
        (irn.steps <= 65_536, "irn.steps", "is not in 0..=65536"),
        (fraction(irn.background), "irn.background", "is not in 0..=1"),
    ];
    rules.into_iter().find(|(holds, _, _)| !holds).map(|(_, field, problem)| (field, problem))
}
