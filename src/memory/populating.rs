//! Putting memory under pages that are about to be filled.
//!
//! For a chunk at once that costs a fraction of faulting its pages in one by one, and for 2 MiB at once, as a transparent
//! huge page, a fraction of that again, which the guest's own accesses gain from afterwards. But a huge page has to be at
//! hand: on a fragmented host the kernel must make one, and beneath a virtual machine its hypervisor must find memory for
//! all of it. Therefore the cost of both ways is measured as it goes, and an [extent](Extents) is populated in the
//! cheaper one.
//!
//! A huge page holds memory for pages that may never be filled. One is taken only where the extents beside it came filled
//! for the most part and nothing of its own has come before, so a sparse guest stays sparse. Memory that a VMM has mapped
//! is left to what the VMM has advised, and so is a host that makes huge pages of everything by itself.
//!
//! <https://docs.kernel.org/admin-guide/mm/transhuge.html>, <https://man7.org/linux/man-pages/man2/madvise.2.html>

use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, MutexGuard, Once, OnceLock, PoisonError};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

use super::guest_memory::HUGE_PAGE_SIZE;
use super::layout::MemoryLayout;
use super::{Backing, GuestMemory};
use crate::sys::huge;
use crate::units::{CHUNK_SIZE, ChunkIndex, PAGE_SIZE};

/// The aligned 2 MiB stretches of a guest's memory, and how each is populated: shared by all who place pages in it.
///
/// Two workers come to most extents at about the same time, and only one can put a huge page there: the other waits.
#[derive(Debug)]
pub(super) struct Extents {
    extents: Box<[Extent]>,
    advised: Once,
}

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
        Self { extents: (0..extents).map(|_| Extent::default()).collect(), advised: Once::new() }
    }

    /// The index of the extent of region number `region`, which begins at chunk `first`, that holds its byte `offset`.
    fn index(first: ChunkIndex, region: usize, offset: usize) -> usize {
        first.as_usize() / EXTENT_CHUNKS + region + offset / HUGE_PAGE_SIZE
    }

    /// Whether the two extents before `index`, or the two after it, came filled for the most part: with workers that are
    /// not quite abreast, the nearest one may be on its way still.
    fn is_amid_dense(&self, index: usize) -> bool {
        let dense = |index: Option<usize>| {
            let extent = index.and_then(|index| self.extents.get(index));
            // Relaxed: a count that is a little late has small pages taken for longer, nothing else.
            extent.map_or(0, |extent| usize::from(extent.dense.load(Ordering::Relaxed)))
        };
        let two = |beside: [Option<usize>; 2]| beside.map(dense).iter().sum::<usize>() > EXTENT_CHUNKS;
        two([index.checked_sub(1), index.checked_sub(2)]) || two([index.checked_add(1), index.checked_add(2)])
    }
}

impl GuestMemory {
    /// Puts memory under all of `chunk`, most of which is about to be filled, `fresh` when nothing of it has come before;
    /// in huge pages where they are welcome and cheaper, as `huge` knows. A host that does not know how (before Linux 5.14)
    /// leaves it to the faults.
    pub(super) fn populate(&self, chunk: ChunkIndex, fresh: bool, huge: Option<&HugePages>) {
        let (host, pages) = self.locate(chunk);
        let bytes = pages as usize * PAGE_SIZE;
        let Some((huge, (extent, start, index))) = huge.and_then(|huge| Some((huge, self.extent_of(chunk)?))) else {
            let _ = populate(host, bytes);
            return;
        };
        // Relaxed: see where it is read.
        extent.dense.fetch_add(1, Ordering::Relaxed);
        let pages = *extent.pages.get_or_init(|| {
            if !self.extents().is_amid_dense(index) {
                return Pages::Small;
            }
            self.extents().advised.call_once(|| self.want_small_pages());
            if huge.populate(start) { Pages::Huge } else { Pages::Small }
        });
        if pages == Pages::Huge {
            return;
        }
        // What has come before is populated, and costs nothing again.
        if !fresh || !is_sample(chunk) {
            let _ = populate(host, bytes);
            return;
        }
        let (populated, took) = timed(|| populate(host, bytes));
        if populated.is_ok() {
            huge.costs().learn(Pages::Small, f64::from(SAMPLE_EVERY) / EXTENT_CHUNKS as f64, took * SAMPLE_EVERY);
        }
    }

    /// A few pages of `chunk` are about to be filled, which faults will see to: there is no place for a huge page then.
    pub(super) fn fill_thinly(&self, chunk: ChunkIndex) {
        if let Some((extent, ..)) = self.extent_of(chunk) {
            // Decided already: so be it.
            let _ = extent.pages.set(Pages::Small);
        }
    }

    /// Advises against huge pages but for those asked for one by one: so all of a region stays one mapping.
    fn want_small_pages(&self) {
        for region in self.regions().iter().filter(|region| region.is_own() && region.backing() == Backing::Anonymous) {
            let _ = advise(region.host(), region.len(), libc::MADV_NOHUGEPAGE);
        }
    }

    /// The extent of `chunk`, where it begins in this process, and its index, if a huge page can be put there: the kernel
    /// aligns mappings to huge pages that are a multiple of them long, since Linux 6.7.
    fn extent_of(&self, chunk: ChunkIndex) -> Option<(&Extent, NonNull<u8>, usize)> {
        let (number, within) = self.layout().locate(chunk).expect("a chunk of the layout");
        let region = &self.regions()[number];
        let offset = usize::try_from(within.bytes().0).expect("mapped");
        let start = offset / HUGE_PAGE_SIZE * HUGE_PAGE_SIZE;
        let is_aligned = region.host().addr().get().is_multiple_of(HUGE_PAGE_SIZE);
        if region.backing() != Backing::Anonymous || !region.is_own() || !is_aligned || start + HUGE_PAGE_SIZE > region.len() {
            return None;
        }
        let index = Extents::index(region.first_chunk(), number, offset);
        // SAFETY: the extent lies in the region's mapping, as was just checked.
        Some((&self.extents().extents[index], unsafe { region.host().add(start) }, index))
    }
}

/// When huge pages are taken: what is known of the host is shared by all guests of a receiver.
#[derive(Debug)]
pub(crate) struct HugePages {
    costs: Mutex<Costs>,
}

impl HugePages {
    /// Of this host, if it has any to ask for.
    pub(crate) fn on_this_host() -> Option<Self> {
        huge::on_request().then(|| Self { costs: Mutex::default() })
    }

    /// Populates the extent at `start` with a huge page, if that is the cheaper way.
    fn populate(&self, start: NonNull<u8>) -> bool {
        if self.costs().choice() == Pages::Small {
            return false;
        }
        let (populated, took) = timed(|| advise(start, HUGE_PAGE_SIZE, libc::MADV_HUGEPAGE).and_then(|()| populate(start, HUGE_PAGE_SIZE)));
        // The huge page stays. The advice would have the host fill it up again when pages of it are given back, and be a
        // mapping of its own next to small pages.
        let _ = advise(start, HUGE_PAGE_SIZE, libc::MADV_NOHUGEPAGE);
        match &populated {
            Ok(()) => self.costs().learn(Pages::Huge, 1.0, took),
            Err(error) => self.costs().fail(error),
        }
        populated.is_ok()
    }

    fn costs(&self) -> MutexGuard<'_, Costs> {
        self.costs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Has the host put memory under a range of guest memory.
fn populate(start: NonNull<u8>, bytes: usize) -> io::Result<()> {
    advise(start, bytes, libc::MADV_POPULATE_WRITE).inspect_err(|error| tracing::trace!(%error, "not populated ahead"))
}

/// Gives advice about a range of guest memory: one of those that leave contents as they are.
fn advise(start: NonNull<u8>, bytes: usize, advice: libc::c_int) -> io::Result<()> {
    // SAFETY: the callers' advice (populate, huge pages or not) changes no contents, whatever is mapped there; what is not
    // mapped is an error.
    if unsafe { libc::madvise(start.as_ptr().cast(), bytes, advice) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// What this thread has of a processor meanwhile: what others do says nothing about memory. (A hypervisor that has to find
/// memory does so on this thread's account.) Not under a lock that all guests share: to read this clock is to have the
/// scheduler look whether it is another thread's turn.
fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let now = || clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from);
    let began = now();
    let done = work();
    (done, now().saturating_sub(began))
}

/// Whether a chunk populated by itself stands for all: each place in an extent does as often as the others, because the
/// first of an extent brings a page table with it.
fn is_sample(chunk: ChunkIndex) -> bool {
    let number = chunk.as_usize();
    (number + number / EXTENT_CHUNKS).is_multiple_of(SAMPLE_EVERY as usize)
}

/// What populating an extent has cost of late, in seconds, and which way that makes the better one.
#[derive(Debug, Default)]
struct Costs {
    /// There are no huge pages to be had after all.
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

    /// The host would not do it. It may know how, but not have the memory.
    fn fail(&mut self, error: &io::Error) {
        match self.small {
            Some(small) if error.kind() == io::ErrorKind::OutOfMemory => self.huge = Some(small * OUTLIER),
            _ => self.only_small = true,
        }
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
        *known = Some(known.map_or(whole, |known| known + (whole.min(known.max(FREE) * OUTLIER) - known) * WEIGHT * part.sqrt()));
    }
}

/// One chunk of so many is measured.
const SAMPLE_EVERY: u32 = 4;
/// Chunks of an extent.
const EXTENT_CHUNKS: usize = HUGE_PAGE_SIZE / CHUNK_SIZE;
/// The dearer way may cost one part in so many of the time spent.
const TRY_EVERY: f64 = 24.0;
/// What the latest extent counts for against all before it.
const WEIGHT: f64 = 0.75;
/// One counts for at most so many times what was expected, ...
const OUTLIER: f64 = 8.0;
/// ... which is taken to be this at least: clocks may be coarse.
const FREE: f64 = 1e-5;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{PageSink, RawRegion, RegionSpec};
    use crate::units::{GuestAddr, PageCount};

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

    /// A guest of 16 MiB, if this host has huge pages for it and takes them on request only.
    fn memory() -> Option<GuestMemory> {
        let memory = GuestMemory::allocate(MemoryLayout::flat(PageCount(16 << 8)).unwrap(), Backing::Anonymous).unwrap();
        let probe = HugePages::on_this_host().zip(memory.extent_of(ChunkIndex(0)));
        let found = probe.is_some_and(|(huge, (_, start, _))| huge.populate(start) && huge_bytes(&memory) == HUGE_PAGE_SIZE);
        if !found {
            eprintln!("skipped: no huge page at hand on request, or mappings are not aligned to them");
            return None;
        }
        Some(GuestMemory::allocate(MemoryLayout::flat(PageCount(16 << 8)).unwrap(), Backing::Anonymous).unwrap())
    }

    /// Fills the first `pages` pages of each of `chunks` through two placements that take turns; says how much of it is in
    /// huge pages.
    fn fill(memory: &GuestMemory, chunks: impl Iterator<Item = u32>, pages: u32, huge: bool) -> usize {
        let known = HugePages::on_this_host().filter(|_| huge);
        let placement = || memory.placement().with_huge_pages(known.as_ref());
        let mut placements = [placement(), placement()];
        for chunk in chunks {
            let placement = &mut placements[chunk as usize % 2];
            placement.begin(ChunkIndex(chunk), u64::MAX >> (64 - pages));
            (0..pages).for_each(|bit| placement.write_uniform(ChunkIndex(chunk), bit, u64::from(chunk) + 1));
        }
        for (chunk, bit) in (0..64).flat_map(|chunk| (0..64).map(move |bit| (chunk, bit))) {
            let word = memory.chunk(ChunkIndex(chunk)).load_word(bit, 511);
            assert!(word == 0 || word == u64::from(chunk) + 1, "page {bit} of chunk {chunk} holds {word}");
        }
        huge_bytes(memory)
    }

    /// What of it lies in huge pages.
    fn huge_bytes(memory: &GuestMemory) -> usize {
        let start = memory.regions()[0].host().addr().get();
        let range = start..start + memory.regions()[0].len();
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
            let Some(memory) = memory() else { return };
            let huge = fill(&memory, order.into_iter(), 64, true);
            // Two extents tell that the third is likely to be filled, which is the first try.
            assert!((1..=6).contains(&(huge / HUGE_PAGE_SIZE)), "{huge} bytes in huge pages");
        }
    }

    #[test]
    fn a_guest_is_populated_where_it_is_filled() {
        let Some(sparse) = memory() else { return };
        assert_eq!(fill(&sparse, (0..64).step_by(EXTENT_CHUNKS), 64, true), 0);
        assert_eq!(sparse.populated().unwrap().count().0, 8 * 64, "a chunk of each extent");
        let Some(thin) = memory() else { return };
        assert_eq!(fill(&thin, 0..64, 5, true), 0);
        assert_eq!(thin.populated().unwrap().count().0, 64 * 5, "a few pages of each chunk");
        // Nor does what comes later make room for a huge page.
        assert_eq!(fill(&thin, 0..64, 64, true), 0);
    }

    #[test]
    fn memory_whose_pages_are_taken_out_again_and_that_of_others_is_in_small_pages() {
        let Some(memory) = memory() else { return };
        assert_eq!(fill(&memory, 0..64, 64, false), 0);
        let layout = memory.layout().clone();
        let raw = vec![RawRegion { host: memory.regions()[0].host(), backing: Backing::Anonymous, file: None }];
        // SAFETY: the mapping is that of `memory`, which lives longer.
        let others = unsafe { GuestMemory::from_raw(layout, raw) };
        assert!(others.extent_of(ChunkIndex(0)).is_none());
    }

    #[test]
    fn samples_come_from_every_place_of_an_extent() {
        let samples = (0..u32::try_from(EXTENT_CHUNKS).unwrap() * SAMPLE_EVERY).map(ChunkIndex).filter(|&chunk| is_sample(chunk));
        let places: Vec<_> = samples.map(|chunk| chunk.as_usize() % EXTENT_CHUNKS).collect();
        assert_eq!(places.len(), EXTENT_CHUNKS);
        assert_eq!(places.into_iter().collect::<std::collections::BTreeSet<_>>().len(), EXTENT_CHUNKS);
    }

    #[test]
    fn every_extent_of_every_region_has_an_index_of_its_own() {
        let region = |start: u64, pages: u64| RegionSpec { start: GuestAddr(start << 30), pages: PageCount(pages) };
        let layout = MemoryLayout::new(vec![region(0, 512 * 3), region(1, 64 * 5), region(2, 512), region(3, 64 * 17 + 1)]).unwrap();
        let mut seen = std::collections::BTreeMap::new();
        for chunk in (0..layout.chunks()).map(ChunkIndex) {
            let (region, within) = layout.locate(chunk).unwrap();
            let offset = usize::try_from(within.bytes().0).unwrap();
            let index = Extents::index(layout.first_chunk(region), region, offset);
            assert!(index < Extents::new(&layout).extents.len());
            assert_eq!(*seen.entry(index).or_insert((region, offset / HUGE_PAGE_SIZE)), (region, offset / HUGE_PAGE_SIZE));
        }
        assert_eq!(seen.len(), 3 + 1 + 1 + 3);
    }
}
