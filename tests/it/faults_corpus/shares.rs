//! Shares whose records say what no unit gave.

use std::fs;
use std::path::Path;

use s2c_pipe::artifact::{ArtifactRef, Manifest};
use s2c_pipe::cache::Cache;
use s2c_pipe::digest::BlobDigest;

use crate::program::{call, finished_copy, succeeds, text, to_run};

/// Makes a cache of another's records, where the score of the first seeds is better than it is.
fn forge(honest: &Path, forged: &Path) -> String {
    let from = Cache::open(honest, "test", &|_| true).unwrap();
    let to = Cache::open(forged, "test", &|_| true).unwrap();
    let mut label = String::new();
    for mut manifest in from.manifests().unwrap() {
        for output in &mut manifest.outputs {
            let mut bytes = from.store().read(&output.digest).unwrap();
            if label.is_empty() && manifest.label.starts_with("seed_eval") && output.name == "metrics" {
                let mut metrics: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
                metrics["miou"] = 0.99.into();
                bytes = serde_json::to_vec(&metrics).unwrap();
                label.clone_from(&manifest.label);
                let (digest, size) = (BlobDigest::of(&bytes), bytes.len() as u64);
                *output = ArtifactRef { name: output.name.clone(), digest, size };
            }
            to.store().write(&bytes, false).unwrap();
        }
        for listing in manifest.fingerprint.inputs.iter().filter(|input| input.is_set) {
            to.store().write(&from.store().read(&listing.digest).unwrap(), false).unwrap();
        }
        to.put(&Manifest { finished: manifest.finished, ..manifest }).unwrap();
    }
    label
}

#[test]
fn an_audit_finds_a_forged_record_before_it_is_believed() {
    let dir = finished_copy();
    let at = |name: &str| dir.path().join(name);
    let label = forge(&at("cache"), &at("forged"));
    assert!(!label.is_empty());
    succeeds(dir.path(), &["--cache", "forged", "cache", "push", "bad"]);
    succeeds(dir.path(), &["cache", "push", "good"]);
    fs::rename(at("cache"), at("before")).unwrap();
    let all = to_run(dir.path(), &[]);

    let pull = |share: &str, part: &str| {
        call(dir.path(), &["cache", "pull", share, "--audit", part, "--audit-seed", "1", "--file", "tiny.toml"])
    };
    let output = pull("bad", "100%");
    let said = text(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains(&format!("drifted: {label}, `metrics`: ")), "{said}");
    assert!(said.contains("error: 1 unit did not give the same bytes here: nothing of `bad` was taken"), "{said}");
    assert_eq!(to_run(dir.path(), &[]), all, "nothing of it is believed");
    assert!(fs::read_dir(at("cache/scratch")).unwrap().next().is_none(), "what was beside the cache is gone");

    // An honest one is taken, but not with a file that has nothing of it.
    fs::write(at("other.toml"), "extends = 'tiny.toml'\ndataset.emoji.rng_seed = 9\nse_map.points_per_side = 2\n")
        .unwrap();
    let args = ["cache", "pull", "good", "--audit", "5%", "--file", "other.toml", "--set", "precision=bf16"];
    let output = call(dir.path(), &args);
    assert!(!output.status.success() && text(&output).contains("nothing was looked at or taken"), "{}", text(&output));
    let output = pull("good", "5%");
    assert!(output.status.success() && text(&output).contains(" units gave the same bytes again"), "{}", text(&output));
    assert!(to_run(dir.path(), &[]).is_empty());
    // What is here already is not looked at again.
    let output = pull("good", "5%");
    assert!(output.status.success() && text(&output).contains("0 units, 0 blobs"), "{}", text(&output));
}
