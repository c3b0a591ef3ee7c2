//! Who may come in, and what becomes of those who do: the embedder's part.

use std::sync::Arc;
use std::time::Duration;

use super::MissingError;
use super::faults::Incomplete;
use crate::error::Error;
use crate::guest::Guest;
use crate::memory::{Backing, GuestMemory};
use crate::stats::Report;
use crate::units::{PageCount, PageIndex};
use crate::wire::{Offer, RefuseReason};

/// Decides on offers and builds the guests for those it takes.
pub trait GuestFactory: Send + Sync {
    /// Builds a guest that fits `offer`, with empty memory and not running, or says why not. The memory the offer asks
    /// for has been reserved by then. The offer's words come from the peer: trust nothing in them.
    ///
    /// # Errors
    /// The refusal, which is passed on to the source.
    fn admit(&self, offer: &Offer) -> Result<Box<dyn Arrival>, Refusal>;

    /// What the memory of the guest that [`GuestFactory::admit`] would build for `offer` is made of, so that it is
    /// reserved from the right place: small pages of the host's, or its pool of huge ones.
    fn backing(&self, _offer: &Offer) -> Backing {
        Backing::Anonymous
    }

    /// An offer was refused, by [`GuestFactory::admit`] or before it came to that: for the records.
    fn refused(&self, _offer: &Offer, _refusal: &Refusal) {}

    /// In post-copy the connection broke and the source of this guest has not come back for
    /// [`Timeouts::recover`](crate::protocol::Timeouts::recover). The guest goes on waiting where it needs one of the `left`
    /// pages, which may be in the middle of [`Guest::resume`], and the source may still come.
    fn waits(&self, _offer: &Offer, _left: PageCount) {}

    /// In post-copy the source of this guest is there, and has brought none of the `left` pages for as long as `quiet`: told
    /// each time that [`Timeouts::recover`](crate::protocol::Timeouts::recover) has passed again. The guest waits where it
    /// needs one of them, and lives here: nothing is ended.
    fn starves(&self, _offer: &Offer, _quiet: Duration, _left: PageCount) {}

    /// A connection came to nothing before it belonged to a session, as when one end does not trust the other: for the
    /// records. Anyone can cause that, so it is not told of each when there are many.
    fn turned_away(&self, _peer: &str, _error: &Error) {}

    /// Since the last time there were so many more of which it was not told.
    fn passed_over(&self, _connections: u64) {}
}

/// A guest that is coming in.
pub trait Arrival: Send {
    /// Where its memory goes: all zeros, nothing running on it. Until it is [placed](Arrival::placed), or
    /// [followed](Arrival::follows), or all has [ended](Arrival::ended), memory that was
    /// [allocated](GuestMemory::allocate) here is not to be touched: a thread that touches a page that has not come may have
    /// to wait until then, and a system call that does may fail with EFAULT.
    fn memory(&self) -> Arc<GuestMemory>;

    /// The guest, to load its state into and to resume.
    fn guest(&mut self) -> &mut dyn Guest;

    /// In post-copy, before the guest is resumed: `missing` knows which of its pages are still to come. A VMM that gives
    /// pages back to the host in ways that the kernel does not tell of has to tell it.
    fn follows(&mut self, _missing: MissingMemory) {}

    /// All memory is in place. While the guest is [`Placed::Paused`] the time of this is downtime.
    ///
    /// # Errors
    /// Before the guest runs an error ends the migration, and the guest runs on at the source.
    fn placed(&mut self, _placed: Placed) -> std::io::Result<()> {
        Ok(())
    }

    /// The session is over. With [`Ending::Completed`] the guest is this end's to keep.
    fn ended(self: Box<Self>, ending: Ending);
}

/// The memory of a guest that runs before all of it is here.
#[derive(Clone, Debug)]
pub struct MissingMemory {
    incomplete: Arc<Incomplete>,
}

impl MissingMemory {
    pub(super) fn new(incomplete: Arc<Incomplete>) -> Self {
        Self { incomplete }
    }

    /// Pages that are still to come.
    #[must_use]
    pub fn left(&self) -> PageCount {
        self.incomplete.outstanding()
    }

    /// Pages from `first` on were given back to the host by punching holes into the file behind them (a balloon on shared
    /// memory): they are zeros, and what the source has of them must not come back. To be called before the guest may use
    /// them again. `madvise` needs no telling.
    ///
    /// # Errors
    /// When the kernel refuses.
    ///
    /// # Panics
    /// When the pages are not of the guest's layout.
    pub fn discarded(&self, first: PageIndex, count: PageCount) -> Result<(), MissingError> {
        self.incomplete.discarded(first, count)
    }
}

/// What a guest is doing when the last of its memory is in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placed {
    /// It has not run here yet.
    Paused,
    /// It was resumed before: in post-copy its memory follows.
    Running,
}

/// How a session ended for the destination.
#[derive(Debug)]
pub enum Ending {
    /// The guest runs here.
    Completed {
        /// What happened.
        report: Report,
    },
    /// It does not, and never did.
    Dropped {
        /// Why.
        error: Error,
        /// What happened up to there.
        report: Report,
    },
}

/// A no, with its reason.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct Refusal {
    /// The kind of reason.
    pub reason: RefuseReason,
    /// In words, for the person at the source.
    pub detail: String,
}

impl Refusal {
    /// A refusal in words.
    pub fn new(reason: RefuseReason, detail: impl Into<String>) -> Self {
        Self { reason, detail: detail.into() }
    }
}
