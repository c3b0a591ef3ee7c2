//! Byte streams between the two hosts.
//!
//! A session has one control connection and N bulk connections, each a [`Stream`]; nothing here knows what they carry.
//! Streams are blocking and owned by one thread each; another thread ends them with [`StreamControl::shut_down`], which
//! wakes the owner wherever it waits.
#![forbid(unsafe_code)]

mod endpoint;
mod pace;
mod pacing;
mod queue;
mod stream;

pub use endpoint::{Endpoint, EndpointError};
pub use pacing::Pacer;
pub use queue::BulkQueue;
pub use stream::{Listener, SendQueue, Stream, StreamControl};

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
    /// The peer closed a connection that was still needed.
    #[error("the peer closed the {lane} connection")]
    Closed {
        /// Which one.
        lane: String,
    },
}
