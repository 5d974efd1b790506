//! Runs what is missing. As units finish the keys of those that read them become known; a hit there is reused, so
//! work stops where an edit stops having an effect.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;

use crate::artifact::{ArtifactRef, Manifest};
use crate::cache::{BlobStore, Cache, StoreError};
use crate::data::read_shared;
use crate::digest::BlobDigest;
use crate::pipeline::executor::{Executor, UnitTask};
use crate::pipeline::graph::{Graph, Source, UnitIdx};
use crate::pipeline::resolve::{Resolver, State};
use crate::stage::{BlobReader, Bytes, Interrupted, Output, Registry};

/// How often a unit is tried when what it reads turns out to be lost.
const MAX_TRIES: usize = 3;

/// What a run is told.
pub struct RunOptions<'a> {
    /// Units that must be there at the end.
    pub targets: &'a [UnitIdx],
    /// After a failure go on with what does not need the failed unit.
    pub keep_going: bool,
    /// Set from outside: the running unit finishes, then the run ends.
    pub interrupted: Arc<AtomicBool>,
    /// Seconds since 1970.
    pub clock: &'a dyn Fn() -> u64,
    /// Device and library versions, for the manifests.
    pub made_by: &'a str,
    pub observer: &'a dyn Fn(Event<'_>),
}

/// What happens while running.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// Known at the start: units in the cache, units that run or wait.
    Planned {
        reused: usize,
        to_run: usize,
    },
    GroupStarted {
        stage: &'a str,
        units: usize,
    },
    UnitFinished {
        stage: &'a str,
        label: &'a str,
        seconds: f64,
    },
    UnitFailed {
        label: &'a str,
        error: &'a anyhow::Error,
    },
    /// A blob was corrupt or gone; its unit runs again.
    Repaired {
        label: &'a str,
        error: &'a anyhow::Error,
    },
}

/// What a run did.
#[derive(Debug, Default)]
pub struct RunReport {
    /// Units executed, by stage.
    pub executed: BTreeMap<String, usize>,
    pub reused: usize,
    pub failed: Vec<(String, anyhow::Error)>,
    /// Labels of units made again because a blob was corrupt or gone.
    pub repaired: Vec<String>,
    pub interrupted: bool,
    /// Records by unit; `None` where a unit was not needed or did not finish.
    pub manifests: Vec<Option<Arc<Manifest>>>,
}

impl RunReport {
    pub fn n_executed(&self) -> usize {
        self.executed.values().sum()
    }

    pub fn output(&self, unit: UnitIdx, name: &str) -> Option<&ArtifactRef> {
        self.manifests[unit].as_ref()?.output(name)
    }
}

/// Runs the units that `options.targets` need.
///
/// # Errors
/// Faults of the cache itself. A unit's own fault is in the report.
pub fn run(
    graph: &Graph,
    cache: &Cache,
    registry: &Registry,
    executor: &mut dyn Executor,
    options: &RunOptions<'_>,
) -> anyhow::Result<RunReport> {
    let mut resolver = Resolver::new(graph, cache, options.targets);
    let mut report = RunReport::default();
    let mut failed: HashSet<UnitIdx> = HashSet::new();
    let mut tries: HashMap<UnitIdx, usize> = HashMap::new();
    let mut planned = false;
    loop {
        resolver.look_up()?;
        let states = resolver.states(options.targets);
        if !planned {
            planned = true;
            let to_run = states.iter().filter(|state| **state != State::Done).count();
            let reused = resolver.needed.iter().filter(|needed| **needed).count() - to_run;
            (options.observer)(Event::Planned { reused, to_run });
        }
        let stop = options.interrupted.load(Ordering::Relaxed) || (!failed.is_empty() && !options.keep_going);
        let group = if stop { Vec::new() } else { next_group(graph, &states, &failed) };
        let Some(&first) = group.first() else { break };
        let entry = registry.get(graph.units()[first].stage)?;
        let (tasks, reader) = prepare(&mut resolver, &group)?;
        (options.observer)(Event::GroupStarted { stage: entry.kind, units: tasks.len() });

        let mut fault = None;
        executor.execute(entry, &tasks, &reader, &options.interrupted, &mut |task, outcome, seconds| {
            let UnitTask { unit, label, fingerprint } = &tasks[task];
            let outcome = outcome.and_then(|outputs| {
                publish_inputs(cache, &reader, &fingerprint.inputs)?;
                let outputs = publish(cache.store(), outputs)?;
                let manifest = Manifest {
                    key: fingerprint.key(),
                    label: label.clone(),
                    fingerprint: fingerprint.clone(),
                    outputs,
                    seconds,
                    finished: (options.clock)(),
                    made_by: options.made_by.to_owned(),
                };
                cache.put(&manifest)?;
                Ok(manifest)
            });
            match outcome {
                Ok(manifest) => {
                    resolver.learn(*unit, Arc::new(manifest));
                    *report.executed.entry(entry.kind.to_owned()).or_default() += 1;
                    (options.observer)(Event::UnitFinished { stage: entry.kind, label, seconds });
                    if seconds > 0.3 {
                        fault = fault.take().or(cache.flush().err());
                    }
                }
                Err(error) if error.is::<Interrupted>() => options.interrupted.store(true, Ordering::Relaxed),
                Err(error) => {
                    let n_tries = tries.entry(*unit).or_default();
                    *n_tries += 1;
                    if is_lost_blob(&error) && *n_tries < MAX_TRIES {
                        (options.observer)(Event::Repaired { label, error: &error });
                        report.repaired.push(label.clone());
                    } else {
                        (options.observer)(Event::UnitFailed { label, error: &error });
                        failed.insert(*unit);
                        report.failed.push((label.clone(), error));
                    }
                }
            }
        });
        if let Some(fault) = fault {
            return Err(fault);
        }
    }
    cache.flush()?;
    report.interrupted = options.interrupted.load(Ordering::Relaxed);
    let n_needed = resolver.needed.iter().filter(|needed| **needed).count();
    let n_known = resolver.known.iter().filter(|known| known.is_some()).count();
    report.reused = n_known.min(n_needed).saturating_sub(report.n_executed());
    report.manifests = resolver.known;
    Ok(report)
}

/// The ready units that share stage and parameters with the first one.
fn next_group(graph: &Graph, states: &[State], failed: &HashSet<UnitIdx>) -> Vec<UnitIdx> {
    let ready = |unit: &UnitIdx| states[*unit] == State::Ready && !failed.contains(unit);
    let Some(first) = (0..states.len()).find(ready) else { return Vec::new() };
    let like = &graph.units()[first];
    let same = |unit: &UnitIdx| {
        let unit = &graph.units()[*unit];
        unit.stage == like.stage && unit.params == like.params
    };
    (first..states.len()).filter(ready).filter(same).collect()
}

/// The tasks of a group, equal keys once, and a reader that knows the files and values they use.
fn prepare(resolver: &mut Resolver<'_>, group: &[UnitIdx]) -> anyhow::Result<(Vec<UnitTask>, RunReader)> {
    let graph = resolver.graph;
    let mut reader = RunReader { store: resolver.cache.store().clone(), files: HashMap::new(), values: HashMap::new() };
    let mut tasks = Vec::new();
    let mut keys = HashSet::new();
    for &idx in group {
        let unit = &graph.units()[idx];
        let fingerprint = resolver.fingerprint(idx).context("a ready unit has an unknown input")?;
        if !keys.insert(fingerprint.key()) {
            continue; // Two items of the same content: the second is a hit in the next round.
        }
        for (_, source) in &unit.inputs {
            match source {
                Source::Set(set) => {
                    if let Some((digest, bytes)) = resolver.listing(*set)
                        && reader.values.insert(digest, bytes).is_none()
                    {
                        graph.sets()[*set].members.iter().for_each(|(_, member)| reader.know(member));
                    }
                }
                other => reader.know(other),
            }
        }
        tasks.push(UnitTask { unit: idx, label: unit.label(), fingerprint });
    }
    Ok((tasks, reader))
}

/// Set listings and values go to the store with the unit: `why` compares them, and a unit can run from its
/// fingerprint and a store alone.
fn publish_inputs(
    cache: &Cache,
    reader: &RunReader,
    inputs: &[crate::artifact::FingerprintInput],
) -> Result<(), StoreError> {
    for input in inputs {
        if let Some(bytes) = reader.values.get(&input.digest) {
            cache.store().write(bytes)?;
        }
    }
    Ok(())
}

fn publish(store: &BlobStore, outputs: Vec<Output>) -> Result<Vec<ArtifactRef>, StoreError> {
    let publish = |output: Output| {
        let digest = store.write(&output.bytes)?;
        Ok(ArtifactRef { name: output.name.to_owned(), digest, size: output.bytes.len() as u64 })
    };
    outputs.into_iter().map(publish).collect()
}

fn is_lost_blob(error: &anyhow::Error) -> bool {
    let lost = |error: &StoreError| matches!(error, StoreError::Missing(_) | StoreError::Corrupt { .. });
    error.chain().filter_map(|cause| cause.downcast_ref::<StoreError>()).any(lost)
}

/// Reads blobs from the store, source files from their paths, values from memory.
struct RunReader {
    store: BlobStore,
    files: HashMap<BlobDigest, Arc<Path>>,
    values: HashMap<BlobDigest, Bytes>,
}

impl RunReader {
    fn know(&mut self, source: &Source) {
        match source {
            Source::File { path, digest } => drop(self.files.insert(*digest, path.clone())),
            Source::Value { bytes, digest } => drop(self.values.insert(*digest, bytes.clone())),
            Source::Output { .. } | Source::Set(_) => {}
        }
    }
}

impl BlobReader for RunReader {
    fn read(&self, digest: &BlobDigest) -> anyhow::Result<Bytes> {
        if let Some(bytes) = self.values.get(digest) {
            return Ok(bytes.clone());
        }
        let Some(path) = self.files.get(digest) else { return Ok(self.store.read(digest)?.into()) };
        let bytes = read_shared(path).with_context(|| format!("could not read `{}`", path.display()))?;
        anyhow::ensure!(BlobDigest::of(&bytes) == *digest, "`{}` changed while running; run again", path.display());
        Ok(bytes)
    }
}
