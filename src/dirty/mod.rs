//! Which pages a guest has written to.
//!
//! # The life of a dirty bit
//! A bit has one owner at any time. The *tracker* holds it from the write on; [`DirtyTracker::harvest`] moves it into
//! the driver's *pending* set; a round takes the pending set and its bits are *in flight* until the destination has
//! them; at the handover they are *delivered*. A migration that ends without handing over stops the tracker, and the
//! next one begins with everything dirty, so no bit is lost on the way.
//!
//! [`DirtyTracker::peek`] moves nothing: it copies bits that stay with the tracker, for those who want to know early what
//! the next harvest will bring. Whoever holds a page back because of it keeps that page pending himself.
//!
//! # Order
//! A harvest re-arms what it reports before it returns, and pages are read only after that. A torn read is then
//! harmless: the racing write marks the page again.
//!
//! # Who is seen
//! No mechanism sees every writer. A tracker for a guest is therefore a union of one mechanism and the marks that the
//! VMM sets itself ([`Marks`]): host-side device emulation under KVM's log, DMA and pinned buffers everywhere, at the
//! completion of the write. Discarded pages (balloon, hole punching) turn into zeros and are reported like writes.
//!
//! | writer | write-protect | soft-dirty | kvm-log | marked |
//! |---|---|---|---|---|
//! | a vCPU | yes | yes | yes | no |
//! | a thread of this process | yes | yes | no | if it marks |
//! | `read(2)` into guest memory, vhost in the kernel | yes | yes | no | if it marks |
//! | another process through a shared memfd | no | no | no | if it marks |
//! | a pinned buffer (io_uring, O_DIRECT in flight), VFIO | no | no | no | if it marks |
//! | `MADV_DONTNEED` | yes | compared | compared | if it marks |
//! | holes punched into a memfd | compared | compared | compared | if it marks |
//!
//! *Compared*: seen by comparing the populated pages between two harvests.
#![forbid(unsafe_code)]

mod discards;
mod kvm_log;
mod marked;
mod open;
pub mod probe;
mod soft_dirty;
mod span;
mod union;
#[cfg(feature = "userfaultfd")]
mod write_protect;

use std::{fmt, io};

pub use marked::Marks;
pub use open::{Choice, KvmSlots, Tracked, open};

use crate::bitmap::PageBitmap;

/// Finds the pages written since the last harvest.
pub trait DirtyTracker: Send {
    /// Which mechanism this is.
    fn kind(&self) -> TrackerKind;

    /// Whether [`DirtyTracker::harvest`] loses writes unless every writer is paused during it.
    fn needs_pause(&self) -> bool {
        false
    }

    /// Begins tracking, and adds to `populated` each page that may hold something other than zeros. Every write that
    /// is not in there yet is reported by a later harvest. May report more.
    ///
    /// # Errors
    /// When the kernel refuses. Nothing is tracked then.
    fn start(&mut self, populated: &mut PageBitmap) -> Result<(), DirtyError>;

    /// Adds to `into` each page written (or discarded) since the last harvest, or since the start, and re-arms exactly
    /// those. Only bits of real pages are set.
    ///
    /// # Errors
    /// When the kernel refuses. What was written is not known any more then: the migration must end.
    fn harvest(&mut self, into: &mut PageBitmap) -> Result<(), DirtyError>;

    /// Adds to `into` pages known to have been written since the last harvest, or since the start, and leaves everything
    /// as it is: the next harvest reports them, and nothing is re-armed, so the guest does not pay for it. May miss some,
    /// discards above all; and a hole that is written and discarded again may be shown here and not be reported, being as
    /// it was. Needs no pause, whatever [`DirtyTracker::needs_pause`] says. Only bits of real pages are set.
    ///
    /// # Errors
    /// When the kernel refuses. Tracking goes on.
    fn peek(&mut self, into: &mut PageBitmap) -> Result<(), DirtyError>;

    /// Ends tracking and takes its cost off the guest. Called also after errors; idempotent.
    ///
    /// # Errors
    /// When the kernel refuses; tracking may still cost the guest then, but nothing depends on it.
    fn stop(&mut self) -> Result<(), DirtyError>;

    /// The guest has left, and nobody writes to its memory here any more. That is for those whose stop has to visit every
    /// page: they may leave it to the end of the memory, if that comes before their own.
    ///
    /// # Errors
    /// As for [`DirtyTracker::stop`], which it is if there is nothing to save.
    fn guest_left(&mut self) -> Result<(), DirtyError> {
        self.stop()
    }
}

/// The mechanisms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TrackerKind {
    /// userfaultfd asynchronous write protection, harvested with `PAGEMAP_SCAN`.
    WriteProtect,
    /// Soft-dirty bits of the page tables.
    SoftDirty,
    /// KVM's dirty log with manual protection.
    KvmLog,
    /// Only what the VMM marks itself.
    Marked,
}

impl TrackerKind {
    /// All of them, in order of preference for plain memory.
    pub const ALL: [Self; 4] = [Self::WriteProtect, Self::SoftDirty, Self::KvmLog, Self::Marked];

    /// The name in flags and reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::WriteProtect => "write-protect",
            Self::SoftDirty => "soft-dirty",
            Self::KvmLog => "kvm-log",
            Self::Marked => "marked",
        }
    }

    /// This one cannot be used because of `why`.
    fn unusable(self, why: impl Into<String>) -> DirtyError {
        DirtyError::Unusable { kind: self, why: why.into() }
    }

    /// Makes the error of this one having failed to do `action`.
    fn failed(self, action: &'static str) -> impl Fn(io::Error) -> DirtyError {
        move |source| DirtyError::Kernel { kind: self, action, source }
    }
}

impl fmt::Display for TrackerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why dirty pages cannot be tracked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DirtyError {
    /// This tracker cannot be used for this memory or guest, or on this host.
    #[error("the {kind} tracker is not usable: {why}")]
    Unusable {
        /// Which one.
        kind: TrackerKind,
        /// What is missing, and what to do about it where something can be done.
        why: String,
    },
    /// Of the trackers that could be chosen from, none can be used.
    #[error("no tracker is usable here: {}", list(tried))]
    NoneUsable {
        /// Each one, and why not.
        tried: Vec<DirtyError>,
    },
    /// The kernel refused in the middle.
    #[error("the {kind} tracker failed to {action}")]
    Kernel {
        /// Which one.
        kind: TrackerKind,
        /// What it was doing: "arm", "harvest", "peek".
        action: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

fn list(errors: &[DirtyError]) -> String {
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}
