//! Where a guest of a fleet waits: until few others begin to send, and before it is stopped until few others stand still.

use std::time::{Duration, Instant};

use crossbeam::channel::select;

use super::driver::Driver;
use super::fleet::Berth;
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

impl Driver<'_> {
    /// Waits, connected, until few others have just begun to send, but not for ever. The wait is no part of the migration's
    /// time: nothing is measured by it, nor is a limit.
    pub(super) fn await_departure(&mut self, pump: &Pump) -> Result<(), Error> {
        let Some(member) = &self.member else { return Ok(()) };
        let asked = Instant::now();
        let berth = member.ask_to_send();
        while asked.elapsed() < LONGEST && !self.is_granted(&berth, pump, LOOK_AROUND_EVERY)? {}
        self.sending = Some(member.begin_to_send(berth));
        self.started += asked.elapsed();
        Ok(())
    }

    /// Waits, with the guest running, until it may be stopped; from then on its pages go first. One that may already, or
    /// that is in no fleet, does not wait.
    pub(super) fn await_last_round(&mut self, session: &Session<'_>) -> Result<Wait, Error> {
        let Some(member) = self.member.as_ref().filter(|_| self.place.is_none()) else { return Ok(Wait::Short) };
        let asked = Instant::now();
        let place = member.ask_for_last_round();
        while !self.is_granted(&place, &session.pump, LOOK_EVERY)? {}
        member.set_urgent(true);
        self.place = Some(place);
        Ok(if asked.elapsed() > SHORT { Wait::Long } else { Wait::Short })
    }

    /// After a round that leaves so much: the next guest may begin once the bulk of this one is sent.
    pub(super) fn make_room(&mut self, left: PageCount) {
        if let Some(sending) = self.sending.as_mut().filter(|_| left.0 <= self.report.pages_transferred.0 / BULK) {
            sending.make_room();
        }
    }

    /// The guest goes on, or has nothing more to send: it is the next one's turn to stand still.
    pub(super) fn leave_last_round(&mut self) {
        if let (Some(_), Some(member)) = (self.place.take(), &self.member) {
            member.set_urgent(false);
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

    /// How often to look at something, if one migration by itself would after `alone`.
    pub(super) fn look_every(&self, alone: Duration) -> Duration {
        match &self.member {
            Some(member) if self.place.is_none() => member.look_every(alone),
            _ => alone,
        }
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
