//! Random streams: each is a function of what it is for, never of arrival order.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// The stream of one purpose: `stream(rng_seed, epoch, "2007_000032", "augment")`.
pub fn stream(rng_seed: u64, epoch: u64, item: &str, purpose: &str) -> ChaCha8Rng {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&rng_seed.to_le_bytes());
    hasher.update(&epoch.to_le_bytes());
    hasher.update(&(item.len() as u64).to_le_bytes());
    hasher.update(item.as_bytes());
    hasher.update(purpose.as_bytes());
    ChaCha8Rng::from_seed(*hasher.finalize().as_bytes())
}

/// Uniform in `[0, 1)`, with 53 random bits.
pub fn unit(rng: &mut ChaCha8Rng) -> f64 {
    (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64
}

/// Uniform in `low..=high`.
pub fn integer(rng: &mut ChaCha8Rng, low: i64, high: i64) -> i64 {
    low + (unit(rng) * (high - low + 1) as f64) as i64
}

/// Fisher-Yates.
pub fn shuffle<T>(rng: &mut ChaCha8Rng, values: &mut [T]) {
    for i in (1..values.len()).rev() {
        values.swap(i, integer(rng, 0, i as i64) as usize);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_differ_by_every_part_and_repeat() {
        let first = |seed, epoch, item, purpose| unit(&mut stream(seed, epoch, item, purpose));
        let a = first(0, 1, "x", "augment");
        assert_eq!(a, first(0, 1, "x", "augment"));
        for other in [first(1, 1, "x", "augment"), first(0, 2, "x", "augment"), first(0, 1, "y", "augment")] {
            assert_ne!(a, other);
        }
        assert_ne!(first(0, 1, "xa", "b"), first(0, 1, "x", "ab"));
    }

    #[test]
    fn shuffle_keeps_all() {
        let mut values: Vec<i64> = (0..100).collect();
        shuffle(&mut stream(0, 0, "", "order"), &mut values);
        assert_ne!(values, (0..100).collect::<Vec<_>>());
        values.sort_unstable();
        assert_eq!(values, (0..100).collect::<Vec<_>>());
    }
}
