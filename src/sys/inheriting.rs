//! A mutex with priority inheritance: whoever holds it while others wait for it runs with the highest priority of those.
//!
//! For what an ordinary thread holds for a moment and one that a guest waits for needs too. Where processors are scarce the
//! ordinary one may be set aside in that moment, for many milliseconds, and the other would wait as long.
//!
//! <https://man7.org/linux/man-pages/man3/pthread_mutexattr_setprotocol.3.html>

use std::cell::UnsafeCell;
use std::fmt;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::{Deref, DerefMut};

use crossbeam::utils::CachePadded;

/// A value behind such a mutex.
pub(crate) struct Shared<T> {
    mutex: Inheriting,
    value: UnsafeCell<T>,
}

// SAFETY: `&mut T` goes to one thread at a time, the one that has locked the mutex.
unsafe impl<T: Send> Sync for Shared<T> {}

/// Access to the value, of the thread that has locked the mutex.
pub(crate) struct Held<'s, T> {
    shared: &'s Shared<T>,
    _of_this_thread: PhantomData<*const ()>,
}

impl<T> Shared<T> {
    pub(crate) fn new(value: T) -> Self {
        Self { mutex: Inheriting::new(), value: UnsafeCell::new(value) }
    }

    /// Waits for access. Not by one who has it already.
    pub(crate) fn lock(&self) -> Held<'_, T> {
        self.mutex.lock();
        Held { shared: self, _of_this_thread: PhantomData }
    }
}

impl<T> fmt::Debug for Shared<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

impl<T> Deref for Held<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: the mutex is locked, and `&mut T` comes only from this guard, borrowed mutably.
        unsafe { &*self.shared.value.get() }
    }
}

impl<T> DerefMut for Held<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: the mutex is locked, so nobody else has access, and this guard is borrowed mutably.
        unsafe { &mut *self.shared.value.get() }
    }
}

impl<T> Drop for Held<'_, T> {
    fn drop(&mut self) {
        self.shared.mutex.unlock();
    }
}

/// The mutex alone, where the system has priority inheritance, and an ordinary one elsewhere.
pub(super) struct Inheriting {
    /// Boxed: a mutex must not move.
    mutex: Box<CachePadded<UnsafeCell<MaybeUninit<libc::pthread_mutex_t>>>>,
}

// SAFETY: a mutex is for several threads; it is touched by the functions for that only.
unsafe impl Sync for Inheriting {}
// SAFETY: it is not tied to a thread unless it is locked, and then it is borrowed.
unsafe impl Send for Inheriting {}

impl Inheriting {
    pub(super) fn new() -> Self {
        let vacant = Self { mutex: Box::new(CachePadded::new(UnsafeCell::new(MaybeUninit::uninit()))) };
        vacant.initialise();
        vacant
    }

    /// Once, before it is used.
    fn initialise(&self) {
        let mut attributes = MaybeUninit::uninit();
        // SAFETY: initialises the attributes.
        let result = unsafe { libc::pthread_mutexattr_init(attributes.as_mut_ptr()) };
        assert_eq!(result, 0, "attributes are plain values on Linux");
        // SAFETY: the attributes are initialised.
        let refused = unsafe { pthread_mutexattr_setprotocol(attributes.as_mut_ptr(), PTHREAD_PRIO_INHERIT) };
        if refused != 0 {
            tracing::debug!(errno = refused, "no priority inheritance");
        }
        // SAFETY: the attributes are initialised; initialises the mutex, which nobody uses yet.
        let result = unsafe { libc::pthread_mutex_init(self.mutex(), attributes.as_ptr()) };
        assert_eq!(result, 0, "such a mutex takes no memory");
        // SAFETY: initialised above, and not used afterwards.
        unsafe { libc::pthread_mutexattr_destroy(attributes.as_mut_ptr()) };
    }

    fn mutex(&self) -> *mut libc::pthread_mutex_t {
        self.mutex.get().cast()
    }

    /// Not by a thread that has locked it.
    pub(super) fn lock(&self) {
        // SAFETY: initialised by `new`, and does not move: it is behind a box.
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
        // SAFETY: initialised by `new`.
        if unsafe { libc::pthread_mutex_trylock(self.mutex()) } == 0 {
            self.unlock();
            // SAFETY: initialised, not locked, and borrowed by nobody.
            unsafe { libc::pthread_mutex_destroy(self.mutex()) };
        }
    }
}

// SAFETY: as `pthread.h` declares it (POSIX, `pthread_mutexattr_setprotocol(3p)`); the crate libc does not have it for Linux.
unsafe extern "C" {
    fn pthread_mutexattr_setprotocol(attributes: *mut libc::pthread_mutexattr_t, protocol: libc::c_int) -> libc::c_int;
}
const PTHREAD_PRIO_INHERIT: libc::c_int = 1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time_has_access() {
        let shared = Shared::new([0u64; 2]);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..5000 {
                        let mut held = shared.lock();
                        held[0] += 1;
                        std::hint::spin_loop();
                        held[1] += 1;
                        assert_eq!(held[0], held[1]);
                    }
                });
            }
        });
        assert_eq!(*shared.lock(), [20_000; 2]);
    }
}
