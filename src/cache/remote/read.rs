//! What runs read travels beside the records, so that tables can be made where neither data nor weights are.

use std::collections::HashSet;
use std::fs;
use std::io::Write;

use super::{Far, Item};
use crate::cache::{Cache, StoreError};
use crate::data::door::read_regular;
use crate::data::temporary;

const FOLDER: &str = "history/read";
/// How the names of files end that are called after their content, and of all.
const BY_CONTENT: &str = ".data.json";
const ENDING: &str = ".json";
/// Bytes of a file: a million images have less.
const MOST_BYTES: u64 = 1 << 30;

/// Sends what is not there, and what may be another by now under its name.
pub fn push_read(cache: &Cache, far: &dyn Far) -> anyhow::Result<()> {
    let there: HashSet<String> = far.list(FOLDER)?.into_iter().map(|item| item.name).collect();
    let entries = fs::read_dir(cache.folder().join(FOLDER)).into_iter().flatten().flatten();
    let items = entries.filter_map(|entry| {
        let name = format!("{FOLDER}/{}", entry.file_name().to_str()?);
        let is_new = is_one(&name) && !(name.ends_with(BY_CONTENT) && there.contains(&name));
        is_new.then_some(Item { name, size: entry.metadata().ok()?.len() })
    });
    let items: Vec<Item> = items.collect();
    far.put(&items, &mut |item| read_regular(&cache.folder().join(&item.name), MOST_BYTES).ok())
}

/// Takes what is not here.
pub fn pull_read(cache: &Cache, far: &dyn Far) -> anyhow::Result<()> {
    let folder = cache.folder();
    let mut items = far.list(FOLDER)?;
    items.retain(|item| is_one(&item.name) && item.size <= MOST_BYTES && !folder.join(&item.name).exists());
    if items.is_empty() {
        return Ok(());
    }
    let to = folder.join(FOLDER);
    fs::create_dir_all(&to).map_err(StoreError::io("create", &to))?;
    far.get(&items, &mut |item, bytes| {
        let Some(bytes) = bytes.filter(|bytes| serde_json::from_slice::<serde::de::IgnoredAny>(bytes).is_ok()) else {
            return Ok(());
        };
        let write = || {
            let mut file = temporary(&to)?;
            file.write_all(bytes)?;
            file.persist(folder.join(&item.name)).map(drop).map_err(|error| error.error)
        };
        Ok(write().map_err(StoreError::io("write", &folder.join(&item.name)))?)
    })
}

/// Only names that are given here lead anywhere.
fn is_one(name: &str) -> bool {
    let name = name.strip_prefix(FOLDER).and_then(|name| name.strip_prefix('/')).unwrap_or_default();
    let digest = name.strip_suffix(BY_CONTENT).or_else(|| name.strip_suffix(ENDING)).unwrap_or_default();
    digest.len() == 64 && digest.chars().all(|c| c.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_digests_are_taken() {
        let digest = "0a".repeat(32);
        for ending in [BY_CONTENT, ENDING] {
            assert!(is_one(&format!("{FOLDER}/{digest}{ending}")));
        }
        for name in
            [format!("{FOLDER}/../{digest}.json"), format!("{FOLDER}/x.json"), format!("{digest}.json"), FOLDER.into()]
        {
            assert!(!is_one(&name), "{name}");
        }
    }
}
