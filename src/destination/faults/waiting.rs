//! Who waits for which page, since when, and what waiting has cost so far.
//!
//! A thread that faults twice on a page it still waits for (a signal woke it meanwhile) waited once. Room is taken
//! ahead: more waiters at a time than that are served like the others but not timed.

use std::time::{Duration, Instant};

use super::latency::Latencies;
use super::places::run_mask;
use crate::units::{ChunkIndex, PageCount, PageIndex};

/// The waiters of now and the times of those before.
#[derive(Debug)]
pub(super) struct Waiting {
    waiters: Vec<Waiter>,
    latencies: Latencies,
    threads: Vec<ThreadWaits>,
    faults: u64,
}

#[derive(Debug)]
struct Waiter {
    page: PageIndex,
    thread: u32,
    since: Instant,
}

/// What a thread has waited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ThreadWaits {
    /// Its number in the system.
    pub(crate) thread: u32,
    /// How often.
    pub(crate) faults: u64,
    /// How long in all.
    pub(crate) waited: Duration,
}

/// What has been waited for pages to arrive.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct FaultStats {
    /// Waits of a thread for a page that was missing.
    pub(crate) faults: u64,
    /// Of those, how long half of them took, from when the fault was read until the page was in place.
    pub(crate) p50: Duration,
    /// Nine of ten.
    pub(crate) p90: Duration,
    /// All but a hundredth.
    pub(crate) p99: Duration,
    /// The longest.
    pub(crate) max: Duration,
    /// Thread by thread.
    pub(crate) threads: Vec<ThreadWaits>,
    /// Pages that came on the urgent lane.
    pub(crate) urgent: PageCount,
    /// Pages that came on bulk lanes.
    pub(crate) bulk: PageCount,
    /// Of both, those that were of no use any more: given back to the host before they came.
    pub(crate) dropped: PageCount,
    /// Faults on pages that were not missing: answered with zeros at once.
    pub(crate) zeros: u64,
}

impl Waiting {
    pub(super) fn new() -> Self {
        Self { waiters: Vec::with_capacity(MAX_WAITERS), latencies: Latencies::new(), threads: Vec::with_capacity(MAX_THREADS), faults: 0 }
    }

    /// `thread` waits for `page`.
    pub(super) fn begin(&mut self, page: PageIndex, thread: u32, now: Instant) {
        if self.waiters.iter().any(|waiter| waiter.page == page && waiter.thread == thread) {
            return;
        }
        self.faults += 1;
        if self.waiters.len() < MAX_WAITERS {
            self.waiters.push(Waiter { page, thread, since: now });
        }
    }

    /// The pages of `mask` in `chunk` are there.
    pub(super) fn end(&mut self, chunk: ChunkIndex, mask: u64, now: Instant) {
        let mut at = 0;
        while let Some(waiter) = self.waiters.get(at) {
            if waiter.page.chunk() == chunk && mask & run_mask(waiter.page.bit(), 1) != 0 {
                let waiter = self.waiters.swap_remove(at);
                let waited = now.saturating_duration_since(waiter.since);
                self.latencies.add(waited);
                self.add_to_thread(waiter.thread, waited);
            } else {
                at += 1;
            }
        }
    }

    fn add_to_thread(&mut self, thread: u32, waited: Duration) {
        if let Some(waits) = self.threads.iter_mut().find(|waits| waits.thread == thread) {
            waits.faults += 1;
            waits.waited += waited;
        } else if self.threads.len() < MAX_THREADS {
            self.threads.push(ThreadWaits { thread, faults: 1, waited });
        }
    }

    /// The times so far.
    pub(super) fn stats(&self) -> FaultStats {
        let Self { latencies, .. } = self;
        FaultStats {
            faults: self.faults,
            p50: latencies.quantile(0.5),
            p90: latencies.quantile(0.9),
            p99: latencies.quantile(0.99),
            max: latencies.max(),
            threads: self.threads.clone(),
            ..FaultStats::default()
        }
    }
}

/// Waiters that are timed at a time: more than any guest has vCPUs, asynchronous faults included.
const MAX_WAITERS: usize = 4096;
/// Threads that are told apart.
const MAX_THREADS: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_are_counted_by_thread_and_once_for_a_page() {
        let begin = Instant::now();
        let at = |micros| begin + Duration::from_micros(micros);
        let mut waiting = Waiting::new();
        waiting.begin(PageIndex(70), 1, at(0));
        waiting.begin(PageIndex(70), 2, at(10));
        waiting.begin(PageIndex(70), 1, at(20));
        waiting.begin(PageIndex(71), 3, at(20));
        waiting.end(ChunkIndex(1), 1 << 6, at(100));
        waiting.end(ChunkIndex(0), 1 << 7, at(100));
        let stats = waiting.stats();
        assert_eq!((stats.faults, stats.max), (3, Duration::from_micros(100)));
        let wait = |thread, micros| ThreadWaits { thread, faults: 1, waited: Duration::from_micros(micros) };
        assert_eq!(stats.threads, [wait(1, 100), wait(2, 90)]);
        waiting.end(ChunkIndex(1), u64::MAX, at(1020));
        assert_eq!(waiting.stats().threads[2], wait(3, 1000));
        assert_eq!(waiting.stats().max, Duration::from_millis(1));
    }

    #[test]
    fn more_waiters_than_there_is_room_for_are_counted() {
        let now = Instant::now();
        let mut waiting = Waiting::new();
        let many = MAX_WAITERS as u64 + 10;
        (0..many).for_each(|page| waiting.begin(PageIndex(page), u32::try_from(page % 2000).unwrap(), now));
        (0..=many / 64).for_each(|chunk| waiting.end(ChunkIndex(u32::try_from(chunk).unwrap()), u64::MAX, now));
        assert_eq!(waiting.stats().faults, many);
        assert_eq!((waiting.latencies.count(), waiting.threads.len()), (MAX_WAITERS as u64, MAX_THREADS));
    }
}
