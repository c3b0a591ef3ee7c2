//! Guests on their way, for who had better not get in their way.
//!
//! Checking a guest that has arrived takes a processor for a while, and so does giving back the memory of one that has
//! left. Whoever has that to do waits until no guest is on its way, or for long enough. Checks are done one at a time,
//! behind all that is busy with guests.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use crate::sys::priority;

/// Counts them.
#[derive(Debug, Default)]
pub(super) struct Road {
    count: Mutex<usize>,
    none: Condvar,
    checks: Mutex<()>,
}

/// One of them, until it is dropped.
#[derive(Debug)]
pub(super) struct OnItsWay(Arc<Road>);

impl Road {
    /// One more.
    pub(super) fn begin(self: &Arc<Self>) -> OnItsWay {
        *self.count.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        OnItsWay(Arc::clone(self))
    }

    /// Runs a check on this thread, which steps back for good, once there is none or that has taken too long.
    pub(super) fn check<T>(&self, check: impl FnOnce() -> T) -> T {
        self.give_way();
        priority::lower();
        let _one_at_a_time = self.checks.lock().unwrap_or_else(PoisonError::into_inner);
        check()
    }

    /// Waits until there is none, but not for ever.
    pub(super) fn give_way(&self) {
        self.await_none(COURTESY);
    }

    fn await_none(&self, patience: Duration) {
        let count = self.count.lock().unwrap_or_else(PoisonError::into_inner);
        // Whether they are gone or time is over makes no difference.
        drop(self.none.wait_timeout_while(count, patience, |count| *count > 0));
    }
}

impl Drop for OnItsWay {
    fn drop(&mut self) {
        let mut count = self.0.count.lock().unwrap_or_else(PoisonError::into_inner);
        *count -= 1;
        if *count == 0 {
            self.0.none.notify_all();
        }
    }
}

/// For how long those wait who can.
const COURTESY: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn the_last_one_ends_the_wait() {
        let road = Arc::new(Road::default());
        road.await_none(Duration::MAX);
        let (first, second) = (road.begin(), road.begin());
        drop(first);
        std::thread::scope(|scope| {
            scope.spawn(|| road.await_none(Duration::from_secs(3600)));
            drop(second);
        });
        let _third = road.begin();
        road.await_none(Duration::from_millis(1));
    }

    #[test]
    fn checks_run_one_at_a_time_however_many_are_due() {
        let (road, now) = (Road::default(), AtomicUsize::new(0));
        let check = || {
            assert_eq!(now.fetch_add(1, Ordering::SeqCst), 0);
            std::thread::yield_now();
            now.fetch_sub(1, Ordering::SeqCst);
        };
        std::thread::scope(|scope| (0..8).for_each(|_| _ = scope.spawn(|| (0..50).for_each(|_| road.check(check)))));
    }
}
