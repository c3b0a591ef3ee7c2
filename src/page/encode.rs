//! Pages to bytes.

use std::fmt;

use lz4_flex::block::{CompressTable, compress_into_with_table, get_maximum_output_size};

use super::history::History;
use super::{Compression, MAX_PACKED_BYTES, Masks, bits};
use crate::memory::{Chunk, PageSummary};
use crate::units::{CHUNK_PAGES, ChunkIndex, PAGE_SIZE};

/// What [`Encoder::encode`] made of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Encoded {
    /// How each page travels.
    pub masks: Masks,
    /// Bytes after the raw pages.
    pub meta_bytes: u32,
}

/// Encodes the chunks of one worker. Allocates nothing once `out` has grown to its size.
pub struct Encoder {
    compression: Compression,
    history: History,
    table: CompressTable,
    /// Of the current chunk: the words of its uniform pages, ...
    words: Vec<u64>,
    /// ... the lengths of its LZ4 blocks, ...
    lengths: Vec<u16>,
    /// ... and the blocks, with room after them for whatever LZ4 may want to write of one more page.
    packed: Box<[u8]>,
}

impl Encoder {
    /// An encoder for memory of `chunks` chunks.
    #[must_use]
    pub fn new(compression: Compression, chunks: u32) -> Self {
        Self {
            compression,
            history: History::new(chunks),
            table: CompressTable::small(),
            words: Vec::with_capacity(CHUNK_PAGES),
            lengths: Vec::with_capacity(CHUNK_PAGES),
            packed: vec![0; CHUNK_PAGES * MAX_PACKED_BYTES + get_maximum_output_size(PAGE_SIZE)].into_boxed_slice(),
        }
    }

    /// Copies the pages of `mask` out of `memory`, which is chunk `chunk`, and appends their bytes to `out`.
    ///
    /// # Panics
    /// When the chunk has no page named in `mask`, or is not one of the memory the encoder was made for.
    pub fn encode(&mut self, chunk: ChunkIndex, memory: Chunk<'_>, mask: u64, out: &mut Vec<u8>) -> Encoded {
        self.words.clear();
        self.lengths.clear();
        self.history.begin(chunk);
        let mut masks = Masks::default();
        let mut packed = 0;
        for bit in bits(mask) {
            let page = 1 << bit;
            let start = out.len();
            match memory.append_to(bit, out) {
                PageSummary::Uniform(0) => masks.zero |= page,
                PageSummary::Uniform(word) => {
                    masks.uniform |= page;
                    self.words.push(word);
                }
                PageSummary::Mixed => match self.pack(chunk, bit, &out[start..], packed) {
                    Some(length) => {
                        masks.lz4 |= page;
                        self.lengths.push(length);
                        packed += usize::from(length);
                    }
                    None => {
                        masks.raw |= page;
                        continue;
                    }
                },
            }
            out.truncate(start);
        }
        let meta = out.len();
        out.extend(self.words.iter().flat_map(|word| word.to_le_bytes()));
        out.extend(self.lengths.iter().flat_map(|length| length.to_le_bytes()));
        out.extend_from_slice(&self.packed[..packed]);
        Encoded { masks, meta_bytes: u32::try_from(out.len() - meta).expect("less than a chunk and a half") }
    }

    /// Compresses `page` to offset `at` of the blocks, if it is worth it; says how long it became.
    fn pack(&mut self, chunk: ChunkIndex, bit: u32, page: &[u8], at: usize) -> Option<u16> {
        if self.compression == Compression::None || !self.history.is_worth_trying(chunk, bit) {
            return None;
        }
        let length = compress_into_with_table(page, &mut self.packed[at..], &mut self.table).expect("there is room for the longest block");
        let worth_it = length <= MAX_PACKED_BYTES;
        self.history.record(chunk, bit, worth_it);
        worth_it.then(|| u16::try_from(length).expect("shorter than a page"))
    }
}

impl fmt::Debug for Encoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Encoder").field("compression", &self.compression).finish_non_exhaustive()
    }
}
