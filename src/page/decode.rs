//! Bytes to pages in place.
//!
//! The bytes come from the peer: every length is checked, and what does not add up is an error.

use lz4_flex::block::decompress_into;

use super::{LENGTH_BYTES, MAX_PACKED_BYTES, Masks, WORD_BYTES, bits};
use crate::bitmap::PageBitmap;
use crate::memory::Placement;
use crate::units::{ChunkIndex, PAGE_SIZE};

/// Why the meta bytes of a chunk cannot be placed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PageError {
    /// More or fewer bytes than the masks and lengths say.
    #[error("{found} meta bytes where {expected} belong")]
    Length {
        /// Bytes there are.
        found: usize,
        /// Bytes there must be.
        expected: usize,
    },
    /// An LZ4 block longer than one may be, or empty.
    #[error("the LZ4 block of page {bit} has {length} bytes")]
    BlockLength {
        /// The page's position in its chunk.
        bit: u32,
        /// The length announced.
        length: usize,
    },
    /// An LZ4 block that does not make exactly a page.
    #[error("the LZ4 block of page {bit} does not decompress to a page")]
    Block {
        /// The page's position in its chunk.
        bit: u32,
    },
}

/// Places the chunks of one worker.
///
/// It keeps track of the pages that may hold something, so that a zero page which never did is not even looked at:
/// reading a page nobody has written yet makes the host map it.
#[derive(Debug)]
pub struct Decoder {
    occupied: PageBitmap,
}

impl Decoder {
    /// A decoder for memory in which, so far, only the pages of `occupied` may hold anything but zeros (see
    /// [`GuestMemory::populated`](crate::memory::GuestMemory::populated)).
    #[must_use]
    pub fn new(occupied: PageBitmap) -> Self {
        Self { occupied }
    }

    /// Places everything but the raw pages, which are in place already.
    ///
    /// # Errors
    /// When `meta` is not what `masks` announce. Some pages may have been written by then.
    ///
    /// # Panics
    /// When the masks name pages that the chunk does not have.
    pub fn place_meta(&mut self, placement: &mut Placement<'_>, chunk: ChunkIndex, masks: &Masks, meta: &[u8]) -> Result<(), PageError> {
        let was_occupied = self.occupied.word(chunk);
        for bit in bits(masks.zero & was_occupied) {
            placement.write_uniform(chunk, bit, 0);
        }
        self.occupied.words_mut()[chunk.as_usize()] = was_occupied & !masks.zero | masks.uniform | masks.lz4 | masks.raw;

        let (uniform, packed) = (masks.uniform.count_ones() as usize, masks.lz4.count_ones() as usize);
        let fixed = uniform * WORD_BYTES + packed * LENGTH_BYTES;
        let (head, mut blocks) = meta.split_at_checked(fixed).ok_or(PageError::Length { found: meta.len(), expected: fixed })?;
        let (words, lengths) = head.split_at(uniform * WORD_BYTES);
        for (bit, word) in bits(masks.uniform).zip(words.as_chunks().0) {
            placement.write_uniform(chunk, bit, u64::from_le_bytes(*word));
        }
        let mut page = [0; PAGE_SIZE];
        for (bit, length) in bits(masks.lz4).zip(lengths.as_chunks().0) {
            let length = usize::from(u16::from_le_bytes(*length));
            if !(1..=MAX_PACKED_BYTES).contains(&length) {
                return Err(PageError::BlockLength { bit, length });
            }
            let (block, rest) =
                blocks.split_at_checked(length).ok_or(PageError::Length { found: meta.len(), expected: meta.len() - blocks.len() + length })?;
            blocks = rest;
            if !matches!(decompress_into(block, &mut page), Ok(PAGE_SIZE)) {
                return Err(PageError::Block { bit });
            }
            placement.write_page(chunk, bit, &page);
        }
        if blocks.is_empty() { Ok(()) } else { Err(PageError::Length { found: meta.len(), expected: meta.len() - blocks.len() }) }
    }
}
