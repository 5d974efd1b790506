//! Work that may panic, since most of libtorch's operators do where they fail: on what is too large for the memory, or on a
//! device that broke down.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// A unit asked for more memory than there is.
#[derive(Debug, thiserror::Error)]
#[error("out of memory: {0}")]
pub struct OutOfMemory(String);

impl OutOfMemory {
    /// What to do about it.
    pub const HINT: &str = "set a smaller `batch_size` with more `accumulate`, a smaller `crop` or smaller `scales`; on a CPU \
                            fewer --jobs, and a GPU only once in --device; what has finished is kept";

    /// libtorch has no type for it. What stands above its text in the error is kept, its trace is not.
    fn of(error: &anyhow::Error) -> Option<Self> {
        const SAID: [&str; 4] =
            ["can't allocate memory", "out of memory", "CUDNN_STATUS_ALLOC_FAILED", "CUBLAS_STATUS_ALLOC"];
        let has_said = |text: &str| SAID.iter().any(|said| text.contains(said));
        let mut chain: Vec<String> = Vec::new();
        for text in error.chain().map(ToString::to_string) {
            if let Some(line) = text.lines().find(|line| has_said(line)) {
                let from = line.find("you tried").or_else(|| line.find("Tried")).unwrap_or(0);
                chain.push(line[from..].split(". ").next().unwrap_or_default().to_owned());
                return Some(Self(chain.join(": ")));
            }
            chain.push(text);
        }
        None
    }
}

/// Does some work; a panic is its error, and memory that ran out is an [`OutOfMemory`].
///
/// # Errors
/// Those of the work, and its panic.
pub fn guarded<T>(work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let outcome = catch_unwind(AssertUnwindSafe(work));
    let outcome = outcome.unwrap_or_else(|panic| Err(anyhow::anyhow!("panicked: {}", message(&*panic))));
    outcome.map_err(|error| OutOfMemory::of(&error).map_or(error, anyhow::Error::from))
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_an_error() {
        assert_eq!(guarded(|| Ok(1)).unwrap(), 1);
        let said = |work: fn() -> anyhow::Result<()>| format!("{:#}", guarded(work).unwrap_err());
        assert_eq!(said(|| anyhow::bail!("no")), "no");
        assert_eq!(said(|| panic!("{} cells", 3)), "panicked: 3 cells");
        let lost = guarded::<()>(|| panic!("CUDA error. Tried to allocate 2 GiB, out of memory. More")).unwrap_err();
        assert!(lost.is::<OutOfMemory>(), "{lost:#}");
    }
}
