//! Two variants of one graph, unit by unit: where their keys part, by what, and what that made of the artifacts.

pub mod fields;
mod text;

use std::collections::{BTreeMap, HashMap, HashSet};

use serde::Serialize;

use super::graph::{Graph, Input, UnitIdx};
use super::resolve::Resolver;
use super::why::params_that_differ;
use crate::cache::Cache;
use crate::digest::BlobDigest;

/// What two variants share and where they differ. Left and right are in the order in which they were asked for.
#[derive(Debug, Serialize)]
pub struct Comparison {
    /// The first unit in order whose key differs by something of its own, if both have one.
    pub first: Option<First>,
    /// Lines on what the two read that differs: data and weights.
    pub changes: Vec<String>,
    /// Fields of the pipeline file that differ, as far as somebody looked.
    pub fields: Vec<fields::Field>,
    /// In the order in which they run.
    pub stages: Vec<StageComparison>,
    /// The first artifact in order that both have and that differs.
    pub first_blob: Option<BlobPair>,
    /// Labels of units whose keys differ and whose artifacts are equal.
    pub equal_blobs: Vec<String>,
    /// mIoU in percent of what was scored.
    pub effects: Vec<Effect>,
}

/// Where keys part.
#[derive(Clone, Debug, Serialize)]
pub struct First {
    pub unit: String,
    pub causes: Vec<Cause>,
}

/// The units of one stage.
#[derive(Clone, Debug, Default, Serialize)]
pub struct StageComparison {
    pub stage: &'static str,
    /// Units that both have, with one key.
    pub equal: usize,
    /// Units of one name whose keys differ.
    pub differ: usize,
    /// Units of one name whose keys are not known before something has run.
    pub unknown: usize,
    pub only_left: usize,
    pub only_right: usize,
    /// Of those that differ, units that have finished on both sides and gave other artifacts.
    pub blobs_differ: usize,
    /// Of those that differ, units that have finished on both sides and gave the same.
    pub blobs_equal: usize,
    /// What differs in its units themselves, not in what they read alone: each cause at the first unit that has it.
    pub parts: Vec<First>,
}

/// What makes a key another, in the unit itself.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "what")]
pub enum Cause {
    Version {
        left: u64,
        right: u64,
    },
    /// `None` where a side does not write the parameter, which is then at its default, or of no effect.
    Param {
        path: String,
        left: Option<serde_json::Value>,
        right: Option<serde_json::Value>,
    },
    /// Only one side reads it.
    OnlyLeft {
        slot: String,
    },
    OnlyRight {
        slot: String,
    },
    /// A file, or a value of the data set, by the digest of its bytes.
    Content {
        slot: String,
        left: String,
        right: String,
    },
    /// The output of another stage, or something else than an output.
    Input {
        slot: String,
        left: String,
        right: String,
    },
    /// The same items in another order.
    Order {
        slot: String,
    },
    Items {
        slot: String,
        only_left: Vec<String>,
        only_right: Vec<String>,
        changed: Vec<String>,
    },
}

impl Cause {
    /// Each parameter that differs.
    pub(super) fn of_params(left: &serde_json::Value, right: &serde_json::Value) -> Vec<Self> {
        let cause = |(path, ..): (String, _, _)| {
            let at = |params: &serde_json::Value| params.pointer(&format!("/{}", path.replace('.', "/"))).cloned();
            let (left, right) = (at(left), at(right));
            Self::Param { path, left, right }
        };
        params_that_differ("", left, right).into_iter().map(cause).collect()
    }
}

/// An artifact of both sides.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BlobPair {
    pub unit: String,
    pub output: String,
    pub left: BlobDigest,
    pub right: BlobDigest,
}

/// One metric of both sides; `None` where it is not there.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Effect {
    pub metric: &'static str,
    pub left: Option<f64>,
    pub right: Option<f64>,
    /// Right minus left.
    pub difference: Option<f64>,
}

impl Effect {
    pub fn new(metric: &'static str, left: Option<f64>, right: Option<f64>) -> Self {
        Self { metric, left, right, difference: left.zip(right).map(|(left, right)| right - left) }
    }
}

/// Compares the units that two lists of targets need. Units that are one in the graph are equal; the others are paired
/// by stage and item.
pub fn compare(graph: &Graph, cache: &Cache, left: &[UnitIdx], right: &[UnitIdx], effects: Vec<Effect>) -> Comparison {
    let needed = |targets: &[UnitIdx]| Resolver::new(graph, cache, targets).needed;
    let (in_left, in_right) = (needed(left), needed(right));
    let mut resolver = Resolver::new(graph, cache, &[left, right].concat());
    resolver.look_up();
    let (pairs, alone) = paired(graph, &in_left, &in_right);

    let mut order: BTreeMap<&'static str, (usize, UnitIdx)> = BTreeMap::new();
    let mut stages: BTreeMap<&'static str, StageComparison> = BTreeMap::new();
    let mut of_stage = |unit: UnitIdx, count: &mut dyn FnMut(&mut StageComparison)| {
        let stage = graph.kind(unit).stage;
        let place = order.entry(stage).or_insert((graph.level(unit), unit));
        *place = (*place).max((graph.level(unit), unit));
        count(stages.entry(stage).or_insert_with(|| StageComparison { stage, ..StageComparison::default() }));
    };
    for unit in (0..graph.len()).filter(|&unit| in_left[unit] && in_right[unit]) {
        of_stage(unit, &mut |stage| stage.equal += 1);
    }
    for &unit in &alone {
        of_stage(unit, &mut |stage| *(if in_left[unit] { &mut stage.only_left } else { &mut stage.only_right }) += 1);
    }
    let (mut first, mut first_blob, mut equal_blobs) = (None, None, Vec::new());
    for (a, b) in pairs {
        let (keys, label) = ([a, b].map(|unit| resolver.key(unit)), graph.unit(b).label());
        if keys[0].is_some() && keys[0] == keys[1] {
            of_stage(b, &mut |stage| stage.equal += 1);
            continue;
        }
        let is_known = keys.iter().all(Option::is_some);
        let part = First { unit: label.clone(), causes: causes(graph, a, b) };
        if first.is_none() && !part.causes.is_empty() {
            first = Some(part.clone());
        }
        let blobs = if is_known { blobs(&resolver, a, b) } else { None };
        let differing = blobs.iter().flatten().find(|(_, left, right)| left != right);
        of_stage(b, &mut |stage| {
            *(if is_known { &mut stage.differ } else { &mut stage.unknown }) += 1;
            stage.take(&part);
            stage.blobs_differ += usize::from(differing.is_some());
            stage.blobs_equal += usize::from(blobs.is_some() && differing.is_none());
        });
        match differing {
            Some((output, left, right)) if first_blob.is_none() => {
                first_blob = Some(BlobPair { unit: label, output: output.clone(), left: *left, right: *right });
            }
            None if blobs.is_some() => equal_blobs.push(label),
            _ => {}
        }
    }
    let mut stages: Vec<StageComparison> = stages.into_values().collect();
    stages.sort_by_key(|stage| order[stage.stage]);
    Comparison { first, changes: Vec::new(), fields: Vec::new(), stages, first_blob, equal_blobs, effects }
}

impl StageComparison {
    /// Takes what of a unit's causes is new.
    fn take(&mut self, part: &First) {
        let known: HashSet<String> = self.parts.iter().flat_map(|part| &part.causes).map(Cause::name).collect();
        let causes: Vec<Cause> = part.causes.iter().filter(|cause| !known.contains(&cause.name())).cloned().collect();
        if !causes.is_empty() {
            self.parts.push(First { unit: part.unit.clone(), causes });
        }
    }
}

/// Units that differ, paired by stage and item, those that read nothing of others first; and those without a partner.
fn paired(graph: &Graph, in_left: &[bool], in_right: &[bool]) -> (Vec<(UnitIdx, UnitIdx)>, Vec<UnitIdx>) {
    let own = |of: &[bool], other: &[bool]| -> Vec<UnitIdx> {
        (0..graph.len()).filter(|&unit| of[unit] && !other[unit]).collect()
    };
    let name = |unit: UnitIdx| (graph.kind(unit).stage, graph.unit(unit).item);
    let mut partners: HashMap<(&str, &str), Vec<UnitIdx>> = HashMap::new();
    for unit in own(in_right, in_left).into_iter().rev() {
        partners.entry(name(unit)).or_default().push(unit);
    }
    let (mut pairs, mut alone) = (Vec::new(), Vec::new());
    for unit in own(in_left, in_right) {
        match partners.get_mut(&name(unit)).and_then(Vec::pop) {
            Some(partner) => pairs.push((unit, partner)),
            None => alone.push(unit),
        }
    }
    alone.extend(partners.into_values().flatten());
    pairs.sort_by_key(|&(a, b)| (graph.level(a).max(graph.level(b)), b));
    (pairs, alone)
}

/// Outputs of two units that have both finished: name, left, right.
fn blobs(resolver: &Resolver<'_>, left: UnitIdx, right: UnitIdx) -> Option<Vec<(String, BlobDigest, BlobDigest)>> {
    let records = resolver.cache.records();
    let (left, right) = (resolver.known[left]?, resolver.known[right]?);
    let both =
        |(name, digest, _): (&str, BlobDigest, u64)| Some((name.to_owned(), digest, records.output(right, name)?.0));
    Some(records.outputs(left).filter_map(both).collect())
}

/// What of two units differs beside the artifacts they read.
pub(super) fn causes(graph: &Graph, left: UnitIdx, right: UnitIdx) -> Vec<Cause> {
    let (was, is) = (graph.kind(left), graph.kind(right));
    let mut found = Vec::new();
    if was.version != is.version {
        found.push(Cause::Version { left: was.version, right: is.version });
    }
    let [left_params, right_params]: [serde_json::Value; 2] =
        [was, is].map(|kind| serde_json::from_str(&kind.params).unwrap_or_default());
    found.extend(Cause::of_params(&left_params, &right_params));
    let input =
        |unit: UnitIdx, slot: u16| graph.inputs(unit).iter().find(|(of, _)| *of == slot).map(|(_, input)| *input);
    for &(slot, was) in graph.inputs(left) {
        let name = graph.name_at(slot).to_owned();
        match input(right, slot) {
            None => found.push(Cause::OnlyLeft { slot: name }),
            Some(is) => found.extend(input_cause(graph, name, was, is)),
        }
    }
    for &(slot, _) in graph.inputs(right) {
        if input(left, slot).is_none() {
            found.push(Cause::OnlyRight { slot: graph.name_at(slot).to_owned() });
        }
    }
    found
}

/// `None` where both read the same output of the same stage: what differs there is not of these units.
fn input_cause(graph: &Graph, slot: String, left: Input, right: Input) -> Option<Cause> {
    if let (Input::Set(left), Input::Set(right)) = (left, right) {
        return set_cause(graph, slot, left as usize, right as usize);
    }
    let are_files = matches!((left, right), (Input::Content(_), Input::Content(_)));
    is_other(graph, left, right).then(|| match (said(graph, left), said(graph, right)) {
        (left, right) if are_files => Cause::Content { slot, left, right },
        (left, right) => Cause::Input { slot, left, right },
    })
}

fn is_other(graph: &Graph, left: Input, right: Input) -> bool {
    let source = |input: Input| match input {
        Input::Output { unit, name } => Some((graph.kind(unit as usize).stage, name)),
        Input::Content(_) | Input::Set(_) => None,
    };
    left != right && (source(left).is_none() || source(left) != source(right))
}

fn said(graph: &Graph, input: Input) -> String {
    match input {
        Input::Output { unit, name } => format!("{} of {}", graph.name_at(name), graph.kind(unit as usize).stage),
        Input::Content(content) => graph.content(content).0.short(),
        Input::Set(set) => format!("a set of {}", graph.members(set as usize).len()),
    }
}

fn set_cause(graph: &Graph, slot: String, left: usize, right: usize) -> Option<Cause> {
    if left == right {
        return None;
    }
    let (was, is): (HashMap<_, _>, HashMap<_, _>) = (graph.members(left).collect(), graph.members(right).collect());
    let owned = |(item, _): (&str, Input)| item.to_owned();
    let only_left: Vec<String> = graph.members(left).filter(|(item, _)| !is.contains_key(item)).map(owned).collect();
    let only_right: Vec<String> = graph.members(right).filter(|(item, _)| !was.contains_key(item)).map(owned).collect();
    let is_changed = |(item, is): &(&str, Input)| was.get(item).is_some_and(|was| is_other(graph, *was, *is));
    let changed: Vec<String> = graph.members(right).filter(is_changed).map(owned).collect();
    let is_same = only_left.is_empty() && only_right.is_empty() && changed.is_empty();
    let items = |set: usize| graph.members(set).map(|(item, _)| item);
    match is_same {
        false => Some(Cause::Items { slot, only_left, only_right, changed }),
        true => (!items(left).eq(items(right))).then_some(Cause::Order { slot }),
    }
}
