//! Caches on two machines: what one has goes to a folder or a bucket, and from there to another.
//!
//! ```text
//! blobs/ab/cdef..            as in a cache
//! manifests/whole-HEX.log    records of units whose blobs are here; HEX is the BLAKE3 of the file
//! manifests/bare-HEX.log     records alone: their blobs were not there any more
//! ```
//!
//! So the far side tells what it has in a few files, and its blobs need not be listed. A folder of this form is a cache
//! too. A log follows the blobs it names, batch by batch; what a broken transfer left is found by its size. Nothing
//! enters either side that was not hashed: not what is damaged here, nor what does not hash to its name there.

mod folder;
mod read;
#[cfg(feature = "s3")]
mod s3;

use std::collections::{BTreeSet, HashMap, HashSet};

use super::{Cache, StoreError, manifest};
use crate::artifact::Manifest;
use crate::digest::{BlobDigest, UnitKey};

pub use folder::Folder;
pub use read::{pull_read, push_read};
#[cfg(feature = "s3")]
pub use s3::S3;

/// A file of the far side.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Item {
    /// `blobs/ab/cdef..`
    pub name: String,
    /// Bytes.
    pub size: u64,
}

/// Takes what was read; `None` where there is no such file.
pub type TakeFn<'a> = dyn FnMut(&Item, Option<&[u8]>) -> anyhow::Result<()> + 'a;

/// Where caches meet. A file is there whole or not at all.
pub trait Far {
    /// Files below a folder.
    fn list(&self, folder: &str) -> anyhow::Result<Vec<Item>>;
    /// Those of some files that are there, with the sizes they have there.
    fn there(&self, items: &[Item]) -> anyhow::Result<Vec<Item>>;
    /// Writes files; `read` gives the bytes of one, or `None` where it is not to be sent. Several may be on their way.
    fn put(&self, items: &[Item], read: &mut dyn FnMut(&Item) -> Option<Vec<u8>>) -> anyhow::Result<()>;
    /// Reads files, in any order.
    fn get(&self, items: &[Item], take: &mut TakeFn<'_>) -> anyhow::Result<()>;
}

/// Bytes of blobs between two logs.
const BATCH: u64 = 256 << 20;
/// Up to so many files are asked for one by one, where all would be listed by thousands.
const ONE_BY_ONE: usize = 1000;

/// How far a transfer is.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub struct Moved {
    pub blobs: usize,
    pub bytes: u64,
}

/// What a transfer did.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct Transfer {
    pub units: usize,
    pub moved: Moved,
    /// Blobs that were there already.
    pub there: usize,
    /// Files that are not what their name says. They stay where they are and go nowhere.
    pub refused: BTreeSet<String>,
    /// Blobs that records name and that are not there.
    pub missing: BTreeSet<String>,
    /// Labels of units that gave other bytes on the two sides; each side keeps its own.
    pub differing: BTreeSet<String>,
}

impl Transfer {
    /// A blob that the unit gave is not what its name says, or not there.
    fn has_lost(&self, manifest: &Manifest) -> bool {
        let mut names = manifest.outputs.iter().map(|output| item(&output.digest, 0).name);
        names.any(|name| self.refused.contains(&name) || self.missing.contains(&name))
    }
}

/// Told how far it is, of how much.
pub type Watch<'a> = dyn Fn(Moved, Moved) + 'a;

/// Sends what a cache has. `list`: what is there is not taken from the records there but looked up.
pub fn push(cache: &Cache, far: &dyn Far, list: bool, watch: &Watch<'_>) -> anyhow::Result<Transfer> {
    let mut report = Transfer::default();
    let known = Known::read(far, &mut report)?;
    let store = cache.store();
    let mut blobs: HashMap<BlobDigest, u64> = HashMap::new();
    let mut to_do: Vec<(Manifest, bool)> = Vec::new();
    for manifest in cache.manifests()? {
        let is_whole = cache.is_whole(&manifest);
        if known.differs(&manifest) {
            report.differing.insert(manifest.label);
            continue;
        }
        if is_whole {
            blobs.extend(manifest.outputs.iter().map(|output| (output.digest, output.size)));
        }
        for input in manifest.fingerprint.inputs.iter().filter(|input| input.is_set) {
            blobs.extend(store.size(&input.digest).map(|size| (input.digest, size)));
        }
        if !known.has(&manifest.key, is_whole) || list {
            to_do.push((manifest, is_whole));
        }
    }
    to_do.sort_by_key(|(manifest, _)| (manifest.finished, manifest.key));
    let there = there(far, &blobs, &known, list)?;
    report.there = there.len();
    let is_new = |digest: &BlobDigest| blobs.contains_key(digest) && !there.contains(digest);
    let total = blobs.iter().filter(|(digest, _)| !there.contains(digest));
    let total = total.fold(Moved::default(), |sum, (_, size)| Moved { blobs: sum.blobs + 1, bytes: sum.bytes + size });
    let mut sent: HashSet<BlobDigest> = HashSet::new();
    for batch in batches(to_do, |(manifest, _)| named(manifest).filter(is_new).collect(), &blobs) {
        let new = batch.iter().flat_map(|(manifest, _)| named(manifest)).filter(is_new);
        let new: BTreeSet<BlobDigest> = new.filter(|digest| !sent.contains(digest)).collect();
        let items: Vec<Item> = new.iter().map(|digest| item(digest, blobs[digest])).collect();
        let Transfer { refused, missing, moved, .. } = &mut report;
        far.put(&items, &mut |item| {
            let bytes = match store.read(&digest_of(item)?) {
                Err(StoreError::Missing(_)) => {
                    missing.insert(item.name.clone());
                    return None;
                }
                Err(_) => {
                    refused.insert(item.name.clone());
                    return None;
                }
                Ok(bytes) => bytes,
            };
            *moved = Moved { blobs: moved.blobs + 1, bytes: moved.bytes + item.size };
            watch(*moved, total);
            Some(bytes)
        })?;
        sent.extend(new);
        // What turned out to be damaged was not sent.
        let manifests = batch.into_iter().map(|(manifest, _)| manifest);
        let (whole, bare): (Vec<_>, Vec<_>) =
            manifests.partition(|manifest| !report.has_lost(manifest) && cache.is_whole(manifest));
        for (kind, manifests) in [("whole", whole), ("bare", bare)] {
            let manifests: Vec<&Manifest> =
                manifests.iter().filter(|manifest| !known.has(&manifest.key, kind == "whole")).collect();
            if manifests.is_empty() {
                continue;
            }
            report.units += manifests.len();
            let bytes =
                manifests.iter().map(|manifest| manifest::record(manifest)).collect::<anyhow::Result<Vec<_>>>()?;
            let bytes = bytes.concat();
            let name = format!("manifests/{kind}-{}.log", BlobDigest::of(&bytes));
            let item = Item { name, size: bytes.len() as u64 };
            let mut bytes = Some(bytes);
            far.put(&[item], &mut |_| bytes.take())?;
        }
    }
    Ok(report)
}

/// Takes what the far side has and this cache has not.
pub fn pull(cache: &Cache, far: &dyn Far, watch: &Watch<'_>) -> anyhow::Result<Transfer> {
    let mut report = Transfer::default();
    let known = Known::read(far, &mut report)?;
    let store = cache.store();
    let mut blobs: HashMap<BlobDigest, u64> = HashMap::new();
    let mut to_do: Vec<Manifest> = Vec::new();
    for (manifest, is_whole) in known.records.into_values() {
        let own = cache.get(&manifest.key);
        if own.as_ref().is_some_and(|own| own.outputs != manifest.outputs) {
            report.differing.insert(manifest.label);
            continue;
        }
        let wanted = manifest.outputs.iter().filter(|output| is_whole && !store.has(&output.digest, output.size));
        let wanted: Vec<_> = wanted.map(|output| (output.digest, output.size)).collect();
        if is_whole {
            report.there += manifest.outputs.len() - wanted.len();
        }
        if own.is_none() || !wanted.is_empty() {
            blobs.extend(wanted);
            to_do.push(manifest);
        }
    }
    to_do.sort_by_key(|manifest| (manifest.finished, manifest.key));
    let total = Moved { blobs: blobs.len(), bytes: blobs.values().sum() };
    let outputs = |manifest: &Manifest| manifest.outputs.iter().map(|output| output.digest).collect::<Vec<_>>();
    let mut asked: HashSet<BlobDigest> = HashSet::new();
    for batch in
        batches(to_do, |manifest| outputs(manifest).into_iter().filter(|of| blobs.contains_key(of)).collect(), &blobs)
    {
        let new = batch.iter().flat_map(outputs).filter(|digest| blobs.contains_key(digest) && asked.insert(*digest));
        let mut items: Vec<Item> = new.map(|digest| item(&digest, blobs[&digest])).collect();
        // Listings have no size on record; they are small.
        let listings = batch.iter().flat_map(|manifest| &manifest.fingerprint.inputs).filter(|input| input.is_set);
        let listings = listings.map(|input| input.digest).filter(|of| store.size(of).is_none() && asked.insert(*of));
        items.extend(listings.map(|digest| item(&digest, 0)));
        let Transfer { refused, missing, moved, .. } = &mut report;
        far.get(&items, &mut |item, bytes| {
            let Some(digest) = digest_of(item) else { return Ok(()) };
            let is_output = blobs.contains_key(&digest);
            match bytes {
                Some(bytes) if BlobDigest::of(bytes) != digest => drop(refused.insert(item.name.clone())),
                Some(bytes) => {
                    store.write(bytes, false)?;
                    if is_output {
                        *moved = Moved { blobs: moved.blobs + 1, bytes: moved.bytes + item.size };
                        watch(*moved, total);
                    }
                }
                None if is_output => drop(missing.insert(item.name.clone())),
                None => {}
            }
            Ok(())
        })?;
        // A record enters with its blobs, or where it came alone.
        let new = batch.into_iter().filter(|manifest| !report.has_lost(manifest) && cache.get(&manifest.key).is_none());
        let new: Vec<Manifest> = new.collect();
        cache.adopt(&new)?;
        report.units += new.len();
    }
    Ok(report)
}

/// What the records of the far side say.
struct Known {
    /// Whether its blobs are there.
    records: HashMap<UnitKey, (Manifest, bool)>,
}

impl Known {
    fn read(far: &dyn Far, report: &mut Transfer) -> anyhow::Result<Self> {
        let mut records: HashMap<UnitKey, (Manifest, bool)> = HashMap::new();
        let mut logs = far.list("manifests")?;
        logs.retain(|log| log.name.ends_with(".log"));
        logs.sort();
        far.get(&logs, &mut |log, bytes| {
            let name = log.name.trim_start_matches("manifests/").trim_end_matches(".log");
            let Some((kind @ ("whole" | "bare"), digest)) = name.split_once('-') else { return Ok(()) };
            let Some(bytes) = bytes.filter(|bytes| BlobDigest::of(bytes).to_string() == digest) else {
                report.refused.insert(log.name.clone());
                return Ok(());
            };
            let is_whole = kind == "whole";
            manifest::scan(bytes, &mut |_, manifest| {
                let better = records.get(&manifest.key).is_none_or(|(_, known)| is_whole && !known);
                // A key is what was hashed: a record of another is not one of ours.
                if better && manifest.fingerprint.key() == manifest.key {
                    records.insert(manifest.key, (manifest, is_whole));
                }
            })?;
            Ok(())
        })?;
        Ok(Self { records })
    }

    /// A record of the unit is there, as good as this.
    fn has(&self, key: &UnitKey, is_whole: bool) -> bool {
        self.records.get(key).is_some_and(|(_, known)| *known || !is_whole)
    }

    fn differs(&self, manifest: &Manifest) -> bool {
        self.records.get(&manifest.key).is_some_and(|(known, _)| known.outputs != manifest.outputs)
    }
}

/// Which of some blobs the far side has.
fn there(
    far: &dyn Far,
    blobs: &HashMap<BlobDigest, u64>,
    known: &Known,
    list: bool,
) -> anyhow::Result<HashSet<BlobDigest>> {
    let recorded = known.records.values().filter(|(_, is_whole)| *is_whole && !list);
    let recorded: HashSet<BlobDigest> = recorded.flat_map(|(manifest, _)| named(manifest)).collect();
    let mut there: HashSet<BlobDigest> = blobs.keys().filter(|digest| recorded.contains(digest)).copied().collect();
    let unknown = blobs.iter().filter(|(digest, _)| !there.contains(digest));
    let items: Vec<Item> = unknown.map(|(digest, size)| item(digest, *size)).collect();
    let found = match items.len() {
        0 => Vec::new(),
        // What a transfer that broke has left.
        1..=ONE_BY_ONE => far.there(&items)?,
        _ => far.list("blobs")?,
    };
    let sized = found.iter().filter_map(|item| Some((digest_of(item)?, item.size)));
    there.extend(sized.filter(|(digest, size)| blobs.get(digest) == Some(size)).map(|(digest, _)| digest));
    Ok(there)
}

/// Blobs that travel with a record: outputs, and listings of sets, which say why a unit runs. The user's files do not.
fn named(manifest: &Manifest) -> impl Iterator<Item = BlobDigest> {
    let inputs = manifest.fingerprint.inputs.iter().filter(|input| input.is_set).map(|input| input.digest);
    manifest.outputs.iter().map(|output| output.digest).chain(inputs)
}

/// Parts of a list, of so many bytes of blobs.
fn batches<T>(list: Vec<T>, blobs_of: impl Fn(&T) -> Vec<BlobDigest>, sizes: &HashMap<BlobDigest, u64>) -> Vec<Vec<T>> {
    let mut seen = HashSet::new();
    let (mut batches, mut batch, mut bytes) = (Vec::new(), Vec::new(), 0);
    for element in list {
        let new = blobs_of(&element).into_iter().filter(|digest| seen.insert(*digest));
        bytes += new.filter_map(|digest| sizes.get(&digest)).sum::<u64>();
        batch.push(element);
        if bytes >= BATCH {
            batches.push(std::mem::take(&mut batch));
            bytes = 0;
        }
    }
    batches.push(batch);
    batches
}

fn item(digest: &BlobDigest, size: u64) -> Item {
    let hex = digest.to_string();
    Item { name: format!("blobs/{}/{}", &hex[..2], &hex[2..]), size }
}

/// The digest of its bytes that the name of an item says, of a blob or a log.
fn named_digest(name: &str) -> Option<BlobDigest> {
    let of_log = || name.strip_prefix("manifests/")?.strip_suffix(".log")?.split_once('-')?.1.parse().ok();
    name.strip_prefix("blobs/").and_then(|name| name.replacen('/', "", 1).parse().ok()).or_else(of_log)
}

fn digest_of(item: &Item) -> Option<BlobDigest> {
    item.name.strip_prefix("blobs/")?.replacen('/', "", 1).parse().ok()
}
