//! From the cells of a pipeline file to one graph of units: which stage reads what, and which parameters are in
//! effect there. What a stage does not use never reaches its parameters, so it never reaches a key.

mod affinity;
mod builder;
mod effective;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;

use crate::data::{Dataset, FileMemo};
use crate::digest::BlobDigest;
use crate::pipeline::file::class_hint;
use crate::pipeline::graph::{Graph, UnitIdx};
use crate::pipeline::spec::{Precision, Refinement, Spec};
use crate::stage::affinity_label::AffinityLabel;
use crate::stage::cam_epoch::CamEpoch;
use crate::stage::cam_infer::CamInfer;
use crate::stage::coco_mask::CocoMask;
use crate::stage::evaluate::Evaluate;
use crate::stage::irn_epoch::IrnEpoch;
use crate::stage::irn_walk::IrnWalk;
use crate::stage::mask_file::MaskFile;
use crate::stage::params::Compute;
use crate::stage::psa_epoch::PsaEpoch;
use crate::stage::psa_walk::PsaWalk;
use crate::stage::pseudo_label::PseudoLabel;
use crate::stage::sam_embed::SamEmbed;
use crate::stage::sam_refine::SamRefine;
use crate::stage::se_map::SeMapStage;
use crate::stage::seed_eval::SeedEval;
use crate::stage::seg_crf::SegCrf;
use crate::stage::seg_epoch::SegEpoch;
use crate::stage::seg_infer::SegInfer;
use crate::stage::select_epoch::SelectEpoch;
use crate::stage::{Registry, StageEntry};
use crate::vision::UnknownClass;

pub use self::affinity::AffinityUnits;
use self::builder::Builder;

/// All stages of S2C.
pub fn registry() -> Registry {
    Registry::default()
        .with(StageEntry::of::<SamEmbed>())
        .with(StageEntry::of::<SeMapStage>())
        .with(StageEntry::of::<CamEpoch>())
        .with(StageEntry::of::<CamInfer>())
        .with(StageEntry::of::<CocoMask>())
        .with(StageEntry::of::<MaskFile>())
        .with(StageEntry::of::<SeedEval>())
        .with(StageEntry::of::<SelectEpoch>())
        .with(StageEntry::of::<SamRefine>())
        .with(StageEntry::of::<AffinityLabel>())
        .with(StageEntry::of::<PsaEpoch>())
        .with(StageEntry::of::<PsaWalk>())
        .with(StageEntry::of::<IrnEpoch>())
        .with(StageEntry::of::<IrnWalk>())
        .with(StageEntry::of::<PseudoLabel>())
        .with(StageEntry::of::<SegEpoch>())
        .with(StageEntry::of::<SegInfer>())
        .with(StageEntry::of::<SegCrf>())
        .with(StageEntry::of::<Evaluate>())
}

/// What one cell is made of, by place in the graph.
#[derive(Clone, Debug)]
pub struct CellUnits {
    pub name: String,
    pub dataset: Arc<Dataset>,
    /// By training image, in the order of `dataset.train`.
    pub embeddings: Vec<UnitIdx>,
    /// Empty where no loss needs them.
    pub se_maps: Vec<UnitIdx>,
    pub cam_epochs: Vec<UnitIdx>,
    pub cams: Vec<UnitIdx>,
    /// `None` where no training image has a mask.
    pub seed_eval: Option<UnitIdx>,
    /// Empty where SAM makes no label maps.
    pub sam_labels: Vec<UnitIdx>,
    /// Empty where neither `psa` nor `irn` refines.
    pub affinity: AffinityUnits,
    pub pseudo_labels: Vec<UnitIdx>,
    pub pseudo_eval: Option<UnitIdx>,
    /// Empty where the spec stops after the pseudo-labels.
    pub seg_epochs: Vec<UnitIdx>,
    /// By validation image, in the order of `dataset.val`.
    pub predictions: Vec<UnitIdx>,
    /// `None` where no validation image has a mask.
    pub seg_eval: Option<UnitIdx>,
    pub overlays: Vec<OverlayUnits>,
}

/// The parts of one overlay picture.
#[derive(Clone, Debug)]
pub struct OverlayUnits {
    /// Place in `dataset.train`.
    pub item_idx: usize,
    pub cam: UnitIdx,
    pub se_map: Option<UnitIdx>,
    pub pseudo_label: UnitIdx,
    pub prediction: Option<UnitIdx>,
}

impl CellUnits {
    /// The units that score it, in the order of [`SCORED`](super::results::SCORED).
    pub fn evals(&self) -> [Option<UnitIdx>; 3] {
        [self.seed_eval, self.pseudo_eval, self.seg_eval]
    }

    /// All units of this cell but SE maps that its overlays show because other cells train with them.
    pub fn own_units(&self) -> impl Iterator<Item = UnitIdx> {
        let is_shown_alone = |unit: &UnitIdx| {
            self.se_maps.is_empty() && self.overlays.iter().any(|overlay| overlay.se_map == Some(*unit))
        };
        self.units().filter(move |unit| !is_shown_alone(unit))
    }

    /// All units of this cell.
    pub fn units(&self) -> impl Iterator<Item = UnitIdx> {
        let lists = [
            &self.embeddings,
            &self.se_maps,
            &self.cam_epochs,
            &self.cams,
            &self.sam_labels,
            &self.affinity.labels,
            &self.affinity.epochs,
            &self.affinity.walks,
            &self.pseudo_labels,
            &self.seg_epochs,
            &self.predictions,
        ];
        let overlays = self.overlays.iter().flat_map(|overlay| [overlay.se_map, overlay.prediction]).flatten();
        let evals = self.evals().into_iter().flatten();
        lists.into_iter().flatten().copied().chain(evals).chain(overlays)
    }

    /// What a run of this cell has to have at its end: all but the epochs before the last.
    pub fn targets(&self) -> Vec<UnitIdx> {
        let epochs = [&self.cam_epochs, &self.affinity.epochs, &self.seg_epochs];
        let last = epochs.map(|epochs| epochs.last());
        let is_early = |unit: &UnitIdx| epochs.iter().any(|epochs| epochs.contains(unit));
        self.units().filter(|unit| !is_early(unit)).chain(last.into_iter().flatten().copied()).collect()
    }
}

/// A cell with its data set scanned.
pub struct CellInput<'a> {
    pub name: &'a str,
    pub spec: &'a Spec,
    pub dataset: Arc<Dataset>,
    /// Of a variant of a run of the past: what the content of its weights was, where that is known. `None`: it is of now.
    pub past: Option<&'a [(PathBuf, BlobDigest)]>,
}

/// A class of `evaluate.classes` that the data set does not have.
#[derive(Debug, thiserror::Error)]
#[error("`evaluate.classes`: {unknown}")]
pub struct UnknownEvaluated {
    unknown: UnknownClass,
    known: Vec<String>,
}

impl UnknownEvaluated {
    /// The name that may have been meant, or all there are.
    pub fn hint(&self) -> String {
        let known: Vec<&str> = self.known.iter().map(String::as_str).collect();
        class_hint(&self.unknown.0, &known)
    }
}

/// A value chooses something by the masks of the training images, and none of these has one.
#[derive(Debug, thiserror::Error)]
#[error("`{value}` chooses by the masks of the training images, and none has one")]
pub struct NeedsMasks {
    value: &'static str,
    instead: &'static str,
}

impl NeedsMasks {
    /// A value that needs none.
    pub fn hint(&self) -> String {
        format!("write `{}`, or add the masks to the data set", self.instead)
    }
}

/// A checkpoint could not be read.
#[derive(Debug, thiserror::Error)]
#[error("weights `{}`: {cause}", path.display())]
pub struct MissingWeights {
    path: std::path::PathBuf,
    cause: String,
}

impl MissingWeights {
    /// What to do about it.
    pub fn hint(&self) -> String {
        "set `sam.weights`, `classifier.weights` and `segmentation.weights`; the repository has a set of them in \
         pipelines/weights"
            .to_owned()
    }
}

/// Builds the units of all cells into one graph. `bf16_native`: the device computes bf16 itself.
pub fn build(
    cells: &[CellInput<'_>],
    memo: &dyn FileMemo,
    bf16_native: bool,
) -> anyhow::Result<(Graph, Vec<CellUnits>)> {
    let mut graph = Graph::default();
    let any_se_map = cells.iter().any(|cell| cell.past.is_none() && needs_se_maps(cell.spec));
    let cells = cells.iter().map(|cell| {
        let precision = resolve(cell.spec.precision, bf16_native);
        let (spec, dataset, last_params) = (cell.spec, &cell.dataset, HashMap::new());
        let weights_then = cell.past.unwrap_or_default();
        let mut builder = Builder { graph: &mut graph, memo, weights_then, spec, dataset, precision, last_params };
        builder.cell(cell.name, any_se_map).with_context(|| format!("variant `{}`", cell.name))
    });
    let cells = cells.collect::<anyhow::Result<Vec<_>>>()?;
    Ok((graph, cells))
}

/// The number format a spec asks for on a device.
pub fn resolve(precision: Precision, bf16_native: bool) -> Compute {
    match precision {
        Precision::Bf16 => Compute::Bf16,
        Precision::Auto if bf16_native => Compute::Bf16,
        Precision::Auto | Precision::F32 => Compute::F32,
    }
}

/// SAM makes the label maps.
/// Some unit of the cell reads the weights of SAM.
pub fn reads_sam(spec: &Spec) -> bool {
    needs_se_maps(spec) || trains_with_cpm(spec) || prompts_after(spec)
}

fn trains_with_cpm(spec: &Spec) -> bool {
    let cpm = &spec.classifier.cpm;
    cpm.enabled && cpm.start_epoch < spec.classifier.epochs
}

fn prompts_after(spec: &Spec) -> bool {
    spec.pseudo_label.refine.first() == Some(&Refinement::SamPrompt)
}

fn uses_se_maps(refine: &[Refinement]) -> bool {
    refine.iter().any(|refinement| matches!(refinement, Refinement::SegmentVote | Refinement::Sepl))
}

fn needs_se_maps(spec: &Spec) -> bool {
    let ssc = &spec.classifier.ssc;
    uses_se_maps(&spec.pseudo_label.refine) || (ssc.enabled && ssc.start_epoch < spec.classifier.epochs)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;

    use super::*;
    use crate::data::{FileRef, Item, Mask};
    use crate::digest::BlobDigest;
    use crate::pipeline::spec::{CpmSpec, CrfStart, EquivarianceSpec, Head, SamInput, Select, Threshold};
    use crate::pipeline::spec::{IdCompaction, IdWidth, SscLevel, SscPrototypes, SscSpec};
    use crate::stage::params::AlphaSam;
    use crate::stage::prompt::{AbsentClass, LogitPath};
    use crate::stage::prompt::{FirstPeak, MaskPick, PointScale, PromptKind};
    use crate::stage::seg_crf::CrfSet;

    /// Files are named, never opened: a digest is that of the path.
    struct NoFiles;
    impl FileMemo for NoFiles {
        fn digest(&self, path: &Path) -> anyhow::Result<BlobDigest> {
            Ok(BlobDigest::of(path.to_string_lossy().as_bytes()))
        }
        fn fact(&self, _: &str, _: &BlobDigest) -> Option<Vec<u8>> {
            None
        }
        fn remember(&self, _: &str, _: &BlobDigest, _: &[u8]) {}
    }

    fn dataset(n_train: usize) -> Arc<Dataset> {
        let file = |name: String| FileRef { digest: BlobDigest::of(name.as_bytes()), path: Path::new(&name).into() };
        let item = |id: String| Item {
            image: file(format!("{id}.jpg")),
            mask: Some(Mask::File(file(format!("{id}.png")))),
            labels: vec![8],
            in_mask: vec![8],
            height: 10,
            width: 10,
            id,
        };
        Arc::new(Dataset {
            name: "tiny".into(),
            classes: crate::vision::VOC_CLASSES.map(str::to_owned).to_vec(),
            train: (0..n_train).map(|i| item(format!("train{i}"))).collect(),
            val: vec![item("val".into())],
            notes: Vec::new(),
            decided: Vec::new(),
        })
    }

    /// S2C, five epochs, CPM from the third.
    fn s2c() -> Spec {
        let mut spec = Spec::default();
        spec.classifier.ssc.enabled = true;
        spec.classifier.cpm.enabled = true;
        spec
    }

    /// Units of each stage in the graph of some cells.
    fn counts(cells: &[(Spec, usize)]) -> BTreeMap<&'static str, usize> {
        let inputs: Vec<CellInput<'_>> =
            cells.iter().map(|(spec, n)| CellInput { name: "cell", spec, dataset: dataset(*n), past: None }).collect();
        let (graph, _) = build(&inputs, &NoFiles, false).unwrap();
        let mut counts = BTreeMap::new();
        graph.units().for_each(|unit| *counts.entry(unit.stage).or_default() += 1);
        counts
    }

    #[test]
    fn a_cell_reads_sam_where_some_unit_does() {
        type Change = fn(&mut Spec);
        let refines = [Refinement::SegmentVote, Refinement::Sepl, Refinement::SamPrompt, Refinement::Crf];
        let refined = |refinement| {
            let mut spec = Spec::default();
            spec.pseudo_label.refine = vec![refinement];
            spec
        };
        let mut specs: Vec<Spec> = refines.map(refined).into();
        let changes: [Change; 5] = [
            |_| {},
            |spec| spec.classifier.ssc.enabled = true,
            |spec| (spec.classifier.ssc.enabled, spec.classifier.ssc.start_epoch) = (true, spec.classifier.epochs),
            |spec| spec.classifier.cpm.enabled = true,
            |spec| (spec.classifier.cpm.enabled, spec.classifier.cpm.start_epoch) = (true, spec.classifier.epochs),
        ];
        specs.extend(changes.map(|change| {
            let mut spec = Spec::default();
            change(&mut spec);
            spec
        }));
        for mut spec in specs {
            spec.sam.weights = "sam".into();
            spec.report.overlays = 0;
            let cell = [CellInput { name: "cell", spec: &spec, dataset: dataset(2), past: None }];
            let (graph, cells) = build(&cell, &NoFiles, false).unwrap();
            let read = crate::pipeline::why::contents_read(&graph, cells[0].units());
            assert_eq!(read.contains(&BlobDigest::of(b"sam")), reads_sam(&spec), "{spec:?}");
        }
    }

    /// What a second cell adds to the first, by stage.
    fn added(first: (Spec, usize), second: (Spec, usize)) -> BTreeMap<&'static str, usize> {
        let before = counts(std::slice::from_ref(&first));
        let mut after = counts(&[first, second]);
        after.iter_mut().for_each(|(stage, n)| *n -= before.get(stage).copied().unwrap_or(0));
        after.retain(|_, n| *n > 0);
        after
    }

    /// The defaults but for a change, and four images.
    fn plain(change: fn(&mut Spec)) -> (Spec, usize) {
        let mut spec = Spec::default();
        change(&mut spec);
        (spec, 4)
    }

    fn with(change: impl FnOnce(&mut Spec)) -> Spec {
        let mut spec = s2c();
        change(&mut spec);
        spec
    }

    #[test]
    fn a_change_of_tau_runs_nothing_before_the_first_cpm_epoch_and_no_sam_stage() {
        let added = added((s2c(), 4), (with(|spec| spec.classifier.cpm.tau = 0.3), 4));
        assert_eq!(added["cam_epoch"], 3);
        assert!(!added.contains_key("sam_embed") && !added.contains_key("se_map"), "{added:?}");
    }

    #[test]
    fn a_change_without_effect_adds_nothing() {
        let plain = Spec::default();
        for change in [
            |spec: &mut Spec| spec.classifier.cpm.tau = 0.1,
            |spec: &mut Spec| spec.classifier.ssc.temperature = 2.0,
            |spec: &mut Spec| spec.classifier.cpm.start_epoch = 4,
            |spec: &mut Spec| spec.se_map.points_per_side = 8,
            |spec: &mut Spec| spec.classifier.equivariance.pcm = true,
            |spec: &mut Spec| spec.seed.advcam.step = 0.1,
        ] {
            let mut changed = plain.clone();
            change(&mut changed);
            let plain = plain.clone();
            assert!(added((plain, 4), (changed, 4)).is_empty());
        }
    }

    #[test]
    fn one_more_image_adds_one_embedding_and_one_se_map() {
        let added = added((s2c(), 4), (s2c(), 5));
        assert_eq!((added["sam_embed"], added["se_map"]), (1, 1));
    }

    #[test]
    fn refinement_and_threshold_run_no_training_of_the_classifier() {
        for change in [
            |spec: &mut Spec| spec.pseudo_label.refine = vec![Refinement::SegmentVote],
            |spec: &mut Spec| spec.pseudo_label.threshold = Threshold::At(0.3),
        ] {
            let added = added((s2c(), 4), (with(change), 4));
            assert_eq!(added["pseudo_label"], 4);
            for stage in ["sam_embed", "se_map", "cam_epoch", "cam_infer", "seed_eval"] {
                assert!(!added.contains_key(stage), "{stage}: {added:?}");
            }
        }
    }

    #[test]
    fn sam_after_training_runs_no_training_and_needs_no_threshold() {
        let prompted: fn(&mut Spec) = |spec| spec.pseudo_label.refine = vec![Refinement::SamPrompt];
        let found = added(plain(|_| ()), plain(prompted));
        assert_eq!((found["sam_embed"], found["sam_refine"]), (4, 4));
        for stage in ["pseudo_label", "cam_epoch", "cam_infer", "seed_eval"] {
            assert!(!found.contains_key(stage), "{stage}: {found:?}");
        }
        // How it prompts is in its key, the threshold of the CAM is not.
        let tau = plain(|spec| {
            spec.pseudo_label.refine = vec![Refinement::SamPrompt];
            spec.classifier.cpm.tau = 0.3;
        });
        assert_eq!(added(plain(prompted), tau)["sam_refine"], 4);
        let threshold = plain(|spec| {
            spec.pseudo_label.refine = vec![Refinement::SamPrompt];
            spec.pseudo_label.threshold = Threshold::At(0.3);
            spec.classifier.cpm.sam_input = SamInput::OnlineCrop;
        });
        assert_eq!(added(plain(prompted), threshold), BTreeMap::new());
        // A vote starts from its labels.
        let voted = plain(|spec| spec.pseudo_label.refine = vec![Refinement::SamPrompt, Refinement::SegmentVote]);
        let found = added(plain(prompted), voted);
        assert_eq!((found["pseudo_label"], found["se_map"], found.get("sam_refine")), (4, 4, None));
    }

    #[test]
    fn crf_and_sepl_are_units_of_their_own_and_keys_hold_what_has_an_effect() {
        let of = plain;
        let crf: fn(&mut Spec) = |spec| spec.pseudo_label.refine = vec![Refinement::Crf];
        let found = added(of(|_| ()), of(crf));
        assert_eq!((found["pseudo_label"], found.get("se_map"), found.get("cam_epoch")), (4, None, None));
        // On the CAM there is neither a threshold nor a certainty; on labels there is no alpha.
        let none: [fn(&mut Spec); 4] = [
            |spec| spec.pseudo_label.threshold = Threshold::At(0.3),
            |spec| spec.pseudo_label.crf_certainty = 0.9,
            |spec| spec.pseudo_label.crf.parameters = Some(CrfSet::Psa),
            |spec| spec.pseudo_label.crf.bilateral_sxy = Some(80.0),
        ];
        let some: [fn(&mut Spec); 4] = [
            |spec| spec.pseudo_label.crf_alpha = 4.0,
            |spec| spec.pseudo_label.crf.parameters = Some(CrfSet::Irn),
            |spec| spec.pseudo_label.crf.bilateral_sxy = Some(81.0),
            |spec| spec.pseudo_label.crf_start = CrfStart::Labels,
        ];
        let with = |start: fn(&mut Spec), change: fn(&mut Spec)| {
            let (mut spec, n) = of(start);
            change(&mut spec);
            added(of(start), (spec, n))
        };
        none.iter().for_each(|change| assert_eq!(with(crf, *change), BTreeMap::new()));
        some.iter().for_each(|change| assert_eq!(with(crf, *change)["pseudo_label"], 4));
        let on_labels: fn(&mut Spec) = |spec| {
            spec.pseudo_label.refine = vec![Refinement::Crf];
            spec.pseudo_label.crf_start = CrfStart::Labels;
        };
        assert_eq!(with(on_labels, some[0]), BTreeMap::new());
        assert_eq!(with(on_labels, none[1])["pseudo_label"], 4);
        // Without a CRF none of it counts.
        none[1..].iter().chain(&some).for_each(|change| assert_eq!(with(|_| (), *change), BTreeMap::new()));

        let sepl = added(of(crf), of(|spec| spec.pseudo_label.refine = vec![Refinement::Crf, Refinement::Sepl]));
        assert_eq!((sepl["pseudo_label"], sepl["se_map"], sepl.get("cam_epoch")), (4, 4, None));
    }

    /// Scores are given once, whatever CRF reads them.
    #[test]
    fn a_crf_after_segmentation_trains_nothing() {
        let after: fn(&mut Spec) = |spec| spec.segmentation.test_crf = true;
        let found = added((s2c(), 4), (with(after), 4));
        assert!(found.keys().all(|stage| ["seg_infer", "seg_crf", "evaluate"].contains(stage)), "{found:?}");
        assert_eq!(found["seg_crf"], found["seg_infer"]);
        let other = with(|spec| {
            spec.segmentation.test_crf = true;
            spec.segmentation.crf.parameters = Some(CrfSet::Seam);
        });
        let found = added((with(after), 4), (other, 4));
        assert!(!found.contains_key("seg_infer") && found.contains_key("seg_crf"), "{found:?}");
    }

    /// Each switch of CPM is another training where it has an effect, and nothing where it has none.
    #[test]
    fn switches_of_cpm_are_in_the_key_where_they_have_an_effect() {
        let of = |changes: &[fn(&mut CpmSpec)]| {
            (with(|spec| changes.iter().for_each(|change| change(&mut spec.classifier.cpm))), 4)
        };
        let with_box: fn(&mut CpmSpec) = |cpm| cpm.prompt = PromptKind::Box;
        let with_mask: fn(&mut CpmSpec) = |cpm| cpm.prompt = PromptKind::Mask;
        let best_iou: fn(&mut CpmSpec) = |cpm| cpm.mask_choice = MaskPick::BestIou;
        let single: fn(&mut CpmSpec) = |cpm| cpm.multimask = false;
        let online: fn(&mut CpmSpec) = |cpm| cpm.sam_input = SamInput::OnlineCrop;
        let border: fn(&mut CpmSpec) = |cpm| cpm.exclude_border = true;
        let first: fn(&mut CpmSpec) = |cpm| cpm.first_peak = FirstPeak::DropFirst;
        let shifted: fn(&mut CpmSpec) = |cpm| cpm.peak_exact = false;
        let apart: fn(&mut CpmSpec) = |cpm| cpm.min_distance = 9;
        let scale: fn(&mut CpmSpec) = |cpm| cpm.point_scale = PointScale::HOnly;
        let corner: fn(&mut CpmSpec) = |cpm| cpm.half_pixel = false;
        let index: fn(&mut CpmSpec) = |cpm| cpm.mask_index = 1;
        let paths: fn(&mut CpmSpec) = |cpm| cpm.logit_path = LogitPath::Two;
        let absent: fn(&mut CpmSpec) = |cpm| cpm.absent_class = AbsentClass::NegInf;
        let stability: fn(&mut CpmSpec) = |cpm| cpm.alpha_sam = AlphaSam::AmgStability;
        let all = [
            with_box, with_mask, best_iou, single, online, border, first, shifted, apart, scale, corner, index, paths,
            absent, stability,
        ];
        for (i, change) in all.into_iter().enumerate() {
            assert_eq!(added(of(&[]), of(&[change])).get("cam_epoch"), Some(&3), "switch {i}");
        }
        for (without, idle) in [
            (with_box, &[border, first, shifted, apart][..]),
            (with_mask, &[border, first, shifted, apart, scale, corner]),
            (best_iou, &[index]),
            (single, &[index, best_iou]),
            (online, &[scale]),
        ] {
            for (i, change) in idle.iter().enumerate() {
                assert_eq!(added(of(&[without]), of(&[without, *change])), BTreeMap::new(), "idle switch {i}");
            }
        }
        // SAM's encoder then runs within the epochs.
        let inputs = |spec: Spec| {
            let cell = [CellInput { name: "cell", spec: &spec, dataset: dataset(4), past: None }];
            let (graph, cells) = build(&cell, &NoFiles, false).unwrap();
            graph.slots(cells[0].cam_epochs[4]).collect::<Vec<_>>()
        };
        let without_ssc = |change: fn(&mut CpmSpec)| {
            let mut spec = of(&[change]).0;
            spec.classifier.ssc.enabled = false;
            spec
        };
        assert_eq!(inputs(without_ssc(online)), ["checkpoint", "images", "labels", "sam_weights"]);
        assert_eq!(counts(&[(without_ssc(online), 4)]).get("sam_embed"), None);
    }

    #[test]
    fn switches_of_ssc_are_in_the_key_and_the_defaults_are_not() {
        for change in [
            |ssc: &mut SscSpec| ssc.mask_absent_ids = false,
            |ssc: &mut SscSpec| ssc.id_compaction = IdCompaction::Buggy,
            |ssc: &mut SscSpec| ssc.id_width = IdWidth::U8Wrap,
            |ssc: &mut SscSpec| ssc.level = SscLevel::Logit,
            |ssc: &mut SscSpec| ssc.prototypes = SscPrototypes::Global,
        ] {
            assert_eq!(added((s2c(), 4), (with(|spec| change(&mut spec.classifier.ssc)), 4))["cam_epoch"], 5);
        }
        // What was cached before there were switches is found again.
        let (graph, cells) =
            build(&[CellInput { name: "cell", spec: &s2c(), dataset: dataset(1), past: None }], &NoFiles, false)
                .unwrap();
        let params = |unit: UnitIdx| serde_json::from_str::<serde_json::Value>(graph.unit(unit).params).unwrap();
        let ssc = r#"{"proto_stopgrad":true,"temperature":0.5,"unassigned_negative":false,"weight":1.0}"#;
        assert_eq!(params(cells[0].cam_epochs[0])["ssc"].to_string(), ssc);
        assert_eq!(params(cells[0].seed_eval.unwrap()).to_string(), r#"{"classes":[],"n_classes":20}"#);
    }

    #[test]
    fn selection_with_ground_truth_scores_every_epoch_and_trains_none() {
        let best = with(|spec| spec.seed.select = Select::BestGt);
        let added = added((s2c(), 4), (best, 4));
        // Seeds of the four epochs before the last, and of the one that is chosen, which are found when it is known.
        assert_eq!((added["select_epoch"], added["cam_infer"], added["seed_eval"]), (1, 4 * 4 + 4, 4 + 1));
        assert!(!added.contains_key("cam_epoch") && !added.contains_key("se_map"), "{added:?}");
    }

    /// What was cached before CPM had its switches is found again.
    #[test]
    fn the_parameters_of_cpm_at_its_defaults() {
        let (graph, cells) =
            build(&[CellInput { name: "cell", spec: &s2c(), dataset: dataset(1), past: None }], &NoFiles, false)
                .unwrap();
        let params: serde_json::Value = serde_json::from_str(graph.unit(cells[0].cam_epochs[2]).params).unwrap();
        let cpm = r#"{"alpha_cam":"mean","alpha_sam":"logit","mask_index":2,"min_distance":20,"pad_label":"ignore","scales":[0.5,1.0,1.5,2.0],"tau":0.5,"weight":1.0}"#;
        assert_eq!(params["cpm"].to_string(), cpm);
    }

    #[test]
    fn what_follows_the_pseudo_labels_reruns_no_cam_stage() {
        for change in [
            |spec: &mut Spec| spec.segmentation.lr = 0.1,
            |spec: &mut Spec| spec.segmentation.epochs = 7,
            |spec: &mut Spec| spec.segmentation.test_flip = false,
            |spec: &mut Spec| spec.segmentation.head = Head::LargeFov,
        ] {
            let added = added((s2c(), 4), (with(change), 4));
            assert!(added.keys().all(|stage| stage.starts_with("seg_") || *stage == "evaluate"), "{added:?}");
        }
        // What was cached before there were heads is found again.
        let spec = s2c();
        let cell = [CellInput { name: "cell", spec: &spec, dataset: dataset(1), past: None }];
        let (graph, cells) = build(&cell, &NoFiles, false).unwrap();
        let params = |unit: UnitIdx| graph.unit(unit).params.to_string();
        assert!(
            !params(cells[0].seg_epochs[0]).contains("head\"") && !params(cells[0].predictions[0]).contains("head\"")
        );
    }

    #[test]
    fn the_four_variants_share_what_they_can() {
        let variant = |ssc, cpm| {
            let spec = with(|spec| {
                spec.classifier.ssc.enabled = ssc;
                spec.classifier.cpm.enabled = cpm;
            });
            (spec, 4)
        };
        let counts = counts(&[variant(false, false), variant(true, false), variant(false, true), variant(true, true)]);
        // Baseline 5; +SSC 5; +CPM 3 after the baseline's first two; S2C 3 after +SSC's first two.
        assert_eq!(counts["cam_epoch"], 16);
        assert_eq!((counts["sam_embed"], counts["se_map"]), (4, 4));
    }

    #[test]
    fn ways_to_seeds_are_in_the_keys() {
        let none = || plain(|_| ());
        let equivariance = || plain(|spec| spec.classifier.equivariance.enabled = true);
        let pcm = plain(|spec| {
            spec.classifier.equivariance = EquivarianceSpec { enabled: true, pcm: true, ..EquivarianceSpec::default() };
        });
        for (first, second) in [(none(), equivariance()), (equivariance(), pcm)] {
            let added = added(first, second);
            assert_eq!((added["cam_epoch"], added["cam_infer"]), (5, 4));
        }
        let added = added(none(), plain(|spec| spec.seed.advcam.enabled = true));
        assert_eq!((added.get("cam_epoch"), added["cam_infer"]), (None, 4));
    }

    #[test]
    fn a_seed_of_randomness_is_its_own_training() {
        let added = added((s2c(), 4), (with(|spec| spec.rng_seed = 1), 4));
        assert_eq!(added["cam_epoch"], 5);
        assert!(!added.contains_key("sam_embed"));
    }
}
