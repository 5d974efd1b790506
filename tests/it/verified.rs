//! Tables in LaTeX whose numbers are checked against the cache.

use std::collections::{BTreeMap, HashMap};

use s2c_pipe::digest::BlobDigest;
use s2c_pipe::pipeline::file::Cell;
use s2c_pipe::pipeline::repeats::{repeats, tabular};
use s2c_pipe::pipeline::results::{ResultsTable, Row};
use s2c_pipe::pipeline::spec::Spec;
use s2c_pipe::pipeline::verified::{Checked, Fault, TableSource, Tabular, check};
use serde_json::{Value, json};

/// Evaluations by digest.
#[derive(Default)]
struct Evaluations(HashMap<BlobDigest, Value>);

impl Evaluations {
    /// A row as `results` makes it of these mIoU.
    fn row(&mut self, cell: &str, seed: f64, segmentation: Option<f64>) -> Row {
        let mut keep = |value: Value| {
            let digest = BlobDigest::of(value.to_string().as_bytes());
            self.0.insert(digest, value);
            digest
        };
        let mut digests = BTreeMap::from([("seed", keep(json!({ "miou": seed, "threshold": 0.25 })))]);
        digests.extend(segmentation.map(|miou| ("segmentation", keep(json!({ "miou": miou })))));
        Row {
            cell: cell.into(),
            dataset: "t".into(),
            seed_miou: Some(seed * 100.0),
            seed_threshold: Some(0.25),
            pseudo_label_miou: None,
            segmentation_miou: segmentation.map(|miou| miou * 100.0),
            per_class: BTreeMap::new(),
            metrics: BTreeMap::new(),
            digests,
            drifted: BTreeMap::new(),
            sick: BTreeMap::new(),
        }
    }

    fn check(&self, tex: &str, now: &Tabular) -> Vec<Checked> {
        check(tex, &|digest| self.0.get(digest).cloned(), &mut |_| Ok(now.clone())).unwrap()
    }
}

fn source() -> TableSource {
    TableSource { file: "a.toml".into(), set: vec!["cpm.tau=0.3".into()], against: None }
}

/// Row, column and fault of what is wrong.
fn faults(checked: &[Checked]) -> Vec<(&str, &str, &Fault)> {
    checked.iter().flat_map(|cell| cell.faults.iter().map(|f| (cell.row.as_str(), cell.column.as_str(), f))).collect()
}

fn edited(says: &str, was: &str) -> Fault {
    Fault::Edited { says: says.into(), was: was.into() }
}

#[test]
fn a_table_of_the_cache_passes_and_stays_a_table() {
    let mut known = Evaluations::default();
    let rows = vec![known.row("base", 0.5, Some(0.614)), known.row("S2C, x/y_1=50%&c", 0.55, None)];
    let table = ResultsTable { rows }.tabular();
    let tex = table.latex(&source());
    let plain: Vec<&str> = tex.lines().filter(|line| !line.starts_with('%')).collect();
    assert_eq!(
        plain,
        [
            r"\begin{tabular}{lcccc}",
            r"variant & seed mIoU & threshold & pseudo-label mIoU & segmentation mIoU \\",
            r"\hline",
            r"base & 50.0 & 0.25 & - & 61.4 \\",
            r"S2C, x/y\_1=50\%\&c & 55.0 & 0.25 & - & - \\",
            r"\end{tabular}",
        ]
    );
    assert!(tex.starts_with("% s2c: pipeline {\"file\":\"a.toml\",\"set\":[\"cpm.tau=0.3\"]}\n"), "{tex}");
    let mut sources = Vec::new();
    let read = |digest: &BlobDigest| known.0.get(digest).cloned();
    let checked = check(&tex, &read, &mut |source| {
        sources.push(source.clone());
        Ok(table.clone())
    });
    let checked = checked.unwrap();
    assert_eq!((checked.len(), faults(&checked).len(), sources), (8, 0, vec![source()]));

    // What people do to a table.
    for (from, to) in [
        ("base & 50.0", "Baseline~\\cite{x} & \\textbf{50.0}"),
        ("55.0 & 0.25", "$\\mathbf{55.0}$ &\n   \\underline{0.25}"),
        ("61.4 \\\\", "61.4 \\\\ \\hline % best"),
        ("\\hline\nbase", "\\midrule % 12 & 13 \\\\\nbase"),
    ] {
        assert!(tex.contains(from));
        let tex = tex.replace(from, to);
        assert_eq!(faults(&known.check(&tex, &table)), [], "{tex}");
    }
    assert_eq!(known.check("no & table \\\\", &table), []);
}

#[test]
fn edited_stale_and_unknown_numbers_are_told_apart() {
    let mut known = Evaluations::default();
    let table =
        ResultsTable { rows: vec![known.row("base", 0.5, Some(0.614)), known.row("S2C", 0.55, None)] }.tabular();
    let tex = table.latex(&source());
    let checked = known.check(&tex.replace("S2C & 55.0", "S2C & \\textbf{56.0}"), &table);
    assert_eq!(faults(&checked), [("S2C", "seed mIoU", &edited("\\textbf{56.0}", "55.0"))]);
    // Two numbers that changed places, and one where there was none.
    let checked = known.check(&tex.replace("50.0 & 0.25 & -", "0.25 & 50.0 & 58.0"), &table);
    assert_eq!(
        faults(&checked),
        [
            ("base", "seed mIoU", &edited("0.25", "50.0")),
            ("base", "threshold", &edited("50.0", "0.25")),
            ("base", "pseudo-label mIoU", &edited("58.0", "-")),
        ]
    );
    let checked = known.check(&tex.replace("base & 50.0", "base"), &table);
    assert_eq!(faults(&checked), [("base", "seed mIoU", &edited("3 numbers", "4 digests below it"))]);

    // The pipeline has run anew, and lost a variant.
    let now = ResultsTable { rows: vec![known.row("base", 0.51, Some(0.614))] }.tabular();
    let stale = |says: &str, now: &str| Fault::Stale { says: says.into(), now: now.into() };
    let checked = known.check(&tex, &now);
    assert_eq!(
        faults(&checked)[..3],
        [
            ("base", "seed mIoU", &stale("50.0", "51.0")),
            ("base", "threshold", &stale("0.25", "the same from another run")),
            ("S2C", "seed mIoU", &stale("55.0", "no such cell")),
        ]
    );
    // Both: an edit does not hide that the number is old.
    let checked = known.check(&tex.replace("base & 50.0", "base & 49.0"), &now);
    assert_eq!(checked[0].faults, [edited("49.0", "50.0"), stale("49.0", "51.0")]);

    // The evaluation is not in this cache, the digest is broken, the pipeline is not named.
    let is_unknown = |checked: &[Checked]| -> Vec<bool> {
        checked.iter().map(|cell| matches!(cell.faults[..], [Fault::Unknown { .. }])).collect()
    };
    let lost = Evaluations::default();
    assert_eq!(is_unknown(&lost.check(&tex, &table)), [true, true, false, true, true, true, false, false]);
    let digest = table.rows[0].1[3].stands.to_string();
    let checked = known.check(&tex.replace(&digest, &digest[1..]), &table);
    assert_eq!(is_unknown(&checked), [false, false, false, true, false, false, false, false]);
    let (_, headless) = tex.split_once('\n').unwrap();
    assert!(is_unknown(&known.check(headless, &table)).iter().all(|is_unknown| *is_unknown));
}

#[test]
fn means_and_tests_stand_for_all_their_runs() {
    let mut known = Evaluations::default();
    let (mut cells, mut rows) = (Vec::new(), Vec::new());
    for (variant, mious) in [("base", [0.502, 0.509, 0.491]), ("S2C", [0.581, 0.594, 0.577])] {
        for (seed, miou) in mious.into_iter().enumerate() {
            let axes = vec![("rng_seed".to_owned(), seed.to_string())];
            cells.push(Cell { name: String::new(), variant: variant.into(), axes, spec: Spec::default() });
            rows.push(known.row(variant, miou, None));
        }
    }
    let table = tabular(&repeats(&cells, &rows, None).unwrap());
    let tex = table.latex(&source());
    // numpy: std of [58.1, 59.4, 57.7], ddof=1; scipy.stats.ttest_rel, as in the tests of `repeats`.
    assert!(tex.contains("S2C & 58.4 $\\pm$ 0.9 (3) & $<$0.01 \\\\"), "{tex}");
    assert_eq!(faults(&known.check(&tex, &table)), []);
    let checked = known.check(&tex.replace("$<$0.01", "0.0001"), &table);
    assert_eq!(faults(&checked), [("S2C", "p", &edited("0.0001", "$<$0.01"))]);
    // As it was written before.
    assert_eq!(faults(&known.check(&tex.replace("$<$0.01", "0.0007"), &table)), []);

    // One seed ran anew: its mean and its p are stale, and so is nothing of the baseline.
    rows[4] = known.row("S2C", 0.56, None);
    let now = tabular(&repeats(&cells, &rows, None).unwrap());
    let checked = known.check(&tex, &now);
    let places: Vec<_> = faults(&checked)
        .iter()
        .map(|(row, column, fault)| {
            assert!(matches!(fault, Fault::Stale { .. }));
            (*row, *column)
        })
        .collect();
    assert_eq!(places, [("S2C", "seed mIoU"), ("S2C", "p")]);
}

/// Several metrics: each p has a title of its own, and tables in which all were titled `p` are read by place.
#[test]
fn columns_of_one_title_are_told_apart_by_place() {
    let mut known = Evaluations::default();
    let (mut cells, mut rows) = (Vec::new(), Vec::new());
    for (variant, seeds, segmentations) in
        [("base", [0.50, 0.52, 0.49], [0.60, 0.63, 0.61]), ("S2C", [0.58, 0.59, 0.57], [0.61, 0.62, 0.66])]
    {
        for (seed, (miou, segmentation)) in seeds.into_iter().zip(segmentations).enumerate() {
            let axes = vec![("rng_seed".to_owned(), seed.to_string())];
            cells.push(Cell { name: String::new(), variant: variant.into(), axes, spec: Spec::default() });
            rows.push(known.row(variant, miou, Some(segmentation)));
        }
    }
    let table = tabular(&repeats(&cells, &rows, None).unwrap());
    let titles: std::collections::BTreeSet<&String> = table.columns.iter().collect();
    assert_eq!(titles.len(), table.columns.len(), "{:?}", table.columns);
    assert_eq!(table.columns[1..], ["seed mIoU", "p (seed mIoU)", "segmentation mIoU", "p (segmentation mIoU)"]);
    let tex = table.latex(&source());
    assert_eq!(faults(&known.check(&tex, &table)), []);
    let before = tex.replace("p (seed mIoU)", "p").replace("p (segmentation mIoU)", "p");
    assert_eq!(faults(&known.check(&before, &table)), [], "{before}");
    // A column that went with its comments moves none of the others.
    let without = |text: &str, title: &str| -> String {
        text.lines().filter(|line| !line.contains(&format!("/{title} "))).map(|line| format!("{line}\n")).collect()
    };
    let base = table.rows[0].1[2].text.clone();
    let kept = without(&tex, "seed mIoU").replace("base & 50.3 $\\pm$ 1.5 (3)", "base");
    let kept = kept.replace(&format!("S2C & {}", table.rows[1].1[0].text), "S2C");
    assert_eq!(faults(&known.check(&kept, &table)), [], "{base} {kept}");
}

/// Names as people give them, which LaTeX would obey.
#[test]
fn names_are_shown_and_not_obeyed() {
    let mut known = Evaluations::default();
    let names = [
        ("[a] b", "{[}a] b"),
        ("*", "{*}"),
        ("a--b", "a-{}-b"),
        ("x < y > z|", "x \\textless{} y \\textgreater{} z\\textbar{}"),
        ("\\input{x}", "\\textbackslash{}input\\{x\\}"),
        ("50 % & $1 #2 ~3^", "50 \\% \\& \\$1 \\#2 \\~{}3\\^{}"),
        ("``q''", "`{}`q'{}'"),
        ("a/b/c 0", "a/b/c 0"),
        ("\u{3b1} \u{53d8}\u{4f53}", "\u{3b1} \u{53d8}\u{4f53}"),
    ];
    let rows = names.iter().map(|(name, _)| known.row(name, 0.5, None)).collect();
    let table = ResultsTable { rows }.tabular();
    let tex = table.latex(&source());
    for (name, shown) in names {
        assert!(tex.contains(&format!("\n{shown} & 50.0 ")), "{name}: {tex}");
    }
    assert_eq!(faults(&known.check(&tex, &table)), []);
}
