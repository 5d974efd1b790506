//! Inputs as people have them, one file a kind of fault: each case has its input, what is said of it and what must stay as
//! it is.

#[cfg(feature = "torch")]
mod batches;
#[cfg(feature = "torch")]
mod cache;
#[cfg(feature = "torch")]
mod datasets;
#[cfg(feature = "torch")]
mod long_runs;
#[cfg(feature = "torch")]
mod outputs;
#[cfg(feature = "torch")]
mod overwrites;
#[cfg(feature = "torch")]
mod records;
mod settings;
#[cfg(feature = "torch")]
mod shares;
#[cfg(feature = "torch")]
mod trainings;
#[cfg(feature = "torch")]
mod weights;
