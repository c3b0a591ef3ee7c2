//! The connections of a session after Commit, and how the source comes back with new ones.
//!
//! In post-copy the guest must not be dropped any more, whatever becomes of the connections: it waits for the pages it
//! lacks until the source comes again. Each Resume that is accepted begins a generation of lanes. A source may come
//! while the old connections still look alive here, or twice; the newest wins.

use std::time::Instant;

use super::attach::Attached;
use super::{Destination, DestinationEvent, State};
use crate::bitmap::PageBitmap;
use crate::protocol::pieces::{extent, pieces};
use crate::protocol::pulse::{Pulse, after};
use crate::protocol::{ProtocolError, Resumption, same_token};
use crate::units::PageCount;
use crate::wire::{AnswerStatus, Message, Token};

/// What a destination knows of its post-copy.
#[derive(Clone, Copy, Debug)]
pub(super) struct PostCopy {
    /// Pages that were missing at the switch.
    pub(super) pages: PageCount,
    /// Of the lanes, 0 at first.
    pub(super) generation: u32,
}

/// The connections of a session, from Commit on.
#[derive(Clone, Debug)]
pub(super) enum Link {
    Up,
    /// Of no more use. The first reason.
    Down {
        error: ProtocolError,
    },
    /// A Resume was accepted. Until the driver has put the new control connection in its place, whatever comes is the
    /// old one's.
    Replacing,
    /// Resumed is out; lanes come in.
    Attaching {
        until: Instant,
        attached: Attached,
    },
}

/// What the driver does.
impl Destination {
    /// A source that has lost the session comes on another connection and wants to go on; this is what to answer.
    ///
    /// Before Commit it decides that the guest never runs here. From then on a guest that still lacks pages is resumed:
    /// the driver is told by [`DestinationEvent::Resume`].
    pub fn resume(&mut self, _now: Instant, token: Token) -> Resumption {
        if !self.is_token(token) {
            return Resumption::Refused;
        }
        match (&self.state, &mut self.post_copy) {
            (State::Starting | State::Fetching, Some(post_copy)) => {
                let Some(generation) = post_copy.generation.checked_add(1) else { return Resumption::Refused };
                post_copy.generation = generation;
                self.interrupted(ProtocolError::Replaced { state: self.state.name() });
                self.link = Link::Replacing;
                self.events.push_back(DestinationEvent::Resume { generation });
                Resumption::Accepted { generation }
            }
            (State::Running { .. } | State::Ended(AnswerStatus::Running), Some(post_copy)) => Resumption::Complete { pages: post_copy.pages },
            (State::Starting | State::Fetching | State::Running { .. } | State::Ended(AnswerStatus::Running | AnswerStatus::Unknown), _) => {
                Resumption::Refused
            }
            (State::Ended(AnswerStatus::NeverStarted), _) => Resumption::NeverStarted,
            _ => {
                self.drop_guest(ProtocolError::Asked);
                Resumption::NeverStarted
            }
        }
    }

    /// The connection on which the Resume of `generation` came is the session's control connection now, the old lanes are
    /// stopped, and of the missing pages `arrived` have come. Lanes of the generation may attach. Too late for one that
    /// another has followed.
    ///
    /// # Panics
    /// When more pages have arrived than were missing, or of another memory.
    pub fn resumed(&mut self, now: Instant, generation: u32, arrived: &PageBitmap) {
        let Some(PostCopy { pages, .. }) = self.post_copy.filter(|post_copy| post_copy.generation == generation) else { return };
        if !matches!(self.link, Link::Replacing) {
            return;
        }
        self.closed = false;
        self.pulse = Pulse::new(now, &self.timeouts);
        match self.state {
            State::Starting | State::Fetching => {
                let arrived_in_all = extent(arrived);
                assert_eq!(Some(arrived.chunks()), self.offer.as_ref().map(|offer| offer.layout.chunks()), "a bitmap of another memory");
                assert!(arrived_in_all.pages <= pages, "{} pages have arrived, {} were missing", arrived_in_all.pages.0, pages.0);
                self.link = Link::Attaching { until: after(now, self.timeouts.handshake), attached: Attached::default() };
                self.outbox.extend(pieces(arrived).map(|(first, words)| Message::Arrived { first, words }));
                self.outbox.push_back(Message::Resumed { generation, arrived: arrived_in_all });
                if matches!(self.state, State::Fetching) {
                    // The source may not have heard it the first time.
                    self.outbox.push_back(Message::Running);
                }
            }
            State::Running { .. } => {
                self.state = State::Running { until: after(now, self.timeouts.handshake) };
                self.link = Link::Up;
                self.outbox.push_back(Message::Complete { pages });
            }
            // The guest could not be started after all: Failed is waiting to go out.
            _ => self.link = Link::Up,
        }
    }

    /// A lane of `generation` broke. After the switch to post-copy that is the end, from Commit on and until all pages are
    /// there it interrupts the session; for another generation or at another time it means nothing.
    pub fn interrupt(&mut self, _now: Instant, generation: u32) {
        let is_this_one = self.post_copy.is_some_and(|post_copy| post_copy.generation == generation);
        let error = ProtocolError::Lane { state: self.state.name() };
        match self.state {
            State::Loading | State::Ready if is_this_one => self.drop_guest(error),
            State::Starting | State::Fetching if is_this_one => self.interrupted(error),
            _ => {}
        }
    }

    /// Every missing page has arrived: the source is told, and needs to keep nothing any more.
    ///
    /// # Panics
    /// Unless the guest runs in post-copy.
    pub fn complete(&mut self, now: Instant) {
        let (State::Fetching, Some(post_copy)) = (&self.state, &self.post_copy) else { panic!("completed while {}", self.state.name()) };
        let pages = post_copy.pages;
        self.state = State::Running { until: after(now, self.timeouts.handshake) };
        match &self.link {
            Link::Up | Link::Attaching { .. } => self.outbox.push_back(Message::Complete { pages }),
            // It follows in place of Resumed.
            Link::Replacing => {}
            Link::Down { error } => {
                let error = error.clone();
                self.over(Some(error));
            }
        }
    }
}

impl Destination {
    pub(super) fn is_token(&self, token: Token) -> bool {
        self.offer.as_ref().is_some_and(|offer| same_token(offer.token, token))
    }

    /// In post-copy, from Commit on: what connections there are, are of no more use.
    pub(super) fn interrupted(&mut self, error: ProtocolError) {
        if matches!(self.link, Link::Up | Link::Attaching { .. }) {
            self.closed = true;
            self.outbox.clear();
            self.events.push_back(DestinationEvent::Interrupted { error: error.clone() });
            self.link = Link::Down { error };
        }
    }
}
