//! The engine with stages that only concatenate: what runs, what is reused, what survives.

use std::cell::RefCell;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::faults::{child, child_pipeline};
use s2c_pipe::cache::Cache;
use s2c_pipe::data::FileMemo;
use s2c_pipe::digest::BlobDigest;
use s2c_pipe::pipeline::compare::Cause;
use s2c_pipe::pipeline::executor::LocalExecutor;
use s2c_pipe::pipeline::graph::{Graph, InputSet, Source, Unit, UnitIdx};
use s2c_pipe::pipeline::plan::plan;
use s2c_pipe::pipeline::run::{Event, RunOptions, RunReport, run};
use s2c_pipe::pipeline::why::{StaleReason, why};
use s2c_pipe::stage::{Device, Output, Registry, Stage, StageContext, StageEntry, UnitInput};

/// Joins its inputs; `upper` only changes letters, so digits pass through it unchanged.
pub(crate) struct Concat<const PARALLEL: bool> {
    params: ConcatParams,
}

#[derive(serde::Serialize, serde::Deserialize, Clone)]
pub(crate) struct ConcatParams {
    pub(crate) suffix: String,
    pub(crate) upper: bool,
    /// Milliseconds of work.
    pub(crate) sleep: u64,
}

impl<const PARALLEL: bool> Stage for Concat<PARALLEL> {
    const KIND: &'static str = if PARALLEL { "concat_each" } else { "concat" };
    const VERSION: u64 = 1;
    const PARALLEL: bool = PARALLEL;
    type Params = ConcatParams;

    fn load(params: ConcatParams, _: &StageContext) -> anyhow::Result<Self> {
        Ok(Self { params })
    }

    fn run(&mut self, input: &UnitInput<'_>) -> anyhow::Result<Vec<Output>> {
        std::thread::sleep(Duration::from_millis(self.params.sleep));
        let mut text = Vec::new();
        for part in &input.fingerprint.inputs {
            match part.is_set {
                true => {
                    for (_, digest) in input.set(&part.slot)? {
                        text.extend_from_slice(&input.read(&part.slot, &digest)?);
                    }
                }
                false => text.extend_from_slice(&input.bytes(&part.slot)?),
            }
        }
        assert!(!text.starts_with(b"panic"), "asked to");
        anyhow::ensure!(!text.starts_with(b"fail"), "asked to fail");
        text.extend_from_slice(self.params.suffix.as_bytes());
        if self.params.upper {
            text.make_ascii_uppercase();
        }
        Ok(vec![Output::new("out", text)])
    }
}

pub(crate) fn registry() -> Registry {
    Registry::default().with(StageEntry::of::<Concat<true>>()).with(StageEntry::of::<Concat<false>>())
}

pub(crate) fn unit<const PARALLEL: bool>(
    item: &str,
    params: &ConcatParams,
    inputs: Vec<(&'static str, Source)>,
) -> Unit {
    let params = serde_json::to_value(params).unwrap().to_string().into();
    let (stage, version) = (Concat::<PARALLEL>::KIND, Concat::<PARALLEL>::VERSION);
    Unit { stage, version, item: item.into(), params, inputs }
}

pub(crate) fn params(suffix: &str) -> ConcatParams {
    ConcatParams { suffix: suffix.into(), upper: false, sleep: 0 }
}

pub(crate) fn of(unit: UnitIdx) -> Source {
    Source::Output { unit, name: "out" }
}

/// Each value through one `concat_each`, all of them through one `concat`, and that through another.
pub(crate) fn pipeline(values: &[&str], first: &ConcatParams, last: &str) -> (Graph, UnitIdx) {
    let mut graph = Graph::default();
    let each: Vec<_> = values
        .iter()
        .enumerate()
        .map(|(i, value)| {
            let item = format!("item{i}");
            let source = Source::value(value.as_bytes().to_vec());
            let unit = graph.add(unit::<true>(&item, first, vec![("value", source)]));
            (item, of(unit))
        })
        .collect();
    let all = graph.add_set(InputSet { members: each });
    let joined =
        graph.add(unit::<false>("join", &ConcatParams { sleep: first.sleep, ..params("|") }, vec![("all", all)]));
    let last = graph.add(unit::<false>("end", &params(last), vec![("joined", of(joined))]));
    (graph, last)
}

pub(crate) struct Workspace {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) cache: PathBuf,
}

impl Workspace {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { cache: dir.path().join("cache"), dir }
    }

    pub(crate) fn open(&self) -> Cache {
        open(&self.cache)
    }

    pub(crate) fn run(&self, graph: &Graph, target: UnitIdx) -> RunReport {
        run_in(&self.open(), graph, target, &AtomicBool::new(false).into())
    }

    /// Executed units by stage, and what the target holds.
    pub(crate) fn counts(&self, (graph, target): &(Graph, UnitIdx)) -> (Vec<(String, usize)>, String) {
        let report = self.run(graph, *target);
        assert!(report.failed.is_empty(), "{:?}", report.failed);
        let digest = report.output(*target, "out").unwrap().digest;
        let text = String::from_utf8(self.open().store().read(&digest).unwrap()).unwrap();
        (report.executed.into_iter().collect(), text)
    }

    pub(crate) fn blob(&self, text: &str) -> PathBuf {
        let hex = BlobDigest::of(text.as_bytes()).to_string();
        self.cache.join("blobs").join(&hex[..2]).join(&hex[2..])
    }
}

pub(crate) fn open(folder: &Path) -> Cache {
    Cache::open(folder, "test", &|_| true).unwrap()
}

pub(crate) fn executor(scratch: PathBuf, interrupted: &Arc<AtomicBool>) -> LocalExecutor {
    let interrupted = interrupted.clone();
    LocalExecutor::new(StageContext { device: Device::Cpu, progress: Arc::new(|_| ()), scratch, interrupted }, 2)
}

pub(crate) fn run_in(cache: &Cache, graph: &Graph, target: UnitIdx, interrupted: &Arc<AtomicBool>) -> RunReport {
    run_targets(cache, graph, &[target], false, interrupted)
}

pub(crate) fn run_targets(
    cache: &Cache,
    graph: &Graph,
    targets: &[UnitIdx],
    restore: bool,
    interrupted: &Arc<AtomicBool>,
) -> RunReport {
    let options = RunOptions {
        targets,
        restore,
        keep_going: false,
        retries: 0,
        interrupted: interrupted.clone(),
        clock: &|| 0,
        made_by: "test",
        observer: &|_| (),
    };
    let mut executor = executor(cache.folder().join("scratch"), interrupted);
    run(graph, cache, &registry(), &mut executor, &options).unwrap()
}

pub(crate) fn executed(counts: &[(&str, usize)]) -> Vec<(String, usize)> {
    counts.iter().map(|(stage, n)| ((*stage).to_owned(), *n)).collect()
}

#[test]
fn a_second_run_executes_nothing() {
    let workspace = Workspace::new();
    let pipeline = pipeline(&["a", "b"], &params("."), "!");
    let text = "a.b.|!".to_owned();
    assert_eq!(workspace.counts(&pipeline), (executed(&[("concat", 2), ("concat_each", 2)]), text.clone()));
    assert_eq!(workspace.counts(&pipeline), (vec![], text));
}

#[test]
fn a_changed_parameter_runs_only_what_is_below() {
    let workspace = Workspace::new();
    workspace.counts(&pipeline(&["a", "b"], &params("."), "!"));
    let changed = pipeline(&["a", "b"], &params("."), "?");
    assert_eq!(workspace.counts(&changed), (executed(&[("concat", 1)]), "a.b.|?".into()));
}

#[test]
fn one_more_item_runs_one_more_unit() {
    let workspace = Workspace::new();
    workspace.counts(&pipeline(&["a", "b"], &params("."), "!"));
    let more = pipeline(&["a", "b", "c"], &params("."), "!");
    assert_eq!(workspace.counts(&more), (executed(&[("concat", 2), ("concat_each", 1)]), "a.b.c.|!".into()));
}

#[test]
fn equal_bytes_above_cut_the_run_short() {
    let workspace = Workspace::new();
    workspace.counts(&pipeline(&["1", "2"], &params("."), "!"));
    // The change re-runs the first stage, whose output is the same: nothing below runs.
    let upper = ConcatParams { upper: true, ..params(".") };
    let changed = pipeline(&["1", "2"], &upper, "!");
    assert_eq!(workspace.counts(&changed), (executed(&[("concat_each", 2)]), "1.2.|!".into()));
}

#[test]
fn a_flipped_byte_is_found_made_again_and_reported() {
    let workspace = Workspace::new();
    let (graph, last) = pipeline(&["a", "b"], &params("."), "!");
    workspace.run(&graph, last);
    fs::write(workspace.blob("a."), "x.").unwrap();
    let changed = pipeline(&["a", "b", "c"], &params("."), "!");
    let report = workspace.run(&changed.0, changed.1);
    assert!(report.failed.is_empty(), "{:?}", report.failed);
    assert_eq!(report.repaired, ["concat join"]);
    assert_eq!(workspace.counts(&changed), (vec![], "a.b.c.|!".into()));
}

#[test]
fn a_deleted_blob_is_made_again_only_if_something_needs_it() {
    let workspace = Workspace::new();
    let pipeline = pipeline(&["a", "b"], &params("."), "!");
    workspace.counts(&pipeline);
    fs::remove_file(workspace.blob("a.")).unwrap();
    assert_eq!(workspace.counts(&pipeline).0, vec![]);
    fs::remove_file(workspace.blob("a.b.|!")).unwrap();
    // The end needs `join`, which is there.
    assert_eq!(workspace.counts(&pipeline), (executed(&[("concat", 1)]), "a.b.|!".into()));
    fs::remove_file(workspace.blob("a.b.|")).unwrap();
    fs::remove_file(workspace.blob("a.b.|!")).unwrap();
    assert_eq!(workspace.counts(&pipeline), (executed(&[("concat", 2), ("concat_each", 1)]), "a.b.|!".into()));
}

#[test]
fn a_failure_and_a_panic_are_that_units_alone() {
    for value in ["fail", "panic"] {
        let workspace = Workspace::new();
        let (graph, last) = pipeline(&["a", value], &params("."), "!");
        let report = workspace.run(&graph, last);
        assert_eq!(report.failed.len(), 1, "{value}");
        assert_eq!(report.failed[0].0, "concat_each item1");
        assert_eq!(report.blocked, ["concat join", "concat end"]);
        assert_eq!(report.executed.get("concat"), None);
        // What did finish is kept.
        assert_eq!(report.executed["concat_each"], 1);
    }
}

#[test]
fn an_interrupted_run_resumes() {
    let workspace = Workspace::new();
    let (graph, last) = pipeline(&["a", "b", "c", "d"], &params("."), "!");
    let cache = workspace.open();
    let interrupted = Arc::new(AtomicBool::new(false));
    let n_finished = RefCell::new(0);
    let stop_early = |event: Event<'_>| {
        if let Event::UnitFinished { .. } = event {
            *n_finished.borrow_mut() += 1;
            interrupted.store(true, Ordering::Relaxed);
        }
    };
    let options = RunOptions {
        targets: &[last],
        restore: false,
        keep_going: false,
        retries: 0,
        interrupted: interrupted.clone(),
        clock: &|| 0,
        made_by: "test",
        observer: &stop_early,
    };
    let mut executor = executor(cache.folder().join("scratch"), &interrupted);
    let report = run(&graph, &cache, &registry(), &mut executor, &options).unwrap();
    assert!(report.interrupted && report.failed.is_empty());
    let n_first = report.n_executed();
    assert!(n_first < 6);
    drop(cache);
    let report = workspace.run(&graph, last);
    assert_eq!(report.n_executed(), 6 - n_first);
}

#[test]
fn a_lost_index_and_a_torn_log_lose_nothing_finished() {
    let workspace = Workspace::new();
    let pipeline = pipeline(&["a", "b"], &params("."), "!");
    workspace.counts(&pipeline);
    fs::remove_dir_all(workspace.cache.join("index")).unwrap();
    assert_eq!(workspace.counts(&pipeline).0, vec![]);
    let log = fs::read_dir(workspace.cache.join("manifests")).unwrap().next().unwrap().unwrap().path();
    let bytes = fs::read(&log).unwrap();
    fs::write(&log, &bytes[..bytes.len() - 3]).unwrap();
    fs::remove_dir_all(workspace.cache.join("index")).unwrap();
    assert_eq!(workspace.counts(&pipeline).0, executed(&[("concat", 1)]));
}

#[test]
fn why_names_what_changed() {
    let workspace = Workspace::new();
    let (graph, last) = pipeline(&["a", "b"], &params("."), "!");
    workspace.run(&graph, last);
    let reasons = |(graph, last): &(Graph, UnitIdx)| {
        let units: Vec<UnitIdx> = (0..graph.units().len()).collect();
        why(graph, &workspace.open(), &[*last], &units, None).unwrap()
    };
    assert!(reasons(&(graph, last)).iter().all(|reason| *reason == StaleReason::Fresh));

    let changed = reasons(&pipeline(&["a", "b"], &params("."), "?"));
    let [.., end] = &changed[..] else { panic!() };
    assert_eq!(end.to_string(), r#"differs from the nearest record: parameter `suffix`: "!" -> "?""#);

    let added = pipeline(&["a", "b", "c"], &params("."), "!");
    let reason = reasons(&added);
    assert_eq!(reason[2], StaleReason::NeverRan);
    // The join says what is new in its set, before that has run.
    let StaleReason::NotAsRecorded { causes, .. } = &reason[3] else { panic!() };
    let [Cause::Items { only_right, only_left, changed, .. }] = &causes[..] else { panic!("{causes:?}") };
    assert_eq!((only_right.len(), only_left.len(), changed.len()), (1, 0, 0));
}

#[test]
fn a_plan_says_what_is_fresh_and_what_runs() {
    let workspace = Workspace::new();
    let values: Vec<String> = (0..200).map(|i| i.to_string()).collect();
    let values: Vec<&str> = values.iter().map(String::as_str).collect();
    let (graph, last) = pipeline(&values, &params("."), "!");
    let before = plan(&graph, &workspace.open(), &[last]).unwrap();
    assert_eq!(before.n_to_run(), 202);
    workspace.run(&graph, last);
    let after = plan(&graph, &workspace.open(), &[last]).unwrap();
    assert_eq!((after.n_to_run(), after.stages["concat_each"].fresh), (0, 200));
}

#[test]
fn a_changed_file_has_a_new_digest_even_at_equal_size_and_time() {
    let workspace = Workspace::new();
    let cache = workspace.open();
    let path = workspace.cache.join("file");
    fs::write(&path, "one").unwrap();
    let first = cache.digest(&path).unwrap();
    let time = fs::metadata(&path).unwrap().modified().unwrap();
    drop(cache);
    fs::write(&path, "two").unwrap();
    fs::File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
    // The file was young when it was hashed, so another process does not trust the memo.
    assert_ne!(workspace.open().digest(&path).unwrap(), first);
}

#[test]
fn a_second_process_waits_and_is_told_who_holds_the_cache() {
    let workspace = Workspace::new();
    let held = open(&workspace.cache);
    let holder = RefCell::new(String::new());
    let refused = Cache::open(&workspace.cache, "second", &|who| {
        *holder.borrow_mut() = who.to_owned();
        false
    });
    assert_eq!(*holder.borrow(), "test");
    assert!(refused.unwrap_err().to_string().contains("is in use by test"));
    let report = workspace.dir.path().join("report");
    let mut child = child(&workspace.cache, &report).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(300));
    assert!(child.try_wait().unwrap().is_none(), "it waits");
    drop(held);
    assert!(child.wait().unwrap().success());
    let (graph, last) = child_pipeline();
    assert_eq!(workspace.run(&graph, last).n_executed(), 0, "it did the work");
}
