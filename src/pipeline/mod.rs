//! From a TOML file to results: `spec` (what was written), `graph` (units), `plan` (what is cached), `run`.

mod agenda;
#[cfg(feature = "torch")]
pub mod build;
mod crf;
#[cfg(feature = "torch")]
pub mod draw;
pub mod executor;
pub mod file;
pub mod graph;
pub mod outcomes;
pub mod plan;
pub mod preset;
#[cfg(feature = "torch")]
pub mod repeats;
mod resolve;
#[cfg(feature = "torch")]
pub mod results;
pub mod run;
pub mod spec;
#[cfg(feature = "torch")]
pub mod tensorboard;
