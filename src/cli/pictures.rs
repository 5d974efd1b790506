//! Pictures of the user's own, for `segment` and `predict`: found in files and folders, told apart, read upright. One that
//! cannot be read ends nothing; at the end all of these are named.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::bail;

use super::Hinted;
use super::results_folder::{Asked, Reads, ResultsFolder};
use crate::data::Bytes;
use crate::data::door::{Format, read_regular};
use crate::data::image::{Orientation, TURNED, decode_rgb};
use crate::data::text::counted;
use crate::pipeline::names::{digits_of, printable, shortened};
use crate::vision::Rgb;

/// Bytes of a picture's file.
const MOST_BYTES: u64 = 4_000_000_000;
/// Bytes of the part of a result's name that is the picture's.
const MOST_NAME: usize = 200;
/// Files named in a line.
const N_NAMED: usize = 5;
/// Endings of names that promise a picture that is read.
const ENDINGS: [&str; 4] = ["jpg", "jpeg", "jpe", "png"];

/// A picture and what its results are called.
#[derive(Clone, Debug)]
pub(super) struct Picture {
    pub(super) path: PathBuf,
    name: String,
}

impl Picture {
    /// The name of a result that ends so: `.png`, `_overlay.png`.
    pub(super) fn result(&self, ending: &str) -> String {
        format!("{}{ending}", self.name)
    }

    /// What its results are made from: itself, by whatever path.
    pub(super) fn source(&self) -> String {
        let path = fs::canonicalize(&self.path).unwrap_or_else(|_| self.path.clone());
        format!("`{}`", path.display())
    }
}

/// Pictures that were asked for.
#[derive(Debug)]
pub(super) struct Pictures {
    pub(super) list: Vec<Picture>,
    /// Files and folders that gave none, and why.
    failed: Vec<(PathBuf, String)>,
    /// What was left out of folders, a line a folder.
    pub(super) notes: Vec<String>,
}

/// A picture as a viewer shows it.
pub(super) struct Upright {
    pub(super) image: Rgb,
    /// A file of these pixels.
    pub(super) bytes: Bytes,
    pub(super) was_turned: bool,
}

/// That pictures were turned.
pub(super) fn note_turned(n_turned: usize) -> String {
    let were = if n_turned == 1 { "was" } else { "were" };
    format!("{} {were} turned upright, as the EXIF orientation says", counted(n_turned, "picture"))
}

/// Reads a picture and turns it as its EXIF orientation says.
pub(super) fn read_picture(path: &Path) -> anyhow::Result<Upright> {
    let bytes = read_regular(path, MOST_BYTES).map_err(|error| anyhow::anyhow!("could not be read: {error}"))?;
    match Format::of(&bytes) {
        Format::Jpeg | Format::Png => {}
        Format::OtherPicture(what) => bail!("is {what}; JPEG and PNG are read"),
        Format::NoPicture(what) => bail!("is {what}, no picture"),
    }
    let was_turned = !Orientation::of(&bytes).is_upright();
    let bytes = if was_turned { [TURNED, &bytes].concat() } else { bytes };
    Ok(Upright { image: decode_rgb(&bytes)?, bytes: bytes.into(), was_turned })
}

impl Pictures {
    /// The pictures that `given` names, files or folders, each once. A result of one is in `to`, a name with one of `endings`.
    ///
    /// # Errors
    /// Results would be pictures the next time, or two would have one name.
    pub(super) fn find(given: &[PathBuf], to: &Path, endings: &[&str]) -> anyhow::Result<Self> {
        let mut found = Self { list: Vec::new(), failed: Vec::new(), notes: Vec::new() };
        let mut paths: Vec<PathBuf> = Vec::new();
        for path in given {
            match path.is_dir() {
                true => paths.extend(found.of_folder(path, to)?),
                false => match Format::of_file(path) {
                    Ok(Format::Jpeg | Format::Png) => paths.push(path.clone()),
                    Ok(Format::OtherPicture(what)) => {
                        found.fail(path, format!("is {what}; JPEG and PNG are read"));
                    }
                    Ok(Format::NoPicture(what)) => found.fail(path, format!("is {what}, no picture")),
                    Err(error) => found.fail(path, format!("could not be read: {error}")),
                },
            }
        }
        let mut seen = HashSet::new();
        paths.retain(|path| fs::canonicalize(path).is_ok_and(|real| seen.insert(real)));
        let names = told_apart(&paths, endings)?;
        let pictures = paths.into_iter().zip(names).map(|(path, name)| Picture { path, name });
        found.list = pictures.collect();
        Ok(found)
    }

    /// The pictures in a folder, by name.
    fn of_folder(&mut self, folder: &Path, to: &Path) -> anyhow::Result<Vec<PathBuf>> {
        if let (Ok(folder), Ok(to)) = (fs::canonicalize(folder), fs::canonicalize(to))
            && folder == to
        {
            let message = format!("results in `{}` would be read as pictures the next time", to.display());
            return Err(Hinted::error(message, "give another folder: --to DIR"));
        }
        let entries = fs::read_dir(folder).and_then(|entries| entries.collect::<Result<Vec<_>, _>>());
        let mut entries: Vec<PathBuf> = match entries {
            Ok(entries) => entries.into_iter().map(|entry| entry.path()).collect(),
            Err(error) => {
                self.fail(folder, format!("could not be read: {error}"));
                return Ok(Vec::new());
            }
        };
        entries.sort();
        let (mut pictures, mut skipped, mut n_failed) = (Vec::new(), Vec::new(), 0);
        for path in entries {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let ending = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
            let format = Format::of_file(&path);
            // A file whose name promises a picture is missed by whoever put it there.
            let is_missed = !name.starts_with('.') && path.is_file() && ENDINGS.contains(&ending.as_str());
            match format {
                Ok(Format::Jpeg | Format::Png) if !name.starts_with("._") => pictures.push(path),
                Ok(Format::OtherPicture(what)) if !name.starts_with('.') => {
                    self.fail(&path, format!("is {what}; JPEG and PNG are read"));
                    n_failed += 1;
                }
                Ok(Format::NoPicture(what)) if is_missed => {
                    self.fail(&path, format!("is {what}, no picture"));
                    n_failed += 1;
                }
                Err(error) if is_missed => {
                    self.fail(&path, format!("could not be read: {error}"));
                    n_failed += 1;
                }
                _ if path.is_dir() => skipped.push(format!("{name}/")),
                _ => skipped.push(name),
            }
        }
        if pictures.is_empty() && n_failed == 0 {
            self.fail(folder, "has no picture".into());
        }
        if !skipped.is_empty() {
            let named = skipped.iter().take(N_NAMED).cloned().collect::<Vec<_>>().join(", ");
            let more = if skipped.len() > N_NAMED { ", .." } else { "" };
            let n_folders = skipped.iter().filter(|name| name.ends_with('/')).count();
            let folders = if n_folders > 0 { ", and folders are not looked into" } else { "" };
            self.notes.push(format!(
                "`{}`: taken {}, skipped {} that are no picture{folders}: {named}{more}",
                folder.display(),
                pictures.len(),
                skipped.len()
            ));
        }
        Ok(pictures)
    }

    /// A file or folder that gave nothing, and why.
    pub(super) fn fail(&mut self, path: &Path, why: String) {
        self.failed.push((path.to_owned(), why));
    }

    /// The folder of the results, once all of them may be written. `reads`: what is read beside the pictures.
    ///
    /// # Errors
    /// It is of somebody else, or a result would take the place of something.
    pub(super) fn results(
        &self,
        given: &[PathBuf],
        to: &Path,
        (force, mut reads): (bool, Reads),
        endings: &[&str],
    ) -> anyhow::Result<ResultsFolder> {
        let pictures = self.list.iter().map(|picture| &picture.path);
        pictures.chain(given).for_each(|path| reads.add_file(path, "a picture that was given"));
        let folder = ResultsFolder::look(to, Asked { option: "--to DIR", force }, reads)?;
        let results = |picture: &Picture| {
            let source = picture.source();
            endings.iter().map(|ending| (picture.result(ending), source.clone())).collect::<Vec<_>>()
        };
        let targets: Vec<(String, String)> = self.list.iter().flat_map(results).collect();
        folder.check(targets.iter().map(|(name, from)| (name.as_str(), from.as_str())))?;
        Ok(folder)
    }

    /// An error that names all that failed, if anything did.
    pub(super) fn end(self) -> anyhow::Result<()> {
        let Self { list, failed, .. } = self;
        let line = |(path, why): &(PathBuf, String)| {
            format!("`{}` {}", printable(&path.display().to_string(), false), printable(why, false))
        };
        let lines: Vec<String> = failed.iter().map(line).collect();
        let tried: HashSet<&PathBuf> =
            list.iter().map(|picture| &picture.path).chain(failed.iter().map(|(path, _)| path)).collect();
        let message = match &lines[..] {
            [] => return Ok(()),
            [line] if tried.len() == 1 => line.clone(),
            lines => {
                let done = if tried.len() > lines.len() { "; the others are done" } else { "" };
                format!("{} of {} pictures failed{done}:\n  {}", lines.len(), tried.len(), lines.join("\n  "))
            }
        };
        let is_other = failed.iter().any(|(_, why)| why.ends_with("JPEG and PNG are read"));
        let hint = match is_other {
            true => "save such a picture as JPEG or PNG",
            false => "give JPEG or PNG pictures, or folders of them",
        };
        Err(Hinted::error(message, hint))
    }
}

/// For each picture a name for its results: that of its file; where the results of two would have one name, with the
/// ending of the file, or the name of its folder, or both.
fn told_apart(paths: &[PathBuf], endings: &[&str]) -> anyhow::Result<Vec<String>> {
    let text = |part: Option<&std::ffi::OsStr>| part.map(|part| part.to_string_lossy().into_owned());
    let names = |path: &PathBuf| {
        let stem = text(path.file_stem()).unwrap_or_default();
        let ending = text(path.extension()).map_or(String::new(), |ending| format!("_{ending}"));
        let absolute = std::path::absolute(path).unwrap_or_else(|_| path.clone());
        let folder = absolute.parent().and_then(|folder| text(folder.file_name()));
        let folder = folder.map_or(String::new(), |folder| format!("{folder}_"));
        let digest = digits_of(&absolute.to_string_lossy());
        let names = [
            stem.clone(),
            format!("{stem}{ending}"),
            format!("{folder}{stem}"),
            format!("{folder}{stem}{ending}"),
            format!("{stem}-{digest}"),
        ];
        names.map(|name| shortened(&name, MOST_NAME))
    };
    let names: Vec<_> = paths.iter().map(names).collect();
    let mut chosen = vec![0; paths.len()];
    loop {
        // Some file systems take capital and small letters for equal.
        let mut by_result: HashMap<String, Vec<usize>> = HashMap::new();
        for (i, (names, chosen)) in names.iter().zip(&chosen).enumerate() {
            for ending in endings {
                by_result.entry(format!("{}{ending}", names[*chosen]).to_lowercase()).or_default().push(i);
            }
        }
        let clashing: HashSet<usize> = by_result.into_values().filter(|of| of.len() > 1).flatten().collect();
        if clashing.is_empty() {
            return Ok(names.into_iter().zip(chosen).map(|(names, chosen)| names[chosen].clone()).collect());
        }
        for i in clashing {
            chosen[i] += 1;
            if chosen[i] == names[i].len() {
                let message = format!("two results would have the name `{}`", names[i][0]);
                return Err(Hinted::error(message, "call it for each of the two, with a folder of its own: --to DIR"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_two_pictures_have_two_names() {
        #[rustfmt::skip]
        let cases: [(&[&str], &[&str]); 8] = [
            (&["a/1.jpg"],                              &["1"]),
            (&["img.v1.0.jpg"],                         &["img.v1.0"]),
            (&["/p/a/1.jpg", "/p/b/1.jpg", "/p/a/2.jpg"], &["a_1", "b_1", "2"]),
            (&["/p/x.jpg", "/p/x.png"],                 &["x_jpg", "x_png"]),
            (&["/p/x.jpg", "/p/X.JPG"],                 &["x-", "X-"]),
            (&["/p/x.jpg", "/p/x_overlay.jpg"],         &["x_jpg", "x_overlay_jpg"]),
            (&["/p/a/x.jpg", "/p/a/x.png", "/p/b/x.jpg"], &["a_x", "x_png", "b_x"]),
            (&["/a/i/1.jpg", "/b/i/1.jpg"],             &["1-", "1-"]),
        ];
        for (paths, expected) in cases {
            let paths: Vec<PathBuf> = paths.iter().map(PathBuf::from).collect();
            let names = told_apart(&paths, &[".png", "_overlay.png"]).unwrap();
            let fits = names.iter().zip(expected).all(|(name, expected)| match expected.ends_with('-') {
                true => name.starts_with(expected),
                false => name == expected,
            });
            assert!(fits && names.len() == expected.len(), "{paths:?}: {names:?}");
            let different: HashSet<String> = names.iter().map(|name| name.to_lowercase()).collect();
            assert_eq!(different.len(), names.len());
        }
        let long = PathBuf::from(format!("/p/{}.jpg", "n".repeat(250)));
        assert!(told_apart(&[long], &[".png"]).unwrap()[0].len() <= MOST_NAME);
    }
}
