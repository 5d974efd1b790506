//! What the units of a graph gave, as far as they have finished.

use std::sync::{Arc, PoisonError, RwLock};

use super::graph::UnitIdx;
use crate::artifact::ArtifactRef;
use crate::cache::{Cache, RecordIdx, Records};
use crate::digest::UnitKey;

/// Records by unit; the table they stand in is shared with the cache.
#[derive(Debug, Default)]
pub struct Outcomes {
    records: Arc<RwLock<Records>>,
    known: Vec<Option<RecordIdx>>,
}

impl Outcomes {
    pub(super) fn new(cache: &Cache, known: Vec<Option<RecordIdx>>) -> Self {
        Self { records: cache.shared_records(), known }
    }

    /// An output of a unit that has finished; its blob may be gone.
    pub fn output(&self, unit: UnitIdx, name: &str) -> Option<ArtifactRef> {
        self.outputs(unit).into_iter().find(|output| output.name == name)
    }

    /// All of them; none if the unit has not finished.
    pub fn outputs(&self, unit: UnitIdx) -> Vec<ArtifactRef> {
        let records = self.records.read().unwrap_or_else(PoisonError::into_inner);
        let outputs = self.known.get(unit).copied().flatten().map(|record| records.outputs(record));
        let owned = |(name, digest, size): (&str, _, _)| ArtifactRef { name: name.to_owned(), digest, size };
        outputs.into_iter().flatten().map(owned).collect()
    }

    /// The key of a unit that has finished.
    pub fn key(&self, unit: UnitIdx) -> Option<UnitKey> {
        let records = self.records.read().unwrap_or_else(PoisonError::into_inner);
        Some(records.key((*self.known.get(unit)?)?))
    }
}
