//! One chunk of pages to bytes and back.
//!
//! Each page takes the cheapest form it fits: nothing at all (zeros, or unchanged since it was last sent), one word
//! (uniform), the difference to what was last sent (delta), columns of words that are alike, LZ4, a share of the chunk's Zstandard frame, or itself (raw).
//! A word of the dirty bitmap thereby splits into disjoint masks, and the bytes that belong to them are
//!
//! ```text
//! raw pages | words of uniform pages | checks of deltas | lengths of deltas, columns, LZ4 blocks | deltas, columns | LZ4 blocks | Zstandard frame
//! ```
//!
//! each part in page order. Raw pages come first so that neither end moves them: the [`Encoder`] copies a page out of
//! the guest to where a raw page would lie in the send buffer, and takes it back from there if it finds a cheaper form;
//! the receiver reads raw pages from the socket straight into guest memory. What follows them is called *meta*, and the
//! [`Decoder`] places it.
//!
//! What crosses chunks is the memory at the destination itself, which holds what was last sent: an unchanged page stays,
//! and a delta is applied to it and checked against the [`PageKey`]'s hash of the result. A chunk's frames are applied in
//! the order in which they were made, so the source knows what it holds.
#![forbid(unsafe_code)]

mod adaptive;
mod bases;
mod codecs;
mod columns;
mod decode;
mod delta;
mod encode;
mod entropy;
mod history;
mod key;
mod known;
mod masks;
mod pack;
mod slab;

pub use adaptive::{Chooser, LinkSample, Method, Path};
pub use codecs::Codecs;
pub use columns::{MAX_COLUMNS_BYTES, columns_bytes};
pub use decode::{Decoder, PageError};
pub use delta::MAX_DELTA_BYTES;
pub use encode::{Encoded, Encoder, EncoderSettings, Packed, Work};
pub use key::PageKey;
pub use masks::{Form, Masks, Packing, Pages};

use crate::units::{ByteCount, PAGE_SIZE};

/// The longest LZ4 block that is worth its decompression; longer ones travel raw.
pub const MAX_PACKED_BYTES: usize = PAGE_SIZE / 8 * 7;

/// Whether to spend processor time to save bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compression {
    /// Whatever the link and the pages make pay off, chosen chunk by chunk from what is measured.
    #[default]
    Auto,
    /// Zeros, uniform and unchanged pages are still recognised, for that costs nothing, and deltas are up to
    /// [`DeltaCache`].
    None,
    /// LZ4 where it helps.
    Lz4,
    /// Zstandard where it helps.
    Zstd,
}

/// Memory for making differences to what was sent before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeltaCache {
    /// No differences are made. Pages that were written and not changed are still recognised.
    Off,
    /// A tenth of the guest's memory, and at most 1 GiB.
    #[default]
    Auto,
    /// So much.
    Bytes(ByteCount),
}

/// What to keep of pages that are sent, for the case that they are sent again. What is kept already stays of use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Keep {
    /// Hashes, and copies of pages that may come back as far as there is memory for them ([`DeltaCache`]): the shortest
    /// differences.
    #[default]
    Copies,
    /// Hashes: a page that has not changed is recognised, and in which parts one has.
    Hashes,
    /// Hashes of pages that have come back, which may do so again. Of what goes in round 0, most of it once, nothing.
    HashesOfReturning,
}

impl DeltaCache {
    /// What all encoders of a guest with so much memory may use together.
    #[must_use]
    pub fn for_guest(self, memory: ByteCount) -> ByteCount {
        match self {
            Self::Off => ByteCount(0),
            Self::Auto => ByteCount((memory.0 / 10).min(MAX_AUTO_CACHE)),
            Self::Bytes(bytes) => bytes,
        }
    }
}

/// The most that [`DeltaCache::Auto`] takes.
const MAX_AUTO_CACHE: u64 = 1 << 30;

/// Bytes of a uniform page's word.
const WORD_BYTES: usize = size_of::<u64>();
/// Bytes of the check of a delta.
const CHECK_BYTES: usize = size_of::<u32>();
/// Bytes of the length of a delta, a page in columns or an LZ4 block.
const LENGTH_BYTES: usize = size_of::<u16>();
/// Bytes of the length of packed deltas and columns.
const PACKED_LENGTH_BYTES: usize = size_of::<u32>();
