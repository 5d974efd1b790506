//! The pipeline file: TOML to the cells of an experiment.
//!
//! A file may extend another, give `[[variant]]`s that override fields by dotted path, and `[sweep]` axes; a cell is
//! one variant at one point of the axes. What is wrong is said with the file, the line and the nearest name.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use toml::{Table, Value};

use super::affinity;
use super::spec::{
    Backbone, ClassifierSpec, DatasetKind, DatasetSpec, EvaluateSpec, Head, Precision, Preset, PseudoLabelSpec, Recipe,
    ReportSpec, S2cSpec, SamSpec, SeMapSpec, SeedSpec, SegmentationSpec, Spec, Threshold,
};
use crate::vision::{VOC_CLASSES, labels_of};

/// Fields that are paths, relative to the file that writes them.
const PATHS: [&str; 6] = [
    "dataset.root",
    "sam.weights",
    "classifier.weights",
    "pseudo_label.psa.weights",
    "pseudo_label.irn.weights",
    "segmentation.weights",
];

/// An experiment as written.
#[derive(Clone, Debug)]
pub struct Pipeline {
    pub name: String,
    pub cells: Vec<Cell>,
}

/// One variant at one point of the axes.
#[derive(Clone, Debug)]
pub struct Cell {
    /// `S2C, cpm.tau=0.3`
    pub name: String,
    pub variant: String,
    /// Path and value of each axis.
    pub axes: Vec<(String, String)>,
    pub spec: Spec,
}

/// What is wrong with a pipeline file.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct FileError {
    pub message: String,
    pub hint: Option<String>,
}

impl FileError {
    fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), hint: None }
    }

    fn hinted(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { message: message.into(), hint: Some(hint.into()) }
    }
}

/// The shape of a file; only used to check one where its lines are known.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "read by the check alone")]
struct Shape {
    extends: Option<String>,
    #[serde(default)]
    variant: Vec<Table>,
    #[serde(default)]
    sweep: Table,
    rng_seed: Option<u64>,
    precision: Option<Precision>,
    s2c: Option<S2cSpec>,
    dataset: Option<DatasetSpec>,
    sam: Option<SamSpec>,
    se_map: Option<SeMapSpec>,
    classifier: Option<ClassifierSpec>,
    seed: Option<SeedSpec>,
    pseudo_label: Option<PseudoLabelSpec>,
    segmentation: Option<SegmentationSpec>,
    evaluate: Option<EvaluateSpec>,
    report: Option<ReportSpec>,
}

/// Reads a pipeline. `sets`: overrides `path=value` from the command line, stronger than anything in a file.
pub fn load(path: &Path, sets: &[String]) -> Result<Pipeline, FileError> {
    // Absolute from here on, so that joining a folder to a path again leaves it as it is.
    let path = &std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let mut files = Vec::new();
    let mut base = read(path, &mut files)?;
    let take = |table: &mut Table, name: &str| table.remove(name);
    let variants = match take(&mut base, "variant") {
        Some(Value::Array(variants)) => variants.into_iter().filter_map(|variant| variant.try_into().ok()).collect(),
        _ => vec![Table::from_iter([("name".to_owned(), Value::String("default".into()))])],
    };
    let axes = match take(&mut base, "sweep") {
        Some(Value::Table(axes)) => read_axes(path, axes)?,
        _ => Vec::new(),
    };
    let sets = sets.iter().map(|set| read_set(set)).collect::<Result<Vec<_>, _>>()?;
    let fields: Vec<Option<String>> = axes.iter().map(|(axis, _)| full_path(axis).ok()).collect();
    let axis_of = |field: &Option<String>| fields.iter().position(|axis| axis.is_some() && axis == field);
    for (i, ((axis, values), field)) in axes.iter().zip(&fields).enumerate() {
        if let Some(first) = axis_of(field).filter(|first| *first < i) {
            let other = &axes[first].0;
            return Err(FileError::new(format!("the axes `{other}` and `{axis}` of [sweep] are one field")));
        }
        if let Some(twice) = values.iter().enumerate().find(|(i, value)| values[..*i].contains(value)) {
            return Err(FileError::new(format!("the axis `{axis}` of [sweep] has {} twice", plain(twice.1))));
        }
        if sets.iter().any(|(set, _)| field.as_ref() == Some(set)) {
            return Err(FileError::hinted(
                format!("`--set {axis}=..` would make all points of the axis `{axis}` equal"),
                "change [sweep] in the file, or set another field",
            ));
        }
    }
    let folder = path.parent().unwrap_or(Path::new(""));
    let mut cells: Vec<Cell> = Vec::new();
    for mut variant in variants {
        let Some(Value::String(variant_name)) = take(&mut variant, "name").filter(|name| *name != Value::from(""))
        else {
            return Err(FileError::new(format!("`{}`: a [[variant]] has no name", path.display())));
        };
        let at = |error: FileError| FileError {
            message: format!("`{}`, variant `{variant_name}`: {}", path.display(), error.message),
            ..error
        };
        // The line that gives an override, under what is said of it.
        let shown = |error: FileError, name: &str| {
            let line = files.iter().find_map(|file| line_of(file, &variant_name, name));
            FileError { message: format!("{}{}", error.message, line.unwrap_or_default()), ..error }
        };
        let mut overrides = Vec::new();
        flatten("", &Value::Table(variant), &mut overrides);
        for (name, _) in &overrides {
            if let Some(place) = axis_of(&full_path(name).ok()) {
                let axis = &axes[place].0;
                let error = FileError::hinted(
                    format!("`{name}` is set here, and `{axis}` is an axis of [sweep], whose values win"),
                    "take it from the variant, or from [sweep]",
                );
                return Err(shown(at(error), name));
            }
        }
        for point in points(&axes) {
            let mut table = base.clone();
            let written = overrides.iter().chain(&point).map(|written| (written, true));
            for ((name, value), in_file) in written.chain(sets.iter().map(|set| (set, false))) {
                let shown = |error| if in_file { shown(error, name) } else { error };
                let field = full_path(name).map_err(|error| shown(at(error)))?;
                // Alone first, so that what has the wrong type is known by its name.
                let mut alone = Table::new();
                assign(&mut alone, &field, value.clone());
                if let Err(error) = alone.try_into::<Spec>() {
                    let said = if in_file { name.clone() } else { format!("--set {name}={}", plain(value)) };
                    let hint = hint_of(error.message());
                    return Err(shown(at(FileError { message: format!("`{said}`: {}", error.message()), hint })));
                }
                assign(&mut table, &field, value.clone());
            }
            resolve_paths(&mut table, folder);
            let mut spec: Spec =
                with_presets(table).try_into().map_err(|error: toml::de::Error| at(FileError::new(error.message())))?;
            for weights in [&mut spec.sam.weights, &mut spec.classifier.weights, &mut spec.segmentation.weights] {
                if weights.is_relative() {
                    *weights = folder.join(&*weights);
                }
            }
            check(&spec).map_err(at)?;
            let axes: Vec<(String, String)> = point.iter().map(|(name, value)| (name.clone(), plain(value))).collect();
            let place: String = axes.iter().map(|(name, value)| format!(", {name}={value}")).collect();
            let (name, variant) = (format!("{variant_name}{place}"), variant_name.clone());
            if cells.iter().any(|cell| cell.name == name) {
                return Err(FileError::new(format!("`{}`: two variants are named `{variant}`", path.display())));
            }
            cells.push(Cell { name, variant, axes, spec });
        }
    }
    let name = path.file_stem().map_or_else(String::new, |stem| stem.to_string_lossy().into_owned());
    Ok(Pipeline { name, cells })
}

/// A file with what it extends merged in.
fn read(path: &Path, above: &mut Vec<PathBuf>) -> Result<Table, FileError> {
    let known = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    if above.contains(&known) {
        return Err(FileError::new(format!("`{}` extends itself", path.display())));
    }
    above.push(known);
    let text = fs::read_to_string(path).map_err(|error| {
        FileError::hinted(format!("could not read `{}`: {error}", path.display()), "give the path of a pipeline file")
    })?;
    let wrong = |error: toml::de::Error| {
        let message = format!("`{}`: {}", path.display(), error.to_string().trim_end());
        FileError { message, hint: hint_of(error.message()) }
    };
    toml::from_str::<Shape>(&text).map_err(wrong)?;
    let mut table: Table = toml::from_str(&text).map_err(wrong)?;
    let folder = path.parent().unwrap_or(Path::new(""));
    resolve_paths(&mut table, folder);
    // Overrides as well, by their dotted paths.
    let flat = |overrides: &Table| {
        let mut found = Vec::new();
        flatten("", &Value::Table(overrides.clone()), &mut found);
        let resolved = |(name, value): Override| (resolve_override(&name, &value, folder).unwrap_or(value), name);
        Table::from_iter(found.into_iter().map(resolved).map(|(value, name)| (name, value)))
    };
    if let Some(Value::Array(variants)) = table.get_mut("variant") {
        for variant in variants {
            if let Value::Table(overrides) = variant {
                *overrides = flat(overrides);
            }
        }
    }
    if let Some(Value::Table(axes)) = table.get_mut("sweep") {
        *axes = flat(axes);
    }
    match table.remove("extends") {
        Some(Value::String(base)) => {
            let mut merged = read(&folder.join(base), above)?;
            merge(&mut merged, table);
            Ok(merged)
        }
        _ => Ok(table),
    }
}

/// Where a file gives an override of a variant or an axis: the line with its number and a mark, as TOML's own errors
/// show theirs.
fn line_of(file: &Path, variant: &str, name: &str) -> Option<String> {
    let text = fs::read_to_string(file).ok()?;
    let is_variant = |line: &&str| line.trim_start().starts_with("name") && line.contains(variant);
    // A variant's own lines follow its name; an axis may stand anywhere.
    let from = text.lines().position(|line| is_variant(&line)).unwrap_or(0);
    let lines: Vec<(usize, &str)> = text.lines().enumerate().collect();
    let (after, before) = (&lines[from.min(lines.len())..], &lines[..from.min(lines.len())]);
    let (number, line, key) = after.iter().chain(before).find_map(|(number, line)| {
        let (key, _) = line.split_once('=')?;
        let plain: String = key.chars().filter(|c| !" \t\"'".contains(*c)).collect();
        let is_it = !plain.is_empty() && (name == plain || name.ends_with(&format!(".{plain}")));
        is_it.then_some((number + 1, line, key))
    })?;
    let indent = key.len() - key.trim_start().len();
    let (margin, mark) = (" ".repeat(number.to_string().len()), "^".repeat(key.trim().chars().count()));
    Some(format!("\n{margin} |\n{number} | {line}\n{margin} | {}{mark}", " ".repeat(indent)))
}

/// The JSON schema of a pipeline file, for editors.
pub fn schema() -> serde_json::Value {
    let mut schema = schemars::schema_for!(Spec).to_value();
    let more = serde_json::json!({
        "extends": { "type": "string", "description": "A pipeline file this one starts from; relative to this file." },
        "variant": {
            "type": "array",
            "description": "Variants of the experiment; fields by dotted path, as far as is needed to be unique.",
            "items": { "type": "object", "required": ["name"], "properties": { "name": { "type": "string" } } },
        },
        "sweep": {
            "type": "object",
            "description": "Axes: a field by dotted path and its values; every variant runs at every combination.",
        },
    });
    if let (Some(fields), serde_json::Value::Object(more)) = (schema["properties"].as_object_mut(), more) {
        fields.extend(more);
    }
    schema
}

/// Tables are merged, everything else is replaced.
fn merge(into: &mut Table, from: Table) {
    for (name, value) in from {
        match (into.get_mut(&name), value) {
            (Some(Value::Table(into)), Value::Table(from)) => merge(into, from),
            (_, value) => drop(into.insert(name, value)),
        }
    }
}

/// The values of preset and recipe below what is written.
fn with_presets(written: Table) -> Table {
    fn chosen<T: DeserializeOwned + Default>(written: &Table, section: &str, field: &str) -> T {
        let value = written.get(section).and_then(|section| section.get(field)).cloned();
        value.and_then(|value| value.try_into().ok()).unwrap_or_default()
    }
    let preset: Preset = chosen(&written, "s2c", "preset");
    let recipe: Recipe = chosen(&written, "segmentation", "recipe");
    let mut table = Table::new();
    preset.defaults().chain(recipe.defaults()).for_each(|(field, value)| assign(&mut table, field, value));
    merge(&mut table, written);
    table
}

/// An override that is a path, or an axis of them, taken from the folder of its file.
fn resolve_override(name: &str, value: &Value, folder: &Path) -> Option<Value> {
    let is_path = full_path(name).is_ok_and(|field| PATHS.contains(&field.as_str()));
    let absolute = |text: &str| Value::String(folder.join(text).to_string_lossy().into_owned());
    match value {
        Value::String(text) if is_path => Some(absolute(text)),
        Value::Array(values) if is_path => {
            Some(Value::Array(values.iter().map(|value| value.as_str().map_or(value.clone(), absolute)).collect()))
        }
        _ => None,
    }
}

fn resolve_paths(table: &mut Table, folder: &Path) {
    for path in PATHS {
        let Some((section, fields)) = path.split_once('.') else { continue };
        let section = table.get_mut(section);
        let value = fields.split('.').fold(section, |value, field| value.and_then(|value| value.get_mut(field)));
        if let Some(Value::String(text)) = value {
            *text = folder.join(&*text).to_string_lossy().into_owned();
        }
    }
}

type Override = (String, Value);

fn flatten(prefix: &str, value: &Value, found: &mut Vec<Override>) {
    match value {
        Value::Table(table) => {
            for (name, value) in table {
                let path = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
                flatten(&path, value, found);
            }
        }
        leaf => found.push((prefix.to_owned(), leaf.clone())),
    }
}

fn read_axes(path: &Path, axes: Table) -> Result<Vec<(String, Vec<Value>)>, FileError> {
    let mut flat = Vec::new();
    flatten("", &Value::Table(axes), &mut flat);
    let axis = |(name, value): Override| match value {
        Value::Array(values) if !values.is_empty() => Ok((name, values)),
        _ => Err(FileError::new(format!("`{}`: axis `{name}` of [sweep] is not a list of values", path.display()))),
    };
    flat.into_iter().map(axis).collect()
}

/// Every combination, the last axis fastest.
fn points(axes: &[(String, Vec<Value>)]) -> Vec<Vec<Override>> {
    axes.iter().fold(vec![Vec::new()], |points, (name, values)| {
        let extend = |point: &Vec<Override>| {
            values.iter().map(|value| [point.clone(), vec![(name.clone(), value.clone())]].concat()).collect::<Vec<_>>()
        };
        points.iter().flat_map(extend).collect()
    })
}

fn read_set(set: &str) -> Result<Override, FileError> {
    let Some((name, value)) = set.split_once('=') else {
        return Err(FileError::hinted(format!("`--set {set}` has no `=`"), "write --set classifier.cpm.tau=0.3"));
    };
    // A value as in TOML; what is none is a string.
    let parsed = toml::from_str::<Table>(&format!("value = {value}")).ok().and_then(|mut table| table.remove("value"));
    let value = parsed.unwrap_or_else(|| Value::String(value.to_owned()));
    let path = full_path(name.trim())?;
    // On the command line a path is relative to where one stands.
    let value = match value {
        Value::String(text) if PATHS.contains(&path.as_str()) => {
            let absolute = std::path::absolute(&text).unwrap_or_else(|_| PathBuf::from(&text));
            Value::String(absolute.to_string_lossy().into_owned())
        }
        value => value,
    };
    Ok((path, value))
}

/// All fields by dotted path.
fn all_paths() -> Vec<String> {
    fn walk(prefix: &str, value: &serde_json::Value, found: &mut Vec<String>) {
        match value {
            serde_json::Value::Object(map) => {
                for (name, value) in map {
                    walk(&if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") }, value, found);
                }
            }
            _ => found.push(prefix.to_owned()),
        }
    }
    let mut found = Vec::new();
    walk("", &serde_json::to_value(Spec::default()).unwrap_or_default(), &mut found);
    found
}

/// The field a path means: itself, or the only one that ends with it.
fn full_path(path: &str) -> Result<String, FileError> {
    let all = all_paths();
    if all.iter().any(|known| known == path) {
        return Ok(path.to_owned());
    }
    let ending = format!(".{path}");
    let ends: Vec<&String> = all.iter().filter(|known| known.ends_with(&ending)).collect();
    match &ends[..] {
        [one] => Ok((*one).clone()),
        [] => {
            // Compared with as many of a field's last parts as were written.
            let n_parts = path.split('.').count();
            let ending = |known: &str| {
                let parts: Vec<&str> = known.split('.').collect();
                parts[parts.len().saturating_sub(n_parts)..].join(".")
            };
            let within =
                |known: &&String| known.starts_with(&format!("{path}.")) || known.contains(&format!(".{path}."));
            if let Some(field) = all.iter().find(within) {
                let hint = format!("give one of its fields, e.g. `{field}`");
                return Err(FileError::hinted(format!("`{path}` is a section"), hint));
            }
            let endings: Vec<String> = all.iter().map(|known| ending(known)).collect();
            let near = nearest(path, &endings.iter().map(String::as_str).collect::<Vec<_>>());
            let hint = match near.and_then(|near| endings.iter().rposition(|ending| ending == near)) {
                Some(place) => format!("did you mean `{}`?", all[place]),
                None => "`s2c-pipe schema` lists all fields".to_owned(),
            };
            Err(FileError::hinted(format!("no field `{path}`"), hint))
        }
        several => {
            let several: Vec<&str> = several.iter().map(|known| known.as_str()).collect();
            Err(FileError::new(format!("`{path}` could be any of {}", several.join(", "))))
        }
    }
}

fn assign(table: &mut Table, path: &str, value: Value) {
    match path.split_once('.') {
        None => drop(table.insert(path.to_owned(), value)),
        Some((section, rest)) => {
            let inner = table.entry(section).or_insert_with(|| Value::Table(Table::new()));
            if let Value::Table(inner) = inner {
                assign(inner, rest, value);
            }
        }
    }
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// What to do about what serde says.
fn hint_of(message: &str) -> Option<String> {
    let is_list = message.contains("invalid type: sequence");
    nearest_field(message)
        .or_else(|| is_list.then(|| "a list of values to compare is an axis: write it in [sweep]".into()))
}

/// From serde's "unknown field `x`, expected one of `a`, `b`": the nearest of them.
fn nearest_field(message: &str) -> Option<String> {
    let (_, rest) = message.split_once("unknown field `").or_else(|| message.split_once("unknown variant `"))?;
    let mut quoted = rest.split('`').step_by(2);
    let written = quoted.next()?;
    let known: Vec<&str> = rest.split('`').skip(2).step_by(2).collect();
    Some(format!("did you mean `{}`?", nearest(written, &known)?))
}

/// How alike two names are, 0 to 1, of which one may be meant by the other.
const NEAR: f64 = 0.75;

pub(crate) fn nearest<'a>(written: &str, known: &[&'a str]) -> Option<&'a str> {
    let nearness = |name: &str| strsim::jaro_winkler(name, written);
    let nearest = known.iter().copied().max_by(|a, b| nearness(a).total_cmp(&nearness(b)));
    nearest.filter(|name| nearness(name) >= NEAR)
}

/// What to write instead of a class that is none.
pub(crate) fn class_hint(written: &str, known: &[&str]) -> String {
    match nearest(written, known) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("the classes are {}", known.join(", ")),
    }
}

/// Ranges that types do not say.
fn check(spec: &Spec) -> Result<(), FileError> {
    let classifier = &spec.classifier;
    let positive = |x: f64| x > 0.0 && x.is_finite();
    let fraction = |x: f64| (0.0..=1.0).contains(&x);
    let scales = |scales: &[f64]| !scales.is_empty() && scales.iter().all(|&scale| positive(scale) && scale <= 8.0);
    let threshold = match spec.pseudo_label.threshold {
        Threshold::At(threshold) => fraction(threshold),
        Threshold::Rule(_) => true,
    };
    let (short, long) = classifier.resize_long;
    let jitter = classifier.jitter;
    let segmentation = &spec.segmentation;
    let (least, most) = segmentation.scale;
    let emoji = &spec.dataset.emoji;
    let evaluated = match spec.dataset.kind {
        DatasetKind::Voc | DatasetKind::Emoji => &spec.evaluate.classes[..],
        DatasetKind::Coco | DatasetKind::Folder => &[], // known when the data set is
    };
    for (field, names) in [("dataset.emoji.classes", &emoji.classes[..]), ("evaluate.classes", evaluated)] {
        if let Err(unknown) = labels_of(&VOC_CLASSES, names) {
            return Err(FileError::hinted(format!("`{field}`: {unknown}"), class_hint(&unknown.0, &VOC_CLASSES[1..])));
        }
    }
    for (field, crf) in [("pseudo_label", &spec.pseudo_label.crf), ("segmentation", &segmentation.crf)] {
        if let Some((name, problem)) = crf.problem() {
            return Err(FileError::new(format!("`{field}.crf.{name}` {problem}")));
        }
    }
    if let Some((field, problem)) = affinity::problem(spec) {
        return Err(FileError::new(format!("`pseudo_label.{field}` {problem}")));
    }
    let mut later = spec.pseudo_label.refine.iter().skip(1);
    if let Some(refinement) = later.find(|refinement| refinement.starts_from_cams()) {
        let name = serde_json::to_value(refinement).unwrap_or_default();
        let name = name.as_str().unwrap_or_default();
        return Err(FileError::new(format!(
            "`pseudo_label.refine` has `{name}` after another refinement: it starts from the CAMs, so write it first"
        )));
    }
    let has_stride = |backbone: Backbone, stride: u32| backbone != Backbone::Resnet38d || stride == 8;
    let rules = [
        (spec.dataset.root.is_some() || spec.dataset.kind == DatasetKind::Emoji, "dataset.root", "is not set"),
        ((32..=2048).contains(&emoji.side), "dataset.emoji.side", "is not in 32..=2048"),
        ((1..=10_000).contains(&emoji.n_train), "dataset.emoji.n_train", "is not in 1..=10000"),
        ((1..=10_000).contains(&emoji.n_val), "dataset.emoji.n_val", "is not in 1..=10000"),
        (matches!(segmentation.stride, 8 | 16), "segmentation.stride", "is neither 8 nor 16"),
        (
            has_stride(segmentation.backbone, segmentation.stride),
            "segmentation.stride",
            "is not 8, the only one of resnet38d",
        ),
        (
            segmentation.head != Head::DeepLabV3Plus || segmentation.backbone != Backbone::Resnet38d,
            "segmentation.head",
            "is deeplabv3plus, which needs a ResNet with low-level features; with resnet38d take another",
        ),
        (segmentation.epochs > 0, "segmentation.epochs", "is 0"),
        (segmentation.batch_size > 0, "segmentation.batch_size", "is 0"),
        ((1..=1024).contains(&segmentation.accumulate), "segmentation.accumulate", "is not in 1..=1024"),
        ((32..=4096).contains(&segmentation.crop), "segmentation.crop", "is not in 32..=4096"),
        (positive(least) && least <= most && most <= 8.0, "segmentation.scale", "is not a range of factors up to 8"),
        (positive(segmentation.lr), "segmentation.lr", "is not above 0"),
        (positive(segmentation.head_lr_mult), "segmentation.head_lr_mult", "is not above 0"),
        ((0.0..1.0).contains(&segmentation.momentum), "segmentation.momentum", "is not in 0..1"),
        ((0.0..1.0).contains(&segmentation.weight_decay), "segmentation.weight_decay", "is not in 0..1"),
        (scales(&segmentation.test_scales), "segmentation.test_scales", "is empty or has a scale outside 0..=8"),
        ((1..=128).contains(&spec.se_map.points_per_side), "se_map.points_per_side", "is not in 1..=128"),
        (fraction(spec.se_map.stability_score_thresh), "se_map.stability_score_thresh", "is not in 0..=1"),
        (fraction(spec.se_map.box_nms_thresh), "se_map.box_nms_thresh", "is not in 0..=1"),
        ((0.0..=2.0).contains(&spec.se_map.pred_iou_thresh), "se_map.pred_iou_thresh", "is not in 0..=2"),
        (spec.se_map.crop_n_layers <= 4, "se_map.crop_n_layers", "is not in 0..=4"),
        (fraction(spec.se_map.crop_nms_thresh), "se_map.crop_nms_thresh", "is not in 0..=1"),
        ((0.0..0.9).contains(&spec.se_map.crop_overlap_ratio), "se_map.crop_overlap_ratio", "is not in 0..0.9"),
        (
            (1..=16).contains(&spec.se_map.crop_n_points_downscale_factor),
            "se_map.crop_n_points_downscale_factor",
            "is not in 1..=16",
        ),
        (spec.se_map.stability_score_offset.is_finite(), "se_map.stability_score_offset", "is not finite"),
        (matches!(classifier.stride, 8 | 16), "classifier.stride", "is neither 8 nor 16"),
        (
            has_stride(classifier.backbone, classifier.stride),
            "classifier.stride",
            "is not 8, the only one of resnet38d",
        ),
        (classifier.epochs > 0, "classifier.epochs", "is 0"),
        (classifier.batch_size > 0, "classifier.batch_size", "is 0"),
        ((1..=1024).contains(&classifier.accumulate), "classifier.accumulate", "is not in 1..=1024"),
        ((32..=4096).contains(&classifier.crop), "classifier.crop", "is not in 32..=4096"),
        (0 < short && short <= long && long <= 8192, "classifier.resize_long", "is not a range of pixels"),
        (
            [jitter.0, jitter.1, jitter.2, jitter.3].into_iter().all(fraction),
            "classifier.jitter",
            "has a part outside 0..=1",
        ),
        (positive(classifier.lr), "classifier.lr", "is not above 0"),
        (positive(classifier.head_lr_mult), "classifier.head_lr_mult", "is not above 0"),
        ((0.0..1.0).contains(&classifier.momentum), "classifier.momentum", "is not in 0..1"),
        ((0.0..1.0).contains(&classifier.weight_decay), "classifier.weight_decay", "is not in 0..1"),
        ((0..=4096).contains(&classifier.feat_dim), "classifier.feat_dim", "is not in 0..=4096"),
        (positive(classifier.ssc.temperature), "classifier.ssc.temperature", "is not above 0"),
        (classifier.ssc.weight.is_finite(), "classifier.ssc.weight", "is not finite"),
        (classifier.cpm.weight.is_finite(), "classifier.cpm.weight", "is not finite"),
        (classifier.equivariance.weight.is_finite(), "classifier.equivariance.weight", "is not finite"),
        (scales(&[classifier.equivariance.scale]), "classifier.equivariance.scale", "is not above 0 and up to 8"),
        (fraction(classifier.cpm.tau), "classifier.cpm.tau", "is not in 0..=1"),
        (scales(&classifier.cpm.scales), "classifier.cpm.scales", "is empty or has a scale outside 0..=8"),
        (classifier.cpm.min_distance > 0, "classifier.cpm.min_distance", "is 0"),
        (classifier.cpm.mask_index < 3, "classifier.cpm.mask_index", "is not 0, 1 or 2"),
        (scales(&spec.seed.scales), "seed.scales", "is empty or has a scale outside 0..=8"),
        (
            !(spec.seed.advcam.enabled && classifier.equivariance.enabled && classifier.equivariance.pcm),
            "seed.advcam.enabled",
            "is true beside `classifier.equivariance.pcm`, and a revised CAM does not climb; set one of them to false",
        ),
        (spec.seed.advcam.iterations > 0, "seed.advcam.iterations", "is 0"),
        (positive(spec.seed.advcam.step), "seed.advcam.step", "is not above 0"),
        (spec.seed.advcam.guard.is_finite(), "seed.advcam.guard", "is not finite"),
        (fraction(spec.seed.advcam.guard_threshold), "seed.advcam.guard_threshold", "is not in 0..=1"),
        (threshold, "pseudo_label.threshold", "is not in 0..=1"),
        (positive(spec.pseudo_label.crf_alpha), "pseudo_label.crf_alpha", "is not above 0"),
        (
            spec.pseudo_label.crf_certainty > 0.0 && spec.pseudo_label.crf_certainty < 1.0,
            "pseudo_label.crf_certainty",
            "is not above 0 and below 1",
        ),
    ];
    match rules.into_iter().find(|(holds, _, _)| !holds) {
        Some((_, "dataset.root", problem)) => Err(FileError::hinted(
            format!("`dataset.root` {problem}"),
            "write it in [dataset], or give --set dataset.root=/path/to/VOC2012",
        )),
        Some((_, field, problem)) => Err(FileError::new(format!("`{field}` {problem}"))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load_text(text: &str, sets: &[&str]) -> Result<Pipeline, FileError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p.toml");
        fs::write(&path, text).unwrap();
        let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
        load(&path, &sets)
    }

    const GOOD: &str = "
        [dataset]
        root = 'voc'
        [[variant]]
        name = 'baseline'
        [[variant]]
        name = 'S2C'
        classifier.ssc.enabled = true
        'cpm.enabled' = true
        [sweep]
        'cpm.tau' = [0.3, 0.5]
        rng_seed = [0, 1]
    ";

    #[test]
    fn variants_times_axes() {
        let pipeline = load_text(GOOD, &["classifier.epochs=7"]).unwrap();
        assert_eq!(pipeline.cells.len(), 8);
        let last = &pipeline.cells[7];
        assert_eq!(last.name, "S2C, cpm.tau=0.5, rng_seed=1");
        let classifier = &last.spec.classifier;
        assert!(classifier.ssc.enabled && classifier.cpm.enabled);
        assert_eq!((classifier.cpm.tau, classifier.epochs, last.spec.rng_seed), (0.5, 7, 1));
        assert!(last.spec.dataset.root.as_ref().unwrap().is_absolute());
        assert!(last.spec.sam.weights.is_absolute());
    }

    #[test]
    fn bad_files_are_explained() {
        let root = "dataset.root = 'v'\n";
        for (text, sets, message, hint) in [
            ("[classifier]\nepoks = 3", &[][..], "unknown field `epoks`", "did you mean `epochs`?"),
            ("[classifier]\nepochs = 'x'", &[], "line 2, column 10", ""),
            ("[classifier", &[], "TOML parse error at line 1", ""),
            (root, &["cpm.tua=1"], "no field `cpm.tua`", "did you mean `classifier.cpm.tau`?"),
            (root, &["cpm=1"], "`cpm` is a section", "give one of its fields, e.g. `classifier.cpm.absent_class`"),
            (root, &["wavelength=1"], "no field `wavelength`", "`s2c-pipe schema` lists all fields"),
            (root, &["epochs=3"], "`epochs` could be any of", ""),
            (
                root,
                &["classifier.epochs=[3, 4]"],
                "`--set classifier.epochs=[3, 4]`: invalid type: sequence, expected u32",
                "a list of values to compare is an axis: write it in [sweep]",
            ),
            (root, &["pseudo_label.threshold=bset"], "expected a number from 0 to 1, or \"best\"", ""),
            (
                "dataset.root='v'\n[sweep]\n'cpm.tau'=[0.1]\n'classifier.cpm.tau'=[0.2]",
                &[],
                "the axes `classifier.cpm.tau` and `cpm.tau` of [sweep] are one field",
                "",
            ),
            ("dataset.root='v'\n[sweep]\n'cpm.tau'=[0.1, 0.1]", &[], "the axis `cpm.tau` of [sweep] has 0.1 twice", ""),
            (
                "dataset.root='v'\n[[variant]]\nname='a'\ncpm.tau=0.5\n[sweep]\n'classifier.cpm.tau'=[0.1]",
                &[],
                "`cpm.tau` is set here, and `classifier.cpm.tau` is an axis of [sweep], whose values win\n  |\n4 | cpm.tau=0.5",
                "take it from the variant, or from [sweep]",
            ),
            ("dataset.root='v'\n[[variant]]\nname=''", &[], "a [[variant]] has no name", ""),
            (
                root,
                &["enabled=true"],
                "could be any of classifier.cpm.enabled, classifier.equivariance.enabled, classifier.ssc.enabled, \
                 seed.advcam.enabled, segmentation.enabled",
                "",
            ),
            (root, &["cpm.tau=7"], "`classifier.cpm.tau` is not in 0..=1", ""),
            (
                root,
                &["advcam.enabled=true", "equivariance.enabled=true", "pcm=true"],
                "`seed.advcam.enabled` is true beside `classifier.equivariance.pcm`",
                "",
            ),
            (root, &["cpm.min_distance=0"], "`classifier.cpm.min_distance` is 0", ""),
            (
                root,
                &["pseudo_label.refine=['segment_vote', 'sam_prompt']"],
                "`pseudo_label.refine` has `sam_prompt` after another refinement",
                "",
            ),
            (
                root,
                &["pseudo_label.refine=['psa', 'irn']"],
                "`pseudo_label.refine` has `irn` after another refinement",
                "",
            ),
            (
                root,
                &["pseudo_label.refine=['irn']", "irn.backbone=resnet38d"],
                "`pseudo_label.irn.backbone` is resnet38d, and IRN looks at the levels of a ResNet",
                "",
            ),
            (
                root,
                &["pseudo_label.refine=['irn']", "classifier.backbone=resnet38d", "classifier.stride=8"],
                "`pseudo_label.irn.backbone` is resnet38d",
                "",
            ),
            (
                root,
                &["pseudo_label.refine=['psa']", "psa.backbone=resnet38d"],
                "`pseudo_label.psa.stride` is not 8, the only one of resnet38d",
                "",
            ),
            (root, &["psa.crop=64"], "`pseudo_label.psa.crop` is too small for `radius`, in cells of 8 pixels", ""),
            (root, &["irn.certain_background=0.4"], "`pseudo_label.irn.certain_background` is above", ""),
            (
                root,
                &["segmentation.crf.bilateral_srgb=0.5"],
                "`segmentation.crf.bilateral_srgb` is not in 1..=10000",
                "",
            ),
            (root, &["crf_certainty=1.0"], "`pseudo_label.crf_certainty` is not above 0 and below 1", ""),
            (root, &["crf_alpha=0.0"], "`pseudo_label.crf_alpha` is not above 0", ""),
            (root, &["classifier.stride=4"], "`classifier.stride` is neither 8 nor 16", ""),
            (
                root,
                &["segmentation.head=deeplabv3plus", "segmentation.backbone=resnet38d", "segmentation.stride=8"],
                "`segmentation.head` is deeplabv3plus, which needs a ResNet",
                "",
            ),
            (root, &["classifier.backbone=resnet38d"], "`classifier.stride` is not 8, the only one of resnet38d", ""),
            (
                "",
                &[],
                "`dataset.root` is not set",
                "write it in [dataset], or give --set dataset.root=/path/to/VOC2012",
            ),
            ("dataset.root = 'v'\n[sweep]\nrng_seed = []", &[], "axis `rng_seed` of [sweep] is not a list", ""),
            ("dataset.root='v'\n[[variant]]\nname='a'\n[[variant]]\nname='a'", &[], "two variants are named `a`", ""),
            ("extends = 'p.toml'", &[], "extends itself", ""),
            (
                "dataset.root='v'\n[[variant]]\nname='a'\n'cpm.tua' = 1",
                &[],
                "no field `cpm.tua`\n  |\n4 | 'cpm.tua' = 1\n  | ^^^^^^^^^",
                "did you mean `classifier.cpm.tau`?",
            ),
            (
                "dataset.root='v'\n[sweep]\n'cpm.tau' = ['x']",
                &[],
                "`cpm.tau`: invalid type: string \"x\", expected f64\n  |\n3 | 'cpm.tau'",
                "",
            ),
            (
                "dataset.root='v'\n[sweep]\n'cpm.tau' = [0.1]",
                &["classifier.cpm.tau=0.3"],
                "would make all points of the axis `cpm.tau` equal",
                "change [sweep] in the file, or set another field",
            ),
            ("dataset.root='v'\nse_map.box_nms_thresh=nan", &[], "`se_map.box_nms_thresh` is not in 0..=1", ""),
            (
                "dataset.kind='emoji'\ndataset.emoji.classes=['catt']",
                &[],
                "`dataset.emoji.classes`: no class `catt`",
                "did you mean `cat`?",
            ),
        ] {
            let error = load_text(text, sets).unwrap_err();
            assert!(error.message.contains(message), "{}", error.message);
            assert_eq!(error.hint.unwrap_or_default(), hint, "{text}");
        }
    }

    #[test]
    fn a_file_extends_another_and_paths_are_its_own() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("base")).unwrap();
        fs::write(dir.path().join("base/b.toml"), "rng_seed = 3\ndataset.root = 'voc'\nclassifier.epochs = 2").unwrap();
        let path = dir.path().join("p.toml");
        fs::write(&path, "extends = 'base/b.toml'\nclassifier.epochs = 4").unwrap();
        let spec = load(&path, &[]).unwrap().cells.remove(0).spec;
        assert_eq!((spec.rng_seed, spec.classifier.epochs), (3, 4));
        assert_eq!(spec.dataset.root.unwrap(), dir.path().join("base/voc"));
        let nested = "dataset.root = 'voc'\npseudo_label.psa.weights = 'w'";
        fs::write(dir.path().join("base/b.toml"), nested).unwrap();
        let spec = load(&path, &[]).unwrap().cells.remove(0).spec;
        assert_eq!(spec.pseudo_label.psa.weights.unwrap(), dir.path().join("base/w"));

        // So are those of a variant.
        let variant = "dataset.root = 'voc'\n[[variant]]\nname = 'a'\nclassifier.weights = 'w'";
        fs::write(dir.path().join("base/b.toml"), variant).unwrap();
        let spec = load(&path, &[]).unwrap().cells.remove(0).spec;
        assert_eq!(spec.classifier.weights, dir.path().join("base/w"));
    }
}
