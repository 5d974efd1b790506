//! The number of threads that libtorch computes with, which is the same on every machine.
//!
//! oneDNN and MKL split a sum into as many parts as there are threads, and sums of other parts round otherwise: with
//! `OMP_NUM_THREADS=1`, which Slurm and containers set, or on a machine with more cores, equal units would give other
//! bytes. The libraries read their settings when they are loaded, so the program starts itself anew with its own.

use std::ffi::OsStr;
use std::os::unix::process::CommandExt;
use std::process::Command as Process;

use super::Hinted;

/// Threads of one computation. On 2 cores a training step with 8 took as long as one with 2, and one with 16 took twice
/// as long.
pub(super) const COMPUTING: &str = "8";

/// What decides the number of threads.
const FIXED: [(&str, Option<&str>); 9] = [
    ("OMP_NUM_THREADS", Some(COMPUTING)),
    ("MKL_NUM_THREADS", Some(COMPUTING)),
    ("OMP_DYNAMIC", Some("FALSE")),
    ("MKL_DYNAMIC", Some("FALSE")),
    ("OMP_THREAD_LIMIT", None),
    ("OMP_MAX_ACTIVE_LEVELS", None),
    ("OMP_NESTED", None),
    ("OMP_TEAMS_THREAD_LIMIT", None),
    ("MKL_DOMAIN_NUM_THREADS", None),
];
/// Threads that wait sleep: others compute on the same cores, more of them than there are cores. It changes no result.
const WAITING: (&str, &str) = ("OMP_WAIT_POLICY", "PASSIVE");

/// Starts the program anew in this process, unless its environment is as it has to be.
///
/// # Errors
/// The program cannot be started again.
pub(super) fn fix() -> anyhow::Result<()> {
    let is_fixed = |(name, value): &(&str, Option<&str>)| std::env::var_os(name).as_deref() == value.map(OsStr::new);
    if FIXED.iter().all(is_fixed) {
        return Ok(());
    }
    let mut args = std::env::args_os();
    // Of this process, also when its file has been replaced by a newer build.
    let mut anew = Process::new("/proc/self/exe");
    anew.arg0(args.next().unwrap_or_default()).args(args);
    for (name, value) in FIXED {
        match value {
            Some(value) => anew.env(name, value),
            None => anew.env_remove(name),
        };
    }
    if std::env::var_os(WAITING.0).is_none() {
        anew.env(WAITING.0, WAITING.1);
    }
    let error = anew.exec();
    let hint = format!(
        "set OMP_NUM_THREADS={COMPUTING} and MKL_NUM_THREADS={COMPUTING}, OMP_DYNAMIC and MKL_DYNAMIC to FALSE"
    );
    Err(Hinted::error(format!("the program could not be started with {COMPUTING} threads: {error}"), hint))
}
