//! The folder that a pipeline file's results go to, `out/NAME`, and whose it is: two files of one name in different
//! folders do not write over each other's results.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use anyhow::Context;

use super::report::put;
use crate::pipeline::names::{digits_of, shortened};

/// In the folder: the path of the pipeline file that it is of, from the folder, so that it holds for a copy of both.
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
        match owner(&path).filter(|owner| *owner != file) {
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
        fs::create_dir_all(&self.path).with_context(|| format!("making `{}`", self.path.display()))?;
        let file = relative(&fs::canonicalize(&self.path)?, &self.file);
        put(&self.path.join(OWNER), file.as_os_str().as_bytes())
    }

    /// A line on what was taken in place of `out/NAME`, where something was.
    pub(super) fn note(&self) -> Option<String> {
        let other = self.other.as_ref()?;
        let (path, other) = (self.path.display(), other.display());
        Some(format!("results go to `{path}`, since the folder of that name is of another pipeline file, `{other}`"))
    }
}

/// The file that a folder is of, if it is still there.
fn owner(folder: &Path) -> Option<PathBuf> {
    let file = PathBuf::from(OsString::from_vec(fs::read(folder.join(OWNER)).ok()?));
    fs::canonicalize(fs::canonicalize(folder).ok()?.join(file)).ok().filter(|file| file.is_file())
}

/// The way from a folder to a file, both without links.
fn relative(folder: &Path, file: &Path) -> PathBuf {
    let n_common = folder.components().zip(file.components()).take_while(|(a, b)| a == b).count();
    let up = folder.components().skip(n_common).map(|_| Component::ParentDir);
    up.chain(file.components().skip(n_common)).collect()
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
        let way = relative(Path::new("/p/out/exp"), Path::new("/p/a/exp.toml"));
        assert_eq!(way, Path::new("../../a/exp.toml"));
    }
}
