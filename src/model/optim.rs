//! SGD with momentum and weight decay, as in PyTorch, and the poly schedule.

use std::collections::BTreeMap;

use tch::Tensor;

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

impl Sgd {
    pub fn zero_grad(&mut self) {
        self.tensors.values_mut().for_each(|trained| trained.value.zero_grad());
    }

    /// `v = momentum v + g + decay p`, `p = p - lr v`.
    pub fn step(&mut self, lr: f64) {
        tch::no_grad(|| {
            for Trained { value, lr_mult, momentum } in self.tensors.values_mut() {
                let grad = value.grad();
                if grad.defined() {
                    *momentum = &*momentum * self.momentum + grad + &*value * self.weight_decay;
                    let _ = value.g_sub_(&(&*momentum * (lr * *lr_mult)));
                }
            }
        });
    }

    /// Euclidean norm of all gradients.
    pub fn grad_norm(&self) -> f64 {
        let square = |trained: &Trained| {
            let grad = trained.value.grad();
            if grad.defined() { grad.square().sum(tch::Kind::Double).double_value(&[]) } else { 0.0 }
        };
        self.tensors.values().map(square).sum::<f64>().sqrt()
    }
}

/// The learning rate falls as `(1 - step / steps)^0.9`.
pub fn poly(step: u64, steps: u64) -> f64 {
    (1.0 - step as f64 / steps as f64).powf(0.9)
}
