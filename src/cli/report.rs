//! What a run leaves beside the cache: result files and overlay pictures.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::Context;

use super::experiment::Experiment;
use super::results_folder::ResultsFolder;
use crate::cache::{BlobStore, Cache};
use crate::data::coco::paint_mask;
use crate::data::image::{decode_label_map, decode_rgb, decode_se_map, encode_rgb, voc_palette};
use crate::data::mask_file::decode_mask;
use crate::data::{FileRef, Item, Mask, read_as};
use crate::digest::BlobDigest;
use crate::pipeline::build::OverlayUnits;
use crate::pipeline::graph::UnitIdx;
use crate::pipeline::names::shortened;
use crate::pipeline::outcomes::Outcomes;
use crate::pipeline::repeats::{self, Repeats};
use crate::pipeline::results::ResultsTable;
use crate::stage::cam_file::read_cam;
use crate::vision::Rgb;
use crate::vision::overlay::{cam_over, column, labels_over, row, se_map_over};

/// The files of [`write_tables`].
pub(super) fn table_names(has_repeats: bool) -> Vec<&'static str> {
    let mut names = vec!["results.json", "results.csv", "confusion.csv"];
    names.extend(has_repeats.then_some("repeats.csv"));
    names
}

/// Writes `results.json`, `results.csv`, of repeats `repeats.csv`, and `confusion.csv`; what could not be written.
pub(super) fn write_tables(table: &ResultsTable, repeats: &[Repeats], folder: &ResultsFolder) -> Vec<anyhow::Error> {
    let write = |name: &str| match name {
        "results.json" => folder.put(name, "", table.json()?.as_bytes()),
        "results.csv" => folder.put(name, "", table.csv().as_bytes()),
        "confusion.csv" => folder.put(name, "", table.confusion_csv().as_bytes()),
        _ => folder.put(name, "", repeats::csv(repeats).as_bytes()),
    };
    table_names(!repeats.is_empty()).into_iter().filter_map(|name| write(name).err()).collect()
}

/// What the pictures show, and their names.
const DRAWN: &str = "overlays/.parts";

/// The files of [`write_overlays`]: `overlays/ITEM.png`. Different images of one id have a number in their names.
pub(super) fn overlay_names(experiment: &Experiment) -> Vec<String> {
    let items =
        experiment.cells.iter().flat_map(|cell| cell.overlays.iter().map(|of| &cell.dataset.train[of.item_idx]));
    let images: BTreeSet<(&str, BlobDigest)> = items.map(|item| (item.id.as_str(), item.image.digest)).collect();
    std::iter::once(DRAWN.to_owned()).chain(picture_names(images.into_iter().map(|(item, _)| item))).collect()
}

/// By image, in the order of their ids.
fn picture_names<'a>(items: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut last = ("", 0);
    let name = |item: &'a str| {
        last = if last.0 == item { (item, last.1 + 1) } else { (item, 1) };
        let item = shortened(item, MOST_NAME);
        if last.1 == 1 { format!("overlays/{item}.png") } else { format!("overlays/{item}-{}.png", last.1) }
    };
    items.map(name).collect()
}

/// Writes the pictures; how many there are. Where one cannot be made, the others are, and the error is of the first.
///
/// A picture has a row for each variant that shows its image, in the order of the table: image, CAM, SE map,
/// pseudo-label, prediction, truth, as far as any row has them.
pub(super) fn write_overlays(
    (cache, finished): (&Cache, &Outcomes),
    experiment: &Experiment,
    folder: &ResultsFolder,
) -> anyhow::Result<usize> {
    let rows: Vec<Row<'_>> = experiment
        .cells
        .iter()
        .flat_map(|cell| {
            cell.overlays.iter().map(|units| Row::new(&cell.dataset.train[units.item_idx], units, finished))
        })
        .collect();
    // Pictures of the same parts, in the same order, are the same. The number is raised when equal parts give others.
    let parts = format!("3{}", rows.iter().map(Row::parts).collect::<String>());
    let stamp = BlobDigest::of(parts.as_bytes()).to_string();
    let (known, names) = drawn_before(&folder.path_of(DRAWN));
    if known == stamp && names.iter().all(|name| folder.path_of(name).exists()) {
        return Ok(names.len());
    }
    let panels = std::array::from_fn(|i| rows.iter().any(|row| row.panels()[i].is_some()));
    let mut by_image: BTreeMap<(&str, BlobDigest), Vec<Rgb>> = BTreeMap::new();
    let mut failed = None;
    for shown in &rows {
        let Item { id, image, .. } = shown.item;
        match shown.draw(cache.store(), &panels).with_context(|| format!("the overlay of `{id}`")) {
            Ok(picture) => by_image.entry((id, image.digest)).or_default().push(picture),
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    let names = picture_names(by_image.keys().map(|(item, _)| *item));
    for (rows, name) in by_image.values().zip(&names) {
        failed = failed.or(folder.put(name, "", &encode_rgb(&column(rows))).err());
    }
    if let Some(error) = failed {
        return Err(error);
    }
    folder.put(DRAWN, "", format!("{stamp}\n{}", names.join("\n")).as_bytes())?;
    Ok(names.len())
}

/// What the pictures that are there show, and their names.
fn drawn_before(file: &Path) -> (String, Vec<String>) {
    let text = fs::read_to_string(file).unwrap_or_default();
    let mut lines = text.lines().map(str::to_owned);
    (lines.next().unwrap_or_default(), lines.collect())
}

const N_PANELS: usize = 6;
/// Bytes of the part of a picture's name that is the image's id.
const MOST_NAME: usize = 200;

/// One row of a picture: an image and the blobs of what a variant made of it.
struct Row<'a> {
    item: &'a Item,
    cam: Option<BlobDigest>,
    se_map: Option<BlobDigest>,
    pseudo_label: Option<BlobDigest>,
    prediction: Option<BlobDigest>,
}

impl<'a> Row<'a> {
    fn new(item: &'a Item, units: &OverlayUnits, finished: &Outcomes) -> Self {
        let blob = |unit: Option<UnitIdx>, name: &str| Some(finished.output(unit?, name)?.digest);
        Self {
            item,
            cam: blob(Some(units.cam), "cam"),
            se_map: blob(units.se_map, "se_map"),
            pseudo_label: blob(Some(units.pseudo_label), "label"),
            prediction: blob(units.prediction, "prediction"),
        }
    }

    /// What its panels show.
    fn panels(&self) -> [Option<BlobDigest>; N_PANELS] {
        let Self { item, cam, se_map, pseudo_label, prediction } = self;
        let mask = item.mask.as_ref().map(Mask::digest);
        [Some(item.image.digest), *cam, *se_map, *pseudo_label, *prediction, mask]
    }

    /// Two rows with equal parts look the same.
    fn parts(&self) -> String {
        let digests = self.panels().map(|digest| digest.map_or_else(|| "-".to_owned(), |digest| digest.to_string()));
        format!("\n{} {}", self.item.id, digests.join(" "))
    }

    /// Those of `panels` that are shown; one stays empty where its part is not in the store.
    fn draw(&self, store: &BlobStore, panels: &[bool; N_PANELS]) -> anyhow::Result<Rgb> {
        let bytes = |digest: Option<BlobDigest>| digest.and_then(|digest| store.read(&digest).ok());
        let source = |file: &FileRef| {
            let bytes =
                read_as(&file.path, &file.digest).with_context(|| format!("reading `{}`", file.path.display()))?;
            bytes.with_context(|| format!("`{}` has changed since the run", file.path.display()))
        };
        let image = decode_rgb(&source(&self.item.image)?)?;
        let palette = voc_palette();
        let labels = |png: Option<Vec<u8>>| {
            let picture = |png: Vec<u8>| anyhow::Ok(labels_over(&image, &decode_label_map(&png)?, &palette));
            png.map(picture).transpose()
        };
        let cam = bytes(self.cam).map(|cam| anyhow::Ok(cam_over(&image, &read_cam(&cam)?))).transpose()?;
        let se_map = bytes(self.se_map);
        let se_map = se_map.map(|png| anyhow::Ok(se_map_over(&image, &decode_se_map(&png)?))).transpose()?;
        let (pseudo_label, prediction) = (labels(bytes(self.pseudo_label))?, labels(bytes(self.prediction))?);
        let truth = match &self.item.mask {
            None => None,
            Some(Mask::File(png)) => Some(decode_label_map(&source(png)?)?),
            Some(Mask::Translated { file, reading }) => Some(decode_mask(&source(file)?, reading)?),
            Some(Mask::Outlines { bytes, digest: _ }) => Some(paint_mask(bytes)?),
        };
        let truth = truth.map(|truth| labels_over(&image, &truth, &palette));
        let all = [Some(image.clone()), cam, se_map, pseudo_label, prediction, truth];
        let shown = all.into_iter().zip(panels).filter_map(|(panel, is_shown)| is_shown.then_some(panel));
        Ok(row(&shown.collect::<Vec<_>>()))
    }
}
