//! Where pages lie in this process, and which page lies at an address.
//!
//! A *granule* is what the host fills at once: a page, or a huge page of 512, counted from the beginning of its region.
//! The last huge page of a region may have fewer pages of the guest; it is mapped whole all the same.

use std::ops::Range;

use crate::bitmap::PageBitmap;
use crate::destination::MissingError;
use crate::memory::{Backing, GuestMemory, MemoryLayout};
use crate::units::{CHUNK_PAGES, ChunkIndex, PAGE_SIZE, PageCount, PageIndex};

/// Pages of a huge page.
pub(super) const HUGE_PAGES: u64 = 512;
/// Chunks of a huge page.
pub(super) const HUGE_CHUNKS: u32 = 8;
/// Bytes of a huge page.
pub(super) const HUGE_BYTES: usize = 512 * PAGE_SIZE;

/// The regions of a memory.
#[derive(Debug)]
pub(super) struct Places {
    layout: MemoryLayout,
    /// In the layout's order.
    places: Vec<Place>,
    /// Indices of `places` by address.
    by_address: Vec<usize>,
}

/// One region.
#[derive(Clone, Debug)]
pub(super) struct Place {
    /// Huge pages whole.
    pub(super) mapping: Range<usize>,
    pub(super) first_chunk: ChunkIndex,
    pub(super) pages: u64,
    pub(super) granule: Granule,
}

/// What the host fills at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Granule {
    /// A page.
    Page,
    /// A page of a file: as [`Granule::Page`], but zeros take memory.
    FilePage,
    /// A huge page.
    HugePage,
}

impl Places {
    pub(super) fn of(memory: &GuestMemory) -> Self {
        let places: Vec<Place> = memory
            .regions()
            .iter()
            .map(|region| Place {
                mapping: region.mapping(),
                first_chunk: region.first_chunk(),
                pages: region.spec().pages.0,
                granule: match region.backing() {
                    Backing::Anonymous => Granule::Page,
                    Backing::Memfd => Granule::FilePage,
                    Backing::HugeTlb => Granule::HugePage,
                },
            })
            .collect();
        let mut by_address: Vec<usize> = (0..places.len()).collect();
        by_address.sort_by_key(|&index| places[index].mapping.start);
        Self { layout: memory.layout().clone(), places, by_address }
    }

    /// All regions.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Place> {
        self.places.iter()
    }

    /// The region of a chunk of the layout.
    pub(super) fn place(&self, chunk: ChunkIndex) -> &Place {
        &self.places[self.layout.locate(chunk).expect("a chunk of the layout").0]
    }

    /// The page that lies at `address`, and its region; of a huge page the first. `None` where no guest memory lies.
    pub(super) fn page_at(&self, address: usize) -> Option<(PageIndex, &Place)> {
        let next = self.by_address.partition_point(|&index| self.places[index].mapping.start <= address);
        let place = &self.places[self.by_address[next.checked_sub(1)?]];
        let mut within = ((address - place.mapping.start) / PAGE_SIZE) as u64;
        if place.granule == Granule::HugePage {
            within -= within % HUGE_PAGES;
        }
        (address < place.mapping.end).then(|| (place.page(within), place))
    }

    /// Calls `each` with the pages that lie in `range`, as (chunk, mask).
    pub(super) fn for_each_in(&self, range: &Range<usize>, mut each: impl FnMut(ChunkIndex, u64)) {
        for place in &self.places {
            let (start, end) = (range.start.max(place.mapping.start), range.end.min(place.mapping.end));
            if start < end {
                let first = ((start - place.mapping.start) / PAGE_SIZE) as u64;
                let past = ((end - place.mapping.start).div_ceil(PAGE_SIZE) as u64).min(place.pages);
                for_each_word(place.page(first), past.saturating_sub(first), &mut each);
            }
        }
    }

    /// The pages that the host fills at once where missing pages are brought in.
    pub(super) fn granule_pages(&self) -> PageCount {
        let huge = self.places.iter().any(|place| place.granule == Granule::HugePage);
        PageCount(if huge { HUGE_PAGES } else { 1 })
    }

    /// Whether each huge page is in `missing` whole or not at all.
    pub(super) fn check_granules(&self, missing: &PageBitmap) -> Result<(), MissingError> {
        for place in self.places.iter().filter(|place| place.granule == Granule::HugePage) {
            for first in (0..place.pages).step_by(512) {
                let chunks = place.page(first).chunk().0..place.page(place.pages.min(first + HUGE_PAGES) - 1).chunk().0 + 1;
                let mut words = chunks.map(ChunkIndex).map(|chunk| (chunk, missing.word(chunk), self.layout.valid_mask(chunk)));
                let whole = words.clone().all(|(_, word, valid)| word == valid);
                if !whole && let Some((chunk, word, _)) = words.find(|&(_, word, _)| word != 0) {
                    return Err(MissingError::PartOfHugePage { page: chunk.page(word.trailing_zeros()).0 });
                }
            }
        }
        Ok(())
    }

    /// The bits of a chunk's word that name pages.
    pub(super) fn valid_mask(&self, chunk: ChunkIndex) -> u64 {
        self.layout.valid_mask(chunk)
    }
}

impl Place {
    /// The page `within` pages from this region's first.
    fn page(&self, within: u64) -> PageIndex {
        PageIndex(self.first_chunk.page(0).0 + within)
    }

    /// Where `count` pages from `first` on lie, which must be of this region.
    pub(super) fn range(&self, first: PageIndex, count: u64) -> Range<usize> {
        let bytes = |pages: u64| usize::try_from(pages * PAGE_SIZE as u64).expect("mapped");
        let start = self.mapping.start + bytes(first.0 - self.first_chunk.page(0).0);
        start..start + bytes(count)
    }

    /// The chunk at which the huge page of `chunk` begins.
    pub(super) fn huge_page_of(&self, chunk: ChunkIndex) -> ChunkIndex {
        ChunkIndex(chunk.0 - (chunk.0 - self.first_chunk.0) % HUGE_CHUNKS)
    }

    /// The chunks of the huge page that begins at `first`.
    pub(super) fn chunks_of_huge_page(&self, first: ChunkIndex) -> impl Iterator<Item = ChunkIndex> + use<> {
        let past = self.first_chunk.0 + u32::try_from(self.pages.div_ceil(CHUNK_PAGES as u64)).expect("chunks of a layout");
        (first.0..past.min(first.0 + HUGE_CHUNKS)).map(ChunkIndex)
    }
}

/// Calls `each` with (chunk, mask) for `count` pages from `first` on.
pub(super) fn for_each_word(first: PageIndex, count: u64, mut each: impl FnMut(ChunkIndex, u64)) {
    let (mut at, end) = (first.0, first.0 + count);
    while at < end {
        let page = PageIndex(at);
        let here = (CHUNK_PAGES as u64 - u64::from(page.bit())).min(end - at);
        each(page.chunk(), run_mask(page.bit(), u32::try_from(here).expect("at most 64")));
        at += here;
    }
}

/// `count` bits from `first` on.
pub(super) fn run_mask(first: u32, count: u32) -> u64 {
    if count == 64 { u64::MAX } else { ((1 << count) - 1) << first }
}
