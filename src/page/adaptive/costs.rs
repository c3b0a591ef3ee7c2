//! What a method costs and saves on the pages of late.

use std::time::Instant;

/// One method, as measured over the last few chunks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Costs {
    /// Per plain byte.
    seconds: f64,
    /// Packed bytes per plain byte.
    ratio: f64,
    /// Plain bytes that this rests on, as far as it matters.
    seen: f64,
    used: Option<Instant>,
}

impl Costs {
    /// What to assume of a method that was never used.
    pub(super) const fn prior(seconds: f64, ratio: f64) -> Self {
        Self { seconds, ratio, seen: 0.0, used: None }
    }

    /// Takes note of one chunk; by what factor the expected ratio changed.
    pub(super) fn learn(&mut self, plain: f64, packed: f64, took: f64) -> f64 {
        let ratio = packed / plain;
        // A thread that lost its processor for a while says nothing about the method, nor does a first use that has tables
        // to make.
        let seconds = (took / plain).min(OUTLIER * self.seconds.max(FREE));
        // To begin with, all that was seen counts alike, and some more for what was assumed.
        let at_first = if self.is_known() { 0.0 } else { plain / (PRIOR_BYTES + self.seen + plain) };
        let weight = at_first.max(WEIGHT * (plain / FULL_WEIGHT_BYTES).min(1.0));
        self.seen = (self.seen + plain).min(ENOUGH);
        let before = self.ratio;
        self.seconds += (seconds - self.seconds) * weight;
        self.ratio = (self.ratio + (ratio - self.ratio) * weight).max(LEAST_RATIO);
        self.ratio / before
    }

    /// Expects that the ratio changed as that of a similar method did.
    pub(super) fn scale(&mut self, change: f64) {
        self.ratio = (self.ratio * change).clamp(LEAST_RATIO, 1.0);
    }

    pub(super) fn seconds(&self) -> f64 {
        self.seconds
    }

    pub(super) fn ratio(&self) -> f64 {
        self.ratio
    }

    pub(super) fn is_known(&self) -> bool {
        self.seen >= ENOUGH
    }

    pub(super) fn use_at(&mut self, now: Instant) {
        self.used = Some(now);
    }

    /// Seconds since it was last used.
    pub(super) fn unused_for(&self, now: Instant) -> f64 {
        self.used.map_or(f64::INFINITY, |used| now.saturating_duration_since(used).as_secs_f64())
    }
}

/// What a chunk counts for against all before it ...
const WEIGHT: f64 = 0.3;
/// ... if it has so many plain bytes.
const FULL_WEIGHT_BYTES: f64 = 65536.0;
/// What was assumed counts for as much as so many plain bytes, ...
const PRIOR_BYTES: f64 = 16384.0;
/// ... and no more once so many were seen.
const ENOUGH: f64 = 65536.0;
/// What compression leaves at least.
const LEAST_RATIO: f64 = 1e-3;
/// A chunk counts for at most so many times the cost expected, ...
const OUTLIER: f64 = 3.0;
/// ... which is taken to be this at least.
const FREE: f64 = 0.2e-9;
