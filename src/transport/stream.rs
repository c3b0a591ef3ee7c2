//! Connections over TCP and Unix sockets.
//!
//! A dead peer shows in three ways, all bounded: keepalive and the user timeout for a host that is gone, writes that make
//! no way for one that no longer reads ([`patience`](super::patience)), and the protocol's own heartbeat for one that no
//! longer answers.

use std::io::{self, IoSlice, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{getsockopt, sockopt};
use socket2::{Domain, SockAddr, Socket, Type};

use super::patience::{Patient, set_patience};
use super::tls::Session;
use super::{Endpoint, PeerCertificate, TransportError};
use crate::sys::socket_queue::{self, TcpState};
use crate::units::ByteCount;

/// A connection, blocking; plain, or TLS.
#[derive(Debug)]
pub struct Stream {
    socket: Arc<Socket>,
    tls: Option<Arc<Session>>,
}

/// Ends a [`Stream`] from another thread.
#[derive(Clone, Debug)]
pub struct StreamControl {
    socket: Arc<Socket>,
}

/// How the sending side of a [`Stream`] stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SendQueue {
    /// Bytes that were written and have not arrived at the peer's host. Nothing where the system does not say.
    pub under_way: ByteCount,
    /// How many bytes the peer's host has room for, those under way included; only TCP says. Much less than it once was
    /// means that the peer does not read as fast as the bytes arrive.
    pub peer_window: Option<ByteCount>,
}

/// As long as nothing else is said.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes the kernel may hold beyond what is in flight: enough to keep a link busy, little enough to stay steerable.
const UNSENT_LOW_WATER: u32 = 512 << 10;
/// `TC_PRIO_INTERACTIVE`: the highest band that takes no privilege.
const INTERACTIVE: i32 = 6;

// What may wait to be read, in bytes, and the bytes a second of a fast link. Beyond the most the system knows better.
const UNREAD_LEAST: f64 = 1_048_576.0;
const UNREAD_MOST: f64 = 6_291_456.0;
const UNREAD_RATE: f64 = 1.25e9;

impl Stream {
    /// Connects, trying each address of the host for at most `timeout`.
    ///
    /// # Errors
    /// When nothing answers there.
    pub fn connect(endpoint: &Endpoint, timeout: Duration) -> Result<Self, TransportError> {
        let failed = |source| TransportError::Connect { endpoint: endpoint.clone(), source };
        let attempt = |address: &SockAddr| Self::connect_to(address, timeout);
        let addresses = endpoint.addresses().map_err(failed)?;
        let (last, others) = addresses.split_last().expect("at least one");
        others.iter().find_map(|address| attempt(address).ok()).map_or_else(|| attempt(last).map_err(failed), Ok)
    }

    /// Connects within `timeout`.
    pub(super) fn connect_to(address: &SockAddr, timeout: Duration) -> io::Result<Self> {
        let socket = Socket::new(address.domain(), Type::STREAM, None)?;
        socket.connect_timeout(address, timeout)?;
        Self::from_socket(socket)
    }

    /// Two connected streams within this process.
    ///
    /// # Errors
    /// When the system has no more descriptors.
    pub fn pair() -> io::Result<(Self, Self)> {
        let (left, right) = UnixStream::pair()?;
        Ok((Self::from_socket(left.into())?, Self::from_socket(right.into())?))
    }

    pub(super) fn from_socket(socket: Socket) -> io::Result<Self> {
        socket.set_nonblocking(false)?;
        // A connection inherits the timeout its listener waits with.
        socket.set_read_timeout(None)?;
        set_patience(&socket, PATIENCE)?;
        if socket.domain()? != Domain::UNIX {
            socket.set_tcp_nodelay(true)?;
        }
        Ok(Self { socket: Arc::new(socket), tls: None })
    }

    /// Waits for a peer that is gone, or takes nothing, for as long as this and not for 10 s.
    ///
    /// # Errors
    /// When the socket refuses an option, which one that was shut down does.
    pub fn with_patience(self, patience: Duration) -> Result<Self, TransportError> {
        set_patience(&self.socket, patience).map_err(|source| TransportError::Broken { lane: "new".to_owned(), source })?;
        Ok(self)
    }

    /// The socket of a plain stream, to make another of it.
    #[cfg(feature = "tls")]
    pub(super) fn into_socket(self) -> Arc<Socket> {
        self.socket
    }

    #[cfg(feature = "tls")]
    pub(super) fn with_session(socket: Arc<Socket>, session: Session) -> Self {
        Self { socket, tls: Some(Arc::new(session)) }
    }

    /// The session of a secure stream that is not shared.
    #[cfg(all(test, feature = "tls"))]
    pub(super) fn session(&mut self) -> &mut Session {
        self.tls.as_mut().and_then(Arc::get_mut).expect("a session of its own")
    }

    /// Whether bytes are read with [`Stream::read_with`], and not from the descriptor: it is encrypted what comes there.
    #[must_use]
    pub fn is_encrypted(&self) -> bool {
        self.tls.is_some()
    }

    /// Of an encrypted stream: waits until some bytes have been decrypted, shows them to `take`, and reads as many as it
    /// says it took. At the end it is shown none.
    ///
    /// # Errors
    /// As reading.
    ///
    /// # Panics
    /// When the stream is not encrypted, or `take` takes more than there is.
    pub fn read_with(&mut self, take: impl FnOnce(&[u8]) -> usize) -> io::Result<usize> {
        self.tls.as_ref().expect("an encrypted stream").read_with(take)
    }

    /// The first byte that the peer sends on a plain stream, which stays to be read.
    ///
    /// # Errors
    /// As reading; also when the peer says nothing within `timeout`, or closes without a word.
    pub fn first_byte(&self, timeout: Duration) -> io::Result<u8> {
        let mut first = [0];
        self.socket.set_read_timeout(Some(timeout))?;
        let peeked = nix::sys::socket::recv(self.socket.as_raw_fd(), &mut first, nix::sys::socket::MsgFlags::MSG_PEEK);
        self.socket.set_read_timeout(None)?;
        if peeked? == 0 { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(first[0]) }
    }

    /// Prepares the stream for bulk data: keeps the kernel's queue short, so that a decision to stop takes effect soon.
    ///
    /// # Errors
    /// When the socket refuses the option.
    pub fn prepare_bulk(&self) -> io::Result<()> {
        if self.socket.domain()? != Domain::UNIX {
            self.socket.set_tcp_notsent_lowat(UNSENT_LOW_WATER)?;
        }
        Ok(())
    }

    /// Keeps short what has arrived and waits to be read: about a millisecond's worth, and what is under way on a fast link of
    /// this length. A page in there is waited for, as it is on its way already. Without the privilege that this takes it is
    /// left to the system.
    pub fn keep_unread_short(&self) {
        let Some(state) = self.tcp_state() else { return };
        let under_way = UNREAD_RATE * state.least_round_trip.as_secs_f64();
        #[expect(clippy::cast_possible_truncation, reason = "not more than the most")]
        let bytes = (UNREAD_LEAST + under_way).min(UNREAD_MOST) as i32;
        if f64::from(bytes) < UNREAD_MOST
            && let Err(error) = socket_queue::set_receive_buffer(self.socket.as_fd(), bytes)
        {
            tracing::debug!(%error, "what waits to be read is not kept short");
        }
    }

    /// Prepares the stream for what is urgent: its packets overtake others in this host, where the device's queue has
    /// bands, as it usually does.
    ///
    /// # Errors
    /// When the socket refuses the option.
    pub fn prepare_urgent(&self) -> io::Result<()> {
        socket_queue::set_priority(self.socket.as_fd(), INTERACTIVE)
    }

    /// Reads what there is, as [`Read::read`] does, without waiting for any: then the error is [`WouldBlock`].
    ///
    /// # Errors
    /// As reading.
    ///
    /// [`WouldBlock`]: io::ErrorKind::WouldBlock
    pub fn read_at_once(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &self.tls {
            None => Ok(nix::sys::socket::recv(self.socket.as_raw_fd(), buffer, nix::sys::socket::MsgFlags::MSG_DONTWAIT)?),
            Some(tls) => tls.read_at_once(buffer),
        }
    }

    /// Whether a read would not wait: there is something to read, or the stream has ended.
    #[must_use]
    pub fn is_readable(&self) -> bool {
        self.poll(PollFlags::POLLIN, Duration::ZERO).unwrap_or(true)
    }

    /// Waits until a write would not, for `patience` at most; whether it would not. One to a stream that has ended fails
    /// at once.
    ///
    /// # Errors
    /// When the system cannot wait.
    pub fn is_writable_within(&self, patience: Duration) -> io::Result<bool> {
        self.poll(PollFlags::POLLOUT, patience)
    }

    fn poll(&self, flags: PollFlags, patience: Duration) -> io::Result<bool> {
        let timeout = PollTimeout::try_from(patience).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(self.socket.as_fd(), flags)], timeout) {
            Ok(ready) => Ok(ready > 0),
            Err(Errno::EINTR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Limits how long a read waits; `None` waits for ever.
    ///
    /// # Errors
    /// When the socket refuses the option.
    pub fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.socket.set_read_timeout(timeout)
    }

    /// A handle that ends this stream.
    #[must_use]
    pub fn control(&self) -> StreamControl {
        StreamControl { socket: Arc::clone(&self.socket) }
    }

    /// A second owner of the same connection, so that one thread can read while another writes.
    #[must_use]
    pub fn share(&self) -> Self {
        Self { socket: Arc::clone(&self.socket), tls: self.tls.clone() }
    }

    /// How its sending side stands: two system calls, about a microsecond.
    #[must_use]
    pub fn send_queue(&self) -> SendQueue {
        SendQueue { under_way: under_way(&self.socket), peer_window: self.tcp_state().map(|state| ByteCount(state.peer_window)) }
    }

    /// Bytes that were written and have not arrived at the peer's host.
    pub(super) fn under_way(&self) -> ByteCount {
        under_way(&self.socket)
    }

    /// As the kernel sees it; nothing for a Unix socket.
    pub(super) fn tcp_state(&self) -> Option<TcpState> {
        socket_queue::tcp_state(self.socket.as_fd())
    }

    /// Limits how fast it sends, and how much of what was written waits in the socket for its turn.
    pub(super) fn set_pace(&self, rate: Option<u64>, unsent: u32) -> io::Result<()> {
        self.socket.set_tcp_notsent_lowat(unsent)?;
        socket_queue::set_pace(self.socket.as_fd(), rate)
    }

    /// Writes some of `bytes`, as packets of their own on a plain stream.
    pub(super) fn write_apart(&self, bytes: &[u8]) -> io::Result<usize> {
        match &self.tls {
            None => Patient(&self.socket).until_written(|socket| socket.send_with_flags(bytes, libc::MSG_EOR | libc::MSG_NOSIGNAL)),
            Some(tls) => tls.write(&[IoSlice::new(bytes)]),
        }
    }

    /// The certificate that the peer of an encrypted stream has shown.
    #[must_use]
    pub fn peer_certificate(&self) -> Option<&PeerCertificate> {
        self.tls.as_ref().and_then(|tls| tls.peer())
    }

    /// The address of the peer's host; none for a Unix socket.
    #[must_use]
    pub fn peer_host(&self) -> Option<IpAddr> {
        Some(self.peer_address()?.ip().to_canonical())
    }

    /// The peer's address; none for a Unix socket.
    #[must_use]
    pub fn peer_address(&self) -> Option<SocketAddr> {
        self.socket.peer_addr().ok()?.as_socket()
    }

    /// The user that the other end belongs to, where that is a process of this host, over a Unix socket.
    #[must_use]
    pub(crate) fn peer_user(&self) -> Option<u32> {
        Some(getsockopt(&*self.socket, sockopt::PeerCredentials).ok()?.uid())
    }

    /// The other end, for messages to a person.
    #[must_use]
    pub fn peer(&self) -> String {
        match self.peer_address() {
            Some(address) => address.to_string(),
            None => "a local process".to_owned(),
        }
    }
}

impl StreamControl {
    /// Bytes that were written and have not arrived at the peer's host. Nothing where the system does not say.
    #[must_use]
    pub fn under_way(&self) -> ByteCount {
        under_way(&self.socket)
    }

    /// What broke the connection, if anything has and nobody was told yet: nothing need be written or read to find out.
    #[must_use]
    pub fn trouble(&self) -> Option<io::Error> {
        self.socket.take_error().unwrap_or_else(Some)
    }

    /// Ends the connection in both directions; reads and writes under way return at once.
    pub fn shut_down(&self) {
        // Fails only when the peer ended it first, which serves as well.
        let _ = self.socket.shutdown(Shutdown::Both);
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &self.tls {
            None => (&*self.socket).read(buffer),
            Some(tls) => tls.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match &self.tls {
            None => Patient(&self.socket).write(buffer),
            Some(tls) => tls.write(&[IoSlice::new(buffer)]),
        }
    }

    fn write_vectored(&mut self, buffers: &[IoSlice<'_>]) -> io::Result<usize> {
        match &self.tls {
            None => Patient(&self.socket).write_vectored(buffers),
            Some(tls) => tls.write(buffers),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn under_way(socket: &Socket) -> ByteCount {
    ByteCount(socket_queue::unacknowledged(socket.as_fd()).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::Listener;

    fn exchange(endpoint: &Endpoint) {
        let listener = Listener::bind(endpoint).unwrap();
        let mut client = Stream::connect(listener.endpoint(), Duration::from_secs(5)).unwrap();
        let mut server = listener.accept(Duration::from_secs(5)).unwrap().expect("a connection");
        client.write_all(b"ping").unwrap();
        let mut buffer = [0; 4];
        server.read_exact(&mut buffer).unwrap();
        assert_eq!(&buffer, b"ping");
        server.control().shut_down();
        assert_eq!(client.read(&mut buffer).unwrap(), 0);
    }

    #[test]
    fn tcp_and_unix_streams_carry_bytes_and_end() {
        exchange(&"127.0.0.1:0".parse().unwrap());
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        exchange(&Endpoint::Unix(path.clone()));
        assert!(!path.exists(), "the socket's file is gone with the listener");
    }

    #[test]
    fn what_the_peer_has_not_read_fills_its_window() {
        let listener = Listener::bind(&"127.0.0.1:0".parse().unwrap()).unwrap();
        let mut client = Stream::connect(listener.endpoint(), Duration::from_secs(5)).unwrap();
        let mut server = listener.accept(Duration::from_secs(5)).unwrap().expect("a connection");
        let Some(empty) = client.send_queue().peer_window else {
            eprintln!("skipped: the kernel does not tell the peer's window");
            return;
        };
        client.socket.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
        while client.write(&[0; 1 << 16]).is_ok() {}
        let full = client.send_queue();
        assert!(full.under_way.0 > 0 && full.peer_window.is_some_and(|window| window < empty), "{full:?} after {empty}");
        let mut taken = vec![0; 1 << 16];
        while client.send_queue().under_way.0 > 0 {
            assert!(server.read(&mut taken).unwrap() > 0);
        }
        assert!(client.send_queue().peer_window > full.peer_window, "reading opens it again");
        assert_eq!(Stream::pair().unwrap().0.send_queue(), SendQueue { under_way: ByteCount(0), peer_window: None });
    }

    #[test]
    fn nobody_listening_is_a_connect_error() {
        let taken = Listener::bind(&"127.0.0.1:0".parse().unwrap()).unwrap();
        let endpoint = taken.endpoint().clone();
        drop(taken);
        assert!(matches!(Stream::connect(&endpoint, Duration::from_secs(1)), Err(TransportError::Connect { .. })));
    }
}
