//! A plain folder: `images/`, `labels.csv` and, where there is truth, `masks/`.
//!
//! ```text
//! image,split,cat,dog        a column for each class, in the order of their labels: cat is 1, dog 2
//! tom.jpg,train,1,0          1: the class is in the image; 0 or nothing: it is not
//! rex,val,0,1                with or without the ending of images/rex.jpg
//! ```
//!
//! A mask is `masks/tom.png`, a palette or grey PNG: 0 background, the labels, 255 ignored. The table is read as
//! spreadsheets and pandas write it, where what they wrote has one reading: see [`read`].

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;

use super::find::{Folder, file_name, is_picture, letter, stem};
use super::scan::{
    DataError, Draft, Exclude, Fault, Finish, Finished, MaskDraft, Picture, ScanOptions, check_folders, each,
    images_in, names_alike, note_names, read_text, some_of,
};
use super::text::{are, check_name, clean, counted, is_background, lines, shown_of, split_line, unseen};
use super::{Dataset, FileMemo};
use crate::regular;
use crate::vision::IGNORE;

const IMAGES: &str = "images";
const MASKS: &str = "masks";
/// How the names of other tables end.
const TABLE_ENDINGS: [&str; 6] = [".csv", ".tsv", ".txt", ".xlsx", ".xls", ".ods"];
/// Names of a column that holds the names or numbers of classes.
const CLASS_COLUMNS: [&str; 8] = ["label", "labels", "class", "classes", "class_id", "category", "target", "tags"];
const TABLE_HINT: &str = "labels.csv has the columns `image`, `split` and one a class, which holds 1 or 0";
/// What may stand between columns, with its name.
const SEPARATORS: [(u8, &str); 4] = [(b',', ","), (b';', ";"), (b'\t', "tab"), (b'|', "|")];
/// Other names of the column `image`.
const IMAGE_NAMES: [&str; 8] =
    ["filename", "file_name", "file", "image_name", "image_path", "image_file", "image_id", "img"];

/// An image as its line says.
struct Line {
    split: String,
    /// Its file's name, with or without the ending.
    image: String,
    labels: Vec<u8>,
}

impl Line {
    fn id(&self) -> &str {
        stem(&self.image)
    }
}

/// labels.csv as it was read.
struct Table {
    /// Background first.
    classes: Vec<String>,
    lines: Vec<Line>,
    /// What was decided: separator, encoding, columns left out.
    read_as: Vec<String>,
    /// Some of it is no plain table of this kind.
    is_odd: bool,
}

/// What is wrong with the table, and what to do about it.
struct TableFault {
    problem: String,
    hint: String,
}

impl TableFault {
    fn new(problem: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { problem: problem.into(), hint: hint.into() }
    }
}

/// Reads and checks a data set; `options.train` and `options.val` are values of the column `split`.
///
/// # Errors
/// What is missing, and every image that is missing, broken, without a label in training, or with a bad mask.
pub fn scan(options: &ScanOptions<'_>, memo: &dyn FileMemo) -> Result<Dataset, DataError> {
    check_folders(options)?;
    let root = Folder::list(options.root);
    let path = table_in(&root)?;
    let text = read_text(&path)?;
    let fault = |TableFault { problem, hint }| DataError::file(&path, problem, hint);
    let Table { classes, lines, mut read_as, is_odd } = read(&text.text).map_err(fault)?;
    read_as.extend(text.encoding.clone());
    let images = images_in(&root, IMAGES)?;
    let masks = Folder::list(&options.masks.map_or_else(|| root.folder(MASKS), |masks| options.root.join(masks)));

    let exclude = Exclude::new(options);
    let splits = Splits::of(&lines, [options.train, options.val]);
    let of = |k: usize, max: usize| {
        let Some(name) = splits.named[k] else {
            let asked = [options.train, options.val][k];
            let problem = format!("no image of the split `{}`", shown_of(asked));
            let field = ["dataset.train", "dataset.val"][k];
            let hint = match splits.begins_as(asked) {
                Some(other) if !letter(other, asked).is_empty() => format!(
                    "write `{}` in the column `split` anew: it looks like `{}`, and is not it{}",
                    shown_of(other),
                    shown_of(asked),
                    letter(other, asked)
                ),
                Some(other) => {
                    format!("write `{field} = \"{}\"`; the column `split` has: {}", shown_of(other), splits.all())
                }
                None => format!("set `{field}` to a value of the column `split`, which has: {}", splits.all()),
            };
            return Err(DataError::file(&path, problem, hint));
        };
        let is_chosen = |line: &&Line| line.split == name && !exclude.has(line.id());
        let chosen = lines.iter().filter(is_chosen).take(if max > 0 { max } else { usize::MAX });
        let chosen: Vec<&Line> = chosen.collect();
        if chosen.is_empty() {
            let problem = format!("no image of the split `{}` is left", shown_of(name));
            return Err(DataError::file(&path, problem, "`dataset.exclude` names all of them"));
        }
        Ok(chosen)
    };
    let (train, val) = (of(0, options.max_train)?, of(1, options.max_val)?);
    let ids: HashSet<&str> = lines.iter().map(Line::id).collect();
    let is_id = |id: &str| ids.contains(id);
    let draft = |line: &&Line| draft(line, [&images, &masks], &is_id, memo);
    let drafts = (each(options.train, &train, draft)?, each(options.val, &val, draft)?);

    let mut notes: Vec<String> = exclude.note().into_iter().collect();
    note_names(
        [(&images, IMAGES), (&masks, MASKS)].into_iter().take(2 - usize::from(options.masks.is_some())),
        &mut notes,
    );
    notes.extend(masks_elsewhere(options, &root, &masks));
    notes.extend(names_alike("labels.csv", &classes[1..]));
    if is_odd || text.encoding.is_some() {
        notes.push(format!("labels.csv: {}", read_as.join("; ")));
    }
    notes.extend(splits.notes([options.train, options.val]));
    notes.extend(unnamed(&images, &ids, "images"));
    notes.extend(beside(&images, &masks, &drafts.0));
    let used: HashSet<String> = drafts.0.iter().chain(&drafts.1).filter_map(used_mask).collect();
    notes.extend(unused_masks(&masks, &ids, &used));
    let finish = Finish {
        options,
        classes: &classes,
        is_voc: false,
        // What people draw masks with shows images as they are seen.
        turned_by_default: true,
        label_file: "labels.csv",
    };
    let Finished { train, val, notes: of_items, mut decided } = finish.finish(drafts.0, drafts.1)?;
    let list = format!("labels.csv has {}: {}; {}", counted(lines.len(), "image"), splits.all(), read_as.join("; "));
    decided.insert(0, ("lists", list));
    notes.extend(of_items);
    Ok(Dataset { name: options.name.to_owned(), classes, train, val, notes, decided })
}

/// The values of the column `split` and which of them are the lists that are asked for.
struct Splits<'a> {
    counts: BTreeMap<&'a str, usize>,
    /// Of training and validation images.
    named: [Option<&'a str>; 2],
}

impl<'a> Splits<'a> {
    fn of(lines: &'a [Line], asked: [&str; 2]) -> Self {
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        lines.iter().for_each(|line| *counts.entry(&line.split).or_default() += 1);
        let named = asked.map(|asked| {
            let exact = counts.keys().find(|split| **split == asked);
            let mut folded = counts.keys().filter(|split| split.to_lowercase() == asked.to_lowercase());
            exact.or_else(|| folded.next().filter(|_| folded.next().is_none())).copied()
        });
        Self { counts, named }
    }

    /// A split that may be called so: `validation` for `val`.
    fn begins_as(&self, asked: &str) -> Option<&'a str> {
        let is_one = |split: &&&str| {
            let split = split.to_lowercase();
            let like = strsim::normalized_damerau_levenshtein(&split, asked);
            !split.is_empty() && (split.starts_with(asked) || asked.starts_with(&split) || like >= 0.7)
        };
        self.counts.keys().find(is_one).copied()
    }

    fn all(&self) -> String {
        if self.counts.is_empty() {
            return "no line".to_owned();
        }
        let shown = self.counts.iter().map(|(split, n)| match split.is_empty() {
            true => format!("{n} with no split"),
            false => format!("{} {n}", shown_of(split)),
        });
        shown.collect::<Vec<_>>().join(", ")
    }

    fn notes(&self, asked: [&str; 2]) -> Vec<String> {
        let mut notes = Vec::new();
        for (asked, named) in asked.iter().zip(self.named) {
            if let Some(named) = named.filter(|named| named != asked) {
                notes.push(format!("labels.csv: the split `{}` is read as `{asked}`", shown_of(named)));
            }
        }
        for (split, n) in self.counts.iter().filter(|(split, _)| !self.named.contains(&Some(**split))) {
            let like = |name: &&str| strsim::normalized_damerau_levenshtein(name, &split.to_lowercase());
            let near = asked.iter().filter(|name| like(name) >= 0.7).max_by(|a, b| like(a).total_cmp(&like(b)));
            let typing = near.map_or(String::new(), |near| format!(" (a typing error of `{near}`?)"));
            let of = match split.is_empty() {
                true => "no split".to_owned(),
                false => format!("the split `{}`", shown_of(split)),
            };
            let have = if n == &1 { "1 image has".to_owned() } else { format!("{n} images have") };
            notes.push(format!("labels.csv: {have} {of}{typing}: not used"));
        }
        notes
    }
}

/// The table, in whatever letters.
///
/// # Errors
/// It is not there.
fn table_in(root: &Folder) -> Result<PathBuf, DataError> {
    let fault = |problem: String| DataError::file(&root.path, problem, TABLE_HINT);
    if let Some(path) = root.file("labels.csv").map_err(fault)? {
        return Ok(path);
    }
    let named = root.path.join("labels.csv");
    if let Some(what) = regular::what_else(&named) {
        return Err(DataError::file(&named, format!("it is {what}, not a file"), "put the table itself there"));
    }
    let tables = root.names().filter(|name| TABLE_ENDINGS.iter().any(|ending| name.to_lowercase().ends_with(ending)));
    let mut tables: Vec<&str> = tables.collect();
    tables.sort_unstable();
    let there = if tables.is_empty() { String::new() } else { format!("; there is {}", some_of(&tables)) };
    Err(DataError::file(&root.path, format!("it has no `labels.csv`{there}"), TABLE_HINT))
}

/// A note of a folder that may hold the masks, where they are not looked for.
fn masks_elsewhere(options: &ScanOptions<'_>, root: &Folder, masks: &Folder) -> Option<String> {
    if !masks.path.is_dir() {
        let others: Vec<&str> = root.folders().filter(|name| !name.eq_ignore_ascii_case(IMAGES)).collect();
        return (!others.is_empty()).then(|| {
            let hint = format!("`dataset.masks = \"{}\"` reads masks from there", shown_of(others[0]));
            format!("there is no folder `{MASKS}`; the other folders are {}: {hint}", some_of(&others))
        });
    }
    let within: Vec<&str> = masks.folders().collect();
    let name = options.masks.map_or_else(|| MASKS.to_owned(), |path| path.display().to_string());
    (!within.is_empty() && masks.pictures().is_empty()).then(|| {
        format!(
            "the folder `{}` has no picture, and its folders are not looked into: {}",
            shown_of(&name),
            some_of(&within)
        )
    })
}

/// A note of files that no line names.
fn unnamed(folder: &Folder, ids: &HashSet<&str>, what: &str) -> Option<String> {
    let small: HashSet<String> = ids.iter().map(|id| id.to_ascii_lowercase()).collect();
    let is_unnamed = |name: &&str| !small.contains(&stem(name).to_ascii_lowercase());
    let rest: Vec<&str> = folder.pictures().into_iter().filter(is_unnamed).collect();
    (!rest.is_empty())
        .then(|| format!("in {what}/ {} named by no line of labels.csv: {}", are(rest.len(), "file"), some_of(&rest)))
}

/// A note of masks that may lie beside the images: of `a.jpg`, `a.png`.
fn beside(images: &Folder, masks: &Folder, train: &[Draft]) -> Option<String> {
    let other = |draft: &Draft| {
        let name = format!("{}.png", draft.id);
        let is_other = draft.picture.path().file_name().is_some_and(|own| *own != *name);
        (is_other && images.has_file(&name)).then_some(name)
    };
    let found: Vec<String> = train.iter().filter_map(other).collect();
    (!masks.path.is_dir() && !found.is_empty()).then(|| {
        format!(
            "images/ has {} beside images of these names: if these are the masks, move them to masks/",
            some_of(&found)
        )
    })
}

fn used_mask(draft: &Draft) -> Option<String> {
    Some(draft.mask.as_ref()?.path().file_name()?.to_string_lossy().into_owned())
}

/// A note of files in the folder of masks that are the mask of no image.
fn unused_masks(folder: &Folder, ids: &HashSet<&str>, used: &HashSet<String>) -> Option<String> {
    let is_of_none = |name: &&str| !used.contains(*name) && !ids.contains(stem(name));
    let rest: Vec<&str> = folder.pictures().into_iter().filter(is_of_none).collect();
    (!rest.is_empty()).then(|| {
        let name = folder.path.file_name().map_or_else(|| "masks".into(), |name| name.to_string_lossy());
        format!(
            "in {name}/ {} the mask of no image that is used: {}; a mask has the name of its image",
            are(rest.len(), "file"),
            some_of(&rest)
        )
    })
}

/// The table.
///
/// Columns are separated by what makes columns `image` and `split` of the header; spreadsheets write `;` and `sep=;`
/// before it. Names of these two may be in capitals, and `image` may be called `filename`. A first column of numbers
/// without a name is pandas' index. Cells are 1 and 0, also as `1.0`, `True`, `T`, `yes`, `Y`, or `x` and nothing.
fn read(text: &str) -> Result<Table, TableFault> {
    let mut rows = lines(text).filter(|(_, line)| !line.is_empty());
    let (mut n_comments, mut declared) = (0, None);
    let (head_at, head) = loop {
        let Some((number, line)) = rows.next() else { return Err(TableFault::new("it has no line", TABLE_HINT)) };
        if line.starts_with('#') {
            n_comments += 1;
        } else if let Some(separator) = line.to_lowercase().strip_prefix("sep=") {
            declared = separator.bytes().next();
        } else {
            break (number, line);
        }
    };
    let columns = |separator: u8| -> Vec<String> {
        let mut reader = csv::ReaderBuilder::new().delimiter(separator).has_headers(false).from_reader(head.as_bytes());
        let first = reader.records().next().and_then(Result::ok).unwrap_or_default();
        first.iter().map(|cell| clean(cell).to_owned()).collect()
    };
    let fits = |separator: &(u8, &str)| {
        let columns = columns(separator.0);
        columns.iter().any(|name| name.eq_ignore_ascii_case("split")) && columns.len() > 1
    };
    let separator = SEPARATORS.iter().filter(|of| declared.is_none_or(|declared| declared == of.0)).find(|of| fits(of));
    // Where no separator makes a column `split`, that of the most columns shows what there is.
    let separator =
        separator.or_else(|| SEPARATORS.iter().max_by_key(|of| columns(of.0).len())).unwrap_or(&SEPARATORS[0]);
    let header = columns(separator.0);
    let head = Header::of(&header)?;

    let mut read_as = vec![format!("columns are separated by `{}`", separator.1)];
    let unseen = unseen(text);
    read_as.extend((n_comments > 0).then(|| format!("{} of comment before the header", counted(n_comments, "line"))));
    read_as.extend(unseen.clone());
    read_as.extend(head.read_as.clone());
    let mut is_odd = separator.0 != b',' || n_comments > 0 || unseen.is_some() || !head.read_as.is_empty();

    let mut reader = csv::ReaderBuilder::new()
        .delimiter(separator.0)
        .has_headers(false)
        .flexible(true)
        .from_reader(behind_lines(text, head_at).as_bytes());
    let (mut seen, mut found, mut cells) = (HashMap::new(), Vec::new(), Vec::new());
    let (mut n_empty, mut indices) = (0, Vec::new());
    for record in reader.records() {
        let record = record.map_err(|error| TableFault::new(error.to_string(), TABLE_HINT))?;
        let place = head_at as u64 + record.position().map_or(0, csv::Position::line);
        let record: Vec<&str> = record.iter().map(clean).collect();
        if record.iter().all(|cell| cell.is_empty()) {
            n_empty += usize::from(record.len() > 1);
            continue;
        }
        if record[0].starts_with('#') && record.len() != header.len() {
            n_empty += 1;
            continue;
        }
        let extra = record.get(header.len()..).unwrap_or_default().iter().any(|cell| !cell.is_empty());
        if let Some(cell) = record.iter().find(|cell| cell.contains(['\n', '\r'])) {
            let begin = shown_of(cell.split(['\n', '\r']).next().unwrap_or_default());
            let problem = format!("line {place}: a text in quotes begins with `{begin}` and does not end on its line");
            return Err(TableFault::new(problem, "close the quotes, or remove them"));
        }
        if record.len() < header.len() || extra {
            let problem = format!("line {place} has {}, the header {}", counted(record.len(), "column"), header.len());
            let hint = match extra {
                true => {
                    format!("remove what the line has too much, or write a cell with `{}` in it in quotes", separator.1)
                }
                false => {
                    "give the line a cell for every column; an empty cell or 0 says that the class is not in the image"
                        .to_owned()
                }
            };
            return Err(TableFault::new(problem, hint));
        }
        if let Some(&at) = head.unnamed.iter().find(|&&at| Some(at) != head.index && !record[at].is_empty()) {
            let problem =
                format!("column {} has no name, and line {place} has `{}` in it", at + 1, shown_of(record[at]));
            return Err(TableFault::new(problem, "name the column in the header as its class, or remove it"));
        }
        indices.extend(head.index.map(|at| record[at].to_owned()));
        let image = image_name(record[head.image]).map_err(|problem| {
            let hint = "the column `image` has the name of a file in the folder images/, with or without its ending";
            TableFault::new(format!("line {place}: {problem}"), hint)
        })?;
        let line = Line { split: record[head.split].to_owned(), image, labels: Vec::new() };
        if let Some(first) = seen.insert(line.id().to_owned(), place) {
            let problem = format!("line {place}: `{}` stands twice, first in line {first}", shown_of(line.id()));
            return Err(TableFault::new(problem, "remove one of the lines: an image has one, with all of its classes"));
        }
        cells.push((place, head.classes.iter().map(|&at| record[at].to_owned()).collect::<Vec<_>>()));
        found.push(line);
    }
    let counts_up = |from: usize| indices.iter().enumerate().all(|(i, index)| *index == (from + i).to_string());
    if let Some(at) = head.index.filter(|_| !counts_up(0) && !counts_up(1)) {
        let problem = format!("column {} has no name and is no index that counts the lines", at + 1);
        return Err(TableFault::new(problem, "name the column in the header as its class, or remove it"));
    }
    if head.index.is_some() {
        read_as.push("the first column counts the lines and is left out".to_owned());
        is_odd = true;
    }
    if n_empty > 0 {
        read_as.push(format!("{} empty or a comment", are(n_empty, "line")));
        is_odd = true;
    }
    let marks = Marks::of(&cells);
    for (line, (place, cells)) in found.iter_mut().zip(&cells) {
        for (label, cell) in (1..).zip(cells) {
            if marks.is_set(cell).map_err(|problem| {
                let name = shown_of(&head.names[usize::from(label) - 1]);
                let is_minus_one = marks.seen.iter().all(|mark| ["1", "-1", ""].contains(&mark.as_str()));
                let hint = match is_minus_one {
                    true => "write 0 in place of -1".to_owned(),
                    false => format!(
                        "every column beside `image` and `split` is a class: write 1 where the image has it and 0 where not, \
                         or remove the column `{name}` if it is no class"
                    ),
                };
                TableFault::new(format!("line {place}: `{}` in the column `{name}`, {problem}", shown_of(cell)), hint)
            })? {
                line.labels.push(label);
            }
        }
    }
    read_as.push(format!("marks are {}", marks.shown()));
    is_odd |= !marks.is_plain();
    let classes = std::iter::once("background".to_owned()).chain(head.names).collect();
    Ok(Table { classes, lines: found, read_as, is_odd })
}

/// What comes behind the first `n` lines.
fn behind_lines(text: &str, n: usize) -> &str {
    (0..n).fold(text, |rest, _| split_line(rest).1.unwrap_or_default())
}

/// The columns of the table.
struct Header {
    image: usize,
    split: usize,
    classes: Vec<usize>,
    names: Vec<String>,
    /// Columns without a name, and which of them may be pandas' index.
    unnamed: Vec<usize>,
    index: Option<usize>,
    read_as: Vec<String>,
}

impl Header {
    fn of(header: &[String]) -> Result<Self, TableFault> {
        let mut read_as = Vec::new();
        let mut find = |name: &str, others: &[&str]| {
            let of = |name: &str| -> Vec<usize> {
                (0..header.len()).filter(|&at| header[at].eq_ignore_ascii_case(name)).collect()
            };
            let found = match of(name) {
                found if found.is_empty() => others.iter().flat_map(|other| of(other)).collect(),
                found => found,
            };
            match found[..] {
                [at] => {
                    if header[at] != name {
                        read_as.push(format!("the column `{}` is `{name}`", shown_of(&header[at])));
                    }
                    Ok(at)
                }
                [] => Err(TableFault::new(format!("no column `{name}`"), without(name, header))),
                _ => {
                    let names: Vec<String> = found.iter().map(|&at| format!("`{}`", shown_of(&header[at]))).collect();
                    let problem = format!("{} columns could be `{name}`: {}", found.len(), names.join(", "));
                    Err(TableFault::new(problem, format!("keep one column `{name}`, and rename or remove the others")))
                }
            }
        };
        let (image, split) = (find("image", &IMAGE_NAMES)?, find("split", &[])?);
        let is_index = |name: &str| name.is_empty() || name == "Unnamed: 0";
        let unnamed: Vec<usize> =
            (0..header.len()).filter(|&at| header[at].is_empty() || at == 0 && is_index(&header[at])).collect();
        let index = unnamed.first().copied().filter(|&at| at == 0);
        let classes: Vec<usize> =
            (0..header.len()).filter(|&at| at != image && at != split && !unnamed.contains(&at)).collect();
        if let [at] = classes[..]
            && CLASS_COLUMNS.contains(&header[at].to_lowercase().as_str())
        {
            let problem = format!("its one column of a class is named `{}`", shown_of(&header[at]));
            return Err(TableFault::new(problem, format!("{TABLE_HINT}: {}", a_column_a_class(&header[at]))));
        }
        if classes.is_empty() || classes.len() >= usize::from(IGNORE) {
            let problem = format!("{}; there can be 1 to 254", counted(classes.len(), "column") + " of classes");
            return Err(TableFault::new(problem, TABLE_HINT));
        }
        let mut names: Vec<String> = Vec::new();
        for &at in &classes {
            let name = header[at].clone();
            if is_background(&name) {
                return Err(TableFault::new(
                    format!("column {} is named `{}`", at + 1, shown_of(&name)),
                    "remove this column: background is 0 in every mask and no label, and the columns of classes are numbered \
                     from 1 on without it",
                ));
            }
            check_name("the name of a class", &name)
                .map_err(|problem| TableFault::new(problem, "rename the column in the header"))?;
            if names.contains(&name) {
                let problem =
                    format!("column {} is named `{}`; a class needs a name of its own", at + 1, shown_of(&name));
                return Err(TableFault::new(problem, "rename one of the two columns, or remove it"));
            }
            names.push(name);
        }
        Ok(Self { image, split, classes, names, unnamed, index, read_as })
    }
}

/// What to do about a column that says which class an image has.
fn a_column_a_class(column: &str) -> String {
    format!(
        "in place of the column `{}`, write one for each class, which is named as the class and holds 1 or 0",
        shown_of(column)
    )
}

/// What to do about a table that lacks a column.
fn without(name: &str, header: &[String]) -> String {
    let has = format!("it has: {}", some_of(header));
    let is_class = |column: &String| CLASS_COLUMNS.contains(&column.to_lowercase().as_str());
    if let [one] = header
        && one.contains("image")
        && one.contains("split")
    {
        return format!("separate the columns of the header, `{}`, by commas, and those of every line", shown_of(one));
    }
    if header.iter().any(|cell| is_picture(cell)) {
        return format!("write the names of the columns in a first line, as image,split,cat,dog; {has}");
    }
    match (name, header.iter().find(|column| is_class(column))) {
        ("split", Some(class)) => format!(
            "add a column `split` that says `train` or `val` for every image; {}; {has}",
            a_column_a_class(class)
        ),
        ("split", None) => format!("add a column `split` that says `train` or `val` for every image; {has}"),
        _ => format!("{TABLE_HINT}; {has}"),
    }
}

/// What the cells of classes hold.
struct Marks {
    seen: Vec<String>,
    /// `x` marks a class, and nothing else does.
    by_x: bool,
}

impl Marks {
    fn of(cells: &[(u64, Vec<String>)]) -> Self {
        let mut seen: Vec<String> = cells.iter().flat_map(|(_, cells)| cells.iter().cloned()).collect();
        seen.sort_unstable();
        seen.dedup();
        let by_x = seen.iter().all(|cell| cell.is_empty() || cell.eq_ignore_ascii_case("x"));
        Self { seen, by_x }
    }

    fn is_set(&self, cell: &str) -> Result<bool, &'static str> {
        match cell.to_lowercase().as_str() {
            "1" | "1.0" | "1,0" | "true" | "t" | "yes" | "y" => Ok(true),
            "0" | "0.0" | "0,0" | "false" | "f" | "no" | "n" | "" => Ok(false),
            "x" if self.by_x => Ok(true),
            _ => Err("which is neither 1 nor 0"),
        }
    }

    fn shown(&self) -> String {
        let shown: Vec<String> = self.seen.iter().take(6).map(|cell| format!("`{}`", shown_of(cell))).collect();
        shown.join(", ")
    }

    fn is_plain(&self) -> bool {
        self.seen.iter().all(|cell| ["", "0", "1"].contains(&cell.as_str()))
    }
}

/// The name of a file in images/, which may be written with this folder.
fn image_name(cell: &str) -> Result<String, String> {
    let cell = cell.replace('\\', "/");
    let inside = cell.strip_prefix("./").unwrap_or(&cell);
    let inside = inside.strip_prefix("images/").unwrap_or(inside);
    if inside.is_empty() || inside.contains('/') {
        // A path of another machine leads to a file that is here under its name.
        let is_whole_path = cell.starts_with('/') || cell.as_bytes().get(1) == Some(&b':');
        return match file_name(&cell) {
            name if is_whole_path && is_picture(name) => Ok(name.to_owned()),
            _ => Err(format!(
                "`{}`: `image` is the name of a file in images/ itself, without `/`; move the files there",
                shown_of(&cell)
            )),
        };
    }
    check_name("an image's name", inside)?;
    Ok(inside.to_owned())
}

fn draft(
    line: &Line,
    [images, masks]: [&Folder; 2],
    is_id: &impl Fn(&str) -> bool,
    memo: &dyn FileMemo,
) -> Result<Draft, Fault> {
    let id = line.id();
    let path = images.image(id, Some(&line.image))?;
    let picture = Picture::open(&path, memo)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let mask = masks.mask(id, &name, is_id)?.map(|path| MaskDraft::open(&path, memo)).transpose()?;
    let labels = line.labels.clone();
    let unlabelled = "line in labels.csv has no 1";
    Ok(Draft {
        id: id.to_owned(),
        picture,
        mask,
        labels: Some(labels.clone()),
        told: Some(labels),
        annotated_size: None,
        unlabelled,
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::scan::tests::{NoMemo, options, without_overlap};
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
        put_mask(&dir, "a", 1);
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
            without_overlap(&dataset.notes),
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
                "remove the column `dog, large` if it is no class",
            ),
            (table("split", "set"), "labels.csv`: no column `split`", "add a column `split`"),
            (table("\"dog, large\"", "cat"), "column 4 is named `cat`; a class needs a name of its own", "rename one"),
            (table("b,train", "a,train"), "labels.csv`: line 3: `a` stands twice", "remove one of the lines"),
            (
                table(",val", ",test"),
                "no image of the split `val`",
                "set `dataset.val` to a value of the column `split`, which has: test 1, train 2",
            ),
            (table("c,val,0,0", "c,val,0"), "line 4 has 3 columns, the header 4", "a cell for every column"),
            (no_table, "it has no `labels.csv`", TABLE_HINT),
            (
                table("b,train", "d,train"),
                "1 of 2 train images cannot be used:\n  d: no image `",
                "dataset.exclude` leaves",
            ),
            (table("b,train, 1,1", "b,train,0,0"), "b: a training image without a label", "dataset.exclude"),
            (
                unknown_label,
                "it has the number 3 (12 pixels); known are 0..=2 and 255",
                "dataset.mask_values = { \"3\" = \"cat\" }",
            ),
        ] {
            let error = scan(&options(dir.path()), &NoMemo).unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
            assert!(error.hint().contains(hint), "{}", error.hint());
        }
    }
}
