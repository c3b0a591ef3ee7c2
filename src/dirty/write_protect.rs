//! Tracking by asynchronous write protection.
//!
//! Memory is registered with a userfaultfd and write-protected; the kernel lifts the protection of a page at its first
//! write, and one page map scan reports the pages that lost it and protects them again, each page in one step under
//! the page table's lock. Nothing has to be paused, and read(2) and a KVM guest are seen like everybody else.
//!
//! When a KVM guest runs on the memory, every protecting scan makes KVM drop its own page tables for the whole range
//! scanned. A first scan, which protects nothing, then finds where there is something to protect at all. That is sound
//! because pages only go from clean to written in between.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use super::discards::Discards;
use super::span::Span;
use super::{DirtyError, DirtyTracker, Tracked, TrackerKind};
use crate::bitmap::PageBitmap;
use crate::memory::{Backing, GuestMemory, MemoryLayout};
use crate::sys::huge::collapse;
use crate::sys::pagemap::{Doubtful, Pagemap, Query};
use crate::sys::write_protection::WriteProtection;
use crate::units::{PAGE_SIZE, PageCount, PageIndex};

/// Written pages closer together than this are protected by one scan: what one page table holds.
const NEAR: usize = 512 * PAGE_SIZE;

/// The tracker.
pub(super) struct WriteProtect {
    /// Goes before its protection, which there is nothing left to take off then.
    memory: Arc<GuestMemory>,
    spans: Vec<Span>,
    pagemap: Pagemap,
    discards: Discards,
    /// Find before protecting.
    two_steps: bool,
    /// While tracking. Dropping it ends all protection.
    protection: Option<WriteProtection>,
}

impl WriteProtect {
    /// Tries everything that a start does, short of protecting.
    pub(super) fn open(tracked: &Tracked) -> Result<Self, DirtyError> {
        let spans: Vec<Span> = tracked.memory.regions().iter().map(Span::of).collect();
        let trial = || -> io::Result<Pagemap> {
            register(&spans)?;
            Pagemap::open()
        };
        let pagemap = trial().map_err(|error| unusable(&error))?;
        let drops_seen = sees_dropped_pages().map_err(|error| unusable(&error))?;
        if !drops_seen {
            tracing::info!("this kernel's scan misses dropped pages: comparing populated pages instead");
        }
        let discards = Discards::new(tracked, |region| region.backing() != Backing::Anonymous || !drops_seen);
        Ok(Self { memory: Arc::clone(&tracked.memory), spans, pagemap, discards, two_steps: tracked.kvm.is_some(), protection: None })
    }

    fn arm(&mut self, populated: &mut PageBitmap) -> io::Result<()> {
        // Memory can be registered on one descriptor at a time.
        self.protection = None;
        let protection = register(&self.spans)?;
        for (span, region) in self.spans.iter().zip(self.memory.regions()) {
            self.pagemap.arm(span.addresses.clone(), &mut |run| span.insert(&run, populated))?;
            if region.file().is_some() {
                // What is in the file need not be mapped here.
                region.populated_into(populated, Doubtful::Populated)?;
            }
        }
        self.discards.start()?;
        self.protection = Some(protection);
        Ok(())
    }

    fn take(&mut self, into: &mut PageBitmap) -> io::Result<()> {
        let Self { spans, pagemap, .. } = self;
        for span in spans {
            if !self.two_steps {
                pagemap.take(span.addresses.clone(), Query::WRITTEN, &mut |run| span.insert(&run, into))?;
                continue;
            }
            let mut stretches: Vec<Range<usize>> = Vec::new();
            pagemap.find(span.addresses.clone(), Query::WRITTEN, &mut |run| match stretches.last_mut() {
                // Runs may come twice, see `Pagemap::find`.
                Some(last) if run.start < last.end + NEAR => *last = last.start.min(run.start)..last.end.max(run.end),
                _ => stretches.push(run),
            })?;
            for stretch in stretches {
                pagemap.take(stretch, Query::WRITTEN, &mut |run| span.insert(&run, into))?;
            }
        }
        self.discards.harvest(into)
    }

    /// A scan that protects nothing leaves KVM's page tables alone, too.
    fn look(&mut self, into: &mut PageBitmap) -> io::Result<()> {
        self.spans.iter().try_for_each(|span| self.pagemap.find(span.addresses.clone(), Query::WRITTEN, &mut |run| span.insert(&run, into)))
    }
}

impl DirtyTracker for WriteProtect {
    fn kind(&self) -> TrackerKind {
        TrackerKind::WriteProtect
    }

    fn start(&mut self, populated: &mut PageBitmap) -> Result<(), DirtyError> {
        self.arm(populated).map_err(TrackerKind::WriteProtect.failed("arm"))
    }

    fn harvest(&mut self, into: &mut PageBitmap) -> Result<(), DirtyError> {
        self.take(into).map_err(TrackerKind::WriteProtect.failed("harvest"))
    }

    fn peek(&mut self, into: &mut PageBitmap) -> Result<(), DirtyError> {
        self.look(into).map_err(TrackerKind::WriteProtect.failed("peek"))
    }

    fn stop(&mut self) -> Result<(), DirtyError> {
        self.protection = None;
        Ok(())
    }

    /// Whoever writes all the same finds pages unprotected by the kernel, one by one.
    fn guest_left(&mut self) -> Result<(), DirtyError> {
        Ok(())
    }
}

fn register(spans: &[Span]) -> io::Result<WriteProtection> {
    let protection = WriteProtection::open()?;
    spans.iter().try_for_each(|span| protection.register(&span.addresses))?;
    Ok(protection)
}

/// Whether this kernel's scan reports pages that were dropped with `MADV_DONTNEED`: one small page, and a whole page
/// table's worth at once, which kernels before mid-2026 missed. Those cannot protect a page table that is not there
/// either: all of it is reported when it comes. That costs a round some pages and loses none.
pub(super) fn sees_dropped_pages() -> io::Result<bool> {
    const PAGES: u64 = 512;
    let layout = MemoryLayout::flat(PageCount(2 * PAGES)).expect("a small layout");
    let memory = GuestMemory::allocate(layout, Backing::Anonymous).map_err(io::Error::other)?;
    let span = Span::of(&memory.regions()[0]);
    let start = span.addresses.start.next_multiple_of(NEAR);
    let first = ((start - span.addresses.start) / PAGE_SIZE) as u64;
    let table = start..start + NEAR;
    for page in (first..first + PAGES).map(PageIndex) {
        memory.chunk(page.chunk()).store_word(page.bit(), 0, 1);
    }
    // Where huge pages are switched off, only small ones can be dropped.
    drop(collapse(&table));
    let protection = register(std::slice::from_ref(&span))?;
    let mut pagemap = Pagemap::open()?;
    pagemap.arm(span.addresses.clone(), &mut drop)?;
    let mut dropped = |count: u64| -> io::Result<u64> {
        memory.discard(PageIndex(first), PageCount(count)).map_err(io::Error::other)?;
        let mut seen = 0;
        pagemap.take(table.clone(), Query::WRITTEN, &mut |run| seen += (run.len() / PAGE_SIZE) as u64)?;
        Ok(seen)
    };
    let whole = dropped(PAGES)?;
    memory.chunk(PageIndex(first).chunk()).store_word(PageIndex(first).bit(), 0, 1);
    let one = dropped(1)?;
    drop(protection);
    Ok(whole == PAGES && one == 1)
}

pub(super) fn unusable(error: &io::Error) -> DirtyError {
    let advice = match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => " (needs CAP_SYS_PTRACE, vm.unprivileged_userfaultfd=1 or access to /dev/userfaultfd)",
        Some(libc::EINVAL | libc::ENOTTY | libc::ENOSYS) => " (needs Linux 6.7 with CONFIG_USERFAULTFD and CONFIG_PTE_MARKER_UFFD_WP)",
        _ => "",
    };
    TrackerKind::WriteProtect.unusable(format!("{error}{advice}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dirty::Marks;

    #[test]
    fn memory_that_a_guest_has_left_can_be_written_and_goes_before_the_tracker() {
        let memory = Arc::new(GuestMemory::allocate(MemoryLayout::flat(PageCount(512)).unwrap(), Backing::Anonymous).unwrap());
        let page = PageIndex(70);
        let write = |word| memory.chunk(page.chunk()).store_word(page.bit(), 0, word);
        write(1);
        let marks = Marks::new(memory.layout());
        let mut tracker = match WriteProtect::open(&Tracked { memory: Arc::clone(&memory), marks, marks_complete: false, kvm: None }) {
            Ok(tracker) => tracker,
            Err(error) => return eprintln!("skipped: {error}"),
        };
        tracker.start(&mut PageBitmap::new(memory.layout().chunks())).unwrap();
        tracker.guest_left().unwrap();
        write(2);
        assert_eq!(memory.chunk(page.chunk()).load_word(page.bit(), 0), 2);
        tracker.start(&mut PageBitmap::new(memory.layout().chunks())).unwrap();
        tracker.stop().unwrap();
        write(3);
        tracker.guest_left().unwrap();
        drop(memory);
        drop(tracker);
    }
}
