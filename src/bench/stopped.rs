//! How long the machine itself stood still.
//!
//! The machine of a bench may be a virtual one, and its host stops all of it now and then: no thread runs, no clock rings,
//! and the guest of the bench feels that as a gap that no engine has made. A thread before all ordinary ones that asks to
//! be woken every millisecond sees it: what it comes late by is time in which nothing ran. Where the host stops one
//! processor alone it may see nothing, so this is the least that it was.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::sys::priority;

/// The thread that watches the machine.
pub(super) struct Stopped {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Duration>,
}

impl Stopped {
    /// Begins.
    ///
    /// # Errors
    /// When there is no thread to be had.
    pub(super) fn start() -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let theirs = Arc::clone(&stop);
        let body = move || {
            priority::raise();
            longest(&theirs, thread::sleep)
        };
        Ok(Self { stop, thread: thread::Builder::new().name("stopped".into()).spawn(body).context("no thread")? })
    }

    /// Ends; the longest time that the machine stood still.
    ///
    /// # Errors
    /// When the thread panicked.
    pub(super) fn end(self) -> Result<Duration> {
        // Relaxed: the flag carries no data, and joining the thread orders all that it did.
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow::anyhow!("the thread that watches the machine panicked"))
    }
}

/// The longest time that one of many sleeps was late by, until told to stop.
fn longest(stop: &AtomicBool, mut sleep: impl FnMut(Duration)) -> Duration {
    let mut longest = Duration::ZERO;
    while !stop.load(Ordering::Relaxed) {
        let asleep = Instant::now();
        sleep(BETWEEN_LOOKS);
        longest = longest.max(asleep.elapsed().saturating_sub(BETWEEN_LOOKS));
    }
    longest
}

const BETWEEN_LOOKS: Duration = Duration::from_millis(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_of_all_delays_is_told() {
        let stop = AtomicBool::new(false);
        let mut delays = [0, 30, 5].into_iter();
        let longest = longest(&stop, |time| match delays.next() {
            Some(late) => thread::sleep(time + Duration::from_millis(late)),
            None => stop.store(true, Ordering::Relaxed),
        });
        assert!(longest >= Duration::from_millis(30), "{longest:?}");
    }
}
