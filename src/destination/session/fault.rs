//! What went wrong in a session, and which of several things it ended for.
//!
//! One thing brings others: a receiver that is told to end closes the connections, and a lane that breaks has the session
//! given up. They are noticed by different threads, in any order.

use std::time::{Duration, Instant};

use crate::error::Error;
use crate::protocol::ProtocolError;

/// What went wrong at this end so far.
#[derive(Default)]
pub(super) struct Fault {
    error: Option<Error>,
    /// A connection broke: its reason may come on the control connection until then.
    last_words_by: Option<Instant>,
}

impl Fault {
    pub(super) fn is_none(&self) -> bool {
        self.error.is_none()
    }

    /// A lane has stopped for this `error`. Whether that is reason enough to give the session up, without waiting for the
    /// source's own.
    pub(super) fn lane_stopped(&mut self, error: Error) -> bool {
        if let Error::Transport(_) = error {
            self.error.get_or_insert(error);
            self.last_words_by.get_or_insert(Instant::now() + LAST_WORDS);
            return false;
        }
        // Says more than that another lane was lost.
        self.error = self.error.take().filter(|kept| !matches!(kept, Error::Transport(_))).or(Some(error));
        true
    }

    /// How long to wait for the source's reason, if that is to be waited for.
    pub(super) fn patience(&self) -> Option<Duration> {
        self.last_words_by.map(|by| by.saturating_duration_since(Instant::now()))
    }

    /// Whether the wait for the source's reason has been in vain: says so once.
    pub(super) fn has_waited(&mut self) -> bool {
        self.last_words_by.take_if(|by| Instant::now() >= *by).is_some()
    }

    /// The session is given up for this error, whatever else went wrong.
    pub(super) fn set(&mut self, error: Error) {
        self.error = Some(error);
    }

    /// This error is what went wrong, if nothing else did.
    pub(super) fn add(&mut self, error: Error) {
        self.error.get_or_insert(error);
    }

    /// What to tell the source.
    pub(super) fn reason(&self) -> String {
        self.error.as_ref().map_or_else(|| "the session broke".to_owned(), Error::in_full)
    }

    /// What went wrong first, or most.
    pub(super) fn take(&mut self) -> Option<Error> {
        self.error.take()
    }
}

/// Why a guest was dropped: what the machine says, unless it only says that, not why. `fault` is the first thing that went
/// wrong here, `cause` how the control connection was lost.
pub(super) fn dropped_for(end: ProtocolError, fault: Option<Error>, cause: Option<Error>) -> Error {
    match &end {
        // Given up for this reason, whatever was noticed first.
        ProtocolError::CalledOff { reason } => fault.into_iter().chain(cause).find(|error| error.in_full() == *reason).unwrap_or(end.into()),
        // What broke here says more than that a connection was lost, and most about other connections is a consequence.
        ProtocolError::Closed { .. } => match fault {
            Some(fault) if !matches!(fault, Error::Transport(_)) => fault,
            fault => cause.or(fault).unwrap_or(end.into()),
        },
        _ => end.into(),
    }
}

/// How long to wait for the source's reason after a connection broke.
const LAST_WORDS: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::TransportError;
    use crate::wire::WireError;

    fn lane() -> Error {
        TransportError::Closed { lane: "bulk 1".into() }.into()
    }

    fn nonsense() -> Error {
        WireError::Opening { limit: 1 }.into()
    }

    fn called_off(reason: &str) -> ProtocolError {
        ProtocolError::CalledOff { reason: reason.into() }
    }

    #[test]
    fn a_session_that_was_told_to_end_did_not_end_for_the_connections_that_this_closed() {
        let error = dropped_for(called_off("told to"), Some(lane()), Some(lane()));
        assert_eq!(error.in_full(), "called off: told to");
    }

    #[test]
    fn what_it_was_given_up_for_is_told_as_what_it_is() {
        for error in [lane, nonsense] {
            let reason = error().in_full();
            assert_eq!(dropped_for(called_off(&reason), Some(error()), None).in_full(), reason);
            assert_eq!(dropped_for(called_off(&reason), None, Some(error())).in_full(), reason);
            assert_eq!(dropped_for(called_off(&reason), Some(Error::Cancelled), Some(error())).in_full(), reason);
        }
    }

    #[test]
    fn a_lost_connection_is_explained_by_what_broke_before() {
        let closed = || ProtocolError::Closed { state: "copying" };
        assert_eq!(dropped_for(closed(), Some(nonsense()), Some(lane())).in_full(), nonsense().in_full());
        assert_eq!(dropped_for(closed(), Some(lane()), Some(nonsense())).in_full(), nonsense().in_full());
        assert_eq!(dropped_for(closed(), Some(lane()), None).in_full(), lane().in_full());
        assert_eq!(dropped_for(closed(), None, None).in_full(), Error::from(closed()).in_full());
    }

    #[test]
    fn the_peers_own_reason_is_the_reason() {
        let gave_up = ProtocolError::PeerGaveUp { reason: "no more".into() };
        assert_eq!(dropped_for(gave_up, Some(nonsense()), Some(lane())).in_full(), "the peer gave up: no more");
    }
}
