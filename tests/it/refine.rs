//! Refinements through the program, on the scenes of [`crate::program`].

use std::fs;

use s2c_pipe::data::image::{decode_label_map, encode_rgb};
use s2c_pipe::stage::cam_file::{write_cam, write_scores};
use s2c_pipe::stage::pseudo_label::PseudoLabel;
use s2c_pipe::stage::seg_crf::{CrfSet, SegCrf};
use s2c_pipe::vision::crf::{self, Bilateral, CrfOptions, Gaussian, mean_field};
use s2c_pipe::vision::{Cam, LabelMap, Rgb, ScoreMap, label};
use serde_json::json;

use crate::cam_epoch::Store;
use crate::program::{call, finished_copy, succeeds, text, to_run};
use crate::sam_refine::run;

#[test]
fn crf_and_sepl_refine_and_train_no_classifier() {
    let dir = finished_copy();
    let sets = ["pseudo_label.refine=['crf', 'sepl', 'crf']", "segmentation.test_crf=true"];
    let counts = to_run(dir.path(), &sets);
    for stage in ["cam_epoch", "cam_infer", "seed_eval"] {
        assert!(!counts.contains_key(stage), "{counts:?}");
    }
    let said = succeeds(dir.path(), &["run", "tiny.toml", "--set", sets[0], "--set", sets[1]]);
    assert!(said.contains("emoji, mIoU in %"), "{said}");
    assert!(to_run(dir.path(), &sets).is_empty());

    let output = call(dir.path(), &["plan", "tiny.toml", "--set", "pseudo_label.crf.parameters=psb"]);
    let said = text(&output);
    assert!(!output.status.success() && said.contains("error: ") && said.contains("`psb`"), "{said}");
}

/// `predict` goes through the CRF too; without updates the labels are the network's.
#[test]
fn predict_goes_through_the_crf() {
    let dir = finished_copy();
    let value = |i: usize| ((i / 3 % 90 / 30 + i / 270 / 20) % 2 * 150 + i * 7 % 31) as u8;
    let picture = Rgb { height: 60, width: 90, data: (0..60 * 90 * 3).map(value).collect() };
    fs::write(dir.path().join("p.png"), encode_rgb(&picture)).unwrap();
    let predicted = |to: &str, sets: &[&str]| -> LabelMap {
        let sets = sets.iter().flat_map(|set| ["--set", *set]);
        let args: Vec<&str> =
            ["predict", "tiny.toml", "p.png", "--variant", "baseline", "--to", to].into_iter().chain(sets).collect();
        succeeds(dir.path(), &args);
        decode_label_map(&fs::read(dir.path().join(to).join("p.png")).unwrap()).unwrap()
    };
    let plain = predicted("plain", &[]);
    let differ = |other: &LabelMap| plain.data.iter().zip(&other.data).filter(|(a, b)| a != b).count();
    let none = predicted("none", &["segmentation.test_crf=true", "segmentation.crf.iterations=0"]);
    assert!(differ(&none) <= 5, "but for scores rounded to f16: {}", differ(&none));
}

/// The stages are the functions: on the scores of a network, on a CAM, on labels.
#[test]
fn stages_run_the_crf_on_scores_cams_and_labels() {
    let (height, width) = (20, 30);
    let value = |i: usize| (i / 3 % width / 12 * 80 + i * 7 % 31) as u8;
    let image = Rgb { height, width, data: (0..height * width * 3).map(value).collect() };
    let score = |i: usize| (i * 37 % 17) as f32 / 16.0;
    let data: Vec<f32> = (0..2 * height * width).map(score).collect();
    let field = CrfSet::Psa.params();
    let options = CrfOptions {
        iterations: 10,
        gaussian: Gaussian { sxy: 3.0, weight: 3.0 },
        bilateral: Bilateral { sxy: 80.0, srgb: 13.0, weight: 10.0 },
    };
    let mut store = Store::default();
    let photo = ("image", encode_rgb(&image));

    let scores = ScoreMap { labels: vec![0, 9], height, width, data: data.clone() };
    let inputs = [photo.clone(), ("scores", write_scores(&scores).unwrap())];
    let found = run::<SegCrf>(&mut store, &json!(field), &inputs).unwrap();
    let expected = |unary| mean_field(&image, &unary, &options).best();
    assert_eq!(decode_label_map(&found).unwrap(), expected(crf::from_scores(scores)));

    let cam = Cam { classes: vec![4, 9], height, width, data };
    let inputs = [photo, ("cam", write_cam(&cam).unwrap())];
    let params = json!({"threshold": null, "refine": ["crf"], "crf": {"field": field, "alpha": 3.0}});
    let found = run::<PseudoLabel>(&mut store, &params, &inputs).unwrap();
    assert_eq!(decode_label_map(&found).unwrap(), expected(crf::from_cam(&cam, 3.0)));

    let params = json!({"threshold": 0.8, "refine": ["crf"], "crf": {"field": field, "certainty": 0.6}});
    let found = run::<PseudoLabel>(&mut store, &params, &inputs).unwrap();
    let labels = label::from_cam(&cam, 0.8);
    let of_labels = expected(crf::from_labels(&labels, 0.6));
    assert_ne!(of_labels, labels);
    assert_eq!(decode_label_map(&found).unwrap(), of_labels);
}
