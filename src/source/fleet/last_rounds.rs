//! How many guests stand still at a time.
//!
//! Guests that stop together share the link in their last rounds, and each stands still for as long as all of them take.
//! So a guest that is about to stop waits, running, until few others do. Its place is taken while it has pages to send, not
//! for the handover after that, which keeps neither link nor processors busy. A place that is held for too long counts no
//! more: a guest whose connection is dead holds nobody up.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Sender, bounded};

/// The places there are, and the line of those who wait for one.
#[derive(Debug)]
pub(super) struct LastRounds {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    places: usize,
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

/// A place that was asked for, and perhaps granted; given back when dropped.
#[derive(Debug)]
pub(in crate::source) struct LastRoundPlace {
    rounds: Arc<LastRounds>,
    asked: u64,
    granted: Receiver<()>,
}

impl LastRounds {
    pub(super) fn new(places: usize) -> Arc<Self> {
        Arc::new(Self { state: Mutex::new(State { places, holders: Vec::new(), waiting: VecDeque::new(), asked: 0 }) })
    }

    /// Asks for a place.
    pub(super) fn ask(self: &Arc<Self>, now: Instant) -> LastRoundPlace {
        let (tell, granted) = bounded(1);
        let mut state = self.lock();
        state.asked += 1;
        let asked = state.asked;
        state.waiting.push_back((asked, tell));
        state.grant(now);
        LastRoundPlace { rounds: Arc::clone(self), asked, granted }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while holding the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LastRoundPlace {
    /// Tells once it is granted.
    pub(in crate::source) fn granted(&self) -> &Receiver<()> {
        &self.granted
    }

    /// To be called now and then by those who wait: whose time is over makes room.
    pub(in crate::source) fn look(&self, now: Instant) {
        self.rounds.lock().grant(now);
    }
}

impl Drop for LastRoundPlace {
    fn drop(&mut self) {
        let mut state = self.rounds.lock();
        state.holders.retain(|holder| holder.asked != self.asked);
        state.waiting.retain(|(asked, _)| *asked != self.asked);
        state.grant(Instant::now());
    }
}

impl State {
    fn grant(&mut self, now: Instant) {
        self.holders.retain(|holder| holder.until > now);
        while self.holders.len() < self.places
            && let Some((asked, tell)) = self.waiting.pop_front()
        {
            self.holders.push(Holder { asked, until: now + HELD });
            // There is room for this one word, and the place lives as long as it waits.
            let _ = tell.send(());
        }
    }
}

/// For how long a place counts.
const HELD: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use super::*;

    fn has(place: &LastRoundPlace) -> bool {
        place.granted().try_recv().is_ok()
    }

    #[test]
    fn places_go_in_the_order_in_which_they_were_asked_for() {
        let (rounds, now) = (LastRounds::new(2), Instant::now());
        let [first, second, third, fourth, fifth] = std::array::from_fn(|_| rounds.ask(now));
        assert!(has(&first) && has(&second) && !has(&third));
        drop(fourth);
        drop(second);
        assert!(has(&third) && !has(&fifth));
        drop((first, third));
        assert!(has(&fifth));
    }

    #[test]
    fn a_place_that_is_held_for_too_long_counts_no_more() {
        let (rounds, now) = (LastRounds::new(1), Instant::now());
        let (stuck, next) = (rounds.ask(now), rounds.ask(now));
        next.look(now + HELD / 2);
        assert!(has(&stuck) && !has(&next));
        next.look(now + HELD);
        assert!(has(&next));
        let last = rounds.ask(now + HELD);
        drop(stuck);
        assert!(!has(&last), "that of the stuck one was given on already");
    }
}
