//! What the peer and the clock do to a source.

use std::time::Instant;

use super::doubt::Asking;
use super::{Source, SourceEnd, SourceEvent, State};
use crate::page::Codecs;
use crate::protocol::pulse::after;
use crate::protocol::{GuestOwner, ProtocolError, bounded, name_of};
use crate::wire::{Features, Message};

impl Source {
    /// A message came on the control connection (in doubt and recovering: on the newest one).
    pub fn handle_message(&mut self, now: Instant, message: Message) {
        self.pulse.heard(now);
        match (&self.state, message) {
            (State::Ended { .. }, _) => {}
            (State::Doubt { .. }, message) => self.handle_answer(now, &message),
            (State::Recovering(_), message) => self.handle_recovery(now, message),
            (State::Serving, message) => self.handle_serving(now, message),
            (State::Committed, message) if self.post_copy.is_some() => self.handle_serving(now, message),
            // A destination that says Failed will not run the guest any more, even if Commit is on its way or there.
            (_, Message::Failed { reason }) => self.take_back(ProtocolError::PeerGaveUp { reason }),
            (State::Offering { .. }, Message::Accept { channels, codecs, features, granule }) => {
                self.handle_accept(now, channels, codecs, features, granule);
            }
            (State::Offering { .. }, Message::Refuse { reason, detail }) => self.end(GuestOwner::Source, SourceEnd::Refused { reason, detail }),
            (State::Offering { .. }, message) => self.unexpected(now, &message),
            (_, Message::Progress { frames, bytes }) => self.events.push_back(SourceEvent::Progress { frames, bytes }),
            (State::Copying { .. }, Message::Discarded) => {
                if !self.handle_discarded() {
                    self.unexpected(now, &Message::Discarded);
                }
            }
            (State::Finishing, Message::Ready) => {
                self.state = State::Ready;
                self.events.push_back(SourceEvent::Ready);
            }
            (State::Committed, Message::Running) => {
                self.events.push_back(SourceEvent::Running);
                self.release();
            }
            (_, message) => self.unexpected(now, &message),
        }
    }

    /// Bytes came on the control connection, though not yet a whole message.
    pub fn heard(&mut self, now: Instant) {
        self.pulse.heard(now);
        self.heard_of_arrived(now);
    }

    /// The control connection is lost, or nothing sensible comes from it. No message comes out for it any more.
    pub fn handle_closed(&mut self, now: Instant) {
        self.broken(now, ProtocolError::Closed { state: self.state.name() });
        self.outbox.clear();
    }

    /// The time of [`Source::poll_timeout`] has come. Messages that are there to be read are to be handled first.
    pub fn handle_timeout(&mut self, now: Instant) {
        let state = self.state.name();
        match self.state {
            State::Ended { .. } => return,
            State::Doubt { .. } => return self.handle_doubt_timeout(now),
            State::Recovering(_) => return self.handle_recovery_timeout(now),
            State::Offering { until } | State::Attaching { until, .. } if now >= until => {
                return self.broken(now, ProtocolError::Handshake { limit: self.timeouts.handshake, state });
            }
            State::Offering { .. } => {}
            _ if now >= self.pulse.silent_at() => {
                return self.broken(now, ProtocolError::Silent { waited: self.timeouts.silence, state });
            }
            _ => {}
        }
        self.beat(now);
    }

    pub(super) fn beat(&mut self, now: Instant) {
        if self.pulse.beat(now) {
            self.outbox.push_back(Message::Ping);
        }
    }

    fn handle_accept(&mut self, now: Instant, channels: u16, codecs: Codecs, features: Features, granule: u16) {
        if channels == 0 || channels > self.offer.channels {
            let why = format!("{channels} channels granted, {} were asked for", self.offer.channels);
            return self.broken(now, ProtocolError::Senseless { message: "Accept", why });
        }
        if !self.offer.codecs.contains(codecs) {
            let why = format!("forms of pages {codecs:?} granted, {:?} were offered", self.offer.codecs);
            return self.broken(now, ProtocolError::Senseless { message: "Accept", why });
        }
        if !self.offer.features.contains(features) {
            let why = format!("{features:?} granted, {:?} were offered", self.offer.features);
            return self.broken(now, ProtocolError::Senseless { message: "Accept", why });
        }
        self.granted = features;
        self.state = State::Attaching { until: after(now, self.timeouts.handshake), channels };
        self.events.push_back(SourceEvent::Accepted { channels, codecs, features, granule });
    }

    pub(super) fn unexpected(&mut self, now: Instant, message: &Message) {
        self.broken(now, ProtocolError::Unexpected { message: name_of(message), state: self.state.name() });
    }

    /// The connection is of no more use.
    pub(super) fn broken(&mut self, now: Instant, error: ProtocolError) {
        match self.state {
            State::Ended { .. } => {}
            State::Doubt { asking: Asking::Asked { .. }, .. } => self.ask_later(now),
            State::Doubt { .. } => {}
            State::Committed if self.post_copy.is_none() => self.doubt(now, error),
            State::Committed | State::Serving | State::Recovering(_) => self.interrupted(now, error),
            _ => self.call_off(error),
        }
    }

    /// Ends it before Commit went out.
    pub(super) fn call_off(&mut self, error: ProtocolError) {
        self.outbox.retain(|message| !matches!(message, Message::Commit { .. }));
        self.outbox.push_back(Message::Abort { reason: bounded(error.to_string()) });
        self.end(GuestOwner::Source, SourceEnd::Failed { error });
    }

    /// The destination says that the guest will not run there.
    pub(super) fn take_back(&mut self, error: ProtocolError) {
        self.outbox.clear();
        self.end(GuestOwner::Source, SourceEnd::Failed { error });
    }

    /// Nothing keeps the guest here any more.
    pub(super) fn release(&mut self) {
        self.outbox.clear();
        self.outbox.push_back(Message::Released);
        self.end(GuestOwner::Destination, SourceEnd::Completed);
    }

    pub(super) fn end(&mut self, owner: GuestOwner, end: SourceEnd) {
        let unsettled = if let SourceEnd::InDoubt { error } | SourceEnd::Stranded { error } = &end { Some(error.clone()) } else { None };
        self.state = State::Ended { owner, unsettled };
        self.events.push_back(SourceEvent::Ended(end));
    }
}
