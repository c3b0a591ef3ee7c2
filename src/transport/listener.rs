//! Taking connections over TCP and Unix sockets.

use std::io;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use socket2::{Socket, Type};

use super::{Endpoint, Stream, TransportError};

/// Takes connections.
#[derive(Debug)]
pub struct Listener {
    socket: Socket,
    endpoint: Endpoint,
}

/// Connections that may wait to be taken: many guests that start at once bring a few each, and one too many waits for a
/// second before it tries again. The system may have a lower limit.
const BACKLOG: i32 = 1024;

impl Listener {
    /// Listens at `endpoint`. Port 0 takes a free one. A Unix socket's file must not exist, unless nobody listens on it
    /// any more.
    ///
    /// # Errors
    /// When the address cannot be taken.
    pub fn bind(endpoint: &Endpoint) -> Result<Self, TransportError> {
        let failed = |source| TransportError::Listen { endpoint: endpoint.clone(), source };
        let address = endpoint.addresses().map_err(failed)?.swap_remove(0);
        if let Endpoint::Unix(path) = endpoint
            && path.symlink_metadata().is_ok_and(|file| file.file_type().is_socket())
            && UnixStream::connect(path).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
        {
            std::fs::remove_file(path).map_err(failed)?;
        }
        let socket = Socket::new(address.domain(), Type::STREAM, None).map_err(failed)?;
        if !address.is_unix() {
            socket.set_reuse_address(true).map_err(failed)?;
        }
        socket.bind(&address).map_err(failed)?;
        socket.listen(BACKLOG).map_err(failed)?;
        let endpoint = match socket.local_addr().map_err(failed)?.as_socket() {
            Some(address) => Endpoint::Tcp(address.to_string()),
            None => endpoint.clone(),
        };
        Ok(Self { socket, endpoint })
    }

    /// Where it listens, with the port that was taken.
    #[must_use]
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Waits for the next connection, at most `timeout`; `None` when none came.
    ///
    /// # Errors
    /// When the system refuses; [`Listener::bind`]'s address stays taken.
    pub fn accept(&self, timeout: Duration) -> io::Result<Option<Stream>> {
        self.socket.set_read_timeout(Some(timeout))?;
        match self.socket.accept() {
            // What cannot be set up is a connection whose peer is gone already.
            Ok((socket, _)) => Ok(Stream::from_socket(socket).ok()),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted) => Ok(None),
            // The connection failed, not the listening: see accept(2).
            Err(error)
                if matches!(error.raw_os_error(), Some(libc::ECONNABORTED | libc::EPROTO | libc::EPERM | libc::ENETDOWN | libc::ENETUNREACH)) =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Endpoint::Unix(path) = &self.endpoint {
            // Leaving the file behind is no more than untidy.
            let _ = std::fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_unix_socket_is_replaced_and_nothing_else_is() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "precious").unwrap();
        assert!(matches!(Listener::bind(&Endpoint::Unix(file.clone())), Err(TransportError::Listen { .. })));
        assert_eq!(std::fs::read(&file).unwrap(), b"precious");
        let path = folder.path().join("socket");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let endpoint = Endpoint::Unix(path);
        let live = Listener::bind(&endpoint).unwrap();
        assert!(matches!(Listener::bind(&endpoint), Err(TransportError::Listen { .. })), "it is in use");
        drop(live);
        assert!(std::fs::symlink_metadata(folder.path().join("socket")).is_err());
    }
}
