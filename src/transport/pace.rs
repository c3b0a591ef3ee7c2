//! How fast a bulk connection may send so that the link's queue stays short.
//!
//! TCP sends until something is lost, so it fills the queues on its way, and what is urgent waits behind that: 50 ms in
//! a common shaper. Here the round-trip time says how much waits: what it is above its best is queueing. The pace is set
//! from what was just delivered, a little above it while nothing waits, and below while too much does; so it finds a
//! link's rate from either side, and several connections that share a link come to share it, each steering by the same
//! queue (in the manner of TCP Vegas and Copa, <https://www.usenix.org/conference/nsdi18/presentation/arun>).
//!
//! Pure: samples come in with their time. A path whose best round-trip time has grown looks like a queue that does not
//! shrink whatever is done; after a while that is taken for the path.

use std::time::{Duration, Instant};

/// How a connection stands.
#[derive(Clone, Copy, Debug)]
pub(super) struct PaceSample {
    /// Bytes that have arrived since the connection began.
    pub(super) acknowledged: u64,
    /// Round-trip time now.
    pub(super) round_trip: Duration,
    /// Round-trip time at its best.
    pub(super) least_round_trip: Duration,
}

/// Steers one connection.
#[derive(Debug)]
pub(super) struct Pace {
    /// Bytes a second; none is as fast as it goes.
    rate: Option<f64>,
    /// Whether the link has ever been seen to be full.
    found: bool,
    /// Round-trip time of the path itself, seconds, where that has grown.
    base: f64,
    last: Option<(Instant, u64)>,
    /// Judgements in a row in which too much waited, and the least round-trip time in them.
    full: u32,
    least_full: f64,
    /// What was delivered at best lately, bytes a second.
    best: f64,
}

impl Pace {
    /// For a connection that has delivered so many bytes a second, as far as is known.
    pub(super) fn new(delivered: Option<f64>) -> Self {
        let rate = delivered.filter(|rate| *rate > 0.0).unwrap_or(FIRST).clamp(SLOWEST, FASTEST);
        Self { rate: Some(rate), found: false, base: 0.0, last: None, full: 0, least_full: f64::INFINITY, best: 0.0 }
    }

    /// Bytes a second to send at; none is as fast as it goes.
    pub(super) fn rate(&self) -> Option<f64> {
        self.rate
    }

    /// Takes note of how the connection stands. Says whether the pace may have changed.
    pub(super) fn sample(&mut self, now: Instant, sample: PaceSample) -> bool {
        let PaceSample { acknowledged, round_trip, least_round_trip } = sample;
        let (began, before) = *self.last.get_or_insert((now, acknowledged));
        let elapsed = now.saturating_duration_since(began).as_secs_f64();
        let round_trip = round_trip.as_secs_f64();
        if elapsed < INTERVAL.max(round_trip) {
            return false;
        }
        self.last = Some((now, acknowledged));
        let delivered = acknowledged.saturating_sub(before) as f64 / elapsed;
        self.best = (self.best * BEST_KEPT.powf(elapsed)).max(delivered);
        let delay = round_trip - self.base.max(least_round_trip.as_secs_f64());
        self.judge(delivered, delay, round_trip);
        true
    }

    fn judge(&mut self, delivered: f64, delay: f64, round_trip: f64) {
        // One step of data is on its way in any case.
        let target = TARGET + self.rate.map_or(0.0, |rate| SLICE / rate);
        let surplus = delay / target;
        if surplus > 2.0 {
            self.full += 1;
            self.least_full = self.least_full.min(round_trip);
            if self.full >= PATIENCE {
                self.base = self.least_full;
                (self.full, self.least_full) = (0, f64::INFINITY);
                return;
            }
        } else {
            (self.full, self.least_full) = (0, f64::INFINITY);
        }
        self.found |= surplus > 1.0;
        let next = match self.rate {
            // As fast as it goes, until that is clearly too much.
            None if self.full < SURE => return,
            None => delivered,
            Some(rate) if surplus < 0.5 => {
                let step = if self.found { STEP } else { FIRST_STEP };
                // What is not used is not widened.
                (rate * step).min(delivered * FIRST_STEP).max(rate.min(delivered * STEP)).max(SLOWEST)
            }
            Some(_) => (delivered * (1.0 + GAIN * (1.0 - surplus)).max(LEAST)).max(self.best * FLOOR),
        };
        self.rate = (next < FASTEST).then_some(next.max(SLOWEST));
    }
}

/// Seconds that may wait on the way.
const TARGET: f64 = 0.4e-3;
/// Bytes that are sent at once by a slow connection.
const SLICE: f64 = 4096.0;
/// Seconds between two judgements at least.
const INTERVAL: f64 = 4e-3;
/// By how much the pace is raised while nothing waits, ...
const STEP: f64 = 1.1;
/// ... and until the link was full for the first time.
const FIRST_STEP: f64 = 2.0;
/// How much a queue that is off by the whole target changes the pace, ...
const GAIN: f64 = 0.15;
/// ... down to this part of what was delivered, ...
const LEAST: f64 = 0.5;
/// ... and of the best lately.
const FLOOR: f64 = 0.3;
/// What is left of the best after a second.
const BEST_KEPT: f64 = 0.1;
/// Judgements after which a queue that does not shrink is none.
const PATIENCE: u32 = 60;
/// Judgements in a row before one that sends as fast as it goes is slowed down.
const SURE: u32 = 3;
/// Bytes a second to begin with.
const FIRST: f64 = 20e6;
/// Bytes a second at least.
const SLOWEST: f64 = 100e3;
/// Bytes a second that are not worth a limit.
const FASTEST: f64 = 2e9;
