//! The sessions of a receiver: those under way, and what is remembered of those that are over.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::claim::Claim;
use super::control::UnderWay;
use super::door::{ReceiverLimits, TurnedAway};
use super::remembered::Remembered;
use super::shared::Shared;
use crate::protocol::{Resumption, Timeouts};
use crate::units::PageCount;
use crate::wire::{AnswerStatus, SessionId};

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
    remembered: Remembered,
    /// No more are begun.
    stopping: Option<String>,
}

impl Registry {
    /// None yet, and no more at a time than `limits` says.
    pub(super) fn new(timeouts: &Timeouts, limits: ReceiverLimits) -> Self {
        let inner = Inner { live: HashMap::new(), remembered: Remembered::new(timeouts), stopping: None };
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
        if inner.live.len() + inner.remembered.count() >= limits.remembered {
            return Err(NotBegun::Crowded(TurnedAway::Remembered(limits.remembered)));
        }
        if inner.live.contains_key(&session) || inner.remembered.contains(now, session) {
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
        let mut under_way = UnderWay { sessions: inner.live.len(), remembered: inner.remembered.count(), ..UnderWay::default() };
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
            inner.remembered.keep(now, session, stone, shared.opener.certificate.as_ref());
        }
        inner.live.remove(&session);
    }

    /// What became of a session.
    pub(super) fn answer(&self, claim: &Claim) -> AnswerStatus {
        let inner = self.lock();
        match inner.live.get(&claim.session) {
            Some(shared) if !shared.is_of(claim) => AnswerStatus::Unknown,
            Some(shared) => shared.feed(|machine| machine.query(Instant::now(), claim.token)),
            None => inner.remembered.answer(Instant::now(), claim),
        }
    }

    /// What becomes of a source that comes back to a session that is over.
    pub(super) fn resume(&self, claim: &Claim) -> Resumption {
        self.lock().remembered.resume(Instant::now(), claim)
    }

    /// The source knows the answer now.
    pub(super) fn released(&self, claim: &Claim) {
        let mut inner = self.lock();
        match inner.live.get(&claim.session) {
            Some(shared) => shared.feed(|machine| machine.released(Instant::now(), claim.token)),
            None => inner.remembered.released(Instant::now(), claim),
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
        inner.live.is_empty() && inner.remembered.count() == 0
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Forgets what is remembered for too long; the time as of which that is so.
    fn forget(&mut self) -> Instant {
        let now = Instant::now();
        self.remembered.forget(now);
        now
    }
}
