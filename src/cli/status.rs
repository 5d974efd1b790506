//! What runs on a cache now, told from another terminal.
#![expect(clippy::print_stdout, reason = "this is where printing happens")]

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::json;

use super::args::Cli;
use crate::cache::history::How;
use crate::cache::holder;
use crate::cache::status::{RunningUnit, Status};
use crate::pipeline::names::{printable, shell_quoted, shortened};
use crate::pipeline::words::{date, span};

/// A run on another machine whose status is older than so many seconds is gone: it is written every ten.
const SILENT: u64 = 60;
/// Units named in a line, and bytes of a name.
const N_NAMED: usize = 4;
const MOST_NAME: usize = 80;

/// The name of this machine.
pub(super) fn host() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    if name.trim().is_empty() { "this machine".to_owned() } else { name.trim().to_owned() }
}

/// What is the case with the last run.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
enum State {
    Running,
    Ended,
    /// It said nothing any more: killed, or its machine went down.
    Died,
}

impl State {
    fn of(status: &Status, holder: Option<&str>, here: &str, now: u64) -> Self {
        let is_silent = now.saturating_sub(status.updated) > SILENT;
        match status.ended {
            Some(_) => Self::Ended,
            None if holder == Some(status.who.as_str()) => Self::Running,
            // Not every network's file system shows the locks of another machine.
            None if status.host != here && !is_silent => Self::Running,
            None => Self::Died,
        }
    }
}

/// Says what runs, of a pipeline file if one is given; waits for nobody and changes nothing.
pub(super) fn status(cli: &Cli, file: Option<&Path>) -> anyhow::Result<()> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let holder = holder(&cli.cache);
    let last = Status::read(&cli.cache).map(|status| {
        let state = State::of(&status, holder.as_deref(), &host(), now);
        (state, status)
    });
    let is_asked = |status: &Status| file.is_none_or(|file| is_same_file(Path::new(&status.file), file));
    if cli.json {
        let of_file = last.as_ref().filter(|(_, status)| is_asked(status));
        let state = of_file.map(|(state, _)| state);
        println!("{}", json!({ "state": state, "run": of_file.map(|(_, status)| status), "holder": holder }));
        return Ok(());
    }
    let cache = cli.cache.display();
    match &last {
        Some((state, status)) if is_asked(status) => print!("{}", text(*state, status, now)),
        Some((State::Running, status)) => {
            println!("nothing runs of that file; on `{cache}` runs {}", name(status));
        }
        _ => println!(
            "nothing runs on `{cache}`, and no run of {} is known",
            file.map_or("any file".to_owned(), |file| format!("`{}`", file.display()))
        ),
    }
    // `plan`, `cache gc` and others.
    let is_of_last = |holder: &String| last.as_ref().is_some_and(|(_, status)| status.who == *holder);
    if let Some(holder) = holder.filter(|holder| !is_of_last(holder) && !holder.is_empty()) {
        println!("the cache is in use by {}", printable(holder.trim(), false));
    }
    Ok(())
}

fn is_same_file(known: &Path, file: &Path) -> bool {
    let real = |path: &Path| path.canonicalize().or_else(|_| std::path::absolute(path)).ok();
    real(known) == real(file)
}

/// `run 3 of p.toml --set a=1`
fn name(status: &Status) -> String {
    let number = status.run.map_or_else(|| "a run".to_owned(), |run| format!("run {run}"));
    printable(&format!("{number} of {}", command(status)), false)
}

/// The file and what was set, as one may write it again.
fn command(status: &Status) -> String {
    let here = std::env::current_dir().unwrap_or_default();
    let file = Path::new(&status.file);
    let file = file.strip_prefix(&here).unwrap_or(file).to_string_lossy();
    let sets = status.sets.iter().map(|set| format!(" --set {}", shell_quoted(set)));
    shell_quoted(&file) + &sets.collect::<String>()
}

fn text(state: State, status: &Status, now: u64) -> String {
    let Status { run: _, file: _, sets: _, who: _, pid, host, began, updated, done, of, failed, .. } = status;
    let failed = if *failed > 0 { format!(", {failed} failed") } else { String::new() };
    let far = match status.ended {
        _ if *of > 0 => format!("{done} of {of} units done{failed}"),
        Some(_) => "nothing had to run".to_owned(),
        None => "no unit has begun".to_owned(),
    };
    let process = printable(&format!("process {pid} on {host}"), false);
    let since = |then: u64| span(now.saturating_sub(then) as f64);
    match state {
        State::Running => {
            let left = status.seconds_left.map(|left| (left - now.saturating_sub(*updated) as f64).max(0.0));
            let left = if *of > 0 { format!(", {}", left_text(left, &status.unknown)) } else { String::new() };
            let (name, date, ago) = (name(status), date(*began), since(*began));
            format!("{name} goes on: {far}{left}\n  since {date} UTC ({ago}), {process}\n{}", running_text(status, now))
        }
        State::Ended => {
            let how = match status.ended {
                Some(How::Finished) | None => "finished",
                Some(How::Failed) => "failed",
                Some(How::Interrupted) => "was interrupted",
            };
            let took = span(updated.saturating_sub(*began) as f64);
            format!("nothing runs; {} {how} {} UTC after {took}: {far}\n", name(status), date(*updated))
        }
        State::Died => format!(
            "nothing runs; {} died without a word: {far}, last seen {} UTC, {process}\n  it goes on from there with: \
             s2c-pipe run {}\n",
            name(status),
            date(*updated),
            printable(&command(status), false)
        ),
    }
}

/// What units run, the first of them.
fn running_text(status: &Status, now: u64) -> String {
    let unit = |RunningUnit { label, since, steps }: &RunningUnit| {
        let steps = steps.map_or_else(String::new, |(done, of)| format!("step {done}/{of}, "));
        let label = printable(&shortened(label, MOST_NAME), false);
        format!("  now: {label} ({steps}{})\n", span(now.saturating_sub(*since) as f64))
    };
    let more = match status.running.len().saturating_sub(N_NAMED) {
        0 => String::new(),
        n => format!("  and {n} more\n"),
    };
    status.running.iter().take(N_NAMED).map(unit).collect::<String>() + &more
}

fn left_text(seconds: Option<f64>, unknown: &[String]) -> String {
    match (seconds, unknown) {
        (Some(seconds), []) => format!("about {} left", span(seconds)),
        (Some(seconds), unknown) => format!("more than {} left (unknown: {})", span(seconds), unknown.join(", ")),
        (None, unknown) => format!("time left unknown until {} has run once", unknown.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status() -> Status {
        Status {
            run: Some(3),
            file: "/p/a b.toml".into(),
            sets: vec!["cpm.tau=0.3".into()],
            who: "process 7 (s2c-pipe run p.toml)".into(),
            pid: 7,
            host: "node".into(),
            began: 1_795_551_900,
            updated: 1_795_552_000,
            done: 12,
            of: 57,
            failed: 0,
            running: vec![RunningUnit {
                label: "cam_epoch epoch 1".into(),
                since: 1_795_551_990,
                steps: Some((3, 10)),
            }],
            seconds_left: Some(70.0),
            unknown: Vec::new(),
            ended: None,
        }
    }

    #[test]
    fn who_holds_the_cache_runs_and_who_is_silent_is_gone() {
        let (mut status, now) = (status(), 1_795_552_010);
        let of = |status: &Status, holder: Option<&str>, here, now| State::of(status, holder, here, now);
        let who = status.who.clone();
        assert_eq!(of(&status, Some(&who), "node", now + 1000), State::Running);
        assert_eq!(of(&status, None, "node", now), State::Died);
        assert_eq!(of(&status, Some("process 8 (s2c-pipe plan p.toml)"), "node", now), State::Died);
        assert_eq!(
            (of(&status, None, "other", now), of(&status, None, "other", now + 100)),
            (State::Running, State::Died)
        );
        status.ended = Some(How::Finished);
        assert_eq!(of(&status, Some(&who), "node", now), State::Ended);
    }

    #[test]
    fn a_run_is_told_in_words() {
        let (mut status, now) = (status(), 1_795_552_010);
        insta::assert_snapshot!(text(State::Running, &status, now), @r"
        run 3 of '/p/a b.toml' --set cpm.tau=0.3 goes on: 12 of 57 units done, about 1 min 0 s left
          since 2026-11-24 20:25 UTC (1 min 50 s), process 7 on node
          now: cam_epoch epoch 1 (step 3/10, 20.0 s)
        ");
        insta::assert_snapshot!(text(State::Died, &status, now), @r"
        nothing runs; run 3 of '/p/a b.toml' --set cpm.tau=0.3 died without a word: 12 of 57 units done, last seen 2026-11-24 20:26 UTC, process 7 on node
          it goes on from there with: s2c-pipe run '/p/a b.toml' --set cpm.tau=0.3
        ");
        (status.ended, status.failed, status.unknown) = (Some(How::Failed), 2, vec!["seg_epoch".into()]);
        insta::assert_snapshot!(text(State::Ended, &status, now), @"nothing runs; run 3 of '/p/a b.toml' --set cpm.tau=0.3 failed 2026-11-24 20:26 UTC after 1 min 40 s: 12 of 57 units done, 2 failed");
        assert_eq!(left_text(Some(5.0), &status.unknown), "more than 5.0 s left (unknown: seg_epoch)");
        assert_eq!(left_text(None, &status.unknown), "time left unknown until seg_epoch has run once");
    }
}
