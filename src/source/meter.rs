//! A rate out of a counter that grows.

use std::time::Instant;

use crate::units::{ByteCount, BytesPerSec};

/// How a counter of bytes stood when it was last looked at.
pub(super) struct Meter {
    bytes: ByteCount,
    at: Instant,
}

impl Meter {
    /// The counter stands at `bytes` now.
    pub(super) fn from(bytes: ByteCount) -> Self {
        Self { bytes, at: Instant::now() }
    }

    /// It stands at `bytes` by now: the rate since the last look.
    pub(super) fn rate(&mut self, bytes: ByteCount) -> BytesPerSec {
        let now = Instant::now();
        let rate = BytesPerSec((bytes.0 - self.bytes.0) as f64 / (now - self.at).as_secs_f64());
        (self.bytes, self.at) = (bytes, now);
        rate
    }
}
