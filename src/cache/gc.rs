//! Garbage collection by value: what goes first is the least loss.
//!
//! Blobs may go in this order:
//! 1. those that no record names, and what killed processes left;
//! 2. with a limit alone: checkpoints that are superseded, which is outputs that a finished unit of the same stage reads
//!    (the next epoch), unless a pipeline that is kept ends with them;
//! 3. what no pipeline that is kept has, the least cost of making it again per byte first.
//!
//! The cost of a unit is the time it took and that of all units above it whose blobs are gone by then: these would have
//! to run first. Records stay, so nothing that goes is made again before a unit that runs needs it.

use std::cmp::{Ordering, Reverse};
use std::collections::{BTreeMap, BinaryHeap, HashMap, HashSet};
use std::fs;
use std::path::PathBuf;

use super::{Cache, Listed, StoreError};
use crate::artifact::{Manifest, SetListing};
use crate::digest::BlobDigest;

/// What a collection leaves alone.
#[derive(Clone, Debug, Default)]
pub struct Keep {
    /// What units of pipelines that are kept gave and read.
    pub blobs: HashSet<BlobDigest>,
    /// Of these, what the pipelines end with: it is never superseded.
    pub ends: HashSet<BlobDigest>,
}

/// What a collection removed, or would remove.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct GcReport {
    pub removed_blobs: usize,
    pub removed_bytes: u64,
    pub kept_blobs: usize,
    pub kept_bytes: u64,
    /// What was removed, by why it may go: `unrecorded`, `superseded`, `not_kept`.
    pub removed: BTreeMap<&'static str, Removed>,
    /// What would run to have all of it again, by stage; what was gone before and is needed for that is in it.
    pub again: BTreeMap<String, Again>,
}

/// Why a blob may go, in the order of the module.
const WHY: [&str; 3] = ["unrecorded", "superseded", "not_kept"];

#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub struct Removed {
    pub blobs: usize,
    pub bytes: u64,
}

#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct Again {
    pub units: usize,
    pub seconds: f64,
}

impl Cache {
    /// Removes blobs in the order of the module until their bytes are at most `max_bytes`; without a limit all of 1 and 3.
    pub fn collect(&self, keep: &Keep, max_bytes: Option<u64>, dry_run: bool) -> anyhow::Result<GcReport> {
        let mut report = GcReport::default();
        let Listed { blobs, left, foreign: _ } = self.store().list()?;
        let sizes = || blobs.iter().map(|(.., size)| *size).chain(left.iter().map(|(_, size)| *size));
        (report.kept_blobs, report.kept_bytes) = (sizes().count(), sizes().sum());
        let files: HashMap<BlobDigest, (PathBuf, u64)> =
            blobs.into_iter().map(|(digest, path, size)| (digest, (path, size))).collect();
        let units = Units::new(self, self.manifests()?);
        let mut state = State { there: files.keys().copied().collect(), removed: Vec::new() };
        let mut queue = units.candidates(&state, keep, max_bytes.is_some(), &files);
        let remove = |report: &mut GcReport, class: usize, path: &PathBuf, size: u64| {
            let removed = report.removed.entry(WHY[class]).or_default();
            *removed = Removed { blobs: removed.blobs + 1, bytes: removed.bytes + size };
            report.kept_blobs -= 1;
            report.kept_bytes -= size;
            report.removed_blobs += 1;
            report.removed_bytes += size;
            if dry_run { Ok(()) } else { fs::remove_file(path).map_err(StoreError::io("remove", path)) }
        };
        let is_enough = |report: &GcReport| max_bytes.is_some_and(|max| report.kept_bytes <= max);
        for (path, size) in &left {
            if !is_enough(&report) {
                remove(&mut report, 0, path, *size)?;
            }
        }
        while !is_enough(&report) {
            let Some(Reverse(next)) = queue.pop() else { break };
            // Others that went meanwhile may have made this one dearer.
            let now = next.valued(&units, &state, &files);
            if now.is_after(&next) {
                queue.push(Reverse(now));
                continue;
            }
            for digest in &now.blobs {
                if state.there.remove(digest)
                    && let Some((path, size)) = files.get(digest)
                {
                    remove(&mut report, now.class, path, *size)?;
                }
            }
            state.removed.extend(now.unit);
        }
        report.again = units.again(&state);
        Ok(report)
    }
}

/// Finished units and what they read of each other.
struct Units {
    manifests: Vec<Manifest>,
    /// Of the units that gave these bytes, the one that does so soonest.
    makers: HashMap<BlobDigest, usize>,
    /// By the digest of a listing that is there: makers of its members.
    sets: HashMap<BlobDigest, Vec<usize>>,
}

struct State {
    there: HashSet<BlobDigest>,
    /// Units that lost a blob now.
    removed: Vec<usize>,
}

/// Blobs that go together.
#[derive(Debug)]
struct Candidate {
    /// Place in [`WHY`].
    class: usize,
    /// Seconds a byte.
    value: f64,
    unit: Option<usize>,
    blobs: Vec<BlobDigest>,
}

impl Units {
    fn new(cache: &Cache, manifests: Vec<Manifest>) -> Self {
        let mut makers: HashMap<BlobDigest, usize> = HashMap::new();
        for (unit, manifest) in manifests.iter().enumerate() {
            for output in &manifest.outputs {
                let maker = makers.entry(output.digest).or_insert(unit);
                if manifest.seconds < manifests[*maker].seconds {
                    *maker = unit;
                }
            }
        }
        let mut sets: HashMap<BlobDigest, Vec<usize>> = HashMap::new();
        for input in manifests.iter().flat_map(|manifest| &manifest.fingerprint.inputs).filter(|input| input.is_set) {
            sets.entry(input.digest).or_insert_with(|| {
                // Without its listing nobody knows what a set was made of.
                let listing = cache.store().read(&input.digest).ok().and_then(|bytes| SetListing::parse(&bytes).ok());
                let members = listing.map(|listing| listing.members).unwrap_or_default();
                members.iter().filter_map(|(_, digest)| makers.get(digest).copied()).collect()
            });
        }
        Self { manifests, makers, sets }
    }

    /// Calls `f` with each unit that one reads.
    fn for_each_read(&self, unit: usize, mut f: impl FnMut(usize)) {
        for input in &self.manifests[unit].fingerprint.inputs {
            match input.is_set {
                true => self.sets[&input.digest].iter().copied().for_each(&mut f),
                false => self.makers.get(&input.digest).copied().into_iter().for_each(&mut f),
            }
        }
    }

    fn is_gone(&self, state: &State, unit: usize) -> bool {
        self.manifests[unit].outputs.iter().any(|output| !state.there.contains(&output.digest))
    }

    /// Some units and all above them that would have to run for them.
    fn runs(&self, state: &State, units: &[usize]) -> HashSet<usize> {
        let mut runs: HashSet<usize> = units.iter().copied().collect();
        let mut to_do = units.to_vec();
        while let Some(unit) = to_do.pop() {
            self.for_each_read(unit, |below| {
                if self.is_gone(state, below) && runs.insert(below) {
                    to_do.push(below);
                }
            });
        }
        runs
    }

    fn again(&self, state: &State) -> BTreeMap<String, Again> {
        let mut again: BTreeMap<String, Again> = BTreeMap::new();
        let mut runs: Vec<usize> = self.runs(state, &state.removed).into_iter().collect();
        runs.sort_unstable(); // sums of floats in one order
        for unit in runs {
            let stage = again.entry(self.manifests[unit].fingerprint.stage.clone()).or_default();
            stage.units += 1;
            stage.seconds += self.manifests[unit].seconds;
        }
        again
    }

    fn candidates(
        &self,
        state: &State,
        keep: &Keep,
        with_superseded: bool,
        files: &HashMap<BlobDigest, (PathBuf, u64)>,
    ) -> BinaryHeap<Reverse<Candidate>> {
        let mut found = Vec::new();
        let mut superseded = HashSet::new();
        for manifest in self.manifests.iter().filter(|_| with_superseded) {
            for input in manifest.fingerprint.inputs.iter().filter(|input| !input.is_set) {
                let Some(maker) = self.makers.get(&input.digest) else { continue };
                let is_same_stage = self.manifests[*maker].fingerprint.stage == manifest.fingerprint.stage;
                if is_same_stage && !keep.ends.contains(&input.digest) && superseded.insert(input.digest) {
                    found.push((1, Some(*maker), vec![input.digest]));
                }
            }
        }
        let mut named: HashSet<BlobDigest> = HashSet::new();
        for (unit, manifest) in self.manifests.iter().enumerate() {
            let outputs = manifest.outputs.iter().map(|output| output.digest);
            named.extend(outputs.clone());
            found.push((2, Some(unit), outputs.filter(|digest| !keep.blobs.contains(digest)).collect()));
        }
        // Listings and values: nothing needs them to run, they say why it does.
        let inputs: HashSet<BlobDigest> = self.manifests.iter().flat_map(inputs).collect();
        let loose = |class: usize, digest: BlobDigest| (class, None, vec![digest]);
        found.extend(inputs.difference(&named).filter(|digest| !keep.blobs.contains(digest)).map(|of| loose(2, *of)));
        let unnamed = files.keys().filter(|digest| !named.contains(digest) && !inputs.contains(digest));
        found.extend(unnamed.filter(|digest| !keep.blobs.contains(digest)).map(|of| loose(0, *of)));
        let there = |blobs: Vec<BlobDigest>| -> Vec<_> {
            blobs.into_iter().filter(|digest| state.there.contains(digest)).collect()
        };
        let found = found.into_iter().map(|(class, unit, blobs)| (class, unit, there(blobs)));
        let valued = found.filter(|(.., blobs)| !blobs.is_empty()).map(|(class, unit, blobs)| {
            Reverse(Candidate { class, value: 0.0, unit, blobs }.valued(self, state, files))
        });
        valued.collect()
    }
}

fn inputs(manifest: &Manifest) -> impl Iterator<Item = BlobDigest> {
    manifest.fingerprint.inputs.iter().map(|input| input.digest)
}

impl Candidate {
    /// As it is worth now: a unit whose blobs are not all there is worth nothing.
    fn valued(&self, units: &Units, state: &State, files: &HashMap<BlobDigest, (PathBuf, u64)>) -> Self {
        let Self { class, value: _, unit, blobs } = self;
        let blobs: Vec<BlobDigest> = blobs.iter().copied().filter(|digest| state.there.contains(digest)).collect();
        let bytes: u64 = blobs.iter().filter_map(|digest| files.get(digest)).map(|(_, size)| size).sum();
        let whole = unit.filter(|unit| !units.is_gone(state, *unit));
        let cost: f64 = whole.map_or(0.0, |unit| {
            let mut runs: Vec<usize> = units.runs(state, &[unit]).into_iter().collect();
            runs.sort_unstable();
            runs.iter().map(|unit| units.manifests[*unit].seconds).sum()
        });
        Self { class: *class, value: cost / bytes.max(1) as f64, unit: whole, blobs }
    }

    fn is_after(&self, other: &Self) -> bool {
        (self.class, self.value) > (other.class, other.value)
    }
}

impl Ord for Candidate {
    fn cmp(&self, other: &Self) -> Ordering {
        let values = || self.value.total_cmp(&other.value);
        self.class.cmp(&other.class).then_with(values).then_with(|| self.blobs.cmp(&other.blobs))
    }
}
impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl PartialEq for Candidate {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}
impl Eq for Candidate {}
