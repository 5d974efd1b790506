//! Data sets in PASCAL VOC 2012 layout, checked whole before any work starts.
//!
//! Lists are those of ImageSets/Segmentation, or SBD's (`trainaug`). Image-level labels are the classes in an image's
//! mask, or the objects in its Annotations.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::path::Path;

use anyhow::{Context, bail, ensure};

use super::find::{Folder, file_name, is_picture, stem};
use super::scan::{
    DataError, Draft, Exclude, Fault, Finish, Finished, LabelSource, MaskDraft, Picture, ScanOptions, check_folders,
    each, fact, file, images_in, note_names, read_text, said, some_of,
};
use super::text::{NotText, are, check_name, counted, decode_xml, lines, shown_of, unseen};
use super::{Dataset, FileMemo, FileRef, Item, Mask};
use crate::vision::VOC_CLASSES;

const IMAGES: &str = "JPEGImages";
const ANNOTATIONS: &str = "Annotations";
/// Where masks are looked for: VOC's own first, then those of SBD.
const MASK_FOLDERS: [&str; 2] = ["SegmentationClass", "SegmentationClassAug"];
/// VOC's classes by the names that COCO and torchvision have for them.
const OTHER_NAMES: [(&str, &str); 4] =
    [("airplane", "aeroplane"), ("motorcycle", "motorbike"), ("couch", "sofa"), ("tv", "tvmonitor")];
/// Nodes of an XML file; an annotation has some hundred.
const MAX_NODES: u32 = 1_000_000;

/// Reads and checks a data set.
///
/// # Errors
/// What is missing, and every image that is broken, whose mask is missing, broken, of another size or of unknown
/// classes, and every training image without a label.
pub fn scan(options: &ScanOptions<'_>, memo: &dyn FileMemo) -> Result<Dataset, DataError> {
    check_folders(options)?;
    let tree = Tree::list(options, memo)?;
    let (mut notes, mut said) = (Vec::new(), Vec::new());
    tree.note_names(&mut notes);
    let exclude = Exclude::new(options);
    let mut of = |list: &str, max: usize| {
        let list = read_list(options, list, max, &tree.images, &exclude)?;
        notes.extend(list.notes);
        said.push(list.line);
        Ok(list.ids)
    };
    let (train, val) = (of(options.train, options.max_train)?, of(options.val, options.max_val)?);
    notes.extend(exclude.note());
    let ids: HashSet<&str> = train.iter().chain(&val).map(String::as_str).collect();
    let is_id = |id: &str| ids.contains(id);
    let drafts = |list: &str, ids: &[String], is_train: bool| each(list, ids, |id| tree.draft(id, is_train, &is_id));
    let drafts = (drafts(options.train, &train, true)?, drafts(options.val, &val, false)?);
    notes.extend(tree.other_names(drafts.0.iter().chain(&drafts.1)));
    let unread: Vec<&String> = drafts.0.iter().chain(&drafts.1).filter_map(|drafted| drafted.unread.as_ref()).collect();
    notes.extend(unread.first().map(|first| {
        format!("{} not read, since masks tell the labels, e.g. {first}", are(unread.len(), "annotation"))
    }));
    let of = |drafted: Vec<Drafted>| drafted.into_iter().map(|drafted| drafted.draft).collect();
    let drafts = (of(drafts.0), of(drafts.1));

    let classes = VOC_CLASSES.map(str::to_owned).to_vec();
    let finish = Finish {
        options,
        classes: &classes,
        is_voc: true,
        // What wrote the field's masks did not turn the images.
        turned_by_default: false,
        label_file: "Annotations",
    };
    let Finished { train, val, notes: of_items, mut decided } = finish.finish(drafts.0, drafts.1)?;
    decided.insert(0, ("lists", format!("ImageSets/Segmentation: {}", said.join("; "))));
    notes.extend(two_truths(options.train, &train));
    notes.extend(two_truths(options.val, &val));
    notes.extend(of_items);
    Ok(Dataset { name: options.name.to_owned(), classes, train, val, notes, decided })
}

/// A note where a list is scored with masks of both folders: SBD's are not VOC's.
fn two_truths(list: &str, items: &[Item]) -> Option<String> {
    let of = |folder: &&str| {
        let is_there = |item: &&Item| match &item.mask {
            Some(Mask::File(file) | Mask::Translated { file, .. }) => {
                file.path.parent().is_some_and(|parent| parent.ends_with(folder))
            }
            _ => false,
        };
        items.iter().filter(is_there).count()
    };
    let [voc, sbd] = MASK_FOLDERS.each_ref().map(of);
    (voc > 0 && sbd > 0).then(|| {
        format!(
            "{list} is scored with {voc} masks of SegmentationClass and {sbd} of SegmentationClassAug; the field's numbers \
             are of the former alone: dataset.masks = \"SegmentationClass\""
        )
    })
}

/// The ids of a list, with what was decided of it.
struct List {
    ids: Vec<String>,
    line: String,
    notes: Vec<String>,
}

/// What a line of a list is.
enum Entry {
    Comment,
    Id(String),
    /// As in ImageSets/Main: 1, -1 or 0 for a class.
    Flagged(String, i8),
}

fn read_list(
    options: &ScanOptions<'_>,
    list: &str,
    max: usize,
    images: &Folder,
    exclude: &Exclude<'_>,
) -> Result<List, DataError> {
    let folder = options.root.join("ImageSets/Segmentation");
    // As a list is named to other programs.
    let list = list.strip_prefix("ImageSets/Segmentation/").unwrap_or(list);
    let place = |list: &str| folder.join(format!("{list}.txt"));
    let named = list.strip_suffix(".txt").filter(|_| !place(list).exists()).unwrap_or(list);
    let files = Folder::list(&folder);
    let in_other_letters = || files.file(&format!("{named}.txt")).ok().flatten();
    let path =
        Some(place(named)).filter(|path| path.exists()).or_else(in_other_letters).unwrap_or_else(|| place(named));
    if !path.exists() {
        let main = options.root.join(format!("ImageSets/Main/{named}.txt"));
        if main.exists() {
            let hint = format!("copy it there if it names the images that you mean: {}", main.display());
            return Err(DataError::file(&path, "no such list, but ImageSets/Main has one of this name", hint));
        }
        let there = fs::read_dir(&folder).into_iter().flatten().flatten();
        let there = there.map(|entry| entry.file_name().to_string_lossy().into_owned());
        let mut there: Vec<String> = there.filter(|name| !name.starts_with('.')).collect();
        there.sort();
        return Err(DataError::NoList { path, there: there.join(", ") });
    }
    let text = read_text(&path)?;
    let (mut first_at, mut ids, mut flags): (HashMap<String, usize>, _, _) = (HashMap::new(), Vec::new(), Vec::new());
    let (mut n_comments, mut n_ids, mut n_names, mut unflagged) = (0, 0, 0, None);
    for (number, line) in lines(&text.text).filter(|(_, line)| !line.is_empty()) {
        let fault = |problem: String| {
            DataError::file(&path, format!("line {number}: {problem}"), "a list has one image id a line")
        };
        let id = match entry(line, images).map_err(fault)? {
            Entry::Comment => {
                n_comments += 1;
                continue;
            }
            Entry::Id(id) => {
                unflagged.get_or_insert(number);
                n_names += usize::from(id != line);
                id
            }
            Entry::Flagged(id, flag) => {
                flags.push((number, flag));
                id
            }
        };
        check_name("an image id", &id).map_err(fault)?;
        n_ids += 1;
        if exclude.has(&id) {
            continue;
        }
        if let Some(first) = first_at.insert(id.clone(), number) {
            let problem = format!("`{}` stands twice, in lines {first} and {number}", shown_of(&id));
            return Err(DataError::file(&path, problem, "remove one of the lines"));
        }
        ids.push(id);
    }
    if !flags.is_empty() && (unflagged.is_some() || flags.iter().any(|(_, flag)| *flag != 1)) {
        let (number, flag) = flags[0];
        let problem = format!(
            "line {number} ends with {flag}: it is a list for one class, as in ImageSets/Main, with 1 where an image has it, \
             -1 where it has not and 0 where it is difficult"
        );
        let hint = format!(
            "write a list of ids alone: those with the class are `awk '$2 == 1 {{print $1}}' {named}.txt`, all of them \
             `awk '{{print $1}}' {named}.txt`"
        );
        return Err(DataError::file(&path, problem, hint));
    }
    if max > 0 {
        ids.truncate(max);
    }
    if ids.is_empty() {
        return Err(match n_ids {
            0 => DataError::EmptyList(path),
            _ => DataError::file(&path, "no image of it is left", "`dataset.exclude` names all of them"),
        });
    }
    let mut parts = vec![counted(n_ids, "id")];
    if n_ids > ids.len() {
        parts.push(format!("{} used", ids.len()));
    }
    parts.extend(text.encoding.clone());
    let unseen = unseen(&text.text);
    parts.extend((n_comments > 0).then(|| format!("{} of comment", counted(n_comments, "line"))));
    parts.extend(unseen.clone());
    // SBD's own lists are of this kind, so it is no note.
    parts.extend((n_names > 0).then(|| format!("{n_names} of them written as the name of a file")));
    parts.extend((!flags.is_empty()).then(|| "each with a 1 behind it, as in ImageSets/Main".to_owned()));
    let line = format!("{named}.txt has {}", parts.join(", "));
    let is_odd = text.encoding.is_some() || n_comments > 0 || unseen.is_some() || !flags.is_empty();
    let notes = is_odd.then(|| format!("ImageSets/Segmentation/{line}")).into_iter().collect();
    Ok(List { ids, line, notes })
}

/// A line is an id, the file of an image, or as in SBD's lists `/JPEGImages/ID.jpg /SegmentationClassAug/ID.png`.
fn entry(line: &str, images: &Folder) -> Result<Entry, String> {
    let unquoted = ['"', '\''].iter().find_map(|quote| line.strip_prefix(*quote)?.strip_suffix(*quote)).unwrap_or(line);
    // Whatever it looks like: an image of this name is there. `ID.xml` names an image by its annotation.
    let here = unquoted.strip_prefix("./").unwrap_or(unquoted);
    let here = here.strip_prefix(IMAGES).and_then(|rest| rest.strip_prefix('/')).unwrap_or(here);
    for id in [unquoted, here, stem(here), here.rsplit_once('.').map_or(here, |(id, _)| id)] {
        if images.has(id) {
            return Ok(Entry::Id(id.to_owned()));
        }
    }
    if line.starts_with('#') {
        return Ok(Entry::Comment);
    }
    if ["<<<<<<<", "=======", ">>>>>>>"].iter().any(|mark| line.starts_with(mark)) {
        return Err(format!("`{}` is a mark of git: two versions of the list were not merged", shown_of(line)));
    }
    let is_path = |token: &str| token.contains(['/', '\\']);
    let of_path = |token: &str| stem(file_name(token)).to_owned();
    let between = [' ', '\t', ',', ';', '"', '\'', '[', ']'];
    let tokens: Vec<&str> = unquoted.split(between).map(super::text::clean).filter(|token| !token.is_empty()).collect();
    match tokens[..] {
        [first, flag] if ["1", "+1", "-1", "0"].contains(&flag) && !is_path(first) => {
            Ok(Entry::Flagged(of_path(first), flag.parse().unwrap_or(0)))
        }
        [first, ..] if is_picture(first) && (is_path(first) || tokens[1..].iter().all(|t| is_picture(t))) => {
            Ok(Entry::Id(of_path(first)))
        }
        [_] if is_path(unquoted) => {
            Err(format!("`{}`: an image id is the name of a file in JPEGImages, without `/`", shown_of(unquoted)))
        }
        // `ID,` of a table with one column.
        [one] if images.has(stem(one)) => Ok(Entry::Id(stem(one).to_owned())),
        [_, _, ..] if tokens.iter().filter(|token| images.has(stem(token))).count() > 1 => {
            Err(format!("`{}` names several images", shown_of(&unquoted.chars().take(80).collect::<String>())))
        }
        _ => Ok(Entry::Id(unquoted.to_owned())),
    }
}

/// The folders of a data set, each listed once.
struct Tree<'a> {
    options: &'a ScanOptions<'a>,
    memo: &'a dyn FileMemo,
    images: Folder,
    masks: Vec<Folder>,
    annotations: Folder,
}

/// An image, with what is to be told of its annotation.
struct Drafted {
    draft: Draft,
    /// Names of classes in it that are not VOC's own.
    other_names: Vec<String>,
    /// Why it is not read, beside a mask that tells the labels.
    unread: Option<String>,
}

impl<'a> Tree<'a> {
    fn list(options: &'a ScanOptions<'a>, memo: &'a dyn FileMemo) -> Result<Self, DataError> {
        let root = Folder::list(options.root);
        let folders = match options.masks {
            Some(folder) if folder.ends_with("SegmentationObject") => {
                let problem = "the masks in SegmentationObject number the objects of an image, not classes";
                let hint = "those of classes are in SegmentationClass or SegmentationClassAug";
                return Err(DataError::file(&options.root.join(folder), problem, hint));
            }
            Some(folder) => vec![options.root.join(folder)],
            None => MASK_FOLDERS.map(|folder| root.folder(folder)).to_vec(),
        };
        // `VOCdevkit` holds the data sets of several years.
        if !root.folder(IMAGES).is_dir() {
            let of_root = |name: &&str| options.root.join(name).join(IMAGES).is_dir();
            if let Some(name) = root.folders().find(of_root) {
                let problem = format!("it has no `{IMAGES}`, but its folder `{}` has", shown_of(name));
                let hint = format!("set `dataset.root` to {}", options.root.join(name).display());
                return Err(DataError::file(options.root, problem, hint));
            }
        }
        Ok(Self {
            options,
            memo,
            images: images_in(&root, IMAGES)?,
            masks: folders.iter().map(|folder| Folder::list(folder)).collect(),
            annotations: Folder::list(&root.folder(ANNOTATIONS)),
        })
    }

    /// A note of folders in other letters.
    fn note_names(&self, notes: &mut Vec<String>) {
        let own = [(&self.images, IMAGES), (&self.annotations, ANNOTATIONS)];
        let masks = self.masks.iter().zip(MASK_FOLDERS).filter(|_| self.options.masks.is_none());
        note_names(own.into_iter().chain(masks), notes);
    }

    fn draft(&self, id: &str, is_train: bool, is_id: &impl Fn(&str) -> bool) -> Result<Drafted, Fault> {
        let source = self.options.labels;
        let image = self.images.image(id, None)?;
        let picture = Picture::open(&image, self.memo)?;
        let name = image.file_name().unwrap_or_default().to_string_lossy();
        let mut mask = None;
        for folder in &self.masks {
            if let Some(path) = folder.mask(id, &name, is_id)? {
                mask = Some(MaskDraft::open(&path, self.memo)?);
                break;
            }
        }
        let xml = match self.annotations.file(&format!("{id}.xml"))? {
            Some(xml) => Some(xml),
            // Some tools add to the name of the image.
            None => self.annotations.file(&format!("{name}.xml"))?,
        };
        let xml = xml.filter(|_| source != LabelSource::Masks);
        let annotated_size = match &xml {
            Some(path) if mask.is_none() && !picture.is_upright() => self.annotated_size(path),
            _ => None,
        };
        let objects = xml.map(|path| self.objects(id, &path));

        let id_shown = shown_of(id);
        let no_mask = || {
            let folders: Vec<String> = self.masks.iter().map(|folder| folder.path.display().to_string()).collect();
            format!("no mask in {}", folders.join(" or "))
        };
        let no_xml = || format!("no Annotations/{id_shown}.xml");
        let mut unread = None;
        let (labels, told, unlabelled, other_names) = match (source, &mask, objects) {
            // What is not needed need not be whole.
            (LabelSource::Auto | LabelSource::Masks, Some(_), objects) => {
                let (told, others) = match objects.transpose() {
                    Ok(told) => told.map_or((None, Vec::new()), |(labels, others)| (Some(labels), others)),
                    Err(fault) => {
                        unread = Some(fault.said());
                        (None, Vec::new())
                    }
                };
                (None, told, "mask is all background", others)
            }
            (_, _, Some(objects)) => {
                let (labels, others) = objects?;
                (Some(labels.clone()), Some(labels), "annotation has no object", others)
            }
            _ if !is_train => (Some(Vec::new()), None, "", Vec::new()),
            (LabelSource::Auto, ..) => return Err(format!("{id_shown}: {} and {}", no_mask(), no_xml()).into()),
            (LabelSource::Masks, ..) => return Err(format!("{id_shown}: {}", no_mask()).into()),
            (LabelSource::Annotations, ..) => return Err(format!("{id_shown}: {}", no_xml()).into()),
        };
        let draft = Draft { id: id.to_owned(), picture, mask, labels, told, annotated_size, unlabelled };
        Ok(Drafted { draft, other_names, unread })
    }

    /// Height and width of the image as an annotation says them, if it does.
    fn annotated_size(&self, path: &Path) -> Option<(usize, usize)> {
        let file: FileRef = file(path, self.memo).ok()?;
        fact("voc_size", &file, self.memo, |bytes| size(bytes)).ok().flatten()
    }

    /// The classes of the objects in an annotation, ascending, and their names where these are not VOC's own.
    fn objects(&self, id: &str, path: &Path) -> Result<(Vec<u8>, Vec<String>), Fault> {
        let file: FileRef = file(path, self.memo)?;
        let names: Vec<String> = fact("voc_names", &file, self.memo, |bytes| names(bytes)).map_err(said)?;
        let (mut labels, mut others) = (Vec::new(), Vec::new());
        for name in names {
            let Some(label) = label_of(&name) else {
                let near = VOC_CLASSES[1..]
                    .iter()
                    .map(|class| (strsim::normalized_levenshtein(class, &name.to_lowercase()), class))
                    .filter(|(like, _)| *like >= 0.7)
                    .max_by(|a, b| a.0.total_cmp(&b.0));
                let near = near.map_or(String::new(), |(_, class)| format!("did you mean `{class}`? "));
                return Err(Fault::new(
                    format!("{}: `{}`: no class `{}`", shown_of(id), path.display(), shown_of(&name)),
                    format!(
                        "{near}PASCAL VOC has 20 classes; classes of your own are read with `dataset.kind = \"folder\"` or \
                         \"coco\""
                    ),
                ));
            };
            labels.push(label);
            others.extend((VOC_CLASSES[usize::from(label)] != name).then_some(name));
        }
        labels.sort_unstable();
        labels.dedup();
        Ok((labels, others))
    }

    /// A note of names that were understood as VOC's.
    fn other_names<'b>(&self, drafts: impl Iterator<Item = &'b Drafted>) -> Option<String> {
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        drafts.flat_map(|drafted| &drafted.other_names).for_each(|name| *counts.entry(name).or_default() += 1);
        let class = |name: &str| label_of(name).map_or("", |label| VOC_CLASSES[usize::from(label)]);
        let named: Vec<String> =
            counts.iter().map(|(name, n)| format!("`{name}` ({n} objects) as {}", class(name))).collect();
        (!named.is_empty()).then(|| format!("names in Annotations are read as VOC's classes: {}", some_of(&named)))
    }
}

fn xml_text(bytes: &[u8]) -> anyhow::Result<String> {
    Ok(decode_xml(bytes).map_err(|NotText { problem, hint }| anyhow::anyhow!("{problem}; {hint}"))?.text)
}

fn document(text: &str) -> anyhow::Result<roxmltree::Document<'_>> {
    let options = roxmltree::ParsingOptions { allow_dtd: true, nodes_limit: MAX_NODES, ..Default::default() };
    roxmltree::Document::parse_with_options(text.trim_start(), options).context("not a whole XML file")
}

fn is(node: &roxmltree::Node<'_, '_>, name: &str) -> bool {
    node.tag_name().name().eq_ignore_ascii_case(name)
}

/// Height and width in an annotation; tools that do not know them write none, or 0.
fn size(bytes: &[u8]) -> anyhow::Result<Option<(usize, usize)>> {
    let text = xml_text(bytes)?;
    let document = document(&text)?;
    let size = document.root_element().children().find(|node| is(node, "size"));
    let side = |name: &str| -> Option<usize> {
        let side: usize = size?.children().find(|node| is(node, name))?.text()?.trim().parse().ok()?;
        Some(side).filter(|side| *side > 0)
    };
    Ok(side("height").zip(side("width")))
}

/// The names of the objects in an annotation.
fn names(bytes: &[u8]) -> anyhow::Result<Vec<String>> {
    let text = xml_text(bytes)?;
    let document = document(&text)?;
    let root = document.root_element();
    let objects: Vec<_> = root.children().filter(|node| is(node, "object")).collect();
    if objects.is_empty() && !is(&root, "annotation") {
        bail!("its root is `{}`, and an annotation of PASCAL VOC has `annotation`", shown_of(root.tag_name().name()));
    }
    // A person's parts have names too; they are no children of the object.
    let name = |object: roxmltree::Node<'_, '_>| {
        let mut names = object.children().filter(|node| is(node, "name"));
        let name = names.next().context("an object without a name")?;
        ensure!(names.next().is_none(), "an object with two names");
        let text: String = name.descendants().filter(|node| node.is_text()).filter_map(|node| node.text()).collect();
        let text = super::text::clean(&text);
        ensure!(!text.is_empty(), "an object whose name is empty");
        Ok(text.to_owned())
    };
    objects.into_iter().map(name).collect()
}

/// The label of a class by VOC's name for it, COCO's, or one of these in other letters or with spaces.
fn label_of(name: &str) -> Option<u8> {
    let folded: String = name.to_lowercase().chars().filter(|c| ![' ', '_', '-'].contains(c)).collect();
    let other = OTHER_NAMES.iter().find(|(other, _)| *other == folded).map(|(_, own)| *own);
    let own = other.unwrap_or(&folded);
    VOC_CLASSES.iter().skip(1).position(|class| *class == own).map(|at| at as u8 + 1)
}

#[cfg(test)]
mod tests {
    use super::super::scan::tests::{NoMemo, options, without_overlap};
    use super::*;
    use crate::data::Mask;
    use crate::data::image::{encode_label_map, encode_rgb};
    use crate::vision::{Grid, Rgb};

    fn tree(label: u8, mask_width: usize) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for folder in ["JPEGImages", "SegmentationClass", "ImageSets/Segmentation", "Annotations"] {
            fs::create_dir_all(dir.path().join(folder)).unwrap();
        }
        fs::write(dir.path().join("ImageSets/Segmentation/train.txt"), "a\n").unwrap();
        fs::write(dir.path().join("ImageSets/Segmentation/val.txt"), "a\n").unwrap();
        let image = Rgb { height: 4, width: 4, data: vec![9; 48] };
        for id in ["a", "b"] {
            fs::write(dir.path().join(format!("JPEGImages/{id}.png")), encode_rgb(&image)).unwrap();
        }
        let mut mask = Grid::filled(4, mask_width, 0u8);
        mask.data[0] = label;
        fs::write(dir.path().join("SegmentationClass/a.png"), encode_label_map(&mask)).unwrap();
        dir
    }

    fn scan_at(root: &Path) -> Result<Dataset, DataError> {
        scan(&options(root), &NoMemo)
    }

    /// `tree` with other lists.
    fn listed(train: &str, val: &str) -> tempfile::TempDir {
        let dir = tree(8, 4);
        fs::write(dir.path().join("ImageSets/Segmentation/train.txt"), train).unwrap();
        fs::write(dir.path().join("ImageSets/Segmentation/val.txt"), val).unwrap();
        dir
    }

    fn annotate(dir: &tempfile::TempDir, id: &str, objects: &str) {
        let xml = format!("<annotation><filename>{id}.jpg</filename>{objects}</annotation>");
        fs::write(dir.path().join(format!("Annotations/{id}.xml")), xml).unwrap();
    }

    const PERSON: &str = "<object><name>person</name><difficult>0</difficult><part><name>head</name></part></object>";
    const HARD_CAT: &str = "<object><name>cat</name><difficult>1</difficult></object>";

    #[test]
    fn a_good_tree() {
        let dir = tree(8, 4);
        let dataset = scan_at(dir.path()).unwrap();
        assert_eq!((dataset.train[0].labels.as_slice(), dataset.train[0].width), (&[8u8][..], 4));
        assert_eq!(without_overlap(&dataset.notes), [""; 0]);
        assert!(dataset.notes[0].starts_with("1 of 1 val images are train images too, e.g. a.png"));
    }

    #[test]
    fn labels_from_annotations() {
        let dir = listed("a\nb\n", "a\n");
        annotate(&dir, "a", &[PERSON, PERSON].concat());
        annotate(&dir, "b", &[PERSON, HARD_CAT].concat());
        let labels = |source: LabelSource| {
            let options = ScanOptions { labels: source, ..options(dir.path()) };
            scan(&options, &NoMemo)
                .map(|dataset| dataset.train.iter().map(|item| item.labels.clone()).collect::<Vec<_>>())
        };
        // The mask of `a` has a cat, its annotation a person; `b` has no mask.
        assert_eq!(labels(LabelSource::Auto).unwrap(), [vec![8], vec![8, 15]]);
        assert_eq!(labels(LabelSource::Annotations).unwrap(), [vec![15], vec![8, 15]]);
        let error = labels(LabelSource::Masks).unwrap_err().to_string();
        assert!(error.contains("1 of 2 train images") && error.contains("b: no mask in"), "{error}");
        let dataset = scan_at(dir.path()).unwrap();
        assert!(matches!(dataset.train[0].mask, Some(Mask::File(_))) && dataset.train[1].mask.is_none());
        assert_eq!(
            without_overlap(&dataset.notes),
            [
                "Annotations and the masks differ for 1 of 1 train images that have both, e.g. a: person in Annotations, cat \
                 in its mask",
                "no mask of a train image has person, which Annotations has in 1 of these images: it is scored nowhere",
                "Annotations and the masks differ for 1 of 1 val images that have both, e.g. a: person in Annotations, cat in \
                 its mask",
                "no mask of a val image has person, which Annotations has in 1 of these images: it is scored nowhere",
                "1 of 2 train images have no mask: seeds and pseudo-labels are scored without them",
            ]
        );
    }

    #[test]
    fn a_test_list_has_no_masks() {
        let notes = scan_at(listed("a\n", "b\n").path()).unwrap().notes;
        assert_eq!(without_overlap(&notes), ["no val image has a mask: predictions are made, but not scored"]);
        let error = scan_at(listed("a\n", "a\nb\n").path()).unwrap_err();
        assert!(error.to_string().contains("1 of 2 val images cannot be used:\n  b: no mask, but others have one"));
        assert!(error.hint().contains("dataset.exclude"));
    }

    #[test]
    fn lists_of_sbd() {
        for line in
            ["a", "/JPEGImages/a.jpg /SegmentationClassAug/a.png", "JPEGImages/a.jpg SegmentationClassAug/a.png"]
        {
            assert_eq!(scan_at(listed(line, "a").path()).unwrap().train[0].id, "a", "{line}");
        }
    }

    #[test]
    fn bad_trees_are_named() {
        let truncated = tree(8, 4);
        let image = truncated.path().join("JPEGImages/a.png");
        let bytes = fs::read(&image).unwrap();
        fs::write(&image, &bytes[..bytes.len() / 2]).unwrap();
        // A JPEG that is cut off decodes to grey below.
        let cut_off = tree(8, 4);
        fs::remove_file(cut_off.path().join("JPEGImages/a.png")).unwrap();
        let jpeg = include_bytes!("../../tests/golden/pixels/4x4.jpg");
        fs::write(cut_off.path().join("JPEGImages/a.jpg"), jpeg).unwrap();
        scan_at(cut_off.path()).unwrap();
        fs::write(cut_off.path().join("JPEGImages/a.jpg"), &jpeg[..jpeg.len() - 4]).unwrap();
        let not_a_text = tree(8, 4);
        fs::write(not_a_text.path().join("ImageSets/Segmentation/val.txt"), [0xff, 0xfe, b'a']).unwrap();
        let no_image = tree(8, 4);
        fs::remove_file(no_image.path().join("JPEGImages/a.png")).unwrap();
        let no_list = tree(8, 4);
        fs::remove_file(no_list.path().join("ImageSets/Segmentation/val.txt")).unwrap();
        let annotated = |objects: &str| {
            let dir = listed("b\n", "a\n");
            annotate(&dir, "b", objects);
            dir
        };
        for (dir, expected) in [
            (tree(57, 4), "it has the number 57 (1 pixels); known are 0..=20 and 255"),
            (tree(8, 5), "a: the mask is 5x4, the image 4x4"),
            (tree(0, 4), "a: a training image without a label: its mask is all background"),
            (truncated, "not a whole PNG image"),
            (cut_off, "the JPEG is cut off"),
            (not_a_text, "val.txt`: it begins as UTF-16 and is not whole"),
            (no_image, "a: no image"),
            (no_list, "there are: train.txt"),
            (listed("b\n", "a\n"), "SegmentationClassAug and no Annotations/b.xml"),
            (listed("x/y\n", "a\n"), "line 1: `x/y`: an image id is the name of a file in JPEGImages"),
            (listed("a\na\n", "a\n"), "`a` stands twice, in lines 1 and 2"),
            (annotated(""), "b: a training image without a label: its annotation has no object"),
            (annotated("<object><name>zebra</name></object>"), "Annotations/b.xml`: no class `zebra`"),
            (annotated("<object>"), "Annotations/b.xml`: not a whole XML file"),
            (annotated("<object></object>"), "Annotations/b.xml`: an object without a name"),
        ] {
            let message = scan_at(dir.path()).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        }
        assert!(matches!(scan_at(Path::new("/nowhere")), Err(DataError::NoRoot(_))));
        let dir = tree(8, 4);
        let named = ScanOptions { masks: Some(Path::new("SegmentationClas")), ..options(dir.path()) };
        let error = scan(&named, &NoMemo).unwrap_err();
        assert!(error.to_string().contains("SegmentationClas`: no folder of masks"), "{error}");
    }

    #[test]
    fn voc_s_own_masks_come_first_and_sbd_s_are_named() {
        let dir = listed("a\nb\n", "a\n");
        let sbd = dir.path().join("SegmentationClassAug");
        fs::create_dir(&sbd).unwrap();
        for id in ["a", "b"] {
            fs::write(sbd.join(format!("{id}.png")), encode_label_map(&Grid::filled(4, 4, 3))).unwrap();
        }
        let Dataset { train, val, notes, .. } = scan_at(dir.path()).unwrap();
        assert_eq!((&train[0].labels[..], &train[1].labels[..], &val[0].labels[..]), (&[8][..], &[3][..], &[8][..]));
        assert_eq!(without_overlap(&notes).len(), 1);
        assert!(notes[0].starts_with("train is scored with 1 masks of SegmentationClass and 1 of"), "{notes:?}");
    }
}
