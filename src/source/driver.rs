//! One migration from beginning to end: connect, run the phases, and see to it that the guest is somewhere afterwards.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::{Scope, ScopedJoinHandle};
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Sender, bounded, select};

use super::dial::Dial;
use super::event::{Event, Phase};
use super::fleet::{Allotment, Berth, Member, Seat, Sending};
use super::follow::Followed;
use super::hold::Hold;
use super::outcome::{Completed, Failure, InDoubt, Stranded, left_by};
use super::post_copy::{GivenAway, Rest};
use super::pump::{Command, Ended, Pump};
use super::push::{Granule, Lanes};
use super::rounds::{LastRound, Tracking};
use super::worker::{Job, Live, Sent, Worker};
use super::{AtPause, Migration, Observer, Outgoing, Steering};
use crate::bitmap::PageBitmap;
use crate::dirty::DirtyTracker;
use crate::error::Error;
use crate::memory::GuestMemory;
use crate::page::{Codecs, Compression, DeltaCache, Encoder, EncoderSettings, PageKey};
use crate::policy::{Decision, PostCopy};
use crate::protocol::{ProtocolError, SourceEnd, SourceEvent, Timeouts};
use crate::stats::{GuestOwner, Outcome, Report};
use crate::transport::{Route, Stream, StreamControl};
use crate::units::ByteCount;
use crate::wire::{Features, FrameWriter, Lane, Offer, SessionId, Token};

/// The phases' shared state. `pre_copy` and `hand_over` are its verbs.
pub(super) struct Driver<'d> {
    pub(super) memory: &'d GuestMemory,
    pub(super) tracker: &'d mut dyn DirtyTracker,
    pub(super) hold: Hold<'d>,
    pub(super) steering: &'d Steering,
    pub(super) observer: Observer<'d>,
    pub(super) at_pause: Option<AtPause<'d>>,
    pub(super) report: Report,
    pub(super) started: Instant,
    pub(super) timeouts: Timeouts,
    /// The quickest answer that the destination gave.
    pub(super) round_trip: Duration,
    /// Whether the destination can run the guest before its memory is there.
    pub(super) can_post_copy: bool,
    /// Where it takes turns with others.
    pub(super) member: Option<Arc<Member>>,
    /// Among those of them that stand still, while it is there.
    pub(super) place: Option<Berth>,
    /// Among those of them that send, while it is there.
    pub(super) sending: Option<Sending>,
    /// In which it fills missing memory.
    pub(super) granule: Granule,
    dial: Option<Dial>,
    stranded: Option<Stranded>,
}

/// An established session: the control pump and the workers.
pub(super) struct Session<'s> {
    pub(super) pump: Pump,
    /// One bounded queue for each worker; dropping them ends the workers.
    pub(super) jobs: Vec<Sender<Job>>,
    pub(super) results: Receiver<Result<Sent, Error>>,
    pub(super) live: &'s Live,
    /// The workers' connections, to look at.
    pub(super) bulk: Vec<StreamControl>,
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
    last: LastRound,
    rest: Rest,
    /// What the workers remember of pages, up to hundreds of mebibytes: letting go of it takes longer than all else, and is
    /// for when no guest waits.
    spent: Vec<FrameWriter>,
}

/// What the destination says yes to.
struct Granted {
    channels: u16,
    codecs: Codecs,
    features: Features,
    granule: u16,
}

/// Runs a migration.
pub(super) fn run(migration: Migration<'_>, outgoing: Outgoing<'_>) -> Result<Completed, Box<Failure>> {
    let Migration { route, channels, compression, delta_cache, timeouts, steering, fleet, observer, at_pause } = migration;
    let Outgoing { guest, memory, tracker, kind, description } = outgoing;
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
        round_trip: Duration::MAX,
        can_post_copy: false,
        member: fleet.map(|fleet| fleet.enrol()),
        place: None,
        sending: None,
        granule: Granule::Page,
        dial: None,
        stranded: None,
    };
    let result = driver.migrate(&route, channels, GuestWords { kind, description }, Encoding { compression, delta_cache });
    let (dial, stranded) = (driver.dial.take(), driver.stranded.take());
    let report = driver.conclude(&result);
    match result {
        Ok(()) => Ok(Completed { report }),
        Err(error) => {
            let owner = report.guest_owner;
            let in_doubt = dial.filter(|_| owner == GuestOwner::InDoubt && stranded.is_none()).map(|Dial { route, session, token, .. }| InDoubt {
                route,
                session,
                token,
            });
            Err(Box::new(Failure { error, owner, report, in_doubt, stranded }))
        }
    }
}

/// What the guest is, in the words of its kind.
struct GuestWords {
    kind: String,
    description: String,
}

/// How the pages are to travel.
#[derive(Clone, Copy)]
struct Encoding {
    compression: Compression,
    delta_cache: DeltaCache,
}

impl Driver<'_> {
    fn migrate(&mut self, route: &Route, wanted: u16, words: GuestWords, encoding: Encoding) -> Result<(), Error> {
        if self.steering.cancelled().try_recv().is_ok() {
            return Err(Error::Cancelled);
        }
        self.phase(Phase::Connecting);
        let (session, token) = (SessionId(random()?), Token(random()?));
        let dial = Dial { route: route.clone(), session, token, timeout: self.timeouts.handshake };
        self.dial = Some(dial.clone());
        let layout = self.memory.layout().clone();
        let wanted = self.member.as_ref().map_or(wanted, |member| member.channels(wanted, layout.bytes()));
        let limits = self.steering.limits();
        let offer = Offer {
            session,
            token,
            channels: wanted,
            codecs: Codecs::offered(encoding.compression),
            features: if limits.allow_post_copy() { Features::POST_COPY } else { Features::NONE },
            layout,
            guest_kind: words.kind,
            description: words.description,
        };
        let pump = Pump::start(route, offer, &self.timeouts)?;
        // Both take some milliseconds: what the guest's tracking does here, and building a guest there.
        let tracking = self.track_early().map_err(|error| part(&pump, error))?;
        let Granted { channels, codecs, features, granule } = self.accepted(&pump).map_err(|error| part(&pump, error))?;
        self.report.channels = channels;
        self.can_post_copy = features.contains(Features::POST_COPY);
        self.granule = Granule::from_pages(granule).expect("the machine has checked it");
        let granule = self.granule;
        if !self.can_post_copy
            && let PostCopy::After(_) = limits.post_copy
        {
            return Err(part(&pump, Error::NoPostCopy));
        }
        let lanes: Vec<_> = (0..channels).map(Lane::Bulk).chain(self.can_post_copy.then_some(Lane::Urgent)).collect();
        let (mut streams, round_trip) = dial.attach(&pump, &lanes, 0).map_err(|error| part(&pump, error))?;
        self.round_trip = round_trip;
        let urgent = if self.can_post_copy { streams.pop() } else { None };
        pump.command(Command::Attached);
        self.await_departure(&pump).map_err(|error| part(&pump, error))?;
        let cache = encoding.delta_cache.for_guest(self.memory.layout().bytes());
        let settings = EncoderSettings { codecs, key: PageKey::derive(&token.0), delta_cache: ByteCount(cache.0 / u64::from(channels)) };
        let rest = |missing| Rest {
            missing,
            hot: Vec::new(),
            granule,
            encoder: settings.clone(),
            compression: encoding.compression,
            dial: dial.clone(),
            channels,
        };
        let lanes: Vec<Stream> = streams.iter().map(Stream::share).collect();
        match self.copy(pump, streams, tracking, &settings, encoding.compression, rest)? {
            Moved::Whole => Ok(()),
            Moved::Switched(switched) => {
                let Switched { pump, last, rest, spent: _spent } = *switched;
                let lanes = Lanes { bulk: lanes, urgent: urgent.expect("attached where post-copy is possible") };
                let given = GivenAway { pump, rest, steering: self.steering.clone(), member: self.member.clone(), started: self.started };
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
    fn copy(
        &mut self,
        pump: Pump,
        streams: Vec<Stream>,
        tracking: Option<Tracking>,
        settings: &EncoderSettings,
        compression: Compression,
        rest: impl FnOnce(PageBitmap) -> Rest,
    ) -> Result<Moved, Error> {
        let live = Live::default();
        let (memory, allotment) = (self.memory, Allotment::new(self.steering.pacer(), self.member.clone()));
        let channels = u16::try_from(streams.len()).expect("made from a u16");
        std::thread::scope(|scope| {
            // Room for one result of each worker: none ever waits to report.
            let (done, results) = bounded(streams.len());
            let bulk = streams.iter().map(Stream::control).collect();
            let (mut jobs, mut workers) = (Vec::new(), Vec::new());
            let path = Arc::default();
            for (channel, stream) in (0..channels).zip(streams) {
                let worker = Worker {
                    channel,
                    channels,
                    stream,
                    memory,
                    allotment: allotment.clone(),
                    seat: Seat::default(),
                    live: &live,
                    frames: FrameWriter::new(Encoder::new(settings.clone(), memory.layout().chunks())),
                    chooser: allotment.chooser(compression, Arc::clone(&path)),
                    told: Instant::now(),
                    written: 0,
                    buffer: Vec::new(),
                };
                let (to, thread) = self.hold.for_short_turns(|| start(scope, worker, done.clone()))?;
                jobs.push(to);
                workers.push(thread);
            }
            drop(done);
            let session = Session { pump, jobs, results, live: &live, bulk };
            let moved = self.pre_copy(&session, tracking).and_then(|mut last| match last.verdict.decision {
                Decision::PostCopy => {
                    let mut rest = rest(PageBitmap::new(0));
                    rest.missing = self.missing(&last.remainder, rest.granule);
                    rest.hot.clone_from(&last.hot);
                    self.switch(&session, &mut last, &rest).map(|()| Some((last, rest)))
                }
                _ => self.hand_over(&session, last).map(|()| None),
            });
            match moved {
                Ok(None) => Ok(Moved::Whole),
                Ok(Some((last, rest))) => {
                    let Session { pump, jobs, .. } = session;
                    // The workers end with their jobs. A panic there was reported by the panic hook.
                    drop(jobs);
                    let spent = workers.into_iter().filter_map(|worker| worker.join().ok()).collect();
                    Ok(Moved::Switched(Box::new(Switched { pump, last, rest, spent })))
                }
                Err(error) => Err(self.give_up(session, error)),
            }
        })
    }

    /// Waits for the destination's yes.
    fn accepted(&self, pump: &Pump) -> Result<Granted, Error> {
        loop {
            select! {
                recv(pump.events()) -> event => if let Ok(SourceEvent::Accepted { channels, codecs, features, granule }) = event {
                    return Ok(Granted { channels, codecs, features, granule });
                },
                recv(pump.ended()) -> ended => return Err(session_error(ended.ok())),
                recv(self.steering.cancelled()) -> _ => return Err(Error::Cancelled),
            }
        }
    }

    /// Something went wrong before the guest changed hands (or it is in doubt): the guest first, then everything else.
    fn give_up(&mut self, session: Session<'_>, error: Error) -> Error {
        self.hold.lift_throttle();
        if let Err(resume) = self.hold.resume() {
            tracing::error!(error = %resume, "the guest could not be resumed at the source");
        }
        self.leave_last_round();
        // Relaxed: workers look at it between chunks and while they wait for their turn.
        session.live.halt.store(true, Ordering::Relaxed);
        let error = part(&session.pump, error);
        // Ends the workers and waits for the session's last message.
        drop(session);
        error
    }

    /// Ends tracking and completes the report.
    fn conclude(mut self, result: &Result<(), Error>) -> Report {
        self.hold.lift_throttle();
        // Every way out of the phases has resumed or released the guest; this is for the ways before them.
        if let Err(error) = self.hold.resume() {
            tracing::error!(%error, "the guest could not be resumed at the source");
        }
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
        report
    }

    pub(super) fn phase(&mut self, phase: Phase) {
        tracing::info!(?phase, "migration");
        (self.observer)(&Event::Phase(phase));
    }
}

/// Ends a session that came to nothing, and tells the destination why; says why as well as can be known.
fn part(pump: &Pump, mut error: Error) -> Error {
    // When a connection broke, the destination's own words on the control connection say more, or how that ended.
    if matches!(error, Error::Transport(_))
        && let Ok(ended) = pump.ended().recv_timeout(LAST_WORDS)
    {
        error = session_error(Some(ended));
    }
    pump.command(Command::Abort { reason: error.in_full() });
    error
}

/// Why the session ended although the driver was not done with it.
pub(super) fn session_error(ended: Option<Ended>) -> Error {
    let Some(Ended { end, cause, .. }) = ended else {
        return Error::System { action: "keep the session's thread alive", source: ErrorKind::BrokenPipe.into() };
    };
    match end {
        SourceEnd::Refused { reason, detail } => Error::Refused { reason, detail },
        // What came in says more than what was done about it.
        SourceEnd::Failed { error: error @ (ProtocolError::Closed { .. } | ProtocolError::CalledOff { .. }) } => cause.unwrap_or(error.into()),
        SourceEnd::Failed { error } => error.into(),
        SourceEnd::InDoubt { error } => Error::InDoubt(error),
        SourceEnd::Stranded { error } => Error::Stranded(error),
        SourceEnd::Completed => unreachable!("only a commit completes a session, and it is waited for elsewhere"),
    }
}

fn start<'scope, 'd: 'scope>(
    scope: &'scope Scope<'scope, '_>,
    worker: Worker<'d>,
    done: Sender<Result<Sent, Error>>,
) -> Result<(Sender<Job>, ScopedJoinHandle<'scope, FrameWriter>), Error> {
    let (to, jobs) = bounded(1);
    let handle = std::thread::Builder::new()
        .name(format!("pf-send-{}", worker.channel))
        .spawn_scoped(scope, move || worker.run(&jobs, &done))
        .map_err(|source| Error::System { action: "start a thread", source })?;
    Ok((to, handle))
}

/// Sixteen bytes nobody can guess.
fn random() -> Result<[u8; 16], Error> {
    let mut bytes = [0; 16];
    let read = File::open("/dev/urandom").and_then(|mut random| random.read_exact(&mut bytes));
    read.map_err(|source| Error::System { action: "give random bytes", source })?;
    Ok(bytes)
}

/// How long to wait for the destination's reason after a connection broke.
const LAST_WORDS: Duration = Duration::from_millis(500);
