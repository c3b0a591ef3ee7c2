//! Two machines in post-copy, their drivers, connections and pages: one state, and what can happen to it next.
//!
//! It begins when the source has sent Commit. There is no clock: with timeouts of zero a deadline is always due, so
//! that "now it times out" is one more choice. Lanes are one thing at each end: their generation, while they are
//! attached; pages cross one at a time.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use pageferry::bitmap::PageBitmap;
use pageferry::memory::MemoryLayout;
use pageferry::protocol::{Destination, DestinationEnd, DestinationEvent, GuestOwner, Resumption, Source, SourceEnd, SourceEvent, Timeouts};
use pageferry::units::{PageCount, PageIndex};
use pageferry::wire::{ChannelTotals, Features, Lane, Message, Offer};

use crate::pair::{CODECS, TOKEN, post_copy_offer};

/// One thing that happens next, where it can.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Choice {
    DeliverForth,
    DeliverBack,
    /// A page is claimed and on its way.
    PageLeaves,
    PageArrives,
    /// The newest connection takes nothing more, and what is on the way may still come or not.
    Cut,
    LoseForth,
    LoseBack,
    SourceSeesClosed,
    DestinationSeesClosed,
    /// A lane breaks for one end.
    SourceLosesLane,
    DestinationLosesLane,
    SourceTimesOut,
    DestinationTimesOut,
    /// The drivers do what the last event asked for.
    SourceActs,
    DestinationActs,
    /// The destination's driver puts the newest connection on which a Resume was accepted in the place of the old one.
    DestinationReplaces,
    /// The guest could not be resumed.
    DestinationFails,
    ConnectFails,
}

pub(crate) const CHOICES: [Choice; 18] = [
    Choice::DeliverForth,
    Choice::DeliverBack,
    Choice::PageLeaves,
    Choice::PageArrives,
    Choice::Cut,
    Choice::LoseForth,
    Choice::LoseBack,
    Choice::SourceSeesClosed,
    Choice::DestinationSeesClosed,
    Choice::SourceLosesLane,
    Choice::DestinationLosesLane,
    Choice::SourceTimesOut,
    Choice::DestinationTimesOut,
    Choice::SourceActs,
    Choice::DestinationActs,
    Choice::DestinationReplaces,
    Choice::DestinationFails,
    Choice::ConnectFails,
];

/// Those that happen in the end if nothing goes wrong any more, the more urgent ones first.
pub(crate) const CALM: [Choice; 10] = [
    Choice::DeliverForth,
    Choice::DeliverBack,
    Choice::SourceActs,
    Choice::DestinationActs,
    Choice::DestinationReplaces,
    Choice::PageArrives,
    Choice::PageLeaves,
    Choice::SourceSeesClosed,
    Choice::DestinationSeesClosed,
    Choice::SourceTimesOut,
];

/// What a driver has to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Task {
    Connect,
    /// The source's driver attaches all lanes of a generation.
    Attach(u32),
    Start,
    Complete,
}

/// A control connection, from whichever end.
#[derive(Clone, Debug, Default)]
struct Link {
    forth: VecDeque<Message>,
    back: VecDeque<Message>,
    is_closed: bool,
    /// By the Resume that came on it.
    generation: Option<u32>,
}

#[derive(Clone, Debug)]
pub(crate) struct Node {
    source: Source,
    pub(crate) destination: Destination,
    /// All connections there were. The destination's is the newest it was given, the source's the last.
    links: Vec<Link>,
    destination_link: usize,
    source_has_link: bool,
    /// Generations of the lanes.
    source_lanes: Option<u32>,
    destination_lanes: Option<u32>,
    /// Pages that the source has yet to send, the one on its way, and those that are there.
    remaining: Vec<u64>,
    flying: Option<(u32, u64)>,
    pub(crate) arrived: Vec<u64>,
    source_task: Option<Task>,
    destination_task: Option<Task>,
    source_end: Option<SourceEnd>,
    pub(crate) destination_end: Option<DestinationEnd>,
    /// How often the guest was to be started, whether it was, and whether the machine was told that all pages are there.
    runs: u8,
    is_running: bool,
    is_complete: bool,
    /// Connections that may still be made, and lanes that may still break.
    connections_left: u8,
    breaks_left: u8,
}

const MISSING: [u64; 2] = [0, 1];

fn bitmap(pages: &[u64]) -> PageBitmap {
    let mut bitmap = PageBitmap::new(1);
    pages.iter().for_each(|page| bitmap.insert(PageIndex(*page)));
    bitmap
}

impl Node {
    pub(crate) fn new(now: Instant, timeouts: Timeouts, connections_left: u8, breaks_left: u8) -> Self {
        let offer = Offer { channels: 1, layout: MemoryLayout::flat(PageCount(2)).unwrap(), ..post_copy_offer() };
        let mut node = Self {
            source: Source::new(now, offer, timeouts),
            destination: Destination::new(now, timeouts),
            links: vec![Link::default()],
            destination_link: 0,
            source_has_link: true,
            source_lanes: None,
            destination_lanes: None,
            remaining: MISSING.to_vec(),
            flying: None,
            arrived: vec![],
            source_task: None,
            destination_task: None,
            source_end: None,
            destination_end: None,
            runs: 0,
            is_running: false,
            is_complete: false,
            connections_left,
            breaks_left,
        };
        node.begin(now);
        node
    }

    /// Up to where Commit is on its way.
    fn begin(&mut self, now: Instant) {
        self.pass_on(now);
        self.destination.accept(now, 1, CODECS, Features::POST_COPY, 1);
        [Lane::Bulk(0), Lane::Urgent].into_iter().for_each(|lane| self.destination.attach(now, TOKEN, lane, 0).unwrap());
        self.pass_on(now);
        self.source.attached(now);
        self.source.switch(now, vec![ChannelTotals::default()], vec![], &bitmap(&MISSING));
        self.pass_on(now);
        self.destination.ready(now);
        self.pass_on(now);
        self.source.commit(now, Duration::ZERO);
        while self.source.poll_event().is_some() || self.destination.poll_event().is_some() {}
        (self.source_lanes, self.destination_lanes) = (Some(0), Some(0));
        self.drain();
    }

    fn pass_on(&mut self, now: Instant) {
        while let Some(message) = self.source.poll_message() {
            self.destination.handle_message(now, message);
        }
        while let Some(message) = self.destination.poll_message() {
            self.source.handle_message(now, message);
        }
    }

    /// What becomes of it by `choice`; `None` if that cannot happen here.
    pub(crate) fn after(&self, choice: Choice, now: Instant) -> Option<Self> {
        let mut next = self.clone();
        next.choose(choice, now)?;
        next.drain();
        next.check(choice, self.source.owner());
        Some(next)
    }

    fn choose(&mut self, choice: Choice, now: Instant) -> Option<()> {
        let possible = |condition: bool| condition.then_some(());
        let last = self.links.len() - 1;
        match choice {
            Choice::DeliverForth => {
                let link = self.links.iter().position(|link| !link.forth.is_empty())?;
                self.deliver_forth(now, link);
            }
            Choice::DeliverBack => {
                let link = self.links.iter().position(|link| !link.back.is_empty())?;
                self.deliver_back(now, link);
            }
            Choice::PageLeaves => {
                possible(self.flying.is_none() && self.is_committed())?;
                self.flying = Some((self.source_lanes?, self.remaining.pop()?));
            }
            Choice::PageArrives => self.page_arrives()?,
            Choice::Cut => possible(!std::mem::replace(&mut self.links[last].is_closed, true))?,
            Choice::LoseForth => drop(self.links.iter_mut().filter(|link| link.is_closed).find_map(|link| link.forth.pop_back())?),
            Choice::LoseBack => drop(self.links.iter_mut().filter(|link| link.is_closed).find_map(|link| link.back.pop_back())?),
            Choice::SourceSeesClosed => {
                possible(self.source_has_link && self.links[last].is_closed && self.source.poll_timeout().is_some())?;
                self.source.handle_closed(now);
                self.source_has_link = false;
            }
            Choice::DestinationSeesClosed => {
                possible(self.links[self.destination_link].is_closed && self.destination.poll_timeout().is_some())?;
                self.destination.handle_closed(now);
            }
            Choice::SourceLosesLane => {
                self.breaks_left = self.breaks_left.checked_sub(1)?;
                self.source.interrupt(now, self.source_lanes.filter(|_| self.is_committed())?);
            }
            Choice::DestinationLosesLane => {
                self.breaks_left = self.breaks_left.checked_sub(1)?;
                self.destination.interrupt(now, self.destination_lanes?);
            }
            Choice::SourceTimesOut => {
                possible(self.source.poll_timeout()? <= now)?;
                self.source.handle_timeout(now);
            }
            Choice::DestinationTimesOut => {
                possible(self.destination.poll_timeout()? <= now)?;
                self.destination.handle_timeout(now);
            }
            Choice::SourceActs => self.source_acts(now)?,
            Choice::DestinationActs => self.destination_acts(now)?,
            Choice::DestinationReplaces => self.destination_replaces(now)?,
            Choice::DestinationFails => {
                self.destination_task.take_if(|task| *task == Task::Start)?;
                assert!(self.destination.fail(now, "no vCPU".into()));
            }
            Choice::ConnectFails => {
                self.source_task.take_if(|task| *task == Task::Connect)?;
                self.source.reconnect_failed(now);
            }
        }
        Some(())
    }

    /// A message for the destination: from its control connection, or from one that is to be that, or to ask.
    fn deliver_forth(&mut self, now: Instant, link: usize) {
        let Some(message) = self.links[link].forth.pop_front() else { return };
        match message {
            Message::Resume { token, .. } => match self.destination.resume(now, token) {
                Resumption::Accepted { generation } => self.links[link].generation = Some(generation),
                other if !self.links[link].is_closed => self.links[link].back.extend(other.answer()),
                _ => {}
            },
            message if link == self.destination_link => self.destination.handle_message(now, message),
            Message::Released => self.destination.released(now, TOKEN),
            // Of a connection that was replaced, or is not in place yet.
            _ => {}
        }
    }

    /// A message for the source, if it still listens there.
    fn deliver_back(&mut self, now: Instant, link: usize) {
        let Some(message) = self.links[link].back.pop_front() else { return };
        if self.source_has_link && link == self.links.len() - 1 {
            self.source.handle_message(now, message);
        }
    }

    fn page_arrives(&mut self) -> Option<()> {
        // Also when the source has given the lane up: it may be in the last buffer before the destination.
        let (_, page) = self.flying.take_if(|(generation, _)| self.destination_lanes == Some(*generation))?;
        assert!(!self.arrived.contains(&page), "page {page} crosses twice: {self:#?}");
        self.arrived.push(page);
        Some(())
    }

    fn source_acts(&mut self, now: Instant) -> Option<()> {
        match self.source_task.take()? {
            Task::Connect => {
                self.connections_left = self.connections_left.checked_sub(1)?;
                self.links.push(Link::default());
                self.source_has_link = true;
                self.source.reconnected(now);
            }
            Task::Attach(generation) => {
                let attached = [Lane::Bulk(0), Lane::Urgent].into_iter().all(|lane| self.destination.attach(now, TOKEN, lane, generation).is_ok());
                if attached {
                    self.destination_lanes = Some(generation);
                    self.source_lanes = Some(generation).filter(|_| self.source.reattached(now, generation));
                } else {
                    self.source.interrupt(now, generation);
                }
            }
            task => unreachable!("{task:?} is not the source's"),
        }
        Some(())
    }

    fn destination_acts(&mut self, now: Instant) -> Option<()> {
        match self.destination_task.take()? {
            Task::Start => {
                self.is_running = true;
                self.destination.running(now);
            }
            Task::Complete => {
                self.is_complete = true;
                self.destination.complete(now);
            }
            task => unreachable!("{task:?} is not the destination's"),
        }
        Some(())
    }

    fn destination_replaces(&mut self, now: Instant) -> Option<()> {
        let (link, generation) = self.to_replace()?;
        self.links[self.destination_link].is_closed = true;
        self.destination_link = link;
        self.destination.resumed(now, generation, &bitmap(&self.arrived));
        Some(())
    }

    /// Both ends have come to theirs.
    pub(crate) fn is_over(&self) -> bool {
        self.source_end.is_some() && self.destination_end.is_some()
    }

    fn to_replace(&self) -> Option<(usize, u32)> {
        let newest =
            self.links.iter().enumerate().filter_map(|(index, link)| Some((index, link.generation?))).max_by_key(|(_, generation)| *generation);
        newest.filter(|(index, _)| *index != self.destination_link && self.destination.may_run())
    }

    fn is_committed(&self) -> bool {
        self.source.owner() != GuestOwner::Source
    }

    /// Takes all outputs to where they belong, as drivers do after each input.
    fn drain(&mut self) {
        let last = self.links.len() - 1;
        while let Some(message) = self.source.poll_message() {
            if self.source_has_link && !self.links[last].is_closed {
                self.links[last].forth.push_back(message);
            }
        }
        while let Some(message) = self.destination.poll_message() {
            if !self.links[self.destination_link].is_closed {
                self.links[self.destination_link].back.push_back(message);
            }
        }
        self.events();
    }

    fn events(&mut self) {
        while let Some(event) = self.source.poll_event() {
            match event {
                SourceEvent::Reconnect => {
                    self.source_has_link = false;
                    self.links.last_mut().unwrap().is_closed = true;
                    self.source_task = Some(Task::Connect);
                }
                SourceEvent::Interrupted { .. } => {
                    (self.source_lanes, self.source_task) = (None, None);
                    self.source_has_link = false;
                    self.links.last_mut().unwrap().is_closed = true;
                }
                SourceEvent::Recovered { generation, arrived } => {
                    assert_eq!(arrived, bitmap(&self.arrived), "no page can have come since");
                    self.remaining = MISSING.into_iter().filter(|page| !arrived.contains(PageIndex(*page))).collect();
                    self.source_task = Some(Task::Attach(generation));
                }
                SourceEvent::Ended(end) => {
                    assert_eq!(self.source_end, None, "ended twice");
                    (self.source_end, self.source_task, self.source_lanes) = (Some(end), None, None);
                    self.links.last_mut().unwrap().is_closed = true;
                }
                SourceEvent::Progress { .. } | SourceEvent::Running => {}
                event => unreachable!("{event:?} after Commit"),
            }
        }
        while let Some(event) = self.destination.poll_event() {
            match event {
                DestinationEvent::Run { .. } => (self.runs, self.destination_task) = (self.runs + 1, Some(Task::Start)),
                DestinationEvent::Interrupted { .. } => {
                    (self.destination_lanes, self.flying) = (None, None);
                    self.links[self.destination_link].is_closed = true;
                }
                DestinationEvent::Resume { .. } => assert_eq!(self.destination_lanes, None, "old lanes are not stopped"),
                DestinationEvent::Ended(end) => {
                    assert_eq!(self.destination_end, None, "ended twice");
                    (self.destination_end, self.destination_task, self.destination_lanes) = (Some(end), None, None);
                    self.links[self.destination_link].is_closed = true;
                }
                event => unreachable!("{event:?} after Ready"),
            }
        }
        if self.is_running && !self.is_complete && self.arrived.len() == MISSING.len() {
            self.destination_task = Some(Task::Complete);
        }
    }

    fn check(&self, choice: Choice, before: GuestOwner) {
        let owner = self.source.owner();
        assert!(!(owner == GuestOwner::Source && self.destination.may_run()), "two owners by {choice:?}: {self:#?}");
        assert!(self.runs <= 1, "run twice by {choice:?}: {self:#?}");
        assert!(before != GuestOwner::Destination || owner == before, "taken back by {choice:?}: {self:#?}");
        assert!(owner != GuestOwner::Destination || self.is_running, "nobody owns it by {choice:?}: {self:#?}");
        let are_all_there = self.arrived.len() == MISSING.len();
        if self.source_end == Some(SourceEnd::Completed) {
            assert!(self.destination.may_run() && are_all_there, "the source left too early by {choice:?}: {self:#?}");
        }
        match &self.destination_end {
            Some(DestinationEnd::Completed { .. }) => assert!(self.is_running && are_all_there, "ended too early by {choice:?}: {self:#?}"),
            Some(_) => assert!(!self.is_running, "dropped while it runs by {choice:?}: {self:#?}"),
            None => {}
        }
    }

    /// Goes on without further trouble: somebody owns the guest then, with all of its pages.
    pub(crate) fn settle(mut self, now: Instant) {
        self.connections_left = u8::MAX;
        for _ in 0..300 {
            if let Some(next) = CALM.into_iter().find_map(|choice| self.after(choice, now)) {
                self = next;
            } else if self.source.recover_again(now) || self.source.ask_again(now) {
                self.source_end = None;
                self.drain();
            } else {
                break;
            }
        }
        assert!(self.source_end.is_some() && self.destination_end.is_some(), "it does not end: {self:#?}");
        match self.source.owner() {
            GuestOwner::Source => assert!(!self.destination.may_run()),
            GuestOwner::Destination => assert_eq!(self.source_end, Some(SourceEnd::Completed), "{self:#?}"),
            GuestOwner::InDoubt => panic!("in doubt for ever: {self:#?}"),
        }
    }
}
