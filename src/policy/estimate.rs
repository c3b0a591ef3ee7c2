//! How fast memory moves and how fast the guest dirties it, from the rounds so far.
//!
//! What is left will be sent in rounds after the first, and pages that were sent before cost something else than pages
//! that were not: a difference, or a bit that says "unchanged". So what a page costs on the wire is taken from the rounds
//! that resent pages as soon as there is one; until then it is what round 0 told, its zero pages left out.
//!
//! A round is as long as its slower half: the bytes on the link, or the pages through the processors. Which one it was
//! is known of each round ([`Bottleneck`]), so both rates are estimated apart: the one that was the bottleneck is
//! measured, of the other it is known that it is at least so much. That way a round of which little remains after
//! encoding does not make the link look slow, and the first bulky round does not make the processors look slow.
//!
//! Each round replaces the rates in proportion to its length, because a round of a few milliseconds mostly measures
//! latency: after 100 ms it counts half. What pages cost is replaced in proportion to the number of pages.

use std::time::Duration;

use super::{Bottleneck, RoundFacts};
use crate::units::{ByteCount, BytesPerSec, PageCount, PagesPerSec};

/// Smoothed rates; nothing is known before the first round.
#[derive(Clone, Copy, Debug, Default)]
pub struct Estimator {
    /// Bytes a second on the link.
    link: Rate,
    /// Bytes that told it.
    arrived: u64,
    dirty: Rate,
    /// Pages that had not been sent before.
    first: Cost,
    /// Pages that had.
    again: Cost,
}

/// What pages of one kind take.
#[derive(Clone, Copy, Debug, Default)]
struct Cost {
    /// Wire bytes a page.
    bytes: Option<f64>,
    /// Pages a second through the processors.
    processor: Rate,
}

impl Estimator {
    /// Takes in a round.
    pub fn observe(&mut self, facts: &RoundFacts) {
        if facts.arrived > ByteCount(0) {
            self.arrived = self.arrived.saturating_add(facts.arrived.0);
            self.link.add(facts.arrived.0 as f64, facts.moving, facts.bottleneck == Bottleneck::Link);
        }
        self.observe_cost(facts);
        let dirtied = facts.dirtied().0;
        self.dirty.add(dirtied as f64, facts.duration, true);
    }

    /// Pages moved a second when pages are sent again, whichever of link and processors is slower.
    #[must_use]
    pub fn page_rate(&self) -> PagesPerSec {
        let cost = self.cost();
        let by_link = cost.bytes.map_or(0.0, |bytes| self.link.value() / bytes);
        PagesPerSec(by_link.min(cost.processor.value()))
    }

    /// Distinct pages dirtied a second. A guest that comes back to the same pages shows less in long rounds.
    #[must_use]
    pub fn dirty_rate(&self) -> PagesPerSec {
        PagesPerSec(self.dirty.value())
    }

    /// Bytes a second that the link carries, as far as it was put to the test.
    #[must_use]
    pub fn bandwidth(&self) -> BytesPerSec {
        BytesPerSec(self.link.value())
    }

    /// Whether what is known of the link is worth more than the conclusion that it can be used.
    #[must_use]
    pub fn knows_link(&self) -> bool {
        self.link.is_measured || self.arrived >= ENOUGH_BYTES
    }

    /// Whether it is known what pages cost that are sent again.
    #[must_use]
    pub fn knows_resends(&self) -> bool {
        self.again.bytes.is_some()
    }

    /// Wire bytes of a page that is sent again.
    pub(super) fn page_bytes(&self) -> f64 {
        self.cost().bytes.unwrap_or(0.0)
    }

    /// Wire bytes of `pages` that are sent again.
    #[must_use]
    pub fn bytes_for(&self, pages: PageCount) -> ByteCount {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a float to integer cast saturates")]
        ByteCount((pages.0 as f64 * self.page_bytes()) as u64)
    }

    /// How long it takes to move `pages` again; [`Duration::MAX`] while no rate is known.
    #[must_use]
    pub fn time_for(&self, pages: PageCount) -> Duration {
        self.page_rate().time_for(pages)
    }

    /// How long it takes to move `pages`, of which `never_sent` go for the first time.
    #[must_use]
    pub fn time_for_rest(&self, pages: PageCount, never_sent: PageCount) -> Duration {
        let again = PageCount(pages.0.saturating_sub(never_sent.0));
        if never_sent == PageCount(0) {
            return self.time_for(again);
        }
        let mix = self.first_cost().bytes.unwrap_or(0.0) * never_sent.0 as f64 + self.page_bytes() * again.0 as f64;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a float to integer cast saturates")]
        let by_link = self.bandwidth().time_for(ByteCount(mix as u64));
        let processors = |cost: &Cost, pages| PagesPerSec(cost.processor.value()).time_for(pages);
        by_link.max(processors(self.first_cost(), never_sent).saturating_add(processors(self.cost(), again)))
    }

    /// The same, with everything `factor` times as fast.
    pub(super) fn faster(mut self, factor: f64) -> Self {
        for rate in [&mut self.link, &mut self.first.processor, &mut self.again.processor] {
            rate.value = rate.value.map(|value| value * factor);
        }
        self
    }

    /// What pages cost the first time, on the wire and through the processors.
    pub(super) fn first_page(&self) -> (f64, PagesPerSec) {
        let cost = self.first_cost();
        (cost.bytes.unwrap_or(0.0), PagesPerSec(cost.processor.value()))
    }

    /// What pages cost again.
    pub(super) fn page_again(&self) -> (f64, PagesPerSec) {
        (self.page_bytes(), PagesPerSec(self.cost().processor.value()))
    }

    /// Pages a second through the processors, where these were waited for.
    pub(super) fn measured_processors(&self) -> Option<PagesPerSec> {
        let Rate { value, is_measured } = self.cost().processor;
        value.filter(|_| is_measured).map(PagesPerSec)
    }

    fn first_cost(&self) -> &Cost {
        if self.first.bytes.is_some() { &self.first } else { &self.again }
    }

    /// Says of each kind of page what the round tells about it: where there were few of the other kind, those are
    /// reckoned with what is known of them.
    fn observe_cost(&mut self, facts: &RoundFacts) {
        // Where all were zeros there is nothing better to go by.
        let full = match facts.pages.0.saturating_sub(facts.empty.0) {
            0 => facts.pages.0,
            full => full,
        } as f64;
        // A round that moved nothing says nothing about what moving costs.
        if full == 0.0 || facts.wire_bytes == ByteCount(0) {
            return;
        }
        let first = (facts.first.0 as f64).min(full);
        let (bytes, seconds) = (facts.wire_bytes.0 as f64, facts.moving.as_secs_f64());
        let is_measured = facts.bottleneck == Bottleneck::Processor;
        if first >= MOST * full {
            self.first.add(full, bytes, seconds, is_measured);
        } else if first <= (1.0 - MOST) * full {
            // A few whole pages may take more than all differences.
            let theirs = self.first.bytes.map_or(bytes / full, |first_bytes| first_bytes) * first;
            self.again.add(full - first, (bytes - theirs).max(0.0), seconds, is_measured);
        } else if let Some(first_bytes) = self.first.bytes {
            let rest = (bytes - first * first_bytes).clamp(0.0, (full - first) * first_bytes);
            let seconds = seconds - first / self.first.processor.value();
            // Not measured: what the two kinds take of the processors cannot be told apart well.
            self.again.add(full - first, rest, seconds.max(SHORTEST_SECONDS), false);
        }
    }

    fn cost(&self) -> &Cost {
        if self.again.bytes.is_some() { &self.again } else { &self.first }
    }
}

impl Cost {
    /// So many pages took so many bytes and seconds.
    fn add(&mut self, pages: f64, bytes: f64, seconds: f64, is_measured: bool) {
        let weight = pages / (pages + HALF_WEIGHT_PAGES);
        let each = bytes / pages;
        self.bytes = Some(self.bytes.map_or(each, |before| before + (each - before) * weight));
        self.processor.add_weighted(pages / seconds.max(SHORTEST_SECONDS), is_measured, weight);
    }
}

/// A moving average, of something that is measured at times and at other times only known to be at
/// least so much.
#[derive(Clone, Copy, Debug, Default)]
struct Rate {
    value: Option<f64>,
    is_measured: bool,
}

impl Rate {
    fn add(&mut self, amount: f64, duration: Duration, is_measured: bool) {
        let seconds = duration.as_secs_f64().max(SHORTEST_SECONDS);
        if !is_measured && !self.is_measured {
            // Each is a lower bound, and the highest is the best.
            self.value = Some(self.value.map_or(amount / seconds, |before| before.max(amount / seconds)));
            return;
        }
        if !self.is_measured {
            *self = Self { value: Some(amount / seconds), is_measured };
            return;
        }
        self.add_weighted(amount / seconds, is_measured, seconds / (seconds + HALF_WEIGHT_SECONDS));
    }

    /// The new value counts as `weight`, from 0 to 1.
    fn add_weighted(&mut self, rate: f64, is_measured: bool, weight: f64) {
        self.value = Some(match self.value {
            None => rate,
            // The first measurement above a mere lower bound is better than any average with it.
            Some(before) if is_measured && !self.is_measured && rate > before => rate,
            Some(before) if is_measured || rate > before => before + (rate - before) * weight,
            Some(before) => before,
        });
        self.is_measured |= is_measured;
    }

    fn value(self) -> f64 {
        self.value.unwrap_or(0.0)
    }
}

/// A round of this length counts as much as all before it.
const HALF_WEIGHT_SECONDS: f64 = 0.1;
/// Fewer bytes than that say next to nothing about a link that was not seen full.
const ENOUGH_BYTES: u64 = 64 << 10;
/// So many pages say as much about what a page costs as all before them.
const HALF_WEIGHT_PAGES: f64 = 2048.0;
/// A round with so much of one kind of page tells about that kind.
const MOST: f64 = 0.8;
/// No round is shorter than the clock can tell.
const SHORTEST_SECONDS: f64 = 1e-6;

#[cfg(test)]
mod tests {
    use super::*;

    fn round(index: u32, millis: u64, pages: u64, bytes_per_page: u64, bottleneck: Bottleneck) -> RoundFacts {
        RoundFacts {
            index,
            elapsed: Duration::from_secs(1),
            duration: Duration::from_millis(millis),
            moving: Duration::from_millis(millis),
            pages: PageCount(pages),
            first: if index == 0 { PageCount(pages) } else { PageCount(0) },
            empty: PageCount(0),
            wire_bytes: ByteCount(pages * bytes_per_page),
            arrived: ByteCount(pages * bytes_per_page),
            bottleneck,
            memory_sent_total: ByteCount(0),
            dirty_after: PageCount(0),
            unsent: PageCount(0),
            never_sent: PageCount(0),
            fixed_cost: Duration::ZERO,
        }
    }

    fn linked(index: u32, millis: u64, pages: u64) -> RoundFacts {
        round(index, millis, pages, 4096, Bottleneck::Link)
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
        estimator.observe(&RoundFacts { dirty_after: PageCount(1000), ..linked(0, 1000, 10_000) });
        assert_eq!((estimator.page_rate(), estimator.dirty_rate()), (PagesPerSec(10_000.0), PagesPerSec(1000.0)));
        estimator.observe(&RoundFacts { dirty_after: PageCount(300), ..linked(1, 100, 2000) });
        assert_eq!(estimator.bandwidth(), BytesPerSec(15_000.0 * 4096.0), "100 ms count half");
        assert_eq!(estimator.dirty_rate(), PagesPerSec(2000.0));
        estimator.observe(&linked(2, 0, 1));
        assert!((estimator.bandwidth().0 / 4096.0 - 15_000.0).abs() < 15.0, "an instant counts nearly nothing");
    }

    #[test]
    fn an_empty_round_leaves_what_is_known_of_the_link_alone() {
        let mut estimator = Estimator::default();
        estimator.observe(&linked(0, 1000, 10_000));
        estimator.observe(&linked(1, 1000, 0));
        assert_eq!(estimator.page_rate(), PagesPerSec(10_000.0));
    }

    #[test]
    fn what_is_left_costs_what_resent_pages_cost() {
        let mut estimator = Estimator::default();
        estimator.observe(&linked(0, 1000, 30_000));
        assert_eq!(estimator.time_for(PageCount(3000)), Duration::from_millis(100), "as round 0 told");
        // Ten bytes a page: the link idles, the processors manage 500 000 pages a second.
        estimator.observe(&round(1, 20, 10_000, 10, Bottleneck::Processor));
        assert_eq!(estimator.time_for(PageCount(5000)), Duration::from_millis(10));
        assert_eq!(estimator.bytes_for(PageCount(5000)), ByteCount(50_000));
        assert_eq!(estimator.bandwidth(), BytesPerSec(30_000.0 * 4096.0), "the link did not get slower by idling");
    }

    #[test]
    fn pages_that_were_left_out_before_cost_what_they_cost_the_first_time() {
        let mut estimator = Estimator::default();
        estimator.observe(&linked(0, 1000, 30_000));
        estimator.observe(&round(1, 2, 1000, 10, Bottleneck::Processor));
        let first = estimator.time_for_rest(PageCount(3000), PageCount(3000));
        assert_eq!(first, Duration::from_millis(100), "though others cost next to nothing now");
        let half = estimator.time_for_rest(PageCount(6000), PageCount(3000));
        assert!(half >= first && half < Duration::from_millis(107), "{half:?}");
        // 3000 for the first time and 3000 again, in 100 ms: the latter took no bytes to speak of.
        let mixed = RoundFacts { first: PageCount(3000), wire_bytes: ByteCount(3000 * 4096), ..linked(2, 100, 6000) };
        estimator.observe(&mixed);
        assert!(estimator.page_bytes() < 10.0, "{}", estimator.page_bytes());
        assert_eq!(estimator.time_for_rest(PageCount(3000), PageCount(3000)), first);
    }

    #[test]
    fn a_few_whole_pages_do_not_make_differences_dear() {
        let mut estimator = Estimator::default();
        estimator.observe(&linked(0, 1000, 30_000));
        let mixed = RoundFacts { first: PageCount(1200), wire_bytes: ByteCount(1200 * 4096 + 8800 * 20), ..linked(1, 100, 10_000) };
        estimator.observe(&mixed);
        assert!((estimator.page_bytes() - 20.0).abs() < 1.0, "{}", estimator.page_bytes());
        // Less than they commonly take: the others took nothing, not less.
        estimator.observe(&RoundFacts { wire_bytes: ByteCount(1000 * 4096), ..mixed });
        assert!((0.0..20.0).contains(&estimator.page_bytes()), "{}", estimator.page_bytes());
        assert!(estimator.time_for(PageCount(1000)) < Duration::from_millis(100));
    }

    #[test]
    fn zero_pages_do_not_make_the_others_cheap() {
        let mut estimator = Estimator::default();
        let facts = RoundFacts { pages: PageCount(100_000), empty: PageCount(90_000), ..linked(0, 1000, 10_000) };
        estimator.observe(&facts);
        assert_eq!(estimator.page_rate(), PagesPerSec(10_000.0));
    }

    #[test]
    fn a_processor_that_was_never_the_bottleneck_is_not_blamed_for_the_link() {
        let mut estimator = Estimator::default();
        estimator.observe(&linked(0, 1000, 30_000));
        estimator.observe(&linked(1, 100, 3000));
        assert_eq!(estimator.page_rate(), PagesPerSec(30_000.0));
        for index in 2..6 {
            estimator.observe(&round(index, 10, 10_000, 16, Bottleneck::Processor));
        }
        assert!(estimator.page_rate().0 > 500_000.0, "{:?}", estimator.page_rate());
    }

    #[test]
    fn of_a_link_that_was_never_full_the_best_is_known() {
        let next_to_nothing = RoundFacts { arrived: ByteCount(200), bottleneck: Bottleneck::RoundTrip, ..linked(0, 50, 3) };
        let mut estimator = Estimator::default();
        estimator.observe(&next_to_nothing);
        assert!(!estimator.knows_link());
        estimator.observe(&round(1, 2, 1000, 200, Bottleneck::Processor));
        assert!(estimator.knows_link());
        assert_eq!(estimator.bandwidth(), BytesPerSec(1e8), "not something in between");
        estimator.observe(&RoundFacts { index: 2, ..next_to_nothing });
        assert_eq!(estimator.bandwidth(), BytesPerSec(1e8));
    }

    #[test]
    fn waiting_for_answers_does_not_make_the_link_slow() {
        let mut estimator = Estimator::default();
        estimator.observe(&linked(0, 1000, 30_000));
        // A path of 100 ms: 300 pages take 10 ms of the link, and much longer until the next round.
        for index in 1..9 {
            estimator.observe(&RoundFacts { duration: Duration::from_millis(310), ..linked(index, 10, 300) });
            estimator.observe(&RoundFacts { bottleneck: Bottleneck::RoundTrip, ..linked(index, 110, 300) });
        }
        assert_eq!(estimator.bandwidth(), BytesPerSec(30_000.0 * 4096.0));
    }

    #[test]
    fn what_has_not_arrived_does_not_count_for_the_link() {
        let mut estimator = Estimator::default();
        estimator.observe(&RoundFacts { arrived: ByteCount(1_000_000), ..linked(0, 100, 1000) });
        assert_eq!(estimator.bandwidth(), BytesPerSec(1e7));
    }
}
