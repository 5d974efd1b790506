//! Training by S2C, `L = L_CLS + L_SSC + L_CPM` (paper, section 3): a step over a batch that may come in parts.

use anyhow::Context;
use tch::{Kind, Tensor};

use super::classifier::Classifier;
use super::cpm::{CpmImage, CpmOptions, pseudo_map, scaled, window_frame};
use super::loss::{self, AbsentClass};
use super::memory::{read_all, send};
use super::optim::{Gradient, Sgd};
use super::resnet38::Dropout;
use super::sam::{SamDecoder, SamEncoder};
use super::seam;
use super::ssc::{SscOptions, ssc};
use crate::data::augment::Transform;

/// The losses beside L_CLS, each with its weight; `None`: off.
#[derive(Clone, Debug, Default)]
pub struct S2cOptions {
    pub ssc: Option<(SscOptions, SscOn, f64)>,
    pub cpm: Option<(CpmOptions, AbsentClass, f64)>,
    /// SEAM's equivariance, at this scale; a classifier with its module learns L_ECR as well.
    pub equivariance: Option<(f64, f64)>,
}

/// What SSC draws together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SscOn {
    /// Features (paper).
    Feat,
    /// CAM logits.
    Cam,
}

/// Images that go through the network together.
#[derive(Debug)]
pub struct S2cBatch {
    /// `(B, 3, H, W)` normalised.
    pub crops: Tensor,
    /// `(B, C)` 0 or 1, float.
    pub labels: Tensor,
    /// With SSC, `(B, H, W)` int64, 0 = no segment.
    pub se_map: Option<Tensor>,
    /// With CPM, one for each image.
    pub images: Vec<S2cImage>,
    /// See [`Classifier::dropout`].
    pub dropout: Option<Dropout>,
}

/// What CPM knows of an image.
#[derive(Debug)]
pub struct S2cImage {
    /// Channels of its classes, from 0.
    pub channels: Vec<i64>,
    pub transform: Transform,
    /// `(1, 256, 64, 64)` of the full image; `None`: the encoder makes that of the crop.
    pub embedding: Option<Tensor>,
}

impl S2cBatch {
    /// Its tensors should be [`super::memory::pinned`].
    pub fn to_device(&self, device: tch::Device) -> Self {
        let there = |x: &Tensor| send(x, device);
        let image = |S2cImage { channels, transform, embedding }: &S2cImage| S2cImage {
            channels: channels.clone(),
            transform: *transform,
            embedding: embedding.as_ref().map(there),
        };
        Self {
            crops: there(&self.crops),
            labels: there(&self.labels),
            se_map: self.se_map.as_ref().map(there),
            images: self.images.iter().map(image).collect(),
            dropout: self.dropout.as_ref().map(|Dropout { masks }| Dropout { masks: masks.each_ref().map(there) }),
        }
    }

    /// Pixels that CPM teaches.
    fn n_taught(&self, cpm: &CpmOptions) -> i64 {
        let outside = |transform: &Transform| transform.padding().into_iter().filter(|is_padding| *is_padding).count();
        let of = |S2cImage { transform, .. }: &S2cImage| {
            transform.crop.pow(2) - if cpm.ignore_padding { outside(transform) } else { 0 }
        };
        self.images.iter().map(of).sum::<usize>() as i64
    }
}

/// A classifier and what moves it.
pub struct S2cTraining<'a> {
    pub classifier: Classifier,
    pub sgd: Sgd,
    /// With CPM.
    pub decoder: Option<&'a SamDecoder>,
    /// Where CPM encodes crops.
    pub encoder: Option<&'a SamEncoder>,
    pub options: S2cOptions,
}

/// What a step saw.
#[derive(Clone, Debug, PartialEq)]
pub struct S2cLosses {
    pub cls: f64,
    /// `None`: off, or nothing to learn from.
    pub ssc: Option<f64>,
    pub cpm: Option<f64>,
    pub equivariance: Option<f64>,
    pub ecr: Option<f64>,
    /// Of the gradients of all tensors.
    pub grad_norm: f64,
}

impl S2cLosses {
    pub fn is_finite(&self) -> bool {
        let Self { cls, ssc, cpm, equivariance, ecr, grad_norm } = *self;
        [Some(cls), ssc, cpm, equivariance, ecr, Some(grad_norm)].into_iter().flatten().all(f64::is_finite)
    }
}

impl S2cTraining<'_> {
    /// One step down the gradient; none where it is not finite.
    pub fn step(&mut self, parts: &[S2cBatch], lr: f64) -> anyhow::Result<S2cLosses> {
        let (S2cTerms { cls, ssc, cpm, equivariance, ecr }, gradient) = self.gradient(parts)?;
        let terms = [cls, ssc, cpm, equivariance, ecr];
        let is_there = terms.each_ref().map(Option::is_some);
        let scalars = terms.into_iter().flatten().chain([self.sgd.squares(&gradient)]);
        let mut values = read_all(&scalars.collect::<Vec<_>>()).into_iter();
        let [cls, ssc, cpm, equivariance, ecr] = is_there.map(|is_there| if is_there { values.next() } else { None });
        let (cls, grad_norm) = (cls.unwrap_or(f64::NAN), values.sum::<f64>().sqrt());
        let losses = S2cLosses { cls, ssc, cpm, equivariance, ecr, grad_norm };
        if losses.is_finite() {
            self.sgd.step(&gradient, lr);
        }
        Ok(losses)
    }

    /// Of the loss of all `parts` together.
    ///
    /// Each term is a mean over images or pixels of the whole: a part counts by how many of them it has, so the gradient
    /// of k parts is, but for rounding, that of one batch; unless SSC has prototypes of other images in it, or
    /// counts ids that an image lacks.
    fn gradient(&self, parts: &[S2cBatch]) -> anyhow::Result<(S2cTerms, Gradient)> {
        let options = &self.options;
        let of_cls = shares(parts, |_, part| part.crops.size()[0]);
        let of_ssc = shares(parts, |_, part| part.se_map.as_ref().map_or(0, |ids| n_true(&ids.gt(0))));
        let of_cpm = shares(parts, |_, part| options.cpm.as_ref().map_or(0, |(cpm, ..)| part.n_taught(cpm)));

        let (mut terms, mut gradient) = (S2cTerms::default(), None);
        for (i, part) in parts.iter().enumerate() {
            let classifier = self.classifier.ready();
            let output = classifier.forward(&part.crops, part.dropout.as_ref());
            let pseudo = self.pseudo_map(&classifier, part, &output.cam)?;
            let cls = loss::classification(&output.cam, &part.labels) * of_cls[i];
            let ssc = options.ssc.as_ref().zip(part.se_map.as_ref()).and_then(|((options, on, weight), ids)| {
                let drawn = if *on == SscOn::Feat { &output.feat } else { &output.cam };
                Some((ssc(drawn, ids, options)? * of_ssc[i], *weight))
            });
            let cpm = options.cpm.as_ref().zip(pseudo.as_ref()).and_then(|((_, absent, weight), map)| {
                Some((loss::cpm(&output.cam, &part.labels, map, *absent)? * of_cpm[i], *weight))
            });
            // Its weights are folded anew: through one folding the sum of both gradients would round otherwise.
            let small = options.equivariance.map(|(scale, weight)| {
                (self.classifier.forward(&scaled(&part.crops, scale), part.dropout.as_ref()), weight)
            });
            let equivariance = small.as_ref().map(|(small, weight)| {
                (seam::equivariance(&output.cam, &small.cam, &part.labels) * of_cls[i], *weight)
            });
            let ecr = small.as_ref().and_then(|(small, weight)| {
                let (cams, revised) = ([&output.cam, &small.cam], [output.revised.as_ref()?, small.revised.as_ref()?]);
                Some((seam::cross_regularization(cams, revised, &part.labels) * of_cls[i], *weight))
            });
            let more = [&ssc, &cpm, &equivariance, &ecr].into_iter().flatten();
            let loss = more.fold(cls.shallow_clone(), |loss, (term, weight)| loss + term * *weight);
            gradient = Some(self.sgd.gradient(&loss).plus(gradient));
            add(&mut terms.cls, &cls);
            ssc.iter().for_each(|(term, _)| add(&mut terms.ssc, term));
            cpm.iter().for_each(|(term, _)| add(&mut terms.cpm, term));
            equivariance.iter().for_each(|(term, _)| add(&mut terms.equivariance, term));
            ecr.iter().for_each(|(term, _)| add(&mut terms.ecr, term));
        }
        Ok((terms, gradient.context("a step of no images")?))
    }

    /// CPM's, where it is on.
    ///
    /// - `cam`: logits of the part
    fn pseudo_map(&self, classifier: &Classifier, part: &S2cBatch, cam: &Tensor) -> anyhow::Result<Option<Tensor>> {
        let (Some((cpm, ..)), Some(decoder)) = (&self.options.cpm, self.decoder) else { return Ok(None) };
        let image = |(i, image): (usize, &S2cImage)| {
            let S2cImage { channels, transform, embedding } = image;
            let online = || Some(self.encoder?.embed_frame(&window_frame(&part.crops.get(i as i64))));
            let embedding = embedding.as_ref().map(Tensor::shallow_clone).or_else(online).context("no embedding")?;
            anyhow::Ok(CpmImage { channels: channels.clone(), transform: *transform, embedding })
        };
        let images = part.images.iter().enumerate().map(image).collect::<anyhow::Result<Vec<_>>>()?;
        // Dropout hides a part of the network from the step's own CAM.
        let known = part.dropout.is_none().then_some(cam);
        pseudo_map(classifier, decoder, &part.crops, known, &images, cpm).map(Some)
    }
}

/// The terms of a loss, scalars without gradients; `None`: off, or nothing to learn from.
#[derive(Debug, Default)]
struct S2cTerms {
    cls: Option<Tensor>,
    ssc: Option<Tensor>,
    cpm: Option<Tensor>,
    equivariance: Option<Tensor>,
    ecr: Option<Tensor>,
}

/// Of a mean over all parts, how much the mean of each one is; counts are not looked at where there is one part.
pub fn shares<T>(parts: &[T], count: impl Fn(usize, &T) -> i64) -> Vec<f64> {
    if let [_] = parts {
        return vec![1.0];
    }
    let counts: Vec<i64> = parts.iter().enumerate().map(|(i, part)| count(i, part)).collect();
    let all = counts.iter().sum::<i64>().max(1) as f64;
    counts.iter().map(|&count| count as f64 / all).collect()
}

pub fn n_true(mask: &Tensor) -> i64 {
    mask.sum(Kind::Int64).int64_value(&[])
}

/// Summed into a new tensor.
pub fn add(sum: &mut Option<Tensor>, term: &Tensor) {
    let term = term.detach();
    *sum = Some(sum.take().map_or_else(|| term.shallow_clone(), |sum| sum + &term));
}
