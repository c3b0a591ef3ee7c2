//! Blocks and frames of the general compressors, whole ones and mangled ones: what they expand to is what the chunk says or an
//! error, never more than its 256 KiB, and a block that was not touched comes out as it went in.
//!
//! The input says what is compressed (a pattern, repeated up to 1 MiB: a few bytes on the wire), for which pages, and
//! which bytes of the result are changed then.
#![no_main]

#[path = "../shared/script.rs"]
#[expect(dead_code, reason = "other targets use the rest")]
mod script;
#[path = "../shared/signing.rs"]
mod signing;

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use pageferry::memory::{Backing, GuestMemory, MemoryLayout, PageSink, Staging};
use pageferry::page::{Decoder, MAX_COLUMNS_BYTES, Masks, Packing, Pages};
use pageferry::units::{CHUNK_SIZE, ChunkIndex, PAGE_SIZE, PageCount};
use script::Script;

static MEMORY: LazyLock<GuestMemory> =
    LazyLock::new(|| GuestMemory::allocate(MemoryLayout::flat(PageCount(64)).expect("a layout"), Backing::Anonymous).expect("memory"));

const CHUNK: ChunkIndex = ChunkIndex(0);

fuzz_target!(|bytes: &[u8]| {
    let mut script = Script(bytes);
    // An input that ends too soon says nothing.
    let _ = run(&mut script);
});

fn run(script: &mut Script) -> Option<()> {
    let (form, pages) = (script.below(4)?, u32::from(script.below(64)?) + 1);
    let is_exact = script.below(4)? > 0;
    let plain_bytes = match form {
        0 => PAGE_SIZE,
        1 => pages as usize * PAGE_SIZE,
        // Packed columns: their lengths follow.
        _ => pages as usize * (usize::from(script.wide()?) % MAX_COLUMNS_BYTES + 1),
    };
    let wanted = if is_exact { plain_bytes } else { usize::from(script.wide()?) << 4 };
    let (pattern, seam) = (script.below(u8::MAX)?, usize::from(script.below(u8::MAX)?) + 1);
    let plain: Vec<u8> = (0..wanted).map(|at| if at % seam == 0 { at.to_le_bytes()[0] } else { pattern }).collect();
    let mut block = if form % 2 == 0 { lz4_flex::block::compress(&plain) } else { zstd::bulk::compress(&plain, 1).expect("compresses") };
    let mut is_whole = wanted == plain_bytes;
    while let (Some(at), Some(change)) = (script.wide(), script.below(u8::MAX)) {
        let at = usize::from(at) % block.len();
        block[at] ^= change;
        is_whole &= change == 0;
    }
    let mask = u64::MAX >> (64 - pages);
    let (masks, packing, meta) = match form {
        // One page for one block.
        0 => (Masks { lz4: 1, ..Masks::default() }, Packing::Plain, [&u16::try_from(block.len()).ok()?.to_le_bytes()[..], &block].concat()),
        1 => (Masks { zstd: mask, ..Masks::default() }, Packing::Plain, block),
        _ => {
            let length = u16::try_from(plain_bytes / pages as usize).expect("at most 3072").to_le_bytes();
            let packed = u32::try_from(block.len()).ok()?.to_le_bytes();
            let packing = if form == 2 { Packing::Lz4 } else { Packing::Zstd };
            (Masks { columns: mask, ..Masks::default() }, packing, [&length.repeat(pages as usize)[..], &packed, &block].concat())
        }
    };
    let pages = Pages { masks, packing, meta_bytes: u32::try_from(meta.len()).expect("bounded") };
    let placed = Decoder::post_copy().place_meta(&mut MEMORY.placement(), CHUNK, &pages, &meta);
    let mut staging = Staging::new();
    staging.begin(CHUNK, masks.filled());
    let staged = Decoder::post_copy().place_meta(&mut staging, CHUNK, &pages, &meta);
    assert_eq!(placed, staged);
    if form < 2 && plain_bytes <= CHUNK_SIZE {
        // An LZ4 block may be longer than one is worth.
        assert!(!is_whole || placed.is_ok() || form == 0, "{placed:?}");
        let is_same = |(bit, page): (usize, &[u8])| staging.pages(u32::try_from(bit).expect("below 64"), 1) == page;
        assert!(!is_whole || placed.is_err() || plain.chunks(PAGE_SIZE).enumerate().all(is_same));
    }
    Some(())
}
