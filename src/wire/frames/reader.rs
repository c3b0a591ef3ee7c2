//! The frames of one lane as they arrive.

use super::{
    CHECKSUM_AT, CHUNK_AT, FRAME_HEADER_BYTES, FrameBody, FrameHeader, KIND_AT, Kind, MAGIC, MAGIC_AT, MASKS_AT, META_AT, PACKING_AT,
    PAYLOAD_CHECKSUM_AT, ROUND_AT, SEQUENCE_AT, count,
};
use crate::memory::{MemoryLayout, PageSink};
use crate::page::{Codecs, Decoder, Masks, Packing, Pages};
use crate::units::ChunkIndex;
use crate::wire::checksum::{Checksum, checksum as checksum_of};
use crate::wire::error::{FrameError, WireError};
use crate::wire::fields::get;
use crate::wire::{ChannelTotals, channel_of};

/// Checks and places the frames of one lane.
///
/// For each frame: [`FrameReader::parse`] its header, [begin](PageSink::begin) its chunk, read the raw pages to where they
/// belong ([`PageSink::read_from`]) and the meta bytes into a buffer, then [`FrameReader::apply`]. After an error the memory
/// must not be used; nothing of a staged frame must be.
#[derive(Debug)]
pub struct FrameReader {
    channel: u16,
    codecs: Codecs,
    stage: Stage,
    decoder: Decoder,
    totals: ChannelTotals,
}

/// What may arrive next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Frames of rounds, `ended` of which have ended, on one of so many channels.
    PreCopy {
        channels: u16,
        ended: u32,
        switch: Switch,
    },
    /// Nothing: the last frame was the switch.
    Switched,
    PostCopy,
}

/// Whether post-copy was granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Switch {
    Granted,
    NotGranted,
}

impl FrameReader {
    /// A reader for channel `channel` of `channels`, on which nothing has arrived; `codecs` is what was agreed on. A
    /// switch to post-copy is an error.
    #[must_use]
    pub fn new(channel: u16, channels: u16, codecs: Codecs, decoder: Decoder) -> Self {
        let stage = Stage::PreCopy { channels, ended: 0, switch: Switch::NotGranted };
        Self { channel, codecs, stage, decoder, totals: ChannelTotals::default() }
    }

    /// The same reader when post-copy was granted: the switch may come.
    #[must_use]
    pub fn granting_post_copy(mut self) -> Self {
        if let Stage::PreCopy { switch, .. } = &mut self.stage {
            *switch = Switch::Granted;
        }
        self
    }

    /// A reader for a lane on which post-copy begins. Errors name the lane `channel`, as it is numbered on the wire.
    #[must_use]
    pub fn post_copy(channel: u16, codecs: Codecs) -> Self {
        Self { channel, codecs, stage: Stage::PostCopy, decoder: Decoder::post_copy(), totals: ChannelTotals::default() }
    }

    /// The reader for post-copy on the same lane, with numbers and totals that begin anew.
    #[must_use]
    pub fn into_post_copy(self) -> Self {
        Self { stage: Stage::PostCopy, decoder: self.decoder.into_post_copy(), totals: ChannelTotals::default(), ..self }
    }

    /// Checks a header on its own, against the memory and against the frames before it.
    ///
    /// # Errors
    /// When it is not the header of the next frame of this lane.
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
    pub fn apply<S: PageSink>(&mut self, header: &FrameHeader, sink: &mut S, meta: &[u8]) -> Result<(), WireError> {
        assert_eq!(meta.len(), header.meta_bytes(), "exactly the meta bytes of the frame");
        match &header.body {
            FrameBody::Chunk { chunk, pages } => self.apply_chunk(header, *chunk, pages, sink, meta).map_err(|source| self.frame_error(source))?,
            FrameBody::RoundEnd => {
                if let Stage::PreCopy { ended, .. } = &mut self.stage {
                    *ended += 1;
                }
            }
            FrameBody::Switch => self.stage = Stage::Switched,
        }
        count(&mut self.totals, header);
        Ok(())
    }

    /// Applies the frame at the start of `bytes`, if all of it is there; returns its header, which knows its length.
    ///
    /// # Errors
    /// As [`FrameReader::parse`] and [`FrameReader::apply`].
    pub fn apply_bytes<S: PageSink>(&mut self, bytes: &[u8], layout: &MemoryLayout, sink: &mut S) -> Result<Option<FrameHeader>, WireError> {
        let Some((header, payload)) = bytes.split_first_chunk() else { return Ok(None) };
        let header = self.parse(header, layout)?;
        let Some(payload) = payload.get(..header.frame_bytes() - FRAME_HEADER_BYTES) else { return Ok(None) };
        let (raw, meta) = payload.split_at(header.raw_bytes());
        if let FrameBody::Chunk { chunk, pages } = header.body {
            sink.begin(chunk, pages.masks.filled());
            sink.write_front(chunk, pages.masks.raw, raw);
        }
        self.apply(&header, sink, meta)?;
        Ok(Some(header))
    }

    /// What has been applied so far.
    #[must_use]
    pub fn totals(&self) -> ChannelTotals {
        self.totals
    }

    fn apply_chunk<S: PageSink>(
        &mut self,
        header: &FrameHeader,
        chunk: ChunkIndex,
        pages: &Pages,
        sink: &mut S,
        meta: &[u8],
    ) -> Result<(), FrameError> {
        let mut checksum = Checksum::new();
        sink.for_each_page(chunk, pages.masks.raw, |page| checksum.update(page));
        checksum.update(meta);
        if checksum.finish() != header.payload_checksum {
            return Err(FrameError::PayloadChecksum { chunk });
        }
        self.decoder.place_meta(sink, chunk, pages, meta).map_err(|source| FrameError::Pages { chunk, source })?;
        sink.end(chunk);
        Ok(())
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
        let [kind] = get(header, KIND_AT);
        let body = match (Kind::from_code(kind).ok_or(FrameError::UnknownKind { kind })?, self.stage) {
            (Kind::Chunk, Stage::PreCopy { channels, .. }) => self.parse_chunk(header, layout, Some(channels))?,
            (Kind::PostCopyChunk, Stage::PostCopy) if round != 0 => return Err(FrameError::Reserved),
            (Kind::PostCopyChunk, Stage::PostCopy) => self.parse_chunk(header, layout, None)?,
            (Kind::Switch, Stage::PreCopy { switch: Switch::NotGranted, .. }) => return Err(FrameError::Misplaced { kind }),
            (kind @ (Kind::RoundEnd | Kind::Switch), Stage::PreCopy { ended, .. }) => {
                if header[PACKING_AT] != 0 || header[CHUNK_AT..CHECKSUM_AT].iter().any(|&byte| byte != 0) {
                    return Err(FrameError::Reserved);
                }
                // In order, so there are no more of them than they have numbers.
                if u32::from(round) != ended {
                    return Err(FrameError::RoundEnd { found: round });
                }
                if kind == Kind::Switch { FrameBody::Switch } else { FrameBody::RoundEnd }
            }
            _ => return Err(FrameError::Misplaced { kind }),
        };
        let payload_checksum = u64::from_le_bytes(get(header, PAYLOAD_CHECKSUM_AT));
        Ok(FrameHeader { round, body, payload_checksum, checksum })
    }

    /// Pages of a chunk: on its own channel if there are rounds, on any lane without differences if not.
    fn parse_chunk(&self, header: &[u8; FRAME_HEADER_BYTES], layout: &MemoryLayout, channels: Option<u16>) -> Result<FrameBody, FrameError> {
        let chunk = ChunkIndex(u32::from_le_bytes(get(header, CHUNK_AT)));
        let valid = layout.valid_mask(chunk);
        if valid == 0 {
            return Err(FrameError::Outside { chunk });
        }
        if let Some(belongs) = channels.map(|channels| channel_of(chunk, channels)).filter(|&belongs| belongs != self.channel) {
            return Err(FrameError::Channel { chunk, belongs });
        }
        let masks = Masks::from_array(MASKS_AT.map(|at| u64::from_le_bytes(get(header, at))));
        if masks.all() == 0 || masks.all() & !valid != 0 || !masks.is_disjoint() {
            return Err(FrameError::Masks { chunk });
        }
        let relative = masks.unchanged | masks.delta;
        if channels.is_none() && relative != 0 {
            return Err(FrameError::Relative { chunk, bit: relative.trailing_zeros() });
        }
        let [code] = get(header, PACKING_AT);
        let packing = packing_of(code).ok_or(FrameError::Packing { chunk, code })?;
        let pages = Pages { masks, packing, meta_bytes: u32::from_le_bytes(get(header, META_AT)) };
        if !self.codecs.contains(pages.codecs()) {
            let form = [(Codecs::DELTA, relative), (Codecs::COLUMNS, masks.columns), (Codecs::LZ4, masks.lz4), (Codecs::ZSTD, masks.zstd)];
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

fn packing_of(code: u8) -> Option<Packing> {
    match code {
        0 => Some(Packing::Plain),
        1 => Some(Packing::Lz4),
        2 => Some(Packing::Zstd),
        _ => None,
    }
}
