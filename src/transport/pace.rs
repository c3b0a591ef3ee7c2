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
    judged: Option<Instant>,
    /// The least round-trip time since then, seconds.
    least: f64,
    /// Judgements in a row in which too much waited, and the least round-trip time in them.
    full: u32,
    least_full: f64,
    /// Judgements in a row in which nothing waited.
    free: u32,
    deliveries: Deliveries,
}

/// What arrived lately.
#[derive(Debug)]
struct Deliveries {
    last: Option<(Instant, u64)>,
    /// Bytes a second in the last few windows, the latest at the front.
    seen: [f64; WINDOWS],
    /// How many of these there were.
    counted: usize,
}

impl Pace {
    /// For a connection that has delivered so many bytes a second, as far as is known.
    pub(super) fn new(delivered: Option<f64>) -> Self {
        let rate: f64 = delivered.filter(|rate| *rate > 0.0).unwrap_or(FIRST).clamp(SLOWEST, FASTEST);
        Self {
            rate: Some(rate),
            found: false,
            base: 0.0,
            judged: None,
            least: f64::INFINITY,
            full: 0,
            least_full: f64::INFINITY,
            free: 0,
            // Taken for it until more is known.
            deliveries: Deliveries { last: None, seen: [rate; WINDOWS], counted: 0 },
        }
    }

    /// Bytes a second to send at; none is as fast as it goes.
    pub(super) fn rate(&self) -> Option<f64> {
        self.rate
    }

    /// Takes note of how the connection stands. Says whether the pace may have changed.
    pub(super) fn sample(&mut self, now: Instant, sample: PaceSample) -> bool {
        let PaceSample { acknowledged, round_trip, least_round_trip } = sample;
        let round_trip = round_trip.as_secs_f64();
        self.deliveries.sample(now, acknowledged, round_trip);
        // The least counts: a thread that waits for a processor makes some longer, and a queue makes all.
        self.least = self.least.min(round_trip);
        let judged = *self.judged.get_or_insert(now);
        if now.saturating_duration_since(judged).as_secs_f64() < INTERVAL.max(round_trip) {
            return false;
        }
        self.judged = Some(now);
        let least = std::mem::replace(&mut self.least, f64::INFINITY);
        self.judge(least, self.base.max(least_round_trip.as_secs_f64()));
        true
    }

    fn judge(&mut self, round_trip: f64, base: f64) {
        // One slice of data is on its way in any case.
        let target = TARGET + self.rate.map_or(0.0, |rate| SLICE / rate);
        self.base = self.base.min(round_trip);
        let surplus = (round_trip - base) / target;
        if surplus > 2.0 {
            self.full += 1;
            self.least_full = self.least_full.min(round_trip);
        } else {
            (self.full, self.least_full) = (0, f64::INFINITY);
        }
        if self.full >= PATIENCE {
            self.base = self.least_full;
            (self.full, self.least_full) = (0, f64::INFINITY);
            return;
        }
        self.free = if surplus < 0.5 { self.free + 1 } else { 0 };
        self.found |= surplus > 1.0;
        // What came at best is what the link carries, unless much goes on waiting: it carries less now.
        let delivered = if self.full < SURE * 3 { self.deliveries.at_best() } else { self.deliveries.latest() };
        let next = match self.rate {
            // As fast as it goes, until that is clearly too much.
            None if self.full < SURE => return,
            None => delivered,
            Some(rate) if surplus < 0.5 => {
                let step = match (self.found, self.free < SURE) {
                    (false, _) => FIRST_STEP,
                    (true, false) => SURE_STEP,
                    (true, true) => STEP,
                };
                // What is not used is not widened.
                (rate * step).min((delivered * FIRST_STEP).max(rate)).max(delivered)
            }
            // What waits is what is meant to, or a processor was busy for a moment.
            Some(rate) if surplus < 1.0 => rate.min(delivered * FIRST_STEP),
            Some(_) => delivered * (1.0 + GAIN * (1.0 - surplus)).max(if self.full < SURE { LEAST } else { LEAST_WHEN_FULL }),
        };
        self.rate = (next < FASTEST).then_some(next.max(SLOWEST));
    }
}

impl Deliveries {
    fn sample(&mut self, now: Instant, acknowledged: u64, round_trip: f64) {
        let (began, before) = *self.last.get_or_insert((now, acknowledged));
        let elapsed = now.saturating_duration_since(began).as_secs_f64();
        if elapsed >= WINDOW.max(round_trip) {
            self.last = Some((now, acknowledged));
            self.seen.rotate_right(1);
            self.seen[0] = acknowledged.saturating_sub(before) as f64 / elapsed;
            self.counted += 1;
            if self.counted == 1 {
                self.seen = [self.seen[0]; WINDOWS];
            }
        }
    }

    fn latest(&self) -> f64 {
        self.seen[0]
    }

    /// The second best of the last few windows: what had been held up comes at once.
    fn at_best(&self) -> f64 {
        let (_, second) = self.seen.iter().fold((0.0f64, 0.0f64), |(best, second), &rate| (best.max(rate), second.max(rate.min(best))));
        second
    }
}

/// Seconds that may wait on the way.
const TARGET: f64 = 0.3e-3;
/// Bytes that are sent at once by a slow connection.
const SLICE: f64 = 4096.0;
/// Seconds between two judgements at least.
const INTERVAL: f64 = 4e-3;
/// Seconds in which deliveries are counted at least, ...
const WINDOW: f64 = 8e-3;
/// ... and how many of these are remembered.
const WINDOWS: usize = 24;
/// By how much the pace is raised while nothing waits, ...
const STEP: f64 = 1.06;
/// ... while that is so for longer, ...
const SURE_STEP: f64 = 1.2;
/// ... and until the link was full for the first time.
const FIRST_STEP: f64 = 2.0;
/// How much a queue that is off by the whole target changes the pace, ...
const GAIN: f64 = 0.1;
/// ... down to this part of what was delivered, ...
const LEAST: f64 = 0.8;
/// ... and to this one when too much waits for longer.
const LEAST_WHEN_FULL: f64 = 0.5;
/// Judgements in a row that make longer.
const SURE: u32 = 4;
/// Judgements after which a queue that does not shrink is none.
const PATIENCE: u32 = 32;
/// Bytes a second to begin with.
const FIRST: f64 = 20e6;
/// Bytes a second at least.
const SLOWEST: f64 = 100e3;
/// Bytes a second that are not worth a limit.
const FASTEST: f64 = 2e9;
