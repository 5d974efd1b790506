//! Progress: a line that moves on a terminal, plain lines now and then elsewhere.
#![expect(clippy::print_stderr, reason = "this is where progress is printed")]

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::pipeline::run::Event;

/// Between two plain lines of one stage.
const EVERY: Duration = Duration::from_secs(10);

/// Shows the events of a run on stderr.
pub(super) struct Progress {
    state: Mutex<State>,
    quiet: bool,
}

struct State {
    bar: Option<ProgressBar>,
    stage: String,
    done: usize,
    of: usize,
    started: Instant,
    shown: Instant,
}

impl Progress {
    pub(super) fn new(quiet: bool) -> Self {
        let now = Instant::now();
        let state = State { bar: None, stage: String::new(), done: 0, of: 0, started: now, shown: now };
        Self { state: Mutex::new(state), quiet }
    }

    pub(super) fn event(&self, event: Event<'_>) {
        if let Event::UnitFailed { label, error } = event {
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
            Event::UnitFinished { stage, label, seconds } => self.finish(stage, label, seconds),
            Event::Repaired { label, error } => {
                self.line(&format!("a stored result was lost, made again: {label}: {error:#}"))
            }
            Event::UnitFailed { .. } => {}
        }
    }

    /// Told from inside a long unit.
    pub(super) fn step(&self, done: u64, of: u64, what: &str) {
        if self.quiet {
            return;
        }
        let mut state = self.state();
        if let Some(bar) = &state.bar {
            bar.set_message(format!("step {done}/{of} {what}"));
            bar.tick();
        } else if state.shown.elapsed() > EVERY {
            state.shown = Instant::now();
            eprintln!("{}: step {done}/{of}, {what}", state.stage);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
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
        let bar = (!bar.is_hidden()).then_some(bar);
        *state = State { bar, stage: stage.to_owned(), done: 0, of: units, started: now, shown: now };
    }

    fn finish(&self, stage: &str, label: &str, seconds: f64) {
        let mut state = self.state();
        state.done += 1;
        let (done, of) = (state.done, state.of);
        if let Some(bar) = &state.bar {
            bar.set_message(format!("{label} {seconds:.1} s"));
            bar.inc(1);
            if done == of {
                bar.finish();
            }
        } else if done == of || state.shown.elapsed() > EVERY {
            state.shown = Instant::now();
            let elapsed = state.started.elapsed().as_secs_f64();
            let rate = done as f64 / elapsed.max(1e-9);
            let left = (of - done) as f64 / rate;
            let item = if of == 1 { label } else { stage };
            eprintln!(
                "{item}: {done}/{of}, {rate:.2} a second, {}",
                match done == of {
                    true => format!("took {}", span(elapsed)),
                    false => format!("{} left", span(left)),
                }
            );
        }
    }

    fn line(&self, text: &str) {
        match &self.state().bar {
            Some(bar) => bar.suspend(|| eprintln!("{text}")),
            None => eprintln!("{text}"),
        }
    }
}

/// Seconds for people.
pub(super) fn span(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match whole {
        0..60 => format!("{seconds:.1} s"),
        60..3600 => format!("{} min {} s", whole / 60, whole % 60),
        _ => format!("{} h {} min", whole / 3600, whole % 3600 / 60),
    }
}
