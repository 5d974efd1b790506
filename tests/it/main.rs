//! One integration binary: every further one would link libtorch again.

#[cfg(feature = "torch")]
mod advcam;
#[cfg(feature = "torch")]
mod affinity;
mod answers;
#[cfg(feature = "torch")]
mod asked;
mod audit;
#[cfg(feature = "torch")]
mod backbone;
#[cfg(feature = "torch")]
mod cam_epoch;
#[cfg(feature = "torch")]
mod close;
mod coco;
#[cfg(feature = "torch")]
mod cpm;
mod crf;
#[cfg(feature = "torch")]
mod datasets;
#[cfg(feature = "torch")]
mod device;
mod engine;
mod faults;
mod faults_corpus;
mod fuzz;
mod gc;
mod history;
#[cfg(feature = "torch")]
mod kills;
mod layers;
mod mounts;
#[cfg(feature = "torch")]
mod pins;
mod pixels;
#[cfg(feature = "torch")]
mod presets;
#[cfg(feature = "torch")]
mod program;
mod propagate;
#[cfg(feature = "torch")]
mod refine;
mod remote;
#[cfg(feature = "torch")]
mod sam;
#[cfg(feature = "torch")]
mod sam_everything;
#[cfg(feature = "torch")]
mod sam_refine;
#[cfg(feature = "torch")]
mod sam_vit;
#[cfg(feature = "torch")]
mod ssc;
#[cfg(feature = "torch")]
mod sweep;
#[cfg(feature = "torch")]
mod tensorboard;
#[cfg(feature = "torch")]
mod train;
mod verified;
