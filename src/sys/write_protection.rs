//! userfaultfd in its asynchronous write-protect mode (Linux 6.7).
//!
//! Registered memory can be write-protected by a page map scan; the first write to a protected page lifts the
//! protection of that page inside the kernel, without an event and without a handler. Closing the descriptor lifts all
//! of it, so it has to live as long as tracking does.
//!
//! The descriptor is opened for faults of kernel mode too: `read(2)` into guest memory and KVM itself write from there.
//!
//! <https://docs.kernel.org/admin-guide/mm/userfaultfd.html>

use std::io;
use std::ops::Range;

use userfaultfd::{Error, FeatureFlags, RegisterMode, Uffd, UffdBuilder};

/// Features newer than the crate's list: shared and huge pages, pages that are not there yet, no events.
const WP_HUGETLBFS_SHMEM: u64 = 1 << 12;
const WP_UNPOPULATED: u64 = 1 << 13;
const WP_ASYNC: u64 = 1 << 15;

/// An open descriptor, with the memory registered on it.
#[derive(Debug)]
pub(crate) struct WriteProtection {
    uffd: Uffd,
}

impl WriteProtection {
    /// Opens a descriptor on which nothing is registered yet.
    pub(crate) fn open() -> io::Result<Self> {
        let features = FeatureFlags::PAGEFAULT_FLAG_WP | FeatureFlags::from_bits_retain(WP_HUGETLBFS_SHMEM | WP_UNPOPULATED | WP_ASYNC);
        let uffd = UffdBuilder::new().close_on_exec(true).non_blocking(true).user_mode_only(false).require_features(features).create();
        Ok(Self { uffd: uffd.map_err(into_io)? })
    }

    /// Registers the mapping at `range`. Nothing is protected yet.
    pub(crate) fn register(&self, range: &Range<usize>) -> io::Result<()> {
        let start = range.start as *mut libc::c_void;
        self.uffd.register_with_mode(start, range.end - range.start, RegisterMode::WRITE_PROTECT).map(drop).map_err(into_io)
    }
}

/// The crate's errors hold another version of nix's: only the number crosses.
fn into_io(error: Error) -> io::Error {
    match error {
        Error::OpenDevUserfaultfd(source) => source,
        Error::SystemError(errno) => io::Error::from_raw_os_error(errno as i32),
        other => io::Error::other(other.to_string()),
    }
}
