//! What can be decided after a round, and for which reasons.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::units::{BytesPerSec, PagesPerSec, RunShare};

/// What to do next, why, and the numbers behind it.
#[derive(Clone, Copy, Debug, PartialEq)]
#[must_use]
pub struct Verdict {
    /// What to do.
    pub decision: Decision,
    /// Why.
    pub reason: Reason,
    /// How long the guest would stand still if it were stopped now and the rest copied; [`Duration::MAX`] while no rate
    /// is known.
    pub expected_downtime: Duration,
    /// Pages dirtied a second, smoothed.
    pub dirty_rate: PagesPerSec,
    /// Pages moved a second when sent again, smoothed.
    pub page_rate: PagesPerSec,
    /// Bytes on the wire a second, smoothed.
    pub bandwidth: BytesPerSec,
    /// How much of the time the guest may run.
    pub share: RunShare,
}

impl fmt::Display for Verdict {
    /// As in a report: `stop-and-copy: downtime-limit`, `throttle to 40 %: plateau`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.decision {
            Decision::Throttle => write!(f, "throttle to {}: {}", self.share, self.reason),
            decision => write!(f, "{decision}: {}", self.reason),
        }
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
    /// Stop the guest, run it at the destination, and let the rest follow.
    PostCopy,
    /// Slow the guest down to [`Verdict::share`], then another round.
    Throttle,
    /// Give up; the guest runs on at the source.
    Abort,
}

impl Decision {
    /// Whether another round follows.
    #[must_use]
    pub fn goes_on(self) -> bool {
        matches!(self, Self::Round | Self::Throttle)
    }
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Round => "round",
            Self::StopAndCopy => "stop-and-copy",
            Self::PostCopy => "post-copy",
            Self::Throttle => "throttle",
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
    /// [`SAMPLE_PAGES`](super::SAMPLE_PAGES) of the dirty pages go first, to see what pages cost that were sent before.
    Sampling,
    /// The rest fits in the downtime limit, and one more short round makes it fit better at little cost.
    Tightening,
    /// No limit can be met and the rounds leave now more, now less: waiting for one that leaves little.
    Oscillating,
    /// At or under [`Limits::dirty_threshold`](super::Limits::dirty_threshold).
    DirtyThreshold,
    /// The rest fits in [`Limits::downtime_limit`](super::Limits::downtime_limit).
    DowntimeLimit,
    /// [`Limits::max_rounds`](super::Limits::max_rounds) are done.
    MaxRounds,
    /// More than [`Limits::max_volume`](super::Limits::max_volume) was moved.
    MaxVolume,
    /// [`Limits::timeout`](super::Limits::timeout) has passed.
    Timeout,
    /// Rounds stopped helping: [`Plateau::Watch`](super::Plateau::Watch).
    Plateau,
    /// Rounds stopped helping, and this one left about as little as any: [`Plateau::Watch`](super::Plateau::Watch).
    LocalMinimum,
    /// The guest was paused, and what was left then turned out too much for [`Limits::downtime_limit`](super::Limits::downtime_limit).
    OverBudget,
    /// The guest dirties pages so fast that no number of rounds will meet [`Limits::downtime_limit`](super::Limits::downtime_limit).
    NotConverging,
    /// [`PostCopy::After`](super::PostCopy::After) says so: that many rounds, then post-copy.
    AsAsked,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Converging => "converging",
            Self::Sampling => "sampling",
            Self::Tightening => "tightening",
            Self::Oscillating => "oscillating",
            Self::DirtyThreshold => "dirty-threshold",
            Self::DowntimeLimit => "downtime-limit",
            Self::MaxRounds => "max-rounds",
            Self::MaxVolume => "max-volume",
            Self::Timeout => "timeout",
            Self::Plateau => "plateau",
            Self::LocalMinimum => "local-minimum",
            Self::OverBudget => "over-budget",
            Self::NotConverging => "not-converging",
            Self::AsAsked => "as-asked",
        })
    }
}
