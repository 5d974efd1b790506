//! Executors: where units compute. A unit needs its fingerprint and something to read blobs from, nothing else.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::artifact::{ArtifactRef, Fingerprint};
use crate::cache::locked;
use crate::pipeline::graph::UnitIdx;
use crate::stage::guard::{OutOfMemory, guarded};
use crate::stage::{BlobReader, Device, DynStage, Interrupted, Output, StageContext, StageEntry, UnitInput};

/// Units that wait for each worker, so that it need not wait for them.
const AHEAD: usize = 16;

/// What a unit reads and where its outputs go.
pub trait UnitIo: BlobReader {
    /// Stores what a unit gave that took so many seconds.
    fn publish(&self, outputs: Vec<Output>, seconds: f64) -> anyhow::Result<Vec<ArtifactRef>>;
}

/// A unit to execute.
#[derive(Clone)]
pub struct UnitTask {
    pub unit: UnitIdx,
    pub entry: StageEntry,
    pub label: String,
    pub fingerprint: Fingerprint,
    pub io: Arc<dyn UnitIo>,
}

/// What became of a task.
#[derive(Debug)]
pub struct Finished {
    pub unit: UnitIdx,
    pub outcome: anyhow::Result<Vec<ArtifactRef>>,
    pub seconds: f64,
    /// Of the worker that ran it.
    pub device: Device,
}

/// Executes tasks that do not need each other.
pub trait Executor {
    /// One more unit can be taken now, of a stage whose units run one beside the other or of another.
    fn has_room(&self, is_parallel: bool) -> bool;
    /// Units of both kinds may run at once.
    fn overlaps(&self) -> bool;
    fn start(&mut self, task: UnitTask);
    /// Takes back what has not begun.
    fn withdraw(&mut self);
    /// Waits for the next that finishes; `None` if nothing runs.
    fn next(&mut self) -> Option<Finished>;
    /// The same without waiting; `None` if none has finished.
    fn try_next(&mut self) -> Option<Finished>;
}

/// Threads of this process that nobody waits for are at work.
static HAS_LEFT_THREADS: AtomicBool = AtomicBool::new(false);

/// Units that ran past their limit may still compute: the process should end without taking down what they use.
pub fn has_left_threads() -> bool {
    HAS_LEFT_THREADS.load(Ordering::Relaxed)
}

/// A unit ran longer than it may. Its thread is left behind: it cannot be stopped.
#[derive(Debug, thiserror::Error)]
#[error("ran past its limit of {0:?}")]
pub struct PastLimit(pub Duration);

/// Threads of this process: one for each device (k for one named k times), for stages that use all of it or all cores,
/// and `jobs` for the others.
///
/// On a CPU the two kinds take turns; beside a GPU they run at once.
pub struct LocalExecutor {
    context: StageContext,
    devices: Vec<Device>,
    limit: Option<Duration>,
    /// Of stages that use all cores themselves, of the others.
    lanes: [Lane; 2],
    lane_of: HashMap<UnitIdx, usize>,
    sender: mpsc::Sender<Finished>,
    receiver: mpsc::Receiver<Finished>,
}

/// Workers that take tasks from one queue.
struct Lane {
    n_workers: usize,
    queue: Arc<Queue>,
    workers: Vec<Worker>,
    n_tasks: usize,
}

struct Worker {
    work: Arc<Mutex<Work>>,
    thread: JoinHandle<()>,
    /// No other worker of the lane has it. Devices are given to slots in turn.
    slot: usize,
}

#[derive(Default)]
struct Queue {
    state: Mutex<QueueState>,
    changed: Condvar,
}

#[derive(Default)]
struct QueueState {
    tasks: VecDeque<UnitTask>,
    is_closed: bool,
    /// Workers that wait for a task: no other need be woken.
    n_idle: usize,
}

/// What a worker does.
#[derive(Default)]
struct Work {
    unit: Option<(UnitIdx, Instant)>,
    /// It ran past the limit; nobody waits for it.
    is_left: bool,
}

impl LocalExecutor {
    /// `jobs`: workers of stages whose units run one beside the other.
    pub fn new(context: StageContext, jobs: usize) -> Self {
        let (sender, receiver) = mpsc::channel();
        let lane = |n_workers| Lane { n_workers, queue: Arc::default(), workers: Vec::new(), n_tasks: 0 };
        let devices = vec![context.device];
        let lanes = [lane(1), lane(jobs.max(1))];
        Self { context, devices, limit: None, lanes, lane_of: HashMap::new(), sender, receiver }
    }

    /// Instead of the context's device these take units that use all of one: each as many at a time as it is named.
    pub fn on(mut self, devices: Vec<Device>) -> Self {
        if !devices.is_empty() {
            self.lanes[0].n_workers = devices.len();
            self.devices = devices;
        }
        self
    }

    /// A unit that runs longer fails.
    pub fn with_limit(mut self, limit: Option<Duration>) -> Self {
        self.limit = limit;
        self
    }

    /// Fails the units that ran too long; gives how long none of the others can do so.
    fn look_at_limits(&mut self, limit: Duration) -> Duration {
        let mut next = limit;
        for at in 0..self.lanes.len() {
            for place in (0..self.lanes[at].workers.len()).rev() {
                let mut work = locked(&self.lanes[at].workers[place].work);
                let Some((unit, started)) = work.unit else { continue };
                let left = limit.saturating_sub(started.elapsed());
                if left > Duration::ZERO {
                    next = next.min(left);
                    continue;
                }
                (work.is_left, work.unit) = (true, None);
                HAS_LEFT_THREADS.store(true, Ordering::Relaxed);
                drop(work);
                let slot = self.lanes[at].workers.remove(place).slot;
                let device = self.device_of(slot);
                self.hire(at);
                let (outcome, seconds) = (Err(PastLimit(limit).into()), limit.as_secs_f64());
                let _ = self.sender.send(Finished { unit, outcome, seconds, device });
            }
        }
        next.max(Duration::from_millis(1))
    }

    fn taken(&mut self, finished: Finished) -> Finished {
        if let Some(at) = self.lane_of.remove(&finished.unit) {
            self.lanes[at].n_tasks -= 1;
        }
        finished
    }

    fn device_of(&self, slot: usize) -> Device {
        self.devices[slot % self.devices.len()]
    }

    fn hire(&mut self, at: usize) {
        let lane = &self.lanes[at];
        let is_free = |slot: &usize| lane.workers.iter().all(|worker| worker.slot != *slot);
        let slot = (0..lane.n_workers).find(is_free).unwrap_or(0);
        let context = StageContext { device: self.device_of(slot), ..self.context.clone() };
        let (work, queue, sender) = (Arc::new(Mutex::new(Work::default())), lane.queue.clone(), self.sender.clone());
        let own = work.clone();
        let thread = std::thread::spawn(move || worker(&queue, &context, &sender, &own));
        self.lanes[at].workers.push(Worker { work, thread, slot });
    }
}

impl Executor for LocalExecutor {
    fn has_room(&self, is_parallel: bool) -> bool {
        let (own, other) = (&self.lanes[usize::from(is_parallel)], &self.lanes[usize::from(!is_parallel)]);
        let room = if is_parallel { own.n_workers * AHEAD } else { own.n_workers };
        own.n_tasks < room && (other.n_tasks == 0 || self.overlaps())
    }

    fn overlaps(&self) -> bool {
        self.devices.iter().any(|device| *device != Device::Cpu)
    }

    fn start(&mut self, task: UnitTask) {
        let at = usize::from(task.entry.parallel);
        while self.lanes[at].workers.len() < self.lanes[at].n_workers {
            self.hire(at);
        }
        self.lane_of.insert(task.unit, at);
        let lane = &mut self.lanes[at];
        lane.n_tasks += 1;
        lane.queue.push(task);
    }

    fn withdraw(&mut self) {
        for lane in &mut self.lanes {
            for task in locked(&lane.queue.state).tasks.drain(..) {
                self.lane_of.remove(&task.unit);
                lane.n_tasks -= 1;
            }
        }
    }

    fn next(&mut self) -> Option<Finished> {
        if self.lane_of.is_empty() {
            return None;
        }
        loop {
            let finished = match self.limit {
                None => self.receiver.recv().ok()?,
                Some(limit) => {
                    let wait = self.look_at_limits(limit);
                    match self.receiver.recv_timeout(wait) {
                        Err(RecvTimeoutError::Timeout) => continue,
                        received => received.ok()?,
                    }
                }
            };
            return Some(self.taken(finished));
        }
    }

    fn try_next(&mut self) -> Option<Finished> {
        let finished = self.receiver.try_recv().ok()?;
        Some(self.taken(finished))
    }
}

impl Drop for LocalExecutor {
    fn drop(&mut self) {
        self.withdraw();
        for lane in &mut self.lanes {
            locked(&lane.queue.state).is_closed = true;
            lane.queue.changed.notify_all();
            for Worker { work, thread, slot: _ } in lane.workers.drain(..) {
                // With a limit, what is at work still may never end.
                let is_idle = locked(&work).unit.is_none();
                if self.limit.is_none() || is_idle {
                    let _ = thread.join();
                } else {
                    HAS_LEFT_THREADS.store(true, Ordering::Relaxed);
                }
            }
        }
    }
}

/// Takes tasks until the queue is closed.
fn worker(queue: &Queue, context: &StageContext, sender: &mpsc::Sender<Finished>, work: &Mutex<Work>) {
    // The last stage of each kind with its parameters, so that units which share them load weights once.
    let mut loaded: HashMap<&'static str, (String, Box<dyn DynStage>)> = HashMap::new();
    while let Some(task) = queue.pop() {
        let unit = task.unit;
        let started = Instant::now();
        locked(work).unit = Some((unit, started));
        let outcome = match context.is_interrupted() {
            true => Err(Interrupted.into()),
            false => {
                let params = &task.fingerprint.params;
                // Out of the map while it runs: a stage that panicked or failed is not used again.
                let kept = loaded.remove(task.entry.kind).filter(|(of, _)| of == params);
                let mut stage = kept.map(|(_, stage)| stage);
                let mut outcome = run_unit(&mut stage, &task, context);
                // What other stages keep loaded may be what is in the way.
                if !loaded.is_empty() && outcome.as_ref().is_err_and(|error| error.is::<OutOfMemory>()) {
                    loaded.clear();
                    stage = None;
                    outcome = run_unit(&mut stage, &task, context);
                }
                if let (Ok(_), Some(stage)) = (&outcome, stage) {
                    loaded.insert(task.entry.kind, (params.clone(), stage));
                }
                outcome
            }
        };
        let seconds = started.elapsed().as_secs_f64();
        let mut work = locked(work);
        if work.is_left {
            return;
        }
        work.unit = None;
        // Published under this lock: what runs past its limit is not stored after it was reported.
        let outcome = outcome.and_then(|outputs| task.io.publish(outputs, seconds));
        if sender.send(Finished { unit, outcome, seconds, device: context.device }).is_err() {
            return;
        }
    }
}

impl Queue {
    /// The next task, when there is one; `None` when the queue is closed.
    fn pop(&self) -> Option<UnitTask> {
        let mut state = locked(&self.state);
        loop {
            if let Some(task) = state.tasks.pop_front() {
                return Some(task);
            }
            if state.is_closed {
                return None;
            }
            state.n_idle += 1;
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.n_idle -= 1;
        }
    }

    fn push(&self, task: UnitTask) {
        let mut state = locked(&self.state);
        state.tasks.push_back(task);
        let is_awaited = state.n_idle > 0;
        drop(state);
        if is_awaited {
            self.changed.notify_one();
        }
    }
}

/// Loads the stage if need be and runs one unit.
fn run_unit(
    stage: &mut Option<Box<dyn DynStage>>,
    task: &UnitTask,
    context: &StageContext,
) -> anyhow::Result<Vec<Output>> {
    let outcome = guarded(|| {
        let stage = match stage {
            Some(stage) => stage,
            None => stage.insert((task.entry.load)(&task.fingerprint.params, context)?),
        };
        stage.run(&UnitInput { label: &task.label, fingerprint: &task.fingerprint, reader: &*task.io })
    });
    outcome.map_err(|error| match error.is::<Interrupted>() {
        true => error,
        false => error.context(format!("unit `{}`", task.label)),
    })
}
