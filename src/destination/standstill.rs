//! Notices a session that brings nothing, before Commit and after it.
//!
//! A source that says that it is alive, and sends no pages, holds memory that others could use. An honest one waits
//! for a while before its first page at most, where others go before it, and not between rounds; and Commit follows Ready at
//! once.

use std::time::{Duration, Instant};

use crate::error::Error;
use crate::units::PageCount;

/// Since when nothing has come.
pub(super) struct Standstill {
    limit: Duration,
    reads: u64,
    since: Instant,
}

impl Standstill {
    /// Of a session that begins now, and is to bring something each `limit`.
    pub(super) fn new(limit: Duration) -> Self {
        Self { limit, reads: 0, since: Instant::now() }
    }

    /// So many `reads` have brought something so far. What is wrong, when there have been no more for too long.
    pub(super) fn look(&mut self, now: Instant, reads: u64) -> Option<Error> {
        if reads != self.reads {
            (self.reads, self.since) = (reads, now);
        }
        let limit = self.limit;
        (now.saturating_duration_since(self.since) > limit).then_some(Error::Standstill { limit })
    }
}

/// Since when no page has come of those that a guest in post-copy lacks, although its source is there.
///
/// Nothing else has the pages and the guest cannot go back, so nothing is ended; but somebody should know. By pages and not by
/// frames, as what is left of them is what matters.
pub(super) struct Quiet {
    left: PageCount,
    since: Instant,
    /// It has been told up to there.
    told: Duration,
    longest: Duration,
}

impl Quiet {
    /// From now on, with so many pages `left`.
    pub(super) fn new(now: Instant, left: PageCount) -> Self {
        Self { left, since: now, told: Duration::ZERO, longest: Duration::ZERO }
    }

    /// So many pages are `left` now. How long none has come, each time that as long as `patience` has passed again.
    pub(super) fn look(&mut self, now: Instant, left: PageCount, patience: Duration) -> Option<Duration> {
        // When a page came is known by looks only: what passed before the one that finds some says nothing.
        if left != self.left {
            self.left = left;
            self.begin_again(now);
            return None;
        }
        let (quiet, patience) = (now.saturating_duration_since(self.since), patience.max(LEAST_PATIENCE));
        if left > PageCount(0) && quiet >= patience {
            self.longest = self.longest.max(quiet);
        }
        let is_due = left > PageCount(0) && quiet >= self.told.saturating_add(patience);
        is_due.then(|| {
            self.told = quiet;
            quiet
        })
    }

    /// The guest runs, or the connections are new: what was before is another matter.
    pub(super) fn begin_again(&mut self, now: Instant) {
        (self.since, self.told) = (now, Duration::ZERO);
    }

    /// The longest of those times that were too long.
    pub(super) fn longest(&self) -> Option<Duration> {
        (!self.longest.is_zero()).then_some(self.longest)
    }
}

/// Two looks of a session that has nothing to do.
const LEAST_PATIENCE: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    #[test]
    fn a_source_that_brings_no_page_is_told_of_each_time_that_patience_ends() {
        let start = Instant::now();
        let mut quiet = Quiet::new(start, PageCount(9));
        let mut look = |seconds, left| quiet.look(start + Duration::from_secs(seconds), PageCount(left), PATIENCE);
        let told: Vec<_> = (0..200).filter_map(|seconds| look(seconds, 9)).map(|time| time.as_secs()).collect();
        assert_eq!(told, [60, 120, 180]);
        assert_eq!((look(200, 8), look(259, 8), look(260, 8)), (None, None, Some(PATIENCE)), "a page came");
        quiet.begin_again(start + Duration::from_secs(300));
        let mut look = |seconds, left| quiet.look(start + Duration::from_secs(seconds), PageCount(left), PATIENCE);
        assert_eq!((look(359, 8), look(360, 8)), (None, Some(PATIENCE)), "and the source came back");
        assert_eq!((look(361, 0), look(1000, 0)), (None, None), "all are here");
        assert_eq!(quiet.longest(), Some(Duration::from_secs(199)));
        assert_eq!(Quiet::new(start, PageCount(9)).longest(), None);
    }

    #[test]
    fn a_source_that_brings_pages_is_not_told_of_however_rarely_one_looks() {
        let start = Instant::now();
        for (patience, apart) in [(Duration::ZERO, Duration::from_secs(1)), (PATIENCE, 2 * PATIENCE)] {
            let mut quiet = Quiet::new(start, PageCount(9));
            let told = (1..9).filter_map(|look| quiet.look(start + apart * look, PageCount(9 - u64::from(look)), patience));
            assert_eq!((told.count(), quiet.longest()), (0, None));
        }
    }
}
