//! Tables where neither data nor weights are: from what runs recorded.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use crate::program::{call, finished_copy, succeeds, text};

/// What it prints, and what it says beside that.
fn printed(folder: &Path, args: &[&str]) -> (String, String) {
    let output = call(folder, args);
    assert!(output.status.success(), "{args:?}: {}", text(&output));
    (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
}

const TABLES: [&[&str]; 4] = [
    &["results", "voc.toml", "--metrics"],
    &["results", "voc.toml", "--csv"],
    &["results", "voc.toml", "--latex"],
    &["--json", "results", "voc.toml"],
];

#[test]
fn a_table_needs_neither_data_nor_weights() {
    let dir = finished_copy();
    let at = |name: &str| dir.path().join(name);
    let scenes =
        fs::read_dir(at("cache/datasets")).unwrap().map(|entry| entry.unwrap().path()).find(|path| path.is_dir());
    fs::rename(scenes.unwrap(), at("voc")).unwrap();
    fs::create_dir(at("w")).unwrap();
    let weights = Path::new(env!("CARGO_MANIFEST_DIR")).join("pipelines/weights");
    for entry in fs::read_dir(weights).unwrap().map(Result::unwrap) {
        symlink(entry.path(), at("w").join(entry.file_name())).unwrap();
    }
    let sam = "sam.weights = 'w/mobile_sam.f16.safetensors'\n";
    let resnet = ["classifier", "segmentation"].map(|of| format!("{of}.weights = 'w/resnet50_v1.f16.safetensors'\n"));
    let data = "dataset.kind = 'voc'\ndataset.root = 'voc'\n";
    fs::write(at("voc.toml"), format!("extends = 'tiny.toml'\n{data}{sam}{}", resnet.concat())).unwrap();
    let said = succeeds(dir.path(), &["run", "voc.toml"]);
    assert!(said.contains("0 units executed"), "{said}");
    let before = TABLES.map(|args| printed(dir.path(), args));
    assert!(before.iter().all(|(_, said)| said.is_empty()), "{before:?}");
    succeeds(dir.path(), &["cache", "push", "share"]);

    // Weights alone, then an empty folder of data, then none.
    let is_as_before = |folder: &Path, notes: &[&str]| {
        for (args, (table, _)) in TABLES.iter().zip(&before) {
            let (found, said) = printed(folder, args);
            assert_eq!(found, *table, "{args:?}: {said}");
            assert!(notes.iter().all(|note| said.contains(note)), "{said}");
        }
        fs::write(folder.join("paper.tex"), &before[2].0).unwrap();
        let said = succeeds(folder, &["verify-results", "paper.tex"]);
        assert!(said.contains("8 of 8 numbers are what the cache holds"), "{said}");
    };
    let (no_data, no_weights) =
        ("voc` are not here: what is shown is of those that a run read, 2", "resnet50_v1.f16.safetensors` is not here");
    fs::remove_dir_all(at("w")).unwrap();
    is_as_before(dir.path(), &[no_weights]);
    fs::rename(at("voc"), at("kept")).unwrap();
    fs::create_dir(at("voc")).unwrap();
    is_as_before(dir.path(), &[no_data, no_weights]);
    // What is there and broken is told, and not covered.
    fs::create_dir(at("voc/JPEGImages")).unwrap();
    let output = call(dir.path(), &["results", "voc.toml"]);
    assert!(!output.status.success() && text(&output).contains("error: "), "{}", text(&output));
    fs::remove_dir_all(at("voc")).unwrap();
    is_as_before(dir.path(), &[no_data]);
    // What runs needs them.
    for command in ["run", "plan"] {
        let output = call(dir.path(), &[command, "voc.toml"]);
        assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    }
    // On another machine, by a share.
    let other = tempfile::tempdir().unwrap();
    for file in ["voc.toml", "tiny.toml"] {
        fs::copy(at(file), other.path().join(file)).unwrap();
    }
    let output = call(other.path(), &["results", "voc.toml"]);
    assert_eq!(output.status.code(), Some(1), "nothing is known yet: {}", text(&output));
    succeeds(other.path(), &["cache", "pull", &at("share").to_string_lossy()]);
    is_as_before(other.path(), &[no_data, no_weights]);
}
