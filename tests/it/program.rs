//! The program as a user runs it, on a handful of small scenes with the real weights.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use s2c_pipe::artifact::Manifest;
use s2c_pipe::cache::{Cache, StoreError};
use s2c_pipe::data::image::{decode_label_map, decode_se_map, encode_label_map, encode_rgb};
use s2c_pipe::digest::{BlobDigest, UnitKey};
use s2c_pipe::vision::{LabelMap, Rgb};
use tempfile::TempDir;

/// Two variants, six scenes, every stage.
pub(crate) const TINY: &str = r#"
precision = "f32"

[dataset]
kind = "emoji"
emoji.n_train = 4
emoji.n_val = 2
emoji.side = 64
emoji.classes = ["cat", "bus"]

[sam]
weights = "WEIGHTS/mobile_sam.f16.safetensors"

[se_map]
points_per_side = 3

[classifier]
weights = "WEIGHTS/resnet50_v1.f16.safetensors"
epochs = 2
batch_size = 2
crop = 64
resize_long = [64, 96]
lr = 0.001
cpm.start_epoch = 1
cpm.scales = [1.0]
cpm.min_distance = 8

[seed]
scales = [1.0]

[segmentation]
weights = "WEIGHTS/resnet50_v1.f16.safetensors"
epochs = 1
batch_size = 2
crop = 64

[report]
overlays = 2

[[variant]]
name = "baseline"

[[variant]]
name = "S2C"
ssc.enabled = true
cpm.enabled = true
"#;

fn weights() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("pipelines/weights")
}

pub(crate) fn write_pipeline(folder: &Path, text: &str) {
    fs::write(folder.join("tiny.toml"), text.replace("WEIGHTS", &weights().to_string_lossy())).unwrap();
}

/// The program in a folder; its cache is `cache` there.
pub(crate) fn program(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_s2c-pipe"));
    command.current_dir(folder).env_remove("S2C_CACHE");
    command
}

pub(crate) fn call(folder: &Path, args: &[&str]) -> Output {
    program(folder).args(args).output().unwrap()
}

pub(crate) fn text(output: &Output) -> String {
    let part = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    part(&output.stdout) + &part(&output.stderr)
}

#[track_caller]
pub(crate) fn succeeds(folder: &Path, args: &[&str]) -> String {
    let output = call(folder, args);
    assert!(output.status.success(), "{args:?}: {}", text(&output));
    text(&output)
}

/// A folder where the pipeline has run once; made once for all tests, which work on copies beside it. A static is never
/// dropped: folders of processes that are gone are removed by the next.
fn finished() -> &'static Path {
    static FINISHED: OnceLock<PathBuf> = OnceLock::new();
    FINISHED.get_or_init(|| {
        let folders = Path::new(env!("CARGO_TARGET_TMPDIR")).join("finished");
        for old in fs::read_dir(&folders).into_iter().flatten().flatten() {
            if !Path::new("/proc").join(old.file_name()).exists() {
                let _ = fs::remove_dir_all(old.path());
            }
        }
        let dir = folders.join(std::process::id().to_string()).join("original");
        fs::create_dir_all(&dir).unwrap();
        write_pipeline(&dir, TINY);
        let said = succeeds(&dir, &["run", "tiny.toml"]);
        assert!(said.contains("emoji, mIoU in %") && said.contains("S2C"), "{said}");
        dir
    })
}

/// Blobs are never written in place, so links to them do.
pub(crate) fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let (path, to) = (entry.path(), to.join(entry.file_name()));
        match path.is_dir() {
            true => copy(&path, &to),
            false if path.to_string_lossy().contains("/blobs/") => fs::hard_link(&path, &to).unwrap(),
            false => drop(fs::copy(&path, &to).unwrap()),
        }
    }
}

pub(crate) fn finished_copy() -> TempDir {
    let dir = tempfile::tempdir_in(finished().parent().unwrap()).unwrap();
    copy(finished(), dir.path());
    dir
}

/// What `plan` says of a pipeline.
pub(crate) fn plan(folder: &Path, file: &str, sets: &[&str]) -> serde_json::Value {
    let mut args = vec!["--json", "plan", file];
    sets.iter().for_each(|set| args.extend(["--set", *set]));
    let output = call(folder, &args);
    assert!(output.status.success(), "{file}: {}", text(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Units that would run, by stage.
pub(crate) fn to_run(folder: &Path, sets: &[&str]) -> BTreeMap<String, u64> {
    let plan = plan(folder, "tiny.toml", sets);
    let stages = plan["stages"].as_object().unwrap().iter();
    let stages = stages.map(|(stage, counts)| (stage.clone(), counts["to_run"].as_u64().unwrap()));
    stages.filter(|(_, n)| *n > 0).collect()
}

/// What every unit gave, by label and output: digests.
pub(crate) fn digests(folder: &Path) -> BTreeMap<String, String> {
    let cache = Cache::open(&folder.join("cache"), "test", &|_| true).unwrap();
    let manifests = cache.manifests().unwrap();
    let outputs = manifests.iter().flat_map(|manifest| {
        let of = |output: &s2c_pipe::artifact::ArtifactRef| {
            (format!("{} {} {}", manifest.key, manifest.label, output.name), output.digest.to_string())
        };
        manifest.outputs.iter().map(of)
    });
    outputs.collect()
}

#[test]
fn a_second_run_executes_nothing() {
    let dir = finished_copy();
    let said = succeeds(dir.path(), &["run", "tiny.toml"]);
    assert!(said.contains("0 units executed"), "{said}");
    assert!(to_run(dir.path(), &[]).is_empty());
}

#[test]
fn an_edit_reruns_what_it_changes_and_nothing_else() {
    let dir = finished_copy();
    let counts = |set: &str| to_run(dir.path(), &[set]);
    let tau = counts("cpm.tau=0.3");
    assert_eq!(tau["cam_epoch"], 1, "only the epoch with CPM: {tau:?}");
    assert!(!tau.contains_key("sam_embed") && !tau.contains_key("se_map"), "{tau:?}");
    let images = counts("dataset.emoji.n_train=5");
    assert_eq!((images["sam_embed"], images["se_map"]), (1, 1), "{images:?}");
    for later in ["segmentation.lr=0.1", "pseudo_label.threshold=0.4", "pseudo_label.refine=['segment_vote']"] {
        let counts = counts(later);
        for stage in ["sam_embed", "cam_epoch", "cam_infer", "seed_eval"] {
            assert!(!counts.contains_key(stage), "{later}: {counts:?}");
        }
    }
    assert!(counts("evaluate.classes=['cat']").keys().all(|stage| !stage.contains("cam")), "scores only");
    let why = succeeds(dir.path(), &["why", "tiny.toml", "S2C", "--set", "cpm.tau=0.3"]);
    assert!(why.contains("cpm.tau") && why.contains("0.5") && why.contains("0.3"), "{why}");

    // One more image for real: the run does what the plan says.
    let before = digests(dir.path());
    let said = succeeds(dir.path(), &["run", "tiny.toml", "--set", "dataset.emoji.n_train=5"]);
    assert!(!said.contains("\nerror"), "{said}");
    let after = digests(dir.path());
    let new = |stage: &str| after.keys().filter(|key| !before.contains_key(*key) && key.contains(stage)).count();
    assert_eq!((new(" sam_embed "), new(" se_map ")), (1, 1));
}

#[test]
fn a_run_leaves_pictures_and_tables() {
    let out = finished().join("out/tiny");
    let results: serde_json::Value = serde_json::from_slice(&fs::read(out.join("results.json")).unwrap()).unwrap();
    for row in results.as_array().unwrap() {
        for metric in ["seed_miou", "pseudo_label_miou", "segmentation_miou"] {
            assert!((0.0..=100.0).contains(&row[metric].as_f64().unwrap()), "{row}");
        }
    }
    assert!(fs::read_to_string(out.join("results.csv")).unwrap().starts_with("variant,seed_miou"));
    let picture = fs::read(out.join("overlays/train_0000.png")).unwrap();
    let picture = s2c_pipe::data::image::decode_rgb(&picture).unwrap();
    assert!(picture.width > 6 * 48 && picture.height > 2 * 48, "six panels, two variants");
    let pictures = walk(&out.join("overlays"));
    assert_eq!(pictures.iter().filter(|path| path.extension().is_some_and(|e| e == "png")).count(), 2);

    // Drawn again where one is gone or shows something else, and only then.
    let dir = finished_copy();
    let one = dir.path().join("out/tiny/overlays/train_0000.png");
    let before = fs::read(&one).unwrap();
    fs::write(&one, "kept").unwrap();
    succeeds(dir.path(), &["run", "tiny.toml"]);
    assert_eq!(fs::read(&one).unwrap(), b"kept");
    fs::remove_file(&one).unwrap();
    succeeds(dir.path(), &["run", "tiny.toml"]);
    assert_eq!(fs::read(&one).unwrap(), before);
    let tiny = fs::read_to_string(dir.path().join("tiny.toml")).unwrap();
    fs::write(dir.path().join("tiny.toml"), format!("pseudo_label.threshold = 0.1\n{tiny}")).unwrap();
    succeeds(dir.path(), &["run", "tiny.toml"]);
    assert_ne!(fs::read(&one).unwrap(), before);
}

#[test]
fn an_audit_runs_a_share_again_and_changes_nothing() {
    let dir = finished_copy();
    let before = (digests(dir.path()), walk(&dir.path().join("cache/logs")).len());
    let said = succeeds(dir.path(), &["run", "tiny.toml", "--audit", "10%", "--audit-seed", "7"]);
    assert!(said.contains("\naudit: ") && said.contains(" units gave the same bytes again, of "), "{said}");
    assert_eq!((digests(dir.path()), walk(&dir.path().join("cache/logs")).len()), before);
    let scratch = fs::read_dir(dir.path().join("cache/scratch")).unwrap().map(Result::unwrap);
    assert!(scratch.into_iter().all(|entry| !entry.file_name().to_string_lossy().starts_with("audit-")));

    // A record of bytes that the unit does not give: the number in the table was never computed. What other stages gave
    // is removed, so that there is less to run.
    let cache = Cache::open(&dir.path().join("cache"), "test", &|_| true).unwrap();
    for mut manifest in cache.manifests().unwrap() {
        let stage = manifest.fingerprint.stage.as_str();
        if !["evaluate", "seed_eval", "pseudo_label", "seg_infer"].contains(&stage) {
            for output in &manifest.outputs {
                let _ = fs::remove_file(cache.store().path(&output.digest));
            }
        } else if stage == "evaluate" {
            let bytes = cache.store().read(&manifest.outputs[0].digest).unwrap();
            let mut metrics: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
            metrics["miou"] = 0.987.into();
            let bytes = serde_json::to_vec(&metrics).unwrap();
            let (digest, size) = (cache.store().write(&bytes, false).unwrap(), bytes.len() as u64);
            (manifest.outputs[0].digest, manifest.outputs[0].size) = (digest, size);
            cache.put(&manifest).unwrap();
        }
    }
    drop(cache);
    let output = call(dir.path(), &["run", "tiny.toml", "--audit", "100%"]);
    let said = text(&output);
    assert!(!output.status.success() && said.contains("drifted: evaluate "), "{said}");
    assert!(said.contains("cannot run again, since what they read was removed"), "{said}");
    assert!(said.contains("98.7!") && said.contains("! an audit got other bytes from evaluate "), "{said}");
    let json: serde_json::Value =
        serde_json::from_slice(&call(dir.path(), &["--json", "results", "tiny.toml"]).stdout).unwrap();
    assert!(json[0]["drifted"]["segmentation"][0].as_str().unwrap().starts_with("evaluate "), "{json}");
    assert_eq!(json[0]["drifted"].get("seed"), None);
}

#[test]
fn who_only_looks_waits_for_nobody_and_changes_nothing() {
    let dir = finished_copy();
    let look = || {
        let looks: [&[&str]; 7] = [
            &["results", "tiny.toml"],
            &["plan", "tiny.toml", "--set", "cpm.tau=0.3"],
            &["why", "tiny.toml", "S2C", "--set", "classifier.lr=0.002"],
            &["why", "tiny.toml", "baseline", "S2C"],
            &["graph", "tiny.toml"],
            &["cache", "du"],
            &["export", "tiny.toml", "--variant", "S2C", "--what", "cams", "--to", "out"],
        ];
        looks.map(|args| succeeds(dir.path(), args))
    };
    let free = look();
    let folder = dir.path().join("cache");
    let held = Cache::open(&folder, "a run", &|_| true).unwrap();
    let bytes = || {
        let paths = walk(&folder).into_iter().filter(|path| path.is_file() && !path.ends_with("lock"));
        paths.map(|path| (BlobDigest::of(&fs::read(&path).unwrap()), path)).collect::<Vec<_>>()
    };
    let before = bytes();
    assert_eq!(look(), free);
    assert_eq!(bytes(), before);
    drop(held);

    // Where no lock can be had, as on a disk mounted read-only.
    fs::remove_file(folder.join("lock")).unwrap();
    fs::create_dir(folder.join("lock")).unwrap();
    assert_eq!(look(), free);
    assert_eq!(bytes(), before);
    fs::remove_dir(folder.join("lock")).unwrap();

    // It sees what there was when it looked first, repairs nothing and writes nothing.
    let held = Cache::open(&folder, "a run", &|_| true).unwrap();
    let reader = Cache::open_to_read(&folder, "test").unwrap();
    let manifest = reader.manifests().unwrap().remove(0);
    assert!(reader.put(&manifest).unwrap_err().to_string().ends_with("was opened to be read"));
    let newest = Manifest { key: UnitKey::from_bytes([7; 32]), ..manifest.clone() };
    held.put(&newest).unwrap();
    assert_eq!(reader.newest(&manifest.label).unwrap().map(|found| found.label), Some(manifest.label.clone()));
    assert_ne!(reader.newest(&manifest.label).unwrap().unwrap().key, newest.key);
    let later = Cache::open_to_read(&folder, "test").unwrap();
    assert_eq!(later.newest(&manifest.label).unwrap().unwrap().key, newest.key);
    held.put(&manifest).unwrap();
    let blob = reader.store().path(&manifest.outputs[0].digest);
    let good = fs::read(&blob).unwrap();
    fs::write(&blob, b"torn").unwrap();
    assert!(matches!(reader.store().read(&manifest.outputs[0].digest), Err(StoreError::Corrupt { .. })));
    assert!(blob.exists());
    fs::write(&blob, good).unwrap();
}

#[test]
fn numbers_in_a_paper_are_checked_against_the_cache() {
    let dir = finished_copy();
    let tex = call(dir.path(), &["results", "tiny.toml", "--latex"]).stdout;
    let tex = String::from_utf8(tex).unwrap();
    let check = |tex: &str| {
        fs::write(dir.path().join("paper.tex"), tex).unwrap();
        let output = call(dir.path(), &["verify-results", "paper.tex"]);
        (output.status.success(), text(&output))
    };
    assert_eq!(check(&tex), (true, "8 of 8 numbers are what the cache holds\n".to_owned()));
    let row = tex.lines().find(|line| line.starts_with("S2C & ")).unwrap();
    let (is_ok, said) = check(&tex.replace(row, &row.replacen("S2C & ", "S2C & 1", 1)));
    assert!(!is_ok && said.contains("S2C, seed mIoU: edited by hand: it says 1"), "{said}");
    // As if the pipeline had been edited since: its results are not there, or others.
    let (is_ok, said) = check(&tex.replace("\"tiny.toml\"", "\"tiny.toml\",\"set\":[\"classifier.lr=0.002\"]"));
    assert!(!is_ok && said.contains("baseline, seed mIoU: stale: it says "), "{said}");
    let (is_ok, said) = check("\\begin{tabular}{l}no digests\\end{tabular}");
    assert!(!is_ok && said.contains("has no number with a digest"), "{said}");
}

#[test]
fn superseded_checkpoints_go_and_come_back_when_a_new_variant_needs_them() {
    let dir = finished_copy();
    let said = succeeds(dir.path(), &["cache", "gc", "tiny.toml"]);
    assert!(said.starts_with("0 blobs, "), "{said}");
    assert_eq!(to_run(dir.path(), &["cpm.tau=0.3"])["cam_epoch"], 1);
    let said = succeeds(dir.path(), &["cache", "gc", "tiny.toml", "--max-size", "0"]);
    // Epoch 0 of both variants.
    assert!(said.starts_with("2 blobs, ") && said.contains("cam_epoch             2"), "{said}");
    assert!(succeeds(dir.path(), &["run", "tiny.toml"]).contains("\n0 units executed"));
    assert_eq!(to_run(dir.path(), &["cpm.tau=0.3"])["cam_epoch"], 2, "what it begins with is made again");
}

#[test]
fn seeds_of_randomness_are_summarised() {
    let dir = finished_copy();
    // Seed 0 has run, seed 1 has not.
    fs::write(dir.path().join("seeds.toml"), "extends = 'tiny.toml'\n[sweep]\nrng_seed = [0, 1]").unwrap();
    let said = succeeds(dir.path(), &["results", "seeds.toml"]);
    assert!(said.contains("S2C, rng_seed=1 ") && said.contains("paired t-test against `baseline`"), "{said}");
    assert!(said.lines().any(|line| line.starts_with("S2C ") && line.contains(" (1)")), "{said}");
    let csv = succeeds(dir.path(), &["results", "seeds.toml", "--csv", "--against", "S2C"]);
    assert!(csv.contains("\nbaseline,seed_miou,1,") && csv.contains(",S2C,1,"), "{csv}");
    let json = call(dir.path(), &["--json", "results", "seeds.toml"]).stdout;
    let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    assert_eq!((json["runs"].as_array().unwrap().len(), json["repeats"][1]["variant"].as_str()), (4, Some("S2C")));
    for (file, error, hint) in [
        ("seeds.toml", "no variant `s2c`", "there are: baseline; S2C"),
        ("tiny.toml", "nothing is repeated", "rng_seed = [0"),
    ] {
        let output = call(dir.path(), &["results", file, "--against", "s2c"]);
        let said = text(&output);
        assert!(!output.status.success() && said.contains(error) && said.contains(hint), "{said}");
    }
}

#[test]
fn a_loss_that_is_no_number_names_step_images_and_field() {
    let dir = finished_copy();
    let output = call(dir.path(), &["run", "tiny.toml", "--set", "classifier.lr=1e6"]);
    let said = text(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    let failed = said.lines().find(|line| line.starts_with("failed: ")).unwrap_or_default();
    assert!(failed.contains("epoch 0, step 1: the loss or its gradient is not finite"), "{said}");
    assert!(failed.contains("images of the step: train_000"), "{said}");
    assert!(said.contains("\nhint: set `classifier.lr` to 0.01 or less; "), "{said}");
}

#[test]
fn a_flipped_byte_and_a_deleted_blob_are_found_and_made_again() {
    let dir = finished_copy();
    let before = digests(dir.path());
    let of = |label: &str| {
        let (_, digest) = before.iter().find(|(key, _)| key.contains(label)).unwrap();
        let entry = walk(&dir.path().join("cache/blobs"));
        entry.into_iter().find(|path| path.to_string_lossy().replace('/', "").ends_with(&digest[2..])).unwrap()
    };
    let (flipped, deleted) = (of("cam_infer train_0001"), of("se_map train_0002"));
    let mut bytes = fs::read(&flipped).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::remove_file(&flipped).unwrap();
    fs::write(&flipped, bytes).unwrap();
    fs::remove_file(&deleted).unwrap();

    let verify = call(dir.path(), &["cache", "verify"]);
    assert!(!verify.status.success() && text(&verify).contains("1 corrupt"), "{}", text(&verify));
    // All that reads them has finished.
    let said = succeeds(dir.path(), &["run", "tiny.toml"]);
    assert!(said.contains("\n0 units executed"), "{said}");
    let said = succeeds(dir.path(), &["run", "tiny.toml", "--restore"]);
    assert!(said.contains("units executed") && !said.contains("\n0 units executed"), "{said}");
    assert_eq!(digests(dir.path()), before);
    succeeds(dir.path(), &["cache", "verify"]);
}

pub(crate) fn walk(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
}

#[test]
fn results_leave_the_cache_as_files() {
    let dir = finished_copy();
    let to = |name: &str| dir.path().join(name);
    let export = |what: &str, to: &str, npy: bool| {
        let mut args = vec!["export", "tiny.toml", "--variant", "S2C", "--what", what, "--to", to];
        args.extend(npy.then_some("--npy"));
        succeeds(dir.path(), &args)
    };
    for (what, file) in [
        ("embeddings", "train_0000.safetensors"),
        ("se-maps", "train_0001.png"),
        ("cams", "train_0002.safetensors"),
        ("pseudo-labels", "SegmentationClass/train_0003.png"),
        ("predictions", "SegmentationClass/val_0001.png"),
    ] {
        export(what, what, false);
        assert!(to(what).join(file).exists(), "{what}");
        let npy = format!("{what}-npy");
        export(what, &npy, true);
        let name = Path::new(file).file_name().unwrap();
        assert!(fs::read(to(&npy).join(name).with_extension("npy")).unwrap().starts_with(b"\x93NUMPY"));
    }
    let output = call(dir.path(), &["export", "tiny.toml", "--what", "cams", "--to", "x"]);
    assert!(text(&output).contains("give --variant with one of: baseline; S2C"), "{}", text(&output));

    // A picture of another size and kind than those of training.
    let picture = Rgb { height: 50, width: 81, data: (0..50 * 81 * 3).map(|i| (i % 251) as u8).collect() };
    fs::write(to("my.own.png"), encode_rgb(&picture)).unwrap();
    let predict = ["predict", "tiny.toml", "my.own.png", "--variant", "baseline", "--to"];
    succeeds(dir.path(), &[&predict[..], &["seen"]].concat());
    let labels = decode_label_map(&fs::read(to("seen/my.own.png")).unwrap()).unwrap();
    assert_eq!((labels.height, labels.width), (50, 81));
    assert!(to("seen/my.own_overlay.png").exists());
    let output = call(dir.path(), &[&predict[..], &["."]].concat());
    assert!(text(&output).contains("would be overwritten by a result"), "{}", text(&output));
    // Its overlay is the second one's label map.
    fs::copy(to("my.own.png"), to("my.own_overlay.jpg")).unwrap();
    let both = ["predict", "tiny.toml", "my.own.png", "my.own_overlay.jpg", "--variant", "baseline", "--to", "both"];
    succeeds(dir.path(), &both);
    for name in ["my.own_png", "my.own_overlay_jpg"] {
        assert!(
            to("both").join(format!("{name}.png")).exists() && to("both").join(format!("{name}_overlay.png")).exists()
        );
    }
}

#[test]
fn segment_everything_in_a_picture_of_ones_own() {
    let dir = tempfile::tempdir().unwrap();
    // A bright disc on a dark ground.
    let (height, width) = (90, 120);
    let pixel = |i: usize| {
        let (dy, dx) = ((i / width) as f64 - 45.0, (i % width) as f64 - 60.0);
        if dy.hypot(dx) < 25.0 { [230, 220, 40] } else { [20, 40, 60] }
    };
    let picture = Rgb { height, width, data: (0..height * width).flat_map(pixel).collect() };
    fs::write(dir.path().join("disc.png"), encode_rgb(&picture)).unwrap();
    let weights = weights().join("mobile_sam.f16.safetensors");
    let weights = weights.to_string_lossy();
    for more in [&[][..], &["--crop-n-layers", "1", "--min-mask-region-area", "20"]] {
        let args = ["segment", "disc.png", "--weights", &weights, "--points-per-side", "3", "--precision", "f32"];
        succeeds(dir.path(), &[&args[..], &["--to", "out"], more].concat());
        let map = decode_se_map(&fs::read(dir.path().join("out/disc.png")).unwrap()).unwrap();
        assert_eq!((map.height, map.width), (height, width));
        let disc = map.at(45, 60);
        assert!(disc != 0 && disc != map.at(2, 2));
        assert!(dir.path().join("out/disc_segments.png").exists());
        let masks: serde_json::Value =
            serde_json::from_slice(&fs::read(dir.path().join("out/disc.json")).unwrap()).unwrap();
        let mask = &masks[usize::from(disc) - 1];
        let area = mask["area"].as_f64().unwrap();
        assert!((area - 25.0 * 25.0 * std::f64::consts::PI).abs() < 200.0, "{mask}");
        assert_eq!(mask["segmentation"]["size"], serde_json::json!([height, width]));
    }
    let output = call(dir.path(), &["segment", "disc.png", "--weights", "disc.png"]);
    assert!(text(&output).contains("error: `disc.png`: not a checkpoint"), "{}", text(&output));
}

#[test]
fn drawings_and_schema_name_the_stages_and_fields() {
    let dir = finished_copy();
    let dot = succeeds(dir.path(), &["graph", "tiny.toml"]);
    assert!(dot.starts_with("digraph") && dot.contains("sam_embed x 4") && dot.contains("->"), "{dot}");
    let mermaid = succeeds(dir.path(), &["graph", "tiny.toml", "--format", "mermaid"]);
    assert!(mermaid.starts_with("flowchart") && mermaid.contains("all variants"), "{mermaid}");
    let schema: serde_json::Value = serde_json::from_slice(&call(dir.path(), &["schema"]).stdout).unwrap();
    for field in ["extends", "variant", "sweep", "classifier", "segmentation"] {
        assert!(schema["properties"][field].is_object(), "{field}");
    }
    let doctor = succeeds(dir.path(), &["doctor", "tiny.toml"]);
    assert!(doctor.contains("libtorch    2.") && doctor.contains("4 training and 2 validation"), "{doctor}");
}

#[test]
fn weights_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let inspect = |file: &Path, more: &[&str]| {
        let file = file.to_string_lossy();
        call(dir.path(), &[&["weights", "inspect", &file], more].concat())
    };
    let resnet = inspect(&weights().join("resnet50_v1.f16.safetensors"), &["--tensors"]);
    for line in ["ResNet-50", "classifier.weights, segmentation.weights", "BLAKE3", "conv1.weight"] {
        assert!(text(&resnet).contains(line), "{}", text(&resnet));
    }
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/weights");
    let found = inspect(&golden.join("model.pth"), &["--json", "--tensors"]);
    let found: serde_json::Value = serde_json::from_slice(&found.stdout).unwrap();
    assert_eq!(
        (&found["format"], &found["what"], &found["parameters"]),
        (&"PyTorch".into(), &"unknown".into(), &3.into())
    );
    assert_eq!(found["list"][1], serde_json::json!({ "name": "a.weight", "dtype": "f32", "shape": [1, 2] }));
    for (file, error, hint) in [
        ("torchscript.pt", "torchscript.pt`: a TorchScript archive", "hint: in Python: torch.save(torch.jit.load"),
        ("make.py", "not a checkpoint: neither .safetensors nor a PyTorch file", "hint: give a .safetensors file"),
        ("none", "could not read", "hint: give the path"),
    ] {
        let output = inspect(&golden.join(file), &[]);
        let said = text(&output);
        assert!(!output.status.success() && said.starts_with("error: "), "{said}");
        assert!(said.contains(error) && said.contains(hint), "{said}");
    }
}

#[test]
fn bad_input_is_one_clear_line_and_a_hint() {
    let dir = tempfile::tempdir().unwrap();
    write_pipeline(dir.path(), TINY);
    let sam = Path::new(env!("CARGO_MANIFEST_DIR")).join("pipelines/weights/mobile_sam.f16.safetensors");
    let sam_weights = format!("classifier.weights={}", sam.display());
    let baseline = TINY.split("[[variant]]").next().unwrap();
    let wrong_sam = baseline.replace("mobile_sam.f16.safetensors", "resnet50_v1.f16.safetensors");
    write_pipeline(dir.path(), &wrong_sam);
    fs::rename(dir.path().join("tiny.toml"), dir.path().join("voted.toml")).unwrap();
    write_pipeline(dir.path(), TINY);
    // SSC that never begins reads no SAM.
    let late = ["--set", "ssc.enabled=true", "--set", "ssc.start_epoch=9"];
    succeeds(dir.path(), &[&["plan", "voted.toml"], &late[..]].concat());
    for (args, error, hint) in [
        (&["run", "none.toml"][..], "could not read", "give the path of a pipeline file"),
        (&["run", "tiny.toml", "--set", "cpm.tua=1"], "no field `cpm.tua`", "did you mean `classifier.cpm.tau`?"),
        (
            &["run", "tiny.toml", "--set", &sam_weights],
            "mobile_sam.f16.safetensors` is MobileSAM (SAM with TinyViT), which fits sam.weights",
            "weights inspect FILE",
        ),
        (
            &["plan", "tiny.toml", "--set", "classifier.backbone=resnet18"],
            "is ResNet-50, and the backbone is resnet18",
            "weights inspect FILE",
        ),
        // A refinement alone reads SAM, and a network may start from the classifier's weights.
        (
            &["plan", "voted.toml", "--set", "pseudo_label.refine=segment_vote"],
            "`sam.weights`: `",
            "weights inspect FILE",
        ),
        (
            &["plan", "tiny.toml", "--set", "pseudo_label.refine=psa", "--set", "pseudo_label.psa.backbone=resnet18"],
            "is ResNet-50, and the backbone is resnet18",
            "weights inspect FILE",
        ),
        (&["run", "tiny.toml", "--set", "sam.weights=gone.safetensors"], "gone.safetensors", "set `sam.weights`"),
        (
            &["run", "tiny.toml", "--set", "dataset.kind=voc", "--set", "dataset.root=gone"],
            "no data set at",
            "set `dataset.root` to the folder that holds JPEGImages",
        ),
        (&["run", "tiny.toml", "--set", "dataset.kind=voc"], "`dataset.root` is not set", "write it in [dataset]"),
        (&["run", "tiny.toml", "--device", "cuda"], "there is no `cuda`", "run on --device cpu"),
        (&["run", "tiny.toml", "--device", "cpu,cpu"], "names the CPU and more", "the CPU computes alone"),
        (&["plan", "tiny.toml", "--set", "evaluate.classes=['cst']"], "`cst`", "did you mean `cat`?"),
        (
            &["plan", "tiny.toml", "--set", "evaluate.classes=['a pipe']"],
            "`a pipe`",
            "the classes are aeroplane, bicycle, ",
        ),
        (
            &["lineage", "tiny.toml", "zzz", "--variant", "S2C"],
            "no image `zzz`",
            "give an id as in the list, such as `",
        ),
        (&["predict", "tiny.toml", "x.png", "--variant", "S2C"], "has not been trained", "s2c-pipe run tiny.toml"),
    ] {
        let output = call(dir.path(), args);
        let said = text(&output);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {said}");
        let line = |start: &str| said.lines().find(|line| line.starts_with(start)).unwrap_or_default().to_owned();
        assert!(line("error: ").contains(error) && line("hint: ").contains(hint), "{args:?}: {said}");
    }
}

/// A tree in VOC layout of one training and one validation picture.
pub(crate) fn voc_tree(root: &Path, image: &Rgb, mask: &LabelMap) {
    for folder in ["JPEGImages", "SegmentationClass", "ImageSets/Segmentation"] {
        fs::create_dir_all(root.join(folder)).unwrap();
    }
    for list in ["train", "val"] {
        fs::write(root.join(format!("ImageSets/Segmentation/{list}.txt")), format!("{list}\n")).unwrap();
        fs::write(root.join(format!("JPEGImages/{list}.png")), encode_rgb(image)).unwrap();
        fs::write(root.join(format!("SegmentationClass/{list}.png")), encode_label_map(mask)).unwrap();
    }
}

/// The smallest picture there is, in which SAM finds nothing, goes through every stage.
#[test]
fn one_pixel_and_no_segment_at_all() {
    let dir = tempfile::tempdir().unwrap();
    voc_tree(&dir.path().join("voc"), &Rgb { height: 1, width: 1, data: vec![90; 3] }, &LabelMap::filled(1, 1, 8));
    let text = TINY.replace("kind = \"emoji\"", "root = \"voc\"").replace("points_per_side = 3", "points_per_side = 1");
    let text = text.replace("[[variant]]\nname = \"baseline\"\n", "") + "pseudo_label.refine = [\"segment_vote\"]\n";
    write_pipeline(dir.path(), &format!("{text}se_map.pred_iou_thresh = 2.0\n"));
    let said = succeeds(dir.path(), &["run", "tiny.toml"]);
    assert!(said.contains("voc, mIoU in %"), "{said}");
}

/// A picture of 48 megapixels, its network views scaled down; memory stays within what one such picture needs.
#[test]
fn a_very_large_picture() {
    let dir = tempfile::tempdir().unwrap();
    let (height, width) = (6000, 8000);
    let data = (0..height * width).flat_map(|i| [(i % width / 32) as u8, (i / width / 24) as u8, 128]).collect();
    let mut mask = LabelMap::filled(height, width, 0);
    mask.data[..1_000_000].fill(8);
    voc_tree(&dir.path().join("voc"), &Rgb { height, width, data }, &mask);
    let text = TINY.replace("kind = \"emoji\"", "root = \"voc\"").replace("points_per_side = 3", "points_per_side = 1");
    let text = text.replace("scales = [1.0]\n\n", "scales = [0.05]\n\n").replace("overlays = 2", "overlays = 0");
    let text = text.replace("[segmentation]", "[segmentation]\nenabled = false");
    write_pipeline(dir.path(), &text);
    let said = succeeds(dir.path(), &["run", "tiny.toml"]);
    assert!(said.contains("voc, mIoU in %"), "{said}");
}

#[test]
fn an_interrupt_finishes_the_unit_and_the_next_run_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    write_pipeline(dir.path(), TINY);
    let run = program(dir.path()).args(["run", "tiny.toml"]).stderr(Stdio::piped()).spawn().unwrap();
    // Some unit has finished once there are blobs.
    let started = Instant::now();
    while !dir.path().join("cache/blobs").exists() || walk(&dir.path().join("cache/blobs")).is_empty() {
        assert!(started.elapsed() < Duration::from_secs(300));
        std::thread::sleep(Duration::from_millis(50));
    }
    let killed = Command::new("kill").args(["-INT", &run.id().to_string()]).status().unwrap();
    assert!(killed.success());
    let output = run.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", text(&output));
    assert!(text(&output).contains("the same command goes on from here"), "{}", text(&output));
    let left = to_run(dir.path(), &[]);
    assert!(!left.is_empty());
    succeeds(dir.path(), &["run", "tiny.toml"]);
    let undisturbed = finished_copy();
    assert_eq!(digests(dir.path()), digests(undisturbed.path()));
}

/// Killed in the middle of an epoch, where it had begun and where it had resumed, it ends with the bytes of an undisturbed
/// one.
#[test]
fn a_kill_inside_an_epoch_changes_no_byte() {
    let dirs = [finished_copy(), finished_copy()];
    let sets = ["classifier.batch_size=1", "classifier.epochs=1", "cpm.start_epoch=0", "segmentation.enabled=false"];
    let args: Vec<&str> = ["run", "tiny.toml"].into_iter().chain(sets.iter().flat_map(|set| ["--set", set])).collect();
    let [undisturbed, killed] = dirs.each_ref().map(TempDir::path);
    let before = digests(killed);
    succeeds(undisturbed, &args);

    // Logs of steps: those of before are of other units. The first unit is the epoch of the baseline, of 4 steps.
    let logs = killed.join("cache/logs");
    let known = walk(&logs);
    let steps = || {
        let new: Vec<_> = walk(&logs).into_iter().filter(|path| !known.contains(path)).collect();
        new.iter().map(|path| fs::read_to_string(path).unwrap().lines().count()).sum::<usize>()
    };
    // Stopped with its state saved, killed after a step of what it resumed, killed again.
    for (signal, code) in [("-INT", Some(130)), ("-KILL", None), ("-KILL", None)] {
        let (start, started) = (if signal == "-INT" { 0 } else { steps() }, Instant::now());
        let mut run = program(killed).args(&args).stderr(Stdio::null()).spawn().unwrap();
        while steps() <= start {
            assert!(started.elapsed() < Duration::from_secs(300));
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(Command::new("kill").args([signal, &run.id().to_string()]).status().unwrap().success());
        assert_eq!(run.wait().unwrap().code(), code);
        assert_eq!(digests(killed), before, "no epoch ended: the kill was inside of one");
        assert_eq!(walk(&killed.join("cache/scratch")).len(), 1, "the state of the epoch");
    }
    succeeds(killed, &args);
    assert_eq!(digests(killed), digests(undisturbed));
}

/// A write that fails half-way, as on a full disk: said, nothing half-written, and the next run goes on.
#[test]
fn a_disk_that_takes_no_more_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    write_pipeline(dir.path(), TINY);
    // Files may grow to 20 MB: embeddings fit, a checkpoint does not. Without the trap the signal would kill.
    let limited = format!("trap '' XFSZ; ulimit -f 20000; exec {} run tiny.toml", env!("CARGO_BIN_EXE_s2c-pipe"));
    let output = Command::new("bash").args(["-c", &limited]).current_dir(dir.path()).output().unwrap();
    let said = text(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("error: ") && said.contains("File too large"), "{said}");
    succeeds(dir.path(), &["cache", "verify"]);
    let said = succeeds(dir.path(), &["run", "tiny.toml"]);
    assert!(said.contains("emoji, mIoU in %"), "{said}");
    let undisturbed = finished_copy();
    assert_eq!(digests(dir.path()), digests(undisturbed.path()));
}

/// As behind `2>&1 | tee` when `tee` has ended.
#[test]
fn a_run_goes_on_when_nobody_reads_what_it_says() {
    let dir = finished_copy();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut run = program(dir.path());
    run.args(["run", "tiny.toml", "--set", "cpm.tau=0.3"]).stdout(writer.try_clone().unwrap()).stderr(writer);
    assert!(!run.status().unwrap().success()); // there was a table to print
    let said = succeeds(dir.path(), &["run", "tiny.toml", "--set", "cpm.tau=0.3"]);
    assert!(said.contains("0 units executed"), "{said}");
}

/// As with `s2c-pipe schema | head`.
#[test]
fn a_reader_that_has_enough_ends_it_quietly() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = program(Path::new(".")).arg("schema").stdout(writer).stderr(Stdio::piped()).output().unwrap();
    assert!(!output.status.success() && output.stderr.is_empty(), "{}", text(&output));
}
