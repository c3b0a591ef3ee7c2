//! What a destination remembers of sessions that are over.
//!
//! A source in doubt may come back after the destination has finished with a session, so the destination keeps one line
//! for each that reached Ready and whose source is not known to know how it ended.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::pulse::after;
use super::same_token;
use crate::wire::{AnswerStatus, SessionId, Token};

/// How a session ended that its source may still ask about: see [`Destination::tombstone`](super::Destination::tombstone).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tombstone {
    pub(super) session: SessionId,
    pub(super) token: Token,
    pub(super) status: AnswerStatus,
}

/// The tombstones of one receiver, each kept for [`Timeouts::tombstone`](super::Timeouts::tombstone).
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
        self.stones.insert(stone.session, (stone, after(now, self.keep)));
    }

    /// What to answer to a Query about a session that is not live.
    #[must_use]
    pub fn answer(&self, session: SessionId, token: Token) -> AnswerStatus {
        match self.stones.get(&session) {
            Some((stone, _)) if same_token(stone.token, token) => stone.status,
            _ => AnswerStatus::Unknown,
        }
    }

    /// The source has said Released after its Query was answered: nobody will ask again.
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
