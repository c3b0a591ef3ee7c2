//! Sets of pages that cross in pieces: one message holds only so much of a bitmap.
//!
//! Pieces ascend and do not overlap, so what they take up is bounded by the memory they are about; words between them
//! are zero. What they must add up to is announced apart from them, so that a lost piece cannot go unnoticed.

use crate::bitmap::PageBitmap;
use crate::units::{ChunkIndex, PageCount};
use crate::wire::{Extent, MAX_BITMAP_WORDS};

/// `bitmap` in pieces: the first chunk of each, and its words. Stretches of zeros that would take more room than
/// another envelope are left out.
pub(super) fn pieces(bitmap: &PageBitmap) -> impl Iterator<Item = (ChunkIndex, Vec<u64>)> {
    let words = bitmap.words();
    let mut at = 0;
    std::iter::from_fn(move || {
        at += words[at..].iter().position(|word| *word != 0)?;
        let longest = &words[at..words.len().min(at + MAX_BITMAP_WORDS)];
        let piece = longest[..reach(longest)].to_vec();
        let first = ChunkIndex(u32::try_from(at).expect("a bitmap has at most 2^32 words"));
        at += piece.len();
        Some((first, piece))
    })
}

/// What the pieces of `bitmap` add up to.
pub(super) fn extent(bitmap: &PageBitmap) -> Extent {
    Extent { chunks: bitmap.chunks(), pages: bitmap.count() }
}

/// How many of `words`, the first of which is not zero, belong in one piece.
fn reach(words: &[u64]) -> usize {
    let mut reach = 1;
    for (index, word) in words.iter().enumerate() {
        if *word != 0 {
            reach = index + 1;
        } else if index - reach >= ZEROS_WORTH_A_PIECE {
            break;
        }
    }
    reach
}

/// Puts a peer's pieces together.
#[derive(Clone, Debug)]
pub(super) struct Assembly {
    bitmap: PageBitmap,
    pages: PageCount,
    /// The first chunk that the next piece may be about.
    next: u32,
}

impl Assembly {
    /// For a memory of `chunks`.
    pub(super) fn new(chunks: u32) -> Self {
        Self { bitmap: PageBitmap::new(chunks), pages: PageCount(0), next: 0 }
    }

    /// Takes one piece, in which each chunk has at most the pages of `allowed`. Fails with what is wrong with it.
    pub(super) fn add(&mut self, first: ChunkIndex, words: &[u64], allowed: impl Fn(ChunkIndex) -> u64) -> Result<(), String> {
        let chunks = self.bitmap.chunks();
        let end = u32::try_from(words.len()).ok().and_then(|length| first.0.checked_add(length)).filter(|end| *end <= chunks);
        let Some(end) = end else { return Err(format!("{} words from chunk {} on, there are {chunks} chunks", words.len(), first.0)) };
        if first.0 < self.next || words.is_empty() {
            return Err(format!("{} words from chunk {} on, after those up to chunk {}", words.len(), first.0, self.next));
        }
        for (chunk, word) in (first.0..).map(ChunkIndex).zip(words) {
            let stray = if *word == 0 { 0 } else { *word & !allowed(chunk) };
            if stray != 0 {
                return Err(format!("page {} does not belong there", chunk.page(stray.trailing_zeros()).0));
            }
            self.pages += PageCount(word.count_ones().into());
        }
        self.bitmap.words_mut()[first.as_usize()..end as usize].copy_from_slice(words);
        self.next = end;
        Ok(())
    }

    /// The whole, if it is what was `announced`. Fails with what is wrong.
    pub(super) fn finish(self, announced: Extent) -> Result<PageBitmap, String> {
        let found = Extent { chunks: self.bitmap.chunks(), pages: self.pages };
        if found.chunks != announced.chunks {
            return Err(format!("{} chunks announced, there are {}", announced.chunks, found.chunks));
        }
        if found.pages != announced.pages {
            return Err(format!("{} pages announced, {} came", announced.pages.0, found.pages.0));
        }
        Ok(self.bitmap)
    }
}

/// Zero words that take more room than the envelope and the place of another piece.
const ZEROS_WORTH_A_PIECE: usize = 5;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bitmap(words: &[u64]) -> PageBitmap {
        let mut bitmap = PageBitmap::new(u32::try_from(words.len()).unwrap());
        bitmap.words_mut().copy_from_slice(words);
        bitmap
    }

    fn all(_: ChunkIndex) -> u64 {
        u64::MAX
    }

    #[test]
    fn long_stretches_of_zeros_are_left_out_and_short_ones_are_not() {
        let words = [0, 1, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 3, 0];
        let pieces: Vec<_> = pieces(&bitmap(&words)).collect();
        assert_eq!(pieces, [(ChunkIndex(1), vec![1, 0, 0, 0, 0, 0, 2]), (ChunkIndex(14), vec![3])]);
    }

    #[test]
    fn a_piece_is_no_longer_than_a_message() {
        let full = bitmap(&vec![1; MAX_BITMAP_WORDS + 1]);
        let pieces: Vec<_> = pieces(&full).collect();
        assert_eq!(
            pieces.iter().map(|(first, words)| (first.as_usize(), words.len())).collect::<Vec<_>>(),
            [(0, MAX_BITMAP_WORDS), (MAX_BITMAP_WORDS, 1)]
        );
    }

    #[test]
    fn pieces_out_of_order_out_of_bounds_or_of_other_pages_are_refused() {
        let mut assembly = Assembly::new(4);
        assert_eq!(assembly.add(ChunkIndex(1), &[1], all), Ok(()));
        let wrong = [
            (ChunkIndex(1), vec![1], "1 words from chunk 1 on, after those up to chunk 2"),
            (ChunkIndex(0), vec![1], "1 words from chunk 0 on, after those up to chunk 2"),
            (ChunkIndex(3), vec![], "0 words from chunk 3 on, after those up to chunk 2"),
            (ChunkIndex(2), vec![1; 3], "3 words from chunk 2 on, there are 4 chunks"),
            (ChunkIndex(u32::MAX), vec![1], "1 words from chunk 4294967295 on, there are 4 chunks"),
            (ChunkIndex(2), vec![0, 0b1010], "page 195 does not belong there"),
        ];
        for (first, words, why) in wrong {
            assert_eq!(assembly.clone().add(first, &words, |_| 0b0010), Err(why.to_owned()));
        }
    }

    #[test]
    fn a_sum_that_is_not_the_announced_one_is_refused() {
        let mut assembly = Assembly::new(4);
        assembly.add(ChunkIndex(1), &[3], all).unwrap();
        let extent = |chunks, pages| Extent { chunks, pages: PageCount(pages) };
        assert_eq!(assembly.clone().finish(extent(5, 2)), Err("5 chunks announced, there are 4".to_owned()));
        assert_eq!(assembly.clone().finish(extent(4, 3)), Err("3 pages announced, 2 came".to_owned()));
        assert_eq!(assembly.finish(extent(4, 2)), Ok(bitmap(&[0, 3, 0, 0])));
    }

    proptest! {
        #[test]
        fn a_bitmap_in_pieces_is_put_together_again(words in prop::collection::vec(prop_oneof![4 => Just(0u64), 1 => any::<u64>()], 1..200)) {
            let whole = bitmap(&words);
            let mut assembly = Assembly::new(whole.chunks());
            for (first, piece) in pieces(&whole) {
                prop_assert_eq!(assembly.add(first, &piece, |chunk| whole.word(chunk)), Ok(()));
            }
            prop_assert_eq!(assembly.finish(extent(&whole)), Ok(whole));
        }
    }
}
