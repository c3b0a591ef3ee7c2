//! Which method the next chunk is packed with.
//!
//! Compression pays where the link is the bottleneck and costs where the processor is, and neither is known in advance
//! or stays as it is. So a [`Chooser`] measures what each method costs and saves on the pages at hand, and how fast the
//! peer takes bytes, and picks the method with which the next chunk is there soonest. It does no input or output and
//! has no clock: time comes in as an argument.

use std::time::{Duration, Instant};

use super::Compression;

/// What to do with the pages of a chunk that have no cheaper form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Nothing.
    Raw,
    /// LZ4, page by page.
    Lz4,
    /// zstd at this level, all of them as one unit.
    Zstd(i32),
}

/// What a worker sees of its connection after a write.
#[derive(Clone, Copy, Debug)]
pub struct LinkSample {
    /// Bytes written since the connection began.
    pub written: u64,
    /// How many of them the peer's host has not acknowledged.
    pub unacknowledged: u64,
    /// Time spent in writes since the last sample.
    pub blocked: Duration,
    /// Bytes the peer's host has room for, where the system says.
    pub peer_window: Option<u64>,
}

/// Picks methods for one worker.
#[derive(Debug)]
pub struct Chooser {
    setting: Compression,
    tried: [Tried; LADDER.len()],
    last: Option<(Instant, u64)>,
    rate: f64,
}

/// What is known of a method.
#[derive(Clone, Copy, Debug)]
struct Tried {
    /// Seconds per plain byte.
    cost: f64,
    /// Packed bytes per plain byte.
    ratio: f64,
}

impl Chooser {
    /// A chooser for a worker; a fixed setting always answers the same.
    #[must_use]
    pub fn new(setting: Compression) -> Self {
        let tried = [
            Tried { cost: 0.0, ratio: 1.0 },
            Tried { cost: 1.6e-9, ratio: 0.5 },
            Tried { cost: 6e-9, ratio: 0.35 },
            Tried { cost: 8e-9, ratio: 0.33 },
        ];
        Self { setting, tried, last: None, rate: 1e9 }
    }

    /// The method for the next chunk.
    pub fn method(&mut self, _now: Instant) -> Method {
        match self.setting {
            Compression::None => Method::Raw,
            Compression::Lz4 => Method::Lz4,
            Compression::Zstd => FIXED_ZSTD,
            Compression::Auto => {
                let time = |tried: &Tried| tried.cost.max(tried.ratio / self.rate);
                let best = (0..LADDER.len()).min_by(|a, b| time(&self.tried[*a]).total_cmp(&time(&self.tried[*b])));
                LADDER[best.expect("the ladder is not empty")]
            }
        }
    }

    /// Takes note of what `method` made of the `plain_bytes` that were offered to it, and how long it took.
    pub fn encoded(&mut self, method: Method, plain_bytes: usize, packed_bytes: usize, took: Duration) {
        let Some(index) = LADDER.iter().position(|known| *known == method) else { return };
        if plain_bytes == 0 {
            return;
        }
        let plain = plain_bytes as f64;
        let tried = &mut self.tried[index];
        tried.cost += (took.as_secs_f64() / plain - tried.cost) / 4.0;
        tried.ratio += (packed_bytes as f64 / plain - tried.ratio) / 4.0;
    }

    /// Takes note of how the connection stands after a write.
    pub fn link(&mut self, now: Instant, sample: LinkSample) {
        let acknowledged = sample.written - sample.unacknowledged.min(sample.written);
        let (since, before) = *self.last.get_or_insert((now, acknowledged));
        let elapsed = now.saturating_duration_since(since);
        if elapsed >= Duration::from_millis(20) {
            let rate = (acknowledged.saturating_sub(before)) as f64 / elapsed.as_secs_f64();
            // With nothing under way the link could have taken more.
            let rate = if sample.unacknowledged == 0 { rate.max(self.rate * 1.2) } else { rate };
            self.rate += (rate - self.rate) / 4.0;
            self.last = Some((now, acknowledged));
        }
    }
}

/// The methods to choose from, from the fastest to the tightest.
const LADDER: [Method; 4] = [Method::Raw, Method::Lz4, Method::Zstd(1), Method::Zstd(3)];
/// The method of [`Compression::Zstd`].
const FIXED_ZSTD: Method = Method::Zstd(1);
