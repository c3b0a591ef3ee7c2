//! Frames: the pages of one chunk, or the end of a round.
//!
//! A header of fixed size, then the payload as [`page`](crate::page) lays it out. The header has a checksum of its own
//! and is believed only if that holds, so an altered mask cannot make the receiver wait for bytes that never come; it
//! also holds the payload's checksum, so the header's checksum stands for the whole frame. Sequence numbers and a digest
//! over the headers' checksums make a lost, doubled or swapped frame as visible as an altered one.

use super::checksum::{Checksum, checksum as checksum_of};
use super::error::{FrameError, WireError};
use super::fields::{get, put};
use super::{ChannelTotals, channel_of};
use crate::memory::{MemoryLayout, Placement};
use crate::page::{Codecs, Decoder, Encoded, Encoder, Form, Masks, Packing, Pages, Work};
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
}

/// A frame's header, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// The round it belongs to.
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
            FrameBody::RoundEnd => 0,
        }
    }

    /// Bytes that follow the raw pages: at most [`MAX_META_BYTES`].
    #[must_use]
    pub fn meta_bytes(&self) -> usize {
        match self.body {
            FrameBody::Chunk { pages, .. } => pages.meta_bytes as usize,
            FrameBody::RoundEnd => 0,
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
            FrameBody::RoundEnd => PageCount(0),
        }
    }
}

/// Makes the frames of one channel.
#[derive(Debug)]
pub struct FrameWriter {
    encoder: Encoder,
    totals: ChannelTotals,
}

impl FrameWriter {
    /// A writer for a channel nothing has been sent on.
    #[must_use]
    pub fn new(encoder: Encoder) -> Self {
        Self { encoder, totals: ChannelTotals::default() }
    }

    /// Appends to `out` a frame with the pages of `work`, copied out of its memory; says how the pages travel.
    ///
    /// # Panics
    /// When the mask is empty or names pages that the chunk does not have.
    pub fn push_chunk(&mut self, out: &mut Vec<u8>, work: Work<'_>) -> Encoded {
        assert!(work.mask != 0, "a frame has at least one page");
        let start = out.len();
        out.extend_from_slice(&[0; FRAME_HEADER_BYTES]);
        let encoded = self.encoder.encode(work, out);
        self.finish(&mut out[start..], work.round, FrameBody::Chunk { chunk: work.chunk, pages: encoded.pages });
        encoded
    }

    /// Appends the frame that ends a round.
    pub fn push_round_end(&mut self, out: &mut Vec<u8>, round: u16) {
        let start = out.len();
        out.extend_from_slice(&[0; FRAME_HEADER_BYTES]);
        self.finish(&mut out[start..], round, FrameBody::RoundEnd);
    }

    /// What has been made so far.
    #[must_use]
    pub fn totals(&self) -> ChannelTotals {
        self.totals
    }

    /// Fills in the header of `frame`, whose payload is there.
    fn finish(&mut self, frame: &mut [u8], round: u16, body: FrameBody) {
        let (header, payload) = frame.split_first_chunk_mut::<FRAME_HEADER_BYTES>().expect("the header is reserved");
        put(header, MAGIC_AT, MAGIC);
        put(header, ROUND_AT, round.to_le_bytes());
        put(header, SEQUENCE_AT, self.totals.frames.to_le_bytes());
        let payload_checksum = match body {
            FrameBody::Chunk { chunk, pages } => {
                put(header, KIND_AT, [KIND_CHUNK]);
                put(header, PACKING_AT, [packing_code(pages.packing)]);
                put(header, CHUNK_AT, chunk.0.to_le_bytes());
                put(header, META_AT, pages.meta_bytes.to_le_bytes());
                for (at, mask) in MASKS_AT.into_iter().zip(pages.masks.to_array()) {
                    put(header, at, mask.to_le_bytes());
                }
                checksum_of(payload)
            }
            FrameBody::RoundEnd => {
                put(header, KIND_AT, [KIND_ROUND_END]);
                0
            }
        };
        put(header, PAYLOAD_CHECKSUM_AT, payload_checksum.to_le_bytes());
        let checksum = checksum_of(&header[..CHECKSUM_AT]);
        put(header, CHECKSUM_AT, checksum.to_le_bytes());
        count(&mut self.totals, &FrameHeader { round, body, payload_checksum, checksum });
    }
}

/// Checks and places the frames of one channel.
///
/// For each frame: [`FrameReader::parse`] its header, read the raw pages to where they belong
/// ([`Placement::read_from`]) and the meta bytes into a buffer, then [`FrameReader::apply`]. After an error the memory
/// must not be used.
#[derive(Debug)]
pub struct FrameReader {
    channel: u16,
    channels: u16,
    codecs: Codecs,
    decoder: Decoder,
    totals: ChannelTotals,
    /// Round ends so far.
    rounds: u32,
}

impl FrameReader {
    /// A reader for channel `channel` of `channels`, on which nothing has arrived; `codecs` is what was agreed on.
    #[must_use]
    pub fn new(channel: u16, channels: u16, codecs: Codecs, decoder: Decoder) -> Self {
        Self { channel, channels, codecs, decoder, totals: ChannelTotals::default(), rounds: 0 }
    }

    /// Checks a header on its own, against the memory and against the frames before it.
    ///
    /// # Errors
    /// When it is not the header of the next frame of this channel.
    pub fn parse(&self, header: &[u8; FRAME_HEADER_BYTES], layout: &MemoryLayout) -> Result<FrameHeader, WireError> {
        self.parse_fields(header, layout).map_err(|source| self.frame_error(source))
    }

    /// Checks the payload of the frame with header `header` (its raw pages are in place) and places the rest of it.
    ///
    /// # Errors
    /// When the payload is not the one that was sent, or cannot be decoded.
    ///
    /// # Panics
    /// When `meta` is not [`FrameHeader::meta_bytes`] long, or the header was parsed against another layout.
    pub fn apply(&mut self, header: &FrameHeader, placement: &mut Placement<'_>, meta: &[u8]) -> Result<(), WireError> {
        assert_eq!(meta.len(), header.meta_bytes(), "exactly the meta bytes of the frame");
        if let FrameBody::Chunk { chunk, pages } = &header.body {
            let chunk = *chunk;
            let mut checksum = Checksum::new();
            placement.for_each_page(chunk, pages.masks.raw, |page| checksum.update(page));
            checksum.update(meta);
            if checksum.finish() != header.payload_checksum {
                return Err(self.frame_error(FrameError::PayloadChecksum { chunk }));
            }
            let placed = self.decoder.place_meta(placement, chunk, pages, meta);
            placed.map_err(|source| self.frame_error(FrameError::Pages { chunk, source }))?;
        } else {
            self.rounds += 1;
        }
        count(&mut self.totals, header);
        Ok(())
    }

    /// Applies the frame at the start of `bytes`, if all of it is there; returns its header, which knows its length.
    ///
    /// # Errors
    /// As [`FrameReader::parse`] and [`FrameReader::apply`].
    pub fn apply_bytes(&mut self, bytes: &[u8], placement: &mut Placement<'_>) -> Result<Option<FrameHeader>, WireError> {
        let Some((header, payload)) = bytes.split_first_chunk() else { return Ok(None) };
        let header = self.parse(header, placement.memory().layout())?;
        let Some(payload) = payload.get(..header.frame_bytes() - FRAME_HEADER_BYTES) else { return Ok(None) };
        let (raw, meta) = payload.split_at(header.raw_bytes());
        if let FrameBody::Chunk { chunk, pages } = header.body {
            placement.write_front(chunk, pages.masks.raw, raw);
        }
        self.apply(&header, placement, meta)?;
        Ok(Some(header))
    }

    /// What has been applied so far.
    #[must_use]
    pub fn totals(&self) -> ChannelTotals {
        self.totals
    }

    fn parse_fields(&self, header: &[u8; FRAME_HEADER_BYTES], layout: &MemoryLayout) -> Result<FrameHeader, FrameError> {
        let first = get(header, MAGIC_AT);
        if first != MAGIC {
            return Err(FrameError::Magic { first });
        }
        let checksum = u64::from_le_bytes(get(header, CHECKSUM_AT));
        if checksum_of(&header[..CHECKSUM_AT]) != checksum {
            return Err(FrameError::HeaderChecksum);
        }
        let sequence = u64::from_le_bytes(get(header, SEQUENCE_AT));
        if sequence != self.totals.frames {
            return Err(FrameError::Sequence { found: sequence });
        }
        let round = u16::from_le_bytes(get(header, ROUND_AT));
        let [packing] = get(header, PACKING_AT);
        let body = match get(header, KIND_AT) {
            [KIND_CHUNK] => self.parse_chunk(header, layout)?,
            [KIND_ROUND_END] if packing != 0 || header[CHUNK_AT..CHECKSUM_AT].iter().any(|&byte| byte != 0) => return Err(FrameError::Reserved),
            // In order, so there are no more of them than they have numbers.
            [KIND_ROUND_END] if u32::from(round) != self.rounds => return Err(FrameError::RoundEnd { found: round }),
            [KIND_ROUND_END] => FrameBody::RoundEnd,
            [kind] => return Err(FrameError::UnknownKind { kind }),
        };
        let payload_checksum = u64::from_le_bytes(get(header, PAYLOAD_CHECKSUM_AT));
        Ok(FrameHeader { round, body, payload_checksum, checksum })
    }

    fn parse_chunk(&self, header: &[u8; FRAME_HEADER_BYTES], layout: &MemoryLayout) -> Result<FrameBody, FrameError> {
        let chunk = ChunkIndex(u32::from_le_bytes(get(header, CHUNK_AT)));
        let valid = layout.valid_mask(chunk);
        if valid == 0 {
            return Err(FrameError::Outside { chunk });
        }
        let belongs = channel_of(chunk, self.channels);
        if belongs != self.channel {
            return Err(FrameError::Channel { chunk, belongs });
        }
        let masks = Masks::from_array(MASKS_AT.map(|at| u64::from_le_bytes(get(header, at))));
        if masks.all() == 0 || masks.all() & !valid != 0 || !masks.is_disjoint() {
            return Err(FrameError::Masks { chunk });
        }
        let [code] = get(header, PACKING_AT);
        let packing = packing_of(code).ok_or(FrameError::Packing { chunk, code })?;
        let pages = Pages { masks, packing, meta_bytes: u32::from_le_bytes(get(header, META_AT)) };
        if !self.codecs.contains(pages.codecs()) {
            let form = [
                (Codecs::DELTA, masks.unchanged | masks.delta),
                (Codecs::COLUMNS, masks.columns),
                (Codecs::LZ4, masks.lz4),
                (Codecs::ZSTD, masks.zstd),
            ];
            let unagreed = form.into_iter().find(|(codec, mask)| *mask != 0 && !self.codecs.contains(*codec));
            let mask = unagreed.map_or(masks.delta | masks.columns, |(_, mask)| mask);
            return Err(FrameError::NotAgreed { chunk, bit: mask.trailing_zeros() });
        }
        if !pages.is_plausible() {
            return Err(FrameError::MetaLength { chunk, length: pages.meta_bytes });
        }
        Ok(FrameBody::Chunk { chunk, pages })
    }

    fn frame_error(&self, source: FrameError) -> WireError {
        WireError::Frame { channel: self.channel, sequence: self.totals.frames, source }
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

fn packing_code(packing: Packing) -> u8 {
    match packing {
        Packing::Plain => 0,
        Packing::Lz4 => 1,
        Packing::Zstd => 2,
    }
}

fn packing_of(code: u8) -> Option<Packing> {
    match code {
        0 => Some(Packing::Plain),
        1 => Some(Packing::Lz4),
        2 => Some(Packing::Zstd),
        _ => None,
    }
}

const MAGIC: [u8; 4] = *b"PGFR";
const KIND_CHUNK: u8 = 1;
const KIND_ROUND_END: u8 = 2;

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
