//! Two machines with their drivers, guests and connections, in virtual time.
//!
//! A [`World`] runs one session by a [`Plan`]: everything that can differ between two sessions is in the plan, so a
//! failure names it and can be run again. Nothing is random.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use pageferry::protocol::{Destination, DestinationEvent, GuestOwner, Source, SourceEnd, SourceEvent, Timeouts, Tombstones};
use pageferry::wire::{AnswerStatus, Features, Lane, Message};

use crate::pair::{CHANNELS, CODECS, SESSION, TOKEN, offer, totals};

/// What happens in a session beside the session.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) forth: Duration,
    pub(crate) back: Duration,
    pub(crate) resume: Resume,
    pub(crate) cut: Option<Cut>,
    pub(crate) reconnect: Reconnect,
    /// Before this step, one of the drivers calls it off.
    pub(crate) meddle: Option<(usize, Meddle)>,
}

/// Before step `step` the control connection breaks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cut {
    pub(crate) step: usize,
    pub(crate) ways: Ways,
    pub(crate) notice: Notice,
    pub(crate) on_the_way: OnTheWay,
}

/// What the cut takes away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ways {
    Forth,
    Back,
    Both,
    /// And the destination's process with it.
    DestinationDead,
    /// And the destination's process, which starts anew and knows nothing.
    DestinationRestarted,
    SourceDead,
}

/// Who is told that the connection is closed. The others notice by silence only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Notice {
    Nobody,
    Source,
    Destination,
    Everyone,
}

/// What becomes of messages sent before the cut and not yet there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OnTheWay {
    Lost,
    /// They sit in a buffer and come out seconds later, behind a Query.
    Late,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reconnect {
    AtOnce,
    Later,
    /// The first Query arrives, and its Answer does not.
    AnswerLost,
    Never,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Resume {
    Works,
    Slow,
    Fails,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Meddle {
    SourceAborts,
    DestinationFails,
}

/// Something that is due.
#[derive(Clone, Debug)]
enum Due {
    ToDestination(Message),
    ToSource(Message),
    DestinationClosed,
    SourceClosed,
    Query,
    Answer(AnswerStatus),
    /// A driver has done its work.
    Accept,
    Attach,
    Finish,
    Load,
    Commit,
    Resume,
    Connected(bool),
}

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

const LATE: Duration = ms(2500);
const HORIZON: Duration = Duration::from_secs(120);

pub(crate) struct World {
    plan: Plan,
    start: Instant,
    now: Instant,
    pub(crate) steps: usize,
    serial: usize,
    due: BTreeMap<(Instant, usize), Due>,
    forth_open: bool,
    back_open: bool,
    attempts: usize,
    pub(crate) source: Option<Source>,
    pub(crate) destination: Option<Destination>,
    destination_listens: bool,
    tombstones: Tombstones,
    pub(crate) source_runs: bool,
    pub(crate) destination_runs: bool,
    pub(crate) source_end: Option<SourceEnd>,
    destination_ended: bool,
    committed: bool,
}

impl World {
    /// Runs a session by `plan` to its end, with every invariant checked at every step.
    pub(crate) fn run(plan: Plan) -> Self {
        let now = Instant::now();
        let timeouts = Timeouts::default();
        let mut world = Self {
            plan,
            start: now,
            now,
            steps: 0,
            serial: 0,
            due: BTreeMap::new(),
            forth_open: true,
            back_open: true,
            attempts: 0,
            source: Some(Source::new(now, offer(), timeouts)),
            destination: Some(Destination::new(now, timeouts)),
            destination_listens: true,
            tombstones: Tombstones::new(timeouts.tombstone),
            source_runs: true,
            destination_runs: false,
            source_end: None,
            destination_ended: false,
            committed: false,
        };
        world.drain();
        while world.step() {}
        world.check_end();
        world
    }

    /// Asks once more, now that the destination can be reached.
    pub(crate) fn settle(&mut self) {
        self.plan.reconnect = Reconnect::AtOnce;
        assert!(self.source.as_mut().unwrap().ask_again(self.now), "{:?}", self.plan);
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
        if let Some(cut) = self.plan.cut.filter(|cut| cut.step == self.steps) {
            self.cut(cut);
        }
        if let Some((_, meddle)) = self.plan.meddle.filter(|(step, _)| *step == self.steps) {
            self.meddle(meddle);
        }
        let next_due = self.due.first_key_value().map(|((at, _), _)| *at);
        let source_timeout = self.source.as_ref().and_then(Source::poll_timeout);
        let destination_timeout = self.destination.as_ref().and_then(Destination::poll_timeout);
        let Some(next) = [next_due, source_timeout, destination_timeout].into_iter().flatten().min() else { return false };
        self.now = self.now.max(next);
        assert!(self.now - self.start < HORIZON && self.steps < 1000, "it does not end: {:?}", self.plan);
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
        let now = self.now;
        if matches!(due, Due::Query) {
            return self.handle_query();
        }
        if let Some(source) = &mut self.source {
            match &due {
                Due::ToSource(message) if self.attempts == 0 => source.handle_message(now, message.clone()),
                Due::SourceClosed if self.attempts == 0 => source.handle_closed(now),
                Due::Answer(status) => source.handle_message(now, Message::Answer(*status)),
                Due::Attach => self.attach(),
                Due::Finish => {
                    self.source_runs = false;
                    source.finish(now, totals(), vec![]);
                    self.source_runs = matches!(source.owner(), GuestOwner::Source) && source.poll_timeout().is_none();
                }
                Due::Commit => source.commit(now, ms(1)),
                Due::Connected(true) => source.reconnected(now),
                Due::Connected(false) => source.reconnect_failed(now),
                _ => {}
            }
        }
        if let Some(destination) = &mut self.destination {
            match due {
                Due::ToDestination(message) => destination.handle_message(now, message),
                Due::DestinationClosed => destination.handle_closed(now),
                Due::Accept => destination.accept(now, CHANNELS, CODECS, Features::NONE, 1),
                Due::Load => destination.ready(now),
                Due::Resume if self.plan.resume == Resume::Fails => assert!(destination.fail(now, "no vCPU".into())),
                Due::Resume => {
                    self.destination_runs = true;
                    destination.running(now);
                }
                _ => {}
            }
        }
    }

    fn attach(&mut self) {
        for channel in 0..CHANNELS {
            if self.destination.as_mut().is_none_or(|destination| destination.attach(self.now, TOKEN, Lane::Bulk(channel), 0).is_err()) {
                return;
            }
        }
        self.source.as_mut().unwrap().attached(self.now);
        self.later(ms(2300), Due::Finish);
    }

    fn handle_query(&mut self) {
        let status = match &mut self.destination {
            Some(destination) => destination.query(self.now, TOKEN),
            None => self.tombstones.answer(self.now, SESSION, TOKEN),
        };
        if !(self.plan.reconnect == Reconnect::AnswerLost && self.attempts == 1) {
            self.later(self.plan.back, Due::Answer(status));
        }
    }

    /// Takes all outputs of both machines to where they belong.
    fn drain(&mut self) {
        while let Some(message) = self.source.as_mut().and_then(Source::poll_message) {
            self.committed |= matches!(message, Message::Commit { .. });
            match message {
                Message::Query { .. } => self.later(self.plan.forth, Due::Query),
                message if self.attempts == 0 && self.forth_open => self.later(self.plan.forth, Due::ToDestination(message)),
                _ => {}
            }
        }
        while let Some(message) = self.destination.as_mut().and_then(Destination::poll_message) {
            if self.back_open {
                self.later(self.plan.back, Due::ToSource(message));
            }
        }
        while let Some(event) = self.source.as_mut().and_then(Source::poll_event) {
            self.source_event(event);
        }
        while let Some(event) = self.destination.as_mut().and_then(Destination::poll_event) {
            self.destination_event(&event);
        }
        self.check_step();
    }

    fn source_event(&mut self, event: SourceEvent) {
        match event {
            SourceEvent::Accepted { .. } => self.later(self.plan.forth + self.plan.back, Due::Attach),
            SourceEvent::Progress { .. } | SourceEvent::Running => {}
            SourceEvent::Discarded | SourceEvent::Interrupted { .. } | SourceEvent::Recovered { .. } => unreachable!("without post-copy"),
            SourceEvent::Ready => self.later(ms(5), Due::Commit),
            SourceEvent::Reconnect => {
                self.close_forth();
                self.attempts += 1;
                let reachable = self.destination_listens && self.plan.reconnect != Reconnect::Never;
                let patience = if self.plan.reconnect == Reconnect::Later { 4 } else { 1 };
                self.later(self.plan.forth, Due::Connected(reachable && self.attempts >= patience));
            }
            SourceEvent::Ended(end) => {
                self.close_forth();
                assert_eq!(self.source_end, None, "ended twice: {:?}", self.plan);
                self.source_runs |= matches!(end, SourceEnd::Failed { .. } | SourceEnd::Refused { .. });
                self.source_end = Some(end);
            }
        }
    }

    fn destination_event(&mut self, event: &DestinationEvent) {
        match event {
            DestinationEvent::Offered(_) => self.later(ms(10), Due::Accept),
            DestinationEvent::Finish { .. } => self.later(ms(30), Due::Load),
            DestinationEvent::Run { .. } => self.later(if self.plan.resume == Resume::Slow { ms(3200) } else { ms(20) }, Due::Resume),
            DestinationEvent::Stale { .. } | DestinationEvent::Interrupted { .. } | DestinationEvent::Resume { .. } => {
                unreachable!("without post-copy")
            }
            DestinationEvent::Ended(_) => {
                assert!(!self.destination_ended, "ended twice: {:?}", self.plan);
                self.destination_ended = true;
                // As a receiver does: the machine goes, a tombstone may stay. A late message finds nothing.
                if self.back_open {
                    self.later(self.plan.back, Due::SourceClosed);
                }
                let destination = self.destination.take().unwrap();
                destination.tombstone().into_iter().for_each(|stone| self.tombstones.keep(self.now, stone));
                self.destination = None;
            }
        }
    }

    fn close_forth(&mut self) {
        if self.forth_open && self.attempts == 0 {
            self.later(self.plan.forth, Due::DestinationClosed);
        }
    }

    fn meddle(&mut self, meddle: Meddle) {
        let now = self.now;
        match meddle {
            Meddle::SourceAborts => {
                let owner = self.source.as_ref().map(Source::owner);
                let aborted = self.source.as_mut().is_some_and(|source| source.abort(now, "operator".into()));
                assert!(!aborted || owner == Some(GuestOwner::Source));
            }
            // Between Run and running the driver is inside `resume`, and only that may fail.
            Meddle::DestinationFails => {
                if let Some(destination) = self.destination.as_mut().filter(|destination| !destination.may_run()) {
                    destination.fail(now, "operator".into());
                }
            }
        }
        self.drain();
    }

    fn cut(&mut self, cut: Cut) {
        let (forth, back) = (cut.ways != Ways::Back, cut.ways != Ways::Forth);
        self.forth_open &= !forth;
        self.back_open &= !back;
        let hit: Vec<_> = self
            .due
            .iter()
            .filter(|(_, due)| match due {
                Due::ToDestination(_) | Due::DestinationClosed => forth,
                Due::ToSource(_) | Due::SourceClosed => back,
                _ => false,
            })
            .map(|(key, _)| *key)
            .collect();
        for key in hit {
            let due = self.due.remove(&key).unwrap();
            if cut.on_the_way == OnTheWay::Late {
                self.due.insert((key.0 + LATE, key.1), due);
            }
        }
        if matches!(cut.notice, Notice::Source | Notice::Everyone) {
            self.later(ms(1), Due::SourceClosed);
        }
        if matches!(cut.notice, Notice::Destination | Notice::Everyone) {
            self.later(ms(1), Due::DestinationClosed);
        }
        match cut.ways {
            Ways::DestinationDead | Ways::DestinationRestarted => {
                (self.destination, self.destination_runs) = (None, false);
                self.destination_listens = cut.ways == Ways::DestinationRestarted;
                self.tombstones = Tombstones::new(Duration::ZERO);
                self.due.retain(|_, due| !matches!(due, Due::Accept | Due::Load | Due::Resume));
            }
            Ways::SourceDead => {
                (self.source, self.source_runs) = (None, false);
                self.due.retain(|_, due| !matches!(due, Due::Attach | Due::Finish | Due::Commit));
            }
            Ways::Forth | Ways::Back | Ways::Both => {}
        }
    }

    /// What must hold at every moment.
    fn check_step(&self) {
        let plan = &self.plan;
        assert!(!(self.source_runs && self.destination_runs), "the guest runs twice: {plan:?}");
        let Some(source) = &self.source else { return };
        let may_run = self.destination_runs || self.destination.as_ref().is_some_and(Destination::may_run);
        assert!(!(may_run && source.owner() == GuestOwner::Source), "two owners: {plan:?}");
        assert!(!self.source_runs || source.owner() == GuestOwner::Source, "runs without owning: {plan:?}");
        assert!(self.committed || source.owner() == GuestOwner::Source, "given away without Commit: {plan:?}");
    }

    /// What must hold when nothing more happens.
    fn check_end(&self) {
        let plan = &self.plan;
        assert!(self.destination.is_none(), "the destination's session did not end: {plan:?}");
        let Some(source) = &self.source else { return };
        let end = self.source_end.as_ref().unwrap_or_else(|| panic!("the source's session did not end: {plan:?}"));
        let dead = plan.cut.is_some_and(|cut| matches!(cut.ways, Ways::DestinationDead | Ways::DestinationRestarted));
        match source.owner() {
            GuestOwner::Source => {
                assert!(matches!(end, SourceEnd::Failed { .. }), "{end:?}: {plan:?}");
                assert!(self.source_runs && !self.destination_runs, "nobody runs the guest: {plan:?}");
            }
            GuestOwner::Destination => {
                assert_eq!(*end, SourceEnd::Completed, "{plan:?}");
                assert!(!self.source_runs && (self.destination_runs || dead), "nobody runs the guest: {plan:?}");
            }
            GuestOwner::InDoubt => {
                assert!(matches!(end, SourceEnd::InDoubt { .. }), "{end:?}: {plan:?}");
                assert!(dead || plan.reconnect == Reconnect::Never, "in doubt though it could be asked: {plan:?}");
            }
        }
    }
}
