//! Tensors of megabytes come and go with every operation.

use tch::{Device, Tensor};

/// Has glibc keep freed memory for the next tensor. Left alone it gives large blocks back at once, and every operation
/// pays for fresh pages: a fifth of the time of SAM's decoder on a CPU. Call it once, at the start.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[expect(unsafe_code, reason = "glibc has no other door")]
pub fn keep_freed() {
    for (option, bytes) in
        [(libc::M_MMAP_THRESHOLD, 1 << 30), (libc::M_TRIM_THRESHOLD, i32::MAX), (libc::M_TOP_PAD, 64 << 20)]
    {
        // SAFETY: sets one number inside glibc, which checks it; there is no other thread yet.
        unsafe { libc::mallopt(option, bytes) };
    }
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub fn keep_freed() {}

/// In memory that a GPU reads without the processor, where `device` is one: [`send`] then need not wait.
pub fn pinned(x: Tensor, device: Device) -> Tensor {
    if device.is_cuda() { x.pin_memory(device) } else { x }
}

/// Onto a device; from pinned memory beside other work.
pub fn send(x: &Tensor, device: Device) -> Tensor {
    if device.is_cuda() { x.to_device_(device, x.kind(), true, false) } else { x.shallow_clone() }
}

/// Several scalars, read at once: each reading waits for the device.
pub fn read_all(scalars: &[Tensor]) -> Vec<f64> {
    let flat: Vec<Tensor> = scalars.iter().map(|x| x.detach().to_kind(tch::Kind::Double).view([-1])).collect();
    Tensor::cat(&flat, 0).try_into().unwrap_or_default()
}
