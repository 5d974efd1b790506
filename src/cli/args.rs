//! What can be typed.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

#[cfg(feature = "torch")]
use crate::pipeline::names::shell_quoted;
use crate::vision::se_map::AutomaticOptions;

/// A caching experiment engine for weakly supervised segmentation: S2C, "From SAM to CAMs".
#[derive(Debug, Parser)]
#[command(name = "s2c-pipe", version, max_term_width = 100)]
pub(super) struct Cli {
    /// Folder of stored results
    #[arg(long, global = true, env = "S2C_CACHE", default_value = "cache", value_name = "DIR")]
    pub(super) cache: PathBuf,
    /// Hash every file of the data and weights, also those whose size and times are as they were
    #[arg(long, global = true)]
    pub(super) rehash: bool,
    /// Print only results and errors
    #[arg(long, short, global = true)]
    pub(super) quiet: bool,
    /// Print results as JSON
    #[arg(long, global = true)]
    pub(super) json: bool,
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Run what is not in the cache, then show the results
    Run(RunArgs),
    /// Show what would run, what is shared and what it may cost
    Plan {
        #[command(flatten)]
        pipeline: PipelineArgs,
    },
    /// Say what makes variants, or units such as `cam_epoch epoch 3`, run again, compared with the run of this file that is
    /// nearest to it, mostly the last; of two variants, where they part
    Why {
        #[command(flatten)]
        pipeline: PipelineArgs,
        /// A variant's name, or the beginning of a unit's label; without it, all variants
        what: Option<String>,
        /// A variant that the first is compared with
        other: Option<String>,
        /// Take the variant as it was in a run, see `history`; a second time: the other variant, or the same, in that run
        #[arg(long = "run", value_name = "N")]
        runs: Vec<u64>,
    },
    /// Show the tree from an image's predicted mask, or the last there is, back to its files and weights
    Lineage {
        #[command(flatten)]
        pipeline: PipelineArgs,
        /// The image's id, such as `2007_000032`
        image: String,
        /// Whose result; needed where the file has several
        #[arg(long)]
        variant: Option<String>,
    },
    /// Show the runs this cache has seen: when, what they executed, how they ended, what the variants scored
    History {
        /// Only runs of this pipeline file
        file: Option<PathBuf>,
    },
    /// Say what runs on this cache now, how far it is and how long it still takes; also from another terminal
    Status {
        /// Only a run of this pipeline file
        file: Option<PathBuf>,
    },
    /// Show the table of variants and metrics
    Results {
        #[command(flatten)]
        pipeline: PipelineArgs,
        #[arg(long, conflicts_with_all = ["latex", "json"])]
        csv: bool,
        #[arg(long, conflicts_with = "json")]
        latex: bool,
        /// Show precision, recall, accuracy, fw IoU and boundary F as well; --json has them always, and by class
        #[arg(long, conflicts_with_all = ["csv", "latex", "json"])]
        metrics: bool,
        /// Where [sweep] has `rng_seed`: the variant that others are tested against [default: the first]
        #[arg(long, value_name = "VARIANT")]
        against: Option<String>,
    },
    /// Say which numbers in tables of `results --latex` are stale, unknown, or edited by hand
    VerifyResults {
        /// LaTeX files with such tables
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
    /// Draw the stages and what they share between variants
    Graph {
        #[command(flatten)]
        pipeline: PipelineArgs,
        #[arg(long, value_enum, default_value_t = GraphFormat::Dot)]
        format: GraphFormat,
    },
    /// Write event files for TensorBoard from the cache; `run` does so by itself
    Tensorboard(TensorboardArgs),
    /// Copy results out of the cache, one file an image
    Export(ExportArgs),
    /// Segment pictures with a trained variant: a palette PNG and an overlay for each
    Predict(PredictArgs),
    /// Segment everything in pictures with SAM: an SE map, a coloured picture and a list of masks for each
    Segment(SegmentArgs),
    /// Look after the cache
    Cache {
        #[command(subcommand)]
        action: CacheAction,
    },
    /// Look at checkpoints
    Weights {
        #[command(subcommand)]
        action: WeightsAction,
    },
    /// Tell what this machine has for the work, and what to do about what is missing
    Doctor {
        /// A pipeline file whose data and weights are looked at as well
        file: Option<PathBuf>,
        /// Override a field of that file
        #[arg(long = "set", value_name = "PATH=VALUE", requires = "file")]
        sets: Vec<String>,
    },
    /// Print the JSON schema of pipeline files
    Schema,
    /// Print shell completions
    Completions { shell: Shell },
}

/// `50GB`, `1.5 TB`, `800 MiB`, `1000`.
fn bytes_of(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = (text[..digits].parse::<f64>(), text[digits..].trim().to_ascii_lowercase());
    let (letter, base) = match unit.strip_suffix("ib") {
        Some(letter) => (letter, 1024f64),
        None => (unit.strip_suffix('b').unwrap_or(&unit), 1000f64),
    };
    let power = ["", "k", "m", "g", "t"].iter().position(|known| *known == letter);
    match (number, power) {
        (Ok(number), Some(power)) => Ok((number * base.powi(power as i32)) as u64),
        _ => Err("write a size as 50GB, 800MB or 1.5TB".to_owned()),
    }
}

/// `2%` as 0.02.
fn share_of(text: &str) -> Result<f64, String> {
    let percent = text.strip_suffix('%').and_then(|number| number.trim().parse::<f64>().ok());
    let percent = percent.filter(|percent| *percent > 0.0 && *percent <= 100.0);
    percent.map(|percent| percent / 100.0).ok_or_else(|| "write a share above 0% and up to 100%, as 2%".to_owned())
}

#[derive(Debug, Args)]
pub(super) struct RunArgs {
    #[command(flatten)]
    pub(super) pipeline: PipelineArgs,
    /// Where to compute: cpu, cuda or cuda:N; of several, as cuda:0,cuda:1, each trains something else, and one named
    /// k times trains k things
    #[arg(long, default_value = "cpu", value_name = "DEVICES")]
    pub(super) device: String,
    /// Units of stages that use one core each that run at once [default: the number of cores]
    #[arg(long, short, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub(super) jobs: Option<u16>,
    /// After a failure go on with what does not need the failed unit
    #[arg(long, short)]
    pub(super) keep_going: bool,
    /// Make results again that `cache gc` removed and only other results need, for `export` and `predict`
    #[arg(long)]
    pub(super) restore: bool,
    /// Try a unit that failed so many times again
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub(super) retries: usize,
    /// A unit that runs longer fails
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) time_limit: Option<u32>,
    /// Then run a random share of the units again, e.g. 2%, compare what they give, and fail if it is not the same
    #[arg(long, value_name = "SHARE", value_parser = share_of)]
    pub(super) audit: Option<f64>,
    /// Chooses the units of an audit [default: the time]
    #[arg(long, value_name = "N", requires = "audit")]
    pub(super) audit_seed: Option<u64>,
    /// Folder for overlay pictures and result files, in a folder of the pipeline's name
    #[arg(long, default_value = "out", value_name = "DIR")]
    pub(super) out: PathBuf,
    /// Write also into a folder with files of others, and over them, but never over what is read
    #[arg(long)]
    pub(super) force: bool,
}

#[derive(Debug, Args)]
pub(super) struct TensorboardArgs {
    #[command(flatten)]
    pub(super) pipeline: PipelineArgs,
    /// Folder to write to, a folder for each variant [default: out/PIPELINE/tensorboard]
    #[arg(long, value_name = "DIR")]
    pub(super) to: Option<PathBuf>,
    /// Write also into a folder with files of others, and over them, but never over what is read
    #[arg(long)]
    pub(super) force: bool,
}

#[derive(Debug, Args)]
pub(super) struct PipelineArgs {
    /// Pipeline file (TOML)
    pub(super) file: PathBuf,
    /// Override a field, e.g. `--set cpm.tau=0.3`; may be repeated
    #[arg(long = "set", value_name = "PATH=VALUE")]
    pub(super) sets: Vec<String>,
}

#[cfg(feature = "torch")]
impl PipelineArgs {
    /// As they were written, for a command that somebody may copy.
    pub(super) fn written(&self) -> String {
        let sets = self.sets.iter().map(|set| format!(" --set {}", shell_quoted(set)));
        format!("{}{}", shell_quoted(&self.file.to_string_lossy()), sets.collect::<String>())
    }
}

#[derive(Debug, Subcommand)]
pub(super) enum CacheAction {
    /// Bytes by stage
    Du,
    /// Read and hash every blob; remove those that are corrupt
    Verify,
    /// Make the index again from the manifests
    Rebuild,
    /// Remove blobs that no unit of these pipeline files has, or the least valuable above a size
    Gc {
        /// Pipeline files whose results stay
        #[arg(required_unless_present = "max_size")]
        keep: Vec<PathBuf>,
        /// Override a field of these files, as in the runs whose results stay
        #[arg(long = "set", value_name = "PATH=VALUE")]
        sets: Vec<String>,
        /// Remove only until blobs take so much, e.g. 50GB: superseded checkpoints first, then the cheapest a byte
        #[arg(long, value_name = "SIZE", value_parser = bytes_of)]
        max_size: Option<u64>,
        /// Only tell what would go, and what making it again would cost
        #[arg(long)]
        dry_run: bool,
    },
    /// Send what has finished here to a folder or a bucket; what is there already is not sent again
    Push {
        /// A folder, or s3://BUCKET/PREFIX with the usual AWS_ variables
        to: String,
        /// Look up what is there instead of taking it from the records there, e.g. where something was removed
        #[arg(long)]
        list: bool,
        /// Send also into a folder that has files of others beside those of a cache
        #[arg(long)]
        force: bool,
    },
    /// Take from a folder or a bucket what has not finished here
    Pull(PullArgs),
}

#[derive(Debug, Args)]
pub(super) struct PullArgs {
    /// A folder, or s3://BUCKET/PREFIX with the usual AWS_ variables
    pub(super) from: String,
    /// Before anything is believed, run a random share of the units again, e.g. 5%, and take none if one gives other bytes
    #[arg(long, value_name = "SHARE", value_parser = share_of, requires = "files")]
    pub(super) audit: Option<f64>,
    /// Chooses the units of the audit [default: the time]
    #[arg(long, value_name = "N", requires = "audit")]
    pub(super) audit_seed: Option<u64>,
    /// A pipeline file whose units the audit runs; may be given several times
    #[arg(long = "file", value_name = "FILE", requires = "audit")]
    pub(super) files: Vec<PathBuf>,
    /// Override a field of these files
    #[arg(long = "set", value_name = "PATH=VALUE", requires = "files")]
    pub(super) sets: Vec<String>,
    /// The devices that the audit computes on: cpu, cuda or cuda:N
    #[arg(long, default_value = "cpu", value_name = "DEVICES", requires = "audit")]
    pub(super) device: String,
}

#[derive(Debug, Subcommand)]
pub(super) enum WeightsAction {
    /// Tell what a checkpoint is and which field of a pipeline file it fits
    Inspect {
        /// A .safetensors file, a state dict of PyTorch (.pth, .pt, .bin) or parameters of MXNet (.params)
        file: PathBuf,
        /// List the tensors
        #[arg(long)]
        tensors: bool,
    },
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum Shell {
    Bash,
    Zsh,
    Fish,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum GraphFormat {
    Dot,
    Mermaid,
}

#[derive(Debug, Args)]
pub(super) struct ExportArgs {
    #[command(flatten)]
    pub(super) pipeline: PipelineArgs,
    /// What to copy
    #[arg(long, value_enum)]
    pub(super) what: Exported,
    /// Whose results; needed where the file has several variants
    #[arg(long)]
    pub(super) variant: Option<String>,
    /// npy: plain arrays; otherwise safetensors for embeddings and CAMs, PNG for maps
    #[arg(long)]
    pub(super) npy: bool,
    /// Predictions of PASCAL VOC as its evaluation server wants them: in
    /// results/VOC2012/Segmentation/comp6_LIST_cls, LIST being `dataset.val`
    #[arg(long, conflicts_with = "npy")]
    pub(super) voc_server: bool,
    /// Folder to copy to
    #[arg(long, value_name = "DIR")]
    pub(super) to: PathBuf,
    /// Write also into a folder with files of others, and over them, but never over what is read
    #[arg(long)]
    pub(super) force: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Exported {
    /// SAM embeddings (256, 64, 64) f16
    Embeddings,
    /// Segment ids (H, W) u16, 0 = none
    SeMaps,
    /// Scores (classes, H, W) f16 with the labels of the classes
    Cams,
    /// Label maps (H, W) u8 of the training images
    PseudoLabels,
    /// Label maps (H, W) u8 of the validation images
    Predictions,
}

/// Parameters as in SamAutomaticMaskGenerator.
#[derive(Debug, Args)]
pub(super) struct SegmentArgs {
    /// JPEG or PNG pictures, or folders of them
    #[arg(required = true)]
    pub(super) images: Vec<PathBuf>,
    /// A SAM checkpoint: ViT-B, L, H or MobileSAM
    #[arg(long, default_value = "pipelines/weights/mobile_sam.f16.safetensors", value_name = "FILE")]
    pub(super) weights: PathBuf,
    /// Folder to write to
    #[arg(long, value_name = "DIR", default_value = "out/segments")]
    pub(super) to: PathBuf,
    /// Write also into a folder with files of others, and over them, but never over what is read
    #[arg(long)]
    pub(super) force: bool,
    /// Prompts are a grid of this many points along each side
    #[arg(long, default_value_t = AutomaticOptions::default().points_per_side, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=128))]
    pub(super) points_per_side: u32,
    #[arg(long, default_value_t = AutomaticOptions::default().pred_iou_thresh, value_name = "X")]
    pub(super) pred_iou_thresh: f64,
    #[arg(long, default_value_t = AutomaticOptions::default().stability_score_thresh, value_name = "X")]
    pub(super) stability_score_thresh: f64,
    #[arg(long, default_value_t = AutomaticOptions::default().box_nms_thresh, value_name = "X")]
    pub(super) box_nms_thresh: f64,
    /// Layers of crops that are segmented as well
    #[arg(long, default_value_t = 0, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=4))]
    pub(super) crop_n_layers: u32,
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=16))]
    pub(super) crop_n_points_downscale_factor: u32,
    /// Holes and islands of fewer pixels go
    #[arg(long, default_value_t = 0, value_name = "PIXELS")]
    pub(super) min_mask_region_area: usize,
    /// Which mask a pixel in several masks belongs to
    #[arg(long, value_enum, default_value_t = Overlap::AreaAsc)]
    pub(super) overlap: Overlap,
    #[arg(long, value_enum, default_value_t = PrecisionArg::Auto)]
    pub(super) precision: PrecisionArg,
    /// Where to compute: cpu, cuda or cuda:N
    #[arg(long, default_value = "cpu")]
    pub(super) device: String,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum Overlap {
    /// The smallest mask
    AreaAsc,
    /// The mask with the highest predicted IoU
    PredIouDesc,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum PrecisionArg {
    Auto,
    F32,
    Bf16,
}

#[derive(Debug, Args)]
pub(super) struct PredictArgs {
    #[command(flatten)]
    pub(super) pipeline: PipelineArgs,
    /// JPEG or PNG pictures, or folders of them
    #[arg(required = true)]
    pub(super) images: Vec<PathBuf>,
    /// The trained variant; needed where the file has several
    #[arg(long)]
    pub(super) variant: Option<String>,
    /// Folder to write to
    #[arg(long, value_name = "DIR", default_value = "out/predictions")]
    pub(super) to: PathBuf,
    /// Write also into a folder with files of others, and over them, but never over what is read
    #[arg(long)]
    pub(super) force: bool,
    /// Where to compute: cpu, cuda or cuda:N
    #[arg(long, default_value = "cpu")]
    pub(super) device: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        let cases =
            [("50GB", 50_000_000_000), ("1.5 tb", 1_500_000_000_000), ("2KiB", 2048), ("7", 7), ("3 M", 3_000_000)];
        for (text, expected) in cases {
            assert_eq!(bytes_of(text), Ok(expected), "{text}");
        }
        for text in ["", "GB", "5 XB", "1.2.3GB", "-1GB", "5 ib ib"] {
            assert!(bytes_of(text).is_err(), "{text}");
        }
    }

    #[test]
    fn shares_are_percentages() {
        assert_eq!((share_of("2%"), share_of("100 %")), (Ok(0.02), Ok(1.0)));
        for text in ["2", "0%", "101%", "-1%", "NaN%", "%", ""] {
            assert!(share_of(text).is_err(), "{text}");
        }
    }
}
