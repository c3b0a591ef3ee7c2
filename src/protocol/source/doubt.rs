//! A source whose Commit was not answered asks what became of the guest.

use std::time::Instant;

use super::{Source, SourceEnd, SourceEvent, State};
use crate::protocol::pulse::after;
use crate::protocol::{GuestOwner, ProtocolError};
use crate::wire::{AnswerStatus, Message};

/// Where a source in doubt stands.
#[derive(Clone, Copy, Debug)]
pub(super) enum Asking {
    /// The driver opens a connection.
    Connecting,
    /// Query is out on the new connection.
    Asked { until: Instant },
    /// That came to nothing; the next attempt is at this time.
    Waiting { until: Instant },
}

impl Asking {
    /// What is due first when the doubt is given up at `until`. A question under way may still be answered then.
    pub(super) fn next_timeout(self, until: Instant) -> Instant {
        match self {
            Self::Asked { until } => until,
            Self::Waiting { until: next } => next.min(until),
            Self::Connecting => until,
        }
    }
}

impl Source {
    /// The connection that [`SourceEvent::Reconnect`] asked for is there: Query goes out on it, or Resume.
    pub fn reconnected(&mut self, now: Instant) {
        match &mut self.state {
            State::Doubt { asking: asking @ Asking::Connecting, .. } => {
                // One lost Answer must not use up the time there is to ask again.
                let patience = self.timeouts.handshake.min(self.timeouts.resolve / 3);
                *asking = Asking::Asked { until: after(now, patience) };
                self.outbox.push_back(Message::Query { session: self.offer.session, token: self.offer.token });
            }
            State::Recovering(_) => self.ask_to_resume(now),
            _ => {}
        }
    }

    /// The connection that [`SourceEvent::Reconnect`] asked for could not be made. It is asked for again later.
    pub fn reconnect_failed(&mut self, now: Instant) {
        match &self.state {
            State::Doubt { asking: Asking::Connecting, .. } => self.ask_later(now),
            State::Recovering(_) => self.connect_later(now),
            _ => {}
        }
    }

    /// Begins to ask once more after [`SourceEnd::InDoubt`]; another end will be reported. False if there is no doubt.
    pub fn ask_again(&mut self, now: Instant) -> bool {
        let State::Ended { owner: GuestOwner::InDoubt, unsettled: Some(error) } = &self.state else { return false };
        let error = error.clone();
        if self.post_copy.is_some() {
            self.recover(now, error);
        } else {
            self.doubt(now, error);
        }
        true
    }

    pub(super) fn doubt(&mut self, now: Instant, cause: ProtocolError) {
        self.outbox.clear();
        self.events.push_back(SourceEvent::Reconnect);
        self.state = State::Doubt { until: after(now, self.timeouts.resolve), asking: Asking::Connecting, cause };
    }

    pub(super) fn ask_later(&mut self, now: Instant) {
        if let State::Doubt { asking, .. } = &mut self.state {
            self.outbox.clear();
            *asking = Asking::Waiting { until: after(now, self.timeouts.retry()) };
        }
    }

    pub(super) fn handle_answer(&mut self, now: Instant, message: &Message) {
        let State::Doubt { asking: Asking::Asked { .. }, cause, .. } = &self.state else { return };
        match message {
            Message::Answer(AnswerStatus::Running) => {
                self.events.push_back(SourceEvent::Running);
                self.release();
            }
            Message::Answer(AnswerStatus::NeverStarted) => {
                let cause = Box::new(cause.clone());
                self.take_back(ProtocolError::NeverStarted { cause });
            }
            // Unknown, or not an answer at all: nothing follows from it.
            _ => self.ask_later(now),
        }
    }

    pub(super) fn handle_doubt_timeout(&mut self, now: Instant) {
        let State::Doubt { until, asking, cause } = &mut self.state else { return };
        match *asking {
            Asking::Asked { until } if now >= until => self.ask_later(now),
            Asking::Asked { .. } => {}
            Asking::Connecting | Asking::Waiting { .. } if now >= *until => {
                let error = cause.clone();
                self.end(GuestOwner::InDoubt, SourceEnd::InDoubt { error });
            }
            Asking::Waiting { until } if now >= until => {
                *asking = Asking::Connecting;
                self.events.push_back(SourceEvent::Reconnect);
            }
            Asking::Connecting | Asking::Waiting { .. } => {}
        }
    }
}
