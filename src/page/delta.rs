//! The difference between two versions of a page: runs of words that are replaced.
//!
//! A delta is a list of runs, each one
//!
//! ```text
//! words to skip (0 to 511) | words that follow, less one (0 to 511) | the words
//! ```
//!
//! with the two numbers in seven bits a byte, the low ones first. The words are the new ones, not their XOR with the old
//! ones: so a delta can also be made by who no longer has the old page but knows which blocks of it have changed, and the
//! general compressor that comes after finds as much in them.

use std::ops::Range;

use super::key::{BLOCK_BYTES, BLOCKS};
use crate::units::{PAGE_SIZE, PAGE_WORDS};

/// The longest delta that is worth more than the page itself.
pub const MAX_DELTA_BYTES: usize = PAGE_SIZE / 2;

/// Appends to `out` what makes `new` of `old`; nothing, and false, when that is longer than [`MAX_DELTA_BYTES`]. Only the
/// blocks named in `changed` are looked at: the others are known to be the same.
pub(super) fn between(old: &[u8; PAGE_SIZE], new: &[u8; PAGE_SIZE], changed: u8, out: &mut Vec<u8>) -> bool {
    let start = out.len();
    let (old_words, new_words) = (old.as_chunks::<8>().0, new.as_chunks::<8>().0);
    let (old_lines, new_lines) = (old.as_chunks::<LINE_BYTES>().0, new.as_chunks::<LINE_BYTES>().0);
    let (mut at, mut kept) = (0, 0);
    while at < PAGE_WORDS {
        if at.is_multiple_of(BLOCK_WORDS) && changed >> (at / BLOCK_WORDS) & 1 == 0 {
            at += BLOCK_WORDS;
            continue;
        }
        // Most of a page is the same: compare a line at a time there.
        if at.is_multiple_of(LINE_WORDS) && are_equal(&old_lines[at / LINE_WORDS], &new_lines[at / LINE_WORDS]) {
            at += LINE_WORDS;
            continue;
        }
        if old_words[at] == new_words[at] {
            at += 1;
            continue;
        }
        let length = old_words[at..].iter().zip(&new_words[at..]).take_while(|(old, new)| old != new).count();
        push_run(out, at - kept, &new[at * 8..(at + length) * 8]);
        at += length;
        kept = at;
        if out.len() - start > MAX_DELTA_BYTES {
            out.truncate(start);
            return false;
        }
    }
    true
}

/// Appends to `out` the delta that replaces the blocks of `new` named in `changed`; nothing, and false, when that is
/// longer than [`MAX_DELTA_BYTES`].
pub(super) fn of_blocks(changed: u8, new: &[u8; PAGE_SIZE], out: &mut Vec<u8>) -> bool {
    let start = out.len();
    let (mut at, mut kept) = (0, 0);
    while at < BLOCKS {
        let length = (changed >> at).trailing_ones() as usize;
        if length > 0 {
            push_run(out, (at - kept) * BLOCK_BYTES / 8, &new[at * BLOCK_BYTES..(at + length) * BLOCK_BYTES]);
            kept = at + length;
        }
        at += length + 1;
    }
    let worth_it = out.len() - start <= MAX_DELTA_BYTES;
    if !worth_it {
        out.truncate(start);
    }
    worth_it
}

/// Applies `delta` to `page`. `None` when it is not one: the page may be changed in part then.
#[must_use]
pub(super) fn apply(delta: &[u8], page: &mut [u8; PAGE_SIZE]) -> Option<()> {
    for run in runs(delta) {
        let Run { words, bytes } = run?;
        page.as_chunks_mut::<8>().0[words].as_flattened_mut().copy_from_slice(bytes);
    }
    Some(())
}

/// The words of a page that `delta` replaces.
pub(super) fn replaced(delta: &[u8]) -> impl Iterator<Item = Range<usize>> {
    runs(delta).map_while(|run| run.map(|run| run.words))
}

/// Words of a page, and what becomes of them.
struct Run<'d> {
    words: Range<usize>,
    bytes: &'d [u8],
}

/// The runs of `delta`; `None` where it is not one, and nothing after that.
fn runs(mut delta: &[u8]) -> impl Iterator<Item = Option<Run<'_>>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        if delta.is_empty() {
            return None;
        }
        let run = take_run(&mut delta, &mut at);
        if run.is_none() {
            delta = &[];
        }
        Some(run)
    })
}

fn take_run<'d>(delta: &mut &'d [u8], at: &mut usize) -> Option<Run<'d>> {
    let start = *at + take_number(delta)?;
    let words = start..start + take_number(delta)? + 1;
    let (bytes, rest) = delta.split_at_checked(words.len() * 8)?;
    if words.end > PAGE_WORDS {
        return None;
    }
    (*delta, *at) = (rest, words.end);
    Some(Run { words, bytes })
}

/// In place: a call of `memcmp` for each line would cost several times as much.
#[inline]
fn are_equal(one: &[u8; LINE_BYTES], other: &[u8; LINE_BYTES]) -> bool {
    let pairs = one.as_chunks().0.iter().zip(other.as_chunks().0);
    pairs.fold(0, |differs, (one, other)| differs | u64::from_le_bytes(*one) ^ u64::from_le_bytes(*other)) == 0
}

fn push_run(out: &mut Vec<u8>, skip: usize, words: &[u8]) {
    push_number(out, skip);
    push_number(out, words.len() / 8 - 1);
    out.extend_from_slice(words);
}

/// Numbers are 0 to 511.
fn push_number(out: &mut Vec<u8>, number: usize) {
    let [low, high] = u16::try_from(number).expect("a page has 512 words").to_le_bytes();
    if number < 0x80 {
        out.push(low);
    } else {
        out.extend([low | 0x80, high << 1 | low >> 7]);
    }
}

fn take_number(bytes: &mut &[u8]) -> Option<usize> {
    let (low, rest) = bytes.split_first()?;
    *bytes = rest;
    if low & 0x80 == 0 {
        return Some(usize::from(*low));
    }
    let (high, rest) = rest.split_first()?;
    *bytes = rest;
    // One form for each number.
    (1..4).contains(high).then(|| usize::from(low & 0x7f) | usize::from(*high) << 7)
}

const LINE_WORDS: usize = 8;
const LINE_BYTES: usize = LINE_WORDS * 8;
const BLOCK_WORDS: usize = BLOCK_BYTES / 8;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn page(seed: u8) -> [u8; PAGE_SIZE] {
        let mut page = [0; PAGE_SIZE];
        page.iter_mut().zip(0..).for_each(|(byte, index): (_, u32)| *byte = (index.wrapping_mul(2_654_435_761) >> 11).to_le_bytes()[0] ^ seed);
        page
    }

    #[test]
    fn deltas_have_their_golden_bytes() {
        let old = [0; PAGE_SIZE];
        let mut new = old;
        new[8] = 1;
        new[4088..].fill(0xff);
        let mut delta = Vec::new();
        assert!(between(&old, &new, 0b1000_0001, &mut delta));
        // Skip 1, 1 word; skip 509 (0xfd, 0x03), 1 word.
        let expected = [[1, 0].as_slice(), &[1, 0, 0, 0, 0, 0, 0, 0], &[0xfd, 0x03, 0], &[0xff; 8]].concat();
        assert_eq!(delta, expected);
        delta.clear();
        assert!(of_blocks(0b1000_0011, &page(0), &mut delta));
        assert_eq!((delta[..3].to_vec(), delta.len()), (vec![0, 0x7f, page(0)[0]], 2 + 1024 + 3 + 512), "two blocks, then skip five and one more");
    }

    #[test]
    fn a_page_that_changed_too_much_has_no_delta() {
        let mut out = b"before".to_vec();
        assert!(!between(&page(0), &page(1), u8::MAX, &mut out));
        assert!(!of_blocks(0b1111, &page(1), &mut out), "half a page and its runs");
        assert!(of_blocks(0b0111, &page(1), &mut out));
        assert!(out.starts_with(b"before"));
    }

    #[test]
    fn what_is_no_delta_is_refused() {
        let mut page = page(0);
        let long = [[0x80, 0x04].as_slice(), &[0], &[0; 8]].concat();
        let redundant = [[0x85, 0x00].as_slice(), &[0], &[0; 8]].concat();
        let beyond = [[0xff, 0x03].as_slice(), &[1], &[0; 16]].concat();
        for bad in [&[1][..], &[0x80], &[0, 0], &[0, 0, 1, 2, 3, 4, 5, 6, 7], &long, &redundant, &beyond] {
            assert_eq!(apply(bad, &mut page), None, "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn a_delta_makes_the_new_page_of_the_old_one(changes in prop::collection::vec((0usize..PAGE_SIZE, any::<u8>()), 0..200), run in 0usize..1500) {
            let old = page(3);
            let mut new = old;
            changes.iter().for_each(|&(at, byte)| new[at] = byte);
            new[700..700 + run].iter_mut().for_each(|byte| *byte ^= 0x5a);
            let blocks = old.chunks(BLOCK_BYTES).zip(new.chunks(BLOCK_BYTES)).rev();
            let changed = blocks.fold(0, |changed, (old, new)| changed << 1 | u8::from(old != new));
            let (mut delta, mut whole) = (Vec::new(), Vec::new());
            let made = between(&old, &new, changed, &mut delta);
            prop_assert_eq!((between(&old, &new, u8::MAX, &mut whole), &whole), (made, &delta));
            if made {
                prop_assert!(delta.len() <= MAX_DELTA_BYTES);
                let mut page = old;
                prop_assert_eq!(apply(&delta, &mut page), Some(()));
                prop_assert!(page == new);
                let words: Vec<_> = replaced(&delta).flatten().collect();
                let differ = (0..PAGE_WORDS).filter(|word| old[word * 8..][..8] != new[word * 8..][..8]);
                prop_assert!(differ.eq(words), "these words, and no others");
            }
        }

        #[test]
        fn blocks_that_changed_are_replaced(changed: u8) {
            let (old, new) = (page(3), page(4));
            let mut delta = Vec::new();
            if of_blocks(changed, &new, &mut delta) {
                let mut page = old;
                prop_assert_eq!(apply(&delta, &mut page), Some(()));
                for (index, block) in page.chunks(BLOCK_BYTES).enumerate() {
                    let expected = if changed >> index & 1 == 1 { &new } else { &old };
                    prop_assert!(block == &expected[index * BLOCK_BYTES..][..BLOCK_BYTES]);
                }
            }
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = apply(&bytes, &mut page(0));
        }
    }
}
