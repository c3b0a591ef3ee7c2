//! Looking at the dirty pages while the first round is still being sent.
//!
//! What is dirty after round 0 is one number, and does not tell a guest that writes everything once from one that comes
//! back to the same few pages. A few looks in between do: at times that grow by a factor, so that there are no more than
//! thirty even in an hour, each costs a harvest and lets the guest's writes fault once more. Trackers that need the guest
//! paused are not asked.
//!
//! They also save work: a page found dirty before its turn goes in a later round anyway, so it is not sent in this one;
//! and what the guest is seen writing at the very beginning is sent last, so that there is time to find more of them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, at};

use crate::bitmap::{PageBitmap, SharedBitmap};
use crate::dirty::{DirtyError, DirtyTracker};
use crate::policy::DirtyCurve;
use crate::units::PageCount;

/// What was found so far since tracking began.
pub(super) struct DirtyWatch {
    since: Instant,
    /// The driver's, though not in its pending set yet.
    found: PageBitmap,
    /// The same, for the workers.
    skip: Arc<SharedBitmap>,
    /// Pages that the first round left out: they are pending, and go for the first time when they do.
    never_sent: PageBitmap,
    next: Duration,
    curve: DirtyCurve,
}

impl DirtyWatch {
    /// Tracking began just now, for memory of so many chunks.
    pub(super) fn new(chunks: u32) -> Self {
        let skip = Arc::new(SharedBitmap::new(chunks));
        Self {
            since: Instant::now(),
            found: PageBitmap::new(chunks),
            skip,
            never_sent: PageBitmap::new(chunks),
            next: FIRST_LOOK,
            curve: DirtyCurve::default(),
        }
    }

    /// What was found so far.
    pub(super) fn found(&self) -> &PageBitmap {
        &self.found
    }

    /// What was found so far, and later what will have been found by then.
    pub(super) fn skip(&self) -> Arc<SharedBitmap> {
        Arc::clone(&self.skip)
    }

    /// The first round is over, and its workers left these out.
    pub(super) fn skipped(&mut self, skipped: Option<&PageBitmap>, unsent: Option<&PageBitmap>) {
        skipped.into_iter().chain(unsent).for_each(|pages| self.never_sent.union_with(pages));
    }

    /// Pages that were never sent.
    pub(super) fn never_sent(&self) -> &PageBitmap {
        &self.never_sent
    }

    /// A round sends `pages`: how many of them go for the first time.
    pub(super) fn sent(&mut self, pages: &PageBitmap) -> PageCount {
        let before = self.never_sent.count();
        self.never_sent.subtract(pages);
        PageCount(before.0 - self.never_sent.count().0)
    }

    /// Fires when the next look is due.
    pub(super) fn next_look(&self) -> Receiver<Instant> {
        at(self.since + self.next)
    }

    /// Harvests.
    pub(super) fn look(&mut self, tracker: &mut dyn DirtyTracker) -> Result<(), DirtyError> {
        let time = self.since.elapsed();
        tracker.harvest(&mut self.found)?;
        // Only once they are among the found pages, which the round after this one sends.
        self.found.occupied().for_each(|(chunk, word)| self.skip.mark_word(chunk, word));
        self.curve.add(time, self.found.count());
        self.next = time.mul_f64(GROWTH);
        Ok(())
    }

    /// The round is over and `pending` holds what the harvest after it found: gives it what was found before.
    pub(super) fn finish(&mut self, pending: &mut PageBitmap) {
        pending.union_with(&self.found);
        self.curve.add(self.since.elapsed(), pending.count());
    }

    /// Distinct pages by time, at the end.
    pub(super) fn into_curve(self) -> DirtyCurve {
        self.curve
    }

    /// Distinct pages by time.
    pub(super) fn curve(&self) -> &DirtyCurve {
        &self.curve
    }
}

/// The first round waits for this look: long enough to see where a busy guest writes.
const FIRST_LOOK: Duration = Duration::from_millis(4);
const GROWTH: f64 = 1.5;
