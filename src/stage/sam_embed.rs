//! `sam_embed`: SAM's embedding of a whole, clean image.

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::params::Compute;
use super::{Bytes, Loaded, Output, Stage, StageContext, UnitInput};
use crate::data::image::decode_rgb;
use crate::model::sam::SamEncoder;
use crate::model::weights::{Weights, to_safetensors};

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SamEmbedParams {
    pub precision: Compute,
}

/// Reads `image`, `weights`; gives `embedding`: safetensors with `embedding` f16 `(256, 64, 64)` and `image_size`
/// i64 `(height, width)`.
pub struct SamEmbed {
    params: SamEmbedParams,
    device: tch::Device,
    encoder: Loaded<SamEncoder>,
}

impl Stage for SamEmbed {
    const KIND: &'static str = "sam_embed";
    // 1: first version
    // 2: photographs are decoded and resized as libjpeg-turbo and Pillow do
    // 3: libtorch computes with the same number of threads on every machine, whose sums round otherwise
    const VERSION: u64 = 3;
    const PARALLEL: bool = false;
    type Params = SamEmbedParams;

    fn load(params: SamEmbedParams, context: &StageContext) -> anyhow::Result<Self> {
        Ok(Self { params, device: context.device.torch(), encoder: Loaded::default() })
    }

    fn run(&mut self, input: &UnitInput<'_>) -> anyhow::Result<Vec<Output>> {
        let (device, compute) = (self.device, self.params.precision.into());
        let encoder =
            self.encoder.get(input, "weights", |bytes| SamEncoder::load(&Weights::parse(bytes)?, device, compute))?;
        let image = decode_rgb(&input.bytes("image")?).context("input `image`")?;
        let embedding = encoder.embed(&image).squeeze_dim(0).to_kind(Kind::Half);
        let image_size = Tensor::from_slice(&[image.height as i64, image.width as i64]);
        let bytes = to_safetensors([("embedding", &embedding), ("image_size", &image_size)])?;
        Ok(vec![Output::new("embedding", bytes)])
    }
}

/// An embedding as stored: `(1, 256, 64, 64)` f32, and the height and width of its image.
pub fn read_embedding(bytes: Bytes) -> anyhow::Result<(Tensor, (usize, usize))> {
    let file = Weights::parse(bytes)?;
    let embedding = file.get("embedding", &[256, 64, 64])?.unsqueeze(0);
    let size = Vec::<i64>::try_from(file.raw("image_size")?)?;
    ensure!(size.len() == 2 && size.iter().all(|&n| n > 0), "an embedding of an image of size {size:?}");
    Ok((embedding, (size[0] as usize, size[1] as usize)))
}
