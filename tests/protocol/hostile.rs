//! A peer that says anything at any time.

use std::time::{Duration, Instant};

use pageferry::page::Codecs;
use pageferry::protocol::{Destination, DestinationEvent, GuestOwner, ProtocolError, Source, SourceEnd, SourceEvent, Timeouts};
use pageferry::units::ByteCount;
use pageferry::wire::{AnswerStatus, Extent, Features, Lane, Message, RefuseReason};
use proptest::prelude::*;

use crate::pair::{CHANNELS, CODECS, Pair, Point, SESSION, TOKEN, offer, totals};

/// Each message there is, and the variants that differ in what they may do.
fn messages() -> Vec<Message> {
    let mut greedy = offer();
    greedy.channels = 65;
    vec![
        Message::Hello(offer()),
        Message::Hello(greedy),
        Message::Accept { channels: CHANNELS, codecs: CODECS, features: Features::NONE, granule: 1 },
        Message::Accept { channels: 0, codecs: CODECS, features: Features::NONE, granule: 1 },
        Message::Accept { channels: CHANNELS + 1, codecs: CODECS, features: Features::NONE, granule: 1 },
        Message::Accept { channels: CHANNELS, codecs: CODECS.or(Codecs::ZSTD), features: Features::NONE, granule: 1 },
        Message::Refuse { reason: RefuseReason::Busy, detail: "full".into() },
        Message::Attach { session: SESSION, token: TOKEN, lane: Lane::Bulk(0), generation: 0 },
        Message::Attached { lane: Lane::Bulk(0) },
        Message::Ping,
        Message::Progress { frames: 1, bytes: ByteCount(1) },
        Message::Finish { totals: totals(), state: vec![], missing: None },
        Message::Finish { totals: vec![], state: vec![], missing: None },
        Message::Ready,
        Message::Commit { paused_for: Duration::ZERO },
        Message::Running,
        Message::Released,
        Message::Abort { reason: "no".into() },
        Message::Failed { reason: "no".into() },
        Message::Query { session: SESSION, token: TOKEN },
        Message::Answer(AnswerStatus::Running),
        Message::Answer(AnswerStatus::NeverStarted),
        Message::Answer(AnswerStatus::Unknown),
        Message::Stale { totals: totals(), stale: Extent::default() },
        Message::Discarded,
    ]
}

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

/// What may be done to a machine in any state without being a bug of the driver.
#[derive(Clone, Debug)]
enum Operation {
    Message(Message),
    Closed,
    /// So many milliseconds pass.
    Pass(u64),
    /// The driver does what the last event asked for, if anything.
    Act,
    /// The driver calls it off, or its work failed.
    GiveUp,
    Reconnected,
    ReconnectFailed,
    Query(bool),
    Drain,
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

/// The source under `operations`, from `point`.
fn torment_source(point: Point, operations: Vec<Operation>) {
    let Pair { mut now, mut source, .. } = Pair::at(point);
    let (mut task, mut committed, mut ends) = (None, point >= Point::CommitSent, 0);
    for operation in operations {
        let before = source.owner();
        let gives_away = matches!(operation, Operation::Message(Message::Running | Message::Answer(AnswerStatus::Running)));
        let gives_back = matches!(operation, Operation::Message(Message::Failed { .. } | Message::Answer(AnswerStatus::NeverStarted)));
        match operation {
            Operation::Message(message) => source.handle_message(now, message),
            Operation::Closed => source.handle_closed(now),
            Operation::Pass(ms) => pass(&mut now, ms, &mut source),
            Operation::Act => match task.take() {
                Some(SourceEvent::Accepted { .. }) => source.attached(now),
                Some(SourceEvent::Ready) => source.commit(now, Duration::ZERO),
                _ => {}
            },
            Operation::GiveUp => assert!(!source.abort(now, "operator".into()) || before == GuestOwner::Source),
            Operation::Reconnected => source.reconnected(now),
            Operation::ReconnectFailed => source.reconnect_failed(now),
            Operation::Query(_) => {}
            Operation::Drain => {
                committed |= std::iter::from_fn(|| source.poll_message()).any(|message| matches!(message, Message::Commit { .. }));
            }
        }
        while let Some(event) = source.poll_event() {
            ends += u32::from(matches!(event, SourceEvent::Ended(_)));
            task = Some(event);
        }
        assert!(ends <= 1, "ended twice");
        assert!(committed || source.owner() == GuestOwner::Source, "given away without Commit");
        if source.owner() != before && before != GuestOwner::Source {
            assert!(before == GuestOwner::InDoubt, "{before} is final");
            assert_eq!(source.owner(), if gives_away { GuestOwner::Destination } else { GuestOwner::Source });
            assert!(gives_away || gives_back, "nobody said so");
        }
    }
}

fn torment_destination(point: Point, operations: Vec<Operation>) {
    let Pair { mut now, mut destination, .. } = Pair::at(point);
    let (mut task, mut runs, mut ends, mut answered) = (None, u32::from(point >= Point::Starting), 0, None);
    if point == Point::Starting {
        task = Some(DestinationEvent::Run { paused_for: Duration::ZERO });
    }
    for operation in operations {
        let (could, before) = (destination.may_run(), runs);
        let commit = matches!(operation, Operation::Message(Message::Commit { .. }));
        match operation {
            Operation::Message(message) => destination.handle_message(now, message),
            Operation::Closed => destination.handle_closed(now),
            Operation::Pass(ms) => pass(&mut now, ms, &mut destination),
            Operation::Act => match task.take() {
                Some(DestinationEvent::Finish { .. }) => destination.ready(now),
                Some(DestinationEvent::Run { .. }) => destination.running(now),
                _ => {}
            },
            Operation::GiveUp => {
                if destination.fail(now, "no vCPU".into()) {
                    task = None;
                    assert!(!destination.may_run());
                }
            }
            Operation::Query(right) => {
                let status = destination.query(now, if right { TOKEN } else { pageferry::wire::Token([0; 16]) });
                assert!(right || status == AnswerStatus::Unknown, "told a stranger");
                answered = answered.or(Some(status)).filter(|status| *status != AnswerStatus::Unknown);
            }
            Operation::Reconnected | Operation::ReconnectFailed => {}
            Operation::Drain => while destination.poll_message().is_some() {},
        }
        while let Some(event) = destination.poll_event() {
            runs += u32::from(matches!(event, DestinationEvent::Run { .. }));
            ends += u32::from(matches!(event, DestinationEvent::Ended(_)));
            task = Some(event);
        }
        assert!(ends <= 1, "ended twice");
        assert!(runs <= 1, "run twice");
        assert!(runs == before || commit, "run without Commit");
        assert!(could || !destination.may_run() || commit, "may run without Commit");
        match answered {
            Some(AnswerStatus::Running) => assert!(destination.may_run(), "an Answer was not kept"),
            Some(_) => assert!(!destination.may_run(), "an Answer was not kept"),
            None => {}
        }
    }
}

/// The two machines, as far as time goes.
trait Timed {
    fn timeout(&self) -> Option<Instant>;
    fn handle(&mut self, now: Instant);
}

impl Timed for Source {
    fn timeout(&self) -> Option<Instant> {
        self.poll_timeout()
    }
    fn handle(&mut self, now: Instant) {
        self.handle_timeout(now);
    }
}

impl Timed for Destination {
    fn timeout(&self) -> Option<Instant> {
        self.poll_timeout()
    }
    fn handle(&mut self, now: Instant) {
        self.handle_timeout(now);
    }
}

/// Lets `ms` pass, with every timeout on the way. A timeout that was handled must not be due still, or drivers would spin.
fn pass(now: &mut Instant, ms: u64, machine: &mut impl Timed) {
    let end = *now + Duration::from_millis(ms);
    let mut spins = 0;
    while let Some(at) = machine.timeout().filter(|at| *at <= end) {
        spins = if at <= *now { spins + 1 } else { 0 };
        assert!(spins < 4, "a timeout stays due");
        *now = at.max(*now);
        machine.handle(*now);
    }
    *now = end;
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
