//! What a run leaves in the history.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

use super::args::PipelineArgs;
use super::experiment::Experiment;
use super::who;
use crate::cache::Cache;
use crate::cache::history::{Began, Ended, History, How};
use crate::pipeline::past::{METRICS, data_digest, normalised, versions};
use crate::pipeline::repeats::mious;
use crate::pipeline::results::ResultsTable;
use crate::pipeline::run::RunReport;

/// A run on its way. What cannot be written is told, and is no reason to stop.
pub(super) struct Recorded {
    history: History,
    run: Option<u64>,
}

impl Recorded {
    pub(super) fn begin(cache: &Cache, experiment: &Experiment, args: &PipelineArgs, now: u64) -> Self {
        let history = History::new(cache.folder());
        let file = std::path::absolute(&args.file).unwrap_or_else(|_| args.file.clone());
        let begin = || {
            let kept = normalised(&experiment.pipeline, file.parent().unwrap_or(Path::new("")))?;
            // Variants mostly share one data set.
            let mut digests = HashMap::new();
            let data = experiment.cells.iter().map(|cell| {
                let digest = digests.entry(Arc::as_ptr(&cell.dataset)).or_insert_with(|| data_digest(&cell.dataset));
                (cell.name.clone(), *digest)
            });
            anyhow::Ok(history.begin(Began {
                began: now,
                file: file.to_string_lossy().into_owned(),
                sets: args.sets.clone(),
                digest: history.keep_file(&kept)?,
                data: data.collect(),
                weights: experiment.weights.clone(),
                versions: versions(&experiment.graph),
                who: who(),
            })?)
        };
        let run = told(begin());
        Self { history, run }
    }

    /// Its number, if it is in the history.
    pub(super) fn run(&self) -> Option<u64> {
        self.run
    }

    /// `table`: what is there at the end. `report`: `None` if the cache itself failed.
    pub(super) fn end(&self, report: Option<&RunReport>, table: Option<&ResultsTable>, now: u64) {
        let Some(run) = self.run else { return };
        let how = how(report);
        let metrics = table.map(|table| &table.rows[..]).unwrap_or_default().iter().map(|row| {
            let values =
                METRICS.iter().zip(mious(row)).filter_map(|((name, _), value)| Some(((*name).to_owned(), value?)));
            (row.cell.clone(), values.collect::<BTreeMap<_, _>>())
        });
        let remarks = table.map(|table| &table.rows[..]).unwrap_or_default().iter();
        let remarks = remarks.map(|row| (row.cell.clone(), row.remarks())).filter(|(_, remarks)| !remarks.is_empty());
        told(self.history.end(
            run,
            Ended {
                ended: now,
                how,
                executed: report.map_or(0, RunReport::n_executed),
                reused: report.map_or(0, |report| report.reused),
                failed: report.map_or(0, |report| report.failed.len()),
                metrics: metrics.collect(),
                remarks: remarks.collect(),
            },
        ));
    }
}

/// How a run ended. `report`: `None` if the cache itself failed.
pub(super) fn how(report: Option<&RunReport>) -> How {
    match report {
        Some(report) if report.interrupted => How::Interrupted,
        Some(report) if report.failed.is_empty() => How::Finished,
        _ => How::Failed,
    }
}

fn told<T>(written: Result<T, impl Into<anyhow::Error>>) -> Option<T> {
    let tell = |error: anyhow::Error| eprintln!("note: this run is not in the history: {error:#}");
    written.map_err(|error| tell(error.into())).ok()
}
