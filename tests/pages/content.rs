//! Memory to test with: one that is filled as told, and one that pages are placed in.

use pageferry::memory::{Backing, GuestMemory, MemoryLayout};
use pageferry::units::{ChunkIndex, PAGE_SIZE, PAGE_WORDS, PageCount};
use proptest::prelude::*;

/// What a page holds.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Content {
    Zero,
    Uniform(u64),
    /// One word differs from zeros.
    Single(usize, u64),
    /// Records that LZ4 halves at least.
    Records(u64),
    Random(u64),
    /// A random front, zeros behind: around the limit of what LZ4 may take.
    Front(u64, usize),
}

impl Content {
    fn word(self, index: usize) -> u64 {
        match self {
            Self::Zero => 0,
            Self::Uniform(word) => word,
            Self::Single(at, word) => word * u64::from(at == index),
            Self::Records(seed) if index % 4 == 2 => mix(seed + index as u64) & 0xffff,
            Self::Records(seed) => seed + index as u64 % 4,
            Self::Random(seed) => mix(seed.wrapping_add(index as u64)),
            Self::Front(seed, words) => mix(seed.wrapping_add(index as u64)).wrapping_mul(u64::from(index < words)),
        }
    }
}

/// Scrambles the bits of a number (the finalizer of splitmix64).
fn mix(number: u64) -> u64 {
    let number = number.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let number = (number ^ (number >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    number ^ (number >> 31)
}

/// Any content.
pub(crate) fn content() -> impl Strategy<Value = Content> {
    prop_oneof![
        Just(Content::Zero),
        any::<u64>().prop_map(Content::Uniform),
        (0..PAGE_WORDS, any::<u64>()).prop_map(|(at, word)| Content::Single(at, word)),
        any::<u32>().prop_map(|seed| Content::Records(u64::from(seed))),
        any::<u64>().prop_map(Content::Random),
        (any::<u64>(), 400..PAGE_WORDS).prop_map(|(seed, words)| Content::Front(seed, words)),
    ]
}

/// Words that change: page, word, value.
pub(crate) fn changes() -> impl Strategy<Value = Vec<(u32, usize, u64)>> {
    prop::collection::vec((0u32..64, 0..PAGE_WORDS, any::<u64>()), 0..120)
}

/// Memory of `pages` pages, all zeros.
pub(crate) fn memory(pages: usize) -> GuestMemory {
    GuestMemory::allocate(MemoryLayout::flat(PageCount(pages as u64)).unwrap(), Backing::Anonymous).unwrap()
}

/// Writes the pages of `mask` in `chunk`; page `n` gets `contents[n]`.
pub(crate) fn fill(memory: &GuestMemory, chunk: ChunkIndex, contents: &[Content], mask: u64) {
    for bit in bits(mask) {
        for index in 0..PAGE_WORDS {
            memory.chunk(chunk).store_word(bit, index, contents[bit as usize].word(index));
        }
    }
}

/// All of a chunk's pages.
pub(crate) fn pages_of(memory: &GuestMemory, chunk: ChunkIndex) -> Vec<[u8; PAGE_SIZE]> {
    let chunk = memory.chunk(chunk);
    let page = |bit| {
        let mut page = [0; PAGE_SIZE];
        chunk.copy_out(bit, &mut page);
        page
    };
    (0..chunk.pages()).map(page).collect()
}

/// The numbers of the bits in `mask`.
pub(crate) fn bits(mask: u64) -> impl Iterator<Item = u32> {
    (0..64).filter(move |bit| mask >> bit & 1 == 1)
}
