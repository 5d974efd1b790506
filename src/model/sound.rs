//! Whether a checkpoint that was loaded is whole: tensors that nothing asked for, and numbers that cannot be computed with.

use super::weights::{Weights, shown};

/// A network whose tensors were asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    Sam,
    Resnet,
    Resnet38d,
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Soundness {
    pub problem: Option<Problem>,
    /// For people: what they should know, and need not act on.
    pub notes: Vec<String>,
    /// Tensors that are not read and change nothing.
    pub ignored: Vec<String>,
}

/// Why a checkpoint cannot be used, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub what: String,
    pub hint: String,
}

/// Tensors of a network that is made from one of ours and is another.
struct Family {
    /// Parts of names, in lower case, that such tensors have: whole ones, or the beginning of one where `*` ends it.
    parts: &'static [&'static str],
    what: &'static str,
    hint: &'static str,
}

const MERGE: &str = "merge them into the weights and save the merged state dict, or take the checkpoint that they were \
                     trained upon";
const FAMILIES: [Family; 6] = [
    Family {
        parts: &[
            "hf_token",
            "hf_mlp",
            "compress_vit_feat",
            "embedding_encoder",
            "embedding_maskfeature",
            "hq_token",
            "hq_mask_mlp",
            "compress_vit_conv*",
            "hq_encoder_conv*",
            "hq_mask_conv*",
        ],
        what: "this is SAM-HQ, which s2c-pipe does not read",
        hint: "use the SAM or MobileSAM checkpoint that it was made from",
    },
    Family {
        parts: &["trunk", "memory_attention", "memory_encoder", "maskmem_tpos_enc", "sam_mask_decoder", "obj_ptr_proj"],
        what: "this is SAM 2, which s2c-pipe does not read",
        hint: "use a checkpoint of SAM 1 (ViT-B, L or H) or MobileSAM",
    },
    Family {
        parts: &["bbox_top_left_embeddings", "final_output_upscaling_layers"],
        what: "this is EfficientSAM, which s2c-pipe does not read",
        hint: "use a checkpoint of SAM 1 (ViT-B, L or H) or MobileSAM",
    },
    Family {
        parts: &["*lora*", "linear_a_*", "linear_b_*", "w_a_*", "w_b_*", "base_layer"],
        what: "these are weights of LoRA, which s2c-pipe would leave out",
        hint: MERGE,
    },
    Family {
        parts: &["*adapter*", "prompt_generator", "adaptmlp*"],
        what: "these are adapters, which change what the network computes and which s2c-pipe does not have",
        hint: "take the checkpoint that the adapters were trained upon",
    },
    Family {
        parts: &["scb", "quant_map", "quant_state*", "weight_scale", "weight_format", "absmax", "qweight", "scales"],
        what: "these are quantised weights, which s2c-pipe does not read",
        hint: "take the checkpoint in f32 or f16",
    },
];

impl Family {
    fn has(&self, name: &str) -> bool {
        let name = name.to_ascii_lowercase();
        name.split('.').any(|part| {
            self.parts.iter().any(|known| match (known.strip_prefix('*'), known.strip_suffix('*')) {
                (Some(inner), Some(_)) => part.contains(inner.trim_end_matches('*')),
                (_, Some(start)) => part.starts_with(start),
                _ => part == *known,
            })
        })
    }
}

impl Network {
    /// The tensor is of the network itself, not of a head upon it.
    fn has(self, name: &str) -> bool {
        let first = name.split('.').next().unwrap_or_default();
        match self {
            Self::Sam => matches!(first, "image_encoder" | "prompt_encoder" | "mask_decoder"),
            Self::Resnet => matches!(first, "conv1" | "bn1" | "layer1" | "layer2" | "layer3" | "layer4"),
            Self::Resnet38d => {
                let level = first.strip_prefix('b').and_then(|rest| rest.split('_').next());
                matches!(first, "conv1a" | "bn7")
                    || level.is_some_and(|level| matches!(level, "2" | "3" | "4" | "5" | "6" | "7"))
            }
        }
    }

    /// Published files have it, and what the network computes does not need it.
    fn ignores(self, name: &str) -> bool {
        // Counters, and places in tables that are made anew.
        const BUFFERS: [&str; 3] = ["num_batches_tracked", "attention_bias_idxs", "relative_position_index"];
        let is_buffer = |last: &str| BUFFERS.contains(&last);
        let first = name.split(['.', '_']).next().unwrap_or_default();
        is_buffer(name.rsplit('.').next().unwrap_or_default())
            || matches!(name, "pixel_mean" | "pixel_std" | "softmax_label")
            || match self {
                // Of the classifier that TinyViT was before.
                Self::Sam => name.starts_with("image_encoder.head.") || name.starts_with("image_encoder.norm_head."),
                Self::Resnet => matches!(first, "fc" | "classifier" | "head" | "momentum"),
                Self::Resnet38d => matches!(first, "fc8" | "linear1000" | "head" | "momentum" | "f8" | "f9"),
            }
    }
}

/// Names of a few, and how many more there are.
fn some(names: &[&str]) -> String {
    let named: Vec<String> = names.iter().take(3).map(|name| format!("`{}`", shown(name))).collect();
    let more = names.len().saturating_sub(named.len());
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{}{more}", named.join(", "))
}

/// What family a checkpoint is of that is none of ours, told by tensors that nothing asked for.
pub fn stranger(weights: &Weights, network: Option<Network>) -> Option<Problem> {
    let outside = weights.naming().outside.iter().map(String::as_str).filter(|_| network == Some(Network::Sam));
    let is_inside = |name: &&str| match network {
        Some(Network::Resnet | Network::Resnet38d) => network.is_some_and(|network| network.has(name)),
        _ => true,
    };
    let unread: Vec<&str> = weights.asked(false).into_iter().filter(is_inside).chain(outside).collect();
    FAMILIES.iter().find_map(|family| {
        let of_it: Vec<&str> = unread.iter().copied().filter(|name| family.has(name)).collect();
        let are = if of_it.len() == 1 { "is" } else { "are" };
        (!of_it.is_empty()).then(|| Problem {
            what: format!("{} {are} not read: {}", some(&of_it), family.what),
            hint: family.hint.to_owned(),
        })
    })
}

/// Of a checkpoint from which the network was loaded.
pub fn sound(weights: &Weights, network: Network) -> anyhow::Result<Soundness> {
    let naming = weights.naming();
    let mut found = Soundness::default();
    if !naming.copies.is_empty() {
        let (prefix, copies): (_, Vec<&str>) =
            (shown(&naming.prefix), naming.copies.iter().map(String::as_str).collect());
        found.notes.push(format!("the model under `{prefix}` is taken, not the one under {}", some(&copies)));
    }
    if let Some(problem) = stranger(weights, Some(network)) {
        return Ok(Soundness { problem: Some(problem), ..found });
    }
    let unread = weights.asked(false);
    let (ignored, unread): (Vec<&str>, Vec<&str>) = unread.into_iter().partition(|name| network.ignores(name));
    let (inside, outside): (Vec<&str>, Vec<&str>) = unread.into_iter().partition(|name| network.has(name));
    if !inside.is_empty() {
        let what = format!("nothing reads {}, so it is another network than it looks", some(&inside));
        let hint = "take the checkpoint of the plain network, or take these tensors out if they change nothing in it";
        return Ok(Soundness { problem: Some(Problem { what, hint: hint.to_owned() }), ..found });
    }
    if !outside.is_empty() {
        found.notes.push(format!("not read, since they stand outside of the network: {}", some(&outside)));
    }
    found.ignored = ignored.into_iter().map(str::to_owned).collect();
    found.problem = numbers(weights, network, &mut found.notes)?;
    Ok(found)
}

/// What is wrong with the numbers of what is read: of the network, and of our own heads upon it.
fn numbers(weights: &Weights, network: Network, notes: &mut Vec<String>) -> anyhow::Result<Option<Problem>> {
    let is_head = |name: &&str| ["head.", "f8_", "f9.", "fc_edge", "fc_dp"].iter().any(|start| name.starts_with(start));
    let read = weights.asked(true);
    let heads = weights.asked(false).into_iter().filter(|name| network != Network::Sam && is_head(name));
    let (mut faulty, mut n_equal, mut n_looked): (Vec<(&str, String, &str)>, usize, usize) = (Vec::new(), 0, 0);
    for name in read.iter().copied().chain(heads) {
        let numbers = weights.numbers(name)?;
        let is_variance = name.ends_with("running_var");
        n_looked += 1;
        n_equal += usize::from(numbers.are_equal);
        let is_half = || weights.entries().any(|(of, entry)| of == name && entry.dtype() == safetensors::Dtype::F16);
        let (n, numel) = (numbers.not_finite, weights.shape(name).unwrap_or_default().iter().product::<i64>());
        if numbers.are_integers {
            let hint = "it is quantised: take the checkpoint in f32 or f16";
            faulty.push((name, "holds integers".to_owned(), hint));
        } else if is_variance && n > 0 && n == numbers.infinite && is_half() {
            // A number over an infinite variance is 0, which can be computed with.
            notes.push(format!(
                "`{}` has {n} of {numel} variances that f16 cannot hold; these channels are constant",
                shown(name)
            ));
        } else if n > 0 {
            let hint = match is_half() {
                true => "f16 has no number above 65504, and what is larger is lost when it is saved so: take it in f32",
                false => "the file is damaged, or its training failed: take another checkpoint",
            };
            faulty.push((name, format!("has {n} of {numel} numbers that are not finite (NaN or infinite)"), hint));
        } else if is_variance && numbers.below_zero > 0 {
            let hint = "a variance is never below 0: the file is damaged, take another";
            faulty.push((name, format!("has {} variances below 0", numbers.below_zero), hint));
        }
    }
    if n_looked > 0 && n_equal == n_looked {
        notes.push("each of its tensors has one value throughout, so nothing was trained in it".to_owned());
    }
    Ok(faulty.first().map(|(name, fault, hint)| {
        let more = match faulty.len() - 1 {
            0 => String::new(),
            1 => "; so has 1 other tensor".to_owned(),
            n => format!("; so have {n} other tensors"),
        };
        Problem { what: format!("tensor `{}` {fault}{more}", shown(name)), hint: (*hint).to_owned() }
    }))
}
