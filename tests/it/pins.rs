//! Every stage's output on a tiny input, pinned: a change of output without a change of VERSION fails here.
//!
//! Bytes differ between processors by rounding, so what is pinned is a few numbers of each output, within a few per
//! cent. Where arithmetic is exact the stages' own tests compare exactly.

use std::collections::BTreeMap;
use std::path::Path;

use s2c_pipe::cache::Cache;
use s2c_pipe::data::image::{decode_label_map, decode_se_map};
use s2c_pipe::model::weights::Weights;
use s2c_pipe::pipeline::build::registry;
use serde::{Deserialize, Serialize};
use tch::Kind;

use crate::program::{finished_copy, succeeds};

/// Relative to the pinned number.
const TOLERANCE: f64 = 0.03;

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Pin {
    version: u64,
    /// By output and what was measured, the mean over all units of the stage.
    numbers: BTreeMap<String, f64>,
}

/// What tells one output from another.
fn numbers(bytes: &[u8]) -> Vec<(&'static str, f64)> {
    let mean = |values: &mut dyn Iterator<Item = f64>| {
        let (sum, n) = values.fold((0.0, 0.0), |(sum, n), value| (sum + value, n + 1.0));
        sum / f64::max(n, 1.0)
    };
    if let Ok(map) = decode_label_map(bytes) {
        let painted = mean(&mut map.data.iter().map(|&label| f64::from(u8::from(label > 0))));
        return vec![("painted", painted), ("mean", mean(&mut map.data.iter().map(|&label| f64::from(label))))];
    }
    if let Ok(map) = decode_se_map(bytes) {
        let painted = mean(&mut map.data.iter().map(|&id| f64::from(u8::from(id > 0))));
        return vec![("painted", painted), ("ids", f64::from(map.data.iter().copied().max().unwrap_or(0)))];
    }
    if let Ok(file) = Weights::parse(bytes) {
        let absolute =
            |name: &str| f64::try_from(file.raw(name).unwrap().to_kind(Kind::Float).abs().mean(Kind::Double));
        let all: Vec<&str> = file.names().filter(|name| !name.starts_with("momentum.")).collect();
        let moved: Vec<&str> = file.names().filter(|name| name.starts_with("momentum.")).collect();
        let of = |names: &[&str]| mean(&mut names.iter().map(|name| absolute(name).unwrap()));
        return vec![("size", of(&all)), ("momentum", of(&moved))];
    }
    let json: serde_json::Value = serde_json::from_slice(bytes).unwrap();
    fn all(json: &serde_json::Value, found: &mut Vec<f64>) {
        match json {
            serde_json::Value::Array(values) => values.iter().for_each(|value| all(value, found)),
            serde_json::Value::Object(values) => values.values().for_each(|value| all(value, found)),
            other => found.extend(other.as_f64()),
        }
    }
    let mut found = Vec::new();
    all(&json, &mut found);
    vec![("mean", mean(&mut found.into_iter()))]
}

#[test]
fn outputs_change_only_with_versions() {
    let dir = finished_copy();
    // The stage that replaces another, and nothing after it.
    let sets = ["pseudo_label.refine=['sam_prompt']", "segmentation.enabled=false", "evaluate.pseudo_labels=false"];
    succeeds(dir.path(), &["run", "tiny.toml", "--set", sets[0], "--set", sets[1], "--set", sets[2]]);
    let cache = Cache::open(&dir.path().join("cache"), "test", &|_| true).unwrap();
    let mut sums: BTreeMap<String, BTreeMap<String, (f64, f64)>> = BTreeMap::new();
    for manifest in cache.manifests().unwrap() {
        for output in &manifest.outputs {
            let of_stage = sums.entry(manifest.fingerprint.stage.to_string()).or_default();
            for (name, value) in numbers(&cache.store().read(&output.digest).unwrap()) {
                let (sum, n) = of_stage.entry(format!("{} {name}", output.name)).or_default();
                (*sum, *n) = (*sum + value, *n + 1.0);
            }
        }
    }
    let pin = |entry: &s2c_pipe::stage::StageEntry| {
        let numbers = sums[entry.kind].iter().map(|(name, (sum, n))| (name.clone(), sum / n)).collect();
        (entry.kind.to_owned(), Pin { version: entry.version, numbers })
    };
    let ran = |entry: &&s2c_pipe::stage::StageEntry| sums.contains_key(entry.kind);
    let found: BTreeMap<String, Pin> = registry().entries().iter().filter(ran).map(pin).collect();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/stages.json");
    if std::env::var_os("S2C_PIN").is_some() {
        std::fs::write(&path, serde_json::to_string_pretty(&found).unwrap() + "\n").unwrap();
    }
    let pinned: BTreeMap<String, Pin> = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let again = "run this test with S2C_PIN=1 to pin what is there now";
    assert!(found.keys().eq(pinned.keys()), "other stages than those pinned: {again}");
    for (stage, is) in &found {
        let was = &pinned[stage];
        assert_eq!(is.version, was.version, "{stage} has a new VERSION: {again}");
        for (name, was) in &was.numbers {
            let is = is.numbers[name];
            let same = (is - was).abs() <= TOLERANCE * was.abs() + 1e-6;
            assert!(same, "{stage}: {name} is {is}, was {was}: its output changed, so raise its VERSION");
        }
    }
}
