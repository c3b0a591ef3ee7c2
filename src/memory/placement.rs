//! Placing received pages in guest memory.
//!
//! Raw pages go from the socket straight to where they belong (`readv`), which saves a copy of every byte; their
//! checksum is computed right after, while they are in cache. A frame that turns out to be altered leaves garbage
//! behind, which is harmless: the migration ends and this memory is never run.
//!
//! Where pages are installed ([`Supply::Installed`]), those that come for the first time are staged with the rest of
//! their frame, and put in their places once all of it is known to be right.
//!
//! Nothing may run on the memory meanwhile, or it sees pages half placed. That is a matter of correctness, not of
//! soundness: like copying out, placing goes as by relaxed atomic words, or by system calls.

use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::{NonNull, null_mut};

use super::populating::{Coming, Supplier, Supply, Trail};
use super::sink::{MAX_RUNS, PageSink, ReadProgress, runs, wanted_bytes};
use super::{GuestMemory, Staging};
use crate::bitmap::bits;
use crate::units::{ChunkIndex, PAGE_SIZE};

/// Access to guest memory for the pages that arrive, for one thread.
#[derive(Debug)]
pub struct Placement<'m> {
    memory: &'m GuestMemory,
    /// What has come of each chunk.
    begun: Vec<Begun>,
    /// The pages of each chunk that were installed. Untouched memory, but for the chunks of this thread.
    installed: Vec<u64>,
    /// What more than faults there is to get memory by.
    supplier: Option<Supplier<'m>>,
    trail: Trail,
    /// Where the frame that is coming goes first, if not straight to memory.
    staging: Option<Box<Staging>>,
    is_staged: bool,
    /// Where a page is made before it is written.
    made: Box<[u8; PAGE_SIZE]>,
}

impl<'m> Placement<'m> {
    pub(super) fn new(memory: &'m GuestMemory) -> Self {
        let chunks = memory.layout().chunks() as usize;
        Self {
            memory,
            begun: vec![Begun::Not; chunks],
            installed: vec![0; chunks],
            supplier: None,
            trail: Trail::of_one_in(1),
            staging: None,
            is_staged: false,
            made: Box::new([0; PAGE_SIZE]),
        }
    }

    /// The memory.
    #[must_use]
    pub fn memory(&self) -> &'m GuestMemory {
        self.memory
    }

    /// The same, for memory that nobody but the others of `lanes` touches until what supplies it is
    /// [ended](super::HostSupply::end).
    pub(crate) fn supplied_by(self, supplier: Supplier<'m>, lanes: u16) -> Self {
        Self { supplier: Some(supplier), trail: Trail::of_one_in(lanes), ..self }
    }

    /// Sees to memory for `filled` pages of `chunk`; says whether they must be staged.
    fn supply(&mut self, chunk: ChunkIndex, filled: u64) -> bool {
        let index = chunk.as_usize();
        match self.begun[index] {
            Begun::Not if filled != 0 => {
                let coming = self.coming(chunk, filled);
                self.begun[index] = match (self.memory.supply(chunk, coming, self.supplier), coming) {
                    (Supply::Installed, _) => Begun::Installed,
                    (Supply::Small | Supply::Huge, Coming::Thinly) => Begun::Thinly,
                    (Supply::Small | Supply::Huge, Coming::Densely | Coming::AmidDense) => Begun::Populated,
                };
            }
            Begun::Thinly if filled.count_ones() >= DENSE => {
                self.memory.populate(chunk);
                self.begun[index] = Begun::Populated;
            }
            _ => {}
        }
        self.begun[index] == Begun::Installed && filled & !self.installed[index] != 0
    }

    /// How much comes with the first `filled` pages of `chunk`.
    fn coming(&mut self, chunk: ChunkIndex, filled: u64) -> Coming {
        if filled.count_ones() < DENSE {
            return Coming::Thinly;
        }
        let is_amid_dense = self.trail.is_dense_at(chunk);
        self.trail.follow(chunk);
        if is_amid_dense { Coming::AmidDense } else { Coming::Densely }
    }

    /// A page that already holds the word is only read, so zeros never populate a hole.
    fn fill(&mut self, chunk: ChunkIndex, bit: u32, word: u64) {
        let chunk = self.memory.chunk(chunk);
        if !chunk.holds(bit, word) {
            chunk.fill(bit, word);
        }
    }

    /// The buffer with the frame that is coming, if it is staged.
    fn staged(&self) -> Option<&Staging> {
        self.staging.as_deref().filter(|_| self.is_staged)
    }

    fn staged_mut(&mut self) -> Option<&mut Staging> {
        self.staging.as_deref_mut().filter(|_| self.is_staged)
    }
}

impl PageSink for Placement<'_> {
    fn begin(&mut self, chunk: ChunkIndex, filled: u64) {
        self.is_staged = self.supply(chunk, filled);
        if self.is_staged {
            self.staging.get_or_insert_default().begin(chunk, filled);
        }
    }

    fn end(&mut self, chunk: ChunkIndex) {
        let Some(staging) = self.staging.as_deref().filter(|_| self.is_staged) else { return };
        let (come, installed) = (staging.held(), &mut self.installed[chunk.as_usize()]);
        bits(come & *installed).for_each(|bit| self.memory.chunk(chunk).copy_in(bit, staging.page(bit)));
        let supplier = self.supplier.expect("nothing is installed without");
        if self.memory.install(chunk, come & !*installed, staging, supplier) {
            *installed |= come;
        } else {
            self.begun[chunk.as_usize()] = Begun::Populated;
        }
        self.is_staged = false;
    }

    fn make_page<E>(&mut self, chunk: ChunkIndex, bit: u32, make: impl FnOnce(&mut [u8; PAGE_SIZE]) -> Result<(), E>) -> Result<(), E> {
        if let Some(staging) = self.staged_mut() {
            return staging.make_page(chunk, bit, make);
        }
        make(&mut self.made)?;
        self.memory.chunk(chunk).copy_in(bit, &self.made);
        Ok(())
    }

    fn write_page(&mut self, chunk: ChunkIndex, bit: u32, page: &[u8; PAGE_SIZE]) {
        match self.staged_mut() {
            Some(staging) => staging.write_page(chunk, bit, page),
            None => self.memory.chunk(chunk).copy_in(bit, page),
        }
    }

    fn amend_page(&mut self, chunk: ChunkIndex, bit: u32, page: &[u8; PAGE_SIZE], words: impl Iterator<Item = Range<usize>>) {
        match self.staged_mut() {
            Some(staging) => staging.amend_page(chunk, bit, page, words),
            None => words.for_each(|words| self.memory.chunk(chunk).copy_words_in(bit, page, words)),
        }
    }

    /// A page that holds something is there, whatever is staged.
    fn write_zero(&mut self, chunk: ChunkIndex, bit: u32) {
        self.fill(chunk, bit, 0);
    }

    fn write_uniform(&mut self, chunk: ChunkIndex, bit: u32, word: u64) {
        match self.staged_mut() {
            Some(staging) => staging.write_uniform(chunk, bit, word),
            None => self.fill(chunk, bit, word),
        }
    }

    fn copy_page(&self, chunk: ChunkIndex, bit: u32, out: &mut [u8; PAGE_SIZE]) {
        self.memory.chunk(chunk).copy_out(bit, out);
    }

    /// Each page of memory is copied first: nothing may refer to it.
    fn for_each_page(&self, chunk: ChunkIndex, mask: u64, mut look: impl FnMut(&[u8; PAGE_SIZE])) {
        if let Some(staging) = self.staged() {
            return staging.for_each_page(chunk, mask, look);
        }
        let chunk = self.memory.chunk(chunk);
        let mut page = [0; PAGE_SIZE];
        for bit in bits(mask) {
            chunk.copy_out(bit, &mut page);
            look(&page);
        }
    }

    fn write_front(&mut self, chunk: ChunkIndex, mask: u64, bytes: &[u8]) {
        if let Some(staging) = self.staged_mut() {
            return staging.write_front(chunk, mask, bytes);
        }
        let chunk = self.memory.chunk(chunk);
        let (pages, rest) = bytes.as_chunks::<PAGE_SIZE>();
        let mut left = bits(mask);
        pages.iter().zip(&mut left).for_each(|(page, bit)| chunk.copy_in(bit, page));
        if !rest.is_empty() {
            chunk.copy_in_front(left.next().expect("no more bytes than the pages have"), rest);
        }
    }

    fn read_from(&mut self, fd: BorrowedFd<'_>, chunk: ChunkIndex, mask: u64, skip: usize, tail: &mut [u8]) -> io::Result<ReadProgress> {
        if let Some(staging) = self.staged_mut() {
            return staging.read_from(fd, chunk, mask, skip, tail);
        }
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
    /// Most of it at once: it was populated ahead, or could not be installed.
    Populated,
    /// It is known which pages; others may be touched by nobody.
    Installed,
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
