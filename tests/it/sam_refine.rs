//! `sam_refine` on a picture of a disc, with MobileSAM.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use s2c_pipe::artifact::{Fingerprint, FingerprintInput};
use s2c_pipe::data::image::{decode_label_map, encode_rgb};
use s2c_pipe::stage::cam_file::write_cam;
use s2c_pipe::stage::pseudo_label::PseudoLabel;
use s2c_pipe::stage::sam_embed::SamEmbed;
use s2c_pipe::stage::sam_refine::SamRefine;
use s2c_pipe::stage::{Stage, StageContext, UnitInput};
use s2c_pipe::vision::Cam;
use serde_json::{Value, json};

use crate::cam_epoch::{Store, picture};
use crate::device::stage_device;

/// The first output of a stage.
pub(crate) fn run<S: Stage>(store: &mut Store, params: &Value, inputs: &[(&str, Vec<u8>)]) -> anyhow::Result<Vec<u8>> {
    let input = |(slot, bytes): &(&str, Vec<u8>)| FingerprintInput {
        slot: (*slot).into(),
        digest: store.put(bytes.clone()),
        is_set: false,
    };
    let inputs = inputs.iter().map(input).collect();
    let (stage, version) = (S::KIND.into(), S::VERSION);
    let fingerprint = Fingerprint { stage, version, params: params.to_string(), inputs };
    let context = StageContext {
        device: stage_device(),
        progress: Arc::new(|_| ()),
        scratch: std::env::temp_dir(),
        interrupted: Arc::new(AtomicBool::new(false)),
    };
    let mut stage = S::load(serde_json::from_value(params.clone())?, &context)?;
    let input = UnitInput { label: S::KIND, fingerprint: &fingerprint, reader: &*store };
    Ok(stage.run(&input)?.remove(0).bytes)
}

fn weights() -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("pipelines/weights/mobile_sam.f16.safetensors")).unwrap()
}

/// SAM's largest mask of a disc this small is the whole picture.
fn params(tau: f64) -> Value {
    let choice = "best_iou";
    let prompt =
        json!({"tau": tau, "min_distance": 20, "mask_choice": choice, "alpha_sam": "logit", "alpha_cam": "mean"});
    json!({"precision": "f32", "prompt": prompt})
}

/// A peak within the disc makes its class's label of the disc; a class without a peak has none.
#[test]
fn a_peak_becomes_the_thing_it_lies_on() {
    let mut store = Store::default();
    let (rgb, disc) = picture(1);
    let (height, width) = (rgb.height, rgb.width);
    let embed = [("image", encode_rgb(&rgb)), ("weights", weights())];
    let embedding = run::<SamEmbed>(&mut store, &json!({"precision": "f32"}), &embed).unwrap();
    let far = |at: usize| (at / width).abs_diff(25).pow(2) + (at % width).abs_diff(34).pow(2);
    let score = |at: usize| 0.9 * (-(far(at) as f32) / 60.0).exp();
    let pixels = height * width;
    let data = (0..pixels).map(score).chain(std::iter::repeat_n(0.1, pixels)).collect();
    let cam = Cam { classes: vec![7, 12], height, width, data };
    let inputs = [("cam", write_cam(&cam).unwrap()), ("embedding", embedding), ("weights", weights())];

    let bytes = run::<SamRefine>(&mut store, &params(0.5), &inputs).unwrap();
    let labels = decode_label_map(&bytes).unwrap();
    assert_eq!((labels.height, labels.width), (height, width));
    assert!(labels.data.iter().all(|label| [0, 7].contains(label)));
    let both = |of: fn(bool, bool) -> bool| {
        labels.data.iter().zip(&disc.data).filter(|(label, id)| of(**label == 7, **id == 301)).count() as f64
    };
    let iou = both(|a, b| a && b) / both(|a, b| a || b);
    assert!(iou > 0.97, "{iou}");

    // No peak, no prompt.
    let none = decode_label_map(&run::<SamRefine>(&mut store, &params(0.95), &inputs).unwrap()).unwrap();
    assert!(none.data.iter().all(|&label| label == 0));

    // A vote starts from these labels, not from a CAM.
    let vote = json!({"threshold": null, "refine": ["segment_vote"]});
    let se_map = s2c_pipe::data::image::encode_se_map(&disc);
    let voted = run::<PseudoLabel>(&mut store, &vote, &[("label", bytes), ("se_map", se_map)]).unwrap();
    let voted = decode_label_map(&voted).unwrap();
    assert!(voted.data.iter().zip(&disc.data).all(|(&label, &id)| id == 0 || (label == 7) == (id == 301)));

    // An embedding of another picture.
    let small = Cam { classes: vec![7], height: 3, width: 4, data: vec![0.9; 12] };
    let [_, embedding, weights] = inputs;
    let error = run::<SamRefine>(&mut store, &params(0.5), &[("cam", write_cam(&small).unwrap()), embedding, weights]);
    assert!(format!("{:#}", error.unwrap_err()).contains("of images of different size"));
}
