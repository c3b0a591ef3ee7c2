//! Pages that the VMM itself says were written.
//!
//! Every mechanism misses some writer: KVM's log all of the host's, the others DMA and writes through another mapping.
//! The VMM marks those, *after* the write has completed. Marks cost one atomic instruction per chunk and are harmless
//! while nobody tracks.

use std::sync::Arc;

use crate::bitmap::{PageBitmap, SharedBitmap};
use crate::memory::{GuestMemory, MemoryError, MemoryLayout};
use crate::units::{ByteCount, GuestAddr, PAGE_SIZE, PageCount, PageIndex};

/// A handle for marking pages as written, to be cloned into every thread that writes to guest memory.
#[derive(Clone, Debug)]
pub struct Marks {
    bits: Arc<SharedBitmap>,
    layout: Arc<MemoryLayout>,
    include_discards: bool,
}

impl Marks {
    /// No marks yet, for memory laid out as `layout`.
    #[must_use]
    pub fn new(layout: &MemoryLayout) -> Self {
        Self { bits: Arc::new(SharedBitmap::new(layout.chunks())), layout: Arc::new(layout.clone()), include_discards: false }
    }

    /// The same marks, with the VMM's promise that every discard is marked, so that trackers need not look for them.
    #[must_use]
    pub fn with_discards(self) -> Self {
        Self { include_discards: true, ..self }
    }

    /// Whether the VMM promised to mark every discard.
    pub(super) fn include_discards(&self) -> bool {
        self.include_discards
    }

    /// Marks `count` pages from `first` on, after they were written to. They must lie in one region.
    ///
    /// # Panics
    /// When they are not pages of the layout.
    pub fn mark_pages(&self, first: PageIndex, count: PageCount) {
        self.bits.mark_run(first, count);
    }

    /// Marks the pages that `length` bytes from guest address `start` touch, after they were written to. What of the
    /// range is not memory is passed over.
    pub fn mark_range(&self, start: GuestAddr, length: ByteCount) {
        let end = start.0.saturating_add(length.0);
        for (index, region) in self.layout.regions().iter().enumerate() {
            let from = start.0.max(region.start.0);
            let to = end.min(region.start.0 + region.pages.bytes().0);
            if from < to {
                let page = (from - region.start.0) / PAGE_SIZE as u64;
                let past = (to - region.start.0).div_ceil(PAGE_SIZE as u64);
                self.bits.mark_run(PageIndex(self.layout.first_chunk(index).page(0).0 + page), PageCount(past - page));
            }
        }
    }

    /// Gives pages back to the host ([`GuestMemory::discard`]) and marks them: they have turned into zeros.
    ///
    /// # Errors
    /// When the kernel refuses. The pages are marked nevertheless: some may be gone.
    ///
    /// # Panics
    /// When the pages are not all of one region of `memory`.
    pub fn discard(&self, memory: &GuestMemory, first: PageIndex, count: PageCount) -> Result<(), MemoryError> {
        let result = memory.discard(first, count);
        self.mark_pages(first, count);
        result
    }

    /// Moves all marks into `into`.
    pub(super) fn drain_into(&self, into: &mut PageBitmap) {
        self.bits.drain_into(into);
    }

    /// Adds all marks to `into`, and leaves them.
    pub(super) fn peek_into(&self, into: &mut PageBitmap) {
        self.bits.peek_into(into);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::RegionSpec;

    fn marked(range: (u64, u64)) -> Vec<(u32, u64)> {
        let region = |start, pages| RegionSpec { start: GuestAddr(start), pages: PageCount(pages) };
        let layout = MemoryLayout::new(vec![region(0, 65), region(0x10_0000, 3)]).unwrap();
        let marks = Marks::new(&layout);
        marks.mark_range(GuestAddr(range.0), ByteCount(range.1));
        let mut bitmap = PageBitmap::new(layout.chunks());
        marks.drain_into(&mut bitmap);
        bitmap.occupied().map(|(chunk, word)| (chunk.0, word)).collect()
    }

    #[test]
    fn a_range_marks_each_page_it_touches() {
        assert_eq!(marked((0, 0)), []);
        assert_eq!(marked((0, 1)), [(0, 1)]);
        assert_eq!(marked((4095, 2)), [(0, 3)]);
        assert_eq!(marked((0x4_0000 - 1, 2)), [(0, 1 << 63), (1, 1)]);
    }

    #[test]
    fn holes_of_the_layout_are_passed_over() {
        assert_eq!(marked((0x4_1000, 0x1000)), []);
        assert_eq!(marked((0x4_0000, 0x10_0000)), [(1, 1), (2, 7)]);
        assert_eq!(marked((0, u64::MAX)), [(0, u64::MAX), (1, 1), (2, 7)]);
    }
}
