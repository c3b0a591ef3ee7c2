//! What a thread that sends pages asks before it works and before it writes.
//!
//! A migration by itself has its own bandwidth and nothing else to heed; in a fleet it also takes turns.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use super::Member;
use super::line::Urgency;
use super::turns::{Seat, Turn};
use crate::page::{Chooser, Compression, Path};
use crate::transport::Pacer;
use crate::units::ByteCount;

/// A migration's part of processors and link.
#[derive(Clone, Debug)]
pub(in crate::source) struct Allotment<'d> {
    own: &'d Pacer,
    member: Option<Arc<Member>>,
}

impl<'d> Allotment<'d> {
    /// Limited by `own`, and by what the fleet of `member` leaves it.
    pub(in crate::source) fn new(own: &'d Pacer, member: Option<Arc<Member>>) -> Self {
        Self { own, member }
    }

    /// Picks the methods of one worker, whose connection is one of those of `path`: with what the fleet has learned of
    /// pages and connections, if it has.
    pub(in crate::source) fn chooser(&self, setting: Compression, path: Arc<Path>) -> Chooser {
        let learned = self.member.as_ref().map(|member| member.fleet.chooser.lock().unwrap_or_else(PoisonError::into_inner));
        match learned.as_deref() {
            Some(Some(learned)) => learned.successor(setting, path),
            _ => Chooser::new(setting, path),
        }
    }

    /// A worker that has sent its pages has learned something.
    pub(in crate::source) fn pass_on(&self, chooser: &Chooser) {
        if let Some(member) = &self.member {
            *member.fleet.chooser.lock().unwrap_or_else(PoisonError::into_inner) = Some(chooser.successor(Compression::Auto, Arc::default()));
        }
    }

    /// Whether this is in no fleet.
    pub(in crate::source) fn is_alone(&self) -> bool {
        self.member.is_none()
    }

    /// Whether bytes wait for their turn at the link.
    pub(in crate::source) fn is_paced(&self) -> bool {
        self.own.rate().is_some() || self.member.as_ref().is_some_and(|member| member.fleet.pacer.rate().is_some())
    }

    /// How much of `bytes` to write at a turn, for what hangs on it.
    pub(in crate::source) fn slice(&self, bytes: usize, urgency: Urgency) -> usize {
        let rates = [self.own.rate(), self.member.as_ref().and_then(|member| member.fleet.pacer.rate())];
        let Some(rate) = rates.into_iter().flatten().reduce(|one, other| if one < other { one } else { other }) else { return bytes.max(1) };
        match urgency {
            // The others wait for a guest that stands still, so it need not let them in between.
            Urgency::Urgent if self.member.is_some() => bytes.max(1),
            _ => usize::try_from(rate.bytes_in(SLICE_TIME).0).unwrap_or(usize::MAX).clamp(LEAST_SLICE, MOST_SLICE),
        }
    }

    /// Waits for a turn at a processor, where they are shared out.
    pub(in crate::source) fn work(&self, seat: &Seat) -> Option<WorkTurn> {
        let member = self.member.as_ref()?;
        let turn = member.fleet.processors.take(member.id, member.urgency(), 1, seat, &|| false)?;
        Some(WorkTurn { _turn: turn, began: Instant::now() })
    }

    /// Waits until so many bytes may be written, or `is_stopped` says so.
    pub(in crate::source) fn await_link(&self, bytes: ByteCount, urgency: Urgency, seat: &Seat, is_stopped: &dyn Fn() -> bool) {
        let credit = match urgency {
            Urgency::Urgent => CREDIT,
            Urgency::Ordinary => ByteCount(0),
        };
        let now = Instant::now();
        sleep_until(now + self.own.reserve_on_credit(now, bytes, credit), is_stopped);
        self.await_fleet(bytes, seat, is_stopped);
    }

    /// The same, for those who wait for the migration's own rate by themselves.
    pub(in crate::source) fn await_fleet(&self, bytes: ByteCount, seat: &Seat, is_stopped: &dyn Fn() -> bool) {
        let Some(member) = &self.member else { return };
        let fleet = &member.fleet;
        if fleet.pacer.rate().is_some()
            && let Some(turn) = fleet.link.take(member.id, member.urgency(), bytes.0, seat, is_stopped)
        {
            // Held until these bytes go: until then somebody whose guest stands still may come and be next.
            sleep_until(Instant::now() + fleet.pacer.reserve(Instant::now(), bytes), is_stopped);
            drop(turn);
        }
    }

    /// The migration's own rate: takes the turn of `bytes` and says how long to wait before sending more.
    pub(in crate::source) fn reserve_own(&self, now: Instant, bytes: ByteCount) -> Duration {
        self.own.reserve(now, bytes)
    }

    /// Counts bytes that do not wait, so that others do.
    pub(in crate::source) fn count(&self, bytes: ByteCount) {
        let now = Instant::now();
        let _ = self.own.reserve(now, bytes);
        if let Some(member) = &self.member {
            let _ = member.fleet.pacer.reserve(now, bytes);
        }
    }
}

/// A turn at a processor, until it is dropped.
#[derive(Debug)]
pub(in crate::source) struct WorkTurn {
    _turn: Turn,
    began: Instant,
}

impl WorkTurn {
    /// Whether others should have theirs now.
    pub(in crate::source) fn is_long(&self) -> bool {
        self.began.elapsed() >= LONG
    }
}

/// Sleeps in steps, so that a stop is not slept through.
fn sleep_until(turn: Instant, is_stopped: &dyn Fn() -> bool) {
    loop {
        let left = turn.saturating_duration_since(Instant::now());
        if left.is_zero() || is_stopped() {
            return;
        }
        std::thread::sleep(left.min(STEP));
    }
}

/// Under a bandwidth limit as much is written at once as takes so long, since the next to write waits for it, even if that
/// is the last round.
const SLICE_TIME: Duration = Duration::from_millis(2);
/// Bytes written at once at least, and at most.
const LEAST_SLICE: usize = 4 << 10;
const MOST_SLICE: usize = 64 << 10;
/// A guest that stands still does not wait for the turn of its last bytes.
const CREDIT: ByteCount = ByteCount(64 << 10);
const STEP: Duration = Duration::from_millis(20);
/// A turn at a processor ends after the chunk that it was at then.
const LONG: Duration = Duration::from_micros(500);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::BytesPerSec;

    #[test]
    fn slices_are_as_short_as_whoever_writes_next_can_wait() {
        let slice = |rate: Option<f64>| Allotment::new(&Pacer::new(rate.map(BytesPerSec)), None).slice(1 << 20, Urgency::Ordinary);
        let rates = [None, Some(125e6), Some(12.5e6), Some(1.0)];
        assert_eq!(rates.map(slice), [1 << 20, 64 << 10, 25_000, 4 << 10]);
        assert_eq!(Allotment::new(&Pacer::new(None), None).slice(0, Urgency::Ordinary), 1, "nothing is written in no pieces");
    }
}
