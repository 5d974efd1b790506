//! What a plan costs, in one line.

use serde::Serialize;

use super::plan::Plan;
use super::words::{size, span};

/// Sums of a plan.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Cost {
    /// Units in the cache.
    pub cached: usize,
    pub to_run: usize,
    /// Of all units, rounded down: 100 says that nothing runs.
    pub cached_percent: usize,
    /// Of the stages of which something is recorded; `None` where that is none of them.
    pub seconds: Option<f64>,
    pub bytes: Option<u64>,
    /// Stages that run and of which nothing is recorded.
    pub unknown: Vec<&'static str>,
}

impl Plan {
    /// Takes the times as those of units that run at once, so many of a stage.
    pub fn beside(&mut self, n_beside: impl Fn(&str) -> usize) {
        for (kind, stage) in &mut self.stages {
            let n = n_beside(kind).min(stage.to_run).max(1);
            stage.seconds = stage.seconds.map(|seconds| seconds / n as f64);
        }
    }
}

impl Cost {
    pub fn of(plan: &Plan) -> Self {
        let running = || plan.stages.iter().filter(|(_, stage)| stage.to_run > 0);
        let cached: usize = plan.stages.values().map(|stage| stage.fresh).sum();
        let to_run = plan.n_to_run();
        let seconds: Vec<f64> = running().filter_map(|(_, stage)| stage.seconds).collect();
        let bytes: Vec<u64> = running().filter_map(|(_, stage)| stage.bytes).collect();
        let is_known = |n: usize| n > 0 || to_run == 0;
        Self {
            cached,
            to_run,
            cached_percent: cached * 100 / (cached + to_run).max(1),
            seconds: is_known(seconds.len()).then(|| seconds.iter().sum()),
            bytes: is_known(bytes.len()).then(|| bytes.iter().sum()),
            unknown: running().filter(|(_, stage)| stage.seconds.is_none()).map(|(kind, _)| *kind).collect(),
        }
    }

    /// For people.
    pub fn text(&self) -> String {
        if self.to_run == 0 {
            return "everything is in the cache".to_owned();
        }
        let cached = format!("{} % cached", self.cached_percent);
        let unknown = self.unknown.join(", ");
        match (self.seconds.zip(self.bytes), self.unknown.is_empty()) {
            (Some((seconds, bytes)), true) => format!("{cached}; about {}, {}", span(seconds), size(bytes)),
            (Some((seconds, bytes)), false) => {
                format!("{cached}; more than {}, {}: unknown for {unknown}", span(seconds), size(bytes))
            }
            (None, _) => format!("{cached}; time and size unknown for {unknown}"),
        }
    }
}
