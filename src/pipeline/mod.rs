//! From a TOML file to results: `spec` (what was written), `graph` (units), `plan` (what is cached), `run`.

pub mod graph;
pub mod spec;
