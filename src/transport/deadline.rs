//! By when something must have happened, and how long that was to begin with.
//!
//! A peer that sends a byte now and then defeats a limit on each wait. So what strangers may take is one deadline for all
//! they have to say, however many waits that takes; the limit goes along for the words of the error.

use std::time::{Duration, Instant};

/// A point in time, and the time that there was until then.
#[derive(Clone, Copy, Debug)]
pub struct Deadline {
    until: Instant,
    limit: Duration,
}

impl Deadline {
    /// `limit` from now on.
    #[must_use]
    pub fn within(limit: Duration) -> Self {
        Self { until: Instant::now() + limit, limit }
    }

    /// How long it was.
    #[must_use]
    pub fn limit(self) -> Duration {
        self.limit
    }

    /// How long it still is; `None` once it has passed.
    #[must_use]
    pub fn left(self) -> Option<Duration> {
        self.until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())
    }
}
