//! What a checkpoint is, told by its names and shapes, and whether this build can use it.

use std::collections::BTreeSet;

use tch::Device;

use super::Compute;
use super::backbone::{Architecture, Backbone, BackboneConfig};
use super::resnet::{Depth, StrideIn};
use super::sam::image_encoder::VitShape;
use super::sam::{SamDecoder, SamEncoder};
use super::sound::{Network, Problem, Soundness, sound, stranger};
use super::weights::Weights;

/// A checkpoint recognised.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// For people.
    pub what: String,
    /// The fields of a pipeline file it can be given to.
    pub fits: &'static [&'static str],
    /// The values of `backbone` beside such a field that it can be given with.
    pub backbones: &'static [&'static str],
    /// Why it fits none.
    pub problem: Option<String>,
    /// What to do about that, where it is known.
    pub hint: Option<String>,
    /// What a user should know.
    pub notes: Vec<String>,
    /// Tensors that are not read and change nothing.
    pub ignored: Vec<String>,
}

const SAM: &[&str] = &["sam.weights"];
const BACKBONE: &[&str] = &["classifier.weights", "segmentation.weights"];
const RESNETS: &str = "of ResNets this build has ResNet-18, 34, 50, 101 and ResNet38d";

/// Looks at a checkpoint. What seems to fit is loaded, so that the answer is true.
pub fn recognise(weights: &Weights) -> Known {
    let side = |name: &str| Some(*weights.shape(name)?.first()?);
    if let Some(n_classes) = side("head.cam.weight") {
        return trained_here(format!("CAM classifier of s2c-pipe, {n_classes} classes"), weights);
    }
    // Of each head the logits; `head.4` of LargeFOV is none.
    let logits = ["head.aspp.0.weight", "head.7.weight", "head.4.weight", "head.1.7.weight"];
    if let Some(n_labels) = logits.into_iter().find_map(side) {
        return trained_here(format!("DeepLab of s2c-pipe, {n_labels} labels with background"), weights);
    }
    if weights.contains("f9.weight") && weights.contains("f8_3.weight") {
        return trained_here("AffinityNet".to_owned(), weights);
    }
    if weights.contains("fc_edge6.weight") && weights.contains("fc_dp7.3.weight") {
        return unusable("layers of IRN".to_owned(), "they stand on a backbone that is not in the file");
    }
    if weights.contains("image_encoder.patch_embed.seq.0.c.weight") {
        return fitting("MobileSAM (SAM with TinyViT)".to_owned(), SAM, (weights, Network::Sam), load_sam(weights));
    }
    if let Some(shape) = VitShape::of(weights) {
        return fitting(format!("SAM {}", shape.name), SAM, (weights, Network::Sam), load_sam(weights));
    }
    if let Some(width) = side("image_encoder.patch_embed.proj.weight") {
        return strange(weights)
            .unwrap_or_else(|| unusable(format!("SAM of width {width}"), "this build has ViT-B, L, H and MobileSAM"));
    }
    backbone(weights)
}

/// A checkpoint of ours: a backbone with a head.
fn trained_here(what: String, weights: &Weights) -> Known {
    let on = backbone(weights);
    let what = if on.problem.is_none() { format!("{what}, on {}", on.what) } else { what };
    Known { what, ..on }
}

fn backbone(weights: &Weights) -> Known {
    if weights.contains("conv1a.weight") {
        return loaded(Architecture::Resnet38d, &["resnet38d"], weights);
    }
    if weights.contains("conv1.weight") && weights.contains("layer1.0.conv1.weight") {
        return resnet(weights);
    }
    let unknown = "its tensors have the names of no model that this build knows";
    strange(weights).unwrap_or_else(|| unusable("unknown".to_owned(), unknown))
}

fn resnet(weights: &Weights) -> Known {
    let blocks = |layer: usize| {
        let prefix = format!("layer{layer}.");
        let block = |name: &str| Some(name.strip_prefix(&prefix)?.split_once('.')?.0.to_owned());
        weights.names().filter_map(block).collect::<BTreeSet<_>>().len()
    };
    let blocks = [blocks(1), blocks(2), blocks(3), blocks(4)];
    let is_bottleneck = weights.contains("layer1.0.conv3.weight");
    let is_it = |depth: &Depth| depth.blocks() == blocks && depth.is_bottleneck() == is_bottleneck;
    let Some(depth) = Depth::ALL.into_iter().find(is_it) else {
        return unusable(format!("a ResNet of {blocks:?} blocks"), RESNETS);
    };
    // Wide and grouped ones (ResNeXt) differ in the 3x3 convolution alone.
    if is_bottleneck && weights.shape("layer1.0.conv2.weight") != Some(&[64, 64, 3, 3]) {
        return unusable(format!("a wide or grouped ResNet-{}", depth.number()), RESNETS);
    }
    // A checkpoint does not tell where the stride of a bottleneck sits.
    let backbones: &[&str] = match depth {
        Depth::D18 => &["resnet18"],
        Depth::D34 => &["resnet34"],
        Depth::D50 => &["resnet50", "resnet50v1"],
        Depth::D101 => &["resnet101", "resnet101v1"],
    };
    loaded(Architecture::Resnet(depth, StrideIn::Conv2), backbones, weights)
}

fn loaded(architecture: Architecture, backbones: &'static [&'static str], weights: &Weights) -> Known {
    let config = BackboneConfig { architecture, output_stride: 8, compute: Compute::F32, device: Device::Cpu };
    let network = match architecture {
        Architecture::Resnet(..) => Network::Resnet,
        Architecture::Resnet38d => Network::Resnet38d,
    };
    let loaded = Backbone::load(weights, &config).map(drop);
    let known = fitting(architecture.to_string(), BACKBONE, (weights, network), loaded);
    if known.problem.is_none() { Known { backbones, ..known } } else { known }
}

fn load_sam(weights: &Weights) -> anyhow::Result<()> {
    SamEncoder::load(weights, Device::Cpu, Compute::F32)?;
    SamDecoder::load(weights, Device::Cpu, Compute::F32).map(drop)
}

fn fitting(
    what: String,
    fits: &'static [&'static str],
    (weights, network): (&Weights, Network),
    loaded: anyhow::Result<()>,
) -> Known {
    match loaded.and_then(|()| sound(weights, network)) {
        Ok(Soundness { problem: None, notes, ignored }) => {
            Known { what, fits, backbones: &[], problem: None, hint: None, notes, ignored }
        }
        Ok(Soundness { problem: Some(problem), notes, .. }) => Known { notes, ..refused(what, problem) },
        Err(error) => match stranger(weights, Some(network)) {
            Some(problem) => refused(what, problem),
            None => unusable(what, &format!("{error:#}")),
        },
    }
}

/// A checkpoint of a family that is none of ours.
fn strange(weights: &Weights) -> Option<Known> {
    stranger(weights, None).map(|problem| refused("unknown".to_owned(), problem))
}

fn refused(what: String, Problem { what: problem, hint }: Problem) -> Known {
    Known { hint: Some(hint), ..unusable(what, &problem) }
}

fn unusable(what: String, problem: &str) -> Known {
    let problem = Some(problem.to_owned());
    Known { what, fits: &[], backbones: &[], problem, hint: None, notes: Vec::new(), ignored: Vec::new() }
}

#[cfg(test)]
mod tests {
    use tch::{Kind, Tensor};

    use super::*;
    use crate::model::weights::to_safetensors;

    fn recognised(names: &[(&str, &[i64])]) -> Known {
        let tensors: Vec<_> =
            names.iter().map(|(name, shape)| (*name, Tensor::zeros(*shape, (Kind::Half, Device::Cpu)))).collect();
        let bytes = to_safetensors(tensors.iter().map(|(name, tensor)| (*name, tensor))).unwrap();
        recognise(&Weights::parse(bytes).unwrap())
    }

    #[test]
    fn models_are_told_by_names_and_shapes() {
        let patch = "image_encoder.patch_embed.proj.weight";
        #[rustfmt::skip]
        let cases: [(&str, &[(&str, &[i64])]); 14] = [
            ("SAM ViT-B",         &[(patch, &[768, 1])]),
            ("SAM ViT-L",         &[(patch, &[1024, 1])]),
            ("SAM ViT-H",         &[(patch, &[1280, 1])]),
            ("SAM of width 64",   &[(patch, &[64, 1])]),
            ("unknown",           &[("sam_mask_decoder.iou_token.weight", &[1, 256])]),
            ("MobileSAM (SAM with TinyViT)", &[("image_encoder.patch_embed.seq.0.c.weight", &[32, 3, 3, 3])]),
            ("CAM classifier of s2c-pipe, 20 classes", &[("conv1.weight", &[1]), ("head.cam.weight", &[20, 1, 1, 1])]),
            ("DeepLab of s2c-pipe, 21 labels with background", &[("head.aspp.0.weight", &[21, 1, 3, 3])]),
            (
                "DeepLab of s2c-pipe, 5 labels with background",
                &[("head.4.weight", &[512]), ("head.7.weight", &[5, 512, 1, 1])],
            ),
            ("DeepLab of s2c-pipe, 6 labels with background", &[("head.4.weight", &[6, 256, 1, 1])]),
            ("DeepLab of s2c-pipe, 7 labels with background", &[("head.1.7.weight", &[7, 256, 1, 1])]),
            ("ResNet38d",         &[("conv1a.weight", &[64, 3, 3, 3])]),
            ("ResNet38d",         &[("conv1a_weight", &[64, 3, 3, 3])]),
            ("unknown",           &[("features.0.weight", &[1])]),
        ];
        for (what, names) in cases {
            let known = recognised(names);
            assert_eq!(known.what, what);
            assert!(known.fits.is_empty() && known.problem.is_some(), "{known:?}");
        }
    }

    #[test]
    fn resnets_are_told_by_their_blocks() {
        for depth in Depth::ALL {
            let (blocks, is_bottleneck, depth) = (depth.blocks(), depth.is_bottleneck(), depth.number());
            let mut names = vec![("conv1.weight".to_owned(), vec![64, 3, 7, 7])];
            for (layer, &n) in blocks.iter().enumerate() {
                for block in 0..n {
                    for conv in 1..=if is_bottleneck { 3 } else { 2 } {
                        names.push((format!("layer{}.{block}.conv{conv}.weight", layer + 1), vec![64, 64, 3, 3]));
                    }
                }
            }
            let of = |names: &[(String, Vec<i64>)]| {
                let names: Vec<_> = names.iter().map(|(name, shape)| (name.as_str(), shape.as_slice())).collect();
                recognised(&names)
            };
            assert_eq!(of(&names).what, format!("ResNet-{depth}"));
            names.iter_mut().skip(1).for_each(|(_, shape)| *shape = vec![128, 4, 3, 3]);
            let wide = of(&names).what;
            assert_eq!(wide.starts_with("a wide or grouped"), is_bottleneck, "{wide}");
            names.push(("layer3.99.conv1.weight".to_owned(), vec![1]));
            assert!(of(&names).what.starts_with("a ResNet of ["));
        }
    }

    #[test]
    fn the_weights_of_the_repository_fit() {
        let cases: [(_, _, _, &[&str]); 2] = [
            ("mobile_sam.f16.safetensors", "MobileSAM (SAM with TinyViT)", SAM, &[]),
            ("resnet50_v1.f16.safetensors", "ResNet-50", BACKBONE, &["resnet50", "resnet50v1"]),
        ];
        for (file, what, fits, backbones) in cases {
            let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("pipelines/weights").join(file);
            let known = recognise(&Weights::parse(crate::data::read_shared(&path).unwrap()).unwrap());
            let (what, notes, ignored) = (what.to_owned(), known.notes.clone(), known.ignored.clone());
            let expected = Known { what, fits, backbones, problem: None, hint: None, notes, ignored };
            assert_eq!(known, expected);
        }
    }
}
