//! Everything that can end a migration, by whose fault it is.

use crate::destination::{MissingError, TurnedAway};
use crate::dirty::DirtyError;
use crate::guest::GuestError;
use crate::memory::MemoryError;
use crate::page::PageError;
use crate::protocol::ProtocolError;
use crate::transport::TransportError;
use crate::wire::{RefuseReason, WireError};

/// Why a migration did not go through. Who holds the guest is said beside it, never guessed from it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// This host's memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// Pages that were to be brought in while the guest runs.
    #[error(transparent)]
    Missing(#[from] MissingError),
    /// Tracking of writes.
    #[error(transparent)]
    Dirty(#[from] DirtyError),
    /// The guest did not do as it was told.
    #[error(transparent)]
    Guest(#[from] GuestError),
    /// The network.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The peer's bytes.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The contents of a chunk the peer sent.
    #[error(transparent)]
    Page(#[from] PageError),
    /// The peer's messages, or its silence.
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
    /// The peer said no.
    #[error("the destination refused the guest ({reason}): {detail}")]
    Refused {
        /// The kind of reason.
        reason: RefuseReason,
        /// The peer's words.
        detail: String,
    },
    /// A peer that takes up more than it may.
    #[error(transparent)]
    TurnedAway(#[from] TurnedAway),
    /// The source is alive and brings nothing.
    #[error("nothing has come of the guest for {limit:?}, although its source is alive")]
    Standstill {
        /// What was allowed.
        limit: std::time::Duration,
    },
    /// The caller called it off.
    #[error("the migration was cancelled")]
    Cancelled,
    /// A limit was reached and the policy is to give up then.
    #[error("the policy ended the migration: {0}")]
    Limit(crate::policy::Reason),
    /// What arrived does not add up to what was sent.
    #[error("channel {channel} carried {got} but the source announced {announced}")]
    Totals {
        /// Which channel.
        channel: u16,
        /// What arrived, in words.
        got: String,
        /// What should have.
        announced: String,
    },
    /// Data was written but does not arrive.
    #[error("nothing has arrived at the destination for {seconds} s although data is under way")]
    Stalled {
        /// How long.
        seconds: u64,
    },
    /// The caller's hook at the pause failed (a dump to a full disk, for one).
    #[error("the caller's step at the pause failed")]
    AtPause(#[source] std::io::Error),
    /// Post-copy was asked for and the destination's host cannot do it.
    #[error("the destination cannot run the guest before its memory is there (no userfaultfd for that memory), and post-copy was asked for")]
    NoPostCopy,
    /// In post-copy the connection is gone and could not be made again in time. The guest is the destination's, and needs
    /// the memory that is still here.
    #[error("stranded: the guest runs at the destination without all of its memory, and the connection could not be made again")]
    Stranded(#[source] ProtocolError),
    /// A thread could not be started, or the like.
    #[error("the system would not {action}")]
    System {
        /// What was tried.
        action: &'static str,
        /// Its answer.
        #[source]
        source: std::io::Error,
    },
    /// The commit went out and the destination can no longer be asked: the guest may be running there. It stays paused
    /// here until that is settled.
    #[error("in doubt: the destination was told to run the guest and then could not be asked whether it does")]
    InDoubt(#[source] ProtocolError),
}

impl Error {
    /// The whole chain in one line, for a report or the peer.
    #[must_use]
    pub fn in_full(&self) -> String {
        let mut text = self.to_string();
        let mut source = std::error::Error::source(self);
        while let Some(cause) = source {
            let cause_text = cause.to_string();
            // Transparent variants repeat their cause.
            if !text.ends_with(&cause_text) {
                text.push_str(": ");
                text.push_str(&cause_text);
            }
            source = cause.source();
        }
        text
    }
}
