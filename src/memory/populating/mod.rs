//! Putting memory under pages that are about to be filled.
//!
//! Faulting pages in one by one is the dearest way. Cheaper by far is to install small pages that are filled already
//! ([`Installer`]), and for 2 MiB at once, as a transparent huge page that is filled in place, cheaper still, which the
//! guest's own accesses gain from afterwards. But a huge page has to be at hand: on a fragmented host the kernel must make
//! one, and beneath a virtual machine its hypervisor must find memory for all of it. Therefore the cost of both ways is
//! measured as it goes, and an [extent](Extents) is populated in the cheaper one.
//!
//! A huge page holds memory for pages that may never be filled. One is taken only [amid](Trail) what comes filled for the
//! most part and where nothing of its own has come before, so a sparse guest stays sparse. Memory that a VMM has mapped
//! is left to what the VMM has advised, and so is a host that makes huge pages of everything by itself; a chunk that comes
//! filled for the most part is populated by itself there.
//!
//! <https://docs.kernel.org/admin-guide/mm/transhuge.html>, <https://man7.org/linux/man-pages/man2/madvise.2.html>

mod costs;
#[cfg(feature = "userfaultfd")]
mod installer;
#[cfg(not(feature = "userfaultfd"))]
#[path = "no_installer.rs"]
mod installer;
#[cfg(test)]
mod tests;
mod trail;

use std::io;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, Once, OnceLock, PoisonError};

use self::costs::{Costs, Size, timed};
use self::installer::Installer;
pub(super) use self::trail::Trail;
use super::layout::MemoryLayout;
use super::sink::page_runs;
use super::{Backing, GuestMemory, Staging};
use crate::bitmap::bits;
use crate::sys::huge;
use crate::units::{CHUNK_PAGES, CHUNK_SIZE, ChunkIndex, HUGE_PAGE_SIZE, PAGE_SIZE};

/// The aligned 2 MiB stretches of a guest's memory, and how each is populated: shared by all who place pages in it.
///
/// Two workers come to most extents at about the same time, and only one can decide: the other waits.
#[derive(Debug)]
pub(super) struct Extents {
    extents: Box<[Extent]>,
    advised: Once,
    /// Of extents whose pages are installed, at most.
    stretches: AtomicUsize,
}

#[derive(Debug, Default)]
struct Extent {
    supply: OnceLock<Supply>,
}

/// How much of a chunk comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Coming {
    /// A few pages.
    Thinly,
    /// Most of it.
    Densely,
    /// Most of it, and of the memory around it.
    AmidDense,
}

/// How the pages of an extent get memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Supply {
    /// By faults, or chunk by chunk, each before it is filled; also what is left when the supply has ended.
    Small,
    /// All at once, before any is filled.
    Huge,
    /// Each must be [installed](GuestMemory::install) the first time it comes.
    Installed,
}

impl Extents {
    /// None populated.
    pub(super) fn new(layout: &MemoryLayout) -> Self {
        // Regions begin at a chunk, not at an extent, so each may have one more than its share.
        let extents = (layout.chunks() as usize).div_ceil(EXTENT_CHUNKS) + layout.regions().len();
        Self { extents: (0..extents).map(|_| Extent::default()).collect(), advised: Once::new(), stretches: AtomicUsize::new(0) }
    }

    /// The index of the extent of region number `region`, which begins at chunk `first`, that holds its byte `offset`.
    fn index(first: ChunkIndex, region: usize, offset: usize) -> usize {
        first.as_usize() / EXTENT_CHUNKS + region + offset / HUGE_PAGE_SIZE
    }

    /// Whether the pages of the extent before `index`, or of the one after it, are installed.
    fn is_beside_installed(&self, index: usize) -> bool {
        let beside = [index.checked_sub(1), index.checked_add(1)].into_iter().flatten().filter_map(|index| self.extents.get(index));
        beside.into_iter().any(|extent| extent.supply.get() == Some(&Supply::Installed))
    }
}

impl GuestMemory {
    /// Sees to memory for the pages of `chunk` that come, of which none has come before.
    pub(super) fn supply(&self, chunk: ChunkIndex, coming: Coming, by: Option<Supplier<'_>>) -> Supply {
        let Some((by, (extent, start, index))) = by.and_then(|by| Some((by, self.extent_of(chunk)?))) else {
            if coming != Coming::Thinly {
                self.populate(chunk);
            }
            return Supply::Small;
        };
        // The first to whom any of the extent comes decides.
        let supply = *extent.supply.get_or_init(|| {
            if let Some(costs) = by.costs.filter(|_| coming == Coming::AmidDense) {
                self.extents().advised.call_once(|| self.want_small_pages());
                if populate_huge(start, costs) {
                    return Supply::Huge;
                }
            }
            if self.begin_to_install(extent_range(start), index, by) { Supply::Installed } else { Supply::Small }
        });
        if coming != Coming::Thinly && supply == Supply::Small {
            by.measure_small(chunk, 1.0 / EXTENT_CHUNKS as f64, || self.populate(chunk));
        }
        supply
    }

    /// Puts memory under all of `chunk`; says whether. A host that does not know how (before Linux 5.14) leaves it to the
    /// faults.
    pub(super) fn populate(&self, chunk: ChunkIndex) -> bool {
        let (host, pages) = self.locate(chunk);
        populate(host, pages as usize * PAGE_SIZE).is_ok()
    }

    /// Registers an extent to have its pages installed, if that can be.
    fn begin_to_install(&self, range: Range<usize>, index: usize, by: Supplier<'_>) -> bool {
        let Some(installer) = by.installer else { return false };
        // Each stretch of such extents is a mapping of its own, of which a process may have 65 530.
        let extents = self.extents();
        let begins_stretch = !extents.is_beside_installed(index);
        // Relaxed: a bound that may be exceeded by as many as decide at the same time.
        if begins_stretch && by.stretches.load(Ordering::Relaxed) >= MAX_STRETCHES || !installer.begin(&range) {
            return false;
        }
        if begins_stretch {
            by.stretches.fetch_add(1, Ordering::Relaxed);
            extents.stretches.fetch_add(1, Ordering::Relaxed);
        }
        true
    }

    /// Puts the pages of `mask`, which are held in `staging` and have never come before, in their places in an extent whose
    /// pages are [installed](Supply::Installed). Says whether that goes on: if not, its pages can be written to.
    pub(super) fn install(&self, chunk: ChunkIndex, mask: u64, staging: &Staging, by: Supplier<'_>) -> bool {
        let (host, pages) = self.locate(chunk);
        assert!(pages == 64 || mask >> pages == 0, "a page past the end of the chunk");
        let installer = by.installer.expect("who begins to install goes on");
        let by = if mask.count_ones() as usize >= CHUNK_PAGES / 2 { by } else { Supplier { costs: None, ..by } };
        let part = f64::from(mask.count_ones()) / (EXTENT_CHUNKS * CHUNK_PAGES) as f64;
        by.measure_small(chunk, part, || {
            for mut run in page_runs(mask) {
                while !run.is_empty() {
                    // Within the chunk, by the assertion above.
                    let to = host.addr().get() + run.start as usize * PAGE_SIZE;
                    let Some(installed) = installer.install(to, staging.pages(run.start, run.end - run.start)) else {
                        let (_, start, _) = self.extent_of(chunk).expect("it is installed");
                        installer.end(&extent_range(start));
                        bits(mask).for_each(|bit| self.chunk(chunk).copy_in(bit, staging.page(bit)));
                        return false;
                    };
                    run.start += u32::try_from(installed / PAGE_SIZE).expect("pages of a chunk");
                    // The next one is there already.
                    if let Some(bit) = run.next() {
                        self.chunk(chunk).copy_in(bit, staging.page(bit));
                    }
                }
            }
            true
        })
    }

    /// Calls `each` with every stretch of extents whose pages are installed; none is decided upon after this.
    fn for_each_installed(&self, mut each: impl FnMut(&Range<usize>)) {
        for (number, region) in self.regions().iter().enumerate() {
            let (start, count) = (region.host().addr().get(), region.len() / HUGE_PAGE_SIZE);
            let is_installed = |extent: &usize| {
                let index = Extents::index(region.first_chunk(), number, extent * HUGE_PAGE_SIZE);
                *self.extents().extents[index].supply.get_or_init(|| Supply::Small) == Supply::Installed
            };
            let mut extents = (0..count).peekable();
            while let Some(first) = extents.find(is_installed) {
                let mut past = first + 1;
                while extents.next_if(is_installed).is_some() {
                    past += 1;
                }
                each(&(start + first * HUGE_PAGE_SIZE..start + past * HUGE_PAGE_SIZE));
            }
        }
    }

    /// Advises against huge pages but for those asked for one by one: so they are no mappings of their own.
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

/// How a host puts memory under pages: what is known of that is shared by all guests of a receiver.
#[derive(Debug)]
pub(crate) struct HostSupply {
    /// Of huge pages and of small ones, if huge ones come on request.
    costs: Option<Mutex<Costs>>,
    installer: Option<Installer>,
    /// Of extents whose pages are installed, in all guests, at most.
    stretches: AtomicUsize,
}

impl HostSupply {
    /// Of this host.
    pub(crate) fn of_this_host() -> Self {
        Self { costs: huge::on_request().then(Mutex::default), installer: Installer::on_this_host(), stretches: AtomicUsize::new(0) }
    }

    /// For memory that stays whole.
    pub(crate) fn with_huge_pages(&self) -> Supplier<'_> {
        Supplier { costs: self.costs.as_ref(), installer: self.installer.as_ref(), stretches: &self.stretches }
    }

    /// For memory of which pages are taken out again one by one, as post-copy does.
    pub(crate) fn with_small_pages(&self) -> Supplier<'_> {
        Supplier { costs: None, ..self.with_huge_pages() }
    }

    /// All of `memory` that has not come can be touched again, and holds zeros. What comes for the first time after
    /// this is left to faults.
    pub(crate) fn end(&self, memory: &GuestMemory) {
        if let Some(installer) = &self.installer {
            memory.for_each_installed(|range| installer.end(range));
            self.stretches.fetch_sub(memory.extents().stretches.swap(0, Ordering::Relaxed), Ordering::Relaxed);
        }
    }
}

/// What a guest's memory is supplied with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Supplier<'h> {
    costs: Option<&'h Mutex<Costs>>,
    installer: Option<&'h Installer>,
    stretches: &'h AtomicUsize,
}

impl Supplier<'_> {
    /// `part` of an extent is given memory by `work`, in small pages, which counts if it says so.
    fn measure_small(&self, chunk: ChunkIndex, part: f64, work: impl FnOnce() -> bool) -> bool {
        let Some(costs) = self.costs.filter(|_| is_sample(chunk)) else { return work() };
        let (done, took) = timed(work);
        if done {
            lock(costs).learn(Size::Small, f64::from(SAMPLE_EVERY) * part, took * SAMPLE_EVERY);
        }
        done
    }
}

/// Populates the extent at `start` with a huge page, if that is the cheaper way.
fn populate_huge(start: NonNull<u8>, costs: &Mutex<Costs>) -> bool {
    if lock(costs).choice() == Size::Small {
        return false;
    }
    let (populated, took) = timed(|| advise(start, HUGE_PAGE_SIZE, libc::MADV_HUGEPAGE).and_then(|()| populate(start, HUGE_PAGE_SIZE)));
    // The huge page stays. The advice would have the host fill it up again when pages of it are given back, and be a
    // mapping of its own next to small pages.
    let _ = advise(start, HUGE_PAGE_SIZE, libc::MADV_NOHUGEPAGE);
    match &populated {
        Ok(()) => lock(costs).learn(Size::Huge, 1.0, took),
        Err(error) => lock(costs).fail(error),
    }
    populated.is_ok()
}

fn lock(costs: &Mutex<Costs>) -> MutexGuard<'_, Costs> {
    costs.lock().unwrap_or_else(PoisonError::into_inner)
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

/// The extent that begins at `start`.
fn extent_range(start: NonNull<u8>) -> Range<usize> {
    start.addr().get()..start.addr().get() + HUGE_PAGE_SIZE
}

/// Whether a chunk populated by itself stands for all: each place in an extent does as often as the others, because the
/// first of an extent brings a page table with it.
fn is_sample(chunk: ChunkIndex) -> bool {
    let number = chunk.as_usize();
    (number + number / EXTENT_CHUNKS).is_multiple_of(SAMPLE_EVERY as usize)
}

/// One chunk of so many is measured.
const SAMPLE_EVERY: u32 = 16;
/// Chunks of an extent.
const EXTENT_CHUNKS: usize = HUGE_PAGE_SIZE / CHUNK_SIZE;
/// Stretches of extents whose pages are installed that a receiver has at a time.
const MAX_STRETCHES: usize = 4096;
