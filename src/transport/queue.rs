//! A bulk connection that shares its link with urgent ones.
//!
//! What a bulk connection has handed to the link comes before what is urgent, and what it holds back in the socket is
//! taken and not yet under way. Both are kept short.

use std::io;
use std::time::{Duration, Instant};

use super::{SendQueue, Stream};
use crate::units::ByteCount;

/// Looks after the sending side of one bulk connection.
#[derive(Debug)]
pub struct BulkQueue {
    stream: Stream,
}

impl BulkQueue {
    /// Takes over the sending side of `stream`.
    #[must_use]
    pub fn new(stream: &Stream) -> Self {
        Self { stream: stream.share() }
    }

    /// Waits until a step can be written, for `patience` at most.
    ///
    /// # Errors
    /// When the system cannot wait. A connection that broke has room: the write tells.
    pub fn has_room(&self, patience: Duration) -> io::Result<bool> {
        self.stream.is_writable_within(patience)
    }

    /// How much to write at once.
    #[must_use]
    pub fn step(&self) -> ByteCount {
        ByteCount(64 << 10)
    }

    /// Looks at how the connection stands; call it after each write.
    pub fn look(&mut self, _now: Instant) -> SendQueue {
        self.stream.send_queue()
    }
}
