//! Data sets of every kind through the program: planned by the pipelines of the repository, and run.

use std::fs;
use std::path::Path;

use s2c_pipe::data::image::{encode_label_map, encode_rgb};
use s2c_pipe::vision::{Grid, Rgb};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::program::{call, finished_copy, plan, succeeds, text, write_pipeline};

const SIDE: usize = 64;

fn put(path: &Path, bytes: impl AsRef<[u8]>) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

/// A picture whose colours depend on its number.
fn picture(i: usize) -> Vec<u8> {
    let data = (0..SIDE * SIDE * 3).map(|p| (p * (i + 3) % 251) as u8).collect();
    encode_rgb(&Rgb { height: SIDE, width: SIDE, data })
}

/// Three training images, of which SBD's have no mask, and one to validate.
fn voc() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    for (i, id) in ["2007_1", "2008_2", "2008_3", "2009_4"].iter().enumerate() {
        put(&root.join(format!("JPEGImages/{id}.png")), picture(i));
        let xml = format!("<annotation><object><name>{}</name></object></annotation>", ["cat", "dog"][i % 2]);
        put(&root.join(format!("Annotations/{id}.xml")), xml);
    }
    let lists = root.join("ImageSets/Segmentation");
    put(&lists.join("train_aug.txt"), "2007_1\n/JPEGImages/2008_2.jpg /SegmentationClassAug/2008_2.png\n2008_3\n");
    put(&lists.join("val.txt"), "2009_4\n");
    for id in ["2007_1", "2009_4"] {
        put(&root.join(format!("SegmentationClass/{id}.png")), encode_label_map(&Grid::filled(SIDE, SIDE, 8)));
    }
    dir
}

fn square(id: u64, image: u64, category: u64, (x, y, side): (u64, u64, u64)) -> Value {
    let corners = [x, y, x + side, y, x + side, y + side, x, y + side];
    json!({"id": id, "image_id": image, "category_id": category, "area": side * side, "iscrowd": 0, "segmentation": [corners]})
}

/// 80 categories with gaps; three training images and one without an annotation, one to validate.
fn coco() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let categories: Vec<Value> =
        (1..=80).map(|id| json!({"id": id + id / 12, "name": format!("thing {id}")})).collect();
    for (list, n) in [("train2014", 4), ("val2014", 1)] {
        let images =
            (1..=n).map(|id| json!({"id": id, "file_name": format!("{list}_{id}.png"), "height": SIDE, "width": SIDE}));
        let annotations = (1..=n.min(3))
            .flat_map(|id| [square(2 * id, id, 13, (8, n, 40)), square(2 * id + 1, id, 86, (20 + 4 * id, 20, 12))]);
        let all = json!({
            "images": images.collect::<Vec<_>>(),
            "annotations": annotations.collect::<Vec<_>>(),
            "categories": categories,
        });
        put(&dir.path().join(format!("annotations/instances_{list}.json")), all.to_string());
        (1..=n).for_each(|id| put(&dir.path().join(format!("{list}/{list}_{id}.png")), picture(id as usize)));
    }
    dir
}

/// Units by stage in a plan of one of the repository's pipelines, with weights that are here.
fn planned(file: &str, root: &Path) -> Value {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR"));
    let weights = |name: &str| repository.join("pipelines/weights").join(name).display().to_string();
    let (sam, resnet) = (weights("mobile_sam.f16.safetensors"), weights("resnet50_v1.f16.safetensors"));
    let sets = [
        format!("dataset.root={}", root.display()),
        format!("sam.weights={sam}"),
        format!("classifier.weights={resnet}"),
        format!("segmentation.weights={resnet}"),
        // The repository has no weights of the paper's.
        "classifier.backbone=resnet50v1".to_owned(),
        "segmentation.backbone=resnet50v1".to_owned(),
    ];
    let dir = tempfile::tempdir().unwrap();
    let sets: Vec<&str> = sets.iter().map(String::as_str).collect();
    plan(dir.path(), &repository.join("pipelines").join(file).display().to_string(), &sets)["stages"].clone()
}

#[test]
fn the_paper_s_chain_is_planned_on_voc_and_coco() {
    let count = |stages: &Value, stage: &str| stages[stage]["to_run"].as_u64().unwrap_or(0);
    let of = |stages: &Value| {
        ["sam_embed", "se_map", "cam_epoch", "cam_infer", "coco_mask", "pseudo_label", "seg_epoch", "evaluate"]
            .map(|stage| count(stages, stage))
    };
    assert_eq!(of(&planned("voc12.toml", voc().path())), [3, 3, 40, 3, 0, 3, 19, 2]);
    // The image without an annotation is left out; train and val have masks.
    assert_eq!(of(&planned("coco14.toml", coco().path())), [3, 3, 5, 3, 4, 3, 3, 2]);
}

/// A pipeline that ends soon, on a data set.
fn small(dataset: &str) -> String {
    format!(
        "precision = 'f32'\n[dataset]\n{dataset}\n[sam]\nweights = 'WEIGHTS/mobile_sam.f16.safetensors'\n
        [classifier]\nweights = 'WEIGHTS/resnet50_v1.f16.safetensors'\nepochs = 1\nbatch_size = 2\ncrop = 64\n
        resize_long = [64, 64]\nlr = 0.001\n[seed]\nscales = [1.0]\nflip = false\n[segmentation]\nhead = 'deeplabv3plus'\nepochs = 1\n
        weights = 'WEIGHTS/resnet50_v1.f16.safetensors'\nbatch_size = 2\ncrop = 64\n[report]\noverlays = 1\n"
    )
}

#[test]
fn coco_runs_and_its_classes_have_their_names() {
    let (dir, data) = (tempfile::tempdir().unwrap(), coco());
    let dataset = format!("kind = 'coco'\ntrain = 'train2014'\nval = 'val2014'\nroot = '{}'", data.path().display());
    write_pipeline(dir.path(), &small(&dataset));
    let said = succeeds(dir.path(), &["run", "tiny.toml"]);
    assert!(said.contains("note: 1 of 4 train2014 images have no annotation and are left out"), "{said}");
    let output = call(dir.path(), &["--json", "results", "tiny.toml"]);
    let results: Value = serde_json::from_slice(&output.stdout).unwrap();
    let confusion = &results[0]["metrics"]["segmentation"]["confusion"];
    let pixels = |truth: &str| confusion[truth].as_object().unwrap().values().map(|n| n.as_u64().unwrap()).sum::<u64>();
    // Categories 13 and 86 are the 12th and the 80th of 80: ids 12, 25, .. are no categories.
    assert_eq!((pixels("thing 12"), pixels("thing 80")), (40 * 40 - 12 * 12, 12 * 12));
    assert!(results[0]["metrics"]["seed"]["recall"]["thing 80"].is_f64(), "{results}");
    let table = succeeds(dir.path(), &["results", "tiny.toml", "--metrics"]);
    assert!(table.contains("boundary F") && table.contains("default: segmentation"), "{table}");

    // The same annotations written otherwise: nothing runs.
    let json = data.path().join("annotations/instances_train2014.json");
    let value: Value = serde_json::from_slice(&fs::read(&json).unwrap()).unwrap();
    fs::write(&json, serde_json::to_string_pretty(&value).unwrap()).unwrap();
    let said = succeeds(dir.path(), &["run", "tiny.toml"]);
    assert!(said.contains("0 units executed"), "{said}");

    let said = text(&call(dir.path(), &["plan", "tiny.toml", "--set", "evaluate.classes=['thing12']"]));
    assert!(said.contains("`evaluate.classes`: no class `thing12`"), "{said}");
    assert!(said.contains("hint: did you mean `thing 12`?"), "{said}");
    let said =
        text(&call(dir.path(), &["export", "tiny.toml", "--what", "predictions", "--voc-server", "--to", "sent"]));
    assert!(said.contains("error: the evaluation server of PASCAL VOC takes predictions of its 20 classes"), "{said}");
}

#[test]
fn a_folder_of_pictures_is_planned_and_its_faults_are_told() {
    let (dir, data) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    (0..3).for_each(|i| put(&data.path().join(format!("images/{i}.png")), picture(i)));
    let table = data.path().join("labels.csv");
    put(&table, "image,split,ant,bee\n0,train,1,0\n1,train,0,1\n2,val,0,1\n");
    write_pipeline(dir.path(), &small(&format!("kind = 'folder'\nroot = '{}'", data.path().display())));
    // No masks: nothing to score, so a threshold has to be given.
    let said = text(&call(dir.path(), &["plan", "tiny.toml"]));
    assert!(said.contains("`pseudo_label.threshold = \"best\"` chooses by the masks of the training images"), "{said}");
    assert!(said.contains("\nhint: write `pseudo_label.threshold = 0.2`, or add the masks to the data set"), "{said}");
    let stages = plan(dir.path(), "tiny.toml", &["pseudo_label.threshold=0.2"])["stages"].clone();
    assert_eq!((stages["pseudo_label"]["to_run"].as_u64(), stages.get("evaluate")), (Some(2), None));

    put(&table, "image,ant,bee\n0,1,0\n");
    let said = text(&call(dir.path(), &["plan", "tiny.toml"]));
    assert!(said.contains("labels.csv`: no column `split`\nhint: add a column `split`"), "{said}");
}

#[test]
fn predictions_go_where_the_server_of_voc_looks() {
    let dir = finished_copy();
    let to = ["--what", "predictions", "--variant", "S2C", "--voc-server", "--to", "sent"];
    succeeds(dir.path(), &[&["export", "tiny.toml"][..], &to].concat());
    let sent = dir.path().join("sent/results/VOC2012/Segmentation/comp6_val_cls");
    assert!(sent.join("val_0000.png").exists() && sent.join("val_0001.png").exists());
}
