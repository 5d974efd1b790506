//! A file of records in order of their first 32 bytes, a digest. Read whole and looked up without being parsed, it
//! answers a million questions in the time sled opens.
//!
//! ```text
//! magic (8)  BLAKE3 of all that follows (32)  number of records (u64)  bytes of one (u64)  records  what the owner adds
//! ```

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

/// Bytes of the key a record begins with.
pub(super) const KEY: usize = 32;
const MAGIC: usize = 8;
const CHECKED: usize = MAGIC + 32;
const HEAD: usize = CHECKED + 16;

/// A file that was read, or nothing.
#[derive(Debug, Default)]
pub(super) struct Sorted {
    bytes: Vec<u8>,
    n: usize,
    width: usize,
    /// By the first bits of a key: the first record with these bits or more.
    buckets: Vec<u32>,
}

impl Sorted {
    /// The file, if it is there and whole and its records are of this width.
    pub(super) fn read(path: &Path, magic: &[u8; MAGIC], width: usize) -> Option<Self> {
        let bytes = fs::read(path).ok()?;
        let number =
            |at: usize| Some(usize::try_from(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?)).ok());
        let n = number(CHECKED)??;
        let whole = bytes[..MAGIC] == *magic
            && number(CHECKED + 8)?? == width
            && bytes.len() >= HEAD.checked_add(n.checked_mul(width)?)?
            && blake3::Hasher::new().update_rayon(&bytes[CHECKED..]).finalize() == bytes[MAGIC..CHECKED];
        if !whole {
            return None;
        }
        let mut sorted = Self { bytes, n, width, buckets: Vec::new() };
        let n_buckets = n.next_power_of_two().max(2);
        let mut buckets = Vec::with_capacity(n_buckets + 1);
        for place in 0..n {
            let bucket = bucket(sorted.record(place), n_buckets);
            while buckets.len() <= bucket {
                buckets.push(place as u32);
            }
        }
        buckets.resize(n_buckets + 1, n as u32);
        sorted.buckets = buckets;
        Some(sorted)
    }

    /// Writes a file whole or not at all. It is not synced: what is not whole after a crash is made again.
    pub(super) fn write(path: &Path, magic: &[u8; MAGIC], width: usize, records: &[u8], rest: &[u8]) -> io::Result<()> {
        let numbers = [(records.len() / width) as u64, width as u64].map(u64::to_le_bytes).concat();
        let mut hasher = blake3::Hasher::new();
        hasher.update(&numbers).update_rayon(records).update_rayon(rest);
        let folder = path.parent().unwrap_or(Path::new("."));
        let mut file = tempfile::Builder::new().prefix(".tmp-").tempfile_in(folder)?;
        for part in [&magic[..], hasher.finalize().as_bytes(), &numbers, records, rest] {
            file.write_all(part)?;
        }
        file.persist(path).map_err(|error| error.error).map(|_: File| ())
    }

    pub(super) fn len(&self) -> usize {
        self.n
    }

    pub(super) fn record(&self, place: usize) -> &[u8] {
        &self.bytes[HEAD + place * self.width..][..self.width]
    }

    /// What the owner added after the records.
    pub(super) fn rest(&self) -> &[u8] {
        self.bytes.get(HEAD + self.n * self.width..).unwrap_or_default()
    }

    pub(super) fn find(&self, key: &[u8; KEY]) -> Option<usize> {
        let bucket = bucket(key, self.buckets.len().checked_sub(1)?);
        let (from, to) = (self.buckets[bucket] as usize, self.buckets[bucket + 1] as usize);
        (from..to).find(|&place| self.record(place)[..KEY] == *key)
    }
}

/// The first bits of a key; `n_buckets` is a power of two, at least 2.
fn bucket(key: &[u8], n_buckets: usize) -> usize {
    let first = key[..8].iter().fold(0u64, |sum, &byte| sum << 8 | u64::from(byte));
    (first >> (64 - n_buckets.trailing_zeros())) as usize
}

/// The number at a place, little-endian.
pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes[at..at + 4].iter().rev().fold(0, |sum, &byte| sum << 8 | u32::from(byte))
}

/// The number at a place, little-endian.
pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

/// The 32 bytes at a place.
pub(super) fn key_at(bytes: &[u8], at: usize) -> [u8; KEY] {
    let mut key = [0; KEY];
    key.copy_from_slice(&bytes[at..at + KEY]);
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(n: u64) -> Vec<[u8; KEY]> {
        let mut keys: Vec<_> = (0..n).map(|i| *blake3::hash(&i.to_le_bytes()).as_bytes()).collect();
        keys.sort_unstable();
        keys
    }

    #[test]
    fn every_record_is_found_and_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t");
        for n in [0, 1, 2, 3, 1000] {
            let keys = keys(n);
            let records: Vec<u8> = keys.iter().flat_map(|key| [&key[..], &key[..4]].concat()).collect();
            Sorted::write(&path, b"testtest", KEY + 4, &records, b"rest").unwrap();
            let sorted = Sorted::read(&path, b"testtest", KEY + 4).unwrap();
            assert_eq!((sorted.len(), sorted.rest()), (keys.len(), &b"rest"[..]));
            for (place, key) in keys.iter().enumerate() {
                assert_eq!(sorted.find(key), Some(place));
                assert_eq!(sorted.record(place)[KEY..], key[..4]);
            }
            for other in [[0; KEY], [255; KEY], *blake3::hash(b"other").as_bytes()] {
                assert_eq!(sorted.find(&other), None);
            }
        }
        assert_eq!(Sorted::default().find(&[0; KEY]), None);
    }

    #[test]
    fn what_is_not_whole_is_not_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t");
        let records = keys(20).concat();
        Sorted::write(&path, b"testtest", KEY, &records, b"").unwrap();
        let good = fs::read(&path).unwrap();
        assert!(Sorted::read(&path, b"othertes", KEY).is_none() && Sorted::read(&path, b"testtest", 16).is_none());
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            fs::write(&path, &bad).unwrap();
            assert!(Sorted::read(&path, b"testtest", KEY).is_none(), "byte {at}");
            fs::write(&path, &good[..at]).unwrap();
            assert!(Sorted::read(&path, b"testtest", KEY).is_none(), "cut at {at}");
        }
    }
}
