//! A peer that says anything at any time.

use std::time::Duration;

use pageferry::protocol::{DestinationEvent, GuestOwner, ProtocolError, SourceEnd, SourceEvent, Timeouts};
use pageferry::wire::Message;
use proptest::prelude::*;

use crate::pair::{CHANNELS, CODECS, Pair, Point};
use crate::torment::{Operation, messages, pass, torment_destination, torment_source};

fn is_legal_for_source(point: Point, message: &Message) -> bool {
    match message {
        Message::Failed { .. } => true,
        Message::Accept { channels, codecs, .. } => point == Point::Offered && *channels == CHANNELS && *codecs == CODECS,
        Message::Refuse { .. } => point == Point::Offered,
        Message::Progress { .. } => point > Point::Offered,
        Message::Ready => point == Point::Finishing,
        Message::Running => matches!(point, Point::CommitSent | Point::Starting),
        _ => false,
    }
}

fn is_legal_for_destination(point: Point, message: &Message) -> bool {
    match message {
        Message::Ping => true,
        Message::Abort { .. } => point < Point::Starting,
        Message::Finish { totals, .. } => point == Point::Copying && totals.len() == usize::from(CHANNELS),
        Message::Commit { .. } => matches!(point, Point::Ready | Point::CommitQueued | Point::CommitSent),
        Message::Released => point == Point::Running,
        _ => false,
    }
}

#[test]
fn a_message_out_of_place_costs_the_source_nothing_before_commit() {
    let mut cases = 0;
    for point in Point::ALL.into_iter().filter(|point| *point < Point::Running) {
        for message in messages().into_iter().filter(|message| !is_legal_for_source(point, message)) {
            let mut pair = Pair::at(point);
            pair.source_events.clear();
            pair.source.handle_message(pair.now, message.clone());
            pair.events();
            if point < Point::CommitSent {
                assert_eq!(pair.source.owner(), GuestOwner::Source);
                assert!(
                    matches!(
                        pair.source_events.as_slice(),
                        [SourceEvent::Ended(SourceEnd::Failed { error: ProtocolError::Unexpected { .. } | ProtocolError::Senseless { .. } })]
                    ),
                    "{message:?} at {point:?}: {:?}",
                    pair.source_events
                );
                let said: Vec<_> = std::iter::from_fn(|| pair.source.poll_message()).collect();
                assert!(matches!(said.last(), Some(Message::Abort { .. })), "{said:?}");
                assert!(!said.iter().any(|message| matches!(message, Message::Commit { .. })), "{said:?}");
            } else {
                assert_eq!(pair.source.owner(), GuestOwner::InDoubt, "{message:?} at {point:?}");
                assert_eq!(pair.source_events, [SourceEvent::Reconnect], "{message:?} at {point:?}");
            }
            cases += 1;
        }
    }
    assert!(cases > 130, "{cases} cases");
}

#[test]
fn a_message_out_of_place_never_makes_the_destination_run_the_guest_or_lose_it() {
    let mut cases = 0;
    for point in Point::ALL.into_iter().filter(|point| *point < Point::Released) {
        for message in messages().into_iter().filter(|message| !is_legal_for_destination(point, message)) {
            let mut pair = Pair::at(point);
            pair.destination_events.clear();
            pair.destination.handle_message(pair.now, message.clone());
            pair.events();
            assert_eq!(pair.destination.may_run(), point >= Point::Starting, "{message:?} at {point:?}");
            let ran_again = pair.destination_events.iter().any(|event| matches!(event, DestinationEvent::Run { .. }));
            assert!(!ran_again, "{message:?} at {point:?}");
            if point < Point::Starting {
                let said = pair.destination.poll_message();
                assert!(matches!(said, Some(Message::Failed { .. })), "{said:?} after {message:?} at {point:?}");
            }
            cases += 1;
        }
    }
    assert!(cases > 150, "{cases} cases");
}

fn operations() -> impl Strategy<Value = Vec<Operation>> {
    let operation = prop_oneof![
        8 => prop::sample::select(messages()).prop_map(Operation::Message),
        1 => Just(Operation::Closed),
        4 => (0_u64..4000).prop_map(Operation::Pass),
        8 => Just(Operation::Act),
        1 => Just(Operation::GiveUp),
        2 => Just(Operation::Reconnected),
        1 => Just(Operation::ReconnectFailed),
        1 => any::<bool>().prop_map(Operation::Query),
        8 => Just(Operation::Drain),
    ];
    prop::collection::vec(operation, 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn nothing_a_peer_says_takes_the_guest_from_a_source_that_did_not_commit(point in prop::sample::select(&Point::ALL[..]), operations in operations()) {
        torment_source(point, operations);
    }

    #[test]
    fn nothing_a_peer_says_makes_a_destination_run_a_guest_without_one_commit(point in prop::sample::select(&Point::ALL[..]), operations in operations()) {
        torment_destination(point, operations);
    }

    #[test]
    fn a_machine_left_alone_comes_to_an_end(point in prop::sample::select(&Point::ALL[..]), operations in operations()) {
        // Whatever happened before, with nothing heard any more each session ends in time.
        let timeouts = Timeouts::default();
        let Pair { mut now, mut source, mut destination, .. } = Pair::at(point);
        for operation in operations {
            match operation {
                Operation::Message(message) => {
                    source.handle_message(now, message.clone());
                    destination.handle_message(now, message);
                }
                Operation::Pass(ms) => now += Duration::from_millis(ms),
                Operation::Reconnected => source.reconnected(now),
                Operation::Drain => {
                    while source.poll_message().is_some() {}
                    while destination.poll_message().is_some() {}
                }
                _ => {}
            }
        }
        let (mut source_now, mut destination_now) = (now, now);
        let longest = timeouts.silence + timeouts.resolve + timeouts.handshake;
        pass(&mut source_now, u64::try_from(longest.as_millis()).unwrap(), &mut source);
        prop_assert_eq!(source.poll_timeout(), None);
        // The driver of a destination that is deciding, or starting the guest, has to do something first.
        pass(&mut destination_now, u64::try_from(longest.as_millis()).unwrap(), &mut destination);
        prop_assert_eq!(destination.poll_timeout(), None);
    }
}
