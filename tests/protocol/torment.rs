//! A machine under any sequence of operations, in virtual time: what a peer says, what a driver does, and the clock.
//!
//! Nothing here chooses the sequence: the property tests and the fuzz targets do.

use std::time::{Duration, Instant};

use pageferry::page::Codecs;
use pageferry::protocol::{Destination, DestinationEvent, GuestOwner, Source, SourceEvent};
use pageferry::units::ByteCount;
use pageferry::wire::{AnswerStatus, Extent, Features, Lane, Message, RefuseReason};

use crate::pair::{CHANNELS, CODECS, Pair, Point, SESSION, TOKEN, offer, totals};

/// Each message there is, and the variants that differ in what they may do.
pub(crate) fn messages() -> Vec<Message> {
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

/// What may be done to a machine in any state without being a bug of the driver.
#[derive(Clone, Debug)]
pub(crate) enum Operation {
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

/// The source under `operations`, from `point`.
pub(crate) fn torment_source(point: Point, operations: Vec<Operation>) {
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

/// The destination under `operations`, from `point`.
pub(crate) fn torment_destination(point: Point, operations: Vec<Operation>) {
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
pub(crate) trait Timed {
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
pub(crate) fn pass(now: &mut Instant, ms: u64, machine: &mut impl Timed) {
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
