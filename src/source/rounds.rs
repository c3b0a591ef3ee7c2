//! Pre-copy: rounds of sending while the guest runs.
//!
//! The driver owns the pending set. A harvest moves bits from the tracker into it; a round takes it whole, but for what is
//! [held back](super::overlap), and what a halted round did not send comes back. See [`dirty`](crate::dirty) for the life of a bit.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam::channel::{never, select, tick};

use super::PROGRESS_EVERY;
use super::downtime::Downtime;
use super::driver::Driver;
use super::event::{Event, Phase};
use super::meter::Meter;
use super::order::coldest_first;
use super::overlap::{Overlap, idle_for_a_difference};
use super::session::{Session, session_error};
use super::standing::Wait;
use super::watch::DirtyWatch;
use super::worker::{Job, Sent, Then};
use crate::bitmap::PageBitmap;
use crate::error::Error;
use crate::guest::RunShare;
use crate::policy::{Decision, MAX_ROUNDS, PauseFacts, Policy, Reason, RoundFacts, SAMPLE_PAGES, Verdict};
use crate::protocol::SourceEvent;
use crate::stats::{Predicted, RoundKind, RoundReport};
use crate::units::{ByteCount, ChunkIndex, PageCount};
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

/// What all workers together did of a round.
pub(super) struct Round {
    pub(super) pages: PageCount,
    pub(super) bytes: ByteCount,
    /// Pages that were all zeros.
    empty: PageCount,
    pub(super) duration: Duration,
    pub(super) totals: Vec<ChannelTotals>,
    unsent: Option<PageBitmap>,
    skipped: Option<PageBitmap>,
}

/// What is known of a guest's pages since its tracking began.
pub(super) struct Tracking {
    /// To be sent. First what was populated then, which is round 0: a page populated later is reported as written.
    pending: PageBitmap,
    watch: DirtyWatch,
    overlap: Overlap,
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
            self.await_last_round(session)?;
            let mut downtime = self.pause()?;
            let remainder = self.memory.populated()?;
            downtime.parts.harvest = downtime.lap();
            return Ok(LastRound { index: 0, kind: RoundKind::Cold, remainder, hot: Vec::new(), downtime, verdict });
        }
        self.phase(Phase::PreCopy);
        let mut tracking = self.tracking(tracking)?;
        self.first_look(session, &mut tracking.watch)?;
        let mut last_verdict = None;
        let mut index = 0;
        loop {
            let (verdict, totals) = self.pre_copy_round(session, &mut policy, index, &mut tracking, last_verdict)?;
            let Tracking { pending, watch, .. } = &mut tracking;
            index += 1;
            last_verdict = Some(verdict);
            match verdict.decision {
                Decision::Round | Decision::Throttle => {
                    self.leave_last_round();
                    continue;
                }
                Decision::Abort => return Err(Error::Limit(verdict.reason)),
                Decision::StopAndCopy | Decision::PostCopy => {}
            }
            if self.await_last_round(session)? == Wait::Long {
                continue;
            }
            let is_settled = verdict.decision == Decision::PostCopy && self.discard_ahead(session, totals, pending)?;
            let mut downtime = self.pause()?;
            self.tracker.harvest(pending)?;
            downtime.parts.harvest = downtime.lap();
            let facts = PauseFacts {
                paused_for: self.hold.paused_for(),
                remaining: pending.count(),
                never_sent: watch.never_sent().count(),
                fixed_cost: self.fixed_cost(session),
            };
            let confirmed = if is_settled { verdict } else { policy.after_pause(&facts) };
            if !confirmed.decision.goes_on() {
                let verdict = Verdict { decision: confirmed.decision, reason: confirmed.reason, ..verdict };
                let remainder = tracking.pending;
                return Ok(LastRound { index, kind: RoundKind::StopAndCopy, remainder, hot: Vec::new(), downtime, verdict });
            }
            self.hold.resume()?;
            self.leave_last_round();
            (self.observer)(&Event::PauseUndone { remainder: facts.remaining, stalled: downtime.paused_at.elapsed() });
        }
    }

    /// Begins tracking, while the destination gets ready, unless there is nothing to track for, the guest waits for others
    /// first, or is so large that the destination would be waiting for this.
    pub(super) fn track_early(&mut self) -> Result<Option<Tracking>, Error> {
        let first = Policy::new(self.steering.limits(), self.memory.layout().bytes()).start().decision;
        let is_large = self.memory.layout().bytes() > TRACKED_EARLY;
        if is_large || self.member.is_some() || !matches!(first, Decision::Round | Decision::PostCopy) {
            return Ok(None);
        }
        self.tracking(None).map(Some)
    }

    /// Tracking that has begun: by now, if not before.
    fn tracking(&mut self, begun: Option<Tracking>) -> Result<Tracking, Error> {
        if let Some(tracking) = begun {
            return Ok(tracking);
        }
        let chunks = self.memory.layout().chunks();
        let mut pending = PageBitmap::new(chunks);
        self.tracker.start(&mut pending)?;
        Ok(Tracking { pending, watch: DirtyWatch::new(chunks), overlap: Overlap::default() })
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

    /// Waits until a busy guest has shown where it writes.
    fn first_look(&mut self, session: &Session<'_>, watch: &mut DirtyWatch) -> Result<(), Error> {
        select! {
            recv(session.pump.ended()) -> ended => Err(session_error(ended.ok())),
            recv(self.steering.cancelled()) -> _ => Err(Error::Cancelled),
            recv(watch.next_look()) -> _ => Ok(watch.look(self.tracker)?),
        }
    }

    /// One round and the decision after it; what the channels have carried by then.
    fn pre_copy_round(
        &mut self,
        session: &Session<'_>,
        policy: &mut Policy,
        index: u32,
        tracking: &mut Tracking,
        last_verdict: Option<Verdict>,
    ) -> Result<(Verdict, Vec<ChannelTotals>), Error> {
        let idle = self.idle_after(policy, index, tracking, session.workers.count());
        let taken = tracking.take_round(last_verdict, idle);
        let Tracking { pending, watch, overlap } = tracking;
        let began = Instant::now();
        let under_way_before = session.workers.under_way();
        let first = if index == 0 { taken.count() } else { watch.sent(&taken) };
        let early = (index == 0).then_some(&mut *watch);
        let round = self.send(session, index, taken, early, last_verdict)?;
        if let Some(unsent) = &round.unsent {
            pending.union_with(unsent);
        }
        if index == 0 {
            watch.skipped(round.skipped.as_ref(), round.unsent.as_ref());
        }
        let unsent = pending.count();
        let settled = self.settle(session)?;
        if index == 0 {
            let filled = PageCount(round.pages.0.saturating_sub(round.empty.0));
            overlap.after_whole_pages(settled.bottleneck, filled, round.bytes, self.arrival_rate(settled.under_way));
        }
        let harvest = Instant::now();
        self.harvest(pending)?;
        let harvest = harvest.elapsed();
        if let Some(sending) = self.sending.as_mut().filter(|_| pending.count().0 <= self.report.pages_transferred.0 / BULK) {
            sending.make_room();
        }
        if index == 0 {
            watch.finish(pending);
            policy.set_curve(watch.curve().clone());
        }
        let facts = RoundFacts {
            index,
            elapsed: self.started.elapsed(),
            duration: began.elapsed(),
            pages: round.pages,
            first: first.min(round.pages),
            empty: round.empty,
            wire_bytes: round.bytes,
            arrived: ByteCount((under_way_before + round.bytes).0.saturating_sub(settled.under_way.0)),
            bottleneck: settled.bottleneck,
            memory_sent_total: self.report.pages_transferred.bytes(),
            dirty_after: pending.count(),
            unsent,
            never_sent: watch.never_sent().count(),
            fixed_cost: self.fixed_cost(session).saturating_add(harvest),
        };
        let verdict = self.decide(policy, &facts, watch, harvest);
        self.record(index, RoundKind::PreCopy, &round, Some(facts.dirty_after), Some(verdict.to_string()));
        (self.observer)(&Event::Round {
            index,
            pages: round.pages,
            bytes: round.bytes,
            duration: round.duration,
            dirty_after: facts.dirty_after,
            verdict,
        });
        Ok((verdict, round.totals))
    }

    /// What is to be done after a round, and the first time what is expected to come of it.
    fn decide(&mut self, policy: &mut Policy, facts: &RoundFacts, watch: &DirtyWatch, harvest: Duration) -> Verdict {
        policy.set_limits(self.steering.limits());
        let verdict = policy.after_round(facts);
        let verdict = self.throttle_as_told(policy, verdict);
        if self.report.predicted.is_none() && verdict.reason != Reason::Sampling {
            let prediction = policy.predict_rest(facts, verdict, watch.curve(), harvest + ROUND_COST);
            self.report.predicted = Some(Predicted { total: prediction.total, downtime: prediction.downtime });
        }
        verdict
    }

    /// How long the link will idle for each page of the round after this one, if there is going to be one and nobody else uses
    /// the link meanwhile.
    fn idle_after(&self, policy: &Policy, index: u32, tracking: &Tracking, workers: usize) -> Option<Duration> {
        let (sent, pending) = (self.report.pages_transferred.bytes(), tracking.pending.count());
        let goes_on = index > 0 && self.member.is_none() && !policy.may_end_with(index, pending, sent, self.started.elapsed());
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

    /// What a handover costs besides pages and harvest: what is under way comes first, Finish and Commit are answered.
    fn fixed_cost(&self, session: &Session<'_>) -> Duration {
        self.backlog(session).saturating_add(session.round_trip.saturating_mul(2)).saturating_add(SWITCH_COST)
    }

    /// Harvests, with the guest paused where the tracker needs it.
    fn harvest(&mut self, pending: &mut PageBitmap) -> Result<(), Error> {
        if !self.tracker.needs_pause() {
            return Ok(self.tracker.harvest(pending)?);
        }
        self.hold.pause()?;
        let harvested = self.tracker.harvest(pending);
        self.hold.resume()?;
        Ok(harvested?)
    }

    /// Pauses the guest for the last time, unless there is more left than was expected.
    fn pause(&mut self) -> Result<Downtime, Error> {
        let mut downtime = Downtime::from(Instant::now());
        self.hold.pause()?;
        self.report.preparation = downtime.paused_at - self.started;
        downtime.parts.pause = downtime.lap();
        Ok(downtime)
    }

    /// Has the workers send `pages` and waits until they are done.
    pub(super) fn send(
        &mut self,
        session: &Session<'_>,
        index: u32,
        pages: PageBitmap,
        early: Option<&mut DirtyWatch>,
        verdict: Option<Verdict>,
    ) -> Result<Round, Error> {
        let total = pages.count();
        let began = self.begin(session, index, pages, early.as_deref(), Then::RoundEnd)?;
        self.await_round(session, index, total, began, early, verdict)
    }

    /// Hands `pages` to the workers.
    pub(super) fn begin(
        &mut self,
        session: &Session<'_>,
        index: u32,
        pages: PageBitmap,
        early: Option<&DirtyWatch>,
        then: Then,
    ) -> Result<Instant, Error> {
        let order = match early {
            Some(watch) => coldest_first(&pages, watch.found()).into(),
            None => pages.occupied().map(|(chunk, _)| chunk).collect(),
        };
        let round = u16::try_from(index).expect("bounded by MAX_ROUNDS and the escapes");
        let job = Job { round, pages: Arc::new(pages), order, skip: early.map(DirtyWatch::skip), then };
        let began = Instant::now();
        session.workers.give(&job);
        Ok(began)
    }

    /// Waits until every worker has sent its part.
    pub(super) fn await_round(
        &mut self,
        session: &Session<'_>,
        index: u32,
        total: PageCount,
        began: Instant,
        mut early: Option<&mut DirtyWatch>,
        verdict: Option<Verdict>,
    ) -> Result<Round, Error> {
        let mut round = Round {
            pages: PageCount(0),
            bytes: ByteCount(0),
            empty: PageCount(0),
            duration: Duration::ZERO,
            totals: vec![ChannelTotals::default(); session.workers.count()],
            unsent: None,
            skipped: None,
        };
        let mut meter = Meter::from(session.workers.written());
        let ticker = tick(PROGRESS_EVERY);
        let mut look = early.as_ref().map_or_else(never, |watch| watch.next_look());
        let mut waiting = session.workers.count();
        while waiting > 0 {
            select! {
                recv(session.workers.results()) -> sent => {
                    let sent = sent.map_err(|_| Error::System { action: "keep the workers", source: std::io::ErrorKind::Other.into() })??;
                    self.merge(&mut round, sent);
                    waiting -= 1;
                }
                recv(session.pump.ended()) -> ended => return Err(session_error(ended.ok())),
                recv(session.pump.events()) -> event => if let Ok(SourceEvent::Reconnect) = event { self.phase(Phase::Resolving); },
                recv(self.steering.cancelled()) -> _ => return Err(Error::Cancelled),
                recv(look) -> _ => if let Some(watch) = &mut early {
                    watch.look(self.tracker)?;
                    look = watch.next_look();
                },
                recv(ticker) -> _ => {
                    (self.observer)(&session.progress(&mut meter, index, total, verdict));
                    if self.hold.paused_for().is_zero() && self.is_late() {
                        session.workers.halt();
                    }
                }
            }
        }
        round.duration = began.elapsed();
        Ok(round)
    }

    fn merge(&mut self, round: &mut Round, sent: Sent) {
        round.pages += sent.pages;
        round.bytes += sent.bytes;
        round.empty += sent.encodings.zero;
        round.totals[usize::from(sent.channel)] = sent.totals;
        add(&mut round.unsent, sent.unsent);
        add(&mut round.skipped, sent.skipped);
        self.report.pages_transferred += sent.pages;
        self.report.wire_bytes += sent.bytes;
        self.report.pages_by_encoding += sent.encodings;
    }

    /// Puts a round into the report.
    pub(super) fn record(&mut self, index: u32, kind: RoundKind, round: &Round, dirty_after: Option<PageCount>, decision: Option<String>) {
        tracing::debug!(index, pages = round.pages.0, bytes = round.bytes.0, ?dirty_after, decision, "round");
        self.report.rounds.push(RoundReport {
            index,
            kind,
            pages: round.pages,
            wire_bytes: round.bytes,
            duration: round.duration,
            dirty_after,
            decision,
        });
    }
}

impl Session<'_> {
    /// How far the workers are with a round.
    fn progress(&self, meter: &mut Meter, index: u32, pages: PageCount, verdict: Option<Verdict>) -> Event {
        let bytes = self.workers.written();
        Event::Progress {
            index,
            bytes,
            rate: meter.rate(bytes),
            pages_sent: self.workers.sent(),
            pages,
            dirty_rate: verdict.map(|verdict| verdict.dirty_rate),
            expected_downtime: verdict.map(|verdict| verdict.expected_downtime),
            share: verdict.map_or(RunShare::FULL, |verdict| verdict.share),
        }
    }
}

/// Adds what one worker reports to what the others did.
fn add(all: &mut Option<PageBitmap>, part: Option<PageBitmap>) {
    match (all, part) {
        (Some(all), Some(part)) => all.union_with(&part),
        (all, Some(part)) => *all = Some(part),
        (_, None) => {}
    }
}

impl Tracking {
    /// Takes what the next round sends out of what is pending: all of it but for what is held back for the one after it, in
    /// which the link may be `idle` for so long for each page; or the sample that was asked for.
    fn take_round(&mut self, verdict: Option<Verdict>, idle: Option<Duration>) -> PageBitmap {
        let Self { pending, watch, overlap } = self;
        let mut taken = std::mem::replace(pending, PageBitmap::new(pending.chunks()));
        if verdict.is_some_and(|verdict| verdict.reason == Reason::Sampling) {
            let mut sent_before = taken.clone();
            sent_before.subtract(watch.never_sent());
            let sample = sent_before.spread(SAMPLE_PAGES);
            *pending = taken;
            pending.subtract(&sample);
            return sample;
        }
        if let Some(held_back) = idle.and_then(|idle| overlap.hold_back(&taken, watch.never_sent(), idle)) {
            taken.subtract(&held_back);
            *pending = held_back;
        }
        taken
    }
}

const _: () = assert!(MAX_ROUNDS < u16::MAX as u32 - 64, "round numbers, with escapes, a sample and throttled rounds, fit the wire");

/// Guests of up to so much memory are tracked in some tens of milliseconds.
const TRACKED_EARLY: ByteCount = ByteCount(64 << 30);

/// The bulk of a guest is sent once no more is left than this part of what was.
const BULK: u64 = 8;

/// What a round takes besides its harvest and pages: waking the workers and hearing from them.
const ROUND_COST: Duration = Duration::from_micros(300);

/// What a handover costs besides harvest, pages and round trips: the state out and in, the resume. A guess that errs high.
const SWITCH_COST: Duration = Duration::from_millis(2);
