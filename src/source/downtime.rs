//! The guest's downtime as the source measures it, part by part from the last pause on.

use std::time::{Duration, Instant};

use crate::stats::{DowntimeParts, Laps, Report};

/// The time since the guest was paused for the last time. The parts follow one another without a gap.
#[derive(Clone, Copy, Debug)]
pub(super) struct Downtime {
    pub(super) paused_at: Instant,
    pub(super) parts: DowntimeParts,
    laps: Laps,
}

impl Downtime {
    /// Begins when the guest is told to stop: it may run a little longer, but not for longer than that.
    pub(super) fn from(paused_at: Instant) -> Self {
        Self { paused_at, parts: DowntimeParts::default(), laps: Laps::from(paused_at) }
    }

    /// A part is over, which took so long.
    pub(super) fn lap(&mut self) -> Option<Duration> {
        self.laps.end(Instant::now())
    }

    /// Puts it into the `report` of a guest that the destination has `running` since then, and that was served from here until
    /// it `ended`.
    pub(super) fn fill(mut self, report: &mut Report, running: Instant, ended: Instant) {
        self.parts.run = self.laps.end(running);
        report.downtime_parts = Some(self.parts);
        report.downtime = running - self.paused_at;
        report.resume = ended - running;
    }
}
