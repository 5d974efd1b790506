//! MS COCO: `ROOT/annotations/instances_LIST.json` with the images in `ROOT/LIST` or `ROOT/images/LIST`.
//!
//! Classes are the categories of the file in the order of their ids, without gaps: 80 in COCO 2014. A mask has each
//! pixel of an object in its class, the smallest object on top; pixels of a crowd alone are ignored. Image-level
//! labels are the categories that are annotated, crowds too. Images without an annotation are left out and counted.
//!
//! A file is parsed once. What is needed of it, a few bytes an outline, lies under its digest in the folder of data
//! sets; masks are painted from that by the stage `coco_mask`, where something scores against them.

mod instances;
mod outlines;

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use anyhow::{Context, ensure};

use self::instances::{Instances, Picture};
pub use self::outlines::paint_mask;
use super::scan::{DataError, ScanOptions, image, items};
use super::{Dataset, FileMemo, Item, Mask, temporary};
use crate::digest::BlobDigest;

/// Raised whenever the same file gives other outlines.
const VERSION: u32 = 2;

/// Reads and checks a data set. `folder`: where the outlines of parsed files are kept.
///
/// # Errors
/// A file is missing, not whole, or contradicts itself; every image that is missing, broken or of another size.
pub fn scan(options: &ScanOptions<'_>, memo: &dyn FileMemo, folder: &Path) -> Result<Dataset, DataError> {
    if !options.root.is_dir() {
        return Err(DataError::NoRoot(options.root.to_owned()));
    }
    let mut notes = Vec::new();
    let mut of = |list: &str, max: usize| {
        let (path, instances) = open(options.root, list, memo, folder)?;
        notes.extend(left_out(list, &instances));
        let Instances { classes, mut pictures, .. } = instances;
        pictures.retain(|picture| !options.exclude.iter().any(|id| id == stem(&picture.file_name)));
        if max > 0 {
            pictures.truncate(max);
        }
        let mut stems = HashMap::new();
        for Picture { file_name, .. } in &pictures {
            if let Some(other) = stems.insert(stem(file_name), file_name) {
                return Err(DataError::File {
                    path,
                    problem: format!("`{other}` and `{file_name}` have one id, `{}`", stem(file_name)),
                    hint: "an image's id is its file's name without folder and ending; rename one of them",
                });
            }
        }
        if pictures.is_empty() {
            return Err(DataError::File {
                path,
                problem: "no image has an annotation".to_owned(),
                hint: "set `dataset.train` and `dataset.val` to lists with annotations, e.g. \"train2014\", \"val2014\"",
            });
        }
        let folders = [options.root.join(list), options.root.join("images").join(list)];
        let images = folders.iter().find(|folder| folder.is_dir()).unwrap_or(&folders[0]);
        Ok((classes, items(list, &pictures, |picture| item(images, picture, memo))?, path))
    };
    let (classes, train, _) = of(options.train, options.max_train)?;
    let (of_val, val, path) = of(options.val, options.max_val)?;
    if of_val != classes {
        return Err(DataError::File {
            path,
            problem: format!("its categories are not those of the list `{}`", options.train),
            hint: "both lists have to be of one data set",
        });
    }
    Ok(Dataset { name: options.name.to_owned(), classes, train, val, notes })
}

fn left_out(list: &str, instances: &Instances) -> Vec<String> {
    let Instances { pictures, n_pictures, n_annotations, n_empty, classes: _ } = instances;
    let without = n_pictures - pictures.len();
    let notes = [
        (without, format!("{without} of {n_pictures} {list} images have no annotation and are left out")),
        (*n_empty, format!("{n_empty} of {n_annotations} {list} annotations have no outline and are left out")),
    ];
    notes.into_iter().filter(|(n, _)| *n > 0).map(|(_, note)| note).collect()
}

fn stem(file_name: &str) -> &str {
    Path::new(file_name).file_stem().and_then(|stem| stem.to_str()).unwrap_or(file_name)
}

fn item(images: &Path, picture: &Picture, memo: &dyn FileMemo) -> Result<Item, String> {
    let Picture { file_name, height, width, labels, outlines } = picture;
    let (id, path) = (stem(file_name), images.join(file_name));
    if !path.exists() {
        return Err(format!("{id}: no image `{}`", path.display()));
    }
    let (image, size) = image(&path, memo)?;
    if (size.height, size.width) != (*height, *width) {
        return Err(format!("{id}: the image is {}x{}, its annotation says {width}x{height}", size.width, size.height));
    }
    let mask = Mask::Outlines { bytes: outlines.as_slice().into(), digest: BlobDigest::of(outlines) };
    Ok(Item { id: id.to_owned(), image, mask: Some(mask), labels: labels.clone(), height: *height, width: *width })
}

/// What the file of a list says, from the folder of data sets or by parsing it.
fn open(
    root: &Path,
    list: &str,
    memo: &dyn FileMemo,
    folder: &Path,
) -> Result<(std::path::PathBuf, Instances), DataError> {
    let path = root.join(format!("annotations/instances_{list}.json"));
    let fault = |problem: String, hint| DataError::File { path: path.clone(), problem, hint };
    if !path.exists() {
        let problem = format!("no annotations of the list `{list}`");
        return Err(fault(problem, "`dataset.train = \"train2014\"` reads annotations/instances_train2014.json"));
    }
    let digest = memo.digest(&path).map_err(|error| fault(format!("{error:#}"), "check the file"))?;
    let kept = folder.join(format!("coco-{VERSION}-{}.outlines", &digest.to_string()[..16]));
    if let Ok(instances) = unpack(&kept) {
        return Ok((path, instances));
    }
    let file = File::open(&path).map_err(|error| fault(error.to_string(), "check the file"))?;
    let instances = Instances::read(file).map_err(|problem| {
        fault(problem, "the file has to be a whole instances_*.json of COCO; get it again if it is cut off")
    })?;
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
    let lengths: Vec<usize> = instances.pictures.iter().map(|picture| picture.outlines.len()).collect();
    let mut bytes = serde_json::to_vec(&(instances, lengths))?;
    bytes.push(b'\n');
    instances.pictures.iter().for_each(|picture| bytes.extend_from_slice(&picture.outlines));
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
        let (outlines, after) = rest.split_at(length);
        picture.outlines = outlines.to_owned();
        rest = after;
    }
    Ok(instances)
}

#[cfg(test)]
mod tests {
    use super::super::scan::tests::{NoMemo, options};
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
                "segmentation": []}}], "categories": {categories}}}"#
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
            dataset.notes,
            [
                "1 of 2 train images have no annotation and are left out",
                "1 of 2 train annotations have no outline and are left out",
                "1 of 2 val images have no annotation and are left out",
                "1 of 2 val annotations have no outline and are left out",
            ]
        );
        let item = &dataset.train[0];
        assert_eq!((item.id.as_str(), item.labels.as_slice(), item.height), ("a", &[2][..], 3));
        let Some(Mask::Outlines { bytes, .. }) = &item.mask else { panic!("no outlines") };
        assert_eq!(paint_mask(bytes).unwrap().data, [2, 2, 0, 0, 2, 2, 0, 0, 0, 0, 0, 0]);

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
                "get it again if it is cut off",
            ),
            (other, "its categories are not those of the list `train`", "of one data set"),
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
        let error = scan(&options, &NoMemo, dir.path()).unwrap_err().to_string();
        assert!(error.ends_with("instances_train.json`: no image has an annotation"), "{error}");
    }
}
