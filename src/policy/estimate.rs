//! How fast memory moves and how fast the guest dirties it, from the rounds so far.
//!
//! Rates of pages are compared with rates of pages: a page that went as eight bytes or compressed well counts as one
//! page moved, so the remaining time is that of the wire as it is. Each round replaces the estimate in proportion to
//! its length, because a round of a few milliseconds mostly measures latency: after 100 ms it counts half.

use std::time::Duration;

use super::RoundFacts;
use crate::units::{ByteCount, BytesPerSec, PageCount, PagesPerSec};

/// Smoothed rates; nothing is known before the first round.
#[derive(Clone, Copy, Debug, Default)]
pub struct Estimator {
    page_rate: Smoothed,
    dirty_rate: Smoothed,
    bandwidth: Smoothed,
}

impl Estimator {
    /// Takes in a round.
    pub fn observe(&mut self, facts: &RoundFacts) {
        // A round that moved nothing says nothing about the link.
        if facts.pages > PageCount(0) {
            self.page_rate.add(facts.pages.0, facts.duration);
        }
        if facts.wire_bytes > ByteCount(0) {
            self.bandwidth.add(facts.wire_bytes.0, facts.duration);
        }
        self.dirty_rate.add(facts.dirty_after.0, facts.duration);
    }

    /// Pages moved a second, in whatever encoding they went.
    #[must_use]
    pub fn page_rate(&self) -> PagesPerSec {
        PagesPerSec(self.page_rate.value())
    }

    /// Distinct pages dirtied a second. A guest that comes back to the same pages shows less in long rounds.
    #[must_use]
    pub fn dirty_rate(&self) -> PagesPerSec {
        PagesPerSec(self.dirty_rate.value())
    }

    /// Bytes on the wire a second.
    #[must_use]
    pub fn bandwidth(&self) -> BytesPerSec {
        BytesPerSec(self.bandwidth.value())
    }

    /// How long it takes to move `pages`; [`Duration::MAX`] while no rate is known.
    #[must_use]
    pub fn time_for(&self, pages: PageCount) -> Duration {
        self.page_rate().time_for(pages)
    }
}

/// A moving average weighted by time.
#[derive(Clone, Copy, Debug, Default)]
struct Smoothed(Option<f64>);

impl Smoothed {
    fn add(&mut self, amount: u64, duration: Duration) {
        let seconds = duration.as_secs_f64().max(SHORTEST_SECONDS);
        let rate = amount as f64 / seconds;
        self.0 = Some(match self.0 {
            None => rate,
            Some(before) => before + (rate - before) * (seconds / (seconds + HALF_WEIGHT_SECONDS)),
        });
    }

    fn value(self) -> f64 {
        self.0.unwrap_or(0.0)
    }
}

/// A round of this length counts as much as all before it.
const HALF_WEIGHT_SECONDS: f64 = 0.1;
/// No round is shorter than the clock can tell.
const SHORTEST_SECONDS: f64 = 1e-6;

#[cfg(test)]
mod tests {
    use super::*;

    fn round(millis: u64, pages: u64, dirty: u64) -> RoundFacts {
        RoundFacts {
            index: 0,
            elapsed: Duration::from_secs(1),
            duration: Duration::from_millis(millis),
            pages: PageCount(pages),
            wire_bytes: PageCount(pages).bytes(),
            memory_sent_total: ByteCount(0),
            dirty_after: PageCount(dirty),
            fixed_cost: Duration::ZERO,
        }
    }

    #[test]
    fn nothing_is_known_at_first() {
        let estimator = Estimator::default();
        assert_eq!(estimator.time_for(PageCount(1)), Duration::MAX);
        assert_eq!(estimator.time_for(PageCount(0)), Duration::ZERO);
    }

    #[test]
    fn the_first_round_is_taken_as_it_is_and_later_ones_by_their_length() {
        let mut estimator = Estimator::default();
        estimator.observe(&round(1000, 10_000, 1000));
        assert_eq!((estimator.page_rate(), estimator.dirty_rate()), (PagesPerSec(10_000.0), PagesPerSec(1000.0)));
        estimator.observe(&round(100, 2000, 300));
        assert_eq!((estimator.page_rate(), estimator.dirty_rate()), (PagesPerSec(15_000.0), PagesPerSec(2000.0)), "100 ms count half");
        estimator.observe(&round(0, 1, 0));
        assert!((estimator.page_rate().0 - 15_000.0).abs() < 15.0, "an instant counts nearly nothing");
    }

    #[test]
    fn an_empty_round_leaves_the_rate_of_the_link_alone() {
        let mut estimator = Estimator::default();
        estimator.observe(&round(1000, 10_000, 1000));
        estimator.observe(&round(1000, 0, 1000));
        assert_eq!(estimator.page_rate(), PagesPerSec(10_000.0));
    }
}
