//! Executors: where units compute. A unit needs its fingerprint and something to read blobs from, nothing else.

use std::any::Any;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::Instant;

use crate::artifact::Fingerprint;
use crate::pipeline::graph::UnitIdx;
use crate::stage::{BlobReader, DynStage, Output, StageContext, StageEntry, UnitInput};

/// A unit to execute.
#[derive(Clone, Debug)]
pub struct UnitTask {
    pub unit: UnitIdx,
    pub label: String,
    pub fingerprint: Fingerprint,
}

/// Told of each finished task: its place in the list, what it gave, seconds.
pub type Done<'a> = dyn FnMut(usize, anyhow::Result<Vec<Output>>, f64) + 'a;

/// Executes tasks that share stage and parameters.
pub trait Executor {
    /// Calls `done` once for each task it finishes; after `interrupted` is set it starts no more.
    fn execute(
        &mut self,
        entry: &StageEntry,
        tasks: &[UnitTask],
        reader: &dyn BlobReader,
        interrupted: &AtomicBool,
        done: &mut Done<'_>,
    );
}

/// Threads of this process.
pub struct LocalExecutor {
    context: StageContext,
    jobs: usize,
    /// The last stage of each kind with its parameters, so that equal groups load weights once.
    loaded: HashMap<&'static str, (String, Box<dyn DynStage>)>,
}

impl LocalExecutor {
    /// `jobs`: workers of stages whose units run one beside the other.
    pub fn new(context: StageContext, jobs: usize) -> Self {
        Self { context, jobs: jobs.max(1), loaded: HashMap::new() }
    }

    fn one_by_one(
        &mut self,
        entry: &StageEntry,
        tasks: &[UnitTask],
        reader: &dyn BlobReader,
        interrupted: &AtomicBool,
        done: &mut Done<'_>,
    ) {
        for (place, task) in tasks.iter().enumerate() {
            if interrupted.load(Ordering::Relaxed) {
                return;
            }
            let params = &task.fingerprint.params;
            // Out of the map while it runs: a stage that panicked or failed is not used again.
            let kept = self.loaded.remove(entry.kind).filter(|(of, _)| of == params);
            let mut stage = kept.map(|(_, stage)| stage);
            let started = Instant::now();
            let outcome = guarded(entry, &mut stage, task, reader, &self.context);
            if let (Ok(_), Some(stage)) = (&outcome, stage) {
                self.loaded.insert(entry.kind, (params.clone(), stage));
            }
            done(place, outcome, started.elapsed().as_secs_f64());
        }
    }

    fn side_by_side(
        &self,
        entry: &StageEntry,
        tasks: &[UnitTask],
        reader: &dyn BlobReader,
        interrupted: &AtomicBool,
        done: &mut Done<'_>,
    ) {
        let next = AtomicUsize::new(0);
        let (sender, receiver) = mpsc::sync_channel(self.jobs);
        std::thread::scope(|scope| {
            for _ in 0..self.jobs.min(tasks.len()) {
                let (sender, next, context) = (sender.clone(), &next, self.context.clone());
                scope.spawn(move || {
                    let mut stage = None;
                    loop {
                        let place = next.fetch_add(1, Ordering::Relaxed);
                        let Some(task) = tasks.get(place).filter(|_| !interrupted.load(Ordering::Relaxed)) else {
                            break;
                        };
                        let started = Instant::now();
                        let outcome = guarded(entry, &mut stage, task, reader, &context);
                        if outcome.is_err() {
                            stage = None;
                        }
                        if sender.send((place, outcome, started.elapsed().as_secs_f64())).is_err() {
                            break;
                        }
                    }
                });
            }
            drop(sender);
            for (place, outcome, seconds) in receiver {
                done(place, outcome, seconds);
            }
        });
    }
}

impl Executor for LocalExecutor {
    fn execute(
        &mut self,
        entry: &StageEntry,
        tasks: &[UnitTask],
        reader: &dyn BlobReader,
        interrupted: &AtomicBool,
        done: &mut Done<'_>,
    ) {
        match entry.parallel {
            true => self.side_by_side(entry, tasks, reader, interrupted, done),
            false => self.one_by_one(entry, tasks, reader, interrupted, done),
        }
    }
}

/// Loads the stage if need be and runs one unit; a panic becomes that unit's error.
fn guarded(
    entry: &StageEntry,
    stage: &mut Option<Box<dyn DynStage>>,
    task: &UnitTask,
    reader: &dyn BlobReader,
    context: &StageContext,
) -> anyhow::Result<Vec<Output>> {
    let work = AssertUnwindSafe(|| {
        if stage.is_none() {
            *stage = Some((entry.load)(&task.fingerprint.params, context)?);
        }
        let input = UnitInput { label: &task.label, fingerprint: &task.fingerprint, reader };
        match stage {
            Some(stage) => stage.run(&input),
            None => Ok(Vec::new()),
        }
    });
    let outcome = catch_unwind(work).unwrap_or_else(|panic| Err(anyhow::anyhow!("panicked: {}", message(&*panic))));
    outcome.map_err(|error| match error.is::<crate::stage::Interrupted>() {
        true => error,
        false => error.context(format!("unit `{}`", task.label)),
    })
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
}
