//! libtorch models and losses: no cache, no files but weights. A model file makes sense to a reader who has never
//! heard of pipelines; its field names are those of the public checkpoints.

pub mod advcam;
pub mod affinity;
pub mod backbone;
mod bf16;
pub mod classifier;
#[cfg(test)]
#[path = "../../tests/it/close.rs"]
mod close;
pub mod conv;
pub mod cpm;
pub mod deeplab;
mod init;
pub mod irn;
pub mod known;
pub mod layer;
pub mod loss;
pub mod memory;
pub mod optim;
pub mod psa;
pub mod repeat;
pub mod resnet;
pub mod resnet38;
pub mod s2c;
pub mod sam;
pub mod seam;
mod simd;
pub mod sound;
pub mod ssc;
pub mod weights;

use tch::{Kind, Tensor};

use crate::vision::Rgb;

/// Number format of convolutions and matrix products.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compute {
    F32,
    Bf16,
    /// Of backbones and what stands on them, in tests: a reference in f64 and a model in f64 agree to many more digits than
    /// rounding takes, where in f32 a unit near 0 may be off on one processor and on on another.
    F64,
}

impl Compute {
    pub fn kind(self) -> Kind {
        match self {
            Self::F32 => Kind::Float,
            Self::Bf16 => Kind::BFloat16,
            Self::F64 => Kind::Double,
        }
    }

    /// Of weights as they are trained, and of sums: f32 also around products in bf16.
    pub fn wide_kind(self) -> Kind {
        match self {
            Self::F32 | Self::Bf16 => Kind::Float,
            Self::F64 => Kind::Double,
        }
    }
}

/// The result of products, in the number format of sums: see [`Compute::wide_kind`].
fn wide(x: &Tensor) -> Tensor {
    if x.kind() == Kind::Double { x.shallow_clone() } else { x.to_kind(Kind::Float) }
}

/// `(3, H, W)` u8 on the CPU.
pub fn rgb_tensor(image: &Rgb) -> Tensor {
    let hwc = Tensor::from_slice(&image.data).view([image.height as i64, image.width as i64, 3]);
    hwc.permute([2, 0, 1]).contiguous()
}
