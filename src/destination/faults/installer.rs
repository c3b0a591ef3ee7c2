//! Puts pages in place that come on one lane.
//!
//! Pages that someone waits for go first. The rest follows in small steps, between which the gate is open: reading
//! events waits for no more than one of them.

use std::sync::Arc;
use std::time::Duration;

use super::gather::HugePage;
use super::incomplete::{Incomplete, Use};
use super::places::{Granule, Place, run_mask};
use crate::destination::MissingError;
use crate::memory::Staging;
use crate::sys::missing_pages::NotFilled;
use crate::units::{ChunkIndex, PAGE_SIZE, PageCount};
use crate::wire::Lane;

/// What puts pages in place that come on one lane, in their order.
#[derive(Debug)]
pub(crate) struct Installer {
    pub(super) incomplete: Arc<Incomplete>,
    pub(super) lane: Lane,
    /// The huge page of which some chunks have come.
    pub(super) gathering: Option<HugePage>,
    /// Of the huge page before, to use again.
    pub(super) buffer: Box<[u8]>,
}

impl Installer {
    pub(super) fn new(incomplete: Arc<Incomplete>, lane: Lane) -> Self {
        Self { incomplete, lane, gathering: None, buffer: Box::default() }
    }

    /// Puts the pages that `staging` holds in place, and wakes who waits for them. Returns how many pages are missing still.
    ///
    /// Pages of a huge page are kept until all of it has come; if it never does they count as not having come.
    ///
    /// # Errors
    /// When one of the pages is not missing, or came before; or when the host fails. Pages that are not in place then
    /// count as not having come.
    ///
    /// # Panics
    /// When `staging` was never used.
    pub(crate) fn install(&mut self, staging: &Staging) -> Result<PageCount, MissingError> {
        let chunk = staging.chunk().expect("a frame has come");
        let (zero, filled) = (staging.zeros(), staging.held());
        self.incomplete.sets.take(chunk, zero | filled)?;
        let incomplete = Arc::clone(&self.incomplete);
        let place = incomplete.places.place(chunk);
        match place.granule {
            Granule::HugePage => self.gather(place, chunk, staging)?,
            Granule::Page | Granule::FilePage => {
                self.install_pages(place, chunk, staging).map_err(|(left, error)| {
                    incomplete.sets.give_back(chunk, left);
                    error
                })?;
            }
        }
        Ok(incomplete.outstanding())
    }

    /// Puts pages in place that were taken, those first that somebody waits for. An error says which of them are left.
    fn install_pages(&self, place: &Place, chunk: ChunkIndex, staging: &Staging) -> Result<(), (u64, MissingError)> {
        let (zero, filled) = (staging.zeros(), staging.held());
        let mut left = zero | filled;
        let mut patience = Patience::default();
        while left != 0 {
            let gate = self.incomplete.kernel(self.lane);
            let kernel = gate.as_ref().expect("pages are missing");
            // Under the gate: what is not marked now is not removed before it is filled.
            let removed = left & self.incomplete.sets.removed(chunk);
            if removed != 0 {
                self.incomplete.settle(chunk, removed, self.lane, Use::Dropped);
                left &= !removed;
                continue;
            }
            let asked = left & self.incomplete.sets.asked(chunk);
            let next = if asked != 0 { asked } else { left };
            let first = next.trailing_zeros();
            let alike = if zero >> first & 1 == 1 { zero } else { filled } & next;
            let count = (alike >> first).trailing_ones().min(STEP_PAGES);
            let range = place.range(chunk.page(first), u64::from(count));
            let done = if alike & zero != 0 { kernel.zero(&range) } else { kernel.copy(range.start, staging.pages(first, count)) };
            match done {
                Ok(bytes) => {
                    let done = run_mask(first, u32::try_from(bytes / PAGE_SIZE).expect("at most a step"));
                    self.incomplete.settle(chunk, done, self.lane, Use::Installed);
                    left &= !done;
                    patience = Patience::default();
                }
                Err(NotFilled::Present) => {
                    // Somebody wrote to the file behind the memory. Who waits can go on with that.
                    let page = run_mask(first, 1);
                    self.incomplete.wake_waiters(Some(kernel), chunk, page);
                    self.incomplete.settle(chunk, page, self.lane, Use::Installed);
                    left &= !page;
                }
                Err(refused) => {
                    drop(gate);
                    patience.after(refused).map_err(|source| {
                        let (page, outstanding) = (chunk.page(first).0, self.incomplete.outstanding());
                        (left, MissingError::Install { page, outstanding, source })
                    })?;
                }
            }
        }
        Ok(())
    }
}

/// How long to go on trying.
#[derive(Debug, Default)]
pub(super) struct Patience {
    waited: Duration,
    wait: Duration,
}

impl Patience {
    /// Waits before another attempt, unless that is pointless. Not with the gate in hand: what is waited for is that
    /// events are read, or that the host finds memory.
    pub(super) fn after(&mut self, refused: NotFilled) -> std::io::Result<()> {
        if let NotFilled::Failed(error) = refused {
            let hopeful = matches!(error.raw_os_error(), Some(libc::ENOMEM | libc::EINTR));
            if !hopeful || self.waited > OUT_OF_MEMORY_FOR {
                return Err(error);
            }
        }
        self.wait = (self.wait * 2).clamp(SHORTEST_WAIT, LONGEST_WAIT);
        self.waited += self.wait;
        std::thread::sleep(self.wait);
        Ok(())
    }
}

/// Pages filled in one step: about 30 us.
const STEP_PAGES: u32 = 16;
const SHORTEST_WAIT: Duration = Duration::from_micros(20);
const LONGEST_WAIT: Duration = Duration::from_millis(5);
/// How long the host may have no memory for a page.
const OUT_OF_MEMORY_FOR: Duration = Duration::from_secs(10);
