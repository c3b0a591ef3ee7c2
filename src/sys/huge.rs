//! Huge pages: on request, and of the host's pool.
//!
//! <https://man7.org/linux/man-pages/man2/madvise.2.html>, <https://docs.kernel.org/admin-guide/mm/transhuge.html>,
//! <https://docs.kernel.org/admin-guide/mm/hugetlbpage.html>

#[cfg(feature = "userfaultfd")]
use std::io;
#[cfg(feature = "userfaultfd")]
use std::ops::Range;

use crate::units::ByteCount;

/// Makes a huge page of the 2 MiB at `range`, which must be aligned to that (Linux 6.1).
#[cfg(feature = "userfaultfd")]
pub(crate) fn collapse(range: &Range<usize>) -> io::Result<()> {
    // SAFETY: whatever is mapped there, this advice leaves its contents and who may access it as they are; for what is not
    // mapped it is an error.
    let result = unsafe { libc::madvise(range.start as *mut libc::c_void, range.len(), libc::MADV_COLLAPSE) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Whether the host puts private memory into huge pages when it is asked to (`MADV_HUGEPAGE`), and only then.
pub(crate) fn on_request() -> bool {
    chosen_mode(&setting("enabled")) == Some("madvise")
}

/// What memory the host puts into huge pages without being asked.
#[cfg(feature = "userfaultfd")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ByDefault {
    /// Private memory.
    pub(crate) private: bool,
    /// Shared memory.
    pub(crate) shared: bool,
}

/// What this host does.
#[cfg(feature = "userfaultfd")]
pub(crate) fn by_default() -> ByDefault {
    let is = |text: &str, modes: &[&str]| chosen_mode(text).is_some_and(|mode| modes.contains(&mode));
    ByDefault { private: is(&setting("enabled"), &["always"]), shared: is(&setting("shmem_enabled"), &["always", "within_size"]) }
}

/// Memory in pages of 2 MiB that mappings of the pool's (`MAP_HUGETLB`) can still be given; `None` where there is no pool.
pub(crate) fn left_in_pool() -> Option<ByteCount> {
    let count = |name: &str| std::fs::read_to_string(format!("{POOL}/{name}")).ok()?.trim().parse::<u64>().ok();
    let pool = Pool {
        free: count("free_hugepages")?,
        reserved: count("resv_hugepages")?,
        overcommit: count("nr_overcommit_hugepages").unwrap_or(0),
        surplus: count("surplus_hugepages").unwrap_or(0),
    };
    Some(pool.left())
}

/// Pages of the pool.
struct Pool {
    /// Those that are reserved for a mapping included, until it is touched.
    free: u64,
    reserved: u64,
    /// So many may be made beyond the pool, ...
    overcommit: u64,
    /// ... and so many were.
    surplus: u64,
}

impl Pool {
    fn left(&self) -> ByteCount {
        let beyond = self.overcommit.saturating_sub(self.surplus);
        ByteCount(self.free.saturating_sub(self.reserved).saturating_add(beyond).saturating_mul(POOL_PAGE_BYTES))
    }
}

/// Its pages.
pub(crate) const POOL_PAGE_BYTES: u64 = 2 << 20;
/// The pool of pages of 2 MiB, the size that guests' memory is made of.
pub(crate) const POOL: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB";

/// What one of the host's files about huge pages says; nothing where there are none.
fn setting(file: &str) -> String {
    std::fs::read_to_string(format!("/sys/kernel/mm/transparent_hugepage/{file}")).unwrap_or_default()
}

/// The mode in brackets: `always [madvise] never`.
fn chosen_mode(text: &str) -> Option<&str> {
    text.split_once('[')?.1.split_once(']').map(|(mode, _)| mode)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_of_the_pool_that_are_reserved_are_not_left() {
        let pool = Pool { free: 10, reserved: 7, overcommit: 0, surplus: 0 };
        assert_eq!(pool.left(), ByteCount(3 * POOL_PAGE_BYTES));
        assert_eq!(Pool { overcommit: 5, surplus: 1, ..pool }.left(), ByteCount(7 * POOL_PAGE_BYTES));
    }

    #[test]
    fn the_chosen_mode_is_in_brackets() {
        assert_eq!(chosen_mode("always [madvise] never\n"), Some("madvise"));
        assert_eq!(chosen_mode("[always] madvise never\n"), Some("always"));
        assert_eq!((chosen_mode(""), chosen_mode("always [")), (None, None));
    }
}
