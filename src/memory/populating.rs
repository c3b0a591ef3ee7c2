//! Putting memory under pages that are about to be filled.
//!
//! For a chunk at once that costs a fraction of faulting its pages in one by one, and for 2 MiB at once, as a transparent
//! huge page, a fraction of that again (a fourth, measured), which the guest's own accesses gain from afterwards. But a
//! huge page has to be at hand: on a fragmented host the kernel must make one, and beneath a virtual machine its
//! hypervisor must find memory for all of it. Therefore the cost of both ways is measured all the time, and an
//! [extent](Extents) is populated in the cheaper one.
//!
//! A huge page holds memory for pages that may never be filled. One is taken only where the extents beside it were
//! filled for the most part, so a sparse guest stays sparse.
//!
//! <https://docs.kernel.org/admin-guide/mm/transhuge.html>, <https://man7.org/linux/man-pages/man2/madvise.2.html>

use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

use super::guest_memory::HUGE_PAGE_SIZE;
use super::layout::MemoryLayout;
use super::{Backing, GuestMemory, Region};
use crate::sys::huge;
use crate::units::{CHUNK_PAGES, CHUNK_SIZE, ChunkIndex, PAGE_SIZE};

/// The aligned 2 MiB stretches of a guest's memory, and how each is populated: shared by all who place pages in it.
///
/// Two workers come to most extents at about the same time, and only one can put a huge page there: the other waits.
#[derive(Debug)]
pub(super) struct Extents(Box<[Extent]>);

#[derive(Debug, Default)]
struct Extent {
    pages: OnceLock<Pages>,
    /// Its chunks that came filled for the most part.
    dense: AtomicU8,
}

/// What an extent is populated with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pages {
    /// Chunk by chunk, each before it is filled.
    Small,
    /// All of it, before any of it is filled.
    Huge,
}

impl Extents {
    /// None populated.
    pub(super) fn new(layout: &MemoryLayout) -> Self {
        // Regions begin at a chunk, not at an extent, so each may have one more than its share.
        let extents = (layout.chunks() as usize).div_ceil(EXTENT_CHUNKS) + layout.regions().len();
        Self((0..extents).map(|_| Extent::default()).collect())
    }

    /// Whether the extents right before or right after `index` came filled for the most part.
    fn is_amid_dense(&self, index: usize) -> bool {
        let dense = |index: Option<usize>| {
            let extent = index.and_then(|index| self.0.get(index));
            // Relaxed: a count that is a little late has a small page more populated, nothing else.
            extent.map_or(0, |extent| usize::from(extent.dense.load(Ordering::Relaxed)))
        };
        let two = |beside: [Option<usize>; 2]| beside.map(dense).iter().sum::<usize>() >= EXTENT_CHUNKS;
        two([index.checked_sub(1), index.checked_sub(2)]) || two([index.checked_add(1), index.checked_add(2)])
    }
}

impl GuestMemory {
    /// Puts memory under all of `chunk`, most of which is about to be filled for the first time; in huge pages where they
    /// are welcome and cheaper, as `huge` knows. A host that does not know how (before Linux 5.14) leaves it to the faults.
    pub(super) fn populate(&self, chunk: ChunkIndex, huge: Option<&HugePages>) {
        let (region, within) = self.layout().locate(chunk).expect("a chunk of the layout");
        let offset = usize::try_from(within.bytes().0).expect("mapped");
        if let Some((huge, start)) = huge.zip(self.regions()[region].extent_at(offset)) {
            let index = self.regions()[region].first_chunk().as_usize() / EXTENT_CHUNKS + region + offset / HUGE_PAGE_SIZE;
            let extent = &self.extents().0[index];
            extent.dense.fetch_add(1, Ordering::Relaxed);
            let pages = extent.pages.get_or_init(|| {
                let is_huge = self.extents().is_amid_dense(index) && huge.populate(start);
                if is_huge { Pages::Huge } else { Pages::Small }
            });
            if *pages == Pages::Huge {
                return;
            }
        }
        let (host, pages) = self.locate(chunk);
        let began = processor_time();
        let populated = populate(host, pages as usize * PAGE_SIZE);
        if let Some(huge) = huge.filter(|_| populated.is_ok() && pages as usize == CHUNK_PAGES) {
            huge.costs().learn(Pages::Small, 1.0 / EXTENT_CHUNKS as f64, processor_time().saturating_sub(began));
        }
    }
}

/// When huge pages are taken: what is known of the host is shared by all guests of a receiver.
#[derive(Debug)]
pub(crate) struct HugePages {
    costs: Mutex<Costs>,
}

impl HugePages {
    /// Nothing is known but whether there are any.
    pub(crate) fn new() -> Self {
        Self { costs: Mutex::new(Costs { only_small: !huge::on_request(), ..Costs::default() }) }
    }

    /// Populates the extent at `start` with a huge page, if that is the cheaper way.
    fn populate(&self, start: NonNull<u8>) -> bool {
        if self.costs().choice() == Pages::Small {
            return false;
        }
        let began = processor_time();
        // SAFETY: an extent of guest memory (see `Region::extent_at`), and the advice changes no contents.
        let advised = unsafe { libc::madvise(start.as_ptr().cast(), HUGE_PAGE_SIZE, libc::MADV_HUGEPAGE) } == 0;
        let populated = advised && populate(start, HUGE_PAGE_SIZE).is_ok();
        if populated {
            self.costs().learn(Pages::Huge, 1.0, processor_time().saturating_sub(began));
        } else {
            self.costs().fail();
        }
        populated
    }

    fn costs(&self) -> MutexGuard<'_, Costs> {
        self.costs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Region {
    /// Where the extent around `offset` begins in this process, if a huge page can be put there: the kernel aligns large
    /// mappings to huge pages since Linux 6.7.
    fn extent_at(&self, offset: usize) -> Option<NonNull<u8>> {
        let start = offset / HUGE_PAGE_SIZE * HUGE_PAGE_SIZE;
        let fits =
            self.backing() == Backing::Anonymous && self.host().addr().get().is_multiple_of(HUGE_PAGE_SIZE) && start + HUGE_PAGE_SIZE <= self.len();
        // SAFETY: the extent lies in the region's mapping, as was just checked.
        fits.then(|| unsafe { self.host().add(start) })
    }
}

/// Has the host put memory under a range of guest memory.
fn populate(start: NonNull<u8>, bytes: usize) -> io::Result<()> {
    // SAFETY: callers pass a stretch of the mapping of a region; putting memory under it changes no contents.
    if unsafe { libc::madvise(start.as_ptr().cast(), bytes, libc::MADV_POPULATE_WRITE) } == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    tracing::trace!(%error, "not populated ahead");
    Err(error)
}

/// What this thread has had of a processor: what others did meanwhile says nothing about memory. (A hypervisor that has to
/// find memory does so on this thread's account.)
fn processor_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

/// What populating an extent has cost of late, in seconds, and which way that makes the better one.
#[derive(Debug, Default)]
struct Costs {
    /// There are no huge pages to be had.
    only_small: bool,
    huge: Option<f64>,
    small: Option<f64>,
    /// Spent since the dearer way was last tried.
    spent: f64,
}

impl Costs {
    /// The cheaper way; the other when it is time to look at that again.
    fn choice(&mut self) -> Pages {
        if self.only_small {
            return Pages::Small;
        }
        let (Some(huge), Some(small)) = (self.huge, self.small) else {
            return if self.huge.is_none() { Pages::Huge } else { Pages::Small };
        };
        let (cheaper, dearer) = if huge <= small { (Pages::Huge, Pages::Small) } else { (Pages::Small, Pages::Huge) };
        if self.spent < TRY_EVERY * (huge - small).abs() {
            return cheaper;
        }
        self.spent = 0.0;
        dearer
    }

    /// There was none to be had: as bad as it gets, until it is tried again.
    fn fail(&mut self) {
        self.huge = self.small.map(|small| small * OUTLIER);
        self.spent = 0.0;
    }

    /// `part` of an extent was populated.
    fn learn(&mut self, pages: Pages, part: f64, took: Duration) {
        let took = took.as_secs_f64();
        self.spent += took;
        let known = match pages {
            Pages::Huge => &mut self.huge,
            Pages::Small => &mut self.small,
        };
        let whole = took / part;
        tracing::trace!(?pages, whole, ?known, "populated");
        *known = Some(known.map_or(whole, |known| known + (whole.min(known * OUTLIER) - known) * WEIGHT * part.sqrt()));
    }
}

/// Chunks of an extent.
const EXTENT_CHUNKS: usize = HUGE_PAGE_SIZE / CHUNK_SIZE;
/// The dearer way may cost one part in so many of the time spent.
const TRY_EVERY: f64 = 24.0;
/// What the latest extent counts for against all before it.
const WEIGHT: f64 = 0.75;
/// One counts for at most so many times what was expected: a thread that lost its processor says nothing.
const OUTLIER: f64 = 8.0;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::PageSink;
    use crate::units::PageCount;

    const MS: Duration = Duration::from_millis(1);
    const CHUNK: f64 = 1.0 / EXTENT_CHUNKS as f64;

    fn costs(small: u32, huge: u32) -> Costs {
        let mut costs = Costs::default();
        (0..EXTENT_CHUNKS).for_each(|_| costs.learn(Pages::Small, CHUNK, small * MS / 8));
        costs.learn(Pages::Huge, 1.0, huge * MS);
        costs
    }

    /// Populates `count` extents at these costs; how many of them in huge pages.
    fn huge_of(costs: &mut Costs, count: u32, (small, huge): (u32, u32)) -> u32 {
        let mut taken = 0;
        for _ in 0..count {
            match costs.choice() {
                Pages::Small => (0..EXTENT_CHUNKS).for_each(|_| costs.learn(Pages::Small, CHUNK, small * MS / 8)),
                Pages::Huge => {
                    costs.learn(Pages::Huge, 1.0, huge * MS);
                    taken += 1;
                }
            }
        }
        taken
    }

    #[test]
    fn the_cheaper_way_is_taken_and_the_other_looked_at_now_and_then() {
        assert_eq!(Costs::default().choice(), Pages::Huge, "nothing is known of it");
        let mostly_small = huge_of(&mut costs(8, 24), 1000, (8, 24));
        assert!((10..40).contains(&mostly_small), "{mostly_small} of 1000 in huge pages, which are dearer");
        let mostly_huge = huge_of(&mut costs(8, 2), 1000, (8, 2));
        assert!((940..1000).contains(&mostly_huge), "{mostly_huge} of 1000 in huge pages, which are cheaper");
    }

    #[test]
    fn a_host_that_changes_is_followed() {
        let mut costs = costs(8, 2);
        assert!(huge_of(&mut costs, 100, (8, 24)) < 15, "huge pages are at hand no more");
        assert!(huge_of(&mut costs, 100, (8, 2)) > 50, "and again they are");
        costs.only_small = true;
        assert_eq!(huge_of(&mut costs, 100, (8, 2)), 0);
    }

    /// Fills `chunks` of a guest of 16 MiB through two placements that take turns; the memory, and how much of it is in huge
    /// pages.
    fn fill(chunks: impl Iterator<Item = u32>, huge: bool) -> Option<(GuestMemory, usize)> {
        let memory = GuestMemory::allocate(MemoryLayout::flat(PageCount(16 << 8)).unwrap(), Backing::Anonymous).unwrap();
        let start = memory.regions()[0].host().addr().get();
        if !start.is_multiple_of(HUGE_PAGE_SIZE) || !huge::on_request() {
            eprintln!("skipped: no huge pages on request, or the kernel aligns no mapping to them");
            return None;
        }
        let known = HugePages::new();
        let placement = || if huge { memory.placement().with_huge_pages(&known) } else { memory.placement() };
        let mut placements = [placement(), placement()];
        for chunk in chunks {
            let placement = &mut placements[chunk as usize % 2];
            placement.begin(ChunkIndex(chunk), u64::MAX);
            (0..64).for_each(|bit| placement.write_uniform(ChunkIndex(chunk), bit, u64::from(chunk) + 1));
        }
        for (chunk, bit) in (0..64).flat_map(|chunk| (0..64).map(move |bit| (chunk, bit))) {
            let word = memory.chunk(ChunkIndex(chunk)).load_word(bit, 511);
            assert!(word == 0 || word == u64::from(chunk) + 1, "page {bit} of chunk {chunk} holds {word}");
        }
        let huge = huge_bytes(start..start + (16 << 20));
        Some((memory, huge))
    }

    /// What lies in huge pages of a range of this process.
    fn huge_bytes(range: std::ops::Range<usize>) -> usize {
        let (mut within, mut bytes) = (false, 0);
        for line in std::fs::read_to_string("/proc/self/smaps").unwrap().lines() {
            let mut words = line.split_whitespace();
            let first = words.next().unwrap();
            if let Some((start, _)) = first.split_once('-').filter(|(_, end)| !end.is_empty()) {
                within = usize::from_str_radix(start, 16).is_ok_and(|start| range.contains(&start));
            } else if within && first == "AnonHugePages:" {
                bytes += words.next().unwrap().parse::<usize>().unwrap() << 10;
            }
        }
        bytes
    }

    #[test]
    fn huge_pages_come_amid_what_is_filled_in_either_direction() {
        for order in [(0..64).collect::<Vec<_>>(), (0..64).rev().collect()] {
            let Some((_memory, huge)) = fill(order.into_iter(), true) else { return };
            // The first two extents tell that the third is likely to be filled; the third is the first try.
            assert!(huge >= HUGE_PAGE_SIZE, "{huge} bytes in huge pages");
            assert!(huge <= 6 * HUGE_PAGE_SIZE, "{huge} bytes in huge pages");
        }
    }

    #[test]
    fn a_sparse_guest_and_one_whose_pages_are_taken_out_again_get_small_pages() {
        let Some((memory, huge)) = fill((0..64).step_by(EXTENT_CHUNKS), true) else { return };
        assert_eq!(huge, 0);
        assert_eq!(memory.populated().unwrap().count().0, 8 * 64, "no more than was filled");
        let (_, huge) = fill(0..64, false).unwrap();
        assert_eq!(huge, 0);
    }
}
