//! Manifest logs, the truth of the cache: `manifests/*.log`, append-only, one file a run.
//!
//! A record is its length (u32), 8 bytes of the BLAKE3 of its payload, the payload. A torn tail, left by a process
//! that was killed while writing, ends a file; what stands before it counts.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::store::StoreError;
use crate::artifact::{Manifest, decode, encode};

const HEADER: usize = 12;

/// Where a record stands.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Place {
    pub(super) log: String,
    /// Of the payload.
    pub(super) offset: u64,
    /// Bytes of the payload.
    pub(super) len: u32,
}

impl Place {
    /// Where the next record begins.
    pub(super) fn end(&self) -> u64 {
        self.offset + u64::from(self.len)
    }
}

/// The log this process writes; created with the first record.
#[derive(Debug)]
pub(super) struct ManifestLog {
    folder: PathBuf,
    open: Option<(String, File, u64)>,
    is_synced: bool,
}

impl ManifestLog {
    pub(super) fn new(folder: PathBuf) -> Self {
        Self { folder, open: None, is_synced: true }
    }

    /// Appends; [`Self::sync`] makes it outlive a power cut too.
    pub(super) fn append(&mut self, manifest: &Manifest) -> anyhow::Result<Place> {
        let record = record(manifest)?;
        let len = u32::try_from(record.len() - HEADER)?;
        let (name, file, end) = match &mut self.open {
            Some(open) => open,
            None => self.open.insert(create(&self.folder)?),
        };
        let path = self.folder.join(&*name);
        // At the end of the last whole record: a write that failed half-way (a full disk) is overwritten.
        let written = file.seek(SeekFrom::Start(*end)).and_then(|_| file.write_all(&record));
        written.map_err(StoreError::io("write", &path))?;
        let place = Place { log: name.clone(), offset: *end + HEADER as u64, len };
        *end += record.len() as u64;
        self.is_synced = false;
        Ok(place)
    }

    pub(super) fn sync(&mut self) -> Result<(), StoreError> {
        if let Some((name, file, _)) = self.open.as_ref().filter(|_| !self.is_synced) {
            file.sync_data().map_err(StoreError::io("write", &self.folder.join(name)))?;
            self.is_synced = true;
        }
        Ok(())
    }
}

/// The bytes of a record.
pub(super) fn record(manifest: &Manifest) -> anyhow::Result<Vec<u8>> {
    let payload = encode(manifest)?;
    let len = u32::try_from(payload.len())?;
    Ok([&len.to_le_bytes()[..], &check(&payload), &payload].concat())
}

/// The record at a place, checked.
pub(super) fn read_at(folder: &Path, place: &Place) -> anyhow::Result<Manifest> {
    let path = folder.join(&place.log);
    let mut file = File::open(&path).map_err(StoreError::io("read", &path))?;
    file.seek(SeekFrom::Start(place.offset - HEADER as u64))?;
    let mut record = vec![0; HEADER + place.len as usize];
    file.read_exact(&mut record).map_err(StoreError::io("read", &path))?;
    let (header, payload) = record.split_at(HEADER);
    anyhow::ensure!(header[4..] == check(payload), "a record of `{}` is corrupt", path.display());
    decode(payload)
}

/// The logs and their sizes, in the order they were begun.
pub(super) fn list(folder: &Path) -> anyhow::Result<Vec<(String, u64)>> {
    let Ok(listed) = fs::read_dir(folder) else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    for entry in listed {
        let entry = entry.map_err(StoreError::io("list", folder))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.ends_with(".log") {
            found.push((name, entry.metadata().map_err(StoreError::io("read", &entry.path()))?.len()));
        }
    }
    found.sort();
    Ok(found)
}

/// Calls `take` with each whole record of a log from a place on; gives the place after the last.
pub(super) fn read(
    folder: &Path,
    log: &str,
    from: u64,
    take: &mut dyn FnMut(Place, Manifest),
) -> Result<u64, StoreError> {
    let path = folder.join(log);
    let mut bytes = Vec::new();
    let read = File::open(&path).and_then(|mut file| {
        file.seek(SeekFrom::Start(from))?;
        file.read_to_end(&mut bytes)
    });
    read.map_err(StoreError::io("read", &path))?;
    let end = scan(&bytes, &mut |(start, len), manifest| {
        take(Place { log: log.to_owned(), offset: from + start as u64, len }, manifest);
    });
    Ok(from + end as u64)
}

/// Calls `take` with each whole record, and where in the bytes its payload is: from, length; gives the end of the last.
pub(super) fn scan(bytes: &[u8], take: &mut dyn FnMut((usize, u32), Manifest)) -> usize {
    let mut at = 0;
    while let Some(len) = bytes.get(at..at + 4) {
        let len = u32::from_le_bytes([len[0], len[1], len[2], len[3]]);
        let start = at + HEADER;
        let Some(payload) = bytes.get(start..start + len as usize) else { break };
        if bytes[at + 4..start] != check(payload) {
            break;
        }
        // A record of another format version is whole but not ours: skipped.
        if let Ok(manifest) = decode(payload) {
            take((start, len), manifest);
        }
        at = start + len as usize;
    }
    at
}

fn check(payload: &[u8]) -> [u8; 8] {
    let mut check = [0; 8];
    check.copy_from_slice(&blake3::hash(payload).as_bytes()[..8]);
    check
}

/// A log of its own for this process: the next free number, so that no clock is needed for order.
fn create(folder: &Path) -> anyhow::Result<(String, File, u64)> {
    fs::create_dir_all(folder).map_err(StoreError::io("create", folder))?;
    let numbers = fs::read_dir(folder)?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.strip_suffix(".log")?.parse::<u64>().ok());
    let next = numbers.max().map_or(1, |last| last + 1);
    let name = format!("{next:08}.log");
    let path = folder.join(&name);
    let file = OpenOptions::new().write(true).create_new(true).open(&path).map_err(StoreError::io("create", &path))?;
    File::open(folder)?.sync_all()?;
    Ok((name, file, 0))
}
