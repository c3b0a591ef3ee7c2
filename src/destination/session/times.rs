//! When what happened in a session.

use std::time::{Duration, Instant};

use crate::stats::{DowntimeParts, Report};

/// The times of a session and its guest, as far as they have come.
pub(super) struct Times {
    began: Instant,
    paused_at: Option<Instant>,
    running_at: Option<Instant>,
    pub(super) parts: DowntimeParts,
}

impl Times {
    /// Of a session that began then.
    pub(super) fn since(began: Instant) -> Self {
        Self { began, paused_at: None, running_at: None, parts: DowntimeParts::default() }
    }

    /// Commit has come `at` this time, for a guest that the source paused so long ago.
    pub(super) fn commit(&mut self, at: Instant, paused_for: Duration) {
        self.paused_at = Some(at.checked_sub(paused_for).unwrap_or(self.began));
    }

    /// The guest runs, after a Commit that came then.
    pub(super) fn run(&mut self, committed: Instant) {
        let running_at = Instant::now();
        self.running_at = Some(running_at);
        self.parts.resume = Some(running_at - committed);
    }

    /// Puts them into the `report` of a session that is over.
    pub(super) fn fill(&self, report: &mut Report, ended: Instant) {
        report.total = ended - self.began;
        if let Some(paused_at) = self.paused_at {
            report.preparation = paused_at.saturating_duration_since(self.began);
        }
        if let (Some(paused_at), Some(running_at)) = (self.paused_at, self.running_at) {
            report.downtime = running_at.saturating_duration_since(paused_at);
            report.resume = ended - running_at;
            report.downtime_parts = Some(self.parts);
        }
    }
}
