//! A cache that something else wrote in: what stands in the place of its files, or among them.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use s2c_pipe::cache::Cache;

use crate::program::{call, finished_copy, program, succeeds, text, walk};

/// The blob of the first score of seeds, which pseudo-labels read as well.
fn score(cache: &Path) -> PathBuf {
    let opened = Cache::open(cache, "test", &|_| true).unwrap();
    let manifests = opened.manifests().unwrap();
    let of_seeds = manifests.iter().find(|manifest| manifest.fingerprint.stage == "seed_eval").unwrap();
    let metrics = of_seeds.outputs.iter().find(|output| output.name == "metrics").unwrap();
    opened.store().path(&metrics.digest)
}

fn flip_a_bit(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    remove(path);
    fs::write(path, bytes).unwrap();
}

/// Blobs of a copy are links to those of the original: they are replaced and never written.
fn remove(path: &Path) {
    fs::remove_file(path).unwrap();
}

pub(super) fn pipe(path: &Path) {
    remove(path);
    assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
}

fn folder(path: &Path) {
    remove(path);
    fs::create_dir(path).unwrap();
    fs::write(path.join("notes.txt"), "of the user").unwrap();
}

fn loop_of_links(path: &Path) {
    remove(path);
    symlink(path, path).unwrap();
}

fn endless(path: &Path) {
    remove(path);
    symlink("/dev/zero", path).unwrap();
}

fn hole(path: &Path) {
    remove(path);
    fs::File::create(path).unwrap().set_len(1 << 40).unwrap();
}

type Tampering = (&'static str, fn(&Path));

const IN_A_FILE_S_PLACE: [Tampering; 7] = [
    ("a flipped bit", flip_a_bit),
    ("nothing", remove),
    ("a named pipe", pipe),
    ("a folder", folder),
    ("a loop of links", loop_of_links),
    ("a device", endless),
    ("a huge file", hole),
];

/// What a table shows is made again, and the table is as it was; nothing is waited for.
#[test]
fn a_score_that_was_lost_is_made_again_whoever_else_reads_it() {
    let dir = finished_copy();
    let dir = dir.path();
    let table = call(dir, &["--json", "results", "tiny.toml"]).stdout;
    let blob = score(&dir.join("cache"));
    for (name, tamper) in IN_A_FILE_S_PLACE {
        tamper(&blob);
        let said = text(&call(dir, &["results", "tiny.toml"]));
        let lost = "note: 1 score was computed and lost since: seed_eval ";
        assert!(said.contains(lost) && said.contains("s2c-pipe run tiny.toml makes them again"), "{name}: {said}");
        let plan: serde_json::Value =
            serde_json::from_slice(&call(dir, &["--json", "plan", "tiny.toml"]).stdout).unwrap();
        assert_eq!(plan["cost"]["to_run"], 1, "{name}: {plan}");
        let said = succeeds(dir, &["run", "tiny.toml"]);
        assert!(said.contains("1 units executed"), "{name}: {said}");
        assert_eq!(call(dir, &["--json", "results", "tiny.toml"]).stdout, table, "{name}");
    }
    let aside = walk(blob.parent().unwrap()).into_iter().find(|path| path.ends_with("notes.txt")).unwrap();
    assert_eq!(fs::read(aside).unwrap(), b"of the user");
}

/// Files that others put into the folder, as file managers do, are named and left alone.
#[test]
fn what_is_foreign_in_a_cache_stays() {
    let dir = finished_copy();
    let dir = dir.path();
    let blobs = dir.join("cache/blobs");
    let beside = score(&dir.join("cache")).parent().unwrap().to_owned();
    fs::write(blobs.join(".DS_Store"), "1").unwrap();
    fs::create_dir(blobs.join("@eaDir")).unwrap();
    fs::write(beside.join(".DS_Store"), "2").unwrap();
    assert!(Command::new("mkfifo").arg(beside.join("pipe")).status().unwrap().success());
    symlink("/dev/zero", beside.join("zero")).unwrap();
    fs::create_dir(dir.join("cache/manifests/7.log")).unwrap();
    assert!(Command::new("mkfifo").arg(dir.join("cache/manifests/8.log")).status().unwrap().success());
    fs::write(beside.join(".tmp-killed"), "half").unwrap();
    let said = succeeds(dir, &["cache", "verify"]);
    for foreign in ["blobs/.DS_Store", "blobs/@eaDir", "/pipe", "/zero"] {
        assert!(said.contains(&format!("{foreign}\n")), "{foreign}: {said}");
    }
    assert_eq!(said.matches("not of this cache, left alone: ").count(), 5, "{said}");
    assert!(succeeds(dir, &["run", "tiny.toml"]).contains("0 units executed"));
    succeeds(dir, &["cache", "gc", "tiny.toml"]);
    succeeds(dir, &["cache", "push", "far"]);
    for foreign in [".DS_Store", "pipe", "zero"] {
        assert!(beside.join(foreign).symlink_metadata().is_ok(), "{foreign}");
    }
    assert!(!beside.join(".tmp-killed").exists());
    assert_eq!(fs::read(blobs.join(".DS_Store")).unwrap(), b"1");
}

/// The log of a training is for people: whatever stands in its place is neither read nor waited for, nor written through.
#[test]
fn what_stands_in_the_place_of_a_training_log_costs_no_run() {
    let dir = finished_copy();
    let dir = dir.path();
    let log = fs::read_dir(dir.join("cache/logs")).unwrap().next().unwrap().unwrap().path();
    for (name, tamper) in IN_A_FILE_S_PLACE {
        if !log.symlink_metadata().is_ok_and(|meta| meta.is_file()) {
            let _ = fs::remove_file(&log).or_else(|_| fs::remove_dir_all(&log));
            fs::write(&log, "{}\n").unwrap();
        }
        tamper(&log);
        let said = succeeds(dir, &["run", "tiny.toml"]);
        assert!(said.contains("0 units executed"), "{name}: {said}");
    }
    // All trainings run again, and each would write its log.
    let logs = walk(&dir.join("cache/logs"));
    logs.iter().for_each(|log| pipe(log));
    fs::remove_dir_all(dir.join("cache/manifests")).unwrap();
    fs::remove_dir_all(dir.join("cache/index")).unwrap();
    let said = succeeds(dir, &["run", "tiny.toml"]);
    assert!(said.contains("\n0 units in the cache, 44 to run\n") && !said.contains("error"), "{said}");
    assert!(logs.iter().all(|log| !log.is_file()), "the pipes are left alone");
}

/// A lock is not written through, and what stands in its place costs nothing.
#[test]
fn a_lock_that_is_a_link_leaves_its_target_alone() {
    let dir = finished_copy();
    let dir = dir.path();
    let lock = dir.join("cache/lock");
    let paper = dir.join("paper.tex");
    fs::write(&paper, "a year of work").unwrap();
    let to_paper = |path: &Path| {
        remove(path);
        symlink("../paper.tex", path).unwrap();
    };
    let mut cases: Vec<(&str, &dyn Fn(&Path))> = vec![("a link", &to_paper)];
    cases.extend(IN_A_FILE_S_PLACE[1..6].iter().map(|(name, tamper)| (*name, tamper as &dyn Fn(&Path))));
    for (name, tamper) in cases {
        tamper(&lock);
        let table = succeeds(dir, &["results", "tiny.toml"]);
        assert!(table.contains("baseline"), "{name}: {table}");
        let said = succeeds(dir, &["run", "tiny.toml"]);
        assert!(said.contains("0 units executed"), "{name}: {said}");
        assert_eq!(fs::read(&paper).unwrap(), b"a year of work", "{name}");
        assert!(lock.symlink_metadata().unwrap().is_file(), "{name}");
    }
}

/// A damaged record costs itself, and it is said.
#[test]
fn a_flipped_bit_in_a_log_costs_one_record() {
    let dir = finished_copy();
    let dir = dir.path();
    let logs = walk(&dir.join("cache/manifests"));
    let log = logs.iter().max_by_key(|log| fs::metadata(log).unwrap().len()).unwrap();
    flip_a_bit(log);
    fs::remove_dir_all(dir.join("cache/index")).unwrap();
    let said = text(&call(dir, &["plan", "tiny.toml"]));
    let name = log.file_name().unwrap().to_string_lossy();
    assert!(said.contains(&format!("note: `manifests/{name}` is damaged: ")), "{said}");
    let said = succeeds(dir, &["run", "tiny.toml"]);
    assert!(said.contains("1 units executed"), "{said}");
}

/// Slurm, containers and users set how many threads there are; the bytes of every unit are the same.
#[test]
fn no_setting_of_threads_changes_a_byte() {
    let dir = finished_copy();
    let mut run = program(dir.path());
    run.args(["run", "tiny.toml", "--audit", "100%", "--jobs", "1"]);
    for (name, value) in [
        ("OMP_NUM_THREADS", "1"),
        ("MKL_NUM_THREADS", "1"),
        ("OMP_DYNAMIC", "TRUE"),
        ("MKL_DYNAMIC", "TRUE"),
        ("OMP_THREAD_LIMIT", "2"),
        ("RAYON_NUM_THREADS", "3"),
    ] {
        run.env(name, value);
    }
    let output = run.output().unwrap();
    let said = text(&output);
    assert!(output.status.success() && said.contains(" units gave the same bytes again, of "), "{said}");
}
