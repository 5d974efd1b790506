//! A plain folder: `images/`, `labels.csv` and, where there is truth, `masks/`.
//!
//! ```text
//! image,split,cat,dog        a column for each class, in the order of their labels: cat is 1, dog 2
//! tom.jpg,train,1,0          1: the class is in the image; 0 or nothing: it is not
//! rex,val,0,1                with or without the ending of images/rex.jpg
//! ```
//!
//! A mask is `masks/tom.png`, a palette or grey PNG: 0 background, the labels, 255 ignored.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use super::scan::{DataError, ScanOptions, all_or_no_masks, check_folders, image, items, mask, note_unscored};
use super::{Dataset, FileMemo, Item};
use crate::vision::IGNORE;

/// How the names of pictures end.
const ENDINGS: [&str; 6] = [".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG"];

const TABLE_HINT: &str = "labels.csv has the columns `image`, `split` and one a class, which holds 1 or 0";

/// An image as its line says.
struct Line {
    split: String,
    /// The image's file name or its stem.
    image: String,
    labels: Vec<u8>,
}

/// Reads and checks a data set; `options.train` and `options.val` are values of the column `split`.
///
/// # Errors
/// What is missing, and every image that is missing, broken, without a label in training, or with a bad mask.
pub fn scan(options: &ScanOptions<'_>, memo: &dyn FileMemo) -> Result<Dataset, DataError> {
    check_folders(options)?;
    let path = options.root.join("labels.csv");
    let fault = |problem: String| DataError::File { path: path.clone(), problem, hint: TABLE_HINT };
    let (classes, lines) = read(&path).map_err(fault)?;
    let of = |split: &str, max: usize, is_train: bool| {
        let is_chosen = |line: &&Line| line.split == split && !options.exclude.iter().any(|id| id == stem(&line.image));
        let chosen = lines.iter().filter(is_chosen).take(if max > 0 { max } else { usize::MAX });
        let chosen: Vec<&Line> = chosen.collect();
        if chosen.is_empty() {
            return Err(fault(format!("no image of the split `{split}`")));
        }
        items(split, &chosen, |line| item(options, line, &classes, is_train, memo))
    };
    let (train, val) = (of(options.train, options.max_train, true)?, of(options.val, options.max_val, false)?);
    let mut notes = Vec::new();
    note_unscored(options.train, &train, &mut notes);
    all_or_no_masks(options.val, &val, &mut notes)?;
    Ok(Dataset { name: options.name.to_owned(), classes, train, val, notes })
}

/// Class names, background first, and the lines.
fn read(path: &Path) -> Result<(Vec<String>, Vec<Line>), String> {
    let options = csv::ReaderBuilder::new().trim(csv::Trim::All).from_path(path);
    let mut table = options.map_err(|error| error.to_string())?;
    let header = table.headers().map_err(|error| error.to_string())?.clone();
    let column = |name: &str| header.iter().position(|head| head == name);
    let find = |name: &str| column(name).ok_or_else(|| format!("no column `{name}`"));
    let (image_at, split_at) = (find("image")?, find("split")?);
    let class_at: Vec<usize> = (0..header.len()).filter(|&at| at != image_at && at != split_at).collect();
    if class_at.is_empty() || class_at.len() >= usize::from(IGNORE) {
        return Err(format!("{} columns of classes; there can be 1 to 254", class_at.len()));
    }
    let mut classes = vec!["background".to_owned()];
    for &at in &class_at {
        let name = header[at].to_owned();
        if name.is_empty() || classes.contains(&name) {
            return Err(format!("column {} is named `{name}`; a class needs a name of its own", at + 1));
        }
        classes.push(name);
    }
    let (mut seen, mut lines) = (HashSet::new(), Vec::new());
    for record in table.records() {
        let record = record.map_err(|error| error.to_string())?;
        let place = record.position().map_or(0, csv::Position::line);
        let mut labels = Vec::new();
        for (label, &at) in (1..).zip(&class_at) {
            match &record[at] {
                "1" => labels.push(label),
                "0" | "" => {}
                other => {
                    return Err(format!(
                        "line {place}: `{other}` in the column `{}`, which is no column of a class or a typing error",
                        &header[at]
                    ));
                }
            }
        }
        let (image, split) = (record[image_at].to_owned(), record[split_at].to_owned());
        if !seen.insert(stem(&image).to_owned()) {
            return Err(format!("line {place}: `{}` stands twice", stem(&image)));
        }
        lines.push(Line { split, image, labels });
    }
    Ok((classes, lines))
}

/// Without the ending of a picture.
fn stem(image: &str) -> &str {
    ENDINGS.iter().find_map(|ending| image.strip_suffix(ending)).unwrap_or(image)
}

fn item(
    options: &ScanOptions<'_>,
    line: &Line,
    classes: &[String],
    is_train: bool,
    memo: &dyn FileMemo,
) -> Result<Item, String> {
    let id = stem(&line.image);
    if id.is_empty() || id.contains('/') {
        return Err(format!("`{}`: `image` is the name of a file in images/, without `/`", line.image));
    }
    let images = options.root.join("images");
    let names = std::iter::once(line.image.clone()).chain(ENDINGS.iter().map(|ending| format!("{id}{ending}")));
    let found: Option<PathBuf> = names.map(|name| images.join(name)).find(|path| path.is_file());
    let Some(found) = found else { return Err(format!("{id}: no image `{}`", images.join(&line.image).display())) };
    let (image, size) = image(&found, memo)?;
    if is_train && line.labels.is_empty() {
        return Err(format!("{id}: a training image without a label: its line in labels.csv has no 1"));
    }
    let png = options.root.join(options.masks.unwrap_or(Path::new("masks"))).join(format!("{id}.png"));
    let mask = if png.exists() { Some(mask((id, &png), &size, classes.len(), memo)?.0) } else { None };
    let (height, width) = (size.height, size.width);
    Ok(Item { id: id.to_owned(), image, mask, labels: line.labels.clone(), height, width })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::scan::tests::{NoMemo, options};
    use super::*;
    use crate::data::image::{encode_label_map, encode_rgb};
    use crate::vision::{Grid, Rgb};

    const TABLE: &str = "image,split,cat,\"dog, large\"\na.png,train,1,\nb,train, 1,1\nc,val,0,0\n";

    fn folder(table: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("images")).unwrap();
        fs::create_dir(dir.path().join("masks")).unwrap();
        fs::write(dir.path().join("labels.csv"), table).unwrap();
        let image = Rgb { height: 3, width: 4, data: vec![9; 36] };
        for id in ["a", "b", "c"] {
            fs::write(dir.path().join(format!("images/{id}.png")), encode_rgb(&image)).unwrap();
        }
        put_mask(&dir, "a", 2);
        dir
    }

    fn put_mask(dir: &tempfile::TempDir, id: &str, label: u8) {
        fs::write(dir.path().join(format!("masks/{id}.png")), encode_label_map(&Grid::filled(3, 4, label))).unwrap();
    }

    #[test]
    fn a_good_folder() {
        let dir = folder(TABLE);
        let dataset = scan(&options(dir.path()), &NoMemo).unwrap();
        assert_eq!(dataset.classes, ["background", "cat", "dog, large"]);
        let labels: Vec<_> = dataset.train.iter().map(|item| (item.id.as_str(), item.labels.as_slice())).collect();
        assert_eq!(labels, [("a", &[1][..]), ("b", &[1, 2])]);
        assert_eq!(
            dataset.notes,
            [
                "1 of 2 train images have no mask: seeds and pseudo-labels are scored without them",
                "no val image has a mask: predictions are made, but not scored",
            ]
        );
    }

    #[test]
    fn endings_may_be_in_capitals() {
        let dir = folder(&TABLE.replace("a.png", "a.PNG").replace("b,", "b.PNG,"));
        for id in ["a", "b"] {
            let place = |ending: &str| dir.path().join(format!("images/{id}.{ending}"));
            fs::rename(place("png"), place("PNG")).unwrap();
        }
        let dataset = scan(&options(dir.path()), &NoMemo).unwrap();
        assert_eq!((dataset.train[0].id.as_str(), dataset.train[0].mask.is_some()), ("a", true));
    }

    #[test]
    fn bad_folders_are_named() {
        let table = |from: &str, to: &str| folder(&TABLE.replace(from, to));
        let unknown_label = folder(TABLE);
        put_mask(&unknown_label, "c", 3);
        let no_table = folder(TABLE);
        fs::remove_file(no_table.path().join("labels.csv")).unwrap();
        for (dir, expected, hint) in [
            (
                table("large\"\na.png,train,1,", "large\"\na.png,train,1,dark"),
                "line 2: `dark` in the column `dog, large`",
                TABLE_HINT,
            ),
            (table("split", "set"), "labels.csv`: no column `split`", TABLE_HINT),
            (table("\"dog, large\"", "cat"), "column 4 is named `cat`; a class needs a name of its own", TABLE_HINT),
            (table("b,train", "a,train"), "labels.csv`: line 3: `a` stands twice", TABLE_HINT),
            (table(",val", ",test"), "no image of the split `val`", TABLE_HINT),
            (table("c,val,0,0", "c,val,0"), "found record with 3 fields", TABLE_HINT),
            (no_table, "labels.csv`: No such file", TABLE_HINT),
            (table("b,train", "d,train"), "1 of 2 train images cannot be used:\n  d: no image `", "dataset.exclude"),
            (table("b,train, 1,1", "b,train,0,0"), "b: a training image without a label", "dataset.exclude"),
            (unknown_label, "has class 3; known are 0..=2 and 255", "dataset.exclude"),
        ] {
            let error = scan(&options(dir.path()), &NoMemo).unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
            assert!(error.hint().contains(hint), "{}", error.hint());
        }
    }
}
