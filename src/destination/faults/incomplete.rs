//! A guest memory of which pages are missing.

use std::io::{self, PipeWriter, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use super::installer::Installer;
use super::lane::UrgentLane;
use super::places::{Granule, HUGE_BYTES, Places, for_each_word};
use super::server::FaultServer;
use super::sets::Sets;
use super::waiting::{FaultStats, Waiting};
use crate::bitmap::PageBitmap;
use crate::destination::MissingError;
use crate::memory::GuestMemory;
use crate::sys::gate::{Closed, Gate, Open, SLOTS};
use crate::sys::inheriting;
use crate::sys::missing_pages::{MissingPages, NotFilled};
use crate::transport::Stream;
use crate::units::{ChunkIndex, PageCount, PageIndex};
use crate::wire::Lane;

/// The memory of a guest that runs, or is about to, before all of its pages are here.
///
/// Dropping it, with whatever is missing, leaves those who wait for pages waiting: only [`Incomplete::finish`] lets go
/// of the memory.
#[derive(Debug)]
pub(crate) struct Incomplete {
    memory: Arc<GuestMemory>,
    pub(super) places: Places,
    pub(super) sets: Sets,
    /// The gate: see the module's head. Empty once nothing is missing.
    kernel: Gate<Option<Arc<MissingPages>>>,
    pub(super) lane: UrgentLane,
    waiting: inheriting::Shared<Waiting>,
    counts: Counts,
    /// To fill a huge page with, where there are any.
    zeros: Option<Box<[u8]>>,
    server: Mutex<Option<Serving>>,
}

#[derive(Debug, Default)]
struct Counts {
    urgent: AtomicU64,
    bulk: AtomicU64,
    dropped: AtomicU64,
    zeros: AtomicU64,
}

/// The fault server's thread, and what wakes it; dropping that ends it.
#[derive(Debug)]
struct Serving {
    wake: PipeWriter,
    thread: JoinHandle<()>,
}

impl Incomplete {
    /// Whether pages of `memory` can be brought in while a guest runs on it, and how many the host fills at once: 1, or
    /// 512 where there are huge pages.
    ///
    /// # Errors
    /// When they cannot.
    pub(crate) fn probe(memory: &GuestMemory) -> Result<PageCount, MissingError> {
        let kernel = memory.open_missing().map_err(MissingError::Unusable)?;
        let registered = memory.register_missing(&kernel);
        // Nothing runs on the memory yet.
        kernel.close();
        registered.map_err(MissingError::Unusable)?;
        Ok(Places::of(memory).granule_pages())
    }

    /// Empties pages of `memory`, on which nothing must run yet, that will be missing in any case: [`Incomplete::begin`] need
    /// not do it then. Nothing may touch them until it has begun.
    ///
    /// # Errors
    /// When the host refuses, or the set makes no sense. The memory is of no use then.
    pub(crate) fn empty_ahead(memory: &GuestMemory, pages: &PageBitmap) -> Result<(), MissingError> {
        Places::of(memory).check_granules(pages)?;
        // A huge page put together afterwards would fill them with zeros.
        memory.forbid_huge_pages();
        Ok(memory.discard_all(pages)?)
    }

    /// Empties the `missing` pages of `memory`, on which nothing must run yet, but for those that are `empty` already, and
    /// serves their faults from now on.
    ///
    /// # Errors
    /// When the host refuses, or the set makes no sense. The memory is of no use then.
    ///
    /// # Panics
    /// When the sets are not of the memory's layout.
    pub(crate) fn begin(memory: Arc<GuestMemory>, missing: &PageBitmap, empty: Option<&PageBitmap>) -> Result<Arc<Self>, MissingError> {
        assert_eq!(memory.layout().chunks(), missing.chunks(), "a set of this memory's pages");
        let places = Places::of(&memory);
        places.check_granules(missing)?;
        // A huge page put together between discarding and registering would fill missing pages with zeros.
        memory.forbid_huge_pages();
        let mut full = missing.clone();
        empty.into_iter().for_each(|empty| full.subtract(empty));
        memory.discard_all(&full)?;
        let kernel = memory.open_missing().map_err(MissingError::Unusable)?;
        if let Err(error) = memory.register_missing(&kernel) {
            // Nothing runs on the memory yet.
            kernel.close();
            return Err(MissingError::Unusable(error));
        }
        let huge = places.iter().any(|place| place.granule == Granule::HugePage);
        let incomplete = Arc::new(Self {
            sets: Sets::new(missing),
            places,
            kernel: Gate::new(Some(Arc::new(kernel))),
            lane: UrgentLane::new(),
            waiting: inheriting::Shared::new(Waiting::new()),
            counts: Counts::default(),
            zeros: huge.then(|| vec![0; HUGE_BYTES].into_boxed_slice()),
            server: Mutex::new(None),
            memory,
        });
        incomplete.serve().map_err(|source| MissingError::System { action: "start a thread", source })?;
        Ok(incomplete)
    }

    fn serve(self: &Arc<Self>) -> io::Result<()> {
        let (woken, wake) = io::pipe()?;
        let kernel = Arc::clone(self.close_gate().as_ref().expect("just registered"));
        let server = FaultServer::new(Arc::clone(self), kernel, woken);
        let thread = std::thread::Builder::new().name("pf-faults".into()).spawn(move || server.run())?;
        *self.server.lock().unwrap_or_else(PoisonError::into_inner) = Some(Serving { wake, thread });
        Ok(())
    }

    /// The memory.
    #[cfg(test)]
    pub(super) fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    /// What puts pages in place that come on one lane.
    pub(crate) fn installer(self: &Arc<Self>, lane: Lane) -> Installer {
        Installer::new(Arc::clone(self), lane)
    }

    /// Asks on this stream from now on, at first for all that is waited for.
    pub(crate) fn connect(&self, stream: Stream) {
        let wanted = self.sets.chunks().flat_map(|chunk| {
            let wanted = self.sets.wanted(chunk);
            (0..64).filter(move |bit| wanted >> bit & 1 == 1).map(move |bit| chunk.page(bit))
        });
        self.lane.connect(stream, wanted);
        self.wake_server();
    }

    /// Asks nobody from now on; those who wait go on waiting.
    pub(crate) fn disconnect(&self) {
        self.lane.disconnect();
    }

    /// Pages that were missing at the beginning.
    pub(crate) fn missing(&self) -> PageCount {
        self.sets.total()
    }

    /// Pages that are missing still.
    pub(crate) fn outstanding(&self) -> PageCount {
        self.sets.outstanding()
    }

    /// The pages of the missing set that need not be sent (any more). Those that were given back to the host count as
    /// arrived from then on. For while no installer has pages in hand, between two generations of lanes.
    pub(crate) fn arrived(&self) -> PageBitmap {
        self.sets.settle_removed()
    }

    /// Told by a VMM that it has given pages back to the host in a way that the kernel does not tell of: by punching holes
    /// into a file. To be called before the guest may use the pages again; what arrived in between is discarded again.
    ///
    /// # Errors
    /// When the kernel refuses.
    ///
    /// # Panics
    /// When the pages are not of the layout.
    pub(crate) fn discarded(&self, first: PageIndex, count: PageCount) -> Result<(), MissingError> {
        let mut again = PageBitmap::new(self.memory.layout().chunks());
        {
            let gate = self.close_gate();
            if gate.is_none() {
                return Ok(());
            }
            for_each_word(first, count.0, |chunk, mask| {
                self.sets.remove(chunk, mask);
                again.insert_word(chunk, mask & self.sets.missing(chunk) & self.sets.arrived(chunk));
            });
            for_each_word(first, count.0, |chunk, mask| self.wake_waiters(gate.as_deref(), chunk, mask));
        }
        // With the gate open: the fault server is told of these and has to read that.
        self.memory.discard_all(&again)?;
        Ok(())
    }

    /// Lets go of the memory, of which no page is missing any more, and says what it took.
    ///
    /// # Panics
    /// When pages are missing.
    pub(crate) fn finish(&self) -> FaultStats {
        assert_eq!(self.outstanding(), PageCount(0), "whoever waits for a page would be handed zeros");
        self.let_go();
        self.stats()
    }

    /// Lets go of the memory of a guest that never ran on it and never will.
    pub(crate) fn abandon(&self) {
        self.let_go();
    }

    fn let_go(&self) {
        if let Some(Serving { wake, thread }) = self.server.lock().unwrap_or_else(PoisonError::into_inner).take() {
            drop(wake);
            // A panic there was reported by the panic hook.
            let _ = thread.join();
        }
        if let Some(kernel) = self.close_gate().take() {
            for place in self.places.iter() {
                if let Err(error) = kernel.unregister(&place.mapping) {
                    tracing::debug!(%error, "memory was not registered any more");
                }
            }
            match Arc::try_unwrap(kernel) {
                Ok(kernel) => kernel.close(),
                Err(_) => tracing::warn!("the descriptor for missing pages stays open"),
            }
            self.memory.restore_huge_pages();
        }
    }

    /// What has been waited so far.
    pub(crate) fn stats(&self) -> FaultStats {
        // Relaxed: counters for display.
        let pages = |count: &AtomicU64| PageCount(count.load(Ordering::Relaxed));
        let Counts { urgent, bulk, dropped, zeros } = &self.counts;
        let times = self.waiting().stats();
        FaultStats { urgent: pages(urgent), bulk: pages(bulk), dropped: pages(dropped), zeros: zeros.load(Ordering::Relaxed), ..times }
    }

    /// Has the server look at what it waits for.
    fn wake_server(&self) {
        if let Some(serving) = &mut *self.server.lock().unwrap_or_else(PoisonError::into_inner) {
            // Fails only when the server is gone, and does not wait: a pipe has room for more bytes than there are lanes.
            let _ = serving.wake.write(&[0]);
        }
    }

    /// The kernel's side, to fill pages through while no page is removed.
    pub(super) fn kernel(&self, lane: Lane) -> Open<'_, Option<Arc<MissingPages>>> {
        // Urgent pages wait for no bulk lane.
        self.kernel.open(match lane {
            Lane::Urgent => 0,
            Lane::Bulk(channel) => 1 + usize::from(channel) % (SLOTS - 1),
        })
    }

    /// The kernel's side, while no page is filled.
    pub(super) fn close_gate(&self) -> Closed<'_, Option<Arc<MissingPages>>> {
        self.kernel.close()
    }

    /// Held for as long as it takes to look through those who wait.
    pub(super) fn waiting(&self) -> inheriting::Held<'_, Waiting> {
        self.waiting.lock()
    }

    /// Notes that pages of `chunk` which were taken are in place, or of no use any more.
    pub(super) fn settle(&self, chunk: ChunkIndex, mask: u64, lane: Lane, use_of: Use) {
        let asked = self.sets.settle(chunk, mask);
        let pages = u64::from(mask.count_ones());
        // Relaxed: counters for display.
        match lane {
            Lane::Urgent => self.counts.urgent.fetch_add(pages, Ordering::Relaxed),
            Lane::Bulk(_) => self.counts.bulk.fetch_add(pages, Ordering::Relaxed),
        };
        if use_of == Use::Dropped {
            self.counts.dropped.fetch_add(pages, Ordering::Relaxed);
        } else if asked != 0 {
            self.waiting().end(chunk, asked, Instant::now());
        }
        self.sets.count(mask.count_ones());
    }

    /// Answers a fault on a page that does not have to come from the source.
    pub(super) fn fill_with_zeros(&self, kernel: &MissingPages, page: PageIndex) -> Result<(), NotFilled> {
        let place = self.places.place(page.chunk());
        let filled = match place.granule {
            Granule::HugePage => {
                let at = place.range(page, 1).start;
                kernel.copy(at, self.zeros.as_deref().expect("there are huge pages"))
            }
            Granule::Page | Granule::FilePage => kernel.zero(&place.range(page, 1)),
        };
        match filled {
            Ok(_) => {}
            // Filled meanwhile; whoever was not woken by that is now.
            Err(NotFilled::Present) => self.wake_waiters(Some(kernel), page.chunk(), 1 << page.bit()),
            Err(error) => return Err(error),
        }
        self.counts.zeros.fetch_add(1, Ordering::Relaxed);
        if self.sets.asked(page.chunk()) & 1 << page.bit() != 0 {
            self.waiting().end(page.chunk(), 1 << page.bit(), Instant::now());
        }
        Ok(())
    }

    /// Has those who wait for pages of `chunk` look again.
    pub(super) fn wake_waiters(&self, kernel: Option<&MissingPages>, chunk: ChunkIndex, mask: u64) {
        if mask == 0 {
            return;
        }
        let place = self.places.place(chunk);
        let range = match place.granule {
            Granule::HugePage => {
                let start = place.range(place.huge_page_of(chunk).page(0), 1).start;
                start..start + HUGE_BYTES
            }
            Granule::Page | Granule::FilePage => {
                let (first, past) = (mask.trailing_zeros(), 64 - mask.leading_zeros());
                place.range(chunk.page(first), u64::from(past - first))
            }
        };
        if let Some(Err(error)) = kernel.map(|kernel| kernel.wake(&range)) {
            tracing::debug!(%error, chunk = chunk.0, "nobody was woken");
        }
    }
}

/// Whether a page that came was of use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    /// It is in place.
    Installed,
    /// It was given back to the host before it came.
    Dropped,
}
