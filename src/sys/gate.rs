//! A lock that many threads hold by turns for a short time, and that one thread, which others wait for, takes from all of
//! them.
//!
//! The standard library's lock for readers and writers has two faults for that. Who holds it may be an ordinary thread
//! that the scheduler has set aside; the one that has real-time priority then waits for milliseconds. And one
//! counter is shared by all. So this one is a mutex for each of a few *slots*, with priority inheritance: whoever holds
//! one that is waited for runs with the priority of the one who waits. Holding any slot gives shared access, holding all
//! of them gives exclusive access.
//!
//! <https://man7.org/linux/man-pages/man3/pthread_mutexattr_setprotocol.3.html>

use std::cell::UnsafeCell;
use std::fmt;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::{Deref, DerefMut};

use crossbeam::utils::CachePadded;

/// Slots of a gate.
pub(crate) const SLOTS: usize = 8;

/// A value behind such a lock.
pub(crate) struct Gate<T> {
    /// Boxed: a mutex must not move.
    slots: Box<[CachePadded<Inheriting>; SLOTS]>,
    value: UnsafeCell<T>,
}

// SAFETY: `&T` goes to several threads at a time, `&mut T` to one while no other has either (see `Open` and `Closed`).
unsafe impl<T: Send + Sync> Sync for Gate<T> {}

/// Shared access, of the thread that has waited for it.
pub(crate) struct Open<'g, T> {
    gate: &'g Gate<T>,
    slot: usize,
    _of_this_thread: PhantomData<*const ()>,
}

/// Exclusive access, of the thread that has waited for it.
pub(crate) struct Closed<'g, T> {
    gate: &'g Gate<T>,
    _of_this_thread: PhantomData<*const ()>,
}

impl<T> Gate<T> {
    pub(crate) fn new(value: T) -> Self {
        let slots: Box<[CachePadded<Inheriting>; SLOTS]> = Box::new(std::array::from_fn(|_| CachePadded::new(Inheriting::vacant())));
        slots.iter().for_each(|slot| slot.initialise());
        Self { slots, value: UnsafeCell::new(value) }
    }

    /// Waits for shared access. Those of the same slot (taken modulo [`SLOTS`]) wait for each other. Not by one who has
    /// access already.
    pub(crate) fn open(&self, slot: usize) -> Open<'_, T> {
        let slot = slot % SLOTS;
        self.slots[slot].lock();
        Open { gate: self, slot, _of_this_thread: PhantomData }
    }

    /// Waits for exclusive access. Not by one who has access already.
    pub(crate) fn close(&self) -> Closed<'_, T> {
        // In order, so that two who close do not wait for each other.
        self.slots.iter().for_each(|slot| slot.lock());
        Closed { gate: self, _of_this_thread: PhantomData }
    }
}

impl<T> fmt::Debug for Gate<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gate").finish_non_exhaustive()
    }
}

impl<T> Deref for Open<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: `&mut T` exists only while all slots are held, and this holds one.
        unsafe { &*self.gate.value.get() }
    }
}

impl<T> Drop for Open<'_, T> {
    fn drop(&mut self) {
        self.gate.slots[self.slot].unlock();
    }
}

impl<T> Deref for Closed<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: this holds all slots; `&mut T` comes from it only, and not while it is borrowed.
        unsafe { &*self.gate.value.get() }
    }
}

impl<T> DerefMut for Closed<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: this holds all slots, so nobody else has access, and it is borrowed mutably.
        unsafe { &mut *self.gate.value.get() }
    }
}

impl<T> Drop for Closed<'_, T> {
    fn drop(&mut self) {
        self.gate.slots.iter().for_each(|slot| slot.unlock());
    }
}

/// A mutex with priority inheritance, where the system has that, and an ordinary one elsewhere.
struct Inheriting {
    mutex: UnsafeCell<MaybeUninit<libc::pthread_mutex_t>>,
}

// SAFETY: a mutex is for several threads; it is touched by the functions for that only.
unsafe impl Sync for Inheriting {}
// SAFETY: it is not tied to a thread unless it is locked, and then it is borrowed.
unsafe impl Send for Inheriting {}

impl Inheriting {
    /// Room for one, to be initialised where it stays.
    fn vacant() -> Self {
        Self { mutex: UnsafeCell::new(MaybeUninit::uninit()) }
    }

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

    fn lock(&self) {
        // SAFETY: initialised by `Gate::new`, and does not move: it is behind a box.
        let result = unsafe { libc::pthread_mutex_lock(self.mutex()) };
        assert_eq!(result, 0, "nobody locks it twice");
    }

    /// By the thread that has locked it.
    fn unlock(&self) {
        // SAFETY: as for `lock`.
        let result = unsafe { libc::pthread_mutex_unlock(self.mutex()) };
        assert_eq!(result, 0, "its owner unlocks it");
    }
}

impl Drop for Inheriting {
    fn drop(&mut self) {
        // SAFETY: initialised by `Gate::new`, and nobody has it locked, since the guards borrow it.
        unsafe { libc::pthread_mutex_destroy(self.mutex()) };
    }
}

unsafe extern "C" {
    // The crate libc does not have it for Linux.
    fn pthread_mutexattr_setprotocol(attributes: *mut libc::pthread_mutexattr_t, protocol: libc::c_int) -> libc::c_int;
}
const PTHREAD_PRIO_INHERIT: libc::c_int = 1;

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[test]
    fn nobody_has_access_while_one_has_it_exclusively() {
        let gate = Gate::new(0u64);
        let inside = AtomicU32::new(0);
        std::thread::scope(|scope| {
            for slot in [0, 1, 1, SLOTS] {
                let (gate, inside) = (&gate, &inside);
                scope.spawn(move || {
                    for _ in 0..2000 {
                        let open = gate.open(slot);
                        inside.fetch_add(1, Ordering::Relaxed);
                        assert_eq!(*open % 2, 0, "never seen half done");
                        inside.fetch_sub(1, Ordering::Relaxed);
                    }
                });
            }
            for _ in 0..2 {
                scope.spawn(|| {
                    for _ in 0..1000 {
                        let mut closed = gate.close();
                        assert_eq!(inside.load(Ordering::Relaxed), 0);
                        *closed += 1;
                        std::hint::spin_loop();
                        *closed += 1;
                    }
                });
            }
        });
        assert_eq!(*gate.open(3), 4000);
    }
}
