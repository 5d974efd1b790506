//! SGD with momentum and weight decay, as in PyTorch, and the poly schedule.

use std::collections::BTreeMap;

use tch::Tensor;

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
        Ok(Self { tensors, momentum, weight_decay })
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

    pub fn zero_grad(&mut self) {
        self.tensors.values_mut().for_each(|trained| trained.value.zero_grad());
    }

    /// `v = momentum v + g + decay p`, `p = p - lr v`.
    pub fn step(&mut self, lr: f64) {
        tch::no_grad(|| {
            for Trained { value, lr_mult, momentum } in self.tensors.values_mut() {
                let grad = value.grad();
                if !grad.defined() {
                    continue;
                }
                let [value, momentum, grad] = [&*value, &*momentum, &grad.contiguous()].map(|x| x.view([-1]));
                let n = value.size()[0];
                let piece = if value.device().is_cuda() { n } else { PIECE };
                for at in (0..n).step_by(piece.max(1) as usize) {
                    let part = |x: &Tensor| x.narrow(0, at, piece.min(n - at));
                    let (mut value, mut momentum) = (part(&value), part(&momentum));
                    // In place, but in products and sums of their own: fused ones would round otherwise.
                    let _ = momentum.g_mul_scalar_(self.momentum);
                    let _ = momentum.g_add_(&part(&grad));
                    let _ = momentum.g_add_(&(&value * self.weight_decay));
                    let _ = value.g_sub_(&(&momentum * (lr * *lr_mult)));
                }
            }
        });
    }

    /// Sums of squares of the gradients, one for each tensor: `(n)` f64 where the tensors are.
    pub fn grad_squares(&self) -> Tensor {
        let grads = self.tensors.values().map(|trained| trained.value.grad()).filter(Tensor::defined);
        Tensor::stack(&grads.map(|grad| grad.square().sum(tch::Kind::Double)).collect::<Vec<_>>(), 0)
    }
}

/// The learning rate falls as `(1 - step / steps)^0.9`.
pub fn poly(step: u64, steps: u64) -> f64 {
    (1.0 - step as f64 / steps as f64).powf(0.9)
}
