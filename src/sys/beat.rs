//! Having the scheduler look at a processor more often than it does by itself.
//!
//! A vCPU that never waits keeps its processor until the scheduler's next tick, 4 ms commonly, whatever slice it asks for,
//! and stands still afterwards until each of the others that want the processor has had as much: with two threads that copy
//! its memory, 8 ms. A thread that wakes up has the scheduler look at once who is due. So one does, every half
//! millisecond, at the processor of a thread that copies: turns get as short as that, and the guest stands still for a few of
//! them at most. It costs 12 µs each time in a virtual machine, so it is done only while the thread that copies has company.
//! Each such thread has a beat of its own, also where two share a processor with nobody else: a few percent of it, for
//! nothing, which is the price of not knowing who the company is.
//!
//! - <https://docs.kernel.org/scheduler/sched-eevdf.html> (who is due; a thread that had more than its part is not)
//! - <https://docs.kernel.org/timers/no_hz.html> (the tick)

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use nix::sched::{CpuSet, sched_getcpu, sched_setaffinity};
use nix::unistd::Pid;

use super::priority;

/// The beat at the processor of a thread, as long as this lives there.
#[derive(Debug)]
pub(super) struct Beat {
    score: Arc<Score>,
    thread: JoinHandle<()>,
}

/// What the thread that beats goes by.
#[derive(Debug)]
struct Score {
    /// Where.
    processor: AtomicUsize,
    /// How many times more.
    left: AtomicU32,
    is_over: AtomicBool,
}

impl Beat {
    /// Begins, at the calling thread's processor, and lasts a while.
    pub(super) fn begin() -> io::Result<Self> {
        let score = Arc::new(Score { processor: AtomicUsize::new(sched_getcpu()?), left: AtomicU32::new(A_WHILE), is_over: AtomicBool::new(false) });
        let of_thread = Arc::clone(&score);
        let thread = Builder::new().name("pf-beat".into()).spawn(move || of_thread.keep())?;
        Ok(Self { score, thread })
    }

    /// Lasts a while from now on, at the calling thread's processor. A thread that waits for something else than a processor
    /// does not call this, and the beat rests.
    pub(super) fn go_on(&self) {
        let Ok(here) = sched_getcpu() else { return };
        self.score.processor.store(here, Ordering::Relaxed);
        // Relaxed: both ends change one word, so either this finds that none was left or the other end finds these.
        if self.score.left.swap(A_WHILE, Ordering::Relaxed) == 0 {
            self.thread.thread().unpark();
        }
    }
}

impl Drop for Beat {
    /// Does not wait for the thread, which owns what it touches: a guest may be waiting for the caller.
    fn drop(&mut self) {
        self.score.is_over.store(true, Ordering::Relaxed);
        self.thread.thread().unpark();
    }
}

impl Score {
    fn keep(&self) {
        let _prompt = priority::be_prompt();
        let mut at = None;
        // Relaxed: a late look beats once more, or at another processor, nothing else.
        while !self.is_over.load(Ordering::Relaxed) {
            if self.left.load(Ordering::Relaxed) == 0 {
                std::thread::park();
                continue;
            }
            self.left.fetch_sub(1, Ordering::Relaxed);
            let processor = self.processor.load(Ordering::Relaxed);
            if at != Some(processor) {
                if let Err(error) = go_to(processor) {
                    // Processors come and go. A worker that goes on calls again, perhaps from another one.
                    tracing::debug!(%error, processor, "no beat there");
                    at = None;
                    self.left.store(0, Ordering::Relaxed);
                    continue;
                }
                at = Some(processor);
            }
            std::thread::park_timeout(EVERY);
        }
    }
}

/// Has the calling thread run at `processor` only.
fn go_to(processor: usize) -> nix::Result<()> {
    let mut only = CpuSet::new();
    only.set(processor)?;
    sched_setaffinity(Pid::from_raw(0), &only)
}

/// How often.
const EVERY: Duration = Duration::from_micros(500);
/// So many times after it was last told to go on: longer than a chunk takes, in company and whatever its encoding.
const A_WHILE: u32 = 32;

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    fn until(what: &str, holds: impl Fn() -> bool) {
        let began = Instant::now();
        while !holds() {
            assert!(began.elapsed() < Duration::from_secs(10), "{what}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn it_beats_for_a_while_rests_goes_on_and_ends() {
        let beat = Beat::begin().unwrap();
        let score = Arc::clone(&beat.score);
        let left = || score.left.load(Ordering::Relaxed);
        for _ in 0..3 {
            until("it beats until it rests", || left() == 0);
            // The last beat is still to come then, and after it the thread waits to be told.
            std::thread::sleep(20 * EVERY);
            beat.go_on();
            until("it goes on", || left() < A_WHILE);
        }
        until("it rests", || left() == 0);
        std::thread::sleep(20 * EVERY);
        drop(beat);
        until("it ends also while it rests", || Arc::strong_count(&score) == 1);
    }

    #[test]
    fn it_ends_while_it_beats() {
        let beat = Beat::begin().unwrap();
        let score = Arc::clone(&beat.score);
        beat.go_on();
        drop(beat);
        until("it ends", || Arc::strong_count(&score) == 1);
    }
}
