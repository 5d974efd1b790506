//! Files and settings as people have them, one file a kind: what is put in, what is said, with which exit code.

#[cfg(feature = "torch")]
mod weights;
