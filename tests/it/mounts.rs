//! File systems that are mounted one after the other at one path. These tests need root and `mksquashfs`:
//! `make test-faults` runs them.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use s2c_pipe::cache::Cache;
use s2c_pipe::data::FileMemo;
use s2c_pipe::digest::BlobDigest;

fn system(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Unmounted when it is dropped, also by a test that fails.
struct Mounted<'a>(&'a Path);

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        system("umount", &[self.0.to_str().unwrap()]);
    }
}

fn mount<'a>(args: &[&str], at: &'a Path) -> Mounted<'a> {
    system("mount", &[args, &[at.to_str().unwrap()]].concat());
    Mounted(at)
}

/// The digest of a file as a process of its own finds it, after times have settled.
fn digest(cache: &Path, file: &Path) -> (BlobDigest, usize) {
    std::thread::sleep(std::time::Duration::from_millis(2200));
    let cache = Cache::open(cache, "test", &|_| true).unwrap();
    let digest = cache.digest(file).unwrap();
    (digest, cache.untold_files().len())
}

#[test]
#[ignore = "needs root and mksquashfs: make test-faults"]
fn two_images_of_fixed_times_at_one_path_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let (mnt, cache) = (dir.path().join("mnt"), dir.path().join("cache"));
    fs::create_dir(&mnt).unwrap();
    let mut stamps = Vec::new();
    for version in ["one", "two"] {
        let (data, image) = (dir.path().join(version), dir.path().join(format!("{version}.sqfs")));
        fs::create_dir(&data).unwrap();
        fs::write(data.join("mask.png"), version).unwrap();
        let (data, image) = (data.to_str().unwrap(), image.to_str().unwrap());
        system("mksquashfs", &[data, image, "-all-time", "0", "-noappend", "-quiet", "-no-progress"]);
        let _mounted = mount(&["-o", "loop,ro", image], &mnt);
        let file = mnt.join("mask.png");
        let meta = fs::metadata(&file).unwrap();
        stamps.push((meta.len(), meta.mtime(), meta.ctime(), meta.ino()));
        assert_eq!(digest(&cache, &file), (BlobDigest::of(version.as_bytes()), 1));
    }
    assert_eq!(stamps[0], stamps[1], "the two files have one stamp");
}

#[test]
#[ignore = "needs root: make test-faults"]
fn two_file_systems_in_memory_at_one_path_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    for name in ["a", "b", "mnt"] {
        fs::create_dir(at(name)).unwrap();
    }
    let (a, b, mnt, cache) = (at("a"), at("b"), at("mnt"), at("cache"));
    let _a = mount(&["-t", "tmpfs", "a"], &a);
    let _b = mount(&["-t", "tmpfs", "b"], &b);
    // Made in one tick of the clock, they have one time.
    let stamp =
        |path: &Path| fs::metadata(path).map(|meta| (meta.mtime_nsec(), meta.ctime_nsec(), meta.ino())).unwrap();
    let name = (0..4000).map(|i| format!("{i}.png")).find(|name| {
        fs::write(a.join(name), "one").unwrap();
        fs::write(b.join(name), "two").unwrap();
        stamp(&a.join(name)) == stamp(&b.join(name))
    });
    let name = name.expect("two files with one stamp");
    for (folder, bytes) in [(&a, "one"), (&b, "two")] {
        let _mounted = mount(&["--bind", folder.to_str().unwrap()], &mnt);
        assert_eq!(digest(&cache, &mnt.join(&name)), (BlobDigest::of(bytes.as_bytes()), 0));
    }
}
