//! What ends a run from outside.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::{INTERRUPTED, leave_at_once};

/// Sets `interrupted` at Ctrl-C, SIGTERM or a hang-up; at the second of them the process ends at once.
///
/// A signal that was ignored when the program was started stays ignored: `nohup` does that with the hang-up, and a shell
/// with Ctrl-C for what a script starts in the background.
pub(super) fn stop_on_signals(interrupted: Arc<AtomicBool>) -> io::Result<()> {
    let heard = [SIGINT, SIGTERM, SIGHUP].into_iter().filter(|signal| !is_ignored(*signal));
    let mut signals = Signals::new(heard.collect::<Vec<_>>())?;
    std::thread::spawn(move || {
        for _ in signals.forever() {
            if interrupted.swap(true, Ordering::Relaxed) {
                leave_at_once(INTERRUPTED); // the store is whole at any moment
            }
            eprintln!("stopping after this unit; once more to stop at once");
        }
    });
    Ok(())
}

fn is_ignored(signal: i32) -> bool {
    #[expect(unsafe_code, reason = "the standard library has no way to ask what a signal does")]
    // SAFETY: zeros are a value of this C struct; with no new action the call does nothing but fill it.
    unsafe {
        let mut now: libc::sigaction = std::mem::zeroed();
        libc::sigaction(signal, std::ptr::null(), &mut now) == 0 && now.sa_sigaction == libc::SIG_IGN
    }
}
