//! One chunk of pages to bytes and back.
//!
//! Each page takes the cheapest form it fits: nothing at all (zeros), one word (uniform), LZ4, or itself (raw). A word
//! of the dirty bitmap thereby splits into four disjoint masks, and the bytes that belong to them are
//!
//! ```text
//! raw pages | a word for each uniform page | a length for each LZ4 page | the LZ4 blocks
//! ```
//!
//! each part in page order. Raw pages come first so that neither end moves them: the [`Encoder`] copies a page out of
//! the guest to where a raw page would lie in the send buffer, and takes it back from there if it finds a cheaper form;
//! the receiver reads raw pages from the socket straight into guest memory. What follows them is called *meta*, and the
//! [`Decoder`] places it.
//!
//! No state crosses chunks that the other end would have to share.
#![forbid(unsafe_code)]

mod decode;
mod encode;
mod history;

pub use decode::{Decoder, PageError};
pub use encode::{Encoded, Encoder};

use crate::stats::Encodings;
use crate::units::{PAGE_SIZE, PageCount};

/// The longest LZ4 block that is worth its decompression; longer ones travel raw.
pub const MAX_PACKED_BYTES: usize = PAGE_SIZE / 8 * 7;

/// Whether to spend processor time to save bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compression {
    /// Zeros and uniform pages are still recognised, for that costs nothing.
    None,
    /// LZ4 where it helps.
    #[default]
    Lz4,
}

/// How the pages of a chunk travel: each mask names pages by their bits, and no page is in two of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Masks {
    /// All zeros: no bytes.
    pub zero: u64,
    /// One word repeated, not zero: the word.
    pub uniform: u64,
    /// An LZ4 block of at most [`MAX_PACKED_BYTES`].
    pub lz4: u64,
    /// As they are.
    pub raw: u64,
}

impl Masks {
    /// Every page named by any of the masks.
    #[must_use]
    pub fn all(&self) -> u64 {
        self.zero | self.uniform | self.lz4 | self.raw
    }

    /// How many pages that is.
    #[must_use]
    pub fn pages(&self) -> PageCount {
        PageCount(u64::from(self.all().count_ones()))
    }

    /// Whether no page is named twice.
    #[must_use]
    pub fn is_disjoint(&self) -> bool {
        let named = self.zero.count_ones() + self.uniform.count_ones() + self.lz4.count_ones() + self.raw.count_ones();
        named == self.all().count_ones()
    }

    /// How many pages go in each form.
    #[must_use]
    pub fn encodings(&self) -> Encodings {
        let count = |mask: u64| PageCount(u64::from(mask.count_ones()));
        let mut encodings = Encodings::default();
        (encodings.zero, encodings.uniform, encodings.lz4, encodings.raw) = (count(self.zero), count(self.uniform), count(self.lz4), count(self.raw));
        encodings
    }

    /// Bytes of the raw pages.
    #[must_use]
    pub fn raw_bytes(&self) -> usize {
        self.raw.count_ones() as usize * PAGE_SIZE
    }

    /// The least and the most meta bytes that can belong to these masks.
    #[must_use]
    pub fn meta_bounds(&self) -> std::ops::RangeInclusive<usize> {
        let words = self.uniform.count_ones() as usize * WORD_BYTES;
        let packed = self.lz4.count_ones() as usize;
        words + packed * (LENGTH_BYTES + 1)..=words + packed * (LENGTH_BYTES + MAX_PACKED_BYTES)
    }
}

/// Bytes of a uniform page's word.
const WORD_BYTES: usize = size_of::<u64>();
/// Bytes of an LZ4 block's length.
const LENGTH_BYTES: usize = size_of::<u16>();

/// The numbers of the bits set in `mask`, from the lowest.
fn bits(mut mask: u64) -> impl Iterator<Item = u32> {
    std::iter::from_fn(move || {
        let bit = (mask != 0).then(|| mask.trailing_zeros())?;
        mask &= mask - 1;
        Some(bit)
    })
}
