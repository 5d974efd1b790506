//! Weights as people have them: under other names, with tensors that nothing reads, with numbers that are not finite, and
//! what is no file at all.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use s2c_pipe::data::image::encode_rgb;
use s2c_pipe::model::weights::{Weights, to_safetensors};
use s2c_pipe::vision::Rgb;
use tch::{Kind, Tensor};

use crate::program::{call, text, write_pipeline};

/// Tensors of a file in pipelines/weights.
type State = BTreeMap<String, Tensor>;

fn state(file: &str) -> State {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("pipelines/weights").join(file);
    let weights = Weights::parse(fs::read(path).unwrap()).unwrap();
    weights.names().map(|name| (name.to_owned(), weights.raw(name).unwrap())).collect()
}

/// `a.png`, which `segment` looks at before it looks at weights.
fn write_picture(folder: &Path) {
    let picture = Rgb { height: 4, width: 4, data: vec![9; 48] };
    fs::write(folder.join("a.png"), encode_rgb(&picture)).unwrap();
}

fn save(folder: &Path, name: &str, tensors: &State) -> PathBuf {
    let path = folder.join(name);
    fs::write(&path, to_safetensors(tensors.iter().map(|(name, tensor)| (name.as_str(), tensor))).unwrap()).unwrap();
    path
}

fn renamed(tensors: &State, name: impl Fn(&str) -> String) -> State {
    tensors.iter().map(|(of, tensor)| (name(of), tensor.shallow_clone())).collect()
}

/// As transformers names the tensors of a ResNet and of SAM's prompt encoder and decoder, said from the public names.
fn transformers_resnet(name: &str) -> String {
    let parts: Vec<&str> = name.split('.').collect();
    let number = |text: &str| text.trim_start_matches(|c: char| !c.is_ascii_digit()).parse::<usize>().unwrap() - 1;
    let kind = |part: &str| if part.starts_with("conv") { "convolution" } else { "normalization" };
    match parts[..] {
        ["conv1", of] => format!("resnet.embedder.embedder.convolution.{of}"),
        ["bn1", of] => format!("resnet.embedder.embedder.normalization.{of}"),
        [layer, block, "downsample", i, of] => {
            let kind = if i == "0" { "convolution" } else { "normalization" };
            format!("resnet.encoder.stages.{}.layers.{block}.shortcut.{kind}.{of}", number(layer))
        }
        [layer, block, part, of] => {
            format!("resnet.encoder.stages.{}.layers.{block}.layer.{}.{}.{of}", number(layer), number(part), kind(part))
        }
        _ => format!("classifier.1.{}", parts.last().unwrap()),
    }
}

fn transformers_sam(name: &str) -> String {
    // In this order, as its conversion has it.
    const PARTS: [(&str, &str); 18] = [
        ("iou_prediction_head.layers.0", "iou_prediction_head.proj_in"),
        ("iou_prediction_head.layers.1", "iou_prediction_head.layers.0"),
        ("iou_prediction_head.layers.2", "iou_prediction_head.proj_out"),
        ("mask_decoder.output_upscaling.0", "mask_decoder.upscale_conv1"),
        ("mask_decoder.output_upscaling.1", "mask_decoder.upscale_layer_norm"),
        ("mask_decoder.output_upscaling.3", "mask_decoder.upscale_conv2"),
        ("mask_downscaling.0", "mask_embed.conv1"),
        ("mask_downscaling.1", "mask_embed.layer_norm1"),
        ("mask_downscaling.3", "mask_embed.conv2"),
        ("mask_downscaling.4", "mask_embed.layer_norm2"),
        ("mask_downscaling.6", "mask_embed.conv3"),
        ("point_embeddings", "point_embed"),
        ("pe_layer.positional_encoding_gaussian_matrix", "shared_embedding.positional_embedding"),
        ("image_encoder", "vision_encoder"),
        ("neck.2", "neck.conv2"),
        ("patch_embed.proj", "patch_embed.projection"),
        (".norm", ".layer_norm"),
        ("blocks", "layers"),
    ];
    let name = PARTS.iter().fold(name.to_owned(), |name, (public, theirs)| name.replace(public, theirs));
    match name.contains("output_hypernetworks_mlps") {
        true => {
            let (start, end) = name.split_once(".layers.").unwrap();
            let (layer, of) = end.split_once('.').unwrap();
            format!("{start}.{}.{of}", ["proj_in", "layers.0", "proj_out"][layer.parse::<usize>().unwrap()])
        }
        false => name,
    }
}

/// All tensors of the first are in the second, bit for bit.
fn assert_same(expected: &State, bytes: &[u8], what: &str) {
    let found = Weights::parse(bytes).unwrap();
    for (name, tensor) in expected {
        let found = found.raw(name).unwrap_or_else(|error| panic!("{what}: {error:#}"));
        assert!(found.equal(tensor), "{what}: {name}");
    }
}

#[test]
fn a_checkpoint_under_other_names_is_the_same_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let (sam, resnet) = (state("mobile_sam.f16.safetensors"), state("resnet50_v1.f16.safetensors"));
    for prefix in ["module.", "model.", "sam.", "state_dict.model.module."] {
        let path = save(dir.path(), "sam.safetensors", &renamed(&sam, |name| format!("{prefix}{name}")));
        assert_same(&sam, &fs::read(&path).unwrap(), prefix);
        let said = text(&call(dir.path(), &["weights", "inspect", &path.to_string_lossy()]));
        let expected = format!("`{prefix}` was taken away before each");
        assert!(said.contains("MobileSAM") && said.contains(&expected), "{said}");
    }
    let no_fc: State =
        renamed(&resnet, str::to_owned).into_iter().filter(|(name, _)| !name.starts_with("fc.")).collect();
    // MoCo: the encoder of queries is taken, and that is said.
    let mut moco = renamed(&no_fc, |name| format!("module.encoder_q.{name}"));
    moco.extend(no_fc.iter().map(|(name, tensor)| (format!("module.encoder_k.{name}"), tensor + 1.0)));
    let path = save(dir.path(), "moco.safetensors", &moco);
    assert_same(&no_fc, &fs::read(&path).unwrap(), "MoCo");
    let said = text(&call(dir.path(), &["weights", "inspect", &path.to_string_lossy()]));
    let expected = "the model under `module.encoder_q.` is taken, not the one under `module.encoder_k.`";
    assert!(said.contains(expected) && said.contains("fits        classifier.weights"), "{said}");
    // Two that nothing tells apart.
    let mut two = renamed(&no_fc, |name| format!("student.{name}"));
    two.extend(renamed(&no_fc, |name| format!("teacher.{name}")));
    let path = save(dir.path(), "two.safetensors", &two);
    let output = call(dir.path(), &["weights", "inspect", &path.to_string_lossy()]);
    let said = text(&output);
    assert_eq!(output.status.code(), Some(1));
    assert!(said.contains("it holds 2 models, under `student.` and `teacher.`") && said.contains("hint: "), "{said}");

    let path = save(dir.path(), "hf.safetensors", &renamed(&resnet, transformers_resnet));
    assert_same(&no_fc, &fs::read(&path).unwrap(), "transformers");
    let said = text(&call(dir.path(), &["weights", "inspect", &path.to_string_lossy()]));
    assert!(said.contains("ResNet-50") && said.contains("translated from those of transformers"), "{said}");
    // transformers has no MobileSAM; the parts that it shares with SAM, beside what a ViT begins with.
    let parts: State =
        renamed(&sam, str::to_owned).into_iter().filter(|(name, _)| !name.starts_with("image_")).collect();
    let mut theirs = renamed(&parts, transformers_sam);
    let patches = Tensor::zeros([768, 3, 16, 16], (Kind::Half, tch::Device::Cpu));
    theirs.insert("vision_encoder.patch_embed.projection.weight".to_owned(), patches.shallow_clone());
    let positions = theirs["prompt_encoder.shared_embedding.positional_embedding"].shallow_clone();
    theirs.insert("shared_image_embedding.positional_embedding".to_owned(), positions.shallow_clone());
    let path = save(dir.path(), "hf-sam.safetensors", &theirs);
    assert_same(&parts, &fs::read(&path).unwrap(), "transformers' SAM");
    theirs.insert("shared_image_embedding.positional_embedding".to_owned(), positions + 1.0);
    let path = save(dir.path(), "hf-sam.safetensors", &theirs);
    let said = text(&call(dir.path(), &["weights", "inspect", &path.to_string_lossy()]));
    assert!(said.contains("two tensors that mean `prompt_encoder.pe_layer"), "{said}");
}

#[test]
fn what_makes_a_checkpoint_another_network_is_named_before_work_starts() {
    let dir = tempfile::tempdir().unwrap();
    write_picture(dir.path());
    write_pipeline(dir.path(), crate::program::TINY);
    let (sam, resnet) = (state("mobile_sam.f16.safetensors"), state("resnet50_v1.f16.safetensors"));
    let one = |value: f64| Tensor::full([2, 2], value, (Kind::Half, tch::Device::Cpu));
    let nan = f64::NAN;
    /// Whether the tensor is added, or one of that name has its first number changed.
    enum Change {
        Add,
        Set(f64),
    }
    use Change::{Add, Set};
    #[rustfmt::skip]
    let cases: [(&str, &str, Change, &str, &str); 14] = [
        ("sam", "mask_decoder.hf_token.weight",                     Add, "this is SAM-HQ",                 "use the SAM or MobileSAM checkpoint"),
        ("sam", "mask_decoder.compress_vit_feat.0.weight",          Add, "this is SAM-HQ",                 "use the SAM or MobileSAM checkpoint"),
        ("sam", "image_encoder.layers.1.blocks.0.MLP_Adapter.D_fc1.weight", Add, "these are adapters",     "that the adapters were trained upon"),
        ("sam", "image_encoder.layers.1.blocks.0.attn.qkv.lora_A.weight", Add, "these are weights of LoRA", "merge them"),
        ("sam", "image_encoder.layers.1.blocks.0.attn.qkv.linear_a_q.weight", Add, "these are weights of LoRA", "merge them"),
        ("sam", "memory_attention.layers.0.norm1.weight",           Add, "this is SAM 2",                  "SAM 1"),
        ("sam", "image_encoder.a\x1b[31mb",                         Add, "nothing reads `image_encoder.a\\u{1b}[31mb`", "plain network"),
        ("sam", "mask_decoder.iou_token.weight",                    Set(nan), "tensor `mask_decoder.iou_token.weight` has 1 of 256 numbers that are not finite", "f16 has no number above 65504"),
        ("sam", "prompt_encoder.no_mask_embed.weight",              Set(f64::INFINITY), "tensor `prompt_encoder.no_mask_embed.weight` has 1 of 256", "take it in f32"),
        ("resnet", "layer2.0.adapter.weight",                       Add, "these are adapters",             "that the adapters were trained upon"),
        ("resnet", "layer3.1.se.fc1.weight",                        Add, "nothing reads `layer3.1.se.fc1.weight`", "plain network"),
        ("resnet", "conv1.bias",                                    Add, "nothing reads `conv1.bias`",     "plain network"),
        ("resnet", "layer4.2.conv3.weight",                         Set(-f64::INFINITY), "tensor `layer4.2.conv3.weight` has 1 of 1048576", "take it in f32"),
        ("resnet", "layer1.0.bn1.running_var",                      Set(-1.0), "tensor `layer1.0.bn1.running_var` has 1 variances below 0", "is damaged"),
    ];
    for (of, name, change, error, hint) in cases {
        let mut tensors = renamed(if of == "sam" { &sam } else { &resnet }, str::to_owned);
        match change {
            Add => drop(tensors.insert(name.to_owned(), one(0.25))),
            Set(value) => {
                let changed = tensors[name].copy();
                let _ = changed.view([-1]).narrow(0, 0, 1).fill_(value);
                tensors.insert(name.to_owned(), changed);
            }
        }
        let path = save(dir.path(), "x.safetensors", &tensors);
        let path = path.to_string_lossy();
        let said = text(&call(dir.path(), &["weights", "inspect", &path]));
        assert!(said.contains(error) && said.contains(hint) && !said.contains('\x1b'), "inspect {name}: {said}");
        let field = if of == "sam" { "sam.weights" } else { "classifier.weights" };
        let output = call(dir.path(), &["plan", "tiny.toml", "--set", &format!("{field}={path}")]);
        let said = text(&output);
        assert_eq!(output.status.code(), Some(1), "{name}: {said}");
        let line = |start: &str| said.lines().find(|line| line.starts_with(start)).unwrap_or_default().to_owned();
        assert!(line("error: ").contains(error) && line("hint: ").contains(hint), "plan {name}: {said}");
        if of == "sam" {
            let output = call(dir.path(), &["segment", "a.png", "--weights", &path]);
            let said = text(&output);
            assert!(!output.status.success() && said.contains(error) && said.contains(hint), "segment {name}: {said}");
        }
    }
}

#[test]
fn what_published_files_have_beside_the_network_is_no_fault() {
    let dir = tempfile::tempdir().unwrap();
    let (sam, resnet) = (state("mobile_sam.f16.safetensors"), state("resnet50_v1.f16.safetensors"));
    let cases: [(&State, &[&str], &str); 4] = [
        (&sam, &["image_encoder.head.weight", "image_encoder.norm_head.bias", "pixel_mean"], "ignored"),
        (&sam, &["image_encoder.layers.1.blocks.0.attn.attention_bias_idxs"], "ignored"),
        (&resnet, &["bn1.num_batches_tracked", "fc.0.weight", "head.cam.weight", "momentum.conv1.weight"], "ignored"),
        (
            &resnet,
            &["decode_head.conv_seg.weight", "auxiliary_head.adapter.weight"],
            "not read, since they stand outside",
        ),
    ];
    for (tensors, more, expected) in cases {
        let mut tensors = renamed(tensors, str::to_owned);
        tensors.extend(more.iter().map(|name| ((*name).to_owned(), Tensor::from_slice(&[1f32]).view([1, 1, 1, 1]))));
        let path = save(dir.path(), "x.safetensors", &tensors);
        let said = text(&call(dir.path(), &["weights", "inspect", &path.to_string_lossy()]));
        assert!(!said.contains("fits        nothing") && said.contains(expected), "{more:?}: {said}");
    }
}

#[test]
fn what_is_no_file_is_one_line_and_no_hang() {
    let dir = tempfile::tempdir().unwrap();
    write_pipeline(dir.path(), crate::program::TINY);
    write_picture(dir.path());
    assert!(std::process::Command::new("mkfifo").arg(dir.path().join("pipe")).status().unwrap().success());
    fs::File::create(dir.path().join("hole")).unwrap().set_len(1 << 40).unwrap();
    for (path, error) in [
        ("pipe", "it is a named pipe, not a file"),
        ("/dev/zero", "it is a device, not a file"),
        (".", "it is a folder, not a file"),
    ] {
        for args in [
            &["weights", "inspect", path][..],
            &["segment", "a.png", "--weights", path],
            &["plan", "tiny.toml", "--set", &format!("sam.weights={path}")],
        ] {
            let output = call(dir.path(), args);
            let said = text(&output);
            assert_eq!(output.status.code(), Some(1), "{args:?}: {said}");
            assert!(said.contains(error) && said.contains("hint: "), "{args:?}: {said}");
        }
    }
    let said = text(&call(dir.path(), &["weights", "inspect", "hole"]));
    assert!(said.contains("it has 1099511627776 bytes"), "{said}");
}
