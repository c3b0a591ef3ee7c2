//! Bytes into the frame reader, as a whole channel: no panic, whatever comes.
//!
//! After a switch, or if the first frame is one of post-copy, they are staged: what is held then is what the frame names.
//! Magic, sequence numbers and checksums are made right first, or no input would come past them.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use pageferry::memory::{Backing, GuestMemory, MemoryLayout, RegionSpec, Staging};
use pageferry::page::{Codecs, Decoder, PageKey};
use pageferry::units::{GuestAddr, PAGE_SIZE, PageCount};
use pageferry::wire::{FRAME_HEADER_BYTES, FrameBody, FrameReader};
use xxhash_rust::xxh3::xxh3_64;

/// A whole chunk, one that is cut short, and one of a second region.
static MEMORY: LazyLock<GuestMemory> = LazyLock::new(|| {
    let regions = [(0, 70), (1 << 20, 10)].map(|(start, pages)| RegionSpec { start: GuestAddr(start), pages: PageCount(pages) });
    GuestMemory::allocate(MemoryLayout::new(regions.to_vec()).expect("a layout"), Backing::Anonymous).expect("memory")
});

fuzz_target!(|bytes: &[u8]| {
    run(bytes);
    let mut bytes = bytes.to_vec();
    let mut at = 0;
    let mut sequence = 0;
    while let Some(length) = sign(&mut bytes[at..], sequence) {
        // Numbers begin anew after a switch.
        sequence = if bytes[at + 4] == 3 { 0 } else { sequence + 1 };
        at += length;
    }
    run(&bytes);
});

/// Takes frames until one is wrong or not all there.
fn run(mut bytes: &[u8]) {
    if bytes.get(4) == Some(&4) {
        return stage(FrameReader::post_copy(u16::MAX, Codecs::built_in()), bytes);
    }
    let mut placement = MEMORY.placement();
    let occupied = MEMORY.populated().expect("the kernel answers");
    let decoder = Decoder::new(PageKey::derive(&[7; 16]), occupied);
    let mut reader = FrameReader::new(0, 1, Codecs::built_in(), decoder).granting_post_copy();
    let mut length = 0;
    while let Ok(Some(header)) = reader.apply_bytes(bytes, MEMORY.layout(), &mut placement) {
        bytes = &bytes[header.frame_bytes()..];
        length += header.frame_bytes() as u64;
        assert_eq!(reader.totals().bytes.0, length);
        if header.body == FrameBody::Switch {
            assert!(!matches!(reader.apply_bytes(bytes, MEMORY.layout(), &mut placement), Ok(Some(_))), "a frame before post-copy");
            return stage(reader.into_post_copy(), bytes);
        }
    }
}

/// Stages frames of post-copy until one is wrong or not all there.
fn stage(mut reader: FrameReader, mut bytes: &[u8]) {
    let mut staging = Staging::new();
    while let Ok(Some(header)) = reader.apply_bytes(bytes, MEMORY.layout(), &mut staging) {
        bytes = &bytes[header.frame_bytes()..];
        let FrameBody::Chunk { chunk, pages } = header.body else { panic!("{header:?} in post-copy") };
        assert_eq!((header.round, staging.chunk()), (0, Some(chunk)));
        assert_eq!((staging.zeros(), staging.held()), (pages.masks.zero, pages.masks.filled()));
        assert_eq!(staging.zeros() | staging.held(), pages.masks.all());
        for bit in (0..64).filter(|bit| staging.held() >> bit & 1 == 1) {
            assert_eq!(staging.pages(bit, 1).len(), PAGE_SIZE);
        }
    }
}

/// Makes the frame at the start of `bytes` pass as number `sequence`; returns how long it takes itself to be.
fn sign(bytes: &mut [u8], sequence: u64) -> Option<usize> {
    let (header, payload) = bytes.split_first_chunk_mut::<FRAME_HEADER_BYTES>()?;
    header[..4].copy_from_slice(b"PGFR");
    header[8..16].copy_from_slice(&sequence.to_le_bytes());
    let mut length = 0;
    if !matches!(header[4], 2 | 3) {
        let field = |at: usize| u64::from_le_bytes(*header[at..].first_chunk().expect("inside the header"));
        let meta = usize::from(u16::from_le_bytes([header[20], header[21]]));
        length = (field(80).count_ones() as usize * 4096 + meta).min(payload.len());
        header[88..96].copy_from_slice(&xxh3_64(&payload[..length]).to_le_bytes());
    }
    let checksum = xxh3_64(&header[..96]);
    header[96..].copy_from_slice(&checksum.to_le_bytes());
    Some(FRAME_HEADER_BYTES + length)
}
