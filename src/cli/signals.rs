//! Ctrl-C and SIGTERM as a request instead of an end.

use nix::sys::signal::{SigSet, Signal};

/// Calls `on_signal` for each SIGINT and SIGTERM, on a thread of its own. Call it before other threads are started: they
/// inherit that these signals are not theirs.
///
/// # Errors
/// When the system refuses.
pub fn on_interrupt(mut on_signal: impl FnMut() + Send + 'static) -> std::io::Result<()> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    signals.thread_block()?;
    let wait = move || {
        while signals.wait().is_ok() {
            on_signal();
        }
    };
    std::thread::Builder::new().name("signals".into()).spawn(wait)?;
    Ok(())
}
