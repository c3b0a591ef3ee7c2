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
    /// `p_th`: so few dirty pages that the guest is stopped.
    pub dirty_threshold: DirtyThreshold,
    /// The longest that the guest may be expected to stand still when it is stopped; rounds that shorten it go on while they
    /// are cheap. Zero never stops it.
    pub downtime_limit: Duration,
    /// Wall clock for all of pre-copy, but for what a guest of a fleet waits for others.
    pub timeout: Option<Duration>,
    /// Whether to watch for rounds that stopped helping.
    pub plateau: Plateau,
    /// What to do at a limit: too many rounds, too much volume, too late, or a plateau.
    pub on_limit: OnLimit,
    /// Whether and when the guest moves before its memory does.
    pub post_copy: PostCopy,
}

impl Limits {
    /// Whether these limits can lead to post-copy, so that the destination has to be asked for it.
    #[must_use]
    pub fn allow_post_copy(&self) -> bool {
        self.post_copy != PostCopy::Never || self.on_limit == OnLimit::PostCopy
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_rounds: 30,
            max_volume: VolumeLimit::Times(10.0),
            dirty_threshold: DirtyThreshold::Few,
            downtime_limit: Duration::from_millis(300),
            timeout: None,
            plateau: Plateau::Watch,
            on_limit: OnLimit::Stop,
            post_copy: PostCopy::Never,
        }
    }
}

/// `p_th`, as asked for or by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DirtyThreshold {
    /// At or under so many, whatever they take.
    Pages(PageCount),
    /// At or under 50, where the link takes no longer for them than [`Limits::downtime_limit`]: on a very slow one it would.
    Few,
}

impl DirtyThreshold {
    /// The most that it can be.
    #[must_use]
    pub fn pages(self) -> PageCount {
        match self {
            Self::Pages(pages) => pages,
            Self::Few => PageCount(50),
        }
    }

    /// Whether `dirty` pages, which take so long on the link, are that few.
    pub(super) fn admits(self, dirty: PageCount, remainder: Duration, downtime_limit: Duration) -> bool {
        dirty <= self.pages() && (self != Self::Few || remainder <= downtime_limit)
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
    /// Stop the guest and copy the rest, however long that takes. Where [`Limits::post_copy`] is not
    /// [`Never`](PostCopy::Never) the guest is moved at once instead, and the rest follows it.
    Stop,
    /// Run the guest at the destination at once; the rest follows it.
    PostCopy,
    /// Slow the guest down until the rest fits. Where it cannot be, or that does not help, stop it as above.
    Throttle,
    /// Give up; the guest runs on at the source.
    Abort,
}

/// When to run the guest at the destination before its memory is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PostCopy {
    /// Not for its own sake; [`OnLimit::PostCopy`] still does at a limit.
    Never,
    /// As soon as it can be seen that rounds will not meet [`Limits::downtime_limit`], and at any limit, whatever
    /// [`Limits::on_limit`] says. A guest that converges is moved by pre-copy alone.
    Auto,
    /// After exactly so many rounds, whatever they leave; earlier only if a limit comes first. With 0 nothing is sent
    /// before the guest moves.
    After(u32),
}

/// Whether rounds that stopped helping count as a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plateau {
    /// From round 3 on, two rounds in a row are a limit that each left over 90 % of the least before.
    Watch,
    /// Go on to the other limits, as the plain algorithm does.
    Ignore,
}
