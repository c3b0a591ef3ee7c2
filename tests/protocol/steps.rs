//! The handover and the doubt, one input at a time.

use std::time::Duration;

use pageferry::protocol::{DestinationEnd, DestinationEvent, GuestOwner, ProtocolError, SourceEnd, SourceEvent, Timeouts};
use pageferry::wire::{AnswerStatus, Features, Message, RefuseReason, Token};

use crate::pair::{CHANNELS, CODECS, Pair, Point, SESSION, TOKEN, offer, totals};

const COMMIT: Message = Message::Commit { paused_for: Duration::ZERO };

#[test]
fn a_session_without_trouble_moves_the_guest() {
    let pair = Pair::at(Point::Released);
    assert_eq!(
        pair.source_events,
        [
            SourceEvent::Accepted { channels: CHANNELS, codecs: CODECS, features: Features::NONE, granule: 1 },
            SourceEvent::Ready,
            SourceEvent::Running,
            SourceEvent::Ended(SourceEnd::Completed)
        ]
    );
    assert_eq!(
        pair.destination_events,
        [
            DestinationEvent::Offered(offer()),
            DestinationEvent::Finish { totals: totals(), state: vec![1, 2, 3], missing: None },
            DestinationEvent::Run { paused_for: Duration::from_millis(3) },
            DestinationEvent::Ended(DestinationEnd::Completed { unconfirmed: None }),
        ]
    );
    assert_eq!(pair.source.owner(), GuestOwner::Destination);
    assert!(pair.destination.may_run());
    assert_eq!(pair.destination.tombstone(), None);
    assert_eq!((pair.source.poll_timeout(), pair.destination.poll_timeout()), (None, None));
}

#[test]
fn a_state_has_its_place_when_all_lanes_are_there_and_only_once() {
    let at = |point| Pair::at(point).destination.takes_state();
    assert_eq!(at(Point::Offered), Err("considering the offer"));
    assert_eq!(at(Point::Accepted), Err("attaching channels"));
    assert_eq!(at(Point::Copying), Ok(()));
    assert_eq!(at(Point::Finishing), Err("loading"));
    assert_eq!(at(Point::CommitSent), Err("waiting for Commit"));
    assert_eq!(at(Point::Released), Err("done"));
}

#[test]
fn a_commit_that_was_not_handed_out_was_not_sent() {
    let mut pair = Pair::at(Point::CommitQueued);
    pair.source.handle_closed(pair.now);
    assert_eq!(pair.source.owner(), GuestOwner::Source);
    assert_eq!(pair.source.poll_message(), None);

    let mut pair = Pair::at(Point::CommitQueued);
    assert!(pair.source.abort(pair.now, "operator".into()));
    assert_eq!(pair.source.poll_message(), Some(Message::Abort { reason: "called off: operator".into() }));
    assert_eq!(pair.source.poll_message(), None);
}

#[test]
fn a_commit_that_was_handed_out_is_sent_whatever_becomes_of_it() {
    let mut pair = Pair::at(Point::CommitSent);
    pair.source_events.clear();
    assert_eq!(pair.source.owner(), GuestOwner::InDoubt);
    assert!(!pair.source.abort(pair.now, "operator".into()), "too late");
    pair.source.handle_closed(pair.now);
    pair.events();
    assert_eq!((pair.source.owner(), pair.source_events.as_slice()), (GuestOwner::InDoubt, [SourceEvent::Reconnect].as_slice()));
}

/// A source in doubt that has asked on a new connection.
fn asking(point: Point) -> Pair {
    let mut pair = Pair::at(point);
    pair.source.handle_closed(pair.now);
    pair.source.reconnected(pair.now);
    assert_eq!(pair.source.poll_message(), Some(Message::Query { session: SESSION, token: TOKEN }));
    pair.events();
    pair.source_events.clear();
    pair.destination_events.clear();
    pair
}

#[test]
fn a_query_that_comes_before_the_commit_wins_and_the_commit_is_refused() {
    let mut pair = asking(Point::CommitSent);
    assert_eq!(pair.destination.query(pair.now, TOKEN), AnswerStatus::NeverStarted);
    pair.destination.handle_message(pair.now, COMMIT);
    pair.source.handle_message(pair.now, Message::Answer(AnswerStatus::NeverStarted));
    pair.events();
    assert!(!pair.destination.may_run());
    assert_eq!(pair.destination_events, [DestinationEvent::Ended(DestinationEnd::Dropped { error: ProtocolError::Asked })]);
    assert_eq!(pair.source.owner(), GuestOwner::Source);
    let cause = Box::new(ProtocolError::Closed { state: "waiting for Running" });
    assert_eq!(pair.source_events, [SourceEvent::Ended(SourceEnd::Failed { error: ProtocolError::NeverStarted { cause } })]);
}

#[test]
fn a_commit_that_comes_before_the_query_wins_and_the_guest_runs_without_a_connection() {
    let mut pair = asking(Point::CommitSent);
    pair.destination.handle_message(pair.now, COMMIT);
    pair.destination.handle_closed(pair.now);
    assert_eq!(pair.destination.query(pair.now, TOKEN), AnswerStatus::Unknown, "it may still fail to start");
    pair.destination.running(pair.now);
    assert_eq!(pair.destination.query(pair.now, TOKEN), AnswerStatus::Running);
    pair.events();
    let unconfirmed = Some(ProtocolError::Closed { state: "starting the guest" });
    assert_eq!(
        pair.destination_events,
        [DestinationEvent::Run { paused_for: Duration::ZERO }, DestinationEvent::Ended(DestinationEnd::Completed { unconfirmed })]
    );
    assert!(pair.destination.tombstone().is_some(), "the source has to be told");
}

#[test]
fn a_lost_running_is_made_up_for_by_the_answer() {
    let mut pair = asking(Point::Starting);
    pair.destination.running(pair.now);
    let status = pair.destination.query(pair.now, TOKEN);
    pair.source.handle_message(pair.now, Message::Answer(status));
    pair.events();
    assert_eq!(pair.source_events, [SourceEvent::Running, SourceEvent::Ended(SourceEnd::Completed)]);
    assert_eq!(pair.source.poll_message(), Some(Message::Released));
    pair.destination.handle_message(pair.now, Message::Released);
    assert_eq!(pair.destination.tombstone(), None);
}

#[test]
fn the_guest_comes_back_to_the_source_exactly_once() {
    let mut pair = asking(Point::CommitSent);
    for _ in 0..3 {
        pair.source.handle_message(pair.now, Message::Answer(AnswerStatus::NeverStarted));
        pair.source.handle_message(pair.now, Message::Answer(AnswerStatus::Running));
        pair.source.handle_message(pair.now, Message::Failed { reason: "again".into() });
    }
    pair.events();
    assert_eq!((pair.source_events.len(), pair.source.owner()), (1, GuestOwner::Source));
    assert!(!pair.source.ask_again(pair.now));
}

#[test]
fn only_the_answer_to_a_question_counts() {
    let mut pair = Pair::at(Point::CommitSent);
    let stale = Message::Answer(AnswerStatus::NeverStarted);
    pair.source.handle_message(pair.now, stale.clone());
    pair.source.handle_message(pair.now, stale.clone());
    assert_eq!(pair.source.owner(), GuestOwner::InDoubt);
    pair.source.reconnect_failed(pair.now);
    pair.source.handle_message(pair.now, stale);
    assert_eq!(pair.source.owner(), GuestOwner::InDoubt);
}

#[test]
fn answers_that_say_nothing_leave_the_doubt_until_the_time_to_ask_is_over() {
    let Timeouts { silence, resolve, .. } = Timeouts::default();
    let retry = silence / 10;
    let mut pair = asking(Point::CommitSent);
    let asked = pair.now;
    let nothing = [Message::Answer(AnswerStatus::Unknown), Message::Refuse { reason: RefuseReason::Busy, detail: String::new() }, Message::Running];
    for message in nothing {
        pair.source.handle_message(pair.now, message);
        assert_eq!(pair.source.poll_timeout(), Some(pair.now + retry));
        pair.now += retry;
        pair.source.handle_timeout(pair.now);
        assert_eq!(pair.source.poll_event(), Some(SourceEvent::Reconnect));
        pair.source.reconnected(pair.now);
        assert!(matches!(pair.source.poll_message(), Some(Message::Query { .. })));
    }
    pair.source.handle_closed(pair.now);
    pair.now = asked + resolve;
    pair.source.handle_timeout(pair.now);
    let error = ProtocolError::Closed { state: "waiting for Running" };
    assert_eq!(pair.source.poll_event(), Some(SourceEvent::Ended(SourceEnd::InDoubt { error })));
    assert_eq!(pair.source.owner(), GuestOwner::InDoubt);

    assert!(pair.source.ask_again(pair.now), "somebody may have repaired the network");
    pair.source.reconnected(pair.now);
    pair.source.handle_message(pair.now, Message::Answer(AnswerStatus::Running));
    assert_eq!(pair.source.owner(), GuestOwner::Destination);
}

#[test]
fn a_query_before_ready_means_that_the_guest_will_never_run_there() {
    for point in [Point::Offered, Point::Accepted, Point::Copying, Point::Finishing] {
        let mut pair = Pair::at(point);
        assert_eq!(pair.destination.query(pair.now, TOKEN), AnswerStatus::NeverStarted, "{point:?}");
        assert!(pair.destination.poll_timeout().is_none(), "over at {point:?}");
    }
}

#[test]
fn a_stranger_learns_nothing_and_changes_nothing() {
    let mut token = TOKEN;
    token.0[15] ^= 1;
    let mut pair = Pair::at(Point::Ready);
    assert_eq!(pair.destination.query(pair.now, token), AnswerStatus::Unknown);
    assert_eq!(pair.destination.query(pair.now, Token([0; 16])), AnswerStatus::Unknown);
    pair.destination.handle_message(pair.now, COMMIT);
    assert!(pair.destination.may_run());
}

#[test]
fn a_second_commit_never_runs_the_guest_twice_nor_takes_it_away() {
    for point in [Point::Starting, Point::Running, Point::Released] {
        let mut pair = Pair::at(point);
        pair.destination_events.clear();
        pair.destination.handle_message(pair.now, COMMIT);
        if point == Point::Starting {
            pair.destination.running(pair.now);
            assert_eq!(pair.destination.poll_message(), Some(Message::Running), "the source is told even so");
        }
        pair.events();
        assert!(pair.destination.may_run());
        assert!(!pair.destination_events.iter().any(|event| matches!(event, DestinationEvent::Run { .. })));
        assert_eq!(pair.destination.query(pair.now, TOKEN), AnswerStatus::Running);
    }
}

#[test]
fn a_guest_that_cannot_be_resumed_goes_back_to_the_source() {
    let mut pair = Pair::at(Point::Starting);
    assert!(pair.destination.fail(pair.now, "no vCPU".into()));
    assert!(!pair.destination.may_run());
    pair.source_events.clear();
    pair.deliver();
    let error = ProtocolError::PeerGaveUp { reason: "called off: no vCPU".into() };
    assert_eq!(pair.source_events, [SourceEvent::Ended(SourceEnd::Failed { error })]);
    assert_eq!(pair.source.owner(), GuestOwner::Source);

    let mut pair = asking(Point::Starting);
    pair.destination.handle_closed(pair.now);
    assert!(pair.destination.fail(pair.now, "no vCPU".into()));
    assert_eq!(pair.destination.poll_message(), None, "there is no connection");
    assert_eq!(pair.destination.query(pair.now, TOKEN), AnswerStatus::NeverStarted);
    assert!(pair.destination.tombstone().is_some());
}

#[test]
fn a_guest_that_runs_can_not_be_failed() {
    for point in [Point::Running, Point::Released] {
        let mut pair = Pair::at(point);
        assert!(!pair.destination.fail(pair.now, "second thoughts".into()));
        assert!(pair.destination.may_run());
    }
}

#[test]
fn failed_that_crosses_commit_gives_the_guest_back_and_the_commit_comes_too_late() {
    let mut pair = Pair::at(Point::Ready);
    pair.source.commit(pair.now, Duration::ZERO);
    assert!(pair.destination.fail(pair.now, "disk full".into()));
    assert_eq!(pair.source.poll_message(), Some(COMMIT));
    pair.deliver();
    pair.destination.handle_message(pair.now, COMMIT);
    assert!(!pair.destination.may_run());
    assert_eq!(pair.source.owner(), GuestOwner::Source);
}

#[test]
fn either_end_may_call_it_off_until_the_guest_is_given_away() {
    for point in Point::ALL.into_iter().filter(|point| *point < Point::CommitSent) {
        let mut pair = Pair::at(point);
        assert!(pair.source.abort(pair.now, "operator".into()));
        pair.deliver();
        let error = ProtocolError::PeerGaveUp { reason: "called off: operator".into() };
        assert_eq!(pair.destination_events.pop(), Some(DestinationEvent::Ended(DestinationEnd::Dropped { error })), "{point:?}");
        assert_eq!((pair.source.owner(), pair.destination.tombstone()), (GuestOwner::Source, None));

        let mut pair = Pair::at(point);
        assert!(pair.destination.fail(pair.now, "operator".into()));
        pair.deliver();
        let error = ProtocolError::PeerGaveUp { reason: "called off: operator".into() };
        assert_eq!(pair.source_events.pop(), Some(SourceEvent::Ended(SourceEnd::Failed { error })), "{point:?}");
        assert!(!pair.destination.may_run());
    }
}

#[test]
fn a_refused_guest_stays() {
    let mut pair = Pair::at(Point::Offered);
    pair.destination.refuse(pair.now, RefuseReason::Memory, "8 GiB free".into());
    pair.deliver();
    let end = SourceEnd::Refused { reason: RefuseReason::Memory, detail: "8 GiB free".into() };
    assert_eq!(pair.source_events, [SourceEvent::Ended(end)]);
    assert_eq!(pair.destination_events.pop(), Some(DestinationEvent::Ended(DestinationEnd::Refused)));
    assert_eq!((pair.source.owner(), pair.destination.tombstone()), (GuestOwner::Source, None));
}
