//! The decision after each round.
//!
//! The order of the questions matters: first whether the guest may be stopped within what was promised, and only then
//! whether a limit is reached, so that a migration that just converged is never aborted for being late.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Estimator, Limits, MAX_ROUNDS, OnLimit, Plateau};
use crate::units::{ByteCount, BytesPerSec, PageCount, PagesPerSec};

/// What was measured in a round that has just ended, its harvest included.
#[derive(Clone, Copy, Debug)]
pub struct RoundFacts {
    /// Which round, from 0.
    pub index: u32,
    /// Since the migration started.
    pub elapsed: Duration,
    /// From the first page of this round to the harvest after it.
    pub duration: Duration,
    /// Pages sent in this round; zero pages count, holes that were never touched do not.
    pub pages: PageCount,
    /// What they took on the wire.
    pub wire_bytes: ByteCount,
    /// `v_mig`: guest memory sent in all rounds so far, resends counted.
    pub memory_sent_total: ByteCount,
    /// Pages the guest dirtied meanwhile: what a next round would send.
    pub dirty_after: PageCount,
    /// What a pause costs besides the pages: last harvest, state, acknowledgements.
    pub fixed_cost: Duration,
}

/// What is known once the guest is paused and harvested for the last time.
#[derive(Clone, Copy, Debug)]
pub struct PauseFacts {
    /// How long the guest has been paused.
    pub paused_for: Duration,
    /// Pages left to send.
    pub remaining: PageCount,
    /// What is still to come besides the pages: state, acknowledgements.
    pub fixed_cost: Duration,
}

/// What to do next, why, and the numbers behind it.
#[derive(Clone, Copy, Debug, PartialEq)]
#[must_use]
pub struct Verdict {
    /// What to do.
    pub decision: Decision,
    /// Why.
    pub reason: Reason,
    /// How long the guest would stand still if it were stopped now; [`Duration::MAX`] while no rate is known.
    pub expected_downtime: Duration,
    /// Pages dirtied a second, smoothed.
    pub dirty_rate: PagesPerSec,
    /// Pages moved a second, smoothed.
    pub page_rate: PagesPerSec,
    /// Bytes on the wire a second, smoothed.
    pub bandwidth: BytesPerSec,
}

impl fmt::Display for Verdict {
    /// As in a report: `stop-and-copy: downtime-limit`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.decision, self.reason)
    }
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Decision {
    /// Another round, with the guest running.
    Round,
    /// Stop the guest and send the rest.
    StopAndCopy,
    /// Give up; the guest runs on at the source.
    Abort,
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Round => "round",
            Self::StopAndCopy => "stop-and-copy",
            Self::Abort => "abort",
        })
    }
}

/// Why a decision fell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Reason {
    /// No limit is reached, and there is still too much to stop for.
    Converging,
    /// At or under [`Limits::dirty_threshold`].
    DirtyThreshold,
    /// The rest fits in [`Limits::downtime_limit`].
    DowntimeLimit,
    /// [`Limits::max_rounds`] are done.
    MaxRounds,
    /// More than [`Limits::max_volume`] was moved.
    MaxVolume,
    /// [`Limits::timeout`] has passed.
    Timeout,
    /// Rounds stopped helping: [`Plateau::Watch`].
    Plateau,
    /// The guest was paused, and what was left then turned out too much for [`Limits::downtime_limit`].
    OverBudget,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Converging => "converging",
            Self::DirtyThreshold => "dirty-threshold",
            Self::DowntimeLimit => "downtime-limit",
            Self::MaxRounds => "max-rounds",
            Self::MaxVolume => "max-volume",
            Self::Timeout => "timeout",
            Self::Plateau => "plateau",
            Self::OverBudget => "over-budget",
        })
    }
}

/// Decides after each round of one migration.
#[derive(Clone, Debug)]
pub struct Policy {
    limits: Limits,
    guest: ByteCount,
    estimator: Estimator,
    previous_dirty: Option<PageCount>,
    /// Rounds in a row that did not help.
    flat_rounds: u32,
    /// Times the guest was let go again after a pause.
    escapes: u32,
    /// Why the guest was last said to be stopped.
    stopped_by: Option<Reason>,
}

impl Policy {
    /// For a guest with `guest` bytes of memory.
    #[must_use]
    pub fn new(limits: Limits, guest: ByteCount) -> Self {
        Self { limits, guest, estimator: Estimator::default(), previous_dirty: None, flat_rounds: 0, escapes: 0, stopped_by: None }
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

    /// The rates as known so far.
    #[must_use]
    pub fn estimator(&self) -> &Estimator {
        &self.estimator
    }

    /// The guest's memory.
    pub(super) fn guest(&self) -> ByteCount {
        self.guest
    }

    /// Before anything is sent: round 0, or the cold migration when no rounds are allowed.
    pub fn start(&mut self) -> Verdict {
        if self.limits.max_rounds == 0 {
            self.verdict(Decision::StopAndCopy, Reason::MaxRounds, Duration::MAX)
        } else {
            self.verdict(Decision::Round, Reason::Converging, Duration::MAX)
        }
    }

    /// After a round and the harvest that followed it. Call it once for every round, in order.
    pub fn after_round(&mut self, facts: &RoundFacts) -> Verdict {
        self.estimator.observe(facts);
        self.note_progress(facts.dirty_after);
        let expected = self.estimator.time_for(facts.dirty_after).saturating_add(facts.fixed_cost);
        let (decision, reason) = if facts.dirty_after <= self.limits.dirty_threshold {
            (Decision::StopAndCopy, Reason::DirtyThreshold)
        } else if expected <= self.limits.downtime_limit {
            (Decision::StopAndCopy, Reason::DowntimeLimit)
        } else if let Some(reason) = self.reached_limit(facts) {
            (self.at_limit(), reason)
        } else {
            (Decision::Round, Reason::Converging)
        };
        self.verdict(decision, reason, expected)
    }

    /// After the guest was paused and harvested for the last time: go through with it, or let the guest run on and send
    /// another round, because more is left than the downtime limit allows.
    ///
    /// Only a stop that promised to fit is taken back, and only three times in a migration.
    pub fn after_pause(&mut self, facts: &PauseFacts) -> Verdict {
        let expected = facts.paused_for.saturating_add(self.estimator.time_for(facts.remaining)).saturating_add(facts.fixed_cost);
        let reason = self.stopped_by.unwrap_or(Reason::MaxRounds);
        let promised = matches!(reason, Reason::DowntimeLimit | Reason::DirtyThreshold);
        let over = expected > self.limits.downtime_limit && facts.remaining > self.limits.dirty_threshold;
        if promised && over && self.escapes < MAX_ESCAPES {
            self.escapes += 1;
            return self.verdict(Decision::Round, Reason::OverBudget, expected);
        }
        self.verdict(Decision::StopAndCopy, reason, expected)
    }

    fn note_progress(&mut self, dirty: PageCount) {
        let flat = self.previous_dirty.is_some_and(|before| dirty.0 as f64 > before.0 as f64 * PLATEAU_SHARE);
        self.flat_rounds = if flat { self.flat_rounds + 1 } else { 0 };
        self.previous_dirty = Some(dirty);
    }

    fn reached_limit(&self, facts: &RoundFacts) -> Option<Reason> {
        let limits = &self.limits;
        if limits.timeout.is_some_and(|timeout| facts.elapsed >= timeout) {
            Some(Reason::Timeout)
        } else if facts.memory_sent_total > limits.max_volume.for_guest(self.guest) {
            Some(Reason::MaxVolume)
        } else if facts.index + 1 >= limits.max_rounds.min(MAX_ROUNDS) {
            Some(Reason::MaxRounds)
        } else if limits.plateau == Plateau::Watch && facts.index >= PLATEAU_FROM_ROUND && self.flat_rounds >= PLATEAU_ROUNDS {
            Some(Reason::Plateau)
        } else {
            None
        }
    }

    fn at_limit(&self) -> Decision {
        match self.limits.on_limit {
            OnLimit::Stop => Decision::StopAndCopy,
            OnLimit::Abort => Decision::Abort,
        }
    }

    fn verdict(&mut self, decision: Decision, reason: Reason, expected_downtime: Duration) -> Verdict {
        self.stopped_by = (decision == Decision::StopAndCopy).then_some(reason);
        Verdict {
            decision,
            reason,
            expected_downtime,
            dirty_rate: self.estimator.dirty_rate(),
            page_rate: self.estimator.page_rate(),
            bandwidth: self.estimator.bandwidth(),
        }
    }
}

/// A round that leaves more than this share of what the one before left has not helped.
const PLATEAU_SHARE: f64 = 0.9;
/// So many such rounds in a row are a plateau.
const PLATEAU_ROUNDS: u32 = 2;
/// Not before this round: the first ones differ from the rest in size.
const PLATEAU_FROM_ROUND: u32 = 3;
/// How often a pause may be taken back; each one is a stall to the guest.
const MAX_ESCAPES: u32 = 3;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::VolumeLimit;

    const GUEST: ByteCount = ByteCount(1 << 30);

    /// A round of one second that moved 10 000 pages and left `dirty`.
    fn round(index: u32, dirty: u64) -> RoundFacts {
        RoundFacts {
            index,
            elapsed: Duration::from_secs(u64::from(index) + 1),
            duration: Duration::from_secs(1),
            pages: PageCount(10_000),
            wire_bytes: ByteCount(40_000_000),
            memory_sent_total: PageCount(10_000 * (u64::from(index) + 1)).bytes(),
            dirty_after: PageCount(dirty),
            fixed_cost: Duration::from_millis(20),
        }
    }

    fn decide(limits: Limits, dirty: &[u64]) -> Vec<String> {
        let mut policy = Policy::new(limits, GUEST);
        (0..).zip(dirty).map(|(index, &dirty)| policy.after_round(&round(index, dirty)).to_string()).collect()
    }

    #[test]
    fn each_limit_stops_pre_copy_with_its_own_reason() {
        let base = Limits { plateau: Plateau::Ignore, ..Limits::default() };
        let table: [(&str, Limits, &[u64], &str); 8] = [
            ("so few pages are not worth a round", base, &[50], "stop-and-copy: dirty-threshold"),
            ("2800 pages take 280 ms and 20 more", base, &[2800], "stop-and-copy: downtime-limit"),
            ("2801 do not fit", base, &[2801], "round: converging"),
            ("the last round allowed", Limits { max_rounds: 2, ..base }, &[9000, 9000], "stop-and-copy: max-rounds"),
            (
                "the round that passes the volume",
                Limits { max_volume: VolumeLimit::Bytes(PageCount(19_999).bytes()), ..base },
                &[9000, 9000],
                "stop-and-copy: max-volume",
            ),
            (
                "exactly the volume is allowed",
                Limits { max_volume: VolumeLimit::Bytes(PageCount(20_000).bytes()), ..base },
                &[9000, 9000],
                "round: converging",
            ),
            ("the wall clock", Limits { timeout: Some(Duration::from_secs(2)), ..base }, &[9000, 9000], "stop-and-copy: timeout"),
            ("abort if told so", Limits { max_rounds: 2, on_limit: OnLimit::Abort, ..base }, &[9000, 9000], "abort: max-rounds"),
        ];
        for (name, limits, dirty, last) in table {
            let decisions = decide(limits, dirty);
            assert_eq!(decisions.last().map(String::as_str), Some(last), "{name}");
            assert!(decisions[..decisions.len() - 1].iter().all(|decision| decision == "round: converging"), "{name}: {decisions:?}");
        }
    }

    #[test]
    fn a_round_that_converges_at_a_limit_is_not_aborted() {
        let limits = Limits { max_rounds: 1, on_limit: OnLimit::Abort, ..Limits::default() };
        assert_eq!(decide(limits, &[10]), ["stop-and-copy: dirty-threshold"]);
    }

    #[test]
    fn two_flat_rounds_are_a_plateau_from_round_three_on() {
        let stop = "stop-and-copy: plateau";
        let go = "round: converging";
        let table: [(&[u64], &[&str]); 4] = [
            (&[9000, 9000, 9000, 9000], &[go, go, go, stop]),
            (&[9000, 8000, 7000, 6000, 5900, 5800], &[go, go, go, go, go, stop]),
            (&[9000, 9000, 8000, 7900, 7000, 6000], &[go; 6]),
            (&[9000, 8000, 9000, 9900], &[go, go, go, stop]),
        ];
        for (dirty, expected) in table {
            assert_eq!(decide(Limits::default(), dirty), expected, "{dirty:?}");
        }
    }

    #[test]
    fn the_cold_migration_stops_before_anything_is_sent() {
        let mut policy = Policy::new(Limits { max_rounds: 0, on_limit: OnLimit::Abort, ..Limits::default() }, GUEST);
        assert_eq!(policy.start().to_string(), "stop-and-copy: max-rounds");
        let pause = PauseFacts { paused_for: Duration::ZERO, remaining: GUEST.pages(), fixed_cost: Duration::ZERO };
        assert_eq!(policy.after_pause(&pause).decision, Decision::StopAndCopy, "a cold stop promised nothing");
    }

    #[test]
    fn limits_can_change_while_it_runs() {
        let mut policy = Policy::new(Limits::default(), GUEST);
        assert_eq!(policy.after_round(&round(0, 9000)).decision, Decision::Round);
        policy.set_limits(Limits { downtime_limit: Duration::from_secs(1), ..Limits::default() });
        assert_eq!(policy.after_round(&round(1, 9000)).to_string(), "stop-and-copy: downtime-limit");
    }

    #[test]
    fn a_pause_that_would_break_its_promise_is_taken_back_a_few_times() {
        let mut policy = Policy::new(Limits::default(), GUEST);
        let fits = PauseFacts { paused_for: Duration::from_millis(5), remaining: PageCount(2000), fixed_cost: Duration::from_millis(20) };
        let too_much = PauseFacts { remaining: PageCount(6000), ..fits };
        assert_eq!(policy.after_round(&round(0, 2000)).to_string(), "stop-and-copy: downtime-limit");
        assert_eq!(policy.after_pause(&fits).to_string(), "stop-and-copy: downtime-limit");
        for index in 1..=MAX_ESCAPES {
            assert_eq!(policy.after_round(&round(index, 2000)).decision, Decision::StopAndCopy);
            assert_eq!(policy.after_pause(&too_much).to_string(), "round: over-budget");
        }
        assert_eq!(policy.after_round(&round(9, 2000)).decision, Decision::StopAndCopy);
        assert_eq!(policy.after_pause(&too_much).decision, Decision::StopAndCopy, "bounded");
    }

    #[test]
    fn a_stop_at_a_limit_promises_nothing_and_is_not_taken_back() {
        let mut policy = Policy::new(Limits { max_rounds: 1, ..Limits::default() }, GUEST);
        assert_eq!(policy.after_round(&round(0, 9000)).to_string(), "stop-and-copy: max-rounds");
        let pause = PauseFacts { paused_for: Duration::ZERO, remaining: PageCount(9000), fixed_cost: Duration::ZERO };
        assert_eq!(policy.after_pause(&pause).to_string(), "stop-and-copy: max-rounds");
    }

    #[test]
    fn a_verdict_carries_the_numbers_behind_it() {
        let verdict = Policy::new(Limits::default(), GUEST).after_round(&round(0, 5000));
        assert_eq!(verdict.expected_downtime, Duration::from_millis(520));
        assert_eq!((verdict.page_rate, verdict.dirty_rate), (PagesPerSec(10_000.0), PagesPerSec(5000.0)));
        assert_eq!(verdict.bandwidth, BytesPerSec(40e6));
    }

    #[test]
    fn a_round_that_moved_nothing_promises_nothing() {
        let empty = RoundFacts { pages: PageCount(0), wire_bytes: ByteCount(0), ..round(0, 500) };
        let verdict = Policy::new(Limits::default(), GUEST).after_round(&empty);
        assert_eq!((verdict.decision, verdict.expected_downtime), (Decision::Round, Duration::MAX));
    }
}
