//! Audits of finished units.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use s2c_pipe::cache::Keep;
use s2c_pipe::digest::BlobDigest;
use s2c_pipe::pipeline::audit::{AuditOptions, AuditReport, audit, built_on_drift};
use s2c_pipe::pipeline::graph::{Graph, Source, Unit, UnitIdx};
use s2c_pipe::pipeline::plan;
use s2c_pipe::pipeline::run::{Event, RunOptions, run};
use s2c_pipe::stage::{Output, Registry, Stage, StageContext, StageEntry, UnitInput};

use crate::engine::{Workspace, executor, params, pipeline, registry};

/// Other bytes each time.
struct Unsteady;

impl Stage for Unsteady {
    const KIND: &'static str = "unsteady";
    const VERSION: u64 = 1;
    const PARALLEL: bool = true;
    type Params = ();

    fn load((): (), _: &StageContext) -> anyhow::Result<Self> {
        Ok(Self)
    }

    fn run(&mut self, _: &UnitInput<'_>) -> anyhow::Result<Vec<Output>> {
        static N: AtomicUsize = AtomicUsize::new(0);
        let n = N.fetch_add(1, Ordering::Relaxed);
        Ok(vec![Output::new("same", b"same".to_vec()), Output::new("out", format!("n{n}").into_bytes())])
    }
}

fn all() -> Registry {
    registry().with(StageEntry::of::<Unsteady>())
}

fn finish(workspace: &Workspace, graph: &Graph, targets: &[UnitIdx]) {
    let interrupted = AtomicBool::new(false).into();
    let cache = workspace.open();
    let mut executor = executor(cache.folder().join("scratch"), &interrupted);
    let options = RunOptions {
        targets,
        restore: false,
        keep_going: false,
        retries: 0,
        interrupted,
        clock: &|| 1,
        made_by: "here",
        observer: &|_| (),
    };
    assert!(run(graph, &cache, &all(), &mut executor, &options).unwrap().failed.is_empty());
}

/// The report, and the labels of units that ran.
fn audited(
    workspace: &Workspace,
    graph: &Graph,
    targets: &[UnitIdx],
    share: f64,
    rng_seed: u64,
) -> (AuditReport, Vec<String>) {
    let interrupted = AtomicBool::new(false).into();
    let cache = workspace.open();
    let ran = RefCell::new(Vec::new());
    let mut executor = executor(workspace.dir.path().join("audit"), &interrupted);
    let options = AuditOptions {
        targets,
        among: None,
        share,
        rng_seed,
        interrupted,
        clock: &|| 2,
        made_by: "there",
        observer: &|event| {
            if let Event::UnitFinished { label, .. } = event {
                ran.borrow_mut().push(label.to_owned());
            }
        },
    };
    let report = audit(graph, &cache, &all(), &mut executor, &options).unwrap();
    let mut ran = ran.into_inner();
    ran.sort();
    (report, ran)
}

/// Blobs and manifests, byte for byte.
fn stored(folder: &Path, found: &mut BTreeMap<String, Vec<u8>>) {
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        match entry.path().is_dir() {
            true => stored(&entry.path(), found),
            false => drop(found.insert(entry.path().display().to_string(), fs::read(entry.path()).unwrap())),
        }
    }
}

fn truth(workspace: &Workspace) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    ["blobs", "manifests"].iter().for_each(|folder| stored(&workspace.cache.join(folder), &mut found));
    found
}

#[test]
fn what_drifts_is_named_marked_and_left_as_it_was() {
    let workspace = Workspace::new();
    let mut graph = Graph::default();
    let of = |unit, name| Source::Output { unit, name };
    let mut add = |stage, item: &str, params: &str, inputs| {
        graph.add(Unit { stage, version: 1, item: item.into(), params: params.into(), inputs })
    };
    let suffix = |text: &str| serde_json::to_string(&params(text)).unwrap();
    let unsteady = add("unsteady", "u", "null", vec![]);
    let steady = add("concat", "steady", &suffix("."), vec![("x", Source::value(*b"s"))]);
    let above = add("concat", "above", &suffix("!"), vec![("x", of(unsteady, "out"))]);
    let both = add("concat", "both", &suffix("?"), vec![("x", of(above, "out")), ("y", of(steady, "out"))]);
    let targets = [steady, both];
    finish(&workspace, &graph, &targets);
    let built = || {
        let cache = workspace.open();
        built_on_drift(&graph, &cache, &plan::finished(&graph, &cache, &targets), &[steady, above, both]).unwrap()
    };
    assert_eq!(built(), vec![Vec::<String>::new(); 3]);

    let before = truth(&workspace);
    let (report, ran) = audited(&workspace, &graph, &targets, 1.0, 0);
    assert_eq!(ran, ["concat above", "concat both", "concat steady", "unsteady u"]);
    assert_eq!((report.n_cached, report.n_agreed, report.drifted.len(), report.is_clean()), (4, 3, 1, false));
    let drift = &report.drifted[0];
    let digests = |n: &str| BlobDigest::of(n.as_bytes());
    assert_eq!(
        (drift.label.as_str(), drift.made_by.as_str(), drift.audited_by.as_str()),
        ("unsteady u", "here, cpu", "there, cpu")
    );
    assert_eq!(drift.outputs, BTreeMap::from([("out".to_owned(), (digests("n0"), digests("n1")))]));
    assert_eq!(truth(&workspace), before, "nothing cached is written");
    let label = vec!["unsteady u".to_owned()];
    assert_eq!(built(), [vec![], label.clone(), label]);

    // Made anew, other bytes are on record: the finding is of no unit that is there.
    let keep = Keep::default();
    workspace.open().collect(&keep, None, false).unwrap();
    finish(&workspace, &graph, &targets);
    assert_eq!(built(), vec![Vec::<String>::new(); 3]);
}

#[test]
fn the_seed_chooses_the_sample() {
    let workspace = Workspace::new();
    let values: Vec<String> = (0..48).map(|i| i.to_string()).collect();
    let values: Vec<&str> = values.iter().map(String::as_str).collect();
    let (graph, last) = pipeline(&values, &params("."), "!");
    finish(&workspace, &graph, &[last]);
    let sample = |share, seed| {
        let (report, ran) = audited(&workspace, &graph, &[last], share, seed);
        assert!(report.is_clean() && report.n_agreed == ran.len() && report.n_cached == 50, "{report:?}");
        ran
    };
    let first = sample(0.1, 1);
    assert_eq!((first.len(), sample(0.1, 1)), (5, first.clone()));
    assert!((2..6).any(|seed| sample(0.1, seed) != first));
    assert_eq!((sample(1e-9, 1).len(), sample(1.0, 1).len()), (1, 50));
}

#[test]
fn a_unit_without_what_it_reads_is_not_audited() {
    let workspace = Workspace::new();
    let (graph, last) = pipeline(&["a", "b"], &params("."), "!");
    finish(&workspace, &graph, &[last]);
    fs::remove_file(workspace.blob("a.")).unwrap();
    let (report, ran) = audited(&workspace, &graph, &[last], 1.0, 0);
    assert_eq!(ran, ["concat end", "concat_each item0", "concat_each item1"]);
    assert_eq!((report.n_not_there, report.n_agreed), (1, 3));
    assert!(!workspace.blob("a.").exists());
}
