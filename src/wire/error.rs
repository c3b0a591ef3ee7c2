//! What can be wrong with bytes from a peer.

use super::VERSION;
use crate::page::PageError;
use crate::units::ChunkIndex;

/// Bytes that are not what the protocol says. The peer or the path to it is at fault, save for [`WireError::TooLong`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// The peer speaks something else.
    #[error("the peer does not speak pageferry's protocol (its first bytes: {})", first.escape_ascii())]
    NotPageferry {
        /// What came instead of the magic, as much of it as there was.
        first: Vec<u8>,
    },
    /// The peer speaks another version.
    #[error("the peer speaks protocol version {theirs}, this is version {VERSION}")]
    Version {
        /// Theirs.
        theirs: u16,
    },
    /// A message's header was altered on the way.
    #[error("a message header has a wrong checksum")]
    HeaderChecksum,
    /// A message's body was altered on the way.
    #[error("the {message} message has a wrong checksum")]
    BodyChecksum {
        /// Its name.
        message: &'static str,
    },
    /// A kind of message this version does not have.
    #[error("message kind {kind} does not exist")]
    UnknownMessage {
        /// Its number.
        kind: u16,
    },
    /// A body longer than its kind may be.
    #[error("a {message} message of {length} bytes, more than {limit}")]
    MessageLength {
        /// Its name.
        message: &'static str,
        /// The length announced.
        length: u32,
        /// The most there may be.
        limit: u32,
    },
    /// A message so long that it needs leave to come in, and has none: no byte of its body is waited for.
    #[error("a {message} message of {length} bytes is not taken in: {why}")]
    NotTakenIn {
        /// Its name.
        message: &'static str,
        /// The length announced.
        length: u32,
        /// Why not.
        why: String,
    },
    /// A connection whose first message is longer than one may be that comes from a stranger.
    #[error("a connection begins with a message of over {limit} bytes")]
    Opening {
        /// The most there may be.
        limit: usize,
    },
    /// A body that does not parse.
    #[error("the {message} message has a bad {field}")]
    Field {
        /// Its name.
        message: &'static str,
        /// The first field that is wrong.
        field: &'static str,
    },
    /// This side's own message has a part longer than it may be.
    #[error("the {field} of a {message} message has {length} entries or bytes, more than {limit}")]
    TooLong {
        /// Its name.
        message: &'static str,
        /// Which part.
        field: &'static str,
        /// How long it is.
        length: usize,
        /// How long it may be.
        limit: usize,
    },
    /// A frame is wrong.
    #[error("frame {sequence} of {} is wrong", lane_name(*channel))]
    Frame {
        /// The channel it came on; 65535 for the urgent lane.
        channel: u16,
        /// How many frames came before it on that channel.
        sequence: u64,
        /// What is wrong.
        #[source]
        source: FrameError,
    },
}

/// A lane by its number on the wire.
fn lane_name(channel: u16) -> String {
    if channel == u16::MAX { "the urgent lane".to_owned() } else { format!("channel {channel}") }
}

/// What is wrong with a frame.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// No frame begins here.
    #[error("no frame begins here (the bytes are {})", first.escape_ascii())]
    Magic {
        /// What is there.
        first: [u8; 4],
    },
    /// The header was altered on the way.
    #[error("its header has a wrong checksum")]
    HeaderChecksum,
    /// The payload was altered on the way.
    #[error("the payload of chunk {} has a wrong checksum", chunk.0)]
    PayloadChecksum {
        /// The chunk.
        chunk: ChunkIndex,
    },
    /// A kind of frame this version does not have.
    #[error("frame kind {kind} does not exist")]
    UnknownKind {
        /// Its number.
        kind: u8,
    },
    /// Pages of a round after the switch to post-copy, or anything but post-copy's pages in post-copy, or these before.
    #[error("a frame of kind {kind} does not belong here")]
    Misplaced {
        /// Its number.
        kind: u8,
    },
    /// A field that has to be zero is not.
    #[error("a reserved field is not zero")]
    Reserved,
    /// A frame is missing, doubled or out of order.
    #[error("it is numbered {found}")]
    Sequence {
        /// Its number.
        found: u64,
    },
    /// Rounds end one after the other, from 0.
    #[error("it ends round {found} out of order")]
    RoundEnd {
        /// The round it names.
        found: u16,
    },
    /// A chunk the memory does not have.
    #[error("chunk {} lies outside the memory", chunk.0)]
    Outside {
        /// The chunk.
        chunk: ChunkIndex,
    },
    /// A chunk that travels on another channel.
    #[error("chunk {} belongs on channel {belongs}", chunk.0)]
    Channel {
        /// The chunk.
        chunk: ChunkIndex,
        /// Its channel.
        belongs: u16,
    },
    /// Masks that overlap, name no page, or name pages past the end of the region.
    #[error("the masks of chunk {} name pages twice, none, or ones that do not exist", chunk.0)]
    Masks {
        /// The chunk.
        chunk: ChunkIndex,
    },
    /// A way to pack deltas and columns that this version does not have.
    #[error("the deltas and columns of chunk {} are packed in way {code}, which does not exist", chunk.0)]
    Packing {
        /// The chunk.
        chunk: ChunkIndex,
        /// The way's number.
        code: u8,
    },
    /// A form of page that the two ends did not agree on.
    #[error("page {bit} of chunk {} comes in a form that was not agreed on", chunk.0)]
    NotAgreed {
        /// The chunk.
        chunk: ChunkIndex,
        /// The first such page's position in it.
        bit: u32,
    },
    /// In post-copy, a page that comes as the difference to an earlier one, or as unchanged.
    #[error("page {bit} of chunk {} refers to what was sent before the switch to post-copy", chunk.0)]
    Relative {
        /// The chunk.
        chunk: ChunkIndex,
        /// The first such page's position in it.
        bit: u32,
    },
    /// A number of meta bytes that the masks do not allow.
    #[error("chunk {} comes with {length} meta bytes, which its masks do not allow", chunk.0)]
    MetaLength {
        /// The chunk.
        chunk: ChunkIndex,
        /// The number.
        length: u32,
    },
    /// Meta bytes that do not make pages.
    #[error("the pages of chunk {} cannot be decoded", chunk.0)]
    Pages {
        /// The chunk.
        chunk: ChunkIndex,
        /// Why not.
        #[source]
        source: PageError,
    },
}
