//! L_SSC, SAM-segment contrasting (S2C paper, section 3.2), in memory that does not grow with pixels x segments.
//!
//! The features `F` go to the size of the SE map bilinearly, `u_p = sum_a U[p, a] F_a`, and to unit length,
//! `z_p = u_p / |u_p|`. Neither is made here. A similarity upsamples like a feature,
//! `u_p . P_k = sum_a U[p, a] (F_a . P_k)`; the sum of `z_p` over a segment is `F` times a small matrix; `|u_p|^2` is a
//! sum of products of neighbours in `F`. What is left of the SE map's size, pixels x prototypes, goes some rows at a
//! time, value and gradient at once.

use tch::{Device, Kind, Tensor};

use super::repeat::added;

#[derive(Clone, Copy, Debug)]
pub struct SscOptions {
    /// Cosines are divided by it.
    pub temperature: f64,
    /// No gradient through the prototypes.
    pub proto_stopgrad: bool,
    /// Pixels in no segment form a prototype too, a negative for all others.
    pub unassigned_negative: bool,
    /// `false`: an id up to the highest of the batch that an image lacks is a prototype of zeros there.
    pub mask_absent_ids: bool,
    /// The prototypes of all images are negatives, not only the image's own.
    pub global_prototypes: bool,
}

impl SscOptions {
    /// The loss as the paper's equation has it.
    pub const PAPER: Self = Self {
        temperature: 0.5,
        proto_stopgrad: true,
        unassigned_negative: true,
        mask_absent_ids: true,
        global_prototypes: false,
    };
}

/// L_SSC: draws each pixel's feature to the prototype (mean feature) of its segment and away from those of the others.
/// Features have unit length before and after the mean.
///
/// - `feat`: `(B, D, h, w)`
/// - `se_map`: `(B, H, W)` int64, 0 = no segment
/// - returns the mean over pixels that lie in a segment; `None` when there are none
pub fn ssc(feat: &Tensor, se_map: &Tensor, options: &SscOptions) -> Option<Tensor> {
    loss(feat, se_map, options, feat.device().is_cuda())
}

/// - `together`: an operation is of all images with all prototypes, some of them hidden, which suits a GPU, where each
///   costs a launch; else of an image with the prototypes that it has. With those of all images memory would grow with the
///   square of their number, so there it is always one by one.
fn loss(feat: &Tensor, se_map: &Tensor, options: &SscOptions, together: bool) -> Option<Tensor> {
    let (map, size) = (se_map.size(), feat.size());
    let (batch, height, width) = (map[0], map[1], map[2]);
    let assigned = se_map.gt(0);
    let n_pixels = assigned.sum(Kind::Int64).int64_value(&[]);
    if n_pixels == 0 {
        return None;
    }
    let device = feat.device();
    let axes = (Axis::new(size[2], height, device), Axis::new(size[3], width, device));
    let inv_norm = inverse_norms(feat, &axes); // (B, H, W)

    let n_ids = se_map.max().int64_value(&[]) + 1;
    let image = Tensor::arange(batch, (Kind::Int64, device));
    let offset_ids = se_map + (&image * n_ids).view([batch, 1, 1]);
    let counts = offset_ids.flatten(0, -1).bincount::<Tensor>(None, batch * n_ids).view([batch, n_ids]);
    let prototypes = match options.proto_stopgrad {
        true => prototypes(&feat.detach(), &inv_norm.detach(), se_map, &counts, &axes),
        false => prototypes(feat, &inv_norm, se_map, &counts, &axes),
    }; // (B, D, N)

    let taken = if options.mask_absent_ids { counts.gt(0) } else { counts.ge(0) };
    if !options.unassigned_negative {
        let _ = taken.select(1, 0).fill_(0);
    }
    let of_image = |i: i64| {
        let (taken, prototypes, ids) = match options.global_prototypes {
            true => (taken.flatten(0, 1), prototypes.transpose(0, 1).flatten(1, 2), offset_ids.get(i)),
            false => (taken.get(i), prototypes.get(i), se_map.get(i)),
        };
        let chosen = taken.nonzero().view([-1]);
        if chosen.numel() == 0 {
            return None;
        }
        let prototypes = prototypes.index_select(1, &chosen); // (D, M)
        // (h, w, M)
        let similar = feat.get(i).flatten(1, 2).transpose(0, 1).matmul(&prototypes).view([size[2], size[3], -1]);
        let column = taken.cumsum(0, Kind::Int64) - 1;
        let target = column.clamp_min(0).index_select(0, &ids.flatten(0, -1)).view([height, width]);
        let pixels = Pixels { inv_norm: inv_norm.get(i), target, assigned: assigned.get(i), hidden: None };
        Some((similar, pixels))
    };
    let of_all = || {
        // (B, h, w, N)
        let similar = feat.flatten(2, 3).transpose(1, 2).matmul(&prototypes);
        let similar = similar.view([batch, size[2], size[3], -1]);
        // An image without any has no pixel that counts either.
        let hidden = taken.logical_not().logical_and(&taken.any_dim(1, true));
        let [inv_norm, target, assigned] = [&inv_norm, se_map, &assigned].map(Tensor::shallow_clone);
        (similar, Pixels { inv_norm, target, assigned, hidden: Some(hidden.unsqueeze(1)) })
    };
    let parts: Box<dyn Iterator<Item = (Tensor, Pixels)>> = match together && !options.global_prototypes {
        true => Box::new(std::iter::once_with(of_all)),
        false => Box::new((0..batch).filter_map(of_image)),
    };
    let [mut value, mut surrogate] = [(); 2].map(|()| Tensor::zeros([], (Kind::Float, device)));
    for (similar, pixels) in parts {
        let found = tch::no_grad(|| contrast(&similar, &pixels, options.temperature, &axes));
        value += found.value;
        surrogate += (similar * found.grad_similar).sum(Kind::Float);
        surrogate += (&pixels.inv_norm * found.grad_inv_norm).sum(Kind::Float);
    }
    // The value of the one, the gradient of the other.
    let n_pixels = n_pixels as f64;
    Some((&surrogate - surrogate.detach() + value) / n_pixels)
}

/// Bilinear resizing along one axis, corners not aligned.
struct Axis {
    /// Where each target lies between two neighbours.
    low: Tensor,
    high: Tensor,
    /// How much of the higher neighbour it takes.
    fraction: Tensor,
    /// `(to, from)`: the same as a matrix.
    matrix: Tensor,
}

impl Axis {
    fn new(from: i64, to: i64, device: Device) -> Self {
        let place = |i: i64| ((i as f32 + 0.5) * (from as f32 / to as f32) - 0.5).clamp(0.0, (from - 1) as f32);
        let places: Vec<f32> = (0..to).map(place).collect();
        let low: Vec<i64> = places.iter().map(|place| *place as i64).collect();
        let high: Vec<i64> = low.iter().map(|low| (low + 1).min(from - 1)).collect();
        let fraction: Vec<f32> = places.iter().zip(&low).map(|(place, low)| place - *low as f32).collect();
        let mut matrix = vec![0.0f32; (to * from) as usize];
        for (row, ((low, high), fraction)) in matrix.chunks_mut(from as usize).zip(low.iter().zip(&high).zip(&fraction))
        {
            row[*low as usize] += 1.0 - fraction;
            row[*high as usize] += fraction;
        }
        let [low, high] = [low, high].map(|index| Tensor::from_slice(&index).to_device(device));
        let fraction = Tensor::from_slice(&fraction).to_device(device);
        Self { low, high, fraction, matrix: Tensor::from_slice(&matrix).view([to, from]).to_device(device) }
    }

    /// The two neighbours of each target, and how much it takes of them.
    fn ends(&self) -> [(&Tensor, Tensor); 2] {
        [(&self.low, 1.0 - &self.fraction), (&self.high, self.fraction.shallow_clone())]
    }

    /// What squares and products of neighbours weigh in the square of a resized value: `(to, from)`, `(to, from - 1)`.
    fn squared(&self) -> (Tensor, Tensor) {
        let matrix = self.matrix.to_kind(Kind::Double);
        let between = matrix.size()[1] - 1;
        (matrix.square(), matrix.narrow(1, 0, between) * matrix.narrow(1, 1, between) * 2.0)
    }
}

/// `1 / |u_p|`, `(B, H, W)`. In double, since products may cancel.
fn inverse_norms(feat: &Tensor, (ys, xs): &(Axis, Axis)) -> Tensor {
    let feat = feat.to_kind(Kind::Double);
    let (h, w) = (feat.size()[2], feat.size()[3]);
    let (above, below) = (feat.narrow(2, 0, h - 1), feat.narrow(2, 1, h - 1));
    let left = |x: &Tensor| x.narrow(3, 0, w - 1);
    let right = |x: &Tensor| x.narrow(3, 1, w - 1);
    let dot = |a: &Tensor, b: &Tensor| (a * b).sum_dim_intlist([1i64].as_slice(), false, Kind::Double);
    let diagonal = dot(&left(&above), &right(&below)) + dot(&right(&above), &left(&below));
    let ((y_own, y_next), (x_own, x_next)) = (ys.squared(), xs.squared());
    let (x_own, x_next) = (x_own.transpose(0, 1), x_next.transpose(0, 1));
    let rows = dot(&feat, &feat).matmul(&x_own) + dot(&left(&feat), &right(&feat)).matmul(&x_next);
    let between_rows = dot(&above, &below).matmul(&x_own) + diagonal.matmul(&x_next) / 2.0;
    let square = y_own.matmul(&rows) + y_next.matmul(&between_rows);
    square.clamp_min(1e-24).rsqrt().to_kind(Kind::Float)
}

/// Mean unit features of the segments, of unit length: `(B, D, N)`; zeros where an image lacks the id.
///
/// - `counts`: `(B, N)` pixels
fn prototypes(feat: &Tensor, inv_norm: &Tensor, se_map: &Tensor, counts: &Tensor, (ys, xs): &(Axis, Axis)) -> Tensor {
    let (size, n_ids) = (feat.size(), counts.size()[1]);
    let (batch, h, w) = (size[0], size[2], size[3]);
    // What the pixels of a segment take of each feature.
    let image = Tensor::arange(batch, (Kind::Int64, feat.device())).view([batch, 1, 1]);
    let mut shares = Tensor::zeros([batch * h * w * n_ids], (Kind::Float, feat.device()));
    for (y, of_y) in ys.ends() {
        for (x, of_x) in xs.ends() {
            let place = ((&image * h + y.unsqueeze(1)) * w + x) * n_ids + se_map; // (B, H, W)
            let share = inv_norm * (of_y.unsqueeze(1) * of_x);
            shares = added(&shares, &place.flatten(0, -1), &share.flatten(0, -1));
        }
    }
    let shares = shares.view([batch, h * w, n_ids]);
    let mean = feat.flatten(2, 3).matmul(&shares) / counts.clamp_min(1).unsqueeze(1);
    let norm = mean.norm_scalaropt_dim(2.0, [1i64].as_slice(), true);
    mean / norm.clamp_min(1e-12)
}

/// One image, or with B before all else several, at the size of their SE maps.
struct Pixels {
    /// `(H, W)`
    inv_norm: Tensor,
    /// `(H, W)`: the column of a pixel's prototype.
    target: Tensor,
    /// `(H, W)` bool
    assigned: Tensor,
    /// `(1, M)` bool: columns that are none.
    hidden: Option<Tensor>,
}

/// A sum, and its gradients in the shapes of what they are of.
struct Contrast {
    value: Tensor,
    grad_similar: Tensor,
    grad_inv_norm: Tensor,
}

/// Pixels x prototypes that are made at a time on a CPU.
const CHUNK: i64 = 1 << 20;
/// On a GPU, where every operation costs a launch: 256 MB a tensor.
const GPU_CHUNK: i64 = 1 << 26;

/// The sum of cross-entropies over assigned pixels, and its gradients.
///
/// - `similar`: `(h, w, M)`, or with B before: features times prototypes
fn contrast(similar: &Tensor, pixels: &Pixels, temperature: f64, (ys, xs): &(Axis, Axis)) -> Contrast {
    let (size, map) = (similar.size(), pixels.assigned.size());
    let ([.., columns], [before @ .., height, width]) = (&size[..], &map[..]) else {
        unreachable!("it has dimensions")
    };
    let (columns, height, width, batch) = (*columns, *height, *width, before.iter().product::<i64>());
    let shape = |rest: &[i64]| [before, rest].concat();
    let wide = xs.matrix.matmul(similar).flatten(-2, -1); // (h, W M)
    let (mut value, mut grad_wide, mut grad_inv_norm) =
        (Tensor::zeros([], (Kind::Double, wide.device())), wide.zeros_like(), Vec::new());
    let chunk = if wide.device().is_cuda() { GPU_CHUNK } else { CHUNK };
    let n_rows = (chunk / (batch * width * columns)).clamp(1, height);
    for y in (0..height).step_by(n_rows as usize) {
        let n_rows = n_rows.min(height - y);
        let up = ys.matrix.narrow(0, y, n_rows);
        let [inv_norm, target, assigned] = [&pixels.inv_norm, &pixels.target, &pixels.assigned]
            .map(|of_pixels| of_pixels.narrow(-2, y, n_rows).reshape([-1, 1]));
        let assigned = assigned.to_kind(Kind::Float);
        let scale = &inv_norm / temperature;
        let mut logits = up.matmul(&wide).view([-1, columns]); // (rows W, M)
        let _ = logits.g_mul_(&scale);
        let shown = pixels.hidden.as_ref().map(|hidden| {
            logits.view(&shape(&[-1, columns])[..]).masked_fill(hidden, f64::NEG_INFINITY).view([-1, columns])
        });
        let mut grad = shown.as_ref().unwrap_or(&logits).log_softmax(1, None);
        // A pixel that does not count may lie in a hidden column.
        value -= grad.gather(1, &target, false).masked_fill(&assigned.eq(0.0), 0.0).sum(Kind::Double);
        // Softmax minus one-hot, in the scale of `similar`.
        let _ = grad.exp_();
        let _ = grad.scatter_add_(1, &target, &target.ones_like().to_kind(Kind::Float).neg());
        let _ = grad.g_mul_(&(assigned * &scale));
        grad_wide += up.transpose(0, 1).matmul(&grad.view(&shape(&[n_rows, width * columns])[..]));
        let along = (grad * logits).sum_dim_intlist([1i64].as_slice(), true, Kind::Float);
        grad_inv_norm.push((along / (scale * inv_norm)).view(&shape(&[n_rows, width])[..]));
    }
    let grad_wide = grad_wide.unflatten(-1, [width, columns]); // (h, W, M)
    let grad_similar = xs.matrix.transpose(0, 1).matmul(&grad_wide);
    Contrast { value, grad_similar, grad_inv_norm: Tensor::cat(&grad_inv_norm, -2) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn together_as_one_by_one() {
        let wave = |shape: &[i64], step: f64| {
            (Tensor::arange(shape.iter().product::<i64>(), (Kind::Float, Device::Cpu)) * step).sin().view(shape)
        };
        // Ids that the second image lacks, and a third image without any.
        let ids = (Tensor::arange(24 * 20, (Kind::Int64, Device::Cpu)).view([24, 20]) * 7)
            .floor_divide_scalar(50)
            .remainder(9);
        let ids = Tensor::stack(&[ids.shallow_clone(), ids.masked_fill(&ids.gt(4), 2), ids.zeros_like()], 0);
        for case in 0..16 {
            let is_set = |switch: i32| case >> switch & 1 == 1;
            let options = SscOptions {
                temperature: 0.5,
                proto_stopgrad: is_set(0),
                unassigned_negative: is_set(1),
                mask_absent_ids: is_set(2),
                global_prototypes: is_set(3),
            };
            let of = |together| {
                let feat = (wave(&[3, 8, 6, 5], 0.3) + 1.1).set_requires_grad(true);
                let loss = loss(&feat, &ids, &options, together).unwrap();
                loss.backward();
                (loss.double_value(&[]), feat.grad())
            };
            let ((value, grad), (expected, expected_grad)) = (of(true), of(false));
            let off = (&grad - &expected_grad).abs().max() / expected_grad.abs().max();
            assert!((value - expected).abs() < 1e-6 && off.double_value(&[]) < 1e-5, "{options:?}");
        }
    }
}
