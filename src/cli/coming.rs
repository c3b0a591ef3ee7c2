//! Guests on their way in, for who had better not get in their way.
//!
//! A check takes a processor for a while. One that begins waits until no guest is on its way in, or for long enough; and
//! there is one at a time, behind all that is busy with guests.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use crate::sys::priority;

/// Counts them.
#[derive(Debug, Default)]
pub(super) struct Coming {
    count: Mutex<usize>,
    fewer: Condvar,
    checks: Mutex<()>,
}

/// One of them, until it is dropped.
#[derive(Debug)]
pub(super) struct OnItsWay(Arc<Coming>);

impl Coming {
    /// One more.
    pub(super) fn begin(self: &Arc<Self>) -> OnItsWay {
        *self.count.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        OnItsWay(Arc::clone(self))
    }

    /// Runs a check on this thread, which steps back for good, once there is none or `patience` is over.
    pub(super) fn check<T>(&self, patience: Duration, check: impl FnOnce() -> T) -> T {
        self.await_none(patience);
        priority::lower();
        let _one_at_a_time = self.checks.lock().unwrap_or_else(PoisonError::into_inner);
        check()
    }

    /// Waits until there is none, for `patience` at most.
    fn await_none(&self, patience: Duration) {
        let count = self.count.lock().unwrap_or_else(PoisonError::into_inner);
        // Whether they are gone or time is over makes no difference.
        drop(self.fewer.wait_timeout_while(count, patience, |count| *count > 0));
    }
}

impl Drop for OnItsWay {
    fn drop(&mut self) {
        *self.0.count.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        self.0.fewer.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn the_last_one_ends_the_wait() {
        let coming = Arc::new(Coming::default());
        coming.await_none(Duration::MAX);
        let (first, second) = (coming.begin(), coming.begin());
        drop(first);
        std::thread::scope(|scope| {
            scope.spawn(|| coming.await_none(Duration::from_secs(3600)));
            drop(second);
        });
        let _third = coming.begin();
        coming.await_none(Duration::from_millis(1));
    }

    #[test]
    fn checks_run_one_at_a_time_however_many_are_due() {
        let (coming, now) = (Coming::default(), AtomicUsize::new(0));
        let check = || {
            assert_eq!(now.fetch_add(1, Ordering::SeqCst), 0);
            std::thread::yield_now();
            now.fetch_sub(1, Ordering::SeqCst);
        };
        std::thread::scope(|scope| (0..8).for_each(|_| _ = scope.spawn(|| (0..50).for_each(|_| coming.check(Duration::MAX, check)))));
    }
}
