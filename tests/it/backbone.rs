//! The backbones against torchvision and a plain ResNet38d: `tests/golden/backbone/make.py`.

use std::collections::BTreeMap;

use s2c_pipe::model::Compute;
use s2c_pipe::model::backbone::{Architecture, Backbone, BackboneConfig};
use s2c_pipe::model::conv::channels_last;
use s2c_pipe::model::known::recognise;
use s2c_pipe::model::resnet::{Depth, StrideIn};
use s2c_pipe::model::resnet38::Dropout;
use s2c_pipe::model::weights::{Format, Weights, to_safetensors};
use tch::{Kind, Tensor};

use crate::close::{EXACT, assert_same_slope, slices};
use crate::device::{device, there};
use crate::train::{assert_close, file};

/// By name of the network, the shapes of its tensors.
pub(crate) type Shapes = BTreeMap<String, BTreeMap<String, Vec<i64>>>;

pub(crate) fn golden() -> (Weights, Shapes) {
    let golden = file("tests/golden/backbone/golden.safetensors");
    let shapes = Vec::<u8>::try_from(golden.raw("shapes").unwrap()).unwrap();
    (golden, serde_json::from_slice(&shapes).unwrap())
}

/// In -1..1, from a hash of the place in the tensor and the tensor's name.
fn uniform(name: &str, shape: &[i64]) -> Tensor {
    let salt = crc32fast::hash(name.as_bytes());
    let value = |i: u32| {
        let x = i.wrapping_mul(2654435761).wrapping_add(salt);
        let x = (x ^ (x >> 15)).wrapping_mul(2246822519);
        let x = x ^ (x >> 13);
        (x >> 8) as f32 * 2f32.powi(-23) - 1.0
    };
    let values: Vec<f32> = (0..shape.iter().product::<i64>() as u32).map(value).collect();
    Tensor::from_slice(&values).view(shape)
}

pub(crate) fn weight(name: &str, shape: &[i64]) -> Tensor {
    let of = uniform(name, shape);
    match shape {
        [_, fan_in @ ..] if shape.len() == 4 => {
            of * f64::from((3.0 / fan_in.iter().product::<i64>() as f64).sqrt() as f32)
        }
        _ if name.ends_with("running_var") => of * 0.5 + 1.0,
        _ => of * 0.25 + if name.ends_with("weight") { 1.0 } else { 0.0 },
    }
}

/// The checkpoint of a network, as PyTorch names its tensors.
pub(crate) fn checkpoint(shapes: &BTreeMap<String, Vec<i64>>) -> Weights {
    let tensors: Vec<_> = shapes.iter().map(|(name, shape)| (name.as_str(), weight(name, shape))).collect();
    Weights::parse(to_safetensors(tensors.iter().map(|(name, tensor)| (*name, tensor))).unwrap()).unwrap()
}

fn image() -> Tensor {
    there(&(uniform("image", &[2, 3, 64, 48]) * 2.0))
}

fn load(weights: &Weights, architecture: Architecture, output_stride: i64) -> Backbone {
    load_as(Compute::F32, weights, (architecture, output_stride))
}

fn load_as(compute: Compute, weights: &Weights, (architecture, output_stride): (Architecture, i64)) -> Backbone {
    let config = BackboneConfig { architecture, output_stride, compute, device: device() };
    Backbone::load(weights, &config).unwrap()
}

/// Features and the gradient of every trained tensor: of the network as it is and, in f32 alone, ready for several passes.
/// Features of what is folded for inference.
fn check(golden: &Weights, case: &str, (weights, of): (&Weights, (Architecture, i64)), dropout: Option<&Dropout>) {
    let [exact, rounded] = [(Compute::F64, EXACT), (Compute::F32, 1e-4)].map(|(compute, tolerance)| {
        let net = load_as(compute, weights, of);
        let ready = (compute == Compute::F32).then(|| net.ready());
        let gradients = [&net].into_iter().chain(&ready).map(|net| {
            let feat = net.forward(&image(), dropout);
            assert_eq!(feat.size()[1], net.n_features(), "{case}");
            assert_close(golden, &format!("{case}.feat"), &slices(&feat, 128), tolerance);
            gradients(net, &feat.square().mean(feat.kind())).into_iter().collect::<Vec<_>>()
        });
        let gradients: Vec<Vec<(String, Tensor)>> = gradients.collect();
        if dropout.is_none() {
            check_folded(golden, case, &net, tolerance);
        }
        gradients
    });
    let of_case = format!("{case}.grad.");
    assert_eq!(exact[0].len(), golden.names().filter(|name| name.starts_with(&of_case)).count(), "{case}");
    for (name, gradient) in &exact[0] {
        assert_close(golden, &format!("{of_case}{name}"), &slices(gradient, 8), EXACT);
    }
    rounded.iter().for_each(|rounded| assert_same_slope(case, rounded, &exact[0]));
}

fn gradients(net: &Backbone, loss: &Tensor) -> BTreeMap<String, Tensor> {
    let (names, weights): (Vec<String>, Vec<Tensor>) = net.trained().into_iter().unzip();
    names.into_iter().zip(Tensor::run_backward(&[loss], &weights, false, false)).collect()
}

/// Passes over weights that are folded once have the gradient of passes that fold them each.
#[test]
fn gradients_of_several_passes_go_through_weights_folded_once() {
    let (_, shapes) = golden();
    let of = (Architecture::Resnet(Depth::D18, StrideIn::Conv2), 16);
    let net = load_as(Compute::F64, &checkpoint(&shapes["resnet18"]), of);
    let of_two = |net: &Backbone| {
        let loss = |image: &Tensor| net.forward(image, None).square().mean(Kind::Double);
        gradients(net, &(loss(&image()) + loss(&image().flip([3])) * 2.0))
    };
    let (apart, once) = (of_two(&net), of_two(&net.ready()));
    assert!(apart.len() > 10 && apart.keys().eq(once.keys()));
    for (name, grad) in &apart {
        crate::close::assert_close(grad, name, &once[name], EXACT);
    }
}

/// Folded for inference it is the same network.
fn check_folded(golden: &Weights, case: &str, net: &Backbone, tolerance: f64) {
    let feat = tch::no_grad(|| net.folded().forward(&channels_last(&image()), None));
    assert_close(golden, &format!("{case}.feat"), &slices(&feat.contiguous(), 128), tolerance);
}

#[test]
fn resnets_and_their_gradients_agree_with_torchvision() {
    let (golden, shapes) = golden();
    let nets: [(&str, Depth, &[_], &[_]); 3] = [
        ("resnet18", Depth::D18, &["resnet18"], &[("", StrideIn::Conv2)]),
        ("resnet34", Depth::D34, &["resnet34"], &[("", StrideIn::Conv2)]),
        (
            "resnet101",
            Depth::D101,
            &["resnet101", "resnet101v1"],
            &[("v1.5.", StrideIn::Conv2), ("v1.", StrideIn::Conv1)],
        ),
    ];
    for (name, depth, known, versions) in nets {
        let weights = checkpoint(&shapes[name]);
        assert_eq!(recognise(&weights).backbones, known);
        for (version, stride_in) in versions {
            for output_stride in [8, 16] {
                let case = format!("{name}.{version}{output_stride}");
                check(&golden, &case, (&weights, (Architecture::Resnet(depth, *stride_in), output_stride)), None);
            }
        }
    }
}

#[test]
fn weights_of_another_backbone_are_an_error() {
    let shapes = golden().1;
    let (small, large) = (checkpoint(&shapes["resnet18"]), checkpoint(&shapes["resnet34"]));
    let plain = |depth| Architecture::Resnet(depth, StrideIn::Conv2);
    let cases = [
        (&large, plain(Depth::D18), "weights for a ResNet-18: the checkpoint has more than 2 blocks in `layer1`"),
        (&small, plain(Depth::D34), "weights for a ResNet-34: the checkpoint has no tensor `layer1.2.conv1.weight`"),
        (&small, Architecture::Resnet38d, "weights for a ResNet38d: the checkpoint has no tensor `conv1a.weight`"),
    ];
    for (weights, architecture, expected) in cases {
        let config = BackboneConfig { architecture, output_stride: 8, compute: Compute::F32, device: device() };
        assert_eq!(format!("{:#}", Backbone::load(weights, &config).unwrap_err()), expected);
    }
}

/// Dilated, a network computes what it did, at more places (where the dilated convolution is the one with the stride).
#[test]
fn dilation_keeps_the_features_of_the_original() {
    let shapes = golden().1;
    for (name, depth) in [("resnet18", Depth::D18), ("resnet101", Depth::D101)] {
        let weights = checkpoint(&shapes[name]);
        let feat = |output_stride| {
            let net = load(&weights, Architecture::Resnet(depth, StrideIn::Conv2), output_stride);
            tch::no_grad(|| net.forward(&image(), None))
        };
        let original = feat(32);
        for (output_stride, step) in [(8, 4), (16, 2)] {
            let dilated = feat(output_stride).slice(2, None, None, step).slice(3, None, None, step);
            let off = (&dilated - &original).abs().max().double_value(&[]);
            let scale = original.abs().max().double_value(&[]);
            assert!(off <= 1e-4 * scale, "{name} at stride {output_stride}: off by {off:.2e} of {scale:.2e}");
        }
    }
}

/// The name in the MXNet file of a tensor of ResNet38d.
fn mxnet_name(name: &str) -> String {
    let (layer, part) = name.rsplit_once('.').unwrap();
    let (prefix, part) = match (part, layer.contains("bn")) {
        ("weight", false) => ("arg", "weight"),
        ("weight", true) => ("arg", "gamma"),
        ("bias", _) => ("arg", "beta"),
        ("running_mean", _) => ("aux", "moving_mean"),
        _ => ("aux", "moving_var"),
    };
    let layer = match layer.split_once('.') {
        None => layer.to_owned(),
        Some((block, layer)) => {
            let (kind, branch) = layer.split_once('_').unwrap();
            let kind = if kind == "conv" { "res" } else { kind };
            let block = match block.split_once('_') {
                None => format!("{}a", &block[1..]),
                Some((level, i)) => format!("{}b{i}", &level[1..]),
            };
            format!("{kind}{block}_{branch}")
        }
    };
    format!("{prefix}:{layer}_{part}")
}

/// A file of MXNet as it was in 2016.
fn mxnet_file(shapes: &BTreeMap<String, Vec<i64>>) -> Vec<u8> {
    let mut file = Vec::new();
    [0x112, 0, shapes.len() as u64].into_iter().for_each(|n| file.extend(n.to_le_bytes()));
    for (name, shape) in shapes {
        let sizes = shape.iter().map(|&size| size as u32);
        let device_and_type = [1, 0, 0];
        let head = [shape.len() as u32].into_iter().chain(sizes).chain(device_and_type);
        head.for_each(|n| file.extend(n.to_le_bytes()));
        let values = Vec::<f32>::try_from(weight(name, shape).view([-1])).unwrap();
        values.into_iter().for_each(|value| file.extend(value.to_le_bytes()));
    }
    file.extend((shapes.len() as u64).to_le_bytes());
    for name in shapes.keys().map(|name| mxnet_name(name)) {
        file.extend((name.len() as u64).to_le_bytes());
        file.extend(name.as_bytes());
    }
    file
}

#[test]
fn resnet38d_and_its_gradients_agree_with_pytorch() {
    let (golden, shapes) = golden();
    let shapes = &shapes["resnet38d"];
    // Without dropout from the file of MXNet, with it from one of PyTorch's names.
    let weights = Weights::parse(mxnet_file(shapes)).unwrap();
    assert_eq!((weights.format(), recognise(&weights).backbones), (Format::Mxnet, &["resnet38d"][..]));
    let of = (Architecture::Resnet38d, 8);
    check(&golden, "resnet38d", (&weights, of), None);

    let weights = checkpoint(shapes);
    let mask = |(name, channels): (&str, i64)| {
        there(&uniform(name, &[2, channels, 1, 1])).ge(-0.6).to_kind(Kind::Float) * 1.25
    };
    let masks = [("b6.0", 512), ("b6.1", 1024), ("b7.0", 1024), ("b7.1", 2048)].map(mask);
    check(&golden, "resnet38d.dropout", (&weights, of), Some(&Dropout { masks }));

    // What is saved is all of it, by the names it came with.
    let net = load(&weights, Architecture::Resnet38d, 8);
    let saved: Vec<_> = net.trained().into_iter().chain(net.frozen()).collect();
    let again =
        Weights::parse(to_safetensors(saved.iter().map(|(name, tensor)| (name.as_str(), tensor))).unwrap()).unwrap();
    assert!(again.names().eq(shapes.keys().map(String::as_str)));
    check_folded(&golden, "resnet38d", &load(&again, Architecture::Resnet38d, 8), 1e-4);
}
