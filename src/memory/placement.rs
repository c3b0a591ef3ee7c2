//! Placing received pages.
//!
//! Raw pages go from the socket straight to where they belong (`readv`), which saves a copy of every byte; their
//! checksum is computed right after, while they are in cache. A frame that turns out to be altered leaves garbage
//! behind, which is harmless: the migration ends and this memory is never run.
//!
//! Nothing may run on the memory meanwhile, or it sees pages half placed. That is a matter of correctness, not of
//! soundness: like copying out, placing goes by relaxed atomic words and system calls only.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::{NonNull, null_mut};

use super::GuestMemory;
use crate::units::{ChunkIndex, PAGE_SIZE};

/// Access to guest memory for the pages that arrive, for one thread.
#[derive(Debug)]
pub struct Placement<'m> {
    memory: &'m GuestMemory,
}

/// What one vectored read brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadProgress {
    /// Bytes that went into pages, from the requested offset on.
    pub pages_bytes: usize,
    /// Bytes that followed and went into the tail buffer.
    pub tail_bytes: usize,
}

impl<'m> Placement<'m> {
    pub(super) fn new(memory: &'m GuestMemory) -> Self {
        Self { memory }
    }

    /// The memory.
    #[must_use]
    pub fn memory(&self) -> &'m GuestMemory {
        self.memory
    }

    /// Writes a page. Panics if the chunk has no page `bit`.
    pub fn write_page(&mut self, chunk: ChunkIndex, bit: u32, page: &[u8; PAGE_SIZE]) {
        self.memory.chunk(chunk).copy_in(bit, page);
    }

    /// Sets every word of a page to `word`. A page that already holds it is only read, so zeros never populate a hole.
    pub fn write_uniform(&mut self, chunk: ChunkIndex, bit: u32, word: u64) {
        let chunk = self.memory.chunk(chunk);
        if !chunk.holds(bit, word) {
            chunk.fill(bit, word);
        }
    }

    /// Calls `look` with a copy of each page of `mask`, in order. Panics on a page the chunk does not have.
    pub fn for_each_page(&self, chunk: ChunkIndex, mask: u64, mut look: impl FnMut(&[u8; PAGE_SIZE])) {
        let chunk = self.memory.chunk(chunk);
        let mut page = [0; PAGE_SIZE];
        let mut left = mask;
        while left != 0 {
            chunk.copy_out(left.trailing_zeros(), &mut page);
            look(&page);
            left &= left - 1;
        }
    }

    /// Has the host put pages under all of `chunk` at once, which costs a fraction of faulting them in one by one. A host
    /// that does not know how (before Linux 5.14) leaves it to the faults.
    pub fn populate(&mut self, chunk: ChunkIndex) {
        let (host, pages) = self.memory.locate(chunk);
        // SAFETY: the range is mapped; populating it changes no contents.
        let done = unsafe { libc::madvise(host.as_ptr().cast(), pages as usize * PAGE_SIZE, libc::MADV_POPULATE_WRITE) };
        if done != 0 {
            tracing::trace!(chunk = chunk.0, error = %io::Error::last_os_error(), "not populated ahead");
        }
    }

    /// Writes `bytes` to the front of the pages of `mask`, taken as one string of bytes. Panics if they are longer than
    /// the pages, or the chunk does not have them.
    pub fn write_front(&mut self, chunk: ChunkIndex, mask: u64, bytes: &[u8]) {
        let chunk = self.memory.chunk(chunk);
        let (pages, rest) = bytes.as_chunks::<PAGE_SIZE>();
        let mut left = mask;
        for page in pages {
            chunk.copy_in(left.trailing_zeros(), page);
            left &= left - 1;
        }
        if !rest.is_empty() {
            chunk.copy_in_front(left.trailing_zeros(), rest);
        }
    }

    /// Reads from `fd` into the pages of `mask`, taken as one string of bytes of which `skip` are there already, and
    /// after them into `tail`: one `readv`.
    ///
    /// # Errors
    /// As `readv(2)`. End of file shows as no progress.
    ///
    /// # Panics
    /// When the chunk has no page named in `mask`, or `skip` is more than the pages have.
    pub fn read_from(&mut self, fd: BorrowedFd<'_>, chunk: ChunkIndex, mask: u64, skip: usize, tail: &mut [u8]) -> io::Result<ReadProgress> {
        let (host, pages) = self.memory.locate(chunk);
        assert!(pages == 64 || mask >> pages == 0, "a page past the end of the chunk");
        let wanted = (mask.count_ones() as usize * PAGE_SIZE).checked_sub(skip).expect("no more skipped than there is");
        let mut targets = Targets::default();
        let (mut left, mut skip) = (mask, skip);
        while left != 0 {
            let first = left.trailing_zeros();
            let run = (left >> first).trailing_ones();
            left &= u64::MAX.checked_shl(first + run).unwrap_or(0);
            let bytes = run as usize * PAGE_SIZE;
            let skipped = skip.min(bytes);
            skip -= skipped;
            if skipped < bytes {
                // SAFETY: the run lies inside the chunk, by the assertion above.
                let start = unsafe { host.add(first as usize * PAGE_SIZE + skipped) };
                targets.push(start, bytes - skipped);
            }
        }
        targets.push(NonNull::from(&mut *tail).cast(), tail.len());
        // SAFETY: the targets are stretches of guest memory that stays mapped during the borrow, to which no reference
        // exists, and `tail`, which is borrowed mutably; the kernel writes nowhere else.
        let read = unsafe { libc::readv(fd.as_raw_fd(), targets.vectors.as_ptr(), targets.used) };
        let read = usize::try_from(read).map_err(|_| io::Error::last_os_error())?;
        Ok(ReadProgress { pages_bytes: read.min(wanted), tail_bytes: read.saturating_sub(wanted) })
    }
}

/// Where a vectored read goes: at most 32 runs of a chunk's pages and the tail.
struct Targets {
    vectors: [libc::iovec; 33],
    used: libc::c_int,
}

impl Default for Targets {
    fn default() -> Self {
        Self { vectors: [libc::iovec { iov_base: null_mut(), iov_len: 0 }; 33], used: 0 }
    }
}

impl Targets {
    fn push(&mut self, start: NonNull<u8>, length: usize) {
        let at = usize::try_from(self.used).expect("at most 33");
        self.vectors[at] = libc::iovec { iov_base: start.as_ptr().cast(), iov_len: length };
        self.used += 1;
    }
}
