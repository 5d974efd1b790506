//! The instructions that our own arithmetic is made of: the one place that chooses them.

use std::sync::OnceLock;

use pulp::Arch;

/// What tests set to see what other processors give: see `make test-processors`.
const VARIABLE: &str = "S2C_SIMD";

/// The best that the processor has. With `S2C_SIMD=portable` in the environment those that every processor has, with
/// `S2C_SIMD=avx2` no more than AVX2 and FMA.
///
/// # Panics
/// The variable says something else, or asks for what the processor has not.
pub fn arch() -> Arch {
    // Tests of this crate call the library directly, so nobody else could hand this in; it is no setting for users.
    static ARCH: OnceLock<Arch> = OnceLock::new();
    *ARCH.get_or_init(|| match std::env::var(VARIABLE).as_deref() {
        Err(_) | Ok("") => Arch::new(),
        Ok("portable") => Arch::Scalar,
        #[cfg(target_arch = "x86_64")]
        Ok("avx2") => match pulp::x86::V3::try_new() {
            Some(avx2) => Arch::V3(avx2),
            None => panic!("{VARIABLE}=avx2: this processor has no AVX2 with FMA"),
        },
        Ok(other) => panic!("{VARIABLE}={other}: there are `portable` and, on x86-64, `avx2`"),
    })
}

/// Nothing was asked for, so that what only some processors have may be used.
pub fn is_free() -> bool {
    std::env::var_os(VARIABLE).is_none_or(|value| value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_is_what_there_is() {
        let found = format!("{:?}", arch());
        match std::env::var(VARIABLE).as_deref() {
            Ok("portable") => assert_eq!(found, "Scalar"),
            Ok("avx2") => assert!(found.starts_with("V3"), "{found}"),
            _ => assert!(is_free() && found == format!("{:?}", Arch::new())),
        }
    }
}
