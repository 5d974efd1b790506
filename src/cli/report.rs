//! What a run leaves beside the cache: result files and overlay pictures.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, ensure};

use super::experiment::Experiment;
use crate::cache::Cache;
use crate::data::image::{decode_label_map, decode_rgb, decode_se_map, encode_rgb, voc_palette};
use crate::data::{FileRef, Item};
use crate::digest::BlobDigest;
use crate::pipeline::build::OverlayUnits;
use crate::pipeline::graph::UnitIdx;
use crate::pipeline::results::ResultsTable;
use crate::stage::cam_file::read_cam;
use crate::vision::Rgb;
use crate::vision::overlay::{cam_over, column, labels_over, row, se_map_over};

/// Writes `results.json`, `results.csv` and `overlays/ITEM.png`; the number of pictures.
///
/// A picture has a row for each variant that shows its image, in the order of the table: image, CAM, SE map,
/// pseudo-label, prediction, truth. Different images of one id have a number in their names.
pub(super) fn write(
    cache: &Cache,
    experiment: &Experiment,
    table: &ResultsTable,
    folder: &Path,
) -> anyhow::Result<usize> {
    let pictures = folder.join("overlays");
    fs::create_dir_all(&pictures).with_context(|| format!("making `{}`", pictures.display()))?;
    put(&folder.join("results.json"), table.json()?.as_bytes())?;
    put(&folder.join("results.csv"), table.csv().as_bytes())?;

    let finished = experiment.finished(cache)?;
    // Pictures of the same parts, in the same order, are the same.
    let digest = |unit: Option<UnitIdx>, name: &str| {
        let found = unit.and_then(|unit| Some(finished[unit].as_ref()?.output(name)?.digest.to_string()));
        found.unwrap_or_default()
    };
    let mut parts = String::from("1"); // raised when equal parts give other pictures
    for cell in &experiment.cells {
        for units in &cell.overlays {
            let item = &cell.dataset.train[units.item_idx];
            let mask = item.mask.as_ref().map(|mask| mask.digest.to_string()).unwrap_or_default();
            let outputs = [
                digest(Some(units.cam), "cam"),
                digest(units.se_map, "se_map"),
                digest(Some(units.pseudo_label), "label"),
                digest(units.prediction, "prediction"),
            ];
            parts.push_str(&format!("\n{} {} {mask} {}", item.id, item.image.digest, outputs.join(" ")));
        }
    }
    let stamp = BlobDigest::of(parts.as_bytes()).to_string();
    let drawn = folder.join("overlays/.parts");
    let (known, names) = drawn_before(&drawn);
    if known == stamp && names.iter().all(|name| pictures.join(name).exists()) {
        return Ok(names.len());
    }
    let bytes = |unit: Option<UnitIdx>, name: &str| {
        let manifest = finished[unit?].as_ref()?;
        cache.store().read(&manifest.output(name)?.digest).ok()
    };
    let mut rows: BTreeMap<(&str, BlobDigest), Vec<Rgb>> = BTreeMap::new();
    for cell in &experiment.cells {
        for units in &cell.overlays {
            let item = &cell.dataset.train[units.item_idx];
            let line = overlay(item, units, &bytes).with_context(|| format!("the overlay of `{}`", item.id))?;
            rows.entry((&item.id, item.image.digest)).or_default().push(line);
        }
    }
    let mut last = ("", 0);
    let mut names = Vec::new();
    for ((item, _), rows) in &rows {
        last = if last.0 == *item { (*item, last.1 + 1) } else { (*item, 1) };
        let name = if last.1 == 1 { format!("{item}.png") } else { format!("{item}-{}.png", last.1) };
        put(&pictures.join(&name), &encode_rgb(&column(rows)))?;
        names.push(name);
    }
    put(&drawn, format!("{stamp}\n{}", names.join("\n")).as_bytes())?;
    Ok(rows.len())
}

/// What the pictures that are there show, and their names.
fn drawn_before(file: &Path) -> (String, Vec<String>) {
    let text = fs::read_to_string(file).unwrap_or_default();
    let mut lines = text.lines().map(str::to_owned);
    (lines.next().unwrap_or_default(), lines.collect())
}

fn overlay(
    item: &Item,
    units: &OverlayUnits,
    bytes: &dyn Fn(Option<UnitIdx>, &str) -> Option<Vec<u8>>,
) -> anyhow::Result<Rgb> {
    let source = |file: &FileRef| {
        let bytes = fs::read(&file.path).with_context(|| format!("reading `{}`", file.path.display()))?;
        ensure!(BlobDigest::of(&bytes) == file.digest, "`{}` has changed since the run", file.path.display());
        Ok(bytes)
    };
    let image = decode_rgb(&source(&item.image)?)?;
    let palette = voc_palette();
    let labels = |png: Option<Vec<u8>>| {
        let picture = |png: Vec<u8>| anyhow::Ok(labels_over(&image, &decode_label_map(&png)?, &palette));
        png.map(picture).transpose()
    };
    let cam = bytes(Some(units.cam), "cam").map(|cam| anyhow::Ok(cam_over(&image, &read_cam(&cam)?))).transpose()?;
    let se_map = bytes(units.se_map, "se_map");
    let se_map = se_map.map(|png| anyhow::Ok(se_map_over(&image, &decode_se_map(&png)?))).transpose()?;
    let pseudo_label = labels(bytes(Some(units.pseudo_label), "label"))?;
    let prediction = labels(bytes(units.prediction, "prediction"))?;
    let truth = labels(item.mask.as_ref().map(source).transpose()?)?;
    Ok(row(&[Some(image.clone()), cam, se_map, pseudo_label, prediction, truth]))
}

/// Writes a file whole or not at all.
pub(super) fn put(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let what = || format!("writing `{}`", path.display());
    let mut file = tempfile::NamedTempFile::new_in(path.parent().unwrap_or(Path::new("."))).with_context(what)?;
    std::io::Write::write_all(&mut file, bytes).with_context(what)?;
    // Temporary files are private; results are not.
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    file.as_file().set_permissions(open).with_context(what)?;
    file.persist(path).with_context(what)?;
    Ok(())
}
