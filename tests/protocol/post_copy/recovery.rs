//! Recovery, one input at a time.

use std::time::Duration;

use pageferry::protocol::{
    AttachError, DestinationEnd, DestinationEvent, GuestOwner, ProtocolError, Resumption, SourceEnd, SourceEvent, Timeouts, Tombstones,
};
use pageferry::units::{ChunkIndex, PageCount};
use pageferry::wire::{AnswerStatus, Extent, Features, Lane, Message, RefuseReason, Token};

use crate::pair::{MISSING, Pair, Point, SESSION, TOKEN, lanes, pages};

const RESUME: Message = Message::Resume { session: SESSION, token: TOKEN };

/// Both ends have lost the connection, and the source asks on a new one.
fn asking(point: Point) -> Pair {
    let mut pair = Pair::post_copy_at(point);
    pair.source.handle_closed(pair.now);
    pair.destination.handle_closed(pair.now);
    source_reconnects(&mut pair);
    pair.events();
    pair.source_events.clear();
    pair.destination_events.clear();
    pair
}

fn source_reconnects(pair: &mut Pair) {
    pair.source.reconnected(pair.now);
    assert_eq!(pair.source.poll_message(), Some(RESUME));
    assert_eq!(pair.source.poll_message(), None);
}

/// The Resume arrives and the destination says what has come so far.
fn resume(pair: &mut Pair, generation: u32, arrived: &[u64]) {
    assert_eq!(pair.destination.resume(pair.now, TOKEN), Resumption::Accepted { generation });
    pair.destination.resumed(pair.now, generation, &pages(arrived));
    pair.deliver();
}

/// The lanes come back too.
fn attach(pair: &mut Pair, generation: u32) {
    lanes(Features::POST_COPY).for_each(|lane| pair.destination.attach(pair.now, TOKEN, lane, generation).unwrap());
    assert!(pair.source.reattached(pair.now, generation));
}

/// The pages that are left are served, and both ends part.
fn complete(pair: &mut Pair) {
    pair.destination.complete(pair.now);
    pair.deliver();
    assert_eq!(pair.source_events.pop(), Some(SourceEvent::Ended(SourceEnd::Completed)));
    assert_eq!(pair.destination_events.pop(), Some(DestinationEvent::Ended(DestinationEnd::Completed { unconfirmed: None })));
}

#[test]
fn a_session_goes_on_where_the_connections_were_lost() {
    let mut pair = asking(Point::Running);
    assert_eq!(pair.source.owner(), GuestOwner::Destination);
    resume(&mut pair, 1, &MISSING[1..]);
    assert_eq!(pair.destination_events, [DestinationEvent::Resume { generation: 1 }]);
    assert_eq!(pair.source_events, [SourceEvent::Recovered { generation: 1, arrived: pages(&MISSING[1..]) }], "Running is no news");
    attach(&mut pair, 1);
    complete(&mut pair);
}

#[test]
fn a_session_recovers_as_often_as_it_has_to() {
    let mut pair = asking(Point::Running);
    for generation in 1..20 {
        resume(&mut pair, generation, &[]);
        attach(&mut pair, generation);
        pair.source_events.clear();
        pair.source.interrupt(pair.now, generation);
        pair.events();
        let error = ProtocolError::Lane { state: "serving pages" };
        assert_eq!(pair.source_events, [SourceEvent::Interrupted { error }, SourceEvent::Reconnect]);
        source_reconnects(&mut pair);
    }
}

#[test]
fn a_destination_that_has_lost_the_source_keeps_the_guest_for_ever() {
    type Loss = fn(&mut Pair);
    let losses: [(Loss, &str); 4] = [
        (|pair| pair.destination.handle_closed(pair.now), "connection was lost"),
        (|pair| pair.destination.interrupt(pair.now, 0), "connection for pages was lost"),
        (|pair| pair.destination.handle_timeout(pair.now + Duration::from_secs(10)), "nothing was heard"),
        (|pair| pair.destination.handle_message(pair.now, Message::Abort { reason: "give it back".into() }), "the peer sent Abort"),
    ];
    for (lose, why) in losses {
        let mut pair = Pair::post_copy_at(Point::Running);
        pair.destination_events.clear();
        lose(&mut pair);
        pair.events();
        let [DestinationEvent::Interrupted { error }] = pair.destination_events.as_slice() else { panic!("{:?}", pair.destination_events) };
        assert!(error.to_string().contains(why), "{error} is not {why}");
        assert_eq!((pair.destination.poll_timeout(), pair.destination.poll_message()), (None, None));
        assert!(pair.destination.may_run() && !pair.destination.fail(pair.now, "operator".into()));
        assert_eq!(pair.destination.query(pair.now, TOKEN), AnswerStatus::Running);
        pair.destination.handle_timeout(pair.now + Duration::from_secs(1 << 20));
        assert_eq!(pair.destination.poll_event(), None);
        assert_eq!(pair.destination.resume(pair.now, TOKEN), Resumption::Accepted { generation: 1 });
    }
}

#[test]
fn a_source_that_is_told_nothing_or_nonsense_looks_for_the_destination() {
    type Loss = fn(&mut Pair);
    let losses: [Loss; 4] = [
        |pair| pair.source.handle_closed(pair.now),
        |pair| pair.source.interrupt(pair.now, 0),
        |pair| pair.source.handle_timeout(pair.now + Duration::from_secs(10)),
        |pair| pair.source.handle_message(pair.now, Message::Failed { reason: "take it back".into() }),
    ];
    for lose in losses {
        let mut pair = Pair::post_copy_at(Point::Running);
        pair.source_events.clear();
        lose(&mut pair);
        pair.events();
        assert!(matches!(pair.source_events.as_slice(), [SourceEvent::Interrupted { .. }, SourceEvent::Reconnect]), "{:?}", pair.source_events);
        assert_eq!((pair.source.owner(), pair.source.poll_message()), (GuestOwner::Destination, None));
    }
}

#[test]
fn a_resume_that_comes_before_the_commit_wins_and_the_commit_is_refused() {
    for point in [Point::Copying, Point::Finishing, Point::Ready] {
        let mut pair = Pair::post_copy_at(point);
        assert_eq!(pair.destination.resume(pair.now, Token([0; 16])), Resumption::Refused, "a stranger");
        assert_eq!(pair.destination.resume(pair.now, TOKEN), Resumption::NeverStarted, "{point:?}");
        pair.destination.handle_message(pair.now, Message::Commit { paused_for: Duration::ZERO });
        assert!(!pair.destination.may_run());
    }
    let mut pair = asking(Point::CommitSent);
    let answer = pair.destination.resume(pair.now, TOKEN).answer().unwrap();
    pair.source.handle_message(pair.now, answer);
    pair.events();
    let cause = Box::new(ProtocolError::Closed { state: "waiting for Running" });
    assert_eq!(pair.source_events, [SourceEvent::Ended(SourceEnd::Failed { error: ProtocolError::NeverStarted { cause } })]);
    assert_eq!(pair.source.owner(), GuestOwner::Source);
}

#[test]
fn a_source_in_doubt_serves_a_guest_that_is_being_started_and_stays_in_doubt() {
    let mut pair = asking(Point::Starting);
    assert_eq!(pair.source.owner(), GuestOwner::InDoubt);
    resume(&mut pair, 1, &MISSING[..1]);
    attach(&mut pair, 1);
    assert_eq!(pair.source_events, [SourceEvent::Recovered { generation: 1, arrived: pages(&MISSING[..1]) }]);
    assert_eq!(pair.source.owner(), GuestOwner::InDoubt, "it may still fail to start");
    pair.destination.running(pair.now);
    pair.deliver();
    assert_eq!((pair.source_events.pop(), pair.source.owner()), (Some(SourceEvent::Running), GuestOwner::Destination));
    complete(&mut pair);
}

#[test]
fn a_guest_that_fails_to_start_after_a_recovery_goes_back() {
    for is_attached in [false, true] {
        let mut pair = asking(Point::Starting);
        resume(&mut pair, 1, &[]);
        if is_attached {
            attach(&mut pair, 1);
        }
        assert!(pair.destination.fail(pair.now, "no vCPU".into()));
        pair.deliver();
        let error = ProtocolError::PeerGaveUp { reason: "called off: no vCPU".into() };
        assert_eq!(pair.source_events.pop(), Some(SourceEvent::Ended(SourceEnd::Failed { error })));
        assert_eq!((pair.source.owner(), pair.destination.may_run()), (GuestOwner::Source, false));
    }
}

#[test]
fn a_running_that_was_lost_is_said_again() {
    let mut pair = asking(Point::Starting);
    pair.destination.running(pair.now);
    assert_eq!(pair.destination.poll_message(), None, "there is no connection");
    resume(&mut pair, 1, &[]);
    let recovered = SourceEvent::Recovered { generation: 1, arrived: pages(&[]) };
    assert_eq!(pair.source_events, [recovered, SourceEvent::Running]);
    attach(&mut pair, 1);
    complete(&mut pair);
}

#[test]
fn a_second_resume_wins_over_an_unfinished_one() {
    let mut pair = asking(Point::Running);
    assert_eq!(pair.destination.resume(pair.now, TOKEN), Resumption::Accepted { generation: 1 });
    assert_eq!(pair.destination.resume(pair.now, TOKEN), Resumption::Accepted { generation: 2 });
    pair.destination.resumed(pair.now, 1, &pages(&[]));
    assert_eq!(pair.destination.poll_message(), None, "it is too late for the first");
    pair.destination.resumed(pair.now, 2, &pages(&[]));
    pair.deliver();
    assert_eq!(pair.destination_events, [1, 2].map(|generation| DestinationEvent::Resume { generation }));
    assert_eq!(pair.source_events, [SourceEvent::Recovered { generation: 2, arrived: pages(&[]) }]);
    let state = AttachError::Generation { found: 1, current: 2 };
    assert_eq!(pair.destination.attach(pair.now, TOKEN, Lane::Urgent, 1), Err(state));
    attach(&mut pair, 2);
    complete(&mut pair);
}

#[test]
fn a_resume_over_a_connection_that_looks_alive_replaces_it() {
    let mut pair = Pair::post_copy_at(Point::Running);
    pair.destination_events.clear();
    pair.source.handle_closed(pair.now);
    source_reconnects(&mut pair);
    assert_eq!(pair.destination.resume(pair.now, TOKEN), Resumption::Accepted { generation: 1 });
    // Of the old connection, which the driver has yet to drop.
    pair.destination.handle_message(pair.now, Message::Released);
    pair.destination.handle_closed(pair.now);
    pair.destination.interrupt(pair.now, 0);
    pair.destination.handle_timeout(pair.now + Duration::from_secs(100));
    pair.events();
    let error = ProtocolError::Replaced { state: "fetching pages" };
    assert_eq!(pair.destination_events, [DestinationEvent::Interrupted { error }, DestinationEvent::Resume { generation: 1 }]);
    pair.destination.resumed(pair.now, 1, &pages(&[]));
    pair.deliver();
    attach(&mut pair, 1);
    complete(&mut pair);
}

#[test]
fn lanes_that_do_not_come_back_in_time_interrupt_again() {
    let Timeouts { handshake, .. } = Timeouts::default();
    let mut pair = asking(Point::Running);
    resume(&mut pair, 1, &[]);
    pair.destination.attach(pair.now, TOKEN, Lane::Urgent, 1).unwrap();
    let start = pair.now;
    pair.source_events.clear();
    pair.destination_events.clear();
    while pair.destination_events.is_empty() {
        pair.now += Duration::from_millis(500);
        pair.source.handle_timeout(pair.now);
        pair.destination.handle_timeout(pair.now);
        pair.deliver();
    }
    assert_eq!(pair.now, start + handshake, "though both are alive");
    let error = ProtocolError::Handshake { limit: handshake, state: "fetching pages" };
    assert_eq!(pair.destination_events, [DestinationEvent::Interrupted { error }]);
    let error = ProtocolError::Handshake { limit: handshake, state: "attaching lanes anew" };
    assert_eq!(pair.source_events.pop(), Some(SourceEvent::Interrupted { error }));
    assert!(!pair.source.reattached(pair.now, 1), "too late");
}

#[test]
fn trouble_with_lanes_of_another_generation_means_nothing() {
    let mut pair = asking(Point::Running);
    pair.source.interrupt(pair.now, 0);
    resume(&mut pair, 1, &[]);
    pair.source_events.clear();
    pair.destination_events.clear();
    for generation in [0, 2] {
        pair.source.interrupt(pair.now, generation);
        assert!(!pair.source.reattached(pair.now, generation));
        pair.destination.interrupt(pair.now, generation);
    }
    pair.events();
    assert_eq!((pair.source_events.as_slice(), pair.destination_events.as_slice()), ([].as_slice(), [].as_slice()));
    attach(&mut pair, 1);
    pair.destination.interrupt(pair.now, 1);
    pair.events();
    let error = ProtocolError::Lane { state: "fetching pages" };
    assert_eq!(pair.destination_events, [DestinationEvent::Interrupted { error }]);
}

#[test]
fn all_pages_there_while_the_source_is_away_is_answered_by_complete() {
    let mut pair = asking(Point::Running);
    pair.destination.complete(pair.now);
    pair.events();
    let unconfirmed = Some(ProtocolError::Closed { state: "fetching pages" });
    assert_eq!(pair.destination_events, [DestinationEvent::Ended(DestinationEnd::Completed { unconfirmed })]);
    let mut stones = Tombstones::new(Duration::from_secs(60));
    stones.keep(pair.now, pair.destination.tombstone().unwrap());
    let answer = stones.resume(pair.now, SESSION, TOKEN).answer().unwrap();
    pair.source.handle_message(pair.now, answer);
    pair.events();
    assert_eq!(pair.source_events, [SourceEvent::Ended(SourceEnd::Completed)]);
    assert_eq!(pair.source.poll_message(), Some(Message::Released));
}

#[test]
fn all_pages_there_while_the_source_comes_back_is_said_in_place_of_resumed() {
    let mut pair = asking(Point::Running);
    assert_eq!(pair.destination.resume(pair.now, TOKEN), Resumption::Accepted { generation: 1 });
    pair.destination.complete(pair.now);
    assert_eq!((pair.destination.poll_message(), pair.destination.poll_timeout()), (None, None), "the connection is not there yet");
    // Of the old connection.
    pair.destination.handle_message(pair.now, Message::Abort { reason: "enough".into() });
    pair.destination.handle_closed(pair.now);
    pair.destination.handle_timeout(pair.now + Duration::from_secs(100));
    pair.destination.resumed(pair.now, 1, &pages(&MISSING));
    pair.deliver();
    assert_eq!(pair.source_events, [SourceEvent::Ended(SourceEnd::Completed)]);
    assert_eq!(pair.destination_events.pop(), Some(DestinationEvent::Ended(DestinationEnd::Completed { unconfirmed: None })));

    let mut pair = asking(Point::Running);
    resume(&mut pair, 1, &MISSING);
    complete(&mut pair); // before the lanes are there
}

#[test]
fn a_completion_tells_a_source_in_doubt_that_the_guest_runs() {
    let mut pair = asking(Point::Starting);
    pair.destination.running(pair.now);
    pair.destination.complete(pair.now);
    let answer = pair.destination.resume(pair.now, TOKEN).answer().unwrap();
    pair.source.handle_message(pair.now, answer);
    pair.events();
    assert_eq!(pair.source_events, [SourceEvent::Running, SourceEvent::Ended(SourceEnd::Completed)]);
    pair.destination.released(pair.now, TOKEN);
    assert_eq!(pair.destination.tombstone(), None);
}

#[test]
fn answers_that_make_no_sense_are_attempts_that_failed() {
    let arrived = |first, words: &[u64]| Message::Arrived { first: ChunkIndex(first), words: words.to_vec() };
    let resumed = |generation, pages| Message::Resumed { generation, arrived: Extent { chunks: 3, pages: PageCount(pages) } };
    let few_chunks = Message::Resumed { generation: 1, arrived: Extent { chunks: 2, pages: PageCount(0) } };
    let refuse = Message::Refuse { reason: RefuseReason::Authorization, detail: "who are you?".into() };
    let cases = [
        (vec![arrived(0, &[4])], "page 2 does not belong there"),
        (vec![arrived(0, &[1]), arrived(0, &[2])], "1 words from chunk 0 on, after those up to chunk 1"),
        (vec![arrived(3, &[1])], "1 words from chunk 3 on, there are 3 chunks"),
        (vec![arrived(0, &[1]), resumed(1, 2)], "2 pages announced, 1 came"),
        (vec![few_chunks], "2 chunks announced, there are 3"),
        (vec![resumed(0, 0)], "generation 0 after 0"),
        (vec![Message::Complete { pages: PageCount(3) }], "3 pages have arrived, 4 were missing"),
        (vec![refuse], "authorization: who are you?"),
        (vec![Message::Answer(AnswerStatus::Unknown)], "it is not known"),
        (vec![Message::Answer(AnswerStatus::Running)], "the guest runs"),
        (vec![Message::Answer(AnswerStatus::NeverStarted)], "the peer sent Answer"),
        (vec![Message::Failed { reason: "take it".into() }], "the peer sent Failed"),
        (vec![Message::Ready], "the peer sent Ready"),
    ];
    for (messages, why) in cases {
        let mut pair = asking(Point::Running);
        for message in messages {
            assert_eq!(pair.source.poll_event(), None, "{why}: too early");
            pair.source.handle_message(pair.now, message);
        }
        let retry_at = pair.source.poll_timeout().unwrap();
        assert_eq!(retry_at, pair.now + Duration::from_millis(100), "{why}");
        pair.source.handle_timeout(retry_at);
        assert_eq!(pair.source.poll_event(), Some(SourceEvent::Reconnect), "{why}");
        pair.source.handle_timeout(pair.now + Duration::from_secs(60));
        let Some(SourceEvent::Ended(SourceEnd::Stranded { error })) = pair.source.poll_event() else { panic!("{why}: no end") };
        assert!(error.to_string().contains(why), "{error} is not about {why}");
        assert_eq!(pair.source.owner(), GuestOwner::Destination);
    }
}

#[test]
fn an_answer_that_the_guest_runs_ends_the_doubt_and_not_the_search() {
    let mut pair = asking(Point::CommitSent);
    pair.source.handle_message(pair.now, Message::Answer(AnswerStatus::Running));
    pair.events();
    assert_eq!((pair.source_events.as_slice(), pair.source.owner()), ([SourceEvent::Running].as_slice(), GuestOwner::Destination));
    pair.source.handle_timeout(pair.source.poll_timeout().unwrap());
    assert_eq!(pair.source.poll_event(), Some(SourceEvent::Reconnect));
}

#[test]
fn a_source_tries_ever_more_rarely_until_it_is_stranded_and_can_be_sent_out_again() {
    let Timeouts { recover, .. } = Timeouts::default();
    let mut pair = Pair::post_copy_at(Point::Running);
    let start = pair.now;
    pair.source_events.clear();
    pair.source.handle_closed(pair.now);
    let mut pauses = Vec::new();
    let end = loop {
        match pair.source.poll_event() {
            Some(SourceEvent::Interrupted { .. }) => {}
            Some(SourceEvent::Reconnect) => pair.source.reconnect_failed(pair.now),
            Some(SourceEvent::Ended(end)) => break end,
            Some(event) => panic!("{event:?}"),
            None => {
                let next = pair.source.poll_timeout().unwrap();
                pauses.push((next - pair.now).as_millis());
                pair.now = next;
                pair.source.handle_timeout(next);
            }
        }
    };
    assert_eq!(pauses[..7], [100, 200, 400, 800, 1600, 2000, 2000]);
    assert_eq!(pair.now, start + recover);
    assert_eq!(end, SourceEnd::Stranded { error: ProtocolError::Closed { state: "serving pages" } });
    assert_eq!((pair.source.owner(), pair.source.poll_timeout()), (GuestOwner::Destination, None));

    assert!(!pair.source.ask_again(pair.now), "there is no doubt");
    assert!(pair.source.recover_again(pair.now));
    assert_eq!(pair.source.poll_event(), Some(SourceEvent::Reconnect));
    source_reconnects(&mut pair);
    resume(&mut pair, 1, &[]);
    attach(&mut pair, 1);
    complete(&mut pair);
    assert!(!pair.source.recover_again(pair.now));
}

#[test]
fn a_source_lets_go_of_the_rest_at_any_time_after_commit_and_says_who_has_the_guest() {
    let mut pair = Pair::post_copy_at(Point::Running);
    pair.source_events.clear();
    assert!(pair.source.let_go("enough".into()));
    let error = ProtocolError::CalledOff { reason: "enough".into() };
    assert_eq!(pair.source.poll_event(), Some(SourceEvent::Ended(SourceEnd::Stranded { error: error.clone() })));
    assert_eq!((pair.source.owner(), pair.source.poll_timeout()), (GuestOwner::Destination, None));
    assert!(!pair.source.let_go("again".into()), "it is stranded already");

    let mut pair = asking(Point::CommitSent);
    assert!(pair.source.let_go("enough".into()));
    assert_eq!(pair.source.poll_event(), Some(SourceEvent::Ended(SourceEnd::InDoubt { error })));
    assert_eq!((pair.source.owner(), pair.source.poll_message()), (GuestOwner::InDoubt, None));
    assert!(pair.source.ask_again(pair.now));

    let mut pair = Pair::post_copy_at(Point::Ready);
    assert!(!pair.source.let_go("too early".into()));
    assert_eq!(pair.source.owner(), GuestOwner::Source);
}

#[test]
fn a_source_in_doubt_that_finds_nobody_stays_in_doubt_and_can_ask_again() {
    let Timeouts { recover, .. } = Timeouts::default();
    let mut pair = asking(Point::CommitSent);
    pair.source.handle_closed(pair.now);
    pair.source.handle_timeout(pair.now + recover);
    let error = ProtocolError::Closed { state: "waiting for Running" };
    assert_eq!(pair.source.poll_event(), Some(SourceEvent::Ended(SourceEnd::InDoubt { error })));
    assert_eq!(pair.source.owner(), GuestOwner::InDoubt);
    assert!(!pair.source.recover_again(pair.now), "it is not known to be stranded");
    assert!(pair.source.ask_again(pair.now));
    assert_eq!(pair.source.poll_event(), Some(SourceEvent::Reconnect));
    source_reconnects(&mut pair);
    pair.source.handle_message(pair.now, Message::Answer(AnswerStatus::NeverStarted));
    assert_eq!(pair.source.owner(), GuestOwner::Source);
}

#[test]
fn an_answer_that_takes_long_has_time_as_long_as_its_pieces_come() {
    let Timeouts { handshake, .. } = Timeouts::default();
    let mut pair = asking(Point::Running);
    for (first, word) in [(0, 1), (1, 0), (2, 0)] {
        pair.now += handshake - Duration::from_millis(1);
        pair.source.handle_timeout(pair.now);
        pair.source.handle_message(pair.now, Message::Arrived { first: ChunkIndex(first), words: vec![word] });
    }
    pair.source.handle_message(pair.now, Message::Resumed { generation: 1, arrived: Extent { chunks: 3, pages: PageCount(1) } });
    assert_eq!(pair.source.poll_event(), Some(SourceEvent::Recovered { generation: 1, arrived: pages(&[0]) }));

    let mut pair = asking(Point::Running);
    pair.source.handle_timeout(pair.now + handshake);
    assert_eq!(pair.source.poll_timeout(), Some(pair.now + handshake + Duration::from_millis(100)), "an attempt that failed");
}
