//! Huge pages on request.
//!
//! <https://man7.org/linux/man-pages/man2/madvise.2.html>, <https://docs.kernel.org/admin-guide/mm/transhuge.html>

#[cfg(feature = "userfaultfd")]
use std::io;
#[cfg(feature = "userfaultfd")]
use std::ops::Range;

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
    fn the_chosen_mode_is_in_brackets() {
        assert_eq!(chosen_mode("always [madvise] never\n"), Some("madvise"));
        assert_eq!(chosen_mode("[always] madvise never\n"), Some("always"));
        assert_eq!((chosen_mode(""), chosen_mode("always [")), (None, None));
    }
}
