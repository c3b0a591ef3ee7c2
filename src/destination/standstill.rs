//! Notices a session that brings nothing.
//!
//! A source that says that it is alive, and sends no pages, holds memory that others could use. An honest one waits
//! for a while before its first page at most, where others go before it, and not between rounds; and Commit follows Ready at
//! once.

use std::time::{Duration, Instant};

use crate::error::Error;

/// Since when nothing has come.
pub(super) struct Standstill {
    limit: Duration,
    frames: u64,
    since: Instant,
}

impl Standstill {
    /// Of a session that begins now, and is to bring something each `limit`.
    pub(super) fn new(limit: Duration) -> Self {
        Self { limit, frames: 0, since: Instant::now() }
    }

    /// So many `frames` have come so far. What is wrong, when there have been no more for too long.
    pub(super) fn look(&mut self, now: Instant, frames: u64) -> Option<Error> {
        if frames != self.frames {
            (self.frames, self.since) = (frames, now);
        }
        let limit = self.limit;
        (now.saturating_duration_since(self.since) > limit).then_some(Error::Standstill { limit })
    }
}
