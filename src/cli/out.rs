//! The folder that the results of a pipeline file go to: `out/NAME`, and `out/NAME+FIELD=VALUE` where the command line sets
//! fields, so that neither takes the place of the other. Two files of one name in different folders do not share one either.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Component, Path, PathBuf};

use super::results_folder::{ResultsFolder, file_of};
use crate::pipeline::file::Pipeline;
use crate::pipeline::names::{digits_of, shortened};

/// Bytes of the folder's name.
const MOST_NAME: usize = 200;
/// Bytes of what the command line sets, in that name.
const MOST_SETS: usize = 80;

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
    /// Where another file has the folder of this name, and is still there: with the digest of this file's path behind it.
    pub(super) fn of(out: &Path, pipeline: &Pipeline, file: &Path) -> Self {
        let file = fs::canonicalize(file).unwrap_or_else(|_| file.to_owned());
        let name = shortened(&name_of(&pipeline.name, &pipeline.sets), MOST_NAME);
        let path = out.join(&name);
        match owner(&path).filter(|owner| *owner != file) {
            None => Self { path, other: None, file },
            Some(other) => {
                let path = out.join(format!("{name}-{}", digits_of(&file.to_string_lossy())));
                Self { path, other: Some(other), file }
            }
        }
    }

    /// Makes the folder and writes down whose it is.
    pub(super) fn claim(&self, folder: &ResultsFolder) -> anyhow::Result<()> {
        if owner(&self.path).as_ref() == Some(&self.file) {
            return Ok(());
        }
        let path = std::path::absolute(&self.path)?;
        let path = fs::canonicalize(&path).unwrap_or(path);
        folder.begin(Some(&relative(&path, &self.file)))
    }

    /// A line on what was taken in place of `out/NAME`, where something was.
    pub(super) fn note(&self) -> Option<String> {
        let other = self.other.as_ref()?;
        let (path, other) = (self.path.display(), other.display());
        Some(format!("results go to `{path}`, since the folder of that name is of another pipeline file, `{other}`"))
    }
}

/// A pipeline's name with what the command line sets, as far as a folder's name takes that; a digest stands for the rest.
fn name_of(pipeline: &str, sets: &[(String, String)]) -> String {
    // Of what is set twice the last holds.
    let sets: BTreeMap<&str, &str> = sets.iter().map(|(field, value)| (field.as_str(), value.as_str())).collect();
    if sets.is_empty() {
        return pipeline.to_owned();
    }
    let whole: Vec<String> = sets.iter().map(|(field, value)| format!("{field}={value}")).collect();
    // Of a path its end tells most.
    let last = |value: &str| value.trim_end_matches('/').rsplit('/').next().unwrap_or_default().to_owned();
    let shown: Vec<String> = sets.iter().map(|(field, value)| format!("{field}={}", last(value))).collect();
    let (whole, shown) = (whole.join(","), shown.join(","));
    let plain: String =
        shown.chars().map(|c| if c.is_alphanumeric() || "=.,_-".contains(c) { c } else { '_' }).collect();
    let plain = &plain[..plain.floor_char_boundary(MOST_SETS)];
    match plain == whole {
        true => format!("{pipeline}+{plain}"),
        false => format!("{pipeline}+{plain}-{}", digits_of(&whole)),
    }
}

/// The file that a folder is of, if it is still there.
fn owner(folder: &Path) -> Option<PathBuf> {
    let file = file_of(folder)?;
    fs::canonicalize(fs::canonicalize(folder).ok()?.join(file)).ok().filter(|file| file.is_file())
}

/// The way from a folder to a file, both without links.
pub(super) fn relative(folder: &Path, file: &Path) -> PathBuf {
    let n_common = folder.components().zip(file.components()).take_while(|(a, b)| a == b).count();
    let up = folder.components().skip(n_common).map(|_| Component::ParentDir);
    up.chain(file.components().skip(n_common)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::results_folder::{Asked, Reads};

    #[test]
    fn what_the_command_line_sets_stands_in_the_name() {
        let name = |sets: &[(&str, &str)]| {
            let sets: Vec<_> = sets.iter().map(|(field, value)| ((*field).to_owned(), (*value).to_owned())).collect();
            name_of("exp", &sets)
        };
        assert_eq!(name(&[]), "exp");
        assert_eq!(name(&[("b", "1"), ("classifier.cpm.tau", "0.3"), ("b", "2")]), "exp+b=2,classifier.cpm.tau=0.3");
        let roots = ["/data/VOC2012", "/other/VOC2012"].map(|root| name(&[("dataset.root", root)]));
        assert!(
            roots.iter().all(|name| name.starts_with("exp+dataset.root=VOC2012-")) && roots[0] != roots[1],
            "{roots:?}"
        );
        let lists = ["[\"a\", \"b\"]", "[\"a\",  \"b\"]"].map(|list| name(&[("dataset.exclude", list)]));
        assert!(lists.iter().all(|name| !name.contains(['[', '"', ' '])) && lists[0] != lists[1], "{lists:?}");
        assert!(name(&[("dataset.train", &"n".repeat(300))]).len() < 120);
        for value in ["..", ".", "/", "../..", ""] {
            assert!(!name(&[("dataset.train", value)]).contains('/'), "{value}");
        }
    }

    #[test]
    fn two_files_of_one_name_have_two_folders() {
        let dir = tempfile::tempdir().unwrap();
        let (out, file) = (dir.path().join("out"), |name: &str| dir.path().join(name));
        for folder in ["a", "b"] {
            fs::create_dir(file(folder)).unwrap();
            fs::write(file(folder).join("exp.toml"), "").unwrap();
        }
        let pipeline = |sets: &[(&str, &str)]| Pipeline {
            name: "exp".into(),
            cells: Vec::new(),
            files: Vec::new(),
            sets: sets.iter().map(|(field, value)| ((*field).to_owned(), (*value).to_owned())).collect(),
        };
        let of = |folder: &str| OutFolder::of(&out, &pipeline(&[]), &file(folder).join("exp.toml"));
        let claim = |of: &OutFolder| {
            let asked = Asked { option: "--out DIR", force: false };
            of.claim(&ResultsFolder::look(&of.path, asked, Reads::default()).unwrap()).unwrap();
        };
        let first = of("a");
        assert_eq!((&first.path, first.note()), (&out.join("exp"), None));
        claim(&first);
        assert_eq!(of("a").path, first.path);
        let second = of("b");
        assert!(second.path != first.path && second.note().unwrap().contains("a/exp.toml"));
        claim(&second);
        assert_eq!((of("a").path, of("b").path), (first.path.clone(), second.path));
        // A file that moved keeps its folder, and one that is gone leaves it.
        fs::rename(file("a/exp.toml"), file("a/moved.toml")).unwrap();
        assert_eq!(OutFolder::of(&out, &pipeline(&[]), &file("a/moved.toml")).path, first.path);
        let way = relative(Path::new("/p/out/exp"), Path::new("/p/a/exp.toml"));
        assert_eq!(way, Path::new("../../a/exp.toml"));
    }
}
