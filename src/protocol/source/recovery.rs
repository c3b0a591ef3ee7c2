//! Post-copy at the source: from Commit on it serves pages, and when the connections are lost it looks for the
//! destination until it can go on.
//!
//! Each recovery has a generation, which the destination counts up; the lanes carry it, so that nothing of an older
//! generation is taken for news. A source that has not heard Running when the connections are lost is in doubt, and
//! learns by the same Resume what became of the guest. It serves pages even so: the guest may need them to start.

use std::time::{Duration, Instant};

use super::{Source, SourceEnd, SourceEvent, State};
use crate::bitmap::PageBitmap;
use crate::protocol::pieces::Assembly;
use crate::protocol::pulse::{Pulse, after};
use crate::protocol::{GuestOwner, ProtocolError, Timeouts};
use crate::units::PageCount;
use crate::wire::{AnswerStatus, Extent, Message};

/// What a source knows of its post-copy.
#[derive(Clone, Debug)]
pub(super) struct PostCopy {
    /// The pages that the destination lacked at the switch.
    pub(super) missing: PageBitmap,
    /// Of the lanes, 0 at first.
    generation: u32,
    /// Running was heard, or what implies it: the guest is the destination's.
    pub(super) is_running: bool,
    /// Running has yet to come on this connection. After each recovery it comes again.
    expects_running: bool,
}

impl PostCopy {
    pub(super) fn new(missing: PageBitmap) -> Self {
        Self { missing, generation: 0, is_running: false, expects_running: true }
    }

    pub(super) fn generation(&self) -> u32 {
        self.generation
    }
}

/// The way back to the destination.
#[derive(Clone, Debug)]
pub(super) struct Recovery {
    /// What interrupted the session.
    cause: ProtocolError,
    /// What went wrong last.
    last: ProtocolError,
    until: Instant,
    attempt: Attempt,
    /// How long to wait after the next attempt that comes to nothing.
    pause: Duration,
}

#[derive(Clone, Debug)]
enum Attempt {
    /// The driver opens a control connection.
    Connecting,
    /// Resume is out; pieces of what has arrived come in.
    Resuming { until: Instant, arrived: Assembly },
    /// Resumed came; the driver attaches lanes.
    Attaching { until: Instant },
    /// That came to nothing; the next attempt is at this time.
    Waiting { until: Instant },
}

impl Recovery {
    fn new(now: Instant, cause: ProtocolError, timeouts: &Timeouts) -> Self {
        let last = cause.clone();
        Self { cause, last, until: after(now, timeouts.recover), attempt: Attempt::Connecting, pause: timeouts.retry() / 10 }
    }

    pub(super) fn name(&self) -> &'static str {
        match self.attempt {
            Attempt::Connecting | Attempt::Waiting { .. } => "looking for the destination",
            Attempt::Resuming { .. } => "waiting for Resumed",
            Attempt::Attaching { .. } => "attaching lanes anew",
        }
    }

    /// What is due first; `alive` is what the control connection needs, if there is one in use.
    pub(super) fn next_timeout(&self, alive: Instant) -> Instant {
        match self.attempt {
            Attempt::Connecting => self.until,
            Attempt::Resuming { until, .. } => until,
            Attempt::Attaching { until } => until.min(alive),
            Attempt::Waiting { until } => until.min(self.until),
        }
    }

    /// Lanes are being attached, and may be `until` then.
    pub(super) fn attaching(&mut self, until: Instant) {
        if let Attempt::Attaching { until: end } = &mut self.attempt {
            *end = until;
        }
    }

    /// Whether there is a connection on which something is to be expected.
    fn is_connected(&self) -> bool {
        matches!(self.attempt, Attempt::Resuming { .. } | Attempt::Attaching { .. })
    }
}

/// What the driver does.
impl Source {
    /// A lane of `generation` broke, or could not be attached. After the switch to post-copy that calls it off, from Commit
    /// on it interrupts the session; for another generation or at another time it means nothing.
    pub fn interrupt(&mut self, now: Instant, generation: u32) {
        if self.post_copy.as_ref().is_some_and(|post_copy| post_copy.generation == generation) {
            match &self.state {
                State::Recovering(Recovery { attempt: Attempt::Attaching { .. }, .. })
                | State::Finishing
                | State::Ready
                | State::Committing
                | State::Committed
                | State::Serving => {
                    self.broken(now, ProtocolError::Lane { state: self.state.name() });
                }
                _ => {}
            }
        }
    }

    /// All lanes of `generation` are attached. Whether pages may go out on them: not if that was interrupted meanwhile.
    pub fn reattached(&mut self, _now: Instant, generation: u32) -> bool {
        if let State::Recovering(Recovery { attempt: Attempt::Attaching { .. }, .. }) = &self.state
            && let Some(post_copy) = &self.post_copy
            && post_copy.generation == generation
        {
            self.state = if post_copy.is_running { State::Serving } else { State::Committed };
            return true;
        }
        false
    }

    /// Begins to look for the destination once more after [`SourceEnd::Stranded`]; another end will be reported. False
    /// if that was not the end.
    pub fn recover_again(&mut self, now: Instant) -> bool {
        let State::Ended { owner: GuestOwner::Destination, unsettled: Some(error) } = &self.state else { return false };
        let error = error.clone();
        self.recover(now, error);
        true
    }

    /// Nobody will serve what the destination lacks any more: ends as it does when the time to find the destination is over.
    /// False where the guest was not given away, or nobody looks for the destination.
    pub fn let_go(&mut self, reason: String) -> bool {
        let is_given = self.post_copy.is_some() && matches!(self.state, State::Committed | State::Serving | State::Recovering(_));
        if is_given {
            let error = ProtocolError::CalledOff { reason };
            self.outbox.clear();
            self.leave(error.clone(), error);
        }
        is_given
    }

    pub(super) fn ask_to_resume(&mut self, now: Instant) {
        let chunks = self.offer.layout.chunks();
        let patience = self.patience();
        if let State::Recovering(Recovery { attempt: attempt @ Attempt::Connecting, .. }) = &mut self.state {
            *attempt = Attempt::Resuming { until: after(now, patience), arrived: Assembly::new(chunks) };
            self.outbox.push_back(Message::Resume { session: self.offer.session, token: self.offer.token });
        }
    }

    pub(super) fn connect_later(&mut self, now: Instant) {
        if let State::Recovering(Recovery { attempt: Attempt::Connecting, .. }) = &self.state {
            self.try_later(now);
        }
    }
}

/// What the peer and the clock do.
impl Source {
    /// A message while pages are served, also on lanes that are just being attached.
    pub(super) fn handle_serving(&mut self, now: Instant, message: Message) {
        let post_copy = self.post_copy.as_ref().expect("pages are served in post-copy only");
        match message {
            Message::Progress { frames, bytes } => self.events.push_back(SourceEvent::Progress { frames, bytes }),
            Message::Running if post_copy.expects_running => {
                self.runs();
                if matches!(self.state, State::Committed) {
                    self.state = State::Serving;
                }
            }
            Message::Failed { reason } if !post_copy.is_running => self.take_back(ProtocolError::PeerGaveUp { reason }),
            Message::Complete { pages } if post_copy.is_running => self.handle_complete(now, pages),
            message => self.unexpected(now, &message),
        }
    }

    /// A message on the newest connection of a recovery.
    pub(super) fn handle_recovery(&mut self, now: Instant, message: Message) {
        self.heard_of_arrived(now);
        let State::Recovering(recovery) = &mut self.state else { return };
        let post_copy = self.post_copy.as_ref().expect("recovery is for post-copy only");
        let is_running = post_copy.is_running;
        match (&mut recovery.attempt, message) {
            (Attempt::Attaching { .. }, message) => self.handle_serving(now, message),
            (Attempt::Resuming { arrived, .. }, Message::Arrived { first, words }) => {
                if let Err(why) = arrived.add(first, &words, |chunk| post_copy.missing.word(chunk)) {
                    self.broken(now, ProtocolError::Senseless { message: "Arrived", why });
                }
            }
            (Attempt::Resuming { .. }, Message::Resumed { generation, arrived }) => self.handle_resumed(now, generation, arrived),
            (Attempt::Resuming { .. }, Message::Complete { pages }) => self.handle_complete(now, pages),
            (Attempt::Resuming { .. }, Message::Answer(AnswerStatus::NeverStarted)) if !is_running => {
                let cause = Box::new(recovery.cause.clone());
                self.take_back(ProtocolError::NeverStarted { cause });
            }
            (Attempt::Resuming { .. }, Message::Failed { reason }) if !is_running => self.take_back(ProtocolError::PeerGaveUp { reason }),
            (Attempt::Resuming { .. }, Message::Answer(AnswerStatus::Running)) => {
                self.runs();
                self.broken(now, ProtocolError::NotResumed { why: "the guest runs".into() });
            }
            (Attempt::Resuming { .. }, Message::Answer(AnswerStatus::Unknown)) => {
                self.broken(now, ProtocolError::NotResumed { why: "it is not known".into() });
            }
            (Attempt::Resuming { .. }, Message::Refuse { reason, detail }) => {
                self.broken(now, ProtocolError::NotResumed { why: format!("{reason}: {detail}") });
            }
            (Attempt::Resuming { .. }, message) => self.unexpected(now, &message),
            (Attempt::Connecting | Attempt::Waiting { .. }, _) => {}
        }
    }

    /// Some of what the destination has to say has come. Each piece brings it nearer to the end, so it may take its time.
    pub(super) fn heard_of_arrived(&mut self, now: Instant) {
        let patience = self.patience();
        if let State::Recovering(Recovery { attempt: Attempt::Resuming { until, .. }, .. }) = &mut self.state {
            *until = after(now, patience);
        }
    }

    pub(super) fn handle_recovery_timeout(&mut self, now: Instant) {
        let (state, silence) = (self.state.name(), self.pulse.silent_at());
        let State::Recovering(recovery) = &mut self.state else { return };
        match recovery.attempt {
            Attempt::Resuming { until, .. } if now >= until => {
                self.broken(now, ProtocolError::Handshake { limit: self.patience(), state });
            }
            Attempt::Attaching { until } if now >= until => {
                self.broken(now, ProtocolError::Handshake { limit: self.timeouts.handshake, state });
            }
            Attempt::Attaching { .. } if now >= silence => {
                self.broken(now, ProtocolError::Silent { waited: self.timeouts.silence, state });
            }
            Attempt::Attaching { .. } => self.beat(now),
            Attempt::Connecting | Attempt::Waiting { .. } if now >= recovery.until => self.give_up(),
            Attempt::Waiting { until } if now >= until => {
                recovery.attempt = Attempt::Connecting;
                self.events.push_back(SourceEvent::Reconnect);
            }
            Attempt::Resuming { .. } | Attempt::Connecting | Attempt::Waiting { .. } => {}
        }
    }

    /// The connections are of no more use: to a source that serves, or for an attempt to recover.
    pub(super) fn interrupted(&mut self, now: Instant, error: ProtocolError) {
        let State::Recovering(recovery) = &mut self.state else {
            self.events.push_back(SourceEvent::Interrupted { error: error.clone() });
            return self.recover(now, error);
        };
        if recovery.is_connected() {
            recovery.last = error.clone();
            if matches!(recovery.attempt, Attempt::Attaching { .. }) {
                self.events.push_back(SourceEvent::Interrupted { error });
            }
            self.try_later(now);
        }
    }

    pub(super) fn recover(&mut self, now: Instant, cause: ProtocolError) {
        self.outbox.clear();
        self.state = State::Recovering(Recovery::new(now, cause, &self.timeouts));
        self.events.push_back(SourceEvent::Reconnect);
    }

    fn handle_resumed(&mut self, now: Instant, generation: u32, announced: Extent) {
        let State::Recovering(recovery) = &mut self.state else { return };
        let Attempt::Resuming { arrived, .. } = &recovery.attempt else { return };
        let post_copy = self.post_copy.as_mut().expect("recovery is for post-copy only");
        if generation <= post_copy.generation {
            let why = format!("generation {generation} after {}", post_copy.generation);
            return self.broken(now, ProtocolError::Senseless { message: "Resumed", why });
        }
        match arrived.clone().finish(announced) {
            Ok(arrived) => {
                post_copy.generation = generation;
                post_copy.expects_running = true;
                recovery.attempt = Attempt::Attaching { until: after(now, self.timeouts.handshake) };
                self.pulse = Pulse::new(now, &self.timeouts);
                self.events.push_back(SourceEvent::Recovered { generation, arrived });
            }
            Err(why) => self.broken(now, ProtocolError::Senseless { message: "Resumed", why }),
        }
    }

    fn handle_complete(&mut self, now: Instant, pages: PageCount) {
        let missing = self.post_copy.as_ref().expect("only post-copy is completed").missing.count();
        if pages != missing {
            let why = format!("{} pages have arrived, {} were missing", pages.0, missing.0);
            return self.broken(now, ProtocolError::Senseless { message: "Complete", why });
        }
        self.runs();
        self.release();
    }

    /// The destination's word that the guest runs there.
    fn runs(&mut self) {
        let post_copy = self.post_copy.as_mut().expect("called in post-copy only");
        post_copy.expects_running = false;
        if !std::mem::replace(&mut post_copy.is_running, true) {
            self.events.push_back(SourceEvent::Running);
        }
    }

    fn try_later(&mut self, now: Instant) {
        if let State::Recovering(recovery) = &mut self.state {
            self.outbox.clear();
            recovery.attempt = Attempt::Waiting { until: after(now, recovery.pause) };
            recovery.pause = recovery.pause.saturating_mul(2).min(self.timeouts.retry().saturating_mul(2));
        }
    }

    fn give_up(&mut self) {
        let State::Recovering(Recovery { last, cause, .. }) = &self.state else { return };
        self.leave(last.clone(), cause.clone());
    }

    /// Ends with the memory still needed: `stranded` if the guest is known to be the destination's, else in `doubt`.
    fn leave(&mut self, stranded: ProtocolError, doubt: ProtocolError) {
        let owner = self.owner();
        let end = match owner {
            GuestOwner::Destination => SourceEnd::Stranded { error: stranded },
            _ => SourceEnd::InDoubt { error: doubt },
        };
        self.end(owner, end);
    }

    /// How long an attempt may wait for its answer: it must not use up the time there is for others.
    fn patience(&self) -> Duration {
        self.timeouts.handshake.min(self.timeouts.recover / 3)
    }
}
