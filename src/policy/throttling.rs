//! Slowing the guest down until rounds converge, and no further.
//!
//! Rounds shrink when the guest dirties less wire time a second than there is: the dirty rate of the last round, times
//! what a page takes. The share of run time is lowered in proportion to that, once a round at most. A guest that comes
//! back to the same pages shows less than it dirties in long rounds: when a round found about all that the guest ever
//! dirties, its rate is taken from how it began, where that is known. Otherwise one step may not be enough, and the next
//! round shows it. The share only goes down: what made it necessary is still there.

use std::time::Duration;

use super::DirtyCurve;
use crate::units::{PageCount, PagesPerSec, RunShare};

/// The throttle of one migration.
#[derive(Clone, Copy, Debug)]
pub(super) struct Throttling {
    share: RunShare,
    /// Since it began.
    rounds: u32,
    /// Rounds in a row in which it could not be slowed down further and still was too fast.
    in_vain: u32,
    began: bool,
}

/// What the throttle makes of a round.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Step {
    /// Slow the guest down further.
    Lower,
    /// It is slow enough: rounds will shrink.
    Enough,
    /// It did not help in time, or cannot be tried.
    GiveUp,
}

impl Throttling {
    pub(super) fn new() -> Self {
        Self { share: RunShare::FULL, rounds: 0, in_vain: 0, began: false }
    }

    /// The share in force.
    pub(super) fn share(&self) -> RunShare {
        self.share
    }

    pub(super) fn has_begun(&self) -> bool {
        self.began
    }

    /// After a round of `duration` that left `dirty` pages, where `page_rate` pages a second are moved; `curve` is how the
    /// guest dirtied pages at full speed.
    pub(super) fn step(&mut self, dirty: PageCount, duration: Duration, page_rate: PagesPerSec, curve: &DirtyCurve) -> Step {
        self.began = true;
        self.rounds += 1;
        if self.rounds > MOST_ROUNDS {
            return Step::GiveUp;
        }
        let mut rate = dirty.0 as f64 / duration.as_secs_f64();
        if dirty.0 as f64 > curve.most().0 as f64 * NEARLY_ALL {
            rate = rate.max(curve.first_rate().0 * self.share.value());
        }
        let busy = rate / page_rate.0;
        self.in_vain = if self.share == RunShare::LEAST && busy > ENOUGH { self.in_vain + 1 } else { 0 };
        if self.in_vain > MOST_IN_VAIN {
            return Step::GiveUp;
        }
        let share = RunShare::new(self.share.value() * WANTED / busy);
        if busy <= ENOUGH || share >= self.share {
            return Step::Enough;
        }
        self.share = share;
        Step::Lower
    }

    /// The guest cannot be slowed down.
    pub(super) fn forgo(&mut self) {
        (self.share, self.rounds) = (RunShare::FULL, MOST_ROUNDS);
    }
}

/// The guest is slowed down to dirty so much of what is moved.
const WANTED: f64 = 0.5;
/// It is left alone while it dirties no more than this.
const ENOUGH: f64 = 0.7;
/// A round that finds so much of what the guest ever dirties does not tell how fast it does.
const NEARLY_ALL: f64 = 0.9;
/// A throttled guest that does not converge in so many rounds never does.
const MOST_ROUNDS: u32 = 15;
/// Nor does one that is still too fast after so many at the least share.
const MOST_IN_VAIN: u32 = 2;

#[cfg(test)]
mod tests {
    use super::*;

    /// A guest that would dirty `rate` pages a second, never more than `set`, while 10 000 are moved: shares and dirty pages.
    fn throttle(rate: f64, set: f64, curve: &DirtyCurve) -> (Vec<u32>, Vec<u32>) {
        let mut throttling = Throttling::new();
        let (mut dirty, mut shares, mut left) = (set, Vec::new(), Vec::new());
        for _ in 0..MOST_ROUNDS {
            let seconds = dirty / 10_000.0;
            dirty = (rate * throttling.share().value() * seconds).min(set);
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "small positive numbers")]
            let pages = dirty as u64;
            let step = throttling.step(PageCount(pages), Duration::from_secs_f64(seconds), PagesPerSec(10_000.0), curve);
            assert_ne!(step, Step::GiveUp);
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "small positive numbers")]
            let percent = (throttling.share().value() * 100.0).round() as u32;
            shares.push(percent);
            left.push(u32::try_from(pages).unwrap());
            if dirty < 100.0 {
                break;
            }
        }
        (shares, left)
    }

    #[test]
    fn the_share_falls_only_as_far_as_rounds_need_to_shrink() {
        let (shares, left) = throttle(9000.0, 1e4, &DirtyCurve::default());
        assert_eq!(shares[0], 56, "9000 a second against 10 000: {shares:?}");
        assert!(shares.iter().all(|&share| share == 56) && left.last() < Some(&100), "{shares:?} {left:?}");
        // What a guest does beyond its working set does not show at first.
        let (shares, left) = throttle(50_000.0, 1e4, &DirtyCurve::default());
        assert_eq!(shares[..3], [50, 25, 13], "{shares:?}");
        assert!((8..=13).contains(shares.last().unwrap()) && left.last() < Some(&100), "{shares:?} {left:?}");
        // Unless it was seen before.
        let (shares, left) = throttle(50_000.0, 1e4, &DirtyCurve::sweep(PagesPerSec(50_000.0), PageCount(10_000)));
        assert!(shares.iter().all(|&share| share == 10) && left.last() < Some(&100), "{shares:?} {left:?}");
        let (shares, _) = throttle(5000.0, 1e4, &DirtyCurve::default());
        assert!(shares.iter().all(|&share| share == 100), "half as fast converges by itself");
    }

    #[test]
    fn a_guest_that_cannot_be_slowed_down_is_given_up_on() {
        let mut throttling = Throttling::new();
        throttling.forgo();
        assert_eq!(throttling.step(PageCount(1000), Duration::from_secs(1), PagesPerSec(1.0), &DirtyCurve::default()), Step::GiveUp);
        let mut stubborn = Throttling::new();
        let steps: Vec<_> =
            (0..=MOST_ROUNDS).map(|_| stubborn.step(PageCount(100_000), Duration::from_secs(1), PagesPerSec(1.0), &DirtyCurve::default())).collect();
        assert_eq!(steps.iter().position(|step| *step == Step::GiveUp), Some(3), "lowered at once, and two rounds in vain: {steps:?}");
        assert_eq!(stubborn.share(), RunShare::LEAST);
    }
}
