//! Pages that are discarded at the destination before the guest is paused.

use std::time::Duration;

use pageferry::protocol::{DestinationEnd, DestinationEvent, GuestOwner, ProtocolError, SourceEnd, SourceEvent};
use pageferry::units::{ByteCount, ChunkIndex, PageCount};
use pageferry::wire::{ChannelTotals, Extent, Message};

use crate::pair::{CHANNELS, MISSING, Pair, Point, pages, totals};

/// Of the missing pages, those that were stale before the guest was paused.
const STALE: [u64; 2] = [MISSING[1], MISSING[3]];

/// A pair in which the destination was told and has not discarded anything yet.
fn told() -> Pair {
    let mut pair = Pair::post_copy_at(Point::Copying);
    pair.source.announce(pair.now, totals(), &pages(&STALE));
    pair.deliver();
    assert_eq!(pair.destination_events.pop(), Some(DestinationEvent::Stale { totals: totals(), pages: pages(&STALE) }));
    pair
}

/// A pair in which it has.
fn discarded() -> Pair {
    let mut pair = told();
    pair.destination.discarded(pair.now);
    pair.deliver();
    assert_eq!(pair.source_events.pop(), Some(SourceEvent::Discarded));
    pair
}

#[test]
fn what_was_discarded_ahead_is_missing_with_the_rest() {
    let mut pair = discarded();
    pair.source.switch(pair.now, totals(), vec![7], &pages(&MISSING));
    pair.deliver();
    let missing = Some(pages(&MISSING));
    assert_eq!(pair.destination_events.pop(), Some(DestinationEvent::Finish { totals: totals(), state: vec![7], missing }));
    pair.destination.ready(pair.now);
    pair.deliver();
    pair.source.commit(pair.now, Duration::ZERO);
    pair.deliver();
    pair.destination.running(pair.now);
    pair.deliver();
    pair.destination.complete(pair.now);
    pair.deliver();
    assert_eq!(pair.source_events.pop(), Some(SourceEvent::Ended(SourceEnd::Completed)));
}

#[test]
fn until_commit_the_guest_stays_at_the_source_whatever_was_discarded() {
    for mut pair in [told(), discarded()] {
        let mut other = pair.clone();
        pair.source.handle_closed(pair.now);
        pair.destination.handle_closed(pair.now);
        pair.events();
        assert!(matches!(pair.source_events.pop(), Some(SourceEvent::Ended(SourceEnd::Failed { error: ProtocolError::Closed { .. } }))));
        let end = pair.destination_events.pop();
        assert!(matches!(end, Some(DestinationEvent::Ended(DestinationEnd::Dropped { error: ProtocolError::Closed { .. } }))), "{end:?}");
        assert_eq!((pair.source.owner(), pair.destination.may_run()), (GuestOwner::Source, false));
        pair.destination.discarded(pair.now);
        assert_eq!(pair.destination.poll_event(), None, "the session ended under the driver's hands");

        assert!(other.source.abort(other.now, "operator".into()));
        other.deliver();
        assert_eq!((other.source.owner(), other.destination.may_run()), (GuestOwner::Source, false));
    }
}

#[test]
fn what_does_not_add_up_is_refused_by_what_is_wrong() {
    let piece = |first, word| Message::Missing { first: ChunkIndex(first), words: vec![word] };
    let stale = |totals, pages| Message::Stale { totals, stale: Extent { chunks: 3, pages: PageCount(pages) } };
    let finish = |totals, pages| Message::Finish { totals, state: vec![], missing: Some(Extent { chunks: 3, pages: PageCount(pages) }) };
    let plain = Message::Finish { totals: totals(), state: vec![], missing: None };
    let sent = |pages| {
        let channel = ChannelTotals { frames: 1, pages: PageCount(pages), bytes: ByteCount(100), digest: 5 };
        vec![channel; usize::from(CHANNELS)]
    };
    let all = || vec![piece(0, 1 << 63 | 0b11), piece(2, 1 << 31)];
    let beginning = || Pair::post_copy_at(Point::Copying);
    let cases = [
        (beginning(), vec![stale(totals(), 1)], "1 pages announced, 0 came"),
        (beginning(), vec![piece(0, 1), stale(vec![], 1)], "totals of 0 channels, there are 2"),
        (told(), vec![piece(0, 1), stale(totals(), 1)], "it has come before"),
        (told(), [all(), vec![finish(totals(), 4)]].concat(), "it comes before Discarded"),
        (discarded(), vec![plain], "pages were discarded, and it does not switch to post-copy"),
        (discarded(), vec![piece(0, 0b11), finish(totals(), 2)], "page 159 was discarded and is not missing"),
        (discarded(), [all(), vec![finish(sent(1), 4)]].concat(), "pages were sent after some were discarded"),
        (discarded(), [all(), vec![finish(sent(u64::MAX), 4)]].concat(), "pages were sent after some were discarded"),
    ];
    for (mut pair, messages, why) in cases {
        messages.into_iter().for_each(|message| pair.destination.handle_message(pair.now, message));
        pair.events();
        let Some(DestinationEvent::Ended(DestinationEnd::Dropped { error: error @ ProtocolError::Senseless { .. } })) = pair.destination_events.pop()
        else {
            panic!("taken: {why}");
        };
        assert!(error.to_string().contains(why), "{error} is not about {why}");
    }
    let mut pair = Pair::at(Point::Copying);
    pair.destination.handle_message(pair.now, stale(totals(), 0));
    pair.events();
    let Some(DestinationEvent::Ended(DestinationEnd::Dropped { error })) = pair.destination_events.pop() else { panic!("taken") };
    assert!(error.to_string().contains("post-copy was not granted"), "{error}");
}

#[test]
fn a_discard_that_nobody_asked_for_costs_the_source_nothing() {
    for mut pair in [Pair::post_copy_at(Point::Copying), discarded(), Pair::post_copy_at(Point::Finishing)] {
        pair.source.handle_message(pair.now, Message::Discarded);
        pair.events();
        let end = pair.source_events.pop();
        assert!(matches!(end, Some(SourceEvent::Ended(SourceEnd::Failed { error: ProtocolError::Unexpected { .. } }))), "{end:?}");
        assert_eq!(pair.source.owner(), GuestOwner::Source);
    }
}

#[test]
#[should_panic(expected = "pages were announced as missing and are not")]
fn a_driver_that_switches_without_what_it_announced_is_a_bug() {
    let mut pair = discarded();
    pair.source.switch(pair.now, totals(), vec![], &pages(&MISSING[..3]));
}

#[test]
#[should_panic(expected = "pages were announced as missing and are not")]
fn a_driver_that_goes_back_to_pre_copy_is_a_bug() {
    let mut pair = discarded();
    pair.source.finish(pair.now, totals(), vec![]);
}

#[test]
#[should_panic(expected = "the destination is still discarding")]
fn a_driver_that_does_not_wait_is_a_bug() {
    let mut pair = told();
    pair.source.switch(pair.now, totals(), vec![], &pages(&MISSING));
}
