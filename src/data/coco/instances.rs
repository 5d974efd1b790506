//! `instances_*.json`, read once from start to end: an outline becomes a few bytes as soon as it is read, so the
//! 604,907 annotations of train2014 never stand in memory as JSON.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::io::Read;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Unexpected, Visitor};
use serde::{Deserialize as Derive, Serialize};

use super::outlines::{Shape, outlines};
use crate::vision::IGNORE;
use crate::vision::outline::runs_of_rle;

/// Corners farther out are an error: they would take for ever to draw.
const MAX_COORDINATE: f64 = 1e5;

/// One image with what is in it.
#[derive(Clone, Debug, PartialEq, Serialize, Derive)]
pub(super) struct Picture {
    pub(super) file_name: String,
    pub(super) height: usize,
    pub(super) width: usize,
    /// Ascending.
    pub(super) labels: Vec<u8>,
    /// See [`super::paint_mask`].
    #[serde(skip)]
    pub(super) outlines: Vec<u8>,
}

/// What a file says.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Derive)]
pub(super) struct Instances {
    /// Background first, then the categories by id.
    pub(super) classes: Vec<String>,
    /// Those with an annotation, by id.
    pub(super) pictures: Vec<Picture>,
    pub(super) n_pictures: usize,
    pub(super) n_annotations: usize,
    /// Annotations left out: without an outline.
    pub(super) n_empty: usize,
}

#[derive(Derive)]
struct File {
    images: Vec<Image>,
    annotations: Vec<Annotation>,
    categories: Vec<Category>,
}

#[derive(Derive)]
struct Image {
    id: u64,
    file_name: String,
    height: usize,
    width: usize,
}

#[derive(Derive)]
struct Category {
    id: u64,
    name: String,
}

#[derive(Derive)]
struct Annotation {
    id: u64,
    image_id: u64,
    category_id: u64,
    #[serde(default)]
    iscrowd: u8,
    area: Option<f64>,
    segmentation: Segmentation,
}

/// `segmentation` of an annotation.
enum Segmentation {
    Empty,
    Polygons(Shape),
    /// Its size and the number of pixels its runs cover.
    Runs {
        shape: Shape,
        size: (usize, usize),
        pixels: u64,
    },
}

impl Instances {
    /// # Errors
    /// The file is no JSON of that kind (with line and column), or contradicts itself.
    pub(super) fn read(file: impl Read) -> Result<Self, String> {
        let File { images, annotations, categories } =
            serde_json::from_reader(std::io::BufReader::with_capacity(1 << 16, file))
                .map_err(|error| error.to_string())?;
        let (classes, label_of) = classes(categories)?;
        let (n_pictures, n_annotations) = (images.len(), annotations.len());

        let mut by_image: HashMap<u64, Vec<&Annotation>> = HashMap::with_capacity(n_pictures);
        for image in &images {
            if by_image.insert(image.id, Vec::new()).is_some() {
                return Err(format!("image id {} stands twice", image.id));
            }
        }
        let (mut ids, mut n_empty) = (HashSet::with_capacity(n_annotations), 0);
        for annotation in &annotations {
            let Annotation { id, image_id, category_id, segmentation, .. } = annotation;
            if !ids.insert(*id) {
                return Err(format!("annotation id {id} stands twice"));
            }
            if !label_of.contains_key(category_id) {
                return Err(format!("annotation {id} has category {category_id}, which is not in `categories`"));
            }
            let Some(of_image) = by_image.get_mut(image_id) else {
                return Err(format!("annotation {id} is of image {image_id}, which is not in `images`"));
            };
            match segmentation {
                Segmentation::Empty => n_empty += 1,
                _ => of_image.push(annotation),
            }
        }

        let mut images = images;
        images.sort_unstable_by_key(|image| image.id);
        let picture = |image: Image| {
            let annotations = by_image.remove(&image.id).filter(|annotations| !annotations.is_empty())?;
            Some(picture(image, annotations, &label_of))
        };
        let pictures = images.into_iter().filter_map(picture).collect::<Result<_, _>>()?;
        Ok(Self { classes, pictures, n_pictures, n_annotations, n_empty })
    }
}

/// Names, and labels by id: 1 is the lowest id, without gaps.
fn classes(mut categories: Vec<Category>) -> Result<(Vec<String>, HashMap<u64, u8>), String> {
    categories.sort_unstable_by_key(|category| category.id);
    if categories.is_empty() || categories.len() >= usize::from(IGNORE) {
        return Err(format!("{} categories; there can be 1 to 254", categories.len()));
    }
    let mut classes = vec!["background".to_owned()];
    let mut label_of = HashMap::new();
    for Category { id, name } in categories {
        if label_of.insert(id, classes.len() as u8).is_some() {
            return Err(format!("category id {id} stands twice"));
        }
        if classes.contains(&name) {
            return Err(format!("two categories are named `{name}`"));
        }
        classes.push(name);
    }
    Ok((classes, label_of))
}

/// The smallest object lies on top, of equals the first (the rule of coco2voc, which the field's COCO masks are made
/// with); crowds are ignored, and lie below all objects.
fn picture(image: Image, annotations: Vec<&Annotation>, label_of: &HashMap<u64, u8>) -> Result<Picture, String> {
    let Image { file_name, height, width, id: _ } = image;
    if height == 0 || width == 0 || height.saturating_mul(width) > u32::MAX as usize {
        return Err(format!("image `{file_name}` is {width}x{height}"));
    }
    let mut labels: Vec<u8> = annotations.iter().map(|annotation| label_of[&annotation.category_id]).collect();
    labels.sort_unstable();
    labels.dedup();

    let mut shapes = Vec::new();
    for annotation in annotations {
        let Annotation { id, category_id, iscrowd, area, segmentation, image_id: _ } = annotation;
        let shape = match segmentation {
            Segmentation::Empty => continue,
            Segmentation::Polygons(shape) => shape,
            Segmentation::Runs { size, .. } if *size != (height, width) => {
                let (h, w) = size;
                return Err(format!("annotation {id} is an RLE of {w}x{h} in an image of {width}x{height}"));
            }
            Segmentation::Runs { pixels, .. } if *pixels != (height * width) as u64 => {
                return Err(format!("annotation {id} is an RLE of {pixels} pixels in an image of {}", height * width));
            }
            Segmentation::Runs { shape, .. } => shape,
        };
        let area = match area {
            Some(area) => *area,
            None => shape.area(height, width).map_err(|error| format!("annotation {id}: {error}"))? as f64,
        };
        let is_crowd = *iscrowd != 0;
        let label = if is_crowd { IGNORE } else { label_of[category_id] };
        shapes.push((!is_crowd, area, label, shape));
    }
    shapes.reverse();
    shapes.sort_by(|a, b| a.0.cmp(&b.0).then(b.1.total_cmp(&a.1)));
    let outlines = outlines(height, width, shapes.into_iter().map(|(_, _, label, shape)| (label, shape)));
    Ok(Picture { file_name, height, width, labels, outlines })
}

impl<'de> Deserialize<'de> for Segmentation {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(SegmentationVisitor)
    }
}

struct SegmentationVisitor;

impl<'de> Visitor<'de> for SegmentationVisitor {
    type Value = Segmentation;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of polygons or an RLE")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Segmentation, A::Error> {
        let mut parts = Vec::new();
        while let Some(part) = seq.next_element::<Vec<f64>>()? {
            if part.len() % 2 == 1 {
                return Err(A::Error::custom(format!("a polygon has {} coordinates, an odd number", part.len())));
            }
            if let Some(far) = part.iter().find(|v| v.abs() > MAX_COORDINATE) {
                return Err(A::Error::invalid_value(Unexpected::Float(*far), &"a coordinate in pixels"));
            }
            // Two corners have no area (and pycocotools would take them for a box).
            if part.len() >= 6 {
                parts.push(part);
            }
        }
        Ok(if parts.is_empty() { Segmentation::Empty } else { Segmentation::Polygons(Shape::polygons(&parts)) })
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Segmentation, A::Error> {
        let (mut runs, mut size) = (None, None);
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "counts" => runs = Some(map.next_value::<Counts>()?.0),
                "size" => size = Some(map.next_value::<(usize, usize)>()?),
                _ => drop(map.next_value::<serde::de::IgnoredAny>()?),
            }
        }
        let runs = runs.ok_or_else(|| A::Error::missing_field("counts"))?;
        let size = size.ok_or_else(|| A::Error::missing_field("size"))?;
        let pixels = runs.iter().map(|&run| u64::from(run)).sum();
        Ok(Segmentation::Runs { shape: Shape::runs(&runs), size, pixels })
    }
}

/// Run lengths as a list, or packed in a text.
struct Counts(Vec<u32>);

impl<'de> Deserialize<'de> for Counts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(CountsVisitor)
    }
}

struct CountsVisitor;

impl<'de> Visitor<'de> for CountsVisitor {
    type Value = Counts;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("run lengths, as a list or as COCO's compressed text")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Counts, A::Error> {
        let mut runs = Vec::new();
        while let Some(run) = seq.next_element()? {
            runs.push(run);
        }
        Ok(Counts(runs))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Counts, E> {
        runs_of_rle(text).map(Counts).ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self))
    }
}

#[cfg(test)]
mod tests {
    use super::super::paint_mask;
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
        Instances::read(text.as_bytes())
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
            paint_mask(&found.pictures[0].outlines).unwrap().data
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
    fn nothing_to_see_is_counted() {
        let empty =
            [r#""category_id": 5, "segmentation": []"#, r#""category_id": 5, "segmentation": [[1, 1, 2, 2], []]"#];
        let found = read(&file(&[annotation(1, empty[0]), annotation(2, empty[1])].join(","))).unwrap();
        assert_eq!((found.pictures.len(), found.n_pictures, found.n_empty, found.n_annotations), (0, 1, 2, 2));
        // The corners that are left make the shape.
        let part = r#""category_id": 5, "segmentation": [[1, 1, 2, 2], [0, 0, 1, 0, 1, 1, 0, 1]]"#;
        let found = read(&file(&annotation(1, part))).unwrap();
        assert_eq!((found.n_empty, found.pictures[0].labels.as_slice()), (0, &[1][..]));
        assert_eq!(paint_mask(&found.pictures[0].outlines).unwrap().data[..5], [1, 0, 0, 0, 0]);
    }

    #[test]
    fn bad_files_are_explained() {
        let one = |rest: &str| file(&annotation(1, rest));
        let whole = file("");
        let seen = |from: &str, to: &str| file(&annotation(1, LEFT)).replace(from, to);
        for (text, expected) in [
            (whole[..whole.len() / 2].to_owned(), "EOF while parsing"),
            (String::new(), "EOF while parsing a value at line 1 column 0"),
            ("{}".to_owned(), "missing field `images`"),
            (
                seen("\"category_id\": 5", "\"category_id\": 6"),
                "annotation 1 has category 6, which is not in `categories`",
            ),
            (seen("\"image_id\": 7", "\"image_id\": 8"), "annotation 1 is of image 8, which is not in `images`"),
            (seen("\"id\": 9", "\"id\": 5"), "category id 5 stands twice"),
            (seen("cow", "cat"), "two categories are named `cat`"),
            (file(&[annotation(1, LEFT), annotation(1, TOP)].join(",")), "annotation id 1 stands twice"),
            (seen("\"height\": 3", "\"height\": 0"), "image `a.jpg` is 4x0"),
            (seen("2, 0, ", "2, "), "a polygon has 7 coordinates, an odd number at line 1"),
            (seen("2, 0, ", "2, 1e9, "), "expected a coordinate in pixels"),
            (one(&TOP.replace("[3, 4]", "[4, 3]")), "annotation 1 is an RLE of 3x4 in an image of 4x3"),
            (one(&TOP.replace("[0, 1,", "[1, 1,")), "annotation 1 is an RLE of 13 pixels in an image of 12"),
            (one(r#""category_id": 5, "segmentation": {"counts": "é", "size": [3, 4]}"#), "COCO's compressed text"),
            (one(r#""category_id": 5, "segmentation": {"size": [3, 4]}"#), "missing field `counts`"),
            (one(r#""category_id": 5, "segmentation": 3"#), "expected a list of polygons or an RLE"),
        ] {
            let message = read(&text).unwrap_err();
            assert!(message.contains(expected), "{message}");
        }
        let twice =
            whole.replace("\"images\": [", r#""images": [{"id": 7, "file_name": "b", "height": 1, "width": 1},"#);
        assert_eq!(read(&twice).unwrap_err(), "image id 7 stands twice");
    }
}
