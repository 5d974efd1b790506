//! Our side of `make bench-refine`: speaks the protocol of `reference.py`.

#![allow(clippy::print_stdout, reason = "answers go to stdout")]

#[path = "../common/worker.rs"]
#[expect(dead_code, reason = "all files are in one folder here")]
mod worker;

use std::fs;

use anyhow::{Context, bail};
use rayon::prelude::*;
use s2c_pipe::vision::crf::{Bilateral, CrfOptions, Gaussian, Unary, mean_field};
use s2c_pipe::vision::metric::ThresholdSweep;
use s2c_pipe::vision::{Cam, Grid, LabelMap, Rgb};
use serde_json::{Value, json};

use self::worker::{number, serve, text, timed};

struct Loaded {
    folder: String,
    images: Vec<Rgb>,
    masks: Vec<LabelMap>,
    cams: Vec<Cam>,
}

fn floats(path: &str) -> anyhow::Result<Vec<f32>> {
    let bytes = fs::read(path).with_context(|| path.to_owned())?;
    Ok(bytes.as_chunks::<4>().0.iter().map(|value| f32::from_le_bytes(*value)).collect())
}

fn load(asked: &Value) -> anyhow::Result<Loaded> {
    let folder = text(asked, "folder")?.to_owned();
    let (height, width) = (number(asked, "height")? as usize, number(asked, "width")? as usize);
    let mut loaded = Loaded { folder, images: Vec::new(), masks: Vec::new(), cams: Vec::new() };
    for i in 0..number(asked, "images")? {
        let path = |of: &str| format!("{}/{i}.{of}", loaded.folder);
        let read = |of: &str| fs::read(path(of)).with_context(|| path(of));
        loaded.images.push(Rgb { height, width, data: read("rgb")? });
        loaded.masks.push(Grid::new(height, width, read("mask")?));
        loaded.cams.push(Cam { classes: vec![1, 2], height, width, data: floats(&path("cam"))? });
    }
    Ok(loaded)
}

fn crf(loaded: &Loaded, asked: &Value) -> anyhow::Result<Value> {
    let n_labels = number(asked, "labels")?;
    let of: Vec<f32> = serde_json::from_value(asked["parameters"].clone())?;
    let &[iterations, gaussian_sxy, gaussian_weight, sxy, srgb, weight] = &of[..] else { bail!("six parameters") };
    let options = CrfOptions {
        iterations: iterations as u32,
        gaussian: Gaussian { sxy: gaussian_sxy, weight: gaussian_weight },
        bilateral: Bilateral { sxy, srgb, weight },
    };
    let unary = |(i, image): (usize, &Rgb)| {
        let data = floats(&format!("{}/{i}.log{n_labels}", loaded.folder))?;
        anyhow::Ok(Unary { labels: (0..n_labels as u8).collect(), height: image.height, width: image.width, data })
    };
    let unaries: Vec<Unary> = loaded.images.iter().enumerate().map(unary).collect::<Result<_, _>>()?;
    let pool = rayon::ThreadPoolBuilder::new().num_threads(number(asked, "jobs")? as usize).build()?;
    let one = |(image, unary)| mean_field(image, unary, &options).data;
    let all = || Ok(pool.install(|| loaded.images.par_iter().zip(&unaries).map(one).collect::<Vec<_>>()));
    let (seconds, fields) = timed(all)?;
    if let Some(out) = asked["out"].as_str() {
        fs::write(out, fields[0].iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>())?;
    }
    Ok(json!({ "seconds": seconds }))
}

fn sweep(loaded: &Loaded, asked: &Value) -> anyhow::Result<Value> {
    let n_thresholds = number(asked, "thresholds")? as usize;
    let (seconds, mious) = timed(|| {
        let mut sweep = ThresholdSweep::new(21);
        loaded.cams.iter().zip(&loaded.masks).for_each(|(cam, mask)| sweep.add(cam, mask));
        Ok(sweep.scores().iter().take(n_thresholds).map(|(_, scores)| scores.miou).collect::<Vec<f64>>())
    })?;
    Ok(json!({ "seconds": seconds, "mious": mious }))
}

fn main() -> anyhow::Result<()> {
    let mut loaded = None;
    serve(|what, asked| {
        if what == "load" {
            loaded = Some(load(asked)?);
            return Ok(json!({}));
        }
        let loaded = loaded.as_ref().context("nothing is loaded")?;
        match what {
            "crf" => crf(loaded, asked),
            "sweep" => sweep(loaded, asked),
            other => bail!("cannot `{other}`"),
        }
    })
}
