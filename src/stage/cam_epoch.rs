//! `cam_epoch`: one epoch of the CAM classifier with L_CLS, L_SSC and L_CPM.

use std::collections::HashMap;

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::epoch::{EpochOptions, Members, Start, Trainer, batch_tensor, ensure_finite, train};
use super::params::{
    Backbone, Compute, IdCompaction, IdWidth, PadLabel, SscLevel, SscPrototypes, is_default, is_yes, yes,
};
use super::prompt::{AbsentClass, PromptParams, SamInput};
use super::sam_embed::read_embedding;
use super::{Loaded, Output, Stage, StageContext, UnitInput};
use crate::data::augment::{Jitter, Transform};
use crate::data::image::{decode_rgb, decode_se_map};
use crate::data::rng::stream;
use crate::model::classifier::{Classifier, ClassifierConfig};
use crate::model::cpm::{CpmImage, CpmOptions, pseudo_map, window_frame};
use crate::model::loss::{self, classification, cpm as cpm_loss};
use crate::model::optim::{Sgd, SgdOptions};
use crate::model::sam::{SamDecoder, SamEncoder};
use crate::model::ssc::{SscOptions, ssc};
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
    item: String,
    labels: Vec<u8>,
    transform: Transform,
    crop: Vec<f32>,
    se_map: Option<SeMap>,
    embedding: Option<Tensor>,
}

impl Stage for CamEpoch {
    const KIND: &'static str = "cam_epoch";
    // 1: first version
    // 2: CPM: prompts of unequal lengths are decoded apart, masks and peaks end where the padding begins
    // 3: CPM looks through convolutions in another memory order, which rounds otherwise
    // 4: `losses` has L_CLS where it had the sum of all
    // 5: prompts of a step are decoded some at a time, which rounds otherwise
    // 6: the same decoder as se_map 4; L_SSC without features at the size of the SE map: both round otherwise
    const VERSION: u64 = 6;
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
        let config = ClassifierConfig { backbone, feat_dim: params.feat_dim, n_classes: params.n_classes };
        let classifier = Classifier::load(&start.weights, &config, &mut stream(params.rng_seed, 0, "", "head"))?;
        let CamEpochParams { head_lr_mult, momentum, weight_decay, .. } = *params;
        let sgd = Sgd::load(classifier.trained(), &start.weights, SgdOptions { head_lr_mult, momentum, weight_decay })?;
        let mut trainer = CamTrainer { classifier, sgd, decoder, encoder, params, device };
        let items = Items::read(input, params)?;
        let CamEpochParams { epoch, epochs, rng_seed, batch_size, lr, .. } = *params;
        let options = EpochOptions { epoch, epochs, rng_seed, batch_size, lr };
        let sample = |item: &str| items.sample(item, params);
        train(&mut trainer, start, &items.images.items, sample, options, (input, context))
    }
}

struct CamTrainer<'a> {
    classifier: Classifier,
    sgd: Sgd,
    decoder: Option<&'a SamDecoder>,
    /// With `online_crop`.
    encoder: Option<&'a SamEncoder>,
    params: &'a CamEpochParams,
    device: tch::Device,
}

impl Trainer for CamTrainer<'_> {
    type Sample = Sample;
    type Row = StepLosses;

    fn step(&mut self, batch: &[Sample], lr: f64) -> anyhow::Result<StepLosses> {
        let Self { classifier, sgd, decoder, encoder, params, device } = self;
        let (params, device) = (*params, *device);
        let (n, side) = (batch.len() as i64, i64::from(params.crop));
        let crops = batch_tensor(batch.iter().map(|sample| &sample.crop), params.crop, device);
        let label = |sample: &Sample| {
            (1..=params.n_classes).map(|class| f32::from(sample.labels.contains(&(class as u8)))).collect::<Vec<_>>()
        };
        let labels: Vec<f32> = batch.iter().flat_map(label).collect();
        let labels = Tensor::from_slice(&labels).view([n, params.n_classes]).to_device(device);

        // CPM looks at the network before it moves.
        let pseudo = match (&params.cpm, decoder) {
            (Some(cpm), Some(decoder)) => {
                let image = |(i, sample): (usize, &Sample)| {
                    let online = encoder.map(|encoder| encoder.embed_frame(&window_frame(&crops.get(i as i64))));
                    cpm_image(sample, online, device)
                };
                let images: Vec<CpmImage> = batch.iter().enumerate().map(image).collect::<Result<_, _>>()?;
                Some(pseudo_map(classifier, decoder, &crops, &images, &cpm_options(cpm))?)
            }
            _ => None,
        };

        sgd.zero_grad();
        let streams = batch.iter().map(|of| stream(params.rng_seed, u64::from(params.epoch), &of.item, "dropout"));
        let output = classifier.forward(&crops, classifier.dropout(streams).as_ref());
        let cls = classification(&output.cam, &labels);
        let ssc = params.ssc.as_ref().and_then(|of| {
            let maps = batch.iter().filter_map(|sample| sample.se_map.as_ref());
            let ids: Vec<i64> = maps.flat_map(|map| &map.data).map(|&id| i64::from(id)).collect();
            let se_map = Tensor::from_slice(&ids).view([n, side, side]).to_device(device);
            let drawn = match of.level {
                SscLevel::Feature => &output.feat,
                SscLevel::Logit => &output.cam,
            };
            Some((ssc(drawn, &se_map, &ssc_options(of))?, of.weight))
        });
        let cpm = params.cpm.as_ref().zip(pseudo);
        let cpm = cpm.and_then(|(of, pseudo)| {
            let absent = match of.absent_class {
                AbsentClass::Zero => loss::AbsentClass::Zero,
                AbsentClass::NegInf => loss::AbsentClass::Out,
            };
            Some((cpm_loss(&output.cam, &labels, &pseudo, absent)?, of.weight))
        });
        // Summed into a new tensor: `+=` would write into `cls`.
        let more = [&ssc, &cpm].into_iter().flatten();
        let loss = more.fold(cls.shallow_clone(), |loss, (term, weight)| loss + term * *weight);
        loss.backward();
        let value = |loss: &Tensor| loss.to_kind(Kind::Double).double_value(&[]);
        let row = StepLosses {
            cls: value(&cls),
            ssc: ssc.map(|(term, _)| value(&term)),
            cpm: cpm.map(|(term, _)| value(&term)),
            lr,
            grad_norm: sgd.grad_norm(),
        };
        let items: Vec<&str> = batch.iter().map(|sample| sample.item.as_str()).collect();
        ensure_finite(&[value(&loss), row.grad_norm], &Self::describe(&row), &items, "classifier.lr")?;
        sgd.step(lr);
        Ok(row)
    }

    fn describe(row: &StepLosses) -> String {
        let term = |name: &str, value: Option<f64>| value.map_or(String::new(), |value| format!(" {name} {value:.3}"));
        format!("cls {:.3}{}{}", row.cls, term("ssc", row.ssc), term("cpm", row.cpm))
    }

    fn checkpoint(&self, more: Vec<(String, Tensor)>) -> anyhow::Result<Vec<u8>> {
        self.sgd.checkpoint(self.classifier.frozen(), more)
    }
}

/// `online`: the embedding of the crop, if it was made.
fn cpm_image(sample: &Sample, online: Option<Tensor>, device: tch::Device) -> anyhow::Result<CpmImage> {
    let embedding = match online {
        Some(embedding) => embedding,
        None => sample.embedding.as_ref().context("no embedding")?.to_device(device),
    };
    let channels = sample.labels.iter().map(|&class| i64::from(class) - 1).collect();
    Ok(CpmImage { channels, transform: sample.transform, embedding })
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
            Some(embeddings) => Some(read_embedding(embeddings.bytes(item)?)?.0),
            None => None,
        };
        let labels = self.labels.get(item).with_context(|| format!("`{item}` has no labels"))?.clone();
        let known = |class: &u8| (1..=params.n_classes).contains(&i64::from(*class));
        ensure!(labels.iter().all(known), "`{item}`: labels {labels:?} are not all in 1..={}", params.n_classes);
        let crop = transform.apply_image(&image, Some(&jitter));
        Ok(Sample { item: item.to_owned(), labels, transform, crop, se_map, embedding })
    }
}
