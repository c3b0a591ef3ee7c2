//! Bytes to pages in place.
//!
//! The bytes come from the peer: every length is checked, and what does not add up is an error.

use super::key::PageKey;
use super::pack::{Unpacker, room};
use super::{
    CHECK_BYTES, LENGTH_BYTES, MAX_COLUMNS_BYTES, MAX_DELTA_BYTES, MAX_PACKED_BYTES, Masks, PACKED_LENGTH_BYTES, Packing, Pages, WORD_BYTES, columns,
    delta,
};
use crate::bitmap::{PageBitmap, bits};
use crate::memory::PageSink;
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
    /// A Zstandard frame that does not make exactly its pages.
    #[error("the Zstandard frame from page {bit} on does not decompress to {pages} pages")]
    Frame {
        /// The position of its first page in the chunk.
        bit: u32,
        /// The pages it must make.
        pages: u32,
    },
    /// Packed deltas and columns that do not make exactly these.
    #[error("the packed deltas and columns from page {bit} on do not decompress to {length} bytes")]
    Packed {
        /// The position of the first such page in the chunk.
        bit: u32,
        /// The bytes they must make.
        length: usize,
    },
    /// A delta longer than one may be, or empty.
    #[error("the delta of page {bit} has {length} bytes")]
    DeltaLength {
        /// The page's position in its chunk.
        bit: u32,
        /// The length announced.
        length: usize,
    },
    /// Bytes that are not a delta.
    #[error("the delta of page {bit} goes beyond the page or itself")]
    Delta {
        /// The page's position in its chunk.
        bit: u32,
    },
    /// Columns longer than they may be, or none.
    #[error("the columns of page {bit} have {length} bytes")]
    ColumnsLength {
        /// The page's position in its chunk.
        bit: u32,
        /// The length announced.
        length: usize,
    },
    /// Bytes that are not the columns of a page.
    #[error("the columns of page {bit} do not make a page")]
    Columns {
        /// The page's position in its chunk.
        bit: u32,
    },
    /// The page that comes out is not the source's: the delta was made from another page than the one that is here.
    #[error("the delta of page {bit} was made from another page than the one that is here")]
    Base {
        /// The page's position in its chunk.
        bit: u32,
    },
    /// An unchanged page or a delta where nothing but zeros was sent before.
    #[error("page {bit} refers to contents that were never sent")]
    NeverSent {
        /// The page's position in its chunk.
        bit: u32,
    },
}

/// Places the chunks of one worker.
///
/// In pre-copy it keeps track of the pages that may hold something, so that a zero page which never did is not even
/// looked at: reading a page nobody has written yet makes the host map it.
pub struct Decoder {
    earlier: Option<Earlier>,
    unpacker: Unpacker,
    /// What is unpacked.
    /// Grows to what it was needed for.
    scratch: Vec<u8>,
}

impl Decoder {
    /// A decoder for memory in which, so far, only the pages of `occupied` may hold anything but zeros (see
    /// [`GuestMemory::populated`](crate::memory::GuestMemory::populated)), with the key that the source has.
    #[must_use]
    pub fn new(key: PageKey, occupied: PageBitmap) -> Self {
        Self { earlier: Some(Earlier { key, occupied }), ..Self::post_copy() }
    }

    /// A decoder for pages that come once, whatever there was before: nothing is unchanged, and there are no deltas. Every
    /// zero page is written as such.
    #[must_use]
    pub fn post_copy() -> Self {
        Self { earlier: None, unpacker: Unpacker::new(), scratch: Vec::new() }
    }

    /// The same for post-copy (see [`Decoder::post_copy`]).
    #[must_use]
    pub fn into_post_copy(self) -> Self {
        Self { earlier: None, ..self }
    }

    /// Places everything but the raw pages, which are in place already.
    ///
    /// # Errors
    /// When `meta` is not what `pages` announces. Some pages may have been written by then.
    ///
    /// # Panics
    /// When the masks name pages that the chunk does not have.
    pub fn place_meta<S: PageSink>(&mut self, sink: &mut S, chunk: ChunkIndex, pages: &Pages, meta: &[u8]) -> Result<(), PageError> {
        let masks = &pages.masks;
        let occupied = self.earlier.as_mut().map(|earlier| &mut earlier.occupied.words_mut()[chunk.as_usize()]);
        let was_occupied = occupied.as_deref().copied();
        if let Some(bit) = bits((masks.unchanged | masks.delta) & !was_occupied.unwrap_or(0)).next() {
            return Err(PageError::NeverSent { bit });
        }
        bits(masks.zero & was_occupied.unwrap_or(u64::MAX)).for_each(|bit| sink.write_zero(chunk, bit));
        if let Some(occupied) = occupied {
            *occupied = *occupied & !masks.zero | masks.filled();
        }

        let mut rest = Reader { whole: meta.len(), bytes: meta };
        let words = rest.take(masks.uniform.count_ones() as usize * WORD_BYTES)?;
        let checks = rest.take(masks.delta.count_ones() as usize * CHECK_BYTES)?;
        let small_lengths = rest.take((masks.delta.count_ones() + masks.columns.count_ones()) as usize * LENGTH_BYTES)?;
        let lz4_lengths = rest.take(masks.lz4.count_ones() as usize * LENGTH_BYTES)?;
        for (bit, word) in bits(masks.uniform).zip(words.as_chunks().0) {
            sink.write_uniform(chunk, bit, u64::from_le_bytes(*word));
        }
        self.place_small(sink, chunk, pages, (checks, small_lengths), &mut rest)?;
        self.place_lz4(sink, chunk, masks, lz4_lengths, &mut rest)?;
        self.place_zstd(sink, chunk, masks.zstd, &mut rest)?;
        rest.end()
    }

    /// Deltas and columns, which may be packed together.
    fn place_small<S: PageSink>(
        &mut self,
        sink: &mut S,
        chunk: ChunkIndex,
        pages: &Pages,
        (checks, lengths): (&[u8], &[u8]),
        rest: &mut Reader<'_>,
    ) -> Result<(), PageError> {
        let Masks { delta, columns, .. } = pages.masks;
        let Some(first) = bits(delta | columns).next() else { return Ok(()) };
        let in_order = || bits(delta).chain(bits(columns)).zip(lengths.as_chunks().0.iter().map(|length| usize::from(u16::from_le_bytes(*length))));
        let mut total = 0;
        for (bit, length) in in_order() {
            let is_delta = delta >> bit & 1 == 1;
            if length == 0 || length > if is_delta { MAX_DELTA_BYTES } else { MAX_COLUMNS_BYTES } {
                return Err(if is_delta { PageError::DeltaLength { bit, length } } else { PageError::ColumnsLength { bit, length } });
            }
            total += length;
        }
        self.unpack_small(pages.packing, first, total, rest)?;
        let mut unpacked = &self.scratch[..total];
        let mut checks = checks.as_chunks().0.iter();
        let mut page = [0; PAGE_SIZE];
        for (bit, length) in in_order() {
            let (bytes, later) = unpacked.split_at(length);
            unpacked = later;
            if columns >> bit & 1 == 1 {
                sink.make_page(chunk, bit, |page| columns::decode(bytes, page).ok_or(PageError::Columns { bit }))?;
            } else {
                sink.copy_page(chunk, bit, &mut page);
                delta::apply(bytes, &mut page).ok_or(PageError::Delta { bit })?;
                let key = &self.earlier.as_ref().expect("without, a delta was an error").key;
                if checks.next() != Some(&key.check(&page)) {
                    return Err(PageError::Base { bit });
                }
                sink.amend_page(chunk, bit, &page, delta::replaced(bytes));
            }
        }
        Ok(())
    }

    /// Puts `total` bytes of deltas and columns into the scratch.
    fn unpack_small(&mut self, packing: Packing, bit: u32, total: usize, rest: &mut Reader<'_>) -> Result<(), PageError> {
        let unpacked = room(&mut self.scratch, total);
        if packing == Packing::Plain {
            unpacked.copy_from_slice(rest.take(total)?);
            return Ok(());
        }
        let length = rest.take(PACKED_LENGTH_BYTES)?;
        let length = u32::from_le_bytes(*length.first_chunk().expect("so many bytes were taken"));
        let block = rest.take(length as usize)?;
        let whole = if packing == Packing::Lz4 { self.unpacker.lz4(block, unpacked) } else { self.unpacker.zstd(block, unpacked) };
        if whole { Ok(()) } else { Err(PageError::Packed { bit, length: total }) }
    }

    fn place_lz4<S: PageSink>(
        &mut self,
        sink: &mut S,
        chunk: ChunkIndex,
        masks: &Masks,
        lengths: &[u8],
        rest: &mut Reader<'_>,
    ) -> Result<(), PageError> {
        for (bit, length) in bits(masks.lz4).zip(lengths.as_chunks().0) {
            let length = usize::from(u16::from_le_bytes(*length));
            if !(1..=MAX_PACKED_BYTES).contains(&length) {
                return Err(PageError::BlockLength { bit, length });
            }
            let block = rest.take(length)?;
            sink.make_page(chunk, bit, |page| if self.unpacker.lz4(block, page) { Ok(()) } else { Err(PageError::Block { bit }) })?;
        }
        Ok(())
    }

    fn place_zstd<S: PageSink>(&mut self, sink: &mut S, chunk: ChunkIndex, mask: u64, rest: &mut Reader<'_>) -> Result<(), PageError> {
        let Some(bit) = bits(mask).next() else { return Ok(()) };
        let pages = mask.count_ones();
        let plain = room(&mut self.scratch, pages as usize * PAGE_SIZE);
        if !self.unpacker.zstd(rest.take(rest.bytes.len())?, plain) {
            return Err(PageError::Frame { bit, pages });
        }
        for (bit, page) in bits(mask).zip(plain.as_chunks().0) {
            sink.write_page(chunk, bit, page);
        }
        Ok(())
    }
}

impl std::fmt::Debug for Decoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Decoder").finish_non_exhaustive()
    }
}

/// What pages may refer to.
struct Earlier {
    key: PageKey,
    /// The pages that may hold something other than zeros.
    occupied: PageBitmap,
}

/// What is left of the meta bytes.
struct Reader<'b> {
    whole: usize,
    bytes: &'b [u8],
}

impl<'b> Reader<'b> {
    fn take(&mut self, length: usize) -> Result<&'b [u8], PageError> {
        let (taken, rest) =
            self.bytes.split_at_checked(length).ok_or(PageError::Length { found: self.whole, expected: self.whole - self.bytes.len() + length })?;
        self.bytes = rest;
        Ok(taken)
    }

    fn end(self) -> Result<(), PageError> {
        if self.bytes.is_empty() { Ok(()) } else { Err(PageError::Length { found: self.whole, expected: self.whole - self.bytes.len() }) }
    }
}
