//! Frames and messages that the engine would never make, with checksums that hold: written from `SPEC.md`, not with
//! the engine's own code.

use pageferry::wire::{FRAME_HEADER_BYTES, Message};
use xxhash_rust::xxh3::xxh3_64;

use crate::talk::encoded;

/// A frame, field by field.
#[derive(Clone, Default)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    /// Of a chunk: how its deltas and columns are packed.
    pub(crate) packing: u8,
    pub(crate) round: u16,
    pub(crate) sequence: u64,
    pub(crate) chunk: u32,
    /// Zero, uniform, unchanged, delta, columns, LZ4, Zstandard, raw.
    pub(crate) masks: [u64; 8],
    pub(crate) raw: Vec<u8>,
    pub(crate) meta: Vec<u8>,
    /// Said in place of the true length.
    pub(crate) meta_bytes: Option<u32>,
}

impl Frame {
    /// One raw page, at the front of `chunk`.
    pub(crate) fn raw_page(chunk: u32) -> Self {
        Self { kind: 1, chunk, masks: [0, 0, 0, 0, 0, 0, 0, 1], raw: vec![7; 4096], ..Self::default() }
    }

    /// Packed pages from the front of chunk 0: lengths and blocks as given.
    pub(crate) fn packed(blocks: &[(u16, &[u8])]) -> Self {
        let mut meta: Vec<u8> = blocks.iter().flat_map(|(length, _)| length.to_le_bytes()).collect();
        blocks.iter().for_each(|(_, block)| meta.extend_from_slice(block));
        Self { kind: 1, masks: [0, 0, 0, 0, 0, (1 << blocks.len()) - 1, 0, 0], meta, ..Self::default() }
    }

    /// Deltas of the pages of `mask` in chunk 0: their checks (made up), lengths and bytes.
    pub(crate) fn deltas(mask: u64, lengths: &[u16], deltas: &[u8]) -> Self {
        let mut meta = vec![0; 4 * lengths.len()];
        meta.extend(lengths.iter().flat_map(|length| length.to_le_bytes()));
        meta.extend_from_slice(deltas);
        Self { kind: 1, masks: [0, 0, 0, mask, 0, 0, 0, 0], meta, ..Self::default() }
    }

    /// The first page of chunk 0 in columns.
    pub(crate) fn columns(columns: &[u8]) -> Self {
        let length = u16::try_from(columns.len()).unwrap().to_le_bytes();
        Self { kind: 1, masks: [0, 0, 0, 0, 1, 0, 0, 0], meta: [&length, columns].concat(), ..Self::default() }
    }

    pub(crate) fn round_end() -> Self {
        Self { kind: 2, ..Self::default() }
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let payload = [self.raw.as_slice(), &self.meta].concat();
        let mut bytes = b"PGFR".to_vec();
        bytes.extend([self.kind, self.packing]);
        bytes.extend(self.round.to_le_bytes());
        bytes.extend(self.sequence.to_le_bytes());
        bytes.extend(self.chunk.to_le_bytes());
        let meta_bytes = self.meta_bytes.unwrap_or_else(|| self.meta.len().try_into().unwrap());
        bytes.extend(meta_bytes.to_le_bytes());
        bytes.extend(self.masks.iter().flat_map(|mask| mask.to_le_bytes()));
        bytes.extend(if matches!(self.kind, 1 | 4) { xxh3_64(&payload) } else { 0 }.to_le_bytes());
        bytes.extend(xxh3_64(&bytes).to_le_bytes());
        assert_eq!(bytes.len(), FRAME_HEADER_BYTES);
        [bytes, payload].concat()
    }
}

/// A message of any version and kind, announcing any length.
pub(crate) fn envelope(version: u16, kind: u16, length: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes = b"PGFERRY\n".to_vec();
    bytes.extend(version.to_le_bytes());
    bytes.extend(kind.to_le_bytes());
    bytes.extend(length.to_le_bytes());
    bytes.extend(xxh3_64(body).to_le_bytes());
    bytes.extend(xxh3_64(&bytes).to_le_bytes());
    [&bytes, body].concat()
}

/// A message of this version with another body.
pub(crate) fn message(kind: u16, body: &[u8]) -> Vec<u8> {
    envelope(1, kind, body.len().try_into().unwrap(), body)
}

/// The bytes of `message` with one bit of byte `at` turned.
pub(crate) fn altered(message: &Message, at: usize) -> Vec<u8> {
    let mut bytes = encoded(message);
    bytes[at] ^= 0x10;
    bytes
}

/// The body of `message`, for changes at known places.
pub(crate) fn body(message: &Message) -> Vec<u8> {
    encoded(message).split_off(32)
}

// Numbers of messages.
pub(crate) const HELLO: u16 = 1;
pub(crate) const ACCEPT: u16 = 2;
pub(crate) const REFUSE: u16 = 3;
pub(crate) const FINISH: u16 = 8;
pub(crate) const MISSING: u16 = 17;
