//! Where the pages of a frame go.
//!
//! In pre-copy that is guest memory itself ([`Placement`](super::Placement)), or a buffer of one chunk
//! ([`Staging`](super::Staging)) on the way there for pages that come for the first time. In post-copy it is such a buffer
//! always, because a page must be whole and checked before the guest, which runs by then, can see it. Reading and decoding are the same for both, and generic over them: nothing is dispatched for a page.

use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;

use crate::units::{ChunkIndex, PAGE_SIZE};

/// Takes in the pages that frames bring, one frame after the other.
///
/// Every method panics on a page that the chunk does not have, and may do so on a chunk other than that of the latest
/// [`PageSink::begin`].
pub trait PageSink {
    /// A frame with pages of `chunk` is coming; it brings the contents of those of `filled`.
    fn begin(&mut self, chunk: ChunkIndex, filled: u64);

    /// All of the frame has come, and was right.
    fn end(&mut self, chunk: ChunkIndex);

    /// Writes a page that `make` makes, of a buffer that may hold anything. After an error so may the page.
    ///
    /// # Errors
    /// Those of `make`.
    fn make_page<E>(&mut self, chunk: ChunkIndex, bit: u32, make: impl FnOnce(&mut [u8; PAGE_SIZE]) -> Result<(), E>) -> Result<(), E>;

    /// Writes a page.
    fn write_page(&mut self, chunk: ChunkIndex, bit: u32, page: &[u8; PAGE_SIZE]);

    /// Writes a page that an earlier frame filled. What it holds is `page` already but for these of its words, in order.
    fn amend_page(&mut self, chunk: ChunkIndex, bit: u32, page: &[u8; PAGE_SIZE], words: impl Iterator<Item = Range<usize>>);

    /// Makes a page zeros that may hold something else.
    fn write_zero(&mut self, chunk: ChunkIndex, bit: u32);

    /// Sets every word of a page to `word`.
    fn write_uniform(&mut self, chunk: ChunkIndex, bit: u32, word: u64);

    /// Copies out what a page holds that an earlier frame filled.
    fn copy_page(&self, chunk: ChunkIndex, bit: u32, out: &mut [u8; PAGE_SIZE]);

    /// Calls `look` with the contents of each page of `mask`, in order.
    fn for_each_page(&self, chunk: ChunkIndex, mask: u64, look: impl FnMut(&[u8; PAGE_SIZE]));

    /// Writes `bytes` to the front of the pages of `mask`, taken as one string of bytes. Panics if they are longer than
    /// the pages.
    fn write_front(&mut self, chunk: ChunkIndex, mask: u64, bytes: &[u8]);

    /// Reads from `fd` into the pages of `mask`, taken as one string of bytes of which `skip` are there already, and
    /// after them into `tail`: one `readv`.
    ///
    /// # Errors
    /// As `readv(2)`. End of file shows as no progress.
    ///
    /// # Panics
    /// When `skip` is more than the pages have.
    fn read_from(&mut self, fd: BorrowedFd<'_>, chunk: ChunkIndex, mask: u64, skip: usize, tail: &mut [u8]) -> io::Result<ReadProgress>;
}

/// What one vectored read brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadProgress {
    /// Bytes that went into pages, from the requested offset on.
    pub pages_bytes: usize,
    /// Bytes that followed and went into the tail buffer.
    pub tail_bytes: usize,
}

impl ReadProgress {
    /// Of `read` bytes, when `wanted` of the pages were to come first.
    pub(super) fn new(read: usize, wanted: usize) -> Self {
        Self { pages_bytes: read.min(wanted), tail_bytes: read.saturating_sub(wanted) }
    }
}

/// Bytes of the pages of `mask` that are to come when `skip` are there. Panics if more are skipped than there are.
pub(super) fn wanted_bytes(mask: u64, skip: usize) -> usize {
    (mask.count_ones() as usize * PAGE_SIZE).checked_sub(skip).expect("no more skipped than there is")
}

/// The stretches of pages that `mask` is, at most [`MAX_RUNS`].
pub(super) fn page_runs(mut mask: u64) -> impl Iterator<Item = Range<u32>> {
    std::iter::from_fn(move || {
        let first = (mask != 0).then(|| mask.trailing_zeros())?;
        let past = first + (mask >> first).trailing_ones();
        mask &= u64::MAX.checked_shl(past).unwrap_or(0);
        Some(first..past)
    })
}

/// The stretches of bytes of a chunk that the pages of `mask` are, without the first `skip` bytes: at most [`MAX_RUNS`].
pub(super) fn runs(mask: u64, mut skip: usize) -> impl Iterator<Item = Range<usize>> {
    page_runs(mask).filter_map(move |pages| {
        let bytes = pages.start as usize * PAGE_SIZE..pages.end as usize * PAGE_SIZE;
        let skipped = skip.min(bytes.len());
        skip -= skipped;
        (skipped < bytes.len()).then(|| bytes.start + skipped..bytes.end)
    })
}

/// A chunk's 64 pages fall into no more runs.
pub(super) const MAX_RUNS: usize = 32;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn runs_are_the_bytes_of_the_pages_that_are_not_skipped(mask: u64, sparse: u64, skip in 0usize..70 * PAGE_SIZE) {
            for mask in [mask, mask & sparse, u64::MAX, 0x5555_5555_5555_5555] {
                let skip = skip.min(mask.count_ones() as usize * PAGE_SIZE);
                let bytes = (0..64usize).filter(|bit| mask >> bit & 1 == 1).flat_map(|bit| bit * PAGE_SIZE..(bit + 1) * PAGE_SIZE);
                let found: Vec<_> = runs(mask, skip).collect();
                prop_assert!(found.len() <= MAX_RUNS && found.iter().all(|run| !run.is_empty()));
                prop_assert!(found.windows(2).all(|pair| pair[0].end < pair[1].start), "{:?}", found);
                prop_assert_eq!(found.iter().map(Range::len).sum::<usize>(), wanted_bytes(mask, skip));
                prop_assert!(found.into_iter().flatten().eq(bytes.skip(skip)));
            }
        }
    }
}
