//! What would run.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::cache::Cache;
use crate::pipeline::graph::{Graph, UnitIdx};
use crate::pipeline::outcomes::Outcomes;
use crate::pipeline::resolve::{Resolver, State};

/// Whether a unit runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Freshness {
    /// In the cache.
    Fresh,
    /// Runs: its inputs are known and no unit with its key has finished, or its blobs are gone.
    Missing,
    /// Something it reads runs first; it may turn out to be fresh if that gives the same bytes as before.
    Waits,
}

/// Every needed unit with its freshness.
#[derive(Debug)]
pub struct Plan {
    pub units: Vec<(UnitIdx, Freshness)>,
    pub stages: BTreeMap<&'static str, StagePlan>,
}

/// A stage in the plan.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct StagePlan {
    pub fresh: usize,
    pub to_run: usize,
    /// Seconds of those that run, from the median of recorded durations; `None` if none runs, or nothing is recorded.
    pub seconds: Option<f64>,
    /// Bytes that they will store: what they had where a blob is lost, else from the mean of recorded ones.
    pub bytes: Option<u64>,
}

impl Plan {
    pub fn n_to_run(&self) -> usize {
        self.stages.values().map(|stage| stage.to_run).sum()
    }
}

/// Compares a graph with the cache; runs nothing.
pub fn plan(graph: &Graph, cache: &Cache, targets: &[UnitIdx]) -> anyhow::Result<Plan> {
    let mut resolver = Resolver::new(graph, cache, targets);
    resolver.look_up();
    let states = resolver.states(targets);
    let mut plan = Plan { units: Vec::new(), stages: BTreeMap::new() };
    // By stage and names of inputs: units that run, of these those that never did, bytes of lost blobs.
    let mut to_run: BTreeMap<(&'static str, Vec<&'static str>), (usize, u64, u64)> = BTreeMap::new();
    let records = cache.records();
    for (unit, state) in states.iter().enumerate().filter(|(unit, _)| resolver.needed[*unit]) {
        let stage = plan.stages.entry(graph.kind(unit).stage).or_default();
        let freshness = match state {
            State::Done => Freshness::Fresh,
            State::Ready => Freshness::Missing,
            State::Waits => Freshness::Waits,
        };
        match freshness {
            Freshness::Fresh => stage.fresh += 1,
            Freshness::Missing | Freshness::Waits => {
                stage.to_run += 1;
                let kind = (graph.kind(unit).stage, graph.slots(unit).collect());
                let (n, new, lost) = to_run.entry(kind).or_default();
                *n += 1;
                match resolver.known[unit] {
                    Some(record) => *lost += records.outputs(record).map(|(.., size)| size).sum::<u64>(),
                    None => *new += 1,
                }
            }
        }
        plan.units.push((unit, freshness));
    }
    drop(records);
    for ((stage, slots), (n, new, lost)) in to_run {
        let Some((seconds, bytes)) = cache.typical_cost(stage, slots.into_iter())? else { continue };
        let stage = plan.stages.entry(stage).or_default();
        *stage.seconds.get_or_insert_default() += seconds * n as f64;
        *stage.bytes.get_or_insert_default() += lost + new * bytes;
    }
    Ok(plan)
}

/// What has finished of a graph, by unit.
pub fn finished(graph: &Graph, cache: &Cache, targets: &[UnitIdx]) -> Outcomes {
    let mut resolver = Resolver::new(graph, cache, targets);
    resolver.look_up();
    Outcomes::new(cache, resolver.known)
}
