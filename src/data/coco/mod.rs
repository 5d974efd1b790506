//! MS COCO: `ROOT/annotations/instances_LIST.json` with the images in `ROOT/LIST` or `ROOT/images/LIST`.
//!
//! Classes are the categories of the file in the order of their ids, without gaps: 80 in COCO 2014. A mask has each
//! pixel of an object in its class, the smallest object on top; pixels of a crowd alone are ignored, and so are those in
//! the box of an object without an outline. Image-level labels are the categories that are annotated, crowds and objects
//! without an outline too. Images without an annotation are left out and counted; those whose objects have boxes alone
//! are trained on and not scored.
//!
//! A file is parsed once. What is needed of it, a few bytes an outline, lies under its digest in the folder of data
//! sets; masks are painted from that by the stage `coco_mask`, where something scores against them.

mod instances;
mod loose;
mod outlines;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};

use self::instances::{Counts, Instances, Picture, Unread};
pub use self::outlines::paint_mask;
use super::find::{Folder, file_name, stem};
use super::orient::{self, Oriented};
use super::scan::{
    self, DataError, Exclude, Fault, ScanOptions, classes_line, each, names_alike, note_overlap, note_unscored,
    one_id_a_file, some_of,
};
use super::text::{counted, shown_of};
use super::{Dataset, FileMemo, Item, Mask, temporary};
use crate::digest::BlobDigest;
use crate::regular;

/// Raised whenever the same file gives other outlines.
const VERSION: u32 = 3;

/// What the file of a list says, with the images that are there.
struct List {
    path: PathBuf,
    classes: Vec<String>,
    pictures: Vec<(Picture, scan::Picture)>,
    counts: Counts,
    line: String,
    notes: Vec<String>,
}

/// Reads and checks a data set. `folder`: where the outlines of parsed files are kept.
///
/// # Errors
/// A file is missing, not whole, or contradicts itself; every image that is missing, broken or of another size.
pub fn scan(options: &ScanOptions<'_>, memo: &dyn FileMemo, folder: &Path) -> Result<Dataset, DataError> {
    if !options.root.is_dir() {
        return Err(DataError::NoRoot(options.root.to_owned()));
    }
    let exclude = Exclude::new(options);
    let of = |list: &str, max: usize| read_list(options, list, max, memo, folder, &exclude);
    let (train, val) = (of(options.train, options.max_train)?, of(options.val, options.max_val)?);
    if val.classes != train.classes {
        let differ = first_difference([options.train, options.val], [&train.classes, &val.classes]);
        let problem = format!("its categories are not those of the list `{}`: {differ}", shown_of(options.train));
        let hint = "give both files the same `categories`, with the same ids: a class has one label in both";
        return Err(DataError::file(&val.path, problem, hint));
    }
    let all: Vec<&(Picture, scan::Picture)> = train.pictures.iter().chain(&val.pictures).collect();
    let images: Vec<Oriented<'_>> =
        all.iter().map(|(picture, image)| Oriented { picture: image, size: picture.size }).collect();
    // COCO's own images are annotated as stored; the tools of people show images as viewers do.
    let is_own = all.iter().all(|(picture, _)| is_name_of_coco(&picture.file_name));
    let (turned, line) = orient::decide(&images, options.orientation, !is_own);
    let mut notes: Vec<String> = train.notes.iter().chain(&val.notes).cloned().chain(exclude.note()).collect();
    let pictures: Vec<&scan::Picture> = all.iter().map(|(_, image)| image).collect();
    let (of_train, of_val) = pictures.split_at(train.pictures.len());
    notes.extend(note_overlap([options.train, options.val], [of_train, of_val]));
    let mut decided = vec![
        ("lists", format!("{}; {}", train.line, val.line)),
        ("orientation", line.clone().unwrap_or_else(|| "all images are upright".to_owned())),
    ];
    notes.extend(line);
    notes.extend(names_alike("categories", &train.classes[1..]));

    let (of_train, of_val) = turned.split_at(train.pictures.len());
    let items = |list: &str, found: &List, turned: &[bool]| {
        let images: Vec<_> = found.pictures.iter().zip(turned).collect();
        each(list, &images, |((picture, image), turned)| item(picture, image, **turned))
    };
    let mut items = [items(options.train, &train, of_train)?, items(options.val, &val, of_val)?];
    for (list, items) in [options.train, options.val].into_iter().zip(&mut items) {
        if items.iter().any(|item| item.mask.is_some()) && items.iter().all(|item| item.in_mask.is_empty()) {
            let List { path, counts, .. } = if list == options.train { &train } else { &val };
            let n_outlines = counts.annotations - counts.crowds - counts.boxes - counts.bare;
            if n_outlines > 0 && counts.beyond >= n_outlines {
                let problem = format!("all {n_outlines} outlines lie outside their images");
                let hint = "the coordinates are pixels of other images, or of these in another size; take the images that were \
                            annotated";
                return Err(DataError::file(path, problem, hint));
            }
            notes.push(format!("no {list} image has an outline of an object: nothing is scored against its masks"));
            items.iter_mut().for_each(|item| item.mask = None);
        }
        let scored = if list == options.train { "seeds and pseudo-labels" } else { "predictions" };
        note_unscored(list, items, scored, &mut notes);
    }
    let [train_items, val_items] = items;
    decided.push(("masks", masks_line([options.train, options.val], [&train, &val], [&train_items, &val_items])));
    decided.push(("labels", "of all annotations, crowds and objects without an outline too".to_owned()));
    let (line, note) = classes_line(&train.classes, options.train, &train_items);
    decided.push(("classes", line));
    notes.extend(note);
    let (name, classes) = (options.name.to_owned(), train.classes);
    Ok(Dataset { name, classes, train: train_items, val: val_items, notes, decided })
}

/// Where the classes of two lists part, background first in both.
fn first_difference(lists: [&str; 2], classes: [&[String]; 2]) -> String {
    let [of_train, of_val] = classes;
    let lacks = |in_one: &[String], in_other: &[String]| {
        let rest: Vec<&String> = in_one.iter().filter(|class| !in_other.contains(class)).collect();
        (!rest.is_empty()).then(|| some_of(&rest))
    };
    let alone = |list: &str, rest: String| format!("{} alone has {rest}", shown_of(list));
    let only: Vec<String> = [
        lacks(of_train, of_val).map(|rest| alone(lists[0], rest)),
        lacks(of_val, of_train).map(|rest| alone(lists[1], rest)),
    ]
    .into_iter()
    .flatten()
    .collect();
    if !only.is_empty() {
        return only.join(", and ");
    }
    let at = of_train.iter().zip(of_val).position(|(a, b)| a != b).unwrap_or_default();
    format!(
        "in the order of their ids, class {at} is {} there and {} here",
        shown_of(&of_train[at]),
        shown_of(&of_val[at])
    )
}

/// `COCO_train2014_000000000009.jpg`, `000000000009.jpg`.
fn is_name_of_coco(name: &str) -> bool {
    let id = stem(file_name(name)).rsplit('_').next().unwrap_or_default();
    id.len() == 12 && id.bytes().all(|byte| byte.is_ascii_digit())
}

fn masks_line(lists: [&str; 2], found: [&List; 2], items: [&[Item]; 2]) -> String {
    let of = |k: usize| {
        let n = items[k].iter().filter(|item| item.mask.is_some()).count();
        format!("{} {n} of {}", lists[k], items[k].len())
    };
    let sum = |count: fn(&Counts) -> usize| found.iter().map(|list| count(&list.counts)).sum::<usize>();
    let labels: BTreeSet<u8> =
        items.iter().flat_map(|items| items.iter()).flat_map(|item| item.in_mask.clone()).collect();
    let without = sum(|counts| counts.boxes + counts.bare);
    format!(
        "{}, {} images, painted from {} outlines of {} classes; {} crowds and {without} objects without an outline are ignored",
        of(0),
        of(1),
        sum(|counts| counts.annotations - counts.crowds) - without,
        labels.len(),
        sum(|counts| counts.crowds)
    )
}

fn read_list(
    options: &ScanOptions<'_>,
    list: &str,
    max: usize,
    memo: &dyn FileMemo,
    folder: &Path,
    exclude: &Exclude<'_>,
) -> Result<List, DataError> {
    let (path, instances) = open(options.root, list, memo, folder)?;
    let Instances { classes, mut pictures, counts } = instances;
    let mut notes = notes_of(list, &counts, pictures.len());
    let n_categories = classes.len() - 1;
    let line = format!(
        "annotations/instances_{list}.json has {} and {} of {n_categories} {}",
        counted(counts.pictures, "image"),
        counted(counts.annotations, "annotation"),
        if n_categories == 1 { "category" } else { "categories" }
    );
    let id = |picture: &Picture| stem(file_name(&picture.file_name)).to_owned();
    let n_annotated = pictures.len();
    pictures.retain(|picture| !exclude.has(&id(picture)));
    if pictures.is_empty() && n_annotated > 0 {
        return Err(DataError::file(&path, "no image of it is left", "`dataset.exclude` names all of them"));
    }
    if max > 0 {
        pictures.truncate(max);
    }
    let mut stems = HashMap::new();
    for picture in &pictures {
        let Picture { file_name, .. } = picture;
        if let Some(other) = stems.insert(id(picture), file_name) {
            let id = shown_of(&id(picture));
            let (problem, hint) = match other == file_name {
                true => (
                    format!("`{}` stands twice in `images`", shown_of(other)),
                    "give each image once, with the annotations of both",
                ),
                false => (
                    format!("`{}` and `{}` have one id, `{id}`", shown_of(other), shown_of(file_name)),
                    "an image's id is its file's name without folder and ending; rename one of them",
                ),
            };
            return Err(DataError::file(&path, problem, hint));
        }
    }
    if pictures.is_empty() {
        let hint = "set `dataset.train` and `dataset.val` to lists with annotations, e.g. \"train2014\", \"val2014\"";
        return Err(DataError::file(&path, "no image has an annotation", hint));
    }
    let folders = [options.root.join(list), options.root.join("images").join(list), options.root.join("images")];
    let images = Folder::list(folders.iter().find(|folder| folder.is_dir()).unwrap_or(&folders[0]));
    let files = each(list, &pictures, |picture| {
        let path = find_image(options.root, &images, &picture.file_name)?;
        Ok::<_, Fault>((path.clone(), scan::Picture::open(&path, memo)?))
    })?;
    if images.path != folders[2] && counts.pictures == pictures.len() {
        let named: HashSet<&Path> = files.iter().map(|(path, _)| path.as_path()).collect();
        let is_unnamed = |name: &&str| !named.contains(images.path.join(name).as_path());
        let rest: Vec<&str> = images.pictures().into_iter().filter(is_unnamed).collect();
        if !rest.is_empty() {
            notes.push(format!(
                "{} files of {list} are named by no image of its annotations: {}",
                rest.len(),
                some_of(&rest)
            ));
        }
    }
    let ids: Vec<String> = pictures.iter().map(id).collect();
    one_id_a_file(list, ids.iter().map(String::as_str).zip(files.iter().map(|(_, picture)| picture)))?;
    let pictures = pictures.into_iter().zip(files.into_iter().map(|(_, picture)| picture)).collect();
    Ok(List { path, classes, pictures, counts, line, notes })
}

fn notes_of(list: &str, counts: &Counts, n_annotated: usize) -> Vec<String> {
    let Counts { pictures, annotations, boxes, bare, crowds: _, beyond, without_id, without_size, background } = counts;
    let without = pictures - n_annotated;
    let of = format!("of {annotations} {list} annotations");
    let notes = [
        (without, format!("{without} of {pictures} {list} images have no annotation and are left out")),
        (
            *boxes,
            format!(
                "{boxes} {of} have a box and no outline: they are labels, and what their boxes alone cover is ignored"
            ),
        ),
        (*bare, format!("{bare} {of} have neither outline nor box: they are labels, and their images are not scored")),
        (*beyond, format!("{beyond} {of} reach beyond their images and are cut off there")),
        (*without_id, format!("{without_id} {of} have no id of their own, which nothing needs")),
        (
            *without_size,
            format!("{without_size} of {pictures} {list} images have no size, which is taken from their files"),
        ),
    ];
    let mut notes: Vec<String> = notes.into_iter().filter(|(n, _)| *n > 0).map(|(_, note)| note).collect();
    if let Some(name) = background {
        notes.push(format!("the category `{}` of {list} has no annotation and is no class of its own", shown_of(name)));
    }
    notes
}

/// The file of an image, by the name that its annotations have for it: with folders of this machine or another, with
/// backslashes, with `%20`.
fn find_image(root: &Path, images: &Folder, named: &str) -> Result<PathBuf, Fault> {
    let path = named.replace('\\', "/");
    let name = file_name(&path).to_owned();
    if path.split('/').any(|part| part == "..") || name.is_empty() || name == "." {
        let said = format!("{}: `{}` is no path of an image in the data set", shown_of(stem(&name)), shown_of(named));
        return Err(Fault::new(said, "write the name of the file alone as `file_name`".to_owned()));
    }
    let is_whole_path = path.starts_with('/') || path.as_bytes().get(1) == Some(&b':');
    if path.contains('/') && !is_whole_path {
        let places = [images.path.join(&path), root.join(&path)];
        if let Some(found) = places.into_iter().find(|place| place.is_file()) {
            return Ok(found);
        }
    }
    let decoded = percent_decoded(&name);
    let is_there = |name: &str| images.file(name).is_ok_and(|found| found.is_some());
    let name = if is_there(&name) || !is_there(&decoded) { name } else { decoded };
    images.image(stem(&name), Some(&name))
}

/// `a%20b` is `a b`.
fn percent_decoded(name: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = name.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let hex = after.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        match hex.filter(|_| first == b'%').and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            None => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    String::from_utf8(bytes).unwrap_or_else(|_| name.to_owned())
}

fn item(picture: &Picture, image: &scan::Picture, turned: bool) -> Result<Item, Fault> {
    let Picture { file_name: named, size, labels, in_mask, is_scored, shapes } = picture;
    let (height, width) = image.size(turned);
    let id = stem(file_name(named)).to_owned();
    if let Some((h, w)) = size.filter(|size| *size != (height, width)) {
        let said = format!("{}: the image is {}, its annotation says {w}x{h}", shown_of(&id), image.sizes());
        let hint = match [image.size(false), image.size(true)].contains(&(h, w)) {
            true => "set `dataset.orientation` to \"auto\", which turns images where their annotations fit so",
            false if (h, w) == (width, height) => "`width` and `height` of the annotations stand in each other's place",
            false => "take the images that were annotated, in their size, or name the images in `dataset.exclude`",
        };
        return Err(Fault::new(said, hint.to_owned()));
    }
    let outlines = is_scored.then(|| outlines::outlines((height, width), shapes));
    let mask = outlines.map(|bytes| Mask::Outlines { digest: BlobDigest::of(&bytes), bytes: bytes.into() });
    let in_mask = if *is_scored { in_mask.clone() } else { Vec::new() };
    Ok(Item { id, image: image.read(turned), mask, labels: labels.clone(), in_mask, height, width })
}

/// What the file of a list says, from the folder of data sets or by parsing it.
fn open(root: &Path, list: &str, memo: &dyn FileMemo, folder: &Path) -> Result<(PathBuf, Instances), DataError> {
    let path = root.join(format!("annotations/instances_{list}.json"));
    let fault = |problem: String, hint: &str| DataError::file(&path, problem, hint);
    if let Some(what) = regular::what_else(&path) {
        return Err(fault(format!("it is {what}, not a file"), "put the file itself there"));
    }
    if !path.is_file() {
        let there = fs::read_dir(root.join("annotations")).into_iter().flatten().flatten();
        let names = there.map(|entry| entry.file_name().to_string_lossy().into_owned());
        let mut there: Vec<String> =
            names.filter_map(|name| Some(name.strip_prefix("instances_")?.strip_suffix(".json")?.to_owned())).collect();
        there.sort();
        let there = if there.is_empty() { "none".to_owned() } else { some_of(&there) };
        let problem = format!("no annotations of the list `{}`; there are: {there}", shown_of(list));
        // As tools name what they export.
        let others = [
            format!("annotations/{list}.json"),
            format!("{list}/_annotations.coco.json"),
            format!("{list}/annotations.json"),
            format!("{list}.json"),
            "annotations/instances_default.json".to_owned(),
            "_annotations.coco.json".to_owned(),
            "annotations.json".to_owned(),
        ];
        let hint = match others.iter().find(|other| root.join(other).is_file()) {
            Some(other) => format!("if `{}` has them, copy it there", shown_of(other)),
            None => "`dataset.train = \"train2014\"` reads annotations/instances_train2014.json".to_owned(),
        };
        return Err(fault(problem, &hint));
    }
    let digest = memo.digest(&path).map_err(|error| fault(format!("{error:#}"), "check the file"))?;
    let kept = folder.join(format!("coco-{VERSION}-{}.outlines", &digest.to_string()[..16]));
    if let Ok(instances) = unpack(&kept) {
        return Ok((path, instances));
    }
    let file = regular::open(&path).map_err(|error| fault(error.to_string(), "check the file"))?;
    let instances = Instances::read(file.0).map_err(|Unread { problem, hint }| fault(problem, &hint))?;
    if memo.digest(&path).ok() != Some(digest) {
        return Err(fault("it changed while it was read".to_owned(), "run again"));
    }
    // Losing it costs time only.
    let _ = pack(&kept, &instances);
    Ok((path, instances))
}

/// The BLAKE3 of what follows; one line of JSON that ends with the lengths of the outlines; the outlines.
fn pack(path: &Path, instances: &Instances) -> anyhow::Result<()> {
    let folder = path.parent().context("no folder")?;
    fs::create_dir_all(folder)?;
    let lengths: Vec<usize> = instances.pictures.iter().map(|picture| picture.shapes.len()).collect();
    let mut bytes = serde_json::to_vec(&(instances, lengths))?;
    bytes.push(b'\n');
    instances.pictures.iter().for_each(|picture| bytes.extend_from_slice(&picture.shapes));
    let mut file = temporary(folder)?;
    file.write_all(BlobDigest::of(&bytes).as_bytes())?;
    file.write_all(&bytes)?;
    file.persist(path)?;
    Ok(())
}

fn unpack(path: &Path) -> anyhow::Result<Instances> {
    let bytes = fs::read(path)?;
    let (digest, bytes) = bytes.split_at_checked(32).context("not whole")?;
    ensure!(BlobDigest::of(bytes).as_bytes() == digest, "not as it was written");
    let end = bytes.iter().position(|&byte| byte == b'\n').context("no line")?;
    let (mut instances, lengths): (Instances, Vec<usize>) = serde_json::from_slice(&bytes[..end])?;
    let mut rest = &bytes[end + 1..];
    ensure!(lengths.len() == instances.pictures.len() && lengths.iter().sum::<usize>() == rest.len(), "not whole");
    for (picture, length) in instances.pictures.iter_mut().zip(lengths) {
        let (shapes, after) = rest.split_at(length);
        picture.shapes = shapes.to_owned();
        rest = after;
    }
    Ok(instances)
}

#[cfg(test)]
mod tests {
    use super::super::scan::tests::{NoMemo, options, without_overlap};
    use super::*;
    use crate::data::image::encode_rgb;
    use crate::vision::Rgb;

    const CATEGORIES: &str = r#"[{"id": 1, "name": "cat"}, {"id": 2, "name": "cow"}]"#;

    /// Two images of 4x3 in each list, of which the second has no annotation.
    fn tree() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("annotations")).unwrap();
        let image = encode_rgb(&Rgb { height: 3, width: 4, data: vec![9; 36] });
        for (list, folder) in [("train", "train"), ("val", "images/val")] {
            fs::create_dir_all(dir.path().join(folder)).unwrap();
            fs::write(dir.path().join(folder).join("a.png"), &image).unwrap();
            put(&dir, list, CATEGORIES);
        }
        dir
    }

    fn put(dir: &tempfile::TempDir, list: &str, categories: &str) {
        let text = format!(
            r#"{{"images": [{{"id": 1, "file_name": "a.png", "height": 3, "width": 4}},
                {{"id": 2, "file_name": "b.png", "height": 3, "width": 4}}],
                "annotations": [{{"id": 1, "image_id": 1, "category_id": 2, "area": 4,
                "segmentation": [[0, 0, 2, 0, 2, 2, 0, 2]]}}, {{"id": 2, "image_id": 1, "category_id": 1,
                "bbox": [1, 0, 2, 1], "segmentation": []}}], "categories": {categories}}}"#
        );
        fs::write(dir.path().join(format!("annotations/instances_{list}.json")), text).unwrap();
    }

    fn scan_at(dir: &tempfile::TempDir) -> Result<Dataset, DataError> {
        scan(&options(dir.path()), &NoMemo, &dir.path().join("kept"))
    }

    #[test]
    fn a_good_tree_is_parsed_once() {
        let dir = tree();
        let dataset = scan_at(&dir).unwrap();
        assert_eq!(dataset.classes, ["background", "cat", "cow"]);
        assert_eq!(
            without_overlap(&dataset.notes),
            [
                "1 of 2 train images have no annotation and are left out",
                "1 of 2 train annotations have a box and no outline: they are labels, and what their boxes alone cover is ignored",
                "1 of 2 val images have no annotation and are left out",
                "1 of 2 val annotations have a box and no outline: they are labels, and what their boxes alone cover is ignored",
            ]
        );
        let item = &dataset.train[0];
        assert_eq!((item.id.as_str(), item.labels.as_slice(), item.height), ("a", &[1, 2][..], 3));
        let Some(Mask::Outlines { bytes, .. }) = &item.mask else { panic!("no outlines") };
        assert_eq!(paint_mask(bytes).unwrap().data, [2, 2, 255, 0, 2, 2, 0, 0, 0, 0, 0, 0]);

        // Train and val have one content, so one file is kept; it is what the second scan reads.
        let kept: Vec<_> = fs::read_dir(dir.path().join("kept")).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert_eq!(kept.len(), 1);
        let mut packed = fs::read(&kept[0]).unwrap();
        let cow = packed.windows(3).position(|bytes| bytes == b"cow").unwrap();
        packed[cow..cow + 3].copy_from_slice(b"pig");
        let digest = BlobDigest::of(&packed[32..]);
        packed[..32].copy_from_slice(digest.as_bytes());
        assert_eq!(
            scan_at(&dir).unwrap().train[0].mask.as_ref().map(Mask::digest),
            item.mask.as_ref().map(Mask::digest)
        );
        fs::write(&kept[0], packed).unwrap();
        assert_eq!(scan_at(&dir).unwrap().classes[2], "pig");
        // A broken one is made again.
        for broken in [b"{}".to_vec(), fs::read(&kept[0]).unwrap().into_iter().map(|byte| byte ^ 1).collect()] {
            fs::write(&kept[0], broken).unwrap();
            assert_eq!(scan_at(&dir).unwrap().classes[2], "cow");
        }
    }

    #[test]
    fn bad_trees_are_named() {
        let changed = |change: &dyn Fn(&Path)| {
            let dir = tree();
            change(dir.path());
            dir
        };
        let json = |root: &Path| root.join("annotations/instances_val.json");
        let other = tree();
        put(&other, "val", r#"[{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]"#);
        for (dir, expected, hint) in [
            (
                changed(&|root| fs::remove_file(root.join("train/a.png")).unwrap()),
                "1 of 1 train images cannot be used:\n  a: no image `",
                "dataset.exclude",
            ),
            (
                changed(&|root| {
                    let image = Rgb { height: 4, width: 4, data: vec![9; 48] };
                    fs::write(root.join("train/a.png"), encode_rgb(&image)).unwrap();
                }),
                "a: the image is 4x4, its annotation says 4x3",
                "dataset.exclude",
            ),
            (
                changed(&|root| fs::remove_file(json(root)).unwrap()),
                "instances_val.json`: no annotations of the list `val`",
                "instances_train2014.json",
            ),
            (
                changed(&|root| {
                    let text = fs::read(json(root)).unwrap();
                    fs::write(json(root), &text[..text.len() - 20]).unwrap();
                }),
                "instances_val.json`: EOF while parsing",
                "the file is cut off; get it again",
            ),
            (other, "its categories are not those of the list `train`", "the same `categories`"),
            (
                changed(&|root| {
                    let text = fs::read_to_string(json(root)).unwrap().replace("b.png", "other/a.png");
                    let text =
                        text.replace("\"image_id\": 1, \"category_id\": 1", "\"image_id\": 2, \"category_id\": 1");
                    let text = text.replace("\"segmentation\": []", "\"segmentation\": [[0, 0, 2, 0, 2, 2]]");
                    fs::write(json(root), text).unwrap();
                }),
                "`a.png` and `other/a.png` have one id, `a`",
                "rename one of them",
            ),
        ] {
            let error = scan_at(&dir).unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
            assert!(error.hint().contains(hint), "{}", error.hint());
        }
        let dir = tree();
        let exclude = ["a".to_owned()];
        let options = ScanOptions { exclude: &exclude, ..options(dir.path()) };
        let error = scan(&options, &NoMemo, dir.path()).unwrap_err();
        assert!(error.to_string().ends_with("instances_train.json`: no image of it is left"), "{error}");
        assert_eq!(error.hint(), "`dataset.exclude` names all of them");
    }
}
