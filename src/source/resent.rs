//! What pages cost that are sent again, before any was: copies of some, compared with what becomes of them.
//!
//! Pages that the guest comes back to are found among those that it has written already. Where it writes here and there
//! and hardly ever comes back, these would be its odd few: so some are copied before it writes to them, too.

use crate::bitmap::{PageBitmap, bits};
use crate::memory::GuestMemory;
use crate::units::{PAGE_SIZE, PageIndex};

/// Copies of pages, and what was seen of them.
pub(super) struct Resent {
    /// Of pages that had not been written yet.
    untouched: Vec<Copied>,
    /// What became of those that have been.
    touched: Changes,
    /// Of pages that were dirty at the last look.
    dirty: Vec<Copied>,
    /// What had become of them, at the last look that saw any change.
    again: Changes,
    /// For what is packed.
    room: Vec<u8>,
}

impl Resent {
    /// Tracking has just begun, of memory that is `populated`.
    pub(super) fn new(memory: &GuestMemory, populated: &PageBitmap) -> Self {
        Self {
            untouched: copies(memory, populated, UNTOUCHED),
            touched: Changes::default(),
            dirty: Vec::new(),
            again: Changes::default(),
            room: vec![0; lz4_flex::block::get_maximum_output_size(PAGE_SIZE)],
        }
    }

    /// Compares the pages copied so far with what they hold now, and copies some of those `found` so far.
    pub(super) fn look(&mut self, memory: &GuestMemory, found: &PageBitmap) {
        let (written, untouched) = std::mem::take(&mut self.untouched).into_iter().partition(|(page, _)| found.contains(*page));
        self.untouched = untouched;
        self.touched = self.touched + self.changes(memory, written);
        let dirty = std::mem::replace(&mut self.dirty, copies(memory, found, DIRTY));
        let again = self.changes(memory, dirty);
        if again.pages > 0 {
            self.again = again;
        }
    }

    /// Wire bytes of a page that is sent again, about; nothing as long as too few were seen to change.
    pub(super) fn bytes(&self) -> Option<f64> {
        let Changes { pages, bytes } = self.touched + self.again;
        (pages >= FEWEST).then(|| bytes as f64 / f64::from(pages))
    }

    /// What became of these. One that did not change was not written meanwhile, as far as can be told.
    fn changes(&mut self, memory: &GuestMemory, copies: Vec<Copied>) -> Changes {
        let mut changes = Changes::default();
        for (page, before) in copies {
            let now = copy(memory, page);
            if now != before {
                changes = changes + Changes { pages: 1, bytes: self.pack_change(&before, &now) };
            }
        }
        changes
    }

    /// What it takes to send `now` to who has `before`.
    fn pack_change(&mut self, before: &[u8; PAGE_SIZE], now: &[u8; PAGE_SIZE]) -> usize {
        let difference: Vec<u8> = now.iter().zip(before).map(|(now, before)| now ^ before).collect();
        let packed = self.pack(&difference);
        if packed < SHORT { packed } else { packed.min(self.pack(now)) }
    }

    fn pack(&mut self, bytes: &[u8]) -> usize {
        lz4_flex::block::compress_into(bytes, &mut self.room).unwrap_or(PAGE_SIZE).min(PAGE_SIZE)
    }
}

type Copied = (PageIndex, Box<[u8; PAGE_SIZE]>);

/// Pages that changed, and what they take.
#[derive(Clone, Copy, Debug, Default)]
struct Changes {
    pages: u32,
    bytes: usize,
}

impl std::ops::Add for Changes {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self { pages: self.pages + other.pages, bytes: self.bytes + other.bytes }
    }
}

/// Of about so many of `pages`.
fn copies(memory: &GuestMemory, pages: &PageBitmap, count: usize) -> Vec<Copied> {
    some_of(pages, count).map(|page| (page, copy(memory, page))).collect()
}

/// About `count` of `pages`, from as many chunks as can be: pages beside each other share their fate.
fn some_of(pages: &PageBitmap, count: usize) -> impl Iterator<Item = PageIndex> + '_ {
    let chunks = pages.occupied().count();
    let step = chunks.div_ceil(count).max(1);
    let each = count.div_ceil(chunks.div_ceil(step).max(1));
    pages.occupied().step_by(step).flat_map(move |(chunk, word)| {
        let apart = (word.count_ones() as usize).div_ceil(each).max(1);
        bits(word).step_by(apart).map(move |bit| chunk.page(bit))
    })
}

fn copy(memory: &GuestMemory, page: PageIndex) -> Box<[u8; PAGE_SIZE]> {
    let mut content = Box::new([0; PAGE_SIZE]);
    memory.chunk(page.chunk()).copy_out(page.bit(), &mut content);
    content
}

/// Dirty pages copied at a look: a few hundred microseconds.
const DIRTY: usize = 64;
/// Pages copied at the beginning.
const UNTOUCHED: usize = 256;
/// Fewer pages than that may be those where the guest keeps its books.
const FEWEST: u32 = 4;
/// A difference that the whole page is not going to undercut.
const SHORT: usize = PAGE_SIZE / 8;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{Backing, MemoryLayout};
    use crate::units::{ChunkIndex, PAGE_WORDS, PageCount};

    /// Memory, and what fills a page of it with noise.
    fn memory() -> GuestMemory {
        GuestMemory::allocate(MemoryLayout::flat(PageCount(128)).unwrap(), Backing::Anonymous).unwrap()
    }

    fn make_noise(memory: &GuestMemory, page: u64, seed: u64) {
        let page = PageIndex(page);
        for word in 0..PAGE_WORDS {
            let noise = (seed + page.0 * 512 + word as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29);
            memory.chunk(page.chunk()).store_word(page.bit(), word, noise);
        }
    }

    fn pages(pages: impl IntoIterator<Item = u64>) -> PageBitmap {
        let mut bitmap = PageBitmap::new(2);
        pages.into_iter().for_each(|page| bitmap.insert(PageIndex(page)));
        bitmap
    }

    #[test]
    fn some_pages_are_from_all_over() {
        let some = |of: &[u64], count| some_of(&pages(of.iter().copied()), count).map(|page| page.0).collect::<Vec<_>>();
        let all: Vec<u64> = (0..128).collect();
        assert_eq!(some(&all, 4), [0, 32, 64, 96]);
        assert_eq!(some(&all, 1), [0]);
        assert_eq!((some(&all, 128).len(), some(&all, 1000).len()), (128, 128));
        assert_eq!(some(&[5, 6, 127], 4), [5, 6, 127]);
        assert!(some(&[], 4).is_empty());
    }

    #[test]
    fn a_word_costs_little_and_a_page_of_noise_all_of_it() {
        let memory = memory();
        let found = pages(0..9);
        let mut resent = Resent::new(&memory, &pages([]));
        (0..9).for_each(|page| make_noise(&memory, page, 1));
        resent.look(&memory, &found);
        resent.look(&memory, &found);
        assert_eq!(resent.bytes(), None, "nothing was written meanwhile");
        (0..9).for_each(|page| memory.chunk(ChunkIndex(0)).store_word(page, 7, 1));
        resent.look(&memory, &found);
        assert!(resent.bytes().is_some_and(|bytes| bytes < 64.0), "{:?}", resent.bytes());
        (0..9).for_each(|page| make_noise(&memory, page, 1 << 20));
        resent.look(&memory, &found);
        assert!(resent.bytes().is_some_and(|bytes| bytes > 4000.0), "{:?}", resent.bytes());
    }

    #[test]
    fn a_guest_that_does_not_come_back_is_not_judged_by_the_page_of_its_books() {
        let memory = memory();
        (0..128).for_each(|page| make_noise(&memory, page, 1));
        let mut resent = Resent::new(&memory, &pages(0..128));
        let mut look = |written: u64| {
            memory.chunk(ChunkIndex(1)).store_word(63, 0, written);
            (0..written).for_each(|page| make_noise(&memory, page, 1 << 20));
            resent.look(&memory, &pages((0..written).chain([127])));
            resent.bytes()
        };
        assert_eq!(look(1), None, "two pages say nothing");
        assert!(look(9).is_some_and(|bytes| bytes > 3000.0));
        assert!(look(20).is_some_and(|bytes| bytes > 3500.0));
    }
}
