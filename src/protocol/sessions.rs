//! What a destination remembers of sessions that are over.
//!
//! A source in doubt may come back after the destination has finished with a session, so the destination keeps one line
//! for each that reached Ready and whose source is not known to know how it ended.

use std::collections::HashMap;
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
/// longer if the source may take longer to come.
#[derive(Clone, Debug)]
pub struct Tombstones {
    keep: Duration,
    stones: HashMap<SessionId, (Tombstone, Instant)>,
}

impl Tombstones {
    /// None yet; each will be kept for `keep`.
    #[must_use]
    pub fn new(keep: Duration) -> Self {
        Self { keep, stones: HashMap::new() }
    }

    /// Keeps `stone` from `now` on. To leave no gap for a Query to fall into, do it before the live session is forgotten.
    pub fn keep(&mut self, now: Instant, stone: Tombstone) {
        self.stones.insert(stone.session, (stone, after(now, self.keep.max(stone.least))));
    }

    /// What to answer to a Query about a session that is not live.
    #[must_use]
    pub fn answer(&self, session: SessionId, token: Token) -> AnswerStatus {
        match self.stones.get(&session) {
            Some((stone, _)) if same_token(stone.token, token) => stone.status,
            _ => AnswerStatus::Unknown,
        }
    }

    /// What becomes of a Resume of a session that is not live.
    #[must_use]
    pub fn resume(&self, session: SessionId, token: Token) -> Resumption {
        let stone = self.stones.get(&session).map(|(stone, _)| stone).filter(|stone| same_token(stone.token, token));
        match stone.map(|stone| (stone.status, stone.completed)) {
            Some((AnswerStatus::NeverStarted, _)) => Resumption::NeverStarted,
            Some((AnswerStatus::Running, Some(pages))) => Resumption::Complete { pages },
            _ => Resumption::Refused,
        }
    }

    /// The source has said Released after its Query or Resume was answered: nobody will ask again.
    pub fn released(&mut self, session: SessionId, token: Token) {
        if self.answer(session, token) == AnswerStatus::Running {
            self.stones.remove(&session);
        }
    }

    /// Whether `session` is one of them. A Hello that names it again is to be refused: it would hide the answer.
    #[must_use]
    pub fn contains(&self, session: SessionId) -> bool {
        self.stones.contains_key(&session)
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.stones.len()
    }

    /// Forgets those whose time is over.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.stones.retain(|_, (_, until)| now < *until);
    }

    /// When the next one's time is over; `None` when there is none, and nothing keeps the receiver from leaving.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.stones.values().map(|(_, until)| *until).min()
    }
}
