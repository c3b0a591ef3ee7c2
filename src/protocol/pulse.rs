//! Heartbeats out, silence in.
//!
//! A connection can be dead without being closed: a cable pulled, a host gone. So each end says something at least
//! every [`Timeouts::heartbeat`], and takes a peer for lost that it has not heard for [`Timeouts::silence`].

use std::time::{Duration, Instant};

use super::Timeouts;

/// When to speak next, and when the peer was last heard.
#[derive(Clone, Debug)]
pub(super) struct Pulse {
    heartbeat: Duration,
    silence: Duration,
    next_beat: Instant,
    heard: Instant,
}

impl Pulse {
    pub(super) fn new(now: Instant, timeouts: &Timeouts) -> Self {
        Self { heartbeat: timeouts.heartbeat, silence: timeouts.silence, next_beat: after(now, timeouts.heartbeat), heard: now }
    }

    /// Bytes came from the peer.
    pub(super) fn heard(&mut self, now: Instant) {
        self.heard = self.heard.max(now);
    }

    /// When the peer counts as lost if nothing is heard from it.
    pub(super) fn silent_at(&self) -> Instant {
        after(self.heard, self.silence)
    }

    pub(super) fn next_beat(&self) -> Instant {
        self.next_beat
    }

    /// Whether a heartbeat is due; if so the next one is set. Beats that were missed are not made up for.
    pub(super) fn beat(&mut self, now: Instant) -> bool {
        let due = now >= self.next_beat;
        if due {
            self.next_beat = after(now, self.heartbeat);
        }
        due
    }
}

/// `now + delay`, where a delay too long for the clock means a hundred years.
pub(super) fn after(now: Instant, delay: Duration) -> Instant {
    const CENTURY: Duration = Duration::from_secs(100 * 365 * 24 * 3600);
    now.checked_add(delay).unwrap_or_else(|| now + CENTURY)
}
