//! Tensors of megabytes come and go with every operation.

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
