//! First values of weights, from streams of ours: libtorch's own depend on its global state.

use rand_chacha::ChaCha8Rng;
use tch::{Device, Kind, Tensor};

use super::weights::Weights;
use crate::data::rng::unit;

/// A trained 1x1 convolution: of a checkpoint that has it, else a `new` one.
///
/// # Errors
/// The checkpoint's has another shape.
pub(super) fn layer(
    weights: &Weights,
    name: &str,
    shape: &[i64; 4],
    (device, kind): (Device, Kind),
    new: impl FnOnce(&[i64; 4]) -> Tensor,
) -> anyhow::Result<Tensor> {
    let weight = if weights.contains(name) { weights.get(name, shape)? } else { new(shape) };
    Ok(weight.to_device(device).to_kind(kind).set_requires_grad(true))
}

/// Uniform in `-bound..bound`.
pub(super) fn uniform(rng: &mut ChaCha8Rng, shape: &[i64], bound: f64) -> Tensor {
    let n: i64 = shape.iter().product();
    let values: Vec<f32> = (0..n).map(|_| ((unit(rng) * 2.0 - 1.0) * bound) as f32).collect();
    Tensor::from_slice(&values).view(shape)
}

/// Xavier-uniform values of a 1x1 convolution, times `gain`.
pub(super) fn xavier(rng: &mut ChaCha8Rng, shape: &[i64; 4], gain: f64) -> Tensor {
    uniform(rng, shape, gain * (6.0 / (shape[0] + shape[1]) as f64).sqrt())
}

/// Kaiming-normal values of a 1x1 convolution before a ReLU.
pub(super) fn kaiming(rng: &mut ChaCha8Rng, shape: &[i64; 4]) -> Tensor {
    normal(rng, shape, (2.0 / shape[1] as f64).sqrt())
}

/// Normal values (Box-Muller).
pub(super) fn normal(rng: &mut ChaCha8Rng, shape: &[i64], std: f64) -> Tensor {
    let n: i64 = shape.iter().product();
    let mut draw = || {
        let radius = (-2.0 * (1.0 - unit(rng)).ln()).sqrt();
        (radius * (std::f64::consts::TAU * unit(rng)).cos() * std) as f32
    };
    let values: Vec<f32> = (0..n).map(|_| if std == 0.0 { 0.0 } else { draw() }).collect();
    Tensor::from_slice(&values).view(shape)
}
