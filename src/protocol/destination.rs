//! The destination's side of a session.
//!
//! The one thing this machine must get right is that the guest runs here only if the source can no longer believe
//! otherwise. The moment of decision is the handling of Commit: before it, anything that ends the session (a Query too)
//! makes sure that a later Commit is refused; after it, only the guest's own failure to start can undo it.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::pulse::{Pulse, after};
use super::{ProtocolError, Timeouts, Tombstone, bounded, name_of, same_token};
use crate::bitmap::PageBitmap;
use crate::page::Codecs;
use crate::units::ByteCount;
use crate::wire::{AnswerStatus, ChannelTotals, Features, Lane, MAX_CHANNELS, Message, Offer, RefuseReason, SessionId, Token};

/// One session as the destination sees it. Driven as the [module](super) says.
#[derive(Clone, Debug)]
pub struct Destination {
    timeouts: Timeouts,
    pulse: Pulse,
    state: State,
    /// From Hello on.
    session: Option<(SessionId, Token)>,
    channels: u16,
    /// The source may ask later how it ended: Ready was said, and the source is not known to know.
    may_be_asked: bool,
    closed: bool,
    frames: u64,
    bytes: ByteCount,
    outbox: VecDeque<Message>,
    events: VecDeque<DestinationEvent>,
}

/// What the driver has to know or do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DestinationEvent {
    /// A guest is on offer: call [`Destination::accept`] or [`Destination::refuse`].
    Offered(Offer),
    /// The source has sent everything: check the totals, load the state, and call [`Destination::ready`] or
    /// [`Destination::fail`].
    Finish {
        /// What must have arrived, one entry for each channel.
        totals: Vec<ChannelTotals>,
        /// The guest's state.
        state: Vec<u8>,
        /// In post-copy: pages that this end lacks or has stale, and that come later.
        missing: Option<PageBitmap>,
    },
    /// The guest is this end's now, whatever happens to the connection: resume it, and call [`Destination::running`], or
    /// [`Destination::fail`] if it cannot be resumed.
    Run {
        /// How long the guest had been paused when the source sent this.
        paused_for: Duration,
    },
    /// It is over. Comes once, last. Messages still there go out before the connection is closed.
    Ended(DestinationEnd),
}

/// How a session ended for the destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DestinationEnd {
    /// The guest runs here.
    Completed {
        /// Why the source was not heard to know that. It may come and ask: see [`Destination::tombstone`].
        unconfirmed: Option<ProtocolError>,
    },
    /// It was not wanted.
    Refused,
    /// The guest never ran here and is to be dropped.
    Dropped {
        /// Why.
        error: ProtocolError,
    },
}

/// Why a bulk connection is not taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AttachError {
    /// Not this session's token.
    #[error("the token is not the session's")]
    Token,
    /// Channels are numbered from 0 to what was granted.
    #[error("channel {channel} of {channels}")]
    Channel {
        /// The channel named.
        channel: u16,
        /// Channels granted.
        channels: u16,
    },
    /// One connection each.
    #[error("channel {channel} is attached already")]
    Twice {
        /// The channel named.
        channel: u16,
    },
    /// There is no urgent lane in a session without post-copy.
    #[error("post-copy was not granted")]
    NotGranted,
    /// Of a time before the last recovery, or of one that did not happen.
    #[error("it is of generation {found}, this is generation {current}")]
    Generation {
        /// The generation named.
        found: u32,
        /// The session's.
        current: u32,
    },
    /// Not the time for it.
    #[error("the session is {state}")]
    State {
        /// What it is doing.
        state: &'static str,
    },
}

impl AttachError {
    /// What to answer on that connection, before closing it.
    #[must_use]
    pub fn refusal(self) -> Message {
        let reason = if self == Self::Token { RefuseReason::Authorization } else { RefuseReason::Other };
        Message::Refuse { reason, detail: self.to_string() }
    }
}

#[derive(Clone, Debug)]
enum State {
    /// For Hello.
    Waiting { until: Instant },
    /// The driver decides whether it wants the guest.
    Offered { wanted: u16 },
    /// Accept is out; bulk connections come in. One bit for each that has.
    Attaching { until: Instant, attached: u64 },
    /// Frames come in.
    Receiving,
    /// Finish came; the driver checks and loads.
    Loading,
    /// Ready is out.
    Ready,
    /// Commit came; the driver resumes the guest. With the reason why the connection is of no use, if it is not.
    Starting { lost: Option<ProtocolError> },
    /// The guest runs; Released is to come.
    Running,
    /// Over. What to answer when asked.
    Ended(AnswerStatus),
}

impl State {
    fn name(&self) -> &'static str {
        match self {
            Self::Waiting { .. } => "waiting for Hello",
            Self::Offered { .. } => "considering the offer",
            Self::Attaching { .. } => "attaching channels",
            Self::Receiving => "receiving",
            Self::Loading => "loading",
            Self::Ready => "waiting for Commit",
            Self::Starting { .. } => "starting the guest",
            Self::Running => "waiting for Released",
            Self::Ended(_) => "done",
        }
    }
}

impl Destination {
    /// A session that waits for Hello.
    #[must_use]
    pub fn new(now: Instant, timeouts: Timeouts) -> Self {
        Self {
            timeouts,
            pulse: Pulse::new(now, &timeouts),
            state: State::Waiting { until: after(now, timeouts.handshake) },
            session: None,
            channels: 0,
            may_be_asked: false,
            closed: false,
            frames: 0,
            bytes: ByteCount(0),
            outbox: VecDeque::new(),
            events: VecDeque::new(),
        }
    }

    /// Whether the guest may run here: from Commit on, unless it could not be started.
    #[must_use]
    pub fn may_run(&self) -> bool {
        matches!(self.state, State::Starting { .. } | State::Running | State::Ended(AnswerStatus::Running))
    }

    /// What to remember of a session that is over; `None` if nobody will ask, and before the end.
    #[must_use]
    pub fn tombstone(&self) -> Option<Tombstone> {
        let State::Ended(status) = self.state else { return None };
        let (session, token) = self.session?;
        self.may_be_asked.then_some(Tombstone { session, token, status })
    }

    /// The next message to send.
    pub fn poll_message(&mut self) -> Option<Message> {
        if self.closed { None } else { self.outbox.pop_front() }
    }

    /// The next thing the driver has to know.
    pub fn poll_event(&mut self) -> Option<DestinationEvent> {
        self.events.pop_front()
    }

    /// When [`Destination::handle_timeout`] wants to be called, if nothing happens before. Never after the end.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let alive = self.pulse.silent_at().min(self.pulse.next_beat());
        match &self.state {
            State::Waiting { until } => Some(*until),
            State::Attaching { until, .. } => Some((*until).min(alive)),
            State::Receiving | State::Loading | State::Ready | State::Starting { lost: None } => Some(alive),
            State::Offered { .. } | State::Running => Some(self.pulse.silent_at()),
            State::Starting { lost: Some(_) } | State::Ended(_) => None,
        }
    }
}

/// What the peer and the clock do.
impl Destination {
    /// A message came on the session's control connection.
    pub fn handle_message(&mut self, now: Instant, message: Message) {
        self.pulse.heard(now);
        match (&self.state, message) {
            (State::Ended(_), _) => {}
            (State::Waiting { .. }, Message::Hello(offer)) => self.handle_hello(offer),
            (State::Waiting { .. }, message) => self.unexpected(&message),
            (_, Message::Ping) => {}
            (State::Receiving, Message::Finish { totals, state, missing: None }) => self.handle_finish(totals, state),
            (State::Ready, Message::Commit { paused_for }) => {
                self.state = State::Starting { lost: None };
                self.events.push_back(DestinationEvent::Run { paused_for });
            }
            (State::Running, Message::Released) => {
                self.may_be_asked = false;
                self.complete(None);
            }
            (State::Starting { .. } | State::Running, message) => self.unexpected(&message),
            (_, Message::Abort { reason }) => {
                // The source has the guest and knows it.
                self.may_be_asked = false;
                self.drop_guest(ProtocolError::PeerGaveUp { reason });
                self.outbox.clear();
            }
            (_, message) => self.unexpected(&message),
        }
    }

    /// Bytes came on the control connection, though not yet a whole message.
    pub fn heard(&mut self, now: Instant) {
        self.pulse.heard(now);
    }

    /// The control connection is lost, or nothing sensible comes from it. No message comes out any more.
    pub fn handle_closed(&mut self, _now: Instant) {
        self.closed = true;
        self.broken(ProtocolError::Closed { state: self.state.name() });
    }

    /// The time of [`Destination::poll_timeout`] has come. Messages that are there to be read are to be handled first.
    pub fn handle_timeout(&mut self, now: Instant) {
        let state = self.state.name();
        match self.state {
            State::Ended(_) | State::Starting { lost: Some(_) } => return,
            State::Waiting { until } | State::Attaching { until, .. } if now >= until => {
                return self.broken(ProtocolError::Handshake { limit: self.timeouts.handshake, state });
            }
            State::Waiting { .. } => return,
            _ if now >= self.pulse.silent_at() => {
                return self.broken(ProtocolError::Silent { waited: self.timeouts.silence, state });
            }
            // Before Accept the source waits for nothing else, and after Running for nothing at all.
            State::Offered { .. } | State::Running => return,
            _ => {}
        }
        if self.pulse.beat(now) {
            self.outbox.push_back(Message::Progress { frames: self.frames, bytes: self.bytes });
        }
    }

    /// A source in doubt asks on another connection; this is the Answer. Before Commit it decides that the guest never
    /// runs here. While the guest is being started the answer is Unknown, as it may still fail; the source asks again.
    pub fn query(&mut self, _now: Instant, token: Token) -> AnswerStatus {
        match self.session {
            Some((_, own)) if same_token(own, token) => {}
            _ => return AnswerStatus::Unknown,
        }
        match self.state {
            State::Starting { .. } => AnswerStatus::Unknown,
            State::Running => AnswerStatus::Running,
            State::Ended(status) => status,
            _ => {
                self.drop_guest(ProtocolError::Asked);
                AnswerStatus::NeverStarted
            }
        }
    }

    /// Released came on the connection on which the source asked: it knows, and will not ask again.
    pub fn released(&mut self, _now: Instant, token: Token) {
        if !self.session.is_some_and(|(_, own)| same_token(own, token)) {
            return;
        }
        match self.state {
            State::Running => {
                self.may_be_asked = false;
                self.complete(None);
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
        self.session = Some((offer.session, offer.token));
        self.state = State::Offered { wanted: offer.channels };
        self.events.push_back(DestinationEvent::Offered(offer));
    }

    fn handle_finish(&mut self, totals: Vec<ChannelTotals>, state: Vec<u8>) {
        if totals.len() != usize::from(self.channels) {
            let why = format!("totals of {} channels, there are {}", totals.len(), self.channels);
            return self.broken(ProtocolError::Senseless { message: "Finish", why });
        }
        self.state = State::Loading;
        self.events.push_back(DestinationEvent::Finish { totals, state, missing: None });
    }

    fn unexpected(&mut self, message: &Message) {
        self.broken(ProtocolError::Unexpected { message: name_of(message), state: self.state.name() });
    }

    /// The connection is of no more use.
    fn broken(&mut self, error: ProtocolError) {
        match &mut self.state {
            State::Ended(_) => {}
            State::Starting { lost } => {
                lost.get_or_insert(error);
            }
            State::Running => self.complete(Some(error)),
            _ => self.drop_guest(error),
        }
    }

    /// The guest will not run here, whatever comes.
    fn drop_guest(&mut self, error: ProtocolError) {
        self.outbox.clear();
        self.outbox.push_back(Message::Failed { reason: bounded(error.to_string()) });
        self.state = State::Ended(AnswerStatus::NeverStarted);
        self.events.push_back(DestinationEvent::Ended(DestinationEnd::Dropped { error }));
    }

    fn complete(&mut self, unconfirmed: Option<ProtocolError>) {
        self.state = State::Ended(AnswerStatus::Running);
        self.events.push_back(DestinationEvent::Ended(DestinationEnd::Completed { unconfirmed }));
    }
}

/// What the driver does.
///
/// Each call belongs to one state, and in another one is a bug of the driver; but a session may end under the driver's
/// hands, and once it has ended the calls do nothing.
impl Destination {
    /// Takes the offer; `channels` bulk connections may come, with pages in the forms of `codecs`. This end is able to do
    /// `features`, and would fill missing memory by `granule` pages.
    ///
    /// # Panics
    /// Unless [`DestinationEvent::Offered`] came just before, and when `channels` is not from 1 to those wanted.
    pub fn accept(&mut self, now: Instant, channels: u16, codecs: Codecs, features: Features, granule: u16) {
        match self.state {
            State::Ended(_) => {}
            State::Offered { wanted } => {
                assert!((1..=wanted).contains(&channels), "{channels} channels granted of {wanted}");
                self.channels = channels;
                self.state = State::Attaching { until: after(now, self.timeouts.handshake), attached: 0 };
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
            State::Waiting { .. } | State::Offered { .. } => {
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
    pub fn attach(&mut self, _now: Instant, token: Token, lane: Lane, generation: u32) -> Result<(), AttachError> {
        match self.session {
            Some((_, own)) if same_token(own, token) => {}
            _ => return Err(AttachError::Token),
        }
        let channels = self.channels;
        let State::Attaching { attached, .. } = &mut self.state else { return Err(AttachError::State { state: self.state.name() }) };
        let Lane::Bulk(channel) = lane else { return Err(AttachError::NotGranted) };
        if generation != 0 {
            return Err(AttachError::Generation { found: generation, current: 0 });
        }
        if channel >= channels {
            return Err(AttachError::Channel { channel, channels });
        }
        let bit = 1 << channel;
        if *attached & bit != 0 {
            return Err(AttachError::Twice { channel });
        }
        *attached |= bit;
        if attached.count_ones() == u32::from(channels) {
            self.state = State::Receiving;
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

    /// The guest runs.
    ///
    /// # Panics
    /// Unless [`DestinationEvent::Run`] came just before.
    pub fn running(&mut self, _now: Instant) {
        let State::Starting { lost } = &mut self.state else { panic!("running while {}", self.state.name()) };
        let lost = lost.take();
        self.outbox.push_back(Message::Running);
        self.state = State::Running;
        if lost.is_some() {
            self.complete(lost);
        }
    }

    /// It cannot go on here, for `reason`. The guest never runs here after this; so after [`DestinationEvent::Run`] it is
    /// to be called only when the guest could not be resumed and has not run. Whether it was still possible: not once the
    /// guest runs, nor after the end.
    pub fn fail(&mut self, _now: Instant, reason: String) -> bool {
        match self.state {
            State::Ended(_) | State::Running => false,
            _ => {
                self.drop_guest(ProtocolError::CalledOff { reason });
                true
            }
        }
    }
}
