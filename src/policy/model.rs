//! The cost model: how a migration goes when the guest dirties pages, and the link moves them, at constant rates.
//!
//! A round of `v_i` bytes takes `t_i = v_i / b`; meanwhile the guest dirties `v_{i+1} = d * l * t_i`, but no more than
//! its working set, nor than all its memory (equations 4.2 and 4.5). What to do after each round is asked of the very
//! [`Policy`] that the engine asks. A sweep over the working set dirties exactly this much; random writes hit pages
//! twice and dirty less, so for them the model is an upper bound.
//!
//! In post-copy the guest stands still for the fixed costs alone, and what rounds left follows it once, at the price of
//! pages that go for the first time: differences are made to nothing then.
//!
//! Equations (4.1) to (4.5) are those of "Efficient Live Virtual Machine Migration In Open Cloud Platform" (2014).

use std::time::Duration;

use serde::Serialize;

use super::{
    Bottleneck, Decision, DirtyCurve, DirtyThreshold, Limits, MAX_ROUNDS, OnLimit, Policy, PostCopy, Reason, RoundFacts, SAMPLE_PAGES, Verdict,
};
use crate::units::{ByteCount, BytesPerSec, PAGE_SIZE, PageCount, PagesPerSec, RunShare};

/// What a prediction is made from.
#[derive(Clone, Copy, Debug)]
pub struct ModelInput {
    /// `v_mem`: memory to move in round 0.
    pub memory: ByteCount,
    /// `d`: pages the guest dirties a second.
    pub dirty_rate: PagesPerSec,
    /// `b`: guest memory moved a second, compression included.
    pub bandwidth: BytesPerSec,
    /// Pages that the guest comes back to; without it, all of memory.
    pub working_set: Option<PageCount>,
    /// What a pause costs besides the pages.
    pub fixed_cost: Duration,
    /// When to stop.
    pub limits: Limits,
}

/// How a migration is expected to go.
#[derive(Clone, Debug, PartialEq)]
pub struct Prediction {
    /// The pre-copy rounds; none in a cold migration.
    pub rounds: Vec<PredictedRound>,
    /// Pages left for stop-and-copy, or for post-copy.
    pub remainder: PageCount,
    /// `v_mig`: memory moved in all, stop-and-copy and post-copy included.
    pub moved: ByteCount,
    /// `t_mig`: from the start until nothing depends on the source any more.
    pub total: Duration,
    /// `t_down`: how long the guest stands still.
    pub downtime: Duration,
    /// In post-copy: how long the rest takes to follow the guest.
    pub resume: Duration,
    /// How pre-copy ends.
    pub decision: Decision,
    /// Why it ends.
    pub stopped_by: Reason,
}

/// A round as it is expected to go.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PredictedRound {
    /// Which round, from 0.
    pub index: u32,
    /// `v_i`, in pages.
    pub pages: PageCount,
    /// `t_i`.
    pub duration: Duration,
    /// `v_{i+1}`, in pages.
    pub dirty_after: PageCount,
    /// The decision after it.
    pub decision: Decision,
    /// And why.
    pub reason: Reason,
}

/// Between what a migration must stay, whatever the guest does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Bounds {
    /// An idle guest moves its memory once.
    pub least_total: Duration,
    /// A guest that dirties everything all the time moves it in every round, and once more while it stands still.
    pub most_total: Duration,
    /// An idle guest stands still for the fixed costs alone.
    pub least_downtime: Duration,
    /// At worst all of memory is copied while the guest stands still (4.5).
    pub most_downtime: Duration,
}

/// Predicts a whole migration.
#[must_use]
pub fn predict(input: &ModelInput) -> Prediction {
    let memory = input.memory.pages();
    let working_set = input.working_set.unwrap_or(memory).min(memory);
    let mut policy = imagined(input.limits, input.memory, &DirtyCurve::sweep(input.dirty_rate, working_set));
    let verdict = policy.start();
    let model = Model {
        link: input.bandwidth,
        first: PageCost::plain(),
        again: PageCost::plain(),
        dirtying: Dirtying::Steady { rate: input.dirty_rate, most: working_set },
        round_cost: Duration::ZERO,
        fixed_cost: input.fixed_cost,
    };
    model.run(&mut policy, verdict, Progress { next_index: 0, elapsed: Duration::ZERO, sent: ByteCount(0), pending: memory, never_sent: memory })
}

/// A guest as it was measured while it ran, for [`predict_measured`].
#[derive(Clone, Debug)]
pub struct MeasuredGuest {
    /// All its memory.
    pub memory: ByteCount,
    /// Pages that it may come to dirty: those in use, or all of memory where it takes more and more.
    pub reach: PageCount,
    /// Pages that hold something.
    pub pages: PageCount,
    /// What such a page costs, on average, by each way there is to pack it.
    pub first: Vec<PageCost>,
    /// Wire bytes of a page that is sent again.
    pub again_bytes: f64,
    /// How it dirties pages.
    pub curve: DirtyCurve,
    /// What a round costs besides its pages.
    pub round_cost: Duration,
}

impl MeasuredGuest {
    /// What a page costs by the way that is the fastest over a link of `bandwidth`. As it is, if there is no other.
    #[must_use]
    pub fn first_over(&self, bandwidth: BytesPerSec) -> PageCost {
        let pages_per_s = |cost: &PageCost| (bandwidth.0 / cost.bytes).min(cost.processors.0);
        self.first.iter().copied().max_by(|one, other| pages_per_s(one).total_cmp(&pages_per_s(other))).unwrap_or(PageCost::plain())
    }
}

/// Predicts the migration of a guest that was measured, over a link of `bandwidth`.
#[must_use]
pub fn predict_measured(guest: &MeasuredGuest, bandwidth: BytesPerSec, limits: Limits, fixed_cost: Duration) -> Prediction {
    let mut policy = imagined(limits, guest.memory, &guest.curve);
    let verdict = policy.start();
    let first = guest.first_over(bandwidth);
    let model = Model {
        link: bandwidth,
        first,
        again: PageCost { bytes: guest.again_bytes, ..first },
        dirtying: Dirtying::Along { curve: &guest.curve, most: guest.reach },
        round_cost: guest.round_cost,
        fixed_cost,
    };
    model.run(
        &mut policy,
        verdict,
        Progress { next_index: 0, elapsed: Duration::ZERO, sent: ByteCount(0), pending: guest.pages, never_sent: guest.pages },
    )
}

/// A policy that knows of the guest what the engine's learns in round 0. It makes a difference only to what can be
/// foreseen.
fn imagined(limits: Limits, memory: ByteCount, curve: &DirtyCurve) -> Policy {
    let mut policy = Policy::new(limits, memory);
    if limits.post_copy == PostCopy::Auto {
        policy = policy.with_sample();
        policy.set_curve(curve.clone());
    }
    policy
}

impl Policy {
    /// Predicts what is left of a migration after the round that `facts` describe and `verdict` judged, at the rates
    /// measured so far, for a guest that goes on dirtying pages along `curve`. A page that is sent again takes `again_bytes` as
    /// long as none was, if that is known. A round costs `round_cost` besides its pages. The total counts from the start of the migration, the rounds are those still to come.
    #[must_use]
    pub fn predict_rest(
        &self,
        facts: &RoundFacts,
        verdict: Verdict,
        curve: &DirtyCurve,
        again_bytes: Option<f64>,
        round_cost: Duration,
    ) -> Prediction {
        let estimator = self.estimator();
        let most = self.reach().max(facts.dirty_after);
        let cost = |(bytes, processors)| PageCost { bytes, processors };
        // Where the link was waited for, how many pages processors take is not known, but that these are more.
        let foreseen = |bytes| PageCost { bytes, processors: estimator.measured_processors().unwrap_or(PagesPerSec(f64::INFINITY)) };
        let again = again_bytes.map_or_else(|| cost(estimator.page_again()), foreseen);
        let model = Model {
            link: estimator.bandwidth(),
            first: cost(estimator.first_page()),
            again,
            dirtying: if curve.is_empty() { Dirtying::Steady { rate: estimator.dirty_rate(), most } } else { Dirtying::Along { curve, most } },
            round_cost,
            fixed_cost: facts.fixed_cost,
        };
        let progress = Progress {
            next_index: facts.index + 1,
            elapsed: facts.elapsed,
            sent: facts.memory_sent_total,
            pending: facts.dirty_after,
            never_sent: facts.never_sent,
        };
        model.run(&mut self.clone(), verdict, progress)
    }
}

impl ModelInput {
    /// The bounds that hold for any dirty rate.
    #[must_use]
    pub fn bounds(&self) -> Bounds {
        let once = self.bandwidth.time_for(self.memory.pages().bytes());
        let by_rounds = once.saturating_mul(self.limits.max_rounds.min(MAX_ROUNDS));
        // The round that passes the volume limit is sent to its end.
        let by_volume = self.bandwidth.time_for(self.limits.max_volume.for_guest(self.memory)).saturating_add(once);
        Bounds {
            least_total: once.saturating_add(self.fixed_cost),
            most_total: by_rounds.min(by_volume).saturating_add(once).saturating_add(self.fixed_cost),
            least_downtime: self.fixed_cost,
            most_downtime: self.most_copied(once).saturating_add(self.fixed_cost),
        }
    }

    /// How much of `once`, which is all of memory, may be copied while the guest stands still.
    fn most_copied(&self, once: Duration) -> Duration {
        let limits = &self.limits;
        let few = self.bandwidth.time_for(limits.dirty_threshold.pages().bytes());
        let few = if limits.dirty_threshold == DirtyThreshold::Few { few.min(limits.downtime_limit) } else { few };
        let fits = few.max(limits.downtime_limit.saturating_sub(self.fixed_cost)).min(once);
        match (limits.post_copy, limits.on_limit) {
            (PostCopy::Auto, _) | (PostCopy::Never, OnLimit::PostCopy) => fits,
            (PostCopy::After(_), _) => Duration::ZERO,
            (PostCopy::Never, _) => once,
        }
    }
}

/// The rates of one prediction.
struct Model<'c> {
    link: BytesPerSec,
    /// Of pages that go for the first time.
    first: PageCost,
    /// Of all others.
    again: PageCost,
    dirtying: Dirtying<'c>,
    /// What a round takes besides its pages.
    round_cost: Duration,
    fixed_cost: Duration,
}

/// What moving pages costs.
#[derive(Clone, Copy, Debug)]
pub struct PageCost {
    /// Wire bytes a page.
    pub bytes: f64,
    /// Pages a second through the processors, all channels together.
    pub processors: PagesPerSec,
}

impl PageCost {
    /// As it is, and for nothing.
    fn plain() -> Self {
        Self { bytes: PAGE_SIZE as f64, processors: PagesPerSec(f64::INFINITY) }
    }
}

/// How the guest dirties pages.
enum Dirtying<'c> {
    /// At a rate, and never more than so many.
    Steady { rate: PagesPerSec, most: PageCount },
    /// As it was seen to, and never more than so many.
    Along { curve: &'c DirtyCurve, most: PageCount },
}

/// Where a migration stands between two rounds.
struct Progress {
    next_index: u32,
    elapsed: Duration,
    sent: ByteCount,
    pending: PageCount,
    /// Of these.
    never_sent: PageCount,
}

impl Model<'_> {
    fn run(&self, policy: &mut Policy, mut verdict: Verdict, mut at: Progress) -> Prediction {
        let mut rounds = Vec::new();
        // Ends: a policy allows at most `MAX_ROUNDS`.
        while verdict.decision.goes_on() {
            let facts = self.round(&mut at, verdict);
            verdict = policy.after_round(&facts);
            rounds.push(PredictedRound {
                index: facts.index,
                pages: facts.pages,
                duration: facts.duration,
                dirty_after: facts.dirty_after,
                decision: verdict.decision,
                reason: verdict.reason,
            });
        }
        let (remainder, downtime, resume) = match verdict.decision {
            Decision::StopAndCopy => (at.pending, self.sending(at.pending, at.never_sent).0.saturating_add(self.fixed_cost), Duration::ZERO),
            Decision::PostCopy => (at.pending, self.fixed_cost, self.sending(at.pending, at.pending).0),
            Decision::Round | Decision::Throttle | Decision::Abort => (PageCount(0), Duration::ZERO, Duration::ZERO),
        };
        Prediction {
            rounds,
            remainder,
            moved: ByteCount(at.sent.0.saturating_add(remainder.bytes().0)),
            total: at.elapsed.saturating_add(downtime).saturating_add(resume),
            downtime,
            resume,
            decision: verdict.decision,
            stopped_by: verdict.reason,
        }
    }

    fn round(&self, at: &mut Progress, before: Verdict) -> RoundFacts {
        let is_sample = before.reason == Reason::Sampling;
        let pages = if is_sample { at.pending.min(SAMPLE_PAGES) } else { at.pending };
        let unsent = PageCount(at.pending.0 - pages.0);
        let (index, first) = (at.next_index, at.never_sent.min(pages));
        let (sending, wire_bytes, bottleneck) = self.sending(pages, first);
        let duration = sending.saturating_add(self.round_cost);
        at.next_index += 1;
        at.elapsed = at.elapsed.saturating_add(duration);
        at.sent = ByteCount(at.sent.0.saturating_add(pages.bytes().0));
        // The pages that a sample leaves are mostly those that the guest comes back to.
        at.pending = self.dirtied_in(duration, before.share).max(unsent);
        at.never_sent = PageCount(at.never_sent.0 - first.0);
        RoundFacts {
            index,
            elapsed: at.elapsed,
            duration,
            moving: sending,
            pages,
            first,
            empty: PageCount(0),
            wire_bytes,
            arrived: wire_bytes,
            bottleneck,
            memory_sent_total: at.sent,
            dirty_after: at.pending,
            unsent,
            never_sent: at.never_sent,
            fixed_cost: self.fixed_cost,
        }
    }

    /// How long `pages` take, `first` of them for the first time; their bytes, and what they wait for.
    fn sending(&self, pages: PageCount, first: PageCount) -> (Duration, ByteCount, Bottleneck) {
        let again = PageCount(pages.0 - first.0);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a float to integer cast saturates")]
        let bytes = ByteCount((first.0 as f64 * self.first.bytes + again.0 as f64 * self.again.bytes) as u64);
        let by_link = self.link.time_for(bytes);
        let by_processors = self.first.processors.time_for(first).saturating_add(self.again.processors.time_for(again));
        let bottleneck = if by_link >= by_processors { Bottleneck::Link } else { Bottleneck::Processor };
        (by_link.max(by_processors), bytes, bottleneck)
    }

    fn dirtied_in(&self, duration: Duration, share: RunShare) -> PageCount {
        let (pages, most) = match &self.dirtying {
            Dirtying::Steady { rate, most } => (rate.0 * share.value() * duration.as_secs_f64(), *most),
            // Half the time at full speed does as much as all of it at half speed.
            Dirtying::Along { curve, most } => (curve.within(share.of(duration)), *most),
        };
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates at both ends, and the working set bounds it")]
        PageCount((pages - ROUNDING).ceil() as u64).min(most)
    }
}

/// So much of a page is arithmetic, not a page.
const ROUNDING: f64 = 1e-3;

#[cfg(test)]
mod tests;
