//! Changing a migration while it runs.

use std::sync::{Arc, Mutex, PoisonError};

use crossbeam::channel::{Receiver, Sender, bounded};

use crate::policy::Limits;
use crate::transport::Pacer;
use crate::units::BytesPerSec;

/// A handle on a running migration; clones act on the same one.
#[derive(Clone, Debug)]
pub struct Steering {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    pacer: Pacer,
    limits: Mutex<Limits>,
    /// Holds one token once cancelled; the driver selects on the other end. Full means: cancelled already.
    cancel: Sender<()>,
    cancelled: Receiver<()>,
    /// The same for the rest of a guest that was given away.
    let_go: Sender<()>,
    letting_go: Receiver<()>,
}

impl Default for Steering {
    fn default() -> Self {
        let (cancel, cancelled) = bounded(1);
        let (let_go, letting_go) = bounded(1);
        let (pacer, limits) = (Pacer::new(None), Mutex::new(Limits::default()));
        Self { shared: Arc::new(Shared { pacer, limits, cancel, cancelled, let_go, letting_go }) }
    }
}

impl Steering {
    /// Calls the migration off. Before Commit the guest runs on at the source; after it, this has no effect.
    pub fn cancel(&self) {
        // Full: cancelled before.
        let _ = self.shared.cancel.try_send(());
    }

    /// Gives up the memory that a guest in post-copy lacks at the destination: the migration, or the attempt to recover it,
    /// ends at once with a [`Stranded`](super::Stranded) that says who has the guest. Before the guest is given away this
    /// calls the migration off, as [`Steering::cancel`] does.
    pub fn let_go(&self) {
        self.cancel();
        // Full: asked before.
        let _ = self.shared.let_go.try_send(());
    }

    /// Changes the total rate from now on; `None` is unpaced.
    pub fn set_bandwidth(&self, rate: Option<BytesPerSec>) {
        self.shared.pacer.set_rate(rate);
    }

    /// Changes the limits; they hold from the next decision on.
    pub fn set_limits(&self, limits: Limits) {
        *self.shared.limits.lock().unwrap_or_else(PoisonError::into_inner) = limits;
    }

    /// The limits in force.
    #[must_use]
    pub fn limits(&self) -> Limits {
        *self.shared.limits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn pacer(&self) -> &Pacer {
        &self.shared.pacer
    }

    /// Becomes readable when the migration is cancelled.
    pub(super) fn cancelled(&self) -> &Receiver<()> {
        &self.shared.cancelled
    }

    /// Becomes readable when the rest is given up.
    pub(super) fn letting_go(&self) -> &Receiver<()> {
        &self.shared.letting_go
    }
}
