//! How long a run still takes: what units of each stage took in this cache before, corrected by what they take now.

use std::collections::BTreeMap;

use super::plan::Plan;

/// What is left of a run, by stage.
#[derive(Clone, Debug, Default)]
pub struct Forecast {
    stages: BTreeMap<String, Left>,
}

#[derive(Clone, Debug, Default)]
struct Left {
    units: usize,
    /// That run at once.
    n_beside: usize,
    /// Of a unit, as recorded before.
    recorded: Option<f64>,
    /// Units that finished in this run, and the seconds of all of them.
    done: usize,
    seconds: f64,
}

impl Left {
    /// Seconds of a unit. What was recorded counts as one unit of this run.
    fn of_a_unit(&self) -> Option<f64> {
        let n = self.done + usize::from(self.recorded.is_some());
        (n > 0).then(|| (self.recorded.unwrap_or(0.0) + self.seconds) / n as f64)
    }
}

impl Forecast {
    /// Before a run. `n_beside`: units of a stage that run at once.
    pub fn new(plan: &Plan, n_beside: &dyn Fn(&str) -> usize) -> Self {
        let stages = plan.stages.iter().filter(|(_, stage)| stage.to_run > 0).map(|(kind, stage)| {
            let recorded = stage.seconds.map(|seconds| seconds / stage.to_run as f64);
            let left = Left { units: stage.to_run, n_beside: n_beside(kind), recorded, ..Left::default() };
            ((*kind).to_owned(), left)
        });
        Self { stages: stages.collect() }
    }

    /// So many units of a stage are left, as it turns out: some may be in the cache once what they read is known.
    pub fn begun(&mut self, stage: &str, units: usize) {
        self.stages.entry(stage.to_owned()).or_default().units = units;
    }

    pub fn finished(&mut self, stage: &str, seconds: f64) {
        let left = self.stages.entry(stage.to_owned()).or_default();
        left.units = left.units.saturating_sub(1);
        left.done += 1;
        left.seconds += seconds;
    }

    /// Seconds of what is left in stages of which something is known, none where that is none of them; and the stages of
    /// which nothing is. `running`: the stage of a unit that runs, and the share of it that is done.
    pub fn left(&self, running: &[(&str, f64)]) -> (Option<f64>, Vec<&str>) {
        let left = || self.stages.iter().filter(|(_, left)| left.units > 0);
        let seconds: Vec<f64> = left()
            .filter_map(|(stage, left)| {
                let done: f64 = running.iter().filter(|(of, _)| of == stage).map(|(_, share)| share).sum();
                let units = (left.units as f64 - done).max(0.0);
                Some(left.of_a_unit()? * units / left.n_beside.clamp(1, left.units) as f64)
            })
            .collect();
        let unknown: Vec<&str> =
            left().filter(|(_, left)| left.of_a_unit().is_none()).map(|(stage, _)| stage.as_str()).collect();
        let is_known = !seconds.is_empty() || unknown.is_empty();
        (is_known.then(|| seconds.iter().sum()), unknown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::plan::StagePlan;

    #[test]
    fn what_is_left_follows_what_units_take() {
        let stage = |to_run, seconds| StagePlan { fresh: 1, to_run, seconds, bytes: None };
        let stages = [("embed", stage(4, Some(8.0))), ("epoch", stage(2, None)), ("there", stage(0, None))];
        let plan = Plan { units: Vec::new(), stages: stages.into_iter().collect() };
        let mut forecast = Forecast::new(&plan, &|stage| if stage == "embed" { 2 } else { 1 });
        assert_eq!(forecast.left(&[]), (Some(4.0), vec!["epoch"]));
        // Half as fast as recorded: (2 + 4) / 2 seconds for each of three, two at once.
        forecast.finished("embed", 4.0);
        assert_eq!(forecast.left(&[]).0, Some(4.5));
        assert_eq!(forecast.left(&[("embed", 0.5), ("embed", 0.5)]).0, Some(3.0));
        // The others turn out to be there.
        forecast.begun("embed", 0);
        assert_eq!(forecast.left(&[]), (None, vec!["epoch"]));
        forecast.finished("epoch", 10.0);
        assert_eq!(forecast.left(&[("epoch", 0.25)]), (Some(7.5), vec![]));
        forecast.finished("epoch", 10.0);
        assert_eq!(forecast.left(&[]), (Some(0.0), vec![]));
    }
}
