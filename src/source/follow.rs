//! Serving the rest of a guest's memory after it was given away.
//!
//! The source keeps the memory, paused, until Complete. When a connection breaks both ends keep what they have: the pump
//! reconnects, the destination says what has arrived, and a new *generation* of lanes serves what is left.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use crossbeam::channel::{Sender, bounded, never, select, tick};

use super::event::{Event, Phase};
use super::fleet::Allotment;
use super::meter::Meter;
use super::post_copy::GivenAway;
use super::pump::{Command, Ended};
use super::push::{Counters, Lanes, Prepaging, Service, Serving, serve};
use super::session::session_error;
use super::{Observer, PROGRESS_EVERY};
use crate::bitmap::PageBitmap;
use crate::error::Error;
use crate::memory::GuestMemory;
use crate::protocol::{ProtocolError, SourceEnd, SourceEvent};
use crate::stats::{GuestOwner, PostCopyReport, Report, RoundKind, RoundReport};
use crate::units::{ByteCount, PageCount};

/// How serving the rest ended for the time being.
#[derive(Debug)]
pub(super) enum Followed {
    /// Everything has arrived.
    Completed,
    /// The destination never ran the guest and never will.
    TakenBack(Error),
    /// There is no connection and no more time to make one. The memory is still needed.
    Stranded(Error),
}

/// When the guest ran, as the source saw it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Times {
    pub(super) running: Option<Instant>,
    pub(super) ended: Option<Instant>,
}

/// Serves what is missing, generation by generation.
pub(super) struct Follow<'f, 'o> {
    given: &'f GivenAway,
    memory: &'f GuestMemory,
    counters: &'f Counters,
    observer: &'f mut Observer<'o>,
    report: &'f mut Report,
    times: Times,
    trouble: Trouble,
    /// Of the lanes.
    generation: u32,
    /// Dropped once the guest runs: see [`serve`].
    start: Option<Sender<Infallible>>,
}

/// Broken connections.
#[derive(Clone, Copy, Debug, Default)]
struct Trouble {
    since: Option<Instant>,
    attempts: u32,
    recoveries: u32,
    total: Duration,
}

/// What ended a generation, or the wait for one.
enum Next {
    /// The connections are gone.
    Interrupted,
    /// The destination says what it has, for this generation.
    Recovered { generation: u32, arrived: PageBitmap },
    /// The session is over.
    Ended(Option<Ended>),
    /// There is no more time to reconnect.
    Stranded(Error),
}

impl<'f, 'o> Follow<'f, 'o> {
    /// Of a guest whose `memory` is as it was at the pause. `counters` and `report` are of this attempt and of all.
    pub(super) fn new(
        given: &'f GivenAway,
        memory: &'f GuestMemory,
        counters: &'f Counters,
        observer: &'f mut Observer<'o>,
        report: &'f mut Report,
    ) -> Self {
        Self { given, memory, counters, observer, report, times: Times::default(), trouble: Trouble::default(), generation: 0, start: None }
    }

    /// When the guest ran, as far as it did.
    pub(super) fn times(&self) -> Times {
        self.times
    }

    /// Until everything has arrived or nothing more can be done. Begins with `lanes`, or with their recovery.
    pub(super) fn run(&mut self, mut lanes: Option<Lanes>) -> Followed {
        let mut missing = self.given.missing.clone();
        loop {
            let next = match lanes.take() {
                Some(lanes) => self.serve(&missing, lanes),
                None => self.wait(),
            };
            match next {
                Next::Interrupted => {}
                Next::Recovered { generation, arrived } => {
                    missing.clone_from(&self.given.missing);
                    missing.subtract(&arrived);
                    self.generation = generation;
                    match self.given.terms.dial.lanes(&self.given.pump, self.given.terms.channels, generation) {
                        Ok(attached) => {
                            self.given.pump.command(Command::Reattached { generation });
                            self.recovered(missing.count());
                            lanes = Some(attached);
                        }
                        Err(error) => {
                            tracing::warn!(error = error.in_full(), "the lanes could not be attached again");
                            self.given.pump.command(Command::Interrupt { generation: self.generation });
                        }
                    }
                }
                Next::Ended(ended) => return self.ended(ended),
                Next::Stranded(error) => return Followed::Stranded(error),
            }
        }
    }

    /// One generation.
    fn serve(&mut self, missing: &PageBitmap, lanes: Lanes) -> Next {
        let service = Service {
            memory: self.memory,
            allotment: Allotment::new(self.given.steering.pacer(), self.given.member.clone()),
            compression: self.given.terms.compression,
            encoder: self.given.terms.encoder.clone(),
            granule: self.given.terms.granule,
            prepaging: Prepaging::default(),
            counters: self.counters,
        };
        let (start, started) = bounded(0);
        self.start = Some(start).filter(|_| self.times.running.is_none());
        std::thread::scope(|scope| match serve(scope, service, missing, self.given.hot.clone(), lanes, &started) {
            Ok(serving) => {
                let next = self.watch(&serving);
                serving.stop();
                next
            }
            Err(error) => {
                tracing::warn!(error = error.in_full(), "the rest of memory cannot be served yet");
                self.given.pump.command(Command::Interrupt { generation: self.generation });
                Next::Interrupted
            }
        })
    }

    /// Watches over a generation.
    fn watch(&mut self, serving: &Serving<'_, '_>) -> Next {
        let mut broken = serving.broken().clone();
        let ticker = tick(PROGRESS_EVERY);
        let mut meter = Meter::from(self.bytes());
        loop {
            select! {
                recv(self.given.pump.events()) -> event => match event {
                    Ok(SourceEvent::Interrupted { error }) => {
                        self.interrupted(serving.left(), &error);
                        return Next::Interrupted;
                    }
                    Ok(event) => if let Some(next) = self.event(event) { return next },
                    Err(_) => return Next::Ended(self.given.pump.ended().recv().ok()),
                },
                recv(self.given.pump.ended()) -> ended => return Next::Ended(ended.ok()),
                recv(self.given.steering.letting_go()) -> _ => self.let_go(),
                recv(broken) -> error => {
                    if let Ok(error) = error {
                        tracing::warn!(error = error.in_full(), "a lane is of no more use");
                        self.given.pump.command(Command::Interrupt { generation: self.generation });
                    }
                    broken = never();
                }
                recv(ticker) -> _ => {
                    let event = self.progress(&mut meter, serving.left());
                    (self.observer)(&event);
                }
            }
        }
    }

    /// Waits for a connection.
    fn wait(&mut self) -> Next {
        loop {
            select! {
                recv(self.given.pump.events()) -> event => match event {
                    Ok(event) => if let Some(next) = self.event(event) { return next },
                    Err(_) => return Next::Ended(self.given.pump.ended().recv().ok()),
                },
                recv(self.given.pump.ended()) -> ended => return Next::Ended(ended.ok()),
                recv(self.given.steering.letting_go()) -> _ => self.let_go(),
            }
        }
    }

    /// The session says how it ends then.
    fn let_go(&self) {
        self.given.pump.command(Command::LetGo { reason: "the rest of memory is given up".into() });
    }

    /// What the session tells, whether or not pages are being served.
    fn event(&mut self, event: SourceEvent) -> Option<Next> {
        match event {
            SourceEvent::Running => {
                self.times.running = Some(Instant::now());
                self.start = None;
                (self.observer)(&Event::Phase(Phase::PostCopy));
                None
            }
            SourceEvent::Reconnect => {
                self.trouble.attempts += 1;
                let since = *self.trouble.since.get_or_insert_with(Instant::now);
                (self.observer)(&Event::Recovering { interrupted: since.elapsed(), attempts: self.trouble.attempts });
                None
            }
            SourceEvent::Interrupted { .. } => Some(Next::Interrupted),
            SourceEvent::Recovered { generation, arrived } => Some(Next::Recovered { generation, arrived }),
            SourceEvent::Ended(SourceEnd::InDoubt { error }) => Some(Next::Stranded(Error::InDoubt(error))),
            SourceEvent::Ended(SourceEnd::Stranded { error }) => Some(Next::Stranded(Error::Stranded(error))),
            _ => None,
        }
    }

    fn ended(&mut self, ended: Option<Ended>) -> Followed {
        self.times.ended = Some(Instant::now());
        match ended {
            Some(Ended { end: SourceEnd::Completed, .. }) => Followed::Completed,
            Some(ended) if ended.owner == GuestOwner::Source => Followed::TakenBack(session_error(Some(ended))),
            // A pump that died without a word proves nothing about the destination.
            _ => Followed::Stranded(Error::InDoubt(ProtocolError::Closed { state: "serving the rest of memory" })),
        }
    }

    fn interrupted(&mut self, left: PageCount, error: &ProtocolError) {
        self.trouble.since = Some(Instant::now());
        self.trouble.attempts = 0;
        (self.observer)(&Event::Interrupted { pages_left: left, error: error.to_string() });
    }

    fn recovered(&mut self, left: PageCount) {
        let interrupted = self.trouble.since.take().map_or(Duration::ZERO, |since| since.elapsed());
        self.trouble.total += interrupted;
        self.trouble.recoveries += 1;
        (self.observer)(&Event::Recovered { interrupted, pages_left: left });
    }

    fn bytes(&self) -> ByteCount {
        let pushed = self.counters.pushed();
        self.report.wire_bytes + pushed.urgent.bytes + pushed.bulk.bytes
    }

    fn progress(&self, meter: &mut Meter, left: PageCount) -> Event {
        let bytes = self.bytes();
        let rate = meter.rate(bytes);
        let pushed = self.counters.pushed();
        Event::Following {
            bytes,
            rate,
            pages: self.given.missing.count(),
            pages_left: left,
            requests: pushed.requests,
            urgent_pages: pushed.urgent.pages,
        }
    }

    /// Puts what happened into the report, and adds it to what an attempt before this one has left there.
    pub(super) fn fill(&mut self, began: Option<Instant>) {
        let pushed = self.counters.pushed();
        let (pages, bytes) = (pushed.urgent.pages + pushed.bulk.pages, pushed.urgent.bytes + pushed.bulk.bytes);
        let report = &mut *self.report;
        let post_copy = report.post_copy.get_or_insert_with(|| PostCopyReport::of(self.given.missing.count()));
        post_copy.urgent_pages += pushed.urgent.pages;
        post_copy.bulk_pages += pushed.bulk.pages;
        *post_copy.requests.get_or_insert(0) += pushed.requests;
        post_copy.recoveries += self.trouble.recoveries;
        post_copy.interrupted += self.trouble.total + self.trouble.since.map_or(Duration::ZERO, |since| since.elapsed());
        report.pages_transferred += pages;
        report.wire_bytes += bytes;
        report.pages_by_encoding += self.counters.encodings();
        let duration = began.map_or(Duration::ZERO, |began| began.elapsed());
        if let Some(round) = report.rounds.last_mut().filter(|round| round.kind == RoundKind::PostCopy) {
            round.pages += pages;
            round.wire_bytes += bytes;
            round.duration += duration;
            return;
        }
        // With what ended the rounds before it.
        let before: ByteCount = report.rounds.iter().map(|round| round.wire_bytes).sum();
        report.rounds.push(RoundReport {
            index: u32::try_from(report.rounds.len()).unwrap_or(u32::MAX),
            kind: RoundKind::PostCopy,
            pages,
            wire_bytes: ByteCount(report.wire_bytes.0 - before.0),
            duration,
            dirty_after: None,
            decision: None,
        });
    }
}
