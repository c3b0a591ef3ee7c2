//! What a migration is allowed to cost.
//!
//! The limits are plain values that may be replaced while a migration runs; nothing is derived from them in advance.

use std::time::Duration;

use crate::units::{ByteCount, PageCount};

/// Rounds that can be told apart on the wire: [`Limits::max_rounds`] beyond it counts as this many.
pub const MAX_ROUNDS: u32 = 65_000;

/// The thresholds of pre-copy, and what to do when it runs into one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// `n_th`: pre-copy rounds, round 0 included. 0 is the cold migration: pause, copy, hand over.
    pub max_rounds: u32,
    /// `v_th`: memory moved in pre-copy; the round that passes it is the last.
    pub max_volume: VolumeLimit,
    /// `p_th`: at or under this many dirty pages the guest is stopped.
    pub dirty_threshold: PageCount,
    /// The guest is stopped as soon as it is expected to stand still no longer than this. Zero never stops it.
    pub downtime_limit: Duration,
    /// Wall clock for all of pre-copy.
    pub timeout: Option<Duration>,
    /// Whether to watch for rounds that stopped helping.
    pub plateau: Plateau,
    /// What to do at a limit: too many rounds, too much volume, too late, or a plateau.
    pub on_limit: OnLimit,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_rounds: 30,
            max_volume: VolumeLimit::Times(10.0),
            dirty_threshold: PageCount(50),
            downtime_limit: Duration::from_millis(300),
            timeout: None,
            plateau: Plateau::Watch,
            on_limit: OnLimit::Stop,
        }
    }
}

/// `v_th`, absolute or by the size of the guest.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum VolumeLimit {
    /// So many bytes of guest memory.
    Bytes(ByteCount),
    /// So many times the guest's memory.
    Times(f64),
}

impl VolumeLimit {
    /// The limit for a guest of this size.
    #[must_use]
    pub fn for_guest(self, memory: ByteCount) -> ByteCount {
        match self {
            Self::Bytes(bytes) => bytes,
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates, and negative limits allow nothing")]
            Self::Times(times) => ByteCount((memory.0 as f64 * times) as u64),
        }
    }
}

/// What to do when pre-copy runs into a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum OnLimit {
    /// Stop the guest and copy the rest, however long that takes.
    Stop,
    /// Slow the guest down until the rest fits. Where it cannot be, or that does not help, stop it as above.
    Throttle,
    /// Give up; the guest runs on at the source.
    Abort,
}

/// Whether rounds that stopped helping count as a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plateau {
    /// From round 3 on, two rounds in a row that each left over 90 % of what the one before left are a limit.
    Watch,
    /// Go on to the other limits, as the plain algorithm does.
    Ignore,
}
