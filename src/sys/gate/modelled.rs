//! The mutex of a slot where loom runs the threads: the same faces over loom's own.

use loom::sync::{Condvar, Mutex};

/// A mutex that is not tied to a guard.
pub(super) struct Inheriting {
    is_locked: Mutex<bool>,
    free: Condvar,
}

impl Inheriting {
    pub(super) fn new() -> Self {
        Self { is_locked: Mutex::new(false), free: Condvar::new() }
    }

    pub(super) fn lock(&self) {
        let mut is_locked = self.is_locked.lock().expect("nobody panics with it");
        while *is_locked {
            is_locked = self.free.wait(is_locked).expect("nobody panics with it");
        }
        *is_locked = true;
    }

    pub(super) fn unlock(&self) {
        *self.is_locked.lock().expect("nobody panics with it") = false;
        self.free.notify_one();
    }
}
