//! Being run at once when there is something to do.
//!
//! For threads that a guest waits for and that do little: each microsecond until they run is one in which the guest
//! stands still.
//!
//! <https://man7.org/linux/man-pages/man7/sched.7.html>

use std::io;

/// Puts the calling thread before all ordinary ones, as far as the system allows it to; whether it did at all. Threads
/// that it starts are ordinary ones again.
pub(crate) fn raise() -> bool {
    let parameters = libc::sched_param { sched_priority: 1 };
    // SAFETY: sets how this thread (0) is scheduled; the kernel only reads the parameters.
    let result = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK, &raw const parameters) };
    if result == 0 {
        return true;
    }
    let refused = io::Error::last_os_error();
    // SAFETY: sets the nice value of this thread (0).
    let nice = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, -20) } == 0;
    tracing::debug!(error = %refused, nice, "no real-time priority");
    nice
}

/// Puts the calling thread behind those that do not do this: for work that others do not wait for.
pub(crate) fn lower() {
    // Best effort; never refused, as it asks for less.
    let _ = super::thread::set_nice(BULK_NICE);
}

/// After whatever is urgent.
const BULK_NICE: i32 = 5;
