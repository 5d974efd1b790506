//! Files by id: a folder is listed once, and a file is found under the names that people give it.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use super::text::shown_of;

/// How the names of images that are read end, in small letters.
const READ: [&str; 3] = ["jpg", "jpeg", "png"];
/// How those of other formats end: they are found and then named as what they are.
const OTHER: [&str; 12] = ["bmp", "tif", "tiff", "gif", "webp", "jfif", "jpe", "ppm", "pgm", "mat", "npy", "heic"];
/// Names of the mask of `ID`, beside `ID` itself, in whatever letters.
const MASK_NAMES: [&str; 14] = [
    "ID_mask", "ID-mask", "ID.mask", "IDmask", "ID_masks", "ID_label", "ID_labels", "ID_seg", "ID_segmentation", "ID_gt",
    "ID_annotation", "ID_labelIds", "mask_ID", "label_ID",
];

/// The files of a folder.
pub(super) struct Folder {
    pub(super) path: PathBuf,
    names: HashSet<String>,
    /// By name in small letters.
    folded: BTreeMap<String, Vec<String>>,
}

/// Without the ending of an image, in whatever letters: `a.JPG` is `a`, `img.v1.0` stays.
pub(super) fn stem(name: &str) -> &str {
    match name.rsplit_once('.') {
        Some((stem, ending)) if !stem.is_empty() && is_picture_ending(ending) => stem,
        _ => name,
    }
}

fn is_picture_ending(ending: &str) -> bool {
    let ending = ending.to_lowercase();
    READ.contains(&&*ending) || OTHER.contains(&&*ending)
}

/// The name ends as that of an image.
pub(super) fn is_picture(name: &str) -> bool {
    stem(name) != name
}

/// The last part of a path of any system.
pub(super) fn file_name(path: &str) -> &str {
    path.rsplit(['/', '\\']).next().unwrap_or(path)
}

impl Folder {
    /// Of a folder that is not there, nothing.
    pub(super) fn list(path: &Path) -> Self {
        let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
        // What is no file is found by no id: opening a pipe would wait for ever.
        let is_file = |entry: &std::fs::DirEntry| match entry.file_type() {
            Ok(kind) if kind.is_symlink() => entry.path().is_file(),
            kind => kind.is_ok_and(|kind| kind.is_file()),
        };
        let files = entries.filter(is_file);
        let names: HashSet<String> = files.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        let mut folded: BTreeMap<String, Vec<String>> = BTreeMap::new();
        names.iter().for_each(|name| folded.entry(name.to_lowercase()).or_default().push(name.clone()));
        Self { path: path.to_owned(), names, folded }
    }

    /// Names of images in it, in order.
    pub(super) fn pictures(&self) -> Vec<&str> {
        let shown = self.names.iter().filter(|name| !name.starts_with('.') && is_picture(name));
        let mut names: Vec<&str> = shown.map(String::as_str).collect();
        names.sort_unstable();
        names
    }

    /// Some file has this id.
    pub(super) fn has(&self, id: &str) -> bool {
        READ.iter().chain(&OTHER).any(|ending| self.folded.contains_key(&format!("{id}.{ending}").to_lowercase()))
    }

    /// The one file of a name, in these letters or in others.
    fn one_of(&self, names: &[String]) -> Result<Option<&str>, String> {
        let exact: Vec<&str> = names.iter().filter_map(|name| self.names.get(name)).map(String::as_str).collect();
        if let [one] = exact[..] {
            return Ok(Some(one));
        }
        let mut found = exact;
        if found.is_empty() {
            let folded = names.iter().filter_map(|name| self.folded.get(&name.to_lowercase()));
            found = folded.flatten().map(String::as_str).collect();
        }
        found.sort_unstable();
        found.dedup();
        match found[..] {
            [] => Ok(None),
            [one] => Ok(Some(one)),
            _ => {
                let found: Vec<String> = found.iter().map(|name| format!("`{}`", shown_of(name))).collect();
                Err(format!("{} could each be it in `{}`; keep one of them", found.join(" and "), self.path.display()))
            }
        }
    }

    /// The file of a name, in whatever letters.
    pub(super) fn file(&self, name: &str) -> Result<Option<PathBuf>, String> {
        Ok(self.one_of(&[name.to_owned()])?.map(|name| self.path.join(name)))
    }

    /// The image of an id; `named`: the file as a table names it.
    pub(super) fn image(&self, id: &str, named: Option<&str>) -> Result<PathBuf, String> {
        let of = |endings: &[&str]| endings.iter().map(|ending| format!("{id}.{ending}")).collect::<Vec<_>>();
        let named: Vec<String> = named.map(str::to_owned).into_iter().collect();
        let said = |problem: String| format!("{}: {problem}", shown_of(id));
        for names in [named, of(&READ), of(&OTHER)] {
            if let Some(found) = self.one_of(&names).map_err(said)? {
                return Ok(self.path.join(found));
            }
        }
        let place = self.path.join(format!("{id}.jpg"));
        Err(format!("{}: no image `{}`{}", shown_of(id), shown_of(&place.display().to_string()), self.near(id)))
    }

    /// The mask of an id, under its name or another that can be meant; `ids`: what other images are called.
    pub(super) fn mask(&self, id: &str, image: &str, is_id: impl Fn(&str) -> bool) -> Result<Option<PathBuf>, String> {
        let stems = std::iter::once(image.to_owned()).chain(MASK_NAMES.iter().map(|form| form.replace("ID", id)));
        let others: Vec<String> = stems.filter(|stem| !is_id(stem)).map(|stem| format!("{stem}.png")).collect();
        let unread = READ[..2].iter().chain(&OTHER).map(|ending| format!("{id}.{ending}")).collect();
        for names in [vec![format!("{id}.png")], others, unread] {
            let found = self.one_of(&names).map_err(|problem| format!("{}: masks: {problem}", shown_of(id)))?;
            if let Some(found) = found {
                return Ok(Some(self.path.join(found)));
            }
        }
        Ok(None)
    }

    /// `; did you mean ..?` of the names that are most alike.
    fn near(&self, id: &str) -> String {
        const LIKE: f64 = 0.7;
        // A folder of a whole data set: comparing each missing id with all of them would take for ever.
        if self.names.len() > 20_000 {
            return String::new();
        }
        let like = |name: &&String| strsim::normalized_levenshtein(&stem(name).to_lowercase(), &id.to_lowercase());
        let best = self.names.iter().filter(|name| like(name) >= LIKE).max_by(|a, b| {
            let (a, b) = ((like(a), std::cmp::Reverse(*a)), (like(b), std::cmp::Reverse(*b)));
            a.0.total_cmp(&b.0).then(a.1.cmp(&b.1))
        });
        best.map_or(String::new(), |name| format!(", but `{}`", shown_of(name)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(names: &[&str]) -> (tempfile::TempDir, Folder) {
        let dir = tempfile::tempdir().unwrap();
        names.iter().for_each(|name| std::fs::write(dir.path().join(name), "").unwrap());
        let folder = Folder::list(dir.path());
        (dir, folder)
    }

    #[test]
    fn files_are_found_under_the_names_people_give_them() {
        for (there, id, expected) in [
            (&["a.jpg"][..], "a", Ok("a.jpg")),
            (&["a.JPG"], "a", Ok("a.JPG")),
            (&["a.jpeg"], "a", Ok("a.jpeg")),
            (&["A.Png"], "a", Ok("A.Png")),
            (&["a.bmp"], "a", Ok("a.bmp")),
            (&["a.jpg", "a.bmp"], "a", Ok("a.jpg")),
            (&["img.v1.0.jpg"], "img.v1.0", Ok("img.v1.0.jpg")),
            (&["a.jpg", "a.png"], "a", Err("a: `a.jpg` and `a.png` could each be it")),
            (&["cat_001.jpg"], "cat_01", Err("no image `DIR/cat_01.jpg`, but `cat_001.jpg`")),
            (&["zebra.jpg"], "a", Err("no image `DIR/a.jpg`")),
        ] {
            let (dir, folder) = folder(there);
            let found = folder.image(id, None);
            match (&found, expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found.file_name().unwrap(), expected),
                (Err(found), Err(expected)) => {
                    let expected = expected.replace("DIR", &dir.path().display().to_string());
                    assert!(found.contains(&expected), "{found}");
                }
                _ => panic!("{there:?} {id}: {found:?}"),
            }
        }
    }

    #[test]
    fn masks_are_found_where_one_can_be_meant() {
        for (there, expected) in [
            (&["a.png", "a_mask.png"][..], Ok(Some("a.png"))),
            (&["a.PNG"], Ok(Some("a.PNG"))),
            (&["a_mask.png"], Ok(Some("a_mask.png"))),
            (&["a_mask.PNG"], Ok(Some("a_mask.PNG"))),
            (&["a.jpg.png"], Ok(Some("a.jpg.png"))),
            (&["a.jpg"], Ok(Some("a.jpg"))),
            (&["a.tif"], Ok(Some("a.tif"))),
            (&["a_mask.png", "a_label.png"], Err("`a_label.png` and `a_mask.png` could each be it")),
            (&["a_gt.png"], Ok(None)),
            (&["b.png"], Ok(None)),
        ] {
            let (_dir, folder) = folder(there);
            // `a_gt` is an image of its own here.
            let found = folder.mask("a", "a.jpg", |stem| stem == "a_gt");
            match (&found, expected) {
                (Ok(found), Ok(expected)) => {
                    assert_eq!(found.as_ref().map(|path| path.file_name().unwrap().to_str().unwrap()), expected);
                }
                (Err(found), Err(expected)) => assert!(found.contains(expected), "{found}"),
                _ => panic!("{there:?}: {found:?}"),
            }
        }
    }
}
