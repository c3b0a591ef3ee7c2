//! Guest pages as words: the common step between a guest's program and its memory.

use crate::bitmap::PageBitmap;
use crate::memory::{GuestMemory, MemoryError};
use crate::units::{GuestAddr, PAGE_SIZE, PAGE_WORDS, PageIndex};

/// One page, copied out. Guest page numbers are [`PageIndex`] values: a test guest's memory is one region from 0.
pub(super) type Page = [u64; PAGE_WORDS];

/// Writes a page, word by word.
pub(super) fn store(memory: &GuestMemory, page: u64, words: &Page) {
    let index = PageIndex(page);
    let chunk = memory.chunk(index.chunk());
    words.iter().enumerate().for_each(|(at, word)| chunk.store_word(index.bit(), at, *word));
}

/// The guest address of a word.
pub(super) fn address(page: u64, word: usize) -> GuestAddr {
    GuestAddr(page * PAGE_SIZE as u64 + word as u64 * 8)
}

/// A memory image to look at: the memory of a paused guest. Holes are zeros and are never touched.
pub(super) struct Image<'m> {
    memory: &'m GuestMemory,
    populated: PageBitmap,
}

impl<'m> Image<'m> {
    /// # Errors
    /// When the host does not say which pages are populated.
    pub(super) fn new(memory: &'m GuestMemory) -> Result<Self, MemoryError> {
        Ok(Self { memory, populated: memory.populated()? })
    }

    /// Whether `page` may hold anything but zeros.
    pub(super) fn is_populated(&self, page: u64) -> bool {
        self.populated.contains(PageIndex(page))
    }

    /// Copies `page` out.
    pub(super) fn page(&self, page: u64, out: &mut Page) {
        if !self.is_populated(page) {
            out.fill(0);
            return;
        }
        let index = PageIndex(page);
        let mut bytes = [0; PAGE_SIZE];
        self.memory.chunk(index.chunk()).copy_out(index.bit(), &mut bytes);
        for (word, bytes) in out.iter_mut().zip(bytes.as_chunks::<8>().0) {
            *word = u64::from_le_bytes(*bytes);
        }
    }

    /// One word of `page`.
    pub(super) fn word(&self, page: u64, word: usize) -> u64 {
        let index = PageIndex(page);
        if self.is_populated(page) { self.memory.chunk(index.chunk()).load_word(index.bit(), word) } else { 0 }
    }

    /// The populated pages, in order.
    pub(super) fn populated_pages(&self) -> impl Iterator<Item = u64> + '_ {
        self.populated.occupied().flat_map(|(chunk, word)| (0..64).filter(move |bit| word >> bit & 1 == 1).map(move |bit| chunk.page(bit).0))
    }
}
