//! The decision after each round.
//!
//! The order of the questions matters: first whether the guest may be stopped within what was promised, and only then
//! whether a limit is reached, so that a migration that just converged is never aborted for being late. And a guest that
//! may be stopped is not always stopped at once: see [`tightening`](super::tightening).
//!
//! Post-copy changes the end, not the questions. Where it is left to the policy, one is added: whether the limits can
//! still be met at all, see [`foresight`](super::foresight).

use std::time::Duration;

use super::history::{History, Trend};
use super::throttling::{Step, Throttling};
use super::tightening::Tightening;
use super::{Decision, DirtyCurve, Estimator, Limits, MAX_ROUNDS, OnLimit, PauseFacts, Plateau, PostCopy, Reason, RoundFacts, Verdict};
use crate::units::{ByteCount, PageCount};

/// Decides after each round of one migration.
#[derive(Clone, Debug)]
pub struct Policy {
    limits: Limits,
    guest: ByteCount,
    /// Pages that the guest may ever dirty.
    reach: PageCount,
    estimator: Estimator,
    history: History,
    curve: DirtyCurve,
    tightening: Tightening,
    throttling: Throttling,
    /// Rounds that were only samples, and how many may be.
    samples: u32,
    most_samples: u32,
    /// Times the guest was let go again after a pause.
    escapes: u32,
    /// How and why the guest was last said to be stopped.
    stop: Option<(Decision, Reason)>,
    /// Whether the destination can run a guest whose memory is not there.
    can_post_copy: bool,
}

impl Policy {
    /// For a guest with `guest` bytes of memory.
    #[must_use]
    pub fn new(limits: Limits, guest: ByteCount) -> Self {
        Self {
            limits,
            guest,
            reach: guest.pages(),
            estimator: Estimator::default(),
            history: History::default(),
            curve: DirtyCurve::default(),
            tightening: Tightening::default(),
            throttling: Throttling::new(),
            samples: 0,
            most_samples: 0,
            escapes: 0,
            stop: None,
            can_post_copy: true,
        }
    }

    /// Lets a few pages go first where it makes a difference what resent pages cost ([`Reason::Sampling`]).
    #[must_use]
    pub fn with_sample(self) -> Self {
        Self { most_samples: 1, ..self }
    }

    /// Never decides for post-copy, whatever the limits say: the destination cannot take the guest that way.
    #[must_use]
    pub fn without_post_copy(self) -> Self {
        Self { can_post_copy: false, ..self }
    }

    /// The limits in force.
    #[must_use]
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Replaces the limits; they hold from the next decision on.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// How the guest dirties pages at full speed, once that was seen.
    pub fn set_curve(&mut self, curve: DirtyCurve) {
        self.curve = curve;
    }

    /// How many pages the guest may ever dirty, where that is known to be fewer than it has.
    pub fn set_reach(&mut self, reach: PageCount) {
        self.reach = reach;
    }

    /// How many pages the guest may ever dirty.
    pub(super) fn reach(&self) -> PageCount {
        self.reach
    }

    /// How the guest dirties pages, as far as that was seen.
    pub(super) fn curve(&self) -> &DirtyCurve {
        &self.curve
    }

    /// The rates as known so far.
    #[must_use]
    pub fn estimator(&self) -> &Estimator {
        &self.estimator
    }

    /// The same in all but its limits, and with everything `factor` times as fast as it was measured.
    pub(super) fn imagined(&self, limits: Limits, factor: f64) -> Self {
        Self { limits, estimator: self.estimator.faster(factor), ..self.clone() }
    }

    /// Before anything is sent: round 0, or the cold migration when no rounds are allowed, or post-copy from the start.
    pub fn start(&mut self) -> Verdict {
        let (decision, reason) = match self.post_copy() {
            PostCopy::After(0) => (Decision::PostCopy, Reason::AsAsked),
            _ if self.limits.max_rounds == 0 => (self.stop_or_switch(), Reason::MaxRounds),
            PostCopy::After(_) => (Decision::Round, Reason::AsAsked),
            PostCopy::Never | PostCopy::Auto => (Decision::Round, Reason::Converging),
        };
        self.verdict(decision, reason, Duration::MAX)
    }

    /// After a round and the harvest that followed it. Call it once for every round, in order.
    pub fn after_round(&mut self, facts: &RoundFacts) -> Verdict {
        let knew_resends = self.estimator.knows_resends();
        self.estimator.observe(facts);
        if !knew_resends {
            // What rounds left before was reckoned with another price.
            self.history = History::default();
        }
        let remainder = self.estimator.time_for_rest(facts.dirty_after, facts.never_sent);
        if self.wants_sample(facts) {
            self.samples += 1;
            return self.verdict(Decision::Round, Reason::Sampling, remainder.saturating_add(facts.fixed_cost));
        }
        self.history.note(remainder);
        let expected = remainder.saturating_add(facts.fixed_cost);
        let limit = self.reached_limit(facts);
        let (decision, reason) = if let PostCopy::After(rounds) = self.post_copy() {
            self.towards(rounds, facts, limit)
        } else if self.are_few(facts.dirty_after, remainder) {
            (Decision::StopAndCopy, Reason::DirtyThreshold)
        } else if expected <= self.limits.downtime_limit {
            let is_worth_it = limit.is_none() && self.is_worth_a_round(facts, remainder);
            if is_worth_it { (Decision::Round, Reason::Tightening) } else { (Decision::StopAndCopy, Reason::DowntimeLimit) }
        } else if let Some(reason) = limit {
            self.at_limit(facts, reason)
        } else {
            self.without_limit(facts)
        };
        self.verdict(decision, reason, expected)
    }

    /// The guest cannot be slowed down, as the last verdict asked: what to do instead.
    pub fn cannot_throttle(&mut self, asked: Verdict) -> Verdict {
        self.throttling.forgo();
        self.verdict(self.stop_or_switch(), asked.reason, asked.expected_downtime)
    }

    /// After the guest was paused and harvested for the last time: go through with it, or, because more is left than the
    /// downtime limit allows, go over to post-copy where that is allowed, or else let the guest run on and send another
    /// round.
    ///
    /// Only a stop that promised to fit is taken back, and only three times in a migration: then the guest is stopped all the
    /// same, which the reason says, or the migration given up where that is what limits are for. A switch to post-copy that
    /// nobody asked for becomes a stop where the rest fits after all.
    pub fn after_pause(&mut self, facts: &PauseFacts) -> Verdict {
        let remainder = self.estimator.time_for_rest(facts.remaining, facts.never_sent);
        let expected = facts.paused_for.saturating_add(remainder).saturating_add(facts.fixed_cost);
        let (decision, reason) = self.stop.unwrap_or((Decision::StopAndCopy, Reason::MaxRounds));
        let promised = matches!(reason, Reason::DowntimeLimit | Reason::DirtyThreshold);
        let over = expected > self.limits.downtime_limit && !self.are_few(facts.remaining, remainder);
        let (decision, reason) = match decision {
            Decision::PostCopy if !over && reason != Reason::AsAsked => (Decision::StopAndCopy, Reason::DowntimeLimit),
            Decision::StopAndCopy if promised && over && self.switches_at_limits() => (Decision::PostCopy, Reason::OverBudget),
            Decision::StopAndCopy if promised && over && self.escapes < MAX_ESCAPES => {
                self.escapes += 1;
                (Decision::Round, Reason::OverBudget)
            }
            Decision::StopAndCopy if promised && over && self.limits.on_limit == OnLimit::Abort => (Decision::Abort, Reason::OverBudget),
            Decision::StopAndCopy if promised && over => (Decision::StopAndCopy, Reason::OverBudget),
            as_decided => (as_decided, reason),
        };
        self.verdict(decision, reason, expected)
    }

    /// Whether `dirty` pages, which take so long on the link, are not worth another round.
    fn are_few(&self, dirty: PageCount, remainder: Duration) -> bool {
        self.limits.dirty_threshold.admits(dirty, remainder, self.limits.downtime_limit)
    }

    /// What of post-copy is both wanted and possible.
    fn post_copy(&self) -> PostCopy {
        if self.can_post_copy { self.limits.post_copy } else { PostCopy::Never }
    }

    /// Whether what does not fit goes over in post-copy.
    fn switches_at_limits(&self) -> bool {
        self.can_post_copy && self.limits.allow_post_copy()
    }

    /// How pre-copy ends when the rest does not fit.
    fn stop_or_switch(&self) -> Decision {
        if self.switches_at_limits() { Decision::PostCopy } else { Decision::StopAndCopy }
    }

    /// On the way to post-copy after so many `rounds`.
    fn towards(&mut self, rounds: u32, facts: &RoundFacts, limit: Option<Reason>) -> (Decision, Reason) {
        if facts.index + 1 >= rounds {
            return (Decision::PostCopy, Reason::AsAsked);
        }
        limit.map_or((Decision::Round, Reason::AsAsked), |reason| self.at_limit(facts, reason))
    }

    /// Whether a few pages should go first: what is left after round 0 may cost anything from next to nothing to what it
    /// cost then, and it is so much that this makes a difference.
    fn wants_sample(&self, facts: &RoundFacts) -> bool {
        let again = facts.dirty_after.0.saturating_sub(facts.never_sent.0);
        let many = facts.dirty_after.0 >= MANY_PAGES && again >= SAMPLE_PAGES.0;
        // Rounds that are counted out are sent whatever they cost.
        let counted = matches!(self.post_copy(), PostCopy::After(_));
        many && !counted && !self.estimator.knows_resends() && self.samples < self.most_samples && self.reached_limit(facts).is_none()
    }

    /// Rounds before this one, samples left out.
    fn number(&self, index: u32) -> u32 {
        index.saturating_sub(self.samples)
    }

    /// Whether a short round more leaves clearly less to stop for.
    fn is_worth_a_round(&mut self, facts: &RoundFacts, remainder: Duration) -> bool {
        let dirtied = self.estimator.dirty_rate().0 * remainder.as_secs_f64();
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a float to integer cast saturates")]
        let next = self.estimator.time_for(PageCount(dirtied.ceil() as u64));
        self.tightening.is_worth_it(remainder, next, facts.elapsed)
    }

    /// Whether a limit may end pre-copy after round `index`, which begins when so much was `sent` and time has `elapsed`, and
    /// sends `pages`: what is left over from it then goes while the guest stands still, or has gone over.
    #[must_use]
    pub fn may_end_with(&self, index: u32, pages: PageCount, sent: ByteCount, elapsed: Duration) -> bool {
        let counted_out = matches!(self.post_copy(), PostCopy::After(rounds) if index + 1 >= rounds);
        let elapsed = elapsed.saturating_add(self.estimator.time_for_rest(pages, pages));
        counted_out || self.limit_after(index, sent + pages.bytes(), elapsed).is_some()
    }

    fn reached_limit(&self, facts: &RoundFacts) -> Option<Reason> {
        self.limit_after(facts.index, facts.memory_sent_total, facts.elapsed)
    }

    /// The hard limits: rounds, volume, time.
    fn limit_after(&self, index: u32, sent: ByteCount, elapsed: Duration) -> Option<Reason> {
        let limits = &self.limits;
        if limits.timeout.is_some_and(|timeout| elapsed >= timeout) {
            Some(Reason::Timeout)
        } else if sent > limits.max_volume.for_guest(self.guest) {
            Some(Reason::MaxVolume)
        } else if self.number(index) + 1 >= limits.max_rounds.min(MAX_ROUNDS) {
            Some(Reason::MaxRounds)
        } else {
            None
        }
    }

    /// Too much is left to stop for and no hard limit is reached: do rounds still help?
    fn without_limit(&mut self, facts: &RoundFacts) -> (Decision, Reason) {
        if self.post_copy() == PostCopy::Auto && self.is_hopeless(facts) {
            return (Decision::PostCopy, Reason::NotConverging);
        }
        if self.limits.plateau == Plateau::Ignore || self.number(facts.index) < PLATEAU_FROM_ROUND {
            return (Decision::Round, Reason::Converging);
        }
        if self.throttling.has_begun() {
            return self.at_limit(facts, Reason::Plateau);
        }
        match self.history.trend() {
            Trend::Falling => (Decision::Round, Reason::Converging),
            // What a burst left shrinks again: nothing to give up or to slow down for.
            Trend::High | Trend::Low if !self.stops_at_limits() && self.history.is_coming_down() => (Decision::Round, Reason::Converging),
            Trend::High if self.stops_at_limits() => {
                self.history.wait();
                (Decision::Round, Reason::Oscillating)
            }
            Trend::Low if self.stops_at_limits() => self.at_limit(facts, Reason::LocalMinimum),
            Trend::Low | Trend::High | Trend::Flat => self.at_limit(facts, Reason::Plateau),
        }
    }

    /// Whether the guest stands still for all that is left when a limit is reached: then it matters how much that is.
    fn stops_at_limits(&self) -> bool {
        matches!(self.limits.on_limit, OnLimit::Stop | OnLimit::PostCopy) && !self.switches_at_limits()
    }

    /// What to do at a limit. A throttled guest gets some rounds more to converge.
    fn at_limit(&mut self, facts: &RoundFacts, reason: Reason) -> (Decision, Reason) {
        match self.limits.on_limit {
            _ if self.post_copy() == PostCopy::Auto => (Decision::PostCopy, reason),
            OnLimit::Stop | OnLimit::PostCopy => (self.stop_or_switch(), reason),
            OnLimit::Abort => (Decision::Abort, reason),
            OnLimit::Throttle => match self.throttling.step(facts.dirtied(), facts.duration, self.estimator.page_rate(), &self.curve) {
                Step::Lower => (Decision::Throttle, reason),
                Step::Enough => (Decision::Round, Reason::Converging),
                Step::GiveUp => (self.stop_or_switch(), reason),
            },
        }
    }

    pub(super) fn verdict(&mut self, decision: Decision, reason: Reason, expected_downtime: Duration) -> Verdict {
        self.stop = matches!(decision, Decision::StopAndCopy | Decision::PostCopy).then_some((decision, reason));
        Verdict {
            decision,
            reason,
            expected_downtime,
            dirty_rate: self.estimator.dirty_rate(),
            page_rate: self.estimator.page_rate(),
            bandwidth: self.estimator.bandwidth(),
            share: self.throttling.share(),
        }
    }
}

/// Pages in a sample ([`Reason::Sampling`]).
pub const SAMPLE_PAGES: PageCount = PageCount(512);
/// A sample is taken where so many are dirty.
const MANY_PAGES: u64 = 4096;
/// Rounds are not given up before this one: the first ones differ from the rest in size.
const PLATEAU_FROM_ROUND: u32 = 3;
/// How often a pause may be taken back; each one is a stall to the guest.
const MAX_ESCAPES: u32 = 3;

#[cfg(test)]
mod tests;
