//! What the engine answers: what a plan costs, where two variants part, where an artifact comes from.

use std::fs;

use s2c_pipe::digest::BlobDigest;
use s2c_pipe::pipeline::compare::fields::{Field, differing, find_effects, with_effects};
use s2c_pipe::pipeline::compare::{Cause, Comparison, Effect, compare};
use s2c_pipe::pipeline::cost::Cost;
use s2c_pipe::pipeline::graph::{Graph, InputSet, Source, Unit, UnitIdx};
use s2c_pipe::pipeline::lineage::{NodeState, lineage};
use s2c_pipe::pipeline::plan::plan;
use s2c_pipe::pipeline::spec::Spec;

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

    // Two new items of 2 bytes each; `join` and `end`, which read other things, have given 5 and 6.
    let more = cost(&pipeline(&["a", "b", "c", "d"], &params("."), "!"));
    assert_eq!((more.cached, more.to_run, more.cached_percent, more.bytes), (2, 4, 33, Some(2 * 2 + 5 + 6)));
    assert!(more.unknown.is_empty() && more.seconds.is_some_and(|seconds| seconds > 0.0), "{more:?}");

    // What reads more costs what such units cost; where none has run, what others of its stage did: (5 + 6) / 2.
    let reads_two = |text: &str| {
        let mut graph = Graph::default();
        let value = |text: &str| Source::value(text.as_bytes().to_vec());
        let inputs = vec![("one", value(text)), ("two", value("0123456789012345678901234567"))];
        let last = graph.add(unit::<false>("wide", &params("."), inputs));
        (graph, last)
    };
    assert_eq!(cost(&reads_two("ab")).bytes, Some(6));
    workspace.counts(&reads_two("ab"));
    assert_eq!(cost(&reads_two("cd")).bytes, Some(31));

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
    insta::assert_snapshot!(compared(&workspace, &graph, &ends).text(["base", "comma"]), @r#"
    `base` and `comma` part at concat_each item a:
      parameter `suffix`: "." -> ","

    stage        differ  not known yet  by
    concat_each       2              -  suffix
    concat            -              2  what it reads

    4 of 4 units that differ, or may, have still to run, so what they give cannot be compared

    mIoU in %          base  comma  difference
    seed mIoU          52.1   58.2        +6.1
    segmentation mIoU     -   60.0           -
    "#);
    ends.iter().for_each(|end| drop(workspace.run(&graph, *end)));
    let found = compared(&workspace, &graph, &ends);
    let blob = found.first_blob.as_ref().unwrap();
    assert_eq!(
        (&*blob.unit, blob.left, blob.right),
        ("concat_each item a", BlobDigest::of(b"a."), BlobDigest::of(b"a,"))
    );
    insta::assert_snapshot!(found.text(["base", "comma"]), @r#"
    `base` and `comma` part at concat_each item a:
      parameter `suffix`: "." -> ","

    stage        differ  by
    concat_each       2  suffix
    concat            2  what it reads

    first artifact that differs: out of concat_each item a, bf6d906ecb7f and 49479bb02762

    mIoU in %          base  comma  difference
    seed mIoU          52.1   58.2        +6.1
    segmentation mIoU     -   60.0           -
    "#);
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
    insta::assert_snapshot!(found.text(["as is", "upper"]), @"
    `as is` and `upper` part at concat_each item 1:
      parameter `upper`: false -> true

    stage        equal  differ  by
    concat_each      -       2  upper
    concat           2       -

    no artifact differs
    other keys, equal artifacts: concat_each item 1, concat_each item 2; what reads only these is shared

    mIoU in %          as is  upper  difference
    seed mIoU           52.1   58.2        +6.1
    segmentation mIoU      -   60.0           -
    ");
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
    insta::assert_snapshot!(found.text(["two items", "three items, and a name of some length"]), @"
    `two items` and `three items, and a name of some length` part at concat join:
      inputs `all`: 1 only in `three items, and a name of some length` (item c)

    stage        equal  not known yet  only 2nd  by
    concat_each      2              -         1
    concat           -              2         -  all; suffix from end

    2 of 2 units that differ, or may, have still to run, so what they give cannot be compared

    mIoU in %          two items  three items, and a name of some length  difference
    seed mIoU               52.1                                    58.2        +6.1
    segmentation mIoU          -                                    60.0           -
    ");

    let (graph, ends) = variants(&[(&["a"], params("."), "!"), (&["a"], params("."), "!")]);
    let found = compared(&workspace, &graph, &ends);
    assert!(found.is_equal());
    insta::assert_snapshot!(found.text(["one", "the same"]), @"
    `one` and `the same` are one experiment: all 3 units are the same

    mIoU in %           one  the same  difference
    seed mIoU          52.1      58.2        +6.1
    segmentation mIoU     -      60.0           -
    ");
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
    insta::assert_snapshot!(shown(trace().text()), @"
    out: concat_each y                ee02084a8dba  26 B
    ├─ checkpoint: concat epoch 2     bafdbfbcc323  22 B
    │  ├─ all: one of 2               f4adf977d6e1
    │  │  └─ y: concat_each y         9ef985204584   3 B
    │  │     ├─ value: a small value  08112a9e334c   1 B
    │  │     └─ weights: weights.bin  f2f21520bebe        [DIR]/weights.bin
    │  ├─ checkpoint: concat epoch 1  080064cc2d8b  15 B
    │  ├─ checkpoint: concat epoch 0  9e0020a0c0b6   8 B
    │  └─ weights: weights.bin        f2f21520bebe        [DIR]/weights.bin
    └─ again: concat_each y           9ef985204584   3 B  see above
    ");
    let root = trace();
    assert_eq!(root.digest, Some(BlobDigest::of(b"wxw.yw.0xw.yw.1xw.yw.2yw.!")));
    // Not nested: each epoch stands beside the next.
    let slots: Vec<&str> = root.inputs[0].inputs.iter().map(|node| node.slot.as_str()).collect();
    assert_eq!(slots, ["all", "checkpoint", "checkpoint", "weights"]);
    fs::remove_file(workspace.blob("wxw.yw.0xw.yw.1xw.yw.2")).unwrap();
    assert_eq!(trace().inputs[0].state, NodeState::Gone);
    serde_json::to_string(&root).unwrap();
}

/// What is said of two units that read nothing of others, or one of two others.
#[test]
fn each_cause_has_its_words() {
    let value = |text: &str| Source::value(text.as_bytes().to_vec());
    let unit = |version, params: &str, inputs| Unit {
        stage: "concat",
        version,
        item: "x".into(),
        params: params.into(),
        inputs,
    };
    let words = |left: Unit, right: Unit| {
        let mut graph = Graph::default();
        let ends = [left, right].map(|unit| graph.add(unit));
        let workspace = Workspace::new();
        let found = compare(&graph, &workspace.open(), &ends[..1], &ends[1..], Vec::new());
        let text = found.text(["left", "right"]);
        text.lines().skip(1).take_while(|line| !line.is_empty()).map(str::trim).collect::<Vec<_>>().join("; ")
    };
    let params = |params: &str| unit(1, params, vec![]);
    let reads =
        |slots: &[(&'static str, &str)]| unit(1, "{}", slots.iter().map(|(slot, text)| (*slot, value(text))).collect());
    for (left, right, expected) in [
        (unit(1, "{}", vec![]), unit(2, "{}", vec![]), "stage version: 1 -> 2"),
        (params(r#"{"a":{"b":1,"c":[2]}}"#), params(r#"{"a":{"b":1,"c":[3]}}"#), "parameter `a.c`: [2] -> [3]"),
        (
            params(r#"{"ssc":null}"#),
            params(r#"{"ssc":{"t":0.5,"weight":1.0}}"#),
            "parameter `ssc`: none -> t=0.5 weight=1.0",
        ),
        (
            params(r#"{"ssc":{"t":1}}"#),
            params(r#"{"ssc":{"new":false,"t":1}}"#),
            "parameter `ssc.new`: default -> false",
        ),
        (reads(&[("a", "1")]), reads(&[("a", "1"), ("b", "2")]), "input `b`: only `right` reads it"),
        (reads(&[("a", "1"), ("b", "2")]), reads(&[("b", "2")]), "input `a`: only `left` reads it"),
    ] {
        assert_eq!(words(left, right), expected);
    }
    let [one, two] = ["1", "2"].map(|text| BlobDigest::of(text.as_bytes()).short());
    assert_eq!(words(reads(&[("a", "1")]), reads(&[("a", "2")])), format!("input `a`: {one} -> {two}"));
}

/// Of the fields that differ those that make one variant of the other, by a rule for what counts.
#[test]
fn fields_without_effect_are_told_apart() {
    let left = Spec::default();
    let mut right = left.clone();
    right.classifier.ssc.enabled = true;
    right.classifier.ssc.temperature = 0.25;
    right.classifier.cpm.tau = 0.3;
    right.dataset.root = Some("voc".into());
    right.seed.scales = vec![1.0, 1.5];
    let mut fields = differing(&left, &right).unwrap();
    assert_eq!(fields.len(), 5);
    assert_eq!(with_effects(&left, &fields).unwrap(), right);
    // As in the graph: tau counts where CPM is on, which it is in neither.
    let effective = |spec: &Spec| {
        let (ssc, cpm) = (&spec.classifier.ssc, &spec.classifier.cpm);
        (ssc.enabled.then_some(ssc.temperature), cpm.enabled.then_some(cpm.tau), spec.seed.scales.clone())
    };
    let is_same = |fields: &[Field]| Ok(effective(&with_effects(&left, fields)?) == effective(&right));
    find_effects(&mut fields, &is_same).unwrap();
    let worth: Vec<(&str, bool)> = fields.iter().map(|field| (&*field.path, field.has_effect)).collect();
    assert_eq!(
        worth,
        [
            ("classifier.cpm.tau", false),
            ("classifier.ssc.enabled", true),
            ("classifier.ssc.temperature", true),
            ("dataset.root", false),
            ("seed.scales", true),
        ]
    );
    let workspace = Workspace::new();
    let (graph, ends) = variants(&[(&["a"], params("."), "!"), (&["a"], params("."), "?")]);
    let mut found = compare(&graph, &workspace.open(), &ends[..1], &ends[1..], Vec::new());
    found.fields = fields;
    let text = found.text(["left", "right"]);
    for line in [
        "\nin the settings: classifier.ssc.enabled false -> true, classifier.ssc.temperature 0.5 -> 0.25, seed.scales ",
        "\nwithout effect: classifier.cpm.tau 0.5 -> 0.3, dataset.root none -> \"voc\"\n",
    ] {
        assert!(text.contains(line), "{text}");
    }
}
