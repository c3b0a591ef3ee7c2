//! The report of a migration, as far as it is drawn.

use serde::Deserialize;

use super::{Figure, Parts};

/// What one end says about a migration.
#[derive(Clone, Debug, Deserialize)]
pub(in super::super) struct Migration {
    pub(in super::super) outcome: String,
    /// What a batch calls it.
    pub(in super::super) guest: Option<String>,
    #[serde(default)]
    pub(in super::super) reason: String,
    pub(in super::super) total_ms: Figure,
    pub(in super::super) preparation_ms: Figure,
    pub(in super::super) downtime_ms: Figure,
    pub(in super::super) resume_ms: Figure,
    pub(in super::super) pages_transferred: Figure,
    pub(in super::super) wire_bytes: Figure,
    pub(in super::super) rounds: Vec<Round>,
    #[serde(default)]
    pub(in super::super) pages_by_encoding: Parts,
    pub(in super::super) tracker: Option<String>,
    pub(in super::super) channels: Option<Figure>,
    pub(in super::super) predicted: Option<Predicted>,
    pub(in super::super) stall_ms: Option<Figure>,
    pub(in super::super) guest_owner: Option<String>,
    pub(in super::super) guest_check: Option<String>,
    pub(in super::super) guest_gap_ms: Option<Figure>,
    pub(in super::super) downtime_parts_ms: Option<Parts>,
    pub(in super::super) throttle: Option<Throttle>,
    pub(in super::super) post_copy: Option<PostCopy>,
}

impl Migration {
    /// Whether this is the receiver's side: only a sender knows its tracker, or what a batch calls its guest.
    pub(in super::super) fn is_receivers(&self) -> bool {
        self.tracker.is_none() && self.guest.is_none()
    }

    /// Whether the guest has moved: else what was measured is of no migration.
    pub(in super::super) fn is_completed(&self) -> bool {
        self.outcome == "completed"
    }

    /// Distinct pages that the guest dirtied a second in each round; none while it stands still.
    ///
    /// What is dirty after a round that did not send all that was dirty before it counts what it left over.
    pub(in super::super) fn dirty_rates(&self) -> Vec<Option<f64>> {
        let mut before = 0.0;
        let rate = |round: &Round| {
            let after = round.dirty_after?.0;
            let left_over = (before - round.pages.0).max(0.0);
            before = after;
            if round.guest_runs() { round.each_second((after - left_over).max(0.0)) } else { None }
        };
        self.rounds.iter().map(rate).collect()
    }
}

/// A round.
#[derive(Clone, Debug, Deserialize)]
pub(in super::super) struct Round {
    pub(in super::super) index: u32,
    pub(in super::super) kind: String,
    pub(in super::super) pages: Figure,
    pub(in super::super) wire_bytes: Figure,
    pub(in super::super) duration_ms: Figure,
    pub(in super::super) dirty_after: Option<Figure>,
    pub(in super::super) decision: Option<String>,
}

impl Round {
    /// Bits a second on the wire; none for a round that took no time.
    pub(in super::super) fn bandwidth(&self) -> Option<f64> {
        self.each_second(self.wire_bytes.0 * 8.0)
    }

    /// Pages sent a second.
    pub(in super::super) fn send_rate(&self) -> Option<f64> {
        self.each_second(self.pages.0)
    }

    /// Whether the guest runs at the source.
    pub(in super::super) fn guest_runs(&self) -> bool {
        self.kind == "pre-copy"
    }

    fn each_second(&self, amount: f64) -> Option<f64> {
        // Reports are exact to the microsecond; less is no time to divide by.
        (self.duration_ms.0 >= 1e-3).then(|| amount / (self.duration_ms.0 / 1e3))
    }
}

/// What was expected.
#[derive(Clone, Copy, Debug, Deserialize)]
pub(in super::super) struct Predicted {
    pub(in super::super) total_ms: Figure,
    pub(in super::super) downtime_ms: Figure,
}

/// How the guest was slowed down.
#[derive(Clone, Copy, Debug, Deserialize)]
pub(in super::super) struct Throttle {
    pub(in super::super) lowest_share: Option<Figure>,
    pub(in super::super) time_ms: Option<Figure>,
}

/// The part after the handover of a post-copy migration.
#[derive(Clone, Debug, Deserialize)]
pub(in super::super) struct PostCopy {
    pub(in super::super) pages: Option<Figure>,
    pub(in super::super) faults: Option<Figure>,
    pub(in super::super) fault_us: Option<FaultTimes>,
    pub(in super::super) urgent_pages: Option<Figure>,
    pub(in super::super) bulk_pages: Option<Figure>,
    pub(in super::super) requests: Option<Figure>,
    pub(in super::super) lost_ms: Option<Figure>,
    #[serde(default)]
    pub(in super::super) threads: Vec<ThreadLoss>,
    pub(in super::super) recoveries: Option<Figure>,
    pub(in super::super) interrupted_ms: Option<Figure>,
    pub(in super::super) starved_ms: Option<Figure>,
}

/// What a thread of the guest lost to faults.
#[derive(Clone, Copy, Debug, Deserialize)]
pub(in super::super) struct ThreadLoss {
    pub(in super::super) thread: Figure,
    pub(in super::super) faults: Figure,
    pub(in super::super) lost_ms: Figure,
}

/// How long the guest waited for a page, in microseconds.
#[derive(Clone, Copy, Debug, Deserialize)]
pub(in super::super) struct FaultTimes {
    pub(in super::super) p50: Option<Figure>,
    pub(in super::super) p90: Option<Figure>,
    pub(in super::super) p99: Option<Figure>,
    pub(in super::super) max: Option<Figure>,
}
