//! Between writing and having arrived: what the sockets still hold.
//!
//! A write returns when its bytes are in a queue, and a queue can be long: half a megabyte a channel, and tens of
//! milliseconds of the link behind it. Whatever is sent next waits for it, the last round included. So a round is over
//! only when little of it is under way any more. The guest runs meanwhile and the link stays busy, so that costs
//! nothing: the harvest after it finds what was dirtied until then, once. And a round measured like this says how fast
//! the link is, not how deep its queues are.
//!
//! The destination has queues of its own: bytes that have arrived and that it has not got round to. Only it knows, so it
//! is asked.

use std::time::{Duration, Instant};

use crossbeam::channel::{at, select};

use super::driver::Driver;
use super::pump::Command;
use super::session::{Session, session_error};
use crate::error::Error;
use crate::policy::Bottleneck;
use crate::protocol::SourceEvent;
use crate::units::{ByteCount, BytesPerSec};

/// How the queues stood when the workers were done, and what became of it.
pub(super) struct Settled {
    /// What the workers were waiting for.
    pub(super) bottleneck: Bottleneck,
    /// When the queues were nearly empty.
    pub(super) emptied: Instant,
    /// Still under way then.
    pub(super) under_way: ByteCount,
}

impl Driver<'_> {
    /// After the workers are done and so much was `sent`: waits until there is little left in the queues.
    ///
    /// A link that moves nothing is waited for as long as a silent peer is, and then given up: the guest runs meanwhile, and
    /// would not if it were paused now.
    pub(super) fn settle(&self, session: &Session<'_>, sent: ByteCount) -> Result<Settled, Error> {
        let mut under_way = session.workers.under_way();
        let bottleneck = if sent < TELLING {
            Bottleneck::RoundTrip
        } else if self.allotment().is_paced() || under_way > few(self.arrival_rate(under_way)) {
            Bottleneck::Link
        } else {
            Bottleneck::Processor
        };
        let mut moved_at = Instant::now();
        let mut ask_after = ASK_AFTER.max(session.round_trip);
        while under_way > self.little(under_way) && !self.is_late() {
            session.workers.check()?;
            if moved_at.elapsed() > self.timeouts.silence {
                return Err(Error::Stalled { seconds: self.timeouts.silence.as_secs() });
            }
            select! {
                recv(session.pump.ended()) -> ended => return Err(session_error(ended.ok())),
                recv(self.steering.cancelled()) -> _ => return Err(Error::Cancelled),
                recv(session.pump.events()) -> event => if let Ok(SourceEvent::Progress { bytes, .. }) = event {
                    under_way = under_way.min(ByteCount(self.report.wire_bytes.0.saturating_sub(bytes.0)));
                    continue;
                },
                default(self.standing.look_every(LOOK_EVERY)) => {}
            }
            // A host may take its time to acknowledge the last bytes, 40 ms for some, when the destination has them.
            if moved_at.elapsed() > ask_after {
                session.pump.command(Command::AskProgress);
                // On a slow link, where that takes its turn with pages, only a few times.
                ask_after = ask_after.saturating_mul(4);
            }
            let now_under_way = session.workers.under_way();
            if now_under_way < under_way {
                moved_at = Instant::now();
            }
            under_way = now_under_way;
        }
        let emptied = Instant::now();
        self.catch_up(session, self.little(under_way))?;
        Ok(Settled { bottleneck, emptied, under_way })
    }

    /// Waits until the destination has applied all but `little` of what was sent.
    fn catch_up(&self, session: &Session<'_>, little: ByteCount) -> Result<(), Error> {
        let (mut applied, mut moved_at) = (ByteCount(0), Instant::now());
        let mut first = None;
        let patience = ANSWERED_WITHIN.max(session.round_trip.saturating_mul(4));
        while moved_at.elapsed() < patience && !self.is_late() {
            session.pump.command(Command::AskProgress);
            let answer_by = at(Instant::now() + patience);
            let bytes = loop {
                select! {
                    recv(session.pump.events()) -> event => if let Ok(SourceEvent::Progress { bytes, .. }) = event { break bytes },
                    recv(session.pump.ended()) -> ended => return Err(session_error(ended.ok())),
                    recv(self.steering.cancelled()) -> _ => return Err(Error::Cancelled),
                    recv(answer_by) -> _ => return Ok(()),
                }
            };
            if bytes.0.saturating_add(little.0) >= self.report.wire_bytes.0 {
                break;
            }
            if bytes > applied {
                (applied, moved_at) = (bytes, Instant::now());
            }
            // Each question costs both ends some wake-ups. While others do not wait for this guest the next one is for when it is
            // about time.
            let (before, since) = *first.get_or_insert_with(|| (bytes, Instant::now()));
            let rest = ByteCount(self.report.wire_bytes.0.saturating_sub(bytes.0.saturating_add(little.0)));
            let about_time = if self.standing.holds_others_up() {
                Duration::ZERO
            } else {
                until_applied(rest, ByteCount(bytes.0.saturating_sub(before.0)), since.elapsed())
            };
            select! {
                recv(session.pump.ended()) -> ended => return Err(session_error(ended.ok())),
                recv(self.steering.cancelled()) -> _ => return Err(Error::Cancelled),
                default(self.standing.look_every(LOOK_EVERY).max(about_time.min(LOOK_AT_LEAST_EVERY))) => {}
            }
        }
        Ok(())
    }

    /// So few bytes that waiting for them would let the link idle.
    fn little(&self, under_way: ByteCount) -> ByteCount {
        let rate = self.arrival_rate(under_way);
        carried(rate, LEFT_SECONDS).max(few(rate))
    }

    /// Bytes a second that have arrived since the start.
    pub(super) fn arrival_rate(&self, under_way: ByteCount) -> BytesPerSec {
        let arrived = self.report.wire_bytes.0.saturating_sub(under_way.0);
        BytesPerSec(arrived as f64 / self.started.elapsed().as_secs_f64())
    }

    /// Whether the time for pre-copy is over. A guest that was slowed down because of that gets some rounds more, and so does
    /// one that the policy let run on.
    pub(super) fn is_late(&self) -> bool {
        let timeout = self.steering.limits().timeout.filter(|timeout| Some(*timeout) != self.outlived);
        !self.hold.is_throttled() && timeout.is_some_and(|timeout| self.elapsed() >= timeout)
    }
}

/// What may be left under way at this rate whatever else, because it is hardly a queue.
fn few(rate: BytesPerSec) -> ByteCount {
    carried(rate, FEW_SECONDS).min(FEW_BYTES)
}

/// What a link of this rate carries in so many seconds.
fn carried(rate: BytesPerSec, seconds: f64) -> ByteCount {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a float to integer cast saturates")]
    ByteCount((rate.0 * seconds) as u64)
}

/// Most of the time that `rest` takes if `applied` took `elapsed`; none if that says nothing.
fn until_applied(rest: ByteCount, applied: ByteCount, elapsed: Duration) -> Duration {
    if applied.0 == 0 {
        return Duration::ZERO;
    }
    BytesPerSec(applied.0 as f64 / elapsed.as_secs_f64()).time_for(rest).mul_f64(EARLY)
}

/// So much of the link's time may be under way when a round is over: it keeps the link busy during the harvest.
const LEFT_SECONDS: f64 = 1e-3;
/// Less than this is what acknowledgements that come late leave, not a queue.
const FEW_BYTES: ByteCount = ByteCount(32 << 10);
/// Unless it takes longer than this: the last round would have to wait for it.
const FEW_SECONDS: f64 = 0.02;
/// The destination is asked what has come when nothing is acknowledged for so long, the first time.
const ASK_AFTER: Duration = Duration::from_millis(2);
/// Fewer bytes do not fill any link: how long they take says nothing about it.
const TELLING: ByteCount = ByteCount(16 << 10);
const LOOK_EVERY: Duration = Duration::from_micros(200);
const LOOK_AT_LEAST_EVERY: Duration = Duration::from_millis(20);
/// After this part of the time that it should take: it may go faster than before.
const EARLY: f64 = 0.75;
/// With the queues nearly empty, an answer is not waited for longer than this, or a few round trips.
const ANSWERED_WITHIN: Duration = Duration::from_millis(300);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_bytes_are_few_on_a_slow_link_as_well() {
        for (bytes_per_s, bytes) in [(0.0, 0), (12_500.0, 250), (1e6, 20_000), (125e6, 32 << 10)] {
            assert_eq!(few(BytesPerSec(bytes_per_s)), ByteCount(bytes), "{bytes_per_s}");
        }
    }

    #[test]
    fn the_next_question_comes_a_little_early_and_at_once_if_nothing_is_known() {
        let (mega, ms) = (ByteCount(1 << 20), Duration::from_millis(4));
        assert_eq!(until_applied(ByteCount(2 << 20), mega, ms), 2 * ms.mul_f64(EARLY));
        assert_eq!(until_applied(mega, ByteCount(0), ms), Duration::ZERO);
        assert_eq!(until_applied(mega, mega, Duration::ZERO), Duration::ZERO);
    }
}
