//! How near to a reference a tensor has to be: the one place that says so. Unit tests of the library include this file.
//!
//! No tolerance is right for gradients in f32. A gradient is a sum, and before a batch norm its terms cancel, since their
//! mean is zero by what the norm is: what is left can be as small as the rounding of the terms. And where rounding turns a
//! unit of a ReLU on or off, a whole term comes or goes. Both differ from processor to processor, so that a tolerance which
//! one processor needs hides mistakes on another. So networks are compared in f64 with references in f64, which agree to
//! [`EXACT`] everywhere. That f32 goes down the same slope is asked of the gradient as a whole: see [`assert_same_slope`].

use tch::{Device, Kind, Tensor};

/// Of a network in f64, relative to the largest value of the tensor: references are stored in f32.
pub(crate) const EXACT: f64 = 1e-6;
/// Of a gradient in f32, relative to its length.
const SLOPE: f64 = 1e-2;

/// `n` values of a tensor at equal distances, as the scripts keep them.
pub(crate) fn slices(x: &Tensor, n: i64) -> Tensor {
    let flat = x.detach().flatten(0, -1);
    let step = (flat.numel() as i64 / n).max(1);
    let all = flat.slice(0, None, None, step);
    all.narrow(0, 0, n.min(all.size()[0]))
}

fn on_cpu(x: &Tensor) -> Tensor {
    x.detach().to_device(Device::Cpu).to_kind(Kind::Double)
}

/// Within `tolerance` of the largest value that is expected.
#[track_caller]
pub(crate) fn assert_close(expected: &Tensor, name: &str, found: &Tensor, tolerance: f64) {
    let expected = on_cpu(expected);
    let scale = expected.abs().max().double_value(&[]).max(1e-12);
    let worst = (on_cpu(found) - expected.view(&found.size()[..])).abs().max().double_value(&[]);
    assert!(worst <= tolerance * scale, "{name}: off by {worst:.2e} of {scale:.2e}");
}

/// A gradient in f32 against that of the same network in f64, all tensors of it as one vector.
#[track_caller]
pub(crate) fn assert_same_slope(name: &str, rounded: &[(String, Tensor)], exact: &[(String, Tensor)]) {
    assert!(!exact.is_empty() && rounded.iter().map(|(part, _)| part).eq(exact.iter().map(|(part, _)| part)), "{name}");
    let length = |parts: &mut dyn Iterator<Item = Tensor>| {
        parts.map(|part| part.square().sum(Kind::Double).double_value(&[])).sum::<f64>().sqrt()
    };
    let differences = rounded.iter().zip(exact).map(|((_, one), (_, other))| on_cpu(one) - on_cpu(other));
    let (off, of) = (length(&mut { differences }), length(&mut exact.iter().map(|(_, part)| on_cpu(part))));
    assert!(off <= SLOPE * of, "{name}: the gradient in f32 is off by {off:.2e} of {of:.2e}");
}

#[test]
fn one_layer_that_is_wrong_is_seen() {
    let layer = |step: f64| (Tensor::arange(1000, (Kind::Double, Device::Cpu)) * step).sin();
    let named = |layers: [Tensor; 2]| {
        let [first, second] = layers;
        vec![("first".to_owned(), first), ("second".to_owned(), second * 1e-2)]
    };
    let fails = |check: &dyn Fn()| std::panic::catch_unwind(std::panic::AssertUnwindSafe(check)).is_err();
    let expected = layer(0.3).to_kind(Kind::Float);
    assert_close(&expected, "rounded", &layer(0.3), EXACT);
    assert!(fails(&|| assert_close(&expected, "a factor", &(layer(0.3) * 1.00001), EXACT)));
    assert!(fails(&|| assert_close(&expected, "another layer", &layer(0.7), EXACT)));
    let exact = named([layer(0.3), layer(0.7)]);
    assert_same_slope("rounded", &named([layer(0.3).to_kind(Kind::Float), layer(0.7)]), &exact);
    assert!(fails(&|| assert_same_slope("a factor", &named([layer(0.3) * 1.02, layer(0.7)]), &exact)));
    assert!(fails(&|| assert_same_slope("swapped", &named([layer(0.7), layer(0.3)]), &exact)));
}
