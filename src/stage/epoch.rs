//! An epoch as a unit: its order of images, its loop over batches, and how it resumes inside itself.
//!
//! The state is saved every two minutes and on request, and a resumed epoch ends with the bytes of an undisturbed
//! one, since random streams derive from (rng_seed, epoch, item).

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tch::Tensor;

use super::loader::ahead;
use super::{Bytes, Interrupted, NotFinite, Output, StageContext, Step, UnitInput, scratch_of};
use crate::data::rng::{shuffle, stream};
use crate::digest::BlobDigest;
use crate::model::optim::{poly, without_momentum};
use crate::model::weights::Weights;
use crate::regular;

/// How often the state inside an epoch is saved.
const SAVE_EVERY: Duration = Duration::from_secs(120);
/// Batches that wait for the model.
const QUEUE: usize = 3;
const RESUME: &str = "resume.losses";

/// Which epoch, of how many, and in which order.
#[derive(Clone, Copy, Debug)]
pub(super) struct EpochOptions {
    pub(super) epoch: u32,
    pub(super) epochs: u32,
    pub(super) rng_seed: u64,
    /// Images of a step.
    pub(super) images: usize,
    /// At the first step of the first epoch.
    pub(super) lr: f64,
}

/// The members of a set slot, found by item.
pub(super) struct Members<'a> {
    input: &'a UnitInput<'a>,
    slot: &'static str,
    /// In the order of the set.
    pub(super) items: Vec<String>,
    digests: HashMap<String, BlobDigest>,
}

impl<'a> Members<'a> {
    pub(super) fn of(input: &'a UnitInput<'a>, slot: &'static str) -> anyhow::Result<Self> {
        let members = input.set(slot)?;
        let items = members.iter().map(|(item, _)| item.clone()).collect();
        Ok(Self { input, slot, items, digests: members.into_iter().collect() })
    }

    pub(super) fn bytes(&self, item: &str) -> anyhow::Result<Bytes> {
        let digest = self.digests.get(item).with_context(|| format!("`{item}` is not in `{}`", self.slot))?;
        self.input.read(self.slot, digest)
    }
}

/// A model in training, as the loop sees it.
pub(super) trait Trainer {
    /// What the loader makes of the images of a step.
    type Batch: Send;
    /// What is recorded of a step; no times, so that equal runs give equal bytes.
    type Row: Serialize + DeserializeOwned;

    /// # Errors
    /// [`NotFinite`], with model and optimiser as they were.
    fn step(&mut self, batch: Self::Batch, lr: f64) -> anyhow::Result<Self::Row>;
    /// Mean losses for people.
    fn describe(rows: &[Self::Row]) -> String;
    /// The bytes of model and optimiser, and `more`.
    fn checkpoint(&self, more: Vec<(String, Tensor)>) -> anyhow::Result<Vec<u8>>;
}

/// Where an epoch starts: at its input, or inside itself.
pub(super) struct Start<R> {
    pub(super) weights: Weights,
    rows: Vec<R>,
}

impl<R: DeserializeOwned> Start<R> {
    pub(super) fn read(input: &UnitInput<'_>, context: &StageContext) -> anyhow::Result<Self> {
        // A state that cannot be read is no loss but time.
        let saved = regular::read_own(&scratch_of(context, input.fingerprint)).ok();
        if let Some(saved) = saved.and_then(|bytes| Self::resume(&bytes).ok()) {
            return Ok(saved);
        }
        let slot = if input.has("checkpoint") { "checkpoint" } else { "weights" };
        let weights = Weights::parse(input.bytes(slot)?).with_context(|| format!("input `{slot}`"))?;
        let weights = if slot == "weights" { without_momentum(&weights) } else { weights };
        Ok(Self { weights, rows: Vec::new() })
    }

    fn resume(state: &[u8]) -> anyhow::Result<Self> {
        let (digest, bytes) = state.split_at_checked(32).context("cut short")?;
        ensure!(BlobDigest::of(bytes).as_bytes() == digest, "damaged");
        let weights = Weights::parse(bytes)?;
        let rows = serde_json::from_slice(&Vec::<u8>::try_from(weights.raw(RESUME)?)?)?;
        Ok(Self { weights, rows })
    }
}

/// Trains what is left of an epoch; gives `checkpoint` and `losses` (JSON, a row a step).
pub(super) fn train<T: Trainer>(
    trainer: &mut T,
    start: Start<T::Row>,
    items: &[String],
    make: impl Fn(&[String]) -> anyhow::Result<T::Batch> + Send,
    options: EpochOptions,
    (input, context): (&UnitInput<'_>, &StageContext),
) -> anyhow::Result<Vec<Output>> {
    let EpochOptions { epoch, epochs, lr, .. } = options;
    let scratch = scratch_of(context, input.fingerprint);
    let batches = batches(items, options);
    let n_steps = batches.len();
    let all_steps = n_steps as u64 * u64::from(epochs);
    let mut rows = start.rows;
    let (mut saved, mut last) = (Instant::now(), Instant::now());
    let todo = batches.iter().skip(rows.len());
    let make = move |batch: &Vec<String>| Ok((batch.len(), make(batch)?));
    ahead(QUEUE, todo, make, |(images, batch), waited| {
        let step = rows.len();
        let lr = lr * poly(u64::from(epoch) * n_steps as u64 + step as u64, all_steps);
        let row = match trainer.step(batch, lr).with_context(|| format!("epoch {epoch}, step {step}")) {
            Err(error) if error.is::<NotFinite>() => {
                save(&scratch, trainer, &rows)?;
                return Err(error);
            }
            row => row?,
        };
        rows.push(row);
        let seconds = last.elapsed().as_secs_f64();
        last = Instant::now();
        let what = T::describe(if rows.len() == n_steps { &rows } else { &rows[step..] });
        let (done, of, waited) = (rows.len() as u64, n_steps as u64, waited.as_secs_f64());
        let (key, label, what) = (input.fingerprint.key(), input.label, &*what);
        (context.progress)(&Step { key, label, done, of, what, images, seconds, waited });
        let stop = context.is_interrupted() && rows.len() < n_steps;
        if stop || saved.elapsed() > SAVE_EVERY {
            save(&scratch, trainer, &rows)?;
            saved = Instant::now();
        }
        if stop { Err(Interrupted.into()) } else { Ok(()) }
    })?;
    let checkpoint = trainer.checkpoint(Vec::new())?;
    // The result is in memory; what is left of the way there may go (and may be gone).
    let _ = fs::remove_file(&scratch);
    Ok(vec![Output::new("checkpoint", checkpoint), Output::new("losses", serde_json::to_vec(&rows)?)])
}

/// The items of an epoch in batches: shuffled, the last partial batch dropped unless it is the only one.
fn batches(names: &[String], options: EpochOptions) -> Vec<Vec<String>> {
    let mut names = names.to_vec();
    shuffle(&mut stream(options.rng_seed, u64::from(options.epoch), "", "order"), &mut names);
    let size = options.images.clamp(1, names.len().max(1));
    names.chunks_exact(size).map(<[String]>::to_vec).collect()
}

/// Saves the state inside an epoch, whole or not at all: a digest and the checkpoint it is of. (A disk's fault in the
/// middle of a weight would otherwise end in the result.)
fn save<T: Trainer>(scratch: &Path, trainer: &T, rows: &[T::Row]) -> anyhow::Result<()> {
    let rows = Tensor::from_slice(&serde_json::to_vec(rows)?);
    let bytes = trainer.checkpoint(vec![(RESUME.to_owned(), rows)])?;
    let folder = scratch.parent().context("scratch has no folder")?;
    fs::create_dir_all(folder)?;
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    std::io::Write::write_all(&mut file, BlobDigest::of(&bytes).as_bytes())?;
    std::io::Write::write_all(&mut file, &bytes)?;
    file.as_file().sync_all()?;
    file.persist(scratch)?;
    Ok(())
}

/// The mean of what some rows have.
pub(super) fn mean<R>(rows: &[R], of: impl Fn(&R) -> Option<f64>) -> Option<f64> {
    let (n, sum) = rows.iter().filter_map(of).fold((0.0, 0.0), |(n, sum), value| (n + 1.0, sum + value));
    (n > 0.0).then(|| sum / n)
}

/// Crops as the model's input, `(B, 3, side, side)`.
pub(super) fn batch_tensor<'a>(crops: impl Iterator<Item = &'a [f32]>, side: u32) -> Tensor {
    let side = i64::from(side);
    Tensor::from_slice(&crops.collect::<Vec<_>>().concat()).view([-1, 3, side, side])
}
