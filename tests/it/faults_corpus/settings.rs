//! Pipeline files and `--set`: values that look like another type, axes with one value twice, and files made to hang or
//! to fill the memory.

use std::fs;
use std::path::{Path, PathBuf};

use s2c_pipe::pipeline::file::{FileError, Pipeline, load};
use tempfile::TempDir;

fn load_text(text: &str, sets: &[&str]) -> Result<Pipeline, FileError> {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("p.toml"), text).unwrap();
    load(&dir.path().join("p.toml"), &sets.iter().map(|set| (*set).to_owned()).collect::<Vec<_>>())
}

const ROOT: &str = "dataset.root = 'voc'\n";

/// What a shell hands over is what the field takes.
#[test]
fn a_value_on_the_command_line_is_what_was_typed() {
    let spec = |set: &str| load_text(ROOT, &[set]).unwrap().cells.remove(0).spec;
    assert_eq!(spec("dataset.exclude=2007_000001").dataset.exclude, ["2007_000001"]);
    assert_eq!(spec("exclude=[2007_000001,2007_000002]").dataset.exclude, ["2007_000001", "2007_000002"]);
    assert_eq!(spec("dataset.train=2012").dataset.train, "2012");
    assert_eq!(spec("dataset.train=007").dataset.train, "007");
    assert_eq!(spec("dataset.train=2007-01-01").dataset.train, "2007-01-01");
    assert_eq!(spec("evaluate.classes=[cat, dog]").evaluate.classes, ["cat", "dog"]);
    assert_eq!(spec("classifier.epochs=1e1").classifier.epochs, 10);
    let home = std::env::home_dir().unwrap();
    assert_eq!(spec("dataset.root=~/VOC2012").dataset.root, Some(home.join("VOC2012")));
    assert_eq!(spec("dataset.masks=~/masks").dataset.masks, Some(home.join("masks")));
    // In a file as well, also in a variant and on an axis.
    for text in ["dataset.root = '~/d'", "[[variant]]\nname='a'\nroot='~/d'", "[sweep]\n'dataset.root'=['~/d']"] {
        let spec = load_text(text, &[]).unwrap().cells.remove(0).spec;
        assert_eq!(spec.dataset.root, Some(home.join("d")), "{text}");
    }
    for (text, set, message, hint) in [
        (ROOT, "dataset.root=~bob/x", "`dataset.root`: `~bob/x` begins with the home folder of somebody", "whole path"),
        (ROOT, "sam.weights=$HOME/x", "`sam.weights`: `$HOME/x` begins with a variable of the shell", "whole path"),
        (ROOT, "precision=fp16", "unknown variant `fp16`, expected one of", ""),
        (ROOT, "precision=BF16", "unknown variant `BF16`", "did you mean `bf16`?"),
        ("dataset.root = '$DATA/voc'", "rng_seed=1", "p.toml`: `dataset.root`: `$DATA/voc` begins with", "whole path"),
        (
            "dataset.root='v'\ndataset.exclude = [2007_000001]",
            "rng_seed=1",
            "expected a string",
            "a text stands in quotes",
        ),
        ("dataset.root='v'\ndataset.exclude = '1'", "rng_seed=1", "expected a sequence", "a list stands in brackets"),
    ] {
        let error = load_text(text, &[set]).unwrap_err();
        assert!(error.message.contains(message), "{set}: {}", error.message);
        assert!(error.hint.clone().unwrap_or_default().contains(hint), "{set}: {:?}", error.hint);
    }
}

/// An axis has no value twice, however it is written.
#[test]
fn points_of_an_axis_differ_as_the_field_takes_them() {
    #[rustfmt::skip]
    let cases = [
        // axis                                              points, or what is said
        ("'ssc.weight' = [1, 1.0]",                          Err("`ssc.weight` of [sweep] has one value twice, as 1 and as 1.0")),
        ("'classifier.lr' = [0.001, 1e-3]",                  Err("has 0.001 twice")),
        ("'ssc.weight' = [0.0, -0.0]",                       Err("has one value twice, as 0.0 and as -0.0")),
        ("'seed.scales' = [[1], [1.0]]",                     Err("has one value twice, as [1] and as [1.0]")),
        ("'sam.weights' = ['a.pth', './a.pth']",             Err("`sam.weights` of [sweep] has")),
        ("rng_seed = [1, 0x1]",                              Err("has 1 twice")),
        ("'cpm.tau' = [0.3, 0.30000000000000004]",           Ok(2)),
        ("'classifier.lr' = [1e-2, 0.001]",                  Ok(2)),
        ("'seed.scales' = [[0.5, 1.0], [1.0]]",              Ok(2)),
        ("'pseudo_label.threshold' = ['best', 0.5, 0]",      Ok(3)),
        ("'cpm.tau' = ['0.3', '0.5']",                       Err("[sweep]: `cpm.tau`: invalid type: string \"0.3\"")),
    ];
    for (axis, expected) in cases {
        let found = load_text(&format!("{ROOT}[[variant]]\nname = 'a'\n[sweep]\n{axis}\n"), &[]);
        match (found, expected) {
            (Ok(pipeline), Ok(n)) => assert_eq!(pipeline.cells.len(), n, "{axis}"),
            (Err(error), Err(said)) => assert!(error.message.contains(said), "{axis}: {}", error.message),
            (found, _) => panic!("{axis}: {found:?}"),
        }
    }
}

#[test]
fn names_that_cannot_be_told_apart_or_seen_are_refused() {
    for (name, said) in [
        ("\"a\\nb\"", "the name `a\\nb` of a [[variant]] has the character \\n"),
        ("\"a\\u001b[31m\"", "\\u{1b}"),
        ("\"a\\u200b\"", "\\u{200b}"),
        ("\"a\\rb\"", "\\r"),
        ("\" \"", "has no character that is seen"),
        ("3", "the name 3 of a [[variant]] is no text"),
    ] {
        let error = load_text(&format!("{ROOT}[[variant]]\nname = {name}\n"), &[]).unwrap_err();
        assert!(error.message.contains(said), "{name}: {}", error.message);
        assert!(error.hint.is_some());
    }
    let long = "n".repeat(300);
    for name in ["a/b", "../up", "x, y", "α–变体", "S2C ", &long] {
        assert_eq!(load_text(&format!("{ROOT}[[variant]]\nname = '{name}'\n"), &[]).unwrap().cells[0].name, name);
    }
}

/// `;` parts nothing, and the hint says what does.
#[test]
fn semicolons_are_told_with_what_to_write() {
    #[rustfmt::skip]
    let cases = [
        // what is set                                said                                         hint
        ("cpm.tau=0.3;0.5",                           "`;` does not part values",                  "values to compare are an axis: write them in [sweep]"),
        ("cpm.tau=0.3;ssc.weight=2",                  "`;` does not part fields",                  "write --set classifier.cpm.tau=0.3 --set ssc.weight=2"),
        ("dataset.train=a;rng_seed=1",                "`;` does not part fields",                  "--set dataset.train=a --set rng_seed=1"),
        ("seed.scales=0.5;1.0",                       "`;` does not part values",                  "write --set 'seed.scales=[0.5, 1.0]'"),
        ("seed.scales=[0.5; 1.0]",                    "`;` does not part values",                  "write --set 'seed.scales=[0.5, 1.0]'"),
        ("dataset.exclude=a;b",                       "one value with `;`, or several",            "for 2 write --set 'dataset.exclude=[\"a\", \"b\"]', for one"),
        ("pseudo_label.refine=segment_vote;crf",      "`;` does not part values",                  "=[\"segment_vote\", \"crf\"]"),
        ("classifier.ssc.enabled=true;false",         "`;` does not part values",                  "[sweep]"),
        ("precision=f32;bf16",                        "`;` does not part values",                  "[sweep]"),
    ];
    for (set, said, hint) in cases {
        let error = load_text(ROOT, &[set]).unwrap_err();
        assert!(error.message.contains(said), "{set}: {}", error.message);
        assert!(error.hint.clone().unwrap_or_default().contains(hint), "{set}: {:?}", error.hint);
    }
    // A single text may have one, and in quotes anything.
    assert_eq!(load_text(ROOT, &["dataset.train=a;b"]).unwrap().cells[0].spec.dataset.train, "a;b");
    assert_eq!(load_text(ROOT, &["dataset.exclude=[\"a;b\", c]"]).unwrap().cells[0].spec.dataset.exclude, ["a;b", "c"]);
    for text in ["[sweep]\n'cpm.tau' = [0.3; 0.5]", "dataset.exclude = ['a';'b']", "seed.scales = [1 ; 2]"] {
        let error = load_text(&format!("{ROOT}{text}"), &[]).unwrap_err();
        assert!(error.hint.clone().unwrap_or_default().contains("values of a list have commas"), "{text}: {error:?}");
    }
    let spec = "[[variant]]\nname = 'a'\n[sweep]\n'dataset.train' = [\"a\\nb\", 'a b']";
    let error = load_text(&format!("{ROOT}{spec}"), &[]).unwrap_err();
    assert!(
        error.message.contains("the name `a, dataset.train=a\\nb`, with the values of [sweep], has the character"),
        "{error:?}"
    );
}

/// The seed need not stand in the names of repeats.
#[test]
fn variants_that_differ_in_their_seed_alone_are_repeats() {
    let variant = |name: &str, more: &str| format!("[[variant]]\nname = '{name}'\n{more}\n");
    let of = |variants: &[String]| load_text(&format!("{ROOT}{}", variants.concat()), &[]);
    let found = of(&[
        variant("base", "rng_seed = 0"),
        variant("S2C", "rng_seed = 0\nssc.enabled = true"),
        variant("S2C", "ssc.enabled = true\nrng_seed = 7"),
    ]);
    let cells = found.unwrap().cells;
    let names: Vec<(&str, &str)> = cells.iter().map(|cell| (cell.name.as_str(), cell.variant.as_str())).collect();
    assert_eq!(names, [("base", "base"), ("S2C, rng_seed=0", "S2C"), ("S2C, rng_seed=7", "S2C")]);
    assert_eq!((cells[2].spec.rng_seed, cells[2].axes.clone()), (7, vec![("rng_seed".to_owned(), "7".to_owned())]));
    for others in
        [["rng_seed = 1", "rng_seed = 1"], ["rng_seed = 1", ""], ["rng_seed = 1\ncpm.tau = 0.3", "rng_seed = 2"]]
    {
        let error = of(&others.map(|more| variant("S2C", more))).unwrap_err();
        assert!(error.message.contains("two variants are named `S2C`"), "{}", error.message);
        assert!(error.hint.unwrap().contains("differ in `rng_seed` alone"));
    }
}

fn write(dir: &TempDir, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
    let path = dir.path().join(name);
    fs::write(&path, text).unwrap();
    path
}

/// What would hang or fill the memory is counted first, or is no file.
#[test]
fn bombs_are_one_clear_line() {
    let dir = tempfile::tempdir().unwrap();
    write(&dir, "base.toml", ROOT);
    let thousand = (1..=1000).map(|i| format!("{}", f64::from(i) / 1001.0)).collect::<Vec<_>>().join(", ");
    let axes =
        ["cpm.tau", "classifier.momentum", "se_map.box_nms_thresh"].map(|axis| format!("'{axis}' = [{thousand}]\n"));
    let variants: String = (0..10_001).map(|i| format!("[[variant]]\nname='v{i}'\n")).collect();
    for i in 0..3000 {
        write(&dir, &format!("d{i}.toml"), format!("extends = 'd{}.toml'", i + 1));
    }
    rustix::fs::mknodat(rustix::fs::CWD, dir.path().join("pipe"), rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    let utf16: Vec<u8> = "\u{feff}rng_seed = 1".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let of = |name: &str, text: String| write(&dir, name, text);
    let epochs = (0..200).map(|i| i.to_string()).collect::<Vec<_>>().join(", ");
    #[rustfmt::skip]
    let cases = [
        (of("sweep.toml", format!("{ROOT}[sweep]\n{}", axes.concat())), "1000000000 cells, and 10000 are the most"),
        (of("many.toml", format!("{ROOT}{variants}")), "10001 cells, and 10000 are the most"),
        (of("epochs.toml", format!("{ROOT}classifier.epochs = 1000000")), "`classifier.epochs` is not in 1..=10000"),
        (of("all.toml", format!("{ROOT}classifier.epochs = 9000\n[sweep]\nrng_seed = [{epochs}]")), "and 1000000 are the most"),
        (of("batch.toml", format!("{ROOT}classifier.batch_size = 9223372036854775807")), "is not in 1..=65536"),
        (dir.path().join("d0.toml"), "more than 32 files extend one another in a row"),
        (of("zero.toml", "extends = '/dev/zero'".into()), "zero.toml` extends: it is a device, not a file"),
        (of("fifo.toml", "extends = 'pipe'".into()), "fifo.toml` extends: it is a named pipe, not a file"),
        (of("folder.toml", "extends = '.'".into()), "it is a folder, not a file"),
        (dir.path().join("pipe"), "it is a named pipe, not a file"),
        (dir.path().to_owned(), "it is a folder, not a file"),
        (PathBuf::from("/dev/zero"), "it is a device, not a file"),
        (write(&dir, "large.toml", vec![b'#'; 17_000_000]), "it has more than 16 MB"),
        (write(&dir, "utf16.toml", utf16), "it is text in UTF-16"),
        (write(&dir, "latin.toml", b"# caf\xe9"), "it is no text in UTF-8"),
        (of("...toml", ROOT.into()), "gives its results no name"),
        (of("..toml", ROOT.into()), "gives its results no name"),
        (of(".toml", ROOT.into()), "gives its results no name"),
        (of(" .toml", ROOT.into()), "gives its results no name"),
        (of(".. .toml", ROOT.into()), "gives its results no name"),
        (of("deep.toml", format!("{ROOT}x = {}", "[".repeat(100_000))), "TOML parse error"),
        (of("dots.toml", format!("{ROOT}[[variant]]\nname='a'\n{}b = 1", "a.".repeat(20_000))), "recursion limit"),
        (of("self.toml", "extends = './self.toml'".into()), "extends itself"),
    ];
    for (file, said) in cases {
        let error = load(&file, &[]).unwrap_err();
        assert!(error.message.contains(said), "{}: {}", file.display(), error.message);
    }
    // A mark of byte order and ends of lines of other systems are read.
    let read = |name: &str, text: &str| load(Path::new(&write(&dir, name, text)), &[]).unwrap().cells.remove(0).spec;
    assert_eq!(read("bom.toml", "\u{feff}dataset.root = 'v'\r\nrng_seed = 7\r\n").rng_seed, 7);
}
