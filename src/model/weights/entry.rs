//! Where a tensor lies in a checkpoint's bytes, and why there is none.

use std::ops::Range;

use anyhow::{Context, ensure};
use safetensors::tensor::Dtype;

/// More dimensions than libtorch has operators for.
pub(super) const MAX_DIMS: usize = 64;

/// One tensor in the bytes of a file. All it names is inside them: there is no other way to make one.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<i64>,
    /// In elements; `None`: row by row without gaps.
    pub(super) stride: Option<Vec<i64>>,
    /// From the first element to the last.
    pub(super) range: Range<usize>,
}

impl Entry {
    /// Of a tensor that begins `offset` elements into the bytes of its storage.
    pub(super) fn strided(
        dtype: Dtype,
        (shape, stride): (Vec<i64>, Vec<i64>),
        offset: i64,
        storage: Range<usize>,
    ) -> anyhow::Result<Self> {
        ensure!(shape.len() == stride.len(), "{} sizes and {} strides", shape.len(), stride.len());
        ensure!(stride.iter().all(|&n| 0 <= n), "a stride below 0");
        let width = ensure_size(dtype, &shape)?;
        let is_empty = shape.contains(&0);
        let further = |last: i64, (&size, &stride): (&i64, &i64)| last.checked_add((size - 1).checked_mul(stride)?);
        let last = shape.iter().zip(&stride).try_fold(0, further);
        let range = (|| {
            let place = |n: i64| storage.start.checked_add(usize::try_from(n.checked_mul(width)?).ok()?);
            let end = if is_empty { offset } else { offset.checked_add(last?)?.checked_add(1)? };
            Some(place(offset)?..place(end)?)
        })();
        let inside = |range: &Range<usize>| range.end <= storage.end;
        let range = range.filter(inside).context("it reaches past the end of its storage")?;
        let stride = if is_empty || is_dense(&shape, &stride) { None } else { Some(stride) };
        Ok(Self { dtype, shape, stride, range })
    }

    /// Of a tensor without gaps, whose size has been checked.
    pub(super) fn dense(dtype: Dtype, shape: &[usize], range: Range<usize>) -> anyhow::Result<Self> {
        let shape = shape.iter().map(|&n| i64::try_from(n)).collect::<Result<Vec<i64>, _>>()?;
        ensure_size(dtype, &shape)?;
        Ok(Self { dtype, shape, stride: None, range })
    }

    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    pub fn shape(&self) -> &[i64] {
        &self.shape
    }

    pub fn numel(&self) -> i64 {
        self.shape.iter().product()
    }
}

/// A shape that libtorch can count in; gives the bytes of an element.
fn ensure_size(dtype: Dtype, shape: &[i64]) -> anyhow::Result<i64> {
    ensure!(shape.len() <= MAX_DIMS, "{} dimensions", shape.len());
    ensure!(shape.iter().all(|&n| 0 <= n), "a size below 0");
    let width = (dtype.bitsize() / 8).max(1) as i64;
    // Sizes of 0 are left out: libtorch multiplies the others all the same.
    let n_bytes = shape.iter().try_fold(width, |n, &size| n.checked_mul(size.max(1)));
    ensure!(n_bytes.is_some(), "the size {shape:?} is out of range");
    Ok(width)
}

/// Row by row without gaps; the stride along a side of one element is never used.
fn is_dense(shape: &[i64], stride: &[i64]) -> bool {
    let mut expected = 1;
    shape.iter().zip(stride).rev().all(|(&size, &stride)| {
        let fits = size == 1 || stride == expected;
        expected *= size;
        fits
    })
}

/// Bytes are no checkpoint, with what to do about it.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct NotACheckpoint {
    message: String,
    pub hint: &'static str,
}

impl NotACheckpoint {
    pub(super) fn error(message: impl Into<String>, hint: &'static str) -> anyhow::Error {
        Self { message: message.into(), hint }.into()
    }

    /// The bytes end where more must follow.
    pub(super) fn cut_short(len: usize) -> anyhow::Error {
        Self::error(format!("cut short at byte {len}"), "the file is not whole: get it again")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tensor_stays_inside_its_storage() {
        let (huge, storage) = (1i64 << 62, 100..148); // twelve elements
        #[rustfmt::skip]
        let cases: [(&str, &[i64], &[i64], i64, Option<Range<usize>>); 13] = [
            // name              shape          stride        offset  bytes
            ("all",              &[3, 4],       &[4, 1],      0,      Some(100..148)),
            ("a part",           &[2, 2],       &[4, 1],      5,      Some(120..144)),
            ("transposed",       &[4, 3],       &[1, 4],      0,      Some(100..148)),
            ("repeated",         &[9, 9],       &[0, 0],      11,     Some(144..148)),
            ("a scalar",         &[],           &[],          11,     Some(144..148)),
            ("none at the end",  &[0, 3],       &[3, 1],      12,     Some(148..148)),
            ("one too far",      &[2, 2],       &[4, 1],      7,      None),
            ("behind the end",   &[],           &[],          12,     None),
            ("below 0",          &[-1],         &[1],         0,      None),
            ("stride below 0",   &[2],          &[-1],        1,      None),
            ("large stride",     &[3],          &[huge],      0,      None),
            ("large shape",      &[huge, 4],    &[0, 0],      0,      None),
            ("large and empty",  &[0, huge, 4], &[0, 0, 0],   0,      None),
        ];
        for (name, shape, stride, offset, expected) in cases {
            let entry = Entry::strided(Dtype::F32, (shape.to_vec(), stride.to_vec()), offset, storage.clone());
            assert_eq!(entry.ok().map(|entry| entry.range), expected, "{name}");
        }
        assert!(Entry::strided(Dtype::F32, (vec![1; 65], vec![1; 65]), 0, storage.clone()).is_err());
        assert!(Entry::dense(Dtype::F32, &[0, 1 << 62, 4], 0..0).is_err());
    }
}
