//! Files by id: a folder is listed once, and a file is found under the names that people give it.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use unicode_normalization::UnicodeNormalization;

use super::scan::Fault;
use super::text::shown_of;

/// How the names of images that are read end, in small letters.
const READ: [&str; 3] = ["jpg", "jpeg", "png"];
/// How those of other formats end: they are found and then named as what they are.
const OTHER: [&str; 12] = ["bmp", "tif", "tiff", "gif", "webp", "jfif", "jpe", "ppm", "pgm", "mat", "npy", "heic"];
/// Names of the mask of `ID`, beside `ID` itself, in whatever letters.
const MASK_NAMES: [&str; 14] = [
    "ID_mask",
    "ID-mask",
    "ID.mask",
    "IDmask",
    "ID_masks",
    "ID_label",
    "ID_labels",
    "ID_seg",
    "ID_segmentation",
    "ID_gt",
    "ID_annotation",
    "ID_labelIds",
    "mask_ID",
    "label_ID",
];

/// The files of a folder. A clone shares what was listed.
#[derive(Clone, Debug)]
pub(super) struct Folder {
    pub(super) path: PathBuf,
    names: Arc<HashSet<String>>,
    /// The names by themselves as [`folded`].
    folded: Arc<BTreeMap<String, Vec<String>>>,
    /// What each name that is no file stands for.
    others: Arc<BTreeMap<String, &'static str>>,
}

/// What a folder is among [`Folder::others`].
const A_FOLDER: &str = "a folder";

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
        let (mut names, mut others) = (HashSet::new(), BTreeMap::new());
        for entry in entries {
            let Ok(name) = entry.file_name().into_string() else { continue };
            let Ok(mut kind) = entry.file_type() else { continue };
            if kind.is_symlink() {
                match entry.path().metadata() {
                    Ok(of) => kind = of.file_type(),
                    Err(_) => {
                        others.insert(name, "a link to a file that is not there");
                        continue;
                    }
                }
            }
            // What is no file is found by no id: opening a pipe would wait for ever.
            match kind {
                kind if kind.is_file() => drop(names.insert(name)),
                kind if kind.is_dir() => drop(others.insert(name, A_FOLDER)),
                _ => drop(others.insert(name, "no regular file")),
            }
        }
        let mut folded: BTreeMap<String, Vec<String>> = BTreeMap::new();
        names.iter().for_each(|name| folded.entry(self::folded(name)).or_default().push(name.clone()));
        Self { path: path.to_owned(), names: names.into(), folded: folded.into(), others: others.into() }
    }

    /// Names of the folders in it, hidden ones left out.
    pub(super) fn folders(&self) -> impl Iterator<Item = &str> {
        let others = self.others.iter().filter(|(name, what)| **what == A_FOLDER && !name.starts_with('.'));
        others.map(|(name, _)| name.as_str())
    }

    /// The place of a folder in it, in whatever letters; as named where there is none, or more than one.
    pub(super) fn folder(&self, name: &str) -> PathBuf {
        let alike: Vec<&str> = self.folders().filter(|other| other.eq_ignore_ascii_case(name)).collect();
        match alike[..] {
            [one] if !self.others.contains_key(name) => self.path.join(one),
            _ => self.path.join(name),
        }
    }

    /// Names of the files in it, hidden ones left out.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.names.iter().filter(|name| !name.starts_with('.')).map(String::as_str)
    }

    /// Names of images in it, in order.
    pub(super) fn pictures(&self) -> Vec<&str> {
        let shown = self.names.iter().filter(|name| !name.starts_with('.') && is_picture(name));
        let mut names: Vec<&str> = shown.map(String::as_str).collect();
        names.sort_unstable();
        names
    }

    pub(super) fn has_file(&self, name: &str) -> bool {
        self.names.contains(name)
    }

    /// Some file has this id.
    pub(super) fn has(&self, id: &str) -> bool {
        READ.iter().chain(&OTHER).any(|ending| self.folded.contains_key(&folded(&format!("{id}.{ending}"))))
    }

    /// The one file of a name, in these letters, with its ending in others, or all in others.
    fn one_of(&self, names: &[String]) -> Result<Option<&str>, String> {
        let alike = names.iter().filter_map(|name| self.folded.get(&self::folded(name)));
        let all: Vec<&str> = alike.flatten().map(String::as_str).collect();
        let is_own = |name: &&str| names.iter().any(|own| stem(own) == stem(name));
        let mut found: Vec<&str> = all.iter().copied().filter(is_own).collect();
        if found.is_empty() {
            found = all;
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
        if self.names.contains(name) {
            return Ok(Some(self.path.join(name)));
        }
        Ok(self.one_of(&[name.to_owned()])?.map(|name| self.path.join(name)))
    }

    /// The image of an id; `named`: the file as a table names it.
    pub(super) fn image(&self, id: &str, named: Option<&str>) -> Result<PathBuf, Fault> {
        let of = |endings: &[&str]| endings.iter().map(|ending| format!("{id}.{ending}")).collect::<Vec<_>>();
        if let Some(named) = named.filter(|named| self.names.contains(*named)) {
            return Ok(self.path.join(named));
        }
        let named: Vec<String> = named.map(str::to_owned).into_iter().collect();
        let said = |problem: String| Fault::from(format!("{}: {problem}", shown_of(id)));
        for names in [named, of(&READ), of(&OTHER)] {
            if let Some(found) = self.one_of(&names).map_err(said)? {
                return Ok(self.path.join(found));
            }
        }
        let place = self.path.join(format!("{id}.jpg"));
        let problem = format!("{}: no image `{}`", shown_of(id), shown_of(&place.display().to_string()));
        Err(Fault::missing(problem, self, id))
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
        match self.others.get(&format!("{id}.png")) {
            Some(what) => Err(format!("{}: masks: `{}.png` is {what}", shown_of(id), shown_of(id))),
            None => Ok(None),
        }
    }

    /// What is there where no image has an id: something that is no file, one in a folder below, a name that is alike.
    pub(super) fn instead(&self, id: &str) -> String {
        let is_of_id = |(name, what): &(&String, &&str)| **what != A_FOLDER && stem(name) == id;
        if let Some((name, what)) = self.others.iter().find(is_of_id) {
            return format!(", and `{}` is {what}", shown_of(name));
        }
        for folder in self.folders().take(100) {
            for ending in READ {
                let name = format!("{folder}/{id}.{ending}");
                if self.path.join(&name).is_file() {
                    return format!(", but `{}`: images are looked for in the folder itself", shown_of(&name));
                }
            }
        }
        self.near(id)
    }

    /// `, but ..` the name that is most alike.
    fn near(&self, id: &str) -> String {
        const LIKE: f64 = 0.7;
        // Comparing an id with the names of a whole data set takes too long.
        if self.names.len() > 20_000 {
            return String::new();
        }
        let (bare_id, small_id) = (bare(id), id.to_lowercase());
        let likeness = |name: &str| match bare(stem(name)) == bare_id && !bare_id.is_empty() {
            true => 1.0,
            false => strsim::normalized_levenshtein(&stem(name).to_lowercase(), &small_id),
        };
        let near =
            self.names.iter().map(|name| (likeness(name), Reverse(name))).filter(|(likeness, _)| *likeness >= LIKE);
        let nearest = near.max_by(|a, b| a.0.total_cmp(&b.0).then_with(|| a.1.cmp(&b.1)));
        nearest.map_or_else(
            || foreign_letter(id),
            |(_, Reverse(name))| format!(", but `{}`{}", shown_of(name), letter(id, name)),
        )
    }
}

/// A letter of one of two names that looks as another does, as the Cyrillic `а` does.
pub(super) fn letter(id: &str, name: &str) -> String {
    let of = |own: &str, other: &str| own.chars().find(|c| c.is_alphabetic() && !c.is_ascii() && !other.contains(*c));
    let found = of(id, name).or_else(|| of(name, id));
    found.map_or(String::new(), |c| format!(" (`{c}` is the letter U+{:04X})", u32::from(c)))
}

/// A letter of another script in an id that would else look Latin: Greek, Cyrillic, or of full width.
fn foreign_letter(id: &str) -> String {
    let found = id.chars().find(|c| matches!(c, '\u{370}'..='\u{52f}' | '\u{ff00}'..='\u{ffef}'));
    found
        .filter(|_| id.chars().any(|c| c.is_ascii_alphanumeric()))
        .map_or(String::new(), |c| format!(" (`{c}` is the letter U+{:04X})", u32::from(c)))
}

/// In small letters, and with each accent in one character with its letter: macOS writes it as one of its own.
fn folded(name: &str) -> String {
    name.nfc().flat_map(char::to_lowercase).collect()
}

/// A name as it sounds: `Cat-01` and `cat_1` are one.
fn bare(name: &str) -> String {
    let mut bare = String::new();
    for c in name.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase) {
        let is_number = |c: char| c.is_ascii_digit();
        if c == '0' && !bare.ends_with(is_number) {
            continue;
        }
        bare.push(c);
    }
    bare
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
            (&["a.jpeg", "a.JPG"], "a", Err("a: `a.JPG` and `a.jpeg` could each be it")),
            (&["a.jpg", "A.jpg"], "a", Ok("a.jpg")),
            (&["caf\u{e9}.jpg"], "cafe\u{301}", Ok("caf\u{e9}.jpg")),
            (&["cafe\u{301}.JPG"], "caf\u{e9}", Ok("cafe\u{301}.JPG")),
            (&["image_cat.jpg"], "image_c\u{430}t", Err("but `image_cat.jpg` (`\u{430}` is the letter U+0430)")),
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
                    assert!(found.said().contains(&expected), "{}", found.said());
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
