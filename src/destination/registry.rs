//! The sessions of a receiver: those under way, and what is remembered of those that are over.
//!
//! A session's machine sits behind a lock, because three parties feed it: its control connection, its bulk connections
//! and a source in doubt that asks on yet another connection. Who gets the lock first decides, and that is the order
//! the protocol's promises are about.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use crossbeam::channel::{Receiver, Sender, unbounded};

use super::bulk::{Arrived, BulkReport};
use super::control::UnderWay;
use super::door::{ReceiverLimits, TurnedAway};
use super::faults::Incomplete;
use super::follow::Followed;
use super::peer::Peer;
use crate::control::{Bell, Connection};
use crate::error::Error;
use crate::memory::{GuestMemory, HostSupply};
use crate::page::{Codecs, PageKey};
use crate::protocol::{Destination, Resumption, Timeouts, Tombstones};
use crate::transport::{PeerCertificate, StreamControl};
use crate::units::PageCount;
use crate::wire::{AnswerStatus, SessionId, Token};

/// What the threads of one session share.
pub(super) struct Shared {
    machine: Mutex<Destination>,
    /// Has the pump look at what the machine says.
    pub(super) bell: Bell,
    pub(super) arrived: Arrived,
    /// The session's thread reads them all; a worker waits when it is behind.
    pub(super) reports: Sender<BulkReport>,
    /// Set before the offer is accepted, so before any bulk connection attaches.
    pub(super) arrival: OnceLock<Arriving>,
    /// In post-copy, the memory as the lanes fill it. Empty where it will not come to that.
    pub(super) incomplete: OnceLock<Option<Arc<Incomplete>>>,
    /// The control connection of a source that came back, and which generation it begins, until the session is ready.
    waiting: Mutex<Option<(u32, Connection)>>,
    /// For the pump to use in place of the one it has.
    pub(super) newer: Receiver<Connection>,
    replace: Sender<Connection>,
    lanes: Lanes,
    /// What the lanes brought in post-copy.
    pub(super) followed: Mutex<Followed>,
    opener: Opener,
    /// How the control connection was lost, if it was.
    cause: Mutex<Option<Error>>,
}

/// What a bulk worker needs to know of its session.
pub(super) struct Arriving {
    pub(super) memory: Arc<GuestMemory>,
    pub(super) channels: u16,
    /// Forms of pages that were agreed on.
    pub(super) codecs: Codecs,
    /// The key of the hashes of pages.
    pub(super) key: PageKey,
    /// Whether it may come to post-copy.
    pub(super) post_copy: bool,
    /// What its memory is supplied by.
    pub(super) supply: Arc<HostSupply>,
}

/// The connections that pages come on.
#[derive(Default)]
struct Lanes {
    state: Mutex<LanesState>,
    stopped: Condvar,
}

#[derive(Default)]
struct LanesState {
    open: Vec<StreamControl>,
    /// Threads that read from one, or are about to.
    running: usize,
    /// The session takes none any more.
    closed: bool,
}

/// A thread that reads from a lane, as long as this lives.
pub(super) struct Running<'s>(&'s Lanes);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.state().running -= 1;
        self.0.stopped.notify_all();
    }
}

impl Lanes {
    fn state(&self) -> MutexGuard<'_, LanesState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    pub(super) fn new(timeouts: &Timeouts, reports: Sender<BulkReport>, opener: Opener) -> Result<Self, Error> {
        // One for each time that the source comes back, and the pump takes them at once.
        let (replace, newer) = unbounded();
        Ok(Self {
            machine: Mutex::new(Destination::new(Instant::now(), *timeouts)),
            bell: Bell::new()?,
            arrived: Arrived::default(),
            reports,
            arrival: OnceLock::new(),
            incomplete: OnceLock::new(),
            waiting: Mutex::default(),
            newer,
            replace,
            lanes: Lanes::default(),
            followed: Mutex::default(),
            opener,
            cause: Mutex::default(),
        })
    }

    /// Whether whoever makes this claim has shown the certificate that the session began with. The machine looks at the
    /// token.
    pub(super) fn is_of(&self, claim: &Claim) -> bool {
        self.opener.certificate == claim.certificate
    }

    /// Feeds the machine and has its pump look at what comes of it.
    pub(super) fn feed<T>(&self, input: impl FnOnce(&mut Destination) -> T) -> T {
        let result = input(&mut self.machine());
        self.bell.ring();
        result
    }

    /// The machine. A panic under the lock is a bug in the machine; its state is not to be trusted then.
    pub(super) fn machine(&self) -> MutexGuard<'_, Destination> {
        self.machine.lock().expect("the machine does not panic")
    }

    /// A connection for pages, attached, to end with the session: at once if that has ended.
    pub(super) fn adopt(&self, connection: StreamControl) -> Running<'_> {
        let mut lanes = self.lanes.state();
        lanes.running += 1;
        if lanes.closed {
            connection.shut_down();
        } else {
            lanes.open.push(connection);
        }
        Running(&self.lanes)
    }

    /// A source came back on this connection. Of two the newer counts.
    pub(super) fn keep_newer(&self, generation: u32, connection: Connection) {
        *self.waiting.lock().unwrap_or_else(PoisonError::into_inner) = Some((generation, connection));
    }

    /// Gives the pump the connection on which the source came back. Under the machine's lock: what the machine says from
    /// then on goes there.
    pub(super) fn replace_connection(&self, generation: u32) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, connection)) = waiting.take_if(|(newest, _)| *newest == generation) {
            // The pump listens as long as the session lives.
            let _ = self.replace.send(connection);
        }
    }

    pub(super) fn set_cause(&self, error: Error) {
        *self.cause.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
    }

    pub(super) fn take_cause(&self) -> Option<Error> {
        self.cause.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Ends all connections for pages, for good.
    pub(super) fn close_lanes(&self) {
        self.lanes.state().closed = true;
        self.shut_down_lanes();
        // Whoever waits for post-copy to begin need not any more.
        let _ = self.incomplete.set(None);
    }

    /// Ends all connections for pages there are; others may come.
    pub(super) fn shut_down_lanes(&self) {
        let open = std::mem::take(&mut self.lanes.state().open);
        open.iter().for_each(StreamControl::shut_down);
    }

    /// Waits until nobody reads from a lane any more.
    pub(super) fn await_lanes(&self) {
        let lanes = self.lanes.stopped.wait_while(self.lanes.state(), |lanes| lanes.running > 0);
        drop(lanes);
    }
}

/// Who has opened a session.
pub(super) struct Opener {
    pub(super) peer: Peer,
    /// Where there is TLS.
    pub(super) certificate: Option<PeerCertificate>,
}

/// What a connection says that it belongs to, and with which right.
pub(super) struct Claim {
    pub(super) session: SessionId,
    pub(super) token: Token,
    /// Where there is TLS.
    pub(super) certificate: Option<PeerCertificate>,
}

/// Why a session is not begun.
pub(super) enum NotBegun {
    /// Its id is, or was, another's.
    Taken,
    /// All that were to be served have begun.
    Served,
    /// There are too many.
    Crowded(TurnedAway),
    /// The receiver is told to end, for this reason.
    Stopping(String),
}

/// All sessions.
pub(super) struct Registry {
    limits: ReceiverLimits,
    inner: Mutex<Inner>,
}

struct Inner {
    live: HashMap<SessionId, Arc<Shared>>,
    tombstones: Tombstones,
    /// No more are begun.
    stopping: Option<String>,
}

impl Registry {
    /// None yet, and no more at a time than `limits` says.
    pub(super) fn new(timeouts: &Timeouts, limits: ReceiverLimits) -> Self {
        let inner = Inner { live: HashMap::new(), tombstones: Tombstones::new(timeouts.tombstone), stopping: None };
        Self { limits, inner: Mutex::new(inner) }
    }

    /// Adds a session.
    pub(super) fn add(&self, session: SessionId, shared: &Arc<Shared>) -> Result<(), NotBegun> {
        let limits = self.limits;
        let mut inner = self.lock();
        let now = inner.forget();
        if let Some(reason) = &inner.stopping {
            return Err(NotBegun::Stopping(reason.clone()));
        }
        if inner.live.len() >= limits.sessions {
            return Err(NotBegun::Crowded(TurnedAway::Sessions(limits.sessions)));
        }
        let peer = shared.opener.peer;
        if inner.live.values().filter(|other| other.opener.peer == peer).count() >= limits.sessions_per_peer {
            return Err(NotBegun::Crowded(TurnedAway::SessionsOfPeer(limits.sessions_per_peer)));
        }
        // Each session under way may have to be remembered. None is forgotten before its time for a newer one: what it says
        // may decide who owns a guest.
        if inner.live.len() + inner.tombstones.count() >= limits.remembered {
            return Err(NotBegun::Crowded(TurnedAway::Remembered(limits.remembered)));
        }
        if inner.live.contains_key(&session) || inner.tombstones.contains(now, session) {
            return Err(NotBegun::Taken);
        }
        inner.live.insert(session, Arc::clone(shared));
        Ok(())
    }

    /// Adds none from now on, and ends those that have not come to Commit.
    pub(super) fn stop(&self, reason: &str) {
        let mut inner = self.lock();
        inner.stopping.get_or_insert_with(|| reason.to_owned());
        // Under the registry's lock: a session that is added later finds that it is too late.
        for shared in inner.live.values() {
            shared.feed(|machine| machine.stop(Instant::now(), reason.to_owned()));
        }
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.lock().stopping.is_some()
    }

    /// What there is still to do.
    pub(super) fn under_way(&self) -> UnderWay {
        let inner = self.lock();
        let mut under_way = UnderWay { sessions: inner.live.len(), remembered: inner.tombstones.count(), ..UnderWay::default() };
        for shared in inner.live.values() {
            let lacking = shared.incomplete.get().and_then(Option::as_ref).map_or(PageCount(0), |incomplete| incomplete.outstanding());
            if lacking > PageCount(0) && shared.machine().may_run() {
                under_way.incomplete += 1;
                under_way.missing += lacking;
            }
        }
        under_way
    }

    /// Whether there is one session under way, or none.
    pub(super) fn is_calm(&self) -> bool {
        self.lock().live.len() <= 1
    }

    /// A session under way.
    pub(super) fn find(&self, session: SessionId) -> Option<Arc<Shared>> {
        self.lock().live.get(&session).cloned()
    }

    /// Takes a session off, and remembers how it ended if its source may ask.
    pub(super) fn remove(&self, session: SessionId, shared: &Shared) {
        let mut inner = self.lock();
        // Still under the registry's lock: a question falls either to the machine or to the tombstone.
        let now = inner.forget();
        if let Some(stone) = shared.machine().tombstone() {
            inner.tombstones.keep(now, stone);
        }
        inner.live.remove(&session);
    }

    /// What became of a session.
    pub(super) fn answer(&self, claim: &Claim) -> AnswerStatus {
        let inner = self.lock();
        match inner.live.get(&claim.session) {
            Some(shared) if !shared.is_of(claim) => AnswerStatus::Unknown,
            Some(shared) => shared.feed(|machine| machine.query(Instant::now(), claim.token)),
            None => inner.tombstones.answer(Instant::now(), claim.session, claim.token),
        }
    }

    /// What becomes of a source that comes back to a session that is over.
    pub(super) fn resume(&self, claim: &Claim) -> Resumption {
        self.lock().tombstones.resume(Instant::now(), claim.session, claim.token)
    }

    /// The source knows the answer now.
    pub(super) fn released(&self, claim: &Claim) {
        let mut inner = self.lock();
        match inner.live.get(&claim.session) {
            Some(shared) => shared.feed(|machine| machine.released(Instant::now(), claim.token)),
            None => inner.tombstones.released(Instant::now(), claim.session, claim.token),
        }
    }

    /// Forgets the sessions whose sources will not come any more.
    pub(super) fn forget(&self) {
        self.lock().forget();
    }

    /// Whether nothing is under way and nobody may come back to ask.
    pub(super) fn is_idle(&self) -> bool {
        let mut inner = self.lock();
        inner.forget();
        inner.live.is_empty() && inner.tombstones.poll_timeout().is_none()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Forgets what is remembered for too long; the time as of which that is so.
    fn forget(&mut self) -> Instant {
        let now = Instant::now();
        self.tombstones.handle_timeout(now);
        now
    }
}
