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
        let (round_trip, base) = (round_trip.as_secs_f64(), self.base.max(least_round_trip.as_secs_f64()));
        self.deliveries.sample(now, acknowledged, base);
        // The least counts: a thread that waits for a processor makes some longer, and a queue makes all.
        self.least = self.least.min(round_trip);
        let judged = *self.judged.get_or_insert(now);
        if now.saturating_duration_since(judged).as_secs_f64() < INTERVAL.max(base) {
            return false;
        }
        self.judged = Some(now);
        let least = std::mem::replace(&mut self.least, f64::INFINITY);
        self.judge(least, base);
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
        let best = self.deliveries.at_best();
        let delivered = if self.full < SURE { best } else { self.deliveries.latest().max(best / 4.0) };
        let next = match self.rate {
            // As fast as it goes, until that is clearly too much.
            None if self.full < SURE => return,
            None => delivered,
            Some(rate) if surplus < 0.5 => {
                let step = match (self.found, self.free < 2 * SURE) {
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
    fn sample(&mut self, now: Instant, acknowledged: u64, base: f64) {
        let (began, before) = *self.last.get_or_insert((now, acknowledged));
        let elapsed = now.saturating_duration_since(began).as_secs_f64();
        if elapsed >= WINDOW.max(base) {
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
const STEP: f64 = 1.04;
/// ... while that is so for longer, ...
const SURE_STEP: f64 = 1.1;
/// ... and until the link was full for the first time.
const FIRST_STEP: f64 = 2.0;
/// How much a queue that is off by the whole target changes the pace, ...
const GAIN: f64 = 0.1;
/// ... down to this part of what was delivered, ...
const LEAST: f64 = 0.88;
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A link with a queue, and what connections that share it see.
    struct Link {
        /// Bytes a second.
        rate: f64,
        /// Seconds there and back without a queue.
        round_trip: f64,
        least_round_trip: f64,
        /// What each connection has waiting, bytes.
        waiting: Vec<f64>,
        acknowledged: Vec<f64>,
        began: Instant,
        now: f64,
    }

    impl Link {
        fn new(rate: f64, connections: usize) -> Self {
            let waiting = vec![0.0; connections];
            Self { rate, round_trip: 2e-4, least_round_trip: 2e-4, acknowledged: waiting.clone(), waiting, began: Instant::now(), now: 0.0 }
        }

        /// Seconds that what is sent now has to wait.
        fn delay(&self) -> f64 {
            self.waiting.iter().sum::<f64>() / self.rate
        }

        /// Has connections send as they may, though no faster than `source`; answers what arrived in bytes a second and
        /// the longest delay.
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bytes, fewer than 2^53")]
        fn run(&mut self, paces: &mut [Pace], source: f64, seconds: f64) -> (f64, f64) {
            let (until, before, mut longest) = (self.now + seconds, self.acknowledged.iter().sum::<f64>(), 0.0f64);
            while self.now < until {
                self.now += TICK;
                for (waiting, pace) in self.waiting.iter_mut().zip(&*paces) {
                    *waiting += pace.rate().unwrap_or(source).min(source) * TICK;
                }
                let all = self.waiting.iter().sum::<f64>();
                let share = if all > 0.0 { (self.rate * TICK / all).min(1.0) } else { 0.0 };
                for (waiting, acknowledged) in self.waiting.iter_mut().zip(&mut self.acknowledged) {
                    *acknowledged += *waiting * share;
                    *waiting -= *waiting * share;
                }
                let round_trip = self.round_trip + self.delay();
                longest = longest.max(self.delay());
                for (pace, &acknowledged) in paces.iter_mut().zip(&self.acknowledged) {
                    let sample = PaceSample {
                        acknowledged: acknowledged as u64,
                        round_trip: Duration::from_secs_f64(round_trip),
                        least_round_trip: Duration::from_secs_f64(self.least_round_trip),
                    };
                    pace.sample(self.began + Duration::from_secs_f64(self.now), sample);
                }
            }
            ((self.acknowledged.iter().sum::<f64>() - before) / seconds, longest)
        }
    }

    fn paces(connections: usize) -> Vec<Pace> {
        (0..connections).map(|_| Pace::new(None)).collect()
    }

    #[test]
    fn a_link_is_found_and_filled_and_its_queue_stays_short() {
        for (rate, connections) in [(12.5e6, 1), (12.5e6, 2), (125e6, 1), (125e6, 2), (125e6, 4), (1.25e9, 1), (1.25e9, 4)] {
            let (mut link, mut paces) = (Link::new(rate, connections), paces(connections));
            link.run(&mut paces, 3e9, 1.0);
            let (arrived, longest) = link.run(&mut paces, 3e9, 2.0);
            // Each has a slice on its way.
            let most = 1e-3 + SLICE * connections as f64 * connections as f64 / rate;
            assert!(arrived > 0.95 * rate && longest < most, "{arrived} of {rate} by {connections}, at most {longest} s");
        }
    }

    #[test]
    fn a_link_that_changes_is_followed() {
        let (mut link, mut paces) = (Link::new(125e6, 2), paces(2));
        link.run(&mut paces, 3e9, 1.0);
        for rate in [30e6, 125e6, 60e6, 300e6] {
            link.rate = rate;
            link.run(&mut paces, 3e9, 1.0);
            let (arrived, longest) = link.run(&mut paces, 3e9, 1.0);
            assert!(arrived > 0.95 * rate && longest < 1.5e-3, "{arrived} of {rate}, at most {longest} s");
        }
    }

    #[test]
    fn what_was_queued_before_is_drained_soon() {
        let mut link = Link::new(125e6, 1);
        link.waiting[0] = 0.05 * link.rate;
        let mut paces = [Pace::new(Some(125e6))];
        link.run(&mut paces, 3e9, 0.4);
        let (arrived, longest) = link.run(&mut paces, 3e9, 1.0);
        assert!(arrived > 0.95 * link.rate && longest < 1.5e-3, "{arrived}, at most {longest} s");
    }

    #[test]
    fn without_a_bottleneck_there_is_no_limit() {
        let (mut link, mut paces) = (Link::new(1e11, 1), paces(1));
        let (first, _) = link.run(&mut paces, 3e9, 0.5);
        assert_eq!(paces[0].rate(), None, "{first}");
        assert!(link.run(&mut paces, 3e9, 1.0).0 > 2.99e9);
    }

    #[test]
    fn a_source_that_is_slower_than_the_link_is_not_held_up() {
        let (mut link, mut paces) = (Link::new(1.25e9, 1), paces(1));
        link.run(&mut paces, 200e6, 1.0);
        assert!(link.run(&mut paces, 200e6, 1.0).0 > 199e6);
        let (arrived, _) = link.run(&mut paces, 1e9, 0.5);
        assert!(arrived > 0.8e9, "{arrived}: and may be faster soon");
    }

    #[test]
    fn a_path_that_has_grown_is_not_taken_for_a_queue() {
        let (mut link, mut paces) = (Link::new(125e6, 2), paces(2));
        link.run(&mut paces, 3e9, 1.0);
        link.round_trip = 10e-3;
        link.run(&mut paces, 3e9, 2.0);
        let (arrived, longest) = link.run(&mut paces, 3e9, 1.0);
        assert!(arrived > 0.9 * link.rate && longest < 3e-3, "{arrived}, at most {longest} s");
        link.round_trip = 2e-4;
        link.run(&mut paces, 3e9, 1.0);
        let (arrived, longest) = link.run(&mut paces, 3e9, 1.0);
        assert!(arrived > 0.95 * link.rate && longest < 1.5e-3, "{arrived}, at most {longest} s, on the short path again");
    }

    /// Seconds.
    const TICK: f64 = 1e-4;
}
