//! Commands on a cache that are killed at random moments: what was there is there, what is the user's is as it was, and the
//! same command then ends as if nothing had been. `faults::killed_at_random_moments` is of `run`.
//!
//! `S2C_FAULTS / 4` is the number of kills of each command, 5 if it is not set; `make test-faults` has 50.

#![allow(clippy::print_stdout, reason = "counts of the kills")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use s2c_pipe::cache::{Cache, StoreError};
use s2c_pipe::digest::BlobDigest;
use tempfile::TempDir;

use crate::program::{copy, finished_copy, program, succeeds, to_run};

/// A folder where the pipeline has run and whose checkpoints are gone, so that it is light.
fn light() -> &'static TempDir {
    static LIGHT: OnceLock<TempDir> = OnceLock::new();
    LIGHT.get_or_init(|| {
        let dir = finished_copy();
        succeeds(dir.path(), &["cache", "gc", "--max-size", "20MB"]);
        dir
    })
}

fn light_copy() -> TempDir {
    let dir = tempfile::tempdir_in(light().path().parent().unwrap()).unwrap();
    copy(light().path(), dir.path());
    dir
}

/// What stands under a folder: paths and digests.
fn contents(folder: &Path) -> BTreeMap<PathBuf, BlobDigest> {
    let mut found = BTreeMap::new();
    let mut to_do = vec![folder.to_owned()];
    while let Some(folder) = to_do.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            match entry.path() {
                path if path.is_dir() => to_do.push(path),
                path => drop(found.insert(path.clone(), BlobDigest::of(&fs::read(path).unwrap()))),
            }
        }
    }
    found
}

/// Runs a command until it ends, or kills it after some time; whether it was killed.
fn killed_after(folder: &Path, args: &[&str], time: Duration) -> bool {
    let started = Instant::now();
    let mut child = program(folder).args(args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    while started.elapsed() < time {
        if let Some(status) = child.try_wait().unwrap() {
            assert!(status.success(), "{args:?}: {status}");
            return false;
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    true
}

/// Kills a command again and again, each time in a folder that `make` gives, and looks at what it left.
fn kill(name: &str, args: &[&str], make: &dyn Fn() -> TempDir, is_well: &dyn Fn(&Path)) {
    let n_kills = std::env::var("S2C_FAULTS").map_or(5, |n| n.parse::<u64>().unwrap() / 4);
    // What it takes, from a run without a kill.
    let dir = make();
    let started = Instant::now();
    succeeds(dir.path(), args);
    let takes = started.elapsed();
    is_well(dir.path());

    let (mut n_killed, mut n_tries) = (0, 0);
    while n_killed < n_kills {
        // Moments that are spread evenly, in an order without a pattern (multiples of the golden ratio).
        let moment = (n_tries as f64 * 0.618_033_988_75).fract();
        n_tries += 1;
        assert!(n_tries < 20 * n_kills, "{name} ends before it can be killed");
        let dir = make();
        fs::create_dir_all(dir.path().join("to")).unwrap();
        fs::write(dir.path().join("mine.txt"), "of the user").unwrap();
        let before = contents(&dir.path().join("cache/blobs"));
        n_killed += u64::from(killed_after(dir.path(), args, takes.mul_f64(moment)));
        assert_eq!(fs::read(dir.path().join("mine.txt")).unwrap(), b"of the user");
        succeeds(dir.path(), &["cache", "verify"]);
        if name != "gc" {
            let after = contents(&dir.path().join("cache/blobs"));
            assert!(before.keys().all(|path| after.contains_key(path)), "{name}");
        }
        succeeds(dir.path(), args);
        is_well(dir.path());
    }
    println!("{name}: {n_killed} kills in {n_tries} tries; it takes {:.2} s", takes.as_secs_f64());
}

/// All that the pipeline gives is there and whole.
fn is_whole(folder: &Path) {
    succeeds(folder, &["cache", "verify"]);
    assert!(to_run(folder, &[]).is_empty());
}

#[test]
fn gc_that_is_killed_keeps_what_is_named() {
    let make = || {
        let dir = light_copy();
        let cache = Cache::open(&dir.path().join("cache"), "test", &|_| true).unwrap();
        for n in 0..300u32 {
            cache.store().write(&n.to_le_bytes().repeat(5000), false).unwrap();
        }
        dir
    };
    kill("gc", &["cache", "gc", "tiny.toml"], &make, &|folder| {
        is_whole(folder);
        let of_garbage = BlobDigest::of(&7u32.to_le_bytes().repeat(5000));
        let cache = Cache::open_to_read(&folder.join("cache"), "test").unwrap();
        assert!(matches!(cache.store().read(&of_garbage), Err(StoreError::Missing(_))));
    });
}

#[test]
fn a_push_that_is_killed_is_ended_by_the_next() {
    kill("push", &["cache", "push", "share"], &light_copy, &|folder| {
        is_whole(folder);
        succeeds(folder, &["--cache", "share", "cache", "verify"]);
        // Another cache has all of it from there.
        let other = tempfile::tempdir().unwrap();
        fs::copy(folder.join("tiny.toml"), other.path().join("tiny.toml")).unwrap();
        succeeds(other.path(), &["cache", "pull", &folder.join("share").to_string_lossy()]);
        is_whole(other.path());
    });
}

#[test]
fn a_pull_that_is_killed_is_ended_by_the_next() {
    let share = light_copy();
    succeeds(share.path(), &["cache", "push", "share"]);
    let from = share.path().join("share").to_string_lossy().into_owned();
    let make = || {
        let dir = tempfile::tempdir().unwrap();
        fs::copy(share.path().join("tiny.toml"), dir.path().join("tiny.toml")).unwrap();
        dir
    };
    let before = contents(&share.path().join("share"));
    kill("pull", &["cache", "pull", &from], &make, &is_whole);
    assert_eq!(contents(&share.path().join("share")), before, "a share that is read stays as it was");
}

#[test]
fn an_export_that_is_killed_leaves_whole_files_and_is_ended_by_the_next() {
    let args = ["export", "tiny.toml", "--what", "cams", "--variant", "S2C", "--to", "to/cams"];
    let undisturbed = light_copy();
    succeeds(undisturbed.path(), &args);
    let names = |folder: &Path| -> BTreeMap<PathBuf, BlobDigest> {
        let all = contents(&folder.join("to/cams")).into_iter();
        let own = all.map(|(path, digest)| (path.strip_prefix(folder).unwrap().to_owned(), digest));
        own.filter(|(path, _)| !path.file_name().unwrap().to_string_lossy().starts_with('.')).collect()
    };
    let expected = names(undisturbed.path());
    assert!(expected.len() >= 4, "{expected:?}");
    kill("export", &args, &light_copy, &|folder| {
        assert_eq!(names(folder), expected);
        is_whole(folder);
    });
}
