//! Bytes on the wire: control messages and frames of pages.
//!
//! Every length is checked against its bound before anything is allocated for it; nothing here panics on a peer's bytes.
//! What follows is complete enough to write a second implementation from.
//!
#![doc = include_str!("SPEC.md")]
#![forbid(unsafe_code)]

mod checksum;
mod codec;
mod error;
mod features;
mod fields;
mod frames;
mod kind;
mod lane;
mod message;

pub(crate) use codec::{Announced, announced_message};
pub use codec::{MESSAGE_HEADER_BYTES, decode_message};
pub use error::{FrameError, WireError};
pub use features::Features;
pub use frames::{FRAME_HEADER_BYTES, FrameBody, FrameHeader, FrameReader, FrameWriter, MAX_META_BYTES};
pub use lane::Lane;
pub use message::{
    AnswerStatus, ChannelTotals, Extent, MAX_BITMAP_WORDS, MAX_CHANNELS, MAX_DESCRIPTION_BYTES, MAX_FETCH_PAGES, MAX_GUEST_KIND_BYTES,
    MAX_REASON_BYTES, MAX_STATE_BYTES, Message, Offer, RefuseReason, SessionId, Token,
};

use crate::units::ChunkIndex;

/// The protocol version this crate speaks.
pub const VERSION: u16 = 1;

/// Longer than the body of any message but Finish, which has the guest's state.
pub(crate) const SHORT_BODY_BYTES: u32 = 128 << 10;

/// The granule of memory in huge pages: 2 MiB are filled at once.
pub const HUGE_GRANULE: u16 = 512;

/// The channel on which `chunk` travels, always, when there are `channels` of them.
///
/// Both ends compute it: the source to divide the work, the destination to refuse a frame on the wrong channel, which
/// could overtake an older copy of its pages. Fibonacci hashing spreads neighbours, so that a guest's hot stretch does
/// not fall to one channel.
#[must_use]
pub fn channel_of(chunk: ChunkIndex, channels: u16) -> u16 {
    let mixed = chunk.0.wrapping_mul(0x9E37_79B1);
    u16::try_from((u64::from(mixed) * u64::from(channels)) >> 32).expect("less than channels")
}

#[cfg(test)]
mod tests;
