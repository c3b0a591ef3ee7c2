//! What all connections of a receiver share.

use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::admission::GuestFactory;
use super::budget::Budget;
use super::registry::Registry;
use crate::protocol::Timeouts;
use crate::transport::ServerSecurity;
use crate::units::ByteCount;

/// How a receiver behaves.
#[derive(Clone, Debug, Default)]
pub struct ReceiverOptions {
    /// Memory for all guests that are on their way in, together; `None` leaves it to what the host has.
    pub max_memory: Option<ByteCount>,
    /// Sessions to serve before [`Receiver::serve`](super::Receiver::serve) returns; `None` serves for ever.
    pub max_sessions: Option<u32>,
    /// How long to wait for what.
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
    /// Sessions begun: offers read, whatever came of them.
    begun: AtomicU32,
    connections: AtomicUsize,
    complaints: Mutex<Complaints>,
}

/// How often the embedder was told of connections that came to nothing.
struct Complaints {
    since: Instant,
    made: u32,
}

/// A connection that counts, as long as this lives.
pub(super) struct Counted(Arc<Hub>);

impl Hub {
    pub(super) fn new(options: ReceiverOptions, factory: Arc<dyn GuestFactory>) -> Self {
        Self {
            budget: Budget::new(options.max_memory),
            registry: Registry::new(&options.timeouts),
            options,
            factory,
            begun: AtomicU32::new(0),
            connections: AtomicUsize::new(0),
            complaints: Mutex::new(Complaints { since: Instant::now(), made: 0 }),
        }
    }

    /// Counts a session; false when it would be one too many.
    pub(super) fn begin(&self) -> bool {
        let most = self.options.max_sessions.unwrap_or(u32::MAX);
        self.begun.fetch_update(Ordering::AcqRel, Ordering::Acquire, |begun| (begun < most).then(|| begun + 1)).is_ok()
    }

    /// Counts a connection; `None` when there are too many.
    pub(super) fn count(self: &Arc<Self>) -> Option<Counted> {
        // AcqRel: see `is_done`. Only the accepting thread counts up, so the limit holds.
        if self.connections.load(Ordering::Acquire) >= MAX_CONNECTIONS {
            return None;
        }
        self.connections.fetch_add(1, Ordering::AcqRel);
        Some(Counted(Arc::clone(self)))
    }

    /// Whether the embedder is to be told of one more connection that came to nothing: a few in a while.
    pub(super) fn may_complain(&self, now: Instant) -> bool {
        let mut complaints = self.complaints.lock().unwrap_or_else(PoisonError::into_inner);
        if now.saturating_duration_since(complaints.since) >= COMPLAINTS_WITHIN {
            *complaints = Complaints { since: now, made: 0 };
        }
        complaints.made += 1;
        complaints.made <= MAX_COMPLAINTS
    }

    /// Whether all sessions that were to be served are over, and no source can come back in doubt.
    pub(super) fn is_done(&self) -> bool {
        // Acquire pairs with the Release of `begin` and of `Counted`'s drop: a session begun is in the registry or over.
        self.options.max_sessions.is_some_and(|most| self.begun.load(Ordering::Acquire) >= most)
            && self.connections.load(Ordering::Acquire) == 0
            && self.registry.is_idle()
    }
}

impl Counted {
    pub(super) fn hub(&self) -> &Hub {
        &self.0
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Connections at a time, those that have not said anything yet included.
const MAX_CONNECTIONS: usize = 1024;
/// Connections that came to nothing the embedder is told of, within which time.
const MAX_COMPLAINTS: u32 = 20;
const COMPLAINTS_WITHIN: Duration = Duration::from_secs(10);
