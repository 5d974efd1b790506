//! The pipeline file: TOML to the cells of an experiment.
//!
//! A file may extend another, give `[[variant]]`s that override fields by dotted path, and `[sweep]` axes; a cell is
//! one variant at one point of the axes. What is wrong is said with the file, the line and the nearest name.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use toml::{Table, Value};

use super::spec::{
    Backbone, ClassifierSpec, DatasetKind, DatasetSpec, EvaluateSpec, Head, Precision, Preset, PseudoLabelSpec, Recipe,
    ReportSpec, S2cSpec, SamSpec, SeMapSpec, SeedSpec, SegmentationSpec, Spec, Threshold,
};
use super::{affinity, names, value};
use crate::data::door::read_regular;
use crate::vision::{VOC_CLASSES, labels_of};

/// Bytes of a pipeline file.
const MOST_BYTES: u64 = 16_000_000;
/// Files that extend one another in a row.
const MOST_FILES: usize = 32;
/// Cells of an experiment: variants times points of the axes.
const MOST_CELLS: usize = 10_000;
/// Epochs of one training.
const MOST_EPOCHS: u32 = 10_000;
/// Epochs of all cells of an experiment.
const MOST_EPOCHS_IN_ALL: u64 = 1_000_000;

/// An experiment as written.
#[derive(Clone, Debug)]
pub struct Pipeline {
    pub name: String,
    pub cells: Vec<Cell>,
    /// The file, and those that it extends.
    pub files: Vec<PathBuf>,
    /// What the command line sets: fields by their whole paths, and values.
    pub sets: Vec<(String, String)>,
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
    pub(super) fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), hint: None }
    }

    pub(super) fn hinted(message: impl Into<String>, hint: impl Into<String>) -> Self {
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
    let name = name_of(path)?;
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
    count_cells(path, variants.len(), &axes)?;
    let sets = sets.iter().map(|set| read_set(set)).collect::<Result<Vec<_>, _>>()?;
    // The line that gives an override, under what is said of it.
    let shown = |error: FileError, variant: &str, name: &str| {
        let line = files.iter().find_map(|file| line_of(file, variant, name));
        FileError { message: format!("{}{}", error.message, line.unwrap_or_default()), ..error }
    };
    let at_axis = |error: FileError, axis: &str| {
        let message = format!("`{}`, [sweep]: {}", path.display(), error.message);
        shown(FileError { message, ..error }, "", axis)
    };
    let fields: Vec<String> =
        axes.iter().map(|(axis, _)| full_path(axis).map_err(|error| at_axis(error, axis))).collect::<Result<_, _>>()?;
    let axis_of = |field: &str| fields.iter().position(|axis| axis == field);
    for (i, ((axis, values), field)) in axes.iter().zip(&fields).enumerate() {
        if let Some(first) = axis_of(field).filter(|first| *first < i) {
            let other = &axes[first].0;
            return Err(FileError::new(format!("the axes `{other}` and `{axis}` of [sweep] are one field")));
        }
        if sets.iter().any(|(set, _)| field == set) {
            return Err(FileError::hinted(
                format!("`--set {axis}=..` would make all points of the axis `{axis}` equal"),
                "change [sweep] in the file, or set another field",
            ));
        }
        // Compared as the field takes them: 1 and 1.0 are one number.
        let mut seen: HashMap<String, &Value> = HashMap::new();
        for value in values {
            let taken = as_taken(field, value).map_err(|error| {
                let message = format!("`{axis}`: {}", error.message);
                at_axis(FileError { message, ..error }, axis)
            })?;
            if let Some(first) = seen.insert(taken, value) {
                let twice = match (plain(first), plain(value)) {
                    (first, second) if first == second => format!("{first} twice"),
                    (first, second) => format!("one value twice, as {first} and as {second}"),
                };
                return Err(FileError::hinted(
                    format!("the axis `{axis}` of [sweep] has {twice}"),
                    "take one of the two out",
                ));
            }
        }
    }
    for (field, value) in &sets {
        as_taken(field, value).map_err(|error| FileError {
            message: format!("`--set {field}={}`: {}", plain(value), error.message),
            ..error
        })?;
    }
    let folder = path.parent().unwrap_or(Path::new(""));
    let points = points(&axes);
    let mut cells: Vec<Cell> = Vec::new();
    let (mut taken, mut n_epochs) = (HashSet::new(), 0);
    let repeated = repeated(&variants);
    for mut variant in variants {
        let variant_name = match take(&mut variant, "name") {
            Some(Value::String(name)) if !name.is_empty() => name,
            None | Some(Value::String(_)) => {
                return Err(FileError::new(format!("`{}`: a [[variant]] has no name", path.display())));
            }
            Some(other) => {
                return Err(FileError::hinted(
                    format!("`{}`: the name {other} of a [[variant]] is no text", path.display()),
                    format!("write it in quotes: name = \"{}\"", plain(&other)),
                ));
            }
        };
        if let Some(problem) = names::problem(&variant_name) {
            let name = names::printable(&variant_name, false);
            let message = format!("`{}`: the name `{name}` of a [[variant]] {problem}", path.display());
            return Err(FileError::hinted(message, "a name stands in tables, files and folders: write it in one line"));
        }
        let at = |error: FileError| FileError {
            message: format!("`{}`, variant `{variant_name}`: {}", path.display(), error.message),
            ..error
        };
        let shown = |error: FileError, name: &str| shown(error, &variant_name, name);
        let seed = variant.get(SEED).filter(|_| repeated.contains(&variant_name)).map(plain);
        let mut overrides = Vec::new();
        flatten("", &Value::Table(variant), &mut overrides);
        let mut table = base.clone();
        for (name, value) in overrides {
            let field = full_path(&name).map_err(|error| shown(at(error), &name))?;
            if let Some(place) = axis_of(&field) {
                let axis = &axes[place].0;
                let error = FileError::hinted(
                    format!("`{name}` is set here, and `{axis}` is an axis of [sweep], whose values win"),
                    "take it from the variant, or from [sweep]",
                );
                return Err(shown(at(error), &name));
            }
            as_taken(&field, &value).map_err(|error| {
                shown(at(FileError { message: format!("`{name}`: {}", error.message), ..error }), &name)
            })?;
            assign(&mut table, &field, value);
        }
        for point in &points {
            let mut table = table.clone();
            let of_point = fields.iter().zip(point).map(|(field, (_, value))| (field, value));
            for (field, value) in of_point.chain(sets.iter().map(|(field, value)| (field, value))) {
                assign(&mut table, field, value.clone());
            }
            resolve_paths(&mut table, folder).map_err(at)?;
            let mut spec: Spec =
                with_presets(table).try_into().map_err(|error: toml::de::Error| at(FileError::new(error.message())))?;
            for weights in [&mut spec.sam.weights, &mut spec.classifier.weights, &mut spec.segmentation.weights] {
                if weights.is_relative() {
                    *weights = folder.join(&*weights);
                }
            }
            check(&spec).map_err(at)?;
            n_epochs += epochs(&spec);
            let seed = seed.iter().map(|seed| (SEED.to_owned(), seed.clone()));
            let axes: Vec<(String, String)> =
                point.iter().map(|(name, value)| (name.clone(), plain(value))).chain(seed).collect();
            let place: String = axes.iter().map(|(name, value)| format!(", {name}={value}")).collect();
            let (name, variant) = (format!("{variant_name}{place}"), variant_name.clone());
            if let Some(problem) = names::problem(&name) {
                let name = names::printable(&name, false);
                let message = format!("`{}`: the name `{name}`, with the values of [sweep], {problem}", path.display());
                return Err(FileError::hinted(
                    message,
                    "it stands in tables, files and folders: write values in one line",
                ));
            }
            if !taken.insert(name.clone()) {
                return Err(FileError::hinted(
                    format!("`{}`: two variants are named `{variant}`", path.display()),
                    "give each a name of its own; repeats of one have one name, and differ in `rng_seed` alone",
                ));
            }
            cells.push(Cell { name, variant, axes, spec });
        }
    }
    if n_epochs > MOST_EPOCHS_IN_ALL {
        let message = format!(
            "`{}`: its {} cells train {n_epochs} epochs, and {MOST_EPOCHS_IN_ALL} are the most",
            path.display(),
            cells.len()
        );
        return Err(FileError::hinted(message, "shorten the axes of [sweep] or the trainings, or split the file"));
    }
    let sets = sets.iter().map(|(field, value)| (field.clone(), plain(value))).collect();
    Ok(Pipeline { name, cells, files, sets })
}

/// The field in which repeats of a variant differ.
const SEED: &str = "rng_seed";

/// Names of several variants that differ in their `rng_seed` alone: they are repeats of one, as an axis makes them.
fn repeated(variants: &[Table]) -> HashSet<String> {
    let mut by_name: HashMap<&str, Vec<&Table>> = HashMap::new();
    for variant in variants {
        if let Some(Value::String(name)) = variant.get("name") {
            by_name.entry(name).or_default().push(variant);
        }
    }
    let rest = |variant: &Table| -> Table { variant.clone().into_iter().filter(|(field, _)| field != SEED).collect() };
    let are_repeats = |variants: &[&Table]| {
        let seeds: HashSet<i64> = variants.iter().filter_map(|variant| variant.get(SEED)?.as_integer()).collect();
        let are_equal = || variants.iter().all(|variant| rest(variant) == rest(variants[0]));
        variants.len() > 1 && seeds.len() == variants.len() && are_equal()
    };
    by_name.into_iter().filter(|(_, variants)| are_repeats(variants)).map(|(name, _)| name.to_owned()).collect()
}

/// What a pipeline is called after its file: the name of the folder of its results.
fn name_of(path: &Path) -> Result<String, FileError> {
    let name = path.file_stem().map_or_else(String::new, |stem| stem.to_string_lossy().into_owned());
    // Of `.toml` the standard library takes all for the stem.
    let before = if name.eq_ignore_ascii_case(".toml") { "" } else { name.trim() };
    match before {
        "" | "." | ".." => Err(FileError::hinted(
            format!("`{}` gives its results no name", path.display()),
            "give a pipeline file with a name before its ending, as `ablation.toml`",
        )),
        _ => Ok(name),
    }
}

/// Before any of them is made.
fn count_cells(path: &Path, n_variants: usize, axes: &[(String, Vec<Value>)]) -> Result<(), FileError> {
    let n_points = axes.iter().fold(1u128, |n, (_, values)| n.saturating_mul(values.len() as u128));
    let n_cells = n_points.saturating_mul(n_variants as u128);
    if n_cells <= MOST_CELLS as u128 {
        return Ok(());
    }
    let message = format!(
        "`{}`: {n_variants} variants at {n_points} points of [sweep] are {n_cells} cells, and {MOST_CELLS} are the most",
        path.display()
    );
    let longest = axes.iter().max_by_key(|(_, values)| values.len());
    let hint = match longest {
        Some((axis, values)) => {
            format!("shorten an axis, as `{axis}` with its {} values, or split the file", values.len())
        }
        None => "split the file".to_owned(),
    };
    Err(FileError::hinted(message, hint))
}

/// Epochs of all the trainings of a cell.
fn epochs(spec: &Spec) -> u64 {
    let segmentation = if spec.segmentation.enabled { spec.segmentation.epochs } else { 0 };
    let (psa, irn) = (&spec.pseudo_label.psa, &spec.pseudo_label.irn);
    let parts = [spec.classifier.epochs, segmentation, psa.epochs, irn.epochs];
    parts.into_iter().map(u64::from).sum()
}

/// A value as its field takes it, as one text: equal values give equal texts, however they are written.
///
/// # Errors
/// The field takes no such value.
fn as_taken(field: &str, value: &Value) -> Result<String, FileError> {
    // Alone, so that what has the wrong type is known by its name.
    let mut alone = Table::new();
    assign(&mut alone, field, value.clone());
    let spec: Spec = alone.try_into().map_err(|error: toml::de::Error| {
        let hint = hint_of(error.message());
        FileError { message: error.message().to_owned(), hint }
    })?;
    let spec = serde_json::to_value(spec).unwrap_or_default();
    let taken = field.split('.').fold(&spec, |value, part| &value[part]);
    let text = taken.to_string();
    // Zero has two signs, and is one number.
    Ok(if taken.as_f64() == Some(0.0) { "0.0".to_owned() } else { text })
}

/// A file with what it extends merged in.
fn read(path: &Path, above: &mut Vec<PathBuf>) -> Result<Table, FileError> {
    let known = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    if above.contains(&known) {
        return Err(FileError::new(format!("`{}` extends itself", path.display())));
    }
    if above.len() == MOST_FILES {
        return Err(FileError::hinted(
            format!("`{}`: more than {MOST_FILES} files extend one another in a row", path.display()),
            "let a file extend one that is nearer to the end of the row",
        ));
    }
    let above_it = above.last().map(|above| format!(", which `{}` extends", above.display())).unwrap_or_default();
    above.push(known);
    let unread = |what: &str| format!("could not read `{}`{above_it}: {what}", path.display());
    let bytes = read_regular(path, MOST_BYTES)
        .map_err(|error| FileError::hinted(unread(&error.to_string()), "give the path of a pipeline file"))?;
    let text = text_of(bytes).map_err(|what| FileError::hinted(unread(what), "save it as UTF-8"))?;
    let wrong = |error: toml::de::Error| {
        let message = format!("`{}`: {}", path.display(), error.to_string().trim_end());
        // Where a list is written, `;` is meant for a comma.
        let is_semicolon = error.span().is_some_and(|span| {
            let line = text.get(..span.start).unwrap_or_default().rsplit('\n').next().unwrap_or_default();
            let (at, behind) = (text.get(span.clone()).unwrap_or_default(), text.get(span.end..).unwrap_or_default());
            line.contains('[') && (at.contains(';') || behind.starts_with(';'))
        });
        let separates = "`;` separates nothing: values of a list have commas between them, [0.3, 0.5]";
        let hint = is_semicolon.then(|| separates.to_owned());
        FileError { message, hint: hint.or_else(|| hint_of(error.message())) }
    };
    toml::from_str::<Shape>(&text).map_err(wrong)?;
    let mut table: Table = toml::from_str(&text).map_err(wrong)?;
    let folder = path.parent().unwrap_or(Path::new(""));
    let in_file = |error: FileError| FileError { message: format!("`{}`: {}", path.display(), error.message), ..error };
    resolve_paths(&mut table, folder).map_err(in_file)?;
    // Overrides as well, by their dotted paths.
    let flat = |overrides: &Table| {
        let mut found = Vec::new();
        flatten("", &Value::Table(overrides.clone()), &mut found);
        let resolved = |(name, value): Override| Ok((name.clone(), resolve_override(&name, value, folder)?));
        found.into_iter().map(resolved).collect::<Result<Table, FileError>>().map_err(in_file)
    };
    if let Some(Value::Array(variants)) = table.get_mut("variant") {
        for variant in variants {
            if let Value::Table(overrides) = variant {
                *overrides = flat(overrides)?;
            }
        }
    }
    if let Some(Value::Table(axes)) = table.get_mut("sweep") {
        *axes = flat(axes)?;
    }
    match table.remove("extends") {
        Some(Value::String(base)) => {
            let base = value::from_home(&base).map_err(in_file)?;
            let mut merged = read(&folder.join(base), above)?;
            merge(&mut merged, table);
            Ok(merged)
        }
        _ => Ok(table),
    }
}

/// The text of a file, without the mark of byte order that some editors begin it with.
fn text_of(bytes: Vec<u8>) -> Result<String, &'static str> {
    if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
        return Err("it is text in UTF-16");
    }
    let text = String::from_utf8(bytes).map_err(|_| "it is no text in UTF-8")?;
    Ok(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text))
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

/// An override with its paths taken from the folder of its file: one, or an axis of them.
fn resolve_override(name: &str, value: Value, folder: &Path) -> Result<Value, FileError> {
    let Some(field) = full_path(name).ok().filter(|field| value::paths().any(|path| path == field)) else {
        return Ok(value);
    };
    match value {
        Value::String(text) => value::path_of(&field, &text, folder).map(Value::String),
        Value::Array(values) => {
            let resolved = values.into_iter().map(|value| resolve_override(&field, value, folder));
            resolved.collect::<Result<_, _>>().map(Value::Array)
        }
        other => Ok(other),
    }
}

fn resolve_paths(table: &mut Table, folder: &Path) -> Result<(), FileError> {
    for path in value::paths() {
        let Some((section, fields)) = path.split_once('.') else { continue };
        let section = table.get_mut(section);
        let value = fields.split('.').fold(section, |value, field| value.and_then(|value| value.get_mut(field)));
        if let Some(Value::String(text)) = value {
            *text = value::path_of(path, text, folder)?;
        }
    }
    Ok(())
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
    let path = full_path(name.trim())?;
    let value = value::of_command_line(&path, value)?;
    // On the command line a path is relative to where one stands.
    let here = std::path::absolute(".").unwrap_or_default();
    let value = if value::is_path(&path) { resolve_override(&path, value, &here)? } else { value };
    Ok((path, value))
}

/// All fields by dotted path.
pub(super) fn all_paths() -> Vec<String> {
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

/// Whether a path means one field.
pub(super) fn is_field(path: &str) -> bool {
    full_path(path).is_ok()
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
    let has = |what: &str| message.contains(what);
    let is_bare =
        ["integer", "floating point", "boolean", "map"].iter().any(|kind| has(&format!("invalid type: {kind}")));
    let hint = match () {
        () if has("invalid type: sequence") => "a list of values to compare is an axis: write it in [sweep]",
        () if has("expected a sequence") => "a list stands in brackets: [\"a\", \"b\"]",
        () if is_bare && (has("expected a string") || has("expected path string")) => {
            "a text stands in quotes: \"2012\""
        }
        () if is_number_in_quotes(message) => "a number, `true` or `false` stands without quotes",
        () => return nearest_field(message),
    };
    Some(hint.to_owned())
}

/// serde's "invalid type: string "0.3", expected f64".
fn is_number_in_quotes(message: &str) -> bool {
    let quoted = message.split_once("invalid type: string \"").and_then(|(_, rest)| rest.split('"').next());
    quoted.is_some_and(|text| text.parse::<f64>().is_ok() || text.parse::<bool>().is_ok())
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
    // Whether letters are capital says nothing: `FP16` is near to `fp16`.
    let written = written.to_lowercase();
    let nearness = |name: &str| strsim::jaro_winkler(&name.to_lowercase(), &written);
    let nearest = known.iter().copied().max_by(|a, b| nearness(a).total_cmp(&nearness(b)));
    nearest.filter(|name| nearness(name) >= NEAR)
}

/// What to write instead of a class that is none.
pub(crate) fn class_hint(written: &str, known: &[&str]) -> String {
    let parts: Vec<&str> = written.split([';', ',', '|']).map(str::trim).filter(|part| !part.is_empty()).collect();
    if parts.len() > 1 && parts.iter().all(|part| known.contains(part)) {
        let apart: Vec<String> = parts.iter().map(|part| format!("\"{part}\"")).collect();
        return format!("for {} classes write [{}]", parts.len(), apart.join(", "));
    }
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
    let scales = |scales: &[f64]| {
        (1..=64).contains(&scales.len()) && scales.iter().all(|&scale| positive(scale) && scale <= 8.0)
    };
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
        ((1..=MOST_EPOCHS).contains(&segmentation.epochs), "segmentation.epochs", "is not in 1..=10000"),
        ((1..=65_536).contains(&segmentation.batch_size), "segmentation.batch_size", "is not in 1..=65536"),
        ((1..=1024).contains(&segmentation.accumulate), "segmentation.accumulate", "is not in 1..=1024"),
        ((32..=4096).contains(&segmentation.crop), "segmentation.crop", "is not in 32..=4096"),
        (positive(least) && least <= most && most <= 8.0, "segmentation.scale", "is not a range of factors up to 8"),
        (positive(segmentation.lr), "segmentation.lr", "is not above 0"),
        (positive(segmentation.head_lr_mult), "segmentation.head_lr_mult", "is not above 0"),
        ((0.0..1.0).contains(&segmentation.momentum), "segmentation.momentum", "is not in 0..1"),
        ((0.0..1.0).contains(&segmentation.weight_decay), "segmentation.weight_decay", "is not in 0..1"),
        (
            scales(&segmentation.test_scales),
            "segmentation.test_scales",
            "is empty, has more than 64 scales or one outside 0..=8",
        ),
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
        ((1..=MOST_EPOCHS).contains(&classifier.epochs), "classifier.epochs", "is not in 1..=10000"),
        ((1..=65_536).contains(&classifier.batch_size), "classifier.batch_size", "is not in 1..=65536"),
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
        (
            scales(&classifier.cpm.scales),
            "classifier.cpm.scales",
            "is empty, has more than 64 scales or one outside 0..=8",
        ),
        (classifier.cpm.min_distance > 0, "classifier.cpm.min_distance", "is 0"),
        (classifier.cpm.mask_index < 3, "classifier.cpm.mask_index", "is not 0, 1 or 2"),
        (spec.pseudo_label.refine.len() <= 16, "pseudo_label.refine", "has more than 16 refinements"),
        (scales(&spec.seed.scales), "seed.scales", "is empty, has more than 64 scales or one outside 0..=8"),
        (
            !(spec.seed.advcam.enabled && classifier.equivariance.enabled && classifier.equivariance.pcm),
            "seed.advcam.enabled",
            "is true beside `classifier.equivariance.pcm`, and a revised CAM does not climb; set one of them to false",
        ),
        ((1..=10_000).contains(&spec.seed.advcam.iterations), "seed.advcam.iterations", "is not in 1..=10000"),
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
                "`--set classifier.epochs=[3, 4]`: a list, where one whole number belongs",
                "a list of values to compare is an axis: write it in [sweep]",
            ),
            (root, &["pseudo_label.threshold=bset"], "expected a number from 0 to 1, or \"best\"", ""),
            (
                "dataset.root='v'\n[sweep]\n'cpm.tau'=[0.1]\n'classifier.cpm.tau'=[0.2]",
                &[],
                "the axes `classifier.cpm.tau` and `cpm.tau` of [sweep] are one field",
                "",
            ),
            (
                "dataset.root='v'\n[sweep]\n'cpm.tau'=[0.1, 0.1]",
                &[],
                "the axis `cpm.tau` of [sweep] has 0.1 twice",
                "take one of the two out",
            ),
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
            (
                "dataset.root='v'\n[[variant]]\nname='a'\n[[variant]]\nname='a'",
                &[],
                "two variants are named `a`",
                "give each a name of its own; repeats of one have one name, and differ in `rng_seed` alone",
            ),
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
