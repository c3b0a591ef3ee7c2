//! What a socket still holds.
//!
//! <https://man7.org/linux/man-pages/man7/tcp.7.html> (SIOCOUTQ), <https://man7.org/linux/man-pages/man7/unix.7.html>

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Bytes that were written to a stream socket and that the peer's host has not acknowledged.
pub(crate) fn unacknowledged(socket: BorrowedFd<'_>) -> io::Result<u64> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the request, SIOCOUTQ by its other name, writes one int, and `bytes` is one that lives until then.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    if result == 0 { Ok(bytes.unsigned_abs().into()) } else { Err(io::Error::last_os_error()) }
}
