//! What the pixels of a user's mask mean.
//!
//! A label map is a palette or grey PNG whose numbers are classes. People also have pictures in the colours of a palette,
//! palettes in another order, and numbers that are no classes. [`Meaning`] decides, for all masks of a data set at once,
//! how each file is read; what is not read as it is becomes a label map in the stage `mask_file`.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::Cursor;

use anyhow::{Context, bail, ensure};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::door::Format;
use super::image::{check_size, decode_label_map, voc_palette};
use super::text::shown_of;
use crate::vision::{Grid, IGNORE, LabelMap};

/// A mask of more distinct values than this is a photograph.
const MAX_VALUES: usize = 1024;
/// Values named in one message.
const MAX_NAMED: usize = 6;

/// VOC's colour of ignored pixels.
const BORDER: u32 = 0xe0_e0c0;

/// What the pixels of masks mean, as a user says it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "expected \"auto\", \"numbers\", \"colours\", or a table such as { \"255\" = \"cat\" }")]
pub enum MaskValues {
    Rule(MaskRule),
    /// Numbers or colours (`"#ff0000"`), each with the class that it means, `background` or `ignored`; other numbers mean
    /// themselves, and so do PASCAL VOC's colours where the classes are PASCAL VOC's.
    Table(BTreeMap<String, String>),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum MaskRule {
    /// Numbers, or the colours of PASCAL VOC where only these can be meant.
    #[default]
    Auto,
    /// The numbers of a palette or grey picture.
    Numbers,
    /// The colours of PASCAL VOC's palette: the first class is (128, 0, 0).
    Colours,
}

impl Default for MaskValues {
    fn default() -> Self {
        Self::Rule(MaskRule::Auto)
    }
}

/// How the pixels of a file become labels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reading {
    /// The file is a label map.
    AsIs,
    /// By number, where it is in the table; the others are labels.
    Numbers(BTreeMap<u32, u8>),
    /// By colour, `0xRRGGBB`.
    Colours(BTreeMap<u32, u8>),
}

/// What a file holds, whatever it means.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct MaskFact {
    pub(super) height: usize,
    pub(super) width: usize,
    form: Form,
    /// By number, or by colour where there are no numbers.
    values: Vec<Value>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Form {
    Palette,
    Grey { bits: u8 },
    Rgb,
}

/// Pixels of one value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Value {
    number: Option<u32>,
    colour: Option<u32>,
    pixels: u64,
}

/// The pixels of a file.
struct Pixels {
    height: usize,
    width: usize,
    form: Form,
    /// Numbers, or colours where the form is RGB.
    values: Vec<u32>,
    /// Colours by number.
    palette: Vec<u32>,
}

impl MaskFact {
    /// # Errors
    /// The file is no PNG, is not whole, or has colours under a transparency.
    pub(super) fn learn(bytes: &[u8]) -> anyhow::Result<Self> {
        let Pixels { height, width, form, values, palette } = pixels(bytes)?;
        let mut counts: HashMap<u32, u64> = HashMap::new();
        for run in values.chunk_by(|a, b| a == b) {
            *counts.entry(run[0]).or_default() += run.len() as u64;
            ensure!(
                counts.len() <= MAX_VALUES,
                "it has more than {MAX_VALUES} distinct values, as a photograph has and no mask"
            );
        }
        let value = |(value, pixels): (u32, u64)| match form {
            Form::Palette => Value { number: Some(value), colour: palette.get(value as usize).copied(), pixels },
            Form::Grey { .. } => Value { number: Some(value), colour: None, pixels },
            Form::Rgb => Value { number: grey_of(value), colour: Some(value), pixels },
        };
        let mut values: Vec<Value> = counts.into_iter().map(value).collect();
        values.sort_unstable_by_key(|value| (value.number, value.colour));
        Ok(Self { height, width, form, values })
    }

    /// The label of each value under a reading.
    fn labels(&self, reading: &Reading) -> Vec<Option<u8>> {
        let label = |value: &Value| match reading {
            Reading::AsIs => value.number.map(|number| number as u8),
            Reading::Numbers(table) => value.number.map(|n| table.get(&n).copied().unwrap_or(n as u8)),
            Reading::Colours(table) => value.colour.and_then(|colour| table.get(&colour).copied()),
        };
        self.values.iter().map(label).collect()
    }

    /// A picture whose colours are all grey.
    fn is_grey(&self) -> bool {
        self.form == Form::Rgb && self.values.iter().all(|value| value.number.is_some())
    }

    /// A picture with a colour that is not grey.
    fn has_colours(&self) -> bool {
        self.form == Form::Rgb && !self.is_grey()
    }

    /// It has no object: it is background alone.
    pub(super) fn is_empty(&self) -> bool {
        self.values.iter().all(|value| value.number == Some(0))
    }

    /// Its values with how they are shown and written in a table.
    pub(super) fn shown(&self, by_colour: bool) -> impl Iterator<Item = (u32, String)> {
        self.values.iter().filter_map(move |value| match by_colour {
            true => value.colour.map(|colour| (colour, hex(colour))),
            false => Some(value.number.map_or_else(
                || {
                    let colour = value.colour.unwrap_or_default();
                    (colour, hex(colour))
                },
                |number| (number, number.to_string()),
            )),
        })
    }

    /// A value as a table names it: a colour where some pixel has one.
    fn key(&self, value: &Value) -> String {
        match (value.number, value.colour) {
            (Some(number), _) if !self.has_colours() => number.to_string(),
            (_, Some(colour)) => hex(colour),
            (number, None) => number.unwrap_or_default().to_string(),
        }
    }

    /// What its object is, as a table names it: the most frequent value but background, and but 255 where there is another.
    pub(super) fn object(&self) -> Option<String> {
        let ignored = Some(u32::from(IGNORE));
        let objects = self.values.iter().filter(|value| value.number != Some(0));
        objects.max_by_key(|value| (value.number != ignored, value.pixels)).map(|value| self.key(value))
    }

    /// The numbers in it and how many pixels have each.
    pub(super) fn pixels(&self) -> impl Iterator<Item = (u32, u64)> {
        self.values.iter().filter_map(|value| Some((value.number?, value.pixels)))
    }

    /// The numbers in it, ascending.
    pub(super) fn numbers(&self) -> impl Iterator<Item = u32> {
        self.values.iter().filter_map(|value| value.number)
    }

    /// The colours in it, ascending.
    pub(super) fn colours(&self) -> impl Iterator<Item = u32> {
        self.values.iter().filter_map(|value| value.colour)
    }

    /// Some pixel of it is background under a reading.
    pub(super) fn has_background(&self, reading: &Reading) -> bool {
        self.labels(reading).contains(&Some(0))
    }

    /// A palette picture whose colours are grey, or VOC's colour of ignored pixels.
    fn is_grey_palette(&self) -> bool {
        self.form == Form::Palette && !self.has_hues()
    }

    /// A colour that is neither grey nor VOC's of ignored pixels.
    fn has_hues(&self) -> bool {
        self.colours().any(|colour| grey_of(colour).is_none() && colour != BORDER)
    }

    /// Colours of a palette that tell its numbers apart, and are not the numbers themselves, as a grey ramp's are.
    fn tells_by_colour(&self) -> bool {
        let colours: BTreeSet<u32> = self.colours().collect();
        let is_ramp = self.values.iter().all(|value| value.colour.and_then(grey_of) == value.number);
        self.form == Form::Palette && colours.len() == self.values.len() && !is_ramp
    }

    /// The labels in it under a reading, ascending, background and ignored pixels left out.
    pub(super) fn classes(&self, reading: &Reading) -> Vec<u8> {
        let labels = self.labels(reading).into_iter().flatten();
        let mut labels: Vec<u8> = labels.filter(|&label| label != 0 && label != IGNORE).collect();
        labels.sort_unstable();
        labels.dedup();
        labels
    }
}

fn hex(colour: u32) -> String {
    format!("#{colour:06x}")
}

/// The value that all objects of masks have, where it is one, as in masks of 0 and 255: with the pixels that 255 ignores
/// or without.
pub(super) fn one_value<'a>(facts: impl Iterator<Item = &'a MaskFact>) -> Option<String> {
    let mut objects: BTreeSet<(Option<u32>, String)> = facts
        .flat_map(|fact| fact.values.iter().map(|value| (value.number, fact.key(value))))
        .filter(|(number, _)| *number != Some(0))
        .collect();
    if objects.len() == 2 {
        objects.retain(|(number, _)| *number != Some(u32::from(IGNORE)));
    }
    match objects.len() {
        1 => objects.pop_first().map(|(_, shown)| shown),
        _ => None,
    }
}

/// What is needed where one value stands for objects of several classes.
pub(super) fn label_maps(classes: &[String]) -> String {
    let names: Vec<String> =
        classes.iter().enumerate().skip(1).take(2).map(|(i, name)| format!("{i} for `{}`", shown_of(name))).collect();
    format!(
        "one value cannot tell classes apart: save label maps, PNG with a number per class ({}{})",
        names.join(", "),
        if classes.len() > 3 { ", .." } else { "" }
    )
}

/// The number that a grey colour stands for.
fn grey_of(colour: u32) -> Option<u32> {
    let [_, r, g, b] = colour.to_be_bytes();
    (r == g && g == b).then_some(u32::from(r))
}

fn pixels(bytes: &[u8]) -> anyhow::Result<Pixels> {
    match Format::of(bytes) {
        Format::Png => {}
        Format::Jpeg => {
            bail!("it is a JPEG image, whose compression changes the numbers of classes; save masks as PNG")
        }
        Format::NoPicture("of no kind that is known") if bytes.starts_with(b"MATLAB") => {
            bail!("it is a MATLAB file; masks are read as PNG, so convert it")
        }
        Format::NoPicture("a NumPy array") => bail!("it is a NumPy array; masks are read as PNG, so convert it"),
        Format::OtherPicture(what) => bail!("it is {what}; masks are read as PNG, so convert it"),
        Format::NoPicture(what) => bail!("it is {what}, not a PNG image"),
    }
    let mut decoder = png::Decoder::new(Cursor::new(bytes));
    decoder.set_transformations(png::Transformations::IDENTITY);
    decoder.set_ignore_text_chunk(true);
    decoder.set_ignore_iccp_chunk(true);
    let broken = "not a whole PNG image";
    let header = decoder.read_header_info().context(broken)?;
    check_size(header.width as usize, header.height as usize, bytes.len())?;
    let mut reader = decoder.read_info().context(broken)?;
    let mut data = vec![0; reader.output_buffer_size().context("the PNG image is too large")?];
    let info = reader.next_frame(&mut data).context(broken)?;
    let (height, width, bits) = (info.height as usize, info.width as usize, info.bit_depth as usize);
    let packed = reader.info().palette.as_deref().unwrap_or_default();
    let palette = packed.chunks_exact(3).map(|c| u32::from_be_bytes([0, c[0], c[1], c[2]])).collect();
    let n_samples = info.color_type.samples();
    let sample = |row: &[u8], i: usize| match bits {
        16 => u32::from(u16::from_be_bytes([row[2 * i], row[2 * i + 1]])),
        8 => u32::from(row[i]),
        // Few values may be packed, several to a byte.
        _ => u32::from((row[i * bits / 8] >> (8 - bits - i * bits % 8)) & ((1 << bits) - 1)),
    };
    let mut values = Vec::with_capacity(height * width);
    for row in data.chunks(info.line_size.max(1)).take(height) {
        for x in 0..width {
            let channel = |c: usize| sample(row, x * n_samples + c);
            let alpha = matches!(info.color_type, png::ColorType::GrayscaleAlpha | png::ColorType::Rgba)
                .then(|| channel(n_samples - 1));
            let value = if n_samples < 3 {
                channel(0)
            } else {
                let byte = |c: usize| match (bits, channel(c)) {
                    (16, value) if value / 257 * 257 == value => Ok(value / 257),
                    (16, value) => Err(anyhow::anyhow!("it has colours of 16 bits ({value}); save masks with 8 bits")),
                    (_, value) => Ok(value),
                };
                byte(0)? << 16 | byte(1)? << 8 | byte(2)?
            };
            let is_opaque = alpha.is_none_or(|alpha| alpha == (1 << bits) - 1);
            ensure!(
                is_opaque || value == 0,
                "it has transparent pixels of another colour than black, which can be background or what the colour says; \
                 save it without transparency"
            );
            values.push(value);
        }
    }
    let form = match info.color_type {
        png::ColorType::Indexed => Form::Palette,
        png::ColorType::Grayscale | png::ColorType::GrayscaleAlpha => Form::Grey { bits: bits as u8 },
        png::ColorType::Rgb | png::ColorType::Rgba => Form::Rgb,
    };
    Ok(Pixels { height, width, form, values, palette })
}

/// The label map of a mask.
///
/// # Errors
/// The file does not hold what the reading was decided for.
pub fn decode_mask(bytes: &[u8], reading: &Reading) -> anyhow::Result<LabelMap> {
    if *reading == Reading::AsIs {
        return decode_label_map(bytes);
    }
    let Pixels { height, width, form, values, palette } = pixels(bytes)?;
    let label = |value: u32| -> Option<u8> {
        let colour = if form == Form::Rgb { Some(value) } else { palette.get(value as usize).copied() };
        let number = if form == Form::Rgb { grey_of(value) } else { Some(value) };
        match reading {
            Reading::AsIs => None,
            Reading::Numbers(table) => number.and_then(|n| table.get(&n).copied().or_else(|| u8::try_from(n).ok())),
            Reading::Colours(table) => table.get(&colour?).copied(),
        }
    };
    let labels = values.iter().map(|&value| label(value)).collect::<Option<Vec<u8>>>();
    Ok(Grid::new(height, width, labels.context("the mask has a value that is no class")?))
}

/// A mask of a data set, for the decision.
pub(super) struct Candidate<'a> {
    pub(super) id: &'a str,
    pub(super) fact: &'a MaskFact,
    /// The labels of the image, where something beside the mask tells them.
    pub(super) labels: Option<&'a [u8]>,
}

/// Why a mask is not read.
pub(super) struct Unread {
    pub(super) problem: String,
    pub(super) hint: String,
}

/// How the masks of a data set are read.
pub(super) struct Meaning<'a> {
    pub(super) values: &'a MaskValues,
    /// Background first.
    pub(super) classes: &'a [String],
    /// The classes are those of PASCAL VOC, so that its colours mean them.
    pub(super) is_voc: bool,
}

impl Meaning<'_> {
    /// The value of all objects, where it is one and labels tell several classes.
    fn value_of_several(masks: &[Candidate<'_>]) -> Option<String> {
        let told: BTreeSet<u8> = masks.iter().flat_map(|mask| mask.labels.unwrap_or_default()).copied().collect();
        one_value(masks.iter().map(|mask| mask.fact)).filter(|_| told.len() > 1)
    }

    /// The reading of each mask, or why there is none.
    ///
    /// # Errors
    /// What the user says is no table of classes; palettes contradict one another.
    pub(super) fn decide(&self, masks: &[Candidate<'_>]) -> Result<Vec<Result<Reading, Unread>>, Unread> {
        let table = match self.values {
            MaskValues::Rule(rule) => {
                let by_colour = match rule {
                    MaskRule::Auto => self.reordered(masks),
                    MaskRule::Numbers => Some(false),
                    MaskRule::Colours => Some(true),
                };
                let has_colours = masks.iter().any(|mask| mask.fact.has_colours() && self.can_be(mask.fact).1);
                let can_be = |mask: &Candidate<'_>| match (rule, self.can_be(mask.fact)) {
                    // VOC's class 7 is (128, 128, 128): among pictures in grey alone, 128 is as likely a number of its own.
                    (MaskRule::Auto, (by_number, by_colour)) => {
                        (by_number, by_colour && (has_colours || !mask.fact.is_grey()))
                    }
                    (MaskRule::Numbers, (by_number, _)) => (by_number, false),
                    (MaskRule::Colours, (_, by_colour)) => (false, by_colour),
                };
                if *rule == MaskRule::Auto {
                    self.check_greyed(masks, &BTreeMap::new())?;
                }
                // A palette of black and grey is one for objects of any class, unless others show VOC's colours.
                let is_car =
                    |fact: &MaskFact| fact.is_grey_palette() && fact.colours().any(|colour| colour == 0x80_8080);
                let shows_voc = masks.iter().any(|mask| mask.fact.has_hues() && self.can_be(mask.fact).1);
                let is_unclear = *rule == MaskRule::Auto && self.is_voc && !shows_voc;
                let by_labels = if is_unclear { self.by_labels(masks) } else { None };
                let by_colour = |mask: &Candidate<'_>| match is_unclear && is_car(mask.fact) {
                    true => by_labels,
                    false => by_colour,
                };
                let of_several = Self::value_of_several(masks);
                let explained = |unread: Unread| match &of_several {
                    Some(value) => Unread {
                        problem: format!(
                            "{}; all objects are {value}, and the labels say several classes",
                            unread.problem
                        ),
                        hint: label_maps(self.classes),
                    },
                    None => unread,
                };
                let reading = |mask| self.by_rule(*rule, mask, can_be(mask), by_colour(mask)).map_err(explained);
                let readings: Vec<Result<Reading, Unread>> = masks.iter().map(reading).collect();
                if *rule == MaskRule::Auto {
                    self.check_palettes(masks, &readings)?;
                }
                return Ok(readings);
            }
            MaskValues::Table(table) => self.table(table)?,
        };
        self.check_greyed(masks, &table.0)?;
        Ok(masks.iter().map(|mask| self.by_table(&table, mask)).collect())
    }

    fn is_label(&self, number: u32) -> bool {
        (number as usize) < self.classes.len() || number == u32::from(IGNORE)
    }

    /// VOC's colours of the classes there are, and of ignored pixels.
    fn colours(&self) -> BTreeMap<u32, u8> {
        let palette = voc_palette();
        let labels = (0..=IGNORE).filter(|&label| self.is_label(u32::from(label)));
        let colour = |label: u8| {
            let at = usize::from(label) * 3;
            u32::from_be_bytes([0, palette[at], palette[at + 1], palette[at + 2]])
        };
        labels.map(|label| (colour(label), label)).collect()
    }

    /// Each value is a number that is a label; each is of one of VOC's colours, no two of the same.
    fn can_be(&self, fact: &MaskFact) -> (bool, bool) {
        let colours = self.colours();
        let numbers = fact.values.iter().all(|value| value.number.is_some_and(|number| self.is_label(number)));
        let mut seen: Vec<u32> = fact.values.iter().filter_map(|value| value.colour).collect();
        let n_values = seen.len();
        seen.sort_unstable();
        seen.dedup();
        let is_known = |value: &Value| value.colour.is_some_and(|colour| colours.contains_key(&colour));
        (numbers, fact.values.iter().all(is_known) && seen.len() == n_values)
    }

    fn readings(&self, fact: &MaskFact) -> [Reading; 2] {
        let is_label_map = fact.form == Form::Palette || matches!(fact.form, Form::Grey { bits: 8 });
        let numbers = if is_label_map { Reading::AsIs } else { Reading::Numbers(BTreeMap::new()) };
        [numbers, Reading::Colours(self.colours())]
    }

    /// Of palettes whose numbers and whose colours both are classes, and not the same ones: whether colours count. For
    /// VOC's classes they do; else the labels of the images decide, where they fit one of the two alone.
    fn reordered(&self, masks: &[Candidate<'_>]) -> Option<bool> {
        if self.is_voc { Some(true) } else { self.by_labels(masks) }
    }

    /// The reading that labels leave, of numbers and colours: whether it is by colours.
    fn by_labels(&self, masks: &[Candidate<'_>]) -> Option<bool> {
        let mut contradicted = [false; 2];
        for mask in masks {
            let (Some(labels), (true, true)) = (mask.labels, self.can_be(mask.fact)) else { continue };
            let found = self.readings(mask.fact).map(|reading| mask.fact.classes(&reading));
            // A palette that is black throughout would make background of everything.
            let has_some = !labels.is_empty() && found.iter().any(|classes| !classes.is_empty());
            for (classes, contradicted) in found.iter().zip(&mut contradicted) {
                *contradicted |= classes.iter().any(|label| !labels.contains(label)) || has_some && classes.is_empty();
            }
        }
        match contradicted {
            [false, true] => Some(false),
            [true, false] => Some(true),
            _ => None,
        }
    }

    /// Programs that save pictures with few colours number these anew in each file.
    ///
    /// # Errors
    /// A number has one colour in a palette and another in the next, and nothing tells that numbers are meant.
    fn check_palettes(&self, masks: &[Candidate<'_>], readings: &[Result<Reading, Unread>]) -> Result<(), Unread> {
        let is_confirmed = |mask: &Candidate<'_>, reading: &Reading| {
            Some(
                mask.fact.classes(reading).iter().all(|label| mask.labels.is_some_and(|labels| labels.contains(label))),
            )
            .filter(|_| mask.labels.is_some())
        };
        let by_number = masks.iter().zip(readings).filter_map(|(mask, reading)| Some((mask, reading.as_ref().ok()?)));
        let by_number: Vec<(&Candidate<'_>, &Reading)> = by_number
            .filter(|(mask, reading)| mask.fact.tells_by_colour() && !matches!(reading, Reading::Colours(_)))
            .collect();
        let told: Vec<bool> = by_number.iter().filter_map(|(mask, reading)| is_confirmed(mask, reading)).collect();
        if !told.is_empty() && told.iter().all(|is_confirmed| *is_confirmed) {
            return Ok(());
        }
        let mut first: HashMap<u32, (u32, &str)> = HashMap::new();
        for (mask, _) in &by_number {
            for value in &mask.fact.values {
                let (Some(number), Some(colour)) = (value.number, value.colour) else { continue };
                let (other, id) = *first.entry(number).or_insert((colour, mask.id));
                if other != colour && number != u32::from(IGNORE) {
                    return Err(Unread {
                        problem: format!(
                            "the palettes of masks differ: {number} is #{other:06x} in the mask of {} and #{colour:06x} in that \
                             of {}, so one number may be several classes",
                            shown_of(id),
                            shown_of(mask.id)
                        ),
                        hint:
                            "say what is meant: `dataset.mask_values = \"numbers\"`, or the class of each colour, e.g. \
                               `dataset.mask_values = { \"#ff0000\" = \"cat\" }`"
                                .to_owned(),
                    });
                }
            }
        }
        Ok(())
    }

    /// Programs that read pictures as grey make greys of VOC's colours: some of these are the numbers of other classes.
    ///
    /// # Errors
    /// Every grey mask has such greys alone, those left out that a table has named. Labels say that these are meant, or
    /// there are none and some grey is no class.
    fn check_greyed(&self, masks: &[Candidate<'_>], named: &BTreeMap<u32, u8>) -> Result<(), Unread> {
        if !self.is_voc {
            return Ok(());
        }
        let mut greys: BTreeMap<u32, Vec<u8>> = BTreeMap::new();
        for (colour, label) in self.colours() {
            let [_, r, g, b] = colour.to_be_bytes().map(u32::from);
            greys.entry((r * 299 + g * 587 + b * 114 + 500) / 1000).or_default().push(label);
        }
        greys.insert(221, vec![IGNORE]);
        greys.insert(255, vec![IGNORE]);
        greys.values_mut().for_each(|labels| labels.sort_unstable());
        let has_colours = masks.iter().any(|mask| mask.fact.has_colours());
        let mut found: BTreeMap<u32, &[u8]> = BTreeMap::new();
        let (mut n_masks, mut n_told, mut n_by_grey, mut n_by_number) = (0, 0, 0, 0);
        let mut are_numbers = true;
        // A table that names a grey as what it was in colours says that the others are of their colours too.
        let mut is_foreign = named
            .iter()
            .any(|(number, label)| !self.is_label(*number) && greys.get(number).is_some_and(|of| of.contains(label)));
        for mask in masks {
            let fact = mask.fact;
            let grey = |value: &Value| match fact.form {
                Form::Palette => value.colour.and_then(grey_of),
                Form::Grey { .. } | Form::Rgb => value.number,
            };
            let can_be_grey = match fact.form {
                Form::Grey { bits } => bits == 8,
                Form::Rgb => !has_colours && fact.is_grey(),
                Form::Palette => !self.can_be(fact).1 && fact.values.iter().all(|value| grey(value).is_some()),
            };
            if !can_be_grey {
                continue;
            }
            let mut objects: Vec<(u32, &[u8])> = Vec::new();
            for value in fact.values.iter().filter(|value| !value.number.is_some_and(|n| named.contains_key(&n))) {
                let Some((&grey, labels)) = grey(value).and_then(|grey| greys.get_key_value(&grey)) else {
                    return Ok(());
                };
                are_numbers &= value.number == Some(grey);
                if ![0, 255].contains(&grey) {
                    objects.push((grey, labels.as_slice()));
                }
            }
            found.extend(objects.iter().copied());
            objects.retain(|(_, labels)| **labels != [IGNORE]);
            n_masks += usize::from(!objects.is_empty());
            let Some(told) = mask.labels.filter(|told| !told.is_empty() && !objects.is_empty()) else { continue };
            n_told += 1;
            n_by_grey += usize::from(objects.iter().all(|(_, labels)| labels.iter().any(|label| told.contains(label))));
            let mut numbers = fact.numbers().filter(|number| ![0, 255].contains(number) && !named.contains_key(number));
            n_by_number += usize::from(numbers.all(|number| told.iter().any(|label| u32::from(*label) == number)));
        }
        // 128 alone, which would be `car`, is as likely a number for any object.
        is_foreign |= found.keys().any(|grey| !self.is_label(*grey) && ![128, 220, 221].contains(grey));
        let is_meant = if n_told > 0 { n_by_grey * 2 > n_told && n_by_grey > n_by_number } else { is_foreign };
        if n_masks == 0 || !is_meant {
            return Ok(());
        }
        let name = |label: &u8| match *label {
            IGNORE => "ignored".to_owned(),
            label => shown_of(self.classes.get(usize::from(label)).map_or("", String::as_str)),
        };
        let names = |labels: &[u8]| labels.iter().map(name).collect::<Vec<_>>().join(" or ");
        let shown: Vec<String> =
            found.iter().take(MAX_NAMED).map(|(grey, labels)| format!("{grey} is {}", names(labels))).collect();
        let more = if found.len() > MAX_NAMED { ", .." } else { "" };
        let table = (are_numbers && found.values().all(|labels| labels.len() == 1)).then(|| {
            let rows: Vec<String> =
                found.iter().map(|(grey, labels)| format!("\"{grey}\" = \"{}\"", names(labels))).collect();
            format!(", or name each grey: `dataset.mask_values = {{ {} }}`", rows.join(", "))
        });
        Err(Unread {
            problem: format!("the masks have PASCAL VOC's colours turned to grey ({}{more})", shown.join(", ")),
            hint: format!(
                "save the masks again from those in colours, without turning them to grey (OpenCV: IMREAD_UNCHANGED; Pillow: no \
                 convert(\"L\")){}",
                table.unwrap_or_default()
            ),
        })
    }

    /// `can_be`: its numbers and its colours are classes.
    fn by_rule(
        &self,
        rule: MaskRule,
        mask: &Candidate<'_>,
        can_be: (bool, bool),
        by_colour: Option<bool>,
    ) -> Result<Reading, Unread> {
        let fact = mask.fact;
        let [numbers, colours] = self.readings(fact);
        let one_bit = (fact.form == Form::Grey { bits: 1 }) && fact.values.iter().any(|value| value.number == Some(1));
        match can_be {
            _ if one_bit && self.classes.len() > 2 && rule == MaskRule::Auto => Err(self.unread(
                mask,
                format!(
                    "it has 1 bit a pixel, which tells objects from background and not which of {} classes they are",
                    self.classes.len() - 1
                ),
            )),
            (true, false) => Ok(numbers),
            (false, true) => Ok(colours),
            (true, true) if fact.labels(&numbers) == fact.labels(&colours) => Ok(numbers),
            (true, true) => match by_colour {
                Some(true) => Ok(colours),
                Some(false) => Ok(numbers),
                None if self.is_voc => Err(Unread {
                    problem: format!(
                        "its palette has black and #808080, so its objects are `{}` by their number, `car` by PASCAL VOC's \
                         colours, or of any class",
                        fact.classes(&numbers)
                            .first()
                            .and_then(|&label| self.classes.get(usize::from(label)))
                            .map_or_else(String::new, |class| shown_of(class))
                    ),
                    hint: format!(
                        "write `dataset.mask_values = \"numbers\"` or `\"colours\"`; where all objects are of another class, say \
                         which, e.g. `dataset.mask_values = {{ \"{}\" = \"cat\" }}`; where of several, {}",
                        fact.object().unwrap_or_default(),
                        label_maps(self.classes)
                    ),
                }),
                None => Err(Unread {
                    problem:
                        "its palette has PASCAL VOC's colours in another order, so its numbers and its colours are \
                              different classes"
                            .to_owned(),
                    hint: "write `dataset.mask_values = \"numbers\"` or `dataset.mask_values = \"colours\"`".to_owned(),
                }),
            },
            (false, false) => Err(self.unread(mask, self.foreign(fact, mask.labels))),
        }
    }

    /// What a mask has that is no class.
    fn foreign(&self, fact: &MaskFact, labels: Option<&[u8]>) -> String {
        let colours = self.colours();
        if fact.form == Form::Rgb && !fact.values.iter().all(|value| value.number.is_some()) {
            let unknown: Vec<&Value> =
                fact.values.iter().filter(|value| value.colour.is_some_and(|c| !colours.contains_key(&c))).collect();
            let swapped = match self.is_swapped(fact, labels) {
                true => "; with red and blue in each other's place all would be",
                false => "",
            };
            let found = named(&unknown, |value| format!("#{:06x}", value.colour.unwrap_or_default()));
            let mixed = if unknown.len() > MAX_NAMED { "; so many are made by smoothing or JPEG" } else { "" };
            return format!("it has the {found}, no colours of PASCAL VOC's classes{swapped}{mixed}");
        }
        let unknown: Vec<&Value> =
            fact.values.iter().filter(|value| !value.number.is_some_and(|number| self.is_label(number))).collect();
        let found = named(&unknown, |value| value.number.unwrap_or_default().to_string());
        format!("it has the {found}; known are 0..={} and 255", self.classes.len() - 1)
    }

    /// A refusal with a table as it could be written for this file.
    fn unread(&self, mask: &Candidate<'_>, problem: String) -> Unread {
        let fact = mask.fact;
        let colours = self.colours();
        let by_colour = fact.has_colours();
        let is_known = |value: &&Value| match fact.form {
            _ if by_colour => value.colour.is_some_and(|colour| colours.contains_key(&colour)),
            Form::Grey { bits: 1 } => value.number == Some(0),
            _ => value.number.is_some_and(|number| self.is_label(number)),
        };
        let unknown: Vec<&Value> = fact.values.iter().filter(|value| !is_known(value)).collect();
        let lossless = "save label maps: PNG with the numbers of classes";
        if self.is_swapped(fact, mask.labels) {
            let hint = format!("put red and blue of the masks in their places (OpenCV writes BGR), or {lossless}");
            return Unread { problem, hint };
        }
        if by_colour && unknown.len() > MAX_NAMED {
            let hint =
                format!("{lossless}, from the masks as they were before smoothing, resizing or JPEG, which mix values");
            return Unread { problem, hint };
        }
        // White beside VOC's colours, and the largest number of 16 bits, are what is drawn around objects.
        let is_border = |value: &&&Value| match by_colour {
            true => value.number == Some(255) && unknown.len() == 1 && fact.values.len() > 2,
            false => value.number == Some(0xffff),
        };
        let border = unknown.iter().find(is_border);
        let label = mask.labels.and_then(|labels| labels.first()).map_or(1, |&label| usize::from(label));
        let class =
            border.map_or_else(|| shown_of(self.classes.get(label).map_or("", String::as_str)), |_| "ignored".into());
        let Some(example) = border.or_else(|| unknown.iter().max_by_key(|value| value.pixels)) else {
            return Unread { problem, hint: lossless.to_owned() };
        };
        let of_one = if (fact.form == Form::Grey { bits: 1 }) { " where all objects are of one class" } else { "" };
        let mixed = if unknown.len() > MAX_NAMED {
            ", as they were before smoothing or resizing, which mix values"
        } else {
            ""
        };
        let hint = format!(
            "say what the values of masks mean{of_one}, e.g. `dataset.mask_values = {{ \"{}\" = \"{class}\" }}` (or \
             \"background\", \"ignored\"), or {lossless}{mixed}",
            fact.key(example)
        );
        Unread { problem, hint }
    }

    /// Each colour is one of VOC's with red and blue in each other's place, and some is none as it is; where the image has
    /// labels, so read it has no other class.
    fn is_swapped(&self, fact: &MaskFact, labels: Option<&[u8]>) -> bool {
        let colours = self.colours();
        let is_known = |value: &Value| value.colour.is_some_and(|colour| colours.contains_key(&colour));
        let is_swapped = |value: &Value| {
            let [_, r, g, b] = value.colour.unwrap_or_default().to_be_bytes();
            let label = colours.get(&u32::from_be_bytes([0, b, g, r]));
            let is_told = |label: &&u8| [0, IGNORE].contains(label) || labels.is_none_or(|told| told.contains(label));
            label.is_some_and(|label| is_told(&label))
        };
        fact.has_colours() && fact.values.iter().all(is_swapped) && !fact.values.iter().all(is_known)
    }

    fn by_table(
        &self,
        (numbers, colours): &(BTreeMap<u32, u8>, BTreeMap<u32, u8>),
        mask: &Candidate<'_>,
    ) -> Result<Reading, Unread> {
        let fact = mask.fact;
        let is_grey = fact.values.iter().all(|value| value.number.is_some());
        let by_colour = match fact.form {
            Form::Rgb => !colours.is_empty() || !is_grey,
            Form::Palette => !colours.is_empty() && numbers.is_empty(),
            Form::Grey { .. } => false,
        };
        // VOC's own colours keep their meaning. Only those that a file has are added: the table is part of a key.
        let mut colours = colours.clone();
        if by_colour && self.is_voc {
            let own = self.colours();
            for colour in fact.colours() {
                if let Some(&label) = own.get(&colour) {
                    colours.entry(colour).or_insert(label);
                }
            }
        }
        let is_known = |value: &Value| match by_colour {
            true => value.colour.is_some_and(|colour| colours.contains_key(&colour)),
            false => value.number.is_some_and(|number| numbers.contains_key(&number) || self.is_label(number)),
        };
        let unknown: Vec<&Value> = fact.values.iter().filter(|value| !is_known(value)).collect();
        if !unknown.is_empty() {
            let found = named(&unknown, |value| match by_colour {
                true => value.colour.map_or_else(|| "none".to_owned(), |colour| format!("#{colour:06x}")),
                false => value.number.unwrap_or_default().to_string(),
            });
            let by_number = unknown
                .iter()
                .find(|value| by_colour && value.number.is_some_and(|n| n > 0 && numbers.contains_key(&n)));
            let hint = match by_number.and_then(|value| value.colour) {
                Some(colour) => format!(
                    "masks in colours are read by colour: write `\"{}\"` in place of `\"{}\"`",
                    hex(colour),
                    colour & 0xff
                ),
                None => "name every value of the masks in `dataset.mask_values`".to_owned(),
            };
            let problem = format!("it has the {found}, which `dataset.mask_values` does not name");
            return Err(Unread { problem, hint });
        }
        let is_named = |value: &Value| value.number.is_some_and(|number| numbers.contains_key(&number));
        let [as_it_is, _] = self.readings(fact);
        Ok(match by_colour {
            true => Reading::Colours(colours),
            false if as_it_is == Reading::AsIs && !fact.values.iter().any(is_named) => Reading::AsIs,
            false => Reading::Numbers(numbers.clone()),
        })
    }

    /// Numbers and colours of the user's table; black is background and VOC's colour of ignored pixels means these.
    fn table(&self, table: &BTreeMap<String, String>) -> Result<(BTreeMap<u32, u8>, BTreeMap<u32, u8>), Unread> {
        let (mut numbers, mut colours) = (BTreeMap::new(), BTreeMap::new());
        let fault =
            |problem: String, hint: String| Unread { problem: format!("`dataset.mask_values`: {problem}"), hint };
        for (key, name) in table {
            let known = self.classes.iter().position(|class| class == name).map(|label| label as u8);
            let is_ignored = ["ignored", "ignore", "void"].contains(&name.as_str()) && known.is_none();
            let Some(label) = known.or_else(|| is_ignored.then_some(IGNORE)) else {
                let problem = format!("no class `{}`", shown_of(name));
                return Err(fault(problem, format!("there are: {}, ignored", shown_of(&self.classes.join(", ")))));
            };
            let hex = key.strip_prefix('#').filter(|hex| hex.len() == 6);
            match (key.parse::<u16>(), hex.and_then(|hex| u32::from_str_radix(hex, 16).ok())) {
                (Ok(number), _) => drop(numbers.insert(u32::from(number), label)),
                (_, Some(colour)) => drop(colours.insert(colour, label)),
                _ => {
                    let problem = format!("`{}` is neither a number nor a colour", shown_of(key));
                    return Err(fault(problem, "write \"255\" or \"#ff0000\"".to_owned()));
                }
            }
        }
        if !colours.is_empty() {
            colours.entry(0).or_insert(0);
            colours.entry(BORDER).or_insert(IGNORE);
        }
        Ok((numbers, colours))
    }
}

/// `number 7 (12 pixels)`, `colours #ffffff (3 pixels), ..`, of the most frequent first.
fn named(values: &[&Value], name: impl Fn(&Value) -> String) -> String {
    let mut values = values.to_vec();
    values.sort_by_key(|value| std::cmp::Reverse(value.pixels));
    let what = match values.first().is_some_and(|value| name(value).starts_with('#')) {
        true => "colour",
        false => "number",
    };
    let shown = values.iter().take(MAX_NAMED).map(|value| format!("{} ({} pixels)", name(value), value.pixels));
    let shown = shown.collect::<Vec<_>>().join(", ");
    let more = if values.len() > MAX_NAMED { format!(" and {} more", values.len() - MAX_NAMED) } else { String::new() };
    format!("{what}{} {shown}{more}", if values.len() == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::image::{encode_label_map, encode_rgb};
    use crate::vision::Rgb;

    #[test]
    fn a_mask_has_the_labels_that_were_decided() {
        let rgb = |colours: &[u32]| {
            let data = colours.iter().flat_map(|colour| colour.to_be_bytes()[1..].to_vec()).collect();
            encode_rgb(&Rgb { height: 1, width: colours.len(), data })
        };
        let colours = Reading::Colours(BTreeMap::from([(0, 0), (0x80_0000, 1), (0xe0_e0c0, IGNORE)]));
        let map = decode_mask(&rgb(&[0x80_0000, 0, 0xe0_e0c0]), &colours).unwrap();
        assert_eq!(map.data, [1, 0, 255]);
        assert!(
            decode_mask(&rgb(&[0x12_3456]), &colours).unwrap_err().to_string().contains("a value that is no class")
        );

        let numbers = Reading::Numbers(BTreeMap::from([(255, 1), (3, 0)]));
        assert_eq!(decode_mask(&rgb(&[0xff_ffff, 0x03_0303, 0x02_0202]), &numbers).unwrap().data, [1, 0, 2]);
        let palette = encode_label_map(&Grid::new(1, 3, vec![255, 3, 2]));
        assert_eq!(decode_mask(&palette, &numbers).unwrap().data, [1, 0, 2]);
        assert_eq!(decode_mask(&palette, &Reading::AsIs).unwrap().data, [255, 3, 2]);
        assert_eq!(decode_mask(&palette, &colours).unwrap_err().to_string(), "the mask has a value that is no class");
    }

    #[test]
    fn what_is_too_large_or_too_manifold_is_no_mask() {
        let many =
            Rgb { height: 40, width: 40, data: (0..1600u16).flat_map(|i| [i as u8, (i >> 8) as u8, 0]).collect() };
        let error = MaskFact::learn(&encode_rgb(&many)).unwrap_err();
        assert!(error.to_string().contains("more than 1024 distinct values, as a photograph has"), "{error}");
        let mut bomb = encode_label_map(&Grid::filled(1, 1, 0));
        bomb[16..24].copy_from_slice(&[0, 0, 0xea, 0x60, 0, 0, 0xea, 0x60]);
        assert!(MaskFact::learn(&bomb).is_err());
        assert!(MaskFact::learn(b"\xff\xd8\xff\xe0").unwrap_err().to_string().contains("it is a JPEG image"));
    }
}
