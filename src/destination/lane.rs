//! Reading the frames of one connection.
//!
//! A frame is read with two system calls in steady state at most, often one: `readv` puts its raw pages where they
//! belong and whatever follows (its meta bytes, the next frame's header) into a lookahead buffer. What the buffer
//! already holds of a frame's pages is copied from there. Where they belong is guest memory, or a
//! [staging](crate::memory::Staging) buffer for pages that come for the first time; nothing is allocated for a frame.
//!
//! What comes encrypted is read ahead where it is decrypted, and copied from there.

use std::io::{self, ErrorKind, Read};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam::utils::CachePadded;

use crate::error::Error;
use crate::memory::{GuestMemory, PageSink};
use crate::transport::{Stream, TransportError};
use crate::units::{ChunkIndex, PAGE_SIZE};
use crate::wire::{ChannelTotals, FRAME_HEADER_BYTES, FrameBody, FrameHeader, FrameReader, MAX_META_BYTES};

/// Reads, checks and places the frames of one connection.
#[derive(Debug)]
pub(super) struct LaneReader {
    input: Lookahead,
    frames: FrameReader,
    memory: Arc<GuestMemory>,
    meta: Vec<u8>,
    name: String,
}

impl LaneReader {
    /// For frames of `memory`, from a connection on which frames come next. Errors call it `name`, as in "bulk 3".
    /// `reads` counts what comes, whole or not.
    pub(super) fn new(stream: Stream, frames: FrameReader, memory: Arc<GuestMemory>, name: String, reads: Arc<CachePadded<AtomicU64>>) -> Self {
        Self { input: Lookahead::new(stream, reads), frames, memory, meta: Vec::with_capacity(MAX_META_BYTES), name }
    }

    /// For post-copy on the same connection, whose first frames may have been read ahead already.
    pub(super) fn into_post_copy(self) -> Self {
        Self { frames: self.frames.into_post_copy(), ..self }
    }

    /// Reads, checks and places one frame. After an error the sink holds nothing that may be used.
    ///
    /// # Errors
    /// When the connection ends or fails, or the frame is wrong.
    pub(super) fn next_frame<S: PageSink>(&mut self, sink: &mut S) -> Result<FrameHeader, Error> {
        let mut header = [0; FRAME_HEADER_BYTES];
        self.input.read_exact(&mut header).map_err(|error| self.broken(error))?;
        let header = self.frames.parse(&header, self.memory.layout())?;
        if let FrameBody::Chunk { chunk, pages } = header.body {
            sink.begin(chunk, pages.masks.filled());
            self.input.read_pages(sink, chunk, pages.masks.raw).map_err(|error| self.broken(error))?;
        }
        self.meta.resize(header.meta_bytes(), 0);
        self.input.read_exact(&mut self.meta).map_err(|error| self.broken(error))?;
        self.frames.apply(&header, sink, &self.meta)?;
        Ok(header)
    }

    /// What has been applied so far, since the switch if that has come.
    pub(super) fn totals(&self) -> ChannelTotals {
        self.frames.totals()
    }

    fn broken(&self, error: io::Error) -> Error {
        let lane = self.name.clone();
        match error.kind() {
            ErrorKind::UnexpectedEof => TransportError::Closed { lane }.into(),
            _ => TransportError::Broken { lane, source: error }.into(),
        }
    }
}

/// A stream with bytes read ahead.
#[derive(Debug)]
struct Lookahead {
    stream: Stream,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    reads: Arc<CachePadded<AtomicU64>>,
}

impl Lookahead {
    fn new(stream: Stream, reads: Arc<CachePadded<AtomicU64>>) -> Self {
        Self { stream, buffer: vec![0; LOOKAHEAD].into_boxed_slice(), start: 0, end: 0, reads }
    }

    fn count_read(&self) {
        // Relaxed: whoever looks too early looks again.
        self.reads.fetch_add(1, Ordering::Relaxed);
    }

    fn read_exact(&mut self, out: &mut [u8]) -> io::Result<()> {
        if self.stream.is_encrypted() {
            let mut filled = 0;
            while filled < out.len() {
                filled += retry(|| self.stream.read(&mut out[filled..]))?;
                self.count_read();
            }
            return Ok(());
        }
        let mut filled = 0;
        while filled < out.len() {
            if self.start == self.end {
                let read = retry(|| self.stream.read(&mut self.buffer))?;
                (self.start, self.end) = (0, read);
                self.count_read();
            }
            filled += self.take(&mut out[filled..]);
        }
        Ok(())
    }

    /// Reads the raw pages of a chunk to where they belong.
    fn read_pages<S: PageSink>(&mut self, sink: &mut S, chunk: ChunkIndex, mask: u64) -> io::Result<()> {
        if self.stream.is_encrypted() {
            return self.copy_pages(sink, chunk, mask);
        }
        let total = mask.count_ones() as usize * PAGE_SIZE;
        let buffered = (self.end - self.start).min(total);
        sink.write_front(chunk, mask, &self.buffer[self.start..self.start + buffered]);
        self.start += buffered;
        let mut placed = buffered;
        while placed < total {
            // The buffer is empty here: all of it was less than the pages.
            let progress = retry(|| {
                let progress = sink.read_from(self.stream.as_fd(), chunk, mask, placed, &mut self.buffer)?;
                (self.start, self.end) = (0, progress.tail_bytes);
                placed += progress.pages_bytes;
                Ok(progress.pages_bytes)
            });
            progress?;
            self.count_read();
        }
        Ok(())
    }

    /// The same from what was decrypted, of which there may be only a part of a page.
    fn copy_pages<S: PageSink>(&mut self, sink: &mut S, chunk: ChunkIndex, mask: u64) -> io::Result<()> {
        let mut left = mask;
        while left != 0 {
            let copied = self.stream.read_with(|bytes| {
                let (pages, _) = bytes.as_chunks::<PAGE_SIZE>();
                let pages = &pages[..pages.len().min(left.count_ones() as usize)];
                sink.write_front(chunk, left, pages.as_flattened());
                pages.iter().for_each(|_| left &= left - 1);
                pages.len() * PAGE_SIZE
            });
            if copied.is_ok() {
                self.count_read();
            }
            match copied {
                // Less than a page is there, or nothing comes any more.
                Ok(0) => {
                    let mut page = [0; PAGE_SIZE];
                    self.stream.read_exact(&mut page)?;
                    sink.write_page(chunk, left.trailing_zeros(), &page);
                    left &= left - 1;
                }
                Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    fn take(&mut self, out: &mut [u8]) -> usize {
        let length = out.len().min(self.end - self.start);
        out[..length].copy_from_slice(&self.buffer[self.start..self.start + length]);
        self.start += length;
        length
    }
}

/// Reads again after a signal; no bytes is an unexpected end.
fn retry(mut read: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match read() {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// Bytes read ahead: a few small frames, and little enough that most of a chunk goes straight to its place.
const LOOKAHEAD: usize = 16 << 10;

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::bitmap::PageBitmap;
    use crate::memory::{Backing, MemoryLayout, Staging};
    use crate::page::{Codecs, Decoder, Encoder, EncoderSettings, Method, PageKey, Work};
    use crate::units::{ByteCount, PAGE_WORDS, PageCount};
    use crate::wire::FrameWriter;

    const CHUNKS: u32 = 3;

    fn memory() -> Arc<GuestMemory> {
        Arc::new(GuestMemory::allocate(MemoryLayout::flat(PageCount(u64::from(CHUNKS) * 64)).unwrap(), Backing::Anonymous).unwrap())
    }

    /// Gives every second page of `memory` contents that no form but raw takes, and of their own for each `seed`.
    fn scramble(memory: &GuestMemory, seed: u64) {
        for page in (0..u64::from(CHUNKS) * 64).step_by(2) {
            let (chunk, bit) = (memory.chunk(ChunkIndex(u32::try_from(page / 64).unwrap())), u32::try_from(page % 64).unwrap());
            (0..PAGE_WORDS).for_each(|index| {
                let word = (seed ^ page << 16 ^ index as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
                chunk.store_word(bit, index, (word ^ word >> 29).wrapping_mul(0xBF58_476D_1CE4_E5B9));
            });
        }
    }

    fn page(memory: &GuestMemory, chunk: ChunkIndex, bit: u32) -> [u8; PAGE_SIZE] {
        let mut page = [0; PAGE_SIZE];
        memory.chunk(chunk).copy_out(bit, &mut page);
        page
    }

    fn work(memory: &GuestMemory, chunk: ChunkIndex, mask: u64) -> Work<'_> {
        Work { round: 0, chunk, memory: memory.chunk(chunk), mask, method: Method::Raw }
    }

    #[test]
    fn a_lane_goes_on_after_the_switch_with_what_it_has_read_ahead() {
        let (source, destination, key) = (memory(), memory(), PageKey::derive(&[1; 16]));
        scramble(&source, 1);
        let settings = EncoderSettings { codecs: Codecs::built_in(), key: key.clone(), delta_cache: ByteCount(1 << 20) };
        let mut writer = FrameWriter::new(Encoder::new(settings, CHUNKS));
        let mut bytes = Vec::new();
        writer.push_chunk(&mut bytes, work(&source, ChunkIndex(0), u64::MAX));
        writer.push_switch(&mut bytes, 0);
        scramble(&source, 2);
        let mut writer = writer.into_post_copy();
        let post_copy = [(0, 1 << 4), (0, u64::MAX << 8), (2, 0b111)].map(|(chunk, mask)| (ChunkIndex(chunk), mask));
        for (chunk, mask) in post_copy {
            writer.push_chunk(&mut bytes, work(&source, chunk, mask));
        }
        let (mut near, far) = Stream::pair().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| near.write_all(&bytes).unwrap());
            let frames = FrameReader::new(0, 1, Codecs::built_in(), Decoder::new(key, PageBitmap::new(CHUNKS))).granting_post_copy();
            let mut lane = LaneReader::new(far, frames, Arc::clone(&destination), "bulk 0".to_owned(), Arc::default());
            let mut placement = destination.placement();
            lane.next_frame(&mut placement).unwrap();
            assert_eq!(lane.next_frame(&mut placement).unwrap().body, FrameBody::Switch);

            let mut lane = lane.into_post_copy();
            let mut staging = Staging::new();
            for (chunk, mask) in post_copy {
                let FrameBody::Chunk { chunk: found, pages } = lane.next_frame(&mut staging).unwrap().body else { panic!("pages") };
                assert_eq!((found, staging.chunk()), (chunk, Some(chunk)));
                assert_eq!((pages.masks.raw, pages.masks.zero), (staging.held(), staging.zeros()));
                assert_eq!(staging.held() | staging.zeros(), mask);
                for bit in (0..64).filter(|bit| staging.held() >> bit & 1 == 1) {
                    assert!(staging.pages(bit, 1) == page(&source, chunk, bit), "page {bit} of chunk {}", chunk.0);
                }
            }
            assert_eq!(lane.totals(), writer.totals());
            assert!(page(&destination, ChunkIndex(2), 0) == [0; PAGE_SIZE], "staged, not placed");
        });
    }

    #[test]
    fn a_lane_that_ends_within_a_frame_is_closed() {
        let source = memory();
        scramble(&source, 1);
        let settings = EncoderSettings { codecs: Codecs::NONE, key: PageKey::derive(&[1; 16]), delta_cache: ByteCount(0) };
        let mut bytes = Vec::new();
        FrameWriter::post_copy(Encoder::new(settings, CHUNKS)).push_chunk(&mut bytes, work(&source, ChunkIndex(1), 0b101));
        let (mut near, far) = Stream::pair().unwrap();
        near.write_all(&bytes[..bytes.len() - 1]).unwrap();
        drop(near);
        let mut lane = LaneReader::new(far, FrameReader::post_copy(u16::MAX, Codecs::NONE), source, "urgent".to_owned(), Arc::default());
        let closed = lane.next_frame(&mut Staging::new());
        assert!(matches!(closed, Err(Error::Transport(TransportError::Closed { lane })) if lane == "urgent"));
    }
}
