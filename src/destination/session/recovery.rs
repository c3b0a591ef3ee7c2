//! Post-copy while the source comes and goes: the guest's memory is kept as it is until the last page is there.

use std::time::Instant;

use super::Session;
use super::incoming::Incoming;
use crate::destination::admission::Placed;
use crate::error::Error;
use crate::protocol::ProtocolError;

impl Session<'_> {
    /// A source that has not come back for too long, or is there and brings nothing, while the guest runs or is still being
    /// resumed.
    pub(super) fn tell_if_overdue(&mut self) {
        let patience = self.hub.options.timeouts.recover;
        if let Some(left) = self.following.as_mut().and_then(|following| following.overdue(patience)) {
            self.hub.factory.waits(self.offer, left);
        }
        if let Some((quiet, left)) = self.following.as_mut().and_then(|following| following.starves(patience)) {
            self.hub.factory.starves(self.offer, quiet, left);
        }
    }

    /// A lane broke.
    pub(super) fn broken(&mut self, generation: u32, error: &Error) {
        match error {
            Error::Transport(_) => tracing::debug!(generation, error = error.in_full(), "a lane has ended"),
            // The peer's fault, or this host's: whoever looks for it later needs to know which page it was.
            _ => tracing::warn!(generation, error = error.in_full(), "a lane is given up"),
        }
        self.shared.feed(|machine| machine.interrupt(Instant::now(), generation));
    }

    /// The connections are of no more use: everything stays as it is until the source comes back.
    pub(super) fn interrupted(&mut self, error: &ProtocolError) {
        // Why a connection was lost says more than that it was.
        let cause = if matches!(error, ProtocolError::Closed { .. }) { self.shared.take_cause() } else { None };
        let error = cause.unwrap_or_else(|| error.clone().into());
        tracing::warn!(error = error.in_full(), "the connections are lost; the guest's memory is kept as it is");
        if let Some(following) = &mut self.following {
            following.interrupt(self.shared);
        }
    }

    /// The source is back: says what has arrived.
    pub(super) fn resumed(&mut self, generation: u32) {
        if let Some(following) = &mut self.following {
            let arrived = following.resume(self.shared, generation);
            self.shared.feed(|machine| {
                self.shared.replace_connection(generation);
                machine.resumed(Instant::now(), generation, &arrived);
            });
            // The guest may have given back what it lacked: then no page comes that would be the last.
            self.complete();
        }
    }

    /// If all pages are there: nothing depends on the source any more.
    pub(super) fn complete(&mut self) {
        if let Some(following) = &mut self.following
            && self.is_running
            && following.is_complete()
            && !following.is_finished()
        {
            following.finish();
            self.shared.feed(|machine| machine.complete(Instant::now()));
        }
    }

    /// After the end: where the guest has all its pages the embedder may look at them.
    pub(super) fn let_go(&mut self, guest: &mut Incoming) {
        let Some(following) = &mut self.following else { return };
        self.shared.close_lanes();
        self.shared.await_lanes();
        if !following.is_finished() {
            following.abandon();
        } else if let Err(error) = guest.arrival.placed(Placed::Running) {
            self.fault.add(Error::AtPause(error));
        }
    }
}
