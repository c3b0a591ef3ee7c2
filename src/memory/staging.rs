//! A frame's pages before they are installed.
//!
//! In post-copy the guest runs while its pages arrive. So a frame is read and decoded into private memory, checked
//! there, and only then are its pages put under the guest, each in one step (`UFFDIO_COPY`). In pre-copy the same saves the
//! host work with pages that come for the first time. One staging buffer serves a
//! lane for ever: it is as large as a chunk, page-aligned, and raw pages come into it straight from the socket.
//!
//! Pages of zeros are named and not written: the kernel has a cheaper way to install them.

use std::fmt;
use std::io::{self, IoSliceMut};
use std::ops::Range;
use std::os::fd::BorrowedFd;

use nix::sys::uio::readv;

use super::sink::{MAX_RUNS, PageSink, ReadProgress, runs, wanted_bytes};
use crate::bitmap::bits;
use crate::units::{CHUNK_PAGES, CHUNK_SIZE, ChunkIndex, PAGE_SIZE};

/// Pages of one chunk, on their way into memory.
pub struct Staging {
    /// A chunk, and room to begin it at a page.
    bytes: Box<[u8]>,
    /// Where the chunk begins.
    start: usize,
    chunk: Option<ChunkIndex>,
    /// Pages with contents here.
    held: u64,
    /// Pages that are zeros, without contents here.
    zeros: u64,
}

impl Staging {
    /// A buffer that holds nothing.
    #[must_use]
    pub fn new() -> Self {
        let bytes = vec![0; CHUNK_SIZE + PAGE_SIZE].into_boxed_slice();
        let start = bytes.as_ptr().align_offset(PAGE_SIZE);
        assert!(start <= PAGE_SIZE, "bytes can be aligned to anything");
        Self { bytes, start, chunk: None, held: 0, zeros: 0 }
    }

    /// The chunk whose pages it holds.
    #[must_use]
    pub fn chunk(&self) -> Option<ChunkIndex> {
        self.chunk
    }

    /// The pages whose contents are here, once the frame that brought them was applied.
    #[must_use]
    pub fn held(&self) -> u64 {
        self.held
    }

    /// The pages that the frame brought as zeros; there are no contents of them here.
    #[must_use]
    pub fn zeros(&self) -> u64 {
        self.zeros
    }

    /// The contents of `count` pages from page `first_bit` of the chunk on.
    ///
    /// # Panics
    /// When one of them is not [held](Self::held), which would show what an earlier frame has left.
    #[must_use]
    pub fn pages(&self, first_bit: u32, count: u32) -> &[u8] {
        assert!((first_bit + count) as usize <= CHUNK_PAGES, "{count} pages from page {first_bit} of a chunk");
        let run = u64::MAX.checked_shr(64 - count).unwrap_or(0).checked_shl(first_bit).unwrap_or(0);
        assert!(self.held & run == run, "pages {:#x} are not held", run & !self.held);
        &self.bytes[self.within(first_bit as usize * PAGE_SIZE..(first_bit + count) as usize * PAGE_SIZE)]
    }

    /// The contents of page `bit`, which must be [held](Self::held).
    pub(super) fn page(&self, bit: u32) -> &[u8; PAGE_SIZE] {
        self.pages(bit, 1).first_chunk().expect("a page")
    }

    /// The place of a page whose contents come now.
    fn page_mut(&mut self, chunk: ChunkIndex, bit: u32) -> &mut [u8; PAGE_SIZE] {
        self.hold(chunk, 1 << bit);
        let page = self.within(bit as usize * PAGE_SIZE..(bit + 1) as usize * PAGE_SIZE);
        self.bytes[page].first_chunk_mut().expect("a page")
    }

    fn hold(&mut self, chunk: ChunkIndex, mask: u64) {
        assert_eq!(self.chunk, Some(chunk), "the chunk that was begun");
        self.held |= mask;
    }

    /// Where bytes of the chunk lie in the buffer.
    fn within(&self, bytes: Range<usize>) -> Range<usize> {
        self.start + bytes.start..self.start + bytes.end
    }
}

impl PageSink for Staging {
    fn begin(&mut self, chunk: ChunkIndex, _filled: u64) {
        (self.chunk, self.held, self.zeros) = (Some(chunk), 0, 0);
    }

    /// Nothing is installed by itself.
    fn end(&mut self, chunk: ChunkIndex) {
        self.hold(chunk, 0);
    }

    fn make_page<E>(&mut self, chunk: ChunkIndex, bit: u32, make: impl FnOnce(&mut [u8; PAGE_SIZE]) -> Result<(), E>) -> Result<(), E> {
        make(self.page_mut(chunk, bit))
    }

    fn write_page(&mut self, chunk: ChunkIndex, bit: u32, page: &[u8; PAGE_SIZE]) {
        *self.page_mut(chunk, bit) = *page;
    }

    /// The buffer does not hold what the page was.
    fn amend_page(&mut self, chunk: ChunkIndex, bit: u32, page: &[u8; PAGE_SIZE], _words: impl Iterator<Item = Range<usize>>) {
        self.write_page(chunk, bit, page);
    }

    fn write_zero(&mut self, chunk: ChunkIndex, bit: u32) {
        self.hold(chunk, 0);
        self.zeros |= 1 << bit;
    }

    fn write_uniform(&mut self, chunk: ChunkIndex, bit: u32, word: u64) {
        self.page_mut(chunk, bit).as_chunks_mut().0.fill(word.to_le_bytes());
    }

    fn copy_page(&self, _chunk: ChunkIndex, bit: u32, out: &mut [u8; PAGE_SIZE]) {
        *out = *self.page(bit);
    }

    fn for_each_page(&self, chunk: ChunkIndex, mask: u64, mut look: impl FnMut(&[u8; PAGE_SIZE])) {
        assert_eq!(self.chunk, Some(chunk), "the chunk that was begun");
        bits(mask).for_each(|bit| look(self.page(bit)));
    }

    fn write_front(&mut self, chunk: ChunkIndex, mask: u64, bytes: &[u8]) {
        assert!(bytes.len() <= wanted_bytes(mask, 0), "more bytes than the pages have");
        self.hold(chunk, mask);
        let mut rest = bytes;
        for run in runs(mask, 0) {
            let (front, behind) = rest.split_at(run.len().min(rest.len()));
            let to = self.within(run.start..run.start + front.len());
            self.bytes[to].copy_from_slice(front);
            rest = behind;
        }
    }

    fn read_from(&mut self, fd: BorrowedFd<'_>, chunk: ChunkIndex, mask: u64, skip: usize, tail: &mut [u8]) -> io::Result<ReadProgress> {
        let wanted = wanted_bytes(mask, skip);
        self.hold(chunk, mask);
        let mut targets: [IoSliceMut<'_>; MAX_RUNS + 1] = std::array::from_fn(|_| IoSliceMut::new(&mut []));
        let (mut used, mut at) = (0, 0);
        let mut rest = &mut self.bytes[self.start..];
        for run in runs(mask, skip) {
            let (target, behind) = rest[run.start - at..].split_at_mut(run.len());
            targets[used] = IoSliceMut::new(target);
            (used, at, rest) = (used + 1, run.end, behind);
        }
        targets[used] = IoSliceMut::new(tail);
        let read = readv(fd, &mut targets[..=used])?;
        Ok(ReadProgress::new(read, wanted))
    }
}

impl Default for Staging {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Staging {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { chunk, held, zeros, .. } = self;
        f.debug_struct("Staging").field("chunk", chunk).field("held", held).field("zeros", zeros).finish_non_exhaustive()
    }
}
