//! Our side of `make bench-train`: speaks the protocol of `reference.py`, with embeddings made once, as in a run.

#![allow(clippy::print_stdout, reason = "answers go to stdout")]

#[path = "../common/worker.rs"]
mod worker;

use std::fs;

use anyhow::{Context, bail};
use s2c_pipe::data::augment::Transform;
use s2c_pipe::data::rng::stream;
use s2c_pipe::model::Compute;
use s2c_pipe::model::backbone::{Architecture, BackboneConfig};
use s2c_pipe::model::classifier::{Classifier, ClassifierConfig};
use s2c_pipe::model::cpm::{
    CpmOptions, MapOptions, MaskPick, Pointing, PromptKind, PromptOptions, SamCertainty, SamOptions,
};
use s2c_pipe::model::loss::AbsentClass;
use s2c_pipe::model::memory::pinned;
use s2c_pipe::model::optim::{Sgd, SgdOptions};
use s2c_pipe::model::resnet::{Depth, StrideIn};
use s2c_pipe::model::s2c::{S2cBatch, S2cImage, S2cOptions, S2cTraining, SscOn};
use s2c_pipe::model::sam::mask_decoder::MaskChoice;
use s2c_pipe::model::sam::{SamDecoder, SamEncoder};
use s2c_pipe::model::ssc::{SscOptions, ssc};
use s2c_pipe::model::weights::Weights;
use s2c_pipe::stage;
use s2c_pipe::vision::Rgb;
use s2c_pipe::vision::peaks::{FirstPeak, PeakRules};
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

use self::worker::{memory, number, read, serve, text, timed};

const CLASSES: usize = 20;
const FEAT: i64 = 256;
const LR: f64 = 1e-4;

struct Loaded {
    training: S2cTraining<'static>,
    /// As the loader makes it.
    batch: S2cBatch,
    device: Device,
}

fn device(asked: &Value) -> anyhow::Result<Device> {
    let device = if text(asked, "device")? == "cuda" { stage::Device::Cuda(0) } else { stage::Device::Cpu };
    Ok(device.torch())
}

/// A GPU works on when asked for nothing: until it is done.
fn finished(device: Device) {
    if let Device::Cuda(index) = device {
        tch::Cuda::synchronize(index as i64);
    }
}

/// Stripes, slopes and tiles, in whole numbers.
fn picture(i: usize, side: usize) -> Rgb {
    let value = |at: usize| {
        let (y, x, c) = (at / 3 / side, at / 3 % side, at % 3);
        ((x * (3 + i) / 7 + y * (5 + 2 * c) / 9 + (x / 32 + y / 32 + i) % 2 * 90) % 256) as u8
    };
    Rgb { height: side, width: side, data: (0..side * side * 3).map(value).collect() }
}

fn classes(i: usize) -> Vec<usize> {
    let first = i % CLASSES;
    if i.is_multiple_of(2) { vec![first, (i * 7 + 3) % CLASSES] } else { vec![first] }
}

/// Tiles of 32 pixels, and strips in none.
fn se_map(n: usize, side: usize) -> Tensor {
    let id = |at: usize| {
        let (y, x) = (at / side, at % side);
        if x % 32 < 3 { 0 } else { (1 + y / 32 * side.div_ceil(32) + x / 32) as i64 }
    };
    let one: Vec<i64> = (0..side * side).map(id).collect();
    Tensor::from_slice(&one.repeat(n)).view([n as i64, side as i64, side as i64])
}

fn load(asked: &Value, compute: Compute) -> anyhow::Result<Loaded> {
    let (n, side) = (number(asked, "batch")? as usize, number(asked, "side")? as usize);
    let (sam, start) = (Weights::parse(read(asked, "sam")?)?, Weights::parse(read(asked, "start")?)?);
    let device = device(asked)?;
    let decoder: &'static SamDecoder = Box::leak(Box::new(SamDecoder::load(&sam, device, compute)?));
    let encoder = SamEncoder::load(&sam, device, compute)?;
    let architecture = Architecture::Resnet(Depth::D50, StrideIn::Conv1);
    let backbone = BackboneConfig { architecture, output_stride: 16, compute, device };
    let config = ClassifierConfig { backbone, feat_dim: FEAT, n_classes: CLASSES as i64, with_pcm: false };
    let classifier = Classifier::load(&start, &config, &mut stream(0, 0, "", "head"))?;
    let sgd = SgdOptions { head_lr_mult: 10.0, momentum: 0.9, weight_decay: 5e-4 };
    let sgd = Sgd::load(classifier.trained(), &start, sgd)?;
    let rules = PeakRules { min_distance: 20, exclude_border: false, exact: true, first: FirstPeak::Dedup };
    let cpm = CpmOptions {
        scales: vec![0.5, 1.0, 1.5, 2.0],
        online: false,
        ignore_padding: true,
        sam: SamOptions {
            prompt: PromptOptions {
                kind: PromptKind::Points(rules),
                tau: 0.5,
                pointing: Pointing { by_height: false, centre: true },
                masks: MaskChoice::Multimask,
            },
            map: MapOptions {
                pick: MaskPick::Index(2),
                two_paths: false,
                alpha_sam: SamCertainty::Logit,
                alpha_cam_mean: true,
            },
        },
    };
    let options = S2cOptions {
        ssc: Some((SscOptions::PAPER, SscOn::Feat, 1.0)),
        cpm: Some((cpm, AbsentClass::Zero, 1.0)),
        equivariance: None,
    };

    let size = (side, side);
    let transform = Transform { image: size, resized: size, flip: false, crop: side, offset: (0, 0) };
    let mut crops = Vec::new();
    let mut images = Vec::new();
    let mut labels = vec![0f32; n * CLASSES];
    for i in 0..n {
        let picture = picture(i, side);
        let classes = classes(i);
        classes.iter().for_each(|class| labels[i * CLASSES + class] = 1.0);
        crops.extend(transform.apply_image(&picture, None));
        let channels = classes.iter().map(|&class| class as i64).collect();
        images.push(S2cImage {
            channels,
            transform,
            embedding: Some(pinned(encoder.embed(&picture).to_device(Device::Cpu), device)),
        });
    }
    let batch = S2cBatch {
        crops: pinned(Tensor::from_slice(&crops).view([n as i64, 3, side as i64, side as i64]), device),
        labels: pinned(Tensor::from_slice(&labels).view([n as i64, CLASSES as i64]), device),
        se_map: Some(pinned(se_map(n, side), device)),
        images,
        dropout: None,
    };
    let training = S2cTraining { classifier, sgd, decoder: Some(decoder), encoder: None, options };
    Ok(Loaded { training, batch, device })
}

/// Value and gradient of L_SSC alone.
fn ssc_alone(asked: &Value) -> anyhow::Result<Value> {
    let (n, side) = (number(asked, "batch")? as usize, number(asked, "side")? as usize);
    let grid = side as i64 / 16;
    let places = Tensor::arange(n as i64 * FEAT * grid * grid, (Kind::Double, Device::Cpu));
    let feat = ((places * 0.37).sin() + 1.1).to_kind(Kind::Float).view([n as i64, FEAT, grid, grid]);
    let device = device(asked)?;
    let (feat, ids) = (feat.to_device(device).set_requires_grad(true), se_map(n, side).to_device(device));
    fs::write("/proc/self/clear_refs", "5")?; // VmHWM starts again
    let before = memory("VmRSS")?;
    let (seconds, value) = timed(|| {
        let loss = ssc(&feat, &ids, &SscOptions::PAPER).context("no segment")?;
        loss.backward();
        Ok(f64::try_from(loss)?)
    })?;
    let grad = f64::try_from(feat.grad().norm())?;
    Ok(json!({ "seconds": seconds, "ssc": value, "grad_norm": grad, "grown_mib": memory("VmHWM")? - before }))
}

fn main() -> anyhow::Result<()> {
    let compute = if std::env::args().any(|arg| arg == "bf16") { Compute::Bf16 } else { Compute::F32 };
    let mut loaded = None;
    serve(|what, asked| match what {
        "load" => {
            loaded = Some(load(asked, compute)?);
            Ok(json!({}))
        }
        "step" => {
            let Loaded { training, batch, device } = loaded.as_mut().context("nothing is loaded")?;
            let (seconds, losses) = timed(|| {
                let losses = training.step(&[batch.to_device(*device)], LR)?;
                finished(*device);
                Ok(losses)
            })?;
            Ok(json!({ "seconds": seconds, "cls": losses.cls, "ssc": losses.ssc, "cpm": losses.cpm }))
        }
        "ssc" => ssc_alone(asked),
        other => bail!("unknown `{other}`"),
    })
}
