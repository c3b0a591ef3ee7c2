//! What the driver of a destination does.

use std::time::Instant;

use super::attach::{AttachError, Attached};
use super::recovery::Link;
use super::{Destination, DestinationEnd, DestinationEvent, State};
use crate::page::Codecs;
use crate::protocol::pulse::{Pulse, after};
use crate::protocol::{ProtocolError, bounded};
use crate::units::ByteCount;
use crate::wire::{AnswerStatus, Features, Lane, Message, RefuseReason, Token};

/// Each call belongs to one state, and in another one is a bug of the driver; but a session may end under the driver's
/// hands, and once it has ended the calls do nothing.
impl Destination {
    /// Takes the offer; `channels` bulk connections may come, with pages in the forms of `codecs`. This end is able to do
    /// `features`, and would fill missing memory by `granule` pages.
    ///
    /// # Panics
    /// Unless [`DestinationEvent::Offered`] came just before, when `channels` is not from 1 to those wanted, and when `features` is
    /// more than was offered.
    pub fn accept(&mut self, now: Instant, channels: u16, codecs: Codecs, features: Features, granule: u16) {
        match self.state {
            State::Ended(_) => {}
            State::Offered => {
                let offer = self.offer.as_ref().expect("one was made");
                let (wanted, offered) = (offer.channels, offer.features);
                assert!(offered.contains(features), "{features:?} granted of {offered:?}");
                assert!((1..=wanted).contains(&channels), "{channels} channels granted of {wanted}");
                self.channels = channels;
                self.granted = features;
                self.state = State::Attaching { until: after(now, self.timeouts.handshake), attached: Attached::default() };
                self.pulse = Pulse::new(now, &self.timeouts);
                self.outbox.push_back(Message::Accept { channels, codecs, features, granule });
            }
            _ => panic!("accepted while {}", self.state.name()),
        }
    }

    /// Declines the offer, or any offer.
    ///
    /// # Panics
    /// After [`Destination::accept`].
    pub fn refuse(&mut self, _now: Instant, reason: RefuseReason, detail: String) {
        match self.state {
            State::Ended(_) => {}
            State::Waiting { .. } | State::Offered => {
                self.outbox.push_back(Message::Refuse { reason, detail: bounded(detail) });
                self.state = State::Ended(AnswerStatus::NeverStarted);
                self.events.push_back(DestinationEvent::Ended(DestinationEnd::Refused));
            }
            _ => panic!("refused while {}", self.state.name()),
        }
    }

    /// A connection says that it is `lane` of this `generation`. When all are there, frames and Finish may come.
    ///
    /// # Errors
    /// When it is not to be taken in. The session goes on without it.
    pub fn attach(&mut self, now: Instant, token: Token, lane: Lane, generation: u32) -> Result<(), AttachError> {
        if !self.is_token(token) {
            return Err(AttachError::Token);
        }
        let (attached, until, is_first) = match (&mut self.state, &mut self.link) {
            (State::Attaching { attached, until }, _) => (attached, until, true),
            (State::Starting | State::Fetching, Link::Attaching { attached, until }) => (attached, until, false),
            _ => return Err(AttachError::State { state: self.state.name() }),
        };
        let current = self.post_copy.map_or(0, |post_copy| post_copy.generation);
        if generation != current {
            return Err(AttachError::Generation { found: generation, current });
        }
        let are_all = attached.add(lane, self.channels, self.granted)?;
        // Many take several round trips each, a few at a time.
        *until = after(now, self.timeouts.handshake);
        match (are_all, is_first) {
            (true, true) => self.state = State::Receiving,
            (true, false) => self.link = Link::Up,
            (false, _) => {}
        }
        Ok(())
    }

    /// How much has arrived so far, for the next Progress.
    pub fn arrived(&mut self, frames: u64, bytes: ByteCount) {
        self.frames = frames;
        self.bytes = bytes;
    }

    /// Totals are right and the state is loaded.
    ///
    /// # Panics
    /// Unless [`DestinationEvent::Finish`] came just before.
    pub fn ready(&mut self, _now: Instant) {
        match self.state {
            State::Ended(_) => {}
            State::Loading => {
                self.may_be_asked = true;
                self.outbox.push_back(Message::Ready);
                self.state = State::Ready;
            }
            _ => panic!("ready while {}", self.state.name()),
        }
    }

    /// The guest runs. In post-copy, as far as it can with the pages that are there.
    ///
    /// # Panics
    /// Unless [`DestinationEvent::Run`] came just before.
    pub fn running(&mut self, now: Instant) {
        assert!(matches!(self.state, State::Starting), "running while {}", self.state.name());
        // To a connection that comes later in post-copy it is said then.
        let is_heard = self.post_copy.is_none() || matches!(self.link, Link::Up | Link::Attaching { .. });
        if is_heard {
            self.outbox.push_back(Message::Running);
        }
        if self.post_copy.is_some() {
            self.state = State::Fetching;
            return;
        }
        self.state = State::Running { until: after(now, self.timeouts.handshake) };
        if let Link::Down { error } = &self.link {
            let error = error.clone();
            self.over(Some(error));
        }
    }

    /// This end is to go, for `reason`: a guest that has not come to Commit is dropped, and its source told. From Commit on
    /// nothing happens. Whether it was still possible.
    pub fn stop(&mut self, now: Instant, reason: String) -> bool {
        !self.may_run() && self.fail(now, reason)
    }

    /// It cannot go on here, for `reason`. The guest never runs here after this; so after [`DestinationEvent::Run`] it is
    /// to be called only when the guest could not be resumed and has not run. Whether it was still possible: not once the
    /// guest runs, nor after the end.
    pub fn fail(&mut self, _now: Instant, reason: String) -> bool {
        match self.state {
            State::Ended(_) | State::Fetching | State::Running { .. } => false,
            _ => {
                self.drop_guest(ProtocolError::CalledOff { reason });
                true
            }
        }
    }
}
