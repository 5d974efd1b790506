//! What finished units gave, by key: a table in memory, made from the manifest logs.
//!
//! `index/units` holds what it knew at the end of a run, and how far it had read which log; the next process reads
//! that and what the logs have beyond. So the logs alone decide, and a table that is gone or torn costs a reading.
//!
//! In memory a record is what it is in the file. Records stand in the order in which units finished, which is nearly
//! that of the next graph.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use hashbrown::HashTable;

use super::manifest::{self, Place};
use super::store::Look;
use super::table::{KEY, Table, key_at, u32_at, u64_at};
use crate::artifact::Manifest;
use crate::digest::{BlobDigest, UnitKey};

const MAGIC: &[u8; 8] = b"s2cunit3";
/// A record: key, offset u64, then u32: log, length, first output, number of outputs.
const RECORD: usize = KEY + 8 + 4 * 4;
const LOG: usize = KEY + 8;
const LEN: usize = LOG + 4;
const FIRST: usize = LEN + 4;
const N: usize = FIRST + 4;
/// An output: digest, size u64, name u32.
const OUTPUT: usize = KEY + 8 + 4;

/// Place of a record; those read from the file come first.
pub(crate) type RecordIdx = u32;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Records {
    old: Table,
    /// Where the outputs begin in the rest of the file.
    outputs_at: usize,
    /// Names of outputs, each once.
    names: Vec<String>,
    /// Logs, with the bytes of each that were read.
    logs: Vec<(String, u64)>,
    /// Logs with damaged records, and the bytes of these.
    damaged: Vec<(String, u64)>,
    /// Records that are not in the file, and their outputs.
    fresh: Vec<u8>,
    fresh_outputs: Vec<u8>,
    /// So many of these were in the file when it was written last.
    written: AtomicUsize,
    /// The newest of each unit among these, by their place there.
    by_key: HashTable<u32>,
}

impl Records {
    /// From the file and what the logs have beyond it.
    pub(super) fn open(path: &Path, manifests: &Path) -> anyhow::Result<Self> {
        let logs = manifest::list(manifests)?;
        let mut records = Self::read(path, &logs).unwrap_or_default();
        records.read_logs(manifests, &logs)?;
        Ok(records)
    }

    /// There was no file, or it was empty, torn or made from other logs.
    pub(super) fn are_all_from_logs(&self) -> bool {
        self.old.len() == 0
    }

    /// The file, if it is whole and made from these logs.
    fn read(path: &Path, logs: &[(String, u64)]) -> Option<Self> {
        let old = Table::read(path, MAGIC, RECORD)?;
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
                let found = manifest::read(folder, name, read, &mut |place, manifest| self.insert(&manifest, &place))?;
                self.has_read(name, found.end);
                if found.damaged > 0 {
                    self.damaged.push((name.clone(), found.damaged));
                }
            }
        }
        Ok(())
    }

    /// Takes the record of a unit that has just finished, or did again.
    pub(super) fn insert(&mut self, manifest: &Manifest, place: &Place) {
        let log = self.has_read(&place.log, place.end());
        let first = self.fresh_outputs.len() / OUTPUT;
        for output in &manifest.outputs {
            let name = self.name(&output.name);
            self.fresh_outputs.extend_from_slice(output.digest.as_bytes());
            self.fresh_outputs.extend_from_slice(&output.size.to_le_bytes());
            self.fresh_outputs.extend_from_slice(&name.to_le_bytes());
        }
        let at = self.n_fresh() as u32;
        self.fresh.extend_from_slice(manifest.key.as_bytes());
        self.fresh.extend_from_slice(&place.offset.to_le_bytes());
        for number in [log, place.len, first as u32, manifest.outputs.len() as u32] {
            self.fresh.extend_from_slice(&number.to_le_bytes());
        }
        let Self { by_key, fresh, .. } = self;
        let key_of = |at: u32| key_at(fresh, at as usize * RECORD);
        let is_it = |of: &u32| key_of(*of) == *manifest.key.as_bytes();
        match by_key.find_mut(hash(manifest.key.as_bytes()), is_it) {
            Some(newest) => *newest = at,
            None => {
                by_key.insert_unique(hash(manifest.key.as_bytes()), at, |of| hash(&key_of(*of)));
            }
        }
    }

    /// Logs keep their places: records name them by these.
    fn has_read(&mut self, log: &str, end: u64) -> u32 {
        let place = self.logs.iter().rposition(|(name, _)| name == log).unwrap_or_else(|| {
            self.logs.push((log.to_owned(), 0));
            self.logs.len() - 1
        });
        self.logs[place].1 = end.max(self.logs[place].1);
        place as u32
    }

    fn name(&mut self, name: &str) -> u32 {
        let place = self.names.iter().position(|known| known == name).unwrap_or_else(|| {
            self.names.push(name.to_owned());
            self.names.len() - 1
        });
        place as u32
    }

    fn n_fresh(&self) -> usize {
        self.fresh.len() / RECORD
    }

    /// Logs with damaged records, which were passed over, and the bytes of these.
    pub(super) fn damaged(&self) -> &[(String, u64)] {
        &self.damaged
    }

    /// Bytes of all logs that are in here.
    pub(super) fn bytes_read(&self) -> u64 {
        self.logs.iter().map(|(_, read)| read).sum()
    }

    /// The logs that came after the first `told` bytes of all, up to the first `then`.
    pub(super) fn logs_between(&self, told: u64, then: u64) -> Vec<&str> {
        let mut sum = 0;
        let ends: Vec<u64> = self.logs.iter().map(|(_, read)| (sum, sum += read).0 + read).collect();
        let after = |bytes: u64| ends.iter().rposition(|end| *end == bytes).map_or(0, |last| last + 1);
        let logs = self.logs.iter().map(|(name, _)| name.as_str());
        logs.take(after(then)).skip(after(told)).collect()
    }

    /// The newest record of a unit.
    pub(crate) fn find(&self, key: &UnitKey) -> Option<RecordIdx> {
        let fresh = self.find_fresh(key.as_bytes());
        fresh.or_else(|| self.old.find(key.as_bytes()).map(|place| place as RecordIdx))
    }

    /// The same, faster if it stands about where `guess` says.
    pub(crate) fn find_near(&self, key: &UnitKey, guess: RecordIdx) -> Option<RecordIdx> {
        let fresh = self.find_fresh(key.as_bytes());
        fresh.or_else(|| self.old.find_near(key.as_bytes(), guess as usize).map(|place| place as RecordIdx))
    }

    fn find_fresh(&self, key: &[u8; KEY]) -> Option<RecordIdx> {
        if self.by_key.is_empty() {
            return None;
        }
        let at = self.by_key.find(hash(key), |at| self.fresh[*at as usize * RECORD..][..KEY] == *key)?;
        Some(self.old.len() as RecordIdx + at)
    }

    pub(crate) fn key(&self, record: RecordIdx) -> UnitKey {
        UnitKey::from_bytes(key_at(self.record(record), 0))
    }

    /// Digest and size of one output.
    pub(crate) fn output(&self, record: RecordIdx, name: &str) -> Option<(BlobDigest, u64)> {
        self.outputs(record).find(|(of, ..)| *of == name).map(|(_, digest, size)| (digest, size))
    }

    /// Name, digest and size of each output.
    pub(crate) fn outputs(&self, record: RecordIdx) -> impl Iterator<Item = (&str, BlobDigest, u64)> {
        self.output_bytes(record).chunks_exact(OUTPUT).map(|output| {
            let name = &self.names[u32_at(output, KEY + 8) as usize];
            (name.as_str(), BlobDigest::from_bytes(key_at(output, 0)), u64_at(output, KEY))
        })
    }

    /// All its blobs are there, with their sizes.
    pub(crate) fn is_whole(&self, record: RecordIdx, look: &Look<'_>) -> bool {
        self.outputs(record).all(|(_, digest, size)| look.has(&digest, size))
    }

    /// Where the manifest stands.
    pub(super) fn place(&self, record: RecordIdx) -> Place {
        let bytes = self.record(record);
        let log = &self.logs[u32_at(bytes, LOG) as usize].0;
        Place { log: log.clone(), offset: u64_at(bytes, KEY), len: u32_at(bytes, LEN) }
    }

    fn record(&self, record: RecordIdx) -> &[u8] {
        match (record as usize).checked_sub(self.old.len()) {
            Some(at) => &self.fresh[at * RECORD..][..RECORD],
            None => self.old.record(record as usize),
        }
    }

    fn output_bytes(&self, record: RecordIdx) -> &[u8] {
        let bytes = self.record(record);
        let (first, n) = (u32_at(bytes, FIRST) as usize, u32_at(bytes, N) as usize);
        let all = match (record as usize) < self.old.len() {
            true => &self.old.rest()[self.outputs_at..],
            false => &self.fresh_outputs,
        };
        &all[first * OUTPUT..][..n * OUTPUT]
    }

    /// So many records are beyond the file that reading their logs at every start costs more than writing it.
    pub(super) fn is_worth_writing(&self) -> bool {
        let written = self.written.load(Ordering::Relaxed);
        self.n_fresh() - written > 256.max((self.old.len() + written) / 16)
    }

    pub(super) fn write(&self, path: &Path) -> io::Result<()> {
        let n = self.old.len() + self.n_fresh();
        let mut records = Vec::with_capacity(n * RECORD);
        let mut outputs = Vec::with_capacity(n * OUTPUT);
        for record in 0..n as RecordIdx {
            let bytes = self.record(record);
            let is_newest = self.find_fresh(&key_at(bytes, 0)).is_none_or(|newest| newest == record);
            if !is_newest {
                continue;
            }
            records.extend_from_slice(&bytes[..FIRST]);
            records.extend_from_slice(&((outputs.len() / OUTPUT) as u32).to_le_bytes());
            records.extend_from_slice(&bytes[N..]);
            outputs.extend_from_slice(self.output_bytes(record));
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
        rest.extend_from_slice(&(self.names.len() as u32).to_le_bytes());
        self.names.iter().for_each(|name| text(&mut rest, name));
        Table::write(path, MAGIC, RECORD, &records, &[&rest, &outputs])?;
        self.written.store(self.n_fresh(), Ordering::Relaxed);
        Ok(())
    }
}

/// A key is a digest already.
fn hash(key: &[u8; KEY]) -> u64 {
    u64_at(key, 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifact::{ArtifactRef, Fingerprint};
    use crate::cache::manifest::ManifestLog;

    /// A unit `i` that gave `i` outputs of these bytes.
    fn manifest(i: u8, bytes: &[u8]) -> Manifest {
        let fingerprint = Fingerprint { stage: format!("s{i}"), version: 1, params: "{}".into(), inputs: Vec::new() };
        let output =
            |n: u8| ArtifactRef { name: format!("out{n}"), digest: BlobDigest::of(bytes), size: bytes.len() as u64 };
        let (key, outputs) = (fingerprint.key(), (0..i).map(output).collect());
        Manifest { key, label: String::new(), fingerprint, outputs, seconds: 0.0, finished: 0, made_by: String::new() }
    }

    #[test]
    fn what_was_put_is_found_before_and_after_the_table_is_written_and_the_newest_counts() {
        let dir = tempfile::tempdir().unwrap();
        let (table, logs) = (dir.path().join("units"), dir.path().join("logs"));
        let mut ends = Vec::new();
        for (round, bytes) in [&b"one"[..], b"three", b"seven.."].into_iter().enumerate() {
            let mut records = Records::open(&table, &logs).unwrap();
            let mut log = ManifestLog::new(logs.clone());
            // One more in each round; those before are made again.
            let units = 0..4 + round as u8;
            for i in units.clone() {
                let put = manifest(i, bytes);
                let place = log.append(&put).unwrap();
                records.insert(&put, &place);
            }
            ends.push(records.bytes_read());
            let check = |records: &Records| {
                for i in units.clone() {
                    let put = manifest(i, bytes);
                    let record = records.find(&put.key).unwrap();
                    assert_eq!(records.find_near(&put.key, record + 2), Some(record));
                    assert_eq!(records.key(record), put.key);
                    assert_eq!(manifest::read_at(&logs, &records.place(record)).unwrap(), put);
                    let outputs: Vec<_> = records.outputs(record).map(|(_, digest, size)| (digest, size)).collect();
                    assert_eq!(outputs, vec![(BlobDigest::of(bytes), bytes.len() as u64); usize::from(i)]);
                    assert_eq!(records.output(record, "out0").is_some(), i > 0);
                }
                assert_eq!(records.find(&manifest(99, b"").key), None);
            };
            check(&records);
            // From the logs alone, and from the table.
            check(&Records::open(&dir.path().join("none"), &logs).unwrap());
            records.write(&table).unwrap();
            let read = Records::open(&table, &logs).unwrap();
            assert_eq!((read.old.len(), read.n_fresh()), (units.len(), 0));
            check(&read);
            let (names, end) = (["00000001.log", "00000002.log", "00000003.log"], ends[round]);
            for known in 0..=round {
                assert_eq!(read.logs_between(ends[known], end), names[known + 1..=round]);
            }
            for told in [0, end + 1] {
                assert_eq!(read.logs_between(told, end), names[..=round]);
            }
            assert!(read.logs_between(0, end + 1).is_empty());
        }
        // One that came later from elsewhere, whose name stands before the others.
        std::fs::copy(logs.join("00000001.log"), logs.join("00000000.log")).unwrap();
        let read = Records::open(&table, &logs).unwrap();
        assert_eq!(read.logs_between(ends[2], read.bytes_read()), ["00000000.log"]);
    }
}
