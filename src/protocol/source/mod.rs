//! The source's side of a session.
//!
//! The one thing this machine must get right is [`Source::owner`]. Until Commit is handed out the guest is the
//! source's, whatever happens. From then on only the destination's own word decides: Running or an Answer that says so
//! gives the guest away, Failed or an Answer of NeverStarted gives it back, and anything else leaves it in doubt.
//! In post-copy the guest that was given away still needs the source's memory, so the session goes on, over as many
//! connections as it takes, until the destination says Complete.
//!
//! `peer` holds what the peer and the clock do, `handover` what the driver does; `ahead` is about what is done for
//! post-copy before the guest is paused, `doubt` about a Commit without an answer, `recovery` about post-copy.

mod ahead;
mod doubt;
mod handover;
mod peer;
mod recovery;

use std::collections::VecDeque;
use std::time::Instant;

use self::ahead::Ahead;
use self::doubt::Asking;
use self::recovery::{PostCopy, Recovery};
use super::pulse::{Pulse, after};
use super::{GuestOwner, ProtocolError, Timeouts};
use crate::bitmap::PageBitmap;
use crate::page::Codecs;
use crate::units::ByteCount;
use crate::wire::{Features, Message, Offer, RefuseReason};

/// The session as the source sees it. Driven as the [module](super) says.
#[derive(Clone, Debug)]
pub struct Source {
    offer: Offer,
    timeouts: Timeouts,
    pulse: Pulse,
    state: State,
    /// By Accept.
    granted: Features,
    /// What the destination was told to discard ahead of the switch.
    ahead: Option<Ahead>,
    /// From the switch on.
    post_copy: Option<PostCopy>,
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
    /// The pages of [`Source::announce`] are discarded at the destination: [`Source::switch`] is what follows.
    Discarded,
    /// Everything is in place at the destination: [`Source::commit`] is allowed.
    Ready,
    /// The guest runs at the destination: release it here.
    Running,
    /// In doubt, or recovering: drop the control connection, open a new one, and call [`Source::reconnected`] or
    /// [`Source::reconnect_failed`].
    Reconnect,
    /// In post-copy: the session's connections are of no more use. Drop all lanes and the control connection.
    Interrupted {
        /// Why.
        error: ProtocolError,
    },
    /// In post-copy: the destination is there again. Attach all lanes of this generation anew and call
    /// [`Source::reattached`], or [`Source::interrupt`] if that cannot be done.
    Recovered {
        /// The generation.
        generation: u32,
        /// Pages of the missing set that need not be sent any more.
        arrived: PageBitmap,
    },
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
    /// The guest is the destination's for certain, but pages of it are still here and nobody could be given them. The
    /// memory must be kept until somebody can: [`Source::recover_again`].
    Stranded {
        /// What went wrong last.
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
    /// In post-copy: the guest runs at the destination, which fetches pages.
    Serving,
    /// In post-copy, from Commit on: the connections are lost.
    Recovering(Recovery),
    /// Over. With the reason, if it can be taken up again.
    Ended { owner: GuestOwner, unsettled: Option<ProtocolError> },
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
            Self::Serving => "serving pages",
            Self::Recovering(recovery) => recovery.name(),
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
        let pulse = Pulse::new(now, &timeouts);
        Self { offer, timeouts, pulse, state, granted: Features::NONE, ahead: None, post_copy: None, outbox, events: VecDeque::new() }
    }

    /// Who may run the guest, as far as the source can know.
    #[must_use]
    pub fn owner(&self) -> GuestOwner {
        match &self.state {
            State::Ended { owner, .. } => *owner,
            State::Doubt { .. } => GuestOwner::InDoubt,
            State::Committed | State::Serving | State::Recovering(_) => match &self.post_copy {
                Some(post_copy) if post_copy.is_running => GuestOwner::Destination,
                _ => GuestOwner::InDoubt,
            },
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
            State::Copying { .. } | State::Finishing | State::Ready | State::Committing | State::Committed | State::Serving => Some(alive),
            State::Doubt { until, asking, .. } => Some(asking.next_timeout(*until)),
            State::Recovering(recovery) => Some(recovery.next_timeout(alive)),
            State::Ended { .. } => None,
        }
    }
}
