//! L_SSC and its switches against `tests/golden/ssc/make.py`: values and gradients to 1e-5.

use std::path::Path;

use s2c_pipe::data::augment::Transform;
use s2c_pipe::model::ssc::{SscOptions, ssc};
use s2c_pipe::model::weights::Weights;
use s2c_pipe::stage::cam_epoch::segment_window;
use s2c_pipe::stage::params::{IdCompaction, IdWidth};
use s2c_pipe::vision::{Grid, SeMap};
use tch::{Device, Kind, Tensor};

use crate::device::{back, device, there};

const TOLERANCE: f64 = 1e-5;

fn golden() -> Weights {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/ssc/golden.safetensors");
    Weights::parse(std::fs::read(path).unwrap()).unwrap()
}

fn wave(shape: &[i64], step: f64) -> Tensor {
    there(&(Tensor::arange(shape.iter().product::<i64>(), (Kind::Float, Device::Cpu)) * step).sin().view(shape))
}

fn value_and_grad(feat: &Tensor, ids: &Tensor, options: &SscOptions) -> (f64, Tensor) {
    let feat = feat.copy().set_requires_grad(true);
    let loss = ssc(&feat, ids, options).unwrap();
    loss.backward();
    (loss.double_value(&[]), back(&feat.grad()))
}

/// How far value and gradient are from a case, relative to the value and the largest part of the gradient.
fn distance(golden: &Weights, name: &str, (value, grad): &(f64, Tensor)) -> f64 {
    let expected = golden.raw(&format!("{name}.value")).unwrap().double_value(&[0]);
    let expected_grad = golden.raw(&format!("{name}.grad")).unwrap();
    let largest = |x: &Tensor| x.abs().max().double_value(&[]);
    let of_grad = largest(&(grad - &expected_grad)) / largest(&expected_grad);
    ((value - expected).abs() / expected).max(of_grad)
}

/// The ids of make.py, and what it changes: an id less in the second image, no uncovered pixel there.
fn ids() -> Tensor {
    let ids = (Tensor::arange(2 * 24 * 20, (Kind::Int64, device())).view([2, 24, 20]) * 7).floor_divide_scalar(50);
    let ids = ids.remainder(5);
    let second = ids.get(1);
    let second = second.masked_fill(&second.eq(0), 2);
    Tensor::stack(&[ids.get(0), second.masked_fill(&second.eq(3), 1)], 0)
}

#[test]
fn each_switch_agrees_with_the_equation_and_changes_it() {
    let (golden, ids) = (golden(), ids());
    let plain = SscOptions::PAPER;
    let cases = [
        ("", plain),
        (".temperature", SscOptions { temperature: 1.0, ..plain }),
        (".cold", SscOptions { temperature: 1.0 / 14.0, ..plain }),
        (".through", SscOptions { proto_stopgrad: false, ..plain }),
        (".phantoms", SscOptions { mask_absent_ids: false, ..plain }),
        (".phantoms.no_negative", SscOptions { mask_absent_ids: false, unassigned_negative: false, ..plain }),
        (".no_negative", SscOptions { unassigned_negative: false, ..plain }),
        (".global", SscOptions { global_prototypes: true, ..plain }),
        (
            ".global.through.phantoms",
            SscOptions { global_prototypes: true, proto_stopgrad: false, mask_absent_ids: false, ..plain },
        ),
    ];
    for (level, feat) in [("feature", wave(&[2, 8, 6, 5], 0.3) + 1.1), ("logit", wave(&[2, 3, 6, 5], 0.9))] {
        let found = cases.map(|(name, options)| (name, value_and_grad(&feat, &ids, &options)));
        for (name, found) in &found {
            for (other, options) in cases {
                let distance = distance(&golden, &format!("{level}{other}"), found);
                // What is rounded is divided by the temperature.
                let tolerance = TOLERANCE * (plain.temperature / options.temperature).max(1.0);
                match *name == other {
                    true => assert!(distance < tolerance, "{level}{name}: off by {distance:.1e}"),
                    false => assert!(distance > 1e-3, "{level}{name} is {level}{other}"),
                }
            }
        }
    }
}

#[test]
fn any_two_sizes() {
    let (golden, ids) = (golden(), ids());
    let small = ids.narrow(0, 0, 1).narrow(1, 0, 6).narrow(2, 0, 7);
    for (name, shape, ids) in [("shrunk", [1, 4, 9, 3], &small), ("single", [2, 4, 1, 1], &ids)] {
        let found = value_and_grad(&(wave(&shape, 0.3) + 1.1), ids, &SscOptions::PAPER);
        let expected = golden.raw(&format!("{name}.grad")).unwrap();
        // One feature alone is its prototype: nothing to learn, so the gradients are compared as they are.
        let worst = (&found.1 - expected).abs().max().double_value(&[]);
        assert!(worst < 1e-6, "{name}: off by {worst:.1e}");
        let value = golden.raw(&format!("{name}.value")).unwrap().double_value(&[0]);
        assert!((found.0 - value).abs() < TOLERANCE * value, "{name}");
    }
    assert!(ssc(&wave(&[2, 8, 6, 5], 0.3), &ids.zeros_like(), &SscOptions::PAPER).is_none());
}

/// An image without any segment adds nothing, whatever stands beside it, and features of zeros give no NaN.
#[test]
fn what_has_nothing_to_say_says_nothing() {
    let ids = ids();
    let none = Tensor::stack(&[ids.get(0), ids.get(0).zeros_like()], 0);
    let feat = wave(&[2, 8, 6, 5], 0.3) + 1.1;
    for unassigned_negative in [true, false] {
        let options = SscOptions { unassigned_negative, ..SscOptions::PAPER };
        let both = value_and_grad(&feat, &none, &options);
        let one = value_and_grad(&feat.narrow(0, 0, 1), &ids.narrow(0, 0, 1), &options);
        assert!((both.0 - one.0).abs() < 1e-6);
        assert_eq!(both.1.get(1).abs().max().double_value(&[]), 0.0);
    }
    let zeros = value_and_grad(&feat.zeros_like(), &ids, &SscOptions::PAPER);
    assert!(zeros.0.is_finite() && bool::try_from(zeros.1.isfinite().all()).unwrap());
}

/// The maps of make.py; ids fall with the predicted IoU here.
fn maps() -> [SeMap; 2] {
    let map =
        |id: fn(usize, usize) -> usize| Grid::new(30, 40, (0..30 * 40).map(|i| id(i / 40, i % 40) as u16).collect());
    [map(|y, x| 300 - (y / 2 * 20 + x / 2)), map(|y, x| if y < 10 { 0 } else { 12 - (y / 10 * 4 + x / 10) })]
}

#[test]
fn windows_of_se_maps_fixed_and_as_released() {
    let golden = golden();
    let transform = |flip, offset| Transform { image: (30, 40), resized: (24, 32), flip, crop: 20, offset };
    let transforms = [transform(true, (3, -2)), transform(false, (0, 5))];
    let feat = wave(&[2, 8, 5, 5], 0.3) + 1.1;
    // Phantoms show how high the ids go.
    let options = SscOptions { mask_absent_ids: false, ..SscOptions::PAPER };
    let mut values = Vec::new();
    for (name, switches) in [
        ("window.fixed.u16", (IdCompaction::Fixed, IdWidth::U16)),
        ("window.fixed.u8_wrap", (IdCompaction::Fixed, IdWidth::U8Wrap)),
        ("window.buggy.u16", (IdCompaction::Buggy, IdWidth::U16)),
        ("window.buggy.u8_wrap", (IdCompaction::Buggy, IdWidth::U8Wrap)),
    ] {
        let windows =
            maps().into_iter().zip(&transforms).map(|(map, transform)| segment_window(&map, transform, switches));
        let ids: Vec<i64> = windows.flat_map(|window| window.data).map(i64::from).collect();
        let ids = Tensor::from_slice(&ids).view([2, 20, 20]);
        let expected = golden.raw(&format!("{name}.ids")).unwrap().to_kind(Kind::Int64);
        if switches.0 == IdCompaction::Buggy {
            assert_eq!(ids, expected, "{name}");
        }
        assert_eq!(ids.gt(0), expected.gt(0), "{name}");
        let found = value_and_grad(&feat, &there(&ids), &options);
        assert!(distance(&golden, name, &found) < TOLERANCE, "{name}");
        values.push(found.0);
    }
    let differ = |a: f64, b: f64| (a - b).abs() > 1e-3;
    assert!((1..4).all(|i| values[..i].iter().all(|&other| differ(values[i], other))), "{values:?}");
}
