//! A bulk connection that shares its link with urgent ones.
//!
//! What a bulk connection has handed to the link comes before what is urgent, and what waits in the socket for its turn
//! is taken and not yet under way. Both are kept short: the kernel sends at a [`Pace`], in packets small enough not to
//! block the link for long, and about a millisecond's worth waits in the socket, so that the link does not wait for the
//! thread that writes.

use std::io;
use std::time::{Duration, Instant};

use super::pace::{Pace, PaceSample};
use super::{SendQueue, Stream};
use crate::units::{ByteCount, CHUNK_SIZE};

/// Looks after the sending side of one bulk connection.
#[derive(Debug)]
pub struct BulkQueue {
    stream: Stream,
    /// None where there is no link to share: within this host.
    pace: Option<Pace>,
    /// Bytes in a full packet.
    segment: usize,
    /// The pace that was last set, bytes a second; infinite where there is none.
    set: f64,
}

impl BulkQueue {
    /// Takes over the sending side of `stream`.
    #[must_use]
    pub fn new(stream: &Stream) -> Self {
        let state = stream.tcp_state();
        let pace = state.map(|state| Pace::new(Some(state.delivery_rate as f64)));
        let segment = state.map_or(CHUNK_SIZE, |state| (state.segment as usize).clamp(LEAST_SEGMENT, CHUNK_SIZE));
        let mut queue = Self { stream: stream.share(), pace, segment, set: f64::INFINITY };
        queue.set_pace();
        queue
    }

    /// Waits until a step can be written, for `patience` at most.
    ///
    /// # Errors
    /// When the system cannot wait. A connection that broke has room: the write tells.
    pub fn has_room(&self, patience: Duration) -> io::Result<bool> {
        self.stream.is_writable_within(patience)
    }

    /// How much to write at once: half a millisecond's worth.
    #[must_use]
    pub fn step(&self) -> ByteCount {
        worth(self.set, 0.5e-3, LEAST_STEP, MOST_STEP)
    }

    /// Writes all of `bytes`.
    ///
    /// # Errors
    /// When the connection breaks, or takes nothing for too long.
    pub fn write_all(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        let slice = self.slice();
        while !bytes.is_empty() {
            match self.stream.write_apart(&bytes[..bytes.len().min(slice)]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => bytes = &bytes[written..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Bytes that the link gets at once: 0.1 ms worth, in full packets, as the last one of fewer would cost as much and be
    /// acknowledged late.
    fn slice(&self) -> usize {
        let bytes = usize::try_from(worth(self.set, 0.1e-3, 0.0, MOST_STEP).0).expect("64-bit host");
        (bytes / self.segment).max(2) * self.segment
    }

    /// Looks at how the connection stands, and steers; call it after each write.
    pub fn look(&mut self, now: Instant) -> SendQueue {
        let Some(state) = self.stream.tcp_state() else { return self.stream.send_queue() };
        let sample = PaceSample { acknowledged: state.acknowledged, round_trip: state.round_trip, least_round_trip: state.least_round_trip };
        if self.pace.as_mut().is_some_and(|pace| pace.sample(now, sample)) {
            self.set_pace();
        }
        SendQueue { under_way: self.stream.under_way(), peer_window: Some(ByteCount(state.peer_window)) }
    }

    /// Has the kernel keep the pace, unless it is as good as the one that it keeps.
    fn set_pace(&mut self) {
        let Some(pace) = &self.pace else { return };
        let rate = pace.rate().unwrap_or(f64::INFINITY);
        if (rate / self.set - 1.0).abs() < 0.01 || rate == self.set {
            return;
        }
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "finite and within what a pace can be")]
        let limit = rate.is_finite().then_some(rate as u64);
        let unsent = u32::try_from(worth(rate, 1e-3, LEAST_UNSENT, MOST_UNSENT).0).expect("bounded");
        match self.stream.set_pace(limit, unsent) {
            Ok(()) => self.set = rate,
            Err(error) => {
                // As if it were a connection within this host.
                tracing::debug!(%error, "a bulk connection cannot be paced");
                self.pace = None;
                self.set = f64::INFINITY;
            }
        }
    }
}

/// The bytes that a `rate` makes of so many seconds.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped")]
fn worth(rate: f64, seconds: f64, least: f64, most: f64) -> ByteCount {
    ByteCount((rate * seconds).clamp(least, most) as u64)
}

// Bytes.
const LEAST_SEGMENT: usize = 256;
const LEAST_STEP: f64 = 16384.0;
const MOST_STEP: f64 = 262_144.0;
const LEAST_UNSENT: f64 = 16384.0;
const MOST_UNSENT: f64 = 524_288.0;
