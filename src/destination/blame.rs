//! Which of several things that went wrong a session ended for.
//!
//! One thing brings others: a receiver that is told to end closes the connections, and a lane that breaks has the session
//! given up. They are noticed by different threads, in any order.
#![forbid(unsafe_code)]

use crate::error::Error;
use crate::protocol::ProtocolError;

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
