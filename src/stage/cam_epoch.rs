//! `cam_epoch`: one epoch of the CAM classifier with L_CLS, L_SSC and L_CPM.

use std::collections::HashMap;

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::epoch::{EpochOptions, Members, Start, Trainer, batch_tensor, mean, train};
use super::loader::each;
use super::params::{
    Backbone, Compute, IdCompaction, IdWidth, PadLabel, SscLevel, SscPrototypes, is_default, is_one, is_yes, one, yes,
};
use super::prompt::{AbsentClass, PromptParams, SamInput};
use super::sam_embed::read_embedding;
use super::{Bytes, Loaded, NotFinite, Output, Stage, StageContext, UnitInput};
use crate::data::augment::{Jitter, Transform};
use crate::data::image::{decode_rgb, decode_se_map};
use crate::data::rng::stream;
use crate::model::classifier::{Classifier, ClassifierConfig};
use crate::model::cpm::CpmOptions;
use crate::model::loss;
use crate::model::memory::pinned;
use crate::model::optim::{Sgd, SgdOptions};
use crate::model::s2c::{S2cBatch, S2cImage, S2cLosses, S2cOptions, S2cTraining, SscOn};
use crate::model::sam::{SamDecoder, SamEncoder};
use crate::model::ssc::SscOptions;
use crate::model::weights::Weights;
use crate::vision::SeMap;
use crate::vision::se_map::{compact, ranks, reversed};

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CamEpochParams {
    pub epoch: u32,
    pub epochs: u32,
    pub rng_seed: u64,
    pub precision: Compute,
    pub backbone: Backbone,
    pub stride: u32,
    pub feat_dim: i64,
    /// Foreground classes.
    pub n_classes: i64,
    pub batch_size: usize,
    /// Batches of a step.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub accumulate: usize,
    pub crop: u32,
    pub resize_long: (u32, u32),
    pub jitter: (f64, f64, f64, f64),
    pub lr: f64,
    pub head_lr_mult: f64,
    pub momentum: f64,
    pub weight_decay: f64,
    /// `None`: off in this epoch.
    pub ssc: Option<SscParams>,
    pub cpm: Option<CpmParams>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub equivariance: Option<EquivarianceParams>,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EquivarianceParams {
    pub weight: f64,
    pub scale: f64,
    #[serde(default, skip_serializing_if = "is_default")]
    pub pcm: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SscParams {
    pub weight: f64,
    pub temperature: f64,
    pub proto_stopgrad: bool,
    pub unassigned_negative: bool,
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub mask_absent_ids: bool,
    #[serde(default, skip_serializing_if = "is_default")]
    pub id_compaction: IdCompaction,
    #[serde(default, skip_serializing_if = "is_default")]
    pub id_width: IdWidth,
    #[serde(default, skip_serializing_if = "is_default")]
    pub level: SscLevel,
    #[serde(default, skip_serializing_if = "is_default")]
    pub prototypes: SscPrototypes,
}

// Unknown fields are not refused: serde cannot do so beside `flatten`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CpmParams {
    pub weight: f64,
    pub scales: Vec<f64>,
    #[serde(flatten)]
    pub prompt: PromptParams,
    #[serde(default, skip_serializing_if = "is_default")]
    pub sam_input: SamInput,
    pub pad_label: PadLabel,
    #[serde(default, skip_serializing_if = "is_default")]
    pub absent_class: AbsentClass,
}

/// The loss terms of a step; no times, so that equal runs give equal bytes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepLosses {
    pub cls: f64,
    pub ssc: Option<f64>,
    pub cpm: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub equivariance: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ecr: Option<f64>,
    pub lr: f64,
    pub grad_norm: f64,
}

/// Reads `weights` (first epoch) or `checkpoint`, the set `images`, `labels` (lines `item<TAB>classes`); with SSC the
/// set `se_maps`; with CPM `sam_weights` and, unless it encodes crops, the set `embeddings`. Gives `checkpoint` and
/// `losses` (JSON, a row a step).
pub struct CamEpoch {
    params: CamEpochParams,
    context: StageContext,
    decoder: Loaded<SamDecoder>,
    encoder: Loaded<SamEncoder>,
}

/// What the loader makes of one image.
struct Sample {
    labels: Vec<u8>,
    transform: Transform,
    crop: Vec<f32>,
    se_map: Option<SeMap>,
    embedding: Option<Bytes>,
}

impl Stage for CamEpoch {
    const KIND: &'static str = "cam_epoch";
    // 1: first version
    // 2: CPM: prompts of unequal lengths are decoded apart, masks and peaks end where the padding begins
    // 3: CPM looks through convolutions in another memory order, which rounds otherwise
    // 4: `losses` has L_CLS where it had the sum of all
    // 5: prompts of a step are decoded some at a time, which rounds otherwise
    // 6: the same decoder as se_map 4; L_SSC without features at the size of the SE map: both round otherwise
    // 7: the same decoder as se_map 5
    // 8: CPM takes the CAM of scale 1 from the step itself, in another memory order, which rounds otherwise
    // 9: weights that one of our trainings made start without its momentum
    // 10: photographs are decoded and resized as libjpeg-turbo and Pillow do
    // 11: libtorch computes with the same number of threads on every machine, whose sums round otherwise
    const VERSION: u64 = 11;
    const PARALLEL: bool = false;
    type Params = CamEpochParams;

    fn load(params: CamEpochParams, context: &StageContext) -> anyhow::Result<Self> {
        Ok(Self { params, context: context.clone(), decoder: Loaded::default(), encoder: Loaded::default() })
    }

    fn run(&mut self, input: &UnitInput<'_>) -> anyhow::Result<Vec<Output>> {
        let Self { params, context, decoder, encoder } = self;
        let device = context.device.torch();
        let decoder = match &params.cpm {
            Some(_) => Some(&*decoder.get(input, "sam_weights", |bytes| {
                SamDecoder::load(&Weights::parse(bytes)?, device, params.precision.into())
            })?),
            None => None,
        };
        let encoder = match &params.cpm {
            Some(cpm) if cpm.sam_input == SamInput::OnlineCrop => {
                Some(&*encoder.get(input, "sam_weights", |bytes| {
                    SamEncoder::load(&Weights::parse(bytes)?, device, params.precision.into())
                })?)
            }
            _ => None,
        };

        let start = Start::read(input, context)?;
        let backbone = params.backbone.config(params.stride, params.precision, device);
        let with_pcm = params.equivariance.is_some_and(|of| of.pcm);
        let config = ClassifierConfig { backbone, feat_dim: params.feat_dim, n_classes: params.n_classes, with_pcm };
        let classifier = Classifier::load(&start.weights, &config, &mut stream(params.rng_seed, 0, "", "head"))?;
        let CamEpochParams { head_lr_mult, momentum, weight_decay, .. } = *params;
        let sgd = Sgd::load(classifier.trained(), &start.weights, SgdOptions { head_lr_mult, momentum, weight_decay })?;
        let training = S2cTraining { classifier, sgd, decoder, encoder, options: s2c_options(params) };
        let mut trainer = CamTrainer { training, params, device };
        let items = Items::read(input, params)?;
        let CamEpochParams { epoch, epochs, rng_seed, batch_size, accumulate, lr, .. } = *params;
        let options = EpochOptions { epoch, epochs, rng_seed, images: batch_size * accumulate, lr };
        let make = |batch: &[String]| {
            let samples = each(batch, |item| items.sample(item, params))?;
            let parts =
                samples.chunks(batch_size).map(|part| collate(part, params, device)).collect::<Result<_, _>>()?;
            Ok(Batch { items: batch.to_vec(), parts })
        };
        train(&mut trainer, start, &items.images.items, make, options, (input, context))
    }
}

struct CamTrainer<'a> {
    training: S2cTraining<'a>,
    params: &'a CamEpochParams,
    device: tch::Device,
}

/// The images of a step.
struct Batch {
    items: Vec<String>,
    parts: Vec<S2cBatch>,
}

impl Trainer for CamTrainer<'_> {
    type Batch = Batch;
    type Row = StepLosses;

    fn step(&mut self, Batch { items, parts }: Batch, lr: f64) -> anyhow::Result<StepLosses> {
        let Self { training, params, device } = self;
        let CamEpochParams { rng_seed, epoch, batch_size, .. } = **params;
        let of_part = |(part, items): (S2cBatch, &[String])| {
            let streams = items.iter().map(|item| stream(rng_seed, u64::from(epoch), item, "dropout"));
            S2cBatch { dropout: training.classifier.dropout(streams), ..part.to_device(*device) }
        };
        let parts: Vec<S2cBatch> = parts.into_iter().zip(items.chunks(batch_size)).map(of_part).collect();
        let losses = training.step(&parts, lr)?;
        let is_finite = losses.is_finite();
        let S2cLosses { cls, ssc, cpm, equivariance, ecr, grad_norm } = losses;
        let row = StepLosses { cls, ssc, cpm, equivariance, ecr, lr, grad_norm };
        if !is_finite {
            let losses = Self::describe(std::slice::from_ref(&row));
            return Err(NotFinite { losses, items, field: "classifier.lr", lr }.into());
        }
        Ok(row)
    }

    fn describe(rows: &[StepLosses]) -> String {
        let term = |name: &str, value: Option<f64>| value.map_or(String::new(), |value| format!(" {name} {value:.3}"));
        let terms = [
            term("cls", mean(rows, |row| Some(row.cls))),
            term("ssc", mean(rows, |row| row.ssc)),
            term("cpm", mean(rows, |row| row.cpm)),
            term("equivariance", mean(rows, |row| row.equivariance)),
            term("ecr", mean(rows, |row| row.ecr)),
        ];
        terms.concat().trim_start().to_owned()
    }

    fn checkpoint(&self, more: Vec<(String, Tensor)>) -> anyhow::Result<Vec<u8>> {
        self.training.sgd.checkpoint(self.training.classifier.frozen(), more)
    }
}

/// Samples as tensors on the CPU, ready to go to the device.
fn collate(samples: &[Sample], params: &CamEpochParams, device: tch::Device) -> anyhow::Result<S2cBatch> {
    let (n, side) = (samples.len() as i64, i64::from(params.crop));
    let label = |sample: &Sample| {
        (1..=params.n_classes).map(|class| f32::from(sample.labels.contains(&(class as u8)))).collect::<Vec<_>>()
    };
    let labels = Tensor::from_slice(&samples.iter().flat_map(label).collect::<Vec<_>>()).view([n, params.n_classes]);
    let maps = samples.iter().filter_map(|sample| sample.se_map.as_ref());
    let ids: Vec<i64> = maps.flat_map(|map| &map.data).map(|&id| i64::from(id)).collect();
    let images = samples.iter().filter(|_| params.cpm.is_some()).map(|sample| s2c_image(sample, device));
    Ok(S2cBatch {
        crops: pinned(batch_tensor(samples.iter().map(|sample| &sample.crop[..]), params.crop), device),
        labels: pinned(labels, device),
        se_map: params.ssc.as_ref().map(|_| pinned(Tensor::from_slice(&ids).view([n, side, side]), device)),
        images: images.collect::<anyhow::Result<_>>()?,
        dropout: None,
    })
}

fn s2c_image(sample: &Sample, device: tch::Device) -> anyhow::Result<S2cImage> {
    let embedding = sample.embedding.clone().map(|bytes| anyhow::Ok(pinned(read_embedding(bytes)?.0, device)));
    let channels = sample.labels.iter().map(|&class| i64::from(class) - 1).collect();
    Ok(S2cImage { channels, transform: sample.transform, embedding: embedding.transpose()? })
}

fn s2c_options(params: &CamEpochParams) -> S2cOptions {
    let ssc = params.ssc.as_ref().map(|of| {
        let on = match of.level {
            SscLevel::Feature => SscOn::Feat,
            SscLevel::Logit => SscOn::Cam,
        };
        (ssc_options(of), on, of.weight)
    });
    let cpm = params.cpm.as_ref().map(|of| {
        let absent = match of.absent_class {
            AbsentClass::Zero => loss::AbsentClass::Zero,
            AbsentClass::NegInf => loss::AbsentClass::Out,
        };
        (cpm_options(of), absent, of.weight)
    });
    let equivariance = params.equivariance.map(|of| (of.scale, of.weight));
    S2cOptions { ssc, cpm, equivariance }
}

fn cpm_options(params: &CpmParams) -> CpmOptions {
    CpmOptions {
        scales: params.scales.clone(),
        online: params.sam_input == SamInput::OnlineCrop,
        ignore_padding: params.pad_label == PadLabel::Ignore,
        sam: params.prompt.options(),
    }
}

fn ssc_options(params: &SscParams) -> SscOptions {
    SscOptions {
        temperature: params.temperature,
        proto_stopgrad: params.proto_stopgrad,
        unassigned_negative: params.unassigned_negative,
        mask_absent_ids: params.mask_absent_ids,
        global_prototypes: params.prototypes == SscPrototypes::Global,
    }
}

/// The window of an SE map, with the ids SSC sees. The authors' ids grow with the predicted IoU.
pub fn segment_window(map: &SeMap, transform: &Transform, (compaction, width): (IdCompaction, IdWidth)) -> SeMap {
    let ids = match (compaction, width) {
        (IdCompaction::Fixed, IdWidth::U16) => map.clone(),
        (IdCompaction::Buggy, IdWidth::U16) => reversed(map),
        (_, IdWidth::U8Wrap) => reversed(map).map(|id| id % 256),
    };
    match compaction {
        IdCompaction::Fixed => compact(&transform.apply_grid(&ids, 0)),
        IdCompaction::Buggy => {
            transform.apply_grid(&ranks(&ids.resize_nearest(transform.resized.0, transform.resized.1)), 0)
        }
    }
}

/// What an epoch reads, by item.
struct Items<'a> {
    images: Members<'a>,
    labels: HashMap<String, Vec<u8>>,
    /// With SSC.
    se_maps: Option<Members<'a>>,
    /// With CPM, unless it makes them.
    embeddings: Option<Members<'a>>,
}

impl<'a> Items<'a> {
    fn read(input: &'a UnitInput<'a>, params: &CamEpochParams) -> anyhow::Result<Self> {
        let text = input.bytes("labels")?;
        let line = |line: &str| {
            let (item, classes) = line.split_once('\t')?;
            Some((item.to_owned(), classes.split(' ').map(|class| class.parse().ok()).collect::<Option<_>>()?))
        };
        let labels: Option<HashMap<_, _>> = std::str::from_utf8(&text)?.lines().map(line).collect();
        Ok(Self {
            images: Members::of(input, "images")?,
            labels: labels.context("input `labels` is not a list of labels")?,
            se_maps: params.ssc.as_ref().map(|_| Members::of(input, "se_maps")).transpose()?,
            embeddings: params
                .cpm
                .as_ref()
                .filter(|cpm| cpm.sam_input == SamInput::CachedFull)
                .map(|_| Members::of(input, "embeddings"))
                .transpose()?,
        })
    }

    fn sample(&self, item: &str, params: &CamEpochParams) -> anyhow::Result<Sample> {
        let image = decode_rgb(&self.images.bytes(item)?).with_context(|| format!("image `{item}`"))?;
        let mut rng = stream(params.rng_seed, u64::from(params.epoch), item, "augment");
        let size = (image.height, image.width);
        let transform = Transform::sample_long(&mut rng, size, params.resize_long, params.crop as usize);
        let jitter = Jitter::sample(&mut rng, params.jitter);
        let se_map = match self.se_maps.as_ref().zip(params.ssc.as_ref()) {
            Some((maps, ssc)) => {
                let map = decode_se_map(&maps.bytes(item)?).with_context(|| format!("SE map of `{item}`"))?;
                ensure!((map.height, map.width) == size, "`{item}`: SE map and image differ in size");
                Some(segment_window(&map, &transform, (ssc.id_compaction, ssc.id_width)))
            }
            None => None,
        };
        let embedding = match &self.embeddings {
            Some(embeddings) => Some(embeddings.bytes(item)?),
            None => None,
        };
        let labels = self.labels.get(item).with_context(|| format!("`{item}` has no labels"))?.clone();
        let known = |class: &u8| (1..=params.n_classes).contains(&i64::from(*class));
        ensure!(labels.iter().all(known), "`{item}`: labels {labels:?} are not all in 1..={}", params.n_classes);
        let crop = transform.apply_image(&image, Some(&jitter));
        Ok(Sample { labels, transform, crop, se_map, embedding })
    }
}
