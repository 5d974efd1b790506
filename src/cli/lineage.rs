//! Where the result of an image comes from.
#![expect(clippy::print_stdout, reason = "this is where printing happens")]

use std::path::Path;

use super::args::{Cli, PipelineArgs};
use super::experiment::Experiment;
use super::export::one_cell;
use super::{Hinted, read_cache};
use crate::data::Item;
use crate::pipeline::build::CellUnits;
use crate::pipeline::file::nearest;
use crate::pipeline::graph::UnitIdx;
use crate::pipeline::lineage::lineage;

pub(super) fn show_lineage(cli: &Cli, args: &PipelineArgs, image: &str, variant: Option<&str>) -> anyhow::Result<()> {
    let cache = read_cache(cli)?;
    let experiment = Experiment::open(&cache, args)?;
    let cell = one_cell(&experiment, variant)?;
    let (item, list, results) = results_of(cell, image)?;
    let finished = experiment.finished(&cache);
    let there = results.iter().find(|(_, unit, output)| finished.output(*unit, output).is_some());
    let Some((what, unit, output)) = there.or(results.first()).copied() else {
        let message = format!("variant `{}` predicts no validation image", cell.name);
        return Err(Hinted::error(message, "set `segmentation.enabled = true`, or name a training image"));
    };
    let root = lineage(&experiment.graph, &cache, (unit, output), &item.id);
    if cli.json {
        let named = serde_json::json!({ "image": item.id, "list": list, "variant": cell.name, "lineage": root });
        println!("{}", serde_json::to_string_pretty(&named)?);
        return Ok(());
    }
    println!("the {what} of {list} image `{}`, variant `{}`\n", item.id, cell.name);
    print!("{}", root.text());
    Ok(())
}

type Found = (&'static str, UnitIdx, &'static str);

/// An image by its id or the name of its file, its list, and what a variant makes of it, the last first.
fn results_of<'a>(cell: &'a CellUnits, image: &str) -> anyhow::Result<(&'a Item, &'static str, Vec<Found>)> {
    let stem = Path::new(image).file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    let place = |items: &[Item]| {
        let named = |name: &str| items.iter().position(|item| item.id == name);
        named(image).or_else(|| named(&stem))
    };
    let (train, val) = (&cell.dataset.train, &cell.dataset.val);
    if let Some(at) = place(val) {
        let prediction = cell.predictions.get(at).map(|unit| ("prediction", *unit, "prediction"));
        return Ok((&val[at], "validation", prediction.into_iter().collect()));
    }
    let Some(at) = place(train) else {
        let ids: Vec<&str> = val.iter().chain(train).map(|item| item.id.as_str()).collect();
        let hint = match (nearest(image, &ids), ids.first()) {
            (Some(near), _) => format!("did you mean `{near}`?"),
            (None, first) => format!("give an id as in the list, such as `{}`", first.unwrap_or(&"")),
        };
        return Err(Hinted::error(format!("no image `{image}` in `{}`", cell.dataset.name), hint));
    };
    let overlay = cell.overlays.iter().find(|overlay| overlay.item_idx == at);
    let of = |units: &[UnitIdx]| units.get(at).copied();
    let results = [
        ("prediction", overlay.and_then(|overlay| overlay.prediction), "prediction"),
        ("pseudo-label", of(&cell.pseudo_labels), "label"),
        ("CAM", of(&cell.cams), "cam"),
        ("SE map", of(&cell.se_maps), "se_map"),
        ("embedding", of(&cell.embeddings), "embedding"),
    ];
    let there = results.into_iter().filter_map(|(what, unit, output)| Some((what, unit?, output)));
    Ok((&train[at], "training", there.collect()))
}
