//! A few places for many guests, each of which counts for a while.
//!
//! Some things go better if few do them at a time. Guests that stop together share the link in their last rounds, and each
//! stands still for as long as all of them take; guests that send together all take as long as all of their pages do, and
//! what they write meanwhile goes again. So one that is about to do such a thing waits for a berth, running.
//!
//! A berth that is held for too long counts no more: a guest whose connection is dead holds nobody up, nor does one that
//! takes its time.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Sender, bounded};

/// The berths there are, and the line of those who wait for one.
#[derive(Debug)]
pub(super) struct Berths {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    berths: usize,
    /// For how long one counts.
    held: Duration,
    holders: Vec<Holder>,
    /// In the order in which they asked. Told once, through a channel with room for that.
    waiting: VecDeque<(u64, Sender<()>)>,
    asked: u64,
}

#[derive(Debug)]
struct Holder {
    asked: u64,
    until: Instant,
}

/// A berth that was asked for, and perhaps granted; given back when dropped.
#[derive(Debug)]
pub(in crate::source) struct Berth {
    all: Arc<Berths>,
    asked: u64,
    granted: Receiver<()>,
}

impl Berths {
    /// So many, of which each counts while it is held, but not for longer than `held`.
    pub(super) fn new(berths: usize, held: Duration) -> Arc<Self> {
        Arc::new(Self { state: Mutex::new(State { berths, held, holders: Vec::new(), waiting: VecDeque::new(), asked: 0 }) })
    }

    /// Asks for a berth.
    pub(super) fn ask(self: &Arc<Self>, now: Instant) -> Berth {
        let (tell, granted) = bounded(1);
        let mut state = self.lock();
        state.asked += 1;
        let asked = state.asked;
        state.waiting.push_back((asked, tell));
        state.grant(now);
        Berth { all: Arc::clone(self), asked, granted }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while holding the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Berth {
    /// Tells once it is granted.
    pub(in crate::source) fn granted(&self) -> &Receiver<()> {
        &self.granted
    }

    /// To be called now and then by those who wait: whose time is over makes room.
    pub(in crate::source) fn look(&self, now: Instant) {
        self.all.lock().grant(now);
    }
}

impl Drop for Berth {
    fn drop(&mut self) {
        let mut state = self.all.lock();
        state.holders.retain(|holder| holder.asked != self.asked);
        state.waiting.retain(|(asked, _)| *asked != self.asked);
        state.grant(Instant::now());
    }
}

impl State {
    fn grant(&mut self, now: Instant) {
        self.holders.retain(|holder| holder.until > now);
        while self.holders.len() < self.berths
            && let Some((asked, tell)) = self.waiting.pop_front()
        {
            self.holders.push(Holder { asked, until: now + self.held });
            // There is room for this one word, and the berth lives as long as it waits.
            let _ = tell.send(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HELD: Duration = Duration::from_millis(500);

    fn has(berth: &Berth) -> bool {
        berth.granted().try_recv().is_ok()
    }

    #[test]
    fn berths_go_in_the_order_in_which_they_were_asked_for() {
        let (berths, now) = (Berths::new(2, HELD), Instant::now());
        let [first, second, third, fourth, fifth] = std::array::from_fn(|_| berths.ask(now));
        assert!(has(&first) && has(&second) && !has(&third));
        drop(fourth);
        drop(second);
        assert!(has(&third) && !has(&fifth));
        drop((first, third));
        assert!(has(&fifth));
    }

    #[test]
    fn a_berth_that_is_held_for_too_long_counts_no_more() {
        let (berths, now) = (Berths::new(1, HELD), Instant::now());
        let (stuck, next) = (berths.ask(now), berths.ask(now));
        next.look(now + HELD / 2);
        assert!(has(&stuck) && !has(&next));
        next.look(now + HELD);
        assert!(has(&next));
        let last = berths.ask(now + HELD);
        drop(stuck);
        assert!(!has(&last), "that of the stuck one was given on already");
    }
}
