//! What makes logits of a backbone's features.

use rand_chacha::ChaCha8Rng;
use tch::Tensor;

use super::conv::{LastConv, NormedConv, Source, dropout};
use crate::model::init::normal;
use crate::model::repeat::resized;
use crate::model::wide;

/// Channels inside the heads of DeepLab-v3 and v3+.
const DIM: i64 = 256;
/// Channels inside LargeFOV.
const FOV_DIM: i64 = 512;
/// Channels that low-level features are brought to.
const LOW_DIM: i64 = 48;
/// Part of a batch in LargeFOV's running statistics.
const FOV_MOMENTUM: f64 = 3e-4;
/// Standard deviation of the first weights of ASPP. The reference has 0.01 and thousands of steps to get from there to
/// logits of order one, which is what this one starts with.
const ASPP_STD: f64 = 0.001;

/// Which head. Dilations are those at output stride 8; at 16 they are half, so that a head sees as far in the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadKind {
    /// DeepLab-v2 (Chen et al. 2018; reference: `deeplabv2.py` of kazuto1011/deeplab-pytorch): the sum of four 3x3
    /// convolutions, dilated by 6, 12, 18 and 24.
    AsppV2,
    /// DeepLab-LargeFOV as on ResNet38d in YudeWang/semantic-segmentation-codebase: a 3x3 convolution dilated by 12, a
    /// 1x1 one, dropout, the logits.
    LargeFov,
    /// DeepLab-v3 (Chen et al. 2017; reference: torchvision's `DeepLabHead`): a pyramid of 1x1, three 3x3 convolutions
    /// dilated by 12, 24 and 36, and the image's mean; a 3x3 convolution, the logits.
    V3,
    /// DeepLab-v3+ (Chen et al. 2018): the pyramid, brought to stride 4, beside 48 channels of the low-level features;
    /// two 3x3 convolutions, the logits.
    V3Plus,
}

#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "there is one a model")]
pub(super) enum Head {
    AsppV2(Vec<Branch>),
    LargeFov { convs: [NormedConv; 2], last: LastConv },
    V3 { pyramid: Pyramid, conv: NormedConv, last: LastConv },
    V3Plus { pyramid: Pyramid, low: NormedConv, convs: [NormedConv; 2], last: LastConv },
}

/// A branch of ASPP.
#[derive(Debug)]
pub(super) struct Branch {
    name: String,
    /// `(L, F, 3, 3)`
    weight: Tensor,
    bias: Tensor,
    dilation: i64,
}

/// ASPP of DeepLab-v3.
#[derive(Debug)]
pub(super) struct Pyramid {
    convs: Vec<NormedConv>,
    /// Of the mean over the image.
    pooled: NormedConv,
    project: NormedConv,
}

/// Sizes a head is made for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    pub(super) n_labels: i64,
    pub(super) n_features: i64,
    /// Channels of the low-level features; 0: there are none.
    pub(super) n_low: i64,
    pub(super) output_stride: i64,
}

impl Head {
    pub(super) fn load(kind: HeadKind, sizes: Sizes, from: &Source<'_>) -> anyhow::Result<Self> {
        let Sizes { n_labels, n_features, n_low, output_stride } = sizes;
        let dilation = |rate: i64| (rate * 8 / output_stride).max(1);
        Ok(match kind {
            HeadKind::AsppV2 => {
                let branch = |(i, rate): (usize, i64)| {
                    let name = format!("head.aspp.{i}");
                    let get = |part: &str, shape: &[i64], std: f64| {
                        let value = from.get(&format!("{name}.{part}"), shape, |rng| normal(rng, shape, std))?;
                        anyhow::Ok(value.set_requires_grad(true))
                    };
                    let weight = get("weight", &[n_labels, n_features, 3, 3], ASPP_STD)?;
                    let bias = get("bias", &[n_labels], 0.0)?;
                    anyhow::Ok(Branch { weight, bias, dilation: dilation(rate), name })
                };
                Self::AsppV2([6, 12, 18, 24].into_iter().enumerate().map(branch).collect::<anyhow::Result<_>>()?)
            }
            HeadKind::LargeFov => {
                let mut convs = [
                    from.normed("head.0", "head.1", [FOV_DIM, n_features, 3, 3], dilation(12))?,
                    from.normed("head.3", "head.4", [FOV_DIM, FOV_DIM, 1, 1], 1)?,
                ];
                convs.iter_mut().for_each(|conv| conv.momentum = FOV_MOMENTUM);
                Self::LargeFov { convs, last: from.last("head.7", n_labels, FOV_DIM)? }
            }
            HeadKind::V3 => Self::V3 {
                pyramid: Pyramid::load(n_features, dilation, from)?,
                conv: from.normed("head.1", "head.2", [DIM, DIM, 3, 3], 1)?,
                last: from.last("head.4", n_labels, DIM)?,
            },
            HeadKind::V3Plus => {
                anyhow::ensure!(n_low > 0, "DeepLab-v3+ needs the low-level features of a ResNet");
                Self::V3Plus {
                    pyramid: Pyramid::load(n_features, dilation, from)?,
                    low: from.normed("head.low.0", "head.low.1", [LOW_DIM, n_low, 1, 1], 1)?,
                    convs: [
                        from.normed("head.1.0", "head.1.1", [DIM, DIM + LOW_DIM, 3, 3], 1)?,
                        from.normed("head.1.3", "head.1.4", [DIM, DIM, 3, 3], 1)?,
                    ],
                    last: from.last("head.1.7", n_labels, DIM)?,
                }
            }
        })
    }

    /// Logits `(B, L, h, w)` f32, at the stride of the features or, in v3+, of the low-level ones.
    ///
    /// - `x`, `low`: features `(B, F, h, w)` and low-level features
    /// - `streams`: of dropout, one for each image; `None`: inference
    pub(super) fn forward(&self, x: &Tensor, low: Option<&Tensor>, streams: Option<&mut [ChaCha8Rng]>) -> Tensor {
        match streams {
            Some(streams) => self.pass(x, low, true, |x| dropout(&x, streams)),
            None => self.pass(x, low, false, |x| x),
        }
    }

    /// `drop`: the dropout before the logits.
    fn pass(&self, x: &Tensor, low: Option<&Tensor>, train: bool, drop: impl FnOnce(Tensor) -> Tensor) -> Tensor {
        match self {
            Self::AsppV2(branches) => {
                let branch = |Branch { weight, bias, dilation, name: _ }: &Branch| {
                    let (weight, bias) = (weight.to_kind(x.kind()), bias.to_kind(x.kind()));
                    wide(&x.conv2d(&weight, Some(bias), [1, 1], [*dilation; 2], [*dilation; 2], 1))
                };
                branches.iter().map(branch).sum()
            }
            Self::LargeFov { convs, last } => {
                last.forward(&drop(convs.iter().fold(x.shallow_clone(), |x, conv| conv.forward(&x, train))))
            }
            Self::V3 { pyramid, conv, last } => last.forward(&conv.forward(&drop(pyramid.forward(x, train)), train)),
            Self::V3Plus { pyramid, low: reduce, convs, last } => {
                let deep = pyramid.forward(x, train);
                let x = match low {
                    Some(low) => {
                        let low = reduce.forward(low, train);
                        let size = low.size();
                        let deep = resized(&deep, [size[2], size[3]], false);
                        Tensor::cat(&[deep, low], 1)
                    }
                    None => deep,
                };
                last.forward(&drop(convs.iter().fold(x, |x, conv| conv.forward(&x, train))))
            }
        }
    }

    fn convs(&self) -> Vec<&NormedConv> {
        match self {
            Self::AsppV2(_) => Vec::new(),
            Self::LargeFov { convs, last: _ } => convs.iter().collect(),
            Self::V3 { pyramid, conv, last: _ } => pyramid.convs().chain([conv]).collect(),
            Self::V3Plus { pyramid, low, convs, last: _ } => pyramid.convs().chain([low]).chain(convs).collect(),
        }
    }

    /// Trained tensors by name.
    pub(super) fn trained(&self) -> Vec<(String, Tensor)> {
        let last = match self {
            Self::AsppV2(branches) => {
                let parts = |branch: &Branch| {
                    let part =
                        |part: &str, tensor: &Tensor| (format!("{}.{part}", branch.name), tensor.shallow_clone());
                    [part("weight", &branch.weight), part("bias", &branch.bias)]
                };
                return branches.iter().flat_map(parts).collect();
            }
            Self::LargeFov { last, .. } | Self::V3 { last, .. } | Self::V3Plus { last, .. } => last,
        };
        self.convs().into_iter().flat_map(NormedConv::trained).chain(last.trained()).collect()
    }

    /// What a checkpoint needs beside [`Self::trained`]: running statistics.
    pub(super) fn frozen(&self) -> Vec<(String, Tensor)> {
        self.convs().into_iter().flat_map(NormedConv::frozen).collect()
    }
}

impl Pyramid {
    fn load(n_features: i64, dilation: impl Fn(i64) -> i64, from: &Source<'_>) -> anyhow::Result<Self> {
        let conv = |(i, (side, rate)): (usize, (i64, i64))| {
            let (conv, norm) = (format!("head.0.convs.{i}.0"), format!("head.0.convs.{i}.1"));
            from.normed(&conv, &norm, [DIM, n_features, side, side], rate)
        };
        let parts = [(1, 1), (3, dilation(12)), (3, dilation(24)), (3, dilation(36))];
        let convs = parts.into_iter().enumerate().map(conv).collect::<anyhow::Result<Vec<_>>>()?;
        let n_parts = convs.len() as i64 + 1;
        Ok(Self {
            convs,
            pooled: from.normed("head.0.convs.4.1", "head.0.convs.4.2", [DIM, n_features, 1, 1], 1)?,
            project: from.normed("head.0.project.0", "head.0.project.1", [DIM, DIM * n_parts, 1, 1], 1)?,
        })
    }

    fn forward(&self, x: &Tensor, train: bool) -> Tensor {
        let size = x.size();
        let pooled = self.pooled.forward(&x.adaptive_avg_pool2d([1, 1]), train);
        let mut parts: Vec<Tensor> = self.convs.iter().map(|conv| conv.forward(x, train)).collect();
        parts.push(pooled.expand([size[0], DIM, size[2], size[3]], false));
        self.project.forward(&Tensor::cat(&parts, 1), train)
    }

    fn convs(&self) -> impl Iterator<Item = &NormedConv> {
        self.convs.iter().chain([&self.pooled, &self.project])
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::BTreeMap;

    use tch::{Device, Kind};

    use super::*;
    use crate::data::rng::stream;
    use crate::model::Compute;
    use crate::model::close::{EXACT, assert_close, assert_same_slope, slices};
    use crate::model::weights::{Weights, to_safetensors};

    const SIZES: Sizes = Sizes { n_labels: 4, n_features: 16, n_low: 12, output_stride: 8 };

    fn wave(shape: &[i64], step: f64) -> Tensor {
        let angles = Tensor::arange(shape.iter().product::<i64>(), (Kind::Double, Device::Cpu)) * step;
        angles.sin().to_kind(Kind::Float).view(shape)
    }

    fn load(kind: HeadKind, sizes: Sizes, tensors: &BTreeMap<String, Tensor>) -> Head {
        load_as(Kind::Float, (kind, sizes), tensors)
    }

    fn load_as(numbers: Kind, (kind, sizes): (HeadKind, Sizes), tensors: &BTreeMap<String, Tensor>) -> Head {
        let bytes = to_safetensors(tensors.iter().map(|(name, tensor)| (name.as_str(), tensor))).unwrap();
        let (weights, device) = (Weights::parse(bytes).unwrap(), Device::Cpu);
        let rng = &mut stream(0, 0, "", "head");
        Head::load(kind, sizes, &Source { weights: &weights, device, kind: numbers, rng: RefCell::new(rng) }).unwrap()
    }

    /// As in tests/golden/deeplab/make.py.
    fn with_waves(kind: HeadKind, sizes: Sizes, numbers: Kind) -> Head {
        let new = load(kind, sizes, &BTreeMap::new());
        let named: BTreeMap<String, Tensor> = new.trained().into_iter().chain(new.frozen()).collect();
        let made = |(i, (name, tensor)): (usize, (String, Tensor))| {
            let (size, wave) = (tensor.size(), wave(&tensor.size(), 0.1 + 0.37 * i as f64));
            let value = match size.len() {
                4 => wave * (2.0 / (size[1..].iter().product::<i64>() as f64).sqrt()),
                _ if name.ends_with("running_var") || name.ends_with("weight") => wave * 0.3 + 1.0,
                _ => wave * 0.2,
            };
            (name, value)
        };
        load_as(numbers, (kind, sizes), &named.into_iter().enumerate().map(made).collect())
    }

    fn features() -> (Tensor, Tensor) {
        (wave(&[2, 16, 30, 26], 0.37) + 0.5, wave(&[2, 12, 59, 52], 0.21) + 0.5)
    }

    /// A head, and the logits of two images in evaluation and in training.
    fn pass(compute: Compute, (kind, sizes): (HeadKind, Sizes)) -> (Head, [Tensor; 2]) {
        let head = with_waves(kind, sizes, compute.wide_kind());
        let (x, low) = features();
        let (x, low) = (x.to_kind(compute.kind()), low.to_kind(compute.kind()));
        let inferred = tch::no_grad(|| head.forward(&x, Some(&low), None));
        let logits = head.pass(&x, Some(&low), true, |x| x);
        (head, [inferred, logits])
    }

    #[test]
    fn heads_agree_with_their_definitions() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/deeplab/golden.safetensors");
        let golden = Weights::parse(std::fs::read(path).unwrap()).unwrap();
        let check = |name: &str, found: &Tensor, n: i64, tolerance: f64| {
            assert_close(&golden.raw(name).unwrap(), name, &slices(found, n), tolerance);
        };
        for (name, kind, output_stride) in [
            ("large_fov.8", HeadKind::LargeFov, 8),
            ("large_fov.16", HeadKind::LargeFov, 16),
            ("v3.8", HeadKind::V3, 8),
            ("v3.16", HeadKind::V3, 16),
            ("v3plus.8", HeadKind::V3Plus, 8),
        ] {
            let gradients = [(Compute::F64, EXACT), (Compute::F32, 1e-4)].map(|(compute, tolerance)| {
                let (head, [inferred, logits]) = pass(compute, (kind, Sizes { output_stride, ..SIZES }));
                check(&format!("{name}.eval"), &inferred, 256, tolerance);
                check(&format!("{name}.train"), &logits, 256, tolerance);
                logits.square().mean(logits.kind()).backward();
                for (part, tensor) in head.frozen() {
                    check(&format!("{name}.stat.{part}"), &tensor, 8, tolerance);
                }
                head.trained().into_iter().map(|(part, tensor)| (part, tensor.grad())).collect::<Vec<_>>()
            });
            let [exact, rounded] = gradients;
            for (part, gradient) in &exact {
                check(&format!("{name}.grad.{part}"), gradient, 8, EXACT);
            }
            assert_same_slope(name, &rounded, &exact);
        }
    }

    /// A checkpoint has all of a head, dropout repeats with its streams, and one image of one feature has a mean too.
    #[test]
    fn heads_come_back_from_a_checkpoint() {
        let (x, low) = features();
        for kind in [HeadKind::AsppV2, HeadKind::LargeFov, HeadKind::V3, HeadKind::V3Plus] {
            let head = load(kind, SIZES, &BTreeMap::new());
            let pass = |head: &Head, seed: u64| {
                let mut streams = [stream(seed, 0, "a", "head"), stream(seed, 0, "b", "head")];
                head.forward(&x, Some(&low), Some(&mut streams))
            };
            let (first, again, other) = (pass(&head, 1), pass(&head, 1), pass(&head, 2));
            assert!(first.equal(&again), "{kind:?}");
            assert_eq!(first.equal(&other), kind == HeadKind::AsppV2, "{kind:?}");
            let tensors = head.trained().into_iter().chain(head.frozen()).collect();
            let infer = |head: &Head| tch::no_grad(|| head.forward(&x, Some(&low), None));
            assert!(infer(&load(kind, SIZES, &tensors)).equal(&infer(&head)), "{kind:?}");
            let (one, low) = (x.narrow(0, 0, 1).narrow(2, 0, 1).narrow(3, 0, 1), low.narrow(0, 0, 1));
            let logits = head.forward(&one, Some(&low), Some(&mut [stream(0, 0, "", "")]));
            assert!(logits.isfinite().all().int64_value(&[]) == 1, "{kind:?}");
            assert!(infer(&head).isfinite().all().int64_value(&[]) == 1, "{kind:?}");
        }
    }
}
