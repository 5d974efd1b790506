//! Where the tests compute that look at numbers: on the CPU, or where `make test-gpu` says.

use tch::{Device, Tensor};

/// The device that `S2C_TEST_DEVICE` names: cpu, cuda or cuda:N.
pub(crate) fn device() -> Device {
    stage_device().torch()
}

pub(crate) fn stage_device() -> s2c_pipe::stage::Device {
    use s2c_pipe::stage::Device::{Cpu, Cuda};
    let named = std::env::var("S2C_TEST_DEVICE").unwrap_or_else(|_| "cpu".into());
    match (&*named, named.strip_prefix("cuda:").and_then(|index| index.parse().ok())) {
        ("cpu", _) => Cpu,
        ("cuda", _) => Cuda(0),
        (_, Some(index)) => Cuda(index),
        _ => panic!("S2C_TEST_DEVICE={named}: there are cpu, cuda and cuda:N"),
    }
}

pub(crate) fn there(x: &Tensor) -> Tensor {
    x.to_device(device())
}

pub(crate) fn back(x: &Tensor) -> Tensor {
    x.detach().to_device(Device::Cpu)
}
