//! What a socket still holds, and what the peer's has room for.
//!
//! <https://man7.org/linux/man-pages/man7/tcp.7.html> (SIOCOUTQ, TCP_INFO), <https://man7.org/linux/man-pages/man7/unix.7.html>

use std::io;
use std::mem::{offset_of, size_of};
use std::os::fd::{AsRawFd, BorrowedFd};

/// Bytes that were written to a stream socket and that the peer's host has not acknowledged.
pub(crate) fn unacknowledged(socket: BorrowedFd<'_>) -> io::Result<u64> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the request, SIOCOUTQ by its other name, writes one int, and `bytes` is one that lives until then.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    if result == 0 { Ok(bytes.unsigned_abs().into()) } else { Err(io::Error::last_os_error()) }
}

/// Sets the band in which the host's queues put what the socket sends: 0 to 6 take no privilege (socket(7), `SO_PRIORITY`).
pub(crate) fn set_priority(socket: BorrowedFd<'_>, priority: i32) -> io::Result<()> {
    set_option(socket, libc::SOL_SOCKET, libc::SO_PRIORITY, priority)
}

fn set_option<T: Copy>(socket: BorrowedFd<'_>, level: i32, option: i32, value: T) -> io::Result<()> {
    let length = libc::socklen_t::try_from(size_of::<T>()).expect("an integer");
    // SAFETY: the kernel reads `length` bytes of `value`, which has as many; the callers pass integers, without padding.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const value).cast(), length) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The beginning of the kernel's `struct tcp_info` (include/uapi/linux/tcp.h), as far as it is of use here; libc's ends
/// earlier. Kernels fill what both sides know.
#[repr(C)]
#[derive(Default)]
struct TcpInfo {
    before: [u64; 28],
    reordered_out_packets: u32,
    /// `tcpi_snd_wnd`, since Linux 5.4.
    peer_window: u32,
}
const _: () = assert!(size_of::<TcpInfo>() == 232 && offset_of!(TcpInfo, peer_window) == 228);

/// The window that a TCP peer last advertised: bytes its host will take beyond those it acknowledged. `None` for a
/// socket of another kind, and where the kernel does not say.
pub(crate) fn peer_window(socket: BorrowedFd<'_>) -> Option<u64> {
    let mut info = TcpInfo::default();
    let mut length = libc::socklen_t::try_from(size_of::<TcpInfo>()).expect("a small struct");
    // SAFETY: the kernel writes at most `length` bytes to `info`, which has as many and of which all bytes are valid.
    let result = unsafe { libc::getsockopt(socket.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, (&raw mut info).cast(), &raw mut length) };
    (result == 0 && length as usize == size_of::<TcpInfo>()).then(|| u64::from(info.peer_window))
}
