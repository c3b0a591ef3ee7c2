//! What is known of each page of an incomplete memory.
//!
//! ```text
//! missing   the source has it, this end did not when the guest came over; never changes
//! due       missing, and not in an installer's hands yet: taken from here, so each page is taken once
//! arrived   missing once, and settled: it may be touched without anybody being asked
//! removed   given back to the host since: reads as zeros, and what the source has of it is of no use any more
//! asked     someone waits for it
//! ```
//! A page of `missing` goes from due through an installer's hands to arrived, and back to due when the installer fails.
//! The other two are marks beside that.

use crate::bitmap::PageBitmap;
use crate::destination::MissingError;
use crate::sync::atomic::{AtomicU64, Ordering, fence};
use crate::units::{ChunkIndex, PageCount};

/// The sets, one word to a chunk each.
#[derive(Debug)]
pub(super) struct Sets {
    missing: Box<[u64]>,
    due: Box<[AtomicU64]>,
    arrived: Box<[AtomicU64]>,
    removed: Box<[AtomicU64]>,
    asked: Box<[AtomicU64]>,
    total: PageCount,
    /// Of `total`, those not arrived.
    outstanding: AtomicU64,
}

impl Sets {
    pub(super) fn new(missing: &PageBitmap) -> Self {
        let empty = || missing.words().iter().map(|_| AtomicU64::new(0)).collect();
        let total = missing.count();
        Self {
            due: missing.words().iter().map(|&word| AtomicU64::new(word)).collect(),
            arrived: empty(),
            removed: empty(),
            asked: empty(),
            missing: missing.words().into(),
            total,
            outstanding: AtomicU64::new(total.0),
        }
    }

    pub(super) fn total(&self) -> PageCount {
        self.total
    }

    /// Pages that are missing still.
    pub(super) fn outstanding(&self) -> PageCount {
        // Acquire pairs with the Release of `count`: at zero, everything done to the memory is done.
        PageCount(self.outstanding.load(Ordering::Acquire))
    }

    /// Takes the pages of `mask`, all or none.
    pub(super) fn take(&self, chunk: ChunkIndex, mask: u64) -> Result<(), MissingError> {
        let due = self.due.get(chunk.as_usize()).ok_or(MissingError::Outside { chunk: chunk.0 })?;
        // Relaxed: the bits say only who may install a page; nothing is passed on with them.
        let before = due.fetch_and(!mask, Ordering::Relaxed);
        let lacking = mask & !before;
        if lacking == 0 {
            return Ok(());
        }
        due.fetch_or(mask & before, Ordering::Relaxed);
        let never = lacking & !self.missing[chunk.as_usize()];
        Err(match never {
            0 => MissingError::Twice { page: chunk.page(lacking.trailing_zeros()).0 },
            never => MissingError::NotMissing { page: chunk.page(never.trailing_zeros()).0 },
        })
    }

    /// Puts pages that were taken back.
    pub(super) fn give_back(&self, chunk: ChunkIndex, mask: u64) {
        // Relaxed: as in `take`.
        self.due[chunk.as_usize()].fetch_or(mask, Ordering::Relaxed);
    }

    /// Pages that were taken are in place, or of no use any more. Returns those of them that someone asked for.
    pub(super) fn settle(&self, chunk: ChunkIndex, mask: u64) -> u64 {
        // Release pairs with the Acquire of `arrived`: the page is in place.
        let before = self.arrived[chunk.as_usize()].fetch_or(mask, Ordering::Release);
        assert_eq!(before & mask, 0, "a page arrives once");
        // The fences here and in `ask` stand between a mark and a look at the other's: whoever asks for a page either
        // finds it arrived or is found here.
        fence(Ordering::SeqCst);
        self.asked[chunk.as_usize()].load(Ordering::Relaxed) & mask
    }

    /// So many pages were settled, and nothing remains to be done about them.
    pub(super) fn count(&self, pages: u32) {
        // Release: see `outstanding`.
        self.outstanding.fetch_sub(u64::from(pages), Ordering::AcqRel);
    }

    /// Settles the pages that need not be sent any more because they were removed, and returns all that have arrived. For
    /// while nothing is in an installer's hands.
    pub(super) fn settle_removed(&self) -> PageBitmap {
        let mut all = PageBitmap::new(u32::try_from(self.missing.len()).expect("made from a bitmap"));
        for ((index, missing), into) in (0..).zip(&self.missing).zip(all.words_mut()) {
            let chunk = ChunkIndex(index);
            let moot = missing & self.removed(chunk) & !self.arrived(chunk);
            // Only what is still due: the rest is someone's to settle.
            let moot = moot & self.due[chunk.as_usize()].fetch_and(!moot, Ordering::Relaxed);
            if moot != 0 {
                self.settle(chunk, moot);
                self.count(moot.count_ones());
            }
            *into = self.arrived(chunk);
        }
        all
    }

    /// Notes that someone waits for `page` of `chunk`.
    pub(super) fn ask(&self, chunk: ChunkIndex, page: u64) -> Asked {
        let before = self.asked[chunk.as_usize()].fetch_or(page, Ordering::Relaxed);
        // See `settle` and `wanted`.
        fence(Ordering::SeqCst);
        if self.arrived(chunk) & page != 0 {
            Asked::Arrived
        } else if before & page != 0 || self.due[chunk.as_usize()].load(Ordering::Relaxed) & page == 0 {
            Asked::OnItsWay
        } else {
            Asked::First
        }
    }

    /// Pages of `chunk` that someone waits for and that have to be sent.
    pub(super) fn wanted(&self, chunk: ChunkIndex) -> u64 {
        // The fences here and in `ask`: who finds a page in an installer's hands, which then fails, is found here after it
        // was given back.
        fence(Ordering::SeqCst);
        let due = self.due[chunk.as_usize()].load(Ordering::Relaxed);
        self.asked[chunk.as_usize()].load(Ordering::Relaxed) & due & !self.removed(chunk)
    }

    /// Pages of `chunk` that anybody ever asked for.
    pub(super) fn asked(&self, chunk: ChunkIndex) -> u64 {
        // Relaxed: who installs uses it for the order only, and the thread that asks reads its own.
        self.asked[chunk.as_usize()].load(Ordering::Relaxed)
    }

    /// Pages of `chunk` that must come from the source before they may be touched.
    pub(super) fn lacking(&self, chunk: ChunkIndex) -> u64 {
        self.missing(chunk) & !self.arrived(chunk) & !self.removed(chunk)
    }

    pub(super) fn missing(&self, chunk: ChunkIndex) -> u64 {
        self.missing[chunk.as_usize()]
    }

    pub(super) fn arrived(&self, chunk: ChunkIndex) -> u64 {
        // Acquire pairs with `settle`: the page is in place.
        self.arrived[chunk.as_usize()].load(Ordering::Acquire)
    }

    pub(super) fn removed(&self, chunk: ChunkIndex) -> u64 {
        // Relaxed: whoever installs reads it under the gate, and marks are made with the gate closed.
        self.removed[chunk.as_usize()].load(Ordering::Relaxed)
    }

    /// Marks pages as removed, with the gate closed.
    pub(super) fn remove(&self, chunk: ChunkIndex, mask: u64) {
        self.removed[chunk.as_usize()].fetch_or(mask, Ordering::Relaxed);
    }

    /// All chunks.
    pub(super) fn chunks(&self) -> impl Iterator<Item = ChunkIndex> + use<> {
        (0..u32::try_from(self.missing.len()).expect("made from a bitmap")).map(ChunkIndex)
    }
}

/// What [`Sets::ask`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// It is there by now.
    Arrived,
    /// It was asked for before, or is in an installer's hands.
    OnItsWay,
    /// It has to be asked for.
    First,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::PageIndex;

    const CHUNK: ChunkIndex = ChunkIndex(1);

    fn sets(missing: u64) -> Sets {
        let mut bitmap = PageBitmap::new(3);
        bitmap.insert_word(CHUNK, missing);
        Sets::new(&bitmap)
    }

    #[test]
    fn a_page_is_taken_once_and_what_else_is_named() {
        let sets = sets(0b0110);
        assert_eq!(sets.take(CHUNK, 0b0111).unwrap_err().to_string(), "page 64 came but was not missing");
        sets.take(CHUNK, 0b0100).unwrap();
        assert_eq!(sets.take(CHUNK, 0b0110).unwrap_err().to_string(), "page 66 came twice");
        assert_eq!(sets.take(ChunkIndex(3), 1).unwrap_err().to_string(), "pages of chunk 3 came, which is not one of the guest's");
        sets.take(CHUNK, 0b0010).expect("an error takes nothing");
        sets.give_back(CHUNK, 0b0100);
        sets.take(CHUNK, 0b0100).unwrap();
        assert_eq!(sets.settle(CHUNK, 0b0110), 0);
        assert_eq!(sets.outstanding(), PageCount(2));
        sets.count(2);
        assert_eq!(sets.outstanding(), PageCount(0));
    }

    #[test]
    fn a_page_is_asked_for_once() {
        let sets = sets(0b1111);
        assert_eq!(sets.ask(CHUNK, 0b0001), Asked::First);
        assert_eq!(sets.ask(CHUNK, 0b0001), Asked::OnItsWay);
        assert_eq!(sets.wanted(CHUNK), 0b0001);
        sets.take(CHUNK, 0b0011).unwrap();
        assert_eq!(sets.ask(CHUNK, 0b0010), Asked::OnItsWay, "an installer has it");
        assert_eq!(sets.wanted(CHUNK), 0, "an installer has it");
        sets.give_back(CHUNK, 0b0011);
        assert_eq!(sets.wanted(CHUNK), 0b0011);
        sets.take(CHUNK, 0b0011).unwrap();
        assert_eq!(sets.settle(CHUNK, 0b0011), 0b0011);
        assert_eq!(sets.ask(CHUNK, 0b0001), Asked::Arrived);
        assert_eq!(sets.lacking(CHUNK), 0b1100);
    }

    #[test]
    fn removed_pages_need_not_be_sent_and_count_as_arrived_once_that_was_said() {
        let sets = sets(0b1111);
        sets.remove(CHUNK, 0b1_0011);
        sets.take(CHUNK, 0b0001).unwrap();
        sets.settle(CHUNK, 0b0001);
        sets.count(1);
        assert_eq!(sets.lacking(CHUNK), 0b1100);
        assert_eq!(sets.outstanding(), PageCount(3), "the source still sends it");
        let arrived = sets.settle_removed();
        assert_eq!(arrived.word(CHUNK), 0b0011);
        assert_eq!(arrived.count(), PageCount(2));
        assert!(!arrived.contains(PageIndex(68)), "it was never missing");
        assert_eq!(sets.outstanding(), PageCount(2));
        assert!(matches!(sets.take(CHUNK, 0b0010), Err(MissingError::Twice { page: 65 })));
    }
}

#[cfg(all(test, loom))]
mod models {
    use loom::sync::Arc;
    use loom::thread;

    use super::*;

    const CHUNK: ChunkIndex = ChunkIndex(0);

    fn sets(missing: u64) -> Arc<Sets> {
        let mut bitmap = PageBitmap::new(1);
        bitmap.insert_word(CHUNK, missing);
        Arc::new(Sets::new(&bitmap))
    }

    /// Does `work` on another thread.
    fn spawn<T: 'static>(sets: &Arc<Sets>, work: impl FnOnce(&Sets) -> T + 'static) -> thread::JoinHandle<T> {
        let sets = Arc::clone(sets);
        thread::spawn(move || work(&sets))
    }

    #[test]
    fn a_page_is_taken_by_one_installer() {
        loom::model(|| {
            let sets = sets(0b111);
            let other = spawn(&sets, |sets| sets.take(CHUNK, 0b011).is_ok());
            let mine = sets.take(CHUNK, 0b110).is_ok();
            let theirs = other.join().unwrap();
            assert!(!(mine && theirs), "both have the page that they share");
            let taken = if mine { 0b110 } else { 0 } | if theirs { 0b011 } else { 0 };
            assert_eq!(sets.due[0].load(Ordering::Relaxed), 0b111 & !taken, "an error takes nothing");
        });
    }

    #[test]
    fn whoever_asks_finds_the_page_arrived_or_is_found() {
        loom::model(|| {
            let sets = sets(1);
            let page = Arc::new(AtomicU64::new(0));
            let filled = Arc::clone(&page);
            let installer = spawn(&sets, move |sets| {
                sets.take(CHUNK, 1).unwrap();
                filled.store(7, Ordering::Relaxed);
                sets.settle(CHUNK, 1)
            });
            let answer = sets.ask(CHUNK, 1);
            if answer == Asked::Arrived {
                assert_eq!(page.load(Ordering::Relaxed), 7, "it is not in place");
            }
            assert!(answer == Asked::Arrived || installer.join().unwrap() == 1, "nobody knows who waits");
        });
    }

    #[test]
    fn a_page_that_failed_to_be_installed_is_asked_for_again() {
        loom::model(|| {
            let sets = sets(1);
            // The next generation of lanes begins when the installers of the last have ended.
            let generations = spawn(&sets, |sets| {
                sets.take(CHUNK, 1).unwrap();
                sets.give_back(CHUNK, 1);
                sets.wanted(CHUNK)
            });
            let answer = sets.ask(CHUNK, 1);
            let wanted = generations.join().unwrap();
            assert!(answer == Asked::First || wanted == 1, "nobody asks for it");
        });
    }

    #[test]
    fn when_nothing_is_outstanding_everything_is_in_place() {
        loom::model(|| {
            let sets = sets(0b11);
            let pages = Arc::new([AtomicU64::new(0), AtomicU64::new(0)]);
            let installers = [0, 1].map(|bit| {
                let pages = Arc::clone(&pages);
                spawn(&sets, move |sets| {
                    sets.take(CHUNK, 1 << bit).unwrap();
                    pages[bit].store(7, Ordering::Relaxed);
                    sets.settle(CHUNK, 1 << bit);
                    sets.count(1);
                })
            });
            if sets.outstanding() == PageCount(0) {
                assert!(pages.iter().all(|page| page.load(Ordering::Relaxed) == 7));
            }
            installers.into_iter().for_each(|installer| installer.join().unwrap());
            assert_eq!(sets.outstanding(), PageCount(0));
        });
    }
}
