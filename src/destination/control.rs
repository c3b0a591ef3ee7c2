//! What can be done about a receiver from another thread.

use std::sync::Arc;

use super::hub::Hub;
use crate::units::PageCount;

/// Ends a [`Receiver`](super::Receiver) that serves, in order.
#[derive(Clone)]
pub struct ReceiverControl {
    hub: Arc<Hub>,
}

/// What a receiver has under way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UnderWay {
    /// Sessions.
    pub sessions: usize,
    /// Of these, guests that run here and lack pages, which only this process can take in.
    pub incomplete: usize,
    /// So many pages.
    pub missing: PageCount,
    /// Sessions that are over and whose source may still come to ask how they ended.
    pub remembered: usize,
}

impl ReceiverControl {
    pub(super) fn new(hub: Arc<Hub>) -> Self {
        Self { hub }
    }

    /// Begins no more sessions, and ends those that have not come to Commit: their sources are told `reason`, and their
    /// guests run on there. From Commit on a guest is this host's, so those sessions go on, in post-copy until no page is
    /// missing, and sources in doubt are answered; then [`Receiver::serve`](super::Receiver::serve) returns.
    pub fn stop(&self, reason: &str) {
        self.hub.registry.stop(reason);
    }

    /// What there is still to do.
    #[must_use]
    pub fn under_way(&self) -> UnderWay {
        self.hub.registry.under_way()
    }

    /// Connections that came to nothing so far.
    #[must_use]
    pub fn came_to_nothing(&self) -> u64 {
        self.hub.came_to_nothing()
    }
}
