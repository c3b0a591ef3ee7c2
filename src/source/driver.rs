//! One migration from beginning to end: connect, run the phases, and see to it that the guest is somewhere afterwards.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::connect::{Attached, Request};
use super::dial::Dial;
use super::event::{Event, Phase};
use super::fleet::Allotment;
use super::follow::Followed;
use super::hold::Hold;
use super::outcome::{Completed, Failure, InDoubt, Stranded, left_by};
use super::post_copy::GivenAway;
use super::pre_copy::LastRound;
use super::pump::Pump;
use super::session::{Session, Terms, part};
use super::standing::Standing;
use super::tracking::Tracking;
use super::worker::Live;
use super::{AtPause, Migration, Observer, Outgoing, Steering};
use crate::bitmap::PageBitmap;
use crate::dirty::DirtyTracker;
use crate::error::Error;
use crate::memory::GuestMemory;
use crate::policy::Decision;
use crate::protocol::Timeouts;
use crate::stats::{GuestOwner, Outcome, Report};
use crate::wire::FrameWriter;

/// The phases' shared state. They are its verbs, each in a file of its own: `connect`, `pre_copy`, `hand_over`, `switch` and
/// `give_away`.
pub(super) struct Driver<'d> {
    pub(super) memory: &'d GuestMemory,
    pub(super) tracker: &'d mut dyn DirtyTracker,
    pub(super) hold: Hold<'d>,
    pub(super) steering: &'d Steering,
    pub(super) observer: Observer<'d>,
    pub(super) at_pause: Option<AtPause<'d>>,
    pub(super) report: Report,
    pub(super) started: Instant,
    /// The time for pre-copy that was over when the policy let the guest run on.
    pub(super) outlived: Option<Duration>,
    pub(super) timeouts: Timeouts,
    pub(super) standing: Standing,
    /// How to reach the destination again, once it is known.
    pub(super) dial: Option<Dial>,
    /// Where the session was when it failed; none for a Unix socket.
    address: Option<SocketAddr>,
    stranded: Option<Stranded>,
}

/// How pre-copy ended.
enum Moved {
    /// The guest has changed hands with all of its memory.
    Whole,
    /// It is about to, and the rest follows.
    Switched(Box<Switched>),
}

/// A guest about to change hands ahead of its memory.
struct Switched {
    pump: Pump,
    terms: Terms,
    last: LastRound,
    missing: PageBitmap,
    /// What the workers remember of pages, up to hundreds of mebibytes: letting go of it takes longer than all else, and is
    /// for when no guest waits.
    spent: Vec<FrameWriter>,
}

/// Runs a migration.
pub(super) fn run(migration: Migration<'_>, outgoing: Outgoing<'_>) -> Result<Completed, Box<Failure>> {
    let Migration { route, channels, compression, delta_cache, timeouts, steering, fleet, observer, at_pause } = migration;
    let Outgoing { guest, memory, tracker, kind, description } = outgoing;
    let request = Request { route, channels, kind, description, compression, delta_cache };
    let mut report = Report::new();
    report.tracker = Some(tracker.kind().name().to_owned());
    let mut driver = Driver {
        memory,
        tracker,
        hold: Hold::new(guest),
        steering: &steering,
        observer,
        at_pause,
        report,
        started: Instant::now(),
        timeouts,
        outlived: None,
        standing: Standing::of(fleet.map(|fleet| fleet.enrol())),
        dial: None,
        address: None,
        stranded: None,
    };
    let result = driver.migrate(request);
    let (dial, address, stranded) = (driver.dial.take(), driver.address, driver.stranded.take());
    let report = driver.conclude(&result);
    match result {
        Ok(()) => Ok(Completed { report }),
        Err(error) => {
            let owner = report.guest_owner;
            let in_doubt = dial.filter(|_| owner == GuestOwner::InDoubt && stranded.is_none()).map(|Dial { route, session, token, .. }| InDoubt {
                route,
                address,
                session,
                token,
            });
            Err(Box::new(Failure { error, owner, report, in_doubt, stranded }))
        }
    }
}

impl<'d> Driver<'d> {
    fn migrate(&mut self, request: Request) -> Result<(), Error> {
        let (pump, attached) = self.connect(request)?;
        let lanes = attached.lanes();
        match self.copy(pump, attached)? {
            Moved::Whole => Ok(()),
            Moved::Switched(switched) => {
                let Switched { pump, terms, last, missing, spent: _spent } = *switched;
                let (steering, member, started) = (self.steering.clone(), self.standing.member().cloned(), self.started);
                let given = GivenAway { pump, terms, missing, hot: last.hot, steering, member, started };
                let lanes = lanes.expect("attached where post-copy is possible");
                match self.give_away(&given, lanes, last.downtime) {
                    Followed::Completed => Ok(()),
                    Followed::TakenBack(error) => Err(error),
                    Followed::Stranded(error) => {
                        self.stranded = Some(Stranded::new(given));
                        Err(error)
                    }
                }
            }
        }
    }

    /// Pre-copy and, if it comes to that, the handover; or all that comes before giving the guest away in post-copy.
    fn copy(&mut self, pump: Pump, attached: Attached) -> Result<Moved, Error> {
        let Attached { terms, bulk, round_trip, tracking, .. } = attached;
        let live = Live::default();
        std::thread::scope(|scope| {
            let workers = self.start_workers(scope, &live, bulk, &terms)?;
            let session = Session { pump, workers, terms, round_trip };
            match self.copy_in(&session, tracking) {
                Ok(None) => Ok(Moved::Whole),
                Ok(Some((last, missing))) => {
                    let Session { pump, workers, terms, .. } = session;
                    let spent = workers.end();
                    Ok(Moved::Switched(Box::new(Switched { pump, terms, last, missing, spent })))
                }
                Err(error) => Err(self.give_up(session, error)),
            }
        })
    }

    /// The same in a session; what is missing if post-copy follows.
    fn copy_in(&mut self, session: &Session<'_>, tracking: Option<Tracking>) -> Result<Option<(LastRound, PageBitmap)>, Error> {
        let mut last = self.pre_copy(session, tracking)?;
        if last.verdict.decision != Decision::PostCopy {
            return self.hand_over(session, last).map(|()| None);
        }
        let missing = self.missing(&last.remainder, session.terms.granule);
        self.switch(session, &mut last, &missing)?;
        Ok(Some((last, missing)))
    }

    /// Something went wrong before the guest changed hands (or it is in doubt): the guest first, then everything else.
    fn give_up(&mut self, session: Session<'_>, error: Error) -> Error {
        self.hold.lift_throttle();
        if let Err(resume) = self.hold.resume() {
            tracing::error!(error = %resume, "the guest could not be resumed at the source");
        }
        self.standing.leave_last_round();
        session.workers.halt();
        self.count_cut_round(&session);
        self.address = session.pump.address();
        let error = part(&session.pump, error);
        // Ends the workers and waits for the session's last message.
        drop(session);
        error
    }

    /// Has the report tell of what went in a round that did not come to its end.
    fn count_cut_round(&mut self, session: &Session<'_>) {
        let (report, written) = (&mut self.report, session.workers.written());
        if written > report.rounds.iter().map(|round| round.wire_bytes).sum() {
            report.wire_bytes = written;
            report.pages_transferred = session.workers.sent() + report.rounds.iter().map(|round| round.pages).sum();
        }
    }

    /// Ends tracking and completes the report.
    fn conclude(mut self, result: &Result<(), Error>) -> Report {
        // Every way out of the phases has resumed or released the guest; this is for the ways before them.
        let stuck = self.hold.end().err().map(Error::from);
        let mut report = std::mem::take(&mut self.report);
        // Where the guest has gone, the migration ended when the destination let go of the source; see `commit`.
        if result.is_err() {
            report.total = self.started.elapsed();
        }
        report.stall = self.hold.stalled();
        report.throttle = self.hold.throttle_report();
        (report.outcome, report.guest_owner) = match result {
            Ok(()) => {
                report.compare_prediction();
                (Outcome::Completed, GuestOwner::Destination)
            }
            Err(error) => left_by(error),
        };
        let ended = if report.guest_owner == GuestOwner::Destination { self.tracker.guest_left() } else { self.tracker.stop() };
        if let Err(error) = ended {
            tracing::warn!(%error, "tracking could not be ended");
        }
        if let Err(error) = result {
            report.reason = error.in_full();
        }
        if let Some(stuck) = stuck {
            report.reason = format!("{}; and the guest could not be resumed: {}", report.reason, stuck.in_full());
        }
        report
    }

    /// The migration's part of processors and link.
    pub(super) fn allotment(&self) -> Allotment<'d> {
        Allotment::new(self.steering.pacer(), self.standing.member().cloned())
    }

    pub(super) fn phase(&mut self, phase: Phase) {
        tracing::info!(?phase, "migration");
        (self.observer)(&Event::Phase(phase));
    }
}
