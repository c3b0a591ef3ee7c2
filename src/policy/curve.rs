//! How many distinct pages a guest dirties within a time.
//!
//! A dirty rate alone predicts too much: a guest comes back to the same pages, so the longer one looks, the fewer new
//! ones there are. How that bends depends on the guest: a sweep over a working set is straight until all of it is dirty,
//! random writes bend from the start, a small hot set beside a large cold one bends twice. So the curve is not fitted to
//! a formula but kept as it was measured, at times that grow by a factor, and read between its points in straight lines.

use std::time::Duration;

use crate::units::{PageCount, PagesPerSec};

/// Distinct pages dirtied within a time, for a guest that goes on as it did.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DirtyCurve {
    /// By time; both grow.
    points: Vec<(Duration, PageCount)>,
}

impl DirtyCurve {
    /// A guest that dirties `rate` pages a second and comes back to them after `working_set`.
    #[must_use]
    pub fn sweep(rate: PagesPerSec, working_set: PageCount) -> Self {
        let mut curve = Self::default();
        let once = rate.time_for(working_set);
        if working_set > PageCount(0) && once < Duration::MAX / 2 {
            curve.add(once, working_set);
            curve.add(once * 2, working_set);
        }
        curve
    }

    /// Within `time` since tracking began `distinct` pages were dirtied. Points come in order.
    pub fn add(&mut self, time: Duration, distinct: PageCount) {
        if time > self.points.last().map_or(Duration::ZERO, |last| last.0) {
            self.points.push((time, distinct.max(self.points.last().map_or(PageCount(0), |last| last.1))));
        }
    }

    /// Whether nothing was measured.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.points.is_empty()
    }

    /// Pages a second at first, before the guest comes back to any.
    #[must_use]
    pub fn first_rate(&self) -> PagesPerSec {
        self.points.first().map_or(PagesPerSec(0.0), |(time, pages)| PagesPerSec(pages.0 as f64 / time.as_secs_f64()))
    }

    /// The most that was seen.
    #[must_use]
    pub fn most(&self) -> PageCount {
        self.points.last().map_or(PageCount(0), |last| last.1)
    }

    /// Pages dirtied within `time`. Beyond the last point it goes on as in the last quarter of what was seen, or longer: the
    /// last two points may be a moment apart, and a page or two may be chance.
    #[must_use]
    pub fn within(&self, time: Duration) -> f64 {
        let Some(&last) = self.points.last() else { return 0.0 };
        let (until, before) = match self.points.iter().position(|point| time <= point.0) {
            Some(index) => (self.points[index], index.checked_sub(1).map(|before| self.points[before])),
            None => (last, self.trend_since(last)),
        };
        let [(start, from), (end, to)] = [before.unwrap_or_default(), until].map(|(at, distinct)| (at.as_secs_f64(), distinct.0 as f64));
        from + (to - from) * (time.as_secs_f64() - start) / (end - start)
    }

    /// The point since which it is seen how it goes on after the `last` one; none is the beginning.
    fn trend_since(&self, last: (Duration, PageCount)) -> Option<(Duration, PageCount)> {
        let early = || self.points.iter().copied().filter(|point| point.0 <= last.0.mul_f64(TREND));
        let since = |point: (Duration, PageCount)| last.1.0 - point.1.0;
        let latest = early().next_back();
        if latest.is_none_or(|latest| since(latest) == 0 || since(latest) >= ENOUGH_PAGES) {
            return latest;
        }
        // A few pages may be chance, or all that is still new: it goes on as slowly as it ever did for longer.
        let slope = |point: (Duration, PageCount)| since(point) as f64 / (last.0 - point.0).as_secs_f64();
        early().chain([Default::default()]).min_by(|one, other| slope(*one).total_cmp(&slope(*other)))
    }
}

/// Of the time that was seen: from there to its end it shows how it goes on.
const TREND: f64 = 0.75;
/// Fewer pages than that make no rate, unless they are none.
const ENOUGH_PAGES: u64 = 8;

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn a_sweep_is_straight_and_then_flat() {
        let curve = DirtyCurve::sweep(PagesPerSec(1000.0), PageCount(500));
        let seen: Vec<f64> = [0, 100, 500, 700, 60_000].map(|millis| curve.within(ms(millis)).round()).to_vec();
        assert_eq!(seen, [0.0, 100.0, 500.0, 500.0, 500.0]);
        assert_eq!((curve.first_rate(), curve.most()), (PagesPerSec(1000.0), PageCount(500)));
    }

    #[test]
    fn measured_points_are_read_in_straight_lines() {
        let mut curve = DirtyCurve::default();
        assert_eq!(curve.within(ms(100)), 0.0);
        for (millis, pages) in [(20, 200), (100, 600), (100, 700), (50, 9999), (500, 800)] {
            curve.add(ms(millis), PageCount(pages));
        }
        let seen: Vec<f64> = [10, 20, 60, 100, 300, 500, 900].map(|millis| curve.within(ms(millis)).round()).to_vec();
        assert_eq!(seen, [100.0, 200.0, 400.0, 600.0, 700.0, 800.0, 1000.0], "what is not later is passed over");
        assert_eq!(curve.first_rate(), PagesPerSec(10_000.0));
    }

    #[test]
    fn how_it_goes_on_does_not_hang_on_a_moment() {
        let mut curve = DirtyCurve::default();
        for (millis, pages) in [(400, 4000), (1000, 10_000), (1002, 10_000)] {
            curve.add(ms(millis), PageCount(pages));
        }
        assert_eq!(curve.within(ms(2204)).round(), 21_980.0);
        curve.add(ms(1004), PageCount(10_100));
        assert_eq!(curve.within(ms(1608)).round(), 16_200.0, "not 50 pages a millisecond");
    }

    #[test]
    fn a_page_or_two_are_no_trend() {
        let mut curve = DirtyCurve::default();
        for (millis, pages) in [(100, 0), (700, 1), (1000, 2)] {
            curve.add(ms(millis), PageCount(pages));
        }
        assert_eq!(curve.within(ms(60_000)).round(), 120.0, "in all, not in the last moment");
        curve.add(ms(2000), PageCount(2));
        assert_eq!(curve.within(ms(60_000)), 2.0, "none are none");
        let mut past_its_set = DirtyCurve::default();
        for (millis, pages) in [(680, 2785), (1000, 4096), (2400, 4097), (3400, 4098)] {
            past_its_set.add(ms(millis), PageCount(pages));
        }
        assert!(past_its_set.within(ms(60_000)) < 4200.0, "as slowly as lately, not as at first");
    }

    #[test]
    fn an_idle_guest_dirties_nothing() {
        assert!(DirtyCurve::sweep(PagesPerSec(0.0), PageCount(500)).is_empty());
        assert!(DirtyCurve::sweep(PagesPerSec(10.0), PageCount(0)).is_empty());
    }
}
