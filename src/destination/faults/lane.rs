//! The urgent lane, as far as requests go: what is asked for, written at once.
//!
//! The fault server must never wait for the network, or faults that need none would wait too. So what the socket does
//! not take stays here until it does. That is little: a page is asked for once, and only by a thread that then waits.

use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, send};

use super::request::Request;
use crate::transport::Stream;
use crate::units::PageIndex;

/// The lane while there is one.
#[derive(Debug)]
pub(super) struct UrgentLane {
    open: Mutex<Option<Open>>,
}

#[derive(Debug)]
struct Open {
    stream: Stream,
    request: Request,
    unsent: Vec<u8>,
}

impl UrgentLane {
    pub(super) fn new() -> Self {
        Self { open: Mutex::new(None) }
    }

    /// Uses `stream` from now on, and asks for `pages` on it.
    pub(super) fn connect(&self, stream: Stream, pages: impl Iterator<Item = PageIndex>) {
        let mut open = self.open();
        let new = open.insert(Open { stream, request: Request::new(), unsent: Vec::with_capacity(ROOM) });
        pages.for_each(|page| new.add(page));
        new.flush();
    }

    /// Uses no stream from now on.
    pub(super) fn disconnect(&self) {
        *self.open() = None;
    }

    /// Asks for `pages`; without a lane it is up to the next to ask.
    pub(super) fn ask(&self, pages: &[PageIndex]) {
        if let Some(open) = &mut *self.open() {
            pages.iter().for_each(|&page| open.add(page));
            open.flush();
        }
    }

    /// Sends what the socket did not take before.
    pub(super) fn flush(&self) {
        if let Some(open) = &mut *self.open() {
            open.send();
        }
    }

    /// The stream, if it has to take more.
    pub(super) fn unsent(&self) -> Option<Stream> {
        self.open().as_ref().filter(|open| !open.unsent.is_empty()).map(|open| open.stream.share())
    }

    /// Held for as long as it takes to write to a socket without waiting.
    fn open(&self) -> MutexGuard<'_, Option<Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Open {
    fn add(&mut self, page: PageIndex) {
        self.request.add(page);
        if self.request.is_full() {
            self.request.move_into(&mut self.unsent);
        }
    }

    fn flush(&mut self) {
        self.request.move_into(&mut self.unsent);
        self.send();
    }

    fn send(&mut self) {
        if self.stream.is_encrypted() {
            // Records are whole, so this waits for room; there is some, as the source reads before it does anything else.
            if let Err(error) = self.stream.write_all(&self.unsent) {
                tracing::debug!(%error, "nothing can be asked on the urgent lane any more");
                self.stream.control().shut_down();
            }
            return self.unsent.clear();
        }
        let mut sent = 0;
        while sent < self.unsent.len() {
            match send(self.stream.as_fd().as_raw_fd(), &self.unsent[sent..], MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL) {
                Ok(bytes) => sent += bytes,
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => break,
                Err(errno) => {
                    // Whoever reads from the stream learns of it by this, and has the lane replaced.
                    tracing::debug!(error = %io::Error::from(errno), "nothing can be asked on the urgent lane any more");
                    self.stream.control().shut_down();
                    sent = self.unsent.len();
                }
            }
        }
        self.unsent.drain(..sent);
    }
}

/// Bytes to begin with: several requests at their largest.
const ROOM: usize = 4096;
