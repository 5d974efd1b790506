//! Progress: a line that moves on a terminal, plain lines now and then elsewhere.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::live::Live;
use crate::cache::locked;
use crate::digest::UnitKey;
use crate::pipeline::run::Event;
use crate::pipeline::words::span;
use crate::stage::Step;

/// Between two plain lines of one stage.
const EVERY: Duration = Duration::from_secs(10);

/// Shows the events of a run on stderr.
pub(super) struct Progress {
    state: Mutex<State>,
    quiet: bool,
    logs: PathBuf,
    /// Knows of the whole run.
    live: Option<Arc<Live>>,
}

struct State {
    bar: Option<ProgressBar>,
    stage: String,
    done: usize,
    of: usize,
    started: Instant,
    shown: Instant,
    /// Those whose steps are told, while they run.
    units: HashMap<UnitKey, Unit>,
}

/// The steps of a unit that were done here.
struct Unit {
    log: Option<File>,
    steps: u64,
    images: usize,
    seconds: f64,
    waited: f64,
    what: String,
}

impl Unit {
    fn take(&mut self, step: &Step<'_>) {
        let Step { key: _, label: _, done, of: _, what, images, seconds, waited } = *step;
        self.steps += 1;
        self.images += images;
        self.seconds += seconds;
        self.waited += waited;
        what.clone_into(&mut self.what);
        if let Some(log) = &mut self.log {
            let line = serde_json::json!({ "step": done - 1, "images": images, "seconds": seconds, "waited": waited });
            // A log that cannot be written is no reason to stop.
            let _ = writeln!(log, "{line}");
        }
    }

    fn speed(&self) -> String {
        let seconds = self.seconds.max(1e-9);
        format!("{:.1} images/s, waited {:.1} %", self.images as f64 / seconds, self.waited / seconds * 100.0)
    }
}

impl Progress {
    pub(super) fn new(quiet: bool, logs: PathBuf, live: Option<Arc<Live>>) -> Self {
        let now = Instant::now();
        let (stage, units) = (String::new(), HashMap::new());
        let state = State { bar: None, stage, done: 0, of: 0, started: now, shown: now, units };
        Self { state: Mutex::new(state), quiet, logs, live }
    }

    /// What is left of the whole run, behind what is left of a part.
    fn of_all(&self) -> String {
        let text = self.live.as_ref().and_then(|live| live.text());
        text.map_or_else(String::new, |text| format!("; {text}"))
    }

    pub(super) fn event(&self, event: Event<'_>) {
        if let Some(live) = &self.live {
            live.event(event);
        }
        let ended = match event {
            Event::UnitFinished { key, .. } | Event::UnitFailed { key, .. } | Event::Retried { key, .. } => {
                self.state().units.remove(key)
            }
            _ => None,
        };
        if let Event::UnitFailed { label, error, .. } = event {
            let chain: Vec<String> = error.chain().map(ToString::to_string).collect();
            self.line(&format!("failed: {label}: {}", chain.join(": ")));
            if let Some(hint) = super::hint_of(error) {
                self.line(&format!("hint: {hint}"));
            }
        }
        if self.quiet {
            return;
        }
        match event {
            Event::Planned { reused, to_run } => self.line(&format!("{reused} units in the cache, {to_run} to run")),
            Event::GroupStarted { stage, units } => self.start(stage, units),
            Event::UnitFinished { stage, label, seconds, .. } => self.finish(stage, label, seconds, ended),
            Event::Repaired { label, error, .. } => {
                self.line(&format!("a stored result was lost, made again: {label}: {error:#}"))
            }
            Event::Retried { label, error, .. } => self.line(&format!("failed, tried again: {label}: {error:#}")),
            Event::UnitFailed { .. } | Event::UnitStarted { .. } => {}
        }
    }

    /// Told from inside a long unit.
    pub(super) fn step(&self, step: &Step<'_>) {
        if let Some(live) = &self.live {
            live.step(step);
        }
        let mut state = self.state();
        let unit = state.units.entry(step.key).or_insert_with(|| Unit {
            log: self.log(step),
            steps: 0,
            images: 0,
            seconds: 0.0,
            waited: 0.0,
            what: String::new(),
        });
        unit.take(step);
        let left = (step.of - step.done) as f64 * unit.seconds / unit.steps as f64;
        let text = format!("step {}/{}, {}, {}", step.done, step.of, unit.speed(), step.what);
        // Of several at once each says whose it is.
        let text = if state.units.len() > 1 { format!("{}: {text}", step.label) } else { text };
        if self.quiet {
            return;
        }
        if let Some(bar) = &state.bar {
            bar.set_message(format!("{text}, {} left{}", span(left), self.of_all()));
            bar.tick();
        } else if state.shown.elapsed() > EVERY && step.done < step.of {
            state.shown = Instant::now();
            eprintln!("{}: {text}, {} left{}", state.stage, span(left), self.of_all());
        }
    }

    /// The log of the unit a step is of: a new one at its first step.
    fn log(&self, step: &Step<'_>) -> Option<File> {
        fs::create_dir_all(&self.logs).ok()?;
        let mut options = File::options();
        match step.done {
            1 => options.write(true).truncate(true),
            _ => options.append(true),
        };
        // A named pipe in its place is not waited for, and a link is not written through.
        options
            .create(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOFOLLOW)
            .open(self.logs.join(format!("{}.jsonl", step.key)))
            .ok()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        locked(&self.state)
    }

    fn start(&self, stage: &str, units: usize) {
        let now = Instant::now();
        let bar = ProgressBar::new(units as u64); // hidden unless stderr is a terminal
        let style = ProgressStyle::with_template("{prefix:<13} {wide_bar} {pos}/{len}  {per_sec}  {eta}  {msg}");
        if let Ok(style) = style {
            bar.set_style(style);
        }
        bar.set_prefix(stage.to_owned());
        let mut state = self.state();
        let (bar, running) = ((!bar.is_hidden()).then_some(bar), std::mem::take(&mut state.units));
        *state = State { bar, stage: stage.to_owned(), done: 0, of: units, started: now, shown: now, units: running };
    }

    fn finish(&self, stage: &str, label: &str, seconds: f64, ended: Option<Unit>) {
        let mut state = self.state();
        // The last units of a stage may finish when the next has begun.
        state.done += usize::from(state.stage == stage);
        let (done, of) = (state.done, state.of);
        let epoch = ended
            .map(|unit| format!("{label}: {} steps in {}, {}, {}", unit.steps, span(seconds), unit.speed(), unit.what));
        if let Some(bar) = &state.bar {
            bar.set_message(format!("{label} {seconds:.1} s{}", self.of_all()));
            bar.inc(1);
            if let Some(epoch) = epoch {
                bar.suspend(|| eprintln!("{epoch}"));
            }
            if done == of {
                bar.finish();
            }
        } else if let Some(epoch) = epoch {
            state.shown = Instant::now();
            eprintln!("{epoch}{}", self.of_all());
        } else if done == of || done > 0 && state.shown.elapsed() > EVERY {
            state.shown = Instant::now();
            let elapsed = state.started.elapsed().as_secs_f64();
            let rate = done as f64 / elapsed.max(1e-9);
            let left = of.saturating_sub(done) as f64 / rate;
            let item = if of == 1 { label } else { stage };
            eprintln!(
                "{item}: {done}/{of}, {rate:.2} a second, {}{}",
                match done == of {
                    true => format!("took {}", span(elapsed)),
                    false => format!("{} left", span(left)),
                },
                self.of_all()
            );
        }
    }

    /// A line above the bar.
    pub(super) fn line(&self, text: &str) {
        match &self.state().bar {
            Some(bar) => bar.suspend(|| eprintln!("{text}")),
            None => eprintln!("{text}"),
        }
    }
}
