//! `plan`, `why`, `lineage` and `history` as a user asks them, after a run of the program.

use std::fs;
use std::path::Path;

use s2c_pipe::data::image::{decode_label_map, encode_label_map};
use tempfile::TempDir;

use crate::program::{call, finished_copy, plan, succeeds, text};

/// Run 1 was made in another folder, so it is one of another file; run 2 is one of the file here.
fn run_again() -> TempDir {
    let dir = finished_copy();
    succeeds(dir.path(), &["run", "tiny.toml"]);
    dir
}

/// What is printed on stdout.
#[track_caller]
fn answer(folder: &Path, args: &[&str]) -> String {
    let output = call(folder, args);
    assert!(output.status.success(), "{args:?}: {}", text(&output));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_plan_ends_with_what_it_costs() {
    let dir = finished_copy();
    let said = answer(dir.path(), &["plan", "tiny.toml"]);
    assert!(said.ends_with("2 cells = 2 distinct trainings; everything is in the cache\n"), "{said}");
    let said = answer(dir.path(), &["plan", "tiny.toml", "--set", "classifier.lr=0.002"]);
    let last = said.lines().last().unwrap();
    assert!(last.contains(" % cached; about ") && last.ends_with('B'), "{said}");
    let cost = plan(dir.path(), "tiny.toml", &["classifier.lr=0.002"]);
    let to_run: u64 = cost["stages"].as_object().unwrap().values().map(|stage| stage["to_run"].as_u64().unwrap()).sum();
    assert_eq!(cost["cost"]["to_run"], to_run);
    assert!(cost["cost"]["bytes"].as_u64().unwrap() > 1_000_000, "{}", cost["cost"]);
    assert_eq!(cost["cost"]["unknown"], serde_json::json!([]));
    let said = answer(dir.path(), &["plan", "tiny.toml", "--set", "segmentation.test_crf=true"]);
    assert!(said.lines().last().unwrap().contains("unknown for seg_crf"), "{said}");
}

#[test]
fn two_variants_and_two_runs_are_compared() {
    let dir = run_again();
    let said = answer(dir.path(), &["why", "tiny.toml", "baseline", "S2C"]);
    assert!(said.starts_with("`baseline` and `S2C` part at cam_epoch epoch 0:\n  parameter `ssc`: none -> "), "{said}");
    let fields = "in the settings: classifier.cpm.enabled false -> true, classifier.ssc.enabled false -> true\n";
    assert!(said.contains(fields), "{said}");
    for line in ["first artifact that differs: checkpoint of cam_epoch epoch 0", "seed mIoU", "; cpm, "] {
        assert!(said.contains(line), "{said}");
    }
    assert!(said.lines().any(|line| line.starts_with("sam_embed ") && line.trim_end().ends_with('4')), "{said}");

    // Run 3 scores other classes, and nothing before the scores differs.
    let set = ["--set", "evaluate.classes=['cat']"];
    succeeds(dir.path(), &[&["run", "tiny.toml"], &set[..]].concat());
    let runs = ["why", "tiny.toml", "S2C", "--run", "2", "--run", "3"];
    let said = answer(dir.path(), &runs);
    assert!(said.starts_with("`S2C in run 2` and `S2C in run 3` part at seed_eval train:"), "{said}");
    let json = call(dir.path(), &[&["--json"], &runs[..]].concat()).stdout;
    let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    assert_eq!(json["right"], "S2C in run 3");
    // Nothing has changed since; what the tables remark of the two is there.
    let notes = json["notes"].as_array().unwrap();
    let is_remark = |note: &serde_json::Value| note.as_str().is_some_and(|note| note.starts_with("S2C in run "));
    assert!(!notes.is_empty() && notes.iter().all(is_remark), "{json}");
    assert!(json["effects"][0]["difference"].is_number(), "{json}");
    let said = answer(dir.path(), &["why", "tiny.toml", "S2C", "--run", "2", "--set", "cpm.mask_index=1"]);
    assert!(said.contains("\nin the settings: classifier.cpm.mask_index 2 -> 1\n"), "{said}");
    let said = answer(dir.path(), &["why", "tiny.toml", "S2C", "--run", "2"]);
    assert!(said.starts_with("`S2C in run 2` and `S2C now` are one experiment"), "{said}");

    let history = answer(dir.path(), &["history", "tiny.toml"]);
    assert!(history.starts_with("run 2  ") && history.contains("finished after"), "{history}");
    assert!(history.contains("tiny.toml --set evaluate.classes=['cat']"), "{history}");
    assert!(history.lines().any(|line| line.trim_start().starts_with("S2C ")), "{history}");
}

/// `why` names the file that changed, the field that changed, and the variant that it compares with.
#[test]
fn what_changed_since_a_run_is_named_by_file_and_field() {
    let dir = finished_copy();
    let at = |name: &str| dir.path().join(name);
    let scenes = fs::read_dir(at("cache/datasets")).unwrap().map(|entry| entry.unwrap().path());
    fs::rename(scenes.into_iter().find(|path| path.is_dir()).unwrap(), at("voc")).unwrap();
    let voc = "extends = 'tiny.toml'\ndataset.kind = 'voc'\ndataset.root = 'voc'\nsegmentation.enabled = false\n";
    fs::write(at("voc.toml"), voc).unwrap();
    succeeds(dir.path(), &["run", "voc.toml"]);
    let all_there = answer(dir.path(), &["why", "voc.toml", "S2C"]);
    assert_eq!(all_there, "S2C: nothing has to run, what it needs is in the cache\n");

    let mask = at("voc/SegmentationClass/train_0001.png");
    let original = fs::read(&mask).unwrap();
    let mut labels = decode_label_map(&original).unwrap();
    labels.data[0] = 255;
    fs::write(&mask, encode_label_map(&labels)).unwrap();
    let said = answer(dir.path(), &["why", "voc.toml", "S2C"]);
    let in_data = "in the data: the mask of 1 training image has other content: train_0001 (";
    assert!(said.starts_with("compared with the last run of this file: run 2 of ") && said.contains(in_data), "{said}");
    assert!(said.contains("\nseed_eval train: changed: inputs `masks`: 1 changed (train_0001)\n"), "{said}");
    assert!(!said.contains("cam_epoch") && !said.contains("in the settings"), "{said}");
    // Two runs are compared on what each of them read, also where it is gone.
    succeeds(dir.path(), &["run", "voc.toml"]);
    for sides in [&["--run", "2", "--run", "3"][..], &["--run", "2"]] {
        let said = answer(dir.path(), &[&["why", "voc.toml", "S2C"], sides].concat());
        assert!(said.starts_with(in_data) && said.contains(" part at seed_eval train:"), "{said}");
        assert!(!said.contains("one experiment"), "{said}");
    }
    // What was put back is no cause of what is edited then: a mask, an image that got another name.
    let changed = fs::read(&mask).unwrap();
    fs::write(&mask, &original).unwrap();
    fs::rename(at("voc/SegmentationClass/train_0002.png"), at("other.png")).unwrap();
    fs::write(at("voc/SegmentationClass/train_0002.png"), &original).unwrap();
    let said = answer(dir.path(), &["why", "voc.toml", "S2C"]);
    assert!(said.starts_with("compared with the nearest of the runs of this file: run 2 of "), "{said}");
    assert!(said.contains("\nin the data: the mask of 1 training image has other content: train_0002 ("), "{said}");
    assert!(!said.contains("train_0001"), "{said}");
    fs::rename(at("other.png"), at("voc/SegmentationClass/train_0002.png")).unwrap();
    fs::write(&mask, &changed).unwrap();
    // Another order of the list, a field that units do not have, and a variant by another name.
    let list = at("voc/ImageSets/Segmentation/train.txt");
    let ids = fs::read_to_string(&list).unwrap();
    fs::write(&list, ids.lines().rev().map(|id| format!("{id}\n")).collect::<String>()).unwrap();
    let said = answer(dir.path(), &["why", "voc.toml", "S2C"]);
    assert!(said.contains("\nin the data: the training images stand in another order\n"), "{said}");
    fs::write(&list, ids).unwrap();
    let said = answer(dir.path(), &["why", "voc.toml", "S2C", "--set", "seed.select=best_gt"]);
    assert!(said.contains("\nin the settings: seed.select \"last\" -> \"best_gt\"\n"), "{said}");
    assert!(said.contains("\nselect_epoch train: is new\n") && !said.contains("cam_epoch epoch"), "{said}");
    let tiny = fs::read_to_string(at("tiny.toml")).unwrap();
    fs::write(at("tiny.toml"), tiny.replace("\"S2C\"", "\"ours\"")).unwrap();
    let said = answer(dir.path(), &["why", "voc.toml", "ours", "--set", "cpm.tau=0.3"]);
    assert!(said.starts_with("compared with `S2C`, the most similar variant of the last run of this file"), "{said}");
    assert!(said.contains("\nin the settings: classifier.cpm.tau 0.5 -> 0.3\n"), "{said}");
    assert!(said.contains("\ncam_epoch epoch 1: changed: parameter `cpm.tau`: 0.5 -> 0.3\n"), "{said}");
    assert!(!said.contains("ssc") && !said.contains("weights"), "{said}");
    fs::write(at("tiny.toml"), &tiny).unwrap();

    // A mask that is gone is not one with other content, and an order is a cause where the same images stand in it.
    fs::rename(&mask, at("mask.png")).unwrap();
    let annotation = "<annotation><object><name>cat</name></object></annotation>";
    fs::create_dir_all(at("voc/Annotations")).unwrap();
    fs::write(at("voc/Annotations/train_0001.xml"), annotation).unwrap();
    let said = answer(dir.path(), &["why", "voc.toml", "S2C"]);
    assert!(said.contains("\nin the data: 1 training image has no mask any more: train_0001\n"), "{said}");
    assert!(!said.contains("other content: train_0001"), "{said}");
    fs::rename(at("mask.png"), &mask).unwrap();
    fs::remove_dir_all(at("voc/Annotations")).unwrap();
}

/// The causes that two readers found to be false or missing: each with the smallest change that showed it.
#[test]
fn a_variant_is_compared_with_the_run_that_is_nearest_to_it() {
    let dir = finished_copy();
    let at = |name: &str| dir.path().join(name);
    let tiny = fs::read_to_string(at("tiny.toml")).unwrap();
    let weights = tiny.split('"').find(|part| part.ends_with("mobile_sam.f16.safetensors")).unwrap();
    let sam = fs::read(weights).unwrap();
    fs::write(at("sam.safetensors"), &sam).unwrap();
    fs::write(at("tiny.toml"), tiny.replace(weights, "sam.safetensors")).unwrap();
    let tiny = fs::read_to_string(at("tiny.toml")).unwrap();
    let why = |args: &[&str]| answer(dir.path(), &[&["why", "tiny.toml"], args].concat());
    const NOTHING: &str = "nothing has to run, what it needs is in the cache\n";
    succeeds(dir.path(), &["run", "tiny.toml"]);
    assert_eq!(why(&[]), format!("baseline: {NOTHING}S2C: {NOTHING}"));
    // By another path to the file, too.
    fs::create_dir(at("sub")).unwrap();
    let said = answer(dir.path(), &["why", "sub/../tiny.toml", "S2C", "--set", "classifier.lr=0.002"]);
    assert!(said.starts_with("compared with the last run of this file: run 2 of "), "{said}");

    // What its pictures show of others' SE maps is not asked of a variant that trains without.
    assert_eq!(why(&["baseline", "--set", "se_map.points_per_side=4"]), format!("baseline: {NOTHING}"));
    let said = why(&["se_map", "--set", "se_map.points_per_side=4"]);
    assert!(said.contains("\nin the settings: se_map.points_per_side 3 -> 4\nse_map train_0000, "), "{said}");
    assert!(said.contains(" (S2C): changed: parameter `points_per_side`: 3 -> 4\n"), "{said}");
    // A setting that makes nothing run stands beside none that does.
    let said = why(&["S2C", "--set", "report.overlays=1", "--set", "segmentation.lr=0.01"]);
    assert!(said.contains("\nin the settings: segmentation.lr ") && !said.contains("overlays"), "{said}");
    // Weights that were overwritten at their place, also between a run and now.
    let mut other = sam.clone();
    *other.last_mut().unwrap() ^= 1;
    fs::write(at("sam.safetensors"), &other).unwrap();
    assert_eq!(why(&["baseline"]), format!("baseline: {NOTHING}"));
    let said = why(&["S2C"]);
    assert!(said.contains("sam.safetensors` has other content\nsam_embed train_0000, "), "{said}");
    let said = why(&["S2C", "--run", "2"]);
    assert!(said.contains("` part at sam_embed train_0000:\n  input `weights`: "), "{said}");
    fs::write(at("sam.safetensors"), &sam).unwrap();

    // A change that was taken back is no cause of the next: that is told against the run before.
    succeeds(dir.path(), &["run", "tiny.toml", "--set", "segmentation.lr=0.002"]);
    let flip = ["--set", "seed.flip=false"];
    let said = why(&[&["S2C"], &flip[..]].concat());
    assert!(said.starts_with("compared with the nearest of the runs of this file: run 2 of "), "{said}");
    assert!(said.contains("\nin the settings: seed.flip true -> false\ncam_infer ") && !said.contains("lr"), "{said}");
    let said = why(&[&["seg_epoch"], &flip[..]].concat());
    assert!(said.contains("\nin the settings: seed.flip true -> false\n"), "{said}");
    assert!(said.contains("\nseg_epoch epoch 0 (S2C, baseline): waits for ") && !said.contains("lr"), "{said}");

    // A variant that the last run did not have is compared with itself in an earlier one.
    let (head, rest) = tiny.split_once("[[variant]]").unwrap();
    let alone = rest.split_once("[[variant]]").unwrap().1;
    fs::write(at("tiny.toml"), format!("{head}[[variant]]{alone}")).unwrap();
    succeeds(dir.path(), &["run", "tiny.toml", "--set", "segmentation.lr=0.003"]);
    fs::write(at("tiny.toml"), &tiny).unwrap();
    let said = why(&["baseline", "--set", "segmentation.lr=0.003"]);
    assert!(
        said.contains("\nin the settings: segmentation.lr ")
            && said.contains("\nseg_epoch epoch 0: changed: parameter `lr`: "),
        "{said}"
    );
    assert!(!said.contains("ssc") && !said.contains("cam_epoch"), "{said}");

    // A run that failed says so of what it did not bring to its end.
    let too_fast = ["--set", "classifier.lr=1e6"];
    assert!(!call(dir.path(), &[&["run", "tiny.toml"], &too_fast[..]].concat()).status.success());
    let said = why(&[&["S2C"], &too_fast[..]].concat());
    assert!(said.contains(", which failed\ncam_epoch epoch 0"), "{said}");
    assert!(said.contains(": did not finish in that run, which failed\n"), "{said}");
    // A file that never ran here, and a cache that knows of no run.
    fs::copy(at("tiny.toml"), at("other.toml")).unwrap();
    let said = answer(dir.path(), &["why", "other.toml", "S2C", "--set", "classifier.lr=0.005"]);
    assert!(
        said.starts_with("compared with the nearest of the runs of other files, since this one never ran here: run "),
        "{said}"
    );
    fs::remove_dir_all(at("cache/history")).unwrap();
    let said = why(&[&["S2C"], &flip[..]].concat());
    assert!(said.starts_with("compared with the records of this cache that are nearest in parameters"), "{said}");
    assert!(said.contains(": differs from the nearest record: parameter `flip`: true -> false\n"), "{said}");
}

#[test]
fn a_mask_is_traced_to_image_and_weights() {
    let dir = finished_copy();
    let said = answer(dir.path(), &["lineage", "tiny.toml", "val_0001", "--variant", "S2C"]);
    assert!(said.starts_with("the prediction of validation image `val_0001`, variant `S2C`\n"), "{said}");
    for part in ["seg_epoch epoch 0", "pseudo_label ", "cam_infer ", "cam_epoch epoch 1", "se_map ", "sam_embed "] {
        assert!(said.contains(part), "{part}: {said}");
    }
    for file in ["mobile_sam.f16.safetensors", "resnet50_v1.f16.safetensors", "val_0001.", "train_0000."] {
        assert!(said.contains(file), "{file}: {said}");
    }
    // A training image that no overlay shows ends with its pseudo-label, and is itself in every set.
    let said = answer(dir.path(), &["lineage", "tiny.toml", "train_0003.png", "--variant", "baseline"]);
    assert!(
        said.starts_with("the pseudo-label of training image `train_0003`") && !said.contains("sam_embed"),
        "{said}"
    );
    let json = call(dir.path(), &["--json", "lineage", "tiny.toml", "val_0001", "--variant", "S2C"]).stdout;
    let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    assert_eq!((&json["lineage"]["slot"], &json["lineage"]["state"]), (&"prediction".into(), &"there".into()));
}

#[test]
fn bad_questions_are_answered_with_a_hint() {
    let dir = run_again();
    for (args, error, hint) in [
        (
            &["why", "tiny.toml", "baseline", "S2c"][..],
            "no variant `S2c`",
            "did you mean `S2C`? there are: baseline; S2C",
        ),
        (&["why", "tiny.toml", "S2C", "S2C"], "`S2C` is compared with itself", "two runs: --run 3 --run 5"),
        (&["why", "tiny.toml", "S2C", "--run", "2", "--run", "2"], "compared with itself", "two runs"),
        (
            &["why", "tiny.toml", "S2C", "--run", "7"],
            "no run 7 of `tiny.toml`",
            "its runs are 2; see `s2c-pipe history tiny.toml`",
        ),
        (&["why", "tiny.toml", "none", "--run", "2"], "no variant `none` in run 2", "there are: baseline; S2C"),
        (&["lineage", "tiny.toml", "val_001", "--variant", "S2C"], "no image `val_001`", "did you mean `val_0001`?"),
        (&["lineage", "tiny.toml", "val_0001"], "which variant?", "baseline; S2C"),
        (&["lineage", "tiny.toml", "val_0001", "--variant", "x"], "no variant `x`", ""),
        (&["history", "none.toml"], "no run of `none.toml`", "there are runs of: "),
    ] {
        let output = call(dir.path(), args);
        let said = text(&output);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {said}");
        let line = |start: &str| said.lines().find(|line| line.starts_with(start)).unwrap_or_default().to_owned();
        assert!(line("error: ").contains(error) && line("hint: ").contains(hint), "{args:?}: {said}");
    }
}
