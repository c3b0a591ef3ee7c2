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

#[cfg(loom)]
mod modelled;

use std::cell::UnsafeCell;
use std::fmt;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

#[cfg(loom)]
use self::modelled::Inheriting;
#[cfg(not(loom))]
use super::inheriting::Inheriting;

/// Slots of a gate. A model has no use for more than two.
pub(crate) const SLOTS: usize = if cfg!(loom) { 2 } else { 8 };

/// A value behind such a lock.
pub(crate) struct Gate<T> {
    slots: [Inheriting; SLOTS],
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
        Self { slots: std::array::from_fn(|_| Inheriting::new()), value: UnsafeCell::new(value) }
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

#[cfg(all(test, loom))]
mod models {
    use loom::sync::Arc;
    use loom::sync::atomic::{AtomicU64, Ordering};
    use loom::thread;

    use super::*;

    /// A value that notices when somebody writes to it while others have access.
    struct Watched(loom::cell::UnsafeCell<u64>);

    // SAFETY: that nobody has access while somebody writes is what is tested; loom notices it.
    unsafe impl Sync for Watched {}

    #[test]
    fn exclusive_access_excludes_every_other() {
        loom::model(|| {
            let gate = Arc::new(Gate::new(Watched(loom::cell::UnsafeCell::new(0))));
            let reader = thread::spawn({
                let gate = Arc::clone(&gate);
                // SAFETY: loom hands out a pointer to the value, which lives.
                move || gate.open(0).0.with(|value| unsafe { *value })
            });
            let writer = thread::spawn({
                let gate = Arc::clone(&gate);
                // SAFETY: as above.
                move || gate.close().0.with_mut(|value| unsafe { *value += 1 })
            });
            // SAFETY: as above.
            gate.close().0.with_mut(|value| unsafe { *value += 1 });
            assert!(reader.join().unwrap() <= 2);
            writer.join().unwrap();
            // SAFETY: as above.
            assert_eq!(gate.open(1).0.with(|value| unsafe { *value }), 2);
        });
    }

    /// What the gate of a memory with missing pages is for: an installer that finds no mark fills the page before whoever
    /// marks it goes on to take it out.
    #[test]
    fn a_page_that_was_given_back_is_not_filled_afterwards() {
        loom::model(|| {
            let gate = Arc::new(Gate::new(()));
            let (removed, page) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
            let installer = thread::spawn({
                let (gate, removed, page) = (Arc::clone(&gate), Arc::clone(&removed), Arc::clone(&page));
                move || {
                    let _open = gate.open(1);
                    if removed.load(Ordering::Relaxed) == 0 {
                        page.store(7, Ordering::Relaxed);
                    }
                }
            });
            {
                let _closed = gate.close();
                removed.store(1, Ordering::Relaxed);
            }
            page.store(0, Ordering::Relaxed);
            installer.join().unwrap();
            assert_eq!(page.load(Ordering::Relaxed), 0);
        });
    }
}
