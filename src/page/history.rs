//! Which pages are worth a try with LZ4.
//!
//! A page of random words costs LZ4 about twice the time of copying it, for nothing, so memory full of ciphertext,
//! video or compressed files must be recognised without trying every page. Two facts are kept. Along the walk: after
//! a run of failures only every third page is tried, then every seventh, and so on, until one succeeds; the intervals
//! are odd so that a pattern of two or four alternating pages cannot hide. And for each chunk: the pages that failed
//! last time, which serves chunks that are sent again and hold both kinds; it is forgotten now and then, because pages
//! change.

use crate::units::ChunkIndex;

/// What one worker knows of its chunks.
#[derive(Debug)]
pub(super) struct History {
    /// For each chunk the pages that did not compress when last tried.
    failed: Box<[u64]>,
    /// Failures since the last success.
    failures: u32,
    /// Pages to let pass before the next try.
    wait: u32,
    /// Chunks begun.
    begun: u32,
}

impl History {
    pub(super) fn new(chunks: u32) -> Self {
        Self { failed: vec![0; chunks as usize].into_boxed_slice(), failures: 0, wait: 0, begun: 0 }
    }

    /// Call before the pages of `chunk`.
    pub(super) fn begin(&mut self, chunk: ChunkIndex) {
        self.begun = self.begun.wrapping_add(1);
        if self.begun.is_multiple_of(FORGET_EVERY) {
            self.failed[chunk.as_usize()] = 0;
        }
    }

    /// Whether to try the page at `bit`. If so, [`History::record`] what came of it.
    pub(super) fn is_worth_trying(&mut self, chunk: ChunkIndex, bit: u32) -> bool {
        if self.wait > 0 {
            self.wait -= 1;
            return false;
        }
        self.failed[chunk.as_usize()] >> bit & 1 == 0
    }

    /// Takes note of a try.
    pub(super) fn record(&mut self, chunk: ChunkIndex, bit: u32, compressed: bool) {
        let failed = &mut self.failed[chunk.as_usize()];
        if compressed {
            *failed &= !(1 << bit);
            self.failures = 0;
        } else {
            *failed |= 1 << bit;
            self.failures += 1;
            let doublings = (self.failures + 1).saturating_sub(PATIENCE).min(MAX_DOUBLINGS);
            // The interval is one more: 1, 3, 7, ... 127.
            self.wait = (2 << doublings) - 2;
        }
    }
}

/// Failures in a row before pages are let pass untried.
const PATIENCE: u32 = 8;
/// Steps by which the interval between tries grows to 127 pages.
const MAX_DOUBLINGS: u32 = 6;
/// One chunk in so many forgets which of its pages failed.
const FORGET_EVERY: u32 = 16;

#[cfg(test)]
mod tests {
    use super::*;

    /// Walks `chunks` chunks of which the pages that `compresses` names compress; counts the tries that failed and the
    /// pages that were missed.
    fn walk(history: &mut History, chunks: u32, compresses: impl Fn(u32) -> bool) -> (u32, u32) {
        let (mut wasted, mut missed) = (0, 0);
        for chunk in 0..chunks {
            history.begin(ChunkIndex(chunk));
            for bit in 0..64 {
                let good = compresses(chunk * 64 + bit);
                if history.is_worth_trying(ChunkIndex(chunk), bit) {
                    history.record(ChunkIndex(chunk), bit, good);
                    wasted += u32::from(!good);
                } else {
                    missed += u32::from(good);
                }
            }
        }
        (wasted, missed)
    }

    #[test]
    fn random_memory_is_hardly_ever_tried() {
        let (wasted, _) = walk(&mut History::new(1024), 1024, |_| false);
        assert!(wasted < 1024 * 64 / 100, "{wasted} tries");
    }

    #[test]
    fn pages_that_compress_are_not_missed_among_others() {
        for every in 1..=4 {
            let mut history = History::new(64);
            for _ in 0..8 {
                assert_eq!(walk(&mut history, 64, |page| page % every == 0).1, 0, "every {every}");
            }
        }
    }

    #[test]
    fn chunks_sent_again_are_tried_where_they_compressed() {
        let mut history = History::new(64);
        let (first, _) = walk(&mut history, 64, |page| page % 2 == 0);
        let (again, _) = walk(&mut history, 64, |page| page % 2 == 0);
        assert_eq!((first, again), (64 * 32, 64 * 32 / FORGET_EVERY));
    }

    #[test]
    fn compressible_memory_is_noticed_after_random_memory() {
        let mut history = History::new(1024);
        let (_, missed) = walk(&mut history, 1024, |page| page >= 512 * 64);
        assert!(missed < 128, "{missed} pages");
    }
}
