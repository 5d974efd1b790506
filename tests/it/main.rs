//! One integration binary: every further one would link libtorch again.

mod engine;
mod layers;
#[cfg(feature = "torch")]
mod sam;
