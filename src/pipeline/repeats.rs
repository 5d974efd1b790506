//! Repeats: the axis `rng_seed` of [sweep] as mean, deviation and a paired test against a baseline.

use std::collections::BTreeMap;
use std::f64::consts::PI;

use serde::Serialize;

use super::file::Cell;
use super::past::METRICS;
use super::results::{Row, SCORED, csv_quoted};
use super::verified::{P, PM, Stands, TableCell, Tabular, p_latex};
use crate::digest::BlobDigest;

/// The axis that is averaged over.
pub const AXIS: &str = "rng_seed";

/// A variant at one point of the other axes, over its seeds of randomness.
#[derive(Clone, Debug, Serialize)]
pub struct Repeats {
    /// `S2C, cpm.tau=0.3`
    pub variant: String,
    /// By metric, for metrics that are there.
    pub metrics: BTreeMap<&'static str, Spread>,
}

/// mIoU in percent of several runs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// Runs that have finished.
    pub n: usize,
    pub mean: f64,
    /// With n - 1; `None` for one run.
    pub std: Option<f64>,
    /// `None` for the baseline itself, and where no seed is shared with it.
    pub against: Option<Paired>,
    /// Evaluations of the runs.
    #[serde(skip)]
    pub digests: Vec<BlobDigest>,
    /// Reasons not to trust some of the runs, by their seeds: see [`Row::doubts`].
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub doubts: BTreeMap<String, Vec<String>>,
    /// All marks of the runs: see [`Row::marks`].
    #[serde(skip)]
    pub marks: String,
}

/// A paired t-test, two-sided.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Paired {
    pub baseline: String,
    /// Seeds that both have.
    pub n: usize,
    /// The mean of this minus baseline.
    pub difference: f64,
    /// `None` for one pair, or where all differences are equal.
    pub p: Option<f64>,
    /// Evaluations of run and baseline.
    #[serde(skip)]
    pub digests: Vec<(BlobDigest, BlobDigest)>,
    /// The baseline's: see [`Spread::doubts`].
    #[serde(skip)]
    pub doubts: BTreeMap<String, Vec<String>>,
}

/// One group's runs: `rng_seed` and row.
struct Group<'a> {
    name: String,
    variant: &'a str,
    /// The axes but [`AXIS`].
    point: Vec<&'a (String, String)>,
    runs: Vec<(&'a str, &'a Row)>,
}

/// What the cells of a file give over their seeds; empty where no axis is `rng_seed`, and no variant stands there several
/// times with it.
///
/// `against`: a variant, compared with at the same point of the other axes, or one by its whole name. `None`: the
/// first variant of the file; where there is one variant only, the first point.
///
/// # Errors
/// The names there are, where `against` is none of them.
pub fn repeats(cells: &[Cell], rows: &[Row], against: Option<&str>) -> Result<Vec<Repeats>, Vec<String>> {
    let mut groups: Vec<Group<'_>> = Vec::new();
    // Of a variant that is there once.
    let own: Vec<String> = cells.iter().map(|cell| cell.spec.rng_seed.to_string()).collect();
    if !cells.iter().any(|cell| cell.axes.iter().any(|(axis, _)| axis == AXIS)) {
        return Ok(Vec::new());
    }
    for ((cell, row), own) in cells.iter().zip(rows).zip(&own) {
        let (seed, point): (Vec<_>, Vec<_>) = cell.axes.iter().partition(|(axis, _)| axis == AXIS);
        let seed = seed.first().map_or(own, |(_, seed)| seed);
        let place: String = point.iter().map(|(axis, value)| format!(", {axis}={value}")).collect();
        let name = format!("{}{place}", cell.variant);
        match groups.iter_mut().find(|group| group.name == name) {
            Some(group) => group.runs.push((seed, row)),
            None => groups.push(Group { name, variant: &cell.variant, point, runs: vec![(seed, row)] }),
        }
    }
    let variants: Vec<&str> = groups.iter().map(|group| group.variant).collect();
    let first = match variants.iter().all(|variant| *variant == variants[0]) {
        true => groups.first().map(|group| group.name.as_str()),
        false => variants.first().copied(),
    };
    let baseline = against.or(first).unwrap_or_default();
    let exact = groups.iter().find(|group| group.name == baseline);
    if exact.is_none() && !variants.contains(&baseline) {
        return Err(groups.iter().map(|group| group.name.clone()).collect());
    }
    let baseline_of = |of: &Group<'_>| {
        let at_point = groups.iter().find(|group| group.variant == baseline && group.point == of.point);
        at_point.or(exact).filter(|group| group.name != of.name)
    };
    let summarise = |group: &Group<'_>| {
        let metrics = METRICS.iter().enumerate().filter_map(|(i, (name, _))| {
            let of = |group: &Group<'_>| -> BTreeMap<String, f64> {
                group.runs.iter().filter_map(|(seed, row)| Some(((*seed).to_owned(), mious(row)[i]?))).collect()
            };
            let digests = |group: &Group<'_>| -> BTreeMap<String, BlobDigest> {
                let digest = |row: &Row| row.digests.get(SCORED[i]).copied();
                group.runs.iter().filter_map(|(seed, row)| Some(((*seed).to_owned(), digest(row)?))).collect()
            };
            let doubts = |group: &Group<'_>| -> BTreeMap<String, Vec<String>> {
                let of_run = |(seed, row): &(&str, &Row)| ((*seed).to_owned(), row.doubts(SCORED[i]));
                group.runs.iter().map(of_run).filter(|(_, reasons)| !reasons.is_empty()).collect()
            };
            let has_mark = |mark: &&str| group.runs.iter().any(|(_, row)| row.marks(SCORED[i]).contains(mark));
            let (values, own) = (of(group), digests(group));
            let (mean, std) = mean_std(&values.values().copied().collect::<Vec<_>>())?;
            let against = baseline_of(group).and_then(|baseline| {
                let others = of(baseline);
                let pairs = values.iter().filter_map(|(seed, value)| Some(value - others.get(seed)?));
                let differences: Vec<f64> = pairs.collect();
                let (difference, _) = mean_std(&differences)?;
                let theirs = digests(baseline);
                let digests = own.iter().filter_map(|(seed, digest)| Some((*digest, *theirs.get(seed)?))).collect();
                let doubts = doubts(baseline);
                let (baseline, n) = (baseline.name.clone(), differences.len());
                Some(Paired { baseline, n, difference, p: paired_t(&differences), digests, doubts })
            });
            let (n, digests, doubts) = (values.len(), own.into_values().collect(), doubts(group));
            let marks = ["!", "?"].into_iter().filter(has_mark).collect();
            Some((*name, Spread { n, mean, std, against, digests, doubts, marks }))
        });
        Repeats { variant: group.name.clone(), metrics: metrics.collect() }
    };
    Ok(groups.iter().map(summarise).collect())
}

/// Reasons for doubt in words, with the seeds of the runs.
fn remarks(doubts: &BTreeMap<String, Vec<String>>) -> Vec<String> {
    doubts.iter().map(|(seed, reasons)| format!("{AXIS} {seed}: {}", reasons.join("; "))).collect()
}

/// In the order of [`METRICS`].
pub(crate) fn mious(row: &Row) -> [Option<f64>; 3] {
    [row.seed_miou, row.pseudo_label_miou, row.segmentation_miou]
}

pub(super) fn mean_std(values: &[f64]) -> Option<(f64, Option<f64>)> {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (n > 0.0).then(|| (mean, (n > 1.0).then(|| (squares / (n - 1.0)).sqrt())))
}

/// The two-sided p of a t-test that the mean difference is 0.
pub(super) fn paired_t(differences: &[f64]) -> Option<f64> {
    let (mean, std) = mean_std(differences)?;
    let n = differences.len() as f64;
    let std = std.filter(|std| *std > 0.0)?;
    Some(student_p(mean / (std / n.sqrt()), differences.len() as u32 - 1))
}

/// Two-sided p of Student's t with a whole number of degrees of freedom, a finite sum (Abramowitz and Stegun, 26.7.3
/// and 26.7.4).
fn student_p(t: f64, degrees: u32) -> f64 {
    let theta = (t.abs() / f64::from(degrees).sqrt()).atan();
    let (sin, cos) = theta.sin_cos();
    let is_odd = degrees % 2 == 1;
    // cos + 2/3 cos^3 + 2/3 4/5 cos^5 ..., or 1 + 1/2 cos^2 + 1/2 3/4 cos^4 ...
    let (first, mut term, mut sum) = if is_odd { (2, cos, 0.0) } else { (1, 1.0, 0.0) };
    for k in 0..degrees / 2 {
        sum += term;
        let over = f64::from(first + 2 * k);
        term *= over / (over + 1.0) * cos * cos;
    }
    let inside = if is_odd { 2.0 / PI * (theta + sin * sum) } else { sin * sum };
    (1.0 - inside).clamp(0.0, 1.0)
}

/// For people: mean, deviation, number of runs and p.
pub fn text(repeats: &[Repeats]) -> String {
    let rows = table(repeats, " +- ");
    let widths: Vec<usize> = (0..rows[0].len())
        .map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0))
        .collect();
    let line = |row: &Vec<String>| {
        let rest = row.iter().zip(&widths).skip(1).map(|(cell, width)| format!("  {cell:>width$}"));
        format!("{:<1$}{2}\n", row[0], widths[0], rest.collect::<String>())
    };
    let lines: String = rows.iter().map(line).collect();
    let against = match &baselines(repeats)[..] {
        "" => String::new(),
        names => format!("; p of a paired t-test against {names}"),
    };
    let has_marks = repeats.iter().flat_map(|of| of.metrics.values()).any(|spread| !spread.marks.is_empty());
    let remark = if has_marks { "marks: some of the runs have them in their table\n" } else { "" };
    format!("mean +- standard deviation (runs){against}\n{lines}{remark}")
}

/// A line for each variant and metric.
pub fn csv(repeats: &[Repeats]) -> String {
    let number = |value: Option<f64>| value.map_or_else(String::new, |value| value.to_string());
    let mut text = String::from("variant,metric,n,mean,std,against,pairs,difference,p,remarks\n");
    for Repeats { variant, metrics } in repeats {
        for (metric, spread) in metrics {
            let Spread { n, mean, std, against, .. } = spread;
            let paired = against.as_ref().map_or_else(
                || ",,,".to_owned(),
                |Paired { baseline, n, difference, p, .. }| {
                    format!("{},{n},{difference},{}", csv_quoted(baseline), number(*p))
                },
            );
            let (variant, remarks) = (csv_quoted(variant), csv_quoted(&remarks(&spread.doubts).join("; ")));
            text.push_str(&format!("{variant},{metric},{n},{mean},{},{paired},{remarks}\n", number(*std)));
        }
    }
    text
}

/// For LaTeX, with the evaluations of each number.
pub fn tabular(repeats: &[Repeats]) -> Tabular {
    let there = there(repeats);
    let cells = |of: &Repeats| {
        let cells = there.iter().flat_map(|(name, _)| {
            let stands = of.metrics.get(name).map(|Spread { against, digests, .. }| {
                let paired = against.as_ref().filter(|paired| paired.p.is_some());
                let paired = paired.map(|paired| Stands::Paired(paired.digests.clone()));
                [Stands::Mean(digests.clone()), paired.unwrap_or(Stands::Nothing)]
            });
            let [mean, p] = cell_texts(of.metrics.get(name), PM);
            let [of_mean, of_p] = stands.unwrap_or([Stands::Nothing, Stands::Nothing]);
            let paired = of.metrics.get(name).and_then(|spread| spread.against.as_ref());
            let p = if p == "-" { p } else { paired.map_or(p, |paired| p_latex(paired.p, paired.n)) };
            let doubts = of.metrics.get(name).map_or_else(Vec::new, |spread| remarks(&spread.doubts));
            // A p is of both.
            let theirs = paired.filter(|_| of_p != Stands::Nothing).into_iter().flat_map(|paired| {
                remarks(&paired.doubts).into_iter().map(|remark| format!("{}, {remark}", paired.baseline))
            });
            let doubts_of_p = match of_p {
                Stands::Nothing => Vec::new(),
                _ => doubts.iter().cloned().chain(theirs).collect(),
            };
            [
                TableCell { text: mean, stands: of_mean, doubts },
                TableCell { text: p, stands: of_p, doubts: doubts_of_p },
            ]
        });
        (of.variant.clone(), cells.collect())
    };
    Tabular { columns: header(&there), rows: repeats.iter().map(cells).collect() }
}

/// Metrics that some variant has.
fn there(repeats: &[Repeats]) -> Vec<&'static (&'static str, &'static str)> {
    METRICS.iter().filter(|(name, _)| repeats.iter().any(|of| of.metrics.contains_key(name))).collect()
}

fn header(there: &[&(&str, &str)]) -> Vec<String> {
    // No title stands twice, since tables are read by them.
    let of_p = |title: &str| if there.len() == 1 { P.to_owned() } else { format!("{P} ({title})") };
    let titles = there.iter().flat_map(|(_, title)| [(*title).to_owned(), of_p(title)]);
    std::iter::once("variant".to_owned()).chain(titles).collect()
}

/// Header and a row for each variant: its name, then a mean and a p for each metric that is there.
fn table(repeats: &[Repeats], plus_minus: &str) -> Vec<Vec<String>> {
    let there = there(repeats);
    let row = |Repeats { variant, metrics }: &Repeats| {
        let cells = there.iter().flat_map(|(name, _)| {
            let [mut mean, p] = cell_texts(metrics.get(name), plus_minus);
            mean.push_str(metrics.get(name).map_or("", |spread| &spread.marks));
            [mean, p]
        });
        std::iter::once(variant.clone()).chain(cells).collect()
    };
    std::iter::once(header(&there)).chain(repeats.iter().map(row)).collect()
}

/// A mean and its p.
fn cell_texts(spread: Option<&Spread>, plus_minus: &str) -> [String; 2] {
    let Some(Spread { n, mean, std, against, .. }) = spread else { return ["-".into(), "-".into()] };
    [
        mean_text(*n, *mean, *std, plus_minus),
        against.as_ref().map_or_else(|| "-".to_owned(), |paired| p_text(paired.p, paired.n)),
    ]
}

pub(super) fn mean_text(n: usize, mean: f64, std: Option<f64>, plus_minus: &str) -> String {
    let std = std.map_or_else(String::new, |std| format!("{plus_minus}{std:.1}"));
    format!("{mean:.1}{std} ({n})")
}

/// Pairs of which p is no more exact than its second decimal.
const FEW_PAIRS: usize = 4;

pub(super) fn p_text(p: Option<f64>, n_pairs: usize) -> String {
    let digits = if n_pairs > FEW_PAIRS { 4 } else { 2 };
    let least = 10f64.powi(-digits);
    let text = |p: f64| match p < least {
        true => format!("<{least}"),
        false => format!("{p:.0$}", digits as usize),
    };
    p.map_or_else(|| "-".to_owned(), text)
}

/// What is compared with, in words.
fn baselines(repeats: &[Repeats]) -> String {
    let paired = repeats.iter().flat_map(|of| of.metrics.values()).filter_map(|spread| spread.against.as_ref());
    let mut names: Vec<String> = paired.map(|paired| format!("`{}`", paired.baseline)).collect();
    names.sort();
    names.dedup();
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::spec::Spec;

    /// scipy 1.17.1: 2 * scipy.stats.t.sf(t, degrees).
    #[test]
    fn p_agrees_with_scipy() {
        for (t, degrees, expected) in [
            (0.0, 1, 1.0),
            (1.0, 1, 0.5000000000000001),
            (12.706, 1, 0.05000080235813319),
            (2.0, 2, 0.18350341907227397),
            (31.6, 2, 0.000999940253679947),
            (2.5, 3, 0.08770664700806556),
            (3.182, 3, 0.050017136543313766),
            (4.0, 4, 0.016130089900092546),
            (1.3, 7, 0.23476783539237725),
            (2.262, 9, 0.05001284550245463),
            (5.5, 10, 0.00026178837349453667),
            (0.7, 29, 0.48950514861448374),
        ] {
            let found = student_p(t, degrees);
            assert!((found - expected).abs() < 1e-12 + 1e-9 * expected, "{t} {degrees}: {found}");
            assert_eq!(found, student_p(-t, degrees));
        }
        // scipy.stats.ttest_rel([58.1, 59.4, 57.7], [50.2, 50.9, 49.1])
        let p = paired_t(&[58.1 - 50.2, 59.4 - 50.9, 57.7 - 49.1]).unwrap();
        assert!((p - 0.0006872907971726584).abs() < 1e-9, "{p}");
        assert_eq!((paired_t(&[1.0]), paired_t(&[2.0, 2.0]), paired_t(&[])), (None, None, None));
    }

    /// Cells and rows: variant, axes, and seed mIoU.
    fn runs(runs: &[(&str, &[(&str, &str)], Option<f64>)]) -> (Vec<Cell>, Vec<Row>) {
        let run = |(variant, axes, seed_miou): &(&str, &[(&str, &str)], Option<f64>)| {
            let axes: Vec<(String, String)> = axes.iter().map(|(a, b)| ((*a).into(), (*b).into())).collect();
            let row = Row {
                cell: String::new(),
                dataset: "voc".into(),
                seed_miou: *seed_miou,
                seed_threshold: None,
                pseudo_label_miou: None,
                segmentation_miou: None,
                per_class: BTreeMap::new(),
                metrics: BTreeMap::new(),
                digests: BTreeMap::new(),
                drifted: BTreeMap::new(),
                sick: BTreeMap::new(),
            };
            (Cell { name: String::new(), variant: (*variant).into(), axes, spec: Spec::default() }, row)
        };
        runs.iter().map(run).unzip()
    }

    #[test]
    fn pairs_are_of_equal_seeds_and_points() {
        let (low, high) = (("cpm.tau", "0.3"), ("cpm.tau", "0.5"));
        let (s0, s1, s2) = (("rng_seed", "0"), ("rng_seed", "1"), ("rng_seed", "2"));
        let (cells, rows) = runs(&[
            ("base", &[low, s0], Some(50.0)),
            ("base", &[low, s1], Some(52.0)),
            ("base", &[low, s2], None),
            ("base", &[high, s0], Some(10.0)),
            ("S2C", &[low, s2], Some(61.0)),
            ("S2C", &[low, s1], Some(60.0)),
            ("S2C", &[low, s0], Some(59.0)),
            ("S2C", &[high, s0], Some(15.0)),
        ]);
        let found = repeats(&cells, &rows, None).unwrap();
        let names: Vec<&str> = found.iter().map(|of| of.variant.as_str()).collect();
        assert_eq!(names, ["base, cpm.tau=0.3", "base, cpm.tau=0.5", "S2C, cpm.tau=0.3", "S2C, cpm.tau=0.5"]);
        let seed = |i: usize| &found[i].metrics["seed_miou"];
        assert_eq!((seed(0).n, seed(0).mean, seed(0).std), (2, 51.0, Some(2f64.sqrt())));
        assert!(seed(0).against.is_none());
        let paired = seed(2).against.as_ref().unwrap();
        assert_eq!((seed(2).n, paired.n, paired.difference), (3, 2, 8.5));
        assert_eq!(paired.baseline, "base, cpm.tau=0.3");
        let paired = seed(3).against.as_ref().unwrap();
        assert_eq!((paired.n, paired.difference, paired.p, seed(3).std), (1, 5.0, None, None));

        let against = |name| repeats(&cells, &rows, Some(name)).map(|found| found[0].metrics["seed_miou"].clone());
        assert_eq!(against("S2C").unwrap().against.unwrap().difference, -8.5);
        assert_eq!(against("S2C, cpm.tau=0.5").unwrap().against.unwrap().difference, 35.0);
        assert_eq!(against("s2c").unwrap_err().len(), 4);

        insta::assert_snapshot!(text(&found[..3]), @"
        mean +- standard deviation (runs); p of a paired t-test against `base, cpm.tau=0.3`
        variant                  seed mIoU     p
        base, cpm.tau=0.3  51.0 +- 1.4 (2)     -
        base, cpm.tau=0.5         10.0 (1)     -
        S2C, cpm.tau=0.3   60.0 +- 1.0 (3)  0.04
        ");
        insta::assert_snapshot!(csv(&found[2..]), @r#"
        variant,metric,n,mean,std,against,pairs,difference,p,remarks
        "S2C, cpm.tau=0.3",seed_miou,3,60,1,"base, cpm.tau=0.3",2,8.5,0.037405118482553235,
        "S2C, cpm.tau=0.5",seed_miou,1,15,,"base, cpm.tau=0.5",1,5,,
        "#);
        let cells =
            |row: usize| tabular(&found[..3]).rows[row].1.iter().map(|cell| cell.text.clone()).collect::<Vec<_>>();
        assert_eq!(
            (cells(0), cells(2)),
            (vec!["51.0 $\\pm$ 1.4 (2)".into(), "-".into()], vec!["60.0 $\\pm$ 1.0 (3)".into(), "0.04".into()])
        );
    }

    #[test]
    fn p_has_no_more_digits_than_its_pairs_tell() {
        let cases = [
            (Some(0.0374), 2, "0.04"),
            (Some(0.0007), 3, "<0.01"),
            (Some(0.0007), 4, "<0.01"),
            (Some(0.0007), 5, "0.0007"),
            (Some(0.00001), 9, "<0.0001"),
            (Some(1.0), 2, "1.00"),
            (None, 1, "-"),
        ];
        for (p, n_pairs, expected) in cases {
            assert_eq!(p_text(p, n_pairs), expected);
        }
    }

    #[test]
    fn without_the_axis_there_is_nothing_to_repeat() {
        let (cells, rows) = runs(&[("base", &[], Some(50.0)), ("S2C", &[], Some(60.0))]);
        assert!(repeats(&cells, &rows, None).unwrap().is_empty());
    }
}
