//! Readers of foreign bytes under mutations of small valid files: each gives a value or an error, soon, without a panic and
//! without more memory than ten times its input.
//!
//! `make test` looks at a fixed number of cases; `S2C_FUZZ_SECONDS` is how long each reader is tried instead, and
//! `S2C_FUZZ_SEED` where the randomness starts.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};
use s2c_pipe::data::image::{TURNED, decode_label_map, decode_rgb, decode_se_map, encode_rgb};
use s2c_pipe::data::mask_file::{MaskValues, Reading, decode_mask};
use s2c_pipe::data::orient::OrientationPolicy;
use s2c_pipe::data::scan::{LabelSource, ScanOptions};
use s2c_pipe::data::{FileMemo, Mask, coco, folder, voc};
use s2c_pipe::digest::BlobDigest;
use s2c_pipe::vision::Rgb;

/// Cases of a reader where no time is asked for.
const N_CASES: usize = 2000;
/// What a reader may take of memory: ten times its input, and what small things cost whatever the input.
const MAX_FACTOR: usize = 10;
const FREE: usize = 1 << 20;
/// A case that takes longer counts as a hang.
const MAX_TIME: Duration = Duration::from_secs(10);

/// Counts what a thread has allocated, and the most of it at a time.
struct Counting;

thread_local! {
    static HELD: Cell<(isize, isize)> = const { Cell::new((0, 0)) };
}

fn count(bytes: isize) {
    // A thread that ends allocates when its own variables are gone.
    let _ = HELD.try_with(|held| {
        let (now, peak) = held.get();
        held.set((now + bytes, peak.max(now + bytes)));
    });
}

#[expect(unsafe_code, reason = "an allocator is unsafe to write; this one hands all to the system's")]
// SAFETY: every call goes on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The most memory that this thread had beyond what it had before.
fn peak_of(f: impl FnOnce()) -> usize {
    let (before, _) = HELD.get();
    HELD.set((before, before));
    f();
    (HELD.get().1 - before).max(0) as usize
}

/// Reads each of the files and mutations of them.
pub(crate) fn mutations(reader: &str, files: &[Vec<u8>], read: impl Fn(&[u8])) {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let (seconds, seed) = (number("S2C_FUZZ_SECONDS"), number("S2C_FUZZ_SEED").unwrap_or(0));
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let started = Instant::now();
    let is_over = |case: usize| match seconds {
        Some(seconds) => started.elapsed() > Duration::from_secs(seconds),
        None => case >= N_CASES.max(files.len()),
    };
    let mut case = 0;
    while !is_over(case) {
        let bytes = match files.get(case) {
            Some(whole) => whole.clone(),
            None => mutated(files, &mut rng),
        };
        let at = Instant::now();
        let mut result = Ok(());
        let peak = peak_of(|| result = catch_unwind(AssertUnwindSafe(|| read(&bytes))));
        let limit = MAX_FACTOR * bytes.len() + FREE;
        if result.is_err() || peak > limit || at.elapsed() > MAX_TIME {
            let kept = std::env::temp_dir().join(format!("s2c-fuzz-{reader}"));
            std::fs::write(&kept, &bytes).unwrap();
            panic!(
                "{reader}, seed {seed}, case {case} ({} bytes, kept as {}): panicked: {}, peak {peak} of {limit}, {:?}",
                bytes.len(),
                kept.display(),
                result.is_err(),
                at.elapsed()
            );
        }
        case += 1;
    }
}

/// One of the files with one to four changes.
fn mutated(files: &[Vec<u8>], rng: &mut ChaCha8Rng) -> Vec<u8> {
    /// Numbers that lengths and sizes go wrong at.
    const EDGES: [u64; 8] = [0, 1, 0x7f, 0xff, 0x7fff_ffff, 0xffff_ffff, i64::MAX as u64, u64::MAX];
    let mut below = |n: usize| rng.next_u64() as usize % n.max(1);
    let mut bytes = files[below(files.len())].clone();
    for _ in 0..=below(4) {
        let at = below(bytes.len());
        match below(7) {
            0 if !bytes.is_empty() => bytes[at] ^= 1 << below(8),
            1 if !bytes.is_empty() => bytes[at] = below(256) as u8,
            2 => bytes.truncate(at),
            3 => {
                let width = [1, 2, 4, 8][below(4)];
                let edge = EDGES[below(EDGES.len())].to_le_bytes();
                let edge: Vec<u8> = if below(2) == 0 { edge.to_vec() } else { edge.iter().rev().copied().collect() };
                let from = if edge[0] == 0 { 8 - width } else { 0 };
                bytes.iter_mut().skip(at).zip(&edge[from..][..width]).for_each(|(byte, edge)| *byte = *edge);
            }
            // A part of one of the files, over or between what is there.
            4 | 5 => {
                let other = &files[below(files.len())];
                let start = below(other.len());
                let part = other[start..(start + below(64)).min(other.len())].to_vec();
                let end = if below(2) == 0 { at } else { (at + part.len()).min(bytes.len()) };
                bytes.splice(at..end, part);
            }
            // A part many times.
            _ => {
                let part = bytes[at..(at + below(16)).min(bytes.len())].repeat(below(200));
                bytes.splice(at..at, part);
            }
        }
    }
    bytes
}

/// Files of a folder in tests/golden with one of these endings.
pub(crate) fn golden(folder: &str, endings: &[&str]) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(folder);
    let mut paths: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| endings.iter().any(|ending| path.to_string_lossy().ends_with(ending)));
    paths.sort();
    paths.iter().map(|path| std::fs::read(path).unwrap()).collect()
}

#[cfg(feature = "torch")]
mod weights {
    use s2c_pipe::model::weights::{Weights, to_safetensors};
    use tch::Tensor;

    use super::{golden, mutations};

    /// Numbers are looked at as well, since that follows strides.
    fn parse(bytes: &[u8]) {
        if let Ok(weights) = Weights::parse(bytes) {
            weights.names().for_each(|name| drop(weights.numbers(name)));
        }
    }

    #[test]
    fn pytorch() {
        mutations("pytorch", &golden("weights", &[".pth", ".pt"]), parse);
    }

    #[test]
    fn mxnet() {
        mutations("mxnet", &golden("mxnet", &[".params"]), parse);
    }

    #[test]
    fn safetensors() {
        let (a, b) = (Tensor::from_slice(&[1f32, 2.0]), Tensor::from_slice(&[3i64]));
        let small = to_safetensors([("a", &a), ("layer1.0.conv1.weight", &b)]).unwrap();
        mutations("safetensors", &[small, to_safetensors([("b", &b)]).unwrap()], parse);
    }
}

#[test]
fn pictures() {
    let png = encode_rgb(&Rgb { height: 3, width: 5, data: vec![7; 45] });
    mutations("label_map", std::slice::from_ref(&png), |bytes| drop(decode_label_map(bytes)));
    mutations("se_map", std::slice::from_ref(&png), |bytes| drop(decode_se_map(bytes)));
    let numbers = Reading::Numbers([(7, 1), (255, 0)].into());
    mutations("mask_file", std::slice::from_ref(&png), |bytes| drop(decode_mask(bytes, &numbers)));
    mutations("rgb", &[png], |bytes| drop(decode_rgb(bytes)));
}

#[test]
fn jpegs() {
    mutations("jpeg", &golden("pixels/files", &[".jpg"]), |bytes| {
        drop(decode_rgb(bytes));
        drop(decode_rgb(&[TURNED, bytes].concat()));
    });
}

/// Remembers nothing, so that every case is read.
pub(crate) struct NoMemo;

impl FileMemo for NoMemo {
    fn digest(&self, path: &Path) -> anyhow::Result<BlobDigest> {
        Ok(BlobDigest::of(&std::fs::read(path)?))
    }
    fn fact(&self, _: &str, _: &BlobDigest) -> Option<Vec<u8>> {
        None
    }
    fn remember(&self, _: &str, _: &BlobDigest, _: &[u8]) {}
}

/// A folder with a picture `a` at each of these places.
fn with_pictures(places: &[&str]) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    for place in places {
        let path = root.path().join(place);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, encode_rgb(&Rgb { height: 3, width: 5, data: vec![7; 45] })).unwrap();
    }
    root
}

/// Mutations of a text in the place of a file of a data set, which is then scanned.
fn scanned(reader: &str, root: &Path, file: &str, text: &str, scan: impl Fn(&ScanOptions<'_>)) {
    let path = root.join(file);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let options = ScanOptions {
        name: "t",
        root,
        masks: None,
        labels: LabelSource::Annotations,
        orientation: OrientationPolicy::default(),
        mask_values: &MaskValues::default(),
        train: "train",
        val: "train",
        max_train: 0,
        max_val: 0,
        exclude: &[],
    };
    mutations(reader, &[text.as_bytes().to_vec()], |bytes| {
        std::fs::write(&path, bytes).unwrap();
        scan(&options);
    });
}

const XML: &str = "<annotation><size><width>5</width><height>3</height></size><object><name>cat</name><difficult>0\
                   </difficult></object></annotation>";

#[test]
fn lists_and_xml_of_voc() {
    let root = with_pictures(&["JPEGImages/a.jpg", "JPEGImages/b.jpg"]);
    let root = root.path();
    std::fs::create_dir_all(root.join("Annotations")).unwrap();
    for id in ["a", "b"] {
        std::fs::write(root.join(format!("Annotations/{id}.xml")), XML).unwrap();
    }
    let scan = |options: &ScanOptions<'_>| drop(voc::scan(options, &NoMemo));
    scanned("list", root, "ImageSets/Segmentation/train.txt", "a\nb\n", scan);
    std::fs::write(root.join("ImageSets/Segmentation/train.txt"), "a\nb\n").unwrap();
    scanned("xml", root, "Annotations/a.xml", XML, scan);
}

#[test]
fn tables_of_folders() {
    let root = with_pictures(&["images/a.png", "images/b.png"]);
    let text = "image,split,cat,dog\na.png,train,1,0\nb,train,0,1\n";
    scanned("csv", root.path(), "labels.csv", text, |options| drop(folder::scan(options, &NoMemo)));
}

#[test]
fn json_of_coco() {
    let root = with_pictures(&["train/a.png"]);
    let parsed = tempfile::tempdir().unwrap();
    let text = r#"{"images":[{"id":1,"file_name":"a.png","height":3,"width":5}],"categories":[{"id":1,"name":"cat"}],
        "annotations":[{"id":1,"image_id":1,"category_id":1,"iscrowd":0,"area":4,"bbox":[0,0,2,2],
        "segmentation":[[0,0,2,0,2,2]]},{"id":2,"image_id":1,"category_id":1,"iscrowd":1,"area":4,"bbox":[0,0,2,2],
        "segmentation":{"size":[3,5],"counts":[2,3,10]}}]}"#;
    scanned("coco", root.path(), "annotations/instances_train.json", text, |options| {
        let Ok(data) = coco::scan(options, &NoMemo, parsed.path()) else { return };
        for item in data.train {
            if let Some(Mask::Outlines { bytes, .. }) = item.mask {
                drop(coco::paint_mask(&bytes));
            }
        }
    });
}

#[test]
fn pipeline_files() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("p.toml");
    let text = "rng_seed = 1\nclassifier.lr = 0.5\n[dataset]\nkind = \"emoji\"\n[[variant]]\nname = \"a\"\nssc.enabled = true\n\
                [sweep]\n\"cpm.tau\" = [0.3, 0.5]\n";
    mutations("toml", &[text.as_bytes().to_vec()], |bytes| {
        std::fs::write(&path, bytes).unwrap();
        drop(s2c_pipe::pipeline::file::load(&path, &[]));
    });
}
