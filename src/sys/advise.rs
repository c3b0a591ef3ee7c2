//! Advice about many ranges of this process's memory in one system call.
//!
//! <https://man7.org/linux/man-pages/man2/process_madvise.2.html>

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// Most ranges of one call: the kernel's limit for vectors.
pub(crate) const MAX_RANGES: usize = 1024;

/// This process, as a target of advice.
#[derive(Debug)]
pub(crate) struct Adviser {
    process: OwnedFd,
}

impl Adviser {
    /// Opens a handle on this process (Linux 5.3).
    pub(crate) fn open() -> io::Result<Self> {
        // SAFETY: makes a descriptor for a process that exists, this one.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, std::process::id(), 0) };
        match libc::c_int::try_from(fd) {
            // SAFETY: new, and nobody else's.
            Ok(fd) if fd >= 0 => Ok(Self { process: unsafe { OwnedFd::from_raw_fd(fd) } }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Gives `advice` about `ranges`, at most [`MAX_RANGES`], and says about how many bytes it was given: all, or the
    /// first so many. Kernels before 6.13 refuse advice that changes contents.
    ///
    /// # Safety
    /// The advice must be allowed to do to the ranges what it does.
    pub(crate) unsafe fn advise(&self, ranges: &[libc::iovec], advice: libc::c_int) -> io::Result<usize> {
        // SAFETY: the kernel only reads the vector; what it does to the ranges is the caller's promise.
        let advised = unsafe { libc::syscall(libc::SYS_process_madvise, self.process.as_raw_fd(), ranges.as_ptr(), ranges.len(), advice, 0) };
        usize::try_from(advised).map_err(|_| io::Error::last_os_error())
    }
}
