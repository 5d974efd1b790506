//! `instances_*.json`, read once from start to end: an outline becomes a few bytes as soon as it is read, so the
//! 604,907 annotations of train2014 never stand in memory as JSON.

use std::collections::{HashMap, HashSet};
use std::io::Read;

use serde::{Deserialize, Serialize};

use super::loose::{Id, Loose, Segmentation, as_json};
use super::outlines::{Shape, in_order};
use crate::data::image::MAX_PIXELS;
use crate::data::text::{NotText, check_name, clean, is_background, shown_of};
use crate::vision::IGNORE;

/// A corner so far outside of its image, in pixels, is no rounding.
const BEYOND: f64 = 2.0;

/// One image with what is in it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Picture {
    pub(super) file_name: String,
    /// Height and width, where the file says them.
    pub(super) size: Option<(usize, usize)>,
    /// The labels of all its annotations, ascending.
    pub(super) labels: Vec<u8>,
    /// The labels of its annotations with an outline, ascending; crowds are left out.
    pub(super) in_mask: Vec<u8>,
    /// Each pixel is known to be of a class, of none, or ignored.
    pub(super) is_scored: bool,
    /// See [`super::outlines::outlines`].
    #[serde(skip)]
    pub(super) shapes: Vec<u8>,
}

/// What a file says.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Instances {
    /// Background first, then the categories by id.
    pub(super) classes: Vec<String>,
    /// Those with an annotation, by id.
    pub(super) pictures: Vec<Picture>,
    pub(super) counts: Counts,
}

/// The numbers of a file that notes tell.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Counts {
    pub(super) pictures: usize,
    pub(super) annotations: usize,
    /// Annotations without an outline: with a box, and with neither.
    pub(super) boxes: usize,
    pub(super) bare: usize,
    pub(super) crowds: usize,
    /// Annotations with a corner outside of the image.
    pub(super) beyond: usize,
    /// Annotations without an id, or with that of another.
    pub(super) without_id: usize,
    /// Images whose size the file does not say.
    pub(super) without_size: usize,
    /// A category of this name that no annotation has and that is no class.
    pub(super) background: Option<String>,
}

/// A file that is not read, and what to do about it.
pub(super) struct Unread {
    pub(super) problem: String,
    pub(super) hint: String,
}

/// The hint for an annotation that cannot be read.
const MEND: &str = "mend this annotation, or leave it out";
/// The hint for an entry of `images` that cannot be read.
const MEND_IMAGE: &str = "mend this entry of `images`, or leave it out with its annotations";
/// The hint for `categories` that cannot be read.
const MEND_CATEGORY: &str = "mend `categories`: a list of classes, each with an `id` and a `name` of its own, as \
                             {\"id\": 1, \"name\": \"cat\"}";
const HINT: &str =
    "the file has to be as COCO's instances_*.json: an object with `images`, `annotations` and `categories`";

impl Unread {
    fn new(problem: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { problem: problem.into(), hint: hint.into() }
    }
}

#[derive(Deserialize)]
#[serde(expecting = "an object with `images`, `annotations` and `categories`")]
struct File {
    images: Vec<Image>,
    #[serde(default)]
    annotations: Option<Vec<Annotation>>,
    categories: Vec<Category>,
}

#[derive(Deserialize)]
#[serde(expecting = "an image, as an object")]
struct Image {
    #[serde(default)]
    id: Id,
    #[serde(default)]
    file_name: Value,
    #[serde(default)]
    height: Value,
    #[serde(default)]
    width: Value,
}

#[derive(Deserialize)]
#[serde(expecting = "a category, as an object")]
struct Category {
    #[serde(default)]
    id: Id,
    #[serde(default)]
    name: Value,
}

#[derive(Deserialize)]
#[serde(expecting = "an annotation, as an object")]
struct Annotation {
    #[serde(default)]
    id: Id,
    #[serde(default)]
    image_id: Id,
    #[serde(default)]
    category_id: Id,
    #[serde(default)]
    iscrowd: Value,
    #[serde(default)]
    area: Area,
    #[serde(default)]
    bbox: Bbox,
    #[serde(default)]
    segmentation: Segmentation,
}

/// A number, or what stands in its place.
#[derive(Default)]
struct Value(Option<Box<Loose>>);

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(match Loose::deserialize(deserializer)? {
            Loose::Null => Self(None),
            other => Self(Some(Box::new(other))),
        })
    }
}

/// A number of pixels, where it is one.
#[derive(Default)]
struct Area(Option<f64>);

impl<'de> Deserialize<'de> for Area {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self(Loose::deserialize(deserializer)?.number().filter(|area| area.is_finite() && *area >= 0.0)))
    }
}

/// Left, top, width and height, where there is such a box.
#[derive(Default)]
struct Bbox(Option<Box<[f64; 4]>>);

impl<'de> Deserialize<'de> for Bbox {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let numbers = Loose::deserialize(deserializer)?.numbers().unwrap_or_default();
        let bbox = <[f64; 4]>::try_from(numbers).ok().filter(|bbox| bbox.iter().all(|v| v.is_finite()));
        Ok(Self(bbox.filter(|[_, _, width, height]| *width > 0.0 && *height > 0.0).map(Box::new)))
    }
}

impl Bbox {
    fn shape(&self) -> Option<Shape> {
        let [x, y, width, height] = **self.0.as_ref()?;
        Some(Shape::polygons(&[vec![x, y, x + width, y, x + width, y + height, x, y + height]]))
    }
}

impl Value {
    /// `iscrowd`: 0 and 1, also as a boolean.
    fn is_set(&self) -> Result<bool, String> {
        let value = self.0.as_deref();
        match value {
            None => Ok(false),
            Some(Loose::Bool(value)) => Ok(*value),
            Some(Loose::Text(text)) if ["true", "false"].contains(&text.to_lowercase().as_str()) => {
                Ok(text.eq_ignore_ascii_case("true"))
            }
            Some(other) => match other.whole() {
                Some(0) => Ok(false),
                Some(1) => Ok(true),
                _ => Err(format!("its `iscrowd` is {other}, neither 0 nor 1")),
            },
        }
    }

    /// A text without what cannot be seen at its ends.
    fn text(&self) -> Result<&str, String> {
        match self.0.as_deref() {
            Some(Loose::Text(text)) => Ok(clean(text)),
            None => Err("is missing".to_owned()),
            Some(other) => Err(format!("is {other}, no text")),
        }
    }

    /// Pixels along a side; `None`: the file does not say.
    fn side(&self, what: &str) -> Result<Option<usize>, String> {
        let Some(value) = self.0.as_deref() else { return Ok(None) };
        let side = value.whole().and_then(|side| usize::try_from(side).ok()).filter(|side| *side > 0);
        side.map(Some).ok_or_else(|| format!("its {what} is {value}"))
    }
}

impl Annotation {
    /// An outline that is drawn, though its corners may lie outside of an image; where all are outside, nothing is.
    fn paints(&self, size: Option<(usize, usize)>) -> bool {
        match (&self.segmentation, size) {
            (Segmentation::Polygons { bounds: [left, top, right, bottom], .. }, Some((height, width))) => {
                *right > 0.0 && *bottom > 0.0 && *left < width as f64 && *top < height as f64
            }
            (segmentation, _) => matches!(segmentation, Segmentation::Polygons { .. } | Segmentation::Runs { .. }),
        }
    }

    /// Its outline lies within the first pixel, and whether not all of its corners are those of the pixel.
    fn in_first_pixel(&self) -> Option<bool> {
        let Segmentation::Polygons { bounds, .. } = &self.segmentation else { return None };
        let is_within = bounds.iter().all(|corner| (0.0..=1.0).contains(corner));
        is_within.then(|| bounds.iter().any(|corner| corner.fract() != 0.0))
    }

    /// For messages.
    fn name(&self, place: usize) -> String {
        match &self.id {
            Id::None(_) => format!("annotation no. {} (of image {})", place + 1, self.image_id),
            id => format!("annotation {id}"),
        }
    }
}

/// Places by id. A text of digits is found by its number where no other id is that number.
struct Ids {
    places: HashMap<Id, usize>,
    by_number: HashMap<i128, Option<usize>>,
}

impl Ids {
    /// # Errors
    /// An id that stands twice, or is none.
    fn of<'a>(what: &str, ids: impl Iterator<Item = &'a Id>) -> Result<Self, String> {
        let (mut places, mut by_number) = (HashMap::new(), HashMap::new());
        for (place, id) in ids.enumerate() {
            if let Id::None(other) = id {
                return Err(format!("the id of {what} no. {} is {other}", place + 1));
            }
            if places.insert(id.clone(), place).is_some() {
                return Err(format!("{what} id {id} stands twice"));
            }
            if let Some(number) = id.number() {
                by_number.entry(number).and_modify(|place| *place = None).or_insert(Some(place));
            }
        }
        Ok(Self { places, by_number })
    }

    fn at(&self, place: usize) -> Option<&Id> {
        self.places.iter().find(|(_, at)| **at == place).map(|(id, _)| id)
    }

    fn find(&self, id: &Id) -> Option<usize> {
        self.places.get(id).copied().or_else(|| *self.by_number.get(&id.number()?)?)
    }
}

/// Ids that annotations name and that are not there.
struct Strangers {
    field: &'static str,
    n: usize,
    of: usize,
    /// All ids would be there if so much were added to each.
    shift: Option<i128>,
}

impl Strangers {
    fn of<'a>(ids: impl Iterator<Item = &'a Id>, field: &'static str, known: &Ids) -> Self {
        let ids: Vec<&Id> = ids.collect();
        let n = ids.iter().filter(|id| known.find(id).is_none()).count();
        let is_there =
            |id: &&Id, shift: i128| id.number().is_some_and(|id| known.find(&Id::Number(id + shift)).is_some());
        let shift = [1, -1].into_iter().find(|shift| ids.iter().all(|id| is_there(id, *shift)));
        Self { field, n, of: ids.len(), shift }
    }

    /// `problem` is that of the first of them; `hint` says what to do about it, where its id tells that.
    fn unread(&self, problem: String, hint: Option<String>) -> Unread {
        let Self { field, n, of, shift } = self;
        let problem = if *n > 1 { format!("{problem}; so are {n} of {of} annotations") } else { problem };
        match (shift, hint) {
            (Some(shift), _) => {
                let (less, change) = if *shift > 0 { ("less", "add 1 to") } else { ("more", "take 1 from") };
                Unread::new(
                    format!("{problem}: every `{field}` is 1 {less} than an id that is there"),
                    format!("if the file counts from another number, {change} every `{field}`"),
                )
            }
            (None, Some(hint)) => Unread::new(problem, hint),
            (None, None) if *n > 1 => Unread::new(problem, format!("mend `{field}` in all of these annotations")),
            (None, None) => Unread::new(problem, MEND),
        }
    }
}

impl Instances {
    /// # Errors
    /// The file is no JSON of that kind (with line and column), or contradicts itself.
    pub(super) fn read(file: impl Read) -> Result<Self, Unread> {
        let json = as_json(file).map_err(|error| Unread::new(error.to_string(), "check the file"))?;
        let json = json.map_err(|NotText { problem, hint }| Unread { problem, hint })?;
        let unread = |error: serde_json::Error| {
            let hint = match error.classify() {
                serde_json::error::Category::Eof => "the file is cut off; get it again",
                _ => HINT,
            };
            Unread::new(shown_of(&error.to_string()), hint)
        };
        let file = serde_json::from_reader(std::io::BufReader::with_capacity(1 << 16, json)).map_err(unread)?;
        let File { images, annotations, categories } = file;
        let annotations = annotations.unwrap_or_default();
        let mut counts = Counts { pictures: images.len(), annotations: annotations.len(), ..Counts::default() };

        let categories = Categories::of(categories, &annotations, &mut counts)?;
        let images_by_id = Ids::of("image", images.iter().map(|image| &image.id)).map_err(|problem| {
            Unread::new(problem, "give each entry of `images` an `id` of its own, a whole number or a text, once")
        })?;
        let mut by_image: Vec<Vec<(usize, u8)>> = vec![Vec::new(); images.len()];
        let mut ids = HashSet::with_capacity(annotations.len());
        for (place, annotation) in annotations.iter().enumerate() {
            let Annotation { id, image_id, category_id, segmentation, bbox, .. } = annotation;
            let name = || annotation.name(place);
            // Nothing is found by it.
            counts.without_id += usize::from(matches!(id, Id::None(_)) || !ids.insert(id));
            if let Some(field) =
                [(category_id, "category_id"), (image_id, "image_id")].into_iter().find(|(id, _)| **id == Id::default())
            {
                return Err(Unread::new(format!("{} has no `{}`", name(), field.1), MEND));
            }
            let Some(label) = categories.label(category_id) else {
                let problem = format!("{} has category {category_id}, which is not in `categories`", name());
                let ids = annotations.iter().map(|annotation| &annotation.category_id);
                let strangers = Strangers::of(ids, "category_id", &categories.ids);
                return Err(strangers.unread(problem, categories.mend(category_id)));
            };
            let Some(image) = images_by_id.find(image_id) else {
                let problem = format!("{} is of image {image_id}, which is not in `images`", name());
                let ids = annotations.iter().map(|annotation| &annotation.image_id);
                return Err(Strangers::of(ids, "image_id", &images_by_id).unread(problem, None));
            };
            match (segmentation, &bbox.0) {
                (Segmentation::Fault(fault), _) => {
                    return Err(Unread::new(format!("{}: {fault}", name()), MEND));
                }
                (Segmentation::Empty, Some(_)) => counts.boxes += 1,
                (Segmentation::Empty, None) => counts.bare += 1,
                _ => {}
            }
            by_image[image].push((place, label));
        }

        let outlined = annotations.iter().filter(|annotation| annotation.paints(None));
        let in_first: Option<Vec<bool>> = outlined.map(Annotation::in_first_pixel).collect();
        if in_first.is_some_and(|in_first| in_first.contains(&true)) {
            return Err(Unread::new(
                "all outlines lie within the first pixel of their images: their coordinates are parts of the image's size",
                "COCO's coordinates are pixels: multiply x by the width and y by the height of the image",
            ));
        }
        let mut order: Vec<usize> = (0..images.len()).collect();
        order.sort_by(|&a, &b| images[a].id.cmp(&images[b].id));
        let mut pictures = Vec::new();
        for at in order {
            let named = images[at].file_name.text().map_err(|what| {
                Unread::new(format!("the `file_name` of image {} {what}", images[at].id), MEND_IMAGE)
            })?;
            check_name("the file name of an image", named).map_err(|problem| Unread::new(problem, MEND_IMAGE))?;
            let of_image = std::mem::take(&mut by_image[at]);
            if !of_image.is_empty() {
                pictures.push(picture(named, &images[at], &annotations, &of_image, &mut counts)?);
            }
        }
        Ok(Self { classes: categories.classes, pictures, counts })
    }
}

/// Classes, and labels by id: 1 is the lowest id, without gaps.
struct Categories {
    classes: Vec<String>,
    ids: Ids,
    /// By place; `None`: background.
    labels: Vec<Option<u8>>,
}

impl Categories {
    fn of(mut categories: Vec<Category>, annotations: &[Annotation], counts: &mut Counts) -> Result<Self, Unread> {
        categories.sort_by(|a, b| a.id.cmp(&b.id));
        let unread = |problem: String| Unread::new(problem, MEND_CATEGORY);
        let ids = Ids::of("category", categories.iter().map(|category| &category.id)).map_err(unread)?;
        let mut classes = vec!["background".to_owned()];
        let mut labels = Vec::new();
        for (place, Category { id, name }) in categories.iter().enumerate() {
            let name = name.text().map_err(|what| unread(format!("the name of category {id} {what}")))?;
            check_name("the name of a category", name).map_err(unread)?;
            if is_background(name) {
                if let Some(annotation) = annotations.iter().find(|a| ids.find(&a.category_id) == Some(place)) {
                    return Err(Unread::new(
                        format!(
                            "category {id} is named `{}`, and annotation {} is of it",
                            shown_of(name),
                            annotation.id
                        ),
                        "what no object covers is background already: rename the category if it is a class, or leave out its \
                         annotations",
                    ));
                }
                counts.background = Some(name.to_owned());
                labels.push(None);
                continue;
            }
            if classes.iter().any(|class| class == name) {
                return Err(unread(format!("two categories are named `{}`", shown_of(name))));
            }
            labels.push(u8::try_from(classes.len()).ok());
            classes.push(name.to_owned());
        }
        match classes.len() - 1 {
            1..=254 => Ok(Self { classes, ids, labels }),
            n => Err(unread(format!("{n} categories; there can be 1 to 254"))),
        }
    }

    fn label(&self, id: &Id) -> Option<u8> {
        self.labels[self.ids.find(id)?]
    }

    /// What to do about an annotation that names a category in place of its id.
    fn mend(&self, id: &Id) -> Option<String> {
        let Id::Text(name) = id else { return None };
        let label = self.classes.iter().position(|class| **class == **name)?;
        let place = self.labels.iter().position(|of| of.is_some_and(|of| usize::from(of) == label))?;
        let id = self.ids.at(place)?;
        Some(format!("`category_id` is the id of a category, not its name: write {id}"))
    }
}

/// The smallest object lies on top, of equals the first (the rule of coco2voc, which the field's COCO masks are made
/// with); crowds are ignored, and lie below all objects, and so are boxes of objects without an outline.
fn picture(
    file_name: &str,
    image: &Image,
    annotations: &[Annotation],
    of_image: &[(usize, u8)],
    counts: &mut Counts,
) -> Result<Picture, Unread> {
    let of_file = |problem: String| Unread::new(format!("image `{}`: {problem}", shown_of(file_name)), MEND_IMAGE);
    let sides = (image.height.side("height").map_err(of_file)?, image.width.side("width").map_err(of_file)?);
    let mut size = match sides {
        (Some(height), Some(width)) if height.saturating_mul(width) > MAX_PIXELS => {
            return Err(of_file(format!("it is said to have {width}x{height} pixels; at most {MAX_PIXELS} are read")));
        }
        (Some(height), Some(width)) => Some((height, width)),
        _ => None,
    };
    counts.without_size += usize::from(size.is_none());
    let (mut labels, mut in_mask) = (Vec::new(), Vec::new());
    let (mut shapes, mut boxes) = (Vec::new(), Vec::new());
    let (mut has_outline, mut is_known) = (false, true);
    for &(place, label) in of_image {
        let annotation = &annotations[place];
        let name = || annotation.name(place);
        let fault = |problem: String| Unread::new(problem, MEND);
        let is_crowd = annotation.iscrowd.is_set().map_err(|problem| fault(format!("{}: {problem}", name())))?;
        labels.push(label);
        let (shape, own_area) = match &annotation.segmentation {
            Segmentation::Empty | Segmentation::Fault(_) => {
                boxes.extend(annotation.bbox.shape());
                is_known &= annotation.bbox.0.is_some();
                continue;
            }
            Segmentation::Polygons { shape, area, bounds: [left, top, right, bottom] } => {
                let is_beyond = |(height, width): (usize, usize)| {
                    left.min(*top) < -BEYOND || *right > width as f64 + BEYOND || *bottom > height as f64 + BEYOND
                };
                counts.beyond += usize::from(size.is_some_and(is_beyond));
                // The smaller of two objects lies on top. Where the file does not say an area, pixels are counted.
                let pixels = size.filter(|_| annotation.area.0.is_none()).map(|size| shape.pixels(size) as f64);
                (shape, pixels.unwrap_or(*area))
            }
            Segmentation::Runs { shape, size: of_runs, pixels, area } => {
                let (height, width) = *size.get_or_insert(*of_runs);
                if *of_runs != (height, width) {
                    let (h, w) = of_runs;
                    return Err(fault(format!("{} is an RLE of {w}x{h} in an image of {width}x{height}", name())));
                }
                if *pixels != height as u64 * width as u64 {
                    let of = height as u64 * width as u64;
                    return Err(fault(format!("{} is an RLE of {pixels} pixels in an image of {of}", name())));
                }
                (shape, *area)
            }
        };
        has_outline = true;
        counts.crowds += usize::from(is_crowd);
        in_mask.extend((!is_crowd && annotation.paints(size)).then_some(label));
        let area = annotation.area.0.unwrap_or(own_area);
        shapes.push((!is_crowd, area, if is_crowd { IGNORE } else { label }, shape));
    }
    shapes.reverse();
    shapes.sort_by(|a, b| a.0.cmp(&b.0).then(b.1.total_cmp(&a.1)));
    let painted =
        boxes.iter().map(|shape| (IGNORE, shape)).chain(shapes.iter().map(|&(_, _, label, shape)| (label, shape)));
    let shapes = in_order(painted);
    for labels in [&mut labels, &mut in_mask] {
        labels.sort_unstable();
        labels.dedup();
    }
    let (file_name, is_scored) = (file_name.to_owned(), has_outline && is_known);
    Ok(Picture { file_name, size, labels, in_mask, is_scored, shapes })
}

#[cfg(test)]
mod tests {
    use super::super::outlines::{outlines, paint_mask};
    use super::*;

    /// An image of 4x3 with one category, and annotations.
    fn file(annotations: &str) -> String {
        format!(
            r#"{{"info": {{}}, "annotations": [{annotations}],
                "images": [{{"id": 7, "file_name": "a.jpg", "height": 3, "width": 4}}],
                "categories": [{{"id": 9, "name": "cow"}}, {{"id": 5, "name": "cat"}}]}}"#
        )
    }

    fn read(text: &str) -> Result<Instances, String> {
        Instances::read(text.as_bytes()).map_err(|unread| unread.problem)
    }

    fn painted(Picture { size, shapes, .. }: &Picture) -> Vec<u8> {
        paint_mask(&outlines(size.unwrap(), shapes)).unwrap().data
    }

    fn annotation(id: u64, rest: &str) -> String {
        format!(r#"{{"id": {id}, "image_id": 7, {rest}}}"#)
    }

    const LEFT: &str = r#""category_id": 5, "area": 6, "segmentation": [[0, 0, 2, 0, 2, 3, 0, 3]]"#;
    const TOP: &str =
        r#""category_id": 9, "area": 4, "segmentation": {"counts": [0, 1, 2, 1, 2, 1, 2, 1, 2], "size": [3, 4]}"#;

    #[test]
    fn the_smallest_lies_on_top_and_crowds_below() {
        let mask = |annotations: &[String]| {
            let found = read(&file(&annotations.join(", "))).unwrap();
            assert_eq!(found.classes, ["background", "cat", "cow"]);
            painted(&found.pictures[0])
        };
        let (left, top) = (annotation(1, LEFT), annotation(2, TOP));
        let expected = [2, 2, 2, 2, 1, 1, 0, 0, 1, 1, 0, 0];
        assert_eq!(mask(&[left.clone(), top.clone()]), expected);
        assert_eq!(mask(&[top.clone(), left.clone()]), expected);
        // Of equals the first; an area that is not there is counted.
        let equal =
            TOP.replace("\"area\": 4, ", "").replace("9", "5").replace("[0, 1, 2, 1, 2, 1, 2, 1, 2]", "[0, 6, 6]");
        let other = LEFT.replace('5', "9");
        let both = [annotation(1, &other), annotation(2, &equal)];
        assert_eq!(mask(&both), [2, 2, 0, 0, 2, 2, 0, 0, 2, 2, 0, 0]);
        let crowd = annotation(2, &TOP.replace("\"area\"", "\"iscrowd\": 1, \"area\""));
        assert_eq!(mask(&[left, crowd]), [1, 1, 255, 255, 1, 1, 0, 0, 1, 1, 0, 0]);
    }

    #[test]
    fn objects_without_an_outline_are_labels_that_are_not_scored() {
        let empty =
            [r#""category_id": 5, "segmentation": []"#, r#""category_id": 9, "segmentation": [[1, 1, 2, 2], []]"#];
        let found = read(&file(&[annotation(1, empty[0]), annotation(2, empty[1])].join(","))).unwrap();
        assert_eq!((found.counts.pictures, found.counts.bare, found.counts.annotations), (1, 2, 2));
        let Picture { labels, in_mask, is_scored, .. } = &found.pictures[0];
        assert_eq!((labels.as_slice(), in_mask.len(), *is_scored), (&[1, 2][..], 0, false));
        // Beside an outline, what a box covers is ignored where no outline lies.
        let boxed = annotation(2, r#""category_id": 9, "bbox": [1, 0, 3, 1]"#);
        let found = read(&file(&[annotation(1, LEFT), boxed].join(","))).unwrap();
        let Picture { labels, in_mask, is_scored, .. } = &found.pictures[0];
        assert_eq!((labels.as_slice(), in_mask.as_slice(), *is_scored), (&[1, 2][..], &[1][..], true));
        assert_eq!(painted(&found.pictures[0]), [1, 1, 255, 255, 1, 1, 0, 0, 1, 1, 0, 0]);
        // The corners that are left make the shape.
        let part = r#""category_id": 5, "segmentation": [[1, 1, 2, 2], [0, 0, 1, 0, 1, 1, 0, 1]]"#;
        let found = read(&file(&annotation(1, part))).unwrap();
        assert_eq!((found.counts.bare, found.pictures[0].labels.as_slice()), (0, &[1][..]));
        assert_eq!(painted(&found.pictures[0])[..5], [1, 0, 0, 0, 0]);
    }

    #[test]
    fn bad_files_are_explained() {
        let one = |rest: &str| file(&annotation(1, rest));
        let whole = file("");
        let seen = |from: &str, to: &str| file(&annotation(1, LEFT)).replace(from, to);
        for (text, expected) in [
            (whole[..whole.len() / 2].to_owned(), "EOF while parsing"),
            (String::new(), "it is an empty file"),
            ("[]".to_owned(), "it is a list, as detections are"),
            ("{}".to_owned(), "missing field `images`"),
            (
                seen("\"category_id\": 5", "\"category_id\": 6"),
                "annotation 1 has category 6, which is not in `categories`",
            ),
            (seen("\"image_id\": 7", "\"image_id\": 8"), "annotation 1 is of image 8, which is not in `images`"),
            (seen("\"id\": 9", "\"id\": 5"), "category id 5 stands twice"),
            (seen("cow", "cat"), "two categories are named `cat`"),
            (seen("\"height\": 3", "\"height\": 0"), "image `a.jpg`: its height is 0"),
            (seen("2, 0, ", "2, "), "annotation 1: a polygon has 7 coordinates, an odd number"),
            (seen("2, 0, ", "2, true, "), "annotation 1: a coordinate is true, no number"),
            (one(&TOP.replace("[3, 4]", "[4, 3]")), "annotation 1 is an RLE of 3x4 in an image of 4x3"),
            (one(&TOP.replace("[0, 1,", "[1, 1,")), "annotation 1 is an RLE of 13 pixels in an image of 12"),
            (
                one(r#""category_id": 5, "segmentation": {"counts": "é", "size": [3, 4]}"#),
                "annotation 1: its `counts` are no text of COCO's compressed RLE",
            ),
            (one(r#""category_id": 5, "segmentation": {"size": [3, 4]}"#), "annotation 1: its RLE has no `counts`"),
            (
                one(r#""category_id": 5, "segmentation": 3"#),
                "annotation 1: its segmentation is 3, neither a list of polygons nor",
            ),
        ] {
            let message = read(&text).unwrap_err();
            assert!(message.contains(expected), "{message}");
        }
        let twice =
            whole.replace("\"images\": [", r#""images": [{"id": 7, "file_name": "b", "height": 1, "width": 1},"#);
        assert_eq!(read(&twice).unwrap_err(), "image id 7 stands twice");
    }
}
