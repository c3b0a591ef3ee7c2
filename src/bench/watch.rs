//! Watching a migration from outside: the guest's writes, and the processor time of both ends.
//!
//! One thread looks at the guest's counter of writes every millisecond, at each end where the guest can be seen. The
//! greatest number seen is the guest's: copies of the control page that arrive at the destination are never ahead of the
//! source.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::cpu::Meter;
use super::network::bytes_received;
use super::stopped::Stopped;
use super::window::Window;
use crate::guests::ControlWord;

/// What is watched.
pub(super) struct Subject {
    /// The source's process, then the destination's.
    pub(super) pids: [u32; 2],
    /// The name of vCPU threads.
    pub(super) vcpu: &'static str,
    /// The guest's memory, the source's first.
    pub(super) windows: Vec<Window>,
}

/// The watching thread.
pub(super) struct Watch {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Watcher>,
    stopped: Stopped,
}

/// What was seen between start and stop.
#[derive(Debug)]
pub(super) struct Seen {
    /// Processor time of source and destination, in seconds.
    pub(super) cpu_s: [f64; 2],
    /// Bytes that came in at the destination.
    pub(super) wire_bytes: u64,
    /// When each number of writes was first seen at the source; only numbers that differ.
    pub(super) at_source: Vec<(Instant, u64)>,
    /// The longest time without a new number at any end.
    pub(super) longest_gap: Duration,
    /// The longest time in which the machine itself stood still.
    pub(super) machine_stopped: Duration,
    /// When it was over.
    pub(super) end: Instant,
}

struct Watcher {
    subject: Subject,
    meters: [Meter; 2],
    base: [Duration; 2],
    base_bytes: u64,
    at_source: Vec<(Instant, u64)>,
    newest: (Instant, u64),
    longest_gap: Duration,
}

impl Watch {
    /// Begins.
    ///
    /// # Errors
    /// When a process is gone.
    pub(super) fn start(subject: Subject) -> Result<Self> {
        let meters = subject.pids.map(|pid| Meter::new(pid, subject.vcpu));
        let base = [meters[0].used(), meters[1].used()];
        let base_bytes = bytes_received(subject.pids[1])?;
        let newest = (Instant::now(), 0);
        let watcher = Watcher { subject, meters, base, base_bytes, at_source: Vec::new(), newest, longest_gap: Duration::ZERO };
        let stopped = Stopped::start()?;
        let stop = Arc::new(AtomicBool::new(false));
        let theirs = Arc::clone(&stop);
        let thread = thread::Builder::new().name("watch".into()).spawn(move || watcher.watch(&theirs)).context("no thread")?;
        Ok(Self { stop, thread, stopped })
    }

    /// Ends; what was seen.
    ///
    /// # Errors
    /// When the destination is gone.
    pub(super) fn stop(self) -> Result<Seen> {
        // Relaxed: the flag carries no data, and joining the thread orders all that it did.
        self.stop.store(true, Ordering::Relaxed);
        let mut watcher = self.thread.join().map_err(|_| anyhow::anyhow!("the watching thread panicked"))?;
        watcher.meters.iter_mut().for_each(Meter::sample);
        let end = Instant::now();
        let cpu_s = [0, 1].map(|end| watcher.meters[end].used().saturating_sub(watcher.base[end]).as_secs_f64());
        let wire_bytes = bytes_received(watcher.subject.pids[1])?.saturating_sub(watcher.base_bytes);
        let machine_stopped = self.stopped.end()?;
        let Watcher { at_source, longest_gap, .. } = watcher;
        Ok(Seen { cpu_s, wire_bytes, at_source, longest_gap, machine_stopped, end })
    }
}

impl Watcher {
    fn watch(mut self, stop: &AtomicBool) -> Self {
        let (mut all, mut vcpu) = (Instant::now(), Instant::now());
        while !stop.load(Ordering::Relaxed) {
            self.look();
            if all.elapsed() > BETWEEN_SAMPLES {
                self.meters.iter_mut().for_each(Meter::sample);
                (all, vcpu) = (Instant::now(), Instant::now());
            } else if vcpu.elapsed() > BETWEEN_VCPU_SAMPLES {
                self.meters.iter_mut().for_each(Meter::sample_vcpu);
                vcpu = Instant::now();
            }
            thread::sleep(BETWEEN_LOOKS);
        }
        self.look();
        self
    }

    fn look(&mut self) {
        for (end, window) in self.subject.windows.iter().enumerate() {
            // A source that is gone has nothing to add.
            let Ok(writes) = window.word(ControlWord::Writes) else { continue };
            let now = Instant::now();
            if end == 0 && self.at_source.last().is_none_or(|(_, last)| *last != writes) {
                self.at_source.push((now, writes));
            }
            if writes > self.newest.1 {
                let (before, number) = std::mem::replace(&mut self.newest, (now, writes));
                if number > 0 {
                    self.longest_gap = self.longest_gap.max(now - before);
                }
            }
        }
    }
}

impl Seen {
    /// Writes a second at the source from `start` on, until the guest stopped there.
    pub(super) fn writes_per_s(&self, start: Instant) -> Option<f64> {
        rate(self.at_source.iter().copied().filter(|(when, _)| *when >= start))
    }
}

/// Writes a second from the first of these to the last.
pub(super) fn rate(mut counts: impl Iterator<Item = (Instant, u64)>) -> Option<f64> {
    let (since, first) = counts.next()?;
    let (until, last) = counts.last()?;
    let seconds = (until - since).as_secs_f64();
    (seconds > 0.0).then(|| last.saturating_sub(first) as f64 / seconds)
}

const BETWEEN_LOOKS: Duration = Duration::from_millis(1);
const BETWEEN_VCPU_SAMPLES: Duration = Duration::from_millis(5);
const BETWEEN_SAMPLES: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_over_the_time_between_first_and_last() {
        let start = Instant::now();
        let counts = [(0, 100), (500, 600), (1000, 2100)].map(|(ms, writes)| (start + Duration::from_millis(ms), writes));
        assert_eq!(rate(counts.into_iter()), Some(2000.0));
        assert_eq!(rate(counts.into_iter().take(1)), None);
        assert_eq!(rate(counts.into_iter().take(0)), None);
    }
}
