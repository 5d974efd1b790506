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
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub(super) struct Place {
    log: String,
    offset: u64,
    /// Bytes of the payload.
    len: u32,
}

/// The log this process writes; created with the first record.
#[derive(Debug)]
pub(super) struct ManifestLog {
    folder: PathBuf,
    open: Option<(String, File, u64)>,
}

impl ManifestLog {
    pub(super) fn new(folder: PathBuf) -> Self {
        Self { folder, open: None }
    }

    /// Appends and syncs.
    pub(super) fn append(&mut self, manifest: &Manifest) -> anyhow::Result<Place> {
        let payload = encode(manifest)?;
        let len = u32::try_from(payload.len())?;
        let (name, file, end) = match &mut self.open {
            Some(open) => open,
            None => self.open.insert(create(&self.folder)?),
        };
        let mut record = Vec::with_capacity(HEADER + payload.len());
        record.extend(len.to_le_bytes());
        record.extend(check(&payload));
        record.extend(&payload);
        let path = self.folder.join(&*name);
        // At the end of the last whole record: a write that failed half-way (a full disk) is overwritten.
        let written = file.seek(SeekFrom::Start(*end)).and_then(|_| file.write_all(&record));
        written.and_then(|()| file.sync_data()).map_err(StoreError::io("write", &path))?;
        let place = Place { log: name.clone(), offset: *end + HEADER as u64, len };
        *end += record.len() as u64;
        Ok(place)
    }
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

/// All whole records of all logs, logs in order of their names (which begin with the time).
pub(super) fn read_all(folder: &Path) -> anyhow::Result<Vec<(Place, Manifest)>> {
    let Ok(listed) = fs::read_dir(folder) else { return Ok(Vec::new()) };
    let mut paths: Vec<PathBuf> = listed.filter_map(|entry| entry.ok().map(|entry| entry.path())).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "log"));
    paths.sort();
    let mut found = Vec::new();
    for path in paths {
        let bytes = fs::read(&path).map_err(StoreError::io("read", &path))?;
        let log = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut offset = 0;
        while let Some(len) = bytes.get(offset..offset + 4) {
            let len = u32::from_le_bytes([len[0], len[1], len[2], len[3]]);
            let start = offset + HEADER;
            let Some(payload) = bytes.get(start..start + len as usize) else { break };
            if bytes[offset + 4..start] != check(payload) {
                break;
            }
            // A record of another format version is whole but not ours: skipped.
            if let Ok(manifest) = decode(payload) {
                found.push((Place { log: log.clone(), offset: start as u64, len }, manifest));
            }
            offset = start + len as usize;
        }
    }
    Ok(found)
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
