//! The mutex of a slot: `pthread_mutex_t` with priority inheritance.

use std::cell::UnsafeCell;
use std::mem::MaybeUninit;

/// A mutex with priority inheritance, where the system has that, and an ordinary one elsewhere.
pub(super) struct Inheriting {
    mutex: UnsafeCell<MaybeUninit<libc::pthread_mutex_t>>,
}

// SAFETY: a mutex is for several threads; it is touched by the functions for that only.
unsafe impl Sync for Inheriting {}
// SAFETY: it is not tied to a thread unless it is locked, and then it is borrowed.
unsafe impl Send for Inheriting {}

impl Inheriting {
    /// Room for one, to be initialised where it stays.
    pub(super) fn vacant() -> Self {
        Self { mutex: UnsafeCell::new(MaybeUninit::uninit()) }
    }

    pub(super) fn initialise(&self) {
        let mut attributes = MaybeUninit::uninit();
        // SAFETY: initialises the attributes.
        let result = unsafe { libc::pthread_mutexattr_init(attributes.as_mut_ptr()) };
        assert_eq!(result, 0, "attributes are plain values on Linux");
        // SAFETY: the attributes are initialised.
        let refused = unsafe { pthread_mutexattr_setprotocol(attributes.as_mut_ptr(), PTHREAD_PRIO_INHERIT) };
        if refused != 0 {
            tracing::debug!(errno = refused, "no priority inheritance");
        }
        // SAFETY: the attributes are initialised; initialises the mutex, which nobody uses yet and which stays where it is.
        let result = unsafe { libc::pthread_mutex_init(self.mutex(), attributes.as_ptr()) };
        assert_eq!(result, 0, "such a mutex takes no memory");
        // SAFETY: initialised above, and not used afterwards.
        unsafe { libc::pthread_mutexattr_destroy(attributes.as_mut_ptr()) };
    }

    fn mutex(&self) -> *mut libc::pthread_mutex_t {
        self.mutex.get().cast()
    }

    pub(super) fn lock(&self) {
        // SAFETY: initialised by `Gate::new`, and does not move: it is behind a box.
        let result = unsafe { libc::pthread_mutex_lock(self.mutex()) };
        assert_eq!(result, 0, "nobody locks it twice");
    }

    /// By the thread that has locked it.
    pub(super) fn unlock(&self) {
        // SAFETY: as for `lock`.
        let result = unsafe { libc::pthread_mutex_unlock(self.mutex()) };
        assert_eq!(result, 0, "its owner unlocks it");
    }
}

impl Drop for Inheriting {
    fn drop(&mut self) {
        // A guard that was forgotten has it locked for ever; it must not be destroyed then, and holds nothing to give back.
        // SAFETY: initialised by `Gate::new`.
        if unsafe { libc::pthread_mutex_trylock(self.mutex()) } == 0 {
            self.unlock();
            // SAFETY: initialised, not locked, and borrowed by nobody.
            unsafe { libc::pthread_mutex_destroy(self.mutex()) };
        }
    }
}

unsafe extern "C" {
    // The crate libc does not have it for Linux.
    fn pthread_mutexattr_setprotocol(attributes: *mut libc::pthread_mutexattr_t, protocol: libc::c_int) -> libc::c_int;
}
const PTHREAD_PRIO_INHERIT: libc::c_int = 1;
