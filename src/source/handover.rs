//! Stop-and-copy and the handover: the guest is paused, the rest goes over, the guest changes hands.
//!
//! Up to the moment at which Commit is given to the pump every failure leaves the guest here. From that moment the hold
//! is released, and only the destination's own word takes it back.

use std::time::Instant;

use crossbeam::channel::{select, tick};

use super::PROGRESS_EVERY;
use super::driver::{Driver, Session, session_error};
use super::event::Phase;
use super::pump::{Command, Ended};
use super::rounds::LastRound;
use super::worker::Then;
use crate::error::Error;
use crate::guest::GuestError;
use crate::protocol::{ProtocolError, SourceEnd, SourceEvent};
use crate::stats::{DowntimeParts, GuestOwner, Laps};
use crate::units::ByteCount;
use crate::wire::MAX_STATE_BYTES;

impl Driver<'_> {
    /// Sends the remainder and the state, and gives the guest away.
    pub(super) fn hand_over(&mut self, session: &Session<'_>, last: LastRound) -> Result<(), Error> {
        self.phase(Phase::StopAndCopy);
        self.report.reason = last.verdict.reason.to_string();
        let LastRound { index, kind, remainder, paused_at, mut parts, mut laps, verdict, .. } = last;
        let total = remainder.count();
        let began = self.begin(session, index, remainder, None, Then::RoundEnd)?;
        // The workers are busy with the remainder meanwhile.
        parts.plan = laps.end(Instant::now());
        let (state, step) = self.save_state(&mut parts, &mut laps)?;
        let round = self.await_round(session, index, total, began, None, Some(verdict))?;
        self.leave_last_round();
        self.sending = None;
        step.map_err(Error::AtPause)?;
        parts.send = laps.end(Instant::now());
        self.record(index, kind, &round, Some(crate::units::PageCount(0)), None);
        self.phase(Phase::Handover);
        session.pump.command(Command::Finish { totals: round.totals, state });
        self.await_word(session, &SourceEvent::Ready)?;
        parts.ready = laps.end(Instant::now());
        self.commit(session, paused_at, parts, laps)
    }

    /// The state beside memory, and what came of the caller's step, which may fail only once the workers are done.
    pub(super) fn save_state(&mut self, parts: &mut DowntimeParts, laps: &mut Laps) -> Result<(Vec<u8>, std::io::Result<()>), Error> {
        let state = self.hold.save_state()?;
        if state.len() > MAX_STATE_BYTES {
            let why = format!("{} bytes of state, more than {MAX_STATE_BYTES}", state.len());
            return Err(GuestError::new("hand over its state", why).into());
        }
        parts.state = laps.end(Instant::now());
        let mut step = Ok(());
        if let Some(at_pause) = self.at_pause.take() {
            step = self.hold.aside(|| at_pause(self.memory));
            parts.step = laps.end(Instant::now());
        }
        Ok((state, step))
    }

    /// Waits until the destination has done what was asked of it, which it says by `word`.
    pub(super) fn await_word(&mut self, session: &Session<'_>, word: &SourceEvent) -> Result<(), Error> {
        let sent = self.report.wire_bytes;
        let mut arrived = ByteCount(0);
        let mut moved_at = Instant::now();
        let ticker = tick(PROGRESS_EVERY);
        loop {
            select! {
                recv(session.pump.events()) -> event => match event {
                    Ok(event) if event == *word => return Ok(()),
                    Ok(SourceEvent::Progress { bytes, .. }) if bytes > arrived => {
                        arrived = bytes;
                        moved_at = Instant::now();
                    }
                    _ => {}
                },
                recv(session.pump.ended()) -> ended => return Err(session_error(ended.ok())),
                recv(self.steering.cancelled()) -> _ => return Err(Error::Cancelled),
                recv(ticker) -> _ => {
                    // With everything there, loading the state may take its time; the heartbeat watches over that.
                    let patience = self.timeouts.silence;
                    if arrived < sent && moved_at.elapsed() > patience {
                        return Err(Error::Stalled { seconds: patience.as_secs() });
                    }
                }
            }
        }
    }

    /// The point of no return, and what comes of it.
    fn commit(&mut self, session: &Session<'_>, paused_at: Instant, mut parts: DowntimeParts, mut laps: Laps) -> Result<(), Error> {
        self.hold.release();
        session.pump.command(Command::Commit { paused_for: self.hold.paused_for() });
        let mut running_at = None;
        let ended = loop {
            select! {
                recv(session.pump.events()) -> event => match event {
                    Ok(SourceEvent::Running) => running_at = Some(Instant::now()),
                    Ok(SourceEvent::Reconnect) => self.phase(Phase::Resolving),
                    Ok(_) => {}
                    // The end follows.
                    Err(_) => break session.pump.ended().recv().ok(),
                },
                recv(session.pump.ended()) -> ended => break ended.ok(),
            }
        };
        let now = Instant::now();
        match ended {
            Some(Ended { end: SourceEnd::Completed, .. }) => {
                let running_at = running_at.unwrap_or(now);
                parts.run = laps.end(running_at);
                self.report.downtime_parts = Some(parts);
                self.report.downtime = running_at - paused_at;
                self.report.resume = now - running_at;
                self.report.total = now - self.started;
                Ok(())
            }
            Some(ended) if ended.owner == GuestOwner::Source => {
                self.hold.take_back();
                Err(session_error(Some(ended)))
            }
            // A pump that died without a word proves nothing about the destination.
            Some(Ended { end: SourceEnd::InDoubt { error }, .. }) => Err(Error::InDoubt(error)),
            _ => Err(Error::InDoubt(ProtocolError::Closed { state: "waiting for the destination to run the guest" })),
        }
    }
}
