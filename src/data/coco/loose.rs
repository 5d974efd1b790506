//! JSON as people's own tools write it: values of another type that have one reading, tokens that JSON does not have.
//! Reading a value never fails: what it should not be is kept, and told with the annotation's id when that is known.

use std::fmt;
use std::io::{self, Cursor, Read};

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::outlines::Shape;
use crate::data::door::Format;
use crate::data::text::{NotText, clean, decode, shown_of};
use crate::vision::outline::runs_of_rle;

/// Any value. Lists of numbers, which most of a file is, are kept as such.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Loose {
    Null,
    Bool(bool),
    Int(i128),
    Float(f64),
    Text(String),
    Numbers(Vec<f64>),
    List(Vec<Loose>),
    Object,
}

struct LooseVisitor;

impl<'de> Visitor<'de> for LooseVisitor {
    type Value = Loose;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Loose, E> {
        Ok(Loose::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Loose, E> {
        Ok(Loose::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Loose, E> {
        Ok(Loose::Int(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Loose, E> {
        Ok(Loose::Int(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Loose, E> {
        Ok(Loose::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Loose, E> {
        Ok(Loose::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Loose, A::Error> {
        let (mut numbers, mut list) = (Vec::new(), Vec::new());
        while let Some(value) = seq.next_element()? {
            match value {
                Loose::Int(number) if list.is_empty() => numbers.push(number as f64),
                Loose::Float(number) if list.is_empty() => numbers.push(number),
                other => {
                    list.extend(numbers.drain(..).map(Loose::Float));
                    list.push(other);
                }
            }
        }
        Ok(if list.is_empty() { Loose::Numbers(numbers) } else { Loose::List(list) })
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Loose, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Loose::Object)
    }
}

impl<'de> Deserialize<'de> for Loose {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(LooseVisitor)
    }
}

impl fmt::Display for Loose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("null"),
            Self::Bool(value) => write!(f, "{value}"),
            Self::Int(value) => write!(f, "{value}"),
            Self::Float(value) => write!(f, "{value}"),
            Self::Text(value) => write!(f, "`{}`", shown_of(&value.chars().take(40).collect::<String>())),
            Self::Numbers(_) | Self::List(_) => f.write_str("a list"),
            Self::Object => f.write_str("an object"),
        }
    }
}

impl Loose {
    /// A number, also as a text; `None` where it is another.
    pub(super) fn number(&self) -> Option<f64> {
        match self {
            Self::Int(value) => Some(*value as f64),
            Self::Float(value) => Some(*value),
            Self::Text(text) => clean(text).parse().ok().filter(|value: &f64| value.is_finite()),
            _ => None,
        }
    }

    /// The numbers of a list.
    ///
    /// # Errors
    /// The first value that is no number, for a message.
    pub(super) fn numbers(&self) -> Result<Vec<f64>, String> {
        let number = |value: &Loose| value.number().ok_or_else(|| value.to_string());
        match self {
            Self::Numbers(numbers) => Ok(numbers.clone()),
            Self::List(list) => list.iter().map(number).collect(),
            other => Err(other.to_string()),
        }
    }

    /// A whole number, also as `64.0`.
    pub(super) fn whole(&self) -> Option<i64> {
        const EXACT: f64 = 9e15;
        match self {
            Self::Int(value) => i64::try_from(*value).ok(),
            _ => self.number().filter(|value| value.fract() == 0.0 && value.abs() < EXACT).map(|value| value as i64),
        }
    }
}

/// An id: a whole number, or a text that is none.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Id {
    Number(i128),
    Text(Box<str>),
    /// The id is missing, or is of a kind that no id has.
    None(Box<str>),
}

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(match Loose::deserialize(deserializer)? {
            Loose::Int(id) => Self::Number(id),
            Loose::Text(text) => {
                let text = clean(&text);
                // `1` is 1; `000001` is a text of its own, which `Ids` finds by its number where that is meant.
                match text.parse::<i128>().ok().filter(|id| id.to_string() == text) {
                    Some(id) => Self::Number(id),
                    None => Self::Text(text.into()),
                }
            }
            other => match other.whole() {
                Some(id) => Self::Number(id.into()),
                None => Self::None(other.to_string().into()),
            },
        })
    }
}

impl Default for Id {
    fn default() -> Self {
        Self::None("missing".into())
    }
}

impl Id {
    /// The number that a text of digits stands for.
    pub(super) fn number(&self) -> Option<i128> {
        match self {
            Self::Number(id) => Some(*id),
            Self::Text(text) => text.parse().ok(),
            Self::None(_) => None,
        }
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(id) => write!(f, "{id}"),
            Self::Text(text) => write!(f, "`{}`", shown_of(text)),
            Self::None(what) => f.write_str(what),
        }
    }
}

/// `segmentation` of an annotation.
#[derive(Debug, Default)]
pub(super) enum Segmentation {
    /// The field is missing, or its outline has no area.
    #[default]
    Empty,
    /// What the polygons cover by their corners, and the rectangle around them: left, top, right, bottom.
    Polygons {
        shape: Shape,
        area: f64,
        bounds: [f64; 4],
    },
    /// An RLE has the height and width that it says, the pixels of all its runs, and the pixels inside the object.
    Runs {
        shape: Shape,
        size: (usize, usize),
        pixels: u64,
        area: f64,
    },
    Fault(Box<str>),
}

struct SegmentationVisitor;

impl<'de> Visitor<'de> for SegmentationVisitor {
    type Value = Segmentation;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of polygons or an RLE")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Segmentation, A::Error> {
        let list = LooseVisitor.visit_seq(seq)?;
        Ok(polygons(&list).unwrap_or_else(|fault| Segmentation::Fault(fault.into())))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Segmentation, A::Error> {
        let (mut counts, mut size) = (None, None);
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "counts" => counts = Some(map.next_value::<Loose>()?),
                "size" => size = Some(map.next_value::<Loose>()?),
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(runs(counts, size).unwrap_or_else(|fault| Segmentation::Fault(fault.into())))
    }

    fn visit_unit<E>(self) -> Result<Segmentation, E> {
        Ok(Segmentation::Empty)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Segmentation, E> {
        Ok(other(&Loose::Bool(value)))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Segmentation, E> {
        Ok(other(&Loose::Int(value.into())))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Segmentation, E> {
        Ok(other(&Loose::Int(value.into())))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Segmentation, E> {
        Ok(other(&Loose::Float(value)))
    }

    fn visit_str<E>(self, value: &str) -> Result<Segmentation, E> {
        Ok(if clean(value).is_empty() { Segmentation::Empty } else { other(&Loose::Text(value.to_owned())) })
    }
}

fn other(value: &Loose) -> Segmentation {
    Segmentation::Fault(format!("its segmentation is {value}, neither a list of polygons nor an RLE").into())
}

impl<'de> Deserialize<'de> for Segmentation {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(SegmentationVisitor)
    }
}

/// `[[x, y, x, y, ..], ..]`; also one polygon without its outer list, and corners as pairs.
fn polygons(list: &Loose) -> Result<Segmentation, String> {
    let parts: Vec<Vec<f64>> = match list {
        Loose::List(list) if !list.iter().any(is_list) => vec![coordinates(&Loose::List(list.clone()))?],
        Loose::List(list) if is_corners(list) => vec![corners(list)?],
        Loose::List(list) => {
            let part = |part: &Loose| match part {
                Loose::List(part) if is_corners(part) => corners(part),
                part if is_list(part) => coordinates(part),
                other => Err(format!("one of its polygons is {other}")),
            };
            list.iter().map(part).collect::<Result<_, _>>()?
        }
        flat => vec![coordinates(flat)?],
    };
    // Two corners have no area (and pycocotools would take them for a box).
    let parts: Vec<Vec<f64>> = parts.into_iter().filter(|part| part.len() >= 6).collect();
    if parts.is_empty() {
        return Ok(Segmentation::Empty);
    }
    let mut bounds = [f64::INFINITY, f64::INFINITY, f64::NEG_INFINITY, f64::NEG_INFINITY];
    for corner in parts.iter().flat_map(|part| part.chunks_exact(2)) {
        for axis in 0..2 {
            bounds[axis] = bounds[axis].min(corner[axis]);
            bounds[axis + 2] = bounds[axis + 2].max(corner[axis]);
        }
    }
    Ok(Segmentation::Polygons {
        shape: Shape::polygons(&parts),
        area: parts.iter().map(|part| area(part)).sum(),
        bounds,
    })
}

fn is_list(value: &Loose) -> bool {
    matches!(value, Loose::List(_) | Loose::Numbers(_))
}

fn is_corners(list: &[Loose]) -> bool {
    list.len() >= 3 && list.iter().all(|value| matches!(value, Loose::Numbers(pair) if pair.len() == 2))
}

fn corners(pairs: &[Loose]) -> Result<Vec<f64>, String> {
    let pairs = pairs.iter().map(Loose::numbers).collect::<Result<Vec<_>, _>>()?;
    coordinates(&Loose::Numbers(pairs.concat()))
}

fn coordinates(part: &Loose) -> Result<Vec<f64>, String> {
    let numbers = part.numbers().map_err(|other| match other.as_str() {
        "null" => "a coordinate is null or NaN, no number".to_owned(),
        other => format!("a coordinate is {other}, no number"),
    })?;
    if numbers.len() % 2 == 1 {
        return Err(format!("a polygon has {} coordinates, an odd number", numbers.len()));
    }
    Ok(numbers)
}

/// By the corners (the shoelace formula).
fn area(part: &[f64]) -> f64 {
    let corners: Vec<&[f64]> = part.chunks_exact(2).collect();
    let next = corners.iter().cycle().skip(1);
    corners.iter().zip(next).map(|(a, b)| a[0] * b[1] - b[0] * a[1]).sum::<f64>().abs() / 2.0
}

fn runs(counts: Option<Loose>, size: Option<Loose>) -> Result<Segmentation, String> {
    let counts = counts.ok_or("its RLE has no `counts`")?;
    let whole =
        |value: f64| (value.fract() == 0.0 && (0.0..=f64::from(u32::MAX)).contains(&value)).then_some(value as u32);
    let size = size.and_then(|size| size.numbers().ok()).filter(|size| size.len() == 2);
    let size = size.and_then(|size| Some((whole(size[0])? as usize, whole(size[1])? as usize)));
    let size = size.ok_or("its RLE has no `size` of height and width")?;
    let runs: Vec<u32> = match &counts {
        Loose::Text(text) => runs_of_rle(text).ok_or("its `counts` are no text of COCO's compressed RLE")?,
        Loose::Numbers(list) => {
            let run = |&run: &f64| whole(run).ok_or_else(|| format!("a run of its RLE is {run}"));
            list.iter().map(run).collect::<Result<_, _>>()?
        }
        other => {
            return Err(format!("its `counts` are {other}, neither a list of run lengths nor COCO's compressed text"));
        }
    };
    let sum = |runs: &mut dyn Iterator<Item = &u32>| runs.map(|&run| u64::from(run)).sum::<u64>();
    let (pixels, inside) = (sum(&mut runs.iter()), sum(&mut runs.iter().skip(1).step_by(2)));
    if inside == 0 && !runs.is_empty() {
        return Ok(Segmentation::Empty);
    }
    Ok(Segmentation::Runs { shape: Shape::runs(&runs), size, pixels, area: inside as f64 })
}

/// The bytes of a file as JSON in UTF-8: other encodings are decoded, and `NaN` and `Infinity`, which Python writes, are
/// `null`.
///
/// # Errors
/// It is no text.
pub(super) fn as_json<'a>(mut file: impl Read + 'a) -> io::Result<Result<Box<dyn Read + 'a>, NotText>> {
    let mut head = vec![0; 4096];
    let mut length = 0;
    while length < head.len() {
        match file.read(&mut head[length..])? {
            0 => break,
            n => length += n,
        }
    }
    head.truncate(length);
    if let Some(fault) = no_object(&head) {
        return Ok(Err(fault));
    }
    let whole: Box<dyn Read + 'a> = match decode(&head[..length]) {
        Ok(text) if text.encoding.is_none() => Box::new(Cursor::new(head).chain(file)),
        // UTF-8 may be cut in a character here.
        Err(_) if std::str::from_utf8(&head).is_err_and(|error| error.error_len().is_none()) => {
            Box::new(Cursor::new(head).chain(file))
        }
        _ => {
            file.read_to_end(&mut head)?;
            match decode(&head) {
                Ok(text) => Box::new(Cursor::new(text.text.into_bytes())),
                Err(fault) => return Ok(Err(fault)),
            }
        }
    };
    Ok(Ok(Box::new(Finite::of(whole))))
}

/// What begins as no JSON object: an empty file, a web page, a list.
fn no_object(head: &[u8]) -> Option<NotText> {
    let first = head.iter().find(|byte| !byte.is_ascii_whitespace());
    let (problem, hint) = match (Format::of(head), first) {
        (Format::NoPicture(what @ "an empty file"), _) | (Format::NoPicture(what @ "a web page"), _) => {
            (format!("it is {what}"), "get the file again")
        }
        (_, Some(b'[')) => (
            "it is a list, as detections are".to_owned(),
            "the annotations are an object with `images`, `annotations` and `categories`",
        ),
        _ => return None,
    };
    Some(NotText { problem, hint: hint.to_owned() })
}

/// Replaces `NaN` and `Infinity` outside of texts.
struct Finite<R> {
    file: R,
    in_text: bool,
    is_escaped: bool,
    /// Letters that may become one of these words.
    word: Vec<u8>,
    ready: Vec<u8>,
    taken: usize,
    is_over: bool,
}

impl<R: Read> Finite<R> {
    fn of(file: R) -> Self {
        let (word, ready) = (Vec::new(), Vec::new());
        Self { file, in_text: false, is_escaped: false, word, ready, taken: 0, is_over: false }
    }

    fn end_word(&mut self) {
        let word = self.word.strip_prefix(b"-").unwrap_or(&self.word).to_ascii_lowercase();
        match word.as_slice() {
            b"nan" | b"infinity" | b"inf" => self.ready.extend_from_slice(b"null"),
            _ => self.ready.extend_from_slice(&self.word),
        }
        self.word.clear();
    }

    fn take(&mut self, byte: u8) {
        if self.in_text {
            self.ready.push(byte);
            match byte {
                _ if self.is_escaped => self.is_escaped = false,
                b'\\' => self.is_escaped = true,
                b'"' => self.in_text = false,
                _ => {}
            }
        } else if byte.is_ascii_alphabetic() || byte == b'-' {
            self.word.push(byte);
        } else {
            if !self.word.is_empty() {
                self.end_word();
            }
            self.ready.push(byte);
            self.in_text = byte == b'"';
        }
    }
}

impl<R: Read> Read for Finite<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut chunk = [0; 1 << 14];
        while self.taken == self.ready.len() && !self.is_over {
            self.ready.clear();
            self.taken = 0;
            let n = self.file.read(&mut chunk)?;
            chunk[..n].iter().for_each(|&byte| self.take(byte));
            if n == 0 {
                self.is_over = true;
                self.end_word();
            }
        }
        let n = buffer.len().min(self.ready.len() - self.taken);
        buffer[..n].copy_from_slice(&self.ready[self.taken..self.taken + n]);
        self.taken += n;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn through(bytes: &[u8]) -> String {
        let mut text = String::new();
        as_json(bytes).unwrap().unwrap().read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn tokens_that_json_does_not_have_are_null() {
        for (json, expected) in [
            (r#"{"a": NaN, "b": [-Infinity, Infinity, 1e-5, -2]}"#, r#"{"a": null, "b": [null, null, 1e-5, -2]}"#),
            (r#"{"NaN": "NaN \" NaN", "c": true}"#, r#"{"NaN": "NaN \" NaN", "c": true}"#),
            ("NaN", "null"),
            ("\u{feff}{}", "{}"),
        ] {
            assert_eq!(through(json.as_bytes()), expected);
        }
        let utf_16: Vec<u8> = "\u{feff}{\"é\": NaN}".encode_utf16().flat_map(u16::to_le_bytes).collect();
        assert_eq!(through(&utf_16), "{\"é\": null}");
        // Chunks end anywhere.
        let long = format!("{{[{}]", "NaN,\"é\",".repeat(9000));
        assert_eq!(through(long.as_bytes()), long.replace("NaN", "null"));
    }

    #[test]
    fn outlines_in_other_forms() {
        let read = |json: &str| serde_json::from_str::<Segmentation>(json).unwrap();
        let same = |json: &str| match read(json) {
            Segmentation::Polygons { shape, area, bounds } => assert_eq!(
                (shape, area, bounds),
                (Shape::polygons(&[vec![0.0, 0.0, 2.0, 0.0, 2.0, 3.0]]), 3.0, [0.0, 0.0, 2.0, 3.0]),
                "{json}"
            ),
            other => panic!("{json}: {other:?}"),
        };
        same("[[0, 0, 2, 0, 2, 3]]");
        same("[0, 0, 2, 0, 2, 3]");
        same("[[0, 0], [2, 0], [2, 3]]");
        same("[[[0, 0], [2, 0], [2, 3]]]");
        same(r#"[["0", 0, "2.0", 0, 2, 3], []]"#);
        for empty in ["null", "[]", "[[]]", "[[1, 1, 2, 2]]", "\"\""] {
            assert!(matches!(read(empty), Segmentation::Empty), "{empty}");
        }
        for (json, expected) in [
            ("[[0, 0, 1]]", "3 coordinates, an odd number"),
            ("[[0, 0, null, 1, 1, 1]]", "a coordinate is null"),
            ("[[0, 0, 1, 1, 1, 1], 5]", "one of its polygons is 5"),
            ("3", "neither a list of polygons nor an RLE"),
            (r#"{"counts": [0, -5], "size": [1, 1]}"#, "a run of its RLE is -5"),
            (r#"{"counts": [0, 1]}"#, "no `size`"),
        ] {
            match read(json) {
                Segmentation::Fault(fault) => assert!(fault.contains(expected), "{fault}"),
                other => panic!("{json}: {other:?}"),
            }
        }
    }
}
