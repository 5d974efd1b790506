//! Commands that work on a pipeline file: run, plan, why, results, graph.
#![expect(clippy::print_stdout, reason = "this is where printing happens")]

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, anyhow, bail};

use super::args::{Cli, Command, GraphFormat, PipelineArgs, RunArgs};
use super::audit::{self, Audited};
use super::compare::compare_two;
use super::doctor::{doctor, has_bf16, parse_devices};
use super::export::export;
use super::kept::{Kept, KeptMemo};
use super::lineage::show_lineage;
use super::live::Live;
use super::out::OutFolder;
use super::plan::show_plan;
use super::predict::predict;
use super::progress::Progress;
use super::record::{Recorded, how};
use super::results_folder::{Asked, Reads, ResultsFolder};
use super::segment::segment;
use super::signals::stop_on_signals;
use super::status::host;
use super::table::{Results, Warnings, repeats_of, results, shown, tabular};
use super::verify::verify_results;
use super::why::show_why;
use super::{
    Hinted, INTERRUPTED, LOGS, OfData, hint_of, open_cache, read_cache, report, size, tensorboard, weights, who,
};
use crate::cache::status::Status;
use crate::cache::{Cache, Untold, locked};
use crate::data::emoji::{EmojiOptions, materialise};
use crate::data::image::encode_se_map;
use crate::data::scan::ScanOptions;
use crate::data::text::counted;
use crate::data::{Dataset, FileMemo, Mask};
use crate::data::{coco, folder, voc};
use crate::digest::BlobDigest;
use crate::pipeline::build::{CellInput, CellUnits, build, registry};
use crate::pipeline::draw::Drawing;
use crate::pipeline::executor::LocalExecutor;
use crate::pipeline::file::{Cell, Pipeline, load};
use crate::pipeline::forecast::Forecast;
use crate::pipeline::graph::{Graph, UnitIdx};
use crate::pipeline::names::printable;
use crate::pipeline::outcomes::Outcomes;
use crate::pipeline::plan::{finished, plan};
use crate::pipeline::repeats;
use crate::pipeline::run::{Event, RunOptions, run};
use crate::pipeline::spec::{DatasetKind, DatasetSpec};
use crate::pipeline::value::named_paths;
use crate::pipeline::verified::TableSource;
use crate::stage::StageContext;
use crate::vision::{SeMap, VOC_CLASSES, labels_of};

/// Bytes whose hashing at each command is worth a note.
const MUCH_HASHED: u64 = 100_000_000;
/// Units named in a line.
const N_BLOCKED: usize = 5;

/// A pipeline with its data scanned and its units built.
pub(super) struct Experiment {
    pub(super) pipeline: Pipeline,
    pub(super) graph: Graph,
    pub(super) cells: Vec<CellUnits>,
    /// What each command hashes: see [`Cache::untold_files`].
    untold: BTreeMap<String, Untold>,
    /// Digests of the files of weights that it reads.
    pub(super) weights: Vec<(PathBuf, BlobDigest)>,
}

/// The data set and the weights that a variant is built with.
#[derive(Default)]
pub(super) struct Reading {
    /// `None`: the data set that is there now.
    pub(super) data: Option<Arc<Dataset>>,
    /// It is as a run of the past read it.
    pub(super) is_past: bool,
    /// Files of weights whose content was this; others are as they are now.
    pub(super) weights: Vec<(PathBuf, BlobDigest)>,
}

impl Experiment {
    pub(super) fn open(cache: &Cache, args: &PipelineArgs) -> anyhow::Result<Self> {
        Self::of(cache, load(&args.file, &args.sets)?)
    }

    pub(super) fn of(cache: &Cache, pipeline: Pipeline) -> anyhow::Result<Self> {
        Self::of_reads(cache, pipeline, &[])
    }

    /// `reads`: in the place of a variant, what is taken for what it reads instead of what is there now.
    pub(super) fn of_reads(cache: &Cache, pipeline: Pipeline, reads: &[Reading]) -> anyhow::Result<Self> {
        Self::with(cache, pipeline, cache, (&|_| None, reads), None)
    }

    /// To look at results: data and weights that are gone are taken as the last run had them, and notes say so.
    pub(super) fn of_records(cli: &Cli, cache: &Cache, args: &PipelineArgs) -> anyhow::Result<Self> {
        let kept = Kept::new(cache, &args.file);
        let memo = KeptMemo { cache, kept: &kept, gone: Mutex::default() };
        let experiment = |bf16: Option<bool>| {
            let kept = |spec: &DatasetSpec| kept.dataset(spec);
            Self::with(cache, load(&args.file, &args.sets)?, &memo, (&kept, &[]), bf16)
        };
        let mut found = experiment(None)?;
        let (bf16, notes) = std::mem::take(&mut *locked(&memo.gone));
        if let Some(bf16) = bf16.filter(|bf16| *bf16 != has_bf16()) {
            found = experiment(Some(bf16))?;
        }
        let of_data =
            found.cells.iter().filter(|cell| cell.dataset.decided.is_empty()).flat_map(|cell| &cell.dataset.notes);
        let notes: BTreeSet<&String> = of_data.chain(&notes).collect();
        if !cli.quiet {
            notes.iter().for_each(|note| eprintln!("note: {}", printable(note, false)));
        }
        Ok(found)
    }

    /// `kept`: what is taken for a data set that cannot be read, and whether `auto` meant bf16 there. `reads`: see
    /// [`Self::of_reads`].
    fn with(
        cache: &Cache,
        pipeline: Pipeline,
        memo: &dyn FileMemo,
        (kept, reads): (&dyn Fn(&DatasetSpec) -> Option<(Dataset, bool)>, &[Reading]),
        mut bf16: Option<bool>,
    ) -> anyhow::Result<Self> {
        let mut scanned: HashMap<String, Arc<Dataset>> = HashMap::new();
        let mut inputs = Vec::new();
        for (at, cell) in pipeline.cells.iter().enumerate() {
            let spec = &cell.spec.dataset;
            let key = serde_json::to_string(spec)?;
            let read = reads.get(at);
            let dataset = match (read.and_then(|read| read.data.as_ref()), scanned.get(&key)) {
                (Some(dataset), _) | (_, Some(dataset)) => dataset.clone(),
                _ => {
                    let dataset = open_dataset(cache, spec).or_else(|error| {
                        let (dataset, had_bf16) = kept(spec).ok_or(error)?;
                        bf16 = Some(had_bf16);
                        anyhow::Ok(dataset)
                    });
                    let dataset = Arc::new(dataset?);
                    scanned.insert(key, dataset.clone());
                    dataset
                }
            };
            let past = read.filter(|read| read.is_past).map(|read| &read.weights[..]);
            inputs.push(CellInput { name: &cell.name, spec: &cell.spec, dataset, past });
        }
        let memo = Remembered { memo, asked: Mutex::default() };
        let built = build(&inputs, &memo, bf16.unwrap_or_else(has_bf16));
        // Notes tell what the data lack, which may be the cause.
        let (graph, cells) = built.map_err(|error| {
            let notes = distinct_notes(inputs.iter().map(|input| &*input.dataset));
            let decided = decided_of(inputs.iter().map(|input| &*input.dataset)).into_iter();
            let lines = decided.flat_map(|(name, of)| {
                std::iter::once(format!("data {name}")).chain(of.iter().map(decided_line)).collect::<Vec<_>>()
            });
            let (notes, decided) = (notes.into_iter().map(str::to_owned).collect(), lines.collect());
            OfData { error, notes, decided }
        })?;
        let weights = std::mem::take(&mut *locked(&memo.asked));
        Ok(Self { pipeline, graph, cells, untold: cache.untold_files(), weights })
    }

    /// The units of a cell by its name.
    pub(super) fn cell(&self, name: &str) -> anyhow::Result<&CellUnits> {
        let names: Vec<&str> = self.cells.iter().map(|cell| cell.name.as_str()).collect();
        let found = self.cells.iter().find(|cell| cell.name == name);
        found.with_context(|| format!("no variant `{name}`; there are: {}", names.join("; ")))
    }

    /// What has finished, by unit.
    pub(super) fn finished(&self, cache: &Cache) -> Outcomes {
        finished(&self.graph, cache, &self.targets())
    }

    /// What it reads, and what is never written over: pipeline files, data, weights, the cache.
    pub(super) fn reads(&self, cache: &Cache) -> Reads {
        let mut reads = Reads::default();
        reads.add_folder(cache.folder(), "the cache");
        self.pipeline.files.iter().for_each(|file| reads.add_file(file, "a pipeline file"));
        let mut known = HashSet::new();
        for cell in &self.cells {
            if !known.insert(Arc::as_ptr(&cell.dataset)) {
                continue;
            }
            for item in cell.dataset.train.iter().chain(&cell.dataset.val) {
                reads.add_file_and_folder(&item.image.path, "an image of the data set", "a folder of its images");
                if let Some(Mask::File(file) | Mask::Translated { file, reading: _ }) = &item.mask {
                    reads.add_file_and_folder(&file.path, "a mask of the data set", "a folder of its masks");
                }
            }
        }
        let mut named = HashSet::new();
        for (field, path) in self.pipeline.cells.iter().flat_map(|cell| named_paths(&cell.spec)) {
            if !named.insert(path.clone()) {
                continue;
            }
            let (paths, what) = match field {
                "dataset.root" => (parts_of_dataset(&path), "a part of the data set".to_owned()),
                _ => (vec![path], format!("what `{field}` names")),
            };
            for path in paths {
                if path.is_dir() { reads.add_folder(&path, &what) } else { reads.add_file(&path, &what) }
            }
        }
        reads
    }

    /// The notes on the data sets, each once.
    pub(super) fn notes(&self) -> Vec<&str> {
        distinct_notes(self.cells.iter().map(|cell| &*cell.dataset))
    }

    pub(super) fn print_notes(&self, cli: &Cli) {
        if !cli.quiet {
            self.notes().iter().for_each(|note| eprintln!("note: {note}"));
            self.hashed(MUCH_HASHED).iter().for_each(|line| eprintln!("note: {line}"));
        }
    }

    /// Lines on files that every command hashes, since nothing but their bytes tells of a change: a line for each reason
    /// of more than `over` bytes.
    pub(super) fn hashed(&self, over: u64) -> Vec<String> {
        let line = |(reason, untold): (&String, &Untold)| {
            format!("each command reads {} ({}) again: {reason}", counted(untold.files, "file"), size(untold.bytes))
        };
        self.untold.iter().filter(|(_, untold)| untold.bytes > over).map(line).collect()
    }

    /// The decisions on each data set: its name with the numbers of its images, and a line for each subject.
    pub(super) fn decided(&self) -> Vec<(String, &[(&'static str, String)])> {
        decided_of(self.cells.iter().map(|cell| &*cell.dataset))
    }

    pub(super) fn targets(&self) -> Vec<UnitIdx> {
        let mut targets: Vec<UnitIdx> = self.cells.iter().flat_map(CellUnits::targets).collect();
        targets.sort_unstable();
        targets.dedup();
        targets
    }
}

/// The files and folders in a data set's root that a data set of any kind is read from.
fn parts_of_dataset(root: &Path) -> Vec<PathBuf> {
    const PARTS: [&str; 9] = [
        "jpegimages",
        "imagesets",
        "segmentationclass",
        "segmentationclassaug",
        "segmentationobject",
        "annotations",
        "images",
        "masks",
        "labels.csv",
    ];
    let entries = std::fs::read_dir(root).into_iter().flatten().flatten();
    let is_part =
        |entry: &std::fs::DirEntry| PARTS.contains(&entry.file_name().to_string_lossy().to_lowercase().as_str());
    entries.filter(is_part).map(|entry| entry.path()).collect()
}

/// Files whose digests were asked for.
struct Remembered<'a> {
    memo: &'a dyn FileMemo,
    asked: Mutex<Vec<(PathBuf, BlobDigest)>>,
}

impl FileMemo for Remembered<'_> {
    fn digest(&self, path: &Path) -> anyhow::Result<BlobDigest> {
        let digest = self.memo.digest(path)?;
        let mut asked = locked(&self.asked);
        if !asked.iter().any(|(known, _)| known == path) {
            asked.push((path.to_owned(), digest));
        }
        Ok(digest)
    }

    fn fact(&self, name: &str, of: &BlobDigest) -> Option<Vec<u8>> {
        self.memo.fact(name, of)
    }

    fn remember(&self, name: &str, of: &BlobDigest, fact: &[u8]) {
        self.memo.remember(name, of, fact);
    }
}

fn distinct_notes<'a>(datasets: impl Iterator<Item = &'a Dataset>) -> Vec<&'a str> {
    let mut seen = BTreeSet::new();
    datasets.flat_map(|data| &data.notes).map(String::as_str).filter(|note| seen.insert(*note)).collect()
}

/// Prints the decisions on a data set: see [`Experiment::decided`].
pub(super) fn print_decided(lines: &[(&'static str, String)]) {
    lines.iter().for_each(|line| println!("{}", decided_line(line)));
}

fn decided_line((subject, decision): &(&'static str, String)) -> String {
    format!("  {subject:<12}{decision}")
}

/// The decisions on each of some data sets, once: its name with the numbers of its images, and what was decided.
fn decided_of<'a>(datasets: impl Iterator<Item = &'a Dataset>) -> Vec<(String, &'a [(&'static str, String)])> {
    let mut decided: Vec<(String, &[(&'static str, String)])> = Vec::new();
    for data in datasets {
        let name = format!("{}: {} training and {} validation images", data.name, data.train.len(), data.val.len());
        if !decided.iter().any(|(known, lines)| *known == name && *lines == data.decided) {
            decided.push((name, &data.decided));
        }
    }
    decided
}

fn open_dataset(cache: &Cache, spec: &DatasetSpec) -> anyhow::Result<Dataset> {
    let datasets = cache.folder().join("datasets");
    let made;
    let (name, root) = match spec.kind {
        DatasetKind::Voc | DatasetKind::Coco | DatasetKind::Folder => {
            let root = spec.root.as_deref().context("`dataset.root` is not set")?;
            (root.file_name().map_or_else(|| "data".into(), |name| name.to_string_lossy()), root)
        }
        DatasetKind::Emoji => {
            let emoji = &spec.emoji;
            let mut labels = labels_of(&VOC_CLASSES, &emoji.classes)?;
            if labels.is_empty() {
                labels = (1..=20).collect();
            }
            let (n_train, n_val, side, rng_seed) = (emoji.n_train, emoji.n_val, emoji.side, emoji.rng_seed);
            let options = EmojiOptions { n_train, n_val, side, labels, rng_seed };
            made = materialise(&datasets, &options)?;
            ("emoji".into(), made.as_path())
        }
    };
    let options = ScanOptions {
        name: &name,
        root,
        masks: spec.masks.as_deref(),
        labels: spec.labels,
        orientation: spec.orientation,
        mask_values: &spec.mask_values,
        train: &spec.train,
        val: &spec.val,
        max_train: spec.max_train,
        max_val: spec.max_val,
        exclude: &spec.exclude,
    };
    check_kind(spec.kind, root)?;
    Ok(match spec.kind {
        DatasetKind::Voc | DatasetKind::Emoji => voc::scan(&options, cache)?,
        DatasetKind::Coco => coco::scan(&options, cache, &datasets)?,
        DatasetKind::Folder => folder::scan(&options, cache)?,
    })
}

/// # Errors
/// The folder is laid out as a data set of another kind, and not as one of this.
fn check_kind(kind: DatasetKind, root: &Path) -> anyhow::Result<()> {
    let has_instances = || {
        let names = std::fs::read_dir(root.join("annotations")).into_iter().flatten().flatten();
        names.into_iter().any(|entry| entry.file_name().to_string_lossy().starts_with("instances_"))
    };
    let is = |kind: &DatasetKind| match kind {
        DatasetKind::Emoji => false,
        DatasetKind::Voc => root.join("JPEGImages").is_dir(),
        DatasetKind::Coco => has_instances(),
        DatasetKind::Folder => root.join("labels.csv").is_file(),
    };
    let others = [(DatasetKind::Voc, "voc"), (DatasetKind::Coco, "coco"), (DatasetKind::Folder, "folder")];
    let others: Vec<&str> = others.iter().filter(|(other, _)| is(other)).map(|(_, name)| *name).collect();
    match others[..] {
        [other] if kind != DatasetKind::Emoji && !is(&kind) => {
            let problem = format!("`{}` is laid out as a data set of kind \"{other}\"", root.display());
            Err(super::Hinted::error(problem, format!("write `dataset.kind = \"{other}\"`")))
        }
        _ => Ok(()),
    }
}

pub(super) fn dispatch(cli: &Cli, command: &Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Run(args) => return run_pipeline(cli, args),
        Command::Plan { pipeline } => show_plan(cli, pipeline)?,
        Command::Why { pipeline, what, other: None, runs } if runs.is_empty() => {
            show_why(cli, pipeline, what.as_deref())?;
        }
        Command::Why { pipeline, what, other, runs } => {
            let Some(what) = what else {
                return Err(Hinted::error("--run compares a variant", "name the variant behind the file"));
            };
            compare_two(cli, pipeline, [what, other.as_ref().unwrap_or(what)], runs)?;
        }
        Command::Lineage { pipeline, image, variant } => show_lineage(cli, pipeline, image, variant.as_deref())?,
        Command::Results { pipeline, csv, latex, metrics, against } => {
            let cache = read_cache(cli)?;
            let experiment = Experiment::of_records(cli, &cache, pipeline)?;
            let Results { table, lost, .. } = results(&cache, &experiment, &experiment.finished(&cache))?;
            let repeats = repeats_of(&experiment, &table, against.as_deref())?;
            let text = match (csv, latex, repeats.is_empty()) {
                (true, _, true) => table.csv(),
                (true, _, false) => repeats::csv(&repeats),
                (_, true, _) => {
                    let (file, set, against) =
                        (pipeline.file.display().to_string(), pipeline.sets.clone(), against.clone());
                    tabular(&table, &repeats).latex(&TableSource { file, set, against })
                }
                _ if *metrics => format!("{}\n{}", shown(cli, &table, &repeats)?, table.metrics_text()),
                _ => shown(cli, &table, &repeats)?,
            };
            print!("{text}");
            if let Some(lost) = lost {
                eprintln!("note: {lost}; s2c-pipe run {} makes them again", pipeline.written());
            }
        }
        Command::Graph { pipeline, format } => {
            let cache = read_cache(cli)?;
            let experiment = Experiment::open(&cache, pipeline)?;
            let drawing = Drawing::new(&experiment.graph, &experiment.cells);
            let text = match format {
                GraphFormat::Dot => drawing.dot(),
                GraphFormat::Mermaid => drawing.mermaid(),
            };
            print!("{text}");
        }
        Command::Tensorboard(args) => tensorboard::tensorboard(cli, args)?,
        Command::Export(args) => export(cli, args)?,
        Command::VerifyResults { files } => return verify_results(cli, files),
        Command::Predict(args) => predict(cli, args)?,
        Command::Segment(args) => segment(cli, args)?,
        Command::Doctor { file, sets } => doctor(cli, file.as_deref(), sets)?,
        _ => bail!("not a command on a pipeline"),
    }
    Ok(ExitCode::SUCCESS)
}

/// The versions that the record of a unit names.
pub(super) fn made_by() -> String {
    format!("s2c-pipe {}, libtorch {}", env!("CARGO_PKG_VERSION"), env!("S2C_LIBTORCH_VERSION"))
}

/// How many units of stages that use one core each run at once, unless somebody says so.
pub(super) fn n_cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Seconds since 1970.
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn run_pipeline(cli: &Cli, args: &RunArgs) -> anyhow::Result<ExitCode> {
    let RunArgs {
        pipeline,
        device: device_name,
        jobs,
        keep_going,
        restore,
        retries,
        time_limit,
        audit,
        audit_seed,
        out,
        force,
    } = args;
    let devices = parse_devices(device_name)?;
    let cache = open_cache(cli)?;
    let experiment = Experiment::open(&cache, pipeline)?;
    experiment.print_notes(cli);
    let warnings = Mutex::new(Warnings::default());
    locked(&warnings).before(&experiment).iter().for_each(|warning| eprintln!("{}", printable(warning, true)));
    weights::check(cli, &cache, &experiment)?;
    let place = OutFolder::of(out, &experiment.pipeline, &pipeline.file);
    place.note().into_iter().for_each(|note| eprintln!("note: {note}"));
    let asked = Asked { option: "--out DIR", force: *force };
    let folder = ResultsFolder::look(&place.path, asked, experiment.reads(&cache))?;
    folder.check(result_tables(&experiment).into_iter().map(|name| (name, "")))?;
    // Of what only accompanies them, what cannot be written is told at the end.
    folder.check_never(report::overlay_names(&experiment).iter().map(String::as_str))?;
    let claimed = place.claim(&folder);
    let interrupted = Arc::new(AtomicBool::new(false));
    stop_on_signals(interrupted.clone()).context("listening for signals")?;
    let jobs = jobs.map_or_else(n_cores, usize::from);
    if let Err(error) = Kept::new(&cache, &pipeline.file).keep(&experiment, has_bf16()) {
        eprintln!("note: what this run reads could not be kept, so its table needs the data and the weights: {error}");
    }
    let recorded = Recorded::begin(&cache, &experiment, pipeline, now());
    let n_at_once = [devices.len(), jobs];
    let live = Arc::new(Live::begin(
        cache.folder().to_owned(),
        status_of(pipeline, recorded.run()),
        n_at_once,
        Box::new(is_parallel()),
    ));
    let progress = Arc::new(Progress::new(cli.quiet, cache.folder().join(LOGS), Some(live.clone())));
    let inside = progress.clone();
    let context = StageContext {
        device: devices[0],
        progress: Arc::new(move |step| inside.step(step)),
        scratch: cache.folder().join("scratch"),
        interrupted: interrupted.clone(),
    };
    let audit_context = context.clone();
    let made_by = made_by();
    let options = RunOptions {
        targets: &experiment.targets(),
        restore: *restore,
        keep_going: *keep_going,
        retries: *retries,
        interrupted,
        clock: &now,
        made_by: &made_by,
        observer: &|event| {
            // Before it is told of, so that it is told with the time it takes.
            if matches!(event, Event::Planned { to_run, .. } if to_run > 0) {
                live.expect(forecast(&experiment, &cache, n_at_once));
            }
            progress.event(event);
            if matches!(event, Event::UnitFinished { stage, .. } if stage.ends_with("_epoch")) {
                let finished = experiment.finished(&cache);
                let found = locked(&warnings).of_trainings(&cache, &experiment, &finished);
                found.iter().for_each(|warning| progress.line(&printable(warning, true)));
                // For those who watch; what cannot be written is told at the end.
                let _ = tensorboard::write((&cache, &finished), &experiment, &folder, tensorboard::FOLDER);
            }
        },
    };
    let limit = time_limit.map(|seconds| Duration::from_secs(seconds.into()));
    let mut executor = LocalExecutor::new(context, jobs).on(devices.clone()).with_limit(limit);
    let report = run(&experiment.graph, &cache, &registry(), &mut executor, &options);
    drop(executor); // and what it has loaded
    let finished = experiment.finished(&cache);
    let found = results(&cache, &experiment, &finished);
    recorded.end(report.as_ref().ok(), found.as_ref().ok().map(|found| &found.table), now());
    live.end(how(report.as_ref().ok()));
    let (report, Results { mut table, lost: lost_scores, sick }) = (report?, found?);
    locked(&warnings).lines(sick).iter().for_each(|warning| eprintln!("{}", printable(warning, true)));
    if !cli.quiet {
        let repaired = match report.repaired.len() {
            0 => String::new(),
            n => format!(", {n} lost results made again"),
        };
        eprintln!("{} units executed, {} reused{repaired}", report.n_executed(), report.reused);
    }
    if report.interrupted {
        eprintln!("interrupted; the same command goes on from here");
        return Ok(ExitCode::from(INTERRUPTED));
    }
    let mut code = ExitCode::SUCCESS;
    if let Some(share) = audit.filter(|_| report.failed.is_empty()) {
        let audited = Audited { cli, cache: &cache, experiment: &experiment, made_by: &made_by, now: &now };
        let chosen =
            audit::Chosen { among: None, share, rng_seed: audit_seed.unwrap_or_else(now), devices, jobs, limit };
        code = audit::audit_run(&audited, chosen, audit_context)?;
        table = results(&cache, &experiment, &finished)?.table; // marks what is built on what drifted
    }
    let repeats = repeats_of(&experiment, &table, None)?;
    let mut n_pictures = 0;
    // What cannot be written does not keep the table from being shown.
    let (mut lost, mut lost_beside) = (Vec::new(), Vec::new());
    if report.failed.is_empty() {
        lost = report::write_tables(&table, &repeats, &folder);
        lost_beside.extend(claimed.err());
        lost_beside.extend(tensorboard::write((&cache, &finished), &experiment, &folder, tensorboard::FOLDER).err());
        match report::write_overlays((&cache, &finished), &experiment, &folder) {
            Ok(n) => n_pictures = n,
            Err(error) => lost_beside.push(error),
        }
        if !cli.quiet {
            empty_se_maps(&experiment, &finished).into_iter().for_each(|note| eprintln!("note: {note}"));
        }
    }
    super::end_with_the_reader(); // all is written
    // The terminal may be gone, after a hang-up that was ignored.
    let _ = std::io::Write::write_all(&mut std::io::stdout(), shown(cli, &table, &repeats)?.as_bytes());
    for error in lost.iter().chain(&lost_beside) {
        eprintln!("warning: {}", printable(&format!("{error:#}"), true));
    }
    if !report.blocked.is_empty() {
        let named = report.blocked.iter().take(N_BLOCKED).cloned().collect::<Vec<_>>().join(", ");
        let more = report.blocked.len().saturating_sub(N_BLOCKED);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        eprintln!("{} units wait for what failed: {named}{more}", report.blocked.len());
    }
    if let Some((label, error)) = report.failed.first() {
        let message = format!("{} failed, the first: {label}", counted(report.failed.len(), "unit"));
        return Err(hint_of(error).map_or_else(|| anyhow!(message.clone()), |hint| Hinted::error(&message, hint)));
    }
    if let Some(lost_scores) = lost_scores {
        let hint = format!("the cache `{}` changes under this run, or its disk is failing", cache.folder().display());
        return Err(Hinted::error(lost_scores, hint));
    }
    if !lost.is_empty() {
        let message = format!("result files could not be written to `{}`", folder.path().display());
        let hint = format!("nothing is lost: s2c-pipe results {} --csv, or --json", pipeline.written());
        return Err(Hinted::error(message, hint));
    }
    if !cli.quiet && lost_beside.is_empty() {
        eprintln!("{n_pictures} overlays, results.json, results.csv and tensorboard/ in {}", folder.path().display());
    }
    Ok(code)
}

/// Whether units of a stage run beside one another, one core each.
fn is_parallel() -> impl Fn(&str) -> bool + Send {
    let registry = registry();
    move |kind| registry.get(kind).is_ok_and(|entry| entry.parallel)
}

/// What a run takes by what is recorded. What cannot be read tells nothing.
fn forecast(experiment: &Experiment, cache: &Cache, n_at_once: [usize; 2]) -> Forecast {
    let is_parallel = is_parallel();
    let plan = plan(&experiment.graph, cache, &experiment.targets());
    plan.map(|plan| Forecast::new(&plan, &|kind| n_at_once[usize::from(is_parallel(kind))])).unwrap_or_default()
}

/// Of a run that begins.
fn status_of(args: &PipelineArgs, run: Option<u64>) -> Status {
    let file = std::path::absolute(&args.file).unwrap_or_else(|_| args.file.clone());
    Status {
        run,
        file: file.to_string_lossy().into_owned(),
        sets: args.sets.clone(),
        who: who(),
        pid: std::process::id(),
        host: host(),
        began: now(),
        updated: now(),
        done: 0,
        of: 0,
        failed: 0,
        running: Vec::new(),
        seconds_left: None,
        unknown: Vec::new(),
        ended: None,
    }
}

/// The tables that a run writes.
fn result_tables(experiment: &Experiment) -> Vec<&'static str> {
    let has_axis = |cell: &Cell| cell.axes.iter().any(|(axis, _)| axis == repeats::AXIS);
    report::table_names(experiment.pipeline.cells.iter().any(has_axis))
}

/// A line on the training images whose SE map has no segment, where there are some. None of them is read: the map of no
/// segment in an image of some size is always the same file.
fn empty_se_maps(experiment: &Experiment, finished: &Outcomes) -> Option<String> {
    let mut no_segment: HashMap<(usize, usize), BlobDigest> = HashMap::new();
    let (mut empty, mut all) = (BTreeSet::new(), BTreeSet::new());
    for cell in &experiment.cells {
        for (unit, item) in cell.se_maps.iter().zip(&cell.dataset.train) {
            if !all.insert(*unit) {
                continue;
            }
            let Some(output) = finished.output(*unit, "se_map") else { continue };
            let (height, width) = (item.height, item.width);
            // Zeros are packed a thousandfold; most maps need no closer look.
            if output.size > 1000 + (height * width / 100) as u64 {
                continue;
            }
            let none = no_segment
                .entry((height, width))
                .or_insert_with(|| BlobDigest::of(&encode_se_map(&SeMap::filled(height, width, 0))));
            if output.digest == *none {
                empty.insert(item.id.as_str());
            }
        }
    }
    let named = empty.iter().take(N_BLOCKED).copied().collect::<Vec<_>>().join(", ");
    let more = if empty.len() > N_BLOCKED { ", .." } else { "" };
    let count = (empty.len(), all.len());
    (count.0 > 0).then(|| {
        format!(
            "the SE maps of {} of {} training images have no segment, so L_SSC learns nothing from them: {named}{more}",
            count.0, count.1
        )
    })
}
