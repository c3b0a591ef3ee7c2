//! Guest memory: where it lies, how a page is copied out and placed.
//!
//! No reference ever points at memory a guest may be writing to: a page is copied out into a private buffer as by relaxed
//! atomic loads of its words, and everything else (zero test, hash, compression, checksum) works on that copy. Placing
//! ([`Placement`]) goes the same way back, or straight from a socket by the kernel. Pages that come for the first time, and
//! all while a guest runs, arrive in a private buffer ([`Staging`]), and the kernel puts them in their places whole.
#![expect(unsafe_code, reason = "raw access to mappings that a guest writes to")]

mod discard;
mod dump;
mod guest_memory;
mod layout;
#[cfg(feature = "userfaultfd")]
mod missing;
mod page;
mod page_copy;
mod placement;
mod populated;
mod populating;
mod sink;
mod staging;

pub use guest_memory::{Backing, GuestMemory, RawRegion, Region};
pub use layout::{LayoutError, MAX_REGIONS, MemoryLayout, RegionSpec};
pub use page::{Chunk, PageSummary};
pub use placement::Placement;
pub(crate) use populating::HostSupply;
pub use sink::{PageSink, ReadProgress};
pub use staging::Staging;

use crate::units::{ByteCount, GuestAddr};

/// Why guest memory could not be made or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MemoryError {
    /// The layout itself is not valid.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The host would not give the mapping.
    #[error("cannot map {bytes} at guest address {start} ({backing}{})", backing.remedy())]
    Map {
        /// First guest address of the region.
        start: GuestAddr,
        /// Its size.
        bytes: ByteCount,
        /// What kind of memory was asked for.
        backing: Backing,
        /// The kernel's answer.
        #[source]
        source: std::io::Error,
    },
    /// The host could not say which pages are populated.
    #[error("cannot find the populated pages of guest memory")]
    Populated(#[source] std::io::Error),
    /// The image could not be written.
    #[error("cannot write the memory image")]
    Dump(#[source] std::io::Error),
    /// Pages could not be given back to the host.
    #[error("cannot discard pages of guest memory")]
    Discard(#[source] std::io::Error),
}
