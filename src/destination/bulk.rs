//! One channel's receiver.
//!
//! A frame is read with two system calls in steady state at most, often one: `readv` puts its raw pages where they
//! belong and whatever follows (its meta bytes, the next frame's header) into a lookahead buffer. What the buffer
//! already holds of a frame's pages is copied from there.
//!
//! What comes encrypted is read ahead where it is decrypted, and copied from there.

use std::io::{self, ErrorKind, Read};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam::channel::Sender;
use crossbeam::utils::CachePadded;

use super::registry::Arriving;
use crate::error::Error;
use crate::memory::Placement;
use crate::page::Decoder;
use crate::stats::Encodings;
use crate::transport::{Stream, TransportError};
use crate::units::{ByteCount, ChunkIndex, PAGE_SIZE};
use crate::wire::{ChannelTotals, FRAME_HEADER_BYTES, FrameBody, FrameHeader, FrameReader, MAX_META_BYTES};

/// What all channels of a session have brought, for progress.
#[derive(Debug, Default)]
pub(super) struct Arrived {
    pub(super) frames: CachePadded<AtomicU64>,
    pub(super) bytes: CachePadded<AtomicU64>,
}

impl Arrived {
    /// Frames and their bytes so far.
    pub(super) fn now(&self) -> (u64, ByteCount) {
        (self.frames.load(Ordering::Relaxed), ByteCount(self.bytes.load(Ordering::Relaxed)))
    }
}

/// What a bulk worker reports to its session.
#[derive(Debug)]
pub(super) enum BulkReport {
    /// A round is complete on this channel.
    RoundEnd { channel: u16, totals: ChannelTotals, encodings: Encodings },
    /// The worker has stopped and will not touch the memory again.
    Stopped { channel: u16, totals: ChannelTotals, error: Error },
}

/// Receives frames until the connection ends or something is wrong with one.
pub(super) fn receive(stream: Stream, channel: u16, arriving: &Arriving, arrived: &Arrived, reports: &Sender<BulkReport>) {
    let memory = &arriving.memory;
    let decoder = match memory.populated() {
        Ok(populated) => Decoder::new(arriving.key.clone(), populated),
        Err(error) => {
            return report_stopped(reports, channel, ChannelTotals::default(), error.into());
        }
    };
    let mut receiver = BulkReceiver {
        input: Lookahead::new(stream),
        frames: FrameReader::new(channel, arriving.channels, arriving.codecs, decoder),
        placement: memory.placement(),
        meta: Vec::with_capacity(MAX_META_BYTES),
        populated: vec![false; memory.layout().chunks() as usize],
        channel,
    };
    let mut encodings = Encodings::default();
    let error = loop {
        match receiver.next_frame() {
            Ok(header) => {
                // Relaxed: counters for display and heartbeat.
                arrived.frames.fetch_add(1, Ordering::Relaxed);
                arrived.bytes.fetch_add(header.frame_bytes() as u64, Ordering::Relaxed);
                match header.body {
                    FrameBody::Chunk { pages, .. } => encodings += pages.masks.encodings(),
                    FrameBody::RoundEnd => {
                        let totals = receiver.frames.totals();
                        let _ = reports.send(BulkReport::RoundEnd { channel, totals, encodings });
                    }
                }
            }
            Err(error) => break error,
        }
    };
    report_stopped(reports, channel, receiver.frames.totals(), error);
}

/// A channel's last report.
pub(super) fn report_stopped(reports: &Sender<BulkReport>, channel: u16, totals: ChannelTotals, error: Error) {
    // A session that is gone does not need to know.
    let _ = reports.send(BulkReport::Stopped { channel, totals, error });
}

struct BulkReceiver<'m> {
    input: Lookahead,
    frames: FrameReader,
    placement: Placement<'m>,
    meta: Vec<u8>,
    /// Chunks that were populated ahead.
    populated: Vec<bool>,
    channel: u16,
}

impl BulkReceiver<'_> {
    /// Reads, checks and places one frame.
    fn next_frame(&mut self) -> Result<FrameHeader, Error> {
        let mut header = [0; FRAME_HEADER_BYTES];
        self.input.read_exact(&mut header).map_err(|error| self.broken(error))?;
        let header = self.frames.parse(&header, self.placement.memory().layout())?;
        if let FrameBody::Chunk { chunk, pages } = header.body {
            let masks = pages.masks;
            if masks.filled().count_ones() >= DENSE && !std::mem::replace(&mut self.populated[chunk.as_usize()], true) {
                self.placement.populate(chunk);
            }
            self.input.read_pages(&mut self.placement, chunk, masks.raw).map_err(|error| self.broken(error))?;
        }
        self.meta.resize(header.meta_bytes(), 0);
        self.input.read_exact(&mut self.meta).map_err(|error| self.broken(error))?;
        self.frames.apply(&header, &mut self.placement, &self.meta)?;
        Ok(header)
    }

    fn broken(&self, error: io::Error) -> Error {
        let lane = format!("bulk {}", self.channel);
        match error.kind() {
            ErrorKind::UnexpectedEof => TransportError::Closed { lane }.into(),
            _ => TransportError::Broken { lane, source: error }.into(),
        }
    }
}

/// A stream with bytes read ahead.
struct Lookahead {
    stream: Stream,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Lookahead {
    fn new(stream: Stream) -> Self {
        Self { stream, buffer: vec![0; LOOKAHEAD].into_boxed_slice(), start: 0, end: 0 }
    }

    fn read_exact(&mut self, out: &mut [u8]) -> io::Result<()> {
        if self.stream.is_encrypted() {
            return self.stream.read_exact(out);
        }
        let mut filled = 0;
        while filled < out.len() {
            if self.start == self.end {
                let read = retry(|| self.stream.read(&mut self.buffer))?;
                (self.start, self.end) = (0, read);
            }
            filled += self.take(&mut out[filled..]);
        }
        Ok(())
    }

    /// Reads the raw pages of a chunk to where they belong.
    fn read_pages(&mut self, placement: &mut Placement<'_>, chunk: ChunkIndex, mask: u64) -> io::Result<()> {
        if self.stream.is_encrypted() {
            return self.copy_pages(placement, chunk, mask);
        }
        let total = mask.count_ones() as usize * PAGE_SIZE;
        let buffered = (self.end - self.start).min(total);
        placement.write_front(chunk, mask, &self.buffer[self.start..self.start + buffered]);
        self.start += buffered;
        let mut placed = buffered;
        while placed < total {
            // The buffer is empty here: all of it was less than the pages.
            let progress = retry(|| {
                let progress = placement.read_from(self.stream.as_fd(), chunk, mask, placed, &mut self.buffer)?;
                (self.start, self.end) = (0, progress.tail_bytes);
                placed += progress.pages_bytes;
                Ok(progress.pages_bytes)
            });
            progress?;
        }
        Ok(())
    }

    /// The same from what was decrypted, of which there may be only a part of a page.
    fn copy_pages(&mut self, placement: &mut Placement<'_>, chunk: ChunkIndex, mask: u64) -> io::Result<()> {
        let mut left = mask;
        while left != 0 {
            let copied = self.stream.read_with(|bytes| {
                let (pages, _) = bytes.as_chunks::<PAGE_SIZE>();
                let pages = &pages[..pages.len().min(left.count_ones() as usize)];
                placement.write_front(chunk, left, pages.as_flattened());
                pages.iter().for_each(|_| left &= left - 1);
                pages.len() * PAGE_SIZE
            });
            match copied {
                // Less than a page is there, or nothing comes any more.
                Ok(0) => {
                    let mut page = [0; PAGE_SIZE];
                    self.stream.read_exact(&mut page)?;
                    placement.write_page(chunk, left.trailing_zeros(), &page);
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

/// Pages of a frame from which on its whole chunk is populated ahead: those that stay empty cost little then.
const DENSE: u32 = 48;
/// Bytes read ahead: a few small frames, and little enough that most of a chunk goes straight to its place.
const LOOKAHEAD: usize = 16 << 10;
