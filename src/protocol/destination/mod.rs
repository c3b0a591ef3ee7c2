//! The destination's side of a session.
//!
//! The one thing this machine must get right is that the guest runs here only if the source can no longer believe
//! otherwise. The moment of decision is the handling of Commit: before it, anything that ends the session (a Query or a
//! Resume too) makes sure that a later Commit is refused; after it, only the guest's own failure to start can undo it.
//! And once it runs in post-copy, nothing ends the session before the last page is there.
//!
//! `peer` holds what the peer and the clock do, `handover` what the driver does, `attach` the lanes, `ahead` what is done
//! for post-copy before the guest is paused, `recovery` what becomes of lost connections in post-copy.

mod ahead;
mod attach;
mod handover;
mod peer;
mod recovery;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use self::ahead::Ahead;
pub use self::attach::AttachError;
use self::attach::Attached;
use self::recovery::{Link, PostCopy};
use super::pieces::Assembly;
use super::pulse::{Pulse, after};
use super::{ProtocolError, Timeouts, Tombstone};
use crate::bitmap::PageBitmap;
use crate::units::ByteCount;
use crate::wire::{AnswerStatus, ChannelTotals, Features, Message, Offer};

/// One session as the destination sees it. Driven as the [module](super) says.
#[derive(Clone, Debug)]
pub struct Destination {
    timeouts: Timeouts,
    pulse: Pulse,
    state: State,
    /// From Hello on.
    offer: Option<Offer>,
    channels: u16,
    granted: Features,
    /// Of the set of missing pages, as far as they have come.
    pieces: Option<Assembly>,
    /// What is discarded ahead of the switch.
    ahead: Option<Ahead>,
    /// From the switch on.
    post_copy: Option<PostCopy>,
    link: Link,
    /// The source may ask later how it ended: Ready was said, and the source is not known to know.
    may_be_asked: bool,
    /// Nobody is there to hear what is said.
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
    /// The source is about to switch to post-copy: when exactly what it has sent has arrived, discard the pages and call
    /// [`Destination::discarded`], or [`Destination::fail`].
    Stale {
        /// What must have arrived, one entry for each channel.
        totals: Vec<ChannelTotals>,
        /// Pages that will be missing in any case.
        pages: PageBitmap,
    },
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
    /// In post-copy: the session's connections are of no more use. Drop all lanes and the control connection, keep the
    /// guest and wait for [`DestinationEvent::Resume`].
    Interrupted {
        /// Why.
        error: ProtocolError,
    },
    /// In post-copy: the source is there again. Stop all old lanes, install what is in hand, put the connection on which
    /// it came in the place of the control connection, and call [`Destination::resumed`].
    Resume {
        /// The generation: [`Resumption::Accepted`](super::Resumption::Accepted) names it to whoever has the connection.
        generation: u32,
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

#[derive(Clone, Debug)]
enum State {
    /// For Hello.
    Waiting { until: Instant },
    /// The driver decides whether it wants the guest.
    Offered,
    /// Accept is out; lanes come in.
    Attaching { until: Instant, attached: Attached },
    /// Frames come in.
    Receiving,
    /// Finish came; the driver checks and loads.
    Loading,
    /// Ready is out.
    Ready,
    /// Commit came; the driver resumes the guest.
    Starting,
    /// In post-copy: the guest runs and pages come in.
    Fetching,
    /// The guest runs and lacks nothing; Released is to come.
    Running { until: Instant },
    /// Over. What to answer when asked.
    Ended(AnswerStatus),
}

impl State {
    fn name(&self) -> &'static str {
        match self {
            Self::Waiting { .. } => "waiting for Hello",
            Self::Offered => "considering the offer",
            Self::Attaching { .. } => "attaching channels",
            Self::Receiving => "receiving",
            Self::Loading => "loading",
            Self::Ready => "waiting for Commit",
            Self::Starting => "starting the guest",
            Self::Fetching => "fetching pages",
            Self::Running { .. } => "waiting for Released",
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
            offer: None,
            channels: 0,
            granted: Features::NONE,
            pieces: None,
            ahead: None,
            post_copy: None,
            link: Link::Up,
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
        matches!(self.state, State::Starting | State::Fetching | State::Running { .. } | State::Ended(AnswerStatus::Running))
    }

    /// What to remember of a session that is over; `None` if nobody will ask, and before the end.
    #[must_use]
    pub fn tombstone(&self) -> Option<Tombstone> {
        let State::Ended(status) = self.state else { return None };
        let offer = self.offer.as_ref()?;
        let completed = self.post_copy.filter(|_| status == AnswerStatus::Running).map(|post_copy| post_copy.pages);
        // The source may notice as late as this that it has lost the session, and then looks for it.
        let Timeouts { silence, handshake, recover, .. } = self.timeouts;
        let least = self.post_copy.map_or(Duration::ZERO, |_| silence.saturating_add(handshake).saturating_add(recover));
        self.may_be_asked.then_some(Tombstone { session: offer.session, token: offer.token, status, completed, least })
    }

    /// The next message to send.
    pub fn poll_message(&mut self) -> Option<Message> {
        // While the control connection is being replaced, what there is to say is for the new one.
        if self.closed || matches!(self.link, Link::Replacing) { None } else { self.outbox.pop_front() }
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
            State::Receiving | State::Loading | State::Ready => Some(alive),
            State::Starting | State::Fetching => match &self.link {
                Link::Up => Some(alive),
                Link::Attaching { until, .. } => Some((*until).min(alive)),
                Link::Down { .. } | Link::Replacing => None,
            },
            State::Running { .. } if matches!(self.link, Link::Replacing) => None,
            State::Offered => Some(self.pulse.silent_at()),
            State::Running { until } => Some((*until).min(self.pulse.silent_at())),
            State::Ended(_) => None,
        }
    }
}
