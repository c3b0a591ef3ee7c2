//! One session at the destination: from an offer to a running guest, or to nothing.
//!
//! Two threads: the [pump](super::pump) drives the protocol machine; this one builds the guest, collects what the bulk workers
//! report, loads and resumes.

mod fault;
mod handover;
mod incoming;
mod recovery;
mod times;

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, bounded, select, unbounded};

use self::fault::{Fault, dropped_for};
use self::handover::{Announced, Finish};
use self::incoming::{Incoming, Supplied};
use self::times::Times;
use super::admission::Ending;
use super::bulk::BulkReport;
use super::door::TurnedAway;
use super::following::{Following, Stale, post_copy_for};
use super::hub::Hub;
use super::ledger::Ledger;
use super::pump::Pump;
use super::registry::NotBegun;
use super::shared::{Arriving, Opener, Shared};
use super::standstill::Standstill;
use super::states;
use crate::bitmap::PageBitmap;
use crate::control::{Connection, MessageReader};
use crate::error::Error;
use crate::memory::GuestMemory;
use crate::page::{Codecs, PageKey};
use crate::protocol::{DestinationEnd, DestinationEvent, ProtocolError};
use crate::stats::{GuestOwner, Outcome, Report};
use crate::sys::priority::{self, Prompt};
use crate::wire::{Features, MAX_CHANNELS, Message, Offer, RefuseReason};

/// Serves the session that `hello` opens.
pub(super) fn run(hub: &Hub, reader: MessageReader, hello: Message, opener: Opener) -> Result<(), Error> {
    let started = Instant::now();
    let Message::Hello(offer) = &hello else { unreachable!("called with a Hello") };
    let offer = offer.clone();
    // Read as they come; while the session waits for its lanes to end there is room for what each has to say then.
    let (reports, reported) = bounded(4 * usize::from(MAX_CHANNELS));
    let shared = Arc::new(Shared::new(&hub.options.timeouts, reports, opener)?);
    if let Err(not_begun) = begin(hub, &offer, &shared) {
        let (detail, error) = match not_begun {
            NotBegun::Crowded(refusal) => (refusal.to_string(), Err(refusal.into())),
            NotBegun::Stopping(reason) => (reason, Ok(())),
            NotBegun::Served => ("this receiver takes no more sessions".into(), Ok(())),
            NotBegun::Taken => (KNOWN.into(), Err(TurnedAway::Stranger(KNOWN).into())),
        };
        return reader.writer().send(&Message::Refuse { reason: RefuseReason::Busy, detail }).and(error);
    }
    let _begun = Begun { hub, offer: &offer, shared: &shared };
    let mut connection = Connection::new(reader);
    connection.set_leave(states::leave(hub, &shared));
    shared.machine().handle_message(Instant::now(), hello);
    // A few events in the life of a session, and two more each time the source comes back.
    let (tell, events) = unbounded();
    let pump = Pump::start(Arc::clone(&shared), connection, tell)?;
    let served = Session {
        hub,
        offer: &offer,
        shared: &shared,
        events,
        reported,
        times: Times::since(started),
        ledger: Ledger::default(),
        announced: Announced::default(),
        fault: Fault::default(),
        supplied: None,
        empty: None,
        following: None,
        is_running: false,
        prompt: Some(priority::be_prompt()),
    }
    .serve();
    // The pump ends with the machine, and the machine has ended or is told to.
    shared.feed(|machine| machine.fail(Instant::now(), "the session was given up".into()));
    let _ = pump.join();
    served
}

/// A session under way: over when this goes, which it does as well when the embedder's code panics.
struct Begun<'s> {
    hub: &'s Hub,
    offer: &'s Offer,
    shared: &'s Shared,
}

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.shared.feed(|machine| machine.fail(Instant::now(), "the session broke".into()));
        }
        self.hub.registry.remove(self.offer.session, self.shared);
    }
}

/// Enters a session among those under way, and counts it.
fn begin(hub: &Hub, offer: &Offer, shared: &Arc<Shared>) -> Result<(), NotBegun> {
    hub.registry.add(offer.session, shared)?;
    if hub.begin() {
        return Ok(());
    }
    hub.registry.remove(offer.session, shared);
    Err(NotBegun::Served)
}

/// A session that has begun. What it does is an idea a file: see `handover` and `recovery`.
struct Session<'s> {
    hub: &'s Hub,
    offer: &'s Offer,
    shared: &'s Arc<Shared>,
    events: Receiver<DestinationEvent>,
    reported: Receiver<BulkReport>,
    times: Times,
    ledger: Ledger,
    announced: Announced,
    fault: Fault,
    /// While pages come for the first time.
    supplied: Option<Supplied>,
    /// On the way to post-copy: what is taken out of the memory already.
    empty: Option<PageBitmap>,
    /// In post-copy.
    following: Option<Following>,
    is_running: bool,
    /// Until the guest is the embedder's business only.
    prompt: Option<Prompt>,
}

impl Session<'_> {
    fn serve(mut self) -> Result<(), Error> {
        let Some(DestinationEvent::Offered(_)) = self.events.recv().ok() else {
            return Ok(()); // An offer that makes no sense; the machine has answered.
        };
        self.ledger.expect_channels(self.offer.channels);
        let mut guest = match Incoming::admit(self.hub, self.offer) {
            Ok(guest) => guest,
            Err(refusal) => {
                tracing::info!(reason = %refusal.reason, detail = refusal.detail, "an offer was refused");
                self.shared.feed(|machine| machine.refuse(Instant::now(), refusal.reason, refusal.detail.clone()));
                self.hub.factory.refused(self.offer, &refusal);
                return Ok(());
            }
        };
        self.accept(guest.arrival.memory());
        let result = self.receive(&mut guest);
        self.supplied = None;
        let report = self.report(&result);
        let ending = match result {
            Ok(()) => Ending::Completed { report },
            Err(error) => Ending::Dropped { error, report },
        };
        self.prompt = None;
        guest.arrival.ended(ending);
        Ok(())
    }

    /// Says yes to the offer: pages may come into `memory`.
    fn accept(&mut self, memory: Arc<GuestMemory>) {
        let offer = self.offer;
        let (channels, codecs) = (offer.channels, offer.codecs.and(Codecs::built_in()));
        let (features, granule) = post_copy_for(offer, &memory);
        let post_copy = features.contains(Features::POST_COPY);
        let supply = Arc::clone(&self.hub.supply);
        self.supplied = Some(Supplied { supply: Arc::clone(&supply), memory: Arc::clone(&memory) });
        let arriving = Arriving { memory, channels, codecs, key: PageKey::derive(&offer.token.0), post_copy, supply };
        assert!(self.shared.arrival.set(arriving).is_ok(), "one offer in a session");
        self.shared.feed(|machine| machine.accept(Instant::now(), channels, codecs, features, granule));
    }

    /// From Accept to the end; the guest runs here if it is `Ok`.
    fn receive(&mut self, guest: &mut Incoming) -> Result<(), Error> {
        let mut standstill = Standstill::new(self.hub.options.limits.standstill);
        loop {
            let (events, reported) = (self.events.clone(), self.reported.clone());
            select! {
                recv(events) -> event => if let ControlFlow::Break(end) = self.event(guest, event.ok()) { return end },
                recv(reported) -> report => self.bulk_report(report.expect("the session holds a sender itself")),
                default(self.fault.patience().unwrap_or(IDLE)) => if self.fault.has_waited() { self.fail(self.fault.reason()); },
            }
            let stuck = standstill.look(Instant::now(), self.shared.arrived.reads());
            if let Some(error) = stuck.filter(|_| !self.shared.machine().may_run())
                && self.fail(error.in_full())
            {
                self.fault.set(error);
            }
            self.tell_if_overdue();
            self.proceed(guest);
        }
    }

    /// What the protocol machine says; nothing if it never will again.
    fn event(&mut self, guest: &mut Incoming, event: Option<DestinationEvent>) -> ControlFlow<Result<(), Error>> {
        match event {
            Some(DestinationEvent::Stale { totals, pages }) => self.announced.stale = Some(Stale { totals, pages }),
            Some(DestinationEvent::Finish { totals, state, missing }) => self.announced.finish = Some(Finish { totals, state, missing }),
            Some(DestinationEvent::Run { paused_for }) => self.start(guest, paused_for),
            Some(DestinationEvent::Interrupted { error }) => self.interrupted(&error),
            Some(DestinationEvent::Resume { generation }) => self.resumed(generation),
            Some(DestinationEvent::Ended(end)) => {
                self.let_go(guest);
                return ControlFlow::Break(self.end(end));
            }
            Some(DestinationEvent::Offered(_)) | None => return ControlFlow::Break(Err(self.fault.take().unwrap_or(Error::Cancelled))),
        }
        ControlFlow::Continue(())
    }

    /// What a bulk worker says.
    fn bulk_report(&mut self, report: BulkReport) {
        self.ledger.enter(&report);
        match report {
            BulkReport::RoundEnd { .. } | BulkReport::Switched { .. } => {}
            BulkReport::Broken { generation, error } => self.broken(generation, &error),
            BulkReport::Complete => self.complete(),
            BulkReport::Stopped { error, .. } => {
                if self.fault.lane_stopped(error) {
                    self.fail(self.fault.reason());
                }
            }
        }
    }

    /// Gives up for this reason. Whether it was still possible.
    fn fail(&self, reason: String) -> bool {
        self.shared.feed(|machine| machine.fail(Instant::now(), reason))
    }

    /// Gives up if what was done has failed.
    fn give_up_unless(&mut self, done: Result<(), Error>) {
        if let Err(error) = done {
            self.fail(error.in_full());
            self.fault.set(error);
        }
    }

    fn end(&mut self, end: DestinationEnd) -> Result<(), Error> {
        match end {
            DestinationEnd::Completed { unconfirmed } => {
                if let Some(error) = unconfirmed {
                    tracing::warn!(%error, "the source is not known to know that the guest runs here");
                }
                Ok(())
            }
            DestinationEnd::Dropped { error } => Err(dropped_for(error, self.fault.take(), self.shared.take_cause())),
            DestinationEnd::Refused => Err(Error::Cancelled),
        }
    }

    fn report(&self, result: &Result<(), Error>) -> Report {
        let mut report = Report::new();
        self.times.fill(&mut report, Instant::now());
        self.ledger.fill(&mut report, result.is_ok());
        if let Some(following) = &self.following {
            following.fill(self.shared, &mut report);
        }
        match result {
            Ok(()) => {
                report.outcome = Outcome::Completed;
                report.guest_owner = GuestOwner::Destination;
            }
            Err(error) => {
                let called_off = matches!(error, Error::Protocol(ProtocolError::PeerGaveUp { .. }));
                report.outcome = if called_off { Outcome::Aborted } else { Outcome::Failed };
                report.reason = error.in_full();
            }
        }
        report
    }
}

/// No honest source names a session that is, or was, another's.
const KNOWN: &str = "a session of this name is known here already";
/// How long to wait when nothing is due.
const IDLE: Duration = Duration::from_secs(1);
