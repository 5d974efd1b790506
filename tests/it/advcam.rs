//! AdvCAM against PyTorch: `tests/golden/advcam/make.py`.

use s2c_pipe::data::rng::stream;
use s2c_pipe::model::Compute;
use s2c_pipe::model::advcam::{AdvCamOptions, climbed_cam};
use s2c_pipe::model::backbone::{Architecture, BackboneConfig};
use s2c_pipe::model::classifier::{Classifier, ClassifierConfig};
use s2c_pipe::model::resnet::{Depth, StrideIn};
use s2c_pipe::model::weights::{Weights, to_safetensors};
use tch::{Device, Kind, Tensor};

use crate::close::EXACT;
use crate::device::{back, device, there};
use crate::train::{assert_close, file, resnet50};

fn wave(shape: &[i64], step: f64, size: f64) -> Tensor {
    let angles = Tensor::arange(shape.iter().product::<i64>(), (Kind::Double, Device::Cpu)) * step;
    (angles.sin() * size).to_kind(Kind::Float).view(shape)
}

fn classifier(compute: Compute) -> Classifier {
    let weights = resnet50();
    let backbone = weights.names().map(|name| (name.to_owned(), weights.raw(name).unwrap()));
    let head = [
        ("head.feat.weight".to_owned(), wave(&[256, 2048, 1, 1], 0.61, 0.02)),
        ("head.cam.weight".to_owned(), wave(&[20, 256, 1, 1], 1.3, 0.1)),
    ];
    let tensors: Vec<(String, Tensor)> = backbone.chain(head).collect();
    let bytes = to_safetensors(tensors.iter().map(|(name, tensor)| (name.as_str(), tensor))).unwrap();
    let architecture = Architecture::Resnet(Depth::D50, StrideIn::Conv1);
    let backbone = BackboneConfig { architecture, output_stride: 16, compute, device: device() };
    let config = ClassifierConfig { backbone, feat_dim: 256, n_classes: 20, with_pcm: false };
    Classifier::load(&Weights::parse(bytes.as_slice()).unwrap(), &config, &mut stream(0, 0, "", "head")).unwrap()
}

#[test]
fn an_image_climbs_as_in_the_script() {
    let golden = file("tests/golden/advcam/golden.safetensors");
    let image = wave(&[1, 3, 96, 64], 0.37, 1.5) + wave(&[1, 3, 96, 64], 0.0013, 0.7);
    let climb = |(classifier, numbers): (&Classifier, Kind), iterations: usize, change: &dyn Fn(&mut AdvCamOptions)| {
        let mut options = AdvCamOptions { iterations, step: 0.08, guard: 7.0, guard_threshold: 0.5 };
        change(&mut options);
        // Where it is called nothing records gradients.
        tch::no_grad(|| climbed_cam(classifier, &there(&image).to_kind(numbers), 3, &options)).view([6, 4])
    };
    let (plain, folded) = (classifier(Compute::F64), classifier(Compute::F64).folded());
    for steps in 0..5 {
        let name = format!("sum.{steps}");
        for classifier in [&plain, &folded] {
            assert_close(&golden, &name, &climb((classifier, Kind::Double), steps + 1, &|_| ()), EXACT);
        }
    }
    // In f32 steps grow apart: what one rounds is a hundred times as much two later.
    let rounded = classifier(Compute::F32).folded();
    for steps in 0..2 {
        assert_close(&golden, &format!("sum.{steps}"), &climb((&rounded, Kind::Float), steps + 1, &|_| ()), 1e-3);
    }
    let expected = golden.raw("sum.4").unwrap();
    for change in [
        (&|options: &mut AdvCamOptions| options.step = 0.04) as &dyn Fn(&mut AdvCamOptions),
        &|options| options.guard = 0.0,
        &|options| options.guard_threshold = 0.9,
    ] {
        let off = (back(&climb((&folded, Kind::Double), 5, change)) - &expected).abs().max() / expected.abs().max();
        assert!(f64::try_from(off).unwrap() > 1e-2);
    }
}
