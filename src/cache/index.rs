//! The sled index: small records only, all of them disposable. The only user of sled.
//!
//! Trees: `labels` (label -> key of its newest unit, for `why`), `facts` (name and digest -> a fact derived from
//! content), `costs` (stage, and stage with the names of its inputs -> seconds
//! and bytes of the last units).

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use anyhow::Context;

use crate::artifact::{decode, encode};
use crate::digest::UnitKey;

/// Of so many last units of a stage, or of a kind, the cost is kept.
const N_COSTS: usize = 31;
/// No label. Another name than before sizes were kept, so that an index without them is told all anew.
const TOLD: &str = "\0told costs";

/// What of a finished unit is kept here.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) label: String,
    pub(crate) key: UnitKey,
    pub(crate) stage: String,
    /// The stage with the names of what it reads: an epoch with a loss costs more than one without.
    pub(crate) kind: String,
    pub(crate) seconds: f64,
    /// Of its outputs.
    pub(crate) bytes: u64,
}

#[derive(Debug)]
pub(crate) struct Index {
    db: sled::Db,
    labels: sled::Tree,
    facts: sled::Tree,
    costs: sled::Tree,
}

impl Index {
    pub(crate) fn open(path: &Path) -> anyhow::Result<Self> {
        let config = sled::Config::new().path(path).cache_capacity(64 << 20).flush_every_ms(Some(500));
        let db = config.open().with_context(|| format!("could not open the index `{}`", path.display()))?;
        let tree = |name: &str| db.open_tree(name);
        Ok(Self { labels: tree("labels")?, facts: tree("facts")?, costs: tree("costs")?, db })
    }

    pub(crate) fn newest(&self, label: &str) -> anyhow::Result<Option<UnitKey>> {
        let found = self.labels.get(label)?;
        Ok(found.and_then(|bytes| Some(UnitKey::from_bytes(bytes.as_ref().try_into().ok()?))))
    }

    /// Takes units in the order in which they finished. With them it has been told the logs' first so many bytes.
    pub(crate) fn record(&self, units: &[Finished], told: u64) -> anyhow::Result<()> {
        let mut labels: sled::Batch = Default::default();
        units.iter().for_each(|unit| labels.insert(unit.label.as_bytes(), unit.key.as_bytes()));
        self.labels.apply_batch(labels)?;
        for (name, mut newest) in newest_costs(units) {
            newest.append(&mut self.costs(name)?);
            newest.truncate(N_COSTS);
            self.costs.insert(name.as_bytes(), encode(&newest)?)?;
        }
        self.labels.insert(TOLD, &told.to_le_bytes())?;
        Ok(())
    }

    /// How much of the logs it has been told.
    pub(crate) fn told(&self) -> anyhow::Result<u64> {
        let told = self.labels.get(TOLD)?;
        Ok(told.and_then(|bytes| Some(u64::from_le_bytes(bytes.as_ref().try_into().ok()?))).unwrap_or(0))
    }

    /// Seconds and bytes of the last units of a stage, or of a kind, newest first.
    pub(crate) fn costs(&self, name: &str) -> anyhow::Result<Vec<(f64, u64)>> {
        Ok(self.costs.get(name)?.map(|bytes| decode(&bytes)).transpose()?.unwrap_or_default())
    }

    pub(crate) fn fact(&self, key: &[u8]) -> Option<Vec<u8>> {
        Some(self.facts.get(key).ok()??.to_vec())
    }

    pub(crate) fn remember_fact(&self, key: &[u8], fact: &[u8]) -> anyhow::Result<()> {
        self.facts.insert(key, fact)?;
        Ok(())
    }

    pub(crate) fn flush(&self) -> anyhow::Result<()> {
        self.db.flush()?;
        Ok(())
    }
}

/// Labels and costs for who only looks: in memory, from the logs.
#[derive(Debug)]
pub(crate) struct Looked {
    labels: HashMap<String, UnitKey>,
    costs: HashMap<String, Vec<(f64, u64)>>,
}

impl Looked {
    /// From units in the order in which they finished.
    pub(crate) fn new(units: &[Finished]) -> Self {
        Self {
            labels: units.iter().map(|unit| (unit.label.clone(), unit.key)).collect(),
            costs: newest_costs(units).into_iter().map(|(name, costs)| (name.to_owned(), costs)).collect(),
        }
    }

    pub(crate) fn newest(&self, label: &str) -> Option<UnitKey> {
        self.labels.get(label).copied()
    }

    pub(crate) fn costs(&self, name: &str) -> Vec<(f64, u64)> {
        self.costs.get(name).cloned().unwrap_or_default()
    }
}

/// Of each stage and kind, newest first.
fn newest_costs(units: &[Finished]) -> BTreeMap<&str, Vec<(f64, u64)>> {
    let mut costs: BTreeMap<&str, Vec<(f64, u64)>> = BTreeMap::new();
    for unit in units.iter().rev() {
        for name in [&unit.stage, &unit.kind] {
            let newest = costs.entry(name).or_default();
            if newest.len() < N_COSTS {
                newest.push((unit.seconds, unit.bytes));
            }
        }
    }
    costs
}
