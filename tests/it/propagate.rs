//! Random walks against matrices of all pairs: `tests/golden/propagate/make.py`, to 1e-5.

use std::path::Path;

use s2c_pipe::vision::propagate::Affinity;
use safetensors::SafeTensors;

const SIZE: (usize, usize) = (12, 14);

fn wave(channels: usize, step: f64) -> Vec<f32> {
    (0..channels * SIZE.0 * SIZE.1).map(|i| (i as f64 * step).sin() as f32).collect()
}

fn positive(channels: usize, step: f64) -> Vec<f32> {
    wave(channels, step).iter().map(|value| (value + 1.0) / 2.0).collect()
}

#[test]
fn walks_of_steps_are_powers_of_the_dense_matrix() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/propagate/golden.safetensors");
    let bytes = std::fs::read(path).unwrap();
    let golden = SafeTensors::deserialize(&bytes).unwrap();
    let of_features = |radius| Affinity::of_features(&wave(6, 0.37), SIZE, radius);
    let of_edges = |radius| Affinity::of_edges(&positive(1, 0.61), SIZE, radius);
    let scores = positive(3, 0.23);
    let cases = [
        ("affinity_net", of_features(5), 8.0, 256),
        ("affinity_net.2", of_features(3), 2.0, 4),
        ("irn", of_edges(5), 10.0, 256),
        ("irn.2", of_edges(4), 2.0, 4),
    ];
    for (name, affinity, beta, steps) in &cases {
        let expected = golden.tensor(name).unwrap().data().as_chunks::<4>().0.to_vec();
        let distance = |found: Vec<f32>| {
            let pairs = found.iter().zip(&expected);
            pairs.map(|(a, b)| (a - f32::from_le_bytes(*b)).abs()).fold(0.0, f32::max)
        };
        let right = distance(affinity.walk(&scores, *beta, *steps));
        assert!(right < 1e-5, "{name}: off by {right:.1e}");
        // Another power, another number of steps, any other affinity.
        assert!(distance(affinity.walk(&scores, beta + 1.0, *steps)) > 1e-4, "{name}");
        assert!(distance(affinity.walk(&scores, *beta, steps / 2)) > 1e-4, "{name}");
        for (other, affinity, ..) in cases.iter().filter(|(other, ..)| other != name) {
            assert!(distance(affinity.walk(&scores, *beta, *steps)) > 1e-4, "{name} is {other}");
        }
    }
}

/// Maps of one pixel, and smaller than the radius.
#[test]
fn any_size() {
    assert_eq!(Affinity::of_edges(&[0.3], (1, 1), 5).walk(&[0.7], 10.0, 8), [0.7]);
    let walked = Affinity::of_features(&[0.0, 1.0, 0.5], (1, 3), 5).walk(&[0.1, 0.2, 0.3], 8.0, 4);
    assert_eq!(walked, [0.1, 0.2, 0.3], "no pixel has the half-disc");
    // Without edges all mix: the mean of two.
    let walked = Affinity::of_edges(&[0.0, 0.0], (2, 1), 2).walk(&[0.0, 1.0], 10.0, 1);
    assert_eq!(walked, [0.5, 0.5]);
}
