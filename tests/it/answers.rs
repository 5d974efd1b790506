//! What the engine answers: what a plan costs, where two variants part, where an artifact comes from, what has run.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use s2c_pipe::cache::history::{Began, Ended, History, How};
use s2c_pipe::cache::{Cache, holder};
use s2c_pipe::digest::BlobDigest;
use s2c_pipe::pipeline::compare::{Cause, Comparison, Effect, compare};
use s2c_pipe::pipeline::cost::Cost;
use s2c_pipe::pipeline::file::load;
use s2c_pipe::pipeline::graph::{Graph, InputSet, Source, UnitIdx};
use s2c_pipe::pipeline::lineage::{NodeState, lineage};
use s2c_pipe::pipeline::past::{Shown, changed_since, normalised, restored, text};
use s2c_pipe::pipeline::plan::plan;

use crate::engine::{ConcatParams, Workspace, of, params, pipeline, unit};

#[test]
fn a_plan_costs_what_units_of_its_stages_did() {
    let workspace = Workspace::new();
    let cost = |(graph, last): &(Graph, UnitIdx)| {
        let mut plan = plan(graph, &workspace.open(), &[*last]).unwrap();
        plan.beside(|_| 2);
        Cost::of(&plan)
    };
    let first = pipeline(&["a", "b"], &params("."), "!");
    let before = cost(&first);
    assert_eq!((before.cached, before.to_run, before.seconds, before.bytes), (0, 4, None, None));
    assert_eq!(before.text(), "0 % cached; time and size unknown for concat, concat_each");

    workspace.counts(&first);
    let after = cost(&first);
    assert_eq!((after.cached_percent, after.seconds, after.bytes), (100, Some(0.0), Some(0)));
    assert_eq!(after.text(), "everything is in the cache");

    // Two new items of 2 bytes each; `join` and `end` have given 5 and 6, so 5.5 in the mean, and 11 of two.
    let more = cost(&pipeline(&["a", "b", "c", "d"], &params("."), "!"));
    assert_eq!((more.cached, more.to_run, more.cached_percent, more.bytes), (2, 4, 33, Some(2 * 2 + 2 * 6)));
    assert!(more.unknown.is_empty() && more.seconds.is_some_and(|seconds| seconds > 0.0), "{more:?}");

    // What a lost blob had is known.
    fs::remove_file(workspace.blob("a.b.|!")).unwrap();
    let lost = cost(&first);
    assert_eq!((lost.to_run, lost.bytes), (1, Some(6)));

    // An index that knew no sizes is told them from the logs.
    fs::remove_dir_all(workspace.cache.join("index")).unwrap();
    assert_eq!(cost(&first).bytes, Some(6));
}

#[test]
fn what_is_not_recorded_of_a_stage_is_said() {
    let cost = |seconds, bytes, unknown| Cost { cached: 71, to_run: 29, cached_percent: 71, seconds, bytes, unknown };
    for (cost, expected) in [
        (cost(Some(11_400.0), Some(12_000_000_000), vec![]), "71 % cached; about 3 h 10 min, 12.0 GB"),
        (
            cost(Some(60.0), Some(1), vec!["seg_epoch", "seg_infer"]),
            "71 % cached; more than 1 min 0 s, 1 B: unknown for seg_epoch, seg_infer",
        ),
        (cost(None, None, vec!["seg_epoch"]), "71 % cached; time and size unknown for seg_epoch"),
    ] {
        assert_eq!(cost.text(), expected);
    }
}

/// Items through `concat_each`, joined, ended: the variants of one graph, each with its last unit.
fn variants(of_each: &[(&[&str], ConcatParams, &str)]) -> (Graph, Vec<UnitIdx>) {
    let mut graph = Graph::default();
    let variant = |(values, first, last): &(&[&str], ConcatParams, &str)| {
        let each = values.iter().map(|value| {
            let source = Source::value(value.as_bytes().to_vec());
            (
                format!("item {value}"),
                of(graph.add(unit::<true>(&format!("item {value}"), first, vec![("value", source)]))),
            )
        });
        let members = each.collect();
        let all = graph.add_set(InputSet { members });
        let join = graph.add(unit::<false>("join", &params("|"), vec![("all", all)]));
        graph.add(unit::<false>("end", &params(last), vec![("joined", of(join))]))
    };
    let ends = of_each.iter().map(variant).collect();
    (graph, ends)
}

fn compared(workspace: &Workspace, graph: &Graph, ends: &[UnitIdx]) -> Comparison {
    let effects =
        vec![Effect::new("seed mIoU", Some(52.1), Some(58.25)), Effect::new("segmentation mIoU", None, Some(60.0))];
    compare(graph, &workspace.open(), &ends[..1], &ends[1..], effects)
}

#[test]
fn two_variants_part_at_the_first_unit_that_differs_by_itself() {
    let workspace = Workspace::new();
    let items: &[&str] = &["a", "b"];
    let (graph, ends) = variants(&[(items, params("."), "!"), (items, params(","), "!")]);
    insta::assert_snapshot!(compared(&workspace, &graph, &ends).text(["base", "comma"]), @"");
    ends.iter().for_each(|end| drop(workspace.run(&graph, *end)));
    let found = compared(&workspace, &graph, &ends);
    let blob = found.first_blob.as_ref().unwrap();
    assert_eq!(
        (&*blob.unit, blob.left, blob.right),
        ("concat_each item a", BlobDigest::of(b"a."), BlobDigest::of(b"a,"))
    );
    insta::assert_snapshot!(found.text(["base", "comma"]), @"");
}

/// `1` in capitals is `1`: the keys differ, the artifacts do not, and what reads them is one unit.
#[test]
fn other_keys_may_give_equal_artifacts() {
    let workspace = Workspace::new();
    let upper = ConcatParams { upper: true, ..params(".") };
    let (graph, ends) = variants(&[(&["1", "2"], params("."), "!"), (&["1", "2"], upper, "!")]);
    ends.iter().for_each(|end| drop(workspace.run(&graph, *end)));
    let found = compared(&workspace, &graph, &ends);
    assert_eq!((found.equal_blobs.len(), found.first_blob.is_none()), (2, true));
    insta::assert_snapshot!(found.text(["as is", "upper"]), @"");
}

#[test]
fn items_of_one_variant_alone_are_counted_and_equal_variants_are_one() {
    let workspace = Workspace::new();
    let (graph, ends) = variants(&[(&["a", "b"], params("."), "!"), (&["a", "b", "c"], params("."), "?")]);
    let found = compared(&workspace, &graph, &ends);
    let counts =
        |stage: usize| (found.stages[stage].equal, found.stages[stage].only_left, found.stages[stage].only_right);
    assert_eq!(counts(0), (2, 0, 1));
    let causes = &found.first.as_ref().unwrap().causes;
    let [Cause::Items { only_left, only_right, .. }] = &causes[..] else { panic!("{causes:?}") };
    assert_eq!((only_left.len(), &only_right[..]), (0, &["item c".to_owned()][..]));
    insta::assert_snapshot!(found.text(["two items", "three items, and a name of some length"]), @"");

    let (graph, ends) = variants(&[(&["a"], params("."), "!"), (&["a"], params("."), "!")]);
    let found = compared(&workspace, &graph, &ends);
    assert!(found.is_equal());
    insta::assert_snapshot!(found.text(["one", "the same"]), @"");
}

#[test]
fn an_artifact_is_traced_to_files_and_values() {
    let workspace = Workspace::new();
    let file = workspace.dir.path().join("weights.bin");
    fs::write(&file, "w").unwrap();
    let mut graph = Graph::default();
    let source = |text: &str| Source::value(text.as_bytes().to_vec());
    let weights = || Source::File { path: file.as_path().into(), digest: BlobDigest::of(b"w") };
    let members = ["x", "y"].map(|item| {
        let inputs = vec![("value", source(item)), ("weights", weights())];
        (item.to_owned(), of(graph.add(unit::<true>(item, &params("."), inputs))))
    });
    let all = graph.add_set(InputSet { members: members.to_vec() });
    // Three epochs, each from the one before it.
    let mut epoch =
        graph.add(unit::<false>("epoch 0", &params("0"), vec![("weights", weights()), ("all", all.clone())]));
    for (item, suffix) in [("epoch 1", "1"), ("epoch 2", "2")] {
        epoch = graph.add(unit::<false>(item, &params(suffix), vec![("checkpoint", of(epoch)), ("all", all.clone())]));
    }
    let inputs = vec![("checkpoint", of(epoch)), ("again", members[1].1.clone())];
    let last = graph.add(unit::<true>("y", &params("!"), inputs));

    let trace = || lineage(&graph, &workspace.open(), (last, "out"), "y");
    assert_eq!((trace().state, trace().digest), (NodeState::NotRun, None));
    workspace.run(&graph, last);
    let shown = |text: String| text.replace(&*workspace.dir.path().to_string_lossy(), "[DIR]");
    insta::assert_snapshot!(shown(trace().text()), @"");
    let root = trace();
    assert_eq!(root.digest, Some(BlobDigest::of(b"wx.y.0x.y.1x.y.2y.!")));
    // Not nested: each epoch stands beside the next.
    let slots: Vec<&str> = root.inputs[0].inputs.iter().map(|node| node.slot.as_str()).collect();
    assert_eq!(slots, ["all", "checkpoint", "checkpoint", "weights"]);
    fs::remove_file(workspace.blob("wx.y.0x.y.1x.y.2")).unwrap();
    assert_eq!(trace().inputs[0].state, NodeState::Gone);
    serde_json::to_string(&root).unwrap();
}

fn began(file: &str, began: u64) -> Began {
    Began {
        began,
        file: file.to_owned(),
        sets: Vec::new(),
        digest: BlobDigest::of(file.as_bytes()),
        data: vec![("S2C".into(), BlobDigest::of(b"data"))],
        versions: BTreeMap::from([("cam_epoch".into(), 6)]),
        who: "process 1".to_owned(),
    }
}

fn ended(ended: u64, how: How, failed: usize, metrics: &[(&str, &[(&str, f64)])]) -> Ended {
    let metrics = metrics.iter().map(|(variant, of)| {
        ((*variant).to_owned(), of.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect())
    });
    Ended { ended, how, executed: 96, reused: 210, failed, metrics: metrics.collect() }
}

/// Five runs of two files; the last goes on as far as anybody knows.
fn some_history(cache: &Path) -> History {
    let history = History::new(cache);
    let here = std::env::current_dir().unwrap();
    let [first, other] = ["pipelines/ablation.toml", "other.toml"].map(|file| here.join(file).display().to_string());
    let metrics: &[(&str, &[(&str, f64)])] = &[
        ("baseline", &[("seed_miou", 52.1), ("segmentation_miou", 48.25)]),
        ("S2C, cpm.tau=0.3", &[("seed_miou", 58.0)]),
    ];
    let begin = |file: &str, at| history.begin(began(file, at)).unwrap();
    let run = begin(&first, 1_795_551_908);
    history.end(run, ended(1_795_555_708, How::Interrupted, 0, &[])).unwrap();
    let run = begin(&first, 1_795_560_000);
    history.end(run, ended(1_795_560_042, How::Finished, 0, metrics)).unwrap();
    begin(&other, 1_795_570_000);
    let sets = vec!["cpm.tau=0.3".to_owned()];
    let run = history.begin(Began { sets, ..began(&first, 1_795_580_000) }).unwrap();
    history.end(run, ended(1_795_580_001, How::Failed, 2, metrics)).unwrap();
    begin(&other, 1_795_590_000);
    history
}

fn program(cache: &Path, args: &[&str]) -> (bool, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_s2c-pipe")).arg("--cache").arg(cache).args(args).output().unwrap();
    (output.status.success(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}

#[test]
fn a_history_tells_when_what_and_how_well() {
    let dir = tempfile::tempdir().unwrap();
    let cache = dir.path().join("cache");
    assert_eq!(program(&cache, &["history"]), (true, format!("no run yet in `{}`\n", cache.display())));
    let (is_good, said) = program(&cache, &["history", "x.toml"]);
    assert!(
        !is_good && said.contains("error: no run of `x.toml`") && said.contains("hint: s2c-pipe run x.toml"),
        "{said}"
    );

    some_history(&cache);
    let (is_good, said) = program(&cache, &["history"]);
    assert!(is_good);
    insta::assert_snapshot!(said, @"");
    let (_, of_one) = program(&cache, &["history", "other.toml"]);
    assert_eq!((of_one.matches("\nrun ").count() + 1, of_one.contains("ablation")), (2, false));
    let (is_good, said) = program(&cache, &["history", "x.toml"]);
    assert!(!is_good && said.contains("hint: there are runs of: ") && said.contains("other.toml; "), "{said}");

    let (_, json) = program(&cache, &["--json", "history"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&json[1]["how"], &json[1]["metrics"][0][1]["seed_miou"]), (&"finished".into(), &52.1.into()));
    assert_eq!((&json[4]["run"], &json[4]["goes_on"], &json[4]["how"]), (&5.into(), &false.into(), &().into()));
}

#[test]
fn a_run_without_an_end_goes_on_while_its_process_holds_the_cache() {
    let workspace = Workspace::new();
    assert_eq!(holder(&workspace.cache), None);
    let held = Cache::open(&workspace.cache, "process 1", &|_| true).unwrap();
    assert_eq!(holder(&workspace.cache).as_deref(), Some("process 1"));
    let run = |holder: Option<&str>| {
        Shown::new(some_history(&workspace.dir.path().join(holder.unwrap_or("none"))).runs().unwrap().remove(4), holder)
    };
    assert!(text(&[run(Some("process 1"))]).ends_with("  goes on\n"));
    assert_eq!([run(Some("process 2")).goes_on, run(None).goes_on], [Some(false), Some(false)]);
    drop(held);
    assert_eq!(holder(&workspace.cache), None);
}

#[test]
fn torn_lines_cost_themselves_alone() {
    let dir = tempfile::tempdir().unwrap();
    let history = some_history(dir.path());
    let path = dir.path().join("history/runs.jsonl");
    let whole = fs::read(&path).unwrap();
    let before = history.runs().unwrap();
    for cut in [1, 20, 150] {
        fs::write(&path, &whole[..whole.len() - cut]).unwrap();
        // The last line was that of run 5; it is torn, unless only its line break is gone.
        let n = if cut == 1 { 5 } else { 4 };
        assert_eq!(history.runs().unwrap(), before[..n], "{cut}");
        let run = history.begin(began("again", 7)).unwrap();
        assert_eq!(run, n as u64 + 1);
        history.end(run, ended(9, How::Finished, 0, &[])).unwrap();
        let runs = history.runs().unwrap();
        assert_eq!((&runs[..n], runs.len()), (&before[..n], n + 1), "{cut}");
        assert_eq!(runs[n].ended.as_ref().unwrap().ended, 9);
    }
    fs::write(&path, [&whole[..], b"\xff\xfe{\"began\":{}}\n{\"ended\":{\"run\":99}}\n"].concat()).unwrap();
    assert_eq!(history.runs().unwrap(), before);
}

#[test]
fn many_writers_at_once_have_numbers_of_their_own() {
    let dir = tempfile::tempdir().unwrap();
    std::thread::scope(|scope| {
        for writer in 0..8 {
            let history = History::new(dir.path());
            scope.spawn(move || {
                for i in 0..10 {
                    let run = history.begin(began(&format!("{writer}"), i)).unwrap();
                    history.end(run, ended(i, How::Finished, 0, &[])).unwrap();
                }
            });
        }
    });
    let runs = History::new(dir.path()).runs().unwrap();
    let numbers: Vec<u64> = runs.iter().map(|run| run.run).collect();
    assert_eq!(numbers, (1..=80).collect::<Vec<_>>());
    assert!(runs.iter().all(|run| run.ended.as_ref().is_some_and(|ended| ended.ended == run.began.began)));
}

const FILE: &str = "
    [dataset]
    root = 'voc'
    [[variant]]
    name = 'S2C'
    'cpm.enabled' = true
    [sweep]
    'cpm.tau' = [0.3, 0.5]
";

#[test]
fn a_file_that_ran_is_kept_whole_whatever_folder_it_is_in() {
    let dir = tempfile::tempdir().unwrap();
    let folders = ["one", "two"].map(|name| dir.path().join(name));
    let [one, two] = [0, 1].map(|i| {
        fs::create_dir(&folders[i]).unwrap();
        // Comments and order are no part of what it says.
        let text = if i == 0 { FILE.to_owned() } else { format!("# again\nrng_seed = 0\n{FILE}") };
        fs::write(folders[i].join("p.toml"), text).unwrap();
        let pipeline = load(&folders[i].join("p.toml"), &[]).unwrap();
        (normalised(&pipeline, &folders[i]).unwrap(), pipeline)
    });
    assert_eq!(one.0, two.0);
    let history = History::new(dir.path());
    let digest = history.keep_file(&one.0).unwrap();
    assert_eq!(history.keep_file(&two.0).unwrap(), digest);
    let back = restored(&history.file(&digest).unwrap(), "p", &folders[1]).unwrap();
    assert_eq!(back.cells.len(), 2);
    for (cell, expected) in back.cells.iter().zip(&two.1.cells) {
        assert_eq!((&cell.name, &cell.axes, &cell.spec), (&expected.name, &expected.axes, &expected.spec));
    }
    let changed = load(&folders[0].join("p.toml"), &["classifier.lr=0.5".to_owned()]).unwrap();
    assert_ne!(normalised(&changed, &folders[0]).unwrap(), one.0);

    let kept = dir.path().join(format!("history/{digest}.json"));
    fs::write(&kept, "[]").unwrap();
    assert!(history.file(&digest).is_err(), "not what was kept");
    fs::remove_file(&kept).unwrap();
    assert!(history.file(&digest).unwrap_err().to_string().contains("could not read"));
    assert!(restored(b"[{\"name\": 1}]", "p", dir.path()).is_err());
}

#[test]
fn what_changed_since_a_run_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let run = some_history(dir.path()).runs().unwrap().remove(0);
    let notes = |data: &[u8], version| {
        changed_since(
            &run,
            "S2C",
            BlobDigest::of(data),
            &BTreeMap::from([("cam_epoch".to_owned(), version), ("new".to_owned(), 1)]),
        )
    };
    assert_eq!(notes(b"data", 6), Vec::<String>::new());
    assert_eq!(
        notes(b"other", 7),
        [
            "run 1 read other data than there is now; units are those of the data of now",
            "`cam_epoch` was version 6 in run 1 and is 7 now",
        ]
    );
}
