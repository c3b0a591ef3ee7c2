//! Being run at once when there is something to do, or only when nobody else is.
//!
//! For threads that a guest waits for and that do little: each microsecond until they run is one in which the guest
//! stands still. Those that do much at a time get out of their way.
//!
//! <https://man7.org/linux/man-pages/man7/sched.7.html>,
//! <https://man7.org/linux/man-pages/man2/setpriority.2.html> (on Linux the nice value is each thread's own).

use std::io;

/// Puts the calling thread before all ordinary ones, as far as the system allows it to. Threads that it starts are
/// ordinary ones again.
pub(crate) fn raise() {
    let parameters = libc::sched_param { sched_priority: 1 };
    // SAFETY: sets how this thread (0) is scheduled; the kernel only reads the parameters.
    let result = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK, &raw const parameters) };
    if result != 0 {
        let refused = io::Error::last_os_error();
        tracing::debug!(error = %refused, nice = set_nice(FIRST), "no real-time priority");
    }
}

/// Puts the calling thread behind those that do not do this.
pub(crate) fn lower() {
    // Never refused, as it asks for less.
    set_nice(BEHIND);
}

/// Whether the calling thread has this nice value now.
fn set_nice(nice: i32) -> bool {
    // SAFETY: takes three integers and touches no memory; 0 is the calling thread.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice) == 0 }
}

const FIRST: i32 = -20;
const BEHIND: i32 = 5;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_thread_steps_back_and_the_others_stay() {
        // SAFETY: as above; the answers of these threads are not negative, which would be ambiguous.
        let nice = || unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) };
        let before = nice();
        let there = std::thread::spawn(move || {
            lower();
            nice()
        });
        assert_eq!(there.join().unwrap(), BEHIND);
        assert_eq!(nice(), before);
    }
}
