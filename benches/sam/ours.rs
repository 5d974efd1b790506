//! Our side of `make bench-sam`: speaks the protocol of `reference.py`.

#![allow(clippy::print_stdout, reason = "answers go to stdout")]

#[path = "../common/worker.rs"]
mod worker;

use anyhow::{Context, bail};
use s2c_pipe::data::image::decode_rgb;
use s2c_pipe::model::Compute;
use s2c_pipe::model::sam::automatic::{AutomaticOptions, Crop, segment_everything};
use s2c_pipe::model::sam::{SamDecoder, SamEncoder, resized_size};
use s2c_pipe::model::weights::Weights;
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

use self::worker::{number, read, serve, timed};

#[derive(Default)]
struct Worker {
    sam: Option<(SamEncoder, SamDecoder)>,
    /// The last encoded picture: its embedding and the size of the frame that holds it.
    encoded: Option<(Tensor, (usize, usize))>,
}

impl Worker {
    fn answer(&mut self, what: &str, asked: &Value, compute: Compute) -> anyhow::Result<Value> {
        match what {
            "load" => {
                let weights = Weights::parse(read(asked, "weights")?)?;
                let encoder = SamEncoder::load(&weights, Device::Cpu, compute)?;
                self.sam = Some((encoder, SamDecoder::load(&weights, Device::Cpu, compute)?));
                Ok(json!({}))
            }
            "encode" => {
                let (encoder, _) = self.sam.as_ref().context("no model")?;
                let image = decode_rgb(&read(asked, "image")?)?;
                let (seconds, embedding) = timed(|| Ok(encoder.embed(&image)))?;
                self.encoded = Some((embedding, resized_size(image.height, image.width)));
                Ok(json!({ "seconds": seconds }))
            }
            "decode" => {
                let (_, decoder) = self.sam.as_ref().context("no model")?;
                let (embedding, (height, width)) = self.encoded.as_ref().context("no encoded image")?;
                let n = number(asked, "prompts")?;
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
                let image = decode_rgb(&read(asked, "image")?)?;
                let points_per_side = number(asked, "points_per_side")? as u32;
                let options = AutomaticOptions { points_per_side, ..AutomaticOptions::default() };
                let embed = |crop: Crop| Ok(encoder.embed(&image.part((crop.y, crop.x), crop.height, crop.width)));
                let (seconds, segments) =
                    timed(|| segment_everything(decoder, embed, (image.height, image.width), &options))?;
                Ok(json!({ "seconds": seconds, "masks": segments.len() }))
            }
            other => bail!("unknown `{other}`"),
        }
    }
}

fn main() -> anyhow::Result<()> {
    let compute = if std::env::args().any(|arg| arg == "bf16") { Compute::Bf16 } else { Compute::F32 };
    let mut worker = Worker::default();
    serve(|what, asked| worker.answer(what, asked, compute))
}
