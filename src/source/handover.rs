//! Stop-and-copy and the handover: the guest is paused, the rest goes over, the guest changes hands.
//!
//! Up to the moment at which Commit is given to the pump every failure leaves the guest here. From that moment the hold
//! is released, and only the destination's own word takes it back.

use std::time::Instant;

use crossbeam::channel::{select, tick};

use super::PROGRESS_EVERY;
use super::downtime::Downtime;
use super::driver::Driver;
use super::event::Phase;
use super::pre_copy::LastRound;
use super::pump::{Command, Ended};
use super::round::Round;
use super::session::{Session, session_error};
use super::worker::Then;
use crate::bitmap::PageBitmap;
use crate::error::Error;
use crate::guest::GuestError;
use crate::protocol::{ProtocolError, SourceEnd, SourceEvent};
use crate::stats::GuestOwner;
use crate::units::{ByteCount, PageCount};
use crate::wire::MAX_STATE_BYTES;

impl Driver<'_> {
    /// Sends the remainder and the state, and gives the guest away.
    pub(super) fn hand_over(&mut self, session: &Session<'_>, mut last: LastRound) -> Result<(), Error> {
        let remainder = std::mem::replace(&mut last.remainder, PageBitmap::new(0));
        let (round, state) = self.last_round(session, &mut last, remainder, Then::Handover)?;
        self.record(last.kind, &round, Some(PageCount(0)), None);
        self.get_ready(session, Command::Finish { totals: round.totals, state }, &mut last.downtime)?;
        self.commit(session, last.downtime)
    }

    /// Sends `pages`, the last before the guest changes hands, and saves the state meanwhile. Also gives that.
    pub(super) fn last_round(
        &mut self,
        session: &Session<'_>,
        last: &mut LastRound,
        pages: PageBitmap,
        then: Then,
    ) -> Result<(Round, Vec<u8>), Error> {
        self.phase(Phase::StopAndCopy);
        self.report.reason = last.verdict.reason.to_string();
        let begun = session.workers.begin(last.index, pages, None, then, Some(last.verdict));
        // The workers are busy with the pages meanwhile.
        last.downtime.parts.plan = last.downtime.lap();
        let (state, step) = self.save_state(&mut last.downtime)?;
        let round = self.await_round(session, &begun, None)?;
        self.standing.leave_last_round();
        if then == Then::Handover {
            self.standing.has_sent();
        }
        step.map_err(Error::AtPause)?;
        last.downtime.parts.send = last.downtime.lap();
        Ok((round, state))
    }

    /// The state beside memory, and what came of the caller's step, which may fail only once the workers are done.
    fn save_state(&mut self, downtime: &mut Downtime) -> Result<(Vec<u8>, std::io::Result<()>), Error> {
        let state = self.hold.save_state()?;
        if state.len() > MAX_STATE_BYTES {
            let why = format!("{} bytes of state, more than {MAX_STATE_BYTES}", state.len());
            return Err(GuestError::new("hand over its state", why).into());
        }
        downtime.parts.state = downtime.lap();
        let mut step = Ok(());
        if let Some(at_pause) = self.at_pause.take() {
            step = self.hold.aside(|| at_pause(self.memory));
            downtime.parts.step = downtime.lap();
        }
        Ok((state, step))
    }

    /// Tells the destination by `command` that all it needs before Commit is sent, and waits until it is ready.
    pub(super) fn get_ready(&mut self, session: &Session<'_>, command: Command, downtime: &mut Downtime) -> Result<(), Error> {
        self.phase(Phase::Handover);
        session.pump.command(command);
        self.await_word(session, &SourceEvent::Ready)?;
        downtime.parts.ready = downtime.lap();
        Ok(())
    }

    /// Waits until the destination has done what was asked of it, which it says by `word`.
    pub(super) fn await_word(&mut self, session: &Session<'_>, word: &SourceEvent) -> Result<(), Error> {
        let sent = self.report.wire_bytes;
        // Whole frames are told of, and of large ones on many slow channels none may be whole for long. Nor is a large state.
        let queues = || [session.workers.under_way().0, session.pump.under_way()];
        let (mut arrived, mut under_way) = (ByteCount(0), queues());
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
                    let still = queues();
                    if still.iter().zip(under_way).any(|(still, before)| *still < before) {
                        moved_at = Instant::now();
                    }
                    under_way = still;
                    if arrived < sent && moved_at.elapsed() > patience {
                        return Err(Error::Stalled { seconds: patience.as_secs() });
                    }
                }
            }
        }
    }

    /// The point of no return, and what comes of it.
    fn commit(&mut self, session: &Session<'_>, downtime: Downtime) -> Result<(), Error> {
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
                downtime.fill(&mut self.report, running_at.unwrap_or(now), now);
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
