//! What this machine has for the work.
#![expect(clippy::print_stdout, reason = "this is where printing happens")]

use std::path::Path;

use anyhow::{Context, bail};

use super::args::{Cli, PipelineArgs};
use super::experiment::{Experiment, print_decided};
use super::table::Warnings;
use super::{Hinted, read_cache, size, weights};
use crate::pipeline::file::load;
use crate::pipeline::names::printable;
use crate::stage::Device;

/// A device from its name.
pub(super) fn parse_device(device: &str) -> anyhow::Result<Device> {
    let index = match device.split_once(':') {
        None if device == "cpu" => return Ok(Device::Cpu),
        None if device == "cuda" => 0,
        Some(("cuda", index)) => index.parse().with_context(|| format!("`{device}` is no device"))?,
        _ => bail!("`{device}` is no device; there are cpu, cuda and cuda:N"),
    };
    let n_devices = tch::Cuda::device_count();
    if index as i64 >= n_devices {
        return Err(Hinted::error(
            format!("there is no `{device}`: libtorch sees {n_devices} CUDA devices"),
            "run on --device cpu, or build against a CUDA PyTorch: see `s2c-pipe doctor`",
        ));
    }
    Ok(Device::Cuda(index))
}

/// Several, with commas between; a GPU may stand there more than once.
pub(super) fn parse_devices(devices: &str) -> anyhow::Result<Vec<Device>> {
    let found = devices.split(',').map(|name| parse_device(name.trim())).collect::<anyhow::Result<Vec<_>>>()?;
    if found.len() > 1 && found.contains(&Device::Cpu) {
        return Err(Hinted::error(
            format!("`--device {devices}` names the CPU and more"),
            "the CPU computes alone: its units use all cores, and GPUs round otherwise",
        ));
    }
    Ok(found)
}

/// bf16 pays on this processor: its products are instructions (AMX; AVX-512 BF16, measured 1.7 times as fast as f32).
/// Where they are emulated, on AVX-512 alone, an epoch took five times as long.
pub(super) fn has_bf16() -> bool {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    cpu.contains("amx_bf16") || cpu.contains("avx512_bf16")
}

pub(super) fn doctor(cli: &Cli, file: Option<&Path>, sets: &[String]) -> anyhow::Result<()> {
    let line = |what: &str, found: &str| println!("{what:<10}  {found}");
    line("s2c-pipe", env!("CARGO_PKG_VERSION"));
    let (version, threads) = (env!("S2C_LIBTORCH_VERSION"), super::threads::COMPUTING);
    line(
        "libtorch",
        &format!("{version}; it computes with {threads} threads on every machine, so that results are equal"),
    );
    line(
        "bf16",
        match has_bf16() {
            true => "AMX or AVX-512 BF16: `precision = \"auto\"` means bf16 here",
            false => "neither AMX nor AVX-512 BF16: `precision = \"auto\"` means f32 here",
        },
    );
    match tch::Cuda::device_count() {
        0 => line("CUDA", "none; install a CUDA build of PyTorch and build with LIBTORCH_USE_PYTORCH=1 to use a GPU"),
        n => line("CUDA", &format!("{n} devices")),
    }
    let folder = cli.cache.ancestors().find(|folder| folder.exists()).unwrap_or(Path::new("."));
    match rustix::fs::statvfs(folder) {
        Ok(disk) => {
            let free = disk.f_bavail * disk.f_frsize;
            let advice = match free < 10_000_000_000 {
                true => "; little: 10,000 images need about 60 GB; give --cache a larger disk",
                false => "",
            };
            line("disk", &format!("{} free at {}{advice}", size(free), folder.display()));
        }
        Err(error) => line("disk", &format!("`{}`: {error}", folder.display())),
    }
    let state = if cli.cache.exists() { "there" } else { "made by the first run" };
    line("cache", &format!("{}: {state}", cli.cache.display()));
    match file {
        Some(file) => check_file(cli, file, sets),
        None => {
            line(
                "weights",
                "give a pipeline file to look at its weights and data: s2c-pipe doctor pipelines/quickstart.toml",
            );
            Ok(())
        }
    }
}

fn check_file(cli: &Cli, file: &Path, sets: &[String]) -> anyhow::Result<()> {
    let pipeline = load(file, sets)?;
    let mut seen = Vec::new();
    for spec in pipeline.cells.iter().map(|cell| &cell.spec) {
        for weights::Field { name: field, path, .. } in weights::fields(spec) {
            if seen.contains(&(field, path.clone())) {
                continue;
            }
            match std::fs::metadata(&path) {
                Ok(found) => println!("weights     {field}: {} ({})", path.display(), size(found.len())),
                Err(error) => println!("weights     {field}: {}: {error}; set `{field}`", path.display()),
            }
            seen.push((field, path));
        }
    }
    let cache = read_cache(cli)?;
    let experiment = Experiment::open(&cache, &PipelineArgs { file: file.to_owned(), sets: sets.to_vec() })?;
    weights::check(cli, &cache, &experiment)?;
    for (name, lines) in experiment.decided() {
        println!("data        {name}, all of whose files can be read");
        print_decided(lines);
    }
    experiment.hashed(0).iter().for_each(|line| println!("files       {line}"));
    experiment.notes().iter().for_each(|note| println!("note        {note}"));
    Warnings::default().before(&experiment).iter().for_each(|warning| println!("{}", printable(warning, true)));
    Ok(())
}
