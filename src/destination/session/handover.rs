//! The destination's side of the handover: everything has arrived, the guest is loaded, Commit starts it.

use std::time::{Duration, Instant};

use crossbeam::channel::{bounded, select};

use super::incoming::Incoming;
use super::{IDLE, Session};
use crate::bitmap::PageBitmap;
use crate::destination::admission::Placed;
use crate::destination::bulk::BulkReport;
use crate::destination::following::{Following, Stale};
use crate::destination::ledger::Ledger;
use crate::error::Error;
use crate::guest::GuestError;
use crate::protocol::DestinationEvent;
use crate::stats::Laps;
use crate::wire::ChannelTotals;

/// What the source has announced and waits for its pages.
#[derive(Default)]
pub(super) struct Announced {
    pub(super) stale: Option<Stale>,
    pub(super) finish: Option<Finish>,
}

/// What the source has sent before Commit.
pub(super) struct Finish {
    pub(super) totals: Vec<ChannelTotals>,
    pub(super) state: Vec<u8>,
    pub(super) missing: Option<PageBitmap>,
}

impl Session<'_> {
    /// Does what was announced, if what it waits for has arrived and nothing went wrong.
    pub(super) fn proceed(&mut self, guest: &mut Incoming) {
        if let Some(stale) = self.announced.stale.take_if(|stale| self.fault.is_none() && self.ledger.has_reached(&stale.totals)) {
            let taken_out = self.take_out(guest, stale);
            self.give_up_unless(taken_out);
        }
        if let Some(finish) = self.announced.finish.take_if(|finish| self.fault.is_none() && finish.has_arrived(&self.ledger)) {
            let settled = self.settle(guest, finish);
            self.give_up_unless(settled);
        }
    }

    /// Everything has arrived after which pages can be taken out that will be missing in any case.
    fn take_out(&mut self, guest: &Incoming, stale: Stale) -> Result<(), Error> {
        self.supplied = None;
        guest.shrink(|memory| stale.take_out(&memory, &self.ledger))?;
        self.empty = Some(stale.pages);
        self.shared.feed(|machine| machine.discarded(Instant::now()));
        Ok(())
    }

    /// Everything has arrived that comes before Commit: closes the way into memory, checks, loads, and says so.
    fn settle(&mut self, guest: &mut Incoming, finish: Finish) -> Result<(), Error> {
        let Finish { totals, state, missing } = finish;
        let mut laps = Laps::from(Instant::now());
        match missing {
            None => self.close(guest, &totals)?,
            Some(missing) => self.follow(guest, &totals, &missing)?,
        }
        self.times.parts.settle = laps.end(Instant::now());
        guest.arrival.guest().load_state(&state)?;
        drop(state);
        self.shared.let_go_of_state();
        self.times.parts.load = laps.end(Instant::now());
        self.shared.feed(|machine| machine.ready(Instant::now()));
        Ok(())
    }

    /// All memory is there.
    fn close(&mut self, guest: &mut Incoming, totals: &[ChannelTotals]) -> Result<(), Error> {
        // From here on nothing a peer sends can reach the memory.
        self.shared.close_lanes();
        // Before waiting for the lanes: nor can one of them wait for a page then.
        self.supplied = None;
        while !self.ledger.all_stopped() {
            let report = self.reported.recv().expect("the session holds a sender itself");
            self.ledger.enter(&report);
        }
        self.ledger.check(totals)?;
        guest.arrival.placed(Placed::Paused).map_err(Error::AtPause)
    }

    /// All but the `missing` pages are there, and those follow.
    fn follow(&mut self, guest: &mut Incoming, totals: &[ChannelTotals], missing: &PageBitmap) -> Result<(), Error> {
        self.ledger.check(totals)?;
        self.supplied = None;
        let following = guest.shrink(|memory| Following::begin(self.shared, memory, missing, self.empty.as_ref()))?;
        guest.arrival.follows(following.memory());
        self.following = Some(following);
        Ok(())
    }

    /// Commit is here: the guest is this end's.
    pub(super) fn start(&mut self, guest: &mut Incoming, paused_for: Duration) {
        let committed = Instant::now();
        self.times.commit(committed, paused_for);
        if !self.shared.machine().may_run() {
            return; // Given up between Commit and here; the end follows.
        }
        match self.resume_guest(guest) {
            Ok(()) => {
                self.times.run(committed);
                self.shared.feed(|machine| machine.running(Instant::now()));
                self.is_running = true;
                if let Some(following) = &mut self.following {
                    following.begin_to_wait();
                }
                self.complete();
            }
            Err(error) => self.give_up_unless(Err(error.into())),
        }
    }

    /// Resumes the guest. In post-copy that may have to wait for pages, and the source may come and go meanwhile.
    fn resume_guest(&mut self, guest: &mut Incoming) -> Result<(), GuestError> {
        if self.following.is_none() {
            return guest.arrival.guest().resume();
        }
        let (done, resumed) = bounded(1);
        std::thread::scope(|scope| {
            let arrival = &mut guest.arrival;
            scope.spawn(move || {
                // The other end is held until this has come.
                let _ = done.send(arrival.guest().resume());
            });
            loop {
                let events = self.events.clone();
                select! {
                    recv(resumed) -> result => return result.unwrap_or_else(|_| Err(GuestError::new("resume", "it panicked"))),
                    recv(events) -> event => match event {
                        Ok(DestinationEvent::Interrupted { error }) => self.interrupted(&error),
                        Ok(DestinationEvent::Resume { generation }) => self.resumed(generation),
                        // A session that is starting the guest ends only when that has failed.
                        Ok(other) => tracing::warn!(?other, "out of place while the guest is resumed"),
                        Err(_) => return resumed.recv().unwrap_or_else(|_| Err(GuestError::new("resume", "it panicked"))),
                    },
                    recv(self.reported) -> report => if let Ok(BulkReport::Broken { generation, error }) = report {
                        self.broken(generation, &error);
                    },
                    default(IDLE) => {}
                }
                self.tell_if_overdue();
            }
        })
    }
}

impl Finish {
    /// Whether everything has come that comes before Commit.
    fn has_arrived(&self, ledger: &Ledger) -> bool {
        ledger.has_reached(&self.totals) && (self.missing.is_none() || ledger.all_switched())
    }
}
