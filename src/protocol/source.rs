//! The source's side of a session.
//!
//! The one thing this machine must get right is [`Source::owner`]. Until Commit is handed out the guest is the
//! source's, whatever happens. From then on only the destination's own word decides: Running or an Answer that says so
//! gives the guest away, Failed or an Answer of NeverStarted gives it back, and anything else leaves it in doubt.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::pulse::{Pulse, after};
use super::{GuestOwner, ProtocolError, Timeouts, bounded, name_of};
use crate::page::Codecs;
use crate::units::ByteCount;
use crate::wire::{AnswerStatus, ChannelTotals, Features, Message, Offer, RefuseReason};

/// The session as the source sees it. Driven as the [module](super) says.
#[derive(Clone, Debug)]
pub struct Source {
    offer: Offer,
    timeouts: Timeouts,
    pulse: Pulse,
    state: State,
    outbox: VecDeque<Message>,
    events: VecDeque<SourceEvent>,
}

/// What the driver has to know or do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceEvent {
    /// The destination has reserved what the guest needs: open this many bulk connections, attach each, and call
    /// [`Source::attached`].
    Accepted {
        /// Bulk channels granted: from 1 to those wanted.
        channels: u16,
        /// Forms of pages the destination takes, of those offered.
        codecs: Codecs,
        /// What the destination is able to do, of what was offered.
        features: Features,
        /// Pages in which missing memory can be filled there.
        granule: u16,
    },
    /// This much has arrived at the destination so far.
    Progress {
        /// Frames applied.
        frames: u64,
        /// Their bytes.
        bytes: ByteCount,
    },
    /// Everything is in place at the destination: [`Source::commit`] is allowed.
    Ready,
    /// The guest runs at the destination: release it here.
    Running,
    /// In doubt: drop the control connection, open a new one, and call [`Source::reconnected`] or
    /// [`Source::reconnect_failed`].
    Reconnect,
    /// It is over. Comes once, last. Messages still there go out before the connection is closed.
    Ended(SourceEnd),
}

/// How a session ended for the source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceEnd {
    /// The guest is the destination's.
    Completed,
    /// The destination did not want the guest. It stays here.
    Refused {
        /// The kind of reason.
        reason: RefuseReason,
        /// In words.
        detail: String,
    },
    /// It went wrong, and the guest is the source's for certain: it may be resumed.
    Failed {
        /// Why.
        error: ProtocolError,
    },
    /// Nobody could be asked who has the guest. It must stay paused until somebody can: [`Source::ask_again`], or a
    /// person who has looked.
    InDoubt {
        /// What cut the handover short.
        error: ProtocolError,
    },
}

#[derive(Clone, Debug)]
enum State {
    /// Hello is out.
    Offering { until: Instant },
    /// Accepted; the driver opens the bulk connections.
    Attaching { until: Instant, channels: u16 },
    /// Rounds are sent.
    Copying { channels: u16 },
    /// Finish is out.
    Finishing,
    /// Ready came.
    Ready,
    /// Commit is queued but nobody has it: it can still be taken back.
    Committing,
    /// Commit is out.
    Committed,
    /// Commit is out and the connection is not to be relied on any more.
    Doubt { until: Instant, asking: Asking, cause: ProtocolError },
    /// Over.
    Ended { owner: GuestOwner, doubt: Option<ProtocolError> },
}

/// Where a source in doubt stands.
#[derive(Clone, Copy, Debug)]
enum Asking {
    /// The driver opens a connection.
    Connecting,
    /// Query is out on the new connection.
    Asked { until: Instant },
    /// That came to nothing; the next attempt is at this time.
    Waiting { until: Instant },
}

impl State {
    fn name(&self) -> &'static str {
        match self {
            Self::Offering { .. } => "offering the guest",
            Self::Attaching { .. } => "attaching channels",
            Self::Copying { .. } => "copying",
            Self::Finishing => "waiting for Ready",
            Self::Ready | Self::Committing => "about to commit",
            Self::Committed => "waiting for Running",
            Self::Doubt { .. } => "in doubt",
            Self::Ended { .. } => "done",
        }
    }
}

impl Source {
    /// A session that begins with `offer`: Hello is the first message out.
    #[must_use]
    pub fn new(now: Instant, offer: Offer, timeouts: Timeouts) -> Self {
        let outbox = VecDeque::from([Message::Hello(offer.clone())]);
        let state = State::Offering { until: after(now, timeouts.handshake) };
        Self { offer, timeouts, pulse: Pulse::new(now, &timeouts), state, outbox, events: VecDeque::new() }
    }

    /// Who may run the guest, as far as the source can know.
    #[must_use]
    pub fn owner(&self) -> GuestOwner {
        match &self.state {
            State::Committed | State::Doubt { .. } => GuestOwner::InDoubt,
            State::Ended { owner, .. } => *owner,
            _ => GuestOwner::Source,
        }
    }

    /// The next message to send. Handed out counts as sent: the driver writes it at once, and if that fails says
    /// [`Source::handle_closed`].
    pub fn poll_message(&mut self) -> Option<Message> {
        let message = self.outbox.pop_front()?;
        if matches!(message, Message::Commit { .. }) {
            self.state = State::Committed;
        }
        Some(message)
    }

    /// The next thing the driver has to know.
    pub fn poll_event(&mut self) -> Option<SourceEvent> {
        self.events.pop_front()
    }

    /// When [`Source::handle_timeout`] wants to be called, if nothing happens before. Never after the end.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let alive = self.pulse.silent_at().min(self.pulse.next_beat());
        match &self.state {
            State::Offering { until } => Some((*until).min(self.pulse.next_beat())),
            State::Attaching { until, .. } => Some((*until).min(alive)),
            State::Copying { .. } | State::Finishing | State::Ready | State::Committing | State::Committed => Some(alive),
            State::Doubt { asking: Asking::Asked { until }, .. } => Some(*until),
            State::Doubt { asking: Asking::Waiting { until: next }, until, .. } => Some((*next).min(*until)),
            State::Doubt { asking: Asking::Connecting, until, .. } => Some(*until),
            State::Ended { .. } => None,
        }
    }
}

/// What the peer and the clock do.
impl Source {
    /// A message came on the control connection (in doubt: on the newest one).
    pub fn handle_message(&mut self, now: Instant, message: Message) {
        self.pulse.heard(now);
        match (&self.state, message) {
            (State::Ended { .. }, _) => {}
            (State::Doubt { .. }, message) => self.handle_answer(now, &message),
            // A destination that says Failed will not run the guest any more, even if Commit is on its way or there.
            (_, Message::Failed { reason }) => self.take_back(ProtocolError::PeerGaveUp { reason }),
            (State::Offering { .. }, Message::Accept { channels, codecs, features, granule }) => {
                self.handle_accept(now, channels, codecs, features, granule);
            }
            (State::Offering { .. }, Message::Refuse { reason, detail }) => self.end(GuestOwner::Source, SourceEnd::Refused { reason, detail }),
            (State::Offering { .. }, message) => self.unexpected(now, &message),
            (_, Message::Progress { frames, bytes }) => self.events.push_back(SourceEvent::Progress { frames, bytes }),
            (State::Finishing, Message::Ready) => {
                self.state = State::Ready;
                self.events.push_back(SourceEvent::Ready);
            }
            (State::Committed, Message::Running) => self.release(),
            (_, message) => self.unexpected(now, &message),
        }
    }

    /// Bytes came on the control connection, though not yet a whole message.
    pub fn heard(&mut self, now: Instant) {
        self.pulse.heard(now);
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
            State::Doubt { until, asking, .. } => return self.handle_doubt_timeout(now, until, asking),
            State::Offering { until } | State::Attaching { until, .. } if now >= until => {
                return self.broken(now, ProtocolError::Handshake { limit: self.timeouts.handshake, state });
            }
            State::Offering { .. } => {}
            _ if now >= self.pulse.silent_at() => {
                return self.broken(now, ProtocolError::Silent { waited: self.timeouts.silence, state });
            }
            _ => {}
        }
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
        self.state = State::Attaching { until: after(now, self.timeouts.handshake), channels };
        self.events.push_back(SourceEvent::Accepted { channels, codecs, features, granule });
    }

    fn unexpected(&mut self, now: Instant, message: &Message) {
        self.broken(now, ProtocolError::Unexpected { message: name_of(message), state: self.state.name() });
    }

    /// The connection is of no more use.
    fn broken(&mut self, now: Instant, error: ProtocolError) {
        match self.state {
            State::Ended { .. } => {}
            State::Doubt { asking: Asking::Asked { .. }, .. } => self.ask_later(now),
            State::Doubt { .. } => {}
            State::Committed => self.doubt(now, error),
            _ => self.call_off(error),
        }
    }

    /// Ends it before Commit went out.
    fn call_off(&mut self, error: ProtocolError) {
        self.outbox.retain(|message| !matches!(message, Message::Commit { .. }));
        self.outbox.push_back(Message::Abort { reason: bounded(error.to_string()) });
        self.end(GuestOwner::Source, SourceEnd::Failed { error });
    }

    /// The destination says that the guest will not run there.
    fn take_back(&mut self, error: ProtocolError) {
        self.outbox.clear();
        self.end(GuestOwner::Source, SourceEnd::Failed { error });
    }

    /// The destination says that the guest runs there.
    fn release(&mut self) {
        self.outbox.clear();
        self.outbox.push_back(Message::Released);
        self.events.push_back(SourceEvent::Running);
        self.end(GuestOwner::Destination, SourceEnd::Completed);
    }

    fn end(&mut self, owner: GuestOwner, end: SourceEnd) {
        let doubt = if let SourceEnd::InDoubt { error } = &end { Some(error.clone()) } else { None };
        self.state = State::Ended { owner, doubt };
        self.events.push_back(SourceEvent::Ended(end));
    }
}

/// What the driver does.
///
/// Each call belongs to one state, and in another one is a bug of the driver; but a session may end under the driver's
/// hands, and once it has ended the calls do nothing.
impl Source {
    /// All bulk channels are attached: the rounds begin.
    ///
    /// # Panics
    /// Unless [`SourceEvent::Accepted`] came just before.
    pub fn attached(&mut self, _now: Instant) {
        match self.state {
            State::Ended { .. } => {}
            State::Attaching { channels, .. } => self.state = State::Copying { channels },
            _ => panic!("channels attached while {}", self.state.name()),
        }
    }

    /// The guest is paused and its last frame is sent: what each channel carried, and the state beside memory.
    ///
    /// # Panics
    /// Unless the channels are attached, and when `totals` has not one entry for each.
    pub fn finish(&mut self, _now: Instant, totals: Vec<ChannelTotals>, state: Vec<u8>) {
        match self.state {
            State::Ended { .. } => {}
            State::Copying { channels } => {
                assert_eq!(totals.len(), usize::from(channels), "one entry of totals for each channel");
                self.outbox.push_back(Message::Finish { totals, state, missing: None });
                self.state = State::Finishing;
            }
            _ => panic!("finished while {}", self.state.name()),
        }
    }

    /// Gives the guest away. It is in doubt from when [`Source::poll_message`] hands Commit out.
    ///
    /// # Panics
    /// Unless [`SourceEvent::Ready`] came just before.
    pub fn commit(&mut self, _now: Instant, paused_for: Duration) {
        match self.state {
            State::Ended { .. } => {}
            State::Ready => {
                self.outbox.push_back(Message::Commit { paused_for });
                self.state = State::Committing;
            }
            _ => panic!("committed while {}", self.state.name()),
        }
    }

    /// Calls the migration off. Whether that was still possible: not once Commit is out, nor after the end.
    pub fn abort(&mut self, _now: Instant, reason: String) -> bool {
        match self.state {
            State::Ended { .. } | State::Committed | State::Doubt { .. } => false,
            _ => {
                self.call_off(ProtocolError::CalledOff { reason });
                true
            }
        }
    }
}

/// In doubt.
impl Source {
    /// The connection that [`SourceEvent::Reconnect`] asked for is there: Query goes out on it.
    pub fn reconnected(&mut self, now: Instant) {
        if let State::Doubt { asking: asking @ Asking::Connecting, .. } = &mut self.state {
            // One lost Answer must not use up the time there is to ask again.
            let patience = self.timeouts.handshake.min(self.timeouts.resolve / 3);
            *asking = Asking::Asked { until: after(now, patience) };
            self.outbox.push_back(Message::Query { session: self.offer.session, token: self.offer.token });
        }
    }

    /// The connection that [`SourceEvent::Reconnect`] asked for could not be made. It is asked for again later.
    pub fn reconnect_failed(&mut self, now: Instant) {
        if matches!(self.state, State::Doubt { asking: Asking::Connecting, .. }) {
            self.ask_later(now);
        }
    }

    /// Begins to ask once more after [`SourceEnd::InDoubt`]; another end will be reported. False if there is no doubt.
    pub fn ask_again(&mut self, now: Instant) -> bool {
        let State::Ended { doubt: Some(error), .. } = &self.state else { return false };
        let error = error.clone();
        self.doubt(now, error);
        true
    }

    fn doubt(&mut self, now: Instant, cause: ProtocolError) {
        self.outbox.clear();
        self.events.push_back(SourceEvent::Reconnect);
        self.state = State::Doubt { until: after(now, self.timeouts.resolve), asking: Asking::Connecting, cause };
    }

    fn ask_later(&mut self, now: Instant) {
        if let State::Doubt { asking, .. } = &mut self.state {
            self.outbox.clear();
            *asking = Asking::Waiting { until: after(now, self.timeouts.heartbeat) };
        }
    }

    fn handle_answer(&mut self, now: Instant, message: &Message) {
        let State::Doubt { asking: Asking::Asked { .. }, cause, .. } = &self.state else { return };
        match message {
            Message::Answer(AnswerStatus::Running) => self.release(),
            Message::Answer(AnswerStatus::NeverStarted) => {
                let cause = Box::new(cause.clone());
                self.take_back(ProtocolError::NeverStarted { cause });
            }
            // Unknown, or not an answer at all: nothing follows from it.
            _ => self.ask_later(now),
        }
    }

    fn handle_doubt_timeout(&mut self, now: Instant, until: Instant, asking: Asking) {
        match asking {
            Asking::Asked { until } if now >= until => self.ask_later(now),
            Asking::Asked { .. } => {}
            Asking::Connecting | Asking::Waiting { .. } if now >= until => {
                if let State::Doubt { cause, .. } = &self.state {
                    let error = cause.clone();
                    self.end(GuestOwner::InDoubt, SourceEnd::InDoubt { error });
                }
            }
            Asking::Waiting { until } if now >= until => {
                if let State::Doubt { asking, .. } = &mut self.state {
                    *asking = Asking::Connecting;
                    self.events.push_back(SourceEvent::Reconnect);
                }
            }
            Asking::Connecting | Asking::Waiting { .. } => {}
        }
    }
}
