//! Bytes as one delta and as the columns of one page, each against a decoder that was written for being plain: both refuse
//! the same, and what they make is the same.
//!
//! The check of a delta is made right, or nothing would come past it.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use pageferry::bitmap::PageBitmap;
use pageferry::memory::{Backing, Chunk, GuestMemory, MemoryLayout};
use pageferry::page::{Decoder, MAX_COLUMNS_BYTES, MAX_DELTA_BYTES, Masks, PageError, PageKey, Pages};
use pageferry::units::{ChunkIndex, PAGE_WORDS, PageCount};
use xxhash_rust::xxh3::{xxh3_64_with_secret, xxh3_64_with_seed};

static MEMORY: LazyLock<GuestMemory> =
    LazyLock::new(|| GuestMemory::allocate(MemoryLayout::flat(PageCount(64)).expect("a layout"), Backing::Anonymous).expect("memory"));

const CHUNK: ChunkIndex = ChunkIndex(0);
const TOKEN: [u8; 16] = [7; 16];

type Words = [u64; PAGE_WORDS];

fuzz_target!(|bytes: &[u8]| {
    // What was there before: words that tell where they stand.
    let old: Words = std::array::from_fn(|index| index as u64 * 0x0101_0101_0101);
    let mut expected = old;
    let is_delta = apply(bytes, &mut expected).is_some();
    let meta = [&check(&expected)[..], &length(bytes), bytes].concat();
    match place(&old, Masks { delta: 1, ..Masks::default() }, &meta) {
        Ok(page) => assert!(is_delta && page == expected),
        Err(PageError::DeltaLength { .. }) => assert!(bytes.is_empty() || bytes.len() > MAX_DELTA_BYTES),
        Err(PageError::Delta { .. }) => assert!(!is_delta),
        Err(error) => panic!("{error}"),
    }
    let columns = columns(bytes);
    match place(&old, Masks { columns: 1, ..Masks::default() }, &[&length(bytes)[..], bytes].concat()) {
        Ok(page) => assert_eq!(Some(page), columns),
        Err(PageError::ColumnsLength { .. }) => assert!(bytes.is_empty() || bytes.len() > MAX_COLUMNS_BYTES),
        Err(PageError::Columns { .. }) => assert_eq!(columns, None),
        Err(error) => panic!("{error}"),
    }
});

/// What the decoder makes of a page.
fn place(old: &Words, masks: Masks, meta: &[u8]) -> Result<Words, PageError> {
    let chunk: Chunk = MEMORY.chunk(CHUNK);
    old.iter().enumerate().for_each(|(index, &word)| chunk.store_word(0, index, word));
    let mut occupied = PageBitmap::new(1);
    occupied.insert_word(CHUNK, 1);
    let pages = Pages { masks, meta_bytes: u32::try_from(meta.len()).expect("a short input"), ..Pages::default() };
    Decoder::new(PageKey::derive(&TOKEN), occupied).place_meta(&mut MEMORY.placement(), CHUNK, &pages, meta)?;
    Ok(std::array::from_fn(|index| chunk.load_word(0, index)))
}

fn length(bytes: &[u8]) -> [u8; 2] {
    u16::try_from(bytes.len()).expect("at most 4096").to_le_bytes()
}

/// SPEC.md: runs of numbers in seven bits a byte, and words.
fn apply(mut delta: &[u8], page: &mut Words) -> Option<()> {
    let mut at = 0;
    while !delta.is_empty() {
        at += number(&mut delta)?;
        for _ in 0..=number(&mut delta)? {
            let (word, rest) = delta.split_first_chunk()?;
            *page.get_mut(at)? = u64::from_le_bytes(*word);
            (at, delta) = (at + 1, rest);
        }
    }
    Some(())
}

/// 0 to 511, in the shortest form.
fn number(bytes: &mut &[u8]) -> Option<usize> {
    let mut number = 0;
    for at in 0..2 {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= usize::from(byte & 0x7f) << (7 * at);
        if byte < 0x80 {
            return (number < 512 && (at == 0 || byte != 0)).then_some(number);
        }
    }
    None
}

/// SPEC.md: words in a row, then each column.
fn columns(bytes: &[u8]) -> Option<Words> {
    let mut page = [0; PAGE_WORDS];
    let (&row, mut rest) = bytes.split_first()?;
    if !(1..=16).contains(&row) {
        return None;
    }
    for column in 0..usize::from(row) {
        let widths = take(&mut rest, 2)?;
        let [residual, base, step, zero] = [0, 4, 8, 12].map(|at| (widths >> at & 0xf) as usize);
        if zero != 0 || [residual, base, step].iter().any(|width| *width > 8) {
            return None;
        }
        let (base, step) = (take(&mut rest, base)?, take(&mut rest, step)?);
        for (count, at) in (0..).zip((column..PAGE_WORDS).step_by(row.into())) {
            page[at] = base.wrapping_add(step.wrapping_mul(count)).wrapping_add(take(&mut rest, residual)?);
        }
    }
    rest.is_empty().then_some(page)
}

/// A number of so many bytes.
fn take(bytes: &mut &[u8], width: usize) -> Option<u64> {
    let (taken, rest) = bytes.split_at_checked(width)?;
    *bytes = rest;
    Some(taken.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
}

/// The check of a page, by another implementation of the hash.
fn check(page: &Words) -> [u8; 4] {
    let secret: Vec<u8> = (0..24).flat_map(|seed| xxh3_64_with_seed(&TOKEN, seed).to_le_bytes()).collect();
    let bytes: Vec<u8> = page.iter().flat_map(|word| word.to_le_bytes()).collect();
    let blocks: Vec<u8> = bytes.chunks(512).flat_map(|block| xxh3_64_with_secret(block, &secret).to_le_bytes()).collect();
    *xxh3_64_with_secret(&blocks, &secret).max(1).to_le_bytes().first_chunk().expect("eight bytes")
}
