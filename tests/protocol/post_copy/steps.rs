//! The switch and the end of post-copy, one input at a time, on connections that hold.

use std::time::Duration;

use pageferry::bitmap::PageBitmap;
use pageferry::memory::MemoryLayout;
use pageferry::protocol::{
    AttachError, Destination, DestinationEnd, DestinationEvent, GuestOwner, ProtocolError, Resumption, Source, SourceEnd, SourceEvent, Timeouts,
    Tombstones,
};
use pageferry::units::{ByteCount, ChunkIndex, PageCount, PageIndex};
use pageferry::wire::{AnswerStatus, Extent, Features, Lane, MAX_BITMAP_WORDS, Message, Offer};

use crate::pair::{CHANNELS, CODECS, MISSING, Pair, Point, SESSION, TOKEN, lanes, pages, post_copy_offer, totals};

#[test]
fn a_session_without_trouble_moves_the_guest_and_then_its_pages() {
    let pair = Pair::post_copy_at(Point::Released);
    assert_eq!(
        pair.source_events,
        [
            SourceEvent::Accepted { channels: CHANNELS, codecs: CODECS, features: Features::POST_COPY, granule: 1 },
            SourceEvent::Ready,
            SourceEvent::Running,
            SourceEvent::Ended(SourceEnd::Completed)
        ]
    );
    assert_eq!(
        pair.destination_events,
        [
            DestinationEvent::Offered(post_copy_offer()),
            DestinationEvent::Finish { totals: totals(), state: vec![1, 2, 3], missing: Some(pages(&MISSING)) },
            DestinationEvent::Run { paused_for: Duration::from_millis(3) },
            DestinationEvent::Ended(DestinationEnd::Completed { unconfirmed: None }),
        ]
    );
    assert_eq!((pair.source.owner(), pair.destination.may_run()), (GuestOwner::Destination, true));
    assert_eq!(pair.destination.tombstone(), None);
    assert_eq!((pair.source.poll_timeout(), pair.destination.poll_timeout()), (None, None));
}

#[test]
fn a_source_that_may_switch_need_not() {
    let mut pair = Pair::post_copy_at(Point::Copying);
    pair.source.finish(pair.now, totals(), vec![]);
    pair.deliver();
    assert_eq!(pair.destination_events.pop(), Some(DestinationEvent::Finish { totals: totals(), state: vec![], missing: None }));
    pair.destination.ready(pair.now);
    pair.deliver();
    pair.source.commit(pair.now, Duration::ZERO);
    pair.deliver();
    assert_eq!(pair.destination.resume(pair.now, TOKEN), Resumption::Refused, "there is nothing to resume");
    pair.destination.running(pair.now);
    pair.deliver();
    assert_eq!(pair.source_events.pop(), Some(SourceEvent::Ended(SourceEnd::Completed)));
}

#[test]
fn nothing_may_be_missing_at_the_switch() {
    let mut pair = Pair::post_copy_at(Point::Copying);
    pair.source.switch(pair.now, totals(), vec![], &pages(&[]));
    pair.deliver();
    assert_eq!(pair.destination_events.pop(), Some(DestinationEvent::Finish { totals: totals(), state: vec![], missing: Some(pages(&[])) }));
}

#[test]
fn the_whole_set_of_missing_pages_arrives_however_many_pieces_it_takes() {
    let chunks = u32::try_from(3 * MAX_BITMAP_WORDS).unwrap();
    let layout = MemoryLayout::flat(PageCount(64 * u64::from(chunks))).unwrap();
    let mut missing = PageBitmap::new(chunks);
    missing.insert_run(PageIndex(77), PageCount(64 * 2 * MAX_BITMAP_WORDS as u64));
    missing.insert(PageIndex(layout.pages().0 - 1));

    let now = std::time::Instant::now();
    let mut source = Source::new(now, Offer { layout, ..post_copy_offer() }, Timeouts::default());
    let mut destination = Destination::new(now, Timeouts::default());
    let hello = source.poll_message().unwrap();
    destination.handle_message(now, hello);
    destination.accept(now, CHANNELS, CODECS, Features::POST_COPY, 1);
    source.handle_message(now, destination.poll_message().unwrap());
    lanes(Features::POST_COPY).for_each(|lane| destination.attach(now, TOKEN, lane, 0).unwrap());
    source.attached(now);
    source.switch(now, totals(), vec![], &missing);
    let sent: Vec<_> = std::iter::from_fn(|| source.poll_message()).collect();
    assert_eq!(sent.len(), 5, "three long pieces, the last page, and Finish");
    sent.into_iter().for_each(|message| destination.handle_message(now, message));
    let event = std::iter::from_fn(|| destination.poll_event()).last();
    assert_eq!(event, Some(DestinationEvent::Finish { totals: totals(), state: vec![], missing: Some(missing) }));
}

#[test]
fn a_switch_that_does_not_add_up_is_refused_by_what_is_wrong() {
    let piece = |first, words: &[u64]| Message::Missing { first: ChunkIndex(first), words: words.to_vec() };
    let finish = |chunks, pages| Message::Finish { totals: totals(), state: vec![], missing: Some(Extent { chunks, pages: PageCount(pages) }) };
    let plain = Message::Finish { totals: totals(), state: vec![], missing: None };
    let cases = [
        (vec![finish(3, 1)], "1 pages announced, 0 came"),
        (vec![finish(2, 0)], "2 chunks announced, there are 3"),
        (vec![piece(0, &[1]), finish(3, 2)], "2 pages announced, 1 came"),
        (vec![piece(0, &[1]), plain], "pages are missing, and it does not switch"),
        (vec![piece(1, &[1]), piece(1, &[1])], "1 words from chunk 1 on, after those up to chunk 2"),
        (vec![piece(1, &[1]), piece(0, &[1])], "1 words from chunk 0 on, after those up to chunk 2"),
        (vec![piece(2, &[1, 1])], "2 words from chunk 2 on, there are 3 chunks"),
        (vec![piece(2, &[1 << 32])], "page 160 does not belong there"),
    ];
    for (messages, why) in cases {
        let mut pair = Pair::post_copy_at(Point::Copying);
        messages.into_iter().for_each(|message| pair.destination.handle_message(pair.now, message));
        pair.events();
        let Some(DestinationEvent::Ended(DestinationEnd::Dropped { error: error @ ProtocolError::Senseless { .. } })) = pair.destination_events.pop()
        else {
            panic!("taken: {why}");
        };
        assert!(error.to_string().contains(why), "{error} is not about {why}");
    }
    for message in [piece(0, &[1]), finish(3, 0)] {
        let mut pair = Pair::at(Point::Copying);
        pair.destination.handle_message(pair.now, message);
        pair.events();
        let Some(DestinationEvent::Ended(DestinationEnd::Dropped { error })) = pair.destination_events.pop() else { panic!("taken") };
        assert!(error.to_string().contains("post-copy was not granted"), "{error}");
    }
}

#[test]
fn a_destination_grants_only_what_was_offered() {
    let mut pair = Pair::at(Point::Offered);
    let accept = Message::Accept { channels: CHANNELS, codecs: CODECS, features: Features::POST_COPY, granule: 1 };
    pair.source.handle_message(pair.now, accept);
    pair.events();
    let Some(SourceEvent::Ended(SourceEnd::Failed { error: ProtocolError::Senseless { why, .. } })) = pair.source_events.pop() else {
        panic!("accepted");
    };
    assert_eq!(why, "Features(0b1) granted, Features(0b0) were offered");
}

#[test]
#[should_panic(expected = "post-copy was not granted")]
fn a_driver_that_switches_without_a_grant_is_a_bug() {
    let mut pair = Pair::at(Point::Copying);
    pair.source.switch(pair.now, totals(), vec![], &pages(&MISSING));
}

#[test]
#[should_panic(expected = "pages that do not exist are missing")]
fn a_driver_that_misses_pages_that_do_not_exist_is_a_bug() {
    let mut pair = Pair::post_copy_at(Point::Copying);
    pair.source.switch(pair.now, totals(), vec![], &pages(&[160]));
}

#[test]
#[should_panic(expected = "completed while starting the guest")]
fn a_driver_that_completes_before_the_guest_runs_is_a_bug() {
    let mut pair = Pair::post_copy_at(Point::Starting);
    pair.destination.complete(pair.now);
}

#[test]
fn the_urgent_lane_is_attached_exactly_where_post_copy_was_granted() {
    let mut pair = Pair::post_copy_at(Point::Accepted);
    let now = pair.now;
    assert_eq!(pair.destination.attach(now, TOKEN, Lane::Urgent, 1), Err(AttachError::Generation { found: 1, current: 0 }));
    assert_eq!(pair.destination.attach(now, TOKEN, Lane::Urgent, 0), Ok(()));
    assert_eq!(pair.destination.attach(now, TOKEN, Lane::Urgent, 0), Err(AttachError::Twice { lane: Lane::Urgent }));
    (0..CHANNELS).for_each(|channel| pair.destination.attach(now, TOKEN, Lane::Bulk(channel), 0).unwrap());
    assert_eq!(pair.destination.attach(now, TOKEN, Lane::Urgent, 0), Err(AttachError::State { state: "receiving" }), "all are there");

    let mut pair = Pair::at(Point::Accepted);
    assert_eq!(pair.destination.attach(now, TOKEN, Lane::Urgent, 0), Err(AttachError::NotGranted));
    (0..CHANNELS).for_each(|channel| pair.destination.attach(now, TOKEN, Lane::Bulk(channel), 0).unwrap());
    assert_eq!(pair.destination.attach(now, TOKEN, Lane::Bulk(0), 0), Err(AttachError::State { state: "receiving" }), "all are there");
}

#[test]
fn both_ends_keep_each_other_company_while_pages_are_served() {
    let mut pair = Pair::post_copy_at(Point::Running);
    pair.destination.arrived(5, ByteCount(500));
    pair.source_events.clear();
    for _ in 0..60 {
        pair.now += Duration::from_secs(1);
        pair.source.handle_timeout(pair.now);
        pair.destination.handle_timeout(pair.now);
        pair.deliver();
    }
    assert_eq!(pair.source_events, vec![SourceEvent::Progress { frames: 5, bytes: ByteCount(500) }; 60]);
}

#[test]
fn neither_end_may_call_it_off_once_the_guest_runs() {
    let mut pair = Pair::post_copy_at(Point::CommitSent);
    assert!(!pair.source.abort(pair.now, "operator".into()));
    let mut pair = Pair::post_copy_at(Point::Running);
    assert!(!pair.source.abort(pair.now, "operator".into()));
    assert!(!pair.destination.fail(pair.now, "operator".into()));
    assert_eq!((pair.source.owner(), pair.destination.may_run()), (GuestOwner::Destination, true));
}

#[test]
fn a_guest_that_cannot_be_resumed_goes_back_with_all_its_pages() {
    let mut pair = Pair::post_copy_at(Point::Starting);
    assert!(pair.destination.fail(pair.now, "no vCPU".into()));
    pair.deliver();
    let error = ProtocolError::PeerGaveUp { reason: "called off: no vCPU".into() };
    assert_eq!(pair.source_events.pop(), Some(SourceEvent::Ended(SourceEnd::Failed { error })));
    assert_eq!((pair.source.owner(), pair.destination.may_run()), (GuestOwner::Source, false));
    assert_eq!(pair.destination.resume(pair.now, TOKEN), Resumption::NeverStarted);
}

#[test]
fn a_lane_that_breaks_after_the_switch_and_before_commit_leaves_the_guest_at_the_source() {
    for point in [Point::Finishing, Point::Ready, Point::CommitQueued] {
        let mut pair = Pair::post_copy_at(point);
        pair.source.interrupt(pair.now, 1);
        assert_eq!(pair.source.poll_event(), None, "there is no such lane");
        pair.source.interrupt(pair.now, 0);
        pair.events();
        assert!(matches!(pair.source_events.pop(), Some(SourceEvent::Ended(SourceEnd::Failed { error: ProtocolError::Lane { .. } }))), "{point:?}");
        assert_eq!(pair.source.owner(), GuestOwner::Source);
        let said: Vec<_> = std::iter::from_fn(|| pair.source.poll_message()).collect();
        assert!(matches!(said.as_slice(), [Message::Abort { .. }]), "{said:?}");

        let mut pair = Pair::post_copy_at(point);
        pair.destination.interrupt(pair.now, 0);
        pair.events();
        let end = pair.destination_events.pop();
        assert!(matches!(end, Some(DestinationEvent::Ended(DestinationEnd::Dropped { error: ProtocolError::Lane { .. } }))), "{end:?} at {point:?}");
        assert!(matches!(pair.destination.poll_message(), Some(Message::Failed { .. })));
    }
    let mut pair = Pair::post_copy_at(Point::Copying);
    pair.source.interrupt(pair.now, 0);
    pair.destination.interrupt(pair.now, 0);
    assert_eq!((pair.source.poll_event(), pair.destination.poll_event()), (None, None), "before the switch the drivers know what to do");
}

#[test]
fn a_completion_that_nobody_confirms_is_remembered_with_its_number_of_pages() {
    let mut pair = Pair::post_copy_at(Point::Running);
    pair.destination.complete(pair.now);
    assert_eq!(pair.destination.resume(pair.now, TOKEN), Resumption::Complete { pages: PageCount(4) }, "from the live machine");
    pair.destination.handle_closed(pair.now);
    pair.events();
    let unconfirmed = Some(ProtocolError::Closed { state: "waiting for Released" });
    assert_eq!(pair.destination_events.pop(), Some(DestinationEvent::Ended(DestinationEnd::Completed { unconfirmed })));

    let Timeouts { silence, handshake, recover, .. } = Timeouts::default();
    let mut stones = Tombstones::new(Duration::ZERO);
    stones.keep(pair.now, pair.destination.tombstone().unwrap());
    assert_eq!(stones.poll_timeout(), Some(pair.now + silence + handshake + recover), "as long as a source may take to come");
    assert_eq!(stones.resume(pair.now, SESSION, TOKEN), Resumption::Complete { pages: PageCount(4) });
    assert_eq!(stones.resume(pair.now, SESSION, pageferry::wire::Token([0; 16])), Resumption::Refused);
    assert_eq!(stones.answer(pair.now, SESSION, TOKEN), AnswerStatus::Running);
    stones.released(pair.now, SESSION, TOKEN);
    assert_eq!(stones.resume(pair.now, SESSION, TOKEN), Resumption::Refused);
}

#[test]
fn a_completion_of_another_number_of_pages_makes_no_sense() {
    for number in [0, 3, 5, u64::MAX] {
        let mut pair = Pair::post_copy_at(Point::Running);
        pair.source_events.clear();
        pair.source.handle_message(pair.now, Message::Complete { pages: PageCount(number) });
        pair.events();
        let why = format!("{number} pages have arrived, 4 were missing");
        let error = ProtocolError::Senseless { message: "Complete", why };
        assert_eq!(pair.source_events, [SourceEvent::Interrupted { error }, SourceEvent::Reconnect]);
    }
}

#[test]
fn a_query_and_a_release_in_post_copy_end_nothing() {
    let mut pair = Pair::post_copy_at(Point::Running);
    assert_eq!(pair.destination.query(pair.now, TOKEN), AnswerStatus::Running);
    pair.destination.released(pair.now, TOKEN);
    pair.destination_events.clear();
    pair.events();
    assert_eq!(pair.destination_events, []);
    pair.destination.complete(pair.now);
    pair.deliver();
    assert_eq!(pair.source_events.pop(), Some(SourceEvent::Ended(SourceEnd::Completed)));
}
