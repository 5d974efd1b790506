//! SAM ViT-B and every kind of prompt against the public PyTorch implementation, with weights and a picture made by
//! formulas: `tests/golden/sam_vit/make.py`.

#![allow(clippy::print_stdout, reason = "figures of the comparison")]

use std::path::Path;

use s2c_pipe::model::Compute;
use s2c_pipe::model::sam::mask_decoder::MaskChoice;
use s2c_pipe::model::sam::prompt_encoder::Prompts;
use s2c_pipe::model::sam::{SamDecoder, SamEncoder};
use s2c_pipe::model::weights::{Weights, to_safetensors};
use s2c_pipe::vision::Rgb;
use tch::{Kind, Tensor};

use crate::device::{back, device};
use crate::sam::{has_bf16, worst};

/// Absolute, on embeddings, logits and predicted IoUs.
const TOLERANCE: f64 = 1e-3;

/// SplitMix64, seeded by the FNV-1a hash of the name.
fn weight(name: &str, shape: &[i64]) -> Tensor {
    let hash = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
    let seed = name.bytes().fold(0xcbf2_9ce4_8422_2325, hash);
    let fan_in = shape.iter().skip(1).product::<i64>() as f64;
    let amplitude = (3.0 / fan_in).sqrt() as f32;
    let value = |i: u64| {
        let mut z = seed.wrapping_add((i + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        let v = 2.0 * ((z >> 40) as f32 / 16_777_216.0) - 1.0;
        match name {
            _ if name.contains("pos_embed") => v * 0.02,
            _ if name.contains("positional_encoding_gaussian_matrix") => v,
            _ if shape.len() == 1 && name.ends_with(".weight") => 1.0 + 0.1 * v,
            _ if shape.len() == 1 => 0.02 * v,
            _ => v * amplitude,
        }
    };
    let values: Vec<f32> = (0..shape.iter().product::<i64>() as u64).map(value).collect();
    Tensor::from_slice(&values).view(shape)
}

fn weights(golden: &Weights) -> Weights {
    let names = String::from_utf8(Vec::<u8>::try_from(golden.raw("names").unwrap()).unwrap()).unwrap();
    let tensor = |line: &str| {
        let (name, shape) = line.split_once(' ').unwrap();
        let shape: Vec<i64> = shape.split(' ').map(|side| side.parse().unwrap()).collect();
        (name.to_owned(), weight(name, &shape))
    };
    let tensors: Vec<(String, Tensor)> = names.lines().map(tensor).collect();
    Weights::parse(to_safetensors(tensors.iter().map(|(name, tensor)| (name.as_str(), tensor))).unwrap()).unwrap()
}

fn picture(height: usize, width: usize) -> Rgb {
    let pixel = |i: usize| {
        let (y, x) = (i / width, i % width);
        [3 * x + 5 * y + x * y / 64, 7 * x + y * y / 128, x * x / 256 + 2 * y].map(|value| (value % 256) as u8)
    };
    Rgb { height, width, data: (0..height * width).flat_map(pixel).collect() }
}

fn mask_prompt() -> Tensor {
    let value = |i: usize| (8.0 * ((i % 256) as f64 / 19.0).sin() * ((i / 256) as f64 / 23.0).cos()) as f32;
    Tensor::from_slice(&(0..256 * 256).map(value).collect::<Vec<_>>()).view([1, 1, 256, 256])
}

#[test]
fn vit_and_all_prompts_agree_with_the_reference() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/sam_vit");
    let golden = Weights::parse(std::fs::read(folder.join("golden.safetensors")).unwrap()).unwrap();
    let weights = weights(&golden);
    for name in golden.names().filter_map(|name| name.strip_prefix("check/")) {
        let made = match name {
            "frame" | "mask" => continue,
            name => weights.raw(name).unwrap().flatten(0, -1).narrow(0, 0, 8),
        };
        assert_eq!(made, golden.raw(&format!("check/{name}")).unwrap(), "{name}");
    }
    let encoder = SamEncoder::load(&weights, device(), Compute::F32).unwrap();
    let embedding = encoder.embed(&picture(700, 1024));
    drop(encoder);
    let sampled = embedding.get(0).slice(0, 0, None, 8).slice(1, 0, None, 4).slice(2, 0, None, 4);
    let error = worst(&sampled, &golden.raw("embedding").unwrap());
    println!("ViT-B: embedding {error:.1e}");
    assert!(error < TOLERANCE);

    let decoder = SamDecoder::load(&weights, device(), Compute::F32).unwrap();
    for name in ["points", "single", "box", "box_multi", "box_points", "mask_points", "mask"] {
        let of = |part: &str| golden.raw(&format!("{name}.{part}"));
        let prompts = Prompts {
            points: of("coords").ok().zip(of("labels").ok()),
            boxes: of("boxes").ok(),
            masks: name.starts_with("mask").then(mask_prompt),
            is_gap: None,
        };
        let (low_res, iou) = (of("low_res").unwrap(), of("iou").unwrap());
        let choice = if iou.size()[1] == 3 { MaskChoice::Multimask } else { MaskChoice::Single };
        let masks = decoder.decode(&embedding, &prompts, choice);
        let errors = [
            worst(&masks.low_res.slice(2, 0, None, 8).slice(3, 0, None, 8), &low_res),
            worst(&masks.low_res.slice(2, 96, 108, 1).slice(3, 96, 108, 1), &of("patch").unwrap()),
            worst(&masks.iou, &iou),
        ];
        println!("{name}: low-res {:.1e}, patch {:.1e}, IoU {:.1e}", errors[0], errors[1], errors[2]);
        assert!(errors.iter().all(|&error| error < TOLERANCE), "{name}");
    }

    // bf16 rounds, it does not stray.
    if !has_bf16() {
        return;
    }
    let coarse = SamEncoder::load(&weights, device(), Compute::Bf16).unwrap().embed(&picture(700, 1024));
    let (a, b) = (back(&embedding.flatten(0, -1)), back(&coarse.flatten(0, -1)));
    let cosine = f64::try_from((&a * &b).sum(Kind::Double) / (a.norm() * b.norm()).to_kind(Kind::Double)).unwrap();
    println!("bf16: cosine {cosine:.6}");
    assert!(cosine > 0.999);
}
