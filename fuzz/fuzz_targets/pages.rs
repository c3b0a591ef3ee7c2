//! Bytes into the decoder of a chunk's pages: deltas, columns, packed ones, LZ4 blocks and Zstandard frames; no panic, whatever
//! comes. And pages into the encoder: what it makes comes out again as it went in.
//!
//! Both into memory, as in pre-copy, and into a staging buffer, as in post-copy.
//!
//! The input says which pages come in which form; what is left are the meta bytes, or words that change.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use pageferry::bitmap::PageBitmap;
use pageferry::memory::{Backing, GuestMemory, MemoryLayout, PageSink, Staging};
use pageferry::page::{Codecs, Decoder, Encoder, EncoderSettings, Form, Masks, Method, Packing, PageKey, Pages, Work};
use pageferry::units::{ByteCount, ChunkIndex, PAGE_WORDS, PageCount};

static SOURCE: LazyLock<GuestMemory> = LazyLock::new(chunk);
static DESTINATION: LazyLock<GuestMemory> = LazyLock::new(chunk);

const CHUNK: ChunkIndex = ChunkIndex(0);

fuzz_target!(|bytes: &[u8]| {
    decode(bytes);
    there_and_back(bytes);
});

/// Two bytes give each page of a few its form, the rest is meta.
fn decode(bytes: &[u8]) {
    let Some((forms, rest)) = bytes.split_first_chunk::<4>() else { return };
    let Some((packing, meta)) = rest.split_first() else { return };
    let mut masks = [0; Form::ALL.len()];
    for (bit, form) in forms.iter().enumerate() {
        if let Some(mask) = masks.get_mut(usize::from(form % 9)) {
            *mask |= 1 << bit;
        }
    }
    let packing = [Packing::Plain, Packing::Lz4, Packing::Zstd][usize::from(packing % 3)];
    let pages = Pages { masks: Masks::from_array(masks), packing, meta_bytes: u32::try_from(meta.len()).expect("a short input") };
    let mut everything = PageBitmap::new(1);
    everything.insert_word(CHUNK, u64::MAX);
    let _ = decoder(everything).place_meta(&mut DESTINATION.placement(), CHUNK, &pages, meta);
    let mut staging = Staging::new();
    staging.begin(CHUNK, pages.masks.filled());
    if Decoder::post_copy().place_meta(&mut staging, CHUNK, &pages, meta).is_ok() {
        assert_eq!(staging.held() | pages.masks.raw, pages.masks.filled());
        assert_eq!((staging.zeros(), pages.masks.unchanged | pages.masks.delta), (pages.masks.zero, 0));
    }
}

/// Rounds of four bytes: a method, a page, and the word that changes, or all of them.
fn there_and_back(bytes: &[u8]) {
    for memory in [&*SOURCE, &*DESTINATION] {
        (0..4).for_each(|bit| (0..PAGE_WORDS).for_each(|index| memory.chunk(CHUNK).store_word(bit, index, 0)));
    }
    let settings = EncoderSettings { codecs: Codecs::built_in(), key: PageKey::derive(&[7; 16]), delta_cache: ByteCount(64 << 10) };
    let mut once = Encoder::new(settings.clone(), 1).into_post_copy();
    let mut staging = Staging::new();
    let (mut encoder, mut decoder) = (Encoder::new(settings, 1), decoder(PageBitmap::new(1)));
    let mut payload = Vec::new();
    for (round, &[method, bit, index, value]) in (0..64).zip(bytes.as_chunks::<4>().0) {
        let (bit, source) = (u32::from(bit % 4), SOURCE.chunk(CHUNK));
        if method & 0x10 == 0 {
            source.store_word(bit, usize::from(index) * 2, u64::from(value));
        } else {
            let word = |at: usize| u64::from(value).wrapping_mul((at / (usize::from(index) + 1)) as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            (0..PAGE_WORDS).for_each(|at| source.store_word(bit, at, word(at)));
        }
        let method = [Method::Raw, Method::Lz4, Method::Zstd(1)][usize::from(method % 3)];
        payload.clear();
        let pages = encoder.encode(Work { round, chunk: CHUNK, memory: source, mask: 0b1111, method }, &mut payload).pages;
        assert!(pages.is_plausible() && pages.masks.all() == 0b1111 && pages.masks.is_disjoint());
        let (raw, meta) = payload.split_at(pages.masks.raw_bytes());
        let mut placement = DESTINATION.placement();
        placement.write_front(CHUNK, pages.masks.raw, raw);
        decoder.place_meta(&mut placement, CHUNK, &pages, meta).expect("the encoder's own");
        payload.clear();
        let pages = once.encode(Work { round, chunk: CHUNK, memory: source, mask: 0b1111, method }, &mut payload).pages;
        stage(&mut staging, &pages, &payload);
        for bit in 0..4 {
            let held = staging.held() >> bit & 1 == 1;
            let word = |index| if held { *staging.pages(bit, 1)[index * 8..].first_chunk().expect("inside the page") } else { [0; 8] };
            assert!((0..PAGE_WORDS).all(|index| source.load_word(bit, index).to_le_bytes() == word(index)), "page {bit} staged in round {round}");
            let same = |index| SOURCE.chunk(CHUNK).load_word(bit, index) == DESTINATION.chunk(CHUNK).load_word(bit, index);
            assert!((0..PAGE_WORDS).all(same), "page {bit} in round {round}");
        }
    }
}

/// Stages what the encoder made for post-copy.
fn stage(staging: &mut Staging, pages: &Pages, payload: &[u8]) {
    assert!(pages.is_plausible() && pages.masks.zero | pages.masks.filled() == 0b1111 && pages.masks.is_disjoint());
    let (raw, meta) = payload.split_at(pages.masks.raw_bytes());
    staging.begin(CHUNK, pages.masks.filled());
    staging.write_front(CHUNK, pages.masks.raw, raw);
    Decoder::post_copy().place_meta(staging, CHUNK, pages, meta).expect("the encoder's own");
    assert_eq!((staging.zeros(), staging.held()), (pages.masks.zero, pages.masks.filled()));
}

fn decoder(occupied: PageBitmap) -> Decoder {
    Decoder::new(PageKey::derive(&[7; 16]), occupied)
}

fn chunk() -> GuestMemory {
    GuestMemory::allocate(MemoryLayout::flat(PageCount(64)).expect("a layout"), Backing::Anonymous).expect("memory")
}
