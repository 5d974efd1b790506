//! What would run, and why.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use crate::artifact::{Fingerprint, SetListing};
use crate::cache::Cache;
use crate::digest::BlobDigest;
use crate::pipeline::graph::{Graph, Input, UnitIdx};
use crate::pipeline::outcomes::Outcomes;
use crate::pipeline::resolve::{Resolver, State};

/// How many differences are named before the rest is counted.
const MAX_NAMED: usize = 5;

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

/// Why a unit is not fresh.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "reason")]
pub enum StaleReason {
    Fresh,
    /// No unit of this stage and item has finished here.
    NeverRan,
    /// It finished, but an output's blob is gone.
    BlobLost {
        output: String,
    },
    /// Something it reads has to run first.
    Waits {
        on: Vec<String>,
    },
    /// What differs from the newest finished unit of this stage and item.
    Changed {
        differences: Vec<Difference>,
    },
}

/// One influence that differs.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "what")]
pub enum Difference {
    Version {
        old: u64,
        new: u64,
    },
    /// JSON values; `null` where a side has no such parameter.
    Param {
        path: String,
        old: serde_json::Value,
        new: serde_json::Value,
    },
    Input {
        slot: String,
        old: String,
        new: String,
    },
    Set {
        slot: String,
        added: Vec<String>,
        removed: Vec<String>,
        changed: Vec<String>,
    },
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Version { old, new } => write!(f, "stage version: {old} -> {new}"),
            Self::Param { path, old, new } => write!(f, "parameter `{path}`: {old} -> {new}"),
            Self::Input { slot, old, new } => write!(f, "input `{slot}`: content {old} -> {new}"),
            Self::Set { slot, added, removed, changed } => {
                write!(f, "inputs `{slot}`:")?;
                for (verb, items) in [("added", added), ("removed", removed), ("changed", changed)] {
                    if !items.is_empty() {
                        let named = items.iter().take(MAX_NAMED).cloned().collect::<Vec<_>>().join(", ");
                        let more = items.len().saturating_sub(MAX_NAMED);
                        write!(f, " {} {verb} ({named}", items.len())?;
                        if more > 0 {
                            write!(f, ", and {more} more")?;
                        }
                        write!(f, ")")?;
                    }
                }
                Ok(())
            }
        }
    }
}

impl fmt::Display for StaleReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fresh => write!(f, "fresh: it is in the cache"),
            Self::NeverRan => write!(f, "never ran here"),
            Self::BlobLost { output } => write!(f, "ran, but the blob of its output `{output}` is gone"),
            Self::Waits { on } => {
                let named = on.iter().take(MAX_NAMED).cloned().collect::<Vec<_>>().join(", ");
                write!(f, "waits for {} unit(s) to run first: {named}", on.len())
            }
            Self::Changed { differences } => {
                let lines: Vec<String> = differences.iter().map(Difference::to_string).collect();
                write!(f, "changed since it last ran: {}", lines.join("; "))
            }
        }
    }
}

/// Why each of some units is not fresh.
pub fn why(graph: &Graph, cache: &Cache, targets: &[UnitIdx], units: &[UnitIdx]) -> anyhow::Result<Vec<StaleReason>> {
    let mut resolver = Resolver::new(graph, cache, targets);
    resolver.look_up();
    let states = resolver.states(targets);
    units.iter().map(|&unit| reason(&mut resolver, &states, unit)).collect()
}

fn reason(resolver: &mut Resolver<'_>, states: &[State], unit: UnitIdx) -> anyhow::Result<StaleReason> {
    if states[unit] == State::Done {
        return Ok(StaleReason::Fresh);
    }
    if let Some(record) = resolver.known[unit] {
        let (store, records) = (resolver.cache.store(), resolver.cache.records());
        let lost = records.outputs(record).find(|(_, digest, size)| !store.has(digest, *size));
        if let Some((output, ..)) = lost {
            return Ok(StaleReason::BlobLost { output: output.to_owned() });
        }
    }
    let label = resolver.graph.unit(unit).label();
    let newest = resolver.cache.newest(&label)?;
    let Some(new) = resolver.fingerprint(unit) else {
        let mut on = Vec::new();
        resolver.graph.for_each_dependency(unit, |below| {
            if states[below] != State::Done {
                on.push(resolver.graph.unit(below).label());
            }
        });
        // The parameters are known even now, and may be the whole story.
        let unit = resolver.graph.unit(unit);
        if let Some(old) = newest.filter(|old| old.fingerprint.params != **unit.params) {
            let now = Fingerprint { params: unit.params.to_string(), ..old.fingerprint.clone() };
            return Ok(StaleReason::Changed { differences: differences(resolver.cache, &old.fingerprint, &now, None) });
        }
        return Ok(StaleReason::Waits { on });
    };
    let Some(old) = newest else { return Ok(StaleReason::NeverRan) };
    let listings = listings(resolver, unit);
    let differences = differences(resolver.cache, &old.fingerprint, &new, Some(&listings));
    Ok(StaleReason::Changed { differences })
}

/// The listings of a unit's sets, by digest: they may not be in the store yet.
fn listings(resolver: &Resolver<'_>, unit: UnitIdx) -> BTreeMap<BlobDigest, SetListing> {
    let mut found = BTreeMap::new();
    for (_, input) in resolver.graph.inputs(unit) {
        if let Input::Set(set) = input
            && let Some(bytes) = resolver.listing(*set as usize)
        {
            found.extend(SetListing::parse(&bytes).ok().map(|listing| (BlobDigest::of(&bytes), listing)));
        }
    }
    found
}

fn differences(
    cache: &Cache,
    old: &Fingerprint,
    new: &Fingerprint,
    new_listings: Option<&BTreeMap<BlobDigest, SetListing>>,
) -> Vec<Difference> {
    let mut found = Vec::new();
    if old.version != new.version {
        found.push(Difference::Version { old: old.version, new: new.version });
    }
    param_differences("", &old.params_value(), &new.params_value(), &mut found);
    let Some(new_listings) = new_listings else { return found };
    let mut slots: Vec<&str> = old.inputs.iter().chain(&new.inputs).map(|input| input.slot.as_str()).collect();
    slots.sort_unstable();
    slots.dedup();
    for slot in slots {
        let of = |fingerprint: &Fingerprint| fingerprint.inputs.iter().find(|input| input.slot == slot).cloned();
        let (was, is) = (of(old), of(new));
        if was == is {
            continue;
        }
        let old_set = was.as_ref().filter(|input| input.is_set).and_then(|input| {
            let bytes = cache.store().read(&input.digest).ok()?;
            SetListing::parse(&bytes).ok()
        });
        let new_set = is.as_ref().filter(|input| input.is_set).and_then(|input| new_listings.get(&input.digest));
        found.push(match (old_set, new_set) {
            (Some(was), Some(is)) => set_difference(slot, &was, is),
            _ => {
                let short = |input: Option<crate::artifact::FingerprintInput>| {
                    input.map_or_else(|| "none".to_owned(), |input| input.digest.short())
                };
                Difference::Input { slot: slot.to_owned(), old: short(was), new: short(is) }
            }
        });
    }
    found
}

pub(super) fn param_differences(
    path: &str,
    old: &serde_json::Value,
    new: &serde_json::Value,
    found: &mut Vec<Difference>,
) {
    use serde_json::Value;
    if let (Value::Object(was), Value::Object(is)) = (old, new) {
        let mut names: Vec<&String> = was.keys().chain(is.keys()).collect();
        names.sort_unstable();
        names.dedup();
        for name in names {
            let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            let side = |map: &serde_json::Map<String, Value>| map.get(name).cloned().unwrap_or_default();
            param_differences(&path, &side(was), &side(is), found);
        }
    } else if old != new {
        found.push(Difference::Param { path: path.to_owned(), old: old.clone(), new: new.clone() });
    }
}

fn set_difference(slot: &str, old: &SetListing, new: &SetListing) -> Difference {
    let was: BTreeMap<_, _> = old.members.iter().cloned().collect();
    let is: BTreeMap<_, _> = new.members.iter().cloned().collect();
    let missing_in = |a: &BTreeMap<String, BlobDigest>, b: &BTreeMap<String, BlobDigest>| -> Vec<String> {
        a.keys().filter(|item| !b.contains_key(*item)).cloned().collect()
    };
    let changed = is.iter().filter(|(item, digest)| was.get(*item).is_some_and(|was| was != *digest));
    Difference::Set {
        slot: slot.to_owned(),
        added: missing_in(&is, &was),
        removed: missing_in(&was, &is),
        changed: changed.map(|(item, _)| item.clone()).collect(),
    }
}

/// What has finished of a graph, by unit.
pub fn finished(graph: &Graph, cache: &Cache, targets: &[UnitIdx]) -> Outcomes {
    let mut resolver = Resolver::new(graph, cache, targets);
    resolver.look_up();
    Outcomes::new(cache, resolver.known)
}
