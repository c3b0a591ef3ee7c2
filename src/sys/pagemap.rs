//! `/proc/self/pagemap`: which pages are there, and which were written.
//!
//! Two ways in. The `PAGEMAP_SCAN` ioctl (Linux 6.7) reports runs of pages by category and can write-protect what it
//! reports in the same step. Reading the file gives one 64-bit word to a page; it works everywhere and is slower.
//!
//! A scan with `category_mask == return_mask == WRITTEN` and nothing else takes the kernel's fast path, and only the
//! fast path is right on every kernel: the general one took unpopulated pages for unwritten until mid-2026. Harvests
//! stay in it.
//!
//! <https://docs.kernel.org/admin-guide/mm/pagemap.html>

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;

use memmap2::{Advice, MmapMut};

use crate::units::{HUGE_PAGE_SIZE, PAGE_SIZE};

/// Categories of pages, as the scan knows them.
pub(crate) mod category {
    #[cfg(feature = "userfaultfd")]
    pub(crate) const WRITTEN: u64 = 1 << 1;
    pub(crate) const PRESENT: u64 = 1 << 3;
    pub(crate) const SWAPPED: u64 = 1 << 4;
    pub(crate) const PFNZERO: u64 = 1 << 5;
    pub(crate) const SOFT_DIRTY: u64 = 1 << 7;
}

/// Bits of an entry of the file.
pub(crate) mod entry {
    pub(crate) const SOFT_DIRTY: u64 = 1 << 55;
    pub(crate) const EXCLUSIVE: u64 = 1 << 56;
    pub(crate) const SWAPPED: u64 = 1 << 62;
    pub(crate) const PRESENT: u64 = 1 << 63;
}

/// Write-protect what is reported.
#[cfg(feature = "userfaultfd")]
const PROTECT: u64 = 1;
/// Refuse memory that is not registered for asynchronous write protection: it would be skipped silently.
#[cfg(feature = "userfaultfd")]
const CHECK: u64 = 2;
/// Runs to a call: as many as the kernel collects at a time. Given room for more, it says in the end that it got only
/// as far as the last time its own buffer was full, and the rest would be walked twice.
const RUNS: usize = 512;

/// `struct pm_scan_arg`.
#[repr(C)]
#[derive(Default)]
struct ScanArg {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// `struct page_region`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct PageRegion {
    start: u64,
    end: u64,
    categories: u64,
}

const _: () = {
    assert!(size_of::<ScanArg>() == 96);
    assert!(std::mem::offset_of!(ScanArg, walk_end) == 32);
    assert!(std::mem::offset_of!(ScanArg, return_mask) == 88);
    assert!(size_of::<PageRegion>() == 24);
    assert!(nix::request_code_readwrite!(b'f', 16, size_of::<ScanArg>()) == 0xc060_6610);
};

nix::ioctl_readwrite!(
    /// # Safety
    /// `vec` of the argument must be zero or point at `vec_len` writable `PageRegion`s.
    pagemap_scan,
    b'f',
    16,
    ScanArg
);

/// What a scan asks for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Query {
    flags: u64,
    inverted: u64,
    mask: u64,
    any_of: u64,
    returned: u64,
}

impl Query {
    /// Written since it was last protected; on memory that is not armed: everything.
    #[cfg(feature = "userfaultfd")]
    pub(crate) const WRITTEN: Self = Self { flags: CHECK, inverted: 0, mask: category::WRITTEN, any_of: 0, returned: category::WRITTEN };
    /// Holding something other than the shared page of zeros.
    pub(crate) const POPULATED: Self = Self {
        flags: 0,
        inverted: category::PFNZERO,
        mask: category::PFNZERO,
        any_of: category::PRESENT | category::SWAPPED,
        returned: category::PRESENT,
    };
    /// There now, and not the shared page of zeros.
    const RESIDENT: Self =
        Self { flags: 0, inverted: category::PFNZERO, mask: category::PFNZERO | category::PRESENT, any_of: 0, returned: category::PRESENT };
    /// There now, whatever it holds.
    const PRESENT: Self = Self { flags: 0, inverted: 0, mask: category::PRESENT, any_of: 0, returned: category::PRESENT };
    /// With its soft-dirty bit set.
    pub(crate) const SOFT_DIRTY: Self = Self { flags: 0, inverted: 0, mask: category::SOFT_DIRTY, any_of: 0, returned: category::SOFT_DIRTY };
}

/// This process's page map.
#[derive(Debug)]
pub(crate) struct Pagemap {
    file: File,
    runs: Vec<PageRegion>,
}

impl Pagemap {
    pub(crate) fn open() -> io::Result<Self> {
        Ok(Self { file: File::open("/proc/self/pagemap")?, runs: vec![PageRegion::default(); RUNS] })
    }

    /// Calls `visit` with the addresses of each run of pages in `range` that matches. A run may come more than once.
    pub(crate) fn find(&mut self, range: Range<usize>, query: Query, visit: &mut impl FnMut(Range<usize>)) -> io::Result<()> {
        self.scan(range, query, &mut |run, _| visit(run))
    }

    /// As [`Pagemap::find`], write-protecting in the same step what is reported.
    #[cfg(feature = "userfaultfd")]
    pub(crate) fn take(&mut self, range: Range<usize>, query: Query, visit: &mut impl FnMut(Range<usize>)) -> io::Result<()> {
        self.scan(range, Query { flags: query.flags | PROTECT, ..query }, &mut |run, _| visit(run))
    }

    /// Write-protects all of `range` after it was registered, and calls `visit` with the addresses of each run that is
    /// populated at that very moment. Afterwards that cannot be told any more: what protects a page that is not there
    /// looks like a swapped page.
    #[cfg(feature = "userfaultfd")]
    pub(crate) fn arm(&mut self, range: Range<usize>, visit: &mut impl FnMut(Range<usize>)) -> io::Result<()> {
        use category::{PFNZERO, PRESENT, SWAPPED};
        let query = Query { flags: CHECK | PROTECT, returned: PRESENT | SWAPPED | PFNZERO, ..Query::WRITTEN };
        self.scan(range.clone(), query, &mut |run, categories| {
            if categories & (PRESENT | SWAPPED) != 0 && categories & PFNZERO == 0 {
                visit(run);
            }
        })?;
        // What was written meanwhile; and on kernels whose general path passes over what is not there, all of that.
        self.take(range, Query::WRITTEN, visit)
    }

    fn scan(&mut self, range: Range<usize>, query: Query, visit: &mut impl FnMut(Range<usize>, u64)) -> io::Result<()> {
        let mut arg = ScanArg::new(&range, query);
        arg.vec_len = self.runs.len() as u64;
        while arg.start < arg.end {
            arg.vec = self.runs.as_mut_ptr() as u64;
            // SAFETY: the vector is `runs`, writable and of the length passed, and the kernel writes to nothing else. Of
            // memory the request reads no contents and changes none: at most it write-protects, asynchronously, what is
            // registered for that, which only has writes counted.
            let found = unsafe { pagemap_scan(self.file.as_raw_fd(), &raw mut arg) }?;
            for run in &self.runs[..usize::try_from(found).expect("a count")] {
                visit(address(run.start)..address(run.end), run.categories);
            }
            // A range that cuts a huge page ends where it began, without an error.
            if arg.walk_end <= arg.start {
                return Err(no_progress(&range, arg.walk_end));
            }
            arg.start = arg.walk_end;
        }
        Ok(())
    }

    /// Calls `visit` with the address and the entry of each page in `range`, by reading the file.
    pub(crate) fn entries(&self, range: Range<usize>, visit: &mut impl FnMut(usize, u64)) -> io::Result<()> {
        let mut buffer = vec![0u8; 64 << 10];
        let mut at = range.start;
        while at < range.end {
            let pages = ((range.end - at) / PAGE_SIZE).min(buffer.len() / 8);
            let words = &mut buffer[..pages * 8];
            self.file.read_exact_at(words, (at / PAGE_SIZE) as u64 * 8)?;
            for entry in words.as_chunks::<8>().0 {
                visit(at, u64::from_le_bytes(*entry));
                at += PAGE_SIZE;
            }
        }
        Ok(())
    }
}

impl ScanArg {
    fn new(range: &Range<usize>, query: Query) -> Self {
        Self {
            size: size_of::<Self>() as u64,
            flags: query.flags,
            start: range.start as u64,
            end: range.end as u64,
            category_inverted: query.inverted,
            category_mask: query.mask,
            category_anyof_mask: query.any_of,
            return_mask: query.returned,
            ..Self::default()
        }
    }
}

fn address(from_kernel: u64) -> usize {
    usize::try_from(from_kernel).expect("an address of this process")
}

fn no_progress(range: &Range<usize>, at: u64) -> io::Error {
    io::Error::other(format!("the page map scan of {:#x}..{:#x} stopped at {at:#x}", range.start, range.end))
}

/// What a page counts as that the kernel cannot tell from the shared page of zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Doubtful {
    /// As one that may hold data.
    Populated,
    /// As one of zeros.
    Empty,
}

impl Pagemap {
    /// Calls `visit` with the addresses of each run of populated pages in `range`.
    pub(crate) fn populated_runs(&mut self, range: Range<usize>, doubtful: Doubtful, visit: &mut impl FnMut(Range<usize>)) -> io::Result<()> {
        let matches = |bits| {
            // A page of zeros that was only read is there, but never exclusively ours.
            let there = bits & entry::PRESENT != 0 && (doubtful == Doubtful::Populated || bits & entry::EXCLUSIVE != 0);
            there || bits & entry::SWAPPED != 0
        };
        if doubtful == Doubtful::Empty && !self.tells_huge_zeros() {
            return self.read(range, visit, matches);
        }
        self.find_or_read(range, Query::POPULATED, visit, matches)
    }

    /// Whether the scan knows the shared huge page of zeros for what it is. From 6.7 to mid-2025 kernels did not ("fix
    /// PAGE_IS_PFNZERO detection for the huge zero folio" is the change). Where there are no huge pages there is none.
    fn tells_huge_zeros(&mut self) -> bool {
        static TELLS: OnceLock<bool> = OnceLock::new();
        *TELLS.get_or_init(|| {
            let Some((mapping, page)) = read_huge_page() else { return true };
            let mut is_populated = false;
            let found = self.find(page, Query::POPULATED, &mut |_| is_populated = true);
            drop(mapping);
            found.is_err() || !is_populated
        })
    }

    /// Calls `visit` with the addresses of each run of pages in `range` that are there.
    pub(crate) fn present_runs(&mut self, range: Range<usize>, visit: &mut impl FnMut(Range<usize>)) -> io::Result<()> {
        self.find_or_read(range, Query::PRESENT, visit, |bits| bits & entry::PRESENT != 0)
    }

    /// Calls `visit` with the addresses of each run of pages in `range` that take memory of the host's now. Where the kernel
    /// does not know all of them, those that others have mapped, too, are left out.
    pub(crate) fn resident_runs(&mut self, range: Range<usize>, visit: &mut impl FnMut(Range<usize>)) -> io::Result<()> {
        self.find_or_read(range, Query::RESIDENT, visit, |bits| bits & entry::PRESENT != 0 && bits & entry::EXCLUSIVE != 0)
    }

    /// Calls `visit` with the addresses of each run of pages in `range` that have their soft-dirty bit.
    pub(crate) fn soft_dirty_runs(&mut self, range: Range<usize>, visit: &mut impl FnMut(Range<usize>)) -> io::Result<()> {
        // Pages that are not there have it, too, in a mapping younger than the last clearing.
        self.find_or_read(range, Query::SOFT_DIRTY, visit, |bits| bits & entry::SOFT_DIRTY != 0 && bits & (entry::PRESENT | entry::SWAPPED) != 0)
    }

    /// As [`Pagemap::find`]; on kernels before 6.7 by reading every entry.
    fn find_or_read(
        &mut self,
        range: Range<usize>,
        query: Query,
        visit: &mut impl FnMut(Range<usize>),
        matches: impl Fn(u64) -> bool,
    ) -> io::Result<()> {
        match self.find(range.clone(), query, visit) {
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOTTY | libc::EINVAL)) => self.read(range, visit, matches),
            result => result,
        }
    }

    /// Calls `visit` with the address of each page in `range` whose entry matches.
    fn read(&self, range: Range<usize>, visit: &mut impl FnMut(Range<usize>), matches: impl Fn(u64) -> bool) -> io::Result<()> {
        self.entries(range, &mut |at, bits| {
            if matches(bits) {
                visit(at..at + PAGE_SIZE);
            }
        })
    }
}

/// Memory of which a page, a huge one if there are any, has been read and never written; the addresses of it.
fn read_huge_page() -> Option<(MmapMut, Range<usize>)> {
    let mapping = MmapMut::map_anon(2 * HUGE_PAGE_SIZE).ok()?;
    // A kernel without such pages says no, and has small ones.
    let _ = mapping.advise(Advice::HugePage);
    let start = mapping.as_ptr() as usize;
    let first = start.next_multiple_of(HUGE_PAGE_SIZE);
    std::hint::black_box(mapping[first - start]);
    Some((mapping, first..first + HUGE_PAGE_SIZE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_huge_page_that_was_only_read_is_not_populated() {
        let (mut mapping, page) = read_huge_page().unwrap();
        let mut pagemap = Pagemap::open().unwrap();
        let mut populated = || {
            let mut pages = 0;
            pagemap.populated_runs(page.clone(), Doubtful::Empty, &mut |run| pages += run.len() / PAGE_SIZE).unwrap();
            pages
        };
        assert_eq!(populated(), 0);
        let offset = page.start - mapping.as_ptr() as usize;
        mapping[offset] = 1;
        assert!(populated() > 0);
    }

    #[test]
    fn entries_and_the_scan_agree() {
        let mut mapping = MmapMut::map_anon(64 * PAGE_SIZE).unwrap();
        let _ = mapping.advise(Advice::NoHugePage);
        std::hint::black_box(mapping[3 * PAGE_SIZE]);
        for page in [5, 6, 60] {
            mapping[page * PAGE_SIZE] = 1;
        }
        let start = mapping.as_ptr() as usize;
        let (mut pagemap, range) = (Pagemap::open().unwrap(), start..start + mapping.len());
        let (mut scanned, mut read) = (Vec::new(), Vec::new());
        let pages = |run: Range<usize>, into: &mut Vec<usize>| into.extend(run.step_by(PAGE_SIZE).map(|at| (at - start) / PAGE_SIZE));
        pagemap.populated_runs(range.clone(), Doubtful::Empty, &mut |run| pages(run, &mut scanned)).unwrap();
        let exclusive = |bits| bits & entry::PRESENT != 0 && bits & entry::EXCLUSIVE != 0;
        pagemap.read(range, &mut |run| pages(run, &mut read), exclusive).unwrap();
        assert_eq!((scanned.as_slice(), read.as_slice()), ([5, 6, 60].as_slice(), [5, 6, 60].as_slice()));
    }
}
