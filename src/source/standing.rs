//! Before a guest of a fleet is stopped: waiting until few others stand still.

use std::time::{Duration, Instant};

use crossbeam::channel::select;

use super::driver::{Driver, Session, session_error};
use crate::error::Error;

/// How long it took to get a place among those who stand still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wait {
    /// Nothing to speak of.
    Short,
    /// The guest has written meanwhile.
    Long,
}

impl Driver<'_> {
    /// Waits, with the guest running, until it may be stopped; from then on its pages go first. One that may already, or
    /// that is in no fleet, does not wait.
    pub(super) fn await_last_round(&mut self, session: &Session<'_>) -> Result<Wait, Error> {
        let Some(member) = self.member.as_ref().filter(|_| self.place.is_none()) else { return Ok(Wait::Short) };
        let asked = Instant::now();
        let place = member.ask_for_last_round();
        loop {
            select! {
                recv(place.granted()) -> _ => break,
                recv(session.pump.ended()) -> ended => return Err(session_error(ended.ok())),
                recv(self.steering.cancelled()) -> _ => return Err(Error::Cancelled),
                default(LOOK_EVERY) => place.look(Instant::now()),
            }
        }
        member.set_urgent(true);
        self.place = Some(place);
        Ok(if asked.elapsed() > SHORT { Wait::Long } else { Wait::Short })
    }

    /// The guest goes on, or has nothing more to send: it is the next one's turn to stand still.
    pub(super) fn leave_last_round(&mut self) {
        if let (Some(_), Some(member)) = (self.place.take(), &self.member) {
            member.set_urgent(false);
        }
    }

    /// How often to look at something, if one migration by itself would after `alone`.
    pub(super) fn look_every(&self, alone: Duration) -> Duration {
        match &self.member {
            Some(member) if self.place.is_none() => member.look_every(alone),
            _ => alone,
        }
    }
}

const LOOK_EVERY: Duration = Duration::from_millis(50);
/// A guest that waited for longer sends what it has written meanwhile before it is stopped.
const SHORT: Duration = Duration::from_millis(5);
