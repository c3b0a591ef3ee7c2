//! What pages cost that are sent again, before any was: copies of some that get dirty, compared with what becomes of them.

use crate::bitmap::{PageBitmap, bits};
use crate::memory::GuestMemory;
use crate::units::{PAGE_SIZE, PageCount, PageIndex};

/// Pages that were dirty at the last look, and what was seen of them.
pub(super) struct Resent {
    copies: Vec<(PageIndex, Box<[u8; PAGE_SIZE]>)>,
    bytes: Option<f64>,
    /// For what is packed.
    room: Vec<u8>,
}

impl Resent {
    pub(super) fn new() -> Self {
        Self { copies: Vec::new(), bytes: None, room: vec![0; lz4_flex::block::get_maximum_output_size(PAGE_SIZE)] }
    }

    /// Compares the pages copied at the last look with what they hold now, and copies some of those `found` so far.
    pub(super) fn look(&mut self, memory: &GuestMemory, found: &PageBitmap) {
        let (mut changed, mut bytes) = (0, 0);
        for (page, before) in std::mem::take(&mut self.copies) {
            let now = copy(memory, page);
            // One that did not change was not written meanwhile, as far as can be told.
            if now != before {
                (changed, bytes) = (changed + 1, bytes + self.pack_change(&before, &now));
            }
        }
        if changed > 0 {
            self.bytes = Some(bytes as f64 / f64::from(changed));
        }
        let some = found.spread(COPIES);
        self.copies =
            some.occupied().flat_map(|(chunk, word)| bits(word).map(move |bit| chunk.page(bit))).map(|page| (page, copy(memory, page))).collect();
    }

    /// Wire bytes of a page that is sent again, about; nothing as long as none was seen to change.
    pub(super) fn bytes(&self) -> Option<f64> {
        self.bytes
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

fn copy(memory: &GuestMemory, page: PageIndex) -> Box<[u8; PAGE_SIZE]> {
    let mut content = Box::new([0; PAGE_SIZE]);
    memory.chunk(page.chunk()).copy_out(page.bit(), &mut content);
    content
}

/// Pages to a look: a few hundred microseconds.
const COPIES: PageCount = PageCount(64);
/// A difference that the whole page is not going to undercut.
const SHORT: usize = PAGE_SIZE / 8;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{Backing, MemoryLayout};
    use crate::units::{ChunkIndex, PAGE_WORDS};

    #[test]
    fn a_word_costs_little_and_a_page_of_noise_all_of_it() {
        let memory = GuestMemory::allocate(MemoryLayout::flat(PageCount(64)).unwrap(), Backing::Anonymous).unwrap();
        let chunk = memory.chunk(ChunkIndex(0));
        let noise = |seed: u64| {
            for word in 0..PAGE_WORDS {
                chunk.store_word(3, word, (seed + word as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29));
            }
        };
        let mut found = PageBitmap::new(1);
        found.insert_word(ChunkIndex(0), 1 << 3 | 1 << 9);
        let mut resent = Resent::new();
        noise(1);
        resent.look(&memory, &found);
        resent.look(&memory, &found);
        assert_eq!(resent.bytes(), None, "nothing was written meanwhile");
        chunk.store_word(3, 7, 1);
        resent.look(&memory, &found);
        assert!(resent.bytes().is_some_and(|bytes| bytes < 64.0), "{:?}", resent.bytes());
        noise(1 << 20);
        resent.look(&memory, &found);
        assert!(resent.bytes().is_some_and(|bytes| bytes > 4000.0), "{:?}", resent.bytes());
    }
}
