//! What a test guest writes, and where.
//!
//! Writes are numbered from 1, and the number alone (with the seed) says where write `n` goes and what it stores. So an
//! image can be checked without its history, and a guest that goes on at another host needs nothing but its counter.
//! The program of the KVM guest computes the same in assembly (`kvm/program.s`).

use std::fmt;

use super::spec::GuestSpec;
use crate::units::PAGE_WORDS;

/// Where a guest writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Pattern {
    /// Walks the working set for ever and stores the number of the pass at the start of each page.
    Sweep,
    /// Stores the number of the write at a random word of a random page.
    Random,
    /// Walks the working set for ever and rewrites each page whole with random words.
    Rewrite,
    /// As `Random`, but nine writes in ten go to the first tenth of the working set.
    HotCold,
}

impl Pattern {
    /// All patterns; the position is the number the guest's program knows the pattern by.
    pub const ALL: [Self; 4] = [Self::Sweep, Self::Random, Self::Rewrite, Self::HotCold];

    /// The name in descriptions.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Sweep => "sweep",
            Self::Random => "random",
            Self::Rewrite => "rewrite",
            Self::HotCold => "hot-cold",
        }
    }

    /// Whether the pages come in order, one after the other.
    #[must_use]
    pub fn is_ordered(self) -> bool {
        matches!(self, Self::Sweep | Self::Rewrite)
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What one write does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Write {
    /// Stores one word.
    Word {
        /// Page of the working set, from 0.
        page: u64,
        /// Word of that page.
        word: usize,
        /// What is stored.
        value: u64,
    },
    /// Stores all words of a page, in order.
    Page {
        /// Page of the working set, from 0.
        page: u64,
        /// What the words come from, see [`rewrite_word`].
        key: u64,
    },
}

impl Write {
    /// The page of the working set it goes to, from 0.
    pub(super) fn page(self) -> u64 {
        match self {
            Self::Word { page, .. } | Self::Page { page, .. } => page,
        }
    }
}

/// All writes of a guest, by number.
#[derive(Clone, Copy, Debug)]
pub(super) struct Writes {
    pub(super) pattern: Pattern,
    pub(super) seed: u64,
    /// Pages of the working set.
    pub(super) pages: u64,
    /// The first pages of the working set, those that [`Writes::hot_share`] of the writes go to.
    pub(super) hot_pages: u64,
    /// Of 65536 random writes, those that go to the hot pages. 65536 when all pages are.
    pub(super) hot_share: u64,
}

impl Writes {
    pub(super) fn new(spec: &GuestSpec) -> Self {
        let pages = spec.working_set_pages().0;
        let tenth = (pages / 10).max(1);
        let skewed = spec.pattern() == Pattern::HotCold && tenth < pages;
        let (hot_pages, hot_share) = if skewed { (tenth, HOT_SHARE) } else { (pages, 1 << 16) };
        Self { pattern: spec.pattern(), seed: spec.seed(), pages, hot_pages, hot_share }
    }

    /// Write number `n`, from 1.
    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "a number below 512")]
    pub(super) fn nth(&self, n: u64) -> Write {
        let before = n.wrapping_sub(1);
        match self.pattern {
            Pattern::Sweep => Write::Word { page: before % self.pages, word: 0, value: before / self.pages + 1 },
            Pattern::Rewrite => Write::Page { page: before % self.pages, key: mix(self.seed, n) },
            Pattern::Random | Pattern::HotCold => {
                let x = mix(self.seed, n);
                let (first, pages) =
                    if ((x >> 9) & 0xffff) < self.hot_share { (0, self.hot_pages) } else { (self.hot_pages, self.pages - self.hot_pages) };
                Write::Word { page: first + scale(x, pages), word: (x % PAGE_WORDS as u64) as usize, value: n }
            }
        }
    }

    /// The last write up to number `n` that goes to `page`, in an ordered pattern.
    pub(super) fn last_at(&self, page: u64, n: u64) -> Option<u64> {
        (n > page).then(|| page + 1 + (n - 1 - page) / self.pages * self.pages)
    }
}

/// A number below `pages` from the high bits of `x`.
#[inline]
fn scale(x: u64, pages: u64) -> u64 {
    ((u128::from(x) * u128::from(pages)) >> 64) as u64
}

/// Number `n` of the random sequence that `seed` names (`SplitMix64`).
#[inline]
pub(super) fn mix(seed: u64, n: u64) -> u64 {
    let x = n.wrapping_mul(GOLDEN).wrapping_add(seed);
    let x = (x ^ (x >> 30)).wrapping_mul(MIX_1);
    let x = (x ^ (x >> 27)).wrapping_mul(MIX_2);
    x ^ (x >> 31)
}

/// Word `index` of a page that is rewritten whole. One multiplication a word, so that memory sets the pace.
#[inline]
pub(super) fn rewrite_word(key: u64, index: usize) -> u64 {
    let x = (index as u64).wrapping_mul(GOLDEN).wrapping_add(key);
    (x ^ (x >> 32)).wrapping_mul(MIX_1)
}

/// 2^64 divided by the golden ratio, odd.
pub(super) const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
/// First multiplier of the finaliser.
pub(super) const MIX_1: u64 = 0xbf58_476d_1ce4_e5b9;
/// Second multiplier of the finaliser.
pub(super) const MIX_2: u64 = 0x94d0_49bb_1331_11eb;
/// Nine tenths of 65536.
const HOT_SHARE: u64 = 58_982;

#[cfg(test)]
mod tests {
    use super::*;

    fn writes(text: &str) -> Writes {
        Writes::new(&text.parse().unwrap())
    }

    #[test]
    fn the_sequence_is_splitmix64() {
        // The first outputs for seed 1234567, as published with the generator.
        assert_eq!([1, 2, 3].map(|n| mix(1_234_567, n)), [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]);
    }

    #[test]
    fn sweep_walks_in_order_and_counts_passes() {
        let writes = writes("workload:working-set=12KiB");
        let seen: Vec<_> = (1..=7).map(|n| writes.nth(n)).collect();
        let word = |page, value| Write::Word { page, word: 0, value };
        assert_eq!(seen, [word(0, 1), word(1, 1), word(2, 1), word(0, 2), word(1, 2), word(2, 2), word(0, 3)]);
    }

    #[test]
    fn the_last_write_at_a_page_is_found_without_looking() {
        let writes = writes("workload:working-set=12KiB,pattern=rewrite");
        for n in 0..20 {
            for page in 0..3 {
                let naive = (1..=n).rev().find(|n| writes.nth(*n).page() == page);
                assert_eq!(writes.last_at(page, n), naive, "page {page} after {n}");
            }
        }
    }

    #[test]
    fn hot_cold_is_nine_to_one_and_stays_inside() {
        for pages in [1, 5, 100] {
            let writes = writes(&format!("workload:working-set={},pattern=hot-cold", pages * 4096));
            let hot =
                (1..=10_000).map(|n| writes.nth(n).page()).inspect(|page| assert!(*page < pages)).filter(|page| *page < (pages / 10).max(1)).count();
            assert!(pages == 1 || (8_800..9_200).contains(&hot), "{hot} of 10000 with {pages} pages");
        }
    }
}
