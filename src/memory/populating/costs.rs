//! What it costs to put memory under an extent, either way.

use std::io;
use std::time::Duration;

use crate::sys::processor_time;

/// What memory an extent is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Size {
    /// Small pages, chunk by chunk.
    Small,
    /// A huge page.
    Huge,
}

/// What an extent has cost of late, in seconds, and which way that makes the better one.
#[derive(Debug, Default)]
pub(super) struct Costs {
    /// There are no huge pages to be had after all.
    only_small: bool,
    huge: Option<f64>,
    small: Option<f64>,
    /// Spent since the dearer way was last tried.
    spent: f64,
}

impl Costs {
    /// The cheaper way; the other when it is time to look at that again.
    pub(super) fn choice(&mut self) -> Size {
        if self.only_small {
            return Size::Small;
        }
        let (Some(huge), Some(small)) = (self.huge, self.small) else {
            return if self.huge.is_none() { Size::Huge } else { Size::Small };
        };
        let (cheaper, dearer) = if huge <= small { (Size::Huge, Size::Small) } else { (Size::Small, Size::Huge) };
        if self.spent < TRY_EVERY * (huge - small).abs() {
            return cheaper;
        }
        self.spent = 0.0;
        dearer
    }

    /// The host would not do it. It may know how, but not have the memory.
    pub(super) fn fail(&mut self, error: &io::Error) {
        match self.small {
            Some(small) if error.kind() == io::ErrorKind::OutOfMemory => self.huge = Some(small * OUTLIER),
            _ => self.only_small = true,
        }
        self.spent = 0.0;
    }

    /// `part` of an extent was given memory, or as many extents.
    pub(super) fn learn(&mut self, size: Size, part: f64, took: Duration) {
        let took = took.as_secs_f64();
        self.spent += took;
        let known = match size {
            Size::Small => &mut self.small,
            Size::Huge => &mut self.huge,
        };
        let whole = took / part;
        tracing::trace!(?size, whole, ?known, "populated");
        *known = Some(known.map_or(whole, |known| {
            let weight = if whole < known { CHEAPER } else { DEARER };
            known + (whole.min(known.max(FREE) * OUTLIER) - known) * (1.0 - (1.0 - weight).powf(part))
        }));
    }
}

/// What this thread has of a processor meanwhile: what others do says nothing about memory. (A hypervisor that has to find
/// memory does so on this thread's account.) Not under a lock that all guests share: to ask may end this thread's turn.
pub(super) fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let began = processor_time::of_this_thread();
    let done = work();
    (done, processor_time::of_this_thread().saturating_sub(began))
}

/// The dearer way may cost one part in so many of the time spent.
const TRY_EVERY: f64 = 24.0;
/// What the latest extent counts for against all before it, if it was cheaper: then there is memory at hand (again).
const CHEAPER: f64 = 0.75;
/// If it was dearer: one huge page now and then that a hypervisor had to find memory for is made up for by the others, two in a
/// row are not.
const DEARER: f64 = 0.2;
/// One counts for at most so many times what was expected, ...
const OUTLIER: f64 = 8.0;
/// ... which is taken to be this at least: clocks may be coarse.
const FREE: f64 = 1e-5;

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const CHUNKS: u32 = 8;

    fn populate_small(costs: &mut Costs, whole: Duration) {
        (0..CHUNKS).for_each(|_| costs.learn(Size::Small, 1.0 / f64::from(CHUNKS), whole / CHUNKS));
    }

    fn costs(small: u32, huge: u32) -> Costs {
        let mut costs = Costs::default();
        populate_small(&mut costs, small * MS);
        costs.learn(Size::Huge, 1.0, huge * MS);
        costs
    }

    /// Populates `count` extents at these costs; how many of them in huge pages.
    fn huge_of(costs: &mut Costs, count: u32, (small, huge): (u32, u32)) -> u32 {
        let mut taken = 0;
        for _ in 0..count {
            match costs.choice() {
                Size::Small => populate_small(costs, small * MS),
                Size::Huge => {
                    costs.learn(Size::Huge, 1.0, huge * MS);
                    taken += 1;
                }
            }
        }
        taken
    }

    #[test]
    fn the_cheaper_way_is_taken_and_the_other_looked_at_now_and_then() {
        assert_eq!(Costs::default().choice(), Size::Huge, "nothing is known of it");
        let mostly_small = huge_of(&mut costs(8, 24), 1000, (8, 24));
        assert!((10..40).contains(&mostly_small), "{mostly_small} of 1000 in huge pages, which are dearer");
        let mostly_huge = huge_of(&mut costs(8, 2), 1000, (8, 2));
        assert!((940..1000).contains(&mostly_huge), "{mostly_huge} of 1000 in huge pages, which are cheaper");
    }

    #[test]
    fn however_much_is_measured_at_once_an_estimate_stays_between_the_old_and_the_new() {
        for (part, took) in [(2.0, Duration::ZERO), (2.0, MS), (16.0, MS), (0.01, MS)] {
            let mut costs = costs(8, 2);
            costs.learn(Size::Small, part, took);
            let (new, small) = (took.as_secs_f64() / part, costs.small.unwrap());
            assert!((new.min(8e-3)..=new.max(8e-3)).contains(&small), "{small} after {part} extents in {took:?}");
        }
    }

    #[test]
    fn a_host_that_changes_is_followed() {
        let mut costs = costs(8, 2);
        assert!(huge_of(&mut costs, 100, (8, 24)) < 15, "huge pages are at hand no more");
        assert!(huge_of(&mut costs, 100, (8, 2)) > 50, "and again they are");
        costs.only_small = true;
        assert_eq!(huge_of(&mut costs, 100, (8, 2)), 0);
    }
}
