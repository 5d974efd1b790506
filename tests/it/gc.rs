//! What a collection removes first, and what happens to a unit that needs it.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::AtomicBool;

use s2c_pipe::artifact::{ArtifactRef, Fingerprint, FingerprintInput, Manifest, SetListing};
use s2c_pipe::cache::{Again, Cache, GcReport, Keep, Removed};
use s2c_pipe::digest::BlobDigest;
use s2c_pipe::pipeline::graph::UnitIdx;
use s2c_pipe::pipeline::plan::plan;

use crate::engine::{Workspace, executed, params, pipeline, run_targets};

/// Records a unit whose output is its name, so many bytes long; gives the output's digest.
fn record(cache: &Cache, stage: &str, name: &str, size: usize, seconds: f64, reads: &[BlobDigest]) -> BlobDigest {
    let mut bytes = name.as_bytes().to_vec();
    bytes.resize(size, b'.');
    let digest = cache.store().write(&bytes, false).unwrap();
    let is_set = reads.len() > 1;
    let members: Vec<_> = reads.iter().enumerate().map(|(i, digest)| (i.to_string(), *digest)).collect();
    let read = match (reads, is_set) {
        (_, true) => Some(cache.store().write(&SetListing { members }.to_bytes(), false).unwrap()),
        (reads, false) => reads.first().copied(),
    };
    let inputs = read.map(|digest| FingerprintInput { slot: "in".into(), digest, is_set }).into_iter().collect();
    let fingerprint = Fingerprint { stage: stage.into(), version: 1, params: format!("\"{name}\""), inputs };
    let outputs = vec![ArtifactRef { name: "out".into(), digest, size: size as u64 }];
    let (label, made_by) = (format!("{stage} {name}"), String::new());
    cache
        .put(&Manifest { key: fingerprint.key(), label, fingerprint, outputs, seconds, finished: 0, made_by })
        .unwrap();
    digest
}

/// Which of some blobs are there.
fn there<'a>(cache: &Cache, blobs: &[(&'a str, BlobDigest)]) -> Vec<&'a str> {
    let is_there = |digest: &BlobDigest| cache.store().path(digest).exists();
    blobs.iter().filter(|(_, digest)| is_there(digest)).map(|(name, _)| *name).collect()
}

fn again(report: &GcReport) -> Vec<(&str, usize, f64)> {
    report.again.iter().map(|(stage, Again { units, seconds })| (stage.as_str(), *units, *seconds)).collect()
}

/// A training of three epochs that is kept, one of two that is not, and pictures that cost little and much a byte.
#[test]
fn superseded_checkpoints_go_first_then_the_cheapest_a_byte_and_only_as_much_as_is_needed() {
    let workspace = Workspace::new();
    let cache = workspace.open();
    let e0 = record(&cache, "epoch", "kept 0", 1000, 100.0, &[]);
    let e1 = record(&cache, "epoch", "kept 1", 1000, 100.0, &[e0]);
    let e2 = record(&cache, "epoch", "kept 2", 1000, 100.0, &[e1]);
    let seen = record(&cache, "infer", "kept", 10, 1.0, &[e1]);
    let o0 = record(&cache, "epoch", "old 0", 1000, 90.0, &[]);
    let o1 = record(&cache, "epoch", "old 1", 1000, 90.0, &[o0]);
    let cheap = record(&cache, "infer", "cheap", 1000, 1.0, &[o1]);
    let dear = record(&cache, "infer", "dear", 1000, 500.0, &[o1]);
    let lost = cache.store().write(b"of no record", false).unwrap();
    let all = [
        ("e0", e0),
        ("e1", e1),
        ("e2", e2),
        ("seen", seen),
        ("o0", o0),
        ("o1", o1),
        ("cheap", cheap),
        ("dear", dear),
        ("lost", lost),
    ];
    // e1 is what a shorter pipeline ends with.
    let keep = Keep { blobs: HashSet::from([e0, e1, e2, seen]), ends: HashSet::from([e1, e2, seen]) };
    let total = 7 * 1000 + 10 + 12;
    let left = |max: u64| {
        let report = cache.collect(&keep, Some(max), true).unwrap();
        assert!(report.kept_bytes <= max && report.kept_bytes + report.removed_bytes == total, "{report:?}");
        report
    };
    assert_eq!(left(total).removed_blobs, 0);
    assert_eq!(there(&cache, &all).len(), all.len(), "a dry run removes nothing");
    // What no record names, then superseded checkpoints, the cheaper first: o0 (90 s), then e0.
    assert_eq!(left(total - 1).removed_bytes, 12);
    assert_eq!(again(&left(total - 13)), [("epoch", 1, 90.0)]);
    assert_eq!(again(&left(total - 1013)), [("epoch", 2, 190.0)]);
    // `cheap` goes before o1, which is now the cost of two epochs; to have it again nothing else needs to run.
    assert_eq!(again(&left(total - 2013)), [("epoch", 2, 190.0), ("infer", 1, 1.0)]);
    assert_eq!(again(&left(total - 3013)), [("epoch", 3, 280.0), ("infer", 1, 1.0)]);

    let report = cache.collect(&keep, Some(total - 2013), false).unwrap();
    assert_eq!((report.removed_blobs, report.removed_bytes), (4, 3012));
    let removed = report.removed.iter().map(|(why, Removed { blobs, bytes })| (*why, *blobs, *bytes));
    assert_eq!(removed.collect::<Vec<_>>(), [("not_kept", 1, 1000), ("superseded", 2, 2000), ("unrecorded", 1, 12)]);
    assert_eq!(there(&cache, &all), ["e1", "e2", "seen", "o1", "dear"]);
    // Without a limit: all that is not kept, and nothing else. The cost has what was gone before and is needed for it.
    let report = cache.collect(&keep, None, false).unwrap();
    assert_eq!(there(&cache, &all), ["e1", "e2", "seen"]);
    assert_eq!(again(&report), [("epoch", 2, 180.0), ("infer", 1, 500.0)]);
    // What stays cannot go, whatever the limit.
    let report = cache.collect(&keep, Some(0), false).unwrap();
    assert_eq!((report.removed_blobs, report.kept_bytes), (0, 2010));
}

/// By the time it is `join`'s turn, all it reads is gone, so it has become dearer than `other`.
#[test]
fn what_goes_makes_dearer_what_was_derived_from_it() {
    let workspace = Workspace::new();
    let cache = workspace.open();
    let parts: Vec<_> = (0..3).map(|i| record(&cache, "part", &format!("{i}"), 100, 1.0, &[])).collect();
    let join = record(&cache, "join", "all", 100, 2.0, &parts);
    let other = record(&cache, "other", "x", 100, 4.0, &[]);
    let listing = 3 * 67;
    let total = 500 + listing;
    let blobs = [("part 0", parts[0]), ("join", join), ("other", other)];
    let report = cache.collect(&Keep::default(), Some(total - listing - 400), false).unwrap();
    assert_eq!(there(&cache, &blobs), ["join"]);
    assert_eq!(again(&report), [("other", 1, 4.0), ("part", 3, 3.0)]);
}

/// All users of an SE map, embedding or checkpoint are cached: it stays away. A user that has to run has it made again.
#[test]
fn what_was_removed_is_made_again_when_a_unit_that_runs_needs_it() {
    let workspace = Workspace::new();
    let (graph, last) = pipeline(&["a", "b"], &params("."), "!");
    let interrupted = AtomicBool::new(false).into();
    // As in `run`, where embeddings, SE maps and checkpoints are targets too.
    let targets: Vec<UnitIdx> = (0..graph.len()).collect();
    let run = |restore| run_targets(&workspace.open(), &graph, &targets, restore, &interrupted);
    let outputs = |report: &s2c_pipe::pipeline::run::RunReport| -> Vec<_> {
        targets.iter().map(|unit| report.outcomes.outputs(*unit)).collect()
    };
    let first = outputs(&run(false));
    let end = first[last][0].digest;
    let collect = || {
        let keep = Keep { blobs: [end].into(), ends: [end].into() };
        let report = workspace.open().collect(&keep, None, false).unwrap();
        assert_eq!(report.kept_blobs, 1);
    };
    collect();
    let cached = run(false);
    assert_eq!((cached.n_executed(), outputs(&cached)), (0, first.clone()));
    assert_eq!(plan(&graph, &workspace.open(), &targets).unwrap().n_to_run(), 0, "a plan says so too");
    assert!(!workspace.blob("a.").exists());

    // Another end reads `join`, which reads `a.` and `b.`.
    let other = pipeline(&["a", "b"], &params("."), "?");
    assert_eq!(plan(&other.0, &workspace.open(), &[other.1]).unwrap().n_to_run(), 4);
    assert_eq!(workspace.counts(&other), (executed(&[("concat", 2), ("concat_each", 2)]), "a.b.|?".into()));
    assert!(workspace.blob("a.").exists() && workspace.blob("a.b.|").exists());
    assert_eq!(outputs(&run(false)), first);

    collect();
    let restored = run(true);
    assert_eq!(restored.executed, BTreeMap::from([("concat".into(), 1), ("concat_each".into(), 2)]));
    assert_eq!(outputs(&restored), first);
    assert!(workspace.open().verify().unwrap().incomplete.iter().all(|label| label == "concat end"));
}

#[test]
fn the_program_tells_what_would_go_and_what_it_would_cost() {
    let workspace = Workspace::new();
    let cache = workspace.open();
    let e0 = record(&cache, "cam_epoch", "0", 2_000_000, 5400.0, &[]);
    record(&cache, "cam_epoch", "1", 1_000_000, 90.0, &[e0]);
    drop(cache);
    let program = |args: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_s2c-pipe"));
        let output = command.args(["cache", "gc"]).args(args).arg("--cache").arg(&workspace.cache).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.success(), text(output.stdout), text(output.stderr))
    };
    let (_, said, _) = program(&["--max-size", "1.5MB", "--dry-run"]);
    insta::assert_snapshot!(said, @r"
    1 blobs, 2.0 MB would be removed; 1 blobs, 1.0 MB stay
    superseded            1         2.0 MB
    to make it again, if ever: 1 h 30 min
    cam_epoch             1     1 h 30 min
    ");
    assert_eq!(program(&["--max-size", "1.5MB"]).1, said.replace("would be removed", "removed"));
    // What is left would need the other again.
    let (_, json, _) = program(&["--max-size", "0", "--dry-run", "--json"]);
    let report: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(report["again"]["cam_epoch"], serde_json::json!({ "units": 2, "seconds": 5490.0 }));
    let (is_ok, _, error) = program(&[]);
    assert!(!is_ok && error.contains("<KEEP>"), "{error}");
}
