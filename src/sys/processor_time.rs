//! Time on a processor.
//!
//! <https://man7.org/linux/man-pages/man3/clock_gettime.3.html> (`CLOCK_THREAD_CPUTIME_ID`)

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// What the calling thread has had of a processor since it began; always nothing where the system does not say. To read
/// this clock is to have the scheduler look whether it is another thread's turn.
pub(crate) fn of_this_thread() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}
