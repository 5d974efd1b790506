//! `cam_epoch` on four small pictures with the real weights: equal bytes from equal inputs, also across a stop.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use s2c_pipe::artifact::{Fingerprint, FingerprintInput, SetListing};
use s2c_pipe::data::image::{encode_rgb, encode_se_map};
use s2c_pipe::digest::BlobDigest;
use s2c_pipe::model::weights::{Weights, to_safetensors};
use s2c_pipe::stage::cam_epoch::{CamEpoch, StepLosses};
use s2c_pipe::stage::{BlobReader, Bytes, Interrupted, NotFinite, Output, Stage, StageContext, Step, UnitInput};
use s2c_pipe::vision::{Grid, Rgb};
use serde_json::json;
use tch::{Kind, Tensor};

use crate::device::stage_device;

#[derive(Default)]
pub(crate) struct Store(HashMap<BlobDigest, Bytes>);

impl Store {
    pub(crate) fn put(&mut self, bytes: Vec<u8>) -> BlobDigest {
        let digest = BlobDigest::of(&bytes);
        self.0.insert(digest, bytes.into());
        digest
    }
}
impl BlobReader for Store {
    fn read(&self, digest: &BlobDigest) -> anyhow::Result<Bytes> {
        self.0.get(digest).cloned().ok_or_else(|| anyhow::anyhow!("no blob {digest}"))
    }
}

/// A bright disc on stripes, `(60, 80)`; the disc's place differs from picture to picture.
pub(crate) fn picture(i: usize) -> (Rgb, Grid<u16>) {
    let (height, width) = (60, 80);
    let inside = |p: usize| (p / width).abs_diff(20 + 5 * i).pow(2) + (p % width).abs_diff(25 + 9 * i).pow(2) < 200;
    let colour =
        |p: usize| if inside(p) { [230, 60 * i as u8, 40] } else { [(p % 7 * 20) as u8, 90, (p / 80 * 3) as u8] };
    // Two segments, and a strip of pixels in none; more than 8 bits can number; one in all.
    let id = |p: usize| match i {
        2 => 1 + (p / width / 2 * 16 + p % width / 5) as u16,
        3 => 300,
        _ if p % width < 6 => 0,
        _ => 300 + u16::from(inside(p)),
    };
    let rgb = Rgb { height, width, data: (0..height * width).flat_map(colour).collect() };
    (rgb, Grid::new(height, width, (0..height * width).map(id).collect()))
}

struct Case {
    store: Store,
    inputs: Vec<FingerprintInput>,
}

impl Case {
    fn new() -> Self {
        let mut store = Store::default();
        let weights = |name: &str| {
            std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("pipelines/weights").join(name)).unwrap()
        };
        let mut sets: [(&str, SetListing); 3] =
            ["images", "se_maps", "embeddings"].map(|slot| (slot, SetListing::default()));
        for i in 0..4 {
            let (rgb, se_map) = picture(i);
            // CPM's arithmetic does not ask whether an embedding is of its picture.
            let wave = (Tensor::arange(256 * 64 * 64, (Kind::Float, tch::Device::Cpu)) * (1e-3 * (i + 1) as f64)).sin();
            let embedding = wave.view([256, 64, 64]).to_kind(Kind::Half);
            let size = Tensor::from_slice(&[rgb.height as i64, rgb.width as i64]);
            let embedding = to_safetensors([("embedding", &embedding), ("image_size", &size)]).unwrap();
            for ((_, set), bytes) in sets.iter_mut().zip([encode_rgb(&rgb), encode_se_map(&se_map), embedding]) {
                set.members.push((format!("item{i}"), store.put(bytes)));
            }
        }
        let mut inputs = Vec::new();
        for (slot, set) in sets {
            inputs.push(FingerprintInput { slot: slot.into(), digest: store.put(set.to_bytes()), is_set: true });
        }
        let labels = b"item0\t1\nitem1\t2\nitem2\t1 3\nitem3\t2 3\n".to_vec();
        let values = [
            ("labels", labels),
            ("weights", weights("resnet50_v1.f16.safetensors")),
            ("sam_weights", weights("mobile_sam.f16.safetensors")),
        ];
        for (slot, bytes) in values {
            inputs.push(FingerprintInput { slot: slot.into(), digest: store.put(bytes), is_set: false });
        }
        Self { store, inputs }
    }

    fn without(mut self, slot: &str) -> Self {
        self.inputs.retain(|input| input.slot != slot);
        self
    }

    fn with(mut self, slot: &str, bytes: Vec<u8>) -> Self {
        let digest = self.store.put(bytes);
        self.inputs.iter_mut().filter(|input| input.slot == slot).for_each(|input| input.digest = digest);
        self
    }

    /// Runs the epoch in a scratch folder; with `stop_at`, the user asks it to stop after so many steps.
    fn run(&self, batch_size: usize, scratch: &Path, stop_at: Option<u64>) -> anyhow::Result<(Vec<Output>, u64)> {
        self.run_with(json!({ "batch_size": batch_size }), scratch, stop_at)
    }

    /// With some parameters changed.
    fn run_with(
        &self,
        changes: serde_json::Value,
        scratch: &Path,
        stop_at: Option<u64>,
    ) -> anyhow::Result<(Vec<Output>, u64)> {
        let mut params = json!({
            "epoch": 0, "epochs": 2, "rng_seed": 3, "precision": "f32", "backbone": "resnet50v1", "stride": 16,
            "feat_dim": 16, "n_classes": 3, "batch_size": 1, "crop": 64, "resize_long": [50, 100],
            "jitter": [0.4, 0.4, 0.4, 0.1], "lr": 2e-4, "head_lr_mult": 10.0, "momentum": 0.9, "weight_decay": 5e-4,
            "ssc": {"weight": 1.0, "temperature": 0.5, "proto_stopgrad": true, "unassigned_negative": true},
            "cpm": {"weight": 1.0, "tau": 0.5, "scales": [0.5, 1.0], "min_distance": 10, "mask_index": 2,
                    "alpha_sam": "logit", "alpha_cam": "mean", "pad_label": "ignore"},
        });
        for (name, value) in changes.as_object().unwrap() {
            match (&mut params[name], value) {
                (serde_json::Value::Object(cpm), serde_json::Value::Object(more)) => cpm.extend(more.clone()),
                (param, value) => *param = value.clone(),
            }
        }
        params.as_object_mut().unwrap().remove("none");
        let fingerprint = Fingerprint {
            stage: CamEpoch::KIND.into(),
            version: CamEpoch::VERSION,
            params: params.to_string(),
            inputs: self.inputs.clone(),
        };
        let (interrupted, steps) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (flag, count) = (interrupted.clone(), steps.clone());
        let progress = move |step: &Step<'_>| {
            count.fetch_add(1, Ordering::Relaxed);
            flag.store(Some(step.done) == stop_at, Ordering::Relaxed);
        };
        let context = StageContext {
            device: stage_device(),
            progress: Arc::new(progress),
            scratch: scratch.to_owned(),
            interrupted,
        };
        let mut stage = CamEpoch::load(serde_json::from_value(params)?, &context)?;
        let input = UnitInput { label: "cam_epoch 0", fingerprint: &fingerprint, reader: &self.store };
        let outputs = stage.run(&input)?;
        Ok((outputs, steps.load(Ordering::Relaxed)))
    }
}

fn n_files(folder: &Path) -> usize {
    std::fs::read_dir(folder).unwrap().count()
}

#[test]
fn equal_bytes_twice_and_across_a_stop() {
    let case = Case::new();
    let folders = [(); 3].map(|()| tempfile::tempdir().unwrap());
    let [first, second, stopped] = folders.each_ref().map(tempfile::TempDir::path);
    let (undisturbed, steps) = case.run(1, first, None).unwrap();
    assert_eq!(steps, 4);
    let losses: Vec<StepLosses> = serde_json::from_slice(&undisturbed[1].bytes).unwrap();
    assert_eq!(losses.len(), 4);
    // All three losses took part, or equality would say little.
    assert!(losses.iter().all(|row| row.cls > 0.0 && row.grad_norm > 0.0), "{losses:?}");
    assert!(losses.iter().any(|row| row.ssc.is_some_and(|ssc| ssc > 0.0)), "{losses:?}");
    assert!(losses.iter().any(|row| row.cpm.is_some_and(|cpm| cpm > 0.0)), "{losses:?}");
    assert!(case.run(1, second, None).unwrap().0 == undisturbed, "a second run gives other bytes");

    let error = case.run(1, stopped, Some(2)).unwrap_err();
    assert!(error.downcast_ref::<Interrupted>().is_some(), "{error:?}");
    assert_eq!(n_files(stopped), 1);
    let (resumed, steps) = case.run(1, stopped, None).unwrap();
    assert_eq!(steps, 2, "the first two steps are not done again");
    assert!(resumed == undisturbed, "a resumed run gives other bytes");
    assert_eq!(n_files(stopped), 0, "the state is removed at the end");
}

/// How fast one training went down is no start of another.
#[test]
fn weights_of_a_training_start_without_its_momentum() {
    let folder = tempfile::tempdir().unwrap();
    let trained = Case::new().run(4, folder.path(), None).unwrap().0[0].bytes.clone();
    let state = Weights::parse(trained.clone()).unwrap();
    let tensors: Vec<(String, Tensor)> = state
        .names()
        .filter(|name| !name.starts_with("momentum."))
        .map(|name| (name.to_owned(), state.raw(name).unwrap()))
        .collect();
    assert!(tensors.len() < state.names().count());
    let without = to_safetensors(tensors.iter().map(|(name, tensor)| (name.as_str(), tensor))).unwrap();
    let from = |bytes: Vec<u8>| Case::new().with("weights", bytes).run(4, folder.path(), None).unwrap().0;
    assert!(from(trained) == from(without));
}

/// A state that is cut short costs time, not the result.
#[test]
fn a_broken_state_starts_over() {
    let case = Case::new();
    let folder = tempfile::tempdir().unwrap();
    let undisturbed = case.run(2, folder.path(), None).unwrap().0;
    case.run(2, folder.path(), Some(1)).unwrap_err();
    let state = std::fs::read_dir(folder.path()).unwrap().next().unwrap().unwrap().path();
    let bytes = std::fs::read(&state).unwrap();
    let mut flipped = bytes.clone();
    flipped[bytes.len() / 2] ^= 0x40;
    for (name, broken) in
        [("cut short", bytes[..bytes.len() / 2].to_vec()), ("empty", Vec::new()), ("a flipped bit", flipped)]
    {
        std::fs::write(&state, broken).unwrap();
        let (outputs, steps) = case.run(2, folder.path(), None).unwrap();
        assert_eq!(steps, 2, "{name}");
        assert!(outputs == undisturbed, "{name}");
    }
}

#[test]
fn labels_out_of_range_are_an_error() {
    let case = Case::new().with("labels", b"item0\t1\nitem1\t4\nitem2\t0\nitem3\t2\n".to_vec());
    let folder = tempfile::tempdir().unwrap();
    let error = format!("{:#}", case.run(4, folder.path(), None).unwrap_err());
    assert!(error.contains("are not all in 1..=3"), "{error}");
}

/// The loss is a mean over all that a step sees, however it is cut into batches: SSC's and CPM's pixels differ in number
/// from picture to picture, so that a mean of means would be another.
#[test]
fn batches_of_a_step_add_up_to_one_batch() {
    let case = Case::new();
    let folder = tempfile::tempdir().unwrap();
    // CPM's masks are yes or no, and rounding turns single pixels of them.
    for (without, tolerance) in [("cpm", 1e-5), ("none", 1e-3)] {
        let run = |batch_size: usize, accumulate: usize| {
            let equivariance = json!({ "weight": 1.0, "scale": 0.5 });
            let changes = json!({
                "batch_size": batch_size, "accumulate": accumulate, without: null, "equivariance": equivariance
            });
            let (outputs, steps) = case.run_with(changes, folder.path(), None).unwrap();
            assert_eq!(steps, 1);
            let [row]: [StepLosses; 1] = serde_json::from_slice(&outputs[1].bytes).unwrap();
            // After one step the momentum is the gradient and the weight decay.
            let state = Weights::parse(outputs[0].bytes.clone()).unwrap();
            let momentum = ["head.cam", "head.feat", "layer4.2.conv3", "layer2.0.conv1"]
                .map(|name| state.raw(&format!("momentum.{name}.weight")).unwrap());
            ([Some(row.cls), row.ssc, row.cpm, row.equivariance, Some(row.grad_norm)], momentum)
        };
        let whole = run(4, 1);
        for (batch_size, accumulate) in [(1, 4), (3, 2)] {
            let found = run(batch_size, accumulate);
            for (is, expected) in found.0.iter().zip(&whole.0) {
                let off = is.zip(*expected).map_or(0.0, |(is, expected)| (is / expected - 1.0).abs());
                assert!(off < tolerance, "{batch_size} x {accumulate}: {:?} {:?}", found.0, whole.0);
            }
            for (is, expected) in found.1.iter().zip(&whole.1) {
                let norm = |x: &Tensor| f64::try_from(x.norm()).unwrap();
                let off = norm(&(is - expected)) / norm(expected);
                assert!(off < 10.0 * tolerance, "{batch_size} x {accumulate}: {off}");
            }
        }
    }
}

/// Weights are cast to bf16 within the graph, so their gradients are f32 and point where those of f32 do.
#[test]
fn bf16_goes_down_the_same_slope() {
    let case = Case::new();
    let folder = tempfile::tempdir().unwrap();
    let momentum = |precision: &str| {
        let changes = json!({ "batch_size": 4, "precision": precision, "cpm": null });
        let state = Weights::parse(case.run_with(changes, folder.path(), None).unwrap().0[0].bytes.clone()).unwrap();
        ["head.cam", "layer4.2.conv3", "layer3.0.conv2", "layer2.0.conv1"]
            .map(|name| state.raw(&format!("momentum.{name}.weight")).unwrap().view([-1]))
    };
    for (bf16, f32) in momentum("bf16").iter().zip(&momentum("f32")) {
        let cosine = f64::try_from(bf16.dot(f32) / (bf16.norm() * f32.norm())).unwrap();
        assert!(bf16.kind() == Kind::Float && cosine > 0.98, "{cosine}");
    }
}

/// What is saved is the state before the step that failed: going on fails there again, and does not jump past it.
#[test]
fn numbers_that_are_none_stop_the_epoch_there_and_again() {
    let case = Case::new();
    let folder = tempfile::tempdir().unwrap();
    let diverges = || case.run_with(json!({ "lr": 1e6 }), folder.path(), None).unwrap_err();
    let (first, again) = (diverges(), diverges());
    for error in [&first, &again] {
        let NotFinite { items, field, .. } = error.downcast_ref().unwrap();
        assert_eq!((items.len(), *field), (1, "classifier.lr"));
        assert!(format!("{error:#}").contains("epoch 0, step 1: the loss or its gradient is not finite"), "{error:#}");
        assert!(format!("{error:#}").ends_with(&format!("images of the step: {}", items[0])), "{error:#}");
    }
    assert_eq!(n_files(folder.path()), 1);
    // Of the two steps that the first run tried one is kept.
    let saved = folder.path().read_dir().unwrap().next().unwrap().unwrap().path();
    let saved = Weights::parse(std::fs::read(saved).unwrap()[32..].to_vec()).unwrap();
    let rows = Vec::<u8>::try_from(saved.raw("resume.losses").unwrap()).unwrap();
    assert_eq!(serde_json::from_slice::<Vec<StepLosses>>(&rows).unwrap().len(), 1);
    assert!(f64::try_from(saved.raw("head.cam.weight").unwrap().abs().max()).unwrap().is_finite());
}

/// The first step with other parameters of a loss.
fn first_step(case: &Case, more: &serde_json::Value) -> StepLosses {
    let folder = tempfile::tempdir().unwrap();
    let mut changes = more.clone();
    changes["batch_size"] = json!(4);
    let outputs = case.run_with(changes, folder.path(), None).unwrap().0;
    serde_json::from_slice::<Vec<StepLosses>>(&outputs[1].bytes).unwrap().remove(0)
}

#[test]
fn equivariance_is_one_more_term() {
    let case = Case::new();
    let without = first_step(&case, &json!({}));
    let with =
        |weight: f64, scale: f64| first_step(&case, &json!({ "equivariance": { "weight": weight, "scale": scale } }));
    let (once, twice, none, same) = (with(1.0, 0.3), with(2.0, 0.3), with(0.0, 0.3), with(1.0, 1.0));
    assert_eq!((without.equivariance, once.cls, once.cpm), (None, without.cls, without.cpm));
    assert!(once.equivariance.unwrap() > 0.01 && once.equivariance == twice.equivariance);
    assert!(once.grad_norm != without.grad_norm && once.grad_norm != twice.grad_norm);
    assert!((none.grad_norm / without.grad_norm - 1.0).abs() < 1e-5);
    // A crop of the same size has the same CAM.
    assert_eq!(same.equivariance, Some(0.0));
    // The module learns beside the rest, which stays as it is.
    let revised = json!({ "equivariance": { "weight": 1.0, "scale": 0.3, "pcm": true } });
    let revised = first_step(&case, &revised);
    assert_eq!((revised.cls, revised.equivariance, once.ecr), (once.cls, once.equivariance, None));
    assert!(revised.ecr.unwrap() > 0.01 && revised.grad_norm > once.grad_norm);
}

/// L_CPM of the first step, as bits.
fn first_cpm(case: &Case, cpm: &serde_json::Value) -> u64 {
    first_step(case, &json!({ "cpm": cpm })).cpm.unwrap().to_bits()
}

/// What the epoch passes on reaches the loss. (Each switch: `tests/it/ssc.rs`.)
#[test]
fn switches_of_ssc_reach_its_loss() {
    let case = Case::new();
    let first = |ssc: serde_json::Value| first_step(&case, &json!({ "ssc": ssc }));
    let same = first(json!({}));
    for switch in [
        json!({"temperature": 1.0}),
        json!({"unassigned_negative": false}),
        json!({"mask_absent_ids": false}),
        json!({"id_compaction": "buggy"}),
        json!({"id_width": "u8_wrap"}),
        json!({"level": "logit"}),
        json!({"prototypes": "global"}),
    ] {
        let other = first(switch.clone()).ssc.unwrap();
        assert!((other - same.ssc.unwrap()).abs() > 1e-3, "{switch}: {other} is {same:?}");
    }
    let through = first(json!({"proto_stopgrad": false}));
    assert_eq!(through.ssc, same.ssc);
    assert_ne!(through.grad_norm, same.grad_norm);
}

/// What only the epoch can pass on reaches the loss. (Each switch: `tests/it/cpm.rs` and `stage::prompt`.)
#[test]
fn switches_of_cpm_reach_its_loss() {
    let case = Case::new();
    let same = first_cpm(&case, &json!({}));
    for switch in [json!({"prompt": "mask"}), json!({"pad_label": "bg"}), json!({"absent_class": "neg_inf"})] {
        assert_ne!(first_cpm(&case, &switch), same, "{switch}");
    }
    // The encoder runs on the crops, and no embedding is read.
    let online = json!({"sam_input": "online_crop"});
    let case = case.without("embeddings");
    let ignored = first_cpm(&case, &online);
    assert_ne!(ignored, same);
    let bg = first_cpm(&case, &json!({"sam_input": "online_crop", "pad_label": "bg"}));
    assert_ne!(bg, ignored);
}
