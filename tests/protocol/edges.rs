//! Silence, deadlines, channels, tombstones, and drivers that come too late.

use std::time::{Duration, Instant};

use pageferry::protocol::{
    AttachError, Destination, DestinationEnd, DestinationEvent, GuestOwner, ProtocolError, Resumption, Source, SourceEnd, SourceEvent, Timeouts,
    Tombstones,
};
use pageferry::units::ByteCount;
use pageferry::wire::{AnswerStatus, Features, Lane, MAX_REASON_BYTES, Message, RefuseReason, SessionId, Token};

use crate::pair::{CHANNELS, CODECS, Pair, Point, SESSION, TOKEN, offer, totals};

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn both_ends_keep_each_other_company_while_the_drivers_are_busy() {
    for point in [Point::Copying, Point::Finishing, Point::Ready, Point::Starting] {
        let mut pair = Pair::at(point);
        pair.destination.arrived(5, ByteCount(500));
        pair.source_events.clear();
        for _ in 0..60 {
            let source_due = pair.source.poll_timeout().unwrap();
            assert!(source_due <= pair.now + SECOND);
            pair.now += SECOND;
            pair.source.handle_timeout(pair.now);
            pair.destination.handle_timeout(pair.now);
            pair.deliver();
        }
        // While frames come in each Ping is answered besides.
        let progress = if point == Point::Copying { 120 } else { 60 };
        assert_eq!(pair.source_events, vec![SourceEvent::Progress { frames: 5, bytes: ByteCount(500) }; progress], "{point:?}");
    }
}

#[test]
fn a_source_that_asks_learns_at_once_how_much_was_applied() {
    let mut pair = Pair::at(Point::Copying);
    pair.destination.arrived(7, ByteCount(700));
    pair.source_events.clear();
    pair.source.ask_progress(pair.now);
    pair.deliver();
    assert_eq!(pair.source_events, [SourceEvent::Progress { frames: 7, bytes: ByteCount(700) }]);
    let mut pair = Pair::at(Point::Ready);
    pair.source_events.clear();
    pair.source.ask_progress(pair.now);
    pair.deliver();
    assert_eq!(pair.source_events, [], "only while rounds are sent");
}

#[test]
fn a_silent_destination_is_noticed_in_time() {
    let Timeouts { silence, .. } = Timeouts::default();
    for point in [Point::Accepted, Point::Copying, Point::Finishing, Point::Ready, Point::CommitSent, Point::Starting] {
        let mut pair = Pair::at(point);
        pair.source_events.clear();
        pair.source.handle_timeout(pair.now + silence - Duration::from_nanos(1));
        pair.events();
        assert_eq!(pair.source_events, [], "too early at {point:?}");
        pair.source.handle_timeout(pair.now + silence);
        pair.events();
        match pair.source_events.as_slice() {
            [SourceEvent::Ended(SourceEnd::Failed { error: ProtocolError::Silent { .. } | ProtocolError::Handshake { .. } })] => {
                assert!(point < Point::CommitSent);
            }
            [SourceEvent::Reconnect] => assert!(point >= Point::CommitSent),
            other => panic!("{other:?} at {point:?}"),
        }
    }
}

#[test]
fn a_silent_source_is_noticed_in_time() {
    let Timeouts { silence, .. } = Timeouts::default();
    for point in [Point::Offered, Point::Accepted, Point::Copying, Point::Finishing, Point::Ready, Point::Running] {
        let mut pair = Pair::at(point);
        pair.destination_events.clear();
        pair.destination.handle_timeout(pair.now + silence - Duration::from_nanos(1));
        pair.events();
        assert_eq!(pair.destination_events, [], "too early at {point:?}");
        pair.destination.handle_timeout(pair.now + silence);
        pair.events();
        let [DestinationEvent::Ended(end)] = pair.destination_events.as_slice() else { panic!("{:?} at {point:?}", pair.destination_events) };
        assert_eq!(matches!(end, DestinationEnd::Completed { .. }), point == Point::Running, "{end:?} at {point:?}");
        assert_eq!(pair.destination.tombstone().is_some(), point >= Point::Ready, "{point:?}");
    }
}

#[test]
fn bytes_of_a_long_message_are_a_sign_of_life() {
    let mut pair = Pair::at(Point::Copying);
    for _ in 0..30 {
        pair.now += SECOND;
        pair.destination.heard(pair.now);
        pair.destination.handle_timeout(pair.now);
        pair.source.heard(pair.now);
        pair.source.handle_timeout(pair.now);
    }
    pair.deliver();
    assert!(pair.source.poll_timeout().is_some() && pair.destination.poll_timeout().is_some());
}

#[test]
fn a_handshake_that_does_not_come_to_an_end_is_given_up_though_the_peer_lives() {
    let Timeouts { handshake, .. } = Timeouts::default();
    let mut pair = Pair::at(Point::Accepted);
    let start = pair.now;
    pair.destination.attach(pair.now, TOKEN, Lane::Bulk(0), 0).unwrap();
    while pair.source.poll_timeout().is_some() || pair.destination.poll_timeout().is_some() {
        pair.now += SECOND;
        pair.source.handle_timeout(pair.now);
        pair.destination.handle_timeout(pair.now);
        pair.deliver();
    }
    assert_eq!(pair.now, start + handshake);
    let error = ProtocolError::Handshake { limit: handshake, state: "attaching channels" };
    assert_eq!(pair.source_events.pop(), Some(SourceEvent::Ended(SourceEnd::Failed { error })));
}

#[test]
fn each_channel_may_take_as_long_as_the_one_before() {
    let Timeouts { handshake, .. } = Timeouts::default();
    let mut pair = Pair::at(Point::Accepted);
    for channel in 0..CHANNELS {
        let attached_at = pair.now + handshake - SECOND;
        while pair.now < attached_at {
            pair.now += SECOND;
            pair.source.handle_timeout(pair.now);
            pair.destination.handle_timeout(pair.now);
            pair.deliver();
        }
        pair.destination.attach(pair.now, TOKEN, Lane::Bulk(channel), 0).unwrap();
        pair.source.attaching(pair.now, 0);
    }
    pair.source.attached(pair.now);
    pair.source.ask_progress(pair.now);
    pair.source_events.clear();
    pair.deliver();
    assert_eq!(pair.source_events, [SourceEvent::Progress { frames: 0, bytes: ByteCount(0) }], "the rounds have begun");
}

#[test]
fn a_source_that_is_alive_and_does_not_release_the_session_is_not_waited_for() {
    let Timeouts { handshake, .. } = Timeouts::default();
    let mut pair = Pair::at(Point::Starting);
    pair.destination.running(pair.now);
    pair.destination_events.clear();
    let start = pair.now;
    while pair.destination.poll_timeout().is_some() {
        pair.now += SECOND;
        pair.destination.handle_message(pair.now, Message::Ping);
        pair.destination.handle_timeout(pair.now);
        pair.events();
    }
    assert_eq!(pair.now, start + handshake);
    let unconfirmed = Some(ProtocolError::Handshake { limit: handshake, state: "waiting for Released" });
    assert_eq!(pair.destination_events, [DestinationEvent::Ended(DestinationEnd::Completed { unconfirmed })]);
    assert!(pair.destination.tombstone().is_some(), "it may still come and ask");
}

#[test]
fn a_patient_end_speaks_often_enough_for_an_impatient_one() {
    let (patient, impatient) = (Timeouts::with_patience(600 * SECOND), Timeouts::with_patience(SECOND));
    assert!(patient.heartbeat * 3 <= impatient.silence, "{patient:?}");
    assert!(impatient.heartbeat * 10 <= impatient.silence, "{impatient:?}");
}

#[test]
fn timeouts_beyond_the_clock_never_strike() {
    let now = Instant::now();
    let never = Duration::MAX;
    let timeouts = Timeouts { heartbeat: never, silence: never, handshake: never, resolve: never, recover: never, tombstone: never };
    let mut source = Source::new(now, offer(), timeouts);
    let later = now + Duration::from_secs(1 << 30);
    source.handle_timeout(later);
    assert!(source.poll_timeout().is_some_and(|at| at > later));
}

#[test]
fn channels_are_attached_once_each_and_by_the_source_only() {
    let mut pair = Pair::at(Point::Accepted);
    let now = pair.now;
    let channels = CHANNELS;
    assert_eq!(pair.destination.attach(now, Token([1; 16]), Lane::Bulk(0), 0), Err(AttachError::Token));
    assert_eq!(pair.destination.attach(now, TOKEN, Lane::Bulk(CHANNELS), 0), Err(AttachError::Channel { channel: CHANNELS, channels }));
    assert_eq!(pair.destination.attach(now, TOKEN, Lane::Bulk(u16::MAX), 0), Err(AttachError::Channel { channel: u16::MAX, channels }));
    assert_eq!(pair.destination.attach(now, TOKEN, Lane::Bulk(1), 0), Ok(()));
    assert_eq!(pair.destination.attach(now, TOKEN, Lane::Bulk(1), 0), Err(AttachError::Twice { lane: Lane::Bulk(1) }));
    assert_eq!(pair.destination.attach(now, TOKEN, Lane::Bulk(0), 0), Ok(()));
    assert_eq!(pair.destination.attach(now, TOKEN, Lane::Bulk(0), 0), Err(AttachError::State { state: "receiving" }));
    assert!(matches!(AttachError::Token.refusal(), Message::Refuse { reason: RefuseReason::Authorization, .. }));
    let twice = AttachError::Twice { lane: Lane::Bulk(1) }.refusal();
    assert_eq!(twice, Message::Refuse { reason: RefuseReason::Other, detail: "lane bulk 1 is attached already".into() });
}

#[test]
fn a_session_may_have_as_many_channels_as_the_protocol_allows() {
    let mut wide = offer();
    wide.channels = 64;
    let now = Instant::now();
    let mut destination = Destination::new(now, Timeouts::default());
    destination.handle_message(now, Message::Hello(wide));
    destination.accept(now, 64, CODECS, Features::NONE, 1);
    (0..64).for_each(|channel| destination.attach(now, TOKEN, Lane::Bulk(channel), 0).unwrap());
    assert_eq!(destination.attach(now, TOKEN, Lane::Bulk(0), 0), Err(AttachError::State { state: "receiving" }));
}

#[test]
fn drivers_that_come_too_late_change_nothing() {
    let mut pair = Pair::at(Point::Accepted);
    let now = pair.now;
    pair.source.handle_closed(now);
    pair.destination.handle_closed(now);
    pair.events();
    pair.source.attached(now);
    pair.source.finish(now, totals(), vec![]);
    pair.source.commit(now, Duration::ZERO);
    pair.source.reconnected(now);
    pair.source.reconnect_failed(now);
    assert!(!pair.source.abort(now, "late".into()));
    pair.destination.accept(now, CHANNELS, CODECS, Features::NONE, 1);
    pair.destination.refuse(now, RefuseReason::Busy, String::new());
    pair.destination.ready(now);
    assert!(!pair.destination.fail(now, "late".into()));
    assert_eq!((pair.source.poll_message(), pair.destination.poll_message()), (None, None));
    assert_eq!((pair.source.poll_event(), pair.destination.poll_event()), (None, None));
    assert_eq!((pair.source.owner(), pair.destination.may_run()), (GuestOwner::Source, false));
}

#[test]
#[should_panic(expected = "committed while waiting for Ready")]
fn a_driver_that_commits_before_ready_is_a_bug() {
    let mut pair = Pair::at(Point::Finishing);
    pair.source.commit(pair.now, Duration::ZERO);
}

#[test]
#[should_panic(expected = "running while waiting for Commit")]
fn a_driver_that_runs_the_guest_before_commit_is_a_bug() {
    let mut pair = Pair::at(Point::Ready);
    pair.destination.running(pair.now);
}

#[test]
fn long_reasons_are_cut_to_what_a_message_carries() {
    let mut pair = Pair::at(Point::Copying);
    pair.source.abort(pair.now, "ä".repeat(2000));
    pair.destination.fail(pair.now, "ä".repeat(2000));
    let (Some(Message::Abort { reason }), Some(Message::Failed { reason: other })) = (pair.source.poll_message(), pair.destination.poll_message())
    else {
        panic!("both say why")
    };
    assert!((MAX_REASON_BYTES - 3..=MAX_REASON_BYTES).contains(&reason.len()), "{} bytes", reason.len());
    assert_eq!(reason, other);
}

#[test]
fn a_tombstone_answers_its_source_until_its_time_is_over() {
    let mut pair = Pair::at(Point::Ready);
    pair.destination.handle_closed(pair.now);
    let stone = pair.destination.tombstone().unwrap();
    let mut stones = Tombstones::new(60 * SECOND);
    assert_eq!((stones.answer(pair.now, SESSION, TOKEN), stones.poll_timeout()), (AnswerStatus::Unknown, None));
    stones.keep(pair.now, stone);
    assert!(stones.contains(pair.now, SESSION) && !stones.contains(pair.now, SessionId([0; 16])));
    assert_eq!(stones.answer(pair.now, SESSION, TOKEN), AnswerStatus::NeverStarted);
    assert_eq!(stones.answer(pair.now, SESSION, Token([0; 16])), AnswerStatus::Unknown);
    assert_eq!(stones.answer(pair.now, SessionId([0; 16]), TOKEN), AnswerStatus::Unknown);
    stones.released(pair.now, SESSION, TOKEN);
    assert!(stones.contains(pair.now, SESSION), "there was nothing to release");
    let over = stones.poll_timeout().unwrap();
    assert_eq!(over, pair.now + 60 * SECOND);
    stones.handle_timeout(over - Duration::from_nanos(1));
    assert_eq!(stones.answer(over - Duration::from_nanos(1), SESSION, TOKEN), AnswerStatus::NeverStarted);
    assert_eq!(stones.answer(over, SESSION, TOKEN), AnswerStatus::Unknown, "though nobody has had it forgotten");
    assert_eq!((stones.resume(over, SESSION, TOKEN), stones.contains(over, SESSION)), (Resumption::Refused, false));
    stones.handle_timeout(over);
    assert_eq!((stones.count(), stones.poll_timeout()), (0, None));
}

#[test]
fn a_released_tombstone_is_not_kept() {
    let mut pair = Pair::at(Point::Running);
    pair.destination.handle_closed(pair.now);
    let mut stones = Tombstones::new(60 * SECOND);
    stones.keep(pair.now, pair.destination.tombstone().unwrap());
    assert_eq!(stones.answer(pair.now, SESSION, TOKEN), AnswerStatus::Running);
    stones.released(pair.now, SESSION, Token([0; 16]));
    assert!(stones.contains(pair.now, SESSION), "a stranger said so");
    stones.released(pair.now, SESSION, TOKEN);
    assert!(!stones.contains(pair.now, SESSION));
}

#[test]
fn a_tombstone_that_is_kept_again_counts_from_then_on() {
    let mut pair = Pair::at(Point::Ready);
    pair.destination.handle_closed(pair.now);
    let stone = pair.destination.tombstone().unwrap();
    let mut stones = Tombstones::new(60 * SECOND);
    stones.keep(pair.now, stone);
    stones.keep(pair.now + SECOND, stone);
    stones.handle_timeout(pair.now + 60 * SECOND);
    assert_eq!((stones.count(), stones.poll_timeout()), (1, Some(pair.now + 61 * SECOND)));
    stones.handle_timeout(pair.now + 61 * SECOND);
    assert_eq!((stones.count(), stones.poll_timeout()), (0, None));
}
