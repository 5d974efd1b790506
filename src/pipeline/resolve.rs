//! What is known of a graph: records of units, as far as the contents of their inputs are known.
//!
//! Units are looked up level by level, those of one level on all threads, straight from the compact graph into the
//! compact table of records: a million in a second or two, without an allocation a unit.

use std::ops::Range;

use rayon::prelude::*;

use crate::artifact::{Fingerprint, FingerprintInput, KeyBuilder, SetListing};
use crate::cache::{Cache, Look, RecordIdx, Records};
use crate::digest::{BlobDigest, UnitKey};
use crate::pipeline::graph::{Graph, Input, SetIdx, UnitIdx};

/// Units that one thread looks up at a time.
const PIECE: usize = 1024;

/// A graph against a cache.
pub(super) struct Resolver<'a> {
    pub(super) graph: &'a Graph,
    pub(super) cache: &'a Cache,
    /// Units that a target needs, itself included.
    pub(super) needed: Vec<bool>,
    /// Units that a needed unit reads.
    is_read: Vec<bool>,
    needed_sets: Vec<bool>,
    /// Records of finished units. Their blobs may be gone.
    pub(super) known: Vec<Option<RecordIdx>>,
    /// By kind of unit.
    keys: Vec<KeyBuilder>,
    /// Digests of the listings of sets whose members are known.
    listings: Vec<Option<BlobDigest>>,
    /// Whether a unit's blobs are there, as far as somebody asked.
    whole: Vec<Option<bool>>,
    whole_sets: Vec<bool>,
}

/// Where a needed unit stands.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum State {
    /// Finished, and as whole as anybody needs it.
    Done,
    /// All it reads is there.
    Ready,
    /// Something it reads has to run first.
    Waits,
}

impl<'a> Resolver<'a> {
    pub(super) fn new(graph: &'a Graph, cache: &'a Cache, targets: &[UnitIdx]) -> Self {
        let (n_units, n_sets) = (graph.len(), graph.n_sets());
        let (mut needed, mut needed_sets) = (vec![false; n_units], vec![false; n_sets]);
        let mut is_read = vec![false; n_units];
        let mut read = |unit: usize, needed: &mut Vec<bool>| (needed[unit], is_read[unit]) = (true, true);
        targets.iter().for_each(|&unit| needed[unit] = true);
        for unit in (0..n_units).rev() {
            for (_, input) in if needed[unit] { graph.inputs(unit) } else { &[] } {
                match *input {
                    Input::Output { unit, name: _ } => read(unit as usize, &mut needed),
                    Input::Set(set) if !std::mem::replace(&mut needed_sets[set as usize], true) => {
                        graph.member_units(set as usize).for_each(|unit| read(unit, &mut needed));
                    }
                    Input::Set(_) | Input::Content(_) => {}
                }
            }
        }
        let key = |kind: &super::graph::Kind| KeyBuilder::new(kind.stage, kind.version, &kind.params);
        Self {
            graph,
            cache,
            needed,
            is_read,
            needed_sets,
            known: vec![None; n_units],
            keys: graph.kinds().iter().map(key).collect(),
            listings: vec![None; n_sets],
            whole: vec![None; n_units],
            whole_sets: vec![false; n_sets],
        }
    }

    /// Targets whose blobs have to be there: those that nothing reads, and those that tables show. A record is enough of the
    /// others, so that what `cache gc` removed is not made again before a unit that runs needs it. `restore`: all of them.
    pub(super) fn ends(&self, targets: &[UnitIdx], restore: bool) -> Vec<UnitIdx> {
        let is_end = |unit: &UnitIdx| restore || !self.is_read[*unit] || self.graph.is_shown(*unit);
        targets.iter().copied().filter(is_end).collect()
    }

    /// Looks up every needed unit whose inputs are known.
    pub(super) fn look_up(&mut self) {
        let cache = self.cache;
        let records = &*cache.records();
        let (units, unit_levels) = by_level(&self.needed, |unit| self.graph.level(unit));
        let (sets, set_levels) = by_level(&self.needed_sets, |set| self.graph.set_level(set));
        for level in 0..unit_levels.len().max(set_levels.len()) {
            let of = |levels: &[Range<usize>]| levels.get(level).cloned().unwrap_or(0..0);
            for piece in units[of(&unit_levels)].chunks(PIECE * 64) {
                let look = |units: &[u32]| {
                    let mut keys: Vec<Option<KeyBuilder>> = vec![None; self.keys.len()];
                    // Units that follow each other here finished one after the other.
                    let mut last = 0;
                    let find = |unit: &u32| {
                        let kind = self.graph.kind_idx(*unit as usize);
                        let builder = keys[kind].get_or_insert_with(|| self.keys[kind].clone());
                        let found = records.find_near(&self.key_with(builder, *unit as usize, records)?, last + 1);
                        last = found.unwrap_or(last);
                        found
                    };
                    units.iter().map(find).collect::<Vec<_>>()
                };
                let found: Vec<Vec<Option<RecordIdx>>> = piece.par_chunks(PIECE).map(look).collect();
                for (unit, record) in piece.iter().zip(found.into_iter().flatten()) {
                    self.known[*unit as usize] = record;
                }
            }
            let sets = &sets[of(&set_levels)];
            let digest = |set: &u32| Some(BlobDigest::of(&self.listing_bytes(*set as usize, records)?));
            let found: Vec<Option<BlobDigest>> = sets.par_iter().map(digest).collect();
            for (set, digest) in sets.iter().zip(found) {
                self.listings[*set as usize] = digest;
            }
        }
    }

    /// The key of a unit, once everything it reads is known.
    pub(super) fn key(&mut self, unit: UnitIdx) -> Option<UnitKey> {
        let kind = self.graph.kind_idx(unit);
        let mut builder = self.keys[kind].clone();
        self.key_with(&mut builder, unit, &self.cache.records())
    }

    fn key_with(&self, builder: &mut KeyBuilder, unit: UnitIdx, records: &Records) -> Option<UnitKey> {
        let graph = self.graph;
        let inputs = graph.inputs(unit);
        let mut is_known = true;
        let key = builder.key(inputs.iter().map(|(slot, input)| {
            let digest = self.digest(*input, records);
            is_known &= digest.is_some();
            let digest = digest.unwrap_or(BlobDigest::from_bytes([0; 32]));
            (graph.name_at(*slot), digest, matches!(input, Input::Set(_)))
        }));
        is_known.then_some(key)
    }

    /// The fingerprint of a unit, once everything it reads is known.
    pub(super) fn fingerprint(&self, unit: UnitIdx) -> Option<Fingerprint> {
        let (graph, records) = (self.graph, self.cache.records());
        let input = |(slot, input): &(u16, Input)| {
            let (slot, is_set) = (graph.name_at(*slot).to_owned(), matches!(input, Input::Set(_)));
            Some(FingerprintInput { slot, digest: self.digest(*input, &records)?, is_set })
        };
        let inputs = graph.inputs(unit).iter().map(input).collect::<Option<_>>()?;
        let kind = graph.kind(unit);
        Some(Fingerprint {
            stage: kind.stage.to_owned(),
            version: kind.version,
            params: kind.params.to_string(),
            inputs,
        })
    }

    /// The bytes of a set's listing, once all members are known.
    pub(super) fn listing(&self, set: SetIdx) -> Option<Vec<u8>> {
        self.listing_bytes(set, &self.cache.records())
    }

    pub(super) fn listing_digest(&self, set: SetIdx) -> Option<BlobDigest> {
        self.listings[set]
    }

    /// Takes the digest of a set whose members have become known.
    pub(super) fn learn_set(&mut self, set: SetIdx) {
        self.listings[set] = self.listing(set).map(|bytes| BlobDigest::of(&bytes));
    }

    fn listing_bytes(&self, set: SetIdx, records: &Records) -> Option<Vec<u8>> {
        let mut is_known = true;
        let members = self.graph.members(set).map(|(item, input)| {
            let digest = self.digest(input, records);
            is_known &= digest.is_some();
            (item, digest.unwrap_or(BlobDigest::from_bytes([0; 32])))
        });
        let bytes = SetListing::encode(members);
        is_known.then_some(bytes)
    }

    pub(super) fn digest(&self, input: Input, records: &Records) -> Option<BlobDigest> {
        match input {
            Input::Output { unit, name } => {
                Some(records.output(self.known[unit as usize]?, self.graph.name_at(name))?.0)
            }
            Input::Content(content) => Some(self.graph.content(content).0),
            Input::Set(set) => self.listings[set as usize],
        }
    }

    /// All blobs of a unit are there, with the sizes they have; of one that tables show, with the bytes they had.
    pub(super) fn is_whole(&mut self, unit: UnitIdx) -> bool {
        let whole = match self.whole[unit] {
            Some(whole) => whole,
            None => self.look_whether_whole(unit, &self.cache.records(), &self.cache.store().look_for(1)),
        };
        self.whole[unit] = Some(whole);
        whole
    }

    fn look_whether_whole(&self, unit: UnitIdx, records: &Records, look: &Look<'_>) -> bool {
        let Some(record) = self.known[unit] else { return false };
        let is_as_it_was = || {
            let mut outputs = records.outputs(record);
            outputs.all(|(_, digest, _)| self.cache.store().read(&digest).is_ok())
        };
        records.is_whole(record, look) && (!self.graph.is_shown(unit) || is_as_it_was())
    }

    /// The same of all members of a set.
    pub(super) fn is_whole_set(&mut self, set: SetIdx) -> bool {
        if !self.whole_sets[set] {
            let graph = self.graph;
            self.check_blobs(graph.member_units(set));
            self.whole_sets[set] = graph.member_units(set).all(|unit| self.is_whole(unit));
        }
        self.whole_sets[set]
    }

    /// Looks for the blobs of many units at once.
    pub(super) fn check_blobs(&mut self, units: impl Iterator<Item = UnitIdx>) {
        let unchecked: Vec<UnitIdx> = units.filter(|unit| self.whole[*unit].is_none()).collect();
        let records = &*self.cache.records();
        let look = self.cache.store().look_for(unchecked.len());
        let check = |unit: &UnitIdx| self.look_whether_whole(*unit, records, &look);
        let whole: Vec<bool> = unchecked.par_iter().with_min_len(64).map(check).collect();
        for (unit, whole) in unchecked.into_iter().zip(whole) {
            self.whole[unit] = Some(whole);
        }
    }

    /// A unit has a record and all its blobs.
    pub(super) fn learn(&mut self, unit: UnitIdx, record: RecordIdx) {
        (self.known[unit], self.whole[unit]) = (Some(record), Some(true));
    }

    /// A record was found in the cache.
    pub(super) fn learn_hit(&mut self, unit: UnitIdx, record: RecordIdx) {
        (self.known[unit], self.whole[unit]) = (Some(record), None);
    }

    /// Some blob that a unit reads turned out to be lost: looks again.
    pub(super) fn doubt(&mut self, unit: UnitIdx) {
        let graph = self.graph;
        graph.for_each_dependency(unit, |below| self.whole[below] = None);
        for (_, input) in graph.inputs(unit) {
            if let Input::Set(set) = input {
                self.whole_sets[*set as usize] = false;
            }
        }
    }

    /// The state of each unit as far as it can be told (those not needed are `Done`). A finished unit runs again only
    /// when its blobs are gone and a unit that runs needs them, or it is an end.
    pub(super) fn states(&mut self, targets: &[UnitIdx]) -> Vec<State> {
        let (graph, n_units) = (self.graph, self.known.len());
        let mut runs: Vec<bool> = (0..n_units).map(|unit| self.needed[unit] && self.known[unit].is_none()).collect();
        let ends = self.ends(targets, false);
        self.check_blobs(ends.iter().copied());
        ends.iter().for_each(|&unit| runs[unit] |= !self.is_whole(unit));
        let mut seen_sets = vec![false; graph.n_sets()];
        for unit in (0..n_units).rev() {
            for (_, input) in if runs[unit] { graph.inputs(unit) } else { &[] } {
                match *input {
                    Input::Output { unit, name: _ } => runs[unit as usize] |= !self.is_whole(unit as usize),
                    Input::Set(set) if !std::mem::replace(&mut seen_sets[set as usize], true) => {
                        self.check_blobs(graph.member_units(set as usize));
                        graph.member_units(set as usize).for_each(|unit| runs[unit] |= !self.is_whole(unit));
                    }
                    Input::Set(_) | Input::Content(_) => {}
                }
            }
        }
        let mut waiting_sets: Vec<Option<bool>> = vec![None; graph.n_sets()];
        let mut state = |unit: UnitIdx| {
            let mut waits = |(_, input): &(u16, Input)| match *input {
                Input::Output { unit, name: _ } => runs[unit as usize],
                Input::Set(set) => *waiting_sets[set as usize]
                    .get_or_insert_with(|| graph.member_units(set as usize).any(|unit| runs[unit])),
                Input::Content(_) => false,
            };
            match runs[unit] {
                false => State::Done,
                true if graph.inputs(unit).iter().any(&mut waits) => State::Waits,
                true => State::Ready,
            }
        };
        (0..n_units).map(&mut state).collect()
    }
}

/// The places that are marked, in order of their level, and which are of each level.
fn by_level(marked: &[bool], level: impl Fn(usize) -> usize) -> (Vec<u32>, Vec<Range<usize>>) {
    let places = || (0..marked.len()).filter(|place| marked[*place]);
    let mut ends: Vec<usize> = Vec::new();
    for place in places() {
        let level = level(place);
        ends.resize(ends.len().max(level + 1), 0);
        ends[level] += 1;
    }
    let mut start = 0;
    let ranges: Vec<Range<usize>> = ends
        .iter()
        .map(|n| {
            start += n;
            start - n..start
        })
        .collect();
    let mut next: Vec<usize> = ranges.iter().map(|range| range.start).collect();
    let mut ordered = vec![0; start];
    for place in places() {
        let next = &mut next[level(place)];
        ordered[*next] = place as u32;
        *next += 1;
    }
    (ordered, ranges)
}
