//! What the destination holds, as far as the source remembers: hashes of the pages it sent that are [kept](super::Keep), and
//! of their blocks.
//!
//! The hash of a page (8 bytes) says whether a page that was written is still what it was. The hashes of its blocks
//! (64 bytes) say where it has changed, which is enough for a delta without a copy of the page, and spares looking at the rest
//! of it where there is one; they count against the
//! memory for deltas and are kept for the chunks that are sent first. Both are for a chunk at a time, when it is first sent:
//! empty memory costs four bytes for each 256 KiB.

use std::num::NonZeroU32;

use super::entropy::Entropy;
use super::key::BlockHashes;
use super::slab::Slab;
use crate::units::{CHUNK_PAGES, ChunkIndex};

/// What one worker remembers.
pub(super) struct Known {
    /// Of each chunk, where its hashes are.
    chunks: Vec<Option<NonZeroU32>>,
    hashes: Slab<ChunkHashes>,
    blocks: Slab<[BlockHashes; CHUNK_PAGES]>,
}

struct ChunkHashes {
    /// 0: never sent, or zeros, or not kept.
    pages: [u64; CHUNK_PAGES],
    /// The pages of low entropy.
    low: u64,
    blocks: Option<NonZeroU32>,
}

impl Known {
    /// Of memory of `chunks` chunks, nothing sent yet.
    pub(super) fn new(chunks: u32) -> Self {
        Self { chunks: vec![None; chunks as usize], hashes: Slab::new(), blocks: Slab::new() }
    }

    fn of(&self, chunk: ChunkIndex) -> Option<&ChunkHashes> {
        self.chunks[chunk.as_usize()].map(|place| self.hashes.get(place))
    }

    /// The hash of the page as it was last sent; 0 if it never was, or as zeros, or is not kept.
    pub(super) fn page(&self, chunk: ChunkIndex, bit: u32) -> u64 {
        self.of(chunk).map_or(0, |hashes| hashes.pages[bit as usize])
    }

    /// The blocks in which a page with `new` blocks differs from what was last sent, if that is known. Only for a page
    /// that was sent.
    pub(super) fn changed_blocks(&self, chunk: ChunkIndex, bit: u32, new: &BlockHashes) -> Option<u8> {
        let old = &self.blocks.get(self.of(chunk)?.blocks?)[bit as usize];
        Some((0..).zip(old.iter().zip(new)).fold(0, |mask, (index, (old, new))| mask | u8::from(old != new) << index))
    }

    /// A page with these hashes is sent. Block hashes of a chunk are kept if they were from the beginning, and begun to
    /// be kept while they all take less than `limit` bytes.
    pub(super) fn remember(&mut self, chunk: ChunkIndex, bit: u32, page: u64, blocks: &BlockHashes, limit: usize) {
        let Self { chunks, hashes, blocks: all } = self;
        let place = *chunks[chunk.as_usize()].get_or_insert_with(|| {
            let room = (all.len() + 1) * BLOCKS_OF_A_CHUNK <= limit;
            let blocks = room.then(|| all.push([BlockHashes::default(); CHUNK_PAGES]));
            hashes.push(ChunkHashes { pages: [0; CHUNK_PAGES], low: 0, blocks })
        });
        let hashes = hashes.get_mut(place);
        hashes.pages[bit as usize] = page;
        if let Some(place) = hashes.blocks {
            all.get_mut(place)[bit as usize] = *blocks;
        }
    }

    /// A page that is [remembered](Known::remember) went whole, and a compressor made it smaller or did not.
    pub(super) fn note_entropy(&mut self, chunk: ChunkIndex, bit: u32, entropy: Entropy) {
        if let Some(place) = self.chunks[chunk.as_usize()] {
            let hashes = self.hashes.get_mut(place);
            hashes.low = hashes.low & !(1 << bit) | u64::from(entropy == Entropy::Low) << bit;
        }
    }

    /// What was seen when the page last went whole; high until a compressor was tried.
    pub(super) fn entropy(&self, chunk: ChunkIndex, bit: u32) -> Entropy {
        let is_low = self.of(chunk).is_some_and(|hashes| hashes.low >> bit & 1 == 1);
        if is_low { Entropy::Low } else { Entropy::High }
    }

    /// A page is sent as zeros.
    pub(super) fn remember_zero(&mut self, chunk: ChunkIndex, bit: u32) {
        if let Some(place) = self.chunks[chunk.as_usize()] {
            self.hashes.get_mut(place).pages[bit as usize] = 0;
        }
    }

    /// Bytes that block hashes take.
    pub(super) fn block_bytes(&self) -> usize {
        self.blocks.len() * BLOCKS_OF_A_CHUNK
    }
}

const BLOCKS_OF_A_CHUNK: usize = size_of::<[BlockHashes; CHUNK_PAGES]>();

#[cfg(test)]
mod tests {
    use super::*;

    const CHUNK: ChunkIndex = ChunkIndex(1);

    #[test]
    fn changed_blocks_are_named() {
        let mut known = Known::new(2);
        let old = [1, 2, 3, 4, 5, 6, 7, 8];
        known.remember(CHUNK, 5, 99, &old, usize::MAX);
        assert_eq!((known.page(CHUNK, 5), known.page(CHUNK, 6), known.page(ChunkIndex(0), 5)), (99, 0, 0));
        assert_eq!(known.changed_blocks(CHUNK, 5, &old), Some(0));
        assert_eq!(known.changed_blocks(CHUNK, 5, &[0, 2, 3, 4, 5, 6, 7, 0]), Some(0b1000_0001));
        known.note_entropy(CHUNK, 5, Entropy::Low);
        known.note_entropy(CHUNK, 6, Entropy::Low);
        known.note_entropy(CHUNK, 6, Entropy::High);
        assert_eq!(
            [(CHUNK, 5), (CHUNK, 6), (ChunkIndex(0), 5)].map(|(chunk, bit)| known.entropy(chunk, bit)),
            [Entropy::Low, Entropy::High, Entropy::High]
        );
        known.remember_zero(CHUNK, 5);
        assert_eq!(known.page(CHUNK, 5), 0);
    }

    #[test]
    fn block_hashes_stay_within_their_limit_and_page_hashes_do_not_need_it() {
        let mut known = Known::new(4);
        for chunk in (0..4).map(ChunkIndex) {
            known.remember(chunk, 0, 7, &[0; 8], 2 * BLOCKS_OF_A_CHUNK);
        }
        assert_eq!(known.block_bytes(), 2 * BLOCKS_OF_A_CHUNK);
        let have = |chunk| known.changed_blocks(ChunkIndex(chunk), 0, &[0; 8]).is_some();
        assert_eq!([0, 1, 2, 3].map(have), [true, true, false, false]);
        assert!((0..4).all(|chunk| known.page(ChunkIndex(chunk), 0) == 7));
    }
}
