//! Which pages the host has populated: what round 0 has to look at.
//!
//! Anonymous memory is asked through the page map: a page that is neither present nor swapped reads as zeros, and so
//! does the shared zero page. A memfd is asked through its file (`SEEK_DATA`, `SEEK_HOLE`), because a swapped or
//! merely unmapped page of it looks like a hole in the page map.

use std::io;
use std::ops::Range;

use nix::unistd::{Whence, lseek};

use super::{Backing, GuestMemory, MemoryError, Region};
use crate::bitmap::PageBitmap;
use crate::sys::pagemap::{Doubtful, Pagemap};
use crate::units::{ByteCount, PAGE_SIZE, PageCount, PageIndex};

impl GuestMemory {
    /// The pages that may hold something other than zeros. Pages outside read as zeros at the time of the call.
    ///
    /// While a write-protect tracker runs on anonymous memory this is every page: protected holes look like swapped
    /// pages. The tracker's own [`start`](crate::dirty::DirtyTracker::start) knows better.
    ///
    /// # Errors
    /// When the kernel does not answer.
    pub fn populated(&self) -> Result<PageBitmap, MemoryError> {
        let mut bitmap = PageBitmap::new(self.layout().chunks());
        self.populated_into(&mut bitmap).map_err(MemoryError::Populated)?;
        Ok(bitmap)
    }

    /// The memory in small pages that has been taken from the host for the guest and not been given back: what is swapped
    /// out, and of files what is not mapped here, has not.
    ///
    /// # Errors
    /// When the kernel does not answer.
    pub(crate) fn resident(&self) -> Result<ByteCount, MemoryError> {
        // A run may be told of more than once.
        let mut bitmap = PageBitmap::new(self.layout().chunks());
        let small = self.regions().iter().filter(|region| region.backing() != Backing::HugeTlb);
        for region in small {
            let start = region.host().addr().get();
            let first = region.first_chunk().page(0);
            let mut insert = |run: Range<usize>| {
                let page = ((run.start - start) / PAGE_SIZE) as u64;
                bitmap.insert_run(PageIndex(first.0 + page), PageCount((run.len() / PAGE_SIZE) as u64));
            };
            let looked = Pagemap::open().and_then(|mut pagemap| pagemap.resident_runs(start..start + region.len(), &mut insert));
            looked.map_err(MemoryError::Populated)?;
        }
        Ok(bitmap.count().bytes())
    }

    /// Adds the pages that may hold something other than zeros to `bitmap`.
    pub(crate) fn populated_into(&self, bitmap: &mut PageBitmap) -> io::Result<()> {
        self.regions().iter().try_for_each(|region| region.populated_into(bitmap, Doubtful::Populated))
    }
}

impl Region {
    /// Adds the populated pages of this region to `bitmap`.
    pub(crate) fn populated_into(&self, bitmap: &mut PageBitmap, doubtful: Doubtful) -> io::Result<()> {
        let first = self.first_chunk().page(0);
        let mut insert = |page: usize, pages: usize| bitmap.insert_run(PageIndex(first.0 + page as u64), PageCount(pages as u64));
        if self.file().is_some() {
            return file_extents(self, &mut insert);
        }
        let start = self.host().as_ptr() as usize;
        let mut insert = |run: Range<usize>| insert((run.start - start) / PAGE_SIZE, run.len() / PAGE_SIZE);
        let mut pagemap = Pagemap::open()?;
        if self.backing() == Backing::HugeTlb && doubtful == Doubtful::Empty {
            // Not swapped, ever: what looks so is a protected hole, or on its way to another node.
            return pagemap.present_runs(start..start + self.len(), &mut insert);
        }
        pagemap.populated_runs(start..start + self.len(), doubtful, &mut insert)
    }
}

/// Calls `insert` with (first page, pages) of each stretch of data in the region's file.
fn file_extents(region: &Region, insert: &mut impl FnMut(usize, usize)) -> io::Result<()> {
    let (fd, base) = region.file().expect("called for file memory");
    let start = i64::try_from(base).map_err(io::Error::other)?;
    let end = start + i64::try_from(region.len()).map_err(io::Error::other)?;
    let mut at = start;
    while at < end {
        let data = match lseek(fd, at, Whence::SeekData) {
            Ok(data) if data < end => data,
            Ok(_) | Err(nix::errno::Errno::ENXIO) => break,
            Err(errno) => return Err(errno.into()),
        };
        let hole = lseek(fd, data, Whence::SeekHole)?.min(end);
        let page = usize::try_from(data - start).expect("data is at or after start") / PAGE_SIZE;
        let past = usize::try_from(hole - start).expect("a hole is after its data").div_ceil(PAGE_SIZE);
        insert(page, past - page);
        at = hole;
    }
    Ok(())
}
