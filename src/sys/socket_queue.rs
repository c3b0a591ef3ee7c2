//! What a socket still holds and may hold, what the peer's has room for, and how fast it sends.
//!
//! <https://man7.org/linux/man-pages/man7/tcp.7.html> (SIOCOUTQ, TCP_INFO), <https://man7.org/linux/man-pages/man7/unix.7.html>

use std::io;
use std::mem::{offset_of, size_of};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

/// Bytes that were written to a stream socket and that the peer's host has not acknowledged.
pub(crate) fn unacknowledged(socket: BorrowedFd<'_>) -> io::Result<u64> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the request, SIOCOUTQ by its other name, writes one int, and `bytes` is one that lives until then.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    if result == 0 { Ok(bytes.unsigned_abs().into()) } else { Err(io::Error::last_os_error()) }
}

/// Sets the band in which the host's queues put what the socket sends: 0 to 6 take no privilege (socket(7), `SO_PRIORITY`).
pub(crate) fn set_priority(socket: BorrowedFd<'_>, priority: i32) -> io::Result<()> {
    set_option(socket, libc::SOL_SOCKET, libc::SO_PRIORITY, priority.to_ne_bytes())
}

/// `value` is an integer in the host's order of bytes.
fn set_option<const BYTES: usize>(socket: BorrowedFd<'_>, level: i32, option: i32, value: [u8; BYTES]) -> io::Result<()> {
    let length = libc::socklen_t::try_from(BYTES).expect("an integer");
    // SAFETY: the kernel reads `length` bytes of `value`, which has as many, at any alignment.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, value.as_ptr().cast(), length) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Limits how fast a TCP socket sends, bytes a second; `None` lifts the limit (socket(7), `SO_MAX_PACING_RATE`).
pub(crate) fn set_pace(socket: BorrowedFd<'_>, rate: Option<u64>) -> io::Result<()> {
    set_option(socket, libc::SOL_SOCKET, libc::SO_MAX_PACING_RATE, rate.unwrap_or(u64::MAX).to_ne_bytes())
}

/// Has a socket hold no more than about so many bytes that were received and not read. The usual bound does not apply,
/// which takes a privilege (socket(7), `SO_RCVBUFFORCE`).
pub(crate) fn set_receive_buffer(socket: BorrowedFd<'_>, bytes: i32) -> io::Result<()> {
    set_option(socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, bytes.to_ne_bytes())
}

/// How the sending side of a TCP connection stands.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TcpState {
    /// Bytes in a full packet.
    pub(crate) segment: u32,
    /// Round-trip time as it was lately.
    pub(crate) round_trip: Duration,
    /// And at its best.
    pub(crate) least_round_trip: Duration,
    /// Bytes that the peer's host has acknowledged since the connection began.
    pub(crate) acknowledged: u64,
    /// Bytes a second that arrived when there was enough to send.
    pub(crate) delivery_rate: u64,
    /// The window that the peer last advertised: bytes its host will take beyond those it acknowledged.
    pub(crate) peer_window: u64,
}

/// The beginning of the kernel's `struct tcp_info` (include/uapi/linux/tcp.h), as far as it is of use here; libc's ends
/// earlier. Kernels fill what both sides know.
#[repr(C)]
#[derive(Default)]
struct TcpInfo {
    before_mss: [u32; 4],
    /// `tcpi_snd_mss`.
    segment: u32,
    before_rtt: [u32; 12],
    /// `tcpi_rtt` in microseconds, smoothed.
    rtt: u32,
    before_acknowledged: [u32; 12],
    /// `tcpi_bytes_acked`, since Linux 4.1.
    acknowledged: u64,
    before_min_rtt: [u32; 5],
    /// `tcpi_min_rtt` in microseconds, since Linux 4.6.
    min_rtt: u32,
    before_delivery_rate: u64,
    /// `tcpi_delivery_rate`, since Linux 4.9.
    delivery_rate: u64,
    before_window: [u32; 15],
    /// `tcpi_snd_wnd`, since Linux 5.4.
    peer_window: u32,
}
const _: () = assert!(size_of::<TcpInfo>() == 232 && offset_of!(TcpInfo, peer_window) == 228);
const _: () = assert!(offset_of!(TcpInfo, segment) == 16 && offset_of!(TcpInfo, rtt) == 68 && offset_of!(TcpInfo, acknowledged) == 120);
const _: () = assert!(offset_of!(TcpInfo, min_rtt) == 148 && offset_of!(TcpInfo, delivery_rate) == 160);

/// How a TCP connection stands. `None` for a socket of another kind, and where the kernel does not say.
pub(crate) fn tcp_state(socket: BorrowedFd<'_>) -> Option<TcpState> {
    let mut info = TcpInfo::default();
    let mut length = libc::socklen_t::try_from(size_of::<TcpInfo>()).expect("a small struct");
    // SAFETY: the kernel writes at most `length` bytes to `info`, which has as many and of which all bytes are valid.
    let result = unsafe { libc::getsockopt(socket.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, (&raw mut info).cast(), &raw mut length) };
    (result == 0 && length as usize == size_of::<TcpInfo>()).then(|| TcpState {
        segment: info.segment,
        round_trip: Duration::from_micros(info.rtt.into()),
        least_round_trip: Duration::from_micros(info.min_rtt.into()),
        acknowledged: info.acknowledged,
        delivery_rate: info.delivery_rate,
        peer_window: info.peer_window.into(),
    })
}
