//! The folder that a pipeline file's results go to, `out/NAME`, and whose it is: two files of one name in different
//! folders do not write over each other's results.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use super::report::put;
use crate::pipeline::names::{digits_of, shortened};

/// In the folder: the path of the pipeline file that it is of.
const OWNER: &str = ".pipeline";
/// Bytes of the folder's name.
const MOST_NAME: usize = 200;

/// Where the results of a pipeline file go.
#[derive(Debug)]
pub(super) struct OutFolder {
    pub(super) path: PathBuf,
    /// The file that `out/NAME` is of, where that is another.
    pub(super) other: Option<PathBuf>,
    /// The pipeline file.
    file: PathBuf,
}

impl OutFolder {
    /// `out/NAME`; where another file has that, and is still there, `out/NAME-DIGEST`, of the digest of this file's path.
    pub(super) fn of(out: &Path, name: &str, file: &Path) -> Self {
        let file = fs::canonicalize(file).unwrap_or_else(|_| file.to_owned());
        let path = out.join(shortened(name, MOST_NAME));
        match owner(&path).filter(|owner| *owner != file && owner.is_file()) {
            None => Self { path, other: None, file },
            Some(other) => {
                let digits = digits_of(&file.to_string_lossy());
                let path = out.join(format!("{}-{digits}", shortened(name, MOST_NAME)));
                Self { path, other: Some(other), file }
            }
        }
    }

    /// Makes the folder and writes down whose it is.
    pub(super) fn claim(&self) -> anyhow::Result<()> {
        if owner(&self.path).as_ref() == Some(&self.file) {
            return Ok(());
        }
        fs::create_dir_all(&self.path)?;
        put(&self.path.join(OWNER), self.file.as_os_str().as_bytes())
    }

    /// A line on what was taken in place of `out/NAME`, where something was.
    pub(super) fn note(&self) -> Option<String> {
        let other = self.other.as_ref()?;
        let (path, other) = (self.path.display(), other.display());
        Some(format!("results go to `{path}`, since the folder of that name is of another pipeline file, `{other}`"))
    }
}

fn owner(folder: &Path) -> Option<PathBuf> {
    fs::read(folder.join(OWNER)).ok().map(|bytes| PathBuf::from(OsString::from_vec(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_files_of_one_name_have_two_folders() {
        let dir = tempfile::tempdir().unwrap();
        let (out, file) = (dir.path().join("out"), |name: &str| dir.path().join(name));
        for folder in ["a", "b"] {
            fs::create_dir(file(folder)).unwrap();
            fs::write(file(folder).join("exp.toml"), "").unwrap();
        }
        let of = |folder: &str| OutFolder::of(&out, "exp", &file(folder).join("exp.toml"));
        let first = of("a");
        assert_eq!((&first.path, first.note()), (&out.join("exp"), None));
        first.claim().unwrap();
        assert_eq!(of("a").path, first.path);
        let second = of("b");
        assert!(second.path != first.path && second.note().unwrap().contains("a/exp.toml"));
        second.claim().unwrap();
        assert_eq!((of("a").path, of("b").path), (first.path.clone(), second.path));
        // A file that moved keeps its folder, and one that is gone leaves it.
        fs::rename(file("a/exp.toml"), file("a/moved.toml")).unwrap();
        assert_eq!(OutFolder::of(&out, "exp", &file("a/moved.toml")).path, first.path);
    }
}
