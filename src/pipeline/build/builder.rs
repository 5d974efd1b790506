//! The units of one cell, stage by stage.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use serde::Serialize;

use crate::data::{Dataset, FileMemo, FileRef, Item, Mask};
use crate::digest::BlobDigest;
use crate::pipeline::graph::{Graph, InputSet, Source, Unit, UnitIdx};
use crate::pipeline::spec::{Refinement, SamInput, Select, Spec, Threshold};
use crate::stage::Stage;
use crate::stage::cam_epoch::CamEpoch;
use crate::stage::cam_infer::{AdvCam, CamInfer, CamInferParams};
use crate::stage::coco_mask::{CocoMask, CocoMaskParams};
use crate::stage::evaluate::{Evaluate, EvaluateParams};
use crate::stage::mask_file::{MaskFile, MaskFileParams};
use crate::stage::params::Compute;
use crate::stage::pseudo_label::{PseudoLabel, PseudoLabelParams};
use crate::stage::sam_embed::{SamEmbed, SamEmbedParams};
use crate::stage::sam_refine::{SamRefine, SamRefineParams};
use crate::stage::se_map::SeMapStage;
use crate::stage::seed_eval::{SeedEval, SeedEvalParams};
use crate::stage::seg_crf::{CrfSet, SegCrf};
use crate::stage::seg_epoch::{SegEpoch, SegEpochParams};
use crate::stage::seg_infer::{SegInfer, SegInferParams};
use crate::stage::select_epoch::{SelectEpoch, SelectEpochParams};
use crate::vision::labels_of;

use super::effective::{cam_epoch_params, prompt_params, pseudo_label_params, se_map_params, starts_with_crf};
use super::{
    CellUnits, MissingWeights, NeedsMasks, OverlayUnits, UnknownEvaluated, needs_se_maps, prompts_after,
    trains_with_cpm, uses_se_maps,
};

/// Adds the units of one cell to the graph.
pub(super) struct Builder<'a> {
    pub(super) graph: &'a mut Graph,
    pub(super) memo: &'a dyn FileMemo,
    /// Weights whose content is this, whatever is there now.
    pub(super) weights_then: &'a [(PathBuf, BlobDigest)],
    pub(super) spec: &'a Spec,
    pub(super) dataset: &'a Arc<Dataset>,
    pub(super) precision: Compute,
    /// By stage: parameters as they were written last, and with their fields in order.
    pub(super) last_params: HashMap<&'static str, (String, Arc<str>)>,
}

impl Builder<'_> {
    /// `any_se_map`: some cell trains with SE maps, so overlays show them.
    pub(super) fn cell(&mut self, name: &str, any_se_map: bool) -> anyhow::Result<CellUnits> {
        let (spec, dataset) = (self.spec, self.dataset.clone());
        let train = &dataset.train;
        let is_prompted = trains_with_cpm(spec) && spec.classifier.cpm.sam_input == SamInput::CachedFull;
        let prompts = is_prompted || prompts_after(spec);

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
        let affinity = self.affinity(&cams)?;
        let label = |i: usize| {
            let (item, se_map) = (&train[i], se_maps.get(i).copied());
            match spec.pseudo_label.refine.first() {
                Some(Refinement::SamPrompt) => self.refined(item, sam_labels[i], se_map),
                Some(Refinement::Psa) => self.refined(item, affinity.walks[i], se_map),
                Some(Refinement::Irn) => self.spread(item, affinity.walks[i], se_map),
                _ => self.pseudo_label(item, cams[i], seed_eval, se_map),
            }
        };
        let pseudo_labels = (0..train.len()).map(label).collect::<anyhow::Result<Vec<_>>>()?;
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

        [seed_eval, pseudo_eval, seg_eval].into_iter().flatten().for_each(|unit| self.graph.show(unit));
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
            affinity,
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
        let params = se_map_params(&self.spec.se_map, self.precision);
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
            let params = cam_epoch_params(self.spec, epoch, (self.n_classes(), self.precision));
            let start = self.start(units.last(), &spec.weights)?;
            let mut inputs = vec![start, ("images", images.clone()), ("labels", labels.clone())];
            if params.ssc.is_some() {
                inputs.push(("se_maps", self.outputs(&dataset.train, se_maps, "se_map")));
            }
            if params.cpm.is_some() {
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
                .ok_or(NeedsMasks { value: "seed.select = \"best_gt\"", instead: "seed.select = \"last\"" })?;
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
            pcm: spec.equivariance.enabled && spec.equivariance.pcm,
            advcam: seed.advcam.enabled.then_some(AdvCam {
                iterations: seed.advcam.iterations,
                step: seed.advcam.step,
                guard: seed.advcam.guard,
                guard_threshold: seed.advcam.guard_threshold,
            }),
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
        let classes = self.evaluated()?;
        let is_scored = |item: &Item| classes.iter().any(|label| item.in_mask.contains(label));
        if !classes.is_empty() && !with_mask().any(|(item, ..)| is_scored(item)) {
            bail!(
                "`evaluate.classes`: no mask of the {} images that are scored has one of these classes, and a mean over \
                 background alone is no score",
                scored.len()
            );
        }
        let masks = with_mask().map(|(item, _, mask)| Ok((item.id.clone(), self.mask(item, mask)?)));
        let masks = masks.collect::<anyhow::Result<_>>()?;
        let scored = self.graph.add_set(InputSet { members: scored });
        let inputs = vec![(slot, scored), ("masks", self.graph.add_set(InputSet { members: masks }))];
        let n_classes = self.n_classes();
        let unit = if kind == SeedEval::KIND {
            self.add::<SeedEval>("train", &SeedEvalParams { n_classes, classes, sweep: self.spec.seed.sweep }, inputs)?
        } else {
            let name = if output == "label" { "pseudo-labels" } else { "predictions" };
            self.add::<Evaluate>(name, &EvaluateParams { n_classes, classes }, inputs)?
        };
        Ok(Some(unit))
    }

    /// Labels of the classes that means are over, ascending; none: all that the truth has.
    fn evaluated(&self) -> Result<Vec<u8>, UnknownEvaluated> {
        let known = &self.dataset.classes;
        let classes = labels_of(known, &self.spec.evaluate.classes);
        let classes = classes.map_err(|unknown| UnknownEvaluated { unknown, known: known[1..].to_vec() })?;
        Ok(BTreeSet::from_iter(classes).into_iter().collect())
    }

    /// The ground truth of an item.
    fn mask(&mut self, item: &Item, mask: &Mask) -> anyhow::Result<Source> {
        match mask {
            Mask::File(mask) => Ok(file(mask)),
            Mask::Translated { file: mask, reading } => {
                let params = MaskFileParams { reading: reading.clone() };
                let unit = self.add::<MaskFile>(&item.id, &params, vec![("file", file(mask))])?;
                Ok(of(unit, "mask"))
            }
            Mask::Outlines { bytes, digest } => {
                let outlines = Source::Value { bytes: bytes.clone(), digest: *digest };
                let unit = self.add::<CocoMask>(&item.id, &CocoMaskParams {}, vec![("outlines", outlines)])?;
                Ok(of(unit, "mask"))
            }
        }
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
            _ if starts_with_crf(spec) => None,
            Threshold::At(threshold) => Some(threshold),
            Threshold::Rule(_) => {
                let (value, instead) = ("pseudo_label.threshold = \"best\"", "pseudo_label.threshold = 0.2");
                let seed_eval = seed_eval.ok_or(NeedsMasks { value, instead })?;
                inputs.push(("threshold", of(seed_eval, "threshold")));
                None
            }
        };
        self.refining(item, pseudo_label_params(spec, &spec.refine, threshold), inputs, se_map)
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
        let spec = &self.spec.pseudo_label;
        match &spec.refine[1..] {
            [] => Ok(label),
            refine => {
                let inputs = vec![("label", of(label, "label"))];
                self.refining(item, pseudo_label_params(spec, refine, None), inputs, se_map)
            }
        }
    }

    /// The label map of a CAM that IRN has spread, refined.
    fn spread(&mut self, item: &Item, walk: UnitIdx, se_map: Option<UnitIdx>) -> anyhow::Result<UnitIdx> {
        let spec = &self.spec.pseudo_label;
        let params = pseudo_label_params(spec, &spec.refine[1..], Some(spec.irn.background));
        self.refining(item, params, vec![("cam", of(walk, "cam"))], se_map)
    }

    /// A unit of `pseudo_label`, with the SE map and the image if a refinement needs them.
    fn refining(
        &mut self,
        item: &Item,
        params: PseudoLabelParams,
        mut inputs: Vec<(&'static str, Source)>,
        se_map: Option<UnitIdx>,
    ) -> anyhow::Result<UnitIdx> {
        if uses_se_maps(&params.refine) {
            inputs.push(("se_map", of(se_map.context("no SE map to refine with")?, "se_map")));
        }
        if params.refine.contains(&Refinement::Crf) {
            inputs.push(("image", file(&item.image)));
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
                head: spec.head,
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
            head: spec.head,
            n_labels: self.n_classes() + 1,
            precision: self.precision,
            scales: spec.test_scales.clone(),
            flip: spec.test_flip,
            scores: spec.test_crf,
        };
        let image = ("image", file(&item.image));
        let unit =
            self.add::<SegInfer>(&item.id, &params, vec![("checkpoint", of(checkpoint, "checkpoint")), image.clone()])?;
        match spec.test_crf {
            true => self.add::<SegCrf>(
                &item.id,
                &spec.crf.params(CrfSet::Deeplab),
                vec![image, ("scores", of(unit, "scores"))],
            ),
            false => Ok(unit),
        }
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

    pub(super) fn files(&mut self, items: &[Item]) -> Source {
        let members = items.iter().map(|item| (item.id.clone(), file(&item.image))).collect();
        self.graph.add_set(InputSet { members })
    }

    pub(super) fn outputs(&mut self, items: &[Item], units: &[UnitIdx], name: &'static str) -> Source {
        let members = items.iter().zip(units).map(|(item, &unit)| (item.id.clone(), of(unit, name))).collect();
        self.graph.add_set(InputSet { members })
    }

    /// What an epoch starts from: the epoch before it, or weights made elsewhere.
    pub(super) fn start(&self, previous: Option<&UnitIdx>, weights: &Path) -> anyhow::Result<(&'static str, Source)> {
        Ok(match previous {
            Some(&previous) => ("checkpoint", of(previous, "checkpoint")),
            None => ("weights", self.weights(weights)?),
        })
    }

    pub(super) fn weights(&self, path: &Path) -> anyhow::Result<Source> {
        let then = self.weights_then.iter().find(|(of, _)| of == path).map(|(_, digest)| Ok(*digest));
        let digest = then
            .unwrap_or_else(|| self.memo.digest(path))
            .map_err(|error| MissingWeights { path: path.into(), cause: format!("{error:#}") })?;
        Ok(Source::File { path: path.into(), digest })
    }

    /// Parameters as text, fields in order of their names. Units of a stage come one after the other with the same.
    fn params(&mut self, stage: &'static str, params: &impl Serialize) -> anyhow::Result<Arc<str>> {
        let unordered = serde_json::to_string(params)?;
        if let Some((_, ordered)) = self.last_params.get(stage).filter(|(last, _)| *last == unordered) {
            return Ok(ordered.clone());
        }
        // Through a value, whose maps are ordered by key.
        let ordered: Arc<str> = serde_json::to_value(params)?.to_string().into();
        self.last_params.insert(stage, (unordered, ordered.clone()));
        Ok(ordered)
    }

    pub(super) fn add<S: Stage>(
        &mut self,
        item: &str,
        params: &S::Params,
        inputs: Vec<(&'static str, Source)>,
    ) -> anyhow::Result<UnitIdx>
    where
        S::Params: Serialize,
    {
        let params = self.params(S::KIND, params)?;
        let unit = Unit { stage: S::KIND, version: S::VERSION, item: item.to_owned(), params, inputs };
        Ok(self.graph.add(unit))
    }
}

pub(super) fn of(unit: UnitIdx, name: &'static str) -> Source {
    Source::Output { unit, name }
}

pub(super) fn file(file: &FileRef) -> Source {
    Source::File { path: file.path.clone(), digest: file.digest }
}

fn label_line(item: &Item) -> String {
    let labels: Vec<String> = item.labels.iter().map(u8::to_string).collect();
    format!("{}\t{}\n", item.id, labels.join(" "))
}
