//! Two machines side by side, brought to where a test begins.

use std::time::{Duration, Instant};

use pageferry::bitmap::PageBitmap;
use pageferry::memory::MemoryLayout;
use pageferry::page::Codecs;
use pageferry::protocol::{Destination, DestinationEvent, Source, SourceEvent, Timeouts};
use pageferry::units::{PageCount, PageIndex};
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
        layout: MemoryLayout::flat(PageCount(160)).unwrap(),
        guest_kind: "workload".into(),
        description: "memory=640KiB".into(),
    }
}

pub(crate) fn totals() -> Vec<ChannelTotals> {
    vec![ChannelTotals::default(); usize::from(CHANNELS)]
}

/// The offer of a session that may go on in post-copy.
pub(crate) fn post_copy_offer() -> Offer {
    Offer { features: Features::POST_COPY, ..offer() }
}

/// Pages missing at the switch: in the first and the last of three chunks.
pub(crate) const MISSING: [u64; 4] = [0, 1, 63, 159];

/// A set of pages of the guest.
pub(crate) fn pages(pages: &[u64]) -> PageBitmap {
    let mut bitmap = PageBitmap::new(offer().layout.chunks());
    pages.iter().for_each(|page| bitmap.insert(PageIndex(*page)));
    bitmap
}

/// All lanes of a session.
pub(crate) fn lanes(features: Features) -> impl Iterator<Item = Lane> {
    (0..CHANNELS).map(Lane::Bulk).chain(features.contains(Features::POST_COPY).then_some(Lane::Urgent))
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
    /// In post-copy pages are still missing then.
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
    features: Features,
    pub(crate) source: Source,
    pub(crate) destination: Destination,
    pub(crate) source_events: Vec<SourceEvent>,
    pub(crate) destination_events: Vec<DestinationEvent>,
}

impl Pair {
    pub(crate) fn at(point: Point) -> Self {
        Self::of(offer(), point)
    }

    /// In a session that switches to post-copy.
    pub(crate) fn post_copy_at(point: Point) -> Self {
        Self::of(post_copy_offer(), point)
    }

    fn of(offer: Offer, point: Point) -> Self {
        let now = Instant::now();
        let (timeouts, features) = (Timeouts::default(), offer.features);
        let (source, destination) = (Source::new(now, offer, timeouts), Destination::new(now, timeouts));
        let mut pair = Self { now, features, source, destination, source_events: vec![], destination_events: vec![] };
        for step in Point::ALL.into_iter().filter(|step| *step <= point) {
            pair.step(step);
        }
        pair
    }

    fn step(&mut self, step: Point) {
        let now = self.now;
        match step {
            Point::Offered => {}
            Point::Accepted => self.destination.accept(now, CHANNELS, CODECS, self.features, 1),
            Point::Copying => {
                lanes(self.features).for_each(|lane| self.destination.attach(now, TOKEN, lane, 0).unwrap());
                self.source.attached(now);
            }
            Point::Finishing if self.is_post_copy() => self.source.switch(now, totals(), vec![1, 2, 3], &pages(&MISSING)),
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
            Point::Released if self.is_post_copy() => self.destination.complete(now),
            Point::Released => {}
        }
        self.deliver();
    }

    fn is_post_copy(&self) -> bool {
        self.features.contains(Features::POST_COPY)
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
