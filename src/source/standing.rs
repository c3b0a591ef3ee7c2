//! Where a guest of a fleet waits: until few others begin to send, and before it is stopped until few others stand still.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam::channel::select;

use super::driver::Driver;
use super::fleet::{Berth, Member, Sending};
use super::pump::Pump;
use super::session::{Session, session_error};
use crate::error::Error;
use crate::units::PageCount;

/// How long it took to get a place among those who stand still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wait {
    /// Nothing to speak of.
    Short,
    /// The guest has written meanwhile.
    Long,
}

/// A migration's standing in a fleet, if it is in one.
pub(super) struct Standing {
    member: Option<Arc<Member>>,
    /// Among those who stand still, while it is there.
    place: Option<Berth>,
    /// Among those who send, while it is there.
    sending: Option<Sending>,
    /// For how long it has waited for others, converged.
    waited: Duration,
}

impl Standing {
    /// Of a migration that begins.
    pub(super) fn of(member: Option<Arc<Member>>) -> Self {
        Self { member, place: None, sending: None, waited: Duration::ZERO }
    }

    pub(super) fn member(&self) -> Option<&Arc<Member>> {
        self.member.as_ref()
    }

    /// Whether it takes turns with nobody.
    pub(super) fn is_alone(&self) -> bool {
        self.member.is_none()
    }

    /// Whether its guest stands still, or is the next to, while others wait for that.
    pub(super) fn holds_others_up(&self) -> bool {
        self.place.is_some()
    }

    /// The bulk of its guest is sent: the next may begin.
    fn make_room(&mut self) {
        if let Some(sending) = &mut self.sending {
            sending.make_room();
        }
    }

    /// Its guest goes on, or has nothing more to send: it is the next one's turn to stand still.
    pub(super) fn leave_last_round(&mut self) {
        if let (Some(_), Some(member)) = (self.place.take(), &self.member) {
            member.set_urgent(false);
        }
    }

    /// All of its guest is sent.
    pub(super) fn has_sent(&mut self) {
        self.sending = None;
    }

    /// How often to look at something, if one migration by itself would after `alone`.
    pub(super) fn look_every(&self, alone: Duration) -> Duration {
        match &self.member {
            Some(member) if !self.holds_others_up() => member.look_every(alone),
            _ => alone,
        }
    }
}

impl Driver<'_> {
    /// Waits, connected, until few others have just begun to send, but not for ever. The wait is no part of the migration's
    /// time: nothing is measured by it, nor is a limit.
    pub(super) fn await_departure(&mut self, pump: &Pump) -> Result<(), Error> {
        let Some(member) = &self.standing.member else { return Ok(()) };
        let asked = Instant::now();
        let berth = member.ask_to_send();
        while asked.elapsed() < LONGEST && !self.is_granted(&berth, pump, LOOK_AROUND_EVERY)? {}
        self.standing.sending = Some(member.begin_to_send(berth));
        self.started += asked.elapsed();
        Ok(())
    }

    /// Waits, with the guest running, until it may be stopped; from then on its pages go first. One that may already, or
    /// that is in no fleet, does not wait.
    pub(super) fn await_last_round(&mut self, session: &Session<'_>) -> Result<Wait, Error> {
        let Some(member) = self.standing.member.as_ref().filter(|_| !self.standing.holds_others_up()) else { return Ok(Wait::Short) };
        let asked = Instant::now();
        let place = member.ask_for_last_round();
        while !self.is_granted(&place, &session.pump, LOOK_EVERY)? {}
        member.set_urgent(true);
        let waited = asked.elapsed();
        self.standing.place = Some(place);
        self.standing.waited += waited;
        Ok(if waited > SHORT { Wait::Long } else { Wait::Short })
    }

    /// How long pre-copy has taken, as far as limits go: not that it had to wait for others.
    pub(super) fn elapsed(&self) -> Duration {
        self.started.elapsed().saturating_sub(self.standing.waited)
    }

    /// After a round that leaves so much.
    pub(super) fn make_room(&mut self, left: PageCount) {
        if left.0 <= self.report.pages_transferred.0 / BULK {
            self.standing.make_room();
        }
    }

    /// Waits for a berth, for so long.
    fn is_granted(&self, berth: &Berth, pump: &Pump, patience: Duration) -> Result<bool, Error> {
        select! {
            recv(berth.granted()) -> _ => return Ok(true),
            recv(pump.ended()) -> ended => return Err(session_error(ended.ok())),
            recv(self.steering.cancelled()) -> _ => return Err(Error::Cancelled),
            default(patience) => berth.look(Instant::now()),
        }
        Ok(false)
    }
}

/// The bulk of a guest is sent once no more is left than this part of what was.
const BULK: u64 = 8;
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Those who wait for long are many, and each looks for all of them. [`LONGEST`] is a multiple of it.
const LOOK_AROUND_EVERY: Duration = Duration::from_millis(250);
/// A guest begins to send after so long, however many do.
const LONGEST: Duration = Duration::from_secs(60);
/// A guest that waited for longer sends what it has written meanwhile before it is stopped.
const SHORT: Duration = Duration::from_millis(5);
