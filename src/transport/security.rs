//! Whether connections are plain or TLS: what the two ends are told, whatever is built in.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

#[cfg(feature = "tls")]
use super::{ClientTls, ServerTls};
use super::{Deadline, Endpoint, Stream, TransportError};

/// How a sender's connections are protected.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub enum ClientSecurity {
    /// Not at all.
    #[default]
    Plain,
    /// By TLS, with certificates on both sides.
    #[cfg(feature = "tls")]
    Tls(ClientTls),
}

/// How a receiver's connections are protected.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub enum ServerSecurity {
    /// Not at all.
    #[default]
    Plain,
    /// By TLS, with certificates on both sides. Nobody else is let in.
    #[cfg(feature = "tls")]
    Tls(ServerTls),
}

/// The way to a receiver: where it is, and how connections to it are protected.
#[derive(Clone, Debug)]
pub struct Route {
    /// Where.
    pub endpoint: Endpoint,
    /// How.
    pub security: ClientSecurity,
}

/// The certificate of a peer, to tell whether two connections come from the same one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerCertificate(Arc<[u8]>);

impl PeerCertificate {
    /// As it crossed the network, in DER.
    #[cfg(feature = "tls")]
    pub(crate) fn new(der: &[u8]) -> Self {
        Self(der.into())
    }
}

impl Route {
    /// Connects, and shakes hands where there is TLS, each within `timeout`.
    ///
    /// # Errors
    /// When nothing answers there, or one end does not trust the other.
    pub fn connect(&self, timeout: Duration) -> Result<Stream, TransportError> {
        self.secure(Stream::connect(&self.endpoint, timeout)?, timeout)
    }

    /// The same to the very `address` of a connection that there is, or was, already: behind a name there may be several
    /// hosts, or addresses that lead nowhere. A Unix socket has none.
    ///
    /// # Errors
    /// As [`Route::connect`].
    pub fn connect_again(&self, address: Option<SocketAddr>, timeout: Duration) -> Result<Stream, TransportError> {
        let Some(address) = address else { return self.connect(timeout) };
        let failed = |source| TransportError::Connect { endpoint: Endpoint::Tcp(address.to_string()), source };
        self.secure(Stream::connect_to(&address.into(), timeout).map_err(failed)?, timeout)
    }

    /// The same, and where nothing answers any more to wherever the name leads by now.
    ///
    /// # Errors
    /// As [`Route::connect`].
    pub fn find_again(&self, address: Option<SocketAddr>, timeout: Duration) -> Result<Stream, TransportError> {
        self.connect_again(address, timeout).or_else(|error| match address {
            Some(_) => self.connect(timeout),
            None => Err(error),
        })
    }

    fn secure(&self, stream: Stream, timeout: Duration) -> Result<Stream, TransportError> {
        match &self.security {
            ClientSecurity::Plain => {
                let _ = timeout;
                Ok(stream)
            }
            #[cfg(feature = "tls")]
            ClientSecurity::Tls(tls) => {
                let peer = self.endpoint.to_string();
                tls.secure(stream, &self.endpoint, Deadline::within(timeout)).map_err(|source| TransportError::Tls { peer, source })
            }
        }
    }
}

impl ServerSecurity {
    /// Whether a plain connection is turned away.
    #[must_use]
    pub fn is_required(&self) -> bool {
        !matches!(self, Self::Plain)
    }

    /// Makes a connection that came in what it has to be, before the `deadline`.
    ///
    /// # Errors
    /// When one end does not trust the other, or the peer does not speak TLS.
    pub fn accept(&self, stream: Stream, deadline: Deadline) -> Result<Stream, TransportError> {
        match self {
            Self::Plain => {
                let _ = deadline;
                Ok(stream)
            }
            #[cfg(feature = "tls")]
            Self::Tls(tls) => {
                let peer = stream.peer();
                tls.secure(stream, deadline).map_err(|source| TransportError::Tls { peer, source })
            }
        }
    }
}
