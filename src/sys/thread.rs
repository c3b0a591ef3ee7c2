//! The priority of a single thread.
//!
//! <https://man7.org/linux/man-pages/man2/setpriority.2.html>: on Linux the nice value is each thread's own.

use std::io;

/// Sets the nice value of the calling thread: -20 runs first. Less than it has takes a privilege.
pub(crate) fn set_nice(nice: i32) -> io::Result<()> {
    // SAFETY: takes three integers and touches no memory; 0 is the calling thread.
    let result = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_thread_steps_back_and_the_others_stay() {
        // SAFETY: as above; the answers of these threads are not negative, which would be ambiguous.
        let nice = || unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) };
        let before = nice();
        let there = std::thread::spawn(move || {
            set_nice(15).unwrap();
            nice()
        });
        assert_eq!(there.join().unwrap(), 15);
        assert_eq!(nice(), before);
    }
}
