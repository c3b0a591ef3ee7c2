//! Encoder and decoder against each other.

use pageferry::bitmap::PageBitmap;
use pageferry::memory::{GuestMemory, PageSink};
use pageferry::page::{Codecs, Decoder, Encoded, Encoder, EncoderSettings, Keep, Masks, Method, Packing, PageError, PageKey, Pages, Work};
use pageferry::units::{ByteCount, ChunkIndex};
use proptest::prelude::*;

use crate::content::*;

const CHUNK: ChunkIndex = ChunkIndex(0);

fn key() -> PageKey {
    PageKey::derive(&[3; 16])
}

fn encoder(codecs: Codecs, delta_cache: u64) -> Encoder {
    Encoder::new(EncoderSettings { codecs, key: key(), delta_cache: ByteCount(delta_cache) }, 1)
}

fn decoder() -> Decoder {
    Decoder::new(key(), PageBitmap::new(1))
}

/// As a receiver does it: raw pages first, then the rest.
fn place(decoder: &mut Decoder, memory: &GuestMemory, pages: &Pages, payload: &[u8]) -> Result<(), PageError> {
    let mut placement = memory.placement();
    let (raw, meta) = payload.split_at(pages.masks.raw_bytes());
    placement.write_front(CHUNK, pages.masks.raw, raw);
    decoder.place_meta(&mut placement, CHUNK, pages, meta)
}

/// Two memories of a chunk, and what is between them.
struct Pair {
    source: GuestMemory,
    destination: GuestMemory,
    encoder: Encoder,
    decoder: Decoder,
    round: u16,
}

impl Pair {
    fn new(codecs: Codecs, delta_cache: u64) -> Self {
        Self { source: memory(64), destination: memory(64), encoder: encoder(codecs, delta_cache), decoder: decoder(), round: 0 }
    }

    /// Sends the pages of `mask`; how they went, and in how many bytes.
    fn send(&mut self, mask: u64, method: Method) -> (Masks, usize) {
        let (encoded, payload) = self.encode(mask, method);
        place(&mut self.decoder, &self.destination, &encoded.pages, &payload).unwrap();
        assert!(pages_of(&self.source, CHUNK) == pages_of(&self.destination, CHUNK), "round {}", self.round - 1);
        (encoded.pages.masks, payload.len())
    }

    fn encode(&mut self, mask: u64, method: Method) -> (Encoded, Vec<u8>) {
        let mut payload = Vec::new();
        let encoded = self.encoder.encode(Work { round: self.round, chunk: CHUNK, memory: self.source.chunk(CHUNK), mask, method }, &mut payload);
        self.round += 1;
        (encoded, payload)
    }

    fn store(&self, bit: u32, index: usize, word: u64) {
        self.source.chunk(CHUNK).store_word(bit, index, word);
    }
}

const METHODS: [Method; 3] = [Method::Raw, Method::Lz4, Method::Zstd(1)];

#[test]
fn a_page_that_was_written_and_not_changed_has_no_bytes() {
    for method in METHODS {
        let mut pair = Pair::new(Codecs::built_in(), 0);
        fill(&pair.source, CHUNK, &[Content::Random(1), Content::Records(2), Content::Uniform(3), Content::Zero], 0b1111);
        pair.send(0b1111, method);
        assert_eq!(pair.send(0b1111, method), (Masks { unchanged: 0b111, zero: 0b1000, ..Masks::default() }, 0));
    }
}

#[test]
fn a_changed_word_costs_its_block_the_first_time_and_itself_from_then_on() {
    let mut pair = Pair::new(Codecs::built_in(), 1 << 20);
    fill(&pair.source, CHUNK, &[Content::Random(1); 64], u64::MAX);
    pair.send(u64::MAX, Method::Raw);
    for round in 1..5 {
        (0..64).for_each(|bit| pair.store(bit, 511, round));
        let (masks, bytes) = pair.send(u64::MAX, Method::Raw);
        assert_eq!(masks, Masks { delta: u64::MAX, ..Masks::default() });
        // A check of 4 bytes, a length of 2; two numbers and 512 bytes, or three bytes of numbers and 8 bytes.
        let each = if round == 1 { 6 + 2 + 2 + 512 - 1 } else { 6 + 3 + 8 };
        assert_eq!(bytes, 64 * each, "round {round}");
    }
}

#[test]
fn a_page_that_first_goes_after_round_0_costs_only_its_changes_from_then_on() {
    let mut pair = Pair::new(Codecs::built_in(), 1 << 20);
    let late = u64::MAX << 32;
    fill(&pair.source, CHUNK, &[Content::Random(1); 64], !late);
    pair.send(!late, Method::Raw);
    fill(&pair.source, CHUNK, &[Content::Random(1); 64], late);
    assert_eq!(pair.send(late, Method::Raw).0, Masks { raw: late, ..Masks::default() });
    (32..64).for_each(|bit| pair.store(bit, 511, 1));
    let (masks, bytes) = pair.send(late, Method::Raw);
    assert_eq!((masks, bytes), (Masks { delta: late, ..Masks::default() }, 32 * (6 + 3 + 8)));
}

#[test]
fn without_copies_a_changed_word_costs_its_block_each_time() {
    let mut pair = Pair::new(Codecs::built_in(), 1 << 20);
    pair.encoder.keep(Keep::Hashes);
    fill(&pair.source, CHUNK, &[Content::Random(1); 64], u64::MAX);
    pair.send(u64::MAX, Method::Raw);
    let mut cost_of_round = |round, keep| {
        pair.encoder.keep(keep);
        (0..64).for_each(|bit| pair.store(bit, 511, round));
        pair.send(u64::MAX, Method::Raw).1 / 64
    };
    let (block, word) = (6 + 2 + 2 + 512 - 1, 6 + 3 + 8);
    assert_eq!([1, 2].map(|round| cost_of_round(round, Keep::Hashes)), [block; 2]);
    assert_eq!(cost_of_round(3, Keep::Copies), block, "copies are made of what goes now");
    assert_eq!([4, 5].map(|round| cost_of_round(round, Keep::Hashes)), [word; 2], "those there are stay of use");
}

#[test]
fn without_hashes_of_round_0_a_page_goes_whole_once_more_and_is_known_from_then_on() {
    let mut pair = Pair::new(Codecs::built_in(), 1 << 20);
    pair.encoder.keep(Keep::HashesOfReturning);
    let (whole, none) = (Masks { raw: u64::MAX, ..Masks::default() }, Masks::default());
    fill(&pair.source, CHUNK, &[Content::Random(1); 64], u64::MAX);
    assert_eq!(pair.send(u64::MAX, Method::Raw).0, whole);
    assert_eq!(pair.send(u64::MAX, Method::Raw).0, whole, "nothing is known of it");
    assert_eq!(pair.send(u64::MAX, Method::Raw).0, Masks { unchanged: u64::MAX, ..none });
    (0..64).for_each(|bit| pair.store(bit, 511, 1));
    assert_eq!(pair.send(u64::MAX, Method::Raw).0, Masks { delta: u64::MAX, ..none });
}

#[test]
fn deltas_are_packed_where_it_pays() {
    for (method, packing) in [
        (Method::Raw, Packing::Plain),
        (Method::Lz4, Packing::Lz4),
        (Method::Zstd(1), if cfg!(feature = "zstd") { Packing::Zstd } else { Packing::Lz4 }),
    ] {
        let mut pair = Pair::new(Codecs::built_in(), 1 << 20);
        fill(&pair.source, CHUNK, &[Content::Random(1); 64], u64::MAX);
        for round in 0..4 {
            (0..64).for_each(|bit| (0..40).for_each(|index| pair.store(bit, index * 3, round)));
            let (encoded, payload) = pair.encode(u64::MAX, method);
            place(&mut pair.decoder, &pair.destination, &encoded.pages, &payload).unwrap();
            if round > 1 {
                assert_eq!((encoded.pages.masks.delta, encoded.pages.packing), (u64::MAX, packing));
            }
        }
        assert!(pages_of(&pair.source, CHUNK) == pages_of(&pair.destination, CHUNK));
    }
}

#[test]
fn records_go_in_columns_whatever_the_method() {
    for method in METHODS {
        let mut pair = Pair::new(Codecs::built_in(), 0);
        fill(&pair.source, CHUNK, &(0..64).map(Content::Records).collect::<Vec<_>>(), u64::MAX);
        let (masks, bytes) = pair.send(u64::MAX, method);
        assert_eq!(masks, Masks { columns: u64::MAX, ..Masks::default() });
        // 128 records with two random bytes each, and what little the columns' descriptions take.
        assert!(bytes < 64 * 310, "{method:?}: {bytes}");
    }
}

#[test]
fn no_differences_are_made_without_memory_for_them() {
    let mut pair = Pair::new(Codecs::built_in(), 0);
    fill(&pair.source, CHUNK, &[Content::Random(1)], 1);
    pair.send(1, Method::Raw);
    pair.store(0, 9, 9);
    assert_eq!(pair.send(1, Method::Raw).0, Masks { raw: 1, ..Masks::default() });
}

#[test]
fn forms_that_were_not_agreed_on_are_not_used() {
    for codecs in [Codecs::NONE, Codecs::LZ4, Codecs::ZSTD, Codecs::DELTA, Codecs::COLUMNS] {
        for method in METHODS {
            let mut pair = Pair::new(codecs, 1 << 20);
            for word in 1..4 {
                fill(&pair.source, CHUNK, &[Content::Random(1), Content::Records(2)], 0b11);
                (0..2).for_each(|bit| pair.store(bit, 7, word));
                let (encoded, payload) = pair.encode(0b11, method);
                assert!(codecs.contains(encoded.pages.codecs()), "{method:?} with {codecs:?}: {:?}", encoded.pages);
                place(&mut pair.decoder, &pair.destination, &encoded.pages, &payload).unwrap();
            }
        }
    }
}

#[test]
fn a_delta_from_another_base_is_refused() {
    let mut pair = Pair::new(Codecs::built_in(), 1 << 20);
    fill(&pair.source, CHUNK, &[Content::Random(1); 4], 0b1111);
    pair.send(0b1111, Method::Raw);
    (0..4).for_each(|bit| pair.store(bit, 5, 5));
    let (encoded, payload) = pair.encode(0b1111, Method::Raw);
    // One bit of page 2, outside of what the delta replaces.
    let chunk = pair.destination.chunk(CHUNK);
    chunk.store_word(2, 400, chunk.load_word(2, 400) ^ 1);
    assert_eq!(place(&mut pair.decoder, &pair.destination, &encoded.pages, &payload), Err(PageError::Base { bit: 2 }));
}

#[test]
#[cfg(feature = "zstd")]
fn a_zstd_frame_makes_exactly_its_pages() {
    let mut pair = Pair::new(Codecs::ZSTD, 0);
    fill(&pair.source, CHUNK, &[Content::Records(1), Content::Random(2), Content::Records(3)], 0b111);
    let (Encoded { pages, .. }, payload) = pair.encode(0b111, Method::Zstd(1));
    assert_eq!((pages.masks.zstd, pages.masks.raw), (0b101, 0b010));
    for (zstd, made) in [(0b001, 1), (0b1_0101, 3)] {
        let pages = Pages { masks: Masks { zstd, ..pages.masks }, ..pages };
        assert_eq!(place(&mut decoder(), &memory(64), &pages, &payload), Err(PageError::Frame { bit: 0, pages: made }));
    }
    for altered in pageferry::units::PAGE_SIZE..payload.len() {
        let mut payload = payload.clone();
        payload[altered] ^= 0x55;
        // Garbage may decompress to garbage; the frame's checksum is what catches that.
        let _ = place(&mut decoder(), &memory(64), &pages, &payload);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn pages_arrive_as_they_were(
        rounds in prop::collection::vec((prop::collection::vec(content(), 64), any::<u64>(), changes(), prop::sample::select(&METHODS[..]), prop::sample::select(&[Keep::Copies, Keep::Hashes, Keep::HashesOfReturning][..])), 1..8),
        pages in 1usize..=64,
        cache in prop::sample::select(&[0, 40 << 10, 1 << 20][..]),
        codecs in (0u32..16).prop_map(Codecs::from_bits),
    ) {
        let (source, destination) = (memory(pages), memory(pages));
        let valid = u64::MAX >> (64 - pages);
        let (mut encoder, mut decoder) = (encoder(codecs, cache), decoder());
        for (round, (contents, mask, changes, method, keep)) in (0..).zip(rounds) {
            encoder.keep(keep);
            let mask = mask & valid;
            fill(&source, CHUNK, &contents, if round == 0 { valid } else { mask & 0x1111_1111_1111_1111 });
            let changed = changes.iter().filter(|(bit, ..)| valid >> bit & 1 == 1).fold(mask, |mask, &(bit, index, word)| {
                source.chunk(CHUNK).store_word(bit, index, word);
                mask | 1 << bit
            });
            let mask = if round == 0 { valid } else { changed };
            if mask == 0 {
                continue;
            }
            let mut payload = Vec::new();
            let Encoded { pages, .. } = encoder.encode(Work { round, chunk: CHUNK, memory: source.chunk(CHUNK), mask, method }, &mut payload);
            prop_assert_eq!(pages.masks.all(), mask);
            prop_assert!(pages.masks.is_disjoint() && pages.is_plausible() && codecs.contains(pages.codecs()));
            prop_assert_eq!(pages.masks.raw_bytes() + pages.meta_bytes as usize, payload.len());
            prop_assert_eq!(place(&mut decoder, &destination, &pages, &payload), Ok(()));
            prop_assert!(pages_of(&source, CHUNK) == pages_of(&destination, CHUNK));
        }
    }

    #[test]
    fn no_meta_bytes_make_the_decoder_panic(masks: [u64; 8], packing in 0u8..3, meta in prop::collection::vec(any::<u8>(), 0..2000)) {
        // Disjoint, whatever was drawn.
        let mut taken = 0;
        let masks = masks.map(|mask| {
            let mask = mask & !taken & 0x00ff_0000_00ff_000f;
            taken |= mask;
            mask
        });
        let pages = Pages { masks: Masks::from_array(masks), packing: [Packing::Plain, Packing::Lz4, Packing::Zstd][usize::from(packing)], meta_bytes: u32::try_from(meta.len()).unwrap() };
        let memory = memory(64);
        let occupied = if packing == 0 { PageBitmap::new(1) } else { full() };
        let _ = Decoder::new(key(), occupied).place_meta(&mut memory.placement(), CHUNK, &pages, &meta);
    }
}

fn full() -> PageBitmap {
    let mut full = PageBitmap::new(1);
    full.insert_word(CHUNK, u64::MAX);
    full
}
