//! AffinityNet and IRN: losses, networks and labels against `tests/golden/affinity`, epochs across a stop, and both as
//! refinements of the pipeline of [`crate::program`].

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use s2c_pipe::artifact::{Fingerprint, FingerprintInput, SetListing};
use s2c_pipe::data::image::{decode_label_map, encode_label_map, encode_rgb};
use s2c_pipe::data::rng::stream;
use s2c_pipe::model::Compute;
use s2c_pipe::model::affinity::{PairLoss, irn, psa};
use s2c_pipe::model::backbone::{Architecture, BackboneConfig};
use s2c_pipe::model::irn::IrnNet;
use s2c_pipe::model::psa::PsaNet;
use s2c_pipe::model::resnet::{Depth, StrideIn};
use s2c_pipe::model::weights::{Weights, to_safetensors};
use s2c_pipe::stage::affinity::PairLosses;
use s2c_pipe::stage::affinity_label::AffinityLabel;
use s2c_pipe::stage::cam_file::write_cam;
use s2c_pipe::stage::irn_epoch::IrnEpoch;
use s2c_pipe::stage::psa_epoch::PsaEpoch;
use s2c_pipe::stage::seg_crf::CrfSet;
use s2c_pipe::stage::{Interrupted, Output, Stage, StageContext, UnitInput};
use s2c_pipe::vision::{Cam, IGNORE, Rgb};
use safetensors::SafeTensors;
use serde_json::{Value, json};
use tch::{Kind, Tensor};

use crate::backbone::{checkpoint, weight};
use crate::cam_epoch::{Store, picture};
use crate::close::{EXACT, assert_same_slope, slices};
use crate::device::{device, stage_device, there};
use crate::program::{call, digests, finished_copy, plan, succeeds, text, to_run, walk};
use crate::sam_refine::run;
use crate::train::{assert_close, file};

fn wave(shape: &[i64], step: f64) -> Tensor {
    let angles = Tensor::arange(shape.iter().product::<i64>(), (Kind::Double, tch::Device::Cpu)) * step;
    there(&angles.sin().to_kind(Kind::Float).view(shape))
}

fn golden() -> Weights {
    file("tests/golden/affinity/golden.safetensors")
}

fn leaf(x: Tensor) -> Tensor {
    x.set_requires_grad(true)
}

fn check_loss<const N: usize>(name: &str, loss: &PairLoss<N>, inputs: &[(&str, &Tensor)]) {
    let golden = golden();
    assert_close(&golden, &format!("{name}.terms"), &Tensor::stack(&loss.terms, 0), 1e-5);
    assert_close(&golden, &format!("{name}.total"), &loss.total.view(1), 1e-5);
    loss.total.backward();
    for (which, input) in inputs {
        assert_close(&golden, &format!("{name}.grad.{which}"), &input.grad(), 1e-4);
    }
}

#[test]
fn losses_and_their_gradients_agree_with_their_equations() {
    let places = Tensor::arange(2 * 11 * 13, (Kind::Int64, device())).view([2, 11, 13]);
    let labels = (places * 7).floor_divide_scalar(30).remainder(4);
    let labels = labels.masked_fill(&labels.eq(3), i64::from(IGNORE));
    for radius in [3, 5] {
        let feat = leaf(wave(&[2, 6, 11, 13], 0.37));
        check_loss(&format!("psa.{radius}"), &psa(&feat, &labels, radius), &[("feat", &feat)]);
        let edge = leaf(wave(&[2, 1, 11, 13], 0.61) * 3.0);
        let displacement = leaf(wave(&[2, 2, 11, 13], 0.23) * 4.0);
        let loss = irn(&edge, &displacement, &labels, radius);
        check_loss(&format!("irn.{radius}"), &loss, &[("edge", &edge), ("displacement", &displacement)]);
    }
    // Nothing to learn from is no loss.
    let feat = leaf(wave(&[2, 6, 11, 13], 0.37));
    let loss = psa(&feat, &labels.full_like(i64::from(IGNORE)), 5);
    loss.total.backward();
    assert_eq!((loss.total.double_value(&[]), feat.grad().abs().max().double_value(&[])), (0.0, 0.0));
}

/// Some weights with new layers of given shapes beside them.
fn with_layers(weights: &Weights, layers: &[(String, Vec<i64>)]) -> Weights {
    let kept = weights.names().map(|name| (name.to_owned(), weights.raw(name).unwrap()));
    let new = layers.iter().map(|(name, shape)| (name.clone(), weight(name, shape)));
    let all: Vec<(String, Tensor)> = kept.chain(new).collect();
    Weights::parse(to_safetensors(all.iter().map(|(name, tensor)| (name.as_str(), tensor))).unwrap()).unwrap()
}

fn config(architecture: Architecture, output_stride: i64, compute: Compute) -> BackboneConfig {
    BackboneConfig { architecture, output_stride, compute, device: device() }
}

/// What a network makes of an image, by name, and its trained tensors.
type Pass = (Vec<(&'static str, Tensor)>, Vec<(String, Tensor)>);

/// Outputs, and gradients of their mean squares, of the tensors the golden file has.
fn check_net(name: &str, pass: impl Fn(Compute) -> Pass) {
    let (golden, of) = (golden(), format!("{name}.grad."));
    let [exact, rounded] = [(Compute::F64, EXACT), (Compute::F32, 1e-3)].map(|(compute, tolerance)| {
        let (outputs, trained) = pass(compute);
        for (which, output) in &outputs {
            assert_close(&golden, &format!("{name}.{which}"), &slices(output, 256), tolerance);
        }
        let losses: Vec<Tensor> = outputs.iter().map(|(_, output)| output.square().mean(output.kind())).collect();
        Tensor::stack(&losses, 0).sum(losses[0].kind()).backward();
        let trained = trained.into_iter().filter(|(part, _)| golden.contains(&format!("{of}{part}")));
        trained.map(|(part, value)| (part, value.grad())).collect::<Vec<_>>()
    });
    assert_eq!(exact.len(), golden.names().filter(|known| known.starts_with(&of)).count(), "not all are trained");
    for (part, gradient) in &exact {
        assert_close(&golden, &format!("{of}{part}"), &slices(gradient, 16), EXACT);
    }
    assert_same_slope(name, &rounded, &exact);
}

fn psa_layers(sides: [i64; 3]) -> Vec<(String, Vec<i64>)> {
    let of = |name: &str, to: i64, from: i64| (name.to_owned(), vec![to, from, 1, 1]);
    let [first, second, third] = sides;
    vec![
        of("f8_3.weight", 64, first),
        of("f8_4.weight", 128, second),
        of("f8_5.weight", 256, third),
        of("f9.weight", 448, 448),
    ]
}

#[test]
fn networks_on_resnet_50_agree_with_pytorch() {
    let weights = file("pipelines/weights/resnet50_v1.f16.safetensors");
    let config = |compute| config(Architecture::Resnet(Depth::D50, StrideIn::Conv1), 16, compute);
    let image = wave(&[2, 3, 75, 52], 0.37);
    let rng = || stream(0, 0, "", "");
    let with_psa = with_layers(&weights, &psa_layers([512, 1024, 2048]));
    check_net("psa.resnet50", |compute| {
        let net = PsaNet::load(&with_psa, &config(compute), &mut rng()).unwrap();
        let feat = net.forward(&image, None);
        assert_eq!(feat.size(), [2, 448, 10, 7]);
        (vec![("feat", feat)], net.trained())
    });

    // Shapes are those of a net of random layers.
    let new = IrnNet::load(&weights, &weights, &config(Compute::F32), &mut rng()).unwrap();
    let shapes: Vec<_> = new.trained().into_iter().map(|(name, value)| (name, value.size())).collect();
    let layers = with_layers(&Weights::parse(to_safetensors([]).unwrap()).unwrap(), &shapes);
    let irn = |compute| IrnNet::load(&weights, &layers, &config(compute), &mut rng()).unwrap();
    check_net("irn.resnet50", |compute| {
        let net = irn(compute);
        let output = net.forward(&image);
        assert_eq!((output.edge.size(), output.displacement.size()), (vec![2, 1, 19, 13], vec![2, 2, 19, 13]));
        (vec![("edge", output.edge), ("displacement", output.displacement)], net.trained())
    });
    for (compute, tolerance) in [(Compute::F64, EXACT), (Compute::F32, 1e-3)] {
        let edges = irn(compute).edges(&image.narrow(0, 0, 1));
        assert_close(&golden(), "irn.resnet50.edges", &slices(&edges, 256), tolerance);
    }
}

#[test]
fn affinity_net_on_resnet38d_agrees_with_pytorch() {
    let shapes = crate::backbone::golden().1;
    let weights = with_layers(&checkpoint(&shapes["resnet38d"]), &psa_layers([512, 1024, 4096]));
    let config = |compute| config(Architecture::Resnet38d, 8, compute);
    let mut rng = stream(0, 0, "", "");
    check_net("psa.resnet38d", |compute| {
        let net = PsaNet::load(&weights, &config(compute), &mut stream(0, 0, "", "")).unwrap();
        (vec![("feat", net.forward(&wave(&[1, 3, 36, 28], 0.37), None))], net.trained())
    });
    let error = IrnNet::load(&weights, &weights, &config(Compute::F32), &mut rng).unwrap_err();
    assert!(error.to_string().contains("the levels of a ResNet"), "{error}");
}

/// The picture, the CAM and the labels of labels.py.
#[test]
fn labels_to_learn_from_are_those_of_pydensecrf() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/affinity/labels.safetensors");
    let bytes = fs::read(path).unwrap();
    let golden = SafeTensors::deserialize(&bytes).unwrap();
    let image = golden.tensor("image").unwrap();
    let (height, width) = (image.shape()[0], image.shape()[1]);
    let cam = golden.tensor("cam").unwrap();
    let data = cam.data().as_chunks::<4>().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
    let cam = Cam { classes: vec![4, 9], height, width, data };
    let inputs =
        [("image", encode_rgb(&Rgb { height, width, data: image.data().to_vec() })), ("cam", write_cam(&cam).unwrap())];
    let psa = json!({"psa": {"field": CrfSet::Psa.params(), "low_alpha": 4.0, "high_alpha": 32.0}});
    let thresholds = json!({"foreground": 0.3, "background": 0.05, "certainty": 0.7});
    let mut irn = json!({ "irn": thresholds });
    irn["irn"]["field"] = json!(CrfSet::Irn.params());
    for (name, params) in [("psa", psa), ("irn", irn)] {
        let found = run::<AffinityLabel>(&mut Store::default(), &params, &inputs).unwrap();
        let found = decode_label_map(&found).unwrap();
        let expected = golden.tensor(name).unwrap().data();
        let n_other = found.data.iter().zip(expected).filter(|(found, expected)| found != expected).count();
        assert_eq!(n_other, 0, "{name}");
        assert!([0, 4, 9, IGNORE].iter().all(|label| expected.contains(label)), "{name} has all kinds of labels");
    }
}

/// An epoch on four small pictures; with `stop_at`, the user asks it to stop after so many steps.
fn epoch<S: Stage>(params: &Value, scratch: &Path, stop_at: Option<u64>) -> anyhow::Result<Vec<Output>> {
    let mut store = Store::default();
    let [mut images, mut labels] = [(); 2].map(|()| SetListing::default());
    for i in 0..4 {
        let (rgb, se_map) = picture(i);
        let label = |id: u16| match id {
            0 => IGNORE,
            300 => 0,
            id => (id % 3) as u8,
        };
        let map = s2c_pipe::vision::Grid::new(rgb.height, rgb.width, se_map.data.iter().map(|&id| label(id)).collect());
        images.members.push((format!("item{i}"), store.put(encode_rgb(&rgb))));
        labels.members.push((format!("item{i}"), store.put(encode_label_map(&map))));
    }
    let weights = fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("pipelines/weights/resnet50_v1.f16.safetensors"));
    let mut input = |slot: &str, bytes: Vec<u8>, is_set: bool| FingerprintInput {
        slot: slot.into(),
        digest: store.put(bytes),
        is_set,
    };
    let inputs = vec![
        input("weights", weights?, false),
        input("images", images.to_bytes(), true),
        input("labels", labels.to_bytes(), true),
    ];
    let (stage, version) = (S::KIND.into(), S::VERSION);
    let fingerprint = Fingerprint { stage, version, params: params.to_string(), inputs };
    let interrupted = Arc::new(AtomicBool::new(false));
    let flag = interrupted.clone();
    let context = StageContext {
        device: stage_device(),
        progress: Arc::new(move |step| flag.store(Some(step.done) == stop_at, Ordering::Relaxed)),
        scratch: scratch.to_owned(),
        interrupted,
    };
    let mut stage = S::load(serde_json::from_value(params.clone())?, &context)?;
    stage.run(&UnitInput { label: S::KIND, fingerprint: &fingerprint, reader: &store })
}

fn equal_bytes_across_a_stop<S: Stage>(params: &Value, n_terms: usize) {
    let folders = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let [first, stopped] = folders.each_ref().map(tempfile::TempDir::path);
    let undisturbed = epoch::<S>(params, first, None).unwrap();
    let losses: Vec<PairLosses> = serde_json::from_slice(&undisturbed[1].bytes).unwrap();
    assert_eq!(losses.len(), 2);
    for row in &losses {
        let terms = [Some(row.bg), Some(row.fg), Some(row.neg), row.dp_fg, row.dp_bg];
        assert!(terms.iter().flatten().all(|&term| term > 0.0) && row.grad_norm > 0.0, "{losses:?}");
        assert_eq!(terms.iter().flatten().count(), n_terms);
    }
    let error = epoch::<S>(params, stopped, Some(1)).unwrap_err();
    assert!(error.is::<Interrupted>(), "{error:?}");
    assert!(epoch::<S>(params, stopped, None).unwrap() == undisturbed, "a resumed run gives other bytes");
}

#[test]
fn epochs_give_equal_bytes_across_a_stop() {
    let mut params = json!({
        "epoch": 0, "epochs": 2, "rng_seed": 3, "precision": "f32", "backbone": "resnet50v1", "stride": 16,
        "batch_size": 2, "crop": 80, "rescale": [0.9, 1.1], "radius": 4, "lr": 0.01, "head_lr_mult": 10.0,
        "momentum": 0.9, "weight_decay": 5e-4,
    });
    equal_bytes_across_a_stop::<PsaEpoch>(&params, 3);
    params["radius"] = 8.into();
    equal_bytes_across_a_stop::<IrnEpoch>(&params, 5);
}

/// On the CAMs of the baseline.
const REFINED: &str = r#"
extends = "tiny.toml"

[segmentation]
enabled = false

[report]
overlays = 0

[pseudo_label.psa]
epochs = 2
batch_size = 2
crop = 80
lr = 0.001
steps = 16

[pseudo_label.irn]
epochs = 2
batch_size = 2
crop = 80
lr = 0.001
steps = 16

[[variant]]
name = "none"

[[variant]]
name = "PSA"
pseudo_label.refine = ["psa"]

[[variant]]
name = "IRN"
pseudo_label.refine = ["irn"]

[[variant]]
name = "IRN + CRF"
pseudo_label.refine = ["irn", "crf"]

[[variant]]
name = "PSA + SEPL"
pseudo_label.refine = ["psa", "sepl"]
"#;

/// Units that would run, by stage.
fn counts(folder: &Path, sets: &[&str]) -> BTreeMap<String, u64> {
    let plan = plan(folder, "refined.toml", sets);
    let stages = plan["stages"].as_object().unwrap().iter();
    stages.map(|(stage, n)| (stage.clone(), n["to_run"].as_u64().unwrap())).filter(|(_, n)| *n > 0).collect()
}

fn counted<const N: usize>(of: [(&str, u64); N]) -> BTreeMap<String, u64> {
    of.map(|(stage, n)| (stage.to_owned(), n)).into()
}

#[test]
fn both_refine_in_units_that_are_shared_kept_and_made_again_alike() {
    let dir = finished_copy();
    fs::write(dir.path().join("refined.toml"), REFINED).unwrap();
    // Four images: labels and walks of two networks, which both variants of each share; of IRN's CAMs labels twice.
    let units = [
        ("affinity_label", 8),
        ("psa_epoch", 2),
        ("psa_walk", 4),
        ("irn_epoch", 2),
        ("irn_walk", 4),
        ("pseudo_label", 12),
        ("evaluate", 4),
    ];
    assert_eq!(counts(dir.path(), &[]), counted(units));
    let said = succeeds(dir.path(), &["run", "refined.toml"]);
    assert!(said.contains("IRN + CRF") && said.contains("emoji, mIoU in %"), "{said}");
    assert!(counts(dir.path(), &[]).is_empty());

    // An edit of one network runs nothing of the other.
    let edits: [(&str, &[(&str, u64)]); 6] = [
        ("psa.lr=0.002", &[("psa_epoch", 2), ("psa_walk", 4), ("pseudo_label", 4), ("evaluate", 2)]),
        ("psa.beta=4.0", &[("psa_walk", 4), ("pseudo_label", 4), ("evaluate", 2)]),
        (
            "psa.high_alpha=24.0",
            &[("affinity_label", 4), ("psa_epoch", 2), ("psa_walk", 4), ("pseudo_label", 4), ("evaluate", 2)],
        ),
        ("irn.steps=32", &[("irn_walk", 4), ("pseudo_label", 8), ("evaluate", 2)]),
        ("irn.background=0.3", &[("pseudo_label", 8), ("evaluate", 2)]),
        ("pseudo_label.threshold=0.3", &[("pseudo_label", 4), ("evaluate", 1)]),
    ];
    for (edit, expected) in edits {
        let expected = expected.iter().map(|(stage, n)| ((*stage).to_owned(), *n)).collect::<BTreeMap<_, _>>();
        assert_eq!(counts(dir.path(), &[edit]), expected, "{edit}");
    }

    // What is lost is made again, with the same bytes.
    let before = digests(dir.path());
    let blobs = walk(&dir.path().join("cache/blobs"));
    for unit in ["psa_epoch epoch 1 checkpoint", "irn_epoch epoch 1 checkpoint", "psa_walk", "irn_walk"] {
        let (_, digest) = before.iter().find(|(label, _)| label.contains(unit)).unwrap();
        let is_it = |path: &&std::path::PathBuf| path.to_string_lossy().replace('/', "").ends_with(&digest[2..]);
        fs::remove_file(blobs.iter().find(is_it).unwrap()).unwrap();
    }
    let said = succeeds(dir.path(), &["run", "refined.toml", "--restore"]);
    assert!(said.contains("\n4 units executed"), "{said}");
    assert_eq!(digests(dir.path()), before);
    succeeds(dir.path(), &["cache", "verify"]);
}

#[test]
fn what_cannot_be_is_one_clear_line() {
    let dir = finished_copy();
    for (sets, error) in [
        (&["pseudo_label.refine=['pas']"][..], "unknown variant `pas`"),
        (&["pseudo_label.refine=['crf', 'irn']"], "`irn` after another refinement: it starts from the CAMs"),
        (
            &["pseudo_label.refine=['irn']", "irn.backbone=resnet38d"],
            "`pseudo_label.irn.backbone` is resnet38d, and IRN looks at the levels of a ResNet",
        ),
        (&["pseudo_label.refine=['psa']", "psa.weights=gone.pth"], "gone.pth"),
    ] {
        let args: Vec<&str> =
            ["run", "tiny.toml"].into_iter().chain(sets.iter().flat_map(|set| ["--set", *set])).collect();
        let output = call(dir.path(), &args);
        let said = text(&output);
        assert_eq!(output.status.code(), Some(1), "{said}");
        let errors: Vec<&str> = said.lines().filter(|line| line.starts_with("error: ")).collect();
        assert!(errors.len() == 1 && errors[0].contains(error), "{said}");
    }
    // A refinement that is not asked for asks for nothing.
    assert!(to_run(dir.path(), &["irn.backbone=resnet38d", "psa.lr=0.5"]).is_empty());
}
