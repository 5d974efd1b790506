//! CPM against a script written from its equations: `tests/golden/cpm/make.py`.

use std::collections::BTreeMap;
use std::path::Path;

use s2c_pipe::data::augment::Transform;
use s2c_pipe::model::cpm::{Answer, MapOptions, MaskPick, SamCertainty, View, label_maps, window_frame};
use s2c_pipe::model::loss::{AbsentClass, cpm};
use s2c_pipe::model::weights::Weights;
use s2c_pipe::vision::peaks::{FirstPeak, PeakRules, find_peaks};
use tch::{Device, Kind, Tensor};

use crate::device::{back, device, there};

fn golden() -> Weights {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/cpm/golden.safetensors");
    Weights::parse(std::fs::read(path).unwrap()).unwrap()
}

fn wave(shape: &[i64], step: f64) -> Tensor {
    (Tensor::arange(shape.iter().product::<i64>(), (Kind::Float, Device::Cpu)) * step).sin().view(shape)
}

fn worst(a: &Tensor, b: &Tensor) -> f64 {
    f64::try_from((back(a) - back(b)).abs().max()).unwrap()
}

/// Every value of a switch has to change some result, all others being equal. `names`: a case's switches and its result.
#[track_caller]
fn every_switch_matters<T: PartialEq>(cases: &BTreeMap<Vec<&'static str>, T>) {
    let n_switches = cases.keys().next().unwrap().len();
    for switch in 0..n_switches {
        let values: std::collections::BTreeSet<_> = cases.keys().map(|case| case[switch]).collect();
        for (i, a) in values.iter().enumerate() {
            for b in values.iter().skip(i + 1) {
                let flipped = cases.iter().filter(|(case, _)| case[switch] == *a).any(|(case, result)| {
                    let mut other = case.clone();
                    other[switch] = b;
                    cases[&other] != *result
                });
                assert!(flipped, "`{a}` and `{b}` are the same everywhere");
            }
        }
    }
}

/// All combinations of the rules, exactly; with `1.drop_first.0` they are the authors' over scikit-image.
#[test]
fn peaks_are_those_of_the_script() {
    let golden = golden();
    let mut cases: BTreeMap<Vec<&'static str>, Vec<Vec<i64>>> = BTreeMap::new();
    for i in 0..6 {
        let plane = golden.raw(&format!("peaks.{i}.plane")).unwrap();
        let width = plane.size()[1] as usize;
        let plane = Vec::<u8>::try_from(plane.view([-1])).unwrap();
        let plane: Vec<f32> = plane.iter().map(|&byte| f32::from(byte) / 255.0).collect();
        for border in ["0", "1"] {
            for (first, first_name) in [(FirstPeak::Dedup, "dedup"), (FirstPeak::DropFirst, "drop_first")] {
                for exact in ["0", "1"] {
                    let min_distance = if i == 0 { 20 } else { 8 };
                    let (exclude_border, is_exact) = (border == "1", exact == "1");
                    let rules = PeakRules { min_distance, exclude_border, exact: is_exact, first };
                    let found = find_peaks(&plane, width, 0.4, &rules);
                    let found: Vec<i64> = found.iter().flat_map(|peak| [peak.y as i64, peak.x as i64]).collect();
                    let name = format!("peaks.{i}.{border}.{first_name}.{exact}");
                    let expected = Vec::<i64>::try_from(golden.raw(&name).unwrap().view([-1])).unwrap();
                    assert_eq!(found, expected, "{name}");
                    cases.entry(vec![border, first_name, exact]).or_default().push(found);
                }
            }
        }
    }
    every_switch_matters(&cases);
}

const SIDE: i64 = 80;

/// What SAM says of three classes, see the script.
fn answers() -> Vec<Answer> {
    let axis = Tensor::arange(256, (Kind::Float, Device::Cpu));
    let (y, x) = (axis.view([256, 1]), axis.view([1, 256]));
    let rough = ((&y * 1.7) + (&x * 2.3)).sin() * 1.5;
    let classes = [(90.0, 100.0, 1.3), (120.0, 150.0, 2.0), (70.0, 140.0, 0.13)];
    let iou = [[0.6, 0.9, 0.7], [0.8, 0.75, 0.85], [0.95, 0.5, 0.9]];
    let answer = |(channel, (cy, cx, slope)): (usize, (f64, f64, f64))| {
        let far = ((&y - cy).square() + (&x - cx).square()).sqrt();
        let parts: Vec<Tensor> = (0..3).map(|part| ((30 + 15 * part) - &far) * slope + &rough).collect();
        let (low_res, iou) = (there(&Tensor::stack(&parts, 0)), iou[channel].to_vec());
        Answer { image: 0, channel: channel as i64, low_res, iou }
    };
    classes.into_iter().enumerate().map(answer).collect()
}

fn cams() -> Tensor {
    there(&(Tensor::from_slice(&[0.50f32, 0.45, 0.48]).view([3, 1, 1]) + wave(&[3, SIDE, SIDE], 0.013) * 0.02))
}

/// Of one window.
fn label_map(cam: &Tensor, answers: &[Answer], view: View, padding: &Tensor, options: &MapOptions) -> Tensor {
    label_maps(&cam.unsqueeze(0), answers, &[view], &padding.unsqueeze(0), options).squeeze_dim(0)
}

/// Every `step`th label: those of the script, but for one whose pixel lies where rounding decides.
#[track_caller]
fn assert_labels(golden: &Weights, name: &str, map: &Tensor, step: i64) -> Vec<i64> {
    let found = Vec::<i64>::try_from(back(map).view([-1]).slice(0, None, None, step)).unwrap();
    let expected = Vec::<u8>::try_from(golden.raw(name).unwrap()).unwrap();
    let n_differ = found.iter().zip(&expected).filter(|(a, b)| **a != i64::from(**b)).count();
    assert!(found.len() == expected.len() && n_differ <= 1, "{name}: {n_differ} of {} pixels differ", found.len());
    found
}

#[test]
fn maps_are_those_of_the_script() {
    let (golden, answers, cams) = (golden(), answers(), cams());
    let low_res: Vec<Tensor> = answers.iter().map(|answer| answer.low_res.shallow_clone()).collect();
    let some = Tensor::stack(&low_res, 0).slice(2, None, None, 16).slice(3, None, None, 16);
    assert!(worst(&some, &golden.raw("map.low_res").unwrap()) < 1e-3);
    assert!(worst(&cams.slice(1, None, None, 8).slice(2, None, None, 8), &golden.raw("map.cams").unwrap()) < 1e-6);

    let view = View::Alone { side: SIDE as usize };
    let padded = Tensor::arange(SIDE, (Kind::Int64, device())).ge(50).view([1, SIDE]).expand([SIDE, SIDE], false);
    let mut cases = BTreeMap::new();
    for (pick, pick_name) in [(MaskPick::Index(2), "2"), (MaskPick::Index(0), "0"), (MaskPick::BestIou, "best_iou")] {
        for (alpha_sam, sam_name) in [
            (SamCertainty::Logit, "logit"),
            (SamCertainty::Sigmoid, "sigmoid"),
            (SamCertainty::Iou, "iou"),
            (SamCertainty::Stability, "amg_stability"),
            (SamCertainty::One, "one"),
        ] {
            for (cam_name, pad_name, path_name) in ["mean", "one"]
                .iter()
                .flat_map(|cam| ["ignore", "bg"].map(|pad| (*cam, pad)))
                .flat_map(|(cam, pad)| ["one", "two"].map(|path| (cam, pad, path)))
            {
                let alpha_cam_mean = cam_name == "mean";
                let options = MapOptions { pick, two_paths: path_name == "two", alpha_sam, alpha_cam_mean };
                let padding = if pad_name == "ignore" { padded.shallow_clone() } else { padded.zeros_like() };
                let map = label_map(&cams, &answers, view, &padding, &options).masked_fill(&padding, 255);
                let name = format!("map.{pick_name}.{sam_name}.{cam_name}.{pad_name}.{path_name}");
                let labels = assert_labels(&golden, &name, &map, 7);
                cases.insert(vec![pick_name, sam_name, cam_name, pad_name, path_name], labels);
            }
        }
    }
    every_switch_matters(&cases);
}

#[test]
fn maps_of_a_batch_are_those_of_its_images() {
    let mirrored = Transform { image: (60, 90), resized: (110, 165), flip: true, crop: 80, offset: (-10, 30) };
    let views = [View::Alone { side: 80 }, View::Alone { side: 80 }, View::Cut(mirrored)];
    let cams = Tensor::stack(&[cams(), cams() * 0.5, cams().flip([0])], 0);
    let row = Tensor::arange(SIDE, (Kind::Int64, device())).view([SIDE, 1]).expand([SIDE, SIDE], false);
    let padding = Tensor::stack(&[row.lt(0), row.lt(30), row.ge(35).logical_and(&row.lt(45))], 0);
    // The second image has none.
    let of_image = |image| answers().into_iter().map(move |answer| Answer { image, ..answer });
    let mixed: Vec<Answer> = of_image(2).zip(of_image(0)).flat_map(|(a, b)| [a, b]).collect();
    for (alpha_sam, two_paths) in [
        (SamCertainty::Logit, true),
        (SamCertainty::Iou, false),
        (SamCertainty::Stability, false),
        (SamCertainty::One, true),
    ] {
        let options = MapOptions { pick: MaskPick::BestIou, two_paths, alpha_sam, alpha_cam_mean: true };
        let maps = label_maps(&cams, &mixed, &views, &padding, &options);
        for (i, answers) in (0..).zip([answers(), Vec::new(), answers()]) {
            let alone = label_map(&cams.get(i), &answers, views[i as usize], &padding.get(i), &options);
            assert_eq!(maps.get(i), alone, "{alpha_sam:?} {i}");
            assert_eq!(alone.max().int64_value(&[]) > 0, i != 1);
            // With another image's CAM or padding it is another map.
            if i == 2 {
                let other = label_map(&cams.get(0), &answers, views[2], &padding.get(2), &options);
                let unpadded = label_map(&cams.get(2), &answers, views[2], &padding.get(0), &options);
                assert!(unpadded != alone && (alpha_sam != SamCertainty::One || other != alone));
            }
        }
    }
}

/// Masks of the full image in a mirrored window that reaches beyond it, by PyTorch's own sampling.
#[test]
fn masks_come_into_a_window_as_in_the_script() {
    let (golden, side) = (golden(), SIDE as usize);
    let transform = Transform { image: (60, 90), resized: (110, 165), flip: true, crop: side, offset: (-10, 30) };
    let padding = there(&Tensor::from_slice(&transform.padding()).view([SIDE, SIDE]));
    let label = |two_paths| {
        let pick = MaskPick::Index(2);
        let options = MapOptions { pick, two_paths, alpha_sam: SamCertainty::Logit, alpha_cam_mean: true };
        let map = label_map(&cams(), &answers(), View::Cut(transform), &padding, &options);
        let name = if two_paths { "cut.two" } else { "cut.one" };
        assert_labels(&golden, name, &map.masked_fill(&padding, 255), 1)
    };
    assert_ne!(label(true), label(false));
}

/// Truncation is exact but where rounding on the way decides.
#[test]
fn the_encoder_sees_of_a_crop_what_it_does_in_the_script() {
    let golden = golden();
    let frame = back(&window_frame(&there(&golden.raw("frame.crop").unwrap())));
    assert_eq!((frame.size(), frame.kind()), (vec![3, 1024, 1024], Kind::Uint8));
    let found = frame.slice(1, None, None, 11).slice(2, None, None, 11).to_kind(Kind::Float);
    let off = found - golden.raw("frame").unwrap().to_kind(Kind::Float);
    let share = f64::try_from(off.abs().gt(0.0).to_kind(Kind::Float).mean(Kind::Float)).unwrap();
    assert!(share < 2e-3 && f64::try_from(off.abs().max()).unwrap() <= 1.0, "{share}");
}

/// Within 1e-5 of the value and 1e-4 of the largest gradient.
#[test]
fn the_loss_and_its_gradient_are_those_of_the_script() {
    let golden = golden();
    let labels = there(&Tensor::from_slice(&[1.0f32, 0.0, 1.0, 0.0, 1.0, 0.0]).view([2, 3]));
    let pseudo = there(&golden.raw("loss.pseudo").unwrap());
    let losses = [(AbsentClass::Zero, "zero"), (AbsentClass::Out, "neg_inf")].map(|(absent, name)| {
        let cam = there(&(wave(&[2, 3, 6, 5], 0.9) * 3.0)).set_requires_grad(true);
        let loss = cpm(&cam, &labels, &pseudo, absent).unwrap();
        loss.backward();
        let of = |part: &str| golden.raw(&format!("loss.{name}.{part}")).unwrap();
        assert!(worst(&loss.detach(), &of("value")) < 1e-5, "{name}");
        let scale = f64::try_from(of("grad").abs().max()).unwrap();
        assert!(worst(&cam.grad(), &of("grad")) < 1e-4 * scale, "{name}");
        f64::try_from(loss.detach()).unwrap()
    });
    assert!((losses[0] - losses[1]).abs() > 0.1);
}

/// A disc in a crop, drawn for the encoder, is where a mask of it comes back to, within a pixel.
#[test]
fn the_encoders_frame_and_the_way_back_agree() {
    let side = 96;
    for (cy, cx) in [(48, 48), (20, 70), (75, 22)] {
        let distance = |i: i64| (((i / side - cy).pow(2) + (i % side - cx).pow(2)) as f64).sqrt() - 15.3;
        let pixels: Vec<f32> =
            (0..3 * side * side).map(|i| if distance(i % (side * side)) < 0.0 { 1.0 } else { -1.0 }).collect();
        let frame = window_frame(&there(&Tensor::from_slice(&pixels).view([3, side, side]))).to_kind(Kind::Float);
        // A perfect SAM: positive where the first channel is bright.
        let logits = frame.get(0) - (frame.get(0).max() + frame.get(0).min()) / 2.0;
        let low_res = logits.view([1, 256, 4, 256, 4]).mean_dim([2i64, 4].as_slice(), false, Kind::Float);
        let answers = [Answer { image: 0, channel: 0, low_res, iou: vec![1.0] }];
        let (view, cam) = (View::Alone { side: side as usize }, Tensor::ones([1, side, side], (Kind::Float, device())));
        for two_paths in [false, true] {
            let pick = MaskPick::Index(0);
            let options = MapOptions { pick, two_paths, alpha_sam: SamCertainty::One, alpha_cam_mean: true };
            let padding = Tensor::zeros([side, side], (Kind::Bool, device()));
            let map = Vec::<i64>::try_from(label_map(&cam, &answers, view, &padding, &options).view([-1])).unwrap();
            let wrong = |(i, &label): (usize, &i64)| {
                let distance = distance(i as i64);
                distance.abs() > 1.0 && (label == 1) != (distance < 0.0)
            };
            assert_eq!(map.iter().enumerate().filter(|pixel| wrong(*pixel)).count(), 0);
        }
    }
}
