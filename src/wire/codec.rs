//! Messages to bytes and back.
//!
//! An envelope of fixed size, then a body that depends on the kind. As with frames, the envelope's own checksum is
//! checked before anything in it is believed, and holds the body's. The envelope and the Refuse message are the same in
//! every version of the protocol, so that two versions can tell each other that they are two.

use std::time::Duration;

use super::HUGE_GRANULE;
use super::VERSION;
use super::checksum::checksum;
use super::error::WireError;
use super::features::Features;
use super::fields::{BodyReader, BodyWriter, get, put};
use super::kind::Kind;
use super::lane::Lane;
use super::message::{
    AnswerStatus, ChannelTotals, Extent, MAX_BITMAP_WORDS, MAX_CHANNELS, MAX_DESCRIPTION_BYTES, MAX_FETCH_PAGES, MAX_GUEST_KIND_BYTES,
    MAX_STATE_BYTES, Message, Offer, RefuseReason, SessionId, Token,
};
use crate::memory::{MAX_REGIONS, MemoryLayout, RegionSpec};
use crate::page::Codecs;
use crate::units::{ByteCount, ChunkIndex, GuestAddr, PageCount, PageIndex};

/// Bytes before a message's body.
pub const MESSAGE_HEADER_BYTES: usize = 32;

const MAGIC: [u8; 8] = *b"PGFERRY\n";

// Offsets of the envelope's fields.
const MAGIC_AT: usize = 0;
const VERSION_AT: usize = 8;
const KIND_AT: usize = 10;
const LENGTH_AT: usize = 12;
const BODY_CHECKSUM_AT: usize = 16;
const CHECKSUM_AT: usize = 24;

impl Message {
    /// Its name, for errors and logs.
    #[must_use]
    pub fn name(&self) -> &'static str {
        Kind::of(self).name()
    }

    /// Appends the message to `out`. Reasons in words are cut to [`MAX_REASON_BYTES`](super::MAX_REASON_BYTES).
    ///
    /// # Errors
    /// [`WireError::TooLong`] when a part that cannot be cut is too long; nothing is appended then.
    ///
    /// # Panics
    /// When a bitmap's piece has no words, or a Fetch no pages.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), WireError> {
        let start = out.len();
        out.extend_from_slice(&[0; MESSAGE_HEADER_BYTES]);
        let mut writer = BodyWriter::new(self.name(), out);
        if let Err(error) = encode_body(self, &mut writer) {
            out.truncate(start);
            return Err(error);
        }
        let (header, body) = out[start..].split_first_chunk_mut::<MESSAGE_HEADER_BYTES>().expect("the header is reserved");
        put(header, MAGIC_AT, MAGIC);
        put(header, VERSION_AT, VERSION.to_le_bytes());
        put(header, KIND_AT, Kind::of(self).number().to_le_bytes());
        put(header, LENGTH_AT, u32::try_from(body.len()).expect("every part is bounded").to_le_bytes());
        put(header, BODY_CHECKSUM_AT, checksum(body).to_le_bytes());
        let sum = checksum(&header[..CHECKSUM_AT]);
        put(header, CHECKSUM_AT, sum.to_le_bytes());
        Ok(())
    }
}

/// What the envelope of a message says of it, before its body is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Announced {
    /// Its name.
    pub(crate) message: &'static str,
    /// Bytes of its body, as many as its kind may have at most.
    pub(crate) length: u32,
}

/// What the message at the start of `bytes` announces; `None` when its envelope is not there yet.
pub(crate) fn announced_message(bytes: &[u8]) -> Result<Option<Announced>, WireError> {
    Ok(envelope(bytes)?.map(|Envelope { kind, length, .. }| Announced { message: kind.name(), length }))
}

/// Takes the message at the start of `bytes` and says how long it is; `None` when not all of it is there yet.
///
/// # Errors
/// When no message of this version begins there. A Refuse is understood whatever its version.
pub fn decode_message(bytes: &[u8]) -> Result<Option<(Message, usize)>, WireError> {
    let Some(Envelope { kind, length, body_checksum }) = envelope(bytes)? else { return Ok(None) };
    let Some(body) = bytes[MESSAGE_HEADER_BYTES..].get(..length as usize) else { return Ok(None) };
    if checksum(body) != body_checksum {
        return Err(WireError::BodyChecksum { message: kind.name() });
    }
    let mut reader = BodyReader::new(kind.name(), body);
    let message = decode_body(kind, &mut reader)?;
    reader.end()?;
    Ok(Some((message, MESSAGE_HEADER_BYTES + body.len())))
}

/// An envelope that was found right.
struct Envelope {
    kind: Kind,
    length: u32,
    body_checksum: u64,
}

/// The envelope at the start of `bytes`, once it is there.
fn envelope(bytes: &[u8]) -> Result<Option<Envelope>, WireError> {
    let magic = &bytes[..bytes.len().min(MAGIC.len())];
    if !MAGIC.starts_with(magic) {
        return Err(WireError::NotPageferry { first: magic.to_vec() });
    }
    let Some(header) = bytes.first_chunk::<MESSAGE_HEADER_BYTES>() else { return Ok(None) };
    let (version, number) = (u16::from_le_bytes(get(header, VERSION_AT)), u16::from_le_bytes(get(header, KIND_AT)));
    // Before the checksum: what another version has after these fields is not known.
    if version != VERSION && number != Kind::Refuse.number() {
        return Err(WireError::Version { theirs: version });
    }
    if checksum(&header[..CHECKSUM_AT]) != u64::from_le_bytes(get(header, CHECKSUM_AT)) {
        return Err(WireError::HeaderChecksum);
    }
    let kind = Kind::from_number(number).ok_or(WireError::UnknownMessage { kind: number })?;
    let (length, limit) = (u32::from_le_bytes(get(header, LENGTH_AT)), kind.max_body_bytes());
    if length > limit {
        return Err(WireError::MessageLength { message: kind.name(), length, limit });
    }
    Ok(Some(Envelope { kind, length, body_checksum: u64::from_le_bytes(get(header, BODY_CHECKSUM_AT)) }))
}

fn encode_body(message: &Message, body: &mut BodyWriter<'_>) -> Result<(), WireError> {
    match message {
        Message::Hello(offer) => encode_offer(offer, body)?,
        Message::Accept { channels, codecs, features, granule } => {
            body.u16(*channels);
            body.u32(codecs.bits());
            body.u32(features.bits());
            body.u16(*granule);
        }
        Message::Attached { lane } => body.u16(lane.number()),
        Message::Refuse { reason, detail } => {
            body.u16(refuse_code(*reason));
            body.reason(detail);
        }
        Message::Attach { session, token, lane, generation } => {
            body.bytes(&session.0);
            body.bytes(&token.0);
            body.u16(lane.number());
            body.u32(*generation);
        }
        Message::Progress { frames, bytes } => {
            body.u64(*frames);
            body.u64(bytes.0);
        }
        Message::Finish { totals, state, missing } => {
            encode_totals(totals, body)?;
            body.u16(u16::from(missing.is_some()));
            missing.iter().for_each(|missing| encode_extent(*missing, body));
            body.check("guest state", state.len(), MAX_STATE_BYTES)?;
            body.bytes(state);
        }
        Message::Commit { paused_for } => body.u64(u64::try_from(paused_for.as_nanos()).unwrap_or(u64::MAX)),
        Message::Abort { reason } | Message::Failed { reason } => body.reason(reason),
        Message::Query { session, token } | Message::Resume { session, token } => {
            body.bytes(&session.0);
            body.bytes(&token.0);
        }
        Message::Answer(status) => body.u16(answer_code(*status)),
        Message::Missing { first, words } | Message::Arrived { first, words } => {
            body.u32(first.0);
            body.words("words", words.iter().copied(), MAX_BITMAP_WORDS)?;
        }
        Message::Fetch { pages } => body.words("pages", pages.iter().map(|page| page.0), MAX_FETCH_PAGES)?,
        Message::Resumed { generation, arrived } => {
            body.u32(*generation);
            encode_extent(*arrived, body);
        }
        Message::Complete { pages } => body.u64(pages.0),
        Message::Stale { totals, stale } => {
            encode_totals(totals, body)?;
            encode_extent(*stale, body);
        }
        Message::Ping | Message::Ready | Message::Running | Message::Released | Message::Discarded => {}
    }
    Ok(())
}

fn decode_body(kind: Kind, body: &mut BodyReader<'_>) -> Result<Message, WireError> {
    Ok(match kind {
        Kind::Hello => Message::Hello(decode_offer(body)?),
        Kind::Accept => Message::Accept { channels: channels(body)?, codecs: codecs(body)?, features: features(body)?, granule: granule(body)? },
        Kind::Refuse => Message::Refuse { reason: refuse_reason(body.u16("reason")?), detail: body.reason()? },
        Kind::Attach => Message::Attach { session: session(body)?, token: token(body)?, lane: lane(body)?, generation: body.u32("generation")? },
        Kind::Attached => Message::Attached { lane: lane(body)? },
        Kind::Ping => Message::Ping,
        Kind::Progress => Message::Progress { frames: body.u64("number of frames")?, bytes: ByteCount(body.u64("number of bytes")?) },
        Kind::Finish => {
            let totals = all_totals(body)?;
            let missing = match body.u16("switch")? {
                0 => None,
                1 => Some(extent(body)?),
                _ => return Err(body.bad("switch")),
            };
            Message::Finish { totals, state: body.rest().to_vec(), missing }
        }
        Kind::Ready => Message::Ready,
        Kind::Commit => Message::Commit { paused_for: Duration::from_nanos(body.u64("time")?) },
        Kind::Running => Message::Running,
        Kind::Released => Message::Released,
        Kind::Abort => Message::Abort { reason: body.reason()? },
        Kind::Failed => Message::Failed { reason: body.reason()? },
        Kind::Query => Message::Query { session: session(body)?, token: token(body)? },
        Kind::Answer => Message::Answer(answer_status(body)?),
        Kind::Missing => Message::Missing { first: ChunkIndex(body.u32("first chunk")?), words: body.words("words")? },
        Kind::Fetch => Message::Fetch { pages: body.words("pages")?.into_iter().map(PageIndex).collect() },
        Kind::Resume => Message::Resume { session: session(body)?, token: token(body)? },
        Kind::Arrived => Message::Arrived { first: ChunkIndex(body.u32("first chunk")?), words: body.words("words")? },
        Kind::Resumed => Message::Resumed { generation: body.u32("generation")?, arrived: extent(body)? },
        Kind::Complete => Message::Complete { pages: PageCount(body.u64("number of pages")?) },
        Kind::Stale => Message::Stale { totals: all_totals(body)?, stale: extent(body)? },
        Kind::Discarded => Message::Discarded,
    })
}

fn encode_offer(offer: &Offer, body: &mut BodyWriter<'_>) -> Result<(), WireError> {
    body.bytes(&offer.session.0);
    body.bytes(&offer.token.0);
    body.u16(offer.channels);
    body.u32(offer.codecs.bits());
    body.u32(offer.features.bits());
    body.count("number of regions", offer.layout.regions().len(), MAX_REGIONS)?;
    for region in offer.layout.regions() {
        body.u64(region.start.0);
        body.u64(region.pages.0);
    }
    body.string("guest kind", &offer.guest_kind, MAX_GUEST_KIND_BYTES)?;
    body.string("description", &offer.description, MAX_DESCRIPTION_BYTES)
}

fn decode_offer(body: &mut BodyReader<'_>) -> Result<Offer, WireError> {
    let (session, token, channels, codecs, features) = (session(body)?, token(body)?, channels(body)?, codecs(body)?, features(body)?);
    let count = body.u16("number of regions")?;
    if usize::from(count) > MAX_REGIONS {
        return Err(body.bad("number of regions"));
    }
    let region = |_| Ok(RegionSpec { start: GuestAddr(body.u64("region")?), pages: PageCount(body.u64("region")?) });
    let regions = (0..count).map(region).collect::<Result<_, WireError>>()?;
    let layout = MemoryLayout::new(regions).map_err(|_| body.bad("memory layout"))?;
    let guest_kind = body.string("guest kind", MAX_GUEST_KIND_BYTES)?;
    let description = body.string("description", MAX_DESCRIPTION_BYTES)?;
    Ok(Offer { session, token, channels, codecs, features, layout, guest_kind, description })
}

fn session(body: &mut BodyReader<'_>) -> Result<SessionId, WireError> {
    body.array("session").map(SessionId)
}

fn token(body: &mut BodyReader<'_>) -> Result<Token, WireError> {
    body.array("token").map(Token)
}

fn channels(body: &mut BodyReader<'_>) -> Result<u16, WireError> {
    let count = body.u16("number of channels")?;
    if (1..=MAX_CHANNELS).contains(&count) { Ok(count) } else { Err(body.bad("number of channels")) }
}

fn codecs(body: &mut BodyReader<'_>) -> Result<Codecs, WireError> {
    body.u32("forms of pages").map(Codecs::from_bits)
}

fn features(body: &mut BodyReader<'_>) -> Result<Features, WireError> {
    body.u32("features").map(Features::from_bits)
}

fn granule(body: &mut BodyReader<'_>) -> Result<u16, WireError> {
    let granule = body.u16("granule")?;
    if [1, HUGE_GRANULE].contains(&granule) { Ok(granule) } else { Err(body.bad("granule")) }
}

fn lane(body: &mut BodyReader<'_>) -> Result<Lane, WireError> {
    let number = body.u16("lane")?;
    Lane::from_number(number).ok_or_else(|| body.bad("lane"))
}

fn encode_extent(extent: Extent, body: &mut BodyWriter<'_>) {
    body.u32(extent.chunks);
    body.u64(extent.pages.0);
}

fn extent(body: &mut BodyReader<'_>) -> Result<Extent, WireError> {
    Ok(Extent { chunks: body.u32("extent")?, pages: PageCount(body.u64("extent")?) })
}

fn encode_totals(totals: &[ChannelTotals], body: &mut BodyWriter<'_>) -> Result<(), WireError> {
    body.count("number of channels", totals.len(), usize::from(MAX_CHANNELS))?;
    for channel in totals {
        [channel.frames, channel.pages.0, channel.bytes.0, channel.digest].into_iter().for_each(|number| body.u64(number));
    }
    Ok(())
}

fn all_totals(body: &mut BodyReader<'_>) -> Result<Vec<ChannelTotals>, WireError> {
    let count = channels(body)?;
    (0..count).map(|_| channel_totals(body)).collect()
}

fn channel_totals(body: &mut BodyReader<'_>) -> Result<ChannelTotals, WireError> {
    Ok(ChannelTotals {
        frames: body.u64("totals")?,
        pages: PageCount(body.u64("totals")?),
        bytes: ByteCount(body.u64("totals")?),
        digest: body.u64("totals")?,
    })
}

fn refuse_code(reason: RefuseReason) -> u16 {
    match reason {
        RefuseReason::Other => 0,
        RefuseReason::Version => 1,
        RefuseReason::Layout => 2,
        RefuseReason::Memory => 3,
        RefuseReason::GuestKind => 4,
        RefuseReason::Description => 5,
        RefuseReason::Authorization => 6,
        RefuseReason::Busy => 7,
    }
}

/// A reason that only a later version knows is `Other`: its words say what it is.
fn refuse_reason(code: u16) -> RefuseReason {
    match code {
        1 => RefuseReason::Version,
        2 => RefuseReason::Layout,
        3 => RefuseReason::Memory,
        4 => RefuseReason::GuestKind,
        5 => RefuseReason::Description,
        6 => RefuseReason::Authorization,
        7 => RefuseReason::Busy,
        _ => RefuseReason::Other,
    }
}

fn answer_code(status: AnswerStatus) -> u16 {
    match status {
        AnswerStatus::Running => 1,
        AnswerStatus::NeverStarted => 2,
        AnswerStatus::Unknown => 3,
    }
}

fn answer_status(body: &mut BodyReader<'_>) -> Result<AnswerStatus, WireError> {
    match body.u16("status")? {
        1 => Ok(AnswerStatus::Running),
        2 => Ok(AnswerStatus::NeverStarted),
        3 => Ok(AnswerStatus::Unknown),
        _ => Err(body.bad("status")),
    }
}
