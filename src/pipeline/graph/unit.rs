//! Units and what they read, as they are added to a graph and as it gives them back.

use std::path::Path;
use std::sync::Arc;

use super::{SetIdx, UnitIdx};
use crate::digest::BlobDigest;

/// Where the bytes of an input come from.
#[derive(Clone, Debug)]
pub enum Source {
    /// An output of another unit.
    Output { unit: UnitIdx, name: &'static str },
    /// A file of the user: an image, a mask, weights.
    File { path: Arc<Path>, digest: BlobDigest },
    /// A small value made while planning, like the class list of an image.
    Value { bytes: Arc<[u8]>, digest: BlobDigest },
    /// Many inputs under one name.
    Set(SetIdx),
}

impl Source {
    pub fn value(bytes: impl Into<Arc<[u8]>>) -> Self {
        let bytes = bytes.into();
        Self::Value { digest: BlobDigest::of(&bytes), bytes }
    }
}

/// Inputs by item id, in order. Members are never sets.
#[derive(Clone, Debug)]
pub struct InputSet {
    pub members: Vec<(String, Source)>,
}

/// One stage applied to one item, to be added to a graph.
#[derive(Clone, Debug)]
pub struct Unit {
    pub stage: &'static str,
    pub version: u64,
    /// `2007_000032`, `epoch 3`, `train`. For people; not in the key.
    pub item: String,
    /// Effective parameters: JSON text with sorted keys.
    pub params: Arc<str>,
    pub inputs: Vec<(&'static str, Source)>,
}

/// What units of one stage with the same parameters share.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Kind {
    pub stage: &'static str,
    pub version: u64,
    pub params: Arc<str>,
}

/// A unit of a graph.
#[derive(Clone, Copy, Debug)]
pub struct UnitRef<'a> {
    pub stage: &'static str,
    pub item: &'a str,
    pub params: &'a Arc<str>,
}

impl UnitRef<'_> {
    pub fn label(&self) -> String {
        format!("{} {}", self.stage, self.item)
    }
}
