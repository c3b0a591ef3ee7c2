//! How a migration ended, and who holds the guest.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::Observer;
use super::event::Event;
use super::follow::{Follow, Followed};
use super::post_copy::GivenAway;
use super::pump::Command;
use super::push::Counters;
use crate::control::{MessageReader, MessageWriter};
use crate::error::Error;
use crate::memory::GuestMemory;
use crate::protocol::ProtocolError;
use crate::stats::{GuestOwner, Outcome, Report};
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
    /// The way out, when the owner is in doubt and all memory has been sent.
    pub in_doubt: Option<InDoubt>,
    /// The way out, when the guest was given away in post-copy and needs memory that is still here. Dropping it makes that
    /// impossible for good.
    pub stranded: Option<Stranded>,
}

/// A migration in post-copy whose connection is gone.
///
/// The guest is the destination's, where it waits for the pages it lacks; or that is in doubt, and it stays paused here.
/// As long as both processes live nothing is lost: [`Stranded::recover`] tries again.
#[derive(Debug)]
pub struct Stranded {
    given: GivenAway,
}

impl Stranded {
    pub(super) fn new(given: GivenAway) -> Self {
        Self { given }
    }

    /// Tries to reconnect once more, for as long as [`Timeouts::recover`](crate::protocol::Timeouts::recover), and to
    /// serve the rest. `memory` is the guest's as it was at the pause, `report` what was reported so far.
    ///
    /// # Errors
    /// When the guest still has not got all of its memory. If the owner is then the source the destination never ran the
    /// guest: it may be resumed here.
    pub fn recover(self, memory: &GuestMemory, mut report: Report, observer: &mut (dyn FnMut(&Event) + Send)) -> Result<Completed, Box<Failure>> {
        let Self { given } = self;
        given.pump.command(Command::RecoverAgain);
        let began = Instant::now();
        let counters = Counters::default();
        let mut observer: Observer<'_> = Box::new(observer);
        let mut follow = Follow::new(&given, memory, &counters, &mut observer, &mut report);
        let followed = follow.run(None);
        follow.fill(Some(began));
        report.total = given.started.elapsed();
        let error = match followed {
            Followed::Completed => {
                (report.outcome, report.guest_owner, report.reason) = (Outcome::Completed, GuestOwner::Destination, "recovered".into());
                return Ok(Completed { report });
            }
            Followed::TakenBack(error) | Followed::Stranded(error) => error,
        };
        report.reason = error.in_full();
        // A doubt may have been settled since the last attempt, either way.
        (report.outcome, report.guest_owner) = left_by(&error);
        let owner = report.guest_owner;
        let stranded = (owner != GuestOwner::Source).then_some(Self { given });
        Err(Box::new(Failure { error, owner, report, in_doubt: None, stranded }))
    }
}

/// How a migration ended by this error, and who holds the guest.
pub(super) fn left_by(error: &Error) -> (Outcome, GuestOwner) {
    match error {
        Error::Cancelled | Error::Limit(_) => (Outcome::Aborted, GuestOwner::Source),
        Error::Refused { .. } => (Outcome::Refused, GuestOwner::Source),
        Error::InDoubt(_) => (Outcome::InDoubt, GuestOwner::InDoubt),
        Error::Stranded(_) => (Outcome::Failed, GuestOwner::Destination),
        _ => (Outcome::Failed, GuestOwner::Source),
    }
}

/// A migration whose Commit was sent and never answered.
///
/// The guest is paused at the source and may be running at the destination. It must not be resumed before
/// [`InDoubt::ask`] answers [`AnswerStatus::NeverStarted`], or before the destination is known to be dead (fenced).
#[derive(Debug)]
pub struct InDoubt {
    pub(super) route: Route,
    /// Where the session was.
    pub(super) address: Option<SocketAddr>,
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
        let stream = self.route.find_again(self.address, timeout)?;
        MessageWriter::new(stream.share()).send(&Message::Query { session: self.session, token: self.token })?;
        let answer = MessageReader::new(stream).next_within(timeout)?;
        match answer {
            Message::Answer(status) => Ok(status),
            Message::Refuse { reason, detail } => Err(Error::Refused { reason, detail }),
            other => Err(ProtocolError::Unexpected { message: other.name(), state: "asking what became of the guest" }.into()),
        }
    }
}
