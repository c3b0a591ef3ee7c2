//! Giving pages back to the host.
//!
//! A set of pages is discarded with few system calls where the kernel takes a vector of ranges (Linux 6.13), and range
//! by range otherwise: a guest waits for it, and a dirty set comes in many little runs.

use nix::errno::Errno;
use nix::sys::mman::{MmapAdvise, madvise};

use super::{Backing, GuestMemory, MemoryError, Region};
use crate::units::{PAGE_SIZE, PageCount, PageIndex};

impl GuestMemory {
    /// Gives `count` pages from `first` back to the host; they read as zeros afterwards.
    ///
    /// # Errors
    /// When the kernel refuses.
    ///
    /// # Panics
    /// When the pages are not all of one region.
    pub fn discard(&self, first: PageIndex, count: PageCount) -> Result<(), MemoryError> {
        let (region, within) = self.layout().locate(first.chunk()).expect("a page of the layout");
        let region = &self.regions()[region];
        let start = within.0 + u64::from(first.bit());
        let end = start.checked_add(count.0);
        assert!(end.is_some_and(|end| end <= region.spec().pages.0), "the pages lie in one region");
        region.discard(start, count.0).map_err(|errno| MemoryError::Discard(errno.into()))
    }
}

impl Region {
    /// Gives `count` pages back, from the `first` of this region on; the caller has checked that they lie in it.
    fn discard(&self, first: u64, count: u64) -> Result<(), Errno> {
        let bytes = |pages: u64| usize::try_from(pages * PAGE_SIZE as u64).expect("mapped");
        // SAFETY: the offset lies inside the region's mapping, or at its end: `GuestMemory::discard` has checked it.
        let at = unsafe { self.host().add(bytes(first)) };
        // SAFETY: the range is mapped, by the same check. Its contents turn to zeros under whoever reads them, which no
        // reference is there to be surprised by (see the module's head).
        unsafe { madvise(at.cast(), bytes(count), self.discarding()) }
    }

    /// DONTNEED leaves a shared file's pages in the page cache; REMOVE frees them there too.
    fn discarding(&self) -> MmapAdvise {
        if self.backing() == Backing::Memfd { MmapAdvise::MADV_REMOVE } else { MmapAdvise::MADV_DONTNEED }
    }
}

#[cfg(feature = "userfaultfd")]
mod sets {
    use super::*;
    use crate::bitmap::PageBitmap;
    use crate::sys::advise::{Adviser, MAX_RANGES};
    use crate::units::{CHUNK_SIZE, HUGE_PAGE_SIZE};

    impl GuestMemory {
        /// Gives a set of pages back to the host; they read as zeros afterwards. Of huge pages the set must hold all pages
        /// or none.
        pub(crate) fn discard_all(&self, pages: &PageBitmap) -> Result<(), MemoryError> {
            let adviser = Adviser::open().inspect_err(|error| tracing::debug!(%error, "discarding range by range")).ok();
            self.regions().iter().try_for_each(|region| region.discard_all(pages, adviser.as_ref()))
        }
    }

    impl Region {
        fn discard_all(&self, pages: &PageBitmap, adviser: Option<&Adviser>) -> Result<(), MemoryError> {
            let first = self.first_chunk().as_usize();
            let words = &pages.words()[first..first + self.len().div_ceil(CHUNK_SIZE)];
            let mut discarding = Discarding { region: self, adviser, ranges: Vec::with_capacity(MAX_RANGES) };
            runs(words, |start, count| discarding.add(start, count))?;
            discarding.flush()
        }
    }

    /// Ranges on their way to the kernel.
    struct Discarding<'r> {
        region: &'r Region,
        /// Until it refuses.
        adviser: Option<&'r Adviser>,
        ranges: Vec<libc::iovec>,
    }

    impl Discarding<'_> {
        fn add(&mut self, first: usize, count: usize) -> Result<(), MemoryError> {
            assert!((first + count) as u64 <= self.region.spec().pages.0, "the set holds pages of the layout only");
            let mut length = count * PAGE_SIZE;
            if self.region.backing() == Backing::HugeTlb {
                // The last huge page is mapped whole.
                length = length.next_multiple_of(HUGE_PAGE_SIZE);
            }
            // SAFETY: the offset lies inside the region's mapping, by the assertion.
            let start = unsafe { self.region.host().add(first * PAGE_SIZE) };
            self.ranges.push(libc::iovec { iov_base: start.as_ptr().cast(), iov_len: length });
            if self.ranges.len() == MAX_RANGES { self.flush() } else { Ok(()) }
        }

        fn flush(&mut self) -> Result<(), MemoryError> {
            let advice = self.region.discarding();
            let mut left = &mut self.ranges[..];
            while let Some(adviser) = self.adviser.filter(|_| !left.is_empty()) {
                // SAFETY: the ranges lie in the region's mapping (`add` has checked it), and no reference is there to be
                // surprised by zeros in the place of their contents (see the module's head).
                match unsafe { adviser.advise(left, advice as libc::c_int) } {
                    Ok(advised) if advised > 0 => left = after(left, advised),
                    Ok(_) => self.adviser = None,
                    Err(error) => {
                        tracing::debug!(%error, "discarding range by range");
                        self.adviser = None;
                    }
                }
            }
            for range in left {
                let start = std::ptr::NonNull::new(range.iov_base).expect("mapped");
                // SAFETY: as above; `after` leaves stretches of those ranges only.
                unsafe { madvise(start, range.iov_len, advice) }.map_err(|errno| MemoryError::Discard(errno.into()))?;
            }
            self.ranges.clear();
            Ok(())
        }
    }

    /// What remains of `ranges` after their first `bytes`.
    fn after(mut ranges: &mut [libc::iovec], mut bytes: usize) -> &mut [libc::iovec] {
        while let Some(first) = ranges.first_mut() {
            if bytes < first.iov_len {
                first.iov_base = first.iov_base.wrapping_byte_add(bytes);
                first.iov_len -= bytes;
                break;
            }
            bytes -= first.iov_len;
            ranges = &mut ranges[1..];
        }
        ranges
    }

    /// Calls `each` with (first, count) of each run of set bits.
    fn runs<E>(words: &[u64], mut each: impl FnMut(usize, usize) -> Result<(), E>) -> Result<(), E> {
        let mut start = None;
        for (index, &word) in words.iter().enumerate() {
            let mut bit = 0;
            while bit < 64 {
                let rest = word >> bit;
                let length = if start.is_some() { (!rest).trailing_zeros() } else { rest.trailing_zeros() }.min(64 - bit);
                bit += length;
                if bit == 64 {
                    break;
                }
                let at = index * 64 + bit as usize;
                match start.take() {
                    Some(first) => each(first, at - first)?,
                    None => start = Some(at),
                }
            }
        }
        start.map_or(Ok(()), |first| each(first, words.len() * 64 - first))
    }

    #[cfg(test)]
    mod tests {
        use super::*;
        use crate::memory::{MemoryLayout, RegionSpec};
        use crate::units::{ChunkIndex, GuestAddr};

        #[test]
        fn runs_are_found_across_words() {
            let cases = [
                ([0, 0, 0], vec![]),
                ([1, 1 << 63, 0], vec![(0, 1), (127, 1)]),
                ([0, u64::MAX, u64::MAX], vec![(64, 128)]),
                ([1 << 63, 1, 0], vec![(63, 2)]),
                ([0b1101, 0, 0], vec![(0, 1), (2, 2)]),
                ([!1, 0, u64::MAX], vec![(1, 63), (128, 64)]),
                ([!1, u64::MAX, 0b101], vec![(1, 128), (130, 1)]),
            ];
            for (words, want) in cases {
                let mut got = Vec::new();
                runs(&words, |first, count| -> Result<(), ()> {
                    got.push((first, count));
                    Ok(())
                })
                .unwrap();
                assert_eq!(got, want, "{words:x?}");
            }
        }

        #[test]
        fn what_is_left_after_some_bytes_begins_where_they_end() {
            let range = |start: usize, length| libc::iovec { iov_base: start as *mut _, iov_len: length };
            let mut ranges = [range(0x1000, 0x2000), range(0x8000, 0x1000), range(0x10000, 0x3000)];
            let left = after(&mut ranges, 0x4000);
            let left: Vec<_> = left.iter().map(|range| (range.iov_base as usize, range.iov_len)).collect();
            assert_eq!(left, [(0x11000, 0x2000)]);
        }

        #[test]
        fn a_set_is_discarded_and_nothing_else() {
            let region = |start, pages| RegionSpec { start: GuestAddr(start), pages: PageCount(pages) };
            let layout = MemoryLayout::new(vec![region(0, 5000), region(0x200_0000, 70)]).unwrap();
            for backing in [Backing::Anonymous, Backing::Memfd] {
                let memory = GuestMemory::allocate(layout.clone(), backing).unwrap();
                let mut pages = PageBitmap::new(layout.chunks());
                // More runs than fit one call, and the last page of each region.
                (0..5000).filter(|page| page % 3 == 1 || page % 1000 < 9).for_each(|page| pages.insert(PageIndex(page)));
                let second = layout.first_chunk(1).page(0).0;
                pages.insert_run(PageIndex(second + 60), PageCount(10));
                for vectored in [true, false] {
                    let all = (0..layout.chunks()).map(ChunkIndex);
                    let all = all.flat_map(|chunk| (0..64).map(move |bit| chunk.page(bit)));
                    let all: Vec<PageIndex> = all.filter(|page| layout.valid_mask(page.chunk()) >> page.bit() & 1 == 1).collect();
                    all.iter().for_each(|page| memory.chunk(page.chunk()).store_word(page.bit(), 5, 7));
                    if vectored {
                        memory.discard_all(&pages).unwrap();
                    } else {
                        memory.regions().iter().for_each(|region| region.discard_all(&pages, None).unwrap());
                    }
                    for page in all {
                        let want = if pages.contains(page) { 0 } else { 7 };
                        assert_eq!(memory.chunk(page.chunk()).load_word(page.bit(), 5), want, "{page:?} of {backing}, vectored {vectored}");
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::MemoryLayout;
    use crate::units::ChunkIndex;

    #[test]
    fn pages_beyond_the_region_are_not_given_back_however_many_they_are() {
        let memory = GuestMemory::allocate(MemoryLayout::flat(PageCount(64)).unwrap(), Backing::Anonymous).unwrap();
        memory.chunk(ChunkIndex(0)).store_word(3, 0, 7);
        // The last would end at page 2 if counting went round.
        for count in [62, 1 << 52, u64::MAX] {
            let discard = || memory.discard(PageIndex(3), PageCount(count));
            assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(discard)).is_err(), "{count}");
        }
        assert_eq!(memory.chunk(ChunkIndex(0)).load_word(3, 0), 7);
        memory.discard(PageIndex(3), PageCount(61)).unwrap();
        assert_eq!(memory.chunk(ChunkIndex(0)).load_word(3, 0), 0);
    }
}
