//! A region as the kernel's interfaces see it: a range of addresses of this process.

use std::ops::Range;

use crate::bitmap::PageBitmap;
use crate::memory::{Backing, Region};
use crate::units::{PAGE_SIZE, PageCount, PageIndex};

/// Bytes of a huge page.
const HUGE: usize = 2 << 20;

/// The addresses of one region and the page at its beginning.
#[derive(Clone, Debug)]
pub(super) struct Span {
    /// What the kernel is asked about: whole huge pages, if the region is made of them.
    pub(super) addresses: Range<usize>,
    first: PageIndex,
    end: usize,
}

impl Span {
    pub(super) fn of(region: &Region) -> Self {
        let start = region.host().as_ptr() as usize;
        let end = start + region.len();
        let mapped = if region.backing() == Backing::HugeTlb { end.next_multiple_of(HUGE) } else { end };
        Self { addresses: start..mapped, first: region.first_chunk().page(0), end }
    }

    /// Adds the pages at the addresses `run` that are the region's to `into`.
    pub(super) fn insert(&self, run: &Range<usize>, into: &mut PageBitmap) {
        let pages = run.end.min(self.end).saturating_sub(run.start) / PAGE_SIZE;
        let first = (run.start - self.addresses.start) / PAGE_SIZE;
        if pages > 0 {
            into.insert_run(PageIndex(self.first.0 + first as u64), PageCount(pages as u64));
        }
    }
}
