//! Byte streams between the two hosts.
//!
//! A session has one control connection and N bulk connections, each a [`Stream`]; nothing here knows what they carry.
//! Streams are blocking and owned by one thread each; another thread ends them with [`StreamControl::shut_down`], which
//! wakes the owner wherever it waits. A stream is plain or TLS, and its owner need not know which.
#![forbid(unsafe_code)]

mod deadline;
mod endpoint;
mod listener;
mod pace;
mod pacing;
mod patience;
mod queue;
mod security;
mod stream;
#[cfg(feature = "tls")]
mod tls;
#[cfg(not(feature = "tls"))]
#[path = "no_tls.rs"]
mod tls;

pub use deadline::Deadline;
pub use endpoint::{Endpoint, EndpointError};
pub use listener::Listener;
pub use pacing::Pacer;
pub use queue::BulkQueue;
pub use security::{ClientSecurity, PeerCertificate, Route, ServerSecurity};
pub use stream::{SendQueue, Stream, StreamControl};
#[cfg(all(fuzzing, feature = "tls"))]
pub use tls::fuzzing;
#[cfg(feature = "tls")]
pub use tls::{CertificateFault, ClientTls, CredentialsError, Date, Role, ServerTls, TlsError};

/// Why a byte stream could not be made or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TransportError {
    /// The address leads nowhere.
    #[error("cannot connect to {endpoint}")]
    Connect {
        /// Where to.
        endpoint: Endpoint,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
    /// Cannot take connections there.
    #[error("cannot listen on {endpoint}")]
    Listen {
        /// Where.
        endpoint: Endpoint,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
    /// An established connection broke or stalled.
    #[error("the {lane} connection to the peer failed")]
    Broken {
        /// Which one: "control", "bulk 3".
        lane: String,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
    /// A connection was made, and one end does not trust the other or does not understand it.
    #[cfg(feature = "tls")]
    #[error("no TLS connection with {peer}")]
    Tls {
        /// The other end.
        peer: String,
        /// Why.
        #[source]
        source: TlsError,
    },
    /// A sender without TLS came to a receiver that takes nothing else.
    #[error("the sender does not use TLS, which this receiver asks for: it needs --tls")]
    PlainPeer,
    /// A sender with TLS came to a receiver that has none.
    #[error("the sender uses TLS, and this receiver does not: it needs --tls too, or neither side does")]
    TlsPeer,
    /// The peer is there, and takes too long for what it has to say.
    #[error("the peer did not say what it has to within {limit:?}")]
    Late {
        /// What was allowed.
        limit: std::time::Duration,
    },
    /// The peer closed a connection that was still needed.
    #[error("the peer closed the {lane} connection")]
    Closed {
        /// Which one.
        lane: String,
    },
}
