//! A peer that says anything at any time to an end in post-copy.
//!
//! It may keep the session from getting on, which it could do by saying nothing as well. It must not get the guest back
//! from a source that gave it away, nor have a source throw away pages, nor have a destination drop a guest that runs.

use pageferry::protocol::{DestinationEvent, GuestOwner, Resumption, SourceEnd, SourceEvent};
use pageferry::wire::Message;
use proptest::prelude::*;

use super::torment::{ALL_PAGES, Operation, messages, torment_destination, torment_source};
use crate::pair::{Pair, Point, TOKEN};

#[test]
fn a_message_out_of_place_never_gets_the_guest_back_from_a_destination_that_runs_it() {
    for message in messages() {
        let mut pair = Pair::post_copy_at(Point::Running);
        pair.source_events.clear();
        pair.source.handle_message(pair.now, message.clone());
        pair.events();
        assert_eq!(pair.source.owner(), GuestOwner::Destination, "{message:?}");
        match message {
            Message::Progress { .. } => assert!(matches!(pair.source_events.as_slice(), [SourceEvent::Progress { .. }])),
            Message::Complete { pages: ALL_PAGES } => assert_eq!(pair.source_events, [SourceEvent::Ended(SourceEnd::Completed)]),
            _ => assert!(matches!(pair.source_events.as_slice(), [SourceEvent::Interrupted { .. }, SourceEvent::Reconnect]), "{message:?}"),
        }
    }
}

#[test]
fn a_message_out_of_place_never_makes_a_destination_drop_a_guest_that_needs_pages() {
    for message in messages() {
        for point in [Point::Starting, Point::Running] {
            let mut pair = Pair::post_copy_at(point);
            pair.destination_events.clear();
            pair.destination.handle_message(pair.now, message.clone());
            pair.events();
            assert!(pair.destination.may_run(), "{message:?} at {point:?}");
            if message == Message::Ping {
                assert_eq!(pair.destination_events, []);
            } else {
                assert!(matches!(pair.destination_events.as_slice(), [DestinationEvent::Interrupted { .. }]), "{message:?} at {point:?}");
            }
            assert_eq!(pair.destination.resume(pair.now, TOKEN), Resumption::Accepted { generation: 1 });
        }
    }
}

fn operations() -> impl Strategy<Value = Vec<Operation>> {
    let operation = prop_oneof![
        8 => prop::sample::select(messages()).prop_map(Operation::Message),
        1 => Just(Operation::Closed),
        3 => (0_u64..4000).prop_map(Operation::Pass),
        6 => Just(Operation::Act),
        1 => Just(Operation::GiveUp),
        4 => prop::bool::weighted(0.8).prop_map(Operation::Connect),
        1 => (0_u32..3).prop_map(Operation::Interrupt),
        3 => (0_u32..3).prop_map(Operation::Attach),
        2 => prop::bool::weighted(0.8).prop_map(Operation::Resume),
        2 => (0_u32..3).prop_map(Operation::Resumed),
        1 => Just(Operation::Complete),
        1 => Just(Operation::Again),
        6 => Just(Operation::Drain),
    ];
    prop::collection::vec(operation, 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn nothing_a_peer_says_makes_a_source_take_back_the_guest_or_throw_its_pages_away(
        point in prop::sample::select(&Point::ALL[..]),
        operations in operations(),
    ) {
        torment_source(point, operations);
    }

    #[test]
    fn nothing_a_peer_says_makes_a_destination_drop_a_guest_that_lacks_pages(
        point in prop::sample::select(&Point::ALL[..]),
        operations in operations(),
    ) {
        torment_destination(point, operations);
    }
}
