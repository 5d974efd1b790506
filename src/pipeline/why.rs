//! Why a unit is not fresh: in what it differs from a unit that finished before, or which of the units above it does.
//!
//! A unit is compared with what it was in the last run of the same file, in the same variant or the one that this was
//! made from; where that run had no such unit, it is new. Where nothing is known of a last run, it is compared with the
//! record of its stage and item that is nearest in parameters. A difference is named at the unit that has it: where an
//! input is another since the unit that gives it changed, the cause is in that unit, compared with the record that gave
//! the old input.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;
use std::rc::Rc;

use serde::Serialize;
use serde_json::Value;

#[cfg(feature = "torch")]
use super::build::CellUnits;
use super::graph::{Graph, Input, SetIdx, UnitIdx};
#[cfg(feature = "torch")]
use super::outcomes::Outcomes;
use super::resolve::{Resolver, State};
use crate::artifact::{FingerprintInput, Manifest, SetListing};
use crate::cache::Cache;
#[cfg(feature = "torch")]
use crate::cache::history::LastUnits;
use crate::digest::{BlobDigest, UnitKey};

/// How many differences are named before the rest is counted.
const MAX_NAMED: usize = 5;

/// Why a unit is not fresh.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "reason")]
pub enum StaleReason {
    Fresh,
    /// No unit of this stage and item has finished here.
    NeverRan,
    /// It finished, but an output's blob is gone.
    BlobLost {
        output: String,
    },
    /// Something it reads has to run first, and nothing else is known of it.
    Waits {
        on: Vec<String>,
    },
    /// It is another than the one it is compared with.
    Changed {
        /// In itself.
        differences: Vec<Difference>,
        /// In units above it.
        above: Vec<Cause>,
        compared: Compared,
    },
}

/// What a unit is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Compared {
    /// What it was in the last run of this file.
    LastRun,
    /// The record that is nearest in parameters, of any run in this cache; when it finished, in seconds since 1970.
    Nearest { finished: u64 },
}

/// A difference of a unit above.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Cause {
    /// Its label.
    pub unit: String,
    #[serde(flatten)]
    pub difference: Difference,
}

/// One influence that differs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case", tag = "what")]
pub enum Difference {
    Version {
        old: u64,
        new: u64,
    },
    /// JSON texts; `null` where a side has no such parameter.
    Param {
        path: String,
        old: String,
        new: String,
    },
    /// A file, or a value of the data set.
    Input {
        slot: String,
        old: String,
        new: String,
    },
    Set {
        slot: String,
        added: Vec<String>,
        removed: Vec<String>,
        changed: Vec<String>,
    },
    /// The last run had no such unit, or nothing like it has finished here.
    New,
    /// It finished as it is, and a blob that it gave is gone.
    Lost,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Version { old, new } => write!(f, "stage version: {old} -> {new}"),
            Self::Param { path, old, new } => write!(f, "parameter `{path}`: {old} -> {new}"),
            Self::Input { slot, old, .. } if old == NONE => write!(f, "it reads `{slot}`, which it did not"),
            Self::Input { slot, new, .. } if new == NONE => write!(f, "it does not read `{slot}` any more"),
            Self::Input { slot, new, .. } if new == UNKNOWN => write!(f, "input `{slot}` is not known yet"),
            Self::Input { slot, .. } => write!(f, "input `{slot}` has other content"),
            Self::Set { slot, added, removed, changed } => {
                let parts = [("added", added), ("removed", removed), ("changed", changed)].into_iter();
                let parts = parts.filter(|(_, items)| !items.is_empty());
                let parts = parts.map(|(verb, items)| format!("{} {verb} ({})", items.len(), named(items)));
                write!(f, "inputs `{slot}`: {}", parts.collect::<Vec<_>>().join(", "))
            }
            Self::New => write!(f, "is new"),
            Self::Lost => write!(f, "ran, but what it gave is gone"),
        }
    }
}

impl fmt::Display for StaleReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fresh => write!(f, "fresh: it is in the cache"),
            Self::NeverRan => write!(f, "never ran here"),
            Self::BlobLost { output } => write!(f, "ran, but the blob of its output `{output}` is gone"),
            Self::Waits { on } => write!(f, "waits for {} unit(s) to run first: {}", on.len(), named(on)),
            Self::Changed { differences, above, compared } => {
                let since = match compared {
                    Compared::LastRun => "changed since the last run",
                    Compared::Nearest { .. } => "differs from the nearest record",
                };
                let is_new = differences[..] == [Difference::New];
                let own = differences.iter().filter(|_| !is_new).map(Difference::to_string);
                let own: Vec<String> = own.collect();
                let mut by_difference: BTreeMap<String, Vec<String>> = BTreeMap::new();
                for Cause { unit, difference } in above {
                    by_difference.entry(difference.to_string()).or_default().push(unit.clone());
                }
                let above = by_difference.iter().map(|(difference, units)| format!("{}: {difference}", named(units)));
                let above: Vec<String> = above.collect();
                let above = above.join("; ");
                match (own.is_empty(), above.is_empty()) {
                    _ if is_new && above.is_empty() => write!(f, "is new"),
                    _ if is_new => write!(f, "is new, and waits for other units: {above}"),
                    (true, true) => write!(f, "{since}"),
                    (false, true) => write!(f, "{since}: {}", own.join("; ")),
                    (true, false) => write!(f, "waits for what {since}: {above}"),
                    (false, false) => write!(f, "{since}: {}; and waits for other units: {above}", own.join("; ")),
                }
            }
        }
    }
}

const NONE: &str = "none";
/// For what has to be computed first.
const UNKNOWN: &str = "not known yet";

fn named(items: &[String]) -> String {
    let named = items.iter().take(MAX_NAMED).cloned().collect::<Vec<_>>().join(", ");
    match items.len().saturating_sub(MAX_NAMED) {
        0 => named,
        more => format!("{named}, and {more} more"),
    }
}

/// Keys that a unit had in the last run of the same file, none for a unit that it did not have; `None` where nothing is
/// known of such a run.
pub type KeysThen<'a> = dyn Fn(UnitIdx) -> Option<Vec<UnitKey>> + 'a;

/// Why each of some units is not fresh.
pub fn why(
    graph: &Graph,
    cache: &Cache,
    targets: &[UnitIdx],
    units: &[UnitIdx],
    then: &KeysThen<'_>,
) -> anyhow::Result<Vec<StaleReason>> {
    let mut resolver = Resolver::new(graph, cache, targets);
    resolver.look_up();
    let states = resolver.states(targets);
    let (found, above_new) = (HashMap::new(), HashMap::new());
    let mut comparison = Comparison { resolver, states, then, by_label: None, found, above_new };
    units.iter().map(|&unit| comparison.reason(unit)).collect()
}

/// The units that have finished, as the next [`why`] compares with them.
#[cfg(feature = "torch")]
pub fn last_units(graph: &Graph, cells: &[CellUnits], finished: &Outcomes) -> LastUnits {
    let mut last = LastUnits::default();
    let mut places: HashMap<UnitIdx, u32> = HashMap::new();
    for cell in cells {
        let place = |unit: UnitIdx| {
            let key = finished.key(unit)?;
            Some(*places.entry(unit).or_insert_with(|| {
                last.units.push((graph.unit(unit).label(), key));
                last.units.len() as u32 - 1
            }))
        };
        let units = with_all_above(graph, cell.units()).into_iter().filter_map(place).collect();
        last.variants.push((cell.name.clone(), units));
    }
    last
}

/// Some units and all that they read, in the order of the graph.
pub fn with_all_above(graph: &Graph, units: impl Iterator<Item = UnitIdx>) -> BTreeSet<UnitIdx> {
    let mut to_do: Vec<UnitIdx> = units.collect();
    let mut found: BTreeSet<UnitIdx> = to_do.iter().copied().collect();
    while let Some(unit) = to_do.pop() {
        graph.for_each_dependency(unit, |above| {
            if found.insert(above) {
                to_do.push(above);
            }
        });
    }
    found
}

/// What the last run of a file is to its variants of now.
#[cfg(feature = "torch")]
pub struct Then<'a> {
    pub last: &'a LastUnits,
    /// It ended well, so that what it did not have is new.
    pub is_whole: bool,
    /// By variant of now: the variant of then that it is compared with.
    pub variants: &'a BTreeMap<String, String>,
}

/// The keys that each unit had in the last run; where several variants have the unit, in `first` or in the first of the
/// file.
#[cfg(feature = "torch")]
pub fn keys_then<'a>(
    graph: &'a Graph,
    cells: &[CellUnits],
    then: &Then<'a>,
    first: &str,
) -> impl Fn(UnitIdx) -> Option<Vec<UnitKey>> + 'a {
    let mut cells: Vec<&CellUnits> = cells.iter().collect();
    cells.sort_by_key(|cell| cell.name != first);
    let is_whole = then.is_whole;
    let of_cell = |cell: &CellUnits| {
        let units = with_all_above(graph, cell.units());
        let keys = then.variants.get(&cell.name).map(|variant| then.last.of_variant(variant));
        (units, keys.filter(|keys| !keys.is_empty()))
    };
    let variants: Vec<(BTreeSet<UnitIdx>, Option<HashMap<&str, Vec<UnitKey>>>)> =
        cells.into_iter().map(of_cell).collect();
    move |unit| {
        let (_, keys) = variants.iter().find(|(units, _)| units.contains(&unit))?;
        let keys = keys.as_ref()?.get(&*graph.unit(unit).label()).cloned().unwrap_or_default();
        (is_whole || !keys.is_empty()).then_some(keys)
    }
}

struct Comparison<'a> {
    resolver: Resolver<'a>,
    states: Vec<State>,
    then: &'a KeysThen<'a>,
    /// Every record of the cache, once it is asked for.
    by_label: Option<HashMap<String, Vec<Rc<Manifest>>>>,
    /// In what a unit differs from a record.
    found: HashMap<(UnitIdx, UnitKey), Rc<Differing>>,
    /// Of a new unit: what differs in units above it.
    above_new: HashMap<UnitIdx, Rc<BTreeSet<Cause>>>,
}

/// Records that are compared in all that is above them, where they are equally near by themselves.
const MOST_TIED: usize = 16;

/// In what a unit differs from a record: in itself, and in units above it.
#[derive(Debug, Default)]
struct Differing {
    own: Vec<Difference>,
    above: Rc<BTreeSet<Cause>>,
}

impl Differing {
    /// As a unit that reads it sees it.
    fn seen_from_below(&self, label: &str) -> Rc<BTreeSet<Cause>> {
        if self.own.is_empty() {
            return self.above.clone();
        }
        let cause = |difference: &Difference| Cause { unit: label.to_owned(), difference: difference.clone() };
        Rc::new(self.above.iter().cloned().chain(self.own.iter().map(cause)).collect())
    }
}

impl Comparison<'_> {
    fn reason(&mut self, unit: UnitIdx) -> anyhow::Result<StaleReason> {
        if self.states[unit] == State::Done {
            return Ok(StaleReason::Fresh);
        }
        if let Some(record) = self.resolver.known[unit] {
            let (store, records) = (self.resolver.cache.store(), self.resolver.cache.records());
            let is_lost = |digest: &BlobDigest, size| !store.has(digest, size) || store.read(digest).is_err();
            let lost = records.outputs(record).find(|(_, digest, size)| is_lost(digest, *size));
            if let Some((output, ..)) = lost {
                return Ok(StaleReason::BlobLost { output: output.to_owned() });
            }
        }
        let Some((old, compared)) = self.counterpart(unit, None)? else {
            if (self.then)(unit).is_none() {
                return Ok(StaleReason::NeverRan);
            }
            let above = self.above_new(unit)?.iter().cloned().collect();
            return Ok(StaleReason::Changed { differences: vec![Difference::New], above, compared: Compared::LastRun });
        };
        let differing = self.compare(unit, &old)?;
        let above: Vec<Cause> = differing.above.iter().cloned().collect();
        let is_lost = |cause: &Cause| cause.difference == Difference::Lost;
        match (&differing.own[..], &above[..]) {
            ([], above) if above.iter().all(is_lost) => {
                let mut on = Vec::new();
                self.resolver.graph.for_each_dependency(unit, |below| {
                    if self.states[below] != State::Done {
                        on.push(self.resolver.graph.unit(below).label());
                    }
                });
                Ok(StaleReason::Waits { on })
            }
            (own, _) => Ok(StaleReason::Changed { differences: own.to_vec(), above, compared }),
        }
    }

    /// The record that a unit is compared with; `gave`: one that gave this. `None`: it is new.
    fn counterpart(
        &mut self,
        unit: UnitIdx,
        gave: Option<BlobDigest>,
    ) -> anyhow::Result<Option<(Rc<Manifest>, Compared)>> {
        let cache = self.resolver.cache;
        let keys = (self.then)(unit);
        let then: Vec<Rc<Manifest>> = keys.iter().flatten().filter_map(|key| cache.get(key)).map(Rc::new).collect();
        if let Some(old) = self.nearest(unit, &then, gave)? {
            return Ok(Some((old, Compared::LastRun)));
        }
        if keys.is_some() && gave.is_none() {
            return Ok(None);
        }
        if self.by_label.is_none() {
            let mut by_label: HashMap<String, Vec<Rc<Manifest>>> = HashMap::new();
            for manifest in cache.manifests()? {
                by_label.entry(manifest.label.clone()).or_default().push(Rc::new(manifest));
            }
            self.by_label = Some(by_label);
        }
        let label = self.resolver.graph.unit(unit).label();
        let of_label = self.by_label.as_ref().and_then(|all| all.get(&label)).cloned().unwrap_or_default();
        let nearest = self.nearest(unit, &of_label, gave)?;
        Ok(nearest.map(|old| (old.clone(), Compared::Nearest { finished: old.finished })))
    }

    /// The record that differs least from a unit, with `gave` of those that gave it: in itself; of equals, in all that is
    /// above it; the newest of several.
    fn nearest(
        &mut self,
        unit: UnitIdx,
        records: &[Rc<Manifest>],
        gave: Option<BlobDigest>,
    ) -> anyhow::Result<Option<Rc<Manifest>>> {
        let mut tied = self.nearest_in_itself(unit, records, gave);
        if tied.len() < 2 || gave.is_some() {
            return Ok(tied.into_iter().next());
        }
        tied.truncate(MOST_TIED);
        let mut nearest: Option<(usize, Rc<Manifest>)> = None;
        for old in tied {
            let differing = self.compare(unit, &old)?;
            let n = differing.own.len() + differing.above.len();
            if nearest.as_ref().is_none_or(|(least, _)| n < *least) {
                nearest = Some((n, old));
            }
        }
        Ok(nearest.map(|(_, old)| old))
    }

    /// The records that differ least in themselves, the newest first.
    fn nearest_in_itself(
        &self,
        unit: UnitIdx,
        records: &[Rc<Manifest>],
        gave: Option<BlobDigest>,
    ) -> Vec<Rc<Manifest>> {
        let graph = self.resolver.graph;
        let kind = graph.kind(unit);
        let params: Value = serde_json::from_str(&kind.params).unwrap_or_default();
        let records_here = self.resolver.cache.records();
        let distance = |old: &Rc<Manifest>| {
            let Manifest { fingerprint, .. } = &**old;
            let mut found = Vec::new();
            param_differences("", &fingerprint.params_value(), &params, &mut found);
            let others = graph.inputs(unit).iter().filter(|(slot, input)| {
                let slot = graph.name_at(*slot);
                let is = self.resolver.digest(*input, &records_here);
                fingerprint.inputs.iter().find(|was| was.slot == slot).map(|was| was.digest) != is
            });
            let n_found = found.len() + usize::from(fingerprint.version != kind.version);
            (n_found, others.count())
        };
        let has_given =
            |old: &&Rc<Manifest>| gave.is_none_or(|gave| old.outputs.iter().any(|output| output.digest == gave));
        let with_distance = records.iter().filter(has_given).map(|old| (distance(old), old.clone()));
        let with_distance: Vec<((usize, usize), Rc<Manifest>)> = with_distance.collect();
        let least = with_distance.iter().map(|(distance, _)| *distance).min();
        let tied = with_distance.into_iter().filter(|(distance, _)| Some(*distance) == least);
        let mut tied: Vec<Rc<Manifest>> = tied.map(|(_, old)| old).collect();
        tied.sort_by_key(|old| std::cmp::Reverse(old.finished));
        tied
    }

    fn compare(&mut self, unit: UnitIdx, old: &Manifest) -> anyhow::Result<Rc<Differing>> {
        if let Some(found) = self.found.get(&(unit, old.key)) {
            return Ok(found.clone());
        }
        let graph = self.resolver.graph;
        let kind = graph.kind(unit);
        let was = &old.fingerprint;
        let mut own = Vec::new();
        if was.version != kind.version {
            own.push(Difference::Version { old: was.version, new: kind.version });
        }
        let params: Value = serde_json::from_str(&kind.params).unwrap_or_default();
        param_differences("", &was.params_value(), &params, &mut own);
        let mut above = Above::default();
        for (slot, input) in graph.inputs(unit) {
            let slot = graph.name_at(*slot);
            let then = was.inputs.iter().find(|input| input.slot == slot);
            self.compare_input(slot, *input, then, (&mut own, &mut above))?;
        }
        let slots: HashSet<&str> = graph.slots(unit).collect();
        for gone in was.inputs.iter().filter(|input| !slots.contains(input.slot.as_str())) {
            own.push(Difference::Input { slot: gone.slot.clone(), old: gone.digest.short(), new: NONE.to_owned() });
        }
        let found = Rc::new(Differing { own, above: above.all() });
        self.found.insert((unit, old.key), found.clone());
        Ok(found)
    }

    fn compare_input(
        &mut self,
        slot: &str,
        input: Input,
        then: Option<&FingerprintInput>,
        (own, above): (&mut Vec<Difference>, &mut Above),
    ) -> anyhow::Result<()> {
        let is = self.resolver.digest(input, &self.resolver.cache.records());
        let was = then.map(|then| then.digest);
        if is.is_some() && is == was {
            return Ok(());
        }
        let other = || Difference::Input {
            slot: slot.to_owned(),
            old: was.map_or_else(|| NONE.to_owned(), |digest| digest.short()),
            new: is.map_or_else(|| UNKNOWN.to_owned(), |digest| digest.short()),
        };
        match (input, was) {
            (Input::Output { unit, .. }, Some(gave)) => match self.causes(unit as usize, gave)? {
                causes if causes.is_empty() => own.push(other()),
                causes => above.add(causes),
            },
            (Input::Set(set), Some(was)) => {
                let listing = self.resolver.cache.store().read(&was).ok();
                match listing.and_then(|bytes| SetListing::parse(&bytes).ok()) {
                    Some(listing) => self.compare_set(slot, set as usize, &listing, (own, above))?,
                    // What it read is not known any more; what has to run first is.
                    None => match self.of_units(&self.units_of(set as usize))? {
                        causes if causes.is_empty() => own.push(other()),
                        causes => above.add(causes),
                    },
                }
            }
            (Input::Content(_), _) | (_, None) => own.push(other()),
        }
        Ok(())
    }

    fn compare_set(
        &mut self,
        slot: &str,
        set: SetIdx,
        then: &SetListing,
        (own, above): (&mut Vec<Difference>, &mut Above),
    ) -> anyhow::Result<()> {
        let mut was: BTreeMap<&str, BlobDigest> = then.members.iter().map(|(item, of)| (item.as_str(), *of)).collect();
        let members: Vec<(String, Input)> =
            self.resolver.graph.members(set).map(|(item, input)| (item.to_owned(), input)).collect();
        let (mut added, mut changed) = (Vec::new(), Vec::new());
        for (item, input) in members {
            let is = self.resolver.digest(input, &self.resolver.cache.records());
            match (was.remove(item.as_str()), input) {
                (None, _) => added.push(item),
                (Some(was), _) if is == Some(was) => {}
                (Some(was), Input::Output { unit, .. }) => match self.causes(unit as usize, was)? {
                    causes if causes.is_empty() => changed.push(item),
                    causes => above.add(causes),
                },
                (Some(_), _) => changed.push(item),
            }
        }
        let removed: Vec<String> = was.into_keys().map(str::to_owned).collect();
        if !(added.is_empty() && removed.is_empty() && changed.is_empty()) {
            own.push(Difference::Set { slot: slot.to_owned(), added, removed, changed });
        }
        Ok(())
    }

    /// The units whose outputs are in a set.
    fn units_of(&self, set: SetIdx) -> Vec<UnitIdx> {
        let unit = |(_, input)| match input {
            Input::Output { unit, .. } => Some(unit as usize),
            Input::Set(_) | Input::Content(_) => None,
        };
        self.resolver.graph.members(set).filter_map(unit).collect()
    }

    /// What differs in some units, and above them, as far as they have to run.
    fn of_units(&mut self, units: &[UnitIdx]) -> anyhow::Result<Rc<BTreeSet<Cause>>> {
        let mut all = Above::default();
        let to_run: Vec<UnitIdx> = units.iter().copied().filter(|unit| self.states[*unit] != State::Done).collect();
        for unit in to_run {
            let label = self.resolver.graph.unit(unit).label();
            match self.counterpart(unit, None)? {
                Some((old, _)) => all.add(self.compare(unit, &old)?.seen_from_below(&label)),
                None => {
                    let new = Cause { unit: label, difference: Difference::New };
                    all.add(Rc::new(self.above_new(unit)?.iter().cloned().chain([new]).collect()));
                }
            }
        }
        Ok(all.all())
    }

    /// What differs above a new unit.
    fn above_new(&mut self, unit: UnitIdx) -> anyhow::Result<Rc<BTreeSet<Cause>>> {
        if let Some(known) = self.above_new.get(&unit) {
            return Ok(known.clone());
        }
        let mut above = Vec::new();
        self.resolver.graph.for_each_dependency(unit, |unit| above.push(unit));
        let found = self.of_units(&above)?;
        self.above_new.insert(unit, found.clone());
        Ok(found)
    }

    /// Why a unit does not give what it gave. None: it is as it was and gave other bytes, or another unit gave them.
    fn causes(&mut self, unit: UnitIdx, gave: BlobDigest) -> anyhow::Result<Rc<BTreeSet<Cause>>> {
        let label = self.resolver.graph.unit(unit).label();
        let one = |difference| Rc::new(BTreeSet::from([Cause { unit: label.clone(), difference }]));
        let Some((old, _)) = self.counterpart(unit, Some(gave))? else {
            return match self.states[unit] {
                State::Done => Ok(Rc::default()),
                _ => self.of_units(&[unit]),
            };
        };
        let causes = self.compare(unit, &old)?.seen_from_below(&label);
        let is_lost = causes.is_empty() && self.resolver.known[unit].is_none();
        Ok(if is_lost { one(Difference::Lost) } else { causes })
    }
}

/// Causes in units above; those of many units are mostly the same ones.
#[derive(Default)]
struct Above(Vec<Rc<BTreeSet<Cause>>>);

impl Above {
    fn add(&mut self, causes: Rc<BTreeSet<Cause>>) {
        if !self.0.iter().rev().take(8).any(|known| Rc::ptr_eq(known, &causes)) {
            self.0.push(causes);
        }
    }

    fn all(mut self) -> Rc<BTreeSet<Cause>> {
        match self.0.len() {
            0 | 1 => self.0.pop().unwrap_or_default(),
            _ => Rc::new(self.0.iter().flat_map(|causes| causes.iter().cloned()).collect()),
        }
    }
}

fn param_differences(path: &str, old: &Value, new: &Value, found: &mut Vec<Difference>) {
    for (path, old, new) in params_that_differ(path, old, new) {
        found.push(Difference::Param { path, old: old.to_string(), new: new.to_string() });
    }
}

/// Paths of parameters that differ, with what they are on both sides; `null` where a side has none.
pub(super) fn params_that_differ(path: &str, old: &Value, new: &Value) -> Vec<(String, Value, Value)> {
    if let (Value::Object(was), Value::Object(is)) = (old, new) {
        let names: BTreeSet<&String> = was.keys().chain(is.keys()).collect();
        let of = |name: &String| {
            let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            let side = |map: &serde_json::Map<String, Value>| map.get(name).cloned().unwrap_or_default();
            params_that_differ(&path, &side(was), &side(is))
        };
        return names.into_iter().flat_map(of).collect();
    }
    if old == new { Vec::new() } else { vec![(path.to_owned(), old.clone(), new.clone())] }
}

#[cfg(all(test, feature = "torch"))]
mod tests {
    use std::fs;
    use std::path::Path;
    use std::sync::Arc;

    use super::*;
    use crate::artifact::ArtifactRef;
    use crate::data::folder;
    use crate::data::image::{encode_label_map, encode_rgb};
    use crate::data::mask_file::MaskValues;
    use crate::data::orient::OrientationPolicy;
    use crate::data::rng::{integer, stream};
    use crate::data::scan::{LabelSource, ScanOptions};
    use crate::pipeline::build::{CellInput, build};
    use crate::pipeline::file::load;
    use crate::pipeline::plan::finished;
    use crate::vision::{Grid, Rgb};

    const IDS: [&str; 4] = ["a", "b", "c", "d"];

    fn write_image(root: &Path, i: usize, value: u8) {
        let image = Rgb { height: 8, width: 8, data: vec![value; 8 * 8 * 3] };
        fs::write(root.join(format!("images/{}.png", IDS[i])), encode_rgb(&image)).unwrap();
    }

    fn write_data(root: &Path) {
        fs::create_dir_all(root.join("images")).unwrap();
        fs::create_dir_all(root.join("masks")).unwrap();
        for (i, id) in IDS.into_iter().enumerate() {
            write_image(root, i, i as u8);
            let mut mask = Grid::filled(8, 8, 0);
            mask.data[..20].fill(1 + i as u8 % 2);
            fs::write(root.join(format!("masks/{id}.png")), encode_label_map(&mask)).unwrap();
        }
        let rows = IDS
            .iter()
            .enumerate()
            .map(|(i, id)| format!("{id}.png,{},{},{}\n", if i < 3 { "train" } else { "val" }, 1 - i % 2, i % 2));
        fs::write(root.join("labels.csv"), format!("image,split,cat,dog\n{}", rows.collect::<String>())).unwrap();
        for name in ["sam", "resnet"] {
            fs::write(root.join(name), name).unwrap();
        }
    }

    fn built(root: &Path, text: &str, cache: &Cache) -> (Graph, Vec<CellUnits>) {
        let file = root.join("exp.toml");
        fs::write(&file, text).unwrap();
        let pipeline = load(&file, &[]).unwrap();
        let options = ScanOptions {
            name: "data",
            root,
            train: "train",
            val: "val",
            max_train: 0,
            max_val: 0,
            exclude: &[],
            masks: None,
            labels: LabelSource::default(),
            orientation: OrientationPolicy::default(),
            mask_values: &MaskValues::default(),
        };
        let dataset = Arc::new(folder::scan(&options, cache).unwrap());
        let inputs: Vec<CellInput<'_>> = pipeline
            .cells
            .iter()
            .map(|cell| CellInput { name: &cell.name, spec: &cell.spec, dataset: dataset.clone() })
            .collect();
        build(&inputs, cache, false).unwrap()
    }

    fn targets(cells: &[CellUnits]) -> Vec<UnitIdx> {
        cells.iter().flat_map(CellUnits::targets).collect()
    }

    /// Records every unit as if it had run: what it gives is told by its key.
    fn finish(graph: &Graph, cells: &[CellUnits], cache: &Cache) -> LastUnits {
        let mut names: HashMap<UnitIdx, BTreeSet<&str>> = HashMap::new();
        for unit in 0..graph.len() {
            for (_, input) in graph.inputs(unit) {
                let members: Vec<Input> = match *input {
                    Input::Set(set) => graph.members(set as usize).map(|(_, input)| input).collect(),
                    other => vec![other],
                };
                for input in members {
                    if let Input::Output { unit, name } = input {
                        names.entry(unit as usize).or_default().insert(graph.name_at(name));
                    }
                }
            }
        }
        let targets = targets(cells);
        loop {
            let mut resolver = Resolver::new(graph, cache, &targets);
            resolver.look_up();
            let is_new = |unit: &UnitIdx| resolver.needed[*unit] && resolver.known[*unit].is_none();
            let new: Vec<UnitIdx> = (0..graph.len()).filter(is_new).collect();
            if new.is_empty() {
                return last_units(graph, cells, &finished(graph, cache, &targets));
            }
            for unit in new {
                let Some(fingerprint) = resolver.fingerprint(unit) else { continue };
                for (_, input) in graph.inputs(unit) {
                    if let Input::Set(set) = input {
                        cache.store().write(&resolver.listing(*set as usize).unwrap(), false).unwrap();
                    }
                }
                let key = fingerprint.key();
                let output = |name: &&str| {
                    let bytes = format!("{key} {name}").into_bytes();
                    let digest = cache.store().write(&bytes, false).unwrap();
                    ArtifactRef { name: (*name).to_owned(), digest, size: bytes.len() as u64 }
                };
                let outputs = names.get(&unit).into_iter().flatten().map(output).collect();
                let label = graph.unit(unit).label();
                let (seconds, made_by) = (0.0, String::new());
                cache.put(&Manifest { key, label, fingerprint, outputs, seconds, finished: 0, made_by }).unwrap();
            }
        }
    }

    /// Fields with values for them, and the parameter that each sets.
    const FIELDS: [(&str, [&str; 3], &str); 12] = [
        ("classifier.lr", ["0.1", "0.02", "0.03"], "lr"),
        ("classifier.momentum", ["0.9", "0.8", "0.7"], "momentum"),
        ("classifier.batch_size", ["1", "2", "3"], "batch_size"),
        ("classifier.crop", ["64", "96", "128"], "crop"),
        ("classifier.ssc.weight", ["0.1", "0.2", "0.3"], "ssc.weight"),
        ("classifier.ssc.temperature", ["0.5", "0.6", "0.7"], "ssc.temperature"),
        ("classifier.cpm.tau", ["0.3", "0.4", "0.5"], "tau"),
        ("seed.scales", ["[1.0]", "[0.5, 1.0]", "[1.0, 1.5]"], "scales"),
        ("se_map.points_per_side", ["3", "4", "5"], "points_per_side"),
        ("segmentation.lr", ["0.01", "0.02", "0.03"], "lr"),
        ("segmentation.crop", ["64", "80", "96"], "crop"),
        ("pseudo_label.threshold", ["0.3", "0.4", "0.5"], "threshold"),
    ];

    fn text(values: &[usize; 12], sweep: usize) -> String {
        let mut text = "precision = \"f32\"\ndataset.kind = \"folder\"\ndataset.root = \".\"\nsam.weights = \"sam\"\n\
                        classifier.weights = \"resnet\"\nsegmentation.weights = \"resnet\"\nclassifier.epochs = 3\n\
                        classifier.cpm.start_epoch = 1\nclassifier.cpm.scales = [1.0]\nsegmentation.epochs = 2\nclassifier.ssc.enabled = true\n\
                        classifier.cpm.enabled = true\n"
            .to_owned();
        for (i, ((field, of, _), value)) in FIELDS.iter().zip(values).enumerate() {
            if i != sweep {
                text += &format!("{field} = {}\n", of[*value]);
            }
        }
        let (field, of, _) = FIELDS[sweep];
        format!("{text}[[variant]]\nname = \"S2C\"\n[sweep]\n\"{field}\" = [{}, {}]\n", of[0], of[1])
    }

    /// In a cache full of other experiments, each edit is named, and nothing else.
    #[test]
    fn an_edit_of_a_sweep_is_the_only_cause_that_is_named() {
        let mut rng = stream(0, 0, "", "why");
        let mut random = |n: usize| integer(&mut rng, 0, n as i64 - 1) as usize;
        let (mut n_edits, mut n_told) = (0, 0);
        while n_edits < 500 {
            let dir = tempfile::tempdir().unwrap();
            let (root, cache_folder) = (dir.path().join("data"), dir.path().join("cache"));
            write_data(&root);
            let cache = Cache::open(&cache_folder, "test", &|_| true).unwrap();
            let sweep = random(FIELDS.len());
            let mut values = [0; 12].map(|_| random(3));
            let before = built(&root, &text(&values, sweep), &cache);
            let last = finish(&before.0, &before.1, &cache);
            for _ in 0..4 {
                let other = built(&root, &text(&[0; 12].map(|_| random(3)), random(FIELDS.len())), &cache);
                finish(&other.0, &other.1, &cache);
            }
            for _ in 0..20 {
                let (edited, image) = (random(FIELDS.len()), random(IDS.len() - 1));
                let is_image = random(5) == 0;
                let was = values;
                if is_image {
                    write_image(&root, image, 200 + random(50) as u8);
                } else if edited == sweep {
                    continue;
                } else {
                    values[edited] = (values[edited] + 1 + random(2)) % 3;
                }
                let now = text(&values, sweep);
                let (graph, cells) = built(&root, &now, &cache);
                let mut n_named = 0;
                for cell in &cells {
                    let variants = cells.iter().map(|cell| (cell.name.clone(), cell.name.clone())).collect();
                    let of_last = Then { last: &last, is_whole: true, variants: &variants };
                    let then = keys_then(&graph, &cells, &of_last, &cell.name);
                    let units: Vec<UnitIdx> = cell.units().collect();
                    for (unit, reason) in
                        units.iter().zip(why(&graph, &cache, &targets(&cells), &units, &then).unwrap())
                    {
                        let label = graph.unit(*unit).label();
                        let (differences, above) = match reason {
                            StaleReason::Changed { differences, above, compared } => {
                                assert_eq!(compared, Compared::LastRun, "{label}");
                                (differences, above)
                            }
                            StaleReason::Fresh => continue,
                            other => panic!("{label}: {other} after an edit of {}", FIELDS[edited].0),
                        };
                        n_named += 1;
                        for difference in differences.iter().chain(above.iter().map(|cause| &cause.difference)) {
                            let is_it = match difference {
                                Difference::Param { path, .. } => !is_image && path.ends_with(FIELDS[edited].2),
                                Difference::Input { slot, .. } => is_image && slot == "image",
                                Difference::Set { changed, added, removed, .. } => {
                                    is_image && changed[..] == [IDS[image]] && added.is_empty() && removed.is_empty()
                                }
                                _ => false,
                            };
                            assert!(
                                is_it,
                                "{label}: {difference} after an edit of {}, image: {is_image}",
                                FIELDS[edited].0
                            );
                        }
                    }
                }
                // What other experiments had with the same values is in the cache.
                assert!(n_named > 0 || !is_image, "the edit of an image is not named");
                n_told += usize::from(n_named > 0);
                values = was;
                if is_image {
                    write_image(&root, image, image as u8);
                }
                n_edits += 1;
            }
        }
        assert!(n_told * 10 > n_edits * 9, "{n_told} of {n_edits} edits are named");
    }
}
