//! The record of a finished unit. The only user of bincode: manifests are stored with it, keys never depend on it.

use serde::{Deserialize, Serialize};

use crate::digest::{BlobDigest, ContentHash, KeyHasher, UnitKey, key_of};

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
        key_of(self)
    }

    /// The parameters as a JSON value (`Null` if the text is not JSON, which no stage writes).
    pub fn params_value(&self) -> serde_json::Value {
        serde_json::from_str(&self.params).unwrap_or_default()
    }
}

impl ContentHash for Fingerprint {
    fn content_hash(&self, state: &mut KeyHasher) {
        let Self { stage, version, params: _, inputs } = self;
        stage.as_str().content_hash(state);
        version.content_hash(state);
        self.params_value().content_hash(state);
        inputs.as_slice().content_hash(state);
    }
}
impl ContentHash for FingerprintInput {
    fn content_hash(&self, state: &mut KeyHasher) {
        let Self { slot, digest, is_set } = self;
        slot.as_str().content_hash(state);
        digest.content_hash(state);
        u8::from(*is_set).content_hash(state);
    }
}

/// The members of a set input, in order: item id and digest. Stored as a blob of lines `digest item`; a data set
/// scan refuses ids with line breaks.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SetListing {
    pub members: Vec<(String, BlobDigest)>,
}

impl SetListing {
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut text = String::with_capacity(self.members.len() * 80);
        for (item, digest) in &self.members {
            text.push_str(&format!("{digest} {}\n", item));
        }
        text.into_bytes()
    }

    pub fn parse(bytes: &[u8]) -> anyhow::Result<Self> {
        let text = std::str::from_utf8(bytes)?;
        let member = |line: &str| {
            let (digest, item) = line.split_once(' ')?;
            Some((item.to_owned(), digest.parse().ok()?))
        };
        let members: Option<Vec<_>> = text.lines().map(member).collect();
        members.map(|members| Self { members }).ok_or_else(|| anyhow::anyhow!("not a set listing"))
    }
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
