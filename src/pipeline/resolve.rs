//! What is known of a graph: keys and records of units, as far as the contents of their inputs are known.

use std::sync::Arc;

use crate::artifact::{Fingerprint, FingerprintInput, Manifest, SetListing};
use crate::cache::Cache;
use crate::digest::BlobDigest;
use crate::pipeline::graph::{Graph, SetIdx, Source, UnitIdx};

/// A graph against a cache.
pub(super) struct Resolver<'a> {
    pub(super) graph: &'a Graph,
    pub(super) cache: &'a Cache,
    /// Units that a target needs, itself included.
    pub(super) needed: Vec<bool>,
    /// Records of finished units. Their blobs may be gone.
    pub(super) known: Vec<Option<Arc<Manifest>>>,
    listings: Vec<Option<(BlobDigest, Arc<[u8]>)>>,
}

/// Where a needed unit stands.
#[derive(Clone, Debug, PartialEq)]
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
        let n_units = graph.units().len();
        let mut needed = vec![false; n_units];
        targets.iter().for_each(|&unit| needed[unit] = true);
        for unit in (0..n_units).rev() {
            if needed[unit] {
                graph.for_each_dependency(unit, |below| needed[below] = true);
            }
        }
        let listings = vec![None; graph.sets().len()];
        Self { graph, cache, needed, known: vec![None; n_units], listings }
    }

    /// Looks up every needed unit whose inputs are known. Inputs come first in a graph, so one pass settles all.
    pub(super) fn look_up(&mut self) -> anyhow::Result<()> {
        for unit in 0..self.known.len() {
            if self.needed[unit]
                && self.known[unit].is_none()
                && let Some(fingerprint) = self.fingerprint(unit)
            {
                self.known[unit] = self.cache.get(&fingerprint.key())?.map(Arc::new);
            }
        }
        Ok(())
    }

    /// The state of each unit (those not needed are `Done`). A finished unit runs again only when its blobs are gone
    /// and a unit that runs, or a target, needs them.
    pub(super) fn states(&self, targets: &[UnitIdx]) -> Vec<State> {
        let n_units = self.known.len();
        let whole = |unit: UnitIdx| self.known[unit].as_ref().is_some_and(|manifest| self.cache.is_whole(manifest));
        let mut runs = vec![false; n_units];
        for unit in 0..n_units {
            runs[unit] = self.needed[unit] && self.known[unit].is_none();
        }
        targets.iter().for_each(|&unit| runs[unit] |= !whole(unit));
        for unit in (0..n_units).rev() {
            if runs[unit] {
                self.graph.for_each_dependency(unit, |below| runs[below] = runs[below] || !whole(below));
            }
        }
        let state = |unit: UnitIdx| {
            let mut waits = false;
            self.graph.for_each_dependency(unit, |below| waits |= runs[below]);
            match (runs[unit], waits) {
                (false, _) => State::Done,
                (true, false) => State::Ready,
                (true, true) => State::Waits,
            }
        };
        (0..n_units).map(state).collect()
    }

    /// The fingerprint of a unit, once everything it reads is known.
    pub(super) fn fingerprint(&mut self, unit: UnitIdx) -> Option<Fingerprint> {
        let graph = self.graph;
        let unit = &graph.units()[unit];
        let mut inputs = Vec::with_capacity(unit.inputs.len());
        for (slot, source) in &unit.inputs {
            let (digest, is_set) = match source {
                Source::Set(set) => (self.listing(*set)?.0, true),
                other => (self.digest(other)?, false),
            };
            inputs.push(FingerprintInput { slot: (*slot).to_owned(), digest, is_set });
        }
        let (stage, params) = (unit.stage.to_owned(), unit.params.to_string());
        Some(Fingerprint { stage, version: unit.version, params, inputs })
    }

    /// The listing of a set, once all members are known: its digest and bytes.
    pub(super) fn listing(&mut self, set: SetIdx) -> Option<(BlobDigest, Arc<[u8]>)> {
        if self.listings[set].is_none() {
            let graph = self.graph;
            let member = |(item, source): &(String, Source)| Some((item.clone(), self.digest(source)?));
            let members = graph.sets()[set].members.iter().map(member).collect::<Option<_>>()?;
            let bytes: Arc<[u8]> = SetListing { members }.to_bytes().into();
            self.listings[set] = Some((BlobDigest::of(&bytes), bytes));
        }
        self.listings[set].clone()
    }

    /// Takes a unit's new record. If its outputs differ from what was known, what was derived from them is forgotten.
    pub(super) fn learn(&mut self, unit: UnitIdx, manifest: Arc<Manifest>) {
        let before = self.known[unit].replace(manifest.clone());
        if before.is_none_or(|before| before.outputs == manifest.outputs) {
            return;
        }
        let mut changed = vec![false; self.known.len()];
        changed[unit] = true;
        for user in unit + 1..self.known.len() {
            let mut derived = false;
            self.graph.for_each_dependency(user, |below| derived |= changed[below]);
            if derived {
                changed[user] = true;
                self.known[user] = None;
            }
        }
        self.listings.fill(None);
    }

    fn digest(&self, source: &Source) -> Option<BlobDigest> {
        match source {
            Source::Output { unit, name } => Some(self.known[*unit].as_ref()?.output(name)?.digest),
            Source::File { digest, path: _ } | Source::Value { digest, bytes: _ } => Some(*digest),
            Source::Set(_) => None,
        }
    }
}
