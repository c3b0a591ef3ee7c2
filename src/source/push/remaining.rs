//! What the destination still misses, and who may send it.
//!
//! In post-copy a page crosses once: by a bulk lane, because it is its turn, or by the urgent one, because the guest
//! waits for it. The claim of its bit decides, and claims are atomic, so there is no third way and no lock. A page that
//! is claimed is on its way or will be; one whose lane broke comes back with the next generation, which starts from what
//! has arrived.
//!
//! Where memory is made of huge pages the destination can only fill whole ones, so they are claimed whole, by one lane:
//! eight chunks of 64 pages, aligned to the region they lie in (chunks are, and regions of huge pages begin at one).

use crossbeam::utils::CachePadded;

use crate::bitmap::{PageBitmap, SharedBitmap};
use crate::memory::MemoryLayout;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::units::{CHUNK_PAGES, ChunkIndex, PageCount, PageIndex};

/// Pages that are filled together at the destination.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Granule {
    /// Each on its own.
    #[default]
    Page,
    /// 512, a huge page of 2 MiB.
    HugePage,
}

impl Granule {
    /// The granule of so many pages, if there is one.
    #[must_use]
    pub fn from_pages(pages: u16) -> Option<Self> {
        match pages {
            1 => Some(Self::Page),
            512 => Some(Self::HugePage),
            _ => None,
        }
    }
}

/// The pages that have not been claimed.
#[derive(Debug)]
pub struct Remaining {
    pages: SharedBitmap,
    huge: Option<HugePages>,
    left: CachePadded<AtomicU64>,
}

/// Huge pages that nobody has claimed.
#[derive(Debug)]
struct HugePages {
    layout: MemoryLayout,
    /// One bit for each chunk; that of the first chunk counts.
    unclaimed: SharedBitmap,
}

/// Pages that the claimant is to send, all of them on one lane and in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    first: ChunkIndex,
    words: [u64; HUGE_PAGE_CHUNKS],
}

impl Claim {
    /// The chunks with their pages: a frame each.
    pub fn frames(&self) -> impl Iterator<Item = (ChunkIndex, u64)> + '_ {
        (self.first.0..).zip(self.words).filter(|&(_, word)| word != 0).map(|(chunk, word)| (ChunkIndex(chunk), word))
    }

    /// How many pages these are; none when others had claimed them.
    #[must_use]
    pub fn pages(&self) -> PageCount {
        PageCount(self.words.iter().map(|word| u64::from(word.count_ones())).sum())
    }

    /// Whether others had claimed everything.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|&word| word == 0)
    }
}

impl Remaining {
    /// All of `missing`, which is [`widen`]ed. It is `layout`'s.
    ///
    /// # Panics
    /// When `missing` is of another size than `layout`.
    #[must_use]
    pub fn new(missing: &PageBitmap, layout: &MemoryLayout, granule: Granule) -> Self {
        assert_eq!(missing.chunks(), layout.chunks(), "the bitmap is the layout's");
        let huge = (granule == Granule::HugePage).then(|| {
            let unclaimed = SharedBitmap::new(layout.chunks().div_ceil(64));
            unclaimed.mark_run(PageIndex(0), PageCount(layout.chunks().into()));
            HugePages { layout: layout.clone(), unclaimed }
        });
        Self { pages: SharedBitmap::from_pages(missing), huge, left: CachePadded::new(AtomicU64::new(missing.count().0)) }
    }

    /// Number of chunks.
    #[must_use]
    pub fn chunks(&self) -> u32 {
        self.pages.chunks()
    }

    /// The pages of `chunk` that nobody has claimed yet, as seen in passing.
    ///
    /// # Panics
    /// When `chunk` is out of range.
    #[must_use]
    pub fn word(&self, chunk: ChunkIndex) -> u64 {
        self.pages.word(chunk)
    }

    /// Pages that nobody has claimed yet.
    #[must_use]
    pub fn left(&self) -> PageCount {
        // Relaxed: a counter, nothing is inferred from it about pages.
        PageCount(self.left.load(Ordering::Relaxed))
    }

    /// Claims what is left of the pages of `mask` in `chunk`; of the whole huge pages that they lie in, where there are such.
    ///
    /// # Panics
    /// When `chunk` is out of range.
    #[must_use]
    pub fn claim(&self, chunk: ChunkIndex, mask: u64) -> Claim {
        let claim = match &self.huge {
            None => {
                let mut words = [0; HUGE_PAGE_CHUNKS];
                words[0] = self.pages.take(chunk, mask);
                Claim { first: chunk, words }
            }
            Some(huge) => self.claim_huge(huge, chunk, mask),
        };
        let pages = claim.pages();
        if pages.0 > 0 {
            // Relaxed: as in `left`.
            self.left.fetch_sub(pages.0, Ordering::Relaxed);
        }
        claim
    }

    fn claim_huge(&self, huge: &HugePages, chunk: ChunkIndex, mask: u64) -> Claim {
        let (first, end) = huge_page_of(&huge.layout, chunk);
        let mut words = [0; HUGE_PAGE_CHUNKS];
        let flag = PageIndex(first.0.into());
        // One bit decides for all words. Nothing of a huge page can be claimed by pages, so what is there is all there was.
        if self.pages.word(chunk) & mask != 0 && huge.unclaimed.take(flag.chunk(), 1 << flag.bit()) != 0 {
            for (word, chunk) in words.iter_mut().zip(first.0..end.0) {
                *word = self.pages.take(ChunkIndex(chunk), u64::MAX);
            }
        }
        Claim { first, words }
    }
}

/// Adds to `missing` what is filled together with its pages at the destination.
///
/// # Panics
/// When `missing` is of another size than `layout`.
pub fn widen(missing: &mut PageBitmap, layout: &MemoryLayout, granule: Granule) {
    assert_eq!(missing.chunks(), layout.chunks(), "the bitmap is the layout's");
    if granule == Granule::Page {
        return;
    }
    let mut next = 0;
    while next < layout.chunks() {
        let (first, end) = huge_page_of(layout, ChunkIndex(next));
        let chunks = first.0..end.0;
        if chunks.clone().any(|chunk| missing.word(ChunkIndex(chunk)) != 0) {
            chunks.map(ChunkIndex).for_each(|chunk| missing.insert_word(chunk, layout.valid_mask(chunk)));
        }
        next = end.0;
    }
}

/// The chunks of the huge page that `chunk` lies in: the first, and the one after the last.
fn huge_page_of(layout: &MemoryLayout, chunk: ChunkIndex) -> (ChunkIndex, ChunkIndex) {
    let (region, within) = layout.locate(chunk).expect("a chunk of the layout");
    let chunks = u32::try_from(HUGE_PAGE_CHUNKS).expect("a small number");
    let past = u32::try_from(within.0 / CHUNK_PAGES as u64 % u64::from(chunks)).expect("less than eight");
    let first = chunk.0 - past;
    let region_end = layout.first_chunk(region).0 + u32::try_from(layout.regions()[region].pages.0.div_ceil(CHUNK_PAGES as u64)).expect("bounded");
    (ChunkIndex(first), ChunkIndex((first + chunks).min(region_end)))
}

/// Chunks in a huge page of 2 MiB.
const HUGE_PAGE_CHUNKS: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::RegionSpec;
    use crate::units::GuestAddr;

    /// Two regions: 20 chunks, the last of which has 5 pages, and 9 chunks.
    fn layout() -> MemoryLayout {
        let region = |start, pages| RegionSpec { start: GuestAddr(start), pages: PageCount(pages) };
        MemoryLayout::new(vec![region(0, 19 * 64 + 5), region(1 << 32, 9 * 64)]).unwrap()
    }

    fn all(layout: &MemoryLayout) -> PageBitmap {
        let mut pages = PageBitmap::new(layout.chunks());
        (0..layout.chunks()).map(ChunkIndex).for_each(|chunk| pages.insert_word(chunk, layout.valid_mask(chunk)));
        pages
    }

    #[test]
    fn a_page_has_one_claimant() {
        let layout = layout();
        let remaining = Remaining::new(&all(&layout), &layout, Granule::Page);
        let urgent = remaining.claim(ChunkIndex(2), 1 << 7);
        assert_eq!(urgent.frames().collect::<Vec<_>>(), [(ChunkIndex(2), 1 << 7)]);
        assert!(remaining.claim(ChunkIndex(2), 1 << 7).is_empty());
        let rest = remaining.claim(ChunkIndex(2), u64::MAX);
        assert_eq!(rest.frames().collect::<Vec<_>>(), [(ChunkIndex(2), !(1 << 7))]);
        assert_eq!(remaining.left(), PageCount(layout.pages().0 - 64));
    }

    #[test]
    fn a_huge_page_is_claimed_whole_within_its_region() {
        let layout = layout();
        let remaining = Remaining::new(&all(&layout), &layout, Granule::HugePage);
        let chunks = |claim: Claim| claim.frames().map(|(chunk, _)| chunk.0).collect::<Vec<_>>();
        assert_eq!(chunks(remaining.claim(ChunkIndex(10), 1)), (8..16).collect::<Vec<_>>());
        assert_eq!(chunks(remaining.claim(ChunkIndex(15), 1)), [0; 0]);
        assert_eq!(chunks(remaining.claim(ChunkIndex(19), 1)), [16, 17, 18, 19], "the end of a region");
        assert_eq!(chunks(remaining.claim(ChunkIndex(21), 1)), (20..28).collect::<Vec<_>>(), "the next begins its own");
        assert_eq!(chunks(remaining.claim(ChunkIndex(28), 1)), [28]);
        assert_eq!(remaining.left(), PageCount(8 * 64));
    }

    #[test]
    fn every_page_is_claimed_once_by_many_threads() {
        let layout = layout();
        for granule in [Granule::Page, Granule::HugePage] {
            for _ in 0..20 {
                let remaining = Remaining::new(&all(&layout), &layout, granule);
                let claims: Vec<Claim> = std::thread::scope(|scope| {
                    let claimant = |thread: u32| {
                        let remaining = &remaining;
                        // Some go for pages, some for words, from different ends.
                        let order = move |at: u32| if thread.is_multiple_of(2) { at } else { remaining.chunks() * 64 - 1 - at };
                        let mask = move |bit: u32| if thread < 2 { 1 << bit } else { u64::MAX };
                        let work = move || {
                            let pages = (0..remaining.chunks() * 64).map(order);
                            pages
                                .map(|page| remaining.claim(ChunkIndex(page / 64), mask(page % 64)))
                                .filter(|claim| !claim.is_empty())
                                .collect::<Vec<_>>()
                        };
                        scope.spawn(work)
                    };
                    let claimants: Vec<_> = (0..4).map(claimant).collect();
                    claimants.into_iter().flat_map(|claimant| claimant.join().unwrap()).collect()
                });
                let mut seen = PageBitmap::new(layout.chunks());
                for (chunk, word) in claims.iter().flat_map(Claim::frames) {
                    assert_eq!(seen.word(chunk) & word, 0, "claimed twice in {chunk:?}");
                    seen.insert_word(chunk, word);
                }
                assert_eq!(seen, all(&layout));
                assert_eq!(remaining.left(), PageCount(0));
            }
        }
    }

    #[test]
    fn what_is_missing_is_widened_to_huge_pages() {
        let layout = layout();
        let mut missing = PageBitmap::new(layout.chunks());
        missing.insert(PageIndex(9 * 64 + 3));
        missing.insert(PageIndex(19 * 64));
        let narrow = missing.clone();
        widen(&mut missing, &layout, Granule::Page);
        assert_eq!(missing, narrow);
        widen(&mut missing, &layout, Granule::HugePage);
        let mut want = PageBitmap::new(layout.chunks());
        want.insert_run(PageIndex(8 * 64), PageCount(8 * 64));
        want.insert_run(PageIndex(16 * 64), PageCount(3 * 64 + 5));
        assert_eq!(missing, want);
    }
}

#[cfg(all(test, loom))]
mod models {
    use loom::sync::Arc;
    use loom::thread;

    use super::*;

    /// Two lanes claim at the same time; what each got.
    fn claims(granule: Granule, urgent: (u32, u64), bulk: (u32, u64)) -> (Claim, Claim, Arc<Remaining>) {
        let layout = MemoryLayout::flat(PageCount(8 * 64)).unwrap();
        let mut missing = PageBitmap::new(layout.chunks());
        (0..layout.chunks()).for_each(|chunk| missing.insert_word(ChunkIndex(chunk), 0b1111));
        let remaining = Arc::new(Remaining::new(&missing, &layout, granule));
        let other = thread::spawn({
            let remaining = Arc::clone(&remaining);
            move || remaining.claim(ChunkIndex(bulk.0), bulk.1)
        });
        let mine = remaining.claim(ChunkIndex(urgent.0), urgent.1);
        (mine, other.join().unwrap(), remaining)
    }

    #[test]
    fn a_page_crosses_once_whoever_claims_it() {
        loom::model(|| {
            let (urgent, bulk, remaining) = claims(Granule::Page, (2, 0b0100), (2, 0b1111));
            assert_eq!((urgent.words[0] & bulk.words[0], urgent.words[0] | bulk.words[0]), (0, 0b1111));
            assert_eq!(remaining.left(), PageCount(4 * 7));
        });
    }

    #[test]
    fn a_huge_page_goes_to_one_lane_whole() {
        loom::model(|| {
            let (urgent, bulk, remaining) = claims(Granule::HugePage, (5, 0b0100), (0, 0b1111));
            assert!(urgent.is_empty() != bulk.is_empty());
            assert_eq!((urgent.pages() + bulk.pages(), remaining.left()), (PageCount(4 * 8), PageCount(0)));
        });
    }
}
