//! What goes wrong with TLS: whose fault it is, and at which end it was found.

use std::fmt;
use std::io;
use std::time::Duration;

use rustls::AlertDescription;

use super::fault::CertificateFault;

/// An end of a connection, as a person knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The side that connects: TLS's client.
    Sender,
    /// The side that listens: TLS's server.
    Receiver,
}

/// Why there is no TLS connection, or no more.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// This end does not accept the peer's certificate.
    #[error("the {of}'s certificate {fault}")]
    Certificate {
        /// Whose.
        of: Role,
        /// What is wrong with it.
        fault: CertificateFault,
    },
    /// The peer does not accept this end's certificate.
    #[error("the {by} does not accept this side's certificate ({file}): it {fault}")]
    Rejected {
        /// Who says so.
        by: Role,
        /// Where this end has it from.
        file: String,
        /// What is wrong with it, as far as this end can tell.
        fault: CertificateFault,
    },
    /// The peer gave up for another reason.
    #[error("the {by} ended TLS with the alert {alert:?}")]
    Alert {
        /// Who.
        by: Role,
        /// TLS's word for it.
        alert: AlertDescription,
    },
    /// The peer speaks something else.
    #[error("the {peer} does not speak TLS: it needs --tls too, or neither side does")]
    NotTls {
        /// Who.
        peer: Role,
    },
    /// The peer left before there was any TLS.
    #[error("the {peer} closed the connection before TLS began: it may run without --tls")]
    Closed {
        /// Who.
        peer: Role,
    },
    /// The peer left in the middle of the handshake.
    #[error("the {peer} closed the connection during the TLS handshake")]
    Left {
        /// Who.
        peer: Role,
    },
    /// The peer takes too long.
    #[error("the {peer} did not complete the TLS handshake within {limit:?}")]
    Slow {
        /// Who.
        peer: Role,
        /// What was allowed.
        limit: Duration,
    },
    /// The peer is of another kind: no TLS 1.3, or nothing in common.
    #[error("no TLS with the {peer}")]
    Handshake {
        /// Who.
        peer: Role,
        /// What does not fit.
        #[source]
        source: rustls::Error,
    },
    /// What came is not what the peer sent.
    #[error("a TLS record was altered on its way or makes no sense")]
    Records,
    /// The connection broke.
    #[error("the connection broke during the TLS handshake")]
    Io(#[source] io::Error),
    /// The address has no name that a certificate could be for.
    #[error("{host:?} is no host name or address that a certificate could be for")]
    Name {
        /// What was to be connected to.
        host: String,
    },
}

impl Role {
    /// The other one.
    #[must_use]
    pub fn peer(self) -> Self {
        match self {
            Self::Sender => Self::Receiver,
            Self::Receiver => Self::Sender,
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sender => "sender",
            Self::Receiver => "receiver",
        })
    }
}
