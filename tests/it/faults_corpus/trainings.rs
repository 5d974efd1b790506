//! Trainings that go wrong without an error: the run warns of them, and every table marks what is built on them.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::program::{TINY, call, succeeds, text, write_pipeline};

/// A run of one variant, without segmentation unless `sets` say otherwise; what it says on stderr, and its table.
fn run(folder: &Path, sets: &[&str]) -> (String, String) {
    let mut args = vec!["run", "tiny.toml", "--force"];
    sets.iter().for_each(|set| args.extend(["--set", *set]));
    let output = call(folder, &args);
    assert!(output.status.success(), "{}", text(&output));
    (String::from_utf8(output.stderr).unwrap(), String::from_utf8(output.stdout).unwrap())
}

/// The line and the hint below it.
fn warned<'a>(said: &'a str, what: &str) -> Option<(&'a str, &'a str)> {
    let lines: Vec<&str> = said.lines().collect();
    let at = lines.iter().position(|line| line.starts_with("warning: ") && line.contains(what))?;
    Some((lines[at], lines[at + 1]))
}

fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let (base, _) = TINY.split_once("[[variant]]").unwrap();
    write_pipeline(dir.path(), &format!("{base}[[variant]]\nname = 'base'\n"));
    dir
}

#[test]
fn what_is_sick_is_told_while_it_runs_and_marked_in_every_table() {
    let dir = folder();
    let dir = dir.path();
    // Two steps: the loss of the second is huge on every processor, and no more.
    let explodes = ["classifier.lr=0.5", "classifier.epochs=1", "segmentation.batch_size=50"];
    let (said, table) = run(dir, &explodes);

    let (line, hint) = warned(&said, "the loss of the classifier explodes: `cls` was ").expect(&said);
    assert!(line.starts_with("warning: base: ") && hint == "hint: set `classifier.lr` to 0.01 or less", "{said}");
    let place = |what: &str| said.find(what).unwrap_or_else(|| panic!("{what}: {said}"));
    assert!(place(line) < place("cam_infer"), "it is told when it is seen: {said}");
    let (batch, hint) = warned(&said, "segmentation.batch_size = 50 is more than the 4 training images").expect(&said);
    assert!(place(batch) < place("to run"), "it is told before the run: {said}");
    assert_eq!(hint, "hint: set `segmentation.batch_size` to 4 or less");
    assert_eq!(said.matches("explodes").count(), 1, "it is told once: {said}");

    for what in ["the seeds are best at threshold 0.00", "the seeds are `background` in 100 % of the pixels"] {
        assert!(warned(&said, what).is_some() && table.contains(&format!("\n? base: {what}")), "{said}{table}");
    }

    let reason = line.strip_prefix("warning: base: ").unwrap();
    let row = table.lines().find(|line| line.starts_with("base ")).unwrap();
    assert!(row.split_whitespace().skip(1).all(|cell| cell.ends_with('?')), "{table}");
    assert!(table.contains(&format!("\n? base: {reason}\n")), "{table}");
    let show = |args: &[&str]| {
        let sets = explodes.iter().flat_map(|set| ["--set", *set]);
        succeeds(dir, &args.iter().copied().chain(sets).collect::<Vec<_>>())
    };
    assert!(show(&["results", "tiny.toml"]).contains(reason));
    let csv = show(&["results", "tiny.toml", "--csv"]);
    let mut rows = csv::Reader::from_reader(csv.as_bytes());
    let row = rows.records().next().unwrap().unwrap();
    assert!(row[5].contains(reason) && row[1].parse::<f64>().is_ok(), "{csv}");
    let latex = show(&["results", "tiny.toml", "--latex"]);
    assert!(
        latex.contains("$^\\dagger$ & ") && latex.contains(&format!("% dagger: base/seed mIoU: {reason}")),
        "{latex}"
    );
    fs::write(dir.join("paper.tex"), &latex).unwrap();
    succeeds(dir, &["verify-results", "paper.tex"]);
    fs::write(dir.join("paper.tex"), latex.replace("$^\\dagger$", "")).unwrap();
    succeeds(dir, &["verify-results", "paper.tex"]);
    let json: Value = serde_json::from_str(&show(&["--json", "results", "tiny.toml"])).unwrap();
    for scored in ["seed", "pseudo_label", "segmentation"] {
        assert!(json[0]["sick"][scored].as_array().unwrap().contains(&reason.into()), "{json}");
    }
    let history = succeeds(dir, &["history", "tiny.toml"]);
    assert!(history.contains('?') && history.contains(&format!("? base: {reason}")), "{history}");

    // Repeats have the marks of their runs.
    fs::write(dir.join("seeds.toml"), "extends = 'tiny.toml'\n[sweep]\nrng_seed = [0, 1]\n").unwrap();
    let table = show(&["run", "seeds.toml"]);
    let means = table.split("mean +- ").nth(1).unwrap();
    assert!(means.contains("(2)?") && means.contains("marks: "), "{table}");
    let csv = show(&["results", "seeds.toml", "--csv"]);
    assert!(csv.contains("rng_seed 0: ") && csv.contains(reason), "{csv}");

    // A rate that trains has no such mark.
    let (said, table) = run(dir, &["segmentation.enabled=false"]);
    assert!(!said.contains("explodes") && !table.contains("explodes"), "{said}{table}");
    assert_eq!(warned(&said, "batch_size"), None, "{said}");
}

#[test]
fn a_classifier_that_learns_nothing_and_se_maps_of_little_are_told() {
    let dir = folder();
    let dir = dir.path();
    let short = ["classifier.batch_size=1", "classifier.epochs=8", "segmentation.enabled=false"];
    let (said, table) = run(dir, &[&short[..], &["classifier.lr=1e-12"]].concat());
    let (line, hint) = warned(&said, "the classifier does not learn: over 32 steps").expect(&said);
    assert_eq!(hint, "hint: `classifier.lr` is 1e-12; 0.01 is its default");
    assert!(table.contains(line.strip_prefix("warning: base: ").unwrap()), "{table}");
    assert_eq!(said.matches("does not learn").count(), 1, "{said}");

    let maps = ["ssc.enabled=true", "se_map.points_per_side=1", "segmentation.enabled=false"];
    let (said, table) = run(dir, &maps);
    let (line, hint) = warned(&said, "the segments of the SE maps cover ").expect(&said);
    assert!(line.ends_with(" % of the pixels, less than 80 %"), "{line}");
    assert!(hint.contains("se_map.points_per_side") && table.contains(line.strip_prefix("warning: base: ").unwrap()));
}
