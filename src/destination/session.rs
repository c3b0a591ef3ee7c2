//! One session at the destination: from an offer to a running guest, or to nothing.
//!
//! Two threads: the [pump](super::pump) drives the protocol machine; this one builds the guest, collects what the bulk workers
//! report, loads and resumes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, bounded, select, unbounded};

use super::admission::{Arrival, Ending, Placed, Refusal};
use super::blame::dropped_for;
use super::budget::Reservation;
use super::bulk::BulkReport;
use super::door::TurnedAway;
use super::following::{Following, Stale, post_copy_for};
use super::hub::Hub;
use super::ledger::Ledger;
use super::pump::Pump;
use super::registry::NotBegun;
use super::shared::{Arriving, Opener, Shared};
use super::standstill::Standstill;
use crate::bitmap::PageBitmap;
use crate::control::{Connection, MessageReader};
use crate::error::Error;
use crate::guest::GuestError;
use crate::memory::{GuestMemory, HostSupply};
use crate::page::{Codecs, PageKey};
use crate::protocol::{DestinationEnd, DestinationEvent, ProtocolError};
use crate::stats::{DowntimeParts, GuestOwner, Laps, Outcome, Report};
use crate::sys::priority::{self, Prompt};
use crate::wire::{ChannelTotals, Features, MAX_CHANNELS, Message, Offer, RefuseReason};

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
    let connection = Connection::new(reader);
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
        started,
        ledger: Ledger::default(),
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

struct Session<'s> {
    hub: &'s Hub,
    offer: &'s Offer,
    shared: &'s Arc<Shared>,
    events: Receiver<DestinationEvent>,
    reported: Receiver<BulkReport>,
    started: Instant,
    ledger: Ledger,
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

/// Memory that pages come to for the first time. Once this goes, all of it can be touched again, by whoever: before the guest
/// runs or the embedder sees it, and also when the session fails or panics.
struct Supplied {
    supply: Arc<HostSupply>,
    memory: Arc<GuestMemory>,
}

impl Drop for Supplied {
    fn drop(&mut self) {
        self.supply.end(&self.memory);
    }
}

/// What the source has sent before Commit.
struct Finish {
    totals: Vec<ChannelTotals>,
    state: Vec<u8>,
    missing: Option<PageBitmap>,
}

/// A guest on its way in.
struct Guest {
    arrival: Box<dyn Arrival>,
    reservation: Reservation,
}

/// The guest's times, as far as they have come.
#[derive(Default)]
struct Times {
    paused_at: Option<Instant>,
    running_at: Option<Instant>,
    parts: DowntimeParts,
}

impl Session<'_> {
    fn serve(mut self) -> Result<(), Error> {
        let offer = self.offer;
        let Some(DestinationEvent::Offered(_)) = self.events.recv().ok() else {
            return Ok(()); // An offer that makes no sense; the machine has answered.
        };
        let channels = offer.channels;
        self.ledger.expect_channels(channels);
        let mut guest = match self.admit(offer) {
            Ok(guest) => guest,
            Err(refusal) => {
                tracing::info!(reason = %refusal.reason, detail = refusal.detail, "an offer was refused");
                self.shared.feed(|machine| machine.refuse(Instant::now(), refusal.reason, refusal.detail.clone()));
                self.hub.factory.refused(offer, &refusal);
                return Ok(());
            }
        };
        let codecs = offer.codecs.and(Codecs::built_in());
        let memory = guest.arrival.memory();
        let (features, granule) = post_copy_for(offer, &memory);
        let post_copy = features.contains(Features::POST_COPY);
        let supply = Arc::clone(&self.hub.supply);
        self.supplied = Some(Supplied { supply: Arc::clone(&supply), memory: Arc::clone(&memory) });
        let arriving = Arriving { memory, channels, codecs, key: PageKey::derive(&offer.token.0), post_copy, supply };
        assert!(self.shared.arrival.set(arriving).is_ok(), "one offer in a session");
        self.shared.feed(|machine| machine.accept(Instant::now(), channels, codecs, features, granule));
        let mut times = Times::default();
        let result = self.receive(&mut guest, &mut times);
        self.supplied = None;
        let report = self.report(&times, &result);
        let ending = match result {
            Ok(()) => Ending::Completed { report },
            Err(error) => Ending::Dropped { error, report },
        };
        self.prompt = None;
        guest.arrival.ended(ending);
        Ok(())
    }

    /// Reserves what the guest needs and has it built.
    fn admit(&self, offer: &Offer) -> Result<Guest, Refusal> {
        let factory = &self.hub.factory;
        let backing = factory.backing(offer);
        let _alone = self.hub.budget.mapping(backing);
        let reservation = self.hub.budget.reserve(&offer.layout, backing)?;
        let arrival = factory.admit(offer)?;
        if arrival.memory().layout() != &offer.layout {
            return Err(Refusal::new(RefuseReason::Layout, "the guest that was described has another memory layout here than the one announced"));
        }
        reservation.is_for(&arrival.memory());
        Ok(Guest { arrival, reservation })
    }

    /// From Accept to the end; the guest runs here if it is `Ok`.
    fn receive(&mut self, guest: &mut Guest, times: &mut Times) -> Result<(), Error> {
        let mut fault: Option<Error> = None;
        let mut stale: Option<Stale> = None;
        let mut finish: Option<Finish> = None;
        // A connection that broke: its reason may come on the control connection any moment.
        let mut grace: Option<Instant> = None;
        let mut standstill = Standstill::new(self.hub.options.limits.standstill);
        loop {
            let wait = grace.map_or(IDLE, |until| until.saturating_duration_since(Instant::now()));
            let events = self.events.clone();
            select! {
                recv(events) -> event => match event {
                    Ok(DestinationEvent::Stale { totals, pages }) => stale = Some(Stale { totals, pages }),
                    Ok(DestinationEvent::Finish { totals, state, missing }) => finish = Some(Finish { totals, state, missing }),
                    Ok(DestinationEvent::Run { paused_for }) => self.start(guest, times, paused_for, &mut fault),
                    Ok(DestinationEvent::Ended(end)) => {
                        self.let_go(guest, &mut fault);
                        return self.end(end, fault);
                    }
                    Ok(DestinationEvent::Interrupted { error }) => self.interrupted(&error),
                    Ok(DestinationEvent::Resume { generation }) => self.resumed(generation),
                    Ok(DestinationEvent::Offered(_)) | Err(_) => return Err(fault.unwrap_or(Error::Cancelled)),
                },
                recv(self.reported) -> report => match report.expect("the session holds a sender itself") {
                    BulkReport::RoundEnd { channel, totals, encodings } => self.ledger.round_end(channel, totals, encodings),
                    BulkReport::Switched { channel, totals, encodings } => self.ledger.switched(channel, totals, encodings),
                    BulkReport::Broken { generation, error } => self.broken(generation, &error),
                    BulkReport::Complete => self.complete(),
                    BulkReport::Stopped { channel, totals, error } => {
                        self.ledger.stopped(channel, totals);
                        if let Error::Transport(_) = error {
                            fault.get_or_insert(error);
                            grace.get_or_insert(Instant::now() + LAST_WORDS);
                        } else {
                            // Says more than that another lane was lost.
                            fault = fault.filter(|kept| !matches!(kept, Error::Transport(_))).or(Some(error));
                            self.fail(fault.as_ref());
                        }
                    }
                },
                default(wait) => if grace.is_some_and(|until| Instant::now() >= until) {
                    grace = None;
                    self.fail(fault.as_ref());
                },
            }
            let stuck = standstill.look(Instant::now(), self.shared.arrived.now().0);
            if let Some(error) = stuck.filter(|_| !self.shared.machine().may_run())
                && self.fail(Some(&error))
            {
                fault = Some(error);
            }
            self.tell_if_overdue();
            if let Some(stale) = stale.take_if(|stale| fault.is_none() && self.ledger.has_reached(&stale.totals))
                && let Err(error) = self.take_out(guest, stale)
            {
                self.fail(Some(&error));
                fault = Some(error);
            }
            if let Some(finish) = finish.take_if(|finish| fault.is_none() && self.has_all(finish))
                && let Err(error) = self.settle(guest, finish, &mut times.parts)
            {
                self.fail(Some(&error));
                fault = Some(error);
            }
        }
    }

    /// Everything has arrived after which pages can be taken out that will be missing in any case.
    fn take_out(&mut self, guest: &Guest, stale: Stale) -> Result<(), Error> {
        self.supplied = None;
        let memory = guest.arrival.memory();
        guest.reservation.shrinks();
        stale.take_out(&memory, &self.ledger)?;
        guest.reservation.has_shrunk(&memory);
        self.empty = Some(stale.pages);
        self.shared.feed(|machine| machine.discarded(Instant::now()));
        Ok(())
    }

    /// Whether everything has come that comes before Commit.
    fn has_all(&self, finish: &Finish) -> bool {
        self.ledger.has_reached(&finish.totals) && (finish.missing.is_none() || self.ledger.all_switched())
    }

    /// Everything has arrived that comes before Commit: closes the way into memory, checks, loads, and says so.
    fn settle(&mut self, guest: &mut Guest, finish: Finish, parts: &mut DowntimeParts) -> Result<(), Error> {
        let Finish { totals, state, missing } = finish;
        let mut laps = Laps::from(Instant::now());
        match missing {
            None => {
                // From here on nothing a peer sends can reach the memory.
                self.shared.close_lanes();
                // Before waiting for the lanes: nor can one of them wait for a page then.
                self.supplied = None;
                while !self.ledger.all_stopped() {
                    match self.reported.recv().expect("the session holds a sender itself") {
                        BulkReport::Stopped { channel, totals, .. } => self.ledger.stopped(channel, totals),
                        BulkReport::RoundEnd { channel, totals, encodings } => self.ledger.round_end(channel, totals, encodings),
                        BulkReport::Switched { channel, totals, encodings } => self.ledger.switched(channel, totals, encodings),
                        BulkReport::Broken { .. } | BulkReport::Complete => {}
                    }
                }
                self.ledger.check(&totals)?;
                guest.arrival.placed(Placed::Paused).map_err(Error::AtPause)?;
            }
            Some(missing) => {
                self.ledger.check(&totals)?;
                self.supplied = None;
                let memory = guest.arrival.memory();
                guest.reservation.shrinks();
                let following = Following::begin(self.shared, Arc::clone(&memory), &missing, self.empty.as_ref())?;
                guest.reservation.has_shrunk(&memory);
                guest.arrival.follows(following.memory());
                self.following = Some(following);
            }
        }
        parts.settle = laps.end(Instant::now());
        guest.arrival.guest().load_state(&state)?;
        parts.load = laps.end(Instant::now());
        self.shared.feed(|machine| machine.ready(Instant::now()));
        Ok(())
    }

    /// Commit is here: the guest is this end's.
    fn start(&mut self, guest: &mut Guest, times: &mut Times, paused_for: Duration, fault: &mut Option<Error>) {
        let committed = Instant::now();
        times.paused_at = Some(committed.checked_sub(paused_for).unwrap_or(self.started));
        if !self.shared.machine().may_run() {
            return; // Given up between Commit and here; the end follows.
        }
        match self.resume_guest(guest) {
            Ok(()) => {
                let running_at = Instant::now();
                times.running_at = Some(running_at);
                times.parts.resume = Some(running_at - committed);
                self.shared.feed(|machine| machine.running(Instant::now()));
                self.is_running = true;
                self.complete();
            }
            Err(error) => {
                let error = Error::from(error);
                self.fail(Some(&error));
                *fault = Some(error);
            }
        }
    }

    /// Resumes the guest. In post-copy that may have to wait for pages, and the source may come and go meanwhile.
    fn resume_guest(&mut self, guest: &mut Guest) -> Result<(), GuestError> {
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

    /// A source that has not come back for too long, while the guest runs or is still being resumed.
    fn tell_if_overdue(&mut self) {
        let patience = self.hub.options.timeouts.recover;
        if let Some(left) = self.following.as_mut().and_then(|following| following.overdue(patience)) {
            self.hub.factory.waits(self.offer, left);
        }
    }

    /// A lane broke.
    fn broken(&mut self, generation: u32, error: &Error) {
        match error {
            Error::Transport(_) => tracing::debug!(generation, error = error.in_full(), "a lane has ended"),
            // The peer's fault, or this host's: whoever looks for it later needs to know which page it was.
            _ => tracing::warn!(generation, error = error.in_full(), "a lane is given up"),
        }
        self.shared.feed(|machine| machine.interrupt(Instant::now(), generation));
    }

    /// The connections are of no more use: everything stays as it is until the source comes back.
    fn interrupted(&mut self, error: &ProtocolError) {
        // Why a connection was lost says more than that it was.
        let cause = if matches!(error, ProtocolError::Closed { .. }) { self.shared.take_cause() } else { None };
        let error = cause.unwrap_or_else(|| error.clone().into());
        tracing::warn!(error = error.in_full(), "the connections are lost; the guest's memory is kept as it is");
        if let Some(following) = &mut self.following {
            following.interrupt(self.shared);
        }
    }

    /// The source is back: says what has arrived.
    fn resumed(&mut self, generation: u32) {
        if let Some(following) = &mut self.following {
            let arrived = following.resume(self.shared, generation);
            self.shared.feed(|machine| {
                self.shared.replace_connection(generation);
                machine.resumed(Instant::now(), generation, &arrived);
            });
        }
    }

    /// If all pages are there: nothing depends on the source any more.
    fn complete(&mut self) {
        if let Some(following) = &mut self.following
            && self.is_running
            && following.is_complete()
            && !following.is_finished()
        {
            following.finish();
            self.shared.feed(|machine| machine.complete(Instant::now()));
        }
    }

    /// After the end: where the guest has all its pages the embedder may look at them.
    fn let_go(&mut self, guest: &mut Guest, fault: &mut Option<Error>) {
        let Some(following) = &mut self.following else { return };
        self.shared.close_lanes();
        self.shared.await_lanes();
        if !following.is_finished() {
            following.abandon();
        } else if let Err(error) = guest.arrival.placed(Placed::Running) {
            fault.get_or_insert(Error::AtPause(error));
        }
    }

    /// Gives up because of `error`. Whether it was still possible.
    fn fail(&self, error: Option<&Error>) -> bool {
        let reason = error.map_or_else(|| "the session broke".to_owned(), Error::in_full);
        self.shared.feed(|machine| machine.fail(Instant::now(), reason))
    }

    fn end(&self, end: DestinationEnd, fault: Option<Error>) -> Result<(), Error> {
        match end {
            DestinationEnd::Completed { unconfirmed } => {
                if let Some(error) = unconfirmed {
                    tracing::warn!(%error, "the source is not known to know that the guest runs here");
                }
                Ok(())
            }
            DestinationEnd::Dropped { error } => Err(dropped_for(error, fault, self.shared.take_cause())),
            DestinationEnd::Refused => Err(Error::Cancelled),
        }
    }

    fn report(&self, times: &Times, result: &Result<(), Error>) -> Report {
        let now = Instant::now();
        let mut report = Report::new();
        report.total = now - self.started;
        self.ledger.fill(&mut report, result.is_ok());
        if let Some(following) = &self.following {
            following.fill(self.shared, &mut report);
        }
        if let Some(paused_at) = times.paused_at {
            report.preparation = paused_at.saturating_duration_since(self.started);
        }
        if let (Some(paused_at), Some(running_at)) = (times.paused_at, times.running_at) {
            report.downtime = running_at.saturating_duration_since(paused_at);
            report.resume = now - running_at;
            report.downtime_parts = Some(times.parts);
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
/// How long to wait for the source's reason after a connection broke.
const LAST_WORDS: Duration = Duration::from_millis(500);
