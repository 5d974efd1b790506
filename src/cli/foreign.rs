//! What of a folder is somebody else's.

use std::fs;
use std::io;
use std::path::Path;

use crate::data::TEMPORARY;

/// What systems leave in folders by themselves.
const OF_SYSTEMS: [&str; 6] = [".DS_Store", "Thumbs.db", "desktop.ini", ".directory", "@eaDir", "lost+found"];

/// A name in a folder that is none of `ours`, does not pass `is_ours`, and is not of the system; none where the folder is not
/// there.
///
/// # Errors
/// The folder is there and cannot be listed.
pub(super) fn first_foreign(
    folder: &Path,
    ours: &[&str],
    is_ours: &dyn Fn(&str) -> bool,
) -> io::Result<Option<String>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        entries => entries?.collect::<Result<Vec<_>, _>>()?,
    };
    let names = entries.iter().map(|entry| entry.file_name().to_string_lossy().into_owned());
    let is_of_system = |name: &str| OF_SYSTEMS.contains(&name) || name.starts_with(TEMPORARY);
    let is_foreign = |name: &String| !ours.contains(&name.as_str()) && !is_of_system(name) && !is_ours(name);
    Ok(names.filter(is_foreign).min())
}
