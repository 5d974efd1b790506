//! What is wrong with the numbers of a tensor, told from its bytes.

use half::{bf16, f16};
use safetensors::tensor::Dtype;

use super::entry::Entry;

/// Counts over the numbers of a tensor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Numbers {
    /// NaN, or infinite as f32.
    pub not_finite: u64,
    /// Infinite and above zero.
    pub infinite: u64,
    pub below_zero: u64,
    /// Integers where weights are floats.
    pub are_integers: bool,
    /// All have one value.
    pub are_equal: bool,
}

impl Numbers {
    /// `bytes`: of the file.
    pub(super) fn of(bytes: &[u8], entry: &Entry) -> Self {
        let data = bytes.get(entry.range.clone()).unwrap_or_default();
        match entry.dtype {
            Dtype::F32 => count(data, entry, f32::from_le_bytes),
            Dtype::F64 => count(data, entry, |bytes| f64::from_le_bytes(bytes) as f32),
            Dtype::F16 => count(data, entry, |bytes| f16::from_le_bytes(bytes).to_f32()),
            Dtype::BF16 => count(data, entry, |bytes| bf16::from_le_bytes(bytes).to_f32()),
            _ => Self { are_integers: true, ..Self::default() },
        }
    }
}

fn count<const N: usize>(data: &[u8], entry: &Entry, number: impl Fn([u8; N]) -> f32) -> Numbers {
    let (values, _) = data.as_chunks::<N>();
    let mut found = Numbers { are_equal: true, ..Numbers::default() };
    let first = values.first().copied().map(&number);
    let mut look = |value: f32| {
        found.not_finite += u64::from(!value.is_finite());
        found.infinite += u64::from(value == f32::INFINITY);
        found.below_zero += u64::from(value < 0.0);
        found.are_equal &= Some(value) == first;
    };
    match places(entry, values.len()) {
        None => values.iter().for_each(|&bytes| look(number(bytes))),
        Some(places) => places.for_each(|at| values.get(at).into_iter().for_each(|&bytes| look(number(bytes)))),
    }
    found
}

/// Where the numbers of a tensor with gaps lie, each once: what is between them belongs to others. `None`: everywhere,
/// also where a tensor says to have more numbers than there are bytes for.
fn places(entry: &Entry, n_values: usize) -> Option<impl Iterator<Item = usize>> {
    let stride = entry.stride.as_ref()?;
    let dims = entry.shape.iter().zip(stride).filter(|(_, stride)| **stride != 0);
    let dims: Vec<(usize, usize)> = dims.map(|(&size, &stride)| (size as usize, stride as usize)).collect();
    let n = dims.iter().try_fold(1usize, |n, (size, _)| n.checked_mul(*size)).filter(|n| *n <= n_values)?;
    Some((0..n).map(move |mut i| {
        dims.iter().rev().fold(0, |at, &(size, stride)| {
            let along = i % size;
            i /= size;
            at + along * stride
        })
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_counted_where_the_tensor_has_them() {
        let nan = f32::NAN;
        let values = [1.0, nan, -1.0, f32::INFINITY, 1.0, 1.0f32];
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let of = |shape: &[i64], stride: &[i64], offset| {
            let entry = Entry::strided(Dtype::F32, (shape.to_vec(), stride.to_vec()), offset, 0..bytes.len());
            let found = Numbers::of(&bytes, &entry.unwrap());
            (found.not_finite, found.below_zero, found.are_equal)
        };
        assert_eq!(of(&[6], &[1], 0), (2, 1, false));
        assert_eq!(of(&[3], &[2], 0), (0, 1, false), "what is between is another's");
        assert_eq!(of(&[1 << 40], &[0], 5), (0, 0, true), "one number, many times");
        assert_eq!(of(&[1 << 40], &[0], 1), (1, 0, false));
        assert_eq!(of(&[5, 5, 5], &[1, 0, 0], 0), (2, 1, false));
        let of = |dtype: Dtype, bytes: &[u8]| Numbers::of(bytes, &Entry::dense(dtype, &[1], 0..bytes.len()).unwrap());
        assert_eq!(of(Dtype::F16, &f16::INFINITY.to_le_bytes()).not_finite, 1);
        assert_eq!(of(Dtype::BF16, &bf16::NAN.to_le_bytes()).not_finite, 1);
        assert_eq!(of(Dtype::F64, &1e300f64.to_le_bytes()).not_finite, 1, "infinite as f32");
        assert!(of(Dtype::I8, &[1]).are_integers);
    }
}
