//! Presets, the table that documents them, and the pipeline files that compare them.

use std::fs;
use std::path::Path;

use s2c_pipe::pipeline::file::{Pipeline, load, schema};
use s2c_pipe::pipeline::preset::{RECIPES, SWITCHES, Switch};
use s2c_pipe::pipeline::spec::{SamInput, Spec};
use s2c_pipe::vision::{LabelMap, Rgb};
use serde_json::Value;

use crate::program::{plan, voc_tree};

fn load_text(text: &str, sets: &[&str]) -> Pipeline {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("p.toml");
    fs::write(&path, format!("dataset.root = 'voc'\n{text}")).unwrap();
    load(&path, &sets.iter().map(|set| (*set).to_owned()).collect::<Vec<_>>()).unwrap()
}

/// A field by its dotted path.
fn field(spec: &Spec, path: &str) -> Value {
    let json = serde_json::to_value(spec).unwrap();
    json.pointer(&format!("/{}", path.replace('.', "/"))).unwrap_or_else(|| panic!("no field {path}")).clone()
}

fn chosen(switch: &Switch) -> [Option<Value>; 2] {
    let literal = |literal| serde_json::to_value(toml::Value::from(literal)).unwrap();
    [switch.paper, switch.authors_code].map(|choice| choice.map(literal))
}

#[test]
fn a_preset_sets_what_the_table_says_and_nothing_else() {
    let presets = load_text("[sweep]\n's2c.preset' = ['recommended', 'paper', 'authors_code']", &[]);
    let [recommended, paper, authors_code] = &presets.cells[..] else { panic!("{presets:?}") };
    for (place, cell) in [paper, authors_code].into_iter().enumerate() {
        let mut expected = serde_json::to_value(&recommended.spec).unwrap();
        expected["s2c"] = serde_json::to_value(&cell.spec.s2c).unwrap();
        for switch in &SWITCHES {
            let at = format!("/{}", switch.field.replace('.', "/"));
            if let Some(choice) = &chosen(switch)[place] {
                assert_ne!(expected.pointer(&at), Some(choice), "{}: None where it is as recommended", switch.field);
                *expected.pointer_mut(&at).unwrap() = choice.clone();
            }
        }
        assert_eq!(serde_json::to_value(&cell.spec).unwrap(), expected, "{}", cell.name);
    }
}

#[test]
fn what_is_written_wins_over_a_preset() {
    let pipeline = load_text(
        "
        classifier.momentum = 0.8
        [[variant]]
        name = 'a'
        preset = 'authors_code'
        ssc.temperature = 0.2
        [[variant]]
        name = 'b'
        [sweep]
        'cpm.first_peak' = ['dedup', 'drop_first']
        ",
        &["cpm.sam_input=cached_full"],
    );
    let classifiers: Vec<_> = pipeline.cells.iter().map(|cell| &cell.spec.classifier).collect();
    let [a, _, b, _] = classifiers[..] else { panic!("{} cells", classifiers.len()) };
    assert_eq!((a.momentum, a.ssc.temperature, a.cpm.sam_input), (0.8, 0.2, SamInput::CachedFull));
    assert_eq!((a.cpm.first_peak, a.cpm.exclude_border), (b.cpm.first_peak, true));
    assert_eq!((b.momentum, b.ssc.temperature, b.cpm.exclude_border), (0.8, 0.5, false));
    let swept = load_text("[sweep]\n's2c.preset' = ['paper', 'authors_code']", &[]);
    let momenta: Vec<f64> = swept.cells.iter().map(|cell| cell.spec.classifier.momentum).collect();
    assert_eq!(momenta, [0.9, 0.0005]);
}

/// The table of docs/presets.md, as it has to be.
fn table() -> String {
    let (recommended, schema) = (Spec::default(), schema());
    let row = |switch: &Switch| {
        let default = field(&recommended, switch.field);
        let [paper, authors_code] = chosen(switch).map(|choice| shown(&choice.unwrap_or_else(|| default.clone())));
        let what = description(&schema, switch.field).replace('\n', " ");
        format!("| `{}` | {paper} | {authors_code} | {} | {} | {what} |\n", switch.field, shown(&default), switch.row)
    };
    let head =
        "| switch | `paper` | `authors_code` | `recommended` | row | what it does |\n|---|---|---|---|---|---|\n";
    head.to_owned() + &SWITCHES.iter().map(row).collect::<String>()
}

fn shown(value: &Value) -> String {
    format!("`{}`", value.to_string().trim_matches('"'))
}

#[test]
fn a_recipe_sets_what_the_docs_say_and_what_is_written_wins() {
    let recipes = ["recommended", "largefov_resnet38d", "aspp_v2_resnet101"];
    let pipeline = load_text(&format!("segmentation.momentum = 0.8\n[sweep]\n'recipe' = {recipes:?}"), &[]);
    let [recommended, others @ ..] = &pipeline.cells[..] else { panic!("{pipeline:?}") };
    for (place, (cell, name)) in others.iter().zip(&recipes[1..]).enumerate() {
        let mut expected = serde_json::to_value(&recommended.spec).unwrap();
        expected["segmentation"]["recipe"] = (*name).into();
        for (field, values) in RECIPES.iter().filter(|(field, _)| *field != "segmentation.momentum") {
            let value = serde_json::to_value(toml::Value::from(values[place])).unwrap();
            *expected.pointer_mut(&format!("/{}", field.replace('.', "/"))).unwrap() = value;
        }
        assert_eq!(serde_json::to_value(&cell.spec).unwrap(), expected, "{name}");
    }
    let head = "| field | `largefov_resnet38d` | `aspp_v2_resnet101` | `recommended` |\n|---|---|---|---|\n";
    let row = |(name, values): &(&str, [_; 2])| {
        let values = values.map(|value| shown(&serde_json::to_value(toml::Value::from(value)).unwrap()));
        let name_there = name.trim_start_matches("segmentation.");
        format!("| `{name_there}` | {} | {} |\n", values.join(" | "), shown(&field(&Spec::default(), name)))
    };
    let table = head.to_owned() + &RECIPES.iter().map(row).collect::<String>();
    let docs = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/segmentation.md")).unwrap();
    assert!(docs.contains(&table), "docs/segmentation.md should have\n{table}");
}

/// What the schema says of a field.
fn description(schema: &Value, path: &str) -> String {
    let names: Vec<&str> = path.split('.').collect();
    let mut at = schema;
    for (i, name) in names.iter().enumerate() {
        at = &at["properties"][name];
        if i + 1 < names.len() {
            let to = at["$ref"].as_str().unwrap_or_else(|| panic!("{path}: {at}")).trim_start_matches('#');
            at = schema.pointer(to).unwrap();
        }
    }
    at["description"].as_str().map_or_else(String::new, str::to_owned)
}

#[test]
fn the_table_in_the_docs_is_that_of_the_code() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/presets.md");
    let docs = fs::read_to_string(path).unwrap();
    let table = table();
    assert!(docs.contains(&table), "docs/presets.md should have\n{table}");
    for switch in SWITCHES.iter().filter(|switch| switch.row != "-") {
        let explained = docs.lines().any(|line| line.starts_with(&format!("| {} |", switch.row)));
        assert!(explained, "row {} is not explained", switch.row);
    }
}

#[test]
fn every_pipeline_plans_as_many_trainings_as_it_says() {
    let dir = tempfile::tempdir().unwrap();
    let image = Rgb { height: 32, width: 48, data: (0..32 * 48 * 3).map(|i| (i % 251) as u8).collect() };
    voc_tree(&dir.path().join("voc"), &image, &LabelMap::filled(32, 48, 8));
    let pipelines = Path::new(env!("CARGO_MANIFEST_DIR")).join("pipelines");
    for (name, cells, trainings) in [
        ("voc-animals", 4, 4),
        ("ablation", 4, 4),
        ("paper-vs-code", 21, 19),
        ("ablation-ssc", 9, 9),
        ("ablation-se-map", 6, 6),
        ("ablation-cpm", 13, 13),
        ("ablation-sam-use", 8, 3),
        ("refinement", 20, 2),
        ("repeats", 12, 12),
    ] {
        let file = pipelines.join(format!("{name}.toml"));
        let plan = plan(dir.path(), &file.to_string_lossy(), &["dataset.root=voc", "dataset.train=train"]);
        assert_eq!((&plan["cells"], &plan["trainings"]), (&cells.into(), &trainings.into()), "{name}");
    }
}

/// Each decision of the authors' code stands alone in paper-vs-code.toml.
#[test]
fn every_difference_of_the_authors_code_has_a_variant_of_its_own() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("pipelines/paper-vs-code.toml");
    let pipeline = load(&file, &[]).unwrap();
    let recommended = &pipeline.cells[0].spec;
    for switch in SWITCHES.iter().filter(|switch| switch.authors_code.is_some()) {
        let [_, choice] = chosen(switch);
        let alone = |spec: &Spec| {
            let differs = |other: &&Switch| field(spec, other.field) != field(recommended, other.field);
            field(spec, switch.field) == choice.clone().unwrap() && SWITCHES.iter().filter(differs).count() == 1
        };
        assert!(pipeline.cells.iter().any(|cell| alone(&cell.spec)), "{}", switch.field);
    }
}
