//! Pages to bytes.

use std::fmt;
use std::time::{Duration, Instant};

use super::bases::Bases;
use super::entropy::{Entropy, looks_random};
use super::history::History;
use super::key::{BlockHashes, check_of};
use super::known::Known;
use super::pack::{Packer, lz4_room, room};
use super::{Codecs, Form, Keep, MAX_COLUMNS_BYTES, MAX_DELTA_BYTES, MAX_PACKED_BYTES, Method, Packing, PageKey, Pages, columns, delta};
use crate::bitmap::bits;
use crate::memory::{Chunk, PageSummary};
use crate::units::{ByteCount, CHUNK_PAGES, CHUNK_SIZE, ChunkIndex, PAGE_SIZE};

/// What an encoder works with.
#[derive(Clone, Debug)]
pub struct EncoderSettings {
    /// What the destination takes.
    pub codecs: Codecs,
    /// Both ends' key.
    pub key: PageKey,
    /// Memory that this encoder may use to make deltas; none is made without.
    pub delta_cache: ByteCount,
}

impl EncoderSettings {
    /// Whether pages that are sent again go as what has become of them.
    #[must_use]
    pub fn makes_differences(&self) -> bool {
        self.codecs.contains(Codecs::DELTA) && self.delta_cache > ByteCount(0)
    }
}

/// A chunk to encode.
#[derive(Clone, Copy, Debug)]
pub struct Work<'m> {
    /// The round it belongs to.
    pub round: u16,
    /// Which chunk.
    pub chunk: ChunkIndex,
    /// Its memory.
    pub memory: Chunk<'m>,
    /// Its pages to send, at least one.
    pub mask: u64,
    /// What to do with those that have no cheaper form.
    pub method: Method,
}

/// What [`Encoder::encode`] made of a chunk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Encoded {
    /// How each page travels, and in how many bytes.
    pub pages: Pages,
    /// What the method did.
    pub packed: Packed,
}

/// What a [`Method`] made of what it was given of a chunk: pages that have no cheaper form, those in columns and
/// differences.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Packed {
    /// Bytes of those pages, and of the differences.
    pub plain_bytes: usize,
    /// What they would have become with [`Method::Raw`]: columns cost next to nothing, so they do not count as its work.
    pub raw_bytes: usize,
    /// What they became.
    pub packed_bytes: usize,
    /// How long that took.
    pub took: Duration,
}

/// Encodes the chunks of one worker, all of them in the order in which they are sent. Allocates nothing for a page once
/// `out` has grown to its size.
pub struct Encoder {
    settings: EncoderSettings,
    keep: Keep,
    history: History,
    packer: Packer,
    known: Known,
    bases: Bases,
    parts: Parts,
}

/// What a delta was made from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum MadeFrom {
    /// A copy of the page as it was, which is now what it has become.
    Base,
    /// The hashes of its blocks.
    Blocks,
}

/// The parts of the chunk's meta bytes as they come together.
struct Parts {
    words: Vec<u64>,
    checks: Vec<[u8; 4]>,
    delta_lengths: Vec<u16>,
    columns_lengths: Vec<u16>,
    lz4_lengths: Vec<u16>,
    deltas: Vec<u8>,
    columns: Vec<u8>,
    /// LZ4 blocks, with room after them for whatever LZ4 may want to write of one more page.
    blocks: Vec<u8>,
    blocks_bytes: usize,
    /// Pages for the Zstandard frame.
    plain: Vec<u8>,
    /// Deltas and columns, compressed.
    scratch: Vec<u8>,
}

impl Encoder {
    /// An encoder for memory of `chunks` chunks, of which nothing has been sent.
    #[must_use]
    pub fn new(settings: EncoderSettings, chunks: u32) -> Self {
        Self {
            settings,
            keep: Keep::default(),
            history: History::new(chunks),
            packer: Packer::new(),
            known: Known::new(chunks),
            bases: Bases::new(chunks),
            parts: Parts::new(),
        }
    }

    /// What to keep of pages from now on.
    pub fn keep(&mut self, keep: Keep) {
        self.keep = keep;
    }

    /// The same for post-copy, in which pages cross once: no deltas and nothing unchanged, and no memory for that. What
    /// it knows of how pages compress it keeps.
    #[must_use]
    pub fn into_post_copy(self) -> Self {
        let codecs = self.settings.codecs.without(Codecs::DELTA);
        Self { settings: EncoderSettings { codecs, ..self.settings }, known: Known::new(0), bases: Bases::new(0), ..self }
    }

    /// Copies the pages of `work` out of memory and appends their bytes to `out`.
    ///
    /// # Panics
    /// When the chunk has no page named in the mask, or is not one of the memory the encoder was made for.
    pub fn encode(&mut self, work: Work<'_>, out: &mut Vec<u8>) -> Encoded {
        self.parts.clear();
        self.history.begin(work.chunk);
        let method = self.agreed(work.method);
        let mut encoded = Encoded::default();
        for bit in bits(work.mask) {
            let start = out.len();
            let summary = work.memory.append_to(bit, out);
            let page = out[start..].first_chunk().expect("a page was appended");
            let form = self.encode_page(&work, bit, page, summary, method, &mut encoded.packed);
            encoded.pages.masks.insert(form, 1 << bit);
            if form != Form::Raw {
                out.truncate(start);
            }
        }
        self.finish_zstd(method, &mut encoded, out);
        encoded.pages.packing = self.pack_small(method, &mut encoded.packed);
        let meta = out.len();
        self.parts.append_to(encoded.pages.packing, out);
        encoded.pages.meta_bytes = u32::try_from(out.len() - meta).expect("less than a chunk and a half");
        encoded
    }

    /// The form that `page` takes; what belongs to it is put into the parts.
    fn encode_page(&mut self, work: &Work<'_>, bit: u32, page: &[u8; PAGE_SIZE], summary: PageSummary, method: Method, packed: &mut Packed) -> Form {
        let Work { chunk, round, .. } = *work;
        if !self.settings.codecs.contains(Codecs::DELTA) {
            return self.whole_page(work, bit, page, summary, method, packed);
        }
        if summary == PageSummary::Uniform(0) {
            self.known.remember_zero(chunk, bit);
            self.bases.forget(chunk, bit);
            return Form::Zero;
        }
        let last = self.known.page(chunk, bit);
        if last == 0 && round == 0 && self.keep == Keep::HashesOfReturning {
            return self.whole_page(work, bit, page, summary, method, packed);
        }
        let blocks = self.settings.key.blocks(page);
        let hash = self.settings.key.page(&blocks);
        if hash == last {
            return Form::Unchanged;
        }
        let delta = if summary == PageSummary::Mixed && last != 0 { self.push_delta(chunk, bit, page, &blocks) } else { None };
        let form = match delta {
            Some(_) => {
                self.parts.checks.push(check_of(hash));
                Form::Delta
            }
            None => self.whole_page(work, bit, page, summary, method, packed),
        };
        let cache = usize::try_from(self.settings.delta_cache.0).unwrap_or(usize::MAX);
        self.known.remember(chunk, bit, hash, &blocks, cache / 2);
        // A raw page that no compressor was tried on may still be one that packs.
        if form != Form::Delta && (form != Form::Raw || method != Method::Raw) {
            self.known.note_entropy(chunk, bit, if form == Form::Raw { Entropy::High } else { Entropy::Low });
        }
        // What goes after round 0 was (nearly always) written while the guest was tracked, and is likely to be written again.
        if delta == Some(MadeFrom::Base) {
            self.bases.kept_up(chunk, bit, round);
        } else if last != 0 || round > 0 {
            let limit = self.most_copies(cache);
            self.bases.keep((chunk, bit), page, round, limit, self.known.entropy(chunk, bit));
        }
        form
    }

    /// How many copies of pages there may be in so many bytes, beside what else is remembered there.
    fn most_copies(&self, cache: usize) -> usize {
        let cache = if self.keep == Keep::Copies { cache } else { 0 };
        cache.saturating_sub(self.known.block_bytes() + self.bases.index_bytes()) / PAGE_SIZE
    }

    /// Appends the delta of a page that was sent before, if it has a short one, and says what it was made from. A base is
    /// brought up to date with it: writing only the words that differ costs less than copying the page.
    fn push_delta(&mut self, chunk: ChunkIndex, bit: u32, page: &[u8; PAGE_SIZE], blocks: &BlockHashes) -> Option<MadeFrom> {
        let deltas = &mut self.parts.deltas;
        let start = deltas.len();
        let changed = self.known.changed_blocks(chunk, bit, blocks);
        let from = match self.bases.base(chunk, bit) {
            Some(base) => delta::between(base, page, changed.unwrap_or(u8::MAX), deltas).then(|| {
                delta::apply(&deltas[start..], base).expect("a delta of this base");
                MadeFrom::Base
            }),
            None => changed.filter(|&changed| delta::of_blocks(changed, page, deltas)).map(|_| MadeFrom::Blocks),
        };
        if from.is_some() {
            self.parts.delta_lengths.push(u16::try_from(deltas.len() - start).expect("shorter than a page"));
        }
        from
    }

    /// Appends the columns of a page that has some, if no compressor is likely to make less of it.
    fn push_columns(&mut self, page: &[u8; PAGE_SIZE], method: Method) -> bool {
        let columns = &mut self.parts.columns;
        let start = columns.len();
        let limit = match method {
            // Raw is for links so fast that long columns take longer to make than to save.
            Method::Raw | Method::Lz4 => MAX_COLUMNS_BYTES / 2,
            Method::Zstd(_) => MAX_COLUMNS_BYTES / 4,
        };
        let made = self.settings.codecs.contains(Codecs::COLUMNS) && columns::encode(page, limit, columns);
        if made {
            self.parts.columns_lengths.push(u16::try_from(columns.len() - start).expect("shorter than a page"));
        }
        made
    }

    /// The form of a page that is sent without regard to what it was.
    fn whole_page(&mut self, work: &Work<'_>, bit: u32, page: &[u8; PAGE_SIZE], summary: PageSummary, method: Method, packed: &mut Packed) -> Form {
        match (summary, method) {
            (PageSummary::Uniform(0), _) => Form::Zero,
            (PageSummary::Uniform(word), _) => {
                self.parts.words.push(word);
                Form::Uniform
            }
            (PageSummary::Mixed, method) => {
                packed.plain_bytes += PAGE_SIZE;
                if self.push_columns(page, method) {
                    return Form::Columns;
                }
                packed.raw_bytes += PAGE_SIZE;
                self.pack_page(work, bit, page, method, packed)
            }
        }
    }

    /// The form of a page that nothing but a general compressor is left for.
    fn pack_page(&mut self, work: &Work<'_>, bit: u32, page: &[u8; PAGE_SIZE], method: Method, packed: &mut Packed) -> Form {
        match method {
            Method::Raw => {
                packed.packed_bytes += PAGE_SIZE;
                Form::Raw
            }
            Method::Lz4 => {
                let length = self.lz4_page(work.chunk, bit, page, &mut packed.took);
                packed.packed_bytes += length.map_or(PAGE_SIZE, usize::from);
                if length.is_some() { Form::Lz4 } else { Form::Raw }
            }
            Method::Zstd(_) => {
                if looks_random(page) {
                    packed.packed_bytes += PAGE_SIZE;
                    return Form::Raw;
                }
                self.parts.plain.extend_from_slice(page);
                Form::Zstd
            }
        }
    }

    /// Compresses `page` to the end of the blocks, if it is worth it; says how long it became.
    fn lz4_page(&mut self, chunk: ChunkIndex, bit: u32, page: &[u8; PAGE_SIZE], took: &mut Duration) -> Option<u16> {
        if !self.history.is_worth_trying(chunk, bit) {
            return None;
        }
        let began = Instant::now();
        let Parts { blocks, blocks_bytes, .. } = &mut self.parts;
        let length = self.packer.lz4(page, &mut room(blocks, *blocks_bytes + lz4_room(PAGE_SIZE))[*blocks_bytes..]);
        *took += began.elapsed();
        let worth_it = length <= MAX_PACKED_BYTES;
        self.history.record(chunk, bit, worth_it);
        worth_it.then(|| {
            let length = u16::try_from(length).expect("shorter than a page");
            self.parts.lz4_lengths.push(length);
            self.parts.blocks_bytes += usize::from(length);
            length
        })
    }

    /// Compresses the pages set aside for the Zstandard frame; if that does not pay, they go raw after all.
    fn finish_zstd(&mut self, method: Method, encoded: &mut Encoded, out: &mut Vec<u8>) {
        let plain = &self.parts.plain;
        let (Method::Zstd(level), false) = (method, plain.is_empty()) else { return };
        let began = Instant::now();
        let most = plain.len() / PAGE_SIZE * MAX_PACKED_BYTES;
        let length = self.packer.zstd(level, plain, room(&mut self.parts.blocks, most));
        encoded.packed.took += began.elapsed();
        encoded.packed.packed_bytes += length.unwrap_or(plain.len());
        if let Some(length) = length {
            self.parts.blocks_bytes = length;
            return;
        }
        // In page order with the raw pages that are there already.
        let masks = &mut encoded.pages.masks;
        let all = masks.raw | masks.zstd;
        let start = out.len() - masks.raw_bytes();
        let raw = out.split_off(start);
        let (mut raw, mut plain) = (raw.chunks_exact(PAGE_SIZE), plain.chunks_exact(PAGE_SIZE));
        for bit in bits(all) {
            let next = if masks.zstd >> bit & 1 == 1 { plain.next() } else { raw.next() };
            out.extend_from_slice(next.expect("a page for each bit"));
        }
        (masks.raw, masks.zstd) = (all, 0);
    }

    /// Puts the columns after the deltas, and compresses all that as a whole where it pays.
    fn pack_small(&mut self, method: Method, packed: &mut Packed) -> Packing {
        packed.plain_bytes += self.parts.deltas.len();
        self.parts.deltas.append(&mut self.parts.columns);
        packed.raw_bytes += self.parts.deltas.len();
        let began = Instant::now();
        let packing = self.packing_of_small(method);
        packed.took += began.elapsed();
        packed.packed_bytes += self.parts.deltas.len();
        packing
    }

    fn packing_of_small(&mut self, method: Method) -> Packing {
        let Parts { deltas, scratch, .. } = &mut self.parts;
        if deltas.len() < LEAST_PACKED || method == Method::Raw || looks_random(deltas) {
            return Packing::Plain;
        }
        let (length, packing) = match method {
            Method::Zstd(level) => {
                let most = deltas.len();
                (self.packer.zstd(level, deltas, room(scratch, most)), Packing::Zstd)
            }
            _ => (Some(self.packer.lz4(deltas, room(scratch, lz4_room(deltas.len())))), Packing::Lz4),
        };
        match length {
            Some(length) if length + LEAST_PACKED / 2 < deltas.len() => {
                deltas.clear();
                deltas.extend_from_slice(&scratch[..length]);
                packing
            }
            _ => Packing::Plain,
        }
    }

    /// The method, or the nearest that the destination takes.
    fn agreed(&self, method: Method) -> Method {
        match method {
            Method::Zstd(_) if !self.settings.codecs.contains(Codecs::ZSTD) => self.agreed(Method::Lz4),
            Method::Lz4 if !self.settings.codecs.contains(Codecs::LZ4) => Method::Raw,
            method => method,
        }
    }
}

impl fmt::Debug for Encoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Encoder").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl Parts {
    fn new() -> Self {
        Self {
            words: Vec::with_capacity(CHUNK_PAGES),
            checks: Vec::with_capacity(CHUNK_PAGES),
            delta_lengths: Vec::with_capacity(CHUNK_PAGES),
            columns_lengths: Vec::with_capacity(CHUNK_PAGES),
            lz4_lengths: Vec::with_capacity(CHUNK_PAGES),
            deltas: Vec::with_capacity(CHUNK_PAGES * (MAX_DELTA_BYTES + MAX_COLUMNS_BYTES)),
            columns: Vec::with_capacity(CHUNK_PAGES * MAX_COLUMNS_BYTES),
            blocks: Vec::new(),
            blocks_bytes: 0,
            plain: Vec::new(),
            scratch: Vec::new(),
        }
    }

    fn clear(&mut self) {
        self.words.clear();
        self.checks.clear();
        self.delta_lengths.clear();
        self.columns_lengths.clear();
        self.columns.clear();
        self.lz4_lengths.clear();
        self.deltas.clear();
        self.plain.clear();
        self.blocks_bytes = 0;
    }

    /// In the order of the format.
    fn append_to(&self, packing: Packing, out: &mut Vec<u8>) {
        self.words.iter().for_each(|word| out.extend_from_slice(&word.to_le_bytes()));
        out.extend_from_slice(self.checks.as_flattened());
        for lengths in [&self.delta_lengths, &self.columns_lengths, &self.lz4_lengths] {
            lengths.iter().for_each(|length| out.extend_from_slice(&length.to_le_bytes()));
        }
        if packing != Packing::Plain {
            out.extend(u32::try_from(self.deltas.len()).expect("less than a chunk").to_le_bytes());
        }
        out.extend_from_slice(&self.deltas);
        out.extend_from_slice(&self.blocks[..self.blocks_bytes]);
    }
}

/// Deltas and columns of fewer bytes than this are not compressed.
const LEAST_PACKED: usize = 64;

const _: () = assert!(CHUNK_PAGES * PAGE_SIZE == CHUNK_SIZE);
