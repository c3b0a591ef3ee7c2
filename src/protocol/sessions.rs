//! What a destination remembers of sessions that are over.
//!
//! A source in doubt may come back after the destination has finished with a session, so the destination keeps one line
//! for each that reached Ready and whose source is not known to know how it ended.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use super::pulse::after;
use super::same_token;
use crate::units::PageCount;
use crate::wire::{AnswerStatus, Message, RefuseReason, SessionId, Token};

/// How a session ended that its source may still ask about: see [`Destination::tombstone`](super::Destination::tombstone).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tombstone {
    pub(super) session: SessionId,
    pub(super) token: Token,
    pub(super) status: AnswerStatus,
    /// In post-copy, when the guest runs here: pages that were missing, all of which have come.
    pub(super) completed: Option<PageCount>,
    /// How long it is to be kept at least.
    pub(super) least: Duration,
}

/// What becomes of a Resume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resumption {
    /// The session goes on: this connection goes to whoever gets [`DestinationEvent::Resume`] of this generation. Of two
    /// that wait the newer counts.
    ///
    /// [`DestinationEvent::Resume`]: super::DestinationEvent::Resume
    Accepted {
        /// The generation of the lanes that will come.
        generation: u32,
    },
    /// There is nothing left to do: all missing pages have come. Released follows.
    Complete {
        /// So many.
        pages: PageCount,
    },
    /// The guest never ran here and never will.
    NeverStarted,
    /// There is no such session, or not with this token, or it is not in post-copy.
    Refused,
}

impl Resumption {
    /// What to answer on the connection on which the Resume came, if it does not go on there.
    #[must_use]
    pub fn answer(self) -> Option<Message> {
        match self {
            Self::Accepted { .. } => None,
            Self::Complete { pages } => Some(Message::Complete { pages }),
            Self::NeverStarted => Some(Message::Answer(AnswerStatus::NeverStarted)),
            Self::Refused => Some(Message::Refuse { reason: RefuseReason::Authorization, detail: "there is no such session to resume".into() }),
        }
    }
}

/// The tombstones of one receiver, each kept for [`Timeouts::tombstone`](super::Timeouts::tombstone), in post-copy
/// longer if the source may take longer to come. From then on it says nothing any more, whether or not somebody has
/// called [`Tombstones::handle_timeout`], which gives back its memory.
#[derive(Clone, Debug)]
pub struct Tombstones {
    keep: Duration,
    stones: HashMap<SessionId, (Tombstone, Instant)>,
    /// The same, by the end of their time: a peer can have many kept, and to forget must not mean to look at each.
    ends: BTreeSet<(Instant, [u8; 16])>,
}

#[cfg(all(test, feature = "tls"))]
impl Tombstone {
    /// Of a session whose guest runs here.
    pub(crate) fn of_running(session: SessionId, token: Token) -> Self {
        Self { session, token, status: AnswerStatus::Running, completed: None, least: Duration::ZERO }
    }
}

impl Tombstones {
    /// None yet; each will be kept for `keep`.
    #[must_use]
    pub fn new(keep: Duration) -> Self {
        Self { keep, stones: HashMap::new(), ends: BTreeSet::new() }
    }

    /// Keeps `stone` from `now` on. To leave no gap for a Query to fall into, do it before the live session is forgotten.
    pub fn keep(&mut self, now: Instant, stone: Tombstone) {
        let (session, until) = (stone.session, after(now, self.keep.max(stone.least)));
        if let Some((_, before)) = self.stones.insert(session, (stone, until)) {
            self.ends.remove(&(before, session.0));
        }
        self.ends.insert((until, session.0));
    }

    /// What to answer to a Query about a session that is not live.
    #[must_use]
    pub fn answer(&self, now: Instant, session: SessionId, token: Token) -> AnswerStatus {
        self.find(now, session, token).map_or(AnswerStatus::Unknown, |stone| stone.status)
    }

    /// What becomes of a Resume of a session that is not live.
    #[must_use]
    pub fn resume(&self, now: Instant, session: SessionId, token: Token) -> Resumption {
        match self.find(now, session, token).map(|stone| (stone.status, stone.completed)) {
            Some((AnswerStatus::NeverStarted, _)) => Resumption::NeverStarted,
            Some((AnswerStatus::Running, Some(pages))) => Resumption::Complete { pages },
            _ => Resumption::Refused,
        }
    }

    /// The source has said Released after its Query or Resume was answered: nobody will ask again.
    pub fn released(&mut self, now: Instant, session: SessionId, token: Token) {
        if self.answer(now, session, token) == AnswerStatus::Running
            && let Some((_, until)) = self.stones.remove(&session)
        {
            self.ends.remove(&(until, session.0));
        }
    }

    /// Whether `session` is one of them. A Hello that names it again is to be refused: it would hide the answer.
    #[must_use]
    pub fn contains(&self, now: Instant, session: SessionId) -> bool {
        self.stones.get(&session).is_some_and(|(_, until)| now < *until)
    }

    /// How many there are, those included whose time is over and that have not been forgotten yet.
    #[must_use]
    pub fn count(&self) -> usize {
        self.stones.len()
    }

    /// Forgets those whose time is over.
    pub fn handle_timeout(&mut self, now: Instant) {
        while self.forget_one(now).is_some() {}
    }

    /// Forgets one whose time is over, if there is any: for who keeps something of their own with each.
    pub fn forget_one(&mut self, now: Instant) -> Option<SessionId> {
        let (until, session) = self.ends.first().copied().filter(|(until, _)| *until <= now)?;
        self.ends.remove(&(until, session));
        self.stones.remove(&SessionId(session));
        Some(SessionId(session))
    }

    /// When the next one's time is over; `None` when there is none, and nothing keeps the receiver from leaving.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.ends.first().map(|(until, _)| *until)
    }

    /// The tombstone of `session`, for whoever knows its token, as long as it counts.
    fn find(&self, now: Instant, session: SessionId, token: Token) -> Option<&Tombstone> {
        let (stone, until) = self.stones.get(&session)?;
        (now < *until && same_token(stone.token, token)).then_some(stone)
    }
}
