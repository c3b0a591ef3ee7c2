//! Two machines side by side, brought to where a test begins.

use std::time::{Duration, Instant};

use pageferry::memory::MemoryLayout;
use pageferry::page::Codecs;
use pageferry::protocol::{Destination, DestinationEvent, Source, SourceEvent, Timeouts};
use pageferry::units::PageCount;
use pageferry::wire::{ChannelTotals, Features, Lane, Message, Offer, SessionId, Token};

pub(crate) const SESSION: SessionId = SessionId([7; 16]);
pub(crate) const TOKEN: Token = Token([9; 16]);
pub(crate) const CHANNELS: u16 = 2;
pub(crate) const CODECS: Codecs = Codecs::LZ4;

pub(crate) fn offer() -> Offer {
    Offer {
        session: SESSION,
        token: TOKEN,
        channels: CHANNELS,
        codecs: CODECS,
        features: Features::NONE,
        layout: MemoryLayout::flat(PageCount(64)).unwrap(),
        guest_kind: "workload".into(),
        description: "memory=256KiB".into(),
    }
}

pub(crate) fn totals() -> Vec<ChannelTotals> {
    vec![ChannelTotals::default(); usize::from(CHANNELS)]
}

/// The points of a session at which a test may want to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Point {
    Offered,
    Accepted,
    Copying,
    Finishing,
    Ready,
    CommitQueued,
    CommitSent,
    Starting,
    Running,
    Released,
}

impl Point {
    pub(crate) const ALL: [Self; 10] = [
        Self::Offered,
        Self::Accepted,
        Self::Copying,
        Self::Finishing,
        Self::Ready,
        Self::CommitQueued,
        Self::CommitSent,
        Self::Starting,
        Self::Running,
        Self::Released,
    ];
}

/// Both machines, all at one instant, with nothing on the way between them except at `CommitSent`.
#[derive(Clone)]
pub(crate) struct Pair {
    pub(crate) now: Instant,
    pub(crate) source: Source,
    pub(crate) destination: Destination,
    pub(crate) source_events: Vec<SourceEvent>,
    pub(crate) destination_events: Vec<DestinationEvent>,
}

impl Pair {
    pub(crate) fn at(point: Point) -> Self {
        let now = Instant::now();
        let timeouts = Timeouts::default();
        let (source, destination) = (Source::new(now, offer(), timeouts), Destination::new(now, timeouts));
        let mut pair = Self { now, source, destination, source_events: vec![], destination_events: vec![] };
        for step in Point::ALL.into_iter().filter(|step| *step <= point) {
            pair.step(step);
        }
        pair
    }

    fn step(&mut self, step: Point) {
        let now = self.now;
        match step {
            Point::Offered => {}
            Point::Accepted => self.destination.accept(now, CHANNELS, CODECS, Features::NONE, 1),
            Point::Copying => {
                (0..CHANNELS).for_each(|channel| self.destination.attach(now, TOKEN, Lane::Bulk(channel), 0).unwrap());
                self.source.attached(now);
            }
            Point::Finishing => self.source.finish(now, totals(), vec![1, 2, 3]),
            Point::Ready => self.destination.ready(now),
            Point::CommitQueued => return self.source.commit(now, Duration::from_millis(3)),
            Point::CommitSent => return assert!(matches!(self.source.poll_message(), Some(Message::Commit { .. }))),
            Point::Starting => self.destination.handle_message(now, Message::Commit { paused_for: Duration::from_millis(3) }),
            Point::Running => {
                self.destination.running(now);
                let running = self.destination.poll_message().unwrap();
                self.source.handle_message(now, running);
                return self.events();
            }
            Point::Released => {}
        }
        self.deliver();
    }

    /// Passes on all messages, both ways, until there are none.
    pub(crate) fn deliver(&mut self) {
        loop {
            let (forth, back) = (self.source.poll_message(), self.destination.poll_message());
            if forth.is_none() && back.is_none() {
                break;
            }
            forth.into_iter().for_each(|message| self.destination.handle_message(self.now, message));
            back.into_iter().for_each(|message| self.source.handle_message(self.now, message));
        }
        self.events();
    }

    /// Collects the events.
    pub(crate) fn events(&mut self) {
        self.source_events.extend(std::iter::from_fn(|| self.source.poll_event()));
        self.destination_events.extend(std::iter::from_fn(|| self.destination.poll_event()));
    }
}
