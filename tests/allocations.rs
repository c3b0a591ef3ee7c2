//! Nothing is allocated per page or per chunk once buffers have grown.
#![expect(unsafe_code, reason = "an allocator that counts")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use pageferry::bitmap::PageBitmap;
use pageferry::memory::{Backing, GuestMemory, MemoryLayout};
use pageferry::page::{Compression, Decoder, Encoder};
use pageferry::units::{ChunkIndex, PageCount};
use pageferry::wire::{FrameReader, FrameWriter};

struct Counting;

thread_local! {
    /// Of this thread.
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: hands every call on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promise, handed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise, handed on.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn frames_are_made_and_applied_without_allocating() {
    const CHUNKS: u32 = 8;
    let [source, destination] =
        [(); 2].map(|()| GuestMemory::allocate(MemoryLayout::flat(PageCount(u64::from(CHUNKS) * 64)).unwrap(), Backing::Anonymous).unwrap());
    // A quarter each of zero, uniform, compressible and incompressible pages.
    for page in 0..CHUNKS * 64 {
        let mut state = u64::from(page) | 1;
        for index in 0..512 {
            state = state.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(0x1405_7B7E_F767_814F);
            let word = [0, 7, index as u64 % 4, state][page as usize % 4];
            source.chunk(ChunkIndex(page / 64)).store_word(page % 64, index, word);
        }
    }
    let mut writer = FrameWriter::new(Encoder::new(Compression::Lz4, CHUNKS));
    let mut reader = FrameReader::new(0, 1, Decoder::new(PageBitmap::new(CHUNKS)));
    let mut placement = destination.placement();
    let mut bytes = Vec::new();
    let mut before = 0;
    for round in 0..4 {
        for chunk in (0..CHUNKS).map(ChunkIndex) {
            bytes.clear();
            let masks = writer.push_chunk(&mut bytes, round, chunk, source.chunk(chunk), u64::MAX);
            assert!([masks.zero, masks.uniform, masks.lz4, masks.raw].iter().all(|mask| mask.count_ones() == 16));
            reader.apply_bytes(&bytes, &mut placement).unwrap().unwrap();
        }
        if round == 0 {
            before = ALLOCATIONS.get();
        }
    }
    assert_eq!(ALLOCATIONS.get(), before);
}
