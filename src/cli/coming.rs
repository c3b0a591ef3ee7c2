//! Guests on their way in, for who had better not get in their way.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

/// Counts them.
#[derive(Debug, Default)]
pub(super) struct Coming {
    count: Mutex<usize>,
    fewer: Condvar,
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

    /// Waits until there is none, for `patience` at most.
    pub(super) fn await_none(&self, patience: Duration) {
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
}
