//! How long a peer is waited for that takes nothing.
//!
//! A socket's send timeout knows only whether there is room for more: on a slow link that may take longer than a peer
//! that is gone. What counts is whether bytes still arrive at the peer's host.

use std::io::{self, ErrorKind, IoSlice, Write};
use std::os::fd::AsFd;
use std::time::Duration;

use socket2::{Domain, Socket, TcpKeepalive};

use crate::sys::socket_queue;

/// Has `socket` give its peer up after so long: in writes, by [`Patient`]; without any, by keepalive; and with
/// bytes under way that nobody acknowledges.
///
/// # Errors
/// When the socket refuses an option.
pub(super) fn set_patience(socket: &Socket, patience: Duration) -> io::Result<()> {
    let patience = patience.clamp(LEAST, MOST);
    socket.set_write_timeout(Some(patience / LOOKS))?;
    if socket.domain()? == Domain::UNIX {
        return Ok(());
    }
    let probe = (patience / 5).max(Duration::from_secs(1));
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(probe * 2).with_interval(probe).with_retries(3))?;
    socket.set_tcp_user_timeout(Some(patience))
}

/// A socket that is written to with patience: waits for room as long as bytes arrive at the peer's host. When none has
/// for as long as [`set_patience`] allows, or a quarter longer, the error is [`ErrorKind::TimedOut`].
pub(super) struct Patient<'s>(pub(super) &'s Socket);

impl Patient<'_> {
    /// Tries `write` until it does something else than to wait for room in vain.
    pub(super) fn until_written(&self, write: impl Fn(&Socket) -> io::Result<usize>) -> io::Result<usize> {
        let (mut least, mut looks) = (u64::MAX, 0);
        loop {
            match write(self.0) {
                // The send timeout.
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    let under_way = socket_queue::unacknowledged(self.0.as_fd())?;
                    (least, looks) = if under_way < least { (under_way, 1) } else { (least, looks + 1) };
                    if looks > LOOKS {
                        return Err(io::Error::new(ErrorKind::TimedOut, "the peer takes no data"));
                    }
                }
                result => return result,
            }
        }
    }
}

impl Write for Patient<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.until_written(|mut socket| socket.write(bytes))
    }

    fn write_vectored(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        self.until_written(|mut socket| socket.write_vectored(parts))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The kernel counts in seconds and milliseconds, and not for ever: 32767 s between probes.
const MOST: Duration = Duration::from_secs(3600);
/// Nothing would be for ever to it.
const LEAST: Duration = Duration::from_millis(100);
/// How often it is looked before the peer is given up.
const LOOKS: u32 = 4;

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::time::Instant;

    use socket2::SockRef;

    use super::*;
    use crate::transport::{Endpoint, Listener, Stream};

    const PATIENCE: Duration = Duration::from_secs(2);

    /// Two ends of a connection, the first with a short patience.
    fn connected(endpoint: &Endpoint) -> (Stream, Stream) {
        let listener = Listener::bind(endpoint).unwrap();
        let near = Stream::connect(listener.endpoint(), Duration::from_secs(5)).unwrap();
        let far = listener.accept(Duration::from_secs(5)).unwrap().expect("a connection");
        let near = near.with_patience(PATIENCE).unwrap();
        if let Endpoint::Tcp(_) = endpoint {
            // So short, the kernel's own would take a window that is closed for a moment for a peer that is gone.
            SockRef::from(&near).set_tcp_user_timeout(None).unwrap();
        }
        (near, far)
    }

    #[test]
    fn any_patience_is_taken() {
        let listener = Listener::bind(&"127.0.0.1:0".parse().unwrap()).unwrap();
        for patience in [Duration::ZERO, Duration::from_micros(1), Duration::from_secs(1 << 20), Duration::MAX] {
            let near = Stream::connect(listener.endpoint(), Duration::from_secs(5)).unwrap();
            near.with_patience(patience).unwrap();
        }
    }

    #[test]
    fn a_peer_that_reads_slowly_is_waited_for_and_one_that_does_not_is_given_up() {
        let folder = tempfile::tempdir().unwrap();
        for endpoint in ["127.0.0.1:0".parse().unwrap(), Endpoint::Unix(folder.path().join("socket"))] {
            let (mut near, mut far) = connected(&endpoint);
            let reader = std::thread::spawn(move || {
                // Less between two looks than makes room for a write.
                let mut piece = vec![0; 16 << 10];
                far.set_read_timeout(Some(PATIENCE)).unwrap();
                let until = Instant::now() + 2 * PATIENCE;
                while Instant::now() < until && far.read_exact(&mut piece).is_ok() {
                    std::thread::sleep(PATIENCE / 200);
                }
                (far, Instant::now())
            });
            let error = loop {
                if let Err(error) = near.write_all(&[7; 1 << 16]) {
                    break error;
                }
            };
            let (given_up, (_far, stopped)) = (Instant::now(), reader.join().unwrap());
            assert_eq!((error.kind(), error.to_string().as_str()), (ErrorKind::TimedOut, "the peer takes no data"), "{endpoint}");
            assert!(given_up > stopped, "{endpoint}: while it was read");
        }
    }
}
