//! From a TOML file to results: `spec` (what was written), `graph` (units), `plan` (what is cached), `run`.

pub mod executor;
pub mod graph;
pub mod plan;
mod resolve;
pub mod run;
pub mod spec;
