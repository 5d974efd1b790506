//! What audits found: units that gave other bytes when they ran again, `drift/KEY.json`.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::store::write_whole;
use super::{Cache, StoreError};
use crate::artifact::ArtifactRef;
use crate::digest::{BlobDigest, UnitKey};
use crate::regular;

/// A unit that gave other bytes than those on record.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Drift {
    pub key: UnitKey,
    pub label: String,
    /// By output that differs: the digest on record and the one found.
    pub outputs: BTreeMap<String, (BlobDigest, BlobDigest)>,
    /// Device and versions of both.
    pub made_by: String,
    pub audited_by: String,
    /// Seconds since 1970, when it was audited.
    pub audited: u64,
}

impl Drift {
    /// The unit still has the bytes that could not be made again.
    pub fn is_of(&self, outputs: &[ArtifactRef]) -> bool {
        outputs.iter().any(|output| self.outputs.get(&output.name).is_some_and(|(was, _)| *was == output.digest))
    }
}

impl Cache {
    /// What audits found, ever. A unit may have been made anew since: see [`Drift::is_of`].
    pub fn drifts(&self) -> anyhow::Result<BTreeMap<UnitKey, Drift>> {
        let mut found = BTreeMap::new();
        for entry in fs::read_dir(self.drift_folder()).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.extension().is_some_and(|ending| ending == "json") {
                // One of another version of the program tells nothing, and neither does what is no file.
                let bytes = regular::read_own(&path).unwrap_or_default();
                found.extend(serde_json::from_slice(&bytes).ok().map(|drift: Drift| (drift.key, drift)));
            }
        }
        Ok(found)
    }

    /// Keeps what an audit found.
    pub fn put_drift(&self, drift: &Drift) -> anyhow::Result<()> {
        let path = self.drift_folder().join(format!("{}.json", drift.key));
        write_whole(&path, &serde_json::to_vec_pretty(drift)?).map_err(StoreError::io("write", &path))?;
        Ok(())
    }

    fn drift_folder(&self) -> PathBuf {
        self.folder().join("drift")
    }
}
