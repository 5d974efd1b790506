//! Tensors of megabytes come and go with every operation; and what our own arithmetic sees of them.

use tch::{Device, Kind, Tensor};

/// Has glibc keep freed memory for the next tensor. Left alone it gives large blocks back at once, and every operation
/// pays for fresh pages: a fifth of the time of SAM's decoder on a CPU. Call it once, at the start.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[expect(unsafe_code, reason = "glibc has no other door")]
pub fn keep_freed() {
    // 32 MB is the most that glibc takes for the first.
    for (option, value) in
        [(libc::M_MMAP_THRESHOLD, 32 << 20), (libc::M_TRIM_THRESHOLD, i32::MAX), (libc::M_TOP_PAD, 64 << 20)]
    {
        // SAFETY: sets one number inside glibc, which checks it; there is no other thread yet.
        unsafe { libc::mallopt(option, value) };
    }
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub fn keep_freed() {}

/// In memory that a GPU reads without the processor, where `device` is one: [`send`] then need not wait.
pub fn pinned(x: Tensor, device: Device) -> Tensor {
    if device.is_cuda() { x.internal_pin_memory(device) } else { x }
}

/// What [`pinned`] made, to where a model computes. A GPU reads it later: nobody waits.
pub fn send(x: &Tensor, to: Device) -> Tensor {
    x.to_device_(to, x.kind(), to.is_cuda(), false)
}

/// Several scalars, read at once: each reading waits for the device.
pub fn read_all(scalars: &[Tensor]) -> Vec<f64> {
    let flat: Vec<Tensor> = scalars.iter().map(|x| x.detach().to_kind(Kind::Double).view([-1])).collect();
    Tensor::cat(&flat, 0).try_into().expect("a row of f64")
}

/// From the CPU to where a model computes.
pub fn upload(x: &Tensor, to: Device) -> Tensor {
    match to.is_cuda() && !x.device().is_cuda() {
        true => send(&pinned(x.shallow_clone(), to), to),
        false => x.to_device(to),
    }
}

/// The values of a contiguous f32 tensor on the CPU, where they lie. Panics on any other tensor: no user's input gets
/// here. Nobody may write to the tensor, through another handle either, as long as they are borrowed.
#[expect(unsafe_code, reason = "libtorch hands out a pointer")]
pub(super) fn floats(x: &Tensor) -> &[f32] {
    // SAFETY: the pointer is to `numel` values, which live as long as the tensor.
    unsafe { std::slice::from_raw_parts(pointer(x), x.numel()) }
}

/// Copies of a tensor, one after the other, that nothing else holds: they can be written to.
#[derive(Debug)]
pub(super) struct Fresh(Tensor);

impl Fresh {
    /// `(1 or N, ..)` to `(n, ..)`
    pub(super) fn copies(x: &Tensor, n: i64) -> Self {
        let mut repeats = vec![1; x.dim()];
        repeats[0] = n / x.size()[0];
        Self(x.repeat(repeats)) // a copy even where there is one repeat
    }

    #[expect(unsafe_code, reason = "libtorch hands out a pointer")]
    pub(super) fn floats(&mut self) -> &mut [f32] {
        // SAFETY: as above; no other handle exists, and this one is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(pointer(&self.0), self.0.numel()) }
    }

    pub(super) fn into_tensor(self) -> Tensor {
        self.0
    }
}

fn pointer(x: &Tensor) -> *mut f32 {
    assert!(x.device() == Device::Cpu && x.kind() == Kind::Float && x.is_contiguous() && x.numel() > 0);
    x.data_ptr().cast()
}
