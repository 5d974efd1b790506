//! From a TOML file to results: `spec` (what was written), `graph` (units), `plan` (what is cached), `run`.

pub mod affinity;
mod agenda;
pub mod audit;
#[cfg(feature = "torch")]
pub mod build;
pub mod compare;
pub mod cost;
mod crf;
#[cfg(feature = "torch")]
pub mod draw;
pub mod executor;
pub mod file;
pub mod forecast;
pub mod graph;
#[cfg(feature = "torch")]
pub mod health;
pub mod lineage;
pub mod names;
pub mod outcomes;
pub mod past;
pub mod plan;
pub mod preset;
pub mod repeats;
mod resolve;
pub mod results;
pub mod run;
pub mod spec;
#[cfg(feature = "torch")]
pub mod tensorboard;
pub mod value;
pub mod verified;
pub mod why;
pub mod words;
