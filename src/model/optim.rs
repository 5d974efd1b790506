//! SGD with momentum and weight decay, as in PyTorch, and the poly schedule.

use std::cell::OnceCell;
use std::collections::BTreeMap;

use tch::{Kind, Tensor};

use super::weights::{Weights, to_safetensors};

const MOMENTUM: &str = "momentum.";
/// So many numbers of a tensor are moved at a time on a CPU: they stay in its cache from one operation to the next.
const PIECE: i64 = 1 << 18;

/// A tensor being trained.
#[derive(Debug)]
pub struct Trained {
    pub value: Tensor,
    /// Learns this many times faster.
    pub lr_mult: f64,
    pub momentum: Tensor,
}

#[derive(Debug)]
pub struct Sgd {
    /// In order of their names.
    pub tensors: BTreeMap<String, Trained>,
    pub momentum: f64,
    pub weight_decay: f64,
    flat: Option<Flat>,
}

/// All tensors end to end in two, of which [`Trained`]'s are parts: on a GPU every operation costs a launch.
#[derive(Debug)]
struct Flat {
    value: Tensor,
    momentum: Tensor,
}

/// How an optimiser is set.
#[derive(Clone, Copy, Debug)]
pub struct SgdOptions {
    /// Tensors named `head.` learn this many times faster.
    pub head_lr_mult: f64,
    pub momentum: f64,
    pub weight_decay: f64,
}

/// Weights to start a training of its own from: without the momentum of the one that made them.
pub fn without_momentum(weights: &Weights) -> Weights {
    weights.renamed(|name| (!name.starts_with(MOMENTUM)).then(|| name.to_owned()))
}

impl Sgd {
    /// Over the tensors of a model, by name; their momentum is taken from the checkpoint where it has one.
    pub fn load(trained: Vec<(String, Tensor)>, weights: &Weights, options: SgdOptions) -> anyhow::Result<Self> {
        let SgdOptions { head_lr_mult, momentum, weight_decay } = options;
        let mut tensors = BTreeMap::new();
        for (name, value) in trained {
            let stored = format!("{MOMENTUM}{name}");
            let momentum = match weights.contains(&stored) {
                true => weights.get(&stored, &value.size())?.to_device(value.device()),
                false => value.zeros_like(),
            };
            let lr_mult = if name.starts_with("head.") { head_lr_mult } else { 1.0 };
            tensors.insert(name, Trained { value, lr_mult, momentum });
        }
        let is_on_gpu = tensors.values().any(|trained| trained.value.device().is_cuda());
        let sgd = Self { tensors, momentum, weight_decay, flat: None };
        Ok(if is_on_gpu { sgd.flattened() } else { sgd })
    }

    fn flattened(mut self) -> Self {
        tch::no_grad(|| {
            let join = |part: fn(&Trained) -> &Tensor| end_to_end(self.tensors.values().map(part));
            let flat = Flat { value: join(|trained| &trained.value), momentum: join(|trained| &trained.momentum) };
            let mut at = 0;
            for Trained { value, momentum, .. } in self.tensors.values_mut() {
                let (size, n) = (value.size(), value.numel() as i64);
                let [new_value, new_momentum] =
                    [&flat.value, &flat.momentum].map(|x| x.narrow(0, at, n).view(&size[..]));
                value.set_data(&new_value); // the model's own handle as well
                *momentum = new_momentum;
                at += n;
            }
            self.flat = Some(flat);
        });
        self
    }

    /// The bytes of a checkpoint: what is trained, its momentum beside it, what is `frozen`, and `more`.
    pub fn checkpoint(&self, frozen: Vec<(String, Tensor)>, more: Vec<(String, Tensor)>) -> anyhow::Result<Vec<u8>> {
        let mut tensors: BTreeMap<String, Tensor> = frozen.into_iter().chain(more).collect();
        for (name, trained) in &self.tensors {
            tensors.insert(name.clone(), trained.value.shallow_clone());
            tensors.insert(format!("{MOMENTUM}{name}"), trained.momentum.shallow_clone());
        }
        to_safetensors(tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)))
    }

    /// Of a loss, whose own graph is used up.
    pub fn gradient(&self, loss: &Tensor) -> Gradient {
        let values: Vec<&Tensor> = self.tensors.values().map(|trained| &trained.value).collect();
        Gradient { each: Tensor::run_backward(&[loss], &values, false, false), joined: OnceCell::new() }
    }

    /// `v = momentum v + g + decay p`, `p = p - lr v`.
    pub fn step(&mut self, gradient: &Gradient, lr: f64) {
        let (decay, keep) = (self.weight_decay, self.momentum);
        let moved = |[value, momentum, grad]: [&Tensor; 3], lr: f64, piece: i64| {
            let n = value.size()[0];
            for at in (0..n).step_by(piece.max(1) as usize) {
                let [mut value, mut momentum, grad] =
                    [value, momentum, grad].map(|x| x.narrow(0, at, piece.min(n - at)));
                // In place, but in products and sums of their own: fused ones would round otherwise.
                let _ = momentum.g_mul_scalar_(keep);
                let _ = momentum.g_add_(&grad);
                let _ = momentum.g_add_(&(&value * decay));
                let _ = value.g_sub_(&(&momentum * lr));
            }
        };
        tch::no_grad(|| match self.flat.as_ref().zip(self.joined(gradient)) {
            Some((Flat { value, momentum }, grad)) => {
                let mut at = 0;
                for same in Vec::from_iter(self.tensors.values()).chunk_by(|a, b| a.lr_mult == b.lr_mult) {
                    let n = same.iter().map(|trained| trained.value.numel() as i64).sum();
                    let part = |x: &Tensor| x.narrow(0, at, n);
                    moved([&part(value), &part(momentum), &part(grad)], lr * same[0].lr_mult, n);
                    at += n;
                }
            }
            None => {
                let with_grads = self.tensors.values().zip(&gradient.each).filter(|(_, grad)| grad.defined());
                for (Trained { value, lr_mult, momentum }, grad) in with_grads {
                    let [value, momentum, grad] = [value, momentum, &grad.contiguous()].map(|x| x.view([-1]));
                    let piece = if value.device().is_cuda() { value.size()[0] } else { PIECE };
                    moved([&value, &momentum, &grad], lr * lr_mult, piece);
                }
            }
        });
    }

    /// Sums of squares, one for each tensor (on a GPU of all of them): `(n)` f64 where the tensors are.
    pub fn squares(&self, gradient: &Gradient) -> Tensor {
        match self.joined(gradient) {
            Some(all) => all.norm_scalaropt_dtype(2, Kind::Double).square().view(1),
            None => {
                let there = gradient.each.iter().filter(|grad| grad.defined());
                Tensor::stack(&there.map(|grad| grad.square().sum(Kind::Double)).collect::<Vec<_>>(), 0)
            }
        }
    }

    fn joined<'a>(&self, gradient: &'a Gradient) -> Option<&'a Tensor> {
        self.flat.as_ref()?;
        let Gradient { each, joined } = gradient;
        joined.get_or_init(|| each.iter().all(Tensor::defined).then(|| end_to_end(each))).as_ref()
    }
}

/// Of a loss, for each tensor of an optimiser.
#[derive(Debug)]
pub struct Gradient {
    /// In order of their names; undefined where the loss does not depend on the tensor.
    each: Vec<Tensor>,
    /// All end to end, where that was asked for and all are there.
    joined: OnceCell<Option<Tensor>>,
}

impl Gradient {
    /// Of the sum of its loss and another.
    pub fn plus(self, other: Option<Self>) -> Self {
        let Some(other) = other else { return self };
        let sum = |(a, b): (Tensor, Tensor)| match (a.defined(), b.defined()) {
            (true, true) => a + b,
            (true, false) => a,
            (false, _) => b,
        };
        Self { each: self.each.into_iter().zip(other.each).map(sum).collect(), joined: OnceCell::new() }
    }
}

fn end_to_end<'a>(tensors: impl IntoIterator<Item = &'a Tensor>) -> Tensor {
    Tensor::cat(&tensors.into_iter().map(|x| x.flatten(0, -1)).collect::<Vec<_>>(), 0)
}

/// The learning rate falls as `(1 - step / steps)^0.9`.
pub fn poly(step: u64, steps: u64) -> f64 {
    (1.0 - step as f64 / steps as f64).powf(0.9)
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;

    /// Two steps of what a GPU takes and a CPU does not, to the bit; the handles that a model keeps see them.
    #[test]
    fn end_to_end_they_move_alike() {
        let wave = |n: i64, step: f64| (Tensor::arange(n, (Kind::Float, Device::Cpu)) * step).sin();
        let shapes: [(&str, &[i64]); 4] =
            [("conv1", &[4, 3, 3, 3]), ("head.cam", &[5, 4, 1, 1]), ("layer", &[7]), ("layer2", &[2, 8])];
        let run = |is_flat: bool, n_grads: usize| {
            let value = |&(name, shape): &(&str, &[i64])| {
                let n = shape.iter().product();
                (name.to_owned(), wave(n, 0.3 + 0.1 * n as f64).view(shape).set_requires_grad(true))
            };
            let model: Vec<(String, Tensor)> = shapes.iter().map(value).collect();
            let handles = model.iter().map(|(name, value)| (name.clone(), value.shallow_clone())).collect();
            let options = SgdOptions { head_lr_mult: 10.0, momentum: 0.9, weight_decay: 5e-4 };
            let sgd = Sgd::load(handles, &Weights::parse(to_safetensors([]).unwrap()).unwrap(), options).unwrap();
            let mut sgd = if is_flat { sgd.flattened() } else { sgd };
            let mut squares = 0.0;
            for _ in 0..2 {
                let losses = model[..n_grads].iter().map(|(_, value)| (value.square() * value).sum(Kind::Float));
                let gradient = sgd.gradient(&losses.reduce(|a, b| a + b).unwrap());
                squares += sgd.squares(&gradient).sum(Kind::Double).double_value(&[]);
                sgd.step(&gradient, 0.1);
            }
            let values = model.iter().map(|(_, value)| Vec::<f32>::try_from(value.flatten(0, -1).detach()).unwrap());
            (values.collect::<Vec<_>>(), sgd.checkpoint(Vec::new(), Vec::new()).unwrap(), squares)
        };
        for n_grads in [4, 3] {
            let (apart, flat) = (run(false, n_grads), run(true, n_grads));
            assert!(apart.0 == flat.0 && apart.1 == flat.1 && (apart.2 - flat.2).abs() < 1e-6 * apart.2);
        }
    }
}
