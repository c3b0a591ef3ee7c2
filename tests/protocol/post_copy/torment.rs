//! A machine in post-copy under any sequence of operations, in virtual time.
//!
//! Nothing here chooses the sequence: the property tests and the fuzz targets do.

use std::time::Duration;

use pageferry::bitmap::PageBitmap;
use pageferry::protocol::{DestinationEnd, DestinationEvent, GuestOwner, Resumption, SourceEnd, SourceEvent};
use pageferry::units::{ByteCount, ChunkIndex, PageCount, PageIndex};
use pageferry::wire::{AnswerStatus, Extent, Features, Lane, Message, RefuseReason, Token};

use crate::pair::{CHANNELS, CODECS, MISSING, Pair, Point, SESSION, TOKEN, lanes, offer, pages, totals};
use crate::torment::pass;

/// All that were missing.
pub(crate) const ALL_PAGES: PageCount = PageCount(MISSING.len() as u64);

/// Each message there is, and the variants that differ in what they may do.
pub(crate) fn messages() -> Vec<Message> {
    let extent = |pages| Extent { chunks: 3, pages: PageCount(pages) };
    let piece = |first, word| (ChunkIndex(first), vec![word]);
    let [(first, words), (stray, strays), (outside, none)] = [piece(0, 3), piece(1, 1), piece(3, 0)];
    vec![
        Message::Hello(offer()),
        Message::Accept { channels: CHANNELS, codecs: CODECS, features: Features::POST_COPY, granule: 1 },
        Message::Refuse { reason: RefuseReason::Busy, detail: "full".into() },
        Message::Attach { session: SESSION, token: TOKEN, lane: Lane::Urgent, generation: 1 },
        Message::Attached { lane: Lane::Urgent },
        Message::Ping,
        Message::Progress { frames: 1, bytes: ByteCount(1) },
        Message::Finish { totals: totals(), state: vec![], missing: None },
        Message::Finish { totals: totals(), state: vec![], missing: Some(extent(0)) },
        Message::Finish { totals: totals(), state: vec![], missing: Some(extent(2)) },
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
        Message::Missing { first, words: words.clone() },
        Message::Missing { first: stray, words: strays.clone() },
        Message::Missing { first: outside, words: none.clone() },
        Message::Fetch { pages: vec![PageIndex(0)] },
        Message::Resume { session: SESSION, token: TOKEN },
        Message::Arrived { first, words },
        Message::Arrived { first: stray, words: strays },
        Message::Arrived { first: outside, words: none },
        Message::Resumed { generation: 1, arrived: extent(0) },
        Message::Resumed { generation: 2, arrived: extent(2) },
        Message::Complete { pages: ALL_PAGES },
        Message::Complete { pages: PageCount(1) },
        Message::Stale { totals: totals(), stale: extent(0) },
        Message::Stale { totals: totals(), stale: extent(2) },
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
    /// The driver does what is to be done.
    Act,
    GiveUp,
    Connect(bool),
    Interrupt(u32),
    Attach(u32),
    Resume(bool),
    Resumed(u32),
    Complete,
    Again,
    Drain,
}

/// The word of a destination that decides about the guest.
fn decides(operation: &Operation) -> Option<GuestOwner> {
    let Operation::Message(message) = operation else { return None };
    match message {
        Message::Running | Message::Answer(AnswerStatus::Running) | Message::Complete { pages: ALL_PAGES } => Some(GuestOwner::Destination),
        Message::Failed { .. } | Message::Answer(AnswerStatus::NeverStarted) => Some(GuestOwner::Source),
        _ => None,
    }
}

/// The source under `operations`, from `point`.
pub(crate) fn torment_source(point: Point, operations: Vec<Operation>) {
    let Pair { mut now, mut source, .. } = Pair::post_copy_at(point);
    let (mut task, mut committed, mut is_over) = (None, point >= Point::CommitSent, point == Point::Released);
    for operation in operations {
        let (before, word) = (source.owner(), decides(&operation));
        let completes = matches!(operation, Operation::Message(Message::Complete { pages: ALL_PAGES }));
        match operation {
            Operation::Message(message) => source.handle_message(now, message),
            Operation::Closed => source.handle_closed(now),
            Operation::Pass(ms) => pass(&mut now, ms, &mut source),
            Operation::Act => match task.take() {
                Some(SourceEvent::Accepted { .. }) => source.attached(now),
                Some(SourceEvent::Ready) => source.commit(now, Duration::ZERO),
                Some(SourceEvent::Recovered { generation, .. }) => drop(source.reattached(now, generation)),
                _ => {}
            },
            Operation::GiveUp => assert!(!source.abort(now, "operator".into()) || before == GuestOwner::Source),
            Operation::Connect(true) => source.reconnected(now),
            Operation::Connect(false) => source.reconnect_failed(now),
            Operation::Interrupt(generation) => source.interrupt(now, generation),
            Operation::Attach(generation) => drop(source.reattached(now, generation)),
            Operation::Again => is_over &= !(source.ask_again(now) || source.recover_again(now)),
            Operation::Resume(_) | Operation::Resumed(_) | Operation::Complete => {}
            Operation::Drain => {
                committed |= std::iter::from_fn(|| source.poll_message()).any(|message| matches!(message, Message::Commit { .. }));
            }
        }
        while let Some(event) = source.poll_event() {
            assert!(!is_over, "{event:?} after the end");
            if let SourceEvent::Ended(end) = &event {
                is_over = true;
                assert!(*end != SourceEnd::Completed || completes, "the pages are thrown away");
            }
            task = Some(event);
        }
        assert!(committed || source.owner() == GuestOwner::Source, "given away without Commit");
        if source.owner() != before && before != GuestOwner::Source {
            assert_eq!((before, Some(source.owner())), (GuestOwner::InDoubt, word), "nobody said so");
        }
    }
}

/// A guest as the destination's driver sees it.
struct Incoming {
    is_starting: bool,
    is_running: bool,
    is_complete: bool,
    /// What has come of the missing pages, of which the peer says how many there are.
    arrived: PageBitmap,
}

impl Incoming {
    /// The machine says so, after a Commit or not.
    fn told(&mut self, event: &DestinationEvent, commit: bool) {
        match event {
            DestinationEvent::Run { .. } => {
                assert!(commit && !self.is_starting && !self.is_running, "run twice, or without Commit");
                self.is_starting = true;
            }
            // Without the switch nothing is missing.
            DestinationEvent::Finish { missing, .. } => {
                self.is_complete = missing.is_none();
                let mut others = self.arrived.clone();
                missing.iter().for_each(|missing| others.subtract(missing));
                self.arrived.subtract(&others);
            }
            DestinationEvent::Ended(DestinationEnd::Completed { .. }) => assert!(self.is_complete, "over though pages are missing"),
            DestinationEvent::Ended(_) => assert!(!self.is_running && !self.is_starting, "dropped though it may run"),
            _ => {}
        }
    }
}

/// The destination under `operations`, from `point`.
pub(crate) fn torment_destination(point: Point, operations: Vec<Operation>) {
    let Pair { mut now, mut destination, .. } = Pair::post_copy_at(point);
    let mut guest = Incoming {
        is_starting: point == Point::Starting,
        is_running: point >= Point::Running,
        is_complete: point == Point::Released,
        arrived: pages(&MISSING[..2]),
    };
    let (mut task, mut is_over) = (None, point == Point::Released);
    for operation in operations {
        let commit = matches!(operation, Operation::Message(Message::Commit { .. }));
        let could = destination.may_run();
        match operation {
            Operation::Message(message) => destination.handle_message(now, message),
            Operation::Closed => destination.handle_closed(now),
            Operation::Pass(ms) => pass(&mut now, ms, &mut destination),
            Operation::Act if guest.is_starting => {
                destination.running(now);
                (guest.is_starting, guest.is_running) = (false, true);
            }
            Operation::Act => match task.take() {
                Some(DestinationEvent::Stale { .. }) => destination.discarded(now),
                Some(DestinationEvent::Finish { .. }) => destination.ready(now),
                Some(DestinationEvent::Resume { generation }) => destination.resumed(now, generation, &guest.arrived),
                _ => {}
            },
            Operation::GiveUp => {
                let failed = destination.fail(now, "no vCPU".into());
                assert!(!failed || !guest.is_running, "a guest that runs was given up");
                guest.is_starting &= !failed;
            }
            Operation::Interrupt(generation) => destination.interrupt(now, generation),
            Operation::Attach(generation) => lanes(Features::POST_COPY).for_each(|lane| _ = destination.attach(now, TOKEN, lane, generation)),
            Operation::Resume(right) => {
                let resumption = destination.resume(now, if right { TOKEN } else { Token([0; 16]) });
                assert!(right || resumption == Resumption::Refused, "a stranger got in");
                assert!(!matches!(resumption, Resumption::Complete { .. }) || guest.is_complete, "pages are missing");
                assert!(resumption != Resumption::NeverStarted || !destination.may_run(), "an Answer was not kept");
            }
            Operation::Resumed(generation) => destination.resumed(now, generation, &guest.arrived),
            Operation::Complete if guest.is_running && !guest.is_complete && destination.tombstone().is_none() => {
                destination.complete(now);
                guest.is_complete = true;
            }
            Operation::Complete | Operation::Connect(_) | Operation::Again => {}
            Operation::Drain => while destination.poll_message().is_some() {},
        }
        while let Some(event) = destination.poll_event() {
            assert!(!is_over, "{event:?} after the end");
            guest.told(&event, commit);
            is_over |= matches!(event, DestinationEvent::Ended(_));
            task = Some(event);
        }
        assert!(could || !destination.may_run() || commit, "may run without Commit");
        assert_eq!(destination.may_run(), guest.is_starting || guest.is_running);
    }
}
