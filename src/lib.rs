//! `s2c-pipe`: the S2C system ("From SAM to CAMs", CVPR 2024) as a caching, content-addressed DAG.
//!
//! # The map
//!
//! Start at [`pipeline`]: a TOML file becomes a [`pipeline::spec::Spec`], its variants become the units of one
//! [`pipeline::graph::Graph`], the graph is compared with the cache (`plan`), and what is missing runs (`run`).
//!
//! - [`digest`]: names of bytes and of inputs, and the encoding that leads to them.
//! - [`artifact`]: the record of a finished unit; the only user of bincode.
//! - `regular`: opens the user's files, and nothing that is no file.
//! - [`cache`]: the store on disk: blobs, manifests, the sled index, the lock.
//! - [`vision`]: pure arrays: CAMs, peaks, SE maps, label maps, metrics, pictures.
//! - [`data`]: data sets: VOC trees, MS COCO, plain folders, the emoji scenes; decoding, augmentation.
//! - [`model`]: libtorch: SAM, ResNet, DeepLab, the losses (feature `torch`).
//! - [`stage`]: one file a stage kind: what it reads, what it gives, its `VERSION`.
//! - [`cli`]: arguments, one file a command, everything that prints.
//!
//! # Layers
//!
//! ```text
//! cli -> pipeline -> stage -> { model, data, vision }
//!          |           |
//!          +--> cache -+-> artifact -> digest        (vision and digest import nothing of ours)
//! ```
//!
//! A module imports only from below itself. `model` knows no cache and `cache` knows no model. Library code does
//! not print, read the environment or look at the clock except where [`cli`] hands these in; the paths of a pipeline file
//! are made whole with the working and the home folder, and [`vision::arch`] reads a variable of the tests.
//!
//! # Files on disk
//!
//! See [`cache`] for the store. `run` also writes `out/<pipeline>/`: results and overlay pictures, for people; of these
//! only `overlays/.parts` is read back, so that pictures of the same parts are not drawn again, and `.s2c-pipe`, which says
//! whose folder it is and what was written there.

pub mod artifact;
pub mod cache;
pub mod cli;
pub mod data;
pub mod digest;
#[cfg(feature = "torch")]
pub mod model;
pub mod pipeline;
mod regular;
pub mod stage;
pub mod vision;
