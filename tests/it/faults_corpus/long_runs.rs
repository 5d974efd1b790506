//! Runs that take long: signals that were ignored when they began, what others see of them, and runs that die.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::program::{call, finished_copy, succeeds, text};

/// A run of some seconds, in a shell that ignores some signals, as `nohup` and shells without a terminal do.
fn start(folder: &Path, ignored: &str) -> Child {
    let sets = ["classifier.batch_size=1", "classifier.epochs=1", "cpm.start_epoch=0", "segmentation.enabled=false"];
    let sets: String = sets.iter().map(|set| format!(" --set {set}")).collect();
    let trap = if ignored.is_empty() { String::new() } else { format!("trap '' {ignored}; ") };
    let script = format!("{trap}exec {} run tiny.toml{sets}", env!("CARGO_BIN_EXE_s2c-pipe"));
    let mut command = Command::new("bash");
    command.args(["-c", &script]).current_dir(folder).env_remove("S2C_CACHE");
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn status(folder: &Path) -> Value {
    let output = call(folder, &["--json", "status"]);
    assert!(output.status.success(), "{}", text(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Once units run.
fn status_of_running(folder: &Path, pid: u32) -> Value {
    let started = Instant::now();
    loop {
        let found = status(folder);
        if found["run"]["pid"] == pid && found["run"]["running"].as_array().is_some_and(|units| !units.is_empty()) {
            return found;
        }
        assert!(started.elapsed() < Duration::from_secs(300), "{found}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn send(signal: &str, to: &Child) {
    assert!(Command::new("kill").args([signal, &to.id().to_string()]).status().unwrap().success());
}

#[test]
fn an_ignored_signal_stays_ignored_and_the_status_tells_how_a_run_goes() {
    let dir = finished_copy();
    let dir = dir.path();
    let said = succeeds(dir, &["status"]);
    assert!(said.starts_with("nothing runs; run 1 of ") && said.contains("tiny.toml finished 2"), "{said}");
    let done = said.split(": ").last().and_then(|last| last.strip_suffix(" units done\n")?.split_once(" of "));
    assert!(done.is_some_and(|(done, of)| done == of), "{said}");
    assert_eq!(status(dir)["state"], "ended");

    // Killed: it says nothing more itself.
    let mut run = start(dir, "");
    let found = status_of_running(dir, run.id());
    assert_eq!(found["state"], "running", "{found}");
    let said = succeeds(dir, &["status", "tiny.toml"]);
    assert!(
        said.starts_with("run 2 of tiny.toml --set classifier.batch_size=1") && said.contains(" goes on: 0 of "),
        "{said}"
    );
    assert!(
        said.contains(&format!("process {} on ", run.id())) && said.contains("\n  now: cam_epoch epoch 0"),
        "{said}"
    );
    assert!(said.contains(" left"), "{said}");
    let other = succeeds(dir, &["status", "other.toml"]);
    assert!(other.starts_with("nothing runs of that file; on `cache` runs run 2 of tiny.toml"), "{other}");
    send("-KILL", &run);
    run.wait().unwrap();
    let said = succeeds(dir, &["status"]);
    assert!(
        said.starts_with("nothing runs; run 2 of tiny.toml") && said.contains(" died without a word: 0 of "),
        "{said}"
    );
    assert!(
        said.contains("\n  it goes on from there with: s2c-pipe run tiny.toml --set classifier.batch_size=1"),
        "{said}"
    );
    assert_eq!(status(dir)["state"], "died");

    // A hang-up of the terminal ends it after the unit.
    let run = start(dir, "");
    status_of_running(dir, run.id());
    send("-HUP", &run);
    let output = run.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", text(&output));
    assert!(succeeds(dir, &["status"]).contains(" was interrupted 2"));

    // As under `nohup`, and in the background of a script.
    let run = start(dir, "HUP INT");
    status_of_running(dir, run.id());
    ["-HUP", "-INT", "-HUP"].iter().for_each(|signal| send(signal, &run));
    let output = run.wait_with_output().unwrap();
    let said = text(&output);
    assert!(output.status.success() && said.contains("emoji, mIoU in %"), "{said}");
    // The whole run's time stands beside that of a part.
    let epoch = said.lines().find(|line| line.contains("cam_epoch epoch 0: ")).unwrap_or_default();
    assert!(epoch.contains("; all: 1/") && epoch.contains(" left"), "{said}");
    assert!(succeeds(dir, &["status"]).contains(" finished 2"));
    // SIGTERM is not ignored there.
    let mut run = start(dir, "HUP");
    send("-TERM", &run);
    run.wait().unwrap();
}

/// What cannot be written of it, and what is no status, change nothing of a run.
#[test]
fn a_status_that_cannot_be_written_or_read_costs_nothing() {
    let dir = finished_copy();
    let dir = dir.path();
    let file = dir.join("cache/status.json");
    for make in [&|| std::fs::write(&file, b"{\"run\": 7").unwrap(), &|| std::fs::create_dir(&file).unwrap(), &|| {
        rustix::fs::mknodat(rustix::fs::CWD, &file, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap()
    }] as [&dyn Fn(); 3]
    {
        let _ = std::fs::remove_file(&file);
        make();
        let said = succeeds(dir, &["status"]);
        assert_eq!(said, "nothing runs on `cache`, and no run of any file is known\n");
        succeeds(dir, &["run", "tiny.toml"]);
        let _ = std::fs::remove_dir(&file);
    }
    let empty = tempfile::tempdir().unwrap();
    assert_eq!(succeeds(empty.path(), &["status"]), "nothing runs on `cache`, and no run of any file is known\n");
    assert!(!empty.path().join("cache").exists());
}
