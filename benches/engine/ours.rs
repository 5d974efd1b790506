//! Our side of `bench.py`: the engine through its public interface, with a stage that copies bytes.
//!
//! usage: engine run FOLDER VARIANTS [WITH_SETS] | engine hash FOLDER; one process a measurement, a JSON object at its end.

#![allow(clippy::print_stdout, reason = "answers go to stdout")]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use rayon::prelude::*;
use s2c_pipe::cache::Cache;
use s2c_pipe::data::FileMemo;
use s2c_pipe::digest::BlobDigest;
use s2c_pipe::pipeline::executor::LocalExecutor;
use s2c_pipe::pipeline::graph::{Graph, InputSet, Source, Unit, UnitIdx};
use s2c_pipe::pipeline::run::{RunOptions, run};
use s2c_pipe::stage::{Device, Output, Registry, Stage, StageContext, StageEntry, UnitInput};
use serde::{Deserialize, Serialize};
use serde_json::json;

/// Units from an input to the last that is derived from it.
const CHAIN: usize = 4;

/// Its input, and a letter.
struct Copy(CopyParams);

#[derive(Serialize, Deserialize)]
struct CopyParams {
    letter: char,
    variant: usize,
}

impl Stage for Copy {
    const KIND: &'static str = "copy";
    const VERSION: u64 = 1;
    const PARALLEL: bool = true;
    type Params = CopyParams;

    fn load(params: CopyParams, _: &StageContext) -> anyhow::Result<Self> {
        Ok(Self(params))
    }

    fn run(&mut self, input: &UnitInput<'_>) -> anyhow::Result<Vec<Output>> {
        let mut bytes = match input.has("all") {
            true => input.set("all")?.len().to_string().into_bytes(),
            false => input.bytes("in")?.to_vec(),
        };
        bytes.extend_from_slice(format!("{}{}", self.0.letter, self.0.variant).as_bytes());
        Ok(vec![Output::new("out", bytes)])
    }
}

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let started = Instant::now();
    let mut answer = match args[..] {
        ["hash", folder] => {
            let cache = open(Path::new(folder))?;
            json!({ "files": digests(&cache, Path::new(folder))?.len() })
        }
        ["run", folder, variants] => run_all(Path::new(folder), variants.parse()?, false)?,
        ["run", folder, variants, _] => run_all(Path::new(folder), variants.parse()?, true)?,
        _ => anyhow::bail!("usage: engine run FOLDER VARIANTS [SETS] | engine hash FOLDER"),
    };
    answer["seconds"] = json!(started.elapsed().as_secs_f64());
    answer["peak_mib"] = json!(peak_mib()?);
    println!("{answer}");
    Ok(())
}

fn open(folder: &Path) -> anyhow::Result<Cache> {
    Cache::open(&folder.join("cache"), "bench", &|_| true)
}

/// The files of `FOLDER/in` by name, with their digests.
fn digests(cache: &Cache, folder: &Path) -> anyhow::Result<Vec<(PathBuf, BlobDigest)>> {
    let listed = fs::read_dir(folder.join("in")).context("no folder `in`")?;
    let mut paths: Vec<PathBuf> = listed.map(|entry| Ok(entry?.path())).collect::<anyhow::Result<_>>()?;
    // As bytes: a path is compared name by name, in many times the time.
    paths.sort_unstable_by(|a, b| a.as_os_str().cmp(b.as_os_str()));
    paths.into_par_iter().map(|path| cache.digest(&path).map(|digest| (path, digest))).collect()
}

fn run_all(folder: &Path, n_variants: usize, with_sets: bool) -> anyhow::Result<serde_json::Value> {
    let mut laps = Vec::new();
    let mut last = Instant::now();
    let mut lap = |name: &'static str| {
        laps.push((name, last.elapsed().as_secs_f64()));
        last = Instant::now();
    };
    let cache = open(folder)?;
    lap("open");
    let files = digests(&cache, folder)?;
    lap("files");
    let (graph, targets) = graph(&files, n_variants, with_sets)?;
    lap("graph");
    let interrupted = Arc::new(false.into());
    let options = RunOptions {
        targets: &targets,
        restore: false,
        keep_going: false,
        retries: 0,
        interrupted: Arc::clone(&interrupted),
        clock: &|| 0,
        made_by: "bench",
        observer: &|_| (),
    };
    let scratch = cache.folder().join("scratch");
    let context = StageContext { device: Device::Cpu, progress: Arc::new(|_| ()), scratch, interrupted };
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    let mut executor = LocalExecutor::new(context, jobs);
    let registry = Registry::default().with(StageEntry::of::<Copy>());
    let report = run(&graph, &cache, &registry, &mut executor, &options)?;
    if let Some((label, error)) = report.failed.first() {
        anyhow::bail!("{label}: {error:#}");
    }
    lap("run");
    let answer = json!({ "executed": report.n_executed(), "reused": report.reused });
    drop((report, graph));
    lap("free");
    drop(cache);
    lap("close");
    let laps: serde_json::Map<String, serde_json::Value> =
        laps.into_iter().map(|(name, seconds)| (name.to_owned(), json!(seconds))).collect();
    Ok(json!({ "result": answer, "laps": laps }))
}

/// A chain of units for each file and variant; `with_sets`: one more unit a variant, which reads the ends of its chains.
fn graph(files: &[(PathBuf, BlobDigest)], n_variants: usize, with_sets: bool) -> anyhow::Result<(Graph, Vec<UnitIdx>)> {
    let mut graph = Graph::default();
    let mut targets = Vec::new();
    let items: Vec<(String, Arc<Path>)> = files
        .iter()
        .map(|(path, _)| (path.file_name().unwrap_or_default().to_string_lossy().into_owned(), path.as_path().into()))
        .collect();
    for variant in 0..n_variants {
        let params = |letter| serde_json::to_string(&CopyParams { letter, variant }).map(Arc::<str>::from);
        let unit = |item: &str, params: &Arc<str>, input| Unit {
            stage: Copy::KIND,
            version: Copy::VERSION,
            item: item.to_owned(),
            params: params.clone(),
            inputs: vec![input],
        };
        let of = |unit| Source::Output { unit, name: "out" };
        let letters = ('a'..).take(CHAIN).map(params).collect::<Result<Vec<_>, _>>()?;
        let mut ends: Vec<UnitIdx> = Vec::with_capacity(files.len());
        for (stage, letter) in letters.iter().enumerate() {
            for (place, ((item, path), (_, digest))) in items.iter().zip(files).enumerate() {
                match stage {
                    0 => {
                        let source = Source::File { path: path.clone(), digest: *digest };
                        ends.push(graph.add(unit(item, letter, ("in", source))));
                    }
                    _ => ends[place] = graph.add(unit(item, letter, ("in", of(ends[place])))),
                }
            }
        }
        match with_sets {
            true => {
                let members = items.iter().zip(&ends).map(|((item, _), &end)| (item.clone(), of(end))).collect();
                let all = graph.add_set(InputSet { members });
                targets.push(graph.add(unit("all", &letters[0], ("all", all))));
            }
            false => targets.append(&mut ends),
        }
    }
    Ok((graph, targets))
}

/// VmHWM, Linux alone.
fn peak_mib() -> anyhow::Result<f64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with("VmHWM")).context("no VmHWM")?;
    let kib: f64 = line.split_whitespace().nth(1).context("no number")?.parse()?;
    Ok(kib / 1024.0)
}
