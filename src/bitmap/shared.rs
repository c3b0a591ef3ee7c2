//! The bitmap that many threads mark at once.
//!
//! Writers mark a page after they wrote to it; one drainer takes whole words with a swap, so a mark is either in what
//! was taken or still there for the next drain: it cannot fall between.
//!
//! bitvec's own atomic accessors are all relaxed, which would let a drainer see the mark and yet read the page as it
//! was before the write. Hence plain `AtomicU64`s with the orderings said here.

use super::PageBitmap;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::units::{ChunkIndex, PageCount, PageIndex};

/// A set of pages that threads add to concurrently.
#[derive(Debug)]
pub struct SharedBitmap {
    words: Box<[AtomicU64]>,
}

impl SharedBitmap {
    /// An empty set over `chunks` chunks.
    #[must_use]
    pub fn new(chunks: u32) -> Self {
        Self { words: (0..chunks).map(|_| AtomicU64::new(0)).collect() }
    }

    /// A copy of `pages`.
    #[must_use]
    pub fn from_pages(pages: &PageBitmap) -> Self {
        Self { words: pages.words().iter().map(|&word| AtomicU64::new(word)).collect() }
    }

    /// Number of chunks (words).
    #[must_use]
    pub fn chunks(&self) -> u32 {
        u32::try_from(self.words.len()).expect("made from a u32")
    }

    /// Adds one page, after it was written to. Panics if it is out of range.
    pub fn mark(&self, page: PageIndex) {
        self.mark_word(page.chunk(), 1 << page.bit());
    }

    /// Adds the pages of `mask` in `chunk`. Panics if `chunk` is out of range.
    pub fn mark_word(&self, chunk: ChunkIndex, mask: u64) {
        // Release: the write to the page comes before its mark for whoever takes the mark.
        self.words[chunk.as_usize()].fetch_or(mask, Ordering::Release);
    }

    /// Adds `count` pages from `first` on. Panics if the range does not lie inside.
    pub fn mark_run(&self, first: PageIndex, count: PageCount) {
        let (mut page, end) = (first.0, first.0 + count.0);
        while page < end {
            let at = PageIndex(page);
            let here = (64 - u64::from(at.bit())).min(end - page);
            let mask = if here == 64 { u64::MAX } else { ((1 << here) - 1) << at.bit() };
            self.mark_word(at.chunk(), mask);
            page += here;
        }
    }

    /// The pages of `chunk` that are marked, without taking them: a look that may come too early to see a mark. Panics if
    /// `chunk` is out of range.
    #[must_use]
    pub fn word(&self, chunk: ChunkIndex) -> u64 {
        // Relaxed: nothing is inferred from a mark about the page's contents.
        self.words[chunk.as_usize()].load(Ordering::Relaxed)
    }

    /// Takes those of the pages of `mask` that are marked; of several threads that want the same page, one gets it. Panics
    /// if `chunk` is out of range.
    #[must_use]
    pub fn take(&self, chunk: ChunkIndex, mask: u64) -> u64 {
        // Acquire pairs with the Release of `mark_word`, as in `drain_into`.
        self.words[chunk.as_usize()].fetch_and(!mask, Ordering::Acquire) & mask
    }

    /// Adds all marks to `into` without taking them, as [`SharedBitmap::word`] sees them. Panics if the sizes differ.
    pub fn peek_into(&self, into: &mut PageBitmap) {
        assert_eq!(self.chunks(), into.chunks(), "bitmaps of two layouts");
        for (word, to) in self.words.iter().zip(into.words_mut()) {
            // Relaxed: as in `word`.
            *to |= word.load(Ordering::Relaxed);
        }
    }

    /// Moves all marks into `into`. Panics if the sizes differ.
    pub fn drain_into(&self, into: &mut PageBitmap) {
        assert_eq!(self.chunks(), into.chunks(), "bitmaps of two layouts");
        for (word, to) in self.words.iter().zip(into.words_mut()) {
            // Relaxed: a mark missed here is found by the next drain; only the swap takes anything.
            if word.load(Ordering::Relaxed) != 0 {
                // Acquire pairs with the Release of `mark_word`: the marked write is visible to the copy that follows.
                *to |= word.swap(0, Ordering::Acquire);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn concurrent_marks_all_arrive() {
        let shared = SharedBitmap::new(64);
        let mut seen = PageBitmap::new(64);
        std::thread::scope(|scope| {
            for thread in 0..2 {
                let shared = &shared;
                scope.spawn(move || (0..64 * 64).filter(|page| page % 2 == thread).for_each(|page| shared.mark(PageIndex(page))));
            }
            (0..100).for_each(|_| shared.drain_into(&mut seen));
        });
        shared.drain_into(&mut seen);
        assert_eq!(seen.count(), PageCount(64 * 64));
    }

    #[test]
    fn each_mark_is_taken_once() {
        let mut pages = PageBitmap::new(32);
        pages.insert_run(PageIndex(0), PageCount(32 * 64));
        let shared = SharedBitmap::from_pages(&pages);
        let taken: u64 = std::thread::scope(|scope| {
            let take = |_| {
                let shared = &shared;
                // Every mask meets every other in some bit.
                let masks = [0x0f, 0xff << 2, 1 << 9, u64::MAX];
                scope.spawn(move || {
                    let all = (0..32).flat_map(|chunk| masks.map(|mask| shared.take(ChunkIndex(chunk), mask).count_ones()));
                    all.map(u64::from).sum::<u64>()
                })
            };
            let takers: Vec<_> = (0..4).map(take).collect();
            takers.into_iter().map(|taker| taker.join().unwrap()).sum()
        });
        assert_eq!(taken, 32 * 64);
        assert_eq!(shared.take(ChunkIndex(3), u64::MAX), 0);
    }

    #[test]
    fn a_run_marks_each_of_its_pages() {
        for (first, count) in [(0, 0), (0, 1), (63, 2), (5, 200), (64, 64), (1, 63)] {
            let shared = SharedBitmap::new(8);
            shared.mark_run(PageIndex(first), PageCount(count));
            let (mut got, mut want) = (PageBitmap::new(8), PageBitmap::new(8));
            shared.drain_into(&mut got);
            want.insert_run(PageIndex(first), PageCount(count));
            assert_eq!(got, want, "{first}+{count}");
        }
    }
}

#[cfg(all(test, loom))]
mod models {
    use loom::sync::Arc;
    use loom::sync::atomic::{AtomicU64, Ordering};
    use loom::thread;

    use super::*;

    const PAGE: PageIndex = PageIndex(3);

    /// A guest's page is memory that is written and read without any order, as here.
    #[test]
    fn a_drainer_that_finds_a_mark_finds_the_write_before_it() {
        loom::model(|| {
            let (shared, page) = (Arc::new(SharedBitmap::new(1)), Arc::new(AtomicU64::new(0)));
            let writer = thread::spawn({
                let (shared, page) = (Arc::clone(&shared), Arc::clone(&page));
                move || {
                    page.store(1, Ordering::Relaxed);
                    shared.mark(PAGE);
                    page.store(2, Ordering::Relaxed);
                    shared.mark(PAGE);
                }
            });
            let harvest = |sent| {
                let mut dirty = PageBitmap::new(1);
                shared.drain_into(&mut dirty);
                if dirty.contains(PAGE) { page.load(Ordering::Relaxed) } else { sent }
            };
            let sent = harvest(u64::MAX);
            assert_ne!(sent, 0, "the mark was there before the write");
            // The guest is paused for the last harvest.
            writer.join().unwrap();
            let sent = harvest(sent);
            assert_eq!(sent, 2, "what was written last did not travel");
        });
    }

    #[test]
    fn no_mark_is_lost_between_two_that_mark_and_one_that_drains() {
        loom::model(|| {
            let shared = Arc::new(SharedBitmap::new(1));
            let mark = |page| {
                let shared = Arc::clone(&shared);
                thread::spawn(move || shared.mark(PageIndex(page)))
            };
            let marking = [mark(0), mark(1)];
            let mut found = PageBitmap::new(1);
            shared.drain_into(&mut found);
            marking.into_iter().for_each(|thread| thread.join().unwrap());
            shared.drain_into(&mut found);
            assert_eq!(found.word(ChunkIndex(0)), 0b11);
        });
    }

    #[test]
    fn of_two_that_take_the_same_page_one_gets_it() {
        loom::model(|| {
            let shared = Arc::new(SharedBitmap::new(1));
            shared.mark_word(ChunkIndex(0), 0b111);
            let other = thread::spawn({
                let shared = Arc::clone(&shared);
                move || shared.take(ChunkIndex(0), 0b011)
            });
            let mine = shared.take(ChunkIndex(0), 0b110);
            let theirs = other.join().unwrap();
            assert_eq!((mine & theirs, mine | theirs), (0, 0b111));
        });
    }
}
