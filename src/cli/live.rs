//! A run as others see it while it goes on: how much of it is done, what runs now and how long it still takes.

use std::path::PathBuf;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::experiment::now;
use crate::cache::history::How;
use crate::cache::locked;
use crate::cache::status::{RunningUnit, Status};
use crate::digest::UnitKey;
use crate::pipeline::forecast::Forecast;
use crate::pipeline::run::Event;
use crate::pipeline::words::span;
use crate::stage::Step;

/// Between two looks at whether the status has changed.
const LOOK: Duration = Duration::from_secs(1);
/// After so long it is written in any case: see [`Status::updated`].
const AT_LEAST: Duration = Duration::from_secs(10);

/// Keeps the status of a run.
pub(super) struct Live {
    /// The folder.
    cache: PathBuf,
    state: Arc<Mutex<State>>,
    /// Ends the writer when it is dropped.
    writer: Option<(Sender<()>, JoinHandle<()>)>,
}

struct State {
    status: Status,
    forecast: Forecast,
    /// Units that were given to workers, in that order: of those that use all cores, of the others.
    given: [Vec<Given>; 2],
    /// So many of each run at once; the others wait.
    n_at_once: [usize; 2],
    is_parallel: Box<dyn Fn(&str) -> bool + Send>,
    has_changed: bool,
}

struct Given {
    key: UnitKey,
    stage: String,
    label: String,
    /// Seconds since 1970, once it runs.
    since: Option<u64>,
    steps: Option<(u64, u64)>,
}

impl State {
    /// The first of each kind run.
    fn let_run(&mut self) {
        for (given, n) in self.given.iter_mut().zip(self.n_at_once) {
            given.iter_mut().take(n).filter(|unit| unit.since.is_none()).for_each(|unit| unit.since = Some(now()));
        }
        self.has_changed = true;
    }

    fn remove(&mut self, key: &UnitKey) {
        self.given.iter_mut().for_each(|given| given.retain(|unit| unit.key != *key));
        self.let_run();
    }

    fn running(&self) -> impl Iterator<Item = &Given> {
        self.given.iter().flatten().filter(|unit| unit.since.is_some())
    }

    fn left(&self) -> (Option<f64>, Vec<&str>) {
        let share = |unit: &Given| unit.steps.map_or(0.0, |(done, of)| done as f64 / of.max(1) as f64);
        let running: Vec<(&str, f64)> = self.running().map(|unit| (unit.stage.as_str(), share(unit))).collect();
        self.forecast.left(&running)
    }

    /// As it is now.
    fn status(&self) -> Status {
        let (seconds_left, unknown) = self.left();
        let running = self.running().map(|unit| {
            let Given { label, since, steps, .. } = unit;
            RunningUnit { label: label.clone(), since: since.unwrap_or_default(), steps: *steps }
        });
        let unknown = unknown.into_iter().map(str::to_owned).collect();
        let updated = if self.status.ended.is_some() { self.status.updated } else { now() };
        Status { updated, running: running.collect(), seconds_left, unknown, ..self.status.clone() }
    }
}

impl Live {
    /// `n_at_once`: units that run at once, of stages that use all cores and of those that `is_parallel` tells.
    pub(super) fn begin(
        cache: PathBuf,
        status: Status,
        n_at_once: [usize; 2],
        is_parallel: Box<dyn Fn(&str) -> bool + Send>,
    ) -> Self {
        let (forecast, given) = (Forecast::default(), [Vec::new(), Vec::new()]);
        let state = State { status, forecast, given, n_at_once, is_parallel, has_changed: true };
        let state = Arc::new(Mutex::new(state));
        let (shared, folder) = (state.clone(), cache.clone());
        let (sender, receiver) = channel::<()>();
        let writer = std::thread::spawn(move || {
            let mut written = Instant::now();
            loop {
                {
                    // Held until it is written, so that what is written last is the newest.
                    let mut state = locked(&shared);
                    let is_due = std::mem::take(&mut state.has_changed) || written.elapsed() > AT_LEAST;
                    if is_due && state.status.ended.is_none() {
                        // Who asks sees an older one where it cannot be written.
                        let _ = state.status().write(&folder);
                        written = Instant::now();
                    }
                }
                if receiver.recv_timeout(LOOK) != Err(RecvTimeoutError::Timeout) {
                    return;
                }
            }
        });
        Self { cache, state, writer: Some((sender, writer)) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        locked(&self.state)
    }

    /// What units will take, once it is known that some run.
    pub(super) fn expect(&self, forecast: Forecast) {
        self.state().forecast = forecast;
    }

    pub(super) fn event(&self, event: Event<'_>) {
        let mut state = self.state();
        match event {
            Event::Planned { reused: _, to_run } => state.status.of = to_run,
            Event::GroupStarted { stage, units } => state.forecast.begun(stage, units),
            Event::UnitStarted { stage, key, label } => {
                let kind = usize::from((state.is_parallel)(stage));
                let (stage, label) = (stage.to_owned(), label.to_owned());
                state.given[kind].push(Given { key: *key, stage, label, since: None, steps: None });
                state.let_run();
            }
            Event::UnitFinished { stage, key, seconds, label: _ } => {
                state.forecast.finished(stage, seconds);
                state.status.done += 1;
                state.remove(key);
            }
            Event::UnitFailed { key, .. } => {
                state.status.failed += 1;
                state.remove(key);
            }
            Event::Retried { key, .. } | Event::Repaired { key, .. } => state.remove(key),
        }
        state.has_changed = true;
    }

    /// Told from inside a long unit.
    pub(super) fn step(&self, step: &Step<'_>) {
        let mut state = self.state();
        let units = state.given.iter_mut().flatten();
        units.filter(|unit| unit.key == step.key).for_each(|unit| unit.steps = Some((step.done, step.of)));
        state.has_changed = true;
    }

    /// `all: 12/57, about 3 min 2 s left`; nothing before it is known what runs.
    pub(super) fn text(&self) -> Option<String> {
        let state = self.state();
        let Status { done, of, .. } = state.status;
        (of > 0).then(|| {
            let (seconds, unknown) = state.left();
            match done < of {
                true => format!("all: {done}/{of}, {}", left_text(seconds, !unknown.is_empty())),
                false => format!("all: {done}/{of}"),
            }
        })
    }

    /// It has ended; without this it failed.
    pub(super) fn end(&self, how: How) {
        let mut state = self.state();
        if state.status.ended.is_none() {
            (state.status.ended, state.status.updated) = (Some(how), now());
            if how == How::Finished {
                // The others turned out to be in the cache.
                state.status.of = state.status.done;
            }
            state.given = [Vec::new(), Vec::new()];
            let _ = state.status().write(&self.cache);
        }
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.end(How::Failed);
        if let Some((sender, writer)) = self.writer.take() {
            drop(sender);
            let _ = writer.join();
        }
    }
}

/// `about 3 min 2 s left`; `more than` where something is not known.
pub(super) fn left_text(seconds: Option<f64>, is_more: bool) -> String {
    match seconds {
        Some(seconds) if is_more => format!("more than {} left", span(seconds)),
        Some(seconds) => format!("about {} left", span(seconds)),
        None => "time left not known yet".to_owned(),
    }
}
