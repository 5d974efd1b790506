//! What one cache has goes to a folder or a bucket, and from there to another.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use s2c_pipe::cache::Cache;
#[cfg(feature = "s3")]
use s2c_pipe::cache::remote::S3;
use s2c_pipe::cache::remote::{Far, Folder, Item, Moved, TakeFn, Transfer, pull, push};
use s2c_pipe::pipeline::graph::{Graph, UnitIdx};

use crate::engine::{Workspace, executed, params, pipeline};

/// Files of a folder that are no temporary ones, by name.
fn files(root: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut to_do: Vec<PathBuf> = vec![root.to_owned()];
    while let Some(folder) = to_do.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().map(Result::unwrap) {
            match entry.path().is_dir() {
                true => to_do.push(entry.path()),
                false => drop(found.insert(entry.path().strip_prefix(root).unwrap().display().to_string())),
            }
        }
    }
    found
}

/// A cache with six units, and one with none.
fn two() -> (Workspace, Workspace, (Graph, UnitIdx)) {
    let pipeline = pipeline(&["a", "b", "c", "d"], &params("."), "!");
    let (one, other) = (Workspace::new(), Workspace::new());
    one.counts(&pipeline);
    (one, other, pipeline)
}

const N_UNITS: usize = 6;
/// Outputs, and the listing of the set.
const N_BLOBS: usize = 7;
const TEXT: &str = "a.b.c.d.|!";

fn send(from: &Workspace, far: &dyn Far) -> anyhow::Result<Transfer> {
    push(&from.open(), far, false, &|_, _| ())
}

fn take(to: &Workspace, far: &dyn Far) -> anyhow::Result<Transfer> {
    pull(&to.open(), far, &|_, _| ())
}

/// All that goes one way and back, on a far side that is empty.
fn round_trip(far: &dyn Far) {
    let (one, other, pipeline) = two();
    let seen = Cell::new((Moved::default(), Moved::default()));
    let sent = push(&one.open(), far, false, &|done, of| seen.set((done, of))).unwrap();
    assert_eq!((sent.units, sent.moved.blobs, sent.there), (N_UNITS, N_BLOBS, 0), "{sent:?}");
    assert_eq!((seen.get().0, seen.get().1), (sent.moved, sent.moved), "progress ends where the work does");
    let taken = take(&other, far).unwrap();
    assert_eq!(taken.units, N_UNITS, "{taken:?}");
    assert_eq!(other.counts(&pipeline), (vec![], TEXT.into()), "nothing runs");
    assert!(other.open().verify().unwrap().incomplete.is_empty());

    // Again: nothing moves. One unit more: that unit.
    let (again, back) = (send(&one, far).unwrap(), take(&other, far).unwrap());
    assert_eq!((again.units, again.moved.blobs, again.there), (0, 0, N_BLOBS));
    assert_eq!((back.units, back.moved.blobs), (0, 0));
    let more = self::pipeline(&["a", "b", "c", "d"], &params("."), "?");
    assert_eq!(other.counts(&more), (executed(&[("concat", 1)]), "a.b.c.d.|?".into()));
    assert_eq!((send(&other, far).unwrap().units, take(&one, far).unwrap().units), (1, 1));
    assert_eq!(one.counts(&more).0, vec![]);
}

fn pipeline_of(values: &[&str]) -> (Graph, UnitIdx) {
    pipeline(values, &params("."), "!")
}

#[test]
fn a_folder_takes_all_and_gives_it_back() {
    let dir = tempfile::tempdir().unwrap();
    round_trip(&Folder::new(dir.path().join("far")));
    assert!(files(dir.path()).iter().all(|name| !name.contains(".tmp")));
}

#[test]
fn a_folder_that_was_sent_to_is_a_cache() {
    let (one, _, pipeline) = two();
    let mut other = Workspace::new();
    other.cache = other.dir.path().join("far");
    send(&one, &Folder::new(other.cache.clone())).unwrap();
    assert_eq!(other.counts(&pipeline), (vec![], TEXT.into()));
}

/// Ends after so many files.
struct Broken<'a> {
    far: &'a dyn Far,
    left: Cell<usize>,
    asked: Cell<usize>,
}

impl<'a> Broken<'a> {
    fn after(n: usize, far: &'a dyn Far) -> Self {
        Self { far, left: Cell::new(n), asked: Cell::new(0) }
    }

    fn step(&self) -> anyhow::Result<()> {
        let left = self.left.get().checked_sub(1).ok_or_else(|| anyhow::anyhow!("the line is cut"))?;
        self.left.set(left);
        self.asked.set(self.asked.get() + 1);
        Ok(())
    }
}

impl Far for Broken<'_> {
    fn list(&self, folder: &str) -> anyhow::Result<Vec<Item>> {
        self.far.list(folder)
    }

    fn there(&self, items: &[Item]) -> anyhow::Result<Vec<Item>> {
        self.far.there(items)
    }

    fn put(&self, items: &[Item], read: &mut dyn FnMut(&Item) -> Option<Vec<u8>>) -> anyhow::Result<()> {
        items.iter().try_for_each(|item| self.step().and_then(|()| self.far.put(std::slice::from_ref(item), read)))
    }

    fn get(&self, items: &[Item], take: &mut TakeFn<'_>) -> anyhow::Result<()> {
        items.iter().try_for_each(|item| self.step().and_then(|()| self.far.get(std::slice::from_ref(item), take)))
    }
}

#[test]
fn a_broken_transfer_goes_on_where_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let far = Folder::new(dir.path().join("far"));
    let (one, other, pipeline) = two();
    for n in [0, 3, 2] {
        assert!(send(&one, &Broken::after(n, &far)).is_err());
        assert!(!dir.path().join("far/manifests").exists(), "records come after their blobs");
    }
    // A file of another size is not whole.
    let torn = files(&dir.path().join("far/blobs")).pop_first().unwrap();
    fs::write(dir.path().join("far/blobs").join(torn), "").unwrap();
    let rest = Broken::after(99, &far);
    let sent = send(&one, &rest).unwrap();
    assert_eq!((sent.there, sent.moved.blobs, rest.asked.get()), (4, N_BLOBS - 4, N_BLOBS - 4 + 1));

    // The log, and two blobs.
    assert!(take(&other, &Broken::after(3, &far)).is_err());
    assert_eq!((files(&other.cache.join("blobs")).len(), other.open().manifests().unwrap().len()), (2, 0));
    let rest = Broken::after(99, &far);
    let taken = take(&other, &rest).unwrap();
    assert_eq!((taken.units, rest.asked.get()), (N_UNITS, 1 + N_BLOBS - 2));
    assert_eq!(other.counts(&pipeline), (vec![], TEXT.into()));
}

#[test]
fn what_is_not_what_its_name_says_is_refused_and_named() {
    let dir = tempfile::tempdir().unwrap();
    let far = Folder::new(dir.path().join("far"));
    let (one, other, pipeline) = two();
    // Damaged here: it is not sent, and its unit goes as a record alone.
    fs::write(one.blob("b."), "x.").unwrap();
    let name = |text: &str| {
        let path = one.blob(text);
        path.strip_prefix(&one.cache).unwrap().display().to_string()
    };
    let sent = send(&one, &far).unwrap();
    assert_eq!(sent.refused, [name("b.")].into());
    assert!(!dir.path().join("far").join(name("b.")).exists());
    // Damaged there, at equal size: it is not taken, nor the record of its unit.
    fs::write(dir.path().join("far").join(name(TEXT)), "A.b.c.d.|!").unwrap();
    let taken = take(&other, &far).unwrap();
    assert_eq!((taken.refused, taken.units), ([name(TEXT)].into(), N_UNITS - 1));
    assert!(!other.blob(TEXT).exists());
    assert!(other.open().verify().unwrap().corrupt.is_empty());
    assert_eq!(other.counts(&pipeline), (executed(&[("concat", 1)]), TEXT.into()));
    // Where it is taken away, looking finds what is not there; a damaged log counts for nothing.
    fs::remove_file(dir.path().join("far").join(name(TEXT))).unwrap();
    assert_eq!(send(&one, &far).unwrap().moved.blobs, 0);
    assert_eq!(push(&one.open(), &far, true, &|_, _| ()).unwrap().moved.blobs, 1);
    for log in files(&dir.path().join("far/manifests")) {
        let log = dir.path().join("far/manifests").join(log);
        let bytes = fs::read(&log).unwrap();
        fs::write(&log, &bytes[..bytes.len() - 1]).unwrap();
    }
    let third = Workspace::new();
    let taken = take(&third, &far).unwrap();
    assert_eq!((taken.refused.len(), taken.units), (2, 0), "{taken:?}");
}

/// Who only looks leaves what is damaged where it is.
#[test]
fn a_cache_that_is_in_use_does_not_send_records_without_their_blobs() {
    let dir = tempfile::tempdir().unwrap();
    let far = Folder::new(dir.path().join("far"));
    let (one, other, _) = two();
    fs::write(one.blob("b."), "x.").unwrap();
    let held = one.open();
    let looking = Cache::open_to_read(&one.cache, "test").unwrap();
    assert_eq!(push(&looking, &far, false, &|_, _| ()).unwrap().refused.len(), 1);
    drop((looking, held));
    // Once it is whole again it goes after all.
    fs::write(one.blob("b."), "b.").unwrap();
    assert_eq!(send(&one, &far).unwrap().moved.blobs, 1);
    let taken = take(&other, &far).unwrap();
    assert!(taken.missing.is_empty() && other.blob("b.").exists(), "{taken:?}");
}

#[test]
fn records_travel_without_blobs_that_were_removed() {
    let dir = tempfile::tempdir().unwrap();
    let far = Folder::new(dir.path().join("far"));
    let (one, other, pipeline) = two();
    fs::remove_file(one.blob("a.")).unwrap();
    fs::remove_file(one.blob("a.b.c.d.|")).unwrap();
    let sent = send(&one, &far).unwrap();
    assert_eq!((sent.units, sent.moved.blobs), (N_UNITS, N_BLOBS - 2));
    assert_eq!(take(&other, &far).unwrap().units, N_UNITS);
    assert_eq!(other.counts(&pipeline), (vec![], TEXT.into()), "nothing that is cached needs them");
    // Somebody has them after all.
    let third = Workspace::new();
    third.counts(&pipeline_of(&["a"]));
    let sent = send(&third, &far).unwrap();
    assert!(sent.units >= 1, "{sent:?}");
    let taken = take(&other, &far).unwrap();
    assert!(taken.moved.blobs >= 1 && other.blob("a.").exists(), "{taken:?}");
}

fn program(args: &[&str], cache: &Path) -> (bool, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_s2c-pipe"));
    let output = command.args(args).arg("--cache").arg(cache).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.success(), text(&output.stdout) + &text(&output.stderr))
}

/// As a user does it, to a far side that is empty.
fn by_the_program(far: &str) {
    let (one, other, pipeline) = two();
    let sent = program(&["cache", "push", far], &one.cache);
    assert_eq!(sent, (true, format!("6 units, 7 blobs, {} B sent; 0 blobs were there\n", bytes_of(&one))));
    let (is_ok, taken) = program(&["cache", "pull", far], &other.cache);
    assert!(is_ok && taken.starts_with("6 units, 6 blobs, "), "{taken}");
    assert_eq!(other.counts(&pipeline), (vec![], TEXT.into()));
}

fn bytes_of(workspace: &Workspace) -> u64 {
    let blobs = workspace.cache.join("blobs");
    files(&blobs)
        .iter()
        .filter(|name| !name.contains(".tmp"))
        .map(|name| blobs.join(name).metadata().unwrap().len())
        .sum::<u64>()
        - VALUES
}

/// Bytes of `a` to `d`, which are in the store and stay here.
const VALUES: u64 = 4;

#[test]
fn the_program_sends_to_folders_and_explains_other_places() {
    let dir = tempfile::tempdir().unwrap();
    by_the_program(&dir.path().join("far").to_string_lossy());
    let cache = Workspace::new().cache;
    for (args, error, hint) in [
        (["cache", "pull", "nowhere"], "there is no folder `nowhere`", "`cache push` has written"),
        (["cache", "push", "gs://x"], "`gs://x` is neither a folder nor s3://", "s3://BUCKET/PREFIX"),
    ] {
        let (is_ok, said) = program(&args, &cache);
        assert!(!is_ok && said.contains(error) && said.contains(hint), "{said}");
    }
}

/// Against a server that speaks S3, named by `S2C_TEST_BUCKET` and the AWS_ variables: `make test-s3` starts one.
#[cfg(feature = "s3")]
#[test]
#[ignore = "needs a server: make test-s3"]
fn a_bucket_takes_all_and_gives_it_back() {
    let bucket = std::env::var("S2C_TEST_BUCKET").unwrap();
    let settings = || std::env::vars().filter(|(name, _)| name.starts_with("AWS_"));
    let open = |prefix: &str| S3::open(&format!("{bucket}/{}-{prefix}", std::process::id()), settings()).unwrap();
    round_trip(&open("trip"));
    by_the_program(&format!("{bucket}/{}-program/below", std::process::id()));

    let (one, other, pipeline) = two();
    let far = open("broken");
    assert!(send(&one, &Broken::after(4, &far)).is_err());
    let sent = send(&one, &far).unwrap();
    assert_eq!((sent.there, sent.moved.blobs), (4, N_BLOBS - 4));
    // Damaged there, at equal size.
    let path = one.blob(TEXT);
    let name = path.strip_prefix(&one.cache).unwrap().display().to_string();
    far.put(&[Item { name: name.clone(), size: 10 }], &mut |_| Some(b"A.b.c.d.|!".to_vec())).unwrap();
    let taken = take(&other, &far).unwrap();
    assert_eq!((taken.refused, taken.units), ([name].into(), N_UNITS - 1));
    assert_eq!(other.counts(&pipeline), (executed(&[("concat", 1)]), TEXT.into()));

    // In parts, and more than a page of a listing.
    let large: Vec<u8> = (0..40u32 << 20).map(|i| (i.wrapping_mul(2654435761) >> 24) as u8).collect();
    let large_item = Item { name: "blobs/la/rge".into(), size: large.len() as u64 };
    far.put(std::slice::from_ref(&large_item), &mut |_| Some(large.clone())).unwrap();
    let small: Vec<Item> = (0..1100).map(|i| Item { name: format!("blobs/sm/{i:04}"), size: 4 }).collect();
    far.put(&small, &mut |item| Some(item.name[9..].into())).unwrap();
    let mut listed = far.list("blobs").unwrap();
    listed.retain(|item| item.name.starts_with("blobs/sm") || item.name == large_item.name);
    listed.sort();
    let mut expected = [&[large_item.clone()][..], &small].concat();
    expected.sort();
    assert_eq!(listed, expected);
    let asked = [large_item, Item { name: "blobs/no/thing".into(), size: 0 }];
    let mut n_found = 0;
    let mut look = |item: &Item, bytes: Option<&[u8]>| {
        match bytes {
            Some(bytes) => assert!(item.name == "blobs/la/rge" && bytes == large),
            None => assert_eq!(item.name, "blobs/no/thing"),
        }
        n_found += 1;
        Ok(())
    };
    far.get(&asked, &mut look).unwrap();
    assert_eq!(n_found, 2);
    assert_eq!(far.there(&asked).unwrap(), asked[..1]);

    let error = S3::open("s3://no-such-bucket-here/x", settings()).unwrap().list("manifests").unwrap_err();
    assert!(format!("{error:#}").contains("could not list `manifests`"), "{error:#}");
}
