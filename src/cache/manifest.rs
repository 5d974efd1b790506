//! Manifest logs, the truth of the cache: `manifests/*.log`, append-only, one file a run.
//!
//! A record is its length (u32), 8 bytes of the BLAKE3 of its payload, the payload. A torn tail, left by a process
//! that was killed while writing, ends a file. Where bytes were damaged, reading goes on at the next place where a record
//! stands with its check, so that a flipped bit costs the record it is in and no other.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::store::StoreError;
use crate::artifact::{Manifest, decode, encode};
use crate::regular;

const HEADER: usize = 12;
/// A payload has no fewer bytes: its key alone has as many.
const LEAST: usize = 32;
/// And no more: it names its inputs and outputs, sets by one digest each.
const MOST: usize = 16 << 20;
/// Bytes that are read at a time.
const PIECE: usize = 1 << 20;
/// Bytes that are hashed in search of the next record, before the rest of a log is given up.
const MOST_SEARCHED: u64 = 256 << 20;

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
    let (mut file, _) = regular::open_own(&path).map_err(StoreError::io("read", &path))?;
    file.seek(SeekFrom::Start(place.offset - HEADER as u64))?;
    let mut record = vec![0; HEADER + place.len as usize];
    file.read_exact(&mut record).map_err(StoreError::io("read", &path))?;
    let (header, payload) = record.split_at(HEADER);
    anyhow::ensure!(header[4..] == check(payload), "a record of `{}` is corrupt", path.display());
    decode(payload)
}

/// The logs and their sizes, in the order they were begun.
pub(super) fn list(folder: &Path) -> anyhow::Result<Vec<(String, u64)>> {
    let listed = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        listed => listed.map_err(StoreError::io("list", folder))?,
    };
    let mut found = Vec::new();
    for entry in listed {
        let entry = entry.map_err(StoreError::io("list", folder))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        // This is the metadata of the entry itself: a link is no log.
        let meta = entry.metadata().map_err(StoreError::io("read", &entry.path()))?;
        if name.ends_with(".log") && meta.is_file() {
            found.push((name, meta.len()));
        }
    }
    found.sort();
    Ok(found)
}

/// How far a log was read, and what of it could not be.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Scanned {
    /// The place in the log where the last record ends.
    pub(super) end: u64,
    /// Bytes of damaged records, which were passed over.
    pub(super) damaged: u64,
}

/// Calls `take` with each whole record of a log from a place on.
pub(super) fn read(
    folder: &Path,
    log: &str,
    from: u64,
    take: &mut dyn FnMut(Place, Manifest),
) -> Result<Scanned, StoreError> {
    let path = folder.join(log);
    let read = regular::open_own(&path).and_then(|(mut file, _)| {
        file.seek(SeekFrom::Start(from))?;
        scan(file, &mut |(start, len), manifest| {
            take(Place { log: log.to_owned(), offset: from + start, len }, manifest);
        })
    });
    let Scanned { end, damaged } = read.map_err(StoreError::io("read", &path))?;
    Ok(Scanned { end: from + end, damaged })
}

/// Calls `take` with each whole record of what is read, and where its payload is: from, length.
pub(super) fn scan(from: impl Read, take: &mut dyn FnMut((u64, u32), Manifest)) -> io::Result<Scanned> {
    let mut window = Window { from, bytes: Vec::new(), at: 0, dropped: 0, is_at_end: false };
    let (mut found, mut searched) = (Scanned::default(), 0);
    while window.fill(HEADER)? && searched < MOST_SEARCHED {
        let len = u32::from_le_bytes(window.array(0));
        let is_length = (LEAST..=MOST).contains(&(len as usize));
        let has_payload = is_length && window.fill(HEADER + len as usize)?;
        if !has_payload || window.array(4) != check(window.payload(len)) {
            searched += if has_payload { u64::from(len) } else { 0 };
            // A record that was cut off while it was written has nothing behind it, and is not counted.
            window.at += 1;
            continue;
        }
        found.damaged += window.place() - found.end;
        // A record of another format version is whole but not ours: skipped.
        if let Ok(manifest) = decode(window.payload(len)) {
            take((window.place() + HEADER as u64, len), manifest);
        }
        window.at += HEADER + len as usize;
        found.end = window.place();
    }
    Ok(found)
}

/// The part of a log that is looked at.
struct Window<R> {
    from: R,
    bytes: Vec<u8>,
    /// The place in `bytes` where the next record may begin.
    at: usize,
    /// Bytes of the log before these.
    dropped: u64,
    /// Nothing is left to be read.
    is_at_end: bool,
}

impl<R: Read> Window<R> {
    /// Reads on until so many bytes are there from the place on; `false`: the log has fewer.
    fn fill(&mut self, n: usize) -> io::Result<bool> {
        if self.bytes.len() - self.at < n && !self.is_at_end {
            self.dropped += self.at as u64;
            self.bytes.drain(..std::mem::take(&mut self.at));
            let more = n.max(PIECE) - self.bytes.len();
            self.is_at_end = self.from.by_ref().take(more as u64).read_to_end(&mut self.bytes)? < more;
        }
        Ok(self.bytes.len() - self.at >= n)
    }

    fn array<const N: usize>(&self, from: usize) -> [u8; N] {
        let mut array = [0; N];
        array.copy_from_slice(&self.bytes[self.at + from..][..N]);
        array
    }

    fn payload(&self, len: u32) -> &[u8] {
        &self.bytes[self.at + HEADER..][..len as usize]
    }

    /// The place in the log.
    fn place(&self) -> u64 {
        self.dropped + self.at as u64
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifact::Fingerprint;

    fn manifest(i: usize) -> Manifest {
        let fingerprint =
            Fingerprint { stage: format!("stage {i}"), version: 1, params: "{}".repeat(i % 7 + 1), inputs: Vec::new() };
        let key = fingerprint.key();
        Manifest {
            key,
            label: String::new(),
            fingerprint,
            outputs: vec![],
            seconds: 0.0,
            finished: 0,
            made_by: String::new(),
        }
    }

    #[test]
    fn a_damaged_byte_costs_the_record_that_it_is_in() {
        let records: Vec<Vec<u8>> = (0..40).map(|i| record(&manifest(i)).unwrap()).collect();
        let log = records.concat();
        let found = |bytes: &[u8]| {
            let mut found = Vec::new();
            let scanned = scan(bytes, &mut |(start, len), manifest| {
                assert_eq!(encode(&manifest).unwrap(), bytes[start as usize..][..len as usize]);
                found.push(manifest);
            });
            (found.len(), scanned.unwrap())
        };
        let end = log.len() as u64;
        assert_eq!(found(&log), (40, Scanned { end, damaged: 0 }));
        let last = records[39].len();
        for at in 0..log.len() {
            let mut bytes = log.clone();
            bytes[at] ^= 0x40;
            let (n, scanned) = found(&bytes);
            assert_eq!(n, 39, "byte {at}");
            // A damaged last record cannot be told from one that was cut off.
            let expected = if at < log.len() - last { end } else { end - last as u64 };
            assert_eq!(scanned.end, expected, "byte {at}");
        }
        let cut = &log[..log.len() - 1];
        assert_eq!(found(cut), (39, Scanned { end: end - last as u64, damaged: 0 }));
        // Bytes that came between, and a log of zeros with a record at its end.
        let between = [&records[0][..], &[7; 999], &records[1]].concat();
        assert_eq!(found(&between), (2, Scanned { end: between.len() as u64, damaged: 999 }));
        let zeros = [&vec![0; 3 * PIECE][..], &records[2]].concat();
        assert_eq!(found(&zeros).0, 1);
    }
}
