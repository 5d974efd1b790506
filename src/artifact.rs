//! The record of a finished unit. The only user of bincode: manifests are stored with it, keys never depend on it.

use serde::{Deserialize, Serialize};

use crate::digest::{BlobDigest, ContentHash, KeyHasher, UnitKey};

/// Everything that determines a unit's output, readable: kept in the manifest to say *why* a unit is stale.
///
/// | influence | in the key |
/// | --- | --- |
/// | stage kind, stage `VERSION` | yes |
/// | effective parameters (`rng_seed` and precision among them) | yes |
/// | digests of input contents, in order, with their slot | yes |
/// | item id | only where a stage reads it: as an input value |
/// | device, library versions, thread count, paths, times | never |
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Fingerprint {
    pub stage: String,
    pub version: u64,
    /// The effective parameters as JSON text with sorted keys. (Text, since bincode cannot hold a JSON value.)
    pub params: String,
    pub inputs: Vec<FingerprintInput>,
}

/// One input of a unit: a blob, a source file, an inline value, or the listing of a set (see [`SetListing`]).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FingerprintInput {
    pub slot: String,
    pub digest: BlobDigest,
    /// The digest names a [`SetListing`], whose members are the real inputs.
    pub is_set: bool,
}

impl Fingerprint {
    pub fn key(&self) -> UnitKey {
        let Self { stage, version, params, inputs } = self;
        let inputs = inputs.iter().map(|FingerprintInput { slot, digest, is_set }| (slot.as_str(), *digest, *is_set));
        KeyBuilder::new(stage, *version, params).key(inputs)
    }

    /// The parameters as a JSON value (`Null` if the text is not JSON, which no stage writes).
    pub fn params_value(&self) -> serde_json::Value {
        params_value(&self.params)
    }
}

/// The keys of units that share stage and parameters, which are read once.
#[derive(Clone)]
pub struct KeyBuilder {
    state: KeyHasher,
    /// Bytes of what they share.
    shared: usize,
}

impl KeyBuilder {
    pub fn new(stage: &str, version: u64, params: &str) -> Self {
        let mut state = KeyHasher::default();
        stage.content_hash(&mut state);
        version.content_hash(&mut state);
        params_value(params).content_hash(&mut state);
        Self { shared: state.len(), state }
    }

    /// The key with some inputs: slot, digest, whether it names a set.
    pub fn key<'a>(&mut self, inputs: impl ExactSizeIterator<Item = (&'a str, BlobDigest, bool)>) -> UnitKey {
        self.state.truncate(self.shared);
        (inputs.len() as u64).content_hash(&mut self.state);
        for (slot, digest, is_set) in inputs {
            slot.content_hash(&mut self.state);
            digest.content_hash(&mut self.state);
            u8::from(is_set).content_hash(&mut self.state);
        }
        self.state.finish()
    }
}

fn params_value(params: &str) -> serde_json::Value {
    serde_json::from_str(params).unwrap_or_default()
}

/// The members of a set input, in order: item id and digest. Stored as a blob of lines `digest item`, or `digest=item`
/// with `\` and line breaks of the item escaped if it has line breaks.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SetListing {
    pub members: Vec<(String, BlobDigest)>,
}

impl SetListing {
    pub fn to_bytes(&self) -> Vec<u8> {
        Self::encode(self.members.iter().map(|(item, digest)| (item.as_str(), *digest)))
    }

    /// The bytes of a listing of these members.
    pub fn encode<'a>(members: impl ExactSizeIterator<Item = (&'a str, BlobDigest)>) -> Vec<u8> {
        let mut text = Vec::with_capacity(members.len() * 80);
        for (item, digest) in members {
            text.extend_from_slice(&digest.hex());
            match item.contains('\n') {
                false => text.extend([" ", item, "\n"].iter().flat_map(|part| part.bytes())),
                true => text.extend(format!("={}\n", item.replace('\\', "\\\\").replace('\n', "\\n")).bytes()),
            }
        }
        text
    }

    pub fn parse(bytes: &[u8]) -> anyhow::Result<Self> {
        let text = std::str::from_utf8(bytes)?;
        let member = |line: &str| {
            let (digest, item) = (line.get(..64)?.parse().ok()?, line.get(65..)?);
            match line.as_bytes()[64] {
                b' ' => Some((item.to_owned(), digest)),
                b'=' => Some((unescaped(item), digest)),
                _ => None,
            }
        };
        let members: Option<Vec<_>> = text.split_terminator('\n').map(member).collect();
        members.map(|members| Self { members }).ok_or_else(|| anyhow::anyhow!("not a set listing"))
    }
}

fn unescaped(item: &str) -> String {
    let mut chars = item.chars();
    let next = || match chars.next()? {
        '\\' => chars.next().map(|escaped| if escaped == 'n' { '\n' } else { escaped }),
        plain => Some(plain),
    };
    std::iter::from_fn(next).collect()
}

/// How a manifest points at one output of a unit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ArtifactRef {
    /// The output's name within its unit: `embedding`, `checkpoint`, `metrics`.
    pub name: String,
    pub digest: BlobDigest,
    /// Bytes.
    pub size: u64,
}

/// The record of a finished unit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    pub key: UnitKey,
    /// The unit in words: `sam_embed 2007_000032`. For people; not in the key.
    pub label: String,
    pub fingerprint: Fingerprint,
    pub outputs: Vec<ArtifactRef>,
    pub seconds: f64,
    /// Seconds since 1970, when it finished.
    pub finished: u64,
    /// Device and library versions, for people.
    pub made_by: String,
}

impl Manifest {
    pub fn output(&self, name: &str) -> Option<&ArtifactRef> {
        self.outputs.iter().find(|output| output.name == name)
    }
}

/// Bytes of a stored record.
pub fn encode<T: Serialize>(value: &T) -> anyhow::Result<Vec<u8>> {
    Ok(bincode::serde::encode_to_vec(value, bincode::config::standard())?)
}

/// A stored record from its bytes; trailing bytes are an error.
pub fn decode<T: for<'de> Deserialize<'de>>(bytes: &[u8]) -> anyhow::Result<T> {
    let (value, used) = bincode::serde::decode_from_slice(bytes, bincode::config::standard())?;
    anyhow::ensure!(used == bytes.len(), "{} bytes follow the record", bytes.len() - used);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fingerprint(params: &str) -> Fingerprint {
        let input = |slot: &str, is_set| FingerprintInput {
            slot: slot.to_owned(),
            digest: BlobDigest::of(slot.as_bytes()),
            is_set,
        };
        let inputs = vec![input("checkpoint", false), input("images", true)];
        Fingerprint { stage: "cam_epoch".into(), version: 6, params: params.into(), inputs }
    }

    /// A key is a promise: these never change.
    #[test]
    fn keys_are_pinned() {
        let key = fingerprint(r#"{"epochs":5,"lr":0.01,"ssc":null}"#).key();
        insta::assert_snapshot!(key, @"e243d9c80c7611e0f823ab6d6acde0e7a80e4907699658279b3a1d21e7e8356f");
        let listing =
            SetListing { members: vec![("a b".into(), BlobDigest::of(b"1")), ("\u{e9}".into(), BlobDigest::of(b""))] };
        insta::assert_snapshot!(BlobDigest::of(&listing.to_bytes()), @"2aa01cb197ab787d8d3c0a464cb61ba721e492fa62f486e79239ac81f69f87db");
        assert_eq!(SetListing::parse(&listing.to_bytes()).unwrap(), listing);
    }

    #[test]
    fn listings_of_odd_names_come_back_and_are_not_mistaken_for_others() {
        let digest = BlobDigest::of(b"1");
        let names = ["a\nb", "a\\nb", "a\\\nb", " a", "a ", "=a", "a\r", "", "\u{1f600}", &format!("a\n{digest} b")];
        let mut seen = std::collections::HashSet::new();
        for name in names {
            let listing = SetListing { members: vec![(name.to_owned(), digest), ("z".into(), digest)] };
            assert_eq!(SetListing::parse(&listing.to_bytes()).unwrap(), listing);
            assert!(seen.insert(listing.to_bytes()), "{name:?}");
        }
        assert!(SetListing::parse(b"no digest\n").is_err());
    }

    #[test]
    fn a_builder_gives_the_key_of_the_fingerprint_each_time() {
        let first = fingerprint(r#"{"a":1}"#);
        let mut second = first.clone();
        second.inputs.truncate(1);
        let mut builder = KeyBuilder::new(&first.stage, first.version, &first.params);
        let mut key = |of: &Fingerprint| builder.key(of.inputs.iter().map(|i| (i.slot.as_str(), i.digest, i.is_set)));
        assert_eq!([key(&first), key(&second), key(&first)], [first.key(), second.key(), first.key()]);
        assert_ne!(first.key(), second.key());
    }

    #[test]
    fn the_order_of_fields_in_the_text_is_not_in_the_key_and_their_values_are() {
        let key = |params: &str| fingerprint(params).key();
        assert_eq!(key(r#"{"a":1,"b":[0.5]}"#), key(r#"{ "b" : [5e-1], "a" : 1 }"#));
        for other in [r#"{"a":1,"b":[0.25]}"#, r#"{"a":1}"#, r#"{"a":1.0,"b":[0.5]}"#, r#"{"a":"1","b":[0.5]}"#] {
            assert_ne!(key(r#"{"a":1,"b":[0.5]}"#), key(other), "{other}");
        }
    }
}
