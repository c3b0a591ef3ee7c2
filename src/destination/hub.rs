//! What all connections of a receiver share.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::admission::GuestFactory;
use super::budget::Budget;
use super::door::{Admitted, Door, ReceiverLimits, Ticket, TurnedAway};
use super::peer::Peer;
use super::registry::Registry;
use super::states::States;
use crate::error::Error;
use crate::memory::HostSupply;
use crate::protocol::Timeouts;
use crate::transport::{ServerSecurity, Stream, StreamControl};
use crate::units::ByteCount;

/// How a receiver behaves.
#[derive(Clone, Debug, Default)]
pub struct ReceiverOptions {
    /// Memory for all guests that are on their way in, together; `None` leaves it to what the host has.
    pub max_memory: Option<ByteCount>,
    /// Sessions to serve before [`Receiver::serve`](super::Receiver::serve) returns; `None` serves for ever.
    pub max_sessions: Option<u32>,
    /// What peers may take up.
    pub limits: ReceiverLimits,
    /// How long to wait for what. A connection has said what it wants, TLS included, within the time of
    /// [`Timeouts::handshake`], or is closed.
    pub timeouts: Timeouts,
    /// How connections are protected.
    pub security: ServerSecurity,
}

/// The receiver, to its connections.
pub(super) struct Hub {
    pub(super) options: ReceiverOptions,
    pub(super) factory: Arc<dyn GuestFactory>,
    pub(super) budget: Budget,
    pub(super) registry: Registry,
    pub(super) states: Arc<States>,
    /// Of memory for guests that come in.
    pub(super) supply: Arc<HostSupply>,
    /// Sessions begun: offers read, whatever came of them.
    begun: AtomicU32,
    connections: AtomicUsize,
    /// Connections that have said what they want.
    welcome: AtomicUsize,
    entrance: Mutex<Entrance>,
    complaints: Mutex<Complaints>,
}

/// The door, and how to end those who stand there.
struct Entrance {
    door: Door,
    controls: HashMap<Ticket, StreamControl>,
    /// How many connections there are of each peer that has any, wherever they stand by now.
    peers: HashMap<Peer, usize>,
}

/// How often the embedder was told of connections that came to nothing.
struct Complaints {
    since: Instant,
    made: u32,
    passed_over: u64,
    in_all: u64,
}

/// A connection that counts, as long as this lives: at the door first.
pub(super) struct Counted {
    hub: Arc<Hub>,
    peer: Peer,
    /// Until it is welcome.
    ticket: Option<Ticket>,
}

impl Hub {
    pub(super) fn new(options: ReceiverOptions, factory: Arc<dyn GuestFactory>) -> Self {
        Self {
            budget: Budget::new(options.max_memory),
            supply: Arc::new(HostSupply::of_this_host()),
            registry: Registry::new(&options.timeouts, options.limits),
            states: Arc::default(),
            entrance: Mutex::new(Entrance { door: Door::new(options.limits), controls: HashMap::new(), peers: HashMap::new() }),
            options,
            factory,
            begun: AtomicU32::new(0),
            connections: AtomicUsize::new(0),
            welcome: AtomicUsize::new(0),
            complaints: Mutex::new(Complaints { since: Instant::now(), made: 0, passed_over: 0, in_all: 0 }),
        }
    }

    /// Counts a session; false when it would be one too many.
    pub(super) fn begin(&self) -> bool {
        let most = self.options.max_sessions.unwrap_or(u32::MAX);
        self.begun.fetch_update(Ordering::AcqRel, Ordering::Acquire, |begun| (begun < most).then(|| begun + 1)).is_ok()
    }

    /// Lets a connection stand at the door, and ends another one for it where that is crowded.
    pub(super) fn count(self: &Arc<Self>, stream: &Stream) -> Result<Counted, TurnedAway> {
        let most = self.options.limits.connections;
        // AcqRel: see `is_done`. Only the accepting thread counts up, so the limit holds.
        if self.connections.load(Ordering::Acquire) >= most {
            return Err(TurnedAway::Connections(most));
        }
        let (peer, most) = (Peer::of(stream), self.options.limits.connections_per_peer);
        let mut entrance = self.entrance();
        let before = entrance.peers.get(&peer).copied().unwrap_or(0);
        if before >= most {
            return Err(TurnedAway::ConnectionsOfPeer(most));
        }
        let Admitted { ticket, gives_way } = entrance.door.enter(Instant::now(), peer)?;
        entrance.peers.insert(peer, before + 1);
        if let Some(control) = gives_way.and_then(|other| entrance.controls.remove(&other)) {
            control.shut_down();
        }
        entrance.controls.insert(ticket, stream.control());
        self.connections.fetch_add(1, Ordering::AcqRel);
        Ok(Counted { hub: Arc::clone(self), peer, ticket: Some(ticket) })
    }

    /// Tells the embedder that a connection came to nothing: of a few in a while, and how many there were between.
    pub(super) fn complain(&self, peer: &str, error: &Error) {
        let (may, passed_over) = {
            let mut complaints = self.complaints.lock().unwrap_or_else(PoisonError::into_inner);
            complaints.in_all += 1;
            let now = Instant::now();
            if now.saturating_duration_since(complaints.since) >= COMPLAINTS_WITHIN {
                (complaints.since, complaints.made) = (now, 0);
            }
            complaints.made += 1;
            if complaints.made <= MAX_COMPLAINTS {
                (true, std::mem::take(&mut complaints.passed_over))
            } else {
                complaints.passed_over += 1;
                (false, 0)
            }
        };
        if passed_over > 0 {
            self.factory.passed_over(passed_over);
        }
        if may {
            tracing::warn!(%peer, error = %error.in_full(), "a connection came to nothing");
            self.factory.turned_away(peer, error);
        }
    }

    /// How many connections came to nothing.
    pub(super) fn came_to_nothing(&self) -> u64 {
        self.complaints.lock().unwrap_or_else(PoisonError::into_inner).in_all
    }

    /// Whether no session is to be begun any more, all are over, and no source can come back in doubt. Those who still
    /// stand at the door would be told that there is nothing for them.
    pub(super) fn is_done(&self) -> bool {
        // Acquire pairs with the Release of `begin` and of `Counted`'s drop: a session begun is in the registry or over.
        let is_last = self.options.max_sessions.is_some_and(|most| self.begun.load(Ordering::Acquire) >= most);
        (is_last || self.registry.is_stopping()) && self.welcome.load(Ordering::Acquire) == 0 && self.registry.is_idle()
    }

    fn entrance(&self) -> MutexGuard<'_, Entrance> {
        self.entrance.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Counted {
    pub(super) fn hub(&self) -> &Hub {
        &self.hub
    }

    /// Where it comes from.
    pub(super) fn peer(&self) -> Peer {
        self.peer
    }

    /// It has said what it wants, and may. Not if it has given way meanwhile.
    pub(super) fn welcome(&mut self) -> Result<(), TurnedAway> {
        let Some(ticket) = self.ticket.take() else { return Ok(()) };
        // AcqRel: see `is_done`; counted before it is gone from the door.
        self.hub.welcome.fetch_add(1, Ordering::AcqRel);
        let mut entrance = self.hub.entrance();
        entrance.controls.remove(&ticket);
        if entrance.door.leave(ticket) { Ok(()) } else { Err(TurnedAway::GaveWay) }
    }

    /// Whether its place at the door went to another.
    pub(super) fn gave_way(&self) -> bool {
        self.ticket.is_some_and(|ticket| !self.hub.entrance().controls.contains_key(&ticket))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut entrance = self.hub.entrance();
        match self.ticket {
            None => {
                self.hub.welcome.fetch_sub(1, Ordering::AcqRel);
            }
            Some(ticket) => {
                entrance.controls.remove(&ticket);
                entrance.door.leave(ticket);
            }
        }
        if let Entry::Occupied(mut connections) = entrance.peers.entry(self.peer) {
            *connections.get_mut() -= 1;
            if *connections.get() == 0 {
                connections.remove();
            }
        }
        drop(entrance);
        self.hub.connections.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Connections that came to nothing the embedder is told of, within which time.
const MAX_COMPLAINTS: u32 = 20;
const COMPLAINTS_WITHIN: Duration = Duration::from_secs(10);
