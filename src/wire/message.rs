//! The control messages.

use crate::memory::MemoryLayout;
use crate::page::Codecs;
use crate::units::{ByteCount, ChunkIndex, PageCount, PageIndex};
use std::time::Duration;

use super::features::Features;
use super::lane::Lane;

/// Channels a session may have.
pub const MAX_CHANNELS: u16 = 64;
/// Bytes of a guest kind's name.
pub const MAX_GUEST_KIND_BYTES: usize = 64;
/// Bytes of a guest's description.
pub const MAX_DESCRIPTION_BYTES: usize = 4096;
/// Bytes of a reason in words.
pub const MAX_REASON_BYTES: usize = 1024;
/// Bytes of guest state beside memory.
pub const MAX_STATE_BYTES: usize = 16 << 20;
/// Words in one piece of a bitmap.
pub const MAX_BITMAP_WORDS: usize = 8192;
/// Pages in one Fetch.
pub const MAX_FETCH_PAGES: usize = 64;

/// Names a session: random, chosen by the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SessionId(pub [u8; 16]);

/// Proves that a connection belongs to a session: random, chosen by the source, shown on every connection.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Token(pub [u8; 16]);

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(..)")
    }
}

/// What the source announces first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// This session.
    pub session: SessionId,
    /// Its secret.
    pub token: Token,
    /// Bulk channels wanted, 1 to [`MAX_CHANNELS`].
    pub channels: u16,
    /// Forms of pages that the source would send.
    pub codecs: Codecs,
    /// What the source would like to be able to do.
    pub features: Features,
    /// The guest's memory.
    pub layout: MemoryLayout,
    /// What kind of guest it is: the destination decides by it who builds the guest, and whether it may.
    pub guest_kind: String,
    /// How to build it, in the kind's own words.
    pub description: String,
}

/// What one bulk channel carried from beginning to end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChannelTotals {
    /// Frames.
    pub frames: u64,
    /// Pages in them, resends counted.
    pub pages: PageCount,
    /// Bytes of them, headers included.
    pub bytes: ByteCount,
    /// Running digest of the frames' checksums, in order.
    pub digest: u64,
}

/// How much a bitmap that comes in pieces adds up to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extent {
    /// Chunks of the memory it is about: all of them.
    pub chunks: u32,
    /// Pages in it.
    pub pages: PageCount,
}

/// Why a destination will not take a guest or a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RefuseReason {
    /// Not a protocol version this end speaks.
    Version,
    /// The memory layout is not what the destination's guest has.
    Layout,
    /// Not enough memory, or over the limit that was set.
    Memory,
    /// Guests of this kind are not allowed or not known here.
    GuestKind,
    /// The description makes no guest.
    Description,
    /// Wrong token, unknown session, or not allowed.
    Authorization,
    /// No more sessions now.
    Busy,
    /// Something else; the words say what.
    Other,
}

impl std::fmt::Display for RefuseReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Version => "version",
            Self::Layout => "memory layout",
            Self::Memory => "memory",
            Self::GuestKind => "guest kind",
            Self::Description => "description",
            Self::Authorization => "authorization",
            Self::Busy => "busy",
            Self::Other => "other",
        })
    }
}

/// What a destination knows of a session when asked by a source in doubt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnswerStatus {
    /// The guest runs (or ran) at the destination: the source must never resume it.
    Running,
    /// It never ran there and never will: its Commit is refused from now on.
    NeverStarted,
    /// The destination has no record of the session, or is just starting the guest; nothing follows from that.
    Unknown,
}

/// A control message.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Message {
    /// Source, first on a control connection: the guest on offer.
    Hello(Offer),
    /// Destination: memory is reserved, come with `channels` connections.
    Accept {
        /// Bulk channels granted: at most those wanted.
        channels: u16,
        /// Forms of pages that the destination takes, of those offered.
        codecs: Codecs,
        /// What the destination is able to do, of what was offered.
        features: Features,
        /// Pages in which missing memory can be filled there: 1, or [`HUGE_GRANULE`](super::HUGE_GRANULE).
        granule: u16,
    },
    /// Destination: no.
    Refuse {
        /// The kind of reason.
        reason: RefuseReason,
        /// In words, for a person.
        detail: String,
    },
    /// Source, first on a connection for pages.
    Attach {
        /// The session it belongs to.
        session: SessionId,
        /// That session's secret.
        token: Token,
        /// Which one this will be.
        lane: Lane,
        /// How often lanes were attached anew in this session.
        generation: u32,
    },
    /// Destination: frames may come.
    Attached {
        /// The lane, repeated.
        lane: Lane,
    },
    /// Source, now and then: still here.
    Ping,
    /// Destination, now and then: still here, and this much has arrived on all channels.
    Progress {
        /// Frames applied.
        frames: u64,
        /// Their bytes.
        bytes: ByteCount,
    },
    /// Source, paused, after the last frame: what must have arrived by now, and the state beside memory.
    Finish {
        /// One entry for each channel.
        totals: Vec<ChannelTotals>,
        /// The guest's state.
        state: Vec<u8>,
        /// In post-copy: what the pieces of Missing add up to.
        missing: Option<Extent>,
    },
    /// Destination: all is in place; the guest may be committed.
    Ready,
    /// Source: the guest is yours; the source will not run it again on its own.
    Commit {
        /// How long the guest has been paused.
        paused_for: Duration,
    },
    /// Destination: the guest runs here.
    Running,
    /// Source: understood, the guest is released; the session is over.
    Released,
    /// Source: the migration is off, forget this guest.
    Abort {
        /// In words.
        reason: String,
    },
    /// Destination: this migration cannot go on.
    Failed {
        /// In words.
        reason: String,
    },
    /// Source in doubt, first on a new connection: what became of the session?
    Query {
        /// Which one.
        session: SessionId,
        /// Its secret.
        token: Token,
    },
    /// Destination: this did.
    Answer(AnswerStatus),
    /// Source, before Stale and, paused, before the Finish that switches to post-copy: pages that the destination lacks or
    /// has stale.
    Missing {
        /// The chunk that the first word is about.
        first: ChunkIndex,
        /// One bit for each page, 1 to [`MAX_BITMAP_WORDS`] words. Words of no piece are zero.
        words: Vec<u64>,
    },
    /// Source, after pieces of Missing and before it pauses the guest: these will be missing whatever happens.
    Stale {
        /// What must have arrived before they are discarded, one entry for each channel.
        totals: Vec<ChannelTotals>,
        /// What the pieces add up to.
        stale: Extent,
    },
    /// Destination: they are.
    Discarded,
    /// Destination, on the urgent lane: the guest waits for these.
    Fetch {
        /// 1 to [`MAX_FETCH_PAGES`] of them.
        pages: Vec<PageIndex>,
    },
    /// Source, first on a new connection in post-copy: let us go on.
    Resume {
        /// With which session.
        session: SessionId,
        /// Its secret.
        token: Token,
    },
    /// Destination, after Resume: pages that were missing and have arrived.
    Arrived {
        /// The chunk that the first word is about.
        first: ChunkIndex,
        /// As in Missing.
        words: Vec<u64>,
    },
    /// Destination, after the pieces of Arrived: attach all lanes anew.
    Resumed {
        /// Counts the times this happened.
        generation: u32,
        /// What the pieces of Arrived add up to.
        arrived: Extent,
    },
    /// Destination: every missing page has arrived.
    Complete {
        /// So many.
        pages: PageCount,
    },
}
