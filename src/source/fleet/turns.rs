//! Turns at something that many threads want and only a few can have at a time: a processor, or the link.
//!
//! A turn is handed on by the one who ends it, to whoever is next in the [`Line`]: nobody else wakes up. It must be held
//! for a short time only and never while waiting for a peer, so that no guest's broken connection is felt by another.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::Thread;
use std::time::Duration;

use super::line::{Line, MemberId, Urgency};

/// Some turns, and the line of those who wait for one.
#[derive(Debug)]
pub(super) struct Turns {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Turns that nobody has.
    free: usize,
    line: Line<Caller>,
}

/// How a thread that waits is told.
#[derive(Clone, Debug)]
struct Caller {
    granted: Arc<AtomicBool>,
    thread: Thread,
}

/// Where one thread waits: made once, used for many turns.
#[derive(Clone, Debug, Default)]
pub(in crate::source) struct Seat {
    granted: Arc<AtomicBool>,
}

/// A turn, until it is dropped.
#[derive(Debug)]
pub(super) struct Turn {
    turns: Arc<Turns>,
}

impl Turns {
    /// So many at a time.
    pub(super) fn new(at_a_time: usize) -> Arc<Self> {
        Arc::new(Self { state: Mutex::new(State { free: at_a_time, line: Line::new() }) })
    }

    /// Waits for a turn for a guest, at `seat`, which is this thread's. None if `is_stopped` says so meanwhile.
    pub(super) fn take(self: &Arc<Self>, member: MemberId, urgency: Urgency, cost: u64, seat: &Seat, is_stopped: &dyn Fn() -> bool) -> Option<Turn> {
        // Relaxed: the line's lock orders this before any grant.
        seat.granted.store(false, Ordering::Relaxed);
        let caller = Caller { granted: Arc::clone(&seat.granted), thread: std::thread::current() };
        let asked = {
            let mut state = self.lock();
            let asked = state.line.join(member, urgency, cost, caller);
            state.grant();
            asked
        };
        // Acquire pairs with the Release of the grant: what was done in earlier turns has happened.
        while !seat.granted.load(Ordering::Acquire) {
            std::thread::park_timeout(PATIENCE);
            if is_stopped() && self.lock().line.leave(asked) {
                return None;
            }
        }
        Some(Turn { turns: Arc::clone(self) })
    }

    /// A guest takes no turns any more.
    pub(super) fn forget(&self, member: MemberId) {
        self.lock().line.forget(member);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while holding the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Gives free turns to those who are next.
    fn grant(&mut self) {
        while self.free > 0
            && let Some(caller) = self.line.call()
        {
            self.free -= 1;
            caller.granted.store(true, Ordering::Release);
            caller.thread.unpark();
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut state = self.turns.lock();
        state.free += 1;
        state.grant();
    }
}

/// How often one who waits looks whether it is stopped.
const PATIENCE: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[test]
    fn no_more_than_that_many_have_a_turn_and_all_get_theirs() {
        let turns = Turns::new(2);
        let (now, most, all) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for member in 0..16 {
                let (turns, now, most, all) = (&turns, &now, &most, &all);
                scope.spawn(move || {
                    let seat = Seat::default();
                    for _ in 0..200 {
                        let turn = turns.take(member, Urgency::Ordinary, 1, &seat, &|| false).expect("not stopped");
                        most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                        all.fetch_add(1, Ordering::SeqCst);
                        now.fetch_sub(1, Ordering::SeqCst);
                        drop(turn);
                    }
                });
            }
        });
        assert_eq!(all.into_inner(), 16 * 200);
        assert!(most.into_inner() <= 2);
    }

    #[test]
    fn one_who_is_stopped_waits_no_longer_and_loses_no_turn() {
        let turns = Turns::new(1);
        let seat = Seat::default();
        let held = turns.take(1, Urgency::Ordinary, 1, &seat, &|| false).expect("it is free");
        let stopped = std::thread::scope(|scope| scope.spawn(|| turns.take(2, Urgency::Urgent, 1, &Seat::default(), &|| true).is_none()).join());
        assert!(stopped.unwrap());
        drop(held);
        assert!(turns.take(1, Urgency::Ordinary, 1, &seat, &|| true).is_some(), "what is free is had at once");
        turns.forget(1);
    }
}
