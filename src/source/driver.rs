//! One migration from beginning to end: connect, run the phases, and see to it that the guest is somewhere afterwards.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::sync::atomic::Ordering;
use std::thread::{Scope, ScopedJoinHandle};
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Sender, bounded, select};

use super::event::{Event, Phase};
use super::hold::Hold;
use super::outcome::{Completed, Failure, InDoubt};
use super::pump::{Command, Ended, Pump};
use super::worker::{Job, Live, Sent, Worker};
use super::{AtPause, Migration, Observer, Outgoing, Steering};
use crate::control::{MessageReader, MessageWriter};
use crate::dirty::DirtyTracker;
use crate::error::Error;
use crate::memory::GuestMemory;
use crate::page::{Chooser, Codecs, Compression, DeltaCache, Encoder, EncoderSettings, PageKey};
use crate::protocol::{ProtocolError, SourceEnd, SourceEvent, Timeouts};
use crate::stats::{GuestOwner, Outcome, Report};
use crate::transport::{Route, Stream, StreamControl};
use crate::units::ByteCount;
use crate::wire::{FrameWriter, Message, Offer, SessionId, Token};

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
    identity: Option<(SessionId, Token)>,
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

/// Runs a migration.
pub(super) fn run(migration: Migration<'_>, outgoing: Outgoing<'_>) -> Result<Completed, Box<Failure>> {
    let Migration { route, channels, compression, delta_cache, timeouts, steering, observer, at_pause } = migration;
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
        identity: None,
    };
    let result = driver.migrate(&route, channels, GuestWords { kind, description }, Encoding { compression, delta_cache });
    let identity = driver.identity;
    let report = driver.conclude(&result);
    match result {
        Ok(()) => Ok(Completed { report }),
        Err(error) => {
            let owner = report.guest_owner;
            let in_doubt = identity.filter(|_| owner == GuestOwner::InDoubt).map(|(session, token)| InDoubt { route, session, token });
            Err(Box::new(Failure { error, owner, report, in_doubt }))
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
        self.phase(Phase::Connecting);
        let (session, token) = (SessionId(random()?), Token(random()?));
        self.identity = Some((session, token));
        let layout = self.memory.layout().clone();
        let offer = Offer {
            session,
            token,
            channels: wanted,
            codecs: Codecs::offered(encoding.compression),
            layout,
            guest_kind: words.kind,
            description: words.description,
        };
        let pump = Pump::start(route, offer, &self.timeouts)?;
        let (channels, codecs) = self.accepted(&pump).map_err(|error| part(&pump, error))?;
        self.report.channels = channels;
        let attach = |channel| self.attach(route, &pump, session, token, channel);
        let streams = (0..channels).map(attach).collect::<Result<Vec<_>, _>>().map_err(|error| part(&pump, error))?;
        pump.command(Command::Attached);
        let cache = encoding.delta_cache.for_guest(self.memory.layout().bytes());
        let settings = EncoderSettings { codecs, key: PageKey::derive(&token.0), delta_cache: ByteCount(cache.0 / u64::from(channels)) };
        let live = Live::default();
        let (memory, pacer) = (self.memory, self.steering.pacer());
        std::thread::scope(|scope| {
            // Room for one result of each worker: none ever waits to report.
            let (done, results) = bounded(streams.len());
            let bulk = streams.iter().map(Stream::control).collect();
            let mut jobs = Vec::new();
            for (channel, stream) in (0..channels).zip(streams) {
                let worker = Worker {
                    channel,
                    channels,
                    stream,
                    memory,
                    pacer,
                    live: &live,
                    frames: FrameWriter::new(Encoder::new(settings.clone(), memory.layout().chunks())),
                    chooser: Chooser::new(encoding.compression),
                    told: Instant::now(),
                    written: 0,
                    buffer: Vec::new(),
                };
                jobs.push(start(scope, worker, done.clone())?.0);
            }
            drop(done);
            let session = Session { pump, jobs, results, live: &live, bulk };
            let moved = self.pre_copy(&session).and_then(|last| self.hand_over(&session, last));
            moved.map_err(|error| self.give_up(session, error))
        })
    }

    /// Waits for the destination's yes; the number of channels it grants.
    fn accepted(&self, pump: &Pump) -> Result<(u16, Codecs), Error> {
        loop {
            select! {
                recv(pump.events()) -> event => if let Ok(SourceEvent::Accepted { channels, codecs }) = event { return Ok((channels, codecs)) },
                recv(pump.ended()) -> ended => return Err(session_error(ended.ok())),
                recv(self.steering.cancelled()) -> _ => return Err(Error::Cancelled),
            }
        }
    }

    /// Opens one bulk connection.
    fn attach(&mut self, route: &Route, pump: &Pump, session: SessionId, token: Token, channel: u16) -> Result<Stream, Error> {
        let stream = route.connect(self.timeouts.handshake)?;
        let broken = |source| Error::System { action: "prepare a bulk connection", source };
        stream.prepare_bulk().map_err(broken)?;
        pump.adopt(stream.control());
        let asked = Instant::now();
        MessageWriter::new(stream.share()).send(&Message::Attach { session, token, channel })?;
        let answer = MessageReader::new(stream.share()).next_within(self.timeouts.handshake)?;
        self.round_trip = self.round_trip.min(asked.elapsed());
        match answer {
            Message::Attached { channel: granted } if granted == channel => Ok(stream),
            Message::Refuse { reason, detail } => Err(Error::Refused { reason, detail }),
            _ => Err(Error::Refused { reason: crate::wire::RefuseReason::Other, detail: "an answer out of place to a bulk connection".into() }),
        }
    }

    /// Something went wrong before the guest changed hands (or it is in doubt): the guest first, then everything else.
    fn give_up(&mut self, session: Session<'_>, error: Error) -> Error {
        self.hold.lift_throttle();
        if let Err(resume) = self.hold.resume() {
            tracing::error!(error = %resume, "the guest could not be resumed at the source");
        }
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
        if let Err(error) = self.tracker.stop() {
            tracing::warn!(%error, "tracking could not be ended");
        }
        report.stall = self.hold.stalled();
        report.throttle = self.hold.throttle_report();
        (report.outcome, report.guest_owner) = match result {
            Ok(()) => {
                report.compare_prediction();
                (Outcome::Completed, GuestOwner::Destination)
            }
            Err(Error::Cancelled | Error::Limit(_)) => (Outcome::Aborted, GuestOwner::Source),
            Err(Error::Refused { .. }) => (Outcome::Refused, GuestOwner::Source),
            Err(Error::InDoubt(_)) => (Outcome::InDoubt, GuestOwner::InDoubt),
            Err(_) => (Outcome::Failed, GuestOwner::Source),
        };
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
        SourceEnd::Completed => unreachable!("only a commit completes a session, and it is waited for elsewhere"),
    }
}

fn start<'scope, 'd: 'scope>(
    scope: &'scope Scope<'scope, '_>,
    worker: Worker<'d>,
    done: Sender<Result<Sent, Error>>,
) -> Result<(Sender<Job>, ScopedJoinHandle<'scope, ()>), Error> {
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
