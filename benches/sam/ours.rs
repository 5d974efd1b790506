//! Our side of `make bench-sam`: speaks the protocol of `reference.py`, one JSON object a line.

#![allow(clippy::print_stdout, reason = "answers go to stdout")]

use std::fs;
use std::io::{BufRead, stdin};
use std::time::Instant;

use anyhow::{Context, bail};
use s2c_pipe::data::image::decode_rgb;
use s2c_pipe::model::Compute;
use s2c_pipe::model::sam::automatic::{AutomaticOptions, Crop, segment_everything};
use s2c_pipe::model::sam::{SamDecoder, SamEncoder, resized_size};
use s2c_pipe::model::weights::Weights;
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

#[derive(Default)]
struct Worker {
    sam: Option<(SamEncoder, SamDecoder)>,
    /// The last encoded picture: its embedding and the size of the frame that holds it.
    encoded: Option<(Tensor, (usize, usize))>,
}

impl Worker {
    fn answer(&mut self, asked: &Value, compute: Compute) -> anyhow::Result<Value> {
        let text = |name: &str| asked[name].as_str().with_context(|| format!("`{name}` is no text"));
        let number = |name: &str| asked[name].as_u64().with_context(|| format!("`{name}` is no number"));
        let read = |name: &str| text(name).and_then(|path| fs::read(path).with_context(|| path.to_owned()));
        match text("do")? {
            "load" => {
                let weights = Weights::parse(read("weights")?)?;
                let encoder = SamEncoder::load(&weights, Device::Cpu, compute)?;
                self.sam = Some((encoder, SamDecoder::load(&weights, Device::Cpu, compute)?));
                Ok(json!({}))
            }
            "encode" => {
                let (encoder, _) = self.sam.as_ref().context("no model")?;
                let image = decode_rgb(&read("image")?)?;
                let (seconds, embedding) = timed(|| Ok(encoder.embed(&image)))?;
                self.encoded = Some((embedding, resized_size(image.height, image.width)));
                Ok(json!({ "seconds": seconds }))
            }
            "decode" => {
                let (_, decoder) = self.sam.as_ref().context("no model")?;
                let (embedding, (height, width)) = self.encoded.as_ref().context("no encoded image")?;
                let n = number("prompts")?;
                let side = (n as f64).sqrt().ceil();
                let point = |i: u64| {
                    [(i as f64 % side + 0.5) * *width as f64, ((i as f64 / side).floor() + 0.5) * *height as f64]
                };
                let points: Vec<f32> = (0..n).flat_map(point).map(|x| (x / side) as f32).collect();
                let points = Tensor::from_slice(&points).view([-1, 1, 2]);
                let labels = Tensor::ones([n as i64, 1], (Kind::Int64, Device::Cpu));
                let (seconds, _) = timed(|| Ok(decoder.decode_points(embedding, &points, &labels)))?;
                Ok(json!({ "seconds": seconds }))
            }
            "everything" => {
                let (encoder, decoder) = self.sam.as_ref().context("no model")?;
                let image = decode_rgb(&read("image")?)?;
                let points_per_side = number("points_per_side")? as u32;
                let options = AutomaticOptions { points_per_side, ..AutomaticOptions::default() };
                let embed = |crop: Crop| Ok(encoder.embed(&image.part((crop.y, crop.x), crop.height, crop.width)));
                let (seconds, segments) =
                    timed(|| segment_everything(decoder, embed, (image.height, image.width), &options))?;
                Ok(json!({ "seconds": seconds, "masks": segments.len() }))
            }
            "peak" => {
                let status = fs::read_to_string("/proc/self/status")?;
                let line = status.lines().find(|line| line.starts_with("VmHWM")).context("no VmHWM")?;
                let kib: f64 = line.split_whitespace().nth(1).context("no VmHWM")?.parse()?;
                Ok(json!({ "peak_mib": kib / 1024.0 }))
            }
            other => bail!("unknown `{other}`"),
        }
    }
}

fn timed<T>(run: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<(f64, T)> {
    let started = Instant::now();
    let result = run()?;
    Ok((started.elapsed().as_secs_f64(), result))
}

fn main() -> anyhow::Result<()> {
    s2c_pipe::model::memory::keep_freed();
    let compute = if std::env::args().any(|arg| arg == "bf16") { Compute::Bf16 } else { Compute::F32 };
    let mut worker = Worker::default();
    for line in stdin().lock().lines() {
        let answer = serde_json::from_str(&line?).map_err(Into::into).and_then(|asked| worker.answer(&asked, compute));
        println!("{}", answer.unwrap_or_else(|error| json!({ "error": format!("{error:#}") })));
    }
    Ok(())
}
