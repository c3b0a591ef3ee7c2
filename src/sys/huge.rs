//! Huge pages on request.
//!
//! <https://man7.org/linux/man-pages/man2/madvise.2.html>, <https://docs.kernel.org/admin-guide/mm/transhuge.html>

use std::io;
use std::ops::Range;

/// Makes a huge page of the 2 MiB at `range`, which must be aligned to that (Linux 6.1).
pub(crate) fn collapse(range: &Range<usize>) -> io::Result<()> {
    // SAFETY: whatever is mapped there, this advice leaves its contents and who may access it as they are; for what is not
    // mapped it is an error.
    let result = unsafe { libc::madvise(range.start as *mut libc::c_void, range.len(), libc::MADV_COLLAPSE) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// What memory the host puts into huge pages without being asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ByDefault {
    /// Private memory.
    pub(crate) private: bool,
    /// Shared memory.
    pub(crate) shared: bool,
}

/// What this host does.
pub(crate) fn by_default() -> ByDefault {
    let chosen = |file: &str| std::fs::read_to_string(format!("/sys/kernel/mm/transparent_hugepage/{file}")).unwrap_or_default();
    let is = |text: &str, modes: &[&str]| chosen_mode(text).is_some_and(|mode| modes.contains(&mode));
    ByDefault { private: is(&chosen("enabled"), &["always"]), shared: is(&chosen("shmem_enabled"), &["always", "within_size"]) }
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
