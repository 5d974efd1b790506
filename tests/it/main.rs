//! One integration binary: every further one would link libtorch again.

mod layers;
