//! Event files of a finished run, read by a reader of the format's description alone.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use s2c_pipe::cache::Cache;

use crate::program::{finished_copy, succeeds};

/// By a table of the remainders of all bytes.
fn crc_32c(bytes: &[u8]) -> u32 {
    let mut table = [0u32; 256];
    for (i, entry) in table.iter_mut().enumerate() {
        let mut n = i as u32;
        for _ in 0..8 {
            n = if n % 2 == 1 { (n / 2) ^ 0x82f6_3b78 } else { n / 2 };
        }
        *entry = n;
    }
    !bytes.iter().fold(!0, |crc, byte| table[(crc as u8 ^ byte) as usize] ^ (crc >> 8))
}

fn assert_checked(bytes: &[u8], check: &[u8]) {
    let crc = crc_32c(bytes);
    let masked = crc.rotate_right(15).wrapping_add(0xa282_ead8);
    assert_eq!(check, masked.to_le_bytes());
}

/// A message's fields: number, and value as bytes (a varint's as eight).
fn fields(mut bytes: &[u8]) -> BTreeMap<u64, Vec<u8>> {
    fn varint(bytes: &mut &[u8]) -> u64 {
        let n_bytes = bytes.iter().position(|byte| byte & 0x80 == 0).unwrap() + 1;
        let (n, rest) = bytes.split_at(n_bytes);
        *bytes = rest;
        n.iter().rev().fold(0, |value, byte| value << 7 | u64::from(byte & 0x7f))
    }
    let mut found = BTreeMap::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes);
        let length = match key & 7 {
            0 => {
                found.insert(key >> 3, varint(&mut bytes).to_le_bytes().to_vec());
                continue;
            }
            1 => 8,
            2 => varint(&mut bytes) as usize,
            5 => 4,
            wire => panic!("wire type {wire}"),
        };
        let (value, rest) = bytes.split_at(length);
        found.insert(key >> 3, value.to_vec());
        bytes = rest;
    }
    found
}

/// By tag: step and value, in order. The times of a tag do not go back; those of two tags may, since a variant's
/// trainings and evaluations run side by side.
fn read(path: &Path) -> BTreeMap<String, Vec<(u64, f32)>> {
    let bytes = fs::read(path).unwrap();
    let (mut rest, mut events, mut last) = (&bytes[..], Vec::new(), BTreeMap::<String, f64>::new());
    while !rest.is_empty() {
        let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
        assert_checked(&rest[..8], &rest[8..12]);
        assert_checked(&rest[12..12 + length], &rest[12 + length..16 + length]);
        events.push(fields(&rest[12..12 + length]));
        rest = &rest[16 + length..];
    }
    assert_eq!(events.remove(0)[&3], b"brain.Event:2");
    let mut found: BTreeMap<String, Vec<(u64, f32)>> = BTreeMap::new();
    for event in events {
        let time = f64::from_le_bytes(event[&1][..].try_into().unwrap());
        let step = event.get(&2).map_or(0, |step| u64::from_le_bytes(step[..].try_into().unwrap()));
        let value = fields(&fields(&event[&5])[&1]);
        let tag = String::from_utf8(value[&1].clone()).unwrap();
        let before = last.insert(tag.clone(), time).unwrap_or(0.0);
        assert!(time >= before && time > 1.7e9, "{tag}: {time} after {before}");
        found.entry(tag).or_default().push((step, f32::from_le_bytes(value[&2][..].try_into().unwrap())));
    }
    found
}

#[test]
fn event_files_hold_what_the_cache_does() {
    let dir = finished_copy();
    let of_run = dir.path().join("out/tiny/tensorboard");
    let file = "events.out.tfevents.0000000000.s2c-pipe";
    let s2c = read(&of_run.join("S2C").join(file));
    let steps = |tag: &str| s2c[tag].iter().map(|(step, _)| *step).collect::<Vec<_>>();
    for tag in ["loss/cls", "loss/ssc", "lr", "grad_norm", "time/images_per_second", "time/waited"] {
        assert_eq!(steps(tag), [0, 1, 2, 3], "{tag}");
    }
    assert!(steps("loss/cpm").iter().all(|step| *step >= 2), "CPM starts with the second epoch");
    assert_eq!(
        (steps("segmentation/loss"), steps("miou/seed"), steps("miou/segmentation")),
        (vec![0, 1], vec![4], vec![2])
    );
    assert!(!read(&of_run.join("baseline").join(file)).contains_key("loss/ssc"));

    // The losses of the first epoch of both variants, as their units have them.
    let values: Vec<serde_json::Value> = {
        let cache = Cache::open(&dir.path().join("cache"), "test", &|_| true).unwrap();
        let manifests = cache.manifests().unwrap();
        let first = manifests.iter().filter(|manifest| manifest.label == "cam_epoch epoch 0");
        let losses = first.map(|manifest| cache.store().read(&manifest.output("losses").unwrap().digest).unwrap());
        losses.map(|json| serde_json::from_slice(&json).unwrap()).collect()
    };
    assert_eq!(values.len(), 2);
    let with_ssc = values.iter().find(|rows| rows[0]["ssc"].is_number()).unwrap();
    for (i, row) in with_ssc.as_array().unwrap().iter().enumerate() {
        for (tag, field) in [("loss/cls", "cls"), ("loss/ssc", "ssc"), ("lr", "lr"), ("grad_norm", "grad_norm")] {
            assert_eq!(s2c[tag][i].1, row[field].as_f64().unwrap() as f32, "{tag}");
        }
    }

    // The command makes the same bytes from the cache.
    succeeds(dir.path(), &["tensorboard", "tiny.toml", "--to", "again"]);
    for variant in ["baseline", "S2C"] {
        let [run, again] =
            [&of_run, &dir.path().join("again")].map(|to| fs::read(to.join(variant).join(file)).unwrap());
        assert!(run == again, "{variant}");
    }
}
