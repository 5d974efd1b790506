//! From the names in a file to those that models ask for, which are the names of the public checkpoints: what wrappers and
//! dicts put before all names of a model is taken away, and the names of transformers and MXNet are translated.

use std::collections::btree_map::Entry as Place;
use std::collections::{BTreeMap, BTreeSet};

use anyhow::ensure;

use super::entry::{Entry, NotACheckpoint};

/// The tensors of a file under its own names, and those that could not be read.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) tensors: BTreeMap<String, Entry>,
    pub(super) failed: Vec<(String, anyhow::Error)>,
}

impl From<BTreeMap<String, Entry>> for Found {
    fn from(tensors: BTreeMap<String, Entry>) -> Self {
        Self { tensors, failed: Vec::new() }
    }
}

/// How the names of a file became those of a model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Naming {
    /// What was taken away before each name.
    pub prefix: String,
    /// Whose names were translated.
    pub translated: Option<&'static str>,
    /// What stands before the names of other copies of the model (moving averages, MoCo's key encoder), which were left.
    pub copies: Vec<String>,
    /// Tensors without the prefix, under their whole names.
    pub outside: Vec<String>,
}

/// A tensor that every model of a kind has, by whose name the model is found in a file.
const ANCHORS: [&str; 8] = [
    "image_encoder.patch_embed.proj.weight",
    "image_encoder.patch_embed.seq.0.c.weight",
    "image_encoder.trunk.patch_embed.proj.weight",
    TRANSFORMERS_SAM,
    "layer1.0.conv1.weight",
    TRANSFORMERS_RESNET,
    "conv1a.weight",
    MXNET_RESNET38,
];
const TRANSFORMERS_SAM: &str = "vision_encoder.patch_embed.projection.weight";
const TRANSFORMERS_RESNET: &str = "embedder.embedder.convolution.weight";
const MXNET_RESNET38: &str = "conv1a_weight";

/// What is put before the names of models that are not known here.
const WRAPPERS: [&str; 10] = [
    "module",
    "model",
    "state_dict",
    "model_state",
    "model_state_dict",
    "net",
    "network",
    "_orig_mod",
    "teacher",
    "student",
];
/// Dicts of training scripts beside the model.
const TRAINING: [&str; 6] =
    ["optimizer", "optimizers", "optimizer_states", "optimizer_state_dict", "scheduler", "scaler"];

/// Text from a file as it is printed: what a terminal would act on, or would not show, is escaped.
pub fn shown(text: &str) -> String {
    let escaped = |c: char| match c {
        '"' | '\'' | '\\' => c.to_string(),
        c => c.escape_debug().to_string(),
    };
    text.chars().map(escaped).collect()
}

/// The tensors of the model in a file. `bytes`: of the file.
///
/// # Errors
/// There are several models, or a tensor of the model could not be read.
pub(super) fn understood(found: Found, bytes: &[u8]) -> anyhow::Result<(BTreeMap<String, Entry>, Naming)> {
    let Found { tensors, failed } = found;
    let (prefix, copies) = prefix(&tensors)?;
    for (name, error) in failed {
        if name.starts_with(&prefix) {
            return Err(error.context(format!("tensor `{}`", shown(&name))));
        }
    }
    let mut naming = Naming { prefix, copies, ..Naming::default() };
    let mut model = BTreeMap::new();
    for (name, entry) in tensors {
        match name.strip_prefix(&naming.prefix) {
            Some(rest) => drop(model.insert(rest.to_owned(), entry)),
            None => naming.outside.push(name),
        }
    }
    let translate: (&str, fn(&str) -> Option<String>) = match () {
        () if model.contains_key(TRANSFORMERS_SAM) => ("transformers", transformers_sam),
        () if model.contains_key(TRANSFORMERS_RESNET) => ("transformers", transformers_resnet),
        () if model.contains_key(MXNET_RESNET38) => ("MXNet", mxnet_resnet38),
        () => return Ok((model, naming)),
    };
    naming.translated = Some(translate.0);
    let mut translated: BTreeMap<String, Entry> = BTreeMap::new();
    for (name, entry) in model {
        match translated.entry(translate.1(&name).unwrap_or(name)) {
            Place::Vacant(place) => drop(place.insert(entry)),
            // transformers saves the positions of prompts and of images, which are one tensor, twice.
            Place::Occupied(place) => {
                let data = |entry: &Entry| (entry.dtype, entry.shape.clone(), bytes.get(entry.range.clone()));
                let is_same = data(place.get()) == data(&entry);
                ensure!(is_same, "two tensors that mean `{}` and differ", shown(place.key()));
            }
        }
    }
    Ok((translated, naming))
}

/// What stands before the names of the model in a file, and before those of its copies.
fn prefix(tensors: &BTreeMap<String, Entry>) -> anyhow::Result<(String, Vec<String>)> {
    let before = |name: &String| {
        let prefix = ANCHORS.iter().find_map(|anchor| name.strip_suffix(anchor))?;
        (prefix.is_empty() || prefix.ends_with('.')).then(|| prefix.to_owned())
    };
    let all: BTreeSet<String> = tensors.keys().filter_map(before).collect();
    // A network within another, as a branch of an encoder, is a part of that.
    let is_part = |prefix: &String| all.iter().any(|other| other != prefix && prefix.starts_with(other));
    let (copies, models): (Vec<String>, Vec<String>) =
        all.iter().filter(|prefix| !is_part(prefix)).cloned().partition(|prefix| is_copy(prefix));
    match (&models[..], &copies[..]) {
        ([], []) => Ok((wrapper(tensors), Vec::new())),
        ([model], _) => Ok((model.clone(), copies)),
        ([], [copy]) => Ok((copy.clone(), Vec::new())),
        ([], several) | (several, _) => {
            let named: Vec<String> = several.iter().map(|prefix| format!("`{}`", shown(prefix))).collect();
            let message = format!("it holds {} models, under {}", several.len(), named.join(" and "));
            let hint = "save the state dict of the one that you mean alone; in Python: torch.save(STATE_DICT, \"NEW\")";
            Err(NotACheckpoint::error(message, hint))
        }
    }
}

/// The tensors are those of a model beside it: its moving average, or MoCo's encoder of keys.
fn is_copy(prefix: &str) -> bool {
    let is_average = |word: &str| matches!(word, "ema" | "swa" | "momentum" | "averaged" | "shadow");
    prefix.split('.').any(|part| part == "encoder_k" || part.split('_').any(is_average))
}

/// What stands before all names of a model that is not known here.
fn wrapper(tensors: &BTreeMap<String, Entry>) -> String {
    let is_training = |name: &&String| TRAINING.contains(&name.split('.').next().unwrap_or_default());
    let names: Vec<&String> = tensors.keys().filter(|name| !is_training(name)).collect();
    let mut prefix = String::new();
    while let Some(first) = names.first() {
        let Some((part, _)) = first[prefix.len()..].split_once('.') else { break };
        let longer = format!("{prefix}{part}.");
        if !WRAPPERS.contains(&part) || !names.iter().all(|name| name.starts_with(&longer)) {
            break;
        }
        prefix = longer;
    }
    prefix
}

/// The name in the public checkpoint of a tensor of transformers' `SamModel`.
fn transformers_sam(name: &str) -> Option<String> {
    const POSITIONS: &str = "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix";
    // Parts of names, of which the first that fits is replaced.
    const NECK: [(&str, &str); 5] = [
        ("patch_embed.projection", "patch_embed.proj"),
        ("neck.conv1", "neck.0"),
        ("neck.layer_norm1", "neck.1"),
        ("neck.conv2", "neck.2"),
        ("neck.layer_norm2", "neck.3"),
    ];
    const PROMPTS: [(&str, &str); 6] = [
        ("point_embed.", "point_embeddings."),
        ("mask_embed.conv1", "mask_downscaling.0"),
        ("mask_embed.layer_norm1", "mask_downscaling.1"),
        ("mask_embed.conv2", "mask_downscaling.3"),
        ("mask_embed.layer_norm2", "mask_downscaling.4"),
        ("mask_embed.conv3", "mask_downscaling.6"),
    ];
    const DECODER: [(&str, &str); 3] = [
        ("upscale_conv1", "output_upscaling.0"),
        ("upscale_layer_norm", "output_upscaling.1"),
        ("upscale_conv2", "output_upscaling.3"),
    ];
    const MLP: [(&str, &str); 3] =
        [(".proj_in.", ".layers.0."), (".layers.0.", ".layers.1."), (".proj_out.", ".layers.2.")];
    let start = |rest: &str, table: &[(&str, &str)]| {
        let (theirs, public) = table.iter().find(|(theirs, _)| rest.starts_with(theirs))?;
        Some(rest.replacen(theirs, public, 1))
    };
    if name == "shared_image_embedding.positional_embedding" {
        return Some(POSITIONS.to_owned());
    }
    let (module, rest) = name.split_once('.')?;
    match module {
        "vision_encoder" => {
            let public = start(rest, &NECK).or_else(|| {
                let block = rest.strip_prefix("layers.")?;
                Some(format!("blocks.{}", block.replace(".layer_norm", ".norm")))
            });
            Some(format!("image_encoder.{}", public.unwrap_or_else(|| rest.to_owned())))
        }
        "prompt_encoder" if rest == "shared_embedding.positional_embedding" => Some(POSITIONS.to_owned()),
        "prompt_encoder" => Some(format!("prompt_encoder.{}", start(rest, &PROMPTS)?)),
        "mask_decoder" => {
            let is_mlp = rest.starts_with("iou_prediction_head.") || rest.starts_with("output_hypernetworks_mlps.");
            let public = match is_mlp {
                true => {
                    let (theirs, public) = MLP.iter().find(|(theirs, _)| rest.contains(theirs))?;
                    rest.replacen(theirs, public, 1)
                }
                false => start(rest, &DECODER).unwrap_or_else(|| rest.replace(".layer_norm", ".norm")),
            };
            Some(format!("mask_decoder.{public}"))
        }
        _ => None,
    }
}

/// The name in torchvision of a tensor of transformers' `ResNetModel`:
/// `encoder.stages.0.layers.1.layer.2.convolution.weight` is `layer1.1.conv3.weight`.
fn transformers_resnet(name: &str) -> Option<String> {
    let parts: Vec<&str> = name.split('.').collect();
    match parts[..] {
        ["embedder", "embedder", "convolution", of] => Some(format!("conv1.{of}")),
        ["embedder", "embedder", "normalization", of] => Some(format!("bn1.{of}")),
        ["encoder", "stages", stage, "layers", block, ref of @ ..] => {
            let stage = stage.parse::<u8>().ok()?.checked_add(1)?;
            let layer = |layer: &str| layer.parse::<u8>().ok()?.checked_add(1);
            let of = match *of {
                ["shortcut", "convolution", of] => format!("downsample.0.{of}"),
                ["shortcut", "normalization", of] => format!("downsample.1.{of}"),
                ["layer", i, "convolution", of] => format!("conv{}.{of}", layer(i)?),
                ["layer", i, "normalization", of] => format!("bn{}.{of}", layer(i)?),
                _ => return None,
            };
            Some(format!("layer{stage}.{block}.{of}"))
        }
        _ => None,
    }
}

/// The name in PyTorch of a tensor of the MXNet file of ResNet38d: `bn4b5_branch2b1_gamma` is `b4_5.bn_branch2b1.weight`.
fn mxnet_resnet38(name: &str) -> Option<String> {
    let (layer, part) = name.rsplit_once('_')?;
    let layer = layer.strip_suffix("_moving").unwrap_or(layer);
    let part = match part {
        "weight" | "gamma" => "weight",
        "beta" => "bias",
        "mean" => "running_mean",
        "var" => "running_var",
        _ => return None,
    };
    if matches!(layer, "conv1a" | "bn7") {
        return Some(format!("{layer}.{part}"));
    }
    let (block, branch) = layer.split_once('_')?;
    let (kind, block) = match block.strip_prefix("res") {
        Some(block) => ("conv", block),
        None => ("bn", block.strip_prefix("bn")?),
    };
    let block = match block.split_once('b') {
        Some((level, i)) => format!("b{level}_{i}"),
        None => format!("b{}", block.strip_suffix('a')?),
    };
    Some(format!("{block}.{kind}_{branch}.{part}"))
}

#[cfg(test)]
mod tests {
    use safetensors::tensor::Dtype;

    use super::*;

    fn named(names: &[&str]) -> anyhow::Result<(Vec<String>, Naming)> {
        let entry = || Entry::dense(Dtype::F32, &[1], 0..4).unwrap();
        let tensors: BTreeMap<String, Entry> = names.iter().map(|name| ((*name).to_owned(), entry())).collect();
        let (tensors, naming) = understood(tensors.into(), &[0; 4])?;
        Ok((tensors.into_keys().collect(), naming))
    }

    #[test]
    fn what_stands_before_all_names_is_taken_away() {
        let (sam, resnet) = ("image_encoder.patch_embed.proj.weight", "layer1.0.conv1.weight");
        #[rustfmt::skip]
        let cases: [(&[&str], &str, &[&str]); 12] = [
            (&[""],                                                     "",                         &[]),
            (&["module."],                                              "module.",                  &[]),
            (&["model."],                                               "model.",                   &[]),
            (&["state_dict.model.backbone."],                           "state_dict.model.backbone.", &[]),
            (&["a.name.nobody.knows."],                                 "a.name.nobody.knows.",     &[]),
            (&["module.encoder_q.", "module.encoder_k."],               "module.encoder_q.",        &["module.encoder_k."]),
            (&["module.base_encoder.", "module.momentum_encoder."],     "module.base_encoder.",     &["module.momentum_encoder."]),
            (&["model.", "model_ema."],                                 "model.",                   &["model_ema."]),
            (&["state_dict.", "state_dict_ema."],                       "state_dict.",              &["state_dict_ema."]),
            (&["ema."],                                                 "ema.",                     &[]),
            (&["teacher.backbone."],                                    "teacher.backbone.",        &[]),
            (&["", "ema."],                                             "",                         &[]),
        ];
        for (prefixes, expected, copies) in cases {
            for anchor in [sam, resnet] {
                let names: Vec<String> = prefixes.iter().map(|prefix| format!("{prefix}{anchor}")).collect();
                let mut names: Vec<&str> = names.iter().map(String::as_str).collect();
                names.push("decode_head.weight");
                let (tensors, naming) = named(&names).unwrap();
                assert!(tensors.contains(&anchor.to_owned()), "{prefixes:?}: {tensors:?}");
                assert_eq!(
                    (naming.prefix.as_str(), &naming.copies[..]),
                    (expected, &copies.iter().map(|copy| (*copy).to_owned()).collect::<Vec<_>>()[..])
                );
            }
        }
        // A part of another name is no prefix.
        assert_eq!(named(&["mylayer1.0.conv1.weight"]).unwrap().1, Naming::default());
    }

    #[test]
    fn two_models_in_a_file_are_a_question() {
        for [a, b] in [["student.", "teacher."], ["online.", "target."], ["sam.", "cnn."]] {
            let (a, b) = (format!("{a}layer1.0.conv1.weight"), format!("{b}layer1.0.conv1.weight"));
            let error = named(&[&a, &b]).unwrap_err();
            assert!(error.to_string().starts_with("it holds 2 models, under `"), "{error}");
        }
    }

    #[test]
    fn names_of_transformers() {
        #[rustfmt::skip]
        let cases = [
            ("shared_image_embedding.positional_embedding",          "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"),
            ("prompt_encoder.shared_embedding.positional_embedding", "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"),
            ("vision_encoder.pos_embed",                             "image_encoder.pos_embed"),
            ("vision_encoder.patch_embed.projection.bias",           "image_encoder.patch_embed.proj.bias"),
            ("vision_encoder.layers.11.layer_norm2.weight",          "image_encoder.blocks.11.norm2.weight"),
            ("vision_encoder.layers.0.attn.rel_pos_h",               "image_encoder.blocks.0.attn.rel_pos_h"),
            ("vision_encoder.layers.0.mlp.lin1.bias",                "image_encoder.blocks.0.mlp.lin1.bias"),
            ("vision_encoder.neck.conv2.weight",                     "image_encoder.neck.2.weight"),
            ("vision_encoder.neck.layer_norm2.bias",                 "image_encoder.neck.3.bias"),
            ("prompt_encoder.point_embed.3.weight",                  "prompt_encoder.point_embeddings.3.weight"),
            ("prompt_encoder.mask_embed.conv3.bias",                 "prompt_encoder.mask_downscaling.6.bias"),
            ("prompt_encoder.mask_embed.layer_norm2.weight",         "prompt_encoder.mask_downscaling.4.weight"),
            ("mask_decoder.transformer.layers.1.layer_norm4.bias",   "mask_decoder.transformer.layers.1.norm4.bias"),
            ("mask_decoder.transformer.layer_norm_final_attn.bias",  "mask_decoder.transformer.norm_final_attn.bias"),
            ("mask_decoder.upscale_layer_norm.weight",               "mask_decoder.output_upscaling.1.weight"),
            ("mask_decoder.upscale_conv2.weight",                    "mask_decoder.output_upscaling.3.weight"),
            ("mask_decoder.iou_prediction_head.layers.0.weight",     "mask_decoder.iou_prediction_head.layers.1.weight"),
            ("mask_decoder.output_hypernetworks_mlps.3.proj_out.bias", "mask_decoder.output_hypernetworks_mlps.3.layers.2.bias"),
            ("mask_decoder.iou_token.weight",                        "mask_decoder.iou_token.weight"),
        ];
        for (name, expected) in cases {
            assert_eq!(transformers_sam(name).as_deref(), Some(expected), "{name}");
        }
        assert_eq!(transformers_sam("prompt_encoder.no_mask_embed.weight"), None, "it stays as it is");
        #[rustfmt::skip]
        let cases = [
            ("embedder.embedder.normalization.running_var",              "bn1.running_var"),
            ("encoder.stages.0.layers.1.layer.2.convolution.weight",     "layer1.1.conv3.weight"),
            ("encoder.stages.3.layers.0.layer.0.normalization.bias",     "layer4.0.bn1.bias"),
            ("encoder.stages.1.layers.0.shortcut.convolution.weight",    "layer2.0.downsample.0.weight"),
            ("encoder.stages.1.layers.0.shortcut.normalization.weight",  "layer2.0.downsample.1.weight"),
        ];
        for (name, expected) in cases {
            assert_eq!(transformers_resnet(name).as_deref(), Some(expected), "{name}");
        }
        let (tensors, naming) = named(&["resnet.embedder.embedder.convolution.weight", "classifier.1.weight"]).unwrap();
        assert_eq!((tensors, naming.translated), (vec!["conv1.weight".to_owned()], Some("transformers")));
        assert_eq!(naming.outside, ["classifier.1.weight"]);
    }

    #[test]
    fn names_are_shown_without_what_a_terminal_acts_on() {
        assert_eq!(shown("a\x1b[31m\nb\u{202e}"), "a\\u{1b}[31m\\nb\\u{202e}");
        assert_eq!(shown("layer1.0 'é'"), "layer1.0 'é'");
    }

    #[test]
    fn names_of_mxnet() {
        #[rustfmt::skip]
        let cases = [
            ("conv1a_weight",              Some("conv1a.weight")),
            ("res2a_branch1_weight",       Some("b2.conv_branch1.weight")),
            ("res2a_branch2a_weight",      Some("b2.conv_branch2a.weight")),
            ("res4b5_branch2b1_weight",    Some("b4_5.conv_branch2b1.weight")),
            ("bn4b5_branch2b1_gamma",      Some("b4_5.bn_branch2b1.weight")),
            ("bn6a_branch2b2_beta",        Some("b6.bn_branch2b2.bias")),
            ("bn6a_branch2a_moving_mean",  Some("b6.bn_branch2a.running_mean")),
            ("bn7_moving_var",             Some("bn7.running_var")),
            ("linear1000_weight",          None),
            ("linear1000_bias",            None),
            ("softmax_label",              None),
        ];
        for (name, expected) in cases {
            assert_eq!(mxnet_resnet38(name).as_deref(), expected, "{name}");
        }
    }
}
