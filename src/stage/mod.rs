//! Stages: kinds of work. A unit is one stage applied to one item.
//!
//! A stage sees only its parameters and the bytes of its inputs, so a unit can be executed anywhere that has its
//! fingerprint and a blob store. It is pure: the same parameters and inputs give the same bytes.

#[cfg(feature = "torch")]
pub mod affinity;
pub mod affinity_label;
#[cfg(feature = "torch")]
pub mod cam_epoch;
pub mod cam_file;
#[cfg(feature = "torch")]
pub mod cam_infer;
pub mod coco_mask;
#[cfg(feature = "torch")]
mod epoch;
pub mod evaluate;
pub mod guard;
#[cfg(feature = "torch")]
pub mod irn_epoch;
#[cfg(feature = "torch")]
pub mod irn_walk;
#[cfg(feature = "torch")]
pub(crate) mod loader;
pub mod mask_file;
pub mod params;
pub mod prompt;
#[cfg(feature = "torch")]
pub mod psa_epoch;
#[cfg(feature = "torch")]
pub mod psa_walk;
pub mod pseudo_label;
#[cfg(feature = "torch")]
pub mod sam_embed;
#[cfg(feature = "torch")]
pub mod sam_refine;
#[cfg(feature = "torch")]
pub mod se_map;
pub mod seed_eval;
pub mod seg_crf;
#[cfg(feature = "torch")]
pub mod seg_epoch;
#[cfg(feature = "torch")]
pub mod seg_infer;
pub mod select_epoch;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::artifact::{Fingerprint, SetListing};
pub use crate::data::Bytes;
use crate::digest::{BlobDigest, UnitKey};

/// A kind of work.
pub trait Stage: Sized {
    /// Name used in keys and reports.
    const KIND: &'static str;
    /// Raised whenever equal inputs may give different bytes; each version has a line on what changed.
    const VERSION: u64;
    /// Units run one beside the other, each worker with a stage of its own. `false`: the stage uses all cores itself.
    const PARALLEL: bool;
    /// The effective parameters: all fields enter the key.
    type Params: Serialize + DeserializeOwned;

    /// Once per worker.
    fn load(params: Self::Params, context: &StageContext) -> anyhow::Result<Self>;
    /// One unit. Keep between calls what is costly and depends on an input's digest only, like loaded weights.
    fn run(&mut self, input: &UnitInput<'_>) -> anyhow::Result<Vec<Output>>;
}

/// One output of a unit.
#[derive(Clone, Debug, PartialEq)]
pub struct Output {
    pub name: &'static str,
    pub bytes: Vec<u8>,
}

impl Output {
    pub fn new(name: &'static str, bytes: Vec<u8>) -> Self {
        Self { name, bytes }
    }
}

/// Where a stage computes. Never in a key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Device {
    #[default]
    Cpu,
    Cuda(usize),
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(index) => write!(f, "cuda:{index}"),
        }
    }
}

#[cfg(feature = "torch")]
impl Device {
    /// The one place where a libtorch device is chosen, and a GPU told to repeat itself.
    pub fn torch(self) -> tch::Device {
        match self {
            Self::Cpu => tch::Device::Cpu,
            Self::Cuda(index) => {
                crate::model::repeat::repeat_convolutions();
                tch::Device::Cuda(index)
            }
        }
    }
}

/// Told of each step inside a long unit. Times go this way alone: an output has none, so that equal runs give equal
/// bytes.
pub type ProgressFn = dyn Fn(&Step<'_>) + Send + Sync;

/// A step that is done.
#[derive(Clone, Copy, Debug)]
pub struct Step<'a> {
    /// The unit it is of.
    pub key: UnitKey,
    pub label: &'a str,
    /// Steps done, this one included, of so many.
    pub done: u64,
    pub of: u64,
    /// Losses for people; at the last step the means of all.
    pub what: &'a str,
    pub images: usize,
    /// From the end of the step before.
    pub seconds: f64,
    /// Of these, without a batch.
    pub waited: f64,
}

/// What the surroundings give a stage; nothing of it may change its output.
#[derive(Clone)]
pub struct StageContext {
    pub device: Device,
    /// Told how far inside a long unit the work is.
    pub progress: Arc<ProgressFn>,
    /// Folder for what lets a long unit resume inside itself, named by its key; losing it costs time only.
    pub scratch: PathBuf,
    /// The user wants to stop: a stage that can resume inside a unit saves to `scratch` and returns [`Interrupted`].
    pub interrupted: Arc<AtomicBool>,
}

impl StageContext {
    pub fn is_interrupted(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed)
    }
}

/// Training has left the numbers; the state before the step is saved, so that the same run stops there again.
#[derive(Debug, thiserror::Error)]
#[error("the loss or its gradient is not finite ({losses}); images of the step: {}", items.join(", "))]
pub struct NotFinite {
    pub losses: String,
    pub items: Vec<String>,
    /// Field of the learning rate.
    pub field: &'static str,
    pub lr: f64,
}

impl NotFinite {
    /// What to do about it: a rate that could train. `usual`: the rate that the field has where nothing sets it.
    pub fn hint(&self, usual: Option<f64>) -> String {
        let Self { field, lr, .. } = self;
        let kept = "the checkpoint of the epoch before stays in the cache";
        match lower_rate(*lr, usual) {
            None => {
                format!("the rate is low already ({lr:e}): look at the images of the step and at the weights; {kept}")
            }
            Some(lower) => format!("set `{field}` to {} or less; {kept}", number(lower)),
        }
    }
}

/// A rate that could train where `lr` is too high; none where `lr` is low already.
pub(crate) fn lower_rate(lr: f64, usual: Option<f64>) -> Option<f64> {
    let lower = usual.map_or(lr / 10.0, |usual| (lr / 10.0).min(usual));
    let is_low = usual.is_some_and(|usual| lr < usual / 1000.0) || !lower.is_finite() || lower <= 0.0;
    (!is_low).then_some(lower)
}

/// A number of one digit, as one writes it in a pipeline file.
pub(crate) fn number(x: f64) -> String {
    let digits = format!("{x:.0e}");
    if (1e-4..1e6).contains(&x) { digits.parse::<f64>().unwrap_or(x).to_string() } else { digits }
}

/// The unit stopped on request, its state saved; no fault.
#[derive(Debug, thiserror::Error)]
#[error("interrupted; the unit resumes where it stopped")]
pub struct Interrupted;

/// Gives bytes by digest, checked: the store's blobs, and the source files a graph registered.
pub trait BlobReader: Send + Sync {
    fn read(&self, digest: &BlobDigest) -> anyhow::Result<Bytes>;
}

/// What one unit may read.
pub struct UnitInput<'a> {
    /// For messages only.
    pub label: &'a str,
    pub fingerprint: &'a Fingerprint,
    pub reader: &'a dyn BlobReader,
}

impl UnitInput<'_> {
    /// The digest in a slot: what a stage keeps loaded things under.
    pub fn digest(&self, slot: &str) -> anyhow::Result<BlobDigest> {
        let found = self.fingerprint.inputs.iter().find(|input| input.slot == slot);
        Ok(found.with_context(|| format!("{}: no input `{slot}`", self.label))?.digest)
    }

    pub fn has(&self, slot: &str) -> bool {
        self.fingerprint.inputs.iter().any(|input| input.slot == slot)
    }

    /// The bytes in a slot.
    pub fn bytes(&self, slot: &str) -> anyhow::Result<Bytes> {
        self.read(slot, &self.digest(slot)?)
    }

    /// The members of a set slot, in order: item id and digest. Read their bytes with [`Self::read`].
    pub fn set(&self, slot: &str) -> anyhow::Result<Vec<(String, BlobDigest)>> {
        let listing = SetListing::parse(&self.bytes(slot)?);
        Ok(listing.with_context(|| format!("{}: input `{slot}`", self.label))?.members)
    }

    pub fn read(&self, slot: &str, digest: &BlobDigest) -> anyhow::Result<Bytes> {
        self.reader.read(digest).with_context(|| format!("{}: loading input `{slot}`", self.label))
    }
}

/// Something costly made from an input's bytes, kept as long as the input stays the same.
#[derive(Debug)]
pub struct Loaded<T>(Option<(Vec<BlobDigest>, T)>);

impl<T> Default for Loaded<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T> Loaded<T> {
    /// What `load` makes of the bytes in a slot.
    pub fn get(
        &mut self,
        input: &UnitInput<'_>,
        slot: &str,
        load: impl FnOnce(Bytes) -> anyhow::Result<T>,
    ) -> anyhow::Result<&mut T> {
        self.get_beside(input, slot, &[], load)
    }

    /// The same, where `load` reads the slots `beside` it too.
    pub fn get_beside(
        &mut self,
        input: &UnitInput<'_>,
        slot: &str,
        beside: &[&str],
        load: impl FnOnce(Bytes) -> anyhow::Result<T>,
    ) -> anyhow::Result<&mut T> {
        let slots = std::iter::once(slot).chain(beside.iter().copied());
        let digests = slots.map(|slot| input.digest(slot)).collect::<anyhow::Result<Vec<_>>>()?;
        let kept = self.0.take().filter(|(of, _)| *of == digests);
        let kept = match kept {
            Some(kept) => kept,
            None => (digests, load(input.bytes(slot)?).with_context(|| format!("input `{slot}`"))?),
        };
        Ok(&mut self.0.insert(kept).1)
    }
}

/// A stage with its types erased, for the executor.
pub trait DynStage {
    fn run(&mut self, input: &UnitInput<'_>) -> anyhow::Result<Vec<Output>>;
}

impl<S: Stage> DynStage for S {
    fn run(&mut self, input: &UnitInput<'_>) -> anyhow::Result<Vec<Output>> {
        Stage::run(self, input)
    }
}

/// Loads a stage from its parameters as JSON text.
pub type LoadFn = fn(&str, &StageContext) -> anyhow::Result<Box<dyn DynStage>>;

/// One row of the registry.
#[derive(Clone, Copy)]
pub struct StageEntry {
    pub kind: &'static str,
    pub version: u64,
    pub parallel: bool,
    pub load: LoadFn,
}

impl StageEntry {
    pub fn of<S: Stage + 'static>() -> Self {
        Self { kind: S::KIND, version: S::VERSION, parallel: S::PARALLEL, load: load::<S> }
    }
}

fn load<S: Stage + 'static>(params: &str, context: &StageContext) -> anyhow::Result<Box<dyn DynStage>> {
    let params = serde_json::from_str(params).with_context(|| format!("stage `{}`: parameters", S::KIND))?;
    Ok(Box::new(S::load(params, context)?))
}

/// The stage kinds a program knows.
#[derive(Clone, Default)]
pub struct Registry {
    entries: Vec<StageEntry>,
}

impl Registry {
    pub fn with(mut self, entry: StageEntry) -> Self {
        self.entries.push(entry);
        self
    }

    pub fn get(&self, kind: &str) -> anyhow::Result<&StageEntry> {
        let found = self.entries.iter().find(|entry| entry.kind == kind);
        found.with_context(|| format!("this build has no stage `{kind}` (was it built without the feature `torch`?)"))
    }

    pub fn entries(&self) -> &[StageEntry] {
        &self.entries
    }
}

/// The folder a unit may keep its half-done state in.
pub fn scratch_of(context: &StageContext, fingerprint: &Fingerprint) -> PathBuf {
    Path::new(&context.scratch).join(fingerprint.key().to_string())
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn a_loss_that_is_not_finite_is_told_with_a_rate_that_could_train() {
        let hint = |lr, usual| NotFinite { losses: String::new(), items: Vec::new(), field: "f.lr", lr }.hint(usual);
        for (lr, usual, said) in [
            (771_889.5, Some(0.01), "set `f.lr` to 0.01 or less; "),
            (0.1, Some(0.01), "set `f.lr` to 0.01 or less; "),
            (0.01, Some(0.01), "set `f.lr` to 0.001 or less; "),
            (0.003, Some(0.01), "set `f.lr` to 0.0003 or less; "),
            (2e-4, Some(2.5e-4), "set `f.lr` to 2e-5 or less; "),
            (50.0, None, "set `f.lr` to 5 or less; "),
            (f64::INFINITY, Some(0.01), "set `f.lr` to 0.01 or less; "),
            (1e-9, Some(0.01), "the rate is low already (1e-9): look at the images"),
            (0.0, None, "the rate is low already (0e0)"),
        ] {
            assert!(hint(lr, usual).starts_with(said), "{lr}: {}", hint(lr, usual));
        }
    }
    use crate::artifact::{FingerprintInput, SetListing};

    struct Blobs(HashMap<BlobDigest, Vec<u8>>);

    impl Blobs {
        fn put(&mut self, bytes: Vec<u8>) -> BlobDigest {
            let digest = BlobDigest::of(&bytes);
            self.0.insert(digest, bytes);
            digest
        }
    }

    impl BlobReader for Blobs {
        fn read(&self, digest: &BlobDigest) -> anyhow::Result<Bytes> {
            Ok(self.0[digest].as_slice().into())
        }
    }

    /// What a stage gives first on some sets, whose members are called 0, 1 and so on.
    pub(super) fn run_on_sets<S: Stage>(params: S::Params, sets: Vec<(&str, Vec<Vec<u8>>)>) -> Vec<u8> {
        let mut blobs = Blobs(HashMap::new());
        let mut input = |(slot, members): (&str, Vec<Vec<u8>>)| {
            let put = |(i, bytes): (usize, Vec<u8>)| (i.to_string(), blobs.put(bytes));
            let members = members.into_iter().enumerate().map(put).collect();
            let digest = blobs.put(SetListing { members }.to_bytes());
            FingerprintInput { slot: slot.to_owned(), digest, is_set: true }
        };
        let inputs = sets.into_iter().map(&mut input).collect();
        let (stage, version) = (S::KIND.to_owned(), S::VERSION);
        let fingerprint = Fingerprint { stage, version, params: String::new(), inputs };
        let context = StageContext {
            device: Device::Cpu,
            progress: Arc::new(|_| ()),
            scratch: "unused".into(),
            interrupted: Arc::new(AtomicBool::new(false)),
        };
        let mut stage = S::load(params, &context).unwrap();
        let input = UnitInput { label: "test", fingerprint: &fingerprint, reader: &blobs };
        stage.run(&input).unwrap().remove(0).bytes
    }
}
