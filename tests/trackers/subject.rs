//! What the suite is run on: a tracker, memory for it, and someone whose writes it sees.

use std::fmt;
use std::io::Write as _;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::sys::mman::{MmapAdvise, madvise};
use pageferry::bitmap::PageBitmap;
use pageferry::dirty::probe::probe;
use pageferry::dirty::{self, Choice, DirtyTracker, Tracked, TrackerKind};
use pageferry::memory::{Backing, GuestMemory, MemoryLayout, Region};
use pageferry::units::{PageCount, PageIndex};

#[cfg(feature = "kvm")]
use crate::vcpu::Machine;

/// Who writes.
pub(crate) enum Writer {
    /// Threads of this process, by plain stores.
    Host,
    /// Threads of this process, which mark what they wrote.
    Marking,
    /// A vCPU.
    #[cfg(feature = "kvm")]
    Guest(Box<Machine>),
}

/// Soft-dirty bits are the process's: tests of it take turns.
static SOFT_DIRTY: Mutex<()> = Mutex::new(());

/// A tracker under test.
pub(crate) struct Subject {
    pub(crate) tracker: Box<dyn DirtyTracker>,
    pub(crate) tracked: Tracked,
    pub(crate) memory: Arc<GuestMemory>,
    pub(crate) writer: Writer,
    /// Reports no page that was not written.
    exact: bool,
    name: String,
    _turn: Option<MutexGuard<'static, ()>>,
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// Says on the real stderr, which the test harness does not swallow, that something was not tested.
pub(crate) fn skipped(what: &str, why: &dyn fmt::Display) {
    writeln!(std::io::stderr(), "skipped: {what}: {why}").expect("stderr is there");
}

/// Runs `property` on each tracker that can be used here on memory of `backing`, and says which cannot.
pub(crate) fn each_tracker(layout: &MemoryLayout, backing: Backing, property: impl Fn(&mut Subject)) {
    let hosts = [TrackerKind::WriteProtect, TrackerKind::SoftDirty, TrackerKind::Marked].map(|kind| (kind, false));
    for (kind, guest) in hosts.into_iter().chain([TrackerKind::KvmLog, TrackerKind::WriteProtect].map(|kind| (kind, true))) {
        let name = format!("{kind} ({}, {backing})", if guest { "guest writes" } else { "host writes" });
        match subject(layout, backing, kind, guest, name.clone()) {
            Ok(mut subject) => property(&mut subject),
            Err(error) => skipped(&name, &error),
        }
    }
}

fn subject(layout: &MemoryLayout, backing: Backing, kind: TrackerKind, guest: bool, name: String) -> Result<Subject, Box<dyn std::error::Error>> {
    let turn = (kind == TrackerKind::SoftDirty).then(|| SOFT_DIRTY.lock().unwrap_or_else(PoisonError::into_inner));
    let memory = Arc::new(GuestMemory::allocate(layout.clone(), backing)?);
    // Where huge pages are always used, a write would populate 512 pages.
    memory.regions().iter().for_each(|region| advise(region, MmapAdvise::MADV_NOHUGEPAGE));
    let mut tracked = Tracked { marks_complete: kind == TrackerKind::Marked, ..Tracked::plain(Arc::clone(&memory)) };
    let writer = if guest { guest_writer(&mut tracked)? } else { host_writer(kind) };
    let tracker = dirty::open(Choice::Only(kind), &tracked)?;
    // A kernel that misses dropped pages cannot protect a page table that is not there either; all of it is reported.
    let exact = kind != TrackerKind::WriteProtect || probe().list.iter().any(|found| found.name == "dropped pages are seen" && found.usable);
    Ok(Subject { tracker, tracked, memory, writer, exact, name, _turn: turn })
}

/// Says what pages to use for a region. Kernels without huge pages refuse the advice, which is fine.
pub(crate) fn advise(region: &Region, advice: MmapAdvise) {
    // SAFETY: the advice leaves the contents as they are.
    let _ = unsafe { madvise(region.host().cast(), region.len(), advice) };
}

fn host_writer(kind: TrackerKind) -> Writer {
    if kind == TrackerKind::Marked { Writer::Marking } else { Writer::Host }
}

#[cfg(feature = "kvm")]
fn guest_writer(tracked: &mut Tracked) -> Result<Writer, Box<dyn std::error::Error>> {
    let (machine, slots) = Machine::new(&tracked.memory)?;
    tracked.kvm = Some(slots);
    Ok(Writer::Guest(Box::new(machine)))
}

#[cfg(not(feature = "kvm"))]
fn guest_writer(_tracked: &mut Tracked) -> Result<Writer, Box<dyn std::error::Error>> {
    Err("built without the feature `kvm`".into())
}

impl Subject {
    /// The writer stores `value` into the first word of `page`.
    pub(crate) fn write(&mut self, page: PageIndex, value: u64) {
        match &mut self.writer {
            Writer::Host => self.memory.chunk(page.chunk()).store_word(page.bit(), 0, value),
            Writer::Marking => {
                self.memory.chunk(page.chunk()).store_word(page.bit(), 0, value);
                self.tracked.marks.mark_pages(page, PageCount(1));
            }
            #[cfg(feature = "kvm")]
            Writer::Guest(machine) => machine.store(self.memory.layout().address_of(page), value),
        }
    }

    /// Whether the mechanism sees what host threads and the kernel write, without marks.
    pub(crate) fn sees_the_host(&self) -> bool {
        matches!(self.tracker.kind(), TrackerKind::WriteProtect | TrackerKind::SoftDirty)
    }

    /// Gives pages back to the host; the VMM marks that only if it has to mark everything.
    pub(crate) fn discard(&self, first: PageIndex, count: PageCount) {
        match self.writer {
            Writer::Marking => self.tracked.marks.discard(&self.memory, first, count).unwrap(),
            _ => self.memory.discard(first, count).unwrap(),
        }
    }

    /// Starts tracking, and says what is populated.
    pub(crate) fn start(&mut self) -> PageBitmap {
        let mut populated = PageBitmap::new(self.memory.layout().chunks());
        self.tracker.start(&mut populated).unwrap();
        populated
    }

    /// A harvest on its own.
    pub(crate) fn harvest(&mut self) -> PageBitmap {
        let mut reported = PageBitmap::new(self.memory.layout().chunks());
        self.tracker.harvest(&mut reported).unwrap();
        self.check_pages_are_real(&reported);
        reported
    }

    /// A peek on its own.
    pub(crate) fn peek(&mut self) -> PageBitmap {
        let mut shown = PageBitmap::new(self.memory.layout().chunks());
        self.tracker.peek(&mut shown).unwrap();
        self.check_pages_are_real(&shown);
        shown
    }

    fn check_pages_are_real(&self, bitmap: &PageBitmap) {
        let layout = self.memory.layout();
        for (chunk, word) in bitmap.occupied() {
            assert_eq!(word & !layout.valid_mask(chunk), 0, "{self}: bits past the end of {chunk:?}");
        }
    }

    /// Harvests, and checks that it reports `pages` (in order) and nothing else.
    #[track_caller]
    pub(crate) fn expect_harvest(&mut self, pages: &[u64], why: &str) {
        let reported = self.harvest();
        self.check(&reported, pages, why);
    }

    /// Peeks, and checks that this shows `pages` (in order) and nothing else.
    #[track_caller]
    pub(crate) fn expect_peek(&mut self, pages: &[u64], why: &str) {
        let shown = self.peek();
        self.check(&shown, pages, why);
    }

    #[track_caller]
    fn check(&self, reported: &PageBitmap, pages: &[u64], why: &str) {
        let missing: Vec<&u64> = pages.iter().filter(|&&page| !reported.contains(PageIndex(page))).collect();
        assert!(missing.is_empty(), "{self}: {why}: {missing:?} were not reported");
        let more = reported.count().0 - pages.len() as u64;
        assert!(more == 0 || !self.exact, "{self}: {why}: {more} more pages were reported");
    }

    /// Checks what was populated at the start: `pages`, and not many others.
    #[track_caller]
    pub(crate) fn expect_populated(&self, populated: &PageBitmap, mut pages: Range<u64>, others: u64) {
        let expected = pages.end - pages.start;
        assert!(pages.all(|page| populated.contains(PageIndex(page))), "{self}: populated pages are missing");
        assert!(populated.count().0 <= expected + others || !self.exact, "{self}: holes are not populated");
    }
}
