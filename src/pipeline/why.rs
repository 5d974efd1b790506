//! Why a unit is not fresh: in what it differs from a unit of an earlier run, or what it waits for.
//!
//! A variant is compared as a whole with one variant of one earlier run, whose units stand in the same graph: they were
//! built from the pipeline file, the data set and the weights as that run had them. A difference is named at the unit that
//! has it, and a unit that only reads what has changed says so. Where no run is known, as in a cache that was pulled, a unit
//! is compared with the record of its stage and item that is nearest in parameters, and only in what is its own.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;
use std::rc::Rc;

use serde::Serialize;
use serde_json::Value;

use super::compare::{Cause, causes};
use super::graph::{Graph, Input, UnitIdx};
use super::resolve::{Resolver, State};
use crate::artifact::{Manifest, SetListing};
use crate::cache::Cache;
use crate::cache::history::How;
use crate::digest::BlobDigest;

/// How many units are named before the rest is counted.
const MAX_NAMED: usize = 5;

/// Why a unit is not fresh.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "reason")]
pub enum StaleReason {
    Fresh,
    /// It finished, but an output's blob is gone.
    BlobLost {
        output: String,
    },
    /// The variant that it is compared with had no such unit.
    New,
    /// It differs in itself from what it was.
    Changed {
        causes: Vec<Cause>,
    },
    /// It is as it was, and these units have to run first.
    Waits {
        on: Vec<String>,
    },
    /// It is as it was; these units above it have changed, and what they give now is in the cache.
    OnOther {
        above: Vec<ChangedAbove>,
    },
    /// It is the unit of that run. `ended`: how that run did; after `Finished` its record was lost.
    NotThere {
        ended: Option<How>,
    },
    /// No run is known that it could be compared with, and no unit of this stage and item has finished here.
    NeverRan,
    /// No run is known that it could be compared with; this is in what it differs from the nearest record.
    NotAsRecorded {
        causes: Vec<Cause>,
        /// When that record was made, in seconds since 1970.
        finished: u64,
    },
    /// The same, and the nearest record differs only in what other units gave it.
    OnUnrecorded,
}

/// A unit above another that has changed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ChangedAbove {
    /// Its label.
    pub unit: String,
    /// None: it is new.
    pub causes: Vec<Cause>,
}

impl fmt::Display for StaleReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let listed = |causes: &[Cause]| causes.iter().map(Cause::since).collect::<Vec<_>>().join("; ");
        match self {
            Self::Fresh => write!(f, "fresh: it is in the cache"),
            Self::BlobLost { output } => write!(f, "ran, but the blob of its output `{output}` is gone"),
            Self::New => write!(f, "is new"),
            Self::Changed { causes } => write!(f, "changed: {}", listed(causes)),
            Self::Waits { on } => write!(f, "waits for {} unit(s) to run first: {}", on.len(), named(on)),
            Self::OnOther { above } => {
                let mut by_causes: BTreeMap<String, Vec<String>> = BTreeMap::new();
                for ChangedAbove { unit, causes } in above {
                    let said = if causes.is_empty() { "is new".to_owned() } else { listed(causes) };
                    by_causes.entry(said).or_default().push(unit.clone());
                }
                let said: Vec<String> =
                    by_causes.iter().map(|(causes, units)| format!("{}: {causes}", named(units))).collect();
                match said.is_empty() {
                    true => write!(f, "has not run on what it reads now"),
                    false => write!(f, "has not run on what it reads now, which is in the cache: {}", said.join("; ")),
                }
            }
            Self::NotThere { ended } => f.write_str(match ended {
                Some(How::Finished) => "ran in that run, and its record is gone from this cache",
                Some(How::Failed) => "did not finish in that run, which failed",
                Some(How::Interrupted) => "did not finish in that run, which was interrupted",
                None => "did not finish in that run, which was cut off or goes on",
            }),
            Self::NeverRan => write!(f, "never ran here"),
            Self::NotAsRecorded { causes, .. } => write!(f, "differs from the nearest record: {}", listed(causes)),
            Self::OnUnrecorded => write!(f, "never ran on what it reads now"),
        }
    }
}

fn named(items: &[String]) -> String {
    let named = items.iter().take(MAX_NAMED).cloned().collect::<Vec<_>>().join(", ");
    match items.len().saturating_sub(MAX_NAMED) {
        0 => named,
        more => format!("{named}, and {more} more"),
    }
}

/// The variant of an earlier run that units are compared with.
pub struct Then<'a> {
    /// Its units and all that they read, in the graph of now.
    pub units: &'a BTreeSet<UnitIdx>,
    /// Stages and the versions that they had.
    pub versions: &'a BTreeMap<String, u64>,
    /// How that run ended; `None`: it was cut off, or goes on.
    pub ended: Option<How>,
}

/// Why each of some units is not fresh. `targets`: what the variants of now need; `then`: `None` where no run is known.
///
/// # Errors
/// Records of the cache cannot be read.
pub fn why(
    graph: &Graph,
    cache: &Cache,
    targets: &[UnitIdx],
    units: &[UnitIdx],
    then: Option<&Then<'_>>,
) -> anyhow::Result<Vec<StaleReason>> {
    let mut resolver = Resolver::new(graph, cache, targets);
    resolver.look_up();
    let states = resolver.states(targets);
    let partners = then.map(|then| (then, Partners::new(graph, then.units, units)));
    // What a run that ended well had, it brought to its end.
    let unfinished = then.filter(|then| then.ended != Some(How::Finished)).map(|then| {
        let of_then: Vec<UnitIdx> = then.units.iter().copied().collect();
        let mut resolver = Resolver::new(graph, cache, &of_then);
        resolver.look_up();
        of_then.into_iter().filter(|unit| resolver.known[*unit].is_none()).collect()
    });
    let mut question = Question { resolver, states, unfinished: unfinished.unwrap_or_default(), by_label: None };
    let reason = |&unit: &UnitIdx| {
        if question.states[unit] == State::Done {
            return Ok(StaleReason::Fresh);
        }
        if let Some(output) = question.lost_output(unit) {
            return Ok(StaleReason::BlobLost { output });
        }
        match &partners {
            Some((then, partners)) => Ok(question.since(unit, then, partners)),
            None => question.against_records(unit),
        }
    };
    units.iter().map(reason).collect()
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

/// Digests of the files that units and all above them read.
pub fn contents_read(graph: &Graph, units: impl Iterator<Item = UnitIdx>) -> HashSet<BlobDigest> {
    let of_unit = |unit: UnitIdx| {
        graph.inputs(unit).iter().filter_map(|(_, input)| match input {
            Input::Content(content) => Some(graph.content(*content).0),
            Input::Output { .. } | Input::Set(_) => None,
        })
    };
    with_all_above(graph, units).into_iter().flat_map(of_unit).collect()
}

/// The units of then that those of now are compared with.
struct Partners<'a> {
    /// By stage and item.
    by_name: HashMap<(&'static str, &'a str), Vec<UnitIdx>>,
    /// By stage: those of items that are there no more.
    gone: HashMap<&'static str, Vec<UnitIdx>>,
}

impl<'a> Partners<'a> {
    fn new(graph: &'a Graph, then: &BTreeSet<UnitIdx>, now: &[UnitIdx]) -> Self {
        let (mut by_name, mut gone) = (HashMap::<_, Vec<UnitIdx>>::new(), HashMap::<_, Vec<UnitIdx>>::new());
        let names: HashSet<(&str, &str)> = now.iter().map(|&unit| name(graph, unit)).collect();
        for &unit in then {
            let name = name(graph, unit);
            by_name.entry(name).or_default().push(unit);
            if !names.contains(&name) {
                gone.entry(name.0).or_default().push(unit);
            }
        }
        Self { by_name, gone }
    }
}

fn name(graph: &Graph, unit: UnitIdx) -> (&'static str, &str) {
    (graph.kind(unit).stage, graph.unit(unit).item)
}

struct Question<'a> {
    resolver: Resolver<'a>,
    states: Vec<State>,
    /// Units of then that have no record, of a run that did not end well.
    unfinished: HashSet<UnitIdx>,
    /// Every record of the cache, once it is asked for.
    by_label: Option<HashMap<String, Vec<Rc<Manifest>>>>,
}

impl Question<'_> {
    fn lost_output(&self, unit: UnitIdx) -> Option<String> {
        let (store, records) = (self.resolver.cache.store(), self.resolver.cache.records());
        let is_lost = |digest: &BlobDigest, size| !store.has(digest, size) || store.read(digest).is_err();
        let lost = records.outputs(self.resolver.known[unit]?).find(|(_, digest, size)| is_lost(digest, *size));
        lost.map(|(output, ..)| output.to_owned())
    }

    /// Labels of what a unit reads that has to run first.
    fn to_run_first(&self, unit: UnitIdx) -> Vec<String> {
        let mut on = Vec::new();
        self.resolver.graph.for_each_dependency(unit, |above| {
            if self.states[above] != State::Done {
                on.push(self.resolver.graph.unit(above).label());
            }
        });
        on
    }

    fn since(&self, unit: UnitIdx, then: &Then<'_>, partners: &Partners<'_>) -> StaleReason {
        let Some((partner, causes)) = self.counterpart(unit, then, partners) else { return StaleReason::New };
        if !causes.is_empty() && self.unfinished.contains(&partner) {
            return StaleReason::NotThere { ended: then.ended };
        }
        if !causes.is_empty() {
            return StaleReason::Changed { causes };
        }
        let on = self.to_run_first(unit);
        match partner == unit {
            _ if !on.is_empty() => StaleReason::Waits { on },
            true => StaleReason::NotThere { ended: then.ended },
            false => StaleReason::OnOther { above: self.changed_above(unit, then, partners) },
        }
    }

    /// The unit of then that is nearest to one, and what of the two differs beside what other units give them.
    fn counterpart(&self, unit: UnitIdx, then: &Then<'_>, partners: &Partners<'_>) -> Option<(UnitIdx, Vec<Cause>)> {
        let graph = self.resolver.graph;
        let kind = graph.kind(unit);
        let version = then.versions.get(kind.stage).filter(|version| **version != kind.version);
        let version = version.map(|version| Cause::Version { left: *version, right: kind.version });
        let with_causes = |&partner: &UnitIdx| {
            let differing = if partner == unit { Vec::new() } else { causes(graph, partner, unit) };
            (partner, version.iter().cloned().chain(differing).collect::<Vec<_>>())
        };
        if let Some(of_name) = partners.by_name.get(&name(graph, unit)) {
            return of_name.iter().map(with_causes).min_by_key(|(partner, causes)| (causes.len(), *partner != unit));
        }
        // The image has another name, and is the same.
        let of_stage = partners.gone.get(kind.stage)?;
        of_stage.iter().map(with_causes).find(|(_, causes)| causes.is_empty())
    }

    /// The nearest units above one that have changed in themselves.
    fn changed_above(&self, unit: UnitIdx, then: &Then<'_>, partners: &Partners<'_>) -> Vec<ChangedAbove> {
        let graph = self.resolver.graph;
        let (mut to_do, mut seen, mut found) = (vec![unit], BTreeSet::from([unit]), BTreeMap::new());
        while let Some(unit) = to_do.pop() {
            graph.for_each_dependency(unit, |above| {
                if !seen.insert(above) {
                    return;
                }
                match self.counterpart(above, then, partners) {
                    None => drop(found.insert(above, Vec::new())),
                    Some((partner, _)) if partner == above => {}
                    Some((_, causes)) if causes.is_empty() => to_do.push(above),
                    Some((_, causes)) => drop(found.insert(above, causes)),
                }
            });
        }
        let changed = |(above, causes)| ChangedAbove { unit: graph.unit(above).label(), causes };
        found.into_iter().map(changed).collect()
    }

    fn against_records(&mut self, unit: UnitIdx) -> anyhow::Result<StaleReason> {
        let Some(record) = self.nearest_record(unit)? else { return Ok(StaleReason::NeverRan) };
        let causes = self.causes_since(&record, unit);
        let on = self.to_run_first(unit);
        Ok(match causes.is_empty() {
            false => StaleReason::NotAsRecorded { causes, finished: record.finished },
            true if !on.is_empty() => StaleReason::Waits { on },
            true => StaleReason::OnUnrecorded,
        })
    }

    /// Of the records of a unit's stage and item, the one that differs least from it: in parameters, then in files, then in
    /// what other units gave it; the newest of several.
    fn nearest_record(&mut self, unit: UnitIdx) -> anyhow::Result<Option<Rc<Manifest>>> {
        let cache = self.resolver.cache;
        if self.by_label.is_none() {
            let mut by_label: HashMap<String, Vec<Rc<Manifest>>> = HashMap::new();
            for manifest in cache.manifests()? {
                by_label.entry(manifest.label.clone()).or_default().push(Rc::new(manifest));
            }
            self.by_label = Some(by_label);
        }
        let graph = self.resolver.graph;
        let kind = graph.kind(unit);
        let params: Value = serde_json::from_str(&kind.params).unwrap_or_default();
        let records_here = cache.records();
        let distance = |old: &&Rc<Manifest>| {
            let was = &old.fingerprint;
            let n_params = params_that_differ("", &was.params_value(), &params).len();
            let is_other = |is_file: bool| {
                let differs = |(slot, input): &&(u16, Input)| {
                    let slot = graph.name_at(*slot);
                    let then = was.inputs.iter().find(|input| input.slot == slot).map(|input| input.digest);
                    matches!(input, Input::Content(_)) == is_file && then != self.resolver.digest(*input, &records_here)
                };
                graph.inputs(unit).iter().filter(differs).count()
            };
            let version = usize::from(was.version != kind.version);
            (n_params + version, is_other(true), is_other(false), std::cmp::Reverse(old.finished))
        };
        let of_label = self.by_label.as_ref().and_then(|all| all.get(&graph.unit(unit).label()));
        Ok(of_label.into_iter().flatten().min_by_key(distance).cloned())
    }

    /// In what a unit differs from a record, beside what other units give it.
    fn causes_since(&self, record: &Manifest, unit: UnitIdx) -> Vec<Cause> {
        let graph = self.resolver.graph;
        let (kind, was) = (graph.kind(unit), &record.fingerprint);
        let mut found = Vec::new();
        if was.version != kind.version {
            found.push(Cause::Version { left: was.version, right: kind.version });
        }
        let params: Value = serde_json::from_str(&kind.params).unwrap_or_default();
        found.extend(Cause::of_params(&was.params_value(), &params));
        for (slot, input) in graph.inputs(unit) {
            let slot = graph.name_at(*slot).to_owned();
            let Some(then) = was.inputs.iter().find(|then| then.slot == slot) else {
                found.push(Cause::OnlyRight { slot });
                continue;
            };
            match *input {
                Input::Content(content) => {
                    let now = graph.content(content).0;
                    if now != then.digest {
                        found.push(Cause::Content { slot, left: then.digest.short(), right: now.short() });
                    }
                }
                Input::Set(set) => {
                    let listing = self.resolver.cache.store().read(&then.digest).ok();
                    let listing = listing.and_then(|bytes| SetListing::parse(&bytes).ok());
                    found.extend(listing.and_then(|listing| self.set_cause(slot, &listing, set as usize)));
                }
                Input::Output { .. } => {}
            }
        }
        let slots: BTreeSet<&str> = graph.slots(unit).collect();
        let gone = was.inputs.iter().filter(|then| !slots.contains(then.slot.as_str()));
        found.extend(gone.map(|then| Cause::OnlyLeft { slot: then.slot.clone() }));
        found
    }

    /// In what a set differs from a listing: in its members, and in those that are files.
    fn set_cause(&self, slot: String, then: &SetListing, set: usize) -> Option<Cause> {
        let mut was: BTreeMap<&str, BlobDigest> = then.members.iter().map(|(item, of)| (item.as_str(), *of)).collect();
        let (mut only_right, mut changed) = (Vec::new(), Vec::new());
        for (item, input) in self.resolver.graph.members(set) {
            match (was.remove(item), input) {
                (None, _) => only_right.push(item.to_owned()),
                (Some(was), Input::Content(content)) if self.resolver.graph.content(content).0 != was => {
                    changed.push(item.to_owned());
                }
                (Some(_), _) => {}
            }
        }
        let only_left: Vec<String> = was.into_keys().map(str::to_owned).collect();
        let is_same = only_left.is_empty() && only_right.is_empty() && changed.is_empty();
        (!is_same).then_some(Cause::Items { slot, only_left, only_right, changed })
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
    use crate::data::Dataset;
    use crate::data::folder;
    use crate::data::image::{encode_label_map, encode_rgb};
    use crate::data::mask_file::MaskValues;
    use crate::data::orient::OrientationPolicy;
    use crate::data::rng::{integer, stream};
    use crate::data::scan::{LabelSource, ScanOptions};
    use crate::pipeline::build::{CellInput, CellUnits, build};
    use crate::pipeline::file::{Cell, Pipeline, load};
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

    /// A pipeline and the data set that it reads.
    struct Part {
        pipeline: Pipeline,
        dataset: Arc<Dataset>,
    }

    fn part(root: &Path, text: &str, cache: &Cache) -> Part {
        let file = root.join("exp.toml");
        fs::write(&file, text).unwrap();
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
        Part { pipeline: load(&file, &[]).unwrap(), dataset: Arc::new(folder::scan(&options, cache).unwrap()) }
    }

    /// Variants of now, and behind them those of then.
    fn built(now: &Part, then: Option<&Part>, cache: &Cache) -> (Graph, Vec<CellUnits>) {
        fn inputs(part: &Part, is_past: bool) -> impl Iterator<Item = CellInput<'_>> {
            let past = is_past.then_some(&[][..]);
            part.pipeline.cells.iter().map(move |Cell { name, spec, .. }| {
                let dataset = part.dataset.clone();
                CellInput { name, spec, dataset, past }
            })
        }
        let then = then.into_iter().flat_map(|then| inputs(then, true));
        build(&inputs(now, false).chain(then).collect::<Vec<_>>(), cache, false).unwrap()
    }

    fn targets(cells: &[CellUnits]) -> Vec<UnitIdx> {
        cells.iter().flat_map(CellUnits::targets).collect()
    }

    /// Records every unit as if it had run: what it gives is told by its key.
    fn finish(part: &Part, cache: &Cache) {
        let (graph, cells) = &built(part, None, cache);
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
                return;
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
            let before = part(&root, &text(&values, sweep), &cache);
            finish(&before, &cache);
            for _ in 0..4 {
                finish(&part(&root, &text(&[0; 12].map(|_| random(3)), random(FIELDS.len())), &cache), &cache);
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
                let now = part(&root, &text(&values, sweep), &cache);
                let (graph, cells) = built(&now, Some(&before), &cache);
                let (cells, cells_then) = cells.split_at(now.pipeline.cells.len());
                let mut n_named = 0;
                for (cell, cell_then) in cells.iter().zip(cells_then) {
                    let units_then = with_all_above(&graph, cell_then.units());
                    let then = Then { units: &units_then, versions: &BTreeMap::new(), ended: Some(How::Finished) };
                    let units: Vec<UnitIdx> = cell.units().collect();
                    let reasons = why(&graph, &cache, &targets(cells), &units, Some(&then)).unwrap();
                    for (unit, reason) in units.iter().zip(reasons) {
                        let label = graph.unit(*unit).label();
                        let causes = match reason {
                            StaleReason::Changed { causes } => causes,
                            StaleReason::OnOther { above } => {
                                above.into_iter().flat_map(|above| above.causes).collect()
                            }
                            StaleReason::Fresh | StaleReason::Waits { .. } => continue,
                            other => panic!("{label}: {other} after an edit of {}", FIELDS[edited].0),
                        };
                        assert!(!causes.is_empty(), "{label}: no cause after an edit of {}", FIELDS[edited].0);
                        n_named += 1;
                        for cause in &causes {
                            let is_it = match cause {
                                Cause::Param { path, .. } => !is_image && path.ends_with(FIELDS[edited].2),
                                Cause::Content { slot, .. } => is_image && slot == "image",
                                Cause::Items { changed, only_right, only_left, .. } => {
                                    is_image
                                        && changed[..] == [IDS[image]]
                                        && only_right.is_empty()
                                        && only_left.is_empty()
                                }
                                _ => false,
                            };
                            let edited = FIELDS[edited].0;
                            assert!(is_it, "{label}: {cause:?} after an edit of {edited}, image: {is_image}");
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
