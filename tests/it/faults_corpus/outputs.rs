//! What a run leaves in `out`: two files of one name, names that no file system takes, files that cannot be written.

use std::fs;
use std::path::{Path, PathBuf};

use crate::program::{finished_copy, succeeds, text};

fn variant(folder: &Path, file: &str, more: &str) {
    let tiny = fs::read_to_string(folder.join("tiny.toml")).unwrap();
    let path = folder.join(file);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, format!("{}{more}", tiny.split("[[variant]]").next().unwrap())).unwrap();
}

fn folders(of: PathBuf) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(of).unwrap().map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn files_of_one_name_and_variants_of_long_and_alike_names_have_folders_of_their_own() {
    let dir = finished_copy();
    let dir = dir.path();
    let long = "n".repeat(300);
    let names = ["S2C", "s2c", "a/b", &long].map(|name| format!("[[variant]]\nname = '{name}'\n"));
    variant(dir, "a/exp.toml", &names.concat());
    variant(dir, "b/exp.toml", "[[variant]]\nname = 'other'\n");
    let first = succeeds(dir, &["run", "a/exp.toml"]);
    assert!(first.contains("0 units executed") && first.contains(&long), "{first}");
    let results = fs::read(dir.join("out/exp/results.json")).unwrap();
    let events = folders(dir.join("out/exp/tensorboard"));
    assert_eq!(events.len(), 4, "{events:?}");
    assert!(events.contains(&"S2C".to_owned()) && events.iter().any(|name| name.starts_with("s2c-")), "{events:?}");

    let second = succeeds(dir, &["run", "b/exp.toml"]);
    assert!(second.contains("note: results go to `out/exp-") && second.contains("a/exp.toml`"), "{second}");
    assert_eq!(fs::read(dir.join("out/exp/results.json")).unwrap(), results);
    let other = folders(dir.join("out")).into_iter().find(|name| name.starts_with("exp-")).unwrap();
    assert!(fs::read_to_string(dir.join("out").join(&other).join("results.json")).unwrap().contains("other"));
    // The same again goes where it was.
    succeeds(dir, &["run", "b/exp.toml"]);
    succeeds(dir, &["run", "a/exp.toml"]);
    assert_eq!(folders(dir.join("out")), ["exp".to_owned(), other, "tiny".to_owned()]);
}

/// The table is shown whatever cannot be written beside it.
#[test]
fn a_side_file_costs_no_results() {
    let dir = finished_copy();
    let dir = dir.path();
    variant(dir, "exp.toml", "[[variant]]\nname = 'baseline'\n");
    let run = |args: &[&str]| crate::program::call(dir, &[&["run", "exp.toml"], args].concat());
    // A file where a folder would be.
    fs::create_dir_all(dir.join("o1/exp")).unwrap();
    fs::write(dir.join("o1/exp/tensorboard"), "").unwrap();
    fs::write(dir.join("o1/exp/overlays"), "").unwrap();
    let output = run(&["--out", "o1"]);
    assert!(text(&output).contains("error: `o1/exp` has files that s2c-pipe did not make"), "{}", text(&output));
    let output = run(&["--out", "o1", "--force"]);
    let said = text(&output);
    assert!(output.status.success() && said.contains("baseline"), "{said}");
    let is_of_file = |line: &&str| line.starts_with("warning: ") && line.contains("o1/exp");
    assert_eq!(said.lines().filter(is_of_file).count(), 2, "{said}");
    assert!(fs::read_to_string(dir.join("o1/exp/results.csv")).unwrap().contains("baseline"));
    // Of the results themselves that is an error, below the table.
    fs::write(dir.join("o2"), "").unwrap();
    let output = run(&["--out", "o2"]);
    let said = text(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("baseline") && said.contains("error: result files could not be written to `o2/exp`"),
        "{said}"
    );
    assert!(said.contains("hint: nothing is lost: s2c-pipe results exp.toml --csv"), "{said}");
}
