//! Runs what is missing. As units finish the keys of those that read them become known; a hit there is reused, so
//! work stops where an edit stops having an effect.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use anyhow::Context;

use crate::artifact::{ArtifactRef, Fingerprint, Manifest};
use crate::cache::{BlobStore, Cache, RecordIdx, SYNC_SECONDS, StoreError, locked};
use crate::data::read_as;
use crate::digest::{BlobDigest, UnitKey};
use crate::pipeline::agenda::Agenda;
use crate::pipeline::executor::{Executor, Finished, PastLimit, UnitIo, UnitTask};
use crate::pipeline::graph::{Content, Graph, Input, Kind, UnitIdx};
use crate::pipeline::outcomes::Outcomes;
use crate::pipeline::resolve::Resolver;
use crate::stage::{BlobReader, Bytes, Interrupted, NotFinite, Output, Registry};

/// How often a unit is tried when what it reads turns out to be lost.
const MAX_TRIES: usize = 3;

/// What a run is told.
pub struct RunOptions<'a> {
    /// Units that must have finished at the end.
    pub targets: &'a [UnitIdx],
    /// What they gave must be there too; otherwise of those that others read a record is enough.
    pub restore: bool,
    /// After a failure go on with what does not need the failed unit.
    pub keep_going: bool,
    /// How often a unit that failed is tried again.
    pub retries: usize,
    /// Set from outside: the running unit finishes, then the run ends.
    pub interrupted: Arc<AtomicBool>,
    /// Seconds since 1970.
    pub clock: &'a dyn Fn() -> u64,
    /// Library versions, for the manifests, which have the device as well.
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
    /// It was given to a worker, which may have others to run before it.
    UnitStarted {
        stage: &'a str,
        key: &'a UnitKey,
        label: &'a str,
    },
    UnitFinished {
        stage: &'a str,
        key: &'a UnitKey,
        label: &'a str,
        seconds: f64,
    },
    UnitFailed {
        key: &'a UnitKey,
        label: &'a str,
        error: &'a anyhow::Error,
    },
    /// It failed and is tried once more.
    Retried {
        key: &'a UnitKey,
        label: &'a str,
        error: &'a anyhow::Error,
    },
    /// A blob was corrupt or gone; its unit runs again.
    Repaired {
        key: &'a UnitKey,
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
    /// Labels of units that could not run since one they read failed.
    pub blocked: Vec<String>,
    /// Labels of units made again because a blob was corrupt or gone.
    pub repaired: Vec<String>,
    pub interrupted: bool,
    /// What units gave that were needed and have finished, now or before.
    pub outcomes: Outcomes,
}

impl RunReport {
    pub fn n_executed(&self) -> usize {
        self.executed.values().sum()
    }

    pub fn output(&self, unit: UnitIdx, name: &str) -> Option<ArtifactRef> {
        self.outcomes.output(unit, name)
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
    // What is remembered of the user's files need not wait for the end.
    cache.flush()?;
    let mut running = Running {
        graph,
        cache,
        options,
        io: Arc::new(RunIo::new(cache.store().clone())),
        in_flight: HashMap::new(),
        waiting: HashMap::new(),
        failed: HashSet::new(),
        tries: HashMap::new(),
        stage: "",
        report: RunReport::default(),
    };
    // A kind that this build does not know is told of when it has to run.
    let is_parallel = |kind: &Kind| registry.get(kind.stage).is_ok_and(|entry| entry.parallel);
    let is_parallel: Vec<bool> = graph.kinds().iter().map(is_parallel).collect();
    let mut agenda = Agenda::new((graph, cache), options.targets, options.restore, &is_parallel, &running.failed);
    let to_run = agenda.n_to_run();
    let n_needed = agenda.resolver.needed.iter().filter(|needed| **needed).count();
    (options.observer)(Event::Planned { reused: n_needed - to_run, to_run });
    loop {
        while !running.stops() && !agenda.is_stale {
            let has_room = [false, true].map(|is_parallel| executor.has_room(is_parallel));
            let Some(unit) = agenda.next(has_room, executor.overlaps()) else { break };
            running.start(&mut agenda, registry, executor, unit)?;
        }
        if running.stops() {
            executor.withdraw();
        }
        match executor.next() {
            Some(finished) => {
                running.take(&mut agenda, finished)?;
                // Of quick units many have finished meanwhile: the workers are given as many at once.
                while let Some(finished) = executor.try_next() {
                    running.take(&mut agenda, finished)?;
                }
            }
            None if agenda.is_stale && !running.stops() => {
                agenda = Agenda::new((graph, cache), options.targets, options.restore, &is_parallel, &running.failed);
            }
            None => break,
        }
    }
    cache.flush()?;
    let mut report = running.report;
    report.interrupted = options.interrupted.load(Ordering::Relaxed);
    if !running.failed.is_empty() {
        report.blocked = agenda.blocked().into_iter().map(|unit| graph.unit(unit).label()).collect();
    }
    let n_known = agenda.resolver.known.iter().filter(|known| known.is_some()).count();
    report.reused = n_known.saturating_sub(report.n_executed());
    report.outcomes = Outcomes::new(cache, agenda.resolver.known);
    Ok(report)
}

/// A run on its way.
struct Running<'a, 'b> {
    graph: &'a Graph,
    cache: &'a Cache,
    options: &'a RunOptions<'b>,
    io: Arc<RunIo>,
    /// What runs, by unit.
    in_flight: HashMap<UnitIdx, (String, Fingerprint)>,
    /// By key that runs: other units of the same content, which are done with it.
    waiting: HashMap<UnitKey, Vec<UnitIdx>>,
    failed: HashSet<UnitIdx>,
    tries: HashMap<UnitIdx, usize>,
    /// Started last.
    stage: &'static str,
    report: RunReport,
}

impl Running<'_, '_> {
    fn stops(&self) -> bool {
        self.options.interrupted.load(Ordering::Relaxed) || (!self.failed.is_empty() && !self.options.keep_going)
    }

    fn start(
        &mut self,
        agenda: &mut Agenda<'_>,
        registry: &Registry,
        executor: &mut dyn Executor,
        unit: UnitIdx,
    ) -> anyhow::Result<()> {
        let entry = *registry.get(self.graph.kind(unit).stage)?;
        let fingerprint = agenda.resolver.fingerprint(unit).context("a ready unit has an unknown input")?;
        let key = fingerprint.key();
        if let Some(waiting) = self.waiting.get_mut(&key) {
            waiting.push(unit);
            return Ok(());
        }
        // An equal one may have finished since this one was found missing.
        if let Some(record) = self.whole(&key) {
            agenda.finished(unit, record);
            return Ok(());
        }
        if self.stage != entry.kind {
            self.stage = entry.kind;
            (self.options.observer)(Event::GroupStarted { stage: entry.kind, units: agenda.n_left(entry.kind) });
        }
        self.io.know_inputs(self.graph, &agenda.resolver, unit);
        let label = self.graph.unit(unit).label();
        (self.options.observer)(Event::UnitStarted { stage: entry.kind, key: &key, label: &label });
        self.waiting.insert(key, Vec::new());
        self.in_flight.insert(unit, (label.clone(), fingerprint.clone()));
        executor.start(UnitTask { unit, entry, label, fingerprint, io: self.io.clone() });
        Ok(())
    }

    /// The record of a unit that has all its blobs.
    fn whole(&self, key: &UnitKey) -> Option<RecordIdx> {
        let records = self.cache.records();
        records.find(key).filter(|record| records.is_whole(*record, &self.cache.store().look_for(1)))
    }

    fn take(&mut self, agenda: &mut Agenda<'_>, finished: Finished) -> anyhow::Result<()> {
        let Finished { unit, outcome, seconds, device } = finished;
        let Some((label, fingerprint)) = self.in_flight.remove(&unit) else { return Ok(()) };
        let (key, stage) = (fingerprint.key(), self.graph.kind(unit).stage);
        let equal = self.waiting.remove(&key).unwrap_or_default();
        let observer = self.options.observer;
        let stored = outcome.and_then(|outputs| {
            publish_inputs(&self.io, &fingerprint, seconds)?;
            let (finished, made_by) = ((self.options.clock)(), format!("{}, {device}", self.options.made_by));
            let label = label.clone();
            self.cache.put(&Manifest { key, label, fingerprint, outputs, seconds, finished, made_by })?;
            self.cache.records().find(&key).context("a record is not where it was put")
        });
        match stored {
            Ok(record) => {
                *self.report.executed.entry(stage.to_owned()).or_default() += 1;
                equal.iter().chain([&unit]).for_each(|unit| agenda.finished(*unit, record));
                observer(Event::UnitFinished { stage, key: &key, label: &label, seconds });
            }
            Err(error) if error.is::<Interrupted>() => self.options.interrupted.store(true, Ordering::Relaxed),
            Err(error) => {
                equal.iter().for_each(|unit| agenda.again(*unit, false));
                let n_tries = self.tries.entry(unit).or_default();
                *n_tries += 1;
                let is_lost = is_lost_blob(&error);
                if is_lost && *n_tries < MAX_TRIES {
                    observer(Event::Repaired { key: &key, label: &label, error: &error });
                    self.report.repaired.push(label);
                    agenda.again(unit, true);
                } else if is_worth_retrying(&error) && *n_tries <= self.options.retries && !self.stops() {
                    observer(Event::Retried { key: &key, label: &label, error: &error });
                    agenda.again(unit, false);
                } else {
                    observer(Event::UnitFailed { key: &key, label: &label, error: &error });
                    self.failed.insert(unit);
                    agenda.failed(unit);
                    self.report.failed.push((label, error));
                }
            }
        }
        Ok(())
    }
}

/// Set listings and values go to the store with the unit: `why` compares them, and a unit can run from its
/// fingerprint and a store alone.
fn publish_inputs(io: &RunIo, fingerprint: &Fingerprint, seconds: f64) -> Result<(), StoreError> {
    for input in &fingerprint.inputs {
        let value =
            io.known().values.get(&input.digest).filter(|(_, is_stored)| !is_stored).map(|(bytes, _)| bytes.clone());
        if let Some(bytes) = value {
            io.store.write(&bytes, seconds > SYNC_SECONDS)?;
            if let Some((_, is_stored)) = io.known().values.get_mut(&input.digest) {
                *is_stored = true;
            }
        }
    }
    Ok(())
}

/// Not what would fail alike, nor what may still run.
fn is_worth_retrying(error: &anyhow::Error) -> bool {
    let is_final = |cause: &(dyn std::error::Error + 'static)| cause.is::<NotFinite>() || cause.is::<PastLimit>();
    !is_lost_blob(error) && !error.chain().any(is_final)
}

fn is_lost_blob(error: &anyhow::Error) -> bool {
    let lost = |error: &StoreError| matches!(error, StoreError::Missing(_) | StoreError::Corrupt { .. });
    error.chain().filter_map(|cause| cause.downcast_ref::<StoreError>()).any(lost)
}

/// Reads blobs from the store, source files from their paths, values from memory.
pub(super) struct RunIo {
    store: BlobStore,
    known: Mutex<Known>,
}

/// What units that ran read beside blobs.
#[derive(Default)]
struct Known {
    files: HashMap<BlobDigest, Arc<Path>>,
    /// Set listings and values; whether they are in the store.
    values: HashMap<BlobDigest, (Bytes, bool)>,
}

impl RunIo {
    pub(super) fn new(store: BlobStore) -> Self {
        Self { store, known: Mutex::default() }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        locked(&self.known)
    }

    /// Takes the files and values that a unit reads.
    pub(super) fn know_inputs(&self, graph: &Graph, resolver: &Resolver<'_>, unit: UnitIdx) {
        let mut known = self.known();
        for (_, input) in graph.inputs(unit) {
            match *input {
                Input::Content(content) => known.know(graph, content),
                Input::Set(set) => {
                    let Some(digest) = resolver.listing_digest(set as usize) else { continue };
                    if known.values.contains_key(&digest) {
                        continue;
                    }
                    if let Some(bytes) = resolver.listing(set as usize) {
                        known.values.insert(digest, (bytes.into(), false));
                    }
                    for (_, input) in graph.members(set as usize) {
                        if let Input::Content(content) = input {
                            known.know(graph, content);
                        }
                    }
                }
                Input::Output { .. } => {}
            }
        }
    }
}

impl Known {
    fn know(&mut self, graph: &Graph, content: u32) {
        match graph.content(content) {
            (digest, Content::File(path)) => {
                self.files.entry(*digest).or_insert_with(|| path.clone());
            }
            (digest, Content::Value(bytes)) => {
                self.values.entry(*digest).or_insert_with(|| (bytes.clone(), false));
            }
        }
    }
}

impl BlobReader for RunIo {
    fn read(&self, digest: &BlobDigest) -> anyhow::Result<Bytes> {
        let known = self.known();
        if let Some((bytes, _)) = known.values.get(digest) {
            return Ok(bytes.clone());
        }
        let path = known.files.get(digest).cloned();
        drop(known);
        let Some(path) = path else { return Ok(self.store.read(digest)?.into()) };
        let bytes = read_as(&path, digest).with_context(|| format!("could not read `{}`", path.display()))?;
        bytes.with_context(|| format!("`{}` changed while running; run again", path.display()))
    }
}

impl UnitIo for RunIo {
    fn publish(&self, outputs: Vec<Output>, seconds: f64) -> anyhow::Result<Vec<ArtifactRef>> {
        let publish = |output: Output| {
            let digest = self.store.write(&output.bytes, seconds > SYNC_SECONDS)?;
            Ok(ArtifactRef { name: output.name.to_owned(), digest, size: output.bytes.len() as u64 })
        };
        outputs.into_iter().map(publish).collect()
    }
}
