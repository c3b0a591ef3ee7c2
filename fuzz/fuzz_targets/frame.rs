//! Bytes into the frame reader, as a whole channel: no panic, whatever comes.
//!
//! Magic, sequence numbers and checksums are made right first, or no input would come past them.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use pageferry::memory::{Backing, GuestMemory, MemoryLayout, RegionSpec};
use pageferry::page::{Codecs, Decoder, PageKey};
use pageferry::units::{GuestAddr, PageCount};
use pageferry::wire::{FRAME_HEADER_BYTES, FrameReader};
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
    for sequence in 0.. {
        match sign(&mut bytes[at..], sequence) {
            Some(length) => at += length,
            None => break,
        }
    }
    run(&bytes);
});

/// Applies frames until one is wrong or not all there.
fn run(mut bytes: &[u8]) {
    let mut placement = MEMORY.placement();
    let occupied = MEMORY.populated().expect("the kernel answers");
    let mut reader = FrameReader::new(0, 1, Codecs::built_in(), Decoder::new(PageKey::derive(&[7; 16]), occupied));
    let mut length = 0;
    while let Ok(Some(header)) = reader.apply_bytes(bytes, MEMORY.layout(), &mut placement) {
        bytes = &bytes[header.frame_bytes()..];
        length += header.frame_bytes() as u64;
        assert_eq!(reader.totals().bytes.0, length);
    }
}

/// Makes the frame at the start of `bytes` pass as number `sequence`; returns how long it takes itself to be.
fn sign(bytes: &mut [u8], sequence: u64) -> Option<usize> {
    let (header, payload) = bytes.split_first_chunk_mut::<FRAME_HEADER_BYTES>()?;
    header[..4].copy_from_slice(b"PGFR");
    header[8..16].copy_from_slice(&sequence.to_le_bytes());
    let mut length = 0;
    if header[4] != 2 {
        let field = |at: usize| u64::from_le_bytes(*header[at..].first_chunk().expect("inside the header"));
        let meta = usize::from(u16::from_le_bytes([header[20], header[21]]));
        length = (field(80).count_ones() as usize * 4096 + meta).min(payload.len());
        header[88..96].copy_from_slice(&xxh3_64(&payload[..length]).to_le_bytes());
    }
    let checksum = xxh3_64(&header[..96]);
    header[96..].copy_from_slice(&checksum.to_le_bytes());
    Some(FRAME_HEADER_BYTES + length)
}
