//! A folder on a disk or a network's file system.

use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use super::{Far, Item, TakeFn, named_digest};
use crate::cache::StoreError;
use crate::cache::store::{LARGE, digest_of, put_in_place};
use crate::data::temporary;
use crate::regular;

#[derive(Clone, Debug)]
pub struct Folder {
    root: PathBuf,
}

impl Folder {
    pub fn new(root: PathBuf) -> Self {
        Self { root }
    }

    fn list_into(&self, name: &str, found: &mut Vec<Item>) -> io::Result<()> {
        let listed = match fs::read_dir(self.root.join(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            listed => listed?,
        };
        for entry in listed {
            let entry = entry?;
            let name = format!("{name}/{}", entry.file_name().to_string_lossy());
            match entry.file_type()?.is_dir() {
                true => self.list_into(&name, found)?,
                false => found.push(Item { size: entry.metadata()?.len(), name }),
            }
        }
        Ok(())
    }
}

impl Far for Folder {
    fn list(&self, folder: &str) -> anyhow::Result<Vec<Item>> {
        let mut found = Vec::new();
        self.list_into(folder, &mut found).map_err(StoreError::io("list", &self.root.join(folder)))?;
        Ok(found)
    }

    fn there(&self, items: &[Item]) -> anyhow::Result<Vec<Item>> {
        let found = items.iter().filter_map(|Item { name, size: _ }| {
            let meta = fs::symlink_metadata(self.root.join(name)).ok().filter(fs::Metadata::is_file)?;
            Some(Item { name: name.clone(), size: meta.len() })
        });
        Ok(found.collect())
    }

    fn put(&self, items: &[Item], read: &mut dyn FnMut(&Item) -> Option<Vec<u8>>) -> anyhow::Result<()> {
        for item in items {
            let path = self.root.join(&item.name);
            if let Some(bytes) = read(item) {
                write(&path, &bytes).map_err(StoreError::io("write", &path))?;
            }
        }
        Ok(())
    }

    fn get(&self, items: &[Item], take: &mut TakeFn<'_>) -> anyhow::Result<()> {
        for item in items {
            let path = self.root.join(&item.name);
            match read_named(&path, &item.name) {
                // A folder, link or pipe in its place counts as nothing.
                Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::Other) => {
                    take(item, None)?
                }
                read => take(item, Some(&read.map_err(StoreError::io("read", &path))?))?,
            }
        }
        Ok(())
    }
}

/// The bytes of a file. Of a large one that is not what its name says there are none: it is not held in memory.
fn read_named(path: &Path, name: &str) -> io::Result<Vec<u8>> {
    let (mut file, len) = regular::open_own(path)?;
    if len > LARGE && named_digest(name) != Some(digest_of(&mut file)?) {
        return Ok(Vec::new());
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Whole or not at all.
fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let mut file = temporary(folder)?;
    file.write_all(bytes)?;
    put_in_place(file, path)
}
