//! Results copied out of the cache, for other programs.

use anyhow::Context;
use safetensors::tensor::{Dtype, SafeTensors};

use super::args::{Cli, ExportArgs, Exported};
use super::experiment::Experiment;
use super::results_folder::{Asked, ResultsFolder, file_name};
use super::{Hinted, read_cache};
use crate::data::image::{decode_label_map, decode_se_map};
use crate::pipeline::build::CellUnits;
use crate::vision::VOC_CLASSES;

pub(super) fn export(cli: &Cli, args: &ExportArgs) -> anyhow::Result<()> {
    let cache = read_cache(cli)?;
    let experiment = Experiment::open(&cache, &args.pipeline)?;
    let cell = one_cell(&experiment, args.variant.as_deref())?;
    let train = &cell.dataset.train;
    let (units, output, items) = match args.what {
        Exported::Embeddings => (&cell.embeddings, "embedding", train),
        Exported::SeMaps => (&cell.se_maps, "se_map", train),
        Exported::Cams => (&cell.cams, "cam", train),
        Exported::PseudoLabels => (&cell.pseudo_labels, "label", train),
        Exported::Predictions => (&cell.predictions, "prediction", &cell.dataset.val),
    };
    let is_map = !matches!(args.what, Exported::Embeddings | Exported::Cams);
    let ending = match (args.npy, is_map) {
        (true, _) => "npy",
        (false, true) => "png",
        (false, false) => "safetensors",
    };
    if units.is_empty() {
        let message = format!("variant `{}` has no such results", cell.name);
        let hint = match args.what {
            Exported::Predictions => "set `segmentation.enabled = true`",
            _ => "a variant has embeddings and SE maps only where a loss needs them",
        };
        return Err(Hinted::error(message, hint));
    }
    // Label maps go where tools for PASCAL VOC look for them.
    let is_label = matches!(args.what, Exported::PseudoLabels | Exported::Predictions);
    let within = match (args.voc_server, is_label && !args.npy) {
        (true, _) => format!("{}/", server_folder(&experiment, cell, args.what)?),
        (false, true) => "SegmentationClass/".to_owned(),
        (false, false) => String::new(),
    };
    let folder =
        ResultsFolder::look(&args.to, Asked { option: "--to DIR", force: args.force }, experiment.reads(&cache))?;
    let has_labels = args.npy && args.what == Exported::Cams;
    let name = |id: &str, ending: &str| format!("{within}{}", file_name(id, ending));
    let endings = std::iter::once(format!(".{ending}")).chain(has_labels.then(|| ".labels.npy".to_owned()));
    let endings: Vec<String> = endings.collect();
    let names: Vec<String> =
        items.iter().flat_map(|item| endings.iter().map(|ending| name(&item.id, ending))).collect();
    let what =
        clap::ValueEnum::to_possible_value(&args.what).map_or_else(String::new, |what| what.get_name().to_owned());
    let file = std::fs::canonicalize(&args.pipeline.file).unwrap_or_else(|_| args.pipeline.file.clone());
    let from = format!("the {what} of `{}` of `{}`", cell.name, file.display());
    folder.check(names.iter().map(|name| (name.as_str(), from.as_str())))?;
    folder.begin(None)?;
    let finished = experiment.finished(&cache);
    let mut missing = 0;
    for (item, &unit) in items.iter().zip(units) {
        let found = finished.output(unit, output);
        let Some(bytes) = found.and_then(|output| cache.store().read_output(&output).ok()) else {
            missing += 1;
            continue;
        };
        let file = name(&item.id, &endings[0]);
        match args.npy {
            false => folder.put(&file, &from, &bytes)?,
            true => folder.put(&file, &from, &to_npy(args.what, &bytes)?)?,
        }
        if has_labels {
            folder.put(&name(&item.id, &endings[1]), &from, &npy("|u1", &[item.labels.len()], &item.labels))?;
        }
    }
    if !cli.quiet {
        eprintln!("{} files in {}", items.len() - missing, folder.path_of(&within).display());
    }
    match missing {
        0 => Ok(()),
        n => Err(Hinted::error(
            format!("{n} of {} results of variant `{}` are not in the cache", items.len(), cell.name),
            format!("s2c-pipe run {} --restore makes them", args.pipeline.written()),
        )),
    }
}

/// Where the evaluation server of PASCAL VOC looks for predictions, in an archive of `results`.
fn server_folder(experiment: &Experiment, cell: &CellUnits, what: Exported) -> anyhow::Result<String> {
    if what != Exported::Predictions || cell.dataset.classes != VOC_CLASSES {
        return Err(Hinted::error(
            "the evaluation server of PASCAL VOC takes predictions of its 20 classes",
            "give --what predictions, and a data set in VOC layout",
        ));
    }
    let spec = experiment.pipeline.cells.iter().find(|known| known.name == cell.name);
    let list = &spec.context("a variant without a spec")?.spec.dataset.val;
    Ok(format!("results/VOC2012/Segmentation/comp6_{list}_cls"))
}

/// The named variant, or the only one.
pub(super) fn one_cell<'a>(experiment: &'a Experiment, name: Option<&str>) -> anyhow::Result<&'a CellUnits> {
    match (name, &experiment.cells[..]) {
        (Some(name), _) => experiment.cell(name),
        (None, [only]) => Ok(only),
        (None, cells) => {
            let names: Vec<&str> = cells.iter().map(|cell| cell.name.as_str()).collect();
            Err(Hinted::error("which variant?", format!("give --variant with one of: {}", names.join("; "))))
        }
    }
}

fn to_npy(what: Exported, bytes: &[u8]) -> anyhow::Result<Vec<u8>> {
    Ok(match what {
        Exported::SeMaps => {
            let map = decode_se_map(bytes)?;
            let data: Vec<u8> = map.data.iter().flat_map(|id| id.to_le_bytes()).collect();
            npy("<u2", &[map.height, map.width], &data)
        }
        Exported::PseudoLabels | Exported::Predictions => {
            let map = decode_label_map(bytes)?;
            npy("|u1", &[map.height, map.width], &map.data)
        }
        Exported::Embeddings | Exported::Cams => {
            let file = SafeTensors::deserialize(bytes).context("not a whole .safetensors file")?;
            let tensor = file.tensor(if what == Exported::Cams { "cam" } else { "embedding" })?;
            anyhow::ensure!(tensor.dtype() == Dtype::F16, "not f16");
            npy("<f2", tensor.shape(), tensor.data())
        }
    })
}

/// NumPy's format, version 1.0; `data` little-endian in C order.
fn npy(descr: &str, shape: &[usize], data: &[u8]) -> Vec<u8> {
    let sides: String = shape.iter().map(|side| format!("{side}, ")).collect();
    let mut header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({}), }}", sides.trim_end());
    // Magic, version and length take 10 bytes; the header ends with a line break at a multiple of 64.
    let padding = 63 - (10 + header.len()) % 64;
    header.push_str(&" ".repeat(padding));
    header.push('\n');
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend_from_slice(&(header.len() as u16).to_le_bytes());
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend_from_slice(data);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_npy_header_is_aligned_and_names_the_shape() {
        for (shape, written) in [(&[3usize][..], "(3,)"), (&[2, 4], "(2, 4,)")] {
            let bytes = npy("|u1", shape, &[7; 8]);
            let length = usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
            assert_eq!((10 + length) % 64, 0);
            let header = std::str::from_utf8(&bytes[10..10 + length]).unwrap();
            assert!(header.contains(written) && header.ends_with('\n'), "{header}");
            assert_eq!(bytes[10 + length..], [7; 8]);
        }
    }
}
