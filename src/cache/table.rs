//! A file of records that begin with 32 bytes, a digest. Read whole and looked up without being parsed, it answers a
//! million questions in the time sled opens.
//!
//! Records keep the order in which they are written, so that what belongs together stands together in memory.
//!
//! ```text
//! magic (8)  BLAKE3 of all that follows (32)  number of records (u64)  bytes of one (u64)  records  what the owner adds
//! ```

use std::io::{self, Write};
use std::path::Path;

use super::store::put_in_place;
use crate::data::temporary;
use crate::regular;

/// Bytes of the key a record begins with.
pub(super) const KEY: usize = 32;
const MAGIC: usize = 8;
const CHECKED: usize = MAGIC + 32;
const HEAD: usize = CHECKED + 16;

/// Records that are looked at around a guess: threads finish units a little out of order.
const BEFORE: usize = 2;
const AFTER: usize = 6;

/// A file that was read, or nothing.
#[derive(Debug, Default)]
pub(super) struct Table {
    bytes: Vec<u8>,
    n: usize,
    width: usize,
    /// Places of records, by the first bits of their keys.
    places: Vec<u32>,
    /// By these bits: where theirs begin in `places`.
    buckets: Vec<u32>,
}

impl Table {
    /// The file, if it is there and whole and its records are of this width.
    pub(super) fn read(path: &Path, magic: &[u8; MAGIC], width: usize) -> Option<Self> {
        let bytes = regular::read_own(path).ok()?;
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
        let mut table = Self { bytes, n, width, places: vec![0; n], buckets: Vec::new() };
        let n_buckets = n.next_power_of_two().max(2);
        let mut ends = vec![0u32; n_buckets + 1];
        (0..n).for_each(|place| ends[bucket(table.record(place), n_buckets)] += 1);
        let mut sum = 0;
        for end in &mut ends {
            sum += *end;
            *end = sum;
        }
        // From the last, so that each end becomes a beginning.
        for place in (0..n).rev() {
            let bucket = bucket(table.record(place), n_buckets);
            ends[bucket] -= 1;
            table.places[ends[bucket] as usize] = place as u32;
        }
        table.buckets = ends;
        Some(table)
    }

    /// Writes a file whole or not at all. It is not synced: what is not whole after a crash is made again.
    pub(super) fn write(
        path: &Path,
        magic: &[u8; MAGIC],
        width: usize,
        records: &[u8],
        rest: &[&[u8]],
    ) -> io::Result<()> {
        let numbers = [(records.len() / width) as u64, width as u64].map(u64::to_le_bytes).concat();
        let checked = || [&numbers, records].into_iter().chain(rest.iter().copied());
        let mut hasher = blake3::Hasher::new();
        for part in checked() {
            hasher.update_rayon(part);
        }
        let folder = path.parent().unwrap_or(Path::new("."));
        let mut file = temporary(folder)?;
        file.write_all(magic)?;
        file.write_all(hasher.finalize().as_bytes())?;
        checked().try_for_each(|part| file.write_all(part))?;
        put_in_place(file, path)
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
        let mut places = self.places[from..to].iter().map(|&place| place as usize);
        places.find(|&place| self.record(place)[..KEY] == *key)
    }

    /// The same, faster if the record stands about where `guess` says.
    pub(super) fn find_near(&self, key: &[u8; KEY], guess: usize) -> Option<usize> {
        let around = guess.saturating_sub(BEFORE)..(guess + AFTER).min(self.n);
        let is_it = |place: &usize| self.record(*place)[..KEY] == *key;
        around.into_iter().find(is_it).or_else(|| self.find(key))
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
    use std::fs;

    use super::*;

    fn keys(n: u64) -> Vec<[u8; KEY]> {
        (0..n).map(|i| *blake3::hash(&i.to_le_bytes()).as_bytes()).collect()
    }

    #[test]
    fn every_record_is_found_and_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t");
        for n in [0, 1, 2, 3, 1000] {
            let keys = keys(n);
            let records: Vec<u8> = keys.iter().flat_map(|key| [&key[..], &key[..4]].concat()).collect();
            Table::write(&path, b"testtest", KEY + 4, &records, &[b"re", b"st"]).unwrap();
            let table = Table::read(&path, b"testtest", KEY + 4).unwrap();
            assert_eq!((table.len(), table.rest()), (keys.len(), &b"rest"[..]));
            for (place, key) in keys.iter().enumerate() {
                assert_eq!(table.find(key), Some(place));
                for guess in [0, place, place.saturating_sub(3), place + 1, keys.len(), keys.len() + 7] {
                    assert_eq!(table.find_near(key, guess), Some(place));
                }
                assert_eq!(table.record(place)[KEY..], key[..4]);
            }
            for other in [[0; KEY], [255; KEY], *blake3::hash(b"other").as_bytes()] {
                assert_eq!((table.find(&other), table.find_near(&other, 1)), (None, None));
            }
        }
        assert_eq!(Table::default().find(&[0; KEY]), None);
    }

    #[test]
    fn what_is_not_whole_is_not_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t");
        let records = keys(20).concat();
        Table::write(&path, b"testtest", KEY, &records, &[]).unwrap();
        let good = fs::read(&path).unwrap();
        assert!(Table::read(&path, b"othertes", KEY).is_none() && Table::read(&path, b"testtest", 16).is_none());
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            fs::write(&path, &bad).unwrap();
            assert!(Table::read(&path, b"testtest", KEY).is_none(), "byte {at}");
            fs::write(&path, &good[..at]).unwrap();
            assert!(Table::read(&path, b"testtest", KEY).is_none(), "cut at {at}");
        }
    }
}
