//! Frames: the pages of one chunk, or the end of a round.
//!
//! A header of fixed size, then the payload as [`page`](crate::page) lays it out. The header has a checksum of its own
//! and is believed only if that holds, so an altered mask cannot make the receiver wait for bytes that never come; it
//! also holds the payload's checksum, so the header's checksum stands for the whole frame. Sequence numbers and a digest
//! over the headers' checksums make a lost, doubled or swapped frame as visible as an altered one.
//!
//! A channel carries rounds; then, if the guest is to run before all its pages are there, one frame that says so (the
//! switch), and after that frames of post-copy only, numbered from 0 again. Writer and reader each know the stage they are
//! in, so that a frame of another stage is an error at once and not a page that is placed twice.

mod reader;
mod writer;

pub use reader::FrameReader;
pub use writer::FrameWriter;

use super::ChannelTotals;
use super::checksum::checksum as checksum_of;
use crate::page::{Form, Pages};
use crate::units::{ByteCount, ChunkIndex, PageCount};

/// Bytes of a frame's header.
pub const FRAME_HEADER_BYTES: usize = 104;

/// The most meta bytes a frame can have.
pub const MAX_META_BYTES: usize = 64 * (2 + crate::page::MAX_PACKED_BYTES);

/// What a frame says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameBody {
    /// Pages of a chunk follow.
    Chunk {
        /// Which chunk.
        chunk: ChunkIndex,
        /// How its pages travel.
        pages: Pages,
    },
    /// All frames of the round have been sent on this channel.
    RoundEnd,
    /// The same of the last round: what follows on this channel is post-copy.
    Switch,
}

/// A frame's header, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// The round it belongs to; 0 in post-copy.
    pub round: u16,
    /// What it says.
    pub body: FrameBody,
    payload_checksum: u64,
    /// The last field of the header; it stands for the whole frame.
    checksum: u64,
}

impl FrameHeader {
    /// Bytes of raw pages that follow.
    #[must_use]
    pub fn raw_bytes(&self) -> usize {
        match self.body {
            FrameBody::Chunk { pages, .. } => pages.masks.raw_bytes(),
            FrameBody::RoundEnd | FrameBody::Switch => 0,
        }
    }

    /// Bytes that follow the raw pages: at most [`MAX_META_BYTES`].
    #[must_use]
    pub fn meta_bytes(&self) -> usize {
        match self.body {
            FrameBody::Chunk { pages, .. } => pages.meta_bytes as usize,
            FrameBody::RoundEnd | FrameBody::Switch => 0,
        }
    }

    /// Bytes of the whole frame.
    #[must_use]
    pub fn frame_bytes(&self) -> usize {
        FRAME_HEADER_BYTES + self.raw_bytes() + self.meta_bytes()
    }

    fn pages(&self) -> PageCount {
        match self.body {
            FrameBody::Chunk { pages, .. } => pages.masks.pages(),
            FrameBody::RoundEnd | FrameBody::Switch => PageCount(0),
        }
    }
}

/// What a frame is, by its number on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Kind {
    Chunk = 1,
    RoundEnd = 2,
    Switch = 3,
    PostCopyChunk = 4,
}

impl Kind {
    fn from_code(code: u8) -> Option<Self> {
        [Self::Chunk, Self::RoundEnd, Self::Switch, Self::PostCopyChunk].into_iter().find(|kind| *kind as u8 == code)
    }
}

/// Adds a frame to what a channel has carried.
fn count(totals: &mut ChannelTotals, header: &FrameHeader) {
    totals.frames += 1;
    totals.pages += header.pages();
    totals.bytes += ByteCount(header.frame_bytes() as u64);
    let mut link = [0; 16];
    link[..8].copy_from_slice(&totals.digest.to_le_bytes());
    link[8..].copy_from_slice(&header.checksum.to_le_bytes());
    totals.digest = checksum_of(&link);
}

const MAGIC: [u8; 4] = *b"PGFR";

// Offsets of the header's fields.
const MAGIC_AT: usize = 0;
const KIND_AT: usize = 4;
const PACKING_AT: usize = 5;
const ROUND_AT: usize = 6;
const SEQUENCE_AT: usize = 8;
const CHUNK_AT: usize = 16;
const META_AT: usize = 20;
const MASKS_AT: [usize; Form::ALL.len()] = [24, 32, 40, 48, 56, 64, 72, 80];
const PAYLOAD_CHECKSUM_AT: usize = 88;
const CHECKSUM_AT: usize = 96;
