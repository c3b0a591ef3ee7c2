//! What a test guest's memory holds before the guest writes to it.
//!
//! Guest-physical [16 MiB, 16 MiB + fill): page `i` of it is pseudo-random when `random-every` is not 0 and divides
//! `i`, and holds the guest's [`Content`] otherwise. Everything else is zeros that nobody wrote, so that it stays
//! unpopulated.

use std::fmt;

use super::pages::Page;
use super::pattern::{GOLDEN, MIX_1, mix};
use super::spec::GuestSpec;
use super::text::Vocabulary;
use super::{PROGRAM_BYTES, PROGRAM_PAGES};
use crate::units::PAGE_WORDS;

/// What the pages of the fill that are not random hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Content {
    /// Records of four words, which compress as a program's data does.
    Records,
    /// Words of a made-up language, which compress as text does.
    Text,
    /// One word in sixteen is a small number and the others are zero; every fourth page or so is zeros altogether.
    Sparse,
}

impl Content {
    /// All contents.
    pub const ALL: [Self; 3] = [Self::Records, Self::Text, Self::Sparse];

    /// The name in descriptions.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Records => "records",
            Self::Text => "text",
            Self::Sparse => "sparse",
        }
    }
}

impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The fill of one guest.
#[derive(Clone, Debug)]
pub(super) struct Fill {
    pages: u64,
    random_every: u64,
    seed: u64,
    source: Source,
}

/// Where the pages come from that are not random.
#[derive(Clone, Debug)]
enum Source {
    Records,
    Text(Vocabulary),
    Sparse,
}

impl Fill {
    pub(super) fn new(spec: &GuestSpec) -> Self {
        let source = match spec.content() {
            Content::Records => Source::Records,
            Content::Text => Source::Text(Vocabulary::new()),
            Content::Sparse => Source::Sparse,
        };
        // Another sequence than that of the writes.
        Self { pages: spec.fill().pages().0, random_every: spec.random_every(), seed: mix(spec.seed(), PROGRAM_BYTES.0), source }
    }

    /// The guest pages that are filled.
    pub(super) fn range(&self) -> std::ops::Range<u64> {
        PROGRAM_PAGES..PROGRAM_PAGES + self.pages
    }

    /// All of guest page `page`: zeros outside the fill.
    pub(super) fn page(&self, page: u64, out: &mut Page) {
        if !self.range().contains(&page) {
            out.fill(0);
        } else if self.is_random(page) {
            set(out, |index| mix(self.seed, page * PAGE_WORDS as u64 + index));
        } else {
            match &self.source {
                Source::Records => set(out, |index| record_word(page, index)),
                Source::Text(vocabulary) => vocabulary.page(self.seed, page, out),
                Source::Sparse => {
                    let key = mix(self.seed, page);
                    if key.is_multiple_of(EMPTY_EVERY) { out.fill(0) } else { set(out, |index| sparse_word(key, index)) }
                }
            }
        }
    }

    fn is_random(&self, page: u64) -> bool {
        self.random_every != 0 && (page - PROGRAM_PAGES).is_multiple_of(self.random_every)
    }
}

fn set(out: &mut Page, word: impl Fn(u64) -> u64) {
    (0..).zip(out).for_each(|(index, out)| *out = word(index));
}

/// A record is the page's number, the record's, a small number that looks random, and zero.
fn record_word(page: u64, index: u64) -> u64 {
    let j = index & !3;
    match index % 4 {
        0 => page,
        1 => j + 1,
        2 => {
            let x = page.wrapping_mul(GOLDEN).wrapping_add((j + 2).wrapping_mul(MIX_1));
            (x ^ (x >> 29)) & 0xffff
        }
        _ => 0,
    }
}

fn sparse_word(key: u64, index: u64) -> u64 {
    let x = mix(key, index);
    if x.is_multiple_of(SPARSE_EVERY) { x >> 32 } else { 0 }
}

/// One sparse page in about so many is zeros.
const EMPTY_EVERY: u64 = 4;
/// One word of a sparse page in about so many is not zero.
const SPARSE_EVERY: u64 = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_and_random_pages_take_turns() {
        let fill = Fill::new(&"workload:random-every=2".parse().unwrap());
        assert_eq!(fill.range(), 4096..4096 + 32768);
        let mut page = [0; PAGE_WORDS];
        fill.page(4097, &mut page);
        // Computed by hand from the formula for p = 4097 and j = 4.
        let x = 4097u64.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(6u64.wrapping_mul(0xBF58_476D_1CE4_E5B9));
        assert_eq!(page[4..8], [4097, 5, (x ^ (x >> 29)) & 0xffff, 0]);
        fill.page(4098, &mut page);
        assert!(page.iter().all(|word| *word > 1 << 40), "random words are hardly ever small");
        fill.page(4096 + 32768, &mut page);
        assert_eq!(page, [0; PAGE_WORDS]);
    }

    #[test]
    fn no_page_is_random_when_none_is_asked_for() {
        let fill = Fill::new(&"workload:random-every=0".parse().unwrap());
        let mut page = [0; PAGE_WORDS];
        for number in fill.range() {
            fill.page(number, &mut page);
            assert_eq!(page[0], number);
        }
    }

    #[test]
    fn sparse_memory_is_mostly_zeros() {
        let fill = Fill::new(&"workload:content=sparse,random-every=0".parse().unwrap());
        let (mut words, mut empty) = (0, 0);
        for number in fill.range() {
            let mut page = [0; PAGE_WORDS];
            fill.page(number, &mut page);
            let set = page.iter().filter(|word| **word != 0).count();
            (words, empty) = (words + set, empty + usize::from(set == 0));
        }
        let pages = fill.range().count();
        assert!((pages / 5..pages / 3).contains(&empty), "{empty} of {pages} pages are empty");
        let dense = words / (pages - empty);
        assert!((PAGE_WORDS / 20..PAGE_WORDS / 12).contains(&dense), "{dense} words in each of the others");
    }

    #[test]
    fn random_pages_lie_among_any_content() {
        for content in Content::ALL {
            let fill = Fill::new(&format!("workload:random-every=3,content={content}").parse().unwrap());
            let mut page = [0; PAGE_WORDS];
            fill.page(4096 + 3, &mut page);
            assert!(page.iter().all(|word| *word > 1 << 40), "{content}");
        }
    }
}
