//! MobileSAM against the public PyTorch implementation: `tests/golden/sam/make.py`.

#![allow(clippy::print_stdout, reason = "figures of the comparison")]

use std::path::{Path, PathBuf};

use s2c_pipe::data::image::{Filter, decode_rgb, encode_rgb, resize_rgb};
use s2c_pipe::model::Compute;
use s2c_pipe::model::sam::{SamDecoder, SamEncoder, resized_size};
use s2c_pipe::model::weights::Weights;
use tch::{Device, Kind, Tensor};

use crate::device::{back, device, there};
use crate::sam_everything::IMAGES;

/// The tolerance the project asks for: absolute, on embeddings, logits and predicted IoUs.
const TOLERANCE: f64 = 1e-3;
/// Of logits, which reach 30, on a GPU, where sums have another order.
const GPU_TOLERANCE: f64 = 2e-3;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

pub(crate) fn photographs() -> Option<PathBuf> {
    let folder = root().join("../shared/data/voc-animals-mini/JPEGImages");
    folder.exists().then_some(folder)
}

pub(crate) fn weights() -> Weights {
    Weights::parse(std::fs::read(root().join("pipelines/weights/mobile_sam.f16.safetensors")).unwrap()).unwrap()
}

/// Elsewhere libtorch emulates bf16, and a comparison takes minutes.
pub(crate) fn has_bf16() -> bool {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let has = cpu.contains("amx_bf16") || cpu.contains("avx512_bf16") || device().is_cuda();
    if !has {
        println!("bf16 skipped: this processor does not compute in it");
    }
    has
}

pub(crate) fn worst(a: &Tensor, b: &Tensor) -> f64 {
    f64::try_from((back(a) - back(b)).abs().max()).unwrap()
}

/// Writes what the encoder sees, for `make.py`: the same pixels as Pillow 12's `open` and `resize` give. The first image of `sam_everything` at its own size as well. Usage: S2C_FRAMES=DIR cargo test --release --test it write_frames -- --ignored
#[test]
#[ignore = "makes the input of the golden script"]
fn write_frames() {
    let (Some(folder), Some(out)) = (photographs(), std::env::var_os("S2C_FRAMES").map(PathBuf::from)) else { return };
    std::fs::create_dir_all(&out).unwrap();
    for name in IMAGES {
        let image = decode_rgb(&std::fs::read(folder.join(format!("{name}.jpg"))).unwrap()).unwrap();
        let (height, width) = resized_size(image.height, image.width);
        let frame = encode_rgb(&resize_rgb(&image, height, width, Filter::Bilinear));
        std::fs::write(out.join(format!("{name}-{}x{}.png", image.height, image.width)), frame).unwrap();
        if name == IMAGES[0] {
            std::fs::write(out.join(format!("{name}.png")), encode_rgb(&image)).unwrap();
        }
    }
}

#[test]
fn agrees_with_the_reference_on_real_photographs() {
    let Some(folder) = photographs() else {
        println!("skipped: no ../shared/data/voc-animals-mini");
        return;
    };
    let golden = Weights::parse(std::fs::read(root().join("tests/golden/sam/golden.safetensors")).unwrap()).unwrap();
    let weights = weights();
    let encoder = SamEncoder::load(&weights, device(), Compute::F32).unwrap();
    let decoder = SamDecoder::load(&weights, device(), Compute::F32).unwrap();
    for (i, name) in IMAGES.iter().enumerate() {
        let of = |part: &str| golden.raw(&format!("{i}.{part}")).unwrap();
        let image = decode_rgb(&std::fs::read(folder.join(format!("{name}.jpg"))).unwrap()).unwrap();
        let embedding = encoder.embed(&image);
        let sampled = embedding.get(0).slice(0, 0, None, 16).slice(1, 0, None, 8).slice(2, 0, None, 8);
        let embedding_error = worst(&sampled, &of("embedding"));

        let labels = Tensor::ones([16, 1], (Kind::Int64, Device::Cpu));
        let masks = decoder.decode_points(&embedding, &of("points"), &labels);
        let low_res_error = worst(&masks.low_res.slice(2, 0, None, 16).slice(3, 0, None, 16), &of("low_res"));
        let iou_error = worst(&masks.iou, &of("iou"));
        println!("{name}: embedding {embedding_error:.1e}, low-res {low_res_error:.1e}, IoU {iou_error:.1e}");
        let of_logits = if device().is_cuda() { GPU_TOLERANCE } else { TOLERANCE };
        assert!(embedding_error < TOLERANCE && low_res_error < of_logits && iou_error < TOLERANCE);
    }
}

/// Prompts that share an image take another path through the decoder than prompts with an image each.
#[test]
fn one_image_for_all_prompts_or_one_for_each() {
    let decoder = SamDecoder::load(&weights(), device(), Compute::F32).unwrap();
    tch::manual_seed(0);
    let embedding = there(&(Tensor::randn([1, 256, 64, 64], (Kind::Float, Device::Cpu)) * 0.1));
    let points = Tensor::from_slice(&[100f32, 200.0, 700.0, 300.0]).view([2, 1, 2]);
    let labels = Tensor::ones([2, 1], (Kind::Int64, Device::Cpu));
    let shared = decoder.decode_points(&embedding, &points, &labels);
    let each = decoder.decode_points(&embedding.repeat([2, 1, 1, 1]), &points, &labels);
    assert!(worst(&shared.low_res, &each.low_res) < TOLERANCE);
    assert!(worst(&shared.iou, &each.iou) < TOLERANCE);
}
