//! Whether the images of a data set are read as stored or turned as their EXIF orientation says.
//!
//! Masks and annotations fit one of the two: where a quarter turn changes the size of an image, its mask tells. What no
//! size tells is read as the others of the data set are, or else as data sets of its kind are made.

use std::collections::HashSet;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::scan::Picture;

/// What to do with images that have an EXIF orientation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OrientationPolicy {
    /// As the sizes of masks and annotations tell; where they do not, as stored in `voc` and in COCO's own images, turned in
    /// `folder` and other `coco`.
    #[default]
    Auto,
    /// The pixels of the files, whatever EXIF says.
    Stored,
    /// As viewers show them.
    Turned,
}

/// An image to be decided on.
pub(super) struct Oriented<'a> {
    pub(super) picture: &'a Picture,
    /// Height and width of its mask, or those that its annotation says.
    pub(super) size: Option<(usize, usize)>,
}

/// For each image whether it is turned, and a line of what was decided, `None` where all are upright.
pub(super) fn decide(
    images: &[Oriented<'_>],
    policy: OrientationPolicy,
    turned_by_default: bool,
) -> (Vec<bool>, Option<String>) {
    let told: Vec<Option<bool>> = images.iter().map(told).collect();
    let count = |what: Option<bool>| told.iter().filter(|told| **told == what).count();
    let by_others = match (count(Some(true)), count(Some(false))) {
        (1.., 0) => Some(true),
        (0, 1..) => Some(false),
        _ => None,
    };
    let by_default = by_others.unwrap_or(turned_by_default);
    let turned: Vec<bool> = images
        .iter()
        .zip(&told)
        .map(|(image, told)| match policy {
            _ if image.picture.is_upright() => false,
            OrientationPolicy::Stored => false,
            OrientationPolicy::Turned => true,
            OrientationPolicy::Auto => told.unwrap_or(by_default),
        })
        .collect();
    // An image may stand in both lists.
    let mut seen = HashSet::new();
    let distinct: Vec<usize> = (0..images.len()).filter(|&i| seen.insert(&images[i].picture.file.path)).collect();
    let n = distinct.iter().filter(|&&i| !images[i].picture.is_upright()).count();
    if n == 0 {
        return (turned, None);
    }
    let head = format!("{n} of {} images have an EXIF orientation", distinct.len());
    let n_turned = distinct.iter().filter(|&&i| turned[i]).count();
    let line = match policy {
        OrientationPolicy::Stored => format!("{head}: read as stored (`dataset.orientation = \"stored\"`)"),
        OrientationPolicy::Turned => {
            format!("{head}: turned as viewers show them (`dataset.orientation = \"turned\"`)")
        }
        OrientationPolicy::Auto => {
            let of_size = distinct.iter().filter(|&&i| told[i].is_some()).count();
            let reason = match (of_size, n - of_size) {
                (0, _) => "no size tells, so as data sets of this kind are made".to_owned(),
                (_, 0) => "the sizes of masks or annotations tell".to_owned(),
                (_, rest) => format!(
                    "the sizes of masks or annotations tell for {of_size}, {rest} are read {}",
                    if by_others.is_some() { "as these" } else { "as data sets of this kind are made" }
                ),
            };
            let read = match n_turned {
                0 => "read as stored".to_owned(),
                _ if n_turned == n => "turned as viewers show them".to_owned(),
                _ => format!("{n_turned} turned as viewers show them, {} read as stored", n - n_turned),
            };
            format!("{head}: {read} ({reason}; `dataset.orientation` is \"stored\" or \"turned\" to say otherwise)")
        }
    };
    (turned, Some(line))
}

/// What sizes tell of an image: `Some(true)`: its mask fits when it is turned, and not as stored.
fn told(Oriented { picture, size }: &Oriented<'_>) -> Option<bool> {
    let (stored, turned) = (picture.size(false), picture.size(true));
    match *size {
        _ if picture.is_upright() || stored == turned => None,
        Some(size) if size == turned => Some(true),
        Some(size) if size == stored => Some(false),
        _ => None,
    }
}
