//! Backbone, DeepLab head, losses and optimiser against PyTorch: `tests/golden/train/make.py`.

use std::path::Path;

use s2c_pipe::data::rng::stream;
use s2c_pipe::model::Compute;
use s2c_pipe::model::backbone::{Architecture, BackboneConfig};
use s2c_pipe::model::conv::channels_last;
use s2c_pipe::model::deeplab::{DeepLab, DeepLabConfig, HeadKind, segmentation};
use s2c_pipe::model::loss::{AbsentClass, classification, cpm};
use s2c_pipe::model::optim::{Sgd, SgdOptions};
use s2c_pipe::model::resnet::{Depth, Resnet, ResnetConfig, StrideIn};
use s2c_pipe::model::seam::{Pcm, cross_regularization, equivariance};
use s2c_pipe::model::ssc::{SscOptions, ssc};
use s2c_pipe::model::weights::{Weights, to_safetensors};
use tch::{Device, Kind, Tensor};

use crate::close::{EXACT, assert_same_slope, slices};
use crate::device::{device, there};

pub(crate) fn file(name: &str) -> Weights {
    Weights::parse(std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap()).unwrap()
}

fn golden() -> Weights {
    file("tests/golden/train/golden.safetensors")
}

pub(crate) fn resnet50() -> Weights {
    file("pipelines/weights/resnet50_v1.f16.safetensors")
}

fn wave(shape: &[i64], step: f64) -> Tensor {
    let angles = Tensor::arange(shape.iter().product::<i64>(), (Kind::Double, Device::Cpu)) * step;
    there(&angles.sin().to_kind(Kind::Float).view(shape))
}

/// What is stored under a name: see [`crate::close::assert_close`].
#[track_caller]
pub(crate) fn assert_close(golden: &Weights, name: &str, found: &Tensor, tolerance: f64) {
    crate::close::assert_close(&golden.raw(name).unwrap(), name, found, tolerance);
}

#[test]
fn backbone_and_its_gradients_agree_with_torchvision() {
    let (golden, weights) = (golden(), resnet50());
    let image = wave(&[2, 3, 96, 64], 0.37);
    for (name, stride_in) in [("v1", StrideIn::Conv1), ("v1.5", StrideIn::Conv2)] {
        for output_stride in [8, 16] {
            let name = format!("resnet.{name}.{output_stride}");
            let [exact, rounded] = [(Compute::F64, EXACT), (Compute::F32, 1e-3)].map(|(compute, tolerance)| {
                let config = ResnetConfig { depth: Depth::D50, stride_in, output_stride, compute, device: device() };
                let net = Resnet::load(&weights, &config).unwrap();
                let feat = net.forward(&image);
                assert_close(&golden, &format!("{name}.feat"), &slices(&feat, 256), tolerance);
                feat.square().mean(feat.kind()).backward();
                // Folded for inference it is the same network.
                let folded = tch::no_grad(|| net.folded().forward(&channels_last(&image)));
                assert_close(&golden, &format!("{name}.feat"), &slices(&folded.contiguous(), 256), tolerance);
                net.trained().into_iter().map(|(part, weight)| (part, weight.grad())).collect::<Vec<_>>()
            });
            let n_golden = golden.names().filter(|known| known.starts_with(&format!("{name}.grad."))).count();
            assert_eq!(exact.len(), n_golden);
            for (part, gradient) in &exact {
                assert_close(&golden, &format!("{name}.grad.{part}"), &slices(gradient, 8), EXACT);
            }
            assert_same_slope(&name, &rounded, &exact);
        }
    }
}

#[test]
fn the_head_of_deeplab_is_the_sum_of_its_branches() {
    let weights = resnet50();
    let mut tensors: Vec<(String, Tensor)> =
        weights.names().map(|name| (name.to_owned(), weights.raw(name).unwrap())).collect();
    for i in 0..4 {
        let (weight, bias) = (wave(&[3, 2048, 3, 3], 0.11 + f64::from(i)) * 0.01, wave(&[3], 0.5 + f64::from(i)));
        tensors.push((format!("head.aspp.{i}.weight"), weight));
        tensors.push((format!("head.aspp.{i}.bias"), bias));
    }
    let bytes = to_safetensors(tensors.iter().map(|(name, tensor)| (name.as_str(), tensor))).unwrap();
    let weights = Weights::parse(bytes.as_slice()).unwrap();
    let architecture = Architecture::Resnet(Depth::D50, StrideIn::Conv1);
    let image = wave(&[2, 3, 96, 64], 0.37);
    for (compute, tolerance) in [(Compute::F64, EXACT), (Compute::F32, 1e-3)] {
        let backbone = BackboneConfig { architecture, output_stride: 16, compute, device: device() };
        let config = DeepLabConfig { backbone, head: HeadKind::AsppV2, n_labels: 3 };
        let model = DeepLab::load(&weights, &config, &mut stream(0, 0, "", "")).unwrap();
        let logits = tch::no_grad(|| model.forward(&image, None));
        assert_close(&golden(), "deeplab.logits", &slices(&logits, 64), tolerance);
        let inferred = model.folded().infer(&image);
        assert_close(&golden(), "deeplab.logits", &slices(&inferred.contiguous(), 64), tolerance);
    }
}

fn value_and_grad(input: &Tensor, loss: impl Fn(&Tensor) -> Tensor) -> (Tensor, Tensor) {
    let input = input.detach().copy().set_requires_grad(true);
    let value = loss(&input);
    value.backward();
    (value.detach().view(1), input.grad())
}

#[test]
fn losses_and_their_gradients_agree_with_their_equations() {
    let golden = golden();
    let check = |name: &str, (value, grad): (Tensor, Tensor)| {
        assert_close(&golden, &format!("{name}.value"), &value, 1e-5);
        assert_close(&golden, &format!("{name}.grad"), &grad, 1e-4);
    };
    let labels = there(&Tensor::from_slice(&[1.0f32, 0.0, 1.0, 0.0, 1.0, 0.0]).view([2, 3]));
    check("cls", value_and_grad(&(wave(&[2, 3, 6, 5], 0.7) * 2.0), |cam| classification(cam, &labels)));

    let places = Tensor::arange(2 * 24 * 20, (Kind::Int64, device())).view([2, 24, 20]);
    let divided = |by: i64, times: i64| (&places * times).floor_divide_scalar(by).remainder(5);
    let ids = divided(50, 7);
    for temperature in [0.5, 0.1] {
        for (proto_stopgrad, unassigned_negative) in [(true, true), (true, false), (false, true), (false, false)] {
            let options = SscOptions { temperature, proto_stopgrad, unassigned_negative, ..SscOptions::PAPER };
            let found = value_and_grad(&(wave(&[2, 8, 6, 5], 0.3) + 1.1), |feat| ssc(feat, &ids, &options).unwrap());
            let name = format!("ssc.{temperature}.{}.{}", i32::from(proto_stopgrad), i32::from(unassigned_negative));
            check(&name, found);
        }
    }
    assert!(ssc(&wave(&[2, 8, 6, 5], 0.3), &ids.zeros_like(), &SscOptions::PAPER).is_none());

    let pseudo = divided(40, 3);
    let pseudo = pseudo.masked_fill(&pseudo.eq(4), 255);
    check(
        "cpm",
        value_and_grad(&(wave(&[2, 3, 6, 5], 0.9) * 3.0), |cam| cpm(cam, &labels, &pseudo, AbsentClass::Zero).unwrap()),
    );
    assert!(cpm(&wave(&[2, 3, 6, 5], 0.9), &labels, &pseudo.full_like(255), AbsentClass::Zero).is_none());
    let (cam, small_cam) = (wave(&[2, 3, 10, 8], 0.9) * 3.0, wave(&[2, 3, 3, 2], 0.4) * 3.0);
    check("er", value_and_grad(&cam, |cam| equivariance(cam, &small_cam, &labels)));
    let (_, grad) = value_and_grad(&small_cam, |small| equivariance(&cam, small, &labels));
    assert_close(&golden, "er.small.grad", &grad, 1e-4);
    let (revised, small_revised) = (wave(&[2, 4, 9, 7], 0.6) + 1.2, wave(&[2, 4, 5, 4], 1.7) + 1.2);
    let ecr = |revised: &Tensor, small: &Tensor| cross_regularization([&cam, &small_cam], [revised, small], &labels);
    check("ecr", value_and_grad(&revised, |revised| ecr(revised, &small_revised)));
    let (_, grad) = value_and_grad(&small_revised, |small| ecr(&revised, small));
    assert_close(&golden, "ecr.small.grad", &grad, 1e-4);
    let logits = wave(&[2, 4, 6, 5], 0.4) * 2.0;
    check("seg", value_and_grad(&logits, |logits| segmentation(logits, &pseudo).unwrap()));
    assert!(segmentation(&logits, &pseudo.full_like(255)).is_none());
}

#[test]
fn pixels_that_look_alike_are_drawn_together_as_in_the_script() {
    let golden = golden();
    let layers = [("f8_3", [64, 6, 1, 1], 0.7), ("f8_4", [128, 10, 1, 1], 0.31), ("f9", [192, 195, 1, 1], 0.13)];
    let layers = layers.map(|(name, shape, step)| (format!("head.pcm.{name}.weight"), wave(&shape, step) * 0.3));
    let bytes = to_safetensors(layers.iter().map(|(name, weight)| (name.as_str(), weight))).unwrap();
    let weights = Weights::parse(bytes.as_slice()).unwrap();
    let pcm = Pcm::load(&weights, [6, 10], device(), &mut stream(0, 0, "", "")).unwrap();
    let (cam, image) = (wave(&[2, 3, 3, 4], 0.9) * 3.0, wave(&[2, 3, 24, 32], 0.37));
    let sides = [wave(&[2, 6, 6, 8], 0.23), wave(&[2, 10, 3, 4], 0.51)];
    let revised = pcm.forward(&cam, &image, &sides);
    assert_close(&golden, "pcm.revised", &revised, 1e-5);
    (&revised * wave(&[2, 4, 6, 8], 0.77)).sum(Kind::Float).backward();
    for (i, ((name, _), (trained, weight))) in layers.iter().zip(pcm.trained()).enumerate() {
        assert_eq!(*name, trained);
        assert_close(&golden, &format!("pcm.grad.{i}"), &slices(&weight.grad(), 256), 1e-3);
    }
}

#[test]
fn sgd_steps_as_pytorch_and_its_checkpoint_goes_on() {
    let value = wave(&[10], 0.5).set_requires_grad(true);
    let options = SgdOptions { head_lr_mult: 1.0, momentum: 0.9, weight_decay: 5e-4 };
    let none = Weights::parse(to_safetensors([]).unwrap()).unwrap();
    let mut weights = none;
    let mut value = value;
    // Each step from the checkpoint of the one before.
    for _ in 0..2 {
        let trained = vec![("value".to_owned(), value.shallow_clone())];
        let mut sgd = Sgd::load(trained, &weights, options).unwrap();
        let gradient = sgd.gradient(&(&value * &value * &value).sum(Kind::Float));
        sgd.step(&gradient, 0.1);
        weights = Weights::parse(sgd.checkpoint(Vec::new(), Vec::new()).unwrap()).unwrap();
        value = there(&weights.get("value", &[10]).unwrap()).set_requires_grad(true);
    }
    assert_close(&golden(), "sgd", &value, 1e-6);
}
