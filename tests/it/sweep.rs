//! Sweeps through the program: what the points of an axis share runs once.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::program::{digests, finished_copy, plan, succeeds};

/// Finished units of a folder, by stage.
fn finished_units(folder: &Path) -> BTreeMap<String, usize> {
    let mut units: Vec<String> = digests(folder).into_keys().collect();
    // A unit has a line for each output: `key stage item.. output`.
    units.iter_mut().for_each(|unit| unit.truncate(unit.rfind(' ').unwrap()));
    units.dedup();
    let mut counts = BTreeMap::new();
    units.iter().for_each(|unit| *counts.entry(unit.split(' ').nth(1).unwrap().to_owned()).or_default() += 1);
    counts
}

/// What a run adds, by stage.
fn added(folder: &Path, args: &[&str]) -> BTreeMap<String, usize> {
    let before = finished_units(folder);
    succeeds(folder, &[&["run"], args].concat());
    let mut after = finished_units(folder);
    after.iter_mut().for_each(|(stage, n)| *n -= before.get(stage).copied().unwrap_or(0));
    after.retain(|_, n| *n > 0);
    after
}

/// SSC acts from epoch 0, CPM from epoch 1 of two.
#[test]
fn a_sweep_of_tau_and_temperature_trains_only_the_epochs_that_differ() {
    let dir = finished_copy();
    let sweep = r#"
        extends = "tiny.toml"
        segmentation.enabled = false
        report.overlays = 0
        [[variant]]
        name = "S2C"
        ssc.enabled = true
        cpm.enabled = true
        [sweep]
        "cpm.tau" = [0.1, 0.3, 0.5, 0.7, 0.9]
        "ssc.temperature" = [0.5, 1.0, 0.1]
    "#;
    fs::write(dir.path().join("sweep.toml"), sweep).unwrap();
    let planned = plan(dir.path(), "sweep.toml", &[]);
    assert_eq!((&planned["cells"], &planned["trainings"]), (&15.into(), &15.into()));
    // Of 30 epochs: one epoch 0 for each temperature, of which that of 0.5 has run, and one epoch 1 for each cell, of
    // which that of 0.5 and 0.5 has run.
    let added_units = added(dir.path(), &["sweep.toml"]);
    assert_eq!(added_units["cam_epoch"], (3 - 1) + (15 - 1), "{added_units:?}");
    for stage in ["sam_embed", "se_map"] {
        assert!(!added_units.contains_key(stage), "{added_units:?}");
    }
    assert!(added(dir.path(), &["sweep.toml"]).is_empty());
}

/// Scores of the earlier epoch, the choice, and what follows only where the choice is not the last.
#[test]
fn selection_with_ground_truth_trains_nothing_anew() {
    let dir = finished_copy();
    let plain = ["tiny.toml", "--set", "segmentation.enabled=false", "--set", "report.overlays=0"];
    let args = [&plain[..], &["--set", "seed.select=best_gt"]].concat();
    let added_units = added(dir.path(), &args);
    // Two variants share epoch 0 only if it is the same; S2C has SSC there.
    let expected: BTreeMap<String, usize> =
        [("cam_infer", 2 * 4), ("seed_eval", 2), ("select_epoch", 2)].map(|(s, n)| (s.to_owned(), n)).into();
    for (stage, n) in &expected {
        assert_eq!(added_units.get(stage), Some(n), "{added_units:?}");
    }
    assert!(!added_units.contains_key("cam_epoch"), "{added_units:?}");
    let results = |args: &[&str]| -> Vec<f64> {
        let said = succeeds(dir.path(), &[&["--json", "results"], args].concat());
        let rows: serde_json::Value = serde_json::from_str(&said).unwrap();
        rows.as_array().unwrap().iter().map(|row| row["seed_miou"].as_f64().unwrap()).collect()
    };
    let (last, best) = (results(&plain), results(&args));
    assert!(last.iter().zip(&best).all(|(last, best)| best >= last), "{last:?} {best:?}");
    // The sweep alone scores again, and pseudo-labels follow only another threshold.
    let early = added(dir.path(), &[&plain[..], &["--set", "seed.sweep=early_stop"]].concat());
    assert_eq!(early["seed_eval"], 2, "{early:?}");
    assert!(early.keys().all(|stage| ["seed_eval", "pseudo_label", "evaluate"].contains(&stage.as_str())), "{early:?}");
}
