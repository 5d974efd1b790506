//! Digests: BLAKE3 names of bytes ([`BlobDigest`]) and of inputs ([`UnitKey`]).
//!
//! The encoding of a key, a promise across releases and machines: integers fixed-width little-endian, floats by
//! their IEEE bits, a length before every sequence, a tag before every variant, map entries in order of their key.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::marker::PhantomData;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A 32-byte BLAKE3 name; `K` says of what.
pub struct Digest<K> {
    bytes: [u8; 32],
    kind: PhantomData<fn() -> K>,
}

/// Names bytes.
#[derive(Debug)]
pub enum Blob {}
/// Names everything that determines a unit's output.
#[derive(Debug)]
pub enum Key {}

pub type BlobDigest = Digest<Blob>;
pub type UnitKey = Digest<Key>;

impl<K> Digest<K> {
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self { bytes, kind: PhantomData }
    }

    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.bytes
    }

    /// The first 12 hex digits, for people.
    pub fn short(&self) -> String {
        self.to_string()[..12].to_owned()
    }
}

impl BlobDigest {
    /// The digest of some bytes.
    pub fn of(bytes: &[u8]) -> Self {
        // Below some 128 KiB threads cost more than they save.
        if bytes.len() < 128 * 1024 {
            Self::from_bytes(*blake3::hash(bytes).as_bytes())
        } else {
            Self::from_bytes(*blake3::Hasher::new().update_rayon(bytes).finalize().as_bytes())
        }
    }
}

// By hand: a derive would ask `K` for these traits.
impl<K> Clone for Digest<K> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<K> Copy for Digest<K> {}
impl<K> PartialEq for Digest<K> {
    fn eq(&self, other: &Self) -> bool {
        self.bytes == other.bytes
    }
}
impl<K> Eq for Digest<K> {}
impl<K> PartialOrd for Digest<K> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl<K> Ord for Digest<K> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.bytes.cmp(&other.bytes)
    }
}
impl<K> Hash for Digest<K> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.bytes.hash(state);
    }
}

impl<K> Digest<K> {
    /// The 64 hex digits, as ASCII.
    pub fn hex(&self) -> [u8; 64] {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        std::array::from_fn(|i| DIGITS[usize::from(self.bytes[i / 2] >> (4 - i % 2 * 4) & 15)])
    }
}

impl<K> fmt::Display for Digest<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(str::from_utf8(&self.hex()).map_err(|_| fmt::Error)?)
    }
}
impl<K> fmt::Debug for Digest<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text is not the 64 lower-case hex digits of a digest.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is not a digest of 64 hex digits")]
pub struct ParseDigestError(String);

impl<K> FromStr for Digest<K> {
    type Err = ParseDigestError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let hash = blake3::Hash::from_hex(text).map_err(|_| ParseDigestError(text.to_owned()))?;
        Ok(Self::from_bytes(*hash.as_bytes()))
    }
}

impl<K> Serialize for Digest<K> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() { serializer.collect_str(self) } else { self.bytes.serialize(serializer) }
    }
}
impl<'de, K> Deserialize<'de> for Digest<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
        } else {
            <[u8; 32]>::deserialize(deserializer).map(Self::from_bytes)
        }
    }
}

/// Collects the bytes of a key. They are few, and what many keys begin with is collected once.
#[derive(Clone, Default)]
pub struct KeyHasher(Vec<u8>);

impl KeyHasher {
    pub fn finish(&self) -> UnitKey {
        UnitKey::from_bytes(*blake3::hash(&self.0).as_bytes())
    }

    /// Bytes so far.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Back to what the first `len` bytes were.
    pub(crate) fn truncate(&mut self, len: usize) {
        self.0.truncate(len);
    }
}

/// The key of one value.
pub fn key_of<T: ContentHash + ?Sized>(value: &T) -> UnitKey {
    let mut state = KeyHasher::default();
    value.content_hash(&mut state);
    state.finish()
}

/// How a value enters a key, byte for byte. Unlike [`Hash`] this is stable across releases and platforms.
pub trait ContentHash {
    fn content_hash(&self, state: &mut KeyHasher);
}

impl ContentHash for u8 {
    fn content_hash(&self, state: &mut KeyHasher) {
        state.0.push(*self);
    }
}
impl ContentHash for u64 {
    fn content_hash(&self, state: &mut KeyHasher) {
        state.0.extend_from_slice(&self.to_le_bytes());
    }
}
impl ContentHash for str {
    fn content_hash(&self, state: &mut KeyHasher) {
        (self.len() as u64).content_hash(state); // length first: fields cannot run together
        state.0.extend_from_slice(self.as_bytes());
    }
}
impl<K> ContentHash for Digest<K> {
    fn content_hash(&self, state: &mut KeyHasher) {
        state.0.extend_from_slice(&self.bytes);
    }
}
impl<T: ContentHash> ContentHash for [T] {
    fn content_hash(&self, state: &mut KeyHasher) {
        (self.len() as u64).content_hash(state);
        self.iter().for_each(|x| x.content_hash(state));
    }
}

/// Parameters enter a key as the JSON value of their struct: every field by name, so a new field cannot be
/// forgotten.
impl ContentHash for serde_json::Value {
    fn content_hash(&self, state: &mut KeyHasher) {
        use serde_json::Value;
        match self {
            Value::Null => 0u8.content_hash(state),
            Value::Bool(b) => [1u8, u8::from(*b)].iter().for_each(|x| x.content_hash(state)),
            Value::Number(n) => {
                if let Some(i) = n.as_i64() {
                    2u8.content_hash(state);
                    (i as u64).content_hash(state);
                } else if let Some(u) = n.as_u64() {
                    3u8.content_hash(state);
                    u.content_hash(state);
                } else {
                    4u8.content_hash(state);
                    // 0.0 and -0.0 are one parameter.
                    (n.as_f64().unwrap_or(f64::NAN) + 0.0).to_bits().content_hash(state);
                }
            }
            Value::String(s) => {
                5u8.content_hash(state);
                s.as_str().content_hash(state);
            }
            Value::Array(values) => {
                6u8.content_hash(state);
                values.as_slice().content_hash(state);
            }
            Value::Object(map) => {
                7u8.content_hash(state);
                (map.len() as u64).content_hash(state);
                // Sorted here: whether the map itself is depends on a feature any crate can switch on.
                let mut entries: Vec<_> = map.iter().collect();
                entries.sort_unstable_by_key(|(name, _)| *name);
                for (name, value) in entries {
                    name.as_str().content_hash(state);
                    value.content_hash(state);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn fields_cannot_run_together() {
        assert_ne!(key_of(&json!(["ab", "cd"])), key_of(&json!(["a", "bcd"])));
        assert_ne!(key_of(&json!({"a": [1], "b": []})), key_of(&json!({"a": [], "b": [1]})));
        assert_ne!(key_of(&json!(1)), key_of(&json!(1.0)));
        assert_eq!(key_of(&json!(0.0)), key_of(&json!(-0.0)));
    }

    /// The encoding is a promise: this digest never changes.
    #[test]
    fn pinned() {
        let value = json!({"tau": 0.5, "epochs": 5, "scales": [0.5, 1.0], "name": "S2C", "ssc": null, "flip": true});
        insta::assert_snapshot!(key_of(&value), @"2c7dc2681def69f2b13568ae86fde7a99f2fb3fd462ed8727701becab4b18292");
    }

    /// Values of few kinds, so that many are nearly alike, from a seed.
    fn value(state: &mut u64, depth: u32) -> serde_json::Value {
        let mut next = |n: u64| {
            *state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (*state >> 33) % n
        };
        match next(if depth == 0 { 5 } else { 7 }) {
            0 => json!(null),
            1 => json!(next(2) == 0),
            2 => json!(next(3) as i64 - 1),
            3 => json!(next(3) as f64 / 2.0),
            4 => json!(["", "a", "b", "ab"][next(4) as usize]),
            5 => (0..next(3)).map(|_| value(state, depth - 1)).collect(),
            _ => {
                let names = ["a", "b", "ab", "c"];
                let n = next(4) as usize;
                serde_json::Value::Object((0..n).map(|i| (names[i].to_owned(), value(state, depth - 1))).collect())
            }
        }
    }

    #[test]
    fn different_values_have_different_keys_and_equal_ones_the_same() {
        let mut by_key = std::collections::HashMap::new();
        let mut state = 1;
        for _ in 0..20_000 {
            let value = value(&mut state, 3);
            let again: serde_json::Value = serde_json::from_str(&value.to_string()).unwrap();
            assert_eq!(key_of(&again), key_of(&value), "{value}");
            let before = by_key.entry(key_of(&value)).or_insert_with(|| value.clone());
            assert_eq!(*before, value);
        }
        assert!(by_key.len() > 1000, "{}", by_key.len());
    }

    #[test]
    fn hex_round_trip() {
        let digest = BlobDigest::of(b"x");
        assert_eq!(digest.to_string().parse::<BlobDigest>().unwrap(), digest);
        assert!("XYZ".parse::<BlobDigest>().is_err());
    }
}
