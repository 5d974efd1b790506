//! What a value means that is written for a field: on the command line, where a shell has taken quotes away, and in
//! paths, where `~` stands for the home folder.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde_json::Value as Json;
use toml::{Table, Value};

use super::file::FileError;
use super::names::shell_quoted;
use super::spec::Spec;

/// Fields that are paths, relative to the file that writes them.
const PATHS: [&str; 6] = [
    "dataset.root",
    "sam.weights",
    "classifier.weights",
    "pseudo_label.psa.weights",
    "pseudo_label.irn.weights",
    "segmentation.weights",
];
/// A path within `dataset.root`.
const WITHIN: &str = "dataset.masks";

/// What a field holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Any text.
    Text,
    /// One of some known words.
    Word,
    Whole,
    Number,
    NumberOrWord,
    Truth,
    Texts,
    Words,
    Numbers,
    /// Names of a user's own, each with a text.
    Table,
    WordOrTable,
}

impl Kind {
    /// Of a field by dotted path, from the JSON schema.
    fn of(field: &str) -> Option<Self> {
        static SCHEMA: OnceLock<Json> = OnceLock::new();
        let schema = SCHEMA.get_or_init(|| schemars::schema_for!(Spec).to_value());
        let mut found = schema;
        for part in field.split('.') {
            found = resolved(schema, found).get("properties")?.get(part)?;
        }
        let mut kinds = Vec::new();
        collect(schema, found, &mut kinds);
        kinds.dedup();
        match &kinds[..] {
            [kind] => Some(*kind),
            [Self::Number, Self::Word] => Some(Self::NumberOrWord),
            [Self::Word, Self::Table] => Some(Self::WordOrTable),
            _ => None,
        }
    }
}

fn resolved<'a>(schema: &'a Json, part: &'a Json) -> &'a Json {
    let name = part.get("$ref").and_then(Json::as_str).and_then(|path| path.rsplit('/').next());
    name.and_then(|name| schema.get("$defs")?.get(name)).unwrap_or(part)
}

/// The kinds of a part of the schema, but for `null`.
fn collect(schema: &Json, part: &Json, found: &mut Vec<Kind>) {
    let part = resolved(schema, part);
    for choice in ["oneOf", "anyOf"].iter().filter_map(|name| part.get(name)?.as_array()).flatten() {
        collect(schema, choice, found);
    }
    let is_word = part.get("enum").is_some() || part.get("const").is_some();
    let types = match part.get("type") {
        Some(Json::Array(types)) => types.iter().collect(),
        Some(one) => vec![one],
        None => Vec::new(),
    };
    for name in types.into_iter().filter_map(Json::as_str) {
        found.extend(match name {
            "string" if is_word => Some(Kind::Word),
            "string" => Some(Kind::Text),
            "integer" => Some(Kind::Whole),
            "number" => Some(Kind::Number),
            "boolean" => Some(Kind::Truth),
            "object" if part.get("additionalProperties").is_some_and(Json::is_object) => Some(Kind::Table),
            "array" => {
                let mut of_items = Vec::new();
                let fixed = part.get("prefixItems").and_then(|items| items.get(0));
                fixed.or(part.get("items")).into_iter().for_each(|items| collect(schema, items, &mut of_items));
                of_items.dedup();
                match of_items[..] {
                    [Kind::Text] => Some(Kind::Texts),
                    [Kind::Word] => Some(Kind::Words),
                    [Kind::Whole | Kind::Number] => Some(Kind::Numbers),
                    _ => None,
                }
            }
            _ => None,
        });
    }
}

/// The value of `--set FIELD=WRITTEN`, for a field by its whole path.
///
/// A text is taken as it was typed, or within quotes as TOML has them. A list of texts is one text, or `[..]` with texts in
/// quotes or without.
pub(super) fn of_command_line(field: &str, written: &str) -> Result<Value, FileError> {
    let typed = written.trim();
    let said = |what: &str| format!("`--set {field}={written}`: {what}");
    let set = |value: &str| format!("--set {}", shell_quoted(&format!("{field}={value}")));
    if typed.is_empty() {
        return Err(FileError::hinted(said("there is no value"), "write it behind `=`, without a space"));
    }
    let axis = "a list of values to compare is an axis: write it in [sweep]";
    let is_list = typed.starts_with('[');
    let quoted = toml_text(typed);
    let kind = Kind::of(field);
    if quoted.is_none() && outside_of_quotes(typed).contains(';') {
        parted_by_semicolons(field, kind, typed)
            .map_or(Ok(()), |(what, hint)| Err(FileError::hinted(said(what), hint)))?;
    }
    match kind {
        Some(Kind::Text) if is_list && typed.ends_with(']') => {
            let very = set(&in_quotes(typed));
            Err(FileError::hinted(
                said("a list, where one text belongs"),
                format!("{axis}; for a text with brackets write {very}"),
            ))
        }
        Some(Kind::Table | Kind::WordOrTable) if typed.starts_with('{') => {
            let parsed = toml::from_str::<Table>(&format!("value = {typed}")).ok();
            let example = set("{ \"255\" = \"cat\" }");
            parsed
                .and_then(|mut table| table.remove("value"))
                .ok_or_else(|| FileError::hinted(said("no table of TOML"), format!("write it as in {example}")))
        }
        Some(Kind::Text | Kind::Word | Kind::Table | Kind::WordOrTable) => {
            Ok(Value::String(quoted.unwrap_or_else(|| typed.to_owned())))
        }
        Some(Kind::Truth) => match typed.to_ascii_lowercase().as_str() {
            "true" => Ok(Value::Boolean(true)),
            "false" => Ok(Value::Boolean(false)),
            _ if is_list => Err(FileError::hinted(said("a list, where `true` or `false` belongs"), axis)),
            _ => Err(FileError::hinted(said("neither `true` nor `false`"), format!("write {}", set("true")))),
        },
        Some(Kind::Whole) => match number(typed) {
            Some(Value::Float(x)) if x.fract() == 0.0 && x.abs() < 2f64.powi(53) => Ok(Value::Integer(x as i64)),
            Some(Value::Integer(i)) => Ok(Value::Integer(i)),
            _ if is_list => Err(FileError::hinted(said("a list, where one whole number belongs"), axis)),
            _ => Err(not_a_number(said("no whole number"), typed, &set)),
        },
        Some(Kind::Number) => match number(typed) {
            Some(value) => Ok(value),
            None if is_list => Err(FileError::hinted(said("a list, where one number belongs"), axis)),
            None => Err(not_a_number(said("no number"), typed, &set)),
        },
        Some(Kind::NumberOrWord) if is_list => Err(FileError::hinted(said("a list, where one value belongs"), axis)),
        Some(Kind::NumberOrWord) => {
            Ok(number(typed).unwrap_or_else(|| Value::String(quoted.unwrap_or_else(|| typed.to_owned()))))
        }
        Some(Kind::Texts | Kind::Words | Kind::Numbers) => {
            let items = items(typed).map_err(|what| {
                let hint = format!("write for instance {}", set("[\"a\", \"b\"]"));
                FileError::hinted(said(what), hint)
            })?;
            let has_brackets = is_list;
            if !has_brackets && items.len() > 1 && kind != Some(Kind::Words) {
                // An id may have a comma in it, and a number a comma in place of its point.
                let several = match kind {
                    Some(Kind::Numbers) => items.join(", "),
                    _ => items.iter().map(|item| in_quotes(item)).collect::<Vec<_>>().join(", "),
                };
                let several = set(&format!("[{several}]"));
                let hint = match kind {
                    Some(Kind::Numbers) => format!("write {several}, with points in fractions"),
                    _ => format!(
                        "for {} write {several}, for one {}",
                        items.len(),
                        set(&format!("[{}]", in_quotes(typed)))
                    ),
                };
                return Err(FileError::hinted(said("one value with a comma, or several"), hint));
            }
            let value = |item: &String| match kind {
                Some(Kind::Numbers) => {
                    number(item).ok_or_else(|| not_a_number(said(&format!("`{item}` is no number")), item, &set))
                }
                _ => Ok(Value::String(item.clone())),
            };
            items.iter().map(value).collect::<Result<_, _>>().map(Value::Array)
        }
        // A field of a kind that is not known here: as TOML, and what is none is a text.
        None => {
            let parsed = toml::from_str::<Table>(&format!("value = {typed}")).ok();
            let parsed = parsed.and_then(|mut table| table.remove("value"));
            Ok(parsed.unwrap_or_else(|| Value::String(typed.to_owned())))
        }
    }
}

/// A text without what stands in quotes.
fn outside_of_quotes(text: &str) -> String {
    let mut quote = None;
    let mut is_outside = |c: char| {
        match quote {
            None if c == '"' || c == '\'' => quote = Some(c),
            Some(open) if open == c => quote = None,
            _ => return quote.is_none(),
        }
        false
    };
    text.chars().filter(|c| is_outside(*c)).collect()
}

/// What is wrong with a value that has `;` in it, and what to write: several fields in one, or several values. A single text
/// may have one.
fn parted_by_semicolons(field: &str, kind: Option<Kind>, typed: &str) -> Option<(&'static str, String)> {
    let parts: Vec<&str> =
        typed.trim_matches(['[', ']']).split(';').map(str::trim).filter(|part| !part.is_empty()).collect();
    let is_assignment = |part: &&str| part.split_once('=').is_some_and(|(name, _)| super::file::is_field(name.trim()));
    if parts.len() > 1 && parts[1..].iter().all(is_assignment) {
        let first = format!("{field}={}", parts[0]);
        let sets = std::iter::once(first.as_str()).chain(parts[1..].iter().copied());
        let sets: Vec<String> = sets.map(|set| format!("--set {}", shell_quoted(set))).collect();
        return Some(("`;` does not part fields", format!("write {}", sets.join(" "))));
    }
    let several = |values: Vec<String>| format!("--set {}", shell_quoted(&format!("{field}=[{}]", values.join(", "))));
    match kind {
        Some(Kind::Numbers | Kind::Words) => {
            let value = |part: &&str| if kind == Some(Kind::Words) { in_quotes(part) } else { (*part).to_owned() };
            let apart = several(parts.iter().map(value).collect());
            Some(("`;` does not part values", format!("write {apart}")))
        }
        Some(Kind::Texts) if parts.len() > 1 => {
            let (apart, one) = (parts.iter().map(|part| in_quotes(part)).collect(), several(vec![in_quotes(typed)]));
            Some((
                "one value with `;`, or several",
                format!("for {} write {}, for one {one}", parts.len(), several(apart)),
            ))
        }
        Some(Kind::Whole | Kind::Number | Kind::NumberOrWord | Kind::Truth | Kind::Word) => {
            let hint = "give one value here; values to compare are an axis: write them in [sweep], with commas";
            Some(("`;` does not part values", hint.to_owned()))
        }
        Some(Kind::Text | Kind::Texts | Kind::Table | Kind::WordOrTable) | None => None,
    }
}

/// What to write in place of a text that is nearly a number.
fn not_a_number(message: String, typed: &str, set: &dyn Fn(&str) -> String) -> FileError {
    let with_point = typed.replacen(',', ".", 1);
    let without_zeros = typed.trim_start_matches('0');
    let without_unit = typed.trim_end_matches(|c: char| !c.is_ascii_digit());
    let near = [with_point.as_str(), without_zeros, without_unit, typed.trim_matches(['"', '\''])];
    match near.into_iter().find(|near| *near != typed && number(near).is_some()) {
        Some(near) => FileError::hinted(message, format!("did you mean {}?", set(near))),
        None => FileError { message, hint: None },
    }
}

/// A number as TOML has it, or without a digit before or behind its point.
fn number(text: &str) -> Option<Value> {
    let parsed = toml::from_str::<Table>(&format!("value = {text}")).ok().and_then(|mut table| table.remove("value"));
    if let Some(value @ (Value::Integer(_) | Value::Float(_))) = parsed {
        return Some(value);
    }
    let is_plain = text.contains('.') && text.chars().all(|c| c.is_ascii_digit() || "+-.eE".contains(c));
    let leading_zeros = text
        .trim_start_matches(['+', '-'])
        .strip_prefix('0')
        .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
    text.parse().ok().filter(|_| is_plain && !leading_zeros && parsed.is_none()).map(Value::Float)
}

/// A text in quotes of TOML, without them.
fn toml_text(text: &str) -> Option<String> {
    if !text.starts_with(['"', '\'']) {
        return None;
    }
    match toml::from_str::<Table>(&format!("value = {text}")).ok()?.remove("value")? {
        Value::String(text) => Some(text),
        _ => None,
    }
}

fn in_quotes(text: &str) -> String {
    Value::String(text.to_owned()).to_string()
}

/// The texts of a list, in brackets or not, in quotes or not.
fn items(typed: &str) -> Result<Vec<String>, &'static str> {
    let inner = match (typed.strip_prefix('['), typed.ends_with(']')) {
        (Some(inner), true) => &inner[..inner.len() - 1],
        (Some(_), false) => return Err("the list has no `]`"),
        (None, _) => typed,
    };
    // Commas outside of quotes part; a quote begins only where a text does.
    let (mut parts, mut quote) = (vec![String::new()], None);
    for c in inner.chars() {
        let Some(part) = parts.last_mut() else { continue };
        match (quote, c) {
            (None, ',') => {
                parts.push(String::new());
                continue;
            }
            (None, '"' | '\'') if part.trim().is_empty() => quote = Some(c),
            (Some(open), c) if open == c && !(open == '"' && part.ends_with('\\')) => quote = None,
            _ => {}
        }
        part.push(c);
    }
    let mut parts: Vec<&str> = parts.iter().map(|part| part.trim()).collect();
    // As in TOML a comma may stand behind the last.
    if parts.last() == Some(&"") && typed.starts_with('[') {
        parts.pop();
    }
    let text = |part: &str| match part {
        "" => Err("there is nothing between two commas"),
        part if part.starts_with('[') => Err("a list within a list"),
        part => Ok(toml_text(part).unwrap_or_else(|| part.to_owned())),
    };
    parts.into_iter().map(text).collect()
}

/// Whether a field is a path from the folder of its file.
pub(super) fn is_path(field: &str) -> bool {
    PATHS.contains(&field)
}

/// The number that a field has where nothing sets it.
pub fn default_number(field: &str) -> Option<f64> {
    let spec = serde_json::to_value(Spec::default()).ok()?;
    field.split('.').fold(&spec, |value, part| &value[part]).as_f64()
}

/// The files and folders that a spec names, by field.
pub fn named_paths(spec: &Spec) -> Vec<(&'static str, PathBuf)> {
    let spec = serde_json::to_value(spec).unwrap_or_default();
    let root = spec["dataset"]["root"].as_str().map(PathBuf::from).unwrap_or_default();
    let named = paths().filter_map(|field| {
        let value = field.split('.').fold(&spec, |value, part| &value[part]).as_str()?;
        Some((field, if field == WITHIN { root.join(value) } else { PathBuf::from(value) }))
    });
    named.collect()
}

/// A spec whose paths are others: `change` is asked for each that is set, those within the data set left out.
pub(super) fn with_paths(spec: &Spec, change: impl Fn(PathBuf) -> PathBuf) -> serde_json::Result<Spec> {
    let mut spec = serde_json::to_value(spec)?;
    for field in PATHS {
        let Some(place) = spec.pointer_mut(&format!("/{}", field.replace('.', "/"))) else { continue };
        if let Some(path) = place.as_str().map(PathBuf::from) {
            *place = serde_json::to_value(change(path))?;
        }
    }
    serde_json::from_value(spec)
}

/// Every field whose `~` is the home folder.
pub(super) fn paths() -> impl Iterator<Item = &'static str> {
    PATHS.into_iter().chain([WITHIN])
}

/// A path as it is meant: from the home folder if it begins with `~/`, else from `folder`. That within the data set stays
/// relative.
pub(super) fn path_of(field: &str, text: &str, folder: &Path) -> Result<String, FileError> {
    let path =
        from_home(text).map_err(|error| FileError { message: format!("`{field}`: {}", error.message), ..error })?;
    let path = if field == WITHIN { path } else { folder.join(path) };
    // Without `.` within, so that equal paths are equal texts.
    Ok(path.components().collect::<PathBuf>().to_string_lossy().into_owned())
}

/// A path with the home folder in the place of a first `~`.
pub(super) fn from_home(text: &str) -> Result<PathBuf, FileError> {
    let this = |what: &str| format!("`{text}` {what}");
    let name = format!("or ./{text} for something of that name");
    match text.strip_prefix('~') {
        Some(rest) if rest.is_empty() || rest.starts_with('/') => {
            let home = std::env::home_dir().filter(|home| home.is_absolute());
            let hint = "write the whole path";
            let home =
                home.ok_or_else(|| FileError::hinted(this("begins with `~`, and there is no home folder"), hint))?;
            Ok(home.join(rest.trim_start_matches('/')))
        }
        Some(_) => {
            let hint = format!("write the whole path, {name}");
            Err(FileError::hinted(
                this("begins with the home folder of somebody by name, which is not looked up"),
                hint,
            ))
        }
        None if text.starts_with('$') => {
            let hint = format!("write the whole path, or let the shell put it in (it does not within '..'), {name}");
            Err(FileError::hinted(this("begins with a variable of the shell, which is not looked up"), hint))
        }
        None => Ok(PathBuf::from(text)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every field has a kind, so that a new one is not guessed at.
    #[test]
    fn every_field_has_a_kind() {
        let mut n_fields = 0;
        for field in super::super::file::all_paths() {
            assert!(Kind::of(&field).is_some(), "{field}");
            n_fields += 1;
        }
        assert!(n_fields > 100);
        #[rustfmt::skip]
        let cases = [
            ("dataset.train", Kind::Text), ("dataset.root", Kind::Text), ("precision", Kind::Word),
            ("irn.backbone", Kind::Word), ("classifier.epochs", Kind::Whole), ("classifier.lr", Kind::Number),
            ("pseudo_label.threshold", Kind::NumberOrWord), ("seed.flip", Kind::Truth), ("dataset.exclude", Kind::Texts),
            ("pseudo_label.refine", Kind::Words), ("seed.scales", Kind::Numbers), ("classifier.jitter", Kind::Numbers),
            ("pseudo_label.crf.bilateral_sxy", Kind::Number), ("pseudo_label.crf.iterations", Kind::Whole),
            ("segmentation.crf.parameters", Kind::Word), ("dataset.mask_values", Kind::WordOrTable),
        ];
        for (field, kind) in cases {
            let field = if field == "irn.backbone" { "pseudo_label.irn.backbone" } else { field };
            assert_eq!(Kind::of(field), Some(kind), "{field}");
        }
    }

    #[test]
    fn a_value_is_what_its_field_takes() {
        #[rustfmt::skip]
        let cases = [
            // A text is as it was typed.
            ("dataset.train", "2012", "\"2012\""),
            ("dataset.train", "1e3", "\"1e3\""),
            ("dataset.train", "007", "\"007\""),
            ("dataset.train", "2007-01-01", "\"2007-01-01\""),
            ("dataset.train", "true", "\"true\""),
            ("dataset.train", "inf", "\"inf\""),
            ("dataset.train", "0x10", "\"0x10\""),
            ("dataset.train", "a, b", "\"a, b\""),
            ("dataset.train", "it's", "\"it's\""),
            ("dataset.train", "\"2012\"", "\"2012\""),
            ("dataset.train", "'[x]'", "\"[x]\""),
            ("dataset.train", " x ", "\"x\""),
            ("dataset.masks", "none", "\"none\""),
            // A list takes one text, or several in brackets.
            ("dataset.exclude", "2007_000001", "[\"2007_000001\"]"),
            ("dataset.exclude", "[2007_000001]", "[\"2007_000001\"]"),
            ("dataset.exclude", "[2007_000001,2007_000002]", "[\"2007_000001\", \"2007_000002\"]"),
            ("dataset.exclude", "['2007_000001', \"x\",]", "[\"2007_000001\", \"x\"]"),
            ("dataset.exclude", "[1.50, 2007-01-01, 007]", "[\"1.50\", \"2007-01-01\", \"007\"]"),
            ("dataset.exclude", "['a,b', c d]", "[\"a,b\", \"c d\"]"),
            ("dataset.exclude", "'a,b'", "[\"a,b\"]"),
            ("dataset.exclude", "it's", "[\"it's\"]"),
            ("dataset.exclude", "[]", "[]"),
            ("evaluate.classes", "[cat,dog]", "[\"cat\", \"dog\"]"),
            ("pseudo_label.refine", "segment_vote,crf", "[\"segment_vote\", \"crf\"]"),
            ("seed.scales", "[0.5, 1, .5]", "[0.5, 1, 0.5]"),
            ("seed.scales", "1.0", "[1.0]"),
            ("classifier.jitter", "[0.1,0.1,0.1,0]", "[0.1, 0.1, 0.1, 0]"),
            // Numbers in every form that has one reading.
            ("classifier.lr", "1E-3", "0.001"),
            ("classifier.lr", "1", "1"),
            ("classifier.cpm.tau", ".5", "0.5"),
            ("classifier.cpm.tau", "1.", "1.0"),
            ("classifier.epochs", "1e1", "10"),
            ("classifier.epochs", "10.0", "10"),
            ("classifier.epochs", "0x10", "16"),
            ("classifier.epochs", "1_000", "1000"),
            ("pseudo_label.threshold", ".3", "0.3"),
            ("pseudo_label.threshold", "best", "\"best\""),
            ("classifier.ssc.enabled", "True", "true"),
            ("classifier.ssc.enabled", "FALSE", "false"),
            ("precision", "f32", "\"f32\""),
        ];
        for (field, written, expected) in cases {
            let value = of_command_line(field, written).unwrap_or_else(|error| panic!("{written}: {error}"));
            assert_eq!(value.to_string(), expected, "{field}={written}");
        }
        #[rustfmt::skip]
        let wrong = [
            ("classifier.epochs", "", "there is no value", "write it behind `=`"),
            ("classifier.cpm.tau", "0,5", "no number", "did you mean --set classifier.cpm.tau=0.5?"),
            ("classifier.cpm.tau", "[0.3,0.5]", "a list, where one number belongs", "is an axis"),
            ("classifier.epochs", "007", "no whole number", "did you mean --set classifier.epochs=7?"),
            ("classifier.epochs", "2.5", "no whole number", ""),
            ("classifier.epochs", "inf", "no whole number", ""),
            ("classifier.epochs", "5 epochs", "no whole number", "did you mean --set classifier.epochs=5?"),
            ("classifier.epochs", "2007-01-01", "no whole number", ""),
            ("rng_seed", "18446744073709551615", "no whole number", ""),
            ("classifier.ssc.enabled", "yes", "neither `true` nor `false`", "--set classifier.ssc.enabled=true"),
            ("classifier.ssc.enabled", "1", "neither `true` nor `false`", ""),
            ("dataset.train", "[a]", "a list, where one text belongs", "write --set 'dataset.train=\"[a]\"'"),
            ("evaluate.classes", "cat,dog", "one value with a comma, or several",
             "for 2 write --set 'evaluate.classes=[\"cat\", \"dog\"]', for one --set 'evaluate.classes=[\"cat,dog\"]'"),
            ("dataset.exclude", "[a", "the list has no `]`", "--set 'dataset.exclude=[\"a\", \"b\"]'"),
            ("dataset.exclude", "[a,,b]", "nothing between two commas", ""),
            ("dataset.exclude", "[[a]]", "a list within a list", ""),
            ("seed.scales", "0,5", "one value with a comma, or several", "write --set 'seed.scales=[0, 5]'"),
            ("seed.scales", "[0.5, x]", "`x` is no number", ""),
        ];
        for (field, written, message, hint) in wrong {
            let error = of_command_line(field, written).unwrap_err();
            assert!(error.message.contains(message), "{field}={written}: {}", error.message);
            assert!(error.hint.clone().unwrap_or_default().contains(hint), "{field}={written}: {:?}", error.hint);
        }
    }

    #[test]
    fn the_home_folder_is_put_in() {
        let folder = Path::new("/data");
        let home = std::env::home_dir().unwrap();
        let of = |text: &str| path_of("dataset.root", text, folder);
        assert_eq!(Path::new(&of("~/VOC2012").unwrap()), home.join("VOC2012"));
        assert_eq!(Path::new(&of("~").unwrap()), home);
        assert_eq!(of("./a/./b").unwrap(), "/data/a/b");
        assert_eq!(of("a~/b").unwrap(), "/data/a~/b");
        assert_eq!(of("./~x").unwrap(), "/data/~x");
        assert_eq!(path_of(WITHIN, "masks", folder).unwrap(), "masks");
        for text in ["~bob/x", "$HOME/x", "${DATA}"] {
            let error = of(text).unwrap_err();
            assert!(error.message.starts_with(&format!("`dataset.root`: `{text}` begins with")), "{}", error.message);
            assert!(error.hint.unwrap().contains("write the whole path"));
        }
    }
}
