//! Why missing pages could not be brought in.

use std::io;

use crate::units::PageCount;

/// Why a guest cannot run on memory of which pages are missing, or a page that came was not taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MissingError {
    /// The host has no userfaultfd, or not for this kind of memory, or not for us.
    #[error("this host cannot have pages of the guest's memory brought in while it runs")]
    Unusable(#[source] io::Error),
    /// Pages that were to be missing could not be given back to the host.
    #[error(transparent)]
    Discard(#[from] crate::memory::MemoryError),
    /// Huge pages are missing whole or not at all; the peer said something else.
    #[error("page {page} is missing, but not all of its huge page")]
    PartOfHugePage {
        /// The first page of which that is so.
        page: u64,
    },
    /// The peer sent pages beyond the guest's memory.
    #[error("pages of chunk {chunk} came, which is not one of the guest's")]
    Outside {
        /// Which chunk.
        chunk: u32,
    },
    /// The peer sent a page that this end never lacked.
    #[error("page {page} came but was not missing")]
    NotMissing {
        /// Which page.
        page: u64,
    },
    /// The peer sent a page again.
    #[error("page {page} came twice")]
    Twice {
        /// Which page.
        page: u64,
    },
    /// The peer sent pages of one huge page before the one before was whole.
    #[error("pages of chunk {chunk} came on a lane that has not brought all of the huge page at chunk {incomplete}")]
    Interleaved {
        /// What came.
        chunk: u32,
        /// Where the huge page begins that is not whole.
        incomplete: u32,
    },
    /// The host would not put a page in place.
    #[error("page {page} could not be put in place, {outstanding} being missing")]
    Install {
        /// Which page.
        page: u64,
        /// How many are missing.
        outstanding: PageCount,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A thread could not be started, or the like.
    #[error("the system would not {action}")]
    System {
        /// What was tried.
        action: &'static str,
        /// Its answer.
        #[source]
        source: io::Error,
    },
}
