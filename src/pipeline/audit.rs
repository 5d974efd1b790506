//! Audits: some finished units run again, and what they give is compared with the record. Nothing cached is written:
//! outputs are hashed and dropped.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;

use super::executor::{Executor, Finished, UnitIo, UnitTask};
use super::graph::{Graph, Input, UnitIdx};
use super::outcomes::Outcomes;
use super::resolve::Resolver;
use super::run::{Event, RunIo};
use crate::artifact::ArtifactRef;
use crate::cache::{Cache, Drift};
use crate::digest::{BlobDigest, UnitKey};
use crate::stage::{BlobReader, Bytes, Interrupted, Output, Registry};

/// What an audit is told.
pub struct AuditOptions<'a> {
    pub targets: &'a [UnitIdx],
    /// If this is given, only units with these keys are audited.
    pub among: Option<&'a HashSet<UnitKey>>,
    /// Of the units that can be audited, in 0..=1; at least one runs.
    pub share: f64,
    /// Chooses them.
    pub rng_seed: u64,
    /// Set from outside: the running unit finishes, then the audit ends.
    pub interrupted: Arc<AtomicBool>,
    /// Seconds since 1970.
    pub clock: &'a dyn Fn() -> u64,
    /// Library versions.
    pub made_by: &'a str,
    pub observer: &'a dyn Fn(Event<'_>),
}

/// What an audit found.
#[derive(Debug, Default)]
pub struct AuditReport {
    /// Finished units of the targets that were to be looked at.
    pub n_cached: usize,
    /// Of these, without a blob that they read.
    pub n_not_there: usize,
    /// Units that gave the same bytes.
    pub n_agreed: usize,
    pub drifted: Vec<Drift>,
    /// Labels of units that ran once and now fail.
    pub failed: Vec<(String, anyhow::Error)>,
    pub interrupted: bool,
}

impl AuditReport {
    pub fn is_clean(&self) -> bool {
        self.drifted.is_empty() && self.failed.is_empty()
    }
}

/// Runs a sample of the finished units again. `executor` has a scratch folder of its own: what a run has half done
/// there is not to be taken up.
///
/// # Errors
/// Faults of the cache itself. A unit's own fault is in the report.
pub fn audit(
    graph: &Graph,
    cache: &Cache,
    registry: &Registry,
    executor: &mut dyn Executor,
    options: &AuditOptions<'_>,
) -> anyhow::Result<AuditReport> {
    let mut resolver = Resolver::new(graph, cache, options.targets);
    resolver.look_up();
    let outcomes = Outcomes::new(cache, resolver.known.clone());
    let mut report = AuditReport::default();
    let mut sample = sample(&mut resolver, &outcomes, options, &mut report);
    (options.observer)(Event::Planned { reused: report.n_cached, to_run: sample.len() });
    let io = Arc::new(RunIo::new(cache.store().clone()));
    let mut in_flight: HashMap<UnitIdx, (UnitKey, String)> = HashMap::new();
    let mut stage = "";
    loop {
        while let Some(&unit) = sample.last().filter(|_| !options.interrupted.load(Ordering::Relaxed)) {
            let entry = *registry.get(graph.kind(unit).stage)?;
            if !executor.has_room(entry.parallel) {
                break;
            }
            sample.pop();
            if stage != entry.kind {
                stage = entry.kind;
                let left = sample.iter().filter(|unit| graph.kind(**unit).stage == stage).count() + 1;
                (options.observer)(Event::GroupStarted { stage, units: left });
            }
            let fingerprint = resolver.fingerprint(unit).context("a finished unit has an unknown input")?;
            io.know_inputs(graph, &resolver, unit);
            let label = graph.unit(unit).label();
            in_flight.insert(unit, (fingerprint.key(), label.clone()));
            executor.start(UnitTask { unit, entry, label, fingerprint, io: Arc::new(AuditIo(io.clone())) });
        }
        if options.interrupted.load(Ordering::Relaxed) {
            executor.withdraw();
        }
        let Some(Finished { unit, outcome, seconds, device }) = executor.next() else { break };
        let Some((key, label)) = in_flight.remove(&unit) else { continue };
        match outcome {
            Ok(found) => {
                (options.observer)(Event::UnitFinished {
                    stage: graph.kind(unit).stage,
                    key: &key,
                    label: &label,
                    seconds,
                });
                match differences(&outcomes.outputs(unit), &found) {
                    outputs if outputs.is_empty() => report.n_agreed += 1,
                    outputs => {
                        let made_by = cache.get(&key).map(|manifest| manifest.made_by).unwrap_or_default();
                        let (audited_by, audited) = (format!("{}, {device}", options.made_by), (options.clock)());
                        let drift = Drift { key, label, outputs, made_by, audited_by, audited };
                        cache.put_drift(&drift)?;
                        report.drifted.push(drift);
                    }
                }
            }
            Err(error) if error.is::<Interrupted>() => options.interrupted.store(true, Ordering::Relaxed),
            Err(error) => {
                (options.observer)(Event::UnitFailed { key: &key, label: &label, error: &error });
                report.failed.push((label, error));
            }
        }
    }
    report.interrupted = options.interrupted.load(Ordering::Relaxed);
    report.drifted.sort_by(|a, b| a.label.cmp(&b.label));
    Ok(report)
}

/// The units to run, the last of the graph first. Each is taken or not by a digest of its key and the seed, so that the
/// sample does not depend on the order of the graph.
fn sample(
    resolver: &mut Resolver<'_>,
    outcomes: &Outcomes,
    options: &AuditOptions<'_>,
    report: &mut AuditReport,
) -> Vec<UnitIdx> {
    let mut seen = HashSet::new();
    let mut ranked: Vec<([u8; 32], UnitIdx)> = Vec::new();
    for unit in 0..resolver.known.len() {
        let is_asked = |key: &UnitKey| resolver.needed[unit] && options.among.is_none_or(|among| among.contains(key));
        let Some(key) = outcomes.key(unit).filter(|key| is_asked(key) && seen.insert(*key)) else { continue };
        report.n_cached += 1;
        match has_inputs(resolver, unit) {
            true => {
                let drawn = blake3::hash(&[&options.rng_seed.to_le_bytes()[..], key.as_bytes()].concat());
                ranked.push((*drawn.as_bytes(), unit));
            }
            false => report.n_not_there += 1,
        }
    }
    ranked.sort_unstable();
    let n = (ranked.len() as f64 * options.share).ceil() as usize;
    ranked.truncate(n);
    let mut units: Vec<UnitIdx> = ranked.into_iter().map(|(_, unit)| unit).collect();
    units.sort_unstable_by(|a, b| b.cmp(a));
    units
}

/// All it reads is there.
fn has_inputs(resolver: &mut Resolver<'_>, unit: UnitIdx) -> bool {
    let graph = resolver.graph;
    graph.inputs(unit).iter().all(|(_, input)| match *input {
        Input::Output { unit, name: _ } => resolver.is_whole(unit as usize),
        Input::Set(set) => resolver.is_whole_set(set as usize),
        Input::Content(_) => true,
    })
}

fn differences(recorded: &[ArtifactRef], found: &[ArtifactRef]) -> BTreeMap<String, (BlobDigest, BlobDigest)> {
    let nothing = BlobDigest::from_bytes([0; 32]);
    let of = |outputs: &[ArtifactRef], name: &str| {
        outputs.iter().find(|output| output.name == name).map_or(nothing, |output| output.digest)
    };
    let names = recorded.iter().chain(found).map(|output| output.name.clone());
    let pairs = names.map(|name| (of(recorded, &name), of(found, &name), name));
    pairs.filter(|(was, is, _)| was != is).map(|(was, is, name)| (name, (was, is))).collect()
}

/// Reads as a run does; what comes out is hashed alone.
struct AuditIo(Arc<RunIo>);

impl BlobReader for AuditIo {
    fn read(&self, digest: &BlobDigest) -> anyhow::Result<Bytes> {
        self.0.read(digest)
    }
}

impl UnitIo for AuditIo {
    fn publish(&self, outputs: Vec<Output>, _seconds: f64) -> anyhow::Result<Vec<ArtifactRef>> {
        let hashed = |output: Output| {
            let digest = BlobDigest::of(&output.bytes);
            ArtifactRef { name: output.name.to_owned(), digest, size: output.bytes.len() as u64 }
        };
        Ok(outputs.into_iter().map(hashed).collect())
    }
}

/// Of each of some units: labels of units with bytes that an audit could not make again, itself or what it was derived
/// from.
pub fn built_on_drift(
    graph: &Graph,
    cache: &Cache,
    outcomes: &Outcomes,
    units: &[UnitIdx],
) -> anyhow::Result<Vec<Vec<String>>> {
    let drifts = cache.drifts()?;
    if drifts.is_empty() {
        return Ok(vec![Vec::new(); units.len()]);
    }
    let drifted = |unit: &UnitIdx| {
        let drift = outcomes.key(*unit).and_then(|key| drifts.get(&key));
        drift.is_some_and(|drift| drift.is_of(&outcomes.outputs(*unit)))
    };
    let above = |unit: UnitIdx| {
        let (mut seen, mut to_do) = (HashSet::from([unit]), vec![unit]);
        while let Some(unit) = to_do.pop() {
            graph.for_each_dependency(unit, |below| {
                if seen.insert(below) {
                    to_do.push(below);
                }
            });
        }
        let mut found: Vec<UnitIdx> = seen.into_iter().filter(drifted).collect();
        found.sort_unstable();
        found.into_iter().map(|unit| graph.unit(unit).label()).collect()
    };
    Ok(units.iter().map(|unit| above(*unit)).collect())
}
