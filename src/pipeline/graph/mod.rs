//! The graph of units: all variants of a pipeline in one, equal units merged.
//!
//! A unit's key needs the *contents* of its inputs, known only when what is above it has run. Units are merged
//! before that, by their definition: the same stage, parameters and definitions of inputs.
//!
//! A graph of a million units is small: what units share (parameters, names, files) is kept once, and a unit is a few
//! numbers.

mod intern;
mod unit;

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, Hash, Hasher};
use std::path::Path;
use std::sync::Arc;

use hashbrown::DefaultHashBuilder;

use self::intern::{Places, Texts};
pub use self::unit::{InputSet, Kind, Source, Unit, UnitRef};
use crate::digest::BlobDigest;

/// Place of a unit in a graph; inputs come before their users.
pub type UnitIdx = usize;
/// Place of a set in a graph.
pub type SetIdx = usize;

/// A [`Source`] in a few bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Input {
    /// `name`: place in [`Graph::names`].
    Output {
        unit: u32,
        name: u16,
    },
    /// Place in [`Graph::contents`].
    Content(u32),
    Set(u32),
}

/// In one piece: every unit is hashed.
impl Hash for Input {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(match *self {
            Self::Output { unit, name } => u64::from(unit) | u64::from(name) << 32,
            Self::Content(content) => u64::from(content) | 1 << 48,
            Self::Set(set) => u64::from(set) | 2 << 48,
        });
    }
}

/// Bytes that no unit makes.
#[derive(Clone, Debug)]
pub(super) enum Content {
    File(Arc<Path>),
    Value(Arc<[u8]>),
}

#[derive(Clone, Copy, Debug)]
struct UnitRecord {
    kind: u32,
    item: u32,
    /// One more than the highest of the units it reads.
    level: u32,
    /// Its inputs end where those of the next begin.
    inputs: u32,
}

#[derive(Clone, Copy, Debug)]
struct SetRecord {
    /// The highest of its members'; 0 if no unit makes them.
    level: u32,
    members: u32,
}

/// All units of a pipeline.
#[derive(Debug, Default)]
pub struct Graph {
    kinds: Vec<Kind>,
    kind_places: HashMap<Kind, u32>,
    items: Texts,
    /// Names of slots and of outputs.
    names: Vec<&'static str>,
    contents: Vec<(BlobDigest, Content)>,
    content_places: HashMap<BlobDigest, u32, DefaultHashBuilder>,
    /// After the one that was added, or found, last.
    next_content: u32,
    units: Vec<UnitRecord>,
    /// By unit: slot and input.
    inputs: Vec<(u16, Input)>,
    sets: Vec<SetRecord>,
    /// By set: item and input.
    members: Vec<(u32, Input)>,
    /// Units whose outputs tables show.
    shown: HashSet<u32>,
    equal_units: Places,
    equal_sets: Places,
    hasher: DefaultHashBuilder,
}

impl Graph {
    /// Number of units.
    pub fn len(&self) -> usize {
        self.units.len()
    }

    pub fn is_empty(&self) -> bool {
        self.units.is_empty()
    }

    pub fn n_sets(&self) -> usize {
        self.sets.len()
    }

    pub fn unit(&self, unit: UnitIdx) -> UnitRef<'_> {
        let Kind { stage, version: _, params } = self.kind(unit);
        UnitRef { stage, item: self.items.at(self.units[unit].item), params }
    }

    pub fn units(&self) -> impl ExactSizeIterator<Item = UnitRef<'_>> {
        (0..self.len()).map(|unit| self.unit(unit))
    }

    pub fn kind(&self, unit: UnitIdx) -> &Kind {
        &self.kinds[self.kind_idx(unit)]
    }

    /// Names of a unit's inputs.
    pub fn slots(&self, unit: UnitIdx) -> impl Iterator<Item = &'static str> {
        self.inputs(unit).iter().map(|(slot, _)| self.names[usize::from(*slot)])
    }

    /// Adds a unit, or finds the equal one that is there.
    pub fn add(&mut self, unit: Unit) -> UnitIdx {
        let Unit { stage, version, item, params, inputs } = unit;
        let kind = self.kind_of(Kind { stage, version, params });
        let first = self.inputs.len();
        for (slot, source) in inputs {
            let input = (self.name(slot), self.input(source));
            self.inputs.push(input);
        }
        let added = &self.inputs[first..];
        let same =
            |unit: u32| self.units[unit as usize].kind == kind && self.inputs_but_for(unit as usize, first) == added;
        let hash = self.hasher.hash_one((kind, added));
        if let Some(equal) = self.equal_units.find(hash, same) {
            self.inputs.truncate(first);
            return equal as usize;
        }
        let levels = added.iter().map(|(_, input)| self.level_of(input));
        let level = levels.max().unwrap_or(0) + 1;
        let record = UnitRecord { kind, item: self.items.place(&item), level, inputs: first as u32 };
        let place = self.units.len() as u32;
        self.units.push(record);
        self.equal_units.insert(hash, place);
        place as usize
    }

    /// Tables show what this unit gives: it has to be there, whole, whoever else reads it.
    pub fn show(&mut self, unit: UnitIdx) {
        self.shown.insert(unit as u32);
    }

    pub(super) fn is_shown(&self, unit: UnitIdx) -> bool {
        self.shown.contains(&(unit as u32))
    }

    /// Adds a set, or finds the equal one that is there.
    pub fn add_set(&mut self, set: InputSet) -> Source {
        let first = self.members.len();
        for (item, source) in set.members {
            let member = (self.items.place(&item), self.input(source));
            self.members.push(member);
        }
        let added = &self.members[first..];
        let hash = self.hasher.hash_one(added);
        let same = |set: u32| self.members_but_for(set as usize, first) == added;
        if let Some(equal) = self.equal_sets.find(hash, same) {
            self.members.truncate(first);
            return Source::Set(equal as usize);
        }
        let level = added.iter().map(|(_, input)| self.level_of(input)).max().unwrap_or(0);
        let place = self.sets.len() as u32;
        self.sets.push(SetRecord { level, members: first as u32 });
        self.equal_sets.insert(hash, place);
        Source::Set(place as usize)
    }

    /// Calls `f` with each unit that `unit` reads, those in sets too.
    pub fn for_each_dependency(&self, unit: UnitIdx, mut f: impl FnMut(UnitIdx)) {
        for (_, input) in self.inputs(unit) {
            match input {
                Input::Output { unit, name: _ } => f(*unit as usize),
                Input::Set(set) => self.member_units(*set as usize).for_each(&mut f),
                Input::Content(_) => {}
            }
        }
    }

    pub(super) fn kind_idx(&self, unit: UnitIdx) -> usize {
        self.units[unit].kind as usize
    }

    pub(super) fn kinds(&self) -> &[Kind] {
        &self.kinds
    }

    pub(super) fn level(&self, unit: UnitIdx) -> usize {
        self.units[unit].level as usize
    }

    pub(super) fn set_level(&self, set: SetIdx) -> usize {
        self.sets[set].level as usize
    }

    pub(super) fn inputs(&self, unit: UnitIdx) -> &[(u16, Input)] {
        self.inputs_but_for(unit, self.inputs.len())
    }

    pub(super) fn members(&self, set: SetIdx) -> impl ExactSizeIterator<Item = (&str, Input)> {
        let members = self.members_but_for(set, self.members.len()).iter();
        members.map(|(item, input)| (self.items.at(*item), *input))
    }

    /// Units that make members of a set.
    pub(super) fn member_units(&self, set: SetIdx) -> impl Iterator<Item = UnitIdx> {
        self.members_but_for(set, self.members.len()).iter().filter_map(|(_, input)| match input {
            Input::Output { unit, name: _ } => Some(*unit as usize),
            Input::Content(_) | Input::Set(_) => None,
        })
    }

    pub(super) fn name_at(&self, name: u16) -> &'static str {
        self.names[usize::from(name)]
    }

    pub(super) fn content(&self, content: u32) -> &(BlobDigest, Content) {
        &self.contents[content as usize]
    }

    fn inputs_but_for(&self, unit: UnitIdx, end: usize) -> &[(u16, Input)] {
        let end = self.units.get(unit + 1).map_or(end, |next| next.inputs as usize);
        &self.inputs[self.units[unit].inputs as usize..end]
    }

    fn members_but_for(&self, set: SetIdx, end: usize) -> &[(u32, Input)] {
        let end = self.sets.get(set + 1).map_or(end, |next| next.members as usize);
        &self.members[self.sets[set].members as usize..end]
    }

    fn level_of(&self, input: &Input) -> u32 {
        match input {
            Input::Output { unit, name: _ } => self.units[*unit as usize].level,
            Input::Set(set) => self.sets[*set as usize].level,
            Input::Content(_) => 0,
        }
    }

    fn kind_of(&mut self, kind: Kind) -> u32 {
        // Units come stage by stage.
        if self.kinds.last() == Some(&kind) {
            return self.kinds.len() as u32 - 1;
        }
        if let Some(place) = self.kind_places.get(&kind) {
            return *place;
        }
        let place = self.kinds.len() as u32;
        self.kinds.push(kind.clone());
        self.kind_places.insert(kind, place);
        place
    }

    /// There are some dozens of names in a program.
    fn name(&mut self, name: &'static str) -> u16 {
        let found = self.names.iter().position(|known| *known == name);
        let place = found.unwrap_or_else(|| {
            self.names.push(name);
            self.names.len() - 1
        });
        place as u16
    }

    fn input(&mut self, source: Source) -> Input {
        match source {
            Source::Output { unit, name } => Input::Output { unit: unit as u32, name: self.name(name) },
            Source::File { path, digest } => self.content_of(digest, || Content::File(path)),
            Source::Value { bytes, digest } => self.content_of(digest, || Content::Value(bytes)),
            Source::Set(set) => Input::Set(set as u32),
        }
    }

    fn content_of(&mut self, digest: BlobDigest, content: impl FnOnce() -> Content) -> Input {
        let Self { content_places, contents, next_content, .. } = self;
        // As with the items: the variants go through the same files.
        let is_next = contents.get(*next_content as usize).is_some_and(|(next, _)| *next == digest);
        let place = match is_next {
            true => *next_content,
            false => *content_places.entry(digest).or_insert_with(|| {
                contents.push((digest, content()));
                contents.len() as u32 - 1
            }),
        };
        *next_content = place + 1;
        Input::Content(place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(params: &str, inputs: Vec<(&'static str, Source)>) -> Unit {
        Unit { stage: "fake", version: 1, item: String::new(), params: params.into(), inputs }
    }

    #[test]
    fn equal_units_merge_and_different_ones_do_not() {
        let mut graph = Graph::default();
        let a = graph.add(unit("{}", vec![("x", Source::value(*b"1"))]));
        let b = graph.add(unit("{}", vec![("x", Source::value(*b"1"))]));
        let c = graph.add(unit("{}", vec![("x", Source::value(*b"2"))]));
        let d = graph.add(unit("{}", vec![("y", Source::value(*b"1"))]));
        assert_eq!(a, b);
        assert_eq!(graph.len(), 3);
        let of = |unit| Source::Output { unit, name: "out" };
        let set = graph.add_set(InputSet { members: vec![("p".into(), of(a)), ("q".into(), of(c))] });
        let again = graph.add_set(InputSet { members: vec![("p".into(), of(a)), ("q".into(), of(c))] });
        let other = graph.add_set(InputSet { members: vec![("p".into(), of(a)), ("q".into(), of(d))] });
        assert_eq!(graph.n_sets(), 2);
        let e = graph.add(unit("{}", vec![("all", set)]));
        assert_eq!(graph.add(unit("{}", vec![("all", again)])), e);
        assert_ne!(graph.add(unit("{}", vec![("all", other)])), e);
        assert_ne!(graph.add(unit(r#"{"a":1}"#, vec![("x", Source::value(*b"1"))])), a);
        assert_ne!(graph.add(unit("{}", vec![])), graph.add(unit("{}", vec![("x", of(a))])));
        assert_eq!((graph.level(a), graph.level(e)), (1, 2));
    }

    #[test]
    fn many_units_merge_too() {
        let mut graph = Graph::default();
        let add = |graph: &mut Graph, i: u64| graph.add(unit("{}", vec![("x", Source::value(i.to_le_bytes()))]));
        let first: Vec<_> = (0..10_000).map(|i| add(&mut graph, i)).collect();
        let again: Vec<_> = (0..10_000).map(|i| add(&mut graph, i)).collect();
        assert_eq!(first, again);
        assert_eq!(graph.len(), 10_000);
    }
}
