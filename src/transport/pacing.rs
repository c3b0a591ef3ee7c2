//! One rate for all channels of a session.
//!
//! A virtual clock: each reservation moves the moment at which the link is free again, and the caller sleeps until its
//! bytes' turn. Unused time is kept only up to a small burst, so an idle spell is not made up for later. The rate can
//! change at any time.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use crate::units::{ByteCount, BytesPerSec};

/// Paces the bytes of several channels to one total rate.
#[derive(Debug)]
pub struct Pacer {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    rate: Option<BytesPerSec>,
    free_at: Option<Instant>,
}

/// No bytes take longer, at whatever rate: the clock ends somewhere.
const LONGEST: Duration = Duration::from_secs(1 << 30);

/// Unused time that may be caught up.
const BURST: Duration = Duration::from_millis(5);

impl Pacer {
    /// Paces to `rate`; `None` is as fast as it goes.
    #[must_use]
    pub fn new(rate: Option<BytesPerSec>) -> Self {
        Self { state: Mutex::new(State { rate, free_at: None }) }
    }

    /// Changes the rate from now on.
    pub fn set_rate(&self, rate: Option<BytesPerSec>) {
        *self.lock() = State { rate, free_at: None };
    }

    /// The rate in force.
    #[must_use]
    pub fn rate(&self) -> Option<BytesPerSec> {
        self.lock().rate
    }

    /// Takes the turn of `bytes` and says how long to wait before sending them.
    #[must_use]
    pub fn reserve(&self, now: Instant, bytes: ByteCount) -> Duration {
        self.reserve_on_credit(now, bytes, ByteCount(0))
    }

    /// The same for bytes that may go so many earlier than their turn is; who comes later waits for all of them.
    #[must_use]
    pub fn reserve_on_credit(&self, now: Instant, bytes: ByteCount, credit: ByteCount) -> Duration {
        let mut state = self.lock();
        let Some(rate) = state.rate else { return Duration::ZERO };
        let earliest = now.checked_sub(BURST).unwrap_or(now);
        let start = state.free_at.unwrap_or(now).max(earliest);
        state.free_at = Some(start.checked_add(rate.time_for(bytes).min(LONGEST)).unwrap_or(start));
        start.saturating_duration_since(now).saturating_sub(rate.time_for(credit))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        // Nothing panics while holding the lock; a poisoned one still holds a whole state.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_take_their_time_in_total() {
        let pacer = Pacer::new(Some(BytesPerSec(1000.0)));
        let start = Instant::now();
        assert_eq!(pacer.reserve(start, ByteCount(500)), Duration::ZERO);
        assert_eq!(pacer.reserve(start, ByteCount(500)), Duration::from_millis(500));
        assert_eq!(pacer.reserve(start + Duration::from_millis(600), ByteCount(1)), Duration::from_millis(400));
    }

    #[test]
    fn idle_time_is_not_made_up_for() {
        let pacer = Pacer::new(Some(BytesPerSec(1000.0)));
        let start = Instant::now();
        assert_eq!(pacer.reserve(start, ByteCount(1)), Duration::ZERO);
        let later = start + Duration::from_secs(10);
        assert_eq!(pacer.reserve(later, ByteCount(100)), Duration::ZERO);
        assert_eq!(pacer.reserve(later, ByteCount(100)), Duration::from_millis(95));
    }

    #[test]
    fn some_may_go_before_their_turn() {
        let pacer = Pacer::new(Some(BytesPerSec(1000.0)));
        let start = Instant::now();
        let mut waits = [300, 300, 300, 100].map(|bytes| pacer.reserve_on_credit(start, ByteCount(bytes), ByteCount(500)).as_millis());
        assert_eq!(waits, [0, 0, 100, 400]);
        assert_eq!(pacer.reserve(start, ByteCount(1)), Duration::from_secs(1), "none goes for nothing");
        waits = [1; 4].map(|bytes| pacer.reserve_on_credit(start, ByteCount(bytes), ByteCount(5000)).as_millis());
        assert_eq!(waits, [0; 4]);
    }

    #[test]
    fn the_rate_can_change() {
        let pacer = Pacer::new(None);
        let start = Instant::now();
        assert_eq!(pacer.reserve(start, ByteCount(1 << 40)), Duration::ZERO);
        pacer.set_rate(Some(BytesPerSec(10.0)));
        assert_eq!(pacer.reserve(start, ByteCount(10)), Duration::ZERO);
        assert_eq!(pacer.reserve(start, ByteCount(10)), Duration::from_secs(1));
    }
}
