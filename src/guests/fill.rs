//! What a test guest's memory holds before the guest writes to it.
//!
//! Guest-physical [16 MiB, 16 MiB + fill): page `i` of it is pseudo-random when `random-every` is not 0 and divides
//! `i`, and holds records otherwise, which compress as a program's data does. Everything else is zeros that nobody
//! wrote, so that it stays unpopulated.

use super::pages::Page;
use super::pattern::{GOLDEN, MIX_1, mix};
use super::spec::GuestSpec;
use super::{PROGRAM_BYTES, PROGRAM_PAGES};
use crate::units::PAGE_WORDS;

/// The fill of one guest.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fill {
    pages: u64,
    random_every: u64,
    seed: u64,
}

impl Fill {
    pub(super) fn new(spec: &GuestSpec) -> Self {
        // Another sequence than that of the writes.
        Self { pages: spec.fill().pages().0, random_every: spec.random_every(), seed: mix(spec.seed(), PROGRAM_BYTES.0) }
    }

    /// The guest pages that are filled.
    pub(super) fn range(&self) -> std::ops::Range<u64> {
        PROGRAM_PAGES..PROGRAM_PAGES + self.pages
    }

    /// Word `index` of guest page `page`; 0 outside the fill.
    #[inline]
    pub(super) fn word(&self, page: u64, index: usize) -> u64 {
        if !self.range().contains(&page) {
            0
        } else if self.is_random(page) {
            mix(self.seed, page * PAGE_WORDS as u64 + index as u64)
        } else {
            let j = (index & !3) as u64;
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
    }

    /// All of guest page `page`.
    pub(super) fn page(&self, page: u64, out: &mut Page) {
        if self.range().contains(&page) {
            out.iter_mut().enumerate().for_each(|(index, word)| *word = self.word(page, index));
        } else {
            out.fill(0);
        }
    }

    fn is_random(&self, page: u64) -> bool {
        self.random_every != 0 && (page - PROGRAM_PAGES).is_multiple_of(self.random_every)
    }
}

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
        assert!(fill.range().all(|page| fill.word(page, 0) == page));
    }
}
