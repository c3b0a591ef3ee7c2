//! Two machines, their drivers and connections: one state, and what can happen to it next.
//!
//! No clock here: with timeouts of zero a deadline is always due, so that "now it times out" is one more choice, and
//! states that differ only in time are the same.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use pageferry::protocol::{Destination, DestinationEvent, GuestOwner, Source, SourceEnd, SourceEvent, Timeouts};
use pageferry::wire::{AnswerStatus, Features, Lane, Message};

use crate::pair::{CHANNELS, CODECS, TOKEN, offer, totals};

/// One thing that happens next, where it can.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Choice {
    /// The source's next message is taken from it and is on its way.
    SourceSends,
    DestinationSends,
    DeliverForth,
    DeliverBack,
    /// The connection takes nothing more this way, and what is on the way may still come or not.
    CutForth,
    CutBack,
    LoseForth,
    LoseBack,
    SourceSeesClosed,
    DestinationSeesClosed,
    SourceTimesOut,
    DestinationTimesOut,
    /// The drivers do what the last event asked for.
    SourceActs,
    DestinationActs,
    SourceAborts,
    DestinationFails,
    ConnectFails,
    QueryArrives,
    QueryLost,
    AnswerArrives,
    AnswerLost,
}

pub(crate) const CHOICES: [Choice; 21] = [
    Choice::SourceSends,
    Choice::DestinationSends,
    Choice::DeliverForth,
    Choice::DeliverBack,
    Choice::CutForth,
    Choice::CutBack,
    Choice::LoseForth,
    Choice::LoseBack,
    Choice::SourceSeesClosed,
    Choice::DestinationSeesClosed,
    Choice::SourceTimesOut,
    Choice::DestinationTimesOut,
    Choice::SourceActs,
    Choice::DestinationActs,
    Choice::SourceAborts,
    Choice::DestinationFails,
    Choice::ConnectFails,
    Choice::QueryArrives,
    Choice::QueryLost,
    Choice::AnswerArrives,
    Choice::AnswerLost,
];

/// Those that happen in the end if nothing goes wrong any more, the more urgent ones first.
const CALM: [Choice; 13] = [
    Choice::SourceSends,
    Choice::DestinationSends,
    Choice::DeliverForth,
    Choice::DeliverBack,
    Choice::SourceActs,
    Choice::DestinationActs,
    Choice::QueryArrives,
    Choice::AnswerArrives,
    Choice::SourceSeesClosed,
    Choice::SourceTimesOut,
    Choice::DestinationTimesOut,
    Choice::CutForth,
    Choice::DestinationSeesClosed,
];

/// What a driver has to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Task {
    Accept,
    Attach,
    Finish,
    Load,
    Commit,
    Resume,
    Connect,
}

#[derive(Clone, Debug)]
pub(crate) struct Node {
    source: Source,
    destination: Destination,
    forth: VecDeque<Message>,
    back: VecDeque<Message>,
    forth_open: bool,
    back_open: bool,
    source_task: Option<Task>,
    destination_task: Option<Task>,
    /// The source uses the first connection still.
    first: bool,
    query: bool,
    answer: Option<AnswerStatus>,
    source_end: Option<SourceEnd>,
    destination_ended: bool,
    runs: u8,
    /// An end said to be final: nothing may contradict it.
    answered: Option<AnswerStatus>,
}

impl Node {
    pub(crate) fn new(now: Instant, timeouts: Timeouts) -> Self {
        Self {
            source: Source::new(now, offer(), timeouts),
            destination: Destination::new(now, timeouts),
            forth: VecDeque::new(),
            back: VecDeque::new(),
            forth_open: true,
            back_open: true,
            source_task: None,
            destination_task: None,
            first: true,
            query: false,
            answer: None,
            source_end: None,
            destination_ended: false,
            runs: 0,
            answered: None,
        }
    }

    /// What becomes of it by `choice`; `None` if that cannot happen here.
    pub(crate) fn after(&self, choice: Choice, now: Instant) -> Option<Self> {
        let mut next = self.clone();
        next.choose(choice, now)?;
        next.events();
        next.check(choice);
        Some(next)
    }

    fn choose(&mut self, choice: Choice, now: Instant) -> Option<()> {
        let possible = |condition: bool| condition.then_some(());
        match choice {
            Choice::SourceSends => match self.source.poll_message()? {
                Message::Query { .. } => self.query = true,
                message if self.first && self.forth_open => self.forth.push_back(message),
                _ => {}
            },
            Choice::DestinationSends => {
                let message = self.destination.poll_message()?;
                if self.back_open {
                    self.back.push_back(message);
                }
            }
            Choice::DeliverForth => self.destination.handle_message(now, self.forth.pop_front()?),
            Choice::DeliverBack => {
                let message = self.back.pop_front()?;
                if self.first {
                    self.source.handle_message(now, message);
                }
            }
            Choice::CutForth => possible(std::mem::take(&mut self.forth_open))?,
            Choice::CutBack => possible(std::mem::take(&mut self.back_open))?,
            Choice::LoseForth => drop(self.forth.pop_back().filter(|_| !self.forth_open)?),
            Choice::LoseBack => drop(self.back.pop_back().filter(|_| !self.back_open)?),
            Choice::SourceSeesClosed => {
                possible(self.first && !(self.forth_open && self.back_open) && self.source.poll_timeout().is_some())?;
                self.source.handle_closed(now);
            }
            Choice::DestinationSeesClosed => {
                possible(!(self.forth_open && self.back_open) && self.destination.poll_timeout().is_some())?;
                self.destination.handle_closed(now);
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
            Choice::SourceAborts => possible(self.source.abort(now, "operator".into()))?,
            Choice::DestinationFails => {
                possible(self.destination.fail(now, "operator".into()))?;
                self.destination_task = None;
            }
            Choice::ConnectFails => {
                self.source_task.take_if(|task| *task == Task::Connect)?;
                self.source.reconnect_failed(now);
            }
            Choice::QueryArrives => {
                possible(std::mem::take(&mut self.query))?;
                self.query_arrives(now);
            }
            Choice::QueryLost => possible(std::mem::take(&mut self.query))?,
            Choice::AnswerArrives => self.source.handle_message(now, Message::Answer(self.answer.take()?)),
            Choice::AnswerLost => drop(self.answer.take()?),
        }
        Some(())
    }

    fn query_arrives(&mut self, now: Instant) {
        self.answer = Some(self.destination.query(now, TOKEN));
        self.answered = self.answer.filter(|status| *status != AnswerStatus::Unknown).or(self.answered);
    }

    fn source_acts(&mut self, now: Instant) -> Option<()> {
        match self.source_task.take()? {
            Task::Attach => {
                for channel in 0..CHANNELS {
                    if self.destination.attach(now, TOKEN, Lane::Bulk(channel), 0).is_err() {
                        return Some(());
                    }
                }
                self.source.attached(now);
                self.source_task = Some(Task::Finish);
            }
            Task::Finish => self.source.finish(now, totals(), vec![]),
            Task::Commit => self.source.commit(now, Duration::ZERO),
            // An old Query may still be under way when the next connection is made, but not its Answer.
            Task::Connect => {
                self.answer = None;
                self.source.reconnected(now);
            }
            task => unreachable!("{task:?} is not the source's"),
        }
        Some(())
    }

    fn destination_acts(&mut self, now: Instant) -> Option<()> {
        match self.destination_task.take()? {
            Task::Accept => self.destination.accept(now, CHANNELS, CODECS, Features::NONE, 1),
            Task::Load => self.destination.ready(now),
            Task::Resume => self.destination.running(now),
            task => unreachable!("{task:?} is not the destination's"),
        }
        Some(())
    }

    fn events(&mut self) {
        while let Some(event) = self.source.poll_event() {
            match event {
                SourceEvent::Accepted { .. } => self.source_task = Some(Task::Attach),
                SourceEvent::Ready => self.source_task = Some(Task::Commit),
                SourceEvent::Reconnect => (self.first, self.forth_open, self.source_task) = (false, false, Some(Task::Connect)),
                SourceEvent::Ended(end) => {
                    assert_eq!(self.source_end, None, "ended twice");
                    (self.source_end, self.source_task) = (Some(end), None);
                }
                SourceEvent::Progress { .. } | SourceEvent::Running => {}
                event => unreachable!("{event:?} without post-copy"),
            }
        }
        while let Some(event) = self.destination.poll_event() {
            match event {
                DestinationEvent::Offered(_) => self.destination_task = Some(Task::Accept),
                DestinationEvent::Finish { .. } => self.destination_task = Some(Task::Load),
                DestinationEvent::Run { .. } => (self.runs, self.destination_task) = (self.runs + 1, Some(Task::Resume)),
                DestinationEvent::Stale { .. } | DestinationEvent::Interrupted { .. } | DestinationEvent::Resume { .. } => {
                    unreachable!("without post-copy")
                }
                DestinationEvent::Ended(_) => {
                    assert!(!self.destination_ended, "ended twice");
                    (self.destination_ended, self.destination_task) = (true, None);
                }
            }
        }
    }

    fn check(&self, choice: Choice) {
        assert!(!(self.source.owner() == GuestOwner::Source && self.destination.may_run()), "two owners by {choice:?}: {self:#?}");
        assert!(self.runs <= 1, "run twice by {choice:?}: {self:#?}");
        match self.answered {
            Some(AnswerStatus::Running) => assert!(self.destination.may_run(), "an Answer was not kept: {self:#?}"),
            Some(_) => assert!(!self.destination.may_run(), "an Answer was not kept: {self:#?}"),
            None => {}
        }
        if self.source_end == Some(SourceEnd::Completed) {
            assert!(self.destination.may_run(), "nobody owns it by {choice:?}: {self:#?}");
        }
    }

    /// Goes on without further trouble: somebody owns the guest then.
    pub(crate) fn settle(mut self, now: Instant) {
        for _ in 0..200 {
            if let Some(next) = CALM.into_iter().find_map(|choice| self.after(choice, now)) {
                self = next;
            } else if self.source.ask_again(now) {
                self.source_end = None;
                self.events();
            } else {
                break;
            }
        }
        assert!(self.source_end.is_some() && self.destination_ended, "it does not end: {self:#?}");
        match self.source.owner() {
            GuestOwner::Source => assert!(!self.destination.may_run()),
            GuestOwner::Destination => assert!(self.destination.may_run(), "nobody owns it: {self:#?}"),
            GuestOwner::InDoubt => panic!("in doubt for ever: {self:#?}"),
        }
    }
}
