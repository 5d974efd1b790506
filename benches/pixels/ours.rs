//! Our side of `make bench-pixels`: speaks the protocol of `reference.py`.

#![allow(clippy::print_stdout, reason = "answers go to stdout")]

#[path = "../common/worker.rs"]
#[expect(dead_code, reason = "all files are in one folder here")]
mod worker;

use std::fs;

use anyhow::{Context, bail};
use s2c_pipe::data::image::{Filter, decode_rgb, resize_rgb};
use s2c_pipe::digest::BlobDigest;
use s2c_pipe::vision::Rgb;
use serde_json::{Value, json};

use self::worker::{number, serve, timed};

/// Files as they are, and the images in them.
#[derive(Default)]
struct Loaded {
    files: Vec<Vec<u8>>,
    images: Vec<Rgb>,
}

fn load(asked: &Value) -> anyhow::Result<Loaded> {
    let paths: Vec<String> = serde_json::from_value(asked["paths"].clone())?;
    let read = |path: &String| fs::read(path).with_context(|| path.clone());
    let files: Vec<Vec<u8>> = paths.iter().map(read).collect::<Result<_, _>>()?;
    let images = files.iter().map(|bytes| decode_rgb(bytes)).collect::<Result<_, _>>()?;
    Ok(Loaded { files, images })
}

/// The time that making images takes, and a digest of each.
fn answer(make: impl FnOnce() -> anyhow::Result<Vec<Rgb>>) -> anyhow::Result<Value> {
    let (seconds, images) = timed(make)?;
    let digests: Vec<String> = images.iter().map(|image| BlobDigest::of(&image.data).to_string()).collect();
    Ok(json!({ "seconds": seconds, "digests": digests }))
}

fn main() -> anyhow::Result<()> {
    let mut loaded = Loaded::default();
    serve(|what, asked| match what {
        "load" => {
            loaded = load(asked)?;
            Ok(json!({}))
        }
        "decode" => answer(|| loaded.files.iter().map(|bytes| decode_rgb(bytes)).collect()),
        "resize" => {
            let longest = number(asked, "longest")? as usize;
            let filter = if asked["filter"] == "bicubic" { Filter::Bicubic } else { Filter::Bilinear };
            let resized = |image: &Rgb| {
                let most = image.height.max(image.width);
                let side = |of: usize| (of * longest + most / 2) / most;
                resize_rgb(image, side(image.height).max(1), side(image.width).max(1), filter)
            };
            answer(|| Ok(loaded.images.iter().map(resized).collect()))
        }
        other => bail!("cannot `{other}`"),
    })
}
