//! Tracking by the soft-dirty bits of the page tables.
//!
//! The oldest mechanism, for kernels without asynchronous write protection. Reading the bits and clearing them are two
//! steps between which a write is lost, so every writer must be paused for a harvest ([`DirtyTracker::needs_pause`]).
//! Clearing is process-wide and so is this tracker: one at a time.
//!
//! A page that is discarded loses its bit; discards are found by comparing the populated pages. Two kinds of memory
//! are refused. Huge pages of hugetlb have no soft-dirty bits and would read as clean for ever. Shared memory (memfd)
//! loses the bits of pages that are swapped out or whose mapping the kernel drops.
//!
//! <https://docs.kernel.org/admin-guide/mm/soft-dirty.html>

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::discards::Discards;
use super::span::Span;
use super::{DirtyError, DirtyTracker, Tracked, TrackerKind};
use crate::bitmap::PageBitmap;
use crate::memory::{Backing, GuestMemory, MemoryLayout};
use crate::sys::pagemap::{Pagemap, entry};
use crate::units::{ChunkIndex, PageCount};

/// The tracker.
pub(super) struct SoftDirty {
    memory: Arc<GuestMemory>,
    spans: Vec<Span>,
    pagemap: Pagemap,
    clear_refs: File,
    discards: Discards,
    _bits: Bits,
}

impl SoftDirty {
    /// Tries what a start does, short of clearing.
    pub(super) fn open(tracked: &Tracked) -> Result<Self, DirtyError> {
        if let Some(region) = tracked.memory.regions().iter().find(|region| region.backing() != Backing::Anonymous) {
            return Err(TrackerKind::SoftDirty.unusable(format!("it would lose writes to {} memory", region.backing())));
        }
        if !kernel_has_it().map_err(|error| TrackerKind::SoftDirty.unusable(error.to_string()))? {
            return Err(TrackerKind::SoftDirty.unusable("the kernel was built without CONFIG_MEM_SOFT_DIRTY"));
        }
        let open = || Ok((Pagemap::open()?, OpenOptions::new().write(true).open("/proc/self/clear_refs")?));
        let (pagemap, clear_refs) = open().map_err(|error: io::Error| TrackerKind::SoftDirty.unusable(error.to_string()))?;
        let bits =
            Bits::claim().ok_or_else(|| TrackerKind::SoftDirty.unusable("another tracker of this process uses the bits, which are process-wide"))?;
        let spans = tracked.memory.regions().iter().map(Span::of).collect();
        let memory = Arc::clone(&tracked.memory);
        Ok(Self { memory, spans, pagemap, clear_refs, discards: Discards::new(tracked, |_| true), _bits: bits })
    }

    fn clear(&self) -> io::Result<()> {
        self.clear_refs.write_all_at(b"4", 0)
    }

    fn arm(&mut self, populated: &mut PageBitmap) -> io::Result<()> {
        self.clear()?;
        self.memory.populated_into(populated)?;
        self.discards.start()
    }

    fn look(&mut self, into: &mut PageBitmap) -> io::Result<()> {
        self.spans.iter().try_for_each(|span| self.pagemap.soft_dirty_runs(span.addresses.clone(), &mut |run| span.insert(&run, into)))
    }

    fn take(&mut self, into: &mut PageBitmap) -> io::Result<()> {
        self.look(into)?;
        self.discards.harvest(into)?;
        self.clear()
    }
}

impl DirtyTracker for SoftDirty {
    fn kind(&self) -> TrackerKind {
        TrackerKind::SoftDirty
    }

    fn needs_pause(&self) -> bool {
        true
    }

    fn start(&mut self, populated: &mut PageBitmap) -> Result<(), DirtyError> {
        self.arm(populated).map_err(TrackerKind::SoftDirty.failed("arm"))
    }

    fn harvest(&mut self, into: &mut PageBitmap) -> Result<(), DirtyError> {
        self.take(into).map_err(TrackerKind::SoftDirty.failed("harvest"))
    }

    fn peek(&mut self, into: &mut PageBitmap) -> Result<(), DirtyError> {
        // Reading alone loses nothing, so nobody need be paused.
        self.look(into).map_err(TrackerKind::SoftDirty.failed("peek"))
    }

    fn stop(&mut self) -> Result<(), DirtyError> {
        Ok(())
    }
}

/// The right to clear this process's soft-dirty bits. A static, because the bits are the process's.
struct Bits;

static CLAIMED: AtomicBool = AtomicBool::new(false);

impl Bits {
    fn claim() -> Option<Self> {
        // Acquire and Release: what the last owner did to the bits comes before what the next one does.
        CLAIMED.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_ok().then_some(Self)
    }
}

impl Drop for Bits {
    fn drop(&mut self) {
        CLAIMED.store(false, Ordering::Release);
    }
}

/// Whether a page just written has its bit. (Clearing "succeeds" on kernels without the bits; it says nothing.)
pub(super) fn kernel_has_it() -> io::Result<bool> {
    let memory = GuestMemory::allocate(MemoryLayout::flat(PageCount(1)).expect("one page"), Backing::Anonymous).map_err(io::Error::other)?;
    memory.chunk(ChunkIndex(0)).store_word(0, 0, 1);
    let mut seen = false;
    Pagemap::open()?.entries(Span::of(&memory.regions()[0]).addresses, &mut |_, bits| seen = bits & entry::SOFT_DIRTY != 0)?;
    Ok(seen)
}
