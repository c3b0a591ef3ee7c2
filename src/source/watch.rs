//! Looking at the dirty pages while the first round is still being sent.
//!
//! What is dirty after round 0 is one number, and does not tell a guest that writes everything once from one that comes
//! back to the same few pages. A few looks in between do: at times that grow by a factor, so that there are no more than
//! thirty even in an hour. They peek. A harvest would re-arm what it reports, and a guest that comes back to the same
//! pages would fault on all of them again after each look.
//!
//! They also save work: a page found dirty before its turn goes in a later round anyway, so it is not sent in this one;
//! and what the guest is seen writing at the very beginning is sent last, so that there is time to find more of them.
//!
//! The bits stay with the tracker, and the harvest after the round reports them. What a worker left out becomes pending
//! in any case ([`DirtyWatch::finish`]): then a look is no more than a hint, and whatever it says, no page is lost.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, at};

use super::resent::Resent;
use crate::bitmap::{PageBitmap, SharedBitmap};
use crate::dirty::{DirtyError, DirtyTracker};
use crate::memory::GuestMemory;
use crate::policy::DirtyCurve;
use crate::units::PageCount;

/// What was found so far since tracking began.
pub(super) struct DirtyWatch {
    since: Instant,
    /// What held something then.
    populated: PageBitmap,
    /// Still the tracker's.
    found: PageBitmap,
    /// The same, for the workers.
    skip: Arc<SharedBitmap>,
    /// Pages that the first round left out: they go for the first time when they do.
    never_sent: PageBitmap,
    /// Of them those of the round under way.
    going: PageBitmap,
    /// Time that had passed when looking began.
    lead: Option<Duration>,
    next: Duration,
    curve: DirtyCurve,
    resent: Resent,
}

impl DirtyWatch {
    /// Tracking of `memory`, which is `populated`, began just now.
    pub(super) fn new(memory: &GuestMemory, populated: &PageBitmap) -> Self {
        let since = Instant::now();
        let chunks = populated.chunks();
        let skip = Arc::new(SharedBitmap::new(chunks));
        Self {
            since,
            populated: populated.clone(),
            found: PageBitmap::new(chunks),
            skip,
            never_sent: PageBitmap::new(chunks),
            going: PageBitmap::new(chunks),
            lead: None,
            next: FIRST_LOOK,
            curve: DirtyCurve::default(),
            resent: Resent::new(memory, populated),
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

    /// A later round is going to send `pages`.
    pub(super) fn sends(&mut self, pages: &PageBitmap) {
        self.going = self.never_sent.clone();
        self.going.intersect_with(pages);
        self.never_sent.subtract(pages);
    }

    /// It has sent all but these: how many went for the first time.
    pub(super) fn sent_all_but(&mut self, unsent: Option<&PageBitmap>) -> PageCount {
        if let Some(unsent) = unsent {
            let mut still = self.going.clone();
            still.intersect_with(unsent);
            self.going.subtract(&still);
            self.never_sent.union_with(&still);
        }
        self.going.count()
    }

    /// Fires when the next look is due.
    pub(super) fn next_look(&self) -> Receiver<Instant> {
        at(self.since + self.next)
    }

    /// Peeks, and sees what becomes of the pages of `memory` that were dirty at the last look.
    pub(super) fn look(&mut self, tracker: &mut dyn DirtyTracker, memory: &GuestMemory) -> Result<(), DirtyError> {
        let time = self.since.elapsed();
        tracker.peek(&mut self.found)?;
        self.found.occupied().for_each(|(chunk, word)| self.skip.mark_word(chunk, word));
        self.curve.add(time, self.found.count());
        self.resent.look(memory, &self.found);
        // Tracking may have begun long before the first round, which is what is looked at.
        let lead = *self.lead.get_or_insert(time.saturating_sub(FIRST_LOOK));
        self.next = lead + (time - lead).mul_f64(GROWTH);
        Ok(())
    }

    /// The round is over and `pending` holds what the first harvest found, beside pages that were not sent in time, which the
    /// guest may not have written: adds what the round left out because it had.
    pub(super) fn finish(&mut self, pending: &mut PageBitmap, unsent: PageCount) {
        pending.union_with(&self.never_sent);
        self.curve.add(self.since.elapsed(), PageCount(pending.count().0.saturating_sub(unsent.0)));
    }

    /// The pages that the guest may get to, having `dirtied` some of `memory`: what held something already, unless it goes
    /// beyond that.
    pub(super) fn reach(&self, memory: &GuestMemory, dirtied: &PageBitmap) -> PageCount {
        let mut all = self.populated.clone();
        all.union_with(dirtied);
        let beyond = all.count().0 - self.populated.count().0;
        if beyond > dirtied.count().0 / BEYOND_ONE_IN { memory.layout().bytes().pages() } else { all.count() }
    }

    /// Wire bytes of a page that is sent again as a difference, about; nothing as long as none was seen to change.
    pub(super) fn again_bytes(&self) -> Option<f64> {
        self.resent.bytes()
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
/// A guest that dirties more pages than one in so many where nothing was is one that grows.
const BEYOND_ONE_IN: u64 = 8;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dirty::{self, Choice, Marks, Tracked, TrackerKind};
    use crate::memory::{Backing, MemoryLayout};
    use crate::units::{ChunkIndex, PageIndex};

    const CHUNKS: u32 = 4;

    fn memory() -> GuestMemory {
        GuestMemory::allocate(MemoryLayout::flat(PageCount(256)).unwrap(), Backing::Anonymous).unwrap()
    }

    /// A tracker of what is marked, started.
    fn tracker(memory: &Arc<GuestMemory>) -> (Box<dyn DirtyTracker>, Marks) {
        let tracked = Tracked { marks_complete: true, ..Tracked::plain(Arc::clone(memory)) };
        let mut tracker = dirty::open(Choice::Only(TrackerKind::Marked), &tracked).unwrap();
        tracker.start(&mut PageBitmap::new(CHUNKS)).unwrap();
        (tracker, tracked.marks)
    }

    fn bitmap(pages: &[u64]) -> PageBitmap {
        let mut bitmap = PageBitmap::new(CHUNKS);
        pages.iter().for_each(|&page| bitmap.insert(PageIndex(page)));
        bitmap
    }

    #[test]
    fn a_look_leaves_the_bits_with_the_tracker() {
        let memory = Arc::new(memory());
        let (mut tracker, marks) = tracker(&memory);
        let mut watch = DirtyWatch::new(&memory, &bitmap(&[]));
        let skip = watch.skip();
        for (page, found) in [(3, &[3][..]), (200, &[3, 200])] {
            marks.mark_pages(PageIndex(page), PageCount(1));
            watch.look(&mut *tracker, &memory).unwrap();
            let found = bitmap(found);
            assert_eq!(*watch.found(), found);
            assert_eq!(watch.curve().most(), found.count());
            assert!((0..CHUNKS).map(ChunkIndex).all(|chunk| skip.word(chunk) == found.word(chunk)));
        }
        let mut pending = PageBitmap::new(CHUNKS);
        tracker.harvest(&mut pending).unwrap();
        assert_eq!(pending, bitmap(&[3, 200]));
        marks.mark_pages(PageIndex(201), PageCount(1));
        watch.finish(&mut pending, PageCount(0));
        assert_eq!(pending, bitmap(&[3, 200]), "what came after the harvest is the next one's");
    }

    #[test]
    fn a_guest_gets_to_what_holds_something_unless_it_grows() {
        let memory = memory();
        let watch = DirtyWatch::new(&memory, &bitmap(&(0..64).collect::<Vec<_>>()));
        assert_eq!(watch.reach(&memory, &bitmap(&[])), PageCount(64));
        assert_eq!(watch.reach(&memory, &bitmap(&[0, 1, 2, 3, 4, 5, 6, 200])), PageCount(65), "one of eight");
        assert_eq!(watch.reach(&memory, &bitmap(&[0, 200])), PageCount(256));
    }

    #[test]
    fn what_a_round_left_out_is_pending_whatever_the_harvest_says() {
        let memory = memory();
        let mut watch = DirtyWatch::new(&memory, &bitmap(&[]));
        watch.skipped(Some(&bitmap(&[3])), Some(&bitmap(&[70, 71])));
        let mut pending = bitmap(&[9]);
        watch.finish(&mut pending, PageCount(0));
        assert_eq!(pending, bitmap(&[3, 9, 70, 71]));
        watch.sends(&pending);
        assert!(watch.never_sent().is_empty());
        // That round is cut short, and the next one is not.
        let unsent = bitmap(&[9, 71]);
        assert_eq!(watch.sent_all_but(Some(&unsent)), PageCount(2));
        assert_eq!(*watch.never_sent(), bitmap(&[71]));
        watch.sends(&unsent);
        assert_eq!(watch.sent_all_but(None), PageCount(1));
        assert!(watch.never_sent().is_empty());
    }
}
