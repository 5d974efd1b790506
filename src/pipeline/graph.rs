//! The graph of units: all variants of a pipeline in one, equal units merged.
//!
//! A unit's key needs the *contents* of its inputs, known only when what is above it has run. Units are merged
//! before that, by a definition key: the same stage, parameters and definitions of inputs.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use crate::digest::{BlobDigest, ContentHash, KeyHasher, UnitKey};

/// Place of a unit in [`Graph::units`]; inputs come before their users.
pub type UnitIdx = usize;
/// Place of a set in [`Graph::sets`].
pub type SetIdx = usize;

/// Where the bytes of an input come from.
#[derive(Clone, Debug)]
pub enum Source {
    /// An output of another unit.
    Output { unit: UnitIdx, name: &'static str },
    /// A file of the user: an image, a mask, weights.
    File { path: Arc<Path>, digest: BlobDigest },
    /// A small value made while planning, like the class list of an image.
    Value { bytes: Arc<[u8]>, digest: BlobDigest },
    /// Many inputs under one name.
    Set(SetIdx),
}

impl Source {
    pub fn value(bytes: impl Into<Arc<[u8]>>) -> Self {
        let bytes = bytes.into();
        Self::Value { digest: BlobDigest::of(&bytes), bytes }
    }
}

/// Inputs by item id, in order. Members are never sets.
#[derive(Clone, Debug)]
pub struct InputSet {
    pub members: Vec<(String, Source)>,
}

/// One stage applied to one item.
#[derive(Clone, Debug)]
pub struct Unit {
    pub stage: &'static str,
    pub version: u64,
    /// `2007_000032`, `epoch 3`, `train`. For people; not in the key.
    pub item: String,
    /// Effective parameters: JSON text with sorted keys. Shared by the units of a stage.
    pub params: Arc<str>,
    pub inputs: Vec<(&'static str, Source)>,
}

impl Unit {
    pub fn label(&self) -> String {
        format!("{} {}", self.stage, self.item)
    }
}

/// All units of a pipeline.
#[derive(Default)]
pub struct Graph {
    units: Vec<Unit>,
    sets: Vec<InputSet>,
    unit_keys: Vec<UnitKey>,
    set_keys: Vec<UnitKey>,
    by_key: HashMap<UnitKey, UnitIdx>,
    sets_by_key: HashMap<UnitKey, SetIdx>,
}

impl Graph {
    pub fn units(&self) -> &[Unit] {
        &self.units
    }

    pub fn sets(&self) -> &[InputSet] {
        &self.sets
    }

    /// Adds a unit, or finds the equal one that is there.
    pub fn add(&mut self, unit: Unit) -> UnitIdx {
        let mut state = KeyHasher::default();
        unit.stage.content_hash(&mut state);
        unit.version.content_hash(&mut state);
        (*unit.params).content_hash(&mut state);
        for (slot, source) in &unit.inputs {
            slot.content_hash(&mut state);
            self.hash_source(source, &mut state);
        }
        let key = state.finish();
        *self.by_key.entry(key).or_insert_with(|| {
            self.units.push(unit);
            self.unit_keys.push(key);
            self.units.len() - 1
        })
    }

    /// Adds a set, or finds the equal one that is there.
    pub fn add_set(&mut self, set: InputSet) -> Source {
        let mut state = KeyHasher::default();
        for (item, source) in &set.members {
            item.as_str().content_hash(&mut state);
            self.hash_source(source, &mut state);
        }
        let key = state.finish();
        Source::Set(*self.sets_by_key.entry(key).or_insert_with(|| {
            self.sets.push(set);
            self.set_keys.push(key);
            self.sets.len() - 1
        }))
    }

    /// Calls `f` with each unit that `unit` reads, those in sets too.
    pub fn for_each_dependency(&self, unit: UnitIdx, mut f: impl FnMut(UnitIdx)) {
        for (_, source) in &self.units[unit].inputs {
            match source {
                Source::Output { unit, name: _ } => f(*unit),
                Source::Set(set) => {
                    for (_, member) in &self.sets[*set].members {
                        if let Source::Output { unit, name: _ } = member {
                            f(*unit);
                        }
                    }
                }
                Source::File { .. } | Source::Value { .. } => {}
            }
        }
    }

    fn hash_source(&self, source: &Source, state: &mut KeyHasher) {
        match source {
            Source::Output { unit, name } => {
                0u8.content_hash(state);
                self.unit_keys[*unit].content_hash(state);
                name.content_hash(state);
            }
            Source::File { digest, path: _ } | Source::Value { digest, bytes: _ } => {
                1u8.content_hash(state);
                digest.content_hash(state);
            }
            Source::Set(set) => {
                2u8.content_hash(state);
                self.set_keys[*set].content_hash(state);
            }
        }
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
        assert_eq!(graph.units().len(), 3);
        let of = |unit| Source::Output { unit, name: "out" };
        let set = graph.add_set(InputSet { members: vec![("p".into(), of(a)), ("q".into(), of(c))] });
        let again = graph.add_set(InputSet { members: vec![("p".into(), of(a)), ("q".into(), of(c))] });
        let other = graph.add_set(InputSet { members: vec![("p".into(), of(a)), ("q".into(), of(d))] });
        assert_eq!(graph.sets().len(), 2);
        let e = graph.add(unit("{}", vec![("all", set)]));
        assert_eq!(graph.add(unit("{}", vec![("all", again)])), e);
        assert_ne!(graph.add(unit("{}", vec![("all", other)])), e);
    }
}
