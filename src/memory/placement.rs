//! Placing received pages in guest memory.
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
use super::populating::HugePages;
use super::sink::{MAX_RUNS, PageSink, ReadProgress, runs, wanted_bytes};
use crate::units::{ChunkIndex, PAGE_SIZE};

/// Access to guest memory for the pages that arrive, for one thread.
#[derive(Debug)]
pub struct Placement<'m> {
    memory: &'m GuestMemory,
    /// What has come of each chunk.
    begun: Vec<Begun>,
    /// Where huge pages are welcome.
    huge: Option<&'m HugePages>,
}

impl<'m> Placement<'m> {
    pub(super) fn new(memory: &'m GuestMemory) -> Self {
        Self { memory, begun: vec![Begun::Not; memory.layout().chunks() as usize], huge: None }
    }

    /// The memory.
    #[must_use]
    pub fn memory(&self) -> &'m GuestMemory {
        self.memory
    }

    /// The same, taking huge pages for what is populated from now on, if there are any, where they are cheaper. Not for
    /// memory of which pages are taken out again one by one, as post-copy does.
    pub(crate) fn with_huge_pages(self, huge: Option<&'m HugePages>) -> Self {
        Self { huge, ..self }
    }
}

impl PageSink for Placement<'_> {
    /// The first frame that fills most of a chunk has all of it populated.
    fn begin(&mut self, chunk: ChunkIndex, filled: u64) {
        let begun = &mut self.begun[chunk.as_usize()];
        if filled.count_ones() >= DENSE && *begun != Begun::Populated {
            self.memory.populate(chunk, *begun == Begun::Not, self.huge);
            *begun = Begun::Populated;
        } else if filled != 0 && *begun == Begun::Not {
            self.memory.fill_thinly(chunk);
            *begun = Begun::Thinly;
        }
    }

    fn write_page(&mut self, chunk: ChunkIndex, bit: u32, page: &[u8; PAGE_SIZE]) {
        self.memory.chunk(chunk).copy_in(bit, page);
    }

    fn write_zero(&mut self, chunk: ChunkIndex, bit: u32) {
        self.write_uniform(chunk, bit, 0);
    }

    /// A page that already holds the word is only read, so zeros never populate a hole.
    fn write_uniform(&mut self, chunk: ChunkIndex, bit: u32, word: u64) {
        let chunk = self.memory.chunk(chunk);
        if !chunk.holds(bit, word) {
            chunk.fill(bit, word);
        }
    }

    fn copy_page(&self, chunk: ChunkIndex, bit: u32, out: &mut [u8; PAGE_SIZE]) {
        self.memory.chunk(chunk).copy_out(bit, out);
    }

    /// Each page is copied first: nothing may refer to guest memory.
    fn for_each_page(&self, chunk: ChunkIndex, mask: u64, mut look: impl FnMut(&[u8; PAGE_SIZE])) {
        let chunk = self.memory.chunk(chunk);
        let mut page = [0; PAGE_SIZE];
        let mut left = mask;
        while left != 0 {
            chunk.copy_out(left.trailing_zeros(), &mut page);
            look(&page);
            left &= left - 1;
        }
    }

    fn write_front(&mut self, chunk: ChunkIndex, mask: u64, bytes: &[u8]) {
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

    fn read_from(&mut self, fd: BorrowedFd<'_>, chunk: ChunkIndex, mask: u64, skip: usize, tail: &mut [u8]) -> io::Result<ReadProgress> {
        let (host, pages) = self.memory.locate(chunk);
        assert!(pages == 64 || mask >> pages == 0, "a page past the end of the chunk");
        let wanted = wanted_bytes(mask, skip);
        let mut targets = Targets::default();
        for run in runs(mask, skip) {
            // SAFETY: a run is a stretch of the pages of `mask`, which lie inside the chunk by the assertion above.
            let start = unsafe { host.add(run.start) };
            targets.push(start, run.len());
        }
        targets.push(NonNull::from(&mut *tail).cast(), tail.len());
        // SAFETY: the targets are stretches of guest memory that stays mapped during the borrow, to which no reference
        // exists, and `tail`, which is borrowed mutably; the kernel writes nowhere else.
        let read = unsafe { libc::readv(fd.as_raw_fd(), targets.vectors.as_ptr(), targets.used) };
        let read = usize::try_from(read).map_err(|_| io::Error::last_os_error())?;
        Ok(ReadProgress::new(read, wanted))
    }
}

/// What has come of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Begun {
    Not,
    /// A few pages, at a time.
    Thinly,
    /// Most of it at once: it was populated ahead.
    Populated,
}

/// Where a vectored read goes: the runs of a chunk's pages and the tail.
struct Targets {
    vectors: [libc::iovec; MAX_RUNS + 1],
    used: libc::c_int,
}

impl Default for Targets {
    fn default() -> Self {
        Self { vectors: [libc::iovec { iov_base: null_mut(), iov_len: 0 }; MAX_RUNS + 1], used: 0 }
    }
}

impl Targets {
    fn push(&mut self, start: NonNull<u8>, length: usize) {
        let at = usize::try_from(self.used).expect("at most 33");
        self.vectors[at] = libc::iovec { iov_base: start.as_ptr().cast(), iov_len: length };
        self.used += 1;
    }
}

/// Pages of a frame from which on its whole chunk is populated ahead: those that stay empty cost little then.
const DENSE: u32 = 48;
