//! Pre-copy: rounds of sending while the guest runs, until the policy says how to go on.

use std::time::{Duration, Instant};

use super::downtime::Downtime;
use super::driver::Driver;
use super::event::{Event, Phase};
use super::overlap::idle_for_a_difference;
use super::round::Round;
use super::session::Session;
use super::standing::Wait;
use super::tracking::Tracking;
use super::worker::Then;
use crate::bitmap::PageBitmap;
use crate::error::Error;
use crate::policy::{Bottleneck, Decision, MAX_ROUNDS, PauseFacts, Policy, Prediction, Reason, RoundFacts, Verdict};
use crate::stats::{Predicted, RoundKind};
use crate::units::{ByteCount, BytesPerSec, ChunkIndex, PAGE_SIZE, PageCount};
use crate::wire::ChannelTotals;

/// Where pre-copy left off: the guest is paused and harvested, this is the rest.
pub(super) struct LastRound {
    pub(super) index: u32,
    pub(super) kind: RoundKind,
    pub(super) remainder: PageBitmap,
    /// Chunks that the guest was seen to write to, where nothing else tells what it will need first.
    pub(super) hot: Vec<ChunkIndex>,
    pub(super) downtime: Downtime,
    pub(super) verdict: Verdict,
}

/// Where pre-copy stands.
struct Rounds {
    policy: Policy,
    tracking: Tracking,
    /// Of the next one.
    index: u32,
    /// Bytes that the last one left under way.
    under_way: ByteCount,
    /// After the last one.
    verdict: Option<Verdict>,
}

impl Driver<'_> {
    /// Sends rounds until the policy says stop, pauses the guest and harvests for the last time.
    pub(super) fn pre_copy(&mut self, session: &Session<'_>, tracking: Option<Tracking>) -> Result<LastRound, Error> {
        let mut policy = Policy::new(self.steering.limits(), self.memory.layout().bytes()).with_sample();
        if !session.terms.can_post_copy {
            policy = policy.without_post_copy();
        }
        let verdict = policy.start();
        if verdict.decision == Decision::PostCopy {
            return self.glance(session, tracking, verdict);
        }
        if !verdict.decision.goes_on() {
            return self.stop_cold(session, verdict);
        }
        self.phase(Phase::PreCopy);
        let mut tracking = self.tracking(tracking)?;
        self.first_look(session, &mut tracking.watch)?;
        let mut rounds = Rounds { policy, tracking, index: 0, under_way: ByteCount(0), verdict: None };
        loop {
            let (verdict, totals) = self.pre_copy_round(session, &mut rounds)?;
            match verdict.decision {
                Decision::Round | Decision::Throttle => self.standing.leave_last_round(),
                Decision::Abort => return Err(Error::Limit(verdict.reason)),
                Decision::StopAndCopy | Decision::PostCopy => {
                    if self.await_last_round(session)? == Wait::Short
                        && let Some(last) = self.stop(session, &mut rounds, verdict, totals)?
                    {
                        return Ok(last);
                    }
                }
            }
        }
    }

    /// Without rounds: pauses the guest, and all that it has is left.
    fn stop_cold(&mut self, session: &Session<'_>, verdict: Verdict) -> Result<LastRound, Error> {
        self.await_last_round(session)?;
        let mut downtime = self.pause()?;
        let remainder = self.memory.populated()?;
        downtime.parts.harvest = downtime.lap();
        Ok(LastRound { index: 0, kind: RoundKind::Cold, remainder, hot: Vec::new(), downtime, verdict })
    }

    /// Before a guest moves ahead of all its memory: looks where it writes, for a moment, and pauses it.
    fn glance(&mut self, session: &Session<'_>, tracking: Option<Tracking>, verdict: Verdict) -> Result<LastRound, Error> {
        let Tracking { pending: mut remainder, mut watch, .. } = self.tracking(tracking)?;
        self.first_look(session, &mut watch)?;
        self.await_last_round(session)?;
        let mut downtime = self.pause()?;
        self.tracker.harvest(&mut remainder)?;
        downtime.parts.harvest = downtime.lap();
        let hot = watch.found().occupied().map(|(chunk, _)| chunk).collect();
        Ok(LastRound { index: 0, kind: RoundKind::StopAndCopy, remainder, hot, downtime, verdict })
    }

    /// After the round that led to `verdict` and left the channels with `totals`: pauses the guest and harvests for the last
    /// time. If more is left than was expected the guest runs on.
    fn stop(&mut self, session: &Session<'_>, rounds: &mut Rounds, verdict: Verdict, totals: Vec<ChannelTotals>) -> Result<Option<LastRound>, Error> {
        let Tracking { pending, watch, .. } = &mut rounds.tracking;
        let is_settled = verdict.decision == Decision::PostCopy && self.discard_ahead(session, totals, pending)?;
        let mut downtime = self.pause()?;
        self.tracker.harvest(pending)?;
        downtime.parts.harvest = downtime.lap();
        let facts = PauseFacts {
            paused_for: self.hold.paused_for(),
            remaining: pending.count(),
            never_sent: watch.never_sent().count(),
            fixed_cost: self.fixed_cost(session, &rounds.policy),
        };
        let confirmed = if is_settled { verdict } else { rounds.policy.after_pause(&facts) };
        if let Decision::StopAndCopy | Decision::PostCopy = confirmed.decision {
            let verdict = Verdict { decision: confirmed.decision, reason: confirmed.reason, ..verdict };
            let remainder = std::mem::replace(pending, PageBitmap::new(0));
            let (index, kind) = (rounds.index, RoundKind::StopAndCopy);
            return Ok(Some(LastRound { index, kind, remainder, hot: Vec::new(), downtime, verdict }));
        }
        self.hold.resume()?;
        self.standing.leave_last_round();
        (self.observer)(&Event::PauseUndone { remainder: facts.remaining, stalled: downtime.paused_at.elapsed() });
        if confirmed.decision == Decision::Abort {
            return Err(Error::Limit(confirmed.reason));
        }
        self.outlive_timeout();
        Ok(None)
    }

    /// One round and the decision after it; what the channels have carried by then.
    fn pre_copy_round(&mut self, session: &Session<'_>, rounds: &mut Rounds) -> Result<(Verdict, Vec<ChannelTotals>), Error> {
        let idle = self.idle_after(rounds, session.workers.count());
        let &mut Rounds { ref mut policy, ref mut tracking, ref mut under_way, index, verdict: last } = rounds;
        let pages = tracking.take_round(last, idle);
        let began = Instant::now();
        let under_way_before = session.workers.under_way().min(*under_way);
        tracking.sends(index, &pages);
        let round = self.send(session, tracking, index, pages, last)?;
        let first = tracking.sent(&round);
        let unsent = tracking.pending.count();
        let settled = self.settle(session, round.bytes)?;
        let (moving, bottleneck) = moving(settled.emptied - began, session.round_trip, settled.bottleneck);
        tracking.settled(&round, settled.bottleneck, self.arrival_rate(settled.under_way));
        *under_way = settled.under_way;
        let asked = Instant::now();
        self.harvest(&mut tracking.pending)?;
        let harvest = asked.elapsed();
        self.make_room(tracking.pending.count());
        if index == 0 {
            tracking.watch.finish(&mut tracking.pending, unsent);
            policy.set_curve(tracking.watch.curve().clone());
            policy.set_reach(tracking.watch.reach(self.memory, &tracking.pending));
        }
        let facts = RoundFacts {
            index,
            elapsed: self.elapsed(),
            duration: began.elapsed(),
            moving,
            pages: round.pages,
            first,
            empty: round.empty,
            wire_bytes: round.bytes,
            arrived: ByteCount((under_way_before + round.bytes).0.saturating_sub(settled.under_way.0)),
            bottleneck,
            memory_sent_total: self.report.pages_transferred.bytes(),
            dirty_after: tracking.pending.count(),
            unsent,
            never_sent: tracking.watch.never_sent().count(),
            fixed_cost: self.fixed_cost(session, policy).saturating_add(harvest),
        };
        let again_bytes = again_bytes(session, rounds, &round);
        let verdict = self.decide(rounds, &facts, harvest, again_bytes);
        self.tell(&round, facts.dirty_after, verdict);
        (rounds.index, rounds.verdict) = (index + 1, Some(verdict));
        Ok((verdict, round.totals))
    }

    /// Has the workers send `pages` and waits until they are done. In the first round it is seen what of them is in vain.
    fn send(
        &mut self,
        session: &Session<'_>,
        tracking: &mut Tracking,
        index: u32,
        pages: PageBitmap,
        verdict: Option<Verdict>,
    ) -> Result<Round, Error> {
        let early = (index == 0).then_some(&mut tracking.watch);
        let begun = session.workers.begin(index, pages, early.as_deref(), Then::RoundEnd, verdict);
        self.await_round(session, &begun, early)
    }

    /// What is to be done after a round, and the first time what is expected to come of it.
    fn decide(&mut self, rounds: &mut Rounds, facts: &RoundFacts, harvest: Duration, again_bytes: Option<f64>) -> Verdict {
        let Rounds { policy, tracking, .. } = rounds;
        policy.set_limits(self.steering.limits());
        let verdict = policy.after_round(facts);
        let verdict = self.throttle_as_told(policy, verdict);
        if verdict.decision.goes_on() {
            self.outlive_timeout();
        }
        if self.report.predicted.is_none() && verdict.reason != Reason::Sampling {
            let prediction = policy.predict_rest(facts, verdict, tracking.watch.curve(), again_bytes, harvest + ROUND_COST);
            let Prediction { total, downtime, .. } = prediction;
            // As long as no rate is known it would take for ever, which is no prediction.
            self.report.predicted = (total.max(downtime) < Duration::MAX && policy.estimator().knows_link()).then_some(Predicted { total, downtime });
        }
        verdict
    }

    /// A guest that runs on although the time for pre-copy is over is not hurried by it any more.
    fn outlive_timeout(&mut self) {
        let timeout = self.steering.limits().timeout;
        if timeout.is_some_and(|timeout| self.elapsed() >= timeout) {
            self.outlived = timeout;
        }
    }

    /// Reports a round, and what follows from it.
    fn tell(&mut self, round: &Round, dirty_after: PageCount, verdict: Verdict) {
        self.record(RoundKind::PreCopy, round, Some(dirty_after), Some(verdict.to_string()));
        let &Round { index, pages, bytes, duration, .. } = round;
        (self.observer)(&Event::Round { index, pages, bytes, duration, dirty_after, verdict });
    }

    /// How long the link will idle for each page of the round after the next one, if there is going to be one and nobody else
    /// uses the link meanwhile.
    fn idle_after(&self, rounds: &Rounds, workers: usize) -> Option<Duration> {
        let (sent, pending) = (self.report.pages_transferred.bytes(), rounds.tracking.pending.count());
        let may_end = || rounds.policy.may_end_with(rounds.index, pending, sent, self.elapsed());
        let goes_on = rounds.index > 0 && self.standing.is_alone() && !may_end();
        goes_on.then(|| idle_for_a_difference(workers))
    }

    /// Slows the guest down if the verdict says so; what is decided in the end.
    fn throttle_as_told(&mut self, policy: &mut Policy, verdict: Verdict) -> Verdict {
        if verdict.decision != Decision::Throttle {
            return verdict;
        }
        match self.hold.throttle(verdict.share) {
            Ok(()) => verdict,
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "the guest is stopped instead of being slowed down");
                policy.cannot_throttle(verdict)
            }
        }
    }

    /// What a handover costs besides pages and harvest: what is under way comes first, the state goes last, Finish and Commit
    /// are answered.
    fn fixed_cost(&self, session: &Session<'_>, policy: &Policy) -> Duration {
        let under_way = session.workers.under_way();
        let since_the_start = self.arrival_rate(under_way);
        // The link may have idled for most of the time.
        let link = BytesPerSec(policy.estimator().bandwidth().0.max(since_the_start.0));
        let bytes = since_the_start.time_for(under_way).saturating_add(link.time_for(self.hold.state_bytes()));
        bytes.saturating_add(session.round_trip.saturating_mul(2)).saturating_add(SWITCH_COST)
    }

    /// Pauses the guest for the last time, unless there is more left than was expected.
    fn pause(&mut self) -> Result<Downtime, Error> {
        let mut downtime = Downtime::from(Instant::now());
        self.hold.pause()?;
        self.report.preparation = downtime.paused_at - self.started;
        downtime.parts.pause = downtime.lap();
        Ok(downtime)
    }
}

/// Wire bytes of a page that is sent again, where more is known of it than the rounds tell.
fn again_bytes(session: &Session<'_>, rounds: &Rounds, round: &Round) -> Option<f64> {
    if rounds.verdict.is_some_and(|verdict| verdict.reason == Reason::Sampling) {
        // Pages that the guest had written just before they were sent are as they were sent. That is so after round 0 only.
        let changed = round.pages.0.saturating_sub(round.unchanged.0);
        return (changed >= FEWEST).then(|| (round.bytes.0 as f64 / changed as f64).min(PAGE_SIZE as f64));
    }
    // What was not agreed on makes nothing cheaper.
    let is_of_use = session.terms.encoder.makes_differences() && !rounds.policy.estimator().knows_resends();
    rounds.tracking.watch.again_bytes().filter(|_| is_of_use)
}

/// How much of the time until queues were `emptied` bytes moved, and what that waited for. Where it was the link, the last
/// acknowledgement came a round trip after its bytes had gone.
fn moving(emptied: Duration, round_trip: Duration, bottleneck: Bottleneck) -> (Duration, Bottleneck) {
    match bottleneck {
        Bottleneck::Link if emptied > round_trip.saturating_mul(2) => (emptied - round_trip, Bottleneck::Link),
        Bottleneck::Link | Bottleneck::RoundTrip => (emptied, Bottleneck::RoundTrip),
        Bottleneck::Processor => (emptied, Bottleneck::Processor),
    }
}

const _: () = assert!(MAX_ROUNDS < u16::MAX as u32 - 64, "round numbers, with escapes, a sample and throttled rounds, fit the wire");

/// So many changed pages in a sample tell what one takes, frames included.
const FEWEST: u64 = 16;

/// What a round takes besides its harvest and pages: waking the workers and hearing from them.
const ROUND_COST: Duration = Duration::from_micros(300);

/// What a handover costs besides harvest, bytes and round trips: the state out and in, the resume. A guess that errs high.
const SWITCH_COST: Duration = Duration::from_millis(2);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_do_not_move_while_their_acknowledgement_comes_back() {
        let ms = Duration::from_millis;
        assert_eq!(moving(ms(50), ms(20), Bottleneck::Link), (ms(30), Bottleneck::Link));
        assert_eq!(moving(ms(30), ms(20), Bottleneck::Link), (ms(30), Bottleneck::RoundTrip), "too short to tell");
        assert_eq!(moving(ms(30), ms(20), Bottleneck::Processor), (ms(30), Bottleneck::Processor), "nothing was waited for");
        assert_eq!(moving(ms(30), Duration::MAX / 4, Bottleneck::Link).1, Bottleneck::RoundTrip);
    }
}
