//! The import rules of `src/lib.rs`, checked by reading the sources.

use std::fs;
use std::path::{Path, PathBuf};

fn sources(dir: &Path, found: &mut Vec<(PathBuf, String)>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            found.push((path, text));
        }
    }
}

fn all() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    sources(&root, &mut found);
    let name = |path: &Path| path.strip_prefix(&root).unwrap().to_string_lossy().into_owned();
    found.into_iter().map(|(path, text)| (name(&path), text)).collect()
}

/// Lines of code, tests left out (they stand at the bottom of a file).
fn code(text: &str) -> impl Iterator<Item = &str> {
    let body = text.split("#[cfg(test)]\nmod tests").next().unwrap_or(text);
    body.lines().map(str::trim).filter(|line| !line.starts_with("//"))
}

#[test]
fn each_outside_thing_has_one_door() {
    let doors = [
        ("sled::", &["cache/index.rs"][..]),
        ("bincode::", &["artifact.rs"][..]),
        ("clap::", &["cli/"][..]),
        ("tch::", &["model/", "stage/", "cli/doctor.rs"][..]),
        ("println!", &["cli/"][..]),
        ("std::env::", &["cli/", "vision/arch.rs", "pipeline/value.rs"][..]),
        ("object_store::", &["cache/remote/s3.rs"][..]),
        ("tokio::", &["cache/remote/s3.rs"][..]),
    ];
    let mut broken = Vec::new();
    for (file, text) in all() {
        for (name, rooms) in doors {
            if !rooms.iter().any(|room| file.starts_with(room)) && code(&text).any(|line| line.contains(name)) {
                broken.push(format!("{file} uses {name}"));
            }
        }
    }
    assert_eq!(broken, Vec::<String>::new());
}

#[test]
fn arrows_point_down() {
    let below: [(&str, &[&str]); 9] = [
        ("vision", &[]),
        ("digest", &[]),
        ("artifact", &["digest"]),
        ("data", &["vision", "digest"]),
        ("model", &["data", "vision"]),
        ("cache", &["artifact", "digest", "data"]),
        ("stage", &["model", "data", "vision", "artifact", "digest"]),
        ("pipeline", &["stage", "cache", "model", "data", "vision", "artifact", "digest"]),
        ("cli", &["pipeline", "stage", "cache", "model", "data", "vision", "artifact", "digest"]),
    ];
    let mut broken = Vec::new();
    for (file, text) in all() {
        let room = file.split(['/', '.']).next().unwrap();
        let Some((_, allowed)) = below.iter().find(|(name, _)| *name == room) else { continue };
        for line in code(&text) {
            for (other, _) in below {
                if other != room && !allowed.contains(&other) && line.contains(&format!("crate::{other}")) {
                    broken.push(format!("{file}: {line}"));
                }
            }
        }
    }
    assert_eq!(broken, Vec::<String>::new());
}
