//! What finished units gave, by key: a table in memory, made from the manifest logs.
//!
//! `index/units` holds what it knew at the end of a run, and how far it had read which log; the next process reads
//! that and what the logs have beyond. So the logs alone decide, and a table that is gone or torn costs a reading.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::manifest::{self, Place};
use super::sorted::{KEY, Sorted, key_at, u32_at, u64_at};
use super::store::{BlobStore, StoreError};
use crate::artifact::{ArtifactRef, Manifest};
use crate::digest::{BlobDigest, UnitKey};

const MAGIC: &[u8; 8] = b"s2cunit2";
/// A record: key, offset u64, then u32: log, length, first output, number of outputs.
const RECORD: usize = KEY + 8 + 4 * 4;
/// An output: digest, size u64, name u32.
const OUTPUT: usize = KEY + 8 + 4;

/// Place of a record; those read from the file come first.
pub(crate) type RecordIdx = u32;

/// A record that is not in the file.
#[derive(Debug)]
struct Fresh {
    key: UnitKey,
    place: Place,
    outputs: Vec<ArtifactRef>,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Records {
    old: Sorted,
    /// Names of outputs in the file.
    names: Vec<String>,
    /// Logs in the file, with the bytes of each that were read.
    logs: Vec<(String, u64)>,
    /// Where the outputs begin in the rest of the file.
    outputs_at: usize,
    fresh: Vec<Fresh>,
    /// So many of these were in the file when it was written last.
    written: AtomicUsize,
    by_key: HashMap<UnitKey, RecordIdx>,
}

impl Records {
    /// From the file and what the logs have beyond it.
    pub(super) fn open(path: &Path, manifests: &Path) -> anyhow::Result<Self> {
        let logs = manifest::list(manifests)?;
        let records = Self::read(path, &logs);
        if records.is_none() && path.exists() {
            // Logs that grow later must not make it look right.
            std::fs::remove_file(path).map_err(StoreError::io("remove", path))?;
        }
        let mut records = records.unwrap_or_default();
        records.read_logs(manifests, &logs)?;
        Ok(records)
    }

    /// The file, if it is whole and made from these logs.
    fn read(path: &Path, logs: &[(String, u64)]) -> Option<Self> {
        let old = Sorted::read(path, MAGIC, RECORD)?;
        let mut records = Self { old, ..Self::default() };
        let rest = records.old.rest();
        let mut at = 0;
        let mut texts = |with_number: bool| {
            let n = u32_at(rest.get(at..at + 4)?, 0);
            at += 4;
            let mut found = Vec::new();
            for _ in 0..n {
                let len = u32_at(rest.get(at..at + 4)?, 0) as usize;
                let text = str::from_utf8(rest.get(at + 4..at + 4 + len)?).ok()?.to_owned();
                at += 4 + len;
                let number = if with_number { u64_at(rest.get(at..at + 8)?, 0) } else { 0 };
                at += if with_number { 8 } else { 0 };
                found.push((text, number));
            }
            Some(found)
        };
        let (read, names) = (texts(true)?, texts(false)?);
        let sizes: HashMap<&str, u64> = logs.iter().map(|(name, size)| (name.as_str(), *size)).collect();
        if !read.iter().all(|(name, len)| sizes.get(name.as_str()).is_some_and(|size| size >= len)) {
            return None;
        }
        records.outputs_at = at;
        records.names = names.into_iter().map(|(name, _)| name).collect();
        records.logs = read;
        Some(records)
    }

    fn read_logs(&mut self, folder: &Path, logs: &[(String, u64)]) -> anyhow::Result<()> {
        for (name, size) in logs {
            let read = self.logs.iter().find(|(of, _)| of == name).map_or(0, |(_, read)| *read);
            if *size > read {
                let end = manifest::read(folder, name, read, &mut |place, manifest| self.insert(&manifest, place))?;
                self.has_read(name, end);
            }
        }
        Ok(())
    }

    /// Takes the record of a unit that has just finished, or did again.
    pub(super) fn insert(&mut self, manifest: &Manifest, place: Place) {
        self.has_read(&place.log, place.end());
        let fresh = Fresh { key: manifest.key, place, outputs: manifest.outputs.clone() };
        self.by_key.insert(fresh.key, (self.old.len() + self.fresh.len()) as RecordIdx);
        self.fresh.push(fresh);
    }

    /// Logs keep their places: records name them by these.
    fn has_read(&mut self, log: &str, end: u64) {
        match self.logs.iter_mut().rev().find(|(name, _)| name == log) {
            Some((_, read)) => *read = end.max(*read),
            None => self.logs.push((log.to_owned(), end)),
        }
    }

    /// Bytes of all logs that are in here.
    pub(super) fn bytes_read(&self) -> u64 {
        self.logs.iter().map(|(_, read)| read).sum()
    }

    /// The newest record of a unit.
    pub(crate) fn find(&self, key: &UnitKey) -> Option<RecordIdx> {
        let fresh = if self.by_key.is_empty() { None } else { self.by_key.get(key).copied() };
        fresh.or_else(|| self.old.find(key.as_bytes()).map(|place| place as RecordIdx))
    }

    pub(crate) fn key(&self, record: RecordIdx) -> UnitKey {
        match (record as usize).checked_sub(self.old.len()) {
            Some(place) => self.fresh[place].key,
            None => UnitKey::from_bytes(key_at(self.old.record(record as usize), 0)),
        }
    }

    /// Digest and size of one output.
    pub(crate) fn output(&self, record: RecordIdx, name: &str) -> Option<(BlobDigest, u64)> {
        self.outputs(record).find(|(of, ..)| *of == name).map(|(_, digest, size)| (digest, size))
    }

    /// Name, digest and size of each output.
    pub(crate) fn outputs(&self, record: RecordIdx) -> impl Iterator<Item = (&str, BlobDigest, u64)> {
        let (old, fresh) = match (record as usize).checked_sub(self.old.len()) {
            Some(place) => (&[][..], &self.fresh[place].outputs[..]),
            None => (self.old_outputs(record as usize), &[][..]),
        };
        let old = old.chunks_exact(OUTPUT).map(|output| {
            let name = &self.names[u32_at(output, KEY + 8) as usize];
            (name.as_str(), BlobDigest::from_bytes(key_at(output, 0)), u64_at(output, KEY))
        });
        old.chain(fresh.iter().map(|output| (output.name.as_str(), output.digest, output.size)))
    }

    /// All its blobs are there, with their sizes.
    pub(crate) fn is_whole(&self, record: RecordIdx, store: &BlobStore) -> bool {
        self.outputs(record).all(|(_, digest, size)| store.has(&digest, size))
    }

    /// Where the manifest stands.
    pub(super) fn place(&self, record: RecordIdx) -> Place {
        match (record as usize).checked_sub(self.old.len()) {
            Some(place) => self.fresh[place].place.clone(),
            None => {
                let bytes = self.old.record(record as usize);
                let log = &self.logs[u32_at(bytes, KEY + 8) as usize].0;
                Place { log: log.clone(), offset: u64_at(bytes, KEY), len: u32_at(bytes, KEY + 12) }
            }
        }
    }

    fn old_outputs(&self, place: usize) -> &[u8] {
        let record = self.old.record(place);
        let (first, n) = (u32_at(record, KEY + 16) as usize, u32_at(record, KEY + 20) as usize);
        &self.old.rest()[self.outputs_at + first * OUTPUT..][..n * OUTPUT]
    }

    /// So many records are beyond the file that reading their logs at every start costs more than writing it.
    pub(super) fn is_worth_writing(&self) -> bool {
        let written = self.written.load(Ordering::Relaxed);
        self.fresh.len() - written > 256.max((self.old.len() + written) / 16)
    }

    pub(super) fn write(&self, path: &Path) -> io::Result<()> {
        let fresh = self.by_key.iter().map(|(key, record)| (*key.as_bytes(), *record));
        let old = (0..self.old.len()).map(|place| (key_at(self.old.record(place), 0), place as RecordIdx));
        let replaced = |key: &[u8; KEY]| self.by_key.contains_key(&UnitKey::from_bytes(*key));
        let mut all: Vec<([u8; KEY], RecordIdx)> = old.filter(|(key, _)| !replaced(key)).chain(fresh).collect();
        all.sort_unstable();

        let log_of: HashMap<&str, u32> =
            self.logs.iter().enumerate().map(|(at, (name, _))| (name.as_str(), at as u32)).collect();
        let mut names: Vec<&str> = Vec::new();
        let mut records = Vec::with_capacity(all.len() * RECORD);
        let mut outputs = Vec::with_capacity(all.len() * OUTPUT);
        for (key, record) in &all {
            let Place { log, offset, len } = self.place(*record);
            let first = (outputs.len() / OUTPUT) as u32;
            for (name, digest, size) in self.outputs(*record) {
                let name = names.iter().position(|of| *of == name).unwrap_or_else(|| {
                    names.push(name);
                    names.len() - 1
                });
                outputs.extend_from_slice(digest.as_bytes());
                outputs.extend_from_slice(&size.to_le_bytes());
                outputs.extend_from_slice(&(name as u32).to_le_bytes());
            }
            records.extend_from_slice(key);
            records.extend_from_slice(&offset.to_le_bytes());
            let n = (outputs.len() / OUTPUT) as u32 - first;
            for number in [log_of[log.as_str()], len, first, n] {
                records.extend_from_slice(&number.to_le_bytes());
            }
        }
        let mut rest = (self.logs.len() as u32).to_le_bytes().to_vec();
        let text = |rest: &mut Vec<u8>, text: &str| {
            rest.extend_from_slice(&(text.len() as u32).to_le_bytes());
            rest.extend_from_slice(text.as_bytes());
        };
        for (name, read) in &self.logs {
            text(&mut rest, name);
            rest.extend_from_slice(&read.to_le_bytes());
        }
        rest.extend_from_slice(&(names.len() as u32).to_le_bytes());
        names.iter().for_each(|name| text(&mut rest, name));
        rest.append(&mut outputs);
        Sorted::write(path, MAGIC, RECORD, &records, &rest)?;
        self.written.store(self.fresh.len(), Ordering::Relaxed);
        Ok(())
    }
}
