//! What may go wrong around the engine: processes that are killed, files that are torn, a full disk, a crowd.
//!
//! `S2C_FAULTS` is the number of kills, 20 if it is not set; `make test-faults` has 200.

#![allow(clippy::print_stdout, reason = "counts of the kills")]

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use s2c_pipe::artifact::{ArtifactRef, Fingerprint, Manifest};
use s2c_pipe::cache::Cache;
use s2c_pipe::data::FileMemo;
use s2c_pipe::digest::BlobDigest;
use s2c_pipe::pipeline::graph::{Graph, InputSet, Source, Unit, UnitIdx};
use s2c_pipe::pipeline::run::{Event, RunOptions, RunReport, run};
#[cfg(feature = "torch")]
use s2c_pipe::stage::guard::OutOfMemory;
use s2c_pipe::stage::{Device, Output, Registry, Stage, StageContext, StageEntry, UnitInput};

use crate::engine::{ConcatParams, Workspace, executed, executor, open, params, pipeline, registry};

/// Units of [`child_pipeline`]: enough that the table of records is written at its end.
const N_UNITS: usize = 302;

/// A unit may take, where a test asks for a limit.
const LIMIT: Duration = Duration::from_millis(500);

/// Not a test of its own: the process that others start. It tells of each unit once it is done.
#[test]
fn child_process() {
    let Some(folder) = std::env::var_os("S2C_TEST_CHILD") else { return };
    let report = PathBuf::from(std::env::var_os("S2C_TEST_REPORT").unwrap());
    let report = fs::File::options().create(true).append(true).open(report).unwrap();
    let (graph, last) = child_pipeline();
    let told = |event: Event<'_>| {
        if let Event::UnitFinished { label, .. } = event {
            (&report).write_all(format!("{label}\n").as_bytes()).unwrap();
        }
    };
    let cache = open(Path::new(&folder));
    let done = run_with(&cache, &registry(), (&graph, last), Asked { observer: &told, ..Asked::default() });
    assert!(done.failed.is_empty(), "{:?}", done.failed);
}

pub(crate) fn child_pipeline() -> (Graph, UnitIdx) {
    let values: Vec<String> = (0..N_UNITS - 2).map(|i| format!("v{i}")).collect();
    let values: Vec<&str> = values.iter().map(String::as_str).collect();
    pipeline(&values, &ConcatParams { sleep: 1, ..params(".") }, "!")
}

/// The process, to be started.
pub(crate) fn child(cache: &Path, report: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "faults::child_process"]).env("S2C_TEST_CHILD", cache).env("S2C_TEST_REPORT", report);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// What a run is asked for beside its target.
struct Asked<'a> {
    observer: &'a dyn Fn(Event<'_>),
    keep_going: bool,
    retries: usize,
    limit: Option<Duration>,
    devices: Vec<Device>,
}

impl Default for Asked<'_> {
    fn default() -> Self {
        Self { observer: &|_| (), keep_going: false, retries: 0, limit: None, devices: Vec::new() }
    }
}

fn run_with(cache: &Cache, registry: &Registry, (graph, target): (&Graph, UnitIdx), asked: Asked<'_>) -> RunReport {
    let interrupted = Arc::new(AtomicBool::new(false));
    let Asked { observer, keep_going, retries, limit, devices } = asked;
    let options = RunOptions {
        targets: &[target],
        restore: false,
        keep_going,
        retries,
        interrupted: interrupted.clone(),
        clock: &|| 0,
        made_by: "test",
        observer,
    };
    let mut executor = executor(cache.folder().join("scratch"), &interrupted).on(devices).with_limit(limit);
    run(graph, cache, registry, &mut executor, &options).unwrap()
}

/// A unit that reads what all of these give.
fn joined(graph: &mut Graph, units: &[UnitIdx]) -> UnitIdx {
    let of = |(i, unit): (usize, &UnitIdx)| (i.to_string(), Source::Output { unit: *unit, name: "out" });
    let all = graph.add_set(InputSet { members: units.iter().enumerate().map(of).collect() });
    let params = serde_json::to_string(&params("")).unwrap().into();
    graph.add(Unit { stage: "concat", version: 1, item: "all".into(), params, inputs: vec![("all", all)] })
}

/// Labels that were reported done: none twice.
fn reported(report: &Path) -> BTreeSet<String> {
    let text = fs::read_to_string(report).unwrap_or_default();
    let labels: BTreeSet<String> = text.lines().map(str::to_owned).collect();
    assert_eq!(labels.len(), text.lines().count(), "a unit was done twice");
    labels
}

/// What each unit gives where nothing goes wrong.
fn undisturbed() -> &'static [Vec<ArtifactRef>] {
    static OUTPUTS: OnceLock<Vec<Vec<ArtifactRef>>> = OnceLock::new();
    OUTPUTS.get_or_init(|| {
        let (graph, last) = child_pipeline();
        let report = Workspace::new().run(&graph, last);
        (0..graph.len()).map(|unit| report.outcomes.outputs(unit)).collect()
    })
}

/// Finishes what a disturbed cache has begun; all is as in an undisturbed one, and nothing that was reported runs again.
#[track_caller]
fn ends_well(workspace: &Workspace, report: &Path) {
    let (graph, last) = child_pipeline();
    let before = reported(report);
    let status = child(&workspace.cache, report).status().unwrap();
    assert!(status.success());
    let labels = reported(report);
    assert!(labels.is_superset(&before) && labels.len() <= N_UNITS);
    let ended = workspace.run(&graph, last);
    assert_eq!(ended.n_executed(), 0);
    for (unit, expected) in undisturbed().iter().enumerate() {
        assert_eq!(ended.outcomes.outputs(unit), *expected);
    }
    let verified = workspace.open().verify().unwrap();
    assert!(verified.corrupt.is_empty() && verified.incomplete.is_empty(), "{verified:?}");
}

#[test]
fn killed_at_random_moments() {
    let n_kills: u64 = std::env::var("S2C_FAULTS").map_or(20, |n| n.parse().unwrap());
    let whole = Workspace::new();
    let started = Instant::now();
    assert!(child(&whole.cache, &whole.dir.path().join("report")).status().unwrap().success());
    let whole_ms = started.elapsed().as_millis() as u64;

    let mut workspace = Workspace::new();
    let mut report = workspace.dir.path().join("report");
    let mut random = 1u64;
    let (mut n_done, mut n_caches) = (0, 1);
    for _ in 0..n_kills {
        if reported(&report).len() == N_UNITS {
            // Done in spite of the kills: from the start again.
            ends_well(&workspace, &report);
            workspace = Workspace::new();
            report = workspace.dir.path().join("report");
            n_caches += 1;
        }
        random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let mut child = child(&workspace.cache, &report).spawn().unwrap();
        std::thread::sleep(Duration::from_millis((random >> 33) % (whole_ms + whole_ms / 10)));
        let _ = child.kill(); // SIGKILL
        child.wait().unwrap();
        n_done += usize::from(!reported(&report).is_empty());
    }
    ends_well(&workspace, &report);
    assert!(n_done > 0, "no kill came after a unit was done");
    println!("{n_kills} kills in {n_caches} caches, {n_done} of them after units were done");
}

#[test]
fn a_crowd_on_one_cache_does_each_unit_once() {
    for n in [2, 8] {
        let workspace = Workspace::new();
        let report = workspace.dir.path().join("report");
        let crowd: Vec<_> = (0..n).map(|_| child(&workspace.cache, &report).spawn().unwrap()).collect();
        crowd.into_iter().for_each(|mut child| assert!(child.wait().unwrap().success()));
        assert_eq!(reported(&report).len(), N_UNITS);
        ends_well(&workspace, &report);
    }
}

#[test]
fn a_full_disk_loses_nothing_and_the_next_run_goes_on() {
    // Files end at so many blocks: those of blobs, the log, or sled's.
    for blocks in [0, 1, 16, 200] {
        let workspace = Workspace::new();
        let report = workspace.dir.path().join("report");
        open(&workspace.cache);
        let plain = child(&workspace.cache, &report);
        let mut limited = Command::new("sh");
        limited.args(["-c", &format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$@\""), "sh"]);
        limited.arg(plain.get_program()).args(plain.get_args()).stdout(Stdio::null()).stderr(Stdio::null());
        limited.envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let status = limited.status().unwrap();
        assert!(blocks > 16 || !status.success(), "the limit of {blocks} blocks was not felt");
        ends_well(&workspace, &report);
    }
}

#[test]
fn a_torn_flipped_or_lost_index_costs_no_unit() {
    let workspace = Workspace::new();
    let report = workspace.dir.path().join("report");
    assert!(child(&workspace.cache, &report).status().unwrap().success());
    // A short run leaves sled to the next that asks it.
    Cache::open(&workspace.cache, "test", &|_| true).unwrap().reindex().unwrap();
    let index = workspace.cache.join("index");
    let files = ["units", "sled/db", "sled/conf"].map(|name| index.join(name));
    for (file, good) in files.iter().map(|file| (file, fs::read(file).unwrap())) {
        let mut flipped = good.clone();
        flipped[good.len() / 2] ^= 64;
        for bad in [&good[..good.len() / 2], &flipped] {
            fs::write(file, bad).unwrap();
            ends_well(&workspace, &report);
        }
        fs::remove_file(file).unwrap();
        ends_well(&workspace, &report);
    }
    fs::remove_dir_all(&index).unwrap();
    ends_well(&workspace, &report);
}

#[test]
fn a_truncated_blob_is_made_again() {
    let workspace = Workspace::new();
    let pipeline = pipeline(&["a", "b"], &params("."), "!");
    let text = workspace.counts(&pipeline).1;
    fs::write(workspace.blob("a.b.|!"), "a.b").unwrap();
    assert_eq!(workspace.counts(&pipeline), (executed(&[("concat", 1)]), text));
}

#[test]
fn a_stage_that_hangs_fails_at_its_limit_and_the_rest_goes_on() {
    let workspace = Workspace::new();
    let mut graph = Graph::default();
    let each = |graph: &mut Graph, item: &str, sleep| {
        let params = serde_json::to_string(&ConcatParams { sleep, ..params(item) }).unwrap().into();
        let inputs = vec![("value", Source::value(item.as_bytes()))];
        graph.add(Unit { stage: "concat_each", version: 1, item: item.into(), params, inputs })
    };
    let units = [each(&mut graph, "slow", 3_600_000), each(&mut graph, "b", 0), each(&mut graph, "c", 0)];
    let last = joined(&mut graph, &units);
    let cache = workspace.open();
    // It does not wait for the unit: that would take an hour.
    let report = run_with(
        &cache,
        &registry(),
        (&graph, last),
        Asked { keep_going: true, limit: Some(LIMIT), ..Asked::default() },
    );
    let [(label, error)] = &report.failed[..] else { panic!("{:?}", report.failed) };
    assert_eq!((label.as_str(), error.to_string().as_str()), ("concat_each slow", "ran past its limit of 500ms"));
    assert_eq!((report.n_executed(), report.blocked), (2, vec!["concat all".to_owned()]));
}

/// Fails as often as its input says, then gives it back.
struct Flaky;

static N_FAILED: AtomicUsize = AtomicUsize::new(0);

impl Stage for Flaky {
    const KIND: &'static str = "flaky";
    const VERSION: u64 = 1;
    const PARALLEL: bool = true;
    type Params = ();

    fn load((): (), _: &StageContext) -> anyhow::Result<Self> {
        Ok(Self)
    }

    fn run(&mut self, input: &UnitInput<'_>) -> anyhow::Result<Vec<Output>> {
        let bytes = input.bytes("value")?;
        anyhow::ensure!(N_FAILED.fetch_add(1, Ordering::Relaxed) >= usize::from(bytes[0]), "not yet");
        Ok(vec![Output::new("out", bytes.to_vec())])
    }
}

#[test]
fn a_unit_that_fails_is_tried_again_as_often_as_asked() {
    let registry = Registry::default().with(StageEntry::of::<Flaky>());
    for (n_faults, retries, n_failed) in [(2u8, 2, 0), (2, 1, 1), (1, 0, 1)] {
        N_FAILED.store(0, Ordering::Relaxed);
        let workspace = Workspace::new();
        let mut graph = Graph::default();
        let inputs = vec![("value", Source::value([n_faults]))];
        let unit = Unit { stage: "flaky", version: 1, item: "x".into(), params: "null".into(), inputs };
        let target = graph.add(unit);
        let cache = workspace.open();
        let report = run_with(&cache, &registry, (&graph, target), Asked { retries, ..Asked::default() });
        assert_eq!((report.failed.len(), report.n_executed()), (n_failed, 1 - n_failed));
    }
}

/// Holds its device for a while and gives its name.
struct Holds {
    device: Device,
}

static HELD: Mutex<Vec<Device>> = Mutex::new(Vec::new());

impl Stage for Holds {
    const KIND: &'static str = "holds";
    const VERSION: u64 = 1;
    const PARALLEL: bool = false;
    type Params = ();

    fn load((): (), context: &StageContext) -> anyhow::Result<Self> {
        Ok(Self { device: context.device })
    }

    fn run(&mut self, _: &UnitInput<'_>) -> anyhow::Result<Vec<Output>> {
        let held = || HELD.lock().unwrap();
        held().push(self.device);
        // Until another is held as well.
        let started = Instant::now();
        while held().len() < 2 && started.elapsed() < Duration::from_millis(200) {
            std::thread::sleep(Duration::from_millis(5));
        }
        let (beside, of_it) = {
            let held = held();
            (held.len(), held.iter().filter(|device| **device == self.device).count())
        };
        std::thread::sleep(Duration::from_millis(20));
        let mut held = held();
        let own = held.iter().position(|device| *device == self.device).unwrap();
        held.remove(own);
        Ok(vec![Output::new("out", format!("{:?} {of_it} of {beside}", self.device).into_bytes())])
    }
}

#[test]
fn a_device_takes_as_many_units_at_a_time_as_it_is_named() {
    let registry = registry().with(StageEntry::of::<Holds>());
    for (devices, at_once, makers) in [
        ([0, 1], &["Cuda(0) 1 of 2", "Cuda(1) 1 of 2"][..], &["test, cuda:0", "test, cuda:1"][..]),
        ([0, 0], &["Cuda(0) 2 of 2"], &["test, cuda:0"]),
    ] {
        let workspace = Workspace::new();
        let mut graph = Graph::default();
        let units: Vec<UnitIdx> = (0..6)
            .map(|i| {
                let inputs = vec![("value", Source::value([i]))];
                graph.add(Unit { stage: "holds", version: 1, item: i.to_string(), params: "null".into(), inputs })
            })
            .collect();
        let last = joined(&mut graph, &units);
        let devices = devices.map(Device::Cuda).to_vec();
        let cache = workspace.open();
        let report = run_with(&cache, &registry, (&graph, last), Asked { devices, ..Asked::default() });
        assert!(report.failed.is_empty(), "{:?}", report.failed);
        let text = |unit| {
            let digest = report.output(unit, "out").unwrap().digest;
            String::from_utf8(cache.store().read(&digest).unwrap()).unwrap()
        };
        let held: BTreeSet<String> = units.into_iter().map(text).collect();
        let is_alone = |text: &String| text.ends_with("1 of 1"); // at the end no other is left to wait for
        let seen: Vec<&String> = held.iter().filter(|text| !is_alone(text)).collect();
        assert_eq!(seen, at_once);
        let made_by = cache.manifests().unwrap().into_iter().map(|manifest| manifest.made_by);
        assert_eq!(Vec::from_iter(made_by.collect::<BTreeSet<String>>()), makers);
    }
}

/// Asks for 4 PiB, more than any address space has.
#[cfg(feature = "torch")]
struct Greedy;

#[cfg(feature = "torch")]
impl Stage for Greedy {
    const KIND: &'static str = "greedy";
    const VERSION: u64 = 1;
    const PARALLEL: bool = false;
    type Params = ();

    fn load((): (), _: &StageContext) -> anyhow::Result<Self> {
        Ok(Self)
    }

    fn run(&mut self, _: &UnitInput<'_>) -> anyhow::Result<Vec<Output>> {
        let all = tch::Tensor::zeros([1 << 50], (tch::Kind::Float, tch::Device::Cpu));
        Ok(vec![Output::new("out", all.size().iter().flat_map(|n| n.to_le_bytes()).collect())])
    }
}

#[cfg(feature = "torch")]
#[test]
fn a_unit_without_enough_memory_says_so_and_is_alone_in_it() {
    let workspace = Workspace::new();
    let mut graph = Graph::default();
    let greedy = Unit { stage: "greedy", version: 1, item: "x".into(), params: "null".into(), inputs: vec![] };
    let greedy = graph.add(greedy);
    let registry = registry().with(StageEntry::of::<Greedy>());
    let report = run_with(&workspace.open(), &registry, (&graph, greedy), Asked::default());
    let [(label, error)] = &report.failed[..] else { panic!("{:?}", report.failed) };
    let chain: Vec<String> = error.chain().map(ToString::to_string).collect();
    let said = "out of memory: you tried to allocate 4503599627370496 bytes";
    assert_eq!((label.as_str(), &chain[..]), ("greedy x", &["unit `greedy x`".to_owned(), said.to_owned()][..]));
    assert!(error.is::<OutOfMemory>());
    // The process goes on.
    let (graph, last) = pipeline(&["a", "b"], &params("."), "!");
    assert_eq!(workspace.counts(&(graph, last)).1, "a.b.|!");
}

/// Stays in memory as long as it is loaded.
struct Big;
static N_LOADED: AtomicUsize = AtomicUsize::new(0);

impl Drop for Big {
    fn drop(&mut self) {
        N_LOADED.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Stage for Big {
    const KIND: &'static str = "big";
    const VERSION: u64 = 1;
    const PARALLEL: bool = false;
    type Params = ();

    fn load((): (), _: &StageContext) -> anyhow::Result<Self> {
        N_LOADED.fetch_add(1, Ordering::Relaxed);
        Ok(Self)
    }

    fn run(&mut self, _: &UnitInput<'_>) -> anyhow::Result<Vec<Output>> {
        Ok(vec![Output::new("out", b"big".to_vec())])
    }
}

/// Fits where nothing else is.
struct Tight;

impl Stage for Tight {
    const KIND: &'static str = "tight";
    const VERSION: u64 = 1;
    const PARALLEL: bool = false;
    type Params = ();

    fn load((): (), _: &StageContext) -> anyhow::Result<Self> {
        Ok(Self)
    }

    fn run(&mut self, _: &UnitInput<'_>) -> anyhow::Result<Vec<Output>> {
        anyhow::ensure!(N_LOADED.load(Ordering::Relaxed) == 0, "CUDA out of memory. Tried to allocate 2.00 GiB");
        Ok(vec![Output::new("out", b"tight".to_vec())])
    }
}

#[test]
fn what_earlier_stages_loaded_makes_room_for_a_unit() {
    let workspace = Workspace::new();
    let mut graph = Graph::default();
    let unit = |stage, inputs| Unit { stage, version: 1, item: "x".into(), params: "null".into(), inputs };
    let big = graph.add(unit("big", vec![]));
    let tight = graph.add(unit("tight", vec![("in", Source::Output { unit: big, name: "out" })]));
    let registry = registry().with(StageEntry::of::<Big>()).with(StageEntry::of::<Tight>());
    let report = run_with(&workspace.open(), &registry, (&graph, tight), Asked::default());
    assert!(report.failed.is_empty(), "{:?}", report.failed);
    assert_eq!(report.n_executed(), 2);
}

/// Gives other bytes each time, which no stage should.
struct Counter;

impl Stage for Counter {
    const KIND: &'static str = "counter";
    const VERSION: u64 = 1;
    const PARALLEL: bool = false;
    type Params = ();

    fn load((): (), _: &StageContext) -> anyhow::Result<Self> {
        Ok(Self)
    }

    fn run(&mut self, _: &UnitInput<'_>) -> anyhow::Result<Vec<Output>> {
        static N: AtomicUsize = AtomicUsize::new(0);
        Ok(vec![Output::new("out", format!("n{}", N.fetch_add(1, Ordering::Relaxed)).into_bytes())])
    }
}

#[test]
fn a_unit_that_gives_other_bytes_when_made_again_renews_all_that_follows() {
    let registry = registry().with(StageEntry::of::<Counter>());
    let workspace = Workspace::new();
    let mut graph = Graph::default();
    let of = |unit| Source::Output { unit, name: "out" };
    let add = |graph: &mut Graph, stage, item: &str, params: &str, inputs| {
        graph.add(Unit { stage, version: 1, item: item.into(), params: params.into(), inputs })
    };
    let concat = |suffix: &str| serde_json::to_string(&params(suffix)).unwrap();
    let counter = add(&mut graph, "counter", "c", "null", vec![]);
    let middle = add(&mut graph, "concat", "middle", &concat("."), vec![("x", of(counter))]);
    let last = add(&mut graph, "concat", "last", &concat("!"), vec![("x", of(middle))]);
    let text = |report: &RunReport| {
        let digest = report.output(last, "out").unwrap().digest;
        String::from_utf8(workspace.open().store().read(&digest).unwrap()).unwrap()
    };
    let run = || run_with(&workspace.open(), &registry, (&graph, last), Asked::default());
    assert_eq!(text(&run()), "n0.!");
    ["n0", "n0.", "n0.!"].iter().for_each(|blob| fs::remove_file(workspace.blob(blob)).unwrap());
    let report = run();
    assert_eq!((report.n_executed(), text(&report)), (3, "n1.!".to_owned()));
    assert_eq!(run().n_executed(), 0);
}

#[test]
fn odd_names_are_names() {
    let workspace = Workspace::new();
    let folder = workspace.dir.path();
    let names = ["a b", "line\nbreak", "\u{e4}\u{1f600}", "quote\"'", "-dash", "tab\t"];
    for name in names {
        fs::write(folder.join(name), name).unwrap();
        assert_eq!(workspace.open().digest(&folder.join(name)).unwrap(), BlobDigest::of(name.as_bytes()));
    }
    let mut graph = Graph::default();
    let params: Arc<str> = serde_json::to_string(&params("")).unwrap().into();
    let each = |name: &&str| {
        let file = Source::File { path: folder.join(name).into(), digest: BlobDigest::of(name.as_bytes()) };
        let inputs = vec![("file", file)];
        let (stage, params) = ("concat_each", params.clone());
        let unit = graph.add(Unit { stage, version: 1, item: (*name).to_owned(), params, inputs });
        ((*name).to_owned(), Source::Output { unit, name: "out" })
    };
    let members = names.iter().map(each).collect();
    let all = graph.add_set(InputSet { members });
    let last = graph.add(Unit { stage: "concat", version: 1, item: "all".into(), params, inputs: vec![("all", all)] });
    let pipeline = (graph, last);
    assert_eq!(workspace.counts(&pipeline).1, names.concat());
    assert_eq!(workspace.counts(&pipeline).0, vec![]);
}

#[test]
fn files_that_cannot_be_read_are_named() {
    let workspace = Workspace::new();
    let path = workspace.dir.path().join("loop");
    symlink(&path, &path).unwrap();
    let error = format!("{:#}", workspace.open().digest(&path).unwrap_err());
    assert!(error.contains(&*path.to_string_lossy()) && error.contains("symbolic link"), "{error}");
}

/// A clock that was set back leaves files of the future: they are never remembered, so no edit is missed.
#[test]
fn a_file_of_the_future_is_hashed_each_time() {
    let workspace = Workspace::new();
    let path = workspace.dir.path().join("file");
    let future = SystemTime::now() + Duration::from_secs(3600);
    for text in ["one", "two", "six"] {
        fs::write(&path, text).unwrap();
        fs::File::options().write(true).open(&path).unwrap().set_modified(future).unwrap();
        assert_eq!(workspace.open().digest(&path).unwrap(), BlobDigest::of(text.as_bytes()));
    }
}

fn manifest(n: usize) -> Manifest {
    let fingerprint = Fingerprint { stage: "fake".into(), version: 1, params: n.to_string(), inputs: Vec::new() };
    Manifest {
        key: fingerprint.key(),
        label: format!("fake {n}"),
        fingerprint,
        outputs: Vec::new(),
        seconds: 0.0,
        finished: 0,
        made_by: String::new(),
    }
}

/// Each process writes a log of its own, and a table of records names them by number.
#[test]
fn records_of_many_logs_are_found_where_they_stand() {
    const N_LOGS: usize = 6;
    const N: usize = 300; // so many that the table is written
    let workspace = Workspace::new();
    for log in 0..N_LOGS {
        let cache = workspace.open();
        (log * N..(log + 1) * N).for_each(|n| cache.put(&manifest(n)).unwrap());
    }
    for _ in 0..3 {
        let cache = workspace.open();
        for expected in (0..N_LOGS * N).map(manifest) {
            assert_eq!(cache.get(&expected.key).map(|found| found.label), Some(expected.label));
        }
    }
}

/// Pictures are scanned by all threads, and the first that asks for a fact opens the index.
#[test]
fn threads_that_open_the_index_at_once_lose_no_fact() {
    let workspace = Workspace::new();
    for round in 0..10u8 {
        let cache = workspace.open();
        let of = |n: u8| BlobDigest::of(&[n]);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for n in 0..round {
                        assert_eq!(cache.fact("fact", &of(n)), Some(vec![n]), "in round {round}");
                    }
                    cache.remember("fact", &of(round), &[round]);
                });
            }
        });
    }
}
