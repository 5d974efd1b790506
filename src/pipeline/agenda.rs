//! What is left to do: which units are ready, and what a finished unit makes ready.
//!
//! A unit that has no record first waits until the digests of all it reads are known, then is looked up: a hit is done
//! without running, so work stops where an edit stops having an effect. A miss runs once the *blobs* it reads are there;
//! one that is gone is made again by its unit. Each unit is touched once for each thing that changes for it.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::graph::{Graph, Input, UnitIdx};
use super::resolve::Resolver;
use crate::cache::{Cache, RecordIdx};

/// Units and sets: what a digest may wait for.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Node {
    Unit(u32),
    Set(u32),
}

/// Where a unit stands that has to run.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Stand {
    /// Nothing to do, or nothing known to do yet.
    Idle,
    /// Runs when so many units have made their blobs again.
    Waits(u32),
    Ready,
    Running,
    Failed,
}

/// See the module.
pub(super) struct Agenda<'a> {
    pub(super) resolver: Resolver<'a>,
    /// Targets whose blobs have to be there.
    ends: HashSet<UnitIdx>,
    stands: Vec<Stand>,
    /// By unit: what waits for its digests.
    digest_users: Vec<Vec<Node>>,
    set_users: Vec<Vec<u32>>,
    /// By unit, by set: digests it waits for.
    unknown: Vec<u32>,
    unknown_in_set: Vec<u32>,
    /// By unit: those that wait for its blobs.
    blob_users: Vec<Vec<u32>>,
    /// By kind of unit: its units run one beside the other.
    is_parallel: Vec<bool>,
    /// Those that do not and those that do, in the order of the graph.
    ready: [BTreeSet<UnitIdx>; 2],
    /// By stage: units that have no record yet, and those that run again.
    left: HashMap<&'static str, usize>,
    /// A unit that ran again gave other bytes than before: all that was derived from them has to be looked up anew.
    pub(super) is_stale: bool,
}

impl<'a> Agenda<'a> {
    /// `restore`: what targets gave is to be there, whoever reads it. `is_parallel`: by kind of unit, whether its units
    /// run one beside the other. What has failed is not tried.
    pub(super) fn new(
        (graph, cache): (&'a Graph, &'a Cache),
        targets: &[UnitIdx],
        restore: bool,
        is_parallel: &[bool],
        failed: &HashSet<UnitIdx>,
    ) -> Self {
        let mut resolver = Resolver::new(graph, cache, targets);
        resolver.look_up();
        let ends = resolver.ends(targets, restore);
        resolver.check_blobs(ends.iter().copied());
        let lost: Vec<UnitIdx> =
            ends.iter().copied().filter(|&unit| resolver.known[unit].is_some() && !resolver.is_whole(unit)).collect();
        let missing: Vec<UnitIdx> =
            (0..graph.len()).filter(|&unit| resolver.needed[unit] && resolver.known[unit].is_none()).collect();
        let n = if lost.is_empty() && missing.is_empty() { 0 } else { graph.len() };
        let mut agenda = Self {
            resolver,
            ends: ends.into_iter().collect(),
            stands: vec![Stand::Idle; n],
            digest_users: vec![Vec::new(); n],
            set_users: vec![Vec::new(); graph.n_sets()],
            unknown: vec![0; n],
            unknown_in_set: vec![0; graph.n_sets()],
            blob_users: vec![Vec::new(); n],
            is_parallel: is_parallel.to_vec(),
            ready: Default::default(),
            left: HashMap::new(),
            is_stale: false,
        };
        failed.iter().filter(|unit| **unit < n).for_each(|&unit| agenda.stands[unit] = Stand::Failed);
        let mut seen_sets = HashSet::new();
        let mut resolved = Vec::new();
        for &unit in &missing {
            *agenda.left.entry(graph.kind(unit).stage).or_default() += 1;
            for (_, input) in graph.inputs(unit) {
                match *input {
                    Input::Output { unit: below, name: _ } => agenda.watch(below as usize, Node::Unit(unit as u32)),
                    Input::Set(set) => {
                        if seen_sets.insert(set) {
                            graph.member_units(set as usize).for_each(|below| agenda.watch(below, Node::Set(set)));
                        }
                        if agenda.unknown_in_set[set as usize] > 0 {
                            agenda.set_users[set as usize].push(unit as u32);
                            agenda.unknown[unit] += 1;
                        }
                    }
                    Input::Content(_) => {}
                }
            }
            if agenda.unknown[unit] == 0 {
                resolved.push(unit);
            }
        }
        resolved.into_iter().chain(lost).for_each(|unit| agenda.activate(unit));
        agenda
    }

    /// Needed units that have no record yet or run again.
    pub(super) fn n_to_run(&self) -> usize {
        let runs = |unit: &usize| {
            self.resolver.needed[*unit] && self.resolver.known[*unit].is_none() || self.stands[*unit] != Stand::Idle
        };
        (0..self.stands.len()).filter(runs).count()
    }

    /// The first ready unit that there is room for, from now on running; `overlaps`: a later one may run in its stead.
    pub(super) fn next(&mut self, has_room: [bool; 2], overlaps: bool) -> Option<UnitIdx> {
        let firsts = [0, 1].map(|lane| self.ready[lane].first().copied());
        let first = firsts.into_iter().flatten().min()?;
        let can_run = |lane: &usize| has_room[*lane] && (overlaps || firsts[*lane] == Some(first));
        let lane = [0, 1].into_iter().filter(can_run).min_by_key(|lane| firsts[*lane].unwrap_or(UnitIdx::MAX))?;
        let unit = self.ready[lane].pop_first()?;
        self.stands[unit] = Stand::Running;
        Some(unit)
    }

    /// Units of a stage that are still to run as far as is known, to be told to people.
    pub(super) fn n_left(&self, stage: &str) -> usize {
        self.left.get(stage).copied().unwrap_or(0).max(1)
    }

    /// A running unit gave this.
    pub(super) fn finished(&mut self, unit: UnitIdx, record: RecordIdx) {
        let before = self.resolver.known[unit];
        if let Some(before) = before {
            let records = self.resolver.cache.records();
            self.is_stale |= !records.outputs(before).eq(records.outputs(record));
        }
        self.stands[unit] = Stand::Idle;
        self.resolver.learn(unit, record);
        for user in std::mem::take(&mut self.blob_users[unit]) {
            if let Stand::Waits(n) = &mut self.stands[user as usize] {
                *n -= 1;
                if *n == 0 {
                    self.set_ready(user as usize);
                }
            }
        }
        self.count_done(unit);
        if before.is_none() {
            self.tell(unit);
        }
    }

    pub(super) fn failed(&mut self, unit: UnitIdx) {
        self.stands[unit] = Stand::Failed;
    }

    /// A running unit has to start anew; `doubt`: a blob that it reads may be lost.
    pub(super) fn again(&mut self, unit: UnitIdx, doubt: bool) {
        self.stands[unit] = Stand::Idle;
        if self.resolver.known[unit].is_some() {
            self.count_done(unit); // and counts anew
        }
        if doubt {
            self.resolver.doubt(unit);
        }
        self.activate(unit);
    }

    /// Units that could not run since one they read failed.
    pub(super) fn blocked(&self) -> Vec<UnitIdx> {
        let graph = self.resolver.graph;
        let mut stuck: Vec<bool> = self.stands.iter().map(|stand| *stand == Stand::Failed).collect();
        let mut stuck_sets: Vec<Option<bool>> = vec![None; graph.n_sets()];
        let mut blocked = Vec::new();
        for unit in 0..stuck.len() {
            if stuck[unit] || !self.resolver.needed[unit] || self.resolver.known[unit].is_some() {
                continue;
            }
            let is_blocked = graph.inputs(unit).iter().any(|(_, input)| match *input {
                Input::Output { unit, name: _ } => stuck[unit as usize],
                Input::Set(set) => *stuck_sets[set as usize]
                    .get_or_insert_with(|| graph.member_units(set as usize).any(|unit| stuck[unit])),
                Input::Content(_) => false,
            });
            if is_blocked {
                stuck[unit] = true;
                blocked.push(unit);
            }
        }
        blocked
    }

    /// `node` waits for the digests of `below`, if they are not known.
    fn watch(&mut self, below: UnitIdx, node: Node) {
        if self.resolver.known[below].is_none() {
            self.digest_users[below].push(node);
            match node {
                Node::Unit(unit) => self.unknown[unit as usize] += 1,
                Node::Set(set) => self.unknown_in_set[set as usize] += 1,
            }
        }
    }

    /// A unit's digests have become known: looks up what waited for nothing else, and so on.
    fn tell(&mut self, unit: UnitIdx) {
        let mut told = vec![Node::Unit(unit as u32)];
        while let Some(node) = told.pop() {
            let users = match node {
                Node::Unit(unit) => std::mem::take(&mut self.digest_users[unit as usize]),
                Node::Set(set) => {
                    let users = std::mem::take(&mut self.set_users[set as usize]);
                    users.into_iter().map(Node::Unit).collect()
                }
            };
            for user in users {
                let left = match user {
                    Node::Unit(unit) => &mut self.unknown[unit as usize],
                    Node::Set(set) => &mut self.unknown_in_set[set as usize],
                };
                *left -= 1;
                if *left > 0 {
                    continue;
                }
                match user {
                    Node::Set(set) => {
                        self.resolver.learn_set(set as usize);
                        told.push(user);
                    }
                    Node::Unit(unit) => {
                        if self.look_up(unit as usize) {
                            told.push(user);
                        }
                    }
                }
            }
        }
    }

    /// A unit whose inputs have become known: whether it had finished before.
    fn look_up(&mut self, unit: UnitIdx) -> bool {
        let key = self.resolver.key(unit);
        let found = key.and_then(|key| self.resolver.cache.records().find(&key));
        if let Some(record) = found {
            self.resolver.learn_hit(unit, record);
            self.count_done(unit);
        }
        if found.is_none() || self.ends.contains(&unit) && !self.resolver.is_whole(unit) {
            self.activate(unit);
        }
        found.is_some()
    }

    /// A unit whose inputs are known has to run; what it reads and is not there any more has to run first.
    fn activate(&mut self, unit: UnitIdx) {
        let graph = self.resolver.graph;
        let mut to_do = vec![unit];
        while let Some(unit) = to_do.pop() {
            if self.stands[unit] != Stand::Idle {
                continue;
            }
            if self.resolver.known[unit].is_some() {
                *self.left.entry(graph.kind(unit).stage).or_default() += 1;
            }
            let mut gone = Vec::new();
            for (_, input) in graph.inputs(unit) {
                match *input {
                    Input::Output { unit: below, name: _ } => gone.push(below as usize),
                    Input::Set(set) if !self.resolver.is_whole_set(set as usize) => {
                        gone.extend(graph.member_units(set as usize));
                    }
                    Input::Set(_) | Input::Content(_) => {}
                }
            }
            gone.retain(|below| !self.resolver.is_whole(*below));
            gone.sort_unstable();
            gone.dedup();
            for below in &gone {
                self.blob_users[*below].push(unit as u32);
            }
            match gone.len() {
                0 => self.set_ready(unit),
                n => self.stands[unit] = Stand::Waits(n as u32),
            }
            to_do.append(&mut gone);
        }
    }

    fn count_done(&mut self, unit: UnitIdx) {
        if let Some(left) = self.left.get_mut(self.resolver.graph.kind(unit).stage) {
            *left -= 1;
        }
    }

    fn set_ready(&mut self, unit: UnitIdx) {
        self.stands[unit] = Stand::Ready;
        let lane = usize::from(self.is_parallel[self.resolver.graph.kind_idx(unit)]);
        self.ready[lane].insert(unit);
    }
}
