//! What is written outside of the cache: only into what the program made or what is empty, and never over what is read.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use s2c_pipe::data::image::encode_rgb;
use s2c_pipe::vision::Rgb;
use tempfile::TempDir;

use crate::program::{call, finished_copy, succeeds, text};

/// Every file below a folder, but for the caches, with its content.
fn contents(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    let mut found = BTreeMap::new();
    for entry in entries.filter(|entry| entry.file_name() != "cache") {
        let (path, kind) = (entry.path(), entry.file_type().unwrap());
        match () {
            () if kind.is_dir() => found.extend(contents(&path)),
            () if kind.is_symlink() => {
                drop(found.insert(path.clone(), fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes()))
            }
            () => drop(found.insert(path.clone(), fs::read(&path).unwrap())),
        }
    }
    found
}

/// The scenes of the finished pipeline as the user's own data set in `voc`, with a file beside it.
fn with_data() -> TempDir {
    let dir = finished_copy();
    let at = |name: &str| dir.path().join(name);
    let scenes =
        fs::read_dir(at("cache/datasets")).unwrap().map(|entry| entry.unwrap().path()).find(|path| path.is_dir());
    copy(&scenes.unwrap(), &at("voc"));
    fs::write(at("voc/readme.txt"), "mine").unwrap();
    fs::write(at("voc.toml"), "extends = 'tiny.toml'\ndataset.kind = 'voc'\ndataset.root = 'voc'\n").unwrap();
    let picture = Rgb { height: 20, width: 30, data: vec![90; 20 * 30 * 3] };
    fs::write(at("photo.jpg"), encode_rgb(&picture)).unwrap();
    fs::write(at("photo.png"), encode_rgb(&picture)).unwrap();
    dir
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let to = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

/// Refused before any work, with exit code 1, a line on what it is and a hint, and nothing changed.
#[test]
fn nothing_is_written_over_what_is_not_the_programs_own() {
    let dir = with_data();
    let at = |name: &str| dir.path().join(name);
    symlink(at("voc"), at("link")).unwrap();
    for folder in ["linked", "hard/SegmentationClass", "soft/SegmentationClass", "cased", "weights", "images"] {
        fs::create_dir_all(at(folder)).unwrap();
    }
    symlink(at("voc/SegmentationClass"), at("linked/SegmentationClass")).unwrap();
    fs::create_dir_all(at("out2")).unwrap();
    fs::write(at("out2/.s2c-pipe"), "{}\n").unwrap();
    symlink(at("user"), at("out2/SegmentationClass")).unwrap();
    fs::hard_link(at("voc/SegmentationClass/train_0000.png"), at("hard/SegmentationClass/train_0000.png")).unwrap();
    symlink(at("voc/SegmentationClass/train_0001.png"), at("soft/SegmentationClass/train_0001.png")).unwrap();
    fs::write(at("weights/photo.json"), "weights").unwrap();
    for file in ["SegmentationClass.toml", "cache.toml"] {
        fs::write(at(file), "extends = 'voc.toml'\n").unwrap();
    }
    fs::create_dir(at("user")).unwrap();
    fs::write(at("user/notes.txt"), "mine").unwrap();
    let labels = ["export", "voc.toml", "--variant", "S2C", "--what", "pseudo-labels", "--to"];
    let predict = ["predict", "voc.toml", "--variant", "S2C"];
    let segment = ["segment", "photo.jpg", "--weights", "weights/photo.json"];
    let foreign = "has files that s2c-pipe did not make, such as `";
    let never = "--force does not change this";
    #[rustfmt::skip]
    let cases: Vec<(Vec<&str>, &str, &str)> = vec![
        // command                                                  said                                       hint
        ([&labels[..], &["voc"]].concat(),                          "is a mask of the data set",                never),
        ([&labels[..], &["voc", "--force"]].concat(),               "`voc/SegmentationClass/train_0000.png` would be overwritten by a result, and it is a mask of the data set", never),
        ([&labels[..], &["link", "--force"]].concat(),              "is a mask of the data set",                never),
        ([&labels[..], &["./voc/../voc/", "--force"]].concat(),     "is a mask of the data set",                never),
        ([&labels[..], &["new/../voc", "--force"]].concat(),        "a part of the data set",                   never),
        ([&labels[..], &["voc/JPEGImages", "--force"]].concat(),    "into `",                                   never),
        ([&labels[..], &["voc/JPEGImages/a/b", "--force"]].concat(), "a part of the data set",                  never),
        ([&labels[..], &["linked", "--force"]].concat(),            "is a mask of the data set",                never),
        ([&labels[..], &["out2"]].concat(),                         "would be written through a link into `",   "--to DIR"),
        ([&labels[..], &["hard", "--force"]].concat(),              "is a mask of the data set",                never),
        ([&labels[..], &["soft", "--force"]].concat(),              "is a mask of the data set",                never),
        ([&labels[..], &["cache/mine", "--force"]].concat(),        "the cache",                                never),
        ([&labels[..], &["user"]].concat(),                         foreign,                                    "add --force to write into this one"),
        ([&labels[..], &["."]].concat(),                            foreign,                                    "--to DIR"),
        ([&labels[..], &["photo.jpg"]].concat(),                    "`photo.jpg` is a file, not a folder",      "--to DIR"),
        ([&predict[..], &["photo.jpg", "--to", "."]].concat(),      "`./photo.png` is there already, and s2c-pipe did not make it", "--to DIR"),
        ([&predict[..], &["photo.png", "--to", ".", "--force"]].concat(), "it is a picture that was given",     never),
        ([&predict[..], &["photo.png", "--to", "voc/JPEGImages"]].concat(), "into `",                           never),
        ([&segment[..], &["--to", "."]].concat(),                   "`./photo.png` is there already",           "--to DIR"),
        ([&segment[..], &["--to", "weights", "--force"]].concat(),  "it is the file of weights",                never),
        ([&segment[..], &["--to", "user"]].concat(),                foreign,                                    "--to DIR"),
        (vec!["run", "SegmentationClass.toml", "--out", "voc", "--force"], "into `",                            "--out DIR"),
        (vec!["run", "cache.toml", "--out", ".", "--force"],        "the cache",                                "--out DIR"),
        (vec!["run", "voc.toml", "--out", "."],                     foreign,                                    "--out DIR"),
        (vec!["tensorboard", "voc.toml", "--to", "user"],           foreign,                                    "--to DIR"),
        (vec!["tensorboard", "voc.toml", "--to", "voc/ImageSets", "--force"], "into `",                         never),
        (vec!["cache", "push", "voc"],                              "`voc` is no cache, and has files of others, such as `", "--force"),
        (vec!["--cache", "voc", "plan", "voc.toml"],                "`voc` is no cache, and has files of others", "--cache DIR"),
        (vec!["--cache", "user", "run", "voc.toml"],                "`user` is no cache",                       "--cache DIR"),
        (vec!["--cache", "user", "cache", "rebuild"],               "`user` is no cache",                       "--cache DIR"),
        (vec!["--cache", "photo.jpg", "results", "voc.toml"],       "`photo.jpg` is a file",                    "--cache DIR"),
    ];
    let before = contents(dir.path());
    for (args, said, hint) in cases {
        let output = call(dir.path(), &args);
        let all = text(&output);
        let line = |start: &str| all.lines().find(|line| line.starts_with(start)).unwrap_or_default().to_owned();
        assert_eq!(output.status.code(), Some(1), "{args:?}: {all}");
        assert!(line("error: ").contains(said) && line("hint: ").contains(hint), "{args:?}: {all}");
        assert!(contents(dir.path()) == before, "{args:?} changed something: {all}");
        assert!(!at("new").exists(), "{args:?}");
    }
}

/// The same command runs again, also after it was killed between record and file; what somebody changed stays.
#[test]
fn what_the_program_made_is_made_again_and_what_was_changed_since_stays() {
    let dir = with_data();
    let at = |name: &str| dir.path().join(name);
    let export = |more: &[&str]| {
        let args = ["export", "voc.toml", "--what", "pseudo-labels", "--variant", "S2C"];
        call(dir.path(), &[&args[..], more].concat())
    };
    // New, empty, or with nothing but what systems leave there.
    fs::create_dir_all(at("empty")).unwrap();
    fs::create_dir_all(at("seen")).unwrap();
    fs::write(at("seen/.DS_Store"), "").unwrap();
    for to in ["a/b/new", "empty", "seen"] {
        for _ in 0..2 {
            let output = export(&["--to", to]);
            assert!(output.status.success(), "{to}: {}", text(&output));
        }
    }
    let file = at("empty/SegmentationClass/train_0000.png");
    let whole = fs::read(&file).unwrap();
    // Others beside them; another variant's are not put in their place.
    succeeds(dir.path(), &["export", "voc.toml", "--what", "cams", "--variant", "baseline", "--to", "empty"]);
    let other = ["export", "voc.toml", "--what", "pseudo-labels", "--variant", "baseline", "--to", "empty"];
    let said = text(&call(dir.path(), &other));
    assert!(said.contains("is there already, and it is made from the pseudo-labels of `S2C` of `"), "{said}");
    assert!(said.contains("; so are 3 more\nhint: give another folder, --to DIR, or add --force"), "{said}");
    assert!(fs::read(&file).unwrap() == whole);
    succeeds(dir.path(), &[&other[..], &["--force"]].concat());
    assert!(fs::read(&file).unwrap() != whole);
    assert!(export(&["--to", "empty", "--force"]).status.success());
    assert!(export(&["--to", "empty"]).status.success());
    assert!(fs::read(&file).unwrap() == whole);
    // A line that was cut off, and one of a file that never came.
    let record = at("empty/.s2c-pipe");
    let torn = fs::read_to_string(&record).unwrap() + "{\"file\":\"SegmentationClass/train_0000.png\",\"bla";
    fs::write(&record, torn).unwrap();
    assert!(export(&["--to", "empty"]).status.success());
    fs::remove_file(&file).unwrap();
    assert!(export(&["--to", "empty"]).status.success());
    assert!(fs::read(&file).unwrap() == whole);
    // Corrected by hand.
    fs::write(&file, "corrected").unwrap();
    let output = export(&["--to", "empty"]);
    let said = text(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("is there already, and it was changed since s2c-pipe made it\n"), "{said}");
    assert_eq!(fs::read(&file).unwrap(), b"corrected");
    assert!(export(&["--to", "empty", "--force"]).status.success());
    assert!(fs::read(&file).unwrap() == whole);
    // A link in its place is replaced, never followed.
    fs::write(at("mine.png"), "mine").unwrap();
    fs::remove_file(&file).unwrap();
    symlink(at("mine.png"), &file).unwrap();
    assert!(text(&export(&["--to", "empty"])).contains("it is a link"));
    assert!(export(&["--to", "empty", "--force"]).status.success());
    assert_eq!(fs::read(at("mine.png")).unwrap(), b"mine");
    // With --force beside somebody's files, which stay.
    fs::create_dir_all(at("user")).unwrap();
    fs::write(at("user/notes.txt"), "mine").unwrap();
    assert!(export(&["--to", "user", "--force"]).status.success());
    assert!(export(&["--to", "user"]).status.success());
    assert_eq!(fs::read(at("user/notes.txt")).unwrap(), b"mine");
}

/// What the command line sets has a folder of its own.
#[test]
fn a_run_with_overrides_leaves_the_results_of_the_run_without() {
    let dir = finished_copy();
    let at = |name: &str| dir.path().join(name);
    let before = contents(&at("out/tiny"));
    succeeds(dir.path(), &["run", "tiny.toml", "--set", "pseudo_label.threshold=0.1"]);
    assert!(contents(&at("out/tiny")) == before);
    let other = at("out/tiny+pseudo_label.threshold=0.1");
    let picture = |folder: &Path| fs::read(folder.join("overlays/train_0000.png")).unwrap();
    assert!(picture(&other) != picture(&at("out/tiny")));
    // The same field by a shorter path, and again.
    succeeds(dir.path(), &["run", "tiny.toml", "--set", "threshold=0.1"]);
    succeeds(dir.path(), &["run", "tiny.toml"]);
    assert_eq!(fs::read_dir(at("out")).unwrap().count(), 2);
    // Results that somebody changed are not lost, and the run says so before it works.
    fs::write(at("out/tiny/results.csv"), "mine").unwrap();
    let output = call(dir.path(), &["run", "tiny.toml"]);
    let said = text(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("`out/tiny/results.csv` is there already, and it was changed since"), "{said}");
    assert!(said.contains("hint: give another folder, --out DIR, or add --force"), "{said}");
    assert_eq!(fs::read(at("out/tiny/results.csv")).unwrap(), b"mine");
}
