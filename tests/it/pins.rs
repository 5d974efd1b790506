//! Every stage's output on small frozen inputs, pinned: a change of output without a change of VERSION fails here.
//!
//! Each stage runs alone. What it reads is made by arithmetic that is exact on every processor (integers, quotients of
//! them, the ChaCha streams of `data::rng`) or committed, and never by another stage: of a chain, the end would measure
//! how the processor rounds. A training takes one step. What is pinned of an output are a few numbers that move when
//! anything in it moves: see [`numbers`].
//!
//! `S2C_PIN=1 cargo test --release --test it pins::` pins what is there now; it takes seconds.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use s2c_pipe::artifact::{Fingerprint, FingerprintInput, SetListing};
use s2c_pipe::data::image::{
    decode_label_map, decode_se_map, encode_label_map, encode_rgb, encode_se_map, voc_palette,
};
use s2c_pipe::model::weights::{Weights, to_safetensors};
use s2c_pipe::pipeline::build::registry;
use s2c_pipe::stage::cam_file::{write_cam, write_scores};
use s2c_pipe::stage::seg_crf::CrfSet;
use s2c_pipe::stage::{Output, StageContext, StageEntry, UnitInput};
use s2c_pipe::vision::{Cam, Grid, IGNORE, LabelMap, Rgb, ScoreMap};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tch::{Kind, Tensor};

use crate::cam_epoch::{Store, picture};
use crate::device::stage_device;

/// Relative to the size of what is pinned. A single pixel on a border may fall on its other side, and a unit of a ReLU be
/// off that was on.
const TOLERANCE: f64 = 0.01;

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Pin {
    version: u64,
    /// By output and part: the size of it, and numbers of that size or less.
    numbers: BTreeMap<String, Vec<f64>>,
}

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// The length of a vector, and its sums under three fixed patterns of signs. By how much such a sum moves is about the
/// length of what was added to the vector, wherever it was added.
fn sketch(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let (mut squares, mut sums) = (0.0, [0.0; 3]);
    for (i, value) in (0u64..).zip(values) {
        // SplitMix64
        let z = i.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        squares += value * value;
        for (k, sum) in sums.iter_mut().enumerate() {
            *sum += if z >> (40 + k) & 1 == 1 { value } else { -value };
        }
    }
    [f64::sqrt(squares)].into_iter().chain(sums).collect()
}

fn of_tensors(tensors: impl Iterator<Item = Tensor>) -> Vec<f64> {
    let values = |tensor: Tensor| Vec::<f64>::try_from(tensor.to_kind(Kind::Double).flatten(0, -1)).unwrap();
    sketch(tensors.flat_map(values))
}

/// Of each id: which part of the pixels it has, and where they lie.
fn of_map(map: &Grid<u16>) -> impl Iterator<Item = (String, Vec<f64>)> {
    let mut of_ids: BTreeMap<u16, Vec<f64>> = BTreeMap::new();
    let size = (map.height as f64, map.width as f64);
    for (i, id) in map.data.iter().enumerate() {
        let (y, x) = ((i / map.width) as f64 / size.0, (i % map.width) as f64 / size.1);
        let sums = of_ids.entry(*id).or_insert_with(|| vec![0.0; 3]);
        for (sum, value) in sums.iter_mut().zip([1.0, y, x]) {
            *sum += value / (size.0 * size.1);
        }
    }
    of_ids.into_iter().map(|(id, sums)| (format!("id {id}"), sums))
}

/// Of tensors, sketches: of a checkpoint apart the gradient that the first step saw (its momentum), how far the step went
/// from `start`, and everything. Of a map what each id covers; of JSON its numbers.
fn numbers(output: &Output, start: Option<&Weights>) -> Vec<(String, Vec<f64>)> {
    let bytes = output.bytes.as_slice();
    if let Ok(map) = decode_label_map(bytes) {
        let ids = map.data.iter().map(|&label| u16::from(label)).collect();
        return of_map(&Grid::new(map.height, map.width, ids)).collect();
    }
    if let Ok(map) = decode_se_map(bytes) {
        return of_map(&map).collect();
    }
    if let Ok(file) = Weights::parse(bytes) {
        let names = || file.names().map(|name| (name, file.raw(name).unwrap()));
        let moments = || names().filter(|(name, _)| name.starts_with("momentum."));
        let all = ("all".to_owned(), of_tensors(names().map(|(_, tensor)| tensor)));
        let Some(start) = start else { return vec![all] };
        let gradient = of_tensors(moments().map(|(_, tensor)| tensor));
        let moved = moments().map(|(name, _)| {
            let name = name.trim_start_matches("momentum.");
            file.raw(name).unwrap() - start.raw(name).unwrap()
        });
        return vec![all, ("gradient".into(), gradient), ("step".into(), of_tensors(moved))];
    }
    let mut found = Vec::new();
    of_json(&serde_json::from_slice(bytes).unwrap(), "", &mut found);
    found
}

fn of_json(json: &Value, at: &str, found: &mut Vec<(String, Vec<f64>)>) {
    match json {
        Value::Array(values) if !values.is_empty() && values.iter().all(Value::is_number) => {
            found.push((at.to_owned(), sketch(values.iter().filter_map(Value::as_f64))));
        }
        Value::Array(values) => {
            values.iter().enumerate().for_each(|(i, value)| of_json(value, &format!("{at}.{i}"), found));
        }
        Value::Object(values) => {
            values.iter().for_each(|(name, value)| of_json(value, &format!("{at}.{name}"), found));
        }
        other => found.extend(other.as_f64().map(|value| (at.to_owned(), vec![value]))),
    }
}

/// What is in a slot.
enum Slot {
    One(Vec<u8>),
    Set(Vec<Vec<u8>>),
}
use Slot::{One, Set};

fn rgb(i: usize) -> Vec<u8> {
    encode_rgb(&picture(i).0)
}

/// The disc is of a class, its strip of no segment ignored.
fn labels(i: usize) -> LabelMap {
    let map = picture(i).1;
    let label = |&id: &u16| match id {
        0 => IGNORE,
        301 => 1 + (i % 3) as u8,
        id if id < 300 => (id % 4) as u8,
        _ => 0,
    };
    LabelMap::new(map.height, map.width, map.data.iter().map(label).collect())
}

/// Two classes, highest at the disc and beside it, in steps of a 900th.
fn cam(i: usize) -> Cam {
    let (height, width) = (60, 80);
    let centres = [(20 + 5 * i, 25 + 9 * i), (40, 60 - 10 * i)];
    let score = |(y, x): (usize, usize), p: usize| {
        let far = (p / width).abs_diff(y).pow(2) + (p % width).abs_diff(x).pow(2);
        900usize.saturating_sub(far) as f32 / 900.0
    };
    let data = centres.iter().flat_map(|&centre| (0..height * width).map(move |p| score(centre, p))).collect();
    Cam { classes: vec![1, 3], height, width, data }
}

/// The labels of the picture 1 as a picture in VOC's colours.
fn picture_in_colours() -> Vec<u8> {
    let (labels, palette) = (labels(1), voc_palette());
    let data = labels.data.iter().flat_map(|label| palette[usize::from(*label) * 3..][..3].to_vec()).collect();
    encode_rgb(&Rgb { height: labels.height, width: labels.width, data })
}

/// What SAM makes of the picture 1, in blocks of 4 x 4 and whole 16ths: see [`make_the_embedding`].
fn embedding() -> Vec<u8> {
    let blocks = Weights::parse(std::fs::read(path("tests/golden/pins/embedding.safetensors")).unwrap()).unwrap();
    let blocks = (blocks.raw("blocks").unwrap().to_kind(Kind::Float) - 128.0) / 16.0;
    let embedding = blocks.repeat_interleave_self_int(4, 1, None).repeat_interleave_self_int(4, 2, None);
    let size = Tensor::from_slice(&[60i64, 80]);
    to_safetensors([("embedding", &embedding.to_kind(Kind::Half)), ("image_size", &size)]).unwrap()
}

#[test]
#[ignore = "makes tests/golden/pins/embedding.safetensors, which is committed"]
fn make_the_embedding() {
    use s2c_pipe::stage::sam_embed::SamEmbed;
    let inputs = [("image", rgb(1)), ("weights", weights("mobile_sam"))];
    let found = crate::sam_refine::run::<SamEmbed>(&mut Store::default(), &json!({"precision": "f32"}), &inputs);
    let found = Weights::parse(found.unwrap()).unwrap().raw("embedding").unwrap().to_kind(Kind::Float);
    let blocks: Tensor = found.avg_pool2d([4, 4], [4, 4], [0, 0], false, true, None) * 16.0;
    let blocks = (blocks.round() + 128.0).clamp(0.0, 255.0).to_kind(Kind::Uint8);
    std::fs::write(path("tests/golden/pins/embedding.safetensors"), to_safetensors([("blocks", &blocks)]).unwrap())
        .unwrap();
}

fn weights(name: &str) -> Vec<u8> {
    std::fs::read(path("pipelines/weights").join(format!("{name}.f16.safetensors"))).unwrap()
}

/// Parameters and inputs of a stage. Layers that weights do not have are drawn from a stream.
fn case(kind: &str) -> (Value, Vec<(&'static str, Slot)>) {
    let all = |of: &dyn Fn(usize) -> Vec<u8>| Set((0..4).map(of).collect());
    let (images, resnet, sam) = (all(&rgb), weights("resnet50_v1"), weights("mobile_sam"));
    let with = |more: Value| {
        let mut params = json!({"precision": "f32", "backbone": "resnet50v1", "stride": 16});
        params.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        params
    };
    let training = |more: Value| {
        let mut params = with(json!({
            "epoch": 0, "epochs": 2, "rng_seed": 3, "batch_size": 4, "crop": 64, "lr": 0.01, "head_lr_mult": 10.0,
            "momentum": 0.9, "weight_decay": 5e-4
        }));
        params.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        params
    };
    let prompt = json!({
        "tau": 0.5, "min_distance": 20, "mask_choice": "best_iou", "alpha_sam": "logit", "alpha_cam": "mean"
    });
    let (label_maps, cams) = (all(&|i| encode_label_map(&labels(i))), all(&|i| write_cam(&cam(i)).unwrap()));
    let the_cam = || One(write_cam(&cam(1)).unwrap());
    let (image, se_map) = (One(rgb(1)), One(encode_se_map(&picture(1).1)));
    let scores = |miou: f64| {
        let metrics = json!({
            "miou": miou, "per_class": [miou], "pixel_accuracy": 0.5, "mean_accuracy": 0.5, "mean_precision": 0.5,
            "fw_iou": 0.5, "precision": [0.5], "recall": [0.5], "confusion": [[2]], "threshold": 0.5, "curve": [[0.5, miou]]
        });
        serde_json::to_vec(&metrics).unwrap()
    };
    match kind {
        "sam_embed" => (json!({"precision": "f32"}), vec![("image", image), ("weights", One(sam))]),
        "se_map" => {
            let params = json!({
                "precision": "f32", "points_per_side": 4, "pred_iou_thresh": 0.7, "stability_score_thresh": 0.8,
                "stability_score_offset": 1.0, "box_nms_thresh": 0.7, "overlap": "area_asc"
            });
            (params, vec![("embedding", One(embedding())), ("weights", One(sam))])
        }
        "cam_epoch" => {
            // A CAM of layers that have just been drawn is flat, and rounding would choose among its peaks: it is the prompt
            // itself. (Peaks are those of `sam_refine`.)
            let params = training(json!({
                "feat_dim": 16, "n_classes": 3, "resize_long": [50, 100], "jitter": [0.4, 0.4, 0.4, 0.1],
                "ssc": {"weight": 1.0, "temperature": 0.5, "proto_stopgrad": true, "unassigned_negative": true},
                "cpm": {"weight": 1.0, "tau": 0.5, "scales": [0.5, 1.0], "prompt": "mask", "mask_index": 2,
                        "alpha_sam": "logit", "alpha_cam": "mean", "pad_label": "ignore"},
                "equivariance": {"weight": 1.0, "scale": 0.5}
            }));
            let inputs = vec![
                ("weights", One(resnet)),
                ("images", images),
                ("labels", One(b"item0\t1\nitem1\t2\nitem2\t1 3\nitem3\t2 3\n".to_vec())),
                ("se_maps", all(&|i| encode_se_map(&picture(i).1))),
                ("embeddings", all(&|_| embedding())),
                ("sam_weights", One(sam)),
            ];
            (params, inputs)
        }
        "cam_infer" => {
            let params = with(json!({"feat_dim": 16, "n_classes": 3, "scales": [0.5, 1.0], "flip": true}));
            (params, vec![("checkpoint", One(resnet)), ("image", image), ("labels", One(vec![1, 3]))])
        }
        // A picture of 6 x 5: 7 pixels of nothing, 9 of class 3, the rest of nothing.
        "coco_mask" => (json!({}), vec![("outlines", One(vec![6, 5, 3, 1, 3, 7, 9, 14]))]),
        // The classes of a map in the colours of VOC.
        "mask_file" => {
            let colours =
                json!({"reading": {"colours": {"0": 0, "8388608": 1, "32768": 2, "8421376": 3, "14737600": IGNORE}}});
            (colours, vec![("file", One(picture_in_colours()))])
        }
        "seed_eval" => (json!({"n_classes": 3, "classes": []}), vec![("cams", cams), ("masks", label_maps)]),
        "select_epoch" => {
            let metrics = Set([0.2, 0.4, 0.3].map(scores).into());
            let checkpoints = Set(["5", "6", "7"].map(|text| text.as_bytes().to_vec()).into());
            (json!({}), vec![("metrics", metrics), ("checkpoints", checkpoints)])
        }
        "sam_refine" => {
            let inputs = vec![("cam", the_cam()), ("embedding", One(embedding())), ("weights", One(sam))];
            (json!({"precision": "f32", "prompt": prompt}), inputs)
        }
        "affinity_label" => {
            let psa = json!({"psa": {"field": CrfSet::Psa.params(), "low_alpha": 4.0, "high_alpha": 32.0}});
            (psa, vec![("cam", the_cam()), ("image", image)])
        }
        "psa_epoch" | "irn_epoch" => {
            let params = training(json!({"rescale": [0.9, 1.1], "radius": 4}));
            (params, vec![("weights", One(resnet)), ("images", images), ("labels", label_maps)])
        }
        "psa_walk" => {
            let params = with(json!({"alpha": 16.0, "radius": 4, "beta": 8.0, "steps": 16}));
            (params, vec![("checkpoint", One(resnet)), ("image", image), ("cam", the_cam())])
        }
        "irn_walk" => {
            let params = with(json!({"radius": 4, "beta": 8.0, "steps": 16}));
            let weights = ("weights", One(resnet.clone()));
            (params, vec![weights, ("checkpoint", One(resnet)), ("image", image), ("cam", the_cam())])
        }
        "pseudo_label" => {
            let crf = json!({"field": CrfSet::Irn.params(), "certainty": 0.7});
            let params = json!({"threshold": 0.4, "refine": ["segment_vote", "crf"], "crf": crf});
            (params, vec![("cam", the_cam()), ("se_map", se_map), ("image", image)])
        }
        "seg_epoch" => {
            let params = training(json!({"n_labels": 4, "scale": [0.5, 1.5]}));
            (params, vec![("weights", One(resnet)), ("images", images), ("labels", label_maps)])
        }
        "seg_infer" => {
            let params = with(json!({"n_labels": 4, "scales": [0.5, 1.0], "flip": true, "scores": true}));
            (params, vec![("checkpoint", One(resnet)), ("image", image)])
        }
        "seg_crf" => {
            let Cam { height, width, data, .. } = cam(1);
            let background = (0..height * width).map(|p| 1.0 - data[p].max(data[height * width + p]));
            let of_three: Vec<f32> = background.chain(data.iter().copied()).collect();
            let total = |i: usize| (0..3).map(|k| of_three[k * height * width + i % (height * width)]).sum::<f32>();
            let data = of_three.iter().enumerate().map(|(i, score)| score / total(i)).collect();
            let scores = write_scores(&ScoreMap { labels: vec![0, 1, 3], height, width, data }).unwrap();
            (json!(CrfSet::Deeplab.params()), vec![("image", image), ("scores", One(scores))])
        }
        "evaluate" => {
            let shifted = |i: usize| encode_label_map(&labels((i + 1) % 4));
            (json!({"n_classes": 3, "classes": []}), vec![("predictions", all(&shifted)), ("masks", label_maps)])
        }
        other => panic!("the stage `{other}` is not pinned: give it small inputs here"),
    }
}

/// Runs a stage on frozen inputs, with some parameters changed.
fn run(entry: &StageEntry, changes: &[(&str, Value)]) -> Vec<Output> {
    let (mut params, slots) = case(entry.kind);
    for (name, value) in changes {
        if let Some(param) = params.get_mut(name) {
            *param = value.clone();
        }
    }
    let mut store = Store::default();
    let mut input = |(slot, value): (&str, Slot)| {
        let is_set = matches!(value, Set(_));
        let digest = match value {
            One(bytes) => store.put(bytes),
            Set(members) => {
                let put = |(i, bytes): (usize, Vec<u8>)| (format!("item{i}"), store.put(bytes));
                let members = members.into_iter().enumerate().map(put).collect();
                store.put(SetListing { members }.to_bytes())
            }
        };
        FingerprintInput { slot: slot.into(), digest, is_set }
    };
    let inputs = slots.into_iter().map(&mut input).collect();
    let params = params.to_string();
    let fingerprint = Fingerprint { stage: entry.kind.into(), version: entry.version, params, inputs };
    let scratch = tempfile::tempdir().unwrap();
    let context = StageContext {
        device: stage_device(),
        progress: Arc::new(|_| ()),
        scratch: scratch.path().to_owned(),
        interrupted: Arc::new(AtomicBool::new(false)),
    };
    let mut stage = (entry.load)(&fingerprint.params, &context).unwrap();
    let input = UnitInput { label: entry.kind, fingerprint: &fingerprint, reader: &store };
    stage.run(&input).unwrap_or_else(|error| panic!("{}: {error:#}", entry.kind))
}

fn pin(entry: &StageEntry, changes: &[(&str, Value)]) -> Pin {
    let outputs = run(entry, changes);
    // What a training started from, its new layers too: it goes nowhere at a learning rate of 0.
    let start = (outputs[0].name == "checkpoint" && outputs.len() > 1).then(|| {
        let nowhere = run(entry, &[("lr", json!(0.0)), ("cpm", Value::Null), ("equivariance", Value::Null)]).remove(0);
        Weights::parse(nowhere.bytes).unwrap()
    });
    let of = |output: &Output| {
        let name = |part: String| format!("{} {part}", output.name);
        numbers(output, start.as_ref()).into_iter().map(|(part, values)| (name(part), values)).collect::<Vec<_>>()
    };
    let mut numbers: BTreeMap<String, Vec<f64>> = outputs.iter().flat_map(of).collect();
    if entry.kind == "pseudo_label" && changes.iter().all(|(name, _)| *name != "refine") {
        // A vote and a CRF end at the same border wherever the threshold left it.
        let plain = pin(entry, &[changes, &[("refine", json!([]))]].concat());
        numbers.extend(plain.numbers.into_iter().map(|(name, values)| (format!("not refined: {name}"), values)));
    }
    Pin { version: entry.version, numbers }
}

/// How far apart two measures of a part are, relative to its size. Of a map a part without pixels is one of size 0, and
/// one of few pixels counts as a tenth of the map: it may lose a few to its neighbours.
fn distance(name: &str, is: &[f64], was: &[f64]) -> f64 {
    let of_map = name.contains(" id ");
    let at = |values: &[f64], i: usize| match values.get(i) {
        Some(value) => *value,
        None if of_map => 0.0,
        None => f64::INFINITY,
    };
    let apart = (0..is.len().max(was.len())).map(|i| (at(is, i) - at(was, i)).abs()).fold(0.0, f64::max);
    apart / at(was, 0).abs().max(if of_map { 0.1 } else { 1e-6 })
}

/// What rounding does not move, another meaning does: of each of these changes something shows.
#[test]
fn a_change_of_meaning_is_seen() {
    let changes = [
        ("seg_epoch", "head_lr_mult", json!(10.3)),
        ("seg_epoch", "scale", json!([0.5, 1.4])),
        ("psa_epoch", "head_lr_mult", json!(10.3)),
        ("se_map", "stability_score_thresh", json!(0.999)),
        ("irn_walk", "beta", json!(8.5)),
        ("pseudo_label", "threshold", json!(0.45)),
        ("seg_infer", "scales", json!([0.5, 1.1])),
    ];
    for (kind, param, value) in changes {
        let entry = *registry().get(kind).unwrap();
        let (was, is) = (pin(&entry, &[]).numbers, pin(&entry, &[(param, value.clone())]).numbers);
        // A training writes its learning rate down, which would be seen without any meaning.
        let names = was.keys().filter(|name| !name.ends_with(".lr"));
        let off = names.map(|name| distance(name, is.get(name).map_or(&[], Vec::as_slice), &was[name]));
        let off = off.fold(0.0, f64::max);
        assert!(off > TOLERANCE, "{kind}: {param} = {value} is off by {off:.1e} alone");
    }
}

#[test]
fn outputs_change_only_with_versions() {
    let file = path("tests/golden/pins/stages.json");
    let found: BTreeMap<String, Pin> =
        registry().entries().iter().map(|entry| (entry.kind.to_owned(), pin(entry, &[]))).collect();
    if std::env::var_os("S2C_PIN").is_some() {
        std::fs::write(&file, serde_json::to_string_pretty(&found).unwrap() + "\n").unwrap();
    }
    let pinned: BTreeMap<String, Pin> = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    let again = "run this test with S2C_PIN=1 to pin what is there now";
    assert!(found.keys().eq(pinned.keys()), "other stages than those pinned: {again}");
    let mut changed = Vec::new();
    for (stage, is) in &found {
        let was = &pinned[stage];
        assert_eq!(is.version, was.version, "{stage} has a new VERSION: {again}");
        let names: BTreeSet<&String> = is.numbers.keys().chain(was.numbers.keys()).collect();
        for name in names {
            let (is, was) = (is.numbers.get(name), was.numbers.get(name));
            let off = distance(name, is.map_or(&[], Vec::as_slice), was.map_or(&[], Vec::as_slice));
            if off > TOLERANCE {
                changed.push(format!("{stage}: {name} is {is:?}, was {was:?}: off by {off:.1e}"));
            }
        }
    }
    assert!(changed.is_empty(), "outputs changed, so raise their stages' VERSIONs:\n{}", changed.join("\n"));
}
