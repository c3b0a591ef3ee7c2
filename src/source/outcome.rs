//! How a migration ended, and who holds the guest.

use std::time::Duration;

use crate::control::{MessageReader, MessageWriter};
use crate::error::Error;
use crate::protocol::ProtocolError;
use crate::stats::{GuestOwner, Report};
use crate::transport::Route;
use crate::wire::{AnswerStatus, Message, SessionId, Token};

/// The guest runs at the destination.
#[derive(Debug)]
pub struct Completed {
    /// What happened.
    pub report: Report,
}

/// The guest was not moved, or it is not known whether it was.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct Failure {
    /// Why.
    pub error: Error,
    /// Who holds the guest. At the source it is running again; in doubt it is paused.
    pub owner: GuestOwner,
    /// What happened up to there.
    pub report: Report,
    /// The way out, when the owner is in doubt.
    pub in_doubt: Option<InDoubt>,
}

/// A migration whose Commit was sent and never answered.
///
/// The guest is paused at the source and may be running at the destination. It must not be resumed before
/// [`InDoubt::ask`] answers [`AnswerStatus::NeverStarted`], or before the destination is known to be dead (fenced).
#[derive(Debug)]
pub struct InDoubt {
    pub(super) route: Route,
    pub(super) session: SessionId,
    pub(super) token: Token,
}

impl InDoubt {
    /// Asks the destination once more. [`AnswerStatus::NeverStarted`] makes it safe to resume the guest here: the
    /// destination refuses the old Commit from then on.
    ///
    /// # Errors
    /// When the destination cannot be reached or answers something else; the doubt remains.
    pub fn ask(&self, timeout: Duration) -> Result<AnswerStatus, Error> {
        let stream = self.route.connect(timeout)?;
        MessageWriter::new(stream.share()).send(&Message::Query { session: self.session, token: self.token })?;
        let answer = MessageReader::new(stream).next_within(timeout)?;
        match answer {
            Message::Answer(status) => Ok(status),
            Message::Refuse { reason, detail } => Err(Error::Refused { reason, detail }),
            other => Err(ProtocolError::Unexpected { message: other.name(), state: "asking what became of the guest" }.into()),
        }
    }
}
