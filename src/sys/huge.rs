//! Huge pages on request.
//!
//! <https://man7.org/linux/man-pages/man2/madvise.2.html>

use std::io;
use std::ops::Range;

/// Makes a huge page of the 2 MiB at `range`, which must be aligned to that (Linux 6.1).
pub(crate) fn collapse(range: &Range<usize>) -> io::Result<()> {
    // SAFETY: this advice leaves the contents of whatever is mapped there as they are.
    let result = unsafe { libc::madvise(range.start as *mut libc::c_void, range.len(), libc::MADV_COLLAPSE) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
