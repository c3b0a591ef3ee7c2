//! The guest's memory layout, checked once.
//!
//! Page indices run through the regions in guest-physical order. Every region begins a new chunk, so a chunk never
//! spans two regions and KVM's per-slot log words are chunk words; the last word of a region may have unused high bits
//! (see [`MemoryLayout::valid_mask`]).

use crate::units::{ByteCount, CHUNK_PAGES, ChunkIndex, GuestAddr, PAGE_SIZE, PageCount, PageIndex};

/// Regions a layout may have.
pub const MAX_REGIONS: usize = 1024;
/// Pages a layout may have in all: 64 TiB.
const MAX_PAGES: u64 = 1 << 34;

/// One region as it is announced: where it starts and how long it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionSpec {
    /// First guest-physical address, page-aligned.
    pub start: GuestAddr,
    /// Length in pages, at least one.
    pub pages: PageCount,
}

/// A valid layout: at least one region, sorted, none overlapping, all page-aligned, of bounded size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryLayout {
    regions: Vec<RegionSpec>,
    /// Chunk at which each region begins; one more entry for the end.
    first_chunks: Vec<u32>,
    pages: PageCount,
}

/// Why a list of regions is no layout.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LayoutError {
    /// No region at all.
    #[error("the memory layout has no regions")]
    Empty,
    /// More than [`MAX_REGIONS`].
    #[error("the memory layout has {0} regions, more than {MAX_REGIONS}")]
    TooManyRegions(usize),
    /// A region has no pages or does not start at a page.
    #[error("the region at {start} has {pages} or is not page-aligned")]
    Misshapen {
        /// Where it starts.
        start: GuestAddr,
        /// Its length.
        pages: PageCount,
    },
    /// Regions out of order or overlapping.
    #[error("the region at {start} begins before the one before it ends")]
    Overlap {
        /// Where the later one starts.
        start: GuestAddr,
    },
    /// More memory than any guest has.
    #[error("the memory layout is larger than 64 TiB")]
    TooLarge,
}

impl MemoryLayout {
    /// Checks `regions` and makes a layout of them.
    ///
    /// # Errors
    /// When they are not sorted, overlap, are empty or too many.
    pub fn new(regions: Vec<RegionSpec>) -> Result<Self, LayoutError> {
        if regions.is_empty() {
            return Err(LayoutError::Empty);
        }
        if regions.len() > MAX_REGIONS {
            return Err(LayoutError::TooManyRegions(regions.len()));
        }
        let (mut end, mut pages, mut chunks) = (0u64, 0u64, 0u64);
        let mut first_chunks = Vec::with_capacity(regions.len() + 1);
        for &RegionSpec { start, pages: length } in &regions {
            if length.0 == 0 || start.0 % PAGE_SIZE as u64 != 0 {
                return Err(LayoutError::Misshapen { start, pages: length });
            }
            if start.0 < end {
                return Err(LayoutError::Overlap { start });
            }
            if length.0 > MAX_PAGES {
                return Err(LayoutError::TooLarge);
            }
            end = start.0.checked_add(length.bytes().0).ok_or(LayoutError::TooLarge)?;
            first_chunks.push(u32::try_from(chunks).map_err(|_| LayoutError::TooLarge)?);
            pages += length.0;
            chunks += length.0.div_ceil(CHUNK_PAGES as u64);
            if pages > MAX_PAGES {
                return Err(LayoutError::TooLarge);
            }
        }
        first_chunks.push(u32::try_from(chunks).map_err(|_| LayoutError::TooLarge)?);
        Ok(Self { regions, first_chunks, pages: PageCount(pages) })
    }

    /// One region from address 0 on.
    ///
    /// # Errors
    /// When `pages` is zero or too large.
    pub fn flat(pages: PageCount) -> Result<Self, LayoutError> {
        Self::new(vec![RegionSpec { start: GuestAddr(0), pages }])
    }

    /// The regions, sorted.
    #[must_use]
    pub fn regions(&self) -> &[RegionSpec] {
        &self.regions
    }

    /// The chunk at which region `region` begins.
    #[must_use]
    pub fn first_chunk(&self, region: usize) -> ChunkIndex {
        ChunkIndex(self.first_chunks[region])
    }

    /// Chunks in all: the length of a bitmap in words.
    #[must_use]
    pub fn chunks(&self) -> u32 {
        *self.first_chunks.last().expect("never empty")
    }

    /// Pages in all.
    #[must_use]
    pub fn pages(&self) -> PageCount {
        self.pages
    }

    /// Bytes in all.
    #[must_use]
    pub fn bytes(&self) -> ByteCount {
        self.pages.bytes()
    }

    /// The region a chunk lies in and the number of its first page within that region; `None` past the end.
    #[must_use]
    pub fn locate(&self, chunk: ChunkIndex) -> Option<(usize, PageCount)> {
        if chunk.0 >= self.chunks() {
            return None;
        }
        let region = self.first_chunks.partition_point(|&first| first <= chunk.0) - 1;
        let within = u64::from(chunk.0 - self.first_chunks[region]) * CHUNK_PAGES as u64;
        Some((region, PageCount(within)))
    }

    /// The bits of a chunk's word that name pages of the layout; 0 past the end.
    #[must_use]
    pub fn valid_mask(&self, chunk: ChunkIndex) -> u64 {
        self.locate(chunk).map_or(0, |(region, within)| {
            let left = self.regions[region].pages.0 - within.0;
            if left >= CHUNK_PAGES as u64 { u64::MAX } else { (1 << left) - 1 }
        })
    }

    /// The page that holds guest address `addr`; `None` where there is no memory.
    #[must_use]
    pub fn page_at(&self, addr: GuestAddr) -> Option<PageIndex> {
        let region = self.regions.partition_point(|region| region.start.0 <= addr.0).checked_sub(1)?;
        let within = (addr.0 - self.regions[region].start.0) / PAGE_SIZE as u64;
        (within < self.regions[region].pages.0).then(|| PageIndex(self.first_chunk(region).page(0).0 + within))
    }

    /// The guest address of a page. Panics if `page` is not one of the layout.
    #[must_use]
    pub fn address_of(&self, page: PageIndex) -> GuestAddr {
        let (region, within) = self.locate(page.chunk()).expect("a page of the layout");
        GuestAddr(self.regions[region].start.0 + (within.0 + u64::from(page.bit())) * PAGE_SIZE as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(regions: &[(u64, u64)]) -> Result<MemoryLayout, LayoutError> {
        MemoryLayout::new(regions.iter().map(|&(start, pages)| RegionSpec { start: GuestAddr(start), pages: PageCount(pages) }).collect())
    }

    #[test]
    fn regions_begin_chunks_of_their_own() {
        let layout = layout(&[(0, 65), (0x10_0000, 1), (0x20_0000, 128)]).unwrap();
        assert_eq!(layout.chunks(), 2 + 1 + 2);
        assert_eq!(layout.pages(), PageCount(65 + 1 + 128));
        let masks: Vec<u64> = (0..6).map(|chunk| layout.valid_mask(ChunkIndex(chunk))).collect();
        assert_eq!(masks, [u64::MAX, 1, 1, u64::MAX, u64::MAX, 0]);
        assert_eq!(layout.locate(ChunkIndex(4)), Some((2, PageCount(64))));
        assert_eq!(layout.page_at(GuestAddr(0x10_0000)), Some(PageIndex(128)));
        assert_eq!(layout.page_at(GuestAddr(0x10_1000)), None);
        assert_eq!(layout.address_of(PageIndex(4 * 64 + 1)), GuestAddr(0x20_0000 + 65 * 4096));
    }

    #[test]
    fn bad_layouts_are_refused() {
        assert_eq!(layout(&[]), Err(LayoutError::Empty));
        assert_eq!(layout(&[(0, 0)]), Err(LayoutError::Misshapen { start: GuestAddr(0), pages: PageCount(0) }));
        assert_eq!(layout(&[(1, 1)]), Err(LayoutError::Misshapen { start: GuestAddr(1), pages: PageCount(1) }));
        assert_eq!(layout(&[(0, 2), (0x1000, 1)]), Err(LayoutError::Overlap { start: GuestAddr(0x1000) }));
        assert_eq!(layout(&[(0, u64::MAX)]), Err(LayoutError::TooLarge));
        assert_eq!(layout(&[(u64::MAX - 4095, 1)]), Err(LayoutError::TooLarge));
        assert!(matches!(layout(&vec![(0, 1); 1025]), Err(LayoutError::TooManyRegions(1025))));
    }
}
