//! What can be wrong with a session.

use std::time::Duration;

/// Why a session ended before its time.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProtocolError {
    /// The peer's fault: a message that has no place here.
    #[error("the peer sent {message} to an end that was {state}")]
    Unexpected {
        /// The message's name.
        message: &'static str,
        /// What this end was doing.
        state: &'static str,
    },
    /// The peer's fault: a message in its place that says what cannot be.
    #[error("the peer's {message} makes no sense: {why}")]
    Senseless {
        /// The message's name.
        message: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// No byte came for [`Timeouts::silence`](super::Timeouts::silence).
    #[error("nothing was heard from the peer for {waited:?} while {state}")]
    Silent {
        /// How long.
        waited: Duration,
        /// What this end was doing.
        state: &'static str,
    },
    /// The peer is alive but took longer than [`Timeouts::handshake`](super::Timeouts::handshake).
    #[error("the handshake took longer than {limit:?} while {state}")]
    Handshake {
        /// What was allowed.
        limit: Duration,
        /// What this end was doing.
        state: &'static str,
    },
    /// The control connection was lost.
    #[error("the control connection was lost while {state}")]
    Closed {
        /// What this end was doing.
        state: &'static str,
    },
    /// In post-copy: the driver said that a connection which carries pages is lost.
    #[error("a connection for pages was lost while {state}")]
    Lane {
        /// What this end was doing.
        state: &'static str,
    },
    /// At the destination, in post-copy: the source came on another connection, though this one was not known to be lost.
    #[error("the source came on another connection while {state}")]
    Replaced {
        /// What this end was doing.
        state: &'static str,
    },
    /// At a source that wants to go on with post-copy: the destination does not.
    #[error("the destination does not resume the session: {why}")]
    NotResumed {
        /// In its words.
        why: String,
    },
    /// The peer called the migration off.
    #[error("the peer gave up: {reason}")]
    PeerGaveUp {
        /// In the peer's words.
        reason: String,
    },
    /// This end called the migration off.
    #[error("called off: {reason}")]
    CalledOff {
        /// In the caller's words.
        reason: String,
    },
    /// At the destination: the source came back on another connection to ask, before its Commit had arrived.
    #[error("the source asked what became of the guest, so it will not start here")]
    Asked,
    /// At the source: the handover was cut short, and the destination then said that it never started the guest.
    #[error("the destination never started the guest")]
    NeverStarted {
        /// What cut it short.
        #[source]
        cause: Box<ProtocolError>,
    },
}
