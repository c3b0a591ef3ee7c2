//! Two machines in post-copy with their drivers, guests, connections and pages, in virtual time.
//!
//! A [`World`] runs one session by a [`Plan`], so a failure names it and can be run again. Nothing is random. It begins
//! where both ends are ready for Commit; what can happen before is the same as without post-copy.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use pageferry::protocol::{Destination, DestinationEnd, DestinationEvent, GuestOwner, Resumption, Source, SourceEnd, SourceEvent, Tombstones};
use pageferry::units::PageIndex;
use pageferry::wire::{Features, Message};

use super::plan::{Cut, OnTheWay, Plan, Reconnect, Start, Ways};
use crate::pair::{MISSING, Pair, Point, SESSION, TOKEN, lanes, pages};

/// Something that is due. Numbers of connections are indices of `World::links`.
#[derive(Clone, Debug)]
enum Due {
    ToDestination(usize, Message),
    ToSource(usize, Message),
    DestinationClosed(usize),
    SourceClosed(usize),
    /// Of lanes of a generation.
    Page(u32, u64),
    DestinationLaneClosed(u32),
    SourceLaneClosed(u32),
    /// A driver has done its work.
    Commit,
    Start,
    Push(u32),
    Connected(bool),
    Attach(u32),
    Attached(u32, bool),
    Replace(u32),
}

/// A connection, or the lanes of a generation: which ways are open.
#[derive(Clone, Copy, Debug)]
struct Link {
    forth: bool,
    back: bool,
    /// Of a control connection: by the Resume that came on it.
    generation: Option<u32>,
}

const OPEN: Link = Link { forth: true, back: true, generation: None };

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

const LATE: Duration = ms(2500);
const HORIZON: Duration = Duration::from_secs(300);

pub(super) struct World {
    plan: Plan,
    start: Instant,
    now: Instant,
    pub(super) steps: usize,
    serial: usize,
    due: BTreeMap<(Instant, usize), Due>,
    /// All control connections there were: the source's is the last, the destination's the one it was given last.
    links: Vec<Link>,
    destination_link: usize,
    /// By generation.
    lanes: Vec<Link>,
    source_lanes: Option<u32>,
    destination_lanes: Option<u32>,
    attempts: usize,
    pub(super) source: Option<Source>,
    pub(super) destination: Option<Destination>,
    destination_listens: bool,
    tombstones: Tombstones,
    remaining: Vec<u64>,
    pub(super) arrived: Vec<u64>,
    pub(super) destination_runs: bool,
    pub(super) source_end: Option<SourceEnd>,
    destination_end: Option<DestinationEnd>,
    pub(super) recoveries: usize,
}

impl World {
    /// Runs a session by `plan` to its end, with every invariant checked at every step.
    pub(super) fn run(plan: Plan) -> Self {
        let Pair { now, source, destination, .. } = Pair::post_copy_at(Point::Ready);
        let mut world = Self {
            plan,
            start: now,
            now,
            steps: 0,
            serial: 0,
            due: BTreeMap::new(),
            links: vec![OPEN],
            destination_link: 0,
            lanes: vec![OPEN],
            source_lanes: None,
            destination_lanes: Some(0),
            attempts: 0,
            source: Some(source),
            destination: Some(destination),
            destination_listens: true,
            tombstones: Tombstones::new(Duration::ZERO),
            remaining: MISSING.to_vec(),
            arrived: vec![],
            destination_runs: false,
            source_end: None,
            destination_end: None,
            recoveries: 0,
        };
        world.later(ms(5), Due::Commit);
        while world.step() {}
        world.check_end();
        world
    }

    /// Goes on after a source gave up, now that the destination can be reached.
    pub(super) fn settle(&mut self) {
        self.plan.reconnect = Reconnect::AtOnce;
        self.plan.cuts = [None; 2];
        let source = self.source.as_mut().unwrap();
        assert!(source.recover_again(self.now) || source.ask_again(self.now), "{:?}", self.plan);
        self.source_end = None;
        self.start = self.now;
        self.drain();
        while self.step() {}
        self.check_end();
    }

    fn later(&mut self, delay: Duration, due: Due) {
        self.serial += 1;
        self.due.insert((self.now + delay, self.serial), due);
    }

    fn step(&mut self) -> bool {
        self.plan.cuts.into_iter().flatten().filter(|cut| cut.step == self.steps).collect::<Vec<_>>().into_iter().for_each(|cut| self.cut(cut));
        let next_due = self.due.first_key_value().map(|((at, _), _)| *at);
        let source_timeout = self.source.as_ref().and_then(Source::poll_timeout);
        let destination_timeout = self.destination.as_ref().and_then(Destination::poll_timeout);
        let Some(next) = [next_due, source_timeout, destination_timeout].into_iter().flatten().min() else { return false };
        self.now = self.now.max(next);
        assert!(self.now - self.start < HORIZON && self.steps < 3000, "it does not end: {:?}", self.plan);
        if next_due == Some(next) {
            let (_, due) = self.due.pop_first().unwrap();
            self.handle(due);
        } else if source_timeout == Some(next) {
            self.source.as_mut().unwrap().handle_timeout(self.now);
        } else {
            self.destination.as_mut().unwrap().handle_timeout(self.now);
        }
        self.drain();
        self.steps += 1;
        true
    }

    fn handle(&mut self, due: Due) {
        match due {
            Due::ToDestination(link, message) => self.arrive_at_destination(link, message),
            Due::Page(generation, page) => self.page(generation, page),
            Due::Attach(generation) => self.attach(generation),
            Due::Push(generation) => self.push(generation),
            due => {
                self.for_source(&due);
                self.for_destination(&due);
            }
        }
    }

    fn for_source(&mut self, due: &Due) {
        let (now, last) = (self.now, self.links.len() - 1);
        let Some(source) = &mut self.source else { return };
        match due {
            Due::ToSource(link, message) if *link == last => source.handle_message(now, message.clone()),
            Due::SourceClosed(link) if *link == last => source.handle_closed(now),
            Due::SourceLaneClosed(generation) => source.interrupt(now, *generation),
            Due::Commit => source.commit(now, ms(1)),
            Due::Connected(true) => {
                self.links.push(OPEN);
                source.reconnected(now);
            }
            Due::Connected(false) => source.reconnect_failed(now),
            Due::Attached(generation, false) => source.interrupt(now, *generation),
            Due::Attached(generation, true) if source.reattached(now, *generation) => {
                self.source_lanes = Some(*generation);
                self.later(ms(1), Due::Push(*generation));
            }
            _ => {}
        }
    }

    fn for_destination(&mut self, due: &Due) {
        let now = self.now;
        let Some(destination) = &mut self.destination else { return };
        match due {
            Due::DestinationClosed(link) if *link == self.destination_link => destination.handle_closed(now),
            Due::DestinationLaneClosed(generation) => destination.interrupt(now, *generation),
            Due::Start if self.plan.start == Start::Fails => assert!(destination.fail(now, "no vCPU".into())),
            Due::Start => {
                self.destination_runs = true;
                destination.running(now);
                self.complete_if_all_there();
            }
            Due::Replace(generation) => {
                let link = self.links.iter().position(|link| link.generation == Some(*generation)).unwrap();
                self.close_back(self.destination_link);
                self.destination_link = link;
                let arrived = pages(&self.arrived);
                self.destination.as_mut().unwrap().resumed(now, *generation, &arrived);
            }
            _ => {}
        }
    }

    fn arrive_at_destination(&mut self, link: usize, message: Message) {
        let now = self.now;
        if let Message::Resume { session, token } = message {
            if self.plan.reconnect == Reconnect::AnswerLost && self.attempts == 1 {
                self.links[link].back = false;
            }
            let resumption = match &mut self.destination {
                Some(destination) => destination.resume(now, token),
                None => self.tombstones.resume(self.now, session, token),
            };
            if let Resumption::Accepted { generation } = resumption {
                self.links[link].generation = Some(generation);
            }
            resumption.answer().into_iter().for_each(|answer| self.send_back(link, answer));
            return;
        }
        match &mut self.destination {
            Some(destination) if link == self.destination_link => destination.handle_message(now, message),
            Some(destination) if message == Message::Released => destination.released(now, TOKEN),
            None if message == Message::Released => self.tombstones.released(self.now, SESSION, TOKEN),
            _ => {}
        }
    }

    fn page(&mut self, generation: u32, page: u64) {
        if self.destination.is_some() && self.destination_lanes == Some(generation) {
            assert!(!self.arrived.contains(&page), "page {page} came twice: {:?}", self.plan);
            self.arrived.push(page);
            self.complete_if_all_there();
        }
    }

    fn complete_if_all_there(&mut self) {
        if self.destination_runs
            && self.arrived.len() == MISSING.len()
            && let Some(destination) = &mut self.destination
        {
            destination.complete(self.now);
        }
    }

    /// The source sends a page, and thinks of the next.
    fn push(&mut self, generation: u32) {
        if self.source.is_none() || self.source_lanes != Some(generation) {
            return;
        }
        let Some(page) = self.remaining.pop() else { return };
        if self.lanes[generation as usize].forth {
            self.later(self.plan.forth, Due::Page(generation, page));
        }
        self.later(ms(400), Due::Push(generation));
    }

    fn attach(&mut self, generation: u32) {
        let now = self.now;
        let attached = self
            .destination
            .as_mut()
            .is_some_and(|destination| lanes(Features::POST_COPY).all(|lane| destination.attach(now, TOKEN, lane, generation).is_ok()));
        if attached {
            self.destination_lanes = Some(generation);
            self.lanes.resize(generation as usize + 1, OPEN);
        }
        self.later(self.plan.back, Due::Attached(generation, attached));
    }

    fn send_back(&mut self, link: usize, message: Message) {
        if self.links[link].back {
            self.later(self.plan.back, Due::ToSource(link, message));
        }
    }

    /// Takes all outputs of both machines to where they belong.
    fn drain(&mut self) {
        while let Some(message) = self.source.as_mut().and_then(Source::poll_message) {
            if matches!(message, Message::Commit { .. }) {
                self.source_lanes = Some(0);
                self.later(ms(1), Due::Push(0));
            }
            let last = self.links.len() - 1;
            if self.links[last].forth {
                self.later(self.plan.forth, Due::ToDestination(last, message));
            }
        }
        while let Some(message) = self.destination.as_mut().and_then(Destination::poll_message) {
            self.send_back(self.destination_link, message);
        }
        let before = self.source.as_ref().map(Source::owner);
        while let Some(event) = self.source.as_mut().and_then(Source::poll_event) {
            self.source_event(event);
        }
        while let Some(event) = self.destination.as_mut().and_then(Destination::poll_event) {
            self.destination_event(event);
        }
        self.check_step(before);
    }

    fn source_event(&mut self, event: SourceEvent) {
        match event {
            SourceEvent::Interrupted { .. } => self.source_drops(),
            SourceEvent::Reconnect => {
                self.source_drops();
                self.attempts += 1;
                let reachable = self.destination_listens && self.plan.reconnect != Reconnect::Never;
                let patience = if self.plan.reconnect == Reconnect::Later { 4 } else { 1 };
                self.later(self.plan.forth, Due::Connected(reachable && self.attempts >= patience));
            }
            SourceEvent::Recovered { generation, arrived } => {
                self.recoveries += 1;
                self.remaining = MISSING.into_iter().filter(|page| !arrived.contains(PageIndex(*page))).collect();
                self.later(self.plan.forth, Due::Attach(generation));
            }
            SourceEvent::Ended(end) => {
                assert_eq!(self.source_end, None, "ended twice: {:?}", self.plan);
                self.source_end = Some(end);
                self.source_drops();
            }
            _ => {}
        }
    }

    /// The source's driver gives up its connections; the other end sees that if it can.
    fn source_drops(&mut self) {
        let last = self.links.len() - 1;
        if std::mem::take(&mut self.links[last].forth) {
            self.later(self.plan.forth, Due::DestinationClosed(last));
        }
        if let Some(generation) = self.source_lanes.take()
            && std::mem::take(&mut self.lanes[generation as usize].forth)
        {
            self.later(self.plan.forth, Due::DestinationLaneClosed(generation));
        }
    }

    fn destination_event(&mut self, event: DestinationEvent) {
        match event {
            DestinationEvent::Run { .. } => self.later(if self.plan.start == Start::Slow { ms(3200) } else { ms(20) }, Due::Start),
            DestinationEvent::Interrupted { .. } => self.destination_drops(),
            DestinationEvent::Resume { generation } => {
                assert_eq!(self.destination_lanes, None, "old lanes are not stopped: {:?}", self.plan);
                self.later(ms(15), Due::Replace(generation));
            }
            DestinationEvent::Ended(end) => {
                assert_eq!(self.destination_end, None, "ended twice: {:?}", self.plan);
                self.destination_end = Some(end);
                self.destination_drops();
                // As a receiver does: the machine goes, a tombstone may stay. A late message finds nothing.
                let destination = self.destination.take().unwrap();
                destination.tombstone().into_iter().for_each(|stone| self.tombstones.keep(self.now, stone));
            }
            event => unreachable!("{event:?} after Ready"),
        }
    }

    fn destination_drops(&mut self) {
        self.close_back(self.destination_link);
        if let Some(generation) = self.destination_lanes.take()
            && std::mem::take(&mut self.lanes[generation as usize].back)
        {
            self.later(self.plan.back, Due::SourceLaneClosed(generation));
        }
    }

    fn close_back(&mut self, link: usize) {
        if std::mem::take(&mut self.links[link].back) {
            self.later(self.plan.back, Due::SourceClosed(link));
        }
    }

    fn cut(&mut self, cut: Cut) {
        let (forth, back) = (cut.ways != Ways::Back, cut.ways != Ways::Forth);
        let (last, generation) = (self.links.len() - 1, self.lanes.len() - 1);
        let lanes_number = u32::try_from(generation).unwrap();
        if cut.ways != Ways::Lanes {
            self.links[last].forth &= !forth;
            self.links[last].back &= !back;
        }
        self.lanes[generation].forth &= !forth;
        self.lanes[generation].back &= !back;
        let is_hit = |due: &Due| match due {
            Due::ToDestination(link, _) | Due::DestinationClosed(link) => forth && *link == last && cut.ways != Ways::Lanes,
            Due::ToSource(link, _) | Due::SourceClosed(link) => back && *link == last && cut.ways != Ways::Lanes,
            Due::Page(number, _) | Due::DestinationLaneClosed(number) => forth && *number == lanes_number,
            Due::SourceLaneClosed(number) => back && *number == lanes_number,
            _ => false,
        };
        let hit: Vec<_> = self.due.iter().filter(|(_, due)| is_hit(due)).map(|(key, _)| *key).collect();
        for key in hit {
            let due = self.due.remove(&key).unwrap();
            if cut.on_the_way == OnTheWay::Late {
                self.due.insert((key.0 + LATE, key.1), due);
            }
        }
        if cut.notice.is_to_source() {
            self.later(ms(1), Due::SourceLaneClosed(lanes_number));
            self.later(ms(1), if cut.ways == Ways::Lanes { Due::SourceLaneClosed(lanes_number) } else { Due::SourceClosed(last) });
        }
        if cut.notice.is_to_destination() {
            self.later(ms(1), Due::DestinationLaneClosed(lanes_number));
            self.later(ms(1), if cut.ways == Ways::Lanes { Due::DestinationLaneClosed(lanes_number) } else { Due::DestinationClosed(last) });
        }
        match cut.ways {
            Ways::DestinationDead | Ways::DestinationRestarted => {
                (self.destination, self.destination_runs, self.destination_lanes) = (None, false, None);
                self.destination_listens = cut.ways == Ways::DestinationRestarted;
                self.tombstones = Tombstones::new(Duration::ZERO);
                self.due.retain(|_, due| !matches!(due, Due::Start | Due::Replace(_)));
            }
            Ways::SourceDead => {
                (self.source, self.source_lanes) = (None, None);
                self.due.retain(|_, due| !matches!(due, Due::Commit | Due::Attached(..)));
            }
            Ways::Forth | Ways::Back | Ways::Both | Ways::Lanes => {}
        }
    }

    /// What must hold at every moment.
    fn check_step(&self, before: Option<GuestOwner>) {
        let plan = &self.plan;
        let Some(source) = &self.source else { return };
        let may_run = self.destination_runs || self.destination.as_ref().is_some_and(Destination::may_run);
        assert!(!(may_run && source.owner() == GuestOwner::Source), "two owners: {plan:?}");
        assert!(before != Some(GuestOwner::Destination) || source.owner() == GuestOwner::Destination, "taken back: {plan:?}");
        if self.source_end == Some(SourceEnd::Completed) {
            assert_eq!(self.arrived.len(), MISSING.len(), "the source left too early: {plan:?}");
        }
    }

    /// What must hold when nothing more happens.
    fn check_end(&self) {
        let plan = &self.plan;
        let are_all_there = self.arrived.len() == MISSING.len();
        if self.destination_runs {
            assert!(!matches!(self.destination_end, Some(DestinationEnd::Dropped { .. })), "dropped while it runs: {plan:?}");
            assert_eq!(self.destination.is_none(), are_all_there, "over too early, or never: {plan:?}");
        } else {
            assert!(self.destination.is_none(), "the destination's session did not end: {plan:?}");
        }
        let Some(source) = &self.source else { return };
        let end = self.source_end.as_ref().unwrap_or_else(|| panic!("the source's session did not end: {plan:?}"));
        let is_dead = plan.cuts.into_iter().flatten().any(|cut| matches!(cut.ways, Ways::DestinationDead | Ways::DestinationRestarted));
        match end {
            SourceEnd::Completed => assert_eq!((source.owner(), are_all_there), (GuestOwner::Destination, true), "{plan:?}"),
            SourceEnd::Failed { .. } => assert_eq!((source.owner(), self.destination_runs), (GuestOwner::Source, false), "{plan:?}"),
            SourceEnd::Stranded { .. } => assert_eq!(source.owner(), GuestOwner::Destination, "{plan:?}"),
            SourceEnd::InDoubt { .. } => assert_eq!(source.owner(), GuestOwner::InDoubt, "{plan:?}"),
            SourceEnd::Refused { .. } => panic!("refused: {plan:?}"),
        }
        if matches!(end, SourceEnd::Stranded { .. } | SourceEnd::InDoubt { .. }) {
            assert!(is_dead || plan.reconnect == Reconnect::Never, "given up though it could be reached: {end:?}: {plan:?}");
        }
    }
}
