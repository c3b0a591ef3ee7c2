//! What the threads of one session share.
//!
//! A session's machine sits behind a lock, because three parties feed it: its control connection, its bulk connections
//! and a source in doubt that asks on yet another connection. Who gets the lock first decides, and that is the order
//! the protocol's promises are about.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use crossbeam::channel::{Receiver, Sender, unbounded};

use super::bulk::{Arrived, BulkReport};
use super::claim::Claim;
use super::faults::Incomplete;
use super::follow::Followed;
use super::open_lanes::{OpenLanes, Running};
use super::peer::Peer;
use super::states::Room;
use crate::control::{Bell, Connection};
use crate::error::Error;
use crate::memory::{GuestMemory, HostSupply};
use crate::page::{Codecs, PageKey};
use crate::protocol::{Destination, Timeouts};
use crate::transport::{PeerCertificate, StreamControl};

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
    lanes: OpenLanes,
    /// What the lanes brought in post-copy.
    pub(super) followed: Mutex<Followed>,
    pub(super) opener: Opener,
    /// For the guest's state, until that is loaded.
    state: Mutex<Option<Room>>,
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
            lanes: OpenLanes::default(),
            followed: Mutex::default(),
            opener,
            state: Mutex::default(),
            cause: Mutex::default(),
        })
    }

    /// Whether whoever makes this claim has shown the certificate that the session began with. The machine looks at the
    /// token.
    pub(super) fn is_of(&self, claim: &Claim) -> bool {
        self.opener.certificate == claim.certificate
    }

    /// Who began it.
    pub(super) fn peer(&self) -> Peer {
        self.opener.peer
    }

    /// The guest's state is coming in, and has this room.
    pub(super) fn hold_state(&self, room: Room) {
        let before = self.state.lock().unwrap_or_else(PoisonError::into_inner).replace(room);
        drop(before);
    }

    /// It is loaded and not held any more.
    pub(super) fn let_go_of_state(&self) {
        let room = self.state.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(room);
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
        self.lanes.adopt(connection)
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
        self.lanes.close();
        // Whoever waits for post-copy to begin need not any more.
        let _ = self.incomplete.set(None);
    }

    /// Ends all connections for pages there are; others may come.
    pub(super) fn shut_down_lanes(&self) {
        self.lanes.shut_down();
    }

    /// Waits until nobody reads from a lane any more.
    pub(super) fn await_lanes(&self) {
        self.lanes.wait();
    }
}

/// Who has opened a session.
pub(super) struct Opener {
    pub(super) peer: Peer,
    /// Where there is TLS.
    pub(super) certificate: Option<PeerCertificate>,
}
