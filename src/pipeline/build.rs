//! From the cells of a pipeline file to one graph of units: which stage reads what, and which parameters are in
//! effect there. What a stage does not use never reaches its parameters, so it never reaches a key.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use serde::Serialize;

use crate::data::{Dataset, FileMemo, FileRef, Item};
use crate::pipeline::graph::{Graph, InputSet, Source, Unit, UnitIdx};
use crate::pipeline::spec::{CpmSpec, Precision, Refinement, SamInput, Select, Spec, Threshold};
use crate::stage::cam_epoch::{CamEpoch, CamEpochParams, CpmParams, SscParams};
use crate::stage::cam_infer::{CamInfer, CamInferParams};
use crate::stage::evaluate::{Evaluate, EvaluateParams};
use crate::stage::params::Compute;
use crate::stage::prompt::{FirstPeak, MaskPick, PointScale, PromptKind, PromptParams};
use crate::stage::pseudo_label::{PseudoLabel, PseudoLabelParams};
use crate::stage::sam_embed::{SamEmbed, SamEmbedParams};
use crate::stage::sam_refine::{SamRefine, SamRefineParams};
use crate::stage::se_map::{CropParams, SeMapParams, SeMapStage, SmallRegionParams};
use crate::stage::seed_eval::{SeedEval, SeedEvalParams};
use crate::stage::seg_epoch::{SegEpoch, SegEpochParams};
use crate::stage::seg_infer::{SegInfer, SegInferParams};
use crate::stage::select_epoch::{SelectEpoch, SelectEpochParams};
use crate::stage::{Registry, Stage, StageEntry};
use crate::vision::labels_of;

/// All stages of S2C.
pub fn registry() -> Registry {
    Registry::default()
        .with(StageEntry::of::<SamEmbed>())
        .with(StageEntry::of::<SeMapStage>())
        .with(StageEntry::of::<CamEpoch>())
        .with(StageEntry::of::<CamInfer>())
        .with(StageEntry::of::<SeedEval>())
        .with(StageEntry::of::<SelectEpoch>())
        .with(StageEntry::of::<SamRefine>())
        .with(StageEntry::of::<PseudoLabel>())
        .with(StageEntry::of::<SegEpoch>())
        .with(StageEntry::of::<SegInfer>())
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
    /// All units of this cell.
    pub fn units(&self) -> impl Iterator<Item = UnitIdx> {
        let lists = [
            &self.embeddings,
            &self.se_maps,
            &self.cam_epochs,
            &self.cams,
            &self.sam_labels,
            &self.pseudo_labels,
            &self.seg_epochs,
            &self.predictions,
        ];
        let overlays = self.overlays.iter().flat_map(|overlay| [overlay.se_map, overlay.prediction]).flatten();
        let evals = [self.seed_eval, self.pseudo_eval, self.seg_eval].into_iter().flatten();
        lists.into_iter().flatten().copied().chain(evals).chain(overlays)
    }

    /// What a run of this cell has to have at its end: all but the epochs before the last.
    pub fn targets(&self) -> Vec<UnitIdx> {
        let last = [self.cam_epochs.last(), self.seg_epochs.last()];
        let is_early = |unit: &UnitIdx| self.cam_epochs.contains(unit) || self.seg_epochs.contains(unit);
        self.units().filter(|unit| !is_early(unit)).chain(last.into_iter().flatten().copied()).collect()
    }
}

/// A cell with its data set scanned.
pub struct CellInput<'a> {
    pub name: &'a str,
    pub spec: &'a Spec,
    pub dataset: Arc<Dataset>,
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
    let any_se_map = cells.iter().any(|cell| needs_se_maps(cell.spec));
    let cells = cells.iter().map(|cell| {
        let precision = resolve(cell.spec.precision, bf16_native);
        let mut builder = Builder { graph: &mut graph, memo, spec: cell.spec, dataset: &cell.dataset, precision };
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

/// What of the prompts has an effect; the rest stands at its default.
fn prompt_params(spec: &CpmSpec, sam_input: SamInput) -> PromptParams {
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

/// SAM makes the label maps.
fn prompts_after(spec: &Spec) -> bool {
    spec.pseudo_label.refine.first() == Some(&Refinement::SamPrompt)
}

fn needs_se_maps(spec: &Spec) -> bool {
    let ssc = &spec.classifier.ssc;
    let voted = spec.pseudo_label.refine.contains(&Refinement::SegmentVote);
    voted || (ssc.enabled && ssc.start_epoch < spec.classifier.epochs)
}

struct Builder<'a> {
    graph: &'a mut Graph,
    memo: &'a dyn FileMemo,
    spec: &'a Spec,
    dataset: &'a Arc<Dataset>,
    precision: Compute,
}

impl Builder<'_> {
    /// `any_se_map`: some cell trains with SE maps, so overlays show them.
    fn cell(&mut self, name: &str, any_se_map: bool) -> anyhow::Result<CellUnits> {
        let (spec, dataset) = (self.spec, self.dataset.clone());
        let train = &dataset.train;
        let cpm = &spec.classifier.cpm;
        let with_cpm = cpm.enabled && cpm.start_epoch < spec.classifier.epochs;
        let prompts = with_cpm && cpm.sam_input == SamInput::CachedFull || prompts_after(spec);

        let needs_se_maps = needs_se_maps(spec);
        let embeddings = if needs_se_maps || prompts { self.each(train, Self::embedding)? } else { Vec::new() };
        let se_maps = if needs_se_maps { self.each(train, Self::se_map)? } else { Vec::new() };
        let cam_epochs = self.cam_epochs(&embeddings, &se_maps)?;
        let checkpoint = match spec.seed.select {
            Select::Last => *cam_epochs.last().context("`classifier.epochs` is 0")?,
            Select::BestGt => self.best_epoch(&cam_epochs)?,
        };
        let cams = self.each(train, |builder, item| builder.cam(item, checkpoint))?;
        let seed_eval = self.scored(&cams, "cam", "cams", train, SeedEval::KIND)?;
        let sam_labels: Vec<UnitIdx> = match prompts_after(spec) {
            true => {
                (0..train.len()).map(|i| self.sam_label(&train[i], cams[i], embeddings[i])).collect::<Result<_, _>>()?
            }
            false => Vec::new(),
        };
        let pseudo_labels: Vec<UnitIdx> = (0..train.len())
            .map(|i| match sam_labels.get(i) {
                Some(&label) => self.refined(&train[i], label, se_maps.get(i).copied()),
                None => self.pseudo_label(&train[i], cams[i], seed_eval, se_maps.get(i).copied()),
            })
            .collect::<anyhow::Result<_>>()?;
        let pseudo_eval = match spec.evaluate.pseudo_labels {
            true => self.scored(&pseudo_labels, "label", "predictions", train, Evaluate::KIND)?,
            false => None,
        };

        let (mut seg_epochs, mut predictions, mut seg_eval) = (Vec::new(), Vec::new(), None);
        if spec.segmentation.enabled {
            seg_epochs = self.seg_epochs(&pseudo_labels)?;
            let checkpoint = *seg_epochs.last().context("`segmentation.epochs` is 0")?;
            predictions = self.each(&dataset.val, |builder, item| builder.prediction(item, checkpoint))?;
            seg_eval = self.scored(&predictions, "prediction", "predictions", &dataset.val, Evaluate::KIND)?;
        }

        let n_overlays = spec.report.overlays.min(train.len());
        let mut overlays = Vec::new();
        for item_idx in (0..n_overlays).map(|k| k * train.len() / n_overlays) {
            let item = &train[item_idx];
            let se_map = if any_se_map { Some(self.se_map(item)?) } else { None };
            let prediction = seg_epochs.last().map(|&checkpoint| self.prediction(item, checkpoint)).transpose()?;
            let (cam, pseudo_label) = (cams[item_idx], pseudo_labels[item_idx]);
            overlays.push(OverlayUnits { item_idx, cam, se_map, pseudo_label, prediction });
        }

        let name = name.to_owned();
        Ok(CellUnits {
            name,
            dataset: dataset.clone(),
            embeddings,
            se_maps,
            cam_epochs,
            cams,
            seed_eval,
            sam_labels,
            pseudo_labels,
            pseudo_eval,
            seg_epochs,
            predictions,
            seg_eval,
            overlays,
        })
    }

    fn embedding(&mut self, item: &Item) -> anyhow::Result<UnitIdx> {
        let params = SamEmbedParams { precision: self.precision };
        let inputs = vec![("image", file(&item.image)), ("weights", self.weights(&self.spec.sam.weights)?)];
        self.add::<SamEmbed>(&item.id, &params, inputs)
    }

    fn se_map(&mut self, item: &Item) -> anyhow::Result<UnitIdx> {
        let embedding = self.embedding(item)?;
        let spec = &self.spec.se_map;
        let params = SeMapParams {
            precision: self.precision,
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
        };
        let mut inputs =
            vec![("embedding", of(embedding, "embedding")), ("weights", self.weights(&self.spec.sam.weights)?)];
        if params.crops.is_some() {
            inputs.push(("image", file(&item.image)));
        }
        self.add::<SeMapStage>(&item.id, &params, inputs)
    }

    fn cam_epochs(&mut self, embeddings: &[UnitIdx], se_maps: &[UnitIdx]) -> anyhow::Result<Vec<UnitIdx>> {
        let (spec, dataset) = (&self.spec.classifier, self.dataset.clone());
        let images = self.files(&dataset.train);
        let label_lines: String = dataset.train.iter().map(label_line).collect();
        let labels = Source::value(label_lines.into_bytes());
        let mut units: Vec<UnitIdx> = Vec::new();
        for epoch in 0..spec.epochs {
            let with_ssc = spec.ssc.enabled && spec.ssc.start_epoch <= epoch;
            let with_cpm = spec.cpm.enabled && spec.cpm.start_epoch <= epoch;
            let params = CamEpochParams {
                epoch,
                epochs: spec.epochs,
                rng_seed: self.spec.rng_seed,
                precision: self.precision,
                backbone: spec.backbone,
                stride: spec.stride,
                feat_dim: spec.feat_dim,
                n_classes: self.n_classes(),
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
            };
            let start = self.start(units.last(), &spec.weights)?;
            let mut inputs = vec![start, ("images", images.clone()), ("labels", labels.clone())];
            if with_ssc {
                inputs.push(("se_maps", self.outputs(&dataset.train, se_maps, "se_map")));
            }
            if with_cpm {
                if spec.cpm.sam_input == SamInput::CachedFull {
                    inputs.push(("embeddings", self.outputs(&dataset.train, embeddings, "embedding")));
                }
                inputs.push(("sam_weights", self.weights(&self.spec.sam.weights)?));
            }
            units.push(self.add::<CamEpoch>(&format!("epoch {epoch}"), &params, inputs)?);
        }
        Ok(units)
    }

    /// The unit that gives the checkpoint of the epoch whose seeds score best.
    fn best_epoch(&mut self, cam_epochs: &[UnitIdx]) -> anyhow::Result<UnitIdx> {
        let dataset = self.dataset.clone();
        let (mut metrics, mut checkpoints) = (Vec::new(), Vec::new());
        for (epoch, &unit) in cam_epochs.iter().enumerate() {
            let cams = self.each(&dataset.train, |builder, item| builder.cam(item, unit))?;
            let seed_eval = self
                .scored(&cams, "cam", "cams", &dataset.train, SeedEval::KIND)?
                .context("`seed.select = \"best_gt\"` needs training images with masks; write \"last\"")?;
            metrics.push((epoch.to_string(), of(seed_eval, "metrics")));
            checkpoints.push((epoch.to_string(), of(unit, "checkpoint")));
        }
        let [metrics, checkpoints] = [metrics, checkpoints].map(|members| self.graph.add_set(InputSet { members }));
        let inputs = vec![("metrics", metrics), ("checkpoints", checkpoints)];
        self.add::<SelectEpoch>("train", &SelectEpochParams {}, inputs)
    }

    fn cam(&mut self, item: &Item, checkpoint: UnitIdx) -> anyhow::Result<UnitIdx> {
        let (spec, seed) = (&self.spec.classifier, &self.spec.seed);
        let params = CamInferParams {
            backbone: spec.backbone,
            stride: spec.stride,
            feat_dim: spec.feat_dim,
            n_classes: self.n_classes(),
            precision: self.precision,
            scales: seed.scales.clone(),
            flip: seed.flip,
        };
        let labels = Source::value(item.labels.clone());
        let inputs =
            vec![("checkpoint", of(checkpoint, "checkpoint")), ("image", file(&item.image)), ("labels", labels)];
        self.add::<CamInfer>(&item.id, &params, inputs)
    }

    /// The unit that scores one output for each item against the masks, for the items that have one.
    fn scored(
        &mut self,
        units: &[UnitIdx],
        output: &'static str,
        slot: &'static str,
        items: &[Item],
        kind: &'static str,
    ) -> anyhow::Result<Option<UnitIdx>> {
        let with_mask = || items.iter().zip(units).filter_map(|(item, unit)| Some((item, unit, item.mask.as_ref()?)));
        let scored = with_mask().map(|(item, &unit, _)| (item.id.clone(), of(unit, output))).collect::<Vec<_>>();
        if scored.is_empty() {
            return Ok(None);
        }
        let masks = with_mask().map(|(item, _, mask)| (item.id.clone(), file(mask))).collect();
        let scored = self.graph.add_set(InputSet { members: scored });
        let inputs = vec![(slot, scored), ("masks", self.graph.add_set(InputSet { members: masks }))];
        let n_classes = self.n_classes();
        let classes = labels_of(&self.spec.evaluate.classes)?;
        let classes = BTreeSet::from_iter(classes).into_iter().collect();
        let unit = if kind == SeedEval::KIND {
            self.add::<SeedEval>("train", &SeedEvalParams { n_classes, classes, sweep: self.spec.seed.sweep }, inputs)?
        } else {
            let name = if output == "label" { "pseudo-labels" } else { "predictions" };
            self.add::<Evaluate>(name, &EvaluateParams { n_classes, classes }, inputs)?
        };
        Ok(Some(unit))
    }

    fn pseudo_label(
        &mut self,
        item: &Item,
        cam: UnitIdx,
        seed_eval: Option<UnitIdx>,
        se_map: Option<UnitIdx>,
    ) -> anyhow::Result<UnitIdx> {
        let spec = &self.spec.pseudo_label;
        let mut inputs = vec![("cam", of(cam, "cam"))];
        let threshold = match spec.threshold {
            Threshold::At(threshold) => Some(threshold),
            Threshold::Rule(_) => {
                let seed_eval = seed_eval.context(
                    "`pseudo_label.threshold = \"best\"` needs training images with masks; give a number such as 0.2",
                )?;
                inputs.push(("threshold", of(seed_eval, "threshold")));
                None
            }
        };
        self.voted(item, PseudoLabelParams { threshold, refine: spec.refine.clone() }, inputs, se_map)
    }

    /// The label map that SAM makes of an item's CAMs.
    fn sam_label(&mut self, item: &Item, cam: UnitIdx, embedding: UnitIdx) -> anyhow::Result<UnitIdx> {
        let prompt = prompt_params(&self.spec.classifier.cpm, SamInput::CachedFull);
        let weights = self.weights(&self.spec.sam.weights)?;
        let inputs = vec![("cam", of(cam, "cam")), ("embedding", of(embedding, "embedding")), ("weights", weights)];
        self.add::<SamRefine>(&item.id, &SamRefineParams { precision: self.precision, prompt }, inputs)
    }

    /// What the refinements after the first make of its label map; itself where there are none.
    fn refined(&mut self, item: &Item, label: UnitIdx, se_map: Option<UnitIdx>) -> anyhow::Result<UnitIdx> {
        match self.spec.pseudo_label.refine[1..].to_vec() {
            refine if refine.is_empty() => Ok(label),
            refine => {
                let inputs = vec![("label", of(label, "label"))];
                self.voted(item, PseudoLabelParams { threshold: None, refine }, inputs, se_map)
            }
        }
    }

    /// A unit of `pseudo_label`, with the SE map if there is a vote.
    fn voted(
        &mut self,
        item: &Item,
        params: PseudoLabelParams,
        mut inputs: Vec<(&'static str, Source)>,
        se_map: Option<UnitIdx>,
    ) -> anyhow::Result<UnitIdx> {
        if params.refine.contains(&Refinement::SegmentVote) {
            inputs.push(("se_map", of(se_map.context("no SE map to refine with")?, "se_map")));
        }
        self.add::<PseudoLabel>(&item.id, &params, inputs)
    }

    fn seg_epochs(&mut self, pseudo_labels: &[UnitIdx]) -> anyhow::Result<Vec<UnitIdx>> {
        let (spec, dataset) = (&self.spec.segmentation, self.dataset.clone());
        let images = self.files(&dataset.train);
        let labels = self.outputs(&dataset.train, pseudo_labels, "label");
        let mut units: Vec<UnitIdx> = Vec::new();
        for epoch in 0..spec.epochs {
            let params = SegEpochParams {
                epoch,
                epochs: spec.epochs,
                rng_seed: self.spec.rng_seed,
                precision: self.precision,
                backbone: spec.backbone,
                stride: spec.stride,
                n_labels: self.n_classes() + 1,
                batch_size: spec.batch_size,
                accumulate: spec.accumulate,
                crop: spec.crop,
                scale: spec.scale,
                lr: spec.lr,
                head_lr_mult: spec.head_lr_mult,
                momentum: spec.momentum,
                weight_decay: spec.weight_decay,
            };
            let start = self.start(units.last(), &spec.weights)?;
            let inputs = vec![start, ("images", images.clone()), ("labels", labels.clone())];
            units.push(self.add::<SegEpoch>(&format!("epoch {epoch}"), &params, inputs)?);
        }
        Ok(units)
    }

    fn prediction(&mut self, item: &Item, checkpoint: UnitIdx) -> anyhow::Result<UnitIdx> {
        let spec = &self.spec.segmentation;
        let params = SegInferParams {
            backbone: spec.backbone,
            stride: spec.stride,
            n_labels: self.n_classes() + 1,
            precision: self.precision,
            scales: spec.test_scales.clone(),
            flip: spec.test_flip,
        };
        let inputs = vec![("checkpoint", of(checkpoint, "checkpoint")), ("image", file(&item.image))];
        self.add::<SegInfer>(&item.id, &params, inputs)
    }

    /// Foreground classes.
    fn n_classes(&self) -> i64 {
        self.dataset.classes.len() as i64 - 1
    }

    fn each(
        &mut self,
        items: &[Item],
        unit: impl Fn(&mut Self, &Item) -> anyhow::Result<UnitIdx>,
    ) -> anyhow::Result<Vec<UnitIdx>> {
        items.iter().map(|item| unit(self, item)).collect()
    }

    fn files(&mut self, items: &[Item]) -> Source {
        let members = items.iter().map(|item| (item.id.clone(), file(&item.image))).collect();
        self.graph.add_set(InputSet { members })
    }

    fn outputs(&mut self, items: &[Item], units: &[UnitIdx], name: &'static str) -> Source {
        let members = items.iter().zip(units).map(|(item, &unit)| (item.id.clone(), of(unit, name))).collect();
        self.graph.add_set(InputSet { members })
    }

    /// What an epoch starts from: the epoch before it, or weights made elsewhere.
    fn start(&self, previous: Option<&UnitIdx>, weights: &Path) -> anyhow::Result<(&'static str, Source)> {
        Ok(match previous {
            Some(&previous) => ("checkpoint", of(previous, "checkpoint")),
            None => ("weights", self.weights(weights)?),
        })
    }

    fn weights(&self, path: &Path) -> anyhow::Result<Source> {
        let digest = self
            .memo
            .digest(path)
            .map_err(|error| MissingWeights { path: path.into(), cause: format!("{error:#}") })?;
        Ok(Source::File { path: path.into(), digest })
    }

    fn add<S: Stage>(
        &mut self,
        item: &str,
        params: &S::Params,
        inputs: Vec<(&'static str, Source)>,
    ) -> anyhow::Result<UnitIdx>
    where
        S::Params: Serialize,
    {
        // Through a value, whose maps are ordered by key.
        let params = serde_json::to_value(params)?.to_string().into();
        let unit = Unit { stage: S::KIND, version: S::VERSION, item: item.to_owned(), params, inputs };
        Ok(self.graph.add(unit))
    }
}

fn of(unit: UnitIdx, name: &'static str) -> Source {
    Source::Output { unit, name }
}

fn file(file: &FileRef) -> Source {
    Source::File { path: file.path.clone(), digest: file.digest }
}

fn label_line(item: &Item) -> String {
    let labels: Vec<String> = item.labels.iter().map(u8::to_string).collect();
    format!("{}\t{}\n", item.id, labels.join(" "))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::digest::BlobDigest;
    use crate::pipeline::spec::{IdCompaction, IdWidth, SscLevel, SscPrototypes, SscSpec};
    use crate::stage::params::AlphaSam;
    use crate::stage::prompt::{AbsentClass, LogitPath};

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
            mask: Some(file(format!("{id}.png"))),
            labels: vec![8],
            height: 10,
            width: 10,
            id,
        };
        Arc::new(Dataset {
            name: "tiny".into(),
            classes: crate::vision::VOC_CLASSES.map(str::to_owned).to_vec(),
            train: (0..n_train).map(|i| item(format!("train{i}"))).collect(),
            val: vec![item("val".into())],
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
            cells.iter().map(|(spec, n)| CellInput { name: "cell", spec, dataset: dataset(*n) }).collect();
        let (graph, _) = build(&inputs, &NoFiles, false).unwrap();
        let mut counts = BTreeMap::new();
        graph.units().iter().for_each(|unit| *counts.entry(unit.stage).or_default() += 1);
        counts
    }

    /// What a second cell adds to the first, by stage.
    fn added(first: (Spec, usize), second: (Spec, usize)) -> BTreeMap<&'static str, usize> {
        let before = counts(std::slice::from_ref(&first));
        let mut after = counts(&[first, second]);
        after.iter_mut().for_each(|(stage, n)| *n -= before.get(stage).copied().unwrap_or(0));
        after.retain(|_, n| *n > 0);
        after
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
        let plain = |change: fn(&mut Spec)| {
            let mut spec = Spec::default();
            change(&mut spec);
            (spec, 4)
        };
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
            let cell = [CellInput { name: "cell", spec: &spec, dataset: dataset(4) }];
            let (graph, cells) = build(&cell, &NoFiles, false).unwrap();
            let last = &graph.units()[cells[0].cam_epochs[4]];
            last.inputs.iter().map(|(slot, _)| *slot).collect::<Vec<_>>()
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
            build(&[CellInput { name: "cell", spec: &s2c(), dataset: dataset(1) }], &NoFiles, false).unwrap();
        let params = |unit: UnitIdx| serde_json::from_str::<serde_json::Value>(&graph.units()[unit].params).unwrap();
        let ssc = r#"{"proto_stopgrad":true,"temperature":0.5,"unassigned_negative":true,"weight":1.0}"#;
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
            build(&[CellInput { name: "cell", spec: &s2c(), dataset: dataset(1) }], &NoFiles, false).unwrap();
        let params: serde_json::Value = serde_json::from_str(&graph.units()[cells[0].cam_epochs[2]].params).unwrap();
        let cpm = r#"{"alpha_cam":"mean","alpha_sam":"logit","mask_index":2,"min_distance":20,"pad_label":"ignore","scales":[0.5,1.0,1.5,2.0],"tau":0.5,"weight":1.0}"#;
        assert_eq!(params["cpm"].to_string(), cpm);
    }

    #[test]
    fn what_follows_the_pseudo_labels_reruns_no_cam_stage() {
        for change in [
            |spec: &mut Spec| spec.segmentation.lr = 0.1,
            |spec: &mut Spec| spec.segmentation.epochs = 7,
            |spec: &mut Spec| spec.segmentation.test_flip = false,
        ] {
            let added = added((s2c(), 4), (with(change), 4));
            assert!(added.keys().all(|stage| stage.starts_with("seg_") || *stage == "evaluate"), "{added:?}");
        }
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
    fn a_seed_of_randomness_is_its_own_training() {
        let added = added((s2c(), 4), (with(|spec| spec.rng_seed = 1), 4));
        assert_eq!(added["cam_epoch"], 5);
        assert!(!added.contains_key("sam_embed"));
    }
}
