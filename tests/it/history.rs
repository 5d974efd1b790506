//! The runs of the past: what is kept of them, what is torn, what is shown.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use s2c_pipe::cache::history::{Began, Ended, History, How};
use s2c_pipe::cache::{Cache, holder};
use s2c_pipe::digest::BlobDigest;
use s2c_pipe::pipeline::file::load;
use s2c_pipe::pipeline::past::{Shown, changed_since, normalised, restored, text};

use crate::engine::Workspace;

fn began(file: &str, began: u64) -> Began {
    Began {
        weights: Vec::new(),
        began,
        file: file.to_owned(),
        sets: Vec::new(),
        digest: BlobDigest::of(file.as_bytes()),
        data: vec![("S2C".into(), BlobDigest::of(b"data"))],
        versions: BTreeMap::from([("cam_epoch".into(), 6)]),
        who: "process 1".to_owned(),
    }
}

fn ended(ended: u64, how: How, failed: usize, metrics: &[(&str, &[(&str, f64)])]) -> Ended {
    let metrics = metrics.iter().map(|(variant, of)| {
        ((*variant).to_owned(), of.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect())
    });
    Ended { ended, how, executed: 96, reused: 210, failed, metrics: metrics.collect(), remarks: Vec::new() }
}

/// Five runs of two files; the last goes on as far as anybody knows.
fn some_history(cache: &Path) -> History {
    let history = History::new(cache);
    let here = std::env::current_dir().unwrap();
    let [first, other] = ["pipelines/ablation.toml", "other.toml"].map(|file| here.join(file).display().to_string());
    let metrics: &[(&str, &[(&str, f64)])] = &[
        ("baseline", &[("seed_miou", 52.1), ("segmentation_miou", 48.25)]),
        ("S2C, cpm.tau=0.3", &[("seed_miou", 58.0)]),
    ];
    let begin = |file: &str, at| history.begin(began(file, at)).unwrap();
    let run = begin(&first, 1_795_551_908);
    history.end(run, ended(1_795_555_708, How::Interrupted, 0, &[])).unwrap();
    let run = begin(&first, 1_795_560_000);
    history.end(run, ended(1_795_560_042, How::Finished, 0, metrics)).unwrap();
    begin(&other, 1_795_570_000);
    let sets = vec!["cpm.tau=0.3".to_owned()];
    let run = history.begin(Began { sets, ..began(&first, 1_795_580_000) }).unwrap();
    history.end(run, ended(1_795_580_001, How::Failed, 2, metrics)).unwrap();
    begin(&other, 1_795_590_000);
    history
}

fn program(cache: &Path, args: &[&str]) -> (bool, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_s2c-pipe")).arg("--cache").arg(cache).args(args).output().unwrap();
    (output.status.success(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}

/// With the digests of files, which change with the fields there are, as `file 1` and so on.
fn numbered(said: &str) -> String {
    let mut files: Vec<&str> = Vec::new();
    let line = |line| match line {
        line if !str::starts_with(line, "run ") => line.to_owned(),
        line => {
            let (rest, digest) = line.rsplit_once("  ").unwrap();
            assert!(digest.len() == 12 && digest.bytes().all(|byte| byte.is_ascii_hexdigit()), "{line}");
            if !files.contains(&digest) {
                files.push(digest);
            }
            format!("{rest}  file {}", files.iter().position(|file| *file == digest).unwrap() + 1)
        }
    };
    said.lines().map(line).collect::<Vec<_>>().join("\n")
}

#[test]
fn a_history_tells_when_what_and_how_well() {
    let dir = tempfile::tempdir().unwrap();
    let cache = dir.path().join("cache");
    assert_eq!(program(&cache, &["history"]), (true, format!("no run yet in `{}`\n", cache.display())));
    let (is_good, said) = program(&cache, &["history", "x.toml"]);
    assert!(
        !is_good && said.contains("error: no run of `x.toml`") && said.contains("hint: s2c-pipe run x.toml"),
        "{said}"
    );

    some_history(&cache);
    let (is_good, said) = program(&cache, &["history"]);
    assert!(is_good);
    insta::assert_snapshot!(numbered(&said), @"
    run 1  2026-11-24 20:25 UTC  pipelines/ablation.toml  file 1
      interrupted after 1 h 3 min: 96 units executed, 210 reused

    run 2  2026-11-24 22:40 UTC  pipelines/ablation.toml  file 1
      finished after 42 s: 96 units executed, 210 reused
      variant           seed mIoU  segmentation mIoU
      baseline               52.1               48.2
      S2C, cpm.tau=0.3       58.0                  -

    run 3  2026-11-25 01:26 UTC  other.toml  file 2
      was cut off

    run 4  2026-11-25 04:13 UTC  pipelines/ablation.toml --set cpm.tau=0.3  file 1
      failed after 1 s: 96 units executed, 210 reused, 2 failed
      metrics as in run 2

    run 5  2026-11-25 07:00 UTC  other.toml  file 2
      was cut off
    ");
    let (_, of_one) = program(&cache, &["history", "other.toml"]);
    assert_eq!((of_one.matches("\nrun ").count() + 1, of_one.contains("ablation")), (2, false));
    let (is_good, said) = program(&cache, &["history", "x.toml"]);
    assert!(!is_good && said.contains("hint: there are runs of: ") && said.contains("other.toml; "), "{said}");

    let (_, json) = program(&cache, &["--json", "history"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&json[1]["how"], &json[1]["metrics"][0][1]["seed_miou"]), (&"finished".into(), &52.1.into()));
    assert_eq!((&json[4]["run"], &json[4]["goes_on"], &json[4]["how"]), (&5.into(), &false.into(), &().into()));
}

#[test]
fn a_run_without_an_end_goes_on_while_its_process_holds_the_cache() {
    let workspace = Workspace::new();
    assert_eq!(holder(&workspace.cache), None);
    let held = Cache::open(&workspace.cache, "process 1", &|_| true).unwrap();
    assert_eq!(holder(&workspace.cache).as_deref(), Some("process 1"));
    let run = |holder: Option<&str>| {
        Shown::new(some_history(&workspace.dir.path().join(holder.unwrap_or("none"))).runs().unwrap().remove(4), holder)
    };
    assert!(text(&[run(Some("process 1"))]).ends_with("  goes on\n"));
    assert_eq!([run(Some("process 2")).goes_on, run(None).goes_on], [Some(false), Some(false)]);
    drop(held);
    assert_eq!(holder(&workspace.cache), None);
}

#[test]
fn torn_lines_cost_themselves_alone() {
    let dir = tempfile::tempdir().unwrap();
    let history = some_history(dir.path());
    let path = dir.path().join("history/runs.jsonl");
    let whole = fs::read(&path).unwrap();
    let before = history.runs().unwrap();
    for cut in [1, 20, 150] {
        fs::write(&path, &whole[..whole.len() - cut]).unwrap();
        // The last line was that of run 5; it is torn, unless only its line break is gone.
        let n = if cut == 1 { 5 } else { 4 };
        assert_eq!(history.runs().unwrap(), before[..n], "{cut}");
        let run = history.begin(began("again", 7)).unwrap();
        assert_eq!(run, n as u64 + 1);
        history.end(run, ended(9, How::Finished, 0, &[])).unwrap();
        let runs = history.runs().unwrap();
        assert_eq!((&runs[..n], runs.len()), (&before[..n], n + 1), "{cut}");
        assert_eq!(runs[n].ended.as_ref().unwrap().ended, 9);
    }
    fs::write(&path, [&whole[..], b"\xff\xfe{\"began\":{}}\n{\"ended\":{\"run\":99}}\n"].concat()).unwrap();
    assert_eq!(history.runs().unwrap(), before);
}

#[test]
fn many_writers_at_once_have_numbers_of_their_own() {
    let dir = tempfile::tempdir().unwrap();
    std::thread::scope(|scope| {
        for writer in 0..8 {
            let history = History::new(dir.path());
            scope.spawn(move || {
                for i in 0..10 {
                    let run = history.begin(began(&format!("{writer}"), i)).unwrap();
                    history.end(run, ended(i, How::Finished, 0, &[])).unwrap();
                }
            });
        }
    });
    let runs = History::new(dir.path()).runs().unwrap();
    let numbers: Vec<u64> = runs.iter().map(|run| run.run).collect();
    assert_eq!(numbers, (1..=80).collect::<Vec<_>>());
    assert!(runs.iter().all(|run| run.ended.as_ref().is_some_and(|ended| ended.ended == run.began.began)));
}

const FILE: &str = "
    [dataset]
    root = 'voc'
    [pseudo_label]
    psa.weights = 'weights/psa.safetensors'
    irn.weights = 'weights/irn.safetensors'
    [[variant]]
    name = 'S2C'
    'cpm.enabled' = true
    [sweep]
    'cpm.tau' = [0.3, 0.5]
";

#[test]
fn a_file_that_ran_is_kept_whole_whatever_folder_it_is_in() {
    let dir = tempfile::tempdir().unwrap();
    let folders = ["one", "two"].map(|name| dir.path().join(name));
    let [one, two] = [0, 1].map(|i| {
        fs::create_dir(&folders[i]).unwrap();
        // Comments and order are no part of what it says.
        let text = if i == 0 { FILE.to_owned() } else { format!("# again\nrng_seed = 0\n{FILE}") };
        fs::write(folders[i].join("p.toml"), text).unwrap();
        let pipeline = load(&folders[i].join("p.toml"), &[]).unwrap();
        (normalised(&pipeline, &folders[i]).unwrap(), pipeline)
    });
    assert_eq!(one.0, two.0);
    let kept = String::from_utf8_lossy(&one.0);
    assert!(!kept.contains(&*dir.path().to_string_lossy()), "{kept}");
    let history = History::new(dir.path());
    let digest = history.keep_file(&one.0).unwrap();
    assert_eq!(history.keep_file(&two.0).unwrap(), digest);
    let back = restored(&history.file(&digest).unwrap(), "p", &folders[1]).unwrap();
    assert_eq!(back.cells.len(), 2);
    for (cell, expected) in back.cells.iter().zip(&two.1.cells) {
        assert_eq!((&cell.name, &cell.axes, &cell.spec), (&expected.name, &expected.axes, &expected.spec));
    }
    let changed = load(&folders[0].join("p.toml"), &["classifier.lr=0.5".to_owned()]).unwrap();
    assert_ne!(normalised(&changed, &folders[0]).unwrap(), one.0);

    let kept = dir.path().join(format!("history/{digest}.json"));
    fs::write(&kept, "[]").unwrap();
    assert!(history.file(&digest).is_err(), "not what was kept");
    fs::remove_file(&kept).unwrap();
    assert!(history.file(&digest).unwrap_err().to_string().contains("could not read"));
    assert!(restored(b"[{\"name\": 1}]", "p", dir.path()).is_err());
}

#[test]
fn what_changed_since_a_run_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let run = some_history(dir.path()).runs().unwrap().remove(0);
    let notes = |data: &[u8], version| {
        changed_since(
            &run,
            "S2C",
            BlobDigest::of(data),
            &BTreeMap::from([("cam_epoch".to_owned(), version), ("new".to_owned(), 1)]),
        )
    };
    assert_eq!(notes(b"data", 6), Vec::<String>::new());
    assert_eq!(
        notes(b"other", 7),
        [
            "run 1 read other data than there is now; units are those of the data of now",
            "`cam_epoch` was version 6 in run 1 and is 7 now",
        ]
    );
}
