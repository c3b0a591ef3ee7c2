//! Copying pages out of memory that a guest may be writing to.
//!
//! A page is read exactly once, as by relaxed atomic loads of its words, and everything else looks at the copy, which is
//! in cache by then. A write that races with the copy can tear it; that is harmless because the write also marks the
//! page dirty again (tracking is re-armed before the copy, by a system call).

use std::marker::PhantomData;
use std::ops::Range;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU64, Ordering};

use super::page_copy;
use crate::units::{PAGE_SIZE, PAGE_WORDS};

/// What a copied page holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageSummary {
    /// All 64-bit words equal this one (zero for an empty page).
    Uniform(u64),
    /// Anything else.
    Mixed,
}

/// One chunk of guest memory.
#[derive(Clone, Copy, Debug)]
pub struct Chunk<'m> {
    host: NonNull<u8>,
    pages: u32,
    _memory: PhantomData<&'m ()>,
}

impl Chunk<'_> {
    /// # Safety
    /// `host` must be page-aligned and point at `pages` mapped pages for the lifetime of the value.
    pub(super) unsafe fn new(host: NonNull<u8>, pages: u32) -> Self {
        Self { host, pages, _memory: PhantomData }
    }

    /// Pages in this chunk: 64, or fewer at the end of a region.
    #[must_use]
    pub fn pages(&self) -> u32 {
        self.pages
    }

    /// Copies page `bit` to `out` and says what it holds. Panics if the chunk has no such page.
    #[inline]
    pub fn copy_out(&self, bit: u32, out: &mut [u8; PAGE_SIZE]) -> PageSummary {
        // SAFETY: bytes may be viewed as possibly uninitialised ones, in an array of the same length, as long as nothing
        // uninitialised is written to them: `copy_out` writes what it has read.
        let room = unsafe { &mut *ptr::from_mut(out).cast() };
        summarize(page_copy::copy_out(self.words(bit), room))
    }

    /// Copies page `bit` to the end of `out` and says what it holds. Panics if the chunk has no such page.
    ///
    /// Unlike `resize` and [`Chunk::copy_out`], it does not write the room twice.
    #[inline]
    pub fn append_to(&self, bit: u32, out: &mut Vec<u8>) -> PageSummary {
        out.reserve(PAGE_SIZE);
        let room = out.spare_capacity_mut().first_chunk_mut().expect("a page is reserved");
        let summary = summarize(page_copy::copy_out(self.words(bit), room));
        // SAFETY: `copy_out` has initialised a whole page from the old length on, and the capacity is there.
        unsafe { out.set_len(out.len() + PAGE_SIZE) };
        summary
    }

    /// The word at `index` (0 to 511) of page `bit`.
    #[must_use]
    pub fn load_word(&self, bit: u32, index: usize) -> u64 {
        self.words(bit)[index].load(Ordering::Relaxed)
    }

    /// Stores a word at `index` (0 to 511) of page `bit`: how a VMM or a test guest writes to its own memory.
    #[inline]
    pub fn store_word(&self, bit: u32, index: usize, value: u64) {
        self.words(bit)[index].store(value, Ordering::Relaxed);
    }

    /// Copies `page` to page `bit`. Panics if the chunk has no such page.
    #[inline]
    pub fn copy_in(&self, bit: u32, page: &[u8; PAGE_SIZE]) {
        page_copy::copy_in(page, self.words(bit));
    }

    /// Copies the words `words` of `page` to page `bit`. Panics if the chunk or the page has no such.
    pub(super) fn copy_words_in(&self, bit: u32, page: &[u8; PAGE_SIZE], words: Range<usize>) {
        for (to, word) in self.words(bit)[words.clone()].iter().zip(&page.as_chunks::<8>().0[words]) {
            to.store(u64::from_le_bytes(*word), Ordering::Relaxed);
        }
    }

    /// Copies `bytes` to the front of page `bit`, which nobody else may be writing to. Panics if they are longer than a
    /// page.
    pub(super) fn copy_in_front(&self, bit: u32, bytes: &[u8]) {
        assert!(bytes.len() <= PAGE_SIZE, "{} bytes into a page", bytes.len());
        let words = self.words(bit);
        let (whole, rest) = bytes.as_chunks::<8>();
        for (to, word) in words.iter().zip(whole) {
            to.store(u64::from_le_bytes(*word), Ordering::Relaxed);
        }
        if !rest.is_empty() {
            let mut word = words[whole.len()].load(Ordering::Relaxed).to_le_bytes();
            word[..rest.len()].copy_from_slice(rest);
            words[whole.len()].store(u64::from_le_bytes(word), Ordering::Relaxed);
        }
    }

    /// Sets every word of page `bit` to `word`.
    pub(super) fn fill(&self, bit: u32, word: u64) {
        self.words(bit).iter().for_each(|to| to.store(word, Ordering::Relaxed));
    }

    /// Whether every word of page `bit` is `word`.
    pub(super) fn holds(&self, bit: u32, word: u64) -> bool {
        self.words(bit).iter().all(|held| held.load(Ordering::Relaxed) == word)
    }

    #[inline]
    fn words(&self, bit: u32) -> &[AtomicU64; PAGE_WORDS] {
        assert!(bit < self.pages, "page {bit} of a chunk of {}", self.pages);
        // SAFETY: the page lies inside the chunk, which is mapped (see `new`).
        let page = unsafe { self.host.add(bit as usize * PAGE_SIZE) };
        // SAFETY: page-aligned, mapped for the borrow, and AtomicU64 allows any concurrent access by guest or host.
        unsafe { page.cast().as_ref() }
    }
}

/// What `page` holds. Pages that are not uniform mostly show it in their first bytes.
fn summarize(page: &[u8; PAGE_SIZE]) -> PageSummary {
    let first = u64::from_le_bytes(*page.first_chunk().expect("a page has a first word"));
    let differs = |part: &[u8; 256]| part.as_chunks::<8>().0.iter().fold(0, |differs, word| differs | u64::from_le_bytes(*word) ^ first) != 0;
    if page.as_chunks::<256>().0.iter().any(differs) { PageSummary::Mixed } else { PageSummary::Uniform(first) }
}
