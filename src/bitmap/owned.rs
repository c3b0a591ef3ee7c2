//! The owned bitmap of pages.
//!
//! `BitVec` owns the bits and answers for single pages and counts. Set algebra and iteration run over its words: that
//! is many times faster than bit by bit, and the word (a chunk) is the unit of work anyway.
//!
//! Invariant: the length is a whole number of words. Which bits of a word name real pages is the layout's knowledge,
//! see [`MemoryLayout::valid_mask`](crate::memory::MemoryLayout::valid_mask).

use bitvec::order::Lsb0;
use bitvec::vec::BitVec;

use crate::units::{CHUNK_PAGES, ChunkIndex, PageCount, PageIndex};

/// A set of pages, owned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageBitmap {
    bits: BitVec<u64, Lsb0>,
}

impl PageBitmap {
    /// An empty set over `chunks` chunks.
    #[must_use]
    pub fn new(chunks: u32) -> Self {
        Self { bits: BitVec::repeat(false, chunks as usize * CHUNK_PAGES) }
    }

    /// Number of chunks (words).
    #[must_use]
    pub fn chunks(&self) -> u32 {
        u32::try_from(self.bits.as_raw_slice().len()).expect("made from a u32")
    }

    /// The word of a chunk. Panics if `chunk` is out of range.
    #[must_use]
    pub fn word(&self, chunk: ChunkIndex) -> u64 {
        self.bits.as_raw_slice()[chunk.as_usize()]
    }

    /// All words, in chunk order.
    #[must_use]
    pub fn words(&self) -> &[u64] {
        self.bits.as_raw_slice()
    }

    /// All words, to change.
    #[must_use]
    pub fn words_mut(&mut self) -> &mut [u64] {
        self.bits.as_raw_mut_slice()
    }

    /// Adds the pages of `mask` in `chunk`. Panics if `chunk` is out of range.
    pub fn insert_word(&mut self, chunk: ChunkIndex, mask: u64) {
        self.bits.as_raw_mut_slice()[chunk.as_usize()] |= mask;
    }

    /// Adds one page. Panics if it is out of range.
    pub fn insert(&mut self, page: PageIndex) {
        self.bits.set(usize::try_from(page.0).expect("64-bit host"), true);
    }

    /// Adds `count` pages from `first` on. Panics if the range does not lie inside.
    pub fn insert_run(&mut self, first: PageIndex, count: PageCount) {
        let start = usize::try_from(first.0).expect("64-bit host");
        let end = start + usize::try_from(count.0).expect("64-bit host");
        self.bits[start..end].fill(true);
    }

    /// Whether the set holds `page`.
    #[must_use]
    pub fn contains(&self, page: PageIndex) -> bool {
        self.bits[usize::try_from(page.0).expect("64-bit host")]
    }

    /// How many pages the set holds.
    #[must_use]
    pub fn count(&self) -> PageCount {
        PageCount(self.words().iter().map(|word| u64::from(word.count_ones())).sum())
    }

    /// Whether the set holds no page.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.words().iter().all(|&word| word == 0)
    }

    /// Removes every page.
    pub fn clear(&mut self) {
        self.words_mut().fill(0);
    }

    /// Adds every page of `other`. Panics if the sizes differ.
    pub fn union_with(&mut self, other: &Self) {
        assert_eq!(self.chunks(), other.chunks(), "bitmaps of two layouts");
        for (mine, theirs) in self.words_mut().iter_mut().zip(other.words()) {
            *mine |= theirs;
        }
    }

    /// Removes every page of `other`. Panics if the sizes differ.
    pub fn subtract(&mut self, other: &Self) {
        assert_eq!(self.chunks(), other.chunks(), "bitmaps of two layouts");
        for (mine, theirs) in self.words_mut().iter_mut().zip(other.words()) {
            *mine &= !theirs;
        }
    }

    /// Removes all pages that `other` does not hold. Panics if the layouts differ.
    pub fn intersect_with(&mut self, other: &Self) {
        assert_eq!(self.chunks(), other.chunks(), "bitmaps of two layouts");
        for (mine, theirs) in self.words_mut().iter_mut().zip(other.words()) {
            *mine &= theirs;
        }
    }

    /// About `count` of the pages, from chunks spread over all that hold any; all pages if there are no more.
    #[must_use]
    pub fn spread(&self, count: PageCount) -> Self {
        let mut sample = Self::new(self.chunks());
        let mut left = count.0;
        let step = usize::try_from(self.count().0.div_ceil(count.0.max(1))).expect("64-bit host").max(1);
        for (chunk, word) in self.occupied().step_by(step) {
            if left == 0 {
                break;
            }
            sample.insert_word(chunk, word);
            left = left.saturating_sub(u64::from(word.count_ones()));
        }
        sample
    }

    /// The chunks that hold at least one page, with their words, in order.
    pub fn occupied(&self) -> impl Iterator<Item = (ChunkIndex, u64)> + '_ {
        (0u32..).zip(self.words()).filter(|&(_, &word)| word != 0).map(|(chunk, &word)| (ChunkIndex(chunk), word))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn from_set(pages: &BTreeSet<u64>) -> PageBitmap {
        let mut bitmap = PageBitmap::new(8);
        pages.iter().for_each(|&page| bitmap.insert(PageIndex(page)));
        bitmap
    }

    fn pages(bitmap: &PageBitmap) -> BTreeSet<u64> {
        bitmap.occupied().flat_map(|(chunk, word)| (0..64).filter(move |bit| word >> bit & 1 == 1).map(move |bit| chunk.page(bit).0)).collect()
    }

    #[test]
    fn a_spread_sample_is_a_part_of_the_set() {
        let mut all = PageBitmap::new(64);
        all.insert_run(PageIndex(0), PageCount(64 * 64));
        let sample = all.spread(PageCount(256));
        assert_eq!(sample.count(), PageCount(256));
        assert_eq!(sample.occupied().map(|(chunk, _)| chunk.0).collect::<Vec<_>>(), [0, 16, 32, 48]);
        assert_eq!(all.spread(PageCount(1 << 20)), all);
        assert!(PageBitmap::new(3).spread(PageCount(10)).is_empty());
        let mut few = PageBitmap::new(8);
        (0..8).for_each(|chunk| few.insert(ChunkIndex(chunk).page(3)));
        assert_eq!(few.spread(PageCount(2)).count(), PageCount(2));
    }

    proptest! {
        #[test]
        fn set_algebra_agrees_with_a_set_of_integers(a in prop::collection::btree_set(0u64..512, 0..200), b in prop::collection::btree_set(0u64..512, 0..200)) {
            let (left, right) = (from_set(&a), from_set(&b));
            prop_assert_eq!(pages(&left), a.clone());
            prop_assert_eq!(left.count(), PageCount(a.len() as u64));
            prop_assert_eq!(left.is_empty(), a.is_empty());
            let mut union = left.clone();
            union.union_with(&right);
            prop_assert_eq!(pages(&union), a.union(&b).copied().collect());
            let mut intersection = left.clone();
            intersection.intersect_with(&right);
            prop_assert_eq!(pages(&intersection), a.intersection(&b).copied().collect());
            let mut difference = left;
            difference.subtract(&right);
            prop_assert_eq!(pages(&difference), a.difference(&b).copied().collect());
        }

        #[test]
        fn a_run_is_its_pages(start in 0u64..512, length in 0u64..512) {
            let length = length.min(512 - start);
            let mut bitmap = PageBitmap::new(8);
            bitmap.insert_run(PageIndex(start), PageCount(length));
            prop_assert_eq!(pages(&bitmap), (start..start + length).collect());
        }
    }
}
