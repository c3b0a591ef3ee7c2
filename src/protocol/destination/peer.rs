//! What the peer and the clock do to a destination.

use std::time::Instant;

use super::recovery::{Link, PostCopy};
use super::{Destination, DestinationEnd, DestinationEvent, State};
use crate::bitmap::PageBitmap;
use crate::protocol::pieces::Assembly;
use crate::protocol::{ProtocolError, bounded, name_of};
use crate::units::ChunkIndex;
use crate::wire::{AnswerStatus, ChannelTotals, Extent, Features, MAX_CHANNELS, Message, Offer, Token};

impl Destination {
    /// A message came on the session's control connection.
    pub fn handle_message(&mut self, now: Instant, message: Message) {
        self.pulse.heard(now);
        match (&self.state, message) {
            (State::Ended(_), _) => {}
            // Of the old connection.
            _ if matches!(self.link, Link::Replacing) => {}
            (State::Waiting { .. }, Message::Hello(offer)) => self.handle_hello(offer),
            (State::Waiting { .. }, message) => self.unexpected(&message),
            (State::Receiving, Message::Ping) => self.outbox.push_back(self.progress()),
            (_, Message::Ping) => {}
            (State::Receiving, Message::Missing { first, words }) => self.handle_missing(first, &words),
            (State::Receiving, Message::Stale { totals, stale }) => self.handle_stale(totals, stale),
            (State::Receiving, Message::Finish { totals, state, missing }) => self.handle_finish(totals, state, missing),
            (State::Ready, Message::Commit { paused_for }) => {
                self.state = State::Starting;
                self.events.push_back(DestinationEvent::Run { paused_for });
            }
            (State::Running { .. }, Message::Released) => {
                self.may_be_asked = false;
                self.over(None);
            }
            (State::Starting | State::Fetching | State::Running { .. }, message) => self.unexpected(&message),
            (_, Message::Abort { reason }) => {
                // The source has the guest and knows it.
                self.may_be_asked = false;
                self.drop_guest(ProtocolError::PeerGaveUp { reason });
                self.outbox.clear();
            }
            (_, message) => self.unexpected(&message),
        }
    }

    /// Whether the guest's state has its place now, in Finish: else what this end is doing.
    ///
    /// # Errors
    /// When it is not its time, as before Accept.
    pub fn takes_state(&self) -> Result<(), &'static str> {
        if matches!(self.state, State::Receiving) { Ok(()) } else { Err(self.state.name()) }
    }

    /// Bytes came on the control connection, though not yet a whole message.
    pub fn heard(&mut self, now: Instant) {
        self.pulse.heard(now);
    }

    /// The control connection is lost, or nothing sensible comes from it. No message comes out any more.
    pub fn handle_closed(&mut self, _now: Instant) {
        if matches!(self.link, Link::Replacing) {
            return; // The old one.
        }
        self.closed = true;
        self.broken(ProtocolError::Closed { state: self.state.name() });
    }

    /// The time of [`Destination::poll_timeout`] has come. Messages that are there to be read are to be handled first.
    pub fn handle_timeout(&mut self, now: Instant) {
        let state = self.state.name();
        match self.state {
            State::Ended(_) => return,
            _ if matches!(self.link, Link::Down { .. } | Link::Replacing) => return,
            // After Running the source has one thing left to say; that it is alive is not it.
            State::Waiting { until } | State::Attaching { until, .. } | State::Running { until } if now >= until => {
                return self.broken(ProtocolError::Handshake { limit: self.timeouts.handshake, state });
            }
            State::Waiting { .. } => return,
            State::Starting | State::Fetching if matches!(self.link, Link::Attaching { until, .. } if now >= until) => {
                return self.broken(ProtocolError::Handshake { limit: self.timeouts.handshake, state });
            }
            _ if now >= self.pulse.silent_at() => {
                return self.broken(ProtocolError::Silent { waited: self.timeouts.silence, state });
            }
            // Before Accept the source waits for nothing else, and after Running for nothing more.
            State::Offered | State::Running { .. } => return,
            _ => {}
        }
        if self.pulse.beat(now) {
            self.outbox.push_back(self.progress());
        }
    }

    fn progress(&self) -> Message {
        Message::Progress { frames: self.frames, bytes: self.bytes }
    }

    /// A source in doubt asks on another connection; this is the Answer. Before Commit it decides that the guest never
    /// runs here. While the guest is being started the answer is Unknown, as it may still fail; the source asks again.
    pub fn query(&mut self, _now: Instant, token: Token) -> AnswerStatus {
        if !self.is_token(token) {
            return AnswerStatus::Unknown;
        }
        match self.state {
            State::Starting => AnswerStatus::Unknown,
            State::Fetching | State::Running { .. } => AnswerStatus::Running,
            State::Ended(status) => status,
            _ => {
                self.drop_guest(ProtocolError::Asked);
                AnswerStatus::NeverStarted
            }
        }
    }

    /// Released came on the connection on which the source asked: it knows, and will not ask again. While pages are
    /// missing that means nothing.
    pub fn released(&mut self, _now: Instant, token: Token) {
        if !self.is_token(token) {
            return;
        }
        match self.state {
            State::Running { .. } => {
                self.may_be_asked = false;
                self.over(None);
            }
            State::Ended(AnswerStatus::Running) => self.may_be_asked = false,
            _ => {}
        }
    }

    fn handle_hello(&mut self, offer: Offer) {
        if offer.channels == 0 || offer.channels > MAX_CHANNELS {
            let why = format!("{} channels asked for", offer.channels);
            return self.broken(ProtocolError::Senseless { message: "Hello", why });
        }
        self.offer = Some(offer.clone());
        self.state = State::Offered;
        self.events.push_back(DestinationEvent::Offered(offer));
    }

    fn handle_missing(&mut self, first: ChunkIndex, words: &[u64]) {
        let Some(offer) = self.offer.as_ref().filter(|_| self.granted.contains(Features::POST_COPY)) else {
            return self.broken(ProtocolError::Senseless { message: "Missing", why: "post-copy was not granted".into() });
        };
        let pieces = self.pieces.get_or_insert_with(|| Assembly::new(offer.layout.chunks()));
        if let Err(why) = pieces.add(first, words, |chunk| offer.layout.valid_mask(chunk)) {
            self.broken(ProtocolError::Senseless { message: "Missing", why });
        }
    }

    fn handle_finish(&mut self, totals: Vec<ChannelTotals>, state: Vec<u8>, announced: Option<Extent>) {
        if totals.len() != usize::from(self.channels) {
            let why = format!("totals of {} channels, there are {}", totals.len(), self.channels);
            return self.broken(ProtocolError::Senseless { message: "Finish", why });
        }
        let missing = match self.missing(announced) {
            Ok(missing) => missing,
            Err(why) => return self.broken(ProtocolError::Senseless { message: "Finish", why }),
        };
        if let Err(why) = self.check_ahead(&totals, missing.as_ref()) {
            return self.broken(ProtocolError::Senseless { message: "Finish", why });
        }
        self.post_copy = missing.as_ref().map(|missing| PostCopy { pages: missing.count(), generation: 0 });
        self.state = State::Loading;
        self.events.push_back(DestinationEvent::Finish { totals, state, missing });
    }

    /// The set of missing pages, if Finish announces one. Fails with what is wrong with it.
    pub(super) fn missing(&mut self, announced: Option<Extent>) -> Result<Option<PageBitmap>, String> {
        let (pieces, offer) = (self.pieces.take(), self.offer.as_ref().expect("a session begins with an offer"));
        match (announced, pieces) {
            (None, None) => Ok(None),
            (None, Some(_)) => Err("pages are missing, and it does not switch to post-copy".into()),
            (Some(_), _) if !self.granted.contains(Features::POST_COPY) => Err("post-copy was not granted".into()),
            (Some(extent), pieces) => pieces.unwrap_or_else(|| Assembly::new(offer.layout.chunks())).finish(extent).map(Some),
        }
    }

    fn unexpected(&mut self, message: &Message) {
        self.broken(ProtocolError::Unexpected { message: name_of(message), state: self.state.name() });
    }

    /// The connection is of no more use.
    pub(super) fn broken(&mut self, error: ProtocolError) {
        match self.state {
            State::Ended(_) => {}
            State::Starting | State::Fetching if self.post_copy.is_some() => self.interrupted(error),
            // The guest is started even so, and the source comes to ask.
            State::Starting | State::Fetching => {
                if matches!(self.link, Link::Up) {
                    self.link = Link::Down { error };
                }
            }
            State::Running { .. } => self.over(Some(error)),
            _ => self.drop_guest(error),
        }
    }

    /// The guest will not run here, whatever comes.
    pub(super) fn drop_guest(&mut self, error: ProtocolError) {
        self.outbox.clear();
        self.outbox.push_back(Message::Failed { reason: bounded(error.to_string()) });
        self.state = State::Ended(AnswerStatus::NeverStarted);
        self.events.push_back(DestinationEvent::Ended(DestinationEnd::Dropped { error }));
    }

    /// The guest stays.
    pub(super) fn over(&mut self, unconfirmed: Option<ProtocolError>) {
        self.state = State::Ended(AnswerStatus::Running);
        self.events.push_back(DestinationEvent::Ended(DestinationEnd::Completed { unconfirmed }));
    }
}
