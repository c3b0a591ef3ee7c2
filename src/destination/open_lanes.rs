//! The connections that a session's pages come on, and the threads that read from them.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crate::transport::StreamControl;

/// The connections that pages come on, of one session.
#[derive(Default)]
pub(super) struct OpenLanes {
    state: Mutex<State>,
    stopped: Condvar,
}

/// A thread that reads from a lane, as long as this lives.
pub(super) struct Running<'s>(&'s OpenLanes);

#[derive(Default)]
struct State {
    open: Vec<StreamControl>,
    /// Threads that read from one, or are about to.
    running: usize,
    /// The session takes none any more.
    closed: bool,
}

impl OpenLanes {
    /// One more, to end with the others: at once if they have ended for good.
    pub(super) fn adopt(&self, connection: StreamControl) -> Running<'_> {
        let mut state = self.state();
        state.running += 1;
        if state.closed {
            connection.shut_down();
        } else {
            state.open.push(connection);
        }
        Running(self)
    }

    /// Ends all of them, for good.
    pub(super) fn close(&self) {
        self.state().closed = true;
        self.shut_down();
    }

    /// Ends those there are; others may come.
    pub(super) fn shut_down(&self) {
        let open = std::mem::take(&mut self.state().open);
        open.iter().for_each(StreamControl::shut_down);
    }

    /// Waits until nobody reads from one any more.
    pub(super) fn wait(&self) {
        let state = self.stopped.wait_while(self.state(), |state| state.running > 0);
        drop(state);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.state().running -= 1;
        self.0.stopped.notify_all();
    }
}
