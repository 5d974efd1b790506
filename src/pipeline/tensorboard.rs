//! What a variant's training recorded as an event file of TensorBoard: TFRecord frames that hold `Event` messages of
//! protocol buffers (tensorflow/core/util/event.proto, tensorflow/core/lib/io/record_writer.h).

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::build::CellUnits;
use super::graph::UnitIdx;
use super::outcomes::Outcomes;
use crate::artifact::Manifest;
use crate::cache::Cache;
use crate::digest::UnitKey;

/// A number at a step.
#[derive(Clone, Debug, PartialEq)]
pub struct Scalar {
    pub tag: String,
    pub step: u64,
    /// Seconds since 1970.
    pub time: f64,
    pub value: f64,
}

/// What a step took.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct StepTime {
    /// Of its epoch, from 0.
    pub step: u64,
    pub images: u64,
    pub seconds: f64,
    /// Of these, without a batch.
    pub waited: f64,
}

/// Fields of the classifier's `losses`, and their tags; those of AffinityNet's and IRN's are under `affinity/`,
/// of the segmentation network's under `segmentation/`.
const CLASSIFIER: [(&str, &str); 7] = [
    ("cls", "loss/cls"),
    ("ssc", "loss/ssc"),
    ("cpm", "loss/cpm"),
    ("equivariance", "loss/equivariance"),
    ("ecr", "loss/ecr"),
    ("lr", "lr"),
    ("grad_norm", "grad_norm"),
];
const AFFINITY: [(&str, &str); 7] = [
    ("bg", "affinity/bg"),
    ("fg", "affinity/fg"),
    ("neg", "affinity/neg"),
    ("dp_fg", "affinity/dp_fg"),
    ("dp_bg", "affinity/dp_bg"),
    ("lr", "affinity/lr"),
    ("grad_norm", "affinity/grad_norm"),
];
const SEGMENTATION: [(&str, &str); 3] =
    [("seg", "segmentation/loss"), ("lr", "segmentation/lr"), ("grad_norm", "segmentation/grad_norm")];

/// Scalars of what has finished of a cell, in the order it finishes, so that more only adds to the end. `times`: of a
/// unit's steps, where they are known.
pub fn scalars(
    cell: &CellUnits,
    finished: &Outcomes,
    cache: &Cache,
    times: &dyn Fn(&UnitKey) -> Vec<StepTime>,
) -> anyhow::Result<Vec<Scalar>> {
    let mut found = Vec::new();
    let read = |unit: UnitIdx, output: &str| -> anyhow::Result<Option<(Manifest, Value)>> {
        let Some(manifest) = finished.key(unit).and_then(|key| cache.get(&key)) else { return Ok(None) };
        // What is not in the store any more is not shown.
        let bytes = manifest.output(output).and_then(|output| cache.store().read_output(output).ok());
        Ok(bytes.map(|bytes| serde_json::from_slice(&bytes)).transpose()?.map(|value| (manifest, value)))
    };
    let parts = [
        (
            &cell.cam_epochs,
            &CLASSIFIER[..],
            "",
            [("miou/seed", cell.seed_eval), ("miou/pseudo_label", cell.pseudo_eval)],
        ),
        (&cell.affinity.epochs, &AFFINITY, "affinity/", [("", None), ("", None)]),
        (&cell.seg_epochs, &SEGMENTATION, "segmentation/", [("miou/segmentation", cell.seg_eval), ("", None)]),
    ];
    for (epochs, tags, group, evals) in parts {
        // A unit's end is kept in whole seconds, so a short epoch would seem to begin before the one it follows.
        let (mut step, mut last) = (0, f64::MIN);
        for &unit in epochs {
            let Some((manifest, losses)) = read(unit, "losses")? else { continue };
            let rows = losses.as_array().cloned().unwrap_or_default();
            let times: BTreeMap<u64, StepTime> =
                times(&manifest.key).into_iter().map(|time| (time.step, time)).collect();
            let n_rows = rows.len() as f64;
            for (i, row) in (0u64..).zip(&rows) {
                // Steps stand evenly in the time their unit took.
                let even = manifest.finished as f64 - manifest.seconds * (1.0 - (i + 1) as f64 / n_rows);
                let time = even.max(last);
                last = time;
                let mut put = |tag: String, value: f64| found.push(Scalar { tag, step, time, value });
                for (field, tag) in tags {
                    row[field].as_f64().into_iter().for_each(|value| put((*tag).to_owned(), value));
                }
                if let Some(StepTime { images, seconds, waited, .. }) = times.get(&i) {
                    put(format!("{group}time/images_per_second"), *images as f64 / seconds.max(1e-9));
                    put(format!("{group}time/waited"), waited / seconds.max(1e-9));
                }
                step += 1;
            }
        }
        for (tag, unit) in evals {
            let Some(unit) = unit else { continue };
            let Some((manifest, metrics)) = read(unit, "metrics")? else { continue };
            let (tag, time) = (tag.to_owned(), manifest.finished as f64);
            found.extend(metrics["miou"].as_f64().map(|miou| Scalar { tag, step, time, value: miou * 100.0 }));
        }
    }
    Ok(found)
}

/// The bytes of an event file.
pub fn event_file(scalars: &[Scalar]) -> Vec<u8> {
    let start = scalars.first().map_or(0.0, |scalar| scalar.time);
    let mut bytes = frame(&[double(1, start), text(3, "brain.Event:2")].concat());
    for Scalar { tag, step, time, value } in scalars {
        let value = [text(1, tag), float(2, *value as f32)].concat();
        let summary = message(1, &value);
        // The default, 0, is not written.
        let step = if *step == 0 { Vec::new() } else { [varint(2 << 3), varint(*step)].concat() };
        bytes.extend(frame(&[double(1, *time), step, message(5, &summary)].concat()));
    }
    bytes
}

/// A record: its length, the length's check, the record, its check.
fn frame(record: &[u8]) -> Vec<u8> {
    let length = (record.len() as u64).to_le_bytes();
    [&length[..], &masked_crc(&length).to_le_bytes(), record, &masked_crc(record).to_le_bytes()].concat()
}

/// CRC-32C (Castagnoli), rotated and shifted as TFRecord has it.
fn masked_crc(bytes: &[u8]) -> u32 {
    let bit = |crc: u32, _| (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg());
    let crc = !bytes.iter().fold(u32::MAX, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), bit));
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

/// Seven bits a byte, the lowest first.
fn varint(mut n: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while n >= 0x80 {
        bytes.push(n as u8 | 0x80);
        n >>= 7;
    }
    bytes.push(n as u8);
    bytes
}

fn message(field: u64, bytes: &[u8]) -> Vec<u8> {
    [&varint(field << 3 | 2), &varint(bytes.len() as u64), bytes].concat()
}

fn text(field: u64, text: &str) -> Vec<u8> {
    message(field, text.as_bytes())
}

fn double(field: u64, value: f64) -> Vec<u8> {
    [varint(field << 3 | 1), value.to_le_bytes().to_vec()].concat()
}

fn float(field: u64, value: f32) -> Vec<u8> {
    [varint(field << 3 | 5), value.to_le_bytes().to_vec()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `make.py` wrote the same events with the `tensorboard` of PyPI.
    #[test]
    fn the_file_is_that_of_tensorboard() {
        let scalar = |tag: &str, step, value| Scalar { tag: tag.into(), step, time: 1.7e9 + step as f64 / 8.0, value };
        let scalars = [
            scalar("loss/cls", 0, 0.625),
            scalar("lr", 0, 0.01),
            scalar("loss/cls", 127, -1.5),
            scalar("loss/cls", 128, 1e-30),
            scalar("miou/seed", 1_000_000, 52.1),
        ];
        let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/tensorboard/events.out.tfevents.golden");
        assert_eq!(event_file(&scalars), std::fs::read(golden).unwrap());
    }

    #[test]
    fn crc_32c_of_its_standard_check() {
        let unmasked = masked_crc(b"123456789").wrapping_sub(0xa282_ead8).rotate_left(15);
        assert_eq!(unmasked, 0xe306_9283);
    }
}
