//! The frames of one lane as they are made.

use super::{
    CHECKSUM_AT, CHUNK_AT, FRAME_HEADER_BYTES, FrameBody, FrameHeader, KIND_AT, Kind, MAGIC, MAGIC_AT, MASKS_AT, META_AT, PACKING_AT,
    PAYLOAD_CHECKSUM_AT, ROUND_AT, SEQUENCE_AT, count,
};
use crate::page::{Encoded, Encoder, Keep, Packing, Work};
use crate::wire::ChannelTotals;
use crate::wire::checksum::checksum as checksum_of;
use crate::wire::fields::put;

/// Makes the frames of one lane.
#[derive(Debug)]
pub struct FrameWriter {
    encoder: Encoder,
    stage: Stage,
    totals: ChannelTotals,
}

/// What may be made next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    PreCopy,
    /// Nothing: the last frame was the switch.
    Switched,
    PostCopy,
}

impl FrameWriter {
    /// A writer for a channel nothing has been sent on.
    #[must_use]
    pub fn new(encoder: Encoder) -> Self {
        Self { encoder, stage: Stage::PreCopy, totals: ChannelTotals::default() }
    }

    /// A writer for a lane on which post-copy begins. The encoder makes no deltas and leaves out no page from now on.
    #[must_use]
    pub fn post_copy(encoder: Encoder) -> Self {
        Self { encoder: encoder.into_post_copy(), stage: Stage::PostCopy, totals: ChannelTotals::default() }
    }

    /// The writer for post-copy on the same lane, with numbers and totals that begin anew.
    #[must_use]
    pub fn into_post_copy(self) -> Self {
        Self::post_copy(self.encoder)
    }

    /// See [`Encoder::keep`].
    pub fn keep(&mut self, keep: Keep) {
        self.encoder.keep(keep);
    }

    /// Appends to `out` a frame with the pages of `work`, copied out of its memory; says how the pages travel. In
    /// post-copy the round does not matter.
    ///
    /// # Panics
    /// When the mask is empty or names pages that the chunk does not have, and after the switch.
    pub fn push_chunk(&mut self, out: &mut Vec<u8>, work: Work<'_>) -> Encoded {
        assert!(work.mask != 0, "a frame has at least one page");
        let (kind, round) = match self.stage {
            Stage::PreCopy => (Kind::Chunk, work.round),
            Stage::Switched => panic!("no pages between the switch and post-copy"),
            Stage::PostCopy => (Kind::PostCopyChunk, 0),
        };
        let start = out.len();
        out.extend_from_slice(&[0; FRAME_HEADER_BYTES]);
        let encoded = self.encoder.encode(work, out);
        self.finish(&mut out[start..], kind, round, FrameBody::Chunk { chunk: work.chunk, pages: encoded.pages });
        encoded
    }

    /// Appends the frame that ends a round.
    ///
    /// # Panics
    /// After the switch, and in post-copy.
    pub fn push_round_end(&mut self, out: &mut Vec<u8>, round: u16) {
        self.push_end(out, Kind::RoundEnd, round, FrameBody::RoundEnd);
    }

    /// Appends the frame that ends the last round before post-copy: nothing follows but what
    /// [`FrameWriter::into_post_copy`] makes.
    ///
    /// # Panics
    /// After the switch, and in post-copy.
    pub fn push_switch(&mut self, out: &mut Vec<u8>, round: u16) {
        self.push_end(out, Kind::Switch, round, FrameBody::Switch);
        self.stage = Stage::Switched;
    }

    /// What has been made so far.
    #[must_use]
    pub fn totals(&self) -> ChannelTotals {
        self.totals
    }

    fn push_end(&mut self, out: &mut Vec<u8>, kind: Kind, round: u16, body: FrameBody) {
        assert_eq!(self.stage, Stage::PreCopy, "rounds are of pre-copy");
        let start = out.len();
        out.extend_from_slice(&[0; FRAME_HEADER_BYTES]);
        self.finish(&mut out[start..], kind, round, body);
    }

    /// Fills in the header of `frame`, whose payload is there.
    fn finish(&mut self, frame: &mut [u8], kind: Kind, round: u16, body: FrameBody) {
        let (header, payload) = frame.split_first_chunk_mut::<FRAME_HEADER_BYTES>().expect("the header is reserved");
        put(header, MAGIC_AT, MAGIC);
        put(header, KIND_AT, [kind as u8]);
        put(header, ROUND_AT, round.to_le_bytes());
        put(header, SEQUENCE_AT, self.totals.frames.to_le_bytes());
        let payload_checksum = match body {
            FrameBody::Chunk { chunk, pages } => {
                put(header, PACKING_AT, [packing_code(pages.packing)]);
                put(header, CHUNK_AT, chunk.0.to_le_bytes());
                put(header, META_AT, pages.meta_bytes.to_le_bytes());
                for (at, mask) in MASKS_AT.into_iter().zip(pages.masks.to_array()) {
                    put(header, at, mask.to_le_bytes());
                }
                checksum_of(payload)
            }
            FrameBody::RoundEnd | FrameBody::Switch => 0,
        };
        put(header, PAYLOAD_CHECKSUM_AT, payload_checksum.to_le_bytes());
        let checksum = checksum_of(&header[..CHECKSUM_AT]);
        put(header, CHECKSUM_AT, checksum.to_le_bytes());
        count(&mut self.totals, &FrameHeader { round, body, payload_checksum, checksum });
    }
}

fn packing_code(packing: Packing) -> u8 {
    match packing {
        Packing::Plain => 0,
        Packing::Lz4 => 1,
        Packing::Zstd => 2,
    }
}
